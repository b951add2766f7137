"""ESP sealing and opening for every suite, with the ``cryptography`` package: what the reference engine uses.

Speed is no aim here. The compiled data path has providers of its own; this module is their oracle.
"""

from __future__ import annotations

import hashlib
import hmac

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives.ciphers import Cipher, modes
from cryptography.hazmat.primitives.ciphers.aead import AESCCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.cmac import CMAC

from ipsec.crypto.suites import Encr, EspSuite, Integ

_GCM = (Encr.AES_GCM_8, Encr.AES_GCM_12, Encr.AES_GCM_16, Encr.AES_GCM_16_IIV)
_CCM = (Encr.AES_CCM_8, Encr.AES_CCM_12, Encr.AES_CCM_16)
_CBC = (Encr.AES_CBC, Encr.TRIPLE_DES_CBC)
_HASHES = {
    Integ.HMAC_SHA1_96: hashlib.sha1,
    Integ.HMAC_SHA2_256_128: hashlib.sha256,
    Integ.HMAC_SHA2_256_96: hashlib.sha256,
    Integ.HMAC_SHA2_384_192: hashlib.sha384,
    Integ.HMAC_SHA2_512_256: hashlib.sha512,
}


def aes_xcbc_mac(key: bytes, message: bytes) -> bytes:
    """AES-XCBC-MAC (RFC 3566 section 4) of ``message``, all 16 octets: AES-XCBC-MAC-96 is the first 12."""
    derive = Cipher(AES(key), modes.ECB()).encryptor()
    key1, key2, key3 = (derive.update(bytes([n]) * 16) for n in (1, 2, 3))
    whole = max(len(message) - 1, 0) // 16 * 16
    last = message[whole:]
    if len(last) == 16:
        mask = key2
    else:
        last, mask = last.ljust(len(last) + 1, b"\x80").ljust(16, b"\0"), key3
    last = bytes(a ^ b for a, b in zip(last, mask, strict=True))
    return Cipher(AES(key1), modes.CBC(bytes(16))).encryptor().update(message[:whole] + last)[-16:]


def aes_cmac(key: bytes, message: bytes) -> bytes:
    """AES-CMAC (RFC 4493) of ``message``, all 16 octets: AES-CMAC-96 (RFC 4494) is the first 12."""
    mac = CMAC(AES(key))
    mac.update(message)
    return mac.finalize()


class EspCipher:
    """The transforms of one SA: a suite with its keys. ``repr`` shows the suite alone.

    ``seq`` is always the whole sequence number, 64 bits; its high word is 0 without ESN.
    """

    def __init__(self, suite: EspSuite, encr_key: bytes, integ_key: bytes = b"") -> None:
        suite.check_keys(encr_key, integ_key)
        self.suite = suite
        self._key = encr_key[: suite.encr_key_len]
        self._salt = encr_key[suite.encr_key_len :]
        self._integ_key = integ_key

    def __repr__(self) -> str:
        return f"EspCipher({self.suite})"

    def iv(self, seq: int) -> bytes:
        """The explicit IV of packet ``seq``, ``suite.iv_len`` octets."""
        if self.suite.encr in _CBC:
            # SP 800-38A appendix C: a CBC IV must be unpredictable; a unique block under the same key is, once
            # enciphered. Sequence numbers never repeat under a key, so this needs no random source.
            return self._block_cipher_ecb(seq.to_bytes(self.suite.iv_len, "big"))
        return seq.to_bytes(8, "big") if self.suite.iv_len else b""

    def seal(self, spi: int, seq: int, esn: bool, plaintext: bytes, *, iv: bytes | None = None) -> bytes:
        """IV, ciphertext and ICV: the ESP packet after its sequence number.

        ``plaintext`` is payload data, TFC padding, padding, pad length and next header, a multiple of
        ``suite.block``. ``iv`` replaces the explicit IV; only known-answer tests have a use for it.
        """
        iv = self.iv(seq) if iv is None else iv
        aad = _header(spi, seq, esn)
        if self.suite.aead:
            if self.suite.encr is Encr.NULL_AUTH_AES_GMAC:
                # RFC 4543 section 3.3: the payload is sent in clear and authenticated after the IV
                return iv + plaintext + self.aead_seal(self._nonce(iv, seq), b"", aad + iv + plaintext)
            return iv + self.aead_seal(self._nonce(iv, seq), plaintext, aad)
        body = iv + self._crypt(iv, plaintext, encrypt=True)
        return body + self._mac(spi, seq, esn, body)

    def open(self, spi: int, seq: int, esn: bool, body: bytes) -> bytes | None:
        """The plaintext of ``body`` (IV, ciphertext, ICV), or None if the ICV is wrong.

        ``body`` must hold IV and ICV, and a ciphertext that is a multiple of ``suite.block``.
        """
        iv, text, icv = self._split(body)
        if not self.suite.aead:
            if not hmac.compare_digest(self._mac(spi, seq, esn, iv + text), icv):
                return None
            return self._crypt(iv, text, encrypt=False)
        aad = _header(spi, seq, esn)
        if self.suite.encr is Encr.NULL_AUTH_AES_GMAC:
            return None if self.aead_open(self._nonce(iv, seq), icv, aad + iv + text) is None else text
        return self.aead_open(self._nonce(iv, seq), text + icv, aad)

    def aead_seal(self, nonce: bytes, plaintext: bytes, aad: bytes) -> bytes:
        """Ciphertext and ICV of a combined algorithm."""
        encr = self.suite.encr
        if encr in _CCM:
            return AESCCM(self._key, tag_length=self.suite.icv_len).encrypt(nonce, plaintext, aad)
        if encr in (Encr.CHACHA20_POLY1305, Encr.CHACHA20_POLY1305_IIV):
            return ChaCha20Poly1305(self._key).encrypt(nonce, plaintext, aad)
        encryptor = Cipher(AES(self._key), modes.GCM(nonce)).encryptor()
        encryptor.authenticate_additional_data(aad)
        return encryptor.update(plaintext) + encryptor.finalize() + encryptor.tag[: self.suite.icv_len]

    def aead_open(self, nonce: bytes, sealed: bytes, aad: bytes) -> bytes | None:
        """The plaintext of ciphertext and ICV of a combined algorithm, or None if the ICV is wrong."""
        encr, icv_len = self.suite.encr, self.suite.icv_len
        try:
            if encr in _CCM:
                return AESCCM(self._key, tag_length=icv_len).decrypt(nonce, sealed, aad)
            if encr in (Encr.CHACHA20_POLY1305, Encr.CHACHA20_POLY1305_IIV):
                return ChaCha20Poly1305(self._key).decrypt(nonce, sealed, aad)
            text, icv = sealed[:-icv_len], sealed[-icv_len:]
            decryptor = Cipher(AES(self._key), modes.GCM(nonce, icv, min_tag_length=icv_len)).decryptor()
            decryptor.authenticate_additional_data(aad)
            return decryptor.update(text) + decryptor.finalize()
        except InvalidTag:
            return None

    def _split(self, body: bytes) -> tuple[bytes, bytes, bytes]:
        end = len(body) - self.suite.icv_len
        return body[: self.suite.iv_len], body[self.suite.iv_len : end], body[end:]

    def _nonce(self, iv: bytes, seq: int) -> bytes:
        # RFC 8750 section 3: the IV that is not sent is the sequence number in 8 octets, ESN or not
        return self._salt + (seq.to_bytes(8, "big") if self.suite.implicit_iv else iv)

    def _block_cipher_ecb(self, block: bytes) -> bytes:
        algorithm = AES(self._key) if self.suite.encr is Encr.AES_CBC else TripleDES(self._key)
        return Cipher(algorithm, modes.ECB()).encryptor().update(block)

    def _crypt(self, iv: bytes, text: bytes, *, encrypt: bool) -> bytes:
        encr = self.suite.encr
        if encr is Encr.NULL:
            return text
        if encr is Encr.AES_CTR:
            # RFC 3686 section 4: nonce, IV, and a block counter that begins at one
            mode: modes.CTR | modes.CBC = modes.CTR(self._salt + iv + b"\0\0\0\1")
        else:
            mode = modes.CBC(iv)
        algorithm = TripleDES(self._key) if encr is Encr.TRIPLE_DES_CBC else AES(self._key)
        cipher = Cipher(algorithm, mode)
        return (cipher.encryptor() if encrypt else cipher.decryptor()).update(text)

    def _mac(self, spi: int, seq: int, esn: bool, body: bytes) -> bytes:
        # RFC 4303 section 2.2.1: the high word is not sent, but the ICV covers it, after everything else
        high = (seq >> 32).to_bytes(4, "big") if esn else b""
        message = _header(spi, seq & 0xFFFFFFFF, False) + body + high
        if self.suite.integ is Integ.AES_XCBC_96:
            mac = aes_xcbc_mac(self._integ_key, message)
        elif self.suite.integ is Integ.AES_CMAC_96:
            mac = aes_cmac(self._integ_key, message)
        else:
            mac = hmac.digest(self._integ_key, message, _HASHES[self.suite.integ])
        return mac[: self.suite.icv_len]


def _header(spi: int, seq: int, esn: bool) -> bytes:
    """SPI and sequence number as the AAD has them (RFC 4106 section 5, RFC 4309 section 5, RFC 7634 section 2.1)."""
    return spi.to_bytes(4, "big") + seq.to_bytes(8 if esn else 4, "big")
