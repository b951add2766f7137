"""Writes docs/settings.md: what can be in ``ipsecd { }``, and which keys of swanctl.conf are refused.

python -m tools.settings
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path

from ipsec.config import authorities, children, connections, secrets, settings
from ipsec.config.refused import Parser
from ipsec.ike.radius.server import RadiusServer

FILE = Path(__file__).parent.parent / "docs" / "settings.md"


def text() -> str:
    """The whole file."""
    parts = [
        "# Settings\n",
        "Made by `python -m tools.settings` from `ipsec/config/`; a test holds it to them.\n",
        "## ipsecd { }\n",
        table(("key", "default", "meaning"), _fields(settings.DaemonSettings)),
        "## ipsecd.offload { }\n",
        "`auto` probes at start and logs what it found, `yes` insists, `no` is off.\n",
        table(("key", "default", "meaning"), _fields(settings.OffloadSettings)),
        "## ipsecd.http { }\n",
        "`/metrics`, `/healthz`, `/readyz`, `/livez`: see [metrics.md](metrics.md). Whoever reaches it reads names\n"
        "and traffic figures.\n",
        table(("key", "default", "meaning"), _fields(settings.HttpSettings)),
        "## ipsecd.radius { }\n",
        table(("key", "default", "meaning"), _fields(settings.RadiusSettings)),
        "## ipsecd.radius.servers.&lt;name&gt; { }\n",
        "As in the section eap-radius of strongSwan's strongswan.conf. The secret is in no log.\n",
        table(("key", "default", "meaning"), _fields(RadiusServer)),
        "## Keys of swanctl.conf that are refused\n",
        "A key that means something ipsecd does not do is an error, never ignored. Where a value does no harm, mostly\n"
        "the default, the key may be there with it.\n",
        table(("section", "key", "why"), _refused()),
    ]
    return "\n".join(parts)


def _fields(kind: type) -> Iterator[tuple[str, ...]]:
    """Name, default and text of each field that is a key."""
    (body,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(body, ast.ClassDef)
    for field, said in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(said, ast.Expr):
            assert isinstance(said.value, ast.Constant)
            name = field.target.id
            value = getattr(kind, name, "")
            # permissions are written in octal
            default = f"{value:04o}" if name.endswith("_mode") else _shown(value)
            yield f"`{name}`", default, str(said.value.value)


def _shown(value: object) -> str:
    """A default as it would be written in the file."""
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value == settings.ANY_ADDRESSES:
        return "%any"
    if isinstance(value, settings.OffloadSettings | settings.HttpSettings | settings.RadiusSettings):
        return "see below"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value) if value not in ("", (), None) else ""


def _refused() -> Iterator[tuple[str, ...]]:
    places: tuple[tuple[str, Mapping[str, Parser]], ...] = (
        ("connections.&lt;conn&gt;", connections._REFUSED),
        ("connections.&lt;conn&gt;.local", connections._LOCAL_REFUSED),
        ("connections.&lt;conn&gt;.remote", connections._REMOTE_REFUSED),
        ("children.&lt;child&gt;", children._REFUSED),
        ("authorities.&lt;ca&gt;", authorities._REFUSED),
    )
    for section, keys in places:
        for key, parser in keys.items():
            yield section, f"`{key}`", str(inspect.getclosurevars(parser).nonlocals["why"])
    for key, why in secrets._REFUSED.items():
        yield "secrets", f"`{key}`", why


def table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    """A table in Markdown."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


if __name__ == "__main__":
    FILE.write_text(text())
