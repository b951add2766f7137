"""Connections by the addresses of both ends: which ones a datagram may be for, the most exact first."""

from __future__ import annotations

from collections.abc import Callable, Container, Hashable, Iterable
from functools import cached_property, lru_cache
from ipaddress import ip_address, ip_network
from operator import itemgetter

from ipsec.crypto.identity import Identity
from ipsec.ike.config import Connection
from ipsec.ike.events import IpAddress, Path

#: how well an address fits an entry of local_addrs or remote_addrs
EXACT, WITHIN, ANY, NOT = 3, 2, 1, 0

Resolver = Callable[[str], tuple[IpAddress, ...]]


class _Entry:
    """One entry of an address list."""

    __slots__ = ("exact", "name", "range")

    def __init__(self, text: str) -> None:
        self.exact: IpAddress | None = None
        self.range: tuple[IpAddress, IpAddress] | None = None
        self.name = ""
        if text in ("%any", "%any4", "%any6", "0.0.0.0", "::"):
            self.name = "%any"
            return
        low, dash, high = text.partition("-")
        try:
            if "/" in text:
                network = ip_network(text, strict=False)
                self.range = (network[0], network[-1])
            elif dash:
                self.range = (ip_address(low), ip_address(high))
            else:
                self.exact = ip_address(text)
        except ValueError:
            self.name = text

    def fits(self, address: IpAddress, resolve: Resolver) -> int:
        """How well."""
        if self.exact is not None:
            return EXACT if self.exact == address else NOT
        if self.range is not None:
            first, last = self.range
            same = first.version == address.version
            return WITHIN if same and int(first) <= int(address) <= int(last) else NOT
        if self.name == "%any":
            return ANY
        return EXACT if address in resolve(self.name) else NOT


#: each handshake asks about the same texts
_entry = lru_cache(maxsize=4096)(_Entry)


def names_its_peers(connection: Connection) -> bool:
    """Whether ``remote_addrs`` is of addresses and names alone, so that nobody else can come by it."""
    entries = [_entry(text) for text in connection.remote_addrs]
    return bool(entries) and all(entry.range is None and entry.name != "%any" for entry in entries)


def names(connection: Connection, address: IpAddress, resolve: Resolver) -> bool:
    """Whether ``remote_addrs`` has just this address, or a name for it."""
    return any(_entry(text).fits(address, resolve) == EXACT for text in connection.remote_addrs)


class _Alike:
    """Connections with the same address lists, in the order in which they were configured."""

    __slots__ = ("_local", "_remote", "connections", "places")

    def __init__(self, first: Connection) -> None:
        self._local = [_entry(text) for text in first.local_addrs]
        self._remote = [_entry(text) for text in first.remote_addrs]
        self.connections: list[Connection] = []
        self.places: list[int] = []

    @property
    def fixed(self) -> list[IpAddress] | None:
        """Their peers, if all of these are addresses."""
        found = [entry.exact for entry in self._remote if entry.exact is not None]
        return found if len(found) == len(self._remote) else None

    def fits(self, path: Path, resolve: Resolver) -> tuple[int, int] | None:
        """How well: the other end counts first. None if not at all."""
        near = max((entry.fits(path.local, resolve) for entry in self._local), default=ANY)
        far = max((entry.fits(path.remote, resolve) for entry in self._remote), default=ANY)
        return (far, near) if near and far else None


class ConnectionTable:
    """All connections. Finding those with a fixed peer costs the same however many there are, and addresses are held
    against each list of addresses once, however many connections have it: strangers may come by the thousand."""

    def __init__(self, connections: Iterable[Connection], resolve: Resolver) -> None:
        self._resolve = resolve
        self.by_name = {connection.name: connection for connection in connections}
        alike: dict[tuple[tuple[str, ...], tuple[str, ...]], _Alike] = {}
        for place, connection in enumerate(self.by_name.values()):
            key = connection.local_addrs, connection.remote_addrs
            if key not in alike:
                alike[key] = _Alike(connection)
            alike[key].connections.append(connection)
            alike[key].places.append(place)
        self._fixed: dict[IpAddress, list[_Alike]] = {}
        self._others: list[_Alike] = []
        for one in alike.values():
            fixed = one.fixed
            if fixed is None:
                self._others.append(one)
            # an address may be there twice
            for address in dict.fromkeys(fixed or ()):
                self._fixed.setdefault(address, []).append(one)

    def candidates(self, path: Path) -> list[Connection]:
        """Connections that may be meant by a datagram along ``path``, the best fit first, then as configured."""
        fitting: dict[tuple[int, int], list[_Alike]] = {}
        for alike in (*self._fixed.get(path.remote, ()), *self._others):
            how = alike.fits(path, self._resolve)
            if how is not None:
                fitting.setdefault(how, []).append(alike)
        return [connection for how in sorted(fitting, reverse=True) for connection in _as_configured(fitting[how])]

    def may_have(self, peer: Identity) -> Container[str]:
        """The names of all connections that this peer may come by, and of others for which that is still to be seen."""
        exact, patterns = self._peers
        return patterns | exact.get(peer.spelling, set())

    @cached_property
    def _peers(self) -> tuple[dict[tuple[int, Hashable], set[str]], set[str]]:
        """Connections by the identity of their peer, and those with a pattern for it. Made when a peer comes: clients
        of vici load connections one by one, each time all of them."""
        exact: dict[tuple[int, Hashable], set[str]] = {}
        patterns = set()
        for name, connection in self.by_name.items():
            wanted = connection.remote.id.exact
            if wanted is None:
                patterns.add(name)
            else:
                exact.setdefault(wanted.spelling, set()).add(name)
        return exact, patterns


def _as_configured(found: list[_Alike]) -> list[Connection]:
    if len(found) == 1:
        return found[0].connections
    placed = [pair for one in found for pair in zip(one.places, one.connections, strict=True)]
    placed.sort(key=itemgetter(0))
    return [connection for _, connection in placed]
