"""IKE_INTERMEDIATE (RFC 9242): key exchanges after the first one, before anybody is authenticated.

Each brings new keys for all that comes after it (RFC 9370 section 2.2.2), and AUTH covers both its messages. IKE_AUTH
is neither sent nor taken before all that was agreed is done.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ipsec.crypto.kex import KeyExchange
from ipsec.errors import ParseError
from ipsec.ike.errors import PeerError, SaFailedError
from ipsec.ike.failure import Cause, Failure, bounded, cause_of
from ipsec.ike.find import find_error
from ipsec.ike.keymat import ike_keys, rekeyed_skeyseed
from ipsec.ike.sa import Request
from ipsec.wire.iana import ExchangeType, KeMethod, NotifyType, PayloadType, name_of
from ipsec.wire.ike import (
    FLAG_INITIATOR,
    FLAG_RESPONSE,
    HEADER_LEN,
    emit_encrypted_header,
    emit_payloads,
    find_encrypted,
    parse_header,
)
from ipsec.wire.payloads import KePayload, Payload

if TYPE_CHECKING:
    from ipsec.ike.events import Path
    from ipsec.ike.sa import IkeSa

log = logging.getLogger(__name__)

_GENERIC = 4
_NOTHING = (b"", 0, b"")


class Further:
    """The key exchanges after the first one that an IKE_SA still has to do, and what was said in those that it did."""

    __slots__ = ("heard", "initiators", "methods", "responders", "rounds")

    def __init__(self) -> None:
        self.methods: list[int] = []
        "those that are left"
        self.rounds = 0
        "those that are done"
        self.initiators = self.responders = b""
        "IntAuth_i and IntAuth_r (RFC 9242 section 3.3.2)"
        self.heard = _NOTHING
        "the message that is being handled: the datagram that made it whole, its first payload, all payloads"

    def int_auth(self) -> bytes:
        """What the AUTH payload of either end covers besides: IntAuth, nothing if there was no IKE_INTERMEDIATE."""
        if not self.rounds:
            return b""
        # the message ID of IKE_AUTH; IKE_SA_INIT had 0
        return self.initiators + self.responders + (self.rounds + 1).to_bytes(4, "big")


class Intermediate(Request):
    """The next key exchange, as initiator."""

    exchange = ExchangeType.IKE_INTERMEDIATE
    __slots__ = ("kex", "sent")

    def __init__(self) -> None:
        self.kex: KeyExchange | None = None
        self.sent = b""

    def build(self, sa: IkeSa, now: float) -> list[Payload] | None:
        """KEi(n)."""
        assert sa.init is not None
        self.kex = sa.core.key_pair(sa.init.further.methods[0])
        payloads: list[Payload] = [KePayload(self.kex.method, self.kex.public)]
        self.sent = _sent(sa, payloads, sa.message_id_out, response=False)
        return payloads

    def answered(self, sa: IkeSa, payloads: list[Payload], now: float) -> None:
        """KEr(n), or that there will be no IKE_SA: the peer keeps none after an error here."""
        error = find_error(payloads)
        if error is not None:
            why = bounded(f"{sa.path.remote} answers IKE_INTERMEDIATE with {name_of(NotifyType, error.notify)}")
            raise SaFailedError(Failure(cause_of(error.notify, child=False), why, by_peer=True))
        assert sa.init is not None
        assert self.kex is not None
        ke = the_ke(payloads, self.kex.method)
        shared = self.kex.shared(ke.data)
        self.kex = None
        _step(sa, self.sent, _received(sa), shared)
        sa.core.keys_agreed(sa, now)


def handle_intermediate(sa: IkeSa, payloads: list[Payload], path: Path, now: float) -> None:
    """The initiator goes on; our response has the keys that its request had."""
    further = sa.init.further if sa.init is not None else None
    if further is None or not further.methods:
        why = "IKE_INTERMEDIATE, and no key exchange is left"
        raise PeerError(NotifyType.INVALID_SYNTAX, why, fatal=True, cause=Cause.MALFORMED)
    method = further.methods[0]
    public, shared = sa.core.join_key_exchange(method, the_ke(payloads, method).data)
    answer: list[Payload] = [KePayload(method, public)]
    request, response = _received(sa), _sent(sa, answer, sa.message_id_in - 1, response=True)
    sa.respond(ExchangeType.IKE_INTERMEDIATE, answer, path, now)
    _step(sa, request, response, shared)


def the_ke(payloads: Sequence[Payload], method: int) -> KePayload:
    """The KE payload of one method, which is the only one. ParseError."""
    found = [p for p in payloads if isinstance(p, KePayload)]
    if len(found) != 1 or found[0].method != method:
        names = ", ".join(name_of(KeMethod, ke.method) for ke in found[:2]) or "nothing"
        raise ParseError(f"key exchange {name_of(KeMethod, method)} was agreed, and {names} has come")
    return found[0]


def _step(sa: IkeSa, request: bytes, response: bytes, shared: bytes) -> None:
    """One more is done: IntAuth by the keys that it had, then the keys that it brings."""
    prf, keys = sa.prf, sa.keys
    assert sa.init is not None
    assert prf is not None
    assert keys is not None
    assert sa.out_cipher is not None
    further = sa.init.further
    further.initiators = prf(keys.sk_pi, further.initiators + request)
    further.responders = prf(keys.sk_pr, further.responders + response)
    further.rounds += 1
    method = further.methods.pop(0)
    ni, nr = sa.init.nonce_i, sa.init.nonce_r
    # SKEYSEED(n) = prf(SK_d(n-1), SK(n) | Ni | Nr), as for an IKE_SA that is rekeyed
    seed = rekeyed_skeyseed(prf, keys.sk_d, shared, ni, nr)
    suite = sa.out_cipher.suite
    sa.install_keys(prf, suite, ike_keys(prf, suite, seed, ni, nr, sa.spi_i, sa.spi_r))
    log.debug("%s: key exchange %s is in the keys as well", sa, name_of(KeMethod, method))


# -- the messages as AUTH covers them (RFC 9242 section 3.3.2): whole, not encrypted, with lengths to fit that


def _sent(sa: IkeSa, payloads: Sequence[Payload], message_id: int, *, response: bool) -> bytes:
    first, content = emit_payloads(payloads)
    flags = (FLAG_INITIATOR if sa.initiator else 0) | (FLAG_RESPONSE if response else 0)
    exchange = ExchangeType.IKE_INTERMEDIATE
    return emit_encrypted_header(sa.spi_i, sa.spi_r, exchange, flags, message_id, first, len(content)) + content


def _received(sa: IkeSa) -> bytes:
    assert sa.init is not None
    further = sa.init.further
    # what nobody vouches for yet is kept no longer than needed
    heard, further.heard = further.heard, _NOTHING
    return covered(*heard)


def covered(data: bytes, first: int, content: bytes) -> bytes:
    """A message of the peer, of which ``data`` is the datagram or one of its fragments."""
    part = find_encrypted(parse_header(data), data)
    if part.type == PayloadType.SK:
        head = bytearray(data[: part.offset])
    else:
        # as if it had come in one piece
        head = bytearray(data[: HEADER_LEN + _GENERIC])
        head[16], head[-4], head[-3] = PayloadType.SK, first, 0
    head[24:28] = (len(head) + len(content)).to_bytes(4, "big")
    head[-2:] = (_GENERIC + len(content)).to_bytes(2, "big")
    return bytes(head) + content
