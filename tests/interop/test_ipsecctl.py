"""ipsecctl with an ipsecd and with a charon: the same verbs, the same outcome."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from ipsec.ctl.errors import ExitCode
from ipsec.ctl.main import main
from ipsec.ctl.schema import schema_text
from tests.interop.cases import make_sides, merge
from tests.interop.charon import CharonGateway
from tests.interop.gateway import Gateway, Side
from tests.interop.lab import INNER, Lab, eventually
from tests.interop.test_vici import Driven, DrivenIpsecd

pytestmark = [pytest.mark.interop, pytest.mark.e2e]

VALIDATOR = jsonschema.Draft202012Validator(json.loads(schema_text()))


@dataclass
class Ctl:
    """ipsecctl for one daemon."""

    end: Gateway
    lab: Lab

    def command(self, *arguments: str) -> list[str]:
        """For a process of its own."""
        return [sys.executable, "-m", "ipsec.ctl", "--socket", f"{self.end.home}/charon.vici", *arguments]

    def __call__(self, *arguments: str, status: int = 0) -> str:
        """Output of a run that ends with ``status``; in this process, since many are quicker so."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            ended = main(["--socket", f"{self.end.home}/charon.vici", *arguments])
        assert ended == status, f"{arguments}: {ended}\n{out.getvalue()}{err.getvalue()}"
        return out.getvalue()

    def document(self, *arguments: str, status: int = 0) -> Any:
        """The document that a run prints."""
        found = json.loads(self(*arguments, "--json", status=status))
        VALIDATOR.validate(found)
        return found

    def tunnel(self, name: str = "gw") -> Any:
        """What status says of a connection."""
        (found,) = self.document("status", "--sample", "0", name)["connections"]
        return found


def end_a(side: Side) -> Side:
    """A's configuration, and connections that come to nothing."""
    gw = side.swanctl["connections"]["gw"]
    children = {"net": gw["children"]["net"] | {"local_ts": "10.77.0.0/16"}}
    refused = merge(gw, {"proposals": "aes256-sha512-modp2048"})
    narrow = merge(gw, {"children": children})
    silent = merge(gw, {"remote_addrs": "192.0.2.77"})
    added = {"refused": refused, "narrow": narrow, "silent": silent, "passive": gw | {"remote_addrs": "%any"}}
    return Side(merge(side.swanctl, {"connections": added}), side.settings, side.files)


@pytest.fixture(scope="module", params=["ipsecd", "charon"])
def ctl(
    request: pytest.FixtureRequest, lab: Lab, credentials: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Ctl]:
    """A daemon that has loaded its configuration by ipsecctl, and a charon as its peer."""
    folder = tmp_path_factory.mktemp("ctl")
    make = {"ipsecd": DrivenIpsecd, "charon": Driven}[request.param]
    sides = make_sides()
    lab.reset(one_address=True)
    peer = CharonGateway(lab.b, 1, folder / "b", sides[1], credentials)
    end = make(lab.a, 0, folder / "a", end_a(sides[0]), credentials)
    try:
        peer.start()
        end.start()
        ctl = Ctl(end, lab)
        loaded = ctl.document("load", f"{end.home}/swanctl.conf")
        assert [one["name"] for one in loaded["loaded"] if one["kind"] == "connection"] == [
            *("gw", "refused", "narrow", "silent", "passive"),
        ]
        assert loaded["refused"] == []
        yield ctl
        end.stop()
    finally:
        end.kill()
        peer.kill()


def _has_a_socket(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return any(os.readlink(one).startswith("socket:") for one in Path(f"/proc/{pid}/fd").iterdir())
    return False


def test_up_traffic_rekey_down(ctl: Ctl) -> None:
    # a charon does not tell that nobody is to bring it up
    assert ctl.tunnel()["state"] == ("idle" if ctl.end.kind == "ipsecd" else "down")
    ctl("status", "--check", "gw", status=ExitCode.DIFFERS)
    with subprocess.Popen(ctl.command("watch", "--json"), stdout=subprocess.PIPE, text=True) as watch:
        # its event loop runs, so it connects now
        eventually(lambda: _has_a_socket(watch.pid), "ipsecctl watch has begun")
        time.sleep(0.5)
        (result,) = ctl.document("up", "gw")["results"]
        assert (result["name"], result["result"]) == ("gw/net", "up")
        assert ctl.document("up", "gw")["results"][0]["result"] == "was-up"
        before = ctl.tunnel()
        assert before["state"] == "up"
        assert ctl.lab.a.ping(INNER[4][0], INNER[4][1])
        (child,) = ctl.tunnel()["ike_sas"][0]["children"]
        assert (child["packets_in"], child["packets_out"]) == (2, 2)
        assert child["suite"]["encr"] == "AES_GCM_16"
        assert ctl.document("rekey", "gw/net")["results"][0]["result"] == "rekeyed"
        assert ctl.document("rekey", "gw")["results"][0]["result"] == "rekeyed"
        after = ctl.tunnel()
        assert after["ike_sas"][-1]["id"] != before["ike_sas"][0]["id"]
        assert ctl.lab.a.ping(INNER[4][0], INNER[4][1])
        assert "gw/net" in ctl("top", "--interval", "0.2")
        assert ctl.document("counters", "gw")["connections"]["gw"]["child-rekey"] >= 1
        (result,) = ctl.document("down", "gw")["results"]
        assert result["result"] == "down"
        assert ctl.document("down", "gw")["results"][0]["result"] == "was-down"
        watch.send_signal(signal.SIGINT)
        assert watch.stdout is not None
        lines = [json.loads(line) for line in watch.stdout.read().splitlines()]
    for line in lines:
        VALIDATOR.validate(line)
    events = [line["event"] for line in lines]
    for event in ("ike-up", "child-up", "child-rekeyed", "ike-rekeyed", "ike-down"):
        assert event in events, events


@pytest.mark.parametrize(
    ("name", "cause"), [("refused", "proposal-mismatch-ike"), ("narrow", "ts-mismatch"), ("passive", "")]
)
def test_why_not(ctl: Ctl, name: str, cause: str) -> None:
    # ipsecd takes no refusal that nobody vouches for as final
    statuses = {"refused": ExitCode.TIMEOUT} if ctl.end.kind == "ipsecd" else {}
    status = statuses.get(name, ExitCode.FAILED)
    (result,) = ctl.document("up", name, "--timeout", "1", status=status)["results"]
    assert result["cause"] == cause
    assert result["reason"]
    assert bool(result["remedy"]) == (name != "passive")
    ctl("down", name)
    eventually(lambda: ctl.tunnel(name)["ike_sas"] == [], "all is closed")


def test_ctrl_c_leaves_things_as_they_were(ctl: Ctl) -> None:
    with subprocess.Popen(ctl.command("up", "silent"), stderr=subprocess.PIPE, text=True) as process:
        eventually(lambda: ctl.tunnel("silent")["ike_sas"], "it has begun")
        assert ctl.tunnel("silent")["state"] == "connecting"
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert "given up" in process.stderr.read()
    assert process.returncode == ExitCode.INTERRUPTED
    eventually(lambda: ctl.tunnel("silent")["ike_sas"] == [], "nothing is left")


def test_lists(ctl: Ctl) -> None:
    assert len(ctl.document("list", "conns")["conns"]) == 5
    for kind in ("sas", "policies", "certs", "authorities", "pools", "algs"):
        ctl.document("list", kind)
        ctl("list", kind)
    ctl("status", "nothing", status=ExitCode.UNKNOWN_NAME)
