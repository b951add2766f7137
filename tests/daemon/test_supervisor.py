"""What systemd hears from a daemon, over the datagram socket that it listens on."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

CONF = """
ipsecd {{
  backend = memory
  workers = 0
  state_dir = {folder}
  vici_socket = none
}}
connections {{ c {{ remote_addrs = 127.0.0.1
    local {{ auth = psk
      id = a }}
    remote {{ auth = psk
      id = b }}
    children {{ net {{ remote_ts = 10.2.0.0/16
        start_action = start }} }} }} }}
secrets {{ ike-1 {{ secret = of no worth outside }} }}
"""


class Manager:
    """systemd, as far as a daemon of Type=notify can tell."""

    def __init__(self, folder: Path, more: str = "") -> None:
        self.config = folder / "swanctl.conf"
        self.config.touch(mode=0o600)
        self.config.write_text(CONF.format(folder=folder) + more)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        name = f"ipsecd-test-{os.getpid()}-{time.monotonic_ns()}"
        self.socket.bind(f"\0{name}")
        self.socket.settimeout(20)
        environment = {**os.environ, "NOTIFY_SOCKET": f"@{name}", "WATCHDOG_USEC": "400000"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ipsec", "--config", str(self.config)], env=environment, stderr=subprocess.DEVNULL
        )

    def hear(self, wanted: str) -> str:
        """The next datagram that begins so; others before it may only be the watchdog's and the status."""
        while True:
            said = self.socket.recv(4096).decode()
            if said.startswith(wanted):
                return said
            assert said.startswith(("WATCHDOG=1", "STATUS=")), said

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.socket.close()


def drain(manager: Manager) -> None:
    while True:
        manager.socket.recv(4096)


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(tmp_path)
    yield manager
    manager.close()


def test_a_life(manager: Manager) -> None:
    assert manager.hear("READY=1") == "READY=1\nSTATUS=0 of 1 child up, 0 IKE_SAs"
    for _ in range(3):
        assert manager.hear("WATCHDOG=1") == "WATCHDOG=1"

    manager.process.send_signal(signal.SIGHUP)
    assert re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=[0-9]+", manager.hear("RELOADING=1"))
    assert manager.hear("READY=1").endswith("child up, 0 IKE_SAs")

    manager.config.write_text("nonsense")
    manager.process.send_signal(signal.SIGHUP)
    manager.hear("RELOADING=1")
    assert "\nSTATUS=not reloaded: " in manager.hear("READY=1")

    manager.process.send_signal(signal.SIGTERM)
    assert manager.hear("STOPPING=1") == "STOPPING=1\nSTATUS=stopping"
    assert manager.process.wait(10) == 0


def test_a_daemon_that_hangs_does_not_feed_the_watchdog(manager: Manager) -> None:
    manager.hear("READY=1")
    manager.process.send_signal(signal.SIGSTOP)
    manager.socket.settimeout(1)
    with pytest.raises(TimeoutError):
        # what was on its way, and then no more
        drain(manager)
    manager.process.send_signal(signal.SIGCONT)
    manager.hear("WATCHDOG=1")


def test_a_start_that_fails_is_never_ready(tmp_path: Path) -> None:
    manager = Manager(tmp_path, "ipsecd { http { listen = 192.0.2.1:80 \n } }")
    try:
        assert manager.process.wait(20) == 4
        manager.socket.setblocking(False)
        with pytest.raises(BlockingIOError):
            manager.socket.recv(4096)
    finally:
        manager.close()
