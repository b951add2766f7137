"""Peers that are not who they say: whatever is wrong with their proof, all they hear is AUTHENTICATION_FAILED.

Each test begins with the genuine IKE_AUTH message and makes one thing of it wrong, under the valid keys: that is what
a man in the middle of IKE_SA_INIT, or a peer of another tunnel, is able to send.
"""

from __future__ import annotations

import io
import logging
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import (
    CRLDistributionPoints,
    DistributionPoint,
    DNSName,
    ObjectIdentifier,
    UniformResourceIdentifier,
    UnrecognizedExtension,
)
from cryptography.x509.ocsp import OCSPCertStatus

from ipsec.crypto.auth import Scheme, is_psk_auth
from ipsec.crypto.identity import parse_identity, parse_pattern
from ipsec.crypto.prf import PrfAlgorithm
from ipsec.crypto.revocation import OcspResponse, revocation_sources
from ipsec.crypto.sk import SkCipher
from ipsec.ike import proof
from ipsec.ike.config import AuthClass, LocalAuth, RemoteAuth
from ipsec.ike.credentials import Authority, Credentials, PrivateKey, SharedSecret
from ipsec.ike.events import Failed, IkeUp, InstallChild, RevocationNeeded
from ipsec.ike.failure import Cause
from ipsec.ike.keymat import IkeKeys
from ipsec.ike.sa import IkeSa
from ipsec.ike.state import IkeState
from ipsec.ike.status import StatusCache
from ipsec.wire.iana import CertEncoding, ExchangeType, IdType, NotifyType, PayloadType
from ipsec.wire.ike import emit_payloads, parse_header, parse_payloads
from ipsec.wire.payloads import AuthPayload, CertPayload, IdPayload, NotifyPayload, Payload
from tests.crypto.pki import DAY, EC384_KEY, EC_KEY, RSA_KEY, WALL, Ca
from tests.crypto.test_revocation import chain_of, respond
from tests.ike.hostile import (
    MOON,
    ROOT,
    SECRET,
    SUN,
    Attack,
    B,
    Lab,
    Target,
    cert_credentials,
    connection,
    credentials_stay,
    seal,
    unseal,
)

AUTH = ExchangeType.IKE_AUTH
#: methods of RFC 7296 and RFC 7427, EAP-only and NULL, and numbers nobody has
METHODS = (0, 1, 2, 3, 9, 10, 11, 12, 13, 14, 15, 201, 255)


class Stage:
    """An IKE_SA right before IKE_AUTH comes: the request for the responder, or the response for the initiator."""

    def __init__(self, *, certs: bool = False, response: bool = False, **more: Any) -> None:
        self.lab = Lab(certs=certs, **more).initiate(pump=False)
        before = 3 if response else 2
        if certs:
            before += 2  # COOKIE: our answer would be longer than the request
        self.lab.pump(before)
        self.engine: Target = self.lab.a if response else self.lab.b
        self.sa: IkeSa = next(iter(self.engine.sas.values()))
        self.response = response
        self.data = self.lab.sent[-1]
        header = parse_header(self.data)
        assert (header.exchange, header.response) == (AUTH, response)
        first, content = unseal(self.engine, self.data)
        self.payloads = parse_payloads(first, content, AUTH, True)
        self.attack = Attack(self.engine, self.sa.path, self.lab.now)

    @property
    def auth(self) -> AuthPayload:
        return next(p for p in self.payloads if isinstance(p, AuthPayload))

    def changed(self, kind: type, *instead: Payload) -> list[Payload]:
        """The payloads with the first of a kind replaced."""
        at = next(i for i, p in enumerate(self.payloads) if isinstance(p, kind))
        return [*self.payloads[:at], *instead, *self.payloads[at + 1 :]]

    def build(self, payloads: list[Payload]) -> bytes:
        header = parse_header(self.data)
        return seal(self.sa, *emit_payloads(payloads), AUTH, header.message_id, response=self.response)

    def give(self, payloads: list[Payload]) -> tuple[bool, list[bytes]]:
        """Whether it is believed, and what comes back; then everything is as before."""
        events = self._send(payloads)
        out = [(data, path) for data, path, _ in self.engine.datagrams_to_send()]
        believed = any(isinstance(e, IkeUp | InstallChild) for e in events) or self.sa.established_at > 0
        answers = [data for data, _ in out]
        plain = [self._open(data) for data in answers]
        self.attack.before.restore()
        return believed, plain

    def _send(self, payloads: list[Payload]) -> list[Any]:
        self.cipher = self.sa.out_cipher
        with credentials_stay(self.engine):
            self.engine.receive_datagram(self.build(payloads), self.sa.path, self.lab.now)
        return self.engine.drain()

    def _open(self, data: bytes) -> bytes:
        assert self.cipher is not None
        return bytes((data[18],)) + data[28:29] + self.cipher.open(data[:32], data[32:])

    def refused(self, payloads: list[Payload]) -> None:
        believed, answers = self.give(payloads)
        assert not believed
        assert answers == [REFUSAL_REQUEST if self.response else REFUSAL]


def _refusal(exchange: int) -> bytes:
    first, content = emit_payloads([NotifyPayload(NotifyType.AUTHENTICATION_FAILED)])
    return bytes((exchange, first)) + content


#: exchange, first payload and contents of all that a peer who is not believed gets
REFUSAL = _refusal(AUTH)
#: section 2.21.2: the initiator tells it in an exchange of its own
REFUSAL_REQUEST = _refusal(ExchangeType.INFORMATIONAL)

SIDES = pytest.mark.parametrize("response", [False, True], ids=["request", "response"])
CERTS = pytest.mark.parametrize("certs", [False, True], ids=["psk", "certificates"])


@SIDES
@CERTS
def test_the_genuine_one_is_believed(certs: bool, response: bool) -> None:
    stage = Stage(certs=certs, response=response)
    believed, _ = stage.give(stage.payloads)
    assert believed


def bad_auth(good: bytes, method: int) -> Iterator[AuthPayload]:
    for data in (b"", b"\0", b"\0" * len(good), b"\xff" * len(good), good[:-1], good + b"\0", good[:1], good[::-1]):
        yield AuthPayload(method, data)
    for at in range(len(good)):
        yield AuthPayload(method, good[:at] + bytes((good[at] ^ 1 << at % 8,)) + good[at + 1 :])
    for other in METHODS:
        if other != method:
            yield AuthPayload(other, good)
            yield AuthPayload(other, b"")
            yield AuthPayload(other, bytes(32))
            yield AuthPayload(other, bytes(64))


@SIDES
@CERTS
def test_cve_t_01_auth_that_does_not_hold(certs: bool, response: bool) -> None:
    """CVE-2013-2944, CVE-T-50: no octets, zeros, one octet, any bit wrong, another method."""
    stage = Stage(certs=certs, response=response)
    count = 0
    for payload in bad_auth(stage.auth.data, stage.auth.method):
        stage.refused(stage.changed(AuthPayload, payload))
        count += 1
    assert count > 60


ALGORITHMS = {
    "ecdsa-sha256": bytes.fromhex("300a06082a8648ce3d040302"),
    "ecdsa-sha384": bytes.fromhex("300a06082a8648ce3d040303"),
    "rsa-sha256": bytes.fromhex("300d06092a864886f70d01010b0500"),
    "rsa-sha1": bytes.fromhex("300d06092a864886f70d0101050500"),
    "ecdsa-sha1": bytes.fromhex("300906072a8648ce3d0401"),
    "ed25519": bytes.fromhex("300506032b6570"),
    "pss": bytes.fromhex("300d06092a864886f70d01010a3000"),
}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_cve_t_01_signatures_of_nothing(name: str) -> None:
    """r = 0, s = 0 and the like, for every AlgorithmIdentifier of RFC 7427."""
    stage = Stage(certs=True)
    identifier = ALGORITHMS[name]
    empty = bytes.fromhex("3006020100020100")
    one = bytes.fromhex("3006020101020101")
    negative = bytes.fromhex("30060201ff0201ff")
    for signature in (b"", b"\0", bytes(64), bytes(256), empty, one, negative, b"\x30\0", b"\x30\x80\0\0", bytes(70)):
        for length in {len(identifier), 0, 1, len(identifier) - 1, 255}:
            data = bytes((length,)) + identifier + signature
            stage.refused(stage.changed(AuthPayload, AuthPayload(14, data)))


@SIDES
def test_another_psk(response: bool) -> None:
    stage = Stage(response=response)
    for wrong in (b"", b"x", SECRET + b"0", SECRET[:-1], SECRET.upper()):
        owners = (parse_pattern("moon"), parse_pattern("sun"))
        stage.engine.credentials = Credentials(secrets=[SharedSecret(wrong, owners)])
        stage.refused(stage.payloads)
    stage.engine.credentials = Credentials()
    stage.refused(stage.payloads)


PAIR = (parse_pattern("moon"), parse_pattern("sun"))
STARS = (parse_pattern("%any"),)


def test_a_key_that_is_being_changed() -> None:
    """The responder has the new key as well; it answers with the one that the initiator has."""
    lab = Lab()
    keys = [SharedSecret(b"the new key", PAIR), SharedSecret(SECRET, PAIR), SharedSecret(b"another", STARS)]
    lab.b.credentials = Credentials(secrets=keys)
    lab.initiate()
    assert lab.sa(lab.a).established
    assert lab.sa(lab.b).established


def test_a_responder_that_shows_another_of_our_keys() -> None:
    stage = Stage(response=True)
    stage.engine.credentials = Credentials(secrets=[SharedSecret(b"the new key", PAIR), SharedSecret(SECRET, PAIR)])
    assert stage.give(stage.payloads)[0]


@SIDES
@pytest.mark.parametrize("whose", ["nobody", "%any", "*", "ours", "theirs", "fqdn:^.*$"])
def test_a_key_of_a_group_is_none_of_two_that_have_their_own(whose: str, response: bool) -> None:
    """Everybody in the group has it, and could show it as any of the others."""
    stage = Stage(response=response)
    names = {"ours": "moon" if response else "sun", "theirs": "sun" if response else "moon"}
    owners = () if whose == "nobody" else (parse_pattern(names.get(whose, whose)),)
    stage.engine.credentials = Credentials(secrets=[SharedSecret(SECRET, owners), SharedSecret(b"their own", PAIR)])
    stage.refused(stage.payloads)
    stage.engine.credentials = Credentials(secrets=[SharedSecret(SECRET, owners)])
    assert stage.give(stage.payloads)[0]


@SIDES
def test_a_key_of_somebody_else_is_not_tried(response: bool) -> None:
    """RFC 4301 section 4.4.3."""
    stage = Stage(response=response)
    ours = "moon" if response else "sun"
    owners = (parse_pattern(ours), parse_pattern("carol"))
    stage.engine.credentials = Credentials(secrets=[SharedSecret(b"the new key", PAIR), SharedSecret(SECRET, owners)])
    stage.refused(stage.payloads)


def test_no_identity_is_told_by_the_number_of_its_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """OB-62: nobody's, with one key, with two, and with the right one: all take as many computations."""
    stage = Stage(a={}, b={"remote": RemoteAuth(AuthClass.PSK, parse_pattern("%any"))})
    calls: list[bytes] = []

    def counted(prf: PrfAlgorithm, secret: bytes, data: bytes, octets: bytes) -> bool:
        calls.append(secret)
        return is_psk_auth(prf, secret, data, octets)

    monkeypatch.setattr(proof, "is_psk_auth", counted)
    whose = enumerate(("carol", "dave", "dave"))
    others = [SharedSecret(f"key {number}".encode(), (parse_pattern(name),)) for number, name in whose]
    counts = []
    for name in (b"nobody", b"carol", b"dave", b"moon"):
        calls.clear()
        stage.engine.credentials = Credentials(secrets=[*others, SharedSecret(SECRET, PAIR)])
        stage.give(stage.changed(IdPayload, IdPayload(PayloadType.IDI, 2, name)))
        counts.append(len(calls))
    assert counts == [counts[0]] * 4
    assert counts[0] >= 2


def identities() -> Iterator[tuple[int, bytes]]:
    yield from ((IdType.FQDN, name) for name in (b"", b"moo", b"moon\0", b"moon.", b"xmoon", b"carol", b"*", b"%any"))
    yield from ((kind, b"moon") for kind in range(256) if kind != IdType.FQDN)
    for kind in (1, 2, 3, 5, 9, 10, 11, 13):
        yield from ((kind, bytes(size)) for size in range(9))
        yield from ((kind, b"\xff" * size) for size in (16, 17, 520, 60_000))
    for text in (
        "3080",
        "30800000",
        "308400000000",
        "3084ffffffff",
        "30820005",
        "3003310130",
        "300531033001ff",
        "30ff",
    ):
        yield IdType.DER_ASN1_DN, bytes.fromhex(text)
    yield IdType.DER_ASN1_DN, b"\x30\x80" * 5000


@SIDES
@CERTS
def test_cve_t_02_43_58_identities(certs: bool, response: bool) -> None:
    """CVE-2013-6075, 2023-38711, 2025-9242: every type, short and long, DER that lies about its lengths; and OB-62:
    an identity that nobody knows hears the same as a wrong proof."""
    stage = Stage(certs=certs, response=response)
    kind = PayloadType.IDR if response else PayloadType.IDI
    for id_type, data in identities():
        at = next(i for i, p in enumerate(stage.payloads) if isinstance(p, IdPayload) and p.type == kind)
        payloads: list[Payload] = list(stage.payloads)
        payloads[at] = IdPayload(kind, id_type, data)
        stage.refused(payloads)


def test_ob_49_reserved_octets_of_an_identity_are_part_of_the_proof() -> None:
    stage = Stage()
    identity = next(p for p in stage.payloads if isinstance(p, IdPayload))
    for reserved in (b"\1\0\0", b"\0\1\0", b"\0\0\1", b"\xff\xff\xff"):
        other = IdPayload(identity.type, identity.id_type, identity.data, reserved)
        stage.refused(stage.changed(IdPayload, other))


@pytest.mark.parametrize(
    ("network", "up"), [("192.0.2.0/24", True), ("192.0.2.1-192.0.2.1", True), ("10.0.0.0/8", False)]
)
def test_who_is_known_by_an_address_in_a_network(network: str, up: bool) -> None:
    mine = {"local": LocalAuth(AuthClass.PSK)}
    lab = Lab(a=mine, b={"remote": RemoteAuth(AuthClass.PSK, parse_pattern(network))})
    lab.a.credentials = lab.b.credentials = Credentials(
        secrets=[SharedSecret(SECRET, (parse_pattern(network), parse_pattern("sun")))]
    )
    lab.initiate()
    assert any(sa.established for sa in lab.b.sas.values()) is up


@pytest.mark.parametrize(("asked", "up"), [("O=x, OU=y, CN=sun", True), ("O=x, OU=z, CN=sun", False)])
def test_a_responder_is_asked_for_without_the_plus_in_its_name(asked: str, up: bool) -> None:
    """As charon shows it, and so has it in its configuration."""
    mine = {"local": LocalAuth(AuthClass.PSK, parse_identity("O=x + OU=y, CN=sun"))}
    lab = Lab(a={"remote": RemoteAuth(AuthClass.PSK, parse_pattern(asked))}, b=mine)
    lab.a.credentials = lab.b.credentials = Credentials(secrets=[SharedSecret(SECRET)])
    lab.initiate()
    assert any(sa.established for sa in lab.a.sas.values()) is up


def test_another_responder_is_asked_for() -> None:
    stage = Stage()
    at = next(i for i, p in enumerate(stage.payloads) if isinstance(p, IdPayload) and p.type == PayloadType.IDR)
    for data in (b"mars", b"moon", b""):
        payloads: list[Payload] = list(stage.payloads)
        payloads[at] = IdPayload(PayloadType.IDR, IdType.FQDN, data)
        stage.refused(payloads)


def test_no_auth_is_no_sa() -> None:
    """OB-67: a peer that leaves AUTH out wants EAP."""
    stage = Stage()
    stage.refused([p for p in stage.payloads if not isinstance(p, AuthPayload)])
    events = Stage()._send([p for p in stage.payloads if not isinstance(p, AuthPayload)])
    assert [e.problem.failure.cause for e in events if isinstance(e, Failed)] == [Cause.PEER_AUTH]
    for missing in (IdPayload, AuthPayload):
        believed, answers = stage.give([p for p in stage.payloads if not isinstance(p, missing)])
        assert not believed
        assert len(answers) == 1
    stage = Stage(response=True)
    for missing in (IdPayload, AuthPayload):
        believed, _ = stage.give([p for p in stage.payloads if not isinstance(p, missing)])
        assert not believed


# -- another method, another certificate


def test_a_psk_where_a_certificate_is_wanted() -> None:
    stage = Stage(certs=True)
    genuine = Stage()
    stage.engine.credentials = Credentials(
        secrets=[SharedSecret(SECRET)], authorities=[Authority(ROOT.certificate)], private_keys=[PrivateKey(EC_KEY)]
    )
    stage.refused(stage.changed(AuthPayload, genuine.auth))


def believe(stage: Stage, *certificates: bytes, sign_with: Any = EC_KEY, encoding: int = 4) -> list[Payload]:
    """IKE_AUTH with these certificates, and a signature that is right for the key."""
    sa = stage.sa
    assert sa.init is not None
    assert sa.prf is not None
    assert sa.keys is not None
    identity = next(p for p in stage.payloads if isinstance(p, IdPayload))
    if stage.response:
        octets = sa.init.message_2 + sa.init.nonce_i + sa.prf(sa.keys.sk_pr, identity.body())
    else:
        octets = sa.init.message_1 + sa.init.nonce_r + sa.prf(sa.keys.sk_pi, identity.body())
    if isinstance(sign_with, rsa.RSAPrivateKey):
        from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15

        identifier, signature = ALGORITHMS["rsa-sha256"], sign_with.sign(octets, PKCS1v15(), hashes.SHA256())
    else:
        identifier, signature = ALGORITHMS["ecdsa-sha256"], sign_with.sign(octets, ec.ECDSA(hashes.SHA256()))
    rest = [p for p in stage.payloads if not isinstance(p, CertPayload | AuthPayload)]
    certs: list[Payload] = [CertPayload(encoding, der) for der in certificates]
    return [rest[0], *certs, *rest[1:], AuthPayload(14, bytes((len(identifier),)) + identifier + signature)]


def test_a_certificate_that_is_right() -> None:
    """What the following tests make wrong is all that is wrong."""
    stage = Stage(certs=True)
    assert stage.give(believe(stage, MOON.der))[0]
    rsa_moon = ROOT.issue("moon", RSA_KEY, sans=(DNSName("moon"),))
    assert stage.give(believe(stage, rsa_moon.der, sign_with=RSA_KEY))[0]


def test_no_certificate_at_all() -> None:
    stage = Stage(certs=True)
    (failure,) = [event.problem.failure for event in stage._send(believe(stage)) if isinstance(event, Failed)]
    assert failure.cause is Cause.CERTIFICATE
    assert "it sent none, and none is configured" in failure.reason


def test_certificates_of_others() -> None:
    """OB-84, OB-85: the identity is in the certificate or it is not proved, whoever signed it."""
    stage = Stage(certs=True)
    other_root = Ca("Root")
    wrong = [
        ROOT.issue("moon", EC_KEY, sans=(DNSName("carol"),)),
        ROOT.issue("moon", EC_KEY),  # the name is in the subject, which vouches for no FQDN
        ROOT.issue("moon", EC_KEY, sans=(DNSName("moon.example"),)),
        ROOT.issue("moon", EC_KEY, sans=(DNSName("*"),)),
        other_root.issue("moon", EC_KEY, sans=(DNSName("moon"),)),
    ]
    for certificate in wrong:
        stage.refused(believe(stage, certificate.der))
    # the right certificate and another key; the right chain behind a wrong certificate
    stage.refused(believe(stage, MOON.der, sign_with=ec.generate_private_key(ec.SECP256R1())))
    stage.refused(believe(stage, wrong[0].der, MOON.der))
    stage.refused(believe(stage, other_root.certificate.der, MOON.der, sign_with=other_root.key))
    # sun's own, sent back
    stage.refused(believe(stage, SUN.der))


def test_cve_t_18_a_certificate_of_its_own_making() -> None:
    """CVE-2023-26463: self-signed, and a chain to an authority that nobody here knows."""
    stage = Stage(certs=True)
    selfmade = Ca("moon", extensions=[(_san("moon"), False)])
    stage.refused(believe(stage, selfmade.certificate.der, sign_with=selfmade.key))
    between = Ca("Between", parent=Ca("Root"))
    leaf = between.issue("moon", EC_KEY, sans=(DNSName("moon"),))
    stage.refused(believe(stage, leaf.der, between.certificate.der))


def _san(name: str) -> Any:
    from cryptography.x509 import SubjectAlternativeName

    return SubjectAlternativeName([DNSName(name)])


def garbage() -> Iterator[bytes]:
    rng = random.Random(2)
    yield from (
        b"",
        b"\0",
        b"\x30",
        b"\x30\x80",
        b"\x30\x84\xff\xff\xff\xff",
        b"\x30\x82\xff\xff" + bytes(1000),
        bytes(60_000),
    )
    yield b"\x30\x80" * 20_000
    for size in (10, 100, 1000):
        yield rng.randbytes(size)
    for _ in range(300):
        at = rng.randrange(len(MOON.der))
        yield MOON.der[:at] + bytes((MOON.der[at] ^ 1 << rng.randrange(8),)) + MOON.der[at + 1 :]
    for size in range(0, len(MOON.der), 7):
        yield MOON.der[:size]
    yield MOON.der + b"\0"


def test_cve_t_10_garbage_for_certificates() -> None:
    """CVE-2017-9023: nothing loops, nothing is believed."""
    stage = Stage(certs=True)
    for der in garbage():
        stage.refused(believe(stage, der))
        stage.refused(believe(stage, der, MOON.der))


def test_cve_t_24_other_encodings_are_not_looked_at() -> None:
    """CVE-2026-35329, OB-69: PKCS#7, hash and URL and all the others are no certificates of ours."""
    stage = Stage(certs=True)
    url = bytes(20) + b"http://192.0.2.66/moon.der"
    for encoding in (*range(1, 16), 0, 200, 255):
        if encoding == CertEncoding.X509_SIGNATURE:
            continue
        for der in (MOON.der, url, b"", b"\x30\x80"):
            stage.refused(believe(stage, der, encoding=encoding))


def test_a_raw_public_key_that_is_not_configured() -> None:
    stage = Stage(certs=True)
    spki = EC_KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    stage.refused(believe(stage, spki, encoding=CertEncoding.RAW_PUBLIC_KEY))


@SIDES
def test_certificates_of_strangers_are_not_kept(response: bool) -> None:
    """CVE-2021-41991: each is another one, as long as a CERT payload may be, and none leaves anything behind."""
    stage = Stage(certs=True, response=response)
    stranger = Ca("Stranger")
    padding = UnrecognizedExtension(ObjectIdentifier("1.2.3.4"), bytes(40_000))
    size = sum(map(len, _containers(stage.engine.credentials)))
    for number in range(4):
        names = (DNSName("sun" if response else "moon"),)
        for authority in (stranger, ROOT):
            der = authority.issue(f"n{number}", EC_KEY, sans=names, extensions=[(padding, False)]).der
            stage._send(believe(stage, der, sign_with=RSA_KEY))
            stage.engine.datagrams_to_send()
            assert sum(map(len, _containers(stage.engine.credentials))) == size
            stage.attack.before.restore()


JUNK = {"authority key id": "2.5.29.35", "names": "2.5.29.17", "CRL distribution points": "2.5.29.31",
        "OCSP": "1.3.6.1.5.5.7.1.1", "key usage": "2.5.29.15"}  # fmt: skip


@SIDES
@pytest.mark.parametrize("oid", JUNK.values(), ids=JUNK)
@pytest.mark.parametrize("authority", [ROOT, Ca("Root"), Ca("Stranger")], ids=["ours", "of that name", "stranger"])
def test_extensions_that_cannot_be_read(authority: Ca, oid: str, response: bool) -> None:
    """Whoever signed it: AUTHENTICATION_FAILED, and an end that believes the other to be up hears of it."""
    junk = UnrecognizedExtension(ObjectIdentifier(oid), b"\x30\x05junk")
    names = () if oid == JUNK["names"] else (DNSName("sun" if response else "moon"),)
    # critical or not
    for critical in (False, True):
        der = authority.issue("x", EC_KEY, sans=names, extensions=[(junk, critical)]).der
        stage = Stage(certs=True, response=response)
        stage.refused(believe(stage, der))


def test_a_certificate_of_ours_that_cannot_be_read_stops_no_other() -> None:
    junk = UnrecognizedExtension(ObjectIdentifier(JUNK["names"]), b"\x30\x05junk")
    stage = Stage(certs=True)
    ours = stage.engine.credentials
    broken = ROOT.issue("broken", EC384_KEY, extensions=[(junk, False)])
    stage.engine.credentials = Credentials(
        private_keys=ours.private_keys, certificates=[broken, *ours.certificates], authorities=ours.authorities
    )
    assert stage.give(stage.payloads)[0]
    # without certificates in the message those that are loaded are looked through
    without = believe(stage)
    stage.refused(without)


def _containers(credentials: Credentials) -> list[Any]:
    return [value for value in vars(credentials).values() if isinstance(value, dict | list | set)]


def test_looping_chains_and_too_many() -> None:
    """OB-70: authorities that vouch for each other, ten times the same, many of one name."""
    stage = Stage(certs=True)
    one = Ca("One")
    two = Ca("Two", parent=one)
    again = Ca("One", parent=two, key=one.key)
    leaf = again.issue("moon", EC_KEY, sans=(DNSName("moon"),))
    loop = [again.certificate.der, two.certificate.der]
    for count in (2, 4, 9, 10, 40):
        stage.refused(believe(stage, leaf.der, *(loop * count)[:count]))
    twins = [Ca("Twin", parent=one).certificate.der for _ in range(9)]
    twin = Ca("Twin", parent=one)
    stage.refused(believe(stage, twin.issue("moon", EC_KEY, sans=(DNSName("moon"),)).der, *twins))
    # what is right does not get wrong by what comes with it, as long as that is not too much
    assert stage.give(believe(stage, MOON.der, *twins))[0]
    stage.refused(believe(stage, MOON.der, *twins, *loop))


def test_signatures_are_checked_once_however_many_connections_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(certs=True)
    connections = [replace(stage.lab.cb, name=f"c{number}") for number in range(5)]
    stage.engine.load(connections, cert_credentials(SUN, EC384_KEY))
    stage.attack = Attack(stage.engine, stage.sa.path, stage.lab.now)
    twins = [Ca("Twin") for _ in range(9)]
    leaf = Ca("Twin").issue("moon", EC_KEY, sans=(DNSName("moon"),))
    checked: list[bytes] = []
    verify = Scheme._verify

    def counted(self: Scheme, key: Any, signature: bytes, data: bytes) -> None:
        checked.append(signature)
        verify(self, key, signature, data)

    monkeypatch.setattr(Scheme, "_verify", counted)
    stage.refused(believe(stage, leaf.der, *(twin.certificate.der for twin in twins)))
    assert len(checked) == len(twins)


def test_cve_t_17_nobody_is_asked_for_a_chain_that_is_not_trusted() -> None:
    """CVE-2022-40617: certificates with CRL and OCSP URIs make us fetch only if all else is right."""
    point = DistributionPoint([UniformResourceIdentifier("http://192.0.2.66/x.crl")], None, None, None)
    asks = [(CRLDistributionPoints([point]), False)]
    stage = Stage(certs=True)
    trusted = ROOT.issue("moon", EC_KEY, sans=(DNSName("moon"),), extensions=list(asks))
    foreign = Ca("Foreign").issue("moon", EC_KEY, sans=(DNSName("moon"),), extensions=list(asks))
    stage.engine.receive_datagram(stage.build(believe(stage, trusted.der)), stage.sa.path, stage.lab.now)
    assert [type(e) for e in stage.engine.drain()] == [RevocationNeeded]
    assert not stage.engine.datagrams_to_send()
    stage.attack.before.restore()
    bad = believe(stage, trusted.der, sign_with=ec.generate_private_key(ec.SECP256R1()))
    for payloads in (believe(stage, foreign.der), bad):
        stage.refused(payloads)


@pytest.mark.parametrize("answer", ["good", "revoked", "none"])
def test_who_was_revoked_is_asked_about_again_when_that_is_past_its_time(answer: str) -> None:
    """A hold may have been lifted; until somebody says so it is one."""
    point = DistributionPoint([UniformResourceIdentifier("http://192.0.2.66/x.crl")], None, None, None)
    stage = Stage(certs=True)
    trusted = ROOT.issue("moon", EC_KEY, sans=(DNSName("moon"),), extensions=[(CRLDistributionPoints([point]), False)])
    source = revocation_sources(chain_of(ROOT, trusted))[0]
    held = respond(ROOT, trusted, OCSPCertStatus.REVOKED, this=WALL - DAY, due=WALL - DAY / 2)
    stage.sa.core.status.add([source], (), [OcspResponse(held)], WALL - DAY)
    stage.engine.receive_datagram(stage.build(believe(stage, trusted.der)), stage.sa.path, stage.lab.now)
    (wanted,) = stage.engine.drain()
    assert isinstance(wanted, RevocationNeeded)
    assert wanted.sources == (source,)
    said = {"good": OCSPCertStatus.GOOD, "revoked": OCSPCertStatus.REVOKED}
    responses = [OcspResponse(respond(ROOT, trusted, said[answer]))] if answer in said else []
    stage.engine.status_known(wanted.ticket, stage.lab.now, responses=responses)
    up = [event for event in stage.engine.drain() if isinstance(event, IkeUp)]
    assert bool(up) is (answer == "good")


@pytest.mark.parametrize("response", [False, True])
def test_a_status_that_runs_out_during_the_wait_is_asked_for_again(
    response: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As an intermediate's does that was asked for by somebody else, minutes before."""
    point = DistributionPoint([UniformResourceIdentifier("http://192.0.2.66/x.crl")], None, None, None)
    stage = Stage(certs=True, response=response)
    asks = [(CRLDistributionPoints([point]), False)]
    trusted = ROOT.issue("sun" if response else "moon", EC_KEY, sans=(DNSName("sun" if response else "moon"),),
                         extensions=asks)  # fmt: skip
    stage.engine.receive_datagram(stage.build(believe(stage, trusted.der)), stage.sa.path, stage.lab.now)
    (first,) = stage.engine.drain()
    assert isinstance(first, RevocationNeeded)
    with monkeypatch.context() as forgetful:
        forgetful.setattr(StatusCache, "add", lambda *_: None)
        stage.engine.status_known(first.ticket, stage.lab.now)
    (second,) = stage.engine.drain()
    assert isinstance(second, RevocationNeeded)
    assert not stage.engine.datagrams_to_send()
    stage.engine.status_known(second.ticket, stage.lab.now)
    assert [event for event in stage.engine.drain() if isinstance(event, IkeUp)]
    assert "bug" not in caplog.text


@pytest.mark.parametrize("response", [False, True])
def test_what_is_malformed_is_that_also_after_a_wait_for_certificate_status(
    response: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The genuine IKE_AUTH with a QCD token of one octet: INVALID_SYNTAX, and no bug of ours."""
    point = DistributionPoint([UniformResourceIdentifier("http://192.0.2.66/x.crl")], None, None, None)
    asks = [(CRLDistributionPoints([point]), False)]
    stage = Stage(certs=True, response=response)
    name = "sun" if response else "moon"
    trusted = ROOT.issue(name, EC_KEY, sans=(DNSName(name),), extensions=list(asks))
    token = NotifyPayload(NotifyType.QUICK_CRASH_DETECTION, b"x")
    stage.engine.receive_datagram(stage.build([*believe(stage, trusted.der), token]), stage.sa.path, stage.lab.now)
    (wanted,) = stage.engine.drain()
    assert isinstance(wanted, RevocationNeeded)
    stage.cipher = stage.sa.out_cipher
    stage.engine.status_known(wanted.ticket, stage.lab.now)
    answers = [stage._open(data) for data, _, _ in stage.engine.datagrams_to_send()]
    failed = [event.problem.failure.cause for event in stage.engine.drain() if isinstance(event, Failed)]
    assert failed[0] is Cause.MALFORMED
    assert not stage.engine.sas
    if not response:
        first, content = emit_payloads([NotifyPayload(NotifyType.INVALID_SYNTAX)])
        assert answers == [bytes((AUTH, first)) + content]
    assert "bug" not in caplog.text


def test_cve_t_45_secrets_that_go_away() -> None:
    """CVE-2024-2357: credentials are replaced between any two messages; no half-dead IKE_SA stays."""
    for certs in (False, True):
        for at in range(7):
            for side in ("a", "b"):
                lab = Lab(certs=certs).initiate(pump=False)
                lab.pump(at)
                getattr(lab, side).credentials = Credentials()
                lab.pump()
                for _ in range(20):
                    lab.pass_time(30.0)
                for engine in (lab.a, lab.b):
                    assert all(sa.state is IkeState.ESTABLISHED for sa in engine.sas.values())
                assert len(lab.a.sas) == len(lab.b.sas)


# -- replay, substitution, reflection


def test_auth_of_another_session() -> None:
    """Messages of one run mean nothing in the next: other nonces, other keys, another AUTH."""
    first = Stage()
    second = Lab()
    second.b.rng.seed = b"another sun"
    second.a.rng.seed = b"another moon"
    second.initiate(pump=False)
    second.pump(2)
    sa = next(iter(second.b.sas.values()))
    attack = Attack(second.b, sa.path, second.now)
    attack.stranger(first.data)
    first_sa, genuine = first.sa, unseal(second.b, second.sent[-1])
    assert first_sa.spi_r != sa.spi_r
    payloads = parse_payloads(*genuine, AUTH, True)
    at = next(i for i, p in enumerate(payloads) if isinstance(p, AuthPayload))
    payloads[at] = first.auth
    second.b.receive_datagram(seal(sa, *emit_payloads(payloads), AUTH, 1), sa.path, second.now)
    assert not second.b.sas
    assert not any(isinstance(e, IkeUp) for e in second.b.drain())


def substituted(change: Callable[[bytes], bytes], which: int) -> Lab:
    """A run in which one of the first two messages is changed on its way, so that both ends still agree on keys."""
    lab = Lab().initiate(pump=False)
    for number, (target, data, path) in enumerate(lab.flow()):
        lab.deliver(target, change(data) if number == which else data, path)
    return lab


def _add_vendor(data: bytes) -> bytes:
    """A Vendor ID behind the last payload."""
    at, following = 28, data[16]
    position = 16
    while following:
        position, following, at = at, data[at], at + int.from_bytes(data[at + 2 : at + 4], "big")
    data = data[:position] + b"\x2b" + data[position + 1 :] + b"\0\0\0\x08hers"
    return data[:24] + len(data).to_bytes(4, "big") + data[28:]


def _other_flag(data: bytes) -> bytes:
    """Another minor version: RFC 7296 has it ignored, and the message is another one."""
    return data[:17] + b"\x21" + data[18:]


@pytest.mark.parametrize("which", [0, 1], ids=["message 1", "message 2"])
@pytest.mark.parametrize("change", [_add_vendor, _other_flag])
def test_ob_54_substituted_messages(which: int, change: Callable[[bytes], bytes]) -> None:
    """AUTH covers the octets of message 1 and 2: even what has no meaning must arrive as it was sent."""
    lab = substituted(change, which)
    assert not any(isinstance(event, IkeUp) and name == "moon" for name, event in lab.events)
    for _ in range(20):
        lab.pass_time(30.0)
    assert not lab.a.sas
    assert not lab.b.sas


@CERTS
@pytest.mark.parametrize("message", range(4))
def test_cve_t_61_reflection(certs: bool, message: int) -> None:
    """Every message sent back to who sent it, with and without its flags and SPIs turned around: nothing."""
    lab = Lab(certs=certs).initiate(pump=False)
    skip = message + (2 if certs else 0) * (message > 0)
    lab.pump(skip)
    data = lab.sent[-1]
    sender = lab.b if parse_header(data).response else lab.a
    sa = next(iter(sender.sas.values()))
    attack = Attack(sender, sa.path, lab.now)
    turned = data[8:16] + data[:8] + data[16:]
    for spis in (data, turned):
        for flags in range(0, 0x40, 8):
            mutant = spis[:19] + bytes((flags,)) + spis[20:]
            if mutant[18] == ExchangeType.IKE_SA_INIT:
                attack.opening(mutant)
            else:
                attack.stranger(mutant)


@CERTS
def test_our_own_proof_sent_back_as_a_request(certs: bool) -> None:
    """RFC 7296 section 1.2: who answers IKE_SA_INIT has the keys of SK, and we send it our IDi and AUTH.

    If we took a request from it before it has proved anything, these would prove that it is we; and a connection to
    %any takes us as well as anybody.
    """
    method = AuthClass.PUBKEY if certs else AuthClass.PSK
    stage = Stage(certs=certs, a={"remote": RemoteAuth(method, parse_pattern("%any"))})
    lab = stage.lab
    if not certs:
        lab.a.credentials = Credentials(secrets=[SharedSecret(SECRET)])
    sa = next(iter(lab.a.sas.values()))
    attack = Attack(lab.a, sa.path, lab.now)
    ours = [p for p in stage.payloads if isinstance(p, IdPayload | CertPayload | AuthPayload)]
    for payloads in (ours, [p for p in ours if getattr(p, "type", 0) != PayloadType.IDR], stage.payloads):
        for number in (0, 1, 2):
            attack.stranger(seal(sa, *emit_payloads(payloads), AUTH, number))
    # nor does it prove anything as the answer
    turned = [IdPayload(PayloadType.IDR, p.id_type, p.data) if isinstance(p, IdPayload) else p for p in ours]
    lab.a.receive_datagram(seal(sa, *emit_payloads(turned), AUTH, 1, response=True), sa.path, lab.now)
    assert not sa.established_at
    assert not any(isinstance(e, IkeUp) for e in lab.a.drain())


def test_redirect_in_ike_auth() -> None:
    """RFC 5685 section 6: the gateway proves who it is and sends us elsewhere; the IKE_SA is closed in good order."""
    stage = Stage(response=True)
    gateway = NotifyPayload(NotifyType.REDIRECT, bytes((1, 4, 192, 0, 2, 77)))
    stage.engine.receive_datagram(stage.build([*stage.payloads, gateway]), stage.sa.path, stage.lab.now)
    assert stage.sa.state is IkeState.DELETING
    assert any(getattr(e, "remote", None) is not None for e in stage.engine.drain())


@pytest.mark.parametrize("chain", [True, False])
def test_every_refusal_is_the_same(chain: bool) -> None:
    """OB-62: unknown identity, wrong key, wrong method, no AUTH: octet for octet alike but for the IV and ICV."""
    stage = Stage(certs=chain)
    sizes = set()
    sa = stage.sa
    for payloads in (
        stage.changed(AuthPayload, AuthPayload(2, bytes(32))),
        stage.changed(AuthPayload, AuthPayload(14, bytes(80))),
        stage.changed(AuthPayload),
        stage.changed(IdPayload, IdPayload(PayloadType.IDI, 2, b"nobody")),
    ):
        stage.engine.receive_datagram(stage.build(payloads), sa.path, stage.lab.now)
        (out,) = stage.engine.datagrams_to_send()
        sizes.add((len(out.data), out.data[:32]))
        stage.engine.drain()
        stage.attack.before.restore()
    assert len(sizes) == 1


def test_a_connection_with_the_same_addresses_does_not_lend_its_secret() -> None:
    """RFC 4301 section 4.4.3: who proves to be carol gets carol's connection, and not moon's."""
    lab = Lab()
    carol = connection("sun", "carol", B, "%any", name="carol", child={"rekey_time": 1.0})
    lab.b.load(
        [lab.cb, carol],
        Credentials(secrets=[
            SharedSecret(SECRET, (parse_pattern("moon"), parse_pattern("sun"))),
            SharedSecret(b"carol's secret, not moon's", (parse_pattern("carol"), parse_pattern("sun"))),
        ]),
    )  # fmt: skip
    # carol, who knows her own secret, says that she is moon
    lab.a.load([lab.ca], Credentials(secrets=[SharedSecret(b"carol's secret, not moon's")]))
    lab.initiate()
    assert not lab.b.sas
    assert not any(isinstance(event, IkeUp) for _, event in lab.events)


# -- secrets stay secret


class Spy:
    """Collects every key that is made while it watches."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.secrets: set[bytes] = {SECRET}
        init, cipher = IkeKeys.__init__, SkCipher.__init__

        def keys(this: IkeKeys, *values: bytes) -> None:
            self.secrets.update(values)
            init(this, *values)

        def ciphers(this: SkCipher, suite: Any, encr: bytes, integ: bytes = b"") -> None:
            self.secrets.update((encr, integ))
            cipher(this, suite, encr, integ)

        monkeypatch.setattr(IkeKeys, "__init__", keys)
        monkeypatch.setattr(SkCipher, "__init__", ciphers)

    def found_in(self, text: str) -> list[bytes]:
        found = []
        lower = text.lower()
        for secret in self.secrets:
            if len(secret) < 8:
                continue
            shapes = (secret.hex(), secret.hex(" "), secret.hex(":"), repr(secret)[2:-1].lower(), str(list(secret)))
            if any(shape in lower for shape in shapes) or secret.decode("latin-1") in text:
                found.append(secret)
        return found


def everything(lab: Lab) -> None:
    lab.initiate()
    lab.a.rekey_child(lab.sa(lab.a).children_up()[0], lab.now)
    lab.pump()
    lab.b.rekey_ike_sa(lab.sa(lab.b), lab.now)
    lab.pump()


def shown(lab: Lab) -> str:
    """All that a debugger, a traceback with locals or a careless log line would show."""
    parts: list[Any] = [lab.a.credentials, lab.b.credentials, lab.ca, lab.cb, lab.a.settings, lab.events]
    for engine in (lab.a, lab.b):
        parts += [engine.credentials.secrets, engine.credentials.private_keys, engine.cookies, engine.half_open]
        for sa in engine.sas.values():
            parts += [getattr(sa, name) for name in type(sa).__slots__ if hasattr(sa, name)]
            for child in sa.children.values():
                parts += [getattr(child, name) for name in type(child).__slots__ if hasattr(child, name)]
    return "\n".join(map(repr, parts))


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """Everything that is logged at DEBUG."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logger = logging.getLogger("ipsec")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield stream
    logger.removeHandler(handler)
    logger.setLevel(before)


@CERTS
def test_ob_90_secrets_are_in_no_log_and_no_repr(
    certs: bool, log: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    spy = Spy(monkeypatch)
    lab = Lab(certs=certs)
    everything(lab)
    installs = [event for _, event in lab.events if isinstance(event, InstallChild)]
    assert installs
    for event in installs:
        for keys in (event.inbound, event.outbound):
            if keys is not None:
                spy.secrets.update((keys.encr, keys.integ))
    assert len(spy.secrets) > 12
    text = log.getvalue()
    assert "ESTABLISHED" in text
    assert not spy.found_in(text)
    assert not spy.found_in(shown(lab))
    # a PRF keeps no key
    assert not spy.found_in(repr([PrfAlgorithm]))


@CERTS
def test_ob_90_nor_when_something_goes_wrong(certs: bool, log: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refusals, malformed messages, and a bug with its traceback."""
    spy = Spy(monkeypatch)
    stage = Stage(certs=certs)
    for payloads in (
        stage.changed(AuthPayload, AuthPayload(2, SECRET)),
        stage.changed(AuthPayload),
        stage.changed(IdPayload, IdPayload(PayloadType.IDI, 2, b"nobody")),
    ):
        stage.give(payloads)

    def bug(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(type(stage.engine), "_contain", type(stage.engine).__mro__[1]._contain)
    monkeypatch.setattr("ipsec.ike.auth.verify_proof", bug)
    stage.engine.receive_datagram(stage.build(stage.payloads), stage.sa.path, stage.lab.now)
    assert stage.sa.state is IkeState.DESTROYING
    text = log.getvalue()
    assert "this is a bug" in text
    assert "Traceback" in text
    assert not spy.found_in(text)


def test_cve_t_57_what_a_peer_says_is_logged_as_one_line(log: io.StringIO) -> None:
    """CVE-2023-28771: octets of a peer reach the log escaped: no new line, no control characters, whatever they are."""
    stage = Stage()
    for value in range(256):
        octet = bytes((value,))
        for kind in (2, 3, 9, 11):
            payloads = stage.changed(
                IdPayload, IdPayload(PayloadType.IDI, kind, b"x" + octet + b"$(reboot)\nFAKE LINE")
            )
            stage.give(payloads)
            stage.give([NotifyPayload(8192 + value, octet * 9), *payloads])
    for line in log.getvalue().splitlines():
        assert line.isprintable(), line
        assert not line.startswith("FAKE LINE")


def test_cve_t_39_32_every_message_at_every_log_level(log: io.StringIO) -> None:
    """CVE-2020-1763, CVE-2015-3204: the log path takes whatever there is, reserved bits included."""
    from tests.ike.test_hostile import SCENES, Campaign

    campaign = Campaign(most=15)
    for scene in ("all", "certificates", "cookie", "mobike"):
        script, more = SCENES[scene]
        lab = Lab(**more)
        lab.tap = campaign.tap
        script(lab)
        log.seek(0)
        log.truncate()
    assert campaign.sent > 5000
