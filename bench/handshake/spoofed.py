"""Spoofed IKE_SA_INIT by the ten thousand: ``python -m bench.handshake.spoofed``. See bench/README.md.

The flood comes from a raw socket in the far namespace: half of it from anywhere, half from the addresses that honest
peers connect from meanwhile.
"""

from __future__ import annotations

import argparse
import itertools
import os
import socket
import statistics
import struct
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address

from bench.handshake import command, live, memory
from bench.handshake.gateways import GATEWAY_CONF, OurGateway, make_pair
from bench.handshake.initiators import IKE_PROPOSAL
from bench.topology import OUTER, Lab
from ipsec.crypto.proposals import parse_proposals
from ipsec.net.netns import inside
from ipsec.wire.iana import ExchangeType, Protocol
from ipsec.wire.ike import FLAG_INITIATOR, HEADER_LEN, emit_header, emit_payloads
from ipsec.wire.payloads import KePayload, NoncePayload, NotifyPayload, Payload, SaPayload
from ipsec.wire.proposal import Proposal

#: where the other half seems to come from: routed to the far namespace, which has no such address (RFC 6598)
ANYWHERE = "100.64.0.0/16"
#: prepared datagrams, sent again and again: enough that none is taken for a retransmission of a half-open one
PREPARED = 20_000
TICK_S = 0.005


@dataclass
class Outcome:
    """What a run has shown."""

    asked_per_s: int
    sent_per_s: float
    peers: int
    "honest ones, one after the other"
    again: int
    "attempts that had to be made again"
    median_ms: float
    worst_ms: float
    "until an honest peer was up"
    calm_ms: float
    "the median without a flood"
    cpus: float
    "that the daemon used during the flood"
    resident_before_kib: int
    resident_after_kib: int


def datagram(source: IPv4Address, target: IPv4Address) -> bytes:
    """An IPv4 packet with a well-formed request that is nobody's."""
    (offer,) = parse_proposals([IKE_PROPOSAL], Protocol.IKE)
    payloads: list[Payload] = [
        SaPayload([Proposal(offer.protocol, offer.transforms, 1)]),
        KePayload(31, os.urandom(32)),
        NoncePayload(os.urandom(32)),
        NotifyPayload(40000, bytes(200)),
    ]
    first, content = emit_payloads(payloads)
    size = HEADER_LEN + len(content)
    message = emit_header(os.urandom(8), bytes(8), first, ExchangeType.IKE_SA_INIT, FLAG_INITIATOR, 0, size) + content
    port = int.from_bytes(os.urandom(2), "big") | 1024
    udp = struct.pack("!HHHH", port, 500, 8 + size, 0) + message
    # the kernel fills in the length, the ID and the checksum of a packet that comes with its header
    return struct.pack("!BBHHHBBH4s4s", 0x45, 0, 0, 0, 0, 64, 17, 0, source.packed, target.packed) + udp


class Flood:
    """Sends at a rate from a thread until ``stop``."""

    def __init__(self, where: str, packets: list[bytes], rate: int) -> None:
        with inside(where):
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        self._packets = packets
        self._rate = rate
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.sent = 0
        self._start = time.monotonic()
        self._thread.start()

    def _run(self) -> None:
        target = (OUTER[0], 0)
        packets = itertools.cycle(self._packets)
        while not self._done.wait(TICK_S):
            due = int((time.monotonic() - self._start) * self._rate)
            for packet in itertools.islice(packets, due - self.sent):
                self._socket.sendto(packet, target)
            self.sent = max(self.sent, due)

    def stop(self) -> float:
        """End it; what it sent per second."""
        self._done.set()
        self._thread.join()
        self._socket.close()
        return self.sent / (time.monotonic() - self._start)


def measure(lab: Lab, args: argparse.Namespace) -> Outcome:
    """One run. LabError if an honest peer does not get in."""
    pair = make_pair(lab, "flood")
    pair.a.run("ip", "route", "add", ANYWHERE, "via", OUTER[1])
    gateway = OurGateway(lab, pair.a, lab.scratch / "flood")
    gateway.start(GATEWAY_CONF)
    load = live.Load(pair.b)
    calm = statistics.median(_connect(load, gateway, args.peers, []))
    first = memory.FIRST_PEER + args.peers
    packets = []
    for number in range(PREPARED):
        honest = IPv4Address(first + number // 2 % args.peers)
        anywhere = IPv4Address(int(IPv4Address("100.64.0.0")) + number % 65536)
        packets.append(datagram(honest if number % 2 else anywhere, IPv4Address(OUTER[0])))
    flood = Flood(pair.b.name, packets, args.rate)
    try:
        # until every table that a flood can fill is full
        time.sleep(args.warm)
        before, cpu, start = memory.resident(gateway.pid), live.cpu_s(gateway.pid), time.monotonic()
        again: list[str] = []
        times = _connect(load, gateway, args.peers, again)
        time.sleep(max(args.seconds - (time.monotonic() - start), 0.0))
        cpus = (live.cpu_s(gateway.pid) - cpu) / (time.monotonic() - start)
        after = memory.resident(gateway.pid)
    finally:
        rate = flood.stop()
    load.close()
    gateway.kill()
    return Outcome(
        args.rate, round(rate), args.peers, len(again), statistics.median(times), max(times), calm, cpus,
        before // 1024, after // 1024,
    )  # fmt: skip


def _connect(load: live.Load, gateway: OurGateway, peers: int, again: list[str]) -> list[float]:
    times = []
    for _ in range(peers):
        burst = load.run(1, 1, gateway.pid)
        again += burst.failed
        times.append(burst.seconds * 1000)
    return times


def main(arguments: Sequence[str] | None = None) -> int:
    """Fails if an honest peer had to begin again."""
    parser = argparse.ArgumentParser(prog="python -m bench.handshake.spoofed", description=__doc__.split("\n")[0])
    parser.add_argument("--rate", type=int, default=10_000, help="requests per second")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--warm", type=float, default=5.0, help="seconds of flood before anything is measured")
    parser.add_argument("--peers", type=int, default=50, help="honest ones")
    args = parser.parse_args(arguments)
    return command.run(lambda lab: measure(lab, args), lambda outcome: bool(outcome.again))


if __name__ == "__main__":
    sys.exit(main())
