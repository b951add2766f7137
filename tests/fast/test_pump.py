"""The pump doing its normal work: whatever goes in at one gateway comes out of the other, octet for octet, counted."""

from __future__ import annotations

import itertools
import random
import socket
import struct
from ipaddress import ip_address
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6

from ipsec.crypto.suites import all_esp_suites
from ipsec.esp.drops import DropReason
from ipsec.esp.engine import EventKind
from ipsec.esp.fast import Engine
from ipsec.esp.sa import Action, DfPolicy, DscpPolicy, Mode, Policy
from ipsec.net.memory import receive_all, socket_pair
from ipsec.net.udp import open_raw_esp
from tests.fast.frames import payload, superframe_vnet, tcp_packet, udp_packet, with_partial_checksum
from tests.fast.pumps import (
    EVERYTHING,
    MORE,
    NO_VNET,
    OUTER,
    Net,
    by_flow,
    cut,
    drops,
    in_params,
    memory_net,
    out_params,
    pair,
    readable,
    tap,
    udp_net,
    without_id,
)
from tests.fast.pumps import Gateway as Side

VERSIONS = pytest.mark.parametrize("version", [4, 6])


def superframe(kind: str, version: int, size: int, unit: int, **fields: Any) -> tuple[bytes, bytes]:
    """(virtio_net_hdr, frame) as a kernel gives them."""
    make = tcp_packet if kind == "tcp" else udp_packet
    packet = make(version, size, **fields)
    return superframe_vnet(packet, unit).emit(), with_partial_checksum(packet)


def transfer(net: Net, frames: list[tuple[bytes, bytes]], *, source: Side | None = None) -> list[tuple[bytes, bytes]]:
    """Send frames from one side and give what the other side's TUN device got."""
    source = source or net.left
    target = net.right if source is net.left else net.left
    got: list[tuple[bytes, bytes]] = []
    for header, frame in frames:
        if not source.tun.send(frame, header):
            net.run()
            assert source.tun.send(frame, header)
        net.run()
        got += target.tun.frames()
    net.run()
    return got + target.tun.frames()


def assert_same(sent: list[tuple[bytes, bytes]], got: list[tuple[bytes, bytes]]) -> None:
    """Flow by flow, packet by packet, octet by octet."""
    want = by_flow(packet for frame in sent for packet in cut(*frame))
    have = by_flow(packet for frame in got for packet in cut(*frame))
    assert have.keys() == want.keys()
    for flow, packets in want.items():
        assert have[flow] == packets


def check(net: Net) -> None:
    for side in net.sides:
        side.check()


@VERSIONS
@pytest.mark.parametrize("outer", [4, 6])
@pytest.mark.parametrize("vnet_hdr", [True, False])
def test_single_packets(version: int, outer: int, vnet_hdr: bool) -> None:
    with memory_net(vnet_hdr=vnet_hdr) as net:
        net.tunnel(outer=outer)
        header = NO_VNET if vnet_hdr else b""
        sizes = [0, 1, 15, 16, 17, 700, 1300]
        frames = [(header, tcp_packet(version, n, seq=n)) for n in sizes]
        frames += [(header, udp_packet(version, n, sport=n + 1)) for n in sizes]
        assert_same(frames, transfer(net, frames))
        assert_same(frames, transfer(net, frames, source=net.right))
        check(net)
        assert not drops(net.left)
        assert not drops(net.right)


@VERSIONS
@pytest.mark.parametrize("kind", ["tcp", "udp"])
@pytest.mark.parametrize(
    ("size", "unit"), [(60000, 1300), (65000, 1360), (2600, 1300), (1301, 1300), (900, 1300), (6000, 61)]
)
def test_superframes(version: int, kind: str, size: int, unit: int) -> None:
    with memory_net() as net:
        net.tunnel()
        frames = [superframe(kind, version, size, unit)]
        got = transfer(net, frames)
        assert_same(frames, got)
        segments = -(-size // unit)
        assert len(got) == -(-segments // 64)  # joined again
        assert net.left.counters()["tun_rx_packets"] == segments
        check(net)


@VERSIONS
@pytest.mark.parametrize("kind", ["tcp", "udp"])
@pytest.mark.parametrize("gro", [True, False])
@pytest.mark.parametrize("gso", [True, False])
def test_trains_on_real_sockets(version: int, kind: str, gso: bool, gro: bool) -> None:
    with udp_net(version, gso=gso, gro=gro) as (net, arguments):
        net.tunnel(**arguments)
        # the last segment is as long as the others, then shorter
        frames = [superframe(kind, version, n, 1300, sport=n) for n in (1300 * 40, 1300 * 45 + 7, 1300, 50)]
        assert_same(frames, transfer(net, frames))
        check(net)
        sent = net.left.counters()
        assert not drops(net.left)
        assert not drops(net.right)
        if gso:
            assert sent["net_tx_messages"] <= 5
            assert sent["net_tx_datagrams"] == 88
        if gso and gro:
            assert net.right.counters()["net_rx_messages"] < 44


@VERSIONS
@pytest.mark.parametrize(
    ("size", "unit", "trains"), [(12800, 100, 2), (12801, 100, 3), (59800, 1300, 1), (63000, 1300, 2)]
)
def test_a_train_is_what_every_kernel_takes(version: int, size: int, unit: int, trains: int) -> None:
    """64 datagrams (UDP_MAX_SEGMENTS before Linux 6.9), and one UDP message of IPv4 together: 65507 octets."""
    with udp_net(version) as (net, arguments):
        net.tunnel(**arguments)
        frames = [superframe("tcp", version, size, unit)]
        assert_same(frames, transfer(net, frames))
        assert net.left.counters()["net_tx_messages"] == trains
        assert not drops(net.left)
        check(net)


@VERSIONS
@pytest.mark.parametrize("gso", [True, False])
def test_lengths_in_any_order(version: int, gso: bool) -> None:
    """The kernel cuts a train by the length of its first datagram: only the last one may be shorter, none longer."""
    sizes = [size for three in itertools.product((100, 500, 1000), repeat=3) for size in three]
    with udp_net(version, gso=gso) as (net, arguments):
        net.tunnel(**arguments)
        sent = [(NO_VNET, udp_packet(version, size, sport=n + 1)) for n, size in enumerate(sizes)]
        for header, frame in sent:
            assert net.left.tun.send(frame, header)
        net.run()
        assert_same(sent, net.right.tun.frames())
        assert not drops(net.right)
        check(net)


def test_flows_interleaved_keep_their_order() -> None:
    rng = random.Random(1)
    with memory_net() as net:
        net.tunnel()
        sequence: dict[int, int] = {}
        sent = []
        for _ in range(600):
            version = rng.choice((4, 6))
            port = rng.randrange(20)
            size = rng.choice((0, 40, 500, 500, 1000))
            flags = rng.choice(("A", "A", "A", "PA", "FA"))
            at = sequence.setdefault(port * 10 + version, rng.randrange(1 << 32))
            sequence[port * 10 + version] = (at + size) & 0xFFFFFFFF
            sent.append((NO_VNET, tcp_packet(version, size, sport=1000 + port, seq=at, flags=flags)))
        for header, frame in sent:
            assert net.left.tun.send(frame, header)
        net.run()
        got = net.right.tun.frames()
        assert_same(sent, got)
        assert len(got) < len(sent)
        check(net)


@pytest.mark.parametrize("gso", [True, False])
def test_a_train_is_for_one_peer(gso: bool) -> None:
    """Datagrams of one length for two peers in turn, all of the same batch."""
    peers = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
    try:
        with udp_net(gso=gso) as (net, arguments):
            for n, peer in enumerate(peers):
                peer.bind(("127.0.0.1", 0))
                peer.setblocking(False)
                encap = arguments["encap"][0], peer.getsockname()[1]
                there = (pair("0.0.0.0/0", f"10.{n}.0.0/16"),)
                net.tunnel(0x1000 + 2 * n, policy=there, **{**arguments, "encap": encap})
            for n in range(40):
                assert net.left.tun.send(udp_packet(4, 300, ip={"dst": f"10.{n // 3 % 2}.0.1"}), NO_VNET)
            net.run()
            for n, peer in enumerate(peers):
                got = [peer.recv(2000) for _ in range((21, 19)[n])]
                assert {int.from_bytes(datagram[:4], "big") for datagram in got} == {0x1000 + 2 * n}
                with pytest.raises(BlockingIOError):
                    peer.recv(2000)
    finally:
        for peer in peers:
            peer.close()


def test_a_train_has_one_tos() -> None:
    """RFC 2983, RFC 6040: each datagram carries DSCP and ECN of its own packet, though one call sends them all."""
    marks = [tos for tos in (0x00, 0xB8, 0x02, 0xB9) for _ in range(5)]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer, udp_net() as (net, arguments):
        peer.bind(("127.0.0.1", 0))
        peer.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
        peer.settimeout(5)
        encap = arguments["encap"][0], peer.getsockname()[1]
        net.tunnel(**{**arguments, "encap": encap}, copy_dscp=DscpPolicy.OUT, copy_ecn=True)
        for tos in marks:
            assert net.left.tun.send(udp_packet(4, 300, ip={"tos": tos}), NO_VNET)
        net.run()
        got = [peer.recvmsg(2000, 64)[1] for _ in marks]
        assert [data[0] for ((_, _, data),) in got] == marks


def test_peers_and_suites_mixed_in_one_batch() -> None:
    """Trains of one SA must not swallow the datagrams of another."""
    with udp_net() as (net, arguments):
        for i, suite in enumerate(all_esp_suites()):
            if i < 24:
                selectors = (pair("0.0.0.0/0", f"10.{i}.0.0/16"), pair(f"10.{i}.0.0/16", "0.0.0.0/0"))
                net.tunnel(0x1000 + 2 * i, suite=suite, policy=(selectors[0],), **arguments)
        sent = []
        for n in range(240):
            destination = {"dst": f"10.{n * 7 % 24}.0.1"}
            if n % 5 == 0:
                sent.append(superframe("udp", 4, 5000, 1200, ip=destination, sport=n))
            else:
                sent.append((NO_VNET, udp_packet(4, 1200, ip=destination, sport=n)))
        for header, frame in sent:
            assert net.left.tun.send(frame, header)
        net.run()
        assert_same(sent, net.right.tun.frames())
        check(net)
        assert not drops(net.right)


@pytest.mark.parametrize("suite", all_esp_suites(), ids=str)
def test_every_suite(suite: Any) -> None:
    with memory_net() as net:
        net.tunnel(suite=suite, esn=True, initial={"initial_seq": 0xFFFFFFF0})
        frames = [superframe("tcp", 4, 30000, 1300), (NO_VNET, udp_packet(6, 800))]
        assert_same(frames, transfer(net, frames))
        check(net)


@pytest.mark.parametrize("tfc", [700, 1400, -1])
def test_tfc_padding_is_cut_off(tfc: int) -> None:
    with memory_net() as net:
        net.tunnel(tfc=tfc)
        frames = [(NO_VNET, udp_packet(4, n)) for n in (0, 100, 1200)] + [superframe("tcp", 6, 9000, 1000)]
        assert_same(frames, transfer(net, frames))
        octets, count = (net.left.counters()[f"net_tx_{name}"] for name in ("bytes", "datagrams"))
        if tfc == -1:
            assert octets % count == 0  # all of one length: nothing to see
        check(net)


def test_dummy_packets_are_swallowed() -> None:
    with tap() as t:
        sender_engine, receiver = Side([{"udp4_fd": -1}]), t.gateway
        out = sender_engine.engine.add_sa(out_params())
        t.engine.add_sa(in_params())
        t.put([sender_engine.engine.dummy(out, n, 1.0).datagram for n in (0, 1, 100, 1400)])
        assert receiver.tun.frames() == []
        assert drops(receiver) == {DropReason.IN_DUMMY: 4}
        receiver.check()
        sender_engine.close()


@VERSIONS
def test_transport_mode(version: int) -> None:
    addresses = dict(zip(("src", "dst"), OUTER[version], strict=True))
    with memory_net() as net:
        net.tunnel(outer=version, mode=Mode.TRANSPORT, encap=None)
        # the raw sockets of a pump in memory: what is not UDP goes to raw4_fd or raw6_fd
        sent = [
            superframe("tcp", version, 20000, 1300, ip=addresses),
            (NO_VNET, udp_packet(version, 333, ip=addresses)),
        ]
        for header, frame in sent:
            assert net.left.tun.send(frame, header)
        net.run()
        # no raw socket was given: all of it is dropped, and counted
        assert drops(net.left) == {DropReason.OUT_SEND_ERROR: 17}
        check(net)


@VERSIONS
def test_transport_mode_in_udp(version: int) -> None:
    """What transport mode keeps is the payload: the outer header is made anew at the receiver."""
    addresses = dict(zip(("src", "dst"), OUTER[version], strict=True))
    with memory_net() as net:
        net.tunnel(outer=version, mode=Mode.TRANSPORT)
        sent = [
            superframe("tcp", version, 20000, 1300, ip=addresses),
            superframe("udp", version, 4000, 1000, ip=addresses),
        ]
        got = transfer(net, sent)
        skip = 20 if version == 4 else 40
        want = [packet[skip:] for frame in sent for packet in cut(*frame)]
        assert [packet[skip:] for frame in got for packet in cut(*frame)] == want
        check(net)


def test_long_segments_in_transport_mode_are_not_damaged() -> None:
    """Sealed whole and fragmented outside: the trailer of one segment must not stay in the next one's payload."""
    addresses = dict(zip(("src", "dst"), OUTER[4], strict=True))
    with memory_net() as net:
        net.tunnel(mode=Mode.TRANSPORT, path_mtu=1000, df=DfPolicy.COPY)
        sent = [superframe("udp", 4, 1400 * 5 + 33, 1400, ip={**addresses, "flags": 0})]
        got = transfer(net, sent)
        want = [packet[20:] for frame in sent for packet in cut(*frame)]
        assert [packet[20:] for frame in got for packet in cut(*frame)] == want
        check(net)


@pytest.mark.e2e
@VERSIONS
@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.usefixtures("own_network")
def test_raw_esp(version: int, mode: Mode) -> None:
    address = "127.0.0.1" if version == 4 else "::1"
    sock = open_raw_esp(ip_address(address))[0]
    name = "raw4_fd" if version == 4 else "raw6_fd"
    side = Side([{name: sock.fileno()}], connected=False)
    try:
        side.engine.add_sa(out_params(local=ip_address(address), remote=ip_address(address), encap=None, mode=mode))
        side.engine.add_sa(in_params(local=ip_address(address), remote=ip_address(address), encap=None, mode=mode))
        side.engine.add_policy(Policy(Action.PROTECT, EVERYTHING, reqid=0x1000))
        ip = {"src": address, "dst": address}
        sent = [superframe("tcp", version, 9000, 1200, ip=ip), (NO_VNET, udp_packet(version, 77, ip=ip))]
        for header, frame in sent:
            side.tun.send(frame, header)
        side.pump.run_tun()
        assert readable(sock.fileno(), 2)
        while side.pump.run_sockets() & 1:
            pass
        got = [packet for frame in side.tun.frames() for packet in cut(*frame)]
        want = [packet for frame in sent for packet in cut(*frame)]
        skip = 0 if mode is Mode.TUNNEL else (20 if version == 4 else 40)
        assert [without_id(p)[skip:] for p in got] == [without_id(p)[skip:] for p in want]
        side.check()
    finally:
        side.close()
        sock.close()


def test_small_packets_leave_together_and_superframes_do_not_keep_the_worker() -> None:
    with udp_net() as (net, arguments):
        net.tunnel(**arguments)
        pump, tun = net.left.pump, net.left.tun
        for n in range(64):
            assert tun.send(udp_packet(4, 64, sport=n + 1), NO_VNET)
        assert pump.run_tun(64) & MORE
        assert pump.counters()["net_tx_calls"] == 1
        assert pump.counters()["net_tx_datagrams"] == 64
        assert pump.run_tun(64) == 0
        # each of these fills a train, which counts as four reads
        before = pump.counters()["tun_rx_frames"]
        for n in range(3):
            header, frame = superframe("tcp", 4, 60000, 1300, seq=60000 * n)
            assert tun.send(frame, header)
        assert pump.run_tun(8) & MORE
        assert pump.counters()["tun_rx_frames"] == before + 2
        net.run()
        check(net)


@VERSIONS
def test_keepalives_and_ike_reach_the_event_loop(version: int) -> None:
    with udp_net(version) as (net, arguments):
        net.tunnel(**arguments)
        address, ports = arguments["addresses"][0], arguments["encap"]
        with socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6, socket.SOCK_DGRAM) as peer:
            peer.bind((address, 0))
            ike = [b"\0\0\0\0" + payload(n, n) for n in (0, 1, 300, 9000)]
            for datagram in [b"\xff", *ike, b"\xff"]:
                peer.sendto(datagram, (address, ports[1]))
            net.run()
            assert readable(net.right.pump.event_fd)
            got = net.right.pump.datagrams()
            assert [data for data, *_ in got] == ike
            assert {source for _, source, _, _ in got} == {peer.getsockname()[:2]}
            assert net.right.pump.datagrams() == []
        counters = net.right.counters()
        assert counters["keepalives"] == 2
        assert counters["control_datagrams"] == 4
        check(net)


@VERSIONS
def test_a_peer_that_moves_is_followed_once_its_packets_are_good(version: int) -> None:
    with udp_net(version) as (net, arguments):
        net.tunnel(**arguments)
        engine = Engine()
        out = engine.add_sa(out_params(0x1000))
        address, ports = arguments["addresses"][0], arguments["encap"]
        good = [engine.encapsulate(out, udp_packet(version, 9), 1.0).datagram for _ in range(3)]
        with socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6, socket.SOCK_DGRAM) as peer:
            peer.sendto(good[0][:-1] + b"\0", (address, ports[1]))
            net.run()
            assert net.right.engine.events() == []
            peer.sendto(good[1], (address, ports[1]))
            net.run()
            (event,) = net.right.engine.events()
            assert event.kind is EventKind.MAPPING
            assert event.source == (ip_address(address), peer.getsockname()[1])
            # a replay, or an older packet, from elsewhere moves nothing
            with socket.socket(peer.family, socket.SOCK_DGRAM) as other:
                other.sendto(good[1], (address, ports[1]))
                other.sendto(good[0], (address, ports[1]))
            net.run()
            assert net.right.engine.events() == []
            assert len(net.right.packets()) == 2
        net.right.check()


def test_a_move_that_is_told_too_late_is_none() -> None:
    """Meanwhile the SA has been given addresses of the other family."""
    with udp_net() as (net, arguments):
        *_, into = net.tunnel(**arguments)
        engine = Engine()
        out = engine.add_sa(out_params(0x1001))
        address, ports = arguments["addresses"][0], arguments["encap"]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            peer.sendto(engine.encapsulate(out, udp_packet(4, 9), 1.0).datagram, (address, ports[0]))
            net.run()
        here, there = map(ip_address, OUTER[6])
        net.left.engine.update_sa(into, local=here, remote=there, encap=(4500, 4501), path_mtu=1500)
        assert net.left.engine.events() == []
        assert net.left.engine.query_sa(into).remote == there
        assert len(net.left.packets()) == 1


@VERSIONS
def test_the_local_address_is_told_on_wildcard_sockets(version: int) -> None:
    from ipsec.net.udp import open_udp

    wildcard, loopback = ("0.0.0.0", "127.0.0.3") if version == 4 else ("::", "::1")
    sock = open_udp(ip_address(wildcard), 0)[0]
    side = Side([{"udp4_fd" if version == 4 else "udp6_fd": sock.fileno()}], connected=False)
    try:
        with socket.socket(sock.family, socket.SOCK_DGRAM) as peer:
            peer.sendto(bytes(40), (loopback, sock.getsockname()[1]))
            port = peer.getsockname()[1]
        assert readable(sock.fileno(), 2)
        side.pump.run_sockets()
        ((data, source, local, fd),) = side.pump.datagrams()
        assert (data, local, fd) == (bytes(40), loopback, sock.fileno())
        assert source is not None
        assert source[1] == port
        side.check()
    finally:
        side.close()
        sock.close()


@pytest.mark.parametrize("size", [4, 20, 1200, 65000])
def test_a_full_inbox_loses_and_counts(size: int) -> None:
    with tap() as t:
        for round_ in range(5):
            sent = [b"\0\0\0\0" + bytes([n % 251]) * (size - 4) for n in range(400000 // (size + 48) + 2)]
            t.put(sent)
            got = [data for data, *_ in t.gateway.pump.datagrams()]
            assert 0 < len(got) < len(sent)
            assert got == sent[: len(got)]
            c = t.gateway.counters()
            assert c["control_datagrams"] + c["control_lost"] == len(sent) * (round_ + 1)
        t.gateway.check()


def test_the_inbox_ring_at_every_offset() -> None:
    rng = random.Random(2)
    with tap() as t:
        for _ in range(3000):
            sent = [
                b"\0\0\0\0" + rng.randbytes(rng.choice((0, 1, 7, 100, 1500, 30000))) for _ in range(rng.randrange(5))
            ]
            t.put(sent)
            assert [data for data, *_ in t.gateway.pump.datagrams()] == sent
        t.gateway.check()


def test_bypass_and_discard() -> None:
    inside, outside = socket_pair()
    with tap(bypass4_fd=inside.fileno()) as t:
        t.engine.add_policy(Policy(Action.BYPASS, (pair("0.0.0.0/0", "10.9.0.0/16"), pair("::/0", "fd09::/16"))))
        t.engine.add_policy(Policy(Action.DISCARD, (pair("0.0.0.0/0", "10.8.0.0/16"),)))
        tun = t.gateway.tun
        clear = [
            (NO_VNET, udp_packet(4, 500, ip={"dst": "10.9.0.1"})),
            superframe("tcp", 4, 6000, 1000, ip={"dst": "10.9.0.1"}),
        ]
        for header, frame in clear:
            tun.send(frame, header)
        tun.send(udp_packet(6, 100, ip={"dst": "fd09::1"}))  # no IPv6 socket to leave by
        header, frame = superframe("udp", 4, 6000, 1000, ip={"dst": "10.8.0.1"})
        tun.send(frame, header)
        tun.send(udp_packet(4, 100, ip={"dst": "10.7.0.1"}))
        t.gateway.pump.run_tun()
        want = [packet for frame in clear for packet in cut(*frame)]
        assert receive_all(outside) == want
        assert drops(t.gateway) == {
            DropReason.OUT_BYPASS_ERROR: 1, DropReason.OUT_POL_BLOCK: 6, DropReason.OUT_NO_POLS: 1,
        }  # fmt: skip
        assert t.sent() == []
        t.gateway.check()
    inside.close()
    outside.close()


def test_no_sa_asks_for_one_once() -> None:
    with tap() as t:
        policy = t.engine.add_policy(Policy(Action.PROTECT, EVERYTHING, reqid=0x1000))
        for _ in range(10):
            t.gateway.tun.send(udp_packet(4))
        t.gateway.pump.run_tun()
        assert readable(t.gateway.pump.event_fd)
        ((kind, which, reqid, _),) = t.engine.events()
        assert (kind, which, reqid) == (EventKind.ACQUIRE, policy, 0x1000)
        t.engine.add_sa(out_params())
        t.gateway.tun.send(udp_packet(4))
        t.gateway.pump.run_tun()
        assert len(t.sent()) == 1
        assert drops(t.gateway) == {DropReason.OUT_NO_STATES: 10}
        t.gateway.check()


@VERSIONS
def test_too_big_is_told_to_the_inside(version: int) -> None:
    engine = {"icmp_source4": ip_address("10.0.0.1").packed, "icmp_source6": ip_address("fd00::1").packed}
    with tap(engine=engine) as t:
        t.engine.add_sa(out_params(path_mtu=1400))
        t.engine.add_policy(Policy(Action.PROTECT, EVERYTHING, reqid=0x1000))
        packet = udp_packet(version, 1400)
        t.gateway.tun.send(packet)
        header, frame = superframe("tcp", version, 14000, 1400)
        t.gateway.tun.send(frame, header)
        t.gateway.pump.run_tun()
        replies = t.gateway.tun.receive()
        assert len(replies) == 2
        if version == 4:
            told = IP(replies[0])
            assert (told[ICMP].type, told[ICMP].code, told.src) == (3, 4, "10.0.0.1")
            mtu = told[ICMP].nexthopmtu
        else:
            told = IPv6(replies[0])
            assert told.src == "fd00::1"
            mtu = told[ICMPv6PacketTooBig].mtu
        assert drops(t.gateway) == {DropReason.OUT_TOO_BIG: 11}
        assert t.gateway.counters()["icmp_tx_packets"] == 2
        overhead = 28 if version == 4 else 48
        t.gateway.tun.send(udp_packet(version, mtu - overhead))
        t.gateway.tun.send(udp_packet(version, mtu - overhead + 1))
        t.gateway.pump.run_tun()
        (sealed,) = t.sent()
        assert 1400 - 28 - 4 < len(sealed) <= 1400 - 28
        t.gateway.check()


def test_fragments_are_made_and_carried() -> None:
    with memory_net() as net:
        net.tunnel(path_mtu=1000)
        big = udp_packet(4, 5000, ip={"flags": 0, "id": 77})
        header, train = superframe("udp", 4, 1400 * 4, 1400, ip={"flags": 0})
        net.left.tun.send(big)
        net.left.tun.send(train, header)
        net.run()
        pieces = net.right.packets()
        whole = b"".join(p[20:] for p in pieces if p[4:6] == b"\0\x4d")
        assert whole == big[20:]
        assert net.left.engine.fragments_made() == len(pieces) - 5
        assert sum(len(p) - 20 for p in pieces) == 5008 + 4 * 1408
        check(net)


def test_a_limit_in_the_middle_of_a_train_counts_what_was_sent() -> None:
    with tap() as t:
        sa = t.engine.add_sa(out_params(initial_seq=0xFFFFFFFF - 4))
        t.engine.add_policy(Policy(Action.PROTECT, EVERYTHING, reqid=0x1000))
        header, frame = superframe("udp", 4, 10000, 1000)
        t.gateway.tun.send(frame, header)
        t.gateway.pump.run_tun()
        assert [struct.unpack_from("!I", d, 4)[0] for d in t.sent()] == [0xFFFFFFFC, 0xFFFFFFFD, 0xFFFFFFFE, 0xFFFFFFFF]
        stats = t.engine.query_sa(sa)
        assert stats.packets == 4
        assert stats.bytes == 4 * 1028
        assert drops(t.gateway) == {DropReason.OUT_STATE_SEQ_ERROR: 6}
        t.gateway.check()


def test_offloads_can_be_switched_while_running() -> None:
    with udp_net() as (net, arguments):
        net.tunnel(**arguments)
        frames = [superframe("tcp", 4, 13000, 1300)]
        net.left.pump.set_offload("udp_gso", False)
        net.right.pump.set_offload("coalesce_tcp", False)
        assert not net.left.pump.offloads()["udp_gso"]
        got = transfer(net, frames)
        assert_same(frames, got)
        assert len(got) == 10
        assert net.left.counters()["net_tx_messages"] == 10
        net.left.pump.set_offload("udp_gso", True)
        net.right.pump.set_offload("coalesce_tcp", True)
        got = transfer(net, frames)
        assert_same(frames, got)
        assert len(got) == 1
        assert net.left.counters()["net_tx_messages"] == 11
        with pytest.raises(ValueError, match="none of udp_gso"):
            net.left.pump.set_offload("magic", True)
        check(net)


def test_nothing_waiting_costs_nothing() -> None:
    """An idle pump makes one receive a call, and says that there is no more."""
    with tap() as t:
        assert t.gateway.pump.run_tun() == 0
        assert t.gateway.pump.run_sockets() == 0
        assert t.gateway.counters()["net_rx_calls"] == 1
        assert not readable(t.gateway.pump.event_fd)
