"""Descriptors that a supervisor hands down: ports and a device for a daemon without any capability."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.gateways import COMMAND, INNER, Gateway, eventually
from tests.e2e.ike_gateways import IkeWorld, loss

pytestmark = pytest.mark.e2e

NOTHING = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all", "--no-new-privs"]

#: opens what the words on its command line say, and becomes the command behind them, as a supervisor does
SUPERVISOR = """
import os, socket, sys
from ipsec.net.tun import open_tun
at = sys.argv.index("--")
fds = []
for word in sys.argv[1:at]:
    if word.startswith("tun:"):
        fds.append(open_tun(word[4:]).fds[0])
    elif word == "tcp":
        fds.append(socket.socket().detach())
    else:
        family = socket.AF_INET6 if word[0] == "6" else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_DGRAM)
        if word[0] == "6":
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, "dual" not in word)
        sock.bind(("::" if word[0] == "6" else "0.0.0.0", int(word.split(":")[1])))
        fds.append(sock.detach())
high = [os.dup2(fd, 100 + n) for n, fd in enumerate(fds)]
for n, fd in enumerate(high):
    os.dup2(fd, 3 + n)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(fds)))
os.execvp(sys.argv[at + 1], sys.argv[at + 1:])
"""


@pytest.fixture
def world(tmp_path: Path) -> Iterator[IkeWorld]:
    """Two gateways, not started yet."""
    with IkeWorld(tmp_path) as world:
        yield world


def start(gateway: Gateway, *given: str) -> None:
    command = ["ip", "netns", "exec", gateway.namespace, sys.executable, "-c", SUPERVISOR, *given, "--"]
    with gateway.log_file.open("wb") as log:
        gateway.process = subprocess.Popen(
            [*command, *NOTHING, *COMMAND, "--config", str(gateway.config)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    process = gateway.process
    assert eventually(lambda: "ready" in gateway.log() or process.poll() is not None, 20), gateway.log()


def test_ports_and_a_device(world: IkeWorld) -> None:
    """systemd's way: who starts us has the privileges, and we none."""
    world.set(":start_action", "start", 0)
    world.write()
    world.b.start()
    # made by the operator, in this order: addresses and routes need a device, and that one goes with its queue
    world.a.run("ip", "tuntap", "add", "ipsec0", "mode", "tun", "user", "0")
    for version in (4, 6):
        world.a.run("ip", "address", "add", f"{INNER[version][0]}/{32 if version == 4 else 128}", "dev", "ipsec0")
    world.a.run("ip", "link", "set", "ipsec0", "up", "mtu", "1400")
    world.a.run("ip", "route", "add", "10.2.0.0/16", "dev", "ipsec0", "src", INNER[4][0])
    start(world.a, "4:500", "6:500", "4:4500", "tun:ipsec0")
    assert "ready" in world.a.log(), world.a.log()
    world.wait_up()
    assert loss(world.a.ping(INNER[4][1])) == 0
    assert loss(world.b.ping(INNER[4][0])) == 0
    assert world.a.stop()[0] == 0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["tcp"], "LISTEN_FDS: descriptor 3 is no UDP socket"),
        (["6dual:500"], "LISTEN_FDS: descriptor 3 is a socket for IPv4 and IPv6 at once"),
        (["4:500", "4:4500"], "device ipsec0: not permitted"),
    ],
)
def test_what_is_of_no_use(world: IkeWorld, given: list[str], said: str) -> None:
    world.write()
    start(world.a, *given)
    assert world.a.process is not None
    assert world.a.process.wait(10) == 4
    assert said in world.a.log()
