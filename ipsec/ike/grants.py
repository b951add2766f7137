"""What an EAP server elsewhere grants to a peer besides letting it in (RFC 2865, RFC 6911): ``pools = radius``.

An address that is granted is that of whom it was granted to last. The server may know that the IKE_SA which has it is
no more, and we may not: it is closed, also if it is another user's. Only where the same user comes from the same place
both stay, for that is re-authentication, and the peer closes the old one.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

from ipsec.ike import config_payload
from ipsec.ike.config import RADIUS, PoolConfig
from ipsec.ike.config_payload import Pool
from ipsec.wire.iana import CfgAttribute

if TYPE_CHECKING:
    from ipsec.ike.sa import IkeSa

log = logging.getLogger(__name__)

IpAddress = IPv4Address | IPv6Address
Leases = list[tuple[Pool, IpAddress]]


def pools() -> tuple[Pool, Pool]:
    """Of IPv4 and of IPv6, for all addresses that anybody may be granted; nobody is remembered who has left."""
    ends = (
        (IPv4Address(0), IPv4Address((1 << 32) - 1)),
        (IPv6Address(0), IPv6Address((1 << 128) - 1)),
    )
    return Pool(PoolConfig(RADIUS, *ends[0]), keep=0), Pool(PoolConfig(RADIUS, *ends[1]), keep=0)


def assign(sa: IkeSa, wanted: Iterable[IpAddress], now: float) -> Leases:
    """An address for each one that is wanted, of the connection's pools and of what the peer is granted.

    What stands before ``radius`` among the pools goes before what is granted, what stands behind it after that.
    """
    names = list(sa.connection.pools)
    if RADIUS not in names:
        return _of_pools(sa, names, wanted)
    cut = names.index(RADIUS)
    found: Leases = []
    for address in wanted:
        found += (
            _of_pools(sa, names[:cut], [address])
            or _granted(sa, address, found, now)
            or _of_pools(sa, names[cut + 1 :], [address])
        )
    return found


def limit(sa: IkeSa, now: float) -> None:
    """The peer is let in, for no longer than the server says (Session-Timeout); rekeying does not put that off."""
    # as NASes have it, no seconds are no limit
    if sa.granted is not None and sa.granted.session_timeout:
        sa.session_end = now + sa.granted.session_timeout


def attributes(sa: IkeSa) -> list[tuple[int, bytes]]:
    """Configuration attributes that go with what the peer is granted: DNS servers (RFC 7296 section 3.15.1)."""
    if sa.granted is None or RADIUS not in sa.connection.pools:
        return []
    kinds = {4: CfgAttribute.INTERNAL_IP4_DNS, 6: CfgAttribute.INTERNAL_IP6_DNS}
    return [(kinds[address.version], address.packed) for address in sa.granted.dns]


def _of_pools(sa: IkeSa, names: Iterable[str], wanted: Iterable[IpAddress]) -> Leases:
    found = [sa.core.pools[name] for name in names if name in sa.core.pools]
    assert sa.whose is not None
    return config_payload.assign(found, sa.whose, wanted, peer=_place(sa))


def _granted(sa: IkeSa, wanted: IpAddress, taken: Leases, now: float) -> Leases:
    """One of the addresses that the peer is granted and has not got yet, best the one that it wants."""
    granted = sa.granted.framed if sa.granted is not None else ()
    had = [address for _, address in taken]
    fitting = [one for one in granted if one.version == wanted.version and one not in had]
    pool = sa.core.grants[wanted.version == 6]
    for address in sorted(fitting, key=lambda one: one != wanted):
        if not _has(pool, sa, address):
            _take_back(sa, pool, address, now)
        if not _has(pool, sa, address):
            log.warning("%s: %s is granted to %s, and a pool has given it to somebody else", sa, address, sa.whose)
            continue
        pool.acquire(sa.whose, address, _place(sa))
        return [(pool, address)]
    return []


def _place(sa: IkeSa) -> tuple[IpAddress, int]:
    return sa.path.remote, sa.path.remote_port


def _has(pool: Pool, sa: IkeSa, address: IpAddress) -> bool:
    """Whether it can be given to this one, and ``acquire`` will."""
    return pool.suits(sa.whose, address, _place(sa)) == 3


def _take_back(sa: IkeSa, pool: Pool, address: IpAddress, now: float) -> None:
    """Close whoever has an address that is granted to another IKE_SA now."""
    for other in list(sa.core.sas.values()):
        if (pool, address) not in other.leases:
            continue
        pool.release(other.whose, address)
        other.leases.remove((pool, address))
        if other.established:
            log.warning("%s: %s has %s, which is granted to %s now", sa, other, address, sa.whose)
            # it may be dead, and traffic is not to wait until that shows
            other.doubted = True
            sa.core.terminate_ike(other, now, f"its address {address} was granted anew")
