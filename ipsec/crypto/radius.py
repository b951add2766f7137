"""What RADIUS makes of the secret that client and server share: authenticators and keys.

It is MD5 throughout, which is why a Message-Authenticator (RFC 3579 section 3.2), whose HMAC holds, is in every packet
that lets somebody in. The Response Authenticator alone does not: who is on the way can choose what makes it right for
another answer (CVE-2024-3596).
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import replace

from ipsec.errors import ParseError
from ipsec.wire.radius import AUTHENTICATOR_LEN, HEADER_LEN, RadiusAttribute, RadiusCode, RadiusPacket

_BLOCK = 16
"octets of an MD5 digest"
_SALT_LEN = 2


def seal_request(
    identifier: int, authenticator: bytes, attributes: tuple[tuple[int, bytes], ...], secret: bytes
) -> bytes:
    """An Access-Request, with its Message-Authenticator in front of all other attributes.

    There it is behind nothing that an attacker could choose. ValueError if that is longer than a packet may be.
    """
    first = (int(RadiusAttribute.MESSAGE_AUTHENTICATOR), bytes(AUTHENTICATOR_LEN))
    octets = RadiusPacket(RadiusCode.ACCESS_REQUEST, identifier, authenticator, (first, *attributes)).emit()
    start = HEADER_LEN + 2
    return octets[:start] + hmac.digest(secret, octets, "md5") + octets[start + AUTHENTICATOR_LEN :]


def seal_accounting(identifier: int, attributes: tuple[tuple[int, bytes], ...], secret: bytes) -> bytes:
    """An Accounting-Request, whose authenticator is made from it (RFC 2866 section 3). ValueError if it is too long."""
    blank = bytes(AUTHENTICATOR_LEN)
    octets = RadiusPacket(RadiusCode.ACCOUNTING_REQUEST, identifier, blank, attributes).emit()
    return octets[: HEADER_LEN - AUTHENTICATOR_LEN] + hashlib.md5(octets + secret).digest() + octets[HEADER_LEN:]


def is_acknowledged(response: RadiusPacket, request_authenticator: bytes, secret: bytes) -> bool:
    """Whether an Accounting-Response is of whom we share the secret with, and to this request; in constant time.

    RFC 2866 section 4.2 has the Response Authenticator alone for that; a Message-Authenticator has to be right if it is
    there.
    """
    if response.all(RadiusAttribute.MESSAGE_AUTHENTICATOR):
        return is_response_authentic(response, request_authenticator, secret)
    asked = replace(response, authenticator=request_authenticator)
    digest = hashlib.md5(asked.emit() + secret).digest()
    return hmac.compare_digest(digest, response.authenticator)


def is_response_authentic(response: RadiusPacket, request_authenticator: bytes, secret: bytes) -> bool:
    """Whether an answer is of whom we share the secret with, and to this request; compared in constant time.

    Both authenticators have to be right, so one without a Message-Authenticator, or with several, is not.
    """
    kind = RadiusAttribute.MESSAGE_AUTHENTICATOR
    macs = response.all(kind)
    if len(macs) != 1 or len(macs[0]) != AUTHENTICATOR_LEN:
        return False
    # both are made over the Authenticator of the request in the place of that of the answer
    asked = replace(response, authenticator=request_authenticator)
    # RFC 2865 section 3
    digest = hashlib.md5(asked.emit() + secret).digest()
    blank = tuple((one, bytes(AUTHENTICATOR_LEN) if one == kind else value) for one, value in asked.attributes)
    mac = hmac.digest(secret, replace(asked, attributes=blank).emit(), "md5")
    return hmac.compare_digest(digest, response.authenticator) & hmac.compare_digest(mac, macs[0])


def decrypt_mppe_key(value: bytes, request_authenticator: bytes, secret: bytes) -> bytes:
    """The key in an MS-MPPE-Send-Key or MS-MPPE-Recv-Key (RFC 2548 sections 2.4.2 and 2.4.3). ParseError."""
    salt, sealed = value[:_SALT_LEN], value[_SALT_LEN:]
    if not sealed or len(sealed) % _BLOCK:
        raise ParseError(f"MPPE key of {len(sealed)} octets is not enciphered in blocks of {_BLOCK}")
    plain, before = bytearray(), request_authenticator + salt
    for at in range(0, len(sealed), _BLOCK):
        block = sealed[at : at + _BLOCK]
        pad = hashlib.md5(secret + before).digest()
        plain += bytes(a ^ b for a, b in zip(block, pad, strict=True))
        before = block
    length = plain[0]
    if not 0 < length < len(plain):
        raise ParseError("MPPE key whose length is not one, the secret may be another")
    return bytes(plain[1 : 1 + length])
