"""Every tunnel by the name that ``--peers`` takes."""

from __future__ import annotations

from collections.abc import Mapping

from bench.e2e.ipsecd import Ipsecd, variants
from bench.e2e.others import KernelWireGuard, OpenVpn, WireGuardGo, Xfrm
from bench.e2e.peers import Peer, PlainVeth
from bench.e2e.strongswan import StrongSwan
from bench.topology import Link

BEHIND = Link(clients=True)
PEERS = ("plain", "strongswan", "wireguard-go", "openvpn", "wireguard", "xfrm",
         "clients-plain", "clients-strongswan", "clients-wireguard-go")  # fmt: skip


def names() -> list[str]:
    """All of them."""
    return [*PEERS, *variants()]


def make_peer(name: str, settings: Mapping[str, str]) -> Peer:
    """A peer by its name; ``settings`` are for those that run ipsecd. KeyError if there is none."""
    match name:
        case "plain":
            return PlainVeth(name, "no tunnel, plain veth", "none")
        case "clients-plain":
            return PlainVeth(name, "no tunnel, forwarded by both hosts", "none", BEHIND)
        case "strongswan" | "clients-strongswan":
            return StrongSwan(name, BEHIND if name.startswith("clients-") else None)
        case "wireguard-go" | "clients-wireguard-go":
            return WireGuardGo(name, BEHIND if name.startswith("clients-") else None)
        case "openvpn":
            return OpenVpn()
        case "wireguard":
            return KernelWireGuard()
        case "xfrm":
            return Xfrm()
    return Ipsecd(name, variants()[name], settings)
