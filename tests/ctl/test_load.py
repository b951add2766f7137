"""load and reload, into a whole daemon."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_der_private_key,
)

from ipsec.ctl.errors import ExitCode
from ipsec.ctl.swanctl import read
from ipsec.daemon.run import Daemon
from ipsec.errors import ConfigError
from tests.ctl.daemon import Run, with_ipsecd
from tests.ctl.fake import Ctl
from tests.ctl.test_lists import certificate

FILE = """
connections {
  new {
    remote_addrs = 192.0.2.3, 192.0.2.4
    proposals = aes128gcm16-sha256-x25519
    local {
      auth = psk
      id = a
    }
    remote {
      auth = pubkey
      id = c
      cacerts = root.der
    }
    children {
      net {
        remote_ts = 10.3.0.0/16, 10.4.0.0/16
        local_ts =
      }
    }
  }
}
secrets {
  ike-new {
    id-1 = a
    id-2 = c
    secret = 0x0102030405060708
  }
  private-new {
    file = key.pem
    secret = very secret
  }
}
pools {
  road {
    addrs = 10.9.0.0/24
    dns = 10.9.0.1, 10.9.0.2
  }
}
authorities {
  root {
    cacert = root.der
    crl_uris = http://127.0.0.1:1/a
  }
}
"""
KEY = ec.generate_private_key(ec.SECP256R1())


def write(folder: Path, text: str = FILE) -> Path:
    """A configuration with all its files."""
    for name in ("x509ca", "private"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "x509ca" / "root.der").write_bytes(certificate(100, ca=True))
    key = KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"very secret"))
    (folder / "private" / "key.pem").write_bytes(key)
    file = folder / "swanctl.conf"
    file.write_text(text)
    return file


def nobody(path: str) -> str:
    """Asked for a passphrase."""
    raise AssertionError(path)


def test_what_is_sent(tmp_path: Path) -> None:
    items = read(str(write(tmp_path)), nobody)
    assert [(item.command, Path(item.name).name) for item in items] == [
        ("load-cert", "root.der"),
        ("load-key", "key.pem"),
        ("load-shared", "ike-new"),
        ("load-authority", "root"),
        ("load-pool", "road"),
        ("load-conn", "new"),
    ]
    by_command: dict[str, dict[str, Any]] = {item.command: item.message for item in items}
    assert load_der_private_key(by_command["load-key"]["data"], None).private_numbers() == KEY.private_numbers()
    shared = {"id": "ike-new", "type": "IKE", "data": bytes(range(1, 9)), "owners": ["a", "c"]}
    assert by_command["load-shared"] == shared
    assert by_command["load-pool"] == {"road": {"addrs": "10.9.0.0/24", "dns": ["10.9.0.1", "10.9.0.2"]}}
    conn = by_command["load-conn"]["new"]
    assert conn["remote_addrs"] == ["192.0.2.3", "192.0.2.4"]
    assert conn["remote"]["cacerts"] == [by_command["load-cert"]["data"]]
    assert conn["children"]["net"] == {"remote_ts": ["10.3.0.0/16", "10.4.0.0/16"]}
    assert not any(secret in repr(items) for secret in ("very", "0x01", "\\x01\\x02"))


def test_what_swanctl_sends_of_it(tmp_path: Path) -> None:
    """Commas within quotes; what is in pubkey/."""
    file = write(tmp_path, FILE.replace("http://127.0.0.1:1/a", "'http://127.0.0.1:1/a,b', http://127.0.0.1:1/c"))
    (tmp_path / "pubkey").mkdir()
    (tmp_path / "pubkey" / "c.pub").write_bytes(b"key")
    items = {(item.kind, item.command): item.message for item in read(str(file), nobody)}
    assert items["authority", "load-authority"]["root"]["crl_uris"] == ["http://127.0.0.1:1/a,b", "http://127.0.0.1:1/c"]
    assert items["public key", "load-cert"] == {"type": "PUBKEY", "flag": "NONE", "data": b"key"}


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("cacerts = root.der", "cacerts = none.der", ("swanctl.conf:13", "none.der", "No such file")),
        ("secret = very secret", "secret = wrong", ("key.pem", "passphrase is wrong")),
        ("secret = 0x0102030405060708", "secret = 0xyz", ("swanctl.conf:27", "not valid hexadecimal")),
        ("secret = 0x0102030405060708", "", ("secrets.ike-new", "needs this key")),
        ("pools {", "pools", ("swanctl.conf:3",)),
    ],
)
def test_what_cannot_be_read(tmp_path: Path, ctl: Ctl, old: str, new: str, words: tuple[str, ...]) -> None:
    """Nothing is sent, not even a daemon is looked for."""
    done = ctl("load", str(write(tmp_path, FILE.replace(old, new))))
    assert done.status == ExitCode.CONFIG
    assert all(word in done.err for word in words), done.err


def test_passphrases_are_asked_for(tmp_path: Path) -> None:
    file = write(tmp_path, FILE.replace("secret = very secret", "").replace("file = key.pem", ""))
    asked: list[str] = []

    def ask(path: str) -> str:
        asked.append(path)
        return "very secret"

    assert any(item.command == "load-key" for item in read(str(file), ask))
    assert asked == [str(tmp_path / "private" / "key.pem")]
    with pytest.raises(ConfigError, match=r"key\.pem: the passphrase is wrong"):
        read(str(file), lambda path: "wrong")


def test_load(tmp_path: Path, ctl: Ctl) -> None:
    file = write(tmp_path / "other")

    async def test(one: Daemon, run: Run) -> None:
        done = await run("load", str(file))
        assert done.status == 0, done.err
        assert "loaded 1 connection: new" in done.out
        assert "loaded 1 authority: root" in done.out
        assert "unloaded 1 connection: old" in done.out
        assert "unloaded 1 secret: ike-old" in done.out
        names = (await run("list", "conns", "--json")).document["conns"]
        assert [conn["name"] for conn in names] == ["new"]
        assert (await run("list", "authorities", "--json")).document["authorities"][0]["crl_uris"] == [
            "http://127.0.0.1:1/a"
        ]
        # the same again changes nothing, and forgets nothing
        document = (await run("load", str(file), "--json")).document
        assert (document["unloaded"], document["refused"]) == ([], [])
        # the daemon's own file comes back with a reload
        assert (await run("reload")).out == "ipsecd has read its configuration again\n"
        document = (await run("load", str(file), "--keep", "--json")).document
        assert document["unloaded"] == []
        names = (await run("list", "conns", "--json")).document["conns"]
        assert sorted(conn["name"] for conn in names) == ["new", "old"]

    with_ipsecd(tmp_path, ctl, test)


def test_a_file_with_nothing_in_it_unloads_nothing_by_itself(tmp_path: Path, ctl: Ctl) -> None:
    (tmp_path / "other").mkdir()
    file = tmp_path / "other" / "swanctl.conf"
    file.write_text("include conf.d/*.conf\n")

    async def test(one: Daemon, run: Run) -> None:
        done = await run("load", str(file))
        assert done.status == ExitCode.CONFIG
        assert "there is nothing to load, and all that the daemon has would be unloaded" in done.err
        assert [conn["name"] for conn in (await run("list", "conns", "--json")).document["conns"]] == ["old"]
        assert (await run("load", str(file), "--keep")).out == "there is nothing to load\n"
        done = await run("load", str(file), "--clear")
        assert (done.status, done.out) == (0, "unloaded 1 connection: old\n")

    with_ipsecd(tmp_path, ctl, test)


def test_what_is_refused(tmp_path: Path, ctl: Ctl) -> None:
    """The rest is loaded, and what is refused stays as it was."""
    file = write(tmp_path / "other")

    async def test(one: Daemon, run: Run) -> None:
        assert (await run("load", str(file))).status == 0
        file.write_text(FILE.replace("auth = psk", "auth = xauth").replace("10.9.0.1,", ""))
        done = await run("load", str(file), "--quiet")
        assert done.status == ExitCode.FAILED
        assert "connection new refused: connections.new.local" in done.err
        document = (await run("load", str(file), "--json")).document
        assert [one["name"] for one in document["refused"]] == ["new"]
        assert (await run("list", "conns", "--json")).document["conns"][0]["name"] == "new"

    with_ipsecd(tmp_path, ctl, test)


def test_reload_of_a_wrong_file(tmp_path: Path, ctl: Ctl) -> None:
    async def test(one: Daemon, run: Run) -> None:
        (tmp_path / "swanctl.conf").write_text("connections {\n}\nnonsense = 1\n")
        done = await run("reload")
        assert done.status == ExitCode.CONFIG
        assert "a reload changes nothing, for the file is wrong: " in done.err
        assert "swanctl.conf:3: nonsense" in done.err
        assert (await run("list", "conns", "--json")).document["conns"][0]["name"] == "old"

    with_ipsecd(tmp_path, ctl, test)
