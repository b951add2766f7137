"""What a command prints for whoever has asked."""

from __future__ import annotations

import io
import os
import sys
from typing import TextIO

from ipsec.exits import ExitCode


def lenient() -> None:
    """Print ``?`` for a character that the terminal's encoding lacks, rather than nothing at all."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def say(text: str, status: int) -> int:
    """Print it; the exit status, which is another one if nobody reads it or it cannot be written."""
    lenient()
    try:
        print(text, flush=True)
    except BrokenPipeError:
        deafen()
        return ExitCode.BROKEN_PIPE
    except OSError as error:
        deafen()
        print(f"cannot write to standard output: {error.strerror}", file=sys.stderr)
        return ExitCode.REQUIREMENT
    return status


def deafen(stream: TextIO | None = None) -> None:
    """Let nothing more reach standard output, or ``stream``: the interpreter must not complain when it flushes it."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, (stream or sys.stdout).fileno())
    os.close(devnull)
