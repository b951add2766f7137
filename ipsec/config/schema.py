"""A whole configuration: ``load(path)`` reads swanctl.conf into frozen values, or says what is wrong where.

The sections are ``connections``, ``secrets``, ``pools`` and ``authorities``, as strongSwan has them, and our own
``ipsecd`` and ``sas``. Other top-level sections exist only to be inherited from. The directories of certificates and
keys are next to the file, or in SWANCTL_DIR.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from ipsec.config import DEFAULT_FILE
from ipsec.config.authorities import read_authorities
from ipsec.config.checks import Checker
from ipsec.config.connections import read_connection
from ipsec.config.credentials import load_credentials
from ipsec.config.directories import CredentialFiles, base_directory
from ipsec.config.environment import Environment
from ipsec.config.grammar import Section, parse_text
from ipsec.config.pools import read_pools
from ipsec.config.sas import ManualSa, read_sa
from ipsec.config.secrets import read_secrets, secret_warnings
from ipsec.config.settings import DaemonSettings, radius_servers, radius_warnings, read_settings
from ipsec.config.sources import Look, recorded
from ipsec.config.values import error_at, is_mounted, read_keys
from ipsec.errors import ConfigError
from ipsec.esp.sa import Policy
from ipsec.ike.config import Connection, PoolConfig
from ipsec.ike.credentials import Credentials
from ipsec.text import plural

T = TypeVar("T")

_IKE_SECTIONS = ("connections", "secrets", "pools", "authorities")
_SECRET_KEYS = ("key_in", "key_out", "integ_key_in", "integ_key_out")


@dataclass(frozen=True)
class Config:
    """Everything a configuration says."""

    file: str
    "the file that was read, others may have been included; or the environment, without one"
    settings: DaemonSettings
    "section ipsecd"
    sas: tuple[ManualSa, ...]
    "section sas, in order of appearance"
    warnings: tuple[str, ...] = ()
    "what is allowed but questionable, with file and line; to be logged at start"
    overridden: tuple[str, ...] = ()
    "keys that the file sets and variables replace, with file and line; to be logged at start"
    connections: tuple[Connection, ...] = ()
    "section connections, in order of appearance; one that did not change equals what it was"
    credentials: Credentials = field(default_factory=Credentials)
    "sections secrets and authorities, and the directories of certificates and keys"
    pools: tuple[PoolConfig, ...] = ()
    "section pools"
    path: str | None = None
    "the file to read again; None is the default one, if it is there"
    environment: Environment = field(default_factory=Environment)
    "what variables added"
    blank: bool = False
    "there is nothing in it, not even a section"
    sources: Mapping[str, Look] = field(default_factory=dict, compare=False)
    "files and directories that were read, and what they looked like then"

    def policies(self) -> tuple[Policy, ...]:
        """All SPD entries, in the order in which they are matched; equal ones only once."""
        entries = [
            entry for sa in self.sas for policy in sa.policies for entry in policy.policies(sa.reqid, icmp=sa.icmp)
        ]
        return tuple(sorted(dict.fromkeys(entries), key=lambda entry: entry.priority))

    def contents(self) -> str:
        """What it has, in words."""
        found = [plural(len(self.connections), "connection")] if self.connections or not self.sas else []
        return ", ".join([*found, *([plural(len(self.sas), "manual SA pair")] if self.sas else [])])

    def needs_raw_esp(self) -> bool:
        """Whether an SA uses IP protocol 50."""
        return any(sa.encap is None for sa in self.sas)


def load(path: str | None = DEFAULT_FILE, environment: Environment | None = None) -> Config:
    """The configuration in a file and what it includes, with what environment variables add to it.

    None is the default file, which need not be there if variables describe a connection. ConfigError names file, line
    and key, or the variable.
    """
    environment = environment or Environment()
    try:
        overridden: list[str] = []
        with recorded() as sources:
            root = environment.parse(path, overridden)
            config = _read(root, base_directory(path or DEFAULT_FILE), environment)
        return replace(config, path=path, environment=environment, sources=sources, overridden=tuple(overridden))
    except ConfigError as error:
        raise environment.explain(error) from None


def load_again(config: Config) -> Config:
    """The configuration as it is now where this one came from.

    ConfigError also where nothing is left of it: whoever writes a file empties it first, and that must not close
    every tunnel.
    """
    again = load(config.path, config.environment)
    if again.blank and not config.blank:
        why = "there is nothing in it any more; if it is being written, reload when it is; if no connection is wanted,"
        raise ConfigError(f"{why} write an empty section: connections {{ }}", file=again.file)
    return again


def load_text(text: str, file: str = "<text>", directory: str | None = None) -> Config:
    """The same for a string; ``directory`` has the directories of certificates and keys, None if there are none."""
    return _read(parse_text(text, file), directory, Environment())


def _read(root: Section, directory: str | None, environment: Environment) -> Config:
    notes = environment.add_connection(root)
    templates = [name for name, section in root.sections.items() if section.referenced]
    read_keys(root, {}, sections=["ipsecd", "sas", *_IKE_SECTIONS, *templates])
    empty = Section("", root.file, 1)
    ipsecd = root.sections.get("ipsecd", empty)
    settings = read_settings(ipsecd)
    top = root.sections.get("sas", empty)
    read_keys(top, {}, sections=top.sections)
    sas = _number(_each(top, lambda section, name: read_sa(section, name, settings)))
    warnings = [*notes, *_check_together(sas, top), *_warn(sas, top), *_warn_readable(top, _SECRET_KEYS)]
    warnings += [*radius_warnings(ipsecd), *_warn_readable(radius_servers(ipsecd), ("secret",))]
    config = Config(root.file, settings, tuple(sas), blank=not root.sections)
    config = _read_ike(root, config, CredentialFiles(directory), warnings)
    return replace(config, warnings=tuple(warnings))


def _read_ike(root: Section, config: Config, files: CredentialFiles, warnings: list[str]) -> Config:
    """``config`` with what IKEv2 needs; adds to ``warnings``."""
    empty = Section("", root.file, 1)
    connections, secrets, pools, authorities = (root.sections.get(name, empty) for name in _IKE_SECTIONS)
    read_keys(connections, {}, sections=connections.sections)
    assigned = read_pools(pools)
    allow_weak = config.settings.allow_weak
    # first all that names a file, so that the credentials have what was read
    found = _each(
        connections, lambda section, name: (section, read_connection(section, name, files, allow_weak=allow_weak))
    )
    credentials, notes = load_credentials(files, read_secrets(secrets), read_authorities(authorities, files))
    radius = bool(config.settings.radius.servers)
    checker = Checker(files, credentials, [pool.name for pool in assigned], radius=radius)
    by_name = {connection.name: connection for _, connection in found}
    done = _each(connections, lambda section, name: checker.complete(section, by_name[name]))
    for (section, _), connection in zip(found, done, strict=True):
        warnings += checker.warnings(section, connection)
    warnings += [*notes, *secret_warnings(secrets), *_warn_readable(secrets, ("secret",))]
    return replace(config, connections=tuple(done), credentials=credentials, pools=assigned)


def _each(parent: Section, read: Callable[[Section, str], T]) -> list[T]:
    """What each section below has. ConfigError for all that are wrong: whoever has hundreds mends them at once."""
    found, wrong = [], []
    for name, section in parent.sections.items():
        try:
            found.append(read(section, name))
        except ConfigError as error:
            wrong.append(error)
    if wrong:
        raise ConfigError.together(wrong)
    return found


def _number(sas: list[ManualSa]) -> list[ManualSa]:
    """Give each SA without a reqid one that nobody else has."""
    taken = {sa.reqid for sa in sas}
    reqid = 0
    numbered = []
    for sa in sas:
        if not sa.reqid:
            reqid += 1
            while reqid in taken:
                reqid += 1
            sa = replace(sa, reqid=reqid)
        numbered.append(sa)
    return numbered


def _place(sa: ManualSa, top: Section, key: str) -> str:
    """``sas.<name>.key_in``, or the form with _file that was used."""
    section = top.sections[sa.name]
    return key if key in section.values or f"{key}_file" not in section.values else f"{key}_file"


def _check_together(sas: list[ManualSa], top: Section) -> Iterator[str]:
    """Refuse what no two SAs may have in common; yields warnings."""
    spis: dict[tuple[object, ...], str] = {}
    counters: dict[bytes, str] = {}
    ciphers: dict[bytes, str] = {}
    for sa in sas:
        section = top.sections[sa.name]
        # RFC 4301 section 4.1: the SPI alone finds an inbound SA, an outbound one is told by SPI and destination
        for key, identity in (("spi_in", (sa.spi_in,)), ("spi_out", (sa.spi_out, sa.remote))):
            other = spis.setdefault((key, *identity), section.child_path(key))
            if other != section.child_path(key):
                raise error_at(section, key, f"{identity[0]:#010x} is taken by {other}")
        if sa.proposal.suite.salt_len:
            # RFC 4106 section 10, RFC 3686 section 7: the IV counts, so two SAs with one key repeat each other's IVs
            for key, secret in (("key_in", sa.key_in), ("key_out", sa.key_out)):
                place = section.child_path(_place(sa, top, key))
                other = counters.setdefault(secret, place)
                if other != place:
                    why = f"the same key as {other}: {sa.proposal.suite} would use every IV twice, which breaks it"
                    raise error_at(section, _place(sa, top, key), why)
            continue
        if (sa.key_in, sa.integ_key_in, sa.spi_in) == (sa.key_out, sa.integ_key_out, sa.spi_out):
            place = section.child_path(_place(sa, top, "key_in"))
            why = f"the same key as {place} and the same SPI: our own packets, sent back, would be accepted"
            raise error_at(section, _place(sa, top, "key_out"), why)
        for key, secret in (("key_in", sa.key_in), ("key_out", sa.key_out)):
            place = section.child_path(_place(sa, top, key))
            other = ciphers.setdefault(secret, place) if secret else place
            if other != place:
                # SP 800-38A appendix C: an IV is a number that was enciphered, and who has seen it once can foretell it
                why = f"the same cipher key as {other}: the IVs of one tell those of the other, use two"
                yield _warning(section, _place(sa, top, key), why)
        if not sa.key_in and sa.integ_key_in == sa.integ_key_out:
            yield _warning(section, _place(sa, top, "key_out"), "the same key in both directions, use two")


def _warn(sas: list[ManualSa], top: Section) -> Iterator[str]:
    for sa in sas:
        section = top.sections[sa.name]
        if not sa.replay_window:
            yield _warning(section, "replay_window", "replay protection is off: old packets will be accepted again")
            if sa.proposal.esn:
                # RFC 4303 section 3.4.3: without the window the upper half cannot be kept in step
                yield _warning(section, "replay_window", "esn without a window loses step after heavy loss")


def _warn_readable(top: Section, keys: Sequence[str]) -> Iterator[str]:
    """One warning for each file that shows keys to everyone."""
    seen: set[str] = set()
    for section in top.sections.values():
        for key in keys:
            value = section.values.get(key)
            if value is None or value.text is None or value.file in seen:
                continue
            seen.add(value.file)
            try:
                mode = os.stat(value.file).st_mode
            except (OSError, ValueError):
                continue
            if mode & 0o007 and not is_mounted(value.file):
                yield _warning(section, key, f"others can read the keys in this file, run: chmod o= {value.file}")


def _warning(section: Section, key: str, message: str) -> str:
    error: ConfigError = error_at(section, key, message)
    return str(error)
