"""``connections.<conn>.children { }``: defaults, every key, what is refused."""

from __future__ import annotations

from dataclasses import fields, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from ipsec.config import children, load_text
from ipsec.errors import ConfigError
from ipsec.ike.config import DYNAMIC, Action, ChildConfig, ChildMode, CopyDscp, SelectorTemplate
from ipsec.wire.iana import Encr, Protocol

#: keys of swanctl.conf's children, from its reference
SWANCTL_KEYS = """
    ah_proposals esp_proposals sha256_96 local_ts remote_ts rekey_time life_time rand_time rekey_bytes life_bytes
    rand_bytes rekey_packets life_packets rand_packets updown hostaccess mode policies policies_fwd_out dpd_action
    ipcomp inactivity reqid priority interface mark_in mark_in_sa mark_out set_mark_in set_mark_out if_id_in if_id_out
    label label_mode tfc_padding replay_window per_cpu_sas hw_offload copy_df copy_ecn copy_dscp icmp start_action
    close_action
"""

HEAD = """connections {
 gw {
  remote_addrs = 192.0.2.2
  local {
   auth = psk
  }
  remote {
   auth = psk
  }
  children {
   net {
"""


def document(text: str, top: str = "") -> str:
    return f"{HEAD}{text}\n   }}\n  }}\n }}\n}}\nsecrets {{\n ike {{\n  secret = 0123456789\n }}\n}}\n{top}"


def read(text: str, top: str = "") -> ChildConfig:
    return load_text(document(text, top), "f").connections[0].children[0]


def refuse(text: str, top: str = "") -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_text(document(text, top), "f")
    return caught.value


def test_every_key_of_swanctl_is_known() -> None:
    assert set(SWANCTL_KEYS.split()) == {*children._KEYS, *children._REFUSED}


def test_every_field_is_a_key() -> None:
    assert {f.name for f in fields(ChildConfig)} == {"name", *children._KEYS}


def test_defaults() -> None:
    child = read("")
    assert child.esp_proposals
    assert {proposal.protocol for proposal in child.esp_proposals} == {Protocol.ESP}
    assert replace(child, esp_proposals=()) == ChildConfig("net")
    assert (child.rekey_time, child.life_time, child.rand_time) == (3600, 3960, 360)
    assert child.replay_window == 1024
    assert isinstance(child.rekey_time, float)


def network(low: str, high: str, protocol: int = 0, ports: tuple[int, int] = (0, 65535)) -> SelectorTemplate:
    return SelectorTemplate((ip_address(low), ip_address(high)), protocol, ports)


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("mode = tunnel", ChildMode.TUNNEL),
        ("mode = Transport", ChildMode.TRANSPORT),
        ("mode = pass", ChildMode.PASS),
        ("mode = drop", ChildMode.DROP),
        ("policies = no", False),
        ("reqid = 77", 77),
        ("priority = 1000", 1000),
        ("tfc_padding = 1000", 1000),
        ("tfc_padding = mtu", -1),
        ("replay_window = 0", 0),
        ("replay_window = 32", 64),
        ("replay_window = 65536", 65536),
        ("copy_df = no", False),
        ("copy_ecn = no", False),
        ("sha256_96 = yes", True),
        ("copy_dscp = in", CopyDscp.IN),
        ("copy_dscp = true", CopyDscp.YES),
        ("copy_dscp = no", CopyDscp.NO),
        ("icmp = yes", True),
        ("icmp = no", False),
        ("inactivity = 5m", 300.0),
        ("start_action = none", Action.NONE),
        ("start_action = trap", Action.TRAP),
        ("start_action = route", Action.TRAP),
        ("start_action = start", Action.START),
        ("start_action = trap|start", Action.TRAP | Action.START),
        ("start_action = start | trap", Action.TRAP | Action.START),
        ("close_action = start", Action.START),
        ("close_action = trap", Action.TRAP),
        ("dpd_action = clear", Action.NONE),
        ("dpd_action = restart", Action.START),
        ("dpd_action = trap", Action.TRAP),
        ("local_ts = 10.1.0.0/16", (network("10.1.0.0", "10.1.255.255"),)),
        ("local_ts = dynamic[tcp/80], dynamic", (SelectorTemplate(None, 6, (80, 80)), DYNAMIC)),
        ("remote_ts = 10.0.0.1-10.0.0.9[udp]", (network("10.0.0.1", "10.0.0.9", 17),)),
        ("remote_ts = ::/0, 0.0.0.0/0", (network("::", "ff" * 2 + ":ffff" * 7), network("0.0.0.0", "255.255.255.255"))),
        ("remote_ts = 10.0.0.0/8[icmp/8]", (network("10.0.0.0", "10.255.255.255", 1, (0x800, 0x800)),)),
    ],
)
def test_keys(line: str, value: Any) -> None:
    name = line.split()[0]
    child = read(line)
    assert getattr(child, name) == value
    # nothing else moved
    default = read("")
    changed = [f.name for f in fields(ChildConfig) if getattr(child, f.name) != getattr(default, f.name)]
    assert set(changed) <= {name}


@pytest.mark.parametrize("mode", ["pass", "drop"])
def test_icmp_of_shunts(mode: str) -> None:
    """No peer is told: all codes of a type, as in the policies that charon gives to the kernel."""
    child = read(f"mode = {mode}\nlocal_ts = 10.0.0.0/8[icmp/3]\nremote_ts = dynamic[icmp/3]")
    assert child.local_ts == (network("10.0.0.0", "10.255.255.255", 1, (0x300, 0x3FF)),)
    assert child.remote_ts == (SelectorTemplate(None, 1, (0x300, 0x3FF)),)


@pytest.mark.parametrize(
    ("lines", "unit", "limits"),
    [
        ("", "time", (3600, 3960, 360)),
        ("rekey_time = 1000", "time", (1000, 1100, 100)),
        ("rekey_time = 30m", "time", (1800, 1980, 180)),
        ("life_time = 1000", "time", (900, 1000, 100)),
        ("rekey_time = 1000\nlife_time = 2000", "time", (1000, 2000, 500)),
        ("rekey_time = 1000\nlife_time = 1500\nrand_time = 7", "time", (1000, 1500, 7)),
        ("rekey_time = 1h\nlife_time = 1d", "time", (3600, 86400, 1800)),
        ("rekey_time = 0", "time", (0, 0, 0)),
        ("rekey_time = 5\nrand_time = 0", "time", (5, 15, 0)),
        ("rekey_time = 50", "time", (50, 60, 5)),
        ("life_time = 8", "time", (4, 8, 2)),
        ("life_time = 1h", "time", (3240, 3600, 360)),
        ("life_time = 3609", "time", (3249, 3609, 360)),
        ("life_time = 3610", "time", (3600, 3610, 10)),
        ("life_time = 4h", "time", (3600, 14400, 1800)),
        ("life_time = 0", "time", (3600, 0, 0)),
        ("life_bytes = 0", "bytes", (0, 0, 0)),
        ("life_time = 50", "time", (40, 50, 10)),
        ("rekey_time = 0\nlife_time = 1h", "time", (0, 3600, 0)),
        ("rekey_time = 1h\nlife_time = 0", "time", (3600, 0, 0)),
        ("", "bytes", (0, 0, 0)),
        ("rekey_bytes = 1000", "bytes", (1000, 1100, 100)),
        ("rekey_bytes = 10m", "bytes", (10 << 20, 11 << 20, 1 << 20)),
        ("life_bytes = 1k", "bytes", (922, 1024, 102)),
        ("rekey_packets = 100\nrand_packets = 0", "packets", (100, 110, 0)),
        ("life_packets = 1000", "packets", (900, 1000, 100)),
    ],
)
def test_lifetimes(lines: str, unit: str, limits: tuple[int, int, int]) -> None:
    child = read(lines)
    assert tuple(getattr(child, f"{what}_{unit}") for what in ("rekey", "life", "rand")) == limits


def test_proposals() -> None:
    child = read("esp_proposals = aes128gcm16, aes256-sha256-x25519")
    first = [proposal.transforms[0] for proposal in child.esp_proposals]
    assert [(transform.id, transform.key_bits) for transform in first] == [(Encr.AES_GCM_16, 128), (Encr.AES_CBC, 256)]
    assert read("esp_proposals = default") == read("")


def test_weak_proposals() -> None:
    error = refuse("esp_proposals = 3des-sha256")
    assert (error.line, error.key) == (12, "connections.gw.children.net.esp_proposals")
    assert "ipsecd.allow_weak = yes" in error.message
    assert read("esp_proposals = 3des-sha256", "ipsecd {\n allow_weak = yes\n}").esp_proposals


KERNEL = "this needs the kernel's XFRM"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("esp_proposals = aes128gcm17", "aes128gcm17"),
        ("esp_proposals = ,", "the list is empty"),
        ("local_ts = 10.0.0.0/40", "'10.0.0.0/40' is not an address, prefix or range"),
        ("local_ts = dynamic[tcp/nothing-here]", "is not a port"),
        ("local_ts = dynamic/8", "'dynamic/8' is not an address"),
        ("remote_ts = 10.0.0.0/8[gre/1]", "has no ports"),
        ("rekey_time = 1w", "'1w' is not a time"),
        ("life_time = never", "'never' is not a time"),
        ("rand_time = -1", "'-1' is not a time"),
        ("rand_time = 1h", "3600 is not less than rekey_time, which is 3600"),
        ("rekey_bytes = 1t", "'1t' is not a size"),
        ("life_bytes = x", "'x' is not a size"),
        ("rand_bytes = x", "'x' is not a size"),
        ("rekey_bytes = 8589934591g", "the limit is too large"),
        ("rekey_packets = 1k", "'1k' is not a number"),
        ("life_packets = x", "'x' is not a number"),
        ("rand_packets = x", "'x' is not a number"),
        ("mode = tunel", "did you mean 'tunnel'?"),
        ("mode = beet", "the mode beet is not supported"),
        ("mode = transport_proxy", "the mode transport_proxy is not supported"),
        ("mode = iptfs", "the mode iptfs is not supported"),
        ("policies = maybe", "'maybe' is neither yes nor no"),
        ("inactivity = x", "'x' is not a time"),
        ("reqid = -1", "'-1' is not a number"),
        ("priority = 0x80000000", "is not in 0..2147483647"),
        ("tfc_padding = 65536", "is not in 0..65535"),
        ("replay_window = 65537", "is not in 0..65536"),
        ("copy_df = x", "'x' is neither yes nor no"),
        ("copy_ecn = x", "'x' is neither yes nor no"),
        ("icmp = 3", "'3' is neither yes nor no"),
        ("copy_dscp = x", "'x' is not one of no, out, in, yes"),
        ("start_action = strat", "did you mean 'start'?"),
        ("start_action = trap|", "is not one of none, trap, start, trap|start"),
        ("close_action = x", "is not one of none, trap, start, trap|start"),
        ("dpd_action = hold", "is not one of none, trap, start, trap|start"),
        # refused, with the reason
        ("ah_proposals = sha256", "AH is not supported"),
        ("ipcomp = yes", "IPComp is not supported"),
        ("ipcomp = x", "'x' is neither yes nor no"),
        ("sha256_96 = x", "'x' is neither yes nor no"),
        ("updown = true", "'true' is no absolute path of a script"),
        ("updown = /bin/logger up >> /tmp/x", "no shell runs this, '>' does nothing here: write a script"),
        ("updown = /bin/logger $PLUTO_VERB", "no shell runs this, '$' does nothing here"),
        ('updown = "/bin/logger \'up"', "is no command: No closing quotation"),
        ("hostaccess = x", "'x' is neither yes nor no"),
        ("policies_fwd_out = yes", KERNEL),
        ("interface = eth0", KERNEL),
        ("mark_in = 42", KERNEL),
        ("mark_in = %unique", KERNEL),
        ("mark_in_sa = yes", KERNEL),
        ("mark_out = 0x1/0xff", KERNEL),
        ("set_mark_in = %same", KERNEL),
        ("set_mark_out = 7", KERNEL),
        ("if_id_in = 5", KERNEL),
        ("if_id_out = %unique", KERNEL),
        ("label = system_u:object_r:x", KERNEL),
        ("label_mode = selinux", KERNEL),
        ("label_mode = x", "'x' is not one of system, simple, selinux"),
        ("hw_offload = yes", KERNEL),
        ("hw_offload = crypto", KERNEL),
        ("hw_offload = packet", KERNEL),
        ("hw_offload = x", "'x' is not one of auto, yes, no"),
        ("per_cpu_sas = yes", "RFC 9611"),
        ("per_cpu_sas = encap", "RFC 9611"),
        ("repaly_window = 64", "unknown key, did you mean 'replay_window'?"),
    ],
)
def test_misuse(line: str, message: str) -> None:
    error = refuse(line)
    assert message in error.message
    assert (error.file, error.line) == ("f", 12)
    assert error.key == f"connections.gw.children.net.{line.split()[0]}"


@pytest.mark.parametrize(
    "line",
    [
        "ipcomp = no",
        "sha256_96 = no",
        "hostaccess = no",
        "policies_fwd_out = no",
        "mark_in = 0",
        "mark_in = 0/0x00000000",
        "mark_in_sa = no",
        "mark_out = 0x0/0xffffffff",
        "set_mark_in = 0/0x00000000",
        "set_mark_out = 0",
        "if_id_in = 0",
        "if_id_out = 0",
        "label_mode = system",
        "hw_offload = no",
        "hw_offload = auto",
        "per_cpu_sas = no",
        "updown =",
        "label =",
    ],
)
def test_harmless(line: str) -> None:
    assert read(line) == read("")


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("updown = /bin/true", ("/bin/true",)),
        ("updown = /bin/true iptables", ("/bin/true", "iptables")),
        ("""updown = "/bin/true a 'b c' d" """, ("/bin/true", "a", "b c", "d")),
    ],
)
def test_updown(line: str, command: tuple[str, ...]) -> None:
    assert read(line).updown == command
    assert load_text(document(line), "f").warnings == ()
    assert read(f"{line}\nhostaccess = yes").hostaccess


def test_updown_without_effect(tmp_path: Path) -> None:
    (tmp_path / "x").touch(mode=0o644)
    for path in (tmp_path / "x", tmp_path / "missing"):
        (warning,) = load_text(document(f"updown = {path}"), "f").warnings
        assert f"children.net.updown: {path} is no file that can be run" in warning
    (warning,) = load_text(document("mode = pass\nstart_action = trap\nupdown = /bin/true"), "f").warnings
    assert "with mode = pass nothing comes up, it is never run" in warning


@pytest.mark.parametrize(
    ("lines", "key", "message"),
    [
        ("rekey_time = 2h\nlife_time = 1h", "rekey_time", "rekey_time is 7200, more than life_time: 3600"),
        ("local_ts = fd00::/8\nremote_ts = 10.0.0.0/8", "remote_ts", "families or protocols differ"),
        ("local_ts = 10.0.0.0/8[tcp]\nremote_ts = 10.0.0.0/8[udp]", "remote_ts", "families or protocols differ"),
        ("local_ts = dynamic[tcp]\nremote_ts = dynamic[udp]", "remote_ts", "families or protocols differ"),
        ("mode = pass\nstart_action = start", "start_action", "mode = pass starts nothing, write trap"),
        ("net2 { }", "net2", "unknown section"),
    ],
)
def test_contradictions(lines: str, key: str, message: str) -> None:
    error = refuse(lines)
    assert (error.key, error.file) == (f"connections.gw.children.net.{key}", "f")
    assert message in error.message


def test_warnings() -> None:
    def warnings(lines: str) -> tuple[str, ...]:
        return load_text(document(lines), "f").warnings

    assert warnings("") == ()
    assert warnings("mode = pass") == (
        "f:11: connections.gw.children.net.start_action: mode = pass has no effect without start_action = trap or "
        "ipsecctl install",
    )
    assert warnings("mode = drop\nstart_action = trap") == ()
    assert warnings("rekey_time = 5\nrand_time = 0") == ()
    assert "the moment at which its rekeying begins" in warnings("rekey_time = 1h\nlife_time = 1h")[0]
    assert warnings("replay_window = 0") == (
        "f:12: connections.gw.children.net.replay_window: replay protection is off: old packets will be accepted again",
    )
