"""Key files: formats, passphrases, and errors that hold nothing of a key."""

from __future__ import annotations

from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization as ser
from cryptography.hazmat.primitives.asymmetric import dsa, rsa, x25519
from cryptography.hazmat.primitives.serialization import pkcs12

from ipsec.crypto.keyfiles import load_pkcs12, load_private_key, load_public_key
from ipsec.errors import ConfigError
from tests.crypto.pki import EC_KEY, ED448_KEY, ED25519_KEY, PKITS, RSA_KEY, VECTORS, Ca

PEM, DER = ser.Encoding.PEM, ser.Encoding.DER
PKCS8, TRADITIONAL = ser.PrivateFormat.PKCS8, ser.PrivateFormat.TraditionalOpenSSL
LOCK = ser.BestAvailableEncryption(b"pass phrase")
SPKI = ser.PublicFormat.SubjectPublicKeyInfo


@pytest.mark.parametrize("encoding", [PEM, DER])
@pytest.mark.parametrize(
    ("key", "form"),
    [
        (RSA_KEY, PKCS8),
        (RSA_KEY, TRADITIONAL),
        (EC_KEY, PKCS8),
        (EC_KEY, TRADITIONAL),
        (ED25519_KEY, PKCS8),
        (ED448_KEY, PKCS8),
    ],
)
def test_private_keys(key: Any, form: ser.PrivateFormat, encoding: ser.Encoding) -> None:
    plain = key.private_bytes(encoding, form, ser.NoEncryption())
    for passphrase in (None, "", "not needed", b"not needed"):
        loaded = load_private_key(plain, passphrase)
        assert loaded.public_key().public_bytes(DER, SPKI) == key.public_key().public_bytes(DER, SPKI)
    if form is TRADITIONAL and encoding is DER:
        return
    locked = key.private_bytes(encoding, form, LOCK)
    assert load_private_key(locked, "pass phrase").public_key() == key.public_key()
    for wrong in (None, "", "mistaken", "pass phrase "):
        with pytest.raises(ConfigError, match="passphrase") as caught:
            load_private_key(locked, wrong)
        assert not wrong or wrong not in str(caught.value)
        assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"secret-material",
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        b"-----BEGIN PRIVATE KEY-----\nc2VjcmV0LW1hdGVyaWFs\n-----END PRIVATE KEY-----\n",
        bytes(1 << 21),
    ],
)
def test_what_is_no_key(data: bytes) -> None:
    for load in (load_private_key, load_public_key, load_pkcs12):
        with pytest.raises(ConfigError) as caught:
            load(data)
        assert "secret-material" not in str(caught.value)
        assert "c2VjcmV0" not in str(caught.value)


def test_keys_of_other_kinds() -> None:
    for key in (x25519.X25519PrivateKey.generate(), dsa.generate_private_key(1024)):
        with pytest.raises(ConfigError):
            load_private_key(key.private_bytes(PEM, PKCS8, ser.NoEncryption()))
        with pytest.raises(ConfigError):
            load_public_key(key.public_key().public_bytes(PEM, SPKI))


def test_short_rsa_keys() -> None:
    short = (VECTORS / "asymmetric" / "PKCS8" / "unenc-rsa-pkcs8.pem").read_bytes()
    assert load_private_key(short).key_size == 1024  # type: ignore[union-attr]
    assert isinstance(load_private_key(short), rsa.RSAPrivateKey)


@pytest.mark.parametrize("key", [RSA_KEY, EC_KEY, ED25519_KEY, ED448_KEY], ids=lambda key: type(key).__name__)
def test_public_keys(key: Any) -> None:
    expected = key.public_key().public_bytes(DER, SPKI)
    assert load_public_key(expected) == expected
    assert load_public_key(key.public_key().public_bytes(PEM, SPKI)) == expected


def test_pkcs1_public_key() -> None:
    data = RSA_KEY.public_key().public_bytes(PEM, ser.PublicFormat.PKCS1)
    assert load_public_key(data) == RSA_KEY.public_key().public_bytes(DER, SPKI)


def test_pkcs12() -> None:
    ca = Ca()
    end = ca.issue(key=EC_KEY)
    lock = ser.BestAvailableEncryption(b"pass")
    data = pkcs12.serialize_key_and_certificates(b"n", EC_KEY, end.x509, [ca.certificate.x509], lock)
    key, ends, authorities = load_pkcs12(data, "pass")
    assert key is not None
    assert key.public_key() == EC_KEY.public_key()
    assert (ends, authorities) == ((end,), (ca.certificate,))
    for wrong in (None, "wrong"):
        with pytest.raises(ConfigError, match="passphrase"):
            load_pkcs12(data, wrong)
    without = pkcs12.serialize_key_and_certificates(None, None, None, [ca.certificate.x509], lock)
    assert load_pkcs12(without, b"pass") == (None, (), (ca.certificate,))


def test_pkcs12_of_pkits() -> None:
    key, ends, _ = load_pkcs12((PKITS / "pkcs12" / "ValidCertificatePathTest1EE.p12").read_bytes(), "password")
    assert key is not None
    assert key.public_key() == ends[0].public_key


def test_what_is_too_long_is_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    private = EC_KEY.private_bytes(PEM, PKCS8, ser.NoEncryption())
    public = EC_KEY.public_key().public_bytes(PEM, SPKI)
    for load, data in ((load_private_key, private), (load_public_key, public)):
        monkeypatch.setattr("ipsec.crypto.keyfiles.KEY_FILE_OCTETS_MAX", len(data))
        load(data)
        monkeypatch.setattr("ipsec.crypto.keyfiles.KEY_FILE_OCTETS_MAX", len(data) - 1)
        with pytest.raises(ConfigError, match="larger"):
            load(data)
