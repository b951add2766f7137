"""Writes docs/environment.md: the variables IPSEC_* and the keys of swanctl.conf that they set.

python -m tools.environment
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ipsec.config.environment import SECRETS, SPECIAL, VARIABLES
from tools.settings import table

FILE = Path(__file__).parent.parent / "docs" / "environment.md"

_HEAD = """\
# Environment variables

Made by `python -m tools.environment` from `ipsec/config/environment.py`; a test holds it to it. How to use them is in
[containers.md](containers.md).
"""

_PARTS = (
    ("The connection", "connections."),
    ("Addresses for peers", "pools."),
    ("The authority of the peer's certificate", "authorities."),
    ("The daemon", "ipsecd"),
)


def text() -> str:
    """The whole file."""
    parts = [_HEAD, "## Secrets and what is no key\n", table(("variable", "meaning"), _special())]
    for title, prefix in _PARTS:
        parts.append(f"## {title}\n")
        if prefix == "ipsecd":
            parts.append("What the keys mean is in [settings.md](settings.md).\n")
        parts.append(table(("variable", "key"), _variables(prefix)))
    return "\n".join(parts)


def _special() -> Iterator[tuple[str, ...]]:
    for name, meaning in SPECIAL.items():
        yield f"`{name}`", meaning
        if name in SECRETS:
            yield f"`{name}_FILE`", "path of a file that holds it"


def _variables(prefix: str) -> Iterator[tuple[str, ...]]:
    for name, place in VARIABLES.items():
        if place.section.startswith(prefix):
            section = place.section.replace("*", "NAME")
            yield f"`{name}`", f"`{section}.{place.key}`" + (", or PEM" if place.pem else "")


if __name__ == "__main__":
    FILE.write_text(text())
