"""Policies that are there before any SA (RFC 4301 section 4.4.1).

Traps make traffic bring a tunnel up; guards keep the traffic of a tunnel that is to be up from leaving in clear while
it is not; shunts pass or drop.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_network

from ipsec.backend.base import Backend
from ipsec.config.sas import automatic_priority
from ipsec.esp.sa import Action as PolicyAction
from ipsec.esp.sa import Policy
from ipsec.ike.child import resolve
from ipsec.ike.config import Action, ChildConfig, ChildMode, Connection, SelectorTemplate
from ipsec.ike.engine import IkeEngine
from ipsec.ike.events import Path
from ipsec.wire.selector import SelectorPair, TrafficSelector, agreeing_pairs

log = logging.getLogger(__name__)


@dataclass
class _Guard:
    connection: Connection
    child: ChildConfig
    pairs: list[SelectorPair]
    policies: tuple[int, ...]
    reqid: int
    trap: bool


class Guards:
    """Traps, guards and shunts by connection and child."""

    def __init__(self, backend: Backend, engine: IkeEngine, *, keep: bool) -> None:
        """``keep``: children with start_action start are guarded too (``ipsecd.fail_closed``)."""
        self._backend = backend
        self._engine = engine
        self._keep = keep
        self._guards: dict[tuple[str, str], _Guard] = {}
        self._by_policy: dict[int, _Guard] = {}
        self._held: dict[str, list[int]] = {}
        "policies of guards that are gone, by connection: they stay until their successors are there"

    def add(self, connection: Connection, child: ChildConfig, path: Path | None, *, trap: bool = False) -> None:
        """Put in place what a child's start action asks for; ``trap``: in any case a trap."""
        key = connection.name, child.name
        trap = trap or Action.TRAP in child.start_action
        known = self._guards.get(key)
        if known is not None:
            known.trap = known.trap or trap
            return
        shunt = child.shunt and child.start_action is not Action.NONE
        if not child.policies or not (shunt or trap or (self._keep and Action.START in child.start_action)):
            return
        pairs = _pairs(connection, child, path, tuple(self._backend.ports))
        if not pairs:
            if trap:
                log.warning(
                    "%s: child %s cannot wait for traffic: its selectors are not known before it is up",
                    connection.name,
                    child.name,
                )
            return
        reqid = 0 if child.shunt else self._engine.trap_reqid(connection.name, child)
        guard = _Guard(connection, child, pairs, (), reqid, trap)
        try:
            self._put(guard)
        except BaseException:
            self._engine.untrap(*key)
            raise
        self._guards[key] = guard

    def _put(self, guard: _Guard) -> None:
        """All policies of a guard, or none."""
        child = guard.child
        action = _ACTIONS.get(child.mode, PolicyAction.PROTECT)
        policies: list[int] = []
        try:
            for pair in guard.pairs:
                priority = child.priority or automatic_priority(action, pair)
                policies.append(self._backend.add_policy(Policy(action, (pair,), guard.reqid, priority)))
        except BaseException:
            for policy in policies:
                self._backend.del_policy(policy)
            raise
        guard.policies = tuple(policies)
        for policy in policies:
            self._by_policy[policy] = guard

    def put_last(self, connection: str, child: str) -> None:
        """Let the policies of a CHILD_SA that is up come before the guard's.

        The first policy says which address of ours is the source of a route. A guard that stands for a virtual address
        has to cover all of them, and must not say so any more once that address is there.
        """
        guard = self._guards.get((connection, child))
        if guard is not None and guard.connection.vips:
            # nothing leaves in between: routes follow later, and what has no policy is dropped
            self._drop(guard.policies)
            guard.policies = ()
            self._put(guard)

    def _drop(self, policies: tuple[int, ...]) -> None:
        for policy in policies:
            del self._by_policy[policy]
            self._backend.del_policy(policy)

    def exchange(self, old: Connection, new: Connection) -> None:
        """What waits for traffic of a connection asks for another one that has the same children."""
        for guard in self._guards.values():
            if guard.connection == old:
                guard.connection = new

    def remove_all(self, connection: Connection, *, hold: bool = False) -> None:
        """Undo ``add`` for all children of a connection."""
        for name, child in [key for key in self._guards if key[0] == connection.name]:
            self.remove(name, child, hold=hold)

    def remove(self, connection: str, child: str, *, hold: bool = False) -> bool:
        """Undo ``add`` for one child; False if there is nothing to undo.

        ``hold``: another guard is about to come, perhaps only after a name has been looked up. Until ``release`` what
        this one stopped stays stopped: it would leave in clear.
        """
        guard = self._guards.pop((connection, child), None)
        if guard is None:
            return False
        self._engine.untrap(connection, child)
        if hold and guard.child.mode is not ChildMode.PASS:
            self._held.setdefault(connection, []).extend(guard.policies)
            for policy in guard.policies:
                del self._by_policy[policy]
        else:
            self._drop(guard.policies)
        return True

    def release(self, connection: str) -> None:
        """What was to come after guards that were held is there, or will not come."""
        for policy in self._held.pop(connection, ()):
            self._backend.del_policy(policy)

    def has(self, connection: str, child: str) -> bool:
        """Whether ``add`` has put something in place for a child."""
        return (connection, child) in self._guards

    def visible(self) -> list[tuple[Connection, ChildConfig]]:
        """Children with a trap or a shunt; guards that only keep traffic from leaving are nobody's concern."""
        return [(guard.connection, guard.child) for guard in self._guards.values() if guard.trap or guard.child.shunt]

    def wanted(self, policy: int) -> tuple[Connection, ChildConfig] | None:
        """What a packet without an SA asks for; None if its policy is no trap."""
        guard = self._by_policy.get(policy)
        return (guard.connection, guard.child) if guard is not None and guard.trap else None

    def reqid(self, connection: str, child: str) -> int:
        """The reqid that a child's policies wait with, 0 if it has none."""
        guard = self._guards.get((connection, child))
        return guard.reqid if guard is not None else 0

    def rearm(self, connection: str, child: str) -> None:
        """What a packet had asked for did not come to be: the next one asks again."""
        guard = self._guards.get((connection, child))
        if guard is not None and guard.trap:
            for policy in guard.policies:
                self._backend.rearm(policy)


_ACTIONS = {ChildMode.PASS: PolicyAction.BYPASS, ChildMode.DROP: PolicyAction.DISCARD}


def _pairs(
    connection: Connection, child: ChildConfig, path: Path | None, versions: Iterable[int]
) -> list[SelectorPair]:
    """Selectors as far as they are known without a peer: none if ``dynamic`` needs an address that is not.

    ``versions`` are those of IP that we have sockets for.
    """
    if child.shunt:
        return shunt_pairs(child, versions)
    if path is None and any(
        template.network is None for template in (*(() if connection.vips else child.local_ts), *child.remote_ts)
    ):
        return []
    if connection.vips:
        # whatever the virtual address will be
        vips = [vip.version for vip in connection.vips]
        local = [selector for template in child.local_ts for selector in _of_any(template, vips)]
    else:
        local = resolve(child.local_ts, (path.local,) if path is not None else ())
    remote = resolve(child.remote_ts, (path.remote,) if path is not None else ())
    return list(agreeing_pairs(local, remote))


def shunt_pairs(child: ChildConfig, versions: Iterable[int]) -> list[SelectorPair]:
    """What a child drops or passes, whoever it is for: without a peer it knows no peer's addresses."""
    local = [selector for template in child.local_ts for selector in _of_any(template, versions)]
    remote = [selector for template in child.remote_ts for selector in _of_any(template, versions)]
    return list(agreeing_pairs(local, remote))


def _of_any(template: SelectorTemplate, versions: Iterable[int]) -> list[TrafficSelector]:
    if template.network is not None:
        return template.resolve(())
    networks = {version: ip_network("0.0.0.0/0" if version == 4 else "::/0") for version in versions}
    return [TrafficSelector(n[0], n[-1], template.protocol, template.ports) for n in networks.values()]
