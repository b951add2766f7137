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
from ipsec.vici.codec import Message, Packet, PacketType, emit_packet, take_packet
from ipsec.vici.server import Client, CommandError, ViciServer

REQUEST = PacketType.CMD_REQUEST


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
        self.released = asyncio.Event()
        self.undone: list[bool] = []
        "for each client that ran ``wait`` and has gone: whether the command had ended by then"

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

    async def lost(self, client: Client, message: Message) -> Mapping[str, Any]:
        work = asyncio.ensure_future(asyncio.sleep(600))
        asyncio.get_running_loop().call_soon(work.cancel)
        await work
        return {}

    async def hold(self, client: Client, message: Message) -> Mapping[str, Any]:
        await self.released.wait()
        return {}

    async def wait(self, client: Client, message: Message) -> Mapping[str, Any]:
        client.at_end.append(lambda: self.undone.append(self.cancelled.is_set()))
        self.running.set()
        try:
            await asyncio.sleep(600)
        finally:
            self.cancelled.set()
        return {}

    def table(self) -> dict[str, Any]:
        names = ("echo", "fail", "bug", "large", "stream", "lost", "hold", "wait")
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


async def hear(sock: socket.socket, count: int) -> list[Packet]:
    """So many packets from a socket that does not block; fewer if it is closed."""
    octets, packets = bytearray(), list[Packet]()
    while len(packets) < count:
        data = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(sock, 1 << 16), 5)
        if not data:
            break
        octets += data
        while (packet := take_packet(octets)) is not None:
            packets.append(packet)
    return packets


@contextlib.contextmanager
def plain(path: Path) -> Iterator[socket.socket]:
    """A client of which nothing is known."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(path))
        sock.setblocking(False)
        yield sock


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


def test_who_stops_reading_a_stream_has_hung_up(tmp_path: Path) -> None:
    """An answer that is still to come would be taken for that of the next command."""

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


def test_who_does_not_take_an_answer_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vici_server, "PATIENCE_S", 0.05)

    async def main() -> None:
        path = tmp_path / "s"
        async with serving(path) as (server, _), await connect(str(path)) as other:
            with plain(path) as deaf:
                deaf.send(emit_packet(PacketType.EVENT_REGISTER, "item"))
                assert [one.type for one in await hear(deaf, 1)] == [PacketType.EVENT_CONFIRM]
                deaf.send(emit_packet(REQUEST, "stream", {"n": "2000"}))
                async with asyncio.timeout(5):
                    while server.wanted("item"):
                        await asyncio.sleep(0.001)
            assert await other.request("echo", {"a": "b"}) == {"a": b"b"}

    asyncio.run(main())


@pytest.mark.parametrize("how", ["close", "half", "close with more behind", "close amid the next"])
def test_a_command_ends_with_its_client(tmp_path: Path, how: str) -> None:
    async def main() -> None:
        path = tmp_path / "s"
        async with serving(path) as (server, commands):
            with plain(path) as sock:
                more = emit_packet(REQUEST, "echo") if "more" in how else b"\0" if "amid" in how else b""
                sock.send(emit_packet(REQUEST, "wait") + more)
                await commands.running.wait()
                if how == "half":
                    sock.shutdown(socket.SHUT_WR)
                    assert await hear(sock, 1) == []
            await asyncio.wait_for(commands.cancelled.wait(), 5)
            while server._clients:
                await asyncio.sleep(0.001)
            assert commands.undone == [True]
        assert commands.undone == [True]

    asyncio.run(main())


@pytest.mark.parametrize("cut", [0, 1])
def test_who_has_sent_more_behind_it_is_not_gone(tmp_path: Path, cut: int) -> None:
    """Commands of a client that does not wait for their answers are run, but for the last one."""

    async def main() -> None:
        path = tmp_path / "s"
        async with serving(path) as (_, commands):
            with plain(path) as sock:
                echo = emit_packet(REQUEST, "echo", {"a": "b"})
                sock.send(emit_packet(REQUEST, "hold") + echo + echo[: len(echo) - cut])
                sock.shutdown(socket.SHUT_WR)
                await asyncio.sleep(0.05)
                commands.released.set()
                assert [one.message for one in await hear(sock, 3)] == [{}, {"a": b"b"}]

    asyncio.run(main())


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
def test_packets_are_answered_in_their_order(tmp_path: Path, size: int) -> None:
    """In whatever pieces they come."""

    async def main() -> None:
        path = tmp_path / "s"
        with contextlib.ExitStack() as stack:
            async with serving(path):
                sock = stack.enter_context(plain(path))
                octets = b"".join(
                    (
                        emit_packet(PacketType.EVENT_REGISTER, "item"),
                        emit_packet(REQUEST, "stream", {"n": "2"}),
                        emit_packet(PacketType.EVENT_REGISTER, "odd"),
                        emit_packet(REQUEST, "odd"),
                        emit_packet(PacketType.EVENT_UNREGISTER, "item"),
                        emit_packet(REQUEST, "stream", {"n": "2"}),
                        emit_packet(REQUEST, "echo", {"a": "b"}),
                    )
                )
                for begin in range(0, len(octets), size):
                    sock.send(octets[begin : begin + size])
                    await asyncio.sleep(0.001)
                heard = await hear(sock, 9)
        assert [one.type.name for one in heard] == [
            "EVENT_CONFIRM",
            *("EVENT", "EVENT", "CMD_RESPONSE"),
            "EVENT_UNKNOWN",
            "CMD_UNKNOWN",
            "EVENT_CONFIRM",
            *("CMD_RESPONSE", "CMD_RESPONSE"),
        ]
        assert heard[-1].message == {"a": b"b"}

    asyncio.run(main())


def test_what_is_sent_behind_a_command_is_bounded(tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "s"
        async with serving(path) as (server, commands):
            with plain(path) as sock:
                sock.send(emit_packet(REQUEST, "hold"))
                while not server._clients:
                    await asyncio.sleep(0.001)
                (client,) = server._clients
                echo = emit_packet(REQUEST, "echo", {"a": "b" * 1000})
                sending = asyncio.ensure_future(asyncio.get_running_loop().sock_sendall(sock, echo * 2000))
                async with asyncio.timeout(5):
                    while client._transport.is_reading():
                        await asyncio.sleep(0.001)
                await asyncio.sleep(0.05)
                assert not sending.done()
                assert len(client._unread) < 1 << 20
                commands.released.set()
                # one loop cannot wait for both with one socket
                with sock.dup() as reader:
                    heard = await hear(reader, 2001)
                await sending
                assert len(heard) == 2001

    asyncio.run(main())


def test_a_command_whose_work_was_cancelled_has_no_answer(tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "s"
        async with serving(path), await connect(str(path)) as session, await connect(str(path)) as other:
            with pytest.raises(HungUp):
                await asyncio.wait_for(session.request("lost"), 5)
            assert await other.request("echo") == {}

    asyncio.run(main())


def test_there_are_only_so_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vici_server, "CLIENTS_MAX", 2)

    async def main() -> None:
        path = tmp_path / "s"
        async with serving(path) as (server, _), await connect(str(path)) as one:
            async with await connect(str(path)) as two:
                assert await one.request("echo") == await two.request("echo") == {}
                async with await connect(str(path)) as three:
                    with pytest.raises(HungUp):
                        await three.request("echo")
            while len(server._clients) == 2:
                await asyncio.sleep(0.001)
            async with await connect(str(path)) as three:
                assert await three.request("echo") == {}

    asyncio.run(main())


def test_stop_leaves_nobody(tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "s"
        with contextlib.ExitStack() as stack:
            async with serving(path) as (server, commands):
                idle, busy = (stack.enter_context(plain(path)) for _ in range(2))
                busy.send(emit_packet(REQUEST, "wait") + emit_packet(REQUEST, "echo"))
                idle.send(emit_packet(PacketType.EVENT_REGISTER, "news"))
                await commands.running.wait()
                while not server.wanted("news"):
                    await asyncio.sleep(0.001)
            assert asyncio.all_tasks() == {asyncio.current_task()}
            assert not server.wanted("news")
            assert commands.undone == [True]
            assert await hear(busy, 1) == []
            assert [one.type for one in await hear(idle, 2)] == [PacketType.EVENT_CONFIRM]

    asyncio.run(main())


def test_by_tcp() -> None:
    async def main() -> None:
        commands = Commands()
        server = ViciServer(commands.table(), [])
        await server.start_tcp("127.0.0.1", 0)
        port = server._servers[0].sockets[0].getsockname()[1]
        async with await connect(f"tcp://127.0.0.1:{port}") as session:
            assert await session.request("echo", {"a": "b"}) == {"a": b"b"}
            waiting = asyncio.ensure_future(session.request("wait"))
            await commands.running.wait()
        await asyncio.wait_for(commands.cancelled.wait(), 5)
        await asyncio.wait([waiting])
        assert isinstance(waiting.exception(), HungUp)
        await server.stop()
        with pytest.raises(ViciError):
            await connect(f"tcp://127.0.0.1:{port}")

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
