"""Certificates, virtual addresses, a NAT in between, and gateways that move."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.gateways import INNER, NETS, OUTER, WIRE, eventually
from tests.e2e.ike_gateways import NAMES, IkeWorld, launch, loss, make_certificates, ports_of, sniffing, ups
from tests.e2e.nat import HOME, NAT, move, nat

pytestmark = pytest.mark.e2e

#: from inside to outside, both ports each through one of its own; a line that comes in changes them
RELAY = """
import select, socket, sys
near, far, peer = sys.argv[1:]
def bound(address, port):
    sock = socket.socket(type=socket.SOCK_DGRAM)
    sock.bind((address, port))
    return sock
inside = {port: bound(near, port) for port in (500, 4500)}
outside = {port: bound(far, port + 1000) for port in inside}
clients = {}
print('ready', flush=True)
while True:
    for ready in select.select([*inside.values(), *outside.values(), sys.stdin], [], [])[0]:
        if ready is sys.stdin:
            if not sys.stdin.readline():
                sys.exit()
            for port, sock in outside.items():
                sock.close()
            outside = {port: bound(far, port + 2000) for port in inside}
            print('moved', flush=True)
            break
        for port in inside:
            if ready is inside[port]:
                data, clients[port] = ready.recvfrom(65535)
                outside[port].sendto(data, (peer, port))
            elif ready is outside[port] and port in clients:
                inside[port].sendto(ready.recv(65535), clients[port])
"""


@pytest.fixture
def world(tmp_path: Path) -> Iterator[IkeWorld]:
    """Two gateways, not started yet."""
    with IkeWorld(tmp_path) as world:
        yield world


# -- certificates


def with_certificates(world: IkeWorld, directory: Path, kind: str) -> None:
    make_certificates(directory, kind)
    for side in (0, 1):
        world.set("@local", {"auth": "pubkey", "certs": f"gw{side}.pem", "id": NAMES[side]}, side)
        world.set("@remote", {"auth": "pubkey", "id": NAMES[1 - side]}, side)
    world.set("secrets", {})


@pytest.mark.parametrize("kind", ["rsa", "ecdsa", "ed25519"])
def test_certificates(world: IkeWorld, tmp_path: Path, kind: str) -> None:
    with_certificates(world, tmp_path, kind)
    world.up()
    assert loss(world.a.ping(INNER[4][1])) == 0
    assert "WARNING" not in world.a.log() + world.b.log(), world.logs()


def test_a_certificate_of_somebody_else(world: IkeWorld, tmp_path: Path) -> None:
    with_certificates(world, tmp_path, "ecdsa")
    world.set(":start_action", "start", 0)
    world.write()
    launch(world.b)
    # a has another CA now, and b still the one before
    make_certificates(tmp_path, "ecdsa")
    launch(world.a)
    assert eventually(lambda: "trying net again in" in world.a.log()), world.logs()
    assert "AUTHENTICATION_FAILED" in world.a.log()
    assert "CN=a.example.org" in world.b.log(), world.b.log()


def test_unreadable_key(world: IkeWorld, tmp_path: Path) -> None:
    with_certificates(world, tmp_path, "ecdsa")
    (tmp_path / "private" / "gw0.pem").write_text("-----BEGIN NONSENSE-----\n")
    world.write()
    launch(world.a)
    assert world.a.process is not None
    assert world.a.process.wait(10) == 3, world.a.log()
    world.a.process = None
    assert "private/gw0.pem" in world.a.log(), world.a.log()
    assert "Traceback" not in world.a.log()


# -- virtual addresses


def test_virtual_addresses_come_and_go(world: IkeWorld) -> None:
    world.set("ipsecd.addresses", None, 0)
    world.set("@vips", "0.0.0.0, ::", 0)
    world.set("@pools", "four, six", 1)
    world.set("pools", {"four": {"addrs": "10.1.9.0/24"}, "six": {"addrs": "fd01:9::/64"}}, 1)
    world.set(":local_ts", "dynamic", 0)
    world.set(":remote_ts", "dynamic", 1)
    world.up()
    assert "a.example.org gets 10.1.9.1, fd01:9::" in world.b.log(), world.b.log()

    def addresses() -> str:
        return world.a.run("ip", "addr", "show", "dev", "ipsec0").stdout

    assert eventually(lambda: "10.1.9.1/32" in addresses() and "fd01:9::" in addresses()), addresses()
    assert eventually(lambda: "10.2.0.0/16 dev ipsec0 table 220 proto 205 src 10.1.9.1" in world.a.leftovers())
    assert eventually(lambda: "src fd01:9::" in world.a.leftovers()), world.a.leftovers()
    assert "10.1.9.1 dev ipsec0" in world.b.leftovers()
    assert loss(world.a.ping(INNER[4][1])) == 0
    assert loss(world.a.ping(INNER[6][1])) == 0
    assert loss(world.b.ping("10.1.9.1")) == 0
    world.b.stop()
    assert eventually(lambda: "10.1.9.1" not in addresses()), addresses()
    assert "fd01:9::" not in addresses()
    assert eventually(lambda: "10.1.9.1" not in world.a.leftovers()), world.a.leftovers()
    # fail closed: somebody else's address does not get there either
    assert "unreachable 10.2.0.0/16" in world.a.leftovers()


@pytest.mark.parametrize("before", ["yes", "no"])
def test_reauthentication_keeps_the_virtual_address(world: IkeWorld, before: str) -> None:
    world.set("ipsecd.make_before_break", before)
    world.set("ipsecd.addresses", None, 0)
    world.set("@vips", "0.0.0.0", 0)
    world.set("@pools", "four", 1)
    world.set("pools", {"four": {"addrs": "10.1.9.0/24"}}, 1)
    world.set(":local_ts", "dynamic", 0)
    world.set(":remote_ts", "dynamic", 1)
    world.set("@reauth_time", "1s", 0)
    world.set("@rand_time", "0", 0)
    world.set("@over_time", "20s", 0)
    world.up()
    assert eventually(lambda: "src 10.1.9.1" in world.a.leftovers()), world.a.leftovers()
    flood = world.a.popen("ping", "-n", "-q", "-I", "10.1.9.1", "-i", "0.01", "-c", "260", "-W", "1", INNER[4][1])
    output, _ = flood.communicate(timeout=20)
    assert world.a.log().count("our virtual addresses are 10.1.9.1") >= 3, world.logs()
    assert "10.1.9.2" not in world.a.log(), world.logs()
    assert loss(output) <= (0 if before == "yes" else 60), output + world.logs()


def test_everything_through_the_tunnel(world: IkeWorld) -> None:
    """A road warrior: a trap for the whole world, its gateway included."""
    world.set("ipsecd.addresses", None, 0)
    world.set("@vips", "0.0.0.0", 0)
    world.set("@pools", "four", 1)
    world.set("pools", {"four": {"addrs": "10.1.9.0/24"}}, 1)
    world.set(":local_ts", "dynamic", 0)
    world.set(":remote_ts", "0.0.0.0/0", 0)
    world.set(":remote_ts", "dynamic", 1)
    world.set(":local_ts", "0.0.0.0/0", 1)
    world.up()
    assert eventually(lambda: "src 10.1.9.1" in world.a.leftovers()), world.a.leftovers()
    assert loss(world.a.ping(INNER[4][1])) == 0, world.logs()


# -- a NAT


@pytest.mark.parametrize("mobike", ["yes", "no"])
def test_behind_a_nat(world: IkeWorld, mobike: str) -> None:
    """ESP and IKE through a NAT, which takes another port in between; nobody forces UDP on either end."""
    world.set("ipsecd.raw_esp", "yes")
    world.set("@mobike", mobike)
    world.set("@local_addrs", HOME[0], 0)
    world.set("@remote_addrs", NAT[0], 0)
    world.set("@local_addrs", HOME[1], 1)
    world.set("@remote_addrs", "%any", 1)
    world.set("@dpd_delay", "1", 0)
    with nat(world, RELAY) as relay, sniffing(world.b, "nat1") as sniffer:
        world.up()
        assert loss(world.a.ping(INNER[4][1])) == 0, world.logs()
        assert loss(world.b.ping(INNER[6][0])) == 0
        assert ports_of(sniffer.packets()) == {500, 1500, 4500, 5500}
        move(relay)
        assert eventually(lambda: "6 received" in world.a.ping(INNER[4][1], count=6, check=False)), world.logs()
        assert eventually(lambda: "[6500]" in world.b.log()), world.logs()
        # an exchange of the new way, too
        world.a.stop()
        assert eventually(lambda: "closed by the peer" in world.b.log(), 3), world.logs()


# -- other addresses


def readdress(world: IkeWorld, side: int, old: str, new: str) -> None:
    gateway = (world.a, world.b)[side]
    gateway.run("ip", "addr", "del", f"{old}/24", "dev", WIRE)
    gateway.run("ip", "addr", "add", f"{new}/24", "dev", WIRE)


@pytest.mark.parametrize("mobike", ["yes", "no"])
def test_the_initiator_moves(world: IkeWorld, mobike: str) -> None:
    world.set("@mobike", mobike)
    world.set("@local_addrs", "%any", 0)
    world.set("@remote_addrs", "%any", 1)
    world.up()
    assert loss(world.a.ping(INNER[4][1])) == 0
    readdress(world, 0, OUTER[4][0], "192.0.2.77")
    assert eventually(lambda: "our address changes from 192.0.2.1 to 192.0.2.77" in world.a.log()), world.a.log()
    with sniffing(world.a) as sniffer:
        assert eventually(lambda: "3 received" in world.a.ping(INNER[4][1], "-W", "0.5", check=False)), world.logs()
        assert loss(world.b.ping(INNER[6][0])) == 0
        assert all(bytes((192, 0, 2, 1)) not in packet[12:20] for packet in sniffer.packets() if packet[0] >> 4 == 4)
    assert ups(world.a) == 1
    if mobike == "yes":
        assert "the peer moved to" in world.b.log(), world.b.log()


def test_the_initiator_is_away_for_a_while(world: IkeWorld) -> None:
    """No address at all, a request under way, and then another address."""
    world.set("@local_addrs", "%any", 0)
    world.set("@remote_addrs", "%any", 1)
    world.set("@dpd_delay", "1", 0)
    world.set("ipsecd.retransmit_tries", "9")
    world.up()
    world.a.run("ip", "addr", "del", f"{OUTER[4][0]}/24", "dev", WIRE)
    assert eventually(lambda: "no answer yet" in world.a.log()), world.a.log()
    world.a.run("ip", "addr", "add", "192.0.2.78/24", "dev", WIRE)
    assert eventually(lambda: "3 received" in world.a.ping(INNER[4][1], "-W", "0.3", check=False), 15), world.logs()
    assert ups(world.a) == 1, world.logs()


def test_the_responder_keeps_what_the_peer_chose(world: IkeWorld) -> None:
    """Another address that the kernel prefers is no reason to move."""
    world.b.run("ip", "addr", "add", "192.0.2.50/24", "dev", WIRE)
    world.set("@remote_addrs", "192.0.2.50", 0)
    world.set("@local_addrs", "%any", 1)
    world.up()
    world.b.run("ip", "addr", "add", "192.0.2.60/24", "dev", WIRE)
    assert loss(world.a.ping(INNER[4][1])) == 0
    assert "our address changes" not in world.b.log()


def test_pool_without_a_network_for_the_client(world: IkeWorld) -> None:
    """A client that asks for no address gets none, and its selector is its own address."""
    world.set("@pools", "four", 1)
    world.set("pools", {"four": {"addrs": "10.1.9.0/30"}}, 1)
    world.set("ipsecd.addresses", None, 0)
    world.set(":local_ts", "dynamic", 0)
    world.set(":remote_ts", "dynamic", 1)
    world.set(":local_ts", NETS[4][1], 1)
    world.set(":remote_ts", NETS[4][1], 0)
    world.up()
    assert f"{OUTER[4][0]}/32 === 10.2.0.0/16" in world.a.log(), world.a.log()
    assert loss(world.a.ping(INNER[4][1])) == 0
