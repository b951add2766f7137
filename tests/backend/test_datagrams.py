"""IKE datagrams in the event loop, over loopback, beside a real pump."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_address

import pytest

from ipsec.backend.base import Datagram
from ipsec.backend.datagrams import BUDGET, TURN_SECONDS, Datagrams
from ipsec.backend.worker import Worker
from ipsec.errors import BackendError
from ipsec.esp import fast
from ipsec.net import udp
from ipsec.net.memory import MemoryTun
from tests.backend.test_userspace import until

HERE, WILD = ip_address("127.0.0.1"), ip_address("0.0.0.0")
OTHER = ip_address("127.9.8.7")


class Side:
    """A host's IKE and ESP sockets, the pump that reads the latter, and what arrived."""

    def __init__(self, address: str, *, threaded: bool) -> None:
        self.got: list[Datagram] = []
        self.now = 0.0
        self.datagrams = Datagrams(clock=lambda: self.now)
        self.datagrams.handler = self.got.append
        self.tun = MemoryTun()
        (self.esp,) = udp.open_udp(ip_address(address), 0)
        self.engine = fast.Engine()
        self.pump = fast.Pump(self.engine, 0, tun_fd=self.tun.fd, udp4_fd=self.esp.fileno())
        self.datagrams.share([self.esp], df_lost=self.pump.forget_df)
        self.datagrams.open([ip_address(address)], 0, fwmark=0)
        self.worker = Worker(self.pump, self.tun.fd, [self.esp], drain=self.drain, lost=lambda: None)
        self.stop_fd = os.eventfd(0)
        if threaded:
            self.worker.start_thread("test", self.stop_fd, 0)
        else:
            self.worker.start()
        self.datagrams.start()

    def drain(self, worker: Worker) -> None:
        if self.datagrams.drain(worker.pump):
            worker.drain_again()

    @property
    def esp_port(self) -> int:
        return int(self.esp.getsockname()[1])

    @property
    def ike_port(self) -> int:
        return self.datagrams.ports[4]

    def close(self) -> None:
        os.eventfd_write(self.stop_fd, 1)
        self.worker.detach()
        if self.worker.thread is not None:
            self.worker.thread.join(1)
        self.datagrams.pause()
        self.datagrams.close()
        self.esp.close()
        self.tun.close()
        os.close(self.stop_fd)


@asynccontextmanager
async def sides(*addresses: str, threaded: bool = False) -> AsyncIterator[list[Side]]:
    made = [Side(address, threaded=threaded) for address in addresses]
    try:
        yield made
    finally:
        for side in made:
            side.close()


@pytest.mark.parametrize("threaded", [False, True])
def test_both_ports_and_the_way_back(threaded: bool) -> None:
    async def main() -> None:
        async with sides("127.0.0.1", "0.0.0.0", threaded=threaded) as (a, b):
            a.datagrams.send(b"first", HERE, a.ike_port, OTHER, b.ike_port)
            await until(lambda: b.got)
            first = b.got.pop()
            assert first == Datagram(b"first", HERE, a.ike_port, OTHER, b.ike_port)
            a.datagrams.send(b"second", None, a.esp_port, OTHER, b.esp_port)
            await until(lambda: b.got)
            second = b.got.pop()
            assert second == Datagram(b"second", HERE, a.esp_port, OTHER, b.esp_port)
            for asked in (first, second):
                b.datagrams.send(b"answer", asked.local, asked.local_port, asked.source, asked.port)
            await until(lambda: len(a.got) == 2)
            assert {(got.source, got.port, got.local_port) for got in a.got} == {
                (OTHER, b.ike_port, a.ike_port),
                (OTHER, b.esp_port, a.esp_port),
            }
            assert {got.data for got in a.got} == {b"answer"}

    asyncio.run(main())


@pytest.mark.parametrize("threaded", [False, True])
def test_a_message_longer_than_the_path_goes_without_df(threaded: bool) -> None:
    """And DF is back for ESP, which the pump sets before its next packet."""

    async def main() -> None:
        async with sides("127.0.0.1", "127.0.0.1", threaded=threaded) as (a, b):
            a.datagrams.send(bytes(60000), HERE, a.esp_port, HERE, b.esp_port)
            await until(lambda: b.got)
            assert len(b.got[0].data) == 60000
            assert a.datagrams.counts["ike_tx_datagrams"] == 1

    asyncio.run(main())


def test_keepalives_have_no_marker() -> None:
    async def main() -> None:
        async with sides("127.0.0.1", "127.0.0.1") as (a, b):
            a.datagrams.keepalive(HERE, a.esp_port, HERE, b.esp_port)
            await until(lambda: b.pump.counters()["keepalives"])
            assert b.got == []
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
                peer.bind(("127.0.0.1", 0))
                a.datagrams.keepalive(None, a.ike_port, HERE, peer.getsockname()[1])
                assert peer.recvfrom(10) == (b"\xff", ("127.0.0.1", a.ike_port))
            assert a.datagrams.counts["ike_tx_keepalives"] == 2

    asyncio.run(main())


def test_what_cannot_be_sent_is_counted_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with sides("127.0.0.1") as (a,):
            nowhere = ip_address("192.0.2.77")
            for _ in range(50):
                a.datagrams.send(b"x", nowhere, a.ike_port, HERE, 500)
            a.datagrams.send(b"x", HERE, a.ike_port, HERE, 70000)
            a.datagrams.send(b"x", None, a.ike_port, ip_address("::1"), 500)
            a.datagrams.keepalive(None, 4500, ip_address("::1"), 4500)
            assert a.datagrams.counts["ike_tx_errors"] == 53
            assert a.datagrams.counts["ike_tx_datagrams"] == 0

    with caplog.at_level(logging.WARNING):
        asyncio.run(main())
    assert len(caplog.records) == 1


@pytest.mark.parametrize("port", ["ike_port", "esp_port"])
def test_a_flood_leaves_the_loop_its_turns(port: str) -> None:
    """Every datagram that was kept is delivered, a bounded number in each turn."""

    async def main() -> None:
        async with sides("127.0.0.1") as (a,):
            marker = bytes(4) if port == "esp_port" else b""
            sent = 10 * BUDGET + 7
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
                for number in range(sent):
                    peer.sendto(marker + number.to_bytes(4, "big") + bytes(100), ("127.0.0.1", getattr(a, port)))
            most, before = 0, 0
            while len(a.got) < sent:
                await asyncio.sleep(0)
                most, before = max(most, len(a.got) - before), len(a.got)
            assert [int.from_bytes(got.data[:4], "big") for got in a.got] == list(range(sent))
            assert most <= BUDGET

    asyncio.run(main())


@pytest.mark.parametrize("port", ["ike_port", "esp_port"])
def test_a_turn_of_the_loop_is_bounded_by_time(port: str) -> None:
    async def main() -> None:
        async with sides("127.0.0.1") as (a,):
            marker = bytes(4) if port == "esp_port" else b""
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
                for number in range(40):
                    peer.sendto(marker + number.to_bytes(4, "big"), ("127.0.0.1", getattr(a, port)))

            def handler(datagram: Datagram) -> None:
                a.got.append(datagram)
                a.now += TURN_SECONDS / 2

            a.datagrams.handler = handler
            most, before = 0, 0
            while len(a.got) < 40:
                await asyncio.sleep(0)
                most, before = max(most, len(a.got) - before), len(a.got)
            assert most == 2

    asyncio.run(main())


def test_a_handler_that_fails_loses_one_datagram(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with sides("127.0.0.1") as (a,):
            heard: list[bytes] = []

            def handler(datagram: Datagram) -> None:
                heard.append(datagram.data)
                if len(heard) == 1:
                    raise ValueError("a bug")

            a.datagrams.handler = handler
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
                for data in (b"one", b"two"):
                    peer.sendto(data, ("127.0.0.1", a.ike_port))
            await until(lambda: len(heard) == 2)

    with caplog.at_level(logging.ERROR):
        asyncio.run(main())
    assert "was not handled" in caplog.text


def test_without_an_address_nothing_is_delivered() -> None:
    async def main() -> None:
        async with sides("127.0.0.1") as (a,):
            a.datagrams.deliver([(bytes(8), None, None, -1), (bytes(4), ("127.0.0.1", 1), None, a.esp.fileno())])
            assert a.got == []
            assert a.datagrams.counts["ike_rx_unusable"] == 2

    asyncio.run(main())


def test_a_port_that_one_family_has_not_is_none() -> None:
    """Whoever opens sockets later than at the start goes on as before."""
    datagrams = Datagrams()
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as holder:
        holder.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        holder.bind(("::1", 0))
        port = holder.getsockname()[1]
        with pytest.raises(BackendError, match=f"port {port}"):
            datagrams.open([ip_address("127.0.0.1"), ip_address("::1")], port, fwmark=0)
        assert datagrams.ports == {}
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
            again.bind(("127.0.0.1", port))
