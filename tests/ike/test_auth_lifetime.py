"""AUTH_LIFETIME (RFC 4478): who has to authenticate anew, and who says when."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from ipsec.crypto.identity import parse_identity, parse_pattern
from ipsec.ike.config import AuthClass, LocalAuth, PoolConfig, RemoteAuth
from ipsec.ike.credentials import EapSecret
from ipsec.ike.events import Failed
from ipsec.ike.failure import Cause
from ipsec.ike.sa import IkeSa, Request
from ipsec.wire.iana import ExchangeType, NotifyType
from ipsec.wire.payloads import NotifyPayload, Payload
from tests.pair import Pair

SECRETS = (EapSecret(b"of moon", (parse_pattern("moon"),)),)


def eap(**b: Any) -> Pair:
    """moon proves by EAP who it is."""
    pair = Pair(over_time=20.0)
    first, second = pair.a.connections["c"], pair.b.connections["c"]
    first = replace(first, local=LocalAuth(AuthClass.EAP, first.local.id))
    second = replace(second, remote=RemoteAuth(AuthClass.EAP, parse_pattern("moon")), **b)
    pair.a.load(first, eap=SECRETS)
    pair.b.load(second, eap=SECRETS)
    return pair.up()


class Say(Request):
    """INFORMATIONAL with these."""

    exchange = ExchangeType.INFORMATIONAL

    def __init__(self, *payloads: Payload) -> None:
        self.payloads = list(payloads)

    def build(self, sa: IkeSa, now: float) -> list[Payload]:
        return self.payloads

    def answered(self, sa: IkeSa, payloads: list[Payload], now: float) -> None:
        pass


def lifetime(data: bytes) -> NotifyPayload:
    return NotifyPayload(NotifyType.AUTH_LIFETIME, data)


def anew(pair: Pair, old: IkeSa) -> bool:
    """Whether there is one IKE_SA, another one than before, which moon has begun."""
    pair.world.settle()
    pair.agree()
    return pair.a.ike is not old and pair.a.ike.original_initiator


@pytest.mark.parametrize("rekeyed", [False, True])
def test_the_initiator_does_it_in_time(rekeyed: bool) -> None:
    pair = eap(reauth_time=100.0)
    if rekeyed:
        pair.b.do(pair.b.engine.rekey_ike_sa, pair.b.ike)
        pair.world.settle()
    old = pair.a.ike
    pair.world.run(75)
    assert pair.a.ike is old
    pair.world.run(30)
    assert anew(pair, old)
    # and again, without an end
    pair.world.run(1000)
    assert Cause.EXPIRED not in [event.problem.failure.cause for event in pair.b.events(Failed)]
    pair.finish()


def test_the_initiator_does_all_its_rounds_in_time() -> None:
    """RFC 4739: as responder it would prove itself once, so that we do not ask it."""
    mine, theirs = LocalAuth(AuthClass.PSK, parse_identity("moon")), RemoteAuth(AuthClass.PSK, parse_pattern("moon"))
    pair = Pair(over_time=20.0, a={"local": mine, "local_rounds": (mine,)},
                b={"remote": theirs, "remote_rounds": (theirs,), "reauth_time": 100.0}).up()  # fmt: skip
    old = pair.a.ike
    pair.b.do(pair.b.engine.reauthenticate, pair.b.ike)
    pair.world.run(20)
    assert pair.a.ike is old
    pair.world.run(85)
    assert anew(pair, old)
    pair.finish()


def test_the_responder_cannot_do_it_by_command() -> None:
    pair = eap()
    old = pair.a.ike
    pair.b.do(pair.b.engine.reauthenticate, pair.b.ike)
    pair.world.run(30)
    assert pair.a.ike is old
    pair.finish()


def test_an_initiator_that_does_not_do_it_must_not_stay() -> None:
    pair = eap(reauth_time=100.0)
    pair.a.load(*pair.a.connections.values(), eap=())
    pair.world.run(200)
    assert not pair.b.ikes
    assert Cause.EXPIRED in [event.problem.failure.cause for event in pair.b.events(Failed)]


def test_who_has_an_address_of_ours_is_told() -> None:
    pair = Pair(a={"vips": (ip_address("0.0.0.0"),)}, b={"pools": ("p",), "reauth_time": 100.0, "over_time": 20.0})
    pair.b.pools = [PoolConfig("p", ip_address("10.3.0.1"), ip_address("10.3.0.9"))]
    pair.b.load(*pair.b.connections.values())
    pair.up()
    old = pair.a.ike
    pair.world.run(105)
    assert anew(pair, old)
    pair.world.close()


def test_whom_we_can_authenticate_ourselves_is_not_told() -> None:
    pair = Pair(b={"reauth_time": 100.0}).up()
    assert not pair.a.ike.reauth_by
    pair.finish()


def test_the_sooner_of_both_counts() -> None:
    pair = Pair(a={"reauth_time": 50.0}, over_time=20.0).up()
    pair.b.do(pair.b.ike.ask, Say(lifetime(bytes((0, 0, 0, 100)))))
    pair.world.settle()
    old = pair.a.ike
    assert old.reauth_by > pair.world.now + 70
    pair.world.run(55)
    assert anew(pair, old)
    pair.finish()


def test_it_may_be_said_later() -> None:
    """Section 3: in INFORMATIONAL as well. Of an initiator nobody takes it."""
    pair = eap()
    old = pair.a.ike
    pair.a.do(pair.a.ike.ask, Say(lifetime(bytes((0, 0, 0, 50)))))
    pair.world.run(60)
    assert pair.a.ike is old
    assert not pair.b.ike.reauth_by
    pair.b.do(pair.b.ike.ask, Say(lifetime(bytes((0, 0, 0, 50)))))
    pair.world.run(55)
    assert anew(pair, old)
    pair.finish()


@pytest.mark.parametrize(("seconds", "tenth"), [(100, 10.0), (3600, 30.0)])
def test_not_all_peers_come_at_the_last_moment(seconds: int, tenth: float) -> None:
    """A tenth of the time before, up to twice that, and no more than a minute."""
    ahead = set()
    for seed in range(12):
        pair = Pair(seed).up()
        pair.b.do(pair.b.ike.ask, Say(lifetime(seconds.to_bytes(4, "big"))))
        begun = pair.world.now
        pair.world.settle()
        ahead.add(begun + seconds - pair.a.ike.reauth_by)
    assert all(tenth - 1 < one < 2 * tenth for one in ahead), ahead
    assert len(ahead) == 12


@pytest.mark.parametrize("data", [b"", b"\0\0\1", b"\0\0\0\0\1"])
def test_malformed(data: bytes) -> None:
    pair = eap()
    pair.b.do(pair.b.ike.ask, Say(lifetime(data)))
    pair.world.settle()
    assert not pair.a.ikes
    assert [event.problem.failure.cause for event in pair.a.events(Failed)] == [Cause.MALFORMED]


@pytest.mark.parametrize("seconds", [0, 1, 5])
def test_a_peer_that_would_have_us_do_nothing_else(seconds: int) -> None:
    pair = eap()
    old = pair.a.ike
    pair.b.do(pair.b.ike.ask, Say(lifetime(seconds.to_bytes(4, "big"))))
    pair.world.run(9)
    assert pair.a.ike is old
    pair.world.run(5)
    assert anew(pair, old)


def test_more_seconds_than_there_is_room_for() -> None:
    """Which is how ``reauth_time`` may be written: the most is said that can be."""
    pair = eap(reauth_time=5e9)
    assert pair.a.ike.reauth_by == pytest.approx(pair.world.now + 0xFFFFFFFF, abs=120)
    pair.finish()
