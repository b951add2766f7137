"""Keys of swanctl.conf that mean something we do not do: an error that says why, unless set to what does no harm."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from ipsec.config.grammar import Section
from ipsec.config.values import error_at, read_keys
from ipsec.errors import ConfigError

KERNEL = "this needs the kernel's XFRM, ESP is done in user space here"
DEVICE = f"{KERNEL}: leave it out, ipsecd's device takes the place of a VTI or XFRM interface"
IKEV1 = "IKEv1 is not supported"
XAUTH = f"XAuth is of IKEv1, and {IKEV1}: users authenticate with EAP"
TOKEN = "keys and certificates on smart cards and TPMs are not supported, use a file"
MEDIATION = "mediation between peers behind NATs is not supported"

Parser = Callable[[str], object]


def refused(why: str, parse: Parser = str, *harmless: object) -> Parser:
    """A parser that takes only values which ``parse`` turns into one of ``harmless``: the default, mostly."""

    def check(text: str) -> None:
        if parse(text) not in harmless:
            raise ConfigError(why)

    return check


def read_supported(
    section: Section, parsers: Mapping[str, Parser], refusals: Mapping[str, Parser], sections: Collection[str] = ()
) -> dict[str, Any]:
    """``read_keys`` of a section that may also have ``refusals``, set to harmless values; those are left out."""
    values = read_keys(section, {**parsers, **refusals}, sections)
    return {name: value for name, value in values.items() if name not in refusals}


def numbered(section: Section, prefix: str) -> list[str]:
    """Names of the sections that begin with ``prefix``: ``cert``, ``cert-a``, ``cert2``."""
    return [name for name in section.sections if name.startswith(prefix)]


def warning_at(section: Section, name: str, message: str) -> str:
    """A warning about a key, with the place where it was written."""
    return str(error_at(section, name, message))
