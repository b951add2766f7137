"""Runs a command where it may create network namespaces and TUN devices.

    python tools/netadmin.py COMMAND [ARGUMENT...]

With the privileges for it the command runs as it is. An ordinary user's runs as root of an unprivileged user
namespace with network and mount namespaces of its own, where the kernel and /dev/net/tun allow that. Where neither
works the exit status is 125 and stderr says why.
"""

from __future__ import annotations

import fcntl
import functools
import os
import struct
import subprocess
import sys
from dataclasses import dataclass

EXIT_IMPOSSIBLE = 125
TUNSETIFF = 0x400454CA
IFF_TUN_NO_PI = 0x1001

UNSHARE = ("unshare", "--net", "--mount")
#: ip-netns(8) keeps its names in /run/netns, which belongs to the real root; a new loopback is down
USER_NAMESPACE = (
    *("unshare", "--user", "--map-root-user", "--net", "--mount"),
    *("sh", "-c", 'mount -t tmpfs tmpfs /run && ip link set lo up && exec "$@"', "sh"),
)


@dataclass(frozen=True)
class Way:
    """How to get at network namespaces and TUN devices."""

    name: str
    "for people"
    prefix: tuple[str, ...]
    "goes before the command"
    obstacles: tuple[str, ...] = ()
    "why there is no way; empty if there is one"


@functools.cache
def find_way() -> Way:
    """The first way that works, tried out in namespaces that are gone afterwards."""
    obstacles = []
    for name, prefix, trial in (("directly", (), UNSHARE), ("in a user namespace", USER_NAMESPACE, USER_NAMESPACE)):
        obstacle = try_out(trial)
        if obstacle is None:
            return Way(name, prefix)
        obstacles.append(f"{name}: {obstacle}")
    return Way("not at all", (), tuple(obstacles))


def try_out(prefix: tuple[str, ...]) -> str | None:
    """What goes wrong when namespaces and a TUN device are created behind this prefix; None if nothing does."""
    command = [*prefix, sys.executable, __file__, "--probe"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, env=environment(), check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode == 0:
        return None
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"exit status {done.returncode}"


def probe() -> None:
    """Create what tests and demo create. Runs behind a prefix, in a process of its own."""
    name = f"probe{os.getpid()}"
    with open("/dev/net/tun", "rb+", buffering=0) as tun:
        fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN_NO_PI))
    subprocess.run(["ip", "netns", "add", name], check=True)
    subprocess.run(["ip", "netns", "del", name], check=True)


def environment() -> dict[str, str]:
    """Ours, with the folders of ip, ethtool and the like, which an ordinary user's PATH leaves out."""
    return {**os.environ, "PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"}


def main(arguments: list[str]) -> int:
    """Exec the command behind the prefix, or say why not."""
    if not arguments:
        print(__doc__, file=sys.stderr)
        return 2
    if arguments == ["--probe"]:
        try:
            probe()
        except (OSError, subprocess.CalledProcessError) as error:
            sys.exit(str(error))
        return 0
    way = find_way()
    if way.obstacles:
        print("cannot create network namespaces and TUN devices:", *way.obstacles, sep="\n  ", file=sys.stderr)
        return EXIT_IMPOSSIBLE
    command = [*way.prefix, *arguments]
    os.execvpe(command[0], command, environment())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
