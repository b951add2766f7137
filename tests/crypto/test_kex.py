"""Key exchange: both sides agree, and no bad public value of RFC 6989 passes. Known answers are in tests/vectors."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import cryptography_vectors
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from ipsec._modp import Modulus
from ipsec.crypto import kex
from ipsec.crypto.kex import key_exchange, supported_methods
from ipsec.crypto.mlkem import is_kem
from ipsec.errors import ParseError, SuiteError
from ipsec.wire.iana import KeMethod

#: ML-KEM, in which the two ends do different things, is in test_mlkem
METHODS = [KeMethod(number) for number in supported_methods() if not is_kem(number)]
MODP = [method for method in METHODS if method.name.startswith("MODP")]
SUBGROUPS = [KeMethod.MODP_1024_160, KeMethod.MODP_2048_224, KeMethod.MODP_2048_256]
ECP = [method for method in METHODS if method.name.startswith(("ECP", "BRAINPOOL"))]
#: RFC 7296 section 3.4, RFC 5903 section 7, RFC 6954 section 2, RFC 8031 section 3: octets of KE data and of the secret
SIZES = {
    KeMethod.MODP_1024: (128, 128),
    KeMethod.MODP_1536: (192, 192),
    KeMethod.MODP_2048: (256, 256),
    KeMethod.MODP_3072: (384, 384),
    KeMethod.MODP_4096: (512, 512),
    KeMethod.MODP_6144: (768, 768),
    KeMethod.MODP_8192: (1024, 1024),
    KeMethod.MODP_1024_160: (128, 128),
    KeMethod.MODP_2048_224: (256, 256),
    KeMethod.MODP_2048_256: (256, 256),
    KeMethod.ECP_192: (48, 24),
    KeMethod.ECP_224: (56, 28),
    KeMethod.ECP_256: (64, 32),
    KeMethod.ECP_384: (96, 48),
    KeMethod.ECP_521: (132, 66),
    KeMethod.BRAINPOOL_P256R1: (64, 32),
    KeMethod.BRAINPOOL_P384R1: (96, 48),
    KeMethod.BRAINPOOL_P512R1: (128, 64),
    KeMethod.CURVE_25519: (32, 32),
    KeMethod.CURVE_448: (56, 56),
}


def name(method):
    return method.name


def seeded(seed):
    return random.Random(seed).randbytes


@pytest.mark.parametrize("method", METHODS, ids=name)
def test_both_sides_agree(method):
    ours, theirs = key_exchange(method, seeded(1)), key_exchange(method, seeded(2))
    assert ours.public != theirs.public
    assert ours.method == method
    secret = ours.shared(theirs.public)
    assert secret == theirs.shared(ours.public)
    assert (len(ours.public), len(secret)) == SIZES[method]
    assert key_exchange(method, seeded(1)).public == ours.public


@pytest.mark.parametrize("method", METHODS, ids=name)
@pytest.mark.parametrize("octet", [b"\0", b"\xff"])
def test_poor_randomness_gives_valid_values(method, octet):
    """Whatever the source returns, the public value is one that a peer accepts."""
    poor = key_exchange(method, lambda size: octet * size)
    other = key_exchange(method, seeded(3))
    assert other.shared(poor.public) == poor.shared(other.public)


@pytest.mark.parametrize("method", METHODS, ids=name)
def test_wrong_length_is_refused(method):
    ours, theirs = key_exchange(method, seeded(1)), key_exchange(method, seeded(2)).public
    for value in (b"", theirs[:1], theirs[:-1], theirs + b"\0", b"\0" + theirs, theirs * 2, bytes(65535)):
        with pytest.raises(ParseError, match=f"{method.name} has {len(theirs)} octets, not {len(value)}"):
            ours.shared(value)


@pytest.mark.parametrize("method", MODP, ids=name)
def test_values_outside_the_group_are_refused(method):
    """RFC 6989 section 2.1."""
    ours = key_exchange(method, seeded(1))
    prime, size = kex._group(method).prime, len(ours.public)
    for value in (0, 1, prime - 1, prime, prime + 1, (1 << 8 * size) - 1):
        with pytest.raises(ParseError, match=f"not a valid public value of {method.name}"):
            ours.shared(value.to_bytes(size, "big"))


@pytest.mark.parametrize("method", SUBGROUPS, ids=name)
def test_values_outside_the_subgroup_are_refused(method):
    """RFC 6989 section 2.2: an element of another subgroup would tell the exponent modulo its order."""
    ours = key_exchange(method, seeded(1))
    group = kex._group(method)
    size = len(ours.public)
    for value in (2, 3, group.prime - 2, group.prime - int.from_bytes(ours.public, "big")):
        assert pow(value, group.order, group.prime) != 1
        with pytest.raises(ParseError, match="not a valid public value"):
            ours.shared(value.to_bytes(size, "big"))


@pytest.mark.parametrize("method", ECP, ids=name)
def test_points_off_the_curve_are_refused(method):
    """RFC 6989 section 2.3."""
    ours, theirs = key_exchange(method, seeded(1)), key_exchange(method, seeded(2)).public
    half = len(theirs) // 2
    swapped = theirs[half:] + theirs[:half]
    flipped = theirs[:-1] + bytes((theirs[-1] ^ 1,))
    for value in (bytes(2 * half), b"\xff" * 2 * half, swapped, flipped, theirs[:half] + bytes(half)):
        with pytest.raises(ParseError, match="not a valid public value"):
            ours.shared(value)


@pytest.mark.parametrize(("method", "size"), [(KeMethod.CURVE_25519, 32), (KeMethod.CURVE_448, 56)], ids=str)
def test_points_of_small_order_are_refused(method, size):
    """RFC 8031 section 3.2 leaves the check for zero to the receiver; RFC 7748 section 6 has it."""
    ours = key_exchange(method, seeded(1))
    for value in (0, 1):
        with pytest.raises(ParseError, match="not a valid public value"):
            ours.shared(value.to_bytes(size, "little"))


@pytest.mark.parametrize("method", MODP, ids=name)
def test_modp_is_what_python_computes(method):
    group = kex._group(method)
    ours, theirs = key_exchange(method, seeded(1)), key_exchange(method, seeded(2))
    exponent = int.from_bytes(ours._exponent, "big")
    size = len(ours.public)
    generator = int.from_bytes(group.generator, "big")
    assert ours.public == pow(generator, exponent, group.prime).to_bytes(size, "big")
    peer = int.from_bytes(theirs.public, "big")
    assert ours.shared(theirs.public) == pow(peer, exponent, group.prime).to_bytes(size, "big")
    # a value whose result has leading zeros is padded: p - 2^k has order q or 2q like any other
    if not group.order:
        assert len(ours.shared(b"\2".rjust(size, b"\0"))) == size


@pytest.mark.parametrize("method", [m for m in MODP if m not in SUBGROUPS], ids=name)
def test_private_exponents_have_their_full_length(method):
    """At least twice the strength RFC 3526 section 8 names, whatever the source gives."""
    for octet in (b"\0", b"\xff"):
        bits = int.from_bytes(
            key_exchange(method, lambda size, octet=octet: octet * size)._exponent, "big"
        ).bit_length()
        assert bits == kex._SAFE_PRIMES[method][2] >= 256


def test_primes_of_rfc3526():
    text = (Path(cryptography_vectors.__file__).parent / "asymmetric" / "DH" / "rfc3526.txt").read_text()
    primes = [int(line[4:], 16) for line in text.splitlines() if line.startswith("P = ")]
    ours = [kex._group(method).prime for method in sorted(kex._SAFE_PRIMES) if method != KeMethod.MODP_1024]
    assert ours == primes
    # RFC 2409 section 6.2
    assert f"{kex._group(KeMethod.MODP_1024).prime:x}".endswith(
        "a637ed6b0bff5cb6f406b7edee386bfb5a899fa5ae9f24117c4b1fe649286651ece65381ffffffffffffffff"
    )


def test_subgroups_of_rfc5114():
    text = (Path(cryptography_vectors.__file__).parent / "asymmetric" / "DH" / "RFC5114.txt").read_text()
    lines = [line.partition(" = ") for line in text.splitlines()]
    values = {key: [int(value, 16) for name, _, value in lines if name == key] for key in "PGQ"}
    groups = [kex._group(method) for method in SUBGROUPS]
    assert [group.prime for group in groups] == values["P"][:3]
    assert [int.from_bytes(group.generator, "big") for group in groups] == values["G"][:3]
    assert [group.order for group in groups] == values["Q"][:3]


def test_orders_of_the_curves():
    for curve, order in kex._CURVES.values():
        assert order == curve.group_order
        ec.derive_private_key(order - 1, curve())
        with pytest.raises(ValueError):  # noqa: PT011 (the text is OpenSSL's)
            ec.derive_private_key(order, curve())


@pytest.mark.parametrize("number", [*sorted(set(range(64)) - set(supported_methods())), 1024, 1025, 65535])
def test_unknown_methods_are_refused(number):
    """CVE-2014-9221: numbers outside of what is offered never reach the arithmetic."""
    with pytest.raises(SuiteError, match="is not supported"):
        key_exchange(number, seeded(1))


def test_every_number_of_a_method_is_bounded():
    for number in range(65536):
        if number not in SIZES and not is_kem(number):
            with pytest.raises(SuiteError):
                key_exchange(number, seeded(1))


def test_no_private_value_is_shown():
    for method in METHODS:
        ours = key_exchange(method, lambda size: b"\x5a" * size)
        assert "5a5a5a" not in repr(ours)
        assert not hasattr(ours, "__dict__")


# --- the compiled module ---------------------------------------------------------------------------------------------


def test_modulus_checks_its_arguments():
    for wrong in (b"", bytes(1025), b"\x10", b"\0"):
        with pytest.raises(ValueError, match="modulus"):
            Modulus(wrong)
    modulus = Modulus(b"\x0d")
    assert modulus.size == 1
    for base, exponent in ((b"", b"\1"), (b"\1", b""), (b"\0\1", b"\1"), (b"\1", b"\0\1")):
        with pytest.raises(ValueError, match="base and exponent"):
            modulus.power(base, exponent)
    with pytest.raises(ValueError, match="not below"):
        modulus.power(b"\x0d", b"\2")
    with pytest.raises(TypeError):
        modulus.power(None, b"\1")
    assert [modulus.power(bytes([base]), b"\5")[0] for base in range(13)] == [pow(base, 5, 13) for base in range(13)]
    assert modulus.power(b"\2", b"\0") == b"\1"


def test_threads_share_a_modulus():
    group = kex._group(KeMethod.MODP_2048)
    source = random.Random(1)
    values = [(source.randbytes(255), source.randbytes(40)) for _ in range(8)]
    expected = [pow(int.from_bytes(b, "big"), int.from_bytes(e, "big"), group.prime) for b, e in values]
    got = [0] * len(values)

    def work(k):
        for _ in range(8):
            got[k] = int.from_bytes(group.modulus.power(*values[k]), "big")

    threads = [threading.Thread(target=work, args=(k,)) for k in range(len(values))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == expected
