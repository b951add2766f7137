"""``python -m bench.micro``: ESP in memory, on one CPU, without privileges. See bench/README.md."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.e2e.report import machine
from bench.micro import cases
from bench.micro.cases import SIZES, SPREAD, BatchRow, SadRow
from ipsec.esp.fast import provider_versions

PARTS = ("batch", "sad", "memory")
SUITES = ("aes128gcm16", "aes256gcm16", "chacha20poly1305")
#: SAs, policies, SAs that carry the traffic; each is compared with the first
POPULATIONS = ((2, 1, 1), (2000, SPREAD, 1), (2000, SPREAD, SPREAD), (100_000, 10_000, 1), (100_000, 10_000, SPREAD))
SAD_SIZES = (64, 1408)
Verdict = tuple[str, float, str, bool]


def show_batches(rows: list[BatchRow]) -> list[Verdict]:
    """Print one table; the targets it decides."""
    print(f"\n{'ESP in batches':19}{'provider':>10}{'octets':>8}{'seal ns (min-max)':>22}{'of provider':>12}"
          f"{'open ns (min-max)':>22}{'of provider':>12}{'Mpps':>12}{'Gbit/s':>14}")  # fmt: skip
    verdicts: list[Verdict] = []
    for row in rows:
        seal, opened = (f"{t.ns:.0f} ({t.low:.0f}-{t.high:.0f})" for t in (row.seal, row.open))
        rates = f"{row.seal.mpps:.1f} / {row.open.mpps:.1f}"
        gbit = f"{row.size * 8 / row.seal.ns:.0f} / {row.size * 8 / row.open.ns:.0f}"
        print(f"{row.suite:19}{row.provider:>10}{row.size:>8}{seal:>22}{row.seal_ratio:>12.2f}{opened:>22}"
              f"{row.open_ratio:>12.2f}{rates:>12}{gbit:>14}")  # fmt: skip
        if row.suite == "aes128gcm16" and row.size == 1408:
            for name, ratio in (("sealing", row.seal_ratio), ("opening", row.open_ratio)):
                verdicts.append((f"1408 octets, {name} / provider alone", ratio, ">= 0.8", ratio >= 0.8))
        if row.suite == "aes128gcm16" and row.size == 64:
            for name, timing in (("sealed", row.seal), ("opened", row.open)):
                verdicts.append((f"64 octets, million packets/s {name}", timing.mpps, ">= 8", timing.mpps >= 8))
    return verdicts


def show_populations(rows: list[SadRow]) -> list[Verdict]:
    """Print one table; the targets it decides."""
    print(f"\n{'octets':>8}{'SAs':>8}{'policies':>10}{'in use':>8}{'in: ns (min-max)':>22}{'of one':>8}"
          f"{'out, Python call: ns':>26}{'of one':>8}")  # fmt: skip
    verdicts: list[Verdict] = []
    for row in rows:
        one = next(other for other in rows if other.size == row.size)
        into, out = (f"{t.ns:.0f} ({t.low:.0f}-{t.high:.0f})" for t in (row.inbound, row.outbound))
        ratios = one.inbound.ns / row.inbound.ns, one.outbound.ns / row.outbound.ns
        population = f"{row.size:>8}{row.sas:>8}{row.policies:>10}{row.spread:>8}"
        print(f"{population}{into:>22}{ratios[0]:>8.2f}{out:>26}{ratios[1]:>8.2f}")
        if row.sas >= 100_000:
            floor = 0.95 if row.spread == 1 else 0.7
            for name, ratio in zip(("in", "out"), ratios, strict=True):
                what = f"{row.size} octets, {row.sas} SAs, {row.policies} policies, {row.spread} in use, {name}"
                verdicts.append((what, ratio, f">= {floor}", ratio >= floor))
    return verdicts


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write the JSON file. 1 with --check on a missed target."""
    parser = argparse.ArgumentParser(prog="python -m bench.micro", description="Measure ESP in memory.")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, of: %(default)s")
    parser.add_argument("--suites", default=",".join(SUITES), help="default: %(default)s")
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="octets; default: %(default)s")
    parser.add_argument("--provider", default="auto", help="crypto provider; default: %(default)s")
    parser.add_argument("--repetitions", type=int, default=31, help="default: %(default)s")
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--check", action="store_true", help="exit 1 if a target is missed")
    args = parser.parse_args(arguments)
    parts = args.only.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"--only: {', '.join(sorted(unknown))} is none of {', '.join(PARTS)}")
    verdicts: list[Verdict] = []
    host = machine()
    document: dict[str, Any] = {"schema": 1, "kind": "micro", "when": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    document |= {"machine": host, "providers": provider_versions()}
    print(f"{host['cpu'].get('model name', '?')} (family {host['cpu'].get('cpu family', '?')} model "
          f"{host['cpu'].get('model', '?')}), {', '.join(host['cpu_flags'])}; {provider_versions()}")  # fmt: skip
    if "batch" in parts:
        sizes = [int(size) for size in args.sizes.split(",")]
        table = [(suite, size) for suite in args.suites.split(",") for size in sizes]
        rows = [cases.batches(suite, args.provider, size, args.repetitions) for suite, size in table]
        verdicts += show_batches(rows)
        document["batch"] = [asdict(row) for row in rows]
    if "sad" in parts:
        populations = cases.populations("aes128gcm16", POPULATIONS, SAD_SIZES, args.repetitions)
        verdicts += show_populations(populations)
        document["sad"] = [asdict(row) for row in populations]
    if "memory" in parts:
        octets = cases.memory_per_sa("aes128gcm16")
        verdicts.append(("octets of memory per SA", octets, "< 4096", octets < 4096))
        document["memory_per_sa"] = round(octets)
    print()
    for what, value, target, met in verdicts:
        print(f"{what:66}{value:>10.2f}{target:>10}  {'met' if met else 'MISSED'}")
    document["checks"] = [{"what": w, "value": v, "target": t, "met": met} for w, v, t, met in verdicts]
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(document, indent=1) + "\n")
    return 1 if args.check and not all(met for *_, met in verdicts) else 0


if __name__ == "__main__":
    sys.exit(main())
