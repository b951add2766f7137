"""EAP-MD5 (RFC 3748 section 5.4): CHAP (RFC 1994 section 4.1) inside of EAP.

    value-size value name

The server proves nothing and no key comes of it: it is for a server that authenticates itself otherwise.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable

from ipsec.errors import ParseError
from ipsec.ike.eap.method import EapError, PeerMethod, ServerMethod
from ipsec.wire.iana import EapType

CHALLENGE_LEN = 16
"octets of our challenges; those of others may have any number but none"
_DIGEST_LEN = 16


class Md5Peer(PeerMethod):
    """Shows that it knows a secret. It gives no name: EAP-Response/Identity had it."""

    type = EapType.MD5

    def __init__(self, secret: bytes) -> None:
        super().__init__()
        self._secret = secret

    def respond(self, identifier: int, data: bytes) -> bytes:
        value = _value(data)
        self.finished = True
        return _emit(_digest(identifier, self._secret, value), b"")


class Md5Server(ServerMethod):
    """Asks for it. ``rng(n)`` gives n random octets, ``name`` is what we call ourselves."""

    type = EapType.MD5

    def __init__(self, secret: bytes, rng: Callable[[int], bytes], name: bytes) -> None:
        super().__init__()
        self._secret = secret
        self._rng = rng
        self._name = name
        self._challenge: bytes | None = None

    def begin(self, identifier: int) -> bytes:
        self._challenge = self._rng(CHALLENGE_LEN)
        return _emit(self._challenge, self._name)

    def take(self, response_to: int, data: bytes, identifier: int) -> None:
        value = _value(data)
        if len(value) != _DIGEST_LEN:
            raise ParseError(f"EAP-MD5 response with a value of {len(value)} octets instead of {_DIGEST_LEN}")
        # RFC 1994 section 2.3: a challenge is good for one response
        challenge, self._challenge = self._challenge, None
        if challenge is None:
            raise EapError("a response to no challenge of EAP-MD5")
        if not hmac.compare_digest(value, _digest(response_to, self._secret, challenge)):
            raise EapError("the response of EAP-MD5 is wrong")


def _digest(identifier: int, secret: bytes, challenge: bytes) -> bytes:
    return hashlib.md5(bytes((identifier,)) + secret + challenge).digest()


def _emit(value: bytes, name: bytes) -> bytes:
    return bytes((len(value),)) + value + name


def _value(data: bytes) -> bytes:
    """The value. ParseError; the name behind it is nobody's proof."""
    size = data[0] if data else 0
    if not 0 < size < len(data):
        raise ParseError(f"EAP-MD5 message of {len(data)} octets with a value of {size}")
    return data[1 : 1 + size]
