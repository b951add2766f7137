"""EAP-MSCHAPv2 (draft-kamath-pppext-eap-mschapv2) over MS-CHAPv2 (RFC 2759): both sides prove the same password.

    op-code ms-chapv2-id ms-length ...                        requests, and the response with the proof
    op-code                                                   the responses to Success and Failure

    server                                                    peer
    Challenge: value-size challenge name                  ->
                                                          <-  Response: value-size proof name
    Success: S=proof M=text, or Failure: E=number M=text  ->
                                                          <-  Success or Failure, the op-code alone

The MS-CHAPv2-ID says no more than the Identifier of EAP, which is compared elsewhere: what others send there is not
looked at. Changing a password that has expired is not offered.
"""

from __future__ import annotations

import hmac
import re
import struct
from collections.abc import Callable
from enum import IntEnum

from ipsec.crypto import mschap
from ipsec.errors import ParseError
from ipsec.ike.eap.method import MSK_LEN, EapError, PeerMethod, ServerMethod
from ipsec.text import printable
from ipsec.wire.iana import EapType, name_of

TEXT_MAX = 256
"octets of what others write that are looked at for a log"
ACCESS_DENIED = 691
"ERROR_AUTHENTICATION_FAILURE (RFC 2759 section 6)"

_HEADER = struct.Struct(">BBH")
#: peer challenge, 8 octets reserved, NT response, flags (draft section 2.2)
_PROOF = struct.Struct(f">{mschap.CHALLENGE_LEN}s8x{mschap.NT_RESPONSE_LEN}sB")
_SUCCESS = re.compile(rb"S=([0-9A-Fa-f]{%d})(?: |\Z)" % (2 * mschap.PROOF_LEN))
_ERROR = re.compile(rb"(?:\A| )E=([0-9]{1,10})(?![0-9])")
_MESSAGE = re.compile(rb"(?:\A| )M=(.*)", re.DOTALL)
#: RFC 2759 section 6
_REASONS = {
    646: "not at this hour",
    647: "the account is disabled",
    648: "the password has expired",
    649: "no permission to dial in",
    ACCESS_DENIED: "wrong user name or password",
    709: "the password was not changed",
}


class OpCode(IntEnum):
    """draft-kamath-pppext-eap-mschapv2 section 2."""

    CHALLENGE = 1
    RESPONSE = 2
    SUCCESS = 3
    FAILURE = 4
    CHANGE_PASSWORD = 7


class Mschapv2Peer(PeerMethod):
    """Proves a password by its NT hash, 16 octets, and wants the server to prove it too.

    ``user`` may begin with ``DOMAIN\\``; ``rng(n)`` gives n random octets.
    """

    type = EapType.MSCHAPV2

    def __init__(self, user: bytes, nt_hash: bytes, rng: Callable[[int], bytes]) -> None:
        super().__init__()
        self._user = user
        self._nt_hash = nt_hash
        self._rng = rng
        self._expected: tuple[bytes, bytes] | None = None
        "the server's proof and the MSK, once we have answered its challenge"

    def respond(self, identifier: int, data: bytes) -> bytes:
        opcode, ms_id, body = _parse(data)
        if self.finished or self.failure is not None:
            raise EapError(f"the server sends {name_of(OpCode, opcode)} after the end of EAP-MSCHAPv2")
        if opcode == OpCode.CHALLENGE and self._expected is None:
            return self._answer(ms_id, body)
        if opcode == OpCode.SUCCESS and self._expected is not None:
            self._check(body, *self._expected)
            return bytes((OpCode.SUCCESS,))
        if opcode == OpCode.FAILURE:
            self.failure = _failure(body)
            return bytes((OpCode.FAILURE,))
        raise EapError(f"the server sends {name_of(OpCode, opcode)} of EAP-MSCHAPv2 out of order")

    def _answer(self, ms_id: int, body: bytes) -> bytes:
        if len(body) < 1 + mschap.CHALLENGE_LEN or body[0] != mschap.CHALLENGE_LEN:
            raise ParseError(f"EAP-MSCHAPv2 challenge of {body[0] if body else 0} octets in {len(body)}")
        challenge, ours = body[1 : 1 + mschap.CHALLENGE_LEN], self._rng(mschap.CHALLENGE_LEN)
        user = without_domain(self._user)
        response = mschap.nt_response(self._nt_hash, challenge, ours, user)
        proof = mschap.authenticator_response(self._nt_hash, response, challenge, ours, user)
        self._expected = proof, _msk(self._nt_hash, response)
        value = _PROOF.pack(ours, response, 0)
        return _emit(OpCode.RESPONSE, ms_id, bytes((len(value),)) + value + self._user)

    def _check(self, body: bytes, proof: bytes, msk: bytes) -> None:
        found = _SUCCESS.match(body)
        if found is None:
            raise ParseError("EAP-MSCHAPv2 Success without the server's proof")
        # RFC 2759 section 5: the session ends if the server does not know the password either
        if not hmac.compare_digest(bytes.fromhex(found[1].decode("ascii")), proof):
            raise EapError("the server of EAP-MSCHAPv2 does not know the password")
        self.finished, self.msk = True, msk


class Mschapv2Server(ServerMethod):
    """Wants the password proved whose NT hash it has, 16 octets, and proves it then.

    ``rng(n)`` gives n random octets, ``name`` is what we call ourselves. The name in the response chooses nothing: who
    said another one as his Identity has to know the password of that one.
    """

    type = EapType.MSCHAPV2

    def __init__(self, nt_hash: bytes, rng: Callable[[int], bytes], name: bytes) -> None:
        super().__init__()
        self._nt_hash = nt_hash
        self._rng = rng
        self._name = name
        self._awaited: OpCode | None = None
        "what the peer is to send next"
        self._challenge = self._key = b""
        self._ms_id = 0

    def begin(self, identifier: int) -> bytes:
        self._awaited, self._ms_id, self._challenge = OpCode.RESPONSE, identifier, self._rng(mschap.CHALLENGE_LEN)
        return _emit(OpCode.CHALLENGE, identifier, bytes((len(self._challenge),)) + self._challenge + self._name)

    def take(self, response_to: int, data: bytes, identifier: int) -> bytes | None:
        if self.gave_up is not None:
            # any answer will do, there is nothing left to say
            raise self.gave_up
        if not data:
            raise ParseError("EAP-MSCHAPv2 message without an op-code")
        opcode = data[0]
        if opcode != self._awaited:
            raise EapError(f"the peer sends {name_of(OpCode, opcode)} of EAP-MSCHAPv2 out of order")
        if opcode == OpCode.RESPONSE:
            return self._judge(data)
        # Success, which is its op-code alone: what follows, if anything, means nothing
        self._awaited, self.msk = None, self._key
        return None

    def _judge(self, data: bytes) -> bytes:
        body = _parse(data)[2]
        if len(body) < 1 + _PROOF.size or body[0] != _PROOF.size:
            raise ParseError(f"EAP-MSCHAPv2 response of {body[0] if body else 0} octets in {len(body)}")
        theirs, shown, _flags = _PROOF.unpack_from(body, 1)
        name = body[1 + _PROOF.size :]
        user = without_domain(name)
        response = mschap.nt_response(self._nt_hash, self._challenge, theirs, user)
        if not hmac.compare_digest(response, shown):
            who = printable(name[:TEXT_MAX])
            self._awaited, self.gave_up = None, EapError(f"the response of EAP-MSCHAPv2 is wrong, from '{who}'")
            # RFC 2759 section 6: R=0, no other try with the challenge C; V=3 is MS-CHAPv2
            again = self._rng(mschap.CHALLENGE_LEN).hex().upper()
            text = f"E={ACCESS_DENIED} R=0 C={again} V=3 M=Authentication failed"
            return _emit(OpCode.FAILURE, self._ms_id, text.encode("ascii"))
        self._awaited, self._key = OpCode.SUCCESS, _msk(self._nt_hash, response)
        proof = mschap.authenticator_response(self._nt_hash, response, self._challenge, theirs, user)
        return _emit(OpCode.SUCCESS, self._ms_id, f"S={proof.hex().upper()} M=OK".encode("ascii"))


def without_domain(user: bytes) -> bytes:
    """``user`` of ``DOMAIN\\user``, which alone goes into ChallengeHash (RFC 2759 section 8.2)."""
    domain, backslash, name = user.partition(b"\\")
    return name if backslash else domain


def _msk(nt_hash: bytes, response: bytes) -> bytes:
    """The keys of the server, to receive with and to send with, filled up with zeros (RFC 3748 section 7.10)."""
    return b"".join(mschap.mppe_keys(nt_hash, response)).ljust(MSK_LEN, b"\0")


def _emit(opcode: OpCode, ms_id: int, body: bytes) -> bytes:
    return _HEADER.pack(opcode, ms_id, _HEADER.size + len(body)) + body


def _parse(data: bytes) -> tuple[int, int, bytes]:
    """Op-code, MS-CHAPv2-ID and what follows the length. ParseError."""
    if len(data) < _HEADER.size:
        raise ParseError(f"EAP-MSCHAPv2 message of {len(data)} octets is shorter than its header")
    opcode, ms_id, length = _HEADER.unpack_from(data)
    if length != len(data):
        raise ParseError(f"EAP-MSCHAPv2 message of {len(data)} octets says it has {length}")
    return opcode, ms_id, data[_HEADER.size :]


def _failure(body: bytes) -> str:
    """What a Failure says (RFC 2759 section 6), for a log."""
    # charon ends it as C ends strings
    body = body[:TEXT_MAX].rstrip(b"\0")
    error, message = _ERROR.search(body), _MESSAGE.search(body)
    if error is None:
        return f"the server says '{printable(body)}'" if body else "the server says no"
    number = int(error[1])
    text = f"error {number}, {_REASONS[number]}" if number in _REASONS else f"error {number}"
    return f"{text}: '{printable(message[1])}'" if message and message[1] else text
