"""Routes and addresses of a running backend, in a network namespace."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import subprocess
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import IPv4Address, ip_address, ip_interface
from pathlib import Path
from unittest.mock import patch

import pytest

from ipsec.backend import routes
from ipsec.backend.base import BackendEvent, DeviceLost
from ipsec.backend.routes import ADDRESSES_SECONDS, ANY_SUPERFRAME, GATHER_SECONDS, superframe_size
from ipsec.backend.settings import UserspaceSettings
from ipsec.backend.userspace import UserspaceBackend
from ipsec.crypto.suites import esp_suite
from ipsec.errors import BackendError
from ipsec.esp.sa import Action, Direction, Policy, SaParams
from ipsec.net import netns
from ipsec.net.netlink import Message, Netlink
from ipsec.net.route import FAIL_CLOSED_METRIC, Router
from ipsec.net.routebook import Entry
from ipsec.wire.selector import SelectorPair, TrafficSelector
from tests.backend.test_userspace import until

pytestmark = pytest.mark.e2e


@pytest.fixture
def namespace() -> Iterator[None]:
    """A fresh network namespace; the test's thread is inside, and so are threads that it starts."""
    name = f"backend-routes-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        with netns.inside(name):
            yield
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


def table() -> list[str]:
    done = subprocess.run(["ip", "route", "show", "table", "220"], capture_output=True, text=True)
    return sorted(line.strip() for line in done.stdout.splitlines())


@asynccontextmanager
async def running(**settings: object) -> AsyncIterator[UserspaceBackend]:
    backend = UserspaceBackend(replace(UserspaceSettings(port=0, ike_port=0), **settings))  # type: ignore[arg-type]
    try:
        await backend.start()
        yield backend
    finally:
        await backend.stop()


def one(text: str) -> TrafficSelector:
    return TrafficSelector(ip_address(text), ip_address(text))


def protect(local: TrafficSelector, remote: TrafficSelector, reqid: int = 1) -> Policy:
    return Policy(Action.PROTECT, (SelectorPair(local, remote),), reqid=reqid)


EVERYWHERE = TrafficSelector(ip_address("0.0.0.0"), ip_address("255.255.255.255"))


def sa(backend: UserspaceBackend, remote: str, spi: int = 0x1000) -> SaParams:
    return SaParams(
        spi=spi,
        direction=Direction.OUT,
        suite=esp_suite("aes128gcm16"),
        local=ip_address("192.0.2.1"),
        remote=ip_address(remote),
        encr_key=spi.to_bytes(20, "big"),
        encap=(backend.ports[4], 4500),
        reqid=1,
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_changes_are_carried_out_by_themselves(namespace: None, workers: int) -> None:
    async def main() -> None:
        async with running(workers=workers) as backend:
            assert set(backend.ike_ports) == set(backend.ports)
            number = backend.add_policy(protect(EVERYWHERE, EVERYWHERE))
            ids = [backend.add_sa(sa(backend, "198.51.100.7"))]
            await until(lambda: table() == ["default dev ipsec0 proto 205", "throw 198.51.100.7 proto 205"])
            # the peer moves, as MOBIKE lets it
            backend.update_sa(
                ids[0],
                local=ip_address("192.0.2.1"),
                remote=ip_address("198.51.100.8"),
                encap=(backend.ports[4], 4501),
                path_mtu=1400,
            )
            await until(lambda: table() == ["default dev ipsec0 proto 205", "throw 198.51.100.8 proto 205"])
            backend.del_sa(ids[0])
            backend.del_policy(number)
            await until(lambda: table() == [])
            # back at once: nothing stands in the way of those who wait for it
            backend.add_policy(protect(EVERYWHERE, one("10.2.0.1")))
            await backend.sync_routes()
            assert table() == ["10.2.0.1 dev ipsec0 proto 205"]

    asyncio.run(main())


def no_ipv6() -> None:
    """An address that the kernel gives the device by itself, some time later, would be news to look into."""
    Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").write_text("1")


def test_a_tunnel_that_comes_alone_has_its_routes_at_once(namespace: None) -> None:
    async def main() -> None:
        no_ipv6()
        async with running(workers=1, mtu=1400) as backend:
            backend.add_policy(protect(EVERYWHERE, one("10.2.0.1")))
            assert not backend.try_sync_routes(), "what the table held before is not known"
            await backend.sync_routes()
            await asyncio.sleep(2 * GATHER_SECONDS)
            number = backend.add_policy(protect(EVERYWHERE, EVERYWHERE, reqid=2))
            backend.add_sa(sa(backend, "198.51.100.7"))
            assert backend.try_sync_routes()
            everything = [
                "10.2.0.1 dev ipsec0 proto 205",
                "default dev ipsec0 proto 205",
                "throw 198.51.100.7 proto 205",
            ]
            assert table() == everything
            backend.del_policy(number)
            assert not backend.try_sync_routes(), "those that come together wait for each other"
            await until(lambda: table() == everything[:1])
            await asyncio.sleep(2 * GATHER_SECONDS)
            for n in range(100):
                remote = IPv4Address(0x0A030000 + n)
                backend.add_policy(protect(EVERYWHERE, TrafficSelector(remote, remote), reqid=n + 3))
            assert not backend.try_sync_routes(), "too many"
            await backend.sync_routes()
            assert len(table()) == 101

    asyncio.run(main())


def test_packets_that_the_loop_moves_do_not_wait_for_routes(namespace: None) -> None:
    async def main() -> None:
        no_ipv6()
        async with running(workers=0) as backend:
            await backend.sync_routes()
            await asyncio.sleep(2 * GATHER_SECONDS)
            backend.add_policy(protect(EVERYWHERE, one("10.2.0.1")))
            assert not backend.try_sync_routes()

    asyncio.run(main())


def test_routes_that_cannot_be_had_at_once_are_told_of_later(namespace: None) -> None:
    async def main() -> None:
        no_ipv6()
        async with running(workers=1) as backend:
            await backend.sync_routes()
            await asyncio.sleep(2 * GATHER_SECONDS)
            # the kernel has no routes to a device that is down, which the backend has not heard of
            with patch.object(backend, "_on_link"):
                subprocess.run(["ip", "link", "set", "ipsec0", "down"], check=True)
                backend.add_policy(protect(EVERYWHERE, one("10.2.0.1")))
                assert not backend.try_sync_routes()
                with pytest.raises(
                    BackendError, match=r"cannot add the unicast route to 10\.2\.0\.1/32: Network is down"
                ):
                    await backend.sync_routes()
            subprocess.run(["ip", "link", "set", "ipsec0", "up"], check=True)
            await until(lambda: table() == ["10.2.0.1 dev ipsec0 proto 205"])

    asyncio.run(main())


def test_the_rule_stays_until_the_end(namespace: None) -> None:
    def rules() -> int:
        done = subprocess.run(["ip", "rule"], capture_output=True, text=True, check=True)
        return done.stdout.count("lookup 220")

    async def main() -> None:
        async with running() as backend:
            await backend.sync_routes()
            assert rules() == 0, "nothing is protected"
            for _ in range(2):
                number = backend.add_policy(protect(EVERYWHERE, one("10.2.0.1")))
                await backend.sync_routes()
                backend.del_policy(number)
                await backend.sync_routes()
                assert table() == []
                assert rules() == 1
        assert rules() == 0

    asyncio.run(main())


HARMS = ("route flush table 220", "rule del lookup 220")


@pytest.mark.parametrize(("first", "then"), [HARMS, HARMS[::-1]])
def test_what_is_removed_while_the_table_is_read_is_put_back(namespace: None, first: str, then: str) -> None:
    look = Router.look
    read: list[object] = []

    def slow(router: Router) -> set[Entry]:
        found = look(router)
        read.append(found)
        if len(read) == 1:
            subprocess.run(["ip", *then.split()], check=True)
            # the loop hears of it before this thread is done
            time.sleep(0.1)
        return found

    def rules() -> str:
        return subprocess.run(["ip", "rule"], capture_output=True, text=True, check=True).stdout

    async def main() -> None:
        async with running() as backend:
            backend.add_policy(protect(EVERYWHERE, one("10.2.0.1")))
            await backend.sync_routes()
            before = table(), rules()
            with patch.object(Router, "look", slow):
                subprocess.run(["ip", *first.split()], check=True)
                await until(lambda: len(read) >= 2 and (table(), rules()) == before)

    asyncio.run(main())


def test_the_mtu_and_the_sources_of_routes_follow(namespace: None) -> None:
    def mtu() -> str:
        return subprocess.run(["ip", "link", "show", "ipsec0"], capture_output=True, text=True, check=True).stdout

    async def main() -> None:
        async with running() as backend:
            backend.add_policy(protect(one("10.1.0.1"), one("10.2.0.1")))
            number = backend.add_sa(sa(backend, "198.51.100.7"))
            await until(lambda: table() == ["10.2.0.1 dev ipsec0 proto 205"] and "mtu 1438" in mtu())
            # nobody but the kernel says so
            subprocess.run(["ip", "address", "add", "10.1.0.1/32", "dev", "lo"], check=True)
            await until(lambda: table() == ["10.2.0.1 dev ipsec0 proto 205 src 10.1.0.1"])
            subprocess.run(["ip", "address", "del", "10.1.0.1/32", "dev", "lo"], check=True)
            backend.del_sa(number)
            # the kernel took the route with its source
            await until(lambda: table() == ["10.2.0.1 dev ipsec0 proto 205"] and "mtu 1400" in mtu())

    asyncio.run(main())


def test_a_virtual_address_is_the_source_of_its_routes(namespace: None) -> None:
    address = ip_interface("10.99.0.1/32")

    async def main() -> None:
        async with running() as backend:
            backend.add_policy(protect(one("10.99.0.1"), one("10.2.0.1")))
            await until(lambda: table() == ["10.2.0.1 dev ipsec0 proto 205"])
            await backend.add_address(address)
            await backend.add_address(address)
            await until(lambda: table() == ["10.2.0.1 dev ipsec0 proto 205 src 10.99.0.1"])
            await backend.del_address(address)
            await backend.sync_routes()
            assert table() == ["10.2.0.1 dev ipsec0 proto 205 src 10.99.0.1"]
            await backend.del_address(address)
            await until(lambda: table() == ["10.2.0.1 dev ipsec0 proto 205"])
            await backend.del_address(address)
            with pytest.raises(BackendError, match="cannot add"):
                await backend.add_address(ip_interface("ff02::1/128"))

    asyncio.run(main())


def test_an_address_and_its_routes_within_one_turn(namespace: None) -> None:
    """Whoever hears that the tunnel is up has the address that its packets come from."""

    async def main() -> None:
        async with running(workers=1) as backend:
            backend.add_policy(protect(one("10.99.0.9"), one("10.2.0.9")))
            await backend.sync_routes()
            # what the device brings along has settled
            await asyncio.sleep(2 * ADDRESSES_SECONDS)
            for last, other in ((1, 2), (3, 4)):
                assert backend.try_add_address(ip_interface(f"10.99.0.{last}/32"))
                backend.add_policy(protect(one(f"10.99.0.{last}"), one(f"10.2.0.{other}")))
                assert backend.try_sync_routes()
                assert f"10.2.0.{other} dev ipsec0 proto 205 src 10.99.0.{last}" in table()
                await asyncio.sleep(2 * GATHER_SECONDS)
            # it counts as any other
            assert not backend.try_add_address(ip_interface("10.99.0.1/32"))
            await backend.add_address(ip_interface("10.99.0.1/32"))
            for _ in range(2):
                shown = subprocess.run(["ip", "address", "show", "ipsec0"], capture_output=True, text=True).stdout
                assert "10.99.0.1/32" in shown
                await backend.del_address(ip_interface("10.99.0.1/32"))
            shown = subprocess.run(["ip", "address", "show", "ipsec0"], capture_output=True, text=True).stdout
            assert "10.99.0.1/32" not in shown

    asyncio.run(main())


def test_an_address_that_is_given_again_at_once_stays(namespace: None) -> None:
    """A peer that lost its state gets the same virtual address again while the old one is being taken away."""
    address = ip_interface("10.99.0.1/32")
    both = ["10.2.0.1 dev ipsec0 proto 205 src 10.99.0.1"]

    async def main() -> None:
        async with running() as backend:
            backend.add_policy(protect(one("10.99.0.1"), one("10.2.0.1")))
            await backend.add_address(address)
            for turns in range(12):
                await until(lambda: table() == both)
                taking = asyncio.create_task(backend.del_address(address))
                for _ in range(turns):
                    await asyncio.sleep(0)
                await backend.add_address(address)
                await taking
                shown = subprocess.run(["ip", "address", "show", "ipsec0"], capture_output=True, text=True).stdout
                assert "10.99.0.1/32" in shown, turns
            await until(lambda: table() == both)

    asyncio.run(main())


def test_a_source_that_is_gone_for_a_moment_only(namespace: None) -> None:
    """As when a lease is renewed: the kernel takes it out of IPv6 routes."""
    for command in ("link add lan0 type veth peer name lan1", "link set lan1 up", "link set lan0 up",
                    "addr add fd99::1/64 dev lan0 nodad"):  # fmt: skip
        subprocess.run(["ip", *command.split()], check=True)

    def there() -> bool:
        shown = subprocess.run(["ip", "-6", "route", "show", "table", "220"], capture_output=True, text=True).stdout
        return "fd02::1 dev ipsec0 proto 205 src fd99::1" in shown

    async def main() -> None:
        async with running() as backend:
            backend.add_policy(protect(one("fd99::1"), one("fd02::1")))
            await until(there)
            batch = "addr del fd99::1/64 dev lan0\naddr add fd99::1/64 dev lan0 nodad\n"
            subprocess.run(["ip", "-batch", "-"], input=batch, text=True, check=True)
            assert not there()
            await until(there)

    asyncio.run(main())


def test_addresses_stay_while_the_device_is_down(namespace: None) -> None:
    """Or a host that forwards would send what the tunnel brings for them elsewhere, when it is up again."""

    async def main() -> None:
        async with running(addresses=(ip_interface("10.99.0.1/24"), ip_interface("fd99::1/64"))):
            subprocess.run(["ip", "link", "set", "ipsec0", "down"], check=True)
            shown = subprocess.run(["ip", "address", "show", "ipsec0"], capture_output=True, text=True).stdout
            assert "10.99.0.1/24" in shown
            assert "fd99::1/64" in shown

    asyncio.run(main())


def all_routes() -> list[str]:
    done = subprocess.run(["ip", "-6", "route", "show", "table", "220"], capture_output=True, text=True)
    routes6 = done.stdout.replace(" dev lo", "").replace(" pref medium", "")
    return table() + sorted(line.strip() for line in routes6.splitlines())


@pytest.mark.parametrize("begins", [True, False])
def test_what_a_predecessor_left_closed_stays_so_until_all_has_begun(namespace: None, begins: bool) -> None:
    """However long that takes; and for good if the start comes to nothing."""
    closed = [f"unreachable {net} proto 205 metric {FAIL_CLOSED_METRIC}" for net in ("10.2.0.0/16", "10.3.0.0/16")]
    closed6 = f"unreachable fd03::/16 proto 205 metric {FAIL_CLOSED_METRIC}"
    for version, route in ((4, closed[0]), (4, closed[1]), (6, closed6)):
        subprocess.run(["ip", f"-{version}", "route", "add", *route.split(), "table", "220"], check=True)
    for version in (4, 6):
        rule = f"-{version} rule add priority 220 table 220 protocol 205"
        subprocess.run(["ip", *rule.split()], check=True)

    def rules() -> int:
        shown = [subprocess.run(["ip", f"-{v}", "rule"], capture_output=True, text=True).stdout for v in (4, 6)]
        return sum("lookup 220" in text for text in shown)

    async def main() -> None:
        async with running(fail_closed=True) as backend:
            net = TrafficSelector(ip_address("10.2.0.0"), ip_address("10.2.255.255"))
            backend.add_policy(protect(EVERYWHERE, net))
            await backend.sync_routes()
            assert all_routes() == ["10.2.0.0/16 dev ipsec0 proto 205", *closed, closed6]
            assert rules() == 2
            if begins:
                backend.begun()
                await backend.sync_routes()
                assert all_routes() == ["10.2.0.0/16 dev ipsec0 proto 205", closed[0]]
        if begins:
            assert all_routes() == []
            assert rules() == 0
        else:
            assert all_routes() == [*closed, closed6]
            assert rules() == 2

    asyncio.run(main())


@pytest.mark.parametrize("ends", ["stop", "failed start", "lost device"])
def test_what_is_awaited_stays_closed_until_a_stop(namespace: None, ends: str) -> None:
    """Also when the device is made again; and what is not awaited is open."""
    left = ("10.2.0.0/16", "10.3.0.1", "10.4.0.1")
    net, host, other = (f"unreachable {where} proto 205 metric {FAIL_CLOSED_METRIC}" for where in left)
    for route in (net, host, other):
        subprocess.run(["ip", "route", "add", *route.split(), "table", "220"], check=True)

    async def main() -> None:
        async with running(fail_closed=True) as backend:
            await backend.sync_routes()
            if ends == "failed start":
                return
            assert backend.begun({None}) == 2
            await backend.sync_routes()
            assert table() == [host, other]
            subprocess.run(["ip", "link", "del", "ipsec0"], check=True)
            await until(lambda: not backend.running)
            await until(lambda: backend.running)
            number = backend.add_policy(protect(EVERYWHERE, one("10.3.0.1")))
            await backend.sync_routes()
            assert table() == ["10.3.0.1 dev ipsec0 proto 205", host, other]
            backend.del_policy(number)
            await backend.sync_routes()
            assert table() == [host, other]
            if ends == "lost device":
                with patch.object(os, "eventfd", side_effect=OSError(errno.EMFILE, "Too many open files")):
                    subprocess.run(["ip", "link", "del", "ipsec0"], check=True)
                    await until(lambda: not backend.running)
                    await asyncio.sleep(0.2)

    asyncio.run(main())
    assert table() == {"stop": [], "failed start": [net, host, other], "lost device": [host, other]}[ends]


def test_all_is_there_again_with_a_new_device(namespace: None) -> None:
    async def main() -> None:
        async with running() as backend:
            backend.add_policy(protect(one("10.99.0.1"), one("10.2.0.1")))
            await backend.add_address(ip_interface("10.99.0.1/32"))
            await backend.sync_routes()
            subprocess.run(["ip", "link", "del", "ipsec0"], check=True)
            await until(lambda: table() == [])
            await until(lambda: table() == ["10.2.0.1 dev ipsec0 proto 205 src 10.99.0.1"])
            subprocess.run(["ip", "link", "set", "ipsec0", "down"], check=True)
            subprocess.run(["ip", "link", "set", "ipsec0", "up"], check=True)
            await until(lambda: table() == ["10.2.0.1 dev ipsec0 proto 205 src 10.99.0.1"])

    asyncio.run(main())


def test_a_device_that_cannot_be_made_again_is_told(namespace: None) -> None:
    """Whatever the reason: nothing moves any more, and nobody else would say so."""

    async def main() -> None:
        async with running(workers=0) as backend:
            events: list[BackendEvent] = []
            backend.on_event(events.append)
            with patch.object(os, "eventfd", side_effect=OSError(errno.EMFILE, "Too many open files")):
                subprocess.run(["ip", "link", "del", "ipsec0"], check=True)
                await until(lambda: events)
            assert [type(event) for event in events] == [DeviceLost]
            assert "Too many open files" in str(events[0])
            assert not backend.running

    asyncio.run(main())


def test_superframes_follow_what_the_host_does(namespace: None) -> None:
    def largest() -> str:
        return subprocess.run(["ip", "-d", "link", "show", "ipsec0"], capture_output=True, text=True, check=True).stdout

    async def main() -> None:
        async with running() as backend:
            await backend.sync_routes()
            for name, on, size in (
                ("ipv4/conf/all", "1", ANY_SUPERFRAME),
                ("ipv4/conf/all", "0", superframe_size(1400, 1500)),
                # what comes from one device only
                ("ipv4/conf/lo", "1", ANY_SUPERFRAME),
                ("ipv4/conf/lo", "0", superframe_size(1400, 1500)),
                ("ipv6/conf/lo", "1", ANY_SUPERFRAME),
            ):
                Path(f"/proc/sys/net/{name}/forwarding").write_text(on)
                await until(lambda size=size: f"gso_max_size {size} " in largest())
            assert "mtu 1400 " in largest()

    asyncio.run(main())


def test_what_was_refused_is_tried_again(
    namespace: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody else changes anything, and what is protected would leave in clear for ever."""
    monkeypatch.setattr(routes, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(routes, "RETRY_MAX_SECONDS", 0.1)

    async def main() -> None:
        async with running() as backend:
            await backend.sync_routes()
            answers, silent = Netlink._change, True

            def change(self: Netlink, messages: Sequence[Message]) -> list[tuple[int, int]]:
                if silent:
                    raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
                return answers(self, messages)

            monkeypatch.setattr(Netlink, "_change", change)
            backend.add_policy(protect(EVERYWHERE, one("10.2.0.1")))
            await until(lambda: "No buffer space" in caplog.text)
            await asyncio.sleep(0.5)
            assert caplog.text.count("No buffer space") == 1
            silent = False
            await until(lambda: table() == ["10.2.0.1 dev ipsec0 proto 205"])

    with caplog.at_level(logging.ERROR):
        asyncio.run(main())


def test_an_address_that_was_refused_is_tried_again(
    namespace: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The kernel takes IPv6 from a device whose MTU is too small for it, and does not give it back."""
    monkeypatch.setattr(routes, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(routes, "RETRY_MAX_SECONDS", 0.1)

    def shown() -> str:
        return subprocess.run(["ip", "address", "show", "ipsec0"], capture_output=True, text=True).stdout

    async def main() -> None:
        addresses = (ip_interface("fd99::1/64"), ip_interface("10.99.0.1/24"))
        async with running(addresses=addresses):
            assert "fd99::1/64" in shown()
            subprocess.run(["ip", "link", "set", "ipsec0", "mtu", "900"], check=True)
            subprocess.run(["ip", "address", "flush", "dev", "ipsec0"], check=True)
            await until(lambda: "10.99.0.1/24" in shown())
            await until(lambda: "cannot add fd99::1/64" in caplog.text)
            subprocess.run(["ip", "link", "set", "ipsec0", "mtu", "1400"], check=True)
            await until(lambda: "fd99::1/64" in shown())
            assert caplog.text.count("cannot add fd99::1/64") == 1

    with caplog.at_level(logging.ERROR):
        asyncio.run(main())


def test_two_thousand_policies(namespace: None) -> None:
    async def main() -> None:
        async with running() as backend:
            ids = []
            for n in range(2000):
                remote = IPv4Address(0x0A000000 + n)
                ids.append(backend.add_policy(protect(EVERYWHERE, TrafficSelector(remote, remote), reqid=n + 1)))
            await backend.sync_routes()
            assert len(table()) == 2000
            for number in ids[:1999]:
                backend.del_policy(number)
            await backend.sync_routes()
            assert table() == ["10.0.7.207 dev ipsec0 proto 205"]

    asyncio.run(main())
