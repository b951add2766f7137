"""Network namespaces joined by veths, and the processes that run in them. Linux, root.

    two hosts:     inner 10.1.0.1 (lo) [ a ] veth0 192.0.2.1 ==== 192.0.2.2 veth0 [ b ] 10.2.0.1 (lo) inner
    with clients:  inner [ ca ] 10.1.0.2 ---- 10.1.0.1 lan0 [ a ] ==== [ b ] lan0 10.2.0.1 ---- 10.2.0.2 [ cb ] inner

Traffic goes between the two inner addresses. A namespace is named bench-PID-TUNNEL-END, PID being the process of the
bench. Everything made here is undone by ``Lab.close``; what a killed run left behind is removed by the next ``Lab``.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO

PREFIX = "bench-"
SCRATCH_PREFIX = "ipsec-bench-"
DEVICE = "veth0"
LAN_DEVICE = "lan0"
OUTER = ("192.0.2.1", "192.0.2.2")
OUTER6 = ("2001:db8::1", "2001:db8::2")
INNER = ("10.1.0.1", "10.2.0.1")
INNER6 = ("fd00:1::1", "fd00:2::1")
INNER_NET = ("10.1.0.0/16", "10.2.0.0/16")
INNER_NET6 = ("fd00:1::/64", "fd00:2::/64")
CLIENT = ("10.1.0.2", "10.2.0.2")
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
class Link:
    """What lies between the two gateways, and whether the traffic begins behind them."""

    mtu: int = LINK_MTU
    wire_segments: bool = False
    "a train is cut into packets and merged again as a network card would; a plain veth hands it over whole"
    ipv6: bool = False
    "outside and inside"
    clients: bool = False

    @property
    def outer(self) -> tuple[str, str]:
        """The gateways' addresses."""
        return OUTER6 if self.ipv6 else OUTER

    @property
    def inner_net(self) -> tuple[str, str]:
        """The networks that the tunnel joins."""
        return INNER_NET6 if self.ipv6 else INNER_NET

    @property
    def gateway_inner(self) -> tuple[str, str]:
        """The gateways' own addresses in these networks."""
        return INNER6 if self.ipv6 else INNER


@dataclass(frozen=True)
class Pair:
    """The two ends of one tunnel under test, and where its traffic begins and ends."""

    a: Namespace
    b: Namespace
    client: Namespace
    server: Namespace
    link: Link = field(default_factory=Link)

    @property
    def ends(self) -> tuple[Namespace, Namespace]:
        """Both gateways, in the order of the addresses of ``link``."""
        return self.a, self.b

    @property
    def inner(self) -> tuple[str, str]:
        """Addresses of ``client`` and ``server``."""
        return CLIENT if self.link.clients else self.link.gateway_inner


class Lab:
    """Owner of every namespace, process and scratch file of a run. A context manager.

    One that measures (``alone``) refuses to begin beside another: they would measure each other.
    """

    def __init__(self, *, alone: bool = True) -> None:
        if os.geteuid() != 0:
            raise LabError("network namespaces are needed: run this as root (sudo), or only --parts micro")
        self._lock = _take_lock() if alone else None
        self._processes: list[subprocess.Popen[str]] = []
        self._namespaces: list[str] = []
        _remove_leftovers()
        self.scratch = Path(tempfile.mkdtemp(prefix=f"{SCRATCH_PREFIX}{os.getpid()}-"))

    def __enter__(self) -> Lab:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def pair(self, name: str, link: Link | None = None) -> Pair:
        """Fresh namespaces with a veth between the gateways, and with ``link.clients`` one behind each."""
        link = link or Link()
        a, b = (self.namespace(f"{name}-{end}") for end in "ab")
        self.join(a, DEVICE, b, DEVICE, link.mtu)
        for end, outer, inner in zip((a, b), link.outer, link.gateway_inner, strict=True):
            bits, host_bits, flags = ("64", "128", ["nodad"]) if link.ipv6 else ("24", "32", [])
            end.run("ip", "address", "add", f"{outer}/{bits}", "dev", DEVICE, *flags)
            if not link.clients:
                end.run("ip", "address", "add", f"{inner}/{host_bits}", "dev", "lo", *flags)
            if link.wire_segments:
                end.run("ethtool", "-K", DEVICE, "tx-udp-segmentation", "off", "gro", "on")
        if not link.clients:
            return Pair(a, b, a, b, link)
        ends = [self._client(name, gateway, index) for index, gateway in enumerate((a, b))]
        return Pair(a, b, ends[0], ends[1], link)

    def _client(self, name: str, gateway: Namespace, index: int) -> Namespace:
        client = self.namespace(f"{name}-c{'ab'[index]}")
        self.join(gateway, LAN_DEVICE, client, DEVICE, LINK_MTU)
        gateway.run("ip", "address", "add", f"{INNER[index]}/24", "dev", LAN_DEVICE)
        client.run("ip", "address", "add", f"{CLIENT[index]}/24", "dev", DEVICE)
        client.run("ip", "route", "add", "default", "via", INNER[index])
        gateway.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        return client

    def namespace(self, name: str) -> Namespace:
        """A fresh namespace with its loopback up."""
        made = Namespace(f"{PREFIX}{os.getpid()}-{name}")
        self._namespaces.append(made.name)
        run(["ip", "netns", "add", made.name])
        made.run("ip", "link", "set", "lo", "up")
        return made

    @staticmethod
    def join(a: Namespace, a_device: str, b: Namespace, b_device: str, mtu: int) -> None:
        """A veth between two namespaces, up."""
        run(["ip", "link", "add", a_device, "netns", a.name, "type", "veth",
             "peer", "name", b_device, "netns", b.name])  # fmt: skip
        for end, device in ((a, a_device), (b, b_device)):
            end.run("ip", "link", "set", device, "mtu", str(mtu), "up")

    def remove(self, pair: Pair) -> None:
        """Undo ``pair``, with every process in it."""
        names = dict.fromkeys(end.name for end in (pair.client, pair.server, pair.a, pair.b))
        for name in names:
            _remove_namespace(name)
            self._namespaces.remove(name)

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
            if self._lock is not None:
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
    args = pair.client.command(["ping", "-n", "-q", "-c", "1", "-W", "1", "-I", pair.inner[0], pair.inner[1]])
    return subprocess.run(args, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


def _take_lock() -> IO[str]:
    lock = open(Path(tempfile.gettempdir()) / f"{SCRATCH_PREFIX}lock", "a")  # noqa: SIM115 - held until close()
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise LabError("another bench is running on this machine; two would measure each other") from None
    return lock


def _remove_leftovers() -> None:
    # a process that is no more was killed, or it would have done this itself
    listed = json.loads(run(["ip", "-json", "netns", "list"]) or "[]")
    for entry in listed:
        if _owner_is_gone(PREFIX, entry["name"]):
            _remove_namespace(entry["name"])
    for path in Path(tempfile.gettempdir()).glob(f"{SCRATCH_PREFIX}*/"):
        if _owner_is_gone(SCRATCH_PREFIX, path.name):
            shutil.rmtree(path, ignore_errors=True)


def _owner_is_gone(prefix: str, name: str) -> bool:
    found = re.match(rf"{prefix}(\d+)-", name)
    return found is not None and not Path("/proc", found[1]).exists()


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
