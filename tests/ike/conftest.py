"""Thousands of virtual hosts have nothing to say: formatting their log would be most of the work."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Only what the engine calls an error; a test that reads the log sets the level it needs."""
    logger = logging.getLogger("ipsec")
    before = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(before)
