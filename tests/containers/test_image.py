"""The image: what it is made of."""

from __future__ import annotations

import re
import tomllib

from tools import image

FOLDERS = {"ipsec", "docs/man"}


def test_hash_covers_the_build_context() -> None:
    """Or a change would not make a new image."""
    allowed = {line[1:] for line in (image.ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"}
    assert allowed == {*FOLDERS, *image.SOURCES} - {".dockerignore", "docker/Dockerfile"}


def test_context_has_what_the_dockerfile_copies() -> None:
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", image.DOCKERFILE.read_text(), re.MULTILINE)
    found = {name for names in copied for name in names.split()}
    assert found == {*FOLDERS, *image.SOURCES} - {".dockerignore", "docker/Dockerfile"}


def test_context_has_what_the_wheel_carries() -> None:
    project = tomllib.loads((image.ROOT / "pyproject.toml").read_text())
    carried = [name for names in project["tool"]["setuptools"].get("data-files", {}).values() for name in names]
    assert all(any(name.startswith(f"{folder}/") for folder in FOLDERS) for name in carried)
    assert project["project"]["readme"] in image.SOURCES


def test_digest_changes_with_each_part() -> None:
    files = [image.DOCKERFILE, image.STRONGSWAN]
    found = {image.digest(files, ["a"]), image.digest(files[:1], ["a"]), image.digest(files, ["b"])}
    assert len(found) == 3
    assert image.digest(files, ["a"]) == image.digest(reversed(files), ["a"])
