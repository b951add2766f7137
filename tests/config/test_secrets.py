"""``secrets { }``: preshared keys, passwords and passphrases; none of them in a message."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipsec.config import Config, load, load_text
from ipsec.config.diff import changes
from ipsec.config.secrets import parse_shared_secret
from ipsec.crypto.identity import parse_identity, parse_pattern
from ipsec.errors import ConfigError
from ipsec.ike.credentials import EapSecret, Ppk, SharedSecret
from tests.config import pki

SECRET = "correct horse battery"


def read(text: str, base: Path | None = None) -> Config:
    return load_text(f"secrets {{\n{text}\n}}", "f", str(base) if base else None)


def refuse(text: str, base: Path | None = None) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        read(text, base)
    assert SECRET not in str(caught.value)
    assert caught.value.__context__ is None or caught.value.__suppress_context__
    return caught.value


def test_none() -> None:
    assert tuple(load_text("").credentials.secrets) == ()
    assert tuple(load_text("secrets {\n}").credentials.secrets) == ()


@pytest.mark.parametrize(
    ("text", "octets"),
    [
        ("a secret", b"a secret"),
        ("0x0102ff", b"\x01\x02\xff"),
        ("0X0102FF", b"\x01\x02\xff"),
        ("0sAQL/", b"\x01\x02\xff"),
        ("0SAQL/", b"\x01\x02\xff"),
        ("\u00e4", b"\xc3\xa4"),
        ("0", b"0"),
        ("", b""),
    ],
)
def test_forms(text: str, octets: bytes) -> None:
    assert parse_shared_secret(text) == octets


def test_shared_secrets() -> None:
    config = read(
        f"""
        ike {{
            secret = {SECRET}
        }}
        ike-moon {{
            id = moon.example.org
            id-a = *@example.org
            id2 = "C=CH, CN=sun"
            secret = 0x{SECRET.encode().hex()}
        }}
        """
    )
    owners = (parse_pattern("moon.example.org"), parse_pattern("*@example.org"), parse_pattern("C=CH, CN=sun"))
    assert tuple(config.credentials.secrets) == (
        SharedSecret(SECRET.encode(), (), "ike"),
        SharedSecret(SECRET.encode(), owners, "ike-moon"),
    )
    assert config.warnings == ()
    assert config.credentials.find_psk(parse_identity("moon.example.org"), None) == SECRET.encode()
    assert SECRET not in repr(config)
    assert SECRET.encode().hex() not in repr(config)


def test_secret_of_a_subnet() -> None:
    credentials = read(f"ike {{\n id-a = 192.0.2.1\n id-b = 10.0.0.0/8\n secret = {SECRET}\n}}").credentials
    gateway = parse_identity("192.0.2.1")
    assert credentials.find_psk(gateway, parse_identity("10.7.0.1")) == SECRET.encode()
    assert credentials.find_psk(gateway, parse_identity("11.0.0.1")) is None


@pytest.mark.parametrize(
    ("text", "key", "message"),
    [
        ("ike {\n id = moon\n}", "secrets.ike.secret", "a preshared key needs this key"),
        ("ike {\n secret =\n}", "secrets.ike.secret", "a preshared key needs this key"),
        ('ike {\n secret = ""\n}', "secrets.ike.secret", "the preshared key is empty"),
        (f"ike {{\n secret = 0x{SECRET}\n}}", "secrets.ike.secret", "not valid hexadecimal"),
        (f"ike {{\n secret = 0s{SECRET}\n}}", "secrets.ike.secret", "not valid Base64"),
        (f"ike {{\n sceret = {SECRET}\n}}", "secrets.ike.sceret", "unknown key, did you mean 'secret'?"),
        (f"ike {{\n secret = {SECRET}\n id {{ }}\n}}", "secrets.ike.id", "unknown section"),
        (f'ike {{\n secret = {SECRET}\n id = "{{300}}:x"\n}}', "secrets.ike.id", "no identity type"),
        (f"ike = {SECRET}", "secrets.ike", "unknown key"),
        (f"token {{\n handle = 12\n pin = {SECRET}\n}}", "secrets.token", "smart cards"),
        ("eap-carol {\n id = carol\n}", "secrets.eap-carol.secret", "a password needs this key"),
        ('xauth {\n secret = ""\n}', "secrets.xauth.secret", "the password is empty"),
        (f"eap {{\n secret = {SECRET}\n user = x\n}}", "secrets.eap.user", "unknown key"),
        (f"eap {{\n secret = 0s{SECRET}\n}}", "secrets.eap.secret", "not valid Base64"),
        ('eap {\n secret = x\n id = "{300}:x"\n}', "secrets.eap.id", "no identity type"),
        ("ntlm {\n id = carol\n}", "secrets.ntlm.secret", "an NT hash needs this key"),
        (f"ntlm {{\n secret = {SECRET}\n}}", "secrets.ntlm.secret", "must begin with 0x (hexadecimal) or 0s"),
        ("ntlm {\n secret = 16_letters_of_it\n}", "secrets.ntlm.secret", "must begin with 0x (hexadecimal) or 0s"),
        (f"ntlm {{\n secret = 0x{'ab' * 15}\n}}", "secrets.ntlm.secret", "15 octets, an NT hash has 16"),
        (f"ntlm {{\n secret = 0x{'ab' * 17}\n}}", "secrets.ntlm.secret", "17 octets, an NT hash has 16"),
        ("psk {\n}", "secrets.psk", "not one of ike, ppk, eap, xauth, ntlm, private, rsa, ecdsa, pkcs8, pkcs12"),
        ("privat {\n}", "secrets.privat", "did you mean 'private'?"),
        *(
            (f"{kind}-1 {{\n secret = {SECRET}\n}}", f"secrets.{kind}-1.file", "a passphrase needs this key")
            for kind in ("private", "rsa", "ecdsa", "pkcs8", "pkcs12")
        ),
        *(
            (f"{kind} {{\n secret = {SECRET}\n file = x.pem\n}}", f"secrets.{kind}.file", f"{kind}/x.pem: No such file")
            for kind in ("private", "rsa", "ecdsa", "pkcs8", "pkcs12")
        ),
        (f"private {{\n file = x\n pin = {SECRET}\n}}", "secrets.private.pin", "unknown key"),
    ],
)
def test_misuse(tmp_path: Path, text: str, key: str, message: str) -> None:
    error = refuse(text, tmp_path)
    assert (error.key, error.file) == (key, "f")
    assert message in error.message


def test_key_files_need_a_directory() -> None:
    error = refuse("private {\n file = x.pem\n}")
    assert "there is no directory private/, write an absolute path" in error.message
    assert error.key == "secrets.private.file"


def test_short_secret_is_a_warning() -> None:
    (warning,) = read("ike {\n secret = abc\n}").warnings
    assert warning.startswith("f:3: secrets.ike.secret: a preshared key shorter than 8 octets")


def test_postquantum() -> None:
    """RFC 8784: the id is written as an identity, and goes over the wire as its octets."""
    config = read(f"ppk-sun {{\n secret = 0x{'a5' * 32}\n id-1 = pq.example.org\n id-2 = \"@#0aff\"\n}}")
    ids = (parse_pattern("pq.example.org"), parse_pattern("@#0aff"))
    assert config.credentials.ppks == (Ppk(b"\xa5" * 32, ids, "ppk-sun"),)
    (anybodys,) = read(f"ppk {{\n secret = 0x{'a5' * 32}\n id-1 = a\n id-2 = %any\n}}").credentials.ppks
    assert anybodys.ids == ()
    for odd in ("CN=*", "asn1dn:^.*$"):
        assert "no distinguished name" in refuse(f'ppk {{\n secret = x\n id = "{odd}"\n}}').message
    assert "a PPK_ID has 1 to 1023" in refuse("ppk {\n secret = x\n id = \"@#\"\n}").message
    assert config.credentials.secrets == config.warnings == ()
    assert "a5" * 8 not in repr(config)
    (warning,) = read(f"ppk {{\n secret = {SECRET}\n}}").warnings
    assert warning.startswith("f:3: secrets.ppk.secret: a postquantum preshared key shorter than 32 octets")
    assert refuse("ppk {\n id = x\n}").key == "secrets.ppk.secret"


def test_eap() -> None:
    """Passwords and NT hashes are found by who the user is for EAP, and are no preshared keys."""
    nt_hash = bytes(range(16))
    config = read(
        f"""
        eap-carol {{
            id-1 = carol
            id-2 = *@example.org
            secret = {SECRET}
        }}
        xauth-dave {{
            id = dave
            secret = 0x{SECRET.encode().hex()}
        }}
        ntlm-erin {{
            id = erin
            secret = 0x{nt_hash.hex()}
        }}
        eap {{
            secret = abc
        }}
        """
    )
    credentials = config.credentials
    assert credentials.eap_secrets == (
        EapSecret(SECRET.encode(), (parse_pattern("carol"), parse_pattern("*@example.org")), "eap-carol"),
        EapSecret(SECRET.encode(), (parse_pattern("dave"),), "xauth-dave"),
        EapSecret(nt_hash, (parse_pattern("erin"),), "ntlm-erin", is_nt_hash=True),
        EapSecret(b"abc", (), "eap"),
    )
    # a short password is the user's business: only the gateway sees what could be tried
    assert credentials.secrets == config.warnings == ()
    whose = {"carol": "eap-carol", "x@example.org": "eap-carol", "dave": "xauth-dave", "erin": "ntlm-erin", "y": "eap"}
    found = {user: credentials.find_eap(parse_identity(user)) for user in whose}
    assert {user: secret.name for user, secret in found.items() if secret is not None} == whose
    plain = credentials.find_eap(parse_identity("erin"), nt_hashes=False)
    assert plain is not None
    assert plain.name == "eap"
    assert credentials.find_psk(parse_identity("carol"), parse_identity("dave")) is None
    for shown in (SECRET, SECRET.encode().hex(), nt_hash.hex(), repr(nt_hash), "abc"):
        assert shown not in repr(config)


def test_eap_secrets_that_change() -> None:
    """The change is seen, the secret is not."""
    old = read(f"eap-a {{\n id = a\n secret = {SECRET}\n}}\neap-b {{\n secret = {SECRET}\n}}")
    new = read(f"eap-a {{\n id = a\n secret = another {SECRET}\n}}\nntlm-c {{\n secret = 0x{'ab' * 16}\n}}")
    found = {(change.key, change.kind.value, change.before, change.after) for change in changes(old, new)}
    assert found == {
        ("secrets.eap-a.secret", "changed", "(secret)", "(secret)"),
        ("secrets.eap-b", "removed", "", ""),
        ("secrets.ntlm-c", "added", "", ""),
    }


@pytest.mark.parametrize("kind", ["private", "rsa", "ecdsa", "pkcs8"])
def test_passphrase(tmp_path: Path, kind: str) -> None:
    pki.write(tmp_path, f"{kind}/moon.pem", pki.key_pem("moon", SECRET.encode()))
    config = read(f"{kind}-x {{\n file = moon.pem\n secret = {SECRET}\n}}", tmp_path)
    (key,) = config.credentials.private_keys
    assert config.credentials.private_key_for(pki.parsed("moon")) is not None
    assert (config.warnings, SECRET in repr(key)) == ((), False)


def test_passphrase_by_absolute_path(tmp_path: Path) -> None:
    path = pki.write(tmp_path, "elsewhere/moon.pem", pki.key_pem("moon", SECRET.encode()))
    config = read(f"private {{\n file = {path}\n secret = {SECRET}\n}}")
    assert config.credentials.private_key_for(pki.parsed("moon")) is not None


@pytest.mark.parametrize("passphrase", ["0x0102", "0sAQID", "0xno"])
def test_passphrase_is_text(tmp_path: Path, passphrase: str) -> None:
    """swanctl decodes preshared keys, and no passphrases."""
    pki.write(tmp_path, "private/moon.pem", pki.key_pem("moon", passphrase.encode()))
    config = read(f"private {{\n file = moon.pem\n secret = {passphrase}\n}}", tmp_path)
    assert config.credentials.private_key_for(pki.parsed("moon")) is not None


def test_key_without_passphrase(tmp_path: Path) -> None:
    """A section without a secret, and a secret for a key that needs none, do no harm."""
    pki.write(tmp_path, "private/moon.pem", pki.key_pem("moon"))
    assert len(read("private {\n file = moon.pem\n}", tmp_path).credentials.private_keys) == 1
    text = f"private {{\n file = moon.pem\n secret = {SECRET}\n}}"
    assert len(read(text, tmp_path).credentials.private_keys) == 1


def test_wrong_passphrase(tmp_path: Path) -> None:
    pki.write(tmp_path, "private/moon.pem", pki.key_pem("moon", b"another"))
    error = refuse(f"private {{\n file = moon.pem\n secret = {SECRET}\n}}", tmp_path)
    assert error.key == "secrets.private.file"
    assert "private/moon.pem" in error.message


def test_missing_passphrase(tmp_path: Path) -> None:
    pki.write(tmp_path, "private/moon.pem", pki.key_pem("moon", b"another"))
    error = refuse("", tmp_path)
    assert error.file == str(tmp_path / "private/moon.pem")
    assert "passphrases are in secrets.private<suffix> { file, secret }" in error.message


def test_two_passphrases(tmp_path: Path) -> None:
    pki.write(tmp_path, "private/moon.pem", pki.key_pem("moon", SECRET.encode()))
    one = f"{{\n file = moon.pem\n secret = {SECRET}\n}}"
    error = refuse(f"private-a {one}\nprivate-b {one}", tmp_path)
    assert error.key == "secrets.private-b.file"
    assert "has a passphrase in secrets.private-a already" in error.message


def test_container(tmp_path: Path) -> None:
    pki.write(tmp_path, "pkcs12/moon.p12", pki.container("moon", SECRET.encode()))
    config = read(f"pkcs12 {{\n file = moon.p12\n secret = {SECRET}\n}}", tmp_path)
    moon, ca = pki.parsed("moon"), pki.parsed("ca", "ca")
    assert config.credentials.private_key_for(moon) is not None
    assert {moon, ca} <= set(config.credentials.certificates)
    # charon trusts what is in a container
    assert config.credentials.anchors == (ca,)
    error = refuse("pkcs12 {\n file = moon.p12\n secret = wrong\n}", tmp_path)
    assert error.key == "secrets.pkcs12.file"


def test_readable_file_is_a_warning(tmp_path: Path) -> None:
    file = pki.write(tmp_path, "swanctl.conf", f"secrets {{\n ike {{\n  secret = {SECRET}\n }}\n}}".encode())
    assert load(str(file)).warnings == ()
    file.chmod(0o644)
    (warning,) = load(str(file)).warnings
    assert warning.startswith(f"{file}:3: secrets.ike.secret: others can read the keys in this file")
