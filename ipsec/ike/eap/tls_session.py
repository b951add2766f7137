"""TLS in memory, as EAP-TLS wants it (RFC 5216, RFC 9190): pyOpenSSL, since Python's ssl has no exporter (RFC 5705).

Whom to trust is not decided here: OpenSSL goes on whatever it thinks of the peer's certificate. It has checked that the
peer has the key of it by the time it says that the handshake is done, and before a client shows its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import load_der_x509_certificate

from ipsec.crypto import der
from ipsec.crypto.auth import PrivateKeyObject
from ipsec.ike.eap.method import MSK_LEN
from ipsec.wire.iana import EapType

if TYPE_CHECKING:
    from OpenSSL import SSL

TLS_1_2, TLS_1_3 = 0x0303, 0x0304

#: forward secrecy and an AEAD; what TLS 1.3 has is all of that kind
_CIPHERS = b":".join(
    b"ECDHE-%s-%s" % (key, cipher)
    for cipher in (b"AES256-GCM-SHA384", b"AES128-GCM-SHA256", b"CHACHA20-POLY1305")
    for key in (b"ECDSA", b"RSA")
)
#: key material that the exporter makes: MSK and EMSK (RFC 5216 section 2.3). In TLS 1.3 the length goes into it
_EXPORTED = 128
#: a fatal alert in clear: certificate_unknown (RFC 8446 section 6.2), as TLS 1.2 and 1.3 write it
_ALERT = bytes((21, 3, 3, 0, 2, 2, 46))
#: a record that is not encrypted, where all have to be: OpenSSL says unexpected_message
_NONSENSE = bytes((22, 3, 3, 0, 1, 0))
#: SSL_OP_LEGACY_SERVER_CONNECT of OpenSSL, which pyOpenSSL has not always had a name for
_LEGACY_SERVER_CONNECT = 0x4

_READ_LEN = 0x4000


def tls_available() -> str:
    """Empty if there is what EAP-TLS needs, else what to install."""
    try:
        from OpenSSL import SSL  # noqa: F401
    except (ImportError, AttributeError) as error:
        # AttributeError: a pyOpenSSL that is too old for this cryptography
        return f"EAP-TLS needs pyOpenSSL ({error}): pip install pyOpenSSL"
    return ""


def tls_version() -> str:
    """What does TLS, where ``tls_available`` has nothing to say."""
    import OpenSSL
    from OpenSSL import SSL

    return f"pyOpenSSL {OpenSSL.__version__}, {SSL.OpenSSL_version(SSL.OPENSSL_VERSION).decode('ascii', 'replace')}"


@dataclass(frozen=True)
class TlsIdentity:
    """What we show: certificates in DER, and the key of the first."""

    certificate: bytes = field(repr=False)
    intermediates: tuple[bytes, ...] = field(repr=False)
    private_key: PrivateKeyObject = field(repr=False)


class TlsFailedError(Exception):
    """TLS is over; ``str()`` is the reason, ``alert`` the flight that tells the peer, if there is something to tell.

    ``heard``: the reason is an alert of the peer's.
    """

    def __init__(self, reason: str, alert: bytes = b"", *, heard: bool = False) -> None:
        self.alert = alert
        self.heard = heard
        super().__init__(reason)


class TlsSession:
    """One end of TLS. Without resumption, tickets that are good for anything, renegotiation and compression."""

    def __init__(
        self, *, server: bool, identity: TlsIdentity | None, authorities: Sequence[bytes] = (), newest: int = TLS_1_3
    ) -> None:
        """``authorities``: DER names that the client's certificate may come from, for a server; none: any.

        TlsFailedError if our own certificate or key cannot be used.
        """
        from OpenSSL import SSL

        self._ssl: Any = SSL
        self._server = server
        self.done = False
        "the handshake is complete: the peer has the key of its certificate"
        self.said = b""
        "application data of the peer's, two octets at most"
        try:
            context = _make_context(identity, authorities, newest)
        except (SSL.Error, ValueError, TypeError) as error:
            raise TlsFailedError(f"our certificate or key cannot be used for TLS: {_reason(error)}") from None
        self._connection: SSL.Connection = SSL.Connection(context, None)
        if server:
            self._connection.set_accept_state()
        else:
            self._connection.set_connect_state()

    @property
    def is_tls13(self) -> bool:
        """Whether that is what was negotiated."""
        return self._connection.get_protocol_version() >= TLS_1_3

    def hear(self, flight: bytes) -> bytes:
        """Our flight after one of the peer's, or after nothing if we begin; it may be empty. TlsFailedError."""
        try:
            if flight:
                self._connection.bio_write(flight)
            if not self.done:
                self._connection.do_handshake()
                self.done = True
            # also tickets and alerts are read so
            while len(self.said) < 2:
                self.said += self._connection.recv(2)
        except self._ssl.WantReadError:
            pass
        except self._ssl.ZeroReturnError:
            raise TlsFailedError("the peer has closed TLS", heard=True) from None
        except self._ssl.Error as error:
            # of what it does not like itself OpenSSL tells the peer
            alert = self._written()
            raise TlsFailedError(f"TLS: {_reason(error)}", alert, heard=not alert) from None
        return self._written()

    def say(self, data: bytes) -> bytes:
        """The record with this application data."""
        self._connection.sendall(data)
        return self._written()

    def chain(self) -> list[bytes]:
        """The peer's certificates in DER, its own first, then the others as sent; empty while there are none.

        TlsFailedError if one cannot be read.
        """
        try:
            own = self._connection.get_peer_certificate(as_cryptography=True)
            if own is None:
                return []
            others = self._connection.get_peer_cert_chain(as_cryptography=True) or []
        except ValueError as error:
            raise TlsFailedError(f"malformed certificate: {error}", _ALERT) from None
        # OpenSSL counts the peer's own among them for a client only
        chain = [own, *others] if self._server else others
        return [one.public_bytes(Encoding.DER) for one in chain]

    def refuse(self, flight: bytes) -> bytes:
        """What to say in place of ``flight`` to a peer that is not trusted.

        Where our flight would have been the first that is encrypted, an alert may still be in clear. A server is beyond
        that when TLS 1.3 shows it a certificate. OpenSSL lets nobody else make a fatal alert, but makes one if it hears
        what it does not understand. To close instead would look like an end (to wpa_supplicant 2.10).
        """
        if not (self._server and self.is_tls13):
            return _ALERT
        self._connection.bio_write(_NONSENSE)
        with suppress(self._ssl.Error):
            self._connection.recv(1)
        # records are numbered: those before must not be missing
        return flight + self._written()

    def msk(self) -> bytes:
        """The Master Session Key (RFC 5216 section 2.3, RFC 9190 section 2.3)."""
        label, context = b"client EAP encryption", None
        if self.is_tls13:
            label, context = b"EXPORTER_EAP_TLS_Key_Material", bytes((EapType.TLS,))
        return self._connection.export_keying_material(label, _EXPORTED, context)[:MSK_LEN]

    def _written(self) -> bytes:
        parts = []
        with suppress(self._ssl.WantReadError):
            while True:
                parts.append(self._connection.bio_read(_READ_LEN))
        return b"".join(parts)


def _make_context(identity: TlsIdentity | None, authorities: Sequence[bytes], newest: int) -> SSL.Context:
    from OpenSSL import SSL

    context = SSL.Context(SSL.TLS_METHOD)
    context.set_min_proto_version(TLS_1_2)
    context.set_max_proto_version(newest)
    context.set_cipher_list(_CIPHERS)
    context.set_options(SSL.OP_NO_RENEGOTIATION | SSL.OP_NO_COMPRESSION | SSL.OP_NO_TICKET)
    # strongSwan's server of TLS 1.2 knows nothing of RFC 5746. Who puts our handshake behind one of his own, which that
    # RFC is against, does not come to know the key by that, and without it AUTH does not hold
    context.set_options(_LEGACY_SERVER_CONNECT)
    # a server of TLS 1.3 sends tickets nevertheless, and knows none of them again
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, _go_on)
    if identity is not None:
        context.use_certificate(load_der_x509_certificate(identity.certificate))
        for one in identity.intermediates:
            context.add_extra_chain_cert(load_der_x509_certificate(one))
        context.use_privatekey(identity.private_key)
        context.check_privatekey()
    for name in authorities:
        context.add_client_ca(load_der_x509_certificate(_certificate_of(name)))
    return context


def _go_on(*_: object) -> bool:
    return True


def _certificate_of(name: bytes) -> bytes:
    """DER of something that has this subject: names of authorities are taken from certificates alone. ValueError."""
    algorithm = der.emit(der.SEQUENCE, der.emit_oid("1.3.101.112"))
    time = der.emit(der.UTC_TIME, b"260101000000Z")
    key = der.emit(der.SEQUENCE, algorithm, der.emit(der.BIT_STRING, bytes(33)))
    validity = der.emit(der.SEQUENCE, time, time)
    tbs = der.emit(der.SEQUENCE, der.emit_int(1), algorithm, name, validity, name, key)
    return der.emit(der.SEQUENCE, tbs, algorithm, der.emit(der.BIT_STRING, bytes(65)))


def _reason(error: Exception) -> str:
    """What OpenSSL says, in its own words and nobody else's."""
    entries = error.args[0] if error.args and isinstance(error.args[0], list) else []
    said = [str(entry[2]) for entry in entries if len(entry) == 3 and entry[2]]
    return "; ".join(said) or (str(error) if isinstance(error, ValueError | TypeError) else "") or "handshake failed"
