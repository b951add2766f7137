"""EAP by way of RADIUS without sockets: what is asked, what answers mean, whom to ask when."""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address
from random import Random

import pytest

from ipsec.ike.eap.relay import EapAnswer
from ipsec.ike.radius.exchange import Caller, RadiusError, open_response
from ipsec.ike.radius.requests import DEAD_S, IDENTIFIERS, IDLE_S, WAITING_MAX, RadiusRequests
from ipsec.ike.radius.server import RadiusServer
from tests.ike.radius_server import (
    ACCEPT,
    CALLER,
    CHALLENGE,
    EAP,
    FAILURE,
    IDENTITY,
    PROXY_STATE,
    QUESTION,
    RECV,
    REJECT,
    SECRET,
    SEND,
    SERVER,
    STATE,
    SUCCESS,
    USER_NAME,
    VENDOR,
    Request,
    accept,
    answer,
    challenge,
    eap_attributes,
    keys,
    microsoft,
    mppe,
    read,
)

ANSWER_TO_QUESTION = b"\x02\x02\x00\x06\x04!"


class Run:
    """Conversations, and the network in between."""

    def __init__(self, *servers: RadiusServer, seed: int = 1) -> None:
        self.requests = RadiusRequests(servers or (SERVER,), Random(seed).randbytes)
        self.now = 100.0

    def ask(
        self, ticket: int = 1, packet: bytes = IDENTITY, identity: bytes = b"alice", caller: Caller = CALLER
    ) -> None:
        self.requests.ask(ticket, identity, packet, caller, self.now)

    def sent(self) -> list[tuple[int, int, bytes]]:
        return [tuple(one) for one in self.requests.datagrams_to_send()]

    def request(self) -> Request:
        """The only one that was sent."""
        ((_, _, data),) = self.sent()
        return read(data)

    def hear(self, data: bytes, server: int = 0, socket: int = 0) -> None:
        self.requests.receive(server, socket, data, self.now)

    def answers(self) -> list[tuple[int, EapAnswer]]:
        return list(iter(self.requests.next_answer, None))

    def answer(self) -> EapAnswer:
        ((_, found),) = self.answers()
        return found

    def wait(self) -> None:
        """Until the next timer, and what it does."""
        due = self.requests.next_timer()
        assert due is not None
        self.now = max(self.now, due)
        self.requests.handle_timer(self.now)

    def count(self, name: str, server: str = "one") -> int:
        return self.requests.counters[server][name]


def after_ask(make: Callable[[Request], bytes]) -> EapAnswer:
    """What an answer to a first request means."""
    run = Run()
    run.ask()
    run.hear(make(run.request()))
    return run.answer()


# -- what is asked


def test_what_a_request_says() -> None:
    run = Run()
    run.ask()
    request = run.request()
    assert dict(request.attributes[1:]) == {
        USER_NAME: b"alice",
        32: b"ipsecd",
        4: bytes((192, 0, 2, 1)),
        61: bytes((0, 0, 0, 5)),
        87: b"office",
        6: bytes((0, 0, 0, 2)),
        31: b"198.51.100.7[4500]",
        30: b"192.0.2.1[4500]",
        EAP: IDENTITY,
    }


def test_of_ipv6_and_without_a_name() -> None:
    run = Run(replace(SERVER, nas_identifier="gw"))
    caller = Caller(ip_address("2001:db8::7"), 500, ip_address("2001:db8::1"), 500)
    # RFC 3579 section 2.1: whoever says no name is known by where he is
    run.ask(identity=b"", packet=b"\x02\x01\x00\x05\x01", caller=caller)
    request = run.request()
    assert request.all(USER_NAME) == request.all(31) == [b"2001:db8::7[500]"]
    assert request.all(95) == [ip_address("2001:db8::1").packed]
    assert (request.all(4), request.all(87), request.all(32)) == ([], [], [b"gw"])


def test_a_connection_with_a_long_name() -> None:
    run = Run()
    run.ask(caller=replace(CALLER, connection="x" * 300))
    assert run.request().all(87) == [b"x" * 253]


def test_a_long_packet_of_the_peer_is_split_and_one_without_room_is_not_sent() -> None:
    run = Run()
    packet = struct.pack(">BBHB", 2, 1, 1500, 13) + bytes(1495)
    run.ask(packet=packet)
    request = run.request()
    assert [len(one) for one in request.all(EAP)] == [253] * 5 + [235]
    assert request.eap == packet
    for more in ({"packet": struct.pack(">BBHB", 2, 1, 4096, 13) + bytes(4091)}, {"identity": bytes(254)}):
        run.ask(2, **more)
        found = run.answer()
        assert (found.packet, found.accepted, "are possible" in found.reason) == (None, False, True)
        assert run.sent() == []


@pytest.mark.parametrize("packet", [b"", IDENTITY[:-1], QUESTION, SUCCESS, b"\x09\x01\x00\x04"])
def test_what_is_no_response_of_the_peer_is_not_handed_on(packet: bytes) -> None:
    run = Run()
    run.ask(packet=packet)
    assert (run.answer().accepted, run.sent()) == (False, [])


# -- what an answer means


def test_a_conversation_up_to_the_key() -> None:
    run = Run()
    run.ask()
    first = run.request()
    assert first.all(STATE) == []
    run.hear(challenge(first, b"one"))
    found = run.answer()
    assert (found.packet, found.accepted, found.msk) == (QUESTION, None, None)
    run.ask(packet=ANSWER_TO_QUESTION)
    second = run.request()
    assert (second.all(STATE), second.all(USER_NAME), second.eap) == ([b"one"], [b"alice"], ANSWER_TO_QUESTION)
    assert second.authenticator != first.authenticator
    run.hear(challenge(second, b"two"))
    assert run.answer().accepted is None
    run.ask(packet=ANSWER_TO_QUESTION)
    third = run.request()
    assert third.all(STATE) == [b"two"]
    run.hear(accept(third))
    found = run.answer()
    assert (found.packet, found.accepted) == (SUCCESS, True)
    assert found.msk == RECV + SEND + bytes(16)
    assert [run.count(one) for one in ("requests", "challenges", "accepts", "rejects")] == [3, 2, 1, 0]
    # what begins with that ticket now is another conversation
    run.ask()
    assert run.request().all(STATE) == []


def test_a_challenge_without_a_state_ends_the_one_before() -> None:
    run = Run()
    run.ask()
    run.hear(challenge(run.request()))
    run.ask(packet=ANSWER_TO_QUESTION)
    run.hear(answer(CHALLENGE, run.request(), *eap_attributes(QUESTION)))
    run.answers()
    run.ask(packet=ANSWER_TO_QUESTION)
    assert run.request().all(STATE) == []


def test_a_long_packet_of_the_server_is_joined() -> None:
    long = struct.pack(">BBHB", 1, 2, 1000, 13) + bytes(995)
    assert after_ask(lambda r: answer(CHALLENGE, r, *eap_attributes(long), (STATE, b"s"))).packet == long


def test_an_accept_without_keys() -> None:
    found = after_ask(lambda r: answer(ACCEPT, r, *eap_attributes(SUCCESS)))
    assert (found.accepted, found.msk) == (True, None)


def test_keys_of_64_octets_fill_the_msk() -> None:
    recv, send = bytes(range(32)), bytes(range(32, 64))
    found = after_ask(lambda r: answer(ACCEPT, r, *keys(r, recv, send), *eap_attributes(SUCCESS)))
    assert found.msk == recv + send


def test_what_an_accept_grants() -> None:
    v4, v6 = ip_address("10.3.0.9"), ip_address("2001:db8:3::9")
    found = after_ask(
        lambda r: accept(
            r,
            (1, b"Alice"),
            (6, bytes((0, 0, 0, 2))),
            (8, v4.packed),
            (168, v6.packed),
            (27, bytes((0, 0, 14, 16))),
            (11, b"staff"),
            (25, b"a"),
            (25, b"b"),
            microsoft(28, bytes((10, 0, 0, 1))),
            (169, v6.packed),
        )
    ).granted
    assert (found.user_name, found.framed, found.session_timeout) == (b"Alice", (v4, v6), 3600)
    assert (found.dns, found.filter_ids, found.classes) == ((ip_address("10.0.0.1"), v6), (b"staff",), (b"a", b"b"))


@pytest.mark.parametrize(
    "address", ["255.255.255.254", "255.255.255.255", "0.0.0.0", "127.0.0.1", "224.0.0.1", "::", "::1", "ff02::1"]
)
def test_an_address_that_no_host_has_is_none(address: str) -> None:
    """Two of them say that somebody else may choose (RFC 2865 section 5.8)."""
    one = ip_address(address)
    kind = 8 if one.version == 4 else 168
    assert after_ask(lambda r: accept(r, (kind, one.packed))).granted.framed == ()


@pytest.mark.parametrize(
    ("attribute", "why"),
    [
        ((8, bytes(3)), "IPv4 address of 3 octets"),
        ((168, bytes(4)), "IPv6 address of 4 octets"),
        ((27, bytes(3)), "Session-Timeout of 3 octets"),
        ((6, bytes((0, 0, 0, 6))), "Service-Type 6 instead of 2, Framed"),
        ((6, bytes((0, 0, 2))), "Service-Type 2 instead of 2, Framed"),
        ((VENDOR, struct.pack(">IBB", 311, 16, 0)), "attribute of 0 octets where 2 are left"),
        ((VENDOR, struct.pack(">IBB", 311, 16, 2)), "two keys MPPE_SEND_KEY"),
        ((VENDOR, struct.pack(">IBB", 311, 28, 2)), "IPv4 address of 0 octets"),
    ],
)
def test_an_accept_that_cannot_be_used_is_a_reject(attribute: tuple[int, bytes], why: str) -> None:
    found = after_ask(lambda r: accept(r, attribute))
    assert (found.accepted, found.packet, found.msk) == (False, None, None)
    assert why in found.reason


def test_two_names_are_a_reject() -> None:
    """Who is let in is not for whoever may put in another attribute."""
    found = after_ask(lambda r: accept(r, (USER_NAME, b"alice"), (USER_NAME, b"root")))
    assert (found.accepted, "2 attributes USER_NAME" in found.reason) == (False, True)


def test_a_key_for_one_direction_is_a_reject() -> None:
    found = after_ask(lambda r: answer(ACCEPT, r, microsoft(17, mppe(RECV, r)), *eap_attributes(SUCCESS)))
    assert (found.accepted, "a key for one direction only" in found.reason) == (False, True)


def test_the_code_decides_and_no_eap_packet_is_made_up() -> None:
    # RFC 3579 section 2.6.3
    found = after_ask(lambda r: answer(ACCEPT, r, *keys(r), *eap_attributes(FAILURE)))
    assert (found.accepted, found.packet) == (True, FAILURE)
    found = after_ask(lambda r: answer(REJECT, r, *eap_attributes(SUCCESS)))
    assert (found.accepted, found.packet) == (False, SUCCESS)
    found = after_ask(lambda r: answer(ACCEPT, r, *keys(r)))
    assert (found.accepted, found.packet) == (True, None)
    found = after_ask(lambda r: answer(ACCEPT, r, *keys(r), (EAP, SUCCESS[:-1])))
    assert (found.accepted, found.packet) == (True, None)


def test_a_reject_says_why() -> None:
    found = after_ask(lambda r: answer(REJECT, r, (18, b"come back \x1b later"), *eap_attributes(FAILURE)))
    assert (found.accepted, found.packet) == (False, FAILURE)
    assert found.reason == r"RADIUS server one (192.0.2.9:1812) rejects the peer: come back \x1b later"
    assert after_ask(lambda r: answer(REJECT, r)).packet is None
    # which is for our log, however much it is
    assert len(after_ask(lambda r: answer(REJECT, r, *[(18, b"x" * 253)] * 15)).reason) < 400


@pytest.mark.parametrize("eap", [[], eap_attributes(SUCCESS), eap_attributes(QUESTION[:-1]), eap_attributes(IDENTITY)])
def test_a_challenge_that_asks_nothing_is_a_reject(eap: list[tuple[int, bytes]]) -> None:
    assert after_ask(lambda r: answer(CHALLENGE, r, *eap, (STATE, b"s"))).accepted is False


def test_two_states_are_a_reject() -> None:
    found = after_ask(lambda r: answer(CHALLENGE, r, *eap_attributes(QUESTION), (STATE, b"s"), (STATE, b"t")))
    assert (found.accepted, "2 attributes STATE" in found.reason) == (False, True)


# -- what is dropped


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda r: answer(ACCEPT, r, mac=False), "unauthentic"),
        (lambda r: answer(ACCEPT, r, secret=b"another"), "unauthentic"),
        (lambda r: answer(ACCEPT, r._replace(authenticator=bytes(16))), "unauthentic"),
        (lambda r: answer(ACCEPT, r, (PROXY_STATE, b"collision")), "unexpected"),
        (lambda r: answer(5, r), "unexpected"),
        (lambda r: answer(1, r), "unexpected"),
        (lambda r: answer(ACCEPT, r, identifier=r.identifier ^ 1), "unexpected"),
        (lambda r: answer(ACCEPT, r)[:-1], "malformed"),
        (lambda r: bytes((ACCEPT, r.identifier, 0, 22)) + bytes(16) + b"\x4f\x00", "malformed"),
        (lambda r: bytes((ACCEPT, r.identifier)), "malformed"),
        (lambda r: b"", "unexpected"),
        (lambda r: b"\x02", "unexpected"),
    ],
)
def test_what_is_no_answer_is_counted_and_the_request_goes_on(make: Callable[[Request], bytes], reason: str) -> None:
    run = Run()
    run.ask()
    request = run.request()
    run.hear(make(request))
    assert run.answers() == []
    assert [name for name in ("malformed", "unauthentic", "unexpected") if run.count(name)] == [reason]
    run.hear(accept(request))
    assert run.answer().accepted is True


def test_an_answer_to_another_request() -> None:
    """It is looked up by its number, and looked at nevertheless: the number is part of what is authentic."""
    run = Run()
    run.ask()
    request = run.request()
    other = answer(ACCEPT, request, identifier=request.identifier ^ 1)
    with pytest.raises(RadiusError, match=f"no answer to request {request.identifier}"):
        open_response(other, SERVER, request.identifier, request.authenticator)


def test_10000_random_datagrams() -> None:
    run = Run()
    run.ask()
    request = run.request()
    rng = Random(7)
    for _ in range(10_000):
        body = rng.randbytes(rng.randrange(80))
        head = struct.pack(">BBH", rng.choice((2, 3, 11)), request.identifier, 20 + len(body)) + rng.randbytes(16)
        run.hear(head + body if rng.random() < 0.7 else rng.randbytes(rng.randrange(120)))
    assert run.answers() == []
    assert sum(run.count(name) for name in ("malformed", "unauthentic", "unexpected")) == 10_000
    assert run.count("unauthentic") > 10
    run.hear(accept(request))
    assert run.answer().accepted is True


def test_a_flood_of_them_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "ipsec")
    run = Run()
    run.ask()
    request = run.request()
    for _ in range(20):
        run.hear(answer(ACCEPT, request, secret=b"another"))
    (line,) = caplog.messages
    assert line.endswith(f"dropped, ACCESS_ACCEPT {request.identifier} is not made with our secret for our request")
    run.hear(challenge(request))
    run.ask(packet=ANSWER_TO_QUESTION)
    run.hear(answer(ACCEPT, run.request(), mac=False))
    assert caplog.messages[1].endswith("has no Message-Authenticator")


def test_an_answer_that_comes_twice_is_one() -> None:
    run = Run()
    run.ask()
    data = accept(run.request())
    run.hear(data)
    run.hear(data)
    assert [found.accepted for _, found in run.answers()] == [True]
    assert run.count("unexpected") == 1


def test_nothing_secret_is_in_a_repr() -> None:
    found = after_ask(accept)
    shown = repr(found) + repr(SERVER) + str(SERVER)
    assert found.msk is not None
    for secret in (found.msk, SECRET, SEND):
        assert repr(secret)[2:-1] not in shown
    assert "msk" not in shown


# -- when it is asked again, and who


def test_it_is_sent_again_as_it_was_and_at_last_given_up() -> None:
    run = Run()
    run.ask()
    ((_, _, first),) = run.sent()
    times = []
    for _ in range(4):
        run.wait()
        times.append(round(run.now - 100, 3))
        assert run.sent() == [(0, 0, first)]
    assert times == [2.0, 4.8, 8.72, 14.208]
    run.wait()
    assert round(run.now - 100, 3) == 21.891
    found = run.answer()
    # RFC 3579 section 2.1: no Failure is made up
    assert (found.packet, found.accepted, found.reason) == (None, False, "no RADIUS server answers")
    assert (run.sent(), run.requests.next_timer()) == ([], None)
    assert [run.count(one) for one in ("requests", "retransmissions", "timeouts")] == [1, 4, 1]


def test_an_answer_ends_the_timer() -> None:
    run = Run()
    run.ask()
    request = run.request()
    run.wait()
    run.hear(accept(request))
    run.sent()
    while run.requests.next_timer() is not None:
        run.wait()
    assert (run.sent(), len(run.answers())) == ([], 1)


TWO = (replace(SERVER, name="low"), replace(SERVER, name="high", preference=1, secret=b"of the other one"))


def until_other(run: Run, server: int) -> bytes:
    """The first datagram to a server."""
    while True:
        for index, _, data in run.sent():
            if index == server:
                return data
        run.wait()


def test_where_the_preferred_server_is_silent_the_next_one_is_asked() -> None:
    run = Run(*TWO)
    run.ask()
    ((index, _, _),) = run.sent()
    assert index == 1
    request = read(until_other(run, 0))
    run.hear(challenge(request))
    assert run.answer().accepted is None
    assert run.count("timeouts", "high") == 1
    # the conversation stays where it is, whoever is back
    run.now += DEAD_S + 1
    run.ask(packet=ANSWER_TO_QUESTION)
    assert [one[0] for one in run.sent()] == [0]
    # others ask the preferred one again
    run.ask(2)
    assert [one[0] for one in run.sent()] == [1]


def test_a_server_that_was_silent_is_asked_last_for_a_while() -> None:
    run = Run(*TWO)
    run.ask()
    until_other(run, 0)
    run.ask(2)
    assert [one[0] for one in run.sent()] == [0]
    run.now += DEAD_S
    # then one finds out, and the others do not wait for that
    for ticket, server in ((3, 1), (4, 0), (5, 0)):
        run.ask(ticket)
        assert [one[0] for one in run.sent()] == [server]
    run.now += DEAD_S
    run.ask(6)
    assert [index for index, _, data in run.sent() if index == 1]


def test_a_server_that_was_silent_and_answers_again_is_asked_by_all() -> None:
    run = Run(*TWO)
    run.ask()
    until_other(run, 0)
    run.now += DEAD_S
    run.ask(2)
    data = until_other(run, 1)
    run.hear(challenge(read(data, TWO[1].secret), secret=TWO[1].secret), server=1)
    run.sent()
    run.ask(3)
    assert [one[0] for one in run.sent()] == [1]


def test_an_answer_makes_a_server_alive() -> None:
    run = Run(*TWO)
    run.ask(1)
    run.sent()
    run.now += 1
    run.ask(2)
    ((index, _, data),) = run.sent()
    assert index == 1
    until_other(run, 0)
    run.ask(3)
    assert [one[0] for one in run.sent()] == [0]
    run.hear(challenge(read(data, TWO[1].secret), secret=TWO[1].secret), server=1)
    assert [(ticket, found.accepted) for ticket, found in run.answers()] == [(2, None)]
    run.ask(4)
    assert [one[0] for one in run.sent()] == [1]


def test_what_is_no_answer_makes_no_server_alive() -> None:
    """Anybody could send it."""
    run = Run(*TWO)
    run.ask(1)
    run.sent()
    run.now += 1
    run.ask(2)
    ((_, _, data),) = run.sent()
    until_other(run, 0)
    run.hear(challenge(read(data, TWO[1].secret)), server=1)
    assert (run.answers(), run.count("unauthentic", "high")) == ([], 1)
    assert "high" in run.requests.silent
    run.ask(3)
    assert [one[0] for one in run.sent()] == [0]


def test_if_all_are_silent_all_are_asked_once() -> None:
    run = Run(*TWO)
    run.ask()
    asked = []
    while not (answers := run.answers()):
        asked += [one[0] for one in run.sent()]
        run.wait()
    assert asked == [1] * 5 + [0] * 5
    assert answers[0][1].accepted is False
    run.ask(2)
    assert [one[0] for one in run.sent()] == [1]


def test_a_server_that_has_a_state_cannot_be_replaced() -> None:
    run = Run(*TWO)
    run.ask()
    ((_, _, data),) = run.sent()
    run.hear(challenge(read(data, TWO[1].secret), secret=TWO[1].secret), server=1)
    run.answers()
    run.ask(packet=ANSWER_TO_QUESTION)
    while not (answers := run.answers()):
        assert {one[0] for one in run.sent()} <= {1}
        run.wait()
    assert answers[0][1].accepted is False


def test_where_nobody_listens_the_next_one_is_asked_at_once() -> None:
    run = Run(*TWO)
    run.ask()
    run.sent()
    run.requests.refused(1, 0, run.now)
    assert [one[0] for one in run.sent()] == [0]
    # there is no other one left: what the network says may be wrong
    run.requests.refused(0, 0, run.now)
    assert (run.sent(), run.answers()) == ([], [])
    assert [run.count("refused", name) for name in ("low", "high")] == [1, 1]


def test_where_nobody_listens_any_more_a_conversation_waits() -> None:
    """No other server knows it, and this one may be back."""
    run = Run(*TWO)
    run.ask()
    ((_, _, data),) = run.sent()
    run.hear(challenge(read(data, TWO[1].secret), secret=TWO[1].secret), server=1)
    run.answers()
    run.ask(packet=ANSWER_TO_QUESTION)
    ((_, _, first),) = run.sent()
    run.requests.refused(1, 0, run.now)
    assert (run.sent(), run.answers()) == ([], [])
    run.wait()
    assert run.sent() == [(1, 0, first)]


def test_without_a_server_nobody_is_accepted() -> None:
    requests = RadiusRequests((), Random(1).randbytes)
    requests.ask(1, b"alice", IDENTITY, CALLER, 0.0)
    found = requests.next_answer()
    assert found is not None
    assert (found[1].accepted, found[1].reason) == (False, "there is no RADIUS server")


# -- identifiers


def test_more_than_there_are_identifiers_wait_for_one() -> None:
    run = Run(replace(SERVER, sockets=2))
    for ticket in range(2 * IDENTIFIERS + 3):
        run.ask(ticket)
    sent = run.sent()
    assert len({(socket, data[1]) for _, socket, data in sent}) == len(sent) == 2 * IDENTIFIERS
    assert len({data[4:20] for _, _, data in sent}) == len(sent)
    # of those that wait, one is forgotten
    run.requests.forget(2 * IDENTIFIERS, run.now)
    _, socket, data = sent[5]
    run.hear(accept(read(data)), socket=socket)
    ((_, again, next_data),) = run.sent()
    assert (again, next_data[1]) == (socket, data[1])
    run.hear(accept(read(data)), socket=socket)
    assert run.count("unauthentic") == 1
    run.hear(accept(read(next_data)), socket=socket)
    assert [ticket for ticket, _ in run.answers()] == [5, 2 * IDENTIFIERS + 1]


def test_too_many_that_wait_are_told() -> None:
    run = Run()
    for ticket in range(IDENTIFIERS + WAITING_MAX):
        run.ask(ticket)
    assert (len(run.sent()), run.answers()) == (IDENTIFIERS, [])
    run.ask(-1)
    assert (run.answer().accepted, run.count("busy")) == (False, 1)


def test_an_identifier_rests_before_it_is_used_again() -> None:
    run = Run()
    seen = []
    for _ in range(IDENTIFIERS + 2):
        run.ask()
        request = run.request()
        seen.append(request.identifier)
        run.hear(accept(request))
    assert seen == [*range(IDENTIFIERS), 0, 1]


def test_what_is_forgotten_is_not_answered_and_not_sent_again() -> None:
    run = Run()
    run.ask()
    request = run.request()
    run.requests.forget(1, run.now)
    run.hear(accept(request))
    run.wait()
    assert (run.answers(), run.sent(), run.count("unexpected")) == ([], [], 1)
    # nor is an answer that nobody has taken yet
    run.ask()
    run.hear(accept(run.request()))
    run.requests.forget(1, run.now)
    assert run.answers() == []
    run.requests.forget(99, run.now)


def test_a_second_packet_before_the_answer_is_an_error() -> None:
    run = Run()
    run.ask()
    with pytest.raises(ValueError, match="ticket 1 waits for an answer"):
        run.ask()
    run.hear(accept(run.request()))
    assert run.answer().accepted is True


def test_peers_that_say_nothing_more_are_forgotten() -> None:
    run = Run()
    run.ask(1)
    run.hear(challenge(run.request()))
    run.answers()
    run.now += IDLE_S
    run.ask(2)
    run.hear(challenge(run.request()))
    run.ask(1, packet=ANSWER_TO_QUESTION)
    assert run.request().all(STATE) == []


def test_who_goes_on_keeps_nobody_else_from_being_forgotten() -> None:
    run = Run()
    for ticket in (1, 2):
        run.ask(ticket)
        run.hear(challenge(run.request()))
    run.now += IDLE_S - 1
    run.ask(1, packet=ANSWER_TO_QUESTION)
    run.hear(challenge(run.request(), b"another"))
    run.now += 1
    run.ask(3)
    run.sent()
    for ticket, state in ((2, []), (1, [b"another"])):
        run.ask(ticket, packet=ANSWER_TO_QUESTION)
        assert run.request().all(STATE) == state
