"""The ESP cipher suites: one table from proposal keywords to sizes.

Keywords are those of swanctl.conf (``aes128gcm16``, ``aes256-sha256``, ``chacha20poly1305``); ours alone are the
implicit-IV forms ``aes128gcm16iiv`` and ``chacha20poly1305iiv`` (RFC 8750). Numbers are IANA's IKEv2 transform ids.
All sizes are octets unless the name says bits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from ipsec.errors import SuiteError
from ipsec.wire.iana import Encr as Encr
from ipsec.wire.iana import Integ as Integ


@dataclass(frozen=True)
class EspSuite:
    """One combination of encryption and integrity, with every size ESP needs.

    Key material is laid out as the RFCs and IKEv2 KEYMAT have it: ``encr_key_len`` octets of cipher key, then
    ``salt_len`` octets of salt (both in one string), and separately ``integ_key_len`` octets for integrity.
    """

    name: str
    "the proposal keyword form, normalised: ``aes128gcm16``, ``aes256-sha256``"
    encr: Encr
    key_bits: int
    "cipher key size in bits, 0 for NULL"
    integ: Integ
    encr_key_len: int
    salt_len: int
    iv_len: int
    "octets of explicit IV on the wire, 0 for implicit IV and NULL"
    icv_len: int
    block: int
    "padding alignment of payload + pad + 2 trailer octets, at least 4 (RFC 4303 section 2.4)"
    integ_key_len: int
    weak: bool = False
    "off unless asked for (RFC 8221)"

    @property
    def aead(self) -> bool:
        """Whether encryption and integrity are one combined algorithm."""
        return self.integ is Integ.NONE

    @property
    def implicit_iv(self) -> bool:
        """RFC 8750: the IV is the sequence number and is not sent."""
        return self.encr in (Encr.AES_GCM_16_IIV, Encr.CHACHA20_POLY1305_IIV)

    @property
    def key_len(self) -> int:
        """Octets of the encryption key argument: cipher key plus salt."""
        return self.encr_key_len + self.salt_len

    def check_keys(self, encr_key: bytes, integ_key: bytes) -> None:
        """Raise SuiteError, naming sizes but never contents, unless both keys fit."""
        if len(encr_key) != self.key_len:
            parts = f" ({self.encr_key_len} key + {self.salt_len} salt)" if self.salt_len else ""
            raise SuiteError(f"{self.name}: encryption key must have {self.key_len} octets{parts}, got {len(encr_key)}")
        if len(integ_key) != self.integ_key_len:
            raise SuiteError(f"{self.name}: integrity key must have {self.integ_key_len} octets, got {len(integ_key)}")

    def __str__(self) -> str:
        return self.name


def _aead(name: str, encr: Encr, bits: int, salt: int, iv: int, icv: int) -> EspSuite:
    return EspSuite(name, encr, bits, Integ.NONE, bits // 8, salt, iv, icv, 4, 0)


def _aeads() -> dict[str, EspSuite]:
    table: dict[str, EspSuite] = {}
    for bits in (128, 192, 256):
        for icv, gcm, ccm in (
            (8, Encr.AES_GCM_8, Encr.AES_CCM_8),
            (12, Encr.AES_GCM_12, Encr.AES_CCM_12),
            (16, Encr.AES_GCM_16, Encr.AES_CCM_16),
        ):
            for kind, encr, salt in (("gcm", gcm, 4), ("ccm", ccm, 3)):
                suite = _aead(f"aes{bits}{kind}{icv}", encr, bits, salt, 8, icv)
                table[suite.name] = suite
                # strongSwan's alias: the ICV in bits
                table[f"aes{bits}{kind}{icv * 8}"] = suite
        table[f"aes{bits}gcm"] = table[f"aes{bits}gcm16"]
        table[f"aes{bits}ccm"] = table[f"aes{bits}ccm16"]
        table[f"aes{bits}gcm16iiv"] = _aead(f"aes{bits}gcm16iiv", Encr.AES_GCM_16_IIV, bits, 4, 0, 16)
        table[f"aes{bits}gmac"] = _aead(f"aes{bits}gmac", Encr.NULL_AUTH_AES_GMAC, bits, 4, 8, 16)
    table["chacha20poly1305"] = _aead("chacha20poly1305", Encr.CHACHA20_POLY1305, 256, 4, 8, 16)
    table["chacha20poly1305iiv"] = _aead("chacha20poly1305iiv", Encr.CHACHA20_POLY1305_IIV, 256, 4, 0, 16)
    return table


#: combined algorithms by keyword
AEADS = _aeads()

#: ciphers that need an integrity algorithm: keyword -> (encr, key bits, salt, IV, block)
CIPHERS: dict[str, tuple[Encr, int, int, int, int]] = {
    "null": (Encr.NULL, 0, 0, 0, 4),
    "3des": (Encr.TRIPLE_DES_CBC, 192, 0, 8, 8),
    **{f"aes{bits}": (Encr.AES_CBC, bits, 0, 16, 16) for bits in (128, 192, 256)},
    "aes": (Encr.AES_CBC, 128, 0, 16, 16),
    **{f"aes{bits}ctr": (Encr.AES_CTR, bits, 4, 8, 4) for bits in (128, 192, 256)},
}

#: integrity algorithms by keyword -> (integ, key octets, ICV octets)
INTEGRITY: dict[str, tuple[Integ, int, int]] = {
    "sha1": (Integ.HMAC_SHA1_96, 20, 12),
    "sha256": (Integ.HMAC_SHA2_256_128, 32, 16),
    "sha384": (Integ.HMAC_SHA2_384_192, 48, 24),
    "sha512": (Integ.HMAC_SHA2_512_256, 64, 32),
    "aesxcbc": (Integ.AES_XCBC_96, 16, 12),
    "aescmac": (Integ.AES_CMAC_96, 16, 12),
    "sha256_96": (Integ.HMAC_SHA2_256_96, 32, 12),
    # other spellings strongSwan takes
    "sha": (Integ.HMAC_SHA1_96, 20, 12),
    "sha2_256": (Integ.HMAC_SHA2_256_128, 32, 16),
    "sha2_384": (Integ.HMAC_SHA2_384_192, 48, 24),
    "sha2_512": (Integ.HMAC_SHA2_512_256, 64, 32),
    "sha2_256_96": (Integ.HMAC_SHA2_256_96, 32, 12),
}

_NORMAL_CIPHER = {"aes": "aes128"}
_NORMAL_INTEG = {
    "sha": "sha1",
    "sha2_256": "sha256",
    "sha2_384": "sha384",
    "sha2_512": "sha512",
    "sha2_256_96": "sha256_96",
}


@lru_cache(maxsize=256)
def esp_suite(keywords: str) -> EspSuite:
    """The suite that ``keywords`` names, such as ``aes128gcm16`` or ``aes256-sha256``.

    Order does not matter. Raises SuiteError that says which keyword is wrong or missing; a cipher without integrity
    is refused (RFC 4303 section 3.2, RFC 8221 section 4).
    """
    aead = cipher = integ = None
    for word in keywords.lower().split("-"):
        if word in AEADS and aead is None and cipher is None:
            aead = word
        elif word in CIPHERS and cipher is None and aead is None:
            cipher = word
        elif word in INTEGRITY and integ is None:
            integ = word
        else:
            known = word in AEADS or word in CIPHERS or word in INTEGRITY
            raise SuiteError(f"{keywords}: {'one algorithm too many: ' if known else 'unknown algorithm '}{word!r}")
    if aead is not None:
        if integ is not None:
            raise SuiteError(f"{keywords}: {aead} has integrity of its own, remove {integ!r}")
        return AEADS[aead]
    if cipher is None:
        raise SuiteError(f"{keywords}: no encryption algorithm (use 'null' for none)")
    if integ is None:
        raise SuiteError(f"{keywords}: {cipher} needs an integrity algorithm, for instance {cipher}-sha256")
    encr, bits, salt, iv, block = CIPHERS[cipher]
    integ_id, integ_key_len, icv = INTEGRITY[integ]
    name = f"{_NORMAL_CIPHER.get(cipher, cipher)}-{_NORMAL_INTEG.get(integ, integ)}"
    suite = EspSuite(name, encr, bits, integ_id, bits // 8, salt, iv, icv, block, integ_key_len)
    return replace(suite, weak=True) if encr is Encr.TRIPLE_DES_CBC else suite


def with_sha256_96(suite: EspSuite) -> EspSuite:
    """``suite`` with HMAC-SHA-256 cut to 96 bits, as the drafts before RFC 4868 had it and some peers still do."""
    return esp_suite(f"{suite.name}_96") if suite.integ is Integ.HMAC_SHA2_256_128 else suite


def all_esp_suites() -> tuple[EspSuite, ...]:
    """Every suite once, in the order of the tables."""
    suites = dict.fromkeys(AEADS.values())
    for cipher in CIPHERS:
        for integ in INTEGRITY:
            suites.setdefault(esp_suite(f"{cipher}-{integ}"))
    return tuple(suites)
