"""What a network device is like, asked without any privilege."""

from __future__ import annotations

import fcntl
import socket
import struct
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

# linux/sockios.h, linux/if.h
_SIOCGIFFLAGS = 0x8913
_SIOCGIFMTU = 0x8921
_IFF_UP = 1
_IFREQ_FLAGS = struct.Struct("16sH22x")
_IFREQ_MTU = struct.Struct("16si20x")
#: of the network namespace of the thread that reads it
SYSCTL = Path("/proc/sys/net")


def is_up(device: str) -> bool:
    """Whether a device was brought up. OSError if there is none."""
    return bool(_ask(device, _SIOCGIFFLAGS, _IFREQ_FLAGS) & _IFF_UP)


def mtu_of(device: str) -> int:
    """The MTU of a device. OSError if there is none."""
    return _ask(device, _SIOCGIFMTU, _IFREQ_MTU)


def has_address(address: IPv4Address | IPv6Address) -> bool:
    """Whether this is an address of the network namespace, of whatever device."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        try:
            sock.bind((str(address), 0))
        except OSError:
            return False
    return True


def forwards_from(version: int, *, without: str, sysctl: Path = SYSCTL) -> list[str]:
    """The devices whose packets this host forwards, other than ``without``; with "all", if that is switched on."""
    found = []
    for path in sorted((sysctl / f"ipv{version}" / "conf").glob("*/forwarding")):
        name = path.parent.name
        # devices go away; "default" is for those that are to come
        with suppress(OSError, ValueError):
            if name not in ("default", without) and int(path.read_text()):
                found.append(name)
    return found


def keep_addresses(device: str, *, sysctl: Path = SYSCTL) -> None:
    """Let a device that goes down keep its IPv6 addresses, as it does its IPv4 ones; where that may not be set, not.

    Without, a host that forwards takes what comes to them for somebody else's when the device is up again.
    """
    with suppress(OSError):
        (sysctl / "ipv6" / "conf" / device / "keep_addr_on_down").write_text("1")


def _ask(device: str, request: int, layout: struct.Struct) -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        answer = fcntl.ioctl(sock, request, layout.pack(device.encode(), 0))
    value: int = layout.unpack(answer)[1]
    return value
