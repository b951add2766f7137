"""Which connection a packet belongs to: by SPI outside, by the selectors of CHILD_SAs inside."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import TypeVar

from ipsec.ctl.tap import Address
from ipsec.ctl.view import ChildSa, IkeSa, fetch_conns, fetch_sas
from ipsec.vici.client import Session

K = TypeVar("K")

#: SAs that are remembered after they have gone
_SPIS_MAX = 100_000


@dataclass(frozen=True, slots=True)
class Whose:
    """A connection, and its child if that is known."""

    conn: str
    child: str = ""

    def __str__(self) -> str:
        return f"{self.conn}/{self.child}" if self.child else self.conn


Range = tuple[int, int, int]
"IP version, first and last address"


@dataclass
class Labels:
    """What belongs to whom. SAs that go stay known: their last packets are still on their way."""

    spis: dict[int, Whose] = field(default_factory=dict)
    ike_spis: dict[str, Whose] = field(default_factory=dict)
    remotes: dict[Address, Whose] = field(default_factory=dict)
    pairs: list[tuple[list[Range], list[Range], Whose]] = field(default_factory=list)
    "of children that are up: selectors of our side, of the other"

    def add(self, newer: Labels) -> None:
        """Take what is there now in as well."""
        _merge(self.spis, newer.spis)
        _merge(self.ike_spis, newer.ike_spis)
        _merge(self.remotes, newer.remotes)
        self.pairs = newer.pairs

    def esp(self, spi: int) -> Whose | None:
        """Whose SA it is."""
        return self.spis.get(spi)

    def ike(self, initiator: str, responder: str, remote: Address) -> Whose | None:
        """Whose IKE_SA it is, or before there is one, whose peer."""
        return self.ike_spis.get(initiator) or self.ike_spis.get(responder) or self.remotes.get(remote)

    def inside(self, source: Address, target: Address, *, outbound: bool) -> Whose | None:
        """Whose selectors have a packet."""
        near, far = (source, target) if outbound else (target, source)
        for local, remote, whose in self.pairs:
            if _has(local, near) and _has(remote, far):
                return whose
        return None


def _merge(known: dict[K, Whose], newer: Mapping[K, Whose]) -> None:
    known |= newer
    while len(known) > _SPIS_MAX:
        del known[next(iter(known))]


def _has(ranges: Iterable[Range], address: Address) -> bool:
    version, value = address.version, int(address)
    return any(one == version and first <= value <= last for one, first, last in ranges)


def ranges(selectors: Iterable[str]) -> list[Range]:
    """The addresses of selectors as vici writes them: ``10.1.0.0/16[tcp/443]``, ``10.0.0.1..10.0.0.9``."""
    found: list[Range] = []
    for selector in selectors:
        text = selector.partition("[")[0]
        try:
            if ".." in text or "-" in text:
                first, last = (ip_address(part) for part in text.replace("..", "-").split("-", 1))
            else:
                network = ip_network(text, strict=False)
                first, last = network[0], network[-1]
        except ValueError:
            continue
        found.append((first.version, int(first), int(last)))
    return found


async def fetch_labels(session: Session) -> Labels:
    """Ask the daemon."""
    found = Labels()
    for conn in await fetch_conns(session):
        for text in conn.remote_addrs:
            with suppress(ValueError):
                found.remotes.setdefault(ip_address(text), Whose(conn.name))
    for sa in await fetch_sas(session):
        _add(found, sa)
    return found


def _add(found: Labels, sa: IkeSa) -> None:
    for spi in (sa.spi_i, sa.spi_r):
        if spi.strip("0"):
            found.ike_spis[spi] = Whose(sa.name)
    with suppress(ValueError):
        found.remotes[ip_address(sa.remote_host)] = Whose(sa.name)
    for child in sa.children:
        whose = Whose(sa.name, child.name)
        for spi in (child.spi_in, child.spi_out):
            if spi.strip("0"):
                found.spis[int(spi, 16)] = whose
        if child.up:
            found.pairs.append((*_sides(child), whose))


def _sides(child: ChildSa) -> tuple[list[Range], list[Range]]:
    return ranges(child.local_ts), ranges(child.remote_ts)
