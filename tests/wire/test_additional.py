"""Which key exchange method goes where, if there are several (RFC 9370 section 2.2.1)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import pytest

from ipsec.wire.additional import TYPES, assign, sound
from ipsec.wire.iana import KeMethod, TransformType
from ipsec.wire.proposal import Transform

PLACES = [int(TransformType.KE), *TYPES]


class Looked(list[Transform]):
    """Candidates that count how often they are looked at."""

    times = 0

    def __iter__(self) -> Iterator[Transform]:
        Looked.times += 1
        return super().__iter__()


@pytest.mark.parametrize("places", range(1, 9))
def test_a_stranger_who_offers_too_few_methods_costs_nothing(places: int) -> None:
    methods = list(KeMethod)[1:8]
    Looked.times = 0
    found = assign({place: Looked(Transform(place, method) for method in methods) for place in PLACES[:places]})
    assert (found is None) == (places > len(methods))
    assert Looked.times <= 4 * places


def test_there_is_a_way_exactly_if_one_of_all_ways_is_sound() -> None:
    lists = [(), (0,), (1,), (2,), (1, 2), (2, 1), (3, 0), (1, 2, 3)]
    for ids in product(lists, repeat=3):
        candidates = {place: [Transform(place, one) for one in some] for place, some in zip(PLACES, ids, strict=False)}
        ways = [way for way in product(*candidates.values()) if sound(way)]
        found = assign(candidates)
        assert (found is not None) == bool(ways)
        assert found is None or tuple(found[place] for place in PLACES[:3]) in ways
