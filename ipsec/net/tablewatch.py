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

from ipsec.net import bpf
from ipsec.net.netlink import HEADER_LEN, attributes, messages

# linux/rtnetlink.h: groups, messages
_GROUPS = 0x40 | 0x80 | 0x400 | 1 << 18
"routes and rules, of IPv4 and IPv6"
_RTM_DELROUTE = 25
_RTM_DELRULE = 33
#: kinds of routes that lead to no device: RTN_UNREACHABLE, RTN_THROW
_NOWHERE = (7, 9)
# linux/rtnetlink.h, linux/fib_rules.h: attributes
_TABLE = 15
_FRA_PROTOCOL = 21
#: of routes and of rules: family, lengths, TOS, table, who made it (routes only), ...
_BODY = struct.Struct("=BBBBBBBBI")


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
        # a message's type and, of routes, who made it
        program = [
            (bpf.LD_HALF_ABS, 0, 0, 4),
            (bpf.JUMP_EQUAL, 3, 0, rule),
            (bpf.JUMP_EQUAL, 0, 3, route),
            (bpf.LD_BYTE_ABS, 0, 0, HEADER_LEN + 5),
            (bpf.JUMP_EQUAL, 0, 1, protocol),
            (bpf.RET_CONST, 0, 0, 0xFFFFFFFF),
            (bpf.RET_CONST, 0, 0, 0),
        ]
        try:
            bpf.attach_filter(self._socket, program)
            self._socket.bind((0, _GROUPS))
        except OSError:
            self._socket.close()
            raise

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
        for length, at, kind, _, _, port in messages(data):
            body = data[at + HEADER_LEN : at + length]
            if port in self._ours or len(body) < _BODY.size:
                continue
            _, _, _, _, table, protocol, _, route, _ = _BODY.unpack_from(body)
            # What the kernel removes by itself goes with the tunnel's device or an address, which ``monitor`` tells of,
            # or with the loopback device, on which IPv6 hangs routes that lead nowhere.
            if not port and (kind == _RTM_DELRULE or route not in _NOWHERE):
                continue
            known = attributes(body, _BODY.size)
            # a field of one octet is too small for most tables
            table = int.from_bytes(known.get(_TABLE, bytes((table,))), sys.byteorder)
            if kind == _RTM_DELRULE:
                # kernels before Linux 4.17 do not say who made a rule
                protocol = known.get(_FRA_PROTOCOL, bytes((self._protocol,)))[0]
            if (table, protocol) == (self._table, self._protocol):
                return True
        return False

    def close(self) -> None:
        """Watch no longer."""
        self._socket.close()
