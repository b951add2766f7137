"""Every target of ``make fuzz`` takes its seeds and a hundred damaged ones, so that the targets keep working."""

from __future__ import annotations

import random

import pytest

from tests.fuzz.targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_and_damaged_seeds(name: str) -> None:
    target = TARGETS[name]
    seeds = target.seeds()
    assert seeds
    rng = random.Random(name)
    for seed in seeds:
        target.run(seed)
        target.run(seed[: rng.randrange(len(seed))])
    for _ in range(100):
        data = bytearray(rng.choice(seeds))
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        target.run(bytes(data))
