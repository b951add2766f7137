"""The demos: the one in memory as it is, the others as far as they come within seconds."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ipsec.cli import demo_lab, demo_memory, demo_strongswan
from ipsec.cli.demo_memory import DemoError
from ipsec.config.schema import load_text
from ipsec.ike.config import Action


def test_in_memory(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(demo_memory, "PACKETS", 320)
    demo_memory.run()
    said = capsys.readouterr().out
    assert said.count("the same,") == 4
    assert "negotiated by both in               4 messages" in said
    assert "CHILD_SA and IKE_SA rekeyed in      8 messages" in said
    assert "with inner octets in clear: 0" in said


@pytest.mark.parametrize("side", [0, 1])
def test_configuration_with_a_preshared_key(side: int) -> None:
    sections = demo_lab.connection(side, auth="psk", names=("a.example", "b.example"), initiates=side == 0)
    config = load_text(sections + "secrets {\n ike-demo {\n secret = 0x" + "11" * 32 + "\n }\n}\n")
    (connection,) = config.connections
    (child,) = connection.children
    assert (child.start_action, child.rekey_time == demo_lab.CHILD_LIFE_S) == (
        (Action.START, True) if side == 0 else (Action.NONE, False)
    )
    assert not config.warnings


def test_certificates_are_good_for_both(tmp_path: Path) -> None:
    homes = tmp_path / "a", tmp_path / "b"
    demo_strongswan._certificates(homes)
    for home in homes:
        assert (home / "private" / "gateway.pem").stat().st_mode & 0o777 == 0o600
        command = ["openssl", "verify", "-CAfile", str(home / "x509ca/ca.pem"), str(home / "x509/gateway.pem")]
        assert subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.parametrize("module", ["demo", "demo_strongswan"])
@pytest.mark.parametrize(("argument", "status", "said"), [("--help", 0, "usage: python"), ("nothing", 2, "nothing")])
def test_takes_no_arguments(module: str, argument: str, status: int, said: str) -> None:
    command = [sys.executable, "-m", f"ipsec.cli.{module}", argument]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == status
    assert said in done.stdout + done.stderr
    assert "MTU" not in done.stdout


def test_two_at_once_would_take_each_others_namespaces() -> None:
    with contextlib.ExitStack() as first:
        demo_lab._alone(first)
        with contextlib.ExitStack() as second, pytest.raises(DemoError, match="another demo is running"):
            demo_lab._alone(second)
    with contextlib.ExitStack() as third:
        demo_lab._alone(third)


def test_what_was_negotiated_is_told_when_the_log_has_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    log = tmp_path / "log"
    late = "sleep 0.2; echo 'x: demo[1]: CHILD_SA net{2} up, SPIs 01_i 02_o'; sleep 5"
    with contextlib.ExitStack() as stack, log.open("wb") as out:
        daemon = demo_lab.Daemon.__new__(demo_lab.Daemon)
        daemon.begun, daemon._log = time.monotonic(), log
        daemon.process = subprocess.Popen(["sh", "-c", late], stdout=out)
        stack.callback(demo_lab._stop, daemon.process)
        demo_lab.show_negotiated(daemon)
    assert "SPIs 01_i 02_o" in capsys.readouterr().out


def test_says_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(demo_strongswan, "NEEDED", {"/nonexistent": "strongswan-charon"})
    assert demo_strongswan.main() == 1
    assert "apt-get install --no-install-recommends strongswan-charon" in capsys.readouterr().err
