"""Hears from the kernel that addresses or routes of this host have changed (rtnetlink, RFC 3549), without polling."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import Callable
from contextlib import suppress

from ipsec.net import bpf, readable

log = logging.getLogger(__name__)

# linux/rtnetlink.h: groups and messages
_GROUPS = 0x1 | 0x10 | 0x40 | 0x100 | 0x400
"links, and addresses and routes of IPv4 and IPv6"
_RTM_NEWLINK, _RTM_DELLINK, _RTM_NEWADDR, _RTM_DELADDR = 16, 17, 20, 21
_RTM_NEWROUTE, _RTM_DELROUTE = 24, 25
_NLMSG = struct.Struct("=IHHII")
_RTMSG = struct.Struct("=BBBBBBBBI")
_PROTOCOL = 5
"of the fields of a route: who made it"
_INTERFACE = struct.Struct("=4xI")
"of links and addresses alike: the interface's index"

#: several changes come together when a host moves: address, route, default route
SETTLE_S = 0.2
#: a host with containers is never quiet for long
LATEST_S = 2.0


class HostWatch:
    """Calls back when the host's addresses or routes have changed, as soon as they are quiet for a moment."""

    def __init__(self, changed: Callable[[], None], *, ignore_protocol: int, ignore_device: str) -> None:
        """Routes that bear ``ignore_protocol`` are our own, and so is a device. OSError if the kernel refuses."""
        self._changed = changed
        self._protocol = ignore_protocol
        self._device = ignore_device
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._latest = 0.0
        "when it is time, however much changes"
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        )
        with suppress(OSError):
            # Each tunnel has routes, and nobody is to be woken because of them. Without, they are only looked at
            bpf.attach_filter(self._socket, _others_routes(ignore_protocol))
        try:
            self._socket.bind((0, _GROUPS))
        except OSError:
            self._socket.close()
            raise
        readable.watch(self._socket.fileno(), self._on_readable)

    def close(self) -> None:
        """Watch no longer."""
        if self._timer is not None:
            self._timer.cancel()
        readable.unwatch(self._socket.fileno())
        self._socket.close()

    def _on_readable(self) -> None:
        relevant = False
        while True:
            try:
                data = self._socket.recv(1 << 16)
            except BlockingIOError:
                break
            except OSError:
                # ENOBUFS: the kernel had more to say than we could take
                relevant = True
                continue
            relevant = relevant or concerns_us(data, self._protocol, self._own_index)
        if relevant:
            now = self._loop.time()
            if self._timer is None:
                self._latest = now + LATEST_S
            else:
                self._timer.cancel()
            self._timer = self._loop.call_at(min(now + SETTLE_S, self._latest), self._on_quiet)

    def _own_index(self) -> int:
        """0 while there is no device: it may be made anew, with another index."""
        try:
            return socket.if_nametoindex(self._device)
        except OSError:
            return 0

    def _on_quiet(self) -> None:
        self._timer = None
        self._changed()


def _others_routes(ignore_protocol: int) -> list[bpf.Instruction]:
    """Keeps messages away that tell of a route with this protocol."""
    new, gone = (int.from_bytes(struct.pack("=H", kind), "big") for kind in (_RTM_NEWROUTE, _RTM_DELROUTE))
    return [
        (bpf.LD_HALF_ABS, 0, 0, 4),
        (bpf.JUMP_EQUAL, 1, 0, new),
        (bpf.JUMP_EQUAL, 0, 2, gone),
        (bpf.LD_BYTE_ABS, 0, 0, _NLMSG.size + _PROTOCOL),
        (bpf.JUMP_EQUAL, 1, 0, ignore_protocol),
        (bpf.RET_CONST, 0, 0, 0xFFFFFFFF),
        (bpf.RET_CONST, 0, 0, 0),
    ]


def concerns_us(data: bytes, ignore_protocol: int, own_index: Callable[[], int]) -> bool:
    """Whether netlink messages tell of more than our own routes and device, which most are about."""
    at = 0
    while at + _NLMSG.size <= len(data):
        length, kind, _, _, _ = _NLMSG.unpack_from(data, at)
        if length < _NLMSG.size:
            return False
        body = at + _NLMSG.size
        if kind in (_RTM_NEWROUTE, _RTM_DELROUTE):
            if body + _RTMSG.size > len(data):
                return False
            if _RTMSG.unpack_from(data, body)[_PROTOCOL] != ignore_protocol:
                return True
        elif kind in (_RTM_NEWLINK, _RTM_DELLINK, _RTM_NEWADDR, _RTM_DELADDR):
            if body + _INTERFACE.size > len(data):
                return False
            if _INTERFACE.unpack_from(data, body)[0] != own_index():
                return True
        else:
            return True
        at += (length + 3) & ~3
    return False
