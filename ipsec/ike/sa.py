"""An IKE_SA: message IDs, protection, fragments, retransmission, and the queue of what we have to ask the peer.

One request of ours is under way at a time, and one of the peer's (window size 1, RFC 7296 section 2.3). What requests
and responses mean is in init, auth, child, rekey, informational and mobike.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from hashlib import blake2b
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

from ipsec.crypto.identity import Identity
from ipsec.crypto.prf import PrfAlgorithm
from ipsec.crypto.sk import SkCipher, SkSuite
from ipsec.errors import ParseError
from ipsec.ike.child_sa import ChildSa
from ipsec.ike.config import Connection
from ipsec.ike.errors import PeerError, SaFailedError
from ipsec.ike.events import IkeDown, Path, RemoveChild
from ipsec.ike.failure import Cause, Failure, bounded
from ipsec.ike.fragment import Reassembly, split
from ipsec.ike.keymat import IkeKeys
from ipsec.ike.lifetimes import Timer, arm_retransmit
from ipsec.ike.state import ACCEPTED_REQUESTS, CHILD_UP, ChildState, IkeState, check_ike
from ipsec.wire.iana import ExchangeType, NotifyType, PayloadType
from ipsec.wire.ike import (
    FLAG_INITIATOR,
    FLAG_RESPONSE,
    HEADER_LEN,
    Encrypted,
    Header,
    UnsupportedCriticalPayload,
    emit_encrypted_header,
    emit_payloads,
    find_encrypted,
    parse_header,
    parse_payloads,
)
from ipsec.wire.payloads import NotifyPayload, Payload
from ipsec.wire.proposal import Proposal
from ipsec.wire.show import show_message

if TYPE_CHECKING:
    from ipsec.ike.config_payload import Pool
    from ipsec.ike.eap.relay import Granted
    from ipsec.ike.engine import IkeEngine
    from ipsec.ike.followup import Awaited
    from ipsec.ike.init import AuthProgress, InitProgress
    from ipsec.ike.rekey import IkeRekey

log = logging.getLogger(__name__)

IpAddress = IPv4Address | IPv6Address

#: what may wait to be asked; a peer or a user who makes more than that gets the oldest done first and the rest refused
QUEUE_MAX = 256
#: RFC 7296 section 2.2: message IDs do not wrap; the IKE_SA is replaced long before
MESSAGE_ID_SOFT = 0xFFFF0000

#: octets of fragments that one IKE_SA may make us keep before it is authenticated; a datagram holds no more
UNPROVED_BYTES_MAX = 65535

#: as ``Request.patience``: it goes the way in use and no other
ALONE = 1 << 30

_UDP_AND_MARKER = 8 + 4
_IP_HEADER = {4: 20, 6: 40}
_GENERIC = 4
_SKF_FIELDS = 4


class Request:
    """One exchange that we start. ``build`` is called when its turn has come.

    One that takes several (RFC 9370) asks itself again.
    """

    patience: int = 2
    "with MOBIKE: how often it goes the way in use, unanswered, before it goes all others as well"
    __slots__ = ()

    @property
    def exchange(self) -> ExchangeType:
        """Its type."""
        return ExchangeType.INFORMATIONAL

    def build(self, sa: IkeSa, now: float) -> list[Payload] | None:
        """The request's payloads; None if there is nothing to ask any more."""
        raise NotImplementedError

    def answered(self, sa: IkeSa, payloads: list[Payload], now: float) -> None:
        """The response. ParseError or SaFailedError ends the IKE_SA."""
        raise NotImplementedError

    def sent_all_ways(self) -> None:
        """It has gone other ways than the one in use (RFC 4555)."""

    def in_successor(self) -> Request | None:
        """What the successor is to ask when it takes over before the response came, if what comes then is too late."""
        return None

    def lost(self, sa: IkeSa, now: float) -> None:
        """The IKE_SA ends before the response came."""


class Pending:
    """A request under way."""

    __slots__ = ("datagrams", "exchange", "message_id", "request", "tries", "ways")

    def __init__(self, request: Request, exchange: int, message_id: int, datagrams: list[bytes]) -> None:
        self.request = request
        self.exchange = exchange
        self.message_id = message_id
        self.datagrams = datagrams
        self.tries = 0
        self.ways: set[Path] = set()
        "on which it has gone besides the one in use"


class Collected:
    """Fragments of one message on their way in (RFC 7383)."""

    __slots__ = ("digest", "message_id", "reassembly", "response")

    def __init__(self, message_id: int, response: bool) -> None:
        self.message_id = message_id
        self.response = response
        self.reassembly = Reassembly()
        self.digest = b""


class IkeSa:
    """One IKE_SA of ours, in either role."""

    __slots__ = (
        "addresses",
        "auth",
        "awaited",
        "children",
        "collected",
        "connection",
        "core",
        "created_at",
        "deferred",
        "doubted",
        "eap_id",
        "established_at",
        "fragmentation",
        "granted",
        "handshake",
        "in_cipher",
        "init",
        "initiator",
        "keys",
        "last_in",
        "last_out",
        "leases",
        "lineage",
        "message_id_in",
        "message_id_out",
        "mobike",
        "nat_local",
        "nat_remote",
        "original_initiator",
        "our_id",
        "out_cipher",
        "path",
        "peer_addresses",
        "peer_hashes",
        "peer_id",
        "peer_token",
        "pending",
        "ppk",
        "prf",
        "proposal",
        "queue",
        "quiet",
        "reauth_at",
        "reauth_by",
        "redirectable",
        "rekey",
        "rekey_at",
        "replaces",
        "request_cipher",
        "request_digest",
        "response",
        "sealed",
        "seen_as",
        "session_end",
        "spi_i",
        "spi_r",
        "state",
        "successor",
        "told",
        "tries_left",
        "uid",
        "unauthenticated_error",
    )

    def __init__(self, core: IkeEngine, uid: int, connection: Connection, *, initiator: bool, path: Path) -> None:
        self.core = core
        self.uid = uid
        self.connection = connection
        self.initiator = initiator
        "we started the IKE_SA (the I flag of our messages)"
        self.original_initiator = initiator
        "we started the first one of those that each replace another (RFC 4555 section 1.3)"
        self.path = path
        self.state = IkeState.CREATED
        self.spi_i = self.spi_r = bytes(8)
        self.proposal: Proposal | None = None
        self.prf: PrfAlgorithm | None = None
        self.keys: IkeKeys | None = None
        self.in_cipher: SkCipher | None = None
        self.out_cipher: SkCipher | None = None
        self.sealed = 0
        "how many messages the key of ours has sealed: the counter in their IVs, never given out twice"
        self.message_id_out = self.message_id_in = 0
        self.pending: Pending | None = None
        self.queue: deque[Request] = deque()
        self.request_digest = b""
        self.request_cipher: SkCipher | None = None
        "of the peer's last request, to know it again, and what it was protected with"
        self.response: list[bytes] = []
        "what we answered to it"
        self.collected: Collected | None = None
        self.deferred: Callable[[float], None] | None = None
        "waits for something outside to go on (certificate status)"
        self.init: InitProgress | None = None
        self.auth: AuthProgress | None = None
        self.rekey: IkeRekey | None = None
        self.awaited: dict[bytes, Awaited] = {}  # what the peer has begun, by its names for it (RFC 9370)
        self.children: dict[int, ChildSa] = {}
        self.our_id: Identity | None = None
        self.peer_id: Identity | None = None
        self.eap_id: Identity | None = None  # who the peer is by EAP, if it was asked there
        self.granted: Granted | None = None  # by the EAP server, if that is somebody else
        self.fragmentation = self.mobike = self.nat_local = self.nat_remote = False
        self.peer_hashes: tuple[int, ...] = ()
        self.peer_addresses: tuple[IpAddress, ...] = ()
        "other addresses of the peer (RFC 4555 section 3.4)"
        self.told: tuple[IpAddress, ...] = ()
        "those of ours that the peer knows"
        self.peer_token = b""
        "proof that the peer lost this IKE_SA, once it shows it (RFC 6290)"
        self.redirectable = False
        "the peer began the first IKE_SA, and has said that it can be sent elsewhere (RFC 5685)"
        self.seen_as: bytes | None = None
        "how the peer sees our address through a NAT (RFC 4555 section 3.8)"
        self.ppk = False  # a postquantum preshared key is in its keys (RFC 8784)
        self.addresses: tuple[IpAddress, ...] = ()
        "virtual addresses that we have from the peer"
        self.leases: list[tuple[Pool, IpAddress]] = []
        "virtual addresses that the peer has from us"
        self.quiet = False  # another IKE_SA stands for this one: its end is nobody's concern
        self.doubted = False
        "the peer may have dropped it, since we have said INITIAL_CONTACT in another one"
        self.successor: IkeSa | None = None
        "the IKE_SA that took over our CHILD_SAs"
        self.lineage = {uid}
        "unique ids of all that live of one line of rekeying, the same set for each of them"
        self.replaces = 0  # the IKE_SA that goes when this one is up (re-authentication)
        self.created_at = core.now
        self.established_at = self.rekey_at = self.reauth_at = self.reauth_by = self.last_in = self.last_out = 0.0
        self.session_end = 0.0  # the peer has to authenticate itself anew by then; 0: no such limit
        self.handshake = (self.created_at, 0.0)
        "when the first one of its line was begun, and when it was up"
        self.tries_left = max(connection.keyingtries, 0) or -1
        self.unauthenticated_error: Failure | None = None

    # -- what it is

    @property
    def spi_ours(self) -> bytes:
        """The SPI by which the peer's messages find us."""
        return self.spi_i if self.initiator else self.spi_r

    @property
    def name(self) -> str:
        """Name of its connection."""
        return self.connection.name

    @property
    def established(self) -> bool:
        """Both ends are authenticated and neither has given up."""
        return self.state in (IkeState.ESTABLISHED, IkeState.REKEYING)

    @property
    def authenticated(self) -> bool:
        """The same, or it has a successor, which the peer may not know yet."""
        return self.established or self.state is IkeState.REKEYED

    @property
    def whose(self) -> Identity | None:
        """The identity of the peer that counts (RFC 7296 section 2.16): that of EAP where there is one."""
        return self.eap_id or self.peer_id

    @property
    def maps(self) -> bool:
        """A NAT has a mapping for us, and if that changes it is for us to say so (RFC 4555 section 3.8)."""
        return self.mobike and self.original_initiator and self.nat_local

    @property
    def line(self) -> tuple[IkeSa, ...]:
        """It, and a successor of the peer's that may take over yet: what is learnt of addresses is so for both."""
        peers = self.rekey.peers if self.rekey is not None else None
        return (self,) if peers is None else (self, peers)

    def __str__(self) -> str:
        return f"{self.connection.name}[{self.uid}]"

    def __repr__(self) -> str:
        return f"<IkeSa {self} {self.state.value} {self.path}>"

    def change(self, new: IkeState) -> None:
        """Go to another state."""
        if new is not self.state:
            old, self.state = self.state, check_ike(self.state, new)
            log.debug("%s %s -> %s", self, old.value, new.value)

    def install_keys(self, prf: PrfAlgorithm, suite: SkSuite, keys: IkeKeys) -> None:
        """Protect from now on; message IDs and the IV counter belong to the keys."""
        self.prf = prf
        self.keys = keys
        initiators = SkCipher(suite, keys.sk_ei, keys.sk_ai)
        responders = SkCipher(suite, keys.sk_er, keys.sk_ar)
        self.out_cipher, self.in_cipher = (initiators, responders) if self.initiator else (responders, initiators)

    # -- sending

    def ask(self, request: Request, now: float, *, first: bool = False) -> None:
        """Put a request into the queue, and send it if it is its turn. ``first``: what comes of the one that was under
        way, of which there is never more than a few; it is not left out."""
        if len(self.queue) >= QUEUE_MAX and not first:
            log.warning("%s: too many requests wait, %s is left out", self, type(request).__name__)
            return
        if first:
            self.queue.appendleft(request)
        else:
            self.queue.append(request)
        self.ask_next(now)

    def ask_next(self, now: float) -> None:
        """Send the next request, if none is under way and we may."""
        while self.pending is None and self.deferred is None and self.queue:
            request = self.queue.popleft()
            payloads = request.build(self, now)
            if payloads is not None:
                datagrams = self.protect(request.exchange, payloads, self.message_id_out, response=False)
                self.start(request, datagrams, now)

    def start(self, request: Request, datagrams: list[bytes], now: float) -> None:
        """Send a request and mind that it is answered."""
        self.pending = Pending(request, request.exchange, self.message_id_out, datagrams)
        self.message_id_out += 1
        self.transmit_request(self.pending, now)
        self.core.counters.message(request.exchange, self.name, incoming=False, response=False)
        arm_retransmit(self.core, self, now)
        if self.message_id_out == MESSAGE_ID_SOFT:
            self.core.rekey_ike_sa(self, now)

    def transmit(self, datagrams: Sequence[bytes], path: Path, now: float) -> None:
        """Give datagrams to the caller."""
        self.last_out = now
        for datagram in datagrams:
            self.core.send(datagram, path, self.connection.dscp)

    def retransmit(self, now: float) -> bool:
        """Send the request under way once more, bit by bit the same (RFC 7296 section 2.1); False: enough is enough."""
        pending = self.pending
        if pending is None:
            return True
        settings = self.core.settings
        if pending.tries >= settings.retransmit_tries:
            return False
        pending.tries += 1
        self.core.counters.add("retransmit", self.name)
        better = "better " if self.unauthenticated_error else ""
        log.info("%s: no %sanswer yet, sending request %d again (%d)", self, better, pending.message_id, pending.tries)
        self.transmit_request(pending, now)
        arm_retransmit(self.core, self, now)
        return True

    def transmit_request(self, pending: Pending, now: float, *, all_ways: bool = False) -> None:
        """Send the request under way along the path in use, and with MOBIKE sooner or later along all others."""
        self.transmit(pending.datagrams, self.path, now)
        if not self.mobike or not self.authenticated:
            return
        patience = pending.request.patience
        # from an address that is gone nothing leaves, and what is to be known of that way never will be
        if not self.core.usable(self, self.path) or (all_ways and patience != ALONE):
            patience = 0
        if pending.tries < patience:
            return
        # RFC 4555 section 3.5: which way works shows when the answer comes
        others = [way for way in self.core.ways(self) if way != self.path]
        if others:
            pending.ways.update(others)
            pending.request.sent_all_ways()
        for way in others:
            self.transmit(pending.datagrams, way, now)

    def reset(self) -> None:
        """Before another IKE_SA_INIT: no keys, no SPIs, no messages, and the peer has shown nothing."""
        self.in_cipher = self.out_cipher = self.keys = self.proposal = None
        self.spi_r = bytes(8)
        self.sealed = self.message_id_out = 0
        self.pending = self.collected = None
        self.unauthenticated_error = self.peer_id = None
        self.ppk = False
        self.tries_left -= self.tries_left > 0

    def protect(self, exchange: int, payloads: Sequence[Payload], message_id: int, *, response: bool) -> list[bytes]:
        """A message in its Encrypted payload, or in several fragments if it is too large for one datagram."""
        assert self.out_cipher is not None
        first, content = emit_payloads(payloads)
        flags = (FLAG_INITIATOR if self.initiator else 0) | (FLAG_RESPONSE if response else 0)
        if log.isEnabledFor(logging.DEBUG):
            header = Header(self.spi_i, self.spi_r, 0, 2, 0, exchange, flags, message_id, 0)
            log.debug("%s: sending %s", self, show_message(header, payloads))
        cipher = self.out_cipher
        size = HEADER_LEN + _GENERIC + cipher.overhead(len(content)) + len(content)
        room = self.core.settings.fragment_size - _IP_HEADER[self.path.remote.version] - _UDP_AND_MARKER
        if size <= room or not self.core.may_fragment(self):
            return [self._seal(exchange, flags, message_id, first, content)]
        fixed = HEADER_LEN + _GENERIC + _SKF_FIELDS
        # padding up to a block and its length octet can only be less than overhead() says for the whole room
        parts = split(content, room - fixed - cipher.overhead(0) - cipher.suite.block)
        return [
            # RFC 7383 section 2.5: the first fragment alone says which payload comes first
            self._seal(exchange, flags, message_id, first if number == 1 else 0, part, (number, len(parts)))
            for number, part in enumerate(parts, 1)
        ]

    def _seal(
        self,
        exchange: int,
        flags: int,
        message_id: int,
        first: int,
        content: bytes,
        fragment: tuple[int, int] | None = None,
    ) -> bytes:
        cipher = self.out_cipher
        assert cipher is not None
        length = cipher.overhead(len(content)) + len(content)
        aad = emit_encrypted_header(self.spi_i, self.spi_r, exchange, flags, message_id, first, length, fragment)
        self.sealed += 1
        return aad + cipher.seal(aad, content, self.sealed, self.core.rng)

    # -- receiving

    def receive(self, header: Header, data: bytes, path: Path, now: float) -> None:
        """A protected message that names our SPIs. What does not authenticate changes nothing."""
        if header.initiator == self.initiator:
            return  # our own message, sent back
        if header.response:
            self._receive_response(header, data, path, now)
        else:
            self._receive_request(header, data, path, now)

    def _receive_request(self, header: Header, data: bytes, path: Path, now: float) -> None:
        if header.message_id != self.message_id_in:
            self._answer_again(header, data, path, now)
            return
        if not self._takes(header.exchange) or self.deferred is not None:
            return
        if self.initiator and self.state is IkeState.CONNECTING:
            # RFC 7296 section 1.2: the responder asks nothing before it has proved who it is. Our own IDi and AUTH,
            # sent back to us as a request, would hold
            return
        opened = self._open(header, data)
        if opened is None:
            return
        first, content, self.request_digest = opened
        if self.init is not None and header.exchange == ExchangeType.IKE_INTERMEDIATE:
            self.init.further.heard = data, first, content
        self.message_id_in += 1
        self.request_cipher = self.in_cipher
        self.response = []
        self.last_in = now
        self.core.counters.message(header.exchange, self.name, incoming=True, response=False)
        self.core.heard(self, header, path, now)
        answer: list[Payload] | None
        fatal = False
        try:
            payloads = parse_payloads(first, content, header.exchange, True)
            self._show_received(header, payloads)
            answer = self.core.handle_request(self, header.exchange, payloads, path, now)
        except (ParseError, PeerError) as error:
            answer, fatal = self.refusal(header.exchange, error, path)
        if answer is not None:
            self.respond(header.exchange, answer, path, now)
        if fatal:
            self.core.lose(self, "a request of the peer is refused")
            self.destroy("refused", now)

    def _takes(self, exchange: int) -> bool:
        """Whether it is time for such a request. In the midst of IKE_AUTH an initiator may say that it gives up."""
        amidst = self.state is IkeState.CONNECTING and self.auth is not None
        return exchange in ACCEPTED_REQUESTS[self.state] or (amidst and exchange == ExchangeType.INFORMATIONAL)

    def refusal(self, exchange: int, error: ParseError | PeerError, path: Path) -> tuple[list[Payload], bool]:
        """What the peer hears of a request that we do not take, and whether the IKE_SA ends with that."""
        name = ExchangeType(exchange).name
        if isinstance(error, UnsupportedCriticalPayload):
            # RFC 7296 section 2.5
            log.warning("%s: %s refused: %s", self, name, error)
            notify = NotifyPayload(NotifyType.UNSUPPORTED_CRITICAL_PAYLOAD, bytes((error.payload_type,)))
            return [notify], exchange in (ExchangeType.IKE_INTERMEDIATE, ExchangeType.IKE_AUTH)
        if isinstance(error, ParseError):
            # RFC 7296 section 2.21.3: authentic and yet malformed ends the IKE_SA
            log.warning("%s: %s is malformed: %s", self, name, error)
            self.core.note(Failure(Cause.MALFORMED, bounded(f"malformed request: {error}")), self)
            return [NotifyPayload(NotifyType.INVALID_SYNTAX)], True
        log.warning("%s: %s from %s refused: %s", self, name, path.remote, error)
        if error.failure is not None:
            self.core.note(error.failure, self)
        return [*error.beside, error.payload()], error.fatal

    def _answer_again(self, header: Header, data: bytes, path: Path, now: float) -> None:
        """A retransmission gets what it got before, never anything computed anew (RFC 7296 section 2.1)."""
        if header.message_id != self.message_id_in - 1 or not self.response:
            return
        if digest(data) == self.request_digest or self._is_split_anew(header, data):
            self.transmit(self.response, path, now)

    def _is_split_anew(self, header: Header, data: bytes) -> bool:
        """Whether this is the first of smaller fragments of the same request, which the peer tries because it hears
        nothing (RFC 7383 section 2.5.2): it was our answer that was lost. ParseError if it is not authentic."""
        if header.next_payload != PayloadType.SKF or self.request_cipher is None or not self.fragmentation:
            return False
        part = find_encrypted(header, data)
        if part.number != 1 or header.exchange != parse_header(self.response[0]).exchange:
            return False
        # RFC 9370 section 2.2.2: after IKE_INTERMEDIATE there are others
        self.request_cipher.open(data[: part.offset], data[part.offset :])
        return True

    def respond(self, exchange: int, payloads: Sequence[Payload], path: Path, now: float) -> None:
        """Answer the peer's last request, to where it came from."""
        self.response = self.protect(exchange, payloads, self.message_id_in - 1, response=True)
        self.transmit(self.response, path, now)
        self.core.counters.message(exchange, self.name, incoming=False, response=True)

    def _receive_response(self, header: Header, data: bytes, path: Path, now: float) -> None:
        pending = self.pending
        if pending is None or (header.message_id, header.exchange) != (pending.message_id, pending.exchange):
            return
        if self.deferred is not None:
            return
        opened = self._open(header, data)
        if opened is None:
            return
        first, content, _ = opened
        if self.init is not None and header.exchange == ExchangeType.IKE_INTERMEDIATE:
            self.init.further.heard = data, first, content
        if not self.maps:
            # an answer goes to where its request came from, though the peer may send ESP to a mapping that is gone
            self.last_in = now
        self.core.counters.message(header.exchange, self.name, incoming=True, response=True)
        self.answered_by(pending, header, path, now)
        elsewhere = path in pending.ways and path != self.path
        # RFC 4555 section 3.5: the initiator decides, unless the responder has no choice
        elsewhere = elsewhere and (self.original_initiator or not self.core.usable(self, self.path))
        if elsewhere:
            self.core.move_ike(self, path, now)
        try:
            payloads = parse_payloads(first, content, header.exchange, True)
            self._show_received(header, payloads)
            pending.request.answered(self, payloads, now)
            again = pending.request.in_successor()
            if again is not None and self.rekey is not None and self.rekey.peers is not None:
                # the peer's successor may have taken over there before this came
                self.rekey.postpone(again)
            heir = self.successor or self
            if elsewhere and heir.established:
                self.core.found_way(heir, now)
        except ParseError as error:
            # an answer that makes no sense leaves both ends with different ideas (RFC 7296 section 2.21.3)
            why = f"the answer to {ExchangeType(header.exchange).name} is malformed: {error}"
            if self.established:
                # else whoever began it is told
                log.warning("%s: %s", self, why)
            # nothing came of it: what the request holds goes with the IKE_SA
            self.pending = pending
            self.destroy(Failure(Cause.MALFORMED, bounded(why)), now)
        except SaFailedError as error:
            self.pending = pending
            self.destroy(error.failure, now)
        if self.deferred is None:
            self.ask_next(now)

    def answered_by(self, pending: Pending, header: Header, path: Path, now: float) -> None:
        """The request under way is over."""
        self.pending = None
        self.core.timers.cancel((Timer.RETRANSMIT, self.uid))
        self.core.heard(self, header, path, now)

    def _open(self, header: Header, data: bytes) -> tuple[int, bytes, bytes] | None:
        """First payload, content and digest of a message, once it is whole and authentic; ParseError if it is not."""
        if self.in_cipher is None:
            return None
        part = find_encrypted(header, data)
        content = self.in_cipher.open(data[: part.offset], data[part.offset :])
        if part.type != PayloadType.SKF:
            self.collected = None
            return part.first, content, digest(data)
        return self._collect(header, data, part, content)

    def _collect(self, header: Header, data: bytes, part: Encrypted, content: bytes) -> tuple[int, bytes, bytes] | None:
        if not self.fragmentation:
            raise ParseError("a fragment, although fragmentation was not agreed")
        collected = self.collected
        if collected is None or (collected.message_id, collected.response) != (header.message_id, header.response):
            collected = self.collected = Collected(header.message_id, header.response)
            if not self.established_at:
                # anybody may have these keys (RFC 7383 section 5): what all of them together make us keep is bounded
                collected.reassembly = Reassembly(max_bytes=UNPROVED_BYTES_MAX)
                self.core.collects(self)
        if part.number == 1:
            # RFC 7383 section 2.6.1: the first fragment alone is answered when it comes again
            collected.digest = digest(data)
        whole = collected.reassembly.add(part.number, part.total, part.first, content)
        if whole is None:
            return None
        self.collected = None
        self.core.collecting.pop(self.uid, None)
        return whole[0], whole[1], collected.digest

    def _show_received(self, header: Header, payloads: Sequence[Payload]) -> None:
        if log.isEnabledFor(logging.DEBUG):
            log.debug("%s: received %s", self, show_message(header, payloads))

    # -- the end

    def destroy(self, why: str | Failure, now: float) -> None:
        """Forget the IKE_SA with its CHILD_SAs. A failure is remembered, a text says that all is in order."""
        if self.state is IkeState.DESTROYING:
            return
        if isinstance(why, Failure) and not self.quiet:
            self.core.note(why, self)
            self.core.lose(self, str(why), closed=why.cause is Cause.CLOSED)
        reason = str(why)
        up = self.established_at > 0
        pending, queue = self.pending, list(self.queue)
        self.pending = None
        self.queue.clear()
        self.deferred = None
        self.change(IkeState.DESTROYING)
        for child in list(self.children.values()):
            self.core.drop_child(child, reason, now)
        while self.awaited:
            self.awaited.popitem()[1].drop(self, now)
        if pending is not None:
            pending.request.lost(self, now)
        for request in queue:
            request.lost(self, now)
        successor = self.rekey.peers if self.rekey is not None else None
        if successor is not None:
            # one that the peer has made, and that has not taken over
            successor.destroy(reason, now)
        self.core.forget(self, now)
        self.in_cipher = self.out_cipher = self.request_cipher = self.keys = None
        if not self.quiet:
            self.core.emit(IkeDown(self, reason, up, why.cause if isinstance(why, Failure) else None))

    def remove_child(self, child: ChildSa) -> None:
        """Take a CHILD_SA out of the data path and off our list."""
        child.change(ChildState.DESTROYING)
        child.outbound = None
        self.children.pop(child.uid, None)
        self.core.emit(RemoveChild(child, child.has_in, child.has_out))
        child.has_in = child.has_out = False

    def child_by_spi_out(self, spi: int) -> ChildSa | None:
        """The CHILD_SA that a peer means by an SPI, which is that of its inbound SA (RFC 7296 section 1.4.1)."""
        return next((child for child in self.children.values() if child.spi_out == spi), None)

    def children_up(self) -> list[ChildSa]:
        """CHILD_SAs that carry traffic and were not replaced."""
        return [child for child in self.children.values() if child.state in CHILD_UP]


def digest(data: bytes) -> bytes:
    """By which a message is known again."""
    return blake2b(data, digest_size=16).digest()
