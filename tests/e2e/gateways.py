"""Two gateways in two network namespaces joined by a veth, each with its own ipsecd.

inner 10.1.0.1, fd01::1 (ipsec0)   [ a ] wire 192.0.2.1, 2001:db8::1 ==== .2 wire [ b ]   inner 10.2.0.1, fd02::1
"""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from tests.commands import run

#: what to test instead of this checkout's daemon, for instance a build under valgrind
COMMAND = shlex.split(os.environ.get("IPSEC_E2E_COMMAND", "")) or [sys.executable, "-m", "ipsec"]
WIRE = "wire0"
OUTER = {4: ("192.0.2.1", "192.0.2.2"), 6: ("2001:db8::1", "2001:db8::2")}
INNER = {4: ("10.1.0.1", "10.2.0.1"), 6: ("fd01::1", "fd02::1")}
NETS = {4: ("10.1.0.0/16", "10.2.0.0/16"), 6: ("fd01::/16", "fd02::/16")}
_serial = itertools.count()


@dataclass(frozen=True)
class Setup:
    """What differs between test cases; both gateways get the mirror image of it."""

    outer: int = 4
    encap: bool = True
    mode: str = "tunnel"
    suite: str = "aes128gcm16"
    key_len: int = 20
    workers: int = 0
    link_mtu: int = 1500
    offload: dict[str, str] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    "more keys of ipsecd { }"
    sa: dict[str, str] = field(default_factory=dict)
    "more keys of the SA"
    policies: dict[str, dict[str, str]] = field(default_factory=dict)
    "in place of the SA's own; {local} and {remote} in a value are the IPv4 networks"


def eventually(what: Callable[[], object], timeout: float = 10) -> bool:
    """Whether it becomes true in time."""
    deadline = time.monotonic() + timeout
    while not what():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def has_users() -> bool:
    """Whether there are others than root: an unprivileged user namespace has none."""
    ranges = [line.split() for line in Path("/proc/self/uid_map").read_text().splitlines()]
    return any(int(count) > 1000 for _, _, count in ranges)


class Gateway:
    """One end."""

    def __init__(self, name: str, side: int, directory: Path) -> None:
        self.namespace = name
        self.side = side
        self.directory = directory
        self.config = directory / f"{side}.conf"
        self.state = directory / f"state-{side}"
        self.log_file = directory / f"{side}.log"
        self.process: subprocess.Popen[bytes] | None = None

    def run(self, *args: str, check: bool = True, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """A command in this gateway's namespace."""
        return run("ip", "netns", "exec", self.namespace, *args, check=check, timeout=timeout)

    def popen(self, *args: str) -> subprocess.Popen[str]:
        """A command that goes on while the test does something else."""
        command = ["ip", "netns", "exec", self.namespace, *args]
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def start(self, *, timeout: float = 30) -> None:
        """Start ipsecd and wait until it says that it is ready."""
        with self.log_file.open("wb") as log:
            command = ["ip", "netns", "exec", self.namespace, *COMMAND, "--config", str(self.config)]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + timeout
        while "ready" not in self.log():
            assert self.process.poll() is None, f"ipsecd ended with {self.process.returncode}:\n{self.log()}"
            assert time.monotonic() < deadline, f"ipsecd is not ready:\n{self.log()}"
            time.sleep(0.02)

    def stop(self, number: int = signal.SIGTERM, *, timeout: float = 10) -> tuple[int, float]:
        """End ipsecd; its exit status and how many seconds it took."""
        assert self.process is not None
        begin = time.monotonic()
        self.process.send_signal(number)
        status = self.process.wait(timeout)
        self.process = None
        return status, time.monotonic() - begin

    def log(self) -> str:
        """What ipsecd has said since it was started."""
        return self.log_file.read_text() if self.log_file.exists() else ""

    def ping(self, address: str, *options: str, count: int = 3, check: bool = True) -> str:
        """Ping, and its output."""
        command = ["ping", "-n", "-c", str(count), "-i", "0.05", "-W", "2", *options, address]
        return self.run(*command, check=check).stdout

    def leftovers(self) -> str:
        """Rules, routes and devices of ours that are there."""
        found = []
        for family in ("-4", "-6"):
            rules = self.run("ip", family, "rule", "show").stdout
            found += [line for line in rules.splitlines() if "lookup 220" in line]
            routes = self.run("ip", family, "route", "show", "table", "all").stdout
            found += [line for line in routes.splitlines() if "proto 205" in line]
        links = self.run("ip", "-o", "link", "show").stdout
        found += [line for line in links.splitlines() if "ipsec" in line]
        return "\n".join(found)

    def mark(self) -> int:
        """The reserved sequence number on disk."""
        (path,) = self.state.glob("*.seq")
        return int(path.read_text().split()[1])


class World:
    """Both gateways; a context manager that leaves nothing behind."""

    def __init__(self, directory: Path, setup: Setup) -> None:
        self.setup = setup
        self.keys = [secrets.token_bytes(setup.key_len) for _ in range(2)]
        names = [f"net-e2e-{os.getpid()}-{next(_serial)}{side}" for side in "ab"]
        self.a, self.b = (Gateway(name, side, directory) for side, name in enumerate(names))

    def __enter__(self) -> World:
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start both daemons."""
        for gateway in (self.a, self.b):
            gateway.start()

    def close(self) -> None:
        """Kill the daemons and remove the namespaces."""
        for gateway in (self.a, self.b):
            if gateway.process is not None:
                gateway.process.kill()
                gateway.process.wait()
        for gateway in (self.a, self.b):
            run("ip", "netns", "del", gateway.namespace, check=False)

    def _build(self) -> None:
        for gateway in (self.a, self.b):
            run("ip", "netns", "add", gateway.namespace)
            gateway.run("ip", "link", "set", "lo", "up")
            # duplicate address detection would keep the IPv6 addresses unusable for a second
            for scope in ("all", "default"):
                gateway.run("sysctl", "-qw", f"net.ipv6.conf.{scope}.accept_dad=0")
        a, b = self.a.namespace, self.b.namespace
        run("ip", "link", "add", WIRE, "netns", a, "type", "veth", "peer", "name", WIRE, "netns", b)
        for gateway in (self.a, self.b):
            for version, length in ((4, 24), (6, 64)):
                gateway.run("ip", "addr", "add", f"{OUTER[version][gateway.side]}/{length}", "dev", WIRE)
            gateway.run("ip", "link", "set", WIRE, "mtu", str(self.setup.link_mtu), "up")
            self.write_config(gateway)

    def write_config(self, gateway: Gateway, **changes: str) -> None:
        """The configuration of one end; ``changes`` replace keys of its SA."""
        setup, mine, theirs = self.setup, gateway.side, 1 - gateway.side
        transport = setup.mode == "transport"
        settings = {
            "state_dir": str(gateway.state),
            "workers": str(setup.workers),
            "addresses": "" if transport else f"{INNER[4][mine]}/32, {INNER[6][mine]}/128",
            "path_mtu": "1500",
            **setup.settings,
        }
        sa = {
            "local": OUTER[setup.outer][mine],
            "remote": OUTER[setup.outer][theirs],
            "spi_in": hex(0x1000 + mine),
            "spi_out": hex(0x1000 + theirs),
            "esp_proposals": setup.suite,
            "key_in": f"0x{self.keys[mine].hex()}",
            "key_out": f"0x{self.keys[theirs].hex()}",
            "mode": setup.mode,
            "encap": "yes" if setup.encap else "no",
            "local_ts": "dynamic" if transport else f"{NETS[4][mine]}, {NETS[6][mine]}",
            "remote_ts": "dynamic" if transport else f"{NETS[4][theirs]}, {NETS[6][theirs]}",
            **setup.sa,
            **changes,
        }
        nets = {"local": NETS[4][mine], "remote": NETS[4][theirs]}
        policies = [
            _section(name, {key: value.format(**nets) for key, value in keys.items()})
            for name, keys in setup.policies.items()
        ]
        offload = [_section("offload", setup.offload)] if setup.offload else []
        peer = _section("peer", sa, [_section("policies", {}, policies)] if policies else [])
        gateway.config.touch(mode=0o600)
        gateway.config.write_text(_section("ipsecd", settings, offload) + _section("sas", {}, [peer]))


def _section(name: str, values: dict[str, str], inner: Sequence[str] = ()) -> str:
    lines = [f"{key} = {value}\n" for key, value in values.items() if value]
    return f"{name} {{\n{''.join([*lines, *inner])}}}\n"


def finish(process: subprocess.Popen[str]) -> str:
    """End a process that would not end by itself; what it said."""
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    output, _ = process.communicate(timeout=10)
    return output
