"""The way to a peer: from which of our addresses and ports to which of its."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple

from ipsec.backend.base import Backend
from ipsec.daemon.reach import Resolver, allows, literal_address, names_of, source_address, specific, usable
from ipsec.esp.sa import IpAddress
from ipsec.ike.config import Connection
from ipsec.ike.events import Path
from ipsec.ike.sa import IkeSa

#: whoever has found no way looks no sooner again, whatever changes meanwhile
AGAIN_S = 2.0


class Ends(NamedTuple):
    """What ``dynamic`` stands for where there is no way to the peer yet."""

    local: IpAddress | None
    "None: any address of ours, as long as none is known to lead there"
    remote: IpAddress


class Paths:
    """Ways by what the kernel and the name servers say now."""

    def __init__(self, backend: Backend, resolver: Resolver, *, fwmark: int, outside: bool) -> None:
        """``outside``: there is a network, and not only memory."""
        self._backend = backend
        self._resolver = resolver
        self._fwmark = fwmark
        self._outside = outside
        self._host_changed = asyncio.Event()
        self.changes = 0
        "how often it has"

    async def to(self, connection: Connection) -> Path | None:
        """The way to a connection's peer; None if it has no fixed address or there is no route."""
        remote = await self._resolver.first_of(connection.remote_addrs)
        if remote is None:
            return None
        local = specific(connection.local_addrs, remote.version) or source_address(remote, self._fwmark)
        ports = self._backend.ports
        if local is None or remote.version not in ports:
            return None
        if connection.remote_port == 500 and connection.local_port == 500:
            ike_port = self._backend.ike_ports.get(remote.version)
            if ike_port is not None:
                return Path(local, ike_port, remote, 500)
            return Path(local, ports[remote.version], remote, 4500)
        # swanctl.conf: with other ports than 500 everything goes, with a marker, over that one
        return Path(local, ports[remote.version], remote, connection.remote_port)

    def obstacle(self, remote_addrs: Sequence[str]) -> str:
        """Why ``to`` has found no way there, in words."""
        where = f"no way to {', '.join(remote_addrs) or 'a peer without remote_addrs'}"
        remote = next((found for text in remote_addrs for found in self._known(text)), None)
        if remote is not None:
            why = "there is no route" if remote.version in self._backend.ports else f"no IPv{remote.version} here"
            return f"{where}: {why}"
        troubles = {name: self._resolver.trouble(name) for name in names_of(remote_addrs)}
        whys = [f"{name}: {why}" if len(remote_addrs) > 1 else why for name, why in troubles.items() if why]
        return f"{where}: {'; '.join(whys)}" if whys else where

    def without_route(self, connection: Connection) -> Ends | None:
        """The ends of a connection, though nothing leads to its peer; None if no single one is told, or it has a name
        without an address.

        Traffic for it is to be kept in before there is a route as well: with the route it would leave in clear.
        """
        remote = next((found for text in connection.remote_addrs for found in self._known(text)), None)
        if remote is None or remote.version not in self._backend.ports:
            return None
        return Ends(specific(connection.local_addrs, remote.version), remote)

    def _known(self, text: str) -> Iterable[IpAddress]:
        """What one entry of ``remote_addrs`` stands for, as far as that is known without asking anybody."""
        if names_of((text,)):
            return self._resolver.known(text)
        address = _single(text)
        return () if address is None else (address,)

    async def ends(self, connection: Connection) -> Path | Ends | None:
        """The way to a connection's peer; as much of it as is known where there is none."""
        return await self.to(connection) or self.without_route(connection)

    def host_changed(self) -> None:
        """Addresses or routes of this host are others."""
        self.changes += 1
        self._host_changed.set()
        # whoever waits goes on, the next one waits for the next change
        self._host_changed = asyncio.Event()

    async def changed(self, seen: int, seconds: float) -> None:
        """Wait until a way may lead where none led before, for who has looked when there were ``seen`` changes.

        ``seconds`` at most, since names change unheard. Routes change in bursts, so it takes AGAIN_S at least.
        """
        least = min(AGAIN_S, seconds)
        await asyncio.sleep(least)
        if self.changes == seen:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._host_changed.wait(), seconds - least)

    async def appears(self, connection: Connection, seen: int, seconds: float) -> None:
        """Wait until there is a way to the peer, for who found none after so many changes; ``seconds`` at most."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while (left := end - loop.time()) > 0:
            await self.changed(seen, left)
            seen = self.changes
            if loop.time() < end and await self.to(connection) is not None:
                return

    def can_send(self, path: Path) -> bool:
        """Whether it begins at an address of this host, and a route leads from there."""
        return not self._outside or usable(path.local, path.remote, self._fwmark)

    def best_local(self, sa: IkeSa) -> IpAddress:
        """The address of ours that an IKE_SA should have: its own, unless that leads nowhere or the kernel prefers
        another. What the peer chose when it came to us stays as long as it can."""
        local, remote = sa.path.local, sa.path.remote
        wanted = specific(sa.connection.local_addrs, remote.version)
        if (not sa.initiator or wanted == local) and usable(local, remote, self._fwmark):
            return local
        for candidate in (wanted, source_address(remote, self._fwmark)):
            if candidate is None or candidate in sa.addresses or not allows(sa.connection.local_addrs, candidate):
                continue
            if usable(candidate, remote, self._fwmark):
                return candidate
        return local


def _single(text: str) -> IpAddress | None:
    """An entry of an address list that is one address."""
    address = literal_address(text)
    return None if address is None or address.is_unspecified else address
