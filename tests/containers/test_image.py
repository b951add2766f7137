"""The image: what it is made of."""

from __future__ import annotations

import re

from tools import image


def test_hash_covers_the_build_context() -> None:
    """Or a change would not make a new image."""
    allowed = {line[1:] for line in (image.ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"}
    assert allowed == {"ipsec", *image.SOURCES} - {".dockerignore", "docker/Dockerfile"}


def test_context_has_what_the_dockerfile_copies() -> None:
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", image.DOCKERFILE.read_text(), re.MULTILINE)
    assert {name for names in copied for name in names.split()} == {"ipsec", *image.SOURCES} - {
        ".dockerignore",
        "docker/Dockerfile",
    }


def test_digest_changes_with_each_part() -> None:
    files = [image.DOCKERFILE, image.STRONGSWAN]
    found = {image.digest(files, ["a"]), image.digest(files[:1], ["a"]), image.digest(files, ["b"])}
    assert len(found) == 3
    assert image.digest(files, ["a"]) == image.digest(reversed(files), ["a"])
