"""How the user-space backend is asked to run."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from ipaddress import IPv4Interface, IPv6Interface

from ipsec.esp.sa import IpAddress
from ipsec.net.memory import MemoryLink, MemoryTun

IpInterface = IPv4Interface | IPv6Interface

OFFLOADS = ("tun_tso", "tun_uso", "udp_gso", "udp_gro", "coalesce_tcp", "coalesce_udp")


@dataclass(frozen=True)
class MemoryEnds:
    """Where a backend without any privilege gets its packets; the caller keeps and closes both."""

    tun: MemoryTun
    wire: MemoryLink
    side: int
    "of the wire: 0 or 1"


@dataclass(frozen=True)
class UserspaceSettings:
    """How to run. The defaults need CAP_NET_ADMIN and /dev/net/tun, and nothing else."""

    device: str = "ipsec0"
    prepared: bool = False
    "somebody made the device with addresses, routes and rules; netlink is left alone, and nothing needs a capability"
    tun_fd: int | None = None
    "an inherited TUN queue instead of a device by name"
    namespace: str = ""
    "network namespace of the device, its addresses and routes: name or path; empty is our own"
    inherited: tuple[socket.socket, ...] = ()
    "UDP sockets that a supervisor bound, used where family and port fit; the caller keeps and closes them"
    mtu: int = 0
    "of the device; 0 takes what fits through every SA"
    workers: int = 0
    "threads; 0 runs in the event loop"
    listen: tuple[IpAddress, ...] = ()
    "at most one address per family; () is both wildcards, IPv6 only where the kernel has it"
    port: int = 4500
    "UDP port for ESP, and for IKE behind a marker; 0 picks a free one"
    ike_port: int | None = 500
    "UDP port for IKE; 0 picks a free one, None is for those who speak none"
    raw_esp: bool = False
    "IP protocol 50 as well; needs CAP_NET_RAW"
    bypass: bool = False
    "BYPASS policies send packets around the tunnel; needs CAP_NET_RAW and ``fwmark``"
    hold_packets: int = 8
    "frames of each policy without an SA that wait for it; 0 drops them"
    install_routes: bool = True
    "False: the operator prepared device and routes, and netlink is left alone"
    routing_table: int = 220
    routing_priority: int = 220
    fwmark: int = 0
    "mark of our own packets, which lets them skip the table"
    peer_inside: bool = False
    "routes that lead to the device may lead a peer's packets there, from the start on"
    queue_length: int = 1000
    addresses: tuple[IpInterface, ...] = ()
    "for the device"
    fail_closed: bool = False
    "unreachable routes for what is protected, until a stop that was asked for"
    crypto_provider: str = "auto"
    busy_poll_us: int = 0
    peer_socket: bool = True
    "with one worker: the peer that most packets go to has a socket of its own"
    mss_clamp: bool = True
    offload: dict[str, bool] = field(default_factory=dict)
    "by name (``OFFLOADS``): False is off, True insists; what is not named is on where it works"
    memory: MemoryEnds | None = None
    "links in memory instead of a device, sockets and routes"
