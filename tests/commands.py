"""Commands that tests run."""

from __future__ import annotations

import shlex
import subprocess


def run(*args: str, check: bool = True, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """A command with its output; AssertionError with that output if it fails."""
    done = subprocess.run(args, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL)
    assert not check or done.returncode == 0, f"{shlex.join(args)}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done
