"""Order and sizes of key material. Known answers are in tests/vectors."""

from __future__ import annotations

import pytest

from ipsec.crypto.prf import prf_algorithm, supported_prfs
from ipsec.crypto.sk import sk_suite
from ipsec.crypto.suites import all_esp_suites, esp_suite
from ipsec.ike.keymat import child_keys, ike_keys, rekeyed_skeyseed, skeyseed

NI, NR = bytes(range(32)), bytes(range(50, 82))
SPI_I, SPI_R = b"initiato", b"responde"


@pytest.mark.parametrize("number", supported_prfs())
@pytest.mark.parametrize("suite", [sk_suite(20, 256, 0), sk_suite(12, 128, 14), sk_suite(3, 0, 2)], ids=str)
def test_ike_keys_in_the_order_of_the_rfc(number, suite):
    """RFC 7296 section 2.14: SK_d | SK_ai | SK_ar | SK_ei | SK_er | SK_pi | SK_pr."""
    prf = prf_algorithm(number)
    keys = ike_keys(prf, suite, b"seed", NI, NR, SPI_I, SPI_R)
    ordered = [keys.sk_d, keys.sk_ai, keys.sk_ar, keys.sk_ei, keys.sk_er, keys.sk_pi, keys.sk_pr]
    sizes = [prf.key_len, *[suite.integ_key_len] * 2, *[suite.encr_key_len] * 2, *[prf.key_len] * 2]
    assert [len(key) for key in ordered] == sizes
    assert b"".join(ordered) == prf.plus(b"seed", NI + NR + SPI_I + SPI_R, sum(sizes))


@pytest.mark.parametrize("suite", all_esp_suites(), ids=str)
def test_child_keys_in_the_order_of_the_rfc(suite):
    """RFC 7296 section 2.17: initiator to responder first, in each direction encryption before integrity."""
    prf = prf_algorithm(5)
    keys = child_keys(prf, b"sk_d", suite, NI, NR)
    suite.check_keys(keys.encr_i, keys.integ_i)
    suite.check_keys(keys.encr_r, keys.integ_r)
    stream = keys.encr_i + keys.integ_i + keys.encr_r + keys.integ_r
    assert stream == prf.plus(b"sk_d", NI + NR, len(stream))


def test_child_with_a_key_exchange_of_its_own():
    prf, suite = prf_algorithm(5), esp_suite("aes256-sha256")
    keys = child_keys(prf, b"sk_d", suite, NI, NR, b"shared")
    assert keys.encr_i == prf.plus(b"sk_d", b"shared" + NI + NR, 32)


def test_seeds():
    for number in supported_prfs():
        prf = prf_algorithm(number)
        assert skeyseed(prf, NI, NR, b"shared") == prf(prf.nonce_key(NI, NR), b"shared")
        # all bits of the nonces count where they are data (RFC 7296 section 2.18)
        assert rekeyed_skeyseed(prf, b"sk_d", b"shared", NI, NR) == prf(b"sk_d", b"shared" + NI + NR)


def test_keys_are_not_shown():
    prf = prf_algorithm(5)
    keys = ike_keys(prf, sk_suite(20, 128, 0), b"seed", NI, NR, SPI_I, SPI_R)
    child = child_keys(prf, b"sk_d", esp_suite("aes128gcm16"), NI, NR)
    assert (repr(keys), repr(child)) == ("IkeKeys()", "ChildKeys()")
    assert not hasattr(keys, "__dict__")
    assert not hasattr(child, "__dict__")
