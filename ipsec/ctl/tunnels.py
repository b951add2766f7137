"""What is configured and what is up, put together: the state of each connection and child, and the traffic of each."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from time import monotonic
from typing import TypeVar

from ipsec.ctl.view import (
    ChildSa,
    Conn,
    ConnChild,
    IkeSa,
    ManualSa,
    Policy,
    fetch_conns,
    fetch_manual_sas,
    fetch_policies,
    fetch_sas,
)
from ipsec.vici.client import Session

K = TypeVar("K")
T = TypeVar("T", ChildSa, ManualSa)


class State(Enum):
    """How a connection or child is, the worst first."""

    DOWN = "down"
    "to be up, and no SA; also if a trap waits for traffic meanwhile"
    PARTLY = "partly up"
    "some of the children are up"
    CONNECTING = "connecting"
    UP = "up"
    ON_DEMAND = "on demand"
    "comes up when there is traffic for it (a trap)"
    IDLE = "idle"
    "nobody asks for it: neither start nor trap, so that somebody has to bring it up, here or at the peer"
    WAITING = "waiting"
    "for peers: no address of theirs is configured, so that they have to begin"
    SHUNT = "policy"
    "passes or drops traffic and has no SA; in place"
    OFF = "off"
    "such a policy, not in place"


#: what makes a connection not as it should be
TROUBLE = frozenset({State.DOWN, State.PARTLY})
#: states of CHILD_SAs that do not carry traffic yet, and of those that do no more
_BEGINNING = frozenset({"CREATED", "INSTALLING", "RETRYING"})
_LEAVING = frozenset({"DELETING", "DELETED", "DESTROYING"})


@dataclass(frozen=True, slots=True)
class Rate:
    """Traffic per second."""

    bits_in: float = 0
    bits_out: float = 0
    packets_in: float = 0
    packets_out: float = 0

    def __add__(self, other: Rate) -> Rate:
        return Rate(
            self.bits_in + other.bits_in,
            self.bits_out + other.bits_out,
            self.packets_in + other.packets_in,
            self.packets_out + other.packets_out,
        )


@dataclass(frozen=True, slots=True)
class Child:
    """A child of a connection and its CHILD_SAs, of which a connection with many peers has many."""

    name: str
    state: State
    mode: str
    local_ts: tuple[str, ...]
    remote_ts: tuple[str, ...]
    sas: tuple[ChildSa, ...]


@dataclass(frozen=True, slots=True)
class Tunnel:
    """A connection with all that belongs to it."""

    name: str
    state: State
    conn: Conn | None
    "None: it is up, and no longer configured"
    sas: tuple[IkeSa, ...]
    children: tuple[Child, ...]

    @property
    def peer(self) -> str:
        """Where the other end is."""
        if len(self.sas) == 1:
            return self.sas[0].remote_host
        return ", ".join(self.conn.remote_addrs) if self.conn else ""

    @property
    def peer_id(self) -> str:
        """Who the other end is."""
        if len(self.sas) == 1 and self.sas[0].remote_id != "%any":
            return self.sas[0].remote_id
        ends = self.conn.remote if self.conn else ()
        return ", ".join(dict.fromkeys(auth.id for auth in ends if auth.id != "%any"))

    @property
    def passive(self) -> bool:
        """Peers come to us, so that what is being negotiated is their affair."""
        return self.conn is not None and self.conn.passive

    def child_sas(self) -> list[ChildSa]:
        """All its CHILD_SAs."""
        return [child for sa in self.sas for child in sa.children]

    def lacking(self) -> bool:
        """Whether something is wanted (``start_action`` has start, or it was asked for) and not up.

        That it is being negotiated is no excuse: with a peer that is dead that takes most of the time.
        """
        states = {child.state for child in self.children}
        if self.state in TROUBLE or State.DOWN in states:
            return True
        if self.passive:
            return False
        begun = any(sa.initiator and not sa.up and sa.state in ("CREATED", "CONNECTING") for sa in _current(self.sas))
        # beside a child that is up, a new IKE_SA is there to replace the old one
        return State.CONNECTING in states or (begun and not self._carries())

    def idle(self, child: str = "") -> bool:
        """Whether it, or one of its children, is neither up nor waits for traffic or peers."""
        down = {State.IDLE, State.DOWN} | (set() if self.passive else {State.CONNECTING})
        if child:
            return any(one.name == child and one.state in down for one in self.children)
        return self.state in down and not self._carries()

    def _carries(self) -> bool:
        ike_up = not self.children and any(sa.up for sa in _current(self.sas))
        return ike_up or any(child.state is State.UP for child in self.children)


@dataclass(frozen=True)
class Snapshot:
    """What a daemon told at one moment."""

    conns: tuple[Conn, ...]
    sas: tuple[IkeSa, ...]
    policies: tuple[Policy, ...]
    manual: tuple[ManualSa, ...] = ()
    at: float = field(default_factory=monotonic)

    def tunnels(self) -> list[Tunnel]:
        """By connection, in the order in which they are configured."""
        sas: dict[str, list[IkeSa]] = {}
        for sa in self.sas:
            sas.setdefault(sa.name, []).append(sa)
        policies = {(policy.conn, policy.child) for policy in self.policies}
        configured = {conn.name: conn for conn in self.conns}
        names = dict.fromkeys([*configured, *sas])
        return [_tunnel(name, configured.get(name), sas.get(name, []), policies) for name in names]


def _current(sas: Iterable[IkeSa]) -> list[IkeSa]:
    """Those with who is the peer now: what is up with the old one does not make the connection up."""
    return [sa for sa in sas if not sa.replaced]


def _tunnel(name: str, conn: Conn | None, sas: list[IkeSa], policies: set[tuple[str, str]]) -> Tunnel:
    by_child, counting = _by_child(sas), _by_child(_current(sas))
    passive = conn is not None and conn.passive
    children = []
    for one in conn.children if conn else ():
        found = _child(one, counting.get(one.name, []), (name, one.name) in policies, passive)
        children.append(replace(found, sas=tuple(by_child.pop(one.name, ()))))
    for other, them in by_child.items():
        state = _state_of(counting[other]) if other in counting else State.IDLE
        children.append(Child(other, state, them[0].mode, them[0].local_ts, them[0].remote_ts, tuple(them)))
    return Tunnel(name, _together(children, _current(sas), passive), conn, tuple(sas), tuple(children))


def _by_child(sas: Iterable[IkeSa]) -> dict[str, list[ChildSa]]:
    found: dict[str, list[ChildSa]] = {}
    for sa in sas:
        for child in sa.children:
            found.setdefault(child.name, []).append(child)
    return found


def _child(config: ConnChild, sas: list[ChildSa], policy: bool, passive: bool) -> Child:
    if config.shunt:
        state = State.SHUNT if policy else State.OFF
    elif any(sa.state not in _LEAVING for sa in sas):
        state = _state_of(sas)
    elif policy and "start" not in config.start_action:
        state = State.ON_DEMAND
    elif passive:
        state = State.WAITING
    else:
        state = State.IDLE if config.start_action == "none" else State.DOWN
    newest = sas[-1] if len(sas) == 1 else None
    local, remote = (newest.local_ts, newest.remote_ts) if newest else (config.local_ts, config.remote_ts)
    return Child(config.name, state, config.mode, local, remote, tuple(sas))


def _state_of(sas: list[ChildSa]) -> State:
    if any(sa.up for sa in sas):
        return State.UP
    return State.CONNECTING if any(sa.state in _BEGINNING for sa in sas) else State.DOWN


def _together(children: list[Child], sas: list[IkeSa], passive: bool) -> State:
    """The state of a connection from those of its children."""
    states = {child.state for child in children} - {State.SHUNT, State.OFF}
    ike_up = any(sa.up for sa in sas)
    if not states:
        if ike_up:
            return State.UP
        if children:
            return State.SHUNT if any(child.state is State.SHUNT for child in children) else State.OFF
        states = {State.WAITING if passive else State.DOWN}
    if State.CONNECTING in states or any(sa.state in ("CREATED", "CONNECTING") for sa in sas if not sa.up):
        return State.PARTLY if State.UP in states and State.DOWN in states else State.CONNECTING
    if State.UP in states:
        return State.PARTLY if State.DOWN in states else State.UP
    # with its IKE_SA up a connection is not all down
    if ike_up and states & {State.DOWN, State.IDLE}:
        return State.PARTLY
    if State.DOWN in states:
        return State.DOWN
    return next(iter(states)) if len(states) == 1 else State.ON_DEMAND


async def snapshot(session: Session) -> Snapshot:
    """Ask for everything."""
    conns, policies = await fetch_conns(session), await fetch_policies(session)
    manual = await fetch_manual_sas(session)
    return Snapshot(conns, await fetch_sas(session), policies, manual)


def rates(before: Iterable[IkeSa], after: Iterable[IkeSa], elapsed_s: float) -> dict[int, Rate]:
    """Traffic of each CHILD_SA, by its number, between two looks at them."""
    old = {child.id: child for sa in before for child in sa.children}
    new = {child.id: child for sa in after for child in sa.children}
    return _grown(old, new, elapsed_s)


def manual_rates(before: Iterable[ManualSa], after: Iterable[ManualSa], elapsed_s: float) -> dict[str, Rate]:
    """The same of each manual SA, by its name."""
    return _grown({sa.name: sa for sa in before}, {sa.name: sa for sa in after}, elapsed_s)


def _grown(old: Mapping[K, T], new: Mapping[K, T], elapsed_s: float) -> dict[K, Rate]:
    """How much the counters of each have grown."""
    return {
        key: Rate(
            8 * max(sa.bytes_in - old[key].bytes_in, 0) / elapsed_s,
            8 * max(sa.bytes_out - old[key].bytes_out, 0) / elapsed_s,
            max(sa.packets_in - old[key].packets_in, 0) / elapsed_s,
            max(sa.packets_out - old[key].packets_out, 0) / elapsed_s,
        )
        for key, sa in new.items()
        if key in old and elapsed_s > 0
    }


@dataclass(frozen=True)
class Sample:
    """Everything at the end of a while, and the traffic in it; without any if that took no time."""

    now: Snapshot
    rates: dict[int, Rate] = field(default_factory=dict)
    "by the number of the CHILD_SA"
    manual_rates: dict[str, Rate] = field(default_factory=dict)
    "by the name of the manual SA"


async def sample(session: Session, seconds: float) -> Sample:
    """Look, wait so many seconds, and look again. There is no second look if there is nothing to measure."""
    first = await snapshot(session)
    if seconds <= 0 or not (first.manual or any(sa.children for sa in first.sas)):
        return Sample(first)
    await asyncio.sleep(seconds)
    manual = await fetch_manual_sas(session)
    now = Snapshot(first.conns, await fetch_sas(session), first.policies, manual)
    elapsed = now.at - first.at
    return Sample(now, rates(first.sas, now.sas, elapsed), manual_rates(first.manual, now.manual, elapsed))
