"""Pseudo-random functions of IKEv2 (RFC 7296 sections 2.13 and 2.14): HMAC (RFC 4868), AES-XCBC and AES-CMAC.

All sizes are octets. PRFs hold no state: one object per algorithm serves every IKE SA.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Protocol

from ipsec.crypto.cipher import aes_cmac, aes_xcbc_mac
from ipsec.errors import SuiteError
from ipsec.wire.iana import Prf, name_of

#: prf+ numbers its rounds with one octet (RFC 7296 section 2.13)
_MAX_ROUNDS = 255
_INNER_PAD = bytes(x ^ 0x36 for x in range(256))
_OUTER_PAD = bytes(x ^ 0x5C for x in range(256))


class PrfAlgorithm(Protocol):
    """One PRF: call it with key and data."""

    @property
    def number(self) -> int:
        """The IANA transform id, type 2."""

    @property
    def name(self) -> str:
        """The name in logs, such as ``PRF_HMAC_SHA2_256``."""

    @property
    def key_len(self) -> int:
        """The preferred key length: that of SK_d, SK_pi and SK_pr; nonces have at least half of it."""

    @property
    def out_len(self) -> int:
        """Octets of output."""

    def __call__(self, key: bytes, data: bytes) -> bytes:
        """``prf(key, data)``, ``out_len`` octets. Keys of every length are good."""

    def plus(self, key: bytes, seed: bytes, length: int) -> bytes:
        """``prf+(key, seed)``, the first ``length`` octets (RFC 7296 section 2.13). At most 255 x ``out_len``."""

    def nonce_key(self, ni: bytes, nr: bytes) -> bytes:
        """The key under which the first SKEYSEED is made from the nonces (RFC 7296 section 2.14)."""


class _HmacPrf:
    """HMAC with a hash of SHA-1 or SHA-2. RFC 4868 section 2.1.1: the preferred key has the size of the output."""

    __slots__ = ("_block", "_hash", "key_len", "name", "number", "out_len")

    def __init__(self, number: int, digest: str) -> None:
        self.number = number
        self.name = f"PRF_{name_of(Prf, number)}"
        self._hash = getattr(hashlib, digest)
        self._block: int = self._hash().block_size
        self.out_len: int = self._hash().digest_size
        self.key_len = self.out_len

    def __repr__(self) -> str:
        return self.name

    def __call__(self, key: bytes, data: bytes) -> bytes:
        # hmac.digest() has libcrypto look for its HMAC first: 36 instead of 16 us if that was not done just before
        inner, outer = self._keyed(key)
        inner.update(data)
        outer.update(inner.digest())
        return outer.digest()

    def plus(self, key: bytes, seed: bytes, length: int) -> bytes:
        rounds = _rounds(length, self.out_len)
        # The two key blocks of HMAC are hashed once for all rounds: half the work
        inner, outer = self._keyed(key)
        block, stream = b"", b""
        for n in range(1, rounds + 1):
            text, mac = inner.copy(), outer.copy()
            text.update(block + seed + bytes((n,)))
            mac.update(text.digest())
            block = mac.digest()
            stream += block
        return stream[:length]

    def nonce_key(self, ni: bytes, nr: bytes) -> bytes:
        return ni + nr

    def _keyed(self, key: bytes) -> tuple[hashlib._Hash, hashlib._Hash]:
        """The inner and the outer hash of HMAC, with their blocks of the key (RFC 2104)."""
        if len(key) > self._block:
            key = self._hash(key).digest()
        padded = key.ljust(self._block, b"\0")
        return self._hash(padded.translate(_INNER_PAD)), self._hash(padded.translate(_OUTER_PAD))


class _AesPrf:
    """AES-XCBC-PRF-128 (RFC 4434) and AES-CMAC-PRF-128 (RFC 4615): 16 octets of key and output."""

    __slots__ = ("_mac", "key_len", "name", "number", "out_len")

    def __init__(self, number: int) -> None:
        self.number = number
        self.name = f"PRF_{name_of(Prf, number)}"
        self._mac = aes_xcbc_mac if number == Prf.AES128_XCBC else aes_cmac
        self.key_len = self.out_len = 16

    def __repr__(self) -> str:
        return self.name

    def __call__(self, key: bytes, data: bytes) -> bytes:
        return self._mac(self._fixed(key), data)

    def plus(self, key: bytes, seed: bytes, length: int) -> bytes:
        key = self._fixed(key)
        block, stream = b"", b""
        for n in range(1, _rounds(length, 16) + 1):
            block = self._mac(key, block + seed + bytes((n,)))
            stream += block
        return stream[:length]

    def nonce_key(self, ni: bytes, nr: bytes) -> bytes:
        # RFC 7296 section 2.14: of these two PRFs the key is the first 64 bits of each nonce
        return ni[:8] + nr[:8]

    def _fixed(self, key: bytes) -> bytes:
        if len(key) == 16:
            return key
        # RFC 4434 section 2: a short key is padded. RFC 4615 section 3 has no such case.
        if len(key) < 16 and self.number == Prf.AES128_XCBC:
            return key.ljust(16, b"\0")
        return self._mac(bytes(16), key)


def _rounds(length: int, out_len: int) -> int:
    rounds = -(-length // out_len)
    if rounds > _MAX_ROUNDS:
        raise ValueError(f"prf+ gives at most {_MAX_ROUNDS * out_len} octets, {length} were asked for")
    return rounds


_HASHES = {
    Prf.HMAC_SHA1: "sha1",
    Prf.HMAC_SHA2_256: "sha256",
    Prf.HMAC_SHA2_384: "sha384",
    Prf.HMAC_SHA2_512: "sha512",
}


@lru_cache(maxsize=16)
def prf_algorithm(number: int) -> PrfAlgorithm:
    """The PRF with this transform id. Raises SuiteError if it is not one of ours."""
    if number in _HASHES:
        return _HmacPrf(number, _HASHES[Prf(number)])
    if number in (Prf.AES128_XCBC, Prf.AES128_CMAC):
        return _AesPrf(number)
    raise SuiteError(f"PRF {name_of(Prf, number)} is not supported")


def supported_prfs() -> tuple[int, ...]:
    """The transform ids that ``prf_algorithm`` takes."""
    return (*_HASHES, Prf.AES128_XCBC, Prf.AES128_CMAC)
