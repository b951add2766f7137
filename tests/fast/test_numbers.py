"""Sequence numbers where everybody seals at once: pumps in threads, calls for one packet, calls for many.

A number given twice would be an IV used twice with one key, so each datagram is looked at.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import pytest

from ipsec.esp.drops import DropReason
from ipsec.esp.engine import EventKind, Sealed
from ipsec.esp.fast import Batch, Engine
from ipsec.esp.sa import Action, Lifetime, Policy
from tests.fast.frames import superframe_vnet, tcp_packet, udp_packet, with_partial_checksum
from tests.fast.pumps import EVERYTHING, Tap, Threads, out_params, tap
from tests.fast.test_concurrency import settled, wait_until

WORKERS = pytest.mark.parametrize("workers", [1, 2, 4])
TOP32, TOP64 = (1 << 32) - 1, (1 << 64) - 1
SUPERFRAME = tcp_packet(4, 12000)
SEGMENTS = 10
EMPTY, SHORT, LONG = (udp_packet(4, length) for length in (0, 20, 200))
PACKETS = (EMPTY, SHORT, SHORT, SHORT, LONG)
"runs of one length take their numbers together"


class Everybody:
    """Who seals with the SAs of an engine, and what came of it."""

    def __init__(self, t: Tap, seed: int) -> None:
        self.t, self.rng = t, random.Random(seed)
        self.source, self.out = Batch(40, 300), Batch(40, 428)
        self.header, self.frame = superframe_vnet(SUPERFRAME, 1200).emit(), with_partial_checksum(SUPERFRAME)
        self.datagrams: list[bytes] = []
        self.frames = 0
        self.called = 0
        "packets given to calls"
        self.refused = 0
        "of these, how many came to nothing"

    def feed(self) -> None:
        for tun in self.t.gateway.tuns:
            self.frames += tun.send(self.frame, self.header)
        self.datagrams += self.t.sent()

    def call(self, sa: int) -> None:
        engine = self.t.engine
        if self.rng.randrange(4):
            packets = self.rng.choices(PACKETS, k=self.rng.choice((1, 16, 17, 40)))
            self.source.load(sorted(packets, key=len) if self.rng.randrange(2) else packets)
            good = engine.encapsulate_batch(sa, self.source, self.out)
            sealed = [one for one in self.out.packets() if one]
            assert good == len(sealed)
            self.datagrams += sealed
            self.called += len(packets)
            self.refused += len(packets) - good
            return
        one: Sealed | DropReason
        one = engine.dummy(sa, 30, 1.0) if self.rng.randrange(2) else engine.encapsulate(sa, SHORT, 1.0)
        self.called += 1
        if isinstance(one, Sealed):
            self.datagrams.append(one.datagram)
        else:
            self.refused += 1

    def rest(self) -> None:
        """Until the pumps have sent all that they were given."""
        counters = self.t.gateway.counters
        wait_until(lambda: not self.take() and counters()["tun_rx_frames"] == self.frames)
        settled(self.t.gateway)
        self.take()
        assert self.t.gateway.dropped("OUT_SEND") == 0

    def take(self) -> bool:
        got = self.t.sent()
        self.datagrams += got
        return bool(got)


def numbers(datagrams: Iterable[bytes], above: int = 0) -> dict[int, list[int]]:
    """Of each SPI, as its IVs tell; what is sent of them are the low 32 bits."""
    found: dict[int, list[int]] = defaultdict(list)
    for one in datagrams:
        number = int.from_bytes(one[8:16], "big")
        assert number & TOP32 == int.from_bytes(one[4:8], "big")
        found[int.from_bytes(one[:4], "big")].append(number - above)
    return found


def ready(t: Tap, **fields: Any) -> int:
    t.engine.add_policy(Policy(Action.PROTECT, EVERYTHING, reqid=0x1000))
    return t.engine.add_sa(out_params(**fields))


LIMITS = {
    "32 bits": ({"initial_seq": TOP32 - 20_011}, DropReason.OUT_STATE_SEQ_ERROR, EventKind.SEQUENCE_HARD),
    "64 bits": ({"initial_seq": TOP64 - 20_011, "esn": True}, DropReason.OUT_STATE_SEQ_ERROR, EventKind.SEQUENCE_HARD),
    "over 32 bits": ({"initial_seq": TOP32 - 9_000, "esn": True, "lifetime": Lifetime(packets_hard=20_011)},
                  DropReason.OUT_STATE_EXPIRED, EventKind.HARD_LIFETIME),
    "packets": ({"lifetime": Lifetime(packets_hard=20_011)}, DropReason.OUT_STATE_EXPIRED, EventKind.HARD_LIFETIME),
}  # fmt: skip


@pytest.mark.parametrize("limit", LIMITS)
@WORKERS
def test_each_number_up_to_the_last_is_given_once(workers: int, limit: str) -> None:
    fields, reason, event = LIMITS[limit]
    first = fields.get("initial_seq", 0)
    with tap(workers) as t:
        sa = ready(t, **fields)
        work = Everybody(t, workers)
        with Threads(t.gateway):
            while t.engine.query_sa(sa).packets < 20_011 or work.frames < 400:
                work.feed()
                work.call(sa)
            for _ in range(5):
                work.call(sa)
            work.rest()
        stats = t.engine.query_sa(sa)
        assert sorted(numbers(work.datagrams, first)[0x1000]) == list(range(1, 20_012))
        assert stats.packets == 20_011
        assert stats.drops == {reason: work.frames * SEGMENTS + work.called - 20_011} == t.engine.drops()
        assert event in [one.kind for one in t.engine.events()]
        t.gateway.check(elsewhere_out=work.refused)


@WORKERS
def test_octets_stop_where_nothing_more_fits(workers: int) -> None:
    hard = 5_000_017
    with tap(workers) as t:
        sa = ready(t, lifetime=Lifetime(bytes_hard=hard))
        work = Everybody(t, workers)
        with Threads(t.gateway):
            while t.engine.drops().get(DropReason.OUT_STATE_EXPIRED, 0) < 500 or work.frames < 400:
                work.feed()
                work.call(sa)
            work.rest()
        # the shortest packet is tried once more: for as long as there is room it goes
        while isinstance(one := t.engine.encapsulate(sa, EMPTY, 1.0), Sealed):
            work.datagrams.append(one.datagram)
            work.called += 1
        work.called, work.refused = work.called + 1, work.refused + 1
        stats = t.engine.query_sa(sa)
        assert hard - len(EMPTY) < stats.bytes <= hard
        assert sorted(numbers(work.datagrams)[0x1000]) == list(range(1, stats.packets + 1))
        assert stats.drops == {DropReason.OUT_STATE_EXPIRED: work.frames * SEGMENTS + work.called - stats.packets}
        t.gateway.check(elsewhere_out=work.refused)


def replacing(workers: int, rounds: int) -> None:
    """SAs come, are sealed with by everybody, are moved, get other limits and go."""
    with tap(workers) as t:
        sa = ready(t)
        work = Everybody(t, workers)
        with Threads(t.gateway):
            for n in range(rounds):
                work.feed()
                work.call(sa)
                if n % 7 == 0:
                    local, remote = out_params().local, out_params().remote
                    t.engine.update_sa(sa, local=local, remote=remote, encap=(4500, 4500 + n % 9), path_mtu=1500)
                if n % 11 == 0:
                    t.engine.set_lifetime(sa, Lifetime(packets_hard=1 << 20, bytes_hard=n % 2 and 1 << 40))
                if n % 5 == 0:
                    old, sa = sa, t.engine.add_sa(out_params(0x2000 + n, reqid=0x1000, esn=n % 2 == 0))
                    work.call(old)
                    t.engine.del_sa(old)
            work.rest()
        found = numbers(work.datagrams)
        assert len(found) > rounds // 10
        for spi, given in found.items():
            assert sorted(given) == list(range(1, len(given) + 1)), f"SPI {spi:x}"
        assert len(work.datagrams) == work.frames * SEGMENTS + work.called - sum(t.engine.drops().values())
        # between two SAs a pump may hold one that has just died
        assert set(t.engine.drops()) <= {DropReason.OUT_NO_STATES}
        assert work.refused == 0


@WORKERS
def test_no_number_twice_while_sas_are_replaced(workers: int) -> None:
    replacing(workers, 500)


@pytest.mark.slow
@WORKERS
def test_no_number_twice_while_very_many_sas_are_replaced(workers: int) -> None:
    replacing(workers, 20_000)


@pytest.mark.parametrize("suite", ["aes128-sha256", "null-sha256", "aes128gmac", "chacha20poly1305"])
@pytest.mark.parametrize(("esn", "top"), [(False, TOP32), (True, TOP64)])
def test_a_batch_over_the_end_of_the_numbers(suite: str, esn: bool, top: int) -> None:
    """Whatever part of a run of 16 is left: these go, the others are dropped, and nothing begins at 0 again."""
    packets = [SHORT] * 40
    for left in range(41):
        engine = Engine()
        sa = engine.add_sa(out_params(suite=suite, initial_seq=top - left, esn=esn))
        source, out = Batch(40, 300), Batch(40, 428)
        source.load(packets)
        for _ in range(2):
            engine.encapsulate_batch(sa, source, out)
            sealed = [one for one in out.packets() if one]
            assert [int.from_bytes(one[4:8], "big") for one in sealed] == list(range(2**32 - left, 2**32))
            assert (engine.query_sa(sa).seq, engine.query_sa(sa).packets) == (top, left or engine.query_sa(sa).packets)
            left = 0
