"""ipsec.daemon.changed and ipsec.config.sources: a configuration that changes under a daemon."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest

from ipsec.config import Config, load, load_text
from ipsec.config.environment import Environment
from ipsec.config.settings import DaemonSettings
from ipsec.config.values import Switch
from ipsec.daemon import changed
from ipsec.daemon.changed import SourceWatch, wanted
from ipsec.daemon.run import Daemon


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """Laid out as Kubernetes does it: names are links into what ``..data`` links to."""
    first = tmp_path / "..1"
    first.mkdir()
    (first / "swanctl.conf").write_text("include conf.d/*.conf\n")
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "swanctl.conf").symlink_to("..data/swanctl.conf")
    (tmp_path / "conf.d").mkdir()
    return tmp_path


def swap(volume: Path, text: str) -> None:
    """Put another version in place, all files at once."""
    second = volume / "..2"
    second.mkdir()
    (second / "swanctl.conf").write_text(text)
    (volume / "..new").symlink_to("..2")
    (volume / "..new").rename(volume / "..data")


def add_file(volume: Path, text: str) -> None:
    (volume / "conf.d" / "one.conf").write_text(text)


def test_what_was_read_is_known(volume: Path) -> None:
    (volume / "x509").mkdir()
    config = load(str(volume / "swanctl.conf"))
    names = {str(Path(path).relative_to(volume)) for path in config.sources}
    assert {"swanctl.conf", "conf.d", "x509", "x509ca", "private"} <= names


@pytest.mark.parametrize("change", [swap, add_file])
def test_changes_are_noticed_once(volume: Path, change: Callable[[Path, str], None]) -> None:
    async def main() -> None:
        config = load(str(volume / "swanctl.conf"))
        calls: list[int] = []
        event = asyncio.Event()

        def on_change() -> None:
            calls.append(1)
            event.set()

        watch = SourceWatch(config, on_change, interval_s=0.01)
        await asyncio.sleep(0.1)
        assert calls == []
        change(volume, "ipsecd { mtu = 1300 }\n")
        await asyncio.wait_for(event.wait(), 10)
        # not read again, since it was wrong: nobody is told twice
        await asyncio.sleep(0.1)
        assert calls == [1]
        watch.read(load(str(volume / "swanctl.conf")))
        await asyncio.sleep(0.1)
        assert calls == [1]
        event.clear()
        change(volume, "ipsecd { mtu = 1280 }\n") if change is add_file else (volume / "swanctl.conf").unlink()
        await asyncio.wait_for(event.wait(), 10)
        watch.close()

    asyncio.run(main())


def test_when_to_watch(volume: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load(str(volume / "swanctl.conf"))
    assert not wanted(config)
    for switch in (Switch.YES, Switch.NO):
        assert wanted(replace(config, settings=DaemonSettings(watch_files=switch))) is (switch is Switch.YES)
    monkeypatch.setattr(changed, "is_mounted", lambda path: path.endswith("swanctl.conf"))
    assert wanted(config)
    assert not wanted(Config("environment", DaemonSettings(), (), environment=Environment()))


def test_a_change_during_a_reload_is_read_too(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And a reload over vici waits for one that is under way."""

    async def main() -> None:
        daemon = Daemon(load_text("ipsecd { backend = memory }"))
        go_on = asyncio.Semaphore(0)
        under_way, most, times = 0, 0, 0

        async def reload() -> str:
            nonlocal under_way, most, times
            times += 1
            under_way += 1
            most = max(most, under_way)
            await go_on.acquire()
            under_way -= 1
            if times == 1:
                raise ZeroDivisionError("once")
            return ""

        monkeypatch.setattr(daemon, "_reload", reload)
        daemon._on_hangup()
        await asyncio.sleep(0)
        for _ in range(3):
            daemon._on_hangup()
        by_vici = asyncio.create_task(daemon.reload())
        for _ in range(3):
            await asyncio.sleep(0.01)
            go_on.release()
        assert await by_vici == ""
        assert daemon._reloading is not None
        await daemon._reloading
        assert (times, most) == (3, 1)
        await daemon.stop()

    asyncio.run(main())
    assert "this is a bug; not everything was reloaded" in caplog.text


class SlowDisk:
    """``load_again`` that takes until it is let go on, in whatever thread it is called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun = threading.Event()
        self.go_on = threading.Event()
        self.times = 0
        # by module: ipsec.daemon exports a function of that name
        monkeypatch.setattr(import_module("ipsec.daemon.run"), "load_again", self._load)

    def _load(self, config: Config) -> Config:
        self.times += 1
        self.begun.set()
        assert self.go_on.wait(10)
        return replace(config, warnings=(f"read {self.times} times",))


async def reading(monkeypatch: pytest.MonkeyPatch) -> tuple[Daemon, SlowDisk]:
    """A daemon in the middle of a reload."""
    daemon, disk = Daemon(load_text("ipsecd { backend = memory }")), SlowDisk(monkeypatch)
    daemon._on_hangup()
    assert await asyncio.to_thread(disk.begun.wait, 10)
    return daemon, disk


def test_what_is_slow_to_read_keeps_nobody_waiting(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        daemon, disk = await reading(monkeypatch)
        # the loop goes on, and a second one is heard
        daemon._on_hangup()
        by_vici = asyncio.create_task(daemon.reload())
        disk.go_on.set()
        assert daemon._reloading is not None
        await daemon._reloading
        assert await by_vici == ""
        assert disk.times == 3
        await daemon.stop()

    asyncio.run(main())
    assert [f"read {n} times" in caplog.text for n in (1, 2, 3)] == [True] * 3


def test_the_end_of_a_daemon_that_reads_puts_nothing_in_place(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        daemon, disk = await reading(monkeypatch)
        await daemon.stop()
        disk.go_on.set()

    asyncio.run(main())
    assert "read 1 times" not in caplog.text
