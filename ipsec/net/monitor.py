"""Hears from the kernel when the tunnel device goes up, down or away, and when addresses of this host come or go.

By rtnetlink's groups, without polling.
"""

from __future__ import annotations

import fcntl
import socket
import struct
from enum import Enum

# linux/rtnetlink.h, linux/if.h
_RTMGRP_LINK = 0x1
_RTMGRP_IPV4_IFADDR = 0x10
_RTMGRP_IPV6_IFADDR = 0x100
_RTM_NEWLINK = 16
_RTM_DELLINK = 17
_RTM_NEWADDR = 20
_RTM_DELADDR = 21
_IFF_UP = 1
_SIOCGIFNAME = 0x8910
_IFREQ = struct.Struct("16si20x")
_NLMSG = struct.Struct("=IHHII")
_IFINFO = struct.Struct("=BxHiII")


class Change(Enum):
    """What happened to the device, or to the host's addresses."""

    UP = "up"
    DOWN = "down"
    GONE = "gone"
    ADDRESSES = "addresses"


class LinkMonitor:
    """Watches one interface. Put ``fd`` into the event loop and call ``changes`` when it is readable."""

    def __init__(self, index: int, *, up: bool) -> None:
        self._index = index
        self._up = up
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        )
        self._socket.bind((0, _RTMGRP_LINK | _RTMGRP_IPV4_IFADDR | _RTMGRP_IPV6_IFADDR))

    @property
    def fd(self) -> int:
        """Readable when there may be a change."""
        return self._socket.fileno()

    def changes(self) -> list[Change]:
        """What happened since the last call, oldest first."""
        found: list[Change] = []
        while True:
            try:
                data = self._socket.recv(65536)
            except BlockingIOError:
                return found
            except OSError:
                # ENOBUFS: the kernel dropped messages, and ours may have been one of them
                found += [Change.UP if self._exists() else Change.GONE, Change.ADDRESSES]
                continue
            found += self._parse(data)

    def close(self) -> None:
        """Stop watching."""
        self._socket.close()

    def _exists(self) -> bool:
        try:
            # not if_indextoname: the socket may be of another network namespace
            fcntl.ioctl(self._socket, _SIOCGIFNAME, _IFREQ.pack(b"", self._index))
        except OSError:
            return False
        return True

    def _parse(self, data: bytes) -> list[Change]:
        found: list[Change] = []
        at = 0
        while at + _NLMSG.size <= len(data):
            length, kind, _, _, _ = _NLMSG.unpack_from(data, at)
            if not _NLMSG.size <= length <= len(data) - at:
                break
            if kind in (_RTM_NEWADDR, _RTM_DELADDR):
                found.append(Change.ADDRESSES)
            elif kind in (_RTM_NEWLINK, _RTM_DELLINK) and length >= _NLMSG.size + _IFINFO.size:
                found += self._parse_link(kind, data, at + _NLMSG.size)
            at += (length + 3) & ~3
        return found

    def _parse_link(self, kind: int, data: bytes, at: int) -> list[Change]:
        family, _, index, flags, _ = _IFINFO.unpack_from(data, at)
        # a device that leaves a bridge is a DELLINK of family AF_BRIDGE, and goes nowhere
        if index != self._index or family != socket.AF_UNSPEC:
            return []
        if kind == _RTM_DELLINK:
            return [Change.GONE]
        up = bool(flags & _IFF_UP)
        if up == self._up:
            return []
        self._up = up
        return [Change.UP if up else Change.DOWN]
