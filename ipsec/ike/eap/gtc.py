"""EAP-GTC (RFC 3748 section 5.6): the server asks in plain words, the peer shows its password as it is.

The server proves nothing and no key comes of it: it is for a server that has authenticated itself already.
"""

from __future__ import annotations

import hmac

from ipsec.ike.eap.method import EapError, PeerMethod, ServerMethod
from ipsec.wire.iana import EapType


class GtcPeer(PeerMethod):
    """Gives its secret, whatever it is asked: there is nobody who could read the question."""

    type = EapType.GTC

    def __init__(self, secret: bytes) -> None:
        super().__init__()
        self._secret = secret

    def respond(self, identifier: int, data: bytes) -> bytes:
        if self.finished:
            # a second question is for a new PIN or the next token, which a password is no answer to
            raise EapError("the server asks again after EAP-GTC had its answer")
        self.finished = True
        return self._secret


class GtcServer(ServerMethod):
    """Asks for it; ``prompt`` is what a person would read."""

    type = EapType.GTC

    def __init__(self, secret: bytes, prompt: bytes = b"Password") -> None:
        super().__init__()
        self._secret = secret
        self._prompt = prompt
        self._asked = False

    def begin(self, identifier: int) -> bytes:
        self._asked = True
        return self._prompt

    def take(self, response_to: int, data: bytes, identifier: int) -> None:
        asked, self._asked = self._asked, False
        if not asked:
            raise EapError("a response to no question of EAP-GTC")
        if not hmac.compare_digest(data, self._secret):
            raise EapError("the password of EAP-GTC is wrong")
