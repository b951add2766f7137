"""watch and top."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from ipsec.ctl.errors import ExitCode
from ipsec.ctl.names import Known
from ipsec.ctl.top import Row, View
from ipsec.ctl.tunnels import Rate
from ipsec.ctl.view import IkeSa
from ipsec.ctl.watch import concerns, happenings
from tests.ctl.fake import VALIDATOR, Ctl, FakeDaemon, child_sa, conn, ike_sa
from tests.ctl.test_status import BY_HAND, encoded

CHILDREN = ike_sa(5, [child_sa("net", 6)])


@pytest.mark.parametrize(
    ("event", "message", "found"),
    [
        ("ike-updown", {"up": "yes", "gw": CHILDREN}, ("ike-up", "gw", "", "192.0.2.1 [a.example] ... ")),
        ("ike-updown", {"gw": CHILDREN}, ("ike-down", "gw", "", "192.0.2.1")),
        ("ike-rekey", {"gw": {"old": ike_sa(5), "new": ike_sa(9)}}, ("ike-rekeyed", "gw", "", "[5] -> [9], AES")),
        (
            "ike-update",
            {"local-host": "192.0.2.9", "local-port": 500, "remote-host": "::1", "remote-port": 4500, "gw": CHILDREN},
            ("ike-moved", "gw", "", "now 192.0.2.9:500 ... [::1]:4500"),
        ),
        ("child-updown", {"up": "yes", "gw": CHILDREN}, ("child-up", "gw", "net", "10.1.0.0/16 === 10.2.0.0/16, AES")),
        ("child-updown", {"gw": CHILDREN}, ("child-down", "gw", "net", "10.1.0.0/16 === 10.2.0.0/16, 1.00 kB in")),
        (
            "child-rekey",
            {"gw": CHILDREN | {"child-sas": {"net": {"old": child_sa("net", 6), "new": child_sa("net", 8)}}}},
            ("child-rekeyed", "gw", "net", "{6} -> {8}, AES_GCM"),
        ),
        (
            "alert",
            {"type": "half-open-timeout", "ike-sa": {"gw": CHILDREN}},
            ("problem", "gw", "", "half-open-timeout"),
        ),
        (
            "ipsecd-problem",
            {"ike": "gw", "child": "net", "reason": "they do not want it"},
            ("problem", "gw", "net", "they do not want it"),
        ),
    ],
)
def test_what_events_tell(event: str, message: Any, found: tuple[str, ...]) -> None:
    (one,) = happenings(event, encoded(message))
    assert (one.event, one.conn, one.child) == found[:3]
    assert one.detail.startswith(found[3])


def started(daemon: FakeDaemon, *arguments: str, **more: Any) -> subprocess.Popen[str]:
    """ipsecctl in a process of its own."""
    command = [sys.executable, "-m", "ipsec.ctl", "--socket", str(daemon.socket), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)


def until(condition: Callable[[], object]) -> None:
    """Wait for it."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_watch_prints_lines_at_once(daemon: FakeDaemon) -> None:
    daemon.conns = {"gw": conn()}
    with started(daemon, "watch", "--json", "gw*") as process:
        until(lambda: daemon.server.wanted("ipsecd-problem"))
        assert not daemon.server.wanted("alert"), "it would say the same"
        for name in ("other", "gw"):
            daemon.loop.call_soon_threadsafe(daemon.server.publish, "ike-updown", {"up": "yes", name: CHILDREN})
        assert process.stdout is not None
        line = process.stdout.readline()
        document = json.loads(line)
        VALIDATOR.validate(document)
        assert (document["event"], document["conn"], document["ike_sa"]["id"]) == ("ike-up", "gw", 5)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == ExitCode.INTERRUPTED


@pytest.mark.parametrize("name", ["nonsense", "x*", "gw/nonsense", "gw[7]", "by-hand"])
def test_watch_of_nothing(daemon: FakeDaemon, ctl: Ctl, name: str) -> None:
    """It would wait for ever."""
    daemon.conns = {"gw": conn()}
    daemon.manual = {"by-hand": dict(BY_HAND)}
    assert ctl("watch", "gw", name).status == ExitCode.UNKNOWN_NAME


@pytest.mark.parametrize(
    ("name", "meant"),
    [("gw", (0, 1, 2, 3)), ("g*", (0, 1, 2, 3)), ("gw/net", (1,)), ("net{6}", (1,)), ("gw[5]", (0, 1)), ("late*", ())],
)
def test_watch_of_some(name: str, meant: tuple[int, ...]) -> None:
    known = Known((), (IkeSa.of("gw", encoded(CHILDREN)), IkeSa.of("late", encoded(CHILDREN))))
    others = ("child-updown", "ike-updown")
    found = [
        *happenings("ike-updown", encoded({"gw": CHILDREN})),
        *happenings("child-updown", encoded({"gw": CHILDREN})),
        *happenings("ike-updown", encoded({"gw": ike_sa(9)})),
        *happenings("ipsecd-problem", encoded({"ike": "gw", "child": "voice"})),
        *(one for event in others for one in happenings(event, encoded({"other": CHILDREN}))),
    ]
    targets = known.find(name)
    assert tuple(i for i, one in enumerate(found) if concerns(one, [name], targets)) == meant
    # one that is loaded later
    (late,) = happenings("ike-updown", encoded({"later": CHILDREN}))
    assert concerns(late, [name], targets) == (name == "late*")


def test_watch_of_a_charon(charon: FakeDaemon) -> None:
    """It knows fewer events."""
    with started(charon, "watch", "--once") as process:
        until(lambda: charon.server.wanted("alert"))
        charon.loop.call_soon_threadsafe(charon.server.publish, "ike-updown", {"up": "yes", "gw": CHILDREN})
        assert process.stdout is not None
        assert re.match(r"\d\d:\d\d:\d\d  gw\[5\]  up  192", process.stdout.readline())
        charon.loop.call_soon_threadsafe(charon.hang_up)
        assert "the daemon has gone" in process.stdout.readline()
        assert process.wait(10) == ExitCode.UNREACHABLE


def row(name: str, bits: float = 0, **more: Any) -> Row:
    """A row."""
    values: dict[str, Any] = {"peer": "", "state": "", "bytes_in": 0, "bytes_out": 0, "age_s": 0, "drops": 0}
    return Row(name=name, rate=Rate(bits, 0, 0, 0), **(values | more))


def test_keys() -> None:
    rows = [row("b", 5, drops=1), row("a", 7), row("c", 6, age_s=9)]

    def order(*keys: str) -> str:
        view = View()
        for key in keys:
            view.press(key, 10)
        return "".join(one.name for one in view.sorted(rows))

    assert (order(), order("r"), order("n"), order("n", "r"), order("d"), order("a")) == (
        *("acb", "bca", "abc", "cba", "bac", "cab"),
    )
    view = View()
    for key, first in (("\x1b[B", 1), (" ", 11), ("\x1b[A", 10), ("\x1b[5~", 0), ("\x1b[A", 0), ("\x1b[Z", 0)):
        view.press(key, 10)
        assert view.first == first
    view.press("g", 10)
    assert view.grouped
    assert not view.ended.is_set()
    view.press("q", 10)
    assert view.ended.is_set()


def test_plain_top(daemon: FakeDaemon, ctl: Ctl) -> None:
    daemon.conns = {"gw": conn()}
    daemon.sas = [("gw", ike_sa(5, [child_sa("net", 6), child_sa("voice", 7)]))]
    daemon.drops = {("gw", 5, "net-6"): {"IN_STATE_SEQ_ERROR": 3}}
    daemon.growth = 10_000
    done = ctl("top", "--interval", "0.1")
    assert re.match(r"ipsecctl top  1 IKE_SA, 2 CHILD_SAs  in [\d.]+ Mbit/s ", done.out)
    assert re.search(r"(?m)^gw/net\{6\} .* 3$", done.out)
    document = ctl("top", "--interval", "0.1", "--json", "--group").document
    (one,) = document["rows"]
    assert (one["name"], one["drops"]) == ("gw[5]", 3)
    assert one["bits_in_per_s"] > 100_000
    assert len(ctl("top", "--interval", "0.1", "--sort", "name", "-n", "1").out.splitlines()) == 3


def test_top_has_manual_sas(daemon: FakeDaemon, ctl: Ctl) -> None:
    daemon.manual = {"by-hand": dict(BY_HAND)}
    daemon.growth = 100_000
    out = ctl("top", "--interval", "0.1").out
    assert re.match(r"ipsecctl top  1 manual SA  in [\d.]+ Mbit/s ", out)
    assert re.search(r"(?m)^by-hand +192\.0\.2\.9 +manual +[\d.]+ Mbit/s +0 .* 2$", out)
    (row,) = ctl("top", "--interval", "0.1", "--json", "--group").document["rows"]
    assert (row["name"], row["state"], row["age_s"], row["drops"]) == ("by-hand", "MANUAL", None, 2)
    assert row["bits_in_per_s"] > 0


def test_top_in_a_terminal_that_cannot_move_its_cursor(daemon: FakeDaemon) -> None:
    daemon.sas = [("gw", ike_sa(5, [child_sa("net", 6)]))]
    pid, terminal = pty.fork()
    if not pid:
        os.environ |= {"TERM": "dumb", "COLUMNS": "100", "LINES": "20"}
        more = ["--interval", "0.1", "--socket", str(daemon.socket)]
        os.execv(sys.executable, [sys.executable, "-m", "ipsec.ctl", "top", *more])
    seen = b""
    with contextlib.suppress(OSError):  # it has ended
        while data := os.read(terminal, 65536):
            seen += data
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.close(terminal)
    assert b"gw/net{6}" in seen
    assert b"\x1b" not in seen


def test_top_in_a_terminal(daemon: FakeDaemon) -> None:
    """Keys work, q ends it, and the terminal is as before."""
    daemon.sas = [("gw", ike_sa(5, [child_sa("net", 6)]))]
    pid, terminal = pty.fork()
    if not pid:
        os.environ |= {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "20"}
        os.execv(sys.executable, [sys.executable, "-m", "ipsec.ctl", "top", "--socket", str(daemon.socket)])
    seen = b""

    def shown(text: bytes) -> bool:
        nonlocal seen
        while select.select([terminal], [], [], 0)[0]:
            try:
                seen += os.read(terminal, 65536)
            except OSError:
                break
        return text in seen

    until(lambda: shown(b"gw/net{6}"))
    os.write(terminal, b"g")
    until(lambda: shown(b"gw[5]"))
    os.write(terminal, b"q")
    until(lambda: shown(b"\x1b[?1049l"))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.close(terminal)
