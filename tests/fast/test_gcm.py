"""AES-GCM of each provider with keys of its own, against NIST's vectors and OpenSSL: every length, place and edge."""

from __future__ import annotations

import ctypes
import mmap
import random

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ipsec._probe import CipherProbe
from ipsec.crypto.suites import esp_suite
from ipsec.esp.fast import PROVIDERS, AeadKey, choose_provider, provider_versions, self_test
from tests.vectors.test_nist import CIPHERS, hexed, responses

OWN_KEYS = [name for name in PROVIDERS if name != "libcrypto"]
BITS = (128, 192, 256)
PAGE = mmap.PAGESIZE


@pytest.fixture(params=OWN_KEYS)
def provider(request):
    """A provider that this CPU can run."""
    if provider_versions()[request.param] is None:
        pytest.skip(f"{request.param} does not run on this machine")
    return request.param


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kind", ["gcmDecrypt", "gcmEncryptExtIV"])
def test_cavp(provider, kind, bits):
    done = 0
    for case in responses(CIPHERS / "AES" / "GCM" / f"{kind}{bits}.rsp"):
        if case["IVlen"] != "96" or case["Taglen"] not in ("64", "96", "128"):
            continue
        key, nonce, ciphertext, aad, tag = hexed(case, "Key", "IV", "CT", "AAD", "Tag")
        cipher = AeadKey(esp_suite(f"aes{bits}gcm16"), provider, key)
        expected = None if "FAIL" in case else bytes.fromhex(case["PT"])
        assert cipher.open(nonce, aad, ciphertext + tag, len(tag)) == expected
        if expected is not None:
            assert cipher.seal(nonce, aad, expected, len(tag)) == ciphertext + tag
        done += 1
    assert done > 300


@pytest.mark.parametrize("bits", BITS)
def test_every_length(provider, bits):
    """0 to 4096 octets, and some around where the counter's octets carry, as OpenSSL does it; additional data of any
    length."""
    rng = random.Random(bits)
    key = rng.randbytes(bits // 8)
    ours, theirs = AeadKey(esp_suite(f"aes{bits}gcm16"), provider, key), AESGCM(key)
    for length in (*range(4097), *range(65500, 65536, 7), (1 << 20) - 37, (1 << 20) + 5):
        nonce, plain = rng.randbytes(12), rng.randbytes(length)
        aad = rng.randbytes((8, 12, length % 601)[length % 3])
        sealed = theirs.encrypt(nonce, plain, aad)
        assert ours.seal(nonce, aad, plain) == sealed, length
        assert ours.open(nonce, aad, sealed) == plain, length


def guarded():
    """Three pages, of which the outer two may not be touched; the view is of the middle one."""
    memory = mmap.mmap(-1, 3 * PAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    for page in (0, 2):
        assert libc.mprotect(ctypes.c_void_p(address + page * PAGE), PAGE, 0) == 0
    return memoryview(memory)[PAGE : 2 * PAGE]


@pytest.mark.parametrize("at_end", [False, True])
def test_nothing_outside_is_touched(provider, at_end):
    """All four pieces of memory begin where a page begins, or end where one ends."""
    rng = random.Random(1)
    key = rng.randbytes(16)
    cipher, theirs = CipherProbe(esp_suite("aes128gcm16"), provider, key), AESGCM(key)
    source, target, tag, aad = guarded(), guarded(), guarded(), guarded()

    def piece(page, n):
        return page[PAGE - n :] if at_end else page[:n]

    for length in (*range(1, 600), *range(1, 4096, 61)):
        nonce, plain = rng.randbytes(12), rng.randbytes(length)
        extra = piece(aad, (8, 12)[length % 2])
        extra[:] = rng.randbytes(len(extra))
        piece(source, length)[:] = plain
        tag_len = (8, 12, 16)[length % 3]
        cipher.seal(nonce, extra, piece(source, length), piece(target, length), piece(tag, tag_len))
        sealed = theirs.encrypt(nonce, plain, bytes(extra))
        assert bytes(piece(target, length)) + bytes(piece(tag, tag_len)) == sealed[: length + tag_len], length
        # opened where it lies
        assert cipher.open(nonce, extra, piece(target, length), piece(target, length), piece(tag, tag_len))
        assert bytes(piece(target, length)) == plain, length


def test_every_place(provider):
    """Source and target at every distance from a cache line; what stands around the target stays."""
    rng = random.Random(2)
    key = rng.randbytes(32)
    cipher, theirs = CipherProbe(esp_suite("aes256gcm16"), provider, key), AESGCM(key)
    source, target = (memoryview(mmap.mmap(-1, PAGE)) for _ in range(2))
    tag, aad = bytearray(16), bytes(8)
    for length in (1, 15, 31, 63, 64, 68, 250, 300, 530, 1412):
        nonce, plain = rng.randbytes(12), rng.randbytes(length)
        sealed = theirs.encrypt(nonce, plain, aad)
        for at in range(64):
            target[:] = b"\xa5" * PAGE
            source[at : at + length] = plain
            place = (at * 37 + length) % 64 + 64
            cipher.seal(nonce, aad, source[at : at + length], target[place : place + length], tag)
            assert bytes(target[place : place + length]) + tag == sealed, (length, at)
            assert set(target[:place]) == set(target[place + length :]) == {0xA5}, (length, at)
            assert cipher.open(nonce, aad, target[place : place + length], source[at : at + length], tag)
            assert source[at : at + length] == plain, (length, at)


def test_every_bit_counts(provider):
    """A change of any bit of nonce, additional data, ciphertext or tag is noticed, and what was written is wiped."""
    rng = random.Random(3)
    key = rng.randbytes(16)
    cipher = CipherProbe(esp_suite("aes128gcm16"), provider, key)
    for length in (1, 64, 68, 257, 300):
        nonce, aad = (bytearray(rng.randbytes(12)) for _ in range(2))
        whole = AESGCM(key).encrypt(bytes(nonce), bytes(length), bytes(aad))
        sealed, tag = bytearray(whole[:-16]), bytearray(whole[-16:])
        plain = bytearray(length)
        assert cipher.open(nonce, aad, sealed, plain, tag)
        for field in (nonce, aad, sealed, tag):
            for bit in range(8 * len(field)):
                field[bit // 8] ^= 1 << bit % 8
                assert not cipher.open(nonce, aad, sealed, plain, tag), (length, bit)
                assert provider == "ipsec-mb" or not any(plain)
                field[bit // 8] ^= 1 << bit % 8


def test_choice():
    """auto takes one that passes its self-test; a provider that is asked for and cannot gives way to libcrypto."""
    suite = esp_suite("aes128gcm16")
    assert self_test(suite, choose_provider(suite)) is True
    for name, version in provider_versions().items():
        assert choose_provider(suite, name) == (name if version else "libcrypto")
