"""Packages build from nothing but what they declare, carry what they should, and work where they are installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
#: what is in a checkout but never in git
LEFTOVERS = shutil.ignore_patterns(".*", "build", "dist", "__pycache__", "*.so", "*.egg-info", "results")

BUILD_SDIST = """
import sys
from setuptools import build_meta
print(build_meta.build_sdist(sys.argv[1]))
"""

#: What the package says of itself where only it and the standard library are installed.
INSTALLED = """
import importlib.metadata, ipsec._fastpath, ipsec._modp, ipsec._providers, ipsec._pump
modules = ipsec._fastpath, ipsec._modp, ipsec._providers, ipsec._pump
print(importlib.metadata.version("ipsec"), *(module.__file__ for module in modules))
"""


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


#: the tests share what was built: one worker of parallel tests runs them all
pytestmark = pytest.mark.xdist_group("build")


def test_groups_are_heeded(request: pytest.FixtureRequest) -> None:
    assert "PYTEST_XDIST_WORKER" not in os.environ or request.node.nodeid.endswith("@build")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy without anything built."""
    folder = tmp_path_factory.mktemp("build") / "checkout"
    shutil.copytree(ROOT, folder, ignore=LEFTOVERS)
    return folder


@pytest.fixture(scope="module")
def clean_python(checkout: Path) -> Path:
    """The interpreter of a virtual environment that holds what build-system.requires says and nothing else."""
    folder = checkout.parent / "venv"
    run(sys.executable, "-m", "venv", folder, cwd=checkout)
    python = folder / "bin" / "python"
    requires = tomllib.loads((checkout / "pyproject.toml").read_text())["build-system"]["requires"]
    run(python, "-m", "pip", "install", "-qq", *requires, cwd=checkout)
    return python


@pytest.fixture(scope="module")
def sdist(checkout: Path, clean_python: Path) -> Path:
    name = run(clean_python, "-c", BUILD_SDIST, checkout.parent, cwd=checkout).splitlines()[-1]
    return checkout.parent / name


@pytest.fixture(scope="module")
def wheel(sdist: Path, clean_python: Path) -> Path:
    """Built from the sdist, and without intel-ipsec-mb: what another CPU gets."""
    run(
        *(clean_python, "-m", "pip", "wheel", "-qq", "--no-build-isolation", "--no-deps", "-w", sdist.parent, sdist),
        cwd=sdist.parent,
        IPSEC_WITHOUT_IPSEC_MB="1",
    )
    (wheel,) = sdist.parent.glob("ipsec-*.whl")
    return wheel


def declared_version() -> str:
    version: str = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    return version


@pytest.mark.timeout(600)
def test_sdist_carries_sources_and_nothing_built(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    kinds = ("*.py", "*.pyx", "*.pxd", "*.pyi", "*.c", "*.h", "py.typed")
    sources = {str(path.relative_to(ROOT)) for kind in kinds for path in (ROOT / "ipsec").rglob(kind)}
    assert sources <= names
    assert {"LICENSE", "README.md", "CHANGELOG.md", "Makefile", "setup.py", "tools/setup", "tests/conftest.py"} <= names
    assert not [name for name in names if name.endswith((".so", ".pyc"))]
    assert not [name for name in names if name.startswith("ipsec/_") and name.endswith(".c")]


@pytest.mark.timeout(600)
def test_wheel_carries_types_and_declarations_but_no_source_of_the_module(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        entry_points = archive.read(f"ipsec-{declared_version()}.dist-info/entry_points.txt").decode()
    kinds = ("*.py", "*.pxd", "*.pyi", "py.typed")
    assert {str(path.relative_to(ROOT)) for kind in kinds for path in (ROOT / "ipsec").rglob(kind)} <= names
    built = {name.partition(".")[0] for name in names if name.endswith(".so")}
    assert built == {"ipsec/_fastpath", "ipsec/_modp", "ipsec/_providers", "ipsec/_pump"}
    assert not [name for name in names if name.endswith((".pyx", ".c")) or name.split("/")[0] in ("tests", "tools")]
    assert "ipsecd = ipsec.cli.main:main" in entry_points


@pytest.mark.timeout(600)
def test_wheel_works_where_it_is_installed(wheel: Path, clean_python: Path) -> None:
    run(clean_python, "-m", "pip", "install", "-qq", "--no-deps", "--force-reinstall", wheel, cwd=wheel.parent)
    version, *modules = run(clean_python, "-c", INSTALLED, cwd=wheel.parent).split()
    assert version == declared_version()
    assert len(modules) == 4
    for module in modules:
        assert Path(module).is_relative_to(clean_python.parent.parent)
        linked = run("ldd", module, cwd=wheel.parent)
        assert "libcrypto.so" in linked
        assert "libIPSec_MB" not in linked


def failing_build(checkout: Path, clean_python: Path, folder: Path, **environment: str) -> str:
    done = subprocess.run(
        [clean_python, "setup.py", "-q", "build", "--build-base", folder],
        cwd=checkout,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    return done.stderr


@pytest.mark.timeout(600)
def test_missing_openssl_headers_are_named(checkout: Path, clean_python: Path, tmp_path: Path) -> None:
    # a header of the right name that says it is OpenSSL 1.1 comes first
    (tmp_path / "openssl").mkdir()
    for name, text in (("evp.h", ""), ("opensslv.h", "#define OPENSSL_VERSION_NUMBER 0x101010bfL\n")):
        (tmp_path / "openssl" / name).write_text(text)
    assert "libssl-dev" in failing_build(checkout, clean_python, tmp_path / "build", CFLAGS=f"-I{tmp_path}")


@pytest.mark.timeout(600)
def test_missing_compiler_is_named(checkout: Path, clean_python: Path, tmp_path: Path) -> None:
    said = failing_build(checkout, clean_python, tmp_path / "build", CC="no-such-compiler")
    assert "apt-get install gcc" in said
