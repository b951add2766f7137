"""What comes between the first message of IKE_AUTH with EAP, or with several rounds, and the last."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from ipsec.crypto.identity import parse_identity, parse_pattern
from ipsec.ike import eap_auth
from ipsec.ike.config import IkeSettings, LocalAuth, RemoteAuth
from ipsec.ike.events import Failed, IkeUp, Initiate
from ipsec.ike.failure import Cause
from ipsec.ike.redirect import redirect
from tests.ike.test_eap import (
    ANY,
    KEY,
    KEY_THERE,
    SECRETS,
    USER,
    USER_THERE,
    client,
    in_rounds,
    make,
    refused,
    server,
    with_tls,
)
from tests.pair import B, Pair
from tests.sim.host import SimHost

CAROL = parse_identity("carol")


def after(monkeypatch: pytest.MonkeyPatch, host: SimHost, messages: int, do: Callable[[], None]) -> None:
    """Do something once a host has sent so many datagrams."""
    send: Callable[..., None] = host.engine.send
    left = [messages]

    def sent(*datagram: Any) -> None:
        send(*datagram)
        left[0] -= 1
        if not left[0]:
            do()

    monkeypatch.setattr(host.engine, "send", sent)


# -- initiator: the answers stop, and it begins again


def goes_silent(monkeypatch: pytest.MonkeyPatch, pair: Pair, messages: int) -> None:
    """sun's datagrams are lost, but for so many, until moon begins again."""
    send: Callable[..., None] = pair.b.engine.send
    restart: Callable[..., None] = pair.a.engine.restart
    left = [messages]

    def sent(*datagram: Any) -> None:
        left[0] -= 1
        if left[0] >= 0:
            send(*datagram)

    def again(*arguments: Any) -> None:
        left[0] = 1000
        restart(*arguments)

    monkeypatch.setattr(pair.b.engine, "send", sent)
    monkeypatch.setattr(pair.a.engine, "restart", again)


@pytest.mark.parametrize("messages", range(1, 6))
@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        pytest.param((USER,), (USER_THERE,), id="EAP"),
        pytest.param((KEY, USER), (KEY_THERE, USER_THERE), id="key, EAP"),
        pytest.param((USER, KEY), (USER_THERE, KEY_THERE), id="EAP, key"),
        pytest.param((), (), id="alone"),
    ],
)
def test_keyingtries(
    monkeypatch: pytest.MonkeyPatch, mine: Sequence[LocalAuth], theirs: Sequence[RemoteAuth], messages: int
) -> None:
    """It begins with the first round, and with nothing that the peer has said before."""
    pair = in_rounds(mine, theirs) if mine else with_tls(alone=True)
    pair.a.connections["c"] = replace(pair.a.connections["c"], keyingtries=2)
    pair.a.engine.settings = IkeSettings(retransmit_tries=1, retransmit_timeout=1.0)
    goes_silent(monkeypatch, pair, messages)
    pair.a.initiate()
    pair.world.run(60)
    assert pair.a.events(IkeUp)
    assert pair.a.ike.tries_left == 1
    # what sun has of the first try is gone by now
    pair.finish()


# -- responder: what is loaded changes


@pytest.mark.parametrize("messages", [2, 3, 4, 5])
def test_a_connection_that_is_gone_lets_nobody_in(monkeypatch: pytest.MonkeyPatch, messages: int) -> None:
    """Since EAP began with it."""
    pair = make(client(eap_id=CAROL), server(eap_id=ANY))
    engine = pair.b.engine
    after(monkeypatch, pair.b, messages, lambda: engine.load([], engine.credentials))
    refused(pair, Cause.LOCAL_AUTH, Cause.PEER_ID)


def test_a_connection_that_has_changed_lets_nobody_in(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = in_rounds((KEY, USER), (KEY_THERE, USER_THERE))
    other = replace(pair.b.connections["c"], ppk_required=True)
    after(monkeypatch, pair.b, 5, lambda: pair.b.load(other, eap=SECRETS))
    _, there = refused(pair, Cause.LOCAL_AUTH, Cause.PEER_ID)
    assert "connection c was unloaded or changed meanwhile" in there


def test_an_eap_identity_chooses_none_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the one that EAP began with is still there."""
    pair = make(client(eap_id=CAROL), server(eap_id=parse_pattern("dave")))
    first = pair.b.connections["c"]
    second = replace(first, name="d", remote=replace(first.remote, eap_id=parse_pattern("carol")))
    pair.b.load(first, second, eap=SECRETS)
    after(monkeypatch, pair.b, 2, lambda: pair.b.engine.load([first], pair.b.engine.credentials))
    _, there = refused(pair, Cause.LOCAL_AUTH, Cause.PEER_ID)
    assert "no connection has eap_id carol" in there


# -- initiator: it is sent elsewhere


ELSEWHERE = ip_address("192.0.2.99")


def sent_elsewhere(monkeypatch: pytest.MonkeyPatch, pair: Pair) -> Pair:
    """sun says so in place of the first request of EAP (RFC 5685 section 6)."""
    monkeypatch.setattr(eap_auth, "_first", lambda sa, eap, own, now: [*own, redirect(ELSEWHERE)])
    pair.a.initiate()
    pair.world.run(1)
    return pair


def test_redirect_before_eap(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = sent_elsewhere(monkeypatch, make(client(eap_id=CAROL), server(eap_id=ANY)))
    (again,) = pair.a.events(Initiate)
    assert (again.child, again.remote, again.redirected_from) == ("net", ELSEWHERE, B)
    assert not pair.a.events(Failed)


@pytest.mark.parametrize("alone", [False, True])
def test_nobody_sends_us_elsewhere_who_has_not_proved_himself(monkeypatch: pytest.MonkeyPatch, alone: bool) -> None:
    """Nor, alone, before EAP has shown who he is (RFC 5998)."""
    pair = make(client(eap_id=CAROL), server(eap_id=ANY)) if not alone else with_tls(alone=True)
    if not alone:
        pair.a.load(*pair.a.connections.values(), secret=b"not that of sun", eap=SECRETS)
    sent_elsewhere(monkeypatch, pair)
    assert not pair.a.events(Initiate)
    assert pair.a.events(Failed)
