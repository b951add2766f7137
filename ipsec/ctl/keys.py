"""The key files of a daemon that writes them (``ipsecd.keylog``), beside a capture."""

from __future__ import annotations

import os
from pathlib import Path

from ipsec.ctl.errors import CtlError, ExitCode

_FILES = ("ikev2_decryption_table", "esp_sa")
_PREFERENCES = "esp.enable_encryption_decode: TRUE\nesp.enable_authentication_check: TRUE\n"


class Keys:
    """Copies them to a directory that Wireshark takes as its profile. Made only because somebody has asked for it."""

    def __init__(self, source: str, target: str) -> None:
        """CtlError if the daemon writes none."""
        if not source:
            raise CtlError(
                "the daemon writes no keys",
                "set ipsecd.keylog to a directory and restart it; what is up is negotiated anew then",
                code=ExitCode.REQUIREMENT,
            )
        self._source = Path(source)
        self._target = Path(target)

    def warning(self) -> str:
        """What to say loudly."""
        return (
            f"KEYS ARE COPIED TO {self._target}: whoever has them and a record of the traffic reads all of it. "
            "Delete them when you are done."
        )

    def copy(self, capture: str) -> str:
        """Copy what has been written so far; how to use it."""
        try:
            self._target.mkdir(mode=0o700, parents=True, exist_ok=True)
            for name in _FILES:
                self._write(name, (self._source / name).read_bytes())
            self._write("preferences", _PREFERENCES.encode())
        except OSError as error:
            why = f"cannot copy {error.filename}: {error.strerror}"
            raise CtlError(why, f"the daemon's key files are in {self._source}") from error
        return f"to read it: WIRESHARK_CONFIG_DIR={self._target} wireshark {capture}"

    def _write(self, name: str, content: bytes) -> None:
        path = self._target / name
        # a file of ours alone: one that was there before may be another's, or open to others
        path.unlink(missing_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(content)
