"""IPSEC_* variables: what they become, what is refused, and where secrets stay."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat

from ipsec.config import Config, authorities, children, connections, environment, load, load_again, pools, schema
from ipsec.config.environment import (
    KNOWN,
    SECRETS,
    VARIABLES,
    Environment,
    forget_secrets,
    read_environment,
)
from ipsec.config.settings import DaemonSettings, LogLevel
from ipsec.crypto.identity import parse_identity, parse_pattern
from ipsec.errors import ConfigError
from ipsec.ike.config import Action, AuthClass
from ipsec.ike.credentials import EapSecret, Ppk
from ipsec.wire.iana import EapType
from tests.config import pki
from tests.config.owner import owned_by

PSK = "correct horse battery"
PEER = {"IPSEC_REMOTE_ADDRS": "192.0.2.2", "IPSEC_PSK": PSK}

Read = Callable[..., Config]


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Read:
    """What variables say, without the file of this machine."""
    for module in (environment, schema):
        monkeypatch.setattr(module, "DEFAULT_FILE", str(tmp_path / "etc" / "swanctl.conf"))

    def load_from(variables: dict[str, str], text: str | None = None) -> Config:
        path = None
        if text is not None:
            path = str(tmp_path / "given.conf")
            Path(path).touch(0o600)
            Path(path).write_text(text)
        return load(path, read_environment(variables))

    return load_from


def refused(read: Read, variables: dict[str, str], text: str | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        read(variables, text)
    return str(caught.value)


def keys_of(prefix: str) -> set[str]:
    return {place.key for place in VARIABLES.values() if place.section == prefix}


def test_every_key_has_a_variable() -> None:
    # these two mean nothing to IKEv2
    assert keys_of("connections.*") == set(connections._KEYS) - {"version", "dpd_timeout"}
    assert keys_of("connections.*.local") == set(connections._LOCAL_KEYS) - {"round"}
    assert keys_of("connections.*.remote") == set(connections._REMOTE_KEYS) - {"round"}
    assert keys_of("connections.*.children.*") == set(children._KEYS)
    assert keys_of("pools.*") == {"addrs", *pools.ATTRIBUTES}
    assert keys_of("authorities.*") == set(authorities._KEYS) - {"file"}
    settings = {f.name for f in fields(DaemonSettings) if not is_dataclass(f.default)}
    assert keys_of("ipsecd") == settings
    assert len(set(KNOWN)) == len(KNOWN)


def test_one_connection(read: Read) -> None:
    config = read(
        {
            "PATH": "/bin",
            "IPSEC_NAME": "office",
            "IPSEC_LOCAL_ID": "a.example",
            "IPSEC_REMOTE_ID": "b.example",
            "IPSEC_REMOTE_ADDRS": "b.example",
            "IPSEC_PSK": PSK + "\n",
            "IPSEC_PPK": "0x" + "a5" * 32,
            "IPSEC_PPK_ID": "pq",
            "IPSEC_PPK_REQUIRED": "yes",
            "IPSEC_VIPS": "0.0.0.0",
            "IPSEC_REMOTE_TS": "10.0.0.0/8,\n 192.0.2.0/24",
            "IPSEC_PROPOSALS": "aes256-sha256-x25519",
            "IPSEC_ESP_PROPOSALS": "aes128gcm16",
            "IPSEC_REKEY_TIME": "2h",
            "IPSEC_CHILD_REKEY_TIME": "1h",
            "IPSEC_LOG_LEVEL": "debug",
            "IPSEC_OFFLOAD_UDP_GSO": "no",
            "IPSEC_MOBIKE": "",
        }
    )
    (connection,) = config.connections
    (child,) = connection.children
    assert (config.file, connection.name, child.name) == ("environment", "office", "office")
    assert connection.local.method is connection.remote.method is AuthClass.PSK
    assert connection.vips == (ip_address("0.0.0.0"),)
    networks = [ip_network("10.0.0.0/8"), ip_network("192.0.2.0/24")]
    assert [ts.network for ts in child.remote_ts] == [(net[0], net[-1]) for net in networks]
    assert (connection.rekey_time, child.rekey_time) == (7200, 3600)
    assert child.start_action is child.close_action is child.dpd_action is Action.START
    assert connection.dpd_delay == 30
    assert config.settings.log_level is LogLevel.DEBUG
    assert config.settings.offload.udp_gso.value == "no"
    assert config.warnings == ()
    ours, theirs = parse_identity("a.example"), parse_identity("b.example")
    assert config.credentials.find_psk(ours, theirs) == PSK.encode()
    assert (str(connection.ppk_id), connection.ppk_required) == ("pq", True)
    assert config.credentials.ppks == (Ppk(b"\xa5" * 32, (parse_pattern("pq"),), "ppk-office"),)
    assert config.credentials.find_psk(parse_identity("c.example"), parse_identity("d.example")) is None


def test_eap(read: Read) -> None:
    """A password makes us a user, unless the peer is one."""
    variables = {"IPSEC_REMOTE_ADDRS": "b.example", "IPSEC_EAP_PASSWORD": PSK, "IPSEC_LOCAL_ID": "carol"}
    config = read(variables)
    (connection,) = config.connections
    assert (connection.local.method, connection.remote.method) == (AuthClass.EAP, AuthClass.PUBKEY)
    secret = EapSecret(PSK.encode(), (parse_pattern("carol"),), "eap-tunnel")
    assert config.credentials.eap_secrets == (secret,)
    config = read({**variables, "IPSEC_LOCAL_AUTH": "eap-gtc", "IPSEC_LOCAL_EAP_ID": "dave", "IPSEC_PSK": PSK})
    assert config.connections[0].local.eap_type == EapType.GTC
    assert config.connections[0].remote.method is AuthClass.PSK
    assert config.credentials.eap_secrets[0].owners == (parse_pattern("dave"),)
    gateway = {"IPSEC_REMOTE_ADDRS": "%any", "IPSEC_REMOTE_AUTH": "eap-md5", "IPSEC_PSK": PSK, "IPSEC_LOCAL_ID": "gw"}
    config = read({**gateway, "IPSEC_REMOTE_EAP_ID": "*@b.example", "IPSEC_EAP_PASSWORD": PSK})
    assert config.connections[0].local.method is AuthClass.PSK
    assert config.credentials.eap_secrets[0].owners == (parse_pattern("*@b.example"),)


@pytest.mark.parametrize("peer", ["%any", "0.0.0.0", "192.0.2.0/24", "%any4, 2001:db8::/32"])
def test_nobody_to_begin_with(read: Read, peer: str) -> None:
    variables = {"IPSEC_REMOTE_ADDRS": peer, "IPSEC_PSK": PSK, "IPSEC_POOL_ADDRS": "10.9.0.0/24"}
    (connection,) = read(variables).connections
    assert connection.children[0].start_action is Action.NONE
    assert connection.pools == ("tunnel",)


def test_actions_can_be_chosen(read: Read) -> None:
    child = read({**PEER, "IPSEC_START_ACTION": "trap", "IPSEC_CLOSE_ACTION": "none"}).connections[0].children[0]
    assert (child.start_action, child.close_action, child.dpd_action) == (Action.TRAP, Action.NONE, Action.START)


@pytest.mark.parametrize("inline", [False, True])
def test_certificates(read: Read, tmp_path: Path, inline: bool) -> None:
    key = pki.key("a").private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"open"))
    variables = {"IPSEC_REMOTE_ADDRS": "192.0.2.2", "IPSEC_PRIVATE_KEY_PASSPHRASE": "open"}
    values = {
        "IPSEC_LOCAL_CERTS": pki.certificate("a", "ca").public_bytes(Encoding.PEM),
        "IPSEC_CACERT": pki.certificate("ca", "ca").public_bytes(Encoding.PEM),
        "IPSEC_PRIVATE_KEY": key,
    }
    for name, data in values.items():
        path = tmp_path / name
        path.touch(0o600)
        path.write_bytes(data)
        if inline:
            variables[name] = data.decode()
        else:
            variables[name + "_FILE" * (name in SECRETS)] = str(path)
    config = read(variables)
    assert str(config.connections[0].local.id) == "CN=a"
    assert config.connections[0].remote.method is AuthClass.PUBKEY
    assert len(config.credentials.authorities) == 1
    assert config.warnings == ()
    variables["IPSEC_PRIVATE_KEY_PASSPHRASE"] = "shut"
    said = refused(read, variables)
    assert said.startswith("IPSEC_PRIVATE_KEY_FILE: " if not inline else "IPSEC_PRIVATE_KEY: ")
    assert "shut" not in said


def test_private_key_in_the_wrong_variable(read: Read) -> None:
    said = refused(read, {"IPSEC_REMOTE_ADDRS": "192.0.2.2", "IPSEC_PRIVATE_KEY": "/run/secrets/key"})
    assert said == "IPSEC_PRIVATE_KEY: neither PEM nor 0x or 0s; the path of a file goes into IPSEC_PRIVATE_KEY_FILE"
    said = refused(read, {"IPSEC_REMOTE_ADDRS": "192.0.2.2", "IPSEC_PRIVATE_KEY": "0s!!"})
    assert said == "IPSEC_PRIVATE_KEY: not valid Base64"


def test_beside_a_file(read: Read) -> None:
    text = """
        ipsecd { mtu = 1300
                 device = tun7 }
        connections { other { remote_addrs = 192.0.2.9
            local { auth = psk }
            remote { auth = psk } } }
        secrets { ike-other { secret = 0123456789 } }
    """
    config = read({**PEER, "IPSEC_MTU": "1280"}, text)
    assert [connection.name for connection in config.connections] == ["other", "tunnel"]
    assert (config.settings.mtu, config.settings.device) == (1280, "tun7")
    said = refused(read, {**PEER, "IPSEC_NAME": "other"}, text)
    assert said.startswith("IPSEC_NAME: ")
    assert "a section connections.other already" in said


def test_settings_alone_need_a_file(read: Read, tmp_path: Path) -> None:
    said = refused(read, {"IPSEC_LOG_LEVEL": "debug"})
    assert "there is no such file, and no variable describes a connection" in said
    assert read({"IPSEC_LOG_LEVEL": "debug"}, "").settings.log_level is LogLevel.DEBUG
    # the default file is read where it is there
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "swanctl.conf").write_text("ipsecd { mtu = 1300 }")
    assert read(PEER).settings.mtu == 1300


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"IPSEC_PROPOSAL": "x"}, "IPSEC_PROPOSAL: there is no such variable, did you mean 'IPSEC_PROPOSALS'?"),
        ({"IPSEC_PSK_FIEL": "x"}, "IPSEC_PSK_FIEL: there is no such variable, did you mean 'IPSEC_PSK_FILE'?"),
        ({"IPSEC_MTU_FILE": "/x"}, "IPSEC_MTU is no secret, write its value"),
        ({"IPSEC_LOCAL_CERTS_FILE": "/x"}, "IPSEC_LOCAL_CERTS takes the path of a file itself"),
        ({**PEER, "IPSEC_MTU": "99"}, "IPSEC_MTU: '99' is not 0 or in 576..65535"),
        ({**PEER, "IPSEC_REMOTE_TS": "everything"}, "IPSEC_REMOTE_TS: 'everything' is not an address"),
        ({**PEER, "IPSEC_PSK_FILE": "/x"}, "IPSEC_PSK_FILE: IPSEC_PSK is there too, remove one of them"),
        ({"IPSEC_REMOTE_ADDRS": "192.0.2.2"}, "IPSEC_LOCAL_CERTS: there is no certificate with a private key"),
        ({**PEER, "IPSEC_NAME": "a.b"}, "IPSEC_NAME: not 1..64 letters"),
        ({**PEER, "IPSEC_REMOTE_ADDRS": "%any", "IPSEC_START_ACTION": "start"}, "IPSEC_START_ACTION: remote_addrs has"),
        ({**PEER, "IPSEC_POOL_DNS": "10.0.0.1"}, "IPSEC_POOL_ADDRS: a pool needs this key"),
        ({**PEER, "IPSEC_CRL_URIS": "http://ca/crl"}, "IPSEC_CACERT: an authority needs this key"),
    ],
)
def test_errors_name_the_variable(read: Read, variables: dict[str, str], said: str) -> None:
    assert said in refused(read, variables)


def test_what_a_variable_replaces_is_told(tmp_path: Path) -> None:
    path = tmp_path / "swanctl.conf"
    path.touch(0o600)
    text = "ipsecd {\n vici_socket = /run/mine\n mtu = 1400\n http {\n listen = none\n }\n}\nconnections { }\n"
    path.write_text(text)
    variables = {"IPSEC_VICI_SOCKET": "/run/ipsecd/vici", "IPSEC_MTU": "1400", "IPSEC_HTTP_LISTEN": "9903"}
    config = load(str(path), read_environment({**variables, "IPSEC_PORT": "501"}))
    # not what says the same, or is in no file
    assert config.overridden == (
        f"{path}:2: ipsecd.vici_socket is not used: IPSEC_VICI_SOCKET is set",
        f"{path}:5: ipsecd.http.listen is not used: IPSEC_HTTP_LISTEN is set",
    )


def test_services_of_kubernetes_are_not_ours(read: Read) -> None:
    links = {
        "IPSEC_SERVICE_HOST": "10.96.0.7",
        "IPSEC_SERVICE_PORT": "500",
        "IPSEC_SERVICE_PORT_IKE": "500",
        "IPSEC_PORT": "udp://10.96.0.7:500",
        "IPSEC_PORT_500_UDP": "udp://10.96.0.7:500",
        "IPSEC_PORT_500_UDP_ADDR": "10.96.0.7",
        "IPSEC_GATEWAY_SERVICE_HOST": "10.96.0.8",
        "IPSEC_GATEWAY_PORT": "tcp://10.96.0.8:80",
    }
    assert read_environment(links) == Environment()
    assert read({**PEER, "IPSEC_PORT": "1500"}).settings.port == 1500


# -- secrets


@pytest.mark.parametrize("data", [b"0123456789", b"0123456789\n", b"0123456789\r\n"])
def test_secret_file(read: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    path = tmp_path / "psk"
    path.touch(0o600)
    path.write_bytes(data)
    config = read({"IPSEC_REMOTE_ADDRS": "192.0.2.2", "IPSEC_PSK_FILE": str(path)})
    assert config.credentials.secrets[0].secret == b"0123456789"
    assert config.warnings == ()
    path.chmod(0o644)
    owned_by(monkeypatch, 1000)
    path.write_bytes(b"abcdefghij\n")
    config = load_again(config)
    assert config.credentials.secrets[0].secret == b"abcdefghij"
    assert config.warnings == (f"IPSEC_PSK_FILE: {path} is open to group or others, run: chmod 600 {path}",)


def test_nothing_is_left_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "swanctl.conf"
    path.touch(0o600)
    path.write_text("# begun\n")
    config = load(str(path))
    # nothing was, nothing is
    assert load_again(config).connections == ()
    path.write_text("pools { one { addrs = 10.3.0.0/24 } }")
    config = load_again(config)
    for text in ("", "\n", "# to be written\n"):
        path.write_text(text)
        with pytest.raises(ConfigError, match=f"^{path}: there is nothing in it any more"):
            load_again(config)
    path.write_text("connections { }")
    assert load_again(config).connections == ()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (None, "cannot read"),
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"a\nb", "more than one line"),
        (b"a\0b", "more than one line, or a NUL"),
        (b"\xff\xfe", "is not text"),
        (bytes(5000), "larger than 4096 octets"),
        (b"0xabc", "not valid hexadecimal"),
    ],
)
def test_bad_secret_file(read: Read, tmp_path: Path, data: bytes | None, said: str) -> None:
    path = tmp_path / "psk"
    if data is not None:
        path.write_bytes(data)
    message = refused(read, {"IPSEC_REMOTE_ADDRS": "192.0.2.2", "IPSEC_PSK_FILE": str(path)})
    assert message.startswith("IPSEC_PSK_FILE: ")
    assert said in message


def test_secrets_are_in_no_repr(read: Read) -> None:
    key = pki.key("a").private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    config = read({**PEER, "IPSEC_PRIVATE_KEY": key})
    assert PSK not in repr(config)
    assert PSK not in repr(config.environment)
    assert key.splitlines()[1] not in repr(config)


def test_proc_environ_shows_no_secret() -> None:
    code = """
import os
from pathlib import Path
from ipsec.config.environment import forget_secrets
assert b"IPSEC_PSK=hidden" in Path("/proc/self/environ").read_bytes()
forget_secrets(os.environ)
assert "IPSEC_PSK" not in os.environ and os.environ["IPSEC_PSK_FILE"] == "/x"
after = Path("/proc/self/environ").read_bytes()
assert b"hidden" not in after and b"IPSEC_MTU=1300" in after and b"IPSEC_PSK_FILE=/x" in after, after
"""
    variables = {"IPSEC_PSK": "hidden", "IPSEC_MTU": "1300", "IPSEC_PSK_FILE": "/x", "PATH": os.environ["PATH"]}
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr


def test_forgetting_leaves_the_rest() -> None:
    variables = {**PEER, "IPSEC_PRIVATE_KEY": "x"}
    forget_secrets(variables)
    assert variables == {"IPSEC_REMOTE_ADDRS": "192.0.2.2"}
