"""Scripts of ``updown``, real ones. That they are told what charon tells them is in tests/interop."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import uvloop

from ipsec.crypto.identity import parse_identity
from ipsec.daemon import updown
from ipsec.daemon.updown import Updown
from ipsec.ike.child_sa import ChildSa
from ipsec.ike.events import ChildDown, ChildUp, Event
from ipsec.wire.selector import TrafficSelector
from tests.pair import Pair

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, None]], None]:
    def runner(work: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=LOOPS[request.param]) as one:
            one.run(work)

    return runner


def script(path: Path, body: str) -> tuple[str, ...]:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path), "an argument", str(path.parent / "told")


def child(*command: str, **more: Any) -> ChildSa:
    """A CHILD_SA that is up, with a configuration that names this command."""
    one: ChildSa = Pair().up().a.child
    one.config = replace(one.config, updown=command, **more)
    return one


async def at_once() -> None:
    """All routes are there."""


async def hear(*events: Event) -> None:
    """Events one after the other, and then the end of the daemon."""
    scripts = Updown("ipsec0", at_once)
    for event in events:
        scripts.on_event(event)
    await scripts.stop()


TELL = 'echo "$PLUTO_VERB $PLUTO_MY_CLIENT $PLUTO_REQID $1" >> "$2"'


def test_up_and_down(tmp_path: Path, run: Callable[..., None]) -> None:
    one = child(*script(tmp_path / "x", TELL))

    run(hear(ChildUp(one), ChildDown(one, "gone")))
    told = (tmp_path / "told").read_text().splitlines()
    assert told == [f"{verb}-client 10.1.0.0/16 {one.reqid} an argument" for verb in ("up", "down")]


def test_up_waits_for_routes_and_down_does_not(tmp_path: Path, run: Callable[..., None]) -> None:
    one = child(*script(tmp_path / "x", TELL))
    told = tmp_path / "told"

    async def work() -> None:
        routed, asked = asyncio.Event(), 0

        async def wait() -> None:
            nonlocal asked
            asked += 1
            await routed.wait()

        scripts = Updown("ipsec0", wait)
        scripts.on_event(ChildUp(one))
        scripts.on_event(ChildDown(one, "gone"))
        await asyncio.sleep(0.05)
        assert not told.exists()
        routed.set()
        await scripts.stop()
        assert asked == 1

    run(work())
    assert [line.split("-")[0] for line in told.read_text().splitlines()] == ["up", "down"]


def test_what_goes_is_told_what_it_was_told_when_it_came(tmp_path: Path, run: Callable[..., None]) -> None:
    """Over a rekeying, with another script in the configuration by then, and with other addresses."""
    one = child(*script(tmp_path / "x", 'env | grep -v VERB | sort >> "$2"; echo "= $PLUTO_VERB" >> "$2"'))
    other = child("/bin/false")
    unknown = child("/bin/false")

    async def work() -> None:
        scripts = Updown("ipsec0", at_once)
        scripts.on_event(ChildUp(one))
        other.uid, other.ike.uid = one.uid + 1, one.ike.uid + 1
        scripts.on_event(ChildUp(other, one))
        one.ike.path = one.ike.path._replace(remote_port=99)
        scripts.on_event(ChildDown(one, "replaced, which nobody is told"))
        unknown.uid = one.uid + 2
        scripts.on_event(ChildDown(unknown, "was up before there were scripts"))
        scripts.on_event(ChildDown(other, "gone"))
        scripts.on_event(ChildDown(other, "twice"))
        await scripts.stop()

    run(work())
    first, second, rest = (tmp_path / "told").read_text().split("= ")
    assert first == second.removeprefix("up-client\n")
    assert rest == "down-client\n"


def test_only_what_it_needs_is_in_its_environment(
    tmp_path: Path, run: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IPSEC_PSK", "a secret")
    one = child(*script(tmp_path / "x", 'env > "$2"; pwd >> "$2"; ls -l /proc/self/fd >> "$2"'), hostaccess=True)
    with (tmp_path / "kept open").open("w") as open_file:
        os.set_inheritable(open_file.fileno(), True)

        async def work() -> None:
            scripts = Updown("ipsec0", at_once)
            scripts.on_event(ChildUp(one))
            await scripts.stop()

        run(work())
    told = (tmp_path / "told").read_text()
    assert {line.split("=")[0] for line in told.splitlines() if "=" in line} - {"PWD", "_", "SHLVL", "OLDPWD"} == {
        "PATH",
        *(f"PLUTO_{name}" for name in ("VERSION", "VERB", "CONNECTION", "INTERFACE", "REQID", "PROTO", "UNIQUEID")),
        *(f"PLUTO_{name}" for name in ("ME", "PEER", "MY_ID", "PEER_ID", "MY_CLIENT", "MY_PORT", "MY_PROTOCOL")),
        *(f"PLUTO_{name}" for name in ("PEER_CLIENT", "PEER_PORT", "PEER_PROTOCOL", "HOST_ACCESS", "UDP_ENC")),
    }
    assert "a secret" not in told
    assert "kept open" not in told
    assert "\n/\n" in told


def test_what_a_peer_says_of_itself_is_harmless(tmp_path: Path, run: Callable[..., None]) -> None:
    """A script may well forget its quotes. Every octet that an identity can have."""
    one = child(*script(tmp_path / "x", 'eval echo $PLUTO_PEER_ID > "$2"'))
    one.ike.peer_id = parse_identity("@#" + bytes(range(256)).hex() + b"$(id)`id`;id&&id|id\n'\"".hex())

    run(hear(ChildUp(one)))
    assert "uid=" not in (tmp_path / "told").read_text()
    environment = updown.describe(one, ("c", "net", ""), "ipsec0").told(one.pairs()[0], "up")
    assert set("".join(environment.values())) <= updown._HARMLESS | {"?"}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("echo one; echo two >&2; exit 3", ["one", "two", "with up-client ended with status 3"]),
        ("kill -9 $$", ["ended with status -9"]),
        ("printf 'no end\\377'; printf '\\n\\033[2J'", ["no end\\xff"]),
        ("sleep 60 & echo behind", ["behind"]),
    ],
)
def test_what_it_says_is_in_the_log(
    tmp_path: Path, run: Callable[..., None], caplog: pytest.LogCaptureFixture, body: str, said: list[str]
) -> None:
    one = child(*script(tmp_path / "x", body))
    begun = time.monotonic()

    with caplog.at_level(logging.INFO, "ipsec"):
        run(hear(ChildUp(one)))
    for text in said:
        assert any(record.getMessage().endswith(text) for record in caplog.records), text
    assert all(record.getMessage().startswith("c: updown of net: ") for record in caplog.records)
    # what it leaves behind keeps nobody
    assert time.monotonic() - begun < updown.STOP_S


def test_much_that_it_says(tmp_path: Path, run: Callable[..., None], caplog: pytest.LogCaptureFixture) -> None:
    one = child(*script(tmp_path / "x", 'head -c 3000000 /dev/zero | tr "\\0" x; echo done > "$2"'))

    with caplog.at_level(logging.INFO, "ipsec"):
        run(hear(ChildUp(one)))
    assert (tmp_path / "told").exists()
    assert sum(len(record.getMessage()) for record in caplog.records) < updown.OUTPUT_MAX + 1000


@pytest.mark.parametrize(("name", "why"), [("missing", "No such file"), ("folder", "Permission denied")])
def test_one_that_cannot_be_run(
    tmp_path: Path, run: Callable[..., None], caplog: pytest.LogCaptureFixture, name: str, why: str
) -> None:
    (tmp_path / "folder").mkdir()
    one = child(str(tmp_path / name))

    run(hear(ChildUp(one)))
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert f"c: updown of net: cannot run {tmp_path / name}: {why}" in caplog.text


def test_one_that_takes_too_long_is_ended_with_all_that_it_started(
    tmp_path: Path, run: Callable[..., None], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(updown, "RUN_S", 0.5)
    one = child(*script(tmp_path / "x", 'sleep 1000 & echo $! > "$2"; echo waiting; wait'))

    with caplog.at_level(logging.INFO, "ipsec"):
        run(hear(ChildUp(one)))
    assert "waiting" in caplog.text
    assert "was ended, it took more than 0.5 s" in caplog.text
    assert _gone(int((tmp_path / "told").read_text()))


def test_the_end_of_the_daemon_waits_a_little(
    tmp_path: Path, run: Callable[..., None], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(updown, "STOP_S", 0.5)
    one = child(*script(tmp_path / "x", 'echo $$ > "$2"; exec sleep 1000'))

    run(hear(ChildUp(one), ChildDown(one, "gone")))
    assert "2 updown scripts are not run or not over" in caplog.text
    assert _gone(int((tmp_path / "told").read_text()))


def _gone(pid: int) -> bool:
    until = time.monotonic() + 5
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.01)
    return False


def test_those_of_one_peer_are_run_in_order_and_others_beside_them(tmp_path: Path, run: Callable[..., None]) -> None:
    slow = child(*script(tmp_path / "slow", 'sleep 0.3; echo "$PLUTO_VERB" >> "$2"'))
    quick = child(*script(tmp_path / "quick", 'echo quick >> "$2"'))
    quick.ike.peer_id = parse_identity("another")

    async def work() -> None:
        scripts = Updown("ipsec0", at_once)
        scripts.on_event(ChildUp(slow))
        scripts.on_event(ChildDown(slow, "gone"))
        scripts.on_event(ChildUp(slow))
        quick.uid += 10
        scripts.on_event(ChildUp(quick))
        await scripts.stop()
        assert not scripts._last

    run(work())
    assert (tmp_path / "told").read_text().split() == ["quick", "up-client", "down-client", "up-client"]


def test_what_waits_is_bounded(
    run: Callable[..., None], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(updown, "WAITING_MAX", 10)
    one = child("/bin/true")

    async def work() -> None:
        scripts = Updown("ipsec0", at_once)
        for number in range(50):
            one.uid = 1000 + number
            scripts.on_event(ChildUp(one))
        assert len(scripts._tasks) == len(scripts._up) == 10
        await scripts.stop()

    run(work())
    assert "updown is not run for CHILD_SA net{1049}: 10 wait already, 10 of its peer" in caplog.text


def test_one_peer_does_not_keep_others_from_having_scripts(
    tmp_path: Path, run: Callable[..., None], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CHILD_SA of many selectors is many scripts, and a peer may make one after the other."""
    monkeypatch.setattr(updown, "WAITING_MAX", 10)
    monkeypatch.setattr(updown, "EACH_MAX", 5)
    many = child("/bin/true")
    many.local_ts = [TrafficSelector(*(ip_address(f"10.1.{n}.0"),) * 2) for n in range(5)]
    other = child(*script(tmp_path / "x", TELL))
    other.ike.peer_id = parse_identity("another")

    async def work() -> None:
        scripts = Updown("ipsec0", at_once)
        for number in range(50):
            many.uid = 1000 + number
            scripts.on_event(ChildUp(many))
        scripts.on_event(ChildUp(other))
        for number in range(50):
            many.uid = 1000 + number
            scripts.on_event(ChildDown(many, "gone"))
        await scripts.stop()
        assert list(scripts._up) == [other.uid]
        assert not scripts._last
        assert not scripts._waiting

    run(work())
    assert (tmp_path / "told").exists()
    assert "updown is not run for CHILD_SA net{1005}: 5 wait already, 5 of its peer" in caplog.text


def test_a_pair_of_selectors_is_described_when_its_turn_has_come(
    run: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A peer may have made thousands of them, and nobody waits for that."""
    described = []
    network = updown._network
    monkeypatch.setattr(updown, "_network", lambda selector: described.append(selector) or network(selector))
    one = child("/bin/true")

    async def work() -> None:
        scripts = Updown("ipsec0", at_once)
        scripts.on_event(ChildUp(one))
        assert not described
        await scripts.stop()
        assert len(described) == 2

    run(work())


def test_no_file_can_be_opened(
    tmp_path: Path, run: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    one = child(*script(tmp_path / "x", TELL))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)

    async def work() -> None:
        scripts = Updown("ipsec0", at_once)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
        try:
            scripts.on_event(ChildUp(one))
            await scripts.stop()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)

    run(work())
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
        f"c: updown of net: cannot run {tmp_path / 'x'}: Too many open files"
    ]


FIRST_PROCESS = """
import asyncio, os, sys
from ipsec.daemon.updown import Updown
from ipsec.ike.events import ChildDown, ChildUp, Event
from tests.daemon.test_updown import LOOPS, at_once, child

one = child("/bin/sh", "-c", "case $PLUTO_VERB in up*) sleep 0.1 & (setsid sleep 0.1 &) ;; esac")

async def work():
    scripts = Updown("ipsec0", at_once)
    scripts.on_event(ChildUp(one))
    await asyncio.wait(scripts._tasks)
    await asyncio.sleep(1)
    scripts.on_event(ChildDown(one, "gone"))
    await scripts.stop()

with asyncio.Runner(loop_factory=LOOPS[sys.argv[1]]) as runner:
    runner.run(work())
try:
    os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG)
except ChildProcessError:
    print(os.getpid(), "has no children")
"""


@pytest.mark.parametrize("loop", LOOPS)
def test_the_first_process_of_a_container_buries_what_scripts_leave_behind(loop: str) -> None:
    prefix = ("unshare", "--user", "--map-root-user", "--pid", "--fork")
    if subprocess.run([*prefix, "true"], capture_output=True).returncode:
        pytest.skip("no namespaces here")
    done = subprocess.run([*prefix, sys.executable, "-c", FIRST_PROCESS, loop], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("1 has no children\n", "")
