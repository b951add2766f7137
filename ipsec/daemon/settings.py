"""What a configuration means for the backend and for IKEv2; exit codes."""

from __future__ import annotations

import contextlib
import logging
import os
from ipaddress import IPv4Interface, IPv6Interface, ip_interface
from pathlib import Path

from ipsec.backend.settings import MemoryEnds, UserspaceSettings
from ipsec.config import Config
from ipsec.config.settings import ANY_ADDRESSES, VICI_SOCKET, BackendKind, DaemonSettings, Setup
from ipsec.config.values import Switch
from ipsec.daemon.needs import Need, Prepared, needs, refuse
from ipsec.errors import ConfigError
from ipsec.ike.config import IkeSettings
from ipsec.net import marks, udp
from ipsec.net.inherited import Inherited
from ipsec.net.rtnetlink import may_configure
from ipsec.net.tun import device_exists

log = logging.getLogger(__name__)

#: cgroup v2, as seen from inside a container
CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
#: more have not been measured
MAX_AUTO_WORKERS = 4


def say_limits(config: Config, settings: UserspaceSettings, *, trial: bool = False) -> None:
    """Log where the mark is another than the configuration says, and what cannot be done here.

    ``trial``: nothing begins, so that a mark that nothing needs yet is not used.
    """
    needed = Need.MARK in needs(config)
    if settings.prepared and config.settings.fwmark:
        log.warning("ipsecd.fwmark is not used: a mark needs a capability, and what was prepared needs no mark")
    elif settings.fwmark != config.settings.fwmark and (needed or not trial):
        _say_mark(settings, needed=needed)
    prepared = Prepared(settings)
    for connection in config.connections:
        try:
            refuse(connection, settings, prepared=prepared)
        except ConfigError as error:
            log.warning("%s", error)


def _say_mark(settings: UserspaceSettings, *, needed: bool) -> None:
    """Whoever writes rules of his own has to know: what bears the mark goes around the tunnels."""
    usual = marks.default_mark(settings.routing_table)
    why = "policies cover the outer addresses, drop or bypass" if needed else "what is loaded later may need it"
    log.info("our own packets bear mark %#x, because %s", settings.fwmark, why)
    if settings.fwmark != usual:
        log.warning(
            "there is a routing rule for mark %#x: ours is %#x; ipsecd.fwmark chooses one for good",
            usual,
            settings.fwmark,
        )


def backend_settings(
    config: Config, ends: MemoryEnds | None = None, inherited: Inherited | None = None
) -> UserspaceSettings:
    """What the configuration means for the user-space backend. ConfigError if it asks for what that cannot do."""
    settings = config.settings
    inherited = inherited or Inherited()
    prepared = ends is None and is_prepared(settings, there=inherited.tun_fd is not None)
    if settings.namespace and prepared:
        why = "a device in another namespace cannot be prepared: to go there takes capabilities"
        raise ConfigError(why, file=config.file, key="ipsecd.namespace")
    needed = needs(config)
    # without capabilities there is no mark and no raw socket; what was prepared sees to what they are for
    fwmark = 0 if prepared else settings.fwmark
    bypass = Need.BYPASS in needed and not prepared
    if ends is None and not prepared:
        fwmark = fwmark or _default_mark(settings, needed)
        bypass = bypass or (fwmark != 0 and udp.may_bypass(fwmark))
    # 0.0.0.0 and :: together mean whatever this host has; IPv6 alone may be missing without harm
    listen = () if settings.listen == ANY_ADDRESSES else settings.listen
    return UserspaceSettings(
        device=settings.device,
        mtu=settings.mtu,
        workers=auto_workers() if settings.workers is None else settings.workers,
        listen=listen,
        port=_port(config),
        ike_port=ike_port(config),
        raw_esp=settings.raw_esp is Switch.YES or (settings.raw_esp is Switch.AUTO and config.needs_raw_esp()),
        bypass=bypass,
        install_routes=settings.install_routes and not prepared,
        prepared=prepared,
        tun_fd=inherited.tun_fd,
        inherited=inherited.sockets,
        namespace=settings.namespace if ends is None else "",
        routing_table=settings.routing_table,
        routing_priority=settings.routing_priority,
        fwmark=fwmark,
        peer_inside=Need.MARK in needed,
        queue_length=settings.tun_queue_length,
        addresses=device_addresses(config) if prepared else settings.addresses,
        fail_closed=settings.fail_closed,
        crypto_provider=settings.crypto_provider.value,
        busy_poll_us=settings.busy_poll_us,
        peer_socket=settings.peer_socket,
        mss_clamp=settings.mss_clamp,
        offload={
            name: value is Switch.YES for name, value in vars(settings.offload).items() if value is not Switch.AUTO
        },
        memory=ends,
    )


def _default_mark(settings: DaemonSettings, needed: Need) -> int:
    """The mark of our own packets where none is configured. What is loaded later may need one as well, so there is one
    wherever that may be."""
    if Need.MARK not in needed and (settings.namespace or not udp.may_mark()):
        return 0
    return marks.free_mark(settings.routing_table)


def is_prepared(settings: DaemonSettings, *, there: bool) -> bool:
    """Whether device, addresses and routes are there already and the daemon leaves them alone.

    ``there``: a device was handed down.
    """
    if settings.setup is not Setup.AUTO or not settings.install_routes or settings.namespace:
        return settings.setup is Setup.PREPARED
    return (there or device_exists(settings.device)) and not may_configure()


def device_addresses(config: Config) -> tuple[IPv4Interface | IPv6Interface, ...]:
    """What a prepared device must have: configured addresses, and virtual ones that are known beforehand."""
    known = {address.ip for address in config.settings.addresses}
    virtual = (vip for connection in config.connections for vip in connection.vips if not vip.is_unspecified)
    return (*config.settings.addresses, *(ip_interface(vip) for vip in dict.fromkeys(virtual) if vip not in known))


def vici_wanted(config: Config) -> bool:
    """Whether vici is to be served: a daemon in memory, or one for manual SAs alone, is asked for it explicitly."""
    path = config.settings.vici_socket
    if config.settings.vici_tcp is not None:
        return True
    if path != VICI_SOCKET:
        return bool(path)
    return config.settings.backend is not BackendKind.MEMORY and bool(config.connections or not config.sas)


def may_write(directory: Path) -> bool:
    """Whether files can be made in a directory, or in the parents that it takes."""
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)


def auto_workers() -> int:
    """Worker threads for the processors that this process may use."""
    processors = len(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, ValueError):
        # a container's limit is a share of time, not a set of processors: "200000 100000" is two of them, "max" all
        quota, period = CPU_MAX.read_text("ascii").split()
        processors = min(processors, max(1, round(int(quota) / int(period))))
    # with one processor a thread would only take turns with the event loop
    return min(processors, MAX_AUTO_WORKERS) if processors > 1 else 0


def _port(config: Config) -> int:
    ports = {sa.encap[0] for sa in config.sas if sa.encap}
    if len(ports) > 1:
        text = ", ".join(map(str, sorted(ports)))
        raise ConfigError(f"SAs use several local UDP ports ({text}), one is possible", file=config.file, key="sas")
    return ports.pop() if ports else config.settings.port_nat_t


def ike_port(config: Config) -> int | None:
    """The UDP port for IKE, None if there is none of its own. ConfigError if that is the one of ESP."""
    port = (config.settings.port or None) if config.connections or vici_wanted(config) else None
    if port == _port(config):
        why = f"UDP port {port} is that of ESP (port_nat_t); 0 has IKE use it too, from the first message on"
        raise ConfigError(why, file=config.file, key="ipsecd.port")
    return port


def ike_settings(config: Config, *, port: int, port_nat_t: int, qcd_secret: bytes) -> IkeSettings:
    """What the configuration means for IKEv2, with the ports that the backend has."""
    settings = config.settings
    return IkeSettings(
        **{name: getattr(settings, name) for name in _IKE_NAMES},
        port=port,
        port_nat_t=port_nat_t,
        qcd_secret=qcd_secret,
        force_encapsulation=settings.raw_esp is not Switch.YES,
    )


_IKE_NAMES = (
    *("retransmit_tries", "retransmit_timeout", "retransmit_base", "retransmit_limit", "half_open_timeout"),
    *("cookie_threshold", "cookie_threshold_ip", "half_open_limit", "ike_sa_limit", "keep_alive", "fragment_size"),
    *("tls_version_max", "delete_rekeyed_delay", "make_before_break", "follow_redirects", "redirect_to"),
)
