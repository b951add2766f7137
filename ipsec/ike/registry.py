"""What the engine keeps: IKE_SAs by every name they have, numbers, timers, what is to go out. No protocol is here."""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, cast

from ipsec.crypto.identity import MATCH_ANY, MATCH_NONE, MATCH_PERFECT, Identity, are_one, is_called
from ipsec.crypto.kex import KeyExchange, join_key_exchange, key_exchange
from ipsec.errors import SuiteError
from ipsec.ike import grants, lifetimes, negotiate
from ipsec.ike.child_sa import ChildSa
from ipsec.ike.config import ChildConfig, Connection, IkeSettings, LocalAuth, PoolConfig
from ipsec.ike.config_payload import Pool, find_rivals
from ipsec.ike.cookie import CookieJar, HalfOpenLimiter
from ipsec.ike.counters import Counters
from ipsec.ike.credentials import Credentials
from ipsec.ike.events import AddressesReleased, Event, Failed, IpAddress, Outgoing, Path
from ipsec.ike.failure import Failure, Problem, Problems
from ipsec.ike.host import Host
from ipsec.ike.lifetimes import Timer
from ipsec.ike.redirect import LoopGuard
from ipsec.ike.sa import IkeSa
from ipsec.ike.status import StatusCache
from ipsec.ike.table import ConnectionTable
from ipsec.ike.timers import Timers

if TYPE_CHECKING:
    from ipsec.ike.create_child import CreateChild
    from ipsec.ike.engine import IkeEngine

log = logging.getLogger(__name__)

Rng = Callable[[int], bytes]

#: responses to the last request of IKE_SAs that are gone, for peers that did not get them
CLOSED_MAX = 1024
#: unprotected answers and log lines about strangers, per second
STRANGERS_PER_S = 20
#: connections that a peer's proof is held against, and for how many it is looked at in full
CONNECTIONS_MAX, TRIED_MAX = 64, 8
REFUSED_MAX = 64
#: timers, and things that were asked for, in one call: each may start an exchange, of up to a millisecond
AT_ONCE = 4
#: IKE_SAs, not authenticated yet, of which there are fragments
COLLECTING_MAX = 64


class Registry:
    """The memory of an engine."""

    def __init__(self, settings: IkeSettings, host: Host, rng: Rng) -> None:
        """``rng`` gives that many random octets, good enough for keys."""
        self.settings = settings
        self.host = host
        self.rng = rng
        self.credentials = Credentials()
        self.table = ConnectionTable((), host.resolved)
        self.pools: dict[str, Pool] = {}
        self.eap_results: Counter[tuple[str, bool]] = Counter()
        "peers that have used EAP with us, by its method, and whether it has succeeded"
        self.grants = grants.pools()
        "of what EAP servers grant to peers, IPv4 and IPv6"
        self.sas: dict[int, IkeSa] = {}
        self.by_connection: dict[str, dict[int, IkeSa]] = {}
        self.children: dict[int, ChildSa] = {}
        self.timers = Timers()
        self.counters = Counters()
        self.problems = Problems()
        self.status = StatusCache()
        self.cookies = CookieJar(rng)
        self.initiating: dict[int, IkeSa] = {}
        "that we have begun and that are not up"
        self.half_open = HalfOpenLimiter(
            settings.cookie_threshold, settings.cookie_threshold_ip, settings.half_open_limit
        )
        self.init_requests: dict[bytes, IkeSa] = {}
        "half-open IKE_SAs as responder, by their first message"
        self.refused: deque[bytes] = deque(maxlen=REFUSED_MAX)
        "the last first messages that found no connection: sent again they are answered, but no news"
        self.collecting: OrderedDict[int, IkeSa] = OrderedDict()
        "those that have sent a part of a message and are not authenticated, the longest waiting first"
        self._half_open: dict[int, tuple[bytes, IpAddress]] = {}
        self.by_spi: dict[bytes, IkeSa] = {}
        self._stopping = False
        self.by_peer: dict[tuple[Identity | None, Hashable], dict[int, IkeSa]] = {}
        "that are up, for ``of_peer``"
        self.by_wanted: dict[tuple[Identity | None, Identity], dict[int, IkeSa]] = {}
        "those that we have begun and whose IKE_AUTH has gone out, by who we are and whom alone we want there"
        self.closed: OrderedDict[bytes, tuple[bytes, list[bytes]]] = OrderedDict()
        self._reqids: dict[tuple[str, str], int] = {}
        "of children with a trap, by connection and child"
        self._retries: dict[int, list[CreateChild]] = {}
        self._guards: dict[str, LoopGuard] = {}
        self._key_pairs: dict[int, KeyExchange] = {}
        "made in advance, by method; each is used once"
        self._missing: set[int] = set()
        "methods of which there is none"
        self._later: deque[Callable[[], None]] = deque()
        self._asked: OrderedDict[tuple[int, str], tuple[IkeSa | ChildSa, Callable[[float], None]]] = OrderedDict()
        "what a command is to do to many SAs, and has not done to all of them yet; each once, however often it is said"
        self._asked_at = 0.0
        self._done = 0
        "how much of it since the last ``datagrams_to_send``"
        self._events: deque[Event] = deque()
        self._outbox: list[Outgoing] = []
        self._uid = 0
        self._reqid = 0
        self._stranger_second = 0
        self._strangers = 0
        self.now = 0.0

    # -- what goes out

    def next_timer(self) -> float | None:
        """When ``handle_timer`` wants to be called, None for never."""
        if self._asked:
            return self._asked_at
        return self.timers.next()

    def datagrams_to_send(self) -> list[Outgoing]:
        """What is to be sent, each once."""
        outbox, self._outbox = self._outbox, []
        self._done = 0
        return outbox

    def next_event(self) -> Event | None:
        """What has happened, in order; None when there is nothing more."""
        return self._events.popleft() if self._events else None

    def later(self, work: Callable[[], None]) -> None:
        """Leave something for ``catch_up``; it is done before the next datagram or timer."""
        self._later.append(work)

    def catch_up(self) -> None:
        """Do what was left for later because a peer would have had to wait: when the datagrams are out, or with the
        next of them that comes in."""
        while self._later:
            work = self._later.popleft()
            try:
                work()
            except Exception:
                log.exception("this is a bug")

    def in_turns(
        self, what: str, work: Iterable[tuple[IkeSa | ChildSa, Callable[[float], None]]], now: float
    ) -> None:
        """Do something to each of perhaps thousands of SAs: to the first few now, to the others with the calls of
        ``handle_timer`` that come. All at once would keep every peer waiting. ``what`` is to be done once, if it is
        asked for again before."""
        if not self._asked:
            self._asked_at = now
        self._asked.update(((one.uid, what), (one, do)) for one, do in work)
        self.go_on(now)

    def go_on(self, now: float) -> None:
        """The next few things that were to be done in turns."""
        while self._asked and self._done < AT_ONCE:
            self._done += 1
            _, (one, work) = self._asked.popitem(last=False)
            # a CHILD_SA may belong to a successor by now
            self.contained(one.ike if isinstance(one, ChildSa) else one, work, now)

    def contained(self, sa: IkeSa, work: Callable[[float], None], now: float) -> None:
        """Do something that may fail for one IKE_SA."""
        raise NotImplementedError

    def send(self, data: bytes, path: Path, dscp: int = 0) -> None:
        """For ``datagrams_to_send``."""
        self._outbox.append(Outgoing(data, path, dscp))

    def emit(self, event: Event) -> None:
        """For ``next_event``."""
        self._events.append(event)

    def note(self, failure: Failure, sa: IkeSa) -> None:
        """Something failed in an IKE_SA: remember it, and tell the caller."""
        self._note(failure, sa, sa.name, sa.path.remote, sa.initiator)

    def note_without(self, failure: Failure, connection: str, peer: IpAddress | None, *, initiator: bool) -> None:
        """The same where there is no IKE_SA; an empty name is no connection."""
        self._note(failure, None, connection, peer, initiator)

    def _note(self, failure: Failure, sa: IkeSa | None, name: str, peer: IpAddress | None, initiator: bool) -> None:
        problem = self.problems.note(Problem(name, failure, peer, initiator, self.host.wall()))
        self.emit(Failed(problem, sa))

    def may_speak(self, now: float) -> bool:
        """Whether one more answer to, or log line about, somebody unknown is within reason."""
        if int(now) != self._stranger_second:
            self._stranger_second, self._strangers = int(now), 0
        self._strangers += 1
        return self._strangers <= STRANGERS_PER_S

    # -- numbers

    def key_pair(self, method: int) -> KeyExchange:
        """An ephemeral key pair for the first exchange of an IKE_SA, nobody else's."""
        ready = self._key_pairs.pop(method, None)
        self.needs_key_pair(method)
        return ready or key_exchange(method, self.rng)

    def join_key_exchange(self, method: int, peer: bytes) -> tuple[bytes, bytes]:
        """The responder's half of a key exchange: the data of its KE payload, and the shared secret."""
        return join_key_exchange(method, peer, lambda method: key_exchange(method, self.rng))

    def needs_key_pair(self, method: int) -> None:
        """There is to be a key pair in advance, for the next that wants one."""
        if method not in self._key_pairs:
            self._missing.add(method)

    @property
    def unprepared(self) -> bool:
        """Whether ``prepare`` has something to do."""
        return bool(self._missing)

    def prepare(self) -> None:
        """Make key pairs for the IKE_SAs to come, when nobody waits for anything. Whoever comes before has his made at
        once."""
        while self._missing:
            method = self._missing.pop()
            # OpenSSL may not have it: whoever begins with it is told then
            with suppress(SuiteError):
                self._key_pairs[method] = key_exchange(method, self.rng)

    def next_uid(self) -> int:
        """Unique ids are shared by IKE_SAs and CHILD_SAs."""
        self._uid += 1
        return self._uid

    def _next_reqid(self) -> int:
        self._reqid += 1
        return self._reqid

    def trap_reqid(self, connection: str, child: ChildConfig) -> int:
        """The reqid of a child that waits for traffic: SAs made for it later carry what its policy matches."""
        return self._reqids.setdefault((connection, child.name), child.reqid or self._next_reqid())

    def untrap(self, connection: str, child: str) -> None:
        """That child waits for traffic no longer."""
        self._reqids.pop((connection, child), None)

    def reqid_for(self, connection: Connection, config: ChildConfig) -> int:
        """What ties a new CHILD_SA to its policies."""
        # else what waits for traffic by that name wants another peer
        trap = self._reqids.get((connection.name, config.name)) if self.is_current(connection) else None
        return config.reqid or trap or self._next_reqid()

    def new_spi(self) -> bytes:
        """An SPI for an IKE_SA, unpredictable and not zero."""
        while True:
            spi = self.rng(8)
            if spi != bytes(8) and spi not in self.by_spi and spi not in self.closed:
                return spi

    def fraction(self) -> float:
        """Random in 0..1."""
        return int.from_bytes(self.rng(4), "big") / 0x100000000

    # -- who is there

    def new_sa(self, connection: Connection, *, initiator: bool, path: Path) -> IkeSa:
        """An IKE_SA without keys and SPIs."""
        sa = IkeSa(cast("IkeEngine", self), self.next_uid(), connection, initiator=initiator, path=path)
        self.sas[sa.uid] = sa
        self.by_connection.setdefault(connection.name, {})[sa.uid] = sa
        return sa

    def new_responder(self, connection: Connection, spi_i: bytes, path: Path, digest: bytes, now: float) -> IkeSa:
        """Half-open from now on."""
        sa = self.new_sa(connection, initiator=False, path=path)
        sa.spi_i = spi_i
        sa.spi_r = self.new_spi()
        self.by_spi[sa.spi_r] = sa
        self.half_open.add(path.remote)
        self._half_open[sa.uid] = digest, path.remote
        self.init_requests[digest] = sa
        self.timers.set((Timer.HALF_OPEN, sa.uid), now + self.settings.half_open_timeout)
        return sa

    def new_successor(self, old: IkeSa, *, initiator: bool, spi_i: bytes, spi_r: bytes) -> IkeSa:
        """An IKE_SA made by rekeying another one; until it takes over, its end is nobody's concern."""
        sa = self.new_sa(old.connection, initiator=initiator, path=old.path)
        sa.quiet = True
        sa.spi_i, sa.spi_r = spi_i, spi_r
        self.by_spi[sa.spi_ours] = sa
        for name in ("original_initiator", "our_id", "peer_id", "eap_id", "fragmentation", "mobike", "nat_local",
                     "nat_remote", "peer_hashes", "peer_addresses", "told", "established_at", "reauth_at", "reauth_by",
                     "last_in", "handshake", "last_out", "ppk", "redirectable", "granted", "session_end"):  # fmt: skip
            setattr(sa, name, getattr(old, name))
        sa.lineage = old.lineage
        sa.lineage.add(sa.uid)
        return sa

    def collects(self, sa: IkeSa) -> None:
        """Fragments for an IKE_SA that is not authenticated. Who has waited longest makes room, and tries again."""
        self.collecting[sa.uid] = sa
        self.collecting.move_to_end(sa.uid)
        if len(self.collecting) > COLLECTING_MAX:
            _, oldest = self.collecting.popitem(last=False)
            oldest.collected = None

    def close_half_open(self, sa: IkeSa) -> None:
        """An IKE_SA is authenticated, or gone."""
        known = self._half_open.pop(sa.uid, None)
        if known is not None:
            self.half_open.remove(known[1])
            self.init_requests.pop(known[0], None)
            self.timers.cancel((Timer.HALF_OPEN, sa.uid))

    def forget(self, sa: IkeSa, now: float) -> None:
        """An IKE_SA is no more; its last response stays for a while."""
        self.initiating.pop(sa.uid, None)
        self.close_half_open(sa)
        self.collecting.pop(sa.uid, None)
        self.free_first_child(sa)
        lifetimes.disarm(cast("IkeEngine", self), sa)
        if sa.response and sa.established_at:
            self.closed[sa.spi_ours] = sa.request_digest, sa.response
            if len(self.closed) > CLOSED_MAX:
                self.closed.popitem(last=False)
        if self.by_spi.get(sa.spi_ours) is sa:
            del self.by_spi[sa.spi_ours]
        self.sas.pop(sa.uid, None)
        sa.lineage.discard(sa.uid)
        self._unname(sa)
        self._retries.pop(sa.uid, None)
        self.leave(sa)
        wanted = sa.connection.remote.id.exact
        if wanted is not None and sa.uid in (same := self.by_wanted.get((sa.our_id, wanted), {})):
            del same[sa.uid]
            if not same:
                del self.by_wanted[sa.our_id, wanted]
        for pool, address in sa.leases:
            pool.release(sa.whose, address)
        sa.leases = []
        if sa.addresses:
            self.emit(AddressesReleased(sa, sa.addresses))
            sa.addresses = ()

    def free_first_child(self, sa: IkeSa) -> None:
        """The CHILD_SA that IKE_AUTH was to make did not come to be."""
        child = sa.auth.child if sa.auth is not None else None
        if sa.auth is not None and child is not None and not child.has_in:
            self.host.free_spi(child.spi_in)
            sa.auth.child = None
            sa.auth.configs.insert(0, (child.config, child.reqid))

    def first_contact(self, sa: IkeSa) -> bool:
        """Whether we know of no other IKE_SA between these identities (RFC 7296 section 2.4); ``sa`` is asking."""
        peer = sa.connection.remote.id.exact
        if peer is None:
            # it may turn out to be anybody, and charon does not say it either
            return False
        asking = self.by_wanted.setdefault((sa.our_id, peer), {})
        asking[sa.uid] = sa
        up = (*self.named(sa.name), *self.of_peer(sa.our_id, peer))
        if any(other.established for other in up if other is not sa):
            return False
        # the peer may have it up before us, and would close it
        return not any(other.uid in self.initiating for other in asking.values() if other is not sa)

    def of_peer(self, ours: Identity | None, theirs: Identity | None) -> list[IkeSa]:
        """IKE_SAs between these two, also where a distinguished name of the peer was spelled otherwise."""
        if theirs is None:
            return []
        found = self.by_peer.get((ours, theirs.spelling), {})
        return [sa for sa in found.values() if sa.whose is not None and are_one(sa.whose, theirs)]

    def join(self, sa: IkeSa) -> None:
        """An IKE_SA is up: it is one of those of its peer."""
        if sa.whose is not None:
            self.by_peer.setdefault((sa.our_id, sa.whose.spelling), {})[sa.uid] = sa

    def leave(self, sa: IkeSa) -> None:
        """It no longer is."""
        key = sa.our_id, sa.whose and sa.whose.spelling
        peers = self.by_peer.get(key, {})
        if peers.pop(sa.uid, None) is not None and not peers:
            del self.by_peer[key]

    def named(self, connection: str) -> list[IkeSa]:
        """IKE_SAs of a connection."""
        return list(self.by_connection.get(connection, {}).values())

    def is_current(self, connection: Connection) -> bool:
        """Whether what was negotiated for a connection serves what is loaded by its name now, maybe with a new peer.

        Also if nothing is: then nobody else has its place.
        """
        loaded = self.table.by_name.get(connection.name)
        return loaded is None or loaded.is_alike(connection)

    def is_loaded(self, connection: Connection) -> bool:
        """The same, but not if nothing is loaded by that name."""
        return connection.name in self.table.by_name and self.is_current(connection)

    def rename(self, sa: IkeSa, connection: Connection) -> None:
        """The peer's identity has shown which connection an IKE_SA belongs to."""
        self._unname(sa)
        sa.connection = connection
        self.by_connection.setdefault(connection.name, {})[sa.uid] = sa

    def _unname(self, sa: IkeSa) -> None:
        same = self.by_connection.get(sa.connection.name, {})
        same.pop(sa.uid, None)
        if not same:
            self.by_connection.pop(sa.connection.name, None)

    def forget_child(self, child: ChildSa) -> None:
        """No more timers for it."""
        self.children.pop(child.uid, None)
        for kind in lifetimes.CHILD_TIMERS:
            self.timers.cancel((kind, child.uid))

    def retry_child(self, sa: IkeSa, request: CreateChild, at: float) -> None:
        """Ask for a CHILD_SA again later."""
        self._retries.setdefault(sa.uid, []).append(request)
        self.timers.set((Timer.RETRY, sa.uid), at)

    def retries(self, sa: IkeSa) -> list[CreateChild]:
        """What is to be asked again, each once."""
        return self._retries.pop(sa.uid, [])

    # -- virtual addresses

    def load_pools(self, configs: Iterable[PoolConfig]) -> None:
        """Replace the pools. What is leased is known to whichever pool has the address now, and so is who had it."""
        before, self.pools = self.pools, {}
        for config in configs:
            pool = before.get(config.name)
            if pool is not None and (pool.config.first, pool.config.last) == (config.first, config.last):
                pool.config = config
            else:
                pool = Pool(config)
            self.pools[config.name] = pool
        find_rivals((*self.pools.values(), *self.grants))
        for sa in self.sas.values():
            sa.leases = [(self._pool_of(sa, pool, address), address) for pool, address in sa.leases]
        for name, pool in before.items():
            if self.pools.get(name) is not pool:
                for new in self.pools.values():
                    new.inherit(pool)

    def _pool_of(self, sa: IkeSa, pool: Pool, address: IpAddress) -> Pool:
        """The pool that is to take a lease back: the one that gave it, unless that is gone and another one has it."""
        if self.pools.get(pool.name) is pool or pool in self.grants:
            return pool
        peer = sa.path.remote, sa.path.remote_port
        for name in dict.fromkeys((pool.name, *sa.connection.pools, *self.pools)):
            new = self.pools.get(name)
            if new is not None and new.adopt(sa.whose, address, peer):
                return new
        return pool

    # -- which connection

    def candidates(self, path: Path) -> list[Connection]:
        """Connections that a stranger's first message may be for."""
        if 0 < self.settings.ike_sa_limit <= len(self.sas):
            return []
        return self.table.candidates(path)

    def connections_for(self, sa: IkeSa, peer_id: Identity, asked: Identity | None) -> list[Connection]:
        """Connections that an authenticated initiator may mean, the best first (RFC 4301 section 4.4.3: the PAD)."""
        assert sa.proposal is not None
        found: list[tuple[int, Connection]] = []
        called: dict[LocalAuth, bool] = {}
        names = self.table.may_have(peer_id)
        for connection in self.table.candidates(sa.path):
            fits = connection.name in names and connection.remote.id.matches(peer_id)
            if not fits:
                continue
            ours = self._fits_us(connection.local, asked, called)
            if not ours:
                continue
            fits += ours
            if connection is sa.connection or negotiate.choose(connection.proposals, [sa.proposal]) is not None:
                found.append((-fits, connection))
        found.sort(key=lambda item: item[0])
        return [connection for _, connection in found[:CONNECTIONS_MAX]]

    def _fits_us(self, local: LocalAuth, asked: Identity | None, known: dict[LocalAuth, bool]) -> int:
        """How exactly we are in a connection whom an initiator asks for, 0 if we are somebody else there. As in charon
        a connection that does not say who we are fits whom we can be. ``known``: what that was for others."""
        own = local.id
        if asked is None:
            return MATCH_ANY
        if own is not None:
            return MATCH_PERFECT if is_called(own, asked) else MATCH_NONE
        # many connections have one answer, for which all our certificates are looked at
        if local not in known:
            known[local] = self.credentials.can_be(local, asked)
        return MATCH_ANY if known[local] else MATCH_NONE
