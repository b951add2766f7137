"""ipsec.net.route: the table itself, in a namespace. What belongs into it is test_routebook's."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from ipaddress import ip_address, ip_interface
from pathlib import Path

import pytest

from ipsec.errors import BackendError
from ipsec.net import routebook, rtnetlink
from ipsec.net.monitor import Change, LinkMonitor
from ipsec.net.netlink import Netlink
from ipsec.net.route import Router
from ipsec.net.routebook import Entry, RouteBook, prefixes
from ipsec.net.tun import Tun
from tests.e2e.gateways import has_users
from tests.net.device import tun_in_namespace
from tests.net.test_routebook import between


@pytest.fixture
def tun() -> Iterator[Tun]:
    """A device in a fresh network namespace; the test's thread is inside."""
    with tun_in_namespace("net-route") as device:
        yield device


def ip(*args: str) -> str:
    return subprocess.run(["ip", *args], check=True, capture_output=True, text=True).stdout


def table(*family: str) -> list[str]:
    done = subprocess.run(["ip", *family, "route", "show", "table", "220"], capture_output=True, text=True)
    return sorted(line.strip() for line in done.stdout.splitlines())


def book(*protected: str, source: str = "", excluded: str = "", fail_closed: bool = False) -> RouteBook:
    """What belongs into the table, everything local to any address."""
    made = RouteBook(fail_closed=fail_closed)
    for text in protected:
        made.protect(between("::/0" if ":" in text else "0.0.0.0/0"), between(text))
    if excluded:
        made.exclude(between(excluded))
    if source:
        made.set_own([ip_address(source)])
    return made


def plan() -> RouteBook:
    return book("10.2.0.0/16", "fd02::/16", source="10.1.0.1", excluded="10.2.0.9", fail_closed=True)


def apply(router: Router, wanted: RouteBook) -> None:
    """Make the table hold exactly this."""
    router.set_rules(wanted.versions)
    wanted.adopt(router.present())
    while wanted.pending:
        assert router.carry_out(router.index("ipsec0"), wanted.changes(100)) == []


def kill(router: Router) -> None:
    """Close its sockets, as the kernel does for a process that is killed."""
    router._netlink.close()
    router._routes.close()


@pytest.mark.e2e
def test_apply_makes_the_table_what_the_plan_says(tun: Tun) -> None:
    with Router() as router:
        assert router.claim() == 0
        router.configure("ipsec0", mtu=1438, addresses=[ip_interface("10.1.0.1/32")], queue_length=1234)
        apply(router, plan())
        assert table() == [
            "10.2.0.0/16 dev ipsec0 proto 205 src 10.1.0.1",
            "throw 10.2.0.9 proto 205",
            "unreachable 10.2.0.0/16 proto 205 metric 4278190080",
        ]
        assert any("fd02::/16 dev ipsec0" in line for line in table("-6"))
        assert "mtu 1438" in ip("link", "show", "ipsec0")
        assert "qlen 1234" in ip("link", "show", "ipsec0")
        apply(router, plan())
        assert ip("rule").count("lookup 220") == 1
        apply(router, book("10.3.0.0/16"))
        assert table() == ["10.3.0.0/16 dev ipsec0 proto 205"]
        assert table("-6") == []
        assert ip_address("10.1.0.1") in router.local_addresses()
    assert table() == []
    assert "lookup 220" not in ip("rule") + ip("-6", "rule")
    assert "10.1.0.1" not in ip("addr")


@pytest.mark.e2e
@pytest.mark.parametrize(("net", "peer"), [("10.2.0.0/16", "10.2.0.5/32"), ("fd02::/16", "fd02::5/128")])
def test_one_kind_of_route_takes_another_ones_place(tun: Tun, net: str, peer: str) -> None:
    """A peer inside a protected network, which is protected itself for a while."""
    everything = between("::/0" if ":" in net else "0.0.0.0/0")
    around, itself = between(net), between(peer)
    (outer,), (inner,) = prefixes(*around), prefixes(*itself)
    protected = {Entry("unicast", outer), Entry("unreachable", outer)}
    also = {Entry("unicast", inner), Entry("unreachable", inner)}
    with Router() as router:
        router.claim()
        router.configure("ipsec0", mtu=1400)
        wanted = RouteBook(fail_closed=True)

        def holds(expected: set[Entry]) -> None:
            while wanted.pending:
                assert router.carry_out(router.index("ipsec0"), wanted.changes(100)) == []
            assert router.present() == expected

        wanted.protect(everything, around)
        wanted.exclude(itself)
        holds({*protected, Entry("throw", inner)})
        wanted.protect(everything, itself)
        holds(protected | also)
        wanted.unprotect(everything, itself)
        holds({*protected, Entry("throw", inner)})
        wanted.include(itself)
        holds(protected)
        wanted.unprotect(everything, around)
        holds(set())


@pytest.mark.e2e
def test_what_a_predecessor_left_is_removed_and_nothing_else(tun: Tun) -> None:
    ip("link", "set", "lo", "up")
    ip("link", "set", "ipsec0", "up")
    ip("route", "add", "10.66.0.0/16", "dev", "lo", "table", "220", "proto", "static")
    ip("rule", "add", "lookup", "220", "priority", "220")
    killed = Router()
    killed.claim()
    killed.configure("ipsec0", mtu=1400, addresses=[ip_interface("10.1.0.1/32")])
    apply(killed, plan())
    kill(killed)
    assert killed._claim is not None
    killed._claim.close()
    with Router() as router:
        assert router.leftovers() == 7
        assert router.claim() == 7
        assert table() == ["10.66.0.0/16 dev lo proto static scope link"]
        assert ip("rule").count("lookup 220") == 1


@pytest.mark.e2e
@pytest.mark.parametrize("fail_closed", [True, False])
def test_where_packets_go_while_the_device_is_down(tun: Tun, fail_closed: bool) -> None:
    """As docs/operations.md says: nowhere, or in clear where another route leads."""
    ip("link", "add", "veth0", "type", "veth", "peer", "name", "veth1")
    for device in ("lo", "veth0", "veth1"):
        ip("link", "set", device, "up")
    ip("route", "add", "default", "dev", "veth0")
    with Router() as router:
        router.claim()
        router.configure("ipsec0", mtu=1438)
        apply(router, book("10.2.0.0/16", fail_closed=fail_closed))
        assert "ipsec0" in ip("route", "get", "10.2.0.1")
        ip("link", "set", "ipsec0", "down")
        done = subprocess.run(["ip", "route", "get", "10.2.0.1"], capture_output=True, text=True)
        assert ("veth0" in done.stdout, "No route to host" in done.stderr) == (not fail_closed, fail_closed)


@pytest.mark.e2e
def test_there_is_no_gap_between_two_that_fail_closed(tun: Tun) -> None:
    closed = ["unreachable 10.2.0.0/16 proto 205 metric 4278190080"]
    first = Router()
    first.claim(keep_closed=True)
    assert not first.inherited
    first.configure("ipsec0", mtu=1400, addresses=[ip_interface("10.1.0.1/32")])
    apply(first, plan())
    first.close(keep_closed=True)
    assert table() == closed
    assert ip("rule").count("lookup 220") == 1
    second = Router(fwmark=9, priority=99)
    assert second.claim(keep_closed=True) > 2
    assert second.inherited
    assert table() == closed
    assert "220:" in ip("rule")
    apply(second, book("10.3.0.0/16", fail_closed=True))
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
        apply(router, book("10.2.0.0/16"))
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


@contextmanager
def held_by(uid: int, *, listens: bool = True) -> Iterator[None]:
    """The name that claims table 220 is in the hand of another user."""
    if not has_users():
        pytest.skip("there is no other user in this user namespace")
    code = (
        "import os, socket, sys\n"
        f"os.setuid({uid})\n"
        "s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)\n"
        "s.bind(chr(0) + 'ipsecd-table-220')\n"
        f"{listens} and s.listen()\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield
        process.stdin.close()


@pytest.mark.e2e
@pytest.mark.parametrize("listens", [True, False])
def test_anybody_else_who_holds_the_name_keeps_nobody_off(
    tun: Tun, listens: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with held_by(65534, listens=listens):
        with Router() as router:
            router.try_claim()
            router.claim()
            router.configure("ipsec0", mtu=1438)
            apply(router, book("10.2.0.0/16"))
            assert table() == ["10.2.0.0/16 dev ipsec0 proto 205"]
        # what it left is removed all the same
        assert table() == []
    assert "holds the name @ipsecd-table-220" in caplog.text


@pytest.mark.e2e
def test_a_name_that_is_let_go_of_meanwhile_is_taken(
    tun: Tun, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A daemon that stops while another one starts."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as last, Router() as router:
        last.bind("\0ipsecd-table-220")
        monkeypatch.setattr(time, "sleep", lambda _: last.close())
        router.claim()
        assert router._claim is not None
    assert not caplog.text


@pytest.mark.e2e
def test_a_daemon_of_another_user_is_known_by_its_routes(tun: Tun) -> None:
    with held_by(65534), Router() as second:
        first = Router()
        first.claim()
        first.configure("ipsec0", mtu=1438, addresses=[ip_interface("10.1.0.1/32")])
        apply(first, plan())
        with pytest.raises(BackendError, match="table 220 is in use by another ipsecd"):
            second.claim()
        with pytest.raises(BackendError, match="table 220 is in use by another ipsecd"):
            second.try_claim()
        assert len(table()) == 3
        # it is killed, and its device goes with it
        kill(first)
        tun.close()
        assert second.claim() > 0


@pytest.mark.e2e
def test_try_rule_leaves_nothing(tun: Tun) -> None:
    before = ip("rule")
    with Router() as router:
        router.try_rule()
    assert ip("rule") == before


@pytest.mark.e2e
def test_rules_of_others_that_lead_our_own_packets_into_the_table(tun: Tun) -> None:
    """As charon leaves them when it is killed. Ours, those for some packets, and those of other tables are none."""
    for rule in ("not fwmark 7", "from 10.1.0.0/16", "iif lo", "uidrange 1-1", "ipproto udp"):
        ip("rule", "add", *rule.split(), "lookup", "220")
    ip("rule", "add", "lookup", "221")
    with Router(fwmark=7) as router:
        router.claim()
        router.set_rules({4, 6})
        assert router.rules_in_the_way() == []
        for version in ("-4", "-6"):
            ip(version, "rule", "add", "lookup", "220", "priority", "220")
        with Router() as unmarked:
            # our own packets bear no mark: such a rule is what it would have itself
            assert unmarked.rules_in_the_way() == []
        remedies = router.rules_in_the_way()
        assert remedies == ["ip -4 rule del lookup 220 priority 220", "ip -6 rule del lookup 220 priority 220"]


@pytest.mark.e2e
def test_a_device_that_is_not_there(tun: Tun) -> None:
    with Router() as router, pytest.raises(BackendError, match="device nothere: No such device"):
        router.configure("nothere", mtu=1400)


@pytest.mark.e2e
def test_monitor_tells_up_down_and_gone_and_addresses(tun: Tun) -> None:
    monitor = LinkMonitor(tun.index, up=False)
    assert monitor.changes() == []
    ip("link", "set", "lo", "up")
    assert set(monitor.changes()) == {Change.ADDRESSES}
    ip("link", "set", "ipsec0", "up")
    ip("link", "set", "ipsec0", "mtu", "1300")
    ip("link", "set", "ipsec0", "down")
    ip("link", "del", "ipsec0")
    # IPv6 gives the device an address of its own
    found = [change for change in monitor.changes() if change is not Change.ADDRESSES]
    assert found == [Change.UP, Change.DOWN, Change.GONE]
    ip("address", "add", "10.9.9.9/32", "dev", "lo")
    assert monitor.changes() == [Change.ADDRESSES]
    monitor.close()


@pytest.mark.e2e
def test_monitor_tells_when_the_host_begins_to_forward(tun: Tun) -> None:
    for version in ("ipv4", "ipv6"):
        # a new namespace may have it from the host's
        Path(f"/proc/sys/net/{version}/conf/all/forwarding").write_text("0")
    monitor = LinkMonitor(tun.index, up=False)
    for version in ("ipv4", "ipv6"):
        # of our own device, of those to come, and of something else: not of interest
        for name in ("conf/ipsec0/forwarding", "conf/default/forwarding", "conf/all/accept_redirects"):
            Path(f"/proc/sys/net/{version}/{name}").write_text("1")
        assert monitor.changes() == []
        for name in ("lo", "all"):
            for on in ("1", "0"):
                Path(f"/proc/sys/net/{version}/conf/{name}/forwarding").write_text(on)
                assert monitor.changes() == [Change.FORWARDING]
    monitor.close()


@pytest.mark.e2e
def test_monitor_looks_when_messages_were_lost(tun: Tun) -> None:
    monitor = LinkMonitor(tun.index, up=True)
    monitor._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    for last, expected in (("down", Change.DOWN), ("up", Change.UP), ("down", Change.DOWN)):
        for mtu in range(1300, 1320):
            ip("link", "set", "ipsec0", "mtu", str(mtu))
        ip("link", "set", "ipsec0", last)
        changes = monitor.changes()
        assert Change.FORWARDING in changes, "nothing was lost"
        assert [change for change in changes if change in (Change.UP, Change.DOWN)][-1] is expected
    # it knows that the device was down, so that it sees this
    ip("link", "set", "ipsec0", "up")
    assert Change.UP in monitor.changes()
    ip("link", "del", "ipsec0")
    assert Change.GONE in monitor.changes()
    monitor.close()


@pytest.mark.e2e
def test_monitor_tells_that_an_address_was_taken(tun: Tun) -> None:
    ip("link", "set", "ipsec0", "up")
    for device in ("lo", "ipsec0"):
        ip("address", "add", "10.9.9.9/32", "dev", device)
    monitor = LinkMonitor(tun.index, up=True)
    ip("address", "del", "10.9.9.9/32", "dev", "lo")
    assert monitor.changes() == [Change.ADDRESSES]
    ip("address", "del", "10.9.9.9/32", "dev", "ipsec0")
    assert monitor.changes() == [Change.ADDRESSES, Change.TAKEN]
    # the kernel takes the IPv6 addresses of a device that goes down
    ip("link", "set", "ipsec0", "down")
    assert Change.TAKEN not in monitor.changes()
    monitor.close()


@pytest.mark.e2e
def test_what_others_remove_is_told(tun: Tun) -> None:
    with Router() as router:
        router.claim()
        router.configure("ipsec0", mtu=1400, addresses=[ip_interface("10.1.0.1/32")])
        apply(router, plan())
        before = table() + table("-6"), ip("rule"), ip("-6", "rule")
        watch = router.watch()
        assert watch is not None
        # what is no business of ours, what we do ourselves, and what comes instead of going
        ip("route", "add", "10.2.0.0/16", "dev", "ipsec0", "table", "221")
        ip("route", "flush", "table", "221")
        ip("route", "add", "10.66.0.0/16", "dev", "ipsec0", "table", "220")
        ip("route", "del", "10.66.0.0/16", "table", "220")
        ip("rule", "add", "lookup", "221")
        ip("rule", "del", "lookup", "221")
        apply(router, book())
        router.set_rules(set())
        apply(router, plan())
        assert not watch.lost()
        for harm in (
            ("route", "flush", "table", "220"),
            ("-6", "route", "del", "fd02::/16", "dev", "ipsec0", "table", "220"),
            ("rule", "del", "lookup", "220"),
            ("-6", "rule", "del", "lookup", "220"),
        ):
            ip(*harm)
            assert watch.lost(), harm
            assert not watch.lost()
            wanted = plan()
            wanted.adopt(router.look())
            router.set_rules(wanted.versions)
            while wanted.pending:
                assert router.carry_out(router.index("ipsec0"), wanted.changes(100)) == []
            assert (table() + table("-6"), ip("rule"), ip("-6", "rule")) == before, harm
            assert not watch.lost()
        watch._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        for _ in range(20):
            ip("rule", "add", "lookup", "221")
            ip("rule", "del", "lookup", "221")
        assert watch.lost(), "nothing was dropped"
        watch.close()


@pytest.mark.e2e
def test_what_goes_with_the_loopback_device_is_told(tun: Tun) -> None:
    """IPv6 routes that lead nowhere hang on it, and go when it goes down."""
    with Router() as router:
        router.claim()
        ip("link", "set", "lo", "up")
        router.configure("ipsec0", mtu=1400)
        apply(router, book("fd02::/16", excluded="fd02::5/128", fail_closed=True))
        before = table("-6")
        watch = router.watch()
        assert watch is not None
        try:
            ip("link", "set", "lo", "down")
            assert table("-6") != before
            assert watch.lost()
        finally:
            watch.close()


@pytest.mark.e2e
def test_addresses_go_with_us_or_with_the_next_start(tun: Tun) -> None:
    ip("addr", "add", "10.7.0.1/32", "dev", "ipsec0")
    killed = Router()
    killed.configure("ipsec0", mtu=1400)
    for text in ("10.1.0.1/32", "fd01::1/128"):
        killed.add_address("ipsec0", ip_interface(text))
    kill(killed)
    with Router() as router:
        router.configure("ipsec0", mtu=1400)
        addresses = ip("addr", "show", "dev", "ipsec0")
        assert "10.7.0.1" in addresses
        assert "10.1.0.1" not in addresses
        assert "fd01::1" not in addresses
        address = ip_interface("10.1.0.2/32")
        router.add_address("ipsec0", address)
        assert "10.1.0.2" in ip("addr")
        router.del_address(address)
        assert "10.1.0.2" not in ip("addr")
        router.del_address(address)
        router.add_address("ipsec0", address)
    assert "10.1.0.2" not in ip("addr")
    assert "10.7.0.1" in ip("addr")


@pytest.mark.e2e
def test_what_the_kernel_refuses_is_told_and_the_rest_done(tun: Tun) -> None:
    with Router() as router:
        router.configure("ipsec0", mtu=1400)
        wanted = book("10.2.0.0/16", "10.3.0.0/16", source="192.0.2.1")
        wanted.set_own([])
        good = wanted.changes(10)
        # not an address of this host
        bad = routebook.Change(True, good[0].entry, ip_address("192.0.2.1"))
        ((change, error),) = router.carry_out(router.index("ipsec0"), [bad, good[1]])
        assert change == bad
        assert "cannot add the unicast route to 10.2.0.0/16: Invalid argument" in str(error)
        assert table() == ["10.3.0.0/16 dev ipsec0 proto 205"]


@pytest.mark.e2e
def test_a_few_at_once_with_the_rule_they_need(tun: Tun) -> None:
    with Router() as router:
        router.configure("ipsec0", mtu=1400)
        wanted = book("10.2.0.0/16", "10.3.0.0/16")
        first, second = wanted.changes(10)
        bad = first._replace(source=ip_address("192.0.2.1"))
        assert router.carry_out_few(router.index("ipsec0"), {4}, [bad, second]) == [bad]
        assert table() == ["10.3.0.0/16 dev ipsec0 proto 205"]
        assert router.rules == {4}
        # what is gone already is no failure, and a rule is added once
        gone = routebook.Change(False, first.entry)
        assert router.carry_out_few(router.index("ipsec0"), {4}, [gone, second._replace(add=False)]) == []
        assert table() == []
        assert ip("rule").count("lookup 220") == 1
        router.set_rules(set())
        assert "lookup 220" not in ip("rule")


@pytest.mark.e2e
def test_a_device_among_many(tun: Tun) -> None:
    """Of which the kernel tells in several answers."""
    batch = "".join(f"tuntap add other{n} mode tun\n" for n in range(80))
    subprocess.run(["ip", "-batch", "-"], input=batch, text=True, check=True)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with closing(Netlink()) as netlink:
        assert rtnetlink.tun_info(netlink, socket.if_nametoindex("other0")) == (None, None, 0)
        assert ip_address("127.0.0.1") in rtnetlink.addresses(netlink)
        assert len(netlink.dump(18, bytes(16), answer=16)) >= 82


@pytest.mark.e2e
def test_addresses_that_others_can_reach(tun: Tun) -> None:
    """Not those of loopback, of a link alone, of a cable that is not plugged in, of the device itself."""
    commands = [
        "link add one type veth peer name far",
        "link add two type veth peer name loose",
        "link set one up",
        "link set far up",
        "link set two up",
        "link set lo up",
        "link set ipsec0 up",
        "addr add 192.0.2.1/24 dev one",
        "addr add 2001:db8::1/64 dev one nodad",
        "addr add 2001:db8::dead/64 dev one nodad preferred_lft 0",
        "addr add 192.0.2.9/32 dev lo",
        "addr add 198.51.100.1/24 dev two",
        "addr add 10.1.0.1/24 dev ipsec0",
    ]
    subprocess.run(["ip", "-batch", "-"], input="\n".join(commands), text=True, check=True)
    with closing(Netlink()) as netlink:

        def become(wanted: set[str]) -> bool:
            """The kernel tells of a carrier a moment later."""
            for _ in range(500):
                found = set(map(str, rtnetlink.reachable_addresses(netlink, without="ipsec0")))
                if found == wanted:
                    return True
                time.sleep(0.01)
            return False

        assert become({"192.0.2.9", "192.0.2.1", "2001:db8::1"})
        ip("link", "set", "loose", "up")
        assert become({"192.0.2.9", "192.0.2.1", "198.51.100.1", "2001:db8::1"})
        ip("link", "set", "one", "down")
        assert become({"192.0.2.9", "198.51.100.1"})


@pytest.mark.e2e
def test_many_routes_at_once(tun: Tun) -> None:
    with Router() as router:
        router.configure("ipsec0", mtu=1400)
        many = book(*(f"10.{n >> 8}.{n & 255}.0/24" for n in range(1000)))
        apply(router, many)
        assert len(table()) == 1000
        apply(router, book())
        assert table() == []
