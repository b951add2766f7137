"""The replay window and ESN inference against naive oracles (RFC 4303 section 3.4.3, appendix A)."""

from __future__ import annotations

import random
from itertools import product

import pytest

from ipsec.esp.drops import DropReason
from ipsec.esp.replay import ReplayWindow
from ipsec.esp.sa import Direction
from tests.esp.support import GCM, NOW, forge, params, trailer, udp

PLAIN = trailer(udp(b""), 4)


class Oracle:
    """The definition itself: a set of all numbers ever received."""

    def __init__(self, size, highest=0):
        self.size, self.start, self.received = size, highest, set()

    def receive(self, seq):
        highest = max(self.received, default=self.start)
        fresh = seq > 0 and (
            not self.size
            or seq > highest
            or (seq > self.start and seq > highest - self.size and seq not in self.received)
        )
        if fresh:
            self.received.add(seq)
        return fresh


def receive(window, seq):
    fresh = window.fresh(seq)
    if fresh:
        window.commit(seq)
    return fresh


@pytest.mark.parametrize("size", [4, 8, 16])
def test_exhaustive_short_sequences(size):
    """All sequences of 5 numbers from 9 that lie at the edges: 59049 for each size."""
    classes = (0, 1, 2, size - 1, size, size + 1, 2 * size, 2 * size + 1, 5 * size)
    for sequence in product(classes, repeat=5):
        window, oracle = ReplayWindow(size, False), Oracle(size)
        for seq in sequence:
            assert receive(window, seq) == oracle.receive(seq), sequence


@pytest.mark.parametrize("size", [0, 64, 128, 1024, 65536])
def test_random_walks(size):
    rng = random.Random(size)
    for start in (0, 1000, 2**32 - 50):
        window, oracle = ReplayWindow(size, True, start), Oracle(size, start)
        at = start
        for _ in range(3000):
            at += rng.choice((1, 1, 1, 2, 63, 64, 65, size, size + 1, 3 * size)) if rng.random() < 0.3 else 0
            seq = max(0, at - rng.choice((0, 1, 2, 63, 64, 65, size - 1, size, size + 1, rng.randrange(2 * size + 2))))
            assert receive(window, seq) == oracle.receive(seq)


def nearest(highest, low, size):
    """The meaning of appendix A2: of all numbers with these low bits, the only one in [bottom, bottom + 2^32)."""
    bottom = highest - (size or 64) + 1
    number = bottom + (low - bottom) % 2**32
    return number if 0 <= number < 2**64 else None


@pytest.mark.parametrize("size", [0, 64, 1024, 65536])
def test_esn_inference(size):
    window = size or 64
    edges = [0, 1, 2, window - 2, window - 1, window, window + 1, 2**31, 2**32 - window, 2**32 - 2, 2**32 - 1]
    for high in (0, 1, 2, 2**32 - 2, 2**32 - 1):
        for low_top in edges:
            for low in edges:
                highest = high << 32 | low_top
                replay = ReplayWindow(size, True, highest)
                assert replay.infer(low) == nearest(highest, low, size)


def test_infer_is_the_identity_without_esn():
    assert ReplayWindow(64, False, 5).infer(2**32 - 1) == 2**32 - 1


@pytest.mark.parametrize("esn", [False, True])
@pytest.mark.parametrize("size", [64, 128])
def test_engine_against_the_oracle(engine_class, size, esn):
    rng = random.Random(size + esn)
    start = 2**32 - 2 * size if esn else 0
    engine, oracle, at = engine_class(), Oracle(size, start), start + 1
    engine.add_sa(params(Direction.IN, replay_window=size, esn=esn, initial_seq=start))
    for _ in range(1500):
        at += rng.choice((0, 0, 1, 1, 2, 5, size // 2, size + 3))
        seq = at - rng.choice((0, 0, 1, 3, size - 1, size, size + 1))
        if seq <= 0:
            continue
        drop = engine.inbound(forge(GCM, PLAIN, seq, esn=esn), NOW).drop
        assert drop is (DropReason.NONE if oracle.receive(seq) else DropReason.IN_STATE_SEQ_ERROR) or (
            # far left of the window ESN takes a number for one of the next subspace, whose ICV is then wrong
            esn and drop is DropReason.IN_STATE_PROTO_ERROR and seq <= max(oracle.received) - size
        )


@pytest.mark.parametrize("size", [64, 1024])
def test_window_does_not_move_before_the_icv(engine_class, size):
    engine = engine_class()
    sa = engine.add_sa(params(Direction.IN, replay_window=size))
    assert engine.inbound(forge(GCM, PLAIN, 10), NOW).drop is DropReason.NONE
    bad = bytearray(forge(GCM, PLAIN, 10 * size))
    bad[-1] ^= 1
    assert engine.inbound(bytes(bad), NOW).drop is DropReason.IN_STATE_PROTO_ERROR
    assert engine.query_sa(sa).seq == 10
    assert engine.inbound(forge(GCM, PLAIN, 9), NOW).drop is DropReason.NONE
    # the good packet of that number is still welcome
    assert engine.inbound(forge(GCM, PLAIN, 10 * size), NOW).drop is DropReason.NONE


@pytest.mark.parametrize("esn", [False, True])
def test_window_off(engine_class, esn):
    """Duplicates pass; number 0 is never a packet's; ESN still infers."""
    engine = engine_class()
    engine.add_sa(params(Direction.IN, replay_window=0, esn=esn, initial_seq=5))
    for seq in (7, 7, 3, 1, 7):
        assert engine.inbound(forge(GCM, PLAIN, seq, esn=esn), NOW).drop is DropReason.NONE
    assert engine.inbound(forge(GCM, PLAIN, 0, esn=esn), NOW).drop is DropReason.IN_STATE_SEQ_ERROR


def test_number_zero_is_refused(engine_class):
    engine = engine_class()
    engine.add_sa(params(Direction.IN))
    assert engine.inbound(forge(GCM, PLAIN, 0), NOW).drop is DropReason.IN_STATE_SEQ_ERROR


def test_takeover_accepts_no_replay(engine_class):
    """initial_seq says what was seen: nothing up to it may come again."""
    engine = engine_class()
    engine.add_sa(params(Direction.IN, initial_seq=1000))
    for seq in (1000, 999, 990):
        assert engine.inbound(forge(GCM, PLAIN, seq), NOW).drop is DropReason.IN_STATE_SEQ_ERROR
    # what is younger is welcome, late or not
    for seq in (1010, 1001, 1003, 1009):
        assert engine.inbound(forge(GCM, PLAIN, seq), NOW).drop is DropReason.NONE


def test_end_of_the_number_space(engine_class):
    engine = engine_class()
    top = 2**64 - 1
    engine.add_sa(params(Direction.IN, esn=True, initial_seq=top - 5))
    assert engine.inbound(forge(GCM, PLAIN, top, esn=True), NOW).drop is DropReason.NONE
    for low in (0, 1, 2**31):
        # the only number these bits could mean is past the end
        assert engine.inbound(forge(GCM, PLAIN, low, esn=True), NOW).drop is DropReason.IN_STATE_SEQ_ERROR
    assert engine.inbound(forge(GCM, PLAIN, top - 1, esn=True), NOW).drop is DropReason.NONE


@pytest.mark.parametrize("size", [0, 64])
@pytest.mark.parametrize(("start", "number"), [(0, 2**32 - 1), (2**64 - 10, 3)])
def test_no_number_before_the_first_or_behind_the_last(engine_class, size, start, number):
    """What the low half means then is the number of no packet (RFC 4303 appendix A2.2): the ICV is not looked at."""
    engine = engine_class()
    engine.add_sa(params(Direction.IN, replay_window=size, esn=True, initial_seq=start))
    assert engine.inbound(forge(GCM, PLAIN, number, esn=True), NOW).drop is DropReason.IN_STATE_SEQ_ERROR


@pytest.mark.parametrize("size", [0, 64])
def test_extended_numbers_over_two_edges(engine_class, size):
    """The highest number so far is what the others are inferred from, with a window or without."""
    engine = engine_class()
    sa = engine.add_sa(params(Direction.IN, replay_window=size, esn=True, initial_seq=2**32 - 3))
    for number in (2**32 - 2, 2**32 + 1, 2**33 - 100, 2**33 + 1):
        assert engine.inbound(forge(GCM, PLAIN, number, esn=True), NOW).drop is DropReason.NONE
        assert engine.query_sa(sa).seq == number
