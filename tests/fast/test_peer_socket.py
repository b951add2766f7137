"""The peer that most datagrams go to has a socket of its own (ipsec/fast/peer.pxd): over loopback, real sockets."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from ipsec.esp.fast import Engine, Pump
from ipsec.esp.sa import Action, Policy
from ipsec.net.udp import open_udp
from tests.fast.frames import superframe_vnet, tcp_packet, udp_packet, with_partial_checksum
from tests.fast.pumps import EVERYTHING, Gateway, Net, Threads, out_params, pair, udp_net

STREAK = 256
"PEER_STREAK"
PAUSE_S = 1.0
"PEER_PAUSE_NS"


def wait_until(true: Callable[[], Any], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.002)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@contextmanager
def tunnel(version: int = 4, **options: Any) -> Iterator[tuple[Net, dict[str, Any]]]:
    """Two gateways in threads, with an SA each way."""
    with udp_net(version, peer_sockets=True, **options) as (net, where):
        net.tunnel(**where)
        with Threads(*net.sides):
            yield net, where
        for side in net.sides:
            side.tun.frames()
            side.check()


def send(net: Net, count: int, *, packet: bytes = b"", back: bool = False) -> None:
    """Packets one after the other, each of them a message; returns when all have arrived."""
    here, there = net.sides[::-1] if back else net.sides
    before = there.counters()["tun_tx_packets"]
    for n in range(count):
        here.tun.send(packet or udp_packet(4, 100))
        wait_until(lambda n=n: there.counters()["tun_tx_packets"] >= before + n + 1)


def sockets(gateway: Gateway) -> int:
    return gateway.counters()["peer_sockets"]


@pytest.mark.parametrize("version", [4, 6])
def test_opened_after_a_streak_and_nothing_is_lost(version: int) -> None:
    with tunnel(version) as (net, _):
        send(net, STREAK - 1)
        assert sockets(net.left) == 0
        send(net, 500)
        assert sockets(net.left) == 1
        assert sockets(net.right) == 0, "it has sent nothing"
        send(net, STREAK + 200, back=True)
        assert sockets(net.right) == 1
        send(net, 200)
        assert (sockets(net.left), sockets(net.right)) == (1, 1)
        assert not net.left.engine.drops()
        assert not net.right.engine.drops()


def test_the_pump_closes_it_when_it_stops() -> None:
    with udp_net(peer_sockets=True) as (net, where):
        net.tunnel(**where)
        before = descriptors()
        with Threads(*net.sides):
            send(net, STREAK + 10)
            wait_until(lambda: sockets(net.left) == 1)
            assert descriptors() == before + 2, "the peer's socket, and what stops the threads"
        assert descriptors() == before


def test_trains_go_through_it_as_well() -> None:
    packet = tcp_packet(4, 13000)
    frame, header = with_partial_checksum(packet), superframe_vnet(packet, 1300).emit()
    with tunnel() as (net, _):
        send(net, STREAK + 1)
        wait_until(lambda: sockets(net.left) == 1)
        before = net.right.counters()
        for n in range(20):
            net.left.tun.send(frame, header)
            wait_until(lambda n=n: net.right.counters()["tun_tx_packets"] >= before["tun_tx_packets"] + 10 * (n + 1))
        after = net.right.counters()
        assert after["net_rx_messages"] - before["net_rx_messages"] < 60, "no trains"
        assert net.left.counters()["gso_fallbacks"] == 0


def test_without_the_switch_there_is_none() -> None:
    with udp_net() as (net, where):
        net.tunnel(**where)
        with Threads(*net.sides):
            send(net, STREAK + 50)
            assert sockets(net.left) == 0


def test_the_event_loop_has_none() -> None:
    """Nobody would wait for it there."""
    with udp_net(peer_sockets=True) as (net, where):
        net.tunnel(**where)
        for _ in range(STREAK + 50):
            net.left.tun.send(udp_packet(4, 100))
            net.run()
        assert sockets(net.left) == 0
        assert net.right.counters()["tun_tx_packets"] == STREAK + 50


class Strangers:
    """Peers of one gateway that only listen."""

    def __init__(self, net: Net, port: int, count: int) -> None:
        self.net = net
        self.sockets = [open_udp(ip_address("127.0.0.1"), 0)[0] for _ in range(count)]
        self.sas = []
        self.marks: dict[str, object] = {}
        for n, sock in enumerate(self.sockets):
            sock.settimeout(5.0)
            encap = (port, sock.getsockname()[1])
            local = ip_address("127.0.0.1")
            params = out_params(0x5000 + n, local=local, remote=local, encap=encap)
            self.sas.append(net.left.engine.add_sa(params))
            selectors = (pair(f"192.0.{10 + n}.1/32", f"198.51.{10 + n}.7/32"),)
            net.left.engine.add_policy(Policy(Action.PROTECT, selectors, reqid=0x5000 + n, priority=-1))

    def packet(self, n: int) -> bytes:
        return udp_packet(4, 100, ip={"src": f"192.0.{10 + n}.1", "dst": f"198.51.{10 + n}.7", **self.marks})

    def receive(self, n: int) -> bytes:
        return self.sockets[n].recv(2000)

    def meet(self, n: int) -> None:
        """Send as much to one of them as gets it a socket of its own."""
        for _ in range(STREAK + 10):
            self.net.left.tun.send(self.packet(n))
            self.receive(n)

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()


@contextmanager
def strangers(count: int) -> Iterator[tuple[Net, Strangers]]:
    with udp_net(peer_sockets=True) as (net, where):
        made = Strangers(net, where["encap"][0], count)
        try:
            with Threads(net.left):
                yield net, made
            net.left.check()
        finally:
            made.close()


def test_peers_in_turns_share_one() -> None:
    with strangers(2) as (net, made):
        for _ in range(2 * STREAK):
            for n in range(2):
                net.left.tun.send(made.packet(n))
                assert struct.unpack("!I", made.receive(n)[:4]) == (0x5000 + n,)
        assert sockets(net.left) == 0


def test_another_peer_takes_it_over() -> None:
    with strangers(2) as (net, made):
        made.meet(0)
        wait_until(lambda: sockets(net.left) == 1)
        before = descriptors()
        time.sleep(PAUSE_S)
        made.meet(1)
        wait_until(lambda: sockets(net.left) == 2)
        assert descriptors() == before
        net.left.tun.send(made.packet(0))
        assert struct.unpack("!I", made.receive(0)[:4]) == (0x5000,)


def test_not_more_often_than_once_a_second() -> None:
    with strangers(2) as (net, made):
        for turn in range(6):
            made.meet(turn % 2)
        assert sockets(net.left) <= 2


def test_what_comes_from_others_is_read_all_the_while() -> None:
    """Between bind() and connect() the new socket is given what is for all."""
    with tunnel() as (net, where), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.connect(("127.0.0.1", where["encap"][0]))
        sent = 0
        for _ in range(STREAK + 100):
            net.left.tun.send(udp_packet(4, 100))
            other.send(bytes(4) + b"IKE of somebody else")
            sent += 1
        wait_until(lambda: net.left.counters()["control_datagrams"] + net.left.counters()["control_lost"] == sent)
        wait_until(lambda: sockets(net.left) == 1)


def test_what_came_before_the_socket_goes_before_what_comes_through_it() -> None:
    """What waits in the socket for all would be behind the replay window otherwise."""
    backlog = 8 * 1024
    with udp_net(peer_sockets=True, gso=False, gro=False) as (net, where):
        net.tunnel(**where)
        packet = udp_packet(4, 100)
        with Threads(net.right):
            for n in range(backlog):
                net.right.tun.send(packet)
                if n % 64 == 63:
                    wait_until(lambda n=n: net.right.counters()["net_tx_datagrams"] > n)
            end = time.monotonic() + 10.0
            with Threads(net.left):
                while not sockets(net.left):
                    assert time.monotonic() < end
                    for side in net.sides:
                        with suppress(BlockingIOError):
                            side.tun.send(packet)
                        side.tun.frames()
                for _ in range(64):
                    net.right.tun.send(packet)
                wait_until(lambda: net.left.counters()["net_rx_datagrams"] >= backlog + 64)
        for side in net.sides:
            side.tun.frames()
            assert not side.engine.drops()
            side.check()


def test_a_peer_that_moves_is_followed() -> None:
    with strangers(1) as (net, made), open_udp(ip_address("127.0.0.1"), 0)[0] as elsewhere:
        elsewhere.settimeout(5.0)
        made.meet(0)
        wait_until(lambda: sockets(net.left) == 1)
        local = ip_address("127.0.0.1")
        encap = (net_port(net), elsewhere.getsockname()[1])
        net.left.engine.update_sa(made.sas[0], local=local, remote=local, encap=encap, path_mtu=1500)
        net.left.tun.send(made.packet(0))
        assert elsewhere.recv(2000)[:4] == struct.pack("!I", 0x5000)


def net_port(net: Net) -> int:
    with socket.socket(fileno=os.dup(net.fds[0])) as sock:
        return int(sock.getsockname()[1])


def test_ike_and_keepalives_come_through_it() -> None:
    """The event loop knows the socket for all, and answers through that."""
    with strangers(1) as (net, made):
        made.meet(0)
        wait_until(lambda: sockets(net.left) == 1)
        to = ("127.0.0.1", net_port(net))
        made.sockets[0].sendto(b"\xff", to)
        made.sockets[0].sendto(bytes(4) + b"IKE", to)
        wait_until(lambda: net.left.counters()["control_datagrams"] == 1)
        assert net.left.counters()["keepalives"] == 1
        [(data, source, local, fd)] = net.left.pump.datagrams()
        assert (data, source, local) == (bytes(4) + b"IKE", made.sockets[0].getsockname(), "127.0.0.1")
        assert fd == net.fds[0]


def test_a_peer_that_is_gone_makes_no_difference() -> None:
    """ICMP errors reach a connected socket. They are read, and nothing waits or is lost for them."""
    with strangers(1) as (net, made):
        made.meet(0)
        wait_until(lambda: sockets(net.left) == 1)
        port = made.sockets[0].getsockname()[1]
        made.sockets[0].close()
        sent = net.left.counters()["net_tx_datagrams"]
        for n in range(50):
            net.left.tun.send(made.packet(0))
            wait_until(lambda n=n: net.left.counters()["net_tx_datagrams"] == sent + n + 1)
        assert not net.left.engine.drops()
        made.sockets[0] = open_udp(ip_address("127.0.0.1"), port)[0]
        made.sockets[0].settimeout(5.0)
        net.left.tun.send(made.packet(0))
        made.receive(0)


def test_nobody_else_may_share_the_port() -> None:
    with strangers(1) as (net, made):
        made.meet(0)
        wait_until(lambda: sockets(net.left) == 1)
        for address in ("127.0.0.1", "0.0.0.0"):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                with pytest.raises(OSError, match="in use"):
                    sock.bind((address, net_port(net)))


def test_dscp_is_kept() -> None:
    """Control data makes the kernel look the way up again; the mark goes out all the same."""
    with strangers(1) as (net, made):
        made.sockets[0].setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
        made.marks = {"tos": 46 << 2}
        for _ in range(STREAK + 50):
            net.left.tun.send(made.packet(0))
            _, control, _, _ = made.sockets[0].recvmsg(2000, 64)
            assert [value[0] for level, kind, value in control if kind == socket.IP_TOS] == [46 << 2]
        assert sockets(net.left) == 1


def test_wrong_arguments_close_nobodys_descriptor() -> None:
    """A pump that was never made has no descriptors: those numbers belong to others."""
    before = os.fstat(0)
    with pytest.raises(ValueError, match="worker 5"):
        Pump(Engine(), 5, tun_fd=-1)
    assert os.fstat(0).st_ino == before.st_ino


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


HERE, THERE = "2001:db8::1", "2001:db8:ffff::9"


@contextmanager
def ipv6_peer_far_away() -> Iterator[Gateway]:
    """The thread of a gateway with a socket for a peer behind device d0; d1 is there as well, and sends nothing."""
    for n in range(2):
        ip("link", "add", f"d{n}", "type", "veth", "peer", "name", f"p{n}")
        for name in (f"d{n}", f"p{n}"):
            ip("link", "set", name, "up", "addrgenmode", "none")
        ip("-6", "neigh", "add", "fe80::1", "lladdr", "02:00:00:00:00:01", "dev", f"d{n}")
    ip("-6", "addr", "add", f"{HERE}/128", "dev", "lo")
    ip("-6", "route", "add", "default", "via", "fe80::1", "dev", "d0")
    with open_udp(ip_address("::"), 4500)[0] as sock:
        left = Gateway([{"udp6_fd": sock.fileno()}], connected=False, peer_sockets=True)
        left.engine.add_sa(out_params(local=ip_address(HERE), remote=ip_address(THERE), encap=(4500, 4500)))
        left.engine.add_policy(Policy(Action.PROTECT, EVERYTHING, reqid=0x1000))
        try:
            with Threads(left):
                for n in range(STREAK):
                    send_one(left, n)
                wait_until(lambda: sockets(left) == 1)
                yield left
        finally:
            left.close()


def send_one(gateway: Gateway, n: int) -> None:
    gateway.tun.send(udp_packet(4, 100))
    wait_until(lambda: gateway.counters()["tun_rx_packets"] > n)


def sent_by(device: str) -> int:
    for line in Path("/proc/thread-self/net/dev").read_text().splitlines():
        if line.strip().startswith(device + ":"):
            return int(line.split()[10])
    raise AssertionError(device)


@pytest.mark.e2e
@pytest.mark.usefixtures("own_network")
def test_a_better_way_is_taken() -> None:
    """A connected IPv6 socket is not told of routes in another table than the one that led to its way."""
    ip("-6", "rule", "add", "pref", "100", "lookup", "77")
    with ipv6_peer_far_away() as left:
        ip("-6", "route", "add", "2001:db8:ffff::/48", "via", "fe80::1", "dev", "d1", "table", "77")
        time.sleep(PAUSE_S)
        before = sent_by("d0"), sent_by("d1")
        for n in range(20):
            send_one(left, STREAK + n)
        wait_until(lambda: left.counters()["net_tx_datagrams"] == STREAK + 20)
        assert (sent_by("d0"), sent_by("d1")) == (before[0], before[1] + 20)
        assert sockets(left) == 1, "the same"


@pytest.mark.e2e
@pytest.mark.usefixtures("own_network")
def test_an_address_that_is_ours_no_longer_is_not_sent_from() -> None:
    """Another host may have it now. A connected IPv6 socket would go on."""
    with ipv6_peer_far_away() as left:
        ip("-6", "addr", "del", f"{HERE}/128", "dev", "lo")
        time.sleep(PAUSE_S)
        before = sent_by("d0")
        for n in range(20):
            send_one(left, STREAK + n)
        wait_until(lambda: left.dropped("OUT_SEND_ERROR") == 20)
        assert sent_by("d0") == before
        left.check()
