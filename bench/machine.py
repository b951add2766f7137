"""What figures depend on: machine, kernel, libraries, offloads, and how busy the machine is."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from tools import strongswan

CPU_FLAGS = ("aes", "vaes", "vpclmulqdq", "pclmulqdq", "avx2", "avx512f", "gfni", "sha_ni")
SYSCTLS = (
    "net/ipv4/tcp_congestion_control", "net/core/default_qdisc", "net/core/rmem_default", "net/core/rmem_max",
    "net/core/wmem_max", "net/ipv4/tcp_rmem", "net/ipv4/tcp_wmem",
)  # fmt: skip
#: programs whose version is in the record, and how they tell it
PROGRAMS = {
    "iperf3": ("iperf3", "--version"),
    "openssl": ("openssl", "version"),
    "ip": ("ip", "-V"),
    "charon": tuple(strongswan.command("/usr/lib/ipsec/charon", "--version")),
    "wireguard-go": ("wireguard-go", "--version"),
    "openvpn": ("/usr/sbin/openvpn", "--version"),
}


def describe() -> dict[str, Any]:
    """The record that goes into every result."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    cpu = {key: found[1] for key in ("model name", "cpu family", "model", "flags", "cache size")
           if (found := re.search(rf"^{key}\s*: (.*)$", cpuinfo, re.MULTILINE))}  # fmt: skip
    flags = cpu.pop("flags", "").split()
    return {
        "cpu": cpu,
        "cpus": os.cpu_count(),
        "cpu_flags": [flag for flag in CPU_FLAGS if flag in flags],
        "memory_mib": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20,
        "kernel": platform.release(),
        "system": platform.freedesktop_os_release().get("PRETTY_NAME", "?"),
        "python": sys.version.split()[0],
        "source": _source(),
        "programs": {name: _first_line(command) for name, command in PROGRAMS.items()},
        "sysctl": {name: _read(Path("/proc/sys", name)) for name in SYSCTLS},
    }


def title(machine: dict[str, Any]) -> str:
    """One line for people."""
    cpu = machine["cpu"]
    return (
        f"{machine['cpus']} x {cpu.get('model name', platform.machine())} (family {cpu.get('cpu family', '?')} model "
        f"{cpu.get('model', '?')}), Linux {machine['kernel']}, {', '.join(machine['cpu_flags'])}"
    )


def ticks() -> dict[str, int]:
    """Clock ticks of all CPUs since boot, by kind."""
    with open("/proc/stat") as stat:
        fields = [int(field) for field in stat.readline().split()[1:9]]
    return dict(zip(("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal"), fields, strict=True))


def busy_share(before: dict[str, int], after: dict[str, int]) -> float:
    """The share of all CPUs that was not idle in between, 0..1."""
    passed = {kind: after[kind] - before[kind] for kind in before}
    return round(1 - (passed["idle"] + passed["iowait"]) / max(sum(passed.values()), 1), 3)


def _source() -> str:
    # a result that was made with changes nobody committed says so
    here = Path(__file__).parent
    return _first_line(("git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12")) or "unknown"


def _first_line(command: tuple[str, ...]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "not installed"
    return (done.stdout or done.stderr).partition("\n")[0].strip()


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return "?"
