"""Key material of IKE SAs and Child SAs (RFC 7296 sections 2.14, 2.17 and 2.18).

Pure functions of a PRF and its inputs. No secret appears in a ``repr``.
"""

from __future__ import annotations

from ipsec.crypto.prf import PrfAlgorithm
from ipsec.crypto.sk import SkSuite
from ipsec.crypto.suites import EspSuite


class IkeKeys:
    """The seven keys of an IKE SA, by their names in RFC 7296 section 2.14. i is the original initiator."""

    __slots__ = ("sk_ai", "sk_ar", "sk_d", "sk_ei", "sk_er", "sk_pi", "sk_pr")

    def __init__(
        self, sk_d: bytes, sk_ai: bytes, sk_ar: bytes, sk_ei: bytes, sk_er: bytes, sk_pi: bytes, sk_pr: bytes
    ) -> None:
        self.sk_d = sk_d
        self.sk_ai = sk_ai
        self.sk_ar = sk_ar
        self.sk_ei = sk_ei
        self.sk_er = sk_er
        self.sk_pi = sk_pi
        self.sk_pr = sk_pr

    def keep_sk_d(self) -> None:
        """Forget the others, which have done their work once both ends are authenticated."""
        self.sk_ai = self.sk_ar = self.sk_ei = self.sk_er = self.sk_pi = self.sk_pr = b""

    def __repr__(self) -> str:
        return "IkeKeys()"


class ChildKeys:
    """The keys of a pair of ESP SAs: ``_i`` protects what the exchange's initiator sends, ``_r`` the other way.

    Encryption keys end in their salt, as ``EspSuite`` has it.
    """

    __slots__ = ("encr_i", "encr_r", "integ_i", "integ_r")

    def __init__(self, encr_i: bytes, integ_i: bytes, encr_r: bytes, integ_r: bytes) -> None:
        self.encr_i = encr_i
        self.integ_i = integ_i
        self.encr_r = encr_r
        self.integ_r = integ_r

    def __repr__(self) -> str:
        return "ChildKeys()"


def skeyseed(prf: PrfAlgorithm, ni: bytes, nr: bytes, shared: bytes) -> bytes:
    """SKEYSEED of a first IKE SA: ``prf(Ni | Nr, g^ir)`` (section 2.14)."""
    return prf(prf.nonce_key(ni, nr), shared)


def rekeyed_skeyseed(
    prf_old: PrfAlgorithm, sk_d_old: bytes, shared: bytes, ni: bytes, nr: bytes, further: bytes = b""
) -> bytes:
    """SKEYSEED of an IKE SA that replaces another: ``prf(SK_d (old), g^ir (new) | Ni | Nr)`` (section 2.18).

    The PRF here is the old SA's; what is derived from the result uses the new SA's. ``further`` are the secrets of
    additional key exchanges, one after the other (RFC 9370 section 2.2.4).
    """
    return prf_old(sk_d_old, shared + ni + nr + further)


def ike_keys(
    prf: PrfAlgorithm, suite: SkSuite, skeyseed: bytes, ni: bytes, nr: bytes, spi_i: bytes, spi_r: bytes
) -> IkeKeys:
    """The seven keys: ``prf+(SKEYSEED, Ni | Nr | SPIi | SPIr)`` (section 2.14)."""
    d, a, e = prf.key_len, suite.integ_key_len, suite.encr_key_len
    stream = prf.plus(skeyseed, ni + nr + spi_i + spi_r, 3 * d + 2 * a + 2 * e)
    sizes = (d, a, a, e, e, d, d)
    keys = []
    at = 0
    for size in sizes:
        keys.append(stream[at : at + size])
        at += size
    return IkeKeys(*keys)


def with_ppk(prf: PrfAlgorithm, keys: IkeKeys, ppk: bytes) -> IkeKeys:
    """The keys of an IKE SA whose ends share a PPK: SK_d, SK_pi, SK_pr are ``prf+(PPK, SK)`` (RFC 8784 section 3)."""
    d, pi, pr = (prf.plus(ppk, key, prf.key_len) for key in (keys.sk_d, keys.sk_pi, keys.sk_pr))
    return IkeKeys(d, keys.sk_ai, keys.sk_ar, keys.sk_ei, keys.sk_er, pi, pr)


def child_keys(
    prf: PrfAlgorithm, sk_d: bytes, suite: EspSuite, ni: bytes, nr: bytes, shared: bytes = b"", further: bytes = b""
) -> ChildKeys:
    """KEYMAT of a Child SA: ``prf+(SK_d, [g^ir (new) |] Ni | Nr)`` (section 2.17).

    ``shared`` is empty without a key exchange of its own; for the child that IKE_AUTH makes, the nonces are those of
    IKE_SA_INIT. ``further`` as above.
    """
    e, a = suite.key_len, suite.integ_key_len
    stream = prf.plus(sk_d, shared + ni + nr + further, 2 * (e + a))
    return ChildKeys(stream[:e], stream[e : e + a], stream[e + a : 2 * e + a], stream[2 * e + a :])
