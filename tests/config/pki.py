"""A small public key infrastructure in a directory, as swanctl lays it out."""

from __future__ import annotations

import datetime
from functools import lru_cache
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    pkcs12,
)

from ipsec.crypto.x509 import Certificate

BEGIN = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
END = datetime.datetime(2120, 1, 1, tzinfo=datetime.UTC)


@lru_cache
def key(name: str) -> ec.EllipticCurvePrivateKey:
    """The private key of somebody."""
    return ec.generate_private_key(ec.SECP256R1())


@lru_cache
def certificate(name: str, issuer: str) -> x509.Certificate:
    """The certificate of CN=``name`` with the host name ``name``.example.org; that of "old" has expired."""
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(_name(issuer))
        .public_key(key(name).public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(BEGIN.replace(year=2049) if name == "early" else BEGIN)
        .not_valid_after(END.replace(year=2021) if name == "old" else END)
        .add_extension(x509.BasicConstraints(ca=name == issuer, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(f"{name}.example.org")]), critical=False)
    )
    return builder.sign(key(issuer), hashes.SHA256())


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])


def pem(name: str, issuer: str = "ca") -> bytes:
    """A certificate as PEM."""
    return certificate(name, issuer).public_bytes(Encoding.PEM)


def der(name: str, issuer: str = "ca") -> bytes:
    """A certificate as DER."""
    return certificate(name, issuer).public_bytes(Encoding.DER)


def key_pem(name: str, passphrase: bytes | None = None) -> bytes:
    """A private key as PKCS#8 PEM."""
    protection = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    return key(name).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, protection)


def spki(name: str) -> bytes:
    """A raw public key."""
    return key(name).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def container(name: str, passphrase: bytes) -> bytes:
    """Key, certificate and CA certificate as PKCS#12."""
    protection = BestAvailableEncryption(passphrase)
    return pkcs12.serialize_key_and_certificates(
        name.encode(), key(name), certificate(name, "ca"), [certificate("ca", "ca")], protection
    )


def crl() -> bytes:
    """A revocation list of the CA as PEM."""
    builder = x509.CertificateRevocationListBuilder().issuer_name(_name("ca")).last_update(BEGIN).next_update(END)
    return builder.sign(key("ca"), hashes.SHA256()).public_bytes(Encoding.PEM)


def write(base: Path, path: str, data: bytes, mode: int = 0o600) -> Path:
    """A file below ``base`` with its directory."""
    file = base / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    file.chmod(mode)
    return file


def lay_out(base: Path) -> Path:
    """``base`` with a CA, and certificate and key of moon."""
    write(base, "x509ca/ca.pem", pem("ca", "ca"))
    write(base, "x509/moon.pem", pem("moon"))
    write(base, "private/moon.pem", key_pem("moon"))
    return base


def parsed(name: str, issuer: str = "ca") -> Certificate:
    """A certificate as the package reads it."""
    return Certificate(der(name, issuer))
