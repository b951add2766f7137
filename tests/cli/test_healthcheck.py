"""``ipsecd healthcheck`` against a whole daemon in memory, and against what is no daemon."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ipsec.cli import healthcheck
from ipsec.cli import main as entry
from ipsec.config import load
from ipsec.daemon.run import Daemon

CONF = """
ipsecd {{
  backend = memory
  workers = 0
  state_dir = {folder}
  vici_socket = {vici}
  http {{
    listen = {http}
  }}
}}
connections {{ c {{ remote_addrs = 127.0.0.1
    local {{ auth = psk
      id = a }}
    remote {{ auth = psk
      id = b }}
    children {{ net {{ remote_ts = 10.2.0.0/16
        start_action = {action} }} }} }} }}
secrets {{ ike-1 {{ secret = of no worth outside }} }}
"""


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def written(folder: Path, *, http: str = "none", vici: str = "none", action: str = "none") -> str:
    path = folder / "swanctl.conf"
    path.touch(mode=0o600)
    path.write_text(CONF.format(folder=folder, http=http, vici=vici, action=action))
    return str(path)


@contextmanager
def running(path: str) -> Iterator[None]:
    """A daemon in a thread of its own, from ready to stopped."""
    up = threading.Event()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def main() -> None:
        daemon = Daemon(load(path))
        await daemon.start()
        up.set()
        await stop.wait()
        await daemon.stop()

    thread = threading.Thread(target=lambda: loop.run_until_complete(main()))
    thread.start()
    try:
        assert up.wait(20)
        yield
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(20)
        loop.close()


@pytest.mark.parametrize("way", ["http", "vici"])
@pytest.mark.parametrize("action", ["none", "start"])
def test_a_daemon_answers(way: str, action: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = {"http": str(free_port())} if way == "http" else {"vici": str(tmp_path / "s")}
    path = written(tmp_path, action=action, **where)
    with running(path):
        for option, said, good in (
            ([], "healthy", True),
            (["--live"], "alive", True),
            (["--ready"], "ready" if action == "none" else "not ready: c/net is not up", action == "none"),
        ):
            assert entry.main(["healthcheck", "--config", path, *option]) == (0 if good else 1)
            assert capsys.readouterr().out == f"{said}\n"


def test_no_daemon(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    path = written(tmp_path, http=str(port), vici=str(tmp_path / "s"))
    assert healthcheck.main(["--config", path]) == 1
    said = capsys.readouterr().out
    assert said.startswith("not healthy: ")
    assert f"http://127.0.0.1:{port}: Connection refused" in said
    assert f"{tmp_path}/s: No such file or directory" in said


def test_nowhere_to_ask(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert healthcheck.main(["--ready", "--config", written(tmp_path)]) == 1
    assert capsys.readouterr().out == "not ready: neither ipsecd.http.listen nor ipsecd.vici_socket is set\n"


def test_a_wrong_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert healthcheck.main(["--config", written(tmp_path, http="here")]) == 1
    assert "ipsecd.http.listen" in capsys.readouterr().out
    assert healthcheck.main(["--config", str(tmp_path / "none")]) == 1
    assert "none" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"", "makes no sense"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "makes no sense"),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", "makes no sense"),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\nsorry", "makes no sense"),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n[1]", "makes no sense"),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n" + b"[" * 60000, "makes no sense"),
        (None, "no answer"),
    ],
)
def test_somebody_else_answers(
    answer: bytes | None,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(healthcheck, "PATIENCE_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            sock, _ = server.accept()
            with sock:
                sock.recv(4096)
                if answer is None:
                    sock.recv(1)
                else:
                    sock.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        path = written(tmp_path, http=str(server.getsockname()[1]))
        assert healthcheck.main(["--config", path]) == 1
        thread.join(10)
    assert said in capsys.readouterr().out


def test_it_imports_little() -> None:
    """It runs every few seconds in every container."""
    code = (
        "import sys; from ipsec.cli import healthcheck; "
        "print(*{'asyncio', 'cryptography', 'ipsec._fastpath', 'ssl', 'click'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


@pytest.mark.parametrize("arguments", [["--ready", "--live"], ["--wrong"], ["extra"]])
def test_wrong_command_line(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        entry.main(["healthcheck", *arguments])
    assert caught.value.code == 2
