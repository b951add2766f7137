"""swanctl.conf and the directories next to it as vici commands, the way ``swanctl --load-all`` sends them.

Nothing is judged here but what has to be read to be sent: which keys there are, and what they may say, the daemon knows
(a charon knows more of them). Files are read now, so that a missing one is an error before anything is changed.
"""

from __future__ import annotations

import binascii
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from ipsec.config.directories import CredentialFiles, base_directory, inline, read_file
from ipsec.config.grammar import Section, parse_file
from ipsec.config.secrets import parse_shared_secret
from ipsec.config.values import error_at, split_list
from ipsec.crypto.keyfiles import load_pkcs12, load_private_key
from ipsec.errors import ConfigError

#: keys that are lists of words, and of files, the latter with their directory
_LISTS = frozenset({
    *("local_addrs", "remote_addrs", "proposals", "esp_proposals", "ah_proposals", "local_ts", "remote_ts"),
    *("vips", "pools", "groups", "cert_policy", "crl_uris", "ocsp_uris"),
})  # fmt: skip
_FILES = {"certs": "x509", "cacerts": "x509ca", "pubkeys": "pubkey"}
#: directories, with type and flag of what is in them
_CERTIFICATES = {
    "x509": ("X509", "NONE"),
    "x509ca": ("X509", "CA"),
    "x509ocsp": ("X509", "OCSP"),
    "x509aa": ("X509", "AA"),
    "x509ac": ("X509_AC", "NONE"),
    "x509crl": ("X509_CRL", "NONE"),
    "pubkey": ("PUBKEY", "NONE"),
}
_KEYS = {"private": "any", "rsa": "rsa", "ecdsa": "ecdsa", "pkcs8": "any", "pkcs12": "any"}
_SHARED = ("ike", "eap", "xauth", "ntlm", "ppk")


@dataclass(frozen=True)
class Item:
    """One thing to load."""

    kind: str
    "certificate, revocation list, public key, key, secret, token, authority, pool or connection"
    name: str
    command: str
    message: dict[str, Any] = field(repr=False)


Ask = Callable[[str], str]
"the passphrase of a file, from somebody"


def read(path: str, ask: Ask) -> list[Item]:
    """All that a configuration file and its directories say to load, in the order in which to load it. ConfigError."""
    top = parse_file(path)
    files = CredentialFiles(base_directory(path))
    return [*_credentials(top, files, ask), *_authorities(top, files), *_pools(top), *_connections(top, files)]


def _part(top: Section, name: str) -> dict[str, Section]:
    section = top.sections.get(name)
    return section.sections if section is not None else {}


# -- credentials


def _credentials(top: Section, files: CredentialFiles, ask: Ask) -> Iterator[Item]:
    for directory, (kind, flag) in _CERTIFICATES.items():
        for path in files.scan(directory):
            what = {"X509_CRL": "revocation list", "PUBKEY": "public key"}.get(kind, "certificate")
            message = {"type": kind, "flag": flag, "data": read_file(path)[0]}
            yield Item(what, path, "load-cert", message)
    secrets = _part(top, "secrets")
    passphrases: dict[str, bytes] = {}
    places = {path: directory for directory in _KEYS for path in files.scan(directory)}
    for name, section in secrets.items():
        directory = next((one for one in _KEYS if name.startswith(one)), "")
        file, secret = (section.values.get(key) for key in ("file", "secret"))
        if not directory or file is None or not file.text:
            continue
        passphrase = secret.text.encode() if secret is not None and secret.text is not None else None
        data = inline(file.text)
        if data is not None:
            yield from _key(section.child_path("file"), data, directory, passphrase, ask)
            continue
        path = files.path(directory, file.text)
        places[path] = directory
        if passphrase is not None:
            passphrases[path] = passphrase
    for path, directory in places.items():
        yield from _key(path, read_file(path)[0], directory, passphrases.get(path), ask)
    for name, section in secrets.items():
        yield from _shared(name, section)


def _secret(section: Section, text: str) -> bytes:
    try:
        return parse_shared_secret(text)
    except (ConfigError, ValueError, binascii.Error):
        raise error_at(section, "secret", "not valid hexadecimal or Base64") from None


def _key(path: str, data: bytes, directory: str, passphrase: bytes | None, ask: Ask) -> Iterator[Item]:
    """A key as it is in its file, or without the passphrase: vici has no place for one."""
    kind = _KEYS[directory]
    try:
        if directory == "pkcs12":
            key, ends, authorities = load_pkcs12(data, passphrase if passphrase is not None else ask(path))
            for certificate in (*ends, *authorities):
                flag = "CA" if certificate in authorities else "NONE"
                yield Item("certificate", path, "load-cert", {"type": "X509", "flag": flag, "data": certificate.der})
            if key is None:
                return
        elif passphrase is not None or b"ENCRYPTED" in data:
            key = load_private_key(data, passphrase if passphrase is not None else ask(path))
        else:
            key = None
    except ConfigError as error:
        raise ConfigError(error.message, file=path) from None
    if key is not None:
        data, kind = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()), "any"
    yield Item("key", path, "load-key", {"type": kind, "data": data})


def _shared(name: str, section: Section) -> Iterator[Item]:
    kind = next((one for one in _SHARED if name.startswith(one)), "")
    values = {key: value.text for key, value in section.values.items() if value.text is not None}
    if kind:
        if "secret" not in values:
            raise error_at(section, "secret", "a secret needs this key")
        owners = [text for key, text in values.items() if key.startswith("id")]
        data = _secret(section, values["secret"])
        yield Item("secret", name, "load-shared", {"id": name, "type": kind.upper(), "data": data, "owners": owners})
    elif name.startswith("token"):
        yield Item("token", name, "load-token", dict(values))


# -- authorities, pools, connections


def _authorities(top: Section, files: CredentialFiles) -> Iterator[Item]:
    for name, section in _part(top, "authorities").items():
        message: dict[str, Any] = {}
        for key, value in section.values.items():
            if value.text is None:
                continue
            if key == "cacert":
                message[key] = _file(section, key, value.text, "x509ca", files)
            elif key == "file":
                message["cacert"] = _file(section, key, value.text, "x509ca", files)
            else:
                message[key] = split_list(value.text) if key in _LISTS else value.text
        yield Item("authority", name, "load-authority", {name: message})


def _file(section: Section, key: str, text: str, directory: str, files: CredentialFiles) -> bytes:
    """What a file that a key names holds, or the key itself does."""
    try:
        data = inline(text)
        return read_file(files.path(directory, text))[0] if data is None else data
    except ConfigError as error:
        raise error_at(section, key, error.message) from None


def _pools(top: Section) -> Iterator[Item]:
    for name, section in _part(top, "pools").items():
        values = {key: value.text for key, value in section.values.items() if value.text is not None}
        message = {key: text if key == "addrs" else split_list(text) for key, text in values.items()}
        yield Item("pool", name, "load-pool", {name: message})


def _connections(top: Section, files: CredentialFiles) -> Iterator[Item]:
    for name, section in _part(top, "connections").items():
        yield Item("connection", name, "load-conn", {name: _message(section, files)})


def _message(section: Section, files: CredentialFiles) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in section.values.items():
        if value.text is None:
            continue
        if key in _FILES:
            found[key] = [_file(section, key, word, _FILES[key], files) for word in split_list(value.text)]
        else:
            found[key] = split_list(value.text) if key in _LISTS else value.text
    return found | {name: _message(one, files) for name, one in section.sections.items()}
