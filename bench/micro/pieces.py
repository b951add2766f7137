"""Single steps of the data path, and what IKEv2 is made of: each in a loop, CPU time of the measuring thread."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from bench.micro import subject
from ipsec._probe import SpdProbe, repeat_checksum, repeat_coalesce, repeat_replay
from ipsec.crypto import auth
from ipsec.crypto.kex import key_exchange
from ipsec.wire.iana import ExchangeType, HashAlgorithm, KeMethod
from ipsec.wire.ike import HEADER_LEN, emit_payloads, parse_header, parse_payloads

CHECKSUM_SIZES = (64, 1408, 65536)
WINDOWS = (64, 1024, 65536)
REPLAY_PACKETS = 1 << 20
SPD_SIZES = (1, 1000, 100_000)
SPD_ROUNDS = 2000
COALESCE_ROUNDS = 2000
FLOWS = 64
"different packets in turn, each for another policy where there are so many"
TRAIN = 44
"TCP segments of 1448 octets that make one superframe of 64 KiB"
KEY_EXCHANGES = (KeMethod.CURVE_25519, KeMethod.ECP_256, KeMethod.ECP_384, KeMethod.MODP_2048, KeMethod.MODP_4096)
SIGNERS: dict[str, Callable[[], auth.PrivateKeyObject]] = {
    "ecdsa256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "ed25519": ed25519.Ed25519PrivateKey.generate,
    "rsa2048": lambda: rsa.generate_private_key(65537, 2048),
    "rsa4096": lambda: rsa.generate_private_key(65537, 4096),
}


def checksum_ns(size: int) -> float:
    """The Internet checksum of ``size`` octets in the first-level cache."""
    rounds = max(200, (4 << 20) // size)
    return _took_ns(lambda: repeat_checksum(size, rounds)) / rounds


def replay_ns(window: int, *, reordered: bool) -> float:
    """Inferring, checking and entering one sequence number."""
    return _took_ns(lambda: repeat_replay(window, REPLAY_PACKETS, reordered)) / REPLAY_PACKETS


def coalesce_ns() -> float:
    """Joining one TCP segment of a long train."""
    train = _train()
    return _took_ns(lambda: repeat_coalesce(train, COALESCE_ROUNDS)) / COALESCE_ROUNDS / TRAIN


def spd_ns(policies: int, *, cached: bool) -> Callable[[], float]:
    """A function that takes the time of one look-up among so many policies."""
    table = SpdProbe()
    table.replace([subject.policy(number) for number in range(policies)])
    step = max(policies // FLOWS, 1)
    packets = [subject.packet(64, number * step % policies) for number in range(FLOWS)]
    return lambda: _took_ns(lambda: table.repeat_find(packets, SPD_ROUNDS, cached)) / SPD_ROUNDS / FLOWS


def codec_us(message: bytes, *, emitting: bool) -> float:
    """Parsing an IKE_SA_INIT request into payloads, or making it from them."""
    header = parse_header(message)
    body = message[HEADER_LEN:]
    payloads = parse_payloads(header.next_payload, body, ExchangeType.IKE_SA_INIT, False)
    if emitting:
        return _per_call_us(lambda: emit_payloads(payloads), 500)
    return _per_call_us(
        lambda: parse_payloads(parse_header(message).next_payload, body, ExchangeType.IKE_SA_INIT, False), 500
    )


def key_exchange_us(method: KeMethod) -> float:
    """One side's part: a fresh key pair and the shared secret."""
    other = key_exchange(method, os.urandom).public
    return _per_call_us(lambda: key_exchange(method, os.urandom).shared(other), 8)


def signature_us(key: auth.PrivateKeyObject, *, verifying: bool) -> float:
    """An AUTH payload by RFC 7427, made or checked."""
    octets = bytes(600)
    hashes = (int(HashAlgorithm.SHA2_256), int(HashAlgorithm.IDENTITY))
    if not verifying:
        return _per_call_us(lambda: auth.sign(key, octets, peer_hashes=hashes), 10)
    method, data = auth.sign(key, octets, peer_hashes=hashes)
    public = key.public_key()
    return _per_call_us(lambda: auth.verify(public, method, data, octets), 40)


def _took_ns(call: Callable[[], object]) -> float:
    begin = time.thread_time()
    call()
    return (time.thread_time() - begin) * 1e9


def _per_call_us(call: Callable[[], object], times: int) -> float:
    call()
    begin = time.thread_time()
    for _ in range(times):
        call()
    return (time.thread_time() - begin) / times * 1e6


def _train() -> list[bytes]:
    data = bytes(i & 255 for i in range(1448))
    return [_segment(1000 + number * len(data), data) for number in range(TRAIN)]


def _segment(sequence: int, data: bytes) -> bytes:
    """A TCP segment with right checksums: others are not joined."""
    addresses = bytes((10, 1, 0, 1, 10, 2, 0, 1))
    tcp = bytearray(b"\x9c\x40\x01\xbb" + sequence.to_bytes(4, "big") + bytes(4) + b"\x50\x10\xff\xff\0\0\0\0" + data)
    pseudo = addresses + b"\0\x06" + len(tcp).to_bytes(2, "big")
    tcp[16:18] = _checksum(pseudo + bytes(tcp)).to_bytes(2, "big")
    header = bytearray(b"\x45\0" + (20 + len(tcp)).to_bytes(2, "big") + b"\0\0\x40\0\x40\x06\0\0" + addresses)
    header[10:12] = _checksum(bytes(header)).to_bytes(2, "big")
    return bytes(header + tcp)


def _checksum(octets: bytes) -> int:
    octets += bytes(len(octets) % 2)
    total = sum(int.from_bytes(octets[i : i + 2], "big") for i in range(0, len(octets), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
