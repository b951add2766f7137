"""EAP in ``connections { }``: the methods that ``auth`` names, and what does not go together with them.

    eap                       any method that makes a key (RFC 3748 section 7.10); the server proposes one
    eap-<method>              that one, by name or number; a vendor after the number can only be 0, the IETF
    eap-dynamic, eap-radius   remote only: the same as eap; whatever the RADIUS servers choose
    eap-tls:<constraints>     what keys and signatures of certificates in TLS may be, written as without EAP
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from ipsec.config.directories import confirms
from ipsec.config.grammar import Section
from ipsec.config.refused import warning_at
from ipsec.config.rounds import first_part, parts_of
from ipsec.config.values import error_at, quoted, suggestion
from ipsec.crypto.auth import ANY_SCHEME, parse_constraints
from ipsec.crypto.identity import Identity, parse_identity
from ipsec.errors import ConfigError
from ipsec.ike.config import AuthClass, Connection, LocalAuth, RemoteAuth
from ipsec.ike.credentials import Credentials
from ipsec.ike.eap.names import EAP_METHODS, PASSWORD_METHODS
from ipsec.ike.eap.tls import tls_available
from ipsec.wire.iana import EapType

_REMOTE_METHODS = ("dynamic", "radius")
_CERTIFICATE_KEYS = ("cert", "cacert", "ca_id", "pubkeys", "revocation")
"what these begin is for certificates"


def parse_eap(text: str, *, remote: bool) -> dict[str, Any]:
    """The fields of ``LocalAuth`` or ``RemoteAuth`` that ``auth`` says, without those that are as by default."""
    word, _, constraints = text.lower().partition(":")
    known = [f"eap-{name}" for name in (*EAP_METHODS, *(_REMOTE_METHODS if remote else ()))]
    prefix, dash, name = word.partition("-")
    fields: dict[str, Any] = {
        "method": AuthClass.EAP,
        "constraints": parse_constraints(constraints) if constraints else ANY_SCHEME,
    }
    if prefix == "eap" and (not dash or (remote and name in _REMOTE_METHODS)):
        return fields | ({"eap_radius": True} if name == "radius" else {})
    kind = EAP_METHODS.get(name) or _by_number(name)
    if prefix != "eap" or kind is None:
        why = "for remote only" if name in _REMOTE_METHODS else "not an EAP method that is supported"
        raise ConfigError(f"{quoted(word)} is {why}, these are: eap, {', '.join(known)}{suggestion(word, known)}")
    return fields | {"eap_type": int(kind)}


def _by_number(name: str) -> EapType | None:
    """A method of ours as ``<number>`` or ``<number>-<vendor>``."""
    match = re.fullmatch(r"([1-9][0-9]{0,2})(?:-0)?", name)
    return next((kind for kind in EAP_METHODS.values() if match and kind == int(match[1])), None)


def parse_eap_id(text: str) -> Identity | None:
    """Who we are for EAP. %any is whoever we are for IKE, as in charon."""
    return None if text in ("", "%any") else parse_identity(text)


def is_alone(connection: Connection) -> bool:
    """Whether EAP is all that shows who the responder is, whichever end that is (RFC 5998)."""
    return connection.local.method is connection.remote.method is AuthClass.EAP


def check_eap(section: Section, connection: Connection) -> None:
    """Refuse what contradicts itself. ConfigError."""
    if is_alone(connection):
        for side, auth in (("local", connection.local), ("remote", connection.remote)):
            if auth.eap_type in PASSWORD_METHODS:
                name = EapType(auth.eap_type).name
                why = f"EAP alone shows who the one that answers is, which {name} does not do safely"
                better = "eap-tls does, or that end has auth = pubkey"
                raise error_at(first_part(section, side), "auth", f"{why} (RFC 5998 section 4): {better}")


# -- warnings


def eap_warnings(section: Section, connection: Connection, credentials: Credentials, *, radius: bool) -> Iterator[str]:
    """What is allowed, as in charon, but will hardly do what is meant. ``radius``: there are RADIUS servers."""
    ours = list(zip(parts_of(section, "local"), connection.all_local, strict=True))
    theirs = list(zip(parts_of(section, "remote"), connection.all_remote, strict=True))
    every: list[tuple[Section, LocalAuth | RemoteAuth]] = [*ours, *theirs]
    for part, auth in every:
        unused = ("eap_id", "aaa_id") if auth.method is not AuthClass.EAP else ()
        for key in unused:
            if key in part.values:
                yield warning_at(part, key, "not used, auth is not eap")
    users = [(part, auth) for part, auth in ours if auth.method is AuthClass.EAP]
    peers = [(part, auth) for part, auth in theirs if auth.method is AuthClass.EAP]
    for part, mine in users:
        yield from _method_warnings(part, mine, radius=radius)
        yield from _local_warnings(part, mine, credentials, alone=is_alone(connection) and mine is connection.local)
    for part, peer in peers:
        yield from _method_warnings(part, peer, radius=radius)
        yield from _remote_warnings(part, peer, credentials, alone=is_alone(connection) and peer is connection.remote)
    posing = [ours[0][0]] if peers and connection.local.method is AuthClass.PSK else []
    posing += [theirs[0][0]] if users and connection.remote.method is AuthClass.PSK else []
    for part in posing:
        # RFC 7296 section 2.16: the responder MUST use public key signatures
        why = "who has this preshared key, as each user does, can pose as the gateway: use auth = pubkey"
        yield warning_at(part, "auth", why)
    remote = connection.remote
    if users and remote.id.any and remote.method is not AuthClass.PSK and not (remote.certs or remote.pubkeys):
        # RFC 7296 section 2.16, CVE-2015-4171
        why = "whoever has a certificate that is trusted, as users may have one, can pose as the gateway"
        yield warning_at(theirs[0][0], "id", f"is not set: {why}")


def uses_tls(auth: LocalAuth | RemoteAuth) -> bool:
    """Whether EAP-TLS is the method for certain."""
    return auth.method is AuthClass.EAP and auth.eap_type == EapType.TLS


def _method_warnings(part: Section, auth: LocalAuth | RemoteAuth, *, radius: bool) -> Iterator[str]:
    """What a method lacks here, and keys for certificates that nobody looks at."""
    missing = tls_available() if uses_tls(auth) else ""
    if missing:
        yield warning_at(part, "auth", missing)
    if isinstance(auth, RemoteAuth) and auth.eap_radius and not radius:
        yield warning_at(part, "auth", "ipsecd.radius.servers has no RADIUS server: nobody gets in")
    yield from _without_certificates(part, auth)


def _without_certificates(part: Section, auth: LocalAuth | RemoteAuth) -> Iterator[str]:
    """Keys for certificates that nobody looks at."""
    radius = isinstance(auth, RemoteAuth) and auth.eap_radius
    if radius or auth.eap_type in PASSWORD_METHODS:
        which = "RADIUS servers judge the peer" if radius else f"{EapType(auth.eap_type).name} is about passwords"
        for key in (*part.values, *part.sections):
            if key.startswith(_CERTIFICATE_KEYS):
                yield warning_at(part, key, f"not used, {which}")
        if auth.constraints != ANY_SCHEME:
            yield warning_at(part, "auth", f"what follows the colon is not used, {which}")
    elif "pubkeys" in part.values:
        yield warning_at(part, "pubkeys", "not used, EAP-TLS takes certificates alone")


def _local_warnings(part: Section, local: LocalAuth, credentials: Credentials, *, alone: bool) -> Iterator[str]:
    user = local.eap_id or local.id
    whose = f" for {user}" if user is not None else ""
    kind, certs = local.eap_type, () if local.eap_type in PASSWORD_METHODS else local.certs
    if kind in PASSWORD_METHODS or not (kind or certs or alone):
        yield from _password_warnings(part, kind, user, credentials)
    if (kind == EapType.TLS or alone) and not certs:
        why = f"there is no certificate with a private key{whose}: we cannot authenticate ourselves"
        yield warning_at(part, "certs", why)
    for certificate in certs:
        if credentials.private_key_for(certificate) is None:
            yield warning_at(part, "certs", f"that of {certificate.subject} has no private key")
        elif user is not None and not confirms(certificate, user):
            why = f"that of {certificate.subject} does not name {user}, servers may refuse it"
            yield warning_at(part, "certs", why)


def _remote_warnings(part: Section, remote: RemoteAuth, credentials: Credentials, *, alone: bool) -> Iterator[str]:
    if remote.eap_type in PASSWORD_METHODS or not (remote.eap_type or remote.eap_radius or _anchors(remote) or alone):
        pattern = remote.id if remote.eap_id is None else remote.eap_id
        yield from _password_warnings(part, remote.eap_type, pattern.exact, credentials)


def _anchors(remote: RemoteAuth) -> bool:
    return bool(remote.certs or remote.cacerts)


def _password_warnings(part: Section, kind: int, user: Identity | None, credentials: Credentials) -> Iterator[str]:
    """No password to show or to compare with."""
    hashes = kind not in PASSWORD_METHODS or kind == EapType.MSCHAPV2
    if user is None:
        found = any(hashes or not one.is_nt_hash for one in credentials.eap_secrets)
    else:
        found = credentials.find_eap(user, nt_hashes=hashes) is not None
    if not found:
        whose = f" for {user}" if user is not None else ""
        other = credentials.eap_secrets if user is None else credentials.find_eap(user)
        but = f", and of an NT hash {EapType(kind).name} cannot make use" if other else ""
        yield warning_at(part, "auth", f"the section secrets has no eap secret{whose}{but}")
