"""What was measured, as a table for people and JSON for programs, and the ratios the project holds itself to."""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.e2e.measure import CONGESTION, METRICS, UDP_BUFFER, UDP_SIZE, Sample
from bench.e2e.peers import ESP_PROPOSAL, Peer
from bench.e2e.topology import LINK_MTU

SCHEMA = 1
#: other programs that take more than this share of the machine make the figures worthless
FOREIGN_LIMIT = 0.05
#: where the value is a rate, CPU time per unit of work says more than the rate on a machine with few cores
RATES = ("Gbit/s", "kpps")
CPU_FLAGS = ("aes", "vaes", "vpclmulqdq", "pclmulqdq", "avx2", "avx512f", "gfni", "sha_ni")


@dataclass
class Results:
    """All samples of one run, by metric and peer, in the order of the rounds."""

    options: dict[str, Any]
    samples: dict[str, dict[str, list[Sample]]] = field(default_factory=dict)
    peers: dict[str, dict[str, Any]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    took_s: float = 0.0
    load_at_start: tuple[float, float, float] = field(default_factory=os.getloadavg)

    def add(self, metric: str, peer: str, sample: Sample) -> None:
        """Keep one sample."""
        self.samples.setdefault(metric, {}).setdefault(peer, []).append(sample)

    def add_peer(self, peer: Peer) -> None:
        """Keep what a tunnel is made of."""
        self.peers[peer.name] = {"title": peer.title, "facts": peer.facts(), "commands": peer.commands}

    def values(self, metric: str, peer: str) -> list[float]:
        """All values of one metric on one peer."""
        return [sample.value for sample in self.samples.get(metric, {}).get(peer, [])]

    def median(self, metric: str, peer: str) -> float | None:
        """The median, None if it was not measured."""
        values = self.values(metric, peer)
        return statistics.median(values) if values else None


@dataclass(frozen=True)
class Check:
    """One target: a value, what it must reach, and whether it did."""

    what: str
    value: float
    low: float
    high: float
    "the same from single rounds"
    target: float
    at_least: bool

    @property
    def met(self) -> bool:
        """Whether the target is reached."""
        return self.value >= self.target if self.at_least else self.value <= self.target


def checks(results: Results) -> list[Check]:
    """Every target for which this run has both sides."""
    wanted = [
        ("one TCP stream / strongSwan", ("tcp1", "ipsec"), ("tcp1", "strongswan"), 18.0),
        ("one TCP stream / copy instead of sealing", ("tcp1", "ipsec"), ("tcp1", "copy"), 0.85),
        ("four TCP streams / one", ("tcp4", "ipsec"), ("tcp1", "ipsec"), 0.8),
        ("reverse direction / one TCP stream", ("reverse", "ipsec"), ("tcp1", "ipsec"), 0.8),
        ("both directions (sum) / one TCP stream", ("bidir", "ipsec"), ("tcp1", "ipsec"), 0.8),
        ("UDP 64 B received (iperf3) / strongSwan", ("udp64", "ipsec"), ("udp64", "strongswan"), 2.5),
        ("UDP 64 B received (sendmmsg) / strongSwan", ("pps64", "ipsec"), ("pps64", "strongswan"), 2.5),
        ("TCP from a peer without trains / strongSwan", ("tcp1", "single"), ("tcp1", "strongswan"), 5.0),
        ("TCP to a peer without trains / strongSwan", ("reverse", "single"), ("reverse", "strongswan"), 5.0),
        ("TCP from a peer without any offload", ("tcp1", "bare"), ("tcp1", "strongswan"), 5.0),
        ("TCP to a peer without any offload", ("reverse", "bare"), ("reverse", "strongswan"), 5.0),
    ]
    found = [_ratio(results, *row) for row in wanted]
    for metric, title in (("rtt", "every 10 ms"), ("rttloop", "back to back")):
        found.append(_added(results, metric, f"round trip added ({title}) / strongSwan", 0.6))
    found.append(_limit(results, "memory", "resident memory of one gateway, MiB", 64.0))
    found.append(_limit(results, "idle", "wake-ups of an idle gateway, per second", 1.0))
    return [check for check in found if check is not None]


def _ratio(
    results: Results, what: str, top: tuple[str, str], bottom: tuple[str, str], target: float
) -> Check | None:
    above, below = results.median(*top), results.median(*bottom)
    if above is None or not below:
        return None
    # a metric taken once is compared with every round of the other
    tops, bottoms = results.values(*top), results.values(*bottom)
    rounds = max(len(tops), len(bottoms))
    each = [tops[i % len(tops)] / bottoms[i % len(bottoms)] for i in range(rounds) if bottoms[i % len(bottoms)]]
    return Check(what, above / below, min(each), max(each), target, True)


def _added(results: Results, metric: str, what: str, target: float) -> Check | None:
    plain = results.median(metric, "plain")
    ours, theirs = results.median(metric, "ipsec"), results.median(metric, "strongswan")
    if plain is None or ours is None or theirs is None or theirs <= plain:
        return None
    pairs = zip(results.values(metric, "ipsec"), results.values(metric, "strongswan"), strict=False)
    each = [(a - plain) / (b - plain) for a, b in pairs if b > plain]
    value = (ours - plain) / (theirs - plain)
    return Check(what, value, min(each, default=value), max(each, default=value), target, False)


def _limit(results: Results, metric: str, what: str, target: float) -> Check | None:
    values = results.values(metric, "ipsec")
    if not values:
        return None
    return Check(what, statistics.median(values), min(values), max(values), target, False)


def show(results: Results) -> None:
    """Print the tables."""
    print(f"\n{_summary(results)}\n")
    names = list(results.peers)
    rows = [["median (min-max)", *names]]
    for metric, by_peer in results.samples.items():
        kind = METRICS[metric]
        rows.append([f"{kind.title}, {kind.unit}", *(_cell(by_peer.get(name, []), kind.digits) for name in names)])
        if kind.unit in RATES and any(_per_cpu(by_peer.get(name, [])) for name in names):
            rows.append(["  per CPU of the gateways", *(_per_cpu(by_peer.get(name, [])) for name in names)])
    _print_columns(rows)
    for name in names:
        print(f"  {name:12}{results.peers[name]['title']}")
    table = checks(results)
    if table:
        print(f"\n{'ratio':46}{'value':>10}{'single rounds':>20}{'target':>10}")
    for check in table:
        sign = ">=" if check.at_least else "<="
        spread = f"{check.low:.2f}-{check.high:.2f}"
        verdict = "met" if check.met else "MISSED"
        print(f"{check.what:46}{check.value:>10.2f}{spread:>20}{sign + format(check.target, 'g'):>10}  {verdict}")
    for failure in results.failures:
        print(f"failed: {failure}")


def _print_columns(rows: list[list[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for number, (label, *cells) in enumerate(rows):
        line = f"{label:{widths[0]}}" + "".join(f"{c:>{w + 2}}" for c, w in zip(cells, widths[1:], strict=True))
        print(line if number else f"{line}\n{'-' * len(line)}")


def _cell(samples: list[Sample], digits: int) -> str:
    if not samples:
        return "-"
    values = [sample.value for sample in samples]
    middle = f"{statistics.median(values):.{digits}f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def _per_cpu(samples: list[Sample]) -> str:
    shares = [s.value / (s.cpu_s / s.detail["seconds"]) for s in samples if s.cpu_s > 0 and s.detail.get("seconds")]
    return f"{statistics.median(shares):.2f}" if shares else ""


def write(results: Results, path: Path) -> None:
    """The JSON file; its directory is made if need be."""
    document = {
        "schema": SCHEMA,
        "kind": "e2e",
        "when": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "took_s": round(results.took_s, 1),
        "options": {key: str(value) if isinstance(value, Path) else value for key, value in results.options.items()},
        "machine": machine(),
        "load_at_start": results.load_at_start,
        "foreign_cpu": foreign(results),
        "workload": {
            "link": f"veth, MTU {LINK_MTU}",
            "esp": f"{ESP_PROPOSAL}, tunnel mode, ESP in UDP port 4500",
            "tcp": f"iperf3 -C {CONGESTION}, ends in the gateways' own namespaces, nothing pinned",
            "udp": f"{UDP_SIZE}-octet payloads, best of growing offered rates; iperf3 -w {UDP_BUFFER}, or e2e/pps.py",
            "rtt": "ping, median of the replies",
        },
        "metrics": {name: {"title": metric.title, "unit": metric.unit} for name, metric in METRICS.items()},
        "peers": results.peers,
        "samples": {m: {p: [asdict(s) for s in found] for p, found in by.items()} for m, by in results.samples.items()},
        "medians": {m: {p: round(results.median(m, p) or 0.0, 4) for p in by} for m, by in results.samples.items()},
        "checks": [asdict(check) | {"met": check.met} for check in checks(results)],
        "failures": results.failures,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    described = {key: found.group(1) for key in ("model name", "cpu family", "model")
                 if (found := re.search(rf"^{key}\s*: (.*)$", cpuinfo, re.MULTILINE))}  # fmt: skip
    flags = re.search(r"^flags\s*: (.*)$", cpuinfo, re.MULTILINE)
    return {
        "cpu": described,
        "cpus": os.cpu_count(),
        "cpu_flags": [flag for flag in CPU_FLAGS if flags and flag in flags.group(1).split()],
        "kernel": platform.release(),
        "system": platform.freedesktop_os_release().get("PRETTY_NAME", "?"),
        "python": sys.version.split()[0],
        "iperf3": _first_line("iperf3", "--version"),
        "openssl": _first_line("openssl", "version"),
        "sysctl": {
            name: Path("/proc/sys", name).read_text().strip()
            for name in ("net/core/rmem_default", "net/core/rmem_max", "net/core/wmem_max", "net/ipv4/tcp_rmem")
        },
    }


def _first_line(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.partition("\n")[0]
    except FileNotFoundError:
        return "not installed"


def foreign(results: Results) -> float:
    """Median share of all CPUs that other programs kept busy between the measurements, 0..1."""
    shares = [s.foreign for by_peer in results.samples.values() for samples in by_peer.values() for s in samples]
    return statistics.median(shares) if shares else 0.0


def _summary(results: Results) -> str:
    host = machine()
    others = foreign(results)
    warning = " - TOO MUCH, do not trust these figures" if others > FOREIGN_LIMIT else ""
    return (
        f"{host['cpus']} x {host['cpu'].get('model name', '?')} (family {host['cpu'].get('cpu family', '?')} model "
        f"{host['cpu'].get('model', '?')}), Linux {host['kernel']}, {', '.join(host['cpu_flags'])}\n"
        f"{ESP_PROPOSAL}, ESP in UDP over veth MTU {LINK_MTU}, TCP {CONGESTION}; {results.options['rounds']} rounds of "
        f"{results.options['seconds']:g} s, interleaved; {results.took_s:.0f} s in all, "
        f"load before {results.load_at_start[0]:.2f}\n"
        f"other programs kept {others:.0%} of the CPUs busy meanwhile{warning}"
    )
