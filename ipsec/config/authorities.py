"""``authorities { }``: trust anchors, and where the status of what they issued can be asked.

Each has its certificate as ``cacert``, a file in x509ca/, or as ``file``, and lists ``crl_uris`` and ``ocsp_uris``,
which add to the addresses that certificates themselves name. What is in x509ca/ is a trust anchor without this.
"""

from __future__ import annotations

import re

from ipsec.config.directories import AUTHORITIES, CredentialFiles
from ipsec.config.grammar import Section
from ipsec.config.refused import TOKEN, Parser, read_supported, refused
from ipsec.config.values import error_at, list_of, quoted, read_keys
from ipsec.errors import ConfigError
from ipsec.ike.credentials import Authority

_SCHEMES = {"crl_uris": ("http", "https", "file"), "ocsp_uris": ("http", "https")}


def _parse_uri(schemes: tuple[str, ...]) -> Parser:
    def parse(text: str) -> str:
        match = re.fullmatch(r"([A-Za-z][A-Za-z0-9+.-]*):(//[^\s/]*)(/\S*)?", text)
        if match is None:
            raise ConfigError(f"{quoted(text)} is not a URI such as http://host/path")
        if match[1].lower() not in schemes:
            raise ConfigError(f"{quoted(text)}: only {', '.join(schemes)} can be fetched")
        if match[1].lower() == "file" and (match[2] != "//" or not match[3]):
            raise ConfigError(f"{quoted(text)} is not a file URI such as file:///etc/crl.pem")
        if match[1].lower() != "file" and match[2] == "//":
            raise ConfigError(f"{quoted(text)} names no host")
        return text

    return list_of(parse)


_KEYS: dict[str, Parser] = {
    "cacert": str,
    "file": str,
    **{key: _parse_uri(schemes) for key, schemes in _SCHEMES.items()},
}

_REFUSED: dict[str, Parser] = {
    **dict.fromkeys(("handle", "slot", "module"), refused(TOKEN)),
    "cert_uri_base": refused("certificates are not fetched by hash and URL (RFC 7296 section 3.6), they are sent"),
}


def read_authorities(top: Section, files: CredentialFiles) -> tuple[Authority, ...]:
    """Every authority of ``authorities { }``. ConfigError names file, line and key."""
    read_keys(top, {}, sections=top.sections)
    found: dict[object, str] = {}
    authorities = []
    for name, section in top.sections.items():
        authority, key = _read_authority(section, name, files)
        other = found.setdefault(authority.certificate, section.path)
        if other != section.path:
            raise error_at(section, key, f"{other} has this certificate already")
        authorities.append(authority)
    return tuple(authorities)


def _read_authority(section: Section, name: str, files: CredentialFiles) -> tuple[Authority, str]:
    """The authority, and the key that has its certificate."""
    values = read_supported(section, _KEYS, _REFUSED)
    places = [key for key in ("cacert", "file") if key in values]
    if not places:
        raise error_at(section, "cacert", "an authority needs this key, or file")
    if len(places) > 1:
        raise error_at(section, "file", "cacert is there too, remove one of them")
    key = places[0]
    try:
        certificate = files.named_certificates(AUTHORITIES, values[key])[0]
    except ConfigError as error:
        raise error_at(section, key, error.message) from None
    if not certificate.is_ca:
        raise error_at(section, key, f"{certificate.subject} is not the certificate of an authority")
    return Authority(certificate, values.get("crl_uris", ()), values.get("ocsp_uris", ()), name), key
