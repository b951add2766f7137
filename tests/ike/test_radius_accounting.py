"""Accounting by RADIUS without sockets (RFC 2866): what a record says, and which answers are taken for a receipt."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import replace
from ipaddress import ip_address
from random import Random

import pytest

from ipsec.ike.failure import Cause
from ipsec.ike.radius.accounting import (
    AccountingExchange,
    Session,
    Status,
    TerminateCause,
    Usage,
    record,
    terminate_cause,
)
from ipsec.ike.radius.requests import RadiusRequests
from ipsec.ike.radius.server import RadiusServer
from tests.ike.radius_server import CALLER, MAC, SECRET, SERVER, Attributes, Request, answer, attributes_of

REQUEST, RESPONSE = 4, 5
FOUR, SIX = ip_address("10.3.0.9"), ip_address("2001:db8:3::9")
SESSION = Session("run-7", b"carol", CALLER, (FOUR, SIX), (b"first", b"second"))
WALL = 1_700_000_000


def read(octets: bytes, secret: bytes = SECRET) -> Request:
    """An Accounting-Request whose authenticator is right."""
    code, identifier, length = struct.unpack(">BBH", octets[:4])
    assert (code, length) == (REQUEST, len(octets))
    assert hashlib.md5(octets[:4] + bytes(16) + octets[20:] + secret).digest() == octets[4:20]
    return Request(identifier, octets[4:20], attributes_of(octets[20:]))


class Run:
    """One record on its way to servers."""

    def __init__(self, attributes: Attributes, *servers: RadiusServer) -> None:
        self.requests = RadiusRequests(servers or (SERVER,), Random(1).randbytes)
        self.now = 100.0
        self.requests.begin(1, AccountingExchange(tuple(attributes)), self.now)

    def sent(self) -> list[tuple[int, Request]]:
        return [(one.server, read(one.data)) for one in self.requests.datagrams_to_send()]

    def hear(self, data: bytes, server: int = 0) -> bool:
        """Whether that is taken for a receipt."""
        self.requests.receive(server, 0, data, self.now)
        found = self.requests.next_answer()
        return found is not None and found[1].accepted is True


def number(value: int) -> bytes:
    return value.to_bytes(4, "big")


def test_a_first_record() -> None:
    ((_, request),) = Run(list(record(SESSION, Status.START, WALL))).sent()
    assert request.attributes == [
        (32, b"ipsecd"),
        (40, number(1)),
        (44, b"run-7"),
        (45, number(1)),
        (55, number(WALL)),
        (1, b"carol"),
        (4, bytes((192, 0, 2, 1))),
        (61, number(5)),
        (87, b"office"),
        (6, number(2)),
        (31, b"198.51.100.7[4500]"),
        (30, b"192.0.2.1[4500]"),
        (8, FOUR.packed),
        (168, SIX.packed),
        (25, b"first"),
        (25, b"second"),
    ]


def test_a_last_record_of_more_than_32_bits() -> None:
    usage = Usage((3 << 32) + 5, 7, 11, (1 << 32) + 13)
    ((_, request),) = Run(list(record(SESSION, Status.STOP, WALL, usage, 60, TerminateCause.LOST_SERVICE))).sent()
    found = {kind: request.all(kind) for kind in (40, 42, 52, 43, 53, 47, 48, 46, 49)}
    assert found == {
        40: [number(2)],
        # input is what comes from the user
        42: [number(5)],
        52: [number(3)],
        43: [number(11)],
        53: [],
        47: [number(7)],
        48: [number(13)],
        46: [number(60)],
        49: [number(3)],
    }


@pytest.mark.parametrize("mac", [False, True])
def test_a_receipt(mac: bool) -> None:
    run = Run(list(record(SESSION, Status.START, WALL)))
    ((_, request),) = run.sent()
    assert run.hear(answer(RESPONSE, request, mac=mac))
    assert run.requests.counters["one"]["accepts"] == 1


def test_what_is_no_receipt() -> None:
    run = Run(list(record(SESSION, Status.START, WALL)))
    ((_, request),) = run.sent()
    good = answer(RESPONSE, request, mac=False)
    wrong_mac = bytearray(answer(RESPONSE, request))
    assert wrong_mac[20] == MAC
    wrong_mac[25] ^= 1
    # what covers it is made anew, as whoever knows how to make MD5 collide could
    head = bytes(wrong_mac[:4])
    wrong_mac[4:20] = hashlib.md5(head + request.authenticator + bytes(wrong_mac[20:]) + SECRET).digest()
    for data in (
        answer(2, request, mac=False),
        answer(RESPONSE, request, mac=False, secret=b"another"),
        answer(RESPONSE, replace_authenticator(request), mac=False),
        answer(RESPONSE, request, mac=False, identifier=request.identifier + 1),
        bytes(wrong_mac),
        good[:-1],
        b"",
    ):
        assert not run.hear(data)
    assert run.requests.counters["one"]["unauthentic"] == 3
    assert run.hear(good)


def replace_authenticator(request: Request) -> Request:
    return request._replace(authenticator=bytes(16))


def test_another_server_has_it_where_one_is_silent() -> None:
    servers = replace(SERVER, retransmit_tries=1), replace(SERVER, name="two", secret=b"of two")
    run = Run(list(record(SESSION, Status.START, WALL)), *servers)
    first = run.requests.datagrams_to_send()
    while not any(server for server, *_ in first):
        due = run.requests.next_timer()
        assert due is not None
        run.now = due
        run.requests.handle_timer(due)
        first = run.requests.datagrams_to_send()
    request = read(first[-1].data, b"of two")
    assert run.hear(answer(RESPONSE, request, mac=False, secret=b"of two"), 1)
    assert list(run.requests.silent) == ["one"]


def test_too_much_to_say_is_an_error_and_not_an_exception() -> None:
    session = replace(SESSION, classes=(bytes(253),) * 17)
    run = Run(list(record(session, Status.START, WALL)))
    assert not run.sent()
    found = run.requests.next_answer()
    assert found is not None
    assert found[1].accepted is False
    assert "4096 are possible" in found[1].reason


@pytest.mark.parametrize(
    ("cause", "over", "stopping", "expected"),
    [
        (Cause.CLOSED, False, False, TerminateCause.USER_REQUEST),
        (Cause.NO_ANSWER, False, False, TerminateCause.LOST_SERVICE),
        (None, True, False, TerminateCause.SESSION_TIMEOUT),
        (Cause.NO_ANSWER, True, False, TerminateCause.SESSION_TIMEOUT),
        (Cause.EXPIRED, False, False, TerminateCause.SESSION_TIMEOUT),
        (None, False, False, TerminateCause.ADMIN_RESET),
        (None, False, True, TerminateCause.ADMIN_REBOOT),
        (Cause.CLOSED, False, True, TerminateCause.ADMIN_REBOOT),
    ],
)
def test_why_it_has_ended(cause: Cause | None, over: bool, stopping: bool, expected: TerminateCause) -> None:
    assert terminate_cause(cause, over=over, stopping=stopping) is expected
