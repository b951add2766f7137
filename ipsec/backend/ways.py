"""The ways to run that there are, and what each lacks here. Looking changes nothing."""

from __future__ import annotations

import os
from dataclasses import dataclass

from ipsec.backend.settings import UserspaceSettings
from ipsec.errors import BackendError
from ipsec.net import grants, netns
from ipsec.net.rtnetlink import may_configure
from ipsec.net.tun import DEVICE_NODE, check_node, device_exists


@dataclass(frozen=True)
class Way:
    """One of them. ``missing`` is what it lacks, each with what mends that."""

    name: str
    what: str
    missing: tuple[tuple[str, str], ...]
    used: bool
    "it is the one that these settings take"

    def __str__(self) -> str:
        if not self.missing:
            return f"{self.name}: possible"
        return f"{self.name}: " + "; ".join(f"no {what}: {remedy}" for what, remedy in self.missing)


def ways(settings: UserspaceSettings) -> list[Way]:
    """All of them, that of the settings first."""
    node = _node()
    admin = [] if may_configure() else [("CAP_NET_ADMIN", grants.capability("NET_ADMIN"))]
    system = [] if _may_enter() else [("CAP_SYS_ADMIN", grants.capability("SYS_ADMIN"))]
    there = settings.tun_fd is not None or device_exists(settings.device)
    device = [] if there else [(f"device {settings.device}", grants.PREPARE)]
    used = "prepared" if settings.prepared else "namespace" if settings.namespace else "own"
    found = [
        ("own", "ipsecd makes device, addresses and routes", [*node, *admin]),
        ("prepared", "they were made before; ipsecd needs no capability", [*node, *device]),
        ("namespace", "they are in another network namespace (ipsecd.namespace)", [*node, *admin, *system]),
    ]
    made = [Way(name, what, tuple(missing), name == used) for name, what, missing in found]
    return sorted(made, key=lambda way: not way.used)


def _node() -> list[tuple[str, str]]:
    try:
        check_node()
    except BackendError as error:
        return [(DEVICE_NODE, error.remedy or grants.DEVICE)]
    return []


def _may_enter() -> bool:
    """Whether we may change between network namespaces: going where we are already is permitted to the same ones."""
    try:
        with netns.inside(f"/proc/{os.getpid()}/ns/net"):
            return True
    except OSError:
        return False
