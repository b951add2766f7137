"""ReferenceEngine: ESP processing written to be read (RFC 4301, RFC 4303).

The readable twin of ``ipsec._fastpath.Engine``: both are an ``ipsec.esp.engine.EspEngine`` and agree byte for byte.
What both follow where RFCs leave a choice:

Outbound, in order: parse, SPD, SA, mode, MSS clamp, MTU, size, hard lifetime, sequence number. A packet that is
refused takes no sequence number and counts towards no lifetime.

Inbound, in order: header, SPI, length and alignment, hard lifetime, replay, ICV, replay update, peer's address,
padding, dummy, mode, inner header, ECN, selectors, hard lifetime with the length now known. Everything from the
replay update on concerns authenticated packets only; a packet dropped later has used its sequence number all the same.

Lifetimes count octets of inner packets as given to ``encapsulate`` and returned by ``inbound``, without TFC padding.
Soft events come with the packet that reaches the limit, HARD_LIFETIME and SEQUENCE_HARD with the first one refused.

TFC padding goes up to ``tfc`` octets but never beyond the inner MTU: it must not cause what it cannot mend.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_address

from ipsec.errors import ParseError, SaError
from ipsec.esp.drops import DropReason
from ipsec.esp.early import EarlyPacket, EarlyPackets
from ipsec.esp.engine import (
    ACQUIRE_SECONDS,
    HELD_SECONDS,
    Event,
    EventKind,
    Inbound,
    Outbound,
    SaStats,
    Sealed,
)
from ipsec.esp.held import HeldPackets
from ipsec.esp.join import FragmentJoiner
from ipsec.esp.pmtu import ESP_HEADER, clamp_mss, fragment_ipv4, packet_limit, too_big
from ipsec.esp.quoted import quoted_flow
from ipsec.esp.sa import Action, DfPolicy, Direction, DscpPolicy, IpAddress, Lifetime, Mode, Policy, SaParams
from ipsec.esp.sad import Sad, SaEntry
from ipsec.esp.spd import FragmentTable, Match, Spd, match_selectors
from ipsec.wire.ip import (
    IPIP,
    IPV4_HEADER,
    IPV6,
    NO_NEXT_HEADER,
    TCP,
    UDP,
    UDP_HEADER,
    Fragment,
    IpPacket,
    checksum,
    ip_header,
    parse_packet,
    pseudo_header_sum,
    set_tos,
)

_ECN = 3
_ECT1, _CE = 1, 3
_RESERVED_SPIS = 256


class ReferenceEngine:
    """An ``EspEngine`` in plain Python.

    ``mss_clamp`` lowers the MSS of TCP SYNs both ways to what fits the SA. ``icmp_source4`` and ``icmp_source6``, in
    network byte order, are where ICMP errors to inner senders come from; without, from the packet's destination.
    ``hold_packets`` is how many packets of each policy without an SA are kept for the SA to come; 0 drops them at once.
    """

    def __init__(
        self,
        *,
        mss_clamp: bool = True,
        hold_packets: int = 0,
        icmp_source4: bytes | None = None,
        icmp_source6: bytes | None = None,
    ) -> None:
        for source, version in ((icmp_source4, 4), (icmp_source6, 6)):
            if source is not None and ip_address(source).version != version:
                raise ValueError(f"icmp_source{version} is not an IPv{version} address")
        self._mss_clamp = mss_clamp
        self._icmp_source4 = icmp_source4
        self._icmp_source6 = icmp_source6
        self._sad = Sad()
        self._spd = Spd()
        self._fragments_out = FragmentTable()
        self._fragments_in = FragmentTable()
        self._joiner = FragmentJoiner()
        self._acquired: dict[int, tuple[int, float]] = {}
        "policy -> reqid and time of those whose ACQUIRE is still unanswered"
        self._waiting = HeldPackets(hold_packets)
        self._early = EarlyPackets()
        self._events: list[Event] = []
        self._drops: dict[DropReason, int] = {}

    # databases

    def add_sa(self, params: SaParams) -> int:
        """Install an SA; its id. SaError if an inbound SA has that SPI, or an outbound one has (SPI, remote)."""
        entry = self._sad.add(params)
        if params.direction is Direction.IN:
            self._early.awaited.discard(params.spi)
        else:
            self._acquired = {policy: asked for policy, asked in self._acquired.items() if asked[0] != params.reqid}
        return entry.sa

    def del_sa(self, sa: int) -> None:
        """Remove an SA. SaError if it is not there. Python cannot wipe its keys: the compiled engine does."""
        self._sad.remove(sa)

    def expect_spi(self, spi: int) -> None:
        """Keep packets with this SPI until an SA has it or ``forget_spi``. SaError if an SA has it, or none can."""
        if not _RESERVED_SPIS <= spi <= 0xFFFFFFFF or self._sad.inbound(spi) is not None:
            raise SaError(f"no inbound SA can come with SPI 0x{spi:08x}")
        self._early.awaited.add(spi)

    def forget_spi(self, spi: int) -> None:
        """No packet with this SPI needs to be kept any more; one that nobody expects is ignored."""
        self._early.awaited.discard(spi)

    def update_sa(
        self, sa: int, *, local: IpAddress, remote: IpAddress, encap: tuple[int, int] | None, path_mtu: int
    ) -> None:
        """Move an SA to other outer addresses in place: keys, counters and window stay. SaError if it cannot be."""
        self._sad.update(sa, local, remote, encap, path_mtu)

    def set_lifetime(self, sa: int, lifetime: Lifetime) -> None:
        """Other limits by volume from now on. SaError if the SA is not there."""
        self._sad.get(sa).limit(lifetime)

    def query_sa(self, sa: int) -> SaStats:
        """Counters of an SA. SaError if it is not there."""
        return self._sad.get(sa).stats()

    def add_policy(self, policy: Policy) -> int:
        """Add a policy; its id."""
        return self._spd.add(policy)

    def set_policies(self, policies: Sequence[Policy]) -> list[int]:
        """Replace the whole SPD at once; the ids, in the same order."""
        self._acquired.clear()
        return self._spd.replace(policies)

    def del_policy(self, policy: int) -> None:
        """Remove a policy. PolicyError if it is not there."""
        self._spd.remove(policy)
        self._acquired.pop(policy, None)

    def rearm(self, policy: int) -> None:
        """Let the next packet of this policy without an SA raise ACQUIRE at once. A policy that is gone is ignored."""
        self._acquired.pop(policy, None)

    def events(self) -> list[Event]:
        """What happened since the last call, oldest first."""
        events, self._events = self._events, []
        return events

    def drops(self) -> dict[DropReason, int]:
        """All drops by reason, SAs removed meanwhile included."""
        return dict(self._drops)

    # outbound

    def encapsulate(self, sa: int, packet: bytes, now: float) -> Sealed | DropReason:
        """Protect one IP packet with this SA, without asking the SPD, the MTU or the clamp.

        SaError if there is no such outbound SA.
        """
        entry = self._outbound_sa(sa)
        try:
            inner = parse_packet(packet)
        except ParseError:
            return self._drop(DropReason.OUT_HDR_ERROR, entry)
        if not _fits_mode(entry.params, inner):
            return self._drop(DropReason.OUT_STATE_MODE_ERROR, entry)
        return self._protect(entry, inner, now)

    def dummy(self, sa: int, length: int, now: float) -> Sealed | DropReason:
        """A dummy packet (next header 59) with ``length`` octets of payload (RFC 4303 section 2.6).

        SaError if there is no such outbound SA, ValueError if ``length`` is negative.
        """
        if length < 0:
            raise ValueError(f"a dummy packet cannot have {length} octets")
        entry = self._outbound_sa(sa)
        df = entry.params.df is not DfPolicy.CLEAR
        if length > 65535:
            return self._drop(DropReason.OUT_TOO_BIG, entry)
        return self._seal(entry, bytes(length), NO_NEXT_HEADER, octets=0, tos=0, df=df, now=now)

    def outbound(self, packet: bytes, now: float) -> Outbound:
        """Everything RFC 4301 section 5.1 asks for a packet from the inside: SPD, MTU, MSS clamp, fragments, ESP."""
        try:
            inner = parse_packet(packet)
        except ParseError:
            return Outbound(self._drop(DropReason.OUT_HDR_ERROR))
        self._fragments_out.remember(inner, now)
        found, policy_id, policy = self._spd.lookup(self._fragments_out.flow(inner, now))
        if found is Match.PERHAPS:
            return Outbound(self._drop(DropReason.OUT_FRAGMENT_ERROR))
        if policy is None:
            entry = self._quoted_sa(inner)
            return self._through(entry, inner, now) if entry else Outbound(self._drop(DropReason.OUT_NO_POLS))
        if policy.action is Action.DISCARD:
            return Outbound(self._drop(DropReason.OUT_POL_BLOCK))
        if policy.action is Action.BYPASS:
            return Outbound(DropReason.NONE, clear=inner.data)
        entry = self._sad.newest(policy.reqid)
        if entry is None:
            return self._without_sa(policy_id, policy.reqid, inner.data, now)
        return self._through(entry, inner, now)

    def _quoted_sa(self, error: IpPacket) -> SaEntry | None:
        """RFC 4301 section 6.2: the SA for an error that no policy is for."""
        flow = quoted_flow(error)
        policy = self._spd.lookup(flow)[2] if flow is not None else None
        if policy is None or policy.action is not Action.PROTECT or not policy.icmp:
            return None
        return self._sad.newest(policy.reqid)

    def _through(self, entry: SaEntry, inner: IpPacket, now: float) -> Outbound:
        """Under this SA, as its mode allows."""
        if entry.params.mode is Mode.TRANSPORT and inner.fragment is not Fragment.NONE:
            return self._join(entry, inner, now)
        if not _fits_mode(entry.params, inner):
            return Outbound(self._drop(DropReason.OUT_STATE_MODE_ERROR, entry))
        return self._send(entry, inner, now)

    def held(self) -> int:
        """How many packets wait for an SA."""
        return len(self._waiting)

    def release(self, now: float) -> list[Outbound]:
        """Try packets again that ``outbound`` kept; what became of those that wait no longer, oldest first."""
        results = []
        for since, packet in self._waiting.take():
            if now - since > HELD_SECONDS:
                results.append(Outbound(self._drop(DropReason.OUT_NO_STATES)))
                continue
            self._waiting.since = since
            results.append(self.outbound(packet, now))
            self._waiting.since = None
        return [result for result in results if not result.held]

    def _without_sa(self, policy: int, reqid: int, packet: bytes, now: float) -> Outbound:
        """Ask for an SA, and keep the packet for it."""
        _, asked = self._acquired.get(policy, (0, float("-inf")))
        if now - asked >= ACQUIRE_SECONDS:
            self._acquired[policy] = (reqid, now)
            self._events.append(Event(EventKind.ACQUIRE, policy, reqid))
        if not self._waiting.limit:
            return Outbound(self._drop(DropReason.OUT_NO_STATES))
        for _ in range(self._waiting.put(policy, packet, now)):
            self._drop(DropReason.OUT_NO_STATES)
        return Outbound(DropReason.NONE, held=True)

    def _join(self, entry: SaEntry, fragment: IpPacket, now: float) -> Outbound:
        """RFC 4303 section 3.3.4: transport mode is for whole datagrams, so the host's fragments become one again."""
        if not _between_hosts(entry.params, fragment):
            return Outbound(self._drop(DropReason.OUT_STATE_MODE_ERROR, entry))
        result = self._joiner.put(fragment, now)
        for _ in range(result.lost):
            self._drop(DropReason.OUT_FRAGMENT_ERROR, entry)
        if result.packet is None:
            return Outbound(DropReason.NONE, joined=True) if result.kept else Outbound(DropReason.OUT_FRAGMENT_ERROR)
        inner = parse_packet(result.packet)
        if inner.fragment is not Fragment.NONE:
            return Outbound(self._drop(DropReason.OUT_STATE_MODE_ERROR, entry))
        # its sender has let it be fragmented
        return self._send(entry, replace(inner, dont_fragment=False), now)

    def _send(self, entry: SaEntry, inner: IpPacket, now: float) -> Outbound:
        mtu = entry.inner_mtu
        if self._mss_clamp:
            inner = replace(parse_packet(clamp_mss(inner, mtu)), dont_fragment=inner.dont_fragment)
        if len(inner.data) <= mtu:
            return self._send_parts(entry, [inner], now)
        if len(inner.data) <= packet_limit(mtu, inner.version):
            return self._send_parts(entry, [inner], now, whole=True)
        if inner.dont_fragment:
            limit = packet_limit(mtu, inner.version)
            reply = too_big(inner, limit, self._icmp_source4, self._icmp_source6)
            return Outbound(self._drop(DropReason.OUT_TOO_BIG, entry), reply=reply)
        if entry.params.mode is Mode.TRANSPORT:
            # RFC 4303 section 3.3.4: in transport mode fragmentation comes after ESP
            return self._send_parts(entry, [inner], now, whole=True)
        parts = [parse_packet(part) for part in fragment_ipv4(inner, mtu)]
        if not parts:
            return Outbound(self._drop(DropReason.OUT_TOO_BIG, entry))
        return self._send_parts(entry, parts, now)

    def _send_parts(self, entry: SaEntry, parts: list[IpPacket], now: float, *, whole: bool = False) -> Outbound:
        """Seal each part on its own. If some are refused the others go all the same: their numbers are used."""
        results = [self._protect(entry, part, now) for part in parts]
        sealed = tuple(result for result in results if isinstance(result, Sealed))
        if whole:
            # larger than the path: the outer packet is fragmented, so it must be allowed to be
            sealed = tuple(one._replace(df=False) for one in sealed)
        refused = [result for result in results if isinstance(result, DropReason)]
        return Outbound(DropReason.NONE, sealed) if sealed else Outbound(refused[0])

    def _protect(self, entry: SaEntry, inner: IpPacket, now: float) -> Sealed | DropReason:
        params, octets = entry.params, len(inner.data)
        if params.mode is Mode.TRANSPORT:
            # the packet's own header becomes the outer one: its TOS and DF stay what they are
            header = (inner.data[0] & 15) * 4 if inner.version == 4 else 40
            protocol = inner.data[9] if inner.version == 4 else inner.data[6]
            payload, tos, df = inner.data[header:], inner.tos, inner.dont_fragment
            return self._seal(entry, payload, protocol, octets=octets, tos=tos, df=df, now=now)
        dscp = inner.tos & ~_ECN if params.copy_dscp & DscpPolicy.OUT else 0
        # RFC 6040 section 4.1: normal mode copies ECN, compatibility mode clears it
        ecn = inner.tos & _ECN if params.copy_ecn else 0
        df = params.df is DfPolicy.SET or (params.df is DfPolicy.COPY and inner.dont_fragment)
        target = entry.inner_mtu if params.tfc < 0 else min(params.tfc, entry.inner_mtu)
        payload = inner.data.ljust(target, b"\0")
        protocol = IPIP if inner.version == 4 else IPV6
        return self._seal(entry, payload, protocol, octets=octets, tos=dscp | ecn, df=df, now=now)

    def _seal(
        self, entry: SaEntry, payload: bytes, protocol: int, *, octets: int, tos: int, df: bool, now: float
    ) -> Sealed | DropReason:
        params, suite = entry.params, entry.params.suite
        # RFC 4303 section 2.4: padding is 1, 2, 3, ... so that the receiver can check it
        pad = -(len(payload) + 2) % suite.block
        plaintext = payload + bytes(range(1, pad + 1)) + bytes((pad, protocol))
        length = ESP_HEADER + suite.iv_len + len(plaintext) + suite.icv_len
        if length + (UDP_HEADER if params.encap else 0) + (IPV4_HEADER if params.local.version == 4 else 0) > 65535:
            return self._drop(DropReason.OUT_TOO_BIG, entry)
        if not entry.allows(octets):
            self._raise(entry, entry.once(EventKind.HARD_LIFETIME))
            return self._drop(DropReason.OUT_STATE_EXPIRED, entry)
        events = entry.next_seq()
        if events is None:
            self._raise(entry, entry.once(EventKind.SEQUENCE_HARD))
            return self._drop(DropReason.OUT_STATE_SEQ_ERROR, entry)
        self._raise(entry, events + entry.charge(octets, now))
        header = struct.pack("!II", params.spi, entry.seq & 0xFFFFFFFF)
        return Sealed(header + entry.cipher.seal(params.spi, entry.seq, params.esn, plaintext), entry.sa, tos, df)

    # inbound

    def inbound(
        self, datagram: bytes, now: float, *, tos: int = 0, source: tuple[IpAddress, int] | None = None
    ) -> Inbound:
        """Everything RFC 4301 section 5.2 asks for an ESP packet (SPI to ICV): SAD, replay, ICV, selectors, ECN.

        ``tos`` is the outer DSCP and ECN; ``source`` the outer source address and UDP port (0 for raw ESP).
        """
        if len(datagram) < ESP_HEADER:
            return Inbound(self._drop(DropReason.IN_HDR_ERROR))
        spi, low = struct.unpack_from("!II", datagram)
        if spi < _RESERVED_SPIS:
            return Inbound(self._drop(DropReason.IN_HDR_ERROR))
        entry = self._sad.inbound(spi)
        if entry is None:
            return self._without_inbound_sa(EarlyPacket(spi, datagram, tos, source, now))
        plaintext = self._open(entry, low, datagram[ESP_HEADER:], source)
        if isinstance(plaintext, DropReason):
            return Inbound(self._drop(plaintext, entry), sa=entry.sa)
        packet = self._unwrap(entry, plaintext, tos, now)
        if isinstance(packet, DropReason):
            return Inbound(self._drop(packet, entry), sa=entry.sa)
        return Inbound(DropReason.NONE, packet, entry.sa)

    def early(self) -> int:
        """How many packets came before their SA and wait for it."""
        return len(self._early)

    def release_early(self, now: float) -> list[Inbound]:
        """What became of the packets that ``inbound`` kept and whose SA is there, oldest first for each SPI."""
        packets, lost = self._early.take(lambda spi: self._sad.inbound(spi) is not None, now)
        for _ in range(lost):
            self._drop(DropReason.IN_NO_STATES)
        return [self.inbound(one.datagram, now, tos=one.tos, source=one.source) for one in packets]

    def _without_inbound_sa(self, packet: EarlyPacket) -> Inbound:
        """RFC 7296 section 2.8: who answers an exchange may send through its SA before we have the answer."""
        if packet.spi not in self._early.awaited:
            return Inbound(self._drop(DropReason.IN_NO_STATES))
        for _ in range(self._early.expire(packet.since)):
            self._drop(DropReason.IN_NO_STATES)
        if not self._early.put(packet):
            return Inbound(self._drop(DropReason.IN_NO_STATES))
        return Inbound(DropReason.NONE)

    def _open(self, entry: SaEntry, low: int, body: bytes, source: tuple[IpAddress, int] | None) -> bytes | DropReason:
        """RFC 4303 section 3.4: from sequence number to ICV. The plaintext with padding and trailer."""
        suite = entry.params.suite
        text = len(body) - suite.iv_len - suite.icv_len
        if text < suite.block or text % suite.block:
            return DropReason.IN_HDR_ERROR
        if entry.used_up():
            self._raise(entry, entry.once(EventKind.HARD_LIFETIME))
            return DropReason.IN_STATE_EXPIRED
        seq = entry.window.infer(low)
        if seq is None or not entry.window.fresh(seq):
            return DropReason.IN_STATE_SEQ_ERROR
        plaintext = entry.cipher.open(entry.params.spi, seq, entry.params.esn, body)
        if plaintext is None:
            return DropReason.IN_STATE_PROTO_ERROR
        # RFC 7296 section 2.23: only a fresh packet may move the peer, never a delayed or replayed one
        if entry.window.commit(seq) and source is not None and entry.params.follow_peer:
            self._follow(entry, source)
        return plaintext

    def _follow(self, entry: SaEntry, source: tuple[IpAddress, int]) -> None:
        params, (address, port) = entry.params, source
        if (address, port) == (params.remote, params.encap[1] if params.encap else 0):
            return
        # another family, or the other encapsulation: no change that a NAT can make
        if address.version != params.local.version or bool(port) != bool(params.encap):
            return
        entry.move(params.local, address, (params.encap[0], port) if params.encap else None)
        # one pending event for each SA is enough, the newest: a peer must not fill the list
        self._events = [one for one in self._events if (one.kind, one.sa) != (EventKind.MAPPING, entry.sa)]
        self._events.append(Event(EventKind.MAPPING, entry.sa, source=source))

    def _unwrap(self, entry: SaEntry, plaintext: bytes, tos: int, now: float) -> bytes | DropReason:
        """From padding to the inner packet, all authenticated by now."""
        pad, next_header = plaintext[-2:]
        end = len(plaintext) - 2 - pad
        if end < 0 or plaintext[end:-2] != bytes(range(1, pad + 1)):
            return DropReason.IN_PADDING_ERROR
        payload = plaintext[:end]
        if next_header == NO_NEXT_HEADER:
            self._raise(entry, entry.charge(0, now))
            return DropReason.IN_DUMMY
        if entry.params.mode is Mode.TRANSPORT:
            inner = _rebuild_transport(entry.params, payload, next_header, tos)
        else:
            inner = _open_tunnel(entry.params, payload, next_header, tos)
        if isinstance(inner, DropReason):
            return inner
        mismatch = self._mismatch(entry, inner, now)
        if mismatch is not None:
            return mismatch
        if not entry.allows(len(inner.data)):
            self._raise(entry, entry.once(EventKind.HARD_LIFETIME))
            return DropReason.IN_STATE_EXPIRED
        self._raise(entry, entry.charge(len(inner.data), now))
        return clamp_mss(inner, entry.inner_mtu) if self._mss_clamp else inner.data

    def _mismatch(self, entry: SaEntry, inner: IpPacket, now: float) -> DropReason | None:
        """RFC 4301 section 5.2 step 4: what came through an SA must be what the SA is for."""
        if not entry.params.selectors:
            return None
        found = match_selectors(entry.params.selectors, self._fragments_in.flow(inner, now), outbound=False)
        if found is Match.YES:
            self._fragments_in.remember(inner, now)
            return None
        if found is Match.NO and entry.params.icmp:
            # RFC 4301 section 6.2: an error is judged by what it quotes
            quoted = quoted_flow(inner)
            if quoted and match_selectors(entry.params.selectors, quoted, outbound=False) is Match.YES:
                return None
        return DropReason.IN_TMPL_MISMATCH if found is Match.NO else DropReason.IN_FRAGMENT_ERROR

    # bookkeeping

    def _outbound_sa(self, sa: int) -> SaEntry:
        entry = self._sad.get(sa)
        if entry.params.direction is not Direction.OUT:
            raise SaError(f"SA {sa} is inbound")
        return entry

    def _drop(self, reason: DropReason, entry: SaEntry | None = None) -> DropReason:
        self._drops[reason] = self._drops.get(reason, 0) + 1
        if entry is not None:
            entry.drops[reason] = entry.drops.get(reason, 0) + 1
        return reason

    def _raise(self, entry: SaEntry, kinds: list[EventKind]) -> None:
        self._events += [Event(kind, entry.sa) for kind in kinds]


def _fits_mode(params: SaParams, inner: IpPacket) -> bool:
    """RFC 4303 section 3.1.1: transport mode is between these two hosts, and carries no fragments."""
    if params.mode is Mode.TUNNEL:
        return True
    return inner.fragment is Fragment.NONE and _between_hosts(params, inner)


def _between_hosts(params: SaParams, inner: IpPacket) -> bool:
    return (inner.source, inner.destination) == (params.local, params.remote)


def combine_ecn(inner: int, outer: int) -> int | None:
    """The ECN field to deliver (RFC 6040 section 4.2, figure 4); None: drop."""
    if inner == 0:
        return None if outer == _CE else 0
    if _CE in (inner, outer):
        return _CE
    return _ECT1 if outer == _ECT1 else inner


def _open_tunnel(params: SaParams, payload: bytes, next_header: int, tos: int) -> IpPacket | DropReason:
    if next_header not in (IPIP, IPV6):
        return DropReason.IN_STATE_MODE_ERROR
    if len(payload) < IPV4_HEADER:
        return DropReason.IN_INNER_HDR_ERROR
    if payload[0] >> 4 != (4 if next_header == IPIP else 6):
        return DropReason.IN_STATE_MODE_ERROR
    try:
        inner = parse_packet(payload)
    except ParseError:
        return DropReason.IN_INNER_HDR_ERROR
    ecn: int | None = inner.tos & _ECN
    if params.copy_ecn:
        ecn = combine_ecn(inner.tos & _ECN, tos & _ECN)
        if ecn is None:
            return DropReason.IN_ECN_ERROR
    dscp = (tos if params.copy_dscp & DscpPolicy.IN else inner.tos) & ~_ECN
    return parse_packet(set_tos(inner.data, dscp | (ecn or 0)))


def _rebuild_transport(params: SaParams, payload: bytes, next_header: int, tos: int) -> IpPacket | DropReason:
    """The packet under the header it would have come with, had there been no ESP."""
    if len(payload) + (IPV4_HEADER if params.local.version == 4 else 0) > 65535:
        return DropReason.IN_INNER_HDR_ERROR
    header = ip_header(params.remote, params.local, next_header, len(payload), tos=tos, df=True)
    try:
        inner = parse_packet(header + payload)
        return parse_packet(_fix_checksum(inner)) if params.encap else inner
    except ParseError:
        return DropReason.IN_INNER_HDR_ERROR


def _fix_checksum(inner: IpPacket) -> bytes:
    """TCP or UDP summed anew: the sender did it for the addresses before NAT (RFC 3948 section 3.1.2).

    The ICV vouches for the octets, so nothing is hidden by it. Lengths that contradict each other are left alone.
    """
    data, segment = inner.data, inner.data[inner.l4_offset :]
    if inner.fragment is not Fragment.NONE:
        return data
    if inner.protocol == TCP and len(segment) >= 20:
        at, length = 16, len(segment)
    elif inner.protocol == UDP and len(segment) >= UDP_HEADER and segment[6:8] != b"\0\0":
        at, length = 6, int.from_bytes(segment[4:6], "big")
        if not UDP_HEADER <= length <= len(segment):
            return data
    else:
        return data
    cleared = segment[:at] + b"\0\0" + segment[at + 2 :]
    initial = pseudo_header_sum(inner.source, inner.destination, inner.protocol, length)
    value = checksum(cleared[:length], initial)
    if inner.protocol == UDP:
        value = value or 0xFFFF
    return data[: inner.l4_offset] + cleared[:at] + value.to_bytes(2, "big") + cleared[at + 2 :]
