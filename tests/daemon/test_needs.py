"""A mark and raw sockets: had wherever that may be, and what needs them is refused where they are not."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from ipaddress import ip_network
from pathlib import Path
from typing import Any, cast

import pytest

from ipsec.backend.settings import UserspaceSettings
from ipsec.config import load, load_text
from ipsec.config.settings import Setup
from ipsec.daemon import backend_settings
from ipsec.daemon.ike import IkeControl
from ipsec.daemon.loaded import Loaded
from ipsec.daemon.needs import refuse
from ipsec.daemon.run import Daemon
from ipsec.daemon.settings import say_limits
from ipsec.errors import BackendError, ConfigError
from ipsec.ike.config import Connection
from ipsec.net import marks, udp
from ipsec.net.marks import default_mark
from ipsec.net.route import Router
from ipsec.net.routebook import Entry, prefixes
from ipsec.net.rtnetlink import MarkRule
from tests.daemon.test_parts import MANUAL, connection

PLAIN = "remote_ts = 10.2.0.0/16\nstart_action = trap"
HOST = "remote_ts = dynamic"
ALL = "remote_ts = 0.0.0.0/0\nstart_action = trap"
PASS = "remote_ts = 10.2.0.0/16\nmode = pass\nstart_action = trap"
PASS_PORT = "remote_ts = 10.2.0.0/16[tcp/80]\nmode = pass\nstart_action = trap"
DROP = "remote_ts = 10.2.0.0/16\nmode = drop\nstart_action = trap"


@pytest.fixture
def rights(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool, bool], None]:
    """Have those to mark and to open raw sockets, or not."""

    def give(mark: bool, raw: bool) -> None:
        monkeypatch.setattr(udp, "may_mark", lambda: mark)
        monkeypatch.setattr(udp, "may_bypass", lambda fwmark: raw)

    return give


def settings(child: str = PLAIN, *, prepared: bool = False, **keys: str) -> UserspaceSettings:
    values = "".join(f"{key} = {value}\n" for key, value in keys.items())
    config = load_text(f"ipsecd {{ {values} }}\n" + connection(child))
    setup = Setup.PREPARED if prepared else Setup.OWN
    return backend_settings(replace(config, settings=replace(config.settings, setup=setup)))


@pytest.mark.parametrize(
    ("child", "mark", "bypass"),
    [(PLAIN, False, False), (HOST, True, False), (ALL, True, False), (PASS, True, True), (DROP, True, False)],
)
def test_what_is_configured_at_the_start_is_had_or_fails(
    child: str, mark: bool, bypass: bool, rights: Callable[[bool, bool], None]
) -> None:
    rights(False, False)
    got = settings(child)
    assert (got.fwmark, got.bypass) == (default_mark(220) if mark else 0, bypass)
    assert got.peer_inside == mark
    rights(True, True)
    got = settings(child)
    assert (got.fwmark, got.bypass) == (default_mark(220), True)
    assert got.peer_inside == mark


def test_what_may_come_later_is_provided_for(rights: Callable[[bool, bool], None]) -> None:
    rights(True, False)
    assert (settings().fwmark, settings().bypass) == (default_mark(220), False)
    rights(True, True)
    assert settings(fwmark="9").fwmark == 9
    assert settings(routing_table="7").bypass
    elsewhere = settings(HOST, namespace="app")
    assert (elsewhere.fwmark, elsewhere.bypass) == (0, False), "no route of the tunnel is in the way here"
    prepared = settings(PASS, prepared=True, fwmark="9")
    assert (prepared.fwmark, prepared.bypass) == (0, False)


@pytest.mark.parametrize("child", [PLAIN, ALL])
def test_each_table_has_an_unusual_mark_of_its_own(child: str, rights: Callable[[bool, bool], None]) -> None:
    """The rule of another ipsecd, which has another table, is for what we send, too."""
    rights(True, True)
    assert [settings(child, routing_table=table).fwmark for table in ("7", "220")] == [0x69700007, 0x697000DC]


def test_rights_are_looked_for_where_they_count() -> None:
    """Whatever this test may do: both say so without an exception."""
    assert udp.may_bypass(1) <= udp.may_mark()


def entries(routes: str) -> set[Entry]:
    """Such as ``unicast 10.0.0.0/8, throw 10.1.0.0/16``."""
    present = set()
    for text in filter(None, routes.split(", ")):
        kind, network = text.split()
        (prefix,) = prefixes(ip_network(network)[0], ip_network(network)[-1])
        present.add(Entry(cast(Any, kind), prefix))
    return present


def refused(child: str, have: UserspaceSettings) -> str:
    (one,) = load_text(connection(child)).connections
    try:
        refuse(one, have)
    except ConfigError as error:
        return str(error).removeprefix("connections.c.children.n: ")
    return ""


@pytest.mark.parametrize("child", [PLAIN, HOST, ALL, PASS, PASS_PORT, DROP])
def test_with_everything_nothing_is_refused(child: str) -> None:
    assert not refused(child, UserspaceSettings(fwmark=220, bypass=True))


@pytest.mark.parametrize(
    ("have", "child", "words"),
    [
        ({}, PLAIN, ""),
        ({}, HOST, "bear no mark that keeps them out of it: grant CAP_NET_ADMIN"),
        ({}, ALL, "CAP_NET_ADMIN"),
        ({}, DROP, "CAP_NET_ADMIN"),
        ({"fwmark": 1}, DROP, ""),
        ({"fwmark": 1}, PASS, "needs a raw socket: grant CAP_NET_RAW"),
        ({"fwmark": 1}, PASS_PORT, "CAP_NET_RAW"),
        ({"namespace": "app"}, HOST, ""),
        ({"namespace": "app"}, PASS, "restart ipsecd with it in its file"),
        ({"prepared": True}, HOST, ""),
        ({"prepared": True}, DROP, ""),
        ({"prepared": True}, PASS, ""),
        ({"prepared": True}, PASS_PORT, "name whole networks, or let ipsecd make device and routes"),
    ],
)
def test_what_is_missing_is_told(have: dict[str, Any], child: str, words: str) -> None:
    said = refused(child, UserspaceSettings(**have))
    assert words in said
    assert bool(words) == bool(said)


@pytest.mark.parametrize("child", [HOST, ALL, DROP, PASS, PASS_PORT])
def test_who_makes_the_routes_himself_is_refused_nothing(child: str) -> None:
    assert not refused(child, UserspaceSettings(install_routes=False))


@pytest.mark.parametrize("child", [HOST, ALL, DROP, PASS, PASS_PORT])
def test_without_policies_nothing_is_needed(child: str, rights: Callable[[bool, bool], None]) -> None:
    assert not refused(f"{child}\npolicies = no", UserspaceSettings())
    rights(False, False)
    assert settings(f"{child}\npolicies = no").fwmark == 0


@pytest.mark.parametrize(
    ("pools", "start", "covers"), [("", "", True), ("pools = p", "", False), ("pools = p", "start_action = trap", True)]
)
def test_who_gets_an_address_of_ours_is_not_inside_before(pools: str, start: str, covers: bool) -> None:
    text = connection(f"{HOST}\n{start}").replace("remote_addrs", f"{pools}\nremote_addrs", 1)
    (one,) = load_text(text + "pools { p { addrs = 10.99.0.0/24 } }").connections
    if covers:
        with pytest.raises(ConfigError, match="bear no mark"):
            refuse(one, UserspaceSettings())
    else:
        refuse(one, UserspaceSettings())


@pytest.mark.parametrize(
    ("remote", "routes", "astray"),
    [
        ("10.9.1.0/24", "", False),
        ("10.9.1.0/24", "unicast 10.8.0.0/16", False),
        ("10.9.1.0/24", "unicast 10.9.0.0/16", True),
        ("10.9.1.0/24", "unreachable 10.9.1.0/24", True),
        ("10.9.1.0/24", "unicast 0.0.0.0/0", True),
        ("10.9.1.0/24", "unicast 10.9.0.0/16, throw 10.9.1.0/24", False),
        ("10.9.1.0/24", "throw 10.9.0.0/16, unicast 10.9.1.0/25", False),
        ("10.9.1.0-10.9.2.255", "unicast 10.9.2.0/24", True),
        ("fd09:1::/32", "unicast ::/0", True),
        ("fd09:1::/32", "unicast fd09:1::/32, throw fd09:1::/32", False),
        ("10.9.1.0/24", "unicast ::/0", False),
    ],
)
def test_what_was_prepared_may_lead_elsewhere(
    remote: str, routes: str, astray: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    present = entries(routes)
    monkeypatch.setattr(Router, "present", lambda self: present)
    said = refused(f"remote_ts = {remote}\nmode = pass\nstart_action = trap", UserspaceSettings(prepared=True))
    assert ("what was prepared leads that to the device" in said) == astray
    assert ("ipsecd --prepare" in said) == bool(said) == astray


def test_routes_are_read_once_for_all_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[object] = []
    monkeypatch.setattr(Router, "present", lambda self: read.append(self) or set())
    both = connection(PASS + " }\n m { " + PASS) + connection(PASS).replace("c {", "other {", 1)
    say_limits(load_text(both), UserspaceSettings(prepared=True))
    assert len(read) == 1


def test_routes_that_cannot_be_read_are_told_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(self: Router) -> None:
        raise BackendError("no netlink here")

    monkeypatch.setattr(Router, "present", fail)
    assert not refused(PASS, UserspaceSettings(prepared=True))
    assert "routes cannot be read: no netlink here" in caplog.text


@pytest.mark.parametrize("same", [True, False])
def test_what_is_there_already_is_not_refused(same: bool) -> None:
    """By vici, as the very file that the daemon was started with."""
    loaded = Loaded(load_text(connection(PASS)), partial(refuse, settings=UserspaceSettings()))
    child = {"remote_ts": b"10.2.0.0/16", "mode": b"pass", "start_action": b"trap" if same else b"none"}
    psk = {"auth": b"psk"}
    message = {"remote_addrs": b"192.0.2.2", "local": psk, "remote": psk, "children": {"n": child}}
    before = loaded.connection("c")
    if same:
        loaded.load_connection("c", message)
    else:
        with pytest.raises(ConfigError, match="raw socket"):
            loaded.load_connection("c", message)
    assert loaded.connection("c") == before


def test_memory_refuses_nothing() -> None:
    assert not refused(PASS, UserspaceSettings(memory=cast(Any, object())))


def test_what_a_prepared_device_cannot_do_is_a_warning_at_the_start(caplog: pytest.LogCaptureFixture) -> None:
    config = load_text(connection(PASS_PORT))
    say_limits(config, UserspaceSettings(prepared=True))
    assert "connections.c.children.n: mode = pass for some ports or protocols" in caplog.text


def test_the_mark_is_told(caplog: pytest.LogCaptureFixture, rights: Callable[[bool, bool], None]) -> None:
    caplog.set_level(logging.INFO)
    rights(True, True)
    for child in (PLAIN, ALL):
        config = load_text(connection(child))
        say_limits(config, backend_settings(config))
    assert caplog.messages == [
        "our own packets bear mark 0x697000dc, because what is loaded later may need it",
        "our own packets bear mark 0x697000dc, because policies cover the outer addresses, drop or bypass",
    ]


def test_another_mark_is_chosen_where_a_rule_knows_the_usual_one(
    caplog: pytest.LogCaptureFixture, rights: Callable[[bool, bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    rights(True, True)
    monkeypatch.setattr(marks, "mark_rules", lambda netlink: [MarkRule(100, 0, default_mark(220), 0xFFFFFFFF)])
    config = load_text(connection(PLAIN))
    have = backend_settings(config)
    assert have.fwmark not in (0, default_mark(220))
    say_limits(config, have)
    assert f"there is a routing rule for mark 0x697000dc: ours is {have.fwmark:#x}" in caplog.text


# -- a whole daemon


def file(folder: Path, text: str) -> Path:
    path = folder / "swanctl.conf"
    path.touch(mode=0o600)
    path.write_text(f"ipsecd {{ backend = memory\n state_dir = {folder}\n vici_socket = none }}\n{text}")
    return path


def test_a_file_that_asks_for_more_than_there_is_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        path = file(tmp_path, connection(PLAIN))
        daemon = Daemon(load(str(path)))
        await daemon.start()
        daemon._backend_settings = UserspaceSettings(fwmark=1)
        more = connection(PLAIN) + connection(PASS).replace("c {", "other {", 1)
        file(tmp_path, more)
        said = await daemon.reload()
        assert said.startswith(f"{path}: connections.other.children.n: mode = pass needs a raw socket")
        assert f"not reloaded: {said}" in caplog.text
        with pytest.raises(ConfigError, match="raw socket"):
            await daemon.preview()
        file(tmp_path, more.replace("c {", "c {\ndpd_delay = 5x", 1).replace("other {", "other {\nmobike = 5x", 1))
        said = await daemon.reload()
        assert said.endswith("(and 1 more: ipsecd --check)")
        assert [line.rpartition("not reloaded: ")[2].split(": ")[1] for line in caplog.messages[-2:]] == [
            "connections.c.dpd_delay", "connections.other.mobike",
        ]  # fmt: skip
        assert daemon.ike is not None
        assert list(daemon.ike.engine.table.by_name) == ["c"]
        await daemon.stop()

    asyncio.run(main())


def test_what_is_unchanged_is_not_searched_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        names = [f"c{at}" for at in range(20)]
        path = file(tmp_path, "".join(connection(PLAIN).replace("c {", f"{name} {{", 1) for name in names))
        daemon = Daemon(load(str(path)))
        compared = []
        equal = Connection.__eq__

        def compare(one: Connection, other: object) -> bool:
            compared.append(one.name)
            return equal(one, other)

        monkeypatch.setattr(Connection, "__eq__", compare)
        assert len((await daemon._read_again()).connections) == len(names)
        assert len(compared) <= len(names)
        await daemon.stop()

    asyncio.run(main())


@pytest.mark.parametrize("where", ["vici", "start"])
def test_ike_that_fails_in_an_unforeseen_way_leaves_nothing(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the next reload begins it."""
    fails = [True]
    stopped: list[object] = []

    class Vici:
        async def stop(self) -> None:
            stopped.append(self)

    async def serve(*args: object, **more: object) -> Vici:
        if fails[0] and where == "vici":
            raise ValueError("unforeseen")
        return Vici()

    start = IkeControl.start

    async def begin(control: IkeControl) -> None:
        await start(control)
        if fails[0]:
            raise ValueError("unforeseen")

    run_module = sys.modules[Daemon.__module__]
    monkeypatch.setattr(run_module, "start_vici", serve)
    monkeypatch.setattr(run_module, "vici_wanted", lambda config: bool(config.connections))
    monkeypatch.setattr(IkeControl, "start", begin)
    manual = MANUAL[MANUAL.index("sas") :]

    async def main() -> None:
        path = file(tmp_path, manual)
        with socket.create_server(("127.0.0.1", 0)) as free:
            http = f"http {{ listen = 127.0.0.1:{free.getsockname()[1]} }}"
        path.write_text(path.read_text().replace("backend =", f"{http}\n backend =", 1))
        daemon = Daemon(load(str(path)))
        await daemon.start()
        closed: list[bool] = []
        monkeypatch.setattr(daemon.backend, "close_ike", lambda: closed.append(True))
        path.write_text(path.read_text() + connection(PLAIN.replace("trap", "start")))
        with pytest.raises(ValueError, match="unforeseen"):
            await daemon.reload()
        assert closed
        assert (daemon.ike, daemon._vici) == (None, None)
        assert len(stopped) == (where == "start")
        assert daemon._endpoint is not None
        assert daemon._endpoint.metrics.ike is None
        assert daemon.health.ready().good
        assert not daemon.health.wanted()
        fails[0] = False
        assert await daemon.reload() == ""
        assert daemon.ike is not None
        assert list(daemon.health.wanted()) == ["c"]
        await daemon.stop()

    asyncio.run(main())


def test_ike_that_cannot_begin_leaves_manual_sas_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Here because vici has no socket; the next reload finds one."""
    served: list[object] = []

    async def refuse(*args: object, **more: object) -> None:
        served.append(args[0])
        if len(served) == 1:
            raise BackendError("another daemon listens there")

    run_module = sys.modules[Daemon.__module__]
    monkeypatch.setattr(run_module, "start_vici", refuse)
    monkeypatch.setattr(run_module, "vici_wanted", lambda config: bool(config.connections))

    async def main() -> None:
        manual = MANUAL[MANUAL.index("sas") :]
        daemon = Daemon(load(str(file(tmp_path, manual))))
        await daemon.start()
        closed: list[bool] = []
        monkeypatch.setattr(daemon.backend, "close_ike", lambda: closed.append(True))
        file(tmp_path, manual + connection(PLAIN))
        assert "cannot begin: another daemon listens there" in await daemon.reload()
        assert daemon.ike is None
        assert closed
        assert len(list(daemon._manual.stats())) == 2
        assert await daemon.reload() == ""
        assert daemon.ike is not None
        assert daemon.ike.guards.has("c", "n")
        await daemon.stop()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("routes", "mode", "missing"),
    [
        ("unicast 10.9.0.0/16", "", []),
        ("unicast 10.0.0.0/8", "", []),
        ("unicast 10.8.0.0/16", "", ["10.9.0.0/16"]),
        ("unicast 10.9.0.0/24", "mode = drop", ["10.9.0.0/16"]),
        ("unicast 10.0.0.0/8, throw 10.9.0.0/16", "", ["10.9.0.0/16"]),
        ("unicast 10.8.0.0/16", "policies = no", []),
        ("unicast 10.8.0.0/16", "mode = pass", []),
        ("", "", []),
    ],
)
def test_a_connection_that_nothing_was_prepared_for(
    routes: str,
    mode: str,
    missing: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It comes up, and what it is to protect goes elsewhere, perhaps in clear."""
    monkeypatch.setattr(Router, "present", lambda self: entries(routes))
    child = f"remote_ts = 10.9.0.0/16\n{mode}\nstart_action = trap"
    assert not refused(child, UserspaceSettings(prepared=True))
    assert [one in caplog.text for one in missing] == [True] * len(missing)
    assert bool(missing) == bool(caplog.records)
    if missing:
        assert "connections.c.children.n" in caplog.text
        assert "ipsecd --prepare again" in caplog.text
    caplog.clear()
    assert not refused(child.replace("mode = pass", ""), UserspaceSettings(fwmark=1))
    assert not caplog.records
