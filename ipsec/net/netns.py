"""Work in another network namespace for a moment: sockets and devices opened there stay there."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

_CLONE_NEWNET = 0x40000000
#: where ip-netns(8) keeps its names
NAMED = "/run/netns"


@contextmanager
def inside(name: str) -> Iterator[None]:
    """Run the body in the network namespace ``name``, this thread only. OSError if that is not permitted."""
    target = os.open(f"{NAMED}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _setns(target)
            try:
                yield
            finally:
                _setns(home)
        finally:
            os.close(home)
    finally:
        os.close(target)


def _setns(fd: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(fd, _CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
