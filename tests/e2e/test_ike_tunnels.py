"""Tunnels that two daemons negotiate: how they come up, how they prove who they are, and what goes through."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.gateways import INNER, NETS, OUTER, WIRE, Gateway, eventually, finish
from tests.e2e.ike_gateways import IkeWorld, in_clear, loss, ports_of, sniffing, ups

pytestmark = pytest.mark.e2e


@pytest.fixture
def world(tmp_path: Path) -> Iterator[IkeWorld]:
    """Two gateways, not started yet."""
    with IkeWorld(tmp_path) as world:
        yield world


def test_psk_tunnel_and_its_end(world: IkeWorld) -> None:
    world.up()
    assert "3 received" in world.a.ping(INNER[4][1])
    assert "3 received" in world.b.ping(INNER[6][0])
    ping = world.a.popen("ping", "-n", "-q", "-i", "0.01", INNER[4][1])
    status, seconds = world.a.stop()
    finish(ping)
    assert (status, seconds < 2) == (0, True), world.logs()
    assert eventually(lambda: "closed by the peer" in world.b.log(), 3), world.b.log()
    assert world.a.leftovers() == ""
    status, _ = world.b.stop()
    assert status == 0
    for gateway in (world.a, world.b):
        assert "ERROR" not in gateway.log(), gateway.log()
        assert "Traceback" not in gateway.log()
        assert gateway.leftovers() == ""


def test_over_ipv6(world: IkeWorld) -> None:
    for side in (0, 1):
        world.set("@local_addrs", OUTER[6][side], side)
        world.set("@remote_addrs", OUTER[6][1 - side], side)
    world.up()
    assert "3 received" in world.a.ping(INNER[4][1])
    assert "3 received" in world.a.ping(INNER[6][1])


def test_the_first_packet_of_a_trap_is_not_lost(world: IkeWorld) -> None:
    world.set(":start_action", "trap")
    world.start()
    assert ups(world.a) == 0
    assert loss(world.a.ping(INNER[4][1], count=3)) == 0, world.logs()
    assert "site: traffic for net" in world.a.log()
    assert ups(world.a) == 1
    # the other end has its trap, too, and no need of it
    assert loss(world.b.ping(INNER[6][0])) == 0
    assert ups(world.b) == 1


def test_a_closed_tunnel_waits_for_traffic_again(world: IkeWorld) -> None:
    world.set(":start_action", "trap", 0)
    world.start()
    assert loss(world.a.ping(INNER[4][1])) == 0
    world.b.stop()
    assert eventually(lambda: "closed by the peer" in world.a.log())
    world.b.start()
    assert loss(world.a.ping(INNER[4][1])) == 0, world.logs()
    assert ups(world.a) == 2


def test_host_to_host(world: IkeWorld) -> None:
    world.set(":local_ts", "dynamic")
    world.set(":remote_ts", "dynamic")
    world.set("ipsecd.addresses", None)
    # echoes that wait for each other would be seen as one datagram
    world.set("ipsecd.offload.udp_gso", "no")
    world.up()
    with sniffing(world.a) as sniffer:
        assert loss(world.a.ping(OUTER[4][1], "-s", "1000")) == 0
        assert loss(world.b.ping(OUTER[4][0], "-s", "1000")) == 0
        packets = sniffer.packets()
    assert len(packets) >= 12
    assert all(packet[9] == 17 for packet in packets if packet[0] >> 4 == 4), "an echo went in clear"


def test_transport_mode(world: IkeWorld) -> None:
    world.set(":local_ts", "dynamic")
    world.set(":remote_ts", "dynamic")
    world.set(":mode", "transport")
    world.set("ipsecd.addresses", None)
    # echoes that wait for each other would be seen as one datagram
    world.set("ipsecd.offload.udp_gso", "no")
    world.up()
    with sniffing(world.a) as sniffer:
        assert loss(world.a.ping(OUTER[4][1], "-s", "1000")) == 0
        packets = sniffer.packets()
    lengths = {len(packet) for packet in packets if len(packet) > 1000}
    # IP, UDP, SPI and number, IV, ICMP, trailer, ICV; a tunnel would have another IP header
    assert lengths
    assert max(lengths) < 20 + 8 + 8 + 8 + 1008 + 4 + 16 + 1, lengths
    assert "TRANSPORT" in world.a.log().upper()


def test_ike_on_the_nat_port_alone(world: IkeWorld) -> None:
    world.set("ipsecd.port", "0")
    with sniffing(world.a) as sniffer:
        world.up()
        assert loss(world.a.ping(INNER[4][1])) == 0
        assert ports_of(sniffer.packets()) == {4500}
    assert ":500 " not in world.a.run("ss", "-Hlun").stdout


def test_raw_esp(world: IkeWorld) -> None:
    world.set("ipsecd.raw_esp", "yes")
    with sniffing(world.a) as sniffer:
        world.up()
        assert loss(world.a.ping(INNER[4][1])) == 0
        assert loss(world.b.ping(INNER[6][0])) == 0
        packets = sniffer.packets()
    assert 50 in {packet[9] for packet in packets if packet[0] >> 4 == 4}


def test_raw_esp_at_one_end_alone(world: IkeWorld) -> None:
    """The other one cannot, and says that there is a NAT."""
    world.set("ipsecd.raw_esp", "yes", 0)
    world.up()
    assert loss(world.a.ping(INNER[4][1])) == 0
    assert loss(world.b.ping(INNER[4][0])) == 0


def test_childless(world: IkeWorld) -> None:
    world.set("@childless", "force", 0)
    world.set("@childless", "allow", 1)
    world.up()
    assert loss(world.a.ping(INNER[4][1])) == 0


def test_several_children_share_an_ike_sa(world: IkeWorld) -> None:
    for side in (0, 1):
        children = world.conf[side]["connections"]["site"]["children"]
        children["net"] |= {"local_ts": NETS[4][side], "remote_ts": NETS[4][1 - side]}
        children["six"] = {**children["net"], "local_ts": NETS[6][side], "remote_ts": NETS[6][1 - side]}
        if not side:
            children["net"]["start_action"] = children["six"]["start_action"] = "start"
    world.start()
    world.wait_up(2)
    assert loss(world.a.ping(INNER[4][1])) == 0
    assert loss(world.a.ping(INNER[6][1])) == 0
    assert world.a.log().count("established between") == 1, world.a.log()


def test_narrowing(world: IkeWorld) -> None:
    world.set(":remote_ts", "10.0.0.0/8, fd00::/8", 0)
    world.up()
    assert "10.1.0.0/16 fd01::/16 === 10.2.0.0/16 fd02::/16" in world.a.log(), world.a.log()
    assert loss(world.a.ping(INNER[4][1])) == 0
    assert "10.2.0.0/16 dev ipsec0" in world.a.leftovers()
    # the rest of what was asked for goes nowhere
    assert "0 received" in world.a.ping("10.3.0.1", "-W", "0.3", check=False)


def test_shunts(world: IkeWorld) -> None:
    """Part of what is protected passes in clear, part of it nowhere."""
    for side in (0, 1):
        gateway = (world.a, world.b)[side]
        for number in (2, 3):
            gateway.run("ip", "addr", "add", f"10.{side + 1}.0.{number}/32", "dev", "lo")
        children = world.conf[side]["connections"]["site"]["children"]
        ends = {"local_ts": f"10.{side + 1}.0.2/32", "remote_ts": f"10.{2 - side}.0.2/32"}
        children["local"] = {**ends, "mode": "pass", "start_action": "trap"}
        if not side:
            # drop is for what nothing else is for, unless its priority says otherwise
            ends = {"local_ts": NETS[4][0], "remote_ts": "10.2.0.3/32"}
            children["never"] = {**ends, "mode": "drop", "start_action": "trap", "priority": "1"}
        # where what passes goes
        gateway.run("ip", "route", "add", f"10.{2 - side}.0.0/16", "via", OUTER[4][1 - side], "dev", WIRE)
    world.up()
    with sniffing(world.a) as sniffer:
        assert loss(world.a.ping(INNER[4][1], "-I", INNER[4][0])) == 0
        assert not in_clear(sniffer.packets())
        assert loss(world.a.ping("10.2.0.2", "-I", "10.1.0.2")) == 0, world.logs()
        assert in_clear(sniffer.packets())
        assert "0 received" in world.a.ping("10.2.0.3", "-I", INNER[4][0], "-W", "0.3", check=False)
        assert not in_clear(sniffer.packets())


def test_a_drop_of_everything(world: IkeWorld) -> None:
    """What no tunnel and no pass covers stays here; IKE and ESP do not. Nothing is left behind."""
    gateway = world.a
    gateway.run("ip", "addr", "add", "10.1.0.2/32", "dev", "lo")
    world.b.run("ip", "addr", "add", "10.9.0.1/32", "dev", "lo")
    world.b.run("ip", "addr", "add", "10.8.0.1/32", "dev", "lo")
    gateway.run("ip", "route", "add", "default", "via", OUTER[4][1], "dev", WIRE)
    children = world.conf[0]["connections"]["site"]["children"]
    children["nothing"] = {"remote_ts": "0.0.0.0/0, ::/0", "mode": "drop", "start_action": "trap"}
    children["some"] = {"remote_ts": "10.8.0.0/16", "mode": "pass", "start_action": "trap"}
    world.up()

    def answered(address: str) -> bool:
        return "1 received" in gateway.ping(address, "-W", "0.5", "-c", "1", check=False)

    with sniffing(gateway) as sniffer:
        assert not answered("10.9.0.1")
        assert not in_clear(sniffer.packets())
        assert loss(gateway.ping(INNER[4][1])) == 0, world.logs()
        assert not in_clear(sniffer.packets())
        assert answered("10.8.0.1")
    gateway.stop(signal.SIGKILL)
    # fail closed: only what passes does
    assert not answered("10.9.0.1")
    gateway.start()
    assert eventually(lambda: "default dev ipsec0" in gateway.leftovers()), gateway.leftovers()
    assert not answered("10.9.0.1")
    gateway.stop()
    assert "proto 205" not in gateway.leftovers()
    assert answered("10.9.0.1")


def test_nothing_leaves_in_clear(world: IkeWorld) -> None:
    """Before the tunnel is up, when the peer is dead, when we were killed."""
    world.set("ipsecd.fail_closed", "yes")
    world.set(":start_action", "start", 0)
    world.set("@dpd_delay", "1", 0)
    world.set("@keyingtries", "0", 0)
    world.set("ipsecd.retransmit_tries", "1", 0)
    world.write()
    # without us it would
    world.a.run("ip", "route", "add", "10.2.0.0/16", "via", OUTER[4][1], "dev", WIRE, "src", OUTER[4][0])
    world.a.run("ip", "route", "add", "fd02::/16", "via", OUTER[6][1], "dev", WIRE)

    def leaks() -> list[str]:
        with sniffing(world.a) as sniffer:
            world.a.ping(INNER[4][1], "-W", "0.1", "-c", "2", check=False)
            world.a.ping(INNER[6][1], "-W", "0.1", "-c", "2", check=False)
            return in_clear(sniffer.packets())

    # both families, so that nothing waits any more for its neighbour to be found
    assert eventually(lambda: any("fd02::1" in leak for leak in leaks()))
    world.a.start()
    assert not leaks()
    world.b.start()
    assert eventually(lambda: ups(world.a), 20), world.logs()
    assert loss(world.a.ping(INNER[4][1])) == 0
    world.b.stop(signal.SIGKILL)
    deadline = time.monotonic() + 13
    while "is lost" not in world.a.log():
        assert not leaks()
        assert time.monotonic() < deadline, world.a.log()
    assert not leaks()
    world.a.stop(signal.SIGKILL)
    assert not leaks()
    world.a.start()
    assert not leaks()
    world.a.stop()
    assert leaks(), "a clean stop ends it"


def test_rekeying_loses_nothing(world: IkeWorld) -> None:
    for key, value in (("rekey_time", "2s"), ("rand_time", "0"), ("life_time", "8s")):
        world.set(f":{key}", value)
    world.set("@rekey_time", "2s", 0)
    world.set("@rand_time", "0", 0)
    world.set("@over_time", "20s", 0)
    world.set("ipsecd.delete_rekeyed_delay", "1")
    world.up()
    flood = world.a.popen("ping", "-n", "-q", "-i", "0.002", "-c", "2400", "-W", "1", INNER[4][1])
    back = world.b.popen("ping", "-n", "-q", "-i", "0.01", "-c", "480", "-W", "1", INNER[6][0])
    output, _ = flood.communicate(timeout=20)
    assert loss(output) == 0, output + world.logs()
    output, _ = back.communicate(timeout=20)
    assert loss(output) == 0, output + world.logs()
    assert world.a.log().count("takes over") >= 2, world.a.log()
    assert ups(world.a) >= 3
    assert "WARNING" not in world.a.log(), world.a.log()


@pytest.mark.parametrize("before", ["yes", "no"])
def test_reauthentication(world: IkeWorld, before: str) -> None:
    world.set("ipsecd.make_before_break", before)
    world.set("@reauth_time", "1s", 0)
    world.set("@rand_time", "0", 0)
    world.set("@over_time", "20s", 0)
    world.up()
    flood = world.a.popen("ping", "-n", "-q", "-i", "0.01", "-c", "260", "-W", "1", INNER[4][1])
    output, _ = flood.communicate(timeout=20)
    assert world.a.log().count("established between") >= 2, world.logs()
    assert loss(output) <= (0 if before == "yes" else 60), output + world.logs()

    def there() -> bool:
        done = world.b.run("ping", "-n", "-c", "1", "-W", "1", INNER[6][0], check=False)
        return done.returncode == 0

    # without make_before_break it may just be gone, once a second
    assert there() if before == "yes" else eventually(there), world.logs()


def addresses_of(gateway: Gateway) -> set[str]:
    return set(gateway.run("ip", "-br", "addr", "show", "dev", "ipsec0").stdout.split())


def test_what_somebody_removes_is_put_back(world: IkeWorld) -> None:
    """systemd-networkd does so when it starts again, and people flush tables."""
    world.up()
    before = world.a.leftovers()
    for family in ("-4", "-6"):
        for harm in (["route", "flush", "table", "220"], ["rule", "del", "lookup", "220"], ["addr", "flush", "ipsec0"]):
            world.a.run("ip", family, *harm)
            # which is told once in a while, and mended every time
            assert eventually(lambda: world.a.leftovers() == before), f"{harm}: {world.a.leftovers()}\n{before}"
            assert eventually(lambda: {INNER[4][0] + "/32", INNER[6][0] + "/128"} <= addresses_of(world.a)), harm
            for version in (4, 6):
                assert loss(world.a.ping(INNER[version][1])) == 0, world.logs()
    assert world.a.log().count("somebody else has removed routes or rules of ours") in (1, 2), world.a.log()
    assert world.a.stop()[0] == 0
    assert world.a.leftovers() == ""
