"""What a pump keeps of ESP packets that come before their SA: trains, batches, raw ESP, threads that race with it."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

import pytest

from ipsec.crypto.suites import all_esp_suites
from ipsec.esp.drops import DropReason
from ipsec.esp.engine import EARLY_PACKETS, EventKind
from ipsec.esp.fast import Engine
from ipsec.esp.sa import Action, Mode, Policy
from ipsec.net.udp import open_raw_esp
from tests.fast.frames import tcp_packet, udp_packet
from tests.fast.pumps import (
    EVERYTHING,
    MORE,
    NO_VNET,
    Gateway,
    Net,
    Tap,
    Threads,
    by_flow,
    cut,
    drops,
    in_params,
    out_params,
    readable,
    tap,
    udp_net,
    without_id,
)
from tests.fast.test_pump import superframe

SPI = 0x1000


def later(run: str) -> Callable[[Gateway], Any]:
    """The next thing that a pump does: whatever it is, it takes what was kept."""
    return lambda gateway: getattr(gateway.pump, run)()


def one_way(net: Net, **arguments: Any) -> Callable[[], int]:
    """The left gateway sends through an SA whose SPI the right one has told it; what adds the right one's."""
    address = ip_address(arguments["addresses"][0])
    fields = {"local": address, "remote": address}
    here, there = arguments["encap"]
    net.left.engine.add_sa(out_params(encap=(here, there), **fields))
    net.left.engine.add_policy(Policy(Action.PROTECT, EVERYTHING, reqid=SPI))
    net.right.engine.expect_spi(SPI)
    return lambda: net.right.engine.add_sa(in_params(encap=(there, here), **fields))


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("offload", [True, False])
@pytest.mark.parametrize("run", ["run_tun", "run_sockets"])
def test_trains_wait_for_their_sa(version: int, offload: bool, run: str) -> None:
    """Nothing is lost, nothing is out of order, and what is joined is joined as ever."""
    with udp_net(version, gso=offload, gro=offload) as (net, arguments):
        add = one_way(net, **arguments)
        frames = [superframe("tcp", version, 1300 * 40, 1300), (NO_VNET, udp_packet(version, 77))]
        for header, frame in frames:
            net.left.tun.send(frame, header)
        net.run()
        assert net.right.engine.early() == 41
        assert net.right.packets() == []
        add()
        header, frame = superframe("udp", version, 3000, 1000, sport=7)
        net.left.tun.send(frame, header)
        net.left.pump.run_tun()
        later(run)(net.right)
        net.run()
        got = [piece for header, frame in net.right.tun.frames() for piece in cut(header, frame)]
        want = [piece for one in [*frames, (header, frame)] for piece in cut(*one)]
        assert by_flow(got) == by_flow(want)
        assert list(map(without_id, got)) == list(map(without_id, want))
        assert net.right.engine.early() == 0
        for side in net.sides:
            assert drops(side) == {}
            side.check()


@pytest.mark.e2e
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.usefixtures("own_network")
def test_raw_esp_waits_too(version: int, mode: Mode) -> None:
    address = ip_address("127.0.0.1" if version == 4 else "::1")
    fields = {"local": address, "remote": address, "encap": None, "mode": mode}
    sock = open_raw_esp(address)[0]
    side = Gateway([{"raw4_fd" if version == 4 else "raw6_fd": sock.fileno()}], connected=False)
    try:
        side.engine.expect_spi(SPI)
        side.engine.add_sa(out_params(**fields))
        side.engine.add_policy(Policy(Action.PROTECT, EVERYTHING, reqid=SPI))
        packet = udp_packet(version, 77, ip={"src": str(address), "dst": str(address)})
        side.tun.send(packet, NO_VNET)
        side.pump.run_tun()
        assert readable(sock.fileno(), 2)
        side.pump.run_sockets()
        assert side.engine.early() == 1
        side.check()
        side.engine.add_sa(in_params(**fields))
        side.pump.run_tun()
        skip = 0 if mode is Mode.TUNNEL else (20 if version == 4 else 40)
        (got,) = side.packets()
        assert got[skip:] == packet[skip:]
        side.check()
    finally:
        side.close()
        sock.close()


def sealed(packets: list[bytes], **fields: Any) -> list[bytes]:
    engine = Engine()
    out = engine.add_sa(out_params(**fields))
    return [engine.encapsulate(out, packet, 1.0).datagram for packet in packets]


@pytest.mark.parametrize("suite", all_esp_suites(), ids=str)
@pytest.mark.parametrize("esn", [False, True])
def test_every_suite(suite: Any, esn: bool) -> None:
    """Also those that open many at once."""
    packets = [udp_packet(4, 50 + size) for size in range(EARLY_PACKETS)]
    with tap() as t:
        t.engine.expect_spi(SPI)
        t.put(sealed(packets, suite=suite, esn=esn))
        assert t.engine.early() == EARLY_PACKETS
        t.engine.add_sa(in_params(suite=suite, esn=esn))
        t.receive()
        assert t.gateway.packets() == packets
        assert drops(t.gateway) == {}
        t.gateway.check()


def test_packets_of_many_sas_and_what_is_none() -> None:
    packets = [tcp_packet(4, 200, sport=n + 1) for n in range(8)]
    with tap() as t:
        datagrams = [sealed([packet, packet], spi=SPI + n) for n, packet in enumerate(packets)]
        for n in range(8):
            t.engine.expect_spi(SPI + n)
        t.put([datagram for pair in datagrams for datagram in pair])
        t.put([spi.to_bytes(4, "big") + bytes(100) for spi in (256, SPI - 1, SPI + 8, 0x12345678)])
        assert t.engine.early() == 16
        assert drops(t.gateway) == {DropReason.IN_NO_STATES: 4}
        for n in (0, 2, 4, 6):
            t.engine.add_sa(in_params(SPI + n))
        t.engine.forget_spi(SPI + 1)
        t.put([datagrams[0][0]])  # a repetition
        assert sorted(t.gateway.packets()) == sorted(2 * packets[0:8:2])
        assert drops(t.gateway) == {DropReason.IN_NO_STATES: 6, DropReason.IN_STATE_SEQ_ERROR: 1}
        assert t.engine.early() == 6
        t.gateway.check()


def test_what_nobody_takes_any_more_is_counted() -> None:
    with tap() as t:
        t.engine.expect_spi(SPI)
        t.put(sealed([udp_packet(4, 9)] * 3))
        t.gateway.pump.discard()
        assert (t.engine.early(), drops(t.gateway)) == (3, {})
        t.gateway.pump.discard(held=True)
        assert (t.engine.early(), drops(t.gateway)) == (0, {DropReason.IN_NO_STATES: 3})
        t.gateway.check()
        # and an engine that goes with some of them gives them back
        t.put(sealed([udp_packet(4, 9)] * 3))
        assert t.engine.early() == 3


def test_a_peer_that_has_moved_meanwhile_is_followed() -> None:
    with udp_net() as (net, arguments):
        add = one_way(net, **arguments)
        address, ports = arguments["addresses"][0], arguments["encap"]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            peer.sendto(sealed([udp_packet(4, 9)])[0], (address, ports[1]))
            net.right.pump.run_sockets()
            assert net.right.engine.early() == 1
            sa = add()
            net.right.pump.run_tun()
            (event,) = net.right.engine.events()
            source = (ip_address(address), peer.getsockname()[1])
            assert (event.kind, event.sa, event.source) == (EventKind.MAPPING, sa, source)
        net.right.check()


def delivered(t: Tap, count: int) -> None:
    """So many packets come out, or will have in a moment."""
    deadline = time.monotonic() + 5
    got = t.gateway.packets()
    while len(got) < count:
        assert time.monotonic() < deadline, (t.engine.early(), t.engine.drops())
        time.sleep(0.0002)
        got += t.gateway.packets()
    assert len(got) == count


@pytest.mark.parametrize("workers", [1, 2])
def test_none_is_lost_by_threads(workers: int) -> None:
    """The SA comes while packets do: each is opened once, and none stays behind once the SA is there."""
    each = 6
    with tap(workers) as t, Threads(t.gateway):
        for spi in range(SPI, SPI + 300):
            datagrams = sealed([udp_packet(4, 30, sport=n + 1) for n in range(each * workers)], spi=spi)
            t.engine.expect_spi(spi)
            for n, datagram in enumerate(datagrams):
                t.outside[n % workers].send(datagram)
                if n == spi % each:
                    sa = t.engine.add_sa(in_params(spi=spi))
                    if t.engine.early():
                        for pump in t.gateway.pumps:
                            pump.wake()
            delivered(t, len(datagrams))
            t.engine.del_sa(sa)
    assert t.engine.early() == 0
    assert t.engine.drops() == {}
    t.gateway.check()


def test_none_is_lost_while_the_table_of_sas_is_replaced() -> None:
    """A worker in the middle of a batch may look into the table before, which does not get the SA. The batch is long,
    and as many SAs come and go as make the one that counts the one for which the table is replaced."""
    other, long = SPI + 1, udp_packet(4, 60000)
    lengthy = Engine()
    out = lengthy.add_sa(out_params(spi=other))
    with tap() as t, Threads(t.gateway):
        t.engine.add_sa(in_params(spi=other))
        for number in range(300):
            for spi in range(0x2000, 0x2000 + (30 if number else 31)):
                t.engine.del_sa(t.engine.add_sa(in_params(spi=spi + 100 * number)))
            t.engine.expect_spi(SPI)
            (datagram,) = sealed([udp_packet(4, 30)])
            for batch in [lengthy.encapsulate(out, long, 1.0).datagram for _ in range(6)]:
                t.outside[0].send(batch)
            t.outside[0].send(datagram)
            sa = t.engine.add_sa(in_params())
            if t.engine.early():
                t.gateway.pump.wake()
            delivered(t, 7)
            t.engine.del_sa(sa)
    assert t.engine.drops() == {}


def test_a_flood_of_other_spis_is_a_flood_and_no_more() -> None:
    with tap() as t:
        for spi in range(SPI, SPI + 40):
            t.engine.expect_spi(spi)
        flood = [(0x20000000 + 7 * n).to_bytes(4, "big") + bytes(60) for n in range(2000)]
        t.put(flood)
        assert t.engine.early() == 0
        assert drops(t.gateway) == {DropReason.IN_NO_STATES: 2000}
        # and one of the SPIs, which somebody has seen
        t.put([SPI.to_bytes(4, "big") + bytes(60)] * 2000)
        assert t.engine.early() == EARLY_PACKETS
        t.engine.add_sa(in_params())
        while t.gateway.pump.run_sockets() & MORE:
            pass
        assert drops(t.gateway)[DropReason.IN_NO_STATES] == 4000 - EARLY_PACKETS
        t.gateway.check()
