"""Revocation: CRLs (RFC 5280 sections 5, 6.3) and OCSP (RFC 6960), held against a verified chain. Nothing is fetched:

    for source in revocation_sources(chain): ...          # what the caller may fetch, chains that are trusted only
    check_revocation(chain, crls, responses, policy, wall)

Indirect and delta CRLs, those for some reasons only and those with critical extensions that we do not know make nothing
GOOD, for they could hide a revocation; what they list of their own issuer's is revoked (RFC 5280 section 6.3.3). What a
connection asks of signatures, and the key usage of the issuer, are asked of those that say GOOD: to doubt a revocation
would be to trust.
"""

from __future__ import annotations

import base64
import hashlib
import re
import warnings
from collections.abc import Collection, Hashable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import NamedTuple

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import OCSPNonce, ocsp

from ipsec.crypto import der, x509
from ipsec.crypto.auth import ANY_SCHEME, AuthenticationError, Constraints, parse_scheme
from ipsec.crypto.chain import CertificateError, Chain
from ipsec.crypto.identity import Identity
from ipsec.crypto.names import KeyRdn, name_key
from ipsec.crypto.x509 import Certificate, parse_time
from ipsec.errors import ParseError
from ipsec.wire.iana import IdType

CRL_OCTETS_MAX = 16 << 20
OCSP_OCTETS_MAX = 64 << 10
CLOCK_SKEW = timedelta(minutes=5)
"how far in the future what others signed may begin"
OCSP_AGE_MAX = timedelta(hours=1)
"for responses that do not say when the next one is due"

_CRL_NUMBER, _DELTA_INDICATOR, _ISSUING_POINT = "2.5.29.20", "2.5.29.27", "2.5.29.28"
_OF_ATTRIBUTES = der.context(5, constructed=False)
"of the fields of IssuingDistributionPoint"
_ENTRY_REASON, _ENTRY_ISSUER = "2.5.29.21", "2.5.29.29"
_KNOWN_MAX = 1024
"extensions of entries, different ones, that are remembered while a list is read"
_REMOVED = 8
"of the reasons: removeFromCRL, in delta CRLs"
_OCSP_SIGNING = "1.3.6.1.5.5.7.3.9"
_BASIC_RESPONSE = "1.3.6.1.5.5.7.48.1.1"
_REASONS = {
    1: "key compromise",
    2: "CA compromise",
    3: "affiliation changed",
    4: "superseded",
    5: "cessation of operation",
    6: "certificate hold",
    _REMOVED: "removed",
    9: "privilege withdrawn",
    10: "AA compromise",
}


class Revocation(Enum):
    """What to do about certificates whose status is not known; the values are swanctl's."""

    STRICT = "strict"
    "no fresh answer, no trust"
    IFURI = "ifuri"
    "as STRICT for certificates that name where to ask"
    RELAXED = "relaxed"
    "only a certificate known to be revoked is refused"


class Status(Enum):
    """What is known of one certificate."""

    GOOD = "good"
    REVOKED = "revoked"
    UNKNOWN = "unknown"


class Answer(NamedTuple):
    """What is said of one certificate."""

    status: Status
    why: str
    as_of: datetime = datetime.min.replace(tzinfo=UTC)
    in_force: bool = True
    "if not, newer answers may say that a hold was lifted"
    due: datetime = datetime.max.replace(tzinfo=UTC)
    "until when it is in force"


class RevokedError(CertificateError):
    """A certificate was revoked; ``again`` is where to ask once more if what says so is past its time."""

    def __init__(self, message: str, again: Source | None = None) -> None:
        super().__init__(message)
        self.again = again


@dataclass(frozen=True)
class Source:
    """Where to ask for the status of one certificate of a chain."""

    certificate: Certificate
    issuer: Certificate
    crl_uris: tuple[str, ...]
    ocsp_uris: tuple[str, ...]
    other_keys: tuple[Certificate, ...] = ()
    "certificates of the chain in which the issuer has another key, as while it changes keys"
    constraints: Constraints = ANY_SCHEME
    "for signatures of what says that the certificate is good"
    responders: tuple[Certificate, ...] = ()
    "that are trusted to sign OCSP responses because somebody said so here (RFC 6960 section 4.2.2.2)"


@dataclass(frozen=True)
class Rules:
    """What is asked of whoever says that a certificate is good; a revocation counts without."""

    wall: datetime
    constraints: Constraints = ANY_SCHEME


class Crl:
    """A certificate revocation list. The constructor takes DER; ParseError. Lists of many entries take their time
    (about 3 µs each): read them where that does not matter."""

    def __init__(self, data: bytes) -> None:
        if len(data) > CRL_OCTETS_MAX:
            raise ParseError(f"a CRL is longer than {CRL_OCTETS_MAX} octets")
        self.der = bytes(data)
        parts = der.elements(der.contents(self.der, der.SEQUENCE))
        if [tag for tag, _ in parts] != [der.SEQUENCE, der.SEQUENCE, der.BIT_STRING]:
            raise ParseError("malformed CRL")
        self.tbs, self.algorithm = parts[0][1], parts[1][1]
        self.signature = der.read_bits(der.contents(parts[2][1], der.BIT_STRING))
        fields = der.elements(der.contents(self.tbs, der.SEQUENCE))
        if fields and fields[0][0] == der.INTEGER and der.contents(fields.pop(0)[1], der.INTEGER) != b"\x01":
            raise ParseError("CRL of an unknown version")
        if [tag for tag, _ in fields[:2]] != [der.SEQUENCE, der.SEQUENCE] or len(fields) < 3:
            raise ParseError("malformed CRL")
        if fields[0][1] != self.algorithm:
            raise ParseError("a CRL names two signature algorithms")
        self.issuer = Identity(IdType.DER_ASN1_DN, fields[1][1])
        self.issuer_key: tuple[KeyRdn, ...] = name_key(fields[1][1])
        self._signed_by: set[bytes] = set()
        "keys with which the signature was right: it takes tens of milliseconds for the longest, and each peer asks"
        self._read_rest(fields[2:])

    def _read_rest(self, fields: list[tuple[int, bytes]]) -> None:
        times = (der.UTC_TIME, der.GENERALIZED_TIME)
        self.this_update = parse_time(fields[0][0], der.contents(fields[0][1], fields[0][0]))
        rest = fields[1:]
        self.next_update: datetime | None = None
        if rest and rest[0][0] in times:
            tag, element = rest.pop(0)
            self.next_update = parse_time(tag, der.contents(element, tag))
        self.revoked: dict[int, str] = {}
        "serial number -> reason"
        self.unusable: str | None = None
        "why what is not on this list need not be good, if so"
        self.of_keys = True
        "its entries are certificates of public keys, not attributes"
        if rest and rest[0][0] == der.SEQUENCE:
            self._read_entries(der.contents(rest.pop(0)[1], der.SEQUENCE))
        self.extensions: dict[str, tuple[bool, bytes]] = {}
        if rest and rest[0][0] == der.context(0):
            self.extensions = x509.parse_extensions(der.contents(rest.pop(0)[1], der.context(0)))
        if rest:
            raise ParseError("malformed CRL")
        self._read_issuing_point()
        known = {_CRL_NUMBER, _ISSUING_POINT, x509.AUTHORITY_KEY_ID}
        for oid, (critical, _) in self.extensions.items():
            if oid == _DELTA_INDICATOR or (critical and oid not in known):
                self.unusable = f"extension {oid}"
        if _DELTA_INDICATOR in self.extensions:
            # section 5.3.1: nothing but a delta CRL takes a revocation back
            self.revoked = {serial: reason for serial, reason in self.revoked.items() if reason != _REASONS[_REMOVED]}

    def _read_entries(self, data: bytes) -> None:
        known: dict[bytes, tuple[str, bool | None]] = {b"": ("unspecified", None)}
        "what the last few extensions that were read mean: entries have much the same, and reading them takes the most"
        offset, ours = 0, True
        while offset < len(data):
            tag, start, offset = der.read(data, offset)
            entry = data[start:offset]
            serial_tag, begin, end = der.read(entry)
            if tag != der.SEQUENCE or serial_tag != der.INTEGER:
                raise ParseError("malformed entry of a CRL")
            _, _, rest = der.read(entry, end)
            extensions = entry[rest:]
            found = known.get(extensions)
            if found is None:
                if len(known) > _KNOWN_MAX:
                    known = {b"": known[b""]}
                found = known[extensions] = self._read_extensions(extensions)
            reason, said = found
            # section 5.3.3: one that does not say so is about the same issuer as the one before it
            ours = ours if said is None else said
            if ours:
                self.revoked[der.read_int(entry[begin:end], octets_max=64)] = reason

    def _read_extensions(self, extensions: bytes) -> tuple[str, bool | None]:
        """Of an entry: why, and whether the certificate is one of who issued the list, None if they do not say."""
        reason, ours = "unspecified", None
        for oid, (critical, value) in x509.parse_extensions(extensions).items():
            if oid == _ENTRY_REASON:
                number = der.read_int(der.contents(value, der.ENUMERATED), octets_max=2)
                reason = _REASONS.get(number, f"reason {number}")
            elif oid == _ENTRY_ISSUER or critical:
                self.unusable = f"entry extension {oid}"
            if oid == _ENTRY_ISSUER:
                names = der.items(der.contents(value, der.SEQUENCE))
                ours = any(tag == x509.DIRECTORY and name_key(name) == self.issuer_key for tag, name in names)
        return reason, ours

    def _read_issuing_point(self) -> None:
        """IssuingDistributionPoint: which certificates the list is about (RFC 5280 section 5.2.5)."""
        self.for_users = self.for_authorities = True
        self.points: frozenset[tuple[int, bytes]] | None = None
        if _ISSUING_POINT not in self.extensions:
            return
        for tag, value in der.items(der.contents(self.extensions[_ISSUING_POINT][1], der.SEQUENCE)):
            if tag == der.context(0):
                self.points = frozenset(x509.full_names(der.emit(tag, value)))
            elif tag == der.context(1, constructed=False):
                self.for_authorities = not der.read_bool(value)
            elif tag == der.context(2, constructed=False):
                self.for_users = not der.read_bool(value)
            elif tag == _OF_ATTRIBUTES and not der.read_bool(value):
                # the default, which DER leaves out and some do not: nothing that is revoked must be overlooked for that
                pass
            else:
                self.unusable = "part of the reasons, indirect, or for attribute certificates"
                self.of_keys = self.of_keys and tag != _OF_ATTRIBUTES

    def covers(self, certificate: Certificate) -> bool:
        """Whether the absence of the certificate from this list means something."""
        if self.unusable or self.issuer_key != certificate.issuer_key:
            return False
        if not (self.for_authorities if certificate.is_ca else self.for_users):
            return False
        return self.points is None or not self.points.isdisjoint(certificate.crl_names)

    def status(self, certificate: Certificate, issuer: Certificate, wall: datetime) -> Answer:
        """What the list says of ``certificate``, and why; "" if it is about others. It is not verified here."""
        if self.issuer_key != certificate.issuer_key or self.issuer_key != issuer.subject_key:
            return Answer(Status.UNKNOWN, "")
        if self.of_keys and certificate.serial in self.revoked:
            due = self.next_update or self.this_update
            return Answer(Status.REVOKED, self.revoked[certificate.serial], self.this_update, self.fresh(wall), due)
        if not self.covers(certificate):
            return Answer(Status.UNKNOWN, f"the CRL does not cover it: {self.unusable or 'another distribution point'}")
        if self.next_update is None or not self.fresh(wall):
            return Answer(Status.UNKNOWN, f"the CRL of {self.issuer} is not in force")
        return Answer(Status.GOOD, "CRL", self.this_update, due=self.next_update)

    def verify(self, issuer: Certificate, rules: Rules | None) -> None:
        """Whether ``issuer``, which is trusted, signed this list and may. AuthenticationError, ParseError."""
        if self.issuer_key != issuer.subject_key:
            raise CertificateError(f"the CRL of {self.issuer} is not one of {issuer.subject}")
        if rules is not None and issuer.key_usage is not None and x509.CRL_SIGN not in issuer.key_usage:
            raise CertificateError(f"the key of {issuer.subject} is not for signing CRLs")
        _check_scheme(self.algorithm, issuer, rules)
        if issuer.spki not in self._signed_by:
            parse_scheme(self.algorithm).verify(issuer.public_key, self.signature, self.tbs)
            self._signed_by.add(issuer.spki)

    @property
    def scope(self) -> Hashable:
        """What it is about: of two with one scope the newer one counts. An authority may have several keys, and several
        lists, each about some of its certificates."""
        parts = (x509.AUTHORITY_KEY_ID, _ISSUING_POINT)
        return self.issuer_key, *(self.extensions.get(oid) for oid in parts)

    @property
    def kind(self) -> Hashable:
        """Of two of a kind the newer one stands for both. A delta stands for nothing but itself, and one that is signed
        in another way, as with SHA-1, may not be good enough for all that the older one is."""
        return self.scope, self.extensions.get(_DELTA_INDICATOR), self.algorithm

    @property
    def recency(self) -> tuple[datetime, int]:
        """Of two lists the newer one has the larger: the CRL number counts within a second (section 5.2.3)."""
        number = -1
        if _CRL_NUMBER in self.extensions:
            with suppress(ParseError):
                number = der.read_int(der.contents(self.extensions[_CRL_NUMBER][1], der.INTEGER), octets_max=64)
        return self.this_update, number

    def fresh(self, wall: datetime) -> bool:
        """Whether the list is in force; one that does not say until when is not."""
        # added to the time that is ours: nobody has verified this_update yet, and before it there may be no other
        return self.this_update <= wall + CLOCK_SKEW and self.next_update is not None and wall <= self.next_update

    def __repr__(self) -> str:
        return f"<Crl {self.issuer}, {len(self.revoked)} entries>"


def keep_newest(table: dict[Hashable, Crl], crl: Crl) -> None:
    """Put a list into a table by kind, unless one that is newer is there: a revocation is not taken back by age."""
    known = table.get(crl.kind)
    if known is None or crl.recency >= known.recency:
        table[crl.kind] = crl


_PEM = re.compile(rb"-----BEGIN X509 CRL-----([^-]*)-----END X509 CRL-----")


def parse_crl(data: bytes) -> Crl:
    """A CRL in DER or PEM. ParseError."""
    if match := _PEM.search(data):
        try:
            data = base64.b64decode(b"".join(match[1].split()), validate=True)
        except ValueError:
            raise ParseError("the Base64 of a CRL in PEM is malformed") from None
    return Crl(data)


@dataclass(frozen=True)
class _Single:
    """A SingleResponse (RFC 6960 section 4.2.1)."""

    serial: int
    hash: str
    issuer_name_hash: bytes
    issuer_key_hash: bytes
    status: ocsp.OCSPCertStatus
    reason: str
    this_update: datetime
    due: datetime

    def names_issuer(self, issuer: Certificate) -> bool:
        """Whether the certificate asked for is one of ``issuer``."""
        if self.hash not in ("sha1", "sha256", "sha384", "sha512"):
            return False
        name_hash = hashlib.new(self.hash, issuer.subject.data, usedforsecurity=False).digest()
        key_hash = hashlib.new(self.hash, issuer.key_octets, usedforsecurity=False).digest()
        return self.issuer_name_hash == name_hash and self.issuer_key_hash == key_hash


class OcspResponse:
    """A successful OCSP response. The constructor takes DER; ParseError. Read by ``cryptography``."""

    scope: Hashable = "OCSP"
    "of two that are about a certificate the newer one stands for both"

    def __init__(self, data: bytes) -> None:
        if len(data) > OCSP_OCTETS_MAX:
            raise ParseError(f"an OCSP response is longer than {OCSP_OCTETS_MAX} octets")
        self.singles: list[_Single] = []
        "one for each certificate that was asked for"
        self.nonce: bytes | None = None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                response = ocsp.load_der_ocsp_response(data)
                status = response.response_status
                if status == ocsp.OCSPResponseStatus.SUCCESSFUL:
                    self._read(response)
        except ParseError:
            raise
        except Exception as error:  # garbage makes cryptography raise more than it documents
            raise ParseError(f"OCSP response cannot be read: {type(error).__name__}") from None
        if status != ocsp.OCSPResponseStatus.SUCCESSFUL:
            raise ParseError(f"OCSP responder says {status.name}")
        outer = dict(der.items(der.contents(data, der.SEQUENCE)))
        kind, body = der.items(der.contents(outer.get(der.context(0), b""), der.SEQUENCE))
        if der.read_oid(kind[1]) != _BASIC_RESPONSE:
            raise ParseError("OCSP response of an unknown kind")
        parts = der.elements(der.contents(body[1], der.SEQUENCE))
        if [tag for tag, _ in parts[:3]] != [der.SEQUENCE, der.SEQUENCE, der.BIT_STRING]:
            raise ParseError("malformed OCSP response")
        self.tbs, self.algorithm = parts[0][1], parts[1][1]
        self.signature = der.read_bits(der.contents(parts[2][1], der.BIT_STRING))
        self.certificates: list[Certificate] = []
        "of delegated responders"
        for tag, element in parts[3:]:
            found = der.elements(der.contents(der.contents(element, tag), der.SEQUENCE))
            self.certificates += [Certificate(item) for _, item in found[:4]]

    def _read(self, response: ocsp.OCSPResponse) -> None:
        """All that ``cryptography`` decodes only when it is asked for, so that nothing raises later."""
        self._responder_key_hash = response.responder_key_hash
        name = response.responder_name
        self._responder_name = None if name is None else name_key(name.public_bytes())
        for one in response.responses:
            reason = one.revocation_reason
            self.singles.append(
                _Single(
                    one.serial_number,
                    one.hash_algorithm.name,
                    one.issuer_name_hash,
                    one.issuer_key_hash,
                    one.certificate_status,
                    reason.value if reason else "unspecified",
                    one.this_update_utc,
                    one.next_update_utc or one.this_update_utc + OCSP_AGE_MAX,
                )
            )
        for extension in response.extensions:
            if isinstance(extension.value, OCSPNonce):
                self.nonce = extension.value.nonce
            elif extension.critical:
                raise ParseError("OCSP response with an unknown critical extension")

    def status(self, certificate: Certificate, issuer: Certificate, wall: datetime) -> Answer:
        """What the response says of ``certificate``, and why; "" if it is about others. It is not verified here."""
        for single in self.singles:
            if single.serial != certificate.serial or not single.names_issuer(issuer):
                continue
            in_force = single.this_update <= wall + CLOCK_SKEW and wall <= single.due
            if single.status == ocsp.OCSPCertStatus.REVOKED:
                return Answer(Status.REVOKED, single.reason, single.this_update, in_force, single.due)
            if not in_force:
                return Answer(Status.UNKNOWN, "the OCSP response is not in force")
            if single.status == ocsp.OCSPCertStatus.GOOD:
                return Answer(Status.GOOD, "OCSP", single.this_update, due=single.due)
            return Answer(Status.UNKNOWN, "the OCSP responder does not know the certificate")
        return Answer(Status.UNKNOWN, "")

    def verify(self, issuer: Certificate, rules: Rules | None, trusted: Collection[Certificate] = ()) -> None:
        """Whether ``issuer``, whom it delegated to or one of those ``trusted`` signed the response.

        AuthenticationError, ParseError.
        """
        reason: AuthenticationError = CertificateError("the OCSP response was signed by somebody else")
        for signer in (issuer, *trusted, *self.certificates):
            if not self._is_responder(signer):
                continue
            try:
                if signer in trusted:
                    _check_valid(signer, rules)
                elif signer != issuer:
                    _check_delegate(signer, issuer, rules)
                return _check_signed(self.algorithm, self.signature, self.tbs, signer, rules)
            except AuthenticationError as error:
                reason = error
        raise reason

    def _is_responder(self, certificate: Certificate) -> bool:
        """RFC 6960 section 4.2.1: a responder is named by its subject or by the SHA-1 of its key."""
        if self._responder_key_hash is not None:
            return self._responder_key_hash == certificate.key_sha1
        return self._responder_name == certificate.subject_key


def _check_delegate(signer: Certificate, issuer: Certificate, rules: Rules | None) -> None:
    """RFC 6960 section 4.2.2.2: issued by the CA itself, for signing OCSP responses."""
    if signer.issuer_key != issuer.subject_key or _OCSP_SIGNING not in (signer.extended_key_usage or ()):
        raise CertificateError(f"{signer.subject} may not sign OCSP responses")
    _check_valid(signer, rules)
    _check_signed(signer.algorithm, signer.signature, signer.tbs, issuer, rules)


def _check_valid(signer: Certificate, rules: Rules | None) -> None:
    if rules is not None and not signer.not_before <= rules.wall <= signer.not_after:
        raise CertificateError(f"{signer.subject}, which signed an OCSP response, is not valid now")


def _check_signed(algorithm: bytes, signature: bytes, tbs: bytes, signer: Certificate, rules: Rules | None) -> None:
    _check_scheme(algorithm, signer, rules)
    parse_scheme(algorithm).verify(signer.public_key, signature, tbs)


def _check_scheme(algorithm: bytes, signer: Certificate, rules: Rules | None) -> None:
    if rules is not None:
        rules.constraints.check_certificate(parse_scheme(algorithm), signer.public_key)


def ocsp_request(certificate: Certificate, issuer: Certificate) -> bytes:
    """A DER OCSP request for one certificate."""
    builder = ocsp.OCSPRequestBuilder()
    builder = builder.add_certificate(certificate.x509, issuer.x509, hashes.SHA1())
    return builder.build().public_bytes(Encoding.DER)


def revocation_sources(
    chain: Chain,
    extra: dict[bytes, tuple[tuple[str, ...], tuple[str, ...]]] | None = None,
    constraints: Constraints = ANY_SCHEME,
    responders: tuple[Certificate, ...] = (),
) -> list[Source]:
    """For each certificate below the anchor, where to ask. Only of verified chains: URIs of others are bait.

    ``extra`` has configured CRL and OCSP URIs by the DER of the issuer. URIs in certificates count if they are http or
    https.
    """
    found = []
    for certificate, issuer in zip(chain.certificates, chain.certificates[1:], strict=False):
        crl_uris, ocsp_uris = (extra or {}).get(issuer.der, ((), ()))
        crl_uris = tuple(dict.fromkeys((*crl_uris, *_fetchable(certificate.crl_uris))))
        ocsp_uris = tuple(dict.fromkeys((*ocsp_uris, *_fetchable(certificate.ocsp_uris))))
        others = (one for one in chain.authorities if one.subject_key == issuer.subject_key and one != issuer)
        found.append(Source(certificate, issuer, crl_uris, ocsp_uris, tuple(others), constraints, responders))
    return found


def _fetchable(uris: tuple[str, ...]) -> list[str]:
    return [uri for uri in uris if uri.lower().startswith(("http://", "https://"))]


def status_of(source: Source, crls: Iterable[Crl], responses: Iterable[OcspResponse], wall: datetime) -> Answer:
    """What CRLs and OCSP responses, verified with a key of the issuer, say of one certificate, and why.

    GOOD needs something in force whose signatures are as the source wants them. A revocation counts from whatever is
    authentic, until something newer of its scope says GOOD: past its time RFC 6960 section 2.4 calls it unreliable,
    which is no reason to trust.
    """
    answer = Answer(Status.UNKNOWN, "nothing is known about it")
    revoked: list[tuple[Hashable, Answer]] = []
    good: dict[Hashable, datetime] = {}
    evidence: list[OcspResponse | Crl] = [*responses, *crls]
    rules = Rules(wall, source.constraints)
    for one in evidence:
        try:
            found = one.status(source.certificate, source.issuer, wall)
            if found.status is not Status.UNKNOWN:
                _verify_evidence(one, source, None if found.status is Status.REVOKED else rules)
        except (AuthenticationError, ParseError) as error:
            found = Answer(Status.UNKNOWN, str(error))
        if found.status is Status.REVOKED:
            revoked.append((one.scope, found))
            continue
        if found.status is Status.GOOD:
            good[one.scope] = max(found.as_of, good.get(one.scope, found.as_of))
        if answer.status is Status.UNKNOWN and found.why:
            answer = found
    counting = [found for scope, found in revoked if scope not in good or found.as_of >= good[scope]]
    # one in force, if there is
    return max(counting, key=lambda found: found.in_force, default=answer)


def authentic(one: OcspResponse | Crl, sources: Iterable[Source]) -> bool:
    """Whether an authority in a verified chain has signed the list or the response, at whatever time."""
    for source in sources:
        try:
            _verify_evidence(one, source, None)
            return True
        except (AuthenticationError, ParseError):
            continue
    return False


def _verify_evidence(one: OcspResponse | Crl, source: Source, rules: Rules | None) -> None:
    """A CRL may be signed with another key of the same authority, if that is in the same verified chain."""
    if isinstance(one, OcspResponse):
        return one.verify(source.issuer, rules, source.responders)
    signers = (source.issuer, *source.other_keys)
    for signer in signers[:-1]:
        try:
            return one.verify(signer, rules)
        except (AuthenticationError, ParseError):
            continue
    one.verify(signers[-1], rules)


def check_revocation(
    chain: Chain,
    crls: Iterable[Crl],
    responses: Iterable[OcspResponse],
    policy: Revocation,
    wall: datetime,
    *,
    constraints: Constraints = ANY_SCHEME,
    extra: dict[bytes, tuple[tuple[str, ...], tuple[str, ...]]] | None = None,
    responders: tuple[Certificate, ...] = (),
) -> list[tuple[Source, Status]]:
    """Hold a verified chain against what is known. RevokedError, or CertificateError if the policy wants to know more.

    The result has the status of each certificate below the anchor; those UNKNOWN are worth a fetch from their source.
    """
    crls, responses = tuple(crls), tuple(responses)
    found: list[tuple[Source, Status]] = []
    for source in revocation_sources(chain, extra, constraints, responders):
        answer = status_of(source, crls, responses, wall)
        subject = source.certificate.subject
        if answer.status is Status.REVOKED:
            raise RevokedError(f"{subject} was revoked: {answer.why}", None if answer.in_force else source)
        found.append((source, answer.status))
        if answer.status is not Status.UNKNOWN or policy is Revocation.RELAXED:
            continue
        if policy is Revocation.STRICT or _names_uri(source) or _has_run_out(source, crls, wall):
            raise CertificateError(f"whether {subject} was revoked is not known: {answer.why}")
    return found


def _names_uri(source: Source) -> bool:
    """Whether there is a URI to ask, also one that we do not ask, as with LDAP or for some of the reasons."""
    return bool(source.crl_uris or source.ocsp_uris) or source.certificate.names_status_uri


def _has_run_out(source: Source, crls: Iterable[Crl], wall: datetime) -> bool:
    """Whether somebody has seen to it that a CRL is there, and no longer does. One that the authority has signed: the
    last one of a key that it had before runs out as well."""
    old = (crl for crl in crls if crl.next_update is not None and crl.next_update < wall)
    return any(crl.covers(source.certificate) and authentic(crl, [source]) for crl in old)
