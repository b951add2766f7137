"""Peers known by a name, after a kill: what was protected stays in until the name is known, and a stop ends it."""

from __future__ import annotations

import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from signal import SIGKILL
from typing import Any

import pytest

from ipsec.net import netns
from ipsec.net.marks import default_mark
from tests.e2e.gateways import COMMAND, OUTER, WIRE, Gateway, eventually
from tests.e2e.ike_gateways import IkeWorld, Sniffer, loss, sniffing, ups

pytestmark = pytest.mark.e2e

#: not the peer's address, which is what is closed
SERVER = "192.0.2.53"
PEER = "b.example.org"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[IkeWorld]:
    """A tunnel from host to host, whose other end has a name; not started yet."""
    with IkeWorld(tmp_path) as world:
        world.set("ipsecd.addresses", None)
        world.set(":local_ts", "dynamic")
        world.set(":remote_ts", "dynamic")
        world.set(":start_action", "start", 0)
        world.set("@remote_addrs", PEER, 0)
        world.write()
        world.b.run("ip", "address", "add", f"{SERVER}/24", "dev", WIRE)
        yield world


class NameServer:
    """Keeps all questions until it ``answers``."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._lock = threading.Lock()
        self._waiting: list[tuple[bytes, Any]] = []
        self._answers = False
        self.asked = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def answers(self) -> None:
        self._answers = True
        self._answer()

    def _answer(self) -> None:
        with self._lock:
            while self._answers and self._waiting:
                question, asker = self._waiting.pop()
                self._socket.sendto(answer(question), asker)

    def _run(self) -> None:
        while True:
            question, asker = self._socket.recvfrom(512)
            if not question:
                return
            self.asked = True
            with self._lock:
                self._waiting.append((question, asker))
            self._answer()

    def close(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"", self._socket.getsockname())
        self._thread.join()


def answer(question: bytes) -> bytes:
    """RFC 1035: the peer's address, and no other records."""
    end = question.index(0, 12) + 5
    # QTYPE
    known = question[end - 4 : end - 2] == b"\0\1"
    record = b"\xc0\x0c\0\1\0\1\0\0\0\0\0\4" + ip_address(OUTER[4][1]).packed
    return question[:2] + b"\x81\x80\0\1" + bytes((0, known)) + bytes(4) + question[12:end] + (record if known else b"")


@contextmanager
def name_server(world: IkeWorld) -> Iterator[NameServer]:
    with netns.inside(world.b.namespace):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sock:
        # beside the tunnel, which the other end does not give up
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, default_mark(220))
        sock.bind((SERVER, 53))
        server = NameServer(sock)
        try:
            yield server
        finally:
            with netns.inside(world.b.namespace):
                server.close()


def launch(gateway: Gateway, directory: Path) -> None:
    """Start a daemon that asks that name server, and wait until it is ready."""
    resolver = directory / "resolv.conf"
    resolver.write_text(f"nameserver {SERVER}\noptions timeout:30 attempts:1\n")
    # "ip netns exec" has mounts of its own
    instead = ["sh", "-c", 'mount --bind "$0" /etc/resolv.conf && exec "$@"', str(resolver)]
    command = ["ip", "netns", "exec", gateway.namespace, *instead, *COMMAND, "--config", str(gateway.config)]
    with gateway.log_file.open("wb") as log:
        gateway.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    assert eventually(lambda: "ready" in gateway.log(), 30), gateway.log()


def kill(world: IkeWorld, directory: Path) -> None:
    """Bring the tunnel up and kill one end; the name server is to have answered."""
    world.b.start()
    launch(world.a, directory)
    world.wait_up()
    world.a.stop(SIGKILL)
    assert f"unreachable {OUTER[4][1]}" in world.a.leftovers()


def echoes(sniffer: Sniffer) -> list[bytes]:
    return [packet for packet in sniffer.packets() if packet[0] >> 4 == 4 and packet[9] == socket.IPPROTO_ICMP]


def test_what_was_protected_stays_in_until_the_name_is_known(world: IkeWorld, tmp_path: Path) -> None:
    with name_server(world) as first:
        first.answers()
        kill(world, tmp_path)
    with name_server(world) as server, sniffing(world.a) as sniffer:
        launch(world.a, tmp_path)
        assert server.asked
        world.a.ping(OUTER[4][1], check=False)
        assert not echoes(sniffer)
        assert "until it is known where the peers of site are" in world.a.log()
        server.answers()
        assert eventually(lambda: ups(world.a) == 1, 30), world.logs()
        assert loss(world.a.ping(OUTER[4][1])) == 0, world.logs()
        assert not echoes(sniffer)
    world.a.stop()
    assert world.a.leftovers() == ""


def test_a_stop_opens_what_a_name_has_kept_closed(world: IkeWorld, tmp_path: Path) -> None:
    with name_server(world) as first:
        first.answers()
        kill(world, tmp_path)
    launch(world.a, tmp_path)
    assert f"unreachable {OUTER[4][1]}" in world.a.leftovers()
    status, _ = world.a.stop()
    assert status == 0, world.a.log()
    assert world.a.leftovers() == ""
    # the other end knows nothing of that, and would answer through the tunnel
    with sniffing(world.a) as sniffer:
        world.a.ping(OUTER[4][1], check=False)
        assert echoes(sniffer)
