"""The figures behind ``/metrics``, family by family, taken in slices so that nothing else has to wait for them.

What there is: ``ipsec.daemon.families``. Labels have configured names only, so that no peer can make series.
"""

from __future__ import annotations

import asyncio
import platform
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping
from importlib import metadata
from itertools import chain

from prometheus_client import Histogram, ProcessCollector
from prometheus_client.core import Metric

from ipsec.backend.userspace import UserspaceBackend
from ipsec.crypto.x509 import Certificate
from ipsec.daemon import families as f
from ipsec.daemon.families import Row, Series
from ipsec.daemon.health import Health, Phase
from ipsec.daemon.ike import IkeControl
from ipsec.daemon.traffic import Account, ChildName
from ipsec.esp.drops import DropReason
from ipsec.esp.engine import SaStats
from ipsec.esp.sa import SaParams
from ipsec.ike.engine import IkeEngine
from ipsec.ike.events import ChildUp, Event, IkeUp
from ipsec.ike.table import ConnectionTable

Manual = Callable[[], Iterator[tuple[str, SaParams, SaStats]]]
"name, parameters and counters of each manual SA"

#: seconds without giving way to the rest of the event loop
TURN_S = 0.002
LAG_S = 0.5

_HANDSHAKE_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_LAG_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_EXCHANGES = {"ike-init": "IKE_SA_INIT", "ike-auth": "IKE_AUTH", "create-child": "CREATE_CHILD_SA",
              "info": "INFORMATIONAL"}  # fmt: skip
_DIRECTIONS = ("in", "out")


class Pace:
    """Gives way to the event loop whenever TURN_S have passed."""

    def __init__(self) -> None:
        self._since = time.perf_counter()

    async def step(self) -> None:
        """After each small piece of work."""
        if time.perf_counter() - self._since > TURN_S:
            await asyncio.sleep(0)
            self._since = time.perf_counter()


class Metrics:
    """Collects the figures of one daemon. Everything belongs to the event loop's thread."""

    def __init__(self, backend: UserspaceBackend, health: Health, manual: Manual) -> None:
        self._backend = backend
        self._health = health
        self._manual = manual
        self.ike: IkeControl | None = None
        self._table: ConnectionTable | None = None
        "what was loaded when the counters were looked through"
        self._up: Counter[str] = Counter()
        self._starts: Counter[ChildName] = Counter()
        self._rekeys: Counter[ChildName] = Counter()
        self._handshakes = Histogram(
            f.HANDSHAKE.name, f.HANDSHAKE.help, f.HANDSHAKE.labels, registry=None, buckets=_HANDSHAKE_S
        )
        for role in ("initiator", "responder"):
            self._handshakes.labels(role)
        self._lag = Histogram(f.LAG.name, f.LAG.help, registry=None, buckets=_LAG_BUCKETS_S)
        self._process = ProcessCollector(registry=None)
        self._suites: set[str] = set()
        "of CHILD_SAs, as the last look found them"
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to take the event loop's pulse."""
        loop = asyncio.get_running_loop()

        def look(due: float) -> None:
            now = loop.time()
            self._lag.observe(max(now - due, 0.0))
            self._timer = loop.call_at(now + LAG_S, look, now + LAG_S)

        self._timer = loop.call_later(LAG_S, look, loop.time() + LAG_S)

    def stop(self) -> None:
        """Look no longer; safe in any state."""
        if self._timer is not None:
            self._timer.cancel()

    def attach(self, ike: IkeControl) -> None:
        """From now on its figures are there too."""
        self.ike = ike
        ike.observers.append(self._on_event)

    def detach(self) -> None:
        """They are no longer: it could not begin."""
        self.ike = self._table = None

    def _on_event(self, event: Event) -> None:
        if self.ike is not None and self.ike.engine.table is not self._table:
            self._table = self.ike.engine.table
            self._forget(self.ike.named())
        match event:
            case IkeUp():
                sa = event.sa
                self._up[sa.name] += 1
                role = "initiator" if sa.initiator else "responder"
                self._handshakes.labels(role).observe(max(sa.established_at - sa.created_at, 0.0))
            case ChildUp():
                name = event.child.ike.name, event.child.name
                (self._starts if event.replaces is None else self._rekeys)[name] += 1

    def _forget(self, known: Collection[ChildName]) -> None:
        """What is neither loaded nor up is counted no longer."""
        for counter in (self._starts, self._rekeys):
            for name in [name for name in counter if name not in known]:
                del counter[name]
        connections = {connection for connection, _ in known}
        for connection in [connection for connection in self._up if connection not in connections]:
            del self._up[connection]

    # -- all of it

    async def collect(self, pace: Pace) -> AsyncIterator[Series]:
        """Every family with its rows. Rows are made while they are asked for, and what they show may move meanwhile."""
        yield f.BUILD.series([((_version(), platform.python_version(), platform.machine(), self._backend.device), 1)])
        yield f.READY.series([((), self._health.ready().good)])
        yield f.HEALTHY.series([((), self._health.healthy().good)])
        for metric in (*self._lag.collect(), *self._process.collect()):
            yield _of_library(metric)
        if self.ike is not None:
            for series in chain(self._loaded(self.ike), self._negotiations(self.ike)):
                yield series
            async for series in self._connections(self.ike, pace):
                yield series
        if self._health.phase is Phase.RUNNING:
            yield f.SA_BYTES.series((labels, stats.bytes) for labels, stats in self._manual_sas())
            yield f.SA_PACKETS.series((labels, stats.packets) for labels, stats in self._manual_sas())
            yield f.SA_DROPS.series(
                ((name, reason.name), count)
                for (name, _), stats in self._manual_sas()
                for reason, count in stats.drops.items()
            )
            for series in data_path(self._backend):
                yield series
            suites = {params.suite.name for _, params, _ in self._manual()} | self._suites
            providers = self._backend.providers()
            yield f.PROVIDER.series([((suite, providers.get(suite, "")), 1) for suite in sorted(suites)])

    def _manual_sas(self) -> Iterator[tuple[tuple[str, str], SaStats]]:
        for name, params, stats in self._manual():
            yield (name, _DIRECTIONS[params.direction]), stats

    def _loaded(self, ike: IkeControl) -> Iterator[Series]:
        """Certificates, pools and RADIUS servers."""
        kinds = certificates(ike.engine)
        yield f.CERTIFICATE.series(
            ((str(one.subject), f"{one.serial:x}", kind), one.not_after.timestamp()) for one, kind in kinds.items()
        )
        pools = list(ike.engine.pools.values())
        yield f.POOL_SIZE.series([((pool.name,), pool.size) for pool in pools])
        leases = [((pool.name, state), count) for pool in pools
                  for state, count in (("online", pool.online), ("offline", pool.offline))]  # fmt: skip
        yield f.POOL_LEASES.series(leases)
        states = ike.outside.radius_states
        yield f.RADIUS.series(
            ((one.server.name, one.kind, result), count) for one in states for result, count in one.counters.items()
        )
        yield f.RADIUS_ANSWERS.series(((one.server.name, one.kind), one.silent_s is None) for one in states)
        results = list(ike.engine.eap_results.items())
        yield f.EAP.series(((method, "success" if good else "failure"), times) for (method, good), times in results)

    def _negotiations(self, ike: IkeControl) -> Iterator[Series]:
        """IKEv2 in all."""
        engine = ike.engine
        count = engine.counters.total
        yield f.HALF_OPEN.series([((), len(engine.half_open))])
        yield f.HALF_OPEN_LIMIT.series([((), engine.settings.half_open_limit)])
        yield f.REFUSED.series([((), count("half-open-refused"))])
        yield f.COOKIES.series([((result,), count(f"cookie-{result}")) for result in ("asked", "good", "wrong")])
        messages = [
            ((exchange, direction, kind), count(f"{name}-{direction}-{short}"))
            for name, exchange in _EXCHANGES.items()
            for direction in _DIRECTIONS
            for short, kind in (("req", "request"), ("resp", "response"))
        ]
        yield f.MESSAGES.series(messages)
        yield f.INVALID.series([(("message",), count("invalid")), (("spi",), count("invalid-spi"))])
        yield f.COLLISIONS.series([(("ike",), count("ike-collision")), (("child",), count("child-collision"))])
        for metric in self._handshakes.collect():
            yield _of_library(metric)

    async def _connections(self, ike: IkeControl, pace: Pace) -> AsyncIterator[Series]:
        """Connections and children: those that are loaded, and those that still carry traffic."""
        engine = ike.engine
        for uid in ike.children.installed():
            ike.children.look(uid)
            await pace.step()
        sas: Counter[str] = Counter()
        children: Counter[ChildName] = Counter()
        self._suites.clear()
        for sa in list(engine.sas.values()):
            sas[sa.name] += sa.established
            for child in sa.children_up():
                children[sa.name, child.name] += 1
                if child.suite is not None:
                    self._suites.add(child.suite.name)
            await pace.step()
        loaded = list(engine.table.by_name.values())
        to_be_up = self._health.wanted()
        wanted: dict[ChildName, bool] = {}
        for connection in loaded:
            for one in connection.children:
                if not one.shunt:
                    wanted[connection.name, one.name] = one.name in to_be_up.get(connection.name, ())
            await pace.step()
        names = [connection.name for connection in loaded]
        count = engine.counters.total
        yield f.CONFIGURED.series(((name,), 1) for name in names)
        yield f.IKE_SAS.series(((name,), sas[name]) for name in names)
        yield f.IKE_UP.series(((name,), self._up[name]) for name in names)
        rekeys = ("ike-rekey-init", "ike-rekey-resp")
        yield f.IKE_REKEYS.series(((name,), sum(count(how, name) for how in rekeys)) for name in names)
        yield f.RETRANSMITS.series(((name,), count("retransmit", name)) for name in names)
        failures = list(engine.problems.counts.items())
        yield f.FAILURES.series(((name, cause.value), times) for (name, cause), times in failures)
        await pace.step()
        async for series in self._children(ike, wanted, children, pace):
            yield series

    async def _children(
        self, ike: IkeControl, wanted: Mapping[ChildName, bool], children: Counter[ChildName], pace: Pace
    ) -> AsyncIterator[Series]:
        """``wanted``: those that are loaded, and whether they are to be up; ``children``: how many are."""
        accounts = ike.children.accounts
        yield f.CHILD_CONFIGURED.series((name, 1) for name in wanted)
        yield f.CHILD_WANTED.series(wanted.items())
        known = list({**wanted, **children})
        both = []
        for name in known:
            both.append((name, accounts.of(name)))
            await pace.step()
        yield f.CHILD_UP.series((name, children[name] > 0) for name in known)
        yield f.CHILD_SAS.series((name, children[name]) for name in known)
        yield f.CHILD_STARTS.series((name, self._starts[name]) for name in known)
        yield f.CHILD_REKEYS.series((name, self._rekeys[name]) for name in known)
        yield f.CHILD_BYTES.series(_by_direction(both, lambda account: account.bytes))
        yield f.CHILD_PACKETS.series(_by_direction(both, lambda account: account.packets))
        # the data path's clock is the monotonic one
        offset = time.time() - time.monotonic()
        last = _by_direction(both, lambda account: account.last_use)
        yield f.CHILD_LAST.series(((labels, value + offset) for labels, value in last if value))
        yield f.CHILD_DROPS.series(
            ((*name, reason.name), dropped)
            for name, (inbound, outbound) in both
            if inbound.drops or outbound.drops
            for reason, dropped in (Counter(inbound.drops) + Counter(outbound.drops)).items()
        )


def certificates(engine: IkeEngine) -> dict[Certificate, str]:
    """All that are loaded: ``own``, ``ca`` or ``peer``."""
    credentials = engine.credentials
    kinds: dict[Certificate, str] = {}
    for connection in engine.table.by_name.values():
        for auth in connection.all_auth:
            kinds.update(dict.fromkeys(auth.certs, "peer"))
        for remote in connection.all_remote:
            kinds.update(dict.fromkeys(remote.cacerts, "ca"))
    kinds.update(dict.fromkeys(credentials.certificates, "peer"))
    kinds.update(dict.fromkeys(credentials.anchors, "ca"))
    own = [certificate for certificate in kinds if credentials.private_key_for(certificate) is not None]
    return {**kinds, **dict.fromkeys(own, "own")}


def data_path(backend: UserspaceBackend) -> Iterator[Series]:
    """What moves packets, and what it drops."""
    drops = backend.drops()
    yield f.DROPS.series([((_direction(reason), reason.name), drops.get(reason, 0)) for reason in DropReason if reason])
    counters = backend.counters()

    def both(tun: bool, what: str) -> list[Row]:
        # what comes in from the network is written to the device
        ends = (("in", "tx"), ("out", "rx")) if tun else (("in", "rx"), ("out", "tx"))
        prefix = "tun" if tun else "net"
        return [((direction,), counters.get(f"{prefix}_{end}_{what}", 0)) for direction, end in ends]

    for family, tun, what in (
        (f.TUN_PACKETS, True, "packets"),
        (f.TUN_BYTES, True, "bytes"),
        (f.TUN_FRAMES, True, "frames"),
        (f.NET_DATAGRAMS, False, "datagrams"),
        (f.NET_BYTES, False, "bytes"),
        (f.NET_TRAINS, False, "messages"),
        (f.NET_CALLS, False, "calls"),
    ):
        yield family.series(both(tun, what))
    batches = backend.batches()
    yield f.BATCH.histogram(
        ((direction,), batches[direction], counters.get(f"net_{end}_datagrams", 0))
        for direction, end in (("in", "rx"), ("out", "tx"))
        if direction in batches
    )
    yield f.EVENTS.series([((event,), counters.get(name, 0)) for name, event in f.PATH_EVENTS.items()])
    ike = [((name.removeprefix("ike_"),), count) for name, count in counters.items() if name.startswith("ike_")]
    yield f.IKE_DATAGRAMS.series(ike)
    yield f.OFFLOAD.series([((name,), on) for name, on in backend.offloads().items()])
    yield f.WORKERS.series([((), backend.workers)])


def _by_direction(
    accounts: Iterable[tuple[ChildName, tuple[Account, Account]]], figure: Callable[[Account], float]
) -> Iterator[Row]:
    for name, pair in accounts:
        for direction, account in zip(_DIRECTIONS, pair, strict=True):
            yield (*name, direction), figure(account)


def _direction(reason: DropReason) -> str:
    return reason.name.partition("_")[0].lower()


def _of_library(metric: Metric) -> Series:
    # when a figure was made is of no use, and another series for each
    samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
    return Series(metric.name, metric.type, metric.documentation, samples)


def _version() -> str:
    try:
        return metadata.version("ipsec")
    except metadata.PackageNotFoundError:
        return "unknown"
