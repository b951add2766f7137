"""Proposal keywords and sizes (RFC 4106, 4309, 4543, 4868, 7634, 8750, 8221)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ipsec.crypto.suites import Encr, Integ, all_esp_suites, esp_suite, with_sha256_96
from ipsec.errors import SuiteError


@pytest.mark.parametrize(
    ("keywords", "encr", "integ", "sizes"),
    [
        # key, salt, IV, ICV, block, integrity key
        ("aes128gcm16", Encr.AES_GCM_16, Integ.NONE, (16, 4, 8, 16, 4, 0)),
        ("aes256gcm64", Encr.AES_GCM_8, Integ.NONE, (32, 4, 8, 8, 4, 0)),
        ("aes192ccm12", Encr.AES_CCM_12, Integ.NONE, (24, 3, 8, 12, 4, 0)),
        ("aes256gmac", Encr.NULL_AUTH_AES_GMAC, Integ.NONE, (32, 4, 8, 16, 4, 0)),
        ("chacha20poly1305", Encr.CHACHA20_POLY1305, Integ.NONE, (32, 4, 8, 16, 4, 0)),
        ("aes128gcm16iiv", Encr.AES_GCM_16_IIV, Integ.NONE, (16, 4, 0, 16, 4, 0)),
        ("sha256-aes", Encr.AES_CBC, Integ.HMAC_SHA2_256_128, (16, 0, 16, 16, 16, 32)),
        ("aes-sha2_256_96", Encr.AES_CBC, Integ.HMAC_SHA2_256_96, (16, 0, 16, 12, 16, 32)),
        ("aes256-sha384", Encr.AES_CBC, Integ.HMAC_SHA2_384_192, (32, 0, 16, 24, 16, 48)),
        ("aes128ctr-sha1", Encr.AES_CTR, Integ.HMAC_SHA1_96, (16, 4, 8, 12, 4, 20)),
        ("3des-aesxcbc", Encr.TRIPLE_DES_CBC, Integ.AES_XCBC_96, (24, 0, 8, 12, 8, 16)),
        ("NULL-SHA2_512", Encr.NULL, Integ.HMAC_SHA2_512_256, (0, 0, 0, 32, 4, 64)),
    ],
)
def test_sizes(keywords, encr, integ, sizes):
    suite = esp_suite(keywords)
    assert (suite.encr, suite.integ) == (encr, integ)
    assert sizes == (
        suite.encr_key_len, suite.salt_len, suite.iv_len, suite.icv_len, suite.block, suite.integ_key_len
    )  # fmt: skip


@pytest.mark.parametrize(
    ("keywords", "word"),
    [
        ("aes128", "integrity"), ("sha256", "encryption"), ("aes128gcm16-sha256", "sha256"), ("des-sha1", "des"),
        ("aes128-aes256-sha1", "too many"), ("", "''"), ("null", "integrity"), ("aes128-sha1-sha256", "too many"),
    ],
)  # fmt: skip
def test_errors_name_the_word(keywords, word):
    with pytest.raises(SuiteError, match=word):
        esp_suite(keywords)


def test_every_suite_is_found_by_its_name():
    suites = all_esp_suites()
    assert len({suite.name for suite in suites}) == len(suites)
    for suite in suites:
        assert esp_suite(suite.name) == suite
        assert suite.aead or suite.integ_key_len
        assert suite.block % 4 == 0
    assert {suite.encr for suite in suites if suite.weak} == {Encr.TRIPLE_DES_CBC}


def test_sha256_cut_to_96_bits_is_for_hmac_sha2_256_128_alone():
    for suite in all_esp_suites():
        cut = with_sha256_96(suite)
        if suite.integ is Integ.HMAC_SHA2_256_128:
            assert cut == replace(suite, name=f"{suite}_96", integ=Integ.HMAC_SHA2_256_96, icv_len=12)
        else:
            assert cut is suite
