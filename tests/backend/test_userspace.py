"""The user-space backend over links in memory: real SAs and packets, no privilege.

Each test runs with the pump in Python over the reference engine, and with the compiled data path where it is built.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import select
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from types import ModuleType

import pytest

from ipsec.backend import datagrams, manual, routes, seqstore
from ipsec.backend.base import Acquire, BackendEvent, Datagram, DeviceLost, Expire, Mapping
from ipsec.backend.core import Core
from ipsec.backend.manual import ManualSas
from ipsec.backend.routes import gso_max_size, superframe_size
from ipsec.backend.seqstore import SequenceStore
from ipsec.backend.settings import MemoryEnds, UserspaceSettings
from ipsec.backend.userspace import UserspaceBackend
from ipsec.crypto.suites import EspSuite, all_esp_suites, esp_suite
from ipsec.errors import BackendError, SaError, SuiteError
from ipsec.esp.drops import DropReason
from ipsec.esp.engine import Event, EventKind
from ipsec.esp.sa import Action, Direction, Lifetime, Policy, SaParams
from ipsec.net.memory import MemoryLink, MemoryTun
from ipsec.wire.ip import UDP, ip_header
from ipsec.wire.selector import SelectorPair, TrafficSelector
from tests.backend import python_core


@pytest.fixture(params=["python", "compiled"])
def core(request: pytest.FixtureRequest) -> ModuleType:
    if request.param == "python":
        return python_core
    return importlib.import_module("ipsec.esp.fast")


OUTER = ip_address("192.0.2.1"), ip_address("192.0.2.2")
INNER = ip_address("10.1.0.1"), ip_address("10.2.0.1")
KEYS = bytes(range(20)), bytes(range(100, 120))


def net(text: str) -> TrafficSelector:
    first, last = text.split("-")
    return TrafficSelector(ip_address(first), ip_address(last))


NETS = net("10.1.0.0-10.1.255.255"), net("10.2.0.0-10.2.255.255")


def pair(side: int) -> tuple[SaParams, SaParams]:
    """Inbound and outbound SA of one side."""
    selectors = (SelectorPair(NETS[side], NETS[1 - side]),)
    inbound = SaParams(
        spi=0x1000 + side,
        direction=Direction.IN,
        suite=esp_suite("aes128gcm16"),
        local=OUTER[side],
        remote=OUTER[1 - side],
        encr_key=KEYS[side],
        encap=(4500, 4500),
        selectors=selectors,
        reqid=1,
    )
    outbound = replace(inbound, spi=0x1001 - side, direction=Direction.OUT, encr_key=KEYS[1 - side])
    return inbound, outbound


def policy(side: int) -> Policy:
    return Policy(Action.PROTECT, (SelectorPair(NETS[side], NETS[1 - side]),), reqid=1)


def packet(side: int, payload: bytes = b"hello") -> bytes:
    """A UDP packet from one inside to the other, without a checksum."""
    udp = b"\x04\xd2\x16\x2e" + (8 + len(payload)).to_bytes(2, "big") + bytes(2) + payload
    return ip_header(INNER[side], INNER[1 - side], UDP, len(udp), tos=0, df=True) + udp


class End:
    """One backend in memory and what it reported."""

    def __init__(self, core: Core, link: MemoryLink, side: int, **settings: object) -> None:
        self.tun = MemoryTun(vnet_hdr=True)
        ends = MemoryEnds(self.tun, link, side)
        self.backend = UserspaceBackend(replace(UserspaceSettings(memory=ends), **settings), core=core)  # type: ignore[arg-type]
        self.events: list[BackendEvent] = []
        self.datagrams: list[Datagram] = []
        self.backend.on_event(self.events.append)
        self.backend.on_datagram(self.datagrams.append)


@asynccontextmanager
async def ends(core: Core, **settings: object) -> AsyncIterator[tuple[End, End]]:
    """Two backends joined by a wire in memory."""
    link = MemoryLink()
    both = End(core, link, 0, **settings), End(core, link, 1, **settings)
    try:
        for end in both:
            await end.backend.start()
        yield both
    finally:
        for end in both:
            await end.backend.stop()
            end.tun.close()
        link.close()


async def until(what: Callable[[], object], timeout: float = 5) -> None:
    """Let the loop run until it becomes true."""
    deadline = time.monotonic() + timeout
    while not what():
        assert time.monotonic() < deadline, "it did not happen"
        await asyncio.sleep(0.001)


async def arrives(end: End, count: int = 1) -> list[bytes]:
    """The next packets that reach the inside."""
    got: list[bytes] = []

    def enough() -> bool:
        got.extend(end.tun.receive())
        return len(got) >= count

    await until(enough)
    return got


@pytest.mark.parametrize("workers", [0, 1])
def test_packets_pass_both_ways(core: ModuleType, workers: int) -> None:
    async def main() -> None:
        async with ends(core, workers=workers) as (a, b):
            for side, end in enumerate((a, b)):
                end.backend.set_policies([policy(side)])
                for params in pair(side):
                    end.backend.add_sa(params)
            for side, (sender, receiver) in enumerate(((a, b), (b, a))):
                for size in (0, 1, 100, 1300):
                    sent = packet(side, bytes(size))
                    sender.tun.send(sent)
                    assert await arrives(receiver) == [sent]

    asyncio.run(main())


def test_providers_are_known_before_there_is_an_sa(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def provider_of(self: python_core.Engine, suite: EspSuite) -> str:
        asked.append(suite)
        return "python"

    async def main() -> None:
        async with ends(python_core) as (a, _):
            await a.backend.stop()
            # the other one goes on alone
            asked.clear()
            await until(lambda: len(asked) >= len(all_esp_suites()) - 1)
            assert len(set(asked)) == len(asked)

    monkeypatch.setattr(python_core.Engine, "provider_of", provider_of)
    asyncio.run(main())


def test_a_suite_without_a_provider_costs_no_other_its_own(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = []

    def provider_of(self: python_core.Engine, suite: EspSuite) -> str:
        asked.append(suite)
        raise SuiteError(f"{suite.name}: no crypto provider gives the known answers")

    async def main() -> None:
        async with ends(python_core):
            await until(lambda: len(asked) == 2 * len(all_esp_suites()))

    monkeypatch.setattr(python_core.Engine, "provider_of", provider_of)
    asyncio.run(main())
    assert "aes128gcm16: no crypto provider" in caplog.text


def test_a_packet_without_an_sa_asks_for_one(core: ModuleType) -> None:
    async def main() -> None:
        async with ends(core) as (a, _):
            number = a.backend.add_policy(policy(0))
            a.tun.send(packet(0))
            await until(lambda: a.events)
            assert a.events == [Acquire(number, 1)]
            assert a.backend.drops() == {}
            a.backend.del_policy(number)
            a.tun.send(packet(0))
            # the one that waited has no policy any more
            await until(lambda: a.backend.drops() == {DropReason.OUT_NO_POLS: 2})

    asyncio.run(main())


@pytest.mark.parametrize("workers", [0, 1])
def test_packets_wait_for_their_sa(core: ModuleType, workers: int) -> None:
    """The newest eight, in order; the older ones are counted."""

    async def main() -> None:
        async with ends(core, workers=workers) as (a, b):
            inbound, outbound = pair(0)
            b.backend.add_sa(pair(1)[0])
            number = a.backend.add_policy(policy(0))
            for size in range(12):
                a.tun.send(packet(0, bytes(size)))
            await until(lambda: a.backend.drops() == {DropReason.OUT_NO_STATES: 4})
            await until(lambda: a.events)
            assert b.tun.receive() == []
            a.backend.add_sa(replace(outbound, spi=0x7777, reqid=2))
            a.backend.add_sa(inbound)
            sa = a.backend.add_sa(outbound)
            assert await arrives(b, 8) == [packet(0, bytes(size)) for size in range(4, 12)]
            assert a.backend.drops() == {DropReason.OUT_NO_STATES: 4}
            assert a.events == [Acquire(number, 1)]
            # and again, when the SA has gone
            a.backend.del_sa(sa)
            a.tun.send(packet(0))
            await until(lambda: len(a.events) == 2)
            a.backend.add_sa(replace(outbound, initial_seq=100))
            assert await arrives(b) == [packet(0)]

    asyncio.run(main())


def test_acquire_comes_again_after_rearm(core: ModuleType) -> None:
    async def main() -> None:
        async with ends(core) as (a, _):
            number = a.backend.add_policy(policy(0))
            for asked in (1, 2):
                for _ in range(3):
                    a.tun.send(packet(0))
                await until(lambda asked=asked: len(a.events) >= asked)  # type: ignore[misc]
                await asyncio.sleep(0.01)
                assert a.events == [Acquire(number, 1)] * asked
                a.backend.rearm(number)
            a.backend.rearm(12345)

    asyncio.run(main())


def test_nothing_waits_if_it_is_not_to(core: ModuleType) -> None:
    async def main() -> None:
        async with ends(core, hold_packets=0) as (a, _):
            a.backend.add_policy(policy(0))
            a.tun.send(packet(0))
            await until(lambda: a.backend.drops() == {DropReason.OUT_NO_STATES: 1})

    asyncio.run(main())


@pytest.mark.parametrize("workers", [0, 1])
def test_what_waits_for_an_sa_at_the_end_is_a_drop(core: ModuleType, workers: int) -> None:
    """Packets in = packets out + drops, also of the last ones."""

    async def main() -> None:
        async with ends(core, workers=workers) as (a, _):
            a.backend.add_policy(policy(0))
            a.tun.send(packet(0))
            await until(lambda: a.events)
            assert a.backend.drops() == {}
            await a.backend.quiesce()
            assert a.backend.drops() == {DropReason.OUT_NO_STATES: 1}
            await a.backend.quiesce()
            assert a.backend.drops() == {DropReason.OUT_NO_STATES: 1}

    asyncio.run(main())


@pytest.mark.parametrize("workers", [0, 1])
def test_packets_that_come_before_their_sa_wait_for_it(core: ModuleType, workers: int) -> None:
    """RFC 7296 section 2.8: the peer has answered, and the answer is on its way still."""

    async def main() -> None:
        async with ends(core, workers=workers) as (a, b):
            inbound, outbound = pair(1)[0], pair(0)[1]
            spi = b.backend.get_spi()
            a.backend.add_sa(replace(outbound, spi=spi))
            a.backend.add_policy(policy(0))
            packets = [packet(0, bytes(size)) for size in range(8)]
            for one in packets:
                a.tun.send(one)
            await until(lambda: b.backend._need_engine().early() == 8)
            assert b.tun.receive() == []
            b.backend.add_sa(replace(inbound, spi=spi))
            assert await arrives(b, 8) == packets
            assert b.backend.drops() == {}
            # and from now on as ever
            a.tun.send(packet(0))
            assert await arrives(b) == [packet(0)]

    asyncio.run(main())


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("end", ["free_spi", "quiesce"])
def test_packets_whose_sa_does_not_come_are_dropped(core: ModuleType, workers: int, end: str) -> None:
    async def main() -> None:
        async with ends(core, workers=workers) as (a, b):
            spi = b.backend.get_spi()
            a.backend.add_sa(replace(pair(0)[1], spi=spi))
            a.backend.add_policy(policy(0))
            a.tun.send(packet(0))
            await until(lambda: b.backend._need_engine().early())
            assert b.backend.drops() == {}
            if end == "free_spi":
                b.backend.free_spi(spi)
                await until(b.backend.drops)
                a.tun.send(packet(0))
                await until(lambda: b.backend.drops() == {DropReason.IN_NO_STATES: 2})
            else:
                await b.backend.quiesce()
                assert b.backend.drops() == {DropReason.IN_NO_STATES: 1}
            assert not b.backend._need_engine().early()

    asyncio.run(main())


@pytest.mark.parametrize("workers", [0, 1])
def test_an_sa_moves_in_place(core: ModuleType, workers: int) -> None:
    """To another local and remote address, another port, and back (RFC 4555); what no socket fits is refused."""
    elsewhere = ip_address("203.0.113.1"), ip_address("203.0.113.2")

    async def main() -> None:
        async with ends(core, workers=workers) as (a, b):
            a.backend.set_policies([policy(0)])
            b.backend.add_sa(pair(1)[0])
            inbound, outbound = (a.backend.add_sa(params) for params in pair(0))
            for local, remote, port in ((OUTER[0], elsewhere[1], 4500), (*elsewhere, 9999), (*OUTER, 4500)):
                for sa in (inbound, outbound):
                    a.backend.update_sa(sa, local=local, remote=remote, encap=(4500, port), path_mtu=1400)
                    stats = a.backend.query_sa(sa)
                    assert (stats.remote, stats.encap) == (remote, (4500, port))
                a.tun.send(packet(0))
                assert await arrives(b) == [packet(0)]
            with pytest.raises(SaError, match="protocol 50 is off"):
                a.backend.update_sa(outbound, local=OUTER[0], remote=OUTER[1], encap=None, path_mtu=1400)
            with pytest.raises(SaError, match="is not the one in use"):
                a.backend.update_sa(outbound, local=OUTER[0], remote=OUTER[1], encap=(1, 1), path_mtu=1400)
            with pytest.raises(SaError, match="no SA with id"):
                a.backend.update_sa(12345, local=OUTER[0], remote=OUTER[1], encap=(4500, 1), path_mtu=1400)
            assert a.backend.query_sa(outbound).packets == 3

    asyncio.run(main())


def test_keepalives_are_no_drop_and_garbage_is_one(core: ModuleType) -> None:
    async def main() -> None:
        async with ends(core) as (a, b):
            wire = a.backend._sockets[0]
            wire.send(b"\xff")
            wire.send(b"\x00\x00\x20\x00garbage that is no ESP of any SA")
            await until(lambda: b.backend.drops())
            assert b.backend.drops() == {DropReason.IN_NO_STATES: 1}
            assert b.tun.receive() == []

    asyncio.run(main())


def test_volume_limits_become_events(core: ModuleType) -> None:
    async def main() -> None:
        async with ends(core) as (a, _):
            a.backend.set_policies([policy(0)])
            limits = Lifetime(packets_soft=2, packets_hard=3)
            sa = a.backend.add_sa(replace(pair(0)[1], lifetime=limits))
            for _ in range(5):
                a.tun.send(packet(0))
            await until(lambda: len(a.events) >= 2)
            assert a.events[:2] == [Expire(sa, False, "volume"), Expire(sa, True, "volume")]
            await until(lambda: a.backend.query_sa(sa).packets == 3)

    asyncio.run(main())


def test_sas_that_no_socket_fits_are_refused(core: ModuleType) -> None:
    async def main() -> None:
        async with ends(core) as (a, _):
            inbound = pair(0)[0]
            with pytest.raises(SaError, match="protocol 50 is off"):
                a.backend.add_sa(replace(inbound, encap=None))
            with pytest.raises(SaError, match="port 4501 is not the one in use, 4500"):
                a.backend.add_sa(replace(inbound, encap=(4501, 4500)))
            six = ip_address("2001:db8::1")
            with pytest.raises(SaError, match="no socket for IPv6"):
                a.backend.add_sa(replace(inbound, local=six, remote=six))
            sa = a.backend.add_sa(inbound)
            with pytest.raises(SaError):
                a.backend.add_sa(inbound)
            a.backend.del_sa(sa)
            a.backend.add_sa(inbound)
            assert not a.backend.raw_esp

    asyncio.run(main())


def test_spis_are_never_reserved_ones_nor_taken(core: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with ends(core) as (a, _):
            a.backend.add_sa(pair(0)[0])
            numbers = iter([0, 255, 0x1000, 0x2000, 0x2000, 0x3000])
            monkeypatch.setattr("secrets.randbits", lambda bits: next(numbers))
            assert a.backend.get_spi() == 0x2000
            assert a.backend.get_spi() == 0x3000

    asyncio.run(main())


def test_stop_is_safe_in_any_state(core: ModuleType) -> None:
    async def main() -> None:
        link = MemoryLink()
        end = End(core, link, 0, workers=1)
        await end.backend.stop()
        await end.backend.start()
        begin = time.monotonic()
        await end.backend.stop()
        await end.backend.stop()
        assert time.monotonic() - begin < 0.5
        with pytest.raises(BackendError, match="not running"):
            end.backend.drops()
        await end.backend.start()
        await end.backend.stop()
        end.tun.close()
        link.close()

    asyncio.run(main())


def test_a_failed_start_releases_everything(core: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **rest: object) -> None:
        raise BackendError("no pump today")

    class Broken:
        Engine = core.Engine
        Pump = staticmethod(broken)

    async def main() -> None:
        link = MemoryLink()
        end = End(Broken, link, 0)
        with pytest.raises(BackendError, match="no pump today"):
            await end.backend.start()
        assert end.backend._tun is None
        assert end.backend._sockets == []
        end.tun.close()
        link.close()

    asyncio.run(main())


def small_blocks(monkeypatch: pytest.MonkeyPatch, size: int = 16) -> None:
    monkeypatch.setattr(seqstore, "BLOCK_32", size)
    monkeypatch.setattr(manual, "RETRY_SECONDS", 0.01)


@pytest.mark.parametrize("workers", [0, 1])
def test_manual_sa_moves_on_to_reserved_numbers(
    core: ModuleType, workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_blocks(monkeypatch)

    async def main() -> None:
        async with ends(core, workers=workers) as (a, b):
            sas = []
            for side, end in enumerate((a, b)):
                end.backend.set_policies([policy(side)])
                sas.append(ManualSas(end.backend, SequenceStore(tmp_path / str(side))))
                end.backend.on_event(lambda event, sas=sas[-1]: sas.handle(event))  # type: ignore[misc]
                sas[-1].install([pair(side)])
            path = next((tmp_path / "0").glob("*.seq"))
            for number in range(100):
                a.tun.send(packet(0, str(number).encode()))
                assert await arrives(b) == [packet(0, str(number).encode())]
                # let the event be heard before the next packet, as a real line gives it half a second
                await asyncio.sleep(0.002)
            mark = int(path.read_text().split()[1])
            assert mark >= 100
            await a.backend.quiesce()
            sas[0].release()
            used = int(path.read_text().split()[1])
            assert 100 <= used <= mark
            sas[1].release(quiet=False)

    asyncio.run(main())


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_is_lost_when_a_block_is_renewed(
    core: ModuleType, workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_blocks(monkeypatch, 1024)

    async def main() -> None:
        async with ends(core, workers=workers) as (a, b):
            a.backend.set_policies([policy(0)])
            b.backend.add_sa(pair(1)[0])
            sas = ManualSas(a.backend, SequenceStore(tmp_path))
            a.backend.on_event(lambda event: sas.handle(event) if isinstance(event, Expire) else None)
            sas.install([pair(0)])
            installed = set(a.backend._sas)
            sent = arrived = 0
            # bursts that cross the limits at another place each time, and leave the loop a third of the margin
            while sent < 10_000:
                for _ in range(1 + sent % 37):
                    assert a.tun.send(packet(0))
                    sent += 1
                arrived += len(await arrives(b, sent - arrived))
                (path,) = tmp_path.glob("*.seq")
                mark = int(path.read_text().split()[1])
                seq = max(stats.seq for params, stats in sas.stats() if params.direction is Direction.OUT)
                assert seq <= mark
                await asyncio.sleep(0)
            assert arrived == sent
            assert a.backend.drops() == {}
            assert set(a.backend._sas) == installed
            assert mark > 9 * 1024
            sas.release(quiet=False)

    asyncio.run(main())


def test_an_event_of_old_limits_does_not_silence_the_new_ones(
    core: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that read the limit a moment before it moved tells of it a moment after."""
    small_blocks(monkeypatch)

    async def main() -> None:
        async with ends(core) as (a, _):
            a.backend.set_policies([policy(0)])
            sas = ManualSas(a.backend, SequenceStore(tmp_path))
            sas.install([pair(0)])
            (number,) = sas._outbound
            heard: list[BackendEvent] = []
            a.backend.on_event(heard.append)
            for _ in range(14):
                a.tun.send(packet(0))
            await until(lambda: heard == [Expire(number, False, "volume")])
            sas.handle(Expire(number, False, "volume"))
            # the late one, before any further packet
            sas.handle(Expire(number, False, "volume"))
            sas.handle(Expire(number, True, "volume"))
            for _ in range(16):
                a.tun.send(packet(0))
            await until(lambda: len(heard) == 2)
            assert heard[1] == Expire(number, False, "volume")
            assert a.backend.drops() == {}
            sas.release(quiet=False)

    asyncio.run(main())


def test_the_last_numbers_of_a_key(core: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is left to reserve: the engine warns once in time, and nobody asks the disk again and again."""
    store = SequenceStore(tmp_path)
    held = store.claim(KEYS[1], b"", esn=False)
    held.next_block()
    held.close()
    (path,) = tmp_path.glob("*.seq")
    path.write_text(f"ipsecd-sequence-1 {(1 << 32) - 21}\n")

    async def main() -> None:
        async with ends(core) as (a, _):
            a.backend.set_policies([policy(0)])
            sas = ManualSas(a.backend, store)
            a.backend.on_event(lambda event: sas.handle(event) if isinstance(event, Expire) else None)
            sas.install([pair(0)])
            for _ in range(30):
                a.tun.send(packet(0))
            await until(lambda: sum(a.backend.drops().values()) == 10)
            assert a.backend.drops() == {DropReason.OUT_STATE_SEQ_ERROR: 10}
            sas.release(quiet=False)

    with caplog.at_level(logging.WARNING):
        asyncio.run(main())
    assert [record.levelname for record in caplog.records] == ["WARNING", "ERROR"]


def test_a_restart_still_knows_what_was_received(core: ModuleType, tmp_path: Path) -> None:
    recorded: list[bytes] = []

    async def life(play: bool) -> None:
        async with ends(core) as (a, b):
            for side, end in enumerate((a, b)):
                end.backend.set_policies([policy(side)])
            sas = ManualSas(b.backend, SequenceStore(tmp_path))
            sas.install([pair(1)])
            if play:
                for message in recorded:
                    a.backend._sockets[0].send(message)
                await until(lambda: b.backend.drops().get(DropReason.IN_STATE_SEQ_ERROR) == 5)
                assert b.tun.receive() == []
                a.backend.add_sa(replace(pair(0)[1], initial_seq=5))
                a.tun.send(packet(0))
                assert await arrives(b) == [packet(0)]
            else:
                sender = core.Engine()
                number = sender.add_sa(pair(0)[1])
                recorded.extend(sender.encapsulate(number, packet(0), 0.0).datagram for _ in range(5))
                for message in recorded:
                    a.backend._sockets[0].send(message)
                assert len(await arrives(b, 5)) == 5
            await b.backend.quiesce()
            sas.release()

    asyncio.run(life(False))
    (path,) = tmp_path.glob("*.seen")
    assert path.read_text() == "ipsecd-sequence-1 5\n"
    asyncio.run(life(True))


def test_what_was_received_is_written_down_while_running(
    core: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manual, "REMEMBER_SECONDS", 0.01)

    async def main() -> None:
        async with ends(core) as (a, b):
            a.backend.set_policies([policy(0)])
            a.backend.add_sa(pair(0)[1])
            sas = ManualSas(b.backend, SequenceStore(tmp_path))
            sas.install([pair(1)])
            a.tun.send(packet(0))
            await arrives(b)
            await until(lambda: [p.read_text() for p in tmp_path.glob("*.seen")] == ["ipsecd-sequence-1 1\n"])
            sas.release(quiet=False)

    asyncio.run(main())


def test_manual_sa_stops_at_the_mark_when_the_disk_is_full(
    core: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    small_blocks(monkeypatch)
    full = True
    write = seqstore.Reservation._write

    def limited(self: seqstore.Reservation, mark: int) -> None:
        if full and mark > 16:
            raise OSError(28, "No space left on device")
        write(self, mark)

    monkeypatch.setattr(seqstore.Reservation, "_write", limited)

    async def main() -> None:
        nonlocal full
        async with ends(core) as (a, b):
            for side, end in enumerate((a, b)):
                end.backend.set_policies([policy(side)])
            b.backend.add_sa(pair(1)[0])
            sas = ManualSas(a.backend, SequenceStore(tmp_path))
            a.backend.on_event(lambda event: sas.handle(event) if isinstance(event, Expire) else None)
            sas.install([pair(0)])
            for _ in range(40):
                a.tun.send(packet(0))
            await until(lambda: a.backend.drops().get(DropReason.OUT_STATE_EXPIRED, 0) == 24)
            assert len(await arrives(b, 16)) == 16
            assert "No space left" in caplog.text
            full = False
            await until(lambda: int(next(tmp_path.glob("*.seq")).read_text().split()[1]) > 16)
            a.tun.send(packet(0))
            assert await arrives(b) == [packet(0)]
            sas.release(quiet=False)

    with caplog.at_level(logging.ERROR):
        asyncio.run(main())


def test_install_is_all_or_nothing(core: ModuleType, tmp_path: Path) -> None:
    async def main() -> None:
        async with ends(core) as (a, _):
            sas = ManualSas(a.backend, SequenceStore(tmp_path))
            good, bad = pair(0), pair(0)
            other = replace(bad[0], spi=0x5000), replace(bad[1], spi=0x5001)
            with pytest.raises(BackendError, match="in use by another SA"):
                sas.install([good, other])
            sas.install([good])
            sas.release(quiet=False)

    asyncio.run(main())


@pytest.mark.parametrize(("suite", "starts"), [("aes128-sha256", False), ("3des-sha1", False), ("null-sha256", True)])
def test_without_a_place_for_numbers_no_iv_comes_again(
    core: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture, suite: str, starts: bool
) -> None:
    """In CBC the number makes the IV: from 1 again after each start, equal packets would look equal."""
    nowhere = tmp_path / "file"
    nowhere.write_text("")
    chosen = esp_suite(suite)
    keys = {"encr_key": bytes(range(chosen.encr_key_len)), "integ_key": bytes(range(chosen.integ_key_len))}
    inbound, outbound = (replace(params, suite=chosen, **keys) for params in pair(0))

    async def main() -> None:
        async with ends(core) as (a, _):
            sas = ManualSas(a.backend, SequenceStore(nowhere / "state"))
            if starts:
                sas.install([(inbound, outbound)])
                assert "starts at sequence number 1 again" in caplog.text
                sas.release()
                return
            with pytest.raises(BackendError, match="would use an IV twice"):
                sas.install([(inbound, outbound)])

    asyncio.run(main())


def test_who_stops_again_waits_for_the_threads_too(core: ModuleType) -> None:
    """The first one may have been cancelled: numbers are final, and descriptors free, when they have ended."""

    async def main() -> None:
        async with ends(core, workers=1) as (a, _):
            assert a.backend._helper is not None
            a.backend._helper.submit(time.sleep, 0.2)
            first = asyncio.create_task(a.backend.quiesce())
            await asyncio.sleep(0)
            first.cancel()
            await a.backend.quiesce()
            assert not any(worker.thread and worker.thread.is_alive() for worker in a.backend._workers)
            assert a.backend._stop_fd == -1
            await a.backend.quiesce()

    asyncio.run(main())


def test_one_key_both_ways_is_refused(core: ModuleType, tmp_path: Path) -> None:
    async def main() -> None:
        async with ends(core) as (a, _):
            inbound, outbound = pair(0)
            sas = ManualSas(a.backend, SequenceStore(tmp_path))
            with pytest.raises(BackendError, match="share a key") as caught:
                sas.install([(inbound, replace(outbound, encr_key=inbound.encr_key))])
            assert inbound.encr_key.hex() not in str(caught.value)
            assert list(tmp_path.iterdir()) == []

    asyncio.run(main())


def test_configured_lifetime_counts_over_blocks(
    core: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_blocks(monkeypatch)

    async def main() -> None:
        async with ends(core) as (a, b):
            for side, end in enumerate((a, b)):
                end.backend.set_policies([policy(side)])
            b.backend.add_sa(pair(1)[0])
            sas = ManualSas(a.backend, SequenceStore(tmp_path))
            a.backend.on_event(lambda event: sas.handle(event) if isinstance(event, Expire) else None)
            inbound, outbound = pair(0)
            sas.install([(inbound, replace(outbound, lifetime=Lifetime(packets_soft=30, packets_hard=37)))])
            got = 0
            for _ in range(60):
                a.tun.send(packet(0))
                await asyncio.sleep(0.002)
                got += len(b.tun.receive())
            assert got == 37
            sas.release(quiet=False)

    asyncio.run(main())


def test_a_configured_soft_lifetime_is_told_once(
    core: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    small_blocks(monkeypatch)

    async def main() -> None:
        async with ends(core) as (a, b):
            a.backend.set_policies([policy(0)])
            b.backend.add_sa(pair(1)[0])
            sas = ManualSas(a.backend, SequenceStore(tmp_path))
            a.backend.on_event(lambda event: sas.handle(event) if isinstance(event, Expire) else None)
            inbound, outbound = pair(0)
            limits = Lifetime(packets_soft=20, bytes_soft=40 * len(packet(0)), bytes_hard=50 * len(packet(0)))
            sas.install([(inbound, replace(outbound, lifetime=limits))])
            got = 0
            for _ in range(60):
                a.tun.send(packet(0))
                await asyncio.sleep(0.002)
                got += len(b.tun.receive())
            assert got == 50
            sas.release(quiet=False)

    with caplog.at_level(logging.WARNING):
        asyncio.run(main())
    assert [record.levelname for record in caplog.records] == ["WARNING", "ERROR"]


@pytest.mark.parametrize("kind", list(EventKind))
def test_every_event_of_the_data_path_is_understood(core: ModuleType, kind: EventKind) -> None:
    async def main() -> None:
        async with ends(core) as (a, _):
            a.backend._translate(Event(kind, 7, 9, (OUTER[0], 4500)))
            if kind is EventKind.DEVICE_LOST:
                # a device in memory cannot be made again
                await until(lambda: a.events)
                assert isinstance(a.events[0], DeviceLost)
                assert a.backend._workers == []
                return
            (event,) = a.events
            assert not isinstance(event, DeviceLost)
            assert isinstance(event, Expire) == (kind.name.startswith(("SOFT", "HARD", "SEQUENCE")))

    asyncio.run(main())


def test_what_leads_to_the_old_place_follows_the_peer(core: ModuleType) -> None:
    elsewhere = ip_address("198.51.100.7")

    async def main() -> None:
        async with ends(core) as (a, _):
            inbound, outbound = pair(0)
            moving = a.backend.add_sa(inbound)
            same = a.backend.add_sa(outbound)
            other_place = a.backend.add_sa(replace(outbound, spi=0x7001, encap=(4500, 9)))
            other_traffic = a.backend.add_sa(replace(outbound, spi=0x7002, reqid=2))
            for place in ((OUTER[1], 5000), (elsewhere, 5001)):
                a.backend._translate(Event(EventKind.MAPPING, moving, source=place))
                stats = a.backend.query_sa(same)
                assert (stats.remote, stats.encap) == (place[0], (4500, place[1]))
            assert a.backend.query_sa(other_place).encap == (4500, 9)
            assert a.backend.query_sa(other_traffic).remote == OUTER[1]
            assert [event.port for event in a.events if isinstance(event, Mapping)] == [5000, 5001]
            a.backend.del_sa(moving)
            a.backend._translate(Event(EventKind.MAPPING, moving, source=(OUTER[1], 5002)))
            assert a.backend.query_sa(same).encap == (4500, 5001)
            for number in (same, other_place, other_traffic):
                a.backend.del_sa(number)

    asyncio.run(main())


@pytest.mark.parametrize("workers", [0, 1])
def test_packets_that_wait_at_the_end_are_counted(workers: int) -> None:
    """A wire that takes no more: what is left in the data path when it stops was neither sent nor forgotten."""

    async def main() -> None:
        async with ends(importlib.import_module("ipsec.esp.fast"), workers=workers) as (a, b):
            a.backend.add_policy(policy(0))
            a.backend.add_sa(pair(0)[1])
            await b.backend.quiesce()
            counters = a.backend.counters
            while not counters()["socket_full"]:
                while a.tun.send(packet(0, bytes(1000))):
                    pass
                await asyncio.sleep(0.001)
            await a.backend.quiesce()
            found = counters()
            assert found["tun_rx_packets"] == found["net_tx_datagrams"] + sum(a.backend.drops().values())

    asyncio.run(main())


def test_an_event_that_cannot_be_dealt_with_takes_no_other_along(
    core: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with ends(core) as (a, _):
            told: list[BackendEvent] = []

            def handle(event: BackendEvent) -> None:
                told.append(event)
                if len(told) == 1:
                    raise ValueError("a bug")

            a.backend.on_event(handle)
            halves = net("10.2.0.0-10.2.0.0"), net("10.2.0.1-10.2.0.1")
            a.backend.set_policies(
                [Policy(Action.PROTECT, (SelectorPair(NETS[0], half),), reqid=n + 1) for n, half in enumerate(halves)]
            )
            sent = packet(0)
            for last in (b"\0", b"\1"):
                # the first of them has a header checksum that is wrong, which nobody here looks at
                assert a.tun.send(sent[:19] + last + sent[20:])
            await until(lambda: len(told) == 2)
            assert {event.reqid for event in told if isinstance(event, Acquire)} == {1, 2}
            assert "a bug" in caplog.text

    with caplog.at_level(logging.ERROR):
        asyncio.run(main())


@pytest.mark.parametrize("workers", [0, 1])
def test_a_lost_device_is_told_once_however_packets_move(core: ModuleType, workers: int) -> None:
    async def main() -> None:
        async with ends(core, workers=workers) as (a, _):
            a.tun.lose()
            await until(lambda: a.events)
            await asyncio.sleep(0.05)
            assert [type(event) for event in a.events] == [DeviceLost]

    asyncio.run(main())


@pytest.mark.parametrize("workers", [0, 1])
def test_ike_that_came_before_the_device_was_lost_is_delivered(
    core: ModuleType, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if that takes several turns of the loop. In memory nobody can be answered, and it is counted as that."""
    monkeypatch.setattr(datagrams, "BUDGET", 1)

    async def main() -> None:
        async with ends(core, workers=workers) as (a, b):
            pump = a.backend._workers[0].pump
            for _ in range(1 if workers else 3):
                b.backend._sockets[0].send(bytes(4) + b"IKE")
            if workers:
                select.select([pump.event_fd], [], [], 5)
            else:
                pump.run_sockets(16)
            a.backend._device_gone()
            await until(lambda: a.events)
            assert a.backend.counters()["ike_rx_unusable"] == (1 if workers else 3)

    asyncio.run(main())


def test_a_host_that_forwards_takes_any_superframe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "forwards_from", lambda version, *, without: ["lan0"])
    # the kernel cuts what is as long as the limit: the longest IP packet must be below it
    assert gso_max_size("ipsec0", 1438, 1500) == 65536
    monkeypatch.setattr(routes, "forwards_from", lambda version, *, without: [])
    assert gso_max_size("ipsec0", 1438, 1500) == superframe_size(1438, 1500)


def test_superframes_become_one_train() -> None:
    assert superframe_size(1438, 1500) == 44 * 1386 + 52
    # no size makes more than 64 segments or an IP packet too long
    for mtu, path in ((500, 576), (1280, 1500), (8900, 9000), (65000, 65535)):
        size = superframe_size(mtu, path)
        assert size <= 65535
        assert size - 52 <= 64 * (mtu - 52)
