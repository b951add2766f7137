"""Two engines over a network that loses 30 %, repeats 20 %, reorders by up to 2 s and corrupts 1 %, behind a NAT that
rebinds; through establishing, traffic, rekeyings of both kinds from both sides, and closing. One seed is one run.

``IPSEC_SEEDS=first:last`` runs others than the default ones, ``IPSEC_SEEDS=17`` a single one.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from typing import Any

import pytest

from ipsec.crypto.identity import ANY_IDENTITY, parse_identity, parse_pattern
from ipsec.crypto.proposals import parse_proposals
from ipsec.ike.config import Action, AuthClass, Childless, IkeSettings, LocalAuth, RemoteAuth, Unique
from ipsec.ike.credentials import EapSecret
from ipsec.wire.iana import Protocol
from tests.pair import ESP, ESP_PFS, Pair
from tests.sim.host import SimHost
from tests.sim.invariants import agree, leaks, unique_ivs
from tests.sim.link import Link, Violation
from tests.sim.world import IN_FLIGHT_S

SEEDS = 2000
BLOCK = 100

BAD = Link(latency=0.03, loss=0.30, duplicate=0.20, reorder=0.15, late=2.0, corrupt=0.01)


def chosen() -> list[range]:
    text = os.environ.get("IPSEC_SEEDS", f"0:{SEEDS}")
    first, _, last = text.partition(":")
    begin = int(first)
    end = int(last) if last else begin + 1
    return [range(start, min(start + BLOCK, end)) for start in range(begin, end, BLOCK)]


def proposals(further: Sequence[str], protocol: Protocol, name: str) -> dict[str, Any]:
    """Nothing, or a proposal with these additional key exchanges."""
    if not further:
        return {}
    words = "-".join(("x25519", *(f"ke{n}_{word}" for n, word in enumerate(further, 1))))
    first = "aes128gcm16-prfsha256" if protocol is Protocol.IKE else "aes128gcm16"
    return {name: parse_proposals([f"{first}-{words}"], protocol)}


USERS = (EapSecret(b"of moon alone", (parse_pattern("carol"),)),)
MINE = {
    "key": LocalAuth(AuthClass.PSK, parse_identity("moon")),
    "eap": LocalAuth(AuthClass.EAP, parse_identity("moon"), eap_id=parse_identity("carol")),
}
THEIRS = {
    "key": RemoteAuth(AuthClass.PSK, parse_pattern("moon")),
    "eap": RemoteAuth(AuthClass.EAP, parse_pattern("moon"), eap_id=ANY_IDENTITY),
}


def authentication(rounds: Sequence[str]) -> dict[str, Any]:
    """What moon and sun have in their connections for that."""
    if not rounds:
        return {}
    mine, theirs = ([table[name] for name in rounds] for table in (MINE, THEIRS))
    return {
        "a": {"local": mine[0], "local_rounds": tuple(mine[1:])},
        "b": {"remote": theirs[0], "remote_rounds": tuple(theirs[1:])},
    }


class Run:
    """What one seed does."""

    def __init__(self, seed: int, further: Sequence[str] = (), rounds: Sequence[str] = ()) -> None:
        """``further``: key exchanges after the first one (RFC 9370); ``rounds``: how moon proves itself (RFC 4739)."""
        rng = self.rng = random.Random(f"{seed}/script")
        mobike = rng.random() < 0.4
        self.nat = rng.random() < 0.5
        self.patience = 8 if rng.random() < 0.8 else 3
        settings = IkeSettings(
            retransmit_tries=self.patience,
            retransmit_timeout=1.0,
            retransmit_base=1.4,
            half_open_timeout=rng.choice((30.0, 8.0)),
            cookie_threshold=rng.choice((0, 30)),
            delete_rekeyed_delay=5.0,
            force_encapsulation=rng.random() < 0.5,
            fragment_size=rng.choice((1280, 1280, 300)),
        )
        self.pair = Pair(
            seed,
            link=BAD,
            settings=settings,
            nat=self.nat,
            mobike=mobike,
            childless=rng.choice((Childless.ALLOW, Childless.PREFER)),
            unique=rng.choice((Unique.NO, Unique.REPLACE)),
            dpd_delay=rng.choice((10.0, 20.0)),
            keyingtries=1,
            **proposals(further, Protocol.IKE, "proposals"),
            child={
                "esp_proposals": ESP_PFS if rng.random() < 0.25 else ESP,
                **proposals(further, Protocol.ESP, "esp_proposals"),
                "dpd_action": Action.NONE,
                "close_action": Action.NONE,
            },
            **authentication(rounds),
        )
        for host in (self.pair.a, self.pair.b):
            host.load(*host.connections.values(), eap=USERS)

    def go(self) -> str:
        pair, rng, world = self.pair, self.rng, self.pair.world
        hosts = (pair.a, pair.b)
        # only the end that can be reached by the other one connects
        pair.a.keep.add("c")
        pair.a.wish("c")
        for host in hosts:
            self._talk(host)
        world.until(lambda: bool(pair.a.children and pair.b.children), 400.0)
        for _ in range(rng.randint(3, 6)):
            who = rng.choice(hosts)
            self._act(who)
            if rng.random() < 0.4:
                world.run(rng.random() * 0.3)
                self._act(hosts[who is pair.a])
            world.run(rng.choice((0.5, 3.0, 12.0)))
            if pair.nat is not None and rng.random() < 0.3:
                pair.nat.rebind()
        world.settle()
        self._converge()
        world.run(IN_FLIGHT_S)
        self._end()
        return world.trace.hexdigest()

    def _talk(self, host: SimHost) -> None:
        host.send_traffic()
        if host.name in host.world.hosts and not self.over:
            host.world.at(0.5 + self.rng.random(), self._talk, host)

    over = False

    def _act(self, who: SimHost) -> None:
        engine, rng = who.engine, self.rng
        if not who.ikes:
            return
        sa = rng.choice(who.ikes)
        children = sa.children_up()
        what = rng.random()
        if what < 0.5 and children:
            who.do(engine.rekey_child, rng.choice(children))
        elif what < 0.85:
            who.do(engine.rekey_ike_sa, sa)
        elif what < 0.9 and children:
            who.close_child(rng.choice(children))
        elif what < 0.93:
            who.do(engine.terminate_ike, sa)
        elif who is self.pair.a and children:
            who.do(engine.reauthenticate, sa)

    def _converge(self) -> None:
        """Both ends have the same; what the script has closed is made again, once."""
        pair, world = self.pair, self.pair.world
        if not pair.a.ikes:
            pair.a.wish("c")
            world.until(lambda: bool(pair.a.ikes), 200.0)
        # as many, and the same ones: each may have one that the other has given up
        spis = [lambda host=host: {sa.spi_i for sa in host.ikes} for host in (pair.a, pair.b)]  # type: ignore[misc]
        world.until(lambda: bool(pair.a.ikes) and spis[0]() == spis[1](), 600.0)
        world.settle()
        agree(pair.a, pair.b, len(pair.a.children))
        if not pair.a.children:
            pair.a.initiate()
            world.settle()
            agree(pair.a, pair.b, len(pair.a.children))
        if len({c.reqid for c in pair.a.children}) != len(pair.a.children):
            raise Violation(f"several CHILD_SAs of one reqid: {pair.a.children}")
        before = world.delivered
        world.run(IN_FLIGHT_S)
        if world.delivered == before:
            raise Violation("no traffic")

    def _end(self) -> None:
        pair, world, rng = self.pair, self.pair.world, self.rng
        self.over = True
        pair.a.keep.clear()
        world.link = BAD
        order = [pair.a, pair.b]
        rng.shuffle(order)
        for host in order:
            for child in host.children:
                if rng.random() < 0.5:
                    host.close_child(child)
            world.run(rng.random() * 0.1)
        for host in order:
            host.do(host.engine.stop)
            world.run(rng.random())
        world.until(lambda: not any(h.engine.sas for h in order), 600.0)
        world.run(IN_FLIGHT_S)
        for host in order:
            host.do(host.engine.stop)
        world.run(IN_FLIGHT_S)
        for host in order:
            leaks(host)


def run_seed(seed: int, further: Sequence[str] = (), rounds: Sequence[str] = ()) -> str:
    try:
        with unique_ivs():
            return Run(seed, further, rounds).go()
    except Exception as error:
        error.add_note(f"seed {seed}: IPSEC_SEEDS={seed}")
        raise


@pytest.mark.parametrize("seeds", chosen(), ids=lambda r: f"{r.start}-{r.stop - 1}")
def test_seed(seeds: range) -> None:
    for seed in seeds:
        run_seed(seed)


@pytest.mark.parametrize("seeds", [range(first, first + 50) for first in range(0, 300, 50)], ids=lambda r: str(r.start))
def test_seed_with_several_key_exchanges(seeds: range) -> None:
    """What ML-KEM answers is no function of the seed: it is among them now and then only."""
    for seed in seeds:
        run_seed(seed, (("ecp256",), ("ecp256", "x448"), ("mlkem768",))[seed % 3 if seed % 5 == 0 else seed % 2])


@pytest.mark.parametrize("seeds", [range(first, first + 50) for first in range(0, 300, 50)], ids=lambda r: str(r.start))
def test_seed_with_users_and_several_authentications(seeds: range) -> None:
    for seed in seeds:
        run_seed(seed, (), (("eap",), ("key", "eap"), ("eap", "key"), ("key", "key"))[seed % 4])


@pytest.mark.parametrize("seed", range(0, SEEDS, SEEDS // 10))
def test_same_seed_same_trace(seed: int) -> None:
    """C6: the run is a function of its seed."""
    assert run_seed(seed) == run_seed(seed)


def test_other_seed_other_trace() -> None:
    assert len({run_seed(seed) for seed in range(5)}) == 5


@pytest.mark.parametrize(
    "seed",
    [
        2385,  # a Delete of a CHILD_SA comes through an IKE_SA that has handed it to its successor
        3263,  # our Delete of a CHILD_SA is lost with the IKE_SA, and the CHILD_SA has gone to its successor
    ],
)
def test_seed_that_failed_once(seed: int) -> None:
    run_seed(seed)
