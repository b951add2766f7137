"""Identities (RFC 7296 section 3.5): the value, its text in swanctl.conf, and the patterns that a peer must match.

    10.0.0.1  2001:db8::1          addresses
    moon.example.org               FQDN; ``@moon`` forces it
    carol@example.org              e-mail; ``@@moon`` forces it
    C=CH, O=x, CN=y                distinguished name
    @#abcd01                       key id, hexadecimal
    fqdn:text  keyid:#hex  {11}:x  a type forced by a prefix
    xmppaddr:carol@example.org     an address of XMPP, as a certificate would have it (RFC 6120 section 13.7.1.4)

Patterns know besides ``%any``, ``*.example.org``, ``*@example.org``, ``CN=*``, addresses in ``10.0.0.0/8`` or
``10.0.0.1-10.0.0.9``, and regular expressions, ``fqdn:^...$``.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import AddressValueError, IPv4Address, IPv6Address, ip_address, ip_network

from ipsec.crypto import der
from ipsec.crypto.names import (
    KeyRdn,
    grouped,
    looks_like_name,
    name_key,
    name_text,
    parse_name_pattern,
    parse_name_text,
    reads_as,
)
from ipsec.crypto.regex import Regex, RegexError
from ipsec.errors import ConfigError, ParseError
from ipsec.text import printable
from ipsec.wire.iana import IdType, name_of

IpAddress = IPv4Address | IPv6Address

MATCH_NONE = 0
MATCH_ANY = 1
MATCH_PATTERN = 2
"regular expressions, all addresses, and a distinguished name with many wildcards"
MATCH_PERFECT = 20

_TEXT_TYPES = frozenset((IdType.FQDN, IdType.RFC822_ADDR))
_PREFIXES: dict[str, int] = {
    "ipv4": IdType.IPV4_ADDR,
    "ipv6": IdType.IPV6_ADDR,
    "rfc822": IdType.RFC822_ADDR,
    "email": IdType.RFC822_ADDR,
    "userfqdn": IdType.RFC822_ADDR,
    "fqdn": IdType.FQDN,
    "dns": IdType.FQDN,
    "asn1dn": IdType.DER_ASN1_DN,
    "asn1gn": IdType.DER_ASN1_GN,
    "keyid": IdType.KEY_ID,
}
_XMPP, _XMPP_OID = "xmppaddr:", "1.3.6.1.5.5.7.8.5"
_ADDRESSES_PREFIXES = {"ipv4net": 4, "ipv6net": 6, "ipv4range": 4, "ipv6range": 6}
_ANY = frozenset(("", "%any", "%any4", "%any6", "0.0.0.0", "*", "::", "0::0"))
_REGEX_SUBJECT_MAX = 512
"octets; longer identities match no regular expression: bounds what a peer can make one cost"


class Identity:
    """One identity: type and data of an ID payload.

    Equal are two whose types are one and whose data mean the same: host names and e-mail addresses without regard to
    case, distinguished names as RFC 5280 section 7.1 has it, everything else octet by octet. ``data`` may be malformed.
    """

    __slots__ = ("_key", "data", "type")

    type: int
    data: bytes
    _key: tuple[int, Hashable] | None

    def __init__(self, type: int, data: bytes) -> None:
        object.__setattr__(self, "type", type)
        object.__setattr__(self, "data", data)
        object.__setattr__(self, "_key", None)

    @classmethod
    def of_address(cls, address: IpAddress) -> Identity:
        """The identity that is an address."""
        return cls(IdType.IPV4_ADDR if address.version == 4 else IdType.IPV6_ADDR, address.packed)

    @property
    def key(self) -> tuple[int, Hashable]:
        """What is compared: equal keys are one identity."""
        key = self._key
        if key is None:
            key = self.type, self._meaning()
            object.__setattr__(self, "_key", key)
        return key

    @property
    def name(self) -> tuple[KeyRdn, ...] | None:
        """What of a distinguished name is compared, None if it is none or malformed.

        Made once: of a long one that takes milliseconds, and peers send it to be held against much."""
        meaning = self.key[1]
        return meaning if self.type == IdType.DER_ASN1_DN and isinstance(meaning, tuple) else None

    @property
    def spelling(self) -> tuple[int, Hashable]:
        """What it has in common with all that it may be called (see ``is_called``), and maybe with others: ``key``, of
        a distinguished name its attributes in no order."""
        if self.type != IdType.DER_ASN1_DN:
            return self.key
        attributes = [attribute for rdn in self.name or () for attribute in rdn]
        if not attributes:
            return self.key
        return self.type, tuple(sorted(attributes, key=lambda attribute: (attribute[0], str(attribute[1]))))

    def _meaning(self) -> Hashable:
        if self.type in _TEXT_TYPES:
            return self.data.lower()
        if self.type == IdType.DER_ASN1_DN:
            try:
                return name_key(self.data)
            except ParseError:
                return self.data
        return self.data

    @property
    def address(self) -> IpAddress | None:
        """The address that this identity is, if it is one."""
        if self.type == IdType.IPV4_ADDR and len(self.data) == 4:
            return IPv4Address(self.data)
        return IPv6Address(self.data) if self.type == IdType.IPV6_ADDR and len(self.data) == 16 else None

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"an Identity does not change: {name}")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Identity):
            return NotImplemented
        return self.type == other.type and (self.data == other.data or self.key == other.key)

    def __hash__(self) -> int:
        return hash(self.key)

    def __str__(self) -> str:
        """As charon shows it; what cannot be printed is escaped. Never fails."""
        if self.type in _TEXT_TYPES:
            return printable(self.data)
        if address := self.address:
            return str(address)
        if self.type == IdType.KEY_ID:
            readable = self.data.isascii() and self.data.decode("ascii").isprintable() and self.data
            return printable(self.data) if readable else self.data.hex(":")
        if self.type == IdType.DER_ASN1_DN:
            try:
                return name_text(self.data)
            except ParseError:
                return f"(invalid ID_DER_ASN1_DN {self.data[:64].hex()})"
        return f"(ID_{name_of(IdType, self.type)} {self.data[:64].hex()})"

    def __repr__(self) -> str:
        return f"<Identity {name_of(IdType, self.type)} {self}>"

    def __reduce__(self) -> tuple[object, ...]:
        return Identity, (self.type, self.data)


def is_called(identity: Identity, name: Identity) -> bool:
    """Whether somebody who is ``identity`` may be called ``name``: a distinguished name also as ``reads_as`` has it."""
    if identity == name:
        return True
    # an initiator is held against the peers of all connections that it may come by
    if identity.type != IdType.DER_ASN1_DN:
        return False
    whole, flat = identity.name, name.name
    return whole is not None and flat is not None and reads_as(flat, whole)


def are_one(one: Identity, other: Identity) -> bool:
    """Whether one of two may be called as the other is."""
    return is_called(one, other) or is_called(other, one)


def _split_type(text: str) -> tuple[int, str] | None:
    """Type and rest of ``type:rest``, if the text has that form."""
    head, colon, rest = text.partition(":")
    if colon and head.lower() in _PREFIXES:
        return _PREFIXES[head.lower()], rest
    if colon and (match := re.fullmatch(r"\{([0-9]{1,3}|0[xX][0-9a-fA-F]{1,2})\}", head)):
        number = int(match[1], 16 if match[1][:2] in ("0x", "0X") else 10)
        if number > 255:
            raise ConfigError(f"identity {text!r}: there is no identity type {number}")
        return number, rest
    return None


def _parse_hex(digits: str, text: str) -> bytes:
    try:
        return bytes.fromhex(digits.replace(":", ""))
    except ValueError:
        raise ConfigError(f"identity {text!r}: {digits!r} is not hexadecimal") from None


def _octets(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        # clients of vici say whatever they like
        raise ConfigError(f"identity {text!r} is not UTF-8") from None


def parse_identity(text: str) -> Identity:
    """One identity, its type found as swanctl.conf has it (see above). ConfigError; ``%any`` is no identity."""
    text = text.strip()
    if text in _ANY:
        raise ConfigError(f"{text!r} stands for any identity, one is needed")
    if addresses := _parse_addresses(text):
        if addresses.exact is None:
            raise ConfigError(f"{text!r} stands for many addresses, one is needed")
        return addresses.exact
    if text.lower().startswith(_XMPP):
        address = der.emit(der.UTF8_STRING, _octets(text[len(_XMPP) :]))
        name = der.emit(der.context(0), der.emit_oid(_XMPP_OID), der.emit(der.context(0), address))
        return Identity(IdType.DER_ASN1_GN, name)
    if typed := _split_type(text):
        kind, rest = typed
        return Identity(kind, _parse_hex(rest[1:], text) if rest.startswith("#") else _octets(rest))
    if looks_like_name(text):
        return Identity(IdType.DER_ASN1_DN, parse_name_text(text))
    if "=" in text:
        return Identity(IdType.KEY_ID, _octets(text))
    if text.startswith("@#"):
        return Identity(IdType.KEY_ID, _parse_hex(text[2:], text))
    if text.startswith("@@"):
        return Identity(IdType.RFC822_ADDR, _octets(text[2:]))
    if text.startswith("@"):
        return Identity(IdType.FQDN, _octets(text[1:]))
    if "@" in text:
        return Identity(IdType.RFC822_ADDR, _octets(text))
    return _parse_host(text)


def _parse_host(text: str) -> Identity:
    if ":" in text:
        try:
            return Identity(IdType.IPV6_ADDR, IPv6Address(text).packed)
        except AddressValueError:
            return Identity(IdType.KEY_ID, _octets(text))
    try:
        return Identity(IdType.IPV4_ADDR, IPv4Address(text).packed)
    except AddressValueError:
        return Identity(IdType.FQDN, _octets(text))


class _Kind(Enum):
    ANY = 0
    EXACT = 1
    SUFFIX = 2
    NAME = 3
    REGEX = 4
    ADDRESSES = 5


@dataclass(frozen=True)
class IdentityPattern:
    """What an identity may be; made by ``parse_pattern``, ``exactly`` or as ``ANY_IDENTITY``. Compared by its text."""

    text: str
    exact: Identity | None = None
    "the one identity that matches, if it is a single one: what an initiator may send as IDr"
    _kind: _Kind = field(default=_Kind.ANY, repr=False)
    _type: int = field(default=0, repr=False)
    _suffix: bytes = field(default=b"", repr=False)
    _name: tuple[tuple[tuple[bytes, str | bytes | None], ...], ...] = field(default=(), repr=False)
    _regex: Regex | None = field(default=None, repr=False)
    _first: int = field(default=0, repr=False)
    _last: int = field(default=0, repr=False)

    @classmethod
    def exactly(cls, identity: Identity) -> IdentityPattern:
        """The pattern that only this identity matches."""
        return cls(str(identity), identity, _Kind.EXACT, identity.type)

    @property
    def any(self) -> bool:
        """Whether every identity matches."""
        return self._kind is _Kind.ANY

    @property
    def of_names(self) -> bool:
        """Whether it is a pattern for distinguished names."""
        return self.exact is None and self._type == IdType.DER_ASN1_DN

    def matches(self, identity: Identity) -> int:
        """0 if ``identity`` does not match, else how exactly, as charon counts: 1 for %any to 20 if it is equal."""
        kind = self._kind
        if kind is _Kind.ANY:
            return MATCH_ANY
        if kind is _Kind.EXACT:
            return MATCH_PERFECT if self.exact is not None and is_called(identity, self.exact) else MATCH_NONE
        if identity.type != self._type:
            return MATCH_NONE
        if kind is _Kind.SUFFIX:
            return MATCH_PERFECT - 1 if identity.data.lower().endswith(self._suffix) else MATCH_NONE
        if kind is _Kind.NAME:
            return self._match_name(identity)
        if kind is _Kind.ADDRESSES:
            return self._match_address(identity)
        return self._match_regex(identity)

    def _match_name(self, identity: Identity) -> int:
        name = identity.name
        if name is None:
            return MATCH_NONE
        pattern = self._name
        if all(len(rdn) == 1 for rdn in pattern) and len(pattern) == sum(map(len, name)):
            # as in ``reads_as``
            pattern = grouped([attribute for (attribute,) in pattern], name)
        if len(name) != len(pattern) or not all(map(_match_rdn, pattern, name)):
            return MATCH_NONE
        return max(MATCH_PERFECT - sum(map(_count_wildcards, self._name)), MATCH_PATTERN)

    def _match_address(self, identity: Identity) -> int:
        address = identity.address
        if address is None or not self._first <= int(address) <= self._last:
            return MATCH_NONE
        return MATCH_PATTERN if self._last - self._first + 1 == 1 << address.max_prefixlen else MATCH_PERFECT - 1

    def _match_regex(self, identity: Identity) -> int:
        assert self._regex is not None
        if len(identity.data) > _REGEX_SUBJECT_MAX:
            return MATCH_NONE
        if self._type in _TEXT_TYPES or self._type == IdType.KEY_ID:
            try:
                subject = identity.data.decode("utf-8")
            except UnicodeDecodeError:
                return MATCH_NONE
        else:
            subject = str(identity)
        return MATCH_PATTERN if self._regex.fullmatch(subject) else MATCH_NONE

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, IdentityPattern):
            return NotImplemented
        mine = (self._kind, self._type, self.text, self.exact)
        return mine == (other._kind, other._type, other.text, other.exact)

    def __hash__(self) -> int:
        return hash((self._kind, self._type, self.text))

    def __str__(self) -> str:
        return self.text


ANY_IDENTITY = IdentityPattern("%any")
"matches whatever it is held against"


def _count_wildcards(rdn: tuple[tuple[bytes, str | bytes | None], ...]) -> int:
    return sum(value is None for _, value in rdn)


def _match_rdn(
    pattern: tuple[tuple[bytes, str | bytes | None], ...], rdn: tuple[tuple[bytes, str | bytes], ...]
) -> bool:
    """Whether the attributes of one RDN, whose order means nothing, are those of the pattern."""
    if len(pattern) != len(rdn):
        return False
    rest = list(rdn)
    for oid, wanted in sorted(pattern, key=lambda attribute: attribute[1] is None):
        found = next((item for item in rest if item[0] == oid and wanted in (None, item[1])), None)
        if found is None:
            return False
        rest.remove(found)
    return True


def parse_pattern(text: str) -> IdentityPattern:
    """What an identity of the peer may be. ConfigError.

    In swanctl's form: any identity, or ``%any``, ``*@domain``, ``*.domain``, a distinguished name in which the value
    ``*`` stands for any, a subnet or a range of addresses, or a POSIX regular expression ``type:^...$`` that is matched
    without regard to case (see ``ipsec.crypto.regex``).
    """
    text = text.strip()
    if text in _ANY:
        return ANY_IDENTITY
    if addresses := _parse_addresses(text):
        return addresses
    typed = _split_type(text)
    if typed and typed[1].startswith("^") and typed[1].endswith("$"):
        return IdentityPattern(text, None, _Kind.REGEX, typed[0], _regex=_compile(typed[1], text))
    if not typed and looks_like_name(text):
        name = parse_name_pattern(text)
        if any(_count_wildcards(rdn) for rdn in name):
            return IdentityPattern(text, None, _Kind.NAME, IdType.DER_ASN1_DN, _name=name)
    identity = parse_identity(text)
    if identity.type in _TEXT_TYPES and identity.data.startswith(b"*"):
        suffix = identity.data[1:].lower()
        return IdentityPattern(str(identity), None, _Kind.SUFFIX, identity.type, _suffix=suffix)
    return IdentityPattern.exactly(identity)


def _parse_addresses(text: str) -> IdentityPattern | None:
    """The addresses that ``10.0.0.0/8`` and the like stand for; None if the text has another form. ConfigError.

    On the wire there are no such identities (RFC 7296 section 3.5): they are for holding addresses against.
    """
    head, colon, rest = text.partition(":")
    version = _ADDRESSES_PREFIXES.get(head.lower()) if colon else None
    if version is None and not _means_addresses(text):
        return None
    found = _read_addresses(rest if version else text)
    if found is None or version not in (None, found[0].version):
        why = "neither a subnet such as 10.0.0.0/8 nor a range such as 10.0.0.1-10.0.0.9; a name needs fqdn: before it"
        raise ConfigError(f"identity {text!r} is {why}")
    first, last, name = found
    if first == last:
        return IdentityPattern.exactly(Identity.of_address(first))
    kind = Identity.of_address(first).type
    return IdentityPattern(name, None, _Kind.ADDRESSES, kind, _first=int(first), _last=int(last))


def _means_addresses(text: str) -> bool:
    """Whether it is an address, ``/`` or ``-``, and a number or an address; or nothing, which is a slip. What else
    follows makes it a name such as ``10.1.2.3-gw``."""
    low, separator, high = text.partition("/" if "/" in text else "-")
    high = high.strip()
    return bool(separator) and _is_address(low.strip()) and (not high or high.isdecimal() or _is_address(high))


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _read_addresses(text: str) -> tuple[IpAddress, IpAddress, str] | None:
    """First, last, and the text in its one form. A zone names no address (RFC 4007 section 11.2)."""
    if "%" in text:
        return None
    try:
        if "/" in text:
            low, bits = (part.strip() for part in text.split("/", 1))
            if not bits.isdecimal():
                return None
            network = ip_network(f"{low}/{bits}", strict=False)
            return network[0], network[-1], str(network)
        low, _, high = text.partition("-")
        first, last = ip_address(low.strip()), ip_address(high.strip())
    except ValueError:
        return None
    return (first, last, f"{first}-{last}") if first.version == last.version and int(first) <= int(last) else None


def _compile(regex: str, text: str) -> Regex:
    try:
        return Regex(regex)
    except RegexError as error:
        raise ConfigError(f"identity {text!r}: not a regular expression that is taken: {error}") from None
