"""Private keys, PKCS#12 containers and public keys as they lie in files. No error text holds anything of a key."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, pkcs12

from ipsec.crypto.auth import AuthenticationError, PrivateKeyObject, key_bits, key_family, load_spki
from ipsec.crypto.x509 import Certificate
from ipsec.errors import ConfigError, ParseError

T = TypeVar("T")

KEY_FILE_OCTETS_MAX = 1 << 20
RSA_BITS_MIN = 1024
"below this nothing is loaded; what may be used is a matter of constraints"


def load_private_key(data: bytes, passphrase: str | bytes | None = None) -> PrivateKeyObject:
    """A private key in PKCS#8 (encrypted or not), PKCS#1 or SEC1, PEM or DER. ConfigError."""
    pem = b"-----BEGIN" in data
    if pem and b"PRIVATE KEY-----" not in data:
        raise ConfigError("there is no private key between the PEM markers")
    load = serialization.load_pem_private_key if pem else serialization.load_der_private_key
    key = _load(data, passphrase, load)
    return _checked(key)


def load_pkcs12(
    data: bytes, passphrase: str | bytes | None = None
) -> tuple[PrivateKeyObject | None, tuple[Certificate, ...], tuple[Certificate, ...]]:
    """Private key, its certificate and others such, and certificate authorities of a PKCS#12 container. ConfigError."""
    bundle = _load(data, passphrase, pkcs12.load_pkcs12)
    key = _checked(bundle.key) if bundle.key is not None else None
    ends: list[Certificate] = []
    authorities: list[Certificate] = []
    found = [bundle.cert, *bundle.additional_certs]
    for certificate in (_certificate(one.certificate) for one in found if one is not None):
        (authorities if certificate.is_ca else ends).append(certificate)
    return key, tuple(ends), tuple(authorities)


def load_public_key(data: bytes) -> bytes:
    """The DER SubjectPublicKeyInfo of a public key file: SPKI or PKCS#1, PEM or DER. ConfigError."""
    load = serialization.load_pem_public_key if b"-----BEGIN" in data else serialization.load_der_public_key
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            key = load(_bounded(data))
        spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        load_spki(spki)
    except ParseError as error:
        raise ConfigError(str(error)) from None
    except ConfigError:
        raise
    except Exception:  # garbage makes cryptography raise more than it documents
        raise ConfigError("not a public key in PEM or DER") from None
    return spki


def _bounded(data: bytes) -> bytes:
    if len(data) > KEY_FILE_OCTETS_MAX:
        raise ConfigError(f"the file is larger than {KEY_FILE_OCTETS_MAX} octets")
    return data


def _load(data: bytes, passphrase: str | bytes | None, load: Callable[[bytes, bytes | None], T]) -> T:
    """``load`` with the passphrase, told apart: none given, a wrong one, not needed, garbage."""
    secret = passphrase.encode("utf-8") if isinstance(passphrase, str) else passphrase
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return load(_bounded(data), secret or None)
            except TypeError:
                if not secret:
                    raise ConfigError("the file is encrypted and no passphrase is configured for it") from None
                return load(data, None)  # swanctl also tries a passphrase on files that need none
    except ConfigError:
        raise
    except Exception:  # garbage makes cryptography raise more than it documents
        if secret:
            raise ConfigError("the passphrase is wrong, or the file is no key") from None
        raise ConfigError("the file cannot be read: not a key in PEM or DER, or it needs a passphrase") from None


def _checked(key: object) -> PrivateKeyObject:
    try:
        family = key_family(key)
    except AuthenticationError as error:
        raise ConfigError(str(error)) from None
    found: PrivateKeyObject = key  # type: ignore[assignment]  # key_family knows no others
    if isinstance(key, rsa.RSAPrivateKey) and key_bits(key) < RSA_BITS_MIN:
        raise ConfigError(f"the {family} key has {key_bits(key)} bits, at least {RSA_BITS_MIN} are needed")
    return found


def _certificate(certificate: x509.Certificate) -> Certificate:
    try:
        return Certificate(certificate.public_bytes(Encoding.DER))
    except ParseError as error:
        raise ConfigError(str(error)) from None
