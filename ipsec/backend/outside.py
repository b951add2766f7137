"""The sockets of the outside, and what start-up probes find out about them."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

from ipsec.backend.base import IpAddress
from ipsec.backend.settings import OFFLOADS, UserspaceSettings
from ipsec.errors import BackendError, SaError
from ipsec.esp.sa import SaParams
from ipsec.net import ike, udp
from ipsec.net.inherited import matching


def probe(settings: UserspaceSettings) -> dict[str, udp.Verdict]:
    """Which offloads of UDP sockets work here."""
    if settings.memory is not None:
        return {name: udp.Verdict(name, False, "links are in memory") for name in OFFLOADS[:4]}
    found = {}
    for name, work in (("udp_gso", udp.probe_gso), ("udp_gro", udp.probe_gro)):
        wanted = settings.offload.get(name, True)
        found[name] = work() if wanted else udp.Verdict(name, False, "switched off")
    return found


def open_group(address: IpAddress, settings: UserspaceSettings, *, gro: bool) -> list[list[socket.socket]]:
    """All sockets of the data path on one address, by kind, UDP first: one for each worker. BackendError."""
    workers = max(1, settings.workers)
    ready = matching(settings.inherited, address.version, settings.port)
    if ready:
        address = ike.bound_to(ready[0])[0]
    groups = [udp.open_udp(address, settings.port, workers=workers, gro=gro, fwmark=settings.fwmark, ready=ready)]
    try:
        if settings.raw_esp:
            groups.append(udp.open_raw_esp(address, workers=workers, fwmark=settings.fwmark))
        if settings.bypass:
            groups.append([])
            for _ in range(workers):
                groups[-1].append(udp.open_bypass(address.version, fwmark=settings.fwmark))
    except BackendError:
        for sock in (sock for group in groups for sock in group):
            sock.close()
        raise
    return groups


def check_sockets(params: SaParams, settings: UserspaceSettings, ports: Mapping[int, int]) -> None:
    """SaError if no socket fits an SA; ``ports`` are those of ESP in UDP that are in use, by IP version."""
    version = params.local.version
    name = f"SA 0x{params.spi:08x}"
    if version not in ports:
        raise SaError(f"{name}: no socket for IPv{version} (see ipsecd.listen)")
    if params.encap is None and not settings.raw_esp:
        raise SaError(f"{name}: IP protocol 50 is off (set ipsecd.raw_esp = yes, or encap = yes)")
    if params.encap is not None and params.encap[0] != ports[version]:
        port = ports[version]
        raise SaError(f"{name}: local UDP port {params.encap[0]} is not the one in use, {port} (ipsecd.port_nat_t)")


def moved(params: SaParams, address: IpAddress, port: int) -> SaParams:
    """An SA whose peer is elsewhere now; ``port`` is of no interest without UDP."""
    return replace(params, remote=address, encap=(params.encap[0], port) if params.encap else None)


def memory_socket(settings: UserspaceSettings) -> socket.socket:
    """Our end of a wire in memory."""
    assert settings.memory is not None
    return socket.socket(fileno=os.dup(settings.memory.wire.fd(settings.memory.side)))


def listen_addresses(settings: UserspaceSettings) -> list[IpAddress]:
    """Where to listen: at most one address of each family. BackendError."""
    listen = settings.listen
    versions = [address.version for address in listen]
    if len(set(versions)) != len(versions):
        raise BackendError(
            "ipsecd.listen names two addresses of one family", remedy="name one, or leave it out for the wildcard"
        )
    if listen:
        return list(listen)
    return [IPv4Address(0), *([IPv6Address(0)] if _has_ipv6() else [])]


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.bind(("::", 0))
    except OSError:
        return False
    return True
