"""Other UDP ports, and a NAT in between that forgets which one it had given us."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.e2e.gateways import INNER, Gateway, Setup, World, eventually
from tests.e2e.nat import HOME, NAT, move, nat

pytestmark = pytest.mark.e2e

MakeWorld = Callable[[Setup], World]

FIRST, SECOND = 5001, 5002
#: a to b through a port that changes when a line comes in; the old one is closed
RELAY = """
import select, socket, sys
inside = socket.socket(type=socket.SOCK_DGRAM)
inside.bind((sys.argv[1], 4500))
def outside(port):
    sock = socket.socket(type=socket.SOCK_DGRAM)
    sock.bind((sys.argv[2], port))
    return sock
out = outside(int(sys.argv[4]))
print('ready', flush=True)
client = None
while True:
    for ready in select.select([inside, out, sys.stdin], [], [])[0]:
        if ready is inside:
            data, client = inside.recvfrom(65535)
            out.sendto(data, (sys.argv[3], 4500))
        elif ready is out and client:
            inside.sendto(out.recv(65535), client)
        elif ready is sys.stdin:
            if not sys.stdin.readline():
                sys.exit()
            out.close()
            out = outside(int(sys.argv[5]))
            print('moved', flush=True)
            break
"""


def test_two_gateways_on_different_ports(make_world: MakeWorld) -> None:
    world = make_world(Setup(workers=2))
    world.write_config(world.a, local_port="4600", remote_port="4700")
    world.write_config(world.b, local_port="4700", remote_port="4600")
    world.start()
    assert "IPv4 UDP port 4600" in world.a.log()
    assert "3 received" in world.a.ping(INNER[4][1])
    assert "3 received" in world.b.ping(INNER[6][0])
    assert ":4600" in world.a.run("ss", "-Hlun").stdout
    assert ":4500" not in world.a.run("ss", "-Hlun").stdout


def behind_nat(world: World, follow: str) -> None:
    world.write_config(world.a, local=HOME[0], remote=NAT[0])
    world.write_config(world.b, local=HOME[1], remote=NAT[1], remote_port=str(FIRST), follow_peer=follow)
    world.start()


def lost(gateway: Gateway, address: str) -> bool:
    return "0 received" in gateway.ping(address, "-W", "0.3", check=False)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_peer_is_followed_to_its_new_port(make_world: MakeWorld, workers: int) -> None:
    world = make_world(Setup(workers=workers))
    with nat(world, RELAY, str(FIRST), str(SECOND)) as relay:
        behind_nat(world, "yes")
        assert "3 received" in world.a.ping(INNER[4][1])
        assert "the peer is now at" not in world.b.log()
        move(relay)
        # nobody has told b, and it cannot know
        assert lost(world.b, INNER[4][0])
        # the answer to the first packet may leave before the event loop has heard of the move
        assert "0 received" not in world.a.ping(INNER[4][1])
        assert eventually(lambda: f"the peer is now at {NAT[1]} port {SECOND}" in world.b.log()), world.b.log()
        assert "3 received" in world.a.ping(INNER[4][1])
        assert "3 received" in world.b.ping(INNER[4][0])
        assert "3 received" in world.b.ping(INNER[6][0])


def test_the_peer_is_not_followed_where_that_is_off(make_world: MakeWorld) -> None:
    world = make_world(Setup())
    with nat(world, RELAY, str(FIRST), str(SECOND)) as relay:
        behind_nat(world, "no")
        assert "3 received" in world.a.ping(INNER[4][1])
        move(relay)
        assert lost(world.a, INNER[4][1])
        assert "the peer is now at" not in world.b.log()
