"""``connections { }``: defaults, every key, what is refused, what does not go together."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import fields, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipsec.config import Config, children, connections, load_text
from ipsec.crypto.auth import ANY_SCHEME, parse_constraints
from ipsec.crypto.identity import ANY_IDENTITY, parse_identity, parse_pattern
from ipsec.crypto.revocation import Revocation
from ipsec.crypto.x509 import load_certificates
from ipsec.errors import ConfigError
from ipsec.ike.config import (
    AuthClass,
    Childless,
    Connection,
    Fragmentation,
    LocalAuth,
    RemoteAuth,
    SendCert,
    Unique,
)
from ipsec.wire.iana import Encr, Protocol
from tests.config import pki
from tests.crypto.pki import Ca

#: from the reference of swanctl.conf
SWANCTL_KEYS = """
    version local_addrs remote_addrs local_port remote_port proposals vips aggressive pull dscp encap mobike dpd_delay
    dpd_timeout fragmentation childless send_certreq send_cert ocsp ppk_id ppk_required keyingtries unique reauth_time
    rekey_time over_time rand_time pools if_id_in if_id_out mediation mediated_by mediation_peer
"""
SWANCTL_LOCAL_KEYS = "round certs pubkeys auth id eap_id aaa_id xauth_id"
SWANCTL_REMOTE_KEYS = "round id eap_id groups cert_policy certs cacerts ca_id pubkeys revocation auth"

SECRET = "correct horse battery"
TAIL = f"""
pools {{
 pool4 {{
  addrs = 10.3.0.0/24
 }}
 pool6 {{
  addrs = fd00::/64
 }}
}}
secrets {{
 ike {{
  secret = {SECRET}
 }}
}}
"""
PSK = "local {\nauth = psk\n}\nremote {\nauth = psk\n}\n"
CHILD = "children {\nnet {\n}\n}\n"
LINE = 3
"where the keys of the tests stand"


def document(lines: str = "", rest: str = PSK + CHILD, top: str = "") -> str:
    return f"connections {{\n gw {{\n{lines}\n{rest} }}\n}}\n{TAIL}{top}"


def read(lines: str = "", rest: str = PSK + CHILD, top: str = "", base: Path | None = None) -> Connection:
    return config(lines, rest, top, base).connections[0]


def config(lines: str = "", rest: str = PSK + CHILD, top: str = "", base: Path | None = None) -> Config:
    return load_text(document(lines, rest, top), "f", str(base) if base else None)


def refuse(lines: str = "", rest: str = PSK + CHILD, top: str = "", base: Path | None = None) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_text(document(lines, rest, top), "f", str(base) if base else None)
    assert SECRET not in str(caught.value)
    return caught.value


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return pki.lay_out(tmp_path)


def test_every_key_of_swanctl_is_known() -> None:
    assert set(SWANCTL_KEYS.split()) == {*connections._KEYS, *connections._REFUSED}
    assert set(SWANCTL_LOCAL_KEYS.split()) == {*connections._LOCAL_KEYS, *connections._LOCAL_REFUSED}
    assert set(SWANCTL_REMOTE_KEYS.split()) == {*connections._REMOTE_KEYS, *connections._REMOTE_REFUSED}


def test_every_field_is_a_key() -> None:
    others = {"name", "local", "remote", "local_rounds", "remote_rounds", "children"}
    assert {f.name for f in fields(Connection)} == {*connections._KEYS, *others} - {"version", "dpd_timeout"}
    for value, keys in ((LocalAuth, connections._LOCAL_KEYS), (RemoteAuth, connections._REMOTE_KEYS)):
        of_auth = {"method", "constraints", "eap_type", "eap_radius"} & {f.name for f in fields(value)}
        assert {f.name for f in fields(value)} == {*keys, *of_auth} - {"round", "auth"}


def test_none() -> None:
    assert load_text("").connections == ()
    assert load_text("connections {\n}").connections == ()


def test_defaults() -> None:
    connection = read()
    assert {proposal.protocol for proposal in connection.proposals} == {Protocol.IKE}
    psk = LocalAuth(AuthClass.PSK), RemoteAuth(AuthClass.PSK)
    assert (connection.local, connection.remote) == psk
    assert [child.name for child in connection.children] == ["net"]
    bare = replace(connection, proposals=(), children=(), local=LocalAuth(), remote=RemoteAuth())
    assert bare == Connection("gw")
    assert isinstance(connection.rekey_time, float)


def test_equal_if_unchanged(base: Path) -> None:
    """What a reload compares."""
    local = "local {\ncerts = moon.pem\n}\n"
    assert read("", local + CHILD, base=base) == read("", local + CHILD, base=base)
    assert read("", local + CHILD, base=base) != read("mobike = no", local + CHILD, base=base)
    pki.write(base, "x509/moon.pem", pki.pem("other"))
    pki.write(base, "private/other.pem", pki.key_pem("other"))
    one = read("", local + CHILD, base=base)
    pki.write(base, "x509/moon.pem", pki.pem("moon"))
    assert read("", local + CHILD, base=base) != one


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("local_addrs = 192.0.2.1, 2001:db8::1", ("192.0.2.1", "2001:db8::1")),
        ("local_addrs = %ANY", ("%any",)),
        ("remote_addrs = moon.example.org, 10.0.0.0/8", ("moon.example.org", "10.0.0.0/8")),
        ("remote_addrs = 10.0.0.1-10.0.0.9, fd00::1-fd00::9", ("10.0.0.1-10.0.0.9", "fd00::1-fd00::9")),
        ("remote_addrs = my-host, _x.example, a1.", ("my-host", "_x.example", "a1.")),
        ("remote_addrs = 0.0.0.0/0, ::/0", ("0.0.0.0/0", "::/0")),
        ("remote_addrs = %any6", ("%any6",)),
        ("local_port = 4500", 4500),
        ("remote_port = 10500", 10500),
        ("vips = 0.0.0.0, ::", (ip_address("0.0.0.0"), ip_address("::"))),
        ("vips = 10.9.0.1", (ip_address("10.9.0.1"),)),
        ("vips = %any, %any6", (ip_address("0.0.0.0"), ip_address("::"))),
        ("dscp = 101110", 46),
        ("dscp = 000000", 0),
        ("dscp = 10", 2),
        ("encap = yes", True),
        ("mobike = no", False),
        ("dpd_delay = 2m", 120.0),
        ("fragmentation = accept", Fragmentation.ACCEPT),
        ("fragmentation = false", Fragmentation.NO),
        ("fragmentation = YES", Fragmentation.YES),
        ("childless = prefer", Childless.PREFER),
        ("childless = force", Childless.FORCE),
        ("childless = never", Childless.NEVER),
        ("send_certreq = no", False),
        ("send_cert = always", SendCert.ALWAYS),
        ("send_cert = never", SendCert.NEVER),
        ("keyingtries = 0", 0),
        ("unique = replace", Unique.REPLACE),
        ("unique = keep", Unique.KEEP),
        ("unique = never", Unique.NEVER),
        ("unique = no", Unique.NO),
        ("over_time = 5m", 300.0),
        ("rand_time = 0", 0.0),
        ("pools = pool6, pool4", ("pool6", "pool4")),
    ],
)
def test_keys(line: str, value: Any) -> None:
    name = line.split()[0]
    connection = read(line)
    assert getattr(connection, name) == value
    default = read()
    changed = {f.name for f in fields(Connection) if getattr(connection, f.name) != getattr(default, f.name)}
    # the random time follows what is left
    assert changed <= {name, "rand_time"} if name == "over_time" else changed <= {name}


@pytest.mark.parametrize(
    ("lines", "rekey", "reauth", "over", "rand"),
    [
        ("", 14400, 0, 1440, 1440),
        ("rekey_time = 1h", 3600, 0, 360, 360),
        ("reauth_time = 1d", 0, 86400, 8640, 8640),
        ("reauth_time = 0", 14400, 0, 1440, 1440),
        ("rekey_time = 0", 0, 0, 0, 0),
        ("rekey_time = 1h\nreauth_time = 1d", 3600, 86400, 8640, 1800),
        ("rekey_time = 1h\nover_time = 2h", 3600, 0, 7200, 1800),
        ("rekey_time = 1h\nover_time = 0", 3600, 0, 0, 0),
        ("rekey_time = 1h\nrand_time = 5m", 3600, 0, 360, 300),
    ],
)
def test_times(lines: str, rekey: int, reauth: int, over: int, rand: int) -> None:
    found = read(lines)
    assert (found.rekey_time, found.reauth_time, found.over_time, found.rand_time) == (rekey, reauth, over, rand)


def test_proposals() -> None:
    found = read("proposals = aes128gcm16-sha256-x25519, aes256-sha256-modp2048").proposals
    encryption = [proposal.transforms[0] for proposal in found]
    assert [(transform.id, transform.key_bits) for transform in encryption] == [
        (Encr.AES_GCM_16, 128),
        (Encr.AES_CBC, 256),
    ]
    assert read("proposals = default") == read()
    error = refuse("proposals = aes128-sha256-modp1024")
    assert (error.line, error.key) == (LINE, "connections.gw.proposals")
    assert "ipsecd.allow_weak = yes permits it" in error.message
    assert read("proposals = aes128-sha256-modp1024", top="ipsecd {\n allow_weak = yes\n}").proposals


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("version = 3", "'3' is not in 0..2"),
        ("version = 1", "IKEv1 is not supported"),
        ("local_addrs = 10.0.0.300", "'10.0.0.300' is not an IP address"),
        ("local_addrs = 10.0.0.0/33", "is not a network such as 192.0.2.0/24"),
        ("local_addrs = ,", "the list is empty"),
        ("remote_addrs = fe80::1%eth0", "zone"),
        ("remote_addrs = %config", "neither %any"),
        ("remote_addrs = 10.0.0.9-10.0.0.1", "is empty or mixes families"),
        ("remote_addrs = 10.0.0.9-fd00::1", "is empty or mixes families"),
        ("remote_addrs = a b", "is not an address, network, range or host name"),
        ("remote_addrs = a..b", "is not an address, network, range or host name"),
        ("remote_addrs = ::1::", "is not an IP address"),
        ("local_port = 0", "'0' is not in 1..65535"),
        ("remote_port = 65536", "is not in 1..65535"),
        ("proposals = aes128gcm17-x25519", "aes128gcm17"),
        ("proposals = ,", "the list is empty"),
        ("vips = here", "'here' is not an IP address"),
        ("vips = 10.9.0.1, 10.9.0.1", "10.9.0.1 is there twice"),
        ("dscp = 46", "six binary digits"),
        ("encap = x", "'x' is neither yes nor no"),
        ("mobike = x", "'x' is neither yes nor no"),
        ("dpd_delay = x", "'x' is not a time"),
        ("fragmentation = force", "IKEv1 is not supported"),
        ("fragmentation = x", "'x' is not one of yes, accept, no"),
        ("childless = x", "'x' is not one of allow, prefer, force, never"),
        ("send_certreq = x", "'x' is neither yes nor no"),
        ("send_cert = ifaskde", "did you mean 'ifasked'?"),
        ("keyingtries = -1", "'-1' is not a number"),
        ("unique = x", "'x' is not one of no, replace, keep, never"),
        ("reauth_time = x", "'x' is not a time"),
        ("rekey_time = x", "'x' is not a time"),
        ("over_time = 10%", "'10%' is not a time"),
        ("rand_time = x", "'x' is not a time"),
        ("rand_time = 4h", "14400 is not less than rekey_time, which is 14400"),
        ("pools = pool5", "there is no pool 'pool5', did you mean 'pool"),
        ("pools = pool4, pool4", "'pool4' is there twice"),
        ("pools = dhcp", "addresses from dhcp are not supported"),
        ("pools = radius", "radius is what RADIUS servers grant, and remote.auth is not eap-radius"),
        # refused, with the reason
        ("aggressive = yes", "IKEv1 is not supported"),
        ("pull = no", "IKEv1 is not supported"),
        ("dpd_timeout = soon", "'soon' is not a time"),
        ("local_addrs = %defaultroute", "neither %any nor an address without zone, and %defaultroute is %any here"),
        ("ocsp = request", "RFC 4806"),
        ("ocsp = both", "RFC 4806"),
        ("ocsp = x", "'x' is not one of reply, never, request, both"),
        ("if_id_in = 5", "this needs the kernel's XFRM"),
        ("if_id_out = %unique", "this needs the kernel's XFRM"),
        ("mediation = yes", "mediation"),
        ("mediated_by = x", "mediation"),
        ("mediation_peer = x", "mediation"),
        ("mobkie = no", "unknown key, did you mean 'mobike'?"),
        ("lokal { }", "unknown section, did you mean 'local'?"),
        ("child { }", "unknown section, did you mean 'children'?"),
    ],
)
def test_misuse(line: str, message: str) -> None:
    error = refuse(line)
    assert message in error.message
    assert error.file == "f"
    if not line.endswith("}"):
        assert (error.line, error.key) == (LINE, f"connections.gw.{line.split()[0]}")


@pytest.mark.parametrize(
    "line",
    [
        "version = 0",
        "version = 2",
        "aggressive = no",
        "pull = yes",
        "dpd_timeout = 0s",
        "ocsp = reply",
        "ocsp = never",
        "if_id_in = 0",
        "if_id_out = 0x0",
        "mediation = no",
    ],
)
def test_harmless(line: str) -> None:
    assert read(line) == read()


def test_misplaced() -> None:
    with pytest.raises(ConfigError, match=r"^f:2: connections.version: unknown key$"):
        load_text("connections {\n version = 2\n}", "f")


# local { } and remote { }


def test_a_method_that_is_none() -> None:
    with pytest.raises(ConfigError, match=r"'pks' is not a key type.*did you mean 'psk'"):
        read("", auth("auth = pks"))


def auth(local: str = "auth = psk", remote: str = "auth = psk", name: str = "") -> str:
    return f"local{name} {{\n{local}\n}}\nremote{name} {{\n{remote}\n}}\n{CHILD}"


LOCAL_LINE, REMOTE_LINE = 5, 8


def test_preshared_key() -> None:
    found = read("", auth("auth = psk\nid = moon.example.org", "auth = PSK\nid = %any", "-1"))
    assert found.local == LocalAuth(AuthClass.PSK, parse_identity("moon.example.org"))
    assert found.remote == RemoteAuth(AuthClass.PSK, ANY_IDENTITY)
    assert read("", auth("auth = psk\nround = 1\nid = %any")).local == LocalAuth(AuthClass.PSK)


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("id = *@example.org", "id", parse_pattern("*@example.org")),
        ('id = "C=CH, O=x, CN=*"', "id", parse_pattern("C=CH, O=x, CN=*")),
        ("id = 10.0.0.0/8", "id", parse_pattern("10.0.0.0/8")),
        ("id = 2001:db8::1-2001:db8::f", "id", parse_pattern("2001:db8::1-2001:db8::f")),
        ("revocation = strict", "revocation", Revocation.STRICT),
        ("revocation = ifuri", "revocation", Revocation.IFURI),
        ("cert_policy = 1.3.6.1.4.1, 2.5.29.32.0", "cert_policy", ("1.3.6.1.4.1", "2.5.29.32.0")),
        ("ca_id = ca.example.org", "ca_id", parse_pattern("ca.example.org")),
        ('ca_id = "C=CH, CN=*"', "ca_id", parse_pattern("C=CH, CN=*")),
        ("ca_id = %any", "ca_id", ANY_IDENTITY),
        ("auth = rsa-3072-sha256", "constraints", parse_constraints("rsa-3072-sha256")),
        ("auth = ike:ecdsa-sha384", "constraints", parse_constraints("ike:ecdsa-sha384")),
        ("certs = moon.pem", "certs", load_certificates(pki.pem("moon"))),
        ("cacerts = ca.pem", "cacerts", load_certificates(pki.pem("ca", "ca"))),
        ("pubkeys = sun.pem", "pubkeys", (pki.spki("sun"),)),
        pytest.param(f"pubkeys = 0x{pki.spki('sun').hex()}", "pubkeys", (pki.spki("sun"),), id="pubkeys-hex"),
    ],
)
def test_remote_keys(base: Path, line: str, name: str, value: Any) -> None:
    pki.write(base, "pubkey/sun.pem", pki.spki("sun"))
    found = read("", auth("certs = moon.pem", line), base=base).remote
    assert found.method is AuthClass.PUBKEY
    assert getattr(found, name) == value
    default = RemoteAuth(AuthClass.PUBKEY)
    changed = {f.name for f in fields(RemoteAuth) if getattr(found, f.name) != getattr(default, f.name)}
    assert changed <= {name, "constraints"}


def test_default_remote(base: Path) -> None:
    found = read("", CHILD, base=base)
    assert (found.remote.method, found.remote.id, found.remote.constraints) == (
        AuthClass.PUBKEY,
        ANY_IDENTITY,
        parse_constraints("pubkey"),
    )
    assert str(ANY_SCHEME) == "pubkey"


@pytest.mark.parametrize(
    "local",
    [
        "certs = moon.pem",
        "certs = {base}/x509/moon.pem",
        "cert {{\nfile = {base}/x509/moon.pem\n}}",
        "cert-a {{\nfile = moon.pem\n}}",
        pytest.param(f"certs = 0x{pki.der('moon').hex()}", id="certs-hex"),
        pytest.param(f"certs = 0s{base64.b64encode(pki.der('moon')).decode()}", id="certs-base64"),
        "id = moon.example.org\ncerts = moon.pem",
        "id = moon.example.org",
        'id = "CN=moon"',
    ],
)
def test_local_certificate(base: Path, local: str) -> None:
    pki.write(base, "x509/sun.pem", pki.pem("sun"))
    local = local.replace("{{", "{").replace("}}", "}").replace("{base}", str(base))
    found = read("", auth(local, "auth = pubkey"), base=base).local
    assert found.certs == load_certificates(pki.pem("moon"))
    assert found.id == (parse_identity("moon.example.org" if "moon.example.org" in local else "CN=moon"))


@pytest.mark.parametrize("local", ["auth = pubkey", "id = %any", "id = %any\ncerts = moon.pem"])
def test_who_we_are_may_be_left_open(base: Path, local: str) -> None:
    """Our address, or whom the peer asks for: that shows later, of the certificates that have a private key."""
    pki.write(base, "x509/sun.pem", pki.pem("sun"))
    found = read("", auth(local, "auth = pubkey"), base=base).local
    assert (found.certs, found.id) == (load_certificates(pki.pem("moon")), None)


@pytest.mark.parametrize("text", ["10.0.0.0/8", "10.0.0.1-10.0.0.9", "2001:db8::/32"])
def test_many_addresses_are_not_our_identity(text: str) -> None:
    error = refuse("", auth(f"auth = psk\nid = {text}"))
    assert "stands for many addresses" in error.message
    assert error.key == "connections.gw.local.id"


def test_local_public_key(base: Path) -> None:
    pki.write(base, "pubkey/moon.pem", pki.spki("moon"))
    found = read("", auth("pubkeys = moon.pem\nid = moon", "auth = pubkey"), base=base).local
    assert (found.pubkeys, found.certs, found.id) == ((pki.spki("moon"),), (), parse_identity("moon"))
    # charon's default: what 'pki --keyid --id spki' says of the key
    found = read("", auth("pubkeys = moon.pem", "auth = pubkey"), base=base).local
    assert found.id == parse_identity(f"@#{hashlib.sha1(pki.spki('moon')).hexdigest()}")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("auth = xauth-generic", "XAuth is of IKEv1, and IKEv1 is not supported: users authenticate with EAP"),
        ("auth = xauth", "XAuth is of IKEv1"),
        ("auth = pubkye", "pubkye"),
        ("auth = rsa-md5", "md5"),
        ('id = "{300}:x"', "there is no identity type 300"),
        ("id = 10.0.0.0/33", "neither a subnet such as"),
        ('eap_id = "{300}:x"', "there is no identity type 300"),
        ("round = first", "'first' is not a number"),
        ("certs = nowhere.pem", "x509/nowhere.pem: No such file"),
        ("certs = 0xabc", "not valid hexadecimal"),
        ("certs = 0s+", "not valid Base64"),
        ("pubkeys = nowhere.pem", "pubkey/nowhere.pem: No such file"),
        ("pubkeys = ../x509/moon.pem", "x509/moon.pem"),
        ("certs = ../private/moon.pem", "private/moon.pem"),
        ("cretz = x", "unknown key"),
    ],
)
@pytest.mark.parametrize("side", ["local", "remote"])
def test_misuse_in_both(base: Path, side: str, line: str, message: str) -> None:
    local, remote = (line, "auth = pubkey") if side == "local" else ("certs = moon.pem", line)
    error = refuse("", auth(local, remote), base=base)
    assert message in error.message
    place = LOCAL_LINE if side == "local" else REMOTE_LINE
    assert (error.file, error.line, error.key) == ("f", place, f"connections.gw.{side}.{line.split()[0]}")
    assert "PRIVATE KEY" not in error.message


@pytest.mark.parametrize(
    ("local", "key", "message"),
    [
        ('aaa_id = "{300}:x"', "aaa_id", "there is no identity type 300"),
        ("eap_id = 10.0.0.0/8", "eap_id", "stands for many addresses"),
        ("xauth_id = x", "xauth_id", "IKEv1"),
        ("certs = moon.pem\nid = sun.example.org", "id", "sun.example.org is not in the certificate CN=moon"),
        ("id = sun.example.org", "certs", "there is no certificate with a private key for sun.example.org"),
        ("certs = moon.pem\npubkeys = moon.pem", "pubkeys", "there are certs too"),
        ("pubkeys = sun.pem", "pubkeys", "the public key has no private key in private/, rsa/"),
        ("certs = sun.pem", "certs", "x509/sun.pem (CN=sun) has no private key in private/, rsa/"),
        ("auth = psk\ncerts = moon.pem", "certs", "this is for auth = pubkey, here it is psk"),
        ("auth = psk\npubkeys = moon.pem", "pubkeys", "this is for auth = pubkey, here it is psk"),
        ("auth = psk\ncert-1 {\nfile = moon.pem\n}", "cert-1", "this is for auth = pubkey, here it is psk"),
        ("cert {\nhandle = 0x12\n}", "cert.handle", "smart cards"),
        ("cert {\nslot = 1\nfile = moon.pem\n}", "cert.slot", "smart cards"),
        ("cert {\nmodule = x\n}", "cert.module", "smart cards"),
        ("cert {\n}", "cert.file", "a certificate needs this key"),
        ("cert {\nfile = nowhere.pem\n}", "cert.file", "No such file"),
        ("cacerts = ca.pem", "cacerts", "unknown key, did you mean 'certs'?"),
    ],
)
def test_misuse_of_local(base: Path, local: str, key: str, message: str) -> None:
    pki.write(base, "x509/sun.pem", pki.pem("sun"))
    pki.write(base, "pubkey/sun.pem", pki.spki("sun"))
    pki.write(base, "pubkey/moon.pem", pki.spki("moon"))
    error = refuse("", auth(local, "auth = pubkey"), base=base)
    assert message in error.message
    assert (error.file, error.key) == ("f", f"connections.gw.local.{key}")


@pytest.mark.parametrize(
    ("remote", "key", "message"),
    [
        ("groups = staff", "groups", "attribute certificates"),
        ("cert_policy = any", "cert_policy", "is not an object identifier"),
        ("cacerts = nowhere.pem", "cacerts", "x509ca/nowhere.pem: No such file"),
        ("cacert-1 {\nfile = nowhere.pem\n}", "cacert-1.file", "x509ca/nowhere.pem: No such file"),
        ("cacert-1 {\nhandle = 1\n}", "cacert-1.handle", "smart cards"),
        ("revocation = x", "revocation", "'x' is not one of strict, ifuri, relaxed"),
        ("auth = psk\ncerts = moon.pem", "certs", "this is for auth = pubkey, here it is psk"),
        ("auth = psk\ncacerts = ca.pem", "cacerts", "this is for auth = pubkey, here it is psk"),
        ("auth = psk\nrevocation = strict", "revocation", "this is for auth = pubkey, here it is psk"),
    ],
)
def test_misuse_of_remote(base: Path, remote: str, key: str, message: str) -> None:
    error = refuse("", auth("certs = moon.pem", remote), base=base)
    assert message in error.message
    assert (error.file, error.line, error.key) == (
        "f",
        REMOTE_LINE + (remote.count("\n") if "{" not in remote else 1),
        f"connections.gw.remote.{key}",
    )


# what does not go together


def test_childless_without_children() -> None:
    error = refuse("childless = never", PSK)
    assert str(error) == "f:3: connections.gw.childless: 'never' needs children, there are none"
    assert read("childless = force", PSK).children == ()
    assert config("childless = force", PSK).warnings == ()
    assert config("", PSK).warnings == (
        "f:2: connections.gw.children: there are none: nothing will pass, see childless",
    )


@pytest.mark.parametrize("action", ["start", "trap", "trap|start"])
@pytest.mark.parametrize("addrs", ["%any", "10.0.0.0/8", "10.0.0.1-10.0.0.9, 0.0.0.0/0", "::"])
def test_nobody_to_begin_with(action: str, addrs: str) -> None:
    rest = f"{PSK}children {{\nnet {{\nstart_action = {action}\n}}\n}}\n"
    error = refuse(f"remote_addrs = {addrs}", rest)
    assert error.key == "connections.gw.children.net.start_action"
    assert "nobody to begin with" in error.message
    assert read(f"remote_addrs = {addrs}, moon.example.org", rest).children
    assert read(f"remote_addrs = {addrs}, 10.0.0.5", rest).children
    shunt = f"{PSK}children {{\nnet {{\nstart_action = trap\nmode = pass\n}}\n}}\n"
    assert read(f"remote_addrs = {addrs}", shunt).children


def test_what_only_ikev1_heeds_is_a_warning() -> None:
    assert config("dpd_timeout = 0s").warnings == ()
    for line in ("dpd_timeout = 150s", "dpd_delay = 30s\ndpd_timeout = 1"):
        (warning,) = config(line).warnings
        assert ".dpd_timeout: not heeded, as by charon with IKEv2: ipsecd.retransmit_tries" in warning


def test_missing_secret_is_a_warning() -> None:
    text = f"connections {{\n gw {{\n{auth()}}}\n}}\n"
    assert load_text(text, "f").warnings == (
        "f:4: connections.gw.local.auth: the section secrets has no preshared key for our address and %any",
    )
    secret = "secrets {\n ike {\n  id = sun\n  secret = 0123456789\n }\n}\n"
    theirs = "auth = psk\nid = moon"
    text = f"connections {{\n gw {{\n{auth('auth = psk', theirs)}}}\n}}\n"
    (warning,) = load_text(text + secret, "f").warnings
    assert warning.endswith("no preshared key for our address and moon")


@pytest.mark.parametrize("mode", ["pass", "drop"])
@pytest.mark.parametrize("rest", ["", "local {\nauth = psk\n}\n", "local {\nid = moon.example.org\n}\nppk_id = pq\n"])
def test_what_passes_or_drops_needs_no_peer(mode: str, rest: str) -> None:
    """Neither a certificate nor a secret, which everything else does."""
    shunt = f"net {{\nmode = {mode}\nstart_action = trap\n}}\n"
    one = config("", f"{rest}children {{\n{shunt}}}\n")
    assert one.connections[0].children[0].shunt
    assert one.warnings == ()
    assert "certificate" in refuse("", f"children {{\n{shunt}other {{\n}}\n}}\n").message
    assert "certificate" in refuse("", "children {\n}\n").message


def test_a_peer_that_is_not_said_to_have_the_secret_is_a_warning(base: Path) -> None:
    """The default is pubkey, as swanctl.conf says; charon takes any."""
    ours = "local {\nauth = psk\n}\n"
    why = "is not set, and the default is pubkey: write auth = psk if the peer has the preshared key too"
    for rest, place in (
        (f"{ours}remote {{\nid = b\n}}\n", "f:7: connections.gw.remote.auth: "),
        (ours, "f:2: connections.gw.remote.auth: "),
    ):
        for directory in (None, base):
            (warning,) = config("", rest + CHILD, base=directory).warnings
            assert warning.startswith(place + why)
    assert config("", f"{ours}remote {{\nauth = psk\n}}\n{CHILD}").warnings == ()
    assert config("", f"{ours}remote {{\nauth = pubkey\n}}\n{CHILD}", base=base).warnings == ()


def test_missing_trust_anchor_is_a_warning(tmp_path: Path) -> None:
    pki.write(tmp_path, "x509/moon.pem", pki.pem("moon"))
    pki.write(tmp_path, "private/moon.pem", pki.key_pem("moon"))
    (warning,) = config("", CHILD, base=tmp_path).warnings
    assert warning.startswith("f:2: connections.gw.remote.auth: there is no trust anchor in x509ca/")
    assert config("", auth("certs = moon.pem", "certs = moon.pem"), base=tmp_path).warnings == ()
    # on the way to an anchor, and none itself
    pki.write(tmp_path, "x509/between.der", Ca("Between", Ca("Root")).certificate.der)
    assert len(config("", CHILD, base=tmp_path).warnings) == 1
    # trusted as it is, also if it says that it is an authority, as self-signed ones do
    for file, data in (("x509/sun.pem", pki.pem("sun")), ("x509/self.pem", pki.pem("self", "self"))):
        path = pki.write(tmp_path, file, data)
        assert config("", CHILD, base=tmp_path).warnings == ()
        path.unlink()


def test_a_container_brings_its_trust_anchor(tmp_path: Path) -> None:
    pki.write(tmp_path, "pkcs12/moon.p12", pki.container("moon", b"hush"))
    passphrase = "secrets {\n pkcs12 {\n file = moon.p12\n secret = hush\n }\n}\n"
    found = config("", CHILD, base=tmp_path, top=passphrase)
    assert found.warnings == ()
    assert found.credentials.anchors == (pki.parsed("ca", "ca"),)
    assert found.connections[0].local.certs == (pki.parsed("moon"),)


def several(*lines: str) -> ConfigError:
    """What is said of so many connections with a line each."""
    text = "".join(f"c{number} {{\n{line}\n{PSK + CHILD}}}\n" for number, line in enumerate(lines))
    with pytest.raises(ConfigError) as caught:
        load_text(f"connections {{\n{text}}}\n{TAIL}", "f")
    return caught.value


def test_all_connections_that_are_wrong_are_named_at_once() -> None:
    error = several("dpd_delay = 5x", "mobike = no", "vips = 10.300.0.1", "pools = none-such")
    (other,) = error.others
    assert (error.key, other.key) == ("connections.c0.dpd_delay", "connections.c2.vips")
    assert error.lines() == [str(error), str(other)]
    assert error.in_short() == f"{error} (and 1 more: ipsecd --check)"


def test_those_that_others_do_not_fit_as_well() -> None:
    """Known when each by itself is sound."""
    error = several("pools = one", "mobike = no", "pools = two")
    assert [line.rpartition(" ")[2] for line in error.lines()] == ["'one'", "'two'"]


def test_of_too_many_their_number() -> None:
    *lines, last = several(*["dpd_delay = 5x"] * 50).lines()
    assert len(lines) == ConfigError.LINES_MAX
    assert last == f"and {50 - ConfigError.LINES_MAX} more of the kind"


def test_one_error_is_one_line() -> None:
    error = refuse("dpd_delay = 5x")
    assert error.lines() == [error.in_short()] == [str(error)]


def test_expired_certificate_is_a_warning(base: Path) -> None:
    pki.write(base, "x509/old.pem", pki.pem("old"))
    pki.write(base, "private/old.pem", pki.key_pem("old"))
    (warning,) = config("", auth("certs = old.pem", "auth = pubkey"), base=base).warnings
    path = base / "x509/old.pem"
    assert warning == f"f:5: connections.gw.local.certs: {path} (CN=old) expired 2021-01-01 00:00:00 UTC"


def test_a_certificate_of_the_future_is_a_warning(base: Path) -> None:
    """As where a clock begins in 1970."""
    pki.write(base, "x509/early.pem", pki.pem("early"))
    pki.write(base, "private/early.pem", pki.key_pem("early"))
    (warning,) = config("", auth("certs = early.pem", "auth = pubkey"), base=base).warnings
    assert "early.pem (CN=early) is not valid before 2049-" in warning
    assert "clock" in warning


@pytest.mark.parametrize(
    ("method", "whose"),
    [
        ("rsa", "certs = moon.pem"),
        ("rsa/pss-sha256", "certs = moon.pem"),
        ("ecdsa-384", "certs = moon.pem"),
        ("pubkey-ike:rsa-sha256", "certs = moon.pem"),
        ("ed25519", ""),
        ("rsa-sha256", "pubkeys = moon.pub"),
        ("ecdsa", None),
        ("ike:ecdsa-256-sha256", None),
        ("rsa-sha256-ecdsa-sha256", None),
    ],
)
def test_a_key_that_auth_does_not_take(base: Path, method: str, whose: str | None) -> None:
    """Said before somebody tries to connect; charon says it then."""
    pki.write(base, "pubkey/moon.pub", pki.spki("moon"))
    found = config("", auth(f"auth = {method}\n{whose or ''}", "auth = pubkey"), base=base).warnings
    if whose is None:
        assert found == ()
        return
    (warning,) = found
    assert f"connections.gw.local.auth: '{method}' does not take our key, ECDSA 256: we cannot" in warning


def test_road_warriors_have_secrets(base: Path) -> None:
    """No warning where one of several peers will have a secret."""
    secret = "secrets {\n ike {\n  id = carol@example.org\n  secret = 0123456789\n }\n}\n"
    for theirs in ("%any", "*@example.org", "carol@example.org"):
        for ours in ("", "id = moon\n"):
            rest = auth(f"{ours}auth = psk", f"auth = psk\nid = {theirs}")
            assert load_text(f"connections {{\n gw {{\n{rest}}}\n}}\n{secret}").warnings == ()
    for theirs in ("*@example.com", "dave@example.org"):
        rest = auth("auth = psk", f"auth = psk\nid = {theirs}")
        assert len(load_text(f"connections {{\n gw {{\n{rest}}}\n}}\n{secret}").warnings) == 1


def test_no_secret_in_repr() -> None:
    assert SECRET not in repr(config())


def test_inherits_from_a_template() -> None:
    text = f"""
        common {{
            mobike = no
            {PSK}
        }}
        connections {{
            a : common {{
            }}
            b : common {{
                mobike = yes
            }}
        }}
        {TAIL}"""
    a, b = load_text(text).connections
    assert (a.name, a.mobike, a.local.method) == ("a", False, AuthClass.PSK)
    assert (b.name, b.mobike, b.local.method) == ("b", True, AuthClass.PSK)


WORDS = st.one_of(
    st.text(st.characters(exclude_characters="\0"), max_size=12),
    st.sampled_from(
        (
            "%any",
            "psk",
            "0",
            "1",
            "0x",
            "0s",
            "10.0.0.0/8",
            "a-b",
            "-",
            "::",
            "trap|start",
            "dynamic[tcp/1]",
            "a,b",
            "{1}:x",
        )
    ),
)


@given(st.data())
def test_only_config_errors(data: st.DataObject) -> None:
    """Whatever stands in a key, the error names the place."""
    section = data.draw(st.sampled_from(("gw", "local", "remote", "net", "pool4", "ike")))
    keys = {
        "gw": connections._KEYS,
        "local": connections._LOCAL_KEYS,
        "remote": connections._REMOTE_KEYS,
        "net": children._KEYS,
        "pool4": {"addrs": 0, "dns": 0, "subnet": 0, "7": 0},
        "ike": {"secret": 0, "id": 0},
    }[section]
    key = data.draw(st.sampled_from(sorted(keys)))
    word = data.draw(WORDS).replace("\\", "\\\\").replace('"', '\\"')
    text = document().replace(f"{section} {{", f'{section} {{\n{key} = "{word}"\n', 1)
    found = None
    try:
        load_text(text, "f")
    except ConfigError as error:
        found = error
    assert found is None or (found.file == "f" and found.line and found.key)


def test_children_of_one_name_in_two_connections() -> None:
    """Usual in swanctl.conf: commands name the connection too."""
    text = f"connections {{\n a {{\n{PSK}{CHILD}}}\n b {{\n{PSK}{CHILD}}}\n}}\n{TAIL}"
    assert [connection.children[0].name for connection in load_text(text).connections] == ["net", "net"]


@pytest.mark.parametrize(
    ("addresses", "ppk_id", "warned"),
    [
        ("%any", "", False),
        ("10.0.0.0/8", "", False),
        ("b.example", "", True),
        ("%any, b.example", "*.example", True),
    ],
)
def test_who_begins_has_to_name_its_ppk(addresses: str, ppk_id: str, warned: bool) -> None:
    text = f"remote_addrs = {addresses}\nppk_required = yes\n" + (f"ppk_id = {ppk_id}" if ppk_id else "")
    found = [one for one in config(text, PSK + CHILD).warnings if "this end cannot begin" in one]
    assert bool(found) is warned
