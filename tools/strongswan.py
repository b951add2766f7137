"""Which strongSwan tests and benchmarks meet: the one that is installed here, or another one in a root file system.

    STRONGSWAN_ROOT=/srv/trixie pytest -m 'slow or not slow' tests/interop

What is there runs with that system's /usr in the place of ours, in a mount namespace of its own; all other paths, /etc
too, are the same inside and outside. Both systems need a merged /usr, as Debian has had since 12. The packages that it
has to have are those that tests/interop/charon.py names.
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
from pathlib import Path

ROOT = os.environ.get("STRONGSWAN_ROOT", "")
#: the same daemon twice; newer systems have only the one that systemd starts
DAEMONS = ("/usr/lib/ipsec/charon", "/usr/sbin/charon-systemd")
PLUGIN_FOLDER = "/usr/lib/ipsec/plugins"
ENTER = 'mount --bind "$0/usr" /usr && exec "$@"'
#: charon.pid is in /run, and there may be several charons
OWN_RUN = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /run && exec "$@"', "sh")


def exists(path: str) -> bool:
    """Whether strongSwan's system has a file; ``path`` is absolute, as it is in there."""
    return Path(ROOT, path.lstrip("/")).exists() if ROOT else Path(path).exists()


@functools.cache
def version() -> tuple[int, ...]:
    """Such as (6, 0, 1)."""
    # swanctl says it as well where it finds no daemon
    done = subprocess.run(command("swanctl", "--version"), capture_output=True, text=True, check=False)
    found = re.search(r"strongSwan (\d+)\.(\d+)\.(\d+)", done.stdout + done.stderr)
    return tuple(map(int, found.groups())) if found else ()


def daemon() -> str:
    """The path of charon; the usual one if there is none."""
    return next(filter(exists, DAEMONS), DAEMONS[0])


def command(*args: str) -> list[str]:
    """``args`` as a command of that system. The process that is started becomes it."""
    return ["unshare", "--mount", "sh", "-c", ENTER, ROOT, *args] if ROOT else list(args)


def start() -> list[str]:
    """The command that starts charon."""
    return command(*OWN_RUN, daemon())
