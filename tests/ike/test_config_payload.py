"""Pools of virtual addresses, and what the Configuration payload says."""

from __future__ import annotations

from ipaddress import IPv4Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipsec.errors import ParseError
from ipsec.ike.config import IpAddress, PoolConfig
from ipsec.ike.config_payload import (
    ADDRESSES_MAX,
    VALUES_MAX,
    Assigned,
    Lease,
    Pool,
    assign,
    build_reply,
    build_request,
    find_rivals,
    parse_reply,
    parse_request,
)
from ipsec.wire.iana import CfgAttribute, CfgType
from ipsec.wire.payloads import CpPayload, parse_cp

A, B, C, D = (ip_address(f"10.3.0.{number}") for number in range(1, 5))
ANY4, ANY6 = ip_address("0.0.0.0"), ip_address("::")


def pool(first: str = "10.3.0.1", last: str = "10.3.0.3", keep: int = 1000) -> Pool:
    return Pool(PoolConfig("p", ip_address(first), ip_address(last)), keep)


# -- leases


def test_identities_get_different_addresses_until_there_are_none() -> None:
    addresses = pool()
    assert [addresses.acquire(name) for name in "abcd"] == [A, B, C, None]
    assert (addresses.size, addresses.online, addresses.offline) == (3, 3, 0)


def test_two_ike_sas_of_one_identity_get_different_addresses() -> None:
    addresses = pool()
    assert [addresses.acquire("a") for _ in range(2)] == [A, B]
    assert addresses.acquire("a", A, peer=None) == C


def test_an_identity_gets_its_address_back() -> None:
    addresses = pool()
    for name in "ab":
        addresses.acquire(name)
    assert addresses.release("a", A)
    assert addresses.acquire("c") == C
    assert addresses.acquire("a") == A


def test_pools_with_the_same_addresses_give_each_once() -> None:
    one, two = pool(), Pool(PoolConfig("q", B, D))
    other = Pool(PoolConfig("far", ip_address("10.3.0.5"), ip_address("10.3.0.6")))
    find_rivals((two, other, one))
    assert (one.rivals, two.rivals, other.rivals) == ((two,), (one,), ())
    assert one.acquire("a", B) == B
    assert [two.acquire(name, B) for name in "bc"] == [C, D]
    assert two.acquire("d") is None
    assert one.acquire("e") == A
    assert one.acquire("f") is None
    assert one.release("a", B)
    assert two.acquire("d", B) == B
    assert one.acquire("a", B) is None


def test_who_has_an_address_from_one_pool_keeps_it_with_another() -> None:
    """As while a pool is renamed: re-authentication makes the new IKE_SA first."""
    old, new = pool(), Pool(PoolConfig("q", A, C))
    find_rivals((old, new))
    assert old.acquire("a", peer="there") == A
    assert new.suits("a", A, "there") == 3
    assert new.acquire("b", A, peer="there") == B
    assert new.acquire("a", A, peer="there") == A
    assert old.release("a", A)
    assert new.acquire("c") == C


def test_an_address_is_reassigned_only_when_there_is_no_other() -> None:
    addresses = pool()
    for name, address in zip("ab", (A, B), strict=True):
        addresses.acquire(name)
        addresses.release(name, address)
    assert addresses.acquire("c") == C
    # a left first
    assert addresses.acquire("d") == A
    assert addresses.acquire("a") == B
    assert addresses.acquire("b") is None
    assert addresses.offline == 0


def test_a_free_address_that_is_asked_for_is_given() -> None:
    addresses = pool()
    assert addresses.acquire("a", C) == C
    assert addresses.acquire("b", C) == A
    assert addresses.acquire("c", ANY4) == B
    addresses.release("b", A)
    # remembered for b
    assert addresses.acquire("d", A) == A
    assert addresses.acquire("e", A) is None


def test_what_is_remembered_for_another_one_is_not_given_while_there_is_more() -> None:
    addresses = pool()
    addresses.acquire("a")
    addresses.release("a", A)
    assert addresses.acquire("b", A) == B
    assert addresses.acquire("a", ip_address("192.0.2.1")) == A


def test_the_other_family_has_nothing_here() -> None:
    assert pool().acquire("a", ANY6) is None
    six = pool("2001:db8::1", "2001:db8::2")
    assert six.acquire("a", ANY4) is None
    assert six.acquire("a", ANY6) == ip_address("2001:db8::1")
    assert six.acquire("b", ip_address("2001:db8::2")) == ip_address("2001:db8::2")


def test_reauthentication_shares_the_address_with_the_ike_sa_it_replaces() -> None:
    addresses = pool()
    peer = (ip_address("192.0.2.1"), 4500)
    assert addresses.acquire("a", None, peer) == A
    assert addresses.acquire("a", A, peer) == A
    assert addresses.acquire("a", A, (ip_address("192.0.2.9"), 4500)) == B
    assert addresses.acquire("b", A, peer) == C
    assert addresses.release("a", A)
    assert addresses.online == 3
    assert addresses.acquire("d", A) is None
    assert addresses.release("a", A)
    assert (addresses.online, addresses.offline) == (2, 1)
    assert not addresses.release("a", A)


def test_release_of_what_one_does_not_have() -> None:
    addresses = pool()
    addresses.acquire("a")
    for name, address in (("b", A), ("a", B), ("a", ip_address("192.0.2.1")), ("a", ANY6)):
        assert not addresses.release(name, address)
    assert addresses.online == 1


def test_leases() -> None:
    addresses = pool()
    for name in "ab":
        addresses.acquire(name)
    addresses.release("a", A)
    assert list(addresses.leases()) == [Lease(B, "b", True), Lease(A, "a", False)]
    assert addresses.name == "p"


def test_memory_is_that_of_leases_not_of_addresses() -> None:
    addresses = pool("10.0.0.0", "10.255.255.255", keep=10)
    for number in range(5000):
        address = addresses.acquire(number)
        assert address is not None
        addresses.release(number, address)
    assert addresses.size == 1 << 24
    assert addresses.offline == 10
    assert len(addresses._used) + addresses._fresh <= 2 * 11
    six = pool("2001:db8::", "2001:db8::ffff:ffff:ffff:ffff")
    assert six.acquire("a", ip_address("2001:db8::ffff:ffff:ffff:fffe")) is not None


def test_who_was_asked_for_far_ahead_is_skipped_and_found_again() -> None:
    addresses = pool("10.3.0.1", "10.3.0.4", keep=0)
    assert addresses.acquire("a", C) == C
    addresses.release("a", C)
    assert addresses.acquire("b", B) == B
    assert [addresses.acquire(name) for name in "cdef"] == [A, C, D, None]
    addresses.release("b", B)
    assert addresses.acquire("g") == B


steps = st.lists(
    st.tuples(st.booleans(), st.sampled_from("abcd"), st.one_of(st.none(), st.integers(0, 7))), max_size=80
)


@given(steps, st.integers(0, 4))
def test_no_address_is_given_twice_or_lost(plan: list[tuple[bool, str, int | None]], keep: int) -> None:
    size = 5
    addresses = pool("10.3.0.1", "10.3.0.5", keep)
    held: dict[IpAddress, str] = {}
    last: dict[str, list[IpAddress]] = {}
    for taking, name, number in plan:
        wanted = None if number is None else IPv4Address(int(A) + number)
        if taking:
            remembered = [lease.address for lease in addresses.leases() if not lease.online and lease.identity == name]
            got = addresses.acquire(name, wanted)
            assert (got is None) == (len(held) == size)
            if got is None:
                continue
            assert got not in held
            assert 0 <= int(got) - int(A) < size
            assert got in remembered or not remembered or got == wanted
            held[got] = name
        elif wanted is not None:
            assert addresses.release(name, wanted) == (held.get(wanted) == name)
            if held.get(wanted) == name:
                del held[wanted]
                last.setdefault(name, []).append(wanted)
        assert {lease.address: lease.identity for lease in addresses.leases() if lease.online} == held
        assert addresses.online == len(held)
        assert addresses.offline <= keep
        every = [lease.address for lease in addresses.leases()]
        assert len(every) == len(set(every))
        assert not set(addresses._used) & {int(address) - int(A) for address in every}
        offline = {lease.address for lease in addresses.leases() if not lease.online}
        assert {ip_address(int(A) + o) for names in addresses._offline_of.values() for o in names} == offline


@given(steps, st.integers(0, 4), st.integers(-3, 6), st.integers(1, 6))
def test_another_pool_takes_over(plan: list[tuple[bool, str, int | None]], keep: int, shift: int, size: int) -> None:
    old, start = pool("10.3.0.1", "10.3.0.5"), int(A) + shift
    for taking, name, number in plan:
        wanted = None if number is None else IPv4Address(int(A) + number)
        if taking:
            old.acquire(name, wanted)
        elif wanted is not None:
            old.release(name, wanted)
    new = pool(str(IPv4Address(start)), str(IPv4Address(start + size - 1)), keep)
    within = [lease for lease in old.leases() if start <= int(lease.address) < start + size]
    for lease in old.leases():
        if lease.online:
            assert new.adopt(lease.identity, lease.address) == (lease in within)
            assert not new.adopt("another", lease.address)
    new.inherit(old)
    here = [lease for lease in within if lease.online]
    away = [lease for lease in within if not lease.online]
    assert list(new.leases()) == here + away[max(len(away) - keep, 0) :]
    got = [new.acquire(number) for number in range(size + 1)]
    held = [lease.address for lease in here]
    assert sorted(int(address) for address in (*got, *held) if address is not None) == [*range(start, start + size)]


# -- several pools


def test_each_address_comes_from_a_pool_of_its_family() -> None:
    four, six = pool(), pool("2001:db8::1", "2001:db8::9")
    assert assign([six, four], "a", [ANY4, ANY6]) == [(four, A), (six, ip_address("2001:db8::1"))]
    assert assign([four], "b", [ANY6, ANY4]) == [(four, B)]
    assert assign([], "c", [ANY4]) == []


def test_the_next_pool_helps_before_anybody_loses_an_address() -> None:
    one, two = pool("10.3.0.1", "10.3.0.1"), pool("10.4.0.1", "10.4.0.1")
    one.acquire("a")
    one.release("a", A)
    assert assign([one, two], "b", [ANY4]) == [(two, ip_address("10.4.0.1"))]
    assert assign([one, two], "c", [ANY4]) == [(one, A)]
    assert assign([one, two], "d", [ANY4]) == []


def test_the_pool_that_remembers_or_has_what_is_wanted_comes_first() -> None:
    one, two = pool(), pool("10.4.0.1", "10.4.0.9")
    wanted = ip_address("10.4.0.5")
    assert assign([one, two], "a", [wanted]) == [(two, wanted)]
    two.release("a", wanted)
    assert assign([one, two], "a", [ANY4]) == [(two, wanted)]
    assert assign([one, two], "a", [ANY4]) == [(one, A)]


def test_sharing_works_through_several_pools() -> None:
    one, two = pool(), pool("10.4.0.1", "10.4.0.9")
    ((_, address),) = assign([one, two], "a", [ip_address("10.4.0.5")], peer="x")
    assert assign([one, two], "a", [address], peer="x") == [(two, address)]


# -- request


def wire(payload: CpPayload) -> CpPayload:
    body = payload.emit()
    return parse_cp(body, 0, len(body))


def test_request() -> None:
    payload = wire(build_request([ANY4, ip_address("2001:db8::5")]))
    assert payload.cfg_type == CfgType.REQUEST
    assert payload.attributes[0] == (CfgAttribute.INTERNAL_IP4_ADDRESS, b"")
    assert payload.attributes[1] == (CfgAttribute.INTERNAL_IP6_ADDRESS, ip_address("2001:db8::5").packed + b"\x80")
    request = parse_request(payload)
    assert request.addresses == [ANY4, ip_address("2001:db8::5")]
    assert request.attributes == {
        CfgAttribute.INTERNAL_IP4_DNS,
        CfgAttribute.INTERNAL_IP4_SUBNET,
        CfgAttribute.INTERNAL_IP6_DNS,
        CfgAttribute.INTERNAL_IP6_SUBNET,
    }


def test_request_of_one_family_asks_for_nothing_of_the_other() -> None:
    assert [number for number, _ in build_request([A]).attributes] == [1, 3, 13]
    assert [number for number, _ in build_request([ANY6]).attributes] == [8, 10, 15]


def test_request_with_values_and_unknown_attributes() -> None:
    payload = CpPayload(
        CfgType.REQUEST, [(1, A.packed), (8, ip_address("2001:db8::5").packed), (7, b"peer 1.0"), (30000, b"\0")]
    )
    request = parse_request(payload)
    assert request.addresses == [A, ip_address("2001:db8::5")]
    assert request.attributes == {7, 30000}


@pytest.mark.parametrize(("number", "length"), [(1, 1), (1, 3), (1, 5), (1, 16), (8, 4), (8, 15), (8, 18)])
def test_addresses_of_a_wrong_length(number: int, length: int) -> None:
    for parse in (parse_request, parse_reply):
        with pytest.raises(ParseError):
            parse(CpPayload(CfgType.REQUEST, [(number, bytes(length))]))


def test_a_request_is_bounded() -> None:
    request = parse_request(CpPayload(CfgType.REQUEST, [(1, b"")] * 1000))
    assert len(request.addresses) == ADDRESSES_MAX


# -- reply


def test_reply() -> None:
    six = ip_address("2001:db8::5")
    attributes = (
        (CfgAttribute.INTERNAL_IP4_DNS, bytes((8, 8, 8, 8))),
        (CfgAttribute.INTERNAL_IP6_DNS, six.packed),
        (CfgAttribute.INTERNAL_IP4_NBNS, bytes((10, 0, 0, 9))),
        (CfgAttribute.INTERNAL_IP4_SUBNET, bytes((10, 1, 0, 0, 255, 255, 0, 0))),
        (CfgAttribute.INTERNAL_IP4_SUBNET, bytes(8)),
        (CfgAttribute.INTERNAL_IP6_SUBNET, six.packed + b"\x40"),
        (CfgAttribute.INTERNAL_DNS_DOMAIN, b"corp.example."),
        (CfgAttribute.INTERNAL_IP4_DNS, bytes((8, 8, 8, 8))),
        (30000, b"something"),
    )
    four = Pool(PoolConfig("four", A, D, attributes[:5]))
    other = Pool(PoolConfig("six", six, six, attributes[5:]))
    request = CpPayload(CfgType.REQUEST, [(1, b""), (8, b""), (CfgAttribute.INTERNAL_DNS_DOMAIN, b"")])
    payload = wire(build_reply(request, [(four, A), (other, six)]))
    assert payload.cfg_type == CfgType.REPLY
    assert payload.attributes[:2] == [(1, A.packed), (8, six.packed + b"\x80")]
    assert len(payload.attributes) == 2 + len(attributes) - 1
    assert parse_reply(payload) == Assigned(
        addresses=(A, six),
        dns=(ip_address("8.8.8.8"), six),
        nbns=(ip_address("10.0.0.9"),),
        subnets=(ip_network("10.1.0.0/16"), ip_network("0.0.0.0/0"), ip_network("2001:db8::/64")),
        domains=("corp.example",),
    )


def test_reply_has_no_domains_for_who_did_not_ask() -> None:
    # RFC 8598 section 3.2
    attributes = ((CfgAttribute.INTERNAL_DNS_DOMAIN, b"corp.example"), (CfgAttribute.INTERNAL_IP4_DNS, bytes(4)))
    lease = Pool(PoolConfig("p", A, D, attributes)), A
    assert build_reply(CpPayload(CfgType.REQUEST, [(1, b"")]), [lease]).attributes == [(1, A.packed), (3, bytes(4))]


def test_empty_values_are_no_answer() -> None:
    assert parse_reply(CpPayload(CfgType.REPLY, [(number, b"") for number in range(30)])) == Assigned()


@pytest.mark.parametrize(
    ("number", "value"),
    [
        (CfgAttribute.INTERNAL_IP4_DNS, bytes(3)),
        (CfgAttribute.INTERNAL_IP6_DNS, bytes(17)),
        (CfgAttribute.INTERNAL_IP4_NBNS, bytes(16)),
        (CfgAttribute.INTERNAL_IP4_SUBNET, bytes(4)),
        (CfgAttribute.INTERNAL_IP4_SUBNET, bytes((10, 0, 0, 0, 255, 0, 255, 0))),
        (CfgAttribute.INTERNAL_IP6_SUBNET, bytes(16)),
        (CfgAttribute.INTERNAL_IP6_SUBNET, bytes(16) + b"\x81"),
        (CfgAttribute.INTERNAL_IP4_ADDRESS, bytes(4)),
        (CfgAttribute.INTERNAL_IP4_ADDRESS, bytes((127, 0, 0, 1))),
        (CfgAttribute.INTERNAL_IP4_ADDRESS, bytes((224, 0, 0, 1))),
        (CfgAttribute.INTERNAL_IP4_ADDRESS, b"\xff" * 4),
        (CfgAttribute.INTERNAL_IP6_ADDRESS, bytes(17)),
        (CfgAttribute.INTERNAL_IP6_ADDRESS, b"\xff" * 17),
    ],
)
def test_bad_values(number: int, value: bytes) -> None:
    with pytest.raises(ParseError):
        parse_reply(CpPayload(CfgType.REPLY, [(number, value)]))


@pytest.mark.parametrize(
    "name",
    [b"a b", b"x\nnameserver 192.0.2.1", b"$(reboot)", b"\xc3\xa4.example", b"a..b", b".", b"a" * 64, b"a." * 200],
)
def test_domains_that_are_none(name: bytes) -> None:
    assert parse_reply(CpPayload(CfgType.REPLY, [(CfgAttribute.INTERNAL_DNS_DOMAIN, name)])) == Assigned()


def test_a_reply_is_bounded() -> None:
    many = [(number, bytes((10, 0, i >> 8, i & 255))) for i in range(1000) for number in (1, 3, 4)]
    assigned = parse_reply(CpPayload(CfgType.REPLY, many))
    assert len(assigned.addresses) == ADDRESSES_MAX
    assert len(assigned.dns) == len(assigned.nbns) == VALUES_MAX


@given(st.lists(st.tuples(st.sampled_from([*CfgAttribute, 99]), st.binary(max_size=20)), max_size=8))
def test_anything_is_parsed_or_refused(attributes: list[tuple[int, bytes]]) -> None:
    for parse in (parse_request, parse_reply):
        try:
            parse(CpPayload(CfgType.REPLY, attributes))
        except ParseError:
            continue
