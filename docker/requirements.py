"""Prints what pyproject.toml asks for, one requirement a line: ``requirements.py build`` or ``run``."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path(__file__).with_name("pyproject.toml").read_text())
wanted = {"build": project["build-system"]["requires"], "run": project["project"]["dependencies"]}
print(*wanted[sys.argv[1]], sep="\n")
