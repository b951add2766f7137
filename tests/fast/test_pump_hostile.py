"""The pump against whatever may come: nothing gets in that was not authenticated, nothing crashes, all is counted.

Each test sends so many packets through compiled code, which has no bounds checks: ``make asan`` runs them once more.
"""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from ipsec.crypto.suites import all_esp_suites
from ipsec.esp.drops import DropReason
from ipsec.esp.fast import Batch, Engine
from ipsec.esp.reference import ReferenceEngine
from ipsec.esp.sa import Action, DfPolicy, Mode, Policy
from tests.fast.frames import payload, superframe_vnet, tcp_packet, udp_packet, with_partial_checksum
from tests.fast.pumps import (
    BLOCKED,
    EVERYTHING,
    MORE,
    OUTER,
    Liar,
    Tap,
    by_flow,
    cut,
    in_params,
    memory_net,
    out_params,
    tap,
    udp_net,
)

SLOTS = 4096


def sealed(suite: Any = "aes128gcm16", packet: bytes = b"", count: int = 1, **fields: Any) -> list[bytes]:
    """Good ESP packets of one SA."""
    engine = Engine()
    out = engine.add_sa(out_params(suite=suite, **fields))
    return [engine.encapsulate(out, packet or udp_packet(4, 30), 1.0).datagram for _ in range(count)]


class Receiver:
    """An engine that opens datagrams in batches; whatever is delivered is a failure, unless it is expected."""

    def __init__(self, suite: Any = "aes128gcm16", **fields: Any) -> None:
        self.engine = Engine()
        self.engine.add_sa(in_params(suite=suite, **fields))
        self.source, self.out = Batch(SLOTS, 2048), Batch(SLOTS, 2048)
        self.count = 0

    def open(self, datagrams: Iterable[bytes]) -> list[bytes]:
        """What was delivered."""
        delivered: list[bytes] = []
        for batch in batched(datagrams, SLOTS):
            self.source.load(batch)
            if self.engine.decapsulate_batch(self.source, self.out):
                delivered += [packet for packet in self.out.packets()[: len(batch)] if packet]
            self.count += len(batch)
        assert sum(self.engine.drops().values()) + len(delivered) == self.count
        self.count -= len(delivered)
        return delivered


def batched(items: Iterable[bytes], size: int) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def changed(datagram: bytes, values: Iterable[int]) -> Iterator[bytes]:
    """Every octet of a datagram, xor-ed with each value."""
    work = bytearray(datagram)
    flips = tuple(values)
    for at, octet in enumerate(datagram):
        for flip in flips:
            work[at] = octet ^ flip
            yield bytes(work)
        work[at] = octet


def shortened(datagram: bytes) -> Iterator[bytes]:
    for n in range(len(datagram)):
        yield datagram[:n]
        yield datagram[len(datagram) - n :]
    for n in range(1, 66):
        yield datagram + bytes(n)


@pytest.mark.parametrize("suite", all_esp_suites(), ids=str)
@pytest.mark.parametrize("esn", [False, True])
def test_every_change_of_a_good_packet(suite: Any, esn: bool) -> None:
    """Some 20 000 forgeries for each suite and kind of number; the packet itself is good before and after."""
    good = sealed(suite, count=3, esn=esn)
    receiver = Receiver(suite, esn=esn)
    assert len(receiver.open(good[:1])) == 1
    assert receiver.open(changed(good[1], range(1, 256))) == []
    assert receiver.open(shortened(good[1])) == []
    assert len(receiver.open(good[1:2])) == 1
    assert receiver.open(good[:2]) == []  # replays
    assert len(receiver.open(good)) == 1
    assert receiver.count > 20_000


def test_a_smaller_batch_leaves_nothing_of_the_larger_one() -> None:
    engine, source, out = Engine(), Batch(8, 500), Batch(8, 500)
    engine.add_sa(in_params())
    good = sealed(count=8)
    source.load(good[:6])
    assert engine.decapsulate_batch(source, out) == 6
    source.load(good[6:])
    assert engine.decapsulate_batch(source, out) == 2
    assert len([packet for packet in out.packets() if packet]) == 2
    source.load(good)
    assert engine.decapsulate_batch(source, out) == 0


def test_that_makes_a_million() -> None:
    assert 2 * len(all_esp_suites()) * 20_000 >= 1_000_000


@pytest.mark.slow
@pytest.mark.parametrize("suite", all_esp_suites(), ids=str)
@pytest.mark.parametrize("size", [0, 7, 100, 1400])
def test_every_change_of_more_packets(suite: Any, size: int) -> None:
    good = sealed(suite, udp_packet(6, size), esn=True)[0]
    receiver = Receiver(suite, esn=True)
    assert receiver.open(changed(good, range(1, 256))) == []
    assert receiver.open(shortened(good)) == []
    assert len(receiver.open([good])) == 1


def test_every_change_of_a_gcm_packet_through_the_pump() -> None:
    """The same through sockets, one good packet after every 100 bad ones: each of these arrives."""
    flips = (1, 2, 4, 8, 16, 32, 64, 128, 255)
    template = sealed(packet=udp_packet(4, 200))[0]
    bad = [*changed(template, flips), *shortened(template)]
    good = sealed(packet=udp_packet(4, 200), count=len(bad) // 100 + 2)[1:]
    with tap() as t:
        t.engine.add_sa(in_params())
        delivered = 0
        for n, batch in enumerate(batched((d for d in bad if d and d[:4] != bytes(4)), 100)):
            t.put([*batch, good[n]])
            packets = t.gateway.packets()
            assert packets == [udp_packet(4, 200)]
            delivered += 1
        assert t.engine.query_sa(1).packets == delivered
        t.gateway.check()


def test_random_datagrams_of_every_size() -> None:
    rng = random.Random(3)
    noise = rng.randbytes(1 << 17)
    with tap() as t:
        t.engine.add_sa(in_params(0x01020304))
        sizes = [*range(1, 400), *(rng.randrange(65536) for _ in range(600)), 65535, 65534, 65507]
        for n in sizes:
            at = rng.randrange(1 << 16)
            head = rng.choice((b"", b"\1\2\3\4", b"\0\0\0\1", b"\0\0\0\xff", b"\xff"))
            t.put([(head + noise[at : at + n])[: max(n, 1)]])
        assert t.gateway.tun.frames() == []
        assert t.engine.query_sa(1).packets == 0
        t.gateway.check()


@pytest.mark.parametrize("version", [4, 6])
def test_empty_and_huge_datagrams_on_a_real_socket(version: int) -> None:
    with udp_net(version) as (net, arguments):
        net.tunnel(**arguments)
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        with socket.socket(family, socket.SOCK_DGRAM) as peer:
            for n in (0, 1, 3, 4, 7, 8, 9, 65507):
                peer.sendto(b"\1" * n, (arguments["addresses"][0], arguments["encap"][1]))
                net.run()
        assert net.right.counters()["net_rx_datagrams"] == 8
        assert net.right.dropped("IN_") == 8
        net.right.check()


TEMPLATES = {v: [make(v, n) for make in (tcp_packet, udp_packet) for n in (0, 1, 20, 300)] for v in (4, 6)}


def random_inner(rng: random.Random) -> bytes:
    """An inner packet that lies about something."""
    version = rng.choice((4, 6))
    inner = bytearray(rng.choice(TEMPLATES[version]))
    kind = rng.randrange(8)
    if kind == 0:
        inner[rng.choice((2, 3) if version == 4 else (4, 5))] = rng.randrange(256)
    elif kind == 1:
        inner[0] = rng.randrange(256)
    elif kind == 2:
        del inner[rng.randrange(len(inner)) :]
    elif kind == 3:
        inner[9 if version == 4 else 6] = rng.choice((0, 43, 44, 51, 60, 135, 1, 58, 6, 17, rng.randrange(256)))
    elif kind == 4:
        inner[rng.randrange(min(len(inner), 60))] ^= 1 << rng.randrange(8)
    elif kind == 5 and version == 6:
        inner[6] = rng.choice((0, 43, 44, 60))
        chain = bytearray(rng.randbytes(8 * rng.randrange(1, 12)))
        for at in range(0, len(chain), 8):
            chain[at : at + 2] = bytes((rng.choice((0, 43, 60, 44, 6, 51)), rng.choice((0, 0, 1, 255))))
        inner[40:40] = chain
    elif kind == 5:
        words = rng.randrange(5, 16)
        inner[0] = 0x40 | words
        inner[20:20] = rng.randbytes((words - 5) * 4)
        struct.pack_into("!H", inner, 2, len(inner))
    elif kind == 6:
        struct.pack_into("!H", inner, 6 if version == 4 else 4, rng.randrange(65536))
    else:
        inner += bytes(rng.randrange(200))  # TFC
    return bytes(inner)


def random_lie(rng: random.Random, liar: Liar) -> bytes:
    inner = random_inner(rng)
    next_header = rng.choice((4, 41, 4, 41, 59, rng.randrange(256)))
    if rng.randrange(3):
        next_header = 4 if inner and inner[0] >> 4 == 4 else 41
    if rng.randrange(4):
        return liar.lie(inner, next_header)
    return liar.lie(inner, next_header, rng.randrange(256), rng.randbytes(rng.randrange(12)))


@pytest.mark.parametrize("mode", list(Mode))
def test_authenticated_lies_agree_with_the_reference(mode: Mode) -> None:
    """A peer with the key may still send anything inside; the readable engine says what becomes of it."""
    rng = random.Random(4)
    liar = Liar()
    reference = ReferenceEngine()
    reference.add_sa(in_params(mode=mode))
    with tap(vnet_hdr=False) as t:
        t.engine.add_sa(in_params(mode=mode))
        lies = [random_lie(rng, liar) for _ in range(3000)]
        want = [reference.inbound(lie, 1.0) for lie in lies]
        for batch in batched(lies, 64):
            t.put(batch)
        got = t.gateway.tun.receive()
        assert got == [result.packet for result in want if not result.drop]
        assert 100 < len(got) < 2900
        assert t.engine.drops() == reference.drops()
        t.gateway.check()


def test_many_authenticated_lies() -> None:
    lie_often(5, 20_000)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10, 14))
def test_very_many_authenticated_lies(seed: int) -> None:
    lie_often(seed, 250_000)


def lie_often(seed: int, count: int) -> None:
    rng = random.Random(seed)
    liar = Liar()
    receiver = Receiver(replay_window=0)
    transport = Receiver(replay_window=0, mode=Mode.TRANSPORT)
    lies = [random_lie(rng, liar) for _ in range(count)]
    for packet in receiver.open(lies):
        assert packet[0] >> 4 in (4, 6)
        assert len(packet) == (struct.unpack_from("!H", packet, 2)[0] if packet[0] >> 4 == 4 else
                               40 + struct.unpack_from("!H", packet, 4)[0])  # fmt: skip
    transport.open(lies)


def test_every_change_inside_a_superframe_of_lies() -> None:
    """Changes to inner headers behind a good ICV, joined or not: packets leave as they came, in their order."""
    liar = Liar()
    base = [tcp_packet(4, 100, seq=1000 + 100 * n) for n in range(3)]
    with tap() as t:
        t.engine.add_sa(in_params(replay_window=0))
        sent = got = 0
        for at in range(40):
            for flip in (1, 2, 4, 8, 16, 32, 64, 128, 255):
                middle = bytearray(base[1])
                middle[at] ^= flip
                before = t.gateway.dropped("IN_")
                t.put([liar.lie(base[0]), liar.lie(bytes(middle)), liar.lie(base[2])])
                packets = t.gateway.packets()
                lost = t.gateway.dropped("IN_") - before
                sent += 3
                got += len(packets) + lost
                assert packets[0] == base[0]
                assert packets[-1] == base[2]
                if len(packets) == 3 and at not in (2, 3):
                    assert packets[1] == bytes(middle)
        assert sent == got
        t.gateway.check()


def random_vnet(rng: random.Random, length: int) -> bytes:
    edge = (0, 1, 2, 7, 8, 20, 40, 60, length & 0xFFFF, (length - 1) & 0xFFFF, 65534, 65535)
    return struct.pack(
        "=BBHHHH",
        rng.choice((0, 1, 2, 3, 255)),
        rng.choice((0, 1, 2, 3, 4, 5, 0x80, 0x81, 0x84, 0x85, 255, rng.randrange(256))),
        rng.choice((*edge, rng.randrange(65536))),
        rng.choice((*edge, 536, 1200, 1300, rng.randrange(65536))),
        rng.choice((*edge, rng.randrange(65536))),
        rng.choice((*edge, 6, 16, rng.randrange(65536))),
    )


def random_frame(rng: random.Random) -> tuple[bytes, bytes]:
    """A virtio_net_hdr and a frame; either, both or none of them are wrong."""
    version = rng.choice((4, 6))
    frame = bytearray(rng.choice((TEMPLATES[version][0], TEMPLATES[version][4])))
    frame += bytes(rng.choice((0, 1, 100, 1300, 1300, 3000, 9000, 65535)))
    del frame[65535:]
    struct.pack_into("!H", frame, 2 if version == 4 else 4, len(frame) - (0 if version == 4 else 40))
    header = superframe_vnet(bytes(frame), rng.choice((1, 2, 7, 100, 1300, 1300, 65535))).emit()
    kind = rng.randrange(4)
    if kind == 0:
        header = random_vnet(rng, len(frame))
    elif kind == 1:
        at = rng.randrange(10)
        header = header[:at] + bytes((rng.randrange(256),)) + header[at + 1 :]
    for _ in range(rng.choice((0, 0, 1, 2, 5))):
        frame[rng.randrange(min(len(frame), 64))] = rng.randrange(256)
    return header, bytes(frame[: rng.choice((65535, 65535, rng.randrange(70)))])


def odd_frames(t: Tap, seed: int, count: int) -> None:
    rng = random.Random(seed)
    for n in range(count):
        header, frame = random_frame(rng)
        assert t.gateway.tun.send(frame, header), "the pump did not empty its TUN device"
        if n % 4 == 0:
            calls = 0
            while t.gateway.pump.run_tun() & MORE:
                calls += 1
                assert calls < 100
            t.sent()
            t.gateway.tun.frames()
    while t.gateway.pump.run_tun() & (MORE | BLOCKED):
        t.sent()


@pytest.mark.parametrize("variant", ["plain", "tfc", "transport", "small", "fragment", "bypass"])
@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)])
def test_odd_superframes(variant: str, seed: int) -> None:
    fields: dict[str, Any] = {
        "plain": {},
        "tfc": {"tfc": -1},
        "transport": {"mode": Mode.TRANSPORT},
        "small": {"path_mtu": 576, "suite": "aes256-sha512"},
        "fragment": {"path_mtu": 1000, "df": DfPolicy.CLEAR},
        "bypass": {},
    }[variant]
    with tap() as t:
        t.engine.add_sa(out_params(**fields))
        action = Action.BYPASS if variant == "bypass" else Action.PROTECT
        t.engine.add_policy(Policy(action, EVERYTHING, reqid=0x1000))
        odd_frames(t, seed, 400 if seed == 1 else 20_000)
        t.gateway.check()


def test_frames_too_short_for_their_header() -> None:
    with tap() as t:
        t.engine.add_sa(out_params())
        t.engine.add_policy(Policy(Action.PROTECT, EVERYTHING, reqid=0x1000))
        frame = bytes(10) + udp_packet(4)
        for n in range(1, len(frame)):
            t.gateway.tun.send(b"", frame[:n])
        t.gateway.pump.run_tun(1000)
        assert t.gateway.engine.drops() == {DropReason.OUT_HDR_ERROR: len(frame) - 1}
        assert t.sent() == []
        t.gateway.check()


@pytest.mark.parametrize("options", range(0, 41, 4))
def test_superframes_with_ipv4_options(options: int) -> None:
    with memory_net() as net:
        net.tunnel()
        plain = bytearray(tcp_packet(4, 5000))
        plain[0] = 0x45 + options // 4
        plain[20:20] = b"\x01" * options
        struct.pack_into("!H", plain, 2, len(plain))
        frame = with_partial_checksum(bytes(plain))
        header = superframe_vnet(frame, 1000).emit()
        net.left.tun.send(frame, header)
        net.run()
        packets = [p for f in net.right.tun.frames() for p in cut(*f)]
        assert by_flow(packets) == by_flow(cut(header, frame))
        for side in net.sides:
            side.check()


# --- trains that a forger, or a network, puts together ----------------------------------------------------------------


def send_train(address: tuple[str, int], datagrams: list[bytes], unit: int) -> None:
    """One UDP_SEGMENT message, which UDP_GRO keeps together on loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendmsg([b"".join(datagrams)], [(17, 103, struct.pack("H", unit))], 0, address)


def test_trains_of_mixed_spis_out_of_order_with_a_short_tail() -> None:
    rng = random.Random(6)
    with udp_net() as (net, arguments):
        for spi in (0x1000, 0x2000):
            net.tunnel(spi, **arguments)
        engine = Engine()
        outs = [engine.add_sa(out_params(spi)) for spi in (0x1000, 0x2000)]
        target = (arguments["addresses"][0], arguments["encap"][1])
        for round_ in range(40):
            inner = [udp_packet(4, 500, sport=round_ * 40 + n) for n in range(30)]
            datagrams = [engine.encapsulate(outs[rng.randrange(2)], packet, 1.0).datagram for packet in inner]
            unit = len(datagrams[0])
            order = list(range(30))
            rng.shuffle(order)
            train = [datagrams[n] for n in order]
            good = [inner[n] for n in order]
            kind = round_ % 4
            if kind == 1:  # a forgery in the middle
                train[7] = train[7][:-1] + bytes((train[7][-1] ^ 1,))
                del good[7]
            elif kind == 2:  # the tail is cut short
                train[-1] = train[-1][: rng.randrange(1, unit)]
                del good[-1]
            elif kind == 3:  # not ESP at all, and a replay
                train[3] = bytes(unit)
                train[5] = train[4]
                del good[3], good[4]
            send_train(target, train, unit)
            net.run()
            assert sorted(net.right.packets()) == sorted(good)
        c = net.right.counters()
        assert c["net_rx_messages"] < c["net_rx_datagrams"] / 5
        assert c["control_datagrams"] == 10
        net.right.check()


def test_tcp_segments_out_of_order_inside_a_train_stay_so() -> None:
    rng = random.Random(7)
    with udp_net() as (net, arguments):
        net.tunnel(**arguments)
        engine = Engine()
        out = engine.add_sa(out_params(0x1000))
        target = (arguments["addresses"][0], arguments["encap"][1])
        for round_ in range(30):
            inner = [tcp_packet(4, 400, seq=(0xFFFFF000 + 400 * n) & 0xFFFFFFFF, sport=round_ + 1) for n in range(40)]
            if round_ % 3:
                rng.shuffle(inner)
            if round_ % 3 == 2:
                inner[7:7] = inner[3:5]
            datagrams = [engine.encapsulate(out, packet, 1.0).datagram for packet in inner]
            send_train(target, datagrams, len(datagrams[0]))
            net.run()
            got = net.right.packets()
            assert by_flow(got) == by_flow(inner)
        net.right.check()


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("esn", "top"), [(False, (1 << 32) - 1), (True, (1 << 64) - 1)])
def test_the_last_number_is_the_last(esn: bool, top: int) -> None:
    with memory_net() as net:
        sa = net.tunnel(esn=esn, initial={"initial_seq": top - 5})[0]
        for n in range(9):
            net.left.tun.send(udp_packet(4, n))
        net.run()
        assert [len(p) - 28 for p in net.right.packets()] == [0, 1, 2, 3, 4]
        assert net.left.engine.query_sa(sa).seq == top
        assert net.left.engine.drops() == {DropReason.OUT_STATE_SEQ_ERROR: 4}
        assert "SEQUENCE_HARD" in [event.kind.name for event in net.left.engine.events()]
        for side in net.sides:
            side.check()


def test_extended_numbers_pass_two_to_the_32() -> None:
    """Losses, disorder and replays around 2^32, with a window that spans the edge."""
    rng = random.Random(8)
    held: list[bytes] = []

    def hook(_side: int, message: bytes) -> Iterator[bytes]:
        held.append(message)
        if len(held) == 32:
            rng.shuffle(held)
            yield from held[:30]  # two are lost
            yield from rng.sample(held[:30], 5)  # replays
            held.clear()

    with memory_net(hook=hook) as net:
        net.tunnel(esn=True, initial={"initial_seq": (1 << 32) - 700}, replay_window=64)
        for n in range(1600):
            assert net.left.tun.send(udp_packet(4, n % 900, sport=n))
            if n % 32 == 31:
                net.run()
        got = net.right.packets()
        assert len(got) == 1500 == len(set(got))
        assert net.right.engine.drops() == {DropReason.IN_STATE_SEQ_ERROR: 250}
        for side in net.sides:
            side.check()


def test_replays_and_wrong_spis_through_the_pump() -> None:
    good = sealed(count=200)
    with tap() as t:
        t.engine.add_sa(in_params())
        t.put(good[100:])
        t.put(good)
        t.put(good)
        t.put([struct.pack("!I", n) + good[0][4:] for n in (1, 255, 256, 0xFFF, 0x1001, 0xFFFFFFFF)])
        assert len(t.gateway.packets()) == 200
        assert t.engine.drops() == {
            DropReason.IN_STATE_SEQ_ERROR: 300, DropReason.IN_HDR_ERROR: 2, DropReason.IN_NO_STATES: 4,
        }  # fmt: skip
        t.gateway.check()


def test_what_came_in_clear_is_not_delivered() -> None:
    """IP packets on the wire, the outer addresses of the tunnel and its policy's inner ones."""
    with tap() as t:
        t.engine.add_sa(in_params())
        ip = dict(zip(("src", "dst"), OUTER[4], strict=True))
        t.put([udp_packet(4, 100), tcp_packet(6, 100), udp_packet(4, 20, ip=ip), payload(64, 1)])
        assert t.gateway.tun.frames() == []
        t.gateway.check()
