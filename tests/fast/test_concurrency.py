"""Pumps in threads while the control plane changes everything under them."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from ipaddress import ip_address

import pytest

from ipsec.esp.drops import DropReason
from ipsec.esp.engine import EventKind
from ipsec.esp.fast import Engine
from ipsec.esp.sa import Action, Lifetime, Policy
from ipsec.wire.selector import SelectorPair
from tests.fast.frames import parse_vnet, superframe_vnet, tcp_packet, udp_packet, with_partial_checksum
from tests.fast.pumps import (
    EVERYTHING,
    Gateway,
    Net,
    Tap,
    Threads,
    by_flow,
    in_params,
    memory_net,
    out_params,
    pair,
    tap,
)

#: what AddressSanitizer keeps of freed memory before it is used again
QUARANTINE = 512 << 20 if "libasan" in os.environ.get("LD_PRELOAD", "") else 0

WORKERS = pytest.mark.parametrize("workers", [2, 4])
FRAME = tcp_packet(4, 13000)
HEADER, SUPERFRAME = superframe_vnet(FRAME, 1300).emit(), with_partial_checksum(FRAME)


def wait_until(done: Callable[[], bool], timeout_s: float = 10) -> None:
    deadline = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < deadline, "it does not come to rest"
        time.sleep(0.005)


def settled(*gateways: Gateway) -> None:
    """Until no counter moves any more."""
    last: list[dict[str, int]] = []

    def still() -> bool:
        nonlocal last
        now = [dict(gateway.counters()) for gateway in gateways]
        same, last = now == last, now
        time.sleep(0.02)
        return same

    wait_until(still)


def reads(taps: Tap, into: list[bytes]) -> int:
    got = taps.sent()
    into += got
    return len(got)


@WORKERS
def test_traffic_through_threads_arrives_in_order(workers: int) -> None:
    with memory_net(workers) as net:
        net.tunnel()
        sent: list[bytes] = []
        got: list[bytes] = []
        packets = [[tcp_packet(4, 900, sport=1000 + i, seq=n * 900) for n in range(60)] for i in range(workers)]
        with Threads(*net.sides):
            for n in range(60):
                for i in range(workers):
                    # as a multi-queue device does it, a flow stays with its queue
                    if net.left.tuns[i].send(packets[i][n]):
                        sent.append(packets[i][n])
                got += net.right.packets()
            wait_until(lambda: len(got) + extend(got, net.right.packets()) >= len(sent))
        assert by_flow(got) == by_flow(sent)
        for side in net.sides:
            side.check()


def extend(into: list[bytes], more: list[bytes]) -> int:
    into += more
    return 0


@WORKERS
def test_numbers_of_a_shared_sa_are_given_once(workers: int) -> None:
    """Threads that share an outbound SA: no (SPI, number) twice, and none is missing that was not dropped."""
    with tap(workers) as t:
        sa = t.engine.add_sa(out_params(esn=True, initial_seq=(1 << 32) - 3000))
        t.engine.add_policy(Policy(Action.PROTECT, EVERYTHING, reqid=0x1000))
        datagrams: list[bytes] = []
        frames = 0
        with Threads(t.gateway):
            while frames < 600 * workers:
                for tun in t.gateway.tuns:
                    frames += tun.send(SUPERFRAME, HEADER)
                reads(t, datagrams)
            wait_until(lambda: reads(t, datagrams) == 0 and t.gateway.counters()["tun_rx_frames"] == frames)
            settled(t.gateway)
            reads(t, datagrams)
        numbers = sorted(int.from_bytes(d[4:8], "big") for d in datagrams)
        stats = t.engine.query_sa(sa)
        assert len(set(numbers)) == len(numbers) == stats.seq - ((1 << 32) - 3000) - t.gateway.dropped("OUT_SEND")
        assert {int.from_bytes(d[8:16], "big") for d in datagrams} <= set(range((1 << 32) - 2999, stats.seq + 1))
        assert len({d[8:16] for d in datagrams}) == len(datagrams)  # the IVs
        assert stats.packets == frames * 10
        t.gateway.check()


@pytest.mark.parametrize("limit", ["number", "packets"])
@WORKERS
def test_a_hard_limit_is_exact(workers: int, limit: str) -> None:
    budget = 5003
    fields = {"initial_seq": 0xFFFFFFFF - budget} if limit == "number" else {"lifetime": Lifetime(packets_hard=budget)}
    with tap(workers) as t:
        sa = t.engine.add_sa(out_params(**fields))
        t.engine.add_policy(Policy(Action.PROTECT, EVERYTHING, reqid=0x1000))
        datagrams: list[bytes] = []
        frames = 0
        with Threads(t.gateway):
            while frames < 1200:
                for tun in t.gateway.tuns:
                    frames += tun.send(SUPERFRAME, HEADER)
                reads(t, datagrams)
            wait_until(lambda: reads(t, datagrams) == 0 and t.gateway.counters()["tun_rx_frames"] == frames)
            settled(t.gateway)
            reads(t, datagrams)
        assert t.engine.query_sa(sa).packets == budget
        assert len(datagrams) == len({d[4:8] for d in datagrams}) == budget - t.gateway.dropped("OUT_SEND")
        reason = DropReason.OUT_STATE_SEQ_ERROR if limit == "number" else DropReason.OUT_STATE_EXPIRED
        assert t.engine.drops()[reason] == t.engine.query_sa(sa).drops[reason] == frames * 10 - budget
        wanted = EventKind.SEQUENCE_HARD if limit == "number" else EventKind.HARD_LIFETIME
        assert [event.kind for event in t.engine.events()].count(wanted) >= 1
        t.gateway.check()


@WORKERS
def test_what_every_worker_receives_is_delivered_once(workers: int) -> None:
    """The same datagrams to all pumps at once, which share the inbound SA and its replay window."""
    sender = Engine()
    out = sender.add_sa(out_params())
    inner = [udp_packet(4, 64, sport=n + 1) for n in range(100)]
    with tap(workers) as t:
        t.engine.add_sa(in_params(replay_window=4096))
        got: list[bytes] = []
        with Threads(t.gateway):
            for _ in range(20):
                for sealed in [sender.encapsulate(out, packet, 1.0).datagram for packet in inner]:
                    for sock in t.outside:
                        sock.send(sealed)
                settled(t.gateway)
                got += t.gateway.packets()
        assert len(got) == 2000
        assert by_flow(got).keys() == by_flow(inner).keys()
        assert t.engine.drops() == {DropReason.IN_STATE_SEQ_ERROR: 2000 * (workers - 1)}
        assert t.engine.query_sa(1).packets == 2000
        t.gateway.check()


# --- the control plane at work ----------------------------------------------------------------------------------------


class Churn:
    """Replaces SAs and policies of two gateways, as fast as it can, while traffic runs."""

    def __init__(self, net: Net, seed: int) -> None:
        self.net = net
        self.rng = random.Random(seed)
        self.spi = 0x10000
        self.live: list[list[int]] = [net.tunnel(0x1000 + 2 * i, policy=self.policy(i)) for i in range(4)]
        self.replaced = 0

    @staticmethod
    def policy(i: int) -> tuple[SelectorPair, ...]:
        return (pair("0.0.0.0/0", f"10.{i}.0.0/16"),)

    def step(self) -> None:
        kind = self.rng.randrange(10)
        i = self.rng.randrange(4)
        if kind < 6:
            self.replace(i)
        elif kind == 6:
            ids = self.live[i]
            ends = {"local": ip_address("192.0.2.1"), "remote": ip_address(f"203.0.113.{self.rng.randrange(1, 250)}")}
            self.net.left.engine.update_sa(ids[0], **ends, encap=(4500, self.rng.randrange(1, 65536)), path_mtu=1500)
        elif kind == 7:
            engine = self.net.left.engine
            other = Policy(
                Action.DISCARD, (pair("0.0.0.0/0", f"172.{self.rng.randrange(16, 32)}.0.0/16"),), priority=-1
            )
            policies = [engine.add_policy(other) for _ in range(self.rng.randrange(1, 5))]
            for policy in policies:
                engine.del_policy(policy)
        elif kind == 8:
            every = [Policy(Action.PROTECT, self.policy(n), reqid=0x1000 + 2 * n) for n in range(4)]
            self.net.left.engine.set_policies(every)
        else:
            for side in self.net.sides:
                side.engine.events()
                side.engine.drops()
            self.net.left.engine.query_sa(self.live[i][0])

    def replace(self, i: int) -> None:
        """A new pair of SAs from left to right, as a rekey does; the old inbound one goes last. As a rule the new one
        is there first; or the peer is faster, and has the SPI alone."""
        reqid = 0x1000 + 2 * i
        self.spi += 1
        only = (pair(f"10.{i}.0.0/16", "0.0.0.0/0"),)
        right = self.net.right.engine
        right.expect_spi(self.spi)
        early = self.rng.randrange(2)
        if not early:
            new_in = right.add_sa(in_params(self.spi, reqid=reqid, selectors=only))
        new_out = self.net.left.engine.add_sa(out_params(self.spi, reqid=reqid))
        if early:
            new_in = right.add_sa(in_params(self.spi, reqid=reqid, selectors=only))
            if right.early():
                for pump in self.net.right.pumps:
                    pump.wake()
        old_out, old_in = self.live[i][:2]
        self.net.left.engine.del_sa(old_out)
        self.net.right.engine.del_sa(old_in)
        self.live[i][:2] = [new_out, new_in]
        self.replaced += 1


PIECES = {udp_packet(4, 6000)[28 + at : 28 + at + 1000] for at in range(0, 6000, 1000)}


def feed(net: Net, stop: threading.Event, sent: list[int]) -> None:
    """Sends to 10.0/16 .. 10.3/16; the source port names the subnet once more."""
    made = []
    for i in range(4):
        packet = udp_packet(4, 6000, ip={"dst": f"10.{i}.0.1"}, sport=i + 1)
        made.append((superframe_vnet(packet, 1000).emit(), with_partial_checksum(packet)))
    n = 0
    while not stop.is_set():
        n += 1
        header, frame = made[n % 4]
        if net.left.tuns[n % len(net.left.tuns)].send(frame, header):
            sent[0] += 6
        if n % 8 == 0:
            time.sleep(0.001)


def frames(net: Net) -> list[tuple[bytes, bytes]]:
    return [frame for tun in net.right.tuns for frame in tun.frames()]


def judge(received: tuple[bytes, bytes]) -> int:
    """How many packets a frame stands for; each must be one that was sent."""
    header, frame = received
    assert frame[17] + 1 == frame[21], "another subnet's packet"
    unit = parse_vnet(header).gso_size or len(frame)
    pieces = [frame[at : at + unit] for at in range(28, len(frame), unit)]
    assert PIECES.issuperset(pieces), "a packet that nobody sent"
    return len(pieces)


def churn(workers: int, seconds: float, seed: int) -> int:
    """Replacements made; everything else is asserted."""
    with memory_net(workers) as net:
        work = Churn(net, seed)
        stop, sent = threading.Event(), [0]
        feeder = threading.Thread(target=feed, args=(net, stop, sent))
        delivered = 0
        memory: list[int] = []
        with Threads(*net.sides):
            feeder.start()
            try:
                deadline = time.monotonic() + seconds
                # of two halves, however slow the machine is
                while time.monotonic() < deadline or len(memory) < 2:
                    for _ in range(100):
                        work.step()
                    delivered += sum(map(judge, frames(net)))
                    memory.append(resident())
            finally:
                stop.set()
                feeder.join()
            settled(*net.sides)
            delivered += sum(map(judge, frames(net)))
        assert delivered > 0
        assert net.left.counters()["tun_rx_packets"] == sent[0]
        assert net.right.counters()["tun_tx_packets"] == delivered
        wrong = {
            DropReason.IN_STATE_PROTO_ERROR,
            DropReason.IN_TMPL_MISMATCH,
            DropReason.IN_STATE_SEQ_ERROR,
            DropReason.IN_PADDING_ERROR,
            DropReason.IN_INNER_HDR_ERROR,
        }
        assert not wrong & set(net.right.engine.drops())
        for side in net.sides:
            side.check()
        # keys, tables and endpoints that were replaced are given back: a plateau
        half = len(memory) // 2
        assert max(memory[half:]) < max(memory[:half]) + (16 << 20) + QUARANTINE
        return work.replaced


def resident() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGESIZE")


@WORKERS
def test_everything_changes_under_traffic(workers: int) -> None:
    assert churn(workers, 2.5, workers) > 1000


@pytest.mark.slow
@WORKERS
@pytest.mark.timeout(600)
def test_everything_changes_under_traffic_for_long(workers: int) -> None:
    assert churn(workers, 90, 100 + workers) > 20_000


def test_what_is_removed_is_given_back() -> None:
    """10 000 SAs come and go on an idle engine: memory stays where it was."""
    with tap(2) as t, Threads(t.gateway):
        for n in range(500):
            t.engine.del_sa(t.engine.add_sa(out_params(0x2000 + n)))
        before = resident()
        for n in range(10_000):
            t.engine.del_sa(t.engine.add_sa(out_params(0x2000 + n)))
        assert resident() - before < (4 << 20) + QUARANTINE


def test_threads_stop_under_load_and_when_idle() -> None:
    with memory_net(2) as net:
        net.tunnel()
        for _ in range(20):
            with Threads(*net.sides):
                for tun in net.left.tuns:
                    tun.send(SUPERFRAME, HEADER)
        with Threads(*net.sides):
            settled(*net.sides)
            before = sum(side.counters()["wakeups"] for side in net.sides)
            time.sleep(0.2)
            assert sum(side.counters()["wakeups"] for side in net.sides) == before  # idle: no wake-ups
        for side in net.sides:
            side.tun.frames()
            side.check()


def test_busy_polling_looks_again_and_then_sleeps() -> None:
    with memory_net() as net:
        net.tunnel()
        with Threads(*net.sides, busy_poll_us=20_000):
            net.left.tun.send(udp_packet(4))
            wait_until(lambda: net.right.counters()["tun_tx_packets"] == 1)
            time.sleep(0.2)
            before = net.left.counters()["wakeups"]
            time.sleep(0.1)
            assert net.left.counters()["wakeups"] == before
            assert before > 3


def test_fragments_made_never_go_backwards() -> None:
    """Read beside a pump that fragments."""
    with tap() as t:
        t.engine.add_sa(out_params(path_mtu=1000))
        t.engine.add_policy(Policy(Action.PROTECT, EVERYTHING, reqid=0x1000))
        packet = udp_packet(4, 1400, ip={"flags": 0})
        last = 0
        for _ in range(100):
            for _ in range(50):
                assert t.gateway.tun.send(packet)
            pump = threading.Thread(target=t.gateway.pump.run_tun, args=(1000,))
            pump.start()
            while pump.is_alive():
                made = t.engine.fragments_made()
                assert made >= last
                last = made
            pump.join()
            t.sent()
        assert t.engine.fragments_made() == t.gateway.counters()["tun_rx_packets"] == 5000
        t.gateway.check()


def test_calls_beside_a_pump_are_counted() -> None:
    """Also where the pump is the only one."""
    packet = udp_packet(4, 20)
    with tap() as t:
        sa = t.engine.add_sa(out_params())
        t.engine.add_policy(Policy(Action.PROTECT, EVERYTHING, reqid=0x1000))
        count = 0
        for _ in range(300):
            for _ in range(60):
                assert t.gateway.tun.send(packet)
            pump = threading.Thread(target=t.gateway.pump.run_tun, args=(1000,))
            pump.start()
            count += 60
            while pump.is_alive():
                t.engine.encapsulate(sa, packet, 1.0)
                count += 1
            pump.join()
            t.sent()
        stats = t.engine.query_sa(sa)
        assert (stats.seq, stats.packets, stats.bytes) == (count, count, count * len(packet))
