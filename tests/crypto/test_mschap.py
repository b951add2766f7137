"""MD4 and MS-CHAPv2 against what RFC 1320, RFC 2759 and RFC 3079 print."""

from __future__ import annotations

import hashlib

import pytest

from ipsec.crypto import mschap

#: RFC 2759 section 9.2
USER, PASSWORD = b"User", b"clientPass"
CHALLENGE = bytes.fromhex("5b5d7c7d7b3f2f3e3c2c602132262628")
PEER_CHALLENGE = bytes.fromhex("21402324255e262a28295f2b3a337c7e")
NT_HASH = bytes.fromhex("44ebba8d5312b8d611474411f56989ae")
NT_RESPONSE = bytes.fromhex("82309ecd8d708b5ea08faa3981cd83544233114a3d85d6df")
PROOF = bytes.fromhex("407a5589115fd0d6209f510fe9c04566932cda56")


@pytest.mark.parametrize(
    ("text", "digest"),
    [
        ("", "31d6cfe0d16ae931b73c59d7e0c089c0"),
        ("a", "bde52cb31de33e46245e05fbdbd6fb24"),
        ("abc", "a448017aaf21d8525fc10ae87aa6729d"),
        ("message digest", "d9130a8164549fe818874806e1c7014b"),
        ("abcdefghijklmnopqrstuvwxyz", "d79e1c308aa5bbcdeea8ed63df412da9"),
        ("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789", "043f8582f241db351ce627e153e7f0e4"),
        ("1234567890" * 8, "e33b4ddc9c38f2199c3e7b164fcc0536"),
    ],
)
def test_md4(text: str, digest: str) -> None:
    """RFC 1320 appendix A.5."""
    assert mschap.md4(text.encode("ascii")).hex() == digest


def test_md4_at_the_edges_of_blocks() -> None:
    """All digests of 0 to 199 octets in one, as OpenSSL's legacy provider has them."""
    digests = b"".join(mschap.md4(bytes(range(length))) for length in range(200))
    assert hashlib.sha256(digests).hexdigest() == "ddd59d4451a202e15f8d99c52518b374481f6361e086f84805a329610d6c5c89"


def test_nt_password_hash() -> None:
    assert mschap.nt_password_hash(PASSWORD) == NT_HASH
    assert mschap.md4(NT_HASH).hex() == "41c00c584bd2d91c4017a2a12fa59f3f"


@pytest.mark.parametrize(
    ("password", "wide"),
    [
        ("Grüße".encode(), "Grüße".encode("utf-16-le")),
        ("🔑".encode(), b"\x3d\xd8\x11\xdd"),
        (b"Gr\xfc\xdfe", "Grüße".encode("utf-16-le")),
        (b"", b""),
    ],
)
def test_passwords_that_are_not_ascii(password: bytes, wide: bytes) -> None:
    assert mschap.nt_password_hash(password) == mschap.md4(wide)


def test_the_responses_of_both_sides() -> None:
    assert mschap.challenge_hash(PEER_CHALLENGE, CHALLENGE, USER).hex() == "d02e4386bce91226"
    assert mschap.nt_response(NT_HASH, CHALLENGE, PEER_CHALLENGE, USER) == NT_RESPONSE
    assert mschap.authenticator_response(NT_HASH, NT_RESPONSE, CHALLENGE, PEER_CHALLENGE, USER) == PROOF


def test_challenge_response() -> None:
    """The example of MS-CHAPv1, whose response is made the same way: RFC 2433 appendix B.2, password "MyPw"."""
    nt_hash = mschap.nt_password_hash(b"MyPw")
    assert nt_hash.hex() == "fc156af7edcd6c0edde3337d427f4eac"
    answer = mschap.challenge_response(bytes.fromhex("102db5df085d3041"), nt_hash)
    assert answer.hex() == "4e9d3c8f9cfd385d5bf4d3246791956ca4c351ab409a3d61"


def test_keys() -> None:
    """RFC 3079 section 3.5.3: SendStartKey128 of the server; the peer sends with the other one."""
    receive, send = mschap.mppe_keys(NT_HASH, NT_RESPONSE)
    assert send.hex() == "8b7cdc149b993a1ba118cb153f56dccb"
    assert receive.hex() == "d5f0e9521e3ea9589645e86051c82226"
