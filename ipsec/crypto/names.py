"""Distinguished names (X.501): DER to text and back, and the comparison of RFC 5280 section 7.1.

Text is what charon shows: ``C=CH, O=strongSwan, CN=moon.strongswan.org``. What would be ambiguous is escaped as in
RFC 4514, so that text goes back to the same name.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice
from typing import TypeVar

from ipsec.crypto import der
from ipsec.errors import ConfigError, ParseError

T = TypeVar("T")

NAME_OCTETS_MAX = 8192
RDNS_MAX = 64

#: short names as charon has them; the first of several for one OID is the one shown
ATTRIBUTES = {
    "C": "2.5.4.6",
    "ST": "2.5.4.8",
    "L": "2.5.4.7",
    "STREET": "2.5.4.9",
    "O": "2.5.4.10",
    "OU": "2.5.4.11",
    "CN": "2.5.4.3",
    "SN": "2.5.4.4",
    "serialNumber": "2.5.4.5",
    "T": "2.5.4.12",
    "title": "2.5.4.12",
    "D": "2.5.4.13",
    "postalAddress": "2.5.4.16",
    "postalCode": "2.5.4.17",
    "N": "2.5.4.41",
    "G": "2.5.4.42",
    "GN": "2.5.4.42",
    "I": "2.5.4.43",
    "ID": "2.5.4.45",
    "dnQualifier": "2.5.4.46",
    "dmdName": "2.5.4.54",
    "pseudonym": "2.5.4.65",
    "DC": "0.9.2342.19200300.100.1.25",
    "UID": "0.9.2342.19200300.100.1.1",
    "ND": "0.2.262.1.10.7.20",
    "E": "1.2.840.113549.1.9.1",
    "Email": "1.2.840.113549.1.9.1",
    "emailAddress": "1.2.840.113549.1.9.1",
    "UN": "1.2.840.113549.1.9.2",
    "unstructuredName": "1.2.840.113549.1.9.2",
    "UA": "1.2.840.113549.1.9.8",
    "unstructuredAddress": "1.2.840.113549.1.9.8",
    "employeeNumber": "2.16.840.1.113730.3.1.3",
    "EN": "2.16.840.1.113730.3.1.3",
    "TCGID": "1.3.6.1.4.1.1201.1.1.2.75",
}
_OID_BY_NAME = {name.lower(): der.emit_oid(oid)[2:] for name, oid in ATTRIBUTES.items()}
_NAME_BY_OID = {oid: next(n for n in ATTRIBUTES if n.lower() == low) for low, oid in reversed(_OID_BY_NAME.items())}
EMAIL_OID = _OID_BY_NAME["e"]
_IA5_OIDS = {_OID_BY_NAME[name] for name in ("e", "un", "dc")}

_ENCODINGS = {
    der.UTF8_STRING: "utf-8",
    der.PRINTABLE_STRING: "ascii",
    der.IA5_STRING: "ascii",
    der.NUMERIC_STRING: "ascii",
    der.VISIBLE_STRING: "ascii",
    der.T61_STRING: "latin-1",
    der.BMP_STRING: "utf-16-be",
    der.UNIVERSAL_STRING: "utf-32-be",
}

_ATTRIBUTE = re.compile(r"\s*([A-Za-z0-9.]+)\s*=\s*")
_JOINED = re.compile(r"(?<=\s)\+\s+[A-Za-z0-9.]+\s*=")

Attribute = tuple[bytes, int, bytes]
"OID (contents), tag and contents of the value"
Rdn = tuple[Attribute, ...]
KeyAttribute = tuple[bytes, str | bytes]
"OID and value in the form that is compared"
KeyRdn = tuple[KeyAttribute, ...]


def parse_name(data: bytes) -> tuple[Rdn, ...]:
    """The relative distinguished names of a DER Name, in their order. ParseError."""
    if len(data) > NAME_OCTETS_MAX:
        raise ParseError(f"a distinguished name is longer than {NAME_OCTETS_MAX} octets")
    rdns: list[Rdn] = []
    for tag, value in der.items(der.contents(data, der.SEQUENCE)):
        if tag != der.SET or not value:
            raise ParseError("a distinguished name holds something else than sets of attributes")
        rdns.append(tuple(_parse_attribute(*item) for item in der.items(value)))
        if len(rdns) > RDNS_MAX or len(rdns[-1]) > RDNS_MAX:
            raise ParseError("a distinguished name has too many parts")
    return tuple(rdns)


def _parse_attribute(tag: int, value: bytes) -> Attribute:
    parts = der.items(value) if tag == der.SEQUENCE else []
    if len(parts) != 2 or parts[0][0] != der.OID or not parts[0][1]:
        raise ParseError("malformed attribute in a distinguished name")
    return parts[0][1], *parts[1]


def emit_name(rdns: tuple[Rdn, ...]) -> bytes:
    """The DER of a Name."""
    sets = []
    for rdn in rdns:
        attributes = (der.emit(der.SEQUENCE, der.emit(der.OID, oid), der.emit(tag, value)) for oid, tag, value in rdn)
        sets.append(der.emit(der.SET, *sorted(attributes)))
    return der.emit(der.SEQUENCE, *sets)


def _value_text(tag: int, value: bytes) -> str | None:
    encoding = _ENCODINGS.get(tag)
    if encoding is None:
        return None
    try:
        return value.decode(encoding)
    except UnicodeDecodeError:
        return None


def _folded(text: str) -> str:
    """Case and white space as RFC 5280 section 7.1 ignores them (RFC 4518 in short)."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(text.lower().split())


def _value_key(tag: int, value: bytes) -> str | bytes:
    text = _value_text(tag, value)
    return bytes((tag,)) + value if text is None else _folded(text)


@lru_cache(1024)
def _cached_key(data: bytes) -> tuple[KeyRdn, ...]:
    return _name_key(data)


def _name_key(data: bytes) -> tuple[KeyRdn, ...]:
    rdns = parse_name(data)
    return tuple(_sorted((oid, _value_key(tag, value)) for oid, tag, value in rdn) for rdn in rdns)


def _sorted(attributes: Iterator[KeyAttribute]) -> KeyRdn:
    return tuple(sorted(attributes, key=lambda item: (item[0], str(item[1]))))


def name_key(data: bytes) -> tuple[KeyRdn, ...]:
    """What of a DER Name is compared: equal keys are one name (RFC 5280 section 7.1). ParseError."""
    return _cached_key(data) if len(data) <= 512 else _name_key(data)


def grouped(flat: Sequence[T], name: tuple[tuple[object, ...], ...]) -> tuple[tuple[T, ...], ...]:
    """The attributes of ``flat``, each of which has been taken for an RDN, in RDNs of the sizes that ``name`` has."""
    left = iter(flat)
    return tuple(tuple(islice(left, len(rdn))) for rdn in name)


def reads_as(flat: tuple[KeyRdn, ...], name: tuple[KeyRdn, ...]) -> bool:
    """Whether ``flat`` is ``name`` without its RDNs of several attributes: each is one of its own. See ``name_key``.

    charon shows names so, takes them for the same, and sends what it was configured with.
    """
    if len(flat) != sum(map(len, name)) or any(len(rdn) != 1 for rdn in flat):
        return False
    rdns = grouped([attribute for (attribute,) in flat], name)
    return all(_sorted(iter(rdn)) == wanted for rdn, wanted in zip(rdns, name, strict=True))


def emails(data: bytes) -> list[str]:
    """Values of the emailAddress attributes of a DER Name."""
    found = (_value_text(tag, value) for rdn in parse_name(data) for oid, tag, value in rdn if oid == EMAIL_OID)
    return [text for text in found if text is not None]


def name_text(data: bytes) -> str:
    """A DER Name as text. ParseError if it is none."""
    return ", ".join(" + ".join(_attribute_text(*attribute) for attribute in rdn) for rdn in parse_name(data))


def _attribute_text(oid: bytes, tag: int, value: bytes) -> str:
    name = _NAME_BY_OID.get(oid) or der.read_oid(oid)
    text = _value_text(tag, value)
    return f"{name}=#{der.emit(tag, value).hex()}" if text is None else f"{name}={_escaped(text)}"


def _escaped(text: str) -> str:
    if text == "*":
        return "\\*"  # a star alone is a wildcard
    out = "".join(_escaped_char(char) for char in text)
    if out[:1] in ("#", " "):
        out = "\\" + out
    if out.endswith(" ") and not out.endswith("\\ "):
        out = out[:-1] + "\\ "
    return out.replace(" + ", " \\+ ")


def _escaped_char(char: str) -> str:
    if char in ',"\\':
        return "\\" + char
    if char.isprintable():
        return char
    return "".join(f"\\{octet:02x}" for octet in char.encode("utf-8", "surrogatepass"))


class _Text:
    """Walks the text form; ``rdns`` has None for the value of a wildcard."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.separator = "/" if text.startswith("/") else ","
        self.at = 1 if self.separator == "/" else 0

    def rdns(self) -> list[list[tuple[bytes, str | bytes | None]]]:
        found: list[list[tuple[bytes, str | bytes | None]]] = []
        more = ""
        while self.at < len(self.text):
            if more == self.separator and self.text[self.at :].isspace():
                break
            attribute = self._attribute()
            if more == "+":
                found[-1].append(attribute)
            else:
                found.append([attribute])
            more = self.text[self.at : self.at + 1]
            self.at += 1
        # like charon's, a name may end in a separator: so do some that are pasted from elsewhere
        if not found or more not in ("", self.separator):
            raise ConfigError(f"distinguished name {self.text!r} ends before its last attribute")
        return found

    def _attribute(self) -> tuple[bytes, str | bytes | None]:
        match = _ATTRIBUTE.match(self.text, self.at)
        if match is None:
            raise ConfigError(f"distinguished name {self.text!r}: no NAME=VALUE at {self.text[self.at :][:20]!r}")
        oid = _OID_BY_NAME.get(match[1].lower())
        if oid is None:
            try:
                oid = der.emit_oid(match[1])[2:]
            except ValueError:
                raise ConfigError(f"distinguished name {self.text!r}: unknown attribute {match[1]!r}") from None
        self.at = match.end()
        return oid, self._value()

    def _value(self) -> str | bytes | None:
        start = self.at
        octets = bytearray()
        kept = 0  # up to where white space at the end was meant
        quoted = False
        while self.at < len(self.text):
            char = self.text[self.at]
            if char == '"' and (quoted or not octets):
                quoted = not quoted
                kept = len(octets)
            elif char == "\\":
                octets += self._escape()
                kept = len(octets)
                continue
            elif not quoted and (char == self.separator or self._joins()):
                break
            else:
                octets += char.encode("utf-8", "surrogatepass")
            self.at += 1
        if quoted:
            raise ConfigError(f"distinguished name {self.text!r}: the quote is not closed")
        written = self.text[start : self.at].strip()
        if written == "*":
            return None
        if written.startswith("#"):
            return self._hex(written[1:])
        try:
            return (bytes(octets[:kept]) + bytes(octets[kept:]).rstrip()).decode()
        except UnicodeDecodeError:
            raise ConfigError(f"distinguished name {self.text!r}: a value is not UTF-8") from None

    def _joins(self) -> bool:
        """Whether here ``" + "`` leads to one more attribute of the same RDN."""
        return _JOINED.match(self.text, self.at) is not None

    def _escape(self) -> bytes:
        pair = self.text[self.at + 1 : self.at + 3]
        if re.fullmatch(r"[0-9a-fA-F]{2}", pair):
            self.at += 3
            return bytes.fromhex(pair)
        if not pair:
            raise ConfigError(f"distinguished name {self.text!r} ends in a backslash")
        self.at += 2
        return pair[0].encode("utf-8", "surrogatepass")

    def _hex(self, digits: str) -> bytes:
        try:
            value = bytes.fromhex(digits)
            tag, _, end = der.read(value)
        except (ValueError, ParseError):
            raise ConfigError(f"distinguished name {self.text!r}: #{digits} is not DER in hexadecimal") from None
        if end != len(value) or not tag:
            raise ConfigError(f"distinguished name {self.text!r}: #{digits} is not one value in DER")
        return value


def _encode_value(oid: bytes, value: str | bytes) -> Attribute:
    if isinstance(value, bytes):
        tag, start, end = der.read(value)
        return oid, tag, value[start:end]
    if oid in _IA5_OIDS and value.isascii():
        return oid, der.IA5_STRING, value.encode()
    if re.fullmatch(r"[A-Za-z0-9 '()+,./:=?-]*", value):
        return oid, der.PRINTABLE_STRING, value.encode()
    return oid, der.UTF8_STRING, value.encode("utf-8")


def parse_name_text(text: str) -> bytes:
    """The DER of ``C=CH, O=x, CN=y`` or ``/C=CH/O=x/CN=y``. ConfigError. A value ``*`` is taken as it is."""
    rdns = _Text(text).rdns()
    return emit_name(tuple(tuple(_encode_value(oid, "*" if v is None else v) for oid, v in rdn) for rdn in rdns))


def parse_name_pattern(text: str) -> tuple[tuple[tuple[bytes, str | bytes | None], ...], ...]:
    """As ``name_key`` of the text, with None for the value of an attribute whose value is a lone ``*``. ConfigError."""

    def key(oid: bytes, value: str | bytes | None) -> tuple[bytes, str | bytes | None]:
        return (oid, None) if value is None else (oid, _value_key(*_encode_value(oid, value)[1:]))

    return tuple(tuple(key(*attribute) for attribute in rdn) for rdn in _Text(text).rdns())


def looks_like_name(text: str) -> bool:
    """Whether text begins as a distinguished name does: a known attribute or an OID before the first ``=``."""
    head = text.removeprefix("/").split("=")[0].strip() if "=" in text else ""
    return head.lower() in _OID_BY_NAME or re.fullmatch(r"[0-2](\.[0-9]+)+", head) is not None
