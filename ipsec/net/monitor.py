"""Hears from the kernel when the tunnel device goes up, down or away, when addresses of this host come or go, and when
it begins or ends to forward what comes to any other device.

By rtnetlink's groups, without polling.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import sys
from enum import Enum

from ipsec.net.netlink import HEADER_LEN, attributes, messages

# linux/rtnetlink.h, linux/if.h
_RTMGRP_LINK = 0x1
_RTMGRP_IPV4_IFADDR = 0x10
_RTMGRP_IPV6_IFADDR = 0x100
# groups beyond the first 16 have a number, and a bit all the same
_RTMGRP_IPV4_NETCONF = 1 << 23
_RTMGRP_IPV6_NETCONF = 1 << 24
_RTM_NEWLINK = 16
_RTM_DELLINK = 17
_RTM_NEWADDR = 20
_RTM_DELADDR = 21
_RTM_NEWNETCONF = 80
# linux/netconf.h
_NETCONFA_IFINDEX = 1
_NETCONFA_FORWARDING = 2
#: of devices that are to come
_IFINDEX_DEFAULT = -2
_IFF_UP = 1
_SIOCGIFNAME = 0x8910
_SIOCGIFFLAGS = 0x8913
_IFREQ = struct.Struct("16si20x")
_IFREQ_FLAGS = struct.Struct("16sH22x")
_IFINFO = struct.Struct("=BxHiII")
_IFADDR = struct.Struct("=4xI")
_IFA_ADDRESS, _IFA_LOCAL = 1, 2


class Change(Enum):
    """What happened to the device, or to the host's addresses."""

    UP = "up"
    DOWN = "down"
    GONE = "gone"
    ADDRESSES = "addresses"
    TAKEN = "taken"
    "an address of the device itself is gone, while the device is up"
    FORWARDING = "forwarding"


class LinkMonitor:
    """Watches one interface. Put ``fd`` into the event loop and call ``changes`` when it is readable."""

    def __init__(self, index: int, *, up: bool) -> None:
        self._index = index
        self._up = up
        self._gone: set[bytes] = set()
        self._expected: set[bytes] = set()
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        )
        groups = _RTMGRP_LINK | _RTMGRP_IPV4_IFADDR | _RTMGRP_IPV6_IFADDR | _RTMGRP_IPV4_NETCONF | _RTMGRP_IPV6_NETCONF
        self._socket.bind((0, groups))

    @property
    def fd(self) -> int:
        """Readable when there may be a change."""
        return self._socket.fileno()

    def changes(self) -> list[Change]:
        """What happened since the last call, oldest first."""
        found: list[Change] = []
        lost = False
        while True:
            try:
                data = self._socket.recv(65536)
            except BlockingIOError:
                break
            except OSError:
                # ENOBUFS: the kernel dropped messages, which were newer than those that wait here
                lost = True
                continue
            found += self._parse(data)
        if Change.FORWARDING in found:
            # "all" is told for each device as well
            found = [change for change in found if change is not Change.FORWARDING] + [Change.FORWARDING]
        if lost:
            self._expected.clear()
            found += [self._look(), Change.ADDRESSES, Change.FORWARDING]
        return found

    def gone(self) -> set[bytes]:
        """Addresses, packed, that were taken from any device since the last call; also those that are back."""
        gone, self._gone = self._gone, set()
        return gone

    def expect(self, address: bytes) -> None:
        """We have given the device this address, packed: that it is there is no news."""
        self._expected.add(address)

    def close(self) -> None:
        """Stop watching."""
        self._socket.close()

    def _look(self) -> Change:
        """What the device is now. If it is up, it may have been down or not."""
        try:
            # not if_indextoname: the socket may be of another network namespace
            name = fcntl.ioctl(self._socket, _SIOCGIFNAME, _IFREQ.pack(b"", self._index))[:16]
            flags = fcntl.ioctl(self._socket, _SIOCGIFFLAGS, _IFREQ_FLAGS.pack(name, 0))
        except OSError:
            return Change.GONE
        self._up = bool(_IFREQ_FLAGS.unpack(flags)[1] & _IFF_UP)
        return Change.UP if self._up else Change.DOWN

    def _parse(self, data: bytes) -> list[Change]:
        found: list[Change] = []
        for length, at, kind, _, _, _ in messages(data):
            body = data[at + HEADER_LEN : at + length]
            if kind in (_RTM_NEWADDR, _RTM_DELADDR) and len(body) >= _IFADDR.size:
                found += self._parse_address(kind, body)
            elif kind in (_RTM_NEWLINK, _RTM_DELLINK) and len(body) >= _IFINFO.size:
                found += self._parse_link(kind, body)
            elif kind == _RTM_NEWNETCONF:
                known = attributes(body, 4)
                of = int.from_bytes(known.get(_NETCONFA_IFINDEX, b""), sys.byteorder, signed=True)
                if of not in (_IFINDEX_DEFAULT, self._index) and _NETCONFA_FORWARDING in known:
                    found.append(Change.FORWARDING)
        return found

    def _parse_address(self, kind: int, body: bytes) -> list[Change]:
        known = attributes(body, _IFADDR.size)
        address = known.get(_IFA_LOCAL) or known.get(_IFA_ADDRESS, b"")
        ours = _IFADDR.unpack_from(body)[0] == self._index
        if kind == _RTM_NEWADDR:
            if ours and address in self._expected:
                self._expected.discard(address)
                return []
            return [Change.ADDRESSES]
        self._gone.add(address)
        return [Change.ADDRESSES, Change.TAKEN] if ours and self._up else [Change.ADDRESSES]

    def _parse_link(self, kind: int, body: bytes) -> list[Change]:
        family, _, index, flags, _ = _IFINFO.unpack_from(body)
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
