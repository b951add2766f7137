"""Failures that a daemon remembers, read and explained."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from ipsec.ctl.problems import Problem
from ipsec.ike.failure import Cause, Failure, Terms
from ipsec.ike.failure import Problem as EngineProblem
from ipsec.vici.codec import PacketType, emit_packet, parse_packet
from ipsec.vici.extensions import show_problem

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def over_the_wire(problem: EngineProblem) -> Problem:
    """As a client gets it."""
    packet = emit_packet(PacketType.EVENT, "ipsecd-problem", show_problem(problem))
    return Problem.of(parse_packet(packet[4:]).message)


@pytest.mark.parametrize("cause", Cause)
def test_every_cause_has_advice(cause: Cause) -> None:
    problem = over_the_wire(EngineProblem("gw", Failure(cause, "why", "net"), None, True, AT))
    assert problem.cause == cause.value
    assert problem.advice
    assert "{" not in problem.advice


def test_what_differed_comes_over() -> None:
    failure = Failure(
        Cause.PEER_ID, "not them", ours=Terms(("a", "b"), identity="x"), theirs=Terms((), ("1",), ("2",), "y", ("c",))
    )
    problem = over_the_wire(EngineProblem("gw", failure, None, False, AT, count=3, over=True))
    assert (problem.conn, problem.child, problem.by, problem.initiator) == ("gw", "", "us", False)
    assert (problem.count, problem.over) == (3, True)
    assert (problem.ours.proposals, problem.ours.id) == (("a", "b"), "x")
    assert (problem.theirs.local_ts, problem.theirs.remote_ts) == (("1",), ("2",))
    assert (problem.theirs.id, problem.theirs.certificates) == ("y", ("c",))
    assert problem.ago_s(AT + timedelta(seconds=5)) == 5
    assert problem.ago_s(AT - timedelta(seconds=5)) == 0


@pytest.mark.parametrize("time", ["", "yesterday", "2026-01-02T03:04:05"])
def test_times_that_mean_nothing(time: str) -> None:
    assert Problem.of({"time": time.encode()}).ago_s() is None
