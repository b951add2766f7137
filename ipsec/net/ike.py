"""UDP sockets for IKE, and IKE datagrams through the sockets of ESP (RFC 7296 sections 2 and 3.1, RFC 3948).

No event loop here: whoever owns one waits for ``fileno`` and calls ``receive``. DF is not set, since an IKE message may
be longer than the path takes and IP then has to fragment it (RFC 7296 section 2).
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, NamedTuple

from ipsec.errors import BackendError
from ipsec.net import udp

IpAddress = IPv4Address | IPv6Address

#: RFC 3948 section 2.2
NON_ESP_MARKER = bytes(4)
#: RFC 3948 section 2.3
KEEPALIVE = b"\xff"
#: Octets of IKE that no path is too narrow for: no IPv6 link carries less than 1280 (RFC 8200 section 5).
FITS_EVERY_PATH = 1280 - 40 - 8 - len(NON_ESP_MARKER)
#: A flood fills this, and then costs the kernel alone. Some 2000 handshake messages with what the kernel adds.
BUFFER_BYTES = 2 << 20

# linux/in.h, linux/in6.h: what the socket module has no names for
_IP_PKTINFO = 8
_IP_MTU_DISCOVER = 10
_IPV6_MTU_DISCOVER = 23
_IPV6_RECVPKTINFO = 49
_IPV6_PKTINFO = 50
_PMTUDISC_DONT = 0

#: struct in_pktinfo: interface, address to send from, address it was sent to
_PKTINFO4 = struct.Struct("=I4s4s")
#: struct in6_pktinfo: address, interface
_PKTINFO6 = struct.Struct("=16sI")
_INT = struct.Struct("=i")
_CONTROL = socket.CMSG_SPACE(_PKTINFO6.size)

ControlData = list[tuple[int, int, bytes]]


class Received(NamedTuple):
    """One datagram and its way."""

    data: bytes
    source: IpAddress
    port: int
    local: IpAddress


def open_ike(address: IpAddress, port: int, *, fwmark: int = 0, ready: socket.socket | None = None) -> socket.socket:
    """A socket for IKE on ``address``, which may be the unspecified one; port 0 picks a free one. BackendError.

    ``ready`` is one that is bound already, to be used instead.
    """
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        sock = ready or socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            if address.version == 4:
                sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_DONT)
                sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
            else:
                if ready is None:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_DONT)
                sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 1)
            if fwmark:
                udp.set_mark(sock, fwmark)
            udp.set_buffers(sock, BUFFER_BYTES)
            if ready is None:
                sock.bind((str(address), port))
        except OSError:
            sock.close()
            raise
    except OSError as error:
        raise udp.explain(f"UDP {address} port {port} for IKE", error, setting="ipsecd.port") from error
    return sock


def receive(sock: socket.socket, bound: IpAddress, limit: int) -> list[Received]:
    """What waits at an IKE socket, at most ``limit`` datagrams. ``bound`` is its address. Never blocks or raises."""
    found: list[Received] = []
    for _ in range(limit):
        try:
            data, control, _, source = sock.recvmsg(65535, _CONTROL)
        except OSError:
            # EAGAIN: nothing more. Anything else says something about an earlier datagram, nothing authenticated.
            break
        if data:
            found.append(Received(data, to_address(source[0]), source[1], _sent_to(control) or bound))
    return found


def send(
    sock: socket.socket,
    parts: Sequence[bytes],
    local: IpAddress | None,
    remote: IpAddress,
    remote_port: int,
    *,
    dscp: int = 0,
) -> None:
    """Send one datagram, from ``local`` if that is an address. OSError if the kernel does not take it; never blocks."""
    control: ControlData = _sent_from(local) if local is not None and not local.is_unspecified else []
    if dscp:
        control = [*control, _marked(remote.version, dscp)]
    sock.sendmsg(parts, control, socket.MSG_DONTWAIT, (str(remote), remote_port))


def send_fragmentable(
    sock: socket.socket,
    parts: Sequence[bytes],
    local: IpAddress | None,
    remote: IpAddress,
    remote_port: int,
    *,
    dscp: int = 0,
) -> None:
    """Like ``send``, but without DF, through a socket that is used with it otherwise. Leaves DF off.

    What others send through it meanwhile goes without DF too. They have to set it again.
    """
    if sock.family == socket.AF_INET:
        level, option = socket.IPPROTO_IP, _IP_MTU_DISCOVER
    else:
        level, option = socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER
    sock.setsockopt(level, option, _PMTUDISC_DONT)
    send(sock, parts, local, remote, remote_port, dscp=dscp)


@lru_cache(maxsize=4096)
def to_address(text: str) -> IpAddress:
    """An address of the socket module as a value, the scope of link-local ones included."""
    return ip_address(text)


@lru_cache(maxsize=256)
def _local(packed: bytes) -> IpAddress:
    return ip_address(packed)


@lru_cache(maxsize=256)
def _sent_from(local: IpAddress) -> ControlData:
    if isinstance(local, IPv4Address):
        return [(socket.IPPROTO_IP, _IP_PKTINFO, _PKTINFO4.pack(0, local.packed, bytes(4)))]
    return [(socket.IPPROTO_IPV6, _IPV6_PKTINFO, _PKTINFO6.pack(local.packed, 0))]


def _marked(version: int, dscp: int) -> tuple[int, int, bytes]:
    """The upper six bits of TOS or traffic class (RFC 2474); the kernel keeps the ECN bits."""
    if version == 4:
        return socket.IPPROTO_IP, socket.IP_TOS, _INT.pack(dscp << 2)
    return socket.IPPROTO_IPV6, socket.IPV6_TCLASS, _INT.pack(dscp << 2)


def _sent_to(control: list[Any]) -> IpAddress | None:
    for level, kind, value in control:
        if (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO):
            return _local(_PKTINFO4.unpack(value)[2])
        if (level, kind) == (socket.IPPROTO_IPV6, _IPV6_PKTINFO):
            return _local(_PKTINFO6.unpack(value)[0])
    return None


def bound_to(sock: socket.socket) -> tuple[IpAddress, int]:
    """Address and port that a UDP socket is bound to. BackendError if it is none."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        raise BackendError("the socket has no IP address")
    name = sock.getsockname()
    return to_address(name[0]), name[1]
