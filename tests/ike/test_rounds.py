"""Several rounds of authentication (RFC 4739) where one end could do more than the other: no proof is left out unsaid.

What rounds there are, and that each is held to, is in test_eap.py.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from ipsec.crypto.identity import parse_identity, parse_pattern
from ipsec.ike import eap_auth
from ipsec.ike.config import AuthClass, Connection, LocalAuth, RemoteAuth
from ipsec.ike.credentials import Authority, Credentials, Ppk, PrivateKey, SharedSecret
from ipsec.ike.eap.md5 import Md5Peer
from ipsec.ike.eap.mschapv2 import Mschapv2Peer
from ipsec.ike.events import Failed, IkeUp
from ipsec.ike.failure import Cause
from ipsec.wire.iana import EapType, NotifyType, PayloadType
from ipsec.wire.payloads import IdPayload, NotifyPayload, Payload
from tests.ike.test_eap import (
    EC384_KEY,
    EC_KEY,
    KEY,
    KEY_THERE,
    MOON,
    ROOT,
    SECRETS,
    SUN,
    USER,
    USER_THERE,
    client,
    eap_id,
    in_rounds,
    make,
    refused,
    server,
)
from tests.pair import Pair
from tests.sim.host import SimHost

DAVE = LocalAuth(AuthClass.PSK, parse_identity("dave"))
DAVE_THERE = RemoteAuth(AuthClass.PSK, parse_pattern("dave"))
BY_TLS = {"eap_type": EapType.TLS}


def reasons(host: SimHost) -> list[str]:
    return [event.problem.failure.reason for event in host.events(Failed)]


def credentials(who: str, **more: Any) -> Credentials:
    own, key = (MOON, EC_KEY) if who == "moon" else (SUN, EC384_KEY)
    names = tuple(map(parse_pattern, ("moon", "sun")))
    return Credentials(secrets=[SharedSecret(b"a secret that nobody guesses", names)], private_keys=[PrivateKey(key)],
                       certificates=[own], authorities=[Authority(ROOT.certificate)], eap_secrets=SECRETS,
                       **more)  # fmt: skip


def load(host: SimHost, connection: Connection, known: Credentials) -> None:
    host.connections = {connection.name: connection}
    host.engine.load([connection], known, host.pools)


# -- initiator


@pytest.mark.parametrize(
    ("remote", "rounds", "why"),
    [
        (RemoteAuth(AuthClass.PSK), (RemoteAuth(AuthClass.PUBKEY),), "2 rounds of remote.auth"),
        (RemoteAuth(AuthClass.PSK), (USER_THERE, KEY_THERE), "3 rounds of remote.auth"),
        (RemoteAuth(AuthClass.EAP), (), "remote.auth = eap makes the peer the user"),
    ],
)
def test_who_is_to_see_more_than_a_responder_shows_does_not_begin(
    remote: RemoteAuth, rounds: tuple[RemoteAuth, ...], why: str
) -> None:
    """Who we are is not said either."""
    pair = Pair(a={"remote": remote, "remote_rounds": rounds})
    here, _ = refused(pair, Cause.REFUSED, Cause.NOT_IN_TIME)
    assert why in here
    assert pair.b.engine.counters.total("ike-auth-in-req") == 0


def test_a_responder_that_goes_on_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 4739 lets it; what was asked for would come with a later answer."""
    another: list[Payload] = [NotifyPayload(NotifyType.ANOTHER_AUTH_FOLLOWS)]
    answer: Callable[..., Any] = eap_auth.handle_auth
    monkeypatch.setattr(eap_auth, "handle_auth", lambda *args: [*answer(*args), *another])
    pair = Pair()
    pair.a.initiate()
    pair.world.settle()
    assert not pair.a.events(IkeUp)
    assert [event.problem.failure.cause for event in pair.a.events(Failed)] == [Cause.REFUSED]
    assert "the peer goes on proving who it is (RFC 4739)" in reasons(pair.a)[0]


def test_each_round_has_its_own_key() -> None:
    """Whoever has shown us one key in the first round is shown another one by somebody else in the second."""
    pair = in_rounds((KEY, DAVE), (KEY_THERE, DAVE_THERE))
    names = [tuple(map(parse_pattern, pairs)) for pairs in (("moon", "sun"), ("dave", "sun"))]
    secrets = [SharedSecret(secret, owners) for secret, owners in zip((b"of moon", b"of dave"), names, strict=True)]
    for host in (pair.a, pair.b):
        load(host, host.connections["c"], Credentials(secrets=secrets))
    pair.up().finish()
    pair = in_rounds((KEY, DAVE), (KEY_THERE, DAVE_THERE))
    load(pair.a, pair.a.connections["c"], Credentials(secrets=[secrets[0], SharedSecret(b"wrong", names[1])]))
    load(pair.b, pair.b.connections["c"], Credentials(secrets=secrets))
    _, there = refused(pair, Cause.LOCAL_AUTH, Cause.PEER_AUTH)
    assert "the pre-shared keys differ" in there


@pytest.mark.parametrize("send_certreq", [True, False])
def test_a_certificate_in_the_second_round_is_asked_for(send_certreq: bool) -> None:
    """The first one is by a preshared key, and the responder has nothing of moon's."""
    by_certificate = LocalAuth(AuthClass.PUBKEY, parse_identity("moon"), certs=(MOON,))
    pair = in_rounds((KEY, by_certificate), (KEY_THERE, RemoteAuth(AuthClass.PUBKEY, parse_pattern("moon"))))
    load(pair.a, pair.a.connections["c"], credentials("moon"))
    load(pair.b, replace(pair.b.connections["c"], send_certreq=send_certreq), credentials("sun"))
    if send_certreq:
        pair.up().finish()
    else:
        _, there = refused(pair, Cause.LOCAL_AUTH, Cause.CERTIFICATE)
        assert "no certificate or public key of moon: it sent none" in there


# -- responder


def test_a_responder_shows_the_first_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "ipsec.ike")
    pair = Pair(b={"local_rounds": (DAVE,)}).up()
    assert "we show the first of 2 rounds of local.auth" in caplog.text
    pair.finish()
    caplog.clear()
    in_rounds((KEY, USER), (KEY_THERE, USER_THERE)).up().finish()
    assert "we show the first" not in caplog.text


def test_nothing_comes_up_between_two_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """An initiator that stops after the first is not there for anybody, and is gone in time."""
    pair = in_rounds((KEY, USER), (KEY_THERE, USER_THERE))
    monkeypatch.setattr(pair.a.engine, "next_round", lambda sa, now: None)
    pair.a.initiate()
    pair.world.run(5)
    (sa,) = pair.b.engine.sas.values()
    assert not sa.established
    assert not sa.children
    pair.world.run(60)
    assert not pair.b.engine.sas
    assert not pair.b.events(IkeUp)


def test_somebody_else_in_the_second_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """AUTH of the second round is over its own IDi."""
    whom: Callable[..., Any] = eap_auth.handle_round

    def pose(sa: Any, payloads: list[Payload], *rest: Any) -> Any:
        dave = IdPayload(PayloadType.IDI, DAVE.id.type, DAVE.id.data) if DAVE.id else None
        return whom(sa, [dave if isinstance(one, IdPayload) and dave else one for one in payloads], *rest)

    monkeypatch.setattr(eap_auth, "handle_round", pose)
    _, there = refused(in_rounds((KEY, KEY), (KEY_THERE, RemoteAuth(AuthClass.PSK, parse_pattern("%any")))),
                       Cause.LOCAL_AUTH, Cause.PEER_AUTH)  # fmt: skip
    assert "the pre-shared keys differ" in there


def test_another_name_in_a_round_by_eap() -> None:
    """Who has a password, and the key of a machine, is not let in on a machine of another name."""
    elsewhere = replace(USER, id=parse_identity("dave"))
    _, there = refused(in_rounds((KEY, elsewhere), (KEY_THERE, USER_THERE)), Cause.LOCAL_AUTH, Cause.PEER_ID)
    assert "the peer is dave, we want moon" in there


# -- with a postquantum preshared key (RFC 8784), which is in the first and in all after it


WHICH = parse_pattern("shared.example.org")
HAS = (Ppk(b"\xa5" * 32, (WHICH,), "ppk-1"),)
LACKS = (Ppk(b"\xa5" * 32, (parse_pattern("another"),), "ppk-1"),)


@pytest.mark.parametrize("must", [False, True])
@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        pytest.param((KEY, DAVE), (KEY_THERE, DAVE_THERE), id="key, key"),
        pytest.param((KEY, USER), (KEY_THERE, USER_THERE), id="key, EAP"),
        pytest.param((USER, KEY), (USER_THERE, KEY_THERE), id="EAP, key"),
    ],
)
def test_ppk(mine: tuple[LocalAuth, ...], theirs: tuple[RemoteAuth, ...], must: bool) -> None:
    def quantum(known: tuple[Ppk, ...]) -> Pair:
        pair = in_rounds(mine, theirs)
        for host, ppks in ((pair.a, HAS), (pair.b, known)):
            own = replace(host.connections["c"], ppk_id=WHICH, ppk_required=must)
            host.load(own, ppks=ppks, eap=SECRETS)
        return pair

    pair = quantum(HAS).up()
    assert pair.a.ike.ppk
    assert pair.b.ike.ppk
    pair.finish()
    if must:
        refused(quantum(LACKS), Cause.LOCAL_AUTH, Cause.PEER_AUTH)
    else:
        pair = quantum(LACKS).up()
        assert not pair.a.ike.ppk
        pair.finish()


# -- EAP alone (RFC 5998)


def alone(mine: LocalAuth, theirs: RemoteAuth, **more: Any) -> Pair:
    """EAP is all that either shows in the first round. ``more``: a and b as with ``make``."""
    here = {"remote": RemoteAuth(AuthClass.EAP, parse_pattern("sun")), **more.get("a", {})}
    there = {"local": LocalAuth(AuthClass.EAP, parse_identity("sun")), **more.get("b", {})}
    pair = make(mine, theirs, a=here, b=there)
    for host, who in ((pair.a, "moon"), (pair.b, "sun")):
        load(host, host.connections["c"], credentials(who))
    return pair


@pytest.mark.parametrize("mine", [0, EapType.TLS])
@pytest.mark.parametrize("theirs", [0, EapType.TLS])
def test_alone_any_method_is_one_that_shows_both(mine: int, theirs: int) -> None:
    alone(client(eap_type=mine), server(eap_type=theirs)).up().finish()


def test_alone_another_one_than_the_server_wants() -> None:
    """It is asked for TLS instead."""
    here, there = refused(alone(client(), server(eap_type=EapType.MSCHAPV2)), Cause.LOCAL_AUTH, Cause.PEER_AUTH)
    assert "EAP-Failure before any method" in here
    assert "the peer does not take MSCHAPV2, it wants TLS" in there


def test_alone_no_password_whatever_the_initiator_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever poses as the gateway could try all passwords on what it shows (RFC 5998 section 4)."""
    monkeypatch.setattr(Mschapv2Peer, "mutual", True)
    mine = client(eap_type=EapType.MSCHAPV2, eap_id=parse_identity("carol"))
    _, there = refused(alone(mine, server(eap_id=parse_pattern("%any"))), Cause.LOCAL_AUTH, Cause.PEER_AUTH)
    assert "the peer does not take TLS, it wants MSCHAPV2" in there


def test_alone_and_then_a_password() -> None:
    """The first round has shown who the responder is, so that the second may show it a password."""
    user = LocalAuth(AuthClass.EAP, parse_identity("moon"), eap_id=parse_identity("carol"), eap_type=EapType.MSCHAPV2)
    there = RemoteAuth(AuthClass.EAP, parse_pattern("moon"), eap_id=parse_pattern("%any"), eap_type=EapType.MSCHAPV2)
    pair = alone(client(**BY_TLS), server(**BY_TLS), a={"local_rounds": (user,)}, b={"remote_rounds": (there,)}).up()
    assert eap_id(pair.b) == "carol"
    pair.finish()


def test_alone_without_a_key_of_the_method(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the initiator thinks of it: our AUTH would be made with what everybody knows."""
    monkeypatch.setattr(Md5Peer, "mutual", True)
    mine = client(eap_type=EapType.MD5, eap_id=parse_identity("carol"))
    _, there = refused(alone(mine, server(eap_type=EapType.MD5, eap_id=parse_pattern("%any"))),
                       Cause.LOCAL_AUTH, Cause.PEER_AUTH)  # fmt: skip
    assert "local.auth = eap, and MD5 makes no key" in there


# -- what a connection is to what is up


def test_alike() -> None:
    """Another certificate in any round is no other peer; another proof, and somebody else, is."""
    named = LocalAuth(AuthClass.PUBKEY, parse_identity("moon"), certs=(MOON,))
    nameless = LocalAuth(AuthClass.PUBKEY, certs=(MOON,))
    for local in (named, nameless):
        first = Connection("c", local=KEY, local_rounds=(local,))
        renewed = replace(first, local_rounds=(replace(local, certs=(SUN,)),))
        assert first.is_alike(renewed) is (local is named)
        assert not first.is_alike(replace(first, local_rounds=()))
        assert not first.is_alike(replace(first, local_rounds=(replace(local, method=AuthClass.PSK),)))
        assert first.is_alike(replace(first, children=(), name="c"))
    gateway = Connection("c", remote=KEY_THERE, remote_rounds=(USER_THERE,))
    assert not gateway.is_alike(replace(gateway, remote_rounds=()))
    assert gateway.all_remote == (KEY_THERE, USER_THERE)
    assert Connection("c", local=USER, local_rounds=(KEY,)).all_local == (USER, KEY)
