"""log, with a daemon that logs."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path

import pytest

from ipsec.ctl.errors import ExitCode
from ipsec.daemon.run import Daemon
from ipsec.ike.events import Path as IkePath
from ipsec.vici.client import connect
from tests.ctl.daemon import Run, with_ipsecd
from tests.ctl.fake import VALIDATOR, Ctl, FakeDaemon
from tests.vici.test_service import CONNECTION

PATH = IkePath(ip_address("192.0.2.1"), 4500, ip_address("192.0.2.2"), 4500)


async def follow(socket: Path, say: Callable[[], None], *arguments: str) -> str:
    """The first line that ``ipsecctl log`` prints; it is interrupted then."""
    command = [sys.executable, "-m", "ipsec.ctl", "--socket", str(socket), "log", *arguments]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    first = asyncio.ensure_future(process.stdout.readline())
    try:
        while not first.done():
            say()
            await asyncio.wait([first], timeout=0.05)
    finally:
        process.send_signal(signal.SIGINT)
        status = await process.wait()
    assert status == ExitCode.INTERRUPTED
    return first.result().decode()


def test_lines_about_one_connection_in_detail(tmp_path: Path, ctl: Ctl) -> None:
    async def test(one: Daemon, run: Run) -> None:
        assert one.ike is not None
        engine = one.ike.engine
        sa = engine.new_sa(engine.table.by_name["old"], initiator=True, path=PATH)
        log = logging.getLogger("ipsec.ike.test")

        def say() -> None:
            log.warning("about nothing")
            log.debug("%s: in detail", sa)

        line = await follow(tmp_path / "s", say, "old", "--level", "ike=debug", "--json")
        document = json.loads(line)
        VALIDATOR.validate(document)
        assert (document["message"], document["level"], document["conn"]) == (f"{sa}: in detail", "debug", "old")
        line = await follow(tmp_path / "s", say)
        assert line.split()[1:3] == ["warning", "ike"]
        assert line.endswith("about nothing\n")
        # the client that wanted more has gone
        while logging.getLogger("ipsec.ike").level != logging.NOTSET:
            await asyncio.sleep(0.01)
        sa.destroy("the test is over", engine.now)

    with_ipsecd(tmp_path, ctl, test)


def test_lines_about_several_connections(tmp_path: Path, ctl: Ctl) -> None:
    """A pattern means all that it fits."""

    async def test(one: Daemon, run: Run) -> None:
        assert one.ike is not None
        async with await connect(f"{tmp_path}/s") as session:
            await session.request("load-conn", {"other": CONNECTION})
            await session.request("get-conns")
        engine = one.ike.engine
        sa = engine.new_sa(engine.table.by_name["other"], initiator=True, path=PATH)
        log = logging.getLogger("ipsec.ike.test")
        assert "about" in await follow(tmp_path / "s", lambda: log.warning("%s: about", sa), "o*")
        sa.destroy("the test is over", engine.now)

    with_ipsecd(tmp_path, ctl, test)


def test_levels(tmp_path: Path, ctl: Ctl) -> None:
    async def test(one: Daemon, run: Run) -> None:
        levels = (await run("log", "--show-levels", "--json")).document["levels"]
        assert (await run("log", "--keep", "--level", "ike=debug,net=error")).status == ExitCode.OK
        now = (await run("log", "--show-levels", "--json")).document["levels"]
        assert now == levels | {"ike": "debug", "net": "error"}
        assert "ike" in (await run("log", "--keep", "--level", "default")).out
        assert (await run("log", "--show-levels", "--json")).document["levels"] == levels
        done = await run("log", "--keep", "--level", "odd=debug")
        assert done.status == ExitCode.USAGE
        assert "no subsystem 'odd'" in done.err

    with_ipsecd(tmp_path, ctl, test)


@pytest.mark.parametrize("arguments", ["--level loud", "--level =debug", "--keep", "gw --show-levels"])
def test_wrong_command_lines(ctl: Ctl, arguments: str) -> None:
    assert ctl("log", *arguments.split()).status == ExitCode.USAGE


def test_a_charon(daemon: FakeDaemon, ctl: Ctl) -> None:
    done = ctl("log", "--show-levels")
    assert done.status == ExitCode.FAILED
    assert "cannot change its log levels" in done.err
