"""vici when something changes or goes wrong: stock swanctl and the PyPI client on charon and ipsecd, as in test_vici.

Re-authentication, an address of ours that changes, a redirection that is followed, a peer that is dead, the log.
"""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.interop.cases import make_sides
from tests.interop.charon import CharonGateway
from tests.interop.gateway import Side
from tests.interop.lab import OUTER, SECOND, WIRE, Lab, eventually
from tests.interop.test_vici import Driven, DrivenIpsecd, Following, Transcript

vici = pytest.importorskip("vici")
pytestmark = [pytest.mark.interop, pytest.mark.e2e]

EVENTS = ("ike-updown", "ike-update")


def sides() -> tuple[Side, Side]:
    """Our end takes what address it has; a peer that is dead is given up soon."""
    quick = {"retransmit_tries": 1, "retransmit_timeout": 1}
    return make_sides(initiator={"connections": {"gw": {"local_addrs": "%any"}}}, settings=(quick, {}))


def drive(said: Transcript, peer: CharonGateway, lab: Lab) -> None:
    """Everything, in an order that makes each step show something."""
    assert "successfully loaded" in said.do("load", "--load-all", "--noprompt", "--file", f"{said.home}/swanctl.conf")
    listener = threading.Thread(target=_listen, args=(said,))
    listener.start()
    eventually(lambda: said.got.get("listening"), "the listener is registered")
    printer = Following(said.home, "--log")
    assert "completed" in said.do("initiate", "--initiate", "--child", "net", "--timeout", "10")
    before = _numbers(said)
    assert "completed" in said.do("reauth", "--rekey", "--ike", "gw", "--reauth")
    eventually(lambda: _numbers(said) and not _numbers(said) & before and _is_up(said), "another IKE_SA is up")
    said.said["log"] = printer.stop()
    lab.a.ip("addr", "add", f"{SECOND}/24", "dev", WIRE)
    lab.a.ip("addr", "del", f"{OUTER[4][0]}/24", "dev", WIRE)
    eventually(lambda: any(name == "ike-update" for name, _ in said.heard), "ike-update comes")
    eventually(lambda: SECOND in said.do("moved", "--list-sas"), "the IKE_SA has moved")
    said.do("terminate", "--terminate", "--ike", "gw", "--timeout", "5")
    lab.reset(one_address=True)
    assert peer.initiate(), peer.log()[-3000:]
    eventually(lambda: _is_up(said), "the peer has connected")
    said.do("redirect", "--redirect", "--ike", "gw", "--gateway", "192.0.2.3")
    eventually(lambda: "192.0.2.3" in peer.swanctl("--list-sas"), "the peer goes where it is sent")
    said.do("force", "--terminate", "--ike", "gw", "--force")
    peer.swanctl("--terminate", "--ike", "gw", "--force", "--timeout", "1", check=False)
    said.do("again", "--initiate", "--child", "net", "--timeout", "10")
    peer.kill()
    said.do("force after a while", "--terminate", "--ike", "gw", "--force", "--timeout", "1")
    said.do("nothing left", "--list-sas")
    said.got["stop"] = True
    listener.join(15)


def _numbers(said: Transcript) -> set[str]:
    return set(re.findall(r"(?m)^gw: #(\d+), ESTABLISHED", said.do("now", "--list-sas")))


def _is_up(said: Transcript) -> bool:
    return "INSTALLED" in said.do("now", "--list-sas")


def _listen(said: Transcript) -> None:
    with said.session() as session:
        for name, message in session.listen(EVENTS, timeout=0.1):
            said.got["listening"] = True
            if name is not None:
                said.heard.append((name.decode(), message))
            if said.got.get("stop"):
                return


@pytest.fixture(scope="module")
def transcripts(lab: Lab, credentials: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Transcript]:
    """The same commands, given to both."""
    folder = tmp_path_factory.mktemp("changes")
    found = {}
    for kind, make in (("charon", Driven), ("ipsecd", DrivenIpsecd)):
        lab.reset(one_address=True)
        (folder / kind).mkdir()
        ours, theirs = sides()
        peer = CharonGateway(lab.b, 1, folder / kind / "b", theirs, credentials)
        end = make(lab.a, 0, folder / kind / "a", ours, credentials)
        try:
            peer.start()
            end.start()
            found[kind] = Transcript(end)
            drive(found[kind], peer, lab)
            end.stop()
        except BaseException as error:
            error.add_note(f"--- {kind}\n{end.log()[-5000:]}\n--- peer\n{peer.log()[-3000:]}")
            raise
        finally:
            if kind in found:
                found[kind].got["stop"] = True
            end.kill()
            peer.kill()
    return found


@pytest.mark.parametrize("name", ["reauth", "redirect", "nothing left"])
def test_swanctl_prints_the_same(transcripts: dict[str, Transcript], name: str) -> None:
    assert transcripts["ipsecd"].said[name] == transcripts["charon"].said[name]


@pytest.mark.parametrize("name", ["terminate", "force"])
def test_swanctl_ends_the_same(transcripts: dict[str, Transcript], name: str) -> None:
    """Between beginning and end stands the log, each in its own words."""
    ends = [transcripts[kind].said[name].splitlines()[-2:] for kind in ("charon", "ipsecd")]
    assert ends[0] == ends[1]


def test_a_peer_that_is_dead_is_forgotten(transcripts: dict[str, Transcript]) -> None:
    """By both, and charon calls that a failure (docs/vici.md)."""
    ends = {kind: transcript.said["force after a while"].splitlines()[-2:] for kind, transcript in transcripts.items()}
    assert ends["ipsecd"] == ["terminate completed successfully", "-> 0"]
    assert ends["charon"] == ["terminate failed: terminating SA failed", "-> 1"]


def test_swanctl_prints_the_log_alike(transcripts: dict[str, Transcript]) -> None:
    """A number, a group, and about which IKE_SA."""
    for transcript in transcripts.values():
        lines = transcript.said["log"].splitlines()
        assert len(lines) > 3, lines
        for line in lines:
            assert re.match(r"\d+\[(IKE|ENC|NET|CFG|KNL|JOB|DMN|MGR|CHD|ESP|LIB)\] ", line), line


def test_the_address_that_changed(transcripts: dict[str, Transcript]) -> None:
    def shape(message: Any) -> Any:
        found = {}
        for key, value in message.items():
            if isinstance(value, dict):
                skipped = ("nat-fake", "tasks-queued", "tasks-active", "tasks-passive", "established")
                found[key] = sorted(name for name in value if name not in skipped)
            else:
                found[key] = value if key.endswith("host") else ""
        return found

    seen = {
        kind: [shape(message) for name, message in transcript.heard if name == "ike-update"]
        for kind, transcript in transcripts.items()
    }
    assert seen["ipsecd"][0] == seen["charon"][0]
    assert seen["ipsecd"][0]["local-host"] == SECOND.encode()
