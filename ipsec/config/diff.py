"""What differs between two configurations, key by key, without showing a secret."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import Field, dataclass, fields, is_dataclass
from datetime import timedelta
from enum import Enum, Flag, StrEnum
from itertools import zip_longest
from typing import Any

from ipsec.config.schema import Config
from ipsec.crypto.revocation import Crl
from ipsec.crypto.x509 import Certificate
from ipsec.ike.config import Connection
from ipsec.ike.credentials import PrivateKey

#: characters of a value that are shown
SHOWN_MAX = 300
SECRET = "(secret)"
#: what the file calls a field
_KEYS = {"method": "auth"}
#: fields that are sections of their own in the file, by what their names begin with there
_ROUNDS = {"local_rounds": "local", "remote_rounds": "remote"}


class Kind(StrEnum):
    """What became of something."""

    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"


class Effect(StrEnum):
    """What a reload does with it."""

    RESTART = "restart"
    "nothing: it takes a restart of the daemon"
    NEW = "new"
    "it is loaded, and its start action done"
    CLOSED = "closed"
    "its IKE_SAs are closed"
    RECONNECTED = "reconnected"
    "its IKE_SAs are closed, and its start action is done anew"
    USED = "used"
    "used from then on; what is up stays up"


@dataclass(frozen=True)
class Change:
    """One key, or a whole section, that differs."""

    key: str
    kind: Kind
    before: str
    "empty for what was not there"
    after: str
    effect: Effect


def changes(old: Config, new: Config) -> list[Change]:
    """All differences, in the order of ``new``."""
    found = [*_section("ipsecd", old.settings, new.settings, Effect.RESTART)]
    found += _named("sas", old.sas, new.sas, dict.fromkeys(Kind, Effect.RESTART))
    effects = {Kind.ADDED: Effect.NEW, Kind.REMOVED: Effect.CLOSED, Kind.CHANGED: Effect.RECONNECTED}
    found += _named("connections", old.connections, new.connections, effects)
    used = dict.fromkeys(Kind, Effect.USED)
    found += _named("pools", old.pools, new.pools, used)
    kinds = dict.fromkeys(("secrets", "ppks", "eap_secrets"), "secrets") | {"authorities": "authorities"}
    for what, section in kinds.items():
        before, after = ([one for one in getattr(c.credentials, what) if one.name] for c in (old, new))
        found += _named(section, before, after, used)
    things = {"private_keys": "private key", "certificates": "certificate", "crls": "CRL"}
    for what, title in (things | {"ocsp_signers": "OCSP signer"}).items():
        found += _things(title, getattr(old.credentials, what), getattr(new.credentials, what))
    nameless = [[a.certificate for a in c.credentials.authorities if not a.name] for c in (old, new)]
    found += _things("authority", *nameless)
    return found


def is_renewed(old: Connection, new: Connection) -> bool:
    """Whether nothing but our own certificates differs: for the peer we are who we were, and what is up stays up."""
    return old != new and old.children == new.children and old.is_alike(new)


def _named(section: str, old: Sequence[Any], new: Sequence[Any], effects: dict[Kind, Effect]) -> Iterator[Change]:
    """Entries with a name."""
    before, after = ({one.name: one for one in entries} for entries in (old, new))
    for name, one in after.items():
        key = f"{section}.{name}"
        if name not in before:
            yield Change(key, Kind.ADDED, "", "", effects[Kind.ADDED])
        elif before[name] != one:
            renewed = isinstance(one, Connection) and is_renewed(before[name], one)
            effect = Effect.USED if renewed else effects[Kind.CHANGED]
            # a difference that no key shows, of which there should be none, is one nevertheless
            inner = list(_section(key, before[name], one, effect))
            yield from inner or [Change(key, Kind.CHANGED, "", "", effect)]
    for name in before:
        if name not in after:
            yield Change(f"{section}.{name}", Kind.REMOVED, "", "", effects[Kind.REMOVED])


def _things(title: str, old: Sequence[Any], new: Sequence[Any]) -> Iterator[Change]:
    """Things without names, which are or are not there."""
    before, after = ({_same(one): one for one in things} for things in (old, new))
    for same, one in after.items():
        if same not in before:
            yield Change(title, Kind.ADDED, "", _shown(one), Effect.USED)
    for same, one in before.items():
        if same not in after:
            yield Change(title, Kind.REMOVED, _shown(one), "", Effect.USED)


def _same(thing: PrivateKey | Certificate | Crl) -> bytes:
    """By what it is known again."""
    return thing.spki if isinstance(thing, PrivateKey) else thing.der


def _section(path: str, old: Any, new: Any, effect: Effect) -> Iterator[Change]:
    """The fields of two dataclass instances of one type."""
    for field in fields(new):
        before, after = getattr(old, field.name), getattr(new, field.name)
        if before == after:
            continue
        key = f"{path}.{_KEYS.get(field.name, field.name)}"
        if is_dataclass(after) and is_dataclass(before) and not _has_text(after):
            yield from _section(key, before, after, effect)
        elif field.name in _ROUNDS:
            yield from _rounds(f"{path}.{_ROUNDS[field.name]}", before, after, effect)
        elif _has_names(before) and _has_names(after):
            yield from _named(key, before, after, dict.fromkeys(Kind, effect))
        else:
            yield Change(key, Kind.CHANGED, *_values(field, before, after), effect)


def _rounds(path: str, old: Sequence[Any], new: Sequence[Any], effect: Effect) -> Iterator[Change]:
    """Rounds of authentication from the second on, by the names that vici has for them."""
    for place, (before, after) in enumerate(zip_longest(old, new), 2):
        if before is None or after is None:
            yield Change(f"{path}-{place}", Kind.ADDED if before is None else Kind.REMOVED, "", "", effect)
        else:
            yield from _section(f"{path}-{place}", before, after, effect)


def _values(field: Field[Any], before: Any, after: Any) -> tuple[str, str]:
    if not field.repr:
        return SECRET if before else "", SECRET if after else ""
    return _shown(before), _shown(after)


def _has_names(value: Any) -> bool:
    return isinstance(value, tuple) and all(is_dataclass(one) and hasattr(one, "name") for one in value)


def _has_text(value: Any) -> bool:
    """Whether it says itself what it is in one line."""
    return "__str__" in vars(type(value))


def _shown(value: Any) -> str:
    text = _text(value)
    return text if len(text) <= SHOWN_MAX else f"{text[:SHOWN_MAX]}..."


def _text(value: Any) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case Flag():
            return "|".join(one.name.lower() for one in value if one.name) or "none"
        case Enum():
            return str(value.value) if isinstance(value.value, str) else value.name.lower()
        case Certificate():
            return value.summary
        case Crl():
            return f"of {value.issuer}"
        case PrivateKey():
            return value.name or type(value.key).__name__
        case timedelta():
            return f"{value.total_seconds():g}s"
        case float():
            return f"{value:g}"
        case bytes():
            return f"{len(value)} octets"
        case tuple() | list() | frozenset():
            return ", ".join(map(_text, value))
    if is_dataclass(value) and not _has_text(value):
        return _dataclass_text(value)
    return str(value)


def _dataclass_text(value: Any) -> str:
    shown = [one for one in fields(value) if one.repr]
    return " ".join(f"{one.name}={_text(getattr(value, one.name))}" for one in shown if getattr(value, one.name))
