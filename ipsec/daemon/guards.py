"""Policies that are there before any SA (RFC 4301 section 4.4.1).

Traps make traffic bring a tunnel up; guards keep the traffic of a tunnel that is to be up from leaving in clear while
it is not; shunts pass or drop.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from ipsec.backend.base import Backend
from ipsec.config.sas import automatic_priority
from ipsec.esp.sa import Action as PolicyAction
from ipsec.esp.sa import Policy
from ipsec.ike.child import resolve
from ipsec.ike.config import Action, ChildConfig, ChildMode, Connection
from ipsec.ike.engine import IkeEngine
from ipsec.ike.events import Path
from ipsec.wire.selector import SelectorPair, agreeing_pairs

log = logging.getLogger(__name__)


@dataclass
class _Guard:
    connection: Connection
    child: ChildConfig
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
        pairs = _pairs(child, path)
        if not pairs:
            if trap:
                log.warning(
                    "%s: child %s cannot wait for traffic: its selectors are not known before it is up",
                    connection.name,
                    child.name,
                )
            return
        action = _ACTIONS.get(child.mode, PolicyAction.PROTECT)
        reqid = 0 if child.shunt else self._engine.trap_reqid(connection.name, child)
        policies = []
        for pair in pairs:
            priority = child.priority or automatic_priority(action, pair)
            policies.append(self._backend.add_policy(Policy(action, (pair,), reqid, priority)))
        guard = self._guards[key] = _Guard(connection, child, tuple(policies), reqid, trap)
        for policy in policies:
            self._by_policy[policy] = guard

    def remove_all(self, connection: Connection) -> None:
        """Undo ``add`` for all children of a connection."""
        for key in [key for key in self._guards if key[0] == connection.name]:
            guard = self._guards.pop(key)
            self._engine.untrap(*key)
            for policy in guard.policies:
                del self._by_policy[policy]
                self._backend.del_policy(policy)

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


def _pairs(child: ChildConfig, path: Path | None) -> list[SelectorPair]:
    """Selectors as far as they are known without a peer: none if ``dynamic`` needs an address that is not."""
    known = path is not None
    if not known and any(template.network is None for template in (*child.local_ts, *child.remote_ts)):
        return []
    local = resolve(child.local_ts, (path.local,) if path is not None else ())
    remote = resolve(child.remote_ts, (path.remote,) if path is not None else ())
    return list(agreeing_pairs(local, remote))
