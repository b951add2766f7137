"""What IKEv2 authenticates with: shared secrets, private keys, certificates, trust anchors; finding the right one.

A ``Credentials`` is a value: to change what is loaded make another one. It keeps indexes, so that a lookup costs the
same for one secret and for many thousands.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ipsec.crypto.auth import PrivateKeyObject, PublicKey, load_spki
from ipsec.crypto.chain import CertificateError, Chain, Signatures, UnwantedError, verify_chain
from ipsec.crypto.identity import (
    MATCH_ANY,
    MATCH_NONE,
    MATCH_PERFECT,
    Identity,
    IdentityPattern,
    are_one,
    parse_identity,
)
from ipsec.crypto.revocation import Crl
from ipsec.crypto.x509 import Certificate, key_ids
from ipsec.errors import ConfigError, ParseError
from ipsec.ike.config import AuthClass, LocalAuth, RemoteAuth
from ipsec.wire.iana import IdType

PPK_ID_MAX = 1023
"octets"
_TEXT_MAX = 255
ISSUERS_MAX = 9
"certificates above our own that are looked at and sent"
PSKS_MAX = 8
"pre-shared keys that are tried for one pair of identities"


@dataclass(frozen=True)
class SharedSecret:
    """A PSK and whose it is; without owners it is anybody's. ``name`` is what the configuration calls it."""

    secret: bytes = field(repr=False)
    owners: tuple[IdentityPattern, ...] = ()
    name: str = ""

    def match(self, identity: Identity | None) -> int:
        """How exactly ``identity`` is one of the owners, 0 if it is none."""
        if not self.owners:
            return MATCH_ANY
        if identity is None:
            return max(MATCH_ANY if owner.any else MATCH_NONE for owner in self.owners)
        return max(_match_owner(owner, identity) for owner in self.owners)

    def names_only(self, identity: Identity) -> bool:
        """Whether ``identity`` is every owner that it has. Patterns name others too."""
        return all(owner.exact is not None and are_one(owner.exact, identity) for owner in self.owners)


@dataclass(frozen=True)
class EapSecret(SharedSecret):
    """What an EAP method shows or is shown: a password, or its NT hash (RFC 2759 section 8.3)."""

    is_nt_hash: bool = False


def _match_owner(owner: IdentityPattern, identity: Identity) -> int:
    if owner.exact is not None:
        return MATCH_PERFECT if are_one(owner.exact, identity) else MATCH_NONE
    return owner.matches(identity)


@dataclass(frozen=True)
class Ppk:
    """A postquantum preshared key (RFC 8784) and the PPK_IDs that mean it; without any, every one does."""

    secret: bytes = field(repr=False)
    ids: tuple[IdentityPattern, ...] = ()
    name: str = ""


def matches_ppk(pattern: IdentityPattern, ppk_id: bytes) -> bool:
    """Whether the octets of a PPK_ID, which has no type, are what ``pattern`` means: the very same, if it means one."""
    if pattern.exact is not None:
        return pattern.exact.data == ppk_id
    return pattern.matches(identity_of_octets(ppk_id)) > MATCH_NONE


@lru_cache(maxsize=16)
def identity_of_octets(name: bytes) -> Identity:
    """A PPK_ID, or what a peer calls itself for EAP, as charon reads it: a text may be an identity of any type.

    But a distinguished name, which takes milliseconds to read, and nobody has authenticated himself yet. Names are in
    UTF-8 (RFC 7542 section 2.1), but older clients have character sets of their own.
    """
    if len(name) > _TEXT_MAX or b"=" in name:
        return Identity(IdType.KEY_ID, name)
    try:
        return parse_identity(name.decode("utf-8"))
    except UnicodeDecodeError:
        kind = IdType.RFC822_ADDR if b"@" in name else IdType.KEY_ID if b":" in name else IdType.FQDN
        return Identity(kind, name)
    except ConfigError:
        return Identity(IdType.KEY_ID, name)


class PrivateKey:
    """A private key and the DER SubjectPublicKeyInfo of its public half, by which it is found."""

    __slots__ = ("key", "name", "spki")

    def __init__(self, key: PrivateKeyObject, name: str = "") -> None:
        self.key = key
        self.spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        self.name = name

    def __repr__(self) -> str:
        return f"<PrivateKey {type(self.key).__name__} {self.name}>"


@dataclass(frozen=True)
class Authority:
    """A trust anchor with what ``authorities { }`` says of it."""

    certificate: Certificate
    crl_uris: tuple[str, ...] = ()
    ocsp_uris: tuple[str, ...] = ()
    name: str = ""


def vouches(certificate: Certificate, identity: Identity) -> bool:
    """Whether a certificate names ``identity``; one that cannot be read does not."""
    try:
        return certificate.has_identity(identity)
    except ParseError:
        return False


class Credentials:
    """Everything that is loaded. ``certificates`` are our own and those of peers that are trusted as they are."""

    def __init__(
        self,
        *,
        secrets: Iterable[SharedSecret] = (),
        private_keys: Iterable[PrivateKey] = (),
        certificates: Iterable[Certificate] = (),
        authorities: Iterable[Authority] = (),
        crls: Iterable[Crl] = (),
        ppks: Iterable[Ppk] = (),
        ocsp_signers: Iterable[Certificate] = (),
        eap_secrets: Iterable[EapSecret] = (),
    ) -> None:
        self.secrets = tuple(secrets)
        self.eap_secrets = tuple(eap_secrets)
        self._eap_of: dict[Hashable, list[tuple[int, EapSecret]]] = {}
        "with their places in the order of loading, by how an owner is spelled"
        self._loose_eap: list[tuple[int, EapSecret]] = []
        for place, one in enumerate(self.eap_secrets):
            exact = [owner.exact.spelling for owner in one.owners if owner.exact is not None]
            for spelling in dict.fromkeys(exact):
                self._eap_of.setdefault(spelling, []).append((place, one))
            if len(exact) != len(one.owners) or not exact:
                self._loose_eap.append((place, one))
        self.ppks = tuple(ppks)
        self._ppk_of: dict[bytes, Ppk] = {}
        for ppk in self.ppks:
            for pattern in ppk.ids:
                if pattern.exact is not None:
                    self._ppk_of.setdefault(pattern.exact.data, ppk)
        self._loose_ppks = [ppk for ppk in self.ppks if any(one.exact is None for one in ppk.ids) or not ppk.ids]
        self.private_keys = tuple(private_keys)
        self.certificates = tuple(dict.fromkeys(certificates))
        self.authorities = tuple(authorities)
        self.crls = tuple(crls)
        self.ocsp_signers = tuple(dict.fromkeys(ocsp_signers))
        "trusted to sign OCSP responses about anybody's certificates, and for nothing else"
        self.anchors = tuple(dict.fromkeys(authority.certificate for authority in self.authorities))
        self._trusted = frozenset(self.certificates)
        self._secrets_of: dict[Hashable, list[tuple[int, SharedSecret]]] = {}
        "with their places in the order of loading, by how an owner is spelled"
        self._alone_of: dict[Hashable, list[tuple[int, SharedSecret]]] = {}
        "the last that have this one owner"
        self._loose_secrets: list[tuple[int, SharedSecret]] = []
        "those that have an owner which is no single identity, or none"
        for place, secret in enumerate(self.secrets):
            self._add_secret(place, secret)
        self.psk_tries = self._count_tries()
        "at least as many as any pair of identities has: so many are tried for every pair, see ``_verify_psk``"
        self._keys = {key.spki: key for key in self.private_keys}
        self._by_subject: dict[object, list[Certificate]] = {}
        for certificate in (*self.certificates, *self.anchors):
            self._by_subject.setdefault(certificate.subject_key, []).append(certificate)
        self._issuers = {one: self._found_issuers(one) for one in self.certificates if one.spki in self._keys}
        "of our own; those of peers are not kept, or strangers would fill the memory (CVE-2021-41991)"
        self._certreq = b"".join(anchor.spki_sha1 for anchor in self.anchors)
        self.revocation_uris: dict[bytes, tuple[tuple[str, ...], tuple[str, ...]]] = {}
        "configured CRL and OCSP URIs by the DER of the authority, as ``ipsec.crypto.revocation`` takes them"
        for authority in self.authorities:
            if authority.crl_uris or authority.ocsp_uris:
                self.revocation_uris[authority.certificate.der] = (authority.crl_uris, authority.ocsp_uris)

    def _add_secret(self, place: int, secret: SharedSecret) -> None:
        exact = [owner.exact.spelling for owner in secret.owners if owner.exact is not None]
        if len(exact) == len(secret.owners) == 1:
            alone = self._alone_of.setdefault(exact[0], [])
            alone.append((place, secret))
            del alone[:-PSKS_MAX]
        for spelling in dict.fromkeys(exact):
            self._secrets_of.setdefault(spelling, []).append((place, secret))
        if len(exact) != len(secret.owners) or not exact:
            self._loose_secrets.append((place, secret))

    def _count_tries(self) -> int:
        of_one, alone = ((len(found) for found in by.values()) for by in (self._secrets_of, self._alone_of))
        most = max(of_one, default=0) + max(alone, default=0) + len(self._loose_secrets)
        return min(max(most, 1), PSKS_MAX)

    def find_psk(self, local: Identity, remote: Identity | None) -> bytes | None:
        """The first of ``find_psks``: the one to show; None if there is none."""
        return next(iter(self.find_psks(local, remote)), None)

    def find_psks(self, local: Identity, remote: Identity | None, *, ours: bool = True) -> tuple[bytes, ...]:
        """The shared keys between two identities, best first, at most PSKS_MAX: the best one and what is as good.

        As in charon the peer's identity decides: one that names it is better than one for anybody, and that better than
        one that names us alone. Among those that is better which names us as well. Those that are worse do not count:
        a group's key, which many have, must not pass for the key that two have of their own. What is left is in the
        order of how exactly they name us; of equals the one that was loaded last comes first. One that names us and
        others serves nobody but these; nor does one that names ``local`` alone, if that is not ``ours`` but what the
        peer calls us: it may be the peer's own.
        """
        whose = self._secrets_of.get((local if remote is None else remote).spelling, [])
        candidates = [*whose, *self._loose_secrets]
        if remote is not None:
            candidates += self._alone_of.get(local.spelling, [])
        found: list[tuple[tuple[int, bool, int, int], bytes]] = []
        for place, secret in candidates:
            us, theirs = secret.match(local), secret.match(remote)
            if us == theirs == MATCH_NONE:
                continue
            if theirs == MATCH_NONE and remote is not None and not (ours and secret.names_only(local)):
                # it is somebody else's: who has it could show it under any identity (RFC 4301 section 4.4.3)
                continue
            found.append(((theirs, us > MATCH_ANY, us, place), secret.secret))
        found.sort(reverse=True)
        as_good = (secret for score, secret in found if score[:2] == found[0][0][:2])
        return tuple(dict.fromkeys(as_good))[:PSKS_MAX]

    def find_eap(
        self, user: Identity, server: Identity | None = None, *, nt_hashes: bool = True
    ) -> EapSecret | None:
        """The EAP secret of a user: the one that names him most exactly, then the server, then the last one loaded.

        One that names others, be it the server alone, is not his: who has it could pass for anybody. ``nt_hashes``:
        whether the method can do with an NT hash; without, those are passed over.
        """
        best: tuple[tuple[int, int, int], EapSecret] | None = None
        for place, secret in (*self._eap_of.get(user.spelling, ()), *self._loose_eap):
            users = secret.match(user)
            if users != MATCH_NONE and (nt_hashes or not secret.is_nt_hash):
                score = users, secret.match(server), place
                if best is None or score > best[0]:
                    best = score, secret
        return best[1] if best is not None else None

    def find_ppk(self, ppk_id: bytes) -> Ppk | None:
        """The postquantum preshared key that ``ppk_id`` means: one that names it before a pattern, that before all."""
        found = self._ppk_of.get(ppk_id)
        if found is None:
            loose = self._loose_ppks
            found = next((ppk for ppk in loose if any(matches_ppk(one, ppk_id) for one in ppk.ids)), None)
            found = found or next((ppk for ppk in loose if not ppk.ids), None)
        return found

    def private_key_for(self, certificate_or_spki: Certificate | bytes) -> PrivateKey | None:
        """The private key of a certificate or of a DER SubjectPublicKeyInfo."""
        spki = certificate_or_spki if isinstance(certificate_or_spki, bytes) else certificate_or_spki.spki
        return self._keys.get(spki)

    def can_be(self, auth: LocalAuth, identity: Identity) -> bool:
        """Whether we may be whom the peer asks for, where the configuration does not say who we are. A key alone does
        not say whose it is."""
        if auth.method is AuthClass.PSK or auth.pubkeys:
            return True
        return any(one.spki in self._keys and vouches(one, identity) for one in auth.certs or self.certificates)

    def local_certificate(
        self,
        auth: LocalAuth,
        certreqs: Collection[bytes] = frozenset(),
        serves: Callable[[Certificate, PrivateKey], bool] = lambda certificate, key: True,
    ) -> tuple[Certificate, tuple[Certificate, ...]] | None:
        """The certificate to authenticate with and the intermediates to send with it, or None. ParseError.

        Candidates are those of the configuration, else all that vouch for our identity; they need their private key.
        The first that a CA named in ``certreqs`` (SHA-1 of its SubjectPublicKeyInfo) stands above, else the first; one
        that ``serves`` refuses only if it refuses all.
        """
        candidates = auth.certs or self._certificates_of(auth.id)
        candidates = tuple(candidate for candidate in candidates if candidate.spki in self._keys)
        if len(candidates) > 1:
            identity = auth.id
            if identity is not None:
                candidates = tuple(one for one in candidates if vouches(one, identity)) or candidates
            candidates = tuple(one for one in candidates if serves(one, self._keys[one.spki])) or candidates
        if not candidates:
            return None
        chosen = candidates[0]
        if certreqs and len(candidates) > 1:
            chosen = next((one for one in candidates if self._is_asked_for(one, certreqs)), chosen)
        return chosen, tuple(issuer for issuer in self.issuers_of(chosen) if not issuer.self_issued)

    def _certificates_of(self, identity: Identity | None) -> tuple[Certificate, ...]:
        if identity is None:
            return ()
        return tuple(one for one in self.certificates if one.spki in self._keys and vouches(one, identity))

    def _is_asked_for(self, certificate: Certificate, certreqs: Collection[bytes]) -> bool:
        return any(issuer.spki_sha1 in certreqs for issuer in self.issuers_of(certificate))

    def issuers_of(self, certificate: Certificate) -> tuple[Certificate, ...]:
        """The loaded certificates above one, its issuer first. Found by name and key id, not verified. ParseError."""
        known = self._issuers.get(certificate)
        return self._walk_up(certificate) if known is None else known

    def _found_issuers(self, certificate: Certificate) -> tuple[Certificate, ...] | None:
        try:
            return self._walk_up(certificate)
        except ParseError:
            # whoever uses it is told
            return None

    def _walk_up(self, certificate: Certificate) -> tuple[Certificate, ...]:
        found: list[Certificate] = []
        current = certificate
        while len(found) < ISSUERS_MAX and not current.self_issued:
            issuers = [one for one in self._by_subject.get(current.issuer_key, []) if one not in found]
            if not issuers:
                break
            agreeing = [one for one in issuers if current.authority_key_id in (None, one.key_id)]
            current = (agreeing or issuers)[0]
            found.append(current)
        return tuple(found)

    def certreq_data(self, remote: RemoteAuth | None = None) -> bytes:
        """Contents of our CERTREQ (RFC 7296 section 3.7): the authorities that ``remote`` names, else all loaded."""
        if remote is not None and remote.cacerts:
            return b"".join(certificate.spki_sha1 for certificate in remote.cacerts)
        return self._certreq

    def verify_peer(
        self,
        end: Certificate,
        received: Iterable[Certificate],
        remote: RemoteAuth,
        identity: Identity,
        wall: datetime,
        signatures: Signatures | None = None,
    ) -> Chain:
        """The chain from the peer's certificate to what we trust, held against all that ``remote`` asks for but
        revocation. CertificateError, also if the certificate does not vouch for ``identity`` (RFC 4945 section 3.1).

        AUTH is to be verified with the key of ``chain.end`` and ``remote.constraints``.
        """
        try:
            if not end.has_identity(identity):
                raise CertificateError(f"the certificate of {end.subject} is not one of {identity}")
        except ParseError as error:
            raise CertificateError(str(error)) from None
        # who names a key for the peer does not mean others that an authority says are the peer's
        if (remote.certs or remote.pubkeys) and end not in remote.certs:
            raise CertificateError(f"the certificate of {end.subject} is not one of those configured")
        trusted = (end,) if end in remote.certs or end in self._trusted else ()

        def accept(chain: Chain) -> None:
            _check_authorities(chain, remote)

        return verify_chain(
            end,
            received,
            (*self.anchors, *remote.cacerts, *trusted),
            wall=wall,
            constraints=remote.constraints,
            required_policies=remote.cert_policy,
            accept=accept if remote.cacerts or remote.ca_id else None,
            loaded=self._by_subject,
            signatures=signatures,
        )

    def peer_key(self, spki: bytes, remote: RemoteAuth, identity: Identity) -> PublicKey:
        """The raw public key (RFC 7670) of a peer, if the configuration trusts it. AuthenticationError.

        A key says nothing about whose it is: that is for the configuration to say, or else the peer could be anybody.
        """
        if spki not in remote.pubkeys:
            raise CertificateError("the raw public key of the peer is not one of those configured")
        if remote.cacerts or remote.ca_id or remote.cert_policy:
            raise CertificateError("a raw public key has no authority above it and no policies, as remote wants them")
        try:
            key = load_spki(spki)
        except ParseError as error:
            raise CertificateError(str(error)) from None
        remote.constraints.check_key(key)
        if remote.id.exact is None and identity not in key_ids(spki):
            raise CertificateError(f"the raw public key stands for its KEY_ID, remote.id would have to be {identity}")
        return key

    def __repr__(self) -> str:
        return (
            f"<Credentials {len(self.secrets)} secrets, {len(self.private_keys)} keys, "
            f"{len(self.certificates)} certificates, {len(self.anchors)} authorities>"
        )


def _check_authorities(chain: Chain, remote: RemoteAuth) -> None:
    if remote.cacerts and not any(certificate in remote.cacerts for certificate in chain.authorities):
        raise UnwantedError(f"none of the authorities configured stands above {chain.end.subject}")
    if remote.ca_id and not any(_is_one_of(certificate, remote.ca_id) for certificate in chain.authorities):
        raise UnwantedError(f"no authority {remote.ca_id} stands above {chain.end.subject}")


def _is_one_of(certificate: Certificate, pattern: IdentityPattern) -> bool:
    if pattern.exact is not None:
        return certificate.has_identity(pattern.exact)
    return any(pattern.matches(identity) for identity in certificate.identities)
