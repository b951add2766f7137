"""The import rule and the size budgets of docs/design.md, held with ``ast``.

    daemon, cli, ctl -> {vici | backend | net | config} -> {ike | esp} -> crypto -> wire -> stdlib
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "ipsec"

#: A part imports parts of lower layers only. A module right below ipsec/ that is not named here is on top.
LAYERS = {
    "errors": -1,
    "exits": -1,
    "text": -1,
    "wire": 0,
    "crypto": 1,
    "ike": 2,
    "esp": 2,
    "vici": 3,
    "backend": 3,
    "net": 3,
    "config": 3,
    "daemon": 4,
}
TOP = 5
#: the backend drives what net opens
SIBLINGS_ALLOWED = {("backend", "net")}

#: Below layer 3 a run is a function of its inputs: time and randomness are arguments, nothing is opened.
WORLD = {"asyncio", "socket", "time", "random", "secrets", "select", "selectors", "subprocess", "threading", "uvloop"}
WORLD_LAYER = 3

#: What may be imported besides the standard library, by layers that are not free to choose.
THIRD_PARTY = {
    "errors": set(),
    "exits": set(),
    "text": set(),
    "wire": set(),
    "crypto": {"cryptography"},
    "ike": {"OpenSSL", "cryptography"},
    "esp": set(),
}

#: Each compiled module has one door: the only module that imports it.
COMPILED_IMPORTERS = {
    "ipsec._fastpath": "ipsec.esp.fast",
    "ipsec._providers": "ipsec.esp.fast",
    "ipsec._pump": "ipsec.esp.fast",
    "ipsec._modp": "ipsec.crypto.kex",
}
COMPILED = tuple(COMPILED_IMPORTERS)

MODULE_LINES = 700
FUNCTION_LINES = 70
#: What is over budget, and the size it must not pass. An entry needs a reason; most things are two things instead.
OVERSIZE = {
    "ipsec/fast/packet.pxd:parse_packet": 76,  # both header formats in one pass, so that it inlines as one
}

CYTHON_DEF = re.compile(
    r"^(?P<indent>\s*)(?:async\s+def|c?p?def)\b(?!\s+(?:extern|enum|struct|union|class|packed))(?P<rest>.*)"
)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part_of(module: str) -> str:
    """``wire`` for ``ipsec.wire.ike``; "" for the package itself."""
    return [*module.split("."), ""][1]


def layer_of(module: str) -> int:
    return LAYERS.get(part_of(module), TOP)


def imports(tree: ast.AST, module: str, package: bool = False) -> Iterator[str]:
    """Every module imported anywhere in the tree, under its absolute name, also by importlib."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = module.split(".") if package else module.split(".")[:-1]
                base = ".".join([*here[: len(here) - node.level + 1], *([base] if base else [])])
            yield base
            if base.split(".")[0] == "ipsec":
                # from ipsec.esp import fast: the name may be a module
                yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name in ("import_module", "__import__"):
                yield str(node.args[0].value)


def calls_urandom(tree: ast.AST) -> bool:
    return any(
        (isinstance(node, ast.Attribute) and node.attr in ("urandom", "getrandom"))
        or (isinstance(node, ast.ImportFrom) and node.module == "os" and "urandom" in {n.name for n in node.names})
        for node in ast.walk(tree)
    )


def import_offences(source: str, module: str, package: bool = False) -> list[str]:
    """What a module's imports break, in words."""
    tree = ast.parse(source)
    part, layer = part_of(module), layer_of(module)
    names = sorted(set(imports(tree, module, package)))
    found = []
    for name in names:
        top = name.split(".")[0]
        compiled = ".".join(name.split(".")[:2])
        if compiled in COMPILED_IMPORTERS:
            if module != COMPILED_IMPORTERS[compiled]:
                found.append(f"{module} imports {name}; only {COMPILED_IMPORTERS[compiled]} does")
        elif top == "ipsec" and part_of(name):
            other = part_of(name)
            if layer_of(name) > layer:
                found.append(f"{module} imports {name} from a higher layer")
            elif layer_of(name) == layer < TOP and other != part and (part, other) not in SIBLINGS_ALLOWED:
                found.append(f"{module} imports its sibling {name}")
        elif top in WORLD and layer < WORLD_LAYER:
            found.append(f"{module} imports {name}, which layer 3 owns")
        elif part in THIRD_PARTY and top not in sys.stdlib_module_names | {"ipsec"} | THIRD_PARTY[part]:
            found.append(f"{module} imports {name}, which is neither the standard library's nor allowed to {part}")
    if layer < WORLD_LAYER and calls_urandom(tree):
        found.append(f"{module} uses os.urandom; randomness is an argument below layer 3")
    reached = {part_of(name) for name in names if name.startswith("ipsec.")} | {part}
    if {"ike", "backend"} <= reached and part != "daemon":
        found.append(f"{module} knows both ike and a backend; only daemon does")
    return found


def size_offences(source: str, module: str) -> list[str]:
    found = list(over_budget(module, source.count("\n"), MODULE_LINES))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            found += over_budget(f"{module}.{node.name}", lines, FUNCTION_LINES)
    return found


def cython_size_offences(source: str, name: str) -> list[str]:
    """Like size_offences, by indentation. A line that closes a signature does not end its function."""
    lines = source.splitlines()
    found = list(over_budget(name, len(lines), MODULE_LINES))
    for start, line in enumerate(lines):
        match = CYTHON_DEF.match(line)
        if match is None or "(" not in match["rest"] or match["rest"].rstrip().endswith(")"):
            continue
        end = start + 1
        last = start
        while end < len(lines):
            text = lines[end]
            if text.strip() and not text.lstrip().startswith((")", "#")):
                if len(text) - len(text.lstrip()) <= len(match["indent"]):
                    break
                last = end
            end += 1
        function = match["rest"].split("(")[0].split()[-1].lstrip("*")
        found += over_budget(f"{name}:{function}", last - start + 1, FUNCTION_LINES)
    return found


def over_budget(name: str, lines: int, budget: int) -> Iterator[str]:
    allowed = max(budget, OVERSIZE.get(name, 0))
    if lines > allowed:
        yield f"{name} has {lines} lines, {allowed} are allowed"


PYTHON = sorted(PACKAGE.rglob("*.py"))
CYTHON = sorted([*PACKAGE.rglob("*.pyx"), *PACKAGE.rglob("*.pxd")])


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", PYTHON, ids=relative)
def test_module(path: Path) -> None:
    source = path.read_text()
    module = module_name(path)
    assert import_offences(source, module, path.name == "__init__.py") + size_offences(source, module) == []


@pytest.mark.parametrize("path", CYTHON, ids=relative)
def test_cython_module(path: Path) -> None:
    assert cython_size_offences(path.read_text(), relative(path)) == []


@pytest.mark.parametrize("path", CYTHON, ids=relative)
def test_compiled_stays_at_layer_2(path: Path) -> None:
    """The compiled modules are part of esp. They may wait on descriptors given to them, but ask Python for nothing."""
    pattern = re.compile(r"^\s*(?:from\s+([\w.]+)\s+c?import|c?import\s+([\w.]+))", re.MULTILINE)
    for match in pattern.finditer(path.read_text()):
        name = match[1] or match[2]
        assert name.split(".")[0] not in WORLD, f"{path.name} imports {name}"
        if name.startswith("ipsec.") and not name.startswith(("ipsec.fast.", *COMPILED)) and name != "ipsec.fast":
            assert layer_of(name) <= LAYERS["esp"], f"{path.name} imports {name}"
            assert part_of(name) != "ike", f"{path.name} imports {name}"


def test_oversize_entries_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exemption goes away with what needed it."""
    exempt = {**OVERSIZE}
    monkeypatch.setattr(sys.modules[__name__], "OVERSIZE", {})
    found = [offence for path in PYTHON for offence in size_offences(path.read_text(), module_name(path))]
    found += [offence for path in CYTHON for offence in cython_size_offences(path.read_text(), relative(path))]
    assert exempt.keys() <= {offence.split(" has ")[0] for offence in found}


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("ipsec.wire.ip", "import ipsec.crypto.suites"),
        ("ipsec.wire.ip", "from ipsec import crypto"),
        ("ipsec.wire.ip", "from ..crypto import suites"),
        ("ipsec.wire.ip", "import cryptography"),
        ("ipsec.crypto.prf", "from ipsec.ike import keymat"),
        ("ipsec.esp.sad", "from ipsec.ike.engine import IkeEngine"),
        ("ipsec.esp.sad", "def f():\n    import socket"),
        ("ipsec.esp.sad", "from ipsec._fastpath import Engine"),
        ("ipsec.esp.sad", "from .. import _fastpath"),
        ("ipsec.esp.sad", "from ipsec import _providers"),
        ("ipsec.esp.sad", "import importlib\nimportlib.import_module('ipsec._fastpath')"),
        ("ipsec.esp.fast", "from ipsec._modp import Modulus"),
        ("ipsec.crypto.kex", "from ipsec import _pump"),
        ("ipsec.ike.engine", "from time import monotonic"),
        ("ipsec.ike.engine", "import os\nos.urandom(8)"),
        ("ipsec.ike.engine", "from os import urandom"),
        ("ipsec.net.tun", "from ipsec.backend import base"),
        ("ipsec.vici.server", "from ipsec.config import settings"),
        ("ipsec.backend.userspace", "from ipsec.ike.engine import IkeEngine"),
        ("ipsec.backend.userspace", "from ipsec._pump import Pump"),
        ("ipsec.backend.userspace", "import ipsec.daemon"),
        ("ipsec.cli.ipsecd", "import ipsec.ike\nimport ipsec.backend"),
        ("ipsec.daemon", "from ipsec.cli import ipsecd"),
    ],
)
def test_offending_import_is_found(module: str, source: str) -> None:
    assert import_offences(source, module) != []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("ipsec.wire.ip", "import struct\nfrom ipsec.errors import ParseError\nfrom . import cursor"),
        ("ipsec.crypto.cipher", "from cryptography.hazmat.primitives import ciphers\nimport ipsec.wire.iana"),
        ("ipsec.esp.fast", "from ipsec._fastpath import Engine\nfrom ipsec._pump import Pump"),
        ("ipsec.crypto.kex", "from ipsec._modp import Modulus"),
        ("ipsec.backend.userspace", "import time\nfrom ipsec.net import tun\nfrom ipsec.esp.fast import Engine"),
        ("ipsec.daemon", "from ipsec.ike import engine\nfrom ipsec.backend import userspace"),
        ("ipsec.cli.ipsecd", "from ipsec import daemon, metrics"),
    ],
)
def test_lawful_import_passes(module: str, source: str) -> None:
    assert import_offences(source, module) == []


def test_long_function_is_found() -> None:
    source = "def f():\n" + "    x = 1\n" * FUNCTION_LINES
    assert size_offences(source, "m") == ["m.f has 71 lines, 70 are allowed"]
    assert size_offences(source.replace("    x = 1\n", "", 1), "m") == []
    assert size_offences("x = 1\n" * (MODULE_LINES + 1), "m") == ["m has 701 lines, 700 are allowed"]


@pytest.mark.parametrize(
    "head",
    [
        "cdef int f(int a) noexcept nogil:",
        "cdef inline uint8_t *f(int a,\n                      int b) noexcept nogil:",
        "def f(\n    a,\n):",
        "cpdef bytes f(self):",
    ],
)
def test_long_cython_function_is_found(head: str) -> None:
    lines = FUNCTION_LINES + 1
    source = head + "\n" + "    x = 1\n" * (lines - head.count("\n") - 1) + "\ncdef int g():\n    return 1\n"
    assert cython_size_offences(source, "m.pyx") == ["m.pyx:f has 71 lines, 70 are allowed"]
    assert cython_size_offences(source.replace("    x = 1\n", "", 1), "m.pyx") == []
