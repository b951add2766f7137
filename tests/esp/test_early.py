"""Packets that come before their SA (RFC 7296 section 2.8), in both engines."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

import pytest

from ipsec.errors import SaError
from ipsec.esp.drops import DropReason
from ipsec.esp.engine import (
    EARLY_OCTETS,
    EARLY_PACKETS,
    EARLY_SECONDS,
    EARLY_SPIS,
    Event,
    EventKind,
    Inbound,
)
from ipsec.esp.sa import Direction, Mode
from tests.esp.support import ADDRESSES, NOW, SPI, SUITE_NAMES, params, transport_packet, udp

KEPT = Inbound(DropReason.NONE)
LOST = Inbound(DropReason.IN_NO_STATES)
EARLY = Path(__file__).parent.parent.parent / "ipsec" / "fast" / "early.pxd"


class Ends:
    """A sender whose SA is up, and a receiver who has told it the SPI."""

    def __init__(self, engine_class, suite="aes128gcm16", spi=SPI, receiver=None, **fields):
        self.suite, self.fields = suite, {"spi": spi, **fields}
        self.sender = engine_class()
        self.receiver = receiver or engine_class()
        self.receiver.expect_spi(spi)
        self.out = self.sender.add_sa(params(Direction.OUT, suite, **self.fields))

    def seal(self, packet):
        return self.sender.encapsulate(self.out, packet, NOW).datagram

    def add(self, **fields):
        return self.receiver.add_sa(params(Direction.IN, self.suite, **{**self.fields, **fields}))


@pytest.mark.parametrize("suite", SUITE_NAMES)
def test_they_are_opened_in_order_when_the_sa_is_there(engine_class, suite):
    ends = Ends(engine_class, suite, esn=True)
    engine = ends.receiver
    packets = [udp(bytes(size)) for size in range(5)]
    results = [engine.inbound(ends.seal(packet), NOW) for packet in packets]
    assert results == [KEPT] * 5
    assert all(result.held for result in results)
    assert engine.early() == 5
    assert engine.release_early(NOW) == []
    assert engine.early() == 5
    sa = ends.add()
    assert engine.release_early(NOW + 0.05) == [Inbound(DropReason.NONE, packet, sa) for packet in packets]
    assert engine.early() == 0
    assert engine.release_early(NOW) == []
    assert engine.drops() == {}
    assert (engine.query_sa(sa).packets, engine.query_sa(sa).seq) == (5, 5)
    result = engine.inbound(ends.seal(packets[0]), NOW)
    assert result == (DropReason.NONE, packets[0], sa)
    assert not result.held


def test_each_is_looked_at_as_if_it_had_come_now(engine_class):
    """Of what was kept nothing was authenticated."""
    ends = Ends(engine_class)
    engine = ends.receiver
    datagram = ends.seal(udp())
    for one in (datagram, datagram, datagram[:-1] + bytes([datagram[-1] ^ 1]), datagram[:8], datagram[:11]):
        assert engine.inbound(one, NOW) == KEPT
    sa = ends.add()
    assert [one.drop for one in engine.release_early(NOW)] == [
        DropReason.NONE,
        DropReason.IN_STATE_SEQ_ERROR,
        DropReason.IN_STATE_SEQ_ERROR,
        DropReason.IN_HDR_ERROR,
        DropReason.IN_HDR_ERROR,
    ]
    assert engine.query_sa(sa).packets == 1
    assert sum(engine.drops().values()) == 4


@pytest.mark.parametrize("spi", [0, 1, 255, 256, SPI + 1, 0xFFFFFFFF])
def test_nothing_is_kept_for_an_spi_that_nobody_was_told(engine_class, spi):
    engine = Ends(engine_class).receiver
    result = engine.inbound(spi.to_bytes(4, "big") + bytes(60), NOW)
    assert result.drop is (DropReason.IN_HDR_ERROR if spi < 256 else DropReason.IN_NO_STATES)
    assert not result.held
    assert engine.inbound(SPI.to_bytes(4, "big"), NOW).drop is DropReason.IN_HDR_ERROR
    assert engine.early() == 0


def test_what_is_forgotten_is_dropped(engine_class):
    ends = Ends(engine_class)
    engine = ends.receiver
    for _ in range(3):
        engine.inbound(ends.seal(udp()), NOW)
    engine.forget_spi(SPI)
    engine.forget_spi(SPI)
    engine.forget_spi(12345)
    assert engine.inbound(ends.seal(udp()), NOW) == LOST
    assert engine.release_early(NOW) == []
    assert engine.early() == 0
    assert engine.drops() == {DropReason.IN_NO_STATES: 4}


def test_an_sa_that_has_gone_is_not_awaited(engine_class):
    ends = Ends(engine_class)
    engine = ends.receiver
    engine.inbound(ends.seal(udp()), NOW)
    engine.del_sa(ends.add())
    assert engine.inbound(ends.seal(udp()), NOW) == LOST
    assert engine.release_early(NOW) == []
    assert engine.early() == 0
    assert engine.drops() == {DropReason.IN_NO_STATES: 2}


def test_only_what_can_be_an_sa_is_expected(engine_class):
    engine = engine_class()
    engine.add_sa(params(Direction.IN))
    for spi in (SPI, -1, 0, 255, 1 << 32):
        with pytest.raises(SaError):
            engine.expect_spi(spi)
    for spi in (256, 256, 0xFFFFFFFF):
        engine.expect_spi(spi)


def test_one_spi_has_room_for_few(engine_class):
    """The first ones stay: whoever sees the SPI, and sends what he likes, pushes nothing out."""
    ends = Ends(engine_class)
    engine = ends.receiver
    packets = [udp(number.to_bytes(2, "big")) for number in range(EARLY_PACKETS)]
    assert [engine.inbound(ends.seal(packet), NOW) for packet in packets] == [KEPT] * EARLY_PACKETS
    assert engine.inbound(SPI.to_bytes(4, "big") + bytes(60), NOW) == LOST
    assert engine.drops() == {DropReason.IN_NO_STATES: 1}
    sa = ends.add()
    assert engine.release_early(NOW) == [Inbound(DropReason.NONE, packet, sa) for packet in packets]


def test_octets_are_bounded(engine_class):
    engine = Ends(engine_class).receiver
    size = 60000
    datagram = SPI.to_bytes(4, "big") + bytes(size - 4)
    results = [engine.inbound(datagram, NOW) for _ in range(4)]
    assert results == [KEPT] * (EARLY_OCTETS // size) + [LOST] * (4 - EARLY_OCTETS // size)
    rest = EARLY_OCTETS % size
    assert engine.inbound(datagram[: rest + 1], NOW) == LOST
    assert engine.inbound(datagram[:rest], NOW) == KEPT


def test_few_spis_have_a_place(engine_class):
    engine = engine_class()
    ends = [Ends(engine_class, spi=SPI + number, receiver=engine) for number in range(EARLY_SPIS + 1)]
    datagrams = [one.seal(udp()) for one in ends]
    assert [engine.inbound(datagram, NOW) for datagram in datagrams] == [KEPT] * EARLY_SPIS + [LOST]
    # a place that somebody leaves is there for the next
    sa = ends[3].add()
    assert engine.release_early(NOW) == [Inbound(DropReason.NONE, udp(), sa)]
    assert engine.inbound(datagrams[-1], NOW) == KEPT
    engine.forget_spi(SPI)
    assert engine.release_early(NOW) == []
    assert engine.early() == EARLY_SPIS - 1
    assert engine.drops() == {DropReason.IN_NO_STATES: 2}
    kept = [one for number, one in enumerate(ends) if number not in (0, 3)]
    sas = [one.add() for one in kept]
    assert sorted(one.sa for one in engine.release_early(NOW)) == sas


def test_many_spis_are_told(engine_class):
    """As many as there are negotiations; those that are done leave nothing."""
    engine = engine_class()
    for spi in range(0x10000, 0x10000 + 1000):
        engine.expect_spi(spi)
    for spi in range(0x10000, 0x10000 + 990):
        engine.forget_spi(spi)
    results = [engine.inbound(spi.to_bytes(4, "big") + bytes(60), NOW) for spi in range(0x10000, 0x10000 + 1000)]
    assert results == [LOST] * 990 + [KEPT] * 10


def test_nobody_waits_for_long(engine_class):
    ends = Ends(engine_class)
    engine = ends.receiver
    engine.inbound(ends.seal(udp(b"old")), NOW)
    engine.inbound(ends.seal(udp(b"new")), NOW + 3)
    assert engine.release_early(NOW + EARLY_SECONDS) == []
    assert engine.early() == 2
    sa = ends.add()
    assert engine.release_early(NOW + EARLY_SECONDS + 1) == [Inbound(DropReason.NONE, udp(b"new"), sa)]
    assert engine.drops() == {DropReason.IN_NO_STATES: 1}


def test_what_waited_too_long_makes_room(engine_class):
    engine = engine_class()
    for number in range(EARLY_SPIS + 1):
        engine.expect_spi(SPI + number)
        engine.inbound((SPI + number).to_bytes(4, "big") + bytes(60), NOW)
    assert engine.drops() == {DropReason.IN_NO_STATES: 1}
    last = (SPI + EARLY_SPIS).to_bytes(4, "big") + bytes(60)
    assert engine.inbound(last, NOW + EARLY_SECONDS + 1) == KEPT
    assert engine.early() == 1
    assert engine.drops() == {DropReason.IN_NO_STATES: 1 + EARLY_SPIS}


def test_the_outer_header_is_kept_as_well(engine_class):
    """ECN, and where the peer is: behind a NAT it may be elsewhere than IKE has seen it."""
    ends = Ends(engine_class, encap=(4500, 4500))
    engine = ends.receiver
    there = (ip_address("198.51.100.99"), 1234)
    engine.inbound(ends.seal(udp(tos=2)), NOW, tos=3, source=there)
    engine.inbound(ends.seal(udp()), NOW)
    sa = ends.add()
    assert engine.events() == []
    first, second = engine.release_early(NOW)
    assert first.packet[1] == 3
    assert second.packet == udp()
    assert engine.events() == [Event(EventKind.MAPPING, sa, source=there)]
    assert engine.query_sa(sa).remote == there[0]


@pytest.mark.parametrize("outer", [4, 6])
def test_transport_mode(engine_class, outer):
    sender, engine = engine_class(), engine_class()
    engine.expect_spi(SPI)
    out = sender.add_sa(params(Direction.OUT, outer=outer, mode=Mode.TRANSPORT))
    sealed = sender.encapsulate(out, transport_packet(outer), NOW)
    source = (ip_address(ADDRESSES[outer][0]), 0)
    assert engine.inbound(sealed.datagram, NOW, source=source) == KEPT
    sa = engine.add_sa(params(Direction.IN, outer=outer, mode=Mode.TRANSPORT))
    (opened,) = engine.release_early(NOW)
    direct = engine_class()
    direct.add_sa(params(Direction.IN, outer=outer, mode=Mode.TRANSPORT))
    assert opened == direct.inbound(sealed.datagram, NOW, source=source)
    assert opened.sa == sa


def test_both_engines_have_the_same_limits():
    numbers = {}
    for line in EARLY.read_text().splitlines():
        key, equals, value = line.strip().partition(" = ")
        if equals and key.isupper():
            numbers[key] = value
    assert numbers == {
        "EARLY_SPIS": str(EARLY_SPIS),
        "EARLY_PACKETS": str(EARLY_PACKETS),
        "EARLY_OCTETS": f"1 << {EARLY_OCTETS.bit_length() - 1}",
        "EARLY_SECONDS": str(EARLY_SECONDS),
    }
