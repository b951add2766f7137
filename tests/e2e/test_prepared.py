"""``ipsecd --prepare``, and a daemon that then has no capability at all."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.gateways import COMMAND, INNER, OUTER, Gateway, eventually, has_users
from tests.e2e.ike_gateways import NAMES, SECRET, IkeWorld, loss, ups

pytestmark = pytest.mark.e2e

NOTHING = ("--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all", "--no-new-privs")
#: uid 0 with every capability gone is a user who owns root's files, and no more
ROOT_IN_NAME = ("setpriv", *NOTHING)
UID = 64321
SOMEBODY = ("setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups", *NOTHING)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[IkeWorld]:
    """Two gateways, not started yet."""
    with IkeWorld(tmp_path) as world:
        yield world


def prepare(gateway: Gateway, *options: str) -> subprocess.CompletedProcess[str]:
    return gateway.run(*COMMAND, "--config", str(gateway.config), "--prepare", *options, check=False)


def start_without(gateway: Gateway, prefix: tuple[str, ...], **environment: str) -> None:
    """Start ipsecd behind a command that takes its privileges away."""
    command = ["ip", "netns", "exec", gateway.namespace, *prefix, *COMMAND]
    if not environment:
        command += ["--config", str(gateway.config)]
    with gateway.log_file.open("wb") as log:
        gateway.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **environment}
        )
    process = gateway.process
    assert eventually(lambda: "ready" in gateway.log() or process.poll() is not None, 20), gateway.log()


def network(gateway: Gateway) -> str:
    """Addresses, routes and rules, but for what depends on whether somebody has the device open."""
    states = ("UP", "DOWN", "UNKNOWN", "linkdown")
    found = []
    for line in gateway.run("ip", "-br", "address").stdout.splitlines():
        # link-local addresses, and what follows from them, are the kernel's own
        found.append(" ".join(word for word in line.split() if word not in states and not word.startswith("fe80::")))
    for family in ("-4", "-6"):
        for what in (("route", "show", "table", "all"), ("rule",)):
            for line in gateway.run("ip", family, *what).stdout.splitlines():
                if not any(word in line for word in ("fe80::", "ff00::", "dev ipsec0 table local")):
                    found.append(" ".join(word for word in line.split() if word not in states))
    return "\n".join(found)


def test_prepared_for_a_daemon_without_capabilities(world: IkeWorld) -> None:
    world.set(":start_action", "start", 0)
    world.set("ipsecd.workers", "2")
    world.write()
    done = prepare(world.a, "--owner", "0", "--sysctl")
    assert done.returncode == 0, done.stderr
    prepared = network(world.a)
    assert "10.2.0.0/16 dev ipsec0 table 220 proto 205 src 10.1.0.1" in prepared
    assert prepare(world.a, "--owner", "0").returncode == 0
    assert network(world.a) == prepared

    world.b.start()
    start_without(world.a, ROOT_IN_NAME)
    assert world.a.process is not None
    assert "ready" in world.a.log(), world.a.log()
    status = Path(f"/proc/{world.a.process.pid}/status").read_text()
    assert "CapEff:\t0000000000000000\nCapBnd:\t0000000000000000" in status
    world.wait_up()
    for version in (4, 6):
        assert loss(world.a.ping(INNER[version][1])) == 0
        assert loss(world.b.ping(INNER[version][0])) == 0
    assert "was prepared" in world.a.log() or "were prepared" in world.a.log()
    assert network(world.a) == prepared
    # nobody takes the table or the device away under it
    assert re.search("in use by (another ipsecd|user 0)", prepare(world.a, "--undo").stderr)

    world.a.stop(signal.SIGKILL)
    assert network(world.a) == prepared
    assert loss(world.a.ping(INNER[4][1], count=1, check=False)) == 1
    start_without(world.a, ROOT_IN_NAME)
    assert eventually(lambda: ups(world.a) == 1), world.logs()
    assert loss(world.a.ping(INNER[4][1])) == 0
    assert world.a.stop()[0] == 0
    assert network(world.a) == prepared
    assert prepare(world.a, "--undo").returncode == 0
    assert world.a.leftovers() == ""
    assert "nothing to undo" in prepare(world.a, "--undo").stdout


def test_a_daemon_that_makes_its_own_replaces_what_was_prepared(world: IkeWorld) -> None:
    world.write()
    assert prepare(world.a, "--owner", "0").returncode == 0
    world.set("ipsecd.addresses", "10.1.0.9/32", 0)
    world.set(":remote_ts", "10.2.9.0/24", 0)
    world.set(":start_action", "trap", 0)
    world.write()
    world.a.start()
    now = network(world.a)
    assert "10.2.9.0/24 dev ipsec0 table 220 proto 205 src 10.1.0.9" in now
    assert "10.2.0.0/16" not in now
    assert "10.1.0.1" not in now
    assert world.a.stop()[0] == 0
    assert "proto 205" not in world.a.leftovers()


def test_a_user_of_its_own_configured_by_environment(world: IkeWorld, request: pytest.FixtureRequest) -> None:
    """Everything into the tunnel, to a peer that is known by name: a rule for the user keeps its packets out."""
    probe = subprocess.run([*SOMEBODY, sys.executable, "-c", "import ipsec.cli.ipsecd"], capture_output=True)
    if probe.returncode:
        pytest.skip("another user cannot run this Python")
    world.set("ipsecd.addresses", f"{INNER[4][1]}/32", 1)
    world.set("pools.p.addrs", "10.9.0.0/24", 1)
    world.set("@pools", "p", 1)
    world.set(":remote_ts", "dynamic", 1)
    world.set(":local_ts", "0.0.0.0/0", 1)
    world.set("@remote_addrs", "%any", 1)
    world.write()
    # where others may go: not in pytest's own directory
    folder = tempfile.TemporaryDirectory()
    request.addfinalizer(folder.cleanup)
    os.chmod(folder.name, 0o755)
    secret = Path(folder.name, "psk")
    secret.touch(0o600)
    secret.write_text(SECRET + "\n")
    os.chown(secret, UID, UID)
    environment = {
        "IPSEC_CONFIG": "/dev/null",
        "IPSEC_REMOTE_ADDRS": OUTER[4][1],
        "IPSEC_LOCAL_ID": NAMES[0],
        "IPSEC_REMOTE_ID": NAMES[1],
        "IPSEC_PSK_FILE": str(secret),
        "IPSEC_PROPOSALS": "aes128gcm16-prfsha256-x25519",
        "IPSEC_ESP_PROPOSALS": "aes128gcm16-x25519",
        "IPSEC_VIPS": "10.9.0.7",
        "IPSEC_REMOTE_TS": f"0.0.0.0/0, {OUTER[4][1]}/32",
        "IPSEC_STATE_DIR": f"{folder.name}/nowhere",
        "IPSEC_VICI_SOCKET": "none",
    }
    variables = [f"{name}={value}" for name, value in environment.items()]
    done = world.a.run("env", *variables, *COMMAND, "--prepare", "--owner", str(UID), "--sysctl")
    assert f"packets of user {UID} stay outside of the tunnel" in done.stdout
    assert "ip_unprivileged_port_start is 500 now" in done.stdout
    world.b.start()
    start_without(world.a, SOMEBODY, **environment)
    world.wait_up()
    assert loss(world.a.ping(INNER[4][1])) == 0
    # protected as well, but for the daemon: the peer's own address
    assert loss(world.a.ping(OUTER[4][1])) == 0
    assert f"uidrange {UID}-{UID}" in world.a.run("ip", "rule").stdout
    assert world.a.stop()[0] == 0


@pytest.mark.skipif(not has_users(), reason="no other users in this user namespace")
def test_made_for_another_user(world: IkeWorld) -> None:
    world.write()
    assert prepare(world.a, "--owner", "7").returncode == 0
    start_without(world.a, ROOT_IN_NAME)
    assert world.a.process is not None
    assert world.a.process.wait(10) == 4
    assert "it was made for another user than 0; ipsecd --prepare --owner 0" in world.a.log()


def test_preparing_needs_a_capability(world: IkeWorld) -> None:
    world.write()
    done = world.a.run(*ROOT_IN_NAME, *COMMAND, "--config", str(world.a.config), "--prepare", "--owner=1", check=False)
    assert done.returncode == 4
    assert "CAP_NET_ADMIN" in done.stderr
    assert world.a.leftovers() == ""
