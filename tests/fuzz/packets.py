"""Targets of ``make fuzz`` for the ways of the data path that take many packets at once."""

from __future__ import annotations

from typing import Any

from ipsec.crypto.suites import all_esp_suites
from ipsec.errors import ParseError
from ipsec.esp.drops import DropReason
from ipsec.esp.engine import EARLY_PACKETS, EARLY_SPIS, JOIN_DATAGRAMS
from ipsec.esp.fast import Batch, Engine
from ipsec.esp.reference import ReferenceEngine
from ipsec.esp.sa import Action, DfPolicy, Direction, Lifetime, Mode, Policy
from ipsec.wire.ip import parse_outer
from tests.esp.support import NOW, PROTECT_ALL, params, transport_packet, udp
from tests.esp.test_transport import fragments as fragments_of
from tests.fast.frames import superframe_vnet, tcp_packet, with_partial_checksum
from tests.fast.pumps import BLOCKED, EVERYTHING, MORE, Liar, Tap, by_flow, cut, in_params, out_params, tap

SUITES = all_esp_suites()
SLOT = 2048
PACKETS_MAX = 40
EARLY_FIRST = 0x1000
PATHS = ({}, {"path_mtu": 600, "df": DfPolicy.CLEAR}, {"tfc": -1}, {"mode": Mode.TRANSPORT}, {"suite": "aes256-sha512"})


def pieces(data: bytes) -> list[bytes]:
    """Some packets, each behind its length."""
    found: list[bytes] = []
    while len(data) > 2 and len(found) < PACKETS_MAX:
        length = int.from_bytes(data[:2], "big") % SLOT
        found.append(data[2 : 2 + length])
        data = data[2 + length :]
    return [one for one in found if one]


def joined(packets: list[bytes]) -> bytes:
    return b"".join(len(one).to_bytes(2, "big") + one for one in packets)


def empty(t: Tap) -> list[bytes]:
    """Run the pump until its device is empty; what it sent."""
    sent: list[bytes] = []
    while t.gateway.pump.run_tun() & (MORE | BLOCKED):
        sent += t.sent()
    return sent + t.sent()


def superframe(data: bytes) -> None:
    """A frame of the device with its virtio header, 10 octets: as many packets come out as the oracle sees in it."""
    if len(data) < 12:
        return
    fields = PATHS[data[0] % len(PATHS)]
    header, frame = data[1:11], data[11:]
    with tap() as t:
        t.engine.add_sa(out_params(**fields))
        t.engine.add_policy(Policy(Action.PROTECT, EVERYTHING, reqid=0x1000))
        assert t.gateway.tun.send(frame, header)
        sent = empty(t)
        t.gateway.check()
        receiver = Engine()
        receiver.add_sa(in_params(**{key: fields[key] for key in fields if key in ("mode", "suite")}))
        got = [receiver.inbound(one, NOW) for one in sent]
        assert not receiver.drops()
        if fields == {} and not t.engine.drops():
            # octets past the packet are none of it
            length = int.from_bytes(frame[2:4], "big") if frame[0] >> 4 == 4 else 40 + int.from_bytes(frame[4:6], "big")
            assert by_flow(one.packet for one in got) == by_flow(cut(header, frame[:length]))


def coalesced(data: bytes) -> None:
    """What an authenticated peer sends, put together for the device: the packets that came, in their order."""
    liar, reference = Liar(), ReferenceEngine()
    reference.add_sa(in_params())
    lies = [liar.lie(one[1:], (4, 41, 59, one[0])[one[0] & 3]) for one in pieces(data)]
    want = [reference.inbound(lie, NOW) for lie in lies]
    with tap() as t:
        t.engine.add_sa(in_params())
        t.put(lies)
        got = t.gateway.packets()
        assert by_flow(got) == by_flow(one.packet for one in want if not one.drop)
        assert t.engine.drops() == reference.drops()
        t.gateway.check()


def batch(data: bytes) -> None:
    """Many packets in one call, sealed and opened again: the readable engine says the same one by one."""
    if len(data) < 2:
        return
    suite = SUITES[data[0] % len(SUITES)]
    fields = {"lifetime": Lifetime(packets_hard=data[1] % 32, bytes_hard=(data[1] & 64) * 30), "esn": data[1] >= 128}
    packets = pieces(data[2:])
    if not packets:
        return
    engines = (ReferenceEngine(), Engine())
    outs = [engine.add_sa(params(Direction.OUT, suite, **fields)) for engine in engines]
    for engine in engines:
        engine.add_sa(params(Direction.IN, suite, esn=fields["esn"]))
    source, sealed, opened = Batch(PACKETS_MAX, SLOT), Batch(PACKETS_MAX, SLOT + 128), Batch(PACKETS_MAX, SLOT + 128)
    one_by_one = [engines[0].encapsulate(outs[0], packet, NOW) for packet in packets]
    datagrams = [b"" if isinstance(one, DropReason) else one.datagram for one in one_by_one]
    source.load(packets)
    engines[1].encapsulate_batch(outs[1], source, sealed)
    assert sealed.packets() == datagrams
    # what was dropped is opened as it is
    mixed = [one or packet for one, packet in zip(datagrams, packets, strict=True)]
    want = [engines[0].inbound(one, NOW).packet for one in mixed]
    sealed.load(mixed)
    engines[1].decapsulate_batch(sealed, opened)
    assert opened.packets() == want
    assert engines[0].drops() == engines[1].drops()


def fragments(data: bytes) -> None:
    """What the host sends in fragments, in transport mode: the readable engine and the compiled one do the same with
    it, and in the pump nothing is lost without being counted."""
    if len(data) < 2:
        return
    outer = 6 if data[0] & 2 else 4
    sa = params(Direction.OUT, SUITES[data[1] % len(SUITES)], outer, mode=Mode.TRANSPORT, reqid=1, encap=(4500, 4500))
    # these push out what waits
    last = [parts_of(outer, bytes(1500), number)[0] for number in range(JOIN_DATAGRAMS)]
    packets = [*pieces(data[2:]), *last]
    results = []
    for engine in (ReferenceEngine(), Engine()):
        engine.add_sa(sa)
        engine.set_policies([PROTECT_ALL])
        results.append(([engine.outbound(packet, NOW) for packet in packets], engine.drops()))
    assert results[0] == results[1]
    if outer == 6:
        return
    with tap() as t:
        t.engine.add_sa(sa)
        t.engine.set_policies([PROTECT_ALL])
        for packet in packets:
            assert t.gateway.tun.send(packet)
        assert len(empty(t)) == sum(len(one.sealed) for one in results[0][0])
        assert t.engine.drops() == results[0][1]
        t.gateway.check(waiting=JOIN_DATAGRAMS)


class _Early:
    """An engine, what it was told, and what became of the packets that it was given."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.now = NOW
        self.sas: dict[int, int] = {}
        self.given = 0
        self.said: list[Any] = []

    def step(self, kind: int, which: int, datagram: bytes) -> None:
        engine, spi = self.engine, EARLY_FIRST + which
        if kind == 0:
            engine.forget_spi(spi)
        elif kind == 1 and spi not in self.sas:
            engine.expect_spi(spi)
        elif kind == 2 and spi not in self.sas:
            self.sas[spi] = engine.add_sa(params(Direction.IN, spi=spi, replay_window=64))
        elif kind == 3 and spi in self.sas:
            engine.del_sa(self.sas.pop(spi))
        elif kind == 4:
            self.now += which / 8
        elif kind == 5:
            self.said += engine.release_early(self.now)
        else:
            self.given += 1
            self.said.append(engine.inbound(datagram, self.now))
        assert engine.early() <= EARLY_SPIS * EARLY_PACKETS

    def end(self) -> tuple[object, ...]:
        """What is the same for every engine. Each packet was delivered or counted."""
        for which in range(EARLY_SPIS + 4):
            self.engine.forget_spi(EARLY_FIRST + which)
        self.said += self.engine.release_early(self.now)
        assert self.engine.early() == 0
        delivered = sum(one.drop is DropReason.NONE and not one.held for one in self.said)
        assert self.given == delivered + sum(self.engine.drops().values())
        return self.said, self.engine.drops(), self.engine.events()


def early(data: bytes) -> None:
    """Packets before, with and after their SA, and SPIs that are told and forgotten: two octets for each step.
    Both engines do the same, keep no more than they may, and lose nothing without counting it."""
    sender = Engine()
    outs = [sender.add_sa(params(Direction.OUT, spi=EARLY_FIRST + which)) for which in range(EARLY_SPIS + 4)]
    both = [_Early(ReferenceEngine()), _Early(Engine())]
    for kind, which in zip(data[::2], data[1::2], strict=False):
        number = which % len(outs)
        good = sender.encapsulate(outs[number], udp(bytes(which)), NOW)
        assert not isinstance(good, DropReason)
        # some are cut off, some are long, some are for nobody
        datagram = good.datagram[: 7 + which] if kind & 64 else good.datagram + bytes(20000 if kind & 128 else 0)
        for one in both:
            one.step(kind & 7, number, datagram)
    assert both[0].end() == both[1].end()


def outer_packet(data: bytes) -> None:
    """An IP packet around ESP, for who uses the library."""
    try:
        outer = parse_outer(data)
    except ParseError:
        return
    assert len(outer.payload) < len(data)


# -- where the fuzzer begins


def superframe_seeds() -> list[bytes]:
    frames = [tcp_packet(version, 3000) for version in (4, 6)]
    return [
        bytes((path,)) + superframe_vnet(frame, 1000).emit() + with_partial_checksum(frame)
        for frame in frames
        for path in range(len(PATHS))
    ]


def coalesced_seeds() -> list[bytes]:
    stream = [b"\0" + tcp_packet(4, 100, seq=1000 + 100 * n) for n in range(4)]
    return [joined(stream), joined([b"\1" + udp(version=6)] * 3)]


def batch_seeds() -> list[bytes]:
    packets = [udp(b"x" * n, version=version) for version in (4, 6) for n in (1, 1, 1, 400)]
    return [bytes((suite, 255)) + joined(packets) for suite in range(len(SUITES))]


def parts_of(outer: int, payload: bytes, number: int = 7) -> list[bytes]:
    return fragments_of(transport_packet(outer, payload, identification=number))


def fragments_seeds() -> list[bytes]:
    return [
        bytes((outer, suite)) + joined([part for pair in zip(*two, strict=True) for part in pair])
        for suite in range(len(SUITES))
        for outer in (4, 6)
        for two in ([parts_of(outer, bytes([number]) * 2500, number) for number in (1, 2)],)
    ]


def early_seeds() -> list[bytes]:
    told = bytes(octet for which in range(EARLY_SPIS + 4) for octet in (1, which))
    sent = bytes(octet for which in range(EARLY_SPIS + 4) for octet in (6, which, 6 | 64, which, 6 | 128, which))
    added = bytes(octet for which in range(0, EARLY_SPIS, 2) for octet in (2, which))
    return [told + sent + added + b"\5\0" + sent, told + 8 * sent + b"\4\x50" + sent + added + b"\5\0\3\0" + sent]


def outer_seeds() -> list[bytes]:
    return [udp(version=version) for version in (4, 6)]
