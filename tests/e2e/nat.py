"""A NAT between two gateways: a namespace, and a program in it that relays datagrams."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.commands import run
from tests.e2e.gateways import World, finish

#: how a and b see the NAT, and their own addresses on the way to it
NAT = ("203.0.113.3", "198.51.100.3")
HOME = ("203.0.113.1", "198.51.100.2")


@contextmanager
def nat(world: World, program: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A third namespace between the two, and the relay in it, not moved yet: ``program`` gets both addresses of the
    NAT, b's and ``arguments``, and says when it is ready and when a line has made it move."""
    name = f"net-e2e-{os.getpid()}-nat"
    run("ip", "netns", "add", name)
    try:
        for side, gateway in enumerate((world.a, world.b)):
            near, far = (gateway.namespace, HOME[side]), (name, NAT[side])
            device = f"nat{side}"
            run("ip", "link", "add", device, "netns", name, "type", "veth", "peer", "name", device, "netns", near[0])
            for namespace, address in (near, far):
                run("ip", "-n", namespace, "addr", "add", f"{address}/24", "dev", device)
                run("ip", "-n", namespace, "link", "set", device, "up")
        command = ["ip", "netns", "exec", name, sys.executable, "-c", program, *NAT, HOME[1], *arguments]
        relay = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        try:
            assert relay.stdout is not None
            assert relay.stdout.readline() == "ready\n"
            yield relay
        finally:
            finish(relay)
    finally:
        run("ip", "netns", "del", name)


def move(relay: subprocess.Popen[str]) -> None:
    """The NAT forgets its mappings and takes other ports."""
    assert relay.stdin is not None
    assert relay.stdout is not None
    relay.stdin.write("\n")
    relay.stdin.flush()
    assert relay.stdout.readline() == "moved\n"
