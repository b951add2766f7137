"""What the kernel tells of addresses and routes, in a namespace."""

from __future__ import annotations

import asyncio
import errno
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest
import uvloop

from ipsec.daemon import watch
from ipsec.daemon.watch import HostWatch
from ipsec.net.tun import Tun
from tests.backend.test_userspace import until
from tests.net.device import tun_in_namespace

OURS = 205


@pytest.fixture
def tun() -> Iterator[Tun]:
    """A device in a fresh network namespace; the test's thread is inside."""
    with tun_in_namespace("daemon-watch") as device:
        yield device


def ip(*args: str) -> None:
    subprocess.run(["ip", *args], check=True)


class Listener:
    """A watch, and how often it has called."""

    def __init__(self) -> None:
        self.heard = 0
        self.watch = HostWatch(self._hear, ignore_protocol=OURS, ignore_device="ipsec0")

    def _hear(self) -> None:
        self.heard += 1


async def quiet() -> None:
    await asyncio.sleep(2 * watch.SETTLE_S)


@pytest.fixture(params=["filtered", "looked at"])
def ours_are_no_news(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the kernel takes no filter for netlink, as one of a sandbox may not."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOPROTOOPT, "Protocol not available")

    if request.param == "looked at":
        monkeypatch.setattr(watch.bpf, "attach_filter", refuse)


@pytest.mark.e2e
@pytest.mark.usefixtures("ours_are_no_news")
def test_our_own_device_and_routes_are_no_news(tun: Tun) -> None:
    """The MTU follows the tunnels; each time a thousand IKE_SAs would be looked at."""

    async def main() -> None:
        listener = Listener()
        ip("link", "set", "ipsec0", "up")
        await quiet()
        listener.heard = 0
        ip("link", "set", "ipsec0", "mtu", "1300")
        ip("address", "add", "10.9.0.1/32", "dev", "ipsec0")
        ip("route", "add", "10.8.0.0/16", "dev", "ipsec0", "table", "220", "proto", str(OURS))
        await quiet()
        # the kernel's own route to an address of the device comes with it
        before = listener.heard
        ip("link", "set", "ipsec0", "mtu", "1400")
        ip("route", "del", "10.8.0.0/16", "table", "220")
        await quiet()
        assert listener.heard == before
        ip("link", "set", "lo", "up")
        await until(lambda: listener.heard > before)
        listener.watch.close()

    asyncio.run(main())


@pytest.mark.e2e
@pytest.mark.parametrize("version", [4, 6])
def test_nobody_is_woken_by_our_own_routes(tun: Tun, version: int) -> None:
    """A tunnel has one or more; others' routes come through, those that go as well."""
    network = {4: "10.8.0.0/16", 6: "2001:db8:8::/48"}[version]

    def routes(listener: Listener, protocol: int) -> list[int]:
        """The kinds of messages that are there after one has come and gone."""
        for action in ("add", "del"):
            ip(f"-{version}", "route", action, network, "dev", "ipsec0", "table", "220", "proto", str(protocol))
        kinds = []
        while True:
            try:
                kinds.append(int.from_bytes(listener.watch._socket.recv(1 << 16)[4:6], sys.byteorder))
            except BlockingIOError:
                return kinds

    async def main() -> None:
        # the loop, which this blocks, reads nothing of it
        listener = Listener()
        ip("link", "set", "ipsec0", "up")
        # with the device come routes of the kernel's
        time.sleep(0.5)
        routes(listener, 3)
        assert routes(listener, 3) == [24, 25]
        assert routes(listener, OURS) == []
        listener.watch.close()

    asyncio.run(main())


@pytest.mark.e2e
@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_it_hears_on_after_messages_were_lost(tun: Tun, new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def main() -> None:
        listener = Listener()
        listener.watch._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        for _ in range(3):
            before = listener.heard
            # all before the loop reads any of it
            for state in ("up", "down") * 20:
                ip("link", "set", "lo", state)
            await until(lambda before=before: listener.heard > before)
            await quiet()
        listener.watch.close()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())


@pytest.mark.e2e
def test_a_host_that_is_never_quiet_is_heard(tun: Tun, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one is whose containers come and go all the time."""
    monkeypatch.setattr(watch, "LATEST_S", 0.5)

    async def main() -> None:
        listener = Listener()
        loop = asyncio.get_running_loop()
        ip("link", "set", "lo", "up")
        end = loop.time() + 5
        number = 0
        while not listener.heard and loop.time() < end:
            number += 1
            await asyncio.to_thread(ip, "address", "add", f"10.7.{number // 256}.{number % 256}/32", "dev", "lo")
            await asyncio.sleep(watch.SETTLE_S / 20)
        assert listener.heard
        listener.watch.close()

    asyncio.run(main())
