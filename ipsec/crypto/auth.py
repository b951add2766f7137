"""The AUTH payload (RFC 7296 section 2.15): what is signed, shared keys, and signatures (RFC 7427, 8420, 4754).

A signature is described by the DER of its AlgorithmIdentifier, in AUTH payloads of method 14 as in certificates, so
both go through ``parse_scheme``, which is strict. SHA-1 is taken in AUTH alone, and only where a constraint names it.
"""

from __future__ import annotations

import hmac
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import lru_cache

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from ipsec.crypto import der
from ipsec.crypto.prf import PrfAlgorithm
from ipsec.errors import ConfigError, IpsecError, ParseError
from ipsec.wire.iana import AuthMethod, HashAlgorithm, name_of

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | ed448.Ed448PublicKey
PrivateKeyObject = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey

KEY_PAD = b"Key Pad for IKEv2"

RSA_BITS_MIN = 2048
"unless a constraint asks for less, such as rsa-1024"
RSA_BITS_MAX = 16384
RSA_EXPONENT_BITS_MAX = 33
"bounds the cost of one verification"
RSA_SMALL_BITS, RSA_SMALL_EXPONENT_BITS_MAX = 4096, 64
"up to so many bits an exponent may be larger"
SIGNATURE_OCTETS_MAX = RSA_BITS_MAX // 8

#: what our SIGNATURE_HASH_ALGORITHMS announces, best first
OUR_HASHES = (HashAlgorithm.SHA2_256, HashAlgorithm.SHA2_384, HashAlgorithm.SHA2_512, HashAlgorithm.IDENTITY)


class AuthenticationError(IpsecError):
    """A peer could not be authenticated, or we cannot authenticate as asked; ``str()`` is the reason, for the log.

    The peer learns nothing of it but AUTHENTICATION_FAILED.
    """


def signed_octets(message: bytes, nonce: bytes, mac_id: bytes) -> bytes:
    """What AUTH covers: our first message as sent, the peer's nonce, and ``prf(SK_px, IDx')`` (RFC 7296 2.15)."""
    return message + nonce + mac_id


def psk_auth(prf: PrfAlgorithm, secret: bytes, octets: bytes) -> bytes:
    """AUTH data of a shared key, also of the MSK of EAP (RFC 7296 sections 2.15 and 2.16)."""
    return prf(prf(secret, KEY_PAD), octets)


def is_psk_auth(prf: PrfAlgorithm, secret: bytes, data: bytes, octets: bytes) -> bool:
    """Whether AUTH data of the peer's is that of a shared key; compared in constant time."""
    return hmac.compare_digest(psk_auth(prf, secret, octets), data)


def our_hashes(allowed: Collection[int] = ()) -> bytes:
    """Contents of our SIGNATURE_HASH_ALGORITHMS notification (RFC 7427 section 4): all, or those that are allowed."""
    found = [number for number in OUR_HASHES if number in allowed] or OUR_HASHES
    return b"".join(number.to_bytes(2, "big") for number in found)


def parse_hashes(data: bytes) -> tuple[int, ...]:
    """The peer's SIGNATURE_HASH_ALGORITHMS. ParseError."""
    if len(data) % 2 or len(data) > 128:
        raise ParseError("malformed SIGNATURE_HASH_ALGORITHMS")
    return tuple(int.from_bytes(data[i : i + 2], "big") for i in range(0, len(data), 2))


# Schemes: one kind of signature

_HASHES: dict[int, hashes.HashAlgorithm] = {
    HashAlgorithm.SHA1: hashes.SHA1(),
    HashAlgorithm.SHA2_256: hashes.SHA256(),
    HashAlgorithm.SHA2_384: hashes.SHA384(),
    HashAlgorithm.SHA2_512: hashes.SHA512(),
}
_HASH_OIDS = {
    "1.3.14.3.2.26": HashAlgorithm.SHA1,
    "2.16.840.1.101.3.4.2.1": HashAlgorithm.SHA2_256,
    "2.16.840.1.101.3.4.2.2": HashAlgorithm.SHA2_384,
    "2.16.840.1.101.3.4.2.3": HashAlgorithm.SHA2_512,
}
_OID_OF_HASH = {number: oid for oid, number in _HASH_OIDS.items()}
_RSA_OIDS = {
    "1.2.840.113549.1.1.5": HashAlgorithm.SHA1,
    "1.2.840.113549.1.1.11": HashAlgorithm.SHA2_256,
    "1.2.840.113549.1.1.12": HashAlgorithm.SHA2_384,
    "1.2.840.113549.1.1.13": HashAlgorithm.SHA2_512,
}
_ECDSA_OIDS = {
    "1.2.840.10045.4.1": HashAlgorithm.SHA1,
    "1.2.840.10045.4.3.2": HashAlgorithm.SHA2_256,
    "1.2.840.10045.4.3.3": HashAlgorithm.SHA2_384,
    "1.2.840.10045.4.3.4": HashAlgorithm.SHA2_512,
}
_PSS_OID = "1.2.840.113549.1.1.10"
_MGF1_OID = "1.2.840.113549.1.1.8"
_EDDSA_OIDS = {"1.3.101.112": "ed25519", "1.3.101.113": "ed448"}
#: what is refused, by name
_WEAK_OIDS = {
    "1.2.840.113549.1.1.2": "RSA with MD2",
    "1.2.840.113549.1.1.4": "RSA with MD5",
    "1.2.840.10040.4.3": "DSA",
    "2.16.840.1.101.3.4.3.2": "DSA",
}

#: hash and width of r and s of the fixed methods (RFC 4754); the curve is bound to the method
_ECDSA_METHODS: dict[int, tuple[int, type[ec.EllipticCurve], int]] = {
    AuthMethod.ECDSA_256: (HashAlgorithm.SHA2_256, ec.SECP256R1, 32),
    AuthMethod.ECDSA_384: (HashAlgorithm.SHA2_384, ec.SECP384R1, 48),
    AuthMethod.ECDSA_521: (HashAlgorithm.SHA2_512, ec.SECP521R1, 66),
}


@dataclass(frozen=True)
class Scheme:
    """One way to sign: ``family`` is rsa, rsa/pss, ecdsa, ed25519 or ed448, ``hash`` a HashAlgorithm number."""

    family: str
    hash: int
    salt_len: int = 0
    "of RSA-PSS, octets"

    def __str__(self) -> str:
        """The name in logs and vici, as charon's."""
        if self.family in ("ed25519", "ed448"):
            return self.family.upper()
        name = name_of(HashAlgorithm, self.hash)
        if self.family == "ecdsa":
            return f"ECDSA_WITH_{name.replace('SHA2_', 'SHA')}_DER"
        return f"RSA_EMSA_{'PKCS1' if self.family == 'rsa' else 'PSS'}_{name}"

    @property
    def key_family(self) -> str:
        """The family of keys that sign so."""
        return "rsa" if self.family == "rsa/pss" else self.family

    def verify(self, key: PublicKey, signature: bytes, data: bytes) -> None:
        """Check a signature. AuthenticationError, whatever is wrong with it."""
        if key_family(key) != self.key_family:
            raise AuthenticationError(f"a key of type {key_family(key)} does not make signatures {self}")
        if not 0 < len(signature) <= SIGNATURE_OCTETS_MAX:
            raise AuthenticationError(f"signature {self} of {len(signature)} octets")
        try:
            self._verify(key, signature, data)
        except (InvalidSignature, UnsupportedAlgorithm, ValueError):
            raise AuthenticationError(f"signature {self} is wrong") from None

    def _verify(self, key: PublicKey, signature: bytes, data: bytes) -> None:
        if isinstance(key, rsa.RSAPublicKey):
            if len(signature) != (key.key_size + 7) // 8:
                raise InvalidSignature
            key.verify(signature, data, self._padding(), _HASHES[self.hash])
        elif isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, data, ec.ECDSA(_HASHES[self.hash]))
        else:
            key.verify(signature, data)

    def sign(self, key: PrivateKeyObject, data: bytes) -> bytes:
        """A signature with a key of our own."""
        if isinstance(key, rsa.RSAPrivateKey):
            return key.sign(data, self._padding(), _HASHES[self.hash])
        if isinstance(key, ec.EllipticCurvePrivateKey):
            return key.sign(data, ec.ECDSA(_HASHES[self.hash]))
        return key.sign(data)

    def _padding(self) -> padding.AsymmetricPadding:
        if self.family == "rsa":
            return padding.PKCS1v15()
        return padding.PSS(padding.MGF1(_HASHES[self.hash]), self.salt_len)

    def algorithm_identifier(self) -> bytes:
        """The DER AlgorithmIdentifier (RFC 7427 appendix A, RFC 8420 section 2)."""
        return _emit_algorithm(self)


@lru_cache(64)
def _emit_algorithm(scheme: Scheme) -> bytes:
    null = der.emit(der.NULL)
    if scheme.family == "rsa":
        oid = next(oid for oid, number in _RSA_OIDS.items() if number == scheme.hash)
        return der.emit(der.SEQUENCE, der.emit_oid(oid), null)
    if scheme.family == "ecdsa":
        oid = next(oid for oid, number in _ECDSA_OIDS.items() if number == scheme.hash)
        return der.emit(der.SEQUENCE, der.emit_oid(oid))
    if scheme.family == "rsa/pss":
        hash_id = der.emit(der.SEQUENCE, der.emit_oid(_OID_OF_HASH[HashAlgorithm(scheme.hash)]), null)
        mgf = der.emit(der.SEQUENCE, der.emit_oid(_MGF1_OID), hash_id)
        parts = [der.emit(der.context(0), hash_id), der.emit(der.context(1), mgf)]
        if scheme.salt_len != 20:
            parts.append(der.emit(der.context(2), der.emit_int(scheme.salt_len)))
        return der.emit(der.SEQUENCE, der.emit_oid(_PSS_OID), der.emit(der.SEQUENCE, *parts))
    oid = next(oid for oid, family in _EDDSA_OIDS.items() if family == scheme.family)
    return der.emit(der.SEQUENCE, der.emit_oid(oid))


@lru_cache(256)
def parse_scheme(algorithm: bytes) -> Scheme:
    """The scheme of a DER AlgorithmIdentifier. ParseError if malformed, AuthenticationError if not one we know."""
    if len(algorithm) > 255:
        raise ParseError("signature AlgorithmIdentifier is too long")
    oid, parameters = _parse_algorithm(algorithm)
    if oid in _RSA_OIDS:
        # RFC 4055 section 5: parameters are NULL, and absent ones are taken too
        if parameters not in ([], [(der.NULL, b"")]):
            raise ParseError("RSA signature algorithm with parameters")
        return Scheme("rsa", _RSA_OIDS[oid])
    if oid == _PSS_OID:
        return _parse_pss(parameters)
    if oid in _ECDSA_OIDS or oid in _EDDSA_OIDS:
        if parameters:
            raise ParseError("ECDSA or EdDSA signature algorithm with parameters")
        if oid in _EDDSA_OIDS:
            return Scheme(_EDDSA_OIDS[oid], HashAlgorithm.IDENTITY)
        return Scheme("ecdsa", _ECDSA_OIDS[oid])
    raise AuthenticationError(f"signature algorithm {_WEAK_OIDS.get(oid, oid)} is not supported")


def _parse_algorithm(algorithm: bytes) -> tuple[str, list[tuple[int, bytes]]]:
    """OID and what follows it, at most one element."""
    parts = der.items(der.contents(algorithm, der.SEQUENCE))
    if not 1 <= len(parts) <= 2 or parts[0][0] != der.OID:
        raise ParseError("malformed AlgorithmIdentifier")
    return der.read_oid(parts[0][1]), parts[1:]


def _parse_hash(algorithm: bytes) -> HashAlgorithm:
    oid, parameters = _parse_algorithm(algorithm)
    if parameters not in ([], [(der.NULL, b"")]):
        raise ParseError("hash algorithm with parameters")
    if oid not in _HASH_OIDS:
        raise AuthenticationError(f"hash algorithm {oid} is not supported")
    return _HASH_OIDS[oid]


def _parse_pss(parameters: list[tuple[int, bytes]]) -> Scheme:
    """RSASSA-PSS-params (RFC 4055 section 3.1). Every field may be left out; the defaults are SHA-1 and its size."""
    if len(parameters) != 1 or parameters[0][0] != der.SEQUENCE:
        raise ParseError("RSASSA-PSS without parameters")
    fields = der.items(parameters[0][1])
    tags = [tag for tag, _ in fields]
    if tags != sorted(set(tags)) or not set(tags) <= {der.context(number) for number in range(4)}:
        raise ParseError("malformed RSASSA-PSS parameters")
    given = {tag - der.context(0): value for tag, value in fields}
    hash_ = _parse_hash(given[0]) if 0 in given else HashAlgorithm.SHA1
    mgf_hash = HashAlgorithm.SHA1
    if 1 in given:
        oid, rest = _parse_algorithm(given[1])
        if oid != _MGF1_OID:
            raise AuthenticationError(f"RSASSA-PSS with mask generation function {oid}")
        # CVE-2018-6459: MGF1 has a parameter, the hash
        if len(rest) != 1 or rest[0][0] != der.SEQUENCE:
            raise ParseError("RSASSA-PSS: MGF1 without its hash")
        mgf_hash = _parse_hash(der.emit(*rest[0]))
    salt_len = _pss_int(given[2]) if 2 in given else 20
    if 3 in given and _pss_int(given[3]) != 1:
        raise ParseError("RSASSA-PSS with another trailer than 0xbc")
    if mgf_hash != hash_:
        raise AuthenticationError("RSASSA-PSS with different hashes for message and mask")
    if not 0 <= salt_len <= RSA_BITS_MAX // 8:
        raise ParseError(f"RSASSA-PSS with a salt of {salt_len} octets")
    return Scheme("rsa/pss", hash_, salt_len)


def _pss_int(value: bytes) -> int:
    return der.read_int(der.contents(value, der.INTEGER), octets_max=8)


# Keys

_CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1, ec.BrainpoolP256R1, ec.BrainpoolP384R1, ec.BrainpoolP512R1)


def key_family(key: object) -> str:
    """rsa, ecdsa, ed25519 or ed448; AuthenticationError for anything else."""
    if isinstance(key, rsa.RSAPublicKey | rsa.RSAPrivateKey):
        return "rsa"
    if isinstance(key, ec.EllipticCurvePublicKey | ec.EllipticCurvePrivateKey):
        return "ecdsa"
    if isinstance(key, ed25519.Ed25519PublicKey | ed25519.Ed25519PrivateKey):
        return "ed25519"
    if isinstance(key, ed448.Ed448PublicKey | ed448.Ed448PrivateKey):
        return "ed448"
    raise AuthenticationError("the key is of a type that signs nothing in IKEv2")


def key_bits(key: PublicKey | PrivateKeyObject) -> int:
    """Size of the key as constraints count it: RSA modulus, or order of the curve."""
    if isinstance(key, ed25519.Ed25519PublicKey | ed25519.Ed25519PrivateKey):
        return 256
    return 456 if isinstance(key, ed448.Ed448PublicKey | ed448.Ed448PrivateKey) else key.key_size


def load_spki(spki: bytes) -> PublicKey:
    """The key in a DER SubjectPublicKeyInfo, checked to be sane. ParseError."""
    if len(spki) > 8192:
        raise ParseError("public key is too long")
    try:
        key = serialization.load_der_public_key(spki)
    except Exception as error:  # garbage makes cryptography raise more than it documents
        raise ParseError(f"public key cannot be read: {type(error).__name__}") from None
    if isinstance(key, rsa.RSAPublicKey):
        _check_rsa(key)
    elif isinstance(key, ec.EllipticCurvePublicKey):
        if not isinstance(key.curve, _CURVES):
            raise ParseError(f"elliptic curve {key.curve.name} is not supported")
    elif not isinstance(key, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey):
        raise ParseError("public key of a type that signs nothing in IKEv2")
    return key


def _check_rsa(key: rsa.RSAPublicKey) -> None:
    """CVE-2017-9022, CVE-2018-17540, CVE-2026-14957: degenerate keys."""
    numbers = key.public_numbers()
    if numbers.n % 2 == 0 or numbers.e % 2 == 0 or numbers.e < 3:
        raise ParseError("RSA key with an even modulus or a bad exponent")
    exponent_bits_max = RSA_SMALL_EXPONENT_BITS_MAX if key.key_size <= RSA_SMALL_BITS else RSA_EXPONENT_BITS_MAX
    if not 512 <= key.key_size <= RSA_BITS_MAX or numbers.e.bit_length() > exponent_bits_max:
        raise ParseError(f"RSA key of {key.key_size} bits, exponent of {numbers.e.bit_length()}")


# Constraints

_FAMILIES = ("pubkey", "rsa", "rsa/pss", "ecdsa", "ed25519", "ed448")
_HASH_WORDS: dict[str, int] = {
    "sha1": HashAlgorithm.SHA1,
    "sha256": HashAlgorithm.SHA2_256,
    "sha384": HashAlgorithm.SHA2_384,
    "sha512": HashAlgorithm.SHA2_512,
    "identity": HashAlgorithm.IDENTITY,
}


@dataclass(frozen=True)
class SchemeRule:
    """One word such as rsa-2048-sha256: a family (``pubkey`` is any), least bits, and hashes (none is any)."""

    family: str = "pubkey"
    bits_min: int = 0
    hashes: tuple[int, ...] = ()

    def takes_family(self, family: str) -> bool:
        """Whether signatures of that family may be: ``rsa`` takes both paddings, ``rsa/pss`` one."""
        return self.family in ("pubkey", family) or (self.family == "rsa" and family == "rsa/pss")

    def takes_key(self, key: PublicKey | PrivateKeyObject) -> bool:
        """Whether keys of that type and size may sign."""
        family, bits = key_family(key), key_bits(key)
        if self.family not in ("pubkey", family) and (self.family, family) != ("rsa/pss", "rsa"):
            return False
        return bits >= (self.bits_min or (RSA_BITS_MIN if family == "rsa" else 0))

    def takes(self, scheme: Scheme, key: PublicKey | PrivateKeyObject) -> bool:
        """Whether that key may sign so. SHA-1 may where it is named."""
        if not self.takes_family(scheme.family) or not self.takes_key(key):
            return False
        if scheme.hash == HashAlgorithm.IDENTITY:
            # RFC 8420 section 2: EdDSA has its hash within. By its name it is meant, whatever hashes others may have
            return self.family != "pubkey" or not self.hashes or scheme.hash in self.hashes
        return scheme.hash in (self.hashes or (2, 3, 4))


@dataclass(frozen=True)
class Constraints:
    """What keys and signatures may be, from swanctl's ``auth``. Empty tuples: whatever is not weak."""

    chain: tuple[SchemeRule, ...] = ()
    "for certificates, and for AUTH if ``ike`` is empty"
    ike: tuple[SchemeRule, ...] = ()
    "for AUTH"
    text: str = field(default="pubkey", compare=False)

    @property
    def for_auth(self) -> tuple[SchemeRule, ...]:
        """The rules for the AUTH payload."""
        return self.ike or self.chain or _DEFAULT_RULES

    @property
    def hashes(self) -> frozenset[int]:
        """What an AUTH may be hashed with, for the peer to choose from."""
        found: set[int] = set()
        for rule in self.for_auth:
            # RFC 8420 section 2: EdDSA has its hash within
            within = rule.family in ("ed25519", "ed448")
            found.update((HashAlgorithm.IDENTITY,) if within else rule.hashes or OUR_HASHES)
        return frozenset(found)

    def check_certificate(self, scheme: Scheme, signer: PublicKey) -> None:
        """Whether a certificate, CRL or OCSP response may be signed so. AuthenticationError. SHA-1 never may."""
        if scheme.hash == HashAlgorithm.SHA1:
            raise AuthenticationError(f"a certificate is signed with {scheme}, which is not safe")
        if not any(rule.takes(scheme, signer) for rule in self.chain or _DEFAULT_RULES):
            raise AuthenticationError(f"a certificate is signed with {describe_key(signer)}, {scheme}: not allowed")

    def check_key(self, key: PublicKey) -> None:
        """Whether a certificate may hold that key. AuthenticationError."""
        if not any(rule.takes_key(key) for rule in self.chain or _DEFAULT_RULES):
            raise AuthenticationError(f"a key {describe_key(key)} is not allowed")

    def check_auth(self, scheme: Scheme, key: PublicKey) -> None:
        """Whether AUTH may be signed so. AuthenticationError."""
        if not any(rule.takes(scheme, key) for rule in self.for_auth):
            raise AuthenticationError(f"AUTH is signed with {describe_key(key)}, {scheme}: not allowed")

    def __str__(self) -> str:
        return self.text


_DEFAULT_RULES = (SchemeRule(),)
ANY_SCHEME = Constraints()
"whatever is not weak"


def describe_key(key: PublicKey | PrivateKeyObject) -> str:
    """``RSA 2048`` and so on."""
    return f"{key_family(key).upper()} {key_bits(key)}"


def parse_constraints(text: str) -> Constraints:
    """swanctl's ``auth``: ``rsa-2048-sha256-ecdsa-256-sha256``, ``rsa/pss-sha256``, ``pubkey-ike:pubkey-sha384``.

    A key type without hashes has those of the next one that names some, so ``rsa-2048-ecdsa-256-sha256`` is SHA-256 for
    both. A key type with ``ike:`` before it is for AUTH alone; without any all is for both. ConfigError.
    """
    rules: dict[str, list[SchemeRule]] = {"chain": [], "ike": []}
    target = "chain"
    for word in text.strip().lower().replace(",", "-").split("-"):
        if word.startswith("ike:"):
            target, word = "ike", word[4:]
        elif word in _FAMILIES:
            target = "chain"
        _add_word(rules[target], word, text)
    return Constraints(_filled(rules["chain"]), _filled(rules["ike"]), text)


def _add_word(rules: list[SchemeRule], word: str, text: str) -> None:
    if word in _FAMILIES:
        rules.append(SchemeRule(word))
    elif word.isdigit() and len(word) <= 5 and rules and not rules[-1].hashes and rules[-1].family != "pubkey":
        rules[-1] = SchemeRule(rules[-1].family, int(word))
    elif word in _HASH_WORDS and rules:
        last = rules[-1]
        rules[-1] = SchemeRule(last.family, last.bits_min, (*last.hashes, _HASH_WORDS[word]))
    else:
        raise ConfigError(f"auth {text!r}: {word!r} is not a key type, size or hash, or is not in its place")


def _filled(rules: list[SchemeRule]) -> tuple[SchemeRule, ...]:
    filled: list[SchemeRule] = []
    following: tuple[int, ...] = ()
    for rule in reversed(rules):
        following = rule.hashes or following
        filled.append(SchemeRule(rule.family, rule.bits_min, following))
    return tuple(reversed(filled))


# AUTH by signature


def sign(
    key: PrivateKeyObject, octets: bytes, *, peer_hashes: tuple[int, ...] = (), constraints: Constraints = ANY_SCHEME
) -> tuple[AuthMethod, bytes]:
    """Method and data of our AUTH payload. ``peer_hashes`` empty: the peer does no RFC 7427.

    AuthenticationError if there is no way to sign that the peer, our key and the constraints allow.
    """
    method, scheme = _how_to_sign(key, peer_hashes, constraints)
    signature = scheme.sign(key, octets)
    if method == AuthMethod.DIGITAL_SIGNATURE:
        algorithm = scheme.algorithm_identifier()
        return method, bytes((len(algorithm),)) + algorithm + signature
    if method in _ECDSA_METHODS:
        width = _ECDSA_METHODS[method][2]
        signature = b"".join(number.to_bytes(width, "big") for number in decode_dss_signature(signature))
    return method, signature


def can_sign(key: PrivateKeyObject, *, peer_hashes: tuple[int, ...], constraints: Constraints) -> bool:
    """Whether ``sign`` finds a way."""
    try:
        _how_to_sign(key, peer_hashes, constraints)
    except AuthenticationError:
        return False
    return True


def _how_to_sign(
    key: PrivateKeyObject, peer_hashes: tuple[int, ...], constraints: Constraints
) -> tuple[AuthMethod, Scheme]:
    if not peer_hashes:
        return _by_key_type(key, constraints)
    for scheme in _schemes_of_key(key, constraints):
        if scheme.hash in peer_hashes and any(rule.takes(scheme, key) for rule in constraints.for_auth):
            return AuthMethod.DIGITAL_SIGNATURE, scheme
    names = ", ".join(name_of(HashAlgorithm, number) for number in peer_hashes)
    raise AuthenticationError(f"no way to sign with our key {describe_key(key)}: the peer takes {names}")


def _schemes_of_key(key: PrivateKeyObject, constraints: Constraints) -> list[Scheme]:
    """In the order of preference: the hash as strong as the key, then stronger ones, then weaker ones."""
    family = key_family(key)
    if family in ("ed25519", "ed448"):
        return [Scheme(family, HashAlgorithm.IDENTITY)]
    bits = key_bits(key)
    limits = (3072, 7680) if family == "rsa" else (256, 384)
    best = HashAlgorithm.SHA2_256 + sum(bits > limit for limit in limits)
    order = [*range(best, HashAlgorithm.SHA2_512 + 1), *range(best - 1, HashAlgorithm.SHA2_256 - 1, -1)]
    families = [family]
    if family == "rsa":
        wanted = [rule.family for rule in constraints.for_auth if rule.takes_key(key)]
        families = ["rsa/pss"] if wanted and all(word == "rsa/pss" for word in wanted) else ["rsa", "rsa/pss"]
    sizes = {number: hash_.digest_size for number, hash_ in _HASHES.items()}
    return [Scheme(name, number, sizes[number] if name == "rsa/pss" else 0) for number in order for name in families]


def _by_key_type(key: PrivateKeyObject, constraints: Constraints) -> tuple[AuthMethod, Scheme]:
    """Methods 1 and 9 to 11."""
    if isinstance(key, ec.EllipticCurvePrivateKey):
        for method, (number, curve, _) in _ECDSA_METHODS.items():
            if isinstance(key.curve, curve):
                scheme = Scheme("ecdsa", number)
                _require(scheme, key, constraints)
                return AuthMethod(method), scheme
    if isinstance(key, rsa.RSAPrivateKey):
        # RFC 7296 section 3.8 gives peers without RFC 7427 no other hash to count on
        scheme = Scheme("rsa", HashAlgorithm.SHA1)
        _require(scheme, key, constraints)
        return AuthMethod.RSA, scheme
    raise AuthenticationError(f"the peer does no RFC 7427, our key {describe_key(key)} needs it")


def _require(scheme: Scheme, key: PrivateKeyObject, constraints: Constraints) -> None:
    if not any(rule.takes(scheme, key) for rule in constraints.for_auth):
        why = "only ike:rsa-sha1 allows that" if scheme.hash == HashAlgorithm.SHA1 else "not allowed"
        raise AuthenticationError(f"the peer does no RFC 7427, so we would sign with {scheme}: {why}")


def verify(key: PublicKey, method: int, data: bytes, octets: bytes, constraints: Constraints = ANY_SCHEME) -> str:
    """Check the signature of an AUTH payload; its scheme, for the log. AuthenticationError, whatever is wrong."""
    try:
        if method == AuthMethod.DIGITAL_SIGNATURE:
            length = data[0] if data else 0
            if length == 0 or len(data) <= 1 + length:
                raise ParseError("AUTH data of method 14 is cut off")
            scheme, signature = parse_scheme(data[1 : 1 + length]), data[1 + length :]
        elif method == AuthMethod.RSA:
            scheme, signature = _rsa_scheme(key, data), data
        elif method in _ECDSA_METHODS:
            scheme, signature = _fixed_ecdsa(key, method, data)
        else:
            raise AuthenticationError(f"AUTH method {name_of(AuthMethod, method)} is no signature that we take")
    except ParseError as error:
        raise AuthenticationError(str(error)) from None
    constraints.check_auth(scheme, key)
    scheme.verify(key, signature, octets)
    return str(scheme)


def _rsa_scheme(key: PublicKey, signature: bytes) -> Scheme:
    """Method 1 leaves the hash to the signature (RFC 7296 section 3.8)."""
    if not isinstance(key, rsa.RSAPublicKey):
        raise AuthenticationError(f"AUTH method RSA with a key {describe_key(key)}")
    try:
        info = key.recover_data_from_signature(signature, padding.PKCS1v15(), None)
    except (InvalidSignature, UnsupportedAlgorithm, ValueError):
        raise AuthenticationError("AUTH signature RSA is wrong") from None
    for number, oid in _OID_OF_HASH.items():
        algorithm = der.emit(der.SEQUENCE, der.emit_oid(oid), der.emit(der.NULL))
        size = _HASHES[number].digest_size
        if info[:-size] == der.emit(der.SEQUENCE, algorithm, der.emit(der.OCTET_STRING, bytes(size)))[:-size]:
            return Scheme("rsa", number)
    raise AuthenticationError("AUTH signature RSA is wrong, or made with a hash that is not supported")


def _fixed_ecdsa(key: PublicKey, method: int, data: bytes) -> tuple[Scheme, bytes]:
    """Methods 9 to 11: r and s in fixed width (RFC 4754 section 7); zero is no value of either."""
    number, curve, width = _ECDSA_METHODS[method]
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, curve):
        raise AuthenticationError(f"AUTH method {name_of(AuthMethod, method)} with a key {describe_key(key)}")
    r, s = int.from_bytes(data[:width], "big"), int.from_bytes(data[width:], "big")
    if len(data) != 2 * width or not r or not s:
        raise AuthenticationError(f"AUTH signature {name_of(AuthMethod, method)} of {len(data)} octets, or zero")
    return Scheme("ecdsa", number), encode_dss_signature(r, s)
