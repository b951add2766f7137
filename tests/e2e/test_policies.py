"""BYPASS and DISCARD between two gateways, looked at on the wire."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.gateways import INNER, NETS, OUTER, Setup, World, eventually, finish
from tests.e2e.test_traffic import file_of, not_seen, transfer, what_passed, wire

pytestmark = pytest.mark.e2e

MakeWorld = Callable[[Setup], World]

#: TCP 5300 (what ``transfer`` uses) and one subnet in clear, TCP 23 nowhere, the rest through the tunnel
POLICIES = {
    "all": {"action": "protect"},
    "there": {"action": "bypass", "local_ts": "{local}", "remote_ts": "{remote}[tcp/5300]"},
    "here": {"action": "bypass", "local_ts": "{local}[tcp/5300]", "remote_ts": "{remote}"},
    "telnet": {"action": "discard", "local_ts": "{local}", "remote_ts": "{remote}[tcp/23]", "priority": "1"},
}
CONNECT = "import socket, sys; s = socket.socket(); s.settimeout(0.3); s.connect((sys.argv[1], int(sys.argv[2])))"


def around_the_tunnel(world: World) -> None:
    """What bypasses needs a way of its own: here each is the other's router."""
    for gateway in (world.a, world.b):
        theirs = 1 - gateway.side
        gateway.run("ip", "route", "add", NETS[4][theirs], "via", OUTER[4][theirs])


@pytest.mark.parametrize("workers", [0, 2])
def test_bypassed_ports_go_in_clear_and_the_rest_does_not(make_world: MakeWorld, tmp_path: Path, workers: int) -> None:
    world = make_world(Setup(workers=workers, policies=POLICIES))
    around_the_tunnel(world)
    world.start()
    with wire(world) as sniffer:
        assert "3 received" in world.a.ping(INNER[4][1])
        assert "3 received" in world.b.ping(INNER[6][0])
        kinds = what_passed(sniffer)
        assert kinds.pop("esp") == 12
        assert not kinds, kinds
        # superframes have to be taken apart and their checksums completed before they leave like that
        expected = file_of(tmp_path / "file", 2 << 20)
        assert transfer(world, 4, tmp_path / "file") == expected
        kinds = what_passed(sniffer)
        missed = not_seen(sniffer)
    assert set(kinds) == {"tcp"}
    assert kinds["tcp"] + missed >= (2 << 20) // 1448


def test_a_bypassed_subnet_stays_out_of_the_tunnel(make_world: MakeWorld) -> None:
    policies = {
        "all": {"action": "protect"},
        "there": {"action": "bypass", "local_ts": "{local}", "remote_ts": "10.2.9.0/24"},
        "here": {"action": "bypass", "local_ts": "10.2.9.0/24", "remote_ts": "{remote}"},
    }
    world = make_world(Setup(policies=policies))
    around_the_tunnel(world)
    world.b.run("ip", "addr", "add", "10.2.9.1/32", "dev", "lo")
    world.start()
    assert "throw 10.2.9.0/24" in world.a.leftovers()
    with wire(world) as sniffer:
        assert "3 received" in world.a.ping("10.2.9.1", "-I", INNER[4][0])
        assert what_passed(sniffer) == {"icmp4": 6}
        assert "3 received" in world.a.ping(INNER[4][1])
        assert what_passed(sniffer) == {"esp": 6}


def test_discarded_ports_reach_nobody(make_world: MakeWorld) -> None:
    world = make_world(Setup(policies=POLICIES))
    around_the_tunnel(world)
    world.start()
    server = world.b.popen(
        sys.executable,
        "-c",
        "import socket, time; s = socket.create_server(('', 23)); print(1, flush=True); s.accept()",
    )
    try:
        assert server.stdout is not None
        server.stdout.readline()
        with wire(world) as sniffer:
            done = world.a.run(sys.executable, "-c", CONNECT, INNER[4][1], "23", check=False)
            assert "TimeoutError" in done.stderr
            assert what_passed(sniffer) == {}
        assert server.poll() is None
    finally:
        finish(server)
    assert world.a.process is not None
    world.a.process.send_signal(signal.SIGUSR1)
    assert eventually(lambda: "OUT_POL_BLOCK=" in world.a.log()), world.a.log()


def test_outside_of_every_policy_is_dropped(make_world: MakeWorld) -> None:
    """The device takes what somebody routes to it; what no policy covers goes nowhere, and never in clear."""
    world = make_world(Setup())
    world.start()
    world.a.run("ip", "route", "add", "10.77.0.0/16", "dev", "ipsec0")
    with wire(world) as sniffer:
        assert "0 received" in world.a.ping("10.77.0.1", "-W", "0.2", check=False)
        assert what_passed(sniffer) == {}
    assert world.a.process is not None
    world.a.process.send_signal(signal.SIGUSR1)
    assert eventually(lambda: "OUT_NO_POLS=" in world.a.log()), world.a.log()
