"""What is between hosts: a link that loses, repeats, reorders and corrupts, NATs, and packets of the data path."""

from __future__ import annotations

import random
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

IpAddress = IPv4Address | IPv6Address
Socket = tuple[IpAddress, int]


class Violation(AssertionError):
    """Something that must always hold does not."""


@dataclass
class Link:
    """How the network treats datagrams; fractions of them, and seconds."""

    latency: float = 0.02
    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    "how many come late, by up to ``late``"
    late: float = 2.0
    corrupt: float = 0.0
    mtu: int = 65535
    "octets of a datagram with its headers; larger ones are lost"


class Esp(NamedTuple):
    """A packet of the data path."""

    spi: int
    key: bytes
    number: int


class Nat:
    """A NAT with one outside address; every inside socket has one outside port."""

    def __init__(self, outside: IpAddress) -> None:
        self.outside = outside
        self._ports: dict[Socket, int] = {}
        self._inside: dict[int, Socket] = {}
        self._next = 20000

    def outward(self, source: Socket) -> Socket:
        if source not in self._ports:
            self._next += 1
            self._ports[source] = self._next
            self._inside[self._next] = source
        return self.outside, self._ports[source]

    def inward(self, port: int) -> Socket | None:
        return self._inside.get(port)

    def rebind(self) -> None:
        """Forget all mappings; new ones get other ports."""
        self._ports.clear()
        self._inside.clear()


def flip(data: bytes, rng: random.Random) -> bytes:
    """The same with one bit wrong."""
    at = rng.randrange(len(data))
    return data[:at] + bytes((data[at] ^ 1 << rng.randrange(8),)) + data[at + 1 :]
