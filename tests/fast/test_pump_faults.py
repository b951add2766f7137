"""Links that fail: full sockets, narrow paths, devices that are down or gone, and system calls that fail on demand."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from ipsec.esp.drops import DropReason
from ipsec.esp.engine import EventKind
from ipsec.esp.fast import Engine, Pump, provider_versions
from ipsec.esp.sa import Action, Policy
from ipsec.net.memory import socket_pair
from tests.fast.frames import superframe_vnet, tcp_packet, udp_packet, with_partial_checksum
from tests.fast.pumps import (
    BLOCKED,
    DEVICE_LOST,
    EVERYTHING,
    MORE,
    Gateway,
    Tap,
    Threads,
    drops,
    in_params,
    memory_net,
    out_params,
    pair,
    readable,
    tap,
)

HERE = Path(__file__).parent
SHIMMED = re.findall(r"^def scenario_(\w+)", (HERE / "shimmed.py").read_text(), re.MULTILINE)


# --- system calls that fail on demand ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shimmed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What went wrong in each scenario of shimmed.py, run in one process that has the shim."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler for the shim")
    shim = tmp_path_factory.mktemp("shim") / "shim.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-Wall", "-o", shim, HERE / "shim.c", "-ldl"], check=True)
    preload = " ".join(filter(None, (os.environ.get("LD_PRELOAD"), str(shim))))
    # behind what PYTHONPATH names: a build under test (make asan) comes before the checkout
    path = ":".join(filter(None, (os.environ.get("PYTHONPATH"), str(HERE.parent.parent))))
    done = subprocess.run(
        [sys.executable, "-P", HERE / "shimmed.py"],
        env={**os.environ, "LD_PRELOAD": preload, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    results: dict[str, str] = {}
    for line in map(json.loads, done.stdout.splitlines()):
        if "start" in line:
            results[line["start"]] = f"the process ended with status {done.returncode} here\n{done.stderr[-4000:]}"
        else:
            results[line["name"]] = line["trouble"]
    return results


@pytest.mark.skipif(provider_versions()["ipsec-mb"] is None, reason="intel-ipsec-mb is not there")
def test_a_job_that_fails_leaves_nothing(tmp_path: Path) -> None:
    """Of the packet neither plain text nor an SPI: its owner knows it by that. A job without room for its ICV fails."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    source, program = tmp_path / "job.c", tmp_path / "job"
    source.write_text(
        """
        #define HAVE_IPSEC_MB 1
        #include "ipsec_mb_jobs.h"
        int main(void)
        {
            static struct mb_cbc_key key;
            static uint8_t esp[8 + 16 + 64 + 64], zero[8 + 16 + 64];
            static const uint8_t secret[32];
            if (!mb_start())
                return 1;
            mb_cbc_expand(&key, secret, 128, MB_HMAC_SHA256, secret, 32, 16);
            void *manager = mb_jobs_new();
            for (int good = 1; good >= 0; good--) {
                memset(esp, 7, sizeof esp);
                if (!good)
                    key.icv_len = 0;
                uint32_t failed = mb_cbc_seal(manager, &key, esp, 64, 0) + mb_jobs_finish(manager);
                if (failed != !good || (memcmp(esp, zero, sizeof zero) == 0) == good)
                    return 2 + good;
            }
            mb_jobs_free(manager);
            return 0;
        }
        """
    )
    headers = HERE.parent.parent / "ipsec" / "fast"
    libraries = ["-lIPSec_MB", "-lcrypto"]
    subprocess.run([compiler, "-O1", f"-I{headers}", "-o", program, source, *libraries], check=True)
    assert subprocess.run([program], check=False).returncode == 0


@pytest.mark.parametrize("scenario", SHIMMED)
def test_failing_calls(shimmed: dict[str, str], scenario: str) -> None:
    trouble = shimmed.get(scenario, "an earlier scenario ended the process")
    assert not trouble, trouble


# --- sockets that are full, or have nobody at the other end -----------------------------------------------------------


def small(sock_fd: int) -> None:
    """Room for few datagrams only."""
    with socket.socket(fileno=os.dup(sock_fd)) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)


@pytest.mark.parametrize("change", ["nothing", "delete", "update", "replace"])
def test_a_full_socket_keeps_what_was_sealed(change: str) -> None:
    """Backpressure: the packets wait in the pump, then in the TUN device, and go out in order, each once."""
    with tap() as t:
        small(t.links[0].fd(0))
        sa = t.engine.add_sa(out_params())
        t.engine.add_policy(Policy(Action.PROTECT, EVERYTHING, reqid=0x1000))
        for n in range(100):
            assert t.gateway.tun.send(udp_packet(4, 300, sport=n))
        assert t.gateway.pump.run_tun(1000) == BLOCKED
        assert t.gateway.pump.blocked_fd() == t.links[0].fd(0)
        taken = t.gateway.counters()["tun_rx_packets"]
        calls = t.gateway.counters()["net_tx_calls"]
        for _ in range(10):
            assert t.gateway.pump.run_tun() == BLOCKED
        assert t.gateway.counters()["net_tx_calls"] == calls + 10
        assert t.gateway.counters()["tun_rx_packets"] == taken
        if change == "delete":
            t.engine.del_sa(sa)
        elif change == "update":
            ends = {"local": ip_address("192.0.2.1"), "remote": ip_address("203.0.113.9")}
            t.engine.update_sa(sa, **ends, encap=(4500, 4501), path_mtu=1400)
        elif change == "replace":
            t.engine.add_sa(out_params(0x2000, reqid=0x1000))
            t.engine.del_sa(sa)
        sent = t.sent()
        while t.gateway.pump.run_tun() & (BLOCKED | MORE):
            sent += t.sent()
        sent += t.sent()
        numbers = [(int.from_bytes(d[:4], "big"), int.from_bytes(d[4:8], "big")) for d in sent]
        assert numbers[:taken] == [(0x1000, n + 1) for n in range(taken)]
        rest = {
            "delete": [],
            "replace": [(0x2000, n + 1) for n in range(100 - taken)],
        }.get(change, [(0x1000, n + 1) for n in range(taken, 100)])
        assert numbers[taken:] == rest
        assert t.gateway.pump.blocked_fd() == -1
        assert t.gateway.dropped("OUT_NO_STATES") == (100 - taken if change == "delete" else 0)
        t.gateway.check()


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize(("size", "unit"), [(60000, 1300), (65000, 536), (60000, 340)])
def test_a_full_socket_holds_superframes_back(size: int, unit: int, held: bool) -> None:
    """Where no trains form, every segment is a message: what was begun waits as a whole, the next frame is not read."""
    with tap(engine={"hold_packets": 10}) as t:
        small(t.links[0].fd(0))
        t.engine.add_policy(Policy(Action.PROTECT, EVERYTHING, reqid=0x1000))
        if not held:
            t.engine.add_sa(out_params())
        # small packets first, so that the frames do not begin with all the room there is
        for n in range(5):
            t.gateway.tun.send(udp_packet(4, n))
        packet = udp_packet(4, size)
        for _ in range(5):
            t.gateway.tun.send(with_partial_checksum(packet), superframe_vnet(packet, unit).emit())
        if held:
            t.gateway.pump.run_tun()
            assert t.engine.held() == 10
            t.engine.add_sa(out_params())
        sent = []
        assert t.gateway.pump.run_tun() == BLOCKED
        while t.gateway.pump.run_tun() & (BLOCKED | MORE):
            sent += t.sent()
        sent += t.sent()
        assert drops(t.gateway) == {}
        count = 5 + 5 * -(-size // unit)
        assert [int.from_bytes(datagram[4:8], "big") for datagram in sent] == list(range(1, count + 1))
        t.gateway.check()


def test_a_superframe_that_never_fits_is_counted() -> None:
    """More datagrams than wait at once, and nobody reads: the rest are drops, not a crash and not a wait."""
    with tap() as t:
        small(t.links[0].fd(0))
        t.engine.add_sa(out_params())
        t.engine.add_policy(Policy(Action.PROTECT, EVERYTHING, reqid=0x1000))
        packet = udp_packet(4, 30000)
        t.gateway.tun.send(with_partial_checksum(packet), superframe_vnet(packet, 60).emit())
        assert t.gateway.pump.run_tun() == BLOCKED
        c = t.gateway.counters()
        waiting = 500 - c["net_tx_datagrams"] - t.gateway.dropped("OUT_SEND_ERROR")
        assert 0 < waiting <= 256
        # and it asks the socket no more than there is reason to
        assert c["net_tx_calls"] <= 3
        t.gateway.check(waiting=waiting)
        sent = t.sent()
        while t.gateway.pump.run_tun() & BLOCKED:
            sent += t.sent()
        sent += t.sent()
        numbers = [int.from_bytes(d[4:8], "big") for d in sent]
        assert numbers == sorted(set(numbers))
        t.gateway.check()


def test_a_full_tun_device_loses_and_counts() -> None:
    with memory_net() as net:
        net.tunnel()
        small(net.right.tun.fd)
        for n in range(200):
            net.left.tun.send(tcp_packet(4, 1000, sport=n))
            net.run()
        got = len(net.right.packets())
        assert 0 < got < 200
        assert net.right.engine.drops() == {DropReason.IN_DEVICE_ERROR: 200 - got}
        net.right.check()


def test_what_nobody_will_send_is_counted() -> None:
    with tap() as t:
        small(t.links[0].fd(0))
        t.engine.add_sa(out_params())
        t.engine.add_policy(Policy(Action.PROTECT, EVERYTHING, reqid=0x1000))
        for n in range(100):
            t.gateway.tun.send(udp_packet(4, 300, sport=n))
        assert t.gateway.pump.run_tun(1000) == BLOCKED
        sent = len(t.sent())
        t.gateway.pump.discard()
        taken = t.gateway.counters()["tun_rx_packets"]
        assert drops(t.gateway) == {DropReason.OUT_SEND_ERROR: taken - sent}
        assert t.gateway.pump.blocked_fd() == -1
        t.gateway.check()
        # and it may go on
        while t.gateway.pump.run_tun() & (BLOCKED | MORE):
            sent += len(t.sent())
        assert sent + len(t.sent()) == t.gateway.counters()["net_tx_datagrams"]
        t.gateway.check()


def fill_events(t: Tap) -> None:
    """Make the ring of events full."""
    for n in range(1024):
        t.engine.add_policy(Policy(Action.PROTECT, (pair("0.0.0.0/0", f"10.9.{n >> 8}.{n & 255}/32"),), reqid=n + 1))
        t.gateway.tun.send(udp_packet(4, ip={"dst": f"10.9.{n >> 8}.{n & 255}"}))
        t.gateway.pump.run_tun()


def test_a_lost_device_is_told_when_there_is_room_to_tell() -> None:
    with tap() as t:
        fill_events(t)
        t.gateway.tun.lose()
        assert t.gateway.pump.run_tun() & DEVICE_LOST
        assert {event.kind for event in t.engine.events()} == {EventKind.ACQUIRE}
        for _ in range(3):
            assert t.gateway.pump.run_tun() & DEVICE_LOST
        assert [event.kind for event in t.engine.events()] == [EventKind.DEVICE_LOST]
        assert t.gateway.pump.run_sockets() & DEVICE_LOST


def test_a_thread_sleeps_while_there_is_no_room_to_tell() -> None:
    with tap() as t:
        fill_events(t)
        with Running(t.gateway.pump):
            t.gateway.tun.lose()
            time.sleep(0.3)
            # a hundred a second, and not as many as the processor can
            assert t.gateway.counters()["wakeups"] < 100
            told: list[EventKind] = []
            while EventKind.DEVICE_LOST not in told:
                told += [event.kind for event in t.engine.events()]
                time.sleep(0.001)
        assert told == [EventKind.ACQUIRE] * 1024 + [EventKind.DEVICE_LOST]


def test_nobody_at_the_other_end() -> None:
    """A closed wire (EPIPE, end of file): drops, and no call that never ends."""
    here, there = socket_pair()
    side = Gateway([{"udp4_fd": here.fileno()}])
    try:
        side.engine.add_sa(out_params())
        side.engine.add_policy(Policy(Action.PROTECT, EVERYTHING, reqid=0x1000))
        there.close()
        for n in range(5):
            side.tun.send(udp_packet(4, n))
        assert side.pump.run_tun() == 0
        assert side.engine.drops() == {DropReason.OUT_SEND_ERROR: 5}
        before = side.counters()["net_rx_calls"]
        for _ in range(3):
            side.pump.run_sockets(16)
        assert side.counters()["net_rx_calls"] - before <= 3 * 16
        side.check()
    finally:
        side.close()
        here.close()


@pytest.mark.parametrize("connected_peer", [True, False])
def test_refused_by_the_peers_host(connected_peer: bool) -> None:
    """ICMP port unreachable: a connected UDP socket answers ECONNREFUSED, an unconnected one says nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as gone:
        gone.bind(("127.0.0.1", 0))
        port = gone.getsockname()[1]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        if connected_peer:
            sock.connect(("127.0.0.1", port))
        side = Gateway([{"udp4_fd": sock.fileno()}], connected=connected_peer)
        loopback = ip_address("127.0.0.1")
        side.engine.add_sa(out_params(local=loopback, remote=loopback, encap=(sock.getsockname()[1], port)))
        side.engine.add_policy(Policy(Action.PROTECT, EVERYTHING, reqid=0x1000))
        for n in range(10):
            side.tun.send(udp_packet(4, n))
            side.pump.run_tun()
            assert side.pump.run_sockets(4) in (0, MORE)
        refused = side.dropped("OUT_SEND_ERROR")
        # reading takes the error from the socket, so that it may or may not meet a datagram
        assert refused <= (10 if connected_peer else 0)
        assert side.counters()["net_rx_calls"] <= 40
        side.check()
        side.close()


# --- real devices and paths, in a namespace ---------------------------------------------------------------------------


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@contextlib.contextmanager
def namespace(name: str) -> Iterator[None]:
    """This thread in a network namespace of its own, with a veth pair to another one."""
    libc = ctypes.CDLL(None, use_errno=True)
    names = [f"pump{os.getpid()}{name}{i}" for i in (0, 1)]
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        for each in names:
            ip("netns", "add", each)
        ip("-n", names[0], "link", "add", "veth0", "type", "veth", "peer", "name", "veth1", "netns", names[1])
        for i, each in enumerate(names):
            ip("-n", each, "link", "set", "lo", "up")
            ip("-n", each, "link", "set", f"veth{i}", "up")
            ip("-n", each, "addr", "add", f"192.0.2.{i + 1}/24", "dev", f"veth{i}")
        inside = os.open(f"/run/netns/{names[0]}", os.O_RDONLY)
        assert libc.setns(inside, 0x40000000) == 0
        os.close(inside)
        yield
    finally:
        assert libc.setns(home, 0x40000000) == 0
        os.close(home)
        for each in names:
            subprocess.run(["ip", "netns", "del", each], capture_output=True, check=False)


def real_gateway(**options: Any) -> tuple[Gateway, socket.socket]:
    from ipsec.net.udp import open_udp

    sock = open_udp(ip_address("192.0.2.1"), 4500)[0]
    side = Gateway([{"udp4_fd": sock.fileno()}], connected=False, **options)
    ends = {"local": ip_address("192.0.2.1"), "remote": ip_address("192.0.2.2")}
    side.engine.add_sa(out_params(**ends))
    side.engine.add_policy(Policy(Action.PROTECT, EVERYTHING, reqid=0x1000))
    return side, sock


@pytest.mark.e2e
@pytest.mark.parametrize("gso", [False, True])
def test_the_path_becomes_narrower(gso: bool) -> None:
    """EMSGSIZE: the next packets are measured against what the kernel knows, and the inside is told."""
    with namespace("mtu"):
        side, sock = real_gateway(udp_gso=gso)
        try:
            side.tun.send(udp_packet(4, 1400))
            side.pump.run_tun()
            assert side.counters()["net_tx_datagrams"] == 1
            ip("link", "set", "veth0", "mtu", "1300")
            packet = tcp_packet(4, 13500)
            for _ in range(3):
                side.tun.send(with_partial_checksum(packet), superframe_vnet(packet, 1350).emit())
                side.pump.run_tun()
            assert side.counters()["path_mtu_changes"] == 1
            assert side.counters()["icmp_tx_packets"] >= 1
            assert side.counters()["net_tx_datagrams"] == 1
            (answer, *_) = side.tun.receive()
            assert answer[20:22] == b"\3\4"
            mtu = int.from_bytes(answer[26:28], "big")
            assert 1300 - 80 < mtu < 1300 - 40
            packet = tcp_packet(4, 12000)
            side.tun.send(with_partial_checksum(packet), superframe_vnet(packet, mtu - 40).emit())
            side.pump.run_tun()
            assert side.counters()["net_tx_datagrams"] == 1 + -(-12000 // (mtu - 40))
            # a narrower path says nothing against trains
            assert side.pump.offloads()["udp_gso"] == gso
            side.check()
        finally:
            side.close()
            sock.close()


@pytest.mark.e2e
def test_the_way_out_is_down_and_comes_back() -> None:
    """ENETUNREACH or ENETDOWN: drops while it lasts, nothing else."""
    with namespace("down"):
        side, sock = real_gateway()
        try:
            ip("link", "set", "veth0", "down")
            for n in range(5):
                side.tun.send(udp_packet(4, n))
            assert side.pump.run_tun() == 0
            assert side.engine.drops() == {DropReason.OUT_SEND_ERROR: 5}
            ip("link", "set", "veth0", "up")
            side.tun.send(udp_packet(4, 5))
            assert side.pump.run_tun() == 0
            assert side.counters()["net_tx_datagrams"] == 1
            side.check()
        finally:
            side.close()
            sock.close()


def open_tun(name: str) -> int:
    import fcntl
    import struct

    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH22x", name.encode(), 0x1001 | 0x4000))
    return fd


@contextlib.contextmanager
def with_tun() -> Iterator[tuple[Engine, Pump, socket.socket, int]]:
    """A pump on a real TUN device tun7, its outside in memory."""
    here, there = socket_pair()
    tun = open_tun("tun7")
    ip("addr", "add", "10.1.0.5/24", "dev", "tun7")
    ip("link", "set", "tun7", "up")
    engine = Engine()
    engine.add_sa(in_params())
    pump = Pump(engine, 0, tun_fd=tun, udp4_fd=here.fileno(), vnet_hdr=True, connected=True)
    try:
        yield engine, pump, there, tun
    finally:
        del pump
        os.close(tun)
        here.close()
        there.close()


def sealed_packets(count: int) -> list[bytes]:
    engine = Engine()
    out = engine.add_sa(out_params())
    return [engine.encapsulate(out, udp_packet(4, n), 1.0).datagram for n in range(count)]


@pytest.mark.e2e
def test_a_real_device_that_is_down() -> None:
    with namespace("tundown"), with_tun() as (engine, pump, outside, _):
        ip("link", "set", "tun7", "down")
        good = sealed_packets(4)
        for datagram in good[:3]:
            outside.send(datagram)
        assert pump.run_sockets() == 0
        assert pump.run_tun() == 0
        # what the kernel itself says on a new device (router solicitations) has no policy
        assert engine.drops().keys() <= {DropReason.IN_DEVICE_ERROR, DropReason.OUT_NO_POLS}
        assert engine.drops()[DropReason.IN_DEVICE_ERROR] == 3
        assert engine.events() == []
        ip("link", "set", "tun7", "up")
        outside.send(good[3])
        assert pump.run_sockets() == 0
        assert pump.counters()["tun_tx_packets"] == 1


@pytest.mark.e2e
def test_a_real_device_that_is_deleted() -> None:
    with namespace("tundel"), with_tun() as (engine, pump, outside, _):
        ip("link", "del", "tun7")
        outside.send(sealed_packets(1)[0])
        assert pump.run_sockets() & DEVICE_LOST or pump.run_tun() & DEVICE_LOST
        for _ in range(5):
            assert pump.run_tun() & DEVICE_LOST
            assert pump.run_sockets() & DEVICE_LOST
        assert readable(pump.event_fd)
        assert [event.kind for event in engine.events()] == [EventKind.DEVICE_LOST]


class Running(Threads):
    """One pump in a thread."""

    def __init__(self, pump: Pump) -> None:
        gateway = object.__new__(Gateway)
        gateway.pumps = [pump]
        super().__init__(gateway)


@pytest.mark.e2e
@pytest.mark.parametrize("what", ["down", "del"])
def test_a_thread_does_not_spin_on_a_device_that_fails(what: str) -> None:
    with namespace(f"spin{what}"), with_tun() as (engine, pump, _, _):
        with Running(pump):
            time.sleep(0.05)
            ip("link", *(("set", "tun7", "down") if what == "down" else ("del", "tun7")))
            time.sleep(0.1)
            before = pump.counters()["wakeups"]
            time.sleep(0.3)
            assert pump.counters()["wakeups"] - before < 10
        kinds = [event.kind for event in engine.events()]
        assert kinds == ([] if what == "down" else [EventKind.DEVICE_LOST])
