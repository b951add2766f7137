"""Packets of the reference engine that wait for an SA: the newest few of each policy, bounded in all."""

from __future__ import annotations

from dataclasses import dataclass

from ipsec.esp.engine import HELD_FRAMES, HELD_OCTETS, HELD_SECONDS


@dataclass(frozen=True)
class _Held:
    policy: int
    since: float
    packet: bytes


class HeldPackets:
    """Oldest first. A policy has at most ``limit``; in all there are HELD_FRAMES with HELD_OCTETS."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.since: float | None = None
        "when the packet at hand was kept first, if it was before"
        self._packets: list[_Held] = []

    def __len__(self) -> int:
        return len(self._packets)

    def put(self, policy: int, packet: bytes, now: float) -> int:
        """Keep a packet; how many older ones made room."""
        before = len(self._packets)
        same = [held for held in self._packets if held.policy == policy]
        if len(same) >= self.limit:
            self._packets.remove(same[0])
        while self._packets and self._is_full(len(packet), now):
            del self._packets[0]
        self._packets.append(_Held(policy, now if self.since is None else self.since, packet))
        return before + 1 - len(self._packets)

    def take(self) -> list[tuple[float, bytes]]:
        """All packets, each with the time since when it waits; none is kept any more."""
        taken, self._packets = self._packets, []
        return [(held.since, held.packet) for held in taken]

    def _is_full(self, more: int, now: float) -> bool:
        octets = sum(len(held.packet) for held in self._packets)
        too_long = now - self._packets[0].since > HELD_SECONDS
        return len(self._packets) >= HELD_FRAMES or octets + more > HELD_OCTETS or too_long
