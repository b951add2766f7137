"""A responder that sends through the new CHILD_SA as soon as it has answered (RFC 7296 section 2.8), and an answer that
takes its time: what the peer sends comes before the SA that it is for."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e import ike_gateways
from tests.e2e.gateways import INNER, Gateway, eventually
from tests.e2e.ike_gateways import IkeWorld, launch, ups
from tests.e2e.nat import HOME, NAT, nat

pytestmark = pytest.mark.e2e

#: between both, on the port of ESP and IKE alike: what b says of IKE comes 50 ms later, all else at once
RELAY = """
import collections, select, socket, sys, time
def bound(address):
    sock = socket.socket(type=socket.SOCK_DGRAM)
    sock.bind((address, 4500))
    return sock
near, far = bound(sys.argv[1]), bound(sys.argv[2])
print('ready', flush=True)
client, late = None, collections.deque()
while True:
    wait = max(0, late[0][0] - time.monotonic()) if late else None
    for ready in select.select([near, far, sys.stdin], [], [], wait)[0]:
        if ready is near:
            data, client = near.recvfrom(65535)
            far.sendto(data, (sys.argv[3], 4500))
        elif ready is far:
            data = far.recv(65535)
            if data[:4] == bytes(4):
                late.append((time.monotonic() + 0.05, data))
            else:
                near.sendto(data, client)
        else:
            sys.exit()
    while late and late[0][0] <= time.monotonic():
        near.sendto(late.popleft()[1], client)
"""
#: ipsecd, but it does not wait for the initiator's Delete before it sends through the successor, as libreswan does not
HASTY = """
import sys
from ipsec.cli.main import main
from ipsec.ike import child, create_child
make = create_child._make
def hasty(sa, new, old, shared, further, now):
    make(sa, new, old, shared, further, now)
    if old is not None:
        child.superseded(old, now)
create_child._make = hasty
sys.exit(main())
"""


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[IkeWorld]:
    with IkeWorld(tmp_path) as world, nat(world, RELAY):
        world.set("ipsecd.port", "0")
        for side in (0, 1):
            world.set("@local_addrs", HOME[side], side)
            world.set("@remote_addrs", NAT[side], side)
        monkeypatch.setattr(ike_gateways, "COMMAND", [sys.executable, "-c", HASTY])
        yield world


def drops(gateway: Gateway) -> str:
    """What the daemon says of them when it is asked."""
    assert gateway.process is not None
    before = gateway.log().count("drops:")
    gateway.process.send_signal(signal.SIGUSR1)
    assert eventually(lambda: gateway.log().count("drops:") > before)
    return re.findall(r"drops: (.*)", gateway.log())[-1]


@pytest.mark.parametrize("workers", ["0", pytest.param("1", marks=pytest.mark.slow), "2"])
def test_what_comes_before_its_sa_is_not_lost(world: IkeWorld, workers: str) -> None:
    world.set("ipsecd.workers", workers)
    for key in ("@rekey_time", ":rekey_time", ":rand_time", "@rand_time"):
        world.set(key, "0")
    world.set(":rekey_time", "1s", 0)
    world.set(":life_time", "10s", 0)
    world.write()
    launch(world.b)
    # from before there is a tunnel: the answer of IKE_AUTH is late as well
    first = world.b.popen("ping", "-n", "-q", "-i", "0.004", "-c", "100000", INNER[4][0])
    world.set(":start_action", "start", 0)
    world.write()
    launch(world.a)
    world.wait_up()
    flood = world.b.popen("ping", "-n", "-q", "-i", "0.004", "-c", "1000", "-W", "1", INNER[4][0])
    output, _ = flood.communicate(timeout=30)
    first.kill()
    first.communicate()
    assert ups(world.a) >= 3, world.logs()
    assert " 0% packet loss" in output, output + drops(world.a) + world.logs()
    assert "IN_" not in drops(world.a)
