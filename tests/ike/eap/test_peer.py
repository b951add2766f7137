"""The peer of EAP by itself: what it agrees to, what it shows to whom, when it believes in success."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from ipsec.errors import ParseError
from ipsec.ike.eap.gtc import GtcPeer
from ipsec.ike.eap.method import EapError, EapRefusedError, PeerMethod
from ipsec.ike.eap.peer import ROUNDS_MAX, EapPeer
from ipsec.wire.eap import EapPacket, parse_eap_packet
from ipsec.wire.iana import EapCode, EapType

PASSWORD = b"fO0-b4r"
MICROSOFT = 311


class Endless(PeerMethod):
    """Is never done, whatever it is asked."""

    type = EapType.MD5

    def respond(self, identifier: int, data: bytes) -> bytes:
        return b"and"


def peer(*kinds: EapType, make: Callable[[int], PeerMethod] = lambda kind: GtcPeer(PASSWORD)) -> EapPeer:
    return EapPeer(b"carol", kinds or (EapType.GTC,), make)


def request(kind: int, data: bytes = b"?", identifier: int = 5, vendor: int = 0) -> bytes:
    return EapPacket(EapCode.REQUEST, identifier, kind, data, vendor).emit()


def said(one: EapPeer, data: bytes) -> EapPacket:
    answer = one.receive(data)
    assert answer is not None
    return parse_eap_packet(answer)


def test_who_it_is_and_what_it_knows() -> None:
    one = peer()
    assert said(one, request(EapType.IDENTITY)) == EapPacket(EapCode.RESPONSE, 5, EapType.IDENTITY, b"carol")
    assert said(one, request(EapType.GTC)) == EapPacket(EapCode.RESPONSE, 5, EapType.GTC, PASSWORD)
    assert one.receive(EapPacket(EapCode.SUCCESS, 5).emit()) is None
    assert one.msk is None


@pytest.mark.parametrize("kind", [EapType.GTC, EapType.MD5, EapType.TLS, 99])
def test_a_method_that_we_do_not_agree_to_is_not_begun(kind: int) -> None:
    """Whatever we have for it: a server that asks for less than we are willing to show gets a Nak (section 5.3.1)."""
    made: list[int] = []

    def make(kind: int) -> PeerMethod:
        made.append(kind)
        return GtcPeer(PASSWORD)

    one = peer(EapType.MSCHAPV2, make=make)
    answer = said(one, request(kind))
    assert (answer.type, answer.data) == (EapType.NAK, bytes((EapType.MSCHAPV2,)))
    assert not made


def test_types_of_vendors_are_others() -> None:
    """Number 6 of a vendor is not GTC (section 5.7)."""
    one = peer()
    assert said(one, request(EapType.GTC, vendor=MICROSOFT)).type == EapType.NAK
    assert said(one, request(EapType.IDENTITY, vendor=MICROSOFT)).type == EapType.NAK
    said(one, request(EapType.GTC))
    with pytest.raises(EapError, match="goes from GTC to type 6 of vendor 311"):
        one.receive(request(EapType.GTC, vendor=MICROSOFT))


@pytest.mark.parametrize("kind", [EapType.IDENTITY, EapType.NAK, EapType.GTC])
def test_one_method_in_a_conversation(kind: EapType) -> None:
    """RFC 3748 section 2.1."""
    one = peer(EapType.MD5, EapType.GTC, make=lambda kind: Endless())
    said(one, request(EapType.MD5))
    with pytest.raises(EapError, match="the server goes from MD5 to"):
        one.receive(request(kind))


def test_notifications_are_answered_at_any_time(caplog: pytest.LogCaptureFixture) -> None:
    """Section 5.2: and are for whoever reads the log, where they take no more room than they should."""
    caplog.set_level(logging.INFO, "ipsec")
    one = peer(EapType.MD5, make=lambda kind: Endless())
    notification = request(EapType.NOTIFICATION, b"\x1b[31mexpires tomorrow" + b"x" * 5000)
    for before in (lambda: None, lambda: said(one, request(EapType.MD5))):
        caplog.clear()
        before()
        assert said(one, notification) == EapPacket(EapCode.RESPONSE, 5, EapType.NOTIFICATION)
        (line,) = caplog.messages
        assert "expires tomorrow" in line
        assert "\x1b" not in line
        assert len(line) < 400


@pytest.mark.parametrize("begun", [False, True])
def test_success_before_the_end_is_none(begun: bool) -> None:
    """CVE-2021-45079."""
    one = peer(EapType.MD5, make=lambda kind: Endless())
    if begun:
        said(one, request(EapType.MD5))
    with pytest.raises(EapError, match="before the method was done"):
        one.receive(EapPacket(EapCode.SUCCESS, 5).emit())


def test_failure_is_failure_after_all() -> None:
    one = peer()
    said(one, request(EapType.GTC))
    with pytest.raises(EapRefusedError, match="EAP-Failure after GTC"):
        one.receive(EapPacket(EapCode.FAILURE, 5).emit())


def test_what_we_gave_up_for_is_the_reason() -> None:
    """Not that the server says Failure to that."""
    method = Endless()
    one = peer(EapType.MD5, make=lambda kind: method)
    said(one, request(EapType.MD5))
    method.gave_up = EapError("it is not the server that we want")
    with pytest.raises(EapError, match="it is not the server that we want") as caught:
        one.receive(EapPacket(EapCode.FAILURE, 5).emit())
    assert not isinstance(caught.value, EapRefusedError)


@pytest.mark.parametrize("kind", [EapType.IDENTITY, EapType.NOTIFICATION, EapType.MD5, EapType.TLS])
def test_a_server_that_never_ends(kind: EapType) -> None:
    one = peer(EapType.MD5, make=lambda kind: Endless())
    for _ in range(ROUNDS_MAX):
        one.receive(request(kind))
    with pytest.raises(EapError, match=f"more than {ROUNDS_MAX}"):
        one.receive(request(kind))


@pytest.mark.parametrize("code", [EapCode.RESPONSE, 9])
def test_nobody_but_a_server_asks(code: int) -> None:
    one = peer()
    packet = bytes((code,)) + request(EapType.GTC)[1:]
    with pytest.raises(ParseError):
        one.receive(packet)
    assert one.method is None
