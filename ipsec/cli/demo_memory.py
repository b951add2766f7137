"""The demo without any privilege: two gateways in this process, real crypto and real packets, links in memory.

IKEv2 runs between two engines that know no socket; its keys are those of the ESP engines.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import struct
import time
from collections.abc import Iterable
from ipaddress import IPv4Address

from ipsec.backend.settings import MemoryEnds, UserspaceSettings
from ipsec.backend.userspace import UserspaceBackend
from ipsec.cli.demo_ike import DataPath, Negotiator, negotiate, rekey
from ipsec.daemon.children import Children
from ipsec.esp.drops import DropReason
from ipsec.net.memory import MemoryLink, MemoryTun

PACKETS = 10_000
PAYLOAD = 1372
BATCH = 16
_INNER = IPv4Address("10.1.0.1"), IPv4Address("10.2.0.1")


class DemoError(Exception):
    """A step failed; ``str()`` shows what happened instead."""


class _Wire:
    """What the wire sees, and what a hostile one does."""

    def __init__(self) -> None:
        self.messages = 0
        self.seen: list[bytes] = []
        self.flip = False
        self.twice = False

    def __call__(self, side: int, message: bytes) -> Iterable[bytes]:
        self.messages += 1
        if len(self.seen) < 1000:
            self.seen.append(message)
        if self.flip:
            message = message[:-1] + bytes([message[-1] ^ 1])
        return [message, message] if self.twice else [message]


def run() -> None:
    """Carry packets both ways, then tamper with some; DemoError if anything is not as it should be."""
    asyncio.run(_demo())


async def _demo() -> None:
    print(f"Two gateways in memory, IKEv2, {PACKETS} UDP packets of {PAYLOAD} octets each way.\n")
    wire = _Wire()
    link = MemoryLink(wire)
    tuns = MemoryTun(), MemoryTun()
    psk = secrets.token_bytes(32)
    backends = [
        UserspaceBackend(UserspaceSettings(memory=MemoryEnds(tun, link, side))) for side, tun in enumerate(tuns)
    ]
    try:
        for backend in backends:
            await backend.start()
        gateways = [Negotiator(side, psk, _data_path(backend)) for side, backend in enumerate(backends)]
        for label, text in negotiate(gateways):
            row(label, text)
        await _transfer_both(tuns, link)
        row(*rekey(gateways))
        await _transfer_both(tuns, link)
        row("messages on the wire", f"{wire.messages}, with inner octets in clear: {_clear(wire)}")
        _expect(not _clear(wire), "inner packets can be read on the wire")
        await _attack(wire, tuns, link, backends[1])
    finally:
        for backend in backends:
            await backend.stop()
        for tun in tuns:
            tun.close()
        link.close()


def _data_path(backend: UserspaceBackend) -> DataPath:
    children = Children(backend, path_mtu=1500, fraction=lambda: 0.0)
    return DataPath(children.install, children.remove, backend.get_spi, backend.free_spi)


async def _transfer_both(tuns: tuple[MemoryTun, MemoryTun], link: MemoryLink) -> None:
    for side, label in enumerate(("a to b", "b to a")):
        rate = await _transfer(side, tuns, link)
        row(f"{label}, SHA-256 compared", f"the same, {rate:.2f} Gbit/s with all this Python around it")


async def _attack(wire: _Wire, tuns: tuple[MemoryTun, MemoryTun], link: MemoryLink, receiver: UserspaceBackend) -> None:
    wire.flip = True
    await _send_one(tuns, link)
    _expect(receiver.drops().get(DropReason.IN_STATE_PROTO_ERROR) == 1, "a changed packet was not noticed")
    row("a packet with one bit flipped", "dropped (IN_STATE_PROTO_ERROR)")
    wire.flip, wire.twice = False, True
    await _send_one(tuns, link)
    _expect(receiver.drops().get(DropReason.IN_STATE_SEQ_ERROR) == 1, "a replayed packet was not noticed")
    row("a packet sent twice", "the second one dropped (IN_STATE_SEQ_ERROR)")


def _expect(true: bool, otherwise: str) -> None:
    if not true:
        raise DemoError(otherwise)


def row(label: str, text: str) -> None:
    """One line of the table."""
    print(f"  {label:34}  {text}", flush=True)


async def _transfer(side: int, tuns: tuple[MemoryTun, MemoryTun], link: MemoryLink) -> float:
    """Send all packets from one side; Gbit/s of inner packets. They must arrive, each once and unchanged."""
    packets = [_packet(side, number) for number in range(PACKETS)]
    sent, got = hashlib.sha256(), hashlib.sha256()
    arrived = 0
    begin = time.monotonic()
    for at in range(0, PACKETS, BATCH):
        for packet in packets[at : at + BATCH]:
            sent.update(packet)
            _expect(tuns[side].send(packet), "the device in memory is full")
        expected = min(at + BATCH, PACKETS)
        while arrived < expected:
            await asyncio.sleep(0)
            link.carry()
            for packet in tuns[1 - side].receive():
                got.update(packet)
                arrived += 1
    seconds = time.monotonic() - begin
    _expect(got.digest() == sent.digest(), "packets arrived changed or out of order")
    return sum(map(len, packets)) * 8 / seconds / 1e9


async def _send_one(tuns: tuple[MemoryTun, MemoryTun], link: MemoryLink) -> None:
    tuns[0].send(_packet(0, 1))
    for _ in range(10):
        await asyncio.sleep(0)
        link.carry()
    tuns[1].receive()


def _clear(wire: _Wire) -> int:
    """Messages in which an inner header or payload can be read."""
    needles = _INNER[0].packed + _INNER[1].packed, _INNER[1].packed + _INNER[0].packed, b"demo" * 4
    return sum(any(needle in message for needle in needles) for message in wire.seen)


def _packet(side: int, number: int) -> bytes:
    """An IPv4 UDP packet; its payload is a text that would be easy to see on the wire."""
    payload = struct.pack("!Q", number) + b"demo" * ((PAYLOAD - 8) // 4)
    datagram = struct.pack("!HHHH", 1234, 5678, 8 + len(payload), 0) + payload
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(datagram), number & 0xFFFF, 0x4000, 64, 17, 0)
    header += _INNER[side].packed + _INNER[1 - side].packed
    total = sum(struct.unpack("!10H", header))
    total = (total & 0xFFFF) + (total >> 16)
    value = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    checked: bytes = header[:10] + value.to_bytes(2, "big") + header[12:]
    return checked + datagram
