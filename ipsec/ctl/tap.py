"""Copies of packets that pass an interface (packet(7)), and what is in the headers of those of IPsec.

The kernel makes the copies and filters them; the data path knows nothing of it.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from ipsec.ctl.errors import CtlError, ExitCode
from ipsec.wire.iana import ExchangeType, name_of

Address = IPv4Address | IPv6Address

_ETH_P_ALL = 3
_PACKET_OUTGOING = 4
_SOL_PACKET, _PACKET_STATISTICS = 263, 6
_SO_ATTACH_FILTER, _SO_RCVBUFFORCE, _SO_TIMESTAMPNS = 26, 33, 35
#: octets that wait to be read: a second of a Gbit/s
_BUFFER = 128 << 20
#: superframes have up to 64 KiB
_PACKET_MAX = 1 << 17
#: packets between two looks at everything else
_TURN = 256

ESP, UDP = 50, 17


@dataclass(frozen=True)
class Copied:
    """One packet."""

    interface: str
    time_ns: int
    outgoing: bool
    data: bytes


class Tap:
    """Copies of what passes one interface, or with ``device`` None of the ESP and IKE on all of them."""

    def __init__(self, device: str | None, ports: Iterable[int] = ()) -> None:
        """CtlError without the right to."""
        self.dropped = 0
        try:
            kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
            protocol = socket.htons(_ETH_P_ALL) if device is None else 0
            self._socket = socket.socket(socket.AF_PACKET, kind, protocol)
        except PermissionError:
            why = "packets can only be copied with CAP_NET_RAW"
            raise CtlError(why, "use sudo, or run it in the daemon's container", code=ExitCode.REQUIREMENT) from None
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        with suppress(OSError):
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        if device is None:
            self._filter(ports)
        else:
            self._socket.bind((device, _ETH_P_ALL))

    def _filter(self, ports: Iterable[int]) -> None:
        code = b"".join(struct.pack("=HBBI", *instruction) for instruction in ipsec_filter(ports))
        buffer = ctypes.create_string_buffer(code, len(code))
        program = struct.pack("@HP", len(code) // 8, ctypes.addressof(buffer))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
        # what came before the filter
        with suppress(BlockingIOError):
            while True:
                self._socket.recv(1)

    def fileno(self) -> int:
        """For an event loop."""
        return self._socket.fileno()

    def read(self) -> Iterator[Copied]:
        """What has come, as much as is good for one turn."""
        for _ in range(_TURN):
            try:
                data, notes, _, (name, _, kind, *_) = self._socket.recvmsg(_PACKET_MAX, 64)
            except BlockingIOError:
                return
            except OSError as error:
                # the interface went down or away: it may come back, and the socket says so once
                if error.errno in (errno.ENETDOWN, errno.ENODEV, errno.ENXIO):
                    return
                raise
            seconds, nanoseconds = struct.unpack("@ll", notes[0][2][:16])
            yield Copied(name, seconds * 1_000_000_000 + nanoseconds, kind == _PACKET_OUTGOING, data)

    def count_drops(self) -> int:
        """Copies in all that there was no room for."""
        _, dropped = struct.unpack("=II", self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))
        self.dropped += dropped
        return self.dropped

    def close(self) -> None:
        """Make no more."""
        self._socket.close()


def ipsec_filter(ports: Iterable[int]) -> list[tuple[int, int, int, int]]:
    """A program for the kernel (BPF): ESP over IPv4 and IPv6, and UDP from or to these ports.

    Instructions are (code, jump if true, jump if false, value). Jumps are over so many instructions.
    """
    load8, load16, load16x, header, shift = 0x30, 0x28, 0x48, 0xB1, 0x74
    equal, any_bit, give = 0x15, 0x45, 0x06
    numbers = sorted(set(ports))
    take, leave = (give, 0, 0, 0x40000), (give, 0, 0, 0)

    def either(load: int, at: int) -> list[tuple[int, int, int, int]]:
        """Take it if one of the ports is there; else leave it."""
        code: list[tuple[int, int, int, int]] = []
        for offset in (at, at + 2):
            code.append((load, 0, 0, offset))
            # over the rest of the comparisons of both ports to take, which is the last instruction
            for index, number in enumerate(numbers):
                left = len(numbers) - index - 1 + (len(numbers) + 1 if offset == at else 0)
                code.append((equal, left + 1, 0, number))
        return [*code, leave, take]

    udp4 = [(load16, 0, 0, 6), (any_bit, 0, 1, 0x1FFF), leave, (header, 0, 0, 0), *either(load16x, 0)]
    ipv4 = [(load8, 0, 0, 9), (equal, 0, 1, ESP), take, (equal, 1, 0, UDP), leave, *udp4]
    ipv6 = [(load8, 0, 0, 6), (equal, 0, 1, ESP), take, (equal, 1, 0, UDP), leave, *either(load16, 40)]
    version = [(load8, 0, 0, 0), (shift, 0, 0, 4), (equal, 2, 0, 4), (equal, len(ipv4) + 1, 0, 6), leave]
    return [*version, *ipv4, *ipv6]


# -- headers


@dataclass(frozen=True)
class Outer:
    """An outer packet of IPsec."""

    source: Address
    target: Address
    payload: bytes
    "from the ESP or IKE header on"
    ike: bool
    offset: int
    "of the payload in the packet"
    udp: int
    "offset of the UDP header, 0 without one"

    @property
    def spi(self) -> int:
        """Of ESP."""
        return int.from_bytes(self.payload[:4], "big")

    @property
    def number(self) -> int:
        """The low half of the sequence number of ESP."""
        return int.from_bytes(self.payload[4:8], "big")

    @property
    def ike_spis(self) -> tuple[str, str]:
        """Of IKE, in hexadecimal: the initiator's, the responder's."""
        return self.payload[:8].hex(), self.payload[8:16].hex()

    def ike_message(self) -> str:
        """``IKE_AUTH request 1``."""
        if len(self.payload) < 28:
            return "IKE, cut off"
        exchange, flags = self.payload[18], self.payload[19]
        kind = "response" if flags & 0x20 else "request"
        return f"{name_of(ExchangeType, exchange)} {kind} {int.from_bytes(self.payload[20:24], 'big')}"


def addresses(data: bytes) -> tuple[Address, Address] | None:
    """Source and target of a packet; None if it is none."""
    version = data[0] >> 4 if data else 0
    if version == 4 and len(data) >= 20:
        return ip_address(data[12:16]), ip_address(data[16:20])
    if version == 6 and len(data) >= 40:
        return ip_address(data[8:24]), ip_address(data[24:40])
    return None


def parse_outer(data: bytes, ike_ports: Iterable[int]) -> Outer | None:
    """An outer packet; None if it is not of IPsec. ``ike_ports`` have IKE without a marker in front."""
    ends = addresses(data)
    if ends is None:
        return None
    version = data[0] >> 4
    at = (data[0] & 15) * 4 if version == 4 else 40
    protocol = data[9] if version == 4 else data[6]
    if protocol == ESP:
        return Outer(*ends, data[at:], False, at, 0)
    if protocol != UDP or len(data) < at + 8:
        return None
    ports = struct.unpack_from(">HH", data, at)
    start = at + 8
    if set(ports) & set(ike_ports):
        return Outer(*ends, data[start:], True, start, at)
    if data[start : start + 4] == bytes(4):
        # RFC 3948 section 2.2: the non-ESP marker
        return Outer(*ends, data[start + 4 :], True, start + 4, at)
    return Outer(*ends, data[start:], False, start, at) if len(data) >= start + 8 else None


def cars(data: bytes, outer: Outer) -> list[bytes]:
    """The packets of a train: with UDP_SEGMENT and UDP_GRO the kernel shows many of equal size as one.

    Where the next begins is seen by its header: the same SPI and the next number.
    """
    if outer.ike or not outer.udp or len(outer.payload) < 32:
        return [data]
    following = outer.payload[:4] + ((outer.number + 1) & 0xFFFFFFFF).to_bytes(4, "big")
    size = outer.payload.find(following, 16)
    if size < 0:
        return [data]
    head = data[: outer.offset]
    return [_car(head, outer, outer.payload[i : i + size]) for i in range(0, len(outer.payload), size)]


def _car(head: bytes, outer: Outer, payload: bytes) -> bytes:
    """One packet of a train, with lengths that are right; the UDP checksum is left out."""
    header = bytearray(head)
    struct.pack_into(">HH", header, outer.udp + 4, 8 + len(payload), 0)
    if header[0] >> 4 == 6:
        struct.pack_into(">H", header, 4, len(header) - 40 + len(payload))
        return bytes(header) + payload
    struct.pack_into(">H", header, 2, len(header) + len(payload))
    struct.pack_into(">H", header, 10, 0)
    total = sum(struct.unpack_from(f">{outer.udp // 2}H", header))
    total = (total & 0xFFFF) + (total >> 16)
    struct.pack_into(">H", header, 10, ~(total + (total >> 16)) & 0xFFFF)
    return bytes(header) + payload
