"""Known answers of RFC 3566, 3602, 3686, 4106, 4543 and 7634, through the cipher module and through the engines."""

from __future__ import annotations

import hmac
from ipaddress import ip_address

import pytest

from ipsec.crypto.cipher import EspCipher, aes_xcbc_mac
from ipsec.crypto.suites import esp_suite
from ipsec.esp.drops import DropReason
from ipsec.esp.sa import Direction, Mode, SaParams
from tests.esp.support import ADDRESSES, NOW
from tests.vectors.data import CHACHA, GCM, GMAC, RFC3566, RFC3566_KEY, RFC3602_PACKETS, RFC3686

PACKETS = [pytest.param(case, id=f"{case.suite} {case.name}") for case in GCM + GMAC + CHACHA]
hexed = bytes.fromhex


def inbound(engine_class, suite, key, spi, seq, *, esn=False, mode=Mode.TUNNEL, integ_key=b""):
    local, remote = (ip_address(text) for text in ADDRESSES[4])
    engine = engine_class(mss_clamp=False)
    sa = SaParams(
        spi=spi, direction=Direction.IN, suite=esp_suite(suite), local=local, remote=remote, encr_key=key,
        integ_key=integ_key, esn=esn, mode=mode, initial_seq=max(seq - 1, 0),
    )  # fmt: skip
    engine.add_sa(sa)
    return engine


def plain(case):
    """SPI, number, ESN and plaintext of a case."""
    return int(case.spi, 16), int(case.seq, 16), len(case.seq) == 16, hexed(case.plaintext)


@pytest.mark.parametrize("case", PACKETS)
def test_cipher(case):
    spi, seq, esn, plaintext = plain(case)
    cipher = EspCipher(esp_suite(case.suite), hexed(case.key))
    body = hexed(case.iv + case.sealed)
    assert cipher.seal(spi, seq, esn, plaintext, iv=hexed(case.iv)) == body
    assert cipher.open(spi, seq, esn, body) == plaintext
    assert cipher.open(spi, seq ^ 1, esn, body) is None
    assert cipher.open(spi ^ 1, seq, esn, body) is None


@pytest.mark.parametrize("case", PACKETS)
def test_engine_opens(engine_class, case):
    """Whole packets. The draft's plaintexts end in next header 1, 0, 59 and 4; what is delivered depends on it."""
    spi, seq, esn, plaintext = plain(case)
    mode = Mode.TUNNEL if plaintext[-1] == 4 else Mode.TRANSPORT
    engine = inbound(engine_class, case.suite, hexed(case.key), spi, seq, esn=esn, mode=mode)
    datagram = hexed(case.spi) + seq.to_bytes(8, "big")[4:] + hexed(case.iv + case.sealed)
    broken = datagram[:-1] + bytes([datagram[-1] ^ 1])
    assert engine.inbound(broken, NOW).drop is DropReason.IN_STATE_PROTO_ERROR
    result = engine.inbound(datagram, NOW)
    payload = plaintext[: len(plaintext) - 2 - plaintext[-2]]
    if plaintext[-1] == 4:
        assert result == (DropReason.NONE, payload, result.sa)
    elif result.drop is DropReason.NONE:
        assert result.packet[20:] == payload
        assert result.packet[9] == plaintext[-1]
    else:
        # the ICV was good; the draft's padding (for instance 01 with length 0) and headers are not always
        assert result.drop in (DropReason.IN_PADDING_ERROR, DropReason.IN_INNER_HDR_ERROR, DropReason.IN_DUMMY)
    assert engine.inbound(datagram, NOW).drop is DropReason.IN_STATE_SEQ_ERROR


@pytest.mark.parametrize("case", RFC3602_PACKETS, ids=lambda case: case.name)
def test_rfc3602_packets(engine_class, case):
    """These have no ICV, which ESP today must have: an HMAC is put on, all else is the RFC's octets."""
    integ_key = bytes(range(32))
    packet = hexed(case.packet)
    packet += hmac.digest(integ_key, packet, "sha256")[:16]
    spi, seq = int.from_bytes(packet[:4], "big"), int.from_bytes(packet[4:8], "big")
    mode = Mode.TUNNEL if case.next_header == 4 else Mode.TRANSPORT
    engine = inbound(engine_class, "aes128-sha256", hexed(case.key), spi, seq, mode=mode, integ_key=integ_key)
    result = engine.inbound(packet, NOW)
    assert result.drop is DropReason.NONE
    assert (result.packet if case.next_header == 4 else result.packet[20:]) == hexed(case.payload)
    cipher = EspCipher(esp_suite("aes128-sha256"), hexed(case.key), integ_key)
    plaintext = cipher.open(spi, seq, False, packet[8:])
    assert cipher.seal(spi, seq, False, plaintext, iv=packet[8:24]) == packet[8:]


@pytest.mark.parametrize("case", RFC3686, ids=lambda case: case[0][:8])
def test_rfc3686(engine_class, case):
    key, nonce, iv, plaintext, ciphertext = (hexed(part) for part in case)
    suite = esp_suite(f"aes{len(key) * 8}ctr-sha256")
    integ_key = bytes(32)
    cipher = EspCipher(suite, key + nonce, integ_key)
    body = cipher.seal(0x1234, 1, False, plaintext, iv=iv)
    assert body[:-16] == iv + ciphertext
    assert cipher.open(0x1234, 1, False, body) == plaintext
    # the plaintexts are no ESP payloads: that the engine gets past the ICV is all it can show
    engine = inbound(engine_class, suite.name, key + nonce, 0x1234, 1, integ_key=integ_key)
    datagram = b"\0\0\x12\x34\0\0\0\1" + body
    assert engine.inbound(datagram, NOW).drop is DropReason.IN_PADDING_ERROR


@pytest.mark.parametrize(("message", "mac"), RFC3566, ids=lambda value: str(len(value) // 2))
def test_rfc3566(message, mac):
    assert aes_xcbc_mac(hexed(RFC3566_KEY), hexed(message)) == hexed(mac)


@pytest.mark.parametrize("case", [case for case in GCM if len(case.seq) == 16], ids=lambda case: case.name)
def test_implicit_iv_is_gcm_with_the_number_as_iv(engine_class, case):
    """RFC 8750 section 3 defines it so; it prints no vectors."""
    spi, seq, _, _ = plain(case)
    name = case.suite + "iiv"
    explicit = EspCipher(esp_suite(case.suite), hexed(case.key))
    implicit = EspCipher(esp_suite(name), hexed(case.key))
    inner = hexed(GCM[2].plaintext)[:-4] + bytes((1, 2, 2, 4))
    sealed = implicit.seal(spi, seq, True, inner)
    assert seq.to_bytes(8, "big") + sealed == explicit.seal(spi, seq, True, inner)
    engine = inbound(engine_class, name, hexed(case.key), spi, seq, esn=True)
    assert engine.inbound(hexed(case.spi) + seq.to_bytes(8, "big")[4:] + sealed, NOW).packet == inner[:-4]
