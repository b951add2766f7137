"""scenario.toml: what a scenario consists of. Its folder is to be understood without this file.

    about = "one sentence"

    [node.NAME]             a network namespace, the network of a host or a pod
    links = { WIRE = "ADDRESS/PREFIX" }     an interface WIRE on the wire of that name; more addresses in a list
    routes = ["default via ADDRESS"]        as ip-route(8) has them
    setup = ["COMMAND"]                     run inside, such as nft(8); no shell

    [container.NAME]        in the node of its own name unless it names one
    node = "NODE"
    image = "ipsec"         or "strongswan"
    flags = ["--cap-add=NET_ADMIN"]         options of podman-run(1) besides COMMON
    files = { "/path/in/container" = "file in this folder" }
    environment = { NAME = "VALUE" }
    arguments = ["--check"]                 of the entry point

    [[step]]                one line in the table; what is in it is done in that order
    check = "what is shown by it"
    VERB = ...              a function of steps.py
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields
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
    files: dict[str, str] | None = None
    environment: dict[str, str] | None = None
    arguments: tuple[str, ...] = ()


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


def names() -> list[str]:
    """All scenarios."""
    return sorted(path.parent.name for path in FOLDER.glob(f"*/{FILE}"))


def read(name: str, verbs: set[str]) -> Scenario:
    """One scenario, checked. ScenarioError."""
    path = FOLDER / name / FILE
    try:
        data = tomllib.loads(path.read_text())
        nodes = {key: _build(Node, value) for key, value in data.pop("node").items()}
        containers = {
            key: _build(Container, {"node": key, **value}) for key, value in data.pop("container").items()
        }
        steps = tuple(Step(step.pop("check"), step) for step in data.pop("step"))
        scenario = Scenario(name, path.parent, data.pop("about"), nodes, containers, steps)
    except (OSError, tomllib.TOMLDecodeError, TypeError) as error:
        raise ScenarioError(f"{path}: {error}") from None
    except KeyError as error:
        raise ScenarioError(f"{path}: {error} is missing") from None
    wrong = [f"unknown key {key}" for key in data]
    wrong += [f"unknown verb {verb!r}" for step in steps for verb in step.actions if verb not in verbs]
    for key, container in containers.items():
        wrong += [f"container {key}: no node {container.node}"] if container.node not in nodes else []
        wrong += [f"container {key}: no image {container.image}"] if container.image not in IMAGES else []
        files = (container.files or {}).values()
        wrong += [f"container {key}: no file {file}" for file in files if not (path.parent / file).exists()]
    if wrong:
        raise ScenarioError(f"{path}: {'; '.join(wrong)}")
    return scenario


def _build(kind: type[Any], values: dict[str, Any]) -> Any:
    unknown = values.keys() - {field.name for field in fields(kind)}
    if unknown:
        raise TypeError(f"{kind.__name__.lower()} has no {', '.join(sorted(unknown))}")
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})
