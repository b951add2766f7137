"""What holds for all verbs: options, errors, exit statuses, help."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest

from ipsec.ctl.app import App, Verb, VerbGroup
from ipsec.ctl.errors import MEANINGS, ExitCode
from ipsec.ctl.main import VERBS, cli, main
from ipsec.ctl.schema import schema_text
from tests.ctl.fake import VALIDATOR, Ctl, FakeDaemon, conn


def commands(group: click.Group = cli, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], click.Command]]:
    """All verbs, also those below verbs."""
    found = []
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        assert command is not None
        found.append(((*path, name), command))
        if isinstance(command, click.Group):
            found += commands(command, (*path, name))
    return found


COMMANDS = commands()


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=[" ".join(path) for path, _ in COMMANDS])
def test_every_verb(path: tuple[str, ...], command: click.Command, capsys: pytest.CaptureFixture[str]) -> None:
    """Each is of the classes that have the common options, has its own name, and helps."""
    assert isinstance(command, Verb | VerbGroup)
    assert command.name == path[-1]
    assert command.help
    assert main([*path, "--help"]) == 0
    out = capsys.readouterr().out
    for option in ("--json", "--socket", "--color"):
        assert option in out
    assert all(option.help for option in command.params if isinstance(option, click.Option))


def test_help_names_every_verb_and_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for title, verbs in VERBS.items():
        assert f"{title}:" in out
        assert all(f"\n  {name} " in out for name in verbs)
    assert all(f" {code:3d}  " in out for code in MEANINGS)


def test_summaries_are_those_of_the_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    places = {name: place for verbs in VERBS.values() for name, place in verbs.items()}
    assert {path[0]: cmd.get_short_help_str(limit=300) for path, cmd in COMMANDS if len(path) == 1} == {
        name: place.summary for name, place in places.items()
    }


def test_help_imports_no_verb() -> None:
    code = "import sys; from ipsec.ctl.main import main; main(['--help']); sys.stderr.write(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stderr.split())
    assert not loaded & {"ipsec.ctl.doctor", "ipsec.daemon", "ipsec.config", "ipsec.ike", "ipsec.backend"}


def test_schema_is_one() -> None:
    schema = json.loads(schema_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    # each definition is used, and there
    assert set(re.findall(r"#/\$defs/(\w+)", schema_text())) == set(schema["$defs"])


def test_no_daemon(ctl: Ctl) -> None:
    done = ctl("list", "conns")
    assert done.status == ExitCode.UNREACHABLE
    assert f"no daemon: there is no socket {ctl.socket}" in done.err
    assert "start ipsecd" in done.err
    assert done.out == ""


def test_socket_that_nobody_listens_on(ctl: Ctl, tmp_path: Path) -> None:
    with FakeDaemon(tmp_path / "other"):
        os.rename(tmp_path / "other", ctl.socket)
    done = ctl("list", "conns")
    assert done.status == ExitCode.UNREACHABLE
    assert "no daemon listens on" in done.err


def test_socket_that_is_none(ctl: Ctl) -> None:
    ctl.socket.write_text("")
    done = ctl("list", "conns")
    assert done.status == ExitCode.UNREACHABLE
    assert f"{ctl.socket} is no socket" in done.err


@pytest.mark.parametrize(("verb", "status"), [("status", ExitCode.UNREACHABLE), ("doctor", ExitCode.OK)])
def test_a_daemon_that_hangs(ctl: Ctl, monkeypatch: pytest.MonkeyPatch, verb: str, status: ExitCode) -> None:
    monkeypatch.setattr("ipsec.ctl.app.PATIENCE_S", 0.2)
    with socket.socket(socket.AF_UNIX) as hangs:
        hangs.bind(str(ctl.socket))
        hangs.listen()
        done = ctl(verb)
    assert "has not answered for 0.2 s" in done.out + done.err
    assert done.status == status


def test_wrong_usage_is_a_document_too(ctl: Ctl) -> None:
    for arguments in ("--json list conns --odd", "list conns --odd --json", "lst --json", "--odd list conns --json"):
        done = ctl(*arguments.split())
        assert done.status == ExitCode.USAGE
        assert done.document["error"] == "usage"


def test_a_daemon_is_found_where_the_unit_has_it(
    ctl: Ctl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    default, unit = str(tmp_path / "default"), str(tmp_path / "unit")
    monkeypatch.setattr("ipsec.ctl.app.SOCKETS", (default, unit))
    assert main(["list", "conns"]) == ExitCode.UNREACHABLE
    assert f"no daemon: there is no socket {default} or {unit}\n" in capsys.readouterr().err
    with FakeDaemon(Path(unit)):
        assert main(["list", "conns"]) == ExitCode.OK
        main(["doctor", "--json"])
        assert f"answers on {unit}" in capsys.readouterr().out
        # a path that is given is the only one
        assert main(["list", "conns", "--socket", default]) == ExitCode.UNREACHABLE
        monkeypatch.setenv("IPSECCTL_SOCKET", default)
        assert main(["list", "conns"]) == ExitCode.UNREACHABLE
        monkeypatch.delenv("IPSECCTL_SOCKET")
        with FakeDaemon(tmp_path / "killed"):
            os.rename(tmp_path / "killed", default)
        capsys.readouterr()
        # what a daemon that was killed left behind is in nobody's way
        assert main(["list", "conns"]) == ExitCode.OK
    assert main(["list", "conns"]) == ExitCode.UNREACHABLE
    assert f"no daemon listens on {default}\n" in capsys.readouterr().err


def test_no_permission(ctl: Ctl, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("asyncio.open_unix_connection", refuse)
    done = ctl("list", "conns")
    assert done.status == ExitCode.UNREACHABLE
    assert "no permission" in done.err
    assert "sudo" in done.err


def test_errors_are_documents_with_json(ctl: Ctl) -> None:
    done = ctl("list", "conns", "--json")
    assert done.document["error"] == "unreachable"
    assert done.document["remedy"]
    assert "no daemon" in done.err


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ("up x --timeout soon", "'soon' is not a valid number."),
        ("down --ike-id 0x10", "'0x10' is not a valid whole number."),
        ("status --sample 99", "99.0 is not in the range 0<=x<=60."),
    ],
)
def test_a_number_that_is_none(ctl: Ctl, arguments: str, why: str) -> None:
    done = ctl(*arguments.split())
    assert done.status == ExitCode.USAGE
    assert done.err.endswith(f": {why}\n")


def test_wrong_verb(ctl: Ctl) -> None:
    done = ctl("lst")
    assert done.status == ExitCode.USAGE
    assert "did you mean list" in done.err


def test_wrong_verb_below_a_verb(ctl: Ctl) -> None:
    assert "there is no verb 'pool'; did you mean pools" in ctl("list", "pool").err


@pytest.mark.parametrize("ignored", [False, True])
def test_interrupted_while_it_loads(tmp_path: Path, ignored: bool) -> None:
    """No traceback; who has it ignored, as nohup may, is left alone."""
    (tmp_path / "click.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nraise SystemExit(3)\n")
    done = subprocess.run(
        [sys.executable, "-m", "ipsec.ctl", "--help"],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{Path(__file__).parent.parent.parent}"},
        preexec_fn=(lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)) if ignored else None,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (3 if ignored else -signal.SIGINT, "")


@pytest.mark.parametrize("uri", ["tcp://127.0.0.1", "tcp://127.0.0.1:", "tcp://:4502", "tcp://127.0.0.1:99999", "tcp://h:x"])
def test_a_tcp_socket_that_is_none(capsys: pytest.CaptureFixture[str], uri: str) -> None:
    assert main(["--socket", uri, "list", "conns"]) == ExitCode.UNREACHABLE
    assert f"cannot connect to {uri}: not of the form tcp://host:port" in capsys.readouterr().err


def test_nobody_listens_on_tcp(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert main(["--socket", f"tcp://127.0.0.1:{port}", "list", "conns"]) == ExitCode.UNREACHABLE
    assert f"no daemon listens on tcp://127.0.0.1:{port}" in capsys.readouterr().err


def test_options_before_and_after_the_verb(daemon: FakeDaemon, ctl: Ctl) -> None:
    daemon.conns["gw"] = conn()
    for arguments in (("--json", "list", "conns"), ("list", "--json", "conns"), ("list", "conns", "--json")):
        assert ctl(*arguments).document["kind"] == "conns"
    assert main(["list", "conns", "--socket", f"unix://{ctl.socket}"]) == 0


def test_socket_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IPSECCTL_SOCKET", "/x/y")
    assert App().socket == "/x/y"
    monkeypatch.setenv("IPSECCTL_SOCKET", "")
    assert App().socket == ""


def test_who_reads_has_gone(daemon: FakeDaemon) -> None:
    """As with ``| head``: no traceback."""
    daemon.conns = {f"gw-{index}": conn() for index in range(1500)}
    command = [sys.executable, "-m", "ipsec.ctl", "--socket", str(daemon.socket), "list", "conns"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith("CONNECTION")
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == ExitCode.BROKEN_PIPE


def run_into(daemon: FakeDaemon, *arguments: str, **streams: Any) -> subprocess.CompletedProcess[str]:
    """ipsecctl in a process of its own, whose standard output or error is something that cannot be written."""
    command = [sys.executable, "-m", "ipsec.ctl", "--socket", str(daemon.socket), *arguments]
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE} | streams
    return subprocess.run(command, text=True, check=False, timeout=60, **streams)


@pytest.fixture
def unread() -> Iterator[int]:
    """A pipe that nobody reads."""
    read, write = os.pipe()
    os.close(read)
    yield write
    os.close(write)


PRINTING = ["list sas --json", "list conns", "status --sample 0", "schema", "--help", "list --help", "--version"]


@pytest.mark.parametrize("arguments", [*PRINTING, "completion zsh"])
def test_nobody_reads(daemon: FakeDaemon, unread: int, arguments: str) -> None:
    daemon.conns = {"gw": conn()}
    done = run_into(daemon, *arguments.split(), stdout=unread)
    assert (done.returncode, done.stderr) == (ExitCode.BROKEN_PIPE, "")


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ("status nosuch --json", ExitCode.UNKNOWN_NAME, "ipsecctl: there is no connection, child or SA 'nosuch'"),
        ("list nosuch --json", ExitCode.USAGE, "Usage: "),
    ],
)
def test_an_error_that_nobody_reads_is_still_that(
    daemon: FakeDaemon, unread: int, arguments: str, status: ExitCode, said: str
) -> None:
    with open("/dev/full", "w") as full:
        for stdout in (unread, full.fileno()):
            done = run_into(daemon, *arguments.split(), stdout=stdout)
            assert done.returncode == status
            assert done.stderr.startswith(said)
            assert "Traceback" not in done.stderr
        for stderr in (unread, full.fileno()):
            assert run_into(daemon, *arguments.split(), stderr=stderr).returncode == status
        assert run_into(daemon, *arguments.split(), stdout=unread, stderr=unread).returncode == status
        assert run_into(daemon, "list", "conns", stdout=full, stderr=full).returncode == ExitCode.REQUIREMENT


@pytest.mark.parametrize("arguments", ["list sas --json", "status --sample 0", "--help", "status nosuch --json"])
def test_no_standard_output_at_all(daemon: FakeDaemon, arguments: str) -> None:
    command = f'exec "{sys.executable}" -m ipsec.ctl --socket "{daemon.socket}" {arguments} >&-'
    done = subprocess.run(command, shell=True, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    assert done.returncode == (ExitCode.UNKNOWN_NAME if "nosuch" in arguments else ExitCode.OK)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_output_that_cannot_be_written(daemon: FakeDaemon, more: tuple[str, ...]) -> None:
    daemon.conns = {"gw": conn()}
    command = [sys.executable, "-m", "ipsec.ctl", "--socket", str(daemon.socket), "list", "conns", *more]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    assert done.returncode == ExitCode.REQUIREMENT
    assert done.stderr == "ipsecctl: standard output: No space left on device\n"


def test_a_terminal_without_unicode(daemon: FakeDaemon) -> None:
    """Names may have any letter, and what is cut ends with an ellipsis."""
    daemon.conns = {"gw": conn(children=("n\N{LATIN SMALL LETTER E WITH ACUTE}t",))}
    command = [sys.executable, "-m", "ipsec.ctl", "--socket", str(daemon.socket), "list", "conns"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (ExitCode.OK, "")
    assert "n?t" in done.stdout


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 400 no\r\n\r\n", b"\0\0\0\0", b"\0\0\0\1\x09", b"\0\0\0\2\1\x09"], ids=repr
)
def test_what_listens_is_something_else(ctl: Ctl, answer: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(ctl.socket))
        listener.listen()

        def serve() -> None:
            client, _ = listener.accept()
            with client:
                client.recv(100)
                client.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        done = ctl("list", "conns")
        thread.join()
    assert done.status == ExitCode.UNREACHABLE
    assert "does not speak vici" in done.err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("ipsecctl ")


def test_validator_refuses() -> None:
    """It would not do if the schema let everything pass."""
    for document in ({}, {"schema": 1, "kind": "odd"}, {"schema": 2, "kind": "conns", "conns": []}):
        assert not VALIDATOR.is_valid(document)
