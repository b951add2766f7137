"""What scripts made for charon rely on, as 5.9.8 answers it; with nothing outside the process but the socket."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import Any

from ipsec.daemon.run import Daemon
from ipsec.ike.child_sa import ChildSa
from ipsec.ike.events import Path as IkePath
from ipsec.vici.client import Session
from ipsec.vici.show import Traffic
from tests.vici.test_service import refused, with_daemon

PATH = IkePath(ip_address("192.0.2.1"), 4500, ip_address("192.0.2.2"), 4500)


def test_counters_of_what_has_none(tmp_path: Path) -> None:
    """A script that begins anew for each connection in its file does not stop at one that was never up."""

    async def test(one: Daemon, session: Session) -> None:
        for name in ("old", "nobody"):
            assert await refused(session, "get-counters", {"name": name}) == "no counters found for this connection"
            assert await session.request("reset-counters", {"name": name}) == {"success": b"yes"}
        assert list(await session.request("get-counters")) == ["counters", "success"]

    with_daemon(tmp_path, test)


def test_list_sas_of_a_child_that_is_down(tmp_path: Path, monkeypatch: Any) -> None:
    """Who asks for one child learns that its IKE_SA is up without it."""

    async def test(one: Daemon, session: Session) -> None:
        assert one.ike is not None
        engine = one.ike.engine
        connection = engine.table.by_name["old"]
        sa = engine.new_sa(connection, initiator=True, path=PATH)
        child = ChildSa(engine.next_uid(), sa, connection.children[0], 1)
        sa.children[child.uid] = child
        monkeypatch.setattr("ipsec.daemon.vici.ViciControl.traffic", lambda *_: Traffic())

        async def children(**wanted: Any) -> list[list[str]]:
            events = [event async for event in session.stream("list-sas", "list-sa", wanted)]
            return [list(fields["child-sas"]) for event in events for fields in event.values()]

        there = [f"net-{child.uid}"]
        assert await children(child="net") == await children(**{"child-id": child.uid}) == [there]
        assert await children(child="other") == await children(**{"child-id": 4711}) == [[]]
        assert await children(ike="another", child="net") == []
        del sa.children[child.uid]
        sa.destroy("the test is over", engine.now)

    with_daemon(tmp_path, test)
