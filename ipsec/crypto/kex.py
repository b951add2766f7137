"""Key exchange methods of IKEv2: MODP (RFC 3526, RFC 5114), ECP (RFC 5903), Brainpool (RFC 6954), Curve25519 and
Curve448 (RFC 8031), ML-KEM.

An object is one side's ephemeral key pair and serves one exchange. A peer's value is checked as RFC 6989 asks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple, Protocol

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x448 import X448PrivateKey, X448PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ipsec._modp import Modulus
from ipsec.crypto import mlkem
from ipsec.errors import ParseError, SuiteError
from ipsec.wire.iana import KeMethod, name_of


class KeyExchange(Protocol):
    """One side of a key exchange."""

    @property
    def method(self) -> int:
        """KeMethod."""

    @property
    def public(self) -> bytes:
        """What the KE payload carries (RFC 7296 section 3.4)."""

    def shared(self, peer: bytes) -> bytes:
        """The shared secret with the peer's KE payload data. Raises ParseError if that is not a valid public value."""


#: RFC 2409 section 6.2 and RFC 3526: p = 2^n - 2^(n-64) - 1 + 2^64 * (floor(2^(n-130) * pi) + k), generator 2.
#: method -> (n, k, bits of private exponent). The last is at least twice the strength that RFC 3526 section 8 gives.
_SAFE_PRIMES = {
    KeMethod.MODP_1024: (1024, 129093, 256),
    KeMethod.MODP_1536: (1536, 741804, 256),
    KeMethod.MODP_2048: (2048, 124476, 320),
    KeMethod.MODP_3072: (3072, 1690314, 448),
    KeMethod.MODP_4096: (4096, 240904, 512),
    KeMethod.MODP_6144: (6144, 929484, 576),
    KeMethod.MODP_8192: (8192, 4743158, 640),
}

#: RFC 5114 sections 2.1 to 2.3: prime p, generator g of the subgroup, its prime order q
_SUBGROUPS = {
    KeMethod.MODP_1024_160: (
        "b10b8f96a080e01dde92de5eae5d54ec52c99fbcfb06a3c69a6a9dca52d23b616073e28675a23d189838ef1e2ee652c013ecb4ae"
        "a906112324975c3cd49b83bfaccbdd7d90c4bd7098488e9c219a73724effd6fae5644738faa31a4ff55bccc0a151af5f0dc8b4bd"
        "45bf37df365c1a65e68cfda76d4da708df1fb2bc2e4a4371",
        "a4d1cbd5c3fd34126765a442efb99905f8104dd258ac507fd6406cff14266d31266fea1e5c41564b777e690f5504f213160217b4"
        "b01b886a5e91547f9e2749f4d7fbd7d3b9a92ee1909d0d2263f80a76a6a24c087a091f531dbf0a0169b6a28ad662a4d18e73afa3"
        "2d779d5918d08bc8858f4dcef97c2a24855e6eeb22b3b2e5",
        "f518aa8781a8df278aba4e7d64b7cb9d49462353",
    ),
    KeMethod.MODP_2048_224: (
        "ad107e1e9123a9d0d660faa79559c51fa20d64e5683b9fd1b54b1597b61d0a75e6fa141df95a56dbaf9a3c407ba1df15eb3d688a"
        "309c180e1de6b85a1274a0a66d3f8152ad6ac2129037c9edefda4df8d91e8fef55b7394b7ad5b7d0b6c12207c9f98d11ed34dbf6"
        "c6ba0b2c8bbc27be6a00e0a0b9c49708b3bf8a317091883681286130bc8985db1602e714415d9330278273c7de31efdc7310f712"
        "1fd5a07415987d9adc0a486dcdf93acc44328387315d75e198c641a480cd86a1b9e587e8be60e69cc928b2b9c52172e413042e9b"
        "23f10b0e16e79763c9b53dcf4ba80a29e3fb73c16b8e75b97ef363e2ffa31f71cf9de5384e71b81c0ac4dffe0c10e64f",
        "ac4032ef4f2d9ae39df30b5c8ffdac506cdebe7b89998caf74866a08cfe4ffe3a6824a4e10b9a6f0dd921f01a70c4afaab739d77"
        "00c29f52c57db17c620a8652be5e9001a8d66ad7c17669101999024af4d027275ac1348bb8a762d0521bc98ae247150422ea1ed4"
        "09939d54da7460cdb5f6c6b250717cbef180eb34118e98d119529a45d6f834566e3025e316a330efbb77a86f0c1ab15b051ae3d4"
        "28c8f8acb70a8137150b8eeb10e183edd19963ddd9e263e4770589ef6aa21e7f5f2ff381b539cce3409d13cd566afbb48d6c0191"
        "81e1bcfe94b30269edfe72fe9b6aa4bd7b5a0f1c71cfff4c19c418e1f6ec017981bc087f2a7065b384b890d3191f2bfa",
        "801c0d34c58d93fe997177101f80535a4738cebcbf389a99b36371eb",
    ),
    KeMethod.MODP_2048_256: (
        "87a8e61db4b6663cffbbd19c651959998ceef608660dd0f25d2ceed4435e3b00e00df8f1d61957d4faf7df4561b2aa3016c3d911"
        "34096faa3bf4296d830e9a7c209e0c6497517abd5a8a9d306bcf67ed91f9e6725b4758c022e0b1ef4275bf7b6c5bfc11d45f9088"
        "b941f54eb1e59bb8bc39a0bf12307f5c4fdb70c581b23f76b63acae1caa6b7902d52526735488a0ef13c6d9a51bfa4ab3ad83477"
        "96524d8ef6a167b5a41825d967e144e5140564251ccacb83e6b486f6b3ca3f7971506026c0b857f689962856ded4010abd0be621"
        "c3a3960a54e710c375f26375d7014103a4b54330c198af126116d2276e11715f693877fad7ef09cadb094ae91e1a1597",
        "3fb32c9b73134d0b2e77506660edbd484ca7b18f21ef205407f4793a1a0ba12510dbc15077be463fff4fed4aac0bb555be3a6c1b"
        "0c6b47b1bc3773bf7e8c6f62901228f8c28cbb18a55ae31341000a650196f931c77a57f2ddf463e5e9ec144b777de62aaab8a862"
        "8ac376d282d6ed3864e67982428ebc831d14348f6f2f9193b5045af2767164e1dfc967c1fb3f2e55a4bd1bffe83b9c80d052b985"
        "d182ea0adb2a3b7313d3fe14c8484b1e052588b9b7d2bbd2df016199ecd06e1557cd0915b3353bbb64e0ec377fd028370df92b52"
        "c7891428cdc67eb6184b523d1db246c32f63078490f00ef8d647d148d47954515e2327cfef98c582664b4c0f6cc41659",
        "8cf83642a709a097b447997640129da299b1a47d1eb3750ba308b0fe64f5fbd3",
    ),
}

#: curve, and the order of its group: RFC 5903 section 3, RFC 5114 sections 2.4 and 2.5, RFC 5639 section 3
_CURVES: dict[KeMethod, tuple[type[ec.EllipticCurve], int]] = {
    KeMethod.ECP_256: (ec.SECP256R1, 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551),
    KeMethod.ECP_384: (
        ec.SECP384R1,
        0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973,
    ),
    KeMethod.ECP_521: (
        ec.SECP521R1,
        0x1FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFA51868783BF2F966B7FCC0148F709A5D03BB5C9B8899C47AEBB6FB71E91386409,
    ),
    KeMethod.ECP_192: (ec.SECP192R1, 0xFFFFFFFFFFFFFFFFFFFFFFFF99DEF836146BC9B1B4D22831),
    KeMethod.ECP_224: (ec.SECP224R1, 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFF16A2E0B8F03E13DD29455C5C2A3D),
    KeMethod.BRAINPOOL_P256R1: (ec.BrainpoolP256R1, 0xA9FB57DBA1EEA9BC3E660A909D838D718C397AA3B561A6F7901E0E82974856A7),
    KeMethod.BRAINPOOL_P384R1: (
        ec.BrainpoolP384R1,
        0x8CB91E82A3386D280F5D6F7E50E641DF152F7109ED5456B31F166E6CAC0425A7CF3AB6AF6B7FC3103B883202E9046565,
    ),
    KeMethod.BRAINPOOL_P512R1: (
        ec.BrainpoolP512R1,
        0xAADD9DB8DBE9C48B3FD4E6AE33C9FC07CB308DB3B3C9D20ED6639CCA70330870553E5C414CA92619418661197FAC10471DB1D381085DDADDB58796829CA90069,
    ),
}


class _Group(NamedTuple):
    """A MODP group."""

    modulus: Modulus
    prime: int
    generator: bytes
    exponent_bits: int
    "of a private exponent, in groups of a safe prime"
    order: int
    "of the generator's subgroup; 0 in groups of a safe prime"


def _pi(bits: int) -> int:
    """floor(2^bits * pi), by Machin's formula."""
    scale = 1 << bits + 64

    def arctan_inverse(x: int) -> int:
        power, total, n, sign = scale // x, 0, 1, 1
        while power:
            total += sign * (power // n)
            power //= x * x
            n, sign = n + 2, -sign
        return total

    return 4 * (4 * arctan_inverse(5) - arctan_inverse(239)) >> 64


@lru_cache(maxsize=16)
def _group(method: KeMethod) -> _Group:
    if method in _SAFE_PRIMES:
        n, k, exponent_bits = _SAFE_PRIMES[method]
        prime = (1 << n) - (1 << n - 64) - 1 + (_pi(n - 130) + k << 64)
        return _Group(Modulus(prime.to_bytes(n // 8, "big")), prime, b"\2", exponent_bits, 0)
    p, g, q = (bytes.fromhex(text) for text in _SUBGROUPS[method])
    return _Group(Modulus(p), int.from_bytes(p, "big"), g, 0, int.from_bytes(q, "big"))


class _Modp:
    """A key pair of a MODP group. The shared secret is padded to the prime's length (RFC 7296 section 2.14)."""

    __slots__ = ("_exponent", "_group", "method", "public")

    def __init__(self, method: KeMethod, rng: Callable[[int], bytes]) -> None:
        self.method = method
        self._group = group = _group(method)
        if group.order:
            exponent = _scalar(group.order, rng)
        else:
            exponent = rng(group.exponent_bits // 8)
            # whatever the source gives, the exponent has its full length
            exponent = bytes((exponent[0] | 0x80,)) + exponent[1:]
        self._exponent = exponent
        self.public = group.modulus.power(group.generator, exponent)

    def shared(self, peer: bytes) -> bytes:
        group = self._group
        if len(peer) != group.modulus.size:
            raise _wrong_size(self.method, peer, group.modulus.size)
        # RFC 6989 section 2.1: 0, 1 and p-1 lie in the subgroups of one and two elements
        if not 1 < int.from_bytes(peer, "big") < group.prime - 1:
            raise _invalid(self.method)
        # RFC 6989 section 2.2: these primes have other small subgroups, which would tell bits of our exponent
        if group.order and int.from_bytes(group.modulus.power(peer, _octets(group.order)), "big") != 1:
            raise _invalid(self.method)
        return group.modulus.power(peer, self._exponent)


class _Ecp:
    """A key pair on a curve over a prime field. KE data is x | y, the shared secret is x (RFC 5903 section 7)."""

    __slots__ = ("_curve", "_key", "method", "public")

    def __init__(self, method: KeMethod, rng: Callable[[int], bytes]) -> None:
        self.method = method
        curve, order = _CURVES[method]
        self._curve = curve()
        self._key = ec.derive_private_key(int.from_bytes(_scalar(order, rng), "big"), self._curve)
        # the first octet only says that the point is not compressed
        self.public = self._key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)[1:]

    def shared(self, peer: bytes) -> bytes:
        if len(peer) != len(self.public):
            raise _wrong_size(self.method, peer, len(self.public))
        try:
            # RFC 6989 section 2.3: refuses coordinates out of range and points that are not on the curve
            point = ec.EllipticCurvePublicKey.from_encoded_point(self._curve, b"\4" + peer)
            return self._key.exchange(ec.ECDH(), point)
        except ValueError:
            raise _invalid(self.method) from None


class _Curve25519:
    """RFC 8031 with X25519 (RFC 7748)."""

    __slots__ = ("_key", "method", "public")

    def __init__(self, method: KeMethod, rng: Callable[[int], bytes]) -> None:
        self.method = method
        self._key = X25519PrivateKey.from_private_bytes(rng(32))
        self.public = self._key.public_key().public_bytes_raw()

    def shared(self, peer: bytes) -> bytes:
        if len(peer) != 32:
            raise _wrong_size(self.method, peer, 32)
        try:
            return self._key.exchange(X25519PublicKey.from_public_bytes(peer))
        except ValueError:
            # a point of small order gives zero (RFC 7748 section 6.1)
            raise _invalid(self.method) from None


class _Curve448:
    """RFC 8031 with X448 (RFC 7748)."""

    __slots__ = ("_key", "method", "public")

    def __init__(self, method: KeMethod, rng: Callable[[int], bytes]) -> None:
        self.method = method
        self._key = X448PrivateKey.from_private_bytes(rng(56))
        self.public = self._key.public_key().public_bytes_raw()

    def shared(self, peer: bytes) -> bytes:
        if len(peer) != 56:
            raise _wrong_size(self.method, peer, 56)
        try:
            return self._key.exchange(X448PublicKey.from_public_bytes(peer))
        except ValueError:
            # a point of small order gives zero (RFC 7748 section 6.2)
            raise _invalid(self.method) from None


_METHODS: dict[int, Callable[[KeMethod, Callable[[int], bytes]], KeyExchange]] = {
    KeMethod.CURVE_25519: _Curve25519,
    KeMethod.CURVE_448: _Curve448,
    **dict.fromkeys(_CURVES, _Ecp),
    **dict.fromkeys(_SAFE_PRIMES, _Modp),
    **dict.fromkeys(_SUBGROUPS, _Modp),
}


def key_exchange(method: int, rng: Callable[[int], bytes]) -> KeyExchange:
    """The initiator's fresh key pair; ``rng`` gives its private part. Raises SuiteError if the method is not one of
    ours."""
    if mlkem.is_kem(method):
        return mlkem.MlKem(KeMethod(method), rng)
    make = _METHODS.get(method)
    if make is None:
        raise SuiteError(f"key exchange {name_of(KeMethod, method)} is not supported")
    try:
        return make(KeMethod(method), rng)
    except UnsupportedAlgorithm:
        raise SuiteError(f"key exchange {name_of(KeMethod, method)} is missing in this machine's OpenSSL") from None


def join_key_exchange(method: int, peer: bytes, pair: Callable[[int], KeyExchange]) -> tuple[bytes, bytes]:
    """The responder's half: what it answers to the initiator's ``peer``, and the shared secret.

    ``pair`` makes a key pair, for methods in which both ends need one. Raises ParseError, SuiteError.
    """
    if mlkem.is_kem(method):
        return mlkem.encapsulate(method, peer)
    kex = pair(method)
    return kex.public, kex.shared(peer)


def supported_methods() -> tuple[int, ...]:
    """The methods that ``key_exchange`` takes."""
    return (*_METHODS, *mlkem.supported_kems())


def _scalar(order: int, rng: Callable[[int], bytes]) -> bytes:
    """A private value in 1..order-1, as long as the order. FIPS 186-5 A.2.1: 64 bits more make the bias vanish."""
    size = (order.bit_length() + 7) // 8
    return (int.from_bytes(rng(size + 8), "big") % (order - 1) + 1).to_bytes(size, "big")


def _octets(number: int) -> bytes:
    return number.to_bytes((number.bit_length() + 7) // 8, "big")


def _wrong_size(method: KeMethod, peer: bytes, size: int) -> ParseError:
    return ParseError(f"KE payload: {method.name} has {size} octets, not {len(peer)}")


def _invalid(method: KeMethod) -> ParseError:
    return ParseError(f"KE payload: not a valid public value of {method.name}")
