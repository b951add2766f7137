"""ipsec.net.route: what belongs into the table by pure thought, and the table itself in a namespace."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from ipsec.errors import BackendError
from ipsec.net import netns
from ipsec.net.monitor import Change, LinkMonitor
from ipsec.net.route import RoutePlan, Router, plan_routes
from ipsec.net.tun import Tun, open_tun


def test_plan_prefers_a_source_inside_the_local_networks() -> None:
    plan = plan_routes(
        [(["10.1.0.0/16"], ["10.2.0.0/16"]), (["fd01::/16"], ["fd02::/16"]), (["10.9.0.0/16"], ["10.3.0.0/16"])],
        peers=[ip_address("192.0.2.2")],
        own=[ip_address("192.0.2.1"), ip_address("10.1.0.1"), ip_address("fd01::1")],
    )
    assert dict(plan.protected) == {
        ip_network("10.2.0.0/16"): ip_address("10.1.0.1"),
        ip_network("fd02::/16"): ip_address("fd01::1"),
        ip_network("10.3.0.0/16"): None,
    }
    assert plan.excluded == ()


def test_plan_excludes_peers_and_bypassed_networks_that_a_route_covers() -> None:
    plan = plan_routes(
        [(["0.0.0.0/0"], ["0.0.0.0/0"])],
        peers=[ip_address("192.0.2.2"), ip_address("2001:db8::2")],
        bypass=["198.51.100.0/24", "fd00::/8"],
    )
    assert plan.excluded == (ip_network("192.0.2.2"), ip_network("198.51.100.0/24"))


def test_plan_does_not_exclude_the_very_network_it_protects() -> None:
    plan = plan_routes([(["192.0.2.1"], ["192.0.2.2/32"])], peers=[ip_address("192.0.2.2")])
    assert plan.excluded == ()


@pytest.fixture
def tun() -> Iterator[Tun]:
    """A device in a fresh network namespace; the test's thread is inside."""
    name = f"net-route-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        with netns.inside(name):
            tun = open_tun("ipsec0")
            yield tun
            tun.close()
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


def ip(*args: str) -> str:
    return subprocess.run(["ip", *args], check=True, capture_output=True, text=True).stdout


def table(*family: str) -> list[str]:
    done = subprocess.run(["ip", *family, "route", "show", "table", "220"], capture_output=True, text=True)
    return sorted(line.strip() for line in done.stdout.splitlines())


PLAN = RoutePlan(
    protected=((ip_network("10.2.0.0/16"), ip_address("10.1.0.1")), (ip_network("fd02::/16"), None)),
    excluded=(ip_network("10.2.0.9"),),
    fail_closed=True,
)


@pytest.mark.e2e
def test_apply_makes_the_table_what_the_plan_says(tun: Tun) -> None:
    with Router() as router:
        assert router.claim() == 0
        router.configure("ipsec0", mtu=1438, addresses=[ip_interface("10.1.0.1/32")], queue_length=1234)
        router.apply("ipsec0", PLAN)
        assert table() == [
            "10.2.0.0/16 dev ipsec0 proto 205 src 10.1.0.1",
            "throw 10.2.0.9 proto 205",
            "unreachable 10.2.0.0/16 proto 205 metric 4278190080",
        ]
        assert any("fd02::/16 dev ipsec0" in line for line in table("-6"))
        assert "mtu 1438" in ip("link", "show", "ipsec0")
        assert "qlen 1234" in ip("link", "show", "ipsec0")
        router.apply("ipsec0", PLAN)
        assert ip("rule").count("lookup 220") == 1
        router.apply("ipsec0", RoutePlan(protected=((ip_network("10.3.0.0/16"), None),)))
        assert table() == ["10.3.0.0/16 dev ipsec0 proto 205"]
        assert table("-6") == []
        assert ip_address("10.1.0.1") in router.local_addresses()
    assert table() == []
    assert "lookup 220" not in ip("rule") + ip("-6", "rule")
    assert "10.1.0.1" not in ip("addr")


@pytest.mark.e2e
def test_what_a_predecessor_left_is_removed_and_nothing_else(tun: Tun) -> None:
    ip("link", "set", "lo", "up")
    ip("link", "set", "ipsec0", "up")
    ip("route", "add", "10.66.0.0/16", "dev", "lo", "table", "220", "proto", "static")
    ip("rule", "add", "lookup", "220", "priority", "220")
    killed = Router()
    killed.claim()
    killed.configure("ipsec0", mtu=1400, addresses=[ip_interface("10.1.0.1/32")])
    killed.apply("ipsec0", PLAN)
    killed._netlink.close()  # as the kernel does for a process that is killed
    assert killed._claim is not None
    killed._claim.close()
    with Router() as router:
        assert router.leftovers() == 7
        assert router.claim() == 7
        assert table() == ["10.66.0.0/16 dev lo proto static scope link"]
        assert ip("rule").count("lookup 220") == 1


@pytest.mark.e2e
def test_there_is_no_gap_between_two_that_fail_closed(tun: Tun) -> None:
    closed = ["unreachable 10.2.0.0/16 proto 205 metric 4278190080"]
    first = Router()
    first.claim(keep_closed=True)
    assert not first.inherited
    first.configure("ipsec0", mtu=1400, addresses=[ip_interface("10.1.0.1/32")])
    first.apply("ipsec0", PLAN)
    first.close(keep_closed=True)
    assert table() == closed
    assert ip("rule").count("lookup 220") == 1
    second = Router(fwmark=9, priority=99)
    assert second.claim(keep_closed=True) > 2
    assert second.inherited
    assert table() == closed
    assert "220:" in ip("rule")
    second.apply("ipsec0", RoutePlan(protected=((ip_network("10.3.0.0/16"), None),), fail_closed=True))
    assert [line for line in table() if "unreachable" in line] == [closed[0].replace("10.2", "10.3")]
    assert "220:" not in ip("rule")
    assert "99:" in ip("rule")
    assert "lookup 220" not in ip("-6", "rule")
    second.close()
    assert table() == table("-6") == []
    assert "lookup 220" not in ip("rule") + ip("-6", "rule")


@pytest.mark.e2e
def test_a_mark_skips_the_table(tun: Tun) -> None:
    with Router(fwmark=0x42) as router:
        router.claim()
        router.configure("ipsec0", mtu=1400)
        router.apply("ipsec0", RoutePlan(protected=((ip_network("10.2.0.0/16"), None),)))
        assert "not from all fwmark 0x42 lookup 220" in ip("rule")
        assert "ipsec0" in ip("route", "get", "10.2.0.1")
        marked = subprocess.run(["ip", "route", "get", "10.2.0.1", "mark", "0x42"], capture_output=True, text=True)
        assert "unreachable" in marked.stderr


@pytest.mark.e2e
def test_one_table_has_one_owner(tun: Tun) -> None:
    with Router() as first, Router() as second, Router(table=221) as other:
        first.claim()
        other.claim()
        with pytest.raises(BackendError, match="table 220 is in use by another ipsecd"):
            second.claim()
    with Router() as next_one:
        next_one.claim()


@pytest.mark.e2e
def test_try_rule_leaves_nothing(tun: Tun) -> None:
    before = ip("rule")
    with Router() as router:
        router.try_rule()
    assert ip("rule") == before


@pytest.mark.e2e
def test_a_device_that_is_not_there(tun: Tun) -> None:
    with Router() as router, pytest.raises(BackendError, match="device nothere: No such device"):
        router.configure("nothere", mtu=1400)


@pytest.mark.e2e
def test_monitor_tells_up_down_and_gone(tun: Tun) -> None:
    monitor = LinkMonitor(tun.index, up=False)
    assert monitor.changes() == []
    ip("link", "set", "lo", "up")
    assert monitor.changes() == []
    ip("link", "set", "ipsec0", "up")
    ip("link", "set", "ipsec0", "mtu", "1300")
    ip("link", "set", "ipsec0", "down")
    ip("link", "del", "ipsec0")
    assert monitor.changes() == [Change.UP, Change.DOWN, Change.GONE]
    monitor.close()
