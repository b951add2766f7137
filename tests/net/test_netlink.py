"""ipsec.net.netlink with a kernel that says what the test wants; with the real one: test_route."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable

import pytest

from ipsec.net.netlink import Netlink

DONE, ERROR, ROUTE = 3, 2, 24
MULTI, INTERRUPTED = 0x2, 0x10


def message(kind: int, sequence: int, body: bytes = b"", flags: int = MULTI) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, flags, sequence, 0) + body


class Kernel:
    """The socket of a Netlink. ``answer`` makes what is received for the n-th question, of its sequence number."""

    def __init__(self, answer: Callable[[int, int], list[bytes]]) -> None:
        self.answer = answer
        self.asked = 0
        self.waiting: list[bytes] = []

    def send(self, data: bytes) -> None:
        self.waiting += self.answer(self.asked, struct.unpack_from("=IHHII", data)[3])
        self.asked += 1

    def recv(self, size: int) -> bytes:
        return self.waiting.pop(0)

    def close(self) -> None:
        pass


@pytest.fixture
def netlink() -> Netlink:
    made = Netlink()
    made._socket.close()
    return made


def ask(netlink: Netlink, kernel: Kernel) -> list[bytes]:
    netlink._socket = kernel  # type: ignore[assignment]
    return netlink.dump(26, b"", answer=ROUTE)


def test_a_list_that_changed_meanwhile_is_asked_for_again(netlink: Netlink) -> None:
    """NLM_F_DUMP_INTR in any of its messages: entries may be missing, or be there twice."""

    def answer(number: int, sequence: int) -> list[bytes]:
        flags = MULTI | (INTERRUPTED if number < 2 else 0)
        last = message(DONE, sequence, bytes(4), flags if number == 1 else MULTI)
        return [message(ROUTE, sequence, b"%04d" % number, flags if number == 0 else MULTI), last]

    kernel = Kernel(answer)
    assert ask(netlink, kernel) == [b"0002"]
    assert kernel.asked == 3


def test_where_nothing_rests_the_last_list_has_to_do(netlink: Netlink) -> None:
    def answer(number: int, sequence: int) -> list[bytes]:
        return [message(ROUTE, sequence, b"%04d" % number), message(DONE, sequence, bytes(4), MULTI | INTERRUPTED)]

    kernel = Kernel(answer)
    assert ask(netlink, kernel) == [b"0007"]
    assert kernel.asked == 8


def test_an_earlier_question_was_not_answered_to_its_end(netlink: Netlink) -> None:
    busy = struct.pack("=i", -errno.EBUSY) + bytes(16)
    with pytest.raises(OSError, match="busy"):
        ask(netlink, Kernel(lambda number, sequence: [message(ERROR, sequence, busy)]))


def test_any_other_error_is_an_empty_list(netlink: Netlink) -> None:
    """A table that was never used, a family that is switched off."""
    none = struct.pack("=i", -errno.ENOENT) + bytes(16)
    assert ask(netlink, Kernel(lambda number, sequence: [message(ERROR, sequence, none)])) == []
