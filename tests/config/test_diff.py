"""What differs between two configurations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ipsec.config import Config, load_text
from ipsec.config.diff import SECRET, Change, Effect, Kind, changes
from tests.crypto.pki import Ca

TEXT = """
ipsecd {
  backend = memory
}
connections {
  gw {
    remote_addrs = 192.0.2.2
    local {
      auth = psk
      id = a
    }
    remote {
      auth = psk
      id = b
    }
    children {
      net {
        remote_ts = 10.2.0.0/16
        esp_proposals = aes128gcm16
      }
    }
  }
}
pools {
  p {
    addrs = 10.3.0.0/24
  }
}
secrets {
  ike-gw {
    secret = s3cr3t-one
  }
}
"""


def read(text: str) -> Config:
    return load_text(text)


def diff(*replacements: tuple[str, str], text: str = TEXT) -> list[Change]:
    """Between the text and the same with replacements."""
    new = text
    for old, other in replacements:
        assert old in new
        new = new.replace(old, other)
    return changes(read(text), read(new))


def test_nothing() -> None:
    assert diff() == []


@pytest.mark.parametrize(
    ("old", "new", "change"),
    [
        ("192.0.2.2", "192.0.2.3", "connections.gw.remote_addrs changed 192.0.2.2 > 192.0.2.3: reconnected"),
        ("id = b", "id = c", "connections.gw.remote.id changed b > c: reconnected"),
        ("10.2.", "10.9.", "connections.gw.children.net.remote_ts changed 10.2.0.0/16 > 10.9.0.0/16: reconnected"),
        ("      net {", "      lan {", "connections.gw.children.lan added  > : reconnected"),
        ("  gw {", "  other {", "connections.other added  > : new"),
        ("  gw {", "  other {", "connections.gw removed  > : closed"),
        ("10.3.0.0/24", "10.4.0.0/24", "pools.p.first changed 10.3.0.1 > 10.4.0.1: used"),
        ("= memory", "= memory\n  mtu = 1300", "ipsecd.mtu changed 0 > 1300: restart"),
        ("    local {", "    unique = keep\n    local {", "connections.gw.unique changed no > keep: reconnected"),
        ("    local {", "    mobike = no\n    local {", "connections.gw.mobike changed yes > no: reconnected"),
        (
            "        remote_ts",
            "        start_action = trap\n        remote_ts",
            "connections.gw.children.net.start_action changed none > trap: reconnected",
        ),
    ],
)
def test_one_key(old: str, new: str, change: str) -> None:
    assert change in [f"{one.key} {one.kind} {one.before} > {one.after}: {one.effect}" for one in diff((old, new))]


def test_secrets_are_not_shown() -> None:
    found = diff(("s3cr3t-one", "s3cr3t-two"))
    assert found == [Change("secrets.ike-gw.secret", Kind.CHANGED, SECRET, SECRET, Effect.USED)]
    assert "s3cr3t" not in repr(found)


def test_manual_keys_are_not_shown() -> None:
    sas = """
sas {
  one {
    remote = 192.0.2.9
    spi_in = 0x1000
    spi_out = 0x1001
    local = 192.0.2.1
    esp_proposals = aes128gcm16
    key_in = 0x0000000000000000000000000000000000000001
    key_out = 0x0000000000000000000000000000000000000002
  }
}
"""
    found = diff(("0000001\n", "0000003\n"), text=TEXT + sas)
    assert found == [Change("sas.one.key_in", Kind.CHANGED, SECRET, SECRET, Effect.RESTART)]


def test_certificates_by_what_they_are(tmp_path: Path) -> None:
    first, second = Ca("First"), Ca("Second")
    (tmp_path / "x509ca").mkdir()
    (tmp_path / "x509ca" / "ca.der").write_bytes(first.certificate.der)
    old = load_text(TEXT, directory=str(tmp_path))
    (tmp_path / "x509ca" / "ca.der").write_bytes(second.certificate.der)
    new = load_text(TEXT, directory=str(tmp_path))
    added, removed = changes(old, new)
    assert (added.key, added.kind, removed.kind) == ("authority", Kind.ADDED, Kind.REMOVED)
    assert "CN=Second" in added.after
    assert "valid from" in added.after
    assert "CN=First" in removed.before


def test_another_certificate_of_ours_closes_nothing() -> None:
    """As the daemon's reload has it."""
    old = read(TEXT)
    (gw,) = old.connections

    def new(side: str, **more: Any) -> Config:
        ours = replace(getattr(gw, side), certs=(Ca("Ours").certificate,))
        return replace(old, connections=(replace(gw, **{side: ours}, **more),))

    (change,) = changes(old, new("local"))
    assert (change.key, change.effect) == ("connections.gw.local.certs", Effect.USED)
    (change,) = changes(old, new("remote"))
    assert change.effect is Effect.RECONNECTED
    assert {one.effect for one in changes(old, new("local", mobike=False))} == {Effect.RECONNECTED}


def test_long_values_are_cut() -> None:
    many = ", ".join(f"10.{n}.0.0/16" for n in range(100))
    (change,) = diff(("10.2.0.0/16", many))
    assert len(change.after) < 310
