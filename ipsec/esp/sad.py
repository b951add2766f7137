"""The Security Association Database of the reference engine (RFC 4301 section 4.4.2)."""

from __future__ import annotations

from dataclasses import replace

from ipsec.crypto.cipher import EspCipher
from ipsec.errors import SaError
from ipsec.esp.drops import DropReason
from ipsec.esp.engine import SEQUENCE_SOFT_MARGIN, EventKind, SaStats
from ipsec.esp.pmtu import inner_mtu
from ipsec.esp.replay import ReplayWindow
from ipsec.esp.sa import Direction, IpAddress, Lifetime, SaParams


class SaEntry:
    """One SA in use: its parameters, which ``update`` may replace, and what changes with every packet."""

    def __init__(self, sa: int, params: SaParams) -> None:
        self.sa = sa
        self.params = params
        self.cipher = EspCipher(params.suite, params.encr_key, params.integ_key)
        self.inner_mtu = inner_mtu(params)
        self.window = ReplayWindow(params.replay_window, params.esn, params.initial_seq)
        self.seq = params.initial_seq
        self.seq_limit = (1 << (64 if params.esn else 32)) - 1
        self.packets = 0
        self.bytes = 0
        self.last_use: float | None = None
        self.drops: dict[DropReason, int] = {}
        self._told: set[EventKind] = set()

    def move(
        self, local: IpAddress, remote: IpAddress, encap: tuple[int, int] | None, path_mtu: int | None = None
    ) -> None:
        """Other outer addresses; keys, counters and window stay."""
        path_mtu = self.params.path_mtu if path_mtu is None else path_mtu
        self.params = replace(self.params, local=local, remote=remote, encap=encap, path_mtu=path_mtu)
        self.inner_mtu = inner_mtu(self.params)

    def limit(self, lifetime: Lifetime) -> None:
        """Other limits by volume; both lifetime events may come again."""
        self.params = replace(self.params, lifetime=lifetime)
        self._told -= {EventKind.SOFT_LIFETIME, EventKind.HARD_LIFETIME}

    def charge(self, octets: int, now: float) -> list[EventKind]:
        """Count one good packet with ``octets`` of inner packet, which ``allows`` let pass; events that it causes."""
        life = self.params.lifetime
        self.packets, self.bytes, self.last_use = self.packets + 1, self.bytes + octets, now
        if _reached(self.packets, life.packets_soft) or _reached(self.bytes, life.bytes_soft):
            return self.once(EventKind.SOFT_LIFETIME)
        return []

    def allows(self, octets: int) -> bool:
        """Whether one more packet with so many octets exceeds no hard limit."""
        life = self.params.lifetime
        return not (_reached(self.packets, life.packets_hard) or _beyond(self.bytes + octets, life.bytes_hard))

    def used_up(self) -> bool:
        """Whether a hard limit is reached, so that nothing of any length is allowed any more."""
        life = self.params.lifetime
        return _reached(self.packets, life.packets_hard) or _reached(self.bytes, life.bytes_hard)

    def next_seq(self) -> list[EventKind] | None:
        """Advance ``seq`` to the number of the next outbound packet; events that it causes.

        None if the numbers are used up (RFC 4303 section 3.3.3): they must never cycle, whatever anti-replay does,
        since IVs come from them.
        """
        if self.seq == self.seq_limit:
            return None
        self.seq += 1
        return self.once(EventKind.SEQUENCE_SOFT) if self.seq >= self.seq_limit - SEQUENCE_SOFT_MARGIN else []

    def once(self, kind: EventKind) -> list[EventKind]:
        """``[kind]`` the first time, then nothing."""
        if kind in self._told:
            return []
        self._told.add(kind)
        return [kind]

    def stats(self) -> SaStats:
        """A snapshot of the counters."""
        return SaStats(
            packets=self.packets,
            bytes=self.bytes,
            last_use=self.last_use,
            seq=self.seq if self.params.direction is Direction.OUT else self.window.highest,
            drops=dict(self.drops),
            remote=self.params.remote,
            encap=self.params.encap,
        )


class Sad:
    """All SAs by id, by inbound SPI and by outbound reqid."""

    def __init__(self) -> None:
        self._entries: dict[int, SaEntry] = {}
        self._inbound: dict[int, SaEntry] = {}
        self._outbound: dict[tuple[int, IpAddress], SaEntry] = {}
        self._by_reqid: dict[int, list[SaEntry]] = {}
        self._next_id = 1

    def add(self, params: SaParams) -> SaEntry:
        """A new entry. SaError for an inbound SPI, or an outbound (SPI, remote), that is there already."""
        if params.direction is Direction.IN and params.spi in self._inbound:
            raise SaError(f"an inbound SA with SPI 0x{params.spi:08x} is already there")
        if params.direction is Direction.OUT and (params.spi, params.remote) in self._outbound:
            raise SaError(f"an outbound SA with SPI 0x{params.spi:08x} to {params.remote} is already there")
        entry = SaEntry(self._next_id, params)
        self._next_id += 1
        self._entries[entry.sa] = entry
        if params.direction is Direction.IN:
            self._inbound[params.spi] = entry
        else:
            self._outbound[params.spi, params.remote] = entry
            self._by_reqid.setdefault(params.reqid, []).append(entry)
        return entry

    def remove(self, sa: int) -> None:
        """Take an entry out. SaError if it is not there."""
        entry = self.get(sa)
        del self._entries[sa]
        if entry.params.direction is Direction.IN:
            del self._inbound[entry.params.spi]
            return
        del self._outbound[entry.params.spi, entry.params.remote]
        siblings = self._by_reqid[entry.params.reqid]
        siblings.remove(entry)
        if not siblings:
            del self._by_reqid[entry.params.reqid]

    def update(
        self, sa: int, local: IpAddress, remote: IpAddress, encap: tuple[int, int] | None, path_mtu: int
    ) -> SaEntry:
        """Move an entry. SaError if it is not there, values do not fit, or another outbound SA is in the way."""
        entry = self.get(sa)
        old = (entry.params.spi, entry.params.remote)
        new = (entry.params.spi, remote)
        outbound = entry.params.direction is Direction.OUT
        if outbound and self._outbound.get(new, entry) is not entry:
            raise SaError(f"an outbound SA with SPI 0x{entry.params.spi:08x} to {remote} is already there")
        entry.move(local, remote, encap, path_mtu)
        if outbound:
            del self._outbound[old]
            self._outbound[new] = entry
        return entry

    def get(self, sa: int) -> SaEntry:
        """The entry with that id. SaError if it is not there."""
        try:
            return self._entries[sa]
        except KeyError:
            raise SaError(f"there is no SA with id {sa}") from None

    def inbound(self, spi: int) -> SaEntry | None:
        """The inbound SA with that SPI: for unicast the SPI is enough (RFC 4301 section 4.1)."""
        return self._inbound.get(spi)

    def newest(self, reqid: int) -> SaEntry | None:
        """The outbound SA added last with that reqid."""
        entries = self._by_reqid.get(reqid)
        return entries[-1] if entries else None


def _reached(count: int, limit: int) -> bool:
    return bool(limit) and count >= limit


def _beyond(count: int, limit: int) -> bool:
    return bool(limit) and count > limit
