"""``sas { }``: defaults, every key, misuse, and what becomes of it."""

from __future__ import annotations

import base64
import os
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipsec.config import Config, load, load_text
from ipsec.config.sas import ManualSa
from ipsec.crypto.suites import Encr, EspSuite, all_esp_suites, esp_suite
from ipsec.errors import ConfigError
from ipsec.esp.sa import Action, DfPolicy, Direction, DscpPolicy, Lifetime, Mode, Policy, SaParams
from ipsec.wire.selector import TCP
from tests.config.owner import owned_by

IN, OUT = bytes(range(20)), bytes(range(100, 120))

BASE = {
    "local": "192.0.2.1",
    "remote": "192.0.2.2",
    "spi_in": "0x1001",
    "spi_out": "0x2001",
    "esp_proposals": "aes128gcm16",
    "key_in": f"0x{IN.hex()}",
    "key_out": f"0x{OUT.hex()}",
}


def section(name: str, extra: str = "", /, **keys: str | None) -> str:
    merged = {**BASE, **keys}
    lines = "".join(f"    {key} = {value}\n" for key, value in merged.items() if value is not None)
    return f"  {name} {{\n{lines}{extra}  }}\n"


def document(*sections: str, top: str = "") -> str:
    return f"sas {{\n{''.join(sections)}}}\n{top}"


def read(extra: str = "", /, **keys: str | None) -> ManualSa:
    return load_text(document(section("gw", extra, **keys))).sas[0]


def refuse(text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_text(text, "f")
    error = caught.value
    assert error.file == "f"
    assert error.line
    assert IN.hex() not in str(error)
    assert OUT.hex() not in str(error)
    return error


def misuse(extra: str = "", /, **keys: str | None) -> tuple[str | None, str]:
    """Key and message of the error; checks that the line is the key's."""
    text = document(section("gw", extra, **keys))
    error = refuse(text)
    assert error.key is not None
    assert error.line is not None
    last = error.key.split(".")[-1]
    written = text.splitlines()[error.line - 1].split()
    assert written[0] in (last, error.key.split(".")[-2])
    return error.key.removeprefix("sas.gw."), error.message


def test_defaults() -> None:
    sa = read()
    suite = esp_suite("aes128gcm16")
    inbound, outbound = sa.params()
    expected = {
        "suite": suite,
        "local": ip_address("192.0.2.1"),
        "remote": ip_address("192.0.2.2"),
        "mode": Mode.TUNNEL,
        "encap": None,
        "selectors": sa.selectors,
        "df": DfPolicy.COPY,
        "reqid": 1,
    }
    assert inbound == SaParams(spi=0x1001, direction=Direction.IN, encr_key=IN, **expected)  # type: ignore[arg-type]
    assert outbound == SaParams(spi=0x2001, direction=Direction.OUT, encr_key=OUT, **expected)  # type: ignore[arg-type]
    assert [str(pair) for pair in sa.selectors] == ["192.0.2.1/32 === 192.0.2.2/32"]
    # both zero: nothing used yet
    assert (inbound.initial_seq, outbound.initial_seq, inbound.esn, inbound.replay_window) == (0, 0, False, 1024)


@pytest.mark.parametrize(
    ("keys", "name", "value"),
    [
        ({"mode": "transport"}, "mode", Mode.TRANSPORT),
        ({"encap": "yes"}, "encap", (4500, 4500)),
        ({"encap": "yes", "local_port": "5000", "remote_port": "6000"}, "encap", (5000, 6000)),
        ({"encap": "no"}, "encap", None),
        ({"replay_window": "65536"}, "replay_window", 65536),
        ({"copy_df": "yes"}, "copy_df", DfPolicy.COPY),
        ({"copy_df": "no"}, "copy_df", DfPolicy.CLEAR),
        ({"copy_df": "clear"}, "copy_df", DfPolicy.CLEAR),
        ({"copy_df": "set"}, "copy_df", DfPolicy.SET),
        ({"copy_ecn": "no"}, "copy_ecn", False),
        ({"copy_dscp": "no"}, "copy_dscp", DscpPolicy.NO),
        ({"copy_dscp": "in"}, "copy_dscp", DscpPolicy.IN),
        ({"copy_dscp": "true"}, "copy_dscp", DscpPolicy.YES),
        ({"tfc_padding": "1000"}, "tfc_padding", 1000),
        ({"tfc_padding": "mtu"}, "tfc_padding", -1),
        ({"path_mtu": "9000"}, "path_mtu", 9000),
        ({"follow_peer": "no"}, "follow_peer", False),
        ({"icmp": "yes"}, "icmp", True),
        ({"reqid": "77"}, "reqid", 77),
        ({"rekey_bytes": "1k"}, "lifetime", Lifetime(bytes_soft=1024, bytes_hard=1126)),
        ({"life_bytes": "1000"}, "lifetime", Lifetime(bytes_soft=900, bytes_hard=1000)),
        ({"rekey_packets": "5", "life_packets": "9"}, "lifetime", Lifetime(packets_soft=5, packets_hard=9)),
        ({"rekey_packets": "0", "life_packets": "9"}, "lifetime", Lifetime(packets_hard=9)),
        ({"rekey_packets": "0"}, "lifetime", Lifetime()),
    ],
)
def test_keys(keys: dict[str, str], name: str, value: object) -> None:
    sa = read(**keys)
    assert getattr(sa, name) == value
    for params in sa.params():
        assert getattr(params, {"copy_df": "df", "tfc_padding": "tfc"}.get(name, name)) == value


def test_selectors() -> None:
    sa = read(local_ts="10.1.0.0/16, fd01::/64", remote_ts="10.2.0.0/16[tcp/https], dynamic, fd02::/64")
    assert [str(pair) for pair in sa.selectors] == [
        "10.1.0.0/16 === 10.2.0.0/16[tcp/https]",
        "10.1.0.0/16 === 192.0.2.2/32",
        "fd01::/64 === fd02::/64",
    ]


def test_settings_are_defaults() -> None:
    config = load_text(
        document(
            section("a", encap="yes"),
            section(
                "b",
                encap="yes",
                local_port="7000",
                path_mtu="1300",
                spi_in="0x1002",
                spi_out="0x2002",
                key_in="0x" + "11" * 20,
                key_out="0x" + "22" * 20,
            ),
            top="ipsecd {\n port_nat_t = 5500\n path_mtu = 1400\n}\n",
        )
    )
    a, b = config.sas
    assert (a.encap, a.path_mtu, b.encap, b.path_mtu) == ((5500, 4500), 1400, (7000, 4500), 1300)
    assert not config.needs_raw_esp()
    assert load_text(document(section("a"))).needs_raw_esp()


# --- keys -----------------------------------------------------------------------------------------------------------

HMAC_IN, HMAC_OUT = bytes(range(16 + 32)), bytes(range(50, 50 + 16 + 32))


def test_integrity_key_follows_encryption_key() -> None:
    whole = read(
        esp_proposals="aes128-sha256",
        key_in=f"0x{HMAC_IN.hex()}",
        key_out="0s" + base64.b64encode(HMAC_OUT).decode(),
    )
    apart = read(
        esp_proposals="aes128-sha256",
        key_in=f"0x{HMAC_IN[:16].hex()}",
        integ_key_in=f"0x{HMAC_IN[16:].hex()}",
        key_out=f"0x{HMAC_OUT[:16].hex()}",
        integ_key_out=f"0x{HMAC_OUT[16:].hex()}",
    )
    assert whole == apart
    assert whole.params()[0].encr_key == HMAC_IN[:16]
    assert whole.params()[0].integ_key == HMAC_IN[16:]
    assert whole.params()[1].integ_key == HMAC_OUT[16:]


def test_salt_comes_before_integrity_key() -> None:
    key = bytes(range(16 + 4 + 32))
    sa = read(esp_proposals="aes128ctr-sha256", key_in=f"0x{key.hex()}", key_out=f"0x{key[::-1].hex()}")
    assert (sa.key_in, sa.integ_key_in) == (key[:20], key[20:])


@pytest.mark.parametrize("word", ["sha256_96", "sha2_256_96"])
def test_sha256_of_96_bits_by_its_name(word: str) -> None:
    keys = {"key_in": f"0x{HMAC_IN.hex()}", "key_out": f"0x{HMAC_OUT.hex()}"}
    sa = read(esp_proposals=f"aes128-{word}", **keys)
    assert sa.proposal.suite == esp_suite("aes128-sha256_96")
    assert (sa.params()[0].suite.icv_len, sa.integ_key_in) == (12, HMAC_IN[16:])


def test_null_has_only_an_integrity_key() -> None:
    keys = {"key_in": None, "key_out": None, "integ_key_in": "0x" + "11" * 32, "integ_key_out": "0x" + "22" * 32}
    sa = read(esp_proposals="null-sha256", **keys)
    assert (sa.key_in, sa.integ_key_in) == (b"", b"\x11" * 32)
    whole = read(esp_proposals="null-sha256", key_in="0x" + "11" * 32, key_out="0x" + "22" * 32)
    assert whole == sa


@pytest.mark.parametrize(
    ("keys", "key", "why"),
    [
        ({"key_in": None}, "key_in", "needs this key, or key_in_file"),
        ({"key_out": "0x1234"}, "key_out", "aes128gcm16 takes 20 octets (16 cipher key + 4 salt), this key has 2"),
        ({"key_in": "0xZZ11"}, "key_in", "not valid hexadecimal"),
        ({"key_in": "0s!!!!"}, "key_in", "not valid Base64"),
        ({"key_in": "0sAAA"}, "key_in", "not valid Base64"),
        ({"key_in": "swordfish"}, "key_in", "must begin with 0x"),
        ({"integ_key_in": "0x1234"}, "integ_key_in", "has integrity of its own"),
        ({"key_in_file": "/x"}, "key_in_file", "key_in is there too"),
        ({"key_in": None, "key_in_file": "/nonexistent"}, "key_in_file", "cannot read /nonexistent: No such file"),
        (
            {"esp_proposals": "aes128-sha256", "integ_key_in": "0x1234", "key_in": "0x" + "00" * 16},
            "integ_key_in",
            "integrity key must have 32 octets, got 2",
        ),
        (
            {"esp_proposals": "aes128-sha256", "integ_key_in": "0x" + "00" * 32, "key_in": "0x00"},
            "key_in",
            "encryption key must have 16 octets, got 1",
        ),
        (
            {"esp_proposals": "aes128-sha256"},
            "key_in",
            "aes128-sha256 takes 48 octets (16 cipher key + 32 integrity key), this key has 20",
        ),
        # the same key and salt twice
        ({"key_out": BASE["key_in"]}, "key_out", "the same key as sas.gw.key_in: aes128gcm16 would use every IV twice"),
        (
            {"esp_proposals": "aes128-sha256", "key_in": f"0x{HMAC_IN.hex()}", "key_out": f"0x{HMAC_IN.hex()}"}
            | {"spi_out": "0x1001"},
            "key_out",
            "the same key as sas.gw.key_in and the same SPI",
        ),
    ],
)
def test_key_misuse(keys: dict[str, str | None], key: str, why: str) -> None:
    where, message = misuse(**keys)
    assert where == key
    assert why in message
    assert "swordfish" not in message


def test_same_key_under_another_sa() -> None:
    """The IV of a counter mode depends on nothing but the key's own count (RFC 4106 section 10)."""
    other = section("b", spi_in="0x1002", spi_out="0x2002", key_in="0x" + "11" * 20)
    error = refuse(document(section("a"), other))
    assert error.key == "sas.b.key_out"
    assert error.message.startswith("the same key as sas.a.key_out")
    # the same cipher key with another salt makes other nonces
    salted = section(
        "b", spi_in="0x1002", spi_out="0x2002", key_in="0x" + "11" * 20, key_out=BASE["key_out"][:-8] + "00000000"
    )
    assert len(load_text(document(section("a"), salted)).sas) == 2


def test_ctr_keys_count_without_their_integrity_key() -> None:
    error = refuse(
        document(
            section(
                "a",
                esp_proposals="aes128ctr-sha256",
                key_in="0x" + "11" * 20 + "22" * 32,
                key_out="0x" + "11" * 20 + "33" * 32,
            )
        )
    )
    assert error.key == "sas.a.key_out"


@pytest.mark.parametrize("suite", all_esp_suites(), ids=str)
def test_same_key_in_both_directions(suite: EspSuite) -> None:
    """Refused wherever the IV counts, also in two SAs; a warning in CBC, and where there is no cipher."""
    allow = "ipsecd { allow_weak = yes }\n"
    secret = [f"0x{bytes(range(n, n + suite.key_len + suite.integ_key_len)).hex()}" for n in range(3)]
    both = document(section("a", esp_proposals=str(suite), key_in=secret[0], key_out=secret[0]), top=allow)
    pairs = [("0x1001", "0x2001", secret[0], secret[1]), ("0x1002", "0x2002", secret[2], secret[0])]
    ends = [
        section(name, esp_proposals=str(suite), spi_in=spis[0], spi_out=spis[1], key_in=spis[2], key_out=spis[3])
        for name, spis in zip("ab", pairs, strict=True)
    ]
    two = document(*ends, top=allow)
    if suite.encr in (Encr.AES_CBC, Encr.TRIPLE_DES_CBC, Encr.NULL):
        assert any("the same" in warning for warning in load_text(both).warnings)
        assert any("the same" in warning for warning in load_text(two).warnings) == (suite.encr is not Encr.NULL)
        return
    for text in (both, two):
        with pytest.raises(ConfigError, match=r"the same key as sas\.a\.key_in: .* would use every IV twice"):
            load_text(text)


def cbc(name: str, spi: int, key_in: str, key_out: str) -> str:
    """A section with 16 octets of cipher key and 32 of integrity key for each direction."""
    return section(
        name,
        esp_proposals="aes128-sha256",
        spi_in=f"{spi:#x}",
        spi_out=f"{spi + 0x1000:#x}",
        key_in=f"0x{key_in[0] * 32}{key_in[1] * 64}",
        key_out=f"0x{key_out[0] * 32}{key_out[1] * 64}",
    )


def test_same_cbc_key_is_a_warning() -> None:
    """Whatever the integrity keys are, and in whichever SAs."""
    for keys in (("aa", "aa"), ("ab", "ac")):
        config = load_text(document(cbc("gw", 0x1001, *keys)), "f")
        (warning,) = config.warnings
        assert warning.startswith("f:9: sas.gw.key_out: the same cipher key as sas.gw.key_in: the IVs of one tell")
    (warning,) = load_text(document(cbc("a", 0x1001, "12", "34"), cbc("b", 0x1002, "56", "17"))).warnings
    assert "sas.b.key_out: the same cipher key as sas.a.key_in" in warning
    assert load_text(document(cbc("a", 0x1001, "12", "32"), cbc("b", 0x1002, "52", "72"))).warnings == ()


def test_same_key_without_a_cipher_is_a_warning() -> None:
    keys = {"esp_proposals": "null-sha256", "key_in": "0x" + "11" * 32, "key_out": "0x" + "11" * 32}
    (warning,) = load_text(document(section("gw", **keys)), "f").warnings
    assert warning == "f:9: sas.gw.key_out: the same key in both directions, use two"


def key_file(path: Path, text: str, mode: int = 0o600) -> str:
    path.write_text(text)
    path.chmod(mode)
    return path.name


def test_key_files(tmp_path: Path) -> None:
    keys = {
        "key_in": None,
        "key_out": None,
        "key_in_file": key_file(tmp_path / "in", f"0x{IN.hex()}\n"),
        "key_out_file": str(tmp_path / key_file(tmp_path / "out", "  0s" + base64.b64encode(OUT).decode(), 0o400)),
    }
    config = load_text(document(section("gw", **keys)), str(tmp_path / "main.conf"))
    assert (config.sas[0].key_in, config.sas[0].key_out) == (IN, OUT)
    assert config.warnings == ()


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o604, 0o620, 0o644, 0o666])
@pytest.mark.parametrize("owner", [0, 1000])
def test_key_file_open_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, owner: int) -> None:
    """Of root's files a group may read: that is how a daemon without privileges gets at them."""
    owned_by(monkeypatch, owner)
    name = key_file(tmp_path / "in", f"0x{IN.hex()}", mode)
    text = document(section("gw", key_in=None, key_in_file=name))
    if not mode & (0o077 if owner else 0o007):
        assert load_text(text, str(tmp_path / "main.conf")).sas[0].key_in == IN
        return
    with pytest.raises(ConfigError) as caught:
        load_text(text, str(tmp_path / "main.conf"))
    to, remedy = ("group or others", "chmod 600") if owner else ("others", "chmod o=")
    assert caught.value.message == f"{tmp_path}/in is open to {to}, run: {remedy} {tmp_path}/in"
    assert caught.value.key == "sas.gw.key_in_file"


def test_key_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has to mend it is told who we are: in a container, or with DynamicUser=, that is not plain to see."""

    def refuse(path: str, flags: int) -> int:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("ipsec.config.values.os.open", refuse)
    monkeypatch.setattr("ipsec.config.sources.os.geteuid", lambda: 65532)
    monkeypatch.setattr("ipsec.config.sources.os.getegid", lambda: 65532)
    monkeypatch.setattr("ipsec.config.sources.os.getgroups", lambda: [987])
    with pytest.raises(ConfigError) as caught:
        load_text(document(section("gw", key_in=None, key_in_file="in")), str(tmp_path / "main.conf"))
    why = "Permission denied; it has to be readable by uid 65532 or group 987, 65532"
    assert caught.value.message == f"cannot read {tmp_path}/in: {why}"


@pytest.mark.parametrize("content", ["", "swordfish", "0x" + "zz" * 20, "0x" + "0" * 5000, "s\u00e4sam"])
def test_key_file_contents(tmp_path: Path, content: str) -> None:
    name = key_file(tmp_path / "in", content)
    with pytest.raises(ConfigError) as caught:
        load_text(document(section("gw", key_in=None, key_in_file=name)), str(tmp_path / "main.conf"))
    assert caught.value.key == "sas.gw.key_in_file"
    assert str(tmp_path / "in") in caught.value.message
    assert not content or content not in str(caught.value)


def test_key_file_that_is_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o600)
    (tmp_path / "folder").mkdir()
    for name in ("fifo", "folder"):
        with pytest.raises(ConfigError, match=r"regular file|Is a directory"):
            load_text(document(section("gw", key_in=None, key_in_file=name)), str(tmp_path / "main.conf"))


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o640, False), (0o644, True)])
def test_readable_configuration_is_a_warning(tmp_path: Path, mode: int, warned: bool) -> None:
    path = tmp_path / "swanctl.conf"
    path.write_text(document(section("gw")))
    path.chmod(mode)
    warnings = load(str(path)).warnings
    assert [w.split(": ", 2)[2] for w in warnings] == (
        [f"others can read the keys in this file, run: chmod o= {path}"] if warned else []
    )


def test_secrets_are_in_no_repr() -> None:
    config = load_text(document(section("gw")))
    text = repr(config) + repr(config.sas[0].params())
    for secret in (IN, OUT):
        assert secret.hex() not in text
        assert repr(secret)[2:-1] not in text


@pytest.mark.parametrize(
    "text",
    [
        # a secret where a name, another key or nothing should be
        f"sas {{ gw {{ key_in =\n0x{IN.hex()}\n}} }}",
        f"sas {{ gw {{ key_in =\n0s{base64.b64encode(IN).decode()}\n}} }}",
        f"sas {{ gw {{ 0x{IN.hex()} = 1\n}} }}",
        f"sas {{ gw {{ 0x{IN.hex()} {{ }} }} }}",
        f"sas {{ gw : 0x{IN.hex()} {{ }} }}",
        f"sas {{ 0x{IN.hex()} {{ }} }}",
        *(document(section("gw", **{key: f"0x{IN.hex()}"})) for key in ("spi_in", "local", "mode", "esp_proposals")),
        *(document(section("gw", **{key: f"0x{IN.hex()}"})) for key in ("local_ts", "reqid", "copy_df", "encap")),
        *(document(section("gw", **{key: f"0x{IN.hex()}"})) for key in ("life_bytes", "tfc_padding", "nope")),
    ],
)
def test_secrets_are_in_no_error(text: str) -> None:
    error = refuse(text)
    for secret in (IN.hex(), base64.b64encode(IN).decode(), base64.b64encode(IN).decode().rstrip("=")):
        assert secret not in str(error)
        assert secret not in repr(error)


# --- other misuse ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "key", "why"),
    [
        ({"local": None}, "local", "needs this key"),
        ({"esp_proposals": None}, "esp_proposals", "needs this key"),
        ({"local": "gw.example"}, "local", "'gw.example' is not an IP address"),
        ({"local": "fe80::1%eth0"}, "local", "zone"),
        ({"remote": "2001:db8::1"}, "remote", "different families"),
        ({"remote": "0.0.0.0"}, "remote", "not the address of one host"),
        ({"remote": "224.0.0.1"}, "remote", "not the address of one host"),
        ({"spi_in": "255"}, "spi_in", "'255' is not in 0x100..0xffffffff"),
        ({"spi_out": "0x100000000"}, "spi_out", "is not in 0x100..0xffffffff"),
        ({"spi_out": "abc"}, "spi_out", "'abc' is not a number"),
        ({"esp_proposals": "aes128gcm17"}, "esp_proposals", "unknown algorithm 'aes128gcm17'"),
        ({"esp_proposals": "aes128"}, "esp_proposals", "needs an integrity algorithm"),
        ({"esp_proposals": "default"}, "esp_proposals", "one proposal"),
        ({"esp_proposals": "aes128gcm16, aes256gcm16"}, "esp_proposals", "one proposal"),
        ({"esp_proposals": "aes128gcm16-x25519"}, "esp_proposals", "makes no key exchange, remove 'x25519'"),
        ({"esp_proposals": "aes128gcm16-modp2048"}, "esp_proposals", "remove 'modp2048'"),
        ({"esp_proposals": "aes128gcm16-ke1_mlkem768"}, "esp_proposals", "remove 'ke1_mlkem768'"),
        ({"esp_proposals": "aes128gcm16-esn-noesn"}, "esp_proposals", "either esn or noesn"),
        ({"esp_proposals": "aes128gcm16-esn-esn"}, "esp_proposals", "twice"),
        ({"esp_proposals": "esn"}, "esp_proposals", "unknown algorithm"),
        ({"esp_proposals": "3des-sha1"}, "esp_proposals", "3des-sha1 is weak, ipsecd.allow_weak = yes permits it"),
        ({"mode": "transprot"}, "mode", "did you mean 'transport'?"),
        ({"mode": "transport", "remote_ts": "10.0.0.0/8"}, "remote_ts", "traffic of 192.0.2.2 itself"),
        ({"mode": "transport", "local_ts": "10.0.0.0/8"}, "local_ts", "traffic of 192.0.2.1 itself"),
        ({"local_port": "4500"}, "local_port", "add encap = yes"),
        ({"encap": "no", "remote_port": "4500"}, "remote_port", "add encap = yes"),
        ({"encap": "yes", "remote_port": "0"}, "remote_port", "'0' is not in 1..65535"),
        ({"replay_window": "32"}, "replay_window", "32 is not a multiple of 64, write 64"),
        ({"replay_window": "65600"}, "replay_window", "'65600' is not in 0..65536"),
        ({"local_ts": "10.0.0.0/40"}, "local_ts", "'10.0.0.0/40' is not an address, prefix or range"),
        ({"remote_ts": "10.0.0.0/8[gre/1]"}, "remote_ts", "has no ports"),
        ({"remote_ts": "fd00::/8"}, "remote_ts", "families or protocols differ"),
        ({"local_ts": "fd00::/8"}, "local_ts", "families or protocols differ"),
        ({"rekey_bytes": "2k", "life_bytes": "1k"}, "rekey_bytes", "2048 is more than life_bytes, which is 1024"),
        ({"rekey_packets": "3", "life_packets": "2"}, "rekey_packets", "3 is more than life_packets, which is 2"),
        ({"rekey_bytes": "8589934591g"}, "rekey_bytes", "too large"),
        ({"tfc_padding": "65536"}, "tfc_padding", "is not in 0..65535"),
        ({"path_mtu": "100"}, "path_mtu", "is not in 576..65535"),
        ({"rekey_time": "1h"}, "rekey_time", "IKEv2"),
        ({"start_action": "start"}, "start_action", "IKEv2"),
        ({"repaly_window": "64"}, "repaly_window", "unknown key, did you mean 'replay_window'?"),
        ({"sha256_96": "yes"}, "sha256_96", "this is for SAs that IKEv2 makes, a manual SA has no such key"),
        ({"rekey_time": "1h"}, "rekey_time", "this is for SAs that IKEv2 makes, a manual SA has no such key"),
        ({"policies": "no"}, "policies", "is a section, write policies { ... }"),
    ],
)
def test_misuse(keys: dict[str, str | None], key: str, why: str) -> None:
    where, message = misuse(**keys)
    assert where == key
    assert why in message


def test_weak_if_asked_for() -> None:
    text = document(
        section("gw", esp_proposals="3des-sha1", key_in="0x" + "11" * 44, key_out="0x" + "22" * 44),
        top="ipsecd {\n allow_weak = yes\n}\n",
    )
    assert load_text(text).sas[0].proposal.suite.weak


def test_spis_are_ours_alone() -> None:
    fresh = {"key_in": "0x" + "11" * 20, "key_out": "0x" + "22" * 20}
    error = refuse(document(section("a"), section("b", spi_out="0x2002", **fresh)))
    assert (error.key, error.message) == ("sas.b.spi_in", "0x00001001 is taken by sas.a.spi_in")
    error = refuse(document(section("a"), section("b", spi_in="0x1002", **fresh)))
    assert (error.key, error.message) == ("sas.b.spi_out", "0x00002001 is taken by sas.a.spi_out")
    # the peer chooses spi_out, and two peers may choose the same
    assert load_text(document(section("a"), section("b", spi_in="0x1002", remote="192.0.2.3", **fresh))).sas


def test_keys_in_sas_itself() -> None:
    error = refuse("sas {\n local = 192.0.2.1\n}\n")
    assert (error.line, error.key, error.message) == (2, "sas.local", "unknown key")


def test_inherited_keys() -> None:
    text = document(
        "  a : defaults {\n    local = 192.0.2.1\n  }\n",
        top=section("defaults", local=None, mode="transport"),
    )
    assert load_text(text).sas[0].mode is Mode.TRANSPORT
    error = refuse(text.replace("mode = transport", "mode = trnsport"))
    assert (error.key, error.line) == ("sas.a.mode", text[: text.index("mode")].count("\n") + 1)


# --- warnings, reqids, policies -------------------------------------------------------------------------------------


def test_no_replay_window_is_a_warning() -> None:
    config = load_text(document(section("gw", replay_window="0")), "f")
    assert config.warnings == (
        "f:10: sas.gw.replay_window: replay protection is off: old packets will be accepted again",
    )
    with_esn = load_text(document(section("gw", replay_window="0", esp_proposals="aes128gcm16-esn")), "f")
    assert [w.split(": ")[2] for w in with_esn.warnings] == [
        "replay protection is off",
        "esn without a window loses step after heavy loss",
    ]


def three(*extras: dict[str, str]) -> Config:
    sections = [
        section(
            name,
            spi_in=f"0x100{i}",
            spi_out=f"0x200{i}",
            key_in=f"0x{i}1" + "ab" * 19,
            key_out=f"0x{i}2" + "ab" * 19,
            **extra,
        )
        for i, (name, extra) in enumerate(zip("abc", extras, strict=False))
    ]
    return load_text(document(*sections))


def test_reqids() -> None:
    assert [sa.reqid for sa in three({}, {}, {}).sas] == [1, 2, 3]
    assert [sa.reqid for sa in three({}, {"reqid": "1"}, {}).sas] == [2, 1, 3]
    assert [sa.reqid for sa in three({"reqid": "5"}, {"reqid": "5"}, {}).sas] == [5, 5, 1]


def test_icmp_is_for_what_is_protected() -> None:
    text = document(section("gw", POLICIES, local_ts="10.1.0.0/16", remote_ts="10.2.0.0/16", icmp="yes"))
    found = load_text(text).policies()
    assert {policy.action for policy in found if policy.icmp} == {Action.PROTECT}
    assert all(policy.icmp for policy in found if policy.action is Action.PROTECT)
    assert not any(policy.icmp for policy in load_text(text.replace("icmp = yes", "")).policies())


def test_narrower_selectors_come_first() -> None:
    config = three(
        {"local_ts": "10.1.0.0/16", "remote_ts": "0.0.0.0/0"},
        {"local_ts": "10.1.0.0/16", "remote_ts": "10.2.0.0/16"},
        {"local_ts": "10.1.0.0/16", "remote_ts": "10.2.0.0/16[tcp/443]"},
    )
    assert [policy.reqid for policy in config.policies()] == [3, 2, 1]
    assert {policy.action for policy in config.policies()} == {Action.PROTECT}


def test_old_and_new_keys_share_their_policy() -> None:
    assert len(three({"reqid": "5"}, {"reqid": "5"}).policies()) == 1


POLICIES = """    policies {
      web { action = protect
        remote_ts = 10.2.0.0/24[tcp/80]
      }
      rest { action = discard }
      dns { action = bypass
        local_ts = 0.0.0.0/0
        remote_ts = 10.2.0.53[udp/53], 10.2.0.54
      }
      first { action = discard
        remote_ts = 10.2.0.0/24[tcp/25]
        priority = 7
      }
    }
"""


def test_policies() -> None:
    text = document(section("gw", POLICIES, local_ts="10.1.0.0/16", remote_ts="10.2.0.0/16"))
    config = load_text(text)
    assert [(policy.action.name, policy.reqid, str(policy.selectors[0])) for policy in config.policies()] == [
        ("DISCARD", 0, "10.1.0.0/16 === 10.2.0.0/24[tcp/smtp]"),
        ("BYPASS", 0, "0.0.0.0/0 === 10.2.0.53/32[udp/domain]"),
        ("BYPASS", 0, "0.0.0.0/0 === 10.2.0.54/32"),
        ("PROTECT", 1, "10.1.0.0/16 === 10.2.0.0/24[tcp/http]"),
        ("DISCARD", 0, "10.1.0.0/16 === 10.2.0.0/16"),
    ]
    assert config.policies()[0].priority == 7
    first = config.policies()[3]
    assert isinstance(first, Policy)
    assert first.selectors[0].protocol == TCP
    # the SA's own selectors stay what its packets are checked against
    assert [str(pair) for pair in config.sas[0].params()[0].selectors] == ["10.1.0.0/16 === 10.2.0.0/16"]


@pytest.mark.parametrize(
    ("policies", "key", "why"),
    [
        ("policies { }", "policies", "no policy is in here"),
        ("policies { action = discard\n }", "policies.action", "unknown key"),
        ("policies { x { }\n }", "policies.x.action", "needs this key"),
        (
            "policies { x { action = allow\n }\n }",
            "policies.x.action",
            "'allow' is not one of protect, bypass, discard",
        ),
        (
            "policies { x { action = protect\n remote_ts = 10.0.0.0/8\n }\n }",
            "policies.x.remote_ts",
            "is not within the selectors of the SA",
        ),
        ("policies { x { action = bypass\n priorty = 1\n }\n }", "policies.x.priorty", "did you mean 'priority'?"),
        ("polices { }", "polices", "unknown section, did you mean 'policies'?"),
    ],
)
def test_policy_misuse(policies: str, key: str, why: str) -> None:
    error = refuse(document(section("gw", f"{policies}\n")))
    assert error.key == f"sas.gw.{key}"
    assert why in error.message


# --- properties -----------------------------------------------------------------------------------------------------

WORDS = st.sampled_from(
    (
        "yes",
        "no",
        "0",
        "1",
        "64",
        "0x1000",
        "mtu",
        "transport",
        "tunnel",
        "dynamic",
        "::1",
        "10.0.0.1",
        "10.0.0.0/8[tcp]",
        *("aes128gcm16", "aes256-sha256-esn", "null-sha256", "10k", "", '""', "a,b", "/etc/passwd", "/nonexistent"),
    )
)


@given(
    st.dictionaries(
        st.sampled_from(
            [
                *(
                    *BASE,
                    "mode",
                    "encap",
                    "local_port",
                    "local_ts",
                    "remote_ts",
                    "replay_window",
                    "copy_df",
                    "copy_dscp",
                ),
                *("tfc_padding", "life_bytes", "rekey_bytes", "path_mtu", "reqid", "integ_key_in", "key_in_file"),
            ]
        ),
        st.one_of(WORDS, st.text("0123456789abcdefx:/.%-", max_size=45), st.text(max_size=10)),
        max_size=4,
    )
)
def test_only_config_errors(keys: dict[str, str]) -> None:
    with suppress(ConfigError):
        for sa in load_text(document(section("gw", **keys)), "/nonexistent/f").sas:
            assert all(params.suite is sa.proposal.suite for params in sa.params())
