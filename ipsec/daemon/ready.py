"""What the daemon needs of the machine and finds there, for ``ipsecd --check`` and ``ipsecctl doctor``.

Nothing is changed, nobody is spoken to.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import tempfile
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from ipsec.backend.requirements import Requirement, State, check, missing, try_directory
from ipsec.backend.settings import UserspaceSettings
from ipsec.config import Config
from ipsec.config.settings import VICI_SOCKET, BackendKind, DaemonSettings, Listen
from ipsec.daemon.keylog import KEY_FILES, open_key_file
from ipsec.daemon.optional import key_exchange_found, tls_found
from ipsec.daemon.reach import Resolver, allows, source_address, specific, usable
from ipsec.daemon.secret import SECRET_FILE, SECRET_LEN
from ipsec.daemon.settings import backend_settings, may_write, say_limits, vici_wanted
from ipsec.errors import BackendError
from ipsec.esp.sa import Mode
from ipsec.ike.config import ChildMode, Connection
from ipsec.net import http, ike
from ipsec.vici.server import give_to, is_stale

#: names are looked up for that long, all together
PATIENCE_S = 5.0
#: as many peers have a line each, for people, also where nothing is wrong with them
PEERS_SHOWN = 10

_PEER = "peer of "


def requirements(config: Config) -> list[Requirement]:
    """Everything that the daemon needs with this configuration. ConfigError, BackendError if it asks for the
    impossible."""
    settings = backend_settings(config)
    say_limits(config, settings, trial=True)
    found = check(
        settings,
        state_dir=Path(config.settings.state_dir) if config.sas else None,
        outbound=[sa.params()[1] for sa in config.sas],
        forwards=any(sa.mode is Mode.TUNNEL for sa in config.sas) or tunnels_networks(config),
    )
    return found + check_ike(config, settings) + check_control(config)


def in_short(found: Sequence[Requirement]) -> list[Requirement]:
    """For people: of many peers only those with which something is wrong, and how many others there are."""
    well = [one for one in found if _is_well(one)]
    if len(well) <= PEERS_SHOWN:
        return list(found)
    short = Requirement(f"{len(well)} peers", State.FOUND, "a route leads to each")
    return [short if one is well[0] else one for one in found if one is well[0] or not _is_well(one)]


def _is_well(one: Requirement) -> bool:
    return one.state is State.FOUND and one.name.startswith(_PEER)


def check_ike(config: Config, settings: UserspaceSettings) -> list[Requirement]:
    """Ports, the state directory, and whether there is a way to each peer."""
    if config.settings.backend is BackendKind.MEMORY:
        return []
    found = []
    if settings.ike_port is not None:
        found += [_port(settings, settings.ike_port, version) for version in (4, 6)]
    if config.connections:
        found += [_optional("ML-KEM", *key_exchange_found()), _optional("EAP-TLS", *tls_found())]
        found += [_state(Path(config.settings.state_dir)), *asyncio.run(_peers(config, settings.fwmark))]
    if config.settings.keylog and (config.connections or vici_wanted(config)):
        found.append(_key_files(config.settings.keylog))
    return found


def _optional(name: str, there: bool, what: str) -> Requirement:
    """Most connections do not need it."""
    return Requirement(name, State.FOUND if there else State.HINT, what if there else "not there", what)


def check_control(config: Config) -> list[Requirement]:
    """Where the daemon is to be asked and steered: vici, metrics and health."""
    settings = config.settings
    found = []
    if vici_wanted(config):
        if settings.vici_socket:
            found.append(_vici(settings))
        if settings.vici_tcp is not None:
            found.append(_tcp("vici over TCP", settings.vici_tcp, "set ipsecd.vici_tcp to another port, or none"))
    return found + [_tcp("metrics and health", listen, http.ELSEWHERE) for listen in settings.http.listen]


def _vici(settings: DaemonSettings) -> Requirement:
    name, path = "vici socket", Path(settings.vici_socket)
    if not may_write(path.parent):
        # without privileges a daemon that was not told a path goes without
        state = State.HINT if settings.vici_socket == VICI_SOCKET else State.MISSING
        return Requirement(name, state, f"{path} cannot be made", "set ipsecd.vici_socket to another path")
    try:
        try_directory(path.parent)
        stale = asyncio.run(is_stale(path))
        if settings.vici_group:
            with tempfile.TemporaryFile(dir=path.parent if path.parent.exists() else None) as trial:
                give_to(settings.vici_group, trial.fileno())
    except BackendError as error:
        return missing(name, error)
    except OSError as error:
        return Requirement(name, State.MISSING, f"{path}: {error.strerror}", "set ipsecd.vici_socket to another path")
    return Requirement(name, State.FOUND, f"{path} " + ("is of a daemon that is gone" if stale else "can be made"))


def _tcp(name: str, where: Listen, remedy: str) -> Requirement:
    family = socket.AF_INET if where.address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            # as asyncio's servers have it
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((str(where.address), where.port))
    except OSError as error:
        return Requirement(name, State.MISSING, f"TCP {where}: {error.strerror}", remedy)
    return Requirement(name, State.FOUND, f"TCP {where} is free")


def _key_files(directory: str) -> Requirement:
    name = "key files"
    try:
        _try_key_files(Path(directory))
    except OSError as error:
        remedy = "name another directory in ipsecd.keylog, or leave it out"
        return Requirement(name, State.MISSING, f"{directory} cannot be written: {error.strerror}", remedy)
    detail = f"all keys are written to {directory}: whoever reads them reads all traffic"
    return Requirement(name, State.HINT, detail, "remove ipsecd.keylog")


def _try_key_files(directory: Path) -> None:
    """Whether both files could be made or appended to, with nothing changed. OSError."""
    try_directory(directory)
    for name in KEY_FILES:
        with contextlib.suppress(FileNotFoundError):
            os.close(open_key_file(directory / name, make=False))


def _port(settings: UserspaceSettings, port: int, version: int) -> Requirement:
    name = f"IKE over IPv{version}"
    addresses = [address for address in settings.listen if address.version == version]
    if settings.listen and not addresses:
        return Requirement(name, State.FOUND, "not asked for")
    address = addresses[0] if addresses else IPv4Address(0) if version == 4 else IPv6Address(0)
    try:
        ike.open_ike(address, port, fwmark=settings.fwmark).close()
    except BackendError as error:
        number = error.__cause__.errno if isinstance(error.__cause__, OSError) else 0
        if version == 6 and not settings.listen and number in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
            return Requirement(name, State.HINT, "this host has no IPv6", "enable IPv6 if peers use it")
        return Requirement(name, State.MISSING, error.message, error.remedy or "see the kernel log")
    return Requirement(name, State.FOUND, f"port {port} on {address} is free")


def _state(directory: Path) -> Requirement:
    """A secret that outlives the daemon (RFC 6290): tunnels work without."""
    name = "state of IKE"
    try:
        there = try_directory(directory, 0 if (directory / SECRET_FILE).exists() else SECRET_LEN)
    except OSError as error:
        remedy = "set ipsecd.state_dir to a directory that this user can write"
        detail = f"{directory}: {error.strerror}; peers will take longer to notice a restart"
        return Requirement(name, State.HINT, detail, remedy)
    return Requirement(name, State.FOUND, f"{directory} {there}")


async def _peers(config: Config, fwmark: int) -> list[Requirement]:
    resolver = Resolver()
    jobs = [_peer(connection, resolver, fwmark) for connection in config.connections]
    found = await asyncio.gather(*jobs)
    return [requirement for requirement in found if requirement is not None]


async def _peer(connection: Connection, resolver: Resolver, fwmark: int) -> Requirement | None:
    """The way to a peer with an address; None for whoever comes from anywhere."""
    name, texts = f"{_PEER}{connection.name}", ", ".join(connection.remote_addrs)
    try:
        remote = await asyncio.wait_for(resolver.first_of(connection.remote_addrs), PATIENCE_S)
    except TimeoutError:
        remote = None
    if remote is None:
        if all(text.startswith("%any") or "/" in text or text in ("0.0.0.0", "::") for text in connection.remote_addrs):
            return None
        return Requirement(name, State.HINT, f"{texts}: no address is known", "check the name, or the name servers")
    local = specific(connection.local_addrs, remote.version) or source_address(remote, fwmark)
    if local is None:
        return Requirement(name, State.HINT, f"{remote}: there is no route to it", f"ip route get {remote}")
    if not usable(local, remote, fwmark) or not allows(connection.local_addrs, local):
        detail = f"{local} is not an address of this host, or local_addrs does not have it"
        return Requirement(name, State.HINT, detail, "ip address show; correct local_addrs")
    return Requirement(name, State.FOUND, f"{remote}, reached from {local}")


def tunnels_networks(config: Config) -> bool:
    """Whether a child is for more than this host's own addresses."""
    return any(
        child.mode is ChildMode.TUNNEL and any(template.network is not None for template in child.local_ts)
        for connection in config.connections
        for child in connection.children
    )
