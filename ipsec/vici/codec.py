"""strongSwan's vici protocol on the wire: packets of a name and a message; messages of sections, keys and lists.

A message is a dict in order: a value is bytes, a list of bytes, or a dict (a section). What is written may also have
str, int, float and bool; None is left out.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from enum import IntEnum
from functools import lru_cache
from typing import Any, NamedTuple

from ipsec.errors import ParseError

SEGMENT_MAX = 512 * 1024
"octets of one packet"
DEPTH_MAX = 32
"sections within sections"

_LENGTH = struct.Struct(">I")
_VALUE = struct.Struct(">H")

Message = dict[str, Any]
"as parsed: values are bytes, list[bytes] or Message"


class PacketType(IntEnum):
    """First octet of a packet."""

    CMD_REQUEST = 0
    CMD_RESPONSE = 1
    CMD_UNKNOWN = 2
    EVENT_REGISTER = 3
    EVENT_UNREGISTER = 4
    EVENT_CONFIRM = 5
    EVENT_UNKNOWN = 6
    EVENT = 7


_NAMED = frozenset({PacketType.CMD_REQUEST, PacketType.EVENT_REGISTER, PacketType.EVENT_UNREGISTER, PacketType.EVENT})
_WITH_MESSAGE = frozenset({PacketType.CMD_REQUEST, PacketType.CMD_RESPONSE, PacketType.EVENT})


#: elements of a message
_SECTION_START, _SECTION_END, _KEY_VALUE, _LIST_START, _LIST_ITEM, _LIST_END = range(1, 7)
_END_OF_SECTION, _ITEM, _END_OF_LIST = (bytes((element,)) for element in (_SECTION_END, _LIST_ITEM, _LIST_END))


class Packet(NamedTuple):
    """One packet."""

    type: PacketType
    name: str = ""
    message: Message = {}  # noqa: RUF012  (never changed)


# -- writing


def emit_packet(kind: PacketType, name: str = "", message: Mapping[str, Any] | None = None) -> bytes:
    """A packet with its length in front. ValueError if it is too long, or a name or value does not fit."""
    parts = [bytes((kind,))]
    if kind in _NAMED:
        parts.append(_name(name))
    if kind in _WITH_MESSAGE and message:
        _emit_section(parts, message, 0)
    body = b"".join(parts)
    if len(body) > SEGMENT_MAX:
        raise ValueError(f"a vici packet of {len(body)} octets, {SEGMENT_MAX} are possible")
    return _LENGTH.pack(len(body)) + body


def _emit_section(parts: list[bytes], section: Mapping[str, Any], depth: int) -> None:
    if depth > DEPTH_MAX:
        raise ValueError("vici sections are nested too deeply")
    for key, value in section.items():
        kind = type(value)
        # most values are of these types, and asking for them is quick where there are thousands of SAs to tell of
        if kind is str or kind is int or kind is bytes:
            parts += (_head(_KEY_VALUE, key), _value(value))
        elif value is None:
            continue
        elif kind is dict or isinstance(value, Mapping):
            parts.append(_head(_SECTION_START, key))
            _emit_section(parts, value, depth + 1)
            parts.append(_END_OF_SECTION)
        elif kind is list or (isinstance(value, Iterable) and not isinstance(value, str | bytes)):
            parts.append(_head(_LIST_START, key))
            for item in value:
                parts += (_ITEM, _value(item))
            parts.append(_END_OF_LIST)
        else:
            parts += (_head(_KEY_VALUE, key), _value(value))


@lru_cache(maxsize=2048)
def _head(element: int, name: str) -> bytes:
    """An element with its name. There are few, again and again."""
    return bytes((element,)) + _name(name)


def _name(name: str) -> bytes:
    text = name.encode("utf-8", "surrogateescape")
    if len(text) > 255:
        raise ValueError(f"a vici name has at most 255 octets, not {len(text)}")
    return bytes((len(text),)) + text


def _value(value: object) -> bytes:
    if value is True or value is False:
        value = "yes" if value else "no"
    data = value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogateescape")
    if len(data) > 0xFFFF:
        raise ValueError(f"a vici value of {len(data)} octets, 65535 are possible")
    return _VALUE.pack(len(data)) + data


# -- reading


def parse_length(head: bytes | bytearray) -> int:
    """The length of a packet from its first four octets. ParseError if it is empty or too long."""
    (length,) = _LENGTH.unpack(head)
    if not 0 < length <= SEGMENT_MAX:
        raise ParseError(f"a vici packet of {length} octets")
    return int(length)


def take_packet(octets: bytearray) -> Packet | None:
    """The packet in front, and take it away; None if it is not complete. ParseError."""
    if len(octets) < 4:
        return None
    end = 4 + parse_length(octets[:4])
    if len(octets) < end:
        return None
    body = bytes(octets[4:end])
    del octets[:end]
    return parse_packet(body)


def parse_packet(body: bytes) -> Packet:
    """A packet without its length. ParseError."""
    if not body or body[0] > PacketType.EVENT:
        raise ParseError("a vici packet of an unknown type")
    kind = PacketType(body[0])
    offset, name = 1, ""
    if kind in _NAMED:
        name, offset = _read_name(body, 1)
    if kind in _WITH_MESSAGE:
        return Packet(kind, name, parse_message(body[offset:]))
    if offset != len(body):
        raise ParseError(f"octets after a vici packet {kind.name}")
    return Packet(kind, name, {})


def parse_message(data: bytes) -> Message:
    """Sections, keys and lists. A name that comes twice in one section counts the last time. ParseError."""
    root: Message = {}
    stack = [root]
    items: list[bytes] | None = None
    offset = 0
    while offset < len(data):
        element, offset = data[offset], offset + 1
        if items is not None:
            if element == _LIST_ITEM:
                value, offset = _read_value(data, offset)
                items.append(value)
                continue
            if element != _LIST_END:
                raise ParseError("a vici list holds items only")
            items = None
        elif element == _SECTION_START:
            name, offset = _read_name(data, offset)
            if len(stack) > DEPTH_MAX:
                raise ParseError("vici sections are nested too deeply")
            section: Message = {}
            stack[-1][name] = section
            stack.append(section)
        elif element == _SECTION_END and len(stack) > 1:
            stack.pop()
        elif element == _KEY_VALUE:
            name, offset = _read_name(data, offset)
            stack[-1][name], offset = _read_value(data, offset)
        elif element == _LIST_START:
            name, offset = _read_name(data, offset)
            items = stack[-1][name] = []
        else:
            raise ParseError(f"a vici element {element} where none can be")
    if len(stack) != 1 or items is not None:
        raise ParseError("a vici message ends within a section or list")
    return root


def _read_name(data: bytes, offset: int) -> tuple[str, int]:
    if offset >= len(data) or offset + 1 + data[offset] > len(data):
        raise ParseError("a vici name is cut short")
    end = offset + 1 + data[offset]
    return data[offset + 1 : end].decode("utf-8", "surrogateescape"), end


def _read_value(data: bytes, offset: int) -> tuple[bytes, int]:
    if offset + 2 > len(data):
        raise ParseError("a vici value is cut short")
    end = offset + 2 + _VALUE.unpack_from(data, offset)[0]
    if end > len(data):
        raise ParseError("a vici value is cut short")
    return data[offset + 2 : end], end


def text(message: Mapping[str, Any], key: str, default: str = "") -> str:
    """A value as text; ``default`` if it is missing or no plain value."""
    value = message.get(key)
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else default


def texts(message: Mapping[str, Any], key: str) -> list[str]:
    """A list as texts; a plain value is a list of one."""
    value = message.get(key)
    values = value if isinstance(value, list) else [value] if isinstance(value, bytes) else []
    return [item.decode("utf-8", "surrogateescape") for item in values]
