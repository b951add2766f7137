"""The wire format, against the ``vici`` package of PyPI and against noise."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipsec.errors import ParseError
from ipsec.vici.codec import (
    DEPTH_MAX,
    SEGMENT_MAX,
    Packet,
    PacketType,
    emit_packet,
    parse_length,
    parse_message,
    parse_packet,
    take_packet,
    text,
    texts,
)

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20)
VALUES = st.one_of(st.binary(max_size=50), st.lists(st.binary(max_size=20), max_size=4))
MESSAGES = st.recursive(
    st.dictionaries(NAMES, VALUES, max_size=5), lambda inner: st.dictionaries(NAMES, inner | VALUES, max_size=4)
)


@given(MESSAGES)
def test_messages_come_back(message: dict[str, Any]) -> None:
    data = emit_packet(PacketType.CMD_REQUEST, "load-conn", message)
    assert parse_length(data[:4]) == len(data) - 4
    assert parse_packet(data[4:]) == Packet(PacketType.CMD_REQUEST, "load-conn", message)


@given(MESSAGES)
def test_the_client_of_pypi_agrees(message: dict[str, Any]) -> None:
    protocol = pytest.importorskip("vici.protocol")
    theirs = b"".join((protocol.Message.serialize(message),)) if message else b""
    ours = emit_packet(PacketType.EVENT, "x", message)
    assert ours[4 + 1 + 2 :] == theirs
    decoded = protocol.Message.deserialize(protocol.FiniteStream(theirs))
    assert parse_message(theirs) == _plain(decoded)


def _plain(value: Any) -> Any:
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, dict) else value


@given(st.binary(max_size=200))
def test_noise_is_a_parse_error_or_a_packet(data: bytes) -> None:
    try:
        packet = parse_packet(data)
    except ParseError:
        return
    assert isinstance(packet.type, PacketType)


@given(MESSAGES, st.data())
def test_broken_messages(message: dict[str, Any], data: st.DataObject) -> None:
    whole = bytearray(emit_packet(PacketType.CMD_REQUEST, "x", message)[4:])
    for _ in range(data.draw(st.integers(1, 4))):
        index = data.draw(st.integers(0, len(whole) - 1))
        whole[index] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ParseError):
        parse_packet(bytes(whole))


@pytest.mark.parametrize("length", [0, SEGMENT_MAX + 1, 0xFFFFFFFF])
def test_lengths_that_cannot_be(length: int) -> None:
    with pytest.raises(ParseError):
        parse_length(length.to_bytes(4, "big"))


def test_packets_are_taken_when_they_are_complete() -> None:
    first, second = Packet(PacketType.CMD_REQUEST, "x", {"a": b"b"}), Packet(PacketType.EVENT_REGISTER, "y")
    come, taken = bytearray(), []
    for octet in emit_packet(*first) + emit_packet(*second):
        come.append(octet)
        taken.append(take_packet(come))
    assert [packet for packet in taken if packet is not None] == [first, second]
    assert taken[-1] == second
    assert not come
    with pytest.raises(ParseError):
        take_packet(bytearray(4))


def test_nesting_is_bounded() -> None:
    message: dict[str, Any] = {}
    for _ in range(DEPTH_MAX):
        message = {"a": message}
    data = emit_packet(PacketType.CMD_RESPONSE, message=message)[4:]
    assert parse_packet(data).message == message
    with pytest.raises(ParseError, match="deeply"):
        parse_message(b"\x01\x01a" + data[1:] + b"\x02")
    with pytest.raises(ValueError, match="deeply"):
        emit_packet(PacketType.CMD_RESPONSE, message={"a": message})


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ("03", "name is cut short"),
        ("030261", "name is cut short"),
        ("03016100", "value is cut short"),
        ("030161000261", "value is cut short"),
        ("04016103016200016306", "items only"),
        ("02", "where none can be"),
        ("05000161", "where none can be"),
        ("06", "where none can be"),
        ("07", "where none can be"),
        ("010161", "ends within"),
        ("040161", "ends within"),
    ],
)
def test_messages_that_are_none(data: str, why: str) -> None:
    with pytest.raises(ParseError, match=why):
        parse_message(bytes.fromhex(data))


def test_what_just_fits() -> None:
    message = {"x": b"y" * 65535, "n" * 255: b"", "l": [b"z" * 65535]}
    assert parse_packet(emit_packet(PacketType.CMD_RESPONSE, message=message)[4:]).message == message


def test_a_section_may_be_nameless() -> None:
    """charon's global counters are in one."""
    data = emit_packet(PacketType.CMD_RESPONSE, message={"counters": {"": {"invalid": 1}}})
    assert parse_packet(data[4:]).message == {"counters": {"": {"invalid": b"1"}}}


def test_what_is_written() -> None:
    message = {"yes": True, "no": False, "number": 7, "none": None, "list": (1, "b"), "empty": []}
    found = parse_packet(emit_packet(PacketType.CMD_RESPONSE, message=message)[4:]).message
    assert found == {"yes": b"yes", "no": b"no", "number": b"7", "list": [b"1", b"b"], "empty": []}


@pytest.mark.parametrize("message", [{"x": "y" * 65536}, {"n" * 256: "y"}, {"l": ["y" * 60000] * 10}])
def test_what_does_not_fit(message: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="vici"):
        emit_packet(PacketType.CMD_RESPONSE, message=message)


def test_text() -> None:
    message = {"a": b"x", "l": [b"1", b"2"], "s": {}}
    assert text(message, "a") == "x"
    assert text(message, "s") == text(message, "l") == ""
    assert (texts(message, "l"), texts(message, "a"), texts(message, "?")) == (["1", "2"], ["x"], [])


def _typical() -> bytes:
    """A message with everything that there is."""
    message = {"a": b"value", "list": [b"1", b"", b"3"], "section": {"inner": {"deep": b"x"}, "none": []}, "": b""}
    return emit_packet(PacketType.CMD_REQUEST, "load-conn", message)[4:]


def _mutants() -> Iterator[bytes]:
    whole = _typical()
    for index in range(len(whole)):
        yield whole[:index]
        yield whole[:index] + whole[index + 1 :]
        yield whole[:index] + whole[index:] + whole[index:]
        for value in (*range(9), 0x7F, 0x80, 0xFE, 0xFF, whole[index] ^ 1, whole[index] ^ 0x10):
            yield whole[:index] + bytes((value,)) + whole[index + 1 :]
            yield whole[:index] + bytes((value,)) + whole[index:]


def test_every_mutant_is_a_parse_error_or_what_it_says() -> None:
    """What is taken is written again as it was read: nothing is lost, invented or taken for something else."""
    taken = 0
    for data in _mutants():
        try:
            packet = parse_packet(data)
        except ParseError:
            continue
        taken += 1
        again = parse_packet(emit_packet(packet.type, packet.name, packet.message)[4:])
        assert again == packet, data
    assert taken > 100
