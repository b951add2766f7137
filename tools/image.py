"""Builds the image of ipsecd with podman and buildah, or with docker.

    python -m tools.image [--base IMAGE] [--tag NAME]

Without --base it stands on a slim Debian that mmdebstrap makes here, where that is installed: no registry is asked.
Otherwise the base is the Dockerfile's. Every image has a hash of what it is made of as its tag, and what is there
already is not built again.
"""

from __future__ import annotations

import argparse
import configparser
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent
DOCKERFILE = ROOT / "docker/Dockerfile"
STRONGSWAN = ROOT / "docker/scenarios/strongswan.Dockerfile"
#: what goes into the image, see .dockerignore
SOURCES = (
    *(".dockerignore", "docker/Dockerfile", "docker/bill.py", "docker/requirements.py"),
    *("pyproject.toml", "setup.py", "README.md", "LICENSE"),
)
SUFFIXES = (".py", ".pyi", ".pyx", ".pxd", ".c", ".h")
LOCK = ROOT / "build/image.lock"

NO_DOCS = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "info", "locale")]
#: merged /usr from the start, or Perl comes along to merge it
MERGED = ["--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr", "--include=usr-is-merged"]
MMDEBSTRAP = ["mmdebstrap", "--quiet", "--variant=minbase", *MERGED, *NO_DOCS, "--format=tar", "bookworm", "-"]
#: settings of pip that lead to packages
PIP_KEYS = ("cert", "index-url", "extra-index-url", "proxy", "trusted-host", "timeout")
#: where the Dockerfile looks for them; a folder that is there, or an empty one would stay in the image
PIP_FOLDER = "/mnt"


class ImageError(Exception):
    """An image cannot be built; the text says why."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.image", description="Build the image of ipsecd.")
    parser.add_argument("--base", metavar="IMAGE", help="what it stands on")
    parser.add_argument("--tag", metavar="NAME", default="localhost/ipsec:latest", help="default: %(default)s")
    options = parser.parse_args()
    begin = time.monotonic()
    try:
        base = options.base or (debian_base() if shutil.which("mmdebstrap") else None)
        image = ipsec_image(base)
        run([engine(), "tag", image, options.tag])
        size = image_size(image)
        above = f", {(size - image_size(base)) / 2**20:.0f} MiB above its base" if base else ""
    except ImageError as error:
        print(f"image: {error}", file=sys.stderr)
        return 1
    print(f"{options.tag}: {size / 2**20:.0f} MiB{above}, after {time.monotonic() - begin:.1f} s")
    return 0


def debian_base() -> str:
    """Debian without documentation, as its slim images are."""
    tag = f"localhost/ipsec-base:{digest([], MMDEBSTRAP)}"
    with building(tag) as wanted:
        if wanted:
            with subprocess.Popen(MMDEBSTRAP, stdout=subprocess.PIPE) as made:
                run([engine(), "import", "-", tag], stdin=made.stdout)
            if made.returncode:
                raise ImageError(f"mmdebstrap: exit status {made.returncode}")
    return tag


def ipsec_image(base: str | None) -> str:
    """The image of this checkout."""
    files = [*(ROOT / name for name in SOURCES), *(ROOT / "docs/man").iterdir()]
    # what Cython and gcc make of them lies beside them
    files += [path for path in (ROOT / "ipsec").rglob("*") if path.suffix in SUFFIXES and not path.match("ipsec/_*.c")]
    tag = f"localhost/ipsec:{digest(files, [base or ''])}"
    arguments = [f"VERSION={version()}", f"REVISION={revision()}", *([f"BASE={base}"] if base else [])]
    with building(tag) as wanted:
        if wanted:
            build(DOCKERFILE, tag, arguments)
    return tag


def strongswan_image(base: str) -> str:
    """Debian's strongSwan, the peer of some scenarios."""
    tag = f"localhost/ipsec-strongswan:{digest([STRONGSWAN], [base])}"
    with building(tag) as wanted:
        if wanted:
            build(STRONGSWAN, tag, [f"BASE={base}"])
    return tag


def build(dockerfile: Path, tag: str, arguments: Iterable[str]) -> None:
    """Run a Dockerfile whose context is the checkout."""
    options = ["-f", str(dockerfile), "-t", tag, *(f"--build-arg={argument}" for argument in arguments)]
    with tempfile.TemporaryDirectory(prefix="ipsec-image-") as folder:
        if engine() == "docker":
            command = ["docker", "build", *options]
        else:
            # HEALTHCHECK is there in Docker's format alone; chroot works inside containers too
            tool = ["buildah", "bud"] if shutil.which("buildah") else ["podman", "build"]
            # a step of which nothing changed is not done again; vfs would copy everything for each step
            layers = run(["podman", "info", "--format={{.Store.GraphDriverName}}"]).strip() != "vfs"
            command = [*tool, "--format=docker", "--isolation=chroot", f"--layers={str(layers).lower()}", *options]
            command += pip_settings(Path(folder))
        run([*command, str(ROOT)], shown=True)


def pip_settings(folder: Path) -> list[str]:
    """Options that let pip in the build reach what pip reaches here: index, proxy, certificates."""
    settings = {}
    for line in run([sys.executable, "-m", "pip", "config", "list"]).splitlines():
        name, _, value = line.partition("=")
        if (key := name.rpartition(".")[2]) in PIP_KEYS and "file:" not in value:
            settings[key] = value.strip("'\"")
    if "cert" in settings:
        shutil.copy(settings["cert"], folder / "ca.pem")
        settings["cert"] = f"{PIP_FOLDER}/ca.pem"
    parser = configparser.RawConfigParser()
    parser["global"] = settings
    with (folder / "pip.conf").open("w") as file:
        parser.write(file)
    return [f"--volume={folder}:{PIP_FOLDER}:ro"] if settings else []


@contextmanager
def building(tag: str) -> Iterator[bool]:
    """Whether the body has to make this image. Two that want one image wait for each other."""
    LOCK.parent.mkdir(exist_ok=True)
    with LOCK.with_name(f"{tag.replace('/', '-')}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield subprocess.run([engine(), "image", "inspect", tag], capture_output=True, check=False).returncode != 0
    Path(lock.name).unlink(missing_ok=True)


def digest(files: Iterable[Path], words: Iterable[str]) -> str:
    """A hash of contents, paths and words, for a tag."""
    found = hashlib.sha256("\0".join(words).encode())
    for path in sorted(files):
        found.update(f"\0{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return found.hexdigest()[:16]


def version() -> str:
    import tomllib

    return str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])


def revision() -> str:
    command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def image_size(image: str) -> int:
    return int(run([engine(), "image", "inspect", "--format", "{{.Size}}", image]))


def engine() -> str:
    """The program that keeps images."""
    for name in ("podman", "docker"):
        if shutil.which(name):
            return name
    raise ImageError("neither podman nor docker is installed: on Debian, apt-get install podman buildah runc")


def run(command: Sequence[str], *, shown: bool = False, stdin: object = None) -> str:
    """Standard output of a command; ImageError if it fails."""
    try:
        done = subprocess.run(
            command,
            stdin=stdin if stdin is not None else subprocess.DEVNULL,  # type: ignore[call-overload]
            stdout=sys.stderr if shown else subprocess.PIPE,
            stderr=None if shown else subprocess.PIPE,
            text=True,
            env=os.environ,
            check=False,
        )
    except OSError as error:
        raise ImageError(f"{command[0]}: {error.strerror}") from None
    if done.returncode:
        raise ImageError(f"{' '.join(command)}: exit status {done.returncode}\n{done.stderr or ''}".rstrip())
    return done.stdout or ""


if __name__ == "__main__":
    sys.exit(main())
