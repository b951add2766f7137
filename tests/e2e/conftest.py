"""Gateways for end-to-end tests. Whether namespaces can be made at all is the top conftest's question."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.gateways import Setup, World


@pytest.fixture
def make_world(tmp_path: Path) -> Iterator[Callable[[Setup], World]]:
    """Builds two gateways, not started yet."""
    with ExitStack() as stack:
        yield lambda setup: stack.enter_context(World(tmp_path, setup))


@pytest.fixture
def world(make_world: Callable[[Setup], World]) -> World:
    """Two running gateways with the default set-up."""
    world = make_world(Setup())
    world.start()
    return world
