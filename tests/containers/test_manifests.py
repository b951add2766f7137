"""docker/compose.yaml and docker/k8s/ against the published schemas, and against what the image and the daemon know."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from ipsec.config.environment import KNOWN

compose_spec = pytest.importorskip("compose_spec")
kubernetes_validate = pytest.importorskip("kubernetes_validate")

DOCKER = Path(__file__).parents[2] / "docker"
#: the oldest with native sidecars that are on by default, and the newest
KUBERNETES = ("1.29", "1.37")
#: kinds of other projects, which have no schema here
FOREIGN = ("ServiceMonitor",)

MANIFESTS = [
    pytest.param(document, id=f"{path.stem}-{document['kind']}")
    for path in sorted((DOCKER / "k8s").glob("*.yaml"))
    for document in yaml.safe_load_all(path.read_text())
]


def pods() -> list[Any]:
    """Every pod that is described, by its file."""
    return [
        pytest.param(document["spec"]["template"]["spec"], id=path.stem)
        for path in sorted((DOCKER / "k8s").glob("*.yaml"))
        for document in yaml.safe_load_all(path.read_text())
        if document["kind"] == "Deployment"
    ]


@pytest.mark.parametrize("document", MANIFESTS)
@pytest.mark.parametrize("version", KUBERNETES)
def test_manifest_fits_the_schema(document: dict[str, Any], version: str) -> None:
    if document["kind"] in FOREIGN:
        assert document["spec"]["selector"]["matchLabels"]
        return
    kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize("pod", pods())
def test_pod_has_the_least_privilege(pod: dict[str, Any]) -> None:
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    for container in (*pod.get("initContainers", ()), *pod["containers"]):
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"]
        assert not context["allowPrivilegeEscalation"]
        assert context["capabilities"]["drop"] == ["ALL"]
        assert set(context["capabilities"].get("add", ())) <= {"NET_ADMIN", "NET_BIND_SERVICE"}
        # without ambient capabilities in Kubernetes, only root gets any
        assert ("add" in context["capabilities"]) == (context["runAsUser"] == 0)


@pytest.mark.parametrize("pod", pods())
def test_pod_is_consistent(pod: dict[str, Any]) -> None:
    volumes = {volume["name"] for volume in pod["volumes"]}
    used = set()
    for container in (*pod.get("initContainers", ()), *pod["containers"]):
        used |= {mount["name"] for mount in container.get("volumeMounts", ())}
        assert {variable["name"] for variable in container.get("env", ())} <= set(KNOWN)
    assert used == volumes


def test_device_plugin_is_all_that_differs() -> None:
    one, other = (
        yaml.safe_load((DOCKER / f"k8s/{name}.yaml").read_text())["spec"]["template"]["spec"]
        for name in ("sidecar", "sidecar-device-plugin")
    )
    one["volumes"] = [volume for volume in one["volumes"] if volume["name"] != "tun"]
    for container in one["initContainers"]:
        container["volumeMounts"] = [mount for mount in container["volumeMounts"] if mount["name"] != "tun"]
        container.setdefault("resources", {}).setdefault("limits", {})["squat.ai/tun"] = 1
    assert one == other


def test_monitor_finds_the_metrics_service() -> None:
    documents = list(yaml.safe_load_all((DOCKER / "k8s/gateway.yaml").read_text()))
    monitor = yaml.safe_load((DOCKER / "k8s/gateway-monitor.yaml").read_text())
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    found = [one for one in documents if one["kind"] == "Service" and wanted <= one["metadata"]["labels"].items()]
    assert [port["name"] for one in found for port in one["spec"]["ports"]] == [monitor["spec"]["endpoints"][0]["port"]]


def test_alerts_ask_for_the_job_that_is_scraped() -> None:
    monitor = yaml.safe_load((DOCKER / "k8s/gateway-monitor.yaml").read_text())
    (endpoint,) = monitor["spec"]["endpoints"]
    jobs = {one["replacement"] for one in endpoint.get("relabelings", ()) if one["targetLabel"] == "job"}
    scraped = yaml.safe_load((DOCKER / "observability/prometheus.yml").read_text())["scrape_configs"]
    asked = re.findall(r'job="([^"]+)"', (DOCKER / "observability/alerts.yml").read_text())
    assert asked
    assert jobs == {one["job_name"] for one in scraped} == set(asked)


def test_compose_file_fits_the_specification() -> None:
    document = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    # as JSON, since its YAML knows no merge keys
    assert compose_spec.PyCompose.from_json(json.dumps(document)).to_spec().services
    services = document["services"]
    for name, service in services.items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["read_only"], name
        assert set(service.get("environment", ())) <= set(KNOWN), name
