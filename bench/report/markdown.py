"""The figures as tables for README and docs, with the command that made them."""

from __future__ import annotations

from bench import machine
from bench.e2e.measure import latency_quantiles
from bench.report.pictures import name_of
from bench.results import Params, Results
from bench.stats import Summary, figure

#: metric, size, words
ROWS = (
    ("tcp1", "", "one TCP stream, Gbit/s"), ("tcp4", "", "four TCP streams, Gbit/s"),
    ("reverse", "", "one stream, reverse, Gbit/s"), ("bidir", "", "both directions, sum, Gbit/s"),
    ("cpu_per_gbit", "", "CPU seconds of both gateways per Gbit"),
    ("udp_most", "64", "UDP, 64 octets, thousand packets/s received"),
    ("udp_clean", "64", "- with less than 0.1 % loss"),
    ("udp_most", "512", "UDP, 512 octets"), ("udp_most", "1372", "UDP, 1372 octets"), ("udp_most", "imix", "UDP, IMIX"),
    ("rtt", "", "round trip every 10 ms, us"), ("rttloop", "", "round trip back to back, us"),
    ("rttload", "", "round trip beside a TCP stream, us"), ("memory", "", "resident, MiB"),
    ("idle", "", "wake-ups when idle, per second"),
)  # fmt: skip
SUBJECTS = ("ipsec", "strongswan", "openvpn", "chacha", "wireguard-go", "wireguard", "xfrm", "copy", "plain")
LATENCIES = frozenset(("rtt", "rttloop", "rttload"))


def render(results: Results) -> str:
    """Three paragraphs: where it is from, the peers, the targets."""
    options = results.options
    parts = [
        f"`{options.get('command')}` ({results.when[:10]}; {machine.title(results.machine)}; medians, least and most "
        f"of {options.get('rounds')} interleaved rounds of {options.get('seconds')} s; source "
        f"{results.machine['source']})",
    ]
    noise = results.noise()
    parts += [f"**Too noisy, not to be published:** {why}." for why in noise["why"]]
    parts += [table for table in (_peers(results), _targets(results)) if table]
    return "\n\n".join(parts) + "\n"


def _peers(results: Results) -> str:
    subjects = [name for name in SUBJECTS if results.samples("tcp1", name, panel="peers")]
    if not subjects:
        return ""
    titles = [name_of(results, name) + (" (ChaCha20-Poly1305)" if name == "chacha" else "") for name in subjects]
    lines = ["| | " + " | ".join(titles) + " |", "|---" * (len(subjects) + 1) + "|"]
    for metric, size, words in ROWS:
        params: Params = {"panel": "peers"}
        if size:
            params["size"] = size
        cells = [_cell(results, metric, name, params) for name in subjects]
        if any(cells):
            lines.append(f"| {words} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(results: Results, metric: str, subject: str, params: Params) -> str:
    found = results.summary(metric, subject, **params)
    if found is None:
        return ""
    text = _spread(found)
    if metric in LATENCIES:
        tail = latency_quantiles(results.samples(metric, subject, **params))
        text = f"{found.median:.0f}" + (f" (p99 {tail['p99']:.0f})" if tail else "")
    return text


def _spread(found: Summary) -> str:
    middle = figure(found.median)
    return middle if found.count == 1 else f"{middle} ({figure(found.low)}-{figure(found.high)})"


def _targets(results: Results) -> str:
    if not results.checks:
        return ""
    lines = ["| target | value | single rounds | aim | |", "|---|---|---|---|---|"]
    for row in results.checks:
        sign = "at least" if row["at_least"] else "at most"
        lines.append(f"| {row['what']} | {figure(row['value'])} | {figure(row['low'])}-{figure(row['high'])} | "
                     f"{sign} {row['target']:g} | {'met' if row['met'] else 'missed'} |")  # fmt: skip
    return "\n".join(lines)
