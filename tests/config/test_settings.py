"""``ipsecd { }``: defaults, every key, misuse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipsec.config import Config, load, load_text, settings
from ipsec.config.diff import changes
from ipsec.config.settings import (
    BackendKind,
    DaemonSettings,
    EventLoopKind,
    HttpSettings,
    Listen,
    LogLevel,
    OffloadSettings,
    ProviderKind,
    Readiness,
)
from ipsec.config.values import Switch, join_list, parse_number, parse_size, parse_time, split_list
from ipsec.errors import ConfigError
from ipsec.ike.eap.names import TlsVersion
from ipsec.ike.radius.server import RadiusServer


def read(line: str) -> DaemonSettings:
    return load_text(f"ipsecd {{\n{line}\n}}\n", "f").settings


def test_defaults() -> None:
    config = load_text("")
    assert config.settings == DaemonSettings()
    assert (config.sas, config.warnings, config.policies()) == ((), (), ())
    assert not config.needs_raw_esp()


def test_every_field_is_a_key() -> None:
    assert {f.name for f in fields(DaemonSettings)} == {*settings._KEYS, "offload", "http", "radius"}
    assert {f.name for f in fields(OffloadSettings)} == set(settings._OFFLOAD_KEYS)
    assert {f.name for f in fields(HttpSettings)} == set(settings._HTTP_KEYS)
    assert {f.name for f in fields(RadiusServer)} == {*settings._RADIUS_SERVER_KEYS, "name"}
    assert {f.name for f in fields(settings.RadiusSettings)} == {*settings._RADIUS_KEYS, "servers"}


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("backend = memory", BackendKind.MEMORY),
        ("backend = Userspace", BackendKind.USERSPACE),
        ("device = tun-a.1", "tun-a.1"),
        ("mtu = 1400", 1400),
        ("mtu = 0", 0),
        ("path_mtu = 9000", 9000),
        ("addresses = 10.1.0.1/24, fd00::1/64", (ip_interface("10.1.0.1/24"), ip_interface("fd00::1/64"))),
        ("workers = auto", None),
        ("workers = 4", 4),
        ("event_loop = uvloop", EventLoopKind.UVLOOP),
        ("port_nat_t = 14500", 14500),
        ("listen = %any", (ip_address("0.0.0.0"), ip_address("::"))),
        ("listen = 192.0.2.1, ::", (ip_address("192.0.2.1"), ip_address("::"))),
        ("vici_tcp = [::1]:4502", Listen(ip_address("::1"), 4502)),
        ("vici_tcp = 4502", Listen(ip_address("127.0.0.1"), 4502)),
        ("vici_tcp = none", None),
        ("tls_version_max = 1.2", TlsVersion.TLS_1_2),
        ("raw_esp = yes", Switch.YES),
        ("install_routes = no", False),
        ("routing_table = 254", 254),
        ("routing_priority = 100", 100),
        ("fwmark = 0x10", 16),
        ("tun_queue_length = 500", 500),
        ("crypto_provider = ipsec-mb", ProviderKind.IPSEC_MB),
        ("busy_poll_us = 50", 50),
        ("mss_clamp = disabled", False),
        ("allow_weak = TRUE", True),
        ("fail_closed = 0", False),
        ("state_dir = /run/x", "/run/x"),
        ("log_level = debug", LogLevel.DEBUG),
        ("offload {\n udp_gso = no\n tun_tso = 1\n coalesce_udp = auto\n }", None),
    ],
)
def test_keys(line: str, value: Any) -> None:
    name = line.split()[0]
    got = read(line)
    if name == "offload":
        assert got.offload == OffloadSettings(udp_gso=Switch.NO, tun_tso=Switch.YES)
    else:
        assert getattr(got, name) == value
    # nothing else moved
    changed = [f.name for f in fields(DaemonSettings) if getattr(got, f.name) != getattr(DaemonSettings(), f.name)]
    assert set(changed) <= {name}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("backend = kernle", "'kernle' is not one of userspace, memory"),
        ("crypto_provider = cpy", "'cpy' is not one of auto, ipsec-mb, libcrypto, avx512, vaes"),
        ("event_loop = uvlop", "'uvlop' is not one of auto, uvloop, asyncio, did you mean 'uvloop'?"),
        (
            "device = averyverylongname",
            "'averyverylongname' is not a device name of 1..15 letters, digits, '_', '-', '.'",
        ),
        ("device = a/b", "'a/b' is not a device name of 1..15 letters, digits, '_', '-', '.'"),
        ('device = ""', "'' is not a device name of 1..15 letters, digits, '_', '-', '.'"),
        ("mtu = 500", "'500' is not 0 or in 576..65535"),
        ("path_mtu = 1500k", "'1500k' is not a number"),
        ("retransmit_base = abc", "'abc' is not a number in 1..10 such as 1.8"),
        ("retransmit_base = 30s", "'30s' is not a number in 1..10 such as 1.8"),
        ("retransmit_base = 0.9", "'0.9' is not a number in 1..10 such as 1.8"),
        ("path_mtu = -1", "'-1' is not a number"),
        ("addresses = ,", "the list is empty"),
        ("addresses = 10.0.0.300", "'10.0.0.300' is not an address such as 10.1.0.1/24"),
        ("workers = many", "'many' is not a number"),
        ("port_nat_t = 0", "'0' is not in 1..65535"),
        ("listen = 192.0.2.1, 192.0.2.1", "192.0.2.1 is there twice"),
        ("listen = 0.0.0.0, 192.0.2.1", "0.0.0.0 includes 192.0.2.1, remove one of them"),
        ("listen = gateway", "'gateway' is not an IP address"),
        ("vici_tcp = 0.0.0.0:4502", "0.0.0.0 is not an address of this host alone, as 127.0.0.1 and ::1 are"),
        ("vici_tcp = localhost:4502", "'localhost:4502' is not address:port, [address]:port or a port"),
        ("tls_version_max = 1.1", "'1.1' is not one of 1.2, 1.3, did you mean '1.3'?"),
        ("raw_esp = maybe", "'maybe' is not one of auto, yes, no"),
        ("mss_clamp = maybe", "'maybe' is neither yes nor no"),
        ("state_dir = relative", "'relative' is not an absolute path"),
        ("devise = x", "unknown key, did you mean 'device'?"),
        ("zzz = x", "unknown key"),
        ("offload = yes", "'offload' is a section, write offload { ... }"),
        ("device { }", "'device' is a key, write device = ..."),
    ],
)
def test_misuse(line: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(line)
    error = caught.value
    assert (error.message, error.file, error.line, error.key) == (message, "f", 2, f"ipsecd.{line.split()[0]}")


@pytest.mark.parametrize(("key", "needed"), [("coalesce_tcp", "tun_tso"), ("coalesce_udp", "tun_uso")])
def test_an_offload_that_lacks_its_ground(key: str, needed: str) -> None:
    read(f"offload {{\n {needed} = no\n {key} = auto\n}}")
    with pytest.raises(ConfigError, match=rf"f:3: ipsecd\.offload\.{key}: this needs {needed}, which is off"):
        read(f"offload {{\n {key} = yes\n {needed} = no\n}}")


def test_misuse_in_offload() -> None:
    with pytest.raises(ConfigError) as caught:
        read("offload {\n\n udp_gros = no\n}")
    assert str(caught.value) == "f:4: ipsecd.offload.udp_gros: unknown key, did you mean 'udp_gro'?"


@pytest.mark.parametrize("name", ["connections", "secrets", "pools", "authorities"])
def test_empty_ike_sections(name: str) -> None:
    config = load_text(f"{name} {{\n}}")
    assert (config.connections, config.pools, config.credentials.secrets) == ((), (), ())


def test_unknown_at_the_top() -> None:
    with pytest.raises(ConfigError, match=r"^f:1: ipsec: unknown section, did you mean 'ipsecd'\?$"):
        load_text("ipsec {\n}", "f")
    with pytest.raises(ConfigError, match=r"^f:2: device: unknown key$"):
        load_text("\ndevice = x", "f")


def test_templates_are_for_inheriting() -> None:
    config = load_text("common {\n device = tun7\n}\nipsecd : common {\n mtu = 1400\n}")
    assert (config.settings.device, config.settings.mtu) == ("tun7", 1400)
    # an error in a template is told where it is written, by the key that has it
    with pytest.raises(ConfigError, match=r"^f:2: ipsecd\.devise: unknown key"):
        load_text("common {\n devise = tun7\n}\nipsecd : common {\n}", "f")


def test_unset_key_has_its_default() -> None:
    assert read("device = x\ndevice =").device == "ipsec0"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("30s", 30), ("15m", 900), ("4h", 14400), ("1d", 86400), ("1D", 86400), ("4 h", 14400), ("1\t s", 1)],
)
def test_time(text: str, seconds: int) -> None:
    assert parse_time(text) == seconds


@pytest.mark.parametrize(("text", "size"), [("9", 9), ("64k", 65536), ("500 m", 500 << 20), ("4g", 4 << 30)])
def test_size(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    ["", "s", "1w", "1 s s", "1 0s", " 1s", "1\ns", "-1s", "1.5h", "0x10s", "\u0661", "9" * 18 + "d", "9" * 30],
)
def test_time_and_size_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_time(text)
    with pytest.raises(ConfigError):
        parse_size(text)


@pytest.mark.parametrize("parse", [parse_number, parse_time, parse_size])
def test_octal(parse: Callable[[str], int]) -> None:
    """charon reads 010 as 8, and nobody who writes it means that."""
    for text in ("010", "08", "0000000000000000010"[1:]):
        with pytest.raises(ConfigError, match="begins with 0, which makes it octal for strongSwan"):
            parse(text)
    assert (parse("0"), parse("000"), parse("07")) == (0, 0, 7)


@pytest.mark.parametrize(
    ("text", "items"),
    [
        # what swanctl 5.9.8 makes of the same
        ("a, b,c", ["a", "b", "c"]),
        ("'a,b',c", ["a,b", "c"]),
        ('"a,b" ,c', ["a,b", "c"]),
        ("a'b,c'd", ["a'b", "c'd"]),
        ("'a' b,c", ["a", "b", "c"]),
        ("'a,b", ["'a", "b"]),
        ("x 'a,b'", ["x 'a", "b'"]),
        ("'', ,a, ", ["a"]),
        (" ' a,b ' ,c", [" a,b ", "c"]),
        ("\"'a,b'\",c", ["'a,b'", "c"]),
    ],
)
def test_list(text: str, items: list[str]) -> None:
    assert split_list(text) == items


@given(st.lists(st.text("a,'b /"), max_size=5))
def test_list_and_back(items: list[str]) -> None:
    items = [item for item in items if item == item.strip() and item]
    assert split_list(join_list(items)) == items


def test_list_that_no_text_stands_for() -> None:
    assert split_list(join_list(["a'b\"c"])) == ["a'b\"c"]
    for item in ("a,'b\"", "'\""):
        with pytest.raises(ConfigError, match="quotes of both kinds"):
            join_list(["x", item])


def test_number() -> None:
    assert (parse_number("0x1F"), parse_number("007")) == (31, 7)
    for text in ("", "0x", "1_000", "+1", "\u0661", "0x" + "f" * 40):
        with pytest.raises(ConfigError, match="is not a number"):
            parse_number(text)


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("listen = 9903", HttpSettings(listen=(Listen(ip_address("127.0.0.1"), 9903),))),
        ("listen = 0.0.0.0:80", HttpSettings(listen=(Listen(ip_address("0.0.0.0"), 80),))),
        ("listen = [::1]:1, 2", HttpSettings((Listen(ip_address("::1"), 1), Listen(ip_address("127.0.0.1"), 2)))),
        ("listen = none", HttpSettings()),
        ("listen =", HttpSettings()),
        ("ready = once", HttpSettings(ready=Readiness.ONCE)),
        ("torilabs_names = yes", HttpSettings(torilabs_names=True)),
    ],
)  # fmt: skip
def test_http(line: str, value: HttpSettings) -> None:
    assert read(f"http {{ {line} \n }}").http == value


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("listen = localhost:9903", "'localhost:9903' is not address:port, [address]:port or a port"),
        ("listen = ::1:9903", "is not address:port"),
        ("listen = 1.2.3:9903", "'1.2.3' is not an IP address"),
        ("listen = 70000", "not in 1..65535"),
        ("listen = 0", "not in 1..65535"),
        ("listen = 9903, 127.0.0.1:9903", "127.0.0.1:9903 is there twice"),
        ("ready = maybe", "not one of up, once"),
        ("port = 9903", "unknown key"),
    ],
)
def test_http_that_is_wrong(line: str, why: str) -> None:
    with pytest.raises(ConfigError) as error:
        read(f"http {{ {line} \n }}")
    assert why in str(error.value)
    assert "ipsecd.http" in str(error.value)


SECRET = "0xthis-is-the-secret-of-radius"
SERVER = f"address = 192.0.2.9\n secret = {SECRET}\n"


def radius(*servers: str) -> str:
    return "radius {\n servers {\n" + "".join(f"s{n} {{\n {one} }}\n" for n, one in enumerate(servers)) + "}\n}"


def test_radius() -> None:
    more = """auth_port = 11812
        preference = 9
        sockets = 4
        retransmit_tries = 2
        retransmit_timeout = 0.5
        retransmit_base = 2
        nas_identifier = gw
    """
    more += "acct_port = 11813\n"
    second = f"address = 2001:db8::9\n secret = {SECRET}\n {more}"
    assert read(radius(SERVER, second)).radius.servers == (
        RadiusServer("s0", "192.0.2.9", SECRET.encode()),
        RadiusServer("s1", "2001:db8::9", SECRET.encode(), 11812, 9, 4, 2, 0.5, 2.0, "gw", 11813),
    )
    told = read("radius {\n accounting = yes\n accounting_interval = 10m\n }").radius
    assert (told.accounting, told.accounting_interval, told.servers) == (True, 600.0, ())
    assert read("radius { }").radius == read("radius {\n servers { } \n}").radius == DaemonSettings().radius


@pytest.mark.parametrize(
    ("server", "why"),
    [
        (f"secret = {SECRET}\n", "address: a RADIUS server needs this key"),
        ("address = 192.0.2.9\n", "secret: a RADIUS server needs this key"),
        ('address = 192.0.2.9\n secret = ""\n', "secret: the secret is empty"),
        (f"address = a/24\n secret = {SECRET}\n", "address: 'a/24' is not an address or the name of a host"),
        (SERVER + "sockets = 0\n", "sockets: '0' is not in 1..64"),
        (SERVER + "retransmit_timeout = 0\n", "retransmit_timeout: '0' is not in 0.1..60"),
        (SERVER + f"nas_identifier = {'x' * 254}\n", "nas_identifier: 254 octets, a NAS-Identifier has 1 to 253"),
        (SERVER + "port = 1\n", "port: unknown key"),
    ],
)
def test_radius_that_is_wrong(server: str, why: str) -> None:
    with pytest.raises(ConfigError) as error:
        read(radius(server))
    assert f"ipsecd.radius.servers.s0.{why}" in str(error.value)
    assert SECRET not in str(error.value)


def test_two_radius_servers_are_two() -> None:
    with pytest.raises(ConfigError, match=r"servers\.s1\.address: RADIUS server s0 \(192.0.2.9:1812\) is there alre"):
        read(radius(SERVER, SERVER))


def test_the_secret_of_radius_is_shown_nowhere(tmp_path: Path) -> None:
    def load_from(text: str) -> Config:
        file = tmp_path / "swanctl.conf"
        file.write_text(f"ipsecd {{\n{text}\n}}\n")
        file.chmod(0o644)
        return load(str(file))

    old, new = (load_from(radius(SERVER.replace(SECRET, secret))) for secret in (SECRET, "short"))
    told = changes(old, new)
    assert [(one.key, one.before, one.after) for one in told] == [
        ("ipsecd.radius.servers.s0.secret", "(secret)", "(secret)")
    ]
    assert SECRET not in repr(old) + str(old.settings.radius.servers[0])
    readable, short = "others can read the keys", "shorter than 16 octets: who hears a packet"
    assert [readable in old.warnings[0], len(old.warnings)] == [True, 1]
    assert [short in new.warnings[0], readable in new.warnings[1]] == [True, True]
