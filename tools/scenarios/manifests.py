"""Containers out of docker/compose.yaml and docker/k8s/: what a runtime would do, as options of podman-run(1).

Only what those files use is understood; anything else is an error, so that nothing is left out unnoticed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from tools.scenarios.model import Container, ScenarioError

#: keys that say nothing about how a container runs, or what COMMON says already
POD_IGNORED = {"name", "image", "resources", "restartPolicy"}
SERVICE_IGNORED = {"image", "build", "networks", "network_mode", "restart", "depends_on", "stop_grace_period"}
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


def pod(path: Path, node: str, secrets: Path) -> tuple[dict[str, Container], list[str]]:
    """The containers of a Deployment's pod, and its sysctls. A secret NAME is the folder ``secrets``/NAME."""
    documents = list(yaml.safe_load_all(path.read_text()))
    spec = next(one for one in documents if one["kind"] == "Deployment")["spec"]["template"]["spec"]
    maps = {one["metadata"]["name"]: one["data"] for one in documents if one["kind"] == "ConfigMap"}
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    containers = {}
    for description in (*spec.get("initContainers", ()), *spec["containers"]):
        rest = {key: value for key, value in description.items() if key not in POD_IGNORED}
        flags = _security(rest.pop("securityContext"), path)
        contents: dict[str, str] = {}
        for mount in rest.pop("volumeMounts", ()):
            volume, target = volumes[mount["name"]], mount["mountPath"]
            if "configMap" in volume:
                data = maps[volume["configMap"]["name"]]
                contents |= {f"{target}/{name}": text for name, text in data.items()}
            else:
                flags += _volume(volume, target, secrets, f"{{scratch}}/{node}-{volume['name']}")
        flags += _process(rest, "command", "workingDir")
        containers[description["name"]] = Container(
            node,
            flags=tuple(flags),
            contents=contents,
            environment={one["name"]: one["value"] for one in rest.pop("env", ())},
            arguments=tuple(rest.pop("args", ())),
            probes={kind: rest.pop(kind) for kind in PROBES if kind in rest},
            ports={one["name"]: one["containerPort"] for one in rest.pop("ports", ())},
        )
        _all_understood(rest, path)
    sysctls = [f"sysctl -qw {one['name']}={one['value']}" for one in spec["securityContext"].get("sysctls", ())]
    return containers, sysctls


def compose(path: Path, secrets: Path) -> dict[str, Container]:
    """The services of a compose file. A secret NAME is the file ``secrets``/NAME."""
    containers = {}
    for name, service in yaml.safe_load(path.read_text())["services"].items():
        rest = {key: value for key, value in service.items() if key not in SERVICE_IGNORED}
        if (rest.pop("cap_drop"), rest.pop("read_only"), rest.pop("security_opt")) != (
            ["ALL"],
            True,
            ["no-new-privileges:true"],
        ):
            raise ScenarioError(f"{path}: {name} is denied less than COMMON says")
        flags = [f"--cap-add={one}" for one in rest.pop("cap_add", ())]
        flags += [f"--device={one}" for one in rest.pop("devices", ())]
        flags += [f"--user={rest.pop('user')}"] if "user" in rest else []
        flags += [f"--volume={secrets / one}:/run/secrets/{one}:ro" for one in rest.pop("secrets", ())]
        flags += _process(rest, "entrypoint", "working_dir")
        health = rest.pop("healthcheck", None)
        containers[name] = Container(
            service.get("network_mode", f"service:{name}").removeprefix("service:"),
            flags=tuple(flags),
            environment=rest.pop("environment", {}),
            probes={"healthcheck": {"exec": {"command": health["test"][1:]}}} if health else {},
        )
        _all_understood(rest, path)
    return containers


def _security(context: dict[str, Any], path: Path) -> list[str]:
    """A container's securityContext. That of COMMON has to be in it."""
    rest = dict(context)
    capabilities = rest.pop("capabilities")
    denied = rest.pop("readOnlyRootFilesystem"), rest.pop("allowPrivilegeEscalation"), capabilities["drop"]
    if denied != (True, False, ["ALL"]):
        raise ScenarioError(f"{path}: a container is denied less than COMMON says")
    rest.pop("runAsNonRoot", None)
    uid = rest.pop("runAsUser")
    flags = [f"--user={uid}:{rest.pop('runAsGroup', 0)}"]
    _all_understood(rest, path)
    return flags + [f"--cap-add={one}" for one in capabilities.get("add", ())]


def _volume(volume: dict[str, Any], target: str, secrets: Path, folder: str) -> list[str]:
    """One mount; ``folder`` is for an emptyDir."""
    if "hostPath" in volume and volume["hostPath"]["type"] == "CharDevice":
        return [f"--device={volume['hostPath']['path']}:{target}"]
    if "secret" in volume:
        return [f"--volume={secrets / volume['secret']['secretName']}:{target}:ro"]
    if "emptyDir" in volume:
        return [f"--volume={folder}:{target}"]
    raise ScenarioError(f"volume {volume['name']} is of no known kind")


def _process(rest: dict[str, Any], command: str, folder: str) -> list[str]:
    flags = [f"--entrypoint={json.dumps(rest.pop(command))}"] if command in rest else []
    return flags + ([f"--workdir={rest.pop(folder)}"] if folder in rest else [])


def _all_understood(rest: dict[str, Any], path: Path) -> None:
    if rest:
        raise ScenarioError(f"{path}: {', '.join(rest)} cannot be tried here")
