"""DF, DSCP and ECN between inner and outer header; trailer and inner header as a peer may send them."""

from __future__ import annotations

import struct

import pytest

from ipsec.esp.drops import DropReason
from ipsec.esp.sa import DfPolicy, Direction, DscpPolicy, Mode
from ipsec.wire.ip import checksum, parse_packet
from tests.esp.support import GCM, NOW, Tunnel, forge, ip, params, tcp_syn, trailer, transport_packet, udp

NOT_ECT, ECT1, ECT0, CE = range(4)
#: RFC 6040 section 4.2, figure 4, row by row: what is delivered for outer Not-ECT, ECT(0), ECT(1), CE; None: dropped
RFC6040 = {
    NOT_ECT: (NOT_ECT, NOT_ECT, NOT_ECT, None),
    ECT0: (ECT0, ECT0, ECT1, CE),
    ECT1: (ECT1, ECT1, ECT1, CE),
    CE: (CE, CE, CE, CE),
}


def receive(engine_class, plaintext, **kwargs):
    engine = engine_class(mss_clamp=False)
    sa = {key: kwargs.pop(key) for key in ("copy_ecn", "copy_dscp", "mode", "selectors") if key in kwargs}
    engine.add_sa(params(Direction.IN, **sa))
    return engine.inbound(forge(GCM, plaintext), NOW, **kwargs)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("inner", RFC6040)
def test_ecn_in(engine_class, version, inner):
    for column, outer in enumerate((NOT_ECT, ECT0, ECT1, CE)):
        packet = udp(version=version, tos=0xB8 | inner)
        result = receive(engine_class, trailer(packet, 4 if version == 4 else 41), tos=0x20 | outer)
        expected = RFC6040[inner][column]
        if expected is None:
            assert result.drop is DropReason.IN_ECN_ERROR
        else:
            assert result.packet == udp(version=version, tos=0xB8 | expected)


@pytest.mark.parametrize("version", [4, 6])
def test_ecn_and_dscp_off(engine_class, version):
    packet = udp(version=version, tos=0xB8)
    plaintext = trailer(packet, 4 if version == 4 else 41)
    assert receive(engine_class, plaintext, tos=0xFF, copy_ecn=False).packet == packet


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("policy", DscpPolicy)
def test_dscp_in(engine_class, version, policy):
    plaintext = trailer(udp(version=version, tos=0xB8 | ECT0), 4 if version == 4 else 41)
    expected = 0x28 if policy in (DscpPolicy.IN, DscpPolicy.YES) else 0xB8
    assert receive(engine_class, plaintext, tos=0x28, copy_dscp=policy).packet == udp(version=version, tos=expected | 2)


def test_wrong_inner_checksum_is_not_repaired(engine_class):
    packet = udp(tos=ECT0)
    packet = packet[:10] + b"\x12\x34" + packet[12:]
    result = receive(engine_class, trailer(packet, 4), tos=CE).packet
    assert result[1] == CE
    assert checksum(result[:20]) != 0


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("copy_ecn", [True, False])
@pytest.mark.parametrize("policy", DscpPolicy)
def test_outer_tos(engine_class, version, copy_ecn, policy):
    """RFC 4301 section 5.1.2, RFC 6040 section 4.1."""
    tunnel = Tunnel(engine_class, copy_ecn=copy_ecn, copy_dscp=policy)
    for tos in range(256):
        dscp = tos & 0xFC if policy & DscpPolicy.OUT else 0
        assert tunnel.seal(udp(version=version, tos=tos)).tos == dscp | (tos & 3 if copy_ecn else 0)


@pytest.mark.parametrize(
    ("policy", "plain", "with_df", "version6"),
    [(DfPolicy.COPY, False, True, True), (DfPolicy.SET, True, True, True), (DfPolicy.CLEAR, False, False, False)],
)
def test_outer_df(engine_class, policy, plain, with_df, version6):
    tunnel = Tunnel(engine_class, df=policy)
    assert tunnel.seal(udp(df=False)).df is plain
    assert tunnel.seal(udp(df=True)).df is with_df
    assert tunnel.seal(udp(version=6)).df is version6


@pytest.mark.parametrize("df", [False, True])
def test_transport_mode_keeps_tos_and_df(engine_class, df):
    tunnel = Tunnel(engine_class, mode=Mode.TRANSPORT, df=DfPolicy.SET, copy_dscp=DscpPolicy.NO, copy_ecn=False)
    sealed = tunnel.seal(transport_packet(4, tos=0xBA, df=df))
    assert (sealed.tos, sealed.df) == (0xBA, df)
    assert tunnel.open(sealed.datagram, tos=0xBB).packet[1] == 0xBB


@pytest.mark.parametrize("suite", ["aes128gcm16", "null-sha256"])
def test_padding_is_checked(engine_class, suite):
    packet = udp()
    good = [b"", bytes(range(1, 5)), bytes(range(1, 256 - (len(packet) + 1) % 4))]
    for pad in (bytes(range(1, n + 1)) for n in range(256) if (len(packet) + n + 2) % 4 == 0):
        good.append(pad)
    engine = engine_class()
    engine.add_sa(params(Direction.IN, suite))
    seq = 0
    for pad in good:
        if (len(packet) + len(pad) + 2) % 4:
            continue
        seq += 1
        assert engine.inbound(forge(suite, packet + pad + bytes((len(pad), 4)), seq), NOW).packet == packet
        for place in {0, len(pad) // 2, len(pad) - 1} if pad else ():
            seq += 1
            wrong = bytearray(pad)
            wrong[place] ^= 0x80
            result = engine.inbound(forge(suite, packet + bytes(wrong) + bytes((len(pad), 4)), seq), NOW)
            assert result.drop is DropReason.IN_PADDING_ERROR
    for text, length in ((b"", 1), (b"\1\2", 3), (bytes(range(1, 7)), 7), (packet, 255)):
        seq += 1
        text += b"\0" * (-(len(text) + 2) % 4)
        result = engine.inbound(forge(suite, text + bytes((length, 4)), seq), NOW)
        assert result.drop is DropReason.IN_PADDING_ERROR


def test_padding_alone_is_no_packet(engine_class):
    for next_header in (4, 41):
        assert receive(engine_class, trailer(b"", next_header)).drop is DropReason.IN_INNER_HDR_ERROR


def test_next_header_in_tunnel_mode(engine_class):
    for next_header in range(256):
        drop = receive(engine_class, trailer(udp(), next_header)).drop
        if next_header == 4:
            assert drop is DropReason.NONE
        elif next_header == 59:
            assert drop is DropReason.IN_DUMMY
        else:
            assert drop is DropReason.IN_STATE_MODE_ERROR
    assert receive(engine_class, trailer(udp(version=6), 4)).drop is DropReason.IN_STATE_MODE_ERROR
    assert receive(engine_class, trailer(udp(version=6), 41)).drop is DropReason.NONE


@pytest.mark.parametrize("version", [4, 6])
def test_every_inner_length(engine_class, version):
    """Longer than what was decrypted is a lie; shorter leaves TFC padding, which is cut off unread."""
    packet = udp(b"x" * 40, version)
    engine = engine_class()
    engine.add_sa(params(Direction.IN))
    at, fixed = (2, 0) if version == 4 else (4, 40)
    minimum = 28 if version == 4 else 44
    for seq, total in enumerate((*range(200), 65535), start=1):
        if not 0 <= total - fixed <= 65535:
            continue
        lying = packet[:at] + struct.pack("!H", total - fixed) + packet[at + 2 :]
        result = engine.inbound(forge(GCM, trailer(lying, 4 if version == 4 else 41), seq), NOW)
        if minimum <= total <= len(packet) or (version == 4 and 24 <= total < 28):
            assert result.packet == lying[:total]
        else:
            assert result.drop is DropReason.IN_INNER_HDR_ERROR, total


def test_every_header_octet_of_an_inner_packet(engine_class):
    """Whatever is delivered parses, is no longer than what was sent, and is counted."""
    engine = engine_class()
    sa = engine.add_sa(params(Direction.IN))
    seq = delivered = 0
    for packet, protocol in ((udp(b"data"), 4), (udp(b"data", 6), 41), (tcp_syn(), 4), (tcp_syn(6), 41)):
        for place in range(min(len(packet), 64)):
            for value in (0, 1, 0x3F, 0x40, 0x44, 0x4F, 0x60, 0x7F, 0x80, 0xFF, packet[place] ^ 1):
                seq += 1
                changed = packet[:place] + bytes([value]) + packet[place + 1 :]
                result = engine.inbound(forge(GCM, trailer(changed, protocol), seq), NOW)
                if result.drop is DropReason.NONE:
                    delivered += 1
                    assert parse_packet(result.packet).data == result.packet
                    assert changed.startswith(result.packet) or len(result.packet) == len(changed)
                else:
                    assert result.packet == b""
    assert engine.query_sa(sa).packets == delivered
    assert sum(engine.drops().values()) == seq - delivered


@pytest.mark.parametrize("junk", [b"\0", b"\xff" * 100, bytes(1000)])
def test_tfc_padding_of_any_content(engine_class, junk):
    assert receive(engine_class, trailer(udp() + junk, 4)).packet == udp()


def test_ipv6_extension_headers(engine_class):
    """The walk ends where the chain does, whatever the lengths say."""
    options = bytes((17, 0, 1, 4, 0, 0, 0, 0))
    segment = udp(version=6)[40:]
    good = ip(60, options + segment, 6)
    assert receive(engine_class, trailer(good, 41)).packet == good
    for length in (1, 2, 255):
        lying = ip(60, bytes((17, length)) + options[2:] + segment, 6)
        drop = receive(engine_class, trailer(lying, 41)).drop
        assert drop in (DropReason.IN_INNER_HDR_ERROR, DropReason.NONE)
        assert (drop is DropReason.NONE) == (8 * (length + 1) + 4 <= len(options + segment))
    chain = b"".join(bytes((60, 0, 1, 4, 0, 0, 0, 0)) for _ in range(150))
    assert receive(engine_class, trailer(ip(60, chain, 6), 41)).drop is DropReason.IN_INNER_HDR_ERROR
