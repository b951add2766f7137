"""The daemon as the one who runs it sees it: peers that die, reloads, stops, and what the log says when it fails."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipsec.net import netns
from ipsec.vici.client import connect
from tests.e2e.gateways import COMMAND, INNER, NETS, OUTER, WIRE, Gateway, eventually, finish
from tests.e2e.ike_gateways import IkeWorld, launch, loss, ups

pytestmark = pytest.mark.e2e


@pytest.fixture
def world(tmp_path: Path) -> Iterator[IkeWorld]:
    """Two gateways, not started yet."""
    with IkeWorld(tmp_path) as world:
        yield world


def hang_up(gateway: Gateway, what: str) -> None:
    """SIGHUP, and wait until the log says so."""
    assert gateway.process is not None
    before = gateway.log().count(what)
    gateway.process.send_signal(signal.SIGHUP)
    assert eventually(lambda: gateway.log().count(what) > before), gateway.log()


# -- the peer dies, or we do


def test_dead_peer_is_noticed_and_comes_back(world: IkeWorld) -> None:
    world.set("@dpd_delay", "1")
    world.set(":dpd_action", "start", 0)
    world.set("@keyingtries", "0", 0)
    world.set("ipsecd.retransmit_tries", "2")
    world.up()
    world.b.stop(signal.SIGKILL)
    assert eventually(lambda: "is lost" in world.a.log()), world.a.log()
    assert eventually(lambda: world.a.log().count("connecting to") == 2), world.a.log()
    world.b.start()
    assert eventually(lambda: ups(world.a) == 2), world.logs()
    assert loss(world.a.ping(INNER[4][1])) == 0
    assert "10.2.0.0/16 dev ipsec0" in world.a.leftovers()


def test_a_killed_peer_tells_when_it_is_back(world: IkeWorld) -> None:
    """RFC 6290: nobody waits for liveness checks to fail."""
    world.set(":dpd_action", "start", 0)
    world.up()
    world.b.stop(signal.SIGKILL)
    world.b.start()
    world.set("@dpd_delay", None)
    # something has to be said for the peer to answer that it does not know us
    world.conf[0]["connections"]["site"]["children"]["more"] = {"start_action": "start", "remote_ts": "10.9.0.0/16"}
    world.write()
    hang_up(world.a, "reloaded")
    assert eventually(lambda: ups(world.b) >= 1), world.logs()
    assert loss(world.a.ping(INNER[4][1])) == 0, world.logs()


def test_killed_and_started_again(world: IkeWorld) -> None:
    world.set("@vips", "0.0.0.0", 0)
    world.set("@pools", "inside", 1)
    world.set("pools.inside.addrs", "10.1.9.0/24", 1)
    world.set(":local_ts", "dynamic", 0)
    world.set(":remote_ts", "dynamic", 1)
    world.set("ipsecd.addresses", None, 0)
    world.up()
    assert eventually(lambda: "10.1.9.1/32" in world.a.run("ip", "addr", "show", "dev", "ipsec0").stdout)
    world.a.stop(signal.SIGKILL)
    launch(world.a)
    assert eventually(lambda: ups(world.b) == 2), world.logs()
    assert "INITIAL_CONTACT" in world.b.log()
    assert eventually(lambda: "src 10.1.9.1" in world.a.leftovers()), world.a.leftovers()
    assert loss(world.a.ping(INNER[4][1])) == 0, world.logs()
    assert world.b.leftovers().count("10.1.9.1 dev ipsec0") == 1, world.b.leftovers()
    world.a.stop()
    assert world.a.leftovers() == ""
    assert eventually(lambda: "closed by the peer" in world.b.log())
    assert eventually(lambda: "dev ipsec0" not in world.b.leftovers()), world.b.leftovers()
    world.b.stop()
    assert world.b.leftovers() == ""


@pytest.mark.parametrize("state", ["established", "connecting"])
def test_stop_is_quick_with_a_dead_peer(world: IkeWorld, state: str) -> None:
    if state == "established":
        world.up()
        world.b.stop(signal.SIGKILL)
    else:
        world.set(":start_action", "start", 0)
        world.write()
        world.a.start()
    status, seconds = world.a.stop()
    assert status == 0, world.a.log()
    assert seconds < 5
    assert world.a.leftovers() == ""
    assert "ERROR" not in world.a.log(), world.a.log()


def test_whoever_hears_that_it_is_up_may_send_at_once(world: IkeWorld, tmp_path: Path) -> None:
    """``swanctl --initiate`` and a command behind it: the routes are there."""
    path = str(tmp_path / "vici")
    world.set("ipsecd.vici_socket", path, 0)
    world.start()

    async def main() -> str:
        async with await connect(path) as session:
            await session.request("initiate", {"child": "net"})
        return world.a.run("ip", "route", "get", INNER[4][1], check=False).stdout

    assert "dev ipsec0" in asyncio.run(main()), world.logs()


# -- reload


def test_reload_touches_what_changed_alone(world: IkeWorld, tmp_path: Path) -> None:
    second = {"local_ts": "10.1.0.1/32", "remote_ts": "10.2.0.1/32", "esp_proposals": "aes256gcm16"}
    for side in (0, 1):
        connections = world.conf[side]["connections"]
        connections["site"]["children"]["net"] |= {"local_ts": NETS[6][side], "remote_ts": NETS[6][1 - side]}
        connections["other"] = {**connections["site"], "children": {"four": dict(second)}}
        if side:
            connections["other"]["children"]["four"] |= {"local_ts": "10.2.0.1/32", "remote_ts": "10.1.0.1/32"}
        else:
            connections["other"]["children"]["four"]["start_action"] = "start"
        for name, suffix in (("site", "s"), ("other", "o")):
            for end, number in (("local", side), ("remote", 1 - side)):
                connections[name][end] = {"auth": "psk", "id": f"{suffix}{number}.example.org"}
    world.set("secrets", {"ike-any": {"secret": "one for all of them"}})
    world.set(":start_action", "start", 0)
    world.start()
    world.wait_up(2)
    answers = tmp_path / "answers"
    flood = world.a.popen("sh", "-c", f"exec ping -n -i 0.01 {INNER[6][1]} >{answers}")
    assert loss(world.a.ping(INNER[4][1])) == 0
    # nothing changed
    hang_up(world.a, "reloaded")
    assert "changed" not in world.a.log()
    # one changed
    world.conf[0]["connections"]["other"]["children"]["four"]["esp_proposals"] = "aes256gcm16-aes128gcm16"
    world.conf[0]["connections"]["other"]["children"]["four"]["rekey_time"] = "30m"
    world.write()
    hang_up(world.a, "reloaded")
    assert eventually(lambda: ups(world.a) == 3), world.logs()
    assert "connection other changed" in world.a.log()
    assert loss(world.a.ping(INNER[4][1])) == 0
    # one is broken: all goes on
    text = world.a.config.read_text()
    world.a.config.write_text(text.replace("rekey_time = 30m", "rekey_time = soon"))
    line = text.splitlines().index("rekey_time = 30m") + 1
    hang_up(world.a, "not reloaded")
    assert f"{world.a.config}:{line}: " in world.a.log()
    assert loss(world.a.ping(INNER[4][1])) == 0
    # one is removed
    del world.conf[0]["connections"]["other"]
    world.write()
    hang_up(world.a, "connection other was removed")
    assert eventually(lambda: world.b.log().count("closed by the peer") == 2), world.b.log()
    assert eventually(lambda: "10.2.0.1" not in world.a.leftovers()), world.a.leftovers()
    assert loss(world.a.ping(INNER[6][1])) == 0
    flood.send_signal(signal.SIGINT)
    flood.communicate(timeout=10)
    # what was sent last may be on its way yet
    came = [int(number) for number in re.findall(r"icmp_seq=(\d+)", answers.read_text())]
    assert came == list(range(1, len(came) + 1)), answers.read_text()
    assert len(came) > 20
    assert world.a.log().count("CHILD_SA net") == 1, world.a.log()


def test_reload_of_a_first_connection(world: IkeWorld) -> None:
    connections = world.conf[0].pop("connections")
    world.start()
    world.conf[0]["connections"] = connections
    world.set(":start_action", "start", 0)
    world.write()
    hang_up(world.a, "reloaded")
    world.wait_up()
    assert loss(world.a.ping(INNER[4][1])) == 0


def test_a_changed_secret_is_used_for_the_next_attempt(world: IkeWorld) -> None:
    world.set("secrets.ike-1.secret", "not the same at all", 1)
    world.set(":start_action", "trap", 0)
    world.start()
    world.a.ping(INNER[4][1], "-W", "0.2", check=False)
    assert eventually(lambda: "AUTHENTICATION_FAILED" in world.a.log()), world.logs()
    world.set("secrets.ike-1.secret", world.conf[0]["secrets"]["ike-1"]["secret"], 1)
    world.write()
    hang_up(world.b, "reloaded")
    assert loss(world.a.ping(INNER[4][1])) == 0, world.logs()


# -- what the log says


def test_wrong_secret(world: IkeWorld) -> None:
    world.set("secrets.ike-1.secret", "not the same at all", 1)
    world.set(":start_action", "start", 0)
    world.start()
    assert eventually(lambda: "trying net again in" in world.a.log()), world.logs()
    assert "AUTHENTICATION_FAILED" in world.a.log()
    assert "a.example.org" in world.b.log(), world.b.log()
    assert "pre-shared key" in world.b.log() or "preshared key" in world.b.log(), world.b.log()
    for gateway in (world.a, world.b):
        assert "not the same at all" not in gateway.log()
        assert "battery" not in gateway.log()


def test_wrong_proposal(world: IkeWorld) -> None:
    world.set("@proposals", "aes256gcm16-prfsha384-ecp384", 1)
    world.set(":start_action", "start", 0)
    world.start()
    assert eventually(lambda: "trying net again in" in world.a.log()), world.logs()
    assert "NO_PROPOSAL_CHOSEN" in world.a.log()
    for text in ("NO_PROPOSAL_CHOSEN for site", "AES_GCM_16_256", "AES_GCM_16_128"):
        assert text in world.b.log(), world.b.log()


def test_wrong_esp_proposal(world: IkeWorld) -> None:
    world.set(":esp_proposals", "aes256gcm16", 1)
    world.set(":start_action", "start", 0)
    world.start()
    assert eventually(lambda: "trying net again in" in world.a.log()), world.logs()
    for gateway in (world.a, world.b):
        assert "AES_GCM_16_128" in gateway.log(), gateway.log()
    assert "AES_GCM_16_256" in world.b.log(), world.b.log()


def test_wrong_selectors(world: IkeWorld) -> None:
    world.set(":remote_ts", "10.77.0.0/16", 1)
    world.set(":start_action", "start", 0)
    world.start()
    assert eventually(lambda: "trying net again in" in world.a.log()), world.logs()
    assert "TS_UNACCEPTABLE" in world.a.log()
    assert "10.1.0.0/16" in world.b.log(), world.b.log()
    assert "10.77.0.0/16" in world.b.log(), world.b.log()


def test_unknown_peer(world: IkeWorld) -> None:
    world.set("@remote.id", "c.example.org", 1)
    world.set(":start_action", "start", 0)
    world.start()
    assert eventually(lambda: "trying net again in" in world.a.log()), world.logs()
    assert "a.example.org" in world.b.log(), world.b.log()
    assert "c.example.org" in world.b.log(), world.b.log()


def test_nobody_there(world: IkeWorld) -> None:
    """No answer, no route, no such name: each says what it is, and goes on trying."""
    world.set("ipsecd.retransmit_tries", "1", 0)
    site = world.conf[0]["connections"]["site"]
    site["children"]["net"]["start_action"] = "start"
    net = {"net": {**site["children"]["net"], "remote_ts": "10.5.0.0/16"}}
    world.conf[0]["connections"]["far"] = {
        **site,
        "remote_addrs": "203.0.113.9",
        "local_addrs": "%any",
        "children": net,
    }
    world.conf[0]["connections"]["name"] = {
        **site,
        "remote_addrs": "gw.invalid",
        "local_addrs": "%any",
        "children": net,
    }
    world.write()
    world.a.start()
    assert eventually(lambda: world.a.log().count("trying net again in 10 s") == 3), world.a.log()
    # one line for what went wrong, one for what comes next
    (line,) = [line for line in world.a.log().splitlines() if " WARNING " in line and "site[1]" in line]
    assert line.endswith(f"site[1]: not established with {OUTER[4][1]}: no answer")
    assert "far: no way to 203.0.113.9: there is no route" in world.a.log()
    assert re.search(r"name: no way to gw\.invalid: [A-Z][a-z ]+", world.a.log())


def test_a_stop_during_a_start_that_waits_for_names(world: IkeWorld, tmp_path: Path) -> None:
    """What has begun is closed at its peer, what was left by a kill goes too, and the process with the last line."""
    world.up()
    world.a.stop(signal.SIGKILL)
    assert "unreachable" in world.a.leftovers()
    site = world.conf[0]["connections"]["site"]
    for name in ("one", "two"):
        host = {"host": {"start_action": "trap"}}
        world.conf[0]["connections"][name] = {**site, "remote_addrs": f"{name}.example", "children": host}
    world.write()
    # takes questions and says nothing
    resolver = tmp_path / "resolv.conf"
    resolver.write_text(f"nameserver {OUTER[4][1]}\noptions timeout:5 attempts:2\n")
    with netns.inside(world.b.namespace):
        silent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with silent, world.a.log_file.open("wb") as log:
        silent.bind((OUTER[4][1], 53))
        # "ip netns exec" has mounts of its own
        instead = ["sh", "-c", 'mount --bind "$0" /etc/resolv.conf && exec "$@"', str(resolver)]
        command = ["ip", "netns", "exec", world.a.namespace, *instead, *COMMAND, "--config", str(world.a.config)]
        world.a.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        assert eventually(lambda: ups(world.a) == 1), world.logs()
        status, seconds = world.a.stop()
    assert status == 0, world.a.log()
    assert seconds < 3, world.a.log()
    assert "stopped" in world.a.log()
    assert "this is a bug" not in world.a.log()
    assert world.a.leftovers() == ""
    assert eventually(lambda: "10.1.0.0/16" not in world.b.leftovers()), world.b.log()


def test_a_stop_does_not_wait_for_a_disk_that_hangs(world: IkeWorld) -> None:
    """A reload reads from a pipe into which nobody writes, as it would from a server of files that is away."""
    world.up()
    world.a.config.unlink()
    os.mkfifo(world.a.config)
    assert world.a.process is not None
    world.a.process.send_signal(signal.SIGHUP)
    with world.a.config.open("wb"):
        # it has opened the other end; tunnels do not wait either
        assert loss(world.a.ping(INNER[4][1])) == 0
        status, seconds = world.a.stop()
        assert status == 0, world.a.log()
        assert seconds < 3, world.a.log()
    assert world.a.leftovers() == ""


def test_nobody_waits_for_who_reads_the_log(world: IkeWorld) -> None:
    """Both log into pipes that are full before they are ready: tunnels are rekeyed, commands heard, a stop is one."""
    world.set(":start_action", "start", 0)
    world.set(":rekey_time", "2s")
    world.set("ipsecd.log_level", "debug")
    sockets = [world.a.directory / f"{side}.vici" for side in (0, 1)]
    for side in (0, 1):
        world.set("ipsecd.vici_socket", str(sockets[side]), side)
    world.write()
    ends = []
    for gateway in (world.b, world.a):
        reader, writer = os.pipe()
        ends.append(reader)
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
        command = ["ip", "netns", "exec", gateway.namespace, *COMMAND, "--config", str(gateway.config)]
        gateway.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=writer, stderr=writer)
        os.close(writer)

    async def newest() -> int:
        async with await connect(f"unix://{sockets[0]}") as session:
            found = [sa async for sa in session.stream("list-sas", "list-sa")]
        return max(int(child["uniqueid"]) for sa in found for child in sa["site"]["child-sas"].values())

    assert eventually(lambda: "1 received" in world.a.ping(INNER[4][1], count=1, check=False), 30)
    assert eventually(lambda: asyncio.run(newest()) > 3, 20)
    assert loss(world.a.ping(INNER[4][1])) == 0
    for gateway in (world.a, world.b):
        status, seconds = gateway.stop()
        assert status == 0
        assert seconds < 6
        assert gateway.leftovers() == ""
    for end in ends:
        assert b"ready" not in os.read(end, 65536)
        os.close(end)


def test_json_log(world: IkeWorld) -> None:
    world.set("ipsecd.log_format", "json")
    world.up()
    assert loss(world.a.ping(INNER[4][1])) == 0
    world.a.stop()
    lines = [json.loads(line) for line in world.a.log().splitlines()]
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    assert all(line["time"].endswith("+00:00") for line in lines)
    (up,) = [line for line in lines if "up, SPIs" in line["message"]]
    assert (up["connection"], up["child"], up["peer"]) == ("site", "net", OUTER[4][1])
    (connecting,) = [line for line in lines if "connecting to" in line["message"]]
    assert connecting["connection"] == "site"


@pytest.mark.skipif(not shutil.which("tshark"), reason="tshark is not installed")
@pytest.mark.parametrize("suite", ["aead", "classic"])
def test_tshark_reads_ike_and_esp_with_the_key_files(world: IkeWorld, tmp_path: Path, suite: str) -> None:
    keys = tmp_path / "profile" / "wireshark"
    # the other end was not asked to
    world.set("ipsecd.keylog", str(keys), 0)
    world.set("ipsecd.offload.udp_gso", "no")
    if suite == "classic":
        world.set("@proposals", "aes256-sha256-x25519")
        world.set(":esp_proposals", "aes256-sha256")
    path = tmp_path / "wire.pcapng"
    path.touch(mode=0o666)
    capture = world.a.popen("dumpcap", "-q", "-i", WIRE, "-w", str(path))
    try:
        assert eventually(lambda: path.stat().st_size), "dumpcap has not begun"
        world.up()
        assert loss(world.a.ping(INNER[4][1])) == 0, world.logs()
        world.a.stop()
        # a capture is written in order: what went before this is in the file when this is
        with netns.inside(world.a.namespace):
            last = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with last:
            last.sendto(b"nothing comes after this", (OUTER[4][1], 9))
        assert eventually(lambda: b"nothing comes after this" in path.read_bytes()), "dumpcap does not write"
    finally:
        finish(capture)
    assert "WARNING ipsec.daemon.keylog: ALL KEYS ARE WRITTEN" in world.a.log()
    assert "keylog" not in world.b.log()
    files = sorted(keys.iterdir())
    assert [file.name for file in files] == ["esp_sa", "ikev2_decryption_table"]
    assert all(file.stat().st_mode & 0o777 == 0o600 for file in files)
    environment = ["env", f"XDG_CONFIG_HOME={tmp_path / 'profile'}"]
    options = ["-o", "esp.enable_encryption_decode:TRUE", "-o", "esp.enable_authentication_check:TRUE"]
    command = [*environment, "tshark", "-r", str(path), *options, "-T", "json"]
    done = world.a.run(*command, check=False)
    # the identity is in IKE_AUTH, under protection
    assert "a.example.org" in done.stdout, done.stderr
    assert done.stdout.count('"icmp.type": "8"') == 3
    assert done.stdout.count('"icmp.type": "0"') == 3


# -- what the machine lacks


def start_fails(gateway: Gateway, *options: str) -> tuple[int, str]:
    """Exit status and log of a start that does not work."""
    launch(gateway, *options)
    assert gateway.process is not None
    status = gateway.process.wait(10)
    gateway.process = None
    return status, gateway.log()


def check(gateway: Gateway, *options: str) -> subprocess.CompletedProcess[str]:
    """``ipsecd --check``."""
    return gateway.run(*COMMAND, "--config", str(gateway.config), "--check", *options, check=False)


@pytest.mark.parametrize("port", [500, 4500])
def test_port_is_taken(world: IkeWorld, port: int) -> None:
    world.write()
    with netns.inside(world.a.namespace):
        holder = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with holder:
        holder.bind(("", port))
        status, log = start_fails(world.a)
        done = check(world.a)
    assert status == 4
    assert f"port {port}" in log
    assert "stop the other IPsec daemon" in log
    assert "Traceback" not in log
    assert world.a.leftovers() == ""
    assert done.returncode == 4
    assert f"port {port}" in done.stdout


def test_check_says_what_there_is(world: IkeWorld) -> None:
    world.write()
    done = check(world.a)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 connection" in done.stdout, done.stdout
    assert "port 500" in done.stdout
    assert "port 4500" in done.stdout
    site = world.conf[0]["connections"]["site"]
    site["remote_addrs"] = "gw.invalid"
    world.conf[0]["connections"]["far"] = {**site, "remote_addrs": "203.0.113.9", "local_addrs": "%any"}
    world.write()
    done = check(world.a, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    requirements = {entry["name"]: entry for entry in json.loads(done.stdout)["requirements"]}
    assert requirements["peer of site"]["state"] == "hint", requirements
    assert "gw.invalid" in requirements["peer of site"]["detail"]
    assert requirements["peer of far"]["state"] == "hint", requirements


def test_no_tun_device(world: IkeWorld) -> None:
    world.write()
    command = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs none /dev/net && exec "$0" "$@"']
    arguments = [*COMMAND, "--config", str(world.a.config)]
    done = world.a.run(*command, *arguments, check=False)
    assert done.returncode == 4, done.stderr
    assert "/dev/net/tun" in done.stderr
    assert "Traceback" not in done.stderr


def test_full_disk_for_the_state(world: IkeWorld) -> None:
    """The tunnel comes up all the same; the log says what is lost."""
    world.set(":start_action", "start", 0)
    world.set("ipsecd.state_dir", "/dev/full/ipsecd", 0)
    world.start()
    world.wait_up()
    assert "cannot keep /dev/full/ipsecd/qcd.secret" in world.a.log(), world.a.log()
    assert "Traceback" not in world.a.log()


def test_keylog_that_cannot_be_written(world: IkeWorld) -> None:
    world.set("ipsecd.keylog", "/dev/full/keys", 0)
    world.write()
    status, log = start_fails(world.a)
    assert status == 4, log
    assert "/dev/full/keys" in log
    assert world.a.leftovers() == ""
