"""Users with passwords: EAP between two daemons, with a RADIUS server behind the gateway."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.freeradius import SECRET, USERS, freeradius, needs_freeradius, records
from tests.e2e.gateways import INNER, eventually
from tests.e2e.ike_gateways import IkeWorld, loss

pytestmark = pytest.mark.e2e


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


@needs_freeradius
def test_radius(world: IkeWorld, tmp_path: Path) -> None:
    directory = tmp_path / "radius"
    directory.mkdir()
    with freeradius(directory, "md5", world.b.namespace) as server:
        with_radius(world, server.auth_port)
        world.up()
        assert loss(world.a.ping(INNER[4][1])) == 0, world.logs()
    assert "carol has shown by EAP (MSCHAPV2) who it is" in world.b.log()


@needs_freeradius
def test_what_radius_grants_and_is_told(world: IkeWorld, tmp_path: Path) -> None:
    """An address and a group of carol's, and what has passed, over rekeying of all there is, up to the daemon's end."""
    directory = tmp_path / "radius"
    directory.mkdir()
    world.set("@vips", "0.0.0.0", 0)
    world.set(":local_ts", None, 0)
    world.set("@pools", "radius", 1)
    world.set("@remote.groups", "staff, others", 1)
    world.set(":remote_ts", None, 1)
    world.set(":rekey_time", "3s", 0)
    world.set("@rekey_time", "4s", 0)
    with freeradius(directory, "mschapv2", world.b.namespace) as server:
        with_radius(world, server.auth_port, acct_port=str(server.acct_port))
        world.set("ipsecd.radius.accounting", "yes", 1)
        world.set("ipsecd.radius.accounting_interval", "2", 1)
        world.up()
        assert "carol gets 10.3.0.9" in world.b.log(), world.logs()
        assert eventually(lambda: loss(world.a.ping(INNER[4][1])) == 0), world.logs()
        assert eventually(lambda: "rekeyed" in world.b.log() and len(records(directory)) > 3, 20), world.logs()
        sent = 60
        for _ in range(6):
            world.a.ping(INNER[4][1], count=10)
        world.b.stop()
        found = records(directory)
    assert [one["Acct-Status-Type"] for one in (found[0], found[-1])] == ["Start", "Stop"]
    assert {one["Acct-Status-Type"] for one in found[1:-1]} == {"Interim-Update"}
    assert len({one["Acct-Session-Id"] for one in found}) == 1
    for one in found:
        assert (one["User-Name"], one["Framed-IP-Address"]) == ("carol", "10.3.0.9")
        assert one["Class"] == "0x6669727374"
    assert found[-1]["Acct-Terminate-Cause"] == "Admin-Reboot"
    packets = [int(one["Acct-Input-Packets"]) for one in found[1:]]
    assert packets == sorted(packets)
    assert packets[-1] >= sent
    assert int(found[-1]["Acct-Output-Packets"]) >= sent
    assert int(found[-1]["Acct-Input-Octets"]) >= sent * 84


@needs_freeradius
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
