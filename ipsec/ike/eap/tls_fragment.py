"""Flights of TLS in the packets of EAP-TLS (RFC 5216 sections 2.1.5 and 3.1, RFC 9190 section 2.1.9).

    flags                                 acknowledgement
    flags data                            flight, or a fragment after the first
    flags length data                     the first fragment: length is that of the whole flight

One side sends a flight at a time, and each fragment of it but the last is acknowledged by a packet without data.
"""

from __future__ import annotations

from ipsec.errors import ParseError

LENGTH_INCLUDED, MORE_FRAGMENTS, START = 0x80, 0x40, 0x20
#: Type-Data of the request that begins, and of what acknowledges a fragment
START_DATA, ACKNOWLEDGEMENT = bytes((START,)), b"\0"

#: octets of TLS in one packet of ours, as charon has it
FRAGMENT_LEN = 1024
#: octets of a flight that we collect, RFC 9190 section 2.1.9 wants 64 KiB at most to be enough
FLIGHT_MAX = 0x10000
#: and packets that it may come in
FRAGMENTS_MAX = 256

_LENGTH = 4
#: of a record of TLS (RFC 8446 section 5.1)
_ALERT = 21


class Fragments:
    """Both directions of one conversation."""

    def __init__(self) -> None:
        self._sending = b""
        "what is left of our flight"
        self._collected = bytearray()
        self._announced = 0
        self._count = 0
        "of fragments of the flight that is being collected; 0: none is"

    def send(self, flight: bytes) -> bytes:
        """Type-Data with the beginning of a flight, or all of it; an empty one makes an acknowledgement."""
        if len(flight) <= FRAGMENT_LEN:
            # RFC 9190 section 2.1.9: L must not be set where nothing is fragmented
            return b"\0" + flight
        self._sending = flight[FRAGMENT_LEN:]
        flags = LENGTH_INCLUDED | MORE_FRAGMENTS
        return bytes((flags,)) + len(flight).to_bytes(_LENGTH, "big") + flight[:FRAGMENT_LEN]

    def turn(self) -> bytes:
        """Type-Data after a packet with which ``take`` made no flight: our next fragment, or an acknowledgement."""
        part, self._sending = self._sending[:FRAGMENT_LEN], self._sending[FRAGMENT_LEN:]
        return bytes((MORE_FRAGMENTS if self._sending else 0,)) + part

    def take(self, data: bytes) -> bytes | None:
        """The flight that this Type-Data of the peer's completes; None if it is the peer's turn after ``turn``.

        ParseError, which leaves everything as it was. An acknowledgement when we have nothing more to send is an
        empty flight.
        """
        flags, total, part = _parse(data)
        if self._sending:
            if flags or (part and part[0] != _ALERT):
                raise ParseError("EAP-TLS: data while a fragment is to be acknowledged")
            if not part:
                return None
            # charon does not hear our certificates to the end if it trusts none of them
            self._sending = b""
        more = bool(flags & MORE_FRAGMENTS)
        if not self._count:
            if not more:
                if total not in (None, len(part)):
                    raise ParseError(f"EAP-TLS: {len(part)} octets of TLS, {total} announced")
                return part
            if total is None:
                raise ParseError("EAP-TLS: first fragment without the length of the whole")
        announced = self._announced if self._count else total or 0
        self._check_fragment(part, total, announced, more)
        self._announced = announced
        self._collected += part
        self._count += 1
        if more:
            return None
        flight = bytes(self._collected)
        self._collected.clear()
        self._count = 0
        return flight

    def _check_fragment(self, part: bytes, total: int | None, announced: int, more: bool) -> None:
        if total not in (None, announced):
            raise ParseError(f"EAP-TLS: {total} octets announced after {announced}")
        if not part:
            raise ParseError("EAP-TLS: fragment without data")
        size = len(self._collected) + len(part)
        if size > announced or more == (size == announced):
            raise ParseError(f"EAP-TLS: {size} octets of TLS{' and more' if more else ''}, {announced} announced")
        if self._count >= FRAGMENTS_MAX:
            raise ParseError(f"EAP-TLS: more than {FRAGMENTS_MAX} fragments")


def is_start(data: bytes) -> bool:
    """Whether Type-Data of a request begins the conversation. ParseError."""
    if not data:
        raise ParseError("EAP-TLS without flags")
    if not data[0] & START:
        return False
    # section 3.1: reserved bits are ignored
    if len(data) > 1 or data[0] & (LENGTH_INCLUDED | MORE_FRAGMENTS):
        raise ParseError("EAP-TLS: Start with data")
    return True


def _parse(data: bytes) -> tuple[int, int | None, bytes]:
    """Flags that mean something, the length of the flight if it is there, and data."""
    if is_start(data):
        raise ParseError("EAP-TLS: Start in the middle")
    flags = data[0] & (LENGTH_INCLUDED | MORE_FRAGMENTS)
    if not flags & LENGTH_INCLUDED:
        return flags, None, data[1:]
    if len(data) < 1 + _LENGTH:
        raise ParseError(f"EAP-TLS packet of {len(data)} octets is too short for its length field")
    total = int.from_bytes(data[1 : 1 + _LENGTH], "big")
    if total > FLIGHT_MAX:
        raise ParseError(f"EAP-TLS: {total} octets of TLS announced, {FLIGHT_MAX} are taken")
    return flags, total, data[1 + _LENGTH :]
