"""A TUN device in a network namespace of its own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from ipsec.net import netns
from ipsec.net.tun import Tun, open_tun


@contextmanager
def tun_in_namespace(what: str) -> Iterator[Tun]:
    """``ipsec0`` in a fresh namespace named after ``what``; the calling thread is inside."""
    name = f"{what}-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        with netns.inside(name):
            tun = open_tun("ipsec0")
            yield tun
            tun.close()
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)
