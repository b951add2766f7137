"""scenario.toml: what a scenario consists of. Its folder is to be understood without this file.

    about = "one sentence"

    [node.NAME]             a network namespace, the network of a host or a pod
    links = { WIRE = "ADDRESS/PREFIX" }     an interface WIRE on the wire of that name; more addresses in a list
    routes = ["default via ADDRESS"]        as ip-route(8) has them
    setup = ["COMMAND"]                     run inside, such as nft(8); no shell

    [container.NAME]        in the node of its own name unless it names one
    node = "NODE"
    image = "ipsec"         or "strongswan"
    flags = ["--cap-add=NET_ADMIN"]         options of podman-run(1) besides COMMON; {scratch}/NAME is a folder of the
                                            run, {netns}/NODE a node's network namespace
    files = { "/path/in/container" = "file in this folder" }
    environment = { NAME = "VALUE" }
    arguments = ["--check"]                 of the entry point

    [[manifest]]            containers out of a Deployment or a compose file
    file = "../../k8s/NAME.yaml"
    node = "NODE"                           of a Deployment's pod; services are in nodes of their names
    secrets = "FOLDER"                      with NAME/KEY for Kubernetes, NAME for compose
    prefix = "PREFIX"                       of the containers' names

    [[step]]                one line in the table; what is in it is done in that order
    check = "what is shown by it"
    VERB = ...              a function of steps.py
"""

from __future__ import annotations

import tomllib
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from tools.scenarios import manifests
from tools.scenarios.model import FILE, FOLDER, IMAGES, Container, Node, Scenario, ScenarioError, Step


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
            key: _build(Container, {"node": key, **value}) for key, value in data.pop("container", {}).items()
        }
        for manifest in data.pop("manifest", ()):
            _add_manifest(path.parent, nodes, containers, **manifest)
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
        files = container.files.values()
        wrong += [f"container {key}: no file {file}" for file in files if not (path.parent / file).exists()]
    if wrong:
        raise ScenarioError(f"{path}: {'; '.join(wrong)}")
    return scenario


def _add_manifest(
    folder: Path, nodes: dict[str, Node], containers: dict[str, Container], *, file: str, secrets: str,
    node: str = "", prefix: str = "",
) -> None:  # fmt: skip
    """Put in what a file of docker/ describes."""
    path = (folder / file).resolve()
    if node:
        found, sysctls = manifests.pod(path, node, folder / secrets)
        nodes[node] = replace(nodes[node], setup=(*nodes[node].setup, *sysctls))
    else:
        found = manifests.compose(path, folder / secrets)
    containers |= {f"{prefix}{name}": container for name, container in found.items()}


def _build(kind: type[Any], values: dict[str, Any]) -> Any:
    unknown = values.keys() - {field.name for field in fields(kind)}
    if unknown:
        raise TypeError(f"{kind.__name__.lower()} has no {', '.join(sorted(unknown))}")
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})
