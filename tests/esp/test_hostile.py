"""Nothing that was not authenticated is delivered, and nothing raises."""

from __future__ import annotations

import random

import pytest

from ipsec.crypto.suites import esp_suite
from ipsec.esp.drops import DropReason
from ipsec.esp.sa import Direction, Mode
from tests.esp.support import GCM, NOW, SPI, SUITE_NAMES, Tunnel, keys, params, transport_packet, udp

REPRESENTATIVE = ["aes128gcm16", "aes256ccm8", "aes128gmac", "chacha20poly1305", "aes128-sha256", "3des-sha1"]
REPRESENTATIVE += ["aes128ctr-aesxcbc", "null-sha512", "aes256gcm16iiv"]
REFUSED = {
    DropReason.IN_HDR_ERROR,
    DropReason.IN_NO_STATES,
    DropReason.IN_STATE_SEQ_ERROR,
    DropReason.IN_STATE_PROTO_ERROR,
}


def unchanged(tunnel):
    stats = tunnel.receiver.query_sa(tunnel.into)
    return (stats.packets, stats.bytes, stats.seq, stats.last_use) == (0, 0, 0, None) and not tunnel.receiver.events()


@pytest.mark.parametrize("esn", [False, True])
@pytest.mark.parametrize("name", REPRESENTATIVE)
def test_every_truncation(engine_class, name, esn):
    tunnel = Tunnel(engine_class, name, esn=esn)
    datagram = tunnel.seal(udp(b"x" * 50)).datagram
    for length in range(len(datagram)):
        assert tunnel.open(datagram[:length]).drop in REFUSED
        assert tunnel.open(datagram[length:] if length else b"").drop in REFUSED
    for extra in (b"\0", bytes(4), bytes(16)):
        assert tunnel.open(datagram + extra).drop in REFUSED
    assert unchanged(tunnel)
    assert tunnel.open(datagram).drop is DropReason.NONE


@pytest.mark.parametrize("esn", [False, True])
@pytest.mark.parametrize("name", REPRESENTATIVE)
def test_every_single_octet_change(engine_class, name, esn):
    tunnel = Tunnel(engine_class, name, esn=esn)
    datagram = tunnel.seal(udp(b"x" * 20)).datagram
    for place in range(len(datagram)):
        for change in (0x01, 0x02, 0x10, 0x80, 0xFF):
            changed = bytearray(datagram)
            changed[place] ^= change
            drop = tunnel.open(bytes(changed)).drop
            assert drop in REFUSED
            if place < 4:
                assert drop in (DropReason.IN_NO_STATES, DropReason.IN_HDR_ERROR)
            elif place >= 8:
                assert drop is DropReason.IN_STATE_PROTO_ERROR
    assert unchanged(tunnel)
    assert tunnel.open(datagram).packet == udp(b"x" * 20)


@pytest.mark.parametrize("name", SUITE_NAMES)
def test_every_bit_of_the_icv_counts(engine_class, name):
    tunnel = Tunnel(engine_class, name)
    datagram = tunnel.seal(udp()).datagram
    for bit in range(8 * params(Direction.OUT, name).suite.icv_len):
        changed = bytearray(datagram)
        changed[-1 - bit // 8] ^= 1 << bit % 8
        assert tunnel.open(bytes(changed)).drop is DropReason.IN_STATE_PROTO_ERROR
    assert tunnel.open(datagram).drop is DropReason.NONE


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("name", REPRESENTATIVE)
def test_random_datagrams(engine_class, name, mode):
    rng = random.Random(name)
    tunnel = Tunnel(engine_class, name, mode=mode)
    head = SPI.to_bytes(4, "big")
    for size in [*range(120), 1400, 9000, 65535]:
        junk = rng.randbytes(size)
        assert tunnel.open(junk).drop in REFUSED
        assert tunnel.open((head + junk)[: max(size, 4)]).drop in REFUSED
        assert tunnel.open((bytes(4) + junk)[:size]).drop is DropReason.IN_HDR_ERROR
    assert unchanged(tunnel)


def test_reserved_spis(engine_class):
    """RFC 4303 section 2.1: 0..255 are nobody's SA, 0 is the non-ESP marker's."""
    tunnel = Tunnel(engine_class)
    body = tunnel.seal(udp()).datagram[4:]
    for spi in range(256):
        assert tunnel.open(spi.to_bytes(4, "big") + body).drop is DropReason.IN_HDR_ERROR
    for spi in (256, SPI - 1, SPI + 1, SPI << 16, 0xFFFFFFFF):
        assert tunnel.open(spi.to_bytes(4, "big") + body).drop is DropReason.IN_NO_STATES


def test_own_packets_reflected(engine_class):
    """An outbound SA's packets find no inbound SA, even with one key for both ways."""
    tunnel = Tunnel(engine_class)
    assert tunnel.sender.inbound(tunnel.seal(udp()).datagram, NOW).drop is DropReason.IN_NO_STATES


@pytest.mark.parametrize("name", ["aes128-sha256", "3des-sha1", "aes128gcm16", "null-sha1"])
def test_alignment(engine_class, name):
    """A ciphertext that is no multiple of the block, or of 4, is refused before any key is used (RFC 4303 2.4)."""
    suite = params(Direction.IN, name).suite
    tunnel = Tunnel(engine_class, name)
    head = SPI.to_bytes(4, "big") + b"\0\0\0\1"
    for text in range(64):
        drop = tunnel.open(head + bytes(suite.iv_len + text + suite.icv_len)).drop
        aligned = text >= suite.block and text % suite.block == 0
        assert drop is (DropReason.IN_STATE_PROTO_ERROR if aligned else DropReason.IN_HDR_ERROR)


@pytest.mark.parametrize("cut", ["sender", "receiver"])
@pytest.mark.parametrize("cipher", ["aes128", "3des", "aes256ctr", "null"])
def test_sha256_of_96_bits_at_one_end_alone(engine_class, cipher, cut):
    """Nobody negotiates it: the same keys and another length of the ICV deliver nothing."""
    one, other = (esp_suite(f"{cipher}-{integ}") for integ in ("sha256", "sha256_96"))
    theirs, ours = (other, one) if cut == "sender" else (one, other)
    sender, receiver = engine_class(), engine_class()
    sa = sender.add_sa(params(Direction.OUT, theirs, **keys(one)))
    receiver.add_sa(params(Direction.IN, ours, **keys(one)))
    reason = DropReason.IN_STATE_PROTO_ERROR if one.block == 4 else DropReason.IN_HDR_ERROR
    for size in range(200):
        assert receiver.inbound(sender.encapsulate(sa, udp(bytes(size)), NOW).datagram, NOW).drop is reason
    assert receiver.drops() == {reason: 200}


def test_replays_of_everything(engine_class):
    tunnel = Tunnel(engine_class)
    datagrams = [tunnel.seal(udp()).datagram for _ in range(50)]
    random.Random(1).shuffle(datagrams)
    assert all(tunnel.open(one).drop is DropReason.NONE for one in datagrams)
    assert all(tunnel.open(one).drop is DropReason.IN_STATE_SEQ_ERROR for one in datagrams)
    assert tunnel.receiver.drops() == {DropReason.IN_STATE_SEQ_ERROR: 50}


def test_random_packets_from_the_inside(engine_class):
    """The TUN side is no more trusted to be well-formed."""
    rng = random.Random(5)
    tunnel = Tunnel(engine_class)
    transport = Tunnel(engine_class, mode=Mode.TRANSPORT)
    for _ in range(2000):
        packet = bytearray(rng.choice((udp(b"y" * 30), udp(b"y" * 30, 6), transport_packet(4), transport_packet(6))))
        for _ in range(rng.randrange(1, 4)):
            packet[rng.randrange(min(60, len(packet)))] = rng.randrange(256)
        for one in (tunnel, transport):
            sealed = one.seal(bytes(packet[: rng.randrange(len(packet) + 1)] if rng.random() < 0.2 else packet))
            if not isinstance(sealed, DropReason):
                assert one.open(sealed.datagram).drop in (DropReason.NONE, DropReason.IN_INNER_HDR_ERROR)


def test_suites_do_not_mix(engine_class):
    """A packet of one suite is noise to any other with keys of the same bits."""
    datagram = Tunnel(engine_class).seal(udp()).datagram
    for name in SUITE_NAMES:
        if name != GCM.name:
            engine = engine_class()
            engine.add_sa(params(Direction.IN, name))
            assert engine.inbound(datagram, NOW).drop in REFUSED
