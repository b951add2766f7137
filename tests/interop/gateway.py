"""One end of a tunnel, whichever daemon it runs, and the configuration that both daemons understand."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.interop.lab import Namespace


@dataclass(frozen=True)
class Side:
    """What one end is configured with, the same for either daemon."""

    swanctl: dict[str, Any]
    "swanctl.conf as nested dicts"
    settings: dict[str, Any] = field(default_factory=dict)
    "charon.* of strongswan.conf; what an ipsecd has of the same name goes into its section ipsecd"
    files: tuple[str, ...] = ()
    "of the certificates' folder: x509/a-rsa.pem, private/a-rsa.pem, ..."


class Gateway(ABC):
    """One daemon in its namespace. ``home`` is its own folder and goes with the test."""

    kind: str

    def __init__(self, namespace: Namespace, index: int, home: Path, side: Side, credentials: Path) -> None:
        self.namespace = namespace
        self.index = index
        self.home = home
        self.side = side
        self.credentials = credentials
        self.log_file = home / "log"
        self.output = home / "output"
        "what the process prints"
        self.process: subprocess.Popen[bytes] | None = None
        self.plans: set[str] = set()
        "what the steps of the case will ask this end to do: child, ike, reauth, ..."

    def start(self) -> None:
        """Write the configuration and start the daemon; returns when it can be talked to."""
        self.home.mkdir(mode=0o700, exist_ok=True)
        for name in self.side.files:
            target = self.home / name
            target.parent.mkdir(exist_ok=True)
            shutil.copy(self.credentials / name, target)
        self._write()
        self._launch()

    @abstractmethod
    def _write(self) -> None:
        """Write the daemon's own files."""

    @abstractmethod
    def _launch(self) -> None:
        """Start the process and wait until it is ready."""

    @property
    @abstractmethod
    def environment(self) -> dict[str, str]:
        """What the process gets besides ours."""

    @abstractmethod
    def reload(self) -> None:
        """Have the configuration file read again."""

    @abstractmethod
    def initiate(self, child: str = "net", *, timeout: float = 8.0) -> bool:
        """Bring up a child, with its IKE_SA if there is none; whether that worked."""

    @abstractmethod
    def rekey(self, what: str) -> None:
        """Replace ``child``, ``ike`` or, with a new authentication, ``reauth``. Needs a plan."""

    @abstractmethod
    def terminate(self, what: str) -> None:
        """Close the ``child`` or the ``ike`` SA, telling the peer."""

    def sas(self) -> list[dict[str, Any]] | None:
        """What ``swanctl --list-sas`` shows; None if this end cannot be asked."""
        return None

    def change(self, side: Side) -> None:
        """Go on with another configuration."""
        self.side = side
        self._write()
        self.reload()

    def log(self) -> str:
        """What the daemon has said since it was first started."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def _spawn(self, *command: str) -> None:
        """Start the daemon; what it prints is appended to ``output``, which may be the log."""
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                self.namespace.command(*command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **self.environment},
                cwd=self.home,
            )

    def _alive(self) -> bool:
        assert self.process is not None
        status = self.process.poll()
        assert status is None, f"{self.kind} ended: {status}\n{self.output.read_text(errors='replace')[-3000:]}"
        return True

    def kill(self) -> None:
        """End the daemon as a crash would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def stop(self, *, timeout: float = 5.0) -> float:
        """End the daemon as an operator would; seconds that took. It is killed if that does not help."""
        if self.process is None:
            return 0.0
        begin = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.kind} does not end on SIGTERM within {timeout:g} s") from None
        self.process = None
        assert status == 0, f"{self.kind} ended with {status}\n{self.output.read_text(errors='replace')[-3000:]}"
        return time.monotonic() - begin
