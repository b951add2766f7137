"""AES-CBC with HMAC for many packets at once: octets, verdicts and counters as one by one and as the reference."""

from __future__ import annotations

import random

import pytest

from ipsec.crypto.suites import Encr, Integ, all_esp_suites
from ipsec.esp.drops import DropReason
from ipsec.esp.engine import EventKind
from ipsec.esp.fast import Batch, Engine, choose_provider, provider_versions
from ipsec.esp.reference import ReferenceEngine
from ipsec.esp.sa import Direction, Lifetime
from tests.esp.support import NOW, params, udp
from tests.fast.pumps import tap

#: what libcrypto does packet by packet, also in AES-CBC
NO_JOBS = (Integ.AES_XCBC_96, Integ.AES_CMAC_96, Integ.HMAC_SHA2_256_96)
SUITES = [suite for suite in all_esp_suites() if suite.encr is Encr.AES_CBC and suite.integ not in NO_JOBS]
EVERY_SUITE = pytest.mark.parametrize("suite", SUITES, ids=str)
MIXED = ("aes256-sha256", "aes128gcm16", "aes128-sha1")
SLOT = 17000

pytestmark = pytest.mark.skipif(provider_versions()["ipsec-mb"] is None, reason="intel-ipsec-mb is not there")


def batch(packets, size=SLOT):
    made = Batch(len(packets), size)
    made.load(packets)
    return made


def seal(engine, sa, packets):
    sealed = Batch(len(packets), SLOT + 128)
    assert engine.encapsulate_batch(sa, batch(packets), sealed) == len(packets)
    return sealed.packets()


def open_all(engine, datagrams):
    opened = Batch(len(datagrams), SLOT + 128)
    good = engine.decapsulate_batch(batch(datagrams, SLOT + 128), opened)
    assert good == sum(1 for packet in opened.packets() if packet)
    return opened.packets()


def sizes(rng, count):
    edges = (28, 29, 43, 44, 45, 60)
    return [rng.choice((*edges, rng.randrange(28, 1500), rng.randrange(28, 9000))) for _ in range(count)]


@EVERY_SUITE
@pytest.mark.parametrize("esn", [False, True])
def test_octets(suite, esn):
    """Any number of packets of any length, as the reference seals them; both open them."""
    assert choose_provider(suite, "ipsec-mb") == "ipsec-mb"
    rng = random.Random(str(suite))
    fields = {"suite": suite, "esn": esn, "initial_seq": 0xFFFFFFF0 if esn else 0, "path_mtu": 65535}
    engines = [ReferenceEngine(), Engine(provider="ipsec-mb"), Engine(provider="libcrypto")]
    outs = [engine.add_sa(params(Direction.OUT, **fields)) for engine in engines]
    for engine in engines:
        engine.add_sa(params(Direction.IN, **fields))
    for count in (1, 5, 6, 7, 17, 64, 65, 130):
        packets = [udp(rng.randbytes(size - 28)) for size in sizes(rng, count)]
        expected = [engines[0].encapsulate(outs[0], packet, NOW).datagram for packet in packets]
        for engine, out in zip(engines[1:], outs[1:], strict=True):
            assert seal(engine, out, packets) == expected
            assert open_all(engine, expected) == packets
        assert [engines[0].inbound(datagram, NOW).packet for datagram in expected] == packets


def test_what_is_too_long_goes_by_itself():
    engine = Engine(provider="ipsec-mb")
    fields = {"suite": "aes256-sha256", "path_mtu": 65535}
    out = engine.add_sa(params(Direction.OUT, **fields))
    engine.add_sa(params(Direction.IN, **fields))
    packets = [udp(bytes(size - 28)) for size in (1400, 16300, 1400, 16320, 16340, 16400, 16900) * 3]
    assert open_all(engine, seal(engine, out, packets)) == packets


def damaged(rng, datagrams):
    """Good ones, and between them repetitions, changed octets, cut ones, other SPIs and noise."""
    result = []
    for datagram in datagrams:
        result.append(datagram)
        for _ in range(rng.randrange(3)):
            other = bytearray(rng.choice(datagrams))
            match rng.randrange(6):
                case 0:
                    pass
                case 1:
                    other[rng.randrange(4, len(other))] ^= 1 << rng.randrange(8)
                case 2:
                    del other[rng.randrange(len(other)) :]
                case 3:
                    other[:4] = rng.randbytes(4)
                case 4:
                    other[-rng.randrange(1, 17)] ^= 0x80
                case 5:
                    other = bytearray(rng.randbytes(rng.randrange(1, 200)))
            result.append(bytes(other) or b"\0")
    return result


@pytest.mark.parametrize("esn", [False, True])
@pytest.mark.parametrize("workers", [1, 2])
def test_verdicts(esn, workers):
    """Whatever stands in a batch: each packet fares as it would by itself, also beside SAs of other suites."""
    rng = random.Random(esn)
    names = ("aes256-sha256", "aes128-sha1", "aes128gcm16", "aes256-sha512")
    for _ in range(12):
        engines = [Engine(provider=name, workers=workers) for name in ("ipsec-mb", "libcrypto")]
        ids = {engine: [] for engine in engines}
        sealed = []
        for i, name in enumerate(names):
            fields = {"suite": name, "spi": 0x1000 + i, "esn": esn, "replay_window": 64}
            out = engines[0].add_sa(params(Direction.OUT, **fields))
            for engine in engines:
                ids[engine].append(engine.add_sa(params(Direction.IN, **fields)))
            sealed += seal(engines[0], out, [udp(rng.randbytes(rng.randrange(300))) for _ in range(40)])
        rng.shuffle(sealed)
        datagrams = damaged(rng, sealed)
        source = batch(datagrams, SLOT + 128)
        results = []
        for engine in engines:
            opened = Batch(len(datagrams), SLOT + 128)
            engine.decapsulate_batch(source, opened)
            stats = [engine.query_sa(sa) for sa in ids[engine]]
            results.append((opened.packets(), engine.drops(), [(s.packets, s.bytes, s.seq, s.drops) for s in stats]))
            assert source.packets() == datagrams
        assert results[0] == results[1]
        assert {DropReason.IN_STATE_PROTO_ERROR, DropReason.IN_STATE_SEQ_ERROR} <= set(results[0][1])


@pytest.mark.parametrize("lifetime", [Lifetime(packets_hard=20), Lifetime(bytes_hard=2099)], ids=["packets", "bytes"])
def test_hard_limits_are_exact(lifetime):
    """Sealing and opening stop where they would one by one."""
    for name in ("ipsec-mb", "libcrypto"):
        engine = Engine(provider=name)
        ids = [engine.add_sa(params(way, "aes256-sha256", lifetime=life)) for way, life in
               ((Direction.OUT, Lifetime()), (Direction.IN, lifetime))]  # fmt: skip
        packets = [udp(bytes([i]) * 72) for i in range(64)]
        assert [p for p in open_all(engine, seal(engine, ids[0], packets)) if p] == packets[:20]
        assert engine.query_sa(ids[1]).packets == 20
        assert engine.drops() == {DropReason.IN_STATE_EXPIRED: 44}
        assert [event.kind for event in engine.events()] == [EventKind.HARD_LIFETIME]


def test_an_sa_that_goes_leaves_nothing_behind():
    """SAs come and go between batches."""
    engine = Engine(provider="ipsec-mb")
    for number in range(20):
        spi = 0x1000 + number
        ids = [engine.add_sa(params(way, "aes256-sha256", spi=spi)) for way in (Direction.OUT, Direction.IN)]
        packets = [udp(bytes([number]) * 100)] * 30
        datagrams = seal(engine, ids[0], packets)
        assert open_all(engine, datagrams) == packets
        for sa in ids:
            engine.del_sa(sa)
        assert not any(open_all(engine, datagrams))


@pytest.mark.parametrize("esn", [False, True])
def test_pump_keeps_order_among_suites(esn):
    """Packets of several SAs, some in jobs and some not, arrive in the order in which they were sent."""
    with tap() as side:
        sas = [params(Direction.OUT, suite, spi=0x1000 + i, esn=esn) for i, suite in enumerate(MIXED)]
        sender = Engine()
        ids = [sender.add_sa(sa) for sa in sas]
        for sa in sas:
            side.gateway.engine.add_sa(params(Direction.IN, sa.suite, spi=sa.spi, esn=esn))
        packets = [udp(bytes([number]), ports=(number + 1, 9)) for number in range(60)]
        side.put(sender.encapsulate(ids[i // 9 % 3], packet, NOW).datagram for i, packet in enumerate(packets))
        side.receive()
        assert side.gateway.packets() == packets
