"""check, diff and doctor."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ipsec.config import load
from ipsec.ctl.doctor import _DROPS
from ipsec.ctl.errors import ExitCode
from ipsec.daemon.run import Daemon
from ipsec.errors import ConfigError
from ipsec.esp.drops import DropReason
from ipsec.ike.failure import Cause, Failure
from tests.ctl.daemon import Run, with_ipsecd
from tests.ctl.fake import Ctl, FakeDaemon
from tests.vici.test_service import FILE


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A configuration."""
    path = tmp_path / "a.conf"
    path.touch(mode=0o600)
    path.write_text(FILE.format(folder=tmp_path))
    return path


def test_check_of_a_good_file_needs_no_daemon(file: Path, ctl: Ctl) -> None:
    done = ctl("check", str(file))
    assert (done.status, done.err) == (ExitCode.OK, "")
    assert done.out == f"{file}: good, 1 connection\n"
    assert ctl("check", str(file), "--json").document["conns"] == ["old"]


def test_check_says_what_the_daemon_would(file: Path, ctl: Ctl) -> None:
    file.write_text(file.read_text().replace("remote_ts", "remote_tz"))
    with pytest.raises(ConfigError) as error:
        load(str(file))
    done = ctl("check", str(file))
    assert done.status == ExitCode.CONFIG
    assert str(error.value) in done.err
    assert f"{file}:" in done.err
    assert ctl("check", str(file), "--json").document["error"] == "config"


def test_check_and_doctor_name_all_that_is_wrong(file: Path, ctl: Ctl) -> None:
    (line,) = [line for line in file.read_text().splitlines() if "connections {" in line]
    file.write_text(file.read_text().replace(line, f"{line}\nx {{ mobike = 5x }}\ny {{ dpd_delay = 5x }}\n", 1))
    done = ctl("check", str(file))
    assert done.status == ExitCode.CONFIG
    keys = ["connections.x.mobike", "connections.y.dpd_delay"]
    assert [line.split(": ")[-2] for line in done.err.splitlines()] == keys
    shown = ctl("doctor", str(file)).out
    assert all(key in shown for key in keys)


def test_check_warns_and_strict_minds(file: Path, ctl: Ctl) -> None:
    file.chmod(0o644)
    done = ctl("check", str(file))
    assert done.status == ExitCode.OK
    assert "warning: " in done.err
    assert ctl("check", str(file), "--strict").status == ExitCode.CONFIG
    assert "of no worth" not in done.out + done.err


def test_check_of_no_file(tmp_path: Path, ctl: Ctl) -> None:
    done = ctl("check", str(tmp_path / "none"))
    assert done.status == ExitCode.CONFIG
    assert "none" in done.err


def test_check_of_a_file_that_may_not_be_read(file: Path, ctl: Ctl, monkeypatch: pytest.MonkeyPatch) -> None:
    """That is told by what reads it: the command line is not wrong."""

    def refuse(path: str, flags: int) -> int:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("os.access", lambda path, mode: False)
    monkeypatch.setattr("ipsec.config.grammar.os.open", refuse)
    done = ctl("check", str(file))
    assert done.status == ExitCode.CONFIG
    assert done.err.startswith(f"ipsecctl: {file}: Permission denied; it has to be readable by uid {os.geteuid()} or ")


def test_diff(tmp_path: Path, ctl: Ctl) -> None:
    async def test(one: Daemon, run: Run) -> None:
        done = await run("diff")
        assert (done.status, done.out) == (ExitCode.OK, f"{tmp_path}/swanctl.conf: what is in it is in effect\n")
        path = tmp_path / "swanctl.conf"
        text = path.read_text()
        path.write_text(
            text.replace("10.2.0.0/16", "10.9.0.0/16").replace("workers = 0", "workers = 2").replace("worth", "use")
        )
        done = await run("diff")
        assert done.status == ExitCode.DIFFERS
        assert done.out.splitlines() == [
            "~ ipsecd.workers  0 -> 2",
            "~ connections.old.children.net.remote_ts  10.2.0.0/16 -> 10.9.0.0/16",
            "~ secrets.ike-old.secret  (secret) -> (secret)",
            "",
            "A reload",
            "  takes a restart of the daemon  (ipsecd)",
            "  what is up stays up  (secrets)",
        ]
        document = (await run("diff", "--json")).document
        assert [change["effect"] for change in document["changes"]] == ["restart", "reconnected", "used"]
        path.write_text("connections {")
        done = await run("diff")
        assert done.status == ExitCode.CONFIG
        assert "closing" in done.err

    with_ipsecd(tmp_path, ctl, test)


def test_diff_of_a_charon(daemon: FakeDaemon, ctl: Ctl) -> None:
    done = ctl("diff")
    assert done.status == ExitCode.FAILED
    assert "ask an ipsecd" in done.err


def test_doctor_without_a_daemon(file: Path, ctl: Ctl) -> None:
    done = ctl("doctor", str(file))
    assert "no daemon: there is no socket" in done.out
    assert "-> start ipsecd" in done.out
    assert f"{file}: 1 connection" in done.out
    document = ctl("doctor", str(file), "--json").document
    assert document["complete"] is (done.status == ExitCode.OK)
    assert [group["title"] for group in document["groups"]] == ["This machine", "The daemon"]


def test_doctor_of_a_wrong_file(file: Path, ctl: Ctl) -> None:
    file.write_text("connections {")
    done = ctl("doctor", str(file))
    assert done.status == ExitCode.REQUIREMENT
    assert "missing" in done.out
    assert "closing" in done.out


def test_doctor_of_a_running_daemon(tmp_path: Path, ctl: Ctl) -> None:
    async def test(one: Daemon, run: Run) -> None:
        assert one.ike is not None
        one.ike.engine.note_without(Failure(Cause.NO_PATH, "no way", "net"), "old", None, initiator=True)
        done = await run("doctor")
        assert "answers on" in done.out
        assert f"{tmp_path}/swanctl.conf: what is in it is in effect" in done.out
        assert "connection old" in done.out
        assert "-> ipsecctl explain old" in done.out
        # what it holds is not tried
        assert "TUN device" not in done.out
        (tmp_path / "swanctl.conf").write_text("connections {")
        done = await run("doctor")
        assert done.status == ExitCode.REQUIREMENT
        assert "correct it before the next start or reload" in done.out

    with_ipsecd(tmp_path, ctl, test)


def test_doctor_of_radius_servers(daemon: FakeDaemon, file: Path, ctl: Ctl) -> None:
    good = {"server": "RADIUS server one (192.0.2.9:1812)", "auth": {"counters": {"requests": "7", "accepts": "7"}}}
    deaf = {"server": "RADIUS server two ([2001:db8::9]:1812)",
            "auth": {"silent": "61", "counters": {"requests": "3", "unauthentic": "2"}}}  # fmt: skip
    daemon.radius = {"one": good, "two": deaf}
    found = [one for group in ctl("doctor", str(file), "--json").document["groups"] for one in group["requirements"]
             if one["name"].startswith("RADIUS")]  # fmt: skip
    assert [(one["name"], one["state"]) for one in found] == [
        ("RADIUS one, who users are", "found"),
        ("RADIUS two, who users are", "hint"),
    ]
    assert found[0]["detail"] == "RADIUS server one (192.0.2.9:1812): 7 requests"
    assert found[1]["detail"].endswith(" has not answered for 61 s; 2 answers not made with our secret for it")
    assert "secret" in found[1]["remedy"]


def test_doctor_of_a_charon(charon: FakeDaemon, file: Path, ctl: Ctl) -> None:
    assert "it is no ipsecd" in ctl("doctor", str(file)).out


def test_advice_is_for_drops_that_exist() -> None:
    assert set(_DROPS) <= set(DropReason.__members__)
