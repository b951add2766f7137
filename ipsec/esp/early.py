"""Packets of the reference engine that came before their SA: not authenticated yet, so few, and not for long."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ipsec.esp.engine import EARLY_OCTETS, EARLY_PACKETS, EARLY_SECONDS, EARLY_SPIS
from ipsec.esp.sa import IpAddress


class EarlyPacket(NamedTuple):
    """An ESP packet, and what ``EspEngine.inbound`` was told of it."""

    spi: int
    datagram: bytes
    tos: int
    source: tuple[IpAddress, int] | None
    since: float


class EarlyPackets:
    """Oldest first, in EARLY_SPIS places, each for the EARLY_PACKETS of one SPI with EARLY_OCTETS.

    Where there is no room the newest is refused: who learns an SPI does so from a packet of the peer, which is kept by
    then, and cannot push it out.
    """

    def __init__(self) -> None:
        self.awaited: set[int] = set()
        "SPIs that peers were told and that have no SA yet"
        self._places: list[list[EarlyPacket]] = [[] for _ in range(EARLY_SPIS)]

    def __len__(self) -> int:
        return sum(map(len, self._places))

    def put(self, packet: EarlyPacket) -> bool:
        """Keep a packet; False if there is no room."""
        place = next((place for place in self._places if place and place[0].spi == packet.spi), None)
        if place is None:
            place = next((place for place in self._places if not place), None)
        if place is None or len(place) == EARLY_PACKETS:
            return False
        if sum(len(one.datagram) for one in place) + len(packet.datagram) > EARLY_OCTETS:
            return False
        place.append(packet)
        return True

    def expire(self, now: float) -> int:
        """Throw away what has waited too long; how many."""
        before = len(self)
        for place in self._places:
            place[:] = [one for one in place if now - one.since <= EARLY_SECONDS]
        return before - len(self)

    def take(self, has_sa: Callable[[int], bool], now: float) -> tuple[list[EarlyPacket], int]:
        """The packets whose SA is there, and how many were thrown away: those that nobody awaits are as well."""
        lost = self.expire(now)
        taken: list[EarlyPacket] = []
        for place in self._places:
            if place and has_sa(place[0].spi):
                taken += place
                place.clear()
            elif place and place[0].spi not in self.awaited:
                lost += len(place)
                place.clear()
        return taken, lost
