"""Which figures become which picture. A picture without figures is left out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.e2e.measure import latency_quantiles
from bench.report.svg import Bar, Bars, Line, Lines, colour
from bench.results import Params, Results, Sample
from bench.stats import summarize

CIPHERS = (("AES-128-GCM", "aes128gcm16"), ("ChaCha20-Poly1305", "chacha20poly1305"), ("no cipher", "none"))
SIZES = (64, 512, 1372)
TAILS = ((0.5, "p50"), (0.9, "p90"), (0.99, "p99"), (0.999, "p99.9"))
#: of the x axis: each further nine is a step
TAIL_PLACES = {"p50": 0.3, "p90": 1.0, "p99": 2.0, "p99.9": 3.0}
LOUD = frozenset(("ipsec", "clients-ipsec"))


@dataclass(frozen=True)
class Section:
    """A heading with pictures below it."""

    title: str
    text: str
    pictures: Sequence[Bars | Lines]


def sections(results: Results) -> list[Section]:
    """All that this result has figures for."""
    found = [
        Section("Beside what a user would pick instead",
                "Both gateways, the sender and the receiver share this machine. Bars are medians, lines across them "
                "go from the least to the most of all rounds. Ciphers are kept apart: WireGuard has only "
                "ChaCha20-Poly1305.",
                _only(_peer_bars(results, metric, title, note) for metric, title, note in PEER_BARS)),
        Section("Over the size of packets",
                "UDP from a sender that hands 64 datagrams to each system call. Solid: the most that arrives, whatever "
                "is lost. Dashed: the highest rate with less than 0.1 % loss, found by halving the gap. "
                "IMIX is 7 packets of 64, 4 of 576 and 1 of 1400 octets.",
                _only((_sizes(results, gbit=False), _sizes(results, gbit=True), _imix(results)))),
        Section("Latency",
                "Pings from inner to inner address. The median is what one sees, the tail is what one feels; both axes "
                "are logarithmic.",
                _only(_tail(results, metric, title) for metric, title in TAIL_PICTURES)),
        Section("Where the time goes",
                "CPU time of everything on the machine for one Gbit of TCP, and of one packet in memory.",
                _only((_cpu_split(results), _packet_split(results)))),
        Section("Clients, links, threads, offloads",
                "What changes if one thing is another. Compare inside a picture: each has its own interleaved rounds.",
                _only(_panel(results, *row) for row in PANEL_BARS)),
        Section("In memory",
                "The library without devices, sockets and kernel, beside the crypto provider called directly.",
                _only([*_suites(results), _scaling(results), _spd(results), _costs(results, "kex_us", "method",
                       "key exchange, one side"), _signatures(results)])),
        Section("Control plane",
                "IKEv2 with preshared keys. The load is thousands of initiators, each with an identity and an address.",
                _only([_windows(results, "handshakes", "handshakes per second, by concurrency"),
                       _windows(results, "handshake_ms", "median of one handshake, by concurrency"),
                       *(_daemons(results, metric, title) for metric, title in DAEMON_BARS),
                       _flood(results, "flood", "honest handshakes under a flood"),
                       _flood(results, "flood_ms", "p99 of honest handshakes under a flood"), _engine(results)])),
    ]  # fmt: skip
    return [section for section in found if section.pictures]


PEER_BARS = (
    ("tcp1", "One TCP stream", "more is better"), ("cpu_per_gbit", "CPU of both gateways per Gbit", "less is better"),
    ("udp_most/64", "UDP, 64 octets, received", "more is better"), ("tcp4", "Four TCP streams", "more is better"),
    ("reverse", "One TCP stream, reverse", "more is better"), ("bidir", "Both directions, sum", "more is better"),
    ("rtt", "Round trip, idle", "less is better"), ("memory", "Memory of one gateway", "less is better"),
    ("idle", "Wake-ups of an idle gateway", "less is better"),
)  # fmt: skip
TAIL_PICTURES = (("rtt", "A ping every 10 ms"), ("rttloop", "Pings back to back"),
                 ("rttload", "Beside a TCP stream at full speed"))  # fmt: skip
PANEL_BARS: tuple[tuple[str, str, Params, str], ...] = (
    ("clients", "tcp1", {}, "TCP, clients behind the gateways"),
    ("clients", "udp_most", {"size": "64"}, "UDP 64, clients"),
    ("roads", "tcp1", {}, "TCP over other links, to b"), ("roads", "reverse", {}, "TCP over other links, to a"),
    ("threads", "tcp1", {}, "TCP by threads"), ("threads", "tcp4", {}, "Four TCP streams by threads"),
    ("threads", "udp_most", {"size": "64"}, "UDP 64 by threads"), ("threads", "rttloop", {}, "Round trip by threads"),
    ("offloads", "tcp1", {}, "TCP, one offload off"),
    ("offloads", "udp_most", {"size": "1372"}, "UDP 1372, one offload off"),
)  # fmt: skip
DAEMON_BARS = (
    ("handshakes_per_cpu", "Handshakes per CPU second"), ("first_packet", "Initiate to first packet"),
    ("tunnel_memory", "Memory of one more tunnel"), ("tunnels_up", "Time to bring all tunnels up"),
    ("list_sas", "Answer to list-sas"), ("rekey_storm", "Every CHILD_SA rekeyed at once"),
    ("stall", "Longest stall of the event loop"),
)  # fmt: skip


SHORT = {
    "copy": "copy, no cipher", "strongswan": "strongSwan", "plain": "plain veth", "clients-plain": "plain, forwarded",
    "chacha": "ipsecd", "openvpn": "OpenVPN", "clients-ipsec": "ipsecd", "clients-strongswan": "strongSwan",
    "clients-wireguard-go": "wireguard-go", "provider": "cipher alone",
}  # fmt: skip


def name_of(results: Results, subject: str) -> str:
    """For people: the title without what every row of a picture shares."""
    title: str = results.subjects.get(subject, {}).get("title", subject)
    return SHORT.get(subject, title)


def _only(pictures: Iterable[Bars | Lines | None]) -> list[Bars | Lines]:
    return [picture for picture in pictures if picture is not None]


def _bar(results: Results, label: str, subject: str, samples: list[Sample], digits: int, index: int = 0) -> Bar:
    found = summarize([sample.value for sample in samples])
    low, high = (found.low, found.high) if found.count > 1 else (None, None)
    return Bar(label, found.median, colour(subject, index), f"{found.median:,.{digits}f}", low, high, subject in LOUD)


def _peer_bars(results: Results, metric: str, title: str, note: str) -> Bars | None:
    metric, _, size = metric.partition("/")
    params: Params = {"panel": "peers"}
    if size:
        params["size"] = size
    groups = []
    for heading, cipher in CIPHERS:
        bars = []
        for subject, facts in results.subjects.items():
            samples = results.samples(metric, subject, **params)
            if samples and (facts.get("facts") or {}).get("cipher_suite") == cipher:
                # the copy has the packets of AES-GCM, but nothing is sealed
                if subject == "copy":
                    continue
                bars.append(_bar(results, name_of(results, subject), subject, samples, _digits(results, metric)))
        if cipher == "none" and (samples := results.samples(metric, "copy", **params)):
            bars.append(_bar(results, name_of(results, "copy"), "copy", samples, _digits(results, metric)))
        if bars:
            more = results.metrics[metric].more_is_better
            groups.append((heading, sorted(bars, key=lambda bar: bar.value, reverse=more)))
    return Bars(title, results.metrics[metric].unit, groups, note) if groups else None


def _digits(results: Results, metric: str) -> int:
    return results.metrics[metric].digits


def _sizes(results: Results, *, gbit: bool) -> Lines | None:
    lines = []
    for metric, dashed in (("udp_most", False), ("udp_clean", True)):
        for subject in results.subjects:
            points = []
            for size in SIZES:
                found = results.summary(metric, subject, panel="peers", size=str(size))
                if found is not None and found.median > 0:
                    points.append((float(size), found.median * (size * 8e-6 if gbit else 1)))
            if len(points) > 1:
                label = name_of(results, subject) + (", ChaCha" if subject == "chacha" else "")
                lines.append(Line(label, points, colour(subject), dashed))
    if not lines:
        return None
    ticks = [(float(size), str(size)) for size in SIZES]
    what = ("UDP payload over packet size", "Gbit/s") if gbit else ("UDP packets over packet size", "kpps")
    return Lines(what[0], what[1], "octets of UDP payload", lines, ticks, log_x=True, log_y=not gbit)


def _imix(results: Results) -> Bars | None:
    return _peer_bars(results, "udp_most/imix", "IMIX, received", "more is better")


def _tail(results: Results, metric: str, title: str) -> Lines | None:
    lines = []
    for subject in results.subjects:
        samples = results.samples(metric, subject, panel="peers")
        quantiles = latency_quantiles(samples)
        if quantiles:
            points = [(TAIL_PLACES[name], quantiles[name]) for _, name in TAILS]
            label = name_of(results, subject) + (", ChaCha" if subject == "chacha" else "")
            lines.append(Line(label, points, colour(subject)))
    ticks = [(TAIL_PLACES[name], name) for _, name in TAILS]
    return Lines(title, "us", "share of the pings that are faster", lines, ticks, log_y=True) if lines else None


def _cpu_split(results: Results) -> Bars | None:
    bars = []
    for subject in results.subjects:
        samples = [s for s in results.samples("tcp1", subject, panel="peers") if s.value and s.seconds]
        if not samples:
            continue
        rows = []
        for sample in samples:
            gbit = sample.value * sample.seconds
            machine = sample.detail.get("machine_s", {})
            busy = sum(value for kind, value in machine.items() if kind not in ("idle", "iowait", "steal"))
            rows.append((sample.cpu_user_s / gbit, sample.cpu_system_s / gbit, max(busy - sample.cpu_s, 0) / gbit))
        user, system, rest = (summarize(column).median for column in zip(*rows, strict=True))
        parts = (("gateways, own code", user, "var(--c-ours)"), ("gateways, kernel", system, "var(--c-ours3)"),
                 ("everything else, the load itself first", rest, "var(--c-grey)"))  # fmt: skip
        label = name_of(results, subject) + (", ChaCha" if subject == "chacha" else "")
        total = user + system + rest
        bars.append(Bar(label, total, "", f"{total:.2f}", strong=subject in LOUD, parts=parts))
    bars.sort(key=lambda bar: bar.value)
    return Bars("CPU time for one Gbit of TCP", "s/Gbit", [("", bars)], "less is better") if bars else None


def _packet_split(results: Results) -> Bars | None:
    def median(metric: str, subject: str, **params: str | int) -> float:
        found = results.summary(metric, subject, **params)
        return found.median if found else 0.0

    bars = []
    for suite in ("aes128gcm16", "aes256gcm16", "chacha20poly1305"):
        for what, metric in (("seal", "seal_ns"), ("open", "open_ns")):
            whole = median(metric, "ipsec", suite=suite, size=1408)
            cipher = min(median(metric, "provider", suite=suite, size=1408), whole)
            if not whole:
                continue
            parts = [("cipher", cipher, "var(--c-ours)"), ("ESP around it", whole - cipher, "var(--c-orange)"),
                     ("checksum", median("checksum_ns", "ipsec", size=1408), "var(--c-ours2)")]  # fmt: skip
            if what == "open":
                parts.append(("joining segments", median("coalesce_ns", "ipsec"), "var(--c-purple)"))
            total = sum(value for _, value, _ in parts)
            bars.append(Bar(f"{SUITE_NAMES[suite]}, {what}", total, "", f"{total:.0f}", parts=tuple(parts)))
    return Bars("One packet of 1408 octets in memory", "ns", [("", bars)], "less is better") if bars else None


SUITE_NAMES = {"aes128gcm16": "AES-128-GCM", "aes256gcm16": "AES-256-GCM", "chacha20poly1305": "ChaCha20"}


def _panel(results: Results, panel: str, metric: str, params: Params, title: str) -> Bars | None:
    bars = []
    for number, (subject, found, samples) in enumerate(results.of(metric)):
        if found.get("panel") == panel and all(found.get(name) == value for name, value in params.items()):
            label = name_of(results, subject)
            if subject == "ipsec":
                label += ", two hosts" if panel == "clients" else ", default"
            bar = _bar(results, label, subject, samples, _digits(results, metric), number)
            bars.append(bar if subject in LOUD or panel == "clients" else _muted(bar, subject))
    kind = results.metrics.get(metric)
    if len(bars) < 2 or kind is None:
        return None
    return Bars(title, kind.unit, [("", bars)], "more is better" if kind.more_is_better else "less is better")


def _muted(bar: Bar, subject: str) -> Bar:
    paint = colour(subject) if subject == "strongswan" else "var(--c-ours3)"
    return Bar(bar.label, bar.value, paint, bar.text, bar.low, bar.high)


def _suites(results: Results) -> list[Lines | None]:
    pictures: list[Lines | None] = []
    for metric, verb in (("seal_ns", "sealed"), ("open_ns", "opened")):
        lines = []
        ticks: dict[float, str] = {}
        for number, (suite, name) in enumerate(SUITE_NAMES.items()):
            for subject in ("ipsec", "provider"):
                points = sorted(
                    (float(params["size"]), float(params["size"]) * 8 / summarize([s.value for s in samples]).median)
                    for who, params, samples in results.of(metric)
                    if who == subject and params.get("suite") == suite
                )
                ticks |= {x: f"{x:g}" for x, _ in points}
                if len(points) > 1:
                    paint = f"var(--c-{('ours', 'orange', 'ours2')[number]})"
                    lines.append(Line(name, points, paint, dashed=subject == "provider"))
        if lines:
            pictures.append(Lines(f"ESP {verb} on one core; dashed: the cipher alone", "Gbit/s", "octets",
                                  lines, _spaced(sorted(ticks.items())), log_x=True, log_y=True))  # fmt: skip
    return pictures


def _spaced(ticks: list[tuple[float, str]]) -> list[tuple[float, str]]:
    """Neighbours on a logarithmic axis must not run into each other."""
    kept = ticks[:1]
    for tick in ticks[1:-1]:
        if tick[0] / kept[-1][0] > 1.9 and ticks[-1][0] / tick[0] > 1.9:
            kept.append(tick)
    return kept + ticks[-1:] if len(ticks) > 1 else kept


def _scaling(results: Results) -> Bars | None:
    groups = []
    for size in (1408, 64):
        bars = []
        for _, params, samples in results.of("sad_in_ns"):
            if params["size"] == size:
                label = f"{params['sas']:,} SAs, {params['spread']:,} used"
                bars.append(_bar(results, label, "ipsec" if params["sas"] == 2 else "engine", samples, 0))
        if bars:
            groups.append((f"{size} octets", bars))
    return Bars("Inbound packet, many SAs", "ns", groups, "less is better") if groups else None


def _spd(results: Results) -> Bars | None:
    groups = []
    for cache, heading in (("yes", "flow known"), ("no", "flow not known")):
        bars = [_bar(results, f"{params['policies']:,} policies", "ipsec", samples, 1)
                for _, params, samples in results.of("spd_ns") if params["flow_cache"] == cache]  # fmt: skip
        if bars:
            groups.append((heading, bars))
    return Bars("SPD look-up", "ns", groups, "less is better") if groups else None


def _costs(results: Results, metric: str, param: str, title: str) -> Bars | None:
    bars = [_bar(results, str(params[param]).replace("_", " "), "ipsec", samples, 0)
            for _, params, samples in results.of(metric)]  # fmt: skip
    return Bars(title[0].upper() + title[1:], "us", [("", bars)], "less is better") if bars else None


def _signatures(results: Results) -> Bars | None:
    groups = []
    for what in ("sign", "verify"):
        bars = [_bar(results, str(params["key"]), "ipsec", samples, 0)
                for _, params, samples in results.of("signature_us") if params["what"] == what]  # fmt: skip
        if bars:
            groups.append((what, bars))
    return Bars("AUTH signature", "us", groups, "less is better") if groups else None


def _daemons(results: Results, metric: str, title: str) -> Bars | None:
    bars = []
    for subject, params, samples in results.of(metric):
        words = [f"{value:,} at once" if name == "window" else f"{value:,} tunnels" for name, value in params.items()
                 if isinstance(value, int)]  # fmt: skip
        label = ", ".join([{"engine": "engine alone"}.get(subject, name_of(results, subject).split(",")[0]), *words])
        bars.append(_bar(results, label, subject, samples, _digits(results, metric)))
    if not bars:
        return None
    kind = results.metrics[metric]
    return Bars(title, kind.unit, [("", bars)], "more is better" if kind.more_is_better else "less is better")


def _windows(results: Results, metric: str, title: str) -> Lines | None:
    return _over(results, metric, "window", title[0].upper() + title[1:], "handshakes under way at once")


def _over(results: Results, metric: str, param: str, title: str, x_title: str) -> Lines | None:
    lines = []
    ticks: dict[float, str] = {}
    for subject in results.subjects:
        points = sorted(
            (float(params[param]), summarize([s.value for s in samples]).median)
            for who, params, samples in results.of(metric)
            if who == subject
        )
        if len(points) > 1:
            ticks |= {x: f"{x:g}" for x, _ in points}
            lines.append(Line(name_of(results, subject).split(",")[0], points, colour(subject)))
    if not lines:
        return None
    unit = results.metrics[metric].unit
    return Lines(title, unit, x_title, lines, sorted(ticks.items()), log_x=True, log_y=unit == "ms")


def _flood(results: Results, metric: str, title: str) -> Bars | None:
    groups = []
    rates = sorted({int(params["forged_per_s"]) for _, params, _ in results.of(metric)})
    for rate in rates:
        bars = [_bar(results, name_of(results, subject).split(",")[0], subject, samples, _digits(results, metric))
                for subject, params, samples in results.of(metric) if params["forged_per_s"] == rate]  # fmt: skip
        groups.append((f"{rate:,} forged messages per second" if rate else "no flood", bars))
    kind = results.metrics.get(metric)
    return Bars(title[0].upper() + title[1:], kind.unit, groups) if groups and kind else None


def _engine(results: Results) -> Bars | None:
    bars = [_bar(results, str(params["auth"]), "ipsec", samples, 0)
            for _, params, samples in results.of("engine_handshakes")]  # fmt: skip
    return Bars("Engine alone, handshakes per CPU second", "/s", [("", bars)], "more is better") if bars else None
