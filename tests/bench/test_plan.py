"""What is measured, in which order, and how long it takes."""

from __future__ import annotations

import argparse
from dataclasses import replace

import pytest

from bench import run
from bench.e2e.ipsecd import GCM, variants
from bench.e2e.measure import MEASUREMENTS
from bench.e2e.plan import LEAST_MISSED, Panel, chosen, panels, turns
from bench.e2e.tunnels import make_peer, names
from bench.session import Options


def parsed(*arguments: str) -> tuple[list[str], Options]:
    parser = argparse.ArgumentParser()
    run.add_arguments(parser)
    return run.options_of(parser.parse_args(arguments), parser)


def test_every_tunnel_of_the_plan_can_be_made() -> None:
    used = {tunnel for panel in panels() for tunnel in panel.tunnels}
    assert used <= set(names())
    assert all(make_peer(name, {}).title for name in names())
    assert {one for panel in panels() for one, _ in panel.steps} == set(MEASUREMENTS)


def test_rounds_are_interleaved_and_turned_round() -> None:
    panel = Panel("x", "x", (("tcp1", ("a", "b")), ("memory", ("a",))))
    order = [(number, one.name, tunnels) for number, one, tunnels in turns(panel, 3)]
    assert order == [
        (0, "tcp1", ("a", "b")), (0, "memory", ("a",)), (1, "tcp1", ("b", "a")), (2, "tcp1", ("a", "b")),
    ]  # fmt: skip


def test_quick_takes_three_minutes_and_the_rest_what_it_is_told() -> None:
    parts, quick = parsed("--quick")
    assert run.expected_s(parts, quick) < 200
    for minutes in (15, 40):
        parts, options = parsed("--minutes", str(minutes))
        assert 0.8 * 60 * minutes < run.expected_s(parts, options) <= 60 * minutes
        assert options.rounds == 5
        assert bool(options.left_out) == (minutes == 15)


def test_what_there_is_no_time_for_is_left_out_of_its_panel_only() -> None:
    _, options = parsed("--panels", "threads,peers")
    full = {(panel.name, one) for panel in chosen(options) for one, _ in panel.steps}
    less = chosen(replace(options, left_out=(("threads", "tcp4"),)))
    assert full - {(panel.name, one) for panel in less for one, _ in panel.steps} == {("threads", "tcp4")}
    assert set(LEAST_MISSED) <= {(panel.name, one) for panel in panels() for one, _ in panel.steps}


def test_named_tunnels_are_one_panel() -> None:
    _, options = parsed("--only", "tcp1,rtt", "--peers", "ipsec,bare")
    assert [(panel.name, panel.steps) for panel in chosen(options)] == [
        ("peers", (("tcp1", ("ipsec", "bare")), ("rtt", ("ipsec", "bare"))))
    ]


def test_parts_without_a_named_measurement_are_left_out() -> None:
    assert parsed("--only", "tcp1")[0] == ["e2e"]
    assert parsed("--only", "kex")[0] == ["micro"]
    assert parsed("--only", "kex,flood")[0] == ["micro", "handshake"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--only", "tcp9"), "'tcp9'"), (("--peers", "nobody"), "'nobody'"), (("--panels", "x"), "'x'"),
        (("--parts", "all"), "'all'"), (("--set", "workers"), "KEY=VALUE"), (("--rounds", "0"), "--rounds"),
        (("--seconds", "-1"), "--seconds"), (("--sizes", "64,x"), "'64,x'"), (("--sizes", "9"), "28"),
        (("--suites", "rot13"), "rot13"), (("--provider", "x"), "--provider"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(
    arguments: tuple[str, ...], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parsed(*arguments)
    assert named in capsys.readouterr().err


def test_variants_differ_in_what_they_say() -> None:
    found = variants()
    assert found["ipsec"].suite == GCM
    assert found["raw"].encap is False
    assert found["ipv6"].link.outer[0].count(":")
    assert all(len(found[f"no-{name}"].off) == 1 for name in ("tun_tso", "udp_gro"))
