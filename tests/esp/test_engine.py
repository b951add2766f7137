"""Both engines: round trips, packet layout, lifetimes, sequence numbers, databases, counters."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import pytest

from ipsec.crypto.cipher import EspCipher
from ipsec.errors import SaError
from ipsec.esp.drops import DropReason
from ipsec.esp.engine import SEQUENCE_SOFT_MARGIN, Event, EventKind, Outbound
from ipsec.esp.pmtu import inner_mtu
from ipsec.esp.sa import Direction, Lifetime, Mode
from tests.esp.support import (
    GCM,
    NOW,
    SPI,
    SUITE_NAMES,
    Tunnel,
    forge,
    gateway,
    keys,
    params,
    trailer,
    transport_packet,
    udp,
)


@pytest.mark.parametrize("esn", [False, True])
@pytest.mark.parametrize("name", SUITE_NAMES)
def test_round_trip(engine_class, name, esn):
    tunnel = Tunnel(engine_class, name, esn=esn)
    for size in (0, 1, 2, 3, 4, 13, 14, 15, 16, 17, 31, 100, 1371):
        packet = udp(b"z" * size)
        assert tunnel.send(packet) == (DropReason.NONE, packet, tunnel.into)
    for size in (0, 1, 255, 1200):
        packet = udp(b"z" * size, 6)
        assert tunnel.send(packet).packet == packet
    transport = Tunnel(engine_class, name, esn=esn, mode=Mode.TRANSPORT)
    packet = transport_packet(4, b"t" * 77, df=True, identification=0)
    assert transport.send(packet).packet == packet


@pytest.mark.parametrize("name", SUITE_NAMES)
def test_layout_and_padding(engine_class, name):
    """RFC 4303 section 2: SPI, sequence number, IV, payload, minimal padding 1 2 3 ..., trailer, ICV."""
    tunnel = Tunnel(engine_class, name)
    suite = tunnel_suite = params(Direction.OUT, name).suite
    cipher = EspCipher(suite, **keys(suite))
    for number, size in enumerate(range(20), start=1):
        packet = udp(b"p" * size)
        datagram = tunnel.seal(packet).datagram
        assert struct.unpack_from("!II", datagram) == (SPI, number)
        plaintext = cipher.open(SPI, number, False, datagram[8:])
        assert plaintext == trailer(packet, 4, tunnel_suite.block)
        assert len(plaintext) < len(packet) + 2 + suite.block
        iv = datagram[8 : 8 + suite.iv_len]
        assert iv == cipher.iv(number)
        if suite.iv_len == 8 and suite.block == 4:
            assert iv == struct.pack("!Q", number)


@pytest.mark.parametrize("name", SUITE_NAMES)
def test_numbers_and_ivs_never_repeat(engine_class, name):
    tunnel = Tunnel(engine_class, name)
    suite = params(Direction.OUT, name).suite
    heads = {tunnel.seal(udp()).datagram[4 : 8 + suite.iv_len] for _ in range(100)}
    assert len(heads) == 100
    if suite.iv_len:
        assert len({head[4:] for head in heads}) == 100


def test_outer_families(engine_class):
    for outer in (4, 6):
        for inner in (4, 6):
            packet = udp(version=inner)
            for encap in (None, (4500, 4500)):
                assert Tunnel(engine_class, outer=outer, encap=encap).send(packet).packet == packet


def test_octets_behind_the_ip_length_are_cut(engine_class):
    tunnel = Tunnel(engine_class)
    assert tunnel.send(udp() + b"behind").packet == udp()


@pytest.mark.parametrize("packet", [b"", b"\x45", b"\x00" * 40, udp()[:-1], b"\x60" + bytes(30), b"\x41" + udp()[1:]])
def test_malformed_packets_are_not_sealed(engine_class, packet):
    tunnel = Tunnel(engine_class)
    assert tunnel.seal(packet) is DropReason.OUT_HDR_ERROR
    assert gateway(engine_class)[0].outbound(packet, NOW) == Outbound(DropReason.OUT_HDR_ERROR)
    assert tunnel.sender.query_sa(tunnel.out).seq == 0


def test_dummy_packets(engine_class):
    """RFC 4303 section 2.6: discarded without a complaint, counted as good."""
    tunnel = Tunnel(engine_class)
    for length in (0, 1, 100, 1000):
        sealed = tunnel.sender.dummy(tunnel.out, length, NOW)
        assert len(sealed.datagram) == 8 + 8 + len(trailer(bytes(length), 59)) + 16
        assert tunnel.open(sealed.datagram) == (DropReason.IN_DUMMY, b"", tunnel.into)
    assert tunnel.open(forge(GCM, trailer(b"not zero", 59), 9)).drop is DropReason.IN_DUMMY
    stats = tunnel.receiver.query_sa(tunnel.into)
    assert (stats.packets, stats.bytes, stats.last_use, stats.seq) == (5, 0, NOW, 9)
    assert tunnel.sender.query_sa(tunnel.out).packets == 4


@pytest.mark.parametrize("name", ["aes128gcm16", "aes256-sha256", "3des-sha1", "null-sha512"])
def test_tfc_padding(engine_class, name):
    """RFC 4303 section 2.7: the inner length tells where padding begins; it never passes the MTU."""
    for tfc in (-1, 1, 200, 1000, 65535):
        tunnel = Tunnel(engine_class, name, tfc=tfc)
        full = inner_mtu(params(Direction.OUT, name))
        suite = params(Direction.OUT, name).suite
        for size in (0, 1, 150, 171, 172, 173, 900):
            packet = udp(b"s" * size)
            target = max(len(packet), full if tfc < 0 else min(tfc, full))
            datagram = tunnel.seal(packet).datagram
            plain = (target + 2 + suite.block - 1) // suite.block * suite.block
            assert len(datagram) == 8 + suite.iv_len + plain + suite.icv_len
            assert len(datagram) + 20 <= 1500
            assert tunnel.open(datagram).packet == packet
        assert tunnel.sender.query_sa(tunnel.out).bytes == sum(28 + n for n in (0, 1, 150, 171, 172, 173, 900))


def test_tfc_is_for_tunnel_mode(engine_class):
    plain = Tunnel(engine_class, mode=Mode.TRANSPORT).seal(transport_packet(4)).datagram
    assert Tunnel(engine_class, mode=Mode.TRANSPORT, tfc=900).seal(transport_packet(4)).datagram == plain


def test_packet_lifetime(engine_class):
    tunnel = Tunnel(engine_class, lifetime=Lifetime(packets_soft=3, packets_hard=5))
    for number in range(1, 9):
        sealed = tunnel.seal(udp())
        if number > 5:
            assert sealed is DropReason.OUT_STATE_EXPIRED
            continue
        assert tunnel.open(sealed.datagram).drop is DropReason.NONE
    kinds = [EventKind.SOFT_LIFETIME, EventKind.HARD_LIFETIME]
    assert tunnel.sender.events() == [Event(kind, tunnel.out) for kind in kinds]
    assert tunnel.sender.events() == []
    assert tunnel.receiver.events() == [Event(EventKind.SOFT_LIFETIME, tunnel.into)]
    late = forge(GCM, trailer(udp(), 4), 99)
    assert [tunnel.open(late).drop for _ in range(2)] == [DropReason.IN_STATE_EXPIRED] * 2
    assert tunnel.receiver.events() == [Event(EventKind.HARD_LIFETIME, tunnel.into)]
    assert tunnel.sender.query_sa(tunnel.out).drops == {DropReason.OUT_STATE_EXPIRED: 3}
    assert tunnel.receiver.query_sa(tunnel.into).drops == {DropReason.IN_STATE_EXPIRED: 2}
    assert (tunnel.receiver.query_sa(tunnel.into).packets, tunnel.sender.query_sa(tunnel.out).seq) == (5, 5)


def test_byte_lifetime_is_exact(engine_class):
    packet = udp(b"x" * 72)
    tunnel = Tunnel(engine_class, lifetime=Lifetime(bytes_soft=200, bytes_hard=350))
    receiver_only = engine_class()
    receiver_only.add_sa(params(Direction.IN, lifetime=Lifetime(bytes_hard=350)))
    unlimited = Tunnel(engine_class)
    for number in range(1, 4):
        assert tunnel.send(packet).drop is DropReason.NONE
        assert receiver_only.inbound(unlimited.seal(packet).datagram, NOW).drop is DropReason.NONE
        assert len(tunnel.sender.events()) == (1 if number == 2 else 0)
    assert tunnel.seal(packet) is DropReason.OUT_STATE_EXPIRED
    assert receiver_only.inbound(unlimited.seal(packet).datagram, NOW).drop is DropReason.IN_STATE_EXPIRED
    assert tunnel.sender.events() == [Event(EventKind.HARD_LIFETIME, tunnel.out)]
    # what still fits is carried, up to the last octet
    assert tunnel.send(udp(b"x" * 22)).drop is DropReason.NONE
    assert tunnel.sender.query_sa(tunnel.out).bytes == 350
    assert tunnel.seal(udp(b"")) is DropReason.OUT_STATE_EXPIRED
    assert tunnel.sender.events() == []


@pytest.mark.parametrize(("esn", "limit"), [(False, 2**32 - 1), (True, 2**64 - 1)])
@pytest.mark.parametrize("name", ["aes128gcm16", "aes128-sha256", "aes128gcm16iiv"])
def test_sequence_numbers_end_exactly(engine_class, name, esn, limit):
    """RFC 4303 section 3.3.3: the last number is sent, the next packet is not; nothing ever cycles."""
    tunnel = Tunnel(engine_class, name, esn=esn, initial_seq=limit - 2)
    for seq in (limit - 1, limit):
        sealed = tunnel.seal(udp())
        assert struct.unpack_from("!I", sealed.datagram, 4)[0] == seq & 0xFFFFFFFF
        assert tunnel.open(sealed.datagram).packet == udp()
    assert tunnel.sender.events() == [Event(EventKind.SEQUENCE_SOFT, tunnel.out)]
    for _ in range(3):
        assert tunnel.seal(udp()) is DropReason.OUT_STATE_SEQ_ERROR
        assert tunnel.sender.dummy(tunnel.out, 10, NOW) is DropReason.OUT_STATE_SEQ_ERROR
    assert tunnel.sender.events() == [Event(EventKind.SEQUENCE_HARD, tunnel.out)]
    stats = tunnel.sender.query_sa(tunnel.out)
    assert (stats.seq, stats.packets, stats.drops) == (limit, 2, {DropReason.OUT_STATE_SEQ_ERROR: 6})
    assert tunnel.receiver.query_sa(tunnel.into).seq == limit
    assert tunnel.open(sealed.datagram).drop is DropReason.IN_STATE_SEQ_ERROR


@pytest.mark.parametrize("esn", [False, True])
def test_sequence_soft_event(engine_class, esn):
    limit = 2**64 - 1 if esn else 2**32 - 1
    tunnel = Tunnel(engine_class, esn=esn, initial_seq=limit - SEQUENCE_SOFT_MARGIN - 3)
    events = []
    for _ in range(5):
        tunnel.seal(udp())
        events.append(tunnel.sender.events())
    assert events == [[], [], [Event(EventKind.SEQUENCE_SOFT, tunnel.out)], [], []]


def test_esn_over_the_32_bit_edge(engine_class):
    """The high word is never sent; both ends count it (RFC 4303 section 2.2.1)."""
    for name in SUITE_NAMES:
        tunnel = Tunnel(engine_class, name, esn=True, initial_seq=2**32 - 3)
        for low in (2**32 - 2, 2**32 - 1, 0, 1, 2):
            datagram = tunnel.seal(udp()).datagram
            assert datagram[4:8] == struct.pack("!I", low)
            assert tunnel.open(datagram).packet == udp()
        assert tunnel.receiver.query_sa(tunnel.into).seq == 2**32 + 2


@pytest.mark.parametrize("name", SUITE_NAMES)
def test_esn_high_word_is_authenticated(engine_class, name):
    """Two ends that disagree about the high word, or about ESN, do not talk."""
    sender = Tunnel(engine_class, name, esn=True, initial_seq=5 << 32)
    datagram = sender.seal(udp()).datagram
    other = engine_class()
    other.add_sa(params(Direction.IN, name, esn=True, initial_seq=4 << 32))
    assert other.inbound(datagram, NOW).drop is DropReason.IN_STATE_PROTO_ERROR
    plain = engine_class()
    plain.add_sa(params(Direction.IN, name))
    assert plain.inbound(datagram, NOW).drop is DropReason.IN_STATE_PROTO_ERROR


def test_databases(engine_class):
    engine = engine_class()
    into = engine.add_sa(params(Direction.IN))
    out = engine.add_sa(params(Direction.OUT))
    with pytest.raises(SaError):
        engine.add_sa(params(Direction.IN, "aes256gcm16"))
    with pytest.raises(SaError):
        engine.add_sa(params(Direction.OUT, "aes256gcm16"))
    elsewhere = engine.add_sa(params(Direction.OUT, remote=ip_address("198.51.100.8")))
    assert len({into, out, elsewhere}) == 3
    engine.del_sa(into)
    with pytest.raises(SaError):
        engine.query_sa(into)
    with pytest.raises(SaError):
        engine.del_sa(into)
    datagram = engine.encapsulate(out, udp(), NOW).datagram
    assert engine.inbound(datagram, NOW) == (DropReason.IN_NO_STATES, b"", -1)
    again = engine.add_sa(params(Direction.IN))
    assert engine.inbound(datagram, NOW) == (DropReason.NONE, udp(), again)
    with pytest.raises(SaError):
        engine.encapsulate(again, udp(), NOW)
    with pytest.raises(SaError):
        engine.encapsulate(into, udp(), NOW)


def test_update_keeps_keys_counters_and_window(engine_class):
    tunnel = Tunnel(engine_class)
    first = tunnel.seal(udp()).datagram
    assert tunnel.open(first).packet == udp()
    new = ip_address("203.0.113.77")
    tunnel.sender.update_sa(tunnel.out, local=ip_address("192.0.2.1"), remote=new, encap=(4500, 4501), path_mtu=1400)
    tunnel.receiver.update_sa(tunnel.into, local=new, remote=ip_address("192.0.2.1"), encap=(4501, 4500), path_mtu=1400)
    assert tunnel.open(first).drop is DropReason.IN_STATE_SEQ_ERROR
    assert tunnel.send(udp()).packet == udp()
    stats = tunnel.sender.query_sa(tunnel.out)
    assert (stats.remote, stats.encap, stats.seq, stats.packets) == (new, (4500, 4501), 2, 2)
    with pytest.raises(SaError):
        tunnel.sender.update_sa(
            tunnel.out, local=ip_address("192.0.2.1"), remote=ip_address("2001:db8::1"), encap=None, path_mtu=1400
        )
    assert tunnel.sender.query_sa(tunnel.out).remote == new


def test_update_to_a_taken_address(engine_class):
    engine = engine_class()
    first = engine.add_sa(params(Direction.OUT))
    engine.add_sa(params(Direction.OUT, remote=ip_address("198.51.100.8")))
    with pytest.raises(SaError):
        engine.update_sa(
            first, local=ip_address("192.0.2.1"), remote=ip_address("198.51.100.8"), encap=None, path_mtu=1500
        )


@pytest.mark.parametrize(
    "change",
    [{"encap": (4500, 0)}, {"encap": (65536, 4500)}, {"encap": (4500, 65536)}, {"local": ip_address("0.0.0.0")}],
)
def test_an_update_that_is_refused_changes_nothing(engine_class, change):
    """What no SA may be made with it cannot be given later either."""
    engine = engine_class()
    ends = {"local": ip_address("192.0.2.1"), "encap": (4500, 4500), "path_mtu": 1500}
    out = params(Direction.OUT, mode=Mode.TRANSPORT, encap=(4500, 4500))
    sa = engine.add_sa(out)
    elsewhere = ip_address("198.51.100.8")
    with pytest.raises(SaError):
        engine.update_sa(sa, remote=elsewhere, **{**ends, **change})
    stats = engine.query_sa(sa)
    assert (stats.remote, stats.encap) == (out.remote, (4500, 4500))
    # it stands under its old address still, and only there
    with pytest.raises(SaError):
        engine.add_sa(out)
    engine.del_sa(engine.add_sa(params(Direction.OUT, remote=elsewhere)))
    engine.update_sa(sa, remote=elsewhere, **ends)
    engine.del_sa(sa)
    engine.add_sa(out)


@pytest.mark.parametrize("encap", [None, (4500, 4500)])
def test_peer_moves(engine_class, encap):
    """RFC 7296 section 2.23: only a fresh authenticated packet moves the peer."""
    tunnel = Tunnel(engine_class, encap=encap)
    port = 4500 if encap else 0
    home, away = (ip_address("192.0.2.1"), port), (ip_address("203.0.113.9"), 61001 if encap else 0)
    packets = [tunnel.seal(udp()).datagram for _ in range(6)]
    assert tunnel.open(packets[0], source=home).drop is DropReason.NONE
    assert tunnel.open(packets[2][:-1] + bytes([packets[2][-1] ^ 1]), source=away).drop
    assert tunnel.open(packets[0], source=away).drop is DropReason.IN_STATE_SEQ_ERROR
    assert tunnel.receiver.events() == []
    assert tunnel.open(packets[3], source=away).drop is DropReason.NONE
    assert tunnel.receiver.events() == [Event(EventKind.MAPPING, tunnel.into, source=away)]
    stats = tunnel.receiver.query_sa(tunnel.into)
    assert (stats.remote, stats.encap) == (away[0], (4500, 61001) if encap else None)
    # in the window but not the newest: delivered, and moves nothing
    assert tunnel.open(packets[1], source=home).drop is DropReason.NONE
    assert tunnel.open(packets[4], source=away).drop is DropReason.NONE
    assert tunnel.open(packets[5], source=None).drop is DropReason.NONE
    assert tunnel.receiver.events() == []


def test_peer_does_not_move_when_told_not_to_follow(engine_class):
    tunnel = Tunnel(engine_class, encap=(4500, 4500), follow_peer=False)
    assert tunnel.send(udp(), source=(ip_address("203.0.113.9"), 1)).drop is DropReason.NONE
    assert tunnel.receiver.events() == []
    assert tunnel.receiver.query_sa(tunnel.into).remote == ip_address("192.0.2.1")


@pytest.mark.parametrize("source", [(ip_address("2001:db8::9"), 4500), (ip_address("203.0.113.9"), 0)])
def test_peer_does_not_change_family_or_encapsulation(engine_class, source):
    tunnel = Tunnel(engine_class, encap=(4500, 4500))
    assert tunnel.send(udp(), source=source).packet == udp()
    assert tunnel.receiver.events() == []


def test_pending_mappings_are_bounded(engine_class):
    tunnel = Tunnel(engine_class, encap=(4500, 4500))
    for port in range(1, 5001):
        tunnel.send(udp(), source=(ip_address("203.0.113.9"), port))
    events = tunnel.receiver.events()
    assert len(events) <= 4096
    assert events[-1].source == (ip_address("203.0.113.9"), 5000)


def test_counters_add_up(engine_class):
    engine, out = gateway(engine_class)
    peer = Tunnel(engine_class)
    sealed = [engine.outbound(udp(b"x" * n), float(n)).sealed[0] for n in range(10)]
    engine.outbound(b"junk", NOW)
    stats = engine.query_sa(out)
    assert (stats.packets, stats.bytes, stats.last_use) == (10, sum(28 + n for n in range(10)), 9.0)
    assert engine.drops() == {DropReason.OUT_HDR_ERROR: 1}
    seen = [peer.open(one.datagram).drop for one in sealed] + [peer.open(sealed[0].datagram).drop, peer.open(b"").drop]
    assert seen.count(DropReason.NONE) == 10
    assert peer.receiver.drops() == {DropReason.IN_STATE_SEQ_ERROR: 1, DropReason.IN_HDR_ERROR: 1}
    assert peer.receiver.query_sa(peer.into).drops == {DropReason.IN_STATE_SEQ_ERROR: 1}
    peer.receiver.del_sa(peer.into)
    assert peer.receiver.drops() == {DropReason.IN_STATE_SEQ_ERROR: 1, DropReason.IN_HDR_ERROR: 1}


def test_unused_sa(engine_class):
    tunnel = Tunnel(engine_class)
    for engine, sa in ((tunnel.sender, tunnel.out), (tunnel.receiver, tunnel.into)):
        stats = engine.query_sa(sa)
        assert (stats.packets, stats.bytes, stats.last_use, stats.seq, stats.drops) == (0, 0, None, 0, {})


def test_largest_packets(engine_class):
    """What cannot be said in an outer IP length is refused before it takes a number."""
    tunnel = Tunnel(engine_class, path_mtu=65535)
    fits = inner_mtu(params(Direction.OUT, path_mtu=65535))
    assert tunnel.send(udp(b"x" * (fits - 28))).drop is DropReason.NONE
    assert tunnel.seal(udp(b"x" * (65535 - 28))) is DropReason.OUT_TOO_BIG
    assert tunnel.sender.dummy(tunnel.out, 70000, NOW) is DropReason.OUT_TOO_BIG
    assert tunnel.sender.query_sa(tunnel.out).seq == 1


def test_repr_shows_no_keys(engine_class):
    sa = params(Direction.OUT)
    engine = engine_class()
    engine.add_sa(sa)
    text = repr(sa) + repr(engine) + repr(EspCipher(GCM, **keys(GCM)))
    assert sa.encr_key.hex() not in text
    assert repr(sa.encr_key) not in text


def test_set_lifetime_moves_the_limits(engine_class):
    """New limits hold from now on, in packets since the SA was added, and their events come again."""
    tunnel = Tunnel(engine_class, lifetime=Lifetime(packets_soft=2, packets_hard=3))
    results = [tunnel.seal(udp()) for _ in range(4)]
    assert results[3] is DropReason.OUT_STATE_EXPIRED
    assert [event.kind for event in tunnel.sender.events()] == [EventKind.SOFT_LIFETIME, EventKind.HARD_LIFETIME]
    tunnel.sender.set_lifetime(tunnel.out, Lifetime(packets_soft=5, packets_hard=6))
    results = [tunnel.seal(udp()) for _ in range(4)]
    assert [isinstance(result, DropReason) for result in results] == [False, False, False, True]
    assert [event.kind for event in tunnel.sender.events()] == [EventKind.SOFT_LIFETIME, EventKind.HARD_LIFETIME]
    tunnel.sender.set_lifetime(tunnel.out, Lifetime(packets_hard=1))
    assert tunnel.seal(udp()) is DropReason.OUT_STATE_EXPIRED
    assert tunnel.sender.query_sa(tunnel.out).seq == 6
    with pytest.raises(SaError):
        tunnel.sender.set_lifetime(99, Lifetime())


def test_beyond_a_limit_that_was_lowered(engine_class):
    """Not even a dummy packet, which counts no octets; where the limit is just reached, that one is allowed."""
    tunnel = Tunnel(engine_class)
    size = len(udp())
    for _ in range(3):
        tunnel.seal(udp())
    tunnel.sender.set_lifetime(tunnel.out, Lifetime(bytes_hard=3 * size))
    assert tunnel.sender.dummy(tunnel.out, 10, NOW).datagram
    assert tunnel.sender.events() == []
    tunnel.sender.set_lifetime(tunnel.out, Lifetime(bytes_hard=2 * size))
    assert tunnel.sender.dummy(tunnel.out, 10, NOW) is DropReason.OUT_STATE_EXPIRED
    assert tunnel.sender.events() == [Event(EventKind.HARD_LIFETIME, tunnel.out)]
    assert tunnel.sender.query_sa(tunnel.out).seq == 4


@pytest.mark.parametrize("limit", [4, 5, 6])
@pytest.mark.parametrize("esn", [False, True])
def test_hard_limit_where_the_numbers_end(engine_class, esn, limit):
    """One that falls on the last number is a lifetime all the same."""
    top = (1 << (64 if esn else 32)) - 1
    tunnel = Tunnel(engine_class, esn=esn, initial_seq=top - 5, lifetime=Lifetime(packets_hard=limit))
    good = min(limit, 5)
    assert all(tunnel.seal(udp()).datagram for _ in range(good))
    reason, kind = (
        (DropReason.OUT_STATE_EXPIRED, EventKind.HARD_LIFETIME)
        if limit == good
        else (DropReason.OUT_STATE_SEQ_ERROR, EventKind.SEQUENCE_HARD)
    )
    assert tunnel.seal(udp()) is reason
    assert [event.kind for event in tunnel.sender.events()] == [EventKind.SEQUENCE_SOFT, kind]


@pytest.mark.parametrize("limit", [4, 5, 6, 1000])
@pytest.mark.parametrize("esn", [False, True])
def test_soft_limit_where_the_numbers_end(engine_class, esn, limit):
    """One behind the last number is never reached."""
    top = (1 << (64 if esn else 32)) - 1
    tunnel = Tunnel(engine_class, esn=esn, initial_seq=top - 5, lifetime=Lifetime(packets_soft=limit))
    told = []
    for number in range(1, 6):
        tunnel.seal(udp())
        told += [(number, event.kind) for event in tunnel.sender.events()]
    soft = [(limit, EventKind.SOFT_LIFETIME)] if limit <= 5 else []
    assert told == [(1, EventKind.SEQUENCE_SOFT), *soft]
