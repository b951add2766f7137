"""Addresses, MTU, routes and rules of the tunnel device, through rtnetlink.

Layout, as strongSwan users know it: a rule of priority 220 looks up table 220, which holds one route per protected
network to the device, a throw route per peer inside such a network (its outer packets must not enter the tunnel), and
when ``fail_closed``, unreachable routes that take over if the device goes away.

Everything we add bears our own protocol number, so that what a killed predecessor left behind is recognised at the next
start. Its unreachable routes stay until ours are there: nothing leaves in clear between two runs. While we run, an
abstract socket named after the table tells other daemons in the same network namespace to keep off it, whatever files
they share; the kernel drops it with the process. Anybody may take such a name, so it counts only in the hand of root or
of our own user. A daemon of another user is known by what only CAP_NET_ADMIN makes: its routes to a device in use.

All of this is blocking and belongs on one thread outside the event loop; ``carry_out_few`` takes as long as the kernel
needs for a handful of routes, which a packet may be waiting for.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import struct
import time
from collections.abc import Callable, Sequence, Set
from contextlib import suppress
from functools import partial
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from types import TracebackType

from ipsec.errors import BackendError
from ipsec.net import grants, rtnetlink
from ipsec.net.link import keep_addresses
from ipsec.net.netlink import Netlink
from ipsec.net.routebook import Change, Entry, RouteBook
from ipsec.net.rtnetlink import RouteWriter, Rule, TunInfo
from ipsec.net.tablewatch import TableWatch

log = logging.getLogger(__name__)

IpAddress = IPv4Address | IPv6Address
IpInterface = IPv4Interface | IPv6Interface

#: rtm_protocol and FRA_PROTOCOL of all we add; not assigned in /etc/iproute2/rt_protos
PROTOCOL = 205
#: worse than any metric a person would choose, so that the device's own route wins while it is there
FAIL_CLOSED_METRIC = 0xFF000000

_FAMILIES: dict[int, int] = {4: socket.AF_INET, 6: socket.AF_INET6}
#: connections that wait where a table is claimed; nobody takes them
_PEERS = 4096
#: how long another daemon may take from one system call to the next
_TRIES, _TRY_S = 20, 0.01
#: unix(7): pid, uid, gid
_UCRED = struct.Struct("=iII")


def claim_table(table: int) -> socket.socket | None:
    """A socket that keeps other daemons in this network namespace off a table while it is open. BackendError.

    None if the name is in the hand of another user, who can be anybody.
    """
    name = f"\0ipsecd-table-{table}"
    uid = None
    for _ in range(_TRIES):
        if (sock := _listen(name)) is not None:
            return sock
        try:
            uid = _holder(name)
            break
        except ConnectionRefusedError:
            # bound, but not yet listening: another daemon may be at its start; or it has just let go
            time.sleep(_TRY_S)
    if uid in (0, os.geteuid()):
        raise _in_use(table)
    who = "somebody" if uid is None else f"user {uid}"
    log.warning("%s holds the name @%s: nothing keeps other daemons off table %d", who, name[1:], table)
    return None


def _listen(name: str) -> socket.socket | None:
    """A socket of this name, None if there is one. Whoever connects is told whose it is, and nothing more."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(name)
        sock.listen(_PEERS)
    except OSError as error:
        sock.close()
        if error.errno != errno.EADDRINUSE:
            raise
        return None
    return sock


def _holder(name: str) -> int | None:
    """Whose process listens at a name; None if it lets nobody connect. ConnectionRefusedError if nobody listens."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        try:
            sock.connect(name)
        except BlockingIOError:
            # more have connected than to one of ours that is left alone
            return None
        _, uid, _ = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return int(uid)


def _in_use(table: int) -> BackendError:
    return BackendError(
        f"routing table {table} is in use by another ipsecd in this network namespace",
        remedy="give each its own ipsecd.routing_table and ipsecd.device",
    )


class Router:
    """Owns one routing table and one device's settings. Use as a context manager, or call ``close``."""

    def __init__(self, *, table: int = 220, priority: int = 220, fwmark: int = 0, uid: int | None = None) -> None:
        """``fwmark``: packets with this mark skip the table. ``uid``: so do packets of this user's sockets instead."""
        self._table = table
        self._priority = priority
        self._fwmark = fwmark
        self._uid = uid
        self._claim: socket.socket | None = None
        self._claimed = False
        self._addresses: list[tuple[int, IpInterface]] = []
        self._rules: set[int] = set()
        "IP versions that there is a rule for"
        self._rules_sure = False
        "there are no others of ours"
        self.inherited: Set[Entry] = frozenset()
        "unreachable routes of a predecessor that were found and kept"
        try:
            self._netlink = Netlink()
            # with a socket of its own: the one thread that changes routes need not be the one that does the rest
            self._routes = Netlink()
            self._writer = RouteWriter(
                self._routes, table=table, protocol=PROTOCOL, unreachable_metric=FAIL_CLOSED_METRIC
            )
        except OSError as error:
            raise BackendError(f"netlink socket: {error.strerror}") from error

    def __enter__(self) -> Router:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def claim(self, *, keep_closed: bool = False) -> int:
        """Claim the table and remove what a killed predecessor left in it; how many entries it left.

        With ``keep_closed`` its unreachable routes stay, and the rules that lead to them, until ``carry_out`` and
        ``set_rules``.
        BackendError if another daemon in this network namespace has the table.
        """
        self._claim = self._take_name()
        self._claimed = True
        found = self.leftovers()
        self.inherited = self._sweep(keep_closed=keep_closed)
        return found

    def try_claim(self) -> None:
        """Claim the table and let go of it again. BackendError if another daemon in this network namespace has it."""
        if (claim := self._take_name()) is not None:
            claim.close()

    def _take_name(self) -> socket.socket | None:
        claim = claim_table(self._table)
        try:
            if claim is None and self._writer.in_use():
                raise _in_use(self._table)
        except OSError as error:
            raise _no_answer(error) from error
        return claim

    def leftovers(self) -> int:
        """How many entries in the table bear our number, from a predecessor or one that runs."""
        return len(self.present()) + len(self._our_rules())

    def rules_in_the_way(self) -> list[str]:
        """Commands that remove rules of others which lead our own packets into the table, whatever their mark: charon
        leaves such ones when it is killed. BackendError."""
        try:
            found = self._writer.unmarked_rules() if self._fwmark else []
        except OSError as error:
            raise _no_answer(error) from error
        return [f"ip -{version} rule del lookup {self._table} priority {priority}" for version, priority in found]

    def try_rule(self) -> None:
        """Add a rule for an empty table and remove it again, to see whether that is permitted. BackendError if not."""
        rule = Rule(4, 0x7FFFFFFE, 0)
        trial = RouteWriter(self._routes, table=0xFFFFFFFE, protocol=PROTOCOL, unreachable_metric=0)
        self._do("add a routing rule", lambda: trial.add_rule(rule))
        self._do("remove a routing rule", lambda: trial.del_rule(rule))

    def configure(
        self,
        device: str,
        *,
        mtu: int,
        addresses: Sequence[IpInterface] = (),
        queue_length: int | None = None,
        gso_max_size: int | None = None,
    ) -> list[str]:
        """Bring ``device`` up with these settings; notes about settings the kernel has not (old kernels)."""
        notes: list[str] = []
        index = self.index(device)
        netlink = self._netlink
        self._do(f"set the MTU of {device} to {mtu}", lambda: rtnetlink.set_mtu(netlink, index, mtu))
        for name, value, work in (
            ("queue length", queue_length, rtnetlink.set_queue_length),
            ("GSO size", gso_max_size, rtnetlink.set_gso_max_size),
        ):
            if value is None:
                continue
            try:
                self._do(f"set the {name} of {device} to {value}", partial(work, netlink, index, value))
            except BackendError as error:
                notes.append(error.message)
        self._drop_stale(index)
        keep_addresses(device)
        for address in addresses:
            self._add_address(device, index, address)
        self._do(f"bring {device} up", lambda: rtnetlink.set_up(netlink, index))
        return notes

    def carry_out(self, index: int, changes: Sequence[Change]) -> list[tuple[Change, BackendError]]:
        """Change routes, those to the device being to interface ``index``; what the kernel refused, and why."""
        try:
            failed = self._writer.carry_out(changes, index)
        except OSError as error:
            raise _no_answer(error) from error
        return [(change, self._refused(change, number)) for change, number in failed]

    def carry_out_few(self, index: int, versions: Set[int], changes: Sequence[Change]) -> list[Change]:
        """Look the table up for these IP versions and change routes, with one question to the kernel; what it refused.

        A rule that it refused is not there: ``set_rules`` tries again and says why. BackendError.
        """
        rules = [Rule(version, self._priority, self._fwmark, self._uid) for version in versions - self._rules]
        try:
            refused, failed = self._writer.carry_out_behind(rules, changes, index)
        except OSError as error:
            raise _no_answer(error) from error
        missing = {rule for rule, error in refused if error != errno.EEXIST}
        self._rules.update(rule.version for rule in rules if rule not in missing)
        return [change for change, _ in failed]

    @property
    def rules(self) -> Set[int]:
        """IP versions that the table is looked up for."""
        return self._rules

    def _refused(self, change: Change, number: int) -> BackendError:
        do = "add" if change.add else "remove"
        return self._explain(f"{do} the {change.entry.kind} route to {change.entry.prefix}", number)

    def set_rules(self, versions: Set[int]) -> None:
        """Look the table up for these IP versions, and for no others. BackendError."""
        for version in versions - self._rules:
            self._add_rule(version)
        if self._rules_sure and self._rules <= versions:
            return
        for rule in self._our_rules():
            wrong = rule[1:] != (self._priority, self._fwmark, self._uid)
            if wrong or rule.version not in versions:
                self._writer.del_rule(rule)
        self._rules &= versions
        self._rules_sure = True

    def set_mtu(self, device: str, mtu: int, gso_max_size: int) -> None:
        """Give the device another MTU, and superframes of that size where the kernel can. BackendError."""
        index = self.index(device)
        self._do(f"set the MTU of {device} to {mtu}", lambda: rtnetlink.set_mtu(self._netlink, index, mtu))
        with suppress(BackendError):
            # old kernels have no such limit; ``configure`` has said so
            self._do("", lambda: rtnetlink.set_gso_max_size(self._netlink, index, gso_max_size))

    def local_addresses(self) -> list[IpAddress]:
        """This host's addresses, in the kernel's order, link-local and loopback ones left out. BackendError."""
        try:
            found = rtnetlink.addresses(self._netlink)
        except OSError as error:
            raise _no_answer(error) from error
        return [address for address in found if not (address.is_link_local or address.is_loopback)]

    def close(self, *, keep_closed: bool = False) -> None:
        """Remove everything of ours and give the table back. Never raises: it also runs after a failed start.

        With ``keep_closed`` unreachable routes stay, as after a kill.
        """
        if self._claimed:
            with suppress(OSError, BackendError):
                self._sweep(keep_closed=keep_closed)
        for index, address in self._addresses:
            # gone with the device if that was ours
            with suppress(OSError):
                rtnetlink.del_address(self._netlink, index, address)
        self._addresses.clear()
        self._let_go()
        with suppress(OSError):
            self._netlink.close()
        with suppress(OSError):
            self._routes.close()

    def leave(self) -> None:
        """Give the table back with everything in it as it is. Never raises."""
        self._let_go()
        self._addresses.clear()
        self.close()

    def _let_go(self) -> None:
        if self._claim is not None:
            self._claim.close()
        self._claim = None
        self._claimed = False

    def _sweep(self, *, keep_closed: bool) -> Set[Entry]:
        """Remove our routes and rules; the unreachable ones that were kept."""
        book = RouteBook()
        present = self.present()
        kept = {entry for entry in present if keep_closed and entry.kind == "unreachable"}
        book.adopt(present - kept)
        while book.pending:
            self._writer.carry_out(book.changes(1024), 0)
        if not kept:
            for rule in self._our_rules():
                self._writer.del_rule(rule)
        self._rules.clear()
        self._rules_sure = not kept
        return kept

    def present(self) -> set[Entry]:
        """Our entries in the table now. BackendError if the kernel does not say."""
        try:
            return self._writer.present()
        except OSError as error:
            raise _no_answer(error) from error

    def look(self) -> set[Entry]:
        """Like ``present``, and what rules there are is found out anew: others may have removed some. BackendError."""
        wanted = (self._priority, self._fwmark, self._uid)
        self._rules = {rule.version for rule in self._our_rules() if rule[1:] == wanted}
        self._rules_sure = False
        return self.present()

    def watch(self) -> TableWatch | None:
        """Hears when somebody else removes what is ours, until it is closed; None if the kernel refuses."""
        try:
            return TableWatch(self._table, PROTOCOL, (self._netlink.port, self._routes.port))
        except OSError as error:
            log.warning("routes and rules that others remove will not be put back: %s", error.strerror)
            return None

    def _add_rule(self, version: int) -> None:
        try:
            error = self._writer.add_rule(Rule(version, self._priority, self._fwmark, self._uid))
        except OSError as failure:
            raise _no_answer(failure) from failure
        if error not in (0, errno.EEXIST):
            raise self._explain(f"add the IPv{version} rule for table {self._table}", error)
        self._rules.add(version)

    def _our_rules(self) -> list[Rule]:
        try:
            return self._writer.rules()
        except OSError as error:
            raise _no_answer(error) from error

    def add_address(self, device: str, address: IpInterface) -> None:
        """Give the device an address until ``del_address`` or ``close``. BackendError."""
        self._add_address(device, self.index(device), address)

    def try_address(self, index: int, address: IpInterface) -> bool:
        """``add_address`` from the thread that changes routes, to interface ``index``; False: the kernel did not."""
        if self._ask(partial(rtnetlink.add_address, self._routes, index, address, PROTOCOL)):
            return False
        self._addresses.append((index, address))
        return True

    def del_address(self, address: IpInterface) -> None:
        """Take away an address that ``add_address`` or ``configure`` gave. BackendError."""
        for entry in [entry for entry in self._addresses if entry[1] == address]:
            self._addresses.remove(entry)
            error = self._ask(partial(rtnetlink.del_address, self._netlink, *entry))
            if error not in (0, errno.EADDRNOTAVAIL, errno.ENODEV):
                raise self._explain(f"remove {address}", error)

    def restore_addresses(self, device: str) -> None:
        """Give the device once more what it lost when it went down: the kernel takes IPv6 addresses away then.

        BackendError for the first one refused; the others are there all the same.
        """
        index = self.index(device)
        refused = []
        for address in [address for number, address in self._addresses if number == index]:
            error = self._ask(partial(rtnetlink.add_address, self._netlink, index, address, PROTOCOL))
            if error not in (0, errno.EEXIST):
                refused.append(self._explain(f"add {address} to {device}", error))
        if refused:
            raise refused[0]

    def _add_address(self, device: str, index: int, address: IpInterface) -> None:
        # the number tells a later start whose it was (Linux 5.18; devices that outlive us are rare anyway)
        error = self._ask(partial(rtnetlink.add_address, self._netlink, index, address, PROTOCOL))
        if not error:
            self._addresses.append((index, address))
        elif error != errno.EEXIST:
            raise self._explain(f"add {address} to {device}", error)

    def _drop_stale(self, index: int) -> None:
        """Addresses that a killed predecessor left on a device that outlived it."""
        ours = {address for _, address in self._addresses}
        try:
            for address in rtnetlink.addresses_of(self._netlink, index, PROTOCOL):
                if address not in ours:
                    rtnetlink.del_address(self._netlink, index, address)
        except OSError as error:
            raise _no_answer(error) from error

    def owner_of(self, device: str) -> TunInfo:
        """Owner, group and attached queues of a TUN device. BackendError if it is none, or not persistent."""
        try:
            info = rtnetlink.tun_info(self._netlink, self.index(device))
        except OSError as error:
            raise _no_answer(error) from error
        if info is None:
            raise BackendError(
                f"device {device} is there and not a persistent TUN device",
                remedy="stop who made it, or set ipsecd.device to another name",
            )
        return info

    def delete(self, device: str) -> None:
        """Remove a device. BackendError."""
        self._do(f"remove {device}", partial(rtnetlink.delete_link, self._netlink, self.index(device)))

    def index(self, device: str) -> int:
        """The number of a device. BackendError if there is none of that name."""
        try:
            return socket.if_nametoindex(device)
        except OSError as error:
            raise BackendError(f"device {device}: {os.strerror(errno.ENODEV)}") from error

    def _do(self, what: str, work: Callable[[], int]) -> None:
        error = self._ask(work)
        if error:
            raise self._explain(what, error)

    def _ask(self, work: Callable[[], int]) -> int:
        """What the kernel says to a change: 0 or an errno. BackendError if it says nothing."""
        try:
            return work()
        except OSError as error:
            raise _no_answer(error) from error

    def _explain(self, what: str, number: int) -> BackendError:
        remedies = {
            errno.EPERM: f"{grants.capability('NET_ADMIN')}, or have all made beforehand: ipsecd --prepare",
            errno.EAFNOSUPPORT: "this network namespace has no such address family",
            errno.EACCES: "IPv6 is switched off here (net.ipv6.conf.all.disable_ipv6)",
        }
        return BackendError(f"cannot {what}: {os.strerror(number)}", remedy=remedies.get(number))


def _no_answer(error: OSError) -> BackendError:
    return BackendError(f"netlink socket: {error.strerror or error}")
