"""Finding secrets, keys and certificates, and what a peer's certificate must be."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from cryptography import x509 as cx
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ipsec.crypto.auth import AuthenticationError, parse_constraints, sign, verify
from ipsec.crypto.chain import CertificateError
from ipsec.crypto.identity import Identity, IdentityPattern, parse_identity, parse_pattern
from ipsec.crypto.revocation import Crl
from ipsec.crypto.x509 import Certificate
from ipsec.ike.config import LocalAuth, RemoteAuth
from ipsec.ike.credentials import PSKS_MAX, Authority, Credentials, PrivateKey, SharedSecret
from ipsec.wire.iana import IdType
from tests.crypto.pki import DAY, EC384_KEY, EC_KEY, ED25519_KEY, RSA_KEY, WALL, Ca


def secret(value: str, *owners: str) -> SharedSecret:
    return SharedSecret(value.encode(), tuple(parse_pattern(owner) for owner in owners), value)


SECRETS = (
    secret("any"),
    secret("star", "%any"),
    secret("carol", "carol@x.org"),
    secret("dave and alice", "dave@x.org", "alice@x.org"),
    secret("moon", "moon.x.org"),
    secret("moon-carol2", "moon.x.org", "carol2@x.org"),
    secret("moon-domain", "moon.x.org", "*@y.org"),
    secret("moon-bob", "moon.x.org", "bob@y.org"),
    secret("address", "10.0.0.1", "10.0.0.2"),
)


@pytest.mark.parametrize(
    ("local", "remote", "found"),
    [
        ("moon.x.org", "carol@x.org", "carol"),
        ("moon.x.org", "carol2@x.org", "moon-carol2"),
        ("moon.x.org", "dave@x.org", "dave and alice"),
        ("moon.x.org", "zoe@y.org", "moon-domain"),
        ("moon.x.org", "bob@y.org", "moon-bob"),
        ("moon.x.org", "nobody", "star"),
        ("MOON.x.org", "nobody", "star"),
        ("sun", "carol@x.org", "carol"),
        ("sun", "nobody", "star"),
        ("10.0.0.1", "10.0.0.2", "address"),
        ("10.0.0.2", "10.0.0.1", "address"),
        ("moon.x.org", None, "star"),
        ("sun", None, "star"),
    ],
)
def test_psk(local: str, remote: str | None, found: str) -> None:
    credentials = Credentials(secrets=SECRETS)
    identity = parse_identity(remote) if remote else None
    assert credentials.find_psk(parse_identity(local), identity) == found.encode()


@pytest.mark.parametrize("local", ["moon.x.org", "sun", "10.0.0.1", "bob@y.org"])
@pytest.mark.parametrize("remote", ["carol@x.org", "zoe@y.org", "bob@y.org", "nobody", "10.0.0.2", "moon.x.org"])
def test_psk_as_a_walk_over_all_would_find_it(local: str, remote: str) -> None:
    ours, theirs = parse_identity(local), parse_identity(remote)

    def score(one: SharedSecret) -> tuple[int, int]:
        a, b = one.match(ours), one.match(theirs)
        return (0, 0) if not b and not one.names_only(ours) else (b, a)

    found = Credentials(secrets=SECRETS).find_psk(ours, theirs)
    # the last of equals
    assert found == max((one for one in reversed(SECRETS) if any(score(one))), key=score).secret


@pytest.mark.parametrize(
    ("first", "second", "found"),
    [
        # what charon 5.9.8 shows as initiator with these two, loaded in this order
        (("x",), (), "second"),
        ((), ("x",), "first"),
        (("x",), ("%any",), "second"),
        (("y",), (), "first"),
        (("x",), ("y",), "second"),
        (("x", "y"), ("y",), "first"),
        (("x", "%any"), (), "first"),
        (("y",), ("y", "z"), "second"),
        (("y", "z"), ("y",), "second"),
        (("%any",), (), "second"),
        (("x",), ("z",), "first"),
    ],
)
def test_psk_of_two_as_charon_chooses(first: tuple[str, ...], second: tuple[str, ...], found: str) -> None:
    credentials = Credentials(secrets=[secret("first", *first), secret("second", *second)])
    assert credentials.find_psk(parse_identity("x"), parse_identity("y")) == found.encode()


FLAT, JOINED, TURNED = "O=x, OU=y, CN=b", "O=x + OU=y, CN=b", "OU=y, O=x, CN=b"


@pytest.mark.parametrize(
    ("owner", "who", "found"),
    [
        *((owner, who, True) for owner in (FLAT, JOINED) for who in (FLAT, JOINED)),
        # two names without a plus are one only if they are the same
        (FLAT, TURNED, False),
        (JOINED, "O=x + OU=z, CN=b", False),
    ],
)
def test_a_psk_by_a_distinguished_name_with_and_without_its_plus(owner: str, who: str, found: bool) -> None:
    """Both ways: charon compares attribute by attribute."""
    name, peer = parse_identity(who), parse_identity("c")
    expected = (b"k",) if found else ()
    assert Credentials(secrets=[secret("k", owner, "d")]).find_psks(peer, name) == expected
    assert Credentials(secrets=[secret("k", owner)]).find_psks(name, peer) == expected
    assert Credentials(secrets=[secret("k", owner)]).find_psks(name, None) == expected


def test_a_secret_of_others_serves_nobody_else() -> None:
    """Carol, who has it, could show it under an identity that has no secret of its own."""
    credentials = Credentials(secrets=[secret("moon-carol", "moon.x.org", "carol@x.org")])
    moon = parse_identity("moon.x.org")
    assert credentials.find_psk(moon, parse_identity("carol@x.org")) is not None
    assert credentials.find_psk(moon, parse_identity("boss@x.org")) is None


def test_a_secret_of_many_serves_nobody_else() -> None:
    """A pattern that we are one of names others as well, and they have the secret."""
    credentials = Credentials(secrets=[secret("domain", "*.x.org")])
    moon = parse_identity("moon.x.org")
    assert credentials.find_psk(moon, parse_identity("sun.x.org")) is not None
    assert credentials.find_psk(moon, parse_identity("boss@y.org")) is None


def test_all_psks_best_first() -> None:
    """While keys are being changed there are two. Who has one of its own has none of a group besides."""
    names = ("moon.x.org", "carol@x.org")
    more = [secret("new", *names), secret("old", *names), secret("new", "moon.x.org"), secret("us again", "moon.x.org")]
    credentials = Credentials(secrets=[*SECRETS, *more])
    moon, carol = map(parse_identity, names)
    assert credentials.find_psks(moon, carol) == (b"old", b"new")
    assert Credentials(secrets=SECRETS).find_psks(moon, carol) == (b"carol",)
    assert credentials.find_psks(moon, parse_identity("nobody")) == (b"star", b"any")
    assert credentials.find_psks(parse_identity("sun"), parse_identity("nobody")) == (b"star", b"any")
    named = Credentials(secrets=[one for one in (*SECRETS, *more) if one.owners and not one.owners[0].any])
    assert named.find_psks(moon, parse_identity("nobody")) == (b"us again", b"new", b"moon")
    assert Credentials().find_psks(moon, carol) == ()


def test_psks_are_bounded() -> None:
    owners = ((), ("moon",), ("sun",), ("moon", "sun"))
    many = [secret(f"{number}", *whose) for number in range(20) for whose in owners]
    credentials = Credentials(secrets=many)
    moon, sun = parse_identity("moon"), parse_identity("sun")
    assert credentials.find_psks(moon, sun) == tuple(f"{number}".encode() for number in range(19, 19 - PSKS_MAX, -1))
    assert len(credentials.find_psks(moon, parse_identity("x"))) == PSKS_MAX
    assert credentials.psk_tries == PSKS_MAX


@pytest.mark.parametrize("count", range(len(SECRETS) + 1))
def test_tries_are_enough_for_every_pair(count: int) -> None:
    credentials = Credentials(secrets=SECRETS[count:])
    texts = ("moon.x.org", "carol@x.org", "dave@x.org", "zoe@y.org", "bob@y.org", "10.0.0.1", "x")
    names = [parse_identity(text) for text in texts]
    assert 1 <= credentials.psk_tries <= PSKS_MAX
    assert all(len(credentials.find_psks(a, b)) <= credentials.psk_tries for a in names for b in names)


def test_one_secret_is_one_try() -> None:
    assert Credentials(secrets=[secret("x", "moon", "sun")]).psk_tries == 1


def test_no_psk() -> None:
    assert Credentials().find_psk(parse_identity("a"), parse_identity("b")) is None
    only = Credentials(secrets=[secret("x", "c", "d")])
    assert only.find_psk(parse_identity("a"), parse_identity("b")) is None
    assert only.find_psk(parse_identity("a"), None) is None


def test_secrets_are_in_no_repr() -> None:
    credentials = Credentials(secrets=[SharedSecret(b"hush", (), "n")], private_keys=[PrivateKey(EC_KEY, "file")])
    text = repr(credentials) + repr(credentials.secrets) + repr(credentials.private_keys)
    assert "hush" not in text
    assert "file" in text
    assert repr(credentials) == "<Credentials 1 secrets, 1 keys, 0 certificates, 0 authorities>"


def loaded(*, ends: tuple[Certificate, ...] = (), cas: tuple[Ca, ...] = (), keys: tuple[Any, ...] = ()) -> Credentials:
    return Credentials(
        private_keys=[PrivateKey(key) for key in keys],
        certificates=ends,
        authorities=[Authority(ca.certificate) for ca in cas],
    )


def test_local_certificate() -> None:
    one, two = Ca("One"), Ca("Two")
    sub = Ca("Sub", two)
    first = one.issue("first", EC_KEY, sans=(cx.DNSName("moon"),))
    second = sub.issue("second", RSA_KEY, sans=(cx.DNSName("moon"),))
    foreign = one.issue("foreign", ED25519_KEY, sans=(cx.DNSName("moon"),))
    credentials = loaded(ends=(foreign, first, second, sub.certificate), cas=(one, two), keys=(EC_KEY, RSA_KEY))
    auth = LocalAuth(certs=(foreign, first, second))
    asked = {two.certificate.spki_sha1}
    assert credentials.local_certificate(auth) == (first, ())
    assert credentials.local_certificate(auth, {bytes(20)}) == (first, ())
    assert credentials.local_certificate(auth, asked) == (second, (sub.certificate,))
    assert credentials.local_certificate(auth, {sub.certificate.spki_sha1}) == (second, (sub.certificate,))
    by_id = LocalAuth(id=parse_identity("moon"))
    assert credentials.local_certificate(by_id) == (first, ())
    assert credentials.local_certificate(by_id, asked) == (second, (sub.certificate,))
    named = LocalAuth(certs=(first, second), id=second.subject)
    assert credentials.local_certificate(named) == (second, (sub.certificate,))
    assert credentials.local_certificate(LocalAuth(certs=(foreign,))) is None
    assert credentials.local_certificate(LocalAuth(id=parse_identity("sun"))) is None
    assert credentials.local_certificate(LocalAuth()) is None
    assert credentials.issuers_of(second) == (sub.certificate, two.certificate)
    key = credentials.private_key_for(second)
    assert key is not None
    assert credentials.private_key_for(second.spki) is key
    assert credentials.private_key_for(foreign) is None
    method, data = sign(key.key, b"octets", peer_hashes=(2,))
    assert verify(second.public_key, method, data, b"octets")


def test_issuer_loops_end() -> None:
    one, two = Ca("One"), Ca("Two")
    crossed = (Ca("One", two, one.key).certificate, Ca("Two", one, two.key).certificate)
    end = one.issue()
    assert len(loaded(ends=(*crossed, end)).issuers_of(end)) == 2


def test_issuers_of_peers_are_found_and_not_kept() -> None:
    one = Ca("One")
    ours, theirs = one.issue("ours", EC_KEY), one.issue("theirs", RSA_KEY)
    credentials = loaded(ends=(ours, theirs), cas=(one,), keys=(EC_KEY,))
    before = {name: repr(value) for name, value in vars(credentials).items()}
    foreign = one.issue("foreign", EC_KEY)
    assert [credentials.issuers_of(end) for end in (ours, theirs, foreign)] == [(one.certificate,)] * 3
    assert {name: repr(value) for name, value in vars(credentials).items()} == before


def test_certreq() -> None:
    one, two = Ca("One"), Ca("Two")
    credentials = loaded(cas=(one, two))
    assert credentials.certreq_data() == one.certificate.spki_sha1 + two.certificate.spki_sha1
    assert credentials.certreq_data(RemoteAuth()) == credentials.certreq_data()
    assert credentials.certreq_data(RemoteAuth(cacerts=(two.certificate,))) == two.certificate.spki_sha1
    assert Credentials().certreq_data() == b""


MOON = parse_identity("moon")


def test_peer_certificate() -> None:
    root, other = Ca(), Ca("Other")
    sub = Ca("Sub", root)
    end = sub.issue("moon", sans=(cx.DNSName("moon"),))
    credentials = loaded(cas=(root, other))
    chain = credentials.verify_peer(end, [sub.certificate], RemoteAuth(), MOON, WALL)
    assert chain.certificates == (end, sub.certificate, root.certificate)
    assert credentials.verify_peer(end, [sub.certificate], RemoteAuth(), end.subject, WALL)
    good = [
        RemoteAuth(cacerts=(root.certificate,)),
        RemoteAuth(cacerts=(sub.certificate,)),
        RemoteAuth(ca_id=IdentityPattern.exactly(sub.certificate.subject)),
        RemoteAuth(ca_id=parse_pattern(str(sub.certificate.subject).replace("CN=Sub", "CN=*"))),
        RemoteAuth(certs=(end,)),
        RemoteAuth(constraints=parse_constraints("ecdsa-256-sha256")),
    ]
    for remote in good:
        assert credentials.verify_peer(end, [sub.certificate], remote, MOON, WALL)
    bad = [
        (RemoteAuth(cacerts=(other.certificate,)), "none of the authorities"),
        (RemoteAuth(ca_id=parse_pattern("CN=nobody")), "no authority"),
        (RemoteAuth(ca_id=parse_pattern("OU=*, CN=*")), "no authority"),
        (RemoteAuth(ca_id=IdentityPattern.exactly(end.subject)), "no authority"),
        (RemoteAuth(certs=(root.certificate,)), "configured"),
        (RemoteAuth(constraints=parse_constraints("rsa")), "not allowed"),
        (RemoteAuth(cert_policy=("1.2.3",)), "policies"),
    ]
    for remote, why in bad:
        with pytest.raises(CertificateError, match=why):
            credentials.verify_peer(end, [sub.certificate], remote, MOON, WALL)
    with pytest.raises(CertificateError, match="expired"):
        credentials.verify_peer(end, [sub.certificate], RemoteAuth(), MOON, WALL + 20 * DAY)
    with pytest.raises(CertificateError, match="no trusted issuer"):
        credentials.verify_peer(end, [], RemoteAuth(), MOON, WALL)
    with pytest.raises(CertificateError):
        Credentials().verify_peer(end, [sub.certificate, root.certificate], RemoteAuth(), MOON, WALL)


@pytest.mark.parametrize(
    "text", ["sun", "moon.x", "x.moon", "10.0.0.1", "moon@x", "O=x, CN=moom", "CN=moon", "keyid:moon"]
)
def test_a_certificate_of_somebody_else(text: str) -> None:
    """OB-84, CVE-T-07: valid, and not of the identity that the peer claims."""
    root = Ca()
    end = root.issue("moon", sans=(cx.DNSName("moon"),))
    with pytest.raises(CertificateError, match="is not one of"):
        loaded(cas=(root,)).verify_peer(end, [], RemoteAuth(), parse_identity(text), WALL)


def test_trusted_without_authority() -> None:
    lone = Ca("moon").issue("moon", sans=(cx.DNSName("moon"),))
    for credentials, remote in ((Credentials(), RemoteAuth(certs=(lone,))), (loaded(ends=(lone,)), RemoteAuth())):
        assert credentials.verify_peer(lone, [], remote, MOON, WALL).certificates == (lone,)
        with pytest.raises(CertificateError, match="expired"):
            credentials.verify_peer(lone, [], remote, MOON, WALL + 20 * DAY)
    with pytest.raises(CertificateError):
        Credentials().verify_peer(lone, [lone], RemoteAuth(), MOON, WALL)


def test_some_authority_has_to_stand_above() -> None:
    """As with charon ``ca_id = %any`` is not nothing: a certificate that is loaded is not enough."""
    root, whatever = Ca(), RemoteAuth(ca_id=parse_pattern("%any"))
    end = root.issue("moon", sans=(cx.DNSName("moon"),))
    assert loaded(cas=(root,)).verify_peer(end, [], whatever, MOON, WALL)
    assert loaded(ends=(end,)).verify_peer(end, [], RemoteAuth(), MOON, WALL)
    with pytest.raises(CertificateError, match="no authority %any stands above"):
        loaded(ends=(end,)).verify_peer(end, [], whatever, MOON, WALL)


def test_a_trusted_certificate_below_a_loaded_authority() -> None:
    """In x509/ or ``certs``, it goes through all that holds for one that only its authority vouches for."""
    root = Ca()
    sub = Ca("Sub", root)
    end = sub.issue("moon", sans=(cx.DNSName("moon"),))
    whole = (end, sub.certificate, root.certificate)
    for credentials, remote in (
        (loaded(ends=(end, sub.certificate), cas=(root,)), RemoteAuth()),
        (loaded(cas=(root, sub)), RemoteAuth(certs=(end,))),
        (loaded(cas=(root,)), RemoteAuth(cacerts=(sub.certificate,))),
        (loaded(cas=(root, sub)), RemoteAuth(ca_id=IdentityPattern.exactly(root.certificate.subject))),
    ):
        above = credentials.issuers_of(end)
        assert credentials.verify_peer(end, above, remote, MOON, WALL).certificates == whole
    # loaded, and trusted by nobody: it may still revoke
    mine = loaded(ends=(end, sub.certificate))
    assert mine.verify_peer(end, mine.issuers_of(end), RemoteAuth(), MOON, WALL).certificates == whole[:2]
    with pytest.raises(CertificateError, match="policies"):
        mine.verify_peer(end, (), RemoteAuth(cert_policy=("1.2.3",)), MOON, WALL)


def test_a_certificate_of_ours_is_no_anchor_for_others() -> None:
    middle = Ca("Middle")
    end = middle.issue("moon", sans=(cx.DNSName("moon"),))
    with pytest.raises(CertificateError):
        loaded(ends=(middle.certificate,)).verify_peer(end, [middle.certificate], RemoteAuth(), MOON, WALL)


def test_raw_public_keys() -> None:
    """RFC 7670: only what the connection names."""
    spki = EC_KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    other = EC384_KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    credentials = Credentials()
    key_id = Identity(IdType.KEY_ID, hashlib.sha1(spki).digest())
    assert credentials.peer_key(spki, RemoteAuth(pubkeys=(spki,)), key_id) == EC_KEY.public_key()
    for presented, remote in (
        (spki, RemoteAuth()),
        (other, RemoteAuth(pubkeys=(spki,))),
        (spki[:-1], RemoteAuth(pubkeys=(spki,))),
        (b"junk", RemoteAuth(pubkeys=(b"junk",))),
        (spki, RemoteAuth(pubkeys=(spki,), constraints=parse_constraints("rsa"))),
        # what asks for an authority or for policies is not content with a key that has none, as in charon
        (spki, RemoteAuth(pubkeys=(spki,), cacerts=(Ca().certificate,))),
        (spki, RemoteAuth(pubkeys=(spki,), ca_id=parse_pattern("%any"))),
        (spki, RemoteAuth(pubkeys=(spki,), cert_policy=("1.2.3",))),
    ):
        with pytest.raises(AuthenticationError):
            credentials.peer_key(presented, remote, key_id)


def test_a_key_that_is_named_is_the_only_one() -> None:
    """Certificates are not taken in its place, but for those that are named beside it."""
    ca = Ca()
    end = ca.issue("moon", sans=(cx.DNSName("moon"),))
    spki = EC384_KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    credentials = Credentials(authorities=[Authority(ca.certificate)], certificates=[end])
    for remote in (RemoteAuth(pubkeys=(spki,)), RemoteAuth(pubkeys=(spki,), cacerts=(ca.certificate,))):
        with pytest.raises(CertificateError, match="not one of those configured"):
            credentials.verify_peer(end, (), remote, MOON, WALL)
    credentials.verify_peer(end, (), RemoteAuth(pubkeys=(spki,), certs=(end,)), MOON, WALL)


def test_whose_a_raw_public_key_is() -> None:
    """The connection says it; where that may be many, it is the key's own KEY_ID and not what the peer likes to be."""
    spki = EC_KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    own = [hashlib.sha1(spki).digest(), cx.SubjectKeyIdentifier.from_public_key(EC_KEY.public_key()).digest]
    for text in ("%any", "*.example.org", "keyid:^.*$"):
        remote = RemoteAuth(id=parse_pattern(text), pubkeys=(spki,))
        for digest in own:
            Credentials().peer_key(spki, remote, Identity(IdType.KEY_ID, digest))
        for other in (parse_identity("moon.example.org"), Identity(IdType.KEY_ID, bytes(20)), Identity(2, own[0])):
            with pytest.raises(AuthenticationError, match="stands for its KEY_ID"):
                Credentials().peer_key(spki, remote, other)
    moon = parse_identity("moon.example.org")
    Credentials().peer_key(spki, RemoteAuth(id=IdentityPattern.exactly(moon), pubkeys=(spki,)), moon)


def test_uris_of_authorities() -> None:
    ca = Ca()
    authority = Authority(ca.certificate, ("http://crl",), ("http://ocsp",), "name")
    credentials = Credentials(authorities=[authority, Authority(Ca().certificate)], crls=[Crl(ca.crl())])
    assert credentials.revocation_uris == {ca.certificate.der: (("http://crl",), ("http://ocsp",))}
    assert len(credentials.crls) == 1
