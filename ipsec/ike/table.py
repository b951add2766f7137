"""Connections by the addresses of both ends: which ones a datagram may be for, the most exact first."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from ipaddress import ip_address, ip_network

from ipsec.ike.config import Connection
from ipsec.ike.events import IpAddress, Path

#: how well an address fits an entry of local_addrs or remote_addrs
EXACT, WITHIN, ANY, NOT = 3, 2, 1, 0

Resolver = Callable[[str], tuple[IpAddress, ...]]


class _Entry:
    """One entry of an address list, read once."""

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


def names_its_peers(connection: Connection) -> bool:
    """Whether ``remote_addrs`` is of addresses and names alone, so that nobody else can come by it."""
    entries = [_Entry(text) for text in connection.remote_addrs]
    return bool(entries) and all(entry.range is None and entry.name != "%any" for entry in entries)


def names(connection: Connection, address: IpAddress, resolve: Resolver) -> bool:
    """Whether ``remote_addrs`` has just this address, or a name for it."""
    return any(_Entry(text).fits(address, resolve) == EXACT for text in connection.remote_addrs)


class ConnectionTable:
    """All connections. Finding those with a fixed peer costs the same however many there are."""

    def __init__(self, connections: Iterable[Connection], resolve: Resolver) -> None:
        self._resolve = resolve
        self.by_name = {connection.name: connection for connection in connections}
        self._entries: dict[str, tuple[list[_Entry], list[_Entry]]] = {}
        self._fixed: dict[IpAddress, list[Connection]] = {}
        self._others: list[Connection] = []
        for connection in self.by_name.values():
            local = [_Entry(text) for text in connection.local_addrs]
            remote = [_Entry(text) for text in connection.remote_addrs]
            self._entries[connection.name] = local, remote
            if all(entry.exact is not None for entry in remote):
                for entry in remote:
                    assert entry.exact is not None
                    self._fixed.setdefault(entry.exact, []).append(connection)
            else:
                self._others.append(connection)

    def candidates(self, path: Path) -> list[Connection]:
        """Connections that may be meant by a datagram along ``path``, the best fit first, then as configured."""
        found: list[tuple[int, Connection]] = []
        for connection in (*self._fixed.get(path.remote, ()), *self._others):
            local, remote = self._entries[connection.name]
            near = max((entry.fits(path.local, self._resolve) for entry in local), default=ANY)
            far = max((entry.fits(path.remote, self._resolve) for entry in remote), default=ANY)
            if near and far:
                found.append((-4 * far - near, connection))
        found.sort(key=lambda item: item[0])
        return [connection for _, connection in found]
