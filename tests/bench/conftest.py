"""A small result that a machine once gave, with all kinds of figures in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

RECORDED = Path(__file__).with_name("recorded.json")


@pytest.fixture
def recorded() -> Path:
    """The file."""
    return RECORDED


@pytest.fixture
def document() -> dict[str, Any]:
    """What is in it, to be changed."""
    found: dict[str, Any] = json.loads(RECORDED.read_text())
    return found
