"""DER, element by element: what is written is read again, and what is not DER is nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ipsec.crypto import der
from ipsec.errors import ParseError


@pytest.mark.parametrize("size", [0, 1, 127, 128, 255, 256, 65535, 65536])
def test_lengths(size: int) -> None:
    whole = der.emit(der.OCTET_STRING, bytes(size))
    assert der.contents(whole, der.OCTET_STRING) == bytes(size)
    assert der.items(2 * whole) == 2 * [(der.OCTET_STRING, bytes(size))]
    assert der.elements(2 * whole) == 2 * [(der.OCTET_STRING, whole)]
    for cut in {*range(min(len(whole), 6)), len(whole) - 1}:
        with pytest.raises(ParseError):
            der.read(whole[:cut])


@pytest.mark.parametrize(
    "data",
    [
        "",
        "04",
        "0401",
        "1f0100",  # tag number above 30
        "3f0100",
        "0480",  # indefinite
        "04800000",
        "04817f" + "00" * 127,  # X.690 section 10.1: not the shortest
        "04820080" + "00" * 128,
        "0483000100" + "00" * 256,
        "04850000000100",  # more octets than any length needs
        "0484ffffffff00",
        "0482ff",
    ],
)
def test_no_element(data: str) -> None:
    for read in (der.read, der.items, der.elements):
        if data or read is der.read:
            with pytest.raises(ParseError):
                read(bytes.fromhex(data))


def test_one_element_and_no_other() -> None:
    for data in ("0500", "040000", "04000400"):
        with pytest.raises(ParseError):
            der.contents(bytes.fromhex(data), der.OCTET_STRING)


def test_there_is_an_end_to_elements() -> None:
    for read in (der.items, der.elements):
        assert len(read(der.ITEMS_MAX * b"\5\0")) == der.ITEMS_MAX
        with pytest.raises(ParseError, match="too many"):
            read((der.ITEMS_MAX + 1) * b"\5\0")


@pytest.mark.parametrize("number", [0, 1, 127, 128, 255, 256, 1 << 64, -1, -128, -129, -(1 << 64)])
def test_integers(number: int) -> None:
    assert der.read_int(der.contents(der.emit_int(number), der.INTEGER)) == number


@pytest.mark.parametrize(
    "oid", ["0.0", "0.39", "1.0", "1.39", "2.0", "2.40", "2.999.1", "1.2.840.113549.1.1.10", "2.5.29.15", "1.3.127.128"]
)
def test_object_identifiers(oid: str) -> None:
    assert der.read_oid(der.contents(der.emit_oid(oid), der.OID)) == oid


@pytest.mark.parametrize("text", ["", "1", "3.1", "0.40", "1.40", "1.-2", "1.2.", "1.2.x", "1.2.\u0663"])
def test_no_object_identifier(text: str) -> None:
    with pytest.raises(ValueError, match="not an object identifier"):
        der.emit_oid(text)


@pytest.mark.parametrize(
    ("read", "bad"),
    [
        (der.read_bool, ["", "01", "fe", "ff00"]),
        (der.read_int, ["", "0000", "007f", "ffff", "ff80", "01" * 4097]),
        (der.read_bits, ["", "01ff", "0700", "08"]),
        (der.read_flags, ["", "01", "08ff", "00" * 17]),
        (der.read_oid, ["", "80", "2a80", "2a8001", "8001", "2a" * 65, "2a86"]),
    ],
)
def test_values_that_are_none(read: Callable[[bytes], object], bad: list[str]) -> None:
    for value in bad:
        with pytest.raises(ParseError):
            read(bytes.fromhex(value))


def test_values() -> None:
    assert der.read_bool(b"\xff")
    assert not der.read_bool(b"\0")
    assert der.read_bits(b"\0\xa5") == b"\xa5"
    assert der.read_bits(b"\0") == b""
    assert der.read_flags(b"\0") == frozenset()
    assert der.read_flags(b"\5\xa0\x80") == {0, 2, 8}
    assert der.read_int(b"\x01" * 4096) == int.from_bytes(b"\x01" * 4096, "big")
    assert der.context(3) == 0xA3
    assert der.context(3, constructed=False) == 0x83
