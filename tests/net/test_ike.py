"""ipsec.net.ike on loopback: addresses both ways, DF, and what errors say."""

from __future__ import annotations

import select
import socket
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest

from ipsec.errors import BackendError
from ipsec.net import ike, udp

LOOPBACK = ip_address("127.0.0.1")


def wildcard(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    return type(address)(0)


def receive(sock: socket.socket, bound: IPv4Address | IPv6Address) -> list[ike.Received]:
    assert select.select([sock], [], [], 1)[0]
    return ike.receive(sock, bound, 64)


def test_a_wildcard_socket_knows_both_ends(address: IPv4Address | IPv6Address) -> None:
    with ike.open_ike(wildcard(address), 0) as server, ike.open_ike(address, 0) as client:
        bound, port = ike.bound_to(server)
        assert bound.is_unspecified
        ike.send(client, [b"one", b" two"], None, address, port)
        ((data, source, source_port, local),) = receive(server, bound)
        assert (data, source, (address, source_port), local) == (b"one two", address, ike.bound_to(client), address)
        ike.send(server, [b"answer"], local, source, source_port)
        assert receive(client, address) == [ike.Received(b"answer", address, port, address)]


def test_an_answer_leaves_from_the_address_that_was_asked() -> None:
    """All of 127/8 is ours: the kernel alone would answer 127.0.0.1 from 127.0.0.1."""
    asked = ip_address("127.9.8.7")
    with ike.open_ike(IPv4Address(0), 0) as server, ike.open_ike(LOOPBACK, 0) as client:
        port = ike.bound_to(server)[1]
        ike.send(client, [b"hello"], None, asked, port)
        (got,) = receive(server, IPv4Address(0))
        assert got.local == asked
        ike.send(server, [b"answer"], got.local, got.source, got.port)
        assert receive(client, LOOPBACK)[0].source == asked
        with pytest.raises(OSError, match=r"\[Errno"):
            ike.send(server, [b"x"], ip_address("192.0.2.77"), got.source, got.port)


def test_reads_no_more_than_asked_and_skips_what_is_empty(address: IPv4Address | IPv6Address) -> None:
    with ike.open_ike(address, 0) as server, ike.open_ike(address, 0) as client:
        port = ike.bound_to(server)[1]
        assert ike.receive(server, address, 64) == []
        for data in (b"", b"1", b"2", b"3"):
            ike.send(client, [data], None, address, port)
        assert [got.data for got in ike.receive(server, address, 3)] == [b"1", b"2"]
        assert [got.data for got in ike.receive(server, address, 3)] == [b"3"]


def test_df(address: IPv4Address | IPv6Address) -> None:
    level, option = (socket.IPPROTO_IP, 10) if address.version == 4 else (socket.IPPROTO_IPV6, 23)
    with ike.open_ike(address, 0) as sock:
        assert sock.getsockopt(level, option) == 0
    (shared,) = udp.open_udp(address, 0)
    with shared, ike.open_ike(address, 0) as peer:
        assert shared.getsockopt(level, option) == 2
        port = ike.bound_to(peer)[1]
        ike.send_fragmentable(shared, [ike.NON_ESP_MARKER, bytes(40000)], address, address, port)
        assert len(receive(peer, address)[0].data) == 40004
        assert shared.getsockopt(level, option) == 0


def test_a_port_in_use_is_explained(address: IPv4Address | IPv6Address) -> None:
    with ike.open_ike(address, 0) as sock:
        port = ike.bound_to(sock)[1]
        with pytest.raises(BackendError, match=f"port {port} for IKE") as caught:
            ike.open_ike(address, port)
        assert "ipsecd.port)" in (caught.value.remedy or "")


def test_only_ip_sockets_have_an_address() -> None:
    left, right = socket.socketpair()
    with left, right, pytest.raises(BackendError):
        ike.bound_to(left)


def test_dscp(address: IPv4Address | IPv6Address) -> None:
    """One datagram bears it, the next one through the same socket does not (RFC 2474)."""
    ip_recvtos = 13
    level, receive, option = (
        (socket.IPPROTO_IP, ip_recvtos, socket.IP_TOS)
        if address.version == 4
        else (socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, socket.IPV6_TCLASS)
    )
    with ike.open_ike(address, 0) as a, ike.open_ike(address, 0) as b:
        b.setsockopt(level, receive, 1)
        b.settimeout(5)
        seen = []
        for dscp in (46, 0):
            ike.send(a, (b"x",), address, address, ike.bound_to(b)[1], dscp=dscp)
            _, control, _, _ = b.recvmsg(100, 1000)
            seen += [value[0] for at, kind, value in control if (at, kind) == (level, option)]
        assert seen == [46 << 2, 0]
