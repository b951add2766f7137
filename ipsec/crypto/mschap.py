"""What MS-CHAPv2 computes (RFC 2759 section 8), and the MPPE keys that come of it (RFC 3079 section 3).

MD4 and single DES are here for this alone. A recorded exchange gives away the NT hash for the price of one DES key
(2^56 trials), so it belongs inside of a channel whose server has authenticated itself.
"""

from __future__ import annotations

import hashlib
import struct

from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives.ciphers import Cipher, modes

CHALLENGE_LEN = 16
"octets of the challenge of either side"
NT_HASH_LEN = 16
NT_RESPONSE_LEN = 24
PROOF_LEN = 20
"octets of an authenticator response, which are sent as hexadecimal digits"

#: RFC 1320 section 3.4, by rounds: the constant, the order of the words, the rotations
_ROUNDS = (
    (0, range(16), (3, 7, 11, 19)),
    (0x5A827999, (0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), (3, 5, 9, 13)),
    (0x6ED9EBA1, (0, 8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15), (3, 9, 11, 15)),
)
_WORD = 0xFFFFFFFF

#: RFC 2759 section 8.7
_SIGNING = b"Magic server to client signing constant"
_PADDING = b"Pad to make it do more than one iteration"
#: RFC 3079 section 3.4
_MASTER = b"This is the MPPE Master Key"
_TO_SERVER = b"On the client side, this is the send key; on the server side, it is the receive key."
_FROM_SERVER = b"On the client side, this is the receive key; on the server side, it is the send key."
_SHS_PAD1, _SHS_PAD2 = bytes(40), b"\xf2" * 40


def md4(data: bytes) -> bytes:
    """MD4 (RFC 1320), 16 octets. OpenSSL has it only where somebody configured its legacy provider."""
    state = [0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476]
    padded = data + b"\x80" + bytes(-(len(data) + 9) % 64) + (len(data) * 8 & (1 << 64) - 1).to_bytes(8, "little")
    for at in range(0, len(padded), 64):
        words = struct.unpack_from("<16I", padded, at)
        a, b, c, d = state
        for number, (constant, order, rotations) in enumerate(_ROUNDS):
            for step, word in enumerate(order):
                mixed = (b & c | ~b & d, b & c | b & d | c & d, b ^ c ^ d)[number]
                total = (a + mixed + words[word] + constant) & _WORD
                by = rotations[step % 4]
                a, b, c, d = d, (total << by | total >> 32 - by) & _WORD, b, c
        state = [(old + new) & _WORD for old, new in zip(state, (a, b, c, d), strict=True)]
    return struct.pack("<4I", *state)


def nt_password_hash(password: bytes) -> bytes:
    """NtPasswordHash of a password in UTF-8, 16 octets (RFC 2759 section 8.3).

    What is not UTF-8 is taken octet by octet (ISO 8859-1), so that every password has a hash.
    """
    try:
        text = password.decode("utf-8")
    except UnicodeDecodeError:
        text = password.decode("latin-1")
    return md4(text.encode("utf-16-le"))


def challenge_hash(peer_challenge: bytes, challenge: bytes, user: bytes) -> bytes:
    """ChallengeHash, 8 octets (section 8.2). ``user`` is the name without a domain."""
    return hashlib.sha1(peer_challenge + challenge + user).digest()[:8]


def challenge_response(challenge: bytes, nt_hash: bytes) -> bytes:
    """ChallengeResponse, 24 octets, to the 8 of a ChallengeHash (section 8.5): three DES keys out of one hash."""
    padded = nt_hash.ljust(21, b"\0")
    return b"".join(_des(challenge, padded[at : at + 7]) for at in (0, 7, 14))


def _des(block: bytes, key: bytes) -> bytes:
    """DesEncrypt (section 8.6) with the 56 bits of ``key``."""
    bits = int.from_bytes(key, "big")
    # the lowest bit of each octet is for parity, which nobody looks at
    spread = bytes((bits >> 49 - 7 * n & 0x7F) << 1 for n in range(8))
    return Cipher(TripleDES(spread * 3), modes.ECB()).encryptor().update(block)


def nt_response(nt_hash: bytes, challenge: bytes, peer_challenge: bytes, user: bytes) -> bytes:
    """GenerateNTResponse, 24 octets (section 8.1): what a peer shows for its password."""
    return challenge_response(challenge_hash(peer_challenge, challenge, user), nt_hash)


def authenticator_response(
    nt_hash: bytes, response: bytes, challenge: bytes, peer_challenge: bytes, user: bytes
) -> bytes:
    """GenerateAuthenticatorResponse, 20 octets (section 8.7): what a server shows for it, after that NT response."""
    digest = hashlib.sha1(md4(nt_hash) + response + _SIGNING).digest()
    return hashlib.sha1(digest + challenge_hash(peer_challenge, challenge, user) + _PADDING).digest()


def mppe_keys(nt_hash: bytes, response: bytes) -> tuple[bytes, bytes]:
    """The 128-bit keys that the server receives with and sends with, 16 octets each (RFC 3079 section 3.4)."""
    master = hashlib.sha1(md4(nt_hash) + response + _MASTER).digest()[:16]
    receive, send = (
        hashlib.sha1(master + _SHS_PAD1 + magic + _SHS_PAD2).digest()[:16] for magic in (_TO_SERVER, _FROM_SERVER)
    )
    return receive, send
