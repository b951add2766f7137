"""What lists of 10 000 SAs, many clients and deaf ones cost a daemon. Prints figures, which are for reading:

    pytest -m slow -s tests/vici/test_load.py
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_address
from pathlib import Path

import pytest

from ipsec.crypto.proposals import esp_suite_of, parse_proposals
from ipsec.daemon.run import Daemon
from ipsec.ike.child_sa import ChildSa
from ipsec.ike.events import ChildKeys, InstallChild
from ipsec.ike.events import Path as IkePath
from ipsec.ike.sa import IkeSa
from ipsec.ike.state import ChildState, IkeState
from ipsec.vici.client import Session
from ipsec.vici.codec import PacketType, emit_packet
from ipsec.vici.server import BACKLOG_MAX
from ipsec.wire.iana import Protocol
from ipsec.wire.selector import TrafficSelector
from tests.vici.test_service import daemon

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

SAS = 10_000
TICK_S = 0.001
#: in a process of its own, as swanctl is
CLIENT = """
import asyncio, sys, time
from ipsec.vici.client import connect

async def main():
    async with await connect(sys.argv[1]) as session:
        begun, used, count = time.monotonic(), time.process_time(), 0
        async for sa in session.stream("list-sas", "list-sa"):
            count += 1
        print(count, time.monotonic() - begun, time.process_time() - used)

asyncio.run(main())
"""
ALGORITHMS = parse_proposals(["aes128gcm16"], Protocol.ESP)[0]


def add_sas(one: Daemon, count: int) -> None:
    """IKE_SAs as if they were up, each with a CHILD_SA in the data path."""
    assert one.ike is not None
    engine = one.ike.engine
    connection = engine.table.by_name["old"]
    suite, esn = esp_suite_of(ALGORITHMS)
    for index in range(count):
        peer = ip_address(0xC6120000 + index)
        path = IkePath(ip_address("192.0.2.1"), 4500, peer, 4500)
        sa: IkeSa = engine.new_sa(connection, initiator=True, path=path)
        sa.state, sa.established_at = IkeState.ESTABLISHED, engine.now
        sa.proposal = connection.proposals[0]
        child = ChildSa(engine.next_uid(), sa, connection.children[0], index + 1)
        child.spi_in, child.spi_out = one.ike.allocate_spi(), 0x1000 + index
        child.proposal, child.suite, child.esn, child.state = ALGORITHMS, suite, esn, ChildState.INSTALLED
        child.local_ts = [TrafficSelector(ip_address("10.1.0.0"), ip_address("10.1.255.255"))]
        child.remote_ts = [TrafficSelector(ip_address(0x0A800000 + index), ip_address(0x0A800000 + index))]
        child.has_in = child.has_out = True
        sa.children[child.uid] = child
        keys = ChildKeys(os.urandom(20), b"")
        engine.emit(InstallChild(child, suite, esn, keys, keys, path, True))
    one.ike.turn()


@asynccontextmanager
async def stalls() -> AsyncIterator[list[float]]:
    """How long the loop was busy with one thing, at most, by its clock and by processor time of its thread."""
    worst = [0.0, 0.0]

    async def tick() -> None:
        while True:
            last, used = time.monotonic(), time.thread_time()
            await asyncio.sleep(TICK_S)
            worst[0] = max(worst[0], time.monotonic() - last - TICK_S)
            worst[1] = max(worst[1], time.thread_time() - used)

    task = asyncio.ensure_future(tick())
    try:
        yield worst
    finally:
        task.cancel()


def told(worst: list[float]) -> str:
    return f"longest stall {worst[0] * 1e3:.1f} ms, {worst[1] * 1e3:.1f} ms of it computing"


async def run_client(folder: Path) -> tuple[int, float, float]:
    """list-sas by another process: how many came, in how many seconds, of which it computed."""
    command = [sys.executable, "-c", CLIENT, f"{folder}/s"]
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    out, _ = await process.communicate()
    count, seconds, computing = out.split()
    return int(count), float(seconds), float(computing)


def busy() -> float:
    """Seconds of processor time of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def rss() -> int:
    """Octets of memory in use."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def with_sas(folder: Path, test: object) -> None:
    """Run a test on a daemon with SAS IKE_SAs."""

    async def main() -> None:
        async with daemon(folder) as (one, session):

            try:
                add_sas(one, SAS)
                await test(one, session)  # type: ignore[operator]
            finally:
                assert one.ike is not None
                for sa in list(one.ike.engine.sas.values()):
                    sa.quiet = True
                    sa.destroy("the test is over", one.ike.engine.now)
                one.ike.turn()

    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


def test_a_long_list(tmp_path: Path) -> None:
    async def test(one: Daemon, session: Session) -> None:
        for _ in range(3):
            async with stalls() as worst:
                before = busy()
                count, seconds, client = await run_client(tmp_path)
                spent = busy() - before
            print(f"\nlist-sas: {count} in {seconds:.2f} s; {spent:.2f} s of CPU, client {client:.2f} s; {told(worst)}")
            assert count == SAS

    with_sas(tmp_path, test)


def test_several_long_lists_at_once(tmp_path: Path) -> None:
    async def test(one: Daemon, session: Session) -> None:
        async with stalls() as worst:
            found = await asyncio.gather(*(run_client(tmp_path) for _ in range(4)))
        print(f"\n4 x list-sas: {max(seconds for _, seconds, _ in found):.2f} s; {told(worst)}")
        assert {count for count, *_ in found} == {SAS}

    with_sas(tmp_path, test)


def test_idle_clients(tmp_path: Path) -> None:
    async def main() -> None:
        async with daemon(tmp_path) as (_, session):
            await asyncio.sleep(1)
            before, memory = busy(), rss()
            await asyncio.sleep(5)
            alone, grown = busy() - before, 0
            with contextlib.ExitStack() as stack:
                for _ in range(100):
                    sock = stack.enter_context(socket.socket(socket.AF_UNIX))
                    sock.connect(f"{tmp_path}/s")
                    sock.sendall(emit_packet(PacketType.EVENT_REGISTER, "ike-updown"))
                await asyncio.sleep(1)
                grown, before = rss() - memory, busy()
                await asyncio.sleep(5)
                crowded = busy() - before
                await session.request("version")
            print(f"\n5 s idle: {alone * 1e3:.1f} ms of CPU alone, {crowded * 1e3:.1f} ms with 100 clients, "
                  f"{grown / 1024:.0f} KiB more")  # fmt: skip

    asyncio.run(main())


def test_a_client_that_does_not_read(tmp_path: Path) -> None:
    async def test(one: Daemon, session: Session) -> None:
        before, peak = rss(), 0
        with socket.socket(socket.AF_UNIX) as deaf:
            deaf.connect(f"{tmp_path}/s")
            deaf.sendall(emit_packet(PacketType.EVENT_REGISTER, "list-sa"))
            deaf.sendall(emit_packet(PacketType.CMD_REQUEST, "list-sas") * 4)
            begun = time.monotonic()
            async with stalls() as worst:
                server = one._vici._server  # type: ignore[union-attr]
                while len(server._clients) < 2:
                    await asyncio.sleep(0.001)
                while len(server._clients) > 1:
                    peak = max(peak, rss())
                    asked = time.monotonic()
                    await session.request("version")
                    assert time.monotonic() - begun < 60, "it is never dropped"
                    await asyncio.sleep(max(0.05 - (time.monotonic() - asked), 0))
        print(f"\na client that does not read: dropped after {time.monotonic() - begun:.1f} s, "
              f"{max(peak - before, 0) >> 10} KiB more at most (bound {BACKLOG_MAX >> 10}); "
              f"{told(worst)}")  # fmt: skip

    with_sas(tmp_path, test)
