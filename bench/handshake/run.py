"""The control plane: handshakes in bulk, waiting times, ten thousand tunnels, a storm and a flood; beside charon."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from bench.e2e.peers import NotInstalled
from bench.handshake import live, memory
from bench.handshake.gateways import GATEWAY_CONF, CharonGateway, Gateway, OurGateway, make_pair, site_conf
from bench.handshake.initiators import Initiators
from bench.results import Metric, Sample
from bench.session import Options, Session
from bench.stats import quantile
from bench.topology import OUTER, Lab, LabError, Namespace, Pair

KINDS: dict[str, type[Gateway]] = {"ipsec": OurGateway, "strongswan": CharonGateway}
TITLES = {"ipsec": "ipsecd", "strongswan": "strongSwan"}
#: handshakes under way at once, where that is not what is measured
WINDOW = 16
FLOOD_TOOL = Path(__file__).with_name("flood.py")
FLOOD_AHEAD_S = 0.3
#: between two initiations: the first tunnel is gone at both ends
PAUSE_S = 0.5
#: a daemon that has not brought all tunnels up by then is not given more
GROW_LIMIT_S = 80.0


@dataclass(frozen=True)
class Depth:
    """How much."""

    rounds: int
    burst: int
    windows: tuple[int, ...]
    starts: int
    "of two daemons that have one tunnel"
    initiations: int
    tunnels: int
    storm: int
    stall: int
    floods: tuple[int, ...]
    "forged messages per second"


QUICK = Depth(2, 150, (16,), 1, 5, 1000, 200, 500, (5000,))
FULL = Depth(5, 300, (1, 4, 16, 64, 256), 5, 15, 10_000, 1000, 1000, (1000, 5000, 20_000))


def _metric(name: str, title: str, unit: str, more: bool = False, digits: int = 1) -> Metric:
    return Metric(name, "handshake", title, unit, more, digits)


PER_CPU = _metric("handshakes_per_cpu", "IKEv2 handshakes per CPU second of the daemon", "/s", True, 0)
PER_S = _metric("handshakes", "IKEv2 handshakes per second", "/s", True, 0)
TOOK = _metric("handshake_ms", "one handshake among others, median", "ms")
FIRST = _metric("first_packet", "from initiate to the first packet through the tunnel", "ms")
FRESH = _metric("fresh_first_packet", "the same, the first time after both have started", "ms")
SIZE = _metric("tunnel_memory", "memory of one more tunnel", "KiB")
UP = _metric("tunnels_up", "time for all tunnels to come up", "s")
LIST = _metric("list_sas", "answer to list-sas", "ms")
STALL = _metric("stall", "longest stall of the event loop", "ms")
BUSY = _metric("stall_busy", "most CPU time between two turns of the event loop", "ms")
STORM = _metric("rekey_storm", "rekeying of every CHILD_SA at once", "/s", True, 0)
FLOOD = _metric("flood", "honest handshakes per second during a flood of forged IKE_SA_INIT", "/s", True, 0)
FLOOD_MS = _metric("flood_ms", "an honest handshake during the flood, 99th percentile", "ms", digits=0)


def _depth(options: Options) -> Depth:
    return QUICK if options.quick else FULL


def _kinds(options: Options) -> list[str]:
    return [kind for kind in KINDS if not options.peers or kind in options.peers]


@contextmanager
def _gateways(session: Session, lab: Lab, what: str) -> Iterator[dict[str, tuple[Gateway, live.Load]]]:
    """A gateway of each kind with a load that can reach it."""
    running: dict[str, tuple[Gateway, live.Load]] = {}
    pairs = []
    try:
        for kind in _kinds(session.options):
            pair = make_pair(lab, f"{what}-{kind}")
            pairs.append(pair)
            gateway = KINDS[kind](lab, pair.a, lab.scratch / f"{what}-{kind}")
            try:
                gateway.start(GATEWAY_CONF)
            except NotInstalled as missing:
                session.skip(str(missing))
                continue
            session.results.subjects.setdefault(kind, {"title": TITLES[kind]})
            running[kind] = gateway, live.Load(pair.b)
        yield running
    finally:
        for gateway, load in running.values():
            load.close()
            gateway.kill()
        for pair in pairs:
            lab.remove(pair)


def live_handshakes(session: Session, lab: Lab) -> None:
    """Bursts of handshakes at rising concurrency, the daemons in turns."""
    depth = _depth(session.options)
    with _gateways(session, lab, "live") as running:
        for gateway, load in running.values():
            load.run(depth.burst, WINDOW, gateway.pid)
        for _ in range(depth.rounds):
            for window in depth.windows:
                for kind, (gateway, load) in running.items():
                    burst = load.run(depth.burst if window > 1 else depth.burst // 3, window, gateway.pid)
                    detail = {"again": len(burst.failed), "resent": burst.retransmitted}
                    sample = Sample(burst.count / burst.seconds, burst.seconds, detail=detail)
                    session.add(PER_S, kind, sample, window=window)
                    took = sorted(burst.took_ms)
                    spread = {"p50": quantile(took, 0.5), "p99": quantile(took, 0.99), "most": took[-1]}
                    session.add(TOOK, kind, Sample(spread["p50"], detail=spread), window=window)
                    if window == WINDOW:
                        session.add(PER_CPU, kind, Sample(burst.per_cpu_second))


def first_packet(session: Session, lab: Lab) -> None:
    """The time that a user waits, the daemons in turns; the first time after a start counts by itself."""
    depth = _depth(session.options)
    for start in range(depth.starts):
        with _ends(session, lab, f"first{start}") as running:
            for number in range(depth.initiations // depth.starts + 1):
                for kind, (pair, ends) in running.items():
                    with live.echo(pair.b):
                        took = live.first_packet_ms(pair, ends[0])
                    session.add(FIRST if number else FRESH, kind, Sample(took))
                    ends[0].take_down()
                    time.sleep(PAUSE_S)


@contextmanager
def _ends(session: Session, lab: Lab, what: str) -> Iterator[dict[str, tuple[Pair, list[Gateway]]]]:
    """Two gateways of each kind that can have one tunnel."""
    running: dict[str, tuple[Pair, list[Gateway]]] = {}
    pairs = []
    try:
        for kind in _kinds(session.options):
            pair = make_pair(lab, f"{what}-{kind}")
            pairs.append(pair)
            ends = [KINDS[kind](lab, end, lab.scratch / f"{end.name}-{what}") for end in pair.ends]
            try:
                for index, end in enumerate(ends):
                    end.start(site_conf(index))
            except NotInstalled as missing:
                session.skip(str(missing))
                continue
            session.results.subjects.setdefault(kind, {"title": TITLES[kind]})
            running[kind] = pair, ends
        yield running
        for _, ends in running.values():
            for end in ends:
                end.stop()
    finally:
        for pair in pairs:
            lab.remove(pair)


def tunnels(session: Session, lab: Lab) -> None:
    """The slope of resident memory from a fifth of the tunnels to all, how long they took, the cost of listing them."""
    count = _depth(session.options).tunnels
    session.add(SIZE, "engine", Sample(memory.engine_memory(count // 4) / 1024))
    with _gateways(session, lab, "many") as running:
        for kind, (gateway, load) in running.items():
            _grow(session, kind, gateway, load, count)


def _grow(session: Session, kind: str, gateway: Gateway, load: live.Load, count: int) -> None:
    points: list[tuple[int, int]] = []
    up, spent = 0, 0.0
    for goal in (count // 5, count):
        while up < goal and spent < GROW_LIMIT_S:
            step = min(500, goal - up)
            spent += load.run(step, WINDOW, gateway.pid).seconds
            up += step
        points.append((up, memory.resident(gateway.pid)))
        if up < goal:
            session.skip(f"{TITLES[kind]}: more than {up} tunnels, which took {spent:.0f} s")
            break
        session.add(UP, kind, Sample(spent), tunnels=goal)
        took, listed = gateway.list_sas()
        if listed != up:
            session.fail(f"list-sas of {TITLES[kind]}: {listed} IKE_SAs, {up} are up")
        session.add(LIST, kind, Sample(took * 1000), tunnels=goal)
    if points[-1][0] > points[0][0]:
        grown = (points[-1][1] - points[0][1]) / (points[-1][0] - points[0][0])
        session.add(SIZE, kind, Sample(grown / 1024))


def storm(session: Session, lab: Lab) -> None:
    """Every peer rekeys its CHILD_SA at the same moment."""
    depth = _depth(session.options)
    with _gateways(session, lab, "storm") as running:
        for gateway, load in running.values():
            load.run(depth.storm, WINDOW, gateway.pid, keep=True)
        for _ in range(depth.rounds):
            for kind, (gateway, load) in running.items():
                burst = load.rekey(gateway.pid)
                detail = {"cpu_s": round(burst.cpu_s, 3), "resent": burst.retransmitted}
                sample = Sample(burst.count / burst.seconds, burst.seconds, detail=detail)
                session.add(STORM, kind, sample, tunnels=depth.storm)


def stall(session: Session, lab: Lab) -> None:
    """What else the event loop of ipsecd would have had to wait."""
    if "ipsec" not in _kinds(session.options):
        return
    pair = make_pair(lab, "stall")
    load = live.Load(pair.b)
    count = _depth(session.options).stall
    try:
        gateway = OurGateway(lab, pair.a, lab.scratch / "stall", "bench.handshake.ticking")
        gateway.start(GATEWAY_CONF)
        for _ in range(3):
            for window in (WINDOW, count):
                live.stall_ms(gateway)
                burst = load.run(count, window, gateway.pid)
                longest, busy = live.stall_ms(gateway)
                detail = {"again": len(burst.failed)}
                session.add(STALL, "ipsec", Sample(longest, detail=detail), window=window)
                session.add(BUSY, "ipsec", Sample(busy), window=window)
    finally:
        load.close()
        lab.remove(pair)


def flood(session: Session, lab: Lab) -> None:
    """Honest peers come up while somebody sends first messages from addresses that are not his."""
    depth = _depth(session.options)
    with _gateways(session, lab, "flood") as running:
        for gateway, load in running.values():
            load.run(depth.burst, WINDOW, gateway.pid)
        for rate in (0, *depth.floods):
            for _ in range(min(depth.rounds, 3)):
                for kind, (gateway, load) in running.items():
                    with _forged(lab, load.where, rate):
                        burst = load.run(depth.burst // 2, WINDOW, gateway.pid)
                    detail = {"again": len(burst.failed), "cpu_s": round(burst.cpu_s, 3)}
                    sample = Sample(burst.count / burst.seconds, burst.seconds, detail=detail)
                    session.add(FLOOD, kind, sample, forged_per_s=rate)
                    session.add(FLOOD_MS, kind, Sample(quantile(sorted(burst.took_ms), 0.99)), forged_per_s=rate)


@contextmanager
def _forged(lab: Lab, where: Namespace, rate: int) -> Iterator[None]:
    if not rate:
        yield
        return
    stranger = Initiators("psk", memory.GATEWAY, memory.SETTINGS)
    stranger.initiate(0, IPv4Address(memory.FIRST_PEER), 0.0)
    message = next(iter(stranger.engine.datagrams_to_send()))[0]
    file = lab.scratch / "forged"
    file.write_bytes(message)
    with file.open() as source:
        process = lab.spawn([sys.executable, "-I", str(FLOOD_TOOL), "--target", OUTER[0], "--rate", str(rate),
                             "--seconds", str(live.GIVE_UP_S)], where=where, stdin=source.fileno(),
                            stdout=subprocess.DEVNULL)  # fmt: skip
    time.sleep(FLOOD_AHEAD_S)
    try:
        yield
        if process.poll() is not None:
            raise LabError("the flood ended before the handshakes did")
    finally:
        lab.stop(process)


@dataclass(frozen=True)
class Case:
    """One name of ``--only``."""

    name: str
    run: Callable[[Session, Lab], None]
    full_s: float
    quick_s: float | None
    "None: left out of a quick run"


CASES = (
    Case("live", live_handshakes, 45, 6), Case("first", first_packet, 35, 10), Case("tunnels", tunnels, 110, None),
    Case("storm", storm, 18, None), Case("stall", stall, 15, None), Case("flood", flood, 22, 8),
)  # fmt: skip
NAMES = frozenset(case.name for case in CASES)


def _chosen(options: Options) -> list[tuple[Case, float]]:
    found = []
    for case in CASES:
        takes = case.quick_s if options.quick else case.full_s
        # what is asked for by name is never left out
        if case.name in options.only:
            takes = takes or case.full_s
        if takes is not None and options.wants(case.name) and (_kinds(options) or not options.peers):
            found.append((case, takes))
    return found


def expected_s(options: Options) -> float:
    """About how long this part takes."""
    return sum(takes for _, takes in _chosen(options))


def needs_root(options: Options) -> bool:
    """Whether anything of it does."""
    return bool(_chosen(options))


def run(session: Session, lab: Lab | None) -> None:
    """Every case of the plan. One that fails is reported, and the next one goes on."""
    for case, takes in _chosen(session.options):
        assert lab is not None
        session.heading("control plane")
        with session.step(case.name, takes):
            try:
                case.run(session, lab)
            except (LabError, OSError) as error:
                session.fail(f"{case.name}: {error}")
