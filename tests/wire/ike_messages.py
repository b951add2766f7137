"""IKEv2 messages written octet by octet after the diagrams of RFC 7296, and the values they mean."""

from __future__ import annotations

from ipaddress import ip_address
from typing import NamedTuple

from ipsec.wire.iana import ExchangeType, PayloadType
from ipsec.wire.payloads import (
    AuthPayload,
    CertPayload,
    CertReqPayload,
    CpPayload,
    DeletePayload,
    EapPayload,
    IdPayload,
    KePayload,
    NoncePayload,
    NotifyPayload,
    Payload,
    SaPayload,
    TsPayload,
    VendorPayload,
)
from ipsec.wire.proposal import Proposal, Transform
from ipsec.wire.selector import OPAQUE, TrafficSelector

SPI_I, SPI_R = bytes.fromhex("1122334455667788"), bytes.fromhex("99aabbccddeeff00")


class Golden(NamedTuple):
    """Payloads of a message: those of SK where ``protected``, else those behind the header."""

    exchange: int
    protected: bool
    first: int
    octets: bytes
    payloads: list[Payload]


def octets(text: str) -> bytes:
    """Hex digits; what follows ``#`` in a line is a remark."""
    return bytes.fromhex("".join(line.split("#")[0] for line in text.splitlines()))


def header(golden: Golden, flags: int = 0x08) -> bytes:
    """The header of an unprotected message, section 3.1."""
    length = 28 + len(golden.octets)
    return octets(f"""
        {SPI_I.hex()} {SPI_R.hex()}
        {golden.first:02x} 20 {golden.exchange:02x} {flags:02x}
        00000000 {length:08x}""")


INIT = Golden(
    ExchangeType.IKE_SA_INIT,
    False,
    PayloadType.SA,
    octets(f"""
        22 00 0064                  # SA, next KE
          02 00 0030 01 01 00 04    # proposal 1, IKE, 4 transforms
            03 00 000c 01 00 000c 800e 0080  # AES-CBC, 128 bits
            03 00 0008 02 00 0005   # PRF-HMAC-SHA2-256
            03 00 0008 03 00 000c   # HMAC-SHA2-256-128
            00 00 000c 04 00 000e 800d 0001  # group 14 with an attribute that nobody knows
          00 00 0030 02 01 08 03 {SPI_I.hex()}  # proposal 2, with an SPI
            03 00 000c 01 00 0014 800e 0100  # AES-GCM-16, 256 bits
            03 00 000c 02 00 0007 000d 0000  # PRF-HMAC-SHA2-512, a long attribute without octets
            00 00 0008 04 00 001f   # Curve25519
        28 00 0010 001f 0000 {"ab" * 8}  # KE
        29 00 0014 {"cd" * 16}      # Nonce of 16 octets
        2b 00 001c 00 00 4004 {"ef" * 20}  # N(NAT_DETECTION_SOURCE_IP)
        26 00 0008 76656e64         # V
        00 00 000a 04 0102030405    # CERTREQ for X.509
    """),
    [
        SaPayload(
            [
                Proposal(1, [Transform(1, 12, 128), Transform(2, 5), Transform(3, 12), Transform(4, 14, -1)], 1),
                Proposal(1, [Transform(1, 20, 256), Transform(2, 7, -1), Transform(4, 31)], 2, SPI_I),
            ]
        ),
        KePayload(31, b"\xab" * 8),
        NoncePayload(b"\xcd" * 16),
        NotifyPayload(16388, b"\xef" * 20),
        VendorPayload(b"vend"),
        CertReqPayload(4, bytes((1, 2, 3, 4, 5))),
    ],
)

AUTH = Golden(
    ExchangeType.IKE_AUTH,
    True,
    PayloadType.IDI,
    octets(f"""
        25 00 000c 02 000000 6d6f6f6e  # IDi: FQDN "moon"
        26 00 0009 04 3082abcd      # CERT
        24 00 0019 04 {"11" * 20}   # CERTREQ
        27 00 000c 01 000000 0a000001  # IDr: 10.0.0.1
        30 00 000c 02 000000 {"5a" * 4}  # AUTH: shared key
        2f 00 0009 01 05 0005 01    # EAP: request, identity
        21 00 0019 01 000000        # CP(REQUEST)
          0001 0000                 # an address
          8003 0004 08080808        # a name server, reserved bit set
          0019 0001 2e
        2c 00 0024                  # SA
          00 00 0020 01 03 04 02 cafebabe  # ESP
            03 00 000c 01 00 0014 800e 0080  # AES-GCM-16, 128 bits
            00 00 0008 05 00 0000   # no ESN
        2d 00 0040 02 000000        # TSi: two
          07 00 0010 0000 ffff 0a000000 0a0000ff
          08 06 0028 0050 0051
            20010db8000000000000000000000000 20010db800000000ffffffffffffffff
        29 00 0024 02 000000        # TSr: two, of which one nobody knows
          09 00 000c 0000000000000000
          07 11 0010 ffff 0000 00000000 ffffffff
        00 00 000c 03 04 4009 deadbeef  # N(REKEY_SA) for ESP
    """),
    [
        IdPayload(35, 2, b"moon"),
        CertPayload(4, bytes.fromhex("3082abcd")),
        CertReqPayload(4, b"\x11" * 20),
        IdPayload(36, 1, bytes((10, 0, 0, 1))),
        AuthPayload(2, b"ZZZZ"),
        EapPayload(bytes((1, 5, 0, 5, 1))),
        CpPayload(1, [(1, b""), (3, bytes((8, 8, 8, 8))), (25, b".")]),
        SaPayload([Proposal(3, [Transform(1, 20, 128), Transform(5, 0)], 1, bytes.fromhex("cafebabe"))]),
        TsPayload(
            44,
            [
                TrafficSelector(ip_address("10.0.0.0"), ip_address("10.0.0.255")),
                TrafficSelector(ip_address("2001:db8::"), ip_address("2001:db8::ffff:ffff:ffff:ffff"), 6, (80, 81)),
            ],
        ),
        TsPayload(45, [TrafficSelector(ip_address("0.0.0.0"), ip_address("255.255.255.255"), 17, OPAQUE)]),
        NotifyPayload(16393, b"", 3, bytes.fromhex("deadbeef")),
    ],
)

CHILD = Golden(
    ExchangeType.CREATE_CHILD_SA,
    True,
    PayloadType.NOTIFY,
    octets(f"""
        21 00 000c 03 04 4009 01020304  # N(REKEY_SA)
        28 00 0028                  # SA
          00 00 0024 01 03 04 03 0a0b0c0d
            03 00 0008 01 00 001c   # ChaCha20-Poly1305
            03 00 0008 04 00 0013   # ECP-256
            00 00 0008 05 00 0001   # ESN
        22 00 0024 {"77" * 32}      # Ni
        2c 00 0048 0013 0000 {"88" * 64}  # KE
        2d 00 0018 01 000000
          07 00 0010 0000 ffff c0a80000 c0a800ff
        00 00 0018 01 000000
          07 01 0010 0800 08ff c0a80100 c0a801ff
    """),
    [
        NotifyPayload(16393, b"", 3, bytes((1, 2, 3, 4))),
        SaPayload([Proposal(3, [Transform(1, 28), Transform(4, 19), Transform(5, 1)], 1, bytes.fromhex("0a0b0c0d"))]),
        NoncePayload(b"\x77" * 32),
        KePayload(19, b"\x88" * 64),
        TsPayload(44, [TrafficSelector(ip_address("192.168.0.0"), ip_address("192.168.0.255"))]),
        TsPayload(45, [TrafficSelector(ip_address("192.168.1.0"), ip_address("192.168.1.255"), 1, (0x0800, 0x08FF))]),
    ],
)

INFORMATIONAL = Golden(
    ExchangeType.INFORMATIONAL,
    True,
    PayloadType.DELETE,
    octets("""
        2a 00 0010 03 04 0002 01020304 05060708  # D: two ESP SAs
        2f 00 0008 01 00 0000       # D: the IKE SA
        00 00 0008 02 000000        # CP(REPLY), empty
    """),
    [
        DeletePayload(3, [bytes((1, 2, 3, 4)), bytes((5, 6, 7, 8))]),
        DeletePayload(1, []),
        CpPayload(2, []),
    ],
)

EMPTY = Golden(ExchangeType.INFORMATIONAL, True, PayloadType.NONE, b"", [])

GOLDEN = [INIT, AUTH, CHILD, INFORMATIONAL, EMPTY]
NAMES = ["init", "auth", "child", "informational", "empty"]
