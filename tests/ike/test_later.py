"""What an engine leaves for later, because a peer would have to wait: keys of the responder, key pairs in advance."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ipsec.crypto.kex import KeyExchange, key_exchange
from ipsec.errors import SuiteError
from ipsec.ike import registry
from ipsec.ike.events import IkeDown, Path
from ipsec.ike.sa import IkeSa
from ipsec.ike.state import IkeState
from ipsec.wire.iana import KeMethod
from tests.ike.hostile import A, B, Lab


def first_message(lab: Lab) -> tuple[bytes, Path]:
    lab.a.initiate(lab.ca, [(lab.ca.children[0], 0)], Path(A, 500, B, 500), lab.now)
    ((data, *_),) = lab.a.datagrams_to_send()
    return data, Path(B, 500, A, 500)


def half_open(lab: Lab) -> IkeSa:
    data, path = first_message(lab)
    lab.b.receive_datagram(data, path, lab.now)
    (sa,) = lab.b.sas.values()
    assert sa.state is IkeState.CONNECTING
    return sa


def test_the_answer_is_there_before_the_keys() -> None:
    lab = Lab()
    sa = half_open(lab)
    assert len(lab.b._outbox) == 1
    assert sa.keys is None
    lab.b.catch_up()
    assert sa.keys is not None


@pytest.mark.parametrize("how", ["datagram", "timer"])
def test_whatever_comes_first_catches_up(how: str) -> None:
    lab = Lab()
    sa = half_open(lab)
    if how == "datagram":
        lab.b.receive_datagram(b"noise", sa.path, lab.now)
    else:
        lab.b.handle_timer(lab.now)
    assert sa.keys is not None
    assert not lab.b._later


def test_an_ike_sa_that_is_gone_gets_no_keys() -> None:
    lab = Lab()
    sa = half_open(lab)
    lab.b.terminate_ike(sa, lab.now)
    lab.b.catch_up()
    assert sa.keys is None
    assert sa.in_cipher is None


def test_a_key_pair_made_in_advance_is_used_once() -> None:
    lab = Lab()
    method = KeMethod.CURVE_25519
    first = lab.a.key_pair(method)
    lab.a.catch_up()
    assert not lab.a._key_pairs, "nothing is made while somebody waits"
    assert lab.a.unprepared
    lab.a.prepare()
    assert not lab.a.unprepared
    ready = lab.a._key_pairs[method]
    second = lab.a.key_pair(method)
    third = lab.a.key_pair(method)
    assert second is ready
    assert len({first.public, second.public, third.public}) == 3
    lab.a.prepare()
    assert list(lab.a._key_pairs) == [method]
    assert lab.a._key_pairs[method].public not in {first.public, second.public, third.public}


def test_a_key_exchange_that_openssl_lacks_keeps_no_other_from_being_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where it is set up for a standard that has none of Curve25519."""

    def make(method: int, rng: Callable[[int], bytes]) -> KeyExchange:
        if method == KeMethod.CURVE_25519:
            raise SuiteError("missing")
        return key_exchange(method, rng)

    monkeypatch.setattr(registry, "key_exchange", make)
    lab = Lab()
    for method in (KeMethod.CURVE_25519, KeMethod.ECP_256, KeMethod.ECP_384):
        lab.a.needs_key_pair(method)
    lab.a.prepare()
    assert sorted(lab.a._key_pairs) == [KeMethod.ECP_256, KeMethod.ECP_384]
    assert not lab.a.unprepared


def test_a_key_exchange_that_openssl_lacks_fails_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else whoever tries again would wait for it for ever."""

    def make(method: int, rng: Callable[[int], bytes]) -> KeyExchange:
        raise SuiteError("key exchange CURVE_25519 is missing")

    monkeypatch.setattr(registry, "key_exchange", make)
    lab = Lab()
    for _ in range(2):
        sa = lab.a.initiate(lab.ca, [(lab.ca.children[0], 0)], Path(A, 500, B, 500), lab.now)
        assert sa.state is IkeState.DESTROYING
        assert (lab.a.sas, lab.a.by_spi, lab.a.initiating) == ({}, {}, {})
        down = [event for event in iter(lab.a.next_event, None) if isinstance(event, IkeDown)]
        assert [event.reason for event in down] == ["key exchange CURVE_25519 is missing"]


def test_the_first_key_pair_is_made_when_a_configuration_is_loaded() -> None:
    lab = Lab()
    lab.a.prepare()
    (ready,) = lab.a._key_pairs.values()
    data, _ = first_message(lab)
    assert ready.public in data
    assert ready not in lab.a._key_pairs.values()


def test_a_bug_in_what_was_left_costs_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    lab = Lab()
    done: list[int] = []
    lab.a.later(lambda: done.append(1 // 0))
    lab.a.later(lambda: done.append(2))
    lab.a.catch_up()
    assert done == [2]
    assert "this is a bug" in caplog.text
