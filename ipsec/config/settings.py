"""The section ``ipsecd { }``: what concerns the daemon and its data path, not one SA.

The fields are the keys, the strings below them their documentation.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Interface, IPv6Interface, ip_address
from typing import NamedTuple

from ipsec.config.grammar import Section
from ipsec.config.values import (
    IpAddress,
    Switch,
    error_at,
    list_of,
    number_in,
    one_of,
    parse_address,
    parse_bool,
    parse_interface,
    parse_switch,
    parse_time,
    quoted,
    read_keys,
)
from ipsec.errors import ConfigError
from ipsec.ike.eap.names import TlsVersion
from ipsec.ike.radius.server import RadiusServer

ANY_ADDRESSES = (ip_address("0.0.0.0"), ip_address("::"))


VICI_SOCKET = "/var/run/charon.vici"
"where strongSwan's clients look for their daemon"


class BackendKind(Enum):
    """What carries packets."""

    USERSPACE = "userspace"
    "TUN device and sockets"
    MEMORY = "memory"
    "nothing outside this process: for tests and trials without privileges"


class Setup(Enum):
    """Who makes the device, its addresses and the routes to it."""

    AUTO = "auto"
    OWN = "own"
    "the daemon; it needs CAP_NET_ADMIN"
    PREPARED = "prepared"
    "``ipsecd --prepare``, or the operator; the daemon then needs no capability"


class EventLoopKind(Enum):
    """Which event loop drives the daemon."""

    AUTO = "auto"
    UVLOOP = "uvloop"
    ASYNCIO = "asyncio"


class ProviderKind(Enum):
    """Which library does the data path's cryptography."""

    AUTO = "auto"
    IPSEC_MB = "ipsec-mb"
    LIBCRYPTO = "libcrypto"
    AVX512 = "avx512"
    VAES = "vaes"
    COPY = "copy"
    "no cipher at all, for benchmarks: the engine refuses it outside of one"


class LogFormat(Enum):
    """What a line of the log looks like."""

    TEXT = "text"
    JSON = "json"


class LogLevel(Enum):
    """The least severe messages that are logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True)
class OffloadSettings:
    """``ipsecd.offload { }``: auto probes at start and logs what it found; yes insists; no is off."""

    tun_tso: Switch = Switch.AUTO
    "read and write TCP superframes of up to 64 KiB on the TUN device"
    tun_uso: Switch = Switch.AUTO
    "read and write UDP superframes on the TUN device (Linux 6.2)"
    udp_gso: Switch = Switch.AUTO
    "send a train of ESP packets with one call (UDP_SEGMENT)"
    udp_gro: Switch = Switch.AUTO
    "receive trains of ESP packets with one call (UDP_GRO)"
    coalesce_tcp: Switch = Switch.AUTO
    "join decrypted TCP segments before they are written to the TUN device; needs tun_tso"
    coalesce_udp: Switch = Switch.AUTO
    "join decrypted UDP datagrams of one flow before they are written to the TUN device; needs tun_uso"


class Readiness(Enum):
    """What ``/readyz`` asks of the children that are to be up (``start_action`` with ``start``)."""

    UP = "up"
    ONCE = "once"


class Listen(NamedTuple):
    """Where the HTTP endpoint listens."""

    address: IpAddress
    port: int

    def __str__(self) -> str:
        return f"[{self.address}]:{self.port}" if self.address.version == 6 else f"{self.address}:{self.port}"


@dataclass(frozen=True)
class HttpSettings:
    """``ipsecd.http { }``: metrics and health for those who can reach it; nobody is asked who he is."""

    listen: tuple[Listen, ...] = ()
    "address:port, [address]:port, or a port of 127.0.0.1; several with commas; 'none' (here empty): no endpoint"
    ready: Readiness = Readiness.UP
    "ready is when each child with start_action = start is up (up), or has been since the daemon started (once)"
    torilabs_names: bool = False
    "also the metrics that torilabs/ipsec-prometheus-exporter has, under its names: for dashboards made for it"


@dataclass(frozen=True)
class RadiusSettings:
    """``ipsecd.radius { }``: who says whether a peer is who it says, for ``auth = eap-radius``."""

    accounting: bool = False
    "tell the servers when a user is connected, what has passed, and when he is gone (RFC 2866)"
    accounting_interval: float = 0.0
    "seconds between records of a user meanwhile, where the server does not say (Acct-Interim-Interval); 0: none"
    servers: tuple[RadiusServer, ...] = ()
    "a section with one for each server, by name"


@dataclass(frozen=True)
class DaemonSettings:
    """``ipsecd { }``."""

    backend: BackendKind = BackendKind.USERSPACE
    "userspace: TUN device and sockets; memory: nothing outside the process, for trials"
    device: str = "ipsec0"
    "name of the TUN device; it is created unless it is there already"
    setup: Setup = Setup.AUTO
    "own: ipsecd makes device, addresses and routes; prepared: they are there; auto sees what is possible"
    namespace: str = ""
    "network namespace for device, addresses and routes: a name of ip-netns(8) or /proc/PID/ns/net; sockets stay here"
    mtu: int = 0
    "MTU of the device in octets, 576..65535; 0 takes what path_mtu leaves inside ESP for the suites in use"
    path_mtu: int = 1500
    "octets of the largest IP packet on the way to a peer, 576..65535; each SA may say otherwise"
    addresses: tuple[IPv4Interface | IPv6Interface, ...] = ()
    "addresses to put on the device, with prefix: 10.1.0.1/24, fd00::1/64"
    workers: int | None = 1
    "threads that move packets; 0: the event loop; 'auto' (here None): one per CPU, at most 4, none with one CPU"
    event_loop: EventLoopKind = EventLoopKind.AUTO
    "auto is uvloop where it is installed"
    port_nat_t: int = 4500
    "UDP port for ESP in UDP (RFC 3948), unless the SAs name another local_port, the same for all"
    listen: tuple[IpAddress, ...] = ANY_ADDRESSES
    "local addresses to send and receive on; %any is all of both families, 0.0.0.0 and :: all of one"
    raw_esp: Switch = Switch.AUTO
    "open sockets for ESP without UDP (IP protocol 50, needs CAP_NET_RAW); auto does so if an SA has encap = no"
    install_routes: bool = True
    "set the device up, with MTU and addresses, and route the remote selectors into it; no: all that is yours to do"
    routing_table: int = 220
    "table for those routes, 1..2^32-1; 254 is the main table"
    routing_priority: int = 220
    "priority of the rule that leads to the table, 1..2^32-1"
    fwmark: int = 0
    "mark on our own packets, which keeps them out of the tunnel; 0: 0x69700000 + routing_table, unless a rule knows it"
    tun_queue_length: int = 1000
    "packets the kernel queues for us on the device, 1..1000000"
    crypto_provider: ProviderKind = ProviderKind.AUTO
    "auto takes the fastest for each suite that passes its known-answer test; libcrypto does every suite"
    busy_poll_us: int = 0
    "microseconds to poll the sockets before sleeping, 0..1000000; lower latency for processor time"
    peer_socket: bool = True
    "with one worker: a socket of its own for the peer that most packets go to, which spares looking up the way to it"
    mss_clamp: bool = True
    "lower the MSS of TCP SYNs to what fits through the tunnel unfragmented"
    allow_weak: bool = False
    "accept algorithms that RFC 8221 advises against: 3des"
    fail_closed: bool = True
    "drop what the tunnels protect when the device is gone or down; no lets that out in clear. A clean stop ends it"
    state_dir: str = "/var/lib/ipsecd"
    "directory where sequence numbers of manual SAs survive restarts, so that no IV comes twice (RFC 4106 section 10)"
    watch_files: Switch = Switch.AUTO
    "read the configuration again when one of its files changes; auto: if one is in a read-only mount, as in containers"
    log_level: LogLevel = LogLevel.INFO
    "debug, info, warning or error"
    log_format: LogFormat = LogFormat.TEXT
    "text for people, json for programs: one object per line"
    port: int = 500
    "UDP port for IKE, 0 for none: then IKE uses port_nat_t from the first message on"
    retransmit_tries: int = 5
    "how often a request is sent again before the peer is given up"
    retransmit_timeout: float = 4.0
    "seconds before a request is sent again for the first time"
    retransmit_base: float = 1.8
    "each wait is this many times the one before"
    retransmit_limit: float = 0.0
    "seconds that no wait exceeds, 0 for no limit"
    half_open_timeout: float = 30.0
    "seconds for an initiator to authenticate itself"
    cookie_threshold: int = 30
    "half-open IKE_SAs in all from which on initiators have to show a cookie; 0: always"
    cookie_threshold_ip: int = 3
    "the same for one address"
    half_open_limit: int = 2000
    "half-open IKE_SAs at any time"
    ike_sa_limit: int = 0
    "IKE_SAs in all, 0 for no limit"
    keep_alive: float = 20.0
    "seconds between NAT keepalives while nothing else is sent, 0 for none (RFC 3948 section 4)"
    fragment_size: int = 1280
    "octets of the largest IP packet with a part of an IKE message (RFC 7383)"
    tls_version_max: TlsVersion = TlsVersion.TLS_1_3
    "the newest TLS that EAP-TLS agrees to, 1.2 for peers whose TLS 1.3 is older than RFC 9190, as libreswan's"
    delete_rekeyed_delay: float = 5.0
    "seconds that a replaced inbound SA still takes packets which are on their way"
    make_before_break: bool = True
    "re-authentication makes the new IKE_SA before it closes the old one"
    follow_redirects: bool = True
    "go where a gateway sends us (RFC 5685)"
    redirect_to: str = ""
    "another gateway, address or name, that all initiators are sent to"
    keylog: str = ""
    "directory for Wireshark's key files: whoever reads them reads all traffic"
    vici_socket: str = VICI_SOCKET
    "Unix socket for swanctl and other clients of vici; 'none' (here empty): no socket"
    vici_group: str = ""
    "group that may use the socket besides the daemon's user; empty: the daemon's own"
    vici_mode: int = 0o660
    "permissions of the socket, octal; whoever can write to it controls the daemon"
    vici_tcp: Listen | None = None
    "127.0.0.1:4502 or [::1]:4502: vici over TCP as well, for every user of this host; 'none' (here None): not"
    offload: OffloadSettings = OffloadSettings()
    "a section: which kernel offloads to use"
    http: HttpSettings = HttpSettings()
    "a section: metrics and health over HTTP"
    radius: RadiusSettings = RadiusSettings()
    "a section: RADIUS servers, which peers with EAP authenticate themselves to"


#: octets: a shorter secret of RADIUS is worth a warning
_SHORT_SECRET = 16

#: that the data path has room for (MAX_WORKERS of fast/worker.pxd)
WORKERS_MAX = 64


def _parse_device(text: str) -> str:
    # 15 octets is IFNAMSIZ without its NUL; % would make the kernel choose a number
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,15}", text) or text in (".", ".."):
        raise ConfigError(f"{quoted(text)} is not a device name of 1..15 letters, digits, '_', '-', '.'")
    if text == "lo":
        raise ConfigError("'lo' is the loopback device, name another")
    return text


def _parse_namespace(text: str) -> str:
    if not re.fullmatch(r"(/[^/\0]+)+|[^/\0]{1,255}", text) or text in (".", ".."):
        raise ConfigError(f"{quoted(text)} is neither the name of a network namespace nor an absolute path")
    return text


def _parse_workers(text: str) -> int | None:
    return None if text.lower() == "auto" else number_in(0, WORKERS_MAX)(text)


def _parse_listen(text: str) -> tuple[IpAddress, ...]:
    if text == "%any":
        return ANY_ADDRESSES
    addresses = list_of(parse_address)(text)
    for address in addresses:
        if addresses.count(address) > 1:
            raise ConfigError(f"{address} is there twice")
        if not address.is_unspecified and ANY_ADDRESSES[address.version == 6] in addresses:
            raise ConfigError(f"{ANY_ADDRESSES[address.version == 6]} includes {address}, remove one of them")
    return addresses


def _parse_seconds(low: float, high: float) -> Callable[[str], float]:
    """A parser for seconds, with a fraction or a unit."""

    def parse(text: str) -> float:
        value = float(text) if re.fullmatch(r"[0-9]{1,9}\.[0-9]{1,9}", text) else float(parse_time(text))
        if not low <= value <= high:
            raise ConfigError(f"{quoted(text)} is not in {low:g}..{high:g}")
        return value

    return parse


def _parse_factor(text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,2}(\.[0-9]{1,9})?", text) or not 1 <= float(text) <= 10:
        raise ConfigError(f"{quoted(text)} is not a number in 1..10 such as 1.8")
    return float(text)


def _parse_gateway(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9.:-]{1,253}", text):
        raise ConfigError(f"{quoted(text)} is not an address or the name of a host")
    return text


def _parse_directory(text: str) -> str:
    if not text.startswith("/"):
        raise ConfigError(f"{quoted(text)} is not an absolute path")
    return text


def _parse_socket(text: str) -> str:
    """An absolute path, also in strongSwan's form unix:///path; ``none`` as well as nothing is none."""
    path = text.removeprefix("unix://")
    if not path or path == "none":
        return ""
    # sun_path is 108 octets with its NUL (unix(7))
    if not path.startswith("/") or len(path.encode()) > 107:
        raise ConfigError(f"{quoted(text)} is not an absolute path of at most 107 octets, or none")
    return path


def _parse_mode(text: str) -> int:
    if not re.fullmatch(r"0?[0-7]{3}", text):
        raise ConfigError(f"{quoted(text)} is not an octal mode such as 0660")
    return int(text, 8)


def _parse_provider(text: str) -> ProviderKind:
    # whoever mistypes a provider must not be shown one that leaves packets in clear
    unnamed = () if os.environ.get("IPSEC_BENCH_NULL_CIPHER") == "1" else (ProviderKind.COPY,)
    return one_of(ProviderKind, unnamed=unnamed)(text)


def _parse_group(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,32}", text):
        raise ConfigError(f"{quoted(text)} is not the name of a group")
    return text


def _parse_endpoint(text: str) -> Listen:
    match = re.fullmatch(r"(?:(?P<v4>[0-9.]+):|\[(?P<v6>[0-9a-fA-F:.]+)\]:)?(?P<port>[0-9]{1,5})", text)
    if match is None:
        raise ConfigError(f"{quoted(text)} is not address:port, [address]:port or a port")
    address = parse_address(match["v4"] or match["v6"] or "127.0.0.1")
    return Listen(address, number_in(1, 65535)(match["port"]))


def _parse_loopback(text: str) -> Listen | None:
    if text == "none":
        return None
    endpoint = _parse_endpoint(text)
    if not endpoint.address.is_loopback:
        raise ConfigError(f"{endpoint.address} is not an address of this host alone, as 127.0.0.1 and ::1 are")
    return endpoint


def _parse_endpoints(text: str) -> tuple[Listen, ...]:
    found = list_of(_parse_endpoint)(text) if text != "none" else ()
    for endpoint in found:
        if found.count(endpoint) > 1:
            raise ConfigError(f"{endpoint} is there twice")
    return found


def _parse_radius_secret(text: str) -> bytes:
    if not text:
        raise ConfigError("the secret is empty")
    return text.encode()


def _parse_nas_identifier(text: str) -> str:
    # RFC 2865 section 5.32
    if not 1 <= len(text.encode()) <= 253:
        raise ConfigError(f"{len(text.encode())} octets, a NAS-Identifier has 1 to 253")
    return text


_HTTP_KEYS: dict[str, Callable[[str], object]] = {
    "listen": _parse_endpoints,
    "ready": one_of(Readiness),
    "torilabs_names": parse_bool,
}

_RADIUS_SERVER_KEYS: dict[str, Callable[[str], object]] = {
    "address": _parse_gateway,
    "secret": _parse_radius_secret,
    "auth_port": number_in(1, 65535),
    "preference": number_in(0, 1_000_000),
    "sockets": number_in(1, 64),
    "retransmit_tries": number_in(0, 100),
    "retransmit_timeout": _parse_seconds(0.1, 60),
    "retransmit_base": _parse_factor,
    "acct_port": number_in(1, 65535),
    "nas_identifier": _parse_nas_identifier,
}

_RADIUS_KEYS: dict[str, Callable[[str], object]] = {
    "accounting": parse_bool,
    "accounting_interval": _parse_seconds(0, 7 * 86400),
}

_OFFLOAD_KEYS = dict.fromkeys(
    ("tun_tso", "tun_uso", "udp_gso", "udp_gro", "coalesce_tcp", "coalesce_udp"), parse_switch
)

_KEYS: dict[str, Callable[[str], object]] = {
    "backend": one_of(BackendKind),
    "device": _parse_device,
    "setup": one_of(Setup),
    "namespace": _parse_namespace,
    "mtu": number_in(576, 65535, also=(0,)),
    "path_mtu": number_in(576, 65535),
    "addresses": list_of(parse_interface),
    "workers": _parse_workers,
    "event_loop": one_of(EventLoopKind),
    "port_nat_t": number_in(1, 65535),
    "listen": _parse_listen,
    "raw_esp": parse_switch,
    "install_routes": parse_bool,
    "routing_table": number_in(1, 0xFFFFFFFF),
    "routing_priority": number_in(1, 0xFFFFFFFF),
    "fwmark": number_in(0, 0xFFFFFFFF),
    "tun_queue_length": number_in(1, 1_000_000),
    "crypto_provider": _parse_provider,
    "busy_poll_us": number_in(0, 1_000_000),
    "peer_socket": parse_bool,
    "mss_clamp": parse_bool,
    "allow_weak": parse_bool,
    "fail_closed": parse_bool,
    "state_dir": _parse_directory,
    "watch_files": parse_switch,
    "log_level": one_of(LogLevel),
    "log_format": one_of(LogFormat),
    "port": number_in(0, 65535),
    "retransmit_tries": number_in(0, 100),
    "retransmit_timeout": _parse_seconds(0.1, 3600),
    "retransmit_base": _parse_factor,
    "retransmit_limit": _parse_seconds(0, 3600),
    "half_open_timeout": _parse_seconds(1, 3600),
    "cookie_threshold": number_in(0, 1_000_000),
    "cookie_threshold_ip": number_in(0, 1_000_000),
    "half_open_limit": number_in(1, 1_000_000),
    "ike_sa_limit": number_in(0, 10_000_000),
    "keep_alive": _parse_seconds(0, 3600),
    "fragment_size": number_in(256, 65535),
    "tls_version_max": one_of(TlsVersion),
    "delete_rekeyed_delay": _parse_seconds(0, 3600),
    "make_before_break": parse_bool,
    "follow_redirects": parse_bool,
    "redirect_to": _parse_gateway,
    "keylog": _parse_directory,
    "vici_socket": _parse_socket,
    "vici_group": _parse_group,
    "vici_mode": _parse_mode,
    "vici_tcp": _parse_loopback,
}


def _no_contradiction(section: Section, offload: OffloadSettings) -> None:
    for key, on, needed, there in (
        ("coalesce_tcp", offload.coalesce_tcp, "tun_tso", offload.tun_tso),
        ("coalesce_udp", offload.coalesce_udp, "tun_uso", offload.tun_uso),
    ):
        if on is Switch.YES and there is Switch.NO:
            raise error_at(section, key, f"this needs {needed}, which is off")


def read_settings(section: Section) -> DaemonSettings:
    """The settings that ``ipsecd { }`` describes."""
    values = read_keys(section, _KEYS, sections=("offload", "http", "radius"))
    if "offload" in section.sections:
        values["offload"] = OffloadSettings(**read_keys(section.sections["offload"], _OFFLOAD_KEYS))
        _no_contradiction(section.sections["offload"], values["offload"])
    if "http" in section.sections:
        values["http"] = HttpSettings(**read_keys(section.sections["http"], _HTTP_KEYS))
    if "radius" in section.sections:
        radius = section.sections["radius"]
        own = read_keys(radius, _RADIUS_KEYS, sections=("servers",))
        values["radius"] = RadiusSettings(**own, servers=_read_radius_servers(radius))
    return DaemonSettings(**values)


def _read_radius_servers(section: Section) -> tuple[RadiusServer, ...]:
    if "servers" not in section.sections:
        return ()
    found: list[RadiusServer] = []
    top = section.sections["servers"]
    read_keys(top, {}, sections=top.sections)
    for name, server in top.sections.items():
        values = read_keys(server, _RADIUS_SERVER_KEYS)
        for key in ("address", "secret"):
            if key not in values:
                raise error_at(server, key, "a RADIUS server needs this key")
        found.append(RadiusServer(name, **values))
        for other in found[:-1]:
            if (other.address, other.auth_port) == (found[-1].address, found[-1].auth_port):
                raise error_at(server, "address", f"{other} is there already")
    return tuple(found)


def radius_servers(ipsecd: Section) -> Section:
    """``radius { servers { } }``; an empty section if it is not there."""
    radius = ipsecd.sections.get("radius")
    return (radius and radius.sections.get("servers")) or Section("", ipsecd.file, 1)


def radius_warnings(ipsecd: Section) -> list[str]:
    """RADIUS secrets that are easily guessed."""
    # who hears one packet can try all secrets offline; RFC 2865 section 3 would have 16 octets at least
    why = f"shorter than {_SHORT_SECRET} octets: who hears a packet can find it by trying"
    servers = radius_servers(ipsecd).sections.values()
    short = [one for one in servers if len((one.values["secret"].text or "").encode()) < _SHORT_SECRET]
    return [str(error_at(server, "secret", why)) for server in short]
