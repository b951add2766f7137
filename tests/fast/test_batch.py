"""Many packets in a call: the same verdicts, octets and counters as the reference gives one by one."""

from __future__ import annotations

import random

import pytest

from ipsec.esp.drops import DropReason
from ipsec.esp.fast import Batch, Engine
from ipsec.esp.reference import ReferenceEngine
from ipsec.esp.sa import Direction, Lifetime, Mode
from tests.esp.support import ADDRESSES, INNER, NOW, ipv4_fragment, pair, params, udp

SUITES = ("aes128gcm16", "aes256gcm8", "chacha20poly1305", "aes128ccm12", "aes128-sha1", "null-sha256")
SAS = 12


def sa(number):
    """What both ends of an SA have in common."""
    return {"suite": SUITES[number % len(SUITES)], "spi": 0x1000 + number, "esn": number % 4 == 1}


def selectors(number):
    return (pair("10.2.0.0/16", "10.1.0.0/16"),) if number % 3 else ()


def counters(stats):
    return stats.packets, stats.bytes, stats.seq, stats.drops


def datagrams(rng, count):
    """Runs of one SA and SAs in turns, with numbers exchanged, repeated, and octets that no SA sealed among them."""
    sender = ReferenceEngine()
    ids = [sender.add_sa(params(Direction.OUT, **sa(i))) for i in range(SAS)]
    made = []
    while len(made) < count:
        at = rng.randrange(SAS)
        for _ in range(rng.choice((1, 1, 1, 2, 5, 70))):
            source = rng.choice(("10.1.0.0", "10.1.255.255", "10.0.255.255", "10.2.0.0", "10.1.7.7"))
            sealed = sender.encapsulate(ids[at], udp(bytes(rng.randrange(90)), source=source), NOW).datagram
            made.append(sealed)
            kind = rng.randrange(12)
            if kind == 0:
                made.append(rng.choice(made[-200:]))
            elif kind == 1:
                made[-2:] = made[-2:][::-1]
            elif kind == 2:
                made.append(sealed[: rng.randrange(len(sealed))])
            elif kind == 3:
                made.append(rng.choice((0, 1, 255, 256, 0xFFFFFFFF)).to_bytes(4, "big") + sealed[4:])
            elif kind == 4:
                made[-1] = sealed[:-1] + bytes((sealed[-1] ^ 1,))
    return made[:count]


@pytest.mark.parametrize("seed", range(4))
def test_opening_many(seed):
    rng = random.Random(seed)
    sent = datagrams(rng, 1500)
    engines = [ReferenceEngine(), Engine()]
    ids = [
        [engine.add_sa(params(Direction.IN, **sa(i), replay_window=64, selectors=selectors(i))) for i in range(SAS)]
        for engine in engines
    ]
    expected = [engines[0].inbound(datagram, NOW).packet for datagram in sent]
    got, at = [], 0
    while at < len(sent):
        count = rng.choice((1, 2, 8, 9, 10, 17, 300))
        source, opened = Batch(count, 300), Batch(count, 300)
        source.load(sent[at : at + count])
        good = engines[1].decapsulate_batch(source, opened)
        got += opened.packets()
        assert good == sum(map(bool, opened.packets()))
        at += count
    assert got == expected
    assert any(expected)
    assert len(engines[0].drops()) >= 5
    assert engines[1].drops() == engines[0].drops()
    for one, other in zip(*ids, strict=True):
        assert counters(engines[1].query_sa(other)) == counters(engines[0].query_sa(one))


def packets(rng, count):
    """Runs of one length and lengths in turns, with some among them that are no packets or not whole."""
    made = []
    while len(made) < count:
        length = rng.choice((0, 1, 7, 8, 9, 40, 90, 200))
        for _ in range(rng.choice((1, 1, 2, 15, 16, 17, 40))):
            version = rng.choice((4, 4, 4, 6))
            size = length if version == 4 else max(length - 20, 0)
            ends = rng.choice((INNER, INNER, ADDRESSES))[version]
            packet = udp(bytes(size), version, source=ends[0], destination=ends[1], tos=rng.randrange(256))
            kind = rng.randrange(16)
            if kind == 0:
                packet = packet[: rng.randrange(len(packet))]
            elif kind == 1:
                packet = bytes((rng.randrange(256),)) + packet[1:]
            elif kind == 2 and version == 4:
                packet = ipv4_fragment(packet, 8, True, bytes(length))
            made.append(packet)
    return made[:count]


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize(
    ("fields", "stops"),
    [
        ({}, False),
        ({"mode": Mode.TRANSPORT}, False),
        ({"lifetime": Lifetime(bytes_soft=9000, bytes_hard=20000)}, True),
        ({"lifetime": Lifetime(packets_soft=100, packets_hard=211)}, True),
        ({"lifetime": Lifetime(packets_hard=211, bytes_hard=20000)}, True),
        ({"initial_seq": 2**32 - 150}, True),
        ({"initial_seq": 2**32 - 150, "esn": True}, False),
        ({"tfc": 120}, False),
    ],
    ids=["plain", "transport", "bytes", "packets", "both", "numbers", "esn", "tfc"],
)
def test_sealing_many(suite, fields, stops):
    """What takes its numbers together is exactly what one by one would have."""
    rng = random.Random(f"{suite} {fields}")
    given = packets(rng, 700)
    engines = [ReferenceEngine(), Engine()]
    ids = [engine.add_sa(params(Direction.OUT, suite, **fields)) for engine in engines]
    expected = []
    for packet in given:
        sealed = engines[0].encapsulate(ids[0], packet, NOW)
        expected.append(b"" if isinstance(sealed, DropReason) else sealed.datagram)
    got, at = [], 0
    while at < len(given):
        count = rng.choice((1, 15, 16, 17, 33, 150))
        source, sealed = Batch(count, 300), Batch(count, 428)
        source.load(given[at : at + count])
        good = engines[1].encapsulate_batch(ids[1], source, sealed)
        got += sealed.packets()
        assert good == sum(map(bool, sealed.packets()))
        at += count
    assert got == expected
    assert any(expected)
    assert engines[1].drops() == engines[0].drops()
    assert counters(engines[1].query_sa(ids[1])) == counters(engines[0].query_sa(ids[0]))
    told = [[event.kind for event in engine.events()] for engine in engines]
    assert sorted(told[1]) == sorted(told[0])
    assert stops == bool({DropReason.OUT_STATE_EXPIRED, DropReason.OUT_STATE_SEQ_ERROR} & engines[0].drops().keys())


def test_nothing_is_opened_in_place():
    """A packet begins elsewhere than its ciphertext, and a cipher may write over what it has not read: ChaCha20 did."""
    sender, receiver = Engine(), Engine()
    out = sender.add_sa(params(Direction.OUT, "chacha20poly1305"))
    receiver.add_sa(params(Direction.IN, "chacha20poly1305"))
    given = [udp(bytes(size)) for size in (0, 100, 1400)]
    both, other = Batch(3, 1600), Batch(3, 1600)
    both.load([sender.encapsulate(out, packet, NOW).datagram for packet in given])
    with pytest.raises(ValueError, match="another batch"):
        receiver.decapsulate_batch(both, both)
    assert receiver.decapsulate_batch(both, other) == 3
    assert other.packets() == given
