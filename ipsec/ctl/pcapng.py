"""Writes pcapng (draft-ietf-opsawg-pcapng): packets that begin with their IP header, with comments and direction."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import BinaryIO

#: LINKTYPE_RAW: an IPv4 or IPv6 header comes first
LINKTYPE = 101

_SECTION, _INTERFACE, _STATISTICS, _PACKET = 0x0A0D0D0A, 1, 5, 6
_BYTE_ORDER = 0x1A2B3C4D
_COMMENT, _APPLICATION, _NAME, _DESCRIPTION, _RESOLUTION, _FLAGS = 1, 4, 2, 3, 9, 2
_RECEIVED, _DROPPED = 4, 5
_NANOSECONDS = b"\x09"
_TEXT_MAX = 0xFFFF


class Writer:
    """One section of a file. Whoever made the stream closes it."""

    def __init__(self, stream: BinaryIO, application: str) -> None:
        self._stream = stream
        self._interfaces = 0
        # the length of the section is not known
        head = struct.pack("<IHHq", _BYTE_ORDER, 1, 0, -1)
        self._block(_SECTION, head + _options((_APPLICATION, application.encode())))

    def interface(self, name: str, description: str) -> int:
        """Name where packets come from; its number, for ``packet``."""
        head = struct.pack("<HHI", LINKTYPE, 0, 0)
        options = _options((_NAME, name.encode()), (_DESCRIPTION, description.encode()), (_RESOLUTION, _NANOSECONDS))
        self._block(_INTERFACE, head + options)
        self._interfaces += 1
        return self._interfaces - 1

    def packet(self, interface: int, time_ns: int, data: bytes, comments: Sequence[str], *, inbound: bool) -> None:
        """Write a packet. ``time_ns`` is since 1970."""
        head = struct.pack("<IIIII", interface, time_ns >> 32, time_ns & 0xFFFFFFFF, len(data), len(data))
        flags = struct.pack("<I", 1 if inbound else 2)
        options = _options((_FLAGS, flags), *((_COMMENT, comment.encode()) for comment in comments))
        self._block(_PACKET, head + _padded(data) + options)

    def statistics(self, interface: int, time_ns: int, *, received: int, dropped: int) -> None:
        """Write how many packets an interface had, and how many of them are missing."""
        head = struct.pack("<III", interface, time_ns >> 32, time_ns & 0xFFFFFFFF)
        counts = ((_RECEIVED, struct.pack("<Q", received)), (_DROPPED, struct.pack("<Q", dropped)))
        self._block(_STATISTICS, head + _options(*counts))

    def _block(self, kind: int, body: bytes) -> None:
        length = struct.pack("<I", len(body) + 12)
        self._stream.write(struct.pack("<I", kind) + length + body + length)


def _options(*options: tuple[int, bytes]) -> bytes:
    parts = [struct.pack("<HH", code, len(value[:_TEXT_MAX])) + _padded(value[:_TEXT_MAX]) for code, value in options]
    return b"".join(parts) + bytes(4)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
