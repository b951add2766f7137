"""What systemd is told: the datagrams of sd_notify(3). Without systemd nobody is told, and nothing is sent."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Mapping

log = logging.getLogger(__name__)


def notify(*assignments: str) -> None:
    """Send ``READY=1`` and the like in one datagram to ``NOTIFY_SOCKET``; that nobody takes it is logged only."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address[0] not in "/@":
        log.warning("NOTIFY_SOCKET is neither a path nor an abstract socket")
        return
    # unix(7): an abstract name begins with a NUL
    target = address.replace("@", "\0", 1) if address[0] == "@" else address
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as sock:
            sock.connect(target)
            # one line each: an error text that has two must not become a second assignment
            sock.sendall("\n".join(" ".join(one.splitlines()) for one in assignments).encode(errors="replace"))
    except OSError as error:
        log.warning("systemd cannot be told %s: %s", assignments[0], error.strerror)


def reloading() -> None:
    """A reload begins; ``READY=1`` ends it."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")


def watchdog_interval(environ: Mapping[str, str] = os.environ) -> float | None:
    """Seconds between ``WATCHDOG=1``, half of what systemd waits for (sd_watchdog_enabled(3)); None: it waits not."""
    usec, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not usec.isascii() or not usec.isdigit() or int(usec) == 0 or (pid and pid != str(os.getpid())):
        return None
    return int(usec) / 2_000_000
