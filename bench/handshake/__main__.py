"""``python -m bench.handshake``: IKEv2 handshakes in memory and with daemons, beside charon. See bench/README.md."""

from __future__ import annotations

import argparse
import json
import logging
import signal
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from bench.e2e.report import machine
from bench.e2e.topology import LabError
from bench.handshake import live, memory
from bench.handshake.gateways import GATEWAY_CONF, Bench, CharonGateway, Gateway, OurGateway, make_pair, site_conf
from bench.handshake.initiators import AUTHENTICATIONS

RESULTS = Path(__file__).resolve().parents[1] / "results"
PARTS = ("memory", "live", "latency", "size", "stall")
KINDS: dict[str, type[Gateway]] = {"ipsecd": OurGateway, "charon": CharonGateway}
#: handshakes under way at once, where that is not what is measured
WINDOW = 16


@dataclass(frozen=True)
class Depth:
    """How long and how often."""

    rounds: int
    in_memory: int
    "handshakes of one round"
    burst: int
    initiations: int
    tunnels: int
    "for memory"
    stall: int


QUICK = Depth(rounds=3, in_memory=150, burst=250, initiations=5, tunnels=2000, stall=1000)
FULL = Depth(rounds=7, in_memory=400, burst=500, initiations=15, tunnels=10_000, stall=1000)


@dataclass
class Results:
    """Every sample by measurement and subject."""

    samples: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def add(self, what: str, who: str, value: float) -> None:
        """Keep one, and say so."""
        self.samples.setdefault(what, {}).setdefault(who, []).append(value)
        print(f"  {what:34} {who:10} {value:10.2f}", file=sys.stderr, flush=True)

    def median(self, what: str, who: str) -> float | None:
        """None if it was not measured."""
        values = self.samples.get(what, {}).get(who)
        return statistics.median(values) if values else None


RATE, WALL, FIRST = "handshakes per CPU second", "handshakes per second", "initiate to first packet, ms"
AGAIN = "attempts made again, {} at once"
SIZE, STALL, PEAK = "KiB per tunnel", "longest stall, 16 at a time, ms", "longest stall, 1000 at once, ms"
#: measurement, subject, divisor's subject or None, limit, whether at least
TARGETS: tuple[tuple[str, str, str | None, float, bool], ...] = (
    (RATE, "ipsecd", None, 600, True),
    (FIRST, "ipsecd", None, 50, False),
    (FIRST, "ipsecd", "charon", 1.0, False),
    (SIZE, "ipsecd", None, 30, False),
    (STALL, "ipsecd", None, 50, False),
    (PEAK, "ipsecd", None, 50, False),
)


def in_memory(depth: Depth, results: Results) -> None:
    """Engines alone, the ways to authenticate in turns."""
    benches = {name: memory.Direct(name) for name in AUTHENTICATIONS}
    for direct in benches.values():
        direct.run(20)
    for _ in range(depth.rounds):
        for name, direct in benches.items():
            results.add("engine alone, " + RATE, name, direct.run(depth.in_memory).per_cpu_second)


def with_daemons(lab: Bench, depth: Depth, results: Results, kinds: Sequence[str]) -> None:
    """Bursts of handshakes, the daemons in turns."""
    running: dict[str, tuple[Gateway, live.Load]] = {}
    for kind in kinds:
        pair = make_pair(lab, kind)
        gateway = KINDS[kind](lab, pair.a, lab.scratch / kind)
        gateway.start(GATEWAY_CONF)
        running[kind] = gateway, live.Load(pair.b)
    for number in range(depth.rounds + 1):
        for kind, (gateway, load) in running.items():
            burst = load.run(depth.burst, WINDOW, gateway.pid)
            if number:
                results.add(RATE, kind, burst.per_cpu_second)
                results.add(WALL, kind, burst.count / burst.seconds)
    _stop(running)


def latency(lab: Bench, depth: Depth, results: Results, kinds: Sequence[str]) -> None:
    """The time that a user waits, the daemons in turns."""
    running = {}
    for kind in kinds:
        pair = make_pair(lab, f"{kind}-2")
        ends = [KINDS[kind](lab, end, lab.scratch / f"{end.name}-site") for end in pair.ends]
        for index, end in enumerate(ends):
            end.start(site_conf(index))
        running[kind] = pair, ends
    for number in range(depth.initiations + 1):
        for kind, (pair, ends) in running.items():
            with live.echo(pair.b):
                took = live.first_packet_ms(pair, ends[0])
            if number:
                results.add(FIRST, kind, took)
            ends[0].take_down()
            time.sleep(0.5)
    for _, ends in running.values():
        for end in ends:
            end.stop()


def size(lab: Bench, depth: Depth, results: Results, kinds: Sequence[str]) -> None:
    """The slope of resident memory, from a fifth of the tunnels to all."""
    results.add(SIZE, "engine", memory.engine_memory(depth.tunnels) / 1024)
    for kind in kinds:
        pair = make_pair(lab, f"{kind}-3")
        gateway = KINDS[kind](lab, pair.a, lab.scratch / f"{kind}-size")
        gateway.start(GATEWAY_CONF)
        load = live.Load(pair.b)
        sizes = []
        for count in (depth.tunnels // 5, depth.tunnels - depth.tunnels // 5):
            for begun in range(0, count, 500):
                load.run(min(500, count - begun), WINDOW, gateway.pid)
            sizes.append(memory.resident(gateway.pid))
        results.add(SIZE, kind, (sizes[1] - sizes[0]) / count / 1024)
        _stop({kind: (gateway, load)})


def stall(lab: Bench, depth: Depth, results: Results) -> None:
    """What else the event loop of ipsecd would have had to wait."""
    pair = make_pair(lab, "stall")
    gateway = OurGateway(lab, pair.a, lab.scratch / "stall", "bench.handshake.ticking")
    gateway.start(GATEWAY_CONF)
    load = live.Load(pair.b)
    for _ in range(3):
        for what, window in ((STALL, WINDOW), (PEAK, depth.stall)):
            live.stall_ms(gateway)
            burst = load.run(depth.stall, window, gateway.pid)
            results.add(AGAIN.format(window), "ipsecd", len(burst.failed))
            longest, busy = live.stall_ms(gateway)
            results.add(what, "ipsecd", longest)
            results.add(what, "busy", busy)
    _stop({"": (gateway, load)})


def _stop(running: dict[str, tuple[Gateway, live.Load]]) -> None:
    for gateway, load in running.values():
        load.close()
        gateway.kill()


def verdicts(results: Results) -> list[dict[str, Any]]:
    """Every target for which there are samples. A stall counts with its worst sample, all else with the median."""
    found = []
    for what, who, other, limit, at_least in TARGETS:
        value = max(results.samples.get(what, {}).get(who, ()), default=None) if what in (STALL, PEAK) else None
        value = value if value is not None else results.median(what, who)
        if value is None:
            continue
        title = f"{what}, {who}"
        if other is not None:
            divisor = results.median(what, other)
            if not divisor:
                continue
            value, title = value / divisor, f"{what}, {who} / {other}"
        met = value >= limit if at_least else value <= limit
        found.append({"what": title, "value": value, "limit": limit, "at_least": at_least, "met": met})
    return found


def show(results: Results) -> None:
    """The tables."""
    print(f"\n{'measurement':46}{'subject':>10}{'median':>10}{'single rounds':>22}")
    for what, by_subject in results.samples.items():
        for who, values in by_subject.items():
            spread = f"{min(values):.1f}-{max(values):.1f}"
            print(f"{what:46}{who:>10}{statistics.median(values):>10.1f}{spread:>22}")
    for what in (RATE, WALL, FIRST, SIZE):
        ours, theirs = (results.median(what, who) for who in KINDS)
        if ours and theirs:
            print(f"{what:46}{'ratio':>10}{ours / theirs:>10.2f}")
    print(f"\n{'target':58}{'value':>10}{'':>10}")
    for row in verdicts(results):
        sign = ">=" if row["at_least"] else "<="
        verdict = "met" if row["met"] else "MISSED"
        print(f"{row['what']:58}{row['value']:>10.2f}{sign + format(row['limit'], 'g'):>10}  {verdict}")
    for failure in results.failures:
        print(f"failed: {failure}")


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.handshake", description="Measure IKEv2 handshakes.")
    parser.add_argument("--quick", action="store_true", help="about 2 minutes")
    parser.add_argument("--only", metavar="LIST", default=",".join(PARTS), help=f"of: {','.join(PARTS)}")
    parser.add_argument("--peers", metavar="LIST", default=",".join(KINDS), help=f"of: {','.join(KINDS)}")
    parser.add_argument("--rounds", type=int, help="how often each measurement is repeated")
    parser.add_argument("--json", type=Path, help="JSON file (default: one in bench/results/ named after the time)")
    parser.add_argument("--check", action="store_true", help="exit 1 if a target is missed")
    args = parser.parse_args(arguments)
    for option, known in (("only", PARTS), ("peers", tuple(KINDS))):
        chosen = tuple(getattr(args, option).split(","))
        if not set(chosen) <= set(known):
            parser.error(f"--{option}: not all of {', '.join(chosen)} are in {', '.join(known)}")
        setattr(args, option, chosen)
    return args


def measure(args: argparse.Namespace, depth: Depth, results: Results) -> None:
    """All parts that are wanted. A part that fails is reported, and the next one goes on."""
    if "memory" in args.only:
        in_memory(depth, results)
    if not set(args.only) - {"memory"}:
        return
    lab = Bench()
    with lab:
        parts: dict[str, Callable[[], None]] = {
            "live": lambda: with_daemons(lab, depth, results, args.peers),
            "latency": lambda: latency(lab, depth, results, args.peers),
            "size": lambda: size(lab, depth, results, args.peers),
            "stall": lambda: stall(lab, depth, results),
        }
        for name, part in parts.items():
            if name in args.only:
                try:
                    part()
                except LabError as error:
                    results.failures.append(f"{name}: {error}")
                    print(f"  {name}: {error}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the tables, write the JSON file. 1 on failure, or with --check on a missed target."""
    args = parse_arguments(arguments)
    base = QUICK if args.quick else FULL
    depth = Depth(**{**vars(base), "rounds": args.rounds or base.rounds})
    logging.getLogger("ipsec").setLevel(logging.ERROR)
    signal.signal(signal.SIGTERM, _interrupt)
    results = Results()
    started = time.monotonic()
    try:
        measure(args, depth, results)
    except LabError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: everything that was started is gone again", file=sys.stderr)
        return 130
    out = args.json or RESULTS / time.strftime("handshake-%Y%m%d-%H%M%S.json")
    document = {
        "schema": 1, "kind": "handshake", "when": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "took_s": round(time.monotonic() - started, 1), "depth": vars(depth), "machine": machine(),
        "samples": results.samples, "checks": verdicts(results), "failures": results.failures,
    }  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(document, indent=1) + "\n")
    show(results)
    print(f"\nwritten: {out}")
    missed = any(not row["met"] for row in verdicts(results))
    return 1 if results.failures or (args.check and missed) else 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
