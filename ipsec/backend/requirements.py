"""What the user-space backend needs from this machine: found or missing, and the one line that mends it.

Each check does what the daemon will do, and undoes it: asking the kernel is the only way that is right in containers,
user namespaces and under security modules alike.
"""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from ipsec.backend.core import compiled_core
from ipsec.backend.place import explain
from ipsec.backend.prepared import take_prepared
from ipsec.backend.seqstore import SequenceStore
from ipsec.backend.settings import UserspaceSettings
from ipsec.errors import BackendError, SuiteError
from ipsec.esp.sa import SaParams
from ipsec.net import grants, link, netns, udp
from ipsec.net.route import Router
from ipsec.net.tun import DEVICE_NODE, device_exists, open_tun

#: of a device that is made only to see whether it can be made; ``%d`` picks a free number
TRIAL_DEVICE = "ipsectry%d"
_SYSCTL = link.SYSCTL
#: octets of a file that is written only to see whether there is room
_TRIAL_LEN = 4096


class State(Enum):
    """How a requirement is met."""

    FOUND = "found"
    HINT = "hint"
    "it works without, but not everything"
    MISSING = "missing"


@dataclass(frozen=True)
class Requirement:
    """One line of ``ipsecd --check``."""

    name: str
    state: State
    detail: str
    remedy: str = ""
    "what mends it, if it is not found"


def check(
    settings: UserspaceSettings,
    *,
    state_dir: Path | None = None,
    outbound: Sequence[SaParams] = (),
    forwards: bool = False,
) -> list[Requirement]:
    """Every requirement of these settings, and nothing changed when it returns.

    ``state_dir`` is needed by manual SAs, of which ``outbound`` are those that send; ``forwards``: for other hosts.
    """
    found = [_core(settings)]
    if settings.memory is not None:
        return found
    try:
        with netns.inside(settings.namespace) if settings.namespace else nullcontext():
            found.append(_device(settings))
            if settings.install_routes:
                found.append(_netlink(settings))
    except OSError as error:
        found.append(missing("network namespace", explain(settings.namespace, error)))
    if settings.prepared:
        found.append(_prepared(settings))
    found += [_sockets(settings, 4), _sockets(settings, 6)]
    if settings.raw_esp or settings.bypass:
        found.append(_raw(settings))
    elif not settings.prepared:
        found.append(_without_raw(settings))
    if state_dir is not None:
        found.append(_state(state_dir, outbound))
    if forwards:
        found += _forwarding(settings)
    found += _reverse_path(settings)
    found += [_offload("UDP GSO", udp.probe_gso), _offload("UDP GRO", udp.probe_gro)]
    return found


def _core(settings: UserspaceSettings) -> Requirement:
    try:
        core = compiled_core()
        providers = core.Engine(provider=settings.crypto_provider).providers()
    except BackendError as error:
        return missing("data path", error)
    except (SuiteError, ValueError, RuntimeError) as error:
        return Requirement("data path", State.MISSING, str(error), "set ipsecd.crypto_provider to auto")
    return Requirement("data path", State.FOUND, "crypto by " + ", ".join(sorted(set(providers.values()))))


def _device(settings: UserspaceSettings) -> Requirement:
    if settings.tun_fd is not None:
        return Requirement("TUN device", State.FOUND, f"inherited descriptor {settings.tun_fd}")
    name = settings.device
    # A device of that name is either persistent and attachable, or in the way; otherwise a trial one tells.
    exists = device_exists(name)
    if settings.prepared and not exists:
        return Requirement("TUN device", State.MISSING, f"{name} was to be prepared", grants.PREPARE)
    if exists and _is_in_use(name):
        return Requirement("TUN device", State.MISSING, f"{name} is in use", "stop the daemon that uses it")
    try:
        tun = open_tun(name if exists else TRIAL_DEVICE, queues=max(1, settings.workers))
    except BackendError as error:
        return Requirement(
            "TUN device",
            State.MISSING,
            error.message.replace(TRIAL_DEVICE, name),
            error.remedy or "see the kernel log",
        )
    tun.close()
    extras = [text for text, on in (("TCP superframes", tun.tso), ("UDP superframes", tun.uso)) if on]
    how = f"{name} is there and can be attached to" if exists else f"{DEVICE_NODE} works, {name} can be made"
    return Requirement("TUN device", State.FOUND, "; ".join([how, *extras]))


def _is_in_use(name: str) -> bool:
    """Whether somebody has a device with several queues open: another one, even for a moment, would get his packets."""
    try:
        with Router() as router:
            return router.owner_of(name).queues > 0
    except BackendError:
        return False


def _prepared(settings: UserspaceSettings) -> Requirement:
    try:
        if (claim := take_prepared(settings)) is not None:
            claim.close()
    except BackendError as error:
        return missing("what was prepared", error)
    addresses = ", ".join(str(address.ip) for address in settings.addresses) or "none asked for"
    return Requirement("what was prepared", State.FOUND, f"the device is up; addresses: {addresses}")


def _sockets(settings: UserspaceSettings, version: int) -> Requirement:
    name = f"UDP over IPv{version}"
    addresses = [address for address in settings.listen if address.version == version]
    if settings.listen and not addresses:
        return Requirement(name, State.FOUND, "not asked for")
    address = addresses[0] if addresses else IPv4Address(0) if version == 4 else IPv6Address(0)
    try:
        for sock in udp.open_udp(address, settings.port, workers=max(1, settings.workers), fwmark=settings.fwmark):
            sock.close()
    except BackendError as error:
        cause = error.__cause__
        if version == 6 and not settings.listen and isinstance(cause, OSError) and cause.errno in _NO_IPV6:
            return Requirement(name, State.HINT, "this host has no IPv6", "enable IPv6 if peers use it")
        return missing(name, error)
    return Requirement(name, State.FOUND, f"port {settings.port} on {address} is free")


_NO_IPV6 = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)


_RAW = "raw sockets (CAP_NET_RAW)"


def _raw(settings: UserspaceSettings) -> Requirement:
    try:
        if settings.raw_esp:
            for sock in udp.open_raw_esp(IPv4Address(0), fwmark=settings.fwmark):
                sock.close()
        if settings.bypass:
            udp.open_bypass(4, fwmark=settings.fwmark).close()
    except BackendError as error:
        return missing(_RAW, error)
    return Requirement(_RAW, State.FOUND, "they can be opened")


def _without_raw(settings: UserspaceSettings) -> Requirement:
    if not (settings.namespace and udp.may_bypass(1)):
        what = "not to be had: connections with mode = pass are refused"
        return Requirement(_RAW, State.HINT, what, grants.capability("NET_RAW"))
    # they bear a mark, which nothing else needs where the tunnel's routes are elsewhere
    what = "not asked for, with ipsecd.namespace: connections with mode = pass that are loaded later are refused"
    return Requirement(_RAW, State.HINT, what, "have one in the file at the start, or set ipsecd.fwmark")


def _netlink(settings: UserspaceSettings) -> Requirement:
    name = "routes (CAP_NET_ADMIN)"
    table = settings.routing_table
    try:
        with Router(table=table, priority=settings.routing_priority, fwmark=settings.fwmark) as router:
            router.try_claim()
            stale = router.leftovers()
            router.try_rule()
            others = router.rules_in_the_way()
    except BackendError as error:
        return missing(name, error)
    if others:
        why = f"a rule of somebody else leads all packets into table {table}, our own too"
        return Requirement(name, State.HINT, why, "; ".join(others))
    left = f"; an earlier ipsecd left {stale} entries in it, which a start removes" if stale else ""
    return Requirement(name, State.FOUND, f"table {table} is ours to use{left}")


def _state(directory: Path, outbound: Sequence[SaParams]) -> Requirement:
    name = "state directory"
    try:
        there = try_directory(directory, _TRIAL_LEN)
    except OSError as error:
        remedy = "set ipsecd.state_dir to a directory that this user can write and that outlives a restart"
        return Requirement(name, State.MISSING, f"{directory}: {error.strerror}", remedy)
    store = SequenceStore(directory)
    try:
        for params in outbound:
            store.check(params.encr_key, params.integ_key, esn=params.esn)
    except BackendError as error:
        return missing(name, error)
    return Requirement(name, State.FOUND, f"{directory} {there}")


def _forwarding(settings: UserspaceSettings) -> list[Requirement]:
    found = []
    for version, name, path in (
        (4, "ip_forward", "ipv4/ip_forward"),
        (6, "IPv6 forwarding", "ipv6/conf/all/forwarding"),
    ):
        value = _sysctl(path)
        if value is None:
            continue
        key = "net." + path.replace("/", ".")
        some = link.forwards_from(version, without=settings.device, sysctl=_SYSCTL)
        if value:
            found.append(Requirement(name, State.FOUND, f"{key} is {value}"))
        elif some:
            found.append(Requirement(name, State.FOUND, f"{key} is 0, and on for {', '.join(some)}"))
        else:
            detail = f"{key} is 0: only this host's own packets use the tunnel"
            found.append(Requirement(name, State.HINT, detail, f"sysctl -w {key}=1"))
    return found


def _reverse_path(settings: UserspaceSettings) -> list[Requirement]:
    # With a mark the way back of a peer's packets is looked up without it, and leads into the tunnel.
    strict = max(_sysctl(f"ipv4/conf/{c}/rp_filter") or 0 for c in ("all", "default")) == 1
    if not (settings.fwmark and settings.peer_inside and strict):
        return []
    detail = "net.ipv4.conf.*.rp_filter is 1 (strict): packets of peers inside their own selectors are dropped"
    return [Requirement("rp_filter", State.HINT, detail, "sysctl -w net.ipv4.conf.all.rp_filter=2")]


def _offload(name: str, probe: Callable[[], udp.Verdict]) -> Requirement:
    verdict = probe()
    if verdict.on:
        return Requirement(name, State.FOUND, verdict.reason)
    return Requirement(name, State.HINT, verdict.reason, "a newer kernel is faster; nothing is wrong without")


def _sysctl(path: str) -> int | None:
    try:
        return int((_SYSCTL / path).read_text())
    except (OSError, ValueError):
        return None


def try_directory(directory: Path, octets: int = 0) -> str:
    """Make a directory with its parents and a file of so many octets in it, and remove what was made; what that tells.

    Permissions alone tell less: nobody can make anything below /proc, or on a disk that is full. OSError.
    """
    made: list[Path] = []
    try:
        for path in (*reversed(directory.parents), directory):
            if not path.exists():
                path.mkdir(mode=0o700)
                made.append(path)
        with tempfile.TemporaryFile(dir=directory, buffering=0) as trial:
            # a full disk lets empty files be made
            trial.write(bytes(octets))
    finally:
        for path in reversed(made):
            # somebody else may use it by now
            with suppress(OSError):
                path.rmdir()
    return "can be made" if made else "is writable"


def missing(name: str, error: BackendError) -> Requirement:
    """What the daemon would say, as a line."""
    return Requirement(name, State.MISSING, error.message, error.remedy or "see the kernel log")
