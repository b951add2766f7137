"""``secrets { }``: preshared keys, passwords of EAP, and the passphrases of private key files.

    ike<suffix>     { secret = ...; id<suffix> = ... }      a preshared key and whose it is; without id, everybody's
    ppk<suffix>     { secret = ...; id<suffix> = ... }      a postquantum preshared key (RFC 8784) and what it is called
    eap<suffix>     { secret = ...; id<suffix> = ... }      a password and whose it is; xauth<suffix> is the same
    ntlm<suffix>    { secret = ...; id<suffix> = ... }      its NT hash instead (RFC 2759 section 8.3), 0x or 0s
    private<suffix>, rsa<suffix>, ecdsa<suffix>, pkcs8<suffix>, pkcs12<suffix>
                    { file = ...; secret = ... }            a file of the directory of that name, and its passphrase

As with certificates, ``file`` may be what the file would hold, ``0x`` hexadecimal or ``0s`` Base64.
A preshared key or a password is text as it is, ``0x`` and hexadecimal, or ``0s`` and Base64; a passphrase is always
text as it is. None is in an error message or a ``repr``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from ipsec.config.directories import KEY_DIRECTORIES
from ipsec.config.grammar import Section, shown
from ipsec.config.refused import TOKEN, numbered
from ipsec.config.values import error_at, parse_secret, read_keys, suggestion
from ipsec.crypto.identity import IdentityPattern, parse_pattern
from ipsec.errors import ConfigError
from ipsec.ike.credentials import PPK_ID_MAX, EapSecret, Ppk, SharedSecret

T = TypeVar("T")

_REFUSED = {"token": TOKEN}
_EAP = ("eap", "xauth", "ntlm")
#: what errors call a secret
_TITLES = {"ike": "preshared key", "ppk": "postquantum preshared key", "ntlm": "NT hash"}
NT_HASH_LEN = 16
"octets (RFC 2759 section 8.3)"
_SHORT = 8
"octets: a shorter preshared key is worth a warning"
_SHORT_PPK = 32
"the same of a postquantum one (RFC 8784 section 6)"


@dataclass(frozen=True)
class Passphrase:
    """The passphrase of one key file."""

    directory: str
    "private, rsa, ecdsa, pkcs8 or pkcs12"
    file: str = field(repr=False)
    "name in that directory, absolute path, or the key itself as 0x hexadecimal or 0s Base64"
    secret: bytes | None = field(repr=False)
    section: Section = field(repr=False, compare=False)


@dataclass(frozen=True)
class Secrets:
    """What ``secrets { }`` says."""

    shared: tuple[SharedSecret, ...] = ()
    ppks: tuple[Ppk, ...] = ()
    eap: tuple[EapSecret, ...] = ()
    passphrases: tuple[Passphrase, ...] = ()


def parse_shared_secret(text: str) -> bytes:
    """The octets of a secret in any of its three forms."""
    if text[:2].lower() in ("0x", "0s"):
        return parse_secret(text)
    return text.encode()


def parse_ppk_id(text: str) -> IdentityPattern:
    """A PPK_ID, or a pattern for some, as identities are written. ConfigError.

    Of a single one its octets count; a pattern is held against what they are as text.
    """
    pattern = parse_pattern(text)
    if pattern.of_names:
        raise ConfigError("a PPK_ID is octets, and no distinguished name that patterns could match")
    if pattern.exact is not None and not 0 < len(pattern.exact.data) <= PPK_ID_MAX:
        raise ConfigError(f"{len(pattern.exact.data)} octets, a PPK_ID has 1 to {PPK_ID_MAX}")
    return pattern


def make_ppk(secret: bytes, ids: Sequence[IdentityPattern], name: str) -> Ppk:
    """%any among the ids is as if there were none."""
    return Ppk(secret, () if any(one.any for one in ids) else tuple(ids), name)


def make_eap_secret(secret: bytes, ids: Sequence[IdentityPattern], name: str, *, is_nt_hash: bool) -> EapSecret:
    """ConfigError if it is no NT hash but is to be one."""
    if is_nt_hash and len(secret) != NT_HASH_LEN:
        raise ConfigError(f"{len(secret)} octets, an NT hash has {NT_HASH_LEN}: write it as 0x and hexadecimal")
    return EapSecret(secret, tuple(ids), name, is_nt_hash)


def read_secrets(top: Section) -> Secrets:
    """The section; ConfigError names file, line and key."""
    read_keys(top, {}, sections=top.sections)
    shared: list[SharedSecret] = []
    ppks: list[Ppk] = []
    eap: list[EapSecret] = []
    passphrases: list[Passphrase] = []
    for name, section in top.sections.items():
        known = ("ike", "ppk", *_EAP, *KEY_DIRECTORIES)
        kind = next((kind for kind in (*_REFUSED, *known) if name.startswith(kind)), None)
        if kind is None:
            raise error_at(top, name, f"not one of {', '.join(known)}{suggestion(shown(name), known)}")
        if kind in _REFUSED:
            raise error_at(top, name, _REFUSED[kind])
        if kind == "ike":
            shared.append(SharedSecret(*_read_key(section, parse_pattern, kind), name))
        elif kind == "ppk":
            ppks.append(make_ppk(*_read_key(section, parse_ppk_id, kind), name))
        elif kind in _EAP:
            eap.append(_read_eap_secret(section, kind, name))
        else:
            passphrases.append(_read_passphrase(section, kind))
    return Secrets(tuple(shared), tuple(ppks), tuple(eap), tuple(passphrases))


def secret_warnings(top: Section) -> list[str]:
    """Preshared keys that are easily guessed."""
    found = []
    # RFC 7296 section 2.15: whoever plays the responder can try all keys offline
    why = f"a preshared key shorter than {_SHORT} octets: who answers for the peer once can find it by trying"
    found += [str(error_at(section, "secret", why)) for section in _shorter(top, "ike", _SHORT)]
    why = f"a postquantum preshared key shorter than {_SHORT_PPK} octets is no match for a quantum computer"
    found += [str(error_at(section, "secret", why)) for section in _shorter(top, "ppk", _SHORT_PPK)]
    return found


def _shorter(top: Section, kind: str, octets: int) -> list[Section]:
    sections = [top.sections[name] for name in numbered(top, kind)]
    return [one for one in sections if len(parse_shared_secret(one.values["secret"].text or "")) < octets]


def _read_eap_secret(section: Section, kind: str, name: str) -> EapSecret:
    secret, ids = _read_key(section, parse_pattern, kind)
    try:
        return make_eap_secret(secret, ids, name, is_nt_hash=kind == "ntlm")
    except ConfigError as error:
        raise error_at(section, "secret", error.message) from None


def _read_key(section: Section, parse_id: Callable[[str], T], kind: str) -> tuple[bytes, tuple[T, ...]]:
    """Secret and identities."""
    names = [key for key in section.values if key.startswith("id")]
    # 16 characters would pass for a hash, and be a password that nobody has
    parse = parse_secret if kind == "ntlm" else parse_shared_secret
    values = read_keys(section, {"secret": parse, **dict.fromkeys(names, parse_id)})
    title = _TITLES.get(kind, "password")
    if "secret" not in values:
        raise error_at(section, "secret", f"{'an' if title[0] == 'N' else 'a'} {title} needs this key")
    if not values["secret"]:
        raise error_at(section, "secret", f"the {title} is empty")
    return values["secret"], tuple(values[name] for name in names if name in values)


def _read_passphrase(section: Section, kind: str) -> Passphrase:
    values = read_keys(section, {"file": str, "secret": str.encode})
    if not values.get("file"):
        raise error_at(section, "file", f"a passphrase needs this key, the name of a file in {kind}/")
    return Passphrase(kind, values["file"], values.get("secret"), section)
