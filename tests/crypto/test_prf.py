"""PRFs: sizes, prf+ against its definition, keys of every length. Known answers are in tests/vectors."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipsec.crypto.prf import prf_algorithm, supported_prfs
from ipsec.errors import SuiteError
from ipsec.wire.iana import Prf

PRFS = [prf_algorithm(number) for number in supported_prfs()]


def plus(prf, key, seed, length):
    """RFC 7296 section 2.13, as it is written there."""
    stream, block = b"", b""
    for n in range(1, 256):
        block = prf(key, block + seed + bytes([n]))
        stream += block
    return stream[:length]


@pytest.mark.parametrize("prf", PRFS, ids=str)
@given(key=st.binary(max_size=200), seed=st.binary(max_size=80), length=st.integers(0, 500))
def test_plus_is_its_definition(prf, key, seed, length):
    assert prf.plus(key, seed, length) == plus(prf, key, seed, length)


@pytest.mark.parametrize("prf", PRFS, ids=str)
def test_plus_ends_at_255_rounds(prf):
    most = 255 * prf.out_len
    assert prf.plus(b"key", b"seed", most) == plus(prf, b"key", b"seed", most)
    with pytest.raises(ValueError, match=f"at most {most} octets"):
        prf.plus(b"key", b"seed", most + 1)


@pytest.mark.parametrize("prf", PRFS, ids=str)
def test_sizes_and_name(prf):
    assert len(prf(b"", b"")) == prf.out_len == prf.key_len
    assert prf.name == str(prf) == f"PRF_{Prf(prf.number).name}"
    assert prf_algorithm(prf.number) is prf


def test_every_number_of_ours_is_supported():
    assert sorted(supported_prfs()) == sorted(Prf)


def test_nonces_are_cut_for_two_prfs_alone():
    """RFC 7296 section 2.14."""
    ni, nr = bytes(range(32)), bytes(range(100, 132))
    for prf in PRFS:
        fixed = prf.number in (Prf.AES128_XCBC, Prf.AES128_CMAC)
        assert prf.nonce_key(ni, nr) == (ni[:8] + nr[:8] if fixed else ni + nr)


@pytest.mark.parametrize("number", [0, 1, 3, 9, 1024, 65535])
def test_unknown_is_refused(number):
    with pytest.raises(SuiteError, match=rf"PRF Prf\({number}\) is not supported"):
        prf_algorithm(number)
