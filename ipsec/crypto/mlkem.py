"""ML-KEM (FIPS 203) as a key exchange of IKEv2 (draft-ietf-ipsecme-ikev2-mlkem), done by ``cryptography``.

It is not symmetric: the initiator sends a public key, the responder answers with a ciphertext that only that key opens.
What the responder adds comes from libcrypto's own randomness, as ``cryptography`` takes none for it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm

from ipsec.errors import ParseError, SuiteError
from ipsec.wire.iana import KeMethod

try:
    from cryptography.hazmat.primitives.asymmetric import mlkem as _library
except ImportError:  # before 47
    _library = None  # type: ignore[assignment]

#: method -> (name, octets of a public key, octets of a ciphertext): FIPS 203 section 8
_SETS = {
    KeMethod.ML_KEM_512: ("MLKEM512", 800, 768),
    KeMethod.ML_KEM_768: ("MLKEM768", 1184, 1088),
    KeMethod.ML_KEM_1024: ("MLKEM1024", 1568, 1568),
}
_SEED_LEN = 64
_NEEDED = "ML-KEM needs the Python package cryptography 48 or later, built with OpenSSL 3.5 or later"


def is_kem(method: int) -> bool:
    """Whether a method is one of these, here or not."""
    return method in _SETS


@lru_cache(maxsize=8)
def missing(method: int) -> str | None:
    """Why this machine does not do a method, and what would; None if it does."""
    name = _SETS[KeMethod(method)][0]
    make = getattr(_library, f"{name}PrivateKey", None)
    if make is None:
        if method == KeMethod.ML_KEM_512:
            return "no release of the Python package cryptography has ML-KEM-512, take mlkem768"
    else:
        try:
            make.from_seed_bytes(bytes(_SEED_LEN))
            return None
        except UnsupportedAlgorithm:
            pass
    return _NEEDED


def supported_kems() -> tuple[int, ...]:
    """The methods that this machine does."""
    return tuple(int(method) for method in _SETS if missing(method) is None)


def found() -> tuple[bool, str]:
    """Whether this machine does any, and that in words."""
    names = ", ".join(KeMethod(method).name for method in supported_kems())
    return bool(names), names or _NEEDED


class MlKem:
    """The initiator's side: a key pair that serves one exchange."""

    __slots__ = ("_key", "method", "public")

    def __init__(self, method: KeMethod, rng: Callable[[int], bytes]) -> None:
        """SuiteError if this machine does not do it."""
        self.method = method
        self._key = _class(method, "PrivateKey").from_seed_bytes(rng(_SEED_LEN))
        self.public: bytes = self._key.public_key().public_bytes_raw()

    def shared(self, peer: bytes) -> bytes:
        """What is in the responder's ciphertext. One that was not made for this key gives what nobody else has, and
        AUTH or the first message under it shows that (FIPS 203 section 6.3)."""
        _check_size(self.method, peer, _SETS[self.method][2])
        secret: bytes = self._key.decapsulate(peer)
        return secret


def encapsulate(method: int, peer: bytes) -> tuple[bytes, bytes]:
    """The responder's side: the ciphertext for the initiator, and the shared secret.

    ParseError unless ``peer`` is a public key; libcrypto does the modulus check of FIPS 203 section 7.2.
    """
    known = KeMethod(method)
    public_key = _class(known, "PublicKey")
    _check_size(known, peer, _SETS[known][1])
    try:
        secret, ciphertext = public_key.from_public_bytes(peer).encapsulate()
    except ValueError:
        raise ParseError(f"KE payload: not a valid public value of {known.name}") from None
    return ciphertext, secret


def _class(method: KeMethod, what: str) -> Any:
    why = missing(method)
    if why is not None:
        raise SuiteError(f"key exchange {method.name} is not supported: {why}")
    return getattr(_library, _SETS[method][0] + what)


def _check_size(method: KeMethod, peer: bytes, size: int) -> None:
    if len(peer) != size:
        raise ParseError(f"KE payload: {method.name} has {size} octets, not {len(peer)}")
