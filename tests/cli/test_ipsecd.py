"""The command ipsecd without a network: what it says and how it exits."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ipsec import daemon
from ipsec.backend import requirements
from ipsec.backend.core import compiled_core
from ipsec.backend.requirements import Requirement, State
from ipsec.cli import ipsecd
from ipsec.cli.main import main as begin
from ipsec.config import load_text
from ipsec.config.settings import WORKERS_MAX
from ipsec.daemon import Daemon, ExitCode, backend_settings
from ipsec.errors import BackendError, ConfigError, SequenceError
from ipsec.net import udp
from ipsec.net.marks import default_mark
from tests.backend import python_core
from tests.e2e.gateways import eventually

KEY_IN, KEY_OUT = "00" * 19 + "01", "00" * 19 + "02"

SA = f"""
    local = 192.0.2.1
    remote = 192.0.2.2
    spi_in = 0x1001
    spi_out = 0x1002
    esp_proposals = aes128gcm16
    key_in = 0x{KEY_IN}
    key_out = 0x{KEY_OUT}
    encap = yes
"""


@pytest.fixture(autouse=True)
def logging_restored() -> Iterator[None]:
    logger = logging.getLogger("ipsec")
    level = logger.level
    yield
    logger.setLevel(level)


def written(path: Path, text: str) -> str:
    path.touch(mode=0o600)
    path.write_text(text)
    return str(path)


def sas(
    *, ipsecd_keys: str = "", sa: str = "local_ts = 10.1.0.0/16\nremote_ts = 10.2.0.0/16", name: str = "one"
) -> str:
    return f"ipsecd {{\n{ipsecd_keys}\n}}\nsas {{ {name} {{ {SA}\n{sa}\n}} }}\n"


def test_configuration_errors_name_the_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path / "bad.conf", "ipsecd {\n  wrokers = 2\n}\n")
    assert ipsecd.main(["--config", path]) == ExitCode.CONFIG
    said = capsys.readouterr().err
    assert said.startswith(f"ipsecd: {path}:2: ")
    assert "wrokers" in said


@pytest.mark.parametrize("option", [[], ["--check"], ["--prepare", "--undo"]])
def test_all_that_is_wrong_is_told_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: list[str]
) -> None:
    text = "".join(f"c{number} {{ dpd_delay = {number}x }}\n" for number in range(3))
    path = written(tmp_path / "bad.conf", f"connections {{\n{text}}}\n")
    assert ipsecd.main(["--config", path, *option]) == ExitCode.CONFIG
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(" is not a time")[0] for line in said] == [
        f"ipsecd: {path}:{number + 2}: connections.c{number}.dpd_delay: '{number}x'" for number in range(3)
    ]


@pytest.mark.parametrize(("option", "is_json"), [([], True), (["--check"], False)])
def test_a_configuration_error_for_programs(tmp_path: Path, option: list[str], is_json: bool) -> None:
    path = written(tmp_path / "bad.conf", "ipsecd {\n  wrokers = 2\n}\n")
    done = subprocess.run(
        [sys.executable, "-m", "ipsec", "--config", path, *option],
        env=os.environ | {"IPSEC_LOG_FORMAT": "json"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == ExitCode.CONFIG
    (line,) = done.stderr.splitlines()
    said = json.loads(line)["message"] if is_json else line.removeprefix("ipsecd: ")
    assert said.startswith(f"{path}:2: ")


@pytest.mark.parametrize("ignored", [False, True])
def test_interrupted_while_it_loads(tmp_path: Path, ignored: bool) -> None:
    """There is nothing to undo yet, and no traceback tells anybody anything. Who has it ignored is left alone."""
    interrupts = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nraise SystemExit(3)\n"
    (tmp_path / "argparse.py").write_text(interrupts)
    done = subprocess.run(
        [sys.executable, "-c", "from ipsec.cli.main import main; main(['--version'])"],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{Path(__file__).parent.parent.parent}"},
        preexec_fn=(lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)) if ignored else None,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (3 if ignored else -signal.SIGINT, "")


def test_interrupted_later(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ipsec.cli.ipsecd.main", interrupt)
    monkeypatch.setattr("gc.freeze", lambda: None)
    assert begin(["--version"]) == 130


def test_missing_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ipsecd.main(["--config", str(tmp_path / "none.conf")]) == ExitCode.CONFIG
    assert "none.conf" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--wrong"],
        ["--log-level", "loud"],
        ["extra"],
        ["--json"],
        ["--undo"],
        ["--owner", "1"],
        ["--prepare"],
        ["--prepare", "--owner", "no-such-user"],
        ["--prepare", "--owner", "1:no-such-group"],
        ["--prepare", "--owner", "4294967296"],
    ],
)
def test_wrong_command_line(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        ipsecd.main(arguments)
    assert caught.value.code == ExitCode.USAGE


def test_help_documents_every_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        ipsecd.main(["--help"])
    assert caught.value.code == 0
    said = capsys.readouterr().out
    for code in range(ExitCode.DEVICE_LOST + 1):
        assert f"\n  {code}  " in said
        assert f"\n    {code}  " in (daemon.__doc__ or "")


def test_version_names_providers(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ipsec.backend.core.compiled_core", lambda: python_core)
    with pytest.raises(SystemExit) as caught:
        ipsecd.main(["--version"])
    assert caught.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith("ipsec ")
    assert "providers: python" in said
    assert "aes128gcm16  python" in said
    assert re.search("^EAP-TLS: pyOpenSSL ", said, re.MULTILINE)
    monkeypatch.setitem(sys.modules, "OpenSSL", None)
    with pytest.raises(SystemExit):
        ipsecd.main(["--version"])
    assert re.search(r"^no EAP-TLS: .*pip install pyOpenSSL$", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize(("state", "status"), [(State.FOUND, 0), (State.HINT, 0), (State.MISSING, 4)])
def test_check(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    state: State,
    status: int,
) -> None:
    found = [Requirement("a thing", state, "its detail", "its remedy")]
    monkeypatch.setattr("ipsec.daemon.ready.check", lambda *args, **rest: found)
    path = written(tmp_path / "good.conf", sas())
    assert ipsecd.main(["--check", "--config", path]) == status
    table = capsys.readouterr().out
    assert f"{state.value:7}  a thing  its detail" in table
    assert ("-> its remedy" in table) == (state is not State.FOUND)
    assert ipsecd.main(["--check", "--json", "--config", path]) == status
    document = json.loads(capsys.readouterr().out)
    assert document["complete"] == (status == 0)
    assert document["requirements"] == [
        {"name": "a thing", "state": state.value, "detail": "its detail", "remedy": "its remedy"}
    ]


def test_check_says_once_what_was_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    found = [Requirement("a thing", State.FOUND, "its detail", "")]
    monkeypatch.setattr("ipsec.daemon.ready.check", lambda *args, **rest: found)
    caplog.set_level(logging.INFO)
    around = sas(sa="local_ts = 10.1.0.0/16\nremote_ts = 192.0.2.2/32")
    assert ipsecd.main(["--check", "--config", written(tmp_path / "good.conf", around)]) == 0
    assert caplog.text.count("our own packets bear mark") == 1


def test_output_that_nobody_reads(tmp_path: Path) -> None:
    path = written(tmp_path / "good.conf", sas(ipsecd_keys=f"backend = memory\nvici_socket = {tmp_path}/vici"))
    command = [sys.executable, "-m", "ipsec"]
    for more, *statuses in (
        (["--version"], 141, ExitCode.REQUIREMENT),
        (["--check", "--config", path], 141, ExitCode.REQUIREMENT),
        (["healthcheck", "--config", path], 1, 1),
    ):
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run([*command, *more], stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60)
        os.close(writer)
        assert (done.returncode, done.stderr) == (statuses[0], "")
        with open("/dev/full", "w") as full:
            done = subprocess.run([*command, *more], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
        assert done.returncode == statuses[1]
        assert done.stderr == "cannot write to standard output: No space left on device\n"


def test_check_does_not_print_keys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requirements, "compiled_core", lambda: python_core)
    path = written(tmp_path / "good.conf", sas(ipsecd_keys="backend = memory"))
    for arguments in (["--check"], ["--check", "--json"]):
        ipsecd.main([*arguments, "--config", path])
        said = capsys.readouterr()
        assert KEY_IN not in said.out + said.err
        assert KEY_OUT not in said.out + said.err


def test_settings_pass_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(udp, "may_mark", lambda: False)
    keys = """
        device = tunnel7
        mtu = 1300
        workers = 3
        port_nat_t = 4500
        listen = 192.0.2.1
        addresses = 10.1.0.1/24
        fail_closed = no
        busy_poll_us = 50
        offload { tun_uso = no
                  udp_gso = yes }
    """
    got = backend_settings(load_text(sas(ipsecd_keys=keys)))
    assert (got.device, got.mtu, got.workers, got.busy_poll_us) == ("tunnel7", 1300, 3, 50)
    assert [str(address) for address in got.listen] == ["192.0.2.1"]
    assert [str(address) for address in got.addresses] == ["10.1.0.1/24"]
    assert got.offload == {"tun_uso": False, "udp_gso": True}
    assert not got.fail_closed
    assert not got.raw_esp
    assert got.fwmark == 0


@pytest.mark.parametrize(
    ("processors", "limit", "workers"),
    [
        (1, "max 100000", 0),
        (2, "max 100000", 2),
        (64, "max 100000", 4),
        (64, "200000 100000", 2),
        (64, "50000 100000", 0),
        (3, "6400000 100000", 3),
        (2, None, 2),
        (2, "nonsense", 2),
    ],
)
def test_auto_workers(
    processors: int, limit: str | None, workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(processors)))
    monkeypatch.setattr("ipsec.daemon.settings.CPU_MAX", tmp_path / "cpu.max")
    if limit is not None:
        (tmp_path / "cpu.max").write_text(limit + "\n")
    assert backend_settings(load_text(sas(ipsecd_keys="workers = auto"))).workers == workers


def test_raw_esp_and_mark_follow_from_the_sas() -> None:
    text = sas(sa="mode = transport").replace("encap = yes", "encap = no")
    got = backend_settings(load_text(text))
    assert got.raw_esp
    # host to host: only a mark tells outer packets from inner ones
    assert got.fwmark == default_mark(220)
    assert backend_settings(load_text(text.replace("ipsecd {", "ipsecd {\nfwmark = 7"))).fwmark == 7


def test_bypass_asks_for_a_mark() -> None:
    policy = (
        "local_ts = 10.1.0.0/16\nremote_ts = 10.2.0.0/16\npolicies { way { action = bypass\nremote_ts = 10.2.9.0/24 } }"
    )
    got = backend_settings(load_text(sas(sa=policy)))
    assert got.bypass
    assert got.fwmark == default_mark(220)


def test_one_local_port_follows_the_sas() -> None:
    assert backend_settings(load_text(sas(sa="local_port = 4600"))).port == 4600
    other = SA.replace("0x100", "0x200").replace(KEY_IN, "00" * 19 + "03").replace(KEY_OUT, "00" * 19 + "04")
    two = f"sas {{ one {{ {SA} }}\n two {{ {other}\n local_port = 4600\n remote_ts = 10.9.0.0/16 }} }}"
    with pytest.raises(ConfigError, match="several local UDP ports"):
        backend_settings(load_text(two))


def test_the_data_path_has_room_for_as_many_workers_as_can_be_configured() -> None:
    text = "ipsecd {{ workers = {} }}"
    most = backend_settings(load_text(text.format(WORKERS_MAX))).workers
    assert compiled_core().Engine(workers=most) is not None
    with pytest.raises(ConfigError, match=r"'65' is not in 0\.\.64"):
        load_text(text.format(most + 1))


def test_one_port_is_not_for_both() -> None:
    for keys in ("port = 4500", "port_nat_t = 500", "port = 5000\nport_nat_t = 5000"):
        with pytest.raises(ConfigError, match=r"ipsecd\.port: UDP port \d+ is that of ESP \(port_nat_t\); 0 has IKE"):
            backend_settings(load_text(f"ipsecd {{ {keys} }}"))
    assert backend_settings(load_text("ipsecd { port = 0 }")).ike_port is None
    # there is no IKE
    assert backend_settings(load_text(sas(ipsecd_keys="port = 4500"))).ike_port is None


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (BackendError("x"), ExitCode.REQUIREMENT),
        (SequenceError("x"), ExitCode.SA),
        (ConfigError("x"), ExitCode.CONFIG),
        (RuntimeError("x"), ExitCode.BUG),
    ],
)
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_start_errors_become_exit_codes(
    error: Exception, status: int, loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(self: Daemon) -> None:
        raise error

    monkeypatch.setattr(Daemon, "start", fail)
    config = load_text(sas(ipsecd_keys=f"event_loop = {loop}\nbackend = memory"))
    assert daemon.run(config, core=python_core) == status


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_runs_in_memory_until_a_signal(loop: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os
    import signal

    started = Daemon.start

    async def start_and_stop(self: Daemon) -> None:
        await started(self)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Daemon, "start", start_and_stop)
    keys = f"event_loop = {loop}\nbackend = memory\nstate_dir = {tmp_path}"
    assert daemon.run(load_text(sas(ipsecd_keys=keys)), core=python_core) == ExitCode.OK
    (path,) = tmp_path.glob("*.seq")
    assert path.read_text() == "ipsecd-sequence-1 0\n"


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_runs_without_standard_streams(loop: str, tmp_path: Path) -> None:
    """Their numbers are no socket's and no key file's, which libuv would not close either."""
    keys = f"event_loop = {loop}\nbackend = memory\nstate_dir = {tmp_path}"
    path = written(tmp_path / "good.conf", sas(ipsecd_keys=keys))
    command = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-m", "ipsec", "--config", path]
    with subprocess.Popen(command) as process:
        assert eventually(lambda: list(tmp_path.glob("*.seq")) or process.poll() is not None, 30)
        try:
            streams = [os.readlink(f"/proc/{process.pid}/fd/{number}") for number in range(3)]
        finally:
            process.terminate()
        assert process.wait(30) == 0
    assert streams == ["/dev/null"] * 3


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_who_reads_the_log_late_gets_all_of_it_when_a_second_signal_forces(loop: str, tmp_path: Path) -> None:
    keys = f"event_loop = {loop}\nbackend = memory\nstate_dir = {tmp_path}"
    path = written(tmp_path / "good.conf", sas(ipsecd_keys=keys))
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    command = [sys.executable, "-m", "ipsec", "--config", path]
    with open(reader) as log, subprocess.Popen(command, stderr=writer) as daemon:
        os.close(writer)
        try:
            assert eventually(lambda: list(tmp_path.glob("*.seq")), 30)
            for _ in range(100):
                daemon.send_signal(signal.SIGUSR1)
                time.sleep(0.002)
            # both are there when it goes on
            for number in (signal.SIGSTOP, signal.SIGTERM, signal.SIGINT, signal.SIGCONT):
                daemon.send_signal(number)
            time.sleep(0.2)
            lines = log.read().splitlines()
            assert daemon.wait(30) in (130, 143)
        finally:
            daemon.kill()
    assert len("".join(lines)) > 2 * 4096
    assert "ipsec.daemon.run: forced to stop" in lines[-1]


def test_a_configuration_without_sas_is_not_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import os
    import signal

    started = Daemon.start

    async def start_and_stop(self: Daemon) -> None:
        await started(self)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Daemon, "start", start_and_stop)
    caplog.set_level(logging.INFO)
    config = load_text(f"ipsecd {{\nbackend = memory\nstate_dir = {tmp_path}\n}}", "empty.conf")
    config = replace(config, overridden=("ipsecd.mtu is not used: IPSEC_MTU is set",))
    assert daemon.run(config, core=python_core) == ExitCode.OK
    assert [one.levelname for one in caplog.records if "ipsecd.mtu is not used" in one.message] == ["INFO"]
    assert "empty.conf configures neither connections nor SAs" in caplog.text
