"""list, counters, completion of names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from ipsec.ctl.app import App
from ipsec.ctl.errors import ExitCode
from ipsec.ctl.main import cli
from tests.ctl.fake import Ctl, FakeDaemon, child_sa, conn, ike_sa
from tests.ctl.test_status import BY_HAND


@pytest.fixture
def busy(daemon: FakeDaemon) -> FakeDaemon:
    """Two connections, one of them up."""
    daemon.conns = {"gw": conn(children=("net", "voice")), "road": conn("%any")}
    daemon.sas = [("gw", ike_sa(5, [child_sa("net", 6), child_sa("voice", 7)]))]
    daemon.policies = {"gw/net": "TUNNEL", "gw/lan": "PASS"}
    return daemon


def test_sas(busy: FakeDaemon, ctl: Ctl) -> None:
    out = ctl("list", "sas").out
    assert re.search(r"(?m)^gw\[5\] +ESTABLISHED +192\.0\.2\.2:4500 b\.example +AES_GCM_16-256/PRF_HMAC_SHA2_256/", out)
    assert re.search(r"(?m)^  net\{6\} +INSTALLED +c0000006_i d0000006_o +AES_GCM_16-128 .* 1\.00 kB +2\.00 kB$", out)
    (sa,) = ctl("list", "sas", "--json", "gw").document["sas"]
    assert (sa["id"], [child["id"] for child in sa["children"]]) == (5, [6, 7])
    assert ctl("list", "sas", "gw[9]").status == ExitCode.UNKNOWN_NAME


def test_manual_sas(busy: FakeDaemon, ctl: Ctl) -> None:
    busy.manual = {name: dict(BY_HAND) for name in ("by-hand", "other")}
    row = r"(?m)^by-hand +MANUAL +192\.0\.2\.9 10000001_i 20000001_o +aes128gcm16 +1\.00 kB +0 B$"
    out = ctl("list", "sas").out
    assert re.search(row, out)
    assert "other" in out
    document = ctl("list", "sas", "by-*", "--json").document
    assert (document["sas"], [one["name"] for one in document["manual_sas"]]) == ([], ["by-hand"])
    assert ctl("list", "sas", "nothing").status == ExitCode.UNKNOWN_NAME


def test_conns(busy: FakeDaemon, ctl: Ctl) -> None:
    out = ctl("list", "conns").out
    assert re.search(
        r"(?m)^gw +%any \[a\.example\] +192\.0\.2\.2 \[b\.example\] +pre-shared key / pre-sh.* 4h 00m$", out
    )
    assert re.search(r"(?m)^  voice +10\.1\.0\.0/16 +10\.2\.0\.0/16 +1h 00m$", out)
    assert [one["name"] for one in ctl("list", "conns", "--json", "ro*").document["conns"]] == ["road"]


def test_conns_with_eap(daemon: FakeDaemon, ctl: Ctl) -> None:
    """The method, and who the user is if IKE does not say."""
    user = {"class": "EAP", "eap-type": "EAP_MSCHAPV2", "eap_id": "carol@example.org", "certs": []}
    for name, identity in (("one", "%any"), ("two", "phone")):
        daemon.conns[name] = conn(**{"remote-1": user | {"id": identity}})
    daemon.conns["three"] = conn(**{"local-1": {"class": "EAP", "id": "me", "certs": []}})
    found = {one["name"]: one for one in ctl("list", "conns", "--json").document["conns"]}
    ends = {name: [(end["method"], end["id"]) for end in found[name]["remote"]] for name in ("one", "two")}
    assert ends == {"one": [("EAP (MSCHAPV2)", "carol@example.org")], "two": [("EAP (MSCHAPV2)", "phone")]}
    assert [(end["method"], end["id"]) for end in found["three"]["local"]] == [("EAP", "me")]
    assert "pre-shared key / EAP (MSCHAPV2)" in " ".join(ctl("list", "conns").out.split())


def test_conns_with_rounds(daemon: FakeDaemon, ctl: Ctl) -> None:
    """Each proof, and each identity once."""
    key, user = {"class": "pre-shared key", "id": "me"}, {"class": "EAP", "eap-type": "EAP_MD5", "id": "me"}
    there = {"class": "public key", "id": "them"}
    daemon.conns["one"] = conn(**{"local-1": key, "local-2": user, "local-3": key | {"id": "other"}, "remote-1": there})
    (found,) = ctl("list", "conns", "--json", "one").document["conns"]
    assert [(end["method"], end["id"]) for end in found["local"]] == [
        ("pre-shared key", "me"),
        ("EAP (MD5)", "me"),
        ("pre-shared key", "other"),
    ]
    said = " ".join(ctl("list", "conns", "one").out.split())
    assert "[me, other]" in said
    assert "pre-shared key+EAP (MD5)+pre-shared key / public key" in said
    assert "[me, other] ... " in " ".join(ctl("status", "--sample", "0", "one").out.split())


def test_policies(busy: FakeDaemon, ctl: Ctl) -> None:
    assert re.search(r"(?m)^gw +lan +pass", ctl("list", "policies").out)
    assert [one["kind"] for one in ctl("list", "policies", "--json").document["policies"]] == ["trap", "pass"]
    busy.policies = {}
    assert "no policies" in ctl("list", "policies").err


def certificate(days: int, begin: int = -400, *, ca: bool = False) -> bytes:
    """One that ends in so many days."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "gw\x1b[2J")])
    now = datetime.now(UTC) + timedelta(minutes=1)
    names = x509.SubjectAlternativeName([x509.DNSName("gw.example")])
    found = x509.CertificateBuilder(name, name, key.public_key(), 255)
    found = found.not_valid_before(now + timedelta(days=begin)).not_valid_after(now + timedelta(days=days))
    found = found.add_extension(x509.BasicConstraints(ca, None), True)
    return found.add_extension(names, False).sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def test_certs(daemon: FakeDaemon, ctl: Ctl) -> None:
    daemon.certs = [
        {"type": "X509", "flag": "NONE", "has_privkey": "yes", "data": certificate(300)},
        {"type": "X509", "flag": "CA", "data": certificate(10)},
        {"type": "X509", "flag": "NONE", "data": certificate(-2)},
        {"type": "X509", "flag": "NONE", "data": certificate(900, begin=5)},
        {"type": "X509", "flag": "NONE", "data": b"\x30\x00"},
        {"type": "X509_CRL", "data": b"\x30\x00"},
    ]
    done = ctl("list", "certs")
    assert "\x1b" not in done.out
    rows = done.out.splitlines()[1:]
    assert [re.sub(r".* (?=ended|not|\d+ days|cannot)", "", row) for row in rows] == [
        "ended 1d 23h ago" if "1d" in rows[0] else "ended 2d 00h ago",
        "10 days",
        "300 days",
        "not yet valid",
        "cannot be read",
        "cannot be read",
    ]
    assert re.search(r"ours +EC secp256r1 .* gw\.example ", rows[2])
    document = ctl("list", "certs", "--json", "--expiring", "30").document
    assert [one["ca"] for one in document["certs"]] == [False, True]
    assert document["certs"][1]["serial"] == "ff"
    assert document["crls"] == []


def test_pools_authorities_algorithms(daemon: FakeDaemon, ctl: Ctl) -> None:
    assert re.search(r"(?m)^road +10\.9\.0\.0 +254 +2 +1 +1 %$", ctl("list", "pools").out)
    assert "  10.9.0.1  online  carol" in ctl("list", "pools", "--leases").out
    assert ctl("list", "pools", "--json").document["pools"][0]["leases"] is None
    assert ctl("list", "pools", "--json", "--leases").document["pools"][0]["leases"][0]["identity"] == "carol"
    assert re.search(r"(?m)^root +CN=root +http://a/$", ctl("list", "authorities").out)
    assert ctl("list", "authorities", "--json").document["authorities"][0]["cacert"] == "CN=root"
    assert ctl("list", "pools", "road").out.count("\n") == ctl("list", "authorities", "root").out.count("\n") == 2


@pytest.mark.parametrize(("kind", "near", "there"), [("pools", "raod", "road"), ("authorities", "rot", "root")])
def test_pools_and_authorities_not_there(daemon: FakeDaemon, ctl: Ctl, kind: str, near: str, there: str) -> None:
    done = ctl("list", kind, near)
    assert done.status == ExitCode.UNKNOWN_NAME
    assert f"did you mean {there}?" in done.err
    assert f"there are: {there}" in ctl("list", kind, "nonsense").err
    assert ctl("list", kind, "nonsense", "--json").document["error"] == "unknown-name"
    assert re.search(r"(?m)^aead +AES_GCM_16 +openssl$", ctl("list", "algs").out)
    assert ctl("list", "algs", "--json").document["algs"]["prf"] == {"PRF_HMAC_SHA2_256": "openssl"}


def test_counters(busy: FakeDaemon, ctl: Ctl) -> None:
    out = ctl("counters").out
    assert re.search(r"(?m)^ike-init-out-req +7 +1 +1$", out)
    assert "invalid" not in out
    assert "invalid" in ctl("counters", "--zero").out
    assert re.search(r"(?m)^IN_STATE_SEQ_ERROR +12$", out)
    document = ctl("counters", "--json").document
    assert (document["ike"]["ike-init-out-req"], document["connections"]["gw"]["ike-init-out-req"]) == (7, 1)
    assert document["data_path"] == {"tun_rx_packets": 7}
    assert ctl("counters", "gw", "--json").document["connections"] == {"gw": {}}
    assert ctl("counters", "nobody").status == ExitCode.UNKNOWN_NAME
    assert ctl("counters", "--reset").status == 0
    assert [name for name, _ in busy.asked].count("reset-counters") == 2


def test_counters_of_manual_sas(busy: FakeDaemon, ctl: Ctl) -> None:
    busy.manual = {name: dict(BY_HAND) for name in ("by-hand", "other")}
    out = ctl("counters").out
    assert re.search(r"(?m)^MANUAL SA +by-hand +other$", out)
    assert re.search(r"(?m)^ike-init-out-req +7 +1 +1$", out)
    out = ctl("counters", "by-hand").out
    assert re.search(r"(?m)^bytes-in +1000$", out)
    assert "IKE" not in out
    document = ctl("counters", "by-hand", "--json").document
    assert (list(document["manual_sas"]), document["connections"], document["ike"]) == (["by-hand"], {}, {})
    assert sum(ctl("counters", "--json").document["manual_sas"]["other"].values()) > 1000
    assert ctl("counters", "gw", "--json").document["manual_sas"] == {}
    assert "did you mean by-hand?" in ctl("counters", "by-hnd").err
    assert ctl("counters", "nonsense", "--reset").status == ExitCode.UNKNOWN_NAME
    refused = ctl("counters", "by-hand", "--reset")
    assert refused.status == ExitCode.UNKNOWN_NAME
    assert "manual SA" in refused.err


def test_completion_of_manual_sas(busy: FakeDaemon) -> None:
    """Where one only looks: nothing else can be done to them."""
    busy.manual = {"by-hand": dict(BY_HAND)}
    for words in (("status",), ("counters",), ("list", "sas")):
        assert completed(busy.socket, words, "")[-1] == "by-hand"
    assert completed(busy.socket, ("status", "by-hand"), "b") == []
    for words in (("down",), ("log",), ("list", "conns")):
        assert "by-hand" not in completed(busy.socket, words, "")


def test_counters_of_a_charon(charon: FakeDaemon, ctl: Ctl) -> None:
    document = ctl("counters", "--json").document
    assert (document["data_path"], document["drops"]) == (None, None)


def completed(socket: Path, words: Sequence[str], incomplete: str) -> list[str]:
    """What a shell would offer."""
    completer = ShellComplete(cli, {"obj": App(socket=str(socket))}, "ipsecctl", "_IPSECCTL_COMPLETE")
    return [item.value for item in completer.get_completions(list(words), incomplete)]


@pytest.mark.parametrize(
    ("words", "incomplete", "offered"),
    [
        (("down",), "", ["gw", "road"]),
        (("down",), "g", ["gw"]),
        (("down",), "gw", ["gw", "gw/net", "gw/voice"]),
        (("down",), "gw/v", ["gw/voice"]),
        (("down", "gw"), "", ["road"]),
        (("counters",), "r", ["road"]),
        ((), "redi", ["redirect"]),
        (("list",), "po", ["policies", "pools"]),
        (("up",), "--no", ["--no-wait"]),
        (("completion",), "", ["bash", "zsh", "fish"]),
    ],
)
def test_completion(busy: FakeDaemon, words: Sequence[str], incomplete: str, offered: list[str]) -> None:
    assert completed(busy.socket, words, incomplete) == offered


def test_verbs_complete_in_bash_as_elsewhere(busy: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {incomplete: completed(busy.socket, (), incomplete) for incomplete in ("", "re", "--ve")}
    monkeypatch.setenv("_IPSECCTL_COMPLETE", "bash_complete")
    assert {incomplete: completed(busy.socket, (), incomplete) for incomplete in found} == found
    assert {"status", "top"} <= set(found[""])


def test_completion_without_a_daemon(tmp_path: Path) -> None:
    assert completed(tmp_path / "nothing", ("down",), "") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(ctl: Ctl, shell: str) -> None:
    assert "_IPSECCTL_COMPLETE" in ctl("completion", shell).out
