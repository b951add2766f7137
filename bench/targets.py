"""The ratios the project holds itself to. Each is inside one run: figures of two machines have nothing in common."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bench.results import Params, Results
from bench.stats import paired_ratios, summarize

PEERS: Params = {"panel": "peers"}
CLIENTS: Params = {"panel": "clients"}
ROADS: Params = {"panel": "roads"}
SMALL: Params = {"panel": "peers", "size": "64"}


@dataclass(frozen=True)
class Side:
    """What is divided, or what it is divided by."""

    metric: str
    subject: str
    params: Params


@dataclass(frozen=True)
class Target:
    """A value or a ratio that has to reach ``limit``, or not to exceed it."""

    what: str
    top: Side
    bottom: Side | None
    limit: float
    at_least: bool = True
    floor: Side | None = None
    "taken off both sides before they are divided: what there is without any tunnel"
    worst: bool = False
    "the worst sample counts instead of the median"


def _over(what: str, metric: str, top: str, bottom: str, params: Params, limit: float, **more: Any) -> Target:
    return Target(what, Side(metric, top, params), Side(metric, bottom, params), limit, **more)


def _of(what: str, top: tuple[str, str], bottom: tuple[str, str], params: Params, limit: float) -> Target:
    return Target(what, Side(*top, params), Side(*bottom, params), limit)


def _added(what: str, metric: str) -> Target:
    return _over(what, metric, "ipsec", "strongswan", PEERS, 0.6, at_least=False, floor=Side(metric, "plain", PEERS))


GCM_LARGE: Params = {"suite": "aes128gcm16", "size": 1408}
GCM_SMALL: Params = {"suite": "aes128gcm16", "size": 64}
MANY: Params = {"sas": 100_000, "policies": 10_000}
FEW: Params = {"sas": 2, "policies": 1, "spread": 1}

TARGETS = (
    _over("one TCP stream / strongSwan", "tcp1", "ipsec", "strongswan", PEERS, 25),
    _over("one TCP stream / copy instead of the cipher", "tcp1", "ipsec", "copy", PEERS, 0.9),
    _of("four TCP streams / one", ("tcp4", "ipsec"), ("tcp1", "ipsec"), PEERS, 0.8),
    _of("reverse direction / one TCP stream", ("reverse", "ipsec"), ("tcp1", "ipsec"), PEERS, 0.8),
    _of("both directions (sum) / one TCP stream", ("bidir", "ipsec"), ("tcp1", "ipsec"), PEERS, 0.8),
    _over("UDP 64 B received / strongSwan", "udp_most", "ipsec", "strongswan", SMALL, 3),
    _over("CPU per Gbit / strongSwan", "cpu_per_gbit", "ipsec", "strongswan", PEERS, 0.05, at_least=False),
    _over("ChaCha20-Poly1305 / wireguard-go", "tcp1", "chacha", "wireguard-go", PEERS, 2),
    _added("round trip added (every 10 ms) / strongSwan", "rtt"),
    _added("round trip added (back to back) / strongSwan", "rttloop"),
    _over("clients behind the gateways / two hosts", "tcp1", "clients-ipsec", "ipsec", CLIENTS, 0.8),
    _over("TCP from a peer without trains / strongSwan", "tcp1", "single", "strongswan", ROADS, 5),
    _over("TCP to a peer without trains / strongSwan", "reverse", "single", "strongswan", ROADS, 5),
    _over("TCP from a peer without any offload / strongSwan", "tcp1", "bare", "strongswan", ROADS, 5),
    _over("TCP to a peer without any offload / strongSwan", "reverse", "bare", "strongswan", ROADS, 5),
    Target("resident memory of one gateway, MiB", Side("memory", "ipsec", PEERS), None, 64, False),
    Target("wake-ups of an idle gateway, per second", Side("idle", "ipsec", PEERS), None, 1, False),
    # times: what the provider needs, divided by what we need
    *(_over(f"1408 octets, {name} / provider alone", f"{name}_ns", "provider", "ipsec", GCM_LARGE, 0.8)
      for name in ("seal", "open")),
    *(Target(f"64 octets, {name}, ns per packet", Side(f"{name}_ns", "ipsec", GCM_SMALL), None, 125, False)
      for name in ("seal", "open")),
    *(Target(f"{size} octets, 100 000 SAs, traffic on {spread}, {way} / 2 SAs",
             Side(f"sad_{way}_ns", "ipsec", FEW | {"size": size}),
             Side(f"sad_{way}_ns", "ipsec", MANY | {"spread": spread, "size": size}), 0.95 if spread == 1 else 0.7)
      for size in (64, 1408) for spread in (1, 1000) for way in ("in", "out")),
    Target("octets of memory per SA", Side("sa_memory", "ipsec", {}), None, 4096, False),
    Target("IKEv2 handshakes per CPU second of the daemon", Side("handshakes_per_cpu", "ipsec", {}), None, 600),
    Target("initiate to first packet, ms", Side("first_packet", "ipsec", {}), None, 50, False),
    _over("initiate to first packet / strongSwan", "first_packet", "ipsec", "strongswan", {}, 1, at_least=False),
    Target("initiate to first packet, the first time after the start, ms",
           Side("fresh_first_packet", "ipsec", {}), None, 50, False),
    Target("KiB per IKE tunnel", Side("tunnel_memory", "ipsec", {}), None, 30, False),
    *(Target(f"longest stall of the event loop, {window} handshakes at once, ms",
             Side("stall", "ipsec", {"window": window}), None, 50, False, worst=True) for window in (16, 1000)),
)  # fmt: skip


def check(results: Results) -> Iterator[dict[str, Any]]:
    """Every target for which this run has what is needed."""
    for target in TARGETS:
        each = _rounds(results, target)
        if not each:
            continue
        found = summarize(each)
        value = found.median
        if target.worst:
            value = found.low if target.at_least else found.high
        met = value >= target.limit if target.at_least else value <= target.limit
        yield {"what": target.what, "value": round(value, 4), "low": round(found.low, 4), "high": round(found.high, 4),
               "target": target.limit, "at_least": target.at_least, "met": met}  # fmt: skip


def _rounds(results: Results, target: Target) -> list[float]:
    tops = results.values(target.top.metric, target.top.subject, **target.top.params)
    if target.bottom is None:
        return tops
    bottoms = results.values(target.bottom.metric, target.bottom.subject, **target.bottom.params)
    if target.floor is not None:
        floor = results.summary(target.floor.metric, target.floor.subject, **target.floor.params)
        if floor is None:
            return []
        pairs = zip(tops, bottoms, strict=False)
        return [(top - floor.median) / (bottom - floor.median) for top, bottom in pairs if bottom > floor.median]
    return paired_ratios(tops, bottoms)
