"""IKE fragmentation (RFC 7383): cutting a message into pieces, and putting one together.

Every piece is protected by itself. Whoever calls ``Reassembly.add`` has verified its integrity before: nothing that is
not authentic is ever kept (RFC 7383 section 2.6).
"""

from __future__ import annotations

from ipsec.errors import ParseError

FRAGMENTS_MAX = 255
"of one message, sent or received; the field would allow 65535"
BYTES_MAX = 4 * 65535
"octets of all fragments of one message"


def split(content: bytes, room: int) -> list[bytes]:
    """``content``, the inner payloads, in at least one piece of at most ``room`` octets each (RFC 7383 section 2.5).

    Pieces are larger than that where more than FRAGMENTS_MAX would be needed: fragments of IP are better than a message
    that cannot be sent.
    """
    size = max(room, 1, -(-len(content) // FRAGMENTS_MAX))
    return [content[start : start + size] for start in range(0, len(content), size)] or [b""]


class Reassembly:
    """The fragments of one message. Memory is bounded, and each fragment costs the same whatever came before it."""

    __slots__ = ("_done", "_first", "_max_bytes", "_max_total", "_pieces", "_size", "_total")

    def __init__(self, max_total: int = FRAGMENTS_MAX, max_bytes: int = BYTES_MAX) -> None:
        self._max_total = max_total
        self._max_bytes = max_bytes
        self._total = 0
        "Total Fragments of the set being collected; 0 before the first one"
        self._first = 0
        self._size = 0
        self._pieces: dict[int, bytes] = {}
        self._done = False

    def __len__(self) -> int:
        """Octets that are kept."""
        return self._size

    def add(self, number: int, total: int, first: int, plaintext: bytes) -> tuple[int, bytes] | None:
        """Take a fragment; once all are there, the type of the first inner payload and the inner payloads.

        ``number`` and ``total`` are of the SKF payload, ``first`` is its Next Payload, which only fragment 1 tells.
        After the whole message was given out, all further fragments are ignored. ParseError for numbers that cannot be
        and for more than this may hold; what was there before stays.
        """
        if not 0 < number <= total:
            raise ParseError(f"fragment {number} of {total}")
        if total > self._max_total:
            raise ParseError(f"a message in {total} fragments, more than {self._max_total}")
        if self._done or total < self._total:
            # RFC 7383 section 2.6: the sender began again with smaller fragments, this one is of its first try
            return None
        larger = total > self._total
        if not larger and number in self._pieces:
            return None
        size = len(plaintext) if larger else self._size + len(plaintext)
        if size > self._max_bytes:
            raise ParseError(f"fragments of more than {self._max_bytes} octets")
        if larger:
            self._total = total
            self._pieces = {}
        if number == 1:
            self._first = first
        self._size = size
        self._pieces[number] = bytes(plaintext)
        if len(self._pieces) < total:
            return None
        whole = b"".join([self._pieces[position] for position in range(1, total + 1)])
        self._pieces = {}
        self._size = 0
        self._done = True
        return self._first, whole
