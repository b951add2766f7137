"""SPD and selectors (RFC 4301 section 4.4.1), acquires, and fragments under them (section 7)."""

from __future__ import annotations

import pytest

from ipsec.errors import PolicyError
from ipsec.esp.drops import DropReason
from ipsec.esp.engine import Event, EventKind, Outbound
from ipsec.esp.sa import Action, Direction, Policy
from ipsec.wire.selector import OPAQUE
from tests.esp.support import (
    ANY4,
    ANY6,
    GCM,
    NOW,
    Tunnel,
    forge,
    ip,
    ipv4_fragment,
    ipv6_fragment,
    pair,
    params,
    trailer,
    udp,
)

BLOCK = DropReason.OUT_POL_BLOCK
NO_POLICY = DropReason.OUT_NO_POLS
CLEAR = "clear"


def verdict(engine, packet, now=NOW):
    result = engine.outbound(packet, now)
    return CLEAR if result.clear is not None else result.drop


def bypass(*pairs, **kwargs):
    return Policy(Action.BYPASS, pairs, **kwargs)


def discard(*pairs, **kwargs):
    return Policy(Action.DISCARD, pairs, **kwargs)


def spd(engine_class, *policies):
    engine = engine_class()
    engine.set_policies(policies)
    return engine


def test_no_policy(engine_class):
    assert engine_class().outbound(udp(), NOW) == Outbound(NO_POLICY)
    assert verdict(spd(engine_class, bypass(ANY6)), udp()) is NO_POLICY


def test_the_first_match_decides(engine_class):
    engine = spd(engine_class, bypass(pair("10.1.0.0/24")), discard(pair("10.0.0.0/8")), bypass(ANY4))
    assert verdict(engine, udp(source="10.1.0.5")) == CLEAR
    assert verdict(engine, udp(source="10.1.1.5")) is BLOCK
    assert verdict(engine, udp(source="11.0.0.1")) == CLEAR
    assert engine.outbound(udp(source="11.0.0.1"), NOW).clear == udp(source="11.0.0.1")


def test_priorities_then_age(engine_class):
    engine = engine_class()
    first = engine.add_policy(discard(ANY4, priority=10))
    engine.add_policy(bypass(ANY4, priority=10))
    assert verdict(engine, udp()) is BLOCK
    above = engine.add_policy(bypass(ANY4, priority=-1))
    assert verdict(engine, udp()) == CLEAR
    engine.del_policy(above)
    assert verdict(engine, udp()) is BLOCK
    engine.del_policy(first)
    assert verdict(engine, udp()) == CLEAR
    with pytest.raises(PolicyError):
        engine.del_policy(first)


def test_a_policy_that_is_added_takes_its_place_among_those_that_were_set(engine_class):
    engine = spd(engine_class, discard(pair("10.1.0.5/32"), priority=1), discard(ANY4, priority=3))
    engine.add_policy(bypass(ANY4, priority=2))
    engine.add_policy(discard(ANY4, priority=2))
    assert verdict(engine, udp(source="10.1.0.5")) is BLOCK
    assert verdict(engine, udp(source="10.1.0.6")) == CLEAR
    engine.add_policy(bypass(ANY4, priority=0))
    assert verdict(engine, udp(source="10.1.0.5")) == CLEAR


def test_set_policies_replaces_all(engine_class):
    engine = spd(engine_class, discard(ANY4))
    ids = engine.set_policies([bypass(pair("10.1.0.5/32"), priority=5), discard(ANY4, priority=1)])
    assert len(set(ids)) == 2
    assert verdict(engine, udp()) is BLOCK
    engine.del_policy(ids[1])
    assert verdict(engine, udp()) == CLEAR
    assert engine.set_policies([]) == []
    assert verdict(engine, udp()) is NO_POLICY


@pytest.mark.parametrize(
    ("selectors", "matching", "others"),
    [
        (pair(protocol=17), [udp()], [ip(6, bytes(20)), ip(47, b"gre!")]),
        (pair(protocol=17, local_ports=(1000, 1000)), [udp()], [udp(ports=(1001, 2000)), udp(ports=(2000, 1000))]),
        (pair(protocol=17, remote_ports=(1990, 2010)), [udp(), udp(ports=(5, 1990))], [udp(ports=(1000, 2011))]),
        (pair(protocol=1, local_ports=(0x0800, 0x0800), remote_ports=(0x0800, 0x0800)), [ip(1, b"\x08\0ab")],
         [ip(1, b"\x08\1ab"), ip(1, b"\0\0ab")]),
        (pair(protocol=1, local_ports=(0x0300, 0x03FF)), [ip(1, b"\x03\x04"), ip(1, b"\x03\0")], [ip(1, b"\x04\0")]),
        (pair("10.1.0.4/31", "10.2.0.8/31"), [udp()], [udp(source="10.1.0.6"), udp(destination="10.2.0.7")]),
        (pair(protocol=47), [ip(47, b"gre!")], [udp()]),
        (pair(protocol=47, local_ports=OPAQUE), [ip(47, b"gre!")], [udp()]),
        (pair(local_ports=(7, 7)), [udp(ports=(7, 1))], [udp(), ip(47, b"gre!")]),
        (pair(protocol=132, remote_ports=(80, 80)), [ip(132, b"\0\1\0\x50")], [ip(132, b"\0\1\0\x51")]),
    ],
)  # fmt: skip
def test_selectors(engine_class, selectors, matching, others):
    """The same selectors outbound in a policy and inbound in an SA, where local is the destination."""
    engine = spd(engine_class, bypass(selectors))
    for packet in matching:
        assert verdict(engine, packet) == CLEAR
    for packet in others:
        assert verdict(engine, packet) is NO_POLICY
    mirrored = type(selectors)(selectors.remote, selectors.local)
    receiver = engine_class()
    receiver.add_sa(params(Direction.IN, selectors=(mirrored,)))
    for seq, packet in enumerate((*matching, *others), start=1):
        expected = DropReason.NONE if packet in matching else DropReason.IN_TMPL_MISMATCH
        assert receiver.inbound(forge(GCM, trailer(packet, 4), seq), NOW).drop is expected


def test_mobility_header_type(engine_class):
    engine = spd(engine_class, bypass(pair("::/0", "::/0", 135, local_ports=(0x0500, 0x0500))))
    assert verdict(engine, ip(135, bytes((59, 0, 5, 0)) + bytes(4), 6)) == CLEAR
    assert verdict(engine, ip(135, bytes((59, 0, 6, 0)) + bytes(4), 6)) is NO_POLICY


def test_inbound_packets_are_held_against_their_own_sa(engine_class):
    """RFC 4301 section 5.2: right key, wrong SA."""
    tunnel = Tunnel(engine_class, selectors=(pair("10.2.0.0/16", "10.1.0.0/16"),))
    assert tunnel.send(udp()).packet == udp()
    for packet in (udp(source="10.3.0.1"), udp(destination="10.3.0.1"), udp(version=6)):
        assert tunnel.send(packet) == (DropReason.IN_TMPL_MISMATCH, b"", tunnel.into)
    stats = tunnel.receiver.query_sa(tunnel.into)
    assert (stats.packets, stats.seq) == (1, 4)
    assert stats.drops == {DropReason.IN_TMPL_MISMATCH: 3}


@pytest.mark.parametrize(
    ("selectors", "inside", "outside"),
    [
        (pair("10.2.0.0/16", "10.1.0.0/16"), [("10.1.0.0", "10.2.0.0"), ("10.1.255.255", "10.2.255.255")],
         [("10.0.255.255", "10.2.0.0"), ("10.2.0.0", "10.2.0.0"), ("10.1.0.0", "10.1.255.255"),
          ("10.1.0.0", "10.3.0.0")]),
        (pair("10.2.0.9/32", "0.0.0.0/0"), [("0.0.0.0", "10.2.0.9"), ("255.255.255.255", "10.2.0.9")],
         [("10.1.0.5", "10.2.0.8"), ("10.1.0.5", "10.2.0.10"), ("10.1.0.5", "0.0.0.0")]),
        (pair("255.255.255.254/31", "0.0.0.0/31"), [("0.0.0.1", "255.255.255.255")],
         [("0.0.0.2", "255.255.255.255"), ("0.0.0.0", "0.0.0.0"), ("255.255.255.255", "255.255.255.254")]),
    ],
)  # fmt: skip
def test_edges_of_inbound_selectors(engine_class, selectors, inside, outside):
    tunnel = Tunnel(engine_class, selectors=(selectors,))
    for source, destination in inside:
        packet = udp(source=source, destination=destination)
        assert tunnel.send(packet).packet == packet
        later = ipv4_fragment(packet, 8, False, b"rest of it")
        assert tunnel.send(later).packet == later
    for source, destination in outside:
        packet = udp(source=source, destination=destination)
        assert tunnel.send(packet).drop is DropReason.IN_TMPL_MISMATCH
        assert tunnel.send(ipv4_fragment(packet, 8, False, b"rest of it")).drop is DropReason.IN_TMPL_MISMATCH


def test_newest_sa_of_a_reqid(engine_class):
    engine = spd(engine_class, Policy(Action.PROTECT, (ANY4,), reqid=7))
    old = engine.add_sa(params(Direction.OUT, reqid=7))
    assert engine.outbound(udp(), NOW).sealed[0].sa == old
    engine.add_sa(params(Direction.OUT, reqid=8, spi=0x2000))
    engine.add_sa(params(Direction.IN, reqid=7, spi=0x2000))
    assert engine.outbound(udp(), NOW).sealed[0].sa == old
    new = engine.add_sa(params(Direction.OUT, reqid=7, spi=0x3000))
    assert engine.outbound(udp(), NOW).sealed[0].sa == new
    engine.del_sa(new)
    assert engine.outbound(udp(), NOW).sealed[0].sa == old


def test_acquire_once_until_an_sa_comes(engine_class):
    engine = engine_class()
    first, second = engine.set_policies(
        [Policy(Action.PROTECT, (ANY4,), reqid=7), Policy(Action.PROTECT, (ANY6,), reqid=9)]
    )
    for _ in range(3):
        assert engine.outbound(udp(), NOW) == Outbound(DropReason.OUT_NO_STATES)
    assert engine.outbound(udp(version=6), NOW).drop is DropReason.OUT_NO_STATES
    assert engine.events() == [Event(EventKind.ACQUIRE, first, 7), Event(EventKind.ACQUIRE, second, 9)]
    engine.outbound(udp(), NOW)
    assert engine.events() == []
    sa = engine.add_sa(params(Direction.OUT, reqid=7))
    assert engine.outbound(udp(), NOW).drop is DropReason.NONE
    engine.del_sa(sa)
    engine.outbound(udp(), NOW)
    engine.outbound(udp(version=6), NOW)
    assert engine.events() == [Event(EventKind.ACQUIRE, first, 7)]


# fragments

WHOLE = udp(b"0123456789abcdef" * 4)
FIRST = ipv4_fragment(WHOLE, 0, True, WHOLE[20:44])
LATER = ipv4_fragment(WHOLE, 24, False, WHOLE[44:])
PORT = pair(protocol=17, remote_ports=(2000, 2000))
WRONG_PORT = pair(protocol=17, remote_ports=(2001, 2001))
OPAQUE_PAIR = pair(protocol=17, local_ports=OPAQUE, remote_ports=OPAQUE)
FRAGMENT = DropReason.OUT_FRAGMENT_ERROR


def test_later_fragments_follow_their_first(engine_class):
    engine = spd(engine_class, bypass(PORT), discard(ANY4))
    assert verdict(engine, LATER) is FRAGMENT
    assert verdict(engine, FIRST) == CLEAR
    assert verdict(engine, LATER) == CLEAR
    other = spd(engine_class, bypass(WRONG_PORT), discard(ANY4))
    assert verdict(other, FIRST) is BLOCK
    assert verdict(other, LATER) is BLOCK


def test_fragments_of_other_datagrams_do_not_count(engine_class):
    engine = spd(engine_class, bypass(PORT))
    assert verdict(engine, FIRST) == CLEAR
    for change in ({"identification": 8}, {"source": "10.1.0.6"}, {"destination": "10.2.0.8"}):
        other = udp(WHOLE[28:], **change)
        assert verdict(engine, ipv4_fragment(other, 24, False, other[44:])) is FRAGMENT
    tcp = WHOLE[:9] + b"\x06" + WHOLE[10:]
    assert verdict(engine, ipv4_fragment(tcp, 24, False, tcp[44:])) is NO_POLICY


def test_a_fragment_of_another_protocol_is_of_another_datagram(engine_class):
    """RFC 791 section 3.2: of the same identification too. What is for UDP lets nothing else out."""
    engine = spd(engine_class, bypass(PORT))
    for number in range(8):
        whole = udp(bytes(64), identification=number)
        assert verdict(engine, ipv4_fragment(whole, 0, True, whole[20:44])) == CLEAR
        assert verdict(engine, ipv4_fragment(whole, 24, False, whole[44:])) == CLEAR
        for protocol in set(range(256)) - {17}:
            other = ip(protocol, bytes(60), identification=number)
            assert verdict(engine, ipv4_fragment(other, 24, False, b"tail")) is NO_POLICY


def test_fragment_memory_ends_after_30_s(engine_class):
    engine = spd(engine_class, bypass(PORT))
    assert verdict(engine, FIRST, 100.0) == CLEAR
    assert verdict(engine, LATER, 129.0) == CLEAR
    assert verdict(engine, LATER, 130.0) == CLEAR
    assert verdict(engine, LATER, 131.0) is FRAGMENT
    assert verdict(spd(engine_class, bypass(PORT)), LATER, 0.0) is FRAGMENT


def test_fragment_memory_is_bounded(engine_class):
    engine = spd(engine_class, bypass(PORT))
    for identification in range(5000):
        packet = udp(bytes(40), identification=identification)
        assert verdict(engine, ipv4_fragment(packet, 0, True, packet[20:44])) == CLEAR
    last = ipv4_fragment(udp(identification=4999), 24, False, b"tail")
    first = ipv4_fragment(udp(identification=0), 24, False, b"tail")
    assert verdict(engine, last) == CLEAR
    assert verdict(engine, first) is FRAGMENT


@pytest.mark.parametrize(
    ("policies", "expected"),
    [
        ([bypass(ANY4)], CLEAR),
        ([bypass(pair(protocol=17))], CLEAR),
        ([bypass(pair(protocol=6))], NO_POLICY),
        ([bypass(OPAQUE_PAIR)], CLEAR),
        ([discard(OPAQUE_PAIR), bypass(ANY4)], BLOCK),
        ([bypass(PORT), bypass(ANY4)], FRAGMENT),
        ([bypass(ANY4), discard(PORT)], CLEAR),
        ([discard(pair("10.9.0.0/16", protocol=17, remote_ports=(1, 1))), bypass(ANY4)], CLEAR),
        ([discard(pair(protocol=6, remote_ports=(1, 1))), bypass(ANY4)], CLEAR),
        ([discard(pair(remote_ports=(1, 1))), bypass(ANY4)], FRAGMENT),
        ([bypass(PORT)], FRAGMENT),
        ([bypass(PORT, OPAQUE_PAIR)], CLEAR),
        ([bypass(PORT, pair(protocol=17))], CLEAR),
    ],
)
def test_fragments_without_a_first(engine_class, policies, expected):
    assert verdict(spd(engine_class, *policies), LATER) == expected


def test_fragments_of_protocols_without_ports(engine_class):
    gre = ip(47, bytes(64))
    later = ipv4_fragment(gre, 24, False, gre[44:])
    assert verdict(spd(engine_class, bypass(pair(remote_ports=(1, 1))), discard(ANY4)), later) is BLOCK
    assert verdict(spd(engine_class, bypass(pair(protocol=47))), later) == CLEAR


def test_opaque_is_for_hidden_ports_only(engine_class):
    engine = spd(engine_class, discard(OPAQUE_PAIR), bypass(ANY4))
    assert verdict(engine, udp()) == CLEAR
    assert verdict(engine, LATER) is BLOCK
    assert verdict(engine, FIRST) == CLEAR
    assert verdict(engine, LATER) == CLEAR


def test_a_first_fragment_must_show_its_ports(engine_class):
    """RFC 1858: what hides its ports is malformed."""
    engine = spd(engine_class, bypass(ANY4))
    assert verdict(engine, ipv4_fragment(WHOLE, 0, True, WHOLE[20:23])) is DropReason.OUT_HDR_ERROR
    assert verdict(engine, ipv4_fragment(WHOLE, 65528, False, bytes(16))) is DropReason.OUT_HDR_ERROR


def test_ipv6_fragments(engine_class):
    segment = udp(bytes(64), 6)[40:]
    first, later = ipv6_fragment(0, True, segment[:24]), ipv6_fragment(24, False, segment[24:])
    policy = bypass(pair("::/0", "::/0", 17, remote_ports=(2000, 2000)))
    engine = spd(engine_class, policy)
    assert verdict(engine, later) is FRAGMENT
    assert verdict(engine, first) == CLEAR
    assert verdict(engine, later) == CLEAR
    assert verdict(engine, ipv6_fragment(24, False, segment[24:], identification=8)) is FRAGMENT
    # an atomic fragment is a whole datagram (RFC 6946)
    assert verdict(spd(engine_class, policy), ipv6_fragment(0, False, segment)) == CLEAR


def test_ipv6_fragments_that_hide_the_protocol(engine_class):
    """Destination options behind the fragment header: the upper layer shows in the first fragment only."""
    options = bytes((17, 0, 1, 4, 0, 0, 0, 0))
    segment = udp(bytes(64), 6)[40:]
    first = ipv6_fragment(0, True, options + segment[:24], protocol=60)
    later = ipv6_fragment(32, False, segment[24:], protocol=60)
    any_udp = bypass(pair("::/0", "::/0", 17))
    assert verdict(spd(engine_class, any_udp), later) is FRAGMENT
    assert verdict(spd(engine_class, bypass(ANY6)), later) == CLEAR
    engine = spd(engine_class, any_udp)
    assert verdict(engine, first) == CLEAR
    assert verdict(engine, later) == CLEAR


def test_inbound_fragments(engine_class):
    mirrored = pair(protocol=17, local_ports=(2000, 2000))
    tunnel = Tunnel(engine_class, selectors=(mirrored,))
    assert tunnel.send(LATER).drop is DropReason.IN_FRAGMENT_ERROR
    assert tunnel.send(FIRST).packet == FIRST
    assert tunnel.send(LATER).packet == LATER
    assert tunnel.send(LATER, NOW + 31).drop is DropReason.IN_FRAGMENT_ERROR
    wrong = Tunnel(engine_class, selectors=(pair(protocol=17, local_ports=(2001, 2001)),))
    assert wrong.send(FIRST).drop is DropReason.IN_TMPL_MISMATCH
    assert wrong.send(LATER).drop is DropReason.IN_FRAGMENT_ERROR
    for selectors in ((), (pair(protocol=17),), (OPAQUE_PAIR,)):
        assert Tunnel(engine_class, selectors=selectors).send(LATER).packet == LATER
    assert Tunnel(engine_class, selectors=(pair(protocol=6),)).send(LATER).drop is DropReason.IN_TMPL_MISMATCH
