"""Three network namespaces, the wires between them, and a recorder that keeps every packet on those wires.

    inner 10.1.0.1, fd01::1 [ a ] 192.0.2.1, 2001:db8::1 ===== wire0 ===== .2, ::2 [ b ] inner 10.2.0.1, fd02::1
                            [ a ] 198.18.0.1 ======= wire1 (two_wires) ======= 198.18.0.2 [ b ]
                            [ a ] 203.0.113.1 == nat0 == [ n, masquerades ] == nat0 == 198.51.100.2 [ b ]

The namespaces live as long as the session; each case starts its daemons in them. Sockets of a namespace are opened by a
thread that enters it, so traffic needs no process. Everything here is gone after ``Lab.close``; what a killed session
left is removed by the next ``Lab``.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import selectors
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from pyroute2.nftables.expressions import masq
from pyroute2.nftables.main import NFTables

from tests.commands import run

PREFIX = "ipi-"
WIRE, NAT, WIRE2 = "wire0", "nat0", "wire1"
DEVICES = (WIRE, NAT, WIRE2)
OUTER = {4: ("192.0.2.1", "192.0.2.2"), 6: ("2001:db8::1", "2001:db8::2")}
#: where a and b are when they meet through n, and what b takes a for
NATTED = ("203.0.113.1", "198.51.100.2")
NAT_OUTSIDE = "198.51.100.3"
#: the address of n on a's side
NEAR = "203.0.113.3"
#: a's second address on the wire, for roaming; it comes and goes with the case
SECOND = "192.0.2.11"
INNER = {4: ("10.1.0.1", "10.2.0.1"), 6: ("fd01::1", "fd02::1")}
#: where a and b are on the second wire
OUTER2 = ("198.18.0.1", "198.18.0.2")
#: a second host in each network, for narrowing
OTHER = ("10.1.1.1", "10.2.1.1")
NETS = {4: ("10.1.0.0/16", "10.2.0.0/16"), 6: ("fd01::/16", "fd02::/16")}

#: where both daemons put their routes
ROUTING_TABLE = "220"

CLONE_NEWNET = 0x40000000
ETH_P_ALL = 0x0003
SO_RCVBUFFORCE = 33
#: at the start of what is sent through a tunnel; nobody outside may see it
MARKER = b"interop-cleartext-marker"
PIECE = MARKER + bytes(range(256))

T = TypeVar("T")
_libc = ctypes.CDLL(None, use_errno=True)


def eventually(condition: Callable[[], object], what: str, *, timeout: float = 15.0) -> None:
    """Wait until ``condition`` holds; AssertionError with ``what`` if it does not within ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout:g} s: {what}"
        time.sleep(0.02)


class Namespace:
    """A network namespace, there from construction until ``delete``."""

    def __init__(self, name: str) -> None:
        self.name = name
        run("ip", "netns", "add", name)
        self.ip("link", "set", "lo", "up")
        # duplicate address detection would keep the IPv6 addresses unusable for a second
        names = ["net.ipv6.conf.{}.accept_dad=0", "net.ipv4.conf.{}.rp_filter=0"]
        # a second address of a subnet stays when the first one goes
        names.append("net.ipv4.conf.{}.promote_secondaries=1")
        self.run("sysctl", "-qw", *(name.format(scope) for name in names for scope in ("all", "default")))

    def command(self, *args: str) -> list[str]:
        """``args`` as a command in here that dies with the thread that starts it, and has that process's id."""
        return ["setpriv", "--pdeathsig", "KILL", "nsenter", f"--net=/run/netns/{self.name}", *args]

    def run(self, *args: str, check: bool = True, timeout: float = 30) -> subprocess.CompletedProcess[str]:
        """A command in here, with its output."""
        return run(*self.command(*args), check=check, timeout=timeout)

    def ip(self, *args: str, check: bool = True) -> str:
        """Output of ip(8) for this namespace."""
        return run("ip", "-n", self.name, *args, check=check).stdout

    def inside(self, action: Callable[[], T]) -> T:
        """Result of ``action``, called by a thread that has entered this namespace."""
        results: list[T] = []
        errors: list[BaseException] = []

        def work() -> None:
            try:
                with open(f"/run/netns/{self.name}") as handle:
                    if _libc.setns(handle.fileno(), CLONE_NEWNET):
                        raise OSError(ctypes.get_errno(), f"setns {self.name}")
                results.append(action())
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        if errors:
            raise errors[0]
        return results[0]

    def socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """A socket of this namespace."""
        return self.inside(lambda: socket.socket(family, kind, protocol))

    def ping(self, source: str, target: str, *, count: int = 2, wait: float = 1.0) -> bool:
        """Whether every echo request from ``source`` to ``target`` was answered, the last within ``wait`` seconds."""
        command = ["ping", "-n", "-q", "-c", str(count), "-i", "0.02", "-W", str(wait), "-I", source, target]
        return self.run(*command, check=False).returncode == 0

    def delete(self) -> None:
        """Remove it, and whoever is still in it."""
        delete_namespace(self.name)


def delete_namespace(name: str) -> None:
    """Kill what runs in a namespace of ours, and remove it."""
    for pid in run("ip", "netns", "pids", name, check=False).stdout.split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    run("ip", "netns", "del", name, check=False)


class Recorder:
    """Keeps what crosses some devices of a namespace, in memory; ``take`` gives it away."""

    def __init__(self, namespace: Namespace, devices: Sequence[str]) -> None:
        self._frames: list[tuple[float, bytes]] = []
        self._lock = threading.Lock()
        self._selector = selectors.DefaultSelector()
        self._sockets = []
        for device in devices:
            sock = namespace.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            self._sockets.append(sock)
            with contextlib.suppress(PermissionError):  # as root of a user namespace
                sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 32 << 20)
            sock.bind((device, ETH_P_ALL))
            sock.setblocking(False)
            self._selector.register(sock, selectors.EVENT_READ)
        self._stop, self._wake = socket.socketpair()
        self._selector.register(self._stop, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._work, name="recorder", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._stop:
                    return
                self._read(key.fileobj)  # type: ignore[arg-type]

    def _read(self, sock: socket.socket) -> None:
        with self._lock, contextlib.suppress(BlockingIOError, OSError):
            while True:
                data = sock.recv(1 << 17)
                self._frames.append((time.time(), data))

    def frames(self) -> list[bytes]:
        """The Ethernet frames so far."""
        for sock in self._sockets:
            self._read(sock)
        with self._lock:
            return [frame for _, frame in self._frames]

    def clear(self) -> None:
        """Forget what came so far."""
        self.frames()
        with self._lock:
            self._frames.clear()

    def save(self, path: Path) -> None:
        """Write what came so far as a pcap file."""
        self.frames()
        with self._lock, path.open("wb") as file:
            file.write(struct.pack("=IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 1 << 18, 1))
            for when, data in self._frames:
                seconds, rest = divmod(when, 1)
                file.write(struct.pack("=IIII", int(seconds), int(rest * 1e6), len(data), len(data)))
                file.write(data)

    def close(self) -> None:
        """End the thread and close the sockets."""
        self._wake.send(b"x")
        self._thread.join()
        for sock in (*self._sockets, self._stop, self._wake):
            sock.close()
        self._selector.close()


class Lab:
    """The namespaces, wires and the recorder of one session. A context manager."""

    def __init__(self) -> None:
        remove_leftovers()
        self._names = [f"{PREFIX}{os.getpid()}-{side}" for side in "abn"]
        self.gateways: tuple[Namespace, ...] = ()
        "the ends that run a daemon themselves"

    def __enter__(self) -> Lab:
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

    def _build(self) -> None:
        self.a, self.b, self.n = (Namespace(name) for name in self._names)
        self.ends = self.gateways = (self.a, self.b)
        a, b, n = self._names
        run("ip", "link", "add", WIRE, "netns", a, "type", "veth", "peer", "name", WIRE, "netns", b)
        run("ip", "link", "add", WIRE2, "netns", a, "type", "veth", "peer", "name", WIRE2, "netns", b)
        run("ip", "link", "add", NAT, "netns", a, "type", "veth", "peer", "name", "near", "netns", n)
        run("ip", "link", "add", NAT, "netns", b, "type", "veth", "peer", "name", "far", "netns", n)
        for end in self.ends:
            for device in DEVICES:
                # a train of segments that the veth does not cut would be one packet to the recorder
                end.run("ethtool", "-K", device, "tx-udp-segmentation", "off", "tso", "off")
        self.reset()
        for device, address in (("near", f"{NEAR}/24"), ("far", f"{NAT_OUTSIDE}/24")):
            self.n.ip("addr", "add", address, "dev", device)
            self.n.ip("link", "set", device, "up")
        self.n.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        self.n.inside(masquerade)
        self.recorder = Recorder(self.b, DEVICES)

    def reset(self, *, one_address: bool = False, two_wires: bool = False) -> None:
        """Addresses and routes of both ends as they are at the start, whatever a case did to them.

        With ``one_address`` each has only its IPv4 address on the wire, besides the inner ones; with ``two_wires``
        another one on another wire.
        """
        for side, end in enumerate(self.ends):
            if end not in self.gateways:
                continue
            commands = [f"addr flush dev {device}" for device in (*DEVICES, "lo")]
            commands += [f"neigh flush nud all dev {WIRE}"]
            commands += ["addr add 127.0.0.1/8 dev lo", "addr add ::1/128 dev lo"]
            commands += [f"link set {device} up" for device in (WIRE, NAT)]
            commands.append(f"link set {WIRE2} {'up' if two_wires else 'down'}")
            if two_wires:
                commands.append(f"addr add {OUTER2[side]}/24 dev {WIRE2}")
            commands += [f"addr add {address} dev lo" for address in (INNER[4][side], INNER[6][side], OTHER[side])]
            commands.append(f"addr add {OUTER[4][side]}/24 dev {WIRE}")
            if not one_address and not two_wires:
                commands.append(f"addr add {OUTER[6][side]}/64 dev {WIRE}")
                commands.append(f"addr add {NATTED[side]}/24 dev {NAT}")
                if side == 0:
                    commands.append("route replace 198.51.100.0/24 via 203.0.113.3")
            done = subprocess.run(
                ["ip", "-n", end.name, "-batch", "-"], input="\n".join(commands), text=True, capture_output=True
            )
            assert done.returncode == 0, done.stderr
            for family in ("-4", "-6"):
                # what a daemon that was killed keeps closed; there is no table where none ran
                end.ip(family, "route", "flush", "table", ROUTING_TABLE, check=False)
                # charon's has no mark: what the next daemon sends itself would go into its own tunnels
                end.ip(family, "rule", "flush", "table", ROUTING_TABLE, check=False)

    def close(self) -> None:
        """Remove everything."""
        recorder = getattr(self, "recorder", None)
        if recorder is not None:
            recorder.close()
        for name in self._names:
            delete_namespace(name)


def masquerade() -> None:
    """What ``nft add rule nat post masquerade`` does, here and now."""
    with NFTables(nfgen_family=socket.AF_INET) as tables:
        tables.table("add", name="nat")
        tables.chain("add", table="nat", name="post", hook="postrouting", type="nat", policy=1)
        tables.rule("add", table="nat", chain="post", expressions=(masq(),))


def remove_leftovers() -> None:
    """Delete namespaces of sessions that no longer run."""
    for line in run("ip", "netns", "list", check=False).stdout.splitlines():
        match = re.match(rf"({PREFIX}(\d+)-\w+)\b", line)
        if match and not Path("/proc", match[2]).exists():
            delete_namespace(match[1])


def transfer(sender: Namespace, source: str, receiver: Namespace, target: str, *, size: int = 100_000) -> None:
    """Send ``size`` octets over TCP in both directions at once; AssertionError or OSError if they do not arrive."""
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    data = (PIECE * (size // len(PIECE) + 1))[:size]
    received: dict[str, bytes] = {}
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(receiver.socket(family, socket.SOCK_STREAM))
        listener.bind((target, 0))
        listener.listen(1)
        client = stack.enter_context(sender.socket(family, socket.SOCK_STREAM))
        client.bind((source, 0))
        for sock in (listener, client):
            sock.settimeout(5)
        client.connect((target, listener.getsockname()[1]))
        server = stack.enter_context(listener.accept()[0])
        server.settimeout(5)
        for sock in (client, server):
            # what is not acknowledged when the tunnel goes would be sent again through the next one
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

        def collect(name: str, sock: socket.socket) -> None:
            parts = []
            with contextlib.suppress(TimeoutError):
                while part := sock.recv(1 << 16):
                    parts.append(part)
            received[name] = b"".join(parts)

        readers = [threading.Thread(target=collect, args=item) for item in (("client", client), ("server", server))]
        for reader in readers:
            reader.start()
        for sock in (client, server):
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
        for reader in readers:
            reader.join()
    for name in ("client", "server"):
        assert received[name] == data, f"{name} {source} -> {target}: {len(received[name])} of {size} octets arrived"


def iterate_sections(values: object, depth: int = 0) -> Iterator[str]:
    """Lines of a swanctl.conf or strongswan.conf section: nested dicts become sections, tuples become lists."""
    assert isinstance(values, dict)
    indent = "  " * depth
    for key, value in values.items():
        if isinstance(value, dict):
            yield f"{indent}{key} {{"
            yield from iterate_sections(value, depth + 1)
            yield f"{indent}}}"
        elif value is not None:
            yield f"{indent}{key} = {', '.join(value) if isinstance(value, tuple | list) else value}"


def render(values: dict[str, object]) -> str:
    """The text of a configuration file."""
    return "\n".join([*iterate_sections(values), ""])
