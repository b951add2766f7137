"""Benchmarks: ``python -m bench.e2e`` (side by side with other tunnels) and ``python -m bench.micro`` (in memory)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def installed() -> Iterator[None]:
    """What is imported in the body is in a checkout's environment, which another Python does not have."""
    try:
        yield
    except ImportError as error:
        raise SystemExit(f"bench: {error}; run tools/setup build net bench, then .venv/bin/python -m bench") from None
