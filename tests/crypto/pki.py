"""A certificate authority for tests, and where the vectors of cryptography are."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import cryptography_vectors
from cryptography import x509 as cx
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from ipsec.crypto.x509 import Certificate

VECTORS = Path(cryptography_vectors.__file__).parent
PKITS = VECTORS / "x509" / "PKITS_data"
WALL = datetime(2026, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)

EC_KEY = ec.generate_private_key(ec.SECP256R1())
EC384_KEY = ec.generate_private_key(ec.SECP384R1())
EC521_KEY = ec.generate_private_key(ec.SECP521R1())
RSA_KEY = rsa.generate_private_key(65537, 2048)
ED25519_KEY = ed25519.Ed25519PrivateKey.generate()
ED448_KEY = ed448.Ed448PrivateKey.generate()


def dn(common: str) -> cx.Name:
    return cx.Name([cx.NameAttribute(NameOID.ORGANIZATION_NAME, "x"), cx.NameAttribute(NameOID.COMMON_NAME, common)])


class Ca:
    """Issues certificates, CRLs and more authorities."""

    def __init__(self, common: str = "Root", parent: Ca | None = None, key: Any = None, **more: Any) -> None:
        self.key = key or ec.generate_private_key(ec.SECP256R1())
        self.name = dn(common)
        basic = cx.BasicConstraints(ca=True, path_length=more.pop("path_length", None))
        extensions = [(basic, True), *more.pop("extensions", [])]
        signer = parent or self
        self.built = signer.sign(self.name, self.key, extensions, **more)
        self.certificate = Certificate(self.built.public_bytes(Encoding.DER))

    def sign(self, name: cx.Name, key: Any, extensions: list[tuple[Any, bool]], **more: Any) -> cx.Certificate:
        builder = cx.CertificateBuilder().subject_name(name).issuer_name(self.name).public_key(key.public_key())
        builder = builder.serial_number(more.get("serial") or cx.random_serial_number())
        builder = builder.not_valid_before(more.get("not_before", WALL - 10 * DAY))
        builder = builder.not_valid_after(more.get("not_after", WALL + 10 * DAY))
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        return builder.sign(self.key, more.get("hash", self.hash()))

    def hash(self) -> Any:
        return None if isinstance(self.key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey) else hashes.SHA256()

    def issue(self, common: str = "peer", key: Any = None, *, sans: tuple[Any, ...] = (), **more: Any) -> Certificate:
        extensions = list(more.pop("extensions", []))
        if sans:
            extensions.append((cx.SubjectAlternativeName(sans), False))
        name = more.pop("name", dn(common))
        built = self.sign(name, key or EC_KEY, extensions, **more)
        return Certificate(built.public_bytes(Encoding.DER))

    def crl(self, *serials: int, this: datetime = WALL - DAY, due: datetime = WALL + DAY, **more: Any) -> bytes:
        builder = cx.CertificateRevocationListBuilder().issuer_name(self.name).last_update(this).next_update(due)
        for serial in serials:
            entry = cx.RevokedCertificateBuilder().serial_number(serial).revocation_date(this)
            entry = entry.add_extension(cx.CRLReason(cx.ReasonFlags.key_compromise), False)
            builder = builder.add_revoked_certificate(entry.build())
        for extension, critical in more.get("extensions", ()):
            builder = builder.add_extension(extension, critical)
        return builder.sign(more.get("key", self.key), self.hash()).public_bytes(Encoding.DER)
