"""``python -m bench.e2e``: tunnels side by side on this machine. Needs root; see bench/README.md."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from bench.e2e import measure, report
from bench.e2e.measure import METRICS, Sample, Tunnel
from bench.e2e.peers import PEERS, make_peer
from bench.e2e.topology import Lab, LabError

RESULTS = Path(__file__).resolve().parents[1] / "results"

#: what is measured, and on which tunnels
PLAN: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("tcp1", ("strongswan", "ipsec", "copy", "plain", "single", "bare", "wire")),
    ("tcp4", ("strongswan", "ipsec", "plain")),
    ("reverse", ("strongswan", "ipsec", "plain", "single", "bare")),
    ("bidir", ("strongswan", "ipsec", "plain")),
    ("udp64", ("strongswan", "ipsec", "plain")),
    ("pps64", ("strongswan", "ipsec", "plain")),
    ("rtt", ("strongswan", "ipsec", "plain")),
    ("rttloop", ("strongswan", "ipsec", "busy", "plain")),
    ("memory", ("strongswan", "ipsec")),
    ("idle", ("strongswan", "ipsec")),
)
#: a metric whose value does not depend on chance is taken once
ONCE = frozenset(("memory", "idle"))


Steps = list[tuple[str, tuple[str, ...]]]


@dataclass(frozen=True)
class Depth:
    """How long and how often."""

    seconds: float
    "per measurement"
    rounds: int
    idle_s: float
    once: frozenset[str] = field(default=ONCE)
    skip: frozenset[str] = frozenset()


QUICK = Depth(
    seconds=1.5,
    rounds=2,
    idle_s=3.0,
    once=ONCE | {"udp64"},
    skip=frozenset(("pps64", "rttloop", "wire", "busy")),
)
FULL = Depth(seconds=5.0, rounds=5, idle_s=10.0)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.e2e", description="Measure tunnels side by side.")
    parser.add_argument("--quick", action="store_true", help="about 1.5 minutes instead of a quarter of an hour")
    parser.add_argument("--only", metavar="LIST", help=f"measurements, of: {','.join(METRICS)}")
    parser.add_argument("--peers", metavar="LIST", help=f"tunnels, of: {','.join(PEERS)}")
    parser.add_argument("--rounds", type=int, help="how often each measurement is repeated")
    parser.add_argument("--seconds", type=float, help="how long one measurement takes")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="a setting for every ipsecd")
    parser.add_argument("--out", type=Path, help="JSON file (default: one in bench/results/ named after the time)")
    parser.add_argument("--check", action="store_true", help="exit 1 if a target is missed")
    args = parser.parse_args(arguments)
    if any("=" not in setting for setting in args.set):
        parser.error("--set takes KEY=VALUE, such as workers=1")
    args.set = dict(setting.split("=", 1) for setting in args.set)
    for option, known in (("only", METRICS), ("peers", PEERS)):
        chosen = getattr(args, option)
        names = tuple(chosen.split(",")) if chosen else None
        for name in names or ():
            if name not in known:
                parser.error(f"--{option}: {name!r} is not one of {', '.join(known)}")
        setattr(args, option, names)
    return args


def plan(args: argparse.Namespace, depth: Depth) -> Steps:
    """The measurements to make, each with its tunnels. What is asked for by name is never skipped."""
    steps = []
    for metric, peers in PLAN:
        if metric not in (args.only or (set(METRICS) - depth.skip)):
            continue
        chosen = tuple(p for p in peers if (p in args.peers if args.peers else p not in depth.skip))
        if chosen:
            steps.append((metric, chosen))
    return steps


def run_rounds(lab: Lab, tunnels: dict[str, Tunnel], steps: Steps, depth: Depth, results: report.Results) -> None:
    """Round after round, each measurement on one tunnel after the other, so that drift of the machine hits all."""
    for number in range(depth.rounds):
        for metric, peers in steps:
            if number and metric in depth.once:
                continue
            if metric == "idle":
                together = [tunnels[peer] for peer in peers if peer in tunnels]
                for peer, sample in measure.idle(together, depth.idle_s).items():
                    results.add(metric, peer, sample)
                continue
            for peer in peers:
                if peer in tunnels:
                    _take(lab, tunnels[peer], metric, number, depth.seconds, results)


def _take(lab: Lab, tunnel: Tunnel, metric: str, number: int, seconds: float, results: report.Results) -> None:
    try:
        sample: Sample = METRICS[metric].measure(lab, tunnel, seconds)
    except LabError as error:
        results.failures.append(f"{metric} {tunnel.peer.name} round {number + 1}: {error}")
        print(f"  {metric:8} {tunnel.peer.name:11} FAILED: {error}", file=sys.stderr, flush=True)
        return
    results.add(metric, tunnel.peer.name, sample)
    line = f"  round {number + 1}  {metric:8} {tunnel.peer.name:11} {sample.value:10.3f} {METRICS[metric].unit}"
    print(line, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, write the JSON file. 1 on failure, or with --check on a missed target."""
    args = parse_arguments(arguments)
    base = QUICK if args.quick else FULL
    depth = Depth(args.seconds or base.seconds, args.rounds or base.rounds, base.idle_s, base.once, base.skip)
    signal.signal(signal.SIGTERM, _interrupt)
    steps = plan(args, depth)
    results = report.Results(vars(args) | {"seconds": depth.seconds, "rounds": depth.rounds})
    started = time.monotonic()
    try:
        with Lab() as lab:
            tunnels: dict[str, Tunnel] = {}
            for name in dict.fromkeys(peer for _, peers in steps for peer in peers):
                peer = make_peer(name, args.set)
                print(f"  starting {peer.title}", file=sys.stderr, flush=True)
                try:
                    tunnels[name] = measure.open_tunnel(lab, peer)
                except LabError as error:
                    results.failures.append(f"{peer.title}: {error}")
                    print(f"  {error}", file=sys.stderr, flush=True)
                    continue
                results.add_peer(peer)
            run_rounds(lab, tunnels, steps, depth, results)
    except LabError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: everything that was started is gone again", file=sys.stderr)
        return 130
    results.took_s = time.monotonic() - started
    out = args.out or RESULTS / time.strftime("e2e-%Y%m%d-%H%M%S.json")
    report.write(results, out)
    report.show(results)
    print(f"\nwritten: {out}")
    missed = any(not check.met for check in report.checks(results))
    return 1 if results.failures or (args.check and missed) else 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
