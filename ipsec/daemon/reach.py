"""Where a peer is, and which address of ours leads there: names and routes, off the event loop where that may block."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Iterable, Iterator
from contextlib import closing
from functools import lru_cache, partial
from ipaddress import ip_address, ip_network

from ipsec.daemon.threads import Threads
from ipsec.esp.sa import IpAddress
from ipsec.net import udp
from ipsec.net.netlink import Netlink
from ipsec.net.rtnetlink import reachable_addresses

log = logging.getLogger(__name__)

#: names that are asked for at once: each may take as long as the name servers say nothing
LOOKUPS_MAX = 32
#: names of which it is known why nothing was found
TROUBLES_MAX = 4096

_ANYTHING = ("%any", "%any4", "%any6", "0.0.0.0", "::")


class Resolver:
    """Addresses of names; what was found last stays known, for those who cannot wait."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[IpAddress, ...]] = {}
        self._trouble: dict[str, str] = {}
        "why the last look-up of a name found nothing"
        self._threads = Threads(LOOKUPS_MAX, "ipsec-names")
        self._asked: dict[str, asyncio.Task[tuple[IpAddress, ...]]] = {}
        "look-ups under way, one for all that wait for a name"

    def close(self) -> None:
        """Wait for nobody."""
        for task in list(self._asked.values()):
            task.cancel()

    def known(self, name: str) -> tuple[IpAddress, ...]:
        """What was found last, without asking anybody."""
        return self._known.get(name, ())

    def trouble(self, name: str) -> str:
        """Why the last look-up found nothing, in the resolver's words; empty if it found something."""
        return self._trouble.get(name, "")

    async def resolve(self, name: str) -> tuple[IpAddress, ...]:
        """Ask. An empty answer if there is none; what was known before stays then."""
        address = literal_address(name)
        if address is not None:
            return (address,)
        task = self._asked.get(name)
        if task is None:
            task = self._asked[name] = asyncio.get_running_loop().create_task(self._ask(name))
            task.add_done_callback(lambda _: self._asked.pop(name))
        return await asyncio.shield(task)

    async def _ask(self, name: str) -> tuple[IpAddress, ...]:
        try:
            found = await self._threads.run(partial(socket.getaddrinfo, name, None, type=socket.SOCK_DGRAM))
        except (OSError, UnicodeError, RuntimeError) as error:
            self._note(name, error)
            return self._known.get(name, ())
        self._trouble.pop(name, None)
        addresses = tuple(dict.fromkeys(ip_address(item[4][0]) for item in found))
        self._known[name] = addresses
        return addresses

    def _note(self, name: str, error: Exception) -> None:
        self._trouble.pop(name, None)
        if len(self._trouble) == TROUBLES_MAX:
            del self._trouble[next(iter(self._trouble))]
        if isinstance(error, RuntimeError):  # no thread for it
            self._trouble[name] = str(error)
        else:
            self._trouble[name] = (error.strerror if isinstance(error, OSError) else "") or "it cannot be a name"

    async def first_of(self, texts: Iterable[str]) -> IpAddress | None:
        """The address of the first entry that is a single address or a name with one; None if there is none."""
        for text in texts:
            if text in _ANYTHING or "/" in text or _is_range(text):
                continue
            found = await self.resolve(text)
            if found:
                return found[0]
        return None


class OwnAddresses:
    """Addresses of this host that a peer may be told of (RFC 4555); what was read last stays known."""

    def __init__(self, resolver: Resolver, *, device: str, fwmark: int) -> None:
        """``device`` is that of the tunnels, whose addresses lead into them."""
        self._resolver = resolver
        self._device = device
        self._fwmark = fwmark
        self._known: tuple[IpAddress, ...] = ()

    def read(self) -> None:
        """Ask the kernel, which answers at once."""
        try:
            with closing(Netlink()) as netlink:
                self._known = tuple(reachable_addresses(netlink, without=self._device))
        except OSError as error:
            log.warning("our own addresses cannot be read: %s", error.strerror)

    def of(self, local_addrs: Iterable[str]) -> tuple[IpAddress, ...]:
        """Those that an address list of a connection has room for."""
        texts = tuple(local_addrs)
        named = [address for name in names_of(texts) for address in self._resolver.known(name)]
        return tuple(address for address in self._known if address in named or allows(texts, address))

    def towards(self, remote: IpAddress, local_addrs: Iterable[str]) -> Iterator[IpAddress]:
        """Those of them from which a way leads to ``remote``, the kernel's choice first."""
        own = [address for address in self.of(local_addrs) if address.version == remote.version]
        favourite = source_address(remote, self._fwmark)
        if favourite is not None and (favourite in own or favourite.is_loopback or favourite.is_link_local):
            yield favourite
        for address in own:
            if address != favourite and usable(address, remote, self._fwmark):
                yield address


@lru_cache(maxsize=4096)
def literal_address(text: str) -> IpAddress | None:
    """An address, None if the text is something else. Each handshake asks about the same texts."""
    try:
        address: IpAddress = ip_address(text)
    except ValueError:
        return None
    return address


def _is_range(text: str) -> bool:
    low, dash, _ = text.partition("-")
    return bool(dash) and literal_address(low) is not None


def names_of(texts: Iterable[str]) -> list[str]:
    """Those entries of an address list that are names."""
    return [
        text
        for text in texts
        if not (text in _ANYTHING or "/" in text or _is_range(text) or literal_address(text) is not None)
    ]


def source_address(remote: IpAddress, fwmark: int) -> IpAddress | None:
    """The address that the kernel would send from to ``remote``, outside of the tunnel; None if there is no route."""
    family = socket.AF_INET if remote.version == 4 else socket.AF_INET6
    try:
        # also this may fail: without IPv6, or when too many files are open
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            if fwmark:
                udp.set_mark(sock, fwmark)
            # connecting a UDP socket sends nothing
            sock.connect((str(remote), 9))
            found: IpAddress = ip_address(sock.getsockname()[0].partition("%")[0])
    except OSError:
        return None
    return found


def usable(local: IpAddress, remote: IpAddress, fwmark: int) -> bool:
    """Whether ``local`` is an address of this host, and a route leads from it to ``remote``."""
    family = socket.AF_INET if remote.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            if fwmark:
                udp.set_mark(sock, fwmark)
            sock.bind((str(local), 0))
            sock.connect((str(remote), 9))
    except OSError:
        return False
    return True


def allows(texts: Iterable[str], address: IpAddress) -> bool:
    """Whether an address list has room for an address: one that is chosen anew, not one that a name stands for."""
    for text in texts:
        low, _, high = text.partition("-")
        try:
            if text in _ANYTHING or (("/" in text) and address in ip_network(text, strict=False)):
                return True
            if "/" not in text:
                first, last = literal_address(low), literal_address(high or low)
                if first is None or last is None or first.version != address.version:
                    continue
                if int(first) <= int(address) <= int(last):
                    return True
        except ValueError:
            continue
    return False


def specific(texts: Iterable[str], version: int) -> IpAddress | None:
    """The first single address of that family in an address list."""
    for text in texts:
        address = literal_address(text)
        if address is not None and address.version == version and not address.is_unspecified:
            return address
    return None
