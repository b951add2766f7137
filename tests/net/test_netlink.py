"""ipsec.net.netlink with a kernel that says what the test wants; with the real one: test_route."""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import closing

import pytest

from ipsec.net import rtnetlink
from ipsec.net.netlink import CHANGE_FLAGS, Message, Netlink

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


@pytest.mark.parametrize("kind", [DONE, ERROR])
@pytest.mark.parametrize("number", [errno.EBUSY, errno.ENOMEM, errno.EPERM])
def test_an_error_is_not_an_empty_list(netlink: Netlink, kind: int, number: int) -> None:
    """What was not listed is not gone: routes would stay behind, or be taken for missing."""
    error = struct.pack("=i", -number) + bytes(16)
    kernel = Kernel(lambda _, sequence: [message(ROUTE, sequence, b"some") + message(kind, sequence, error)])
    with pytest.raises(OSError, match=os.strerror(number)):
        ask(netlink, kernel)


@pytest.mark.parametrize("kind", [DONE, ERROR])
@pytest.mark.parametrize("number", [errno.ENOENT, errno.EAFNOSUPPORT, errno.EOPNOTSUPP])
def test_nothing_of_the_kind_is_an_empty_list(netlink: Netlink, kind: int, number: int) -> None:
    """A table that was never used, a family that is switched off."""
    none = struct.pack("=i", -number) + bytes(16)
    assert ask(netlink, Kernel(lambda _, sequence: [message(kind, sequence, none)])) == []


def test_an_old_kernel_is_done_without_a_word(netlink: Netlink) -> None:
    kernel = Kernel(lambda _, sequence: [message(ROUTE, sequence, b"some") + message(DONE, sequence)])
    assert ask(netlink, kernel) == [b"some"]


def test_threads_may_share_one() -> None:
    """Each gets the answers to its own questions: the kernel's, or that it is not permitted."""
    troubles: list[BaseException] = []
    route = Message(25, CHANGE_FLAGS, struct.pack("=BBBBBBBBI", socket.AF_INET, 0, 0, 0, 0, 0, 0, 9, 0))

    def work(netlink: Netlink, change: bool) -> None:
        try:
            for _ in range(300):
                if change:
                    ((at, _),) = netlink.change([route])
                    assert at == 0
                else:
                    rtnetlink.addresses(netlink)
        except BaseException as error:
            troubles.append(error)

    with closing(Netlink()) as netlink:
        netlink._socket.settimeout(1)
        threads = [threading.Thread(target=work, args=(netlink, change)) for change in (True, True, False)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not troubles
