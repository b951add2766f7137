"""Every case of the matrix, with this project's daemon at one end and strongSwan at the other.

    IPSEC_INTEROP=charon-charon pytest -m interop      the peer against itself: is the case right?
    STRONGSWAN_ROOT=/srv/trixie pytest -m interop      another strongSwan, see tools/strongswan.py

The words of IPSEC_INTEROP are initiator-responder. Whatever a case is about, nothing of what the tunnel is for may
cross the wire in clear, both daemons have to end when they are asked to, and tshark has to make sense of every packet.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.interop import ipsecd
from tests.interop.cases import CASES, Case, merge
from tests.interop.charon import CharonGateway
from tests.interop.eap_cases import EAP_CASES
from tests.interop.gateway import Gateway, Side
from tests.interop.ipsecd import IpsecdGateway
from tests.interop.lab import Lab
from tests.interop.recordings import Recordings
from tests.interop.steps import Run
from tools import strongswan

pytestmark = [pytest.mark.interop, pytest.mark.e2e]

KINDS: dict[str, type[Gateway]] = {"charon": CharonGateway, "ipsecd": IpsecdGateway}
PEERS = os.environ.get("IPSEC_INTEROP", "ipsecd-charon charon-ipsecd").split()
ROLES = ("initiator", "responder")


#: cases about one algorithm each, of which there are many that differ in little
ALGORITHMS = ("ke ", "ike ", "esp ", "certificates ")


def _unable(case: Case, peers: str) -> bool:
    """charon cannot play the role it would have."""
    kinds = peers.split("-")
    return any(kind == "charon" and role in case.not_charon for role, kind in zip(ROLES, kinds, strict=True))


def _matrix() -> Iterator[object]:
    """The whole matrix takes eight minutes; most of what it can find shows with each case in one role, by turns."""
    for index, case in enumerate((*CASES, *EAP_CASES)):
        # two ends that both look for another way find it too
        able = [peers for peers in (*PEERS, *(["ipsecd-ipsecd"] if case.two_wires else [])) if not _unable(case, peers)]
        algorithm = case.name.startswith(ALGORITHMS)
        turn = index // 2 if algorithm else index
        for place, peers in enumerate(able):
            slow = len(PEERS) > 1 and (case.slow or turn % len(able) != place or (algorithm and index % 2))
            name = re.sub("[^a-zA-Z0-9]+", "_", case.name)
            marks = [pytest.mark.slow] if slow else []
            yield pytest.param(case, peers.split("-"), id=f"{peers}-{name}", marks=marks)


def side_of(case: Case, index: int, kind: str) -> Side:
    """What an end is configured with."""
    side = case.sides[index]
    return replace(side, swanctl=merge(side.swanctl, case.charon)) if kind == "charon" else side


@pytest.mark.parametrize(("case", "kinds"), list(_matrix()))
def test_case(
    lab: Lab, credentials: Path, recordings: Recordings, tmp_path: Path, case: Case, kinds: list[str]
) -> None:
    if "ipsecd" in kinds and ipsecd.obstacle():
        pytest.skip(ipsecd.obstacle())
    lab.reset(one_address=case.one_address, two_wires=case.two_wires)
    lab.recorder.clear()
    if "charon" in kinds and strongswan.version() < case.since:
        pytest.skip(f"strongSwan {'.'.join(map(str, case.since))} has it, this is {strongswan.version()}")
    ends = [
        KINDS[kind](lab.ends[index], index, tmp_path / "ab"[index], side_of(case, index, kind), credentials)
        for index, kind in enumerate(kinds)
    ]
    run = Run(lab, (ends[0], ends[1]), tmp_path)
    try:
        play(run, case, lab, tmp_path)
    finally:
        pcap = tmp_path / "wire.pcap"
        lab.recorder.save(pcap)
        recordings.add(f"{case.name} ({'-'.join(kinds)})", pcap)


def play(run: Run, case: Case, lab: Lab, folder: Path) -> None:
    """All steps of a case, with daemons that end when they are asked to, and nothing in clear."""
    for step in case.steps:
        step.plan(run.ends)
    try:
        # the responder first: an initiator may begin as soon as it runs
        for end in reversed(run.ends):
            end.start()
        for step in case.steps:
            step(run)
        for end in run.ends:
            end.stop()
        for step in case.steps:
            step.finish(run)
        assert not run.wire().cleartext
    except BaseException as error:
        error.add_note(report(run, lab, folder))
        raise
    finally:
        for end in run.ends:
            end.kill()


def report(run: Run, lab: Lab, folder: Path) -> str:
    """Both logs and the exchanges, for whoever has to find out."""
    parts = []
    for end in run.ends:
        # without what charon says to the configuration it was given
        lines = [
            line for line in end.log().splitlines() if not re.search(r"\[CFG\] .* = |\[CFG\] +\w+:$|vici client", line)
        ]
        parts += [f"--- {end.kind} {'ab'[end.index]}", *lines[-80:]]
    parts += ["--- exchanges", *(str(message) for message in run.wire().ike), f"--- files are in {folder}"]
    return "\n".join(parts)
