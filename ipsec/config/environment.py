"""One connection, and the settings of ``ipsecd { }``, out of environment variables: for containers without a file.

A variable is a key of swanctl.conf in capitals behind ``IPSEC_``. Its value goes into the section where that key
stands, so that one parser reads both and says the same of both. What is not a key by itself, secrets above all, is in
``SPECIAL``. A secret may be in a file instead, which ``NAME_FILE`` names: there it can change while the daemon runs.

Precedence: the settings of ``ipsecd { }`` replace those of the file, one by one. The connection stands beside those of
the file, after them; it has a name of its own. Empty variables are as if they were not there.

Nothing here imports what reads connections: names are checked, and settings read, without it.
"""

from __future__ import annotations

import base64
import ctypes
import os
import re
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field, fields, is_dataclass

from ipsec.config import DEFAULT_FILE
from ipsec.config.grammar import Section, Value, parse_file
from ipsec.config.settings import DaemonSettings
from ipsec.config.sources import note, why_unread
from ipsec.config.values import read_regular, suggestion
from ipsec.errors import ConfigError
from ipsec.ike.eap.names import is_eap

PREFIX = "IPSEC_"
#: where keys come from that no variable set
ENVIRONMENT = "environment"
DEFAULT_NAME = "tunnel"
SECRET_SIZE_MAX = 4096

_CONNECTION = """
    local_addrs remote_addrs local_port remote_port proposals vips pools dscp encap mobike dpd_delay fragmentation
    childless send_certreq send_cert keyingtries unique reauth_time rekey_time over_time rand_time ppk_id ppk_required
"""
_LOCAL = "auth id eap_id aaa_id certs pubkeys"
_REMOTE = "auth id eap_id groups certs cacerts ca_id pubkeys cert_policy revocation"
_CHILD = """
    esp_proposals local_ts remote_ts rekey_time life_time rand_time inactivity rekey_bytes life_bytes rand_bytes
    rekey_packets life_packets rand_packets mode policies reqid priority tfc_padding replay_window copy_df copy_ecn
    copy_dscp icmp sha256_96 start_action close_action dpd_action updown hostaccess
"""
_POOL = "addrs dns nbns dhcp netmask server subnet p_cscf"
_AUTHORITY = "cacert crl_uris ocsp_uris"

#: what Kubernetes puts into every pod of a namespace that has a service whose name begins with "ipsec"
_SERVICE_LINK = re.compile(
    r"IPSEC_([A-Z0-9_]+_)?(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
_SERVICE_URL = re.compile(r"(tcp|udp|sctp)://")
#: what building, testing and measuring this program use
_DEVELOPMENT = re.compile(
    r"IPSEC_(BENCH|COVERAGE|DEMO|E2E|INTEROP|MB_PROBE|PROBES|SANITIZE|SEEDS|TEST|WITHOUT)(_[A-Z0-9_]+)?"
)
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_PEM = "-----BEGIN "
_ANYBODY = ("%any", "%any4", "%any6", "0.0.0.0", "::")


@dataclass(frozen=True)
class Place:
    """Where a variable's value goes: ``connections.*.children.*`` and ``local_ts``; ``*`` is the connection's name."""

    section: str
    key: str
    pem: bool = False
    "the value may be PEM as it is, besides what the key takes"


def _places() -> Iterator[tuple[str, Place]]:
    for setting in fields(DaemonSettings):
        if setting.name == "radius":
            # sections, no keys
            continue
        if is_dataclass(setting.default):
            for inner in fields(setting.default):
                yield f"{setting.name}_{inner.name}", Place(f"ipsecd.{setting.name}", inner.name)
        else:
            yield setting.name, Place("ipsecd", setting.name)
    connection = _CONNECTION.split()
    for key in connection:
        yield key, Place("connections.*", key)
    for side, keys in (("local", _LOCAL), ("remote", _REMOTE)):
        for key in keys.split():
            pem = key in ("certs", "cacerts", "pubkeys")
            yield f"{side}_{key}", Place(f"connections.*.{side}", key, pem)
    for key in _CHILD.split():
        # the IKE_SA is rekeyed too
        yield f"child_{key}" if key in connection else key, Place("connections.*.children.*", key)
    for key in _POOL.split():
        yield f"pool_{key}", Place("pools.*", key)
    for key in _AUTHORITY.split():
        yield key, Place("authorities.*", key, pem=key == "cacert")


#: variable -> place of its value
VARIABLES: dict[str, Place] = {f"{PREFIX}{name.upper()}": place for name, place in _places()}
#: secret -> place; each is also there with _FILE
SECRETS: dict[str, Place] = {
    "IPSEC_PSK": Place("secrets.ike-*", "secret"),
    "IPSEC_PPK": Place("secrets.ppk-*", "secret"),
    "IPSEC_EAP_PASSWORD": Place("secrets.eap-*", "secret"),
    "IPSEC_PRIVATE_KEY": Place("secrets.private-*", "file", pem=True),
    "IPSEC_PRIVATE_KEY_PASSPHRASE": Place("secrets.private-*", "secret"),
}
#: what is no key by itself -> what it means
SPECIAL: dict[str, str] = {
    "IPSEC_CONFIG": "the configuration file, as `--config` names it",
    "IPSEC_NAME": f"name of the connection and of its child, `{DEFAULT_NAME}` if not set",
    "IPSEC_PSK": "the preshared key: text, `0x` hexadecimal or `0s` Base64; both sides then have `auth = psk`",
    "IPSEC_PPK": "a postquantum preshared key (RFC 8784), in the same forms; who begins names it by `IPSEC_PPK_ID`",
    "IPSEC_EAP_PASSWORD": "the password of an EAP user, in the same forms: ours, unless `IPSEC_REMOTE_AUTH` is EAP",
    "IPSEC_PRIVATE_KEY": "our private key, PEM",
    "IPSEC_PRIVATE_KEY_PASSPHRASE": "what the private key is encrypted with",
}
KNOWN = (*SPECIAL, *(f"{name}_FILE" for name in SECRETS), *VARIABLES)


@dataclass(frozen=True)
class Environment:
    """What the variables said when the daemon was started. Empty if there was none."""

    values: Mapping[str, str] = field(default_factory=dict, repr=False)
    "by variable; secrets too, since a reload needs them"

    @property
    def file(self) -> str | None:
        """The configuration file that IPSEC_CONFIG names."""
        return self.values.get("IPSEC_CONFIG")

    @property
    def name(self) -> str:
        """The connection's name."""
        return self.values.get("IPSEC_NAME", DEFAULT_NAME)

    @property
    def describes_connection(self) -> bool:
        """Whether there is more than settings of the daemon."""
        return any(
            not (name in VARIABLES and VARIABLES[name].section.startswith("ipsecd"))
            for name in self.values
            if name != "IPSEC_CONFIG"
        )

    def parse(self, path: str | None, overridden: list[str] | None = None) -> Section:
        """What the file says, with what concerns the daemon out of variables. ConfigError.

        None is the default file, which need not be there if variables describe a connection. ``overridden`` gets a line
        for each key of the file that a variable replaces.
        """
        root = parse_file(path) if path is not None else self._parse_default()
        for name, text in self.values.items():
            place = VARIABLES.get(name)
            if place is not None and place.section.startswith("ipsecd"):
                section = _section(root, place.section)
                old = section.values.get(place.key)
                if overridden is not None and old is not None and (old.text or "").strip() != text.strip():
                    key = section.child_path(place.key)
                    overridden.append(f"{old.file}:{old.line}: {key} is not used: {name} is set")
                section.values[place.key] = Value(text.strip(), name, None)
        return root

    def _parse_default(self) -> Section:
        note(DEFAULT_FILE)
        try:
            # not exists(): a file that this user may not see is no reason to go on without it
            os.stat(DEFAULT_FILE)
        except (FileNotFoundError, NotADirectoryError):
            if self.describes_connection:
                return Section("", ENVIRONMENT, None)
            why = "there is no such file, and no variable describes a connection: IPSEC_REMOTE_ADDRS and others"
            raise ConfigError(why, file=DEFAULT_FILE) from None
        except OSError as error:
            raise ConfigError(why_unread(error), file=DEFAULT_FILE) from None
        return parse_file(DEFAULT_FILE)

    def add_connection(self, root: Section) -> list[str]:
        """Put in the connection with its secrets, if there is one; warnings. ConfigError names the variable."""
        if not self.describes_connection:
            return []
        if not _NAME.fullmatch(self.name):
            raise ConfigError("not 1..64 letters, digits, '_' and '-'", file="IPSEC_NAME")
        own = Section("", ENVIRONMENT, None)
        for name, text in self.values.items():
            place = VARIABLES.get(name)
            if place is not None and not place.section.startswith("ipsecd"):
                text = _inline(text) if place.pem else text
                _section(own, self._path(place)).values[place.key] = Value(text.strip(), name, None)
        warnings: list[str] = []
        given = {name.removesuffix("_FILE") for name in self.values}
        for name, place in SECRETS.items():
            value = self._secret(name, place, warnings)
            if value is not None:
                _section(own, self._path(place)).values[place.key] = value
        self._add_defaults(own)
        if "IPSEC_PPK" in given and "IPSEC_PPK_ID" not in given and self._has_peer():
            warnings.append("IPSEC_PPK: only a peer that begins can use it; set IPSEC_PPK_ID to ask the peer for it")
        for top, section in own.sections.items():
            there = _section(root, top)
            for label, part in section.sections.items():
                if label in there.sections:
                    why = f"{root.file} has a section {part.path} already, choose another name"
                    raise ConfigError(why, file="IPSEC_NAME")
                there.sections[label] = part
        return warnings

    def _path(self, place: Place) -> str:
        return place.section.replace("*", self.name)

    def _secret(self, name: str, place: Place, warnings: list[str]) -> Value | None:
        """A secret, out of the variable or out of the file that the other variable names."""
        text, path = self.values.get(name), self.values.get(f"{name}_FILE")
        if text is not None and path is not None:
            raise ConfigError(f"{name} is there too, remove one of them", file=f"{name}_FILE")
        if path is not None:
            # the path of a private key is what the key takes
            text = path if place.key == "file" else _read_secret(path, f"{name}_FILE", warnings)
            return Value(text, f"{name}_FILE", None)
        if text is None:
            return None
        if place.key == "file":
            text = _inline(text)
            if text[:2].lower() not in ("0s", "0x"):
                why = f"neither PEM nor 0x or 0s; the path of a file goes into {name}_FILE"
                raise ConfigError(why, file=name)
        return Value(text.rstrip("\r\n"), name, None)

    def _add_defaults(self, own: Section) -> None:
        """What the connection of a container has unless a variable says otherwise."""
        connection = f"connections.{self.name}"
        child = f"{connection}.children.{self.name}"
        defaults = [(connection, "dpd_delay", "30s")]
        _section(own, child)
        if self._has_peer():
            # the tunnel is to be there, whatever the peer does
            defaults += [(child, key, "start") for key in ("start_action", "close_action", "dpd_action")]
        if f"eap-{self.name}" in _section(own, "secrets").sections:
            defaults += self._eap_defaults(own)
        if f"ike-{self.name}" in _section(own, "secrets").sections:
            secret = own.sections["secrets"].sections[f"ike-{self.name}"]
            for side in ("local", "remote"):
                defaults.append((f"{connection}.{side}", "auth", "psk"))
                # so that it serves no connection of the file
                identity = _section(own, f"{connection}.{side}").values.get("id")
                if identity is not None and identity.text != "%any":
                    secret.values[f"id-{side}"] = identity
        ppk_id = _section(own, connection).values.get("ppk_id")
        if ppk_id is not None and f"ppk-{self.name}" in _section(own, "secrets").sections:
            defaults.append((f"secrets.ppk-{self.name}", "id", ppk_id.text or ""))
        if "IPSEC_POOL_ADDRS" in self.values:
            defaults.append((connection, "pools", self.name))
        for path, key, text in defaults:
            _section(own, path).values.setdefault(key, Value(text, ENVIRONMENT, None))

    def _eap_defaults(self, own: Section) -> list[tuple[str, str, str]]:
        """Whose the password is: a user's who is at the other end if that has EAP, else ours, which then has EAP."""
        local, remote = (f"connections.{self.name}.{side}" for side in ("local", "remote"))
        auth = _section(own, remote).values.get("auth")
        theirs = auth is not None and is_eap(auth.text or "")
        user = _section(own, remote if theirs else local).values
        identity = user.get("eap_id", user.get("id"))
        found = [] if theirs else [(local, "auth", "eap")]
        if identity is not None:
            found.append((f"secrets.eap-{self.name}", "id", identity.text or ""))
        return found

    def _has_peer(self) -> bool:
        """Whether remote_addrs has an address or a name, so that there is somebody to begin with."""
        entries = [entry.strip().lower() for entry in self.values.get("IPSEC_REMOTE_ADDRS", "").split(",")]
        # a range, or a name with a dash: where it is a range alone, start_action is told so
        return any(entry and entry not in _ANYBODY and "/" not in entry for entry in entries)

    def explain(self, error: ConfigError) -> ConfigError:
        """The same error with the variable as its place, if it came out of one or could be mended by one."""
        found = self._explain(error)
        found.others = tuple(map(self._explain, error.others))
        return found

    def _explain(self, error: ConfigError) -> ConfigError:
        if error.file is None or not (error.file == ENVIRONMENT or error.file.startswith(PREFIX)):
            return error
        if error.file != ENVIRONMENT:
            return ConfigError(error.message, file=error.file)
        for name, place in (*VARIABLES.items(), *((f"{name}_FILE", place) for name, place in SECRETS.items())):
            if error.key == f"{self._path(place)}.{place.key}":
                return ConfigError(error.message.replace("have auth = psk", "set IPSEC_PSK"), file=name)
        return error


def read_environment(environment: Mapping[str, str]) -> Environment:
    """The variables of ours. ConfigError for a name that is none."""
    found = {}
    for name, text in environment.items():
        if not name.startswith(PREFIX) or not text.strip() or _is_service_link(name, text):
            continue
        if name not in KNOWN:
            if _DEVELOPMENT.fullmatch(name):
                continue
            raise ConfigError(_unknown(name), file=name)
        found[name] = text
    return Environment(found)


def forget_secrets(environment: MutableMapping[str, str]) -> None:
    """Take secrets out of the environment, and out of what /proc/PID/environ shows of it.

    Whoever started us still has them, and may show them: ``docker inspect`` and ``kubectl get pod -o yaml`` do.
    """
    libc = ctypes.CDLL(None)
    libc.getenv.restype = ctypes.c_void_p
    for name in SECRETS:
        if name not in environment:
            continue
        if environment is os.environ:
            # the kernel shows the memory that the process was started with, and there the C library looks them up
            address = libc.getenv(name.encode())
            if address:
                ctypes.memset(address, 0, len(ctypes.string_at(address)))
        del environment[name]


def _is_service_link(name: str, text: str) -> bool:
    return bool(_SERVICE_LINK.fullmatch(name) or (name.endswith("_PORT") and _SERVICE_URL.match(text)))


def _unknown(name: str) -> str:
    base = name.removesuffix("_FILE")
    if base in VARIABLES:
        why = "takes the path of a file itself" if VARIABLES[base].pem else "is no secret, write its value"
        return f"there is no such variable: {base} {why}"
    near = suggestion(name.lower(), [known.lower() for known in KNOWN])
    return f"there is no such variable{near.upper().replace(', DID YOU MEAN', ', did you mean')}"


def _section(root: Section, path: str) -> Section:
    """The section at a dotted path, made if need be."""
    section = root
    for part in path.split("."):
        section = section.sections.setdefault(part, Section(section.child_path(part), ENVIRONMENT, None))
    return section


def _inline(text: str) -> str:
    """PEM in the form that keys take."""
    if _PEM not in text:
        return text
    return "0s" + base64.b64encode(text.encode()).decode()


def _read_secret(path: str, name: str, warnings: list[str]) -> str:
    try:
        data, open_to = read_regular(path, SECRET_SIZE_MAX)
    except ConfigError as error:
        raise ConfigError(error.message, file=name) from None
    if open_to:
        warnings.append(f"{name}: {open_to}")
    try:
        # the newline that editors and echo leave at the end
        text = data.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not text; write octets as 0x hexadecimal or 0s Base64", file=name) from None
    if not text:
        raise ConfigError(f"{path} is empty", file=name)
    if "\n" in text or "\0" in text:
        raise ConfigError(f"{path} has more than one line, or a NUL character", file=name)
    return text
