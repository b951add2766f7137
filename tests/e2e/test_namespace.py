"""The device in a network namespace of its own: an application there has the tunnel and nothing else."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands import run
from tests.e2e.gateways import INNER, OUTER, Gateway, eventually
from tests.e2e.ike_gateways import IkeWorld, launch, loss, ups

pytestmark = pytest.mark.e2e

_serial = itertools.count()


class App(Gateway):
    """A namespace without a daemon, as ``Gateway`` sees one."""


@pytest.fixture
def world(tmp_path: Path) -> Iterator[IkeWorld]:
    """Two gateways, not started yet."""
    with IkeWorld(tmp_path) as world:
        yield world


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    """Where the application lives."""
    name = f"net-app-{os.getpid()}-{next(_serial)}"
    run("ip", "netns", "add", name)
    yield App(name, 0, tmp_path)
    run("ip", "netns", "del", name, check=False)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_an_application_sees_the_tunnel_alone(world: IkeWorld, app: App, workers: str) -> None:
    world.set("ipsecd.namespace", app.namespace, 0)
    world.set("ipsecd.workers", workers, 0)
    # everything, the peer itself too: outer packets are elsewhere
    world.set(":remote_ts", "0.0.0.0/0", 0)
    world.set(":local_ts", "0.0.0.0/0", 1)
    world.set("ipsecd.fwmark", "7", 1)
    world.up()
    assert "mark" not in world.a.log()
    assert loss(app.ping(INNER[4][1])) == 0
    assert loss(app.ping(OUTER[4][1])) == 0
    assert loss(world.b.ping(INNER[4][0])) == 0
    assert world.a.leftovers() == ""
    assert "default dev ipsec0" in app.leftovers()
    assert "wire0" not in app.run("ip", "link").stdout

    app.run("ip", "link", "delete", "ipsec0")
    assert eventually(lambda: "device ipsec0 is back" in world.a.log()), world.a.log()
    assert loss(app.ping(INNER[4][1])) == 0

    world.a.stop(signal.SIGKILL)
    assert eventually(lambda: "ipsec0" not in app.run("ip", "link").stdout)
    assert "unreachable default" in app.leftovers()
    assert (
        "Network is unreachable"
        in app.ping(INNER[4][1], count=1, check=False) + app.run("ping", "-c1", "-W1", INNER[4][1], check=False).stderr
        or "unreachable default" in app.leftovers()
    )
    world.a.start()
    assert "removed or took over" in world.a.log()
    assert eventually(lambda: ups(world.a) == 1), world.logs()
    assert loss(app.ping(INNER[4][1])) == 0
    assert world.a.stop()[0] == 0
    assert app.leftovers() == ""


def test_it_forwards_if_the_device_s_namespace_does(world: IkeWorld, app: App) -> None:
    app.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
    world.set("ipsecd.namespace", app.namespace, 0)
    world.up()
    # the MTU that the SA's suite leaves has been set by now, and with it the size of superframes
    assert "gso_max_size 65536" in app.run("ip", "-d", "link", "show", "dev", "ipsec0").stdout


def test_by_path_of_a_process(world: IkeWorld) -> None:
    child = subprocess.Popen(["unshare", "--net", "sleep", "60"])
    try:
        assert eventually(lambda: os.readlink(f"/proc/{child.pid}/ns/net") != os.readlink("/proc/self/ns/net"))
        world.set("ipsecd.namespace", f"/proc/{child.pid}/ns/net", 0)
        world.up()
        done = run("nsenter", f"--net=/proc/{child.pid}/ns/net", "ping", "-c3", "-i0.05", "-W2", INNER[4][1])
        assert loss(done.stdout) == 0
        # the namespace of a container that ends is no reason to fail
        child.kill()
        child.wait()
        assert world.a.stop()[0] == 0
    finally:
        child.kill()
        child.wait()


def test_a_killed_predecessor_had_its_device_at_home(world: IkeWorld, app: App) -> None:
    world.up()
    world.a.stop(signal.SIGKILL)
    assert "unreachable 10.2.0.0/16" in world.a.leftovers()
    world.set("ipsecd.namespace", app.namespace, 0)
    world.write()
    world.a.start()
    assert world.a.leftovers() == ""
    assert "a predecessor left in our own network namespace" in world.a.log()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("net-nowhere", "network namespace net-nowhere: No such file or directory; make it (ip netns add net-nowhere)"),
        ("/etc/hostname", "network namespace /etc/hostname: Invalid argument; name a network namespace"),
    ],
)
def test_no_such_namespace(world: IkeWorld, name: str, said: str) -> None:
    world.set("ipsecd.namespace", name, 0)
    world.write()
    launch(world.a)
    assert world.a.process is not None
    assert world.a.process.wait(5) == 4
    assert said in world.a.log()
    assert world.a.leftovers() == ""
