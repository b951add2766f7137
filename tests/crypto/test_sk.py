"""Protection of Encrypted payloads: sizes, padding, one wrong bit anywhere. Known answers are in tests/vectors."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipsec.crypto.sk import IntegrityError, SkCipher, sk_suite
from ipsec.errors import ParseError, SuiteError
from ipsec.wire.iana import Encr, Integ

AEADS = [
    *(getattr(Encr, f"AES_{mode}_{icv}") for mode in ("GCM", "CCM") for icv in (8, 12, 16)),
    Encr.CHACHA20_POLY1305,
]
#: strongSwan's private one is for ESP alone
INTEGS = [integ for integ in Integ if integ not in (Integ.NONE, Integ.HMAC_SHA2_256_96)]
SUITES = [
    *(sk_suite(encr, bits, 0) for encr in AEADS[:-1] for bits in (128, 192, 256)),
    sk_suite(Encr.CHACHA20_POLY1305, 0, 0),
    *(
        sk_suite(encr, bits, integ)
        for encr in (Encr.AES_CBC, Encr.AES_CTR)
        for bits in (128, 192, 256)
        for integ in INTEGS
    ),
    *(sk_suite(Encr.TRIPLE_DES_CBC, 0, integ) for integ in INTEGS),
]
AAD = bytes(range(32))
SOME = [suite for suite in SUITES if suite.key_bits in (192, 256)]


def cipher_of(suite, seed=1):
    source = random.Random(seed)
    return SkCipher(suite, source.randbytes(suite.encr_key_len), source.randbytes(suite.integ_key_len))


@pytest.mark.parametrize("suite", SUITES, ids=str)
def test_round_trip(suite):
    cipher, rng = cipher_of(suite), random.Random(2).randbytes
    for size in (*range(40), 255, 1400):
        plaintext = rng(size)
        body = cipher.seal(AAD, plaintext, size, rng)
        assert len(body) == size + cipher.overhead(size)
        assert cipher.open(AAD, body) == plaintext


@pytest.mark.parametrize("suite", SOME, ids=str)
def test_everything_is_authenticated(suite):
    cipher, rng = cipher_of(suite), random.Random(3).randbytes
    body = cipher.seal(AAD, bytes(45), 7, rng)
    for place in range(len(body)):
        changed = bytearray(body)
        changed[place] ^= 0x10
        with pytest.raises(IntegrityError):
            cipher.open(AAD, bytes(changed))
    for aad in (AAD[:-1], AAD + b"\0", b"", AAD[:-1] + b"\0"):
        with pytest.raises(IntegrityError):
            cipher.open(aad, body)
    with pytest.raises(IntegrityError):
        cipher_of(suite, 9).open(AAD, body)


@pytest.mark.parametrize("suite", SOME, ids=str)
def test_sizes_that_do_not_fit_are_refused(suite):
    cipher, rng = cipher_of(suite), random.Random(4).randbytes
    whole = cipher.seal(AAD, b"", 7, rng)
    for size in range(len(whole)):
        with pytest.raises(ParseError):
            cipher.open(AAD, whole[:size])
    least = suite.iv_len + suite.icv_len
    assert len(whole) == least + suite.block
    with pytest.raises(ParseError, match=f"of {least} octets does not fit"):
        cipher.open(AAD, bytes(least))
    if suite.block > 1:
        with pytest.raises(ParseError, match="does not fit"):
            cipher.open(AAD, bytes(least + suite.block + 1))


@pytest.mark.parametrize("suite", SOME, ids=str)
@given(body=st.binary(max_size=120))
def test_noise_raises_parse_error_alone(suite, body):
    with pytest.raises(ParseError):
        cipher_of(suite).open(AAD, body)


class AnyPadding(SkCipher):
    """Seals plaintext as it is given: the caller pads."""

    def seal_raw(self, text, iv):
        if self.suite.aead:
            return iv + self._aead.encrypt(self._salt + iv, text, AAD)
        body = iv + self._cipher(iv).encryptor().update(text)
        return body + self._mac(AAD + body)


@pytest.mark.parametrize(
    "suite", [sk_suite(20, 128, 0), sk_suite(18, 128, 0), sk_suite(12, 128, 12), sk_suite(13, 128, 2)]
)
def test_peers_may_pad_as_they_like(suite):
    """RFC 7296 section 3.14: any contents, any length up to 255 that the block allows."""
    cipher = AnyPadding(suite, bytes(suite.encr_key_len), bytes(suite.integ_key_len))
    iv = bytes(suite.iv_len)
    for size in (0, 1, 15, 31, 100):
        for pad in range(-(size + 1) % suite.block, 256, suite.block):
            text = b"p" * size + b"\xa5" * pad + bytes((pad,))
            assert cipher.open(AAD, cipher.seal_raw(text, iv)) == b"p" * size
    # a Pad Length that reaches beyond the plaintext
    for size, pad in ((16, 16), (16, 255), (32, 32)):
        with pytest.raises(ParseError, match=f"{pad} octets of padding in {size}") as caught:
            cipher.open(AAD, cipher.seal_raw(bytes(size - 1) + bytes((pad,)), iv))
        assert not isinstance(caught.value, IntegrityError)


def test_ivs():
    """Counter modes send the caller's counter (RFC 5282 section 3.1); CBC asks for randomness."""
    asked = []

    def rng(size):
        asked.append(size)
        return b"\x77" * size

    for suite in SUITES:
        asked.clear()
        body = cipher_of(suite).seal(AAD, b"text", 0x0102030405060708, rng)
        if suite.encr in (Encr.AES_CBC, Encr.TRIPLE_DES_CBC):
            assert asked == [suite.iv_len] == [suite.block]
            assert body.startswith(b"\x77" * suite.iv_len)
        else:
            assert asked == []
            assert body.startswith(bytes(range(1, 9)))


def test_sizes():
    """RFC 5282 section 7.1, RFC 7634 section 4, RFC 5930 section 2.1, RFC 4868 section 2.3."""
    assert {(s.salt_len, s.iv_len, s.integ_key_len) for s in SUITES if "gcm" in s.name} == {(4, 8, 0)}
    assert {(s.salt_len, s.iv_len, s.integ_key_len) for s in SUITES if "ccm" in s.name} == {(3, 8, 0)}
    assert (sk_suite(28, 0, 0).encr_key_len, sk_suite(28, 0, 0).icv_len) == (36, 16)
    assert sk_suite(13, 192, 12).encr_key_len == 28
    assert sk_suite(3, 0, 2).encr_key_len == 24
    for integ, sizes in {2: (20, 12), 5: (16, 12), 8: (16, 12), 12: (32, 16), 13: (48, 24), 14: (64, 32)}.items():
        suite = sk_suite(12, 128, integ)
        assert (suite.integ_key_len, suite.icv_len) == sizes
    assert len({suite.name for suite in SUITES}) == len(SUITES)
    assert str(sk_suite(12, 256, 12)) == "aes256-sha256"
    assert str(sk_suite(13, 128, 5)) == "aes128ctr-aesxcbc"


@pytest.mark.parametrize(
    ("transforms", "why"),
    [
        ((12, 128, 0), "integrity NONE is not supported"),
        ((12, 128, 1), "integrity Integ\\(1\\) is not supported"),
        ((20, 128, 12), "AES_GCM_16 has integrity of its own"),
        ((12, 0, 12), "AES_CBC: no key length"),
        ((20, 0, 0), "AES_GCM_16: no key length"),
        ((20, 512, 0), "no keys of 512 bits"),
        ((20, -1, 0), "no keys of -1 bits"),
        ((28, 128, 0), "no keys of 128 bits"),
        ((11, 0, 12), "NULL cannot protect IKE messages"),
        ((21, 128, 0), "NULL_AUTH_AES_GMAC cannot protect"),
        ((30, 128, 0), "AES_GCM_16_IIV cannot protect"),
        ((1024, 128, 0), "Encr\\(1024\\) cannot protect"),
    ],
)
def test_combinations_that_are_refused(transforms, why):
    with pytest.raises(SuiteError, match=why):
        sk_suite(*transforms)


def test_every_combination_is_a_suite_or_an_error():
    """Key material of size 0 or of a NONE never comes out of a negotiation (as in CVE-2024-3652)."""
    for encr in range(40):
        for bits in (-1, 0, 64, 128, 192, 256, 65535):
            for integ in range(20):
                try:
                    suite = sk_suite(encr, bits, integ)
                except SuiteError:
                    continue
                assert suite.encr_key_len >= 16
                assert suite.aead or suite.integ_key_len >= 16
                assert suite.icv_len >= 8


def test_keys_must_fit_and_are_not_shown():
    suite = sk_suite(12, 128, 12)
    for encr_key, integ_key in ((b"", bytes(32)), (bytes(17), bytes(32)), (bytes(16), b""), (bytes(16), bytes(33))):
        with pytest.raises(SuiteError, match="key must have"):
            SkCipher(suite, encr_key, integ_key)
    assert repr(cipher_of(suite)) == "SkCipher(aes128-sha256)"
