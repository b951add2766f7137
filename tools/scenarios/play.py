"""One scenario from its network to its end."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from tools import image
from tools.scenarios.containers import Containers
from tools.scenarios.lab import Lab, LabError
from tools.scenarios.model import Scenario
from tools.scenarios.steps import World, act


@dataclass
class Result:
    """What came of a scenario."""

    scenario: Scenario
    seconds: list[float] = field(default_factory=list)
    "of each step that passed"
    error: str = ""
    "empty if all passed"
    said: dict[str, str] = field(default_factory=dict)
    "container -> output of its last run, each line with seconds since its start"

    @property
    def failed_check(self) -> str:
        """The step that did not pass."""
        steps = self.scenario.steps
        return steps[len(self.seconds)].check if len(self.seconds) < len(steps) else "set-up"


def obstacle() -> str:
    """Why scenarios cannot run here; empty if they can."""
    missing = [name for name in ("podman", "runc", "ip", "nft", "ping") if not shutil.which(name)]
    if missing:
        return f"not installed: {', '.join(missing)}; tools/setup containers net installs them"
    if os.geteuid():
        return "containers in named network namespaces take root"
    return ""


def make_images(kinds: Iterable[str]) -> dict[str, str]:
    """kind -> image, built unless it is there. ImageError."""
    base = image.debian_base()
    builders = {"ipsec": image.ipsec_image, "strongswan": image.strongswan_image}
    with ThreadPoolExecutor() as pool:
        made = {kind: pool.submit(builders[kind], base) for kind in kinds}
        return {kind: one.result() for kind, one in made.items()}


def play(scenario: Scenario, images: dict[str, str]) -> Result:
    """Run it; nothing of it is left afterwards."""
    result = Result(scenario)
    try:
        lab = Lab(scenario)
        containers = Containers(scenario, lab, images)
        try:
            for step in scenario.steps:
                begin = time.monotonic()
                for verb, arguments in step.actions.items():
                    act(World(scenario, lab, containers), verb, arguments)
                result.seconds.append(time.monotonic() - begin)
        finally:
            containers.close()
            lab.close()
            for name, running in containers.running.items():
                result.said[name] = "\n".join(f"{at:8.3f} {line}" for at, line in running.lines)
    except (LabError, OSError) as error:
        result.error = str(error)
    return result
