"""Whom EAP-TLS trusts, and what it shows: the connection's rules for certificates in IKE, applied to those in TLS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ipsec.crypto.auth import AuthenticationError
from ipsec.crypto.chain import CertificateError
from ipsec.crypto.identity import Identity, IdentityPattern
from ipsec.crypto.x509 import Certificate
from ipsec.ike.config import Connection, LocalAuth, RemoteAuth
from ipsec.ike.credentials import PrivateKey
from ipsec.ike.eap.tls import TlsIdentity, Verify
from ipsec.ike.proof import check_status, read_certificates, unreadable_is_untrusted
from ipsec.ike.sa import IkeSa

#: octets of names that a CertificateRequest may have; with more it says nothing of them
AUTHORITIES_MAX = 4096


def verify_client(sa: IkeSa, connection: Connection, identity: Identity) -> Verify:
    """For a server: the certificate has to be that of ``identity``, which the peer has in EAP, else in IKE.

    ``identity`` itself is held against ``remote.eap_id``, if there is one.
    """
    remote = connection.remote

    def whom(end: Certificate) -> Identity:
        if remote.eap_id is not None and not remote.eap_id.matches(identity):
            raise AuthenticationError(f"the peer is {identity} in EAP, we want {remote.eap_id}")
        return identity

    return _judge(sa, remote, whom)


def verify_server(sa: IkeSa, connection: Connection, responder: Identity) -> Verify:
    """For a client: the certificate has to be that of ``local.aaa_id``, or without that of the responder.

    Whoever sets ``aaa_id`` has the EAP server elsewhere: certificates and keys that ``remote`` names are the
    responder's, and do not count there. All else that ``remote`` says does.
    """
    aaa_id = connection.local.aaa_id
    if aaa_id is None:
        return _judge(sa, connection.remote, lambda end: responder)
    wanted = aaa_id
    return _judge(sa, replace(connection.remote, certs=(), pubkeys=()), lambda end: _named(end, wanted))


def _named(end: Certificate, wanted: IdentityPattern) -> Identity:
    """An identity of the certificate that is wanted. CertificateError, ParseError."""
    if wanted.exact is not None:
        return wanted.exact
    for identity in end.identities:
        if wanted.matches(identity):
            return identity
    raise CertificateError(f"the certificate of {end.subject} is not one of {wanted} (aaa_id)")


def _judge(sa: IkeSa, remote: RemoteAuth, whom: Callable[[Certificate], Identity]) -> Verify:
    def verify(received: list[bytes]) -> None:
        end, *others = read_certificates(received)
        with unreadable_is_untrusted():
            credentials, wall = sa.core.credentials, sa.core.host.wall()
            chain = credentials.verify_peer(end, others, remote, whom(end), wall)
            check_status(sa, remote, chain)

    return verify


def tls_identity(sa: IkeSa, local: LocalAuth, identity: Identity | None) -> TlsIdentity | None:
    """The certificate to show as ``identity`` and the key of it, as it is chosen for IKE; None if there is none.

    AuthenticationError if one is malformed.
    """
    wall = sa.core.host.wall()

    def serves(certificate: Certificate, key: PrivateKey) -> bool:
        return certificate.not_before <= wall <= certificate.not_after

    credentials = sa.core.credentials
    with unreadable_is_untrusted():
        found = credentials.local_certificate(replace(local, id=identity), serves=serves)
    if found is None:
        return None
    certificate, above = found
    key = credentials.private_key_for(certificate)
    assert key is not None
    return TlsIdentity(certificate.der, tuple(one.der for one in above), key.key)


def tls_authorities(sa: IkeSa, remote: RemoteAuth) -> tuple[bytes, ...]:
    """Names of the authorities that a client's certificate may come from, for ``TlsServer``."""
    wanted = remote.cacerts or sa.core.credentials.anchors
    names = tuple(dict.fromkeys(one.subject.data for one in wanted if one.subject_key))
    return names if sum(map(len, names)) <= AUTHORITIES_MAX else ()
