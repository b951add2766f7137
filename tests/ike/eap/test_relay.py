"""EAP through us to a server elsewhere: which packets go through, and what its verdict is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ipsec.errors import ParseError
from ipsec.ike.eap.method import EapError, EapSilentError
from ipsec.ike.eap.relay import EapAnswer, EapAnswerNeededError, EapRelay, Granted
from ipsec.ike.eap.server import IDENTITY_MAX
from ipsec.wire.eap import EapPacket
from ipsec.wire.iana import EapCode, EapType

QUESTION = EapPacket(EapCode.REQUEST, 9, EapType.GTC, b"?").emit()
REPLY = EapPacket(EapCode.RESPONSE, 9, EapType.GTC, b"!").emit()
SUCCESS, FAILURE = EapPacket(EapCode.SUCCESS, 9).emit(), EapPacket(EapCode.FAILURE, 9).emit()
MICROSOFT = 311


def identity(data: bytes = b"carol", identifier: int = 3, kind: int = EapType.IDENTITY, vendor: int = 0) -> bytes:
    return EapPacket(EapCode.RESPONSE, identifier, kind, data, vendor).emit()


class Run:
    """A conversation in which the peer is asked who it is."""

    def __init__(self) -> None:
        self.identities: list[bytes] = []
        self.relay = EapRelay(True, self.identities.append, b"moon", 3)
        assert self.relay.begin() == EapPacket(EapCode.REQUEST, 3, EapType.IDENTITY).emit()

    def ask(self, packet: bytes) -> tuple[bytes, bytes]:
        """Identity and packet that the server is asked about."""
        with pytest.raises(EapAnswerNeededError) as needed:
            self.relay.receive(packet)
        assert needed.value.server is self.relay
        return needed.value.identity, needed.value.packet

    def answer(self, packet: bytes, answer: EapAnswer) -> bytes | None:
        """What becomes of the same packet once the server has answered."""
        self.relay.answer = answer
        return self.relay.receive(packet)


def begun() -> Run:
    run = Run()
    assert run.ask(identity()) == (b"carol", identity())
    assert run.answer(identity(), EapAnswer(QUESTION, None)) == QUESTION
    return run


def test_up_to_success() -> None:
    run = begun()
    assert run.identities == [b"carol"]
    assert run.relay.method == EapType.GTC
    assert run.ask(REPLY) == (b"carol", REPLY)
    granted = Granted(b"carol", session_timeout=60)
    assert run.answer(REPLY, EapAnswer(SUCCESS, True, b"key", granted=granted)) is None
    assert (run.relay.msk, run.relay.granted) == (b"key", replace(granted, asked=b"carol"))
    assert run.relay.success() == SUCCESS


def test_each_packet_has_an_answer_of_its_own() -> None:
    """What the server has said once is not said again, least of all that it accepts the peer."""
    run = begun()
    assert run.answer(REPLY, EapAnswer(QUESTION, None)) == QUESTION
    run.ask(REPLY)
    assert run.answer(REPLY, EapAnswer(SUCCESS, True)) is None
    run.ask(REPLY)


@pytest.mark.parametrize(
    "packet",
    [
        identity(kind=EapType.GTC),
        identity(kind=EapType.NAK),
        identity(vendor=MICROSOFT),
        identity(bytes(IDENTITY_MAX + 1)),
        identity(identifier=4),
        EapPacket(EapCode.REQUEST, 3, EapType.IDENTITY, b"carol").emit(),
        SUCCESS,
        b"",
    ],
)
def test_what_is_no_identity_is_not_handed_on(packet: bytes) -> None:
    run = Run()
    with pytest.raises(ParseError):
        run.relay.receive(packet)
    assert run.identities == []
    assert run.ask(identity(bytes(IDENTITY_MAX)))[0] == bytes(IDENTITY_MAX)


@pytest.mark.parametrize("packet", [identity(identifier=3), identity(identifier=8), QUESTION, REPLY[:-1]])
def test_what_answers_nothing_is_not_handed_on(packet: bytes) -> None:
    """The server's own identifiers count (RFC 3748 section 4.1)."""
    run = begun()
    with pytest.raises(ParseError):
        run.relay.receive(packet)
    run.ask(REPLY)


@pytest.mark.parametrize(
    ("packet", "accepted", "last"),
    [
        (SUCCESS, True, SUCCESS),
        (FAILURE, True, SUCCESS),
        (QUESTION, True, SUCCESS),
        (None, True, SUCCESS),
        (b"\x03", True, SUCCESS),
        (FAILURE, False, FAILURE),
        (SUCCESS, False, FAILURE),
        (QUESTION, False, FAILURE),
        (None, False, FAILURE),
    ],
)
def test_the_peer_hears_the_verdict_and_nothing_else(packet: bytes | None, accepted: bool, last: bytes) -> None:
    """RFC 3579 section 2.6.3: whatever packet comes with it."""
    run = begun()
    if accepted:
        assert run.answer(REPLY, EapAnswer(packet, True)) is None
        assert run.relay.success() == last
        # whom the server accepts may still be none for us
        assert run.relay.failure() == FAILURE
        return
    with pytest.raises(EapError, match="the EAP server refuses the peer"):
        run.answer(REPLY, EapAnswer(packet, False))
    assert (run.relay.failure(), run.relay.msk) == (last, None)


def test_nobody_answers() -> None:
    with pytest.raises(EapSilentError, match="nobody is there"):
        begun().answer(REPLY, EapAnswer(None, False, reason="nobody is there", silent=True))


def test_acceptance_of_a_name() -> None:
    """That is no method: where we say the name for the peer, nobody has shown anything."""
    relay = EapRelay(False, lambda user: None, b"moon")
    with pytest.raises(EapAnswerNeededError):
        relay.begin()
    relay.answer = EapAnswer(SUCCESS, True)
    with pytest.raises(EapError, match="accepts the peer before any method"):
        relay.begin()
