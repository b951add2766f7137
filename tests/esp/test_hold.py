"""Packets that wait for an SA, in both engines."""

from __future__ import annotations

from pathlib import Path

from ipsec.esp.drops import DropReason
from ipsec.esp.engine import (
    ACQUIRE_SECONDS,
    HELD_FRAMES,
    HELD_OCTETS,
    HELD_SECONDS,
    Event,
    EventKind,
    Outbound,
)
from ipsec.esp.sa import Action, Direction, Policy
from ipsec.wire.selector import SelectorPair
from tests.esp.support import NOW, Tunnel, pair, params
from tests.esp.test_policy import ANY4, ANY6, udp

HELD = Outbound(DropReason.NONE, held=True)
FAST = Path(__file__).parent.parent.parent / "ipsec" / "fast"


def trap(engine_class, hold=3, reqids=(7,)):
    engine = engine_class(hold_packets=hold)
    policies = engine.set_policies([Policy(Action.PROTECT, (ANY4,), reqid=reqid) for reqid in reqids])
    return engine, policies


def test_the_newest_are_sent_in_order(engine_class):
    engine, _ = trap(engine_class)
    packets = [udp(bytes(size)) for size in range(5)]
    assert [engine.outbound(packet, NOW) for packet in packets] == [HELD] * 5
    assert engine.held() == 3
    assert engine.drops() == {DropReason.OUT_NO_STATES: 2}
    assert engine.release(NOW) == []
    assert engine.held() == 3
    receiver = Tunnel(engine_class, reqid=7).receiver
    engine.add_sa(params(Direction.OUT, reqid=7))
    results = engine.release(NOW + 1)
    assert [receiver.inbound(result.sealed[0].datagram, NOW).packet for result in results] == packets[2:]
    assert engine.held() == 0
    assert engine.release(NOW) == []
    assert engine.drops() == {DropReason.OUT_NO_STATES: 2}


def test_the_path_decides_when_they_are_sent(engine_class):
    """Nothing was known of MTU and mode when the packet was kept."""
    engine, _ = trap(engine_class)
    engine.outbound(udp(bytes(1400), df=True), NOW)
    engine.outbound(udp(bytes(1400)), NOW)
    engine.add_sa(params(Direction.OUT, reqid=7, path_mtu=1000))
    refused, fragments = engine.release(NOW)
    assert refused.drop is DropReason.OUT_TOO_BIG
    assert refused.reply
    assert len(fragments.sealed) == 2


def test_other_policies_decide_anew(engine_class):
    engine, _ = trap(engine_class)
    packet = udp()
    engine.outbound(packet, NOW)
    engine.set_policies([Policy(Action.BYPASS, (ANY4,))])
    assert engine.release(NOW) == [Outbound(DropReason.NONE, clear=packet)]
    engine.set_policies([Policy(Action.PROTECT, (ANY4,), reqid=7)])
    engine.outbound(packet, NOW)
    engine.set_policies([])
    assert engine.release(NOW) == [Outbound(DropReason.OUT_NO_POLS)]


def test_none_makes_room_before_its_turn(engine_class):
    """Other policies decide: the oldest of those that were tried goes, and of the others none."""
    engine = engine_class(hold_packets=2)
    narrow = engine.add_policy(Policy(Action.PROTECT, (pair(protocol=17, remote_ports=(1, 1)),), reqid=5))
    engine.add_policy(Policy(Action.PROTECT, (ANY4,), reqid=7))
    packets = [udp(ports=(1000, port)) for port in (1, 2, 3)]
    assert [engine.outbound(packet, NOW) for packet in packets] == [HELD] * 3
    engine.del_policy(narrow)
    assert engine.release(NOW) == []
    assert engine.drops() == {DropReason.OUT_NO_STATES: 1}
    receiver = Tunnel(engine_class, reqid=7).receiver
    engine.add_sa(params(Direction.OUT, reqid=7))
    results = engine.release(NOW)
    assert [receiver.inbound(result.sealed[0].datagram, NOW).packet for result in results] == packets[1:]


def test_nobody_waits_for_long(engine_class):
    engine, _ = trap(engine_class)
    engine.outbound(udp(b"old"), NOW)
    engine.outbound(udp(b"new"), NOW + 5)
    # trying in vain does not make it younger
    assert engine.release(NOW + 6) == []
    engine.add_sa(params(Direction.OUT, reqid=7))
    old, new = engine.release(NOW + HELD_SECONDS + 1)
    assert old == Outbound(DropReason.OUT_NO_STATES)
    assert new.sealed
    assert engine.drops() == {DropReason.OUT_NO_STATES: 1}


def test_a_newer_one_pushes_out_what_waits_too_long(engine_class):
    engine, _ = trap(engine_class)
    engine.outbound(udp(), NOW)
    engine.outbound(udp(), NOW + HELD_SECONDS + 1)
    assert engine.held() == 1
    assert engine.drops() == {DropReason.OUT_NO_STATES: 1}


def test_all_together_are_bounded(engine_class):
    engine = engine_class(hold_packets=2)
    pairs = []
    for number in range(HELD_FRAMES):
        packet = udp(ports=(1000, number + 1))
        pairs.append(packet)
    engine.set_policies(
        [
            Policy(
                Action.PROTECT,
                (SelectorPair(ANY4.local, type(ANY4.remote)(ANY4.remote.start, ANY4.remote.end, 17, (n + 1, n + 1))),),
                reqid=n + 1,
            )
            for n in range(HELD_FRAMES)
        ]
    )
    for _ in range(2):
        assert {engine.outbound(packet, NOW) for packet in pairs} == {HELD}
    assert engine.held() == HELD_FRAMES
    assert engine.drops() == {DropReason.OUT_NO_STATES: HELD_FRAMES}


def test_octets_are_bounded(engine_class):
    engine, _ = trap(engine_class, hold=100)
    size = 60000
    for _ in range(20):
        engine.outbound(udp(bytes(size)), NOW)
    assert engine.held() == HELD_OCTETS // (size + 28)
    assert engine.drops() == {DropReason.OUT_NO_STATES: 20 - engine.held()}


def test_acquire_comes_again(engine_class):
    engine = engine_class(hold_packets=1)
    first, second = engine.set_policies(
        [Policy(Action.PROTECT, (ANY4,), reqid=7), Policy(Action.PROTECT, (ANY6,), reqid=9)]
    )
    asked = [Event(EventKind.ACQUIRE, first, 7)]
    for when, expected in (
        (0, asked),
        (ACQUIRE_SECONDS - 1, []),
        (ACQUIRE_SECONDS, asked),
        (2 * ACQUIRE_SECONDS - 1, []),
        (2 * ACQUIRE_SECONDS, asked),
    ):
        engine.outbound(udp(), NOW + when)
        assert engine.events() == expected
    engine.outbound(udp(version=6), NOW)
    assert engine.events() == [Event(EventKind.ACQUIRE, second, 9)]
    for policy in (first, second, 12345):
        engine.rearm(policy)
    engine.outbound(udp(), NOW + 21)
    assert engine.events() == asked


def test_both_engines_have_the_same_limits():
    numbers = {}
    for name in ("held", "outbound"):
        for line in (FAST / f"{name}.pxd").read_text().splitlines():
            key, equals, value = line.strip().partition(" = ")
            if equals and key.isupper():
                numbers[key] = value.split("#")[0].strip()
    assert numbers["HELD_FRAMES"] == str(HELD_FRAMES)
    assert numbers["HELD_OCTETS"] == f"1 << {HELD_OCTETS.bit_length() - 1}"
    assert numbers["HELD_SECONDS"] == str(HELD_SECONDS)
    assert numbers["ACQUIRE_SECONDS"] == str(ACQUIRE_SECONDS)
