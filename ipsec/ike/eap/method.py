"""What an EAP method is: the Type-Data of its requests and responses, and the key that comes of them.

The packets around that, their identifiers, Identity, Notification, Nak, Success and Failure are ``peer``'s and
``server``'s (RFC 3748 section 4). Nothing here does I/O; randomness is an argument of whatever needs it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from ipsec.crypto.auth import AuthenticationError

#: octets of a Master Session Key (RFC 3748 section 7.10)
MSK_LEN = 64


class EapError(AuthenticationError):
    """The method has failed; ``str()`` is the reason, for our log. It never quotes secrets."""


class EapSilentError(EapError):
    """A server that is somebody else does not answer."""


class EapRefusedError(EapError):
    """The server has said that it does not believe us."""


class PeerMethod(ABC):
    """The side that proves who it is: the initiator, RFC 3748's peer.

    StatusUnknownError (``ike.status``) out of ``respond`` means: call it again with the same arguments when more is
    known of a certificate's status. Nothing has been given out by then that ends the method.
    """

    type: ClassVar[int]
    "an EapType"
    mutual: ClassVar[bool] = False
    "the server shows as well who it is, safely even where nothing else does (RFC 5998 section 4)"

    def __init__(self) -> None:
        self.finished = False
        "all that has to be said was said: a Success that comes before is no success (section 4.2, CVE-2021-45079)"
        self.msk: bytes | None = None
        "the key that the method has made, of MSK_LEN octets; None if it makes none"
        self.failure: str | None = None
        "why the server says no, where it does so within the method: we have to respond, and Failure is what follows"
        self.gave_up: EapError | None = None
        "why we say no, where the server is to hear of it first (an alert of TLS): it holds whatever comes after that"

    @abstractmethod
    def respond(self, identifier: int, data: bytes) -> bytes:
        """Type-Data of the response to a request, whose Identifier and Type-Data these are.

        ParseError for what is malformed, EapError if the server is not whom we share the secret with.
        """


class ServerMethod(ABC):
    """The side that is shown it: the responder, RFC 3748's authenticator and its server in one.

    StatusUnknownError out of ``take`` is as with ``PeerMethod``.
    """

    type: ClassVar[int]
    "an EapType"

    def __init__(self) -> None:
        self.msk: bytes | None = None
        "as with ``PeerMethod``"
        self.gave_up: EapError | None = None
        "as with ``PeerMethod``; ``take`` raises it when the peer has answered what it was to hear"

    @abstractmethod
    def begin(self, identifier: int) -> bytes:
        """Type-Data of the first request, which will have this Identifier."""

    @abstractmethod
    def take(self, response_to: int, data: bytes, identifier: int) -> bytes | None:
        """Type-Data of the next request, which will have ``identifier``; None: the peer is who it says.

        ``data`` is the Type-Data of the response to the request ``response_to``. ParseError for what is malformed,
        EapError if the peer is somebody else.
        """
