"""Who we are, and by which certificate, where the configuration leaves that to the peer; and who the peer is, by which
certificate, where several connections are for where it comes from. As charon 5.9.8 has it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from cryptography.x509 import DNSName, IPAddress

from ipsec.crypto.auth import parse_constraints
from ipsec.crypto.identity import ANY_IDENTITY, Identity, parse_identity, parse_pattern
from ipsec.crypto.x509 import Certificate
from ipsec.ike.config import AuthClass, Connection, LocalAuth, RemoteAuth
from ipsec.ike.credentials import Authority, Credentials, PrivateKey, SharedSecret
from ipsec.ike.proof import certificate_requests
from ipsec.ike.registry import TRIED_MAX
from tests.crypto.pki import DAY, EC384_KEY, EC_KEY, ED25519_KEY, RSA_KEY, WALL, Ca
from tests.ike.hostile import SECRET, A, B, Lab

ONE, TWO = Ca("One"), Ca("Two")
MOON = ONE.issue("moon", EC_KEY)
ANYBODYS = Credentials(secrets=[SharedSecret(SECRET)])
PSK = AuthClass.PSK
NOBODY = LocalAuth(PSK)
ANYBODY = RemoteAuth(AuthClass.PUBKEY, ANY_IDENTITY)


def sun(common: str, issuer: Ca, key: Any, *names: Any, **more: Any) -> Certificate:
    return issuer.issue(common, key, sans=names, **more)


def keys(*certificates: Certificate, anchors: tuple[Ca, ...] = (ONE, TWO)) -> Credentials:
    """Of one end: its certificates, the private keys of all, and whom it trusts."""
    private = [PrivateKey(key) for key in (EC_KEY, EC384_KEY, RSA_KEY, ED25519_KEY)]
    authorities = [Authority(ca.certificate) for ca in anchors]
    return Credentials(private_keys=private, certificates=certificates, authorities=authorities)


def meet(
    theirs: Credentials, remote: RemoteAuth, ours: Credentials, local: LocalAuth, *, responder: bool = True
) -> Identity | None:
    """For whom the peer takes us, None if it does not believe us. We are whom it asks, or who asks it."""
    peer: dict[str, Any] = {"local": LocalAuth(certs=(MOON,), id=MOON.subject), "remote": remote}
    we = {"local": local, "remote": ANYBODY}
    lab = Lab(a=peer if responder else we, b=we if responder else peer)
    lab.a.credentials, lab.b.credentials = (theirs, ours) if responder else (ours, theirs)
    lab.initiate()
    end = lab.a if responder else lab.b
    return next((sa.peer_id for sa in end.sas.values() if sa.established), None)


@pytest.mark.parametrize("responder", [True, False])
@pytest.mark.parametrize(
    ("first", "last", "says"),
    [(-2, -1, "CN=first expired 20"), (1, 2, "CN=first is not valid before 20"), (-1, 1, "")],
)
def test_who_is_refused_looks_at_its_own_certificate(responder: bool, first: int, last: int, says: str) -> None:
    """The peer does not say why, and it was in force when the configuration was read."""
    own = sun("first", ONE, EC384_KEY, not_before=WALL + first * DAY, not_after=WALL + last * DAY)
    # who is refused while its certificate is in force has to look elsewhere
    trusted = (ONE,) if says else (TWO,)
    theirs, ours, local = keys(MOON, anchors=trusted), keys(own), LocalAuth(certs=(own,), id=own.subject)
    peer: dict[str, Any] = {"local": LocalAuth(certs=(MOON,), id=MOON.subject), "remote": ANYBODY}
    we = {"local": local, "remote": ANYBODY}
    lab = Lab(a=peer if responder else we, b=we if responder else peer)
    lab.a.credentials, lab.b.credentials = (theirs, ours) if responder else (ours, theirs)
    lab.initiate()
    end = lab.b if responder else lab.a
    (problem,) = end.problems
    assert problem.failure.by_peer
    if says:
        assert f"; our certificate O=x, {says}" in problem.failure.reason
        assert problem.failure.reason.endswith(" UTC")
    else:
        assert "certificate" not in problem.failure.reason


@pytest.mark.parametrize("responder", [True, False])
@pytest.mark.parametrize("trusted", [ONE, TWO])
def test_our_address_by_the_certificate_that_is_asked_for(responder: bool, trusted: Ca) -> None:
    own = IPAddress(B if responder else A)
    first, second = sun("first", ONE, EC384_KEY, own), sun("second", TWO, RSA_KEY, own)
    found = meet(keys(MOON, anchors=(trusted,)), ANYBODY, keys(first, second), LocalAuth(certs=(first, second)),
                 responder=responder)  # fmt: skip
    assert found == Identity.of_address(B if responder else A)


@pytest.mark.parametrize("responder", [True, False])
@pytest.mark.parametrize(("trusted", "whose"), [(ONE, "first"), (TWO, "second")])
def test_the_subject_where_no_certificate_has_our_address(responder: bool, trusted: Ca, whose: str) -> None:
    """Where charon gives up."""
    first, second = sun("first", ONE, EC384_KEY), sun("second", TWO, RSA_KEY)
    found = meet(keys(MOON, anchors=(trusted,)), ANYBODY, keys(first, second), LocalAuth(certs=(first, second)),
                 responder=responder)  # fmt: skip
    assert found == {"first": first, "second": second}[whose].subject


@pytest.mark.parametrize(
    ("asked", "believed"), [("first.x", True), ("second.x", True), ("O=x, CN=second", True), ("third.x", False)]
)
def test_whom_the_initiator_asks_for_by_certificate(asked: str, believed: bool) -> None:
    first = sun("first", ONE, EC384_KEY, DNSName("first.x"), IPAddress(B))
    second = sun("second", ONE, RSA_KEY, DNSName("second.x"))
    remote = RemoteAuth(AuthClass.PUBKEY, parse_pattern(asked))
    found = meet(keys(MOON), remote, keys(first, second), LocalAuth(certs=(first, second)))
    assert found == (parse_identity(asked) if believed else None)


@pytest.mark.parametrize("asked", ["second.x", "192.0.2.2"])
def test_whom_the_initiator_asks_for_by_preshared_key(asked: str) -> None:
    lab = Lab(a={"remote": RemoteAuth(PSK, parse_pattern(asked))}, b={"local": NOBODY})
    lab.a.credentials = lab.b.credentials = ANYBODYS
    lab.initiate()
    assert [str(sa.peer_id) for sa in lab.a.sas.values() if sa.established] == [asked]
    assert [str(sa.our_id) for sa in lab.b.sas.values() if sa.established] == [asked]


@pytest.mark.parametrize(
    ("owner", "asked", "believed"),
    [
        ("carol@x.org", "carol@x.org", False),
        ("carol@x.org", "sun", False),
        ("sun", "sun", False),
        # our address, which nobody has to tell us
        ("192.0.2.2", "192.0.2.2", True),
        ("boss@x.org", "carol@x.org", True),
        ("%any", "carol@x.org", True),
    ],
)
def test_who_asks_us_to_be_the_owner_of_its_key_is_nobody_else(owner: str, asked: str, believed: bool) -> None:
    """A key that names us alone is for everybody, but who we are is not for the peer to say then."""
    wanted = {"local": LocalAuth(PSK, parse_identity("boss@x.org")), "remote": RemoteAuth(PSK, parse_pattern(asked))}
    lab = Lab(a=wanted, b={"local": NOBODY, "remote": RemoteAuth(PSK, parse_pattern("*@x.org"))})
    lab.a.credentials = ANYBODYS
    lab.b.credentials = Credentials(secrets=[SharedSecret(SECRET, (parse_pattern(owner),))])
    lab.initiate()
    assert [sa.established for sa in lab.b.sas.values()] == [True] * believed


@pytest.mark.parametrize(
    ("ids", "chosen"),
    [
        # our identity and the peer's, in the order of loading, and what charon 5.9.8 takes
        ((("sun", "%any"), ("%any", "moon")), 0),
        ((("%any", "moon"), ("sun", "%any")), 0),
        ((("%any", "%any"), ("sun", "%any")), 1),
        ((("%any", "%any"), ("%any", "moon")), 1),
        ((("%any", "%any"), ("%any", "*n")), 1),
        ((("%any", "*n"), ("sun", "%any")), 1),
        ((("mars", "moon"), ("%any", "%any")), 1),
    ],
)
def test_the_connection_that_names_the_most(ids: tuple[tuple[str, str], ...], chosen: int) -> None:
    def named(number: int, ours: str, theirs: str) -> Connection:
        own = None if ours == "%any" else parse_identity(ours)
        remote = RemoteAuth(PSK, parse_pattern(theirs))
        return replace(lab.cb, name=str(number), local=LocalAuth(PSK, own), remote=remote)

    lab = Lab()
    lab.b.load([named(number, *both) for number, both in enumerate(ids)], ANYBODYS)
    lab.a.credentials = ANYBODYS
    lab.initiate()
    assert [sa.name for sa in lab.b.sas.values() if sa.established] == [str(chosen)]


@pytest.mark.parametrize("responder", [True, False])
def test_a_certificate_that_is_in_force_before_one_that_is_not(responder: bool) -> None:
    """What was renewed may still be there."""
    expired = sun("sun", ONE, EC384_KEY, DNSName("sun"), not_after=WALL - DAY)
    future = sun("sun", ONE, EC384_KEY, DNSName("sun"), not_before=WALL + DAY)
    good = sun("sun", ONE, RSA_KEY, DNSName("sun"))
    remote = RemoteAuth(AuthClass.PUBKEY, parse_pattern("sun"))
    local = LocalAuth(id=parse_identity("sun"), certs=(expired, future, good))
    assert meet(keys(MOON), remote, keys(*local.certs), local, responder=responder) == local.id
    alone = replace(local, certs=(expired, future))
    assert meet(keys(MOON), remote, keys(*local.certs), alone, responder=responder) is None


def test_a_key_that_signs_what_the_peer_takes() -> None:
    """The peer, as initiator, has said which hashes it takes: charon gives up with the first key."""
    first, second = sun("sun", ONE, ED25519_KEY, DNSName("sun")), sun("sun", ONE, RSA_KEY, DNSName("sun"))
    local = LocalAuth(id=parse_identity("sun"), certs=(first, second))
    wanted = parse_constraints("ike:rsa-sha256")
    remote = RemoteAuth(AuthClass.PUBKEY, parse_pattern("sun"), constraints=wanted)
    assert meet(keys(MOON), remote, keys(first, second), replace(local, certs=(first,))) is None
    assert meet(keys(MOON), remote, keys(first, second), local) == local.id


def test_a_key_that_auth_takes() -> None:
    first, second = sun("sun", ONE, EC384_KEY, DNSName("sun")), sun("sun", ONE, RSA_KEY, DNSName("sun"))
    local = LocalAuth(id=parse_identity("sun"), certs=(first, second), constraints=parse_constraints("rsa"))
    assert meet(keys(MOON), RemoteAuth(id=parse_pattern("sun")), keys(first, second), local) == local.id


@pytest.mark.parametrize("first", [RemoteAuth(PSK), RemoteAuth(cacerts=(TWO.certificate,))])
@pytest.mark.parametrize("cacerts", [(), (ONE.certificate,)])
def test_certificates_are_asked_for_of_all_who_may_come(first: RemoteAuth, cacerts: tuple[Certificate, ...]) -> None:
    """When we ask for them, in IKE_SA_INIT, any connection for that address may turn out to be the peer's."""
    own = ONE.issue("moon", EC_KEY, sans=(DNSName("moon"),))
    theirs = TWO.issue("moon", RSA_KEY, sans=(DNSName("moon"),))
    lab = Lab(a={"local": LocalAuth(id=parse_identity("moon"), certs=(own, theirs)), "remote": RemoteAuth()})
    moons = RemoteAuth(AuthClass.PUBKEY, parse_pattern("moon"), cacerts=cacerts)
    mars = replace(lab.cb, remote=replace(first, id=parse_pattern("mars")))
    other = replace(lab.cb, name="d", local=LocalAuth(id=MOON.subject, certs=(MOON,)), remote=moons)
    lab.b.load([mars, other], keys(MOON, anchors=(ONE,)))
    lab.a.credentials = keys(own, theirs)
    lab.initiate()
    assert [sa.name for sa in lab.b.sas.values() if sa.established] == ["d"]


def connections(lab: Lab, *remotes: RemoteAuth) -> list[Connection]:
    local = LocalAuth(id=MOON.subject, certs=(MOON,))
    return [replace(lab.cb, name=f"{n}", local=local, remote=remote) for n, remote in enumerate(remotes)]


@pytest.mark.parametrize(
    "others", [{"cacerts": (TWO.certificate,)}, {"ca_id": parse_pattern("CN=Two")}, {"method": PSK}]
)
def test_one_of_many_connections_by_authority_or_method(others: dict[str, Any]) -> None:
    """Their peers may be anybody, and the authority says which it is. charon looks at all of them."""
    own = ONE.issue("moon", EC_KEY, sans=(DNSName("moon"),))
    lab = Lab(a={"local": LocalAuth(id=parse_identity("moon"), certs=(own,)), "remote": RemoteAuth()})
    mine = RemoteAuth(AuthClass.PUBKEY, cacerts=(ONE.certificate,))
    lab.b.load(connections(lab, *[replace(mine, **{"cacerts": (), **others})] * 30, mine), keys(MOON))
    lab.a.credentials = keys(own)
    lab.initiate()
    assert [sa.name for sa in lab.b.sas.values() if sa.established] == ["30"]


def test_a_stranger_is_looked_at_a_few_times_only(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Ca("Nobody").issue("moon", EC_KEY, sans=(DNSName("moon"),))
    lab = Lab(a={"local": LocalAuth(id=parse_identity("moon"), certs=(own,)), "remote": RemoteAuth()})
    lab.b.load(connections(lab, *[RemoteAuth(cacerts=(ONE.certificate,))] * 30), keys(MOON))
    lab.a.credentials = keys(own)
    looked: list[Any] = []
    verify = Credentials.verify_peer
    monkeypatch.setattr(Credentials, "verify_peer", lambda *args: looked.append(args) or verify(*args))
    lab.initiate()
    assert len(looked) == TRIED_MAX


def test_our_certificates_are_looked_at_once_for_all_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anybody may ask for anybody, and there may be a thousand connections and a hundred certificates."""
    lab = Lab(a={"local": LocalAuth(certs=(MOON,), id=MOON.subject), "remote": RemoteAuth(id=parse_pattern("mars"))})
    nameless = [replace(one, local=LocalAuth()) for one in connections(lab, *[ANYBODY] * 30)]
    lab.b.load(nameless, keys(sun("sun", ONE, RSA_KEY, DNSName("sun"))))
    lab.a.credentials = keys(MOON)
    looked: list[Any] = []
    can_be = Credentials.can_be
    monkeypatch.setattr(Credentials, "can_be", lambda *args: looked.append(args) or can_be(*args))
    lab.initiate()
    assert not any(sa.established for sa in lab.b.sas.values())
    assert len(looked) == 1


def test_who_signs_may_mean_any_of_us(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only for a key that is shared it matters who we are in each connection that a stranger may mean."""
    other = ONE.issue("mars", EC_KEY)
    lab = Lab(a={"local": LocalAuth(certs=(other,), id=other.subject), "remote": RemoteAuth()})
    many = [replace(one, local=LocalAuth()) for one in connections(lab, *[RemoteAuth(cacerts=(TWO.certificate,))] * 30)]
    lab.b.load(many, keys(sun("sun", ONE, RSA_KEY, DNSName("sun"))))
    lab.a.credentials = keys(other)
    looked: list[Any] = []
    find = Credentials.local_certificate
    monkeypatch.setattr(Credentials, "local_certificate", lambda *args: looked.append(args) or find(*args))
    lab.initiate()
    assert not any(sa.established for sa in lab.b.sas.values())
    assert [args[0] for args in looked] == [lab.a.credentials]


def test_nobody_is_asked_for_certificates_who_needs_none() -> None:
    psk, asking = Lab().cb, Lab(certs=True).cb
    assert certificate_requests([psk, replace(asking, send_certreq=False)], keys()) == []
    (request,) = certificate_requests([psk, asking, replace(asking, name="d")], keys())
    assert request.data == ONE.certificate.spki_sha1 + TWO.certificate.spki_sha1


def test_another_certificate_of_ours_is_another_end_only_if_it_says_who_we_are() -> None:
    one = Lab(certs=True).cb
    first, second = sun("first", ONE, EC384_KEY), sun("second", ONE, RSA_KEY)
    named, nameless = (replace(one, local=replace(one.local, certs=(first,), id=who)) for who in (one.local.id, None))
    for connection, alike in ((named, True), (nameless, False)):
        other = replace(connection, local=replace(connection.local, certs=(second,)))
        assert connection.is_alike(other) is alike
    renewed = sun("first", TWO, RSA_KEY)
    for certs in ((renewed,), (first, second)):
        assert nameless.is_alike(replace(nameless, local=replace(nameless.local, certs=certs)))
