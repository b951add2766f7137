"""Routes, rules, addresses and MTU as rtnetlink messages (RFC 3549; linux/rtnetlink.h, if_link.h, fib_rules.h)."""

from __future__ import annotations

import errno
import socket
import struct
import sys
from collections.abc import Sequence
from contextlib import closing
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_interface
from typing import NamedTuple

from ipsec.net.netlink import ADD_FLAGS, ADD_NEW_FLAGS, CHANGE_FLAGS, Message, Netlink, attribute, attributes, u32
from ipsec.net.routebook import Change, Entry, IpAddress, Kind, Prefix

IpInterface = IPv4Interface | IPv6Interface

_RTM_NEWLINK, _RTM_DELLINK, _RTM_GETLINK = 16, 17, 18
_RTM_NEWADDR, _RTM_DELADDR, _RTM_GETADDR = 20, 21, 22
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
#: by which a rule is for some packets only: addresses, devices, marks, users, protocol, ports
_FRA_SELECTORS = frozenset((1, 2, 3, 10, 16, 17, 20, 22, 23, 24))
_FR_ACT_TO_TBL = 1
_FIB_RULE_INVERT = 2
_IFA_ADDRESS, _IFA_LOCAL, _IFA_PROTO = 1, 2, 11
_IFLA_IFNAME = 3
_IFA_F_NODAD = 2
#: IFA_F_DADFAILED | IFA_F_DEPRECATED | IFA_F_TENTATIVE: nothing should be sent from there, or can be
_IFA_F_UNFIT = 0x08 | 0x20 | 0x40
_SCOPE_UNIVERSE = 0
_IFLA_MTU, _IFLA_TXQLEN, _IFLA_LINKINFO, _IFLA_GSO_MAX_SIZE = 4, 13, 18, 41
_IFLA_INFO_KIND, _IFLA_INFO_DATA = 1, 2
# if_link.h: of a TUN device
_IFLA_TUN_OWNER, _IFLA_TUN_GROUP, _IFLA_TUN_TYPE, _IFLA_TUN_PERSIST, _IFLA_TUN_NUM_QUEUES = 1, 2, 3, 6, 8
_IFF_TUN = 1
_IFF_UP = 1
_IFF_RUNNING = 0x40
#: RTNH_F_DEAD | RTNH_F_LINKDOWN: the device is down, or nobody has it open
_RTNH_F_OUT_OF_USE = 1 | 16
#: IPv6 tells routes of one network apart by their metric alone, and when one is removed the kind counts for nothing;
#: what is excluded goes before what is protected
_METRICS6: dict[Kind, int] = {"throw": 1023, "unicast": 1024}
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
        """``unreachable_metric`` is that of unreachable routes, beyond those of others."""
        self._netlink = netlink
        self._table = table
        self._protocol = protocol
        self._metric = unreachable_metric

    # -- routes

    def present(self) -> set[Entry]:
        """The routes in the table that bear our number. OSError if the kernel does not answer."""
        return {entry for entry, _ in self._dump()}

    def in_use(self) -> bool:
        """Whether a route of ours leads to a device that somebody has open. OSError if the kernel does not answer."""
        return any(entry.kind == "unicast" and not flags & _RTNH_F_OUT_OF_USE for entry, flags in self._dump())

    def _dump(self) -> list[tuple[Entry, int]]:
        """The routes in the table that bear our number, with their flags."""
        found: list[tuple[Entry, int]] = []
        for version, family in _FAMILIES.items():
            body = _ROUTE.pack(family, 0, 0, 0, 0, self._protocol, 0, 0, 0) + u32(_RTA_TABLE, self._table)
            for answer in self._netlink.dump(_RTM_GETROUTE, body, answer=_RTM_NEWROUTE):
                _, bits, _, _, table, protocol, _, kind, flags = _ROUTE.unpack_from(answer)
                known = attributes(answer, _ROUTE.size)
                table = _number(known.get(_RTA_TABLE), table)
                if (table, protocol) == (self._table, self._protocol) and kind in _KINDS:
                    value = int.from_bytes(known.get(_RTA_DST, b""), "big")
                    found.append((Entry(_KINDS[kind], Prefix(version, bits, value)), flags))
        return found

    def carry_out(self, changes: Sequence[Change], index: int) -> list[tuple[Change, int]]:
        """Do all of these, in order; those that failed with their errno. ``index`` is the device's.

        Removing what is not there is no failure. OSError if the kernel does not answer.
        """
        return self.carry_out_behind((), changes, index)[1]

    def carry_out_behind(
        self, rules: Sequence[Rule], changes: Sequence[Change], index: int
    ) -> tuple[list[tuple[Rule, int]], list[tuple[Change, int]]]:
        """Add rules, then do as ``carry_out``, with one question to the kernel where there are few; what failed."""
        messages = [self._rule(_RTM_NEWRULE, ADD_NEW_FLAGS, rule) for rule in rules]
        messages += [self._route(change, index) for change in changes]
        refused: list[tuple[Rule, int]] = []
        failed: list[tuple[Change, int]] = []
        for at, error in self._netlink.change(messages):
            if at < len(rules):
                refused.append((rules[at], error))
                continue
            change = changes[at - len(rules)]
            if change.add or error not in (errno.ESRCH, errno.ENOENT, errno.ENODEV):
                failed.append((change, error))
        return refused, failed

    def _route(self, change: Change, index: int) -> Message:
        kind, prefix = change.entry
        body = _ROUTE.pack(_FAMILIES[prefix.version], prefix.length, 0, 0, 0, self._protocol, 0, _TYPES[kind], 0)
        body += u32(_RTA_TABLE, self._table)
        if prefix.length:
            body += attribute(_RTA_DST, prefix.value.to_bytes(4 if prefix.version == 4 else 16, "big"))
        if kind == "unreachable":
            body += u32(_RTA_PRIORITY, self._metric)
        elif prefix.version == 6:
            body += u32(_RTA_PRIORITY, _METRICS6[kind])
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

    def unmarked_rules(self) -> list[tuple[int, int]]:
        """IP versions and priorities of rules for the table that somebody else has made and that every packet fits.
        OSError if the kernel does not answer."""
        found = []
        for version, family in _FAMILIES.items():
            body = _RULE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
            for answer in self._netlink.dump(_RTM_GETRULE, body, answer=_RTM_NEWRULE):
                known = attributes(answer, _RULE.size)
                header = _RULE.unpack_from(answer)
                table, ours = _number(known.get(_FRA_TABLE), header[4]), bytes((self._protocol,))
                if table == self._table and known.get(_FRA_PROTOCOL) != ours and not known.keys() & _FRA_SELECTORS:
                    found.append((version, _number(known.get(_FRA_PRIORITY), 0)))
        return found

    def add_rule(self, rule: Rule) -> int:
        """Add a rule; 0 or the errno."""
        return self._change_rule(_RTM_NEWRULE, ADD_NEW_FLAGS, rule)

    def del_rule(self, rule: Rule) -> int:
        """Remove a rule; 0 or the errno."""
        return self._change_rule(_RTM_DELRULE, CHANGE_FLAGS, rule)

    def _change_rule(self, kind: int, flags: int, rule: Rule) -> int:
        return _errno(self._netlink.change([self._rule(kind, flags, rule)]))

    def _rule(self, kind: int, flags: int, rule: Rule) -> Message:
        inverted = _FIB_RULE_INVERT if rule.mark or rule.uid is not None else 0
        body = _RULE.pack(_FAMILIES[rule.version], 0, 0, 0, 0, 0, 0, _FR_ACT_TO_TBL, inverted)
        body += u32(_FRA_PRIORITY, rule.priority) + u32(_FRA_TABLE, self._table)
        body += attribute(_FRA_PROTOCOL, bytes((self._protocol,)))
        if rule.mark:
            body += u32(_FRA_FWMARK, rule.mark) + u32(_FRA_FWMASK, 0xFFFFFFFF)
        if rule.uid is not None:
            body += attribute(_FRA_UID_RANGE, struct.pack("=II", rule.uid, rule.uid))
        return Message(kind, flags, body)


class MarkRule(NamedTuple):
    """A rule, whoever made it, that looks at a packet's mark."""

    table: int
    protocol: int
    mark: int
    mask: int


def mark_rules(netlink: Netlink) -> list[MarkRule]:
    """The rules of both IP versions that look at marks. OSError if the kernel does not answer."""
    found: list[MarkRule] = []
    for family in _FAMILIES.values():
        body = _RULE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
        for answer in netlink.dump(_RTM_GETRULE, body, answer=_RTM_NEWRULE):
            known = attributes(answer, _RULE.size)
            table = _number(known.get(_FRA_TABLE), _RULE.unpack_from(answer)[4])
            mark = _number(known.get(_FRA_FWMARK), 0)
            # the kernel tells the mask of every rule that has one; all bits where an old one does not
            mask = _number(known.get(_FRA_FWMASK), 0xFFFFFFFF if mark else 0)
            if mask:
                found.append(MarkRule(table, (known.get(_FRA_PROTOCOL) or b"\0")[0], mark, mask))
    return found


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


def reachable_addresses(netlink: Netlink, *, without: str) -> list[IpAddress]:
    """Addresses by which others may reach this host, in the kernel's order, IPv4 first. OSError.

    They are of global scope and settled, on interfaces that are up and connected; ``without`` is an interface that does
    not count.
    """
    alive = set()
    for answer in _links(netlink):
        _, _, index, flags, _ = _LINK.unpack_from(answer)
        name = attributes(answer, _LINK.size).get(_IFLA_IFNAME, b"").rstrip(b"\0").decode(errors="replace")
        if flags & _IFF_UP and flags & _IFF_RUNNING and name != without:
            alive.add(index)
    found: list[IpAddress] = []
    for version, family in _FAMILIES.items():
        make = IPv4Address if version == 4 else IPv6Address
        for answer in netlink.dump(_RTM_GETADDR, _ADDRESS.pack(family, 0, 0, 0, 0), answer=_RTM_NEWADDR):
            _, _, flags, scope, index = _ADDRESS.unpack_from(answer)
            known = attributes(answer, _ADDRESS.size)
            packed = known.get(_IFA_LOCAL) or known.get(_IFA_ADDRESS)
            if packed and index in alive and scope == _SCOPE_UNIVERSE and not flags & _IFA_F_UNFIT:
                found.append(make(packed))
    return [address for address in found if not address.is_loopback]


def _links(netlink: Netlink) -> list[bytes]:
    return netlink.dump(_RTM_GETLINK, _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0), answer=_RTM_NEWLINK)


def set_mtu(netlink: Netlink, index: int, mtu: int) -> int:
    """Give an interface an MTU; 0 or the errno."""
    return _set_link(netlink, index, u32(_IFLA_MTU, mtu))


def set_gso_max_size(netlink: Netlink, index: int, size: int) -> int:
    """Limit the superframes that TCP makes for an interface (Linux 5.19); 0 or the errno."""
    return _set_link(netlink, index, u32(_IFLA_GSO_MAX_SIZE, size))


def set_queue_length(netlink: Netlink, index: int, packets: int) -> int:
    """Let an interface's queue hold so many packets; 0 or the errno."""
    return _set_link(netlink, index, u32(_IFLA_TXQLEN, packets))


def set_up(netlink: Netlink, index: int) -> int:
    """Bring an interface up; 0 or the errno."""
    return _set_link(netlink, index, b"", flags=_IFF_UP)


def _set_link(netlink: Netlink, index: int, attribute_: bytes, *, flags: int = 0) -> int:
    body = _LINK.pack(socket.AF_UNSPEC, 0, index, flags, flags) + attribute_
    return _errno(netlink.change([Message(_RTM_NEWLINK, CHANGE_FLAGS, body)]))


def delete_link(netlink: Netlink, index: int) -> int:
    """Remove an interface; 0 or the errno."""
    body = _LINK.pack(socket.AF_UNSPEC, 0, index, 0, 0)
    return _errno(netlink.change([Message(_RTM_DELLINK, CHANGE_FLAGS, body)]))


class TunInfo(NamedTuple):
    """A persistent TUN device, as the kernel describes it."""

    owner: int | None
    group: int | None
    queues: int
    "that are attached; a device for a single one does not say so"


def tun_info(netlink: Netlink, index: int) -> TunInfo | None:
    """Whose a TUN device is; None if it is none, or goes with its last queue. OSError."""
    for answer in _links(netlink):
        if _LINK.unpack_from(answer)[2] != index:
            continue
        info = attributes(attributes(answer, _LINK.size).get(_IFLA_LINKINFO, b""), 0)
        data = attributes(info.get(_IFLA_INFO_DATA, b""), 0)
        is_tun = info.get(_IFLA_INFO_KIND, b"").rstrip(b"\0") == b"tun" and data.get(_IFLA_TUN_TYPE) == bytes(
            (_IFF_TUN,)
        )
        if is_tun and data.get(_IFLA_TUN_PERSIST) == b"\1":
            owner, group = data.get(_IFLA_TUN_OWNER), data.get(_IFLA_TUN_GROUP)
            return TunInfo(
                _number(owner, 0) if owner is not None else None,
                _number(group, 0) if group is not None else None,
                _number(data.get(_IFLA_TUN_NUM_QUEUES), 0),
            )
    return None


def add_address(netlink: Netlink, index: int, address: IpInterface, protocol: int) -> int:
    """Give an interface an address that bears a protocol number (Linux 5.18); 0 or the errno."""
    body = _interface_address(index, address) + attribute(_IFA_PROTO, bytes((protocol,)))
    return _errno(netlink.change([Message(_RTM_NEWADDR, ADD_NEW_FLAGS, body)]))


def del_address(netlink: Netlink, index: int, address: IpInterface) -> int:
    """Take an address away; 0 or the errno."""
    return _errno(netlink.change([Message(_RTM_DELADDR, CHANGE_FLAGS, _interface_address(index, address))]))


def _interface_address(index: int, address: IpInterface) -> bytes:
    # There are no neighbours to have the same address. Until the kernel has found that out for itself, which it does
    # later, no route can prefer it.
    flags = _IFA_F_NODAD if address.version == 6 else 0
    body = _ADDRESS.pack(_FAMILIES[address.version], address.network.prefixlen, flags, 0, index)
    return body + attribute(_IFA_LOCAL, address.ip.packed) + attribute(_IFA_ADDRESS, address.ip.packed)


def addresses_of(netlink: Netlink, index: int, protocol: int) -> list[IpInterface]:
    """The addresses of an interface that bear a protocol number. OSError."""
    found: list[IpInterface] = []
    for family in _FAMILIES.values():
        for answer in netlink.dump(_RTM_GETADDR, _ADDRESS.pack(family, 0, 0, 0, index), answer=_RTM_NEWADDR):
            known = attributes(answer, _ADDRESS.size)
            packed = known.get(_IFA_LOCAL) or known.get(_IFA_ADDRESS)
            # an old kernel does not filter by interface
            _, prefix, _, _, of = _ADDRESS.unpack_from(answer)
            if packed and of == index and known.get(_IFA_PROTO) == bytes((protocol,)):
                found.append(ip_interface((packed, prefix)))
    return found


def _errno(failed: list[tuple[int, int]]) -> int:
    return failed[0][1] if failed else 0


def _number(value: bytes | None, otherwise: int) -> int:
    return int.from_bytes(value, sys.byteorder) if value is not None else otherwise
