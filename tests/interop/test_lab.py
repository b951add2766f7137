"""The laboratory notices what it is there to notice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import run
from tests.interop import wire
from tests.interop.cases import CASES, make_sides
from tests.interop.charon import CharonGateway, parse_raw
from tests.interop.eap_cases import EAP_CASES
from tests.interop.lab import (
    INNER,
    OUTER,
    PREFIX,
    ROUTING_TABLE,
    WIRE,
    Lab,
    eventually,
    remove_leftovers,
    render,
    transfer,
)
from tests.interop.recordings import Recordings
from tools import strongswan

pytestmark = [pytest.mark.interop, pytest.mark.e2e]

ROOT = Path(__file__).parent.parent.parent


def test_every_case_has_a_name_of_its_own() -> None:
    names = [case.name for case in (*CASES, *EAP_CASES)]
    assert len(set(names)) == len(names) >= 60


def test_cleartext_is_noticed(lab: Lab, tmp_path: Path) -> None:
    lab.reset()
    lab.recorder.clear()
    for end, other in ((0, 1), (1, 0)):
        lab.ends[end].ip("route", "add", INNER[4][other], "via", OUTER[4][other], "dev", WIRE)
    try:
        assert lab.a.ping(*INNER[4])
        transfer(lab.a, OUTER[4][0], lab.b, OUTER[4][1])
    finally:
        for end, other in ((0, 1), (1, 0)):
            lab.ends[end].ip("route", "del", INNER[4][other])
    found = wire.read(lab.recorder.frames()).cleartext
    assert any("10.1.0.1 -> 10.2.0.1 protocol 1" in line for line in found)
    assert any("192.0.2.1 -> 192.0.2.2 protocol 6" in line for line in found)
    assert any("our data" in line for line in found)


def test_what_a_killed_daemon_left_is_gone(lab: Lab) -> None:
    for family, version in (("-4", 4), ("-6", 6)):
        lab.a.ip(family, "route", "add", "unreachable", INNER[version][1], "table", ROUTING_TABLE)
    lab.reset()
    for family in ("-4", "-6"):
        assert not lab.a.ip(family, "route", "show", "table", ROUTING_TABLE, check=False)


def test_a_malformed_message_is_noticed(lab: Lab, tmp_path: Path) -> None:
    lab.recorder.clear()
    # an IKE_SA_INIT whose only payload claims to be longer than the message
    message = bytes(7) + b"\1" + bytes(8) + bytes([33, 0x20, 34, 8]) + bytes(4) + (36).to_bytes(4, "big")
    with lab.a.socket(2, 2) as sock:
        sock.sendto(message + bytes([0, 0, 1, 0]) + bytes(4), (OUTER[4][1], 500))
    eventually(lambda: wire.read(lab.recorder.frames()).ike, "the message is recorded")
    lab.recorder.save(tmp_path / "wire.pcap")
    recordings = Recordings(tmp_path)
    recordings.add("here", tmp_path / "wire.pcap")
    (complaint, *_) = recordings.complaints()
    assert complaint.startswith("here: ")


def test_configuration_text() -> None:
    first, _ = make_sides(certs="rsa")
    text = render(first.swanctl)
    assert "    local {\n      id = a.interop.test\n      auth = pubkey\n      certs = a-rsa.pem\n" in text


def test_raw_output_of_swanctl() -> None:
    text = "{gw {state=ESTABLISHED local-id=C=CH, O=x, CN=y child-sas {net-1 {local-ts=[10.1.0.0/16 fd01::/16]}}}}"
    child = {"local-ts": ["10.1.0.0/16", "fd01::/16"]}
    wanted = {"state": "ESTABLISHED", "local-id": "C=CH, O=x, CN=y", "child-sas": {"net-1": child}}
    assert parse_raw(text) == {"gw": wanted}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=["INT", "TERM", "KILL"])
def test_nothing_is_left_behind(number: signal.Signals, tmp_path: Path) -> None:
    """A session that ends early takes its charon along; the namespaces go with it or with the next session."""
    script = tmp_path / "session.py"
    script.write_text(SESSION)
    process = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    with process.stdout:
        charon = int(process.stdout.readline())
    assert Path("/proc", str(charon), "comm").read_text() == f"{Path(strongswan.daemon()).name}\n"
    process.send_signal(number)
    process.wait(timeout=10)
    eventually(lambda: not Path("/proc", str(charon)).exists(), "charon is gone")
    if number == signal.SIGINT:
        assert f"{PREFIX}{process.pid}-" not in run("ip", "netns", "list").stdout
    remove_leftovers()
    assert f"{PREFIX}{process.pid}-" not in run("ip", "netns", "list").stdout


SESSION = f"""
import sys, time
from pathlib import Path
from tests.interop.cases import make_sides
from tests.interop.charon import CharonGateway
from tests.interop.lab import Lab
with Lab() as lab:
    gateway = {CharonGateway.__name__}(lab.a, 0, Path(sys.argv[1]) / "a", make_sides()[0], Path())
    gateway.start()
    print(gateway.process.pid, flush=True)
    time.sleep(60)
"""
