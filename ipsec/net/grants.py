"""What to give a container, in the words of docker, podman and Kubernetes: remedies for errors."""

from __future__ import annotations

DEVICE = (
    "give the container /dev/net/tun (docker, podman: --device /dev/net/tun; Kubernetes: volumes: [{name: tun, "
    "hostPath: {path: /dev/net/tun, type: CharDevice}}] and volumeMounts: [{name: tun, mountPath: /dev/net/tun}], or "
    "a device plugin); on the host: modprobe tun"
)
PREPARE = (
    "run ipsecd --prepare --owner UID before, with the same configuration, /dev/net/tun and CAP_NET_ADMIN (Kubernetes: "
    "an init container; docker, podman: a container with --network container:NAME)"
)


def capability(name: str) -> str:
    """How to grant one, without its CAP_."""
    return (
        f"grant CAP_{name} (docker, podman: --cap-add {name}; Kubernetes: securityContext: {{capabilities: "
        f"{{add: [{name}]}}}})"
    )


def low_ports(setting: str) -> str:
    """How to be allowed ports below 1024; ``setting`` chooses the port."""
    return (
        "let everybody have such ports (docker, podman: --sysctl net.ipv4.ip_unprivileged_port_start=0; Kubernetes: "
        'securityContext: {sysctls: [{name: net.ipv4.ip_unprivileged_port_start, value: "0"}]} of the pod), grant '
        f"CAP_NET_BIND_SERVICE, or choose a port from 1024 on ({setting})"
    )
