"""A run: its command line, its parts, and the file it leaves."""

from __future__ import annotations

import argparse
import contextlib
import logging
import math
import shlex
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from bench import show, targets
from bench.e2e import plan as e2e_plan
from bench.e2e import run as e2e
from bench.e2e.tunnels import names as tunnel_names
from bench.handshake import run as handshake
from bench.micro import run as micro
from bench.report.page import render
from bench.results import DIRECTORY, Results
from bench.session import Options, Session
from bench.topology import Lab, LabError
from ipsec.crypto.suites import esp_suite
from ipsec.errors import IpsecError
from ipsec.esp.fast import PROVIDERS, choose_provider

QUICK = Options(quick=True, rounds=2, seconds=0.8)
FULL = Options(rounds=5, seconds=2.0)
#: below this a TCP stream has hardly begun, above it nothing is learned
SECONDS_RANGE = (1.0, 10.0)


@dataclass(frozen=True)
class Part:
    """One of the three kinds of measurement."""

    names: frozenset[str]
    "of its measurements, for --only"
    expected_s: Callable[[Options], float]
    run: Callable[[Session, Lab | None], None]
    needs_root: Callable[[Options], bool]


def _with_lab(run: Callable[[Session, Lab], None]) -> Callable[[Session, Lab | None], None]:
    def inside(session: Session, lab: Lab | None) -> None:
        assert lab is not None
        run(session, lab)

    return inside


PARTS = {
    "micro": Part(micro.NAMES, micro.expected_s, lambda session, lab: micro.run(session), lambda options: False),
    "e2e": Part(e2e.NAMES, e2e_plan.expected_s, _with_lab(e2e.run), lambda options: True),
    "handshake": Part(handshake.NAMES, handshake.expected_s, handshake.run, handshake.needs_root),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``run``."""
    panels = [panel.name for panel in e2e_plan.panels()]
    parser.add_argument("--quick", action="store_true", help="a first look, in about 3 minutes")
    parser.add_argument("--minutes", type=float, metavar="N",
                        help="take about so long: choose --seconds, and leave out what is missed least")  # fmt: skip
    parser.add_argument("--parts", metavar="LIST", help=f"of: {','.join(PARTS)}")
    parser.add_argument("--only", metavar="LIST", help="measurements, of: "
                        + "; ".join(f"{','.join(sorted(part.names))}" for part in PARTS.values()))  # fmt: skip
    parser.add_argument("--panels", metavar="LIST", help=f"end to end, of: {','.join(panels)}")
    parser.add_argument("--peers", metavar="LIST", help=f"tunnels, of: {','.join(tunnel_names())}")
    parser.add_argument("--rounds", type=int, help=f"how often each measurement is repeated ({FULL.rounds})")
    parser.add_argument("--seconds", type=float, help=f"traffic of one measurement ({FULL.seconds:g})")
    parser.add_argument("--suites", metavar="LIST", help="in memory (aes128gcm16,aes256gcm16,chacha20poly1305)")
    parser.add_argument("--sizes", metavar="LIST", help="in memory, octets of packets (64,256,512,1024,1408,8192)")
    parser.add_argument("--provider", default="auto", help=f"in memory, of the cipher: auto,{','.join(PROVIDERS)}")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="a setting for every ipsecd")
    parser.add_argument("--out", type=Path, help="the file (default: one in bench/results/ named after the time)")
    parser.add_argument("--check", action="store_true", help="exit status 1 if a target is missed")
    parser.set_defaults(function=lambda args: main(args, parser))


def options_of(args: argparse.Namespace, parser: argparse.ArgumentParser) -> tuple[list[str], Options]:
    """The parts to run and how; ends the program with an error that names the argument."""
    known = {
        "parts": list(PARTS),
        "only": sorted(name for part in PARTS.values() for name in part.names),
        "panels": [panel.name for panel in e2e_plan.panels()],
        "peers": tunnel_names(),
    }
    chosen: dict[str, tuple[str, ...]] = {}
    for option, names in known.items():
        chosen[option] = tuple((getattr(args, option) or "").split(",")) if getattr(args, option) else ()
        for name in chosen[option]:
            if name not in names:
                parser.error(f"--{option}: {name!r} is not one of {', '.join(names)}")
    for name in ("rounds", "seconds", "minutes"):
        if getattr(args, name) is not None and getattr(args, name) <= 0:
            parser.error(f"--{name}: {getattr(args, name)} is not above 0")
    if any("=" not in setting for setting in args.set):
        parser.error("--set takes KEY=VALUE, such as workers=1")
    suites, sizes = _micro_choice(args, parser)
    base = QUICK if args.quick else FULL
    options = replace(
        base,
        only=frozenset(chosen["only"]),
        peers=chosen["peers"],
        panels=chosen["panels"],
        settings=dict(setting.split("=", 1) for setting in args.set),
        suites=suites,
        sizes=sizes,
        provider=args.provider,
        rounds=args.rounds or base.rounds,
        seconds=args.seconds or base.seconds,
    )
    parts = [name for name, part in PARTS.items()
             if name in (chosen["parts"] or PARTS) and (not options.only or options.only & part.names)]  # fmt: skip
    if args.minutes:
        options = fit(parts, options, args.minutes * 60, args.seconds)
    return parts, options


def _micro_choice(
    args: argparse.Namespace, parser: argparse.ArgumentParser
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    suites = tuple(args.suites.split(",")) if args.suites else ()
    try:
        sizes = tuple(int(size) for size in args.sizes.split(",")) if args.sizes else ()
        if any(not 28 <= size <= 16384 for size in sizes):
            raise ValueError
    except ValueError:
        parser.error(f"--sizes: {args.sizes!r} is no list of numbers from 28 to 16384")
    if args.provider not in ("auto", *PROVIDERS):
        parser.error(f"--provider: {args.provider!r} is not one of auto, {', '.join(PROVIDERS)}")
    for suite in suites:
        try:
            choose_provider(esp_suite(suite), args.provider)
        except IpsecError as error:
            parser.error(f"--suites: {error}")
    return suites, sizes


def fit(parts: list[str], options: Options, total_s: float, seconds: float | None) -> Options:
    """The same for a run that ends in ``total_s``: as long measurements as there is time for, or fewer of them."""
    options = replace(options, seconds=seconds or SECONDS_RANGE[0])
    for step in e2e_plan.LEAST_MISSED:
        if expected_s(parts, options) <= total_s:
            break
        options = replace(options, left_out=(*options.left_out, step))
    return options if seconds else replace(options, seconds=_fitting_seconds(parts, options, total_s))


def _fitting_seconds(parts: list[str], options: Options, total_s: float) -> float:
    low, high = SECONDS_RANGE
    for _ in range(20):
        middle = (low + high) / 2
        if expected_s(parts, replace(options, seconds=middle)) > total_s:
            high = middle
        else:
            low = middle
    return math.floor(low * 10) / 10


def expected_s(parts: list[str], options: Options) -> float:
    """About how long it will take."""
    return sum(PARTS[name].expected_s(options) for name in parts)


def main(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Measure, print the tables, write the file. 1 on failure, or with --check on a missed target; 130 by Ctrl-C."""
    parts, options = options_of(args, parser)
    out = args.out or DIRECTORY / time.strftime("bench-%Y%m%d-%H%M%S.json")
    logging.getLogger("ipsec").setLevel(logging.ERROR)
    signal.signal(signal.SIGTERM, _interrupt)
    # the arguments that an alias put in front are in args, not on the command line
    command = shlex.join(["python", "-m", "bench", *args.command_line])
    results = Results(options={
        "command": command, "parts": parts, "quick": options.quick, "rounds": options.rounds,
        "seconds": options.seconds, "settings": options.settings,
    })  # fmt: skip
    started = time.monotonic()
    expected = expected_s(parts, options)
    try:
        with contextlib.ExitStack() as stack:
            lab = None
            if any(PARTS[name].needs_root(options) for name in parts):
                lab = stack.enter_context(Lab())
            session = stack.enter_context(Session(results, options, expected))
            session.say(f"{', '.join(parts)}: about {max(expected / 60, 1):.0f} min, {options.rounds} rounds, "
                        f"{options.seconds:g} s of traffic each")  # fmt: skip
            if options.left_out:
                session.skip("for lack of time: " + ", ".join(f"{panel} {name}" for panel, name in options.left_out))
            for name in parts:
                PARTS[name].run(session, lab)
    except LabError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        results.interrupted = True
    results.took_s = time.monotonic() - started
    results.checks = list(targets.check(results))
    if results.series:
        results.write(out)
        show.show(results)
        page = out.with_suffix(".html")
        page.write_text(render(results))
        print(f"\nwritten: {out} and {page}")
    if results.interrupted:
        print("interrupted: everything that was started is gone again", file=sys.stderr)
        return 130
    missed = any(not row["met"] for row in results.checks)
    return 1 if results.failures or (args.check and missed) else 0


def alias(part: str, arguments: Sequence[str] | None = None) -> int:
    """``python -m bench.PART``: a run of one part."""
    parser = argparse.ArgumentParser(prog=f"python -m bench.{part}")
    add_arguments(parser)
    given = list(sys.argv[1:] if arguments is None else arguments)
    args = parser.parse_args(["--parts", part, *given])
    args.command_line = ["run", "--parts", part, *given]
    return int(args.function(args))


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
