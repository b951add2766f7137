"""The Security Policy Database of the reference engine, and selector matching (RFC 4301 sections 4.4.1, 7).

The rule for fragments (RFC 4301 section 7), the same for policies and for the selectors of an inbound SA:

1. A first fragment has its ports. They are remembered for 30 s under (source, destination, identification, protocol),
   the protocol only for IPv4; at most 256 datagrams each way, the oldest makes room. Outbound every first fragment is
   remembered; inbound only one that its SA's selectors let pass, so that a peer cannot fill the table with others.
   The SA is no part of the key: a datagram's fragments may come through two SAs while one replaces the other.
2. A later fragment takes protocol and ports of its first one while they are remembered. From then on it is like the
   first: it matches what that matched, and OPAQUE no longer matches it.
3. Otherwise its ports are hidden. A selector with ANY ports matches it, OPAQUE matches it, a port range matches it
   perhaps if its protocol has ports or types at all. The same holds for the protocol where an IPv6 extension header
   follows the fragment header: a selector with a protocol matches perhaps.
4. A pair of selectors matches if all its parts do, does not if one does not, else perhaps. A policy (an SA's list)
   matches if a pair does; only if none does, and one does perhaps, the policy matches perhaps.
5. Policies are asked in order. The first one that matches decides; if one before it matches perhaps, the packet is
   dropped as a fragment error, even if no policy after it matches: nothing is guessed.

A packet that is no fragment and whose protocol has no ports matches ANY and OPAQUE, and no port range.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

from ipsec.errors import PolicyError
from ipsec.esp.sa import IpAddress, Policy
from ipsec.wire.ip import EXTENSION_HEADERS, Fragment, IpPacket
from ipsec.wire.selector import PORT_PROTOCOLS, TYPE_PROTOCOLS, SelectorPair, TrafficSelector

FRAGMENT_LIFETIME_S = 30.0
FRAGMENT_TABLE_SIZE = 256


class Match(Enum):
    """Whether selectors match a packet."""

    NO = 0
    PERHAPS = 1
    "it depends on ports or a protocol that a fragment does not show"
    YES = 2


@dataclass(frozen=True)
class Flow:
    """What selectors are held against. ``hidden`` says that None means unknown, not that there is none."""

    source: IpAddress
    destination: IpAddress
    protocol: int | None
    ports: tuple[int, int] | None
    hidden: bool = False


class FragmentTable:
    """Protocol and ports of first fragments in one direction, for the later ones. Bounded in number and time."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[object, ...], tuple[float, int, tuple[int, int] | None]] = OrderedDict()

    def remember(self, packet: IpPacket, now: float) -> None:
        """Keep protocol and ports of ``packet`` if it is a first fragment."""
        if packet.fragment is not Fragment.FIRST:
            return
        self._known.pop(_datagram(packet), None)
        self._known[_datagram(packet)] = (now, packet.protocol, packet.ports)
        if len(self._known) > FRAGMENT_TABLE_SIZE:
            self._known.popitem(last=False)

    def flow(self, packet: IpPacket, now: float) -> Flow:
        """The flow of ``packet``, a later fragment's by its first one if that is known."""
        known = self._known.get(_datagram(packet)) if packet.fragment is Fragment.LATER else None
        if known is not None and now - known[0] <= FRAGMENT_LIFETIME_S:
            return Flow(packet.source, packet.destination, known[1], known[2])
        return shown_flow(packet)


def shown_flow(packet: IpPacket) -> Flow:
    """The flow of ``packet`` as far as it shows it itself."""
    later = packet.fragment is Fragment.LATER
    hides = later and packet.version == 6 and packet.protocol in EXTENSION_HEADERS
    protocol = None if hides else packet.protocol
    return Flow(packet.source, packet.destination, protocol, packet.ports, hidden=later)


def _datagram(packet: IpPacket) -> tuple[object, ...]:
    # RFC 8200 section 4.5: IPv6 tells datagrams apart without the protocol, which later fragments may not show
    kind = packet.protocol if packet.version == 4 else -1
    return packet.source, packet.destination, packet.fragment_id, kind


def _match_side(selector: TrafficSelector, address: IpAddress, port: int | None, flow: Flow) -> Match:
    if not selector.covers_address(address):
        return Match.NO
    result = Match.YES
    if selector.protocol and flow.protocol is None:
        result = Match.PERHAPS
    elif selector.protocol and selector.protocol != flow.protocol:
        return Match.NO
    if selector.covers_port(port):
        return result
    if flow.hidden and (flow.protocol is None or flow.protocol in PORT_PROTOCOLS or flow.protocol in TYPE_PROTOCOLS):
        return Match.PERHAPS
    return Match.NO


def match_selectors(pairs: Iterable[SelectorPair], flow: Flow, *, outbound: bool) -> Match:
    """Whether ``flow`` matches any of ``pairs``; its source is local if ``outbound``, else its destination."""
    source_port, destination_port = flow.ports or (None, None)
    source = (flow.source, source_port)
    destination = (flow.destination, destination_port)
    local, remote = (source, destination) if outbound else (destination, source)
    best = Match.NO
    for pair in pairs:
        sides = (_match_side(pair.local, *local, flow), _match_side(pair.remote, *remote, flow))
        result = min(sides, key=lambda side: side.value)
        if result is Match.YES:
            return result
        if result is Match.PERHAPS:
            best = result
    return best


class Spd:
    """Policies in order: by priority, then as they were added. Searched from the front, on purpose."""

    def __init__(self) -> None:
        self._policies: list[tuple[int, Policy]] = []
        self._next_id = 1

    def add(self, policy: Policy) -> int:
        """Put a policy behind those of equal priority; its id."""
        entry = (self._next_id, policy)
        self._next_id += 1
        at = len(self._policies)
        while at and self._policies[at - 1][1].priority > policy.priority:
            at -= 1
        self._policies.insert(at, entry)
        return entry[0]

    def replace(self, policies: Sequence[Policy]) -> list[int]:
        """Other policies instead of all; their ids in the order given."""
        self._policies = []
        return [self.add(policy) for policy in policies]

    def remove(self, policy: int) -> None:
        """Take a policy out. PolicyError if it is not there."""
        kept = [entry for entry in self._policies if entry[0] != policy]
        if len(kept) == len(self._policies):
            raise PolicyError(f"there is no policy with id {policy}")
        self._policies = kept

    def lookup(self, flow: Flow) -> tuple[Match, int, Policy | None]:
        """The policy for an outbound flow with its id: YES, or NO if none matches, or PERHAPS (see the rule above)."""
        for policy_id, policy in self._policies:
            result = match_selectors(policy.selectors, flow, outbound=True)
            if result is not Match.NO:
                return result, policy_id, policy if result is Match.YES else None
        return Match.NO, -1, None
