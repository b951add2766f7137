"""ICMP errors judged by the packet that they quote (RFC 4301 section 6.2): ``icmp`` of policies and SAs.

A router beside the sender, whose own address is in no selector, has an error for a host behind the receiver.
"""

from __future__ import annotations

import struct
from dataclasses import replace
from ipaddress import ip_address

import pytest
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6

from ipsec.esp.drops import DropReason
from ipsec.esp.engine import EventKind, Outbound
from ipsec.esp.quoted import QUOTED_MAX
from ipsec.esp.sa import Action, Direction, Mode, Policy
from ipsec.wire.selector import OPAQUE, SelectorPair
from tests.esp.support import (
    ADDRESSES,
    ANY4,
    GCM,
    INNER,
    NOW,
    forge,
    icmp_error,
    ip,
    ipv4_fragment,
    pair,
    params,
    trailer,
    udp,
)

NO_POLICY, BLOCKED = DropReason.OUT_NO_POLS, DropReason.OUT_POL_BLOCK
ROUTER = {4: "172.16.0.1", 6: "fd99::1"}
NEEDED = {4: 3, 6: 2}
"fragmentation needed, packet too big"
NETS = {4: pair("10.1.0.0/16", "10.2.0.0/16"), 6: pair("fd01::/16", "fd02::/16")}
BOTH = (NETS[4], NETS[6])


def came(version=4, **changes):
    """A packet that the host behind the receiver has sent to the one behind the sender."""
    there, here = INNER[version][::-1]
    return udp(bytes(64), version, **{"source": there, "destination": here, **changes})


def came_as(protocol, segment, version=4):
    there, here = INNER[version][::-1]
    return ip(protocol, segment, version, addresses=(ip_address(there), ip_address(here)))


def error(quote=None, version=4, kind=None, **changes):
    """What the router says of it."""
    quote = came(version) if quote is None else quote
    kind = NEEDED[version] if kind is None else kind
    return icmp_error(kind, quote, version, **{"source": ROUTER[version], "destination": INNER[version][1], **changes})


def sender(engine_class, *selectors, policies=(), icmp=True, sa=None, **options):
    """An engine with one SA for these selectors, behind other policies."""
    engine = engine_class(**options)
    engine.set_policies([*policies, Policy(Action.PROTECT, selectors or BOTH, reqid=1, icmp=icmp)])
    engine.add_sa(params(Direction.OUT, reqid=1, **(sa or {})))
    return engine


def receiver(engine_class, *selectors, icmp=True, **fields):
    """An engine with the inbound SA that fits."""
    engine = engine_class()
    mirrored = tuple(SelectorPair(one.remote, one.local) for one in selectors or BOTH)
    engine.add_sa(params(Direction.IN, selectors=mirrored, icmp=icmp, **fields))
    return engine


def passes(engine_class, packet, *selectors):
    """Whether a packet gets through at both ends, which agree; it is the same afterwards."""
    sent = sender(engine_class, *selectors).outbound(packet, NOW)
    next_header = 4 if packet[0] >> 4 == 4 else 41
    got = receiver(engine_class, *selectors).inbound(forge(GCM, trailer(packet, next_header)), NOW)
    if sent.sealed:
        assert sent.drop is DropReason.NONE
        assert (got.drop, got.packet) == (DropReason.NONE, packet)
        # what was sealed is that packet, too
        assert receiver(engine_class, *selectors).inbound(sent.sealed[0].datagram, NOW).packet == packet
        return True
    assert sent == Outbound(NO_POLICY)
    assert (got.drop, got.packet) == (DropReason.IN_TMPL_MISMATCH, b"")
    return False


KINDS = [(4, kind, kind in (3, 11, 12)) for kind in (0, 3, 4, 5, 8, 11, 12, 30)]
KINDS += [(6, kind, kind in (1, 2, 3, 4)) for kind in (0, 1, 2, 3, 4, 5, 100, 127, 128, 129, 137)]


@pytest.mark.parametrize(("version", "kind", "passed"), KINDS)
def test_what_is_an_error(engine_class, version, kind, passed):
    assert passes(engine_class, error(version=version, kind=kind)) is passed


def test_our_errors_are_what_others_take_for_such():
    for layer, name, version in ((IP, "IPerror", 4), (IPv6, "IPerror6", 6)):
        seen = layer(error(version=version))
        assert seen.src == ROUTER[version]
        assert (seen[name].src, seen[name].dst) == INNER[version][::-1]
        assert bytes(layer(bytes(seen))) == error(version=version)


@pytest.mark.parametrize("version", [4, 6])
def test_without_icmp_nothing_is_different(engine_class, version):
    packet = error(version=version)
    engine = sender(engine_class, icmp=False)
    assert engine.outbound(packet, NOW) == Outbound(NO_POLICY)
    assert engine.drops() == {NO_POLICY: 1}
    inner = forge(GCM, trailer(packet, 4 if version == 4 else 41))
    assert receiver(engine_class, icmp=False).inbound(inner, NOW).drop is DropReason.IN_TMPL_MISMATCH
    # an SA of one pair of IPv4 networks has a way of its own
    for icmp, drop in ((False, DropReason.IN_TMPL_MISMATCH), (True, DropReason.NONE)):
        if version == 4:
            assert receiver(engine_class, NETS[4], icmp=icmp).inbound(inner, NOW).drop is drop


def test_it_counts_as_any_packet(engine_class):
    engine = sender(engine_class)
    assert engine.outbound(error(), NOW).sealed[0].sa == 1
    stats = engine.query_sa(1)
    assert (stats.packets, stats.bytes, stats.drops) == (1, len(error()), {})
    assert engine.drops() == {}


@pytest.mark.parametrize("version", [4, 6])
def test_the_other_protocol_is_none(engine_class, version):
    """ICMP is IPv4's, ICMPv6 is IPv6's, whatever an IP header says."""
    packet = bytearray(error(version=version, kind=3))
    packet[9 if version == 4 else 6] = 58 if version == 4 else 1
    assert not passes(engine_class, bytes(packet))


@pytest.mark.parametrize("version", [4, 6])
def test_what_is_quoted_has_to_fit(engine_class, version):
    there, here = INNER[version][::-1]
    other = {4: "10.3.0.1", 6: "fd03::1"}[version]
    assert passes(engine_class, error(came(version), version))
    assert not passes(engine_class, error(came(version, destination=other), version))
    # not reversed: what the error's own side sent is nothing that came to the router from there
    assert not passes(engine_class, error(came(version, source=here, destination=there), version))
    # the quote of another family
    assert not passes(engine_class, error(came(10 - version), version))


def test_an_error_reaches_who_sent_what_it_quotes_alone(engine_class):
    """A compromised peer must not reach hosts that the SA is not for, nor blame others."""
    assert not passes(engine_class, error(destination="10.3.0.1"))
    assert not passes(engine_class, error(destination="10.2.0.10"))
    assert not passes(engine_class, error(came(source="10.3.0.1"), destination="10.3.0.1"))
    assert not passes(engine_class, error(version=6, destination="fd02::a"))


def test_ports_change_places(engine_class):
    web = pair("10.1.0.0/16", "10.2.0.0/16", 6, local_ports=(80, 80), remote_ports=(1024, 65535))
    for ports, passed in (((5000, 80), True), ((80, 5000), False), ((5000, 81), False), ((1000, 80), False)):
        assert passes(engine_class, error(came_as(6, struct.pack("!HHI", *ports, 1))), web) is passed
    assert not passes(engine_class, error(came(ports=(5000, 80))), web)


def test_quoted_types_stay(engine_class):
    echo = pair("10.1.0.0/16", "10.2.0.0/16", 1, local_ports=(0x0800, 0x08FF))
    assert passes(engine_class, error(came_as(1, b"\x08\0" + bytes(6))), echo)
    assert not passes(engine_class, error(came_as(1, b"\0\0" + bytes(6))), echo)


def test_a_protocol_without_ports(engine_class):
    gre = came_as(47, b"gre!")
    for opaque in ({}, {"local_ports": OPAQUE, "remote_ports": OPAQUE}):
        assert passes(engine_class, error(gre), pair("10.1.0.0/16", "10.2.0.0/16", 47, **opaque))
        assert passes(engine_class, error(gre[:20]), pair("10.1.0.0/16", "10.2.0.0/16", 47, **opaque))
    assert not passes(engine_class, error(gre), pair("10.1.0.0/16", "10.2.0.0/16", 0, local_ports=(7, 7)))


@pytest.mark.parametrize(
    ("selectors", "least"),
    [((NETS[4],), 24), ((NETS[6],), 44), ((pair("10.1.0.0/16", "10.2.0.0/16", 17, local_ports=(2000, 2000)),), 24)],
)
def test_a_quote_that_is_cut_short(engine_class, selectors, least):
    """The header and the ports have to be there, wherever it ends; with its true length, which is longer."""
    version = selectors[0].local.version
    whole = came(version)
    for length in range(len(whole) + 1):
        assert passes(engine_class, error(whole[:length], version), *selectors) is (length >= least), length


def test_the_error_itself_is_cut_short(engine_class):
    assert not passes(engine_class, ip(1, b"\x03\x04", addresses=(ip_address(ROUTER[4]), ip_address(INNER[4][1]))))
    assert not passes(engine_class, ip(1, b"\x03\x04\0\0\0\0\0", addresses=_router()))


def _router():
    return ip_address(ROUTER[4]), ip_address(INNER[4][1])


@pytest.mark.parametrize(
    ("at", "octets", "passed"),
    [
        (2, b"\xff\xff", True),
        (2, b"\0\x5c", True),
        (2, b"\0\x18", True),
        # no ports are left of it, not even a header, nothing
        (2, b"\0\x17", False),
        (2, b"\0\x13", False),
        (2, b"\0\0", False),
        (0, b"\x44", False),
        (0, b"\x40", False),
        # options of 40 octets, the last place for ports
        (0, b"\x4f", True),
        (0, b"\x65", False),
        (0, b"\x05", False),
        # a fragment beyond the largest datagram
        (6, b"\x1f\xff", False),
    ],
)
def test_a_quote_that_lies(engine_class, at, octets, passed):
    quote = came()
    quote = quote[:at] + octets + quote[at + len(octets) :]
    assert passes(engine_class, error(quote)) is passed


@pytest.mark.parametrize(("length", "passed"), [(0, False), (3, False), (4, True), (72, True), (65535, True)])
def test_an_ipv6_quote_that_lies(engine_class, length, passed):
    quote = came(6)
    assert passes(engine_class, error(quote[:4] + length.to_bytes(2, "big") + quote[6:], 6)) is passed


def test_extension_headers_in_the_quote(engine_class):
    segment = came(6)[40:]
    hop = bytes((17, 1)) + bytes(14)
    assert passes(engine_class, error(came_as(0, hop + segment, 6), 6))
    # one that ends beyond the quote, one that is not whole, and behind it no ports
    for quote in (came_as(0, bytes((17, 255)) + bytes(14) + segment, 6), came_as(0, hop + segment, 6)[:55],
                  came_as(0, hop + segment, 6)[:59]):  # fmt: skip
        assert not passes(engine_class, error(quote, 6))
    authentication = bytes((17, 4)) + bytes(22)
    assert passes(engine_class, error(came_as(51, authentication + segment, 6), 6))


def test_how_much_of_a_quote_is_looked_at(engine_class):
    """A chain of headers as long as a quote may be, and a longer one."""
    for headers, passed in (((QUOTED_MAX - 40 - 8) // 8, True), ((QUOTED_MAX - 40) // 8, False), (1000, False)):
        chain = bytes((60, 0, 1, 4, 0, 0, 0, 0)) * (headers - 1) + bytes((17, 0, 1, 4, 0, 0, 0, 0))
        quote = came_as(60, chain + struct.pack("!HHHH", 1000, 2000, 8, 0), 6)
        large = sender(engine_class, sa={"path_mtu": 9000}).outbound(error(quote, 6), NOW)
        assert (large.drop is DropReason.NONE) is passed
        inner = forge(GCM, trailer(error(quote, 6), 41))
        assert (receiver(engine_class).inbound(inner, NOW).drop is DropReason.NONE) is passed


def test_quoted_fragments(engine_class):
    whole = came()
    ported = pair("10.1.0.0/16", "10.2.0.0/16", 17, remote_ports=(1000, 1000))
    first, later = ipv4_fragment(whole, 0, True, whole[20:60]), ipv4_fragment(whole, 40, False, whole[60:])
    assert passes(engine_class, error(first), ported)
    # it might be: that is not enough
    assert not passes(engine_class, error(later), ported)
    assert passes(engine_class, error(later))
    assert passes(engine_class, error(later), pair("10.1.0.0/16", "10.2.0.0/16", 17))
    header = struct.pack("!BBHI", 60, 0, 800, 7)
    hides = came_as(44, header + bytes(16), 6)
    assert passes(engine_class, error(hides, 6))
    assert not passes(engine_class, error(hides, 6), pair("fd01::/16", "fd02::/16", 17))


def test_a_quoted_fragment_takes_no_ports_from_its_first_one(engine_class):
    whole = udp(bytes(64), source=INNER[4][1], destination=INNER[4][0])
    engine = sender(engine_class, pair("10.1.0.0/16", "10.2.0.0/16", 17, remote_ports=(1000, 1000)), policies=(
        Policy(Action.BYPASS, (pair("10.2.0.0/16", "10.1.0.0/16"),)),))  # fmt: skip
    assert engine.outbound(ipv4_fragment(whole, 0, True, whole[20:60]), NOW).clear
    assert engine.outbound(error(ipv4_fragment(whole, 40, False, whole[60:])), NOW) == Outbound(NO_POLICY)


def test_an_error_in_fragments_is_none(engine_class):
    whole = error()
    assert not passes(engine_class, ipv4_fragment(whole, 0, True, whole[20:68]))
    later = ipv4_fragment(whole, 48, False, whole[68:])
    assert sender(engine_class).outbound(later, NOW) == Outbound(NO_POLICY)
    six = error(version=6)
    fragment = ip(44, struct.pack("!BBHI", 58, 0, 1, 7) + six[40:], 6, addresses=_addresses(six))
    assert not passes(engine_class, fragment)
    # one that is alone is whole (RFC 6946), and so is one behind other headers
    alone = ip(44, struct.pack("!BBHI", 58, 0, 0, 7) + six[40:], 6, addresses=_addresses(six))
    assert passes(engine_class, alone)
    assert passes(engine_class, ip(60, bytes((58, 0, 1, 4, 0, 0, 0, 0)) + six[40:], 6, addresses=_addresses(six)))


def _addresses(packet):
    return ip_address(packet[8:24]), ip_address(packet[24:40])


def test_no_error_in_an_error_is_looked_into(engine_class):
    inner = icmp_error(3, udp(), source=INNER[4][1], destination=INNER[4][0])
    assert passes(engine_class, error(inner))
    assert not passes(engine_class, error(inner), pair("10.1.0.0/16", "10.2.0.0/16", 17))


class TestPolicies:
    """Outbound, other policies are as strong as ever."""

    def test_what_matches_by_itself(self, engine_class):
        routers = pair("172.16.0.0/16", "10.2.0.0/16")
        discard, bypass = (Policy(action, (routers,)) for action in (Action.DISCARD, Action.BYPASS))
        for order in (-1, 1):
            moved = [replace(one, priority=order) for one in (discard, bypass)]
            assert sender(engine_class, policies=moved[:1]).outbound(error(), NOW) == Outbound(BLOCKED)
            assert sender(engine_class, policies=moved[1:]).outbound(error(), NOW).clear == error()

    def test_a_tunnel_of_its_own(self, engine_class):
        routers = Policy(Action.PROTECT, (pair("172.16.0.0/16", "10.2.0.0/16"),), reqid=2)
        engine = sender(engine_class, policies=[routers], hold_packets=4)
        # as with any packet, one is asked for
        assert engine.outbound(error(), NOW).held
        assert [event.kind for event in engine.events()] == [EventKind.ACQUIRE]
        own = engine.add_sa(params(Direction.OUT, spi=0x2000, reqid=2))
        assert engine.outbound(error(), NOW).sealed[0].sa == own

    @pytest.mark.parametrize("action", [Action.BYPASS, Action.DISCARD, Action.PROTECT])
    def test_the_first_that_the_quote_matches_decides(self, engine_class, action):
        before = Policy(action, (pair("10.1.0.5/32", "10.2.0.0/16"),), reqid=1)
        engine = sender(engine_class, policies=[before])
        assert engine.outbound(error(), NOW) == Outbound(NO_POLICY)
        assert engine.drops() == {NO_POLICY: 1}
        assert sender(engine_class, policies=[replace(before, priority=1)]).outbound(error(), NOW).sealed

    @pytest.mark.parametrize("action", [Action.BYPASS, Action.DISCARD])
    def test_icmp_means_nothing_where_nothing_is_protected(self, engine_class, action):
        engine = sender(engine_class, policies=[Policy(action, BOTH, reqid=1, icmp=True)])
        assert engine.outbound(error(), NOW) == Outbound(NO_POLICY)

    def test_one_that_matches_perhaps(self, engine_class):
        ported = Policy(Action.BYPASS, (pair("10.1.0.0/16", "10.2.0.0/16", 17, local_ports=(7, 7)),))
        whole = came()
        later = error(ipv4_fragment(whole, 40, False, whole[60:]))
        assert sender(engine_class).outbound(later, NOW).sealed
        assert sender(engine_class, policies=[ported]).outbound(later, NOW) == Outbound(NO_POLICY)

    def test_no_sa_is_asked_for(self, engine_class):
        engine = engine_class(hold_packets=4)
        engine.set_policies([Policy(Action.PROTECT, BOTH, reqid=1, icmp=True)])
        assert engine.outbound(error(), NOW) == Outbound(NO_POLICY)
        assert engine.events() == []
        assert engine.held() == 0
        engine.add_sa(params(Direction.OUT, reqid=1))
        assert engine.outbound(error(), NOW).sealed
        engine.del_sa(1)
        assert engine.outbound(error(), NOW) == Outbound(NO_POLICY)

    def test_policies_come_and_go(self, engine_class):
        engine = sender(engine_class, icmp=False)
        assert engine.outbound(error(), NOW).drop is NO_POLICY
        added = engine.add_policy(Policy(Action.PROTECT, BOTH, reqid=1, priority=-1, icmp=True))
        assert engine.outbound(error(), NOW).sealed
        engine.del_policy(added)
        assert engine.outbound(error(), NOW).drop is NO_POLICY

    def test_it_can_be_too_large_itself(self, engine_class):
        """Errors are never answered with errors (RFC 1122 section 3.2.2)."""
        long = error(udp(bytes(540), source=INNER[4][1], destination=INNER[4][0]))
        result = sender(engine_class, sa={"path_mtu": 576}).outbound(long[:6] + b"\x40\0" + long[8:], NOW)
        assert result == Outbound(DropReason.OUT_TOO_BIG)


class TestTransport:
    """Between two hosts, of which one has an error of a kind that the selectors do not have."""

    def test_both_ways(self, engine_class):
        here, there = ADDRESSES[4]
        selectors = pair(f"{here}/32", f"{there}/32", 17)
        engine = sender(engine_class, selectors, sa={"mode": Mode.TRANSPORT})
        asked = udp(source=there, destination=here)
        unreachable = icmp_error(3, asked, source=here, destination=there)
        sealed = engine.outbound(unreachable, NOW).sealed
        got = receiver(engine_class, selectors, mode=Mode.TRANSPORT).inbound(sealed[0].datagram, NOW)
        assert (got.drop, got.packet[20:]) == (DropReason.NONE, unreachable[20:])
        strict = receiver(engine_class, selectors, mode=Mode.TRANSPORT, icmp=False)
        assert strict.inbound(sealed[0].datagram, NOW).drop is DropReason.IN_TMPL_MISMATCH

    def test_a_router_is_no_end_of_it(self, engine_class):
        here, there = ADDRESSES[4]
        engine = sender(engine_class, pair(f"{here}/32", f"{there}/32"), sa={"mode": Mode.TRANSPORT})
        packet = icmp_error(3, udp(source=there, destination=here), source=ROUTER[4], destination=there)
        assert engine.outbound(packet, NOW) == Outbound(DropReason.OUT_STATE_MODE_ERROR)


def test_an_sa_for_everything_is_not_asked(engine_class):
    """Without selectors everything passes, and with them all of a family."""
    assert passes(engine_class, error(came(destination="1.2.3.4")), pair("172.16.0.0/12", "10.2.0.0/16"))
    engine = engine_class()
    engine.add_sa(params(Direction.IN, selectors=(ANY4,), icmp=True))
    assert engine.inbound(forge(GCM, trailer(error(bytes(3)), 4)), NOW).packet == error(bytes(3))


def test_inbound_fragments_that_might_fit(engine_class):
    """A later fragment whose ports are not known says so, as without ``icmp``."""
    whole = icmp_error(3, came(), source=INNER[4][0], destination=INNER[4][1])
    later = ipv4_fragment(whole, 48, False, whole[68:])
    engine = receiver(engine_class, pair("10.1.0.0/16", "10.2.0.0/16", 1, local_ports=(0x0800, 0x08FF)))
    assert engine.inbound(forge(GCM, trailer(later, 4)), NOW).drop is DropReason.IN_FRAGMENT_ERROR
