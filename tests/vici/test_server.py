"""Clients as they should be, and as they should not."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import grp
import os
import socket
import stat
import struct
import warnings
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop

from ipsec.errors import BackendError
from ipsec.vici import server as vici_server
from ipsec.vici.client import HungUp, UnknownToDaemon, ViciError, connect
from ipsec.vici.codec import Message, PacketType, emit_packet
from ipsec.vici.server import Client, CommandError, ViciServer


@pytest.fixture(autouse=True, params=["asyncio", "uvloop"])
def loop(request: pytest.FixtureRequest) -> Iterator[None]:
    """What asyncio.run makes."""
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy() if request.param == "uvloop" else None)
    yield
    asyncio.set_event_loop_policy(None)


class Commands:
    """A few commands."""

    def __init__(self) -> None:
        self.cancelled = asyncio.Event()
        self.running = asyncio.Event()

    async def echo(self, client: Client, message: Message) -> Mapping[str, Any]:
        return message

    async def fail(self, client: Client, message: Message) -> Mapping[str, Any]:
        raise CommandError("no", matches="3")

    async def bug(self, client: Client, message: Message) -> Mapping[str, Any]:
        raise RuntimeError

    async def large(self, client: Client, message: Message) -> Mapping[str, Any]:
        return {"x": "y" * 70_000}

    async def stream(self, client: Client, message: Message) -> Mapping[str, Any]:
        for index in range(int(message["n"])):
            client.send_event("item", {"index": index, "filler": "x" * 1000})
            if index % 16 == 0:
                await client.flush()
        return {}

    async def wait(self, client: Client, message: Message) -> Mapping[str, Any]:
        self.running.set()
        try:
            await asyncio.sleep(600)
        finally:
            self.cancelled.set()
        return {}

    def table(self) -> dict[str, Any]:
        names = ("echo", "fail", "bug", "large", "stream", "wait")
        return {name: getattr(self, name) for name in names}


@asynccontextmanager
async def serving(path: Path) -> AsyncIterator[tuple[ViciServer, Commands]]:
    commands = Commands()
    server = ViciServer(commands.table(), ["item", "news"])
    await server.start(str(path))
    try:
        yield server, commands
    finally:
        await server.stop()


def test_commands_and_their_failures(tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "s"
        async with serving(path), await connect(f"unix://{path}") as session:
            assert await session.request("echo", {"a": "b", "s": {"l": ["1"]}}) == {"a": b"b", "s": {"l": [b"1"]}}
            for name, why in (("fail", "no"), ("bug", "internal error"), ("unknown", "does not know")):
                with pytest.raises(ViciError, match=why):
                    await session.request(name)
            with pytest.raises(ViciError, match="65535"):
                await session.request("large")
            with pytest.raises(ViciError, match="event"):
                [item async for item in session.stream("stream", "odd")]
            assert await session.request("echo") == {}

    asyncio.run(main())


def test_several_clients_and_events(tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "s"
        async with serving(path) as (server, _), await connect(str(path)) as one, await connect(str(path)) as two:

            async def hear(session: Any) -> list[Message]:
                return [message async for message in session.stream("stream", "item", {"n": "500"})]

            first, second = await asyncio.gather(hear(one), hear(two))
            assert [int(item["index"]) for item in first] == list(range(500)) == [int(i["index"]) for i in second]
            assert not server.wanted("item")
            news = one.listen("news")
            waiting = asyncio.ensure_future(anext(news))
            while not server.wanted("news"):
                await asyncio.sleep(0.001)
            server.publish("news", lambda: {"what": "x"})
            assert await waiting == ("news", {"what": b"x"})
            await news.aclose()

    asyncio.run(main())


def test_who_stops_reading_a_stream_has_hung_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that is still to come would be taken for that of the next command."""
    monkeypatch.setattr(vici_server, "LOOK_S", 0.01)

    async def main() -> None:
        path = tmp_path / "s"
        async with serving(path) as (_, commands), await connect(str(path)) as session:
            task = asyncio.ensure_future(anext(session.stream("wait", "item")))
            await commands.running.wait()
            task.cancel()
            await asyncio.wait([task], timeout=5)
            assert task.cancelled()
            await asyncio.wait_for(commands.cancelled.wait(), 5)
            with pytest.raises(HungUp):
                await session.request("echo")

    asyncio.run(main())


def test_events_are_kept_from_registration_on(tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "s"
        async with serving(path) as (server, _), await connect(str(path)) as session:
            await session.register("news")
            server.publish("news", {"what": "x"})
            with pytest.raises(UnknownToDaemon):
                await session.register("odd")
            news = session.listen()
            assert await anext(news) == ("news", {"what": b"x"})
            await news.aclose()

    asyncio.run(main())


def test_a_client_that_does_not_read_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vici_server, "BACKLOG_MAX", 100_000)

    async def main() -> None:
        path = tmp_path / "s"
        async with serving(path) as (server, _), await connect(str(path)) as other:
            with socket.socket(socket.AF_UNIX) as slow:
                slow.connect(str(path))
                slow.sendall(emit_packet(PacketType.EVENT_REGISTER, "news"))
                while not server.wanted("news"):
                    await asyncio.sleep(0.001)
                for _ in range(2000):
                    server.publish("news", {"filler": "x" * 1000})
                while server.wanted("news"):
                    await asyncio.sleep(0.001)
                assert await other.request("echo", {"a": "b"}) == {"a": b"b"}

    asyncio.run(main())


def test_a_command_ends_with_its_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vici_server, "LOOK_S", 0.01)

    async def main() -> None:
        path = tmp_path / "s"
        async with serving(path) as (_, commands):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(str(path))
                sock.sendall(emit_packet(PacketType.CMD_REQUEST, "wait"))
                await commands.running.wait()
            await asyncio.wait_for(commands.cancelled.wait(), 5)

    asyncio.run(main())


@pytest.mark.parametrize(
    "noise",
    [
        b"\0\0\0\0",
        struct.pack(">I", 600 * 1024),
        b"\0\0\0\1\x09",
        b"\0\0\0\1\x01",
        b"\0\0\0\x05\x00\x01a\x01",
        b"GET / HTTP/1.1\r\n\r\n",
        pytest.param(os.urandom(2000), id="random"),
        emit_packet(PacketType.CMD_RESPONSE),
        emit_packet(PacketType.CMD_REQUEST, "echo", {"a": "b"})[:-2],
    ],
)
def test_noise_costs_one_connection(tmp_path: Path, noise: bytes) -> None:
    async def main() -> None:
        path = tmp_path / "s"
        async with serving(path), await connect(str(path)) as other:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(str(path))
                sock.sendall(noise)
                sock.shutdown(socket.SHUT_WR)
                sock.setblocking(False)
                assert await asyncio.wait_for(asyncio.get_running_loop().sock_recv(sock, 100), 5) == b""
            assert await other.request("echo") == {}

    asyncio.run(main())


def test_the_largest_request(tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "s"
        async with serving(path), await connect(str(path)) as session:
            message = {f"k{index}": b"x" * 65_000 for index in range(8)}
            assert await session.request("echo", message) == message

    asyncio.run(main())


def test_who_may_use_the_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, uid: int, gid: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    async def main() -> None:
        path = tmp_path / "s"
        server = ViciServer({}, [])
        await server.start(str(path), group=grp.getgrgid(os.getgid()).gr_name, mode=0o600)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        await server.stop()
        assert not path.exists()
        with pytest.raises(BackendError, match="no group"):
            await ViciServer({}, []).start(str(path), group="no-such-group")
        assert not path.exists()
        monkeypatch.setattr("os.chown", refuse)
        with pytest.raises(BackendError, match="SupplementaryGroups=") as caught:
            await ViciServer({}, []).start(str(path), group=grp.getgrgid(os.getgid()).gr_name)
        assert "cannot be given to the group" in caught.value.message
        assert not path.exists()

    asyncio.run(main())


def test_places_that_are_taken(tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "s"
        async with serving(path):
            with pytest.raises(BackendError, match="another daemon"):
                await ViciServer({}, []).start(str(path))
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
        async with serving(path), await connect(str(path)) as session:
            await session.request("echo")
        path.write_text("precious")
        with pytest.raises(BackendError, match="no socket"):
            await ViciServer({}, []).start(str(path))
        assert path.read_text() == "precious"
        with pytest.raises(BackendError, match="vici_socket"):
            await ViciServer({}, []).start("/proc/nowhere/s")

    asyncio.run(main())


@pytest.mark.parametrize("turns", range(6))
def test_who_connects_as_it_stops(tmp_path: Path, turns: int) -> None:
    """Whatever has become of the connection by then, its socket is closed."""

    async def connect_and_stop() -> socket.socket:
        server = ViciServer({}, [])
        await server.start(str(tmp_path / "s"))
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(tmp_path / "s"))
        for _ in range(turns):
            await asyncio.sleep(0)
        await server.stop()
        return client

    with asyncio.run(connect_and_stop()) as client, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gc.collect()
        client.settimeout(1)
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(1) == b""
    assert [str(one.message) for one in caught if one.category is ResourceWarning] == []
