"""Virtual addresses: pools of them, and the Configuration payload (RFC 7296 sections 2.19 and 3.15)."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from itertools import islice
from typing import NamedTuple, TypeVar

from ipsec.errors import ParseError
from ipsec.ike.config import IpAddress, IpNetwork, PoolConfig
from ipsec.wire.iana import CfgAttribute, CfgType, name_of
from ipsec.wire.payloads import CpPayload

T = TypeVar("T")

ADDRESSES_MAX = 8
"virtual addresses for one IKE_SA; further requests are not heard"
VALUES_MAX = 64
"of one kind that are taken from a reply"
KEPT_MAX = 65536
"leases of a pool that are kept for identities which are offline"

_IP4_ADDRESS, _IP6_ADDRESS = int(CfgAttribute.INTERNAL_IP4_ADDRESS), int(CfgAttribute.INTERNAL_IP6_ADDRESS)
_HOST_PREFIX = 128
"prefix length that goes with an IPv6 address: it is the only one on that link"
_ONLY_IF_ASKED = frozenset((CfgAttribute.INTERNAL_DNS_DOMAIN, CfgAttribute.INTERNAL_DNSSEC_TA))
_DOMAIN = re.compile(r"(?=.{1,253}$)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*")


class Lease(NamedTuple):
    """An address of a pool and whose it is, or was last."""

    address: IpAddress
    identity: Hashable
    online: bool


class _Online:
    __slots__ = ("count", "identity", "peer")

    def __init__(self, identity: Hashable, peer: Hashable) -> None:
        self.identity = identity
        self.peer = peer
        self.count = 1


class Pool:
    """Virtual addresses to assign. Memory is that of leases that are or were in use, not of addresses that could be.

    An identity that comes back gets the address it had, as long as that was not needed for another one. Every
    operation is O(1), amortised.
    """

    __slots__ = (
        "_first",
        "_fresh",
        "_keep",
        "_offline",
        "_offline_of",
        "_online",
        "_size",
        "_used",
        "config",
        "rivals",
    )

    def __init__(self, config: PoolConfig, keep: int = KEPT_MAX) -> None:
        self.config = config
        self.rivals: tuple[Pool, ...] = ()
        "pools that have some of the same addresses: what one of them has given, this one does not give"
        self._first = config.first
        self._size = int(config.last) - int(config.first) + 1
        self._keep = keep
        self._fresh = 0
        "offsets from here on were never given out, but for those that somebody asked for"
        self._used: OrderedDict[int, None] = OrderedDict()
        "offsets below that nobody has or is remembered by"
        self._online: dict[int, _Online] = {}
        self._offline: OrderedDict[int, Hashable] = OrderedDict()
        "identity by offset, who left first comes first"
        self._offline_of: dict[Hashable, dict[int, None]] = {}
        "the same by identity"

    @property
    def name(self) -> str:
        """Name of its configuration."""
        return self.config.name

    @property
    def size(self) -> int:
        """Addresses in all."""
        return self._size

    @property
    def online(self) -> int:
        """Addresses in use."""
        return len(self._online)

    @property
    def offline(self) -> int:
        """Addresses that are remembered for an identity which does not use them now."""
        return len(self._offline)

    def leases(self) -> Iterator[Lease]:
        """All of them, those in use first."""
        for offset, lease in self._online.items():
            yield Lease(self._first + offset, lease.identity, True)
        for offset, identity in self._offline.items():
            yield Lease(self._first + offset, identity, False)

    def suits(self, identity: Hashable, requested: IpAddress, peer: Hashable = None) -> int:
        """How well this pool can answer a request: 0 for the other family, 3 if it has what was ``requested``."""
        if requested.version != self._first.version:
            return 0
        wanted = self._offset(requested)
        if wanted is not None and (self._is_free(wanted, identity, peer) or self._shared(wanted, identity, peer)):
            return 3
        return 2 if identity in self._offline_of else 1

    def acquire(
        self, identity: Hashable, requested: IpAddress | None = None, peer: Hashable = None, *, reassign: bool = True
    ) -> IpAddress | None:
        """An address for ``identity``, to be given back by ``release``; None if the pool is exhausted or has the other
        family of ``requested``.

        ``requested`` is what the peer would like to have, unspecified for anything. It gets that if it is free, else
        the one it had, else one that nobody had, else, with ``reassign``, one whose owner is offline longest. Each
        IKE_SA of an identity has an address of its own, except that one which asks for an address of another one of
        the same ``peer`` (its outer address and port) shares that: re-authentication may make the new IKE_SA first.
        """
        wanted = None
        if requested is not None:
            if requested.version != self._first.version:
                return None
            wanted = self._offset(requested)
        shared = self._shared(wanted, identity, peer)
        if shared is not None:
            shared.count += 1
            return requested
        offset = self._pick(identity, wanted, peer, reassign)
        if offset is None:
            return None
        self._take(offset, identity, peer)
        return self._first + offset

    def adopt(self, identity: Hashable, address: IpAddress, peer: Hashable = None) -> bool:
        """Know an address that another pool gave and this one takes back, once for each IKE_SA that has it; False if it
        is none of ours, or somebody else's here."""
        offset = self._offset(address)
        if offset is None:
            return False
        lease = self._online.get(offset)
        if lease is None:
            self._take(offset, identity, peer)
        elif lease.identity == identity:
            lease.count += 1
        else:
            return False
        return True

    def inherit(self, other: Pool) -> None:
        """Remember those who are offline in another pool, as far as it had addresses of ours that nobody has."""
        shift = int(other._first) - int(self._first)
        if self._first.version != other._first.version or not -other._size < shift < self._size:
            return
        for there, identity in other._offline.items():
            offset = there + shift
            if 0 <= offset < self._size and offset not in self._online and offset not in self._offline:
                self._remember(offset, identity)

    def release(self, identity: Hashable, address: IpAddress) -> bool:
        """Take back what ``acquire`` gave; False if ``identity`` does not have it."""
        offset = self._offset(address)
        lease = self._online.get(offset) if offset is not None else None
        if offset is None or lease is None or lease.identity != identity:
            return False
        lease.count -= 1
        if lease.count:
            return True
        del self._online[offset]
        self._remember(offset, identity)
        return True

    def move(self, identity: Hashable, address: IpAddress, peer: Hashable) -> None:
        """Who has an address has gone elsewhere, and may share it with an IKE_SA that he makes from there."""
        offset = self._offset(address)
        lease = self._online.get(offset) if offset is not None else None
        if lease is not None and lease.identity == identity:
            lease.peer = peer

    def _offset(self, address: IpAddress) -> int | None:
        offset = int(address) - int(self._first)
        return offset if address.version == self._first.version and 0 <= offset < self._size else None

    def _shared(self, offset: int | None, identity: Hashable, peer: Hashable) -> _Online | None:
        """The lease of another IKE_SA of the same identity and peer."""
        lease = self._online.get(offset) if offset is not None and peer is not None else None
        return lease if lease is not None and (lease.identity, lease.peer) == (identity, peer) else None

    def _is_free(self, offset: int, identity: Hashable, peer: Hashable) -> bool:
        """Nobody uses it, or only this one from another pool, and it is not kept for another one."""
        if offset in self._online or self._is_given(offset, identity, peer):
            return False
        return self._offline.get(offset, identity) == identity

    def _pick(self, identity: Hashable, wanted: int | None, peer: Hashable, reassign: bool) -> int | None:
        """The best offset that is not in use."""
        if wanted is not None and self._is_free(wanted, identity, peer):
            return wanted
        for offsets in (reversed(self._offline_of.get(identity, {})), self._used):
            found = next((offset for offset in offsets if not self._is_given(offset)), None)
            if found is not None:
                return found
        while self._fresh < self._size:
            offset = self._fresh
            self._fresh += 1
            if offset in self._online or offset in self._offline:
                continue
            if not self._is_given(offset):
                return offset
            self._used[offset] = None
        return next((offset for offset in self._offline if not self._is_given(offset)), None) if reassign else None

    def _is_given(self, offset: int, identity: Hashable = None, peer: Hashable = None) -> bool:
        """Somebody has it from another pool, who is not this one."""
        for rival in self.rivals:
            there = rival._offset(self._first + offset)
            if there in rival._online and not rival._shared(there, identity, peer):
                return True
        return False

    def _take(self, offset: int, identity: Hashable, peer: Hashable) -> None:
        self._used.pop(offset, None)
        self._forget(offset)
        self._online[offset] = _Online(identity, peer)

    def _remember(self, offset: int, identity: Hashable) -> None:
        """Who had this address gets it again, unless others have left since and are too many."""
        self._used.pop(offset, None)
        self._offline[offset] = identity
        self._offline_of.setdefault(identity, {})[offset] = None
        if len(self._offline) > self._keep:
            oldest = next(iter(self._offline))
            self._forget(oldest)
            if oldest < self._fresh:
                self._used[oldest] = None

    def _forget(self, offset: int) -> None:
        """Who had this address need not get it again."""
        if offset not in self._offline:
            return
        identity = self._offline.pop(offset)
        had = self._offline_of[identity]
        del had[offset]
        if not had:
            del self._offline_of[identity]


def find_rivals(pools: Iterable[Pool]) -> None:
    """Let pools that have addresses in common know of each other."""
    by_start = sorted(pools, key=lambda pool: (pool.config.first.version, int(pool.config.first)))
    found: dict[str, list[Pool]] = {pool.name: [] for pool in by_start}
    for position, pool in enumerate(by_start):
        for other in islice(by_start, position + 1, None):
            if other.config.first.version != pool.config.first.version or other.config.first > pool.config.last:  # type: ignore[operator]
                break
            found[pool.name].append(other)
            found[other.name].append(pool)
    for pool in by_start:
        pool.rivals = tuple(found[pool.name])


def assign(
    pools: Sequence[Pool], identity: Hashable, wanted: Iterable[IpAddress], peer: Hashable = None
) -> list[tuple[Pool, IpAddress]]:
    """An address for each one that is wanted and that one of the pools has, with the pool to release it to.

    A pool that has the very address or remembers the identity is asked first, otherwise the first one is. Nobody who
    is offline loses an address while another pool has one that is not remembered for anybody.
    """
    found = []
    for address in wanted:
        able = [(-pool.suits(identity, address, peer), position) for position, pool in enumerate(pools)]
        order = [pools[position] for suits, position in sorted(able) if suits]
        for pool, reassign in [*((pool, False) for pool in order), *((pool, True) for pool in order)]:
            got = pool.acquire(identity, address, peer, reassign=reassign)
            if got is not None:
                found.append((pool, got))
                break
    return found


# -- the payload


class Request(NamedTuple):
    """What a peer asks for."""

    addresses: list[IpAddress]
    "those it would like to have; 0.0.0.0 and :: are any of that family"
    attributes: frozenset[int]
    "CfgAttribute numbers, or others, that it would like to know about"


class Assigned(NamedTuple):
    """What a responder gave us. Nothing of it is authorised yet: that is for the caller's configuration to do."""

    addresses: tuple[IpAddress, ...] = ()
    dns: tuple[IpAddress, ...] = ()
    nbns: tuple[IpAddress, ...] = ()
    subnets: tuple[IpNetwork, ...] = ()
    "networks behind the responder"
    domains: tuple[str, ...] = ()
    "names below these are for the responder's DNS servers (RFC 8598)"


def again(vips: Iterable[IpAddress], had: Iterable[IpAddress]) -> list[IpAddress]:
    """What to ask for in place of ``vips`` by who ``had`` these addresses: the same ones, as far as they are wanted."""
    left = list(had)
    found = []
    for vip in vips:
        address = next((address for address in left if address.version == vip.version), None)
        if address is not None:
            left.remove(address)
        found.append(address or vip)
    return found


def build_request(vips: Sequence[IpAddress]) -> CpPayload:
    """CFG_REQUEST for virtual addresses, unspecified ones for any, and for DNS servers and subnets with them."""
    attributes: list[tuple[int, bytes]] = []
    for vip in vips:
        if vip.version == 4:
            attributes.append((_IP4_ADDRESS, b"" if vip.is_unspecified else vip.packed))
        else:
            attributes.append((_IP6_ADDRESS, b"" if vip.is_unspecified else vip.packed + bytes((_HOST_PREFIX,))))
    families = {vip.version for vip in vips}
    if 4 in families:
        attributes += ((CfgAttribute.INTERNAL_IP4_DNS, b""), (CfgAttribute.INTERNAL_IP4_SUBNET, b""))
    if 6 in families:
        attributes += ((CfgAttribute.INTERNAL_IP6_DNS, b""), (CfgAttribute.INTERNAL_IP6_SUBNET, b""))
    return CpPayload(CfgType.REQUEST, attributes)


def parse_request(payload: CpPayload) -> Request:
    """Read a CFG_REQUEST. ParseError for addresses of a wrong length."""
    addresses: list[IpAddress] = []
    others = set()
    for attribute, value in payload.attributes:
        if attribute not in (_IP4_ADDRESS, _IP6_ADDRESS):
            others.add(attribute)
        elif len(addresses) < ADDRESSES_MAX:
            nothing = IPv4Address(0) if attribute == _IP4_ADDRESS else IPv6Address(0)
            addresses.append(_address(attribute, value) if value else nothing)
    return Request(addresses, frozenset(others))


def build_reply(
    request: CpPayload, leases: Iterable[tuple[Pool, IpAddress]], more: Iterable[tuple[int, bytes]] = ()
) -> CpPayload:
    """CFG_REPLY with the assigned addresses and whatever else their pools have, and ``more``, each once."""
    asked = {attribute for attribute, _ in request.attributes}
    found: list[tuple[int, bytes]] = []
    others: list[tuple[int, bytes]] = []
    for pool, address in leases:
        if address.version == 4:
            found.append((_IP4_ADDRESS, address.packed))
        else:
            found.append((_IP6_ADDRESS, address.packed + bytes((_HOST_PREFIX,))))
        # clients do not ask for all that they can use, and skip what they cannot, but RFC 8598 section 3.2 forbids some
        others += [pair for pair in pool.config.attributes if pair[0] not in _ONLY_IF_ASKED or pair[0] in asked]
    return CpPayload(CfgType.REPLY, list(dict.fromkeys([*found, *others, *more])))


def parse_reply(payload: CpPayload) -> Assigned:
    """Read a CFG_REPLY. ParseError for wrong lengths, and for addresses that no host can have.

    Attributes that are not known, and names that are none, are left out; so are values beyond what anybody needs.
    """
    addresses: list[IpAddress] = []
    dns: list[IpAddress] = []
    nbns: list[IpAddress] = []
    subnets: list[IpNetwork] = []
    domains: list[str] = []
    for attribute, value in payload.attributes:
        if not value:
            continue  # asked for, and not there
        if attribute in (_IP4_ADDRESS, _IP6_ADDRESS):
            address = _address(attribute, value)
            if address.is_unspecified or address.is_multicast or address.is_loopback or address == _BROADCAST:
                raise ParseError(f"we are assigned {address}")
            _append(addresses, address, ADDRESSES_MAX)
        elif attribute in (CfgAttribute.INTERNAL_IP4_DNS, CfgAttribute.INTERNAL_IP6_DNS):
            _append(dns, _address(attribute, value))
        elif attribute == CfgAttribute.INTERNAL_IP4_NBNS:
            _append(nbns, _address(attribute, value))
        elif attribute in (CfgAttribute.INTERNAL_IP4_SUBNET, CfgAttribute.INTERNAL_IP6_SUBNET):
            _append(subnets, _subnet(attribute, value))
        elif attribute == CfgAttribute.INTERNAL_DNS_DOMAIN:
            # it ends up in the resolver's configuration: nothing but a name may
            name = value.decode("latin-1").removesuffix(".")
            if _DOMAIN.fullmatch(name):
                _append(domains, name)
    return Assigned(tuple(addresses), tuple(dns), tuple(nbns), tuple(subnets), tuple(domains))


_BROADCAST = IPv4Address("255.255.255.255")

_LENGTHS: dict[int, tuple[int, ...]] = {
    CfgAttribute.INTERNAL_IP4_ADDRESS: (4,),
    CfgAttribute.INTERNAL_IP4_DNS: (4,),
    CfgAttribute.INTERNAL_IP4_NBNS: (4,),
    # the prefix length is forgotten by some
    CfgAttribute.INTERNAL_IP6_ADDRESS: (17, 16),
    CfgAttribute.INTERNAL_IP6_DNS: (16,),
    CfgAttribute.INTERNAL_IP4_SUBNET: (8,),
    CfgAttribute.INTERNAL_IP6_SUBNET: (17,),
}


def _append(values: list[T], value: T, limit: int = VALUES_MAX) -> None:
    if len(values) < limit and value not in values:
        values.append(value)


def _check_length(attribute: int, value: bytes) -> None:
    if len(value) not in _LENGTHS[attribute]:
        raise ParseError(f"{name_of(CfgAttribute, attribute)} of {len(value)} octets")


def _address(attribute: int, value: bytes) -> IpAddress:
    _check_length(attribute, value)
    return IPv4Address(value) if len(value) == 4 else IPv6Address(value[:16])


def _subnet(attribute: int, value: bytes) -> IpNetwork:
    _check_length(attribute, value)
    if len(value) == 17:
        if value[16] > 128:
            raise ParseError(f"INTERNAL_IP6_SUBNET with a prefix of {value[16]} bits")
        return IPv6Network((value[:16], value[16]), strict=False)
    host = ~int.from_bytes(value[4:], "big") & 0xFFFFFFFF
    if host & (host + 1):
        raise ParseError(f"INTERNAL_IP4_SUBNET with netmask {IPv4Address(value[4:])}")
    return IPv4Network((value[:4], 32 - host.bit_length()), strict=False)
