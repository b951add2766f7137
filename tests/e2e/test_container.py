"""Life in a container: what is said when something is missing, secrets that are renewed, and the host's own network."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.gateways import COMMAND, INNER, Gateway, eventually
from tests.e2e.ike_gateways import IkeWorld, launch, loss, make_certificates, ups

pytestmark = pytest.mark.e2e

NOTHING = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all", "--no-new-privs")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[IkeWorld]:
    """Two gateways, not started yet."""
    with IkeWorld(tmp_path) as world:
        yield world


# -- nothing is given


def test_what_is_missing_and_what_to_give(world: IkeWorld) -> None:
    world.write()
    check = ["--config", str(world.a.config), "--check"]
    done = world.a.run(*NOTHING, *COMMAND, *check, "--json", check=False)
    assert done.returncode == 4, done.stderr
    found = {way["name"]: way for way in json.loads(done.stdout)["ways"]}
    assert found["own"]["used"]
    (missing,) = found["own"]["missing"]
    assert missing[0] == "CAP_NET_ADMIN"
    assert "--cap-add NET_ADMIN" in missing[1]
    assert "securityContext: {capabilities: {add: [NET_ADMIN]}}" in missing[1]
    assert [what for what, _ in found["namespace"]["missing"]] == ["CAP_NET_ADMIN", "CAP_SYS_ADMIN"]
    assert [what for what, _ in found["prepared"]["missing"]] == ["device ipsec0"]

    before = world.a.run("ip", "address").stdout
    with world.a.log_file.open("wb") as log:
        command = ["ip", "netns", "exec", world.a.namespace, *NOTHING, *COMMAND, "--config", str(world.a.config)]
        assert subprocess.run(command, stdout=log, stderr=log, timeout=30).returncode == 4
    assert "way to run: prepared: no device ipsec0: run ipsecd --prepare" in world.a.log()
    assert "ready" not in world.a.log()
    assert world.a.run("ip", "address").stdout == before

    found = {way["name"]: way for way in json.loads(world.a.run(*COMMAND, *check, "--json").stdout)["ways"]}
    assert found["own"]["missing"] == found["namespace"]["missing"] == []


def test_too_few_files_may_be_open(world: IkeWorld) -> None:
    world.write()
    few = ["ip", "netns", "exec", world.a.namespace, "prlimit", "--nofile=24", *COMMAND]
    with world.a.log_file.open("wb") as log:
        done = subprocess.run([*few, "--config", str(world.a.config)], stdout=log, stderr=log, timeout=30)
    assert done.returncode == 4, world.a.log()
    assert "Too many open files" in world.a.log()
    assert "this is a bug" not in world.a.log()
    assert world.a.leftovers() == ""


def test_check_of_what_was_prepared(world: IkeWorld) -> None:
    world.write()
    config = ["--config", str(world.a.config)]
    assert world.a.run(*COMMAND, *config, "--prepare", "--owner", "0", "--sysctl").returncode == 0
    done = world.a.run(*NOTHING, *COMMAND, *config, "--check")
    assert "used      prepared" in done.stdout
    assert "found    what was prepared" in done.stdout
    assert "ready to run" in done.stdout
    world.a.run("ip", "link", "set", "ipsec0", "down")
    done = world.a.run(*NOTHING, *COMMAND, *config, "--check", check=False)
    assert done.returncode == 4
    assert "was prepared and is down" in done.stdout


# -- files that change


def test_a_renewed_certificate_drops_no_tunnel(world: IkeWorld, tmp_path: Path) -> None:
    make_certificates(tmp_path, "ecdsa")
    for side in (0, 1):
        world.set("secrets", None, side)
        world.set("@local", {"certs": f"gw{side}.pem"}, side)
        world.set("@remote", {}, side)
    world.set("ipsecd.watch_files", "yes", 0)
    world.up()
    make_certificates(tmp_path, "ecdsa")
    assert eventually(lambda: "reloaded" in world.a.log(), 20), world.a.log()
    assert "connection site has another certificate of ours" in world.a.log()
    assert "closed" not in world.a.log()
    assert ups(world.a) == 1
    assert loss(world.a.ping(INNER[4][1])) == 0
    # a file that is wrong is told once, and harms nobody
    (tmp_path / "private" / "gw0.pem").write_text("nonsense")
    assert eventually(lambda: "not reloaded" in world.a.log(), 20), world.a.log()
    assert loss(world.a.ping(INNER[4][1])) == 0


# -- next to others


FOREIGN = """
    ip rule add fwmark 7 lookup 77 priority 100
    ip rule add from 172.16.0.0/12 lookup 220 priority 219
    ip rule add to 10.2.0.0/16 lookup main priority 221 protocol 3
    ip -6 rule add from fd77::/16 lookup 78 priority 220
    ip route add 198.51.100.0/24 via 192.0.2.2 metric 7
    ip route add blackhole 203.0.113.0/24
    ip route add 172.20.0.0/16 via 192.0.2.2 table 77
    ip route add 10.200.0.0/16 via 192.0.2.2 table 220
    ip route add unreachable 10.2.0.0/16 metric 99 table 220
    ip -6 route add fd77::/16 via 2001:db8::2 table 78 proto 42
    ip address add 172.16.0.1/24 dev wire0 label wire0:x
    ip tuntap add other0 mode tun
    ip link set other0 up mtu 1333
    ip address add 172.31.0.1/24 dev other0
    ip route add 172.30.0.0/16 dev other0
"""


def network(gateway: Gateway) -> set[str]:
    """All addresses, links, rules and routes, one a line."""
    commands = (["-o", "address"], ["-o", "-d", "link"], ["-4", "rule"], ["-6", "rule"])
    tables = (["-4", "route", "show", "table", "all"], ["-6", "route", "show", "table", "all"])
    return {line.strip() for what in (*commands, *tables) for line in gateway.run("ip", *what).stdout.splitlines()}


def test_what_others_have_is_left_alone(world: IkeWorld) -> None:
    for line in FOREIGN.strip().splitlines():
        world.a.run(*line.split())
    before = network(world.a)
    world.up()
    assert before <= network(world.a)
    assert loss(world.a.ping(INNER[4][1])) == 0
    world.a.stop(signal.SIGKILL)
    assert before <= network(world.a)
    launch(world.a)
    assert before <= network(world.a)
    assert world.a.stop()[0] == 0
    assert network(world.a) == before


# -- the end


def test_the_peer_is_dead_when_we_stop(world: IkeWorld) -> None:
    world.up()
    world.b.stop(signal.SIGKILL)
    assert world.a.stop()[0] == 0
    assert world.a.leftovers() == ""


# -- the first process of a container


def first_process(world: IkeWorld, *options: str) -> subprocess.Popen[bytes]:
    """ipsecd as process 1 of a namespace of process numbers; what is returned is unshare, which waits for it."""
    command = ["ip", "netns", "exec", world.a.namespace, "unshare", "--pid", "--fork", "--mount-proc", *options]
    with world.a.log_file.open("wb") as log:
        return subprocess.Popen(
            [*command, *COMMAND, "--config", str(world.a.config)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )


def child_of(pid: int) -> int:
    """The only child of a process."""
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)


def test_as_the_first_process(world: IkeWorld) -> None:
    world.write()
    process = first_process(world)
    world.a.process = process
    assert eventually(lambda: "ready" in world.a.log(), 20), world.a.log()
    init = child_of(process.pid)
    # an orphan, as docker exec leaves them, ends
    enter = ["nsenter", f"--target={init}", "--pid", "--mount", "--net"]
    subprocess.run([*enter, "sh", "-c", "sleep 0.2 & exit 0"], check=True, timeout=10)
    children = Path(f"/proc/{init}/task/{init}/children")
    assert eventually(lambda: not children.read_text().split()), children.read_text()
    subprocess.run(["kill", "-TERM", str(init)], check=True)
    assert process.wait(10) == 0
    world.a.process = None
    assert world.a.leftovers() == ""


def test_stopped_before_it_has_begun(world: IkeWorld) -> None:
    world.write()
    process = first_process(world)
    world.a.process = process
    assert eventually(lambda: Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().strip(), 20)
    init = child_of(process.pid)
    # its handler is there as soon as Python is
    assert eventually(lambda: _catches(init, signal.SIGTERM), 20)
    subprocess.run(["kill", "-TERM", str(init)], check=True)
    process.wait(10)
    world.a.process = None
    assert world.a.leftovers() == ""


def _catches(pid: int, number: int) -> bool:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (mask,) = (int(line.split()[1], 16) for line in lines if line.startswith("SigCgt"))
    return bool(mask >> (number - 1) & 1)
