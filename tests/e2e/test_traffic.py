"""Real traffic between two gateways in all modes: what goes in comes out, and nothing of it is on the wire in clear."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ipsec.net import netns
from tests.e2e.gateways import INNER, OUTER, WIRE, Setup, World, finish

SO_RCVBUFFORCE, SOL_PACKET, PACKET_STATISTICS = 33, 263, 6
pytestmark = pytest.mark.e2e

MakeWorld = Callable[[Setup], World]

#: a TCP server that answers each connection with the SHA-256 of what it got, and its client
HASH_SERVER = """
import hashlib, socket, sys
server = socket.create_server((sys.argv[1], 5300), family=socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET)
print('ready', flush=True)
peer, _ = server.accept()
digest = hashlib.sha256()
while data := peer.recv(1 << 20):
    digest.update(data)
peer.sendall(digest.hexdigest().encode())
peer.close()
"""
HASH_CLIENT = """
import socket, sys
sock = socket.create_connection((sys.argv[1], 5300), timeout=30)
with open(sys.argv[2], 'rb') as file:
    sock.sendfile(file)
sock.shutdown(socket.SHUT_WR)
print(sock.recv(100).decode())
"""
UDP_ECHO = """
import socket, sys
sock = socket.socket(socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)
sock.bind((sys.argv[1], 5301))
print('ready', flush=True)
while True:
    data, source = sock.recvfrom(65535)
    sock.sendto(data, source)
"""
UDP_CLIENT = """
import os, socket, sys
sock = socket.socket(socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)
sock.settimeout(2)
for size in (0, 1, 64, 1000, 1372, 1400, 4000, 9000):
    sent = os.urandom(size)
    sock.sendto(sent, (sys.argv[1], 5301))
    assert sock.recv(65535) == sent, size
print('same')
"""


def transfer(world: World, version: int, path: Path) -> str:
    """Send a file from a to b over TCP; the hash that b computed."""
    address = OUTER[version][1] if world.setup.mode == "transport" else INNER[version][1]
    server = world.b.popen(sys.executable, "-c", HASH_SERVER, address)
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        return world.a.run(sys.executable, "-c", HASH_CLIENT, address, str(path)).stdout.strip()
    finally:
        finish(server)


def file_of(path: Path, size: int) -> str:
    """A file of that size with random octets, and its hash."""
    with open("/dev/urandom", "rb") as source:
        data = source.read(size)
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("encap", [True, False], ids=["udp", "raw"])
@pytest.mark.parametrize("outer", [4, 6], ids=["outer4", "outer6"])
def test_ping_in_all_pairs(make_world: MakeWorld, outer: int, encap: bool) -> None:
    world = make_world(Setup(outer=outer, encap=encap))
    world.start()
    for inner in (4, 6):
        assert "3 received" in world.a.ping(INNER[inner][1])
        assert "3 received" in world.b.ping(INNER[inner][0])


@pytest.mark.parametrize(
    ("workers", "outer", "encap", "inner"),
    [(0, 4, True, 4), (0, 6, False, 6), (2, 4, True, 4), (2, 4, True, 6), (2, 6, True, 4), (2, 4, False, 4)],
)
def test_file_arrives_whole(
    make_world: MakeWorld, tmp_path: Path, workers: int, outer: int, encap: bool, inner: int
) -> None:
    world = make_world(Setup(workers=workers, outer=outer, encap=encap))
    world.start()
    expected = file_of(tmp_path / "file", 32 << 20)
    assert transfer(world, inner, tmp_path / "file") == expected


@pytest.mark.parametrize("name", ["tun_tso", "tun_uso", "udp_gso", "udp_gro", "coalesce_tcp", "coalesce_udp"])
def test_each_offload_can_be_off(make_world: MakeWorld, tmp_path: Path, name: str) -> None:
    world = make_world(Setup(offload={name: "no"}))
    world.start()
    assert f"offload {name} off: switched off" in world.a.log()
    expected = file_of(tmp_path / "file", 4 << 20)
    assert transfer(world, 4, tmp_path / "file") == expected
    echo(world, INNER[4][1])


def echo(world: World, address: str) -> None:
    """Datagrams of many sizes, fragmented ones among them, come back as they were."""
    server = world.b.popen(sys.executable, "-c", UDP_ECHO, address)
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        assert world.a.run(sys.executable, "-c", UDP_CLIENT, address).stdout == "same\n"
    finally:
        finish(server)


@pytest.mark.parametrize("inner", [4, 6])
def test_udp_of_many_sizes(world: World, inner: int) -> None:
    echo(world, INNER[inner][1])


@pytest.mark.parametrize(
    ("suite", "key_len"), [("aes256-sha256", 64), ("chacha20poly1305", 36), ("aes128ctr-sha1", 40)]
)
def test_other_suites_with_esn(make_world: MakeWorld, tmp_path: Path, suite: str, key_len: int) -> None:
    world = make_world(Setup(suite=f"{suite}-esn", key_len=key_len))
    world.start()
    expected = file_of(tmp_path / "file", 2 << 20)
    assert transfer(world, 4, tmp_path / "file") == expected


@pytest.mark.parametrize("encap", [True, False], ids=["udp", "raw"])
@pytest.mark.parametrize("outer", [4, 6])
def test_transport_mode(make_world: MakeWorld, tmp_path: Path, outer: int, encap: bool) -> None:
    world = make_world(Setup(mode="transport", outer=outer, encap=encap))
    world.start()
    with wire(world) as sniffer:
        assert "3 received" in world.a.ping(OUTER[outer][1])
        expected = file_of(tmp_path / "file", 1 << 20)
        assert transfer(world, outer, tmp_path / "file") == expected
        kinds = what_passed(sniffer)
    # a train of up to 64 packets counts once here
    assert kinds.pop("esp") > 20
    assert not kinds, kinds
    # the host has fragmented these before they come to the device
    assert "3 received" in world.a.ping(OUTER[outer][1], "-s", "4000")
    assert "3 received" in world.b.ping(OUTER[outer][0], "-s", "20000")


def test_too_big_with_df_is_answered(world: World) -> None:
    # 1500 - 20 IP - 8 UDP - 8 ESP - 8 IV - 16 ICV - 2 trailer = 1438; the device has that MTU, so the kernel answers
    world.a.run("ip", "link", "set", "ipsec0", "mtu", "1500")
    world.b.run("ip", "link", "set", "ipsec0", "mtu", "1500")
    assert "3 received" in world.a.ping(INNER[4][1], "-M", "do", "-s", str(1438 - 28))
    answer = world.a.ping(INNER[4][1], "-M", "do", "-s", str(1439 - 28), check=False, count=1)
    assert "mtu = 1438" in answer or "mtu=1438" in answer, answer


@pytest.mark.parametrize("inner", [4, 6])
def test_fragmented_pings(world: World, inner: int) -> None:
    assert "3 received" in world.a.ping(INNER[inner][1], "-s", "4000")
    assert "3 received" in world.a.ping(INNER[inner][1], "-s", "20000")


def test_tcp_over_a_small_path(make_world: MakeWorld, tmp_path: Path) -> None:
    world = make_world(Setup(link_mtu=1300, settings={"path_mtu": "1300"}))
    world.start()
    expected = file_of(tmp_path / "file", 4 << 20)
    assert transfer(world, 4, tmp_path / "file") == expected


def test_tcp_when_the_path_is_smaller_than_configured(make_world: MakeWorld, tmp_path: Path) -> None:
    """The kernel refuses what is larger than its path MTU: we must learn that, not lose everything."""
    world = make_world(Setup(link_mtu=1300))
    world.start()
    expected = file_of(tmp_path / "file", 4 << 20)
    assert transfer(world, 4, tmp_path / "file") == expected


@pytest.mark.parametrize("workers", [0, 2])
def test_iperf3(make_world: MakeWorld, workers: int) -> None:
    if not shutil.which("iperf3"):
        pytest.skip("iperf3 is not installed")
    world = make_world(Setup(workers=workers))
    world.start()
    server = world.b.popen("iperf3", "-s", "-1", "-B", INNER[4][1])
    try:
        deadline = time.monotonic() + 10
        while "5201" not in world.b.run("ss", "-Hltn").stdout:
            assert time.monotonic() < deadline, "iperf3 -s does not listen"
            time.sleep(0.05)
        output = world.a.run("iperf3", "-J", "-c", INNER[4][1], "-t", "2", "-P", "2", "--bidir", timeout=30).stdout
    finally:
        finish(server)
    result = json.loads(output)["end"]
    # far below what this reaches on any machine, far above a connection that limps on retransmissions
    assert result["sum_sent"]["bits_per_second"] > 2e6
    assert result["sum_received_bidir_reverse"]["bits_per_second"] > 2e6


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_in_the_middle_of_a_transfer(make_world: MakeWorld, tmp_path: Path, workers: int) -> None:
    """The connection waits for the next start and goes on; meanwhile nothing leaves in clear."""
    world = make_world(Setup(workers=workers))
    # a way in clear that the packets would find if anything let them
    world.a.run("ip", "route", "add", "10.2.0.0/16", "via", OUTER[4][1])
    world.start()
    # the connection outlives the device only if its address does
    world.a.run("ip", "addr", "add", f"{INNER[4][0]}/32", "dev", "lo")
    data = os.urandom(1 << 20)
    expected = hashlib.sha256(data * 600).hexdigest()
    (tmp_path / "file").write_bytes(data * 600)
    server = world.b.popen(sys.executable, "-c", HASH_SERVER, INNER[4][1])
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        with wire(world) as sniffer:
            client = world.a.popen(sys.executable, "-c", HASH_CLIENT, INNER[4][1], str(tmp_path / "file"))
            time.sleep(0.3)
            assert client.poll() is None
            world.a.stop(signal.SIGKILL)
            before = world.a.mark()
            what_passed(sniffer)
            time.sleep(0.5)
            assert what_passed(sniffer) == {}
            world.a.start()
            assert world.a.mark() > before
            output, _ = client.communicate(timeout=60)
            assert output.strip() == expected
            assert set(what_passed(sniffer)) == {"esp"}
    finally:
        finish(server)


def test_only_esp_is_on_the_wire(world: World, tmp_path: Path) -> None:
    with wire(world) as sniffer:
        world.a.ping(INNER[4][1])
        world.b.ping(INNER[6][0])
        file_of(tmp_path / "file", 1 << 20)
        transfer(world, 4, tmp_path / "file")
        kinds = what_passed(sniffer)
    assert kinds.pop("esp") >= 12
    assert not kinds, kinds


def test_the_sniffer_sees_clear_packets(world: World) -> None:
    """The test above means something only if it would notice."""
    with wire(world) as sniffer:
        world.a.ping(OUTER[4][1])
        assert what_passed(sniffer) == {"icmp4": 6}


def wire(world: World) -> socket.socket:
    """A packet socket on a's end of the wire, which sees both directions."""
    with netns.inside(world.a.namespace):
        # of no protocol before it is bound: it would take what passes other devices
        sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
        with contextlib.suppress(PermissionError):  # in a user namespace the host's limit holds
            sniffer.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
        sniffer.bind((WIRE, 3))
    sniffer.setblocking(False)
    return sniffer


def not_seen(sniffer: socket.socket) -> int:
    """How many packets found no room in the buffer of a packet socket since this was asked last (packet(7))."""
    return struct.unpack("II", sniffer.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))[1]


def what_passed(sniffer: socket.socket) -> dict[str, int]:
    """How many packets of each kind; neighbour discovery and the like left out."""
    kinds: dict[str, int] = {}
    while True:
        try:
            packet = sniffer.recv(256)
        except BlockingIOError:
            return kinds
        kind = kind_of(packet)
        if kind:
            kinds[kind] = kinds.get(kind, 0) + 1


def kind_of(packet: bytes) -> str:
    if packet[0] >> 4 == 4:
        protocol, rest = packet[9], packet[(packet[0] & 15) * 4 :]
    elif packet[0] >> 4 == 6:
        protocol, rest = packet[6], packet[40:]
        # multicast listener reports and neighbour discovery are the link's own
        if protocol in (0, 58) and (protocol == 0 or 130 <= rest[0] <= 143):
            return ""
    else:
        return ""  # ARP
    if protocol == 50 or (protocol == 17 and rest[:4] == b"\x11\x94\x11\x94" and rest[8:12] != bytes(4)):
        return "esp"
    return {1: "icmp4", 6: "tcp", 17: "udp", 58: "icmp6"}.get(protocol, f"protocol {protocol}")
