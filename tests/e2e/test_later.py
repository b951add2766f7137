"""What is loaded into a daemon that was started without it: by vici, or by a file that is read again."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ipsec.net import netns
from ipsec.net.marks import default_mark
from tests.e2e.gateways import COMMAND, INNER, NETS, OUTER, Gateway, eventually
from tests.e2e.ike_gateways import IkeWorld, in_clear, loss, sniffing, ups, written
from tests.e2e.test_ike_operation import hang_up
from tests.e2e.test_prepared import prepare, start_without
from tests.e2e.test_why import ctl, socket_of

pytestmark = pytest.mark.e2e

#: what a container has that may do everything but open raw sockets
NO_RAW = ("setpriv", "--bounding-set=-net_raw", "--inh-caps=-net_raw", "--ambient-caps=-net_raw")
#: packets around the tunnel, without a peer
PASS = {"local_ts": NETS[4][0], "remote_ts": f"{NETS[4][1]}[icmp]", "mode": "pass", "start_action": "trap"}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[IkeWorld]:
    """Two gateways, not started yet, the first of which can be told by vici."""
    with IkeWorld(tmp_path) as world:
        world.set("ipsecd.vici_socket", str(socket_of(world.a)), 0)
        yield world


def start_empty(world: IkeWorld) -> dict[str, Any]:
    """Start both, a without any connection; what it would have had."""
    later: dict[str, Any] = {name: world.conf[0].pop(name) for name in ("connections", "secrets")}
    world.start()
    return later


def load(gateway: Gateway, what: dict[str, Any], *, check: bool = True) -> str:
    """By vici; what ipsecctl says."""
    file = gateway.directory / "later.conf"
    file.touch(mode=0o600)
    file.write_text(written(what))
    done = gateway.run(*ctl(gateway, "load", str(file)), check=check)
    return done.stdout + done.stderr


def with_pass(what: dict[str, Any]) -> dict[str, Any]:
    """The same, and a connection that has no peer."""
    anybody = {"auth": "psk"}
    shunt = {"local": anybody, "remote": anybody, "children": {"around": dict(PASS)}}
    return {**what, "connections": {**what["connections"], "shunts": shunt}}


@pytest.mark.parametrize("how", ["vici", "file"])
@pytest.mark.parametrize("workers", ["0", "2"])
def test_host_to_host(world: IkeWorld, how: str, workers: str) -> None:
    """Nothing but the peer is protected, and our own packets go there as well."""
    world.set("ipsecd.workers", workers, 0)
    for key in (":local_ts", ":remote_ts"):
        world.set(key, "dynamic")
    world.set(":start_action", "start", 0)
    later = start_empty(world)
    if how == "vici":
        load(world.a, later)
    else:
        world.conf[0].update(later)
        world.write()
        hang_up(world.a, "reloaded")
    world.wait_up()
    with sniffing(world.a) as wire:
        assert loss(world.a.ping(OUTER[4][1])) == 0
        assert loss(world.b.ping(OUTER[4][0])) == 0
        assert not any(packet[9] == socket.IPPROTO_ICMP for packet in wire.packets() if packet[0] >> 4 == 4)
    assert "not from all fwmark" in world.a.leftovers()


def test_a_mark_of_others_means_nothing(world: IkeWorld) -> None:
    """Nothing here needs a mark; what bears one that people choose goes into the tunnel like the rest."""
    world.set(":start_action", "start", 0)
    world.start()
    world.wait_up()
    with sniffing(world.a) as wire:
        assert loss(world.a.ping(INNER[4][1], "-m", "220")) == 0
        assert in_clear(wire.packets()) == []


def test_a_rule_of_others_for_our_mark(world: IkeWorld) -> None:
    """Another one is taken: what they have in mind is not for IKE and ESP."""
    world.set(":start_action", "start", 0)
    usual = f"{default_mark(220):#x}"
    world.a.run("ip", "rule", "add", "fwmark", usual, "prohibit", "priority", "100")
    world.start()
    world.wait_up()
    assert loss(world.a.ping(INNER[4][1])) == 0
    assert f"there is a routing rule for mark {usual}" in world.a.log()
    assert f"not from all fwmark {usual}" not in world.a.leftovers()


def test_everything(world: IkeWorld) -> None:
    """The guard that is there before the tunnel keeps our own IKE in, if nothing tells that from the rest."""
    world.set(":remote_ts", "0.0.0.0/0", 0)
    world.set(":local_ts", "0.0.0.0/0", 1)
    world.set(":start_action", "start", 0)
    later = start_empty(world)
    world.conf[0].update(later)
    world.write()
    hang_up(world.a, "reloaded")
    world.wait_up()
    with sniffing(world.a) as wire:
        assert loss(world.a.ping(INNER[4][1])) == 0
        assert in_clear(wire.packets()) == []


def test_around_the_tunnel(world: IkeWorld) -> None:
    for gateway in (world.a, world.b):
        theirs = 1 - gateway.side
        gateway.run("ip", "route", "add", NETS[4][theirs], "via", OUTER[4][theirs])
    world.set(":start_action", "start", 0)
    later = start_empty(world)
    load(world.a, with_pass(later))
    world.wait_up()
    with sniffing(world.a) as wire:
        world.a.ping(INNER[4][1], "-I", INNER[4][0], check=False)
        assert any(f"{INNER[4][0]} -> {INNER[4][1]}" in line for line in in_clear(wire.packets()))


def test_dropped(world: IkeWorld) -> None:
    anybody = {"auth": "psk"}
    drop = {"local_ts": "0.0.0.0/0", "remote_ts": OUTER[4][1], "mode": "drop", "start_action": "trap"}
    world.set(":start_action", "start", 0)
    later = start_empty(world)
    later["connections"]["shunts"] = {"local": anybody, "remote": anybody, "children": {"it": drop}}
    load(world.a, later)
    world.wait_up()
    assert "bear no mark" not in world.a.log()
    assert loss(world.a.ping(INNER[4][1])) == 0


def test_what_needs_a_raw_socket_is_refused_without_the_right_to_one(world: IkeWorld) -> None:
    """By vici and in a file; what is there goes on. ``--check`` says so before."""
    world.set(":start_action", "start", 0)
    world.write()
    world.b.start()
    start_without(world.a, NO_RAW)
    world.wait_up()
    shunts = with_pass({name: world.conf[0][name] for name in ("connections", "secrets")})
    said = load(world.a, shunts, check=False)
    assert "mode = pass needs a raw socket: grant CAP_NET_RAW" in said, said
    assert "site" in world.a.run(*ctl(world.a, "list", "conns")).stdout
    world.conf[0]["connections"] = shunts["connections"]
    world.write()
    hang_up(world.a, "not reloaded")
    assert "connections.shunts.children.around: mode = pass needs a raw socket: grant CAP_NET_RAW" in world.a.log()
    assert ups(world.a) == 1
    assert loss(world.a.ping(INNER[4][1])) == 0
    del world.conf[0]["connections"]["shunts"]
    world.write()
    world.a.stop()
    done = world.a.run(*NO_RAW, *COMMAND, "--config", str(world.a.config), "--check", check=False)
    assert "hint     raw sockets (CAP_NET_RAW)" in done.stdout, done.stdout


def test_prepared(world: IkeWorld) -> None:
    """Whole networks are passed by routes; for ports there is no way."""
    world.set(":start_action", "start", 0)
    world.conf[0]["connections"] = with_pass(world.conf[0])["connections"]
    world.write()
    assert prepare(world.a, "--owner", "0", "--sysctl").returncode == 0
    world.b.start()
    start_without(world.a, ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all"))
    assert "connections.shunts.children.around: mode = pass for some ports" in world.a.log(), "it starts nevertheless"
    world.wait_up()
    assert loss(world.a.ping(INNER[4][1], check=False)) == 3
    # what was there is no reason to refuse a reload, and networks are none
    network = {"shunts": with_pass({"connections": {}})["connections"]["shunts"]}
    network["shunts"]["children"]["around"] |= {"remote_ts": "10.77.0.0/16"}
    load(world.a, {"connections": network | {"site": world.conf[0]["connections"]["site"]}})
    hang_up(world.a, "reloaded")
    world.conf[0]["connections"]["shunts"]["children"]["around"]["remote_ts"] = f"{NETS[4][1]}[tcp]"
    world.write()
    hang_up(world.a, "not reloaded")


# -- a daemon for manual SAs alone


def manual(world: IkeWorld) -> dict[str, Any]:
    """a has a manual SA in place of connections, and no vici; what it would have had."""
    later = {name: world.conf[0].pop(name) for name in ("connections", "secrets")}
    keys = {f"integ_key_{way}": f"0x{octet * 32}" for way, octet in (("in", "11"), ("out", "22"))}
    numbers = {"spi_in": "0x1001", "spi_out": "0x1002"}
    ends = {"local": OUTER[4][0], "remote": "192.0.2.99", "local_ts": NETS[4][0], "remote_ts": "10.9.0.0/16"}
    world.conf[0]["sas"] = {"m": {**ends, **numbers, **keys, "esp_proposals": "null-sha256"}}
    world.set("ipsecd.vici_socket", "none", 0)
    return later


@pytest.mark.parametrize("begins", [0, 1])
def test_connections_beside_manual_sas(world: IkeWorld, begins: int) -> None:
    later = manual(world)
    if begins:
        world.set(":start_action", "start", 1)
        world.write()
        world.a.start()
    else:
        later["connections"]["site"]["children"]["net"]["start_action"] = "start"
        world.start()
    sockets = world.a.run("ss", "-Huln", "sport = 500").stdout
    assert not sockets
    world.conf[0].update(later)
    world.write()
    hang_up(world.a, "reloaded")
    assert ":500" in world.a.run("ss", "-Huln", "sport = 500").stdout
    if begins:
        world.b.start()
    world.wait_up()
    assert loss(world.a.ping(INNER[4][1])) == 0
    assert "10.9.0.0/16" in world.a.leftovers()
    assert world.a.stop()[0] == 0


def test_a_reload_is_refused_where_ike_has_no_port(world: IkeWorld) -> None:
    later = manual(world)
    later["connections"]["site"]["children"]["net"]["start_action"] = "start"
    world.start()
    world.conf[0].update(later)
    world.write()
    with netns.inside(world.a.namespace):
        holder = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    with holder:
        holder.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        holder.bind(("::", 500))
        hang_up(world.a, "not reloaded")
        assert "cannot begin" in world.a.log()
        assert "port 500" in world.a.log()
        assert not world.a.run("ss", "-Huln4", "sport = 500").stdout, "none of one family alone"
        assert "10.9.0.0/16" in world.a.leftovers()
    hang_up(world.a, "reloaded")
    world.wait_up()
    assert eventually(lambda: loss(world.a.ping(INNER[4][1])) == 0)
