"""What the engine asks of whoever runs it: the data path's SPIs and counters, the calendar, and addresses."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Protocol

from ipsec.ike.child_sa import ChildSa
from ipsec.ike.config import Connection
from ipsec.ike.events import IpAddress


class Host(Protocol):
    """Every call returns at once."""

    def allocate_spi(self) -> int:
        """An SPI that no inbound SA of ours has."""

    def free_spi(self, spi: int) -> None:
        """That SPI was not used after all."""

    def last_use(self, child: ChildSa) -> float | None:
        """``now`` of the last packet that came in through a CHILD_SA; None if none did."""

    def last_traffic(self, child: ChildSa) -> float | None:
        """The same for either direction."""

    def wall(self) -> datetime:
        """The calendar's time, UTC, for the validity of certificates only."""

    def resolved(self, name: str) -> tuple[IpAddress, ...]:
        """The addresses of a host as far as they are known."""

    def local_addresses(self, connection: Connection) -> tuple[IpAddress, ...]:
        """Our addresses that a peer may be told, and use (RFC 4555 section 3.4), as far as the connection allows."""

    def sources(self, connection: Connection, remote: IpAddress) -> Iterable[IpAddress]:
        """Those of our addresses from which a way leads to ``remote``, the best first, each looked for when its turn
        comes."""


class Unconnected:
    """The host of an engine that no socket and no data path belongs to: it has SPIs, today's date and nothing else."""

    def __init__(self) -> None:
        self._spi = 255

    def allocate_spi(self) -> int:
        """The next number (RFC 4303 section 2.1: the first 256 are reserved)."""
        self._spi += 1
        return self._spi

    def free_spi(self, spi: int) -> None:
        """They do not run out."""

    def last_use(self, child: ChildSa) -> float | None:
        """Never."""
        return None

    def last_traffic(self, child: ChildSa) -> float | None:
        """Never."""
        return None

    def wall(self) -> datetime:
        """Now."""
        return datetime.now(UTC)

    def resolved(self, name: str) -> tuple[IpAddress, ...]:
        """No names."""
        return ()

    def local_addresses(self, connection: Connection) -> tuple[IpAddress, ...]:
        """No other addresses (RFC 4555)."""
        return ()

    def sources(self, connection: Connection, remote: IpAddress) -> tuple[IpAddress, ...]:
        """No other ways."""
        return ()
