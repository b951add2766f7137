"""The server of EAP by itself: what it proposes, and which packets it takes for answers to that."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from ipsec.errors import ParseError
from ipsec.ike.eap.gtc import GtcServer
from ipsec.ike.eap.md5 import Md5Server
from ipsec.ike.eap.method import EapError, ServerMethod
from ipsec.ike.eap.peer import ROUNDS_MAX
from ipsec.ike.eap.server import IDENTITY_MAX, EapServer
from ipsec.wire.eap import EapPacket, parse_eap_packet
from ipsec.wire.iana import EapCode, EapType

PASSWORD = b"fO0-b4r"
FIRST = 0xFE
MICROSOFT = 311
OURS = (EapType.MD5, EapType.GTC)


class Endless(ServerMethod):
    """Has always another question."""

    type = EapType.MD5

    def begin(self, identifier: int) -> bytes:
        return b"?"

    def take(self, response_to: int, data: bytes, identifier: int) -> bytes | None:
        return b"?"


def make(kind: int) -> ServerMethod:
    return GtcServer(PASSWORD) if kind == EapType.GTC else Md5Server(PASSWORD, bytes, b"sun")


class Run:
    """A conversation that has begun. ``last`` is the identifier of the request that waits for an answer."""

    def __init__(self, methods: Sequence[int] = OURS, *, asks: bool = True, endless: bool = False) -> None:
        self.identities: list[bytes] = []
        self.server = EapServer(asks, self.identities.append, lambda: methods,
                                lambda kind: Endless() if endless else make(kind), FIRST)  # fmt: skip
        self.asked = parse_eap_packet(self.server.begin())

    def say(self, kind: int, data: bytes = b"", vendor: int = 0, later: int = 0) -> EapPacket | None:
        """What it asks then, ``later``: answering a request that comes so much later; None: it is satisfied."""
        identifier = (self.asked.identifier + later) & 0xFF
        request = self.server.receive(EapPacket(EapCode.RESPONSE, identifier, kind, data, vendor).emit())
        if request is None:
            return None
        self.asked = parse_eap_packet(request)
        return self.asked


def test_up_to_success() -> None:
    """Each request has another identifier, beyond the last octet too, and what ends it has that of the last one."""
    run = Run((EapType.GTC,))
    assert (run.asked.type, run.asked.identifier) == (EapType.IDENTITY, FIRST)
    asked = run.say(EapType.IDENTITY, b"carol")
    assert asked is not None
    assert (asked.type, asked.identifier) == (EapType.GTC, 0xFF)
    assert run.identities == [b"carol"]
    assert run.say(EapType.GTC, PASSWORD) is None
    assert run.server.success() == EapPacket(EapCode.SUCCESS, 0xFF).emit()
    assert run.server.failure() == EapPacket(EapCode.FAILURE, 0xFF).emit()
    assert Run((EapType.GTC,), asks=False).asked.identifier == 0xFF


@pytest.mark.parametrize("later", [-1, 1, 128])
def test_answers_to_another_request(later: int) -> None:
    """Section 4.1: an answer is to the request that has its identifier."""
    run = Run((EapType.GTC,))
    with pytest.raises(ParseError, match="was due"):
        run.say(EapType.IDENTITY, b"carol", later=later)
    assert run.identities == []
    run.say(EapType.IDENTITY, b"carol")
    with pytest.raises(ParseError, match="was due"):
        run.say(EapType.GTC, PASSWORD, later=later)
    assert run.say(EapType.GTC, PASSWORD) is None


@pytest.mark.parametrize("code", [EapCode.REQUEST, EapCode.SUCCESS, EapCode.FAILURE])
def test_nobody_but_a_peer_answers(code: EapCode) -> None:
    run = Run()
    with pytest.raises(ParseError, match="was due"):
        run.server.receive(EapPacket(code, FIRST, EapType.IDENTITY, b"carol").emit())
    assert run.identities == []


@pytest.mark.parametrize(
    ("kind", "data", "vendor"),
    [
        (EapType.NAK, b"\x06", 0),
        (EapType.GTC, PASSWORD, 0),
        (EapType.IDENTITY, b"carol", MICROSOFT),
        (EapType.IDENTITY, bytes(IDENTITY_MAX + 1), 0),
    ],
)
def test_what_is_no_identity(kind: int, data: bytes, vendor: int) -> None:
    run = Run()
    with pytest.raises(ParseError, match="an identity was due"):
        run.say(kind, data, vendor)
    assert run.identities == []
    run.say(EapType.IDENTITY, bytes(IDENTITY_MAX))
    assert run.identities == [bytes(IDENTITY_MAX)]


@pytest.mark.parametrize(("kind", "vendor"), [(EapType.GTC, 0), (EapType.IDENTITY, 0), (EapType.MD5, MICROSOFT)])
def test_another_type_than_was_asked_for(kind: int, vendor: int) -> None:
    run = Run(asks=False)
    with pytest.raises(ParseError, match="MD5 was due"):
        run.say(kind, PASSWORD, vendor)
    assert run.identities == []


def test_another_method_that_the_peer_wants() -> None:
    """Of ours, and none that it has refused already (section 5.3.1)."""
    run = Run(asks=False)
    assert run.asked.type == EapType.MD5
    asked = run.say(EapType.NAK, bytes((EapType.TLS, EapType.GTC)))
    assert asked is not None
    assert asked.type == EapType.GTC
    with pytest.raises(EapError, match="does not take GTC, it wants MD5"):
        run.say(EapType.NAK, bytes((EapType.MD5,)))


@pytest.mark.parametrize("wanted", [b"", b"\0", bytes((EapType.TLS,)), bytes((EapType.MD5,))])
def test_no_method_that_both_have(wanted: bytes) -> None:
    run = Run(asks=False)
    with pytest.raises(EapError, match="the peer does not take MD5"):
        run.say(EapType.NAK, wanted)


def test_a_method_that_has_begun_goes_on() -> None:
    """Whoever has answered it has agreed to it."""
    run = Run((EapType.MD5, EapType.GTC), asks=False, endless=True)
    run.say(EapType.MD5)
    with pytest.raises(ParseError, match="MD5 was due"):
        run.say(EapType.NAK, bytes((EapType.GTC,)))


def test_without_any_method() -> None:
    with pytest.raises(EapError, match="no EAP method is left that we have; ours: none"):
        Run((), asks=False)


def test_a_peer_that_never_ends() -> None:
    run = Run((EapType.MD5,), asks=False, endless=True)
    for _ in range(ROUNDS_MAX - 1):
        run.say(EapType.MD5)
    with pytest.raises(EapError, match=f"more than {ROUNDS_MAX}"):
        run.say(EapType.MD5)
