"""What comes between the first message of IKE_AUTH with EAP, or with several rounds, and the last; and AUTH, with which
it ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest
from cryptography import x509 as cx

from ipsec.crypto.auth import AuthenticationError, psk_auth
from ipsec.crypto.identity import Identity, parse_identity, parse_pattern
from ipsec.crypto.revocation import Crl, Revocation
from ipsec.ike import eap_auth, ppk
from ipsec.ike.config import AuthClass, Childless, IkeSettings, LocalAuth, RemoteAuth
from ipsec.ike.credentials import EapSecret
from ipsec.ike.eap import methods
from ipsec.ike.eap.method import MSK_LEN
from ipsec.ike.eap.relay import EapAnswer
from ipsec.ike.eap.tls import TlsIdentity
from ipsec.ike.eap_auth import EapProof, EapRequest
from ipsec.ike.events import EapAnswerNeeded, Failed, IkeUp, Initiate, RevocationNeeded
from ipsec.ike.failure import Cause
from ipsec.ike.proof import auth_octets
from ipsec.ike.redirect import redirect
from ipsec.ike.sa import IkeSa, Request
from ipsec.wire.iana import AuthMethod, EapType
from ipsec.wire.payloads import AuthPayload
from tests.crypto.pki import EC384_KEY, EC_KEY
from tests.crypto.test_revocation import point
from tests.ike.hostile import ROOT
from tests.ike.test_eap import (
    ANY,
    BEGIN,
    KEY,
    KEY_THERE,
    PPK,
    SECRETS,
    USER,
    USER_THERE,
    client,
    in_rounds,
    make,
    quantum,
    refused,
    relayed,
    server,
    tls,
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


def test_what_is_not_allowed_is_said_before_eap() -> None:
    """Nobody shows a password for an IKE_SA that will not be."""
    pair = make(client(eap_id=CAROL), server(eap_id=ANY), b={"childless": Childless.FORCE})
    _, there = refused(pair, Cause.MALFORMED, Cause.REFUSED)
    assert "childless = force" in there
    assert pair.b.engine.counters.total("ike-auth-in-req") == 1


# -- responder: who it is for EAP chooses the connection


def two(first: dict[str, Any], second: dict[str, Any], secrets: Sequence[EapSecret] = SECRETS) -> Pair:
    """sun has two connections that differ in what ``remote`` says; the user is carol."""
    pair = make(client(eap_id=CAROL), server(**first), secrets)
    one = pair.b.connections["c"]
    pair.b.load(one, replace(one, name="d", remote=server(**second)), eap=SECRETS)
    return pair


DAVE_ALONE = {"eap_id": parse_pattern("dave")}


@pytest.mark.parametrize(
    "second",
    [
        pytest.param({"eap_id": parse_pattern("carol"), "eap_radius": True}, id="by RADIUS"),
        pytest.param({}, id="by IDi"),
    ],
)
def test_another_connection_has_to_want_the_same_proof(second: dict[str, Any]) -> None:
    """What a RADIUS server would have said no to, or is for whom IDi names, is not open to who has a password here."""
    pair = two(DAVE_ALONE, second)
    _, there = refused(pair, Cause.LOCAL_AUTH, Cause.PEER_ID)
    assert "no connection has eap_id carol" in there


def test_a_connection_by_radius_is_not_left_for_a_password_here() -> None:
    """Nor is the server spared the question."""
    pair = two({"eap_id": parse_pattern("dave"), "eap_radius": True}, {"eap_id": parse_pattern("carol")})
    refused(pair, Cause.LOCAL_AUTH, Cause.PEER_ID)


@pytest.mark.parametrize(
    "ours", [LocalAuth(AuthClass.PUBKEY, parse_identity("sun")), LocalAuth(AuthClass.PSK, parse_identity("star"))]
)
def test_another_connection_in_which_we_are_somebody_else(ours: LocalAuth) -> None:
    """Also where the initiator does not say whom it wants: our AUTH of the first response is for both."""
    pair = two(DAVE_ALONE, {"eap_id": parse_pattern("carol")})
    one, other = pair.b.connections.values()
    pair.b.load(one, replace(other, local=ours), eap=SECRETS)
    mine = pair.a.connections["c"]
    pair.a.load(replace(mine, remote=replace(mine.remote, id=parse_pattern("*"))), eap=SECRETS)
    _, there = refused(pair, Cause.LOCAL_AUTH, Cause.PEER_ID)
    assert "no connection has eap_id carol" in there


@pytest.mark.parametrize("kind", [EapType.MSCHAPV2, EapType.MD5, EapType.GTC])
def test_nobody_learns_by_a_right_password_that_no_connection_is_for_him(kind: EapType) -> None:
    """He hears what one hears whose password is wrong, in the same place."""
    wrong = (EapSecret(b"wrong", (parse_pattern("carol"),)),)
    heard = []
    for secrets, wanted in ((SECRETS, "dave"), (wrong, "carol")):
        remote = server(eap_type=kind, eap_id=parse_pattern(wanted))
        pair = make(client(eap_type=kind, eap_id=CAROL), remote, secrets)
        here, _ = refused(pair, Cause.LOCAL_AUTH, Cause.PEER_ID if wanted == "dave" else Cause.PEER_AUTH)
        heard.append((here, pair.b.engine.counters.total("ike-auth-in-req")))
    assert heard[0] == heard[1]
    assert ("error 691" in heard[0][0]) is (kind == EapType.MSCHAPV2)


@pytest.mark.parametrize("alone", [False, True])
def test_nobody_learns_that_by_his_certificate(alone: bool) -> None:
    pair = with_tls(alone=alone)
    one = pair.b.connections["c"]
    other = replace(one, remote=replace(one.remote, eap_id=parse_pattern("dave")))
    pair.b.engine.load([other], pair.b.engine.credentials, pair.b.pools)
    here, there = refused(pair, Cause.LOCAL_AUTH, Cause.PEER_ID)
    assert "alert" in here
    assert "no connection has eap_id moon" in there


# -- which method, and for whom there is no secret


@pytest.mark.parametrize("certificate", [False, True])
@pytest.mark.parametrize("kind", [EapType.MD5, EapType.GTC])
def test_who_names_no_method_shows_nothing_without_a_key(kind: EapType, certificate: bool) -> None:
    """What MD5 and GTC show is not bound to the IKE_SA: a server does not get it for the asking."""
    pair = with_tls(alone=False) if certificate else make(client(), server())
    mine, theirs = pair.a.connections["c"], pair.b.connections["c"]
    carol = replace(mine, local=client(eap_id=None if certificate else CAROL))
    pair.a.connections["c"] = carol
    pair.a.engine.load([carol], pair.a.engine.credentials, ())
    asking = replace(theirs, remote=server(eap_type=kind, eap_id=ANY))
    pair.b.engine.load([asking], pair.b.engine.credentials, ())
    _, there = refused(pair, Cause.LOCAL_AUTH, Cause.PEER_AUTH)
    assert f"does not take {kind.name}, it wants {'TLS' if certificate else 'MSCHAPV2'}" in there


def test_the_secret_for_the_server_that_has_it() -> None:
    """``aaa_id``, where that is not the gateway; of several the one for both names is the best."""
    for aaa_id, good in (("aaa", True), (None, False), ("bbb", False)):
        mine = [EapSecret(secret, tuple(map(parse_pattern, ("carol", server))))
                for secret, server in ((b"right", "aaa"), (b"wrong", "sun"), (b"other", "bbb"))]  # fmt: skip
        local = client(eap_id=CAROL, aaa_id=parse_pattern(aaa_id) if aaa_id else None)
        pair = make(local, server(eap_id=ANY), mine, (EapSecret(b"right", (parse_pattern("carol"),)),))
        if good:
            pair.up().finish()
        else:
            refused(pair, Cause.LOCAL_AUTH, Cause.PEER_AUTH)


@pytest.mark.parametrize("end", ["moon", "sun"])
def test_a_certificate_that_cannot_be_used_leaves_passwords(monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    """It is said in the log, and EAP-TLS is not proposed, nor asked for."""
    found = methods.tls_identity

    def unreadable(sa: IkeSa, local: LocalAuth, identity: Identity | None) -> TlsIdentity | None:
        if sa.initiator is (end == "moon"):
            raise AuthenticationError("it is malformed")
        return found(sa, local, identity)

    monkeypatch.setattr(methods, "tls_identity", unreadable)
    pair = with_tls(alone=False, kind=0)
    mine = pair.a.connections["c"]
    carol = replace(mine, local=client(eap_id=CAROL))
    pair.a.connections["c"] = carol
    pair.a.engine.load([carol], pair.a.engine.credentials, ())
    one = pair.b.connections["c"]
    asking = replace(one, remote=server(eap_id=ANY))
    pair.b.engine.load([asking], pair.b.engine.credentials, ())
    pair.up().finish()


@pytest.mark.parametrize("kind", [EapType.MSCHAPV2, EapType.MD5, EapType.GTC])
@pytest.mark.parametrize("wanted", ["%any", "dave"], ids=["no secret", "no connection"])
def test_no_password_is_none_that_could_be_guessed(kind: EapType, wanted: str) -> None:
    """Of a user without a secret, or without a connection: least of all the empty one."""
    nothing = (EapSecret(b"", (parse_pattern("carol"),)),)
    remote = server(eap_type=kind, eap_id=parse_pattern(wanted))
    pair = make(client(eap_type=kind, eap_id=CAROL), remote, nothing, SECRETS[1:])
    refused(pair, Cause.LOCAL_AUTH, Cause.PEER_AUTH if wanted == "%any" else Cause.PEER_ID)


def test_who_is_refused_at_once_hears_by_whom() -> None:
    """Where nobody asks for an identity EAP may end with the first response, and not for want of an AUTH in it."""
    pair = relayed(asks=False)
    pair.a.initiate()
    pair.world.run(1)
    (asked,) = pair.b.events(EapAnswerNeeded)
    pair.b.do(pair.b.engine.eap_answered, asked.sa.uid, EapAnswer(None, False, reason="nobody is there"))
    pair.world.settle()
    assert not pair.a.engine.sas
    assert not pair.b.engine.sas
    ((here,), (there,)) = (host.events(Failed) for host in (pair.a, pair.b))
    assert here.problem.failure.cause is Cause.LOCAL_AUTH
    assert here.problem.failure.reason.endswith("refuses us as moon: EAP-Failure before any method")
    assert "nobody is there" in there.problem.failure.reason
    # by whoever has the key, and nobody else
    pair = relayed(asks=False)
    mine = pair.a.connections["c"]
    pair.a.load(mine, secret=b"not that of sun", eap=SECRETS)
    pair.a.initiate()
    pair.world.run(1)
    (asked,) = pair.b.events(EapAnswerNeeded)
    pair.b.do(pair.b.engine.eap_answered, asked.sa.uid, EapAnswer(None, False))
    pair.world.settle()
    assert [event.problem.failure.cause for event in pair.a.events(Failed)] == [Cause.PEER_AUTH]


# -- both: certificates in TLS whose status has to be fetched


POINT = [(cx.CRLDistributionPoints([point("http://a/1.crl")]), False)]


@pytest.mark.parametrize("revoked", [(), (7,), (8,)], ids=["good", "user", "gateway"])
def test_status_is_waited_for(revoked: tuple[int, ...]) -> None:
    """Each end asks once, and goes on from where it was."""
    pair = with_tls(alone=True)
    issued = [(pair.a, "moon", EC_KEY, 7), (pair.b, "sun", EC384_KEY, 8)]
    for host, name, key, serial in issued:
        own = ROOT.issue(name, key, sans=(cx.DNSName(name),), extensions=POINT, serial=serial)
        one = host.connections["c"]
        strict = replace(one, remote=replace(one.remote, revocation=Revocation.STRICT))
        host.connections["c"] = strict
        host.engine.load([strict], tls(name, own, key), host.pools)
    pair.a.initiate()
    asked = {"moon": 0, "sun": 0}
    for _ in range(10):
        pair.world.run(1)
        for host, name, _, _ in issued:
            for event in host.events(RevocationNeeded)[asked[name] :]:
                asked[name] += 1
                assert not host.events(IkeUp)
                host.do(host.engine.status_known, event.ticket, crls=[Crl(ROOT.crl(*revoked))])
    pair.world.settle()
    assert asked == {"moon": 1, "sun": 0 if revoked == (8,) else 1}
    if not revoked:
        pair.finish()
        return
    assert not pair.a.engine.sas
    assert not pair.b.engine.sas
    assert not pair.b.events(IkeUp)
    who = pair.a if revoked == (8,) else pair.b
    assert ["revoked" in event.problem.failure.reason for event in who.events(Failed)] == [True]


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


# -- AUTH, with which it ends


def by_method(kind: int) -> Pair:
    return make(client(eap_type=kind, eap_id=CAROL), server(eap_type=kind, eap_id=ANY))


@pytest.mark.parametrize("messages", range(4))
@pytest.mark.parametrize("kind", [EapType.MSCHAPV2, EapType.MD5, EapType.GTC])
def test_auth_before_eap_has_succeeded(monkeypatch: pytest.MonkeyPatch, kind: int, messages: int) -> None:
    """Until the method has a key AUTH could be made by anybody, with SK_pi (RFC 7296 section 2.16)."""
    sent: list[bytes] = []

    def request(packet: bytes) -> Request:
        sent.append(packet)
        return EapRequest(packet) if len(sent) <= messages else EapProof()

    monkeypatch.setattr(eap_auth, "EapRequest", request)
    pair = by_method(kind)
    if messages >= (3 if kind == EapType.MSCHAPV2 else 2):
        pair.up().finish()
        return
    _, there = refused(pair, Cause.MALFORMED, Cause.MALFORMED)
    assert "EAP is missing" in there


def test_no_auth_after_eap(monkeypatch: pytest.MonkeyPatch) -> None:
    """That is the end, and not only once the time for IKE_AUTH is up."""
    monkeypatch.setattr(EapProof, "build", lambda self, sa, now: [])
    pair = by_method(EapType.MSCHAPV2)
    _, there = refused(pair, Cause.MALFORMED, Cause.MALFORMED)
    assert "AUTH is missing" in there
    assert pair.world.now < BEGIN + 10


@pytest.mark.parametrize("of_initiator", [True, False])
@pytest.mark.parametrize("kind", [EapType.MSCHAPV2, EapType.MD5])
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda proof: AuthPayload(proof.method, b""), id="empty"),
        pytest.param(lambda proof: AuthPayload(proof.method, proof.data[:-1]), id="shorter"),
        pytest.param(lambda proof: AuthPayload(proof.method, proof.data + b"\0"), id="longer"),
        pytest.param(lambda proof: AuthPayload(proof.method, bytes(len(proof.data))), id="another"),
        pytest.param(lambda proof: AuthPayload(AuthMethod.RSA, proof.data), id="method"),
    ],
)
def test_an_auth_that_is_not_right(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[AuthPayload], AuthPayload], kind: int, of_initiator: bool
) -> None:
    """Either end has to show by it that it is the one that EAP was with."""
    ours = eap_auth._our_auth

    def changed(sa: IkeSa, *arguments: Any) -> AuthPayload:
        proof = ours(sa, *arguments)
        return change(proof) if sa.initiator is of_initiator else proof

    monkeypatch.setattr(eap_auth, "_our_auth", changed)
    pair = by_method(kind)
    if of_initiator:
        _, there = refused(pair, Cause.LOCAL_AUTH, Cause.PEER_AUTH)
        assert "AUTH after EAP is not made with the key of the EAP method" in there
        return
    pair.a.initiate()
    pair.world.settle()
    assert not pair.a.events(IkeUp)
    assert [event.problem.failure.cause for event in pair.a.events(Failed)] == [Cause.PEER_AUTH]
    assert not pair.b.engine.sas


@pytest.mark.parametrize("kind", [EapType.MSCHAPV2, EapType.MD5])
def test_what_auth_is_made_with(monkeypatch: pytest.MonkeyPatch, kind: int) -> None:
    """The key of the method, or SK_pi of who begins and SK_pr of who answers (RFC 7296 section 2.16)."""
    ours = eap_auth._our_auth
    made = []

    def watched(sa: IkeSa, msk: bytes | None, body: bytes, *arguments: Any) -> AuthPayload:
        assert sa.keys is not None
        assert sa.prf is not None
        assert len(msk or b"") == (MSK_LEN if kind == EapType.MSCHAPV2 else 0)
        secret = msk or (sa.keys.sk_pi if sa.initiator else sa.keys.sk_pr)
        proof = ours(sa, msk, body, *arguments)
        made.append(proof.data == psk_auth(sa.prf, secret, auth_octets(sa, body, of_initiator=sa.initiator)))
        return proof

    monkeypatch.setattr(eap_auth, "_our_auth", watched)
    by_method(kind).up().finish()
    assert made == [True, True]


@pytest.mark.parametrize("kind", [EapType.MSCHAPV2, EapType.MD5])
def test_an_initiator_that_has_the_method_and_not_the_ppk(kind: int) -> None:
    """ppk_required is held to, and so is whose PPK it is, also where AUTH by itself is right (RFC 8784 section 3)."""
    _, there = refused(quantum(kind, (), PPK, must="b"), Cause.LOCAL_AUTH, Cause.PEER_AUTH)
    assert "ppk_required = yes, and the peer uses no postquantum preshared key" in there
    pair = quantum(kind, PPK, PPK)
    others = replace(pair.b.connections["c"], ppk_id=parse_pattern("of.another"))
    pair.b.load(others, ppks=PPK, eap=SECRETS)
    _, there = refused(pair, Cause.LOCAL_AUTH, Cause.PEER_AUTH)
    assert "and ppk_id is of.another" in there


@pytest.mark.parametrize("must", ["", "a"])
def test_a_responder_that_goes_without_the_ppk(monkeypatch: pytest.MonkeyPatch, must: str) -> None:
    """It has the key of the method, and does not say that it has ours (RFC 8784 section 3)."""
    monkeypatch.setattr(ppk, "use", lambda sa, keys: None)
    pair = quantum(EapType.MSCHAPV2, PPK, PPK, must=must)
    pair.a.initiate()
    pair.world.settle()
    assert bool(pair.a.events(IkeUp)) is not bool(must)
    if must:
        (failed,) = pair.a.events(Failed)
        assert "the peer has not taken our PPK" in failed.problem.failure.reason
        assert not pair.a.engine.sas
