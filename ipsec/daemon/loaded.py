"""What is loaded: connections, credentials, authorities and pools, from swanctl.conf and by vici, in one table.

At start the table is what swanctl.conf says, as if ``swanctl --load-all`` had been run then. From there on vici
changes it: what has the name (or key id) of something that is there replaces it, wherever that came from, and
``clear-creds`` and ``unload-...`` reach everything. Reading the file again (SIGHUP) puts back what it says, takes away
what it no longer says, and leaves alone what vici has loaded under other names.

Sections that come by vici are read by the same code as those of the file.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from copy import copy
from dataclasses import replace
from typing import Any, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.x509 import SubjectKeyIdentifier

from ipsec.config import Config
from ipsec.config.authorities import read_authorities
from ipsec.config.checks import Checker
from ipsec.config.connections import read_connection
from ipsec.config.directories import CredentialFiles
from ipsec.config.grammar import Section, Value
from ipsec.config.pools import read_pool
from ipsec.config.secrets import make_eap_secret, make_ppk, parse_ppk_id
from ipsec.config.values import join_list
from ipsec.crypto.identity import parse_pattern
from ipsec.crypto.keyfiles import load_private_key, load_public_key
from ipsec.crypto.revocation import Crl, keep_newest, parse_crl
from ipsec.crypto.x509 import Certificate, load_certificates
from ipsec.errors import ConfigError, ParseError
from ipsec.ike.config import Connection, PoolConfig
from ipsec.ike.credentials import Authority, Credentials, EapSecret, Ppk, PrivateKey, SharedSecret

#: keys whose values are files' contents when they come by vici
_BLOBS = frozenset({"certs", "cacerts", "pubkeys", "cacert"})
_KEY_TYPES: dict[str, type] = {
    "rsa": RSAPrivateKey,
    "ecdsa": EllipticCurvePrivateKey,
    "ed25519": Ed25519PrivateKey,
    "ed448": Ed448PrivateKey,
}


#: see ``Loaded``
Refuse = Callable[[Connection], None]


class _Entry(NamedTuple):
    """A connection as it was read, and where from."""

    connection: Connection
    section: Section | None
    "None: from the file, complete"
    certificates: tuple[Certificate, ...]
    "what it brought with it"


def _secrets(credentials: Credentials) -> list[SharedSecret | Ppk]:
    """Of all kinds; their names are of one space, as in charon."""
    return [*credentials.secrets, *credentials.ppks, *credentials.eap_secrets]


class Loaded:
    """See the module's text. ``config`` is the whole; methods raise ConfigError and change nothing then."""

    def __init__(self, file: Config, refuse: Refuse = lambda _: None) -> None:
        """``refuse``: ConfigError for a connection that comes later and asks for what is not to be had here."""
        self._file = file
        self._refuse = refuse
        self._connections: dict[str, _Entry] = {}
        self._pools: dict[str, PoolConfig] = {}
        self._secrets: dict[str, SharedSecret | Ppk] = {}
        self._nameless: list[SharedSecret | Ppk] = []
        self._keys: dict[str, PrivateKey] = {}
        self._certificates: dict[Certificate, None] = {}
        self._public_keys: dict[bytes, None] = {}
        self._authorities: dict[str, Authority] = {}
        self._anchors: dict[Certificate, Authority] = {}
        self._crls: dict[Hashable, Crl] = {}
        self._ocsp_signers: dict[Certificate, None] = {}
        self._checked: tuple[Credentials, Checker] | None = None
        "out of what is above; None when that has changed"
        self._complete: dict[str, Connection] = {}
        self._add_file(file)

    # -- the whole

    def config(self) -> Config:
        """Everything, as a configuration. Connections that lack a key or a pool are in it nevertheless."""
        # in the order of the table, which decides between equals
        connections = tuple(self._completed(name, entry) for name, entry in self._connections.items())
        credentials, pools = self._checks()[0], tuple(self._pools.values())
        return replace(self._file, connections=connections, credentials=credentials, pools=pools)

    def connection(self, name: str) -> Connection | None:
        """One connection, as ``config`` has it."""
        entry = self._connections.get(name)
        return self._completed(name, entry) if entry is not None else None

    def _checks(self) -> tuple[Credentials, Checker]:
        if self._checked is None:
            own = [one for entry in self._connections.values() for one in entry.certificates]
            secrets = (*self._secrets.values(), *self._nameless)
            eap = [one for one in secrets if isinstance(one, EapSecret)]
            credentials = Credentials(
                # the same secret for both is two
                secrets=(one for one in secrets if isinstance(one, SharedSecret) and not isinstance(one, EapSecret)),
                eap_secrets=eap,
                ppks=(one for one in secrets if isinstance(one, Ppk)),
                private_keys=self._keys.values(),
                certificates=(*self._certificates, *own),
                authorities=(*self._authorities.values(), *self._anchors.values()),
                crls=self._crls.values(),
                ocsp_signers=self._ocsp_signers,
            )
            radius = bool(self._file.settings.radius.servers)
            self._checked = credentials, Checker(CredentialFiles(None), credentials, self._pools, radius=radius)
        return self._checked

    def _completed(self, name: str, entry: _Entry) -> Connection:
        """charon takes a connection that lacks something as well: it may be loaded next."""
        if entry.section is None:
            return entry.connection
        found = self._complete.get(name)
        if found is None:
            found = self._complete[name] = self._with_what_is_loaded(entry.section, entry.connection)
        return found

    def _with_what_is_loaded(self, section: Section, connection: Connection) -> Connection:
        try:
            return self._checks()[1].complete(section, connection)
        except ConfigError:
            return connection

    def _credentials_changed(self) -> None:
        self._checked = None
        self._complete = {}

    def read_again(self, file: Config) -> None:
        """The configuration file has been read anew."""
        self._remove_file(self._file)
        self._file = file
        self._add_file(file)

    def _remove_file(self, file: Config) -> None:
        """Take away what came from a file, and is still as it was there."""
        for name in {connection.name for connection in file.connections}:
            entry = self._connections.get(name)
            if entry is not None and entry.section is None:
                del self._connections[name]
                self._complete.pop(name, None)
        for pool in file.pools:
            if self._pools.get(pool.name) == pool:
                del self._pools[pool.name]
        credentials = file.credentials
        for secret in _secrets(credentials):
            if self._secrets.get(secret.name) == secret:
                del self._secrets[secret.name]
        for key in credentials.private_keys:
            self._keys.pop(key_id(key), None)
        for certificate in credentials.certificates:
            self._certificates.pop(certificate, None)
        for certificate in credentials.ocsp_signers:
            self._ocsp_signers.pop(certificate, None)
        for authority in credentials.authorities:
            self._anchors.pop(authority.certificate, None)
            if self._authorities.get(authority.name) == authority:
                del self._authorities[authority.name]
        for crl in credentials.crls:
            if self._crls.get(crl.kind) is crl:
                del self._crls[crl.kind]

    def after(self, file: Config) -> Config:
        """What ``config`` would be once ``read_again`` had read this; nothing changes."""
        copied = copy(self)
        for name, table in vars(self).items():
            if isinstance(table, dict | list):
                setattr(copied, name, table.copy())
        copied.read_again(file)
        return copied.config()

    def _add_file(self, file: Config) -> None:
        for connection in file.connections:
            self._connections[connection.name] = _Entry(connection, None, ())
        self._pools |= {pool.name: pool for pool in file.pools}
        credentials = file.credentials
        self._secrets |= {secret.name: secret for secret in _secrets(credentials)}
        self._keys |= {key_id(key): key for key in credentials.private_keys}
        self._certificates |= dict.fromkeys(credentials.certificates)
        self._ocsp_signers |= dict.fromkeys(credentials.ocsp_signers)
        self._authorities |= {authority.name: authority for authority in credentials.authorities if authority.name}
        self._anchors |= {one.certificate: one for one in credentials.authorities if not one.name}
        for crl in credentials.crls:
            keep_newest(self._crls, crl)
        self._credentials_changed()

    # -- connections

    def load_connection(self, name: str, message: Mapping[str, Any]) -> None:
        """Read a connection and put it in place of one of that name."""
        files = CredentialFiles(None)
        section = section_of(f"connections.{name}", message)
        connection = read_connection(section, name, files, allow_weak=self._file.settings.allow_weak)
        try:
            self._refuse(connection)
        except ConfigError:
            # what is there already asks for no more
            if self.connection(name) != self._with_what_is_loaded(section, connection):
                raise
        before = self._connections.get(name)
        self._connections[name] = _Entry(connection, section, tuple(files.own))
        self._complete.pop(name, None)
        if files.own or (before is not None and before.certificates):
            self._credentials_changed()

    def warnings(self, name: str) -> list[str]:
        """What a connection that came by vici lacks, or has that will hardly do what is meant."""
        entry = self._connections[name]
        if entry.section is None:
            return []
        _, checker = self._checks()
        try:
            connection = checker.complete(entry.section, entry.connection)
        except ConfigError as error:
            return [f"{error.key}: {error.message}"]
        return [warning.removeprefix("vici:0: ") for warning in checker.warnings(entry.section, connection)]

    def unload_connection(self, name: str) -> bool:
        """Whether there was one."""
        entry = self._connections.pop(name, None)
        self._complete.pop(name, None)
        if entry is not None and entry.certificates:
            self._credentials_changed()
        return entry is not None

    # -- credentials

    def load_certificate(self, data: bytes, flag: str) -> None:
        """Certificates in PEM or DER."""
        try:
            found = load_certificates(data)
        except ParseError as error:
            raise ConfigError(f"parsing X509 certificate failed: {error}") from None
        if flag == "CA" and not found[0].is_ca:
            why = f"{found[0].subject} is not the certificate of an authority"
            raise ConfigError(f"ca certificate lacks CA basic constraint, rejected: {why}")
        for certificate in found:
            # behind the first there may be others, of which charon takes no notice
            if flag == "CA" and certificate.is_ca:
                self._anchors.setdefault(certificate, Authority(certificate))
            elif flag == "OCSP":
                self._ocsp_signers[certificate] = None
            elif flag == "NONE":
                self._certificates[certificate] = None
        self._credentials_changed()

    def load_crl(self, data: bytes) -> None:
        """A revocation list in PEM or DER."""
        try:
            crl = parse_crl(data)
        except ParseError as error:
            raise ConfigError(f"parsing X509_CRL certificate failed: {error}") from None
        keep_newest(self._crls, crl)
        self._credentials_changed()

    def load_public_key(self, data: bytes) -> None:
        """A raw public key in PEM or DER. Nobody is authenticated with it unless a connection names it."""
        try:
            self._public_keys[load_public_key(data)] = None
        except ConfigError as error:
            raise ConfigError(f"parsing PUBKEY certificate failed: {error.message}") from None

    def public_keys(self) -> list[bytes]:
        """All of them."""
        return list(self._public_keys)

    def load_key(self, kind: str, data: bytes) -> str:
        """A private key; its id."""
        key = load_private_key(data)
        if kind != "any" and not isinstance(key, _KEY_TYPES[kind]):
            raise ConfigError(f"parsing {kind.upper()} private key failed: it is of another type")
        private = PrivateKey(key)
        self._keys[key_id(private)] = private
        self._credentials_changed()
        return key_id(private)

    def unload_key(self, name: str) -> bool:
        """Whether there was one."""
        found = self._keys.pop(name.lower(), None) is not None
        self._credentials_changed()
        return found

    def key_ids(self) -> list[str]:
        """All of them."""
        return list(self._keys)

    def load_shared(self, name: str, secret: bytes, owners: list[str], kind: str) -> None:
        """A preshared key (``kind`` IKE), a password (EAP) or its NT hash (NTLM) and whose it is, or a postquantum
        preshared key (PPK) and what it is called."""
        if not secret:
            raise ConfigError("the secret is empty")
        owners = [owner for owner in owners if owner != "%any"]
        shared: SharedSecret | Ppk
        if kind == "PPK":
            shared = make_ppk(secret, list(map(parse_ppk_id, owners)), name)
        elif kind == "IKE":
            shared = SharedSecret(secret, tuple(map(parse_pattern, owners)), name)
        else:
            shared = make_eap_secret(secret, list(map(parse_pattern, owners)), name, is_nt_hash=kind == "NTLM")
        if name:
            # the last that was loaded comes first, see ``find_psks``
            self._secrets.pop(name, None)
            self._secrets[name] = shared
        elif shared not in self._nameless:
            self._nameless.append(shared)
        self._credentials_changed()

    def unload_shared(self, name: str) -> bool:
        """Whether there was one."""
        found = self._secrets.pop(name, None) is not None
        self._credentials_changed()
        return found

    def shared_names(self) -> list[str]:
        """All of them."""
        return [name for name in self._secrets if name]

    def clear_credentials(self) -> None:
        """Forget all but the authorities that have a name."""
        for table in (self._secrets, self._nameless, self._keys, self._certificates, self._anchors, self._crls):
            table.clear()
        self._public_keys.clear()
        self._ocsp_signers.clear()
        self._credentials_changed()

    def load_authority(self, name: str, message: Mapping[str, Any]) -> None:
        """A trust anchor with its URIs."""
        top = Section("authorities", "vici", 0)
        top.sections[name] = section_of(f"authorities.{name}", message)
        (self._authorities[name],) = read_authorities(top, CredentialFiles(None))
        self._credentials_changed()

    def unload_authority(self, name: str) -> bool:
        """Whether there was one."""
        found = self._authorities.pop(name, None) is not None
        self._credentials_changed()
        return found

    # -- pools

    def load_pool(self, name: str, message: Mapping[str, Any], *, online: int = 0) -> str:
        """Addresses to assign; whether that was ``added``, ``updated`` or ``replaced``. ``online`` are in use."""
        pool = read_pool(section_of(f"pools.{name}", message), name)
        before = self._pools.get(name)
        moved = before is not None and (before.first, before.last) != (pool.first, pool.last)
        if moved and online:
            raise ConfigError(f"vici pool {name} has {online} online leases, unable to replace")
        self._pools[name] = pool
        self._complete = {name: one for name, one in self._complete.items() if not one.pools}
        return "added" if before is None else "replaced" if moved else "updated"

    def overlapping(self, name: str) -> list[str]:
        """Other pools that have some of a pool's addresses, as while ``swanctl --load-pools`` renames one."""
        pool = self._pools[name]
        return [
            other.name
            for other in self._pools.values()
            if other.first.version == pool.first.version
            and other is not pool
            and (other.first <= pool.last and pool.first <= other.last)  # type: ignore[operator]
        ]

    def unload_pool(self, name: str) -> bool:
        """Whether there was one."""
        return self._pools.pop(name, None) is not None


def key_id(key: PrivateKey) -> str:
    """SHA-1 of the public key's octets in hexadecimal, as charon names private keys."""
    return SubjectKeyIdentifier.from_public_key(key.key.public_key()).digest.hex()


def section_of(path: str, message: Mapping[str, Any]) -> Section:
    """A message as the section of a configuration file that it was, or could have been, made of.

    A list becomes ``a, b`` or ``'a,b', c``; what a file held becomes ``0x...``.
    """
    section = Section(path, "vici", 0)
    for name, value in message.items():
        if isinstance(value, Mapping):
            section.sections[name] = section_of(section.child_path(name), value)
            continue
        items = value if isinstance(value, list) else [value]
        if not items:
            # programs send lists that they have nothing for
            continue
        texts = []
        for item in items:
            try:
                text = item.decode()
            except UnicodeDecodeError:
                text = ""
            inline = text[:2].lower() in ("0x", "0s")
            if name in _BLOBS and not inline:
                text = f"0x{item.hex()}"
            elif not text and item:
                raise ConfigError("the value is not UTF-8", key=section.child_path(name))
            texts.append(text)
        text = join_list(texts) if isinstance(value, list) else texts[0]
        # as in a file, nothing unsets the key
        section.values[name] = Value(text or None, "vici", 0)
    return section
