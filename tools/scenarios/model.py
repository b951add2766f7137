"""What a scenario is made of, see file.py for how it is written."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[2] / "docker/scenarios"
FILE = "scenario.toml"
IMAGES = ("ipsec", "strongswan")
#: what every container is denied
COMMON = ("--read-only", "--cap-drop=all", "--security-opt=no-new-privileges")


class ScenarioError(Exception):
    """A scenario is written wrongly; the text says where."""


@dataclass(frozen=True)
class Node:
    """A network namespace."""

    links: dict[str, str | list[str]]
    routes: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()

    def addresses(self, wire: str) -> list[str]:
        """Those on one link."""
        found = self.links[wire]
        return [found] if isinstance(found, str) else found


@dataclass(frozen=True)
class Container:
    """What podman is asked to run."""

    node: str
    image: str = "ipsec"
    flags: tuple[str, ...] = ()
    files: dict[str, str] = field(default_factory=dict)
    "path in the container -> file, relative to the scenario"
    contents: dict[str, str] = field(default_factory=dict)
    "path in the container -> text"
    environment: dict[str, str] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()
    probes: dict[str, Any] = field(default_factory=dict)
    "kind -> as Kubernetes has it"
    ports: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """One line of the table."""

    check: str
    actions: dict[str, Any]
    "verb -> its arguments"


@dataclass(frozen=True)
class Scenario:
    """A folder of docker/scenarios/."""

    name: str
    folder: Path
    about: str
    nodes: dict[str, Node]
    containers: dict[str, Container]
    steps: tuple[Step, ...]

    @property
    def images(self) -> set[str]:
        """Those it needs."""
        return {container.image for container in self.containers.values()}
