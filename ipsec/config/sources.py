"""Which files a configuration was read from, and what they looked like just before: so that a change is noticed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

#: device, inode, size, time of change; None if the file is not there
Look = tuple[int, int, int, int] | None

_recording: ContextVar[dict[str, Look] | None] = ContextVar("recording", default=None)


@contextmanager
def recorded() -> Iterator[dict[str, Look]]:
    """Collects the files and directories that the body reads."""
    found: dict[str, Look] = {}
    token = _recording.set(found)
    try:
        yield found
    finally:
        _recording.reset(token)


def note(path: str) -> None:
    """A file or directory is about to be read."""
    found = _recording.get()
    if found is not None and path not in found:
        found[path] = look(path)


def why_unread(error: OSError | ValueError) -> str:
    """Why a file cannot be read, and who would have to be able to."""
    why = getattr(error, "strerror", None) or "not a file name"
    if isinstance(error, PermissionError):
        groups = ", ".join(map(str, sorted({os.getegid(), *os.getgroups()})))
        why += f"; it has to be readable by uid {os.geteuid()} or group {groups}"
    return why


def look(path: str) -> Look:
    """What a file looks like now. Symbolic links are followed: Kubernetes changes those."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
