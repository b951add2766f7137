"""Whom EAP-TLS trusts: the connection's rules for certificates, in both roles and over whole conversations."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography import x509 as cx

from ipsec.crypto.auth import AuthenticationError, parse_constraints
from ipsec.crypto.identity import parse_identity, parse_pattern
from ipsec.crypto.revocation import Crl, Revocation
from ipsec.crypto.x509 import Certificate
from ipsec.ike.config import Connection, LocalAuth, RemoteAuth
from ipsec.ike.credentials import Authority, Credentials, PrivateKey
from ipsec.ike.eap.method import EapError
from ipsec.ike.eap.tls import TlsPeer, TlsServer
from ipsec.ike.eap.trust import AUTHORITIES_MAX, tls_authorities, tls_identity, verify_client, verify_server
from ipsec.ike.status import StatusCache, StatusUnknownError
from tests.crypto.pki import DAY, EC_KEY, ED25519_KEY, WALL, Ca
from tests.crypto.test_revocation import point

ROOT = Ca()
MIDDLE = Ca("Middle", ROOT)
OTHER = Ca("Other")
MOON, CAROL = parse_identity("moon.x.org"), parse_identity("carol@x.org")
MOON_NAMES, CAROL_NAMES = (cx.DNSName("moon.x.org"),), (cx.RFC822Name("carol@x.org"),)
URI = "http://a/1.crl"
POINT = [(cx.CRLDistributionPoints([point(URI)]), False)]


def sa_with(*trusted: Ca, crls: tuple[bytes, ...] = (), **more: Any) -> Any:
    """As much of an IKE_SA as judges certificates."""
    authorities = [Authority(one.certificate) for one in trusted]
    credentials = Credentials(authorities=authorities, crls=[Crl(one) for one in crls], **more)
    host = SimpleNamespace(wall=lambda: WALL)
    return SimpleNamespace(core=SimpleNamespace(credentials=credentials, host=host, status=StatusCache()))


def moon(ca: Ca = ROOT, **more: Any) -> Certificate:
    return ca.issue("moon", EC_KEY, **{"sans": MOON_NAMES, **more})


def carol(ca: Ca = ROOT, **more: Any) -> Certificate:
    return ca.issue("carol", ED25519_KEY, **{"sans": CAROL_NAMES, **more})


def as_server(sa: Any, *chain: Certificate, **remote: Any) -> None:
    verify_client(sa, Connection("c", remote=RemoteAuth(**remote)), CAROL)([one.der for one in chain])


def as_client(sa: Any, *chain: Certificate, aaa_id: str = "", **remote: Any) -> None:
    local = LocalAuth(aaa_id=parse_pattern(aaa_id) if aaa_id else None)
    verify_server(sa, Connection("c", local=local, remote=RemoteAuth(**remote)), MOON)([one.der for one in chain])


def test_a_peer_that_is_right() -> None:
    as_server(sa_with(ROOT), carol())
    as_server(sa_with(ROOT), carol(MIDDLE), MIDDLE.certificate)
    as_server(sa_with(ROOT, OTHER), carol(), cacerts=(ROOT.certificate,), ca_id=parse_pattern("O=x, CN=Root"))
    as_server(sa_with(ROOT), carol(), eap_id=parse_pattern("*@x.org"))
    as_server(sa_with(ROOT, crls=(ROOT.crl(),)), carol(), revocation=Revocation.STRICT)
    pinned = carol(OTHER)
    as_server(sa_with(), pinned, certs=(pinned,))


@pytest.mark.parametrize(
    ("chain", "remote", "why"),
    [
        ((carol(OTHER),), {}, "not trusted|no trusted|issuer"),
        ((carol(MIDDLE),), {}, "not trusted|no trusted|issuer"),
        ((moon(),), {}, "is not one of carol@x.org"),
        ((carol(sans=()),), {}, "is not one of carol@x.org"),
        ((carol(not_after=WALL - DAY),), {}, "expired|valid"),
        ((carol(not_before=WALL + DAY),), {}, "not yet|valid"),
        ((carol(serial=6),), {}, "revoked"),
        ((carol(),), {"cacerts": (OTHER.certificate,)}, "none of the authorities configured"),
        ((carol(),), {"ca_id": parse_pattern("CN=Nobody")}, "no authority"),
        ((carol(),), {"certs": (moon(),)}, "not one of those configured"),
        ((carol(),), {"eap_id": parse_pattern("*@y.org")}, "in EAP, we want"),
        ((carol(),), {"constraints": parse_constraints("rsa")}, "not allowed"),
        ((carol(),), {"cert_policy": ("1.2.3",)}, "polic"),
        ((carol(),) * 11, {}, "11 certificates"),
    ],
)
def test_a_peer_that_is_not(chain: tuple[Certificate, ...], remote: dict[str, Any], why: str) -> None:
    with pytest.raises(AuthenticationError, match=why):
        as_server(sa_with(ROOT, crls=(ROOT.crl(6),)), *chain, **remote)


def test_junk_in_place_of_certificates() -> None:
    judge = verify_client(sa_with(ROOT), Connection("c"), CAROL)
    for junk in (b"", b"\x30\x00", carol().der[:-1]):
        with pytest.raises(AuthenticationError, match="malformed"):
            judge([junk])
        with pytest.raises(AuthenticationError, match="malformed"):
            judge([carol().der, junk])


def test_a_server_that_is_right() -> None:
    as_client(sa_with(ROOT), moon())
    pinned = moon(OTHER)
    as_client(sa_with(), pinned, certs=(pinned,))


AAA = (cx.DNSName("aaa.x.org"),)


def test_a_server_elsewhere() -> None:
    """``aaa_id``: its name, exactly or as a pattern; certificates of ``remote`` are the gateway's."""
    end = ROOT.issue("aaa", EC_KEY, sans=AAA)
    for aaa_id in ("aaa.x.org", "*.x.org", "O=x, CN=aaa", "O=x, CN=*", "%any"):
        as_client(sa_with(ROOT), end, aaa_id=aaa_id)
        as_client(sa_with(ROOT), end, aaa_id=aaa_id, certs=(moon(),), pubkeys=(b"key",))
    for aaa_id in ("bbb.x.org", "*.y.org", "O=y, CN=*", "moon.x.org"):
        with pytest.raises(AuthenticationError, match="is not one of"):
            as_client(sa_with(ROOT), end, aaa_id=aaa_id)
    with pytest.raises(AuthenticationError, match="is not one of moon"):
        as_client(sa_with(ROOT), end)
    with pytest.raises(AuthenticationError, match="none of the authorities"):
        as_client(sa_with(ROOT), end, aaa_id="aaa.x.org", cacerts=(OTHER.certificate,))


@pytest.mark.parametrize("serials", [(), (6,)], ids=["good", "revoked"])
def test_status_that_has_to_be_fetched(serials: tuple[int, ...]) -> None:
    """A whole conversation that waits for the CRLs of both ends."""
    sa = sa_with(ROOT)
    keys = [PrivateKey(EC_KEY), PrivateKey(ED25519_KEY)]
    ours = sa_with(certificates=[moon(extensions=POINT), carol(extensions=POINT, serial=6)], private_keys=keys)
    of_moon, of_carol = tls_identity(ours, LocalAuth(), MOON), tls_identity(ours, LocalAuth(), CAROL)
    assert of_moon is not None
    assert of_carol is not None
    strict = Connection("c", remote=RemoteAuth(revocation=Revocation.STRICT))
    far = sa_with(ROOT)
    server = TlsServer(of_moon, verify_client(sa, strict, CAROL), tls_authorities(sa, strict.remote))
    peer = TlsPeer(of_carol, verify_server(far, strict, MOON))
    waited = []

    def patient(where: Any, call: Any, *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except StatusUnknownError as unknown:
            waited.append((str(unknown.chain.end.subject), unknown.sources[0].crl_uris))
            where.core.status.add(unknown.sources, [Crl(ROOT.crl(*serials))], (), WALL)
            return call(*arguments)

    def run() -> None:
        request: bytes | None = server.begin(0)
        for number in range(20):
            assert request is not None
            response = patient(far, peer.respond, number, request)
            request = patient(sa, server.take, number, response, number + 1)
            if request is None:
                return
        raise AssertionError("no end")

    if serials:
        with pytest.raises(EapError, match="revoked"):
            run()
        assert peer.msk is server.msk is None
    else:
        run()
        assert peer.msk == server.msk is not None
    assert waited == [("O=x, CN=moon", (URI,)), ("O=x, CN=carol", (URI,))]


def test_what_we_show() -> None:
    """The certificate of the identity that is in force, and those above it."""
    key = PrivateKey(EC_KEY)
    old = moon(MIDDLE, not_after=WALL - timedelta(days=1))
    now = moon(MIDDLE)
    sa = sa_with(ROOT, certificates=[old, now, MIDDLE.certificate], private_keys=[key])
    found = tls_identity(sa, LocalAuth(), MOON)
    assert found is not None
    assert (found.certificate, found.intermediates) == (now.der, (MIDDLE.certificate.der,))
    assert found.private_key is EC_KEY
    assert tls_identity(sa, LocalAuth(), CAROL) is None
    assert tls_identity(sa, LocalAuth(), None) is None


def test_authorities_that_are_named() -> None:
    sa = sa_with(ROOT, OTHER)
    assert tls_authorities(sa, RemoteAuth()) == (ROOT.certificate.subject.data, OTHER.certificate.subject.data)
    assert tls_authorities(sa, RemoteAuth(cacerts=(OTHER.certificate,))) == (OTHER.certificate.subject.data,)
    many = [Ca(f"{number}" + "x" * 50) for number in range(AUTHORITIES_MAX // 50)]
    assert tls_authorities(sa_with(*many), RemoteAuth()) == ()
