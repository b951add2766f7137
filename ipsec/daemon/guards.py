"""Policies that are there before any SA (RFC 4301 section 4.4.1).

Traps make traffic bring a tunnel up; guards keep the traffic of a tunnel that is to be up from leaving in clear while
it is not; shunts pass or drop.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_network

from ipsec.backend.base import Backend
from ipsec.config.sas import automatic_priority
from ipsec.daemon.paths import Ends
from ipsec.errors import IpsecError
from ipsec.esp.sa import Action as PolicyAction
from ipsec.esp.sa import IpAddress, Policy
from ipsec.ike.child import resolve
from ipsec.ike.config import Action, ChildConfig, ChildMode, Connection, SelectorTemplate
from ipsec.ike.engine import IkeEngine
from ipsec.ike.events import Path
from ipsec.text import plural
from ipsec.wire.selector import SelectorPair, TrafficSelector, agreeing_pairs

log = logging.getLogger(__name__)

#: connections that a line of the log names
NAMED = 5


@dataclass
class Guard:
    """What stands for a child without an SA, or is to."""

    connection: Connection
    child: ChildConfig
    pairs: list[SelectorPair]
    policies: tuple[int, ...]
    reqid: int
    trap: bool
    peer: IpAddress | None = None
    "where it is, while this stands for every address of ours: until it is known which leads there"


class Guards:
    """Traps, guards and shunts by connection and child."""

    def __init__(self, backend: Backend, engine: IkeEngine, *, keep: bool) -> None:
        """``keep``: children with start_action start are guarded too (``ipsecd.fail_closed``)."""
        self._backend = backend
        self._engine = engine
        self._keep = keep
        self._guards: dict[tuple[str, str], Guard] = {}
        self._by_policy: dict[int, Guard] = {}
        self._held: dict[str, list[int]] = {}
        "policies of guards that are gone, by connection: they stay until their successors are there"
        self._expected: dict[tuple[str, str], Guard] = {}
        "guards that cannot be put in place before somebody says where their peer is"
        self._expecting: Counter[str] = Counter()
        "how many of a connection are expected"
        self._awaited: dict[str, set[TrafficSelector | None]] = {}
        "remote ends of those, None for a peer's address, by connection: until ``release``"
        self._loading = True
        "more may come to be expected"
        self._closed: int | None = None
        "how many networks a predecessor closed and we still do; None: it was not asked yet"

    def add(self, connection: Connection, child: ChildConfig, ends: Path | Ends | None, *, trap: bool = False) -> None:
        """Put in place what a child's start action asks for; ``trap``: in any case a trap.

        ``ends``: as far as they are known.
        """
        key = connection.name, child.name
        trap = trap or Action.TRAP in child.start_action
        known = self._guards.get(key)
        if known is not None:
            if trap and not known.trap:
                known.trap = True
                # packets that it kept in before have asked for nothing: the next one does, at once
                self.rearm(*key)
            return
        if not self._wants(child, trap=trap):
            return
        pairs = _pairs(connection, child, ends, tuple(self._backend.ports))
        if not pairs:
            if trap and key not in self._expected:
                log.warning(
                    "%s: child %s cannot wait for traffic: its selectors are not known before it is up",
                    connection.name,
                    child.name,
                )
            return
        reqid = 0 if child.shunt else self._engine.trap_reqid(connection.name, child)
        peer = ends.remote if ends is not None and ends.local is None else None
        guard = Guard(connection, child, pairs, (), reqid, trap, peer)
        try:
            self._put(guard)
        except BaseException:
            self._engine.untrap(*key)
            raise
        self._guards[key] = guard
        self._expect_no_more(key)

    def _wants(self, child: ChildConfig, *, trap: bool) -> bool:
        """Whether there is anything to put in place for a child."""
        shunt = child.shunt and child.start_action is not Action.NONE
        trap = trap or Action.TRAP in child.start_action
        return child.policies and (shunt or trap or self._keeps(child))

    def _keeps(self, child: ChildConfig) -> bool:
        """Whether a child's traffic is kept in while its tunnel is down, also without a trap."""
        return self._keep and Action.START in child.start_action

    def needs_peer(self, connection: Connection, child: ChildConfig, *, trap: bool = False) -> bool:
        """Whether ``add`` has to be told where the peer is, which may take as long as a name server says nothing."""
        return self._wants(child, trap=trap) and _needs_peer(connection, child)

    def expect(self, connection: Connection, child: ChildConfig) -> Guard:
        """``add`` will follow as soon as the peer's address is known, unless ``remove`` comes before it."""
        self._awaited.setdefault(connection.name, set()).update(_remote_ends(child))
        key = connection.name, child.name
        self._expect_no_more(key)
        guard = self._expected[key] = Guard(connection, child, [], (), 0, False)
        self._expecting[connection.name] += 1
        return guard

    def _expect_no_more(self, key: tuple[str, str]) -> Guard | None:
        guard = self._expected.pop(key, None)
        if guard is not None:
            self._expecting[key[0]] -= 1
            if not self._expecting[key[0]]:
                del self._expecting[key[0]]
        return guard

    def is_expected(self, guard: Guard) -> bool:
        """Whether it is still to come, and no other instead of it."""
        return self._expected.get((guard.connection.name, guard.child.name)) is guard

    def forget(self, guard: Guard) -> None:
        """It will not come."""
        if self.is_expected(guard):
            self._expect_no_more((guard.connection.name, guard.child.name))

    def _put(self, guard: Guard) -> None:
        """All policies of a guard, or none."""
        child = guard.child
        action = _ACTIONS.get(child.mode, PolicyAction.PROTECT)
        policies: list[int] = []
        try:
            for pair in guard.pairs:
                priority = child.priority or automatic_priority(action, pair)
                added = Policy(action, (pair,), guard.reqid, priority, icmp=child.icmp)
                policies.append(self._backend.add_policy(added))
        except BaseException:
            for policy in policies:
                self._backend.del_policy(policy)
            raise
        guard.policies = tuple(policies)
        for policy in policies:
            self._by_policy[policy] = guard

    def narrow(self, connection: str, child: str, path: Path) -> None:
        """The way to the peer is known now: what stood for any address of ours stands for that one alone."""
        guard = self._guards.get((connection, child))
        if guard is None or guard.peer is None or guard.peer.version != path.local.version:
            return
        before, wide = guard.policies, guard.pairs
        guard.pairs = _pairs(guard.connection, guard.child, Ends(path.local, guard.peer), tuple(self._backend.ports))
        try:
            # before the others go: nothing leaves in between
            self._put(guard)
        except IpsecError as error:
            log.warning("%s: child %s keeps in more than it has to: %s", connection, child, error)
            guard.pairs = wide
            return
        self._drop(before)
        guard.peer = None

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
        for guard in (*self._guards.values(), *self._expected.values()):
            if guard.connection == old:
                guard.connection = new

    def remove_all(self, connection: Connection, *, hold: bool = False) -> None:
        """Undo ``add`` for all children of a connection."""
        for name, child in [key for key in (*self._guards, *self._expected) if key[0] == connection.name]:
            self.remove(name, child, hold=hold)

    def remove(self, connection: str, child: str, *, hold: bool = False) -> bool:
        """Undo ``add`` for one child; False if there is nothing to undo.

        ``hold``: another guard is about to come, perhaps only after a name has been looked up. Until ``release`` what
        this one stopped stays stopped: it would leave in clear.
        """
        expected = self._expect_no_more((connection, child))
        if not hold and (expected is not None or connection not in self._held):
            self.release(connection)
        guard = self._guards.pop((connection, child), None)
        if guard is None:
            return expected is not None
        self._engine.untrap(connection, child)
        if hold and guard.child.mode is not ChildMode.PASS:
            self._held.setdefault(connection, []).extend(guard.policies)
            for policy in guard.policies:
                del self._by_policy[policy]
        else:
            self._drop(guard.policies)
        return True

    def uninstall(self, connection: str, child: str) -> bool:
        """Undo a trap or a shunt, by command; False if there is none. What is kept in without a trap stays in."""
        guard = self._guards.get((connection, child))
        if guard is None or guard.child.shunt or not self._keeps(guard.child):
            return self.remove(connection, child)
        was_trap, guard.trap = guard.trap, False
        return was_trap

    def release(self, connection: str) -> None:
        """What was expected, or was to come after guards that were held, is there or will not come.

        Not so while one is expected.
        """
        if connection not in self._held and connection not in self._awaited:
            return
        if connection in self._expecting:
            return
        for policy in self._held.pop(connection, ()):
            self._backend.del_policy(policy)
        if self._awaited.pop(connection, None) is not None:
            self._open()

    @contextmanager
    def loading(self) -> Iterator[None]:
        """What is expected may be about to change: nothing opens until that is over, however it ends."""
        self._loading = True
        try:
            yield
        finally:
            self.begun()

    def begun(self) -> None:
        """Whatever is to be has begun, or is expected: what a predecessor left closed opens where nobody wants it."""
        self._loading = False
        self._open()

    def _open(self) -> None:
        """Let the backend open what nobody waits for any more, until all is open."""
        if self._loading or self._closed == 0:
            return
        before, self._closed = self._closed, self._backend.begun(set().union(*self._awaited.values()))
        if before is None and self._closed:
            names = [*sorted(self._awaited)[:NAMED], *(["..."] if len(self._awaited) > NAMED else [])]
            log.warning(
                "until it is known where the peers of %s are, what a killed predecessor kept closed stays so (%s); "
                "a reload without these connections opens it, and so does a restart",
                ", ".join(names),
                plural(self._closed, "network"),
            )
        elif before and not self._closed:
            log.info("what a killed predecessor kept closed is open, or protected")

    def has(self, connection: str, child: str) -> bool:
        """Whether ``add`` has put something in place for a child."""
        return (connection, child) in self._guards

    def visible(self) -> list[tuple[Connection, ChildConfig, int]]:
        """Children with a trap or a shunt, and the reqid; guards that only keep traffic from leaving concern nobody."""
        seen = [guard for guard in self._guards.values() if guard.trap or guard.child.shunt]
        return [(guard.connection, guard.child, guard.reqid) for guard in seen]

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
    connection: Connection, child: ChildConfig, ends: Path | Ends | None, versions: Iterable[int]
) -> list[SelectorPair]:
    """Selectors as far as they are known without a peer: none if ``dynamic`` needs an address that is not.

    ``versions`` are those of IP that we have sockets for.
    """
    if child.shunt:
        return shunt_pairs(child, versions)
    if ends is None and _needs_peer(connection, child):
        return []
    # whatever the virtual address will be, or the one that leads to the peer
    unknown = [vip.version for vip in connection.vips]
    if not unknown and ends is not None and ends.local is None:
        unknown = [ends.remote.version]
    if unknown:
        local = [selector for template in child.local_ts for selector in _of_any(template, unknown)]
    else:
        local = resolve(child.local_ts, (ends.local,) if ends is not None and ends.local is not None else ())
    remote = resolve(child.remote_ts, (ends.remote,) if ends is not None else ())
    return list(agreeing_pairs(local, remote))


def _needs_peer(connection: Connection, child: ChildConfig) -> bool:
    """Whether a selector is an end's address, and cannot stand for any."""
    templates = (*(() if connection.vips else child.local_ts), *child.remote_ts)
    return not child.shunt and any(template.network is None for template in templates)


def _remote_ends(child: ChildConfig) -> set[TrafficSelector | None]:
    """Where a child's traffic goes; None: to its peer."""
    ends: set[TrafficSelector | None] = set()
    for template in child.remote_ts:
        ends.update(template.resolve(()) or (None,))
    return ends


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
