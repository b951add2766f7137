"""EAP-TLS in both roles: RFC 5216 with TLS 1.2, RFC 9190 with TLS 1.3.

    server                            peer
    Start                     -->
                              <--     ClientHello
    its flight, certificate   -->
                              <--     its flight, certificate
    Finished, or in TLS 1.3
    a protected octet 0x00    -->
                              <--     an acknowledgement

The certificate that a flight brings is judged before it is answered, so a server that is not trusted sees no
certificate of ours, and a peer that is not trusted no sign of success.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ipsec.crypto.auth import AuthenticationError
from ipsec.errors import ParseError
from ipsec.ike.eap.method import EapError, PeerMethod, ServerMethod
from ipsec.ike.eap.tls_fragment import ACKNOWLEDGEMENT, START_DATA, Fragments, is_start
from ipsec.ike.eap.tls_session import TLS_1_3, TlsFailedError, TlsIdentity, TlsSession, tls_available, tls_version
from ipsec.wire.iana import EapType

__all__ = ["TlsIdentity", "TlsPeer", "TlsServer", "Verify", "tls_available", "tls_version"]

#: Judges the other side's certificates (DER, its own first, then the others as sent): AuthenticationError, or
#: StatusUnknownError (``ike.status``) if that is to be asked again when more is known
Verify = Callable[[list[bytes]], None]

#: what a TLS 1.3 server says when it takes the peer for authenticated (RFC 9190 section 2.5)
_SUCCESS = b"\0"
#: flights of the other side's in one conversation: five are the most that an honest one has, with HelloRetryRequest
_FLIGHTS_MAX = 8


class _Flights:
    """Flights of one side: heard, judged, answered."""

    def __init__(self, open_session: Callable[[], TlsSession], verify: Verify) -> None:
        self._open = open_session
        self._session: TlsSession | None = None
        self._verify = verify
        self._waiting: tuple[bytes, bytes] | None = None
        "Type-Data that came and the flight that answers it, while the judgement takes its time"
        self._heard = 0
        self.fragments = Fragments()
        self.judged = False
        "the other side's certificate was found good"

    @property
    def session(self) -> TlsSession:
        """TLS, made when it is first needed. TlsFailedError."""
        if self._session is None:
            self._session = self._open()
        return self._session

    def answer(self, data: bytes) -> bytes | None:
        """Our next flight, after Type-Data of the other side's; None if that asks for ``fragments.turn()``.

        ParseError, TlsFailedError, or what ``verify`` raises to be asked again with the same ``data``.
        """
        if self._waiting is None:
            heard = self.fragments.take(data)
            if heard is None:
                return None
            if not heard and self.session.done:
                raise TlsFailedError("the peer's TLS 1.3 is older than RFC 9190: tls_version_max = 1.2 does without")
            if not heard:
                raise ParseError("EAP-TLS: an acknowledgement of nothing")
            self._heard += 1
            if self._heard > _FLIGHTS_MAX:
                raise TlsFailedError(f"more than {_FLIGHTS_MAX} flights")
            flight = self.session.hear(heard)
            if not flight and not self.session.done:
                raise TlsFailedError("a flight stops in the middle")
        elif self._waiting[0] == data:
            flight = self._waiting[1]
        else:
            raise ParseError("EAP-TLS: another packet while the last one is being judged")
        self._judge(data, flight)
        return flight

    def _judge(self, data: bytes, flight: bytes) -> None:
        chain = [] if self.judged else self.session.chain()
        if chain:
            self._waiting = data, flight
            try:
                self._verify(chain)
            except AuthenticationError as error:
                self._waiting = None
                raise TlsFailedError(str(error), self.session.refuse(flight)) from error
            self._waiting = None
            self.judged = True
        if self.session.done and not self.judged:
            raise TlsFailedError("no certificate")


class TlsPeer(PeerMethod):
    """The client of TLS."""

    type = EapType.TLS
    mutual = True

    def __init__(
        self, identity: TlsIdentity | None, verify: Verify, rng: object = None, *, newest: int = TLS_1_3
    ) -> None:
        """``identity``: None shows no certificate, which few servers take. ``verify``: of the server's certificates.

        ``rng`` is not used: OpenSSL has randomness of its own. ``newest``: version of TLS, as in its ClientHello.
        """
        super().__init__()
        self._flights = _Flights(lambda: TlsSession(server=False, identity=identity, newest=newest), verify)
        self._started = False

    def respond(self, identifier: int, data: bytes) -> bytes:
        """As with ``PeerMethod``."""
        if self.gave_up is not None:
            raise self.gave_up
        if self.finished or self.failure is not None:
            raise EapError("the server goes on after the end of TLS")
        try:
            if not self._started:
                if not is_start(data):
                    raise ParseError("EAP-TLS without Start")
                self._started = True
                return self._flights.fragments.send(self._flights.session.hear(b""))
            judged = self._flights.judged
            flight = self._flights.answer(data)
            if flight is None:
                return self._flights.fragments.turn()
            self._look_for_end(judged)
        except TlsFailedError as failed:
            # section 2.1.3: the server hears of it, or that we have heard its alert, and then says Failure. Nothing
            # else is acknowledged: the server could take that for the end
            if failed.heard:
                self.failure = str(failed)
                return ACKNOWLEDGEMENT
            self.gave_up = _failure(failed)
            if not failed.alert:
                raise self.gave_up from failed.__cause__
            return self._flights.fragments.send(failed.alert)
        return self._flights.fragments.send(flight)

    def _look_for_end(self, judged: bool) -> None:
        """``judged``: the server's certificate had been found good before this flight."""
        session = self._flights.session
        if not session.done:
            return
        if not session.is_tls13:
            if session.said:
                raise TlsFailedError("the server says something in TLS")
            self.finished = True
        elif session.said:
            # RFC 9190 section 2.5: not before it has seen our Finished, and nothing else
            if session.said != _SUCCESS or not judged:
                raise TlsFailedError("the server says something in TLS that is not its success")
            self.finished = True
        if self.finished:
            self.msk = session.msk()


class TlsServer(ServerMethod):
    """The server of TLS; a peer without a certificate is refused."""

    type = EapType.TLS

    def __init__(
        self, identity: TlsIdentity, verify: Verify, authorities: Sequence[bytes], *, newest: int = TLS_1_3
    ) -> None:
        """``verify``: of the peer's certificates. ``authorities``: DER names from which they may come, to help the peer
        choose; none: any. ``newest``: version of TLS, as in its ServerHello."""
        super().__init__()

        def open_session() -> TlsSession:
            return TlsSession(server=True, identity=identity, authorities=authorities, newest=newest)

        self._flights = _Flights(open_session, verify)
        self._committed = False
        "our last flight is on its way"

    def begin(self, identifier: int) -> bytes:
        """As with ``ServerMethod``. EapError if our certificate cannot be used."""
        try:
            _ = self._flights.session
        except TlsFailedError as failed:
            self.gave_up = _failure(failed)
            raise self.gave_up from failed.__cause__
        return START_DATA

    def take(self, response_to: int, data: bytes, identifier: int) -> bytes | None:
        """As with ``ServerMethod``."""
        if self.gave_up is not None:
            raise self.gave_up
        try:
            if self._committed:
                return self._end(data)
            flight = self._flights.answer(data)
            if flight is None:
                return self._flights.fragments.turn()
            session = self._flights.session
            if session.said:
                raise TlsFailedError("the peer says something in TLS")
            if session.done:
                self._committed = True
                if session.is_tls13:
                    flight += session.say(_SUCCESS)
            return self._flights.fragments.send(flight)
        except TlsFailedError as failed:
            self.gave_up = _failure(failed)
            if not failed.alert:
                raise self.gave_up from failed.__cause__
            # section 2.1.3: the alert first, and Failure when the peer has acknowledged it
            return self._flights.fragments.send(failed.alert)

    def _end(self, data: bytes) -> bytes | None:
        heard = self._flights.fragments.take(data)
        if heard is None:
            return self._flights.fragments.turn()
        if heard:
            # an alert, if anything
            self._flights.session.hear(heard)
            raise TlsFailedError("the peer goes on after the end of TLS")
        self.msk = self._flights.session.msk()
        return None


def _failure(failed: TlsFailedError) -> EapError:
    """The same as what a method says; the certificate's fault, if it is that, stays its cause."""
    error = EapError(f"EAP-TLS: {failed}")
    error.__cause__ = failed.__cause__
    return error
