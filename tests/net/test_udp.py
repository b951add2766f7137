"""ipsec.net.udp on loopback: steering, options, probes and what errors say."""

from __future__ import annotations

import os
import select
import socket
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest

from ipsec.daemon.reach import source_address
from ipsec.errors import BackendError
from ipsec.net import udp
from ipsec.net.ike import open_ike
from tests.net.conftest import has_ipv6

LOOPBACK = [ip_address("127.0.0.1"), ip_address("::1")]


def receive(sock: socket.socket) -> bytes | None:
    """What is queued, None if nothing comes for a moment."""
    return sock.recv(65535) if select.select([sock], [], [], 0.05)[0] else None


@pytest.mark.parametrize("workers", [2, 3, 4, 7])
def test_steering_by_spi(address: IPv4Address | IPv6Address, workers: int) -> None:
    group = udp.open_udp(address, 0, workers=workers, gro=False)
    with socket.socket(group[0].family, socket.SOCK_DGRAM) as sender:
        where = group[0].getsockname()[:2]
        for spi in (0, 1, 256, 257, 258, 259, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF):
            data = spi.to_bytes(4, "big") + b"data"
            sender.sendto(data, where)
            assert select.select(group, [], [], 1)[0] == [group[spi % workers]]
            assert group[spi % workers].recv(100) == data
        # keepalives (RFC 3948 section 2.3) and other things too short to have an SPI
        for data in (b"\xff", b"", b"abc"):
            sender.sendto(data, where)
            assert select.select(group, [], [], 1)[0] == [group[0]]
            assert group[0].recv(100) == data
    for sock in group:
        sock.close()


def test_options(address: IPv4Address | IPv6Address) -> None:
    (sock,) = udp.open_udp(address, 0)
    level, discover, tos = (socket.IPPROTO_IP, 10, 13) if address.version == 4 else (socket.IPPROTO_IPV6, 23, 66)
    assert sock.getsockopt(level, discover) == 2
    assert sock.getsockopt(level, tos) == 1
    # UDP_ENCAP would hand the packets to the kernel's own IPsec
    assert sock.getsockopt(udp.SOL_UDP, 100) == 0
    assert not sock.getblocking()
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) >= 212992
    sock.close()


def test_wildcards_of_both_families_share_a_port() -> None:
    if not has_ipv6():
        pytest.skip("this host has no IPv6")
    (four,) = udp.open_udp(IPv4Address("0.0.0.0"), 0)
    port = four.getsockname()[1]
    (six,) = udp.open_udp(IPv6Address("::"), port)
    assert six.getsockname()[1] == port
    # packet information tells which address a peer wrote to
    assert four.getsockopt(socket.IPPROTO_IP, 8) == 1
    assert six.getsockopt(socket.IPPROTO_IPV6, 49) == 1
    four.close()
    six.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_port_in_use_is_refused(workers: int) -> None:
    loopback = IPv4Address("127.0.0.1")
    first = udp.open_udp(loopback, 0, workers=workers)
    port = first[0].getsockname()[1]
    with pytest.raises(BackendError, match=f"port {port}: Address already in use; stop the other"):
        udp.open_udp(loopback, port, workers=workers)
    for sock in first:
        sock.close()


def test_a_foreign_address_is_refused() -> None:
    with pytest.raises(BackendError, match="listen on an address of this host"):
        udp.open_udp(IPv4Address("192.0.2.77"), 0)


def test_gso_probe_notices_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    real = udp._loop_train

    def damaged(size: int, count: int, tail: int, *, gro: bool) -> tuple[list[bytes], list[int]]:
        got, sizes = real(size, count, tail, gro=gro)
        got[-1] = got[-1][:-1] + bytes([got[-1][-1] ^ 1])
        return got, sizes

    monkeypatch.setattr(udp, "_loop_train", damaged)
    assert not udp.probe_gso().on
    assert not udp.probe_gro().on
    assert "damaged" in str(udp.probe_gso())


def test_probe_says_when_the_kernel_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **rest: object) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(udp, "_loop_train", refuse)
    assert str(udp.probe_gso()) == "udp_gso off: a test train failed: Invalid argument"


def test_probes_agree_with_a_train_by_hand() -> None:
    """Where the probe says on, a train of 30 really arrives as one or whole."""
    if not udp.probe_gso().on:
        pytest.skip("this kernel has no UDP GSO")
    (receiver,) = udp.open_udp(IPv4Address("127.0.0.1"), 0, gro=udp.probe_gro().on)
    (sender,) = udp.open_udp(IPv4Address("127.0.0.1"), 0)
    data = os.urandom(30 * 1000)
    segment = [(udp.SOL_UDP, udp.UDP_SEGMENT, (1000).to_bytes(2, "little"))]
    sender.sendmsg([data], segment, 0, receiver.getsockname())
    got = b""
    while len(got) < len(data) and (more := receive(receiver)) is not None:
        got += more
    assert got == data
    receiver.close()
    sender.close()


@pytest.mark.e2e
@pytest.mark.usefixtures("own_network")
@pytest.mark.parametrize("where", LOOPBACK, ids=["v4", "v6"])
def test_raw_esp_goes_to_one_worker(where: IPv4Address | IPv6Address) -> None:
    group = udp.open_raw_esp(where, workers=3)
    with socket.socket(group[0].family, socket.SOCK_RAW, udp.ESP_PROTOCOL) as sender:
        for spi in (256, 257, 258, 0xFFFFFFFF):
            data = spi.to_bytes(4, "big") + b"data"
            sender.sendto(data, (str(where), 0))
            assert select.select(group, [], [], 1)[0] == [group[spi % 3]]
            got = group[spi % 3].recv(100)
            assert (got[20:] if where.version == 4 else got) == data
    for sock in group:
        sock.close()


@pytest.mark.e2e
@pytest.mark.parametrize("version", [4, 6])
def test_bypass_sends_whole_packets(version: int) -> None:
    sock = udp.open_bypass(version, fwmark=0x42)
    assert sock.getsockopt(socket.SOL_SOCKET, 36) == 0x42
    sock.close()


@pytest.mark.e2e
def test_every_mark_can_be_set() -> None:
    largest = 0xFFFFFFFF
    here = ip_address("127.0.0.1")
    socks = [udp.open_bypass(4, fwmark=largest), open_ike(here, 0, fwmark=largest)]
    socks += udp.open_udp(here, 0, fwmark=largest)
    for sock in socks:
        assert sock.getsockopt(socket.SOL_SOCKET, 36) & 0xFFFFFFFF == largest
        sock.close()
    assert source_address(here, largest) == here


def test_bypass_without_a_mark_is_refused() -> None:
    with pytest.raises(BackendError, match=r"ipsecd\.fwmark"):
        udp.open_bypass(4, fwmark=0)
