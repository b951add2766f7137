"""Two network namespaces joined by a veth, and the processes that run in them. Linux, root.

    inner 10.1.0.1 (lo)  [ bench-X-a ] veth0 192.0.2.1 ==== 192.0.2.2 veth0 [ bench-X-b ]  inner 10.2.0.1 (lo)

Everything made here is undone by ``Lab.close``; what a killed run left behind is removed by the next ``Lab``.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

PREFIX = "bench-"
SCRATCH_PREFIX = "ipsec-bench-"
DEVICE = "veth0"
OUTER = ("192.0.2.1", "192.0.2.2")
INNER = ("10.1.0.1", "10.2.0.1")
INNER_NET = ("10.1.0.0/16", "10.2.0.0/16")
LINK_MTU = 1500
STOP_TIMEOUT_S = 5.0


class LabError(Exception):
    """The bench cannot go on; ``str()`` says what failed and shows the command's own words."""


def run(args: Sequence[str], *, timeout_s: float = 60.0, env: Mapping[str, str] | None = None) -> str:
    """Standard output of a command. LabError if it fails or takes longer than ``timeout_s``."""
    try:
        done = subprocess.run(args, capture_output=True, text=True, timeout=timeout_s, env=env)
    except FileNotFoundError:
        raise LabError(f"{args[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise LabError(f"{' '.join(args)}: no end after {timeout_s:g} s") from None
    if done.returncode:
        raise LabError(f"{' '.join(args)}: exit {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


@dataclass(frozen=True)
class Namespace:
    """A network namespace."""

    name: str

    def command(self, args: Sequence[str]) -> list[str]:
        """``args`` as a command inside this namespace; ``ip netns exec`` becomes the program, so the pid is its own."""
        return ["ip", "netns", "exec", self.name, *args]

    def run(self, *args: str, timeout_s: float = 60.0) -> str:
        """Standard output of a command inside."""
        return run(self.command(args), timeout_s=timeout_s)


@dataclass(frozen=True)
class Pair:
    """The two ends of one tunnel under test."""

    a: Namespace
    b: Namespace

    @property
    def ends(self) -> tuple[Namespace, Namespace]:
        """Both ends, in the order of OUTER, INNER and INNER_NET."""
        return self.a, self.b


class Lab:
    """Owner of every namespace, process and scratch file of a run. A context manager.

    One at a time per machine (a lock file says so), since two would measure each other.
    """

    def __init__(self) -> None:
        if os.geteuid() != 0:
            raise LabError("the end-to-end bench makes network namespaces: run it as root")
        self._lock = _take_lock()
        self._processes: list[subprocess.Popen[str]] = []
        self._namespaces: list[str] = []
        _remove_leftovers()
        self.scratch = Path(tempfile.mkdtemp(prefix=SCRATCH_PREFIX))

    def __enter__(self) -> Lab:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def pair(self, name: str, *, wire_segments: bool = False) -> Pair:
        """Two fresh namespaces with a veth between.

        With ``wire_segments`` a train is cut into packets and merged again as a network card would; a plain veth hands
        it over whole and never computes a checksum.
        """
        ends = (Namespace(f"{PREFIX}{name}-a"), Namespace(f"{PREFIX}{name}-b"))
        for end in ends:
            self._namespaces.append(end.name)
            run(["ip", "netns", "add", end.name])
        a, b = ends
        run(["ip", "link", "add", DEVICE, "netns", a.name, "type", "veth", "peer", "name", DEVICE, "netns", b.name])
        for end, outer, inner in zip(ends, OUTER, INNER, strict=True):
            end.run("ip", "link", "set", "lo", "up")
            end.run("ip", "link", "set", DEVICE, "mtu", str(LINK_MTU), "up")
            end.run("ip", "address", "add", f"{outer}/24", "dev", DEVICE)
            end.run("ip", "address", "add", f"{inner}/32", "dev", "lo")
            if wire_segments:
                end.run("ethtool", "-K", DEVICE, "tx-udp-segmentation", "off", "gro", "on")
        return Pair(a, b)

    def start(
        self, args: Sequence[str], log: Path, *, where: Namespace | None = None, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """A background process; both of its outputs go to ``log``. ``close`` ends it if nobody did."""
        with log.open("a") as out:
            return self.spawn(args, where=where, env=env, stdout=out, stderr=subprocess.STDOUT)

    def spawn(
        self,
        args: Sequence[str],
        *,
        where: Namespace | None = None,
        env: Mapping[str, str] | None = None,
        stdin: int = subprocess.DEVNULL,
        stdout: int | IO[str] = subprocess.PIPE,
        stderr: int | IO[str] = subprocess.PIPE,
    ) -> subprocess.Popen[str]:
        """A process with pipes, in a session of its own so that Ctrl-C reaches it only through ``close``."""
        process = subprocess.Popen(
            where.command(args) if where else list(args),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            text=True,
            env={**os.environ, **env} if env else None,
            start_new_session=True,
        )
        self._processes.append(process)
        return process

    def stop(self, process: subprocess.Popen[str]) -> int:
        """End one process: SIGTERM, then SIGKILL after STOP_TIMEOUT_S. Its exit status."""
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()
        if process in self._processes:
            self._processes.remove(process)
        return process.returncode

    def close(self) -> None:
        """Undo everything; another Ctrl-C or SIGTERM meanwhile does not cut it short."""
        previous = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            for process in reversed(self._processes[:]):
                self.stop(process)
            for name in self._namespaces:
                _remove_namespace(name)
            self._namespaces.clear()
            shutil.rmtree(self.scratch, ignore_errors=True)
            self._lock.close()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def wait_for(
    ready: Callable[[], bool], what: str, process: subprocess.Popen[str], log: Path, *, timeout_s: float
) -> None:
    """Ask ``ready`` until it is true. LabError with the end of ``log`` if ``process`` ends or time runs out."""
    deadline = time.monotonic() + timeout_s
    while not ready():
        if process.poll() is not None:
            raise LabError(f"{what}: exit {process.returncode}\n{log.read_text(errors='replace')[-2000:]}")
        if time.monotonic() > deadline:
            raise LabError(f"{what}: not ready after {timeout_s:g} s\n{log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.05)


def reachable(pair: Pair) -> bool:
    """Whether one ping from inner to inner address comes back within a second."""
    args = pair.a.command(["ping", "-n", "-q", "-c", "1", "-W", "1", "-I", INNER[0], INNER[1]])
    return subprocess.run(args, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


def _take_lock() -> IO[str]:
    lock = open(Path(tempfile.gettempdir()) / f"{SCRATCH_PREFIX}lock", "a")  # noqa: SIM115 - held until close()
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise LabError("another end-to-end bench is running on this machine") from None
    return lock


def _remove_leftovers() -> None:
    # the lock is ours, so whatever carries our names belongs to a run that was killed
    listed = json.loads(run(["ip", "-json", "netns", "list"]) or "[]")
    for entry in listed:
        if entry["name"].startswith(PREFIX):
            _remove_namespace(entry["name"])
    for path in Path(tempfile.gettempdir()).glob(f"{SCRATCH_PREFIX}*/"):
        shutil.rmtree(path, ignore_errors=True)


def _remove_namespace(name: str) -> None:
    for sign in (signal.SIGTERM, signal.SIGKILL):
        pids = _pids(name)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, sign)
        for _ in range(20):
            if not pids or not _pids(name):
                break
            time.sleep(0.1)
    subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def _pids(name: str) -> list[int]:
    done = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True)
    return [int(pid) for pid in done.stdout.split()]
