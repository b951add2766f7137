"""``authorities { }``: where the certificate comes from, URIs, misuse."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipsec.config import Config, authorities, load_text
from ipsec.errors import ConfigError
from tests.config import pki

SWANCTL_KEYS = "cacert file handle slot module crl_uris ocsp_uris cert_uri_base"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    pki.write(tmp_path, "x509ca/ca.pem", pki.pem("ca", "ca"))
    return tmp_path


def read(text: str, base: Path) -> Config:
    return load_text(f"authorities {{\n{text}\n}}", "f", str(base))


def refuse(text: str, base: Path) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        read(text, base)
    assert caught.value.file == "f"
    return caught.value


def test_every_key_of_swanctl_is_known() -> None:
    assert set(SWANCTL_KEYS.split()) == {*authorities._KEYS, *authorities._REFUSED}


def test_directory_alone(base: Path) -> None:
    (authority,) = read("", base).credentials.authorities
    assert authority.certificate == pki.parsed("ca", "ca")
    assert (tuple(authority.crl_uris), tuple(authority.ocsp_uris)) == ((), ())


@pytest.mark.parametrize("place", ["cacert = ca.pem", "file = {base}/x509ca/ca.pem", "cacert = {base}/x509ca/ca.pem"])
def test_uris(base: Path, place: str) -> None:
    """The certificate is in x509ca/ too: one authority comes of it."""
    crl = "crl_uris = http://crl.example.org/ca.crl, https://[fd00::1]:8080/, file:///etc/ca.crl"
    ocsp = "ocsp_uris = http://ocsp.example.org"
    config = read(f"our {{\n{place.replace('{base}', str(base))}\n{crl}\n{ocsp}\n}}", base)
    (authority,) = config.credentials.authorities
    assert (authority.name, authority.certificate) == ("our", pki.parsed("ca", "ca"))
    assert authority.crl_uris == ("http://crl.example.org/ca.crl", "https://[fd00::1]:8080/", "file:///etc/ca.crl")
    assert authority.ocsp_uris == ("http://ocsp.example.org",)
    assert config.warnings == ()


def test_elsewhere(base: Path) -> None:
    path = pki.write(base, "elsewhere.der", pki.der("root", "root"))
    found = read(f"other {{\nfile = {path}\n}}", base).credentials.authorities
    assert {authority.certificate for authority in found} == {pki.parsed("root", "root"), pki.parsed("ca", "ca")}


@pytest.mark.parametrize(
    ("lines", "key", "message"),
    [
        ("", "cacert", "an authority needs this key, or file"),
        ("cacert = ca.pem\nfile = /x", "file", "cacert is there too"),
        ("cacert = nowhere.pem", "cacert", "x509ca/nowhere.pem: No such file"),
        ("file = /nowhere.pem", "file", "/nowhere.pem: No such file"),
        ("handle = 12", "handle", "smart cards"),
        ("cacert = ca.pem\nslot = 1", "slot", "smart cards"),
        ("cacert = ca.pem\nmodule = x", "module", "smart cards"),
        ("cacert = ca.pem\ncert_uri_base = http://x/", "cert_uri_base", "hash and URL"),
        ("cacert = ca.pem\ncrl_uris = ldap://x/y", "crl_uris", "only http, https, file can be fetched"),
        ("cacert = ca.pem\ncrl_uris = file://host/x", "crl_uris", "is not a file URI"),
        ("cacert = ca.pem\ncrl_uris = http:///x", "crl_uris", "names no host"),
        ("cacert = ca.pem\ncrl_uris = /etc/x", "crl_uris", "is not a URI"),
        ("cacert = ca.pem\ncrl_uris = ,", "crl_uris", "the list is empty"),
        ("cacert = ca.pem\nocsp_uris = file:///x", "ocsp_uris", "only http, https can be fetched"),
        ("cacert = ca.pem\ncrl_uri = http://x/", "crl_uri", "unknown key, did you mean 'crl_uris'?"),
    ],
)
def test_misuse(base: Path, lines: str, key: str, message: str) -> None:
    error = refuse(f"our {{\n{lines}\n}}", base)
    assert error.key == f"authorities.our.{key}"
    assert message in error.message
    assert error.line == 2 + (len(lines.splitlines()))


def test_twice(base: Path) -> None:
    error = refuse("a {\ncacert = ca.pem\n}\nb {\ncacert = ca.pem\n}", base)
    assert str(error) == "f:6: authorities.b.cacert: authorities.a has this certificate already"


def test_broken_certificate(base: Path) -> None:
    path = pki.write(base, "x509ca/broken.pem", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    error = refuse("a {\ncacert = broken.pem\n}", base)
    assert (error.key, str(path) in error.message) == ("authorities.a.cacert", True)
