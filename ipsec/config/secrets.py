"""``secrets { }``: preshared keys, and the passphrases of private key files.

    ike<suffix>     { secret = ...; id<suffix> = ... }      a preshared key and whose it is; without id, everybody's
    private<suffix>, rsa<suffix>, ecdsa<suffix>, pkcs8<suffix>, pkcs12<suffix>
                    { file = ...; secret = ... }            a file of the directory of that name, and its passphrase

As with certificates, ``file`` may be what the file would hold, ``0x`` hexadecimal or ``0s`` Base64.
A secret is text as it is, ``0x`` and hexadecimal, or ``0s`` and Base64. It is in no error message and no ``repr``.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ipsec.config.directories import KEY_DIRECTORIES
from ipsec.config.grammar import Section, shown
from ipsec.config.refused import EAP, PPK, TOKEN, numbered
from ipsec.config.values import error_at, parse_secret, read_keys, suggestion
from ipsec.crypto.identity import parse_pattern
from ipsec.ike.credentials import SharedSecret

_REFUSED = {"eap": EAP, "xauth": EAP, "ntlm": EAP, "ppk": PPK, "token": TOKEN}
_SHORT = 8
"octets: a shorter preshared key is worth a warning"


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
    passphrases: tuple[Passphrase, ...] = ()


def parse_shared_secret(text: str) -> bytes:
    """The octets of a secret in any of its three forms."""
    if text[:2].lower() in ("0x", "0s"):
        return parse_secret(text)
    return text.encode()


def read_secrets(top: Section) -> Secrets:
    """The section; ConfigError names file, line and key."""
    read_keys(top, {}, sections=top.sections)
    shared: list[SharedSecret] = []
    passphrases: list[Passphrase] = []
    for name, section in top.sections.items():
        kind = next((kind for kind in (*_REFUSED, "ike", *KEY_DIRECTORIES) if name.startswith(kind)), None)
        if kind is None:
            known = ("ike", *KEY_DIRECTORIES)
            raise error_at(top, name, f"not one of {', '.join(known)}{suggestion(shown(name), known)}")
        if kind in _REFUSED:
            raise error_at(top, name, _REFUSED[kind])
        if kind == "ike":
            shared.append(_read_shared(section, name))
        else:
            passphrases.append(_read_passphrase(section, kind))
    return Secrets(tuple(shared), tuple(passphrases))


def secret_warnings(top: Section) -> list[str]:
    """Preshared keys that are easily guessed."""
    found = []
    for name in numbered(top, "ike"):
        section = top.sections[name]
        text = section.values["secret"].text or ""
        if len(parse_shared_secret(text)) < _SHORT:
            # RFC 7296 section 2.15: whoever plays the responder can try all keys offline
            why = f"shorter than {_SHORT} octets: who answers for the peer once can find it by trying"
            found.append(str(error_at(section, "secret", f"a preshared key {why}")))
    return found


def _read_shared(section: Section, label: str) -> SharedSecret:
    names = [key for key in section.values if key.startswith("id")]
    values = read_keys(section, {"secret": parse_shared_secret, **dict.fromkeys(names, parse_pattern)})
    if "secret" not in values:
        raise error_at(section, "secret", "a preshared key needs this key")
    if not values["secret"]:
        raise error_at(section, "secret", "the preshared key is empty")
    return SharedSecret(values["secret"], tuple(values[name] for name in names if name in values), label)


def _read_passphrase(section: Section, kind: str) -> Passphrase:
    values = read_keys(section, {"file": str, "secret": parse_shared_secret})
    if not values.get("file"):
        raise error_at(section, "file", f"a passphrase needs this key, the name of a file in {kind}/")
    return Passphrase(kind, values["file"], values.get("secret"), section)
