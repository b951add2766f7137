"""Protection of the Encrypted payloads SK and SKF (RFC 7296 section 3.14, RFC 5282, RFC 5930, RFC 7634).

A suite is one combination of transforms with its sizes; a cipher is a suite with the keys of one direction.
All sizes are octets unless the name says bits.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives.ciphers import Cipher, modes
from cryptography.hazmat.primitives.ciphers.aead import AESCCM, AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.ciphers.algorithms import AES

from ipsec.crypto.cipher import aes_cmac, aes_xcbc_mac
from ipsec.errors import ParseError, SuiteError
from ipsec.wire.iana import Encr, Integ, name_of

#: AEADs: transform -> (keyword without key size, octets of ICV, octets of salt)
_AEADS = {
    Encr.AES_GCM_8: ("gcm8", 8, 4),
    Encr.AES_GCM_12: ("gcm12", 12, 4),
    Encr.AES_GCM_16: ("gcm16", 16, 4),
    Encr.AES_CCM_8: ("ccm8", 8, 3),
    Encr.AES_CCM_12: ("ccm12", 12, 3),
    Encr.AES_CCM_16: ("ccm16", 16, 3),
    Encr.CHACHA20_POLY1305: ("chacha20poly1305", 16, 4),
}
#: ciphers that need integrity: transform -> (keyword, octets of salt, octets of IV, block)
_CIPHERS = {
    Encr.TRIPLE_DES_CBC: ("3des", 0, 8, 8),
    Encr.AES_CBC: ("", 0, 16, 16),
    Encr.AES_CTR: ("ctr", 4, 8, 1),
}
#: integrity: transform -> (keyword, octets of key, octets of ICV, hash)
_INTEGRITY = {
    Integ.HMAC_SHA1_96: ("sha1", 20, 12, hashlib.sha1),
    Integ.AES_XCBC_96: ("aesxcbc", 16, 12, None),
    Integ.AES_CMAC_96: ("aescmac", 16, 12, None),
    Integ.HMAC_SHA2_256_128: ("sha256", 32, 16, hashlib.sha256),
    Integ.HMAC_SHA2_384_192: ("sha384", 48, 24, hashlib.sha384),
    Integ.HMAC_SHA2_512_256: ("sha512", 64, 32, hashlib.sha512),
}
#: ciphers whose key has one size: a proposal has no Key Length attribute for them (RFC 7296 section 3.3.5, RFC 7634)
_FIXED_BITS = {Encr.TRIPLE_DES_CBC: 192, Encr.CHACHA20_POLY1305: 256}
_AES_BITS = (128, 192, 256)


class IntegrityError(ParseError):
    """The ICV of an Encrypted payload is wrong: the message is forged or damaged, and tells nothing."""


@dataclass(frozen=True, slots=True)
class SkSuite:
    """One combination of encryption and integrity for IKE messages."""

    name: str
    "as in a proposal: ``aes128gcm16``, ``aes256-sha256``"
    encr: Encr
    key_bits: int
    "size of the cipher key in bits, also where it is fixed"
    integ: Integ
    "NONE for an AEAD"
    encr_key_len: int
    "of SK_ei and SK_er: cipher key and salt"
    salt_len: int
    integ_key_len: int
    "of SK_ai and SK_ar, 0 for an AEAD (RFC 5282 section 7.1)"
    iv_len: int
    icv_len: int
    block: int
    "plaintext with its padding is a multiple of this"

    def __str__(self) -> str:
        return self.name

    @property
    def aead(self) -> bool:
        """Whether encryption and integrity are one algorithm."""
        return self.integ is Integ.NONE


@lru_cache(maxsize=128)
def sk_suite(encr: int, key_bits: int, integ: int) -> SkSuite:
    """The suite of these transforms. ``key_bits`` is the Key Length attribute, 0 where there is none.

    Raises SuiteError if a transform is not supported, a key length is missing or wrong, or integrity does not go
    with the cipher: an AEAD has none of its own beside it, all others need one (RFC 5282 section 8).
    """
    if encr not in _AEADS and encr not in _CIPHERS:
        raise SuiteError(f"{name_of(Encr, encr)} cannot protect IKE messages")
    encr = Encr(encr)
    fixed = _FIXED_BITS.get(encr)
    if key_bits not in ((0, fixed) if fixed else _AES_BITS):
        raise SuiteError(f"{encr.name} has no keys of {key_bits} bits" if key_bits else f"{encr.name}: no key length")
    bits = fixed or key_bits
    size = bits // 8
    prefix = "" if fixed else f"aes{bits}"
    if encr in _AEADS:
        if integ != Integ.NONE:
            raise SuiteError(f"{encr.name} has integrity of its own, {name_of(Integ, integ)} does not go with it")
        word, icv_len, salt = _AEADS[encr]
        return SkSuite(prefix + word, encr, bits, Integ.NONE, size + salt, salt, 0, 8, icv_len, 1)
    if integ not in _INTEGRITY:
        raise SuiteError(f"{encr.name}: integrity {name_of(Integ, integ)} is not supported")
    word, salt, iv_len, block = _CIPHERS[encr]
    integ_word, integ_key_len, icv_len, _ = _INTEGRITY[Integ(integ)]
    name = f"{prefix}{word}-{integ_word}"
    return SkSuite(name, encr, bits, Integ(integ), size + salt, salt, integ_key_len, iv_len, icv_len, block)


class _Aead(Protocol):
    def encrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None) -> bytes: ...
    def decrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None) -> bytes: ...


class _TruncatedGcm:
    """AES-GCM with an ICV of 8 or 12 octets."""

    __slots__ = ("_algorithm", "_icv_len")

    def __init__(self, key: bytes, icv_len: int) -> None:
        self._algorithm = AES(key)
        self._icv_len = icv_len

    def encrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None) -> bytes:
        encryptor = Cipher(self._algorithm, modes.GCM(nonce)).encryptor()
        encryptor.authenticate_additional_data(associated_data or b"")
        return encryptor.update(data) + encryptor.finalize() + encryptor.tag[: self._icv_len]

    def decrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None) -> bytes:
        text, icv = data[: -self._icv_len], data[-self._icv_len :]
        decryptor = Cipher(self._algorithm, modes.GCM(nonce, icv, min_tag_length=self._icv_len)).decryptor()
        decryptor.authenticate_additional_data(associated_data or b"")
        return decryptor.update(text) + decryptor.finalize()


class SkCipher:
    """A suite with the keys of one direction. ``repr`` shows the suite alone."""

    __slots__ = ("_aead", "_algorithm", "_hash", "_integ_key", "_salt", "suite")

    def __init__(self, suite: SkSuite, encr_key: bytes, integ_key: bytes = b"") -> None:
        """Raises SuiteError, naming sizes but never contents, unless both keys fit."""
        for what, key, size in (
            ("encryption", encr_key, suite.encr_key_len),
            ("integrity", integ_key, suite.integ_key_len),
        ):
            if len(key) != size:
                raise SuiteError(f"{suite.name}: {what} key must have {size} octets, got {len(key)}")
        self.suite = suite
        end = suite.encr_key_len - suite.salt_len
        key, self._salt = encr_key[:end], encr_key[end:]
        self._integ_key = integ_key
        self._aead = _aead_of(suite, key) if suite.aead else None
        self._algorithm = TripleDES(key) if suite.encr is Encr.TRIPLE_DES_CBC else None if suite.aead else AES(key)
        self._hash = None if suite.aead else _INTEGRITY[suite.integ][3]

    def __repr__(self) -> str:
        return f"SkCipher({self.suite})"

    def overhead(self, length: int) -> int:
        """Octets that IV, padding, Pad Length and ICV add to ``length`` octets of plaintext."""
        suite = self.suite
        return suite.iv_len + -(length + 1) % suite.block + 1 + suite.icv_len

    def seal(self, aad: bytes, plaintext: bytes, counter: int, rng: Callable[[int], bytes]) -> bytes:
        """IV, ciphertext and ICV of ``plaintext``.

        ``aad`` is the message from the first octet of the IKE header to the last before the IV; its length fields
        are already final (see ``overhead``). ``counter`` is the IV of counter modes, which must never be used twice
        with a key: that is the caller's duty (RFC 5282 section 3.1). CBC takes its IV from ``rng``.
        """
        suite = self.suite
        pad = -(len(plaintext) + 1) % suite.block
        text = plaintext + b"\0" if not pad else plaintext + bytes(pad) + bytes((pad,))
        if self._aead is not None:
            iv = counter.to_bytes(8, "big")
            return iv + self._aead.encrypt(self._salt + iv, text, aad)
        # SP 800-38A appendix C: a CBC IV must be unpredictable
        iv = counter.to_bytes(8, "big") if suite.encr is Encr.AES_CTR else rng(suite.iv_len)
        body = iv + self._cipher(iv).encryptor().update(text)
        return body + self._mac(aad + body)

    def open(self, aad: bytes, body: bytes) -> bytes:
        """The plaintext of ``body`` (IV, ciphertext, ICV) without its padding.

        Raises IntegrityError if the ICV is wrong; ParseError if the size is no multiple of the block or too small,
        or if the padding is longer than the plaintext.
        """
        suite = self.suite
        iv_len, icv_len = suite.iv_len, suite.icv_len
        size = len(body) - iv_len - icv_len
        if size < 1 or size % suite.block:
            raise ParseError(f"Encrypted payload of {len(body)} octets does not fit {suite.name}")
        iv = body[:iv_len]
        if self._aead is not None:
            try:
                text = self._aead.decrypt(self._salt + iv, body[iv_len:], aad)
            except InvalidTag:
                raise IntegrityError("Encrypted payload: wrong ICV") from None
        else:
            if not hmac.compare_digest(self._mac(aad + body[:-icv_len]), body[-icv_len:]):
                raise IntegrityError("Encrypted payload: wrong ICV")
            text = self._cipher(iv).decryptor().update(body[iv_len:-icv_len])
        end = size - 1 - text[-1]
        if end < 0:
            raise ParseError(f"Encrypted payload: {text[-1]} octets of padding in {size} of plaintext")
        return text[:end]

    def _cipher(self, iv: bytes) -> Cipher[modes.CTR] | Cipher[modes.CBC]:
        assert self._algorithm is not None
        if self.suite.encr is Encr.AES_CTR:
            # RFC 5930 section 2: nonce, IV and a block counter that begins at one, as ESP has it
            return Cipher(self._algorithm, modes.CTR(self._salt + iv + b"\0\0\0\1"))
        return Cipher(self._algorithm, modes.CBC(iv))

    def _mac(self, message: bytes) -> bytes:
        if self._hash is not None:
            return hmac.digest(self._integ_key, message, self._hash)[: self.suite.icv_len]
        mac = aes_cmac if self.suite.integ is Integ.AES_CMAC_96 else aes_xcbc_mac
        return mac(self._integ_key, message)[: self.suite.icv_len]


def _aead_of(suite: SkSuite, key: bytes) -> _Aead:
    if suite.encr is Encr.CHACHA20_POLY1305:
        return ChaCha20Poly1305(key)
    if suite.encr is Encr.AES_GCM_16:
        return AESGCM(key)
    if suite.encr in (Encr.AES_GCM_8, Encr.AES_GCM_12):
        return _TruncatedGcm(key, suite.icv_len)
    return AESCCM(key, tag_length=suite.icv_len)
