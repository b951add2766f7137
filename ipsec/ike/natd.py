"""NAT detection (RFC 7296 section 2.23): hashes of addresses and ports that a NAT on the way makes wrong."""

from __future__ import annotations

from collections.abc import Collection
from hashlib import sha1
from ipaddress import IPv4Address, IPv6Address

from ipsec.ike.events import Path
from ipsec.wire.iana import NotifyType
from ipsec.wire.payloads import NotifyPayload

IpAddress = IPv4Address | IPv6Address

_SOURCE, _DESTINATION = int(NotifyType.NAT_DETECTION_SOURCE_IP), int(NotifyType.NAT_DETECTION_DESTINATION_IP)
_NOWHERE: dict[int, IpAddress] = {4: IPv4Address(0), 6: IPv6Address(0)}


def hash(spi_i: bytes, spi_r: bytes, address: IpAddress, port: int) -> bytes:
    """Content of both notifications: SHA-1 of the SPIs as the header of that message has them, address and port."""
    return sha1(spi_i + spi_r + address.packed + port.to_bytes(2, "big"), usedforsecurity=False).digest()


def payloads(spi_i: bytes, spi_r: bytes, path: Path, *, fake: bool = False) -> list[NotifyPayload]:
    """What goes into a message that leaves along ``path``: source, then destination.

    ``fake``: the source is told wrong, so that the peer believes us behind a NAT and encapsulates ESP in UDP.
    """
    source, port = (_NOWHERE[path.local.version], 0) if fake else (path.local, path.local_port)
    return [
        NotifyPayload(_SOURCE, hash(spi_i, spi_r, source, port)),
        NotifyPayload(_DESTINATION, hash(spi_i, spi_r, path.remote, path.remote_port)),
    ]


def compare(
    sources: Collection[bytes], destinations: Collection[bytes], spi_i: bytes, spi_r: bytes, path: Path
) -> tuple[bool, bool]:
    """(we are behind a NAT, the peer is behind a NAT), by the contents of what a message that came along ``path`` has.

    A peer with several addresses sends several sources, one of which must be right. What was not sent says nothing.
    """
    ours = bool(destinations) and hash(spi_i, spi_r, path.local, path.local_port) not in destinations
    peers = bool(sources) and hash(spi_i, spi_r, path.remote, path.remote_port) not in sources
    return ours, peers
