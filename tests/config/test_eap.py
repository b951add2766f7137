"""EAP in ``connections { }``: methods, identities, what does not go together, and what is only worth a warning."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipsec.config import Config, load_text
from ipsec.crypto.auth import ANY_SCHEME, Constraints, parse_constraints
from ipsec.crypto.identity import ANY_IDENTITY, parse_identity, parse_pattern
from ipsec.errors import ConfigError
from ipsec.ike.config import AuthClass, LocalAuth, RemoteAuth
from ipsec.ike.eap.names import EAP_METHODS, vici_name
from ipsec.wire.iana import EapType
from tests.config import pki

SECRETS = """
secrets {
 eap-carol {
  id = carol
  secret = correct horse battery
 }
 ntlm-erin {
  id = erin
  secret = 0x000102030405060708090a0b0c0d0e0f
 }
 ike {
  secret = correct horse battery
 }
}
"""
NO_RADIUS = "remote.auth: ipsecd.radius.servers has no RADIUS server: nobody gets in"
RADIUS = "ipsecd {\nradius {\nservers {\none {\naddress = 192.0.2.3\nsecret = 0123456789abcdef\n}\n}\n}\n}\n"
CHILD = "children {\nnet {\n}\n}\n"
#: we are the user, or the gateway
USER, GATEWAY = "auth = eap-{0}\nid = carol", "auth = eap-{0}\neap_id = %any"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Certificates of moon, ours, and of the authority above it."""
    return pki.lay_out(tmp_path)


def config(local: str, remote: str, lines: str = "", base: Path | None = None, secrets: str = SECRETS) -> Config:
    if local.startswith("auth = eap") and "auth = psk" not in remote and "\nid = " not in remote:
        # else there is a warning
        remote += "\nid = sun"
    ends = f"local {{\n{local}\n}}\nremote {{\n{remote}\n}}\n"
    there = f"remote_addrs = 192.0.2.2\n{lines}\n{ends}"
    children = "" if "children" in lines else CHILD
    text = f"connections {{\n gw {{\n{there}{children} }}\n}}\n{secrets}"
    return load_text(text, "f", str(base) if base else None)


def user(local: str, base: Path | None = None, lines: str = "") -> LocalAuth:
    """Us as a user of a gateway that has a certificate."""
    return config(local, "auth = pubkey", lines, base).connections[0].local


def peer(remote: str, base: Path | None = None, lines: str = "") -> RemoteAuth:
    """A user of ours."""
    return config("auth = psk\nid = gw", remote, lines, base).connections[0].remote


def refuse(local: str, remote: str, lines: str = "") -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        config(local, remote, lines)
    return caught.value


def warnings(local: str, remote: str, lines: str = "", base: Path | None = None, secrets: str = SECRETS) -> list[str]:
    """Without the place and the connection."""
    return [one.split("connections.gw.")[-1] for one in config(local, remote, lines, base, secrets).warnings]


# -- methods


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("eap", 0),
        ("EAP", 0),
        *((f"eap-{name}", kind) for name, kind in EAP_METHODS.items()),
        *((f"eap-{kind.value}", kind) for kind in EAP_METHODS.values()),
        ("eap-26-0", EapType.MSCHAPV2),
        ("EAP-MSCHAPv2", EapType.MSCHAPV2),
    ],
)
def test_methods(text: str, kind: int) -> None:
    """By name or number, on either side."""
    for found in (user(f"auth = {text}\nid = carol"), peer(f"auth = {text}")):
        assert (found.method, found.eap_type, found.constraints) == (AuthClass.EAP, kind, ANY_SCHEME)
    assert type(user(f"auth = {text}\nid = carol").eap_type) is int


def test_methods_of_remote() -> None:
    """Whoever answers for the peer chooses."""
    assert peer("auth = eap-dynamic") == peer("auth = eap") == RemoteAuth(AuthClass.EAP)
    assert peer("auth = eap-radius") == RemoteAuth(AuthClass.EAP, eap_radius=True)
    for name in ("radius", "dynamic"):
        error = refuse(f"auth = eap-{name}", "auth = pubkey")
        assert error.message.startswith(f"'eap-{name}' is for remote only, these are: eap, eap-md5, eap-mschapv2, eap-")
        assert "radius" not in error.message.partition("these are")[2]
        assert error.key == "connections.gw.local.auth"


def test_what_radius_servers_grant() -> None:
    assert peer("auth = eap-radius\ngroups = staff, it's me").groups == ("staff", "it's me")
    for auth in ("eap", "eap-md5", "pubkey", "psk"):
        error = refuse("auth = psk" if auth != "psk" else "auth = eap\nid = carol", f"auth = {auth}\ngroups = staff")
        assert error.key == "connections.gw.remote.groups"
        assert "only those that RADIUS servers grant" in error.message


@pytest.mark.parametrize(
    "text",
    [
        *("eap-peap", "eap-ttls", "eap-sim", "eap-aka", "eap-identity", "eap-otp", "eap-tnc", "eap-foo", "eap-md5-foo"),
        *("eap-", "eap_md5", "eapmd5", "eapx-md5", "eap/md5", "eap-0", "eap-1", "eap-3", "eap-254", "eap-999"),
        *("eap-0x4", "eap--4"),
        *("eap-4294967300", "eap-4-", "eap-4-9", "eap-04", "eap-26-4294967296", "eap-tls-rsa", "eap-\u0664", "eap-4 "),
    ],
)
def test_other_methods(text: str) -> None:
    """charon takes what it does not know for plain EAP; what is meant is not that."""
    for local, remote in ((f'auth = "{text}"', "auth = pubkey"), ("auth = psk", f'auth = "{text}"')):
        message = refuse(local, remote).message
        known = "these are: eap, eap-md5, eap-mschapv2, eap-gtc, eap-tls"
        assert f"is not an EAP method that is supported, {known}" in message
        assert message.count("eap-radius") == ("psk" in local)
    assert refuse("auth = eap-mschap", "auth = pubkey").message.endswith("did you mean 'eap-mschapv2'?")


def test_names_of_vici() -> None:
    assert [vici_name(kind) for kind in EAP_METHODS.values()] == ["EAP_MD5", "EAP_MSCHAPV2", "EAP_GTC", "EAP_TLS"]


@pytest.mark.parametrize("text", ["rsa-2048-sha256", "ecdsa-384-sha384-rsa-3072-sha512", "ed25519", "pubkey-sha384"])
def test_constraints(text: str) -> None:
    """Behind the colon, written as without EAP."""
    for found in (user(f"auth = eap-tls:{text}"), peer(f"auth = eap-tls:{text}")):
        assert found.constraints == parse_constraints(text)
        assert str(found.constraints) == text
    assert user("auth = eap-tls:").constraints == Constraints()
    message = refuse(f"auth = eap-tls:{text}-md4", "auth = pubkey").message
    assert "'md4' is not a key type, size or hash" in message


# -- identities


def test_local_identities() -> None:
    found = user("auth = eap-tls\nid = gw.example\neap_id = carol@example.org\naaa_id = *.example.org")
    assert (found.id, found.eap_id) == (parse_identity("gw.example"), parse_identity("carol@example.org"))
    assert found.aaa_id == parse_pattern("*.example.org")
    found = user("auth = eap-md5")
    assert (found.id, found.eap_id, found.aaa_id) == (None, None, None)
    # charon: whoever we are for IKE
    assert user("auth = eap-md5\nid = carol\neap_id = %any").eap_id is None
    assert user('auth = eap-md5\nid = carol\neap_id = ""').eap_id is None
    assert user("auth = eap-tls\naaa_id = %any").aaa_id == ANY_IDENTITY


def test_remote_identities() -> None:
    assert peer("auth = eap-md5\nid = carol").eap_id is None
    assert peer("auth = eap-md5\neap_id = %any").eap_id == ANY_IDENTITY
    found = peer('auth = eap-md5\nid = *.example\neap_id = "C=CH, CN=*"')
    assert (found.id, found.eap_id) == (parse_pattern("*.example"), parse_pattern("C=CH, CN=*"))


def test_certificates(base: Path) -> None:
    """Ours for EAP-TLS are found by who we are for EAP, and one that is named makes us its subject, as in charon."""
    (moon,) = user("auth = eap-tls\ncerts = moon.pem", base).certs
    assert user("auth = eap-tls\ncerts = moon.pem", base).id == moon.subject
    assert user("auth = eap-tls\ncerts = moon.pem\nid = carol", base).id == parse_identity("carol")
    for lines in ("id = CN=moon", "id = carol\neap_id = CN=moon", "eap_id = CN=moon", ""):
        assert user(f"auth = eap-tls\n{lines}", base).certs == (moon,)
    assert user("auth = eap\nid = CN=moon", base).certs == (moon,)
    for lines in ("auth = eap-tls\nid = carol", "auth = eap-tls\nid = CN=moon\neap_id = carol", "auth = eap"):
        assert user(lines, base).certs == ()
    assert user("auth = eap-md5\nid = CN=moon", base).certs == ()
    assert peer("auth = eap-tls\ncacerts = ca.pem", base).cacerts == (pki.parsed("ca", "ca"),)


# -- what does not go together


@pytest.mark.parametrize(
    ("local", "remote", "side", "name"),
    [
        ("eap-md5", "eap-md5", "local", "MD5"),
        ("eap-mschapv2", "eap-tls", "local", "MSCHAPV2"),
        ("eap-tls", "eap-gtc", "remote", "GTC"),
        ("eap", "eap-mschapv2", "remote", "MSCHAPV2"),
        ("eap-mschapv2", "eap-radius", "local", "MSCHAPV2"),
    ],
)
def test_passwords_at_both_ends(local: str, remote: str, side: str, name: str) -> None:
    """Nothing else would say who hears them, or who tries them (RFC 5998 section 4)."""
    error = refuse(f"auth = {local}\nid = carol", f"auth = {remote}")
    why = f"EAP alone shows who the one that answers is, which {name} does not do safely (RFC 5998 section 4): eap-tls"
    assert error.message.startswith(why)
    assert (error.key, error.line) == (f"connections.gw.{side}.auth", 6 if side == "local" else 10)


@pytest.mark.parametrize("remote", ["eap-tls", "eap", "eap-dynamic"])
@pytest.mark.parametrize("local", ["eap-tls", "eap"])
def test_certificates_at_both_ends(base: Path, local: str, remote: str) -> None:
    lines = "children {\nnet {\nstart_action = start\n}\n}"
    ends = f"auth = {local}\ncerts = moon.pem", f"auth = {remote}"
    assert warnings(*ends, lines, base) == []
    (connection,) = config(*ends, lines, base).connections
    assert connection.local.method is connection.remote.method is AuthClass.EAP
    for secrets in (SECRETS, ""):
        # no password would do
        expected = "local.certs: there is no certificate with a private key for carol: we cannot authenticate ourselves"
        assert warnings(f"auth = {local}\nid = carol", ends[1], lines, base, secrets) == [expected]


def test_certificates_at_both_ends_and_nobody_to_trust(tmp_path: Path) -> None:
    pki.write(tmp_path, "x509/moon.pem", pki.pem("moon"))
    pki.write(tmp_path, "private/moon.pem", pki.key_pem("moon"))
    for remote in ("eap", "eap-tls"):
        found = warnings("auth = eap-tls", f"auth = {remote}", base=tmp_path)
        assert any("no peer can be checked" in one for one in found)


def test_radius_and_certificates(base: Path) -> None:
    """The method is the servers' choice; an initiator of ours looks whether it will do."""
    ends = "auth = eap-tls\ncerts = moon.pem", "auth = eap-radius"
    assert warnings(*ends, base=base) == [NO_RADIUS]


def test_postquantum_preshared_key() -> None:
    for local, remote in (("eap-md5", "pubkey"), ("psk", "eap-md5")):
        ends = f"auth = {local}\nid = carol", f"auth = {remote}\nid = carol"
        (connection,) = config(*ends, "ppk_id = x\nppk_required = yes").connections
        assert connection.ppk_required
        assert "ppk_id: the section secrets has no ppk of that id" in warnings(*ends, "ppk_id = x")
        assert not any("ppk" in one for one in warnings(*ends, "ppk_required = no"))


# -- warnings


@pytest.mark.parametrize(
    ("local", "remote", "expected"),
    [
        ("auth = psk\neap_id = carol", "auth = psk", "local.eap_id: not used, auth is not eap"),
        ("auth = psk\naaa_id = carol", "auth = psk", "local.aaa_id: not used, auth is not eap"),
        ("auth = psk", "auth = psk\neap_id = carol", "remote.eap_id: not used, auth is not eap"),
        (
            "certs = moon.pem",
            "auth = eap-md5\neap_id = dave",
            "remote.auth: the section secrets has no eap secret for dave",
        ),
        (
            "certs = moon.pem",
            "auth = eap-md5\nid = dave",
            "remote.auth: the section secrets has no eap secret for dave",
        ),
        (
            "certs = moon.pem",
            "auth = eap-md5\neap_id = erin",
            "remote.auth: the section secrets has no eap secret for erin, and of an NT hash MD5 cannot make use",
        ),
        (
            "certs = moon.pem",
            "auth = eap-gtc:rsa\neap_id = carol",
            "remote.auth: what follows the colon is not used, GTC is about passwords",
        ),
        (
            "certs = moon.pem",
            "auth = eap-radius\ncacerts = ca.pem",
            "remote.cacerts: not used, RADIUS servers judge the peer",
        ),
        (
            "certs = moon.pem",
            "auth = eap-mschapv2\neap_id = %any\nrevocation = strict",
            "remote.revocation: not used, MSCHAPV2 is about passwords",
        ),
        (
            "auth = eap-md5\nid = carol\ncerts = moon.pem",
            "auth = pubkey",
            "local.certs: not used, MD5 is about passwords",
        ),
        (
            "auth = eap-md5\nid = carol\ncert-1 {\nfile = moon.pem\n}",
            "auth = pubkey",
            "local.cert-1: not used, MD5 is about passwords",
        ),
        (
            "auth = eap-tls\nid = CN=moon\npubkeys = moon.pem",
            "auth = pubkey",
            "local.pubkeys: not used, EAP-TLS takes certificates alone",
        ),
        (
            "auth = eap-tls\nid = carol",
            "auth = pubkey",
            "local.certs: there is no certificate with a private key for carol: we cannot authenticate ourselves",
        ),
        (
            "auth = eap-tls\ncerts = sun.pem",
            "auth = pubkey",
            "local.certs: that of CN=sun has no private key",
        ),
        (
            "auth = eap-tls\ncerts = moon.pem\nid = carol",
            "auth = pubkey",
            "local.certs: that of CN=moon does not name carol, servers may refuse it",
        ),
        ("auth = eap\nid = dave", "auth = pubkey", "local.auth: the section secrets has no eap secret for dave"),
        (
            "auth = eap-gtc\nid = erin",
            "auth = pubkey",
            "local.auth: the section secrets has no eap secret for erin, and of an NT hash GTC cannot make use",
        ),
        *(
            (
                "auth = eap-tls\ncerts = moon.pem",
                f"auth = {auth}\nid = %any",
                "remote.id: is not set: whoever has a certificate that is trusted, as users may have one, can pose "
                "as the gateway",
            )
            for auth in ("pubkey", "eap-tls")
        ),
        (
            "auth = eap-md5\nid = carol",
            "auth = psk",
            "remote.auth: who has this preshared key, as each user does, can pose as the gateway: use auth = pubkey",
        ),
        (
            "auth = psk\nid = gw",
            "auth = eap-md5\neap_id = carol",
            "local.auth: who has this preshared key, as each user does, can pose as the gateway: use auth = pubkey",
        ),
    ],
)
def test_warnings(base: Path, local: str, remote: str, expected: str) -> None:
    """One each."""
    pki.write(base, "x509/sun.pem", pki.pem("sun"))
    pki.write(base, "pubkey/moon.pem", pki.spki("moon"))
    secrets = SECRETS + (RADIUS if "radius" in remote else "")
    assert warnings(local, remote, base=base, secrets=secrets) == [expected]


@pytest.mark.parametrize(
    ("local", "remote"),
    [
        *((f"auth = eap-{name}\nid = carol", "auth = pubkey") for name in ("md5", "mschapv2", "gtc")),
        ("auth = eap-mschapv2\nid = erin", "auth = pubkey"),
        ("auth = eap\nid = erin", "auth = pubkey"),
        ("auth = eap\nid = CN=moon", "auth = pubkey"),
        ("auth = eap-tls:rsa-2048-ecdsa\ncerts = moon.pem\naaa_id = %any", "auth = pubkey"),
        ("certs = moon.pem", "auth = eap-md5\neap_id = %any"),
        ("certs = moon.pem", "auth = eap-tls:ecdsa\ncacerts = ca.pem\nrevocation = strict"),
        ("certs = moon.pem", "auth = eap-dynamic\neap_id = *@example.org"),
    ],
)
def test_no_warning(base: Path, local: str, remote: str) -> None:
    assert warnings(local, remote, base=base) == []


def test_no_secrets_at_all(base: Path) -> None:
    for local, remote, side in (
        ("auth = eap-md5", "auth = pubkey", "local"),
        ("certs = moon.pem", "auth = eap-mschapv2\neap_id = %any", "remote"),
    ):
        expected = [f"{side}.auth: the section secrets has no eap secret"]
        assert warnings(local, remote, base=base, secrets="") == expected


def test_no_anchor_for_tls(tmp_path: Path) -> None:
    found = warnings("auth = psk\nid = gw", "auth = eap-tls", base=tmp_path)
    why = "there is no trust anchor in x509ca/ or pkcs12/ and no peer's certificate in x509/, no peer can be checked"
    assert f"remote.auth: {why}" in found
    assert not any("anchor" in one for one in warnings("auth = psk\nid = gw", "auth = eap-md5", base=tmp_path))


def test_radius_without_servers(base: Path) -> None:
    ends = "certs = moon.pem", "auth = eap-radius\neap_id = %any"
    assert warnings(*ends, base=base, secrets="") == [NO_RADIUS]
    assert warnings(*ends, base=base, secrets=RADIUS) == []


def test_no_tls(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ipsec.config.eap.tls_available", lambda: "install it")
    assert warnings("auth = eap-tls\ncerts = moon.pem", "auth = pubkey", base=base) == ["local.auth: install it"]
    assert warnings("certs = moon.pem", "auth = eap-tls", base=base) == ["remote.auth: install it"]
    assert warnings("auth = eap\ncerts = moon.pem", "auth = pubkey", base=base) == []


@pytest.mark.parametrize("action", ["start", "trap"])
def test_who_begins(base: Path, action: str) -> None:
    """With EAP the user begins (RFC 7296 section 2.16)."""
    lines = f"children {{\nnet {{\nstart_action = {action}\n}}\nby {{\nmode = pass\nstart_action = trap\n}}\n}}"
    (warning,) = warnings("certs = moon.pem", "auth = eap-md5\neap_id = %any", lines, base)
    why = "with EAP the user begins, and remote.auth makes the peer the user: this end cannot"
    assert warning == f"children.net.start_action: {why}"
    assert warnings("auth = eap-md5\nid = carol", "auth = pubkey", lines, base) == []
