"""Errors inside the IKEv2 engine; none of them leaves it."""

from __future__ import annotations

from ipsec.errors import IpsecError
from ipsec.wire.iana import NotifyType, name_of
from ipsec.wire.payloads import NotifyPayload


class PeerError(IpsecError):
    """A request of the peer is refused: ``notify`` is what it hears, the message is for our log alone."""

    def __init__(self, notify: int, reason: str, data: bytes = b"", *, fatal: bool = False) -> None:
        self.notify = notify
        self.reason = reason
        self.data = data
        self.fatal = fatal
        "the IKE_SA ends with the response"
        super().__init__(f"{name_of(NotifyType, notify)}: {reason}")

    def payload(self) -> NotifyPayload:
        """What goes to the peer."""
        return NotifyPayload(self.notify, self.data)


class SaFailedError(IpsecError):
    """What the peer answered ends the IKE_SA at once, without another message."""
