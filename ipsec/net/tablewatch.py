"""Hears from the kernel that somebody else has removed routes of ours, or rules that lead to them.

systemd-networkd removes rules and routes that are not its own when it starts again (networkd.conf(5),
ManageForeignRoutingPolicyRules), and people flush tables. What the tunnels protect would leave in clear from then on.
By rtnetlink's groups, without polling; the kernel tells who made a change, and a filter keeps all else away, such as
what a routing daemon does.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Collection

from ipsec.net.netlink import attributes
from ipsec.net.udp import attach_filter

# linux/rtnetlink.h: groups, messages
_RTMGRP_IPV4_ROUTE = 0x40
_RTMGRP_IPV4_RULE = 0x80
_RTMGRP_IPV6_ROUTE = 0x400
_RTMGRP_IPV6_RULE = 1 << 18
_RTM_DELROUTE = 25
_RTM_DELRULE = 33
# linux/rtnetlink.h, linux/fib_rules.h: attributes
_TABLE = 15
_FRA_PROTOCOL = 21
_NLMSG = struct.Struct("=IHHII")
#: of routes and of rules: family, lengths, TOS, table, who made it (routes only), ...
_BODY = struct.Struct("=BBBBBBBBI")
#: linux/filter.h: what matters are a message's type and, of routes, who made it
_LD_HALF, _LD_BYTE, _JUMP_EQUAL, _RETURN = 0x28, 0x30, 0x15, 0x06


class TableWatch:
    """Put ``fd`` into the event loop and call ``lost`` when it is readable. OSError if the kernel refuses."""

    def __init__(self, table: int, protocol: int, ours: Collection[int]) -> None:
        """``protocol`` marks what is ours, ``ours`` are the port numbers of netlink sockets that may remove it."""
        self._table = table
        self._protocol = protocol
        self._ours = frozenset(ours)
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        )
        route, rule = (int.from_bytes(struct.pack("=H", kind), "big") for kind in (_RTM_DELROUTE, _RTM_DELRULE))
        attach_filter(
            self._socket,
            [
                (_LD_HALF, 0, 0, 4),
                (_JUMP_EQUAL, 3, 0, rule),
                (_JUMP_EQUAL, 0, 3, route),
                (_LD_BYTE, 0, 0, _NLMSG.size + 5),
                (_JUMP_EQUAL, 0, 1, protocol),
                (_RETURN, 0, 0, 0xFFFFFFFF),
                (_RETURN, 0, 0, 0),
            ],
        )
        self._socket.bind((0, _RTMGRP_IPV4_ROUTE | _RTMGRP_IPV6_ROUTE | _RTMGRP_IPV4_RULE | _RTMGRP_IPV6_RULE))

    @property
    def fd(self) -> int:
        """Readable when something was removed."""
        return self._socket.fileno()

    def lost(self) -> bool:
        """Whether somebody else has removed something of ours since the last call."""
        lost = False
        while True:
            try:
                data = self._socket.recv(1 << 16)
            except BlockingIOError:
                return lost
            except OSError:
                # ENOBUFS: the kernel had more to say than we could take
                lost = True
                continue
            lost = lost or self._concerns_us(data)

    def _concerns_us(self, data: bytes) -> bool:
        at = 0
        while at + _NLMSG.size <= len(data):
            length, kind, _, _, port = _NLMSG.unpack_from(data, at)
            if not _NLMSG.size + _BODY.size <= length <= len(data) - at:
                return False
            body = data[at + _NLMSG.size : at + length]
            _, _, _, _, table, protocol, *_ = _BODY.unpack_from(body)
            known = attributes(body, _BODY.size)
            # a field of one octet is too small for most tables
            table = int.from_bytes(known.get(_TABLE, bytes((table,))), sys.byteorder)
            if kind == _RTM_DELRULE:
                protocol = known.get(_FRA_PROTOCOL, bytes((self._protocol,)))[0]
            # what the kernel removes by itself goes with a device or an address, which ``monitor`` tells of
            if (table, protocol) == (self._table, self._protocol) and port and port not in self._ours:
                return True
            at += (length + 3) & ~3
        return False

    def close(self) -> None:
        """Watch no longer."""
        self._socket.close()
