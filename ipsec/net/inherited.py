"""Descriptors that a supervisor hands down: LISTEN_FDS of sd_listen_fds(3), as systemd and podman do it.

UDP sockets are used in place of our own where family and port are those that are wanted, so that ports below 1024 need
no capability. A TUN queue is used in place of the device. Their names (LISTEN_FDNAMES) do not matter.
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass

from ipsec.errors import BackendError
from ipsec.net.tun import is_tun_queue

FIRST = 3
_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")
_REMEDY = (
    "hand down UDP sockets and one TUN queue only (systemd: ListenDatagram=0.0.0.0:500, ListenDatagram=[::]:500 with "
    "BindIPv6Only=ipv6-only)"
)


@dataclass(frozen=True)
class Inherited:
    """What there is."""

    sockets: tuple[socket.socket, ...] = ()
    tun_fd: int | None = None


def take_inherited(environment: MutableMapping[str, str]) -> Inherited:
    """What was handed to this process; the variables that say so go. BackendError if something of it is of no use."""
    values = [environment.pop(name, "") for name in _VARIABLES]
    if values[0] != str(os.getpid()) or not values[1].isdecimal():
        return Inherited()
    sockets: list[socket.socket] = []
    tuns: list[int] = []
    for fd in range(FIRST, FIRST + int(values[1])):
        try:
            os.set_inheritable(fd, False)
        except OSError as error:
            raise BackendError(f"LISTEN_FDS: descriptor {fd}: {error.strerror}", remedy=_REMEDY) from error
        if is_tun_queue(fd):
            tuns.append(fd)
            continue
        sockets.append(_socket(fd))
    if len(tuns) > 1:
        raise BackendError(f"LISTEN_FDS: {len(tuns)} TUN queues, one can be used", remedy=_REMEDY)
    return Inherited(tuple(sockets), tuns[0] if tuns else None)


def _socket(fd: int) -> socket.socket:
    try:
        sock = socket.socket(fileno=fd)
    except OSError as error:
        raise BackendError(f"LISTEN_FDS: descriptor {fd} is neither socket nor TUN queue", remedy=_REMEDY) from error
    if sock.type != socket.SOCK_DGRAM or sock.family not in (socket.AF_INET, socket.AF_INET6):
        raise BackendError(f"LISTEN_FDS: descriptor {fd} is no UDP socket", remedy=_REMEDY)
    if sock.family == socket.AF_INET6 and not sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY):
        raise BackendError(f"LISTEN_FDS: descriptor {fd} is a socket for IPv4 and IPv6 at once", remedy=_REMEDY)
    sock.setblocking(False)
    return sock


def matching(sockets: Sequence[socket.socket], version: int, port: int) -> list[socket.socket]:
    """Those of an IP version and a port; each a copy of its own, to be closed."""
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    return [sock.dup() for sock in sockets if sock.family == family and sock.getsockname()[1] == port]
