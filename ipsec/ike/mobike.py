"""MOBIKE (RFC 4555): an IKE_SA and its CHILD_SAs move to other addresses; nothing is rekeyed.

Both ends tell their other addresses. The initiator decides which pair of them is used. A request that is not answered
goes all ways there are, and the way on which the answer comes is one that works. The responder follows an authenticated
UPDATE_SA_ADDRESSES, and then makes sure with a COOKIE2 that the new address answers (section 3.7); if its own address
goes, it can only tell which ones it has, from one of those, and stay where that was answered.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Sequence
from hmac import compare_digest
from ipaddress import IPv4Address, IPv6Address

from ipsec.errors import ParseError
from ipsec.ike import natd
from ipsec.ike.delete import Liveness
from ipsec.ike.errors import PeerError
from ipsec.ike.events import IpAddress, Path
from ipsec.ike.lifetimes import arm_keepalive, arm_tell
from ipsec.ike.sa import ALONE, IkeSa, Request
from ipsec.ike.state import IkeState
from ipsec.wire.iana import NotifyType
from ipsec.wire.payloads import NotifyPayload, Payload

log = logging.getLogger(__name__)

#: addresses that are told to a peer, and that are kept of one
ADDRESSES_MAX = 16
#: pairs of addresses on which one request goes
WAYS_MAX = 8
COOKIE2_LEN = 16
#: how often a list of addresses goes the way in use alone: from another one it says that the sender has left that
ANNOUNCE_PATIENCE = 3

_ADDITIONAL: dict[int, tuple[int, type[IPv4Address] | type[IPv6Address]]] = {
    NotifyType.ADDITIONAL_IP4_ADDRESS: (4, IPv4Address),
    NotifyType.ADDITIONAL_IP6_ADDRESS: (16, IPv6Address),
}


# -- which addresses there are (sections 3.4 and 3.6)


def mobike_payloads(sa: IkeSa, request: Sequence[Payload] | None = None) -> list[Payload]:
    """MOBIKE_SUPPORTED and our other addresses, for IKE_AUTH; the responder's come only after the initiator's."""
    if not sa.connection.mobike or (request is not None and not sa.mobike):
        return []
    return [NotifyPayload(NotifyType.MOBIKE_SUPPORTED), *_tell(sa)]


def _tell(sa: IkeSa) -> list[Payload]:
    """Our other addresses, and that the peer is going to know them."""
    for one in sa.line:
        one.told = _others(sa)
    return [
        NotifyPayload(
            NotifyType.ADDITIONAL_IP4_ADDRESS if address.version == 4 else NotifyType.ADDITIONAL_IP6_ADDRESS,
            address.packed,
        )
        for address in sa.told
    ]


def _tell_all(sa: IkeSa) -> list[Payload]:
    """The same where silence would leave the peer with what it knew before."""
    return _tell(sa) or [NotifyPayload(NotifyType.NO_ADDITIONAL_ADDRESSES)]


def _others(sa: IkeSa) -> tuple[IpAddress, ...]:
    """Our addresses besides the one in use."""
    own = sa.core.host.local_addresses(sa.connection)
    found = [a for a in own if a != sa.path.local and a not in sa.addresses and not _protected(sa, a, ours=True)]
    return tuple(found[:ADDRESSES_MAX])


def _protected(sa: IkeSa, address: IpAddress, *, ours: bool) -> bool:
    """Whether an address is inside a tunnel of this connection, which cannot be the way to its end."""
    in_use = sa.path.local if ours else sa.path.remote
    for child in sa.connection.children:
        for template in child.local_ts if ours else child.remote_ts:
            if template.network is None or child.shunt or template.network[0].version != address.version:
                continue
            first, last = map(int, template.network)
            everything = last - first == (1 << address.max_prefixlen) - 1
            around = in_use.version == address.version and first <= int(in_use) <= last
            if first <= int(address) <= last and not (everything or around):
                return True
    return False


def take_support(sa: IkeSa, payloads: Sequence[Payload]) -> None:
    """What the peer says about MOBIKE in IKE_AUTH."""
    if sa.connection.mobike and _notifies(payloads, NotifyType.MOBIKE_SUPPORTED):
        sa.mobike = True
        _take_addresses(sa, payloads, sa.path)


def _take_addresses(sa: IkeSa, payloads: Sequence[Payload], path: Path) -> bool:
    """Keep the peer's other addresses; whether it has told them. A list replaces the one before."""
    # section 3.4: it leaves out the one that the message comes from, which need not be the one that we use
    found: list[IpAddress] = [path.remote] if path.remote != sa.path.remote else []
    told = bool(_notifies(payloads, NotifyType.NO_ADDITIONAL_ADDRESSES))
    for payload in payloads:
        if isinstance(payload, NotifyPayload) and payload.notify in _ADDITIONAL:
            size, kind = _ADDITIONAL[payload.notify]
            if len(payload.data) == size:
                told = True
                found.append(kind(payload.data))
    if told:
        own = _own(sa, path)
        known = tuple(a for a in dict.fromkeys(found) if _may_be_peers(a, own))[:ADDRESSES_MAX]
        for one in sa.line:
            one.peer_addresses = known
    return told


def _own(sa: IkeSa, path: Path) -> tuple[IpAddress, ...]:
    """Our addresses, where a message has come along ``path``."""
    return path.local, *sa.core.host.local_addresses(sa.connection)


def _may_be_peers(address: IpAddress, own: Sequence[IpAddress]) -> bool:
    """Whether we would send to it because a peer says so; what is sent to our own addresses comes back to us."""
    bad = address.is_multicast or address.is_unspecified or address.is_loopback or address.is_link_local
    return not bad and address not in own and address != IPv4Address("255.255.255.255")


def handle_addresses(sa: IkeSa, payloads: Sequence[Payload], path: Path, now: float) -> None:
    """An INFORMATIONAL request of the peer has come along ``path``: are its addresses others, or is ours a bad way?"""
    if not sa.mobike or not sa.established:
        return
    told = _take_addresses(sa, payloads, path)
    if not sa.original_initiator or path == sa.path:
        return
    if told and path.remote in sa.peer_addresses and sa.path.remote not in sa.peer_addresses:
        known = sa.peer_addresses
        log.info("%s: the peer has left %s, and is at %s", sa, sa.path.remote, path.remote)
        move(sa, path, now)
        sa.peer_addresses = known
    elif sa.pending is None and not sa.queue:
        # section 3.5 leaves it to us: the peer may have a reason to go another way
        sa.ask(Liveness(detection(sa, sa.path)), now)


class Announce(Request):
    """Tell the peer our other addresses (section 3.6)."""

    __slots__ = ("needed", "patience")

    def __init__(self, *, stranded: bool = False, needed: bool = False) -> None:
        """``stranded``: from the address in use nothing leaves any more; ``needed``: also if it was told the same."""
        self.patience = 0 if stranded else ANNOUNCE_PATIENCE
        self.needed = needed or stranded

    def build(self, sa: IkeSa, now: float) -> list[Payload] | None:
        """N(ADDITIONAL_IP*_ADDRESS), or N(NO_ADDITIONAL_ADDRESSES)."""
        if not sa.authenticated or (not self.needed and sa.told == _others(sa)):
            return None
        return _tell_all(sa)

    def in_successor(self) -> Announce:
        """The peer heeds none in an IKE_SA that it has replaced."""
        return Announce(stranded=not self.patience, needed=True)

    def answered(self, sa: IkeSa, payloads: list[Payload], now: float) -> None:
        """The peer knows."""


# -- which way to go (section 3.5)


def ways(sa: IkeSa) -> list[Path]:
    """Pairs of addresses on which the peer may be reached, that in use first if it is one."""
    found: list[Path] = []
    path = sa.path
    others = [a for a in sa.peer_addresses if a != path.remote and not _protected(sa, a, ours=False)]
    others.sort(key=lambda address: address.version != path.remote.version)
    for remote in (path.remote, *others):
        for local in sa.core.host.sources(sa.connection, remote):
            if local not in sa.addresses and (local == path.local or not _protected(sa, local, ours=True)):
                found.append(path._replace(local=local, remote=remote))
    found.sort(key=lambda way: way != path)
    return found[:WAYS_MAX]


def review(sa: IkeSa, now: float) -> None:
    """Addresses or routes of this host are others: does the path in use still begin somewhere?"""
    if sa.path.local in sa.core.host.sources(sa.connection, sa.path.remote):
        arm_tell(sa.core, sa, now)
    elif not (found := [way for way in ways(sa) if way != sa.path]):
        # nobody can be asked anything; a host that is back has changed again
        return
    elif not sa.original_initiator:
        for one in (*_before(sa), sa):
            if one.pending is not None:
                # the list comes after it
                one.transmit_request(one.pending, now)
            _ask_instead(one, Announce(stranded=True), now)
    else:
        log.info("%s: no way leads along %s any more, trying %s", sa, sa.path, ", ".join(map(str, found)))
        move(sa, found[0], now, all_ways=True)


def tell(sa: IkeSa, now: float) -> None:
    """The peer is to know our addresses as they are by now, if it can be told."""
    if sa.core.usable(sa, sa.path):
        sa.ask(Announce(), now)


def move(sa: IkeSa, path: Path, now: float, *, all_ways: bool = False) -> None:
    """As initiator, go another way; ``all_ways``: that or any other, whichever works."""
    for one in (*_before(sa), sa):
        _move(one, path, now, all_ways=all_ways)


def _before(sa: IkeSa) -> list[IkeSa]:
    """The peer may have asked for this IKE_SA, and our answer may be lost: it knows the one before alone, asks again in
    that, and has to hear there where we are."""
    line = [one for uid in sa.lineage if (one := sa.core.sas.get(uid)) is not None]
    return [one for one in line if one.successor is sa and one.state is IkeState.REKEYED]


def _move(sa: IkeSa, path: Path, now: float, *, all_ways: bool) -> None:
    update = UpdateAddresses(path)
    if sa.pending is not None:
        # what is under way goes the new way as well
        sa.core.move_ike(sa, path, now)
        sa.transmit_request(sa.pending, now, all_ways=all_ways)
    if all_ways:
        update.patience = 0
    ask_update(sa, update, now)


def ask_update(sa: IkeSa, update: UpdateAddresses, now: float) -> None:
    """Before anything else, and instead of what was to be told about addresses before."""
    _ask_instead(sa, update, now)


def _ask_instead(sa: IkeSa, request: UpdateAddresses | Announce, now: float) -> None:
    """Before anything else, and instead of others of its kind that wait: a host may change again and again."""
    sa.queue = deque(other for other in sa.queue if not isinstance(other, type(request)))
    sa.ask(request, now, first=True)


def detection(sa: IkeSa, path: Path) -> list[Payload]:
    """NAT_DETECTION_*_IP for a message along ``path``."""
    return list(natd.payloads(sa.spi_i, sa.spi_r, path, fake=sa.core.fakes_nat(sa.connection)))


def behind_nat(sa: IkeSa, payloads: Sequence[Payload], path: Path) -> tuple[bool, bool] | None:
    """(we, the peer) are behind a NAT, by a message that came along ``path``; None if it says nothing about that."""
    sources = _notifies(payloads, NotifyType.NAT_DETECTION_SOURCE_IP)
    destinations = _notifies(payloads, NotifyType.NAT_DETECTION_DESTINATION_IP)
    if not sources or not destinations:
        return None
    return natd.compare(sources, destinations, sa.spi_i, sa.spi_r, path)


def take_mapping(sa: IkeSa, payloads: Sequence[Payload]) -> tuple[bool, bool] | None:
    """Keep by which hash the peer knows our end, by an answer along the path in use; what ``behind_nat`` says of it."""
    nats = behind_nat(sa, payloads, sa.path)
    if nats is not None:
        seen = _notifies(payloads, NotifyType.NAT_DETECTION_DESTINATION_IP)[0]
        sa.seen_as = seen if nats[0] else b""
    return nats


def _take_nats(sa: IkeSa, payloads: Sequence[Payload], path: Path, now: float) -> None:
    """Keep who is behind a NAT, by a message that came along ``path``."""
    nats = behind_nat(sa, payloads, path)
    if nats is not None:
        for one in sa.line:
            one.nat_local, one.nat_remote = nats
        arm_keepalive(sa.core, sa, now)


class UpdateAddresses(Request):
    """Tell the peer that our end is where this comes from now, and its own where this goes to (section 3.5)."""

    __slots__ = ("cookie", "path", "patience", "previous", "refused", "spread")

    def __init__(self, path: Path | None = None, refused: Iterable[Path] = ()) -> None:
        # where it goes has not been seen to work
        self.patience = 1
        self.path = path
        "None: the way is that in use, but the peer may not know it, or not through which NAT"
        self.refused = frozenset(refused)
        self.previous: Path | None = None
        self.cookie = b""
        self.spread = False

    def build(self, sa: IkeSa, now: float) -> list[Payload] | None:
        """N(UPDATE_SA_ADDRESSES), N(NAT_DETECTION_*_IP), N(COOKIE2), and what other addresses there are."""
        if not sa.authenticated:
            return None
        self.previous = sa.path
        if self.path is not None and self.path != sa.path:
            # the SAs follow when the peer has answered; the message itself must leave from the new address
            sa.core.move_ike(sa, self.path, now)
        self.cookie = sa.core.rng(COOKIE2_LEN)
        update = NotifyPayload(NotifyType.UPDATE_SA_ADDRESSES)
        cookie = NotifyPayload(NotifyType.COOKIE2, self.cookie)
        return [update, *detection(sa, sa.path), cookie, *_tell_all(sa)]

    def in_successor(self) -> UpdateAddresses:
        """The CHILD_SAs that are to move are the successor's, at the peer perhaps already when this comes."""
        update = UpdateAddresses(refused=self.refused)
        update.patience = self.patience
        return update

    def sent_all_ways(self) -> None:
        """The cookie and the hashes for NATs are good for one way only."""
        self.spread = True

    def answered(self, sa: IkeSa, payloads: list[Payload], now: float) -> None:
        """The peer has followed, or does not take the address."""
        if _notifies(payloads, NotifyType.UNACCEPTABLE_ADDRESSES):
            self._go_elsewhere(sa, now)
            return
        if self.spread:
            # the peer took the first that came, from wherever; this time it is told by the way that has answered
            ask_update(sa, UpdateAddresses(), now)
            return
        if not _notifies(payloads, NotifyType.COOKIE2):
            _begin_anew(sa, now)
            return
        _check_cookie(payloads, self.cookie)
        _take_nats(sa, payloads, sa.path, now)
        take_mapping(sa, payloads)
        sa.core.move_children(sa, now)
        log.info("%s: moved to %s", sa, sa.path)

    def _go_elsewhere(self, sa: IkeSa, now: float) -> None:
        log.warning("%s: the peer does not take %s", sa, sa.path)
        refused = {sa.path, *self.refused}
        left = [way for way in ways(sa) if way not in refused]
        previous = self.previous
        if previous is not None and previous not in refused and sa.core.usable(sa, previous):
            # where the peer is still
            sa.core.move_ike(sa, previous, now)
        elif left:
            ask_update(sa, UpdateAddresses(left[0], refused), now)


def _begin_anew(sa: IkeSa, now: float) -> None:
    """The peer has not heeded where we are, as libreswan 4.10 when the IKE_SA was rekeyed: it goes (section 3.7) when
    another one is up."""
    log.warning("%s: the peer does not follow by MOBIKE any more, beginning anew from %s", sa, sa.path.local)
    sa.mobike = False
    sa.core.move_children(sa, now)
    sa.core.reauthenticate(sa, now)


class Routability(Request):
    """Does the new address of the peer answer (section 3.7)?"""

    __slots__ = ("cookie",)
    # it is about this way and no other
    patience = ALONE

    def __init__(self) -> None:
        self.cookie = b""

    def build(self, sa: IkeSa, now: float) -> list[Payload] | None:
        """N(COOKIE2)."""
        if not sa.established:
            return None
        self.cookie = sa.core.rng(COOKIE2_LEN)
        return [NotifyPayload(NotifyType.COOKIE2, self.cookie)]

    def in_successor(self) -> Routability:
        """That nothing answers would end an IKE_SA that has no CHILD_SAs any more."""
        return Routability()

    def answered(self, sa: IkeSa, payloads: list[Payload], now: float) -> None:
        """Whoever answers from there has our request, and the keys."""
        _check_cookie(payloads, self.cookie)


def _check_cookie(payloads: Sequence[Payload], cookie: bytes) -> None:
    found = _notifies(payloads, NotifyType.COOKIE2)
    if len(found) != 1 or not compare_digest(found[0], cookie):
        raise ParseError("COOKIE2 did not come back as it was (RFC 4555 section 3.7)")


def _notifies(payloads: Sequence[Payload], number: int) -> list[bytes]:
    return [p.data for p in payloads if isinstance(p, NotifyPayload) and p.notify == number]


# -- responder


def handle_update(sa: IkeSa, payloads: list[Payload], path: Path, now: float) -> list[Payload]:
    """The initiator has moved: what we send goes to where its request came from (section 3.5).

    In an IKE_SA that has a successor that is so for the IKE_SA alone. The CHILD_SAs are the successor's, and what the
    initiator has said there may be newer.
    """
    if not sa.mobike or sa.original_initiator:
        return []
    if nat_is_unexpected(payloads, path):
        log.warning("%s: the peer wants no NAT, and comes as %s", sa, path)
        return [NotifyPayload(NotifyType.UNEXPECTED_NAT_DETECTED)]
    if path != sa.path and not _acceptable(sa, path):
        log.warning("%s: the peer wants to move to %s, which cannot be its own", sa, path)
        return [NotifyPayload(NotifyType.UNACCEPTABLE_ADDRESSES)]
    before = sa.nat_local, sa.nat_remote
    _take_nats(sa, payloads, path, now)
    if path != sa.path:
        sa.core.move_ike(sa, path, now)
        sa.core.move_children(sa, now)
        log.info("%s: the peer moved to %s", sa, path)
        if sa.pending is not None:
            sa.transmit(sa.pending.datagrams, path, now)
        sa.ask(Routability(), now)
        sa.ask(Announce(), now)
    elif before != (sa.nat_local, sa.nat_remote):
        sa.core.move_children(sa, now)
    return detection(sa, path)


def _acceptable(sa: IkeSa, path: Path) -> bool:
    """Whether a peer can be there. Who it is has been proved, so where it is may be anywhere else."""
    return path.remote_port != 0 and _may_be_peers(path.remote, _own(sa, path))


def nat_is_unexpected(payloads: Sequence[Payload], path: Path) -> bool:
    """Whether the sender forbids NATs, and there is one (section 3.9)."""
    ports = path.remote_port.to_bytes(2, "big") + path.local_port.to_bytes(2, "big")
    came = path.remote.packed + path.local.packed + ports
    return any(sent != came for sent in _notifies(payloads, NotifyType.NO_NATS_ALLOWED))


def refuse_nat(sa: IkeSa, payloads: Sequence[Payload]) -> None:
    """The same in IKE_AUTH, which then comes to nothing. PeerError."""
    if sa.connection.mobike and nat_is_unexpected(payloads, sa.path):
        why = "the peer wants no NAT, and there is one"
        raise PeerError(NotifyType.UNEXPECTED_NAT_DETECTED, why, fatal=True)
