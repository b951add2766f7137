"""``connections { }``: who may talk to whom, how they prove it, and the children that carry traffic.

Keys are named and mean as in swanctl.conf. Times that are not set follow from those that are: ``rekey_time`` is 4 h,
or off if there is a ``reauth_time``; ``over_time`` is 10 % of the longer of the two, and ``rand_time`` equals it but is
at most half of the shorter.
"""

from __future__ import annotations

import re
from ipaddress import ip_network
from typing import Any

from ipsec.config.children import IF_ID, check_weak, read_child, read_proposals
from ipsec.config.directories import AUTHORITIES, CERTIFICATES, CredentialFiles, confirms
from ipsec.config.eap import check_eap, parse_eap, parse_eap_id
from ipsec.config.grammar import Section
from ipsec.config.refused import IKEV1, MEDIATION, TOKEN, XAUTH, Parser, numbered, read_supported, refused
from ipsec.config.rounds import check_rounds, parts_of
from ipsec.config.secrets import parse_ppk_id
from ipsec.config.values import (
    IpAddress,
    error_at,
    list_of,
    number_in,
    one_of,
    one_of_words,
    parse_address,
    parse_bool,
    parse_number,
    parse_time,
    quoted,
    read_keys,
    suggestion,
)
from ipsec.crypto.auth import Constraints, parse_constraints
from ipsec.crypto.identity import Identity, parse_identity, parse_pattern
from ipsec.crypto.revocation import Revocation
from ipsec.crypto.x509 import Certificate, key_ids
from ipsec.errors import ConfigError
from ipsec.ike.config import (
    RADIUS,
    Action,
    AuthClass,
    Childless,
    Connection,
    Fragmentation,
    LocalAuth,
    RemoteAuth,
    SendCert,
    Unique,
)
from ipsec.ike.eap.names import is_eap
from ipsec.wire.iana import Protocol

DEFAULT_REKEY_TIME = 4 * 3600
ANY_HOST = ("%any", "%any4", "%any6", "0.0.0.0", "::", "0.0.0.0/0", "::/0")

_NAME = re.compile(r"(?=.{1,253}\.?$)[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,62})(?:\.[A-Za-z0-9_][A-Za-z0-9_-]{0,62})*\.?")


def parse_host(text: str) -> str:
    """An entry of an address list: %any, address, network, range or name; given back as written."""
    if text.lower() in ANY_HOST:
        return text.lower()
    if "%" in text:
        hint = ", and %defaultroute is %any here" if text == "%defaultroute" else ""
        raise ConfigError(f"{quoted(text)} is neither %any nor an address without zone{hint}")
    low, dash, high = text.partition("-")
    try:
        if "/" in text:
            ip_network(text, strict=False)
            return text
    except ValueError:
        raise ConfigError(f"{quoted(text)} is not a network such as 192.0.2.0/24") from None
    if dash and _numeric(low.strip()):
        start, end = parse_address(low.strip()), parse_address(high.strip())
        if start.version != end.version or int(start) > int(end):
            raise ConfigError(f"the range {quoted(text)} is empty or mixes families")
        return text
    if _numeric(text):
        parse_address(text)
    elif not _NAME.fullmatch(text):
        raise ConfigError(f"{quoted(text)} is not an address, network, range or host name")
    return text


def single_host(text: str) -> bool:
    """Whether an entry of an address list is one address or a name: somebody to begin with."""
    return text not in ANY_HOST and "/" not in text and not ("-" in text and _numeric(text.partition("-")[0].strip()))


def _numeric(text: str) -> bool:
    """Whether text can only be an address: it has a colon, or its last label is a number (RFC 1123 section 2.1)."""
    return ":" in text or text.rstrip(".").rpartition(".")[2].isdigit()


def _parse_version(text: str) -> int:
    version = number_in(0, 2)(text)
    if version == 1:
        raise ConfigError(IKEV1)
    return version


def _parse_dscp(text: str) -> int:
    if not re.fullmatch(r"[01]{1,6}", text):
        raise ConfigError(f"{quoted(text)} is not up to six binary digits such as 101110")
    return int(text, 2)


def _parse_vip(text: str) -> IpAddress:
    """An address to ask for; any of a family is 0.0.0.0 or ::, or %any and %any6 as in charon."""
    return parse_address({"%any": "0.0.0.0", "%any4": "0.0.0.0", "%any6": "::"}.get(text, text))


def _parse_fragmentation(text: str) -> Fragmentation:
    if text.lower() == "force":
        raise ConfigError(f"'force' is for IKEv1: {IKEV1}")
    return one_of_words({member.value: member for member in Fragmentation})(text)


def _parse_pool(text: str) -> str:
    if text == "dhcp":
        raise ConfigError("addresses from dhcp are not supported, only from the section pools and from radius")
    return text


_KEYS: dict[str, Parser] = {
    "version": _parse_version,
    "local_addrs": list_of(parse_host),
    "remote_addrs": list_of(parse_host),
    "local_port": number_in(1, 65535),
    "remote_port": number_in(1, 65535),
    "proposals": lambda text: read_proposals(text, Protocol.IKE),
    "vips": list_of(_parse_vip),
    "dscp": _parse_dscp,
    "encap": parse_bool,
    "mobike": parse_bool,
    **dict.fromkeys(("dpd_delay", "dpd_timeout"), parse_time),
    "fragmentation": _parse_fragmentation,
    "childless": one_of(Childless),
    "send_certreq": parse_bool,
    "send_cert": one_of(SendCert),
    "keyingtries": number_in(0, 0xFFFFFFFF),
    "unique": one_of_words({member.value: member for member in Unique}),
    **dict.fromkeys(("reauth_time", "rekey_time", "over_time", "rand_time"), parse_time),
    "pools": list_of(_parse_pool),
    "ppk_id": parse_ppk_id,
    "ppk_required": parse_bool,
}

_REFUSED: dict[str, Parser] = {
    "aggressive": refused(f"Aggressive Mode: {IKEV1}", parse_bool, False),
    "pull": refused(f"Mode Config: {IKEV1}", parse_bool, True),
    "ocsp": refused(
        "OCSP inside IKEv2 (RFC 4806) is not supported",
        one_of_words({"reply": 0, "never": 0, "request": 1, "both": 1}),
        0,
    ),
    "if_id_in": IF_ID,
    "if_id_out": IF_ID,
    "mediation": refused(MEDIATION, parse_bool, False),
    "mediated_by": refused(MEDIATION),
    "mediation_peer": refused(MEDIATION),
}

_LOCAL_KEYS: dict[str, Parser] = {
    "round": parse_number,
    "certs": list_of(str),
    "pubkeys": list_of(str),
    "auth": str,
    "id": lambda text: None if text == "%any" else parse_identity(text),
    "eap_id": parse_eap_id,
    "aaa_id": parse_pattern,
}

_LOCAL_REFUSED: dict[str, Parser] = {
    "xauth_id": refused(XAUTH),
}


def _parse_policy(text: str) -> str:
    if not re.fullmatch(r"[0-2](\.(0|[1-9][0-9]{0,38}))+", text):
        raise ConfigError(f"{quoted(text)} is not an object identifier such as 1.3.6.1.4.1")
    return text


_REMOTE_KEYS: dict[str, Parser] = {
    "round": parse_number,
    "id": parse_pattern,
    "cert_policy": list_of(_parse_policy),
    "certs": list_of(str),
    "cacerts": list_of(str),
    # %any: some authority has to stand above the peer, so that a certificate that is loaded is not enough
    "ca_id": parse_pattern,
    "pubkeys": list_of(str),
    "revocation": one_of(Revocation),
    "auth": str,
    # %any: it is asked who it is, and may be anybody
    "eap_id": parse_pattern,
    "groups": list_of(str),
}

_REMOTE_REFUSED: dict[str, Parser] = {}


def read_connection(section: Section, name: str, files: CredentialFiles, *, allow_weak: bool = False) -> Connection:
    """The connection that a section describes, by itself sound. ConfigError names file, line and key."""
    sides = (*numbered(section, "local"), *numbered(section, "remote"))
    values = read_supported(section, _KEYS, _REFUSED, ("children", *sides))
    for nothing in ("version", "dpd_timeout"):
        values.pop(nothing, None)
    values["local"], *more = (_read_local(part, files) for part in parts_of(section, "local"))
    values["remote"], *further = (_read_remote(part, files) for part in parts_of(section, "remote"))
    values |= {"local_rounds": tuple(more), "remote_rounds": tuple(further)}
    values.setdefault("proposals", read_proposals("default", Protocol.IKE))
    check_weak(section, "proposals", values["proposals"], allow_weak)
    values |= _read_times(section, values)
    values["dpd_delay"] = float(values.get("dpd_delay", 0))
    parent = section.sections.get("children")
    if parent is not None:
        read_keys(parent, {}, sections=parent.sections)
        values["children"] = tuple(
            read_child(child, label, allow_weak=allow_weak) for label, child in parent.sections.items()
        )
    connection = Connection(name=name, **values)
    _check(section, connection)
    return connection


def _read_times(section: Section, values: dict[str, Any]) -> dict[str, float]:
    """The four times of an IKE_SA, each from the file or from the others."""
    rekey, reauth = values.get("rekey_time"), values.get("reauth_time")
    if rekey is None:
        rekey = 0 if reauth else DEFAULT_REKEY_TIME
    times = [time for time in (rekey, reauth or 0) if time]
    over, rand = values.get("over_time"), values.get("rand_time")
    if over is None:
        over = max(times, default=0) // 10
    if rand is None:
        rand = min(over, min(times, default=0) // 2)
    elif times and rand >= min(times):
        key = "rekey_time" if rekey == min(times) else "reauth_time"
        raise error_at(section, "rand_time", f"{rand} is not less than {key}, which is {min(times)}")
    found = {"rekey_time": rekey, "reauth_time": reauth or 0, "over_time": over, "rand_time": rand}
    return {key: float(value) for key, value in found.items()}


def _check(section: Section, connection: Connection) -> None:
    """Refuse what contradicts itself."""
    if not connection.children and connection.childless is Childless.NEVER:
        raise error_at(section, "childless", "'never' needs children, there are none")
    for index, address in enumerate(connection.vips):
        if not address.is_unspecified and address in connection.vips[:index]:
            raise error_at(section, "vips", f"{address} is there twice")
    for index, pool in enumerate(connection.pools):
        if pool in connection.pools[:index]:
            raise error_at(section, "pools", f"{quoted(pool)} is there twice")
    if RADIUS in connection.pools and not any(one.eap_radius for one in (connection.remote, *connection.remote_rounds)):
        raise error_at(section, "pools", "radius is what RADIUS servers grant, and remote.auth is not eap-radius")
    if not any(single_host(entry) for entry in connection.remote_addrs):
        for child in connection.children:
            if not child.shunt and child.start_action is not Action.NONE:
                place = section.sections["children"].sections[child.name]
                why = "remote_addrs has no single address or name, so there is nobody to begin with"
                raise error_at(place, "start_action", why)
    check_rounds(section, connection)
    check_eap(section, connection)


def _read_auth(section: Section, values: dict[str, Any], *, remote: bool) -> dict[str, Any]:
    """Method, constraints and what EAP needs out of ``auth``."""
    text = values.pop("auth", "pubkey")
    if is_eap(text):
        try:
            return parse_eap(text, remote=remote)
        except ConfigError as error:
            raise error_at(section, "auth", error.message) from None
    if text.lower().startswith("xauth"):
        raise error_at(section, "auth", XAUTH)
    if text.lower() == "psk":
        return {"method": AuthClass.PSK, "constraints": Constraints()}
    try:
        return {"method": AuthClass.PUBKEY, "constraints": parse_constraints(text)}
    except ConfigError as error:
        raise error_at(section, "auth", error.message + suggestion(text, ("psk", "pubkey"))) from None


def _read_certificates(
    section: Section, values: dict[str, Any], files: CredentialFiles, key: str
) -> list[tuple[Certificate, ...]]:
    """What the files of ``certs`` and ``cert<suffix> { }`` have, or the same with cacert."""
    directory = AUTHORITIES if key == "cacerts" else CERTIFICATES
    places = [(section, key, text) for text in values.pop(key, ())]
    for name in numbered(section, key.removesuffix("s")):
        child = section.sections[name]
        token = dict.fromkeys(("handle", "slot", "module"), refused(TOKEN))
        file = read_supported(child, {"file": str}, token).get("file")
        if file is None:
            raise error_at(child, "file", "a certificate needs this key")
        places.append((child, "file", file))
    found = []
    for place, name, text in places:
        try:
            found.append(files.named_certificates(directory, text))
        except ConfigError as error:
            raise error_at(place, name, error.message) from None
    return found


def _firsts(several: list[tuple[Certificate, ...]]) -> tuple[Certificate, ...]:
    return tuple(dict.fromkeys(certificates[0] for certificates in several))


def _read_public_keys(section: Section, values: dict[str, Any], files: CredentialFiles) -> tuple[bytes, ...]:
    try:
        return tuple(files.named_public_key(text) for text in values.pop("pubkeys", ()))
    except ConfigError as error:
        raise error_at(section, "pubkeys", error.message) from None


def _no_certificates(section: Section, keys: tuple[str, ...]) -> None:
    """Refuse keys and sections that mean nothing with auth = psk."""
    for name in (*section.values, *section.sections):
        if name in keys or name.startswith(("cert", "cacert")):
            raise error_at(section, name, "this is for auth = pubkey, here it is psk")


def _read_local(section: Section, files: CredentialFiles) -> LocalAuth:
    values = read_supported(section, _LOCAL_KEYS, _LOCAL_REFUSED, numbered(section, "cert"))
    values.pop("round", None)
    values |= _read_auth(section, values, remote=False)
    if values["method"] is AuthClass.PSK:
        _no_certificates(section, ("pubkeys",))
    several = _read_certificates(section, values, files, "certs")
    for certificates in several:
        files.own.update(dict.fromkeys(certificates))
    values["certs"] = _firsts(several)
    values["pubkeys"] = _read_public_keys(section, values, files)
    if values["certs"] and values["pubkeys"]:
        raise error_at(section, "pubkeys", "there are certs too, remove one of them")
    identity: Identity | None = values.get("id")
    if values["certs"]:
        # %any stands for our address, or whom the peer wants, as in charon
        values.setdefault("id", values["certs"][0].subject)
        # with EAP they are for another identity and another server, which may not mind: a warning
        ours = values["method"] is AuthClass.PUBKEY
        if ours and identity and not any(confirms(cert, identity) for cert in values["certs"]):
            names = ", ".join(str(cert.subject) for cert in values["certs"])
            raise error_at(section, "id", f"{identity} is not in the certificate {names}: subject or subjectAltName")
    if values["pubkeys"] and not identity:
        # as charon has it, whose peers may know us by nothing else: a raw key has no subject
        values["id"] = key_ids(values["pubkeys"][0])[0]
    return LocalAuth(**values)


def _read_remote(section: Section, files: CredentialFiles) -> RemoteAuth:
    sections = [*numbered(section, "cert"), *numbered(section, "cacert")]
    values = read_supported(section, _REMOTE_KEYS, _REMOTE_REFUSED, sections)
    values.pop("round", None)
    values |= _read_auth(section, values, remote=True)
    if values["method"] is AuthClass.PSK:
        _no_certificates(section, ("pubkeys", "ca_id", "revocation"))
    values["certs"] = _firsts(_read_certificates(section, values, files, "certs"))
    values["cacerts"] = _firsts(_read_certificates(section, values, files, "cacerts"))
    values["pubkeys"] = _read_public_keys(section, values, files)
    if values.get("groups") and not values.get("eap_radius"):
        why = "groups of attribute certificates are not supported, only those that RADIUS servers grant (eap-radius)"
        raise error_at(section, "groups", why)
    return RemoteAuth(**values)
