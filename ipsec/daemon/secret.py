"""The secret that outlives the daemon, so that peers learn at once that it was restarted (RFC 6290)."""

from __future__ import annotations

import logging
import os
import secrets
from pathlib import Path

log = logging.getLogger(__name__)

SECRET_LEN = 32
SECRET_FILE = "qcd.secret"


def qcd_secret(state_dir: Path) -> bytes:
    """The secret in ``state_dir``, made if it is not there; nothing if it cannot be kept, which is logged."""
    path = state_dir / SECRET_FILE
    try:
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            found = path.read_bytes()
        except FileNotFoundError:
            return _make(path)
        if len(found) == SECRET_LEN and not path.stat().st_mode & 0o077:
            return found
        log.warning("%s is damaged or open to others, making another one", path)
        return _make(path)
    except OSError as error:
        why = f"cannot keep {path} (ipsecd.state_dir): {error.strerror}"
        log.warning("peers will take longer to notice a restart: %s", why)
        return b""


def _make(path: Path) -> bytes:
    secret = secrets.token_bytes(SECRET_LEN)
    temporary = path.with_suffix(".new")
    temporary.unlink(missing_ok=True)
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(secret)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        # on a full disk nothing is left behind
        temporary.unlink(missing_ok=True)
        raise
    return secret
