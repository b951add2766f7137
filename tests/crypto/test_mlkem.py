"""ML-KEM as a key exchange: both ends agree, sizes and keys are checked, and where it is missing that is said."""

from __future__ import annotations

import random
import types

import pytest

from ipsec.crypto import mlkem
from ipsec.crypto.kex import join_key_exchange, key_exchange, supported_methods
from ipsec.crypto.proposals import parse_proposals
from ipsec.errors import ParseError, SuiteError
from ipsec.wire.iana import KeMethod, Protocol, TransformType

#: draft-ietf-ipsecme-ikev2-mlkem: octets of the KE data of initiator and responder
SIZES = {KeMethod.ML_KEM_768: (1184, 1088), KeMethod.ML_KEM_1024: (1568, 1568)}


def unused(method):
    raise AssertionError("the responder needs no key pair")


@pytest.fixture(autouse=True)
def fresh():
    mlkem.missing.cache_clear()
    yield
    mlkem.missing.cache_clear()


@pytest.mark.parametrize("method", SIZES, ids=lambda method: method.name)
def test_both_sides_agree(method):
    ours = key_exchange(method, random.Random(1).randbytes)
    ciphertext, secret = join_key_exchange(method, ours.public, unused)
    assert ours.method == method
    assert (len(ours.public), len(ciphertext)) == SIZES[method]
    assert ours.shared(ciphertext) == secret
    assert len(secret) == 32
    assert key_exchange(method, random.Random(1).randbytes).public == ours.public
    again, other = join_key_exchange(method, ours.public, unused)
    assert again != ciphertext
    assert other != secret


@pytest.mark.parametrize("method", SIZES, ids=lambda method: method.name)
def test_wrong_sizes_are_refused(method):
    ours = key_exchange(method, random.Random(1).randbytes)
    ciphertext, _ = join_key_exchange(method, ours.public, unused)
    for value in (b"", ciphertext[:-1], ciphertext + b"\0", bytes(65535)):
        with pytest.raises(ParseError, match=f"{method.name} has {len(ciphertext)} octets, not {len(value)}"):
            ours.shared(value)
    for value in (b"", ours.public[:-1], ours.public + b"\0", bytes(65535)):
        with pytest.raises(ParseError, match=f"{method.name} has {len(ours.public)} octets, not {len(value)}"):
            join_key_exchange(method, value, unused)


@pytest.mark.parametrize("method", SIZES, ids=lambda method: method.name)
def test_a_key_with_coefficients_out_of_range_is_refused(method):
    """FIPS 203 section 7.2: 12 bits hold numbers from 3329 on as well, which no key has."""
    public = bytearray(key_exchange(method, random.Random(1).randbytes).public)
    for value in (3329, 4095):
        for at in (0, len(public) - 32 - 3):
            wrong = bytearray(public)
            wrong[at] = value & 0xFF
            wrong[at + 1] = wrong[at + 1] & 0xF0 | value >> 8
            with pytest.raises(ParseError, match=f"not a valid public value of {method.name}"):
                join_key_exchange(method, bytes(wrong), unused)


@pytest.mark.parametrize("method", SIZES, ids=lambda method: method.name)
def test_a_ciphertext_for_another_key_gives_another_secret(method):
    """FIPS 203 section 6.3: no error, which would tell something of the key, and nothing that its maker knows."""
    ours = key_exchange(method, random.Random(1).randbytes)
    ciphertext, secret = join_key_exchange(method, ours.public, unused)
    forged = bytes((ciphertext[0] ^ 1,)) + ciphertext[1:]
    assert ours.shared(forged) != secret
    assert ours.shared(forged) == ours.shared(forged)


def test_nothing_private_is_shown():
    ours = key_exchange(KeMethod.ML_KEM_768, lambda size: b"\x5a" * size)
    assert "5a5a5a" not in repr(ours)
    assert not hasattr(ours, "__dict__")


def test_keywords():
    for word, method in {"mlkem768": KeMethod.ML_KEM_768, "mlkem1024": KeMethod.ML_KEM_1024}.items():
        (proposal,) = parse_proposals([f"aes256gcm16-prfsha384-{word}"], Protocol.IKE)
        transform = proposal.first(TransformType.KE)
        assert transform is not None
        assert transform.id == method
        assert str(transform) == method.name


def _library(monkeypatch, which):
    """As the package was before it had ML-KEM, had the names without anything behind them, and as it is."""
    if which == "none":
        monkeypatch.setattr(mlkem, "_library", None)
    elif which == "no backend":

        def refuse(seed):
            raise mlkem.UnsupportedAlgorithm("not supported")

        key = types.SimpleNamespace(from_seed_bytes=refuse)
        monkeypatch.setattr(mlkem, "_library", types.SimpleNamespace(MLKEM768PrivateKey=key, MLKEM1024PrivateKey=key))


@pytest.mark.parametrize("which", ["none", "no backend"])
def test_where_it_is_missing_the_error_names_what_is_needed(monkeypatch, which):
    _library(monkeypatch, which)
    for word in ("mlkem768", "mlkem1024"):
        with pytest.raises(SuiteError, match="ML-KEM needs the Python package cryptography 48"):
            parse_proposals([f"aes256gcm16-prfsha384-x25519-{word}"], Protocol.IKE)
    with pytest.raises(SuiteError, match="cryptography 48"):
        key_exchange(KeMethod.ML_KEM_768, random.Random(1).randbytes)
    with pytest.raises(SuiteError, match="cryptography 48"):
        join_key_exchange(KeMethod.ML_KEM_768, bytes(1184), unused)
    assert not {KeMethod.ML_KEM_512, *SIZES} & set(supported_methods())
    assert parse_proposals(["aes256gcm16-prfsha384-x25519"], Protocol.IKE)
