"""The commands of our own on a whole daemon."""

from __future__ import annotations

import asyncio
import logging
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from ipsec.config.diff import Effect, Kind
from ipsec.daemon.metrics import Metrics, Pace
from ipsec.daemon.run import Daemon
from ipsec.esp.drops import DropReason
from ipsec.ike.child_sa import ChildSa
from ipsec.ike.eap.relay import EapAnswer
from ipsec.ike.events import Path as IkePath
from ipsec.ike.failure import Cause, Failure, Terms
from ipsec.vici.client import Session, connect
from ipsec.vici.codec import PacketType
from ipsec.vici.events import NAMES
from ipsec.vici.logs import SUBSYSTEMS, LogRelay, describe, describe_in_full
from ipsec.vici.show import Traffic
from tests.ike.radius_server import CALLER, IDENTITY
from tests.vici.test_service import CONNECTION, refused, with_daemon

PATH = IkePath(ip_address("192.0.2.1"), 4500, ip_address("192.0.2.2"), 4500)


async def listed(session: Session, command: str, event: str, **message: Any) -> list[Any]:
    """All events of a command."""
    return [item async for item in session.stream(command, event, message)]


def test_the_data_path(tmp_path: Path) -> None:
    async def test(one: Daemon, session: Session) -> None:
        found = await session.request("ipsecd-data-path")
        backend = one.backend
        assert found["device"] == backend.device.encode()
        assert int(found["mtu"]) == backend.mtu
        assert found["workers"] == b"0"
        assert found["raw-esp"] == b"no"
        assert found["ports"] == {f"ipv{v}": str(port).encode() for v, port in backend.ports.items()}
        assert set(found["offloads"]) == set(backend.offloads())
        assert {name: int(value) for name, value in found["counters"].items()} == backend.counters()
        assert "drops" not in found or all(name in DropReason.__members__ for name in found["drops"])

    with_daemon(tmp_path, test)


SAS = f"""
sas {{
  by-hand {{
    local = 192.0.2.1
    remote = 192.0.2.9
    local_ts = 10.1.0.0/16
    remote_ts = 10.9.0.0/16
    esp_proposals = aes128gcm16-esn
    encap = yes
    spi_in = 0x10000001
    spi_out = 0x20000001
    key_in = 0x{"11" * 20}
    key_out = 0x{"22" * 20}
  }}
}}
"""


def test_manual_sas(tmp_path: Path) -> None:
    async def test(one: Daemon, session: Session) -> None:
        ((name, fields),) = [item for event in await listed(session, "ipsecd-manual-sas", "ipsecd-manual-sa")
                             for item in event.items()]  # fmt: skip
        assert name == "by-hand"
        assert fields == {
            "mode": b"TUNNEL",
            "local-host": b"192.0.2.1",
            "remote-host": b"192.0.2.9",
            "remote-port": b"4500",
            "encap": b"yes",
            "spi-in": b"10000001",
            "spi-out": b"20000001",
            "suite": b"aes128gcm16",
            "esn": b"1",
            **{f"{what}-{way}": b"0" for what in ("bytes", "packets", "number") for way in ("in", "out")},
            "local-ts": [b"10.1.0.0/16"],
            "remote-ts": [b"10.9.0.0/16"],
        }

    with_daemon(tmp_path, test, SAS)


def test_no_manual_sas_and_what_is_begun_by_itself(tmp_path: Path) -> None:
    async def test(one: Daemon, session: Session) -> None:
        assert not await listed(session, "ipsecd-manual-sas", "ipsecd-manual-sa")
        await session.request("load-conn", {"c": CONNECTION | {"children": {"x": {"start_action": "trap"}}}})
        actions = {
            name: child["ipsecd-start-action"]
            for event in await listed(session, "list-conns", "list-conn")
            for connection in event.values()
            for name, child in connection["children"].items()
        }
        assert actions == {"net": b"none", "x": b"trap"}

    with_daemon(tmp_path, test)


def test_drops_by_child(tmp_path: Path, monkeypatch: Any) -> None:
    async def test(one: Daemon, session: Session) -> None:
        assert one.ike is not None
        engine = one.ike.engine
        connection = engine.table.by_name["old"]
        good, bad = (engine.new_sa(connection, initiator=True, path=PATH) for _ in range(2))
        child = ChildSa(engine.next_uid(), bad, connection.children[0], 1)
        bad.children[child.uid] = child
        drops = {"IN_STATE_SEQ_ERROR": 3, "OUT_TOO_BIG": 0}
        monkeypatch.setattr("ipsec.daemon.vici.ViciControl.traffic", lambda *_: Traffic(drops=drops))
        events = await listed(session, "ipsecd-drops", "ipsecd-drop")
        assert [name for event in events for name in event] == ["old"]
        fields = events[0]["old"]
        assert fields["uniqueid"] == str(bad.uid).encode()
        assert fields["child-sas"] == {
            f"net-{child.uid}": {"name": b"net", "drops": {"IN_STATE_SEQ_ERROR": b"3"}}
        }
        assert await listed(session, "ipsecd-drops", "ipsecd-drop", ike="another") == []
        del bad.children[child.uid]
        for sa in (good, bad):
            sa.destroy("the test is over", engine.now)

    with_daemon(tmp_path, test)


def test_problems_listed_and_as_they_happen(tmp_path: Path) -> None:
    async def test(one: Daemon, session: Session) -> None:
        assert one.ike is not None
        engine = one.ike.engine
        assert await listed(session, "ipsecd-problems", "ipsecd-problem") == []
        events = session.listen("ipsecd-problem")
        first = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0.05)
        failure = Failure(
            Cause.SELECTORS, "they do not fit", "net", ours=Terms(local_ts=("10.1.0.0/16",)), theirs=Terms()
        )
        engine.note_without(failure, "old", ip_address("192.0.2.2"), initiator=False)
        one.ike.turn()
        name, told = await asyncio.wait_for(first, 5)
        await events.aclose()
        assert name == "ipsecd-problem"
        (kept,) = await listed(session, "ipsecd-problems", "ipsecd-problem", ike="old")
        assert told == kept
        assert kept.pop("time").startswith(b"20")
        assert kept == {
            "ike": b"old",
            "child": b"net",
            "cause": b"ts-mismatch",
            "reason": b"they do not fit",
            "by": b"us",
            "initiator": b"no",
            "remote-host": b"192.0.2.2",
            "count": b"1",
            "over": b"no",
            "ours": {"local-ts": [b"10.1.0.0/16"]},
        }
        assert await listed(session, "ipsecd-problems", "ipsecd-problem", ike="another") == []

    with_daemon(tmp_path, test)


def test_no_way_to_the_peer_is_a_problem(tmp_path: Path) -> None:
    """Before there is an IKE_SA: a name that cannot be found."""

    async def test(one: Daemon, session: Session) -> None:
        message: dict[str, Any] = {
            "remote_addrs": ["nowhere.invalid"],
            "local": {"auth": "psk", "id": "a"},
            "remote": {"auth": "psk", "id": "b"},
            "children": {"net": {"remote_ts": ["10.3.0.0/16"]}},
        }
        await session.request("load-conn", {"lost": message})
        assert "failed" in await refused(session, "initiate", {"child": "net", "ike": "lost"})
        (found,) = await listed(session, "ipsecd-problems", "ipsecd-problem", ike="lost")
        assert (found["cause"], found["child"]) == (b"no-path", b"net")
        assert b"nowhere.invalid" in found["reason"]
        await session.request("unload-conn", {"name": "lost"})
        await session.request("get-conns")
        assert await listed(session, "ipsecd-problems", "ipsecd-problem") == []

    with_daemon(tmp_path, test)


def test_what_a_reload_would_change(tmp_path: Path) -> None:
    async def test(one: Daemon, session: Session) -> None:
        async def diff() -> list[tuple[str, str, str]]:
            events = await listed(session, "ipsecd-diff", "ipsecd-change")
            return [tuple(str(event[key], "utf-8") for key in ("key", "kind", "effect")) for event in events]  # type: ignore[misc]

        assert await diff() == []
        # what vici has loaded stays, so it is no difference, until the file has that name too
        await session.request("load-conn", {"more": CONNECTION})
        await session.request("load-shared", {"type": "IKE", "data": "x", "id": "more", "owners": ["a"]})
        assert await diff() == []
        file = tmp_path / "swanctl.conf"
        before = file.read_text()
        file.write_text(before.replace("192.0.2.2", "192.0.2.9").replace("workers = 0", "workers = 1"))
        assert await diff() == [
            ("ipsecd.workers", "changed", "restart"),
            ("connections.old.remote_addrs", "changed", "reconnected"),
        ]
        # nothing was loaded
        assert one.ike is not None
        assert one.ike.engine.table.by_name["old"].remote_addrs == ("192.0.2.2",)
        file.write_text(before.replace("  old {", "  more {"))
        assert {key for key, _, _ in await diff()} >= {"connections.old", "connections.more.remote_addrs"}
        file.write_text("connections {")
        assert "closing" in await refused(session, "ipsecd-diff", {})
        file.write_text(before)
        assert await diff() == []

    with_daemon(tmp_path, test)


def test_log_levels_end_with_their_client(tmp_path: Path) -> None:
    async def test(one: Daemon, session: Session) -> None:
        async def levels() -> dict[str, Any]:
            return (await session.request("ipsecd-log-level"))["levels"]  # type: ignore[no-any-return]

        before = await levels()
        assert set(before) == set(SUBSYSTEMS)
        other = await connect(f"{tmp_path}/s")
        await other.request("ipsecd-log-level", {"levels": {"ike": "debug", "net": "error"}})
        await session.request("ipsecd-log-level", {"levels": {"ike": "info"}, "keep": "yes"})
        assert (await levels())["ike"] == b"debug"
        await other.close()
        while (await levels())["ike"] != b"info":
            await asyncio.sleep(0.01)
        assert (await levels())["net"] == before["net"]
        await session.request("ipsecd-log-level", {"levels": {"all": "default"}, "keep": "True"})
        assert await levels() == before
        for wrong, why in (({"x": "debug"}, "no subsystem 'x'"), ({"ike": "loud"}, "no level 'loud'")):
            assert why in await refused(session, "ipsecd-log-level", {"levels": wrong})
        await session.request("ipsecd-log-level", {"levels": {"all": "debug"}, "keep": "yes"})

    with_daemon(tmp_path, test)
    assert logging.getLogger("ipsec.ike").level == logging.NOTSET


def test_the_log_in_full(tmp_path: Path) -> None:
    async def test(one: Daemon, session: Session) -> None:
        assert one.ike is not None
        engine = one.ike.engine
        sa = engine.new_sa(engine.table.by_name["old"], initiator=True, path=PATH)
        async with await connect(f"{tmp_path}/s") as other:
            await other.request("ipsecd-log-level", {"levels": {"ike": "debug"}})
            events = session.listen("ipsecd-log")
            first = asyncio.ensure_future(anext(events))
            while not first.done():
                logging.getLogger("ipsec.ike.test").debug("%s: said in detail", sa)
                await asyncio.sleep(0.001)
            name, line = await first
            await events.aclose()
        assert name == "ipsecd-log"
        assert line.pop("time").startswith(b"20")
        assert line == {
            "level": b"debug",
            "subsystem": b"ike",
            "message": f"{sa}: said in detail".encode(),
            "ike": b"old",
            "uniqueid": str(sa.uid).encode(),
            "remote-host": b"192.0.2.2",
        }
        sa.destroy("the test is over", engine.now)

    with_daemon(tmp_path, test)


@pytest.mark.parametrize("event", ["log", "ipsecd-log"])
@pytest.mark.parametrize("way", ["unregister", "hang up"])
def test_a_line_that_nobody_wants_is_not_looked_at(
    tmp_path: Path, event: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at: list[str] = []
    monkeypatch.setattr(LogRelay, "emit", lambda self, record: looked_at.append(record.getMessage()))

    def say(what: str) -> bool:
        logging.getLogger("ipsec.ike.test").critical("%s", what)
        return what in looked_at

    async def test(one: Daemon, session: Session) -> None:
        assert not say("before")
        await session.register("ike-updown")
        assert not say("who wants other events")
        async with await connect(f"{tmp_path}/s") as other:
            for client in (session, other):
                await client.register(event)
                assert say(f"with {client}")
            # the one that stays still hears
            if way == "unregister":
                await other._register(PacketType.EVENT_UNREGISTER, event)
                assert say("after the first")
                await session._register(PacketType.EVENT_UNREGISTER, event)
        if way == "hang up":
            assert say("after the first")
            await session.close()
            async with asyncio.timeout(5):
                while say(f"{len(looked_at)} until it is noticed"):
                    await asyncio.sleep(0.001)
        assert not say("after both")

    with_daemon(tmp_path, test)


def test_the_documentation_has_all_names(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "vici.md").read_text()

    async def test(one: Daemon, session: Session) -> None:
        assert one._vici is not None
        names = {*one._vici._server._commands, *NAMES, *(cause.value for cause in Cause), *SUBSYSTEMS, *Kind, *Effect}
        missing = {name for name in names if f"`{name}`" not in text}
        assert not missing

    with_daemon(tmp_path, test)


@pytest.mark.parametrize("tell", [describe, describe_in_full])
def test_a_line_cannot_move_a_terminal(tell: Any) -> None:
    """swanctl prints what it is told; identities of peers are in it."""
    record = logging.LogRecord("ipsec.ike.auth", logging.INFO, "", 0, "%s", ("a\n\x1b[2Jb",), None)
    assert r"a\n\x1b[2Jb" in tell(record, None).values()


RADIUS = """
ipsecd { radius { servers {
  first {
    address = 127.0.0.1
    secret = of that server and of nobody else
    auth_port = 9
    retransmit_tries = 0
    retransmit_timeout = 0.1
  }
} } }
"""


def test_radius_servers(tmp_path: Path) -> None:
    """One that does not answer is seen, and metrics have it as well."""

    async def test(one: Daemon, session: Session) -> None:
        assert one.ike is not None
        (found,) = (await session.request("ipsecd-radius")).items()
        assert found == ("first", {"server": b"RADIUS server first (127.0.0.1:9)", "auth": {"counters": {}}})
        done: asyncio.Future[EapAnswer] = asyncio.get_running_loop().create_future()
        one.ike.outside.radius.ask(1, b"alice", IDENTITY, CALLER, done.set_result)
        assert (await asyncio.wait_for(done, 10)).silent
        state = (await session.request("ipsecd-radius"))["first"]["auth"]
        assert int(state["silent"]) < 10
        assert state["counters"]["timeouts"] == b"1"
        metrics = Metrics(one.backend, one.health, lambda: iter(()))
        metrics.attach(one.ike)
        one.ike.engine.eap_results["MSCHAPV2", True] += 2
        series = {series.name: {tuple(s.labels.values()): s.value for s in series.samples}
                  async for series in metrics.collect(Pace())}  # fmt: skip
        assert series["ipsecd_radius_answers"] == {("first", "auth"): 0}
        assert series["ipsecd_radius"]["first", "auth", "timeouts"] == 1
        assert series["ipsecd_eap"] == {("MSCHAPV2", "success"): 2}

    with_daemon(tmp_path, test, RADIUS)
