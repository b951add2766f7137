"""The command line, where it is not that of a checkout."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("name", ["bench", "bench.e2e", "bench.micro", "bench.handshake"])
def test_a_python_that_lacks_something_is_told_what_to_do(name: str) -> None:
    code = f"import sys, runpy; sys.modules['jsonschema'] = None; runpy.run_module({name!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("bench: ")
    assert "jsonschema" in done.stderr
    assert done.stderr.endswith("; run tools/setup build net bench, then .venv/bin/python -m bench\n")
    assert done.stderr.count("\n") == 1
