"""A public key infrastructure made afresh for each session, in the folders that swanctl reads.

``x509ca/root.pem``, ``x509ca/intermediate.pem`` (not for the one who has to learn it from its peer), ``x509/`` and
``private/`` with ``<a|b>-<kind>.pem``, and ``x509crl/root.pem``, on which the revoked ones are.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.interop.lab import OUTER

DAY = timedelta(days=1)
#: what there is for each side
KINDS = ("rsa", "rsa3072", "ecdsa256", "ecdsa384", "ecdsa521", "ed25519", "ed448")
#: the second one is for EAP-TLS
PURPOSES = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)
SPECIAL = ("intermediate", "revoked", "expired", "stranger")


def name_of(side: int) -> str:
    """The FQDN of a or b."""
    return f"{'ab'[side]}.interop.test"


def subject_of(side: int, kind: str) -> str:
    """The distinguished name in a certificate, as a configuration has it."""
    return f"C=CH, O=Interop, OU={kind}, CN={name_of(side)}"


def _name(unit: str, common: str) -> x509.Name:
    parts = [(NameOID.COUNTRY_NAME, "CH"), (NameOID.ORGANIZATION_NAME, "Interop")]
    parts += [(NameOID.ORGANIZATIONAL_UNIT_NAME, unit), (NameOID.COMMON_NAME, common)]
    return x509.Name([x509.NameAttribute(oid, value) for oid, value in parts])


def make_key(kind: str) -> CertificateIssuerPrivateKeyTypes:
    """A private key of one of KINDS; what is special about a certificate is not its key."""
    match kind:
        case "rsa":
            return rsa.generate_private_key(65537, 2048)
        case "rsa3072":
            return rsa.generate_private_key(65537, 3072)
        case "ecdsa384":
            return ec.generate_private_key(ec.SECP384R1())
        case "ecdsa521":
            return ec.generate_private_key(ec.SECP521R1())
        case "ed25519":
            return ed25519.Ed25519PrivateKey.generate()
        case "ed448":
            return ed448.Ed448PrivateKey.generate()
    return ec.generate_private_key(ec.SECP256R1())


class Authority:
    """A CA with its key."""

    def __init__(self, common: str, kind: str, issuer: Authority | None = None) -> None:
        self.key = make_key(kind)
        self.name = _name("CA", common)
        signer = issuer or self
        usage = x509.KeyUsage(
            **dict.fromkeys(
                ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
                False,
            ),
            key_cert_sign=True,
            crl_sign=True,
            encipher_only=False,
            decipher_only=False,
        )
        builder = (
            _builder(self.name, signer.name, self.key.public_key(), -DAY, 30 * DAY)
            .add_extension(x509.BasicConstraints(True, None), True)
            .add_extension(usage, True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.key.public_key()), False)
        )
        self.certificate = builder.sign(signer.key, hashes.SHA256())

    def issue(
        self, side: int, kind: str, key: CertificateIssuerPrivateKeyTypes, *, expired: bool = False
    ) -> x509.Certificate:
        """A certificate for a gateway."""
        names: list[x509.GeneralName] = [x509.DNSName(name_of(side)), x509.RFC822Name(f"gw@{name_of(side)}")]
        names += [x509.IPAddress(ip_address(OUTER[version][side])) for version in (4, 6)]
        begin, end = (-30 * DAY, -DAY) if expired else (-DAY, 30 * DAY)
        builder = (
            _builder(_name(kind, name_of(side)), self.name, key.public_key(), begin, end)
            .add_extension(x509.BasicConstraints(False, None), True)
            .add_extension(x509.SubjectAlternativeName(names), False)
            .add_extension(x509.ExtendedKeyUsage(PURPOSES), False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), False)
        )
        return builder.sign(self.key, hashes.SHA256())

    def revoke(self, certificates: list[x509.Certificate]) -> x509.CertificateRevocationList:
        """The CRL on which these are."""
        now = datetime.now(UTC)
        builder = x509.CertificateRevocationListBuilder(self.name, now - DAY, now + DAY)
        builder = builder.add_extension(x509.CRLNumber(1), False).add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), False
        )
        for certificate in certificates:
            entry = x509.RevokedCertificateBuilder(certificate.serial_number, now - DAY)
            builder = builder.add_revoked_certificate(entry.build())
        return builder.sign(self.key, hashes.SHA256())


def _builder(
    subject: x509.Name, issuer: x509.Name, key: object, begin: timedelta, end: timedelta
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder(issuer, subject, key, x509.random_serial_number(), now + begin, now + end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), False)  # type: ignore[arg-type]
    )  # fmt: skip


def make_all(folder: Path) -> None:
    """Write everything; about a second of work, most of it RSA keys."""
    for name in ("x509", "x509ca", "x509crl", "private"):
        (folder / name).mkdir(parents=True)
    pem = serialization.Encoding.PEM
    root = Authority("Root", "rsa")
    middle = Authority("Intermediate", "ecdsa256", root)
    stranger = Authority("Stranger", "ecdsa256")
    for name, authority in (("root", root), ("intermediate", middle), ("stranger", stranger)):
        (folder / "x509ca" / f"{name}.pem").write_bytes(authority.certificate.public_bytes(pem))
    revoked = []
    for side in (0, 1):
        for kind in (*KINDS, *SPECIAL):
            key = make_key(kind)
            issuer = {"intermediate": middle, "stranger": stranger}.get(kind, root)
            certificate = issuer.issue(side, kind, key, expired=kind == "expired")
            if kind == "revoked":
                revoked.append(certificate)
            file = f"{'ab'[side]}-{kind}.pem"
            (folder / "x509" / file).write_bytes(certificate.public_bytes(pem))
            secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
            (folder / "private" / file).touch(mode=0o600)
            (folder / "private" / file).write_bytes(secret)
    (folder / "x509crl" / "root.pem").write_bytes(root.revoke(revoked).public_bytes(pem))
