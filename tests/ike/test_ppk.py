"""Postquantum preshared keys (RFC 8784): who uses one, who goes without, and who refuses."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from ipsec.crypto.identity import Identity, IdentityPattern, parse_pattern
from ipsec.crypto.prf import prf_algorithm, supported_prfs
from ipsec.ike import auth, ppk
from ipsec.ike import credentials as ike_credentials
from ipsec.ike.credentials import PPK_ID_MAX, Credentials, Ppk, matches_ppk
from ipsec.ike.events import IkeUp
from ipsec.ike.failure import Cause
from ipsec.ike.keymat import IkeKeys, with_ppk
from ipsec.ike.sa import IkeSa
from ipsec.wire.iana import AuthMethod, IdType, NotifyType
from ipsec.wire.payloads import AuthPayload, NotifyPayload
from tests.pair import Pair
from tests.sim.host import SimHost

ID = b"shared.example.org"
WHICH = parse_pattern("shared.example.org")
ANOTHER = parse_pattern("another.example.org")
HAS = (Ppk(b"\xa5" * 32, (ANOTHER, WHICH), "ppk-1"),)
WRONG = (Ppk(b"\x5a" * 32, (WHICH,), "ppk-1"),)
OTHER = (Ppk(b"\x5a" * 32, (parse_pattern("somebody"),), "ppk-2"),)
WISH = {"ppk_id": WHICH}
MUST = {"ppk_id": WHICH, "ppk_required": True}
NEEDS = {"ppk_required": True}


def make(a: dict[str, Any], a_has: Sequence[Ppk], b: dict[str, Any], b_has: Sequence[Ppk], **more: Any) -> Pair:
    """moon and sun, with these settings of the connection and these PPKs."""
    pair = Pair(a=a, b=b, **more)
    for host, ppks in ((pair.a, a_has), (pair.b, b_has)):
        host.load(*host.connections.values(), ppks=ppks)
    return pair


def used(host: SimHost) -> list[bool]:
    return [sa.ppk for sa in host.engine.sas.values() if sa.established]


# -- keys


@pytest.mark.parametrize("number", supported_prfs())
def test_keys(number: int) -> None:
    """Section 3: SK_d, SK_pi and SK_pr are prf+ of the PPK and what they were; nothing else is changed."""
    prf = prf_algorithm(number)
    old = IkeKeys(*(bytes((n,)) * prf.key_len for n in range(7)))
    new = with_ppk(prf, old, b"PPK" * 20)
    for name in ("sk_d", "sk_pi", "sk_pr"):
        assert getattr(new, name) == prf.plus(b"PPK" * 20, getattr(old, name), prf.key_len)
    assert all(getattr(new, name) == getattr(old, name) for name in ("sk_ai", "sk_ar", "sk_ei", "sk_er"))


def test_key_by_hand() -> None:
    """prf+ for one block, with HMAC and nothing of ours: prf(PPK, SK | 0x01)."""
    old = IkeKeys(*(bytes((n,)) * 32 for n in range(7)))
    new = with_ppk(prf_algorithm(5), old, b"\x01\x02\x03")
    assert new.sk_d == hmac.digest(b"\x01\x02\x03", old.sk_d + b"\x01", "sha256")
    assert new.sk_pr == hmac.digest(b"\x01\x02\x03", old.sk_pr + b"\x01", "sha256")


def test_which() -> None:
    everybodys, some = Ppk(b"e"), Ppk(b"s", (parse_pattern("*.example.org"),))
    credentials = Credentials(ppks=[everybodys, some, *HAS, *WRONG])
    assert credentials.find_ppk(ID) is HAS[0]
    assert credentials.find_ppk(ID.upper()) is some
    assert credentials.find_ppk(b"unknown") is everybodys
    assert credentials.find_ppk(b"\xff\0") is everybodys
    assert Credentials(ppks=HAS).find_ppk(ID.upper()) is None
    assert Credentials(ppks=HAS).find_ppk(b"unknown") is None
    for text, octets in (("192.0.2.1", bytes((192, 0, 2, 1))), ("@#0aff", b"\x0a\xff"), ("Gw", b"Gw")):
        assert matches_ppk(parse_pattern(text), octets)
    # of one that means a single one nothing but the octets, wherever it is asked
    for text, octets in (("192.0.2.1", b"192.0.2.1"), ("Gw", b"gw")):
        assert not matches_ppk(parse_pattern(text), octets)
        assert Credentials(ppks=[Ppk(b"k", (parse_pattern(text),))]).find_ppk(octets) is None
    assert "a5" not in repr(HAS[0])
    assert "\\xa5" not in repr(HAS[0])


def test_an_identity_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever sends it is not authenticated yet, and may send what takes long to read."""
    read: list[str] = []
    parse = ike_credentials.parse_identity
    monkeypatch.setattr(ike_credentials, "parse_identity", lambda text: read.append(text) or parse(text))
    many = Credentials(ppks=[Ppk(b"k", (parse_pattern(f"*.{n}.example.org"),)) for n in range(50)])
    assert many.find_ppk(b"read.once.example.org") is None
    assert many.find_ppk(b"x.7.example.org") is many.ppks[7]
    for _ in range(8):
        assert many.find_ppk((b"CN=a," * 250)[:1020]) is None
        assert many.find_ppk(b"a" * 1020) is None
    assert read == ["read.once.example.org", "x.7.example.org"]


# -- the table of section 3


@pytest.mark.parametrize(
    ("a", "a_has", "b", "b_has", "ppk"),
    [
        ({}, (), {}, (), False),
        ({}, HAS, {}, HAS, False),
        (WISH, HAS, {}, HAS, True),
        (WISH, HAS, WISH, HAS, True),
        (MUST, HAS, {}, HAS, True),
        (WISH, HAS, NEEDS, HAS, True),
        (MUST, HAS, MUST, HAS, True),
        (WISH, HAS, {}, (), False),
        (WISH, HAS, {}, OTHER, False),
        (WISH, OTHER, {}, HAS, False),
        (WISH, (), {}, (), False),
        (WISH, HAS, {}, (Ppk(b"\xa5" * 32),), True),
        (WISH, HAS, {"ppk_id": parse_pattern("*.example.org"), "ppk_required": True}, HAS, True),
        ({"ppk_id": parse_pattern("*.example.org")}, HAS, {}, HAS, False),
        (WISH, HAS, {"ppk_id": parse_pattern("*.EXAMPLE.org")}, HAS, True),
    ],
)
def test_up(a: dict[str, Any], a_has: Sequence[Ppk], b: dict[str, Any], b_has: Sequence[Ppk], ppk: bool) -> None:
    pair = make(a, a_has, b, b_has).up()
    assert used(pair.a) == used(pair.b) == [ppk]
    pair.a.do(pair.a.engine.rekey_ike_sa, pair.a.ikes[0])
    pair.world.settle()
    pair.b.do(pair.b.engine.rekey_child, pair.b.children[0])
    pair.world.settle()
    assert used(pair.a) == used(pair.b) == [ppk]
    pair.finish()


@pytest.mark.parametrize(
    ("a", "a_has", "b", "b_has", "causes"),
    [
        (MUST, HAS, {}, (), {Cause.REFUSED}),
        (MUST, HAS, {}, OTHER, {Cause.LOCAL_AUTH, Cause.PEER_AUTH}),
        (MUST, (), {}, HAS, {Cause.LOCAL_AUTH}),
        (NEEDS, HAS, {}, HAS, {Cause.LOCAL_AUTH}),
        (WISH, HAS, {"ppk_id": ANOTHER}, HAS, {Cause.LOCAL_AUTH, Cause.PEER_AUTH}),
        (MUST, HAS, {"ppk_id": ANOTHER, "ppk_required": True}, HAS, {Cause.LOCAL_AUTH, Cause.PEER_AUTH}),
        (WISH, HAS, {"ppk_id": ANOTHER}, OTHER, {Cause.LOCAL_AUTH, Cause.PEER_AUTH}),
        (WISH, HAS, {}, WRONG, {Cause.LOCAL_AUTH, Cause.PEER_AUTH}),
        (MUST, HAS, {}, WRONG, {Cause.LOCAL_AUTH, Cause.PEER_AUTH}),
        ({}, HAS, NEEDS, HAS, {Cause.LOCAL_AUTH, Cause.PEER_AUTH}),
        (WISH, HAS, NEEDS, (), {Cause.LOCAL_AUTH, Cause.PEER_AUTH}),
        (WISH, HAS, NEEDS, OTHER, {Cause.LOCAL_AUTH, Cause.PEER_AUTH}),
        (WISH, OTHER, NEEDS, HAS, {Cause.LOCAL_AUTH, Cause.PEER_AUTH}),
    ],
)
def test_refused(
    a: dict[str, Any], a_has: Sequence[Ppk], b: dict[str, Any], b_has: Sequence[Ppk], causes: set[Cause]
) -> None:
    pair = make(a, a_has, b, b_has)
    pair.a.initiate()
    pair.world.run(120)
    assert not used(pair.a)
    assert not used(pair.b)
    found = {problem.failure.cause for host in (pair.a, pair.b) for problem in host.engine.problems}
    assert found - {Cause.NOT_IN_TIME} == causes


def test_another_connection_may_go_without() -> None:
    """The connection that needs a PPK is not the only one that has this peer."""
    pair = make({}, (), {}, HAS)
    (plain,) = pair.b.connections.values()
    pair.b.load(replace(plain, name="first", ppk_required=True), plain, ppks=HAS)
    pair.a.initiate()
    pair.world.settle()
    assert [sa.name for sa in pair.b.ikes] == ["c"]
    assert used(pair.b) == [False]


# -- what a peer may say


def test_identities() -> None:
    """Section 5.1: a type and its octets. Those of another type, and endless ones, are none that we know."""
    proof = AuthPayload(AuthMethod.SHARED_KEY, b"AUTH")

    def said(data: bytes) -> bytes | None:
        found = ppk.received(proof, [NotifyPayload(NotifyType.PPK_IDENTITY, data)])
        assert found.asks
        return found.ppk_id

    assert said(b"\x02" + ID) == ID
    assert said(b"\x02" + bytes(PPK_ID_MAX)) == bytes(PPK_ID_MAX)
    for odd in (b"\x01" + ID, b"\x03" + ID, b"\x02", b"", b"\x02" + bytes(PPK_ID_MAX + 1)):
        assert said(odd) is None
    assert ppk.received(proof, []) == (False, None, None)
    # without an identity nothing is asked for, so there is nothing to go without
    only = [NotifyPayload(NotifyType.NO_PPK_AUTH, b"other AUTH")]
    assert ppk.received(proof, only) == (False, None, None)
    both = [*only, NotifyPayload(NotifyType.PPK_IDENTITY, b"\x02" + ID)]
    assert ppk.received(proof, both).without == AuthPayload(AuthMethod.SHARED_KEY, b"other AUTH")


@pytest.mark.parametrize("data", [b"\x01" + ID, b"", b"\x02", b"\x02" + bytes(PPK_ID_MAX + 1)])
def test_identity_that_we_do_not_know_is_nobodys(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    """Also where there is a PPK for all: the peer goes without."""
    monkeypatch.setattr(ppk, "identity", lambda connection: NotifyPayload(NotifyType.PPK_IDENTITY, data))
    pair = make(WISH, HAS, {}, (Ppk(b"\xa5" * 32),)).up()
    assert used(pair.b) == [False]
    pair.finish()


@pytest.mark.parametrize(("ppk_id", "said"), [(WHICH, True), (parse_pattern("*.example.org"), False), (None, False)])
def test_who_can_name_none_does_not_say_that_it_uses_one(ppk_id: IdentityPattern | None, said: bool) -> None:
    (connection,) = make({"ppk_id": ppk_id}, HAS, {}, HAS).a.connections.values()
    assert bool(ppk.announcement(connection)) is said


def test_refused_before_anything_is_said() -> None:
    """Who may not go without does not show itself first: INITIAL_CONTACT would close what is up."""
    pair = make(NEEDS, HAS, {}, HAS)
    pair.a.initiate()
    pair.world.run(1)
    assert not pair.a.engine.sas
    assert [sa.established for sa in pair.b.engine.sas.values()] == [False]
    assert not any(problem.failure.cause is Cause.PEER_AUTH for problem in pair.b.engine.problems)


def test_refusal_takes_as_long_as_a_wrong_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """OB-62: AUTH is looked at whatever speaks against the PPK."""
    seen: list[bytes] = []
    verify = auth.verify_proof

    def count(*arguments: Any) -> None:
        seen.append(arguments[6])
        verify(*arguments)

    monkeypatch.setattr(auth, "verify_proof", count)
    for b, b_has in ((NEEDS, OTHER), ({"ppk_id": ANOTHER}, HAS), ({}, WRONG)):
        seen.clear()
        pair = make(MUST, HAS, b, b_has)
        pair.a.initiate()
        pair.world.run(5)
        assert len(seen) == 1


def test_any_octets_are_an_identity_that_we_have_not() -> None:
    """Whatever the identity, the peer goes without; the log shows it bounded, and in ASCII."""
    for data in (b"\x00\n\xff", b"x" * 900, "\u00e4".encode()):
        ppk_id = IdentityPattern.exactly(Identity(IdType.KEY_ID, data))
        pair = make({"ppk_id": ppk_id}, (Ppk(b"k" * 32, (ppk_id,)),), {}, HAS).up()
        assert used(pair.b) == [False]
        pair.finish()


@pytest.mark.parametrize("lies", [True, False])
def test_responder_that_claims_or_denies_it(monkeypatch: pytest.MonkeyPatch, lies: bool) -> None:
    """An N(PPK_IDENTITY) too many or too few in the answer: AUTH is over other keys, and nobody is believed."""
    pair = make(WISH, HAS, {}, OTHER if lies else HAS)
    monkeypatch.setattr(ppk, "accepted", lambda payloads: lies)
    pair.a.initiate()
    pair.world.run(120)
    assert not used(pair.a)
    assert not used(pair.b)


def test_a_responder_that_lets_us_in_without_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who can do without the PPK has nothing but the keys that it is to protect: it need not verify what we send."""
    verify = auth.verify_proof

    def believe(sa: IkeSa, *more: Any) -> None:
        if sa.initiator:
            verify(sa, *more)

    monkeypatch.setattr(auth, "verify_proof", believe)
    monkeypatch.setattr(ppk, "answer", lambda sa, connection, proof, peer: ppk.Answer(proof))
    pair = make(MUST, HAS, WISH, OTHER)
    pair.a.initiate()
    pair.world.run(120)
    assert not used(pair.a)
    assert not pair.a.events(IkeUp)
    assert not pair.a.outbound
