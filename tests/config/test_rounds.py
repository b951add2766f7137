"""Several rounds of authentication (RFC 4739) in ``connections { }``: their order, and what does not go with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipsec.config import Config, load_text
from ipsec.config.diff import Change, changes
from ipsec.config.rounds import ROUNDS_MAX
from ipsec.crypto.identity import ANY_IDENTITY, parse_identity, parse_pattern
from ipsec.errors import ConfigError
from ipsec.ike.config import AuthClass, Connection
from ipsec.wire.iana import EapType
from tests.config import pki

SECRETS = """
secrets {
 eap-carol {
  id = carol
  secret = correct horse battery
 }
 ike-moon {
  id-1 = moon
  id-2 = gw
  secret = correct horse battery
 }
}
"""
START = "children {\nnet {\nstart_action = start\n}\n}\n"
KEY, USER = "auth = psk\nid = moon", "auth = eap-mschapv2\neap_id = carol"
GATEWAY = "auth = pubkey\nid = CN=sun"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Certificates of moon, ours, and of the authority above it."""
    return pki.lay_out(tmp_path)


def config(*parts: tuple[str, str], lines: str = "", base: Path | None = None) -> Config:
    """``parts``: sections by name, as they stand in the file."""
    text = "".join(f"{name} {{\n{body}\n}}\n" for name, body in parts)
    children = "" if "children" in lines else "children {\nnet {\n}\n}\n"
    whole = f"connections {{\n gw {{\nremote_addrs = 192.0.2.2\n{lines}\n{text}{children} }}\n}}\n{SECRETS}"
    return load_text(whole, "f", str(base) if base else None)


def read(*parts: tuple[str, str], lines: str = "", base: Path | None = None) -> Connection:
    return config(*parts, lines=lines, base=base).connections[0]


def warnings(*parts: tuple[str, str], lines: str = "", base: Path | None = None) -> list[str]:
    """Without the place and the connection."""
    return [one.split("connections.gw.")[-1] for one in config(*parts, lines=lines, base=base).warnings]


def refuse(*parts: tuple[str, str], lines: str = "") -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        config(*parts, lines=lines)
    return caught.value


def named(*rounds: tuple[str, str]) -> list[tuple[str, str]]:
    """Sections of local with an id and what their ``round`` is, if anything."""
    lines = [(name, f"auth = psk\nid = {name}" + (f"\nround = {place}" if place else "")) for name, place in rounds]
    return [*lines, ("remote", "auth = psk")]


# -- order


@pytest.mark.parametrize(
    ("rounds", "order"),
    [
        # the file, not the name
        ((("local-b", ""), ("local-a", "")), "local-b local-a"),
        ((("local", ""), ("local-2", ""), ("localx", "")), "local local-2 localx"),
        # seen with charon 5.9.8 and swanctl --list-conns
        ((("local-1", "3"), ("local-2", "1"), ("local-3", ""), ("local", "2")), "local-3 local-2 local local-1"),
        ((("local-1", "1"), ("local-2", "1"), ("local-3", "0")), "local-3 local-1 local-2"),
        ((("local-1", "10"), ("local-2", "9")), "local-2 local-1"),
        ((("local-1", "0x10"), ("local-2", "15")), "local-2 local-1"),
    ],
)
def test_order(rounds: tuple[tuple[str, str], ...], order: str) -> None:
    connection = read(*named(*rounds))
    assert " ".join(str(one.id) for one in connection.all_local) == order
    assert connection.local.id == parse_identity(order.split()[0])
    assert len(connection.local_rounds) == len(rounds) - 1
    assert connection.remote_rounds == ()


def test_each_has_its_own(base: Path) -> None:
    """As a client, and as its gateway."""
    local = read(("local-1", "auth = pubkey\ncerts = moon.pem"), ("local-2", USER), ("remote", GATEWAY), base=base)
    first, second = local.all_local
    assert (first.method, first.certs[0].subject) == (AuthClass.PUBKEY, parse_identity("CN=moon"))
    assert (second.method, second.eap_type, second.certs) == (AuthClass.EAP, EapType.MSCHAPV2, ())
    assert second.eap_id == parse_identity("carol")
    there = "auth = eap-mschapv2\neap_id = %any\nround = 2"
    remote = read(("local", "certs = moon.pem"), ("remote-eap", there), ("remote-key", "id = CN=sun\ncacerts = ca.pem\n"
                  "revocation = strict"), base=base)  # fmt: skip
    key, user = remote.all_remote
    assert (key.id, key.cacerts) == (parse_pattern("CN=sun"), (pki.parsed("ca", "ca"),))
    assert (user.method, user.eap_id, user.id, user.cacerts) == (AuthClass.EAP, ANY_IDENTITY, ANY_IDENTITY, ())


def test_certificates_are_found_for_each(base: Path) -> None:
    (moon,) = read(("local", "id = CN=moon"), ("remote", GATEWAY), base=base).local.certs
    key, user = ("auth = psk\nid = moon", "auth = eap-tls\nid = CN=moon")
    connection = read(("local-1", key), ("local-2", "id = CN=moon"), ("local-3", user), ("remote", GATEWAY), base=base)
    assert [one.certs for one in connection.all_local] == [(), (moon,), (moon,)]


# -- errors, each with its place


@pytest.mark.parametrize("side", ["local", "remote"])
def test_place_of_an_error(side: str) -> None:
    other = "remote" if side == "local" else "local"
    for line, key in (("auth = pks", "auth"), ("round = first", "round"), ("mobkie = no", "mobkie")):
        error = refuse((other, "auth = psk"), (f"{side}-1", "auth = psk"), (f"{side}-2", f"auth = psk\n{line}"))
        assert (error.key, error.line) == (f"connections.gw.{side}-2.{key}", 13)
    error = refuse((other, "auth = psk"), (f"{side}-1", "auth = psk"), (f"{side}-2", "certs = /nobody.pem"))
    assert error.key == f"connections.gw.{side}-2.certs"


def test_a_certificate_that_a_later_round_lacks() -> None:
    error = refuse(("local-1", KEY), ("local-2", "id = CN=moon"), ("remote", "auth = psk"))
    assert error.key == "connections.gw.local-2.certs"
    assert "there is no certificate with a private key for CN=moon" in error.message


@pytest.mark.parametrize("side", ["local", "remote"])
def test_too_many(side: str) -> None:
    other = "remote" if side == "local" else "local"
    parts = [(f"{side}-{place}", "auth = psk") for place in range(ROUNDS_MAX + 1)]
    connection = read((other, "auth = psk"), *parts[:-1])
    assert len(connection.all_auth) == ROUNDS_MAX + 1
    error = refuse((other, "auth = psk"), *parts)
    assert error.key == f"connections.gw.{side}-{ROUNDS_MAX}"
    assert error.message == f"there are {ROUNDS_MAX + 1} rounds of {side}, {ROUNDS_MAX} are allowed"


@pytest.mark.parametrize(
    ("parts", "key", "why"),
    [
        (
            (("local-1", KEY), ("local-2", USER), ("remote-1", "auth = psk"), ("remote-2", "auth = psk")),
            "remote-2",
            "and local-2 makes that us",
        ),
        (
            (("local-1", KEY), ("local-2", KEY), ("remote", "auth = eap-mschapv2")),
            "local-2",
            "and remote.auth = eap makes that the peer",
        ),
        (
            (("local", USER), ("remote-1", "auth = psk"), ("remote-2", "auth = psk")),
            "remote-2",
            "and local.auth = eap makes that us",
        ),
    ],
)
def test_rounds_of_the_responder(parts: tuple[tuple[str, str], ...], key: str, why: str) -> None:
    error = refuse(*parts)
    assert error.key == f"connections.gw.{key}"
    assert error.message == f"only who begins proves more than once who it is (RFC 4739), {why}"


# -- warnings


def test_no_warning(base: Path) -> None:
    mine = "auth = pubkey\ncerts = moon.pem"
    assert warnings(("local-1", mine), ("local-2", USER), ("remote", GATEWAY), lines=START, base=base) == []
    assert warnings(("local-1", USER), ("local-2", mine), ("remote", GATEWAY), lines=START, base=base) == []
    there = "auth = eap-mschapv2\neap_id = %any"
    assert warnings(("local", mine), ("remote-1", GATEWAY), ("remote-2", there), base=base) == []
    # EAP shows who the responder is before it is shown a password
    by_tls = "auth = eap-tls\ncerts = moon.pem"
    assert warnings(("local-1", by_tls), ("local-2", USER), ("remote", "auth = eap-tls\nid = CN=sun"), base=base) == []
    asks = (("local", by_tls), ("remote-1", "auth = eap-tls\nid = CN=sun"), ("remote-2", there))
    assert warnings(*asks, base=base) == []


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (
            (("local-1", "certs = moon.pem"), ("local-2", "auth = eap-md5\neap_id = dave"), ("remote", GATEWAY)),
            "local-2.auth: the section secrets has no eap secret for dave",
        ),
        (
            (("local", "certs = moon.pem"), ("remote-1", GATEWAY), ("remote-2", "auth = eap-md5\neap_id = dave")),
            "remote-2.auth: the section secrets has no eap secret for dave",
        ),
        (
            (("local-1", "certs = moon.pem"), ("local-2", "auth = psk\nid = dave"), ("remote", GATEWAY)),
            "local-2.auth: the section secrets has no preshared key for dave and CN=sun",
        ),
        (
            (("local", "certs = moon.pem"), ("remote-1", GATEWAY), ("remote-2", "auth = psk\nid = dave")),
            "remote-2.auth: the section secrets has no preshared key for CN=moon and dave",
        ),
        (
            (("local-1", "certs = moon.pem"), ("local-2", f"{USER}\ncerts = moon.pem"), ("remote", GATEWAY)),
            "local-2.certs: not used, MSCHAPV2 is about passwords",
        ),
        (
            (("local-1", "certs = moon.pem\neap_id = x"), ("local-2", USER), ("remote", GATEWAY)),
            "local-1.eap_id: not used, auth is not eap",
        ),
        (
            (("local-1", USER), ("local-2", "auth = rsa-2048\ncerts = moon.pem"), ("remote", GATEWAY)),
            "local-2.auth: 'rsa-2048' does not take our key, ECDSA 256: we cannot authenticate ourselves",
        ),
        (
            (("local", "auth = psk\nid = gw"), ("remote-1", KEY), ("remote-2", "auth = eap-md5\neap_id = carol")),
            "local.auth: who has this preshared key, as each user does, can pose as the gateway: use auth = pubkey",
        ),
        (
            (("local-1", KEY), ("local-2", USER), ("remote", "auth = psk\nid = gw")),
            "remote.auth: who has this preshared key, as each user does, can pose as the gateway: use auth = pubkey",
        ),
        (
            (("local", "certs = moon.pem"), ("remote-1", GATEWAY), ("remote-2", "auth = eap-radius")),
            "remote-2.auth: ipsecd.radius.servers has no RADIUS server: nobody gets in",
        ),
    ],
)
def test_warnings(base: Path, parts: tuple[tuple[str, str], ...], expected: str) -> None:
    """One each."""
    assert warnings(*parts, base=base) == [expected]


def test_who_begins(base: Path) -> None:
    parts = (("local", "certs = moon.pem"), ("remote", GATEWAY), ("remote-2", "auth = pubkey"))
    why = "who begins proves more than once who it is, and remote-2 makes that the peer: this end cannot"
    assert warnings(*parts, lines=START, base=base) == [f"children.net.start_action: {why}"]


def test_nobody_to_trust(tmp_path: Path) -> None:
    found = warnings(("local", "auth = psk\nid = gw"), ("remote-1", KEY), ("remote-2", "auth = pubkey"), base=tmp_path)
    assert any(one.startswith("remote-2.auth: there is no trust anchor") for one in found)


# -- what changes


def test_changes() -> None:
    """Under the names that vici has for rounds."""
    one = config(("local", KEY), ("remote", "auth = psk"))
    two = config(("local", KEY), ("local-2", USER), ("remote", "auth = psk"))
    other = config(("local", KEY), ("local-2", USER.replace("carol", "dave")), ("remote", "auth = psk"))

    def shown(found: list[Change]) -> list[tuple[str, str, str, str, str]]:
        return [(str(one.kind), one.key, one.before, one.after, str(one.effect)) for one in found]

    assert shown(changes(one, two)) == [("added", "connections.gw.local-2", "", "", "reconnected")]
    assert shown(changes(two, one)) == [("removed", "connections.gw.local-2", "", "", "reconnected")]
    assert shown(changes(two, other)) == [("changed", "connections.gw.local-2.eap_id", "carol", "dave", "reconnected")]
    assert changes(two, two) == []
    remotes = ("remote", "auth = psk"), ("remote-2", "auth = psk")
    gateway = [config(("local", KEY), *remotes[:many]) for many in (1, 2)]
    assert [change.key for change in changes(*gateway)] == ["connections.gw.remote-2"]
