"""rtnetlink messages made by hand, where a library takes ten times longer: what happens with every tunnel.

RFC 3549; linux/netlink.h. Blocks for as long as the kernel takes.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_SOL_NETLINK = 270
_NETLINK_CAP_ACK = 10
_NETLINK_GET_STRICT_CHK = 12
# NLM_F_REQUEST | NLM_F_DUMP
_DUMP_FLAGS = 0x301
_ACK = 0x4
#: what the kernel listed changed while it did (NLM_F_DUMP_INTR): something may be missing, or there twice
_DUMP_INTERRUPTED = 0x10
#: where things never rest the last list has to do
_DUMPS_MAX = 8
#: NLM_F_REQUEST | NLM_F_ACK, and for new things NLM_F_CREATE | NLM_F_REPLACE or NLM_F_CREATE | NLM_F_EXCL
CHANGE_FLAGS = 0x5
ADD_FLAGS = 0x505
ADD_NEW_FLAGS = 0x605

_HEADER = struct.Struct("=IHHII")
HEADER_LEN = _HEADER.size
_ATTRIBUTE = struct.Struct("=HH")
_U32_ATTRIBUTE = struct.Struct("=HHI")
_ERROR = struct.Struct("=i")
#: how a list ends of which there is nothing: a table that was never used, a family that is switched off
_NOTHING = frozenset(
    (0, errno.ENOENT, errno.ENODEV, errno.EAFNOSUPPORT, errno.EPFNOSUPPORT, errno.EPROTONOSUPPORT, errno.EOPNOTSUPP)
)
#: messages of one send: should all be refused, the answers fit into any receive buffer
BATCH = 64
#: seconds until the kernel has answered, which it does at once
_PATIENCE = 5.0


class Message(NamedTuple):
    """Something to be changed."""

    kind: int
    flags: int
    body: bytes


class Netlink:
    """A socket of rtnetlink. Threads may share it: each waits until another has its answer."""

    def __init__(self) -> None:
        self._sequence = 0
        self._lock = threading.Lock()
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.settimeout(_PATIENCE)
        self._socket.bind((0, 0))
        # an acknowledgement need not hold what it acknowledges
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
        with suppress(OSError):
            # Linux 4.20: the kernel filters a dump, so that a full BGP table costs us nothing
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)

    @property
    def port(self) -> int:
        """By which the kernel tells others who has made a change."""
        return int(self._socket.getsockname()[0])

    def close(self) -> None:
        """Give the socket back."""
        self._socket.close()

    def dump(self, kind: int, body: bytes, *, answer: int) -> list[bytes]:
        """The bodies of all messages ``answer`` that the kernel gives for a GET. OSError if it fails or is silent.

        What changed while it was read is read again.
        """
        with self._lock:
            for _ in range(_DUMPS_MAX):
                found, whole = self._dump(kind, body, answer)
                if whole:
                    break
            return found

    def _dump(self, kind: int, body: bytes, answer: int) -> tuple[list[bytes], bool]:
        """What the kernel lists, and whether nothing changed meanwhile."""
        found: list[bytes] = []
        whole = True
        self._sequence += 1
        header = _HEADER.pack(_HEADER.size + len(body), kind, _DUMP_FLAGS, self._sequence, 0)
        self._socket.send(header + body)
        while True:
            data = self._socket.recv(1 << 18)
            for length, at, kind, flags, sequence, _ in messages(data):
                if sequence != self._sequence:
                    continue
                whole = whole and not flags & _DUMP_INTERRUPTED
                if kind in (_NLMSG_ERROR, _NLMSG_DONE):
                    # an old kernel says nothing with DONE
                    says = length >= _HEADER.size + _ERROR.size
                    error = -_ERROR.unpack_from(data, at + _HEADER.size)[0] if says else 0
                    if error not in _NOTHING:
                        raise OSError(error, os.strerror(error))
                    return found, whole
                if kind == answer:
                    found.append(data[at + _HEADER.size : at + length])

    def change(self, messages: Sequence[Message]) -> list[tuple[int, int]]:
        """Do all of these, in order; (index, errno) of those that failed. OSError if the kernel does not answer."""
        with self._lock:
            return self._change(messages)

    def _change(self, messages: Sequence[Message]) -> list[tuple[int, int]]:
        failed: list[tuple[int, int]] = []
        for at in range(0, len(messages), BATCH):
            batch = messages[at : at + BATCH]
            first = self._sequence + 1
            last = self._sequence = self._sequence + len(batch)
            self._socket.send(
                b"".join(
                    # a failure is told in any case, so that one acknowledgement is enough
                    _HEADER.pack(
                        _HEADER.size + len(body), kind, flags if first + number == last else flags & ~_ACK,
                        first + number, 0,
                    ) + body
                    for number, (kind, flags, body) in enumerate(batch)
                )
            )  # fmt: skip
            failed += [(at + number, error) for number, error in self._answers(first, last)]
        return failed

    def _answers(self, first: int, last: int) -> list[tuple[int, int]]:
        """(index in the batch, errno) of those that failed, once the ``last`` is answered."""
        failed: list[tuple[int, int]] = []
        while True:
            data = self._socket.recv(1 << 16)
            for length, at, kind, _, sequence, _ in messages(data):
                if kind == _NLMSG_ERROR and first <= sequence <= last:
                    if length < _HEADER.size + _ERROR.size:
                        raise OSError(errno.EPROTO, os.strerror(errno.EPROTO))
                    (error,) = _ERROR.unpack_from(data, at + _HEADER.size)
                    if error:
                        failed.append((sequence - first, -error))
                    if sequence == last:
                        return failed


def messages(data: bytes) -> Iterator[tuple[int, int, int, int, int, int]]:
    """(length with header, where it is, type, flags, sequence number, port) of each message in what was received."""
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, flags, sequence, port = _HEADER.unpack_from(data, at)
        if not _HEADER.size <= length <= len(data) - at:
            return
        yield length, at, kind, flags, sequence, port
        at += (length + 3) & ~3


def u32(kind: int, value: int) -> bytes:
    """An attribute that is a number."""
    return _U32_ATTRIBUTE.pack(8, kind, value)


def attribute(kind: int, value: bytes) -> bytes:
    """An attribute, padded."""
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def attributes(body: bytes, at: int) -> dict[int, bytes]:
    """The attributes of a message that begin at ``at``."""
    found: dict[int, bytes] = {}
    while at + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, at)
        if length < _ATTRIBUTE.size:
            break
        found[kind] = body[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3
    return found
