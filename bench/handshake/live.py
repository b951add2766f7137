"""Measurements on running daemons. Sockets of the load and of the probes are opened inside the far namespace."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path as File

from bench.handshake.gateways import Gateway, OurGateway
from bench.handshake.initiators import ANY, Initiators
from bench.handshake.memory import FIRST_PEER, GATEWAY
from bench.topology import INNER, LabError, Namespace, Pair
from ipsec.ike.child_sa import ChildSa
from ipsec.ike.config import IkeSettings
from ipsec.ike.events import ChildNotMade, ChildUp, IkeDown, Path
from ipsec.net import ike
from ipsec.net.netns import inside

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
#: an initiator that hears nothing asks again after this
SETTINGS = IkeSettings(retransmit_timeout=1.0, retransmit_base=1.5)
GIVE_UP_S = 60.0
ECHO_PORT = 7007
PROBE_EVERY_S = 0.001


@dataclass
class Burst:
    """A number of handshakes with a daemon."""

    count: int
    seconds: float
    cpu_s: float
    "of the daemon, all threads, user and system"
    retransmitted: int
    failed: list[str]
    "why attempts came to nothing, each of which was made again"
    took_ms: list[float] = field(default_factory=list)
    "each of them, from the first message to the CHILD_SA, retransmissions included"

    @property
    def per_cpu_second(self) -> float:
        """Handshakes per CPU second of the daemon."""
        return self.count / self.cpu_s


class Load:
    """Initiators behind two sockets in a namespace. Each has an address of its own."""

    def __init__(self, where: Namespace) -> None:
        self.where = where
        self._initiators = Initiators("psk", GATEWAY, SETTINGS)
        self._next = 0
        self._up = 0
        self._reasons: list[str] = []
        self._begun: dict[str, float] = {}
        self._took_ms: list[float] = []
        self._keep = False
        self._kept: list[ChildSa] = []
        with inside(where.name):
            self._sockets = {port: ike.open_ike(ANY, port) for port in (SETTINGS.port, SETTINGS.port_nat_t)}

    def close(self) -> None:
        """Close the sockets."""
        for sock in self._sockets.values():
            sock.close()

    def run(self, count: int, window: int, daemon: int, *, keep: bool = False) -> Burst:
        """Bring up that many tunnels, at most ``window`` at a time under way. LabError if they do not come up.

        They are forgotten when they are up, unless ``keep``: then ``rekey`` can reach them.
        """
        self._keep = keep

        def more(begun: int, now: float) -> int:
            # a peer that fails begins anew
            while begun - len(self._reasons) < count and begun - self._up - len(self._reasons) < window:
                sa = self._initiators.initiate(self._next, IPv4Address(FIRST_PEER + self._next), now)
                self._begun[sa.name] = now
                self._next += 1
                begun += 1
            return begun

        return self._until_up(count, daemon, more)

    def rekey(self, daemon: int) -> Burst:
        """Rekey every CHILD_SA that was kept, all at once."""
        kept, self._kept = self._kept, []

        def all_at_once(begun: int, now: float) -> int:
            for child in kept[begun:]:
                self._begun[child.ike.name] = now
                self._initiators.engine.rekey_child(child, now)
            return len(kept)

        return self._until_up(len(kept), daemon, all_at_once)

    def _until_up(self, count: int, daemon: int, more: Callable[[int, float], int]) -> Burst:
        engine = self._initiators.engine
        self._up = begun = 0
        self._reasons, self._took_ms = [], []
        ports = {sock.fileno(): port for port, sock in self._sockets.items()}
        poll = select.poll()
        for fd in ports:
            poll.register(fd, select.POLLIN)
        cpu, start = cpu_s(daemon), time.monotonic()
        resent = 0
        while self._up < count:
            now = time.monotonic()
            if now - start > GIVE_UP_S:
                raise LabError(f"{self._up} of {count} tunnels after {GIVE_UP_S:g} s: {self._reasons[-1:]}")
            begun = more(begun, now)
            self._turn()
            when = engine.next_timer()
            wait = 100.0 if when is None else min(max((when - time.monotonic()) * 1000, 0.0), 100.0)
            for fd, _ in poll.poll(wait):
                self._receive(ports[fd])
            now = time.monotonic()
            if when is not None and when <= now:
                resent += 1
                engine.handle_timer(now)
                self._turn()
        seconds = time.monotonic() - start
        return Burst(count, seconds, cpu_s(daemon) - cpu, resent, list(self._reasons), self._took_ms)

    def _receive(self, port: int) -> None:
        for data, source, source_port, local in ike.receive(self._sockets[port], ANY, 64):
            message = data if port == SETTINGS.port else data[4:]
            now = time.monotonic()
            self._initiators.engine.receive_datagram(message, Path(local, port, source, source_port), now)
            self._turn()

    def _turn(self) -> None:
        engine = self._initiators.engine
        now = time.monotonic()
        while (event := engine.next_event()) is not None:
            if isinstance(event, ChildUp):
                self._up += 1
                begun = self._begun.pop(event.child.ike.name, now)
                self._took_ms.append((now - begun) * 1000)
                if self._keep:
                    self._kept.append(event.child)
                else:
                    # it has done its work, and is forgotten without telling the gateway
                    event.child.ike.destroy("done", now)
            elif isinstance(event, ChildNotMade) or (isinstance(event, IkeDown) and not event.established):
                self._reasons.append(event.reason)
        for data, path, _ in engine.datagrams_to_send():
            parts = (data,) if path.local_port == SETTINGS.port else (ike.NON_ESP_MARKER, data)
            with contextlib.suppress(BlockingIOError):
                ike.send(self._sockets[path.local_port], parts, path.local, path.remote, path.remote_port)
        engine.catch_up()


def cpu_s(pid: int) -> float:
    """CPU seconds of a process, user and system, of all its threads."""
    fields = File(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK_S


def stall_ms(gateway: OurGateway) -> tuple[float, float]:
    """The longest stall of the event loop since the last call, and the most CPU time in one, from ``ticking``."""
    before = gateway.log.read_text(errors="replace").count("stall ")
    os.kill(gateway.pid, signal.SIGUSR2)
    for _ in range(500):
        found = re.findall(r"^stall ([0-9.]+) busy ([0-9.]+)", gateway.log.read_text(errors="replace"), re.MULTILINE)
        if len(found) > before:
            return float(found[-1][0]), float(found[-1][1])
        time.sleep(0.01)
    raise LabError("the ticker does not answer")


@contextlib.contextmanager
def echo(where: Namespace) -> Iterator[None]:
    """A UDP echo at the inner address of a namespace."""
    with inside(where.name):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((INNER[1], ECHO_PORT))
    sock.settimeout(0.2)
    done = threading.Event()

    def serve() -> None:
        while not done.is_set():
            with contextlib.suppress(OSError):
                data, source = sock.recvfrom(64)
                sock.sendto(data, source)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        sock.close()


def first_packet_ms(pair: Pair, a: Gateway) -> float:
    """From the command to initiate until the first datagram has gone through the tunnel and come back."""
    with inside(pair.a.name):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    sock.bind((INNER[0], 0))
    try:
        start = time.monotonic()
        a.bring_up()
        while time.monotonic() - start < 5.0:
            with contextlib.suppress(OSError):
                sock.sendto(b"?", (INNER[1], ECHO_PORT))
            if select.select([sock], [], [], PROBE_EVERY_S)[0]:
                with contextlib.suppress(OSError):
                    sock.recv(64)
                    return (time.monotonic() - start) * 1000
    finally:
        sock.close()
    raise LabError(f"{pair.a.name}: nothing came through the tunnel\n{a.log.read_text(errors='replace')[-1500:]}")
