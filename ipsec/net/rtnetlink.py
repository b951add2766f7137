"""Many routes in few system calls: rtnetlink messages made by hand, since a library takes 30 times longer for them.

RFC 3549; linux/netlink.h, linux/rtnetlink.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from collections.abc import Sequence
from contextlib import suppress

from ipsec.net.routebook import Change, Entry, Kind, Prefix

_RTM_NEWROUTE = 24
_RTM_DELROUTE = 25
_RTM_GETROUTE = 26
_NLMSG_ERROR = 2
_NLMSG_DONE = 3
# NLM_F_REQUEST | NLM_F_ACK, and for new ones NLM_F_CREATE | NLM_F_REPLACE
_REMOVE_FLAGS = 0x5
_ADD_FLAGS = 0x505
# NLM_F_REQUEST | NLM_F_DUMP
_DUMP_FLAGS = 0x301
_TYPES: dict[Kind, int] = {"unicast": 1, "unreachable": 7, "throw": 9}
_KINDS = {number: kind for kind, number in _TYPES.items()}
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_RTA_DST = 1
_RTA_OIF = 4
_RTA_PRIORITY = 6
_RTA_PREFSRC = 7
_RTA_TABLE = 15
_SOL_NETLINK = 270
_NETLINK_CAP_ACK = 10
_NETLINK_GET_STRICT_CHK = 12

_HEADER = struct.Struct("=IHHII")
#: family, dst_len, src_len, tos, table, protocol, scope, type, flags
_ROUTE = struct.Struct("=BBBBBBBBI")
_U32_ATTRIBUTE = struct.Struct("=HHI")
_ATTRIBUTE = struct.Struct("=HH")
_ERROR = struct.Struct("=i")
#: messages of one send: their acknowledgements fit into any receive buffer
BATCH = 64
#: seconds until the kernel has answered, which it does at once
_PATIENCE = 5.0


class RouteWriter:
    """Adds and removes routes of one table. Blocks for as long as the kernel takes."""

    def __init__(self, *, table: int, protocol: int, unreachable_metric: int) -> None:
        """``unreachable_metric`` is that of unreachable routes; others have the kernel's default."""
        self._table = table
        self._protocol = protocol
        self._metric = unreachable_metric
        self._sequence = 0
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.settimeout(_PATIENCE)
        self._socket.bind((0, 0))
        # an acknowledgement need not hold what it acknowledges
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
        with suppress(OSError):
            # Linux 4.20: the kernel filters a dump, so that a full BGP table costs us nothing
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)

    def close(self) -> None:
        """Give the socket back."""
        self._socket.close()

    def present(self) -> set[Entry]:
        """The routes in the table that bear our number. OSError if the kernel does not answer."""
        found: set[Entry] = set()
        for version, family in _FAMILIES.items():
            self._sequence += 1
            body = _ROUTE.pack(family, 0, 0, 0, 0, self._protocol, 0, 0, 0)
            body += _U32_ATTRIBUTE.pack(8, _RTA_TABLE, self._table)
            header = _HEADER.pack(_HEADER.size + len(body), _RTM_GETROUTE, _DUMP_FLAGS, self._sequence, 0)
            self._socket.send(header + body)
            while self._collect(self._socket.recv(1 << 18), version, found):
                pass
        return found

    def _collect(self, data: bytes, version: int, found: set[Entry]) -> bool:
        """Take what one answer to a dump has; whether more is to come."""
        at = 0
        while at + _HEADER.size <= len(data):
            length, kind, _, sequence, _ = _HEADER.unpack_from(data, at)
            if length < _HEADER.size:
                break
            if sequence == self._sequence and kind in (_NLMSG_ERROR, _NLMSG_DONE):
                # an error is a table that was never used, or a family that is switched off
                return False
            if sequence == self._sequence and kind == _RTM_NEWROUTE and length >= _HEADER.size + _ROUTE.size:
                self._collect_route(data[at + _HEADER.size : at + length], version, found)
            at += (length + 3) & ~3
        return True

    def _collect_route(self, body: bytes, version: int, found: set[Entry]) -> None:
        _, bits, _, _, table, protocol, _, kind, _ = _ROUTE.unpack_from(body)
        value, at = 0, _ROUTE.size
        while at + _ATTRIBUTE.size <= len(body):
            length, attribute = _ATTRIBUTE.unpack_from(body, at)
            if length < _ATTRIBUTE.size:
                break
            if attribute == _RTA_DST:
                value = int.from_bytes(body[at + _ATTRIBUTE.size : at + length], "big")
            elif attribute == _RTA_TABLE:
                table = int.from_bytes(body[at + _ATTRIBUTE.size : at + length], sys.byteorder)
            at += (length + 3) & ~3
        if (table, protocol) == (self._table, self._protocol) and kind in _KINDS:
            found.add(Entry(_KINDS[kind], Prefix(version, bits, value)))

    def carry_out(self, changes: Sequence[Change], index: int) -> list[tuple[Change, int]]:
        """Do all of these, in order; those that failed with their errno. ``index`` is the device's.

        Removing what is not there is no failure. OSError if the kernel does not answer.
        """
        failed: list[tuple[Change, int]] = []
        for at in range(0, len(changes), BATCH):
            batch = changes[at : at + BATCH]
            first = self._sequence + 1
            self._sequence += len(batch)
            self._socket.send(b"".join(self._message(change, index, first + k) for k, change in enumerate(batch)))
            for number, error in self._answers(first, len(batch)):
                change = batch[number]
                if change.add or error not in (errno.ESRCH, errno.ENOENT, errno.ENODEV):
                    failed.append((change, error))
        return failed

    def _message(self, change: Change, index: int, sequence: int) -> bytes:
        kind, prefix = change.entry
        size = 4 if prefix.version == 4 else 16
        body = [
            _ROUTE.pack(_FAMILIES[prefix.version], prefix.length, 0, 0, 0, self._protocol, 0, _TYPES[kind], 0),
            _U32_ATTRIBUTE.pack(8, _RTA_TABLE, self._table),
        ]
        if prefix.length:
            body.append(_ATTRIBUTE.pack(4 + size, _RTA_DST) + prefix.value.to_bytes(size, "big"))
        if kind == "unreachable":
            body.append(_U32_ATTRIBUTE.pack(8, _RTA_PRIORITY, self._metric))
        if change.add and kind == "unicast":
            body.append(_U32_ATTRIBUTE.pack(8, _RTA_OIF, index))
            if change.source is not None:
                body.append(_ATTRIBUTE.pack(4 + size, _RTA_PREFSRC) + change.source.packed)
        payload = b"".join(body)
        command, flags = (_RTM_NEWROUTE, _ADD_FLAGS) if change.add else (_RTM_DELROUTE, _REMOVE_FLAGS)
        return _HEADER.pack(_HEADER.size + len(payload), command, flags, sequence, 0) + payload

    def _answers(self, first: int, count: int) -> list[tuple[int, int]]:
        """(index in the batch, errno) of those that failed, once all ``count`` are answered."""
        failed: list[tuple[int, int]] = []
        missing = count
        while missing > 0:
            data = self._socket.recv(1 << 16)
            at = 0
            while at + _HEADER.size + _ERROR.size <= len(data):
                length, kind, _, sequence, _ = _HEADER.unpack_from(data, at)
                if length < _HEADER.size + _ERROR.size:
                    raise OSError(errno.EPROTO, os.strerror(errno.EPROTO))
                if kind == _NLMSG_ERROR and first <= sequence < first + count:
                    missing -= 1
                    (error,) = _ERROR.unpack_from(data, at + _HEADER.size)
                    if error:
                        failed.append((sequence - first, -error))
                at += (length + 3) & ~3
        return failed
