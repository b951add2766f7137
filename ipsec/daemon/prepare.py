"""``ipsecd --prepare``: what needs CAP_NET_ADMIN, done beforehand, so that the daemon itself needs no capability.

A persistent TUN device that belongs to the daemon's user, with addresses and MTU; routes for all that the configuration
protects, and a rule that leads to them. They bear our protocol number, so that an ipsecd that makes its own finds and
replaces them. Everything can be done again, and undone.

What is protected goes to the device from then on: while no daemon has it open, and while the tunnel is down, such
packets are dropped and never leave in clear.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from pathlib import Path

from ipsec.backend.routes import DEFAULT_MTU, MIN_MTU, drops_all, gso_max_size
from ipsec.config import Config
from ipsec.daemon.guards import shunt_pairs
from ipsec.daemon.reach import names_of
from ipsec.daemon.settings import device_addresses
from ipsec.errors import BackendError
from ipsec.esp.sa import Action, IpAddress
from ipsec.ike.config import Action as StartAction
from ipsec.ike.config import ChildConfig, ChildMode, Connection
from ipsec.net.route import Router
from ipsec.net.routebook import Range, RouteBook
from ipsec.net.tun import device_exists, make_persistent
from ipsec.wire.selector import SelectorPair

_SYSCTL = Path("/proc/sys")
#: not there where the kernel has no IPv6
_IPV6 = Path("/proc/net/if_inet6")
#: what ESP in UDP takes of the largest outer packet, with any suite
_OVERHEAD = 100
#: networks looked at in one go
_SLICE = 1000


@dataclass(frozen=True)
class Owner:
    """Who will run the daemon."""

    uid: int
    gid: int | None = None
    "members of this group may attach too"


def prepare(config: Config, owner: Owner, *, sysctls: bool) -> list[str]:
    """Make everything; what was done, line by line. BackendError.

    ``sysctls``: also set those that the configuration wants, in this network namespace.
    """
    settings = config.settings
    plan = _plan(config)
    if plan.inside and owner.uid == 0:
        raise BackendError(
            f"{plan.inside} may lie in what is protected or dropped: the daemon's own packets have to be told by "
            "their user, and root has others",
            remedy="run the daemon as a user of its own: --owner UID",
        )
    uid = owner.uid if plan.inside else None
    router = Router(table=settings.routing_table, priority=settings.routing_priority, uid=uid)
    try:
        _refuse_in_use(router, settings.device, owner)
        router.claim(keep_closed=settings.fail_closed)
        done = [_make_device(router, settings.device, owner)]
        mtu = settings.mtu or max(MIN_MTU, min(DEFAULT_MTU, settings.path_mtu - _OVERHEAD))
        addresses = device_addresses(config)
        router.configure(
            settings.device,
            mtu=mtu,
            addresses=addresses,
            queue_length=settings.tun_queue_length,
            gso_max_size=gso_max_size(settings.device, mtu, settings.path_mtu),
        )
        done.append(f"{settings.device} is up, MTU {mtu}, addresses: {', '.join(map(str, addresses)) or 'none'}")
        if settings.install_routes:
            count = _add_routes(router, settings.device, plan, fail_closed=settings.fail_closed)
            done.append(f"table {settings.routing_table} has {count} routes")
    finally:
        router.leave()
    if uid is not None:
        done.append(f"packets of user {uid} stay outside of the tunnel: run nothing but ipsecd as this user")
    done += [f"{name} has no address now: its packets are told by their user" for name in plan.unknown]
    return done + _sysctls(config, write=sysctls)


def undo(config: Config) -> list[str]:
    """Remove what ``prepare`` made; what was done. BackendError, also while a daemon uses it. Sysctls stay."""
    settings = config.settings
    done = []
    with Router(table=settings.routing_table, priority=settings.routing_priority) as router:
        there = device_exists(settings.device)
        _refuse_in_use(router, settings.device)
        found = router.claim()
        if found:
            done.append(f"{found} routes and rules of table {settings.routing_table} removed")
        if there:
            router.delete(settings.device)
            done.append(f"device {settings.device} removed")
    return done or ["there was nothing to undo"]


def _refuse_in_use(router: Router, device: str, owner: Owner | None = None) -> None:
    """BackendError if somebody has the device open, unless it stays, being ``owner``'s.

    Before any route goes, since without routes the packets of whoever uses it would leave in clear.
    """
    if not device_exists(device):
        return
    uid, gid, queues = router.owner_of(device)
    if queues and (owner is None or (uid, gid) != (owner.uid, owner.gid)):
        raise BackendError(f"device {device} is in use by user {uid}", remedy="stop the daemon that uses it")


def _make_device(router: Router, name: str, owner: Owner) -> str:
    who = f"user {owner.uid}" + (f" and group {owner.gid}" if owner.gid is not None else "")
    if device_exists(name):
        if router.owner_of(name)[:2] == (owner.uid, owner.gid):
            return f"device {name} is there already, for {who}"
        # there is no way to take away a group
        router.delete(name)
    make_persistent(name, owner=owner.uid, group=owner.gid)
    return f"device {name} made for {who}"


def _add_routes(router: Router, device: str, plan: _Plan, *, fail_closed: bool) -> int:
    """How many there are."""
    book = RouteBook(fail_closed=fail_closed)
    for range_ in plan.excluded:
        book.exclude(range_)
    for local, remote in plan.protected:
        book.protect(local, remote)
    book.adopt(router.present())
    book.set_own(router.local_addresses())
    # before the routes: what is protected must not leave beside the tunnel
    router.set_rules(book.versions)
    while book.pending:
        for _, error in router.carry_out(router.index(device), book.changes(_SLICE)):
            raise error
    return len(router.present())


# -- what is protected


@dataclass
class _Plan:
    protected: list[tuple[Range | None, Range]] = field(default_factory=list)
    "local and remote; without local it is dropped, whoever sends it"
    excluded: list[Range] = field(default_factory=list)
    inside: str = ""
    "whose packets no route can keep out of the tunnel that carries them"
    unknown: list[str] = field(default_factory=list)
    "names without an address"


def _plan(config: Config) -> _Plan:
    plan = _Plan()
    for connection in config.connections:
        peers = _peers(connection, plan.unknown)
        plan.excluded += [(peer, peer) for peer in peers]
        for child in connection.children:
            if child.mode is ChildMode.PASS:
                networks = (template.network for template in child.remote_ts if not template.protocol)
                plan.excluded += [network for network in networks if network is not None]
            elif child.mode is ChildMode.DROP:
                if child.policies and child.start_action is not StartAction.NONE:
                    _add_drops(plan, shunt_pairs(child, (4, 6) if _IPV6.exists() else (4,)))
            else:
                _add_child(plan, connection, child, peers)
    _add_manual(plan, config)
    return plan


def _add_manual(plan: _Plan, config: Config) -> None:
    peers = [sa.remote for sa in config.sas]
    plan.excluded += [(peer, peer) for peer in peers]
    for policy in config.policies():
        if policy.action is Action.DISCARD:
            _add_drops(plan, policy.selectors)
        for pair in policy.selectors:
            remote = pair.remote.start, pair.remote.end
            if policy.action is Action.PROTECT:
                plan.protected.append(((pair.local.start, pair.local.end), remote))
                if remote[0] == remote[1] and remote[0] in peers:
                    plan.inside = str(remote[0])
            elif policy.action is Action.BYPASS and not pair.protocol:
                plan.excluded.append(remote)


def _add_drops(plan: _Plan, pairs: Iterable[SelectorPair]) -> None:
    """What is dropped has to come to the device as well, as far as a route can tell it, but for our own packets."""
    for pair in filter(drops_all, pairs):
        plan.protected.append((None, (pair.remote.start, pair.remote.end)))
        plan.inside = "any peer"


def _add_child(plan: _Plan, connection: Connection, child: ChildConfig, peers: list[IpAddress]) -> None:
    virtual: list[Range] = [(vip, vip) for vip in connection.vips if not vip.is_unspecified]
    local = list(_ranges([template.network for template in child.local_ts], virtual or _EVERYTHING))
    for remote in _ranges([template.network for template in child.remote_ts], [(peer, peer) for peer in peers]):
        if _may_hold_its_peer(remote, connection, peers):
            plan.inside = f"the peer of {connection.name}"
        plan.protected += [(one, remote) for one in local if one[0].version == remote[0].version]


def _ranges(networks: list[Range | None], dynamic: list[Range]) -> Iterator[Range]:
    for network in networks:
        yield from dynamic if network is None else [network]


_EVERYTHING: list[Range] = [(network[0], network[-1]) for network in map(ip_network, ("0.0.0.0/0", "::/0"))]


def _may_hold_its_peer(remote: Range, connection: Connection, peers: list[IpAddress]) -> bool:
    """Whether a throw route cannot keep the peer out: it is the whole range, or may have another address tomorrow."""
    if any(remote == (peer, peer) for peer in peers):
        return True
    if all(_is_address(text) for text in connection.remote_addrs):
        return False
    first, last = remote
    held = any(peer.version == first.version and int(first) <= int(peer) <= int(last) for peer in peers)
    return held or remote in _EVERYTHING


def _is_address(text: str) -> bool:
    try:
        return not ip_address(text).is_unspecified
    except ValueError:
        return False


def _peers(connection: Connection, unknown: list[str]) -> list[IpAddress]:
    """Addresses of a connection's peers, as far as they are known now."""
    found: list[IpAddress] = [ip_address(text) for text in connection.remote_addrs if _is_address(text)]
    for name in names_of(connection.remote_addrs):
        try:
            answers = socket.getaddrinfo(name, None, type=socket.SOCK_DGRAM)
        except OSError:
            unknown.append(name)
            continue
        found += [ip_address(answer[4][0]) for answer in answers]
    return list(dict.fromkeys(found))


# -- sysctls


def _sysctls(config: Config, *, write: bool) -> list[str]:
    """Set them, or say what is to do."""
    done = []
    for key, value in _wanted_sysctls(config):
        if not write:
            done.append(f"to do: sysctl -w {key}={value}, or --sysctl")
            continue
        try:
            (_SYSCTL / key.replace(".", "/")).write_text(str(value))
        except OSError as error:
            done.append(f"to do by somebody else: sysctl -w {key}={value} ({error.strerror})")
        else:
            done.append(f"{key} is {value} now")
    return done


def _wanted_sysctls(config: Config) -> Iterator[tuple[str, int]]:
    settings = config.settings
    lowest = min(port for port in (settings.port, settings.port_nat_t) if port)
    key = "net.ipv4.ip_unprivileged_port_start"
    if (_read(key) or 0) > lowest:
        yield key, lowest
    networks = {
        template.network[0].version
        for connection in config.connections
        for child in connection.children
        if child.mode is ChildMode.TUNNEL
        for template in child.local_ts
        if template.network is not None
    }
    for version, key in ((4, "net.ipv4.ip_forward"), (6, "net.ipv6.conf.all.forwarding")):
        if version in networks and _read(key) == 0:
            yield key, 1


def _read(key: str) -> int | None:
    try:
        return int((_SYSCTL / key.replace(".", "/")).read_text())
    except (OSError, ValueError):
        return None
