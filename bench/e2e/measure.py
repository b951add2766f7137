"""The measurements. Each takes one tunnel that is up and gives one Sample."""

from __future__ import annotations

import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.e2e.peers import Peer
from bench.e2e.topology import INNER, Lab, LabError, Pair, wait_for

CONGESTION = "cubic"
UDP_SIZE = 64
UDP_BUFFER = "2M"
UDP_FIRST_RATE = 20e3
UDP_RATE_STEP = 1.4
UDP_MOST_PROBES = 16
PING_INTERVAL_S = 0.01
IDLE_SETTLE_S = 2.0
SETTLE_STEP_S = 0.1
SETTLE_LIMIT_S = 5.0
PPS_TOOL = Path(__file__).with_name("pps.py")
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass
class Tunnel:
    """A peer that is up, with an iperf3 server at its far end."""

    peer: Peer
    pair: Pair
    server: subprocess.Popen[str]
    next_port: int = 5301


@dataclass
class Sample:
    """One measured value."""

    value: float
    cpu_s: float = 0.0
    "CPU seconds of both gateways while it was measured"
    busy: float = 0.0
    "share of all CPUs that was not idle, 0..1"
    foreign: float = 0.0
    "the same just after it, when nothing of ours had work to do"
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Metric:
    """What is measured, in which unit; ``measure`` gets about how many seconds it may take."""

    name: str
    title: str
    unit: str
    measure: Callable[[Lab, Tunnel, float], Sample]
    digits: int = 2


def open_tunnel(lab: Lab, peer: Peer) -> Tunnel:
    """Bring ``peer`` up and start its iperf3 server."""
    pair = peer.start(lab)
    log = lab.scratch / peer.name / "iperf3.log"
    server = lab.start(["iperf3", "--server", "--bind", INNER[1]], log, where=pair.b)
    listening = "ss -Hltn 'sport = :5201' | grep -q ."
    wait_for(
        lambda: subprocess.run(pair.b.command(["sh", "-c", listening])).returncode == 0,
        f"iperf3 server of {peer.title}", server, log, timeout_s=5.0,
    )  # fmt: skip
    return Tunnel(peer, pair, server)


def tcp(tunnel: Tunnel, seconds: float, *extra: str) -> Sample:
    """TCP goodput in Gbit/s, all streams and directions together, as the receivers count it."""
    with _accounting(tunnel) as sample:
        result = _iperf3(tunnel, seconds, "-C", CONGESTION, *extra)
    end = result["end"]
    received = [value for key, value in end.items() if key.startswith("sum_received")]
    sent = [value for key, value in end.items() if key.startswith("sum_sent")]
    sample.value = sum(part["bits_per_second"] for part in received) / 1e9
    sample.detail |= {
        "directions_gbit_s": [round(part["bits_per_second"] / 1e9, 3) for part in received],
        "retransmits": sum(part.get("retransmits", 0) for part in sent),
    }
    return sample


def udp_iperf3(tunnel: Tunnel, seconds: float, rate: float) -> Sample:
    """Small UDP packets received per second, in thousands, at ``rate`` offered packets/s (0: as many as go)."""
    bits = f"{rate * UDP_SIZE * 8:.0f}" if rate else "0"
    with _accounting(tunnel) as sample:
        result = _iperf3(tunnel, seconds, "-u", "-l", str(UDP_SIZE), "-b", bits, "-w", UDP_BUFFER)
    got, sent = result["end"]["sum_received"], result["end"]["sum_sent"]
    # the server's own clock: a queue that empties after the sender has stopped is not throughput
    sample.value = got["bytes"] / UDP_SIZE / max(got["seconds"], seconds) / 1e3
    sample.detail |= {"offered_kpps": round(sent["packets"] / sent["seconds"] / 1e3, 2)}
    return sample


def udp_burst(lab: Lab, tunnel: Tunnel, seconds: float, rate: float) -> Sample:
    """As ``udp_iperf3``, with our own sender, which can offer more than 100 000 packets/s."""
    port, tunnel.next_port = tunnel.next_port, tunnel.next_port + 1
    common = ["--target", INNER[1], "--port", str(port), "--size", str(UDP_SIZE), "--seconds", str(seconds)]
    tool = [sys.executable, "-I", str(PPS_TOOL)]
    receiver = lab.spawn([*tool, "receive", *common], where=tunnel.pair.b)
    try:
        assert receiver.stdout is not None
        if receiver.stdout.readline().strip() != "ready":
            raise LabError(f"{PPS_TOOL.name} receive: did not start")
        with _accounting(tunnel) as sample:
            out = tunnel.pair.a.run(*tool, "send", *common, "--source", INNER[0], "--rate", str(rate))
        sent = json.loads(out)
        got = json.loads(receiver.communicate(timeout=seconds + 10)[0])
    finally:
        lab.stop(receiver)
    sample.value = got["received"] / got["seconds"] / 1e3
    sample.detail |= {"offered_kpps": round(sent["sent"] / sent["seconds"] / 1e3, 2)}
    return sample


def round_trip(tunnel: Tunnel, seconds: float, *pace: str) -> Sample:
    """Median round trip of a 64-octet ping from inner to inner address, in microseconds."""
    with _accounting(tunnel) as sample:
        out = tunnel.pair.a.run("ping", "-n", *pace, "-I", INNER[0], INNER[1], timeout_s=seconds + 30)
    times = [float(value) * 1e3 for value in re.findall(r"time=([\d.]+) ms", out)]
    if len(times) < 20:
        raise LabError(f"{tunnel.peer.title}: only {len(times)} pings came back")
    cuts = statistics.quantiles(times, n=100)
    sample.value = statistics.median(times)
    sample.detail |= {"p10": round(cuts[9], 1), "p90": round(cuts[89], 1), "p99": round(cuts[98], 1), "n": len(times)}
    return sample


def memory(tunnel: Tunnel) -> Sample:
    """Resident memory of one gateway in MiB; the larger of the two ends."""
    sizes = []
    for gateway in tunnel.peer.gateways:
        status = Path(f"/proc/{gateway.pid}/status").read_text()
        sizes.append(sum(int(kib) for kib in re.findall(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)) / 1024)
    return Sample(max(sizes), detail={"ends_mib": [round(size, 1) for size in sizes]})


def idle(tunnels: list[Tunnel], seconds: float) -> dict[str, Sample]:
    """Wake-ups per second of one gateway (the busier end, all threads) with no traffic; all tunnels at once."""
    time.sleep(IDLE_SETTLE_S)
    before = {t.peer.name: [_switches(g.pid) for g in t.peer.gateways] for t in tunnels}
    with contextlib.ExitStack() as stack:
        samples = {t.peer.name: stack.enter_context(_accounting(t)) for t in tunnels}
        time.sleep(seconds)
    for tunnel in tunnels:
        after = [_switches(g.pid) for g in tunnel.peer.gateways]
        per_s = [(b - a) / seconds for a, b in zip(before[tunnel.peer.name], after, strict=True)]
        sample = samples[tunnel.peer.name]
        sample.value = max(per_s)
        sample.detail |= {"ends_per_s": [round(x, 2) for x in per_s]}
    return samples


def _iperf3(tunnel: Tunnel, seconds: float, *extra: str) -> dict[str, Any]:
    command = ["iperf3", "-c", INNER[1], "-B", INNER[0], "-t", f"{seconds:g}", "-J", "--connect-timeout", "3000"]
    text = tunnel.pair.a.run(*command, *extra, timeout_s=seconds + 30)
    result: dict[str, Any] = json.loads(text)
    if "error" in result:
        raise LabError(f"{tunnel.peer.title}: iperf3: {result['error']}")
    return result


@contextlib.contextmanager
def _accounting(tunnel: Tunnel) -> Iterator[Sample]:
    pids = [gateway.pid for gateway in tunnel.peer.gateways]
    sample, started = Sample(0.0), time.monotonic()
    cpu, (busy, total) = sum(map(_cpu_s, pids)), _machine_ticks()
    yield sample
    sample.cpu_s = round(sum(map(_cpu_s, pids)) - cpu, 3)
    busy_after, total_after = _machine_ticks()
    sample.detail["seconds"] = round(time.monotonic() - started, 3)
    sample.busy = round((busy_after - busy) / max(total_after - total, 1), 3)
    sample.foreign = _settle(pids)


def _settle(pids: list[int]) -> float:
    """Wait until the gateways rest; the share of all CPUs that was busy even then.

    charon queues without bound: what it still works off would be charged to whoever is measured next.
    """
    deadline = time.monotonic() + SETTLE_LIMIT_S
    while True:
        before, (busy, total) = sum(map(_cpu_s, pids)), _machine_ticks()
        time.sleep(SETTLE_STEP_S)
        if sum(map(_cpu_s, pids)) - before < 2 * _TICK_S or time.monotonic() > deadline:
            busy_after, total_after = _machine_ticks()
            return round((busy_after - busy) / max(total_after - total, 1), 3)


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_S


def _machine_ticks() -> tuple[int, int]:
    with open("/proc/stat") as stat:
        ticks = [int(field) for field in stat.readline().split()[1:9]]
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)


def _switches(pid: int) -> int:
    total = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        with contextlib.suppress(FileNotFoundError):
            total += sum(int(n) for n in re.findall(r"ctxt_switches:\s+(\d+)", status.read_text()))
    return total


def _udp_best(seconds: float, measure: Callable[[float, float], Sample]) -> Sample:
    """The most that is received at any offered rate; more than a tunnel can take makes it receive less.

    Rates grow until twice in a row neither more arrives nor more is sent.
    """
    probe_s = max(1.0, seconds / 5)
    rate, failures, offered = UDP_FIRST_RATE, 0, 0.0
    probes: list[Sample] = []
    while failures < 2 and len(probes) < UDP_MOST_PROBES:
        sample = measure(probe_s, rate)
        better = not probes or sample.value > 1.02 * max(probe.value for probe in probes)
        failures = 0 if better else failures + 1
        probes.append(sample)
        if sample.detail["offered_kpps"] < 1.05 * offered:
            break
        offered = sample.detail["offered_kpps"]
        rate *= UDP_RATE_STEP
    best = max(probes, key=lambda sample: sample.value)
    best.detail["offered_to_received_kpps"] = [[p.detail["offered_kpps"], round(p.value, 1)] for p in probes]
    return best


METRICS = {
    metric.name: metric
    for metric in (
        Metric("tcp1", "one TCP stream", "Gbit/s", lambda lab, t, s: tcp(t, s)),
        Metric("tcp4", "four TCP streams", "Gbit/s", lambda lab, t, s: tcp(t, s, "-P", "4")),
        Metric("reverse", "one stream, reverse", "Gbit/s", lambda lab, t, s: tcp(t, s, "-R")),
        Metric("bidir", "both directions, sum", "Gbit/s", lambda lab, t, s: tcp(t, s, "--bidir")),
        Metric(
            "udp64", "UDP 64 B received, iperf3", "kpps",
            lambda lab, t, s: _udp_best(s, lambda probe_s, rate: udp_iperf3(t, probe_s, rate)), 1,
        ),
        Metric(
            "pps64", "UDP 64 B received, sendmmsg", "kpps",
            lambda lab, t, s: _udp_best(s, lambda probe_s, rate: udp_burst(lab, t, probe_s, rate)), 1,
        ),
        Metric(
            "rtt", "round trip, every 10 ms", "us",
            lambda lab, t, s: round_trip(t, s, "-i", str(PING_INTERVAL_S), "-c", str(int(s / PING_INTERVAL_S))), 0,
        ),
        Metric("rttloop", "round trip, back to back", "us", lambda lab, t, s: round_trip(t, s, "-A", "-c", "1000"), 0),
        Metric("memory", "resident memory", "MiB", lambda lab, t, s: memory(t), 1),
        Metric("idle", "wake-ups when idle", "/s", lambda lab, t, s: idle([t], s)[t.peer.name], 1),
    )
}  # fmt: skip
