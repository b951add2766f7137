"""Users with passwords: EAP between two daemons, with a RADIUS server behind the gateway."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.freeradius import PROGRAM, SECRET, USERS, freeradius
from tests.e2e.gateways import INNER, eventually
from tests.e2e.ike_gateways import IkeWorld, loss

pytestmark = pytest.mark.e2e
with_freeradius = pytest.mark.skipif(PROGRAM is None, reason="freeradius is not installed")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[IkeWorld]:
    """A user, and a gateway that has a pre-shared key."""
    with IkeWorld(tmp_path) as world:
        world.set("@local.auth", "eap", 0)
        world.set("@local.eap_id", "carol", 0)
        world.set("@remote.auth", "eap-mschapv2", 1)
        world.set("@remote.eap_id", "%any", 1)
        world.set("secrets.eap-carol", {"id": "carol", "secret": USERS["carol"]}, 0)
        yield world


def with_radius(world: IkeWorld, port: int, **more: str) -> None:
    world.set("@remote.auth", "eap-radius", 1)
    server = {"address": "127.0.0.1", "auth_port": str(port), "secret": SECRET, **more}
    world.set("ipsecd.radius", {"servers": {"first": server}}, 1)


def refused(world: IkeWorld, here: str, there: str) -> None:
    world.set(":start_action", "start", 0)
    world.start()
    assert eventually(lambda: "not established" in world.a.log()), world.logs()
    assert here in world.a.log(), world.logs()
    assert there in world.b.log(), world.logs()
    for text in (USERS["carol"], SECRET, "not hers"):
        assert text not in world.logs()


def test_passwords(world: IkeWorld) -> None:
    world.set("secrets.eap-carol", {"id": "carol", "secret": USERS["carol"]}, 1)
    world.up()
    assert loss(world.a.ping(INNER[4][1])) == 0, world.logs()
    assert "carol has shown by EAP (MSCHAPV2) who it is" in world.b.log()


def test_a_wrong_password(world: IkeWorld) -> None:
    world.set("secrets.eap-carol", {"id": "carol", "secret": "not hers"}, 1)
    refused(world, "refuses us as carol: EAP-Failure after MSCHAPV2: error 691", "EAP of carol: ")


@with_freeradius
def test_radius(world: IkeWorld, tmp_path: Path) -> None:
    directory = tmp_path / "radius"
    directory.mkdir()
    with freeradius(directory, "md5", world.b.namespace) as server:
        with_radius(world, server.auth_port)
        world.up()
        assert loss(world.a.ping(INNER[4][1])) == 0, world.logs()
    assert "carol has shown by EAP (MSCHAPV2) who it is" in world.b.log()


@with_freeradius
def test_radius_refuses(world: IkeWorld, tmp_path: Path) -> None:
    world.set("secrets.eap-carol", {"id": "carol", "secret": "not hers"}, 0)
    directory = tmp_path / "radius"
    directory.mkdir()
    with freeradius(directory, "mschapv2", world.b.namespace) as server:
        with_radius(world, server.auth_port)
        refused(world, "refuses us as carol: EAP-Failure after MSCHAPV2", "EAP of carol: ")


def test_nobody_is_there_for_radius(world: IkeWorld) -> None:
    """The user hears it, too."""
    with_radius(world, 1812, retransmit_tries="1", retransmit_timeout="0.2")
    refused(world, "EAP-Failure before any method", "EAP of carol: no RADIUS server answers")


def test_no_server_for_radius(world: IkeWorld) -> None:
    world.set("@remote.auth", "eap-radius", 1)
    refused(world, "EAP-Failure before any method", "ipsecd.radius.servers has no server")
