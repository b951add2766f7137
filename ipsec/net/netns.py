"""Work in another network namespace: sockets and devices opened there stay there."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

_CLONE_NEWNET = 0x40000000
#: where ip-netns(8) keeps its names
NAMED = "/run/netns"


def enter(name: str) -> None:
    """Go into a network namespace, this thread only and for good: a name of ip-netns(8), or a path. OSError."""
    target = os.open(os.path.join(NAMED, name), os.O_RDONLY | os.O_CLOEXEC)
    try:
        _setns(target)
    finally:
        os.close(target)


@contextmanager
def inside(name: str) -> Iterator[None]:
    """Run the body in a network namespace, this thread only. OSError if that is not permitted."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        enter(name)
        try:
            yield
        finally:
            _setns(home)
    finally:
        os.close(home)


def _setns(fd: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(fd, _CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
