"""The measurements. Each takes one tunnel that is up and gives readings: a metric, a sample, parameters."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench import machine
from bench.e2e.peers import Peer
from bench.results import Metric, Params, Sample
from bench.stats import quantile
from bench.topology import Lab, LabError, Pair, wait_for

CONGESTION = "cubic"
PING_INTERVAL_S = 0.01
PINGS_IN_A_ROW = 1000
LOAD_AHEAD_S = 0.5
IDLE_SETTLE_S = 2.0
SETTLE_STEP_S = 0.1
WARM_UP = "8M"
WARM_UP_LIMIT_S = 5.0
SETTLE_LIMIT_S = 5.0
PPS_TOOL = Path(__file__).with_name("pps.py")
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")

#: octets of UDP payload, in turn. 1372 make an IP packet of 1400, the most that fits strongSwan's device. IMIX is the
#: usual mixture of 7 small, 4 middle and 1 large packet, of 64, 576 and 1400 octets with their IP headers
UDP_SIZES = {
    "64": (64,),
    "512": (512,),
    "1372": (1372,),
    "imix": (36, 548, 36, 36, 548, 36, 1372, 36, 548, 36, 36, 548),
}
#: RFC 2544 asks for no loss at all, which one late wake-up on a shared CPU would spoil
CLEAN_LOSS = 0.001
UDP_FIRST_RATE = 20e3
UDP_RATE_STEP = 1.5
UDP_MOST_PROBES = 14
UDP_HALVINGS = 3

TCP_TITLES = {
    "tcp1": "one TCP stream", "tcp4": "four TCP streams", "reverse": "one TCP stream, reverse",
    "bidir": "TCP in both directions, sum",
}  # fmt: skip
TCP = {name: Metric(name, "e2e", title, "Gbit/s", True) for name, title in TCP_TITLES.items()}
CPU = Metric("cpu_per_gbit", "e2e", "CPU seconds of both gateways per Gbit, one TCP stream", "s/Gbit", False, 3)
MACHINE_CPU = Metric("machine_cpu_per_gbit", "e2e", "CPU seconds of the whole machine per Gbit, one TCP stream",
                     "s/Gbit", False, 3)  # fmt: skip
UDP_MOST = Metric("udp_most", "e2e", "UDP received at most, whatever is lost", "kpps", True, 1)
UDP_CLEAN = Metric("udp_clean", "e2e", "UDP with less than 0.1 % loss", "kpps", True, 1)
RTT = {
    "rtt": Metric("rtt", "e2e", "round trip, a ping every 10 ms", "us", False, 0),
    "rttloop": Metric("rttloop", "e2e", "round trip, pings back to back", "us", False, 0),
    "rttload": Metric("rttload", "e2e", "round trip beside a TCP stream at full speed", "us", False, 0),
}
MEMORY = Metric("memory", "e2e", "resident memory of one gateway", "MiB", False, 1)
IDLE = Metric("idle", "e2e", "wake-ups of a gateway without traffic", "/s", False, 1)

Reading = tuple[Metric, Sample, Params]


@dataclass
class Tunnel:
    """A peer that is up, with an iperf3 server at its far end."""

    peer: Peer
    pair: Pair
    server: subprocess.Popen[str]
    next_port: int = 5301


@dataclass(frozen=True)
class Measurement:
    """Something to measure; ``take`` gets about how many seconds it may spend on traffic."""

    name: str
    take: Callable[[Lab, Tunnel, float], list[Reading]]
    costs_s: Callable[[float], float]
    "about how long it takes, for the time left"
    once: bool = False
    "what a search or the system answers the same each time is not asked in every round"
    together: bool = False
    "taken on all tunnels at once"


def open_tunnel(lab: Lab, peer: Peer) -> Tunnel:
    """Bring ``peer`` up and start its iperf3 server. NotInstalled, LabError."""
    pair = peer.start(lab)
    log = peer.directory / "iperf3.log"
    server = lab.start(["iperf3", "--server", "--bind", pair.inner[1]], log, where=pair.server)
    listening = pair.server.command(["sh", "-c", "ss -Hltn 'sport = :5201' | grep -q ."])
    wait_for(
        lambda: subprocess.run(listening).returncode == 0,
        f"iperf3 server of {peer.title}", server, log, timeout_s=5.0,
    )  # fmt: skip
    return Tunnel(peer, pair, server)


def close_tunnel(lab: Lab, tunnel: Tunnel) -> None:
    """End its processes and remove its namespaces."""
    for process in (tunnel.server, *tunnel.peer.gateways):
        lab.stop(process)
    lab.remove(tunnel.pair)


def tcp(tunnel: Tunnel, name: str, seconds: float, *extra: str) -> list[Reading]:
    """TCP goodput, all streams and directions together, as the receivers count it; and what it cost."""
    with accounting(tunnel) as sample:
        result = _iperf3(tunnel, seconds, "-t", str(whole_seconds(seconds)), "-C", CONGESTION, *extra)
    end = result["end"]
    received = [value for key, value in end.items() if key.startswith("sum_received")]
    sent = [value for key, value in end.items() if key.startswith("sum_sent")]
    sample.value = sum(part["bits_per_second"] for part in received) / 1e9
    sample.detail |= {
        "directions_gbit_s": [round(part["bits_per_second"] / 1e9, 3) for part in received],
        "retransmits": sum(part.get("retransmits", 0) for part in sent),
    }
    readings: list[Reading] = [(TCP[name], sample, {})]
    gbit = sum(part["bytes"] for part in received) * 8 / 1e9
    if name == "tcp1" and gbit:
        if tunnel.peer.gateways:
            readings.append((CPU, Sample(sample.cpu_s / gbit), {}))
        cpus = os.cpu_count() or 1
        readings.append((MACHINE_CPU, Sample(sample.busy * sample.seconds * cpus / gbit), {}))
    return readings


def whole_seconds(seconds: float) -> int:
    """iperf3 cuts off fractions, and takes 0 for ever."""
    return max(1, int(seconds))


def warm_up(tunnel: Tunnel) -> None:
    """Page tables, caches of routes and flows, and the CPU's clock have their first packets."""
    _iperf3(tunnel, WARM_UP_LIMIT_S, "-n", WARM_UP, "-C", CONGESTION)


@dataclass(frozen=True)
class Probe:
    """One offered rate, in thousand packets/s."""

    offered: float
    in_time: float
    loss: float
    sample: Sample


def udp_probe(lab: Lab, tunnel: Tunnel, size: str, rate: float, seconds: float) -> Probe:
    """Offer ``rate`` packets/s for ``seconds`` with our own sender, which iperf3 with a system call each could not."""
    port, tunnel.next_port = tunnel.next_port, tunnel.next_port + 1
    sizes = ",".join(map(str, UDP_SIZES[size]))
    source, target = tunnel.pair.inner
    common = ["--target", target, "--port", str(port), "--sizes", sizes, "--seconds", str(seconds)]
    tool = [sys.executable, "-I", str(PPS_TOOL)]
    receiver = lab.spawn([*tool, "receive", *common], where=tunnel.pair.server)
    try:
        assert receiver.stdout is not None
        if receiver.stdout.readline().strip() != "ready":
            raise LabError(f"{PPS_TOOL.name} receive: did not start")
        with accounting(tunnel) as sample:
            out = tunnel.pair.client.run(*tool, "send", *common, "--source", source, "--rate", str(rate))
            sent = json.loads(out)
            got = json.loads(receiver.communicate(timeout=seconds + 15)[0])
    finally:
        lab.stop(receiver)
    sample.seconds = seconds
    loss = 1 - got["received"] / sent["sent"] if sent["sent"] else 1.0
    return Probe(sent["sent"] / sent["seconds"] / 1e3, got["in_time"] / got["seconds"] / 1e3, max(loss, 0.0), sample)


def udp_search(
    probe: Callable[[float], Probe], *, bisect: bool = True
) -> tuple[Probe, float | None, list[Probe]]:
    """The probe at which most was received; the highest offered rate with less than CLEAN_LOSS lost; all probes.

    Rates grow until twice in a row neither more arrives nor more can be sent. Beyond what it can carry a tunnel
    receives less, since dropping costs time too. Then the gap between the highest clean and the next rate is halved.
    A rate is clean if one of two tries is, so that a single late wake-up does not decide.
    """
    probes: list[Probe] = []
    rate, worse = UDP_FIRST_RATE, 0
    while worse < 2 and len(probes) < UDP_MOST_PROBES:
        one = probe(rate)
        better = not probes or one.in_time > 1.02 * max(p.in_time for p in probes)
        no_faster = bool(probes) and one.offered < 1.05 * probes[-1].offered
        probes.append(one)
        worse = 0 if better else worse + 1
        if no_faster:
            break
        rate *= UDP_RATE_STEP
    best = max(probes, key=lambda one: one.in_time)
    clean = max((p.offered for p in probes if p.loss < CLEAN_LOSS), default=0.0)
    if not bisect:
        return best, clean or None, probes
    lossy = min((p.offered for p in probes if p.loss >= CLEAN_LOSS and p.offered > clean), default=None)
    for _ in range(UDP_HALVINGS if lossy is not None else 0):
        assert lossy is not None
        middle = (clean * lossy) ** 0.5 if clean else lossy / 2
        for _ in range(2):
            one = probe(middle * 1e3)
            probes.append(one)
            if one.loss < CLEAN_LOSS:
                break
        if one.loss < CLEAN_LOSS:
            clean = max(clean, one.offered)
        else:
            lossy = middle
    return best, clean or None, probes


def udp(lab: Lab, tunnel: Tunnel, size: str, seconds: float) -> list[Reading]:
    """The most, and the most without loss. A short measurement has no time for the second."""
    probe_s = min(max(0.4, seconds / 4), 2.0)
    best, clean, probes = udp_search(
        lambda rate: udp_probe(lab, tunnel, size, rate, probe_s), bisect=seconds >= THOROUGH_S
    )
    sample = best.sample
    sample.value = best.in_time
    sample.detail["probes"] = [[round(p.offered, 1), round(p.in_time, 1), round(p.loss, 5)] for p in probes]
    readings: list[Reading] = [(UDP_MOST, sample, {"size": size})]
    if seconds >= THOROUGH_S:
        readings.append((UDP_CLEAN, Sample(clean or 0.0), {"size": size}))
    return readings


#: with less time than this for a measurement, a search for the highest rate without loss is left out
THOROUGH_S = 1.0


def round_trip(tunnel: Tunnel, name: str, seconds: float, *pace: str) -> list[Reading]:
    """Round trips of a 64-octet ping from inner to inner address, in microseconds; the value is the median."""
    with accounting(tunnel) as sample:
        _ping(tunnel, sample, seconds, *pace)
    return [(RTT[name], sample, {})]


def round_trip_under_load(lab: Lab, tunnel: Tunnel, seconds: float) -> list[Reading]:
    """The same while one TCP stream takes what it can get: what queues in the gateways adds."""
    source, target = tunnel.pair.inner
    load = lab.spawn(["iperf3", "-c", target, "-B", source, "-C", CONGESTION, "-t", str(whole_seconds(seconds) + 1)],
                     where=tunnel.pair.client, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    try:
        time.sleep(LOAD_AHEAD_S)
        with accounting(tunnel, settle=False) as sample:
            _ping(tunnel, sample, seconds, *_every(PING_INTERVAL_S, seconds))
        load.wait(timeout=seconds + 30)
    finally:
        lab.stop(load)
    _settle([gateway.pid for gateway in tunnel.peer.gateways])
    return [(RTT["rttload"], sample, {})]


def memory(tunnel: Tunnel) -> list[Reading]:
    """Resident memory of one gateway in MiB; the larger of the two ends."""
    sizes = []
    for gateway in tunnel.peer.gateways:
        status = Path(f"/proc/{gateway.pid}/status").read_text()
        sizes.append(sum(int(kib) for kib in re.findall(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)) / 1024)
    return [(MEMORY, Sample(max(sizes), detail={"ends_mib": [round(s, 1) for s in sizes]}), {})] if sizes else []


def idle(tunnels: list[Tunnel], seconds: float) -> dict[str, Sample]:
    """Wake-ups per second of one gateway (the busier end, all threads) with no traffic; all tunnels at once."""
    time.sleep(IDLE_SETTLE_S)
    before = {t.peer.name: [_switches(g.pid) for g in t.peer.gateways] for t in tunnels}
    with contextlib.ExitStack() as stack:
        samples = {t.peer.name: stack.enter_context(accounting(t)) for t in tunnels}
        time.sleep(seconds)
    for tunnel in tunnels:
        after = [_switches(g.pid) for g in tunnel.peer.gateways]
        per_s = [(b - a) / seconds for a, b in zip(before[tunnel.peer.name], after, strict=True)]
        sample = samples[tunnel.peer.name]
        sample.value = max(per_s)
        sample.detail |= {"ends_per_s": [round(x, 2) for x in per_s]}
    return samples


@contextlib.contextmanager
def accounting(tunnel: Tunnel, *, settle: bool = True) -> Iterator[Sample]:
    """A sample that gets time, CPU time and load of what is done inside."""
    pids = [gateway.pid for gateway in tunnel.peer.gateways]
    sample, started = Sample(0.0), time.monotonic()
    user, system = cpu_s(pids)
    before = machine.ticks()
    yield sample
    after = machine.ticks()
    user_after, system_after = cpu_s(pids)
    sample.seconds = round(time.monotonic() - started, 3)
    sample.cpu_user_s, sample.cpu_system_s = round(user_after - user, 3), round(system_after - system, 3)
    sample.busy = machine.busy_share(before, after)
    sample.detail["machine_s"] = {
        kind: round((after[kind] - before[kind]) * _TICK_S, 2) for kind in before if after[kind] != before[kind]
    }
    if settle:
        sample.foreign = _settle(pids)


def cpu_s(pids: list[int]) -> tuple[float, float]:
    """CPU seconds of some processes in user and in kernel mode."""
    user = system = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        user, system = user + int(fields[11]), system + int(fields[12])
    return user * _TICK_S, system * _TICK_S


def latency_quantiles(samples: list[Sample]) -> dict[str, float]:
    """Quantiles over the round trips of all rounds, in microseconds."""
    times = sorted(time for sample in samples for time in sample.detail.get("times_us", ()))
    names = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}
    return {name: quantile(times, share) for name, share in names.items()} if times else {}


def _iperf3(tunnel: Tunnel, seconds: float, *extra: str) -> dict[str, dict[str, dict[str, float]]]:
    source, target = tunnel.pair.inner
    command = ["iperf3", "-c", target, "-B", source, "-J", "--connect-timeout", "3000"]
    text = tunnel.pair.client.run(*command, *extra, timeout_s=seconds + 10)
    return parse_iperf3(text, tunnel.peer.title)


def parse_iperf3(text: str, who: str) -> dict[str, dict[str, dict[str, float]]]:
    """What ``iperf3 -J`` printed. LabError if it is no JSON or says that it failed."""
    try:
        result: dict[str, dict[str, dict[str, float]]] = json.loads(text)
    except ValueError:
        raise LabError(f"{who}: iperf3 printed no JSON: {text[:200]!r}") from None
    if "error" in result:
        raise LabError(f"{who}: iperf3: {result['error']}")
    return result


def parse_pings(text: str) -> list[float]:
    """Round trips in microseconds from what ping(8) printed."""
    return [round(float(value) * 1e3, 1) for value in re.findall(r"time=([\d.]+) ms", text)]


def _ping(tunnel: Tunnel, sample: Sample, seconds: float, *pace: str) -> None:
    source, target = tunnel.pair.inner
    # exit status 1 is for a reply that is missing, which is not an error here
    command = tunnel.pair.client.command(["ping", "-n", "-W", "1", *pace, "-I", source, target])
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60)
    times = parse_pings(done.stdout)
    if len(times) < 20:
        raise LabError(f"{tunnel.peer.title}: only {len(times)} pings came back\n{done.stderr[-500:]}")
    sample.value = quantile(sorted(times), 0.5)
    sent = re.search(r"(\d+) packets transmitted", done.stdout)
    sample.detail |= {"times_us": times, "lost": int(sent[1]) - len(times) if sent else 0}


def _every(interval_s: float, seconds: float) -> tuple[str, ...]:
    return "-i", str(interval_s), "-c", str(max(30, int(seconds / interval_s)))


def _settle(pids: list[int]) -> float:
    """Wait until the gateways rest; the share of all CPUs that was busy even then.

    charon queues without bound: what it still works off would be charged to whoever is measured next.
    """
    deadline = time.monotonic() + SETTLE_LIMIT_S
    while True:
        used, before = sum(cpu_s(pids)), machine.ticks()
        time.sleep(SETTLE_STEP_S)
        if sum(cpu_s(pids)) - used < 2 * _TICK_S or time.monotonic() > deadline:
            return machine.busy_share(before, machine.ticks())


def _switches(pid: int) -> int:
    total = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        with contextlib.suppress(FileNotFoundError):
            total += sum(int(n) for n in re.findall(r"ctxt_switches:\s+(\d+)", status.read_text()))
    return total


def _tcp(name: str, *extra: str) -> Measurement:
    return Measurement(name, lambda lab, t, s: tcp(t, name, s, *extra), lambda s: whole_seconds(s) + 0.6)


def _udp(name: str, size: str) -> Measurement:
    def costs(seconds: float) -> float:
        return (11 if seconds >= THOROUGH_S else 8) * (min(max(0.4, seconds / 4), 2.0) + 0.7)

    return Measurement(name, lambda lab, t, s: udp(lab, t, size, s), costs, once=True)


MEASUREMENTS = {
    one.name: one
    for one in (
        _tcp("tcp1"),
        _tcp("tcp4", "-P", "4"),
        _tcp("reverse", "-R"),
        _tcp("bidir", "--bidir"),
        _udp("udp64", "64"),
        _udp("udp512", "512"),
        _udp("udp1372", "1372"),
        _udp("imix", "imix"),
        Measurement(
            "rtt", lambda lab, t, s: round_trip(t, "rtt", s, *_every(PING_INTERVAL_S, s)), lambda s: s + 0.4
        ),
        Measurement(
            "rttloop", lambda lab, t, s: round_trip(t, "rttloop", s, "-A", "-c", str(PINGS_IN_A_ROW)), lambda s: 0.6
        ),
        Measurement("rttload", round_trip_under_load, lambda s: s + 1.8),
        Measurement("memory", lambda lab, t, s: memory(t), lambda s: 0.0, once=True),
        Measurement(
            "idle", lambda lab, t, s: [(IDLE, idle([t], s)[t.peer.name], {})], lambda s: s + 3, once=True, together=True
        ),
    )
}
