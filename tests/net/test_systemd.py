"""What systemd is told, over the datagram sockets that it listens on."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest

from ipsec.net import systemd


@pytest.mark.parametrize("abstract", [False, True])
def test_a_datagram(abstract: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"@ipsecd-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(name.replace("@", "\0"))
        sock.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        systemd.notify("READY=1", "STATUS=2 of 3 tunnels are up")
        assert sock.recv(4096) == b"READY=1\nSTATUS=2 of 3 tunnels are up"
        systemd.notify("STATUS=not reloaded: \udcff\nMAINPID=1\u2028", "READY=1")
        assert sock.recv(4096) == b"STATUS=not reloaded: ? MAINPID=1\nREADY=1"
        systemd.reloading()
        first, _, second = sock.recv(4096).decode().partition("\n")
        assert first == "RELOADING=1"
        name, _, value = second.partition("=")
        assert name == "MONOTONIC_USEC"
        assert 0 <= time.monotonic() - int(value) / 1e6 < 10


@pytest.mark.parametrize("name", ["", "vsock:2:1234", "/nowhere/at/all"])
def test_nobody_there_is_no_error(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    systemd.notify("READY=1")


def test_a_full_socket_does_not_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        for _ in range(1000):
            systemd.notify("WATCHDOG=1")


@pytest.mark.parametrize(
    ("usec", "pid", "seconds"),
    [
        ("30000000", "", 15.0),
        ("30000000", str(os.getpid()), 15.0),
        ("30000000", "1", None),
        ("0", "", None),
        ("", "", None),
        ("-1", "", None),
        ("soon", "", None),
    ],
    # not the process's number, which is another one for each of several workers
    ids=["ours", "for us by number", "for another process", "zero", "unset", "negative", "no number"],
)
def test_watchdog(usec: str, pid: str, seconds: float | None) -> None:
    assert systemd.watchdog_interval({"WATCHDOG_USEC": usec, "WATCHDOG_PID": pid}) == seconds
