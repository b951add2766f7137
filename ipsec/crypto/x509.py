"""X.509 certificates (RFC 5280) as IKEv2 uses them (RFC 4945): what one says, and which identities it vouches for.

Each certificate is read twice: by ``cryptography`` as a whole, which holds it to the rules of the format, and here for
what is asked about. ``ipsec.crypto.chain`` decides whether to trust one.
"""

from __future__ import annotations

import base64
import hashlib
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, lru_cache

from cryptography import x509

from ipsec.crypto import der
from ipsec.crypto.auth import PublicKey, load_spki
from ipsec.crypto.identity import Identity, is_called
from ipsec.crypto.names import KeyRdn, name_key
from ipsec.errors import ParseError
from ipsec.wire.iana import IdType

CERTIFICATE_OCTETS_MAX = 65535
"what fits one CERT payload"

BASIC_CONSTRAINTS, KEY_USAGE, EXTENDED_KEY_USAGE = "2.5.29.19", "2.5.29.15", "2.5.29.37"
SUBJECT_ALT_NAME, NAME_CONSTRAINTS = "2.5.29.17", "2.5.29.30"
SUBJECT_KEY_ID, AUTHORITY_KEY_ID = "2.5.29.14", "2.5.29.35"
CERTIFICATE_POLICIES, POLICY_MAPPINGS = "2.5.29.32", "2.5.29.33"
POLICY_CONSTRAINTS, INHIBIT_ANY = "2.5.29.36", "2.5.29.54"
CRL_DISTRIBUTION_POINTS, AUTHORITY_INFO_ACCESS = "2.5.29.31", "1.3.6.1.5.5.7.1.1"
_OCSP_ACCESS = "1.3.6.1.5.5.7.48.1"

#: bits of KeyUsage
DIGITAL_SIGNATURE, NON_REPUDIATION, KEY_CERT_SIGN, CRL_SIGN = 0, 1, 5, 6

# Tags of GeneralName
EMAIL, DNS, X400, DIRECTORY, EDI, URI, IP = (
    der.context(1, constructed=False),
    der.context(2, constructed=False),
    der.context(3),
    der.context(4),
    der.context(5),
    der.context(6, constructed=False),
    der.context(7, constructed=False),
)

URIS_MAX = 16


@dataclass(frozen=True)
class NameConstraints:
    """Subtrees as (tag of GeneralName, contents); RFC 5280 section 4.2.1.10."""

    permitted: tuple[tuple[int, bytes], ...]
    excluded: tuple[tuple[int, bytes], ...]


class Certificate:
    """A certificate. The constructor takes DER; ParseError. Equal are two whose DER is.

    Properties that read an extension raise ParseError if that is malformed.
    """

    der: bytes
    tbs: bytes
    "the signed part"
    serial: int
    issuer: Identity
    subject: Identity
    not_before: datetime
    not_after: datetime
    spki: bytes
    "DER SubjectPublicKeyInfo"
    version: int
    algorithm: bytes
    "DER AlgorithmIdentifier of the signature"
    signature: bytes
    extensions: dict[str, tuple[bool, bytes]]
    "critical and value, by OID"

    def __init__(self, data: bytes) -> None:
        if len(data) > CERTIFICATE_OCTETS_MAX:
            raise ParseError("a certificate is longer than 65535 octets")
        self.der = bytes(data)
        _load(self.der)
        parts = der.elements(der.contents(self.der, der.SEQUENCE))
        if [tag for tag, _ in parts] != [der.SEQUENCE, der.SEQUENCE, der.BIT_STRING]:
            raise ParseError("malformed certificate")
        self.tbs, self.algorithm = parts[0][1], parts[1][1]
        self.signature = der.read_bits(der.contents(parts[2][1], der.BIT_STRING))
        self._read_tbs(der.elements(der.contents(self.tbs, der.SEQUENCE)))

    def _read_tbs(self, parts: list[tuple[int, bytes]]) -> None:
        self.version = 1
        if parts and parts[0][0] == der.context(0):
            self.version = 1 + der.read_int(der.contents(der.contents(parts.pop(0)[1], der.context(0)), der.INTEGER))
        tags = [tag for tag, _ in parts[:6]]
        if tags != [der.INTEGER, *[der.SEQUENCE] * 5] or not 1 <= self.version <= 3:
            raise ParseError("malformed certificate")
        self.serial = der.read_int(der.contents(parts[0][1], der.INTEGER), octets_max=64)
        if parts[1][1] != self.algorithm:
            raise ParseError("a certificate names two signature algorithms")
        self.issuer = Identity(IdType.DER_ASN1_DN, parts[2][1])
        self.subject = Identity(IdType.DER_ASN1_DN, parts[4][1])
        self.issuer_key: tuple[KeyRdn, ...] = name_key(parts[2][1])
        self.subject_key: tuple[KeyRdn, ...] = name_key(parts[4][1])
        times = der.items(der.contents(parts[3][1], der.SEQUENCE))
        if len(times) != 2:
            raise ParseError("malformed validity of a certificate")
        self.not_before, self.not_after = (parse_time(*item) for item in times)
        self.spki = parts[5][1]
        self.extensions = {}
        for tag, element in parts[6:]:
            if tag == der.context(3):
                self.extensions = parse_extensions(der.contents(element, tag))

    @cached_property
    def public_key(self) -> PublicKey:
        """The key, checked to be sane. ParseError."""
        return load_spki(self.spki)

    @cached_property
    def spki_sha1(self) -> bytes:
        """SHA-1 of the SubjectPublicKeyInfo: what CERTREQ names a trust anchor by (RFC 7296 section 3.7)."""
        return hashlib.sha1(self.spki, usedforsecurity=False).digest()

    @cached_property
    def key_id(self) -> bytes:
        """The subject key identifier, or what RFC 5280 section 4.2.1.2 (1) makes of the key if there is none."""
        if value := self._extension(SUBJECT_KEY_ID):
            return der.contents(value, der.OCTET_STRING)
        return self.key_sha1

    @cached_property
    def key_octets(self) -> bytes:
        """The key without its algorithm: contents of the subjectPublicKey."""
        return _key_octets(self.spki)

    @cached_property
    def key_sha1(self) -> bytes:
        """SHA-1 of ``key_octets``."""
        return hashlib.sha1(self.key_octets, usedforsecurity=False).digest()

    @cached_property
    def authority_key_id(self) -> bytes | None:
        """The key identifier of the issuer, if named."""
        value = self._extension(AUTHORITY_KEY_ID)
        fields = der.items(der.contents(value, der.SEQUENCE)) if value else []
        return next((body for tag, body in fields if tag == der.context(0, constructed=False)), None)

    @cached_property
    def fingerprint(self) -> bytes:
        """SHA-256 of the certificate."""
        return hashlib.sha256(self.der).digest()

    @property
    def self_issued(self) -> bool:
        """Whether subject and issuer are one name."""
        return self.subject_key == self.issuer_key

    @cached_property
    def path_len(self) -> int | None:
        """-1 if this is no CA, None if it is one without limit, else how many CAs may follow."""
        value = self._extension(BASIC_CONSTRAINTS)
        if value is None:
            return -1
        fields = der.items(der.contents(value, der.SEQUENCE))
        ca = bool(fields and fields[0][0] == der.BOOLEAN and der.read_bool(fields.pop(0)[1]))
        limit = der.read_int(fields.pop(0)[1], octets_max=8) if fields and fields[0][0] == der.INTEGER else None
        if fields or (limit is not None and limit < 0):
            raise ParseError("malformed basic constraints")
        return limit if ca else -1

    @property
    def is_ca(self) -> bool:
        """Whether the basic constraints say so; a certificate of version 1 has none."""
        return self.path_len != -1

    @cached_property
    def key_usage(self) -> frozenset[int] | None:
        """The bits of KeyUsage, None if there is no such extension."""
        value = self._extension(KEY_USAGE)
        return None if value is None else der.read_flags(der.contents(value, der.BIT_STRING))

    @cached_property
    def extended_key_usage(self) -> frozenset[str] | None:
        """OIDs of ExtKeyUsage, None if there is no such extension."""
        value = self._extension(EXTENDED_KEY_USAGE)
        return None if value is None else frozenset(_oids(value))

    @cached_property
    def alt_names(self) -> tuple[tuple[int, bytes], ...]:
        """Subject alternative names: tag of GeneralName and contents."""
        value = self._extension(SUBJECT_ALT_NAME)
        return () if value is None else tuple(der.items(der.contents(value, der.SEQUENCE)))

    @cached_property
    def identities(self) -> tuple[Identity, ...]:
        """The subject, if not empty, and the alternative names that can be identities."""
        found = [self.subject] if self.subject_key else []
        for tag, value in self.alt_names:
            if tag == EMAIL:
                found.append(Identity(IdType.RFC822_ADDR, value))
            elif tag == DNS:
                found.append(Identity(IdType.FQDN, value))
            elif tag == DIRECTORY:
                found.append(Identity(IdType.DER_ASN1_DN, value))
            elif tag == IP and len(value) in (4, 16):
                found.append(Identity(IdType.IPV4_ADDR if len(value) == 4 else IdType.IPV6_ADDR, value))
        return tuple(found)

    @cached_property
    def name_constraints(self) -> NameConstraints | None:
        """RFC 5280 section 4.2.1.10, None if there is no such extension."""
        value = self._extension(NAME_CONSTRAINTS)
        if value is None:
            return None
        trees: dict[int, tuple[tuple[int, bytes], ...]] = {}
        for tag, subtrees in der.items(der.contents(value, der.SEQUENCE)):
            if tag not in (der.context(0), der.context(1)) or tag in trees:
                raise ParseError("malformed name constraints")
            trees[tag] = tuple(_parse_subtree(*item) for item in der.items(subtrees))
        if not trees:
            raise ParseError("name constraints that constrain nothing")
        return NameConstraints(trees.get(der.context(0), ()), trees.get(der.context(1), ()))

    @cached_property
    def policies(self) -> frozenset[str] | None:
        """OIDs of CertificatePolicies, None if there is no such extension."""
        value = self._extension(CERTIFICATE_POLICIES)
        if value is None:
            return None
        parts = [der.items(body) for _, body in der.items(der.contents(value, der.SEQUENCE))]
        if not all(part and part[0][0] == der.OID for part in parts):
            raise ParseError("malformed certificate policies")
        return frozenset(der.read_oid(part[0][1]) for part in parts)

    @cached_property
    def crl_names(self) -> tuple[tuple[int, bytes], ...]:
        """Names of distribution points that say no more than where the whole CRL is: tag and contents."""
        return tuple(name for body in self._points for name in full_names(body))

    @cached_property
    def crl_uris(self) -> tuple[str, ...]:
        """Those of them that are URIs."""
        return _uris(self.crl_names)

    @cached_property
    def ocsp_uris(self) -> tuple[str, ...]:
        """Where the issuer says to ask for the status."""
        return _uris(self._responders)

    @cached_property
    def names_status_uri(self) -> bool:
        """Whether the issuer names any URI to ask for the status, be it of no use to us."""
        points = (name for body in self._points for name in _point_names(dict(der.items(body))))
        return any(tag == URI for tag, _ in (*self._responders, *points))

    @property
    def _points(self) -> list[bytes]:
        """Contents of the distribution points of CRLs."""
        value = self._extension(CRL_DISTRIBUTION_POINTS)
        return [body for _, body in der.items(der.contents(value, der.SEQUENCE))] if value else []

    @property
    def _responders(self) -> list[tuple[int, bytes]]:
        """Names of OCSP responders: tag and contents."""
        value = self._extension(AUTHORITY_INFO_ACCESS)
        entries = [der.items(body) for _, body in der.items(der.contents(value, der.SEQUENCE))] if value else []
        pairs = [entry for entry in entries if len(entry) == 2 and entry[0][0] == der.OID]
        return [entry[1] for entry in pairs if der.read_oid(entry[0][1]) == _OCSP_ACCESS]

    def has_identity(self, identity: Identity) -> bool:
        """Whether the certificate vouches for ``identity`` (RFC 4945 section 3.1).

        A distinguished name is the subject or a directory name, a host name, e-mail or IP address is in the alternative
        names, never taken from the CN, never a wildcard. A key id is a key identifier, as in charon.
        """
        if identity.type == IdType.KEY_ID:
            return identity.data in (self.key_id, self.key_sha1, self.spki_sha1)
        return any(is_called(one, identity) for one in self.identities)

    @property
    def x509(self) -> x509.Certificate:
        """The same as an object of ``cryptography``."""
        return _load(self.der)

    def _extension(self, oid: str) -> bytes | None:
        found = self.extensions.get(oid)
        return found[1] if found else None

    @property
    def summary(self) -> str:
        """Subject, issuer and validity in one line."""
        first, last = (time.strftime("%Y-%m-%d %H:%M:%S UTC") for time in (self.not_before, self.not_after))
        return f"{self.subject}, issued by {self.issuer}, valid from {first} to {last}"

    def __eq__(self, other: object) -> bool:
        return self.der == other.der if isinstance(other, Certificate) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.der)

    def __repr__(self) -> str:
        return f"<Certificate {self.subject}>"


def _key_octets(spki: bytes) -> bytes:
    parts = der.items(der.contents(spki, der.SEQUENCE))
    if [tag for tag, _ in parts] != [der.SEQUENCE, der.BIT_STRING]:
        raise ParseError("malformed public key")
    return der.read_bits(parts[1][1])


def key_ids(spki: bytes) -> tuple[Identity, Identity]:
    """The KEY_IDs that a raw public key has in charon: the SHA-1 of it, and of the key without its algorithm."""
    digests = (hashlib.sha1(octets, usedforsecurity=False).digest() for octets in (spki, _key_octets(spki)))
    whole, key = (Identity(IdType.KEY_ID, digest) for digest in digests)
    return whole, key


def _load(data: bytes) -> x509.Certificate:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of certificates that are odd but readable
            return x509.load_der_x509_certificate(data)
    except Exception:  # garbage makes cryptography raise more than it documents
        raise ParseError("not an X.509 certificate") from None


@lru_cache(256)
def _cached_certificate(data: bytes) -> Certificate:
    return Certificate(data)


def parse_certificate(data: bytes) -> Certificate:
    """The certificate in a CERT payload. ParseError. The last few small ones are remembered, never more than 2 MiB."""
    return _cached_certificate(data) if len(data) <= 8192 else Certificate(data)


_PEM = re.compile(rb"-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----([^-]*)-----END (?:X509 |TRUSTED )?CERTIFICATE-----")


def load_certificates(data: bytes) -> tuple[Certificate, ...]:
    """The certificates of a file: one in DER, or one or more in PEM with whatever around them. ParseError."""
    if b"-----BEGIN" not in data:
        return (Certificate(data),)
    try:
        bodies = [base64.b64decode(b"".join(match[1].split()), validate=True) for match in _PEM.finditer(data)]
    except ValueError:
        raise ParseError("the Base64 of a certificate in PEM is malformed") from None
    if not bodies:
        raise ParseError("there is no certificate between the PEM markers")
    return tuple(Certificate(body) for body in bodies)


def parse_time(tag: int, value: bytes) -> datetime:
    """UTCTime or GeneralizedTime in the forms that RFC 5280 section 4.1.2.5 allows. ParseError."""
    size = {der.UTC_TIME: 13, der.GENERALIZED_TIME: 15}.get(tag)
    if len(value) != size or not value[:-1].isdigit() or value[-1:] != b"Z":
        raise ParseError("malformed time in a certificate")
    text = value[:-1].decode()
    if tag == der.UTC_TIME:
        text = ("19" if text >= "50" else "20") + text
    try:
        return datetime.strptime(text, "%Y%m%d%H%M%S").replace(tzinfo=UTC)
    except ValueError:
        raise ParseError("a time in a certificate is no time") from None


def parse_extensions(data: bytes) -> dict[str, tuple[bool, bytes]]:
    """Extensions of a certificate, CRL or entry of one: criticality and value by OID. ParseError."""
    found: dict[str, tuple[bool, bytes]] = {}
    for tag, body in der.items(der.contents(data, der.SEQUENCE)):
        fields = der.items(body) if tag == der.SEQUENCE else []
        critical = len(fields) == 3 and fields[1][0] == der.BOOLEAN and der.read_bool(fields.pop(1)[1])
        if [tag for tag, _ in fields] != [der.OID, der.OCTET_STRING]:
            raise ParseError("malformed extension of a certificate")
        oid = der.read_oid(fields[0][1])
        if oid in found:
            raise ParseError(f"a certificate has the extension {oid} twice")
        found[oid] = (critical, fields[1][1])
    return found


def _parse_subtree(tag: int, body: bytes) -> tuple[int, bytes]:
    fields = der.items(body) if tag == der.SEQUENCE else []
    # RFC 5280 section 4.2.1.10: minimum is 0, which DER leaves out and some do not, and there is no maximum
    if len(fields) == 2 and fields[1] == (der.context(0, constructed=False), b"\0"):
        fields.pop()
    if len(fields) != 1:
        raise ParseError("malformed name constraints")
    return fields[0]


def _oids(value: bytes) -> list[str]:
    parts = der.items(der.contents(value, der.SEQUENCE))
    if not parts or any(tag != der.OID for tag, _ in parts):
        raise ParseError("malformed list of object identifiers")
    return [der.read_oid(body) for _, body in parts]


def full_names(point: bytes) -> list[tuple[int, bytes]]:
    """Names (tag and contents) of a DistributionPoint without reasons and cRLIssuer: of whole CRLs of the issuer."""
    fields = dict(der.items(point))
    return _point_names(fields) if set(fields) == {der.context(0)} else []


def _point_names(fields: dict[int, bytes]) -> list[tuple[int, bytes]]:
    """Names of a DistributionPoint, whatever else it says."""
    names = der.items(fields.get(der.context(0), b""))
    return der.items(names[0][1]) if len(names) == 1 and names[0][0] == der.context(0) else []


def _uris(names: Sequence[tuple[int, bytes]]) -> tuple[str, ...]:
    found = [value.decode("ascii") for tag, value in names if tag == URI and value.isascii() and len(value) <= 2048]
    return tuple(uri for uri in found if uri.isprintable())[:URIS_MAX]
