"""Failures as values: both ends remember the cause and what differed, until what failed has come up."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Any

import pytest

from ipsec.crypto.identity import parse_identity, parse_pattern
from ipsec.crypto.proposals import parse_proposals
from ipsec.ike.config import AuthClass, LocalAuth, RemoteAuth, SelectorTemplate, Unique
from ipsec.ike.credentials import EapSecret
from ipsec.ike.events import ChildDown, ChildNotMade, ChildUp, Failed, IkeDown
from ipsec.ike.failure import KEPT_MAX, STRANGERS_MAX, TEXT_MAX, Cause, Failure, Problem, Problems, bounded, texts
from ipsec.wire.iana import ExchangeType, Protocol
from ipsec.wire.ike import FLAG_RESPONSE
from tests.pair import A, B, Pair, connection
from tests.sim.host import SimHost
from tests.sim.link import Link

OTHER_IKE = parse_proposals(["aes256-sha384-ecp384"], Protocol.IKE)
OTHER_ESP = parse_proposals(["aes256-sha256"], Protocol.ESP)
ELSEWHERE = SelectorTemplate((ip_address("10.9.0.0"), ip_address("10.9.255.255")))


def problem(host: SimHost, name: str = "c") -> Problem:
    """The one problem of a host."""
    found = host.engine.problems.of(name)
    assert len(found) == 1, found
    return found[0]


@pytest.fixture
def failing(request: pytest.FixtureRequest) -> Pair:
    pair = Pair(**request.param)
    pair.a.initiate()
    pair.world.run(400)
    return pair


def case(more: dict[str, Any], name: str) -> Any:
    return pytest.param(more, id=name)


def test_a_first_message_that_comes_again_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    """The initiator does not trust our refusal, which nobody has authenticated, and asks once more; then it may begin
    anew, which is."""
    caplog.set_level(logging.WARNING, "ipsec")
    pair = Pair(b={"proposals": OTHER_IKE})
    for attempt in (1, 2):
        pair.a.initiate()
        pair.world.run(60)
        assert pair.b.engine.counters.total("ike-init-in-req") == 2 * attempt
        refusals = [line for line in caplog.messages if line.startswith(f"IKE_SA_INIT from {A}: NO_PROPOSAL_CHOSEN")]
        assert (len(refusals), problem(pair.b).count) == (attempt, attempt)


@pytest.mark.parametrize("failing", [case({"b": {"proposals": OTHER_IKE}}, "ike")], indirect=True)
def test_ike_proposals(failing: Pair) -> None:
    ours, theirs = problem(failing.a), problem(failing.b)
    assert (ours.failure.cause, ours.failure.by_peer, ours.initiator, ours.peer) == (
        Cause.IKE_PROPOSALS, True, True, B,
    )  # fmt: skip
    assert ours.failure.reason == f"{B} answers NO_PROPOSAL_CHOSEN"
    assert (theirs.failure.cause, theirs.failure.by_peer, theirs.initiator, theirs.peer) == (
        Cause.IKE_PROPOSALS, False, False, A,
    )  # fmt: skip
    # what the initiator knows of its own offer, and the responder of both
    assert ours.failure.ours.proposals == theirs.failure.theirs.proposals != ()
    assert "AES_GCM_16" in ours.failure.ours.proposals[0]
    assert "ECP_384" in theirs.failure.ours.proposals[0]
    assert not ours.failure.theirs.proposals


@pytest.mark.parametrize(
    ("more", "says"),
    [
        pytest.param({"child": {"esp_proposals": OTHER_ESP}}, "we offered ESP:AES_GCM_16_128/NO_EXT_SEQ", id="ESP"),
        pytest.param({"child": {"local_ts": (ELSEWHERE,)}}, "we offered 10.1.0.0/16 === 10.2.0.0/16", id="ts"),
        pytest.param({"pools": ()}, "", id="address"),
    ],
)
def test_the_log_has_what_was_refused(more: dict[str, Any], says: str, caplog: pytest.LogCaptureFixture) -> None:
    """And not all of the offer, which with the default proposals is a page."""
    caplog.set_level(logging.WARNING, "ipsec")
    pair = Pair(a={} if says else {"vips": (ip_address("0.0.0.0"),)}, b=more)
    pair.a.initiate()
    pair.world.run(60)
    (line,) = [line for line in caplog.messages if "child net: " in line and "the peer" in line]
    assert line.endswith(f"(the peer refuses){'; ' if says else ''}{says}")


@pytest.mark.parametrize("failing", [case({"b": {"child": {"esp_proposals": OTHER_ESP}}}, "child")], indirect=True)
def test_child_proposals(failing: Pair) -> None:
    ours, theirs = problem(failing.a).failure, problem(failing.b).failure
    assert (ours.cause, ours.child, ours.by_peer) == (Cause.CHILD_PROPOSALS, "net", True)
    assert (theirs.cause, theirs.child, theirs.by_peer) == (Cause.CHILD_PROPOSALS, "net", False)
    assert "AES_CBC_256" in theirs.ours.proposals[0]
    assert "AES_GCM_16_128" in theirs.theirs.proposals[0]
    (event,) = failing.a.events(ChildNotMade)
    assert event.reason == ours.reason
    assert [one.problem.failure for one in failing.a.events(Failed)] == [ours]


@pytest.mark.parametrize("failing", [case({"b": {"child": {"local_ts": (ELSEWHERE,)}}}, "ts")], indirect=True)
def test_selectors(failing: Pair) -> None:
    """Each end sees its own side as the local one."""
    ours, theirs = problem(failing.a).failure, problem(failing.b).failure
    assert (ours.cause, theirs.cause) == (Cause.SELECTORS, Cause.SELECTORS)
    assert ours.ours.local_ts == ("10.1.0.0/16",)
    assert theirs.ours.local_ts == ("10.9.0.0/16",)
    assert (theirs.theirs.local_ts, theirs.theirs.remote_ts) == (("10.2.0.0/16",), ("10.1.0.0/16",))


def test_a_secret_that_differs() -> None:
    pair = Pair()
    pair.b.load(connection(B, A, "sun", "moon"), secret=b"another")
    pair.a.initiate()
    pair.world.run(60)
    ours, theirs = problem(pair.a).failure, problem(pair.b).failure
    assert (ours.cause, ours.by_peer) == (Cause.LOCAL_AUTH, True)
    assert (theirs.cause, theirs.by_peer) == (Cause.PEER_AUTH, False)
    assert (theirs.ours.identity, theirs.theirs.identity) == ("moon", "moon")
    for text in (repr(problem(pair.a)), repr(problem(pair.b))):
        assert "another" not in text
        assert "nobody guesses" not in text


def test_the_responder_wants_somebody_else() -> None:
    pair = Pair()
    pair.b.load(connection(B, A, "sun", "carol"))
    pair.a.initiate()
    pair.world.run(60)
    failure = problem(pair.b).failure
    assert (failure.cause, failure.ours.identity, failure.theirs.identity) == (Cause.PEER_ID, "carol", "moon")


def test_the_initiator_wants_somebody_else() -> None:
    pair = Pair()
    pair.a.load(connection(A, B, "moon", "*un"))
    pair.b.load(connection(B, A, "carol", "moon"))
    pair.a.initiate()
    pair.world.run(60)
    failure = problem(pair.a).failure
    assert (failure.cause, failure.ours.identity, failure.theirs.identity) == (Cause.PEER_ID, "*un", "carol")


def test_nobody_answers() -> None:
    pair = Pair(link=Link(loss=1.0))
    pair.a.initiate()
    pair.world.run(2000)
    assert problem(pair.a).failure == Failure(Cause.NO_ANSWER, "no answer", by_peer=True)
    assert [event.reason for event in pair.a.events(IkeDown)] == ["no answer"]


def test_the_second_port_is_closed() -> None:
    """A firewall that knows UDP 500 alone: the peer is there, and cannot be reached all the same."""
    pair = Pair()
    # everything behind the first message goes to the second port
    pair.world.filter = lambda host, data: data if data[18] == ExchangeType.IKE_SA_INIT else None
    pair.a.initiate()
    pair.world.run(2000)
    why = "no answer to IKE_AUTH on UDP 4500, though one came to IKE_SA_INIT on UDP 500"
    assert problem(pair.a).failure == Failure(Cause.NO_ANSWER, why, by_peer=True)


def test_a_gateway_that_falls_silent_over_a_password() -> None:
    """As OpenIKED 7.2 does."""
    wrong, right = (EapSecret(word, (parse_pattern("moon"),)) for word in (b"wrong", b"right"))
    local = LocalAuth(AuthClass.EAP, parse_identity("moon"))
    pair = Pair(a={"local": local}, b={"remote": RemoteAuth(AuthClass.EAP, parse_pattern("moon"))})
    for host, secret in ((pair.a, wrong), (pair.b, right)):
        host.load(*host.connections.values(), eap=[secret])
    # answered are IKE_SA_INIT and the first request of IKE_AUTH
    pair.world.filter = lambda host, data: None if data[19] & FLAG_RESPONSE and data[23] > 1 else data
    pair.a.initiate()
    pair.world.run(2000)
    why = "no answer in the midst of IKE_AUTH: some peers have none for a user or password that is wrong"
    assert problem(pair.a).failure == Failure(Cause.NO_ANSWER, why, by_peer=True)


def test_a_dead_peer_is_a_problem_until_it_is_back() -> None:
    pair = Pair(dpd_delay=10.0).up()
    assert not pair.a.engine.problems.of("c")
    good, pair.world.link = pair.world.link, Link(loss=1.0)
    pair.world.run(700)
    found = problem(pair.a)
    assert (found.failure.cause, found.over) == (Cause.NO_ANSWER, False)
    pair.world.link = good
    pair.a.initiate()
    pair.world.run(30)
    assert problem(pair.a) == replace(found, over=True)


def test_what_we_close_is_no_problem_and_what_the_peer_closes_is() -> None:
    pair = Pair().up()
    pair.a.do(pair.a.engine.terminate_ike, pair.a.ike)
    pair.world.settle()
    assert not pair.a.engine.problems.of("c")
    assert problem(pair.b).failure.cause is Cause.CLOSED


def test_unique_keep() -> None:
    pair = Pair(unique=Unique.KEEP).up()
    second = pair.world.host("again", ip_address("192.0.2.9"))
    second.load(connection(ip_address("192.0.2.9"), B, "moon", "sun", unique=Unique.NEVER))
    pair.b.load(connection(B, "%any", "sun", "moon", unique=Unique.KEEP))
    second.initiate()
    pair.world.run(60)
    assert problem(pair.b).failure.cause is Cause.UNIQUE


def test_unique_keep_is_not_for_what_is_being_closed() -> None:
    """The peer has not answered to that, and may have begun anew elsewhere."""
    pair = Pair(unique=Unique.KEEP).up()
    second = pair.world.host("again", ip_address("192.0.2.9"))
    second.load(connection(ip_address("192.0.2.9"), B, "moon", "sun", unique=Unique.NEVER))
    pair.b.load(connection(B, "%any", "sun", "moon", unique=Unique.KEEP))
    pair.world.link = replace(pair.world.link, loss=1.0)
    pair.b.do(pair.b.engine.terminate_ike, pair.b.ike)
    pair.world.run(0.1)
    pair.world.link = replace(pair.world.link, loss=0.0)
    second.initiate()
    pair.world.settle()
    assert second.ikes
    assert not pair.b.events(Failed)


def test_strangers_are_kept_apart_and_few() -> None:
    pair = Pair()
    pair.b.load()
    for _ in range(STRANGERS_MAX + 5):
        pair.a.initiate()
        pair.world.run(20)
    book = pair.b.engine.problems
    assert len(book) == 0
    (only,) = book.strangers
    assert only.failure.cause is Cause.NO_CONNECTION
    assert only.count == book.counts["", Cause.NO_CONNECTION] >= STRANGERS_MAX + 5
    for number in range(STRANGERS_MAX + 5):
        book.note(_problem("", reason=str(number)))
    assert len(book.strangers) == STRANGERS_MAX
    assert book.note(_problem("", reason=str(number))).count == 2
    assert only not in book.strangers


def test_a_stranger_does_not_hide_what_we_began() -> None:
    """Anybody can send an IKE_SA_INIT from the peer's address."""
    pair = Pair(b={"proposals": OTHER_IKE})
    pair.b.initiate()
    pair.a.initiate()
    pair.world.run(60)
    assert {one.initiator for one in pair.b.engine.problems.of("c")} == {True, False}


def _problem(name: str, child: str = "", reason: str = "r") -> Problem:
    return Problem(name, Failure(Cause.REFUSED, reason, child), None, True, datetime(2026, 1, 1, tzinfo=UTC))


def test_the_book_counts_the_same_and_forgets_names_that_are_gone() -> None:
    book = Problems()
    book.note(_problem("a"))
    assert book.note(_problem("a")).count == 2
    assert book.note(_problem("a", reason="another")).count == 1
    book.note(_problem("a", "x"))
    book.note(_problem("b", "y"))
    book.came_up("a", "x")
    assert [one.over for one in book.of("a")] == [False, True]
    assert book.note(_problem("a", "x")).count == 1
    book.keep([("a", ""), ("a", "z")])
    assert [(one.connection, one.failure.child) for one in book] == [("a", "")]
    assert set(book.counts) == {("a", Cause.REFUSED)}


def test_texts_are_bounded() -> None:
    assert len(bounded("x" * 10_000)) == TEXT_MAX + 3
    found = texts("y" * 1000 for _ in range(1000))
    assert len(found) == KEPT_MAX + 1
    assert max(map(len, found)) == TEXT_MAX + 3


@pytest.mark.parametrize("who", ["a", "b"])
@pytest.mark.parametrize("starter", ["a", "b"])
@pytest.mark.parametrize("rekeying", [False, True])
def test_what_cannot_be_installed_does_not_count_as_up(who: str, starter: str, rekeying: bool) -> None:
    """Whoever hears that a CHILD_SA is up hears that it is down, once, and nothing is left of it."""
    pair = Pair().up() if rekeying else Pair()
    host, first = getattr(pair, who), getattr(pair, starter)
    host._install = lambda event: host.engine.child_failed(event.child, "no room", pair.world.now)
    if rekeying:
        first.do(first.engine.rekey_child, first.child)
    else:
        first.initiate()
    pair.world.settle()
    assert [str(child) for child in host.children] == []
    assert not host.up
    assert not host.reserved
    ups, downs = host.events(ChildUp), host.events(ChildDown)
    assert len(downs) == len([up for up in ups if up.replaces is None]) == 1
    pair.world.close()
