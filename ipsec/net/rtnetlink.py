"""Routes, rules, addresses and MTU as rtnetlink messages (RFC 3549; linux/rtnetlink.h, if_link.h, fib_rules.h)."""

from __future__ import annotations

import errno
import socket
import struct
import sys
from collections.abc import Sequence
from contextlib import closing
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from ipsec.net.netlink import ADD_FLAGS, ADD_NEW_FLAGS, CHANGE_FLAGS, Message, Netlink, attribute, attributes, u32
from ipsec.net.routebook import Change, Entry, IpAddress, Kind, Prefix

_RTM_NEWLINK = 16
_RTM_NEWADDR, _RTM_GETADDR = 20, 22
_RTM_NEWROUTE, _RTM_DELROUTE, _RTM_GETROUTE = 24, 25, 26
_RTM_NEWRULE, _RTM_DELRULE, _RTM_GETRULE = 32, 33, 34
_TYPES: dict[Kind, int] = {"unicast": 1, "unreachable": 7, "throw": 9}
_KINDS = {number: kind for kind, number in _TYPES.items()}
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_RTA_DST = 1
_RTA_OIF = 4
_RTA_PRIORITY = 6
_RTA_PREFSRC = 7
_RTA_TABLE = 15
_FRA_PRIORITY = 6
_FRA_FWMARK = 10
_FRA_TABLE = 15
_FRA_FWMASK = 16
_FRA_UID_RANGE = 20
_FRA_PROTOCOL = 21
_FR_ACT_TO_TBL = 1
_FIB_RULE_INVERT = 2
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_IFLA_MTU = 4
_IFLA_GSO_MAX_SIZE = 41
#: a table without routes
_NOBODYS_TABLE = 0xFFFFFFFE

#: family, dst_len, src_len, tos, table, protocol, scope, type, flags
_ROUTE = struct.Struct("=BBBBBBBBI")
#: family, dst_len, src_len, tos, table, 2 unused, action, flags
_RULE = struct.Struct("=BBBBBBBBI")
#: family, prefix length, flags, scope, interface
_ADDRESS = struct.Struct("=BBBBI")
#: family, type, interface, flags, which of them change
_LINK = struct.Struct("=BxHiII")


class Rule(NamedTuple):
    """A rule that looks up a table, unless a packet bears ``mark`` (0: in any case), or is of the user ``uid``."""

    version: int
    priority: int
    mark: int
    uid: int | None = None


class RouteWriter:
    """Routes of one table and rules that lead to it, all of one protocol number."""

    def __init__(self, netlink: Netlink, *, table: int, protocol: int, unreachable_metric: int) -> None:
        """``unreachable_metric`` is that of unreachable routes; others have the kernel's default."""
        self._netlink = netlink
        self._table = table
        self._protocol = protocol
        self._metric = unreachable_metric

    # -- routes

    def present(self) -> set[Entry]:
        """The routes in the table that bear our number. OSError if the kernel does not answer."""
        found: set[Entry] = set()
        for version, family in _FAMILIES.items():
            body = _ROUTE.pack(family, 0, 0, 0, 0, self._protocol, 0, 0, 0) + u32(_RTA_TABLE, self._table)
            for answer in self._netlink.dump(_RTM_GETROUTE, body, answer=_RTM_NEWROUTE):
                _, bits, _, _, table, protocol, _, kind, _ = _ROUTE.unpack_from(answer)
                known = attributes(answer, _ROUTE.size)
                table = _number(known.get(_RTA_TABLE), table)
                if (table, protocol) == (self._table, self._protocol) and kind in _KINDS:
                    value = int.from_bytes(known.get(_RTA_DST, b""), "big")
                    found.add(Entry(_KINDS[kind], Prefix(version, bits, value)))
        return found

    def carry_out(self, changes: Sequence[Change], index: int) -> list[tuple[Change, int]]:
        """Do all of these, in order; those that failed with their errno. ``index`` is the device's.

        Removing what is not there is no failure. OSError if the kernel does not answer.
        """
        failed = self._netlink.change([self._route(change, index) for change in changes])
        gone = errno.ESRCH, errno.ENOENT, errno.ENODEV
        return [(changes[at], error) for at, error in failed if changes[at].add or error not in gone]

    def _route(self, change: Change, index: int) -> Message:
        kind, prefix = change.entry
        body = _ROUTE.pack(_FAMILIES[prefix.version], prefix.length, 0, 0, 0, self._protocol, 0, _TYPES[kind], 0)
        body += u32(_RTA_TABLE, self._table)
        if prefix.length:
            body += attribute(_RTA_DST, prefix.value.to_bytes(4 if prefix.version == 4 else 16, "big"))
        if kind == "unreachable":
            body += u32(_RTA_PRIORITY, self._metric)
        if change.add and kind == "unicast":
            body += u32(_RTA_OIF, index)
            if change.source is not None:
                body += attribute(_RTA_PREFSRC, change.source.packed)
        if change.add:
            return Message(_RTM_NEWROUTE, ADD_FLAGS, body)
        return Message(_RTM_DELROUTE, CHANGE_FLAGS, body)

    # -- rules

    def rules(self) -> list[Rule]:
        """The rules for the table that bear our number. OSError if the kernel does not answer."""
        found: list[Rule] = []
        for version, family in _FAMILIES.items():
            body = _RULE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
            for answer in self._netlink.dump(_RTM_GETRULE, body, answer=_RTM_NEWRULE):
                known = attributes(answer, _RULE.size)
                table = _number(known.get(_FRA_TABLE), _RULE.unpack_from(answer)[4])
                if (table, known.get(_FRA_PROTOCOL)) == (self._table, bytes((self._protocol,))):
                    priority, mark = (_number(known.get(kind), 0) for kind in (_FRA_PRIORITY, _FRA_FWMARK))
                    uids = known.get(_FRA_UID_RANGE)
                    # ours are ranges of one
                    found.append(Rule(version, priority, mark, _number(uids[:4], 0) if uids else None))
        return found

    def add_rule(self, rule: Rule) -> int:
        """Add a rule; 0 or the errno."""
        return self._change_rule(_RTM_NEWRULE, ADD_NEW_FLAGS, rule)

    def del_rule(self, rule: Rule) -> int:
        """Remove a rule; 0 or the errno."""
        return self._change_rule(_RTM_DELRULE, CHANGE_FLAGS, rule)

    def _change_rule(self, kind: int, flags: int, rule: Rule) -> int:
        inverted = _FIB_RULE_INVERT if rule.mark or rule.uid is not None else 0
        body = _RULE.pack(_FAMILIES[rule.version], 0, 0, 0, 0, 0, 0, _FR_ACT_TO_TBL, inverted)
        body += u32(_FRA_PRIORITY, rule.priority) + u32(_FRA_TABLE, self._table)
        body += attribute(_FRA_PROTOCOL, bytes((self._protocol,)))
        if rule.mark:
            body += u32(_FRA_FWMARK, rule.mark) + u32(_FRA_FWMASK, 0xFFFFFFFF)
        if rule.uid is not None:
            body += attribute(_FRA_UID_RANGE, struct.pack("=II", rule.uid, rule.uid))
        return _errno(self._netlink.change([Message(kind, flags, body)]))


def may_configure() -> bool:
    """Whether we may change addresses and routes of this network namespace (CAP_NET_ADMIN). Changes nothing."""
    try:
        with closing(Netlink()) as netlink:
            writer = RouteWriter(netlink, table=_NOBODYS_TABLE, protocol=0, unreachable_metric=0)
            # the kernel looks at privileges first, and then finds no such route, which is no failure here
            return not writer.carry_out([Change(False, Entry("throw", Prefix(4, 32, 0xC0000201)))], 0)
    except OSError:
        return False


def addresses(netlink: Netlink) -> list[IpAddress]:
    """All addresses of this host, in the kernel's order, IPv4 first. OSError if the kernel does not answer."""
    found: list[IpAddress] = []
    for version, family in _FAMILIES.items():
        make = IPv4Address if version == 4 else IPv6Address
        for answer in netlink.dump(_RTM_GETADDR, _ADDRESS.pack(family, 0, 0, 0, 0), answer=_RTM_NEWADDR):
            known = attributes(answer, _ADDRESS.size)
            packed = known.get(_IFA_LOCAL) or known.get(_IFA_ADDRESS)
            if packed:
                found.append(make(packed))
    return found


def set_mtu(netlink: Netlink, index: int, mtu: int) -> int:
    """Give an interface an MTU; 0 or the errno."""
    return _set_link(netlink, index, u32(_IFLA_MTU, mtu))


def set_gso_max_size(netlink: Netlink, index: int, size: int) -> int:
    """Limit the superframes that TCP makes for an interface (Linux 5.19); 0 or the errno."""
    return _set_link(netlink, index, u32(_IFLA_GSO_MAX_SIZE, size))


def _set_link(netlink: Netlink, index: int, attribute_: bytes) -> int:
    body = _LINK.pack(socket.AF_UNSPEC, 0, index, 0, 0) + attribute_
    return _errno(netlink.change([Message(_RTM_NEWLINK, CHANGE_FLAGS, body)]))


def _errno(failed: list[tuple[int, int]]) -> int:
    return failed[0][1] if failed else 0


def _number(value: bytes | None, otherwise: int) -> int:
    return int.from_bytes(value, sys.byteorder) if value is not None else otherwise
