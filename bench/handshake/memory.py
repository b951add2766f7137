"""The responder alone: an engine without sockets and data path answers initiators that another engine plays."""

from __future__ import annotations

import gc
import logging
import time
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path as File

from bench.handshake.initiators import Initiators, responder
from ipsec.ike.config import IkeSettings
from ipsec.ike.engine import IkeEngine
from ipsec.ike.events import Path
from ipsec.ike.host import Unconnected

GATEWAY = IPv4Address("192.0.2.1")
FIRST_PEER = int(IPv4Address("198.18.0.0"))
#: nothing is lost on the way, and nobody is to be put off
SETTINGS = IkeSettings(qcd_secret=bytes(32))


@dataclass
class Handshakes:
    """What a number of handshakes took."""

    count: int
    responder_s: float
    "CPU time of the responding engine alone"
    initiator_s: float

    @property
    def per_cpu_second(self) -> float:
        """Handshakes per CPU second of the responder."""
        return self.count / self.responder_s


class Direct:
    """A responder and its initiators, joined in one thread."""

    def __init__(self, authentication: str) -> None:
        logging.getLogger("ipsec").setLevel(logging.ERROR)
        self.gateway = responder(authentication, SETTINGS, Unconnected())
        self.initiators = Initiators(authentication, GATEWAY, SETTINGS)
        self._next = 0

    def run(self, count: int) -> Handshakes:
        """That many handshakes one after the other; they stay established."""
        clock = time.thread_time
        responding = initiating = 0.0
        other = self.initiators.engine
        for _ in range(count):
            now = time.monotonic()
            begun = clock()
            number, self._next = self._next, self._next + 1
            sa = self.initiators.initiate(number, IPv4Address(FIRST_PEER + number), now)
            sent = _turn(other)
            initiating += clock() - begun
            while sent:
                begun = clock()
                for data, path in sent:
                    self.gateway.receive_datagram(data, _reverse(path), now)
                answers = _turn(self.gateway)
                middle = clock()
                for data, path in answers:
                    other.receive_datagram(data, _reverse(path), now)
                sent = _turn(other)
                responding += middle - begun
                initiating += clock() - middle
            if not sa.established or not sa.children_up():
                raise RuntimeError(f"{sa} is not established")
            # a generator that keeps everything would slow down with the collector's full passes
            sa.destroy("done", now)
            _turn(other)
        return Handshakes(count, responding, initiating)


def _turn(engine: IkeEngine) -> list[tuple[bytes, Path]]:
    while engine.next_event() is not None:
        pass
    engine.next_timer()
    sent = [(data, path) for data, path, _ in engine.datagrams_to_send()]
    engine.catch_up()
    return sent


def _reverse(path: Path) -> Path:
    return Path(path.remote, path.remote_port, path.local, path.local_port)


def engine_memory(count: int) -> float:
    """Octets of resident memory that one established IKE_SA with its CHILD_SA takes in the responding engine."""
    both = Direct("psk")
    both.run(count // 5)
    before = resident()
    both.run(count)
    return (resident() - before) / count


def resident(pid: int | str = "self") -> int:
    """Octets of resident memory of a process."""
    gc.collect()
    for line in File(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no VmRSS of process {pid}")
