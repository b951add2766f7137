"""CHILD_SAs in the data path: what the IKE engine negotiated becomes SAs and policies of a backend.

One policy for each pair of selectors and reqid, however many CHILD_SAs come and go under it by rekeying.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field

from ipsec.backend.base import Backend
from ipsec.config.sas import automatic_priority
from ipsec.daemon.traffic import NOTHING, Account, Accounts, ChildName, Seen
from ipsec.errors import BackendError, PolicyError, SaError, SuiteError
from ipsec.esp.engine import SaStats
from ipsec.esp.sa import Action, DfPolicy, Direction, DscpPolicy, Lifetime, Mode, Policy, SaParams
from ipsec.ike.child_sa import ChildSa
from ipsec.ike.config import ChildConfig, ChildMode, Connection
from ipsec.ike.events import ChildKeys, InstallChild, MoveChild, Path, RemoveChild
from ipsec.ike.sa import IkeSa
from ipsec.wire.selector import SelectorPair

log = logging.getLogger(__name__)

Encap = tuple[int, int] | None


@dataclass
class _Installed:
    """What the backend has of one CHILD_SA."""

    child: ChildSa
    inbound: int | None = None
    outbound: int | None = None
    policies: list[tuple[SelectorPair, int]] = field(default_factory=list)
    "keys of Policies"
    seen_in: Seen = NOTHING
    seen_out: Seen = NOTHING
    "what of both SAs is in the accounts"


@dataclass
class _Shared:
    """A policy, its number, whose it is by now, and how many use it."""

    policy: Policy
    number: int
    child: ChildSa
    users: int = 1


class Children:
    """All CHILD_SAs that are installed. Everything belongs to the event loop's thread."""

    def __init__(
        self,
        backend: Backend,
        *,
        path_mtu: int,
        fraction: Callable[[], float],
        is_current: Callable[[Connection], bool] = lambda _: True,
    ) -> None:
        """``fraction`` is a random number in 0..1, for limits by volume that are not all reached at once;
        ``is_current``: see ``Registry``."""
        self._backend = backend
        self._path_mtu = path_mtu
        self._fraction = fraction
        self._is_current = is_current
        self._installed: dict[int, _Installed] = {}
        self._by_sa: dict[int, ChildSa] = {}
        self._policies: dict[SelectorPair, dict[int, _Shared]] = {}
        "by reqid"
        self.accounts = Accounts()
        "what has passed, by connection and child; what is installed is in them as far as it was looked at"
        self._meters: dict[int, tuple[set[int], tuple[Account, Account]]] = {}
        "by identity of the set ``IkeSa.lineage``, which is kept with it so that it stays one of its own"
        self.new_policies = False
        "there are policies that were not there when somebody last set this to False"

    def __len__(self) -> int:
        return len(self._installed)

    def of_sa(self, sa: int) -> ChildSa | None:
        """The CHILD_SA that an SA of the backend belongs to."""
        return self._by_sa.get(sa)

    def last_use(self, child: ChildSa, *, outbound: bool = False) -> float | None:
        """When the last packet came in, or with ``outbound`` went either way."""
        known = self._installed.get(child.uid)
        if known is None:
            return None
        used: list[float] = []
        for sa in (known.inbound, known.outbound if outbound else None):
            last = self._backend.query_sa(sa).last_use if sa is not None else None
            if last is not None:
                used.append(last)
        return max(used, default=None)

    def stats(self, child: ChildSa) -> tuple[SaStats | None, SaStats | None]:
        """Counters of the inbound and the outbound SA, None where there is none."""
        known = self._installed.get(child.uid)
        if known is None:
            return None, None
        inbound, outbound = known.inbound, known.outbound
        return (
            self._backend.query_sa(inbound) if inbound is not None else None,
            self._backend.query_sa(outbound) if outbound is not None else None,
        )

    def installed(self) -> list[int]:
        """Unique ids of what is installed."""
        return list(self._installed)

    def names(self) -> set[ChildName]:
        """Connection and child of what is installed."""
        return {_name(known.child) for known in self._installed.values()}

    def begin_meter(self, ike: IkeSa) -> tuple[Account, Account]:
        """What passes by an IKE_SA, and by those that take its place by rekeying, inbound and outbound, from now on."""
        # the set goes with each of the line, also when it is out of the engine already
        return self._meters.setdefault(id(ike.lineage), (ike.lineage, (Account(), Account())))[1]

    def end_meter(self, ike: IkeSa) -> None:
        """Nobody wants to know it any more. Safe in any state."""
        self._meters.pop(id(ike.lineage), None)

    def _meter(self, known: _Installed, direction: Direction, stats: SaStats, seen: Seen) -> None:
        _, accounts = self._meters.get(id(known.child.ike.lineage), (None, None))
        if accounts is not None:
            accounts[direction is Direction.OUT].add(stats, seen)

    def look(self, uid: int) -> None:
        """Bring the accounts up to date with one CHILD_SA; nothing happens if it is gone."""
        known = self._installed.get(uid)
        if known is not None:
            self._look_in(known)
            self._look_out(known)

    def _look_in(self, known: _Installed) -> None:
        if known.inbound is not None:
            stats = self._backend.query_sa(known.inbound)
            self._meter(known, Direction.IN, stats, known.seen_in)
            known.seen_in = self.accounts.add(_name(known.child), Direction.IN, stats, known.seen_in)

    def _look_out(self, known: _Installed) -> None:
        if known.outbound is not None:
            stats = self._backend.query_sa(known.outbound)
            self._meter(known, Direction.OUT, stats, known.seen_out)
            known.seen_out = self.accounts.add(_name(known.child), Direction.OUT, stats, known.seen_out)

    async def routed(self) -> None:
        """Return when what is installed has its routes, as far as the kernel takes them."""
        with suppress(BackendError):
            # said where it is tried again
            await self._backend.sync_routes()

    def install(self, event: InstallChild) -> str | None:
        """Put SAs in place; why that cannot be, or None."""
        child = event.child
        known = self._installed.setdefault(child.uid, _Installed(child))
        pairs = child.pairs()
        try:
            if event.inbound is not None:
                known.inbound = self._add(event, Direction.IN, event.inbound, pairs)
                if child.config.policies:
                    self._add_policies(known, pairs)
            if event.outbound is not None:
                known.outbound = self._add(event, Direction.OUT, event.outbound, pairs)
        except (SaError, SuiteError, PolicyError, BackendError) as error:
            if known.inbound is None:
                self._backend.free_spi(child.spi_in)
            self._remove(known, inbound=True, outbound=True)
            return str(error)
        return None

    def remove(self, event: RemoveChild) -> None:
        """Take SAs out, and policies with the last of those that share them."""
        known = self._installed.get(event.child.uid)
        if known is None:
            if event.child.spi_in and not event.inbound:
                self._backend.free_spi(event.child.spi_in)
            return
        self._remove(known, inbound=event.inbound, outbound=event.outbound)

    def move(self, event: MoveChild) -> None:
        """Other outer addresses."""
        known = self._installed.get(event.child.uid)
        if known is None:
            return
        path = event.path
        encap = self._encap(path, event.encap)
        for sa in (known.inbound, known.outbound):
            if sa is not None:
                try:
                    self._backend.update_sa(
                        sa, local=path.local, remote=path.remote, encap=encap, path_mtu=self._path_mtu
                    )
                except (SaError, BackendError) as error:
                    log.error("CHILD_SA %s cannot move to %s: %s", event.child, path, error)

    def _encap(self, path: Path, wanted: bool) -> Encap:
        if not wanted:
            return None
        return self._backend.ports.get(path.local.version, path.local_port), path.remote_port

    def _add(
        self, event: InstallChild, direction: Direction, keys: ChildKeys, pairs: tuple[SelectorPair, ...]
    ) -> int:
        child, config = event.child, event.child.config
        inbound = direction is Direction.IN
        params = SaParams(
            spi=child.spi_in if inbound else child.spi_out,
            direction=direction,
            suite=event.suite,
            local=event.path.local,
            remote=event.path.remote,
            encr_key=keys.encr,
            integ_key=keys.integ,
            mode=Mode.TRANSPORT if child.mode is ChildMode.TRANSPORT else Mode.TUNNEL,
            encap=self._encap(event.path, event.encap),
            # RFC 4301 section 5.2: what comes out must be what was negotiated
            selectors=pairs,
            esn=event.esn,
            replay_window=config.replay_window,
            df=DfPolicy.COPY if config.copy_df else DfPolicy.CLEAR,
            copy_dscp=DscpPolicy[config.copy_dscp.name],
            copy_ecn=config.copy_ecn,
            tfc=config.tfc_padding if child.tfc and not inbound and child.mode is ChildMode.TUNNEL else 0,
            path_mtu=self._path_mtu,
            lifetime=self._lifetime(config),
            reqid=child.reqid,
            icmp=config.icmp,
        )
        sa = self._backend.add_sa(params)
        self._by_sa[sa] = child
        return sa

    def _lifetime(self, config: ChildConfig) -> Lifetime:
        return Lifetime(
            bytes_soft=self._soft(config.rekey_bytes, config.rand_bytes),
            bytes_hard=config.life_bytes,
            packets_soft=self._soft(config.rekey_packets, config.rand_packets),
            packets_hard=config.life_packets,
        )

    def _soft(self, limit: int, spread: int) -> int:
        return max(limit - int(spread * self._fraction()), 1) if limit else 0

    def _add_policies(self, known: _Installed, pairs: tuple[SelectorPair, ...]) -> None:
        child = known.child
        for pair in pairs:
            shared = self._policies.get(pair, {}).get(child.reqid)
            if shared is not None:
                shared.users += 1
                shared.child = child
                known.policies.append((pair, child.reqid))
                continue
            priority = child.config.priority or automatic_priority(Action.PROTECT, pair)
            policy = Policy(Action.PROTECT, (pair,), child.reqid, priority, icmp=child.config.icmp)
            number = self._backend.add_policy(policy)
            same = self._policies.setdefault(pair, {})
            # of one that is replaced itself nothing has to go behind: what comes last counts last
            older = [] if self._is_second(child) else [one for one in same.values() if self._is_older(one.child, child)]
            same[child.reqid] = _Shared(policy, number, child)
            known.policies.append((pair, child.reqid))
            self.new_policies = True
            self._put_behind(older)

    def is_replaced(self, child: ChildSa) -> bool:
        """Whether the connection has another peer now, to which the traffic is to go.

        Where it is the same, re-authentication makes both, and the peer may not have the new one yet.
        """
        return not self._is_current(child.ike.connection)

    def _is_second(self, child: ChildSa) -> bool:
        """Whether another one for the same is better to send through: the peer may not have this one any more."""
        return child.ike.doubted or self.is_replaced(child)

    def _is_older(self, child: ChildSa, new: ChildSa) -> bool:
        """Whether to send through a new one instead: a peer that makes another one for the same beside the first, as
        OpenIKED 7.2 when we have moved, may take nothing by the first any more."""
        return child.ike is new.ike or self._is_second(child)

    def _put_behind(self, older: Iterable[_Shared]) -> None:
        """Let policies of the same selectors come after one that was just added (RFC 4301 section 4.4.1: the first that
        matches counts)."""
        for shared in older:
            before, shared.number = shared.number, self._backend.add_policy(shared.policy)
            self._backend.del_policy(before)

    def _remove(self, known: _Installed, *, inbound: bool, outbound: bool) -> None:
        if outbound and known.outbound is not None:
            self._look_out(known)
            self._del(known.outbound)
            known.outbound, known.seen_out = None, NOTHING
        if inbound and known.inbound is not None:
            self._look_in(known)
            self._del(known.inbound)
            known.inbound, known.seen_in = None, NOTHING
        if known.inbound is None and known.outbound is None:
            del self._installed[known.child.uid]
            for pair, reqid in known.policies:
                same = self._policies[pair]
                shared = same[reqid]
                shared.users -= 1
                if not shared.users:
                    del same[reqid]
                    self._backend.del_policy(shared.number)
                if not same:
                    del self._policies[pair]

    def _del(self, sa: int) -> None:
        self._by_sa.pop(sa, None)
        self._backend.del_sa(sa)


def _name(child: ChildSa) -> ChildName:
    return child.ike.name, child.name
