"""EAP in IKE_AUTH (RFC 7296 section 2.16): who proves what to whom, and who is let in as whom."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from ipsec.crypto.identity import Identity, IdentityPattern, parse_identity, parse_pattern
from ipsec.crypto.mschap import nt_password_hash
from ipsec.crypto.x509 import Certificate
from ipsec.ike import eap_auth
from ipsec.ike.config import AuthClass, IkeSettings, LocalAuth, PoolConfig, RemoteAuth, Unique
from ipsec.ike.credentials import Authority, Credentials, EapSecret, Ppk, PrivateKey, SharedSecret
from ipsec.ike.eap.method import EapError, ServerMethod
from ipsec.ike.eap.mschapv2 import Mschapv2Server
from ipsec.ike.eap.names import TlsVersion
from ipsec.ike.eap.peer import ROUNDS_MAX, EapPeer
from ipsec.ike.eap.relay import EapAnswer, EapAnswerNeededError, EapRelay
from ipsec.ike.eap.server import EapServer
from ipsec.ike.eap.tls_session import TLS_1_2, TLS_1_3, TlsSession
from ipsec.ike.eap_auth import EapRequest
from ipsec.ike.errors import SaFailedError
from ipsec.ike.events import ChildUp, EapAnswerNeeded, Failed, IkeUp
from ipsec.ike.failure import Cause, Failure
from ipsec.ike.sa import IkeSa, Request
from ipsec.wire.eap import EapPacket
from ipsec.wire.iana import EapCode, EapType, ExchangeType, IdType, NotifyType, Protocol
from ipsec.wire.payloads import DeletePayload, NotifyPayload, Payload
from tests.crypto.pki import EC384_KEY, EC_KEY, Ca
from tests.ike.hostile import MOON, ROOT, SUN
from tests.pair import Pair
from tests.sim.host import SimHost
from tests.sim.link import Link

ANY = parse_pattern("%any")
PASSWORD = b"fO0-b4r of carol"
SECRETS = (
    EapSecret(PASSWORD, (parse_pattern("carol"),), "eap-carol"),
    EapSecret(b"another one", (parse_pattern("dave"),), "eap-dave"),
)
METHODS = (EapType.MSCHAPV2, EapType.MD5, EapType.GTC)
#: when a world begins
BEGIN = 1000.0


def client(**more: Any) -> LocalAuth:
    return LocalAuth(AuthClass.EAP, parse_identity("moon"), **more)


def server(**more: Any) -> RemoteAuth:
    return RemoteAuth(AuthClass.EAP, parse_pattern("moon"), **more)


def make(
    local: LocalAuth,
    remote: RemoteAuth,
    mine: Sequence[EapSecret] = SECRETS,
    theirs: Sequence[EapSecret] = SECRETS,
    **more: Any,
) -> Pair:
    """moon proves by EAP who it is, sun with its pre-shared key."""
    own = {"a": {"local": local, **more.pop("a", {})}, "b": {"remote": remote, **more.pop("b", {})}}
    pair = Pair(**own, **more)
    for host, secrets in ((pair.a, mine), (pair.b, theirs)):
        host.load(*host.connections.values(), eap=secrets)
    return pair


def refused(pair: Pair, here: Cause, there: Cause | None) -> tuple[str, str]:
    """Nothing comes up, and both say why: the reasons that they give."""
    pair.a.initiate()
    pair.world.settle()
    assert not pair.a.engine.sas
    assert not pair.b.engine.sas
    assert not pair.a.events(IkeUp)
    assert not pair.b.events(IkeUp)
    found = []
    for host, cause in ((pair.a, here), (pair.b, there)):
        failures = [event.problem.failure for event in host.events(Failed)]
        assert [failure.cause for failure in failures] == ([cause] if cause else [])
        found.append("".join(failure.reason for failure in failures))
    return found[0], found[1]


def eap_id(host: SimHost) -> str | None:
    return str(host.ike.eap_id) if host.ike.eap_id is not None else None


@pytest.mark.parametrize("asks", [False, True], ids=["IDi", "Identity"])
@pytest.mark.parametrize("kind", METHODS)
def test_up(kind: EapType, asks: bool) -> None:
    who = "carol" if asks else "moon"
    secrets = (EapSecret(PASSWORD, (parse_pattern(who),)),)
    local = client(eap_type=kind, eap_id=parse_identity("carol") if asks else None)
    pair = make(local, server(eap_type=kind, eap_id=ANY if asks else None), secrets, secrets).up()
    assert (eap_id(pair.a), eap_id(pair.b)) == (None, "carol" if asks else None)
    assert str(pair.b.ike.peer_id) == "moon"
    pair.finish()


def test_any_method_is_one_with_a_key() -> None:
    pair = make(client(eap_id=parse_identity("carol")), server(eap_id=ANY)).up()
    assert eap_id(pair.b) == "carol"
    pair.finish()


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        ("CORP\\carol", b"CORP\\carol"),
        ("carol@example.org", b"Carol@Example.ORG"),
        ("CORP\\carol@example.org", b"CORP\\carol@example.org"),
        ("jörg", "jörg".encode()),
        ("jörg@例え.jp", "jörg@例え.jp".encode()),
        # as charon has to have it
        ("fqdn:#6ac3b67267", "jörg".encode()),
        # in the character set of an older client
        ("fqdn:#6af67267", b"j\xf6rg"),
        ("email:#6af6726740636f7270", b"j\xf6rg@corp"),
        ("keyid:#6af6723a67", b"j\xf6r:g"),
        ("192.0.2.77", b"192.0.2.77"),
        ("a=b", b"a=b"),
    ],
)
def test_whose_secret_it_is(owner: str, name: bytes) -> None:
    """By all of what the user says: with the domain, in whatever case and characters."""
    theirs = (EapSecret(PASSWORD, (parse_pattern(owner),)), *SECRETS)
    mine = (EapSecret(PASSWORD, (parse_pattern("carol"),)),)
    local = client(eap_id=Identity(IdType.KEY_ID, name))
    pair = make(local, server(eap_id=ANY), (EapSecret(PASSWORD),), theirs).up()
    assert pair.b.ike.eap_id == parse_identity(owner)
    pair.finish()
    other = (EapSecret(b"not that one", (parse_pattern(owner),)), *mine)
    refused(make(local, server(eap_id=ANY), (EapSecret(PASSWORD),), other), Cause.LOCAL_AUTH, Cause.PEER_AUTH)


def test_a_domain_is_part_of_the_user() -> None:
    local = client(eap_id=Identity(IdType.KEY_ID, b"CORP\\carol"))
    refused(make(local, server(eap_id=ANY), (EapSecret(PASSWORD),)), Cause.LOCAL_AUTH, Cause.PEER_AUTH)


def test_nt_hash() -> None:
    hashed = (EapSecret(nt_password_hash(PASSWORD), (parse_pattern("carol"),), is_nt_hash=True),)
    local = client(eap_id=parse_identity("carol"))
    make(local, server(eap_id=ANY), hashed, SECRETS).up().finish()
    make(local, server(eap_id=ANY), SECRETS, hashed).up().finish()
    reasons = refused(make(client(eap_id=parse_identity("carol"), eap_type=EapType.MD5),
                           server(eap_id=ANY, eap_type=EapType.MD5), SECRETS, hashed), Cause.LOCAL_AUTH,
                      Cause.PEER_AUTH)  # fmt: skip
    assert "EAP-Failure after MD5" in reasons[0]


@pytest.mark.parametrize("kind", [EapType.MD5, EapType.GTC])
def test_nt_hash_besides_the_password(kind: EapType) -> None:
    """Where both are there, a hash that is the better match does not keep the password from being found."""
    both = (*SECRETS, EapSecret(nt_password_hash(PASSWORD), (parse_pattern("carol"),), "ntlm-carol", is_nt_hash=True))
    local = client(eap_id=parse_identity("carol"), eap_type=kind)
    make(local, server(eap_id=ANY, eap_type=kind), both, both).up().finish()


def test_nak() -> None:
    """The server proposes what the peer does not have, and then what it has."""
    local = client(eap_id=parse_identity("carol"), eap_type=EapType.MD5)
    here, there = refused(make(local, server(eap_id=ANY)), Cause.LOCAL_AUTH, Cause.PEER_AUTH)
    assert "the peer does not take MSCHAPV2, it wants MD5" in there
    assert "EAP-Failure before any method" in here


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        pytest.param((EapSecret(b"wrong", (parse_pattern("carol"),)),), SECRETS, id="wrong"),
        pytest.param(SECRETS, SECRETS[1:], id="unknown"),
    ],
)
def test_wrong_secret(kind: EapType, mine: Sequence[EapSecret], theirs: Sequence[EapSecret]) -> None:
    """The peer hears the same, whether there is such a user or not."""
    local = client(eap_type=kind, eap_id=parse_identity("carol"))
    here, there = refused(make(local, server(eap_type=kind, eap_id=ANY), mine, theirs), Cause.LOCAL_AUTH,
                          Cause.PEER_AUTH)  # fmt: skip
    assert "refuses us as carol: EAP-Failure after" in here
    assert "EAP of carol" in there
    for text in (here, there):
        assert "another one" not in text
        assert "fO0" not in text


def test_no_secret_of_ours() -> None:
    here, there = refused(make(client(eap_id=parse_identity("erin")), server(eap_id=ANY)), Cause.LOCAL_AUTH,
                      Cause.LOCAL_AUTH)  # fmt: skip
    assert "no EAP secret for erin" in here
    # at once, and not when the time is up
    assert "in the midst of IKE_AUTH" in there


def test_whoever_is_asked_for_eap_does_not_come_in_with_a_key() -> None:
    """Nor does one who is asked for a key come in with EAP."""
    here, there = refused(make(LocalAuth(AuthClass.PSK, parse_identity("moon")), server(eap_id=ANY)),
                          Cause.LOCAL_AUTH, Cause.PEER_AUTH)  # fmt: skip
    assert "is to use EAP" in there
    assert "AUTHENTICATION_FAILED" in here
    here, there = refused(make(client(eap_id=parse_identity("carol")),
                               RemoteAuth(AuthClass.PSK, parse_pattern("moon"))),
                          Cause.LOCAL_AUTH, Cause.PEER_AUTH)  # fmt: skip
    assert "c: remote.auth is not eap" in there


def test_the_responder_proves_itself_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """A password, or what is made from it, goes to nobody else (CVE-2015-4171)."""
    heard: list[bytes] = []
    monkeypatch.setattr(EapPeer, "receive", lambda self, data: heard.append(data))
    pair = make(client(eap_id=parse_identity("carol")), server(eap_id=ANY))
    pair.a.load(*pair.a.connections.values(), secret=b"not that of sun", eap=SECRETS)
    pair.a.initiate()
    pair.world.settle()
    assert [event.problem.failure.cause for event in pair.a.events(Failed)] == [Cause.PEER_AUTH]
    assert not heard
    # which hears of it at once
    (told,) = pair.b.events(Failed)
    assert (told.problem.failure.cause, told.problem.failure.by_peer) == (Cause.LOCAL_AUTH, True)
    assert not pair.b.engine.sas


@pytest.mark.parametrize("payloads", [
    [NotifyPayload(NotifyType.AUTHENTICATION_FAILED)], [DeletePayload(Protocol.IKE, [])]])  # fmt: skip
def test_a_peer_that_gives_up_when_the_method_says_no(
    monkeypatch: pytest.MonkeyPatch, payloads: list[Payload]
) -> None:
    """Instead of an answer to that, as charon."""
    pair = gives_up(monkeypatch, payloads)
    assert pair.world.now < BEGIN + 10
    (told,) = pair.b.events(Failed)
    assert told.problem.failure.cause is Cause.PEER_AUTH
    assert "EAP of carol: the response of EAP-MSCHAPv2 is wrong" in told.problem.failure.reason


def test_a_peer_that_says_nothing_more_when_the_method_says_no(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = gives_up(monkeypatch, None)
    assert pair.world.now > BEGIN + 10
    (told,) = pair.b.events(Failed)
    assert told.problem.failure.cause is Cause.PEER_AUTH


def test_nothing_else_is_said_in_the_midst_of_eap(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = gives_up(monkeypatch, [])
    (told,) = pair.b.events(Failed)
    assert told.problem.failure.cause is Cause.MALFORMED


def gives_up(monkeypatch: pytest.MonkeyPatch, payloads: list[Payload] | None) -> Pair:
    """The password is wrong, and when the peer hears so it says these in INFORMATIONAL, or nothing, and forgets it."""

    class Last(Request):
        exchange = ExchangeType.INFORMATIONAL

        def build(self, sa: IkeSa, now: float) -> list[Payload] | None:
            if payloads is None:
                raise SaFailedError(Failure(Cause.LOCAL_AUTH, "given up"))
            return payloads

        def answered(self, sa: IkeSa, payloads: list[Payload], now: float) -> None:
            sa.destroy("given up", now)

    def request(packet: bytes) -> Request:
        refuses = packet[4:] == bytes((EapType.MSCHAPV2, 4))
        return EapRequest(packet) if not refuses else Last()

    monkeypatch.setattr(eap_auth, "EapRequest", request)
    wrong = (EapSecret(b"wrong", (parse_pattern("carol"),)),)
    pair = make(client(eap_id=parse_identity("carol")), server(eap_id=ANY), wrong)
    pair.a.initiate()
    pair.world.settle()
    assert not pair.b.engine.sas
    return pair


def test_eap_id_chooses_the_connection() -> None:
    pair = make(client(eap_id=parse_identity("dave")), server(eap_id=parse_pattern("carol")))
    first = pair.b.connections["c"]
    second = replace(first, name="d", remote=replace(first.remote, eap_id=parse_pattern("dave")))
    pair.b.load(first, second, eap=SECRETS)
    pair.up()
    assert pair.b.ike.name == "d"
    assert [sa.name for sa in pair.b.engine.named("d")] == ["d"]
    assert not pair.b.engine.named("c")
    pair.finish()


def test_no_connection_for_an_eap_id() -> None:
    """He hears no more than one with a wrong password."""
    pair = make(client(eap_id=parse_identity("dave")), server(eap_id=parse_pattern("carol")))
    here, there = refused(pair, Cause.LOCAL_AUTH, Cause.PEER_ID)
    assert "no connection has eap_id dave" in there
    assert "EAP-Failure after MSCHAPV2" in here


def test_another_connection_has_to_have_the_same_proof_of_ours() -> None:
    pair = make(client(eap_id=parse_identity("dave")), server(eap_id=parse_pattern("carol")))
    first = pair.b.connections["c"]
    local = replace(first.local, id=parse_identity("dave"))
    pair.b.load(first, replace(first, name="d", local=local, remote=replace(first.remote, eap_id=ANY)), eap=SECRETS)
    refused(pair, Cause.LOCAL_AUTH, Cause.PEER_ID)


def test_addresses_and_uniqueness_go_by_the_eap_identity() -> None:
    """Two users on machines of one name are two; one user is one."""
    pair = make(client(eap_id=parse_identity("carol")), server(eap_id=ANY),
                a={"vips": (ip_address("0.0.0.0"),)},
                b={"pools": ("p",), "unique": Unique.REPLACE})  # fmt: skip
    pair.b.pools = [PoolConfig("p", ip_address("10.3.0.1"), ip_address("10.3.0.9"))]
    pair.b.load(*pair.b.connections.values(), eap=SECRETS)
    first = pair.a.connections["c"]
    second = replace(first, name="other", local=replace(first.local, eap_id=parse_identity("dave")))
    pair.a.load(first, second, eap=SECRETS)
    pair.a.initiate("c")
    pair.world.settle()
    pair.a.initiate("other")
    pair.world.settle()
    assert sorted(str(sa.eap_id) for sa in pair.b.ikes) == ["carol", "dave"]
    addresses = {str(sa.addresses[0]) for sa in pair.a.ikes}
    assert len(addresses) == 2
    owners = {str(sa.eap_id): str(sa.leases[0][1]) for sa in pair.b.ikes}
    assert owners == {"carol": "10.3.0.1", "dave": "10.3.0.2"}
    pair.world.close()


def test_rekeying_keeps_the_eap_identity() -> None:
    pair = make(client(eap_id=parse_identity("carol")), server(eap_id=ANY)).up()
    pair.b.do(pair.b.engine.rekey_ike_sa, pair.b.ike)
    pair.world.settle()
    assert eap_id(pair.b) == "carol"
    assert pair.b.engine.of_peer(pair.b.ike.our_id, parse_identity("carol")) == [pair.b.ike]
    pair.finish()


@pytest.mark.parametrize("seed", range(60))
def test_losses(seed: int) -> None:
    link = Link(loss=0.3, duplicate=0.2, reorder=0.3)
    settings = IkeSettings(retransmit_tries=8, retransmit_timeout=1.0, retransmit_base=1.4)
    pair = make(client(eap_id=parse_identity("carol")), server(eap_id=ANY), seed=seed, link=link, settings=settings)
    pair.a.keep = {"c"}
    pair.a.initiate()
    pair.world.run(300)
    pair.world.link = Link()
    pair.world.settle()
    assert pair.a.events(ChildUp)
    pair.finish()


# -- with certificates, and with nothing else (RFC 5998)


STRANGER = Ca("Stranger")


def tls(who: str, own: Certificate, key: Any, root: Ca = ROOT) -> Credentials:
    secrets = [SharedSecret(b"a secret that nobody guesses", (parse_pattern("moon"), parse_pattern("sun")))]
    return Credentials(secrets=secrets, private_keys=[PrivateKey(key)], certificates=[own],
                       authorities=[Authority(root.certificate)], eap_secrets=SECRETS)  # fmt: skip


def with_tls(*, alone: bool, moons: Ca = ROOT, suns: Ca = ROOT, kind: int = EapType.TLS, **more: Any) -> Pair:
    """moon's certificate is for its IDi; ``alone``: EAP is all that sun shows as well."""
    there = {"remote": RemoteAuth(AuthClass.EAP, parse_pattern("sun"), eap_type=kind)} if alone else {}
    here = {"local": LocalAuth(AuthClass.EAP, parse_identity("sun"), eap_type=kind)} if alone else {}
    pair = make(client(eap_type=kind), server(eap_type=kind), a=there, b=here, **more)
    for host, credentials in ((pair.a, tls("moon", MOON, EC_KEY, moons)), (pair.b, tls("sun", SUN, EC384_KEY, suns))):
        host.engine.load(host.connections.values(), credentials, host.pools)
    return pair


@pytest.mark.parametrize("alone", [False, True])
def test_certificates(alone: bool) -> None:
    with_tls(alone=alone).up().finish()


@pytest.mark.parametrize(("newest", "wanted"), [(TlsVersion.TLS_1_2, TLS_1_2), (TlsVersion.TLS_1_3, TLS_1_3)])
def test_the_newest_tls_is_a_setting(newest: TlsVersion, wanted: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Recorded(TlsSession):
        def __init__(self, **more: Any) -> None:
            asked.append(more["newest"])
            super().__init__(**more)

    monkeypatch.setattr("ipsec.ike.eap.tls.TlsSession", Recorded)
    with_tls(alone=False, settings=IkeSettings(tls_version_max=newest)).up().finish()
    assert asked == [wanted, wanted]


@pytest.mark.parametrize("alone", [False, True])
def test_certificates_of_strangers(alone: bool) -> None:
    here, there = refused(with_tls(alone=alone, moons=STRANGER), Cause.PEER_AUTH, Cause.PEER_AUTH)
    assert "no trusted" in here or "trust" in here
    here, there = refused(with_tls(alone=alone, suns=STRANGER), Cause.LOCAL_AUTH, Cause.PEER_AUTH)
    assert "trust" in there


def test_alone_is_for_methods_that_show_safely_who_both_are() -> None:
    """RFC 5998 section 4: whoever answers could try all passwords, or hear one."""
    pair = with_tls(alone=True, kind=EapType.MSCHAPV2)
    own = replace(pair.a.connections["c"], local=client(eap_id=parse_identity("carol")))
    pair.a.engine.load([own], tls("moon", MOON, EC_KEY), ())
    pair.a.connections["c"] = own
    other = pair.b.connections["c"]
    theirs = replace(other, remote=server(eap_type=EapType.MSCHAPV2, eap_id=ANY))
    pair.b.engine.load([theirs], tls("sun", SUN, EC384_KEY), ())
    here, _ = refused(pair, Cause.PEER_AUTH, Cause.LOCAL_AUTH)
    assert "does not show safely who the responder is" in here
    # nothing of what we know went out: who we are, twice, and no more
    assert pair.b.engine.counters.total("ike-auth-in-req") == 2


def test_alone_needs_both_ends() -> None:
    pair = with_tls(alone=True)
    own = replace(pair.a.connections["c"], remote=RemoteAuth(AuthClass.PUBKEY, parse_pattern("sun")))
    pair.a.connections["c"] = own
    pair.a.engine.load([own], tls("moon", MOON, EC_KEY), ())
    _, there = refused(pair, Cause.LOCAL_AUTH, Cause.PEER_AUTH)
    assert "does not do without our AUTH (RFC 5998)" in there


# -- postquantum preshared keys (RFC 8784)


PPK_ID = parse_pattern("shared.example.org")
PPK = (Ppk(b"\xa5" * 32, (PPK_ID,)),)
OTHER_PPK = (Ppk(b"\x5a" * 32, (PPK_ID,)),)


def quantum(kind: int, mine: Sequence[Ppk], theirs: Sequence[Ppk], *, must: str = "") -> Pair:
    """``must``: at these ends, a for moon and b for sun, nothing goes without."""
    local, remote = client(eap_type=kind, eap_id=parse_identity("carol")), server(eap_type=kind, eap_id=ANY)
    pair = make(local, remote, a={"ppk_id": PPK_ID, "ppk_required": "a" in must}, b={"ppk_required": "b" in must})
    for host, ppks in ((pair.a, mine), (pair.b, theirs)):
        host.load(*host.connections.values(), ppks=ppks, eap=SECRETS)
    return pair


@pytest.mark.parametrize("must", ["", "ab"])
@pytest.mark.parametrize("kind", [EapType.MSCHAPV2, EapType.MD5])
def test_quantum(kind: int, must: str) -> None:
    pair = quantum(kind, PPK, PPK, must=must).up()
    assert pair.a.ike.ppk
    assert pair.b.ike.ppk
    pair.finish()


@pytest.mark.parametrize("kind", [EapType.MSCHAPV2, EapType.MD5])
def test_going_without(kind: int) -> None:
    unknown = (Ppk(b"\x5a" * 32, (parse_pattern("another"),)),)
    for theirs in ((), unknown):
        pair = quantum(kind, PPK, theirs).up()
        assert not pair.a.ike.ppk
        assert not pair.b.ike.ppk
        pair.finish()


@pytest.mark.parametrize("kind", [EapType.MSCHAPV2, EapType.MD5])
def test_not_going_without(kind: int) -> None:
    unknown = (Ppk(b"\x5a" * 32, (parse_pattern("another"),)),)
    refused(quantum(kind, PPK, OTHER_PPK), Cause.LOCAL_AUTH, Cause.PEER_AUTH)
    refused(quantum(kind, PPK, OTHER_PPK, must="ab"), Cause.LOCAL_AUTH, Cause.PEER_AUTH)
    refused(quantum(kind, PPK, unknown, must="a"), Cause.LOCAL_AUTH, Cause.PEER_AUTH)
    refused(quantum(kind, PPK, unknown, must="b"), Cause.LOCAL_AUTH, Cause.PEER_AUTH)
    here, _ = refused(quantum(kind, PPK, (), must="a"), Cause.REFUSED, Cause.NOT_IN_TIME)
    assert "no postquantum preshared keys" in here
    here, _ = refused(quantum(kind, (), PPK, must="a"), Cause.LOCAL_AUTH, Cause.NOT_IN_TIME)
    assert "ppk_required" in here


# -- several rounds (RFC 4739)


KEY = LocalAuth(AuthClass.PSK, parse_identity("moon"))
KEY_THERE = RemoteAuth(AuthClass.PSK, parse_pattern("moon"))
USER = LocalAuth(AuthClass.EAP, parse_identity("moon"), eap_id=parse_identity("carol"))
USER_THERE = RemoteAuth(AuthClass.EAP, parse_pattern("moon"), eap_id=ANY)


def in_rounds(mine: Sequence[LocalAuth], theirs: Sequence[RemoteAuth], secrets: Sequence[EapSecret] = SECRETS) -> Pair:
    return make(mine[0], theirs[0], secrets, a={"local_rounds": tuple(mine[1:])},
                b={"remote_rounds": tuple(theirs[1:])})  # fmt: skip


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        pytest.param((KEY, USER), (KEY_THERE, USER_THERE), id="key, EAP"),
        pytest.param((USER, KEY), (USER_THERE, KEY_THERE), id="EAP, key"),
        pytest.param((KEY, KEY), (KEY_THERE, KEY_THERE), id="key, key"),
        pytest.param((USER, USER), (USER_THERE, USER_THERE), id="EAP, EAP"),
        pytest.param((KEY, USER, KEY), (KEY_THERE, USER_THERE, KEY_THERE), id="key, EAP, key"),
    ],
)
def test_rounds(mine: Sequence[LocalAuth], theirs: Sequence[RemoteAuth]) -> None:
    pair = in_rounds(mine, theirs).up()
    assert eap_id(pair.b) == ("carol" if USER in mine else None)
    assert str(pair.b.ike.peer_id) == "moon"
    pair.finish()


def test_a_second_round_that_fails() -> None:
    wrong = (EapSecret(b"wrong", (parse_pattern("carol"),)),)
    pair = in_rounds((KEY, USER), (KEY_THERE, USER_THERE), wrong)
    here, there = refused(pair, Cause.LOCAL_AUTH, Cause.PEER_AUTH)
    assert "refuses us as carol" in here
    assert "EAP of carol" in there
    other = LocalAuth(AuthClass.PSK, parse_identity("dave"))
    here, there = refused(in_rounds((KEY, other), (KEY_THERE, KEY_THERE)), Cause.LOCAL_AUTH, Cause.PEER_ID)
    assert "the peer is dave, we want moon" in there


@pytest.mark.parametrize(
    ("mine", "theirs", "why"),
    [
        ((KEY,), (KEY_THERE, USER_THERE), "the peer ends after 1 of 2 authentications"),
        ((USER,), (USER_THERE, KEY_THERE), "the peer ends after 1 of 2 authentications"),
        ((KEY, USER), (KEY_THERE, USER_THERE, KEY_THERE), "the peer ends after 2 of 3 authentications"),
        ((KEY, USER, KEY), (KEY_THERE, USER_THERE), "the peer goes on after 2 of 2 authentications"),
        ((KEY, KEY), (KEY_THERE, USER_THERE), "is to use EAP"),
        ((KEY, USER), (KEY_THERE, KEY_THERE), "remote.auth of this round is not eap"),
    ],
)
def test_not_as_many_rounds(mine: Sequence[LocalAuth], theirs: Sequence[RemoteAuth], why: str) -> None:
    """None is left out, whatever else is right."""
    pair = in_rounds(mine, theirs)
    _, there = refused(pair, Cause.LOCAL_AUTH, Cause.PEER_AUTH)
    assert why in there


def test_a_peer_with_one_round() -> None:
    here, _ = refused(in_rounds((KEY, USER), (KEY_THERE,)), Cause.REFUSED, Cause.NOT_IN_TIME)
    assert "the peer takes one (RFC 4739)" in here


def test_rounds_choose_the_connection() -> None:
    """Whoever says that another authentication follows is not for a connection with one, and the other way round."""
    for mine, name in (((KEY,), "one"), ((KEY, USER), "two")):
        pair = in_rounds(mine, (KEY_THERE,))
        one = replace(pair.b.connections["c"], name="one")
        pair.b.load(replace(one, name="two", remote_rounds=(USER_THERE,)), one, eap=SECRETS)
        pair.up()
        assert pair.b.ike.name == name
        pair.finish()


# -- a server elsewhere


class Aaa:
    """An EAP server that is somebody else: what it is asked, and what it says."""

    def __init__(self, pair: Pair, method: Callable[[], ServerMethod]) -> None:
        self.pair = pair
        self.method = method
        self.server: EapServer | None = None
        self.asked: list[tuple[bytes, bytes]] = []

    def serve(self, limit: int = 20) -> None:
        """Answer until there is nothing more to answer."""
        for _ in range(limit):
            self.pair.world.run(1)
            events = self.pair.b.events(EapAnswerNeeded)[len(self.asked) :]
            if not events:
                return
            for event in events:
                self.asked.append((event.identity, event.packet))
                self.pair.b.do(self.pair.b.engine.eap_answered, event.sa.uid, self.answer(event.packet))

    def answer(self, packet: bytes) -> EapAnswer:
        if self.server is None:
            # it has the identity already, and goes on from the identifier of that
            self.server = EapServer(True, lambda user: None, lambda: (self.method().type,), lambda kind: self.method(),
                                    packet[1])  # fmt: skip
        try:
            request = self.server.receive(packet)
        except EapError as error:
            return EapAnswer(self.server.failure(), False, None, str(error))
        if request is not None:
            return EapAnswer(request, None)
        return EapAnswer(self.server.success(), True, self.server.msk)


def mschapv2() -> ServerMethod:
    return Mschapv2Server(nt_password_hash(PASSWORD), lambda size: bytes(range(size)), b"aaa")


def relayed(password: bytes = PASSWORD, *, asks: bool = True, wanted: IdentityPattern = ANY) -> Pair:
    secrets = (EapSecret(password, (parse_pattern("carol" if asks else "moon"),)),)
    local = client(eap_id=parse_identity("carol") if asks else None)
    remote = server(eap_id=wanted if asks else None, eap_radius=True)
    return make(local, remote, secrets, ())


@pytest.mark.parametrize("asks", [False, True], ids=["IDi", "Identity"])
def test_a_server_elsewhere(asks: bool) -> None:
    pair = relayed(asks=asks)
    aaa = Aaa(pair, mschapv2)
    pair.a.initiate()
    aaa.serve()
    pair.agree()
    assert {identity for identity, _ in aaa.asked} == {b"carol" if asks else b"moon"}
    assert len(aaa.asked) == 3
    assert eap_id(pair.b) == ("carol" if asks else None)
    pair.finish()


def test_a_server_elsewhere_that_refuses() -> None:
    pair = relayed(b"wrong")
    aaa = Aaa(pair, mschapv2)
    pair.a.initiate()
    aaa.serve()
    assert not pair.a.engine.sas
    assert not pair.b.engine.sas
    assert [event.problem.failure.cause for event in pair.b.events(Failed)] == [Cause.PEER_AUTH]
    assert "error 691, wrong user name or password" in pair.a.events(Failed)[0].problem.failure.reason


def test_a_server_elsewhere_is_not_asked_about_whom_nobody_wants() -> None:
    pair = relayed(wanted=parse_pattern("dave"))
    aaa = Aaa(pair, mschapv2)
    pair.a.initiate()
    aaa.serve()
    assert not aaa.asked
    assert [event.problem.failure.cause for event in pair.b.events(Failed)] == [Cause.PEER_ID]


def test_a_server_elsewhere_that_never_ends() -> None:
    """Nobody else bounds what an IKE_SA that is half-open makes us do."""
    relay = EapRelay(False, lambda user: None, b"moon")
    with pytest.raises(EapAnswerNeededError):
        relay.begin()
    request = EapAnswer(EapPacket(EapCode.REQUEST, 1, EapType.GTC).emit(), None)
    response = EapPacket(EapCode.RESPONSE, 1, EapType.GTC).emit()
    relay.answer = request
    relay.begin()
    for _ in range(ROUNDS_MAX - 1):
        relay.answer = request
        assert relay.receive(response) == request.packet
    relay.answer = request
    with pytest.raises(EapError, match=f"more than {ROUNDS_MAX}"):
        relay.receive(response)


REQUEST = EapPacket(EapCode.REQUEST, 7, EapType.MD5, b"\x01x").emit()


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (EapAnswer(None, False, None, "no RADIUS server answers"), "no RADIUS server answers"),
        (EapAnswer(REQUEST, False), "refuses"),
        (EapAnswer(None, None), "sends what is none"),
        (EapAnswer(b"\x01\x07\x00\x05", None), "sends what is none"),
        (EapAnswer(EapPacket(EapCode.SUCCESS, 7).emit(), None), "goes on with SUCCESS"),
    ],
)
def test_nonsense_of_a_server_elsewhere(answer: EapAnswer, why: str) -> None:
    """It is the end, and the peer hears EAP-Failure."""
    pair = relayed()
    pair.a.initiate()
    pair.world.run(1)
    (asked,) = pair.b.events(EapAnswerNeeded)
    pair.b.do(pair.b.engine.eap_answered, asked.sa.uid, answer)
    pair.world.settle()
    assert not pair.b.engine.sas
    assert why in pair.b.events(Failed)[0].problem.failure.reason
    assert "EAP-Failure before any method" in pair.a.events(Failed)[0].problem.failure.reason


def test_acceptance_at_once_is_believed_by_nobody() -> None:
    """The server may say so, the peer knows of no method that has succeeded (CVE-2021-45079)."""
    pair = relayed()
    pair.a.initiate()
    pair.world.run(1)
    (asked,) = pair.b.events(EapAnswerNeeded)
    pair.b.do(pair.b.engine.eap_answered, asked.sa.uid, EapAnswer(None, True))
    pair.world.settle()
    assert not pair.a.engine.sas
    assert "EAP-Success before the method was done" in pair.a.events(Failed)[0].problem.failure.reason
    assert not pair.b.events(IkeUp)


def test_an_answer_for_one_that_is_gone() -> None:
    pair = relayed()
    pair.a.initiate()
    pair.world.run(1)
    (asked,) = pair.b.events(EapAnswerNeeded)
    pair.world.run(60)
    assert not pair.b.engine.sas
    assert not pair.b.engine._relays
    pair.b.do(pair.b.engine.eap_answered, asked.sa.uid, EapAnswer(REQUEST, None))
    assert not pair.b.engine.sas
