"""ICMP errors of a router behind a gateway whose own address is in no selector (``icmp``).

a ==== b ---- router ---- host, 10.2.9.2 and fd02:9::2, behind a link narrower than the tunnel
10.99.0.0/24 and fd99::/64 are between b and the router.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.commands import run
from tests.e2e.gateways import INNER, Gateway, World, eventually
from tests.e2e.ike_gateways import IkeWorld

pytestmark = pytest.mark.e2e

LINK_MTU = 1300
HOST = {4: "10.2.9.2", 6: "fd02:9::2"}
ROUTER = {4: "10.99.0.2", 6: "fd99::2"}
#: packets of 1400 octets: the tunnel has room for 1438, the link has not
SIZE = {4: "1372", 6: "1352"}


@contextmanager
def site(world: World) -> Iterator[None]:
    """A router and a host behind b."""
    names = [f"net-e2e-{os.getpid()}-{what}" for what in ("router", "host")]
    b = world.b.namespace
    router, host = names
    try:
        for name in names:
            run("ip", "netns", "add", name)
        for name in (b, *names):
            in_namespace(name, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
            settings = [f"net.ipv4.conf.{scope}.rp_filter=0" for scope in ("all", "default")]
            settings += [f"net.ipv6.conf.{scope}.accept_dad=0" for scope in ("all", "default")]
            in_namespace(name, "sysctl", "-qw", *settings)
        link("site0", (b, "10.99.0.1/24", "fd99::1/64"), (router, "10.99.0.2/24", "fd99::2/64"))
        link("lan0", (router, "10.2.9.1/24", "fd02:9::1/64"), (host, "10.2.9.2/24", "fd02:9::2/64"), mtu=LINK_MTU)
        for name, what, vias in (
            (b, ("10.2.9.0/24", "fd02:9::/64"), ROUTER.values()),
            (router, ("default", "default"), ("10.99.0.1", "fd99::1")),
            (host, ("default", "default"), ("10.2.9.1", "fd02:9::1")),
        ):
            for family, destination, via in zip(("-4", "-6"), what, vias, strict=True):
                run("ip", "-n", name, family, "route", "add", destination, "via", via)
        yield
    finally:
        for name in names:
            run("ip", "netns", "del", name, check=False)


def in_namespace(name: str, *command: str) -> None:
    run("ip", "netns", "exec", name, *command)


def link(device: str, *ends: tuple[str, str, str], mtu: int = 1500) -> None:
    """A wire with that name at both ends: namespace, IPv4 and IPv6 address."""
    near, far = ends[0][0], ends[1][0]
    run("ip", "link", "add", device, "netns", near, "type", "veth", "peer", "name", device, "netns", far)
    for name, *addresses in ends:
        for address in addresses:
            run("ip", "-n", name, "addr", "add", address, "dev", device)
        run("ip", "-n", name, "link", "set", device, "mtu", str(mtu), "up")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[IkeWorld]:
    """Two gateways, not started yet, and what is behind one."""
    with IkeWorld(tmp_path) as world, site(world):
        for scope in ("all", "default"):
            world.a.run("sysctl", "-qw", f"net.ipv4.conf.{scope}.rp_filter=0")
        yield world


def learned(gateway: Gateway, version: int) -> bool:
    """Whether its kernel knows the MTU of the link."""
    return f"mtu {LINK_MTU}" in gateway.run("ip", "route", "get", HOST[version], "from", INNER[version][0]).stdout


def dropped(gateway: Gateway, reason: str) -> bool:
    """Whether it says that it has dropped something for that."""
    assert gateway.process is not None
    gateway.process.send_signal(signal.SIGUSR1)
    return eventually(lambda: f"{reason}=" in gateway.log(), 3)


def test_the_sender_learns_of_a_narrow_link(world: IkeWorld) -> None:
    world.set(":icmp", "yes")
    world.up()
    for version in (4, 6):
        assert "1 received" in world.a.ping(HOST[version], count=1)
        said = world.a.ping(HOST[version], "-M", "do", "-s", SIZE[version], count=2, check=False)
        assert f"From {ROUTER[version]} icmp_seq=1 " in said, said
        assert "mtu = 1300" in said or "mtu=1300" in said, said
        assert learned(world.a, version)
        # what is small enough for the tunnel and the link gets through, in one piece
        assert "1 received" in world.a.ping(HOST[version], "-M", "do", "-s", "1200", count=1)
        # two routers away: the second one says that this is too far
        said = world.a.ping(HOST[version], "-t", "2", count=1, check=False)
        assert f"From {ROUTER[version]} icmp_seq=1 " in said, said


@pytest.mark.parametrize(("side", "reason"), [(1, "OUT_NO_POLS"), (0, "IN_TMPL_MISMATCH")])
def test_both_gateways_have_to_allow_it(world: IkeWorld, side: int, reason: str) -> None:
    world.set(":icmp", "yes", 1 - side)
    world.up()
    for version in (4, 6):
        assert "1 received" in world.a.ping(HOST[version], count=1)
        said = world.a.ping(HOST[version], "-M", "do", "-s", SIZE[version], "-W", "0.3", count=2, check=False)
        assert "0 received" in said, said
        assert "From" not in said, said
        assert not learned(world.a, version)
    assert dropped((world.a, world.b)[side], reason), world.logs()
