"""Addresses, MTU, routes and rules of the tunnel device, through rtnetlink (pyroute2).

Layout, as strongSwan users know it: a rule of priority 220 looks up table 220, which holds one route per protected
network to the device, a throw route per peer inside such a network (its outer packets must not enter the tunnel), and
when ``fail_closed``, unreachable routes that take over if the device goes away.

Everything we add bears our own protocol number, so that what a killed predecessor left behind is recognised at the next
start. Its unreachable routes stay until ours are there: nothing leaves in clear between two runs. While we run, an
abstract socket named after the table tells other daemons in the same network namespace to keep off it; the kernel drops
it with the process.

All of this is blocking and belongs on one thread outside the event loop.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network, ip_network
from types import TracebackType
from typing import Any

from pyroute2 import IPRoute, NetlinkError

from ipsec.errors import BackendError

IpAddress = IPv4Address | IPv6Address
IpNetwork = IPv4Network | IPv6Network
IpInterface = IPv4Interface | IPv6Interface

#: rtm_protocol and FRA_PROTOCOL of all we add; not assigned in /etc/iproute2/rt_protos
PROTOCOL = 205
#: worse than any metric a person would choose, so that the device's own route wins while it is there
FAIL_CLOSED_METRIC = 0xFF000000

_FIB_RULE_INVERT = 2
_FAMILIES: dict[int, int] = {4: socket.AF_INET, 6: socket.AF_INET6}


@dataclass(frozen=True)
class RoutePlan:
    """What the table should hold."""

    protected: tuple[tuple[IpNetwork, IpAddress | None], ...] = ()
    "networks behind the tunnel, each with the source address to prefer"
    excluded: tuple[IpNetwork, ...] = ()
    "networks that must not enter the tunnel: peers, and what BYPASS policies name"
    fail_closed: bool = False


class Router:
    """Owns one routing table and one device's settings. Use as a context manager, or call ``close``."""

    def __init__(self, *, table: int = 220, priority: int = 220, fwmark: int = 0) -> None:
        """``fwmark``: packets with this mark skip the table."""
        self._table = table
        self._priority = priority
        self._fwmark = fwmark
        self._claim: socket.socket | None = None
        self._addresses: list[tuple[int, IpInterface]] = []
        self._rules: set[int] = set()
        self.inherited = False
        "unreachable routes of a predecessor were found and kept"
        try:
            self._netlink: Any = IPRoute()
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

        With ``keep_closed`` its unreachable routes stay, and the rules that lead to them, until ``apply``.
        BackendError if another daemon in this network namespace has the table.
        """
        self._claim = self._take_table()
        found = self.leftovers()
        self.inherited = self._sweep(keep_closed=keep_closed)
        return found

    def try_claim(self) -> None:
        """Claim the table and let go of it again. BackendError if another daemon in this network namespace has it."""
        self._take_table().close()

    def _take_table(self) -> socket.socket:
        name = f"\0ipsecd-table-{self._table}"
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            sock.bind(name)
        except OSError as error:
            sock.close()
            if error.errno != errno.EADDRINUSE:
                raise
            raise BackendError(
                f"routing table {self._table} is in use by another ipsecd in this network namespace",
                remedy="give each its own ipsecd.routing_table and ipsecd.device",
            ) from error
        return sock

    def leftovers(self) -> int:
        """How many entries in the table bear our number, from a predecessor or one that runs."""
        return len(self._present()) + len(list(self._our_rules()))

    def try_rule(self) -> None:
        """Add a rule for an empty table and remove it again, to see whether that is permitted. BackendError if not."""
        spec = {"family": socket.AF_INET, "table": 0xFFFFFFFE, "priority": 0x7FFFFFFE, "protocol": PROTOCOL}
        self._do("add a routing rule", "rule", "add", **spec)
        self._do("remove a routing rule", "rule", "del", **spec)

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
        index = self._index(device)
        self._do(f"set the MTU of {device} to {mtu}", "link", "set", index=index, mtu=mtu)
        for key, value in (("txqlen", queue_length), ("gso_max_size", gso_max_size)):
            if value is None:
                continue
            try:
                self._do(f"set {key} of {device} to {value}", "link", "set", index=index, **{key: value})
            except BackendError as error:
                notes.append(error.message)
        for address in addresses:
            self._add_address(device, index, address)
        self._do(f"bring {device} up", "link", "set", index=index, state="up")
        return notes

    def apply(self, device: str, plan: RoutePlan) -> None:
        """Make the table hold exactly ``plan``: add what is missing first, then remove what is no longer wanted."""
        index = self._index(device)
        wanted = _entries(plan)
        present = self._present()
        versions = {network.version for kind, network in wanted}
        for version in versions:
            self._add_rule(version)
        # Exclusions go in first: between the two a peer's packets would enter the tunnel they carry.
        for kind, network in sorted(wanted, key=lambda entry: (entry[0] != "throw", entry[0], str(entry[1]))):
            source = wanted[kind, network]
            if kind == "unicast" or (kind, network) not in present:
                self._add_route(kind, network, index, source)
        for kind, network in present:
            if (kind, network) not in wanted:
                self._del_route(kind, network)
        for family, priority, mark in list(self._our_rules()):
            wrong = (priority, mark) != (self._priority, self._fwmark)
            if wrong or not any(_FAMILIES[version] == family for version in versions):
                self._del_rule(family, priority, mark)
        self._rules &= versions

    def local_addresses(self) -> list[IpAddress]:
        """This host's addresses, in the kernel's order, link-local ones left out."""
        found: list[IpAddress] = []
        for family, make in ((socket.AF_INET, IPv4Address), (socket.AF_INET6, IPv6Address)):
            for message in self._netlink.get_addr(family=family):
                text = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
                if text and not make(text).is_link_local:
                    found.append(make(text))
        return found

    def close(self, *, keep_closed: bool = False) -> None:
        """Remove everything of ours and give the table back. Never raises: it also runs after a failed start.

        With ``keep_closed`` unreachable routes stay, as after a kill.
        """
        if self._claim is not None:
            with suppress(NetlinkError, OSError, BackendError):
                self._sweep(keep_closed=keep_closed)
        for index, address in self._addresses:
            # gone with the device if that was ours
            with suppress(NetlinkError, OSError):
                self._netlink.addr("del", index=index, address=str(address.ip), prefixlen=address.network.prefixlen)
        self._addresses.clear()
        if self._claim is not None:
            self._claim.close()
            self._claim = None
        with suppress(NetlinkError, OSError):
            self._netlink.close()

    def _sweep(self, *, keep_closed: bool) -> bool:
        """Remove our routes and rules; whether unreachable ones were kept."""
        present = self._present()
        kept = {entry for entry in present if keep_closed and entry[0] == "unreachable"}
        for kind, network in present - kept:
            self._del_route(kind, network)
        if not kept:
            for rule in list(self._our_rules()):
                self._del_rule(*rule)
        self._rules.clear()
        return bool(kept)

    def _present(self) -> set[tuple[str, IpNetwork]]:
        """Our entries in the table now, as (type, network)."""
        kinds = {1: "unicast", 7: "unreachable", 9: "throw"}
        found: set[tuple[str, IpNetwork]] = set()
        for version, family in _FAMILIES.items():
            # The kernel filters the dump by table and protocol, so that a full BGP table costs us nothing.
            for message in self._netlink.get_routes(family=family, table=self._table, proto=PROTOCOL):
                if message["proto"] != PROTOCOL or message.get_attr("RTA_TABLE") != self._table:
                    continue
                default = "0.0.0.0" if version == 4 else "::"
                text = f"{message.get_attr('RTA_DST') or default}/{message['dst_len']}"
                if message["type"] in kinds:
                    found.add((kinds[message["type"]], ip_network(text)))
        return found

    def _add_route(self, kind: str, network: IpNetwork, index: int, source: IpAddress | None) -> None:
        spec = self._route(kind, network)
        if kind == "unicast":
            spec["oif"] = index
            if source is not None:
                spec["prefsrc"] = str(source)
        self._do(f"add the {kind} route to {network}", "route", "replace", **spec)

    def _del_route(self, kind: str, network: IpNetwork) -> None:
        # a route to the device may have gone with the device meanwhile
        with suppress(NetlinkError):
            self._netlink.route("del", **self._route(kind, network))

    def _route(self, kind: str, network: IpNetwork) -> dict[str, Any]:
        spec: dict[str, Any] = {
            "family": _FAMILIES[network.version],
            "dst": str(network),
            "table": self._table,
            "proto": PROTOCOL,
            "type": kind,
        }
        if kind == "unreachable":
            spec["priority"] = FAIL_CLOSED_METRIC
        return spec

    def _add_rule(self, version: int) -> None:
        if version in self._rules:
            return
        family = _FAMILIES[version]
        try:
            self._netlink.rule("add", **self._rule(family, self._priority, self._fwmark))
        except NetlinkError as error:
            if error.code != errno.EEXIST:
                raise self._explain(f"add the IPv{version} rule for table {self._table}", error) from error
        self._rules.add(version)

    def _del_rule(self, family: int, priority: int, mark: int) -> None:
        with suppress(NetlinkError):
            self._netlink.rule("del", **self._rule(family, priority, mark))

    def _our_rules(self) -> Iterable[tuple[int, int, int]]:
        for family in _FAMILIES.values():
            for message in self._netlink.get_rules(family=family):
                if message.get_attr("FRA_PROTOCOL") == PROTOCOL and message.get_attr("FRA_TABLE") == self._table:
                    yield family, message.get_attr("FRA_PRIORITY") or 0, message.get_attr("FRA_FWMARK") or 0

    def _rule(self, family: int, priority: int, mark: int) -> dict[str, Any]:
        spec: dict[str, Any] = {"family": family, "table": self._table, "priority": priority, "protocol": PROTOCOL}
        if mark:
            spec.update(fwmark=mark, fwmask=0xFFFFFFFF, flags=_FIB_RULE_INVERT)
        return spec

    def _add_address(self, device: str, index: int, address: IpInterface) -> None:
        try:
            self._netlink.addr("add", index=index, address=str(address.ip), prefixlen=address.network.prefixlen)
        except NetlinkError as error:
            if error.code == errno.EEXIST:
                return
            raise self._explain(f"add {address} to {device}", error) from error
        self._addresses.append((index, address))

    def _index(self, device: str) -> int:
        try:
            return socket.if_nametoindex(device)
        except OSError as error:
            raise BackendError(f"device {device}: {os.strerror(errno.ENODEV)}") from error

    def _do(self, what: str, method: str, *args: str, **spec: Any) -> None:
        try:
            getattr(self._netlink, method)(*args, **spec)
        except NetlinkError as error:
            raise self._explain(what, error) from error

    def _explain(self, what: str, error: NetlinkError) -> BackendError:
        remedies = {
            errno.EPERM: "grant CAP_NET_ADMIN, or set ipsecd.install_routes to no and let the operator do it",
            errno.EAFNOSUPPORT: "this network namespace has no such address family",
            errno.EACCES: "IPv6 is switched off here (net.ipv6.conf.all.disable_ipv6)",
        }
        return BackendError(f"cannot {what}: {os.strerror(error.code)}", remedy=remedies.get(error.code))


def plan_routes(
    protect: Iterable[tuple[Sequence[str], Sequence[str]]],
    *,
    peers: Iterable[IpAddress],
    bypass: Iterable[str] = (),
    own: Sequence[IpAddress] = (),
    fail_closed: bool = False,
) -> RoutePlan:
    """Work out the routes of a set of policies. Networks are CIDR text.

    ``protect`` are (local networks, remote networks) of each PROTECT policy, ``peers`` the outer remote addresses,
    ``bypass`` the remote networks of BYPASS policies, ``own`` this host's addresses: the first one inside a policy's
    local networks becomes the source address, without which our own packets would not match that policy.
    """
    routes: dict[IpNetwork, IpAddress | None] = {}
    for local, remote in protect:
        inside = [ip_network(text) for text in local]
        source = next((a for a in own if any(a.version == n.version and a in n for n in inside)), None)
        for text in remote:
            network = ip_network(text)
            fits = source if source is not None and source.version == network.version else None
            routes[network] = routes.get(network) or fits
    excluded = {ip_network(peer) for peer in peers} | {ip_network(text) for text in bypass}
    # A peer that is the whole of a protected network (host to host) cannot be told apart by routes: the mark does it.
    covered = sorted(
        (n for n in excluded if n not in routes and any(_within(n, r) for r in routes)), key=lambda n: (n.version, n)
    )
    return RoutePlan(tuple(routes.items()), tuple(covered), fail_closed)


def _within(network: IpNetwork, other: IpNetwork) -> bool:
    if isinstance(network, IPv4Network) and isinstance(other, IPv4Network):
        return network.subnet_of(other)
    if isinstance(network, IPv6Network) and isinstance(other, IPv6Network):
        return network.subnet_of(other)
    return False


def _entries(plan: RoutePlan) -> dict[tuple[str, IpNetwork], IpAddress | None]:
    wanted: dict[tuple[str, IpNetwork], IpAddress | None] = {("throw", network): None for network in plan.excluded}
    for network, source in plan.protected:
        wanted["unicast", network] = source
        if plan.fail_closed:
            wanted["unreachable", network] = None
    return wanted
