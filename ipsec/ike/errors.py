"""Errors inside the IKEv2 engine; none of them leaves it."""

from __future__ import annotations

from ipsec.errors import IpsecError
from ipsec.ike.failure import UNTOLD, Cause, Failure, Terms, bounded, cause_of
from ipsec.wire.iana import NotifyType, name_of
from ipsec.wire.payloads import NotifyPayload, Payload


class PeerError(IpsecError):
    """A request of the peer is refused: ``notify`` is what it hears, the message is for our log alone."""

    def __init__(
        self,
        notify: int,
        reason: str,
        data: bytes = b"",
        *,
        fatal: bool = False,
        cause: Cause | None = None,
        child: str = "",
        ours: Terms = UNTOLD,
        theirs: Terms = UNTOLD,
    ) -> None:
        """``cause``, ``child`` and what both ends wanted, where it can be told, are for ``failure``."""
        self.notify = notify
        self.reason = reason
        self.data = data
        self.fatal = fatal
        "the IKE_SA ends with the response"
        self.beside: list[Payload] = []
        "what goes to the peer before ``payload()``"
        super().__init__(f"{name_of(NotifyType, notify)}: {reason}")
        self._failure = Failure(
            cause or cause_of(notify, child=bool(child)), bounded(str(self)), child, ours=ours, theirs=theirs
        )

    @property
    def failure(self) -> Failure | None:
        """What to tell of it; None for what the peer is to ask again, another way or later."""
        return None if self.notify in _PASSING else self._failure

    def payload(self) -> Payload:
        """What goes to the peer."""
        return NotifyPayload(self.notify, self.data)


class SaFailedError(IpsecError):
    """What the peer answered, or what we lack, ends the IKE_SA at once, without another message."""

    def __init__(self, failure: Failure) -> None:
        self.failure = failure
        super().__init__(failure.reason)


#: errors that are part of the protocol's ordinary course
_PASSING = (NotifyType.TEMPORARY_FAILURE, NotifyType.CHILD_SA_NOT_FOUND, NotifyType.INVALID_KE_PAYLOAD)
