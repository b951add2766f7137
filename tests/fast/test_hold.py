"""Frames that a pump keeps for an SA to come: superframes, open checksums, threads that race with the control plane."""

from __future__ import annotations

import struct
import time

import pytest

from ipsec.esp.drops import DropReason
from ipsec.esp.engine import HELD_FRAMES
from ipsec.esp.sa import Action, Policy
from tests.fast.frames import ip_header_length, tcp_packet, udp_packet, with_partial_checksum
from tests.fast.pumps import (
    EVERYTHING,
    NO_VNET,
    Threads,
    cut,
    drops,
    in_params,
    memory_net,
    out_params,
    pair,
    tap,
    without_id,
)
from tests.fast.test_pump import superframe


def test_frames_wait_as_they_are() -> None:
    """What is sent later is what would have been sent: segments, checksums, order."""
    packet = udp_packet(4, 300)
    frames = [
        (NO_VNET, tcp_packet(4, 200)),
        superframe("tcp", 4, 20000, 1200),
        partial(packet),
        superframe("udp", 4, 9000, 1000),
    ]
    with memory_net(engine={"hold_packets": 4}) as n:
        n.left.engine.add_policy(Policy(Action.PROTECT, EVERYTHING, reqid=0x1000))
        n.right.engine.add_sa(in_params())
        for header, frame in frames:
            n.left.tun.send(frame, header)
        n.left.pump.run_tun()
        assert n.left.engine.held() == 4
        assert drops(n.left) == {}
        n.left.pump.run_tun()
        n.left.engine.add_sa(out_params())
        n.left.pump.run_tun()
        n.right.pump.run_sockets()
        got = [without_id(piece) for header, frame in n.right.tun.frames() for piece in cut(header, frame)]
        want = [without_id(piece) for header, frame in frames for piece in cut(header, frame)]
        assert got == want
        assert n.left.engine.held() == 0
        assert n.left.counters()["tun_rx_packets"] == len(want)


def test_what_no_sa_will_come_for_is_counted() -> None:
    """Also each packet of a superframe; and not before it is certain."""
    with tap(engine={"hold_packets": 4}) as t:
        t.engine.add_policy(Policy(Action.PROTECT, EVERYTHING, reqid=0x1000))
        for header, frame in ((NO_VNET, tcp_packet(4, 200)), superframe("tcp", 4, 20000, 1200)):
            t.gateway.tun.send(frame, header)
        t.gateway.pump.run_tun()
        t.gateway.pump.discard()
        assert (t.engine.held(), drops(t.gateway)) == (2, {})
        t.gateway.pump.discard(held=True)
        assert t.engine.held() == 0
        assert drops(t.gateway) == {DropReason.OUT_NO_STATES: 18}
        t.gateway.check()


def test_none_makes_room_before_its_turn() -> None:
    """Other policies decide: the oldest of those that were tried goes, and of the others none."""
    with memory_net(engine={"hold_packets": 2}) as n:
        engine, pump = n.left.engine, n.left.pump
        narrow = engine.add_policy(Policy(Action.PROTECT, (pair("0.0.0.0/0", "10.9.0.0/16"),), reqid=5))
        engine.add_policy(Policy(Action.PROTECT, EVERYTHING, reqid=0x1000))
        n.right.engine.add_sa(in_params())
        frames = [udp_packet(4, 30, ip={"dst": "10.9.0.1"}), udp_packet(4, 31), udp_packet(4, 32)]
        for frame in frames:
            n.left.tun.send(frame, NO_VNET)
        pump.run_tun()
        engine.del_policy(narrow)
        pump.run_tun()
        assert engine.held() == 2
        assert drops(n.left) == {DropReason.OUT_NO_STATES: 1}
        engine.add_sa(out_params())
        pump.run_tun()
        n.right.pump.run_sockets()
        assert n.right.packets() == frames[1:]
        n.left.check()


def partial(packet: bytes) -> tuple[bytes, bytes]:
    """A packet whose checksum the kernel left to us."""
    return struct.pack("=BBHHHH", 1, 0, 0, 0, ip_header_length(packet), 6), with_partial_checksum(packet)


def test_all_frames_of_a_worker_are_bounded() -> None:
    with tap(engine={"hold_packets": 100000}) as t:
        t.engine.add_policy(Policy(Action.PROTECT, EVERYTHING, reqid=0x1000))
        for _ in range(HELD_FRAMES + 50):
            t.gateway.tun.send(udp_packet(4))
            t.gateway.pump.run_tun()
        assert t.engine.held() == HELD_FRAMES
        assert drops(t.gateway) == {DropReason.OUT_NO_STATES: 50}
        t.engine.add_sa(out_params())
        t.gateway.pump.run_tun()
        assert len(t.sent()) == HELD_FRAMES
        t.gateway.check()


@pytest.mark.parametrize("workers", [1, 2])
def test_none_is_forgotten_by_threads(workers: int) -> None:
    """An SA comes while packets do: each is sent or counted, and none stays behind once the SA is there."""
    with tap(workers, engine={"hold_packets": 1000}) as t:
        t.engine.add_policy(Policy(Action.PROTECT, EVERYTHING, reqid=0x1000))
        with Threads(t.gateway):
            for spi in range(0x1000, 0x1100):
                sent = 0
                for number in range(5):
                    for tun in t.gateway.tuns:
                        tun.send(udp_packet(4))
                        sent += 1
                    if number == 2:
                        sa = t.engine.add_sa(out_params(spi=spi, reqid=0x1000))
                        if t.engine.held():
                            for pump in t.gateway.pumps:
                                pump.wake()
                deadline = time.monotonic() + 5
                while t.engine.query_sa(sa).packets < sent:
                    assert time.monotonic() < deadline, (t.engine.held(), t.engine.drops())
                    time.sleep(0.0002)
                t.engine.del_sa(sa)
                t.sent()
        assert t.engine.held() == 0
