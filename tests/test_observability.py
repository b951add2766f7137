"""What is made for others to watch the daemon with fits the daemon: alert rules, dashboard, unit file."""

from __future__ import annotations

import json
import re
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ipsec.daemon import ExitCode
from ipsec.daemon.families import FAMILIES
from ipsec.esp.drops import DropReason
from ipsec.ike.failure import Cause

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docker" / "observability"
ALERTS, DASHBOARD = FOLDER / "alerts.yml", FOLDER / "dashboard.json"
UNIT = ROOT / "systemd" / "ipsecd.service"
KINDS = {"histogram": ("_bucket", "_count", "_sum")}


def expressions() -> Iterator[str]:
    """Every query of the rules and of the dashboard, as text."""
    yield re.sub(r"(?m)^ *(summary|#).*", "", ALERTS.read_text())

    def queries(node: Any) -> Iterator[str]:
        if isinstance(node, dict):
            for key, value in node.items():
                if key in ("expr", "query", "definition") and isinstance(value, str):
                    yield value
                else:
                    yield from queries(value)
        elif isinstance(node, list):
            for value in node:
                yield from queries(value)

    yield from queries(json.loads(DASHBOARD.read_text()))


def test_queries_ask_for_what_there_is() -> None:
    shown = {family.shown: family for family in FAMILIES.values() if family.kind != "histogram"}
    for family in FAMILIES.values():
        shown.update((family.name + suffix, family) for suffix in KINDS.get(family.kind, ()))
    used = 0
    for query in expressions():
        for name, matchers in re.findall(r"\b(ipsecd_[a-z_]+)(\{[^}]*\})?", query):
            assert name in shown, query
            for label, values in re.findall(r'([a-z_]+)[=!]~?"([^"]*)"', matchers):
                assert label in (*shown[name].labels, "le", "instance", "job"), query
                known = {"reason": DropReason.__members__, "cause": {cause.value for cause in Cause}}.get(label)
                assert known is None or set(values.split("|")) <= set(known) or values.startswith("$"), query
            used += 1
    assert used > 40


def test_every_alert_is_explained() -> None:
    """docs/operations.md tells whoever is on call what to do."""
    names = re.findall(r"alert: (\w+)", ALERTS.read_text())
    text = (ROOT / "docs" / "operations.md").read_text()
    assert len(names) > 10
    assert [name for name in names if f"`{name}`" not in text] == []


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
def test_rules_fire_when_they_should() -> None:
    done = subprocess.run(["promtool", "test", "rules", "alerts_test.yml"], cwd=FOLDER, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def unit_file() -> dict[str, list[str]]:
    keys: dict[str, list[str]] = {}
    for line in UNIT.read_text().splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            keys.setdefault(name, []).append(value)
    return keys


def test_unit_file_is_installed_as_documented(tmp_path: Path) -> None:
    """The unit's group is made, and what it reads is not refused for being open to that group."""
    text = (ROOT / "docs" / "operations.md").read_text().partition("\n## systemd\n")[2]
    commands = text.split("```")[1].strip().splitlines()
    (group,) = unit_file()["SupplementaryGroups"]
    assert commands[:2] == [f"groupadd --force --system {group}", f"chgrp -R {group} /etc/swanctl"]
    assert commands[-2:] == ["systemctl daemon-reload", "systemctl enable --now ipsecd"]
    (unit,) = re.findall(r"install -m 644 (\S+) /etc/systemd/system/", text)
    assert ROOT / unit == UNIT
    key, home = tmp_path / "private" / "key", tmp_path
    key.parent.mkdir(mode=0o700)
    key.touch(mode=0o600)
    subprocess.run(commands[2].replace("/etc/swanctl", str(home)).split(), check=True)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (home, key.parent, key)] == [0o750, 0o750, 0o640]


def test_unit_file_fits_the_daemon() -> None:
    keys = unit_file()
    assert keys["Type"] == ["notify"]
    # what a restart does not mend
    useless = {ExitCode.USAGE, ExitCode.CONFIG, ExitCode.SA}
    assert {int(status) for status in keys["RestartPreventExitStatus"][0].split()} == useless
    # where README.md installs it
    assert keys["ExecStart"] == ["/opt/ipsec/bin/ipsecd"]
    assert "python3 -m venv /opt/ipsec " in (ROOT / "README.md").read_text()
    # whoever is in vici_group has to get as far as the socket
    assert keys["RuntimeDirectoryMode"] == ["0755"]
    assert keys["AmbientCapabilities"] == keys["CapabilityBoundingSet"]
    assert "@system-service" in keys["SystemCallFilter"]
    if shutil.which("systemd-analyze"):
        done = subprocess.run(["systemd-analyze", "verify", "--man=no", UNIT], capture_output=True, text=True)
        # the one thing that a machine without it may say
        left = [line for line in done.stderr.splitlines() if "is not executable" not in line]
        assert [line for line in left if UNIT.name in line] == []
