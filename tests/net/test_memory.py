"""ipsec.net.memory: message borders, back-pressure, and wires that lose and reorder."""

from __future__ import annotations

import os
from collections.abc import Iterable

import pytest

from ipsec.net.memory import MemoryLink, MemoryTun


@pytest.mark.parametrize("vnet_hdr", [False, True])
def test_tun_keeps_packets_apart(vnet_hdr: bool) -> None:
    tun = MemoryTun(vnet_hdr=vnet_hdr)
    header = bytes(10) if vnet_hdr else b""
    assert tun.send(b"one")
    assert tun.send(b"two")
    assert os.read(tun.fd, 100) == header + b"one"
    assert os.read(tun.fd, 100) == header + b"two"
    with pytest.raises(BlockingIOError):
        os.read(tun.fd, 100)
    largest = os.urandom(65535)
    os.write(tun.fd, header + largest)
    os.write(tun.fd, header + b"x")
    assert tun.receive() == [largest, b"x"]
    assert tun.receive() == []
    tun.close()


def test_tun_header_goes_both_ways() -> None:
    tun = MemoryTun(vnet_hdr=True)
    tun.send(b"packet", b"0123456789")
    assert os.read(tun.fd, 100) == b"0123456789packet"
    os.write(tun.fd, b"9876543210packet")
    assert tun.frames() == [(b"9876543210", b"packet")]
    tun.close()


def test_a_full_tun_says_so() -> None:
    tun = MemoryTun()
    sent = 0
    while tun.send(bytes(60000)):
        sent += 1
        assert sent < 100_000
    assert sent > 2
    os.read(tun.fd, 65535)
    assert tun.send(bytes(1000))
    tun.close()


def test_a_plain_link_joins_its_ends() -> None:
    link = MemoryLink()
    link.send(0, b"from 0")
    assert os.read(link.fd(1), 100) == b"from 0"
    link.send(1, b"from 1")
    assert os.read(link.fd(0), 100) == b"from 1"
    assert link.carry() == 0
    link.close()


def test_a_hook_sees_and_changes_everything() -> None:
    seen: list[tuple[int, bytes]] = []

    def hook(side: int, message: bytes) -> Iterable[bytes]:
        seen.append((side, message))
        return {b"lose": [], b"twice": [message] * 2}.get(message, [message])

    link = MemoryLink(hook)
    for message in (b"lose", b"twice", b"once"):
        link.send(0, message)
    link.send(1, b"back")
    with pytest.raises(BlockingIOError):
        os.read(link.fd(1), 100)
    assert link.carry() == 4
    assert seen == [(0, b"lose"), (0, b"twice"), (0, b"once"), (1, b"back")]
    assert [os.read(link.fd(1), 100) for _ in range(3)] == [b"twice", b"twice", b"once"]
    assert os.read(link.fd(0), 100) == b"back"
    link.close()
