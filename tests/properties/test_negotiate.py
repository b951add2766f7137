"""Negotiation against brute force: every packet, or every combination of transforms, of a small universe."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipsec.errors import ParseError
from ipsec.ike.negotiate import check_answer, choose, explain_mismatch, intersect, narrow
from ipsec.wire.iana import Encr, Protocol, TransformType
from ipsec.wire.proposal import Proposal, Transform
from ipsec.wire.selector import ANY_PORT, ICMP, OPAQUE, TCP, TrafficSelector

# -- traffic selectors: a packet is (address, protocol, port or type and code, None where that is hidden)

LOW, HIGH = 3, 65533
ADDRESSES = [*map(IPv4Address, range(6)), *map(IPv6Address, range(3))]
PORTS = (0, 1, 2, LOW, HIGH, 65535, None)
PACKETS = list(product(ADDRESSES, (TCP, ICMP, 47), PORTS))


@st.composite
def selectors(draw: st.DrawFn) -> TrafficSelector:
    if draw(st.booleans()):
        start, end = sorted(draw(st.tuples(*[st.integers(0, 5)] * 2)))
        first, last = IPv4Address(start), IPv4Address(end)
        kind = TrafficSelector(first, last)
    else:
        start, end = sorted(draw(st.tuples(*[st.integers(0, 2)] * 2)))
        kind = TrafficSelector(IPv6Address(start), IPv6Address(end))
    bounds = draw(st.tuples(*[st.sampled_from((0, 1, LOW, HIGH, 65535))] * 2))
    ports = draw(st.sampled_from((ANY_PORT, OPAQUE, (min(bounds), max(bounds)))))
    return TrafficSelector(kind.start, kind.end, draw(st.sampled_from((0, TCP, ICMP))), ports)


def packets(ts: TrafficSelector) -> frozenset[int]:
    return frozenset(
        number
        for number, (address, protocol, port) in enumerate(PACKETS)
        if ts.covers_address(address) and ts.protocol in (0, protocol) and ts.covers_port(port)
    )


def union(many: list[TrafficSelector]) -> frozenset[int]:
    return frozenset().union(*map(packets, many))


@given(selectors(), selectors())
def test_intersection_is_that_of_the_packets(a: TrafficSelector, b: TrafficSelector) -> None:
    common = intersect(a, b)
    assert (frozenset() if common is None else packets(common)) == packets(a) & packets(b)
    assert common == intersect(b, a)
    assert intersect(a, a) == a
    if common is not None:
        assert a.contains(common)
        assert b.contains(common)


@given(st.lists(selectors(), max_size=5), st.lists(selectors(), max_size=5))
def test_narrowing_is_all_of_what_both_want(ours: list[TrafficSelector], theirs: list[TrafficSelector]) -> None:
    result = narrow(ours, theirs)
    assert union(result) == union(ours) & union(theirs)
    for ts in result:
        # each one is of one selector of theirs, and of one of ours: nobody gets a pair that nobody wanted
        assert any(our.contains(ts) for our in ours)
        assert any(their.contains(ts) for their in theirs)
        assert not any(other.contains(ts) for other in result if other is not ts)
    order = [min(i for i, their in enumerate(theirs) if their.contains(ts)) for ts in result]
    assert order == sorted(order)


@given(st.lists(selectors(), max_size=5), st.lists(selectors(), max_size=5))
def test_narrowing_again_changes_nothing(ours: list[TrafficSelector], theirs: list[TrafficSelector]) -> None:
    result = narrow(ours, theirs)
    assert narrow(ours, result) == result
    assert narrow(result, theirs) == narrow(theirs, result) or set(narrow(theirs, result)) == set(result)


# -- proposals: of a few numbers of each type, many more than by chance agree

ENCR = [Transform(TransformType.ENCR, Encr.AES_GCM_16, 128), Transform(TransformType.ENCR, Encr.AES_CBC, 128)]
COMBINED = {ENCR[0]}
OTHERS = {
    TransformType.INTEG: (0, 2, 12),
    TransformType.KE: (0, 14, 31),
    TransformType.ESN: (0, 1),
    TransformType.ADDKE1: (0, 31, 36),
    TransformType.ADDKE2: (0, 31, 36),
}


@st.composite
def proposals(draw: st.DrawFn) -> list[Proposal]:
    found = []
    for number in range(1, draw(st.integers(0, 3)) + 1):
        transforms = draw(st.lists(st.sampled_from(ENCR), min_size=1, unique=True))
        for type_, ids in OTHERS.items():
            transforms += [Transform(type_, i) for i in draw(st.lists(st.sampled_from(ids), unique=True))]
        found.append(Proposal(Protocol.ESP, draw(st.permutations(transforms)), number, bytes(4)))
    return found


def meanings(proposal: Proposal, *, skip_ke: bool) -> set[tuple[Transform, ...]]:
    """Every suite that a proposal allows, spelled out, as RFC 7296 section 3.3 has it."""
    suites = set()
    for encr in proposal.of_type(TransformType.ENCR):
        choices: list[list[Transform]] = [[encr]]
        for type_ in OTHERS:
            listed = proposal.of_type(type_) or [Transform(type_, 0)]
            if (type_ == TransformType.INTEG and encr in COMBINED) or (skip_ke and type_ in (4, 6, 7)):
                listed = [Transform(type_, 0)]
            choices.append(listed)
        suites |= set(product(*choices))
    return {suite for suite in suites if (suite[0] in COMBINED or suite[1].id) and go_together(suite)}


def go_together(suite: tuple[Transform, ...]) -> bool:
    """RFC 9370 section 2.2.1: no method twice, and none of the additional ones without a first one."""
    first, *more = (transform.id for transform in suite if transform.type in (4, 6, 7))
    done = [method for method in more if method]
    return len(set(done)) == len(done) and first not in done and bool(first or not done)


def spelled_out(chosen: Proposal) -> tuple[Transform, ...]:
    assert len({transform.type for transform in chosen.transforms}) == len(chosen.transforms)
    encr = chosen.first(TransformType.ENCR)
    assert encr is not None
    return (encr, *(chosen.first(type_) or Transform(type_, 0) for type_ in OTHERS))


@given(proposals(), proposals(), st.booleans(), st.sampled_from((None, 0, 14, 31)))
def test_choice_is_allowed_by_both_and_made_if_there_is_one(
    ours: list[Proposal], theirs: list[Proposal], skip_ke: bool, ke: int | None
) -> None:
    common = {
        (mine, their): meanings(ours[mine], skip_ke=skip_ke) & meanings(theirs[their], skip_ke=skip_ke)
        for mine in range(len(ours))
        for their in range(len(theirs))
    }
    chosen = choose(ours, theirs, ke=ke, skip_ke=skip_ke)
    if chosen is None:
        assert not any(common.values())
        if ours and theirs:
            assert explain_mismatch(ours, theirs, skip_ke=skip_ke) != "nothing differs"
        return
    suite = spelled_out(chosen)
    their = chosen.number - 1
    assert set(chosen.transforms) <= set(theirs[their].transforms)
    liked = {pair: suites for pair, suites in common.items() if suites}
    if ke is not None and not skip_ke:
        with_ke = {pair: {s for s in suites if s[2].id == ke} for pair, suites in liked.items()}
        liked = {pair: suites for pair, suites in with_ke.items() if suites} or liked
    # the first pair in our order, then theirs
    mine, first = min(liked)
    assert their == first
    assert suite in liked[mine, first]


@given(proposals(), proposals())
def test_what_a_responder_chooses_is_a_good_answer(ours: list[Proposal], theirs: list[Proposal]) -> None:
    chosen = choose(ours, theirs)
    if chosen is not None:
        assert spelled_out(check_answer(theirs, [chosen])) == spelled_out(chosen)


@given(proposals(), proposals())
def test_an_answer_is_good_only_if_the_offer_means_it(offered: list[Proposal], answers: list[Proposal]) -> None:
    for answer in answers:
        try:
            got = check_answer(offered, [answer])
        except ParseError:
            continue
        assert spelled_out(got) in meanings(offered[got.number - 1], skip_ke=False)
    if len(answers) != 1:
        with pytest.raises(ParseError):
            check_answer(offered, answers)
