"""The directories of certificates and keys: what is read, what is a warning, what is an error."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ipsec.config import Config, load, load_text
from ipsec.config.directories import CredentialFiles, base_directory
from ipsec.errors import ConfigError
from tests.config import pki
from tests.config.owner import owned_by

CONF = b"ipsecd {\n}\n"


def read(base: Path, text: str = "") -> Config:
    return load_text(text, "f", str(base))


def refuse(base: Path) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        read(base)
    return caught.value


def test_nothing_there(tmp_path: Path) -> None:
    config = read(tmp_path)
    assert (tuple(config.credentials.certificates), tuple(config.credentials.private_keys)) == ((), ())
    assert config.warnings == ()


def test_next_to_the_file(tmp_path: Path) -> None:
    pki.lay_out(tmp_path)
    file = pki.write(tmp_path, "swanctl.conf", CONF)
    credentials = load(str(file)).credentials
    assert credentials.private_key_for(pki.parsed("moon")) is not None
    assert {authority.certificate for authority in credentials.authorities} == {pki.parsed("ca", "ca")}
    assert set(credentials.certificates) == {pki.parsed("moon")}


def test_relative_file_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pki.lay_out(tmp_path)
    pki.write(tmp_path, "swanctl.conf", CONF)
    monkeypatch.chdir(tmp_path)
    assert load("swanctl.conf").credentials.private_key_for(pki.parsed("moon")) is not None


def test_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pki.lay_out(tmp_path / "there")
    file = pki.write(tmp_path, "here/swanctl.conf", CONF)
    assert not load(str(file)).credentials.private_keys
    monkeypatch.setenv("SWANCTL_DIR", str(tmp_path / "there"))
    assert len(load(str(file)).credentials.private_keys) == 1
    assert base_directory("/a/b.conf", {}) == "/a"
    assert base_directory("/a/b.conf", {"SWANCTL_DIR": "/c"}) == "/c"
    assert base_directory("b.conf", {"SWANCTL_DIR": ""}) == "."


def test_text_has_no_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pki.lay_out(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert not load_text("").credentials.private_keys
    with pytest.raises(ConfigError, match="there is no directory x509/, write an absolute path"):
        load_text("connections {\n a {\n local {\n certs = moon.pem\n}\n}\n}")


def test_all_forms(tmp_path: Path) -> None:
    pki.write(tmp_path, "x509/chain.pem", b"text\n" + pki.pem("moon") + pki.pem("sun"))
    pki.write(tmp_path, "x509/venus.der", pki.der("venus"))
    pki.write(tmp_path, "x509ca/ca.der", pki.der("ca", "ca"))
    pki.write(tmp_path, "x509crl/ca.pem", pki.crl())
    for kind in ("private", "rsa", "ecdsa", "pkcs8"):
        pki.write(tmp_path, f"{kind}/{kind}", pki.key_pem(kind))
    config = read(tmp_path)
    credentials = config.credentials
    assert config.warnings == ()
    assert set(credentials.certificates) == set(map(pki.parsed, ("moon", "sun", "venus")))
    assert credentials.anchors == (pki.parsed("ca", "ca"),)
    assert len(credentials.private_keys) == 4
    assert len(credentials.crls) == 1


def test_hidden_files_and_folders_are_not_read(tmp_path: Path) -> None:
    pki.write(tmp_path, "private/.moon.pem.swp", b"no key")
    pki.write(tmp_path, "private/old/moon.pem", b"no key")
    pki.write(tmp_path, "x509/.hidden", b"no certificate")
    assert read(tmp_path).warnings == ()


@pytest.mark.parametrize("directory", ["x509", "x509ca", "x509crl"])
@pytest.mark.parametrize("data", [b"", b"broken", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_broken_certificate_is_a_warning(tmp_path: Path, directory: str, data: bytes) -> None:
    pki.lay_out(tmp_path)
    path = pki.write(tmp_path, f"{directory}/broken", data)
    config = read(tmp_path)
    (warning,) = config.warnings
    assert warning.startswith(f"{path}: ")
    assert warning.endswith("; this file is left out")
    assert config.credentials.private_key_for(pki.parsed("moon")) is not None


def test_broken_certificate_that_is_needed(tmp_path: Path) -> None:
    path = pki.write(tmp_path, "x509/broken.pem", b"broken")
    text = "connections {\n gw {\n local {\n certs = broken.pem\n}\n}\n}"
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    assert (caught.value.line, caught.value.key) == (4, "connections.gw.local.certs")
    assert str(path) in caught.value.message


@pytest.mark.parametrize("directory", ["private", "rsa", "ecdsa", "pkcs8", "pkcs12"])
@pytest.mark.parametrize("data", [b"", b"broken", pki.pem("moon")], ids=["empty", "broken", "certificate"])
def test_broken_key_is_an_error(tmp_path: Path, directory: str, data: bytes) -> None:
    path = pki.write(tmp_path, f"{directory}/moon", data)
    error = refuse(tmp_path)
    assert error.file == str(path)
    assert error.message


def test_unreadable_key(tmp_path: Path) -> None:
    pki.write(tmp_path, "private/moon", b"")
    os.unlink(tmp_path / "private/moon")
    os.symlink("nowhere", tmp_path / "private/moon")
    error = refuse(tmp_path)
    assert "private/moon: No such file" in str(error)


def test_fifo_does_not_hang(tmp_path: Path) -> None:
    (tmp_path / "x509").mkdir()
    os.mkfifo(tmp_path / "x509/fifo")
    (warning,) = read(tmp_path).warnings
    assert "not a regular file" in warning


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
@pytest.mark.parametrize("owner", [0, 1000])
def test_open_key_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, owner: int) -> None:
    path = pki.write(tmp_path, "private/moon.pem", pki.key_pem("moon"), mode)
    owned_by(monkeypatch, owner)
    config = read(tmp_path)
    if owner:
        assert config.warnings == (f"{path} is open to group or others, run: chmod 600 {path}",)
    else:
        # what the group of root's files is for
        assert config.warnings == (() if mode == 0o640 else (f"{path} is open to others, run: chmod o= {path}",))
    assert len(config.credentials.private_keys) == 1


@pytest.mark.parametrize("directory", ["x509ac", "x509aa", "bliss"])
def test_unused_directories(tmp_path: Path, directory: str) -> None:
    pki.write(tmp_path, f"{directory}/x", b"x")
    (warning,) = read(tmp_path).warnings
    assert warning.startswith(f"the files in {tmp_path}/{directory}/ are not read: ")


def test_what_is_no_authority_is_no_trust_anchor(tmp_path: Path) -> None:
    """As charon: neither alone in x509ca/ nor behind an authority."""
    pki.write(tmp_path, "x509ca/bundle.pem", pki.pem("ca", "ca") + pki.pem("moon"))
    path = pki.write(tmp_path, "x509ca/peer.pem", pki.pem("peer") + pki.pem("root", "root"))
    config = read(tmp_path)
    assert config.credentials.anchors == (pki.parsed("ca", "ca"),)
    assert config.warnings == (f"{path}: CN=peer is not the certificate of an authority; this file is left out",)


def test_ocsp_signers(tmp_path: Path) -> None:
    """They are trusted for OCSP alone."""
    pki.lay_out(tmp_path)
    pki.write(tmp_path, "x509ocsp/signer.pem", pki.pem("signer"))
    credentials = read(tmp_path).credentials
    assert credentials.ocsp_signers == (pki.parsed("signer"),)
    assert pki.parsed("signer") not in (*credentials.certificates, *credentials.anchors)


def test_peers_are_trusted_where_they_are_named(tmp_path: Path) -> None:
    """A certificate outside x509/ is no credential for other connections."""
    pki.lay_out(tmp_path)
    peer = pki.write(tmp_path, "elsewhere/peer.pem", pki.pem("peer"))
    root = pki.write(tmp_path, "elsewhere/root.pem", pki.pem("root", "root"))
    ours = pki.write(tmp_path, "elsewhere/ours.pem", pki.pem("ours") + pki.pem("above"))
    pki.write(tmp_path, "private/ours.pem", pki.key_pem("ours"))
    remote = f"remote {{\ncerts = {peer}\ncacerts = {root}\n}}"
    config = read(tmp_path, f"connections {{\ngw {{\nlocal {{\ncerts = {ours}\n}}\n{remote}\n}}\n}}")
    assert set(config.credentials.certificates) == set(map(pki.parsed, ("moon", "ours", "above")))
    assert config.credentials.anchors == (pki.parsed("ca", "ca"),)
    (connection,) = config.connections
    assert connection.local.certs == (pki.parsed("ours"),)
    assert connection.remote.certs == (pki.parsed("peer"),)
    assert connection.remote.cacerts == (pki.parsed("root", "root"),)


def test_certificates_are_read_once(tmp_path: Path) -> None:
    pki.lay_out(tmp_path)
    files = CredentialFiles(str(tmp_path))
    (first,) = files.named_certificates("x509", "moon.pem")
    os.unlink(tmp_path / "x509/moon.pem")
    assert files.named_certificates("x509", "moon.pem")[0] is first
    assert files.describe(first) == f"{tmp_path}/x509/moon.pem (CN=moon)"


def test_large_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ipsec.config.directories.FILE_SIZE_MAX", 10)
    pki.write(tmp_path, "private/moon.pem", pki.key_pem("moon"))
    assert "larger than" in str(refuse(tmp_path))


def test_secrets_of_files_are_in_no_repr(tmp_path: Path) -> None:
    pki.lay_out(tmp_path)
    number = pki.key("moon").private_numbers().private_value
    text = repr(read(tmp_path))
    assert str(number) not in text
    assert f"{number:x}" not in text
