"""The cipher module: keys, IVs, ESN, and that one wrong bit anywhere is found. Known answers are in tests/vectors."""

from __future__ import annotations

import hashlib
import hmac
import struct

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, modes
from cryptography.hazmat.primitives.ciphers.algorithms import AES

from ipsec.crypto.cipher import EspCipher, aes_xcbc_mac
from ipsec.crypto.suites import all_esp_suites, esp_suite
from ipsec.errors import SuiteError
from tests.esp.support import keys

SUITES = all_esp_suites()
TEXT = bytes(range(48))


@pytest.mark.parametrize("suite", SUITES, ids=str)
def test_round_trip_and_sizes(suite):
    cipher = EspCipher(suite, **keys(suite))
    for esn in (False, True):
        for size in range(suite.block, 100, suite.block):
            body = cipher.seal(0x1234, 7 << 32 | 9 if esn else 9, esn, bytes(size))
            assert len(body) == suite.iv_len + size + suite.icv_len
            assert cipher.open(0x1234, 7 << 32 | 9 if esn else 9, esn, body) == bytes(size)


@pytest.mark.parametrize("suite", SUITES, ids=str)
def test_everything_is_authenticated(suite):
    cipher = EspCipher(suite, **keys(suite))
    seq = 7 << 32 | 9
    body = cipher.seal(0x1234, seq, True, TEXT)
    for place in range(len(body)):
        changed = body[:place] + bytes([body[place] ^ 0x40]) + body[place + 1 :]
        assert cipher.open(0x1234, seq, True, changed) is None
    for spi, number, esn in ((0x1235, seq, True), (0x1234, seq + 1, True), (0x1234, seq - (1 << 32), True)):
        assert cipher.open(spi, number, esn, body) is None
    assert cipher.open(0x1234, 9, False, body) is None
    assert EspCipher(suite, **keys(suite, "other")).open(0x1234, seq, True, body) is None


@pytest.mark.parametrize("suite", SUITES, ids=str)
def test_plaintext_is_hidden_unless_the_suite_says_so(suite):
    body = EspCipher(suite, **keys(suite)).seal(0x1234, 9, False, TEXT)
    shown = suite.name.startswith("null") or suite.name.endswith("gmac")
    assert (TEXT in body) == shown


@pytest.mark.parametrize("name", ["aes128-sha256", "aes256-sha1"])
def test_cbc_iv_is_the_enciphered_number(name):
    """SP 800-38A appendix C: the wire IV is what CBC with a zero IV makes of the nonce block."""
    suite = esp_suite(name)
    material = keys(suite)
    encryptor = Cipher(AES(material["encr_key"]), modes.CBC(bytes(16))).encryptor()
    expected = encryptor.update(bytes(8) + struct.pack("!Q", 9) + TEXT)
    assert EspCipher(suite, **material).seal(0x1234, 9, False, TEXT)[: -suite.icv_len] == expected


def test_hmac_covers_the_high_word_last():
    """RFC 4303 section 2.2.1."""
    suite = esp_suite("null-sha256")
    material = keys(suite)
    body = EspCipher(suite, **material).seal(0x1234, 7 << 32 | 9, True, TEXT)
    message = struct.pack("!II", 0x1234, 9) + TEXT + struct.pack("!I", 7)
    assert body == TEXT + hmac.new(material["integ_key"], message, hashlib.sha256).digest()[:16]


def test_xcbc_against_plain_blocks():
    key = bytes(range(16))
    ecb = Cipher(AES(key), modes.ECB()).encryptor()
    key1, key2, key3 = (ecb.update(bytes([n]) * 16) for n in (1, 2, 3))
    chain = Cipher(AES(key1), modes.ECB()).encryptor()
    for size in range(70):
        message = bytes(range(size))
        blocks = [message[at : at + 16] for at in range(0, size, 16)] or [b""]
        full = len(blocks[-1]) == 16
        blocks[-1] = blocks[-1] if full else (blocks[-1] + b"\x80").ljust(16, b"\0")
        state = bytes(16)
        for number, block in enumerate(blocks):
            extra = (key2 if full else key3) if number == len(blocks) - 1 else bytes(16)
            state = chain.update(bytes(a ^ b ^ c for a, b, c in zip(state, block, extra, strict=True)))
        assert aes_xcbc_mac(key, message) == state


def test_wrong_key_sizes():
    for suite in SUITES:
        material = keys(suite)
        with pytest.raises(SuiteError, match=suite.name):
            EspCipher(suite, material["encr_key"] + b"x", material["integ_key"])
        with pytest.raises(SuiteError, match=suite.name):
            EspCipher(suite, material["encr_key"], material["integ_key"] + b"x")


def test_errors_and_repr_show_no_keys():
    suite = esp_suite("aes128gcm16")
    with pytest.raises(SuiteError) as raised:
        EspCipher(suite, b"SECRET")
    assert "SECRET" not in str(raised.value)
    assert repr(EspCipher(suite, b"S" * 20)) == "EspCipher(aes128gcm16)"
