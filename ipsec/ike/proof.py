"""The AUTH payload: ours made from our key, the peer's held against what the connection asks for (RFC 7296 2.15)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import NamedTuple

from ipsec.crypto.auth import (
    AuthenticationError,
    PublicKey,
    can_sign,
    is_psk_auth,
    psk_auth,
    sign,
    signed_octets,
    verify,
)
from ipsec.crypto.chain import CertificateError, Chain, UnwantedError, out_of_force
from ipsec.crypto.identity import Identity
from ipsec.crypto.revocation import RevokedError, Status, check_revocation, revocation_sources
from ipsec.crypto.x509 import Certificate, parse_certificate
from ipsec.errors import ParseError
from ipsec.ike.config import AuthClass, Connection, LocalAuth, RemoteAuth, SendCert
from ipsec.ike.credentials import Credentials, PrivateKey, vouches
from ipsec.ike.failure import bounded
from ipsec.ike.keymat import IkeKeys
from ipsec.ike.sa import IkeSa
from ipsec.ike.status import StatusUnknownError
from ipsec.wire.iana import AuthMethod, CertEncoding
from ipsec.wire.payloads import AuthPayload, CertPayload, CertReqPayload, Payload

#: what a peer may send; a longer chain is verified no further anyway
CERTIFICATES_MAX = 10


#: with these the peer has none to show in CERT
_NO_CERTIFICATE = (AuthClass.PSK, AuthClass.EAP)


class OtherMethodError(AuthenticationError):
    """The peer is to prove who it is in another way; nothing was looked at."""


class Proof(NamedTuple):
    """Our AUTH payload, and the CERT payloads that go with it."""

    payload: AuthPayload
    certificates: list[CertPayload]


def certificate_requests(connections: Iterable[Connection], credentials: Credentials) -> list[Payload]:
    """CERTREQ for the authorities that the peer's certificate may come from, if we want one and may ask. The peer's
    connection may be any of these."""
    remotes = (remote for one in connections if one.send_certreq for remote in one.all_remote)
    asking = (remote for remote in remotes if remote.method not in _NO_CERTIFICATE)
    data = b"".join(dict.fromkeys(map(credentials.certreq_data, asking)))
    hashes = dict.fromkeys(data[at : at + 20] for at in range(0, len(data), 20))
    return [CertReqPayload(CertEncoding.X509_SIGNATURE, b"".join(hashes))] if hashes else []


def auth_octets(sa: IkeSa, body: bytes, *, of_initiator: bool, keys: IkeKeys | None = None) -> bytes:
    """What the AUTH payload of one side covers (section 2.15), by the IKE_SA's keys or by these; ``body`` is that of
    its IDi or IDr."""
    progress, prf, keys = sa.init, sa.prf, keys or sa.keys
    assert progress is not None
    assert prf is not None
    assert keys is not None
    # RFC 9242 section 3.3.2: IKE_INTERMEDIATE as well
    between = progress.further.int_auth()
    if of_initiator:
        return signed_octets(progress.message_1, progress.nonce_r, prf(keys.sk_pi, body)) + between
    return signed_octets(progress.message_2, progress.nonce_i, prf(keys.sk_pr, body)) + between


# -- ours


def local_identity(sa: IkeSa, connection: Connection) -> Identity:
    """Who we are: as configured, else whom the initiator wants, else our address, as charon has it.

    Where no certificate of ours vouches for the address we are the subject of the one that serves the peer.
    """
    local = connection.local
    if local.id is not None:
        return local.id
    if sa.auth is not None and sa.auth.asked is not None:
        return sa.auth.asked
    address = Identity.of_address(sa.path.local)
    if local.method is AuthClass.PSK or local.pubkeys:
        return address
    with suppress(ParseError):
        found = _our_certificate(sa, local, address)
        if found is not None and not vouches(found[0], address):
            return found[0].subject
    return address


def _our_certificate(
    sa: IkeSa, local: LocalAuth, identity: Identity
) -> tuple[Certificate, tuple[Certificate, ...]] | None:
    """The certificate to show and those above it, as far as the peer has said what it can do with. ParseError."""
    wall = sa.core.host.wall()

    def serves(certificate: Certificate, key: PrivateKey) -> bool:
        in_force = certificate.not_before <= wall <= certificate.not_after
        return in_force and can_sign(key.key, peer_hashes=sa.peer_hashes, constraints=local.constraints)

    certreqs = sa.auth.certreqs if sa.auth is not None else None
    return sa.core.credentials.local_certificate(replace(local, id=identity), certreqs or frozenset(), serves)


def make_proof(
    sa: IkeSa, connection: Connection, identity: Identity, octets: bytes, certreqs: frozenset[bytes] | None
) -> Proof:
    """Prove that we are ``identity``. AuthenticationError if we cannot."""
    local, credentials = connection.local, sa.core.credentials
    if local.method is AuthClass.PSK:
        secret = _our_psk(sa, connection, identity)
        assert sa.prf is not None
        return Proof(AuthPayload(AuthMethod.SHARED_KEY, psk_auth(sa.prf, secret, octets)), [])
    if local.pubkeys:
        spki = local.pubkeys[0]
        certificates = [CertPayload(CertEncoding.RAW_PUBLIC_KEY, spki)]
        what: Certificate | bytes = spki
    else:
        try:
            found = _our_certificate(sa, local, identity)
        except ParseError as error:
            raise AuthenticationError(f"our certificate for {identity} is malformed: {error}") from None
        if found is None:
            raise AuthenticationError(f"no certificate with a private key for {identity}")
        what, above = found
        certificates = [CertPayload(CertEncoding.X509_SIGNATURE, one.der) for one in (what, *above)]
    key = credentials.private_key_for(what)
    if key is None:
        raise AuthenticationError(f"no private key for {identity}")
    method, data = sign(key.key, octets, peer_hashes=sa.peer_hashes, constraints=local.constraints)
    send = connection.send_cert
    if send is SendCert.NEVER or (send is SendCert.IFASKED and certreqs is None):
        certificates = []
    return Proof(AuthPayload(method, data), certificates)


def own_fault(sa: IkeSa) -> str:
    """What a peer that refuses us may mind, to go on after that: our certificates, if by our clock none is in force."""
    wall = sa.core.host.wall()
    whys = [out_of_force(certificate, wall) for local in sa.connection.all_local for certificate in local.certs]
    return f"; our certificate {whys[0]}" if whys and all(whys) else ""


def _our_psk(sa: IkeSa, connection: Connection, identity: Identity) -> bytes:
    """The pre-shared key to show: as responder that which the peer has shown, else the best. AuthenticationError."""
    credentials = sa.core.credentials
    # an initiator in another round is somebody else, who may have another key
    if sa.auth is not None and sa.auth.psk is not None and not sa.initiator:
        return sa.auth.psk
    claimed = sa.auth.claimed if sa.auth is not None else None
    peer = sa.peer_id or claimed or connection.remote.id.exact
    if peer is not None:
        secret = next(iter(_psks(sa, connection, identity, peer)), None)
    else:
        # who the peer is shows only when it answers: what is for its address, or else for us
        secret = credentials.find_psk(identity, Identity.of_address(sa.path.remote))
        secret = secret if secret is not None else credentials.find_psk(identity, None)
    if secret is None:
        whom = peer if peer is not None else connection.remote.id
        raise AuthenticationError(f"no pre-shared key for {identity} and {whom} (section secrets)")
    return secret


# -- the peer's


def verify_proof(
    sa: IkeSa,
    connection: Connection,
    asked: Identity | None,
    peer_id: Identity,
    proof: AuthPayload,
    certificates: Sequence[CertPayload],
    octets: bytes,
) -> None:
    """The peer is ``peer_id``, as the connection wants it proved; AuthenticationError says what is missing.

    ``asked``: who we are for the peer, None: whoever the connection says. A key that is shared depends on that.
    StatusUnknownError if everything else is right and the status of its certificates is worth asking for.
    """
    wanted = connection.remote.method
    if wanted is AuthClass.EAP:
        raise OtherMethodError("the peer sends AUTH at once, and is to use EAP (remote.auth)")
    if proof.method == AuthMethod.SHARED_KEY:
        if wanted is AuthClass.PUBKEY:
            raise OtherMethodError("the peer uses a pre-shared key, and is to use a public key (remote.auth)")
        local_id = asked or local_identity(sa, connection)
        _verify_psk(sa, _psks(sa, connection, local_id, peer_id), local_id, peer_id, proof, octets)
        return
    if wanted is AuthClass.PSK:
        raise OtherMethodError("the peer uses a public key, and is to use a pre-shared key (remote.auth)")
    received = read_certificates([p.data for p in certificates if p.encoding == CertEncoding.X509_SIGNATURE])
    raw = next((p.data for p in certificates if p.encoding == CertEncoding.RAW_PUBLIC_KEY), None)
    reasons: list[Exception] = []
    for end, key in _keys(sa, connection, peer_id, received, raw, reasons):
        try:
            with unreadable_is_untrusted():
                chain = _trust(sa, connection, peer_id, end, received)
            verify(key, proof.method, proof.data, octets, connection.remote.constraints)
        except AuthenticationError as error:
            reasons.append(error)
            continue
        if chain is not None:
            with unreadable_is_untrusted():
                check_status(sa, connection.remote, chain)
        return
    if not reasons:
        sent = "" if received or raw is not None else "it sent none, and "
        raise CertificateError(f"no certificate or public key of {peer_id}: {sent}none is configured")
    text = "; ".join(dict.fromkeys(map(str, reasons)))
    if all(isinstance(reason, UnwantedError) for reason in reasons):
        raise UnwantedError(text)
    if any(isinstance(reason, CertificateError) for reason in reasons):
        raise CertificateError(text)
    raise AuthenticationError(text)


@contextmanager
def unreadable_is_untrusted() -> Iterator[None]:
    """Extensions are read when they are needed. One that is malformed makes a certificate that is not trusted, and no
    message with a syntax error: what a peer hears must not tell how far its proof was looked at (section 2.21.2)."""
    try:
        yield
    except ParseError as error:
        raise CertificateError(f"malformed certificate: {error}") from None


def describe_received(payloads: Sequence[CertPayload]) -> tuple[str, ...]:
    """Certificates that a peer has sent, with issuer and validity; nothing of them has to be true."""
    found = []
    for payload in payloads[:CERTIFICATES_MAX]:
        if payload.encoding == CertEncoding.X509_SIGNATURE:
            try:
                found.append(bounded(parse_certificate(payload.data).summary))
            except ParseError as error:
                found.append(bounded(f"malformed: {error}"))
    return tuple(found)


def _psks(sa: IkeSa, connection: Connection, local_id: Identity, peer_id: Identity) -> tuple[bytes, ...]:
    """The keys between us and a peer, who may have chosen who we are."""
    chosen = connection.local.id is None and sa.auth is not None and sa.auth.asked is not None
    ours = not chosen or local_id == Identity.of_address(sa.path.local)
    return sa.core.credentials.find_psks(local_id, peer_id, ours=ours)


def _verify_psk(
    sa: IkeSa, secrets: tuple[bytes, ...], local_id: Identity, peer_id: Identity, proof: AuthPayload, octets: bytes
) -> None:
    """AUTH is made with one of our keys for the two: there are several while they are being changed."""
    assert sa.prf is not None
    # OB-62: an unknown identity, and one with few keys, take as long as a wrong key
    others = sa.core.credentials.psk_tries - len(secrets)
    tried = [*secrets, *[sa.core.rng(32)] * others] if others > 0 else list(secrets)
    right = [is_psk_auth(sa.prf, secret, proof.data, octets) for secret in tried][: len(secrets)]
    if not secrets:
        raise AuthenticationError(f"no pre-shared key for {local_id} and {peer_id} (section secrets)")
    if not any(right):
        several = f": none of {len(secrets)} is the peer's" if len(secrets) > 1 else ""
        raise AuthenticationError(f"the pre-shared keys differ{several}")
    if sa.auth is not None:
        sa.auth.psk = secrets[right.index(True)]


def read_certificates(received: Sequence[bytes]) -> list[Certificate]:
    """Certificates that the peer sent in DER. AuthenticationError if one is malformed or there are too many."""
    if len(received) > CERTIFICATES_MAX:
        raise AuthenticationError(f"{len(received)} certificates, {CERTIFICATES_MAX} are enough for anyone")
    try:
        return [parse_certificate(data) for data in received]
    except ParseError as error:
        raise AuthenticationError(f"malformed certificate: {error}") from None


def _keys(
    sa: IkeSa,
    connection: Connection,
    peer_id: Identity,
    received: list[Certificate],
    raw: bytes | None,
    reasons: list[Exception],
) -> list[tuple[Certificate | None, PublicKey]]:
    """Public keys that may be the peer's, each with its certificate or None for a raw one."""
    credentials, remote = sa.core.credentials, connection.remote
    found: list[tuple[Certificate | None, PublicKey]] = []
    if received:
        # the first one is the peer's own (section 3.6)
        ends = [received[0]]
    else:
        ends = [*remote.certs, *(one for one in credentials.certificates if vouches(one, peer_id))]
    for end in dict.fromkeys(ends):
        try:
            found.append((end, end.public_key))
        except (AuthenticationError, ParseError) as error:
            reasons.append(error)
    for spki in remote.pubkeys if raw is None else (raw,):
        try:
            found.append((None, credentials.peer_key(spki, remote, peer_id)))
        except AuthenticationError as error:
            reasons.append(error)
    return found


def _trust(
    sa: IkeSa, connection: Connection, peer_id: Identity, end: Certificate | None, received: list[Certificate]
) -> Chain | None:
    if end is None:
        return None
    credentials, wall = sa.core.credentials, sa.core.host.wall()
    signatures = sa.auth.signatures if sa.auth is not None else None
    return credentials.verify_peer(end, received[1:], connection.remote, peer_id, wall, signatures)


def check_status(sa: IkeSa, remote: RemoteAuth, chain: Chain) -> None:
    """Revocation, last: only what is otherwise trusted may make us ask anybody anything (CVE-2022-40617).

    CertificateError, ParseError; StatusUnknownError if there is somebody worth asking first.
    """
    core = sa.core
    credentials, cache, wall = core.credentials, core.status, core.host.wall()
    extra, responders = credentials.revocation_uris, credentials.ocsp_signers
    try:
        known = check_revocation(
            chain,
            [*credentials.crls, *cache.crls],
            cache.responses,
            remote.revocation,
            wall,
            constraints=remote.constraints,
            extra=extra,
            responders=responders,
        )
        unknown = [source for source, status in known if status is Status.UNKNOWN]
    except RevokedError as error:
        if error.again is None or not cache.worth_asking(error.again, wall):
            raise
        unknown = [error.again]
    except CertificateError:
        unknown = revocation_sources(chain, extra, remote.constraints, responders)
        if not any(cache.worth_asking(source, wall) for source in unknown):
            raise
    worth = tuple(source for source in unknown if cache.worth_asking(source, wall))
    if worth:
        raise StatusUnknownError(chain, worth)
