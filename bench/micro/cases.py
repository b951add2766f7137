"""ESP packets through the engine. Each returns plain rows: every repetition, beside what it is compared with.

Times are CPU time of the measuring thread: being preempted does not count.
"""

from __future__ import annotations

import gc
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench.micro import subject
from ipsec.crypto.suites import esp_suite
from ipsec.esp.drops import DropReason
from ipsec.esp.fast import Batch, Engine

SIZES = (64, 256, 512, 1024, 1408, 8192)
BATCH_OCTETS = 128 << 10
"source and result of a batch together fit a 512 KiB L2 cache, as trains do in the pump"
BATCH_PACKETS = (16, 1024)
SPREAD = 1000
"SAs among which traffic is spread, and packets per batch where that is measured"
PASSES = 5
"of the same traffic over one population, before another one has its turn"
MEMORY_SAS = 20_000


class BenchError(Exception):
    """What was measured did not do its work."""


@dataclass(frozen=True)
class BatchRow:
    """One size: ESP in batches beside the provider alone."""

    suite: str
    provider: str
    size: int
    seal: list[float]
    "nanoseconds per packet, one value for each repetition"
    open: list[float]
    provider_seal: list[float]
    provider_open: list[float]


def batches(keywords: str, provider: str, size: int, repetitions: int) -> BatchRow:
    """``size``-octet inner packets through the batch API of one SA, in turns with the provider alone.

    Opening includes the replay check, padding, selectors and ECN; packets are sealed anew for every repetition.
    """
    suite = esp_suite(keywords)
    engine, ids = subject.engine_with(suite, 2, 1, provider)
    used = engine.providers()[suite.name]
    key = subject.provider_key(keywords, used)
    count = min(max(BATCH_OCTETS // size, BATCH_PACKETS[0]), BATCH_PACKETS[1])
    plain, sealed, opened = Batch(count, size), Batch(count, size + 128), Batch(count, size + 128)
    plain.load([subject.packet(size)] * count)
    seal: list[float] = []
    opening: list[float] = []
    provider_seal: list[float] = []
    provider_open: list[float] = []
    # several batches make one repetition, so that it lasts long enough for the clock
    loops = max(1, 400_000 // (count * (40 + size // 12)))
    for _ in range(repetitions + 1):
        seal_s = open_s = 0.0
        for _ in range(loops):
            begin = time.thread_time()
            done = engine.encapsulate_batch(ids[0], plain, sealed)
            middle = time.thread_time()
            good = engine.decapsulate_batch(sealed, opened)
            open_s += time.thread_time() - middle
            seal_s += middle - begin
            if done != count or good != count:
                raise BenchError(f"{keywords}, {size} octets: {done} sealed, {good} opened of {count}: {drops(engine)}")
        seal.append(seal_s / loops / count * 1e9)
        opening.append(open_s / loops / count * 1e9)
        for values, is_open in ((provider_seal, False), (provider_open, True)):
            begin = time.thread_time()
            key.time_ns(size, count * loops, is_open, count)
            values.append((time.thread_time() - begin) / loops / count * 1e9)
    if opened.packets()[-1] != subject.packet(size):
        raise BenchError(f"{keywords}, {size} octets: what came out is not what went in")
    # the first repetition warms up caches and page tables
    return BatchRow(keywords, used, size, seal[1:], opening[1:], provider_seal[1:], provider_open[1:])


@dataclass(frozen=True)
class SadRow:
    """One population of SAs and policies."""

    sas: int
    policies: int
    spread: int
    "over how many SAs the traffic goes; the next packet is always for the next one"
    size: int
    "octets of the inner packets"
    inbound: list[float]
    "decapsulate_batch, nanoseconds per packet for each repetition"
    outbound: list[float]
    "Engine.outbound, one Python call each: SPD and sealing"


def populations(
    keywords: str, cases: tuple[tuple[int, int, int], ...], sizes: tuple[int, ...], repetitions: int
) -> list[SadRow]:
    """(SAs, policies, spread) for each case and size, all engines alive at once and measured in turns."""
    suite = esp_suite(keywords)
    installed = {(sas, policies) for sas, policies, _ in cases}
    engines = {counts: subject.engine_with(suite, *counts)[0] for counts in installed}
    return [row for size in sizes for row in _populations_at(engines, cases, size, repetitions)]


def _populations_at(
    engines: dict[tuple[int, int], Engine], cases: tuple[tuple[int, int, int], ...], size: int, repetitions: int
) -> list[SadRow]:
    rows = [SadRow(*case, size, [], []) for case in cases]
    sealed, opened = Batch(SPREAD, size + 128), Batch(SPREAD, size + 128)
    gc.disable()
    for repetition in range(repetitions + 1):
        for row in rows:
            engine = engines[row.sas, row.policies]
            packets = [subject.packet(size, i % row.spread) for i in range(SPREAD)]
            passes = [_both_ways(engine, packets, sealed, opened) for _ in range(PASSES)]
            if repetition:
                # the first comes after another population: traffic on a gateway goes on, it does not begin all the time
                row.outbound.append(median(out for out, _ in passes[1:]))
                row.inbound.append(median(back for _, back in passes[1:]))
    gc.enable()
    return rows


def _both_ways(engine: Engine, packets: list[bytes], sealed: Batch, opened: Batch) -> tuple[float, float]:
    """Nanoseconds for each packet, out and back in."""
    now = time.monotonic()
    begin = time.thread_time()
    results = [engine.outbound(packet, now) for packet in packets]
    out = (time.thread_time() - begin) / len(packets) * 1e9
    if any(result.drop is not DropReason.NONE for result in results):
        raise BenchError(f"outbound: {drops(engine)}")
    sealed.load([result.sealed[0].datagram for result in results])
    begin = time.thread_time()
    good = engine.decapsulate_batch(sealed, opened)
    back = (time.thread_time() - begin) / len(packets) * 1e9
    if good != len(packets):
        raise BenchError(f"inbound: {good} of {len(packets)} opened: {drops(engine)}")
    return out, back


def drops(engine: Engine) -> dict[str, int]:
    """What an engine dropped, by name."""
    return {DropReason(reason).name: count for reason, count in engine.drops().items() if count}


def memory_per_sa(keywords: str) -> float:
    """Octets of resident memory that one more SA takes, its SaParams included, which the backend keeps.

    Measured in a process of its own.
    """
    code = f"from bench.micro.cases import _measure_memory; print(_measure_memory({keywords!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if done.returncode:
        raise BenchError(done.stderr[-1000:])
    return float(done.stdout)


def _measure_memory(keywords: str) -> float:
    suite = esp_suite(keywords)
    engine = Engine()
    kept = []

    def grow(number: int) -> None:
        for half in subject.sa_pair(suite, number):
            kept.append((engine.add_sa(half), half))

    for number in range(100):
        grow(number)
    gc.collect()
    before = _resident()
    for number in range(100, 100 + MEMORY_SAS // 2):
        grow(number)
    gc.collect()
    return (_resident() - before) / MEMORY_SAS


def _resident() -> int:
    found = re.search(r"^VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    if found is None:
        raise BenchError("this kernel does not say how much memory is resident")
    return int(found.group(1)) * 1024
