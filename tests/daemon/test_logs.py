"""A log that nobody reads: what it is about goes on."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from ipsec.daemon.logs import AGAIN_S, KEPT_MAX, LAST_S, LOST, PatientHandler


class Unread:
    """A log into a pipe that takes one page."""

    def __init__(self, end: BinaryIO, stream: Any) -> None:
        self.end = end
        self.handler = PatientHandler(stream)
        self.log = logging.getLogger("test.unread")
        self.log.propagate = False
        self.log.setLevel(logging.INFO)
        self.log.addHandler(self.handler)

    def read(self) -> str:
        """What is in the pipe."""
        return (self.end.read(1 << 20) or b"").decode()


def _record(text: str) -> logging.LogRecord:
    return logging.LogRecord("test", logging.WARNING, "", 0, text, None, None)


@pytest.fixture
def unread() -> Iterator[Unread]:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    with open(reader, "rb", buffering=0) as end, suppress(BrokenPipeError), open(writer, "w") as stream:
        made = Unread(end, stream)
        yield made
        made.log.removeHandler(made.handler)


def test_nobody_waits_for_who_reads_and_nothing_is_lost(unread: Unread) -> None:
    async def main() -> str:
        for number in range(2000):
            unread.log.log(logging.WARNING if number % 9 else logging.INFO, "line %d, \U0001f512", number)
            await asyncio.sleep(0)
        read = ""
        async with asyncio.timeout(60):
            while "line 1999" not in read:
                read += unread.read()
                # nothing more is logged, yet what was kept comes
                await asyncio.sleep(0.02)
        return read

    assert asyncio.run(main()).splitlines() == [f"line {number}, \U0001f512" for number in range(2000)]


def test_who_does_not_read_is_looked_for_once_however_many_warnings_wait(
    unread: Unread, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[float] = []
    monkeypatch.setattr(unread.handler, "_takes", lambda patience: looks.append(patience))

    async def main() -> None:
        for _ in range(50):
            unread.log.warning("a warning")
            await asyncio.sleep(0)
        looks.clear()
        await asyncio.sleep(5.5 * AGAIN_S)

    asyncio.run(main())
    assert 1 <= len(looks) <= 6


def test_of_too_much_the_newest_is_lost_and_counted(unread: Unread) -> None:
    text = "x" * (KEPT_MAX // 100)
    for number in range(300):
        unread.log.warning("%d %s", number, text)
    read = ""
    while part := unread.read():
        read += part
        unread.handler.flush()
    unread.log.warning("after")
    *kept, gap, last = (read + unread.read()).splitlines()
    assert 95 < len(kept) < 105
    assert [int(line.split()[0]) for line in kept] == list(range(len(kept)))
    assert (gap, last) == (LOST % (300 - len(kept)), "after")


def test_what_is_lost_is_told_also_if_nothing_more_is_logged(unread: Unread) -> None:
    for _ in range(300):
        unread.log.warning("x" * (KEPT_MAX // 100))
    read = ""
    while part := unread.read():
        read += part
        unread.handler.flush()
    *kept, gap = read.splitlines()
    assert gap == LOST % (300 - len(kept))


def test_characters_that_the_encoding_lacks_are_longer_and_nobody_waits(unread: Unread) -> None:
    stream = open(os.dup(unread.handler.stream.fileno()), "w", encoding="latin-1", errors="backslashreplace")  # noqa: SIM115
    other = PatientHandler(stream)
    thread = threading.Thread(target=other.handle, args=(_record("\U0001f512" * 3000),), daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    read = unread.read()
    while other._kept:
        other.flush()
        read += unread.read()
    stream.close()
    assert read + unread.read() == "\\U0001f512" * 3000 + "\n"


@pytest.mark.parametrize("size", [1, 7, 50])
def test_nobody_waits_for_a_terminal_that_nobody_reads(size: int) -> None:
    master, slave = os.openpty()
    os.set_blocking(master, False)
    with open(master, "rb", buffering=0) as end, open(slave, "w") as stream:
        made = Unread(end, stream)
        lines = [f"{number:04d}" + "x" * size for number in range(3000)]
        thread = threading.Thread(target=lambda: [made.log.warning(line) for line in lines], daemon=True)
        thread.start()
        thread.join(10)
        stuck = thread.is_alive()
        read = made.read()
        until = time.monotonic() + 30
        while (thread.is_alive() or read.count("\n") < len(lines)) and time.monotonic() < until:
            if not thread.is_alive():
                made.handler.flush()
            read += made.read()
        made.log.removeHandler(made.handler)
        assert os.get_blocking(slave), "others have this description, too"
    assert not stuck
    assert read.splitlines() == lines


@pytest.mark.parametrize("reads", [False, True])
def test_the_end_waits_for_a_moment_only(unread: Unread, reads: bool) -> None:
    for number in range(60):
        unread.log.warning("%s %d", "x" * 100, number)
    done = threading.Event()
    found: list[str] = []

    def read() -> None:
        while not done.wait(0.02):
            found.append(unread.read())

    thread = threading.Thread(target=read)
    if reads:
        thread.start()
    begin = time.monotonic()
    unread.handler.close()
    took = time.monotonic() - begin
    done.set()
    if reads:
        thread.join()
    assert took < LAST_S if reads else LAST_S <= took < LAST_S + 4
    assert ("x 59\n" in "".join(found) + unread.read()) is reads


def test_who_hangs_up_costs_what_he_would_have_read(unread: Unread, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    for _ in range(60):
        unread.log.warning("x" * 100)
    unread.end.close()
    for _ in range(60):
        unread.log.warning("x" * 100)
    unread.handler.close()


def test_a_full_disk_loses_nothing_that_there_is_room_for_later(tmp_path: Path) -> None:
    file = tmp_path / "log"
    lines = [f"line {number} {'x' * 90}" for number in range(100)]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    async def main(stream: BinaryIO) -> None:
        made = Unread(stream, stream)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
        try:
            for line in lines:
                made.log.warning(line)
                await asyncio.sleep(0)
            # in the middle of a line
            assert file.stat().st_size == 5000
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        async with asyncio.timeout(30):
            while not file.read_text().endswith(f"{lines[-1]}\n"):
                await asyncio.sleep(0.02)
        made.log.removeHandler(made.handler)

    with file.open("wb") as stream:
        asyncio.run(main(stream))
    assert file.read_text().splitlines() == lines
