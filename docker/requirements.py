"""Prints what pyproject.toml asks for, one requirement a line: ``requirements.py build`` or ``run``."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path(__file__).with_name("pyproject.toml").read_text())
run = [*project["project"]["dependencies"], *project["project"]["optional-dependencies"]["eap-tls"]]
wanted = {"build": project["build-system"]["requires"], "run": run}
print(*wanted[sys.argv[1]], sep="\n")
