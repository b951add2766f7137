"""The sockets of the outside: UDP for ESP and IKE on one port (RFC 3948), raw IP protocol 50, and bypass.

Nothing here reads or writes packets, except the two start-up probes. UDP_ENCAP is never set: with it the kernel
re-segments trains, or hands them to XFRM, and a plain socket with UDP_GRO coalesces ESP in UDP very well.
IP_RECVERR stays off: an unconnected socket then reports no ICMP error at all, so a forged one can neither wake us up
nor make the next send fail; the path MTU that a real one taught the kernel comes back as EMSGSIZE. The pump may open
a second, connected one for a peer (``ipsec/fast/peer.pxd``): what that refuses goes through the one from here.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from ipsec.errors import BackendError
from ipsec.net import bpf, grants

IpAddress = IPv4Address | IPv6Address

ESP_PROTOCOL = 50

# linux/udp.h, linux/in.h, linux/in6.h, asm-generic/socket.h: what the socket module has no names for
SOL_UDP = 17
UDP_SEGMENT = 103
UDP_GRO = 104
_IP_PKTINFO = 8
_IP_MTU_DISCOVER = 10
_IP_RECVTOS = 13
_IPV6_MTU_DISCOVER = 23
_IPV6_RECVPKTINFO = 49
_IPV6_RECVTCLASS = 66
_PMTUDISC_DO = 2
_SO_SNDBUFFORCE = 32
_SO_RCVBUFFORCE = 33
_SO_MARK = 36

#: what a GRO train of 64 KiB costs is charged against the buffer with its overhead: the usual 208 KiB hold three
BUFFER_BYTES = 16 << 20


@dataclass(frozen=True)
class Verdict:
    """What a start-up probe found."""

    name: str
    on: bool
    reason: str
    "why, for the log"

    def __str__(self) -> str:
        return f"{self.name} {'on' if self.on else 'off'}: {self.reason}"


def open_udp(
    address: IpAddress,
    port: int,
    *,
    workers: int = 1,
    gro: bool = True,
    fwmark: int = 0,
    ready: Sequence[socket.socket] = (),
) -> list[socket.socket]:
    """One socket per worker, all bound to ``address`` and ``port``; index ``SPI % workers`` gets the packets of an SPI.

    IKE (SPI 0, RFC 3948 section 2.2) and keepalives go to index 0. Port 0 picks a free one for all of them. ``ready``
    are sockets that are bound already, to be used instead: one for each worker.
    """
    if ready and len(ready) != workers:
        raise BackendError(
            f"{len(ready)} sockets were handed down for UDP port {port}, {workers} workers were asked for",
            remedy="hand down one for each, with SO_REUSEPORT if there are several, or change ipsecd.workers",
        )
    group: list[socket.socket] = []
    try:
        if workers > 1 and not ready:
            # With SO_REUSEPORT a second daemon of the same user would silently share the port; an exclusive bind tells.
            with _udp_socket(address) as exclusive:
                exclusive.bind((str(address), port))
                port = exclusive.getsockname()[1]
        for index in range(workers):
            sock = ready[index] if ready else _udp_socket(address)
            group.append(sock)
            if workers > 1:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            _set_common(sock, address, fwmark)
            if not ready:
                sock.bind((str(address), port))
            if gro:
                set_gro(sock, True)
        if workers > 1:
            attach_steering(group[0], workers)
    except OSError as error:
        for sock in group:
            sock.close()
        raise explain(f"UDP {address} port {port}", error) from error
    return group


def open_raw_esp(address: IpAddress, *, workers: int = 1, fwmark: int = 0) -> list[socket.socket]:
    """One raw socket for IP protocol 50 per worker. Needs CAP_NET_RAW. Received IPv4 packets start with the IP header.

    Every raw socket gets a copy of every packet, so a filter leaves worker i those with ``SPI % workers == i``.
    """
    group: list[socket.socket] = []
    try:
        for index in range(workers):
            sock = socket.socket(_family(address), socket.SOCK_RAW | socket.SOCK_NONBLOCK, ESP_PROTOCOL)
            group.append(sock)
            if workers > 1:
                bpf.attach_filter(sock, _raw_filter(address.version, index, workers))
            _set_common(sock, address, fwmark)
            sock.bind((str(address), 0))
    except OSError as error:
        for sock in group:
            sock.close()
        raise explain(f"raw ESP socket on {address}", error) from error
    return group


def open_bypass(version: int, *, fwmark: int) -> socket.socket:
    """A send-only socket for whole IP packets that a BYPASS policy lets through in clear. Needs CAP_NET_RAW.

    ``fwmark`` must not be 0: it is what keeps such a packet from being routed into the tunnel device again.
    """
    if not fwmark:
        raise BackendError("BYPASS policies need a mark to leave by", remedy="set ipsecd.fwmark, for instance to 0x42")
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    try:
        sock = socket.socket(family, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_RAW)
        try:
            set_mark(sock, fwmark)
            _set_buffer(sock, _SO_SNDBUFFORCE, socket.SO_SNDBUF, BUFFER_BYTES)
        except OSError:
            sock.close()
            raise
    except OSError as error:
        raise explain(f"IPv{version} bypass socket", error) from error
    return sock


def may_mark() -> bool:
    """Whether we may mark what our sockets send (CAP_NET_ADMIN, or CAP_NET_RAW since Linux 5.17)."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            set_mark(sock, 1)
    except OSError:
        return False
    return True


def may_bypass(fwmark: int) -> bool:
    """Whether ``open_bypass`` is possible."""
    try:
        open_bypass(4, fwmark=fwmark).close()
    except BackendError:
        return False
    return True


def not_esp_filter(port: int) -> list[bpf.Instruction]:
    """For packet sockets (SOCK_DGRAM): keep what is on the wire and is not ESP, on UDP ``port`` or as protocol 50.

    Left out as well is what is not IP, and for brevity IPv4 options and IPv6 extension headers make a packet count.
    """
    accept, ignore = 15, 16

    def jump(at: int, value: int, true: int, false: int) -> bpf.Instruction:
        return bpf.JUMP_EQUAL, true - at - 1, false - at - 1, value

    return [
        (bpf.LD_BYTE_ABS, 0, 0, 0),
        (bpf.SHIFT_RIGHT, 0, 0, 4),
        jump(2, 4, 3, 8),
        (bpf.LD_BYTE_ABS, 0, 0, 9),
        jump(4, ESP_PROTOCOL, ignore, 5),
        jump(5, socket.IPPROTO_UDP, 6, accept),
        (bpf.LD_HALF_ABS, 0, 0, 22),
        jump(7, port, ignore, accept),
        jump(8, 6, 9, ignore),
        (bpf.LD_BYTE_ABS, 0, 0, 6),
        jump(10, ESP_PROTOCOL, ignore, 11),
        jump(11, socket.IPPROTO_UDP, 12, accept),
        (bpf.LD_HALF_ABS, 0, 0, 42),
        jump(13, port, ignore, accept),
        (bpf.RET_CONST, 0, 0, 0),
        (bpf.RET_CONST, 0, 0, 0xFFFFFFFF),
        (bpf.RET_CONST, 0, 0, 0),
    ]


def set_gro(sock: socket.socket, on: bool) -> bool:
    """Switch UDP_GRO (Linux 5.0); whether the kernel took it."""
    try:
        sock.setsockopt(SOL_UDP, UDP_GRO, int(on))
    except OSError:
        return False
    return on


def attach_steering(sock: socket.socket, workers: int) -> None:
    """Steer the SO_REUSEPORT group of ``sock`` by SPI.

    The kernel pulls the UDP header before it runs the program, so offset 0 is the SPI. A datagram shorter than four
    octets fails the load, which ends the program with 0; the non-ESP marker is SPI 0 and 0 % workers is 0 as well.
    """
    bpf.steer(sock, [(bpf.LD_WORD_ABS, 0, 0, 0), (bpf.MOD, 0, 0, workers), (bpf.RET_A, 0, 0, 0)])


def probe_gso() -> Verdict:
    """Send trains whose last segment is equal and shorter over loopback and compare every octet that arrives.

    Kernels that mangle one of the two shapes exist (Linux 7.0), so a setsockopt that works is not proof enough.
    """
    try:
        for tail in (200, 60):
            got, _ = _loop_train(200, 5, tail, gro=False)
            if got != _train(200, 5, tail):
                return Verdict("udp_gso", False, "a test train arrived damaged")
    except OSError as error:
        return _without_loopback("udp_gso", error)
    return Verdict("udp_gso", True, "test trains arrived intact")


def probe_gro() -> Verdict:
    """Send a train over loopback and see whether it arrives as one, with its segment size."""
    try:
        got, sizes = _loop_train(200, 5, 60, gro=True)
    except OSError as error:
        return _without_loopback("udp_gro", error)
    if b"".join(got) != b"".join(_train(200, 5, 60)):
        return Verdict("udp_gro", False, "a test train arrived damaged")
    if len(got) > 1 or sizes != [200]:
        return Verdict("udp_gro", False, "a test train was not kept together")
    return Verdict("udp_gro", True, "a test train arrived as one")


def _without_loopback(name: str, error: OSError) -> Verdict:
    # A namespace just made has its loopback device down: that says nothing about the kernel, and the data path
    # still falls back at run time.
    if error.errno in (errno.ENETUNREACH, errno.EADDRNOTAVAIL):
        return Verdict(name, True, "not tested, the loopback device is down")
    return Verdict(name, False, f"a test train failed: {error.strerror}")


def _train(size: int, count: int, tail: int) -> list[bytes]:
    return [bytes((i * 37 + n) & 0xFF for n in range(size if i < count - 1 else tail)) for i in range(count)]


def _loop_train(size: int, count: int, tail: int, *, gro: bool) -> tuple[list[bytes], list[int]]:
    """The datagrams, and the segment sizes where told, as a receiver on loopback sees one train."""
    expected = sum(map(len, _train(size, count, tail)))
    got: list[bytes] = []
    sizes: list[int] = []
    with _udp_socket(IPv4Address("127.0.0.1")) as receiver, _udp_socket(IPv4Address("127.0.0.1")) as sender:
        receiver.bind(("127.0.0.1", 0))
        if gro:
            receiver.setsockopt(SOL_UDP, UDP_GRO, 1)
        segment = [(SOL_UDP, UDP_SEGMENT, struct.pack("H", size))]
        sender.sendmsg([b"".join(_train(size, count, tail))], segment, 0, receiver.getsockname())
        while sum(map(len, got)) < expected:
            # loopback delivers within the send; the time-out only bounds a kernel that lost something
            if not select.select([receiver], [], [], 0.2)[0]:
                break
            data, control, _, source = receiver.recvmsg(65535, 64)
            if source == sender.getsockname() or source[1] == sender.getsockname()[1]:
                got.append(data)
                sizes += [
                    struct.unpack("i", value[:4])[0]
                    for level, kind, value in control
                    if (level, kind) == (SOL_UDP, UDP_GRO)
                ]
    return got, sizes


def _family(address: IpAddress) -> socket.AddressFamily:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def _udp_socket(address: IpAddress) -> socket.socket:
    sock = socket.socket(_family(address), socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    if address.version == 6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return sock


def _set_common(sock: socket.socket, address: IpAddress, fwmark: int) -> None:
    wildcard = address.is_unspecified
    if address.version == 4:
        # RFC 4301 section 8: outer packets are never fragmented on the way; the inner side is told instead.
        sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_DO)
        sock.setsockopt(socket.IPPROTO_IP, _IP_RECVTOS, 1)
        if wildcard:
            sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_DO)
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVTCLASS, 1)
        if wildcard:
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 1)
    if fwmark:
        set_mark(sock, fwmark)
    set_buffers(sock, BUFFER_BYTES)


def set_mark(sock: socket.socket, fwmark: int) -> None:
    """Mark what a socket sends. OSError without the capability."""
    # as octets: Python takes no number above 2^31 - 1 here
    sock.setsockopt(socket.SOL_SOCKET, _SO_MARK, struct.pack("=I", fwmark))


def set_buffers(sock: socket.socket, size: int) -> None:
    """Ask for ``size`` octets in each direction."""
    _set_buffer(sock, _SO_RCVBUFFORCE, socket.SO_RCVBUF, size)
    _set_buffer(sock, _SO_SNDBUFFORCE, socket.SO_SNDBUF, size)


def _set_buffer(sock: socket.socket, force: int, plain: int, size: int) -> None:
    try:
        sock.setsockopt(socket.SOL_SOCKET, force, size)
    except PermissionError:
        # without CAP_NET_ADMIN the kernel gives what net.core.{r,w}mem_max allow
        sock.setsockopt(socket.SOL_SOCKET, plain, size)


def _raw_filter(version: int, index: int, workers: int) -> list[bpf.Instruction]:
    """Keep a raw ESP packet if its SPI belongs to this worker. IPv4 sockets see the IP header, IPv6 ones do not."""
    load = [(bpf.LD_WORD_ABS, 0, 0, 0)]
    if version == 4:
        load = [(bpf.LDX_IP_HEADER_LEN, 0, 0, 0), (bpf.LD_WORD_IND, 0, 0, 0)]
    return [
        *load,
        (bpf.MOD, 0, 0, workers),
        (bpf.JUMP_EQUAL, 0, 1, index),
        (bpf.RET_CONST, 0, 0, 0xFFFFFFFF),
        (bpf.RET_CONST, 0, 0, 0),
    ]


def explain(what: str, error: OSError, *, setting: str = "ipsecd.port_nat_t") -> BackendError:
    """Why a socket could not be opened, and how to mend it; ``setting`` chooses its port."""
    known = {
        errno.EADDRINUSE: f"stop the other IPsec daemon on this port, or choose another port ({setting})",
        errno.EADDRNOTAVAIL: "listen on an address of this host (ipsecd.listen)",
        errno.EACCES: grants.low_ports(setting),
        errno.EPERM: f"{grants.capability('NET_RAW')} for raw ESP and bypass, CAP_NET_ADMIN for marks",
        errno.EAFNOSUPPORT: "this kernel has no such address family: listen on the other one only",
    }
    text = os.strerror(error.errno) if error.errno else str(error)
    return BackendError(f"{what}: {text}", remedy=known.get(error.errno or 0))
