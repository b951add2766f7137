"""Parsing what other programs print, and the search for the highest rate, on tunnels that are functions."""

from __future__ import annotations

import json

import pytest

from bench.e2e.measure import CLEAN_LOSS, Probe, latency_quantiles, parse_iperf3, parse_pings, udp_search
from bench.results import Sample
from bench.topology import LabError

PINGS = """\
PING 10.2.0.1 (10.2.0.1) from 10.1.0.1 : 56(84) bytes of data.
64 bytes from 10.2.0.1: icmp_seq=1 ttl=64 time=0.170 ms
64 bytes from 10.2.0.1: icmp_seq=2 ttl=64 time=1.04 ms
no answer yet for icmp_seq=3
64 bytes from 10.2.0.1: icmp_seq=4 ttl=64 time=12 ms
"""


def test_pings() -> None:
    assert parse_pings(PINGS) == [170.0, 1040.0, 12000.0]


def test_iperf3() -> None:
    assert parse_iperf3(json.dumps({"end": {"sum_sent": {}}}), "x") == {"end": {"sum_sent": {}}}
    with pytest.raises(LabError, match="x: iperf3: unable to connect"):
        parse_iperf3('{"error": "unable to connect"}', "x")
    with pytest.raises(LabError, match="no JSON"):
        parse_iperf3("Segmentation fault", "x")


def tunnel(capacity: float, sender: float = 1e9, collapse: float = 0.0):
    """Passes ``capacity`` packets/s, of a sender that can make so many; beyond it throughput falls by ``collapse``."""

    def probe(rate: float) -> Probe:
        offered = min(rate, sender)
        passed = min(offered, max(capacity - collapse * max(offered - capacity, 0), 0))
        return Probe(offered / 1e3, passed / 1e3, 1 - passed / offered, Sample(0.0))

    return probe


@pytest.mark.parametrize("capacity", [33e3, 100e3, 163e3, 700e3])
def test_the_search_finds_the_capacity(capacity: float) -> None:
    best, clean, probes = udp_search(tunnel(capacity, collapse=0.3))
    assert clean is not None
    assert 0.93 * capacity <= clean * 1e3 <= capacity / (1 - CLEAN_LOSS)
    assert 0.75 * capacity <= best.in_time * 1e3 <= capacity
    assert len(probes) < 30


def test_a_sender_at_its_end_ends_the_search() -> None:
    best, clean, probes = udp_search(tunnel(1e9, sender=90e3))
    assert best.in_time == 90.0
    assert clean == 90.0
    assert len(probes) < 9


def test_a_tunnel_that_always_loses_has_no_clean_rate() -> None:
    def leaky(rate: float) -> Probe:
        return Probe(rate / 1e3, rate * 0.9 / 1e3, 0.1, Sample(0.0))

    assert udp_search(leaky)[1] is None


def test_a_single_loss_does_not_decide() -> None:
    calls: list[float] = []
    perfect = tunnel(100e3)

    def hiccup(rate: float) -> Probe:
        calls.append(rate)
        one = perfect(rate)
        # every rate that is asked for the first time in the halving loses once
        first = calls.count(rate) == 1 and len(calls) > 8
        return Probe(one.offered, one.in_time, max(one.loss, 0.05 * first), one.sample)

    _, clean, _ = udp_search(hiccup)
    assert clean == pytest.approx(100, rel=0.07)


def test_without_halving_there_are_few_probes() -> None:
    assert len(udp_search(tunnel(100e3), bisect=False)[2]) <= 7


def test_quantiles_are_over_all_rounds() -> None:
    samples = [Sample(0.0, detail={"times_us": [float(n)] * 10}) for n in range(1, 11)]
    found = latency_quantiles(samples)
    assert found["p50"] == 5.5
    assert found["p99.9"] == 10.0
    assert latency_quantiles([Sample(0.0)]) == {}
