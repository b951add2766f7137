"""docker/scenarios/: that each can be read, and, with ``-m containers``, what ``make scenarios`` runs."""

from __future__ import annotations

import pytest

from tools.scenarios import file, model
from tools.scenarios.play import make_images, obstacle, play
from tools.scenarios.steps import VERBS

NAMES = file.names()


@pytest.mark.parametrize("name", NAMES)
def test_scenario_can_be_read(name: str) -> None:
    assert file.read(name, set(VERBS)).steps


@pytest.fixture(scope="session")
def images() -> dict[str, str]:
    """All images, built unless they are there."""
    why = obstacle()
    if why:
        pytest.skip(why)
    return make_images(model.IMAGES)


@pytest.mark.containers
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", NAMES)
def test_scenario(name: str, images: dict[str, str]) -> None:
    result = play(file.read(name, set(VERBS)), images)
    said = "\n".join(f"--- {container}\n{lines}" for container, lines in result.said.items())
    assert not result.error, f"{result.failed_check}: {result.error}\n{said}"
