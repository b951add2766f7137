"""What is written by tools/ into docs/ is what the code says."""

from __future__ import annotations

from types import ModuleType

import pytest

from tools import environment, manpage, metrics, settings, states


@pytest.mark.parametrize("tool", [environment, manpage, metrics, settings, states], ids=lambda tool: tool.__name__)
def test_file_is_current(tool: ModuleType) -> None:
    assert tool.FILE.read_text() == tool.text(), f"run: python -m {tool.__name__}"
