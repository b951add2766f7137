"""RADIUS over UDP on loopback: with a server of ours that does as it is told, and with freeradius."""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from random import Random
from typing import Any

import pytest
import uvloop

from ipsec.crypto.mschap import nt_password_hash
from ipsec.daemon import radius_client
from ipsec.daemon.radius_client import RadiusClient
from ipsec.ike.eap.md5 import Md5Peer
from ipsec.ike.eap.method import PeerMethod
from ipsec.ike.eap.mschapv2 import Mschapv2Peer
from ipsec.ike.eap.relay import EapAnswer
from ipsec.ike.events import EapAnswerNeeded, Failed
from ipsec.ike.radius.server import RadiusServer
from ipsec.net import udp
from ipsec.wire.eap import EapPacket, parse_eap_packet
from ipsec.wire.iana import EapCode, EapType
from tests.daemon.freeradius import USERS, freeradius, needs_freeradius
from tests.ike.radius_server import (
    ACCEPT,
    CALLER,
    IDENTITY,
    QUESTION,
    RECV,
    SECRET,
    SEND,
    STATE,
    SUCCESS,
    Request,
    accept,
    answer,
    challenge,
    read,
)
from tests.ike.test_eap import relayed
from tests.pair import Pair

PATIENCE_S = 20.0
PASSWORD = USERS["alice"].encode()
RESPONSE = b"\x02\x02\x00\x06\x04!"

Behaviour = Callable[[Request], Sequence[bytes]]


class Server(asyncio.DatagramProtocol):
    """Sends what its behaviour makes of each request."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.received: list[bytes] = []
        self.ports: set[int] = set()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, source: tuple[Any, ...]) -> None:
        self.received.append(data)
        self.ports.add(source[1])
        for octets in self.behaviour(read(data)):
            self.transport.sendto(octets, source)

    def config(self, **more: Any) -> RadiusServer:
        address, port = self.transport.get_extra_info("sockname")[:2]
        quick = {"retransmit_timeout": 0.05, "retransmit_base": 1.0}
        return RadiusServer(**{"name": f"at-{port}", "address": address, "secret": SECRET,
                               "auth_port": port, **quick, **more})  # fmt: skip


@asynccontextmanager
async def serving(behaviour: Behaviour, address: str = "127.0.0.1") -> AsyncIterator[Server]:
    loop = asyncio.get_running_loop()
    transport, server = await loop.create_datagram_endpoint(lambda: Server(behaviour), (address, 0))
    udp.set_buffers(transport.get_extra_info("socket"), 1 << 20)
    with closing(transport):
        yield server


def nobody(**more: Any) -> RadiusServer:
    """A server at a port that nobody listens to."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    return RadiusServer("nobody", "127.0.0.1", SECRET, port, **more)


async def ask(
    client: RadiusClient, packet: bytes = IDENTITY, ticket: int = 1, identity: bytes = b"alice"
) -> EapAnswer:
    found: asyncio.Future[EapAnswer] = asyncio.get_running_loop().create_future()
    client.ask(ticket, identity, packet, CALLER, found.set_result)
    assert not found.done()
    return await asyncio.wait_for(found, PATIENCE_S)


def run(work: Coroutine[Any, Any, None], new_loop: Callable[[], asyncio.AbstractEventLoop] | None = None) -> None:
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(work)


def honest(request: Request) -> Sequence[bytes]:
    return [accept(request) if request.all(STATE) else challenge(request)]


loops = pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
Loop = Callable[[], asyncio.AbstractEventLoop]


@loops
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_conversation(address: str, new_loop: Loop) -> None:
    async def work() -> None:
        async with serving(honest, address) as server:
            with closing(RadiusClient([server.config(name="one", retransmit_timeout=5.0)])) as client:
                first = await ask(client)
                assert (first.packet, first.accepted) == (QUESTION, None)
                last = await ask(client, RESPONSE)
                assert (last.packet, last.accepted, last.msk) == (SUCCESS, True, RECV + SEND + bytes(16))
                assert {name: n for name, n in client.counters["one"].items() if n} == {
                    "requests": 2, "challenges": 1, "accepts": 1,
                }  # fmt: skip

    run(work(), new_loop)


def test_what_is_lost_is_sent_again_as_it_was() -> None:
    seen: list[int] = []

    def deaf_twice(request: Request) -> Sequence[bytes]:
        seen.append(request.identifier)
        return [accept(request)] if len(seen) == 3 else []

    async def work() -> None:
        async with serving(deaf_twice) as server:
            with closing(RadiusClient([server.config()])) as client:
                assert (await ask(client)).accepted is True
                assert len(set(server.received)) == 1
                assert len(server.received) >= 3

    run(work())


@loops
def test_the_next_server_is_asked_where_one_is_silent_or_absent(new_loop: Loop) -> None:
    async def work() -> None:
        async with serving(lambda _: []) as silent, serving(honest) as good:
            quick = {"preference": 1, "retransmit_tries": 1}
            with closing(RadiusClient([good.config(), silent.config(name="silent", **quick)])) as client:
                assert (await ask(client)).packet == QUESTION
                assert (len(silent.received), client.counters["silent"]["timeouts"]) == (2, 1)
                assert (await ask(client, ticket=2)).packet == QUESTION
                assert len(silent.received) == 2
            absent = nobody(preference=1)
            with closing(RadiusClient([good.config(), absent])) as client:
                loop = asyncio.get_running_loop()
                begun = loop.time()
                assert (await ask(client)).packet == QUESTION
                # the network has said so, which is sooner than any timer
                assert loop.time() - begun < absent.retransmit_timeout
                assert client.counters["nobody"]["refused"] == 1

    run(work(), new_loop)


@loops
def test_a_server_that_is_absent_may_come(new_loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "ipsec")
    config = nobody(retransmit_timeout=0.1, retransmit_base=1.0, retransmit_tries=20)

    async def work() -> None:
        with closing(RadiusClient([config])) as client:
            found = asyncio.ensure_future(ask(client))
            await asyncio.sleep(0.3)
            loop = asyncio.get_running_loop()
            place = "127.0.0.1", config.auth_port
            transport, _ = await loop.create_datagram_endpoint(lambda: Server(honest), place)
            with closing(transport):
                assert (await found).packet == QUESTION
            assert client.counters["nobody"]["refused"] >= 1

    run(work(), new_loop)
    assert caplog.messages == []


def test_where_no_way_leads_it_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "ipsec")
    # broadcasting is not allowed to this socket
    config = RadiusServer("nowhere", "255.255.255.255", SECRET, 1812, 0, 1, 2, 0.05, 1.0)

    async def work() -> None:
        with closing(RadiusClient([config])) as client:
            assert (await ask(client)).reason == "no RADIUS server answers"

    run(work())
    assert len([line for line in caplog.messages if line.startswith("cannot send to RADIUS server nowhere")]) == 1
    assert SECRET.decode() not in caplog.text


def test_a_server_with_a_name_is_asked_where_it_is() -> None:
    async def work() -> None:
        async with serving(honest, "127.0.0.1") as old:
            port = old.config().auth_port
            loop = asyncio.get_running_loop()
            transport, new = await loop.create_datagram_endpoint(lambda: Server(honest), ("127.0.0.2", port))
            known: dict[str, list[Any]] = {}
            config = old.config(name="one", address="radius.example", retransmit_timeout=0.5)
            with closing(transport), closing(RadiusClient([config], lambda name: known.get(name, []))) as client:
                assert client.names == ["radius.example"]
                asked = asyncio.ensure_future(ask(client))
                await asyncio.sleep(0.05)
                known["radius.example"] = [ip_address("127.0.0.1")]
                assert (await asked).packet == QUESTION
                # what is not known at the moment is where it was
                known.clear()
                assert (await ask(client, ticket=2)).packet == QUESTION
                assert (len(old.received), len(new.received)) == (2, 0)
                known["radius.example"] = [ip_address("127.0.0.2")]
                assert (await ask(client, ticket=3)).packet == QUESTION
                assert (len(old.received), len(new.received)) == (2, 1)

    run(work())


def test_a_server_whose_name_nobody_knows_is_passed_over() -> None:
    async def work() -> None:
        async with serving(honest) as good:
            lost = good.config(name="lost", address="radius.example", preference=1, retransmit_timeout=5.0)
            with closing(RadiusClient([good.config(), lost])) as client:
                loop = asyncio.get_running_loop()
                begun = loop.time()
                assert (await ask(client)).packet == QUESTION
                assert loop.time() - begun < 5.0

    run(work())


def test_hostile_answers_before_the_right_one() -> None:
    rng = Random(3)

    def hostile(request: Request) -> Sequence[bytes]:
        wrong = [
            answer(ACCEPT, request, mac=False),
            answer(ACCEPT, request, secret=b"another"),
            answer(ACCEPT, request, (33, b"proxy")),
            accept(request)[:-1],
            bytes((2, request.identifier, 0, 22)) + bytes(16) + b"\x4f\x00",
            *(rng.randbytes(rng.randrange(1, 100)) for _ in range(100)),
        ]
        return [*wrong, challenge(request), *wrong]

    async def work() -> None:
        async with serving(hostile) as server:
            with closing(RadiusClient([server.config(name="one", retransmit_timeout=5.0)])) as client:
                assert (await ask(client)).packet == QUESTION
                counted = client.counters["one"]
                while sum(counted[one] for one in ("malformed", "unauthentic", "unexpected")) < 210:
                    await asyncio.sleep(0.01)
                assert (counted["retransmissions"], counted["requests"]) == (0, 1)
                assert counted["unauthentic"] >= 2

    run(work())


def test_others_cannot_answer_for_a_server() -> None:
    async def work() -> None:
        async with serving(lambda _: []) as server, serving(lambda _: []) as other:
            with closing(RadiusClient([server.config(name="one", retransmit_timeout=5.0)])) as client:
                asked = asyncio.ensure_future(ask(client))
                while not server.received:
                    await asyncio.sleep(0.01)
                request = read(server.received[0])
                (port,) = server.ports
                other.transport.sendto(accept(request), ("127.0.0.1", port))
                await asyncio.sleep(0.1)
                assert not asked.done()
                server.transport.sendto(accept(request), ("127.0.0.1", port))
                assert (await asked).accepted is True
                assert client.counters["one"]["unexpected"] == 0

    run(work())


def test_600_at_once_through_two_sockets() -> None:
    async def work() -> None:
        async with serving(honest) as server:
            with closing(RadiusClient([server.config(name="one", sockets=2, retransmit_timeout=2.0)])) as client:
                found = await asyncio.gather(*(ask(client, ticket=number) for number in range(600)))
                assert {one.packet for one in found} == {QUESTION}
                assert len(server.ports) == 2
                assert client.counters["one"]["challenges"] == 600

    run(work())


def test_nothing_is_called_after_forget_or_close() -> None:
    called: list[EapAnswer] = []

    async def work() -> None:
        async with serving(honest) as server:
            client = RadiusClient([server.config()])
            client.ask(1, b"alice", IDENTITY, CALLER, called.append)
            client.forget(1)
            client.forget(2)
            client.ask(3, b"alice", IDENTITY, CALLER, called.append)
            client.close()
            await asyncio.sleep(0.2)
            client.close()
            assert len(server.received) == 2

    run(work())
    assert called == []


@pytest.mark.parametrize("answered", [False, True])
def test_who_waits_no_more_is_not_kept(answered: bool) -> None:
    """Peers that come and go cost nothing when they are gone."""

    class Done:
        def __call__(self, answer: EapAnswer) -> None:
            heard.set()

    heard = asyncio.Event()

    async def work() -> None:
        async with serving(honest if answered else lambda _: []) as server:
            with closing(RadiusClient([server.config()])) as client:
                waits = Done()
                gone = weakref.ref(waits)
                client.ask(1, b"alice", IDENTITY, CALLER, waits)
                if answered:
                    await asyncio.wait_for(heard.wait(), PATIENCE_S)
                else:
                    client.forget(1)
                del waits
                assert gone() is None

    run(work())


@pytest.mark.parametrize(("error", "tries"), [(ConnectionRefusedError, 2), (BlockingIOError, 1)])
def test_an_error_that_is_not_about_what_is_sent(
    monkeypatch: pytest.MonkeyPatch, error: type[OSError], tries: int
) -> None:
    """The first is about what went before, and the second passes: no other server is asked for that."""
    sent: list[int] = []

    class Once(socket.socket):
        def send(self, data: Any, *flags: Any) -> int:
            sent.append(len(data))
            if len(sent) == 1:
                raise error
            return super().send(data, *flags)

    async def work() -> None:
        async with serving(honest) as server:
            quick = server.config(name="one", retransmit_timeout=0.3)
            with closing(RadiusClient([quick, nobody()])) as client:
                monkeypatch.setattr(radius_client.socket, "socket", Once)
                asked = asyncio.ensure_future(ask(client))
                await asyncio.sleep(0)
                assert len(sent) == tries
                assert (await asked).packet == QUESTION
                assert client.counters["one"]["refused"] == 0
                assert client.counters["nobody"]["requests"] == 0

    run(work())


def test_who_fails_with_an_answer_does_not_keep_others_from_theirs(caplog: pytest.LogCaptureFixture) -> None:
    def fail(_: EapAnswer) -> None:
        raise KeyError("x")

    async def work() -> None:
        with closing(RadiusClient([])) as client:
            client.ask(1, b"alice", IDENTITY, CALLER, fail)
            assert (await ask(client, ticket=2)).reason == "there is no RADIUS server"

    run(work())
    assert caplog.messages == ["this is a bug"]


# -- freeradius


class Peer:
    """The other side of EAP, with one method."""

    def __init__(self, identity: bytes, method: PeerMethod) -> None:
        self.identity = identity
        self.method = method
        self.naks = 0

    def first(self) -> bytes:
        return EapPacket(EapCode.RESPONSE, 7, EapType.IDENTITY, self.identity).emit()

    def respond(self, octets: bytes) -> bytes:
        request = parse_eap_packet(octets)
        assert request.code == EapCode.REQUEST
        if request.type != self.method.type:
            self.naks += 1
            return EapPacket(EapCode.RESPONSE, request.identifier, EapType.NAK, bytes((self.method.type,))).emit()
        data = self.method.respond(request.identifier, request.data)
        return EapPacket(EapCode.RESPONSE, request.identifier, self.method.type, data).emit()


async def authenticate(client: RadiusClient, peer: Peer) -> EapAnswer:
    packet = peer.first()
    while True:
        found = await ask(client, packet, identity=peer.identity)
        if found.accepted is not None:
            return found
        assert found.packet is not None
        packet = peer.respond(found.packet)


@needs_freeradius
def test_freeradius_agrees_about_the_key_of_mschapv2(tmp_path: Path) -> None:
    # it begins with another method, which the peer does not want
    with freeradius(tmp_path, "md5") as server:

        async def work() -> None:
            with closing(RadiusClient([server])) as client:
                method = Mschapv2Peer(b"alice", nt_password_hash(PASSWORD), secrets.token_bytes)
                peer = Peer(b"alice", method)
                found = await authenticate(client, peer)
                assert (found.accepted, found.reason, peer.naks) == (True, "", 1)
                assert found.packet is not None
                assert parse_eap_packet(found.packet).code == EapCode.SUCCESS
                assert method.finished
                assert found.msk == method.msk
                granted = found.granted
                assert (granted.framed, granted.session_timeout) == ((ip_address("10.3.0.9"),), 3600)
                assert (granted.filter_ids, granted.classes) == ((b"staff",), (b"first",))
                wrong = Peer(b"alice", Mschapv2Peer(b"alice", nt_password_hash(b"wrong"), secrets.token_bytes))
                assert (await authenticate(client, wrong)).accepted is False
                counted = client.counters["freeradius"]
                assert (counted["retransmissions"], counted["unauthentic"]) == (0, 0)

        run(work())


async def relay(pair: Pair, client: RadiusClient) -> None:
    """Hand on whatever sun's engine has to ask, until there is nothing more."""
    sun, handled = pair.b, 0
    while True:
        pair.world.run(1)
        events = sun.events(EapAnswerNeeded)[handled:]
        if not events:
            return
        for event in events:
            found = await ask(client, event.packet, event.sa.uid, event.identity)
            sun.do(sun.engine.eap_answered, event.sa.uid, found)
        handled += len(events)


@needs_freeradius
def test_an_ike_sa_is_up_with_freeradius_and_not_without_the_password(tmp_path: Path) -> None:
    with freeradius(tmp_path, "mschapv2") as server:

        async def work() -> None:
            with closing(RadiusClient([server])) as client:
                pair = relayed(USERS["carol"].encode())
                pair.a.initiate()
                await relay(pair, client)
                # AUTH is made with the MSK at both ends
                pair.agree()
                pair.finish()
                pair = relayed(b"wrong")
                pair.a.initiate()
                await relay(pair, client)
                assert not pair.a.engine.sas
                assert "rejects the peer" in pair.b.events(Failed)[0].problem.failure.reason

        run(work())


@needs_freeradius
def test_freeradius_and_md5_which_makes_no_key(tmp_path: Path) -> None:
    with freeradius(tmp_path, "md5") as server:

        async def work() -> None:
            with closing(RadiusClient([server])) as client:
                found = await authenticate(client, Peer(b"alice", Md5Peer(PASSWORD)))
                assert (found.accepted, found.msk, found.granted.user_name) == (True, None, b"alice")
                found = await authenticate(client, Peer(b"alice", Md5Peer(b"wrong")))
                assert (found.accepted, found.msk) == (False, None)
                assert found.packet is not None
                assert parse_eap_packet(found.packet).code == EapCode.FAILURE
                found = await authenticate(client, Peer(b"bob", Md5Peer(PASSWORD)))
                assert found.accepted is False

        run(work())


@needs_freeradius
def test_freeradius_with_another_secret_says_nothing(tmp_path: Path) -> None:
    with freeradius(tmp_path, "md5") as server:

        async def work() -> None:
            other = replace(server, secret=b"another", retransmit_tries=1, retransmit_timeout=0.1)
            with closing(RadiusClient([other])) as client:
                assert (await ask(client)).reason == "no RADIUS server answers"

        run(work())
        assert "Message-Authenticator" in (tmp_path / "output").read_text()
