"""A RADIUS server's side, written from the RFCs and apart from what is tested: reads requests, makes answers."""

from __future__ import annotations

import hashlib
import hmac
import struct
from ipaddress import ip_address
from typing import NamedTuple

from ipsec.ike.radius.exchange import Caller
from ipsec.ike.radius.server import RadiusServer

SECRET = b"secret of this server"
SERVER = RadiusServer("one", "192.0.2.9", SECRET)
CALLER = Caller(ip_address("198.51.100.7"), 4500, ip_address("192.0.2.1"), 4500, "office")
RECV, SEND = bytes(range(16)), bytes(range(100, 132))

ACCEPT, REJECT, CHALLENGE = 2, 3, 11
USER_NAME, STATE, VENDOR, PROXY_STATE, EAP, MAC = 1, 24, 26, 33, 79, 80

IDENTITY = b"\x02\x01\x00\x0a\x01alice"
"EAP-Response/Identity"
QUESTION = b"\x01\x02\x00\x06\x04?"
SUCCESS, FAILURE = b"\x03\x02\x00\x04", b"\x04\x02\x00\x04"

Attributes = list[tuple[int, bytes]]


class Request(NamedTuple):
    """An Access-Request whose Message-Authenticator is right and the first attribute."""

    identifier: int
    authenticator: bytes
    attributes: Attributes

    def all(self, kind: int) -> list[bytes]:
        return [value for one, value in self.attributes if one == kind]

    @property
    def eap(self) -> bytes:
        return b"".join(self.all(EAP))


def attributes_of(octets: bytes) -> Attributes:
    found: Attributes = []
    while octets:
        size = octets[1]
        assert 2 <= size <= len(octets)
        found.append((octets[0], octets[2:size]))
        octets = octets[size:]
    return found


def read(octets: bytes, secret: bytes = SECRET) -> Request:
    code, identifier, length = struct.unpack(">BBH", octets[:4])
    assert (code, length) == (1, len(octets))
    assert octets[20:22] == bytes((MAC, 18))
    blank = octets[:22] + bytes(16) + octets[38:]
    assert hmac.new(secret, blank, hashlib.md5).digest() == octets[22:38]
    return Request(identifier, octets[4:20], attributes_of(octets[20:]))


def emit(attributes: Attributes) -> bytes:
    return b"".join(bytes((kind, len(value) + 2)) + value for kind, value in attributes)


def answer(
    code: int,
    request: Request,
    *attributes: tuple[int, bytes],
    secret: bytes = SECRET,
    mac: bool = True,
    mac_first: bool = True,
    identifier: int | None = None,
) -> bytes:
    """An answer as it should be, but for what the arguments say."""
    body = emit(list(attributes))
    blank = bytes((MAC, 18)) + bytes(16)
    place = 0 if mac_first else len(body)
    if mac:
        body = body[:place] + blank + body[place:]
    number = request.identifier if identifier is None else identifier
    head = struct.pack(">BBH", code, number, 20 + len(body))
    if mac:
        found = hmac.new(secret, head + request.authenticator + body, hashlib.md5).digest()
        body = body[: place + 2] + found + body[place + 18 :]
    return head + hashlib.md5(head + request.authenticator + body + secret).digest() + body


def eap_attributes(packet: bytes) -> Attributes:
    return [(EAP, packet[at : at + 253]) for at in range(0, len(packet), 253)]


def microsoft(kind: int, value: bytes) -> tuple[int, bytes]:
    return VENDOR, struct.pack(">IBB", 311, kind, len(value) + 2) + value


def mppe(key: bytes, request: Request, secret: bytes = SECRET, salt: bytes = b"\x80\x01") -> bytes:
    """RFC 2548 section 2.4.2: what is in MS-MPPE-Send-Key and MS-MPPE-Recv-Key."""
    plain = bytes((len(key),)) + key
    plain += bytes(-len(plain) % 16)
    sealed, last = b"", request.authenticator + salt
    for at in range(0, len(plain), 16):
        pad = int.from_bytes(hashlib.md5(secret + last).digest(), "big")
        last = (pad ^ int.from_bytes(plain[at : at + 16], "big")).to_bytes(16, "big")
        sealed += last
    return salt + sealed


def keys(request: Request, recv: bytes = RECV, send: bytes = SEND, secret: bytes = SECRET) -> Attributes:
    return [
        microsoft(16, mppe(send, request, secret)),
        microsoft(17, mppe(recv, request, secret, b"\x80\x02")),
    ]


def accept(request: Request, *more: tuple[int, bytes], secret: bytes = SECRET) -> bytes:
    return answer(ACCEPT, request, *keys(request, secret=secret), *eap_attributes(SUCCESS), *more, secret=secret)


def challenge(request: Request, state: bytes = b"state", secret: bytes = SECRET) -> bytes:
    return answer(CHALLENGE, request, *eap_attributes(QUESTION), (STATE, state), secret=secret)
