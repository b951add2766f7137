"""Engines under test, keys, SAs and packets that the ESP tests share."""

from __future__ import annotations

import struct
from hashlib import shake_256
from ipaddress import ip_address, ip_network
from typing import Any

from ipsec.crypto.suites import EspSuite, all_esp_suites, esp_suite
from ipsec.esp.fast import Engine as FastEngine
from ipsec.esp.reference import ReferenceEngine
from ipsec.esp.sa import Action, Direction, IpAddress, Policy, SaParams
from ipsec.wire.ip import checksum, ip_header, pseudo_header_sum
from ipsec.wire.selector import ANY_PORT, SelectorPair, TrafficSelector

ENGINES: list[Any] = [ReferenceEngine, FastEngine]
SUITES = all_esp_suites()
SUITE_NAMES = [suite.name for suite in SUITES]
GCM = esp_suite("aes128gcm16")

ADDRESSES = {4: ("192.0.2.1", "198.51.100.7"), 6: ("2001:db8::1", "2001:db8:ffff::7")}
INNER = {4: ("10.1.0.5", "10.2.0.9"), 6: ("fd01::5", "fd02::9")}
SPI = 0x1000
NOW = 100.0


def keys(suite: EspSuite, seed: str = "") -> dict[str, bytes]:
    """Key arguments of SaParams: fixed octets for each suite and seed."""
    stream = shake_256(f"{suite.name}/{seed}".encode()).digest(suite.key_len + suite.integ_key_len)
    return {"encr_key": stream[: suite.key_len], "integ_key": stream[suite.key_len :]}


def params(direction: Direction, suite: EspSuite | str = GCM, outer: int = 4, **fields: Any) -> SaParams:
    """One end of an SA; the same fields with the other direction make its peer."""
    suite = esp_suite(suite) if isinstance(suite, str) else suite
    local, remote = (ip_address(text) for text in ADDRESSES[outer])
    if direction is Direction.IN:
        local, remote = remote, local
        if fields.get("encap"):
            fields["encap"] = fields["encap"][::-1]
    base: dict[str, Any] = {"spi": SPI, "local": local, "remote": remote, **keys(suite), **fields}
    return SaParams(direction=direction, suite=suite, **base)


class Tunnel:
    """A sender and a receiver engine with one SA from the one to the other."""

    def __init__(self, engine: Any, suite: EspSuite | str = GCM, outer: int = 4, **fields: Any) -> None:
        only_in = {key: fields.pop(key) for key in ("selectors", "follow_peer") if key in fields}
        receiver_suite = fields.pop("receiver", {})
        self.sender = engine()
        self.receiver = engine()
        self.out = self.sender.add_sa(params(Direction.OUT, suite, outer, **fields))
        self.into = self.receiver.add_sa(params(Direction.IN, suite, outer, **{**fields, **receiver_suite, **only_in}))

    def seal(self, packet: bytes, now: float = NOW) -> Any:
        return self.sender.encapsulate(self.out, packet, now)

    def open(self, datagram: bytes, now: float = NOW, **kwargs: Any) -> Any:
        return self.receiver.inbound(datagram, now, **kwargs)

    def send(self, packet: bytes, now: float = NOW, **kwargs: Any) -> Any:
        return self.open(self.seal(packet, now).datagram, now, **kwargs)


def udp(
    payload: bytes = b"payload",
    version: int = 4,
    *,
    source: str | None = None,
    destination: str | None = None,
    ports: tuple[int, int] = (1000, 2000),
    tos: int = 0,
    df: bool = False,
    identification: int = 7,
) -> bytes:
    """A UDP packet with good checksums."""
    addresses = _addresses(version, source, destination)
    segment = struct.pack("!HHHH", *ports, 8 + len(payload), 0) + payload
    value = checksum(segment, pseudo_header_sum(*addresses, 17, len(segment))) or 0xFFFF
    segment = segment[:6] + struct.pack("!H", value) + segment[8:]
    return ip(17, segment, version, addresses=addresses, tos=tos, df=df, identification=identification)


def tcp_syn(version: int = 4, options: bytes = b"\x02\x04\x05\xb4", flags: int = 2, payload: bytes = b"") -> bytes:
    """A TCP SYN with good checksums; ``options`` is padded with EOL."""
    addresses = _addresses(version, None, None)
    options += b"\0" * (-len(options) % 4)
    segment = struct.pack("!HHIIBBHHH", 1000, 80, 1, 0, (5 + len(options) // 4) << 4, flags, 65535, 0, 0)
    segment += options + payload
    value = checksum(segment, pseudo_header_sum(*addresses, 6, len(segment)))
    return ip(6, segment[:16] + struct.pack("!H", value) + segment[18:], version, addresses=addresses)


def ip(
    protocol: int,
    payload: bytes,
    version: int = 4,
    *,
    addresses: tuple[IpAddress, IpAddress] | None = None,
    tos: int = 0,
    df: bool = False,
    identification: int = 7,
) -> bytes:
    """Any IP packet."""
    source, destination = addresses or _addresses(version, None, None)
    header = ip_header(source, destination, protocol, len(payload), tos=tos, df=df, identification=identification)
    return header + payload


def icmp_error(
    kind: int, quote: bytes, version: int = 4, *, source: str, destination: str, code: int = 0, rest: int = 0
) -> bytes:
    """An ICMP or ICMPv6 error with a good checksum."""
    addresses = _addresses(version, source, destination)
    message = struct.pack("!BBHI", kind, code, 0, rest) + quote
    initial = pseudo_header_sum(*addresses, 58, len(message)) if version == 6 else 0
    message = message[:2] + checksum(message, initial).to_bytes(2, "big") + message[4:]
    return ip(58 if version == 6 else 1, message, version, addresses=addresses)


def ipv4_fragment(packet: bytes, offset: int, more: bool, payload: bytes) -> bytes:
    """A fragment with the header of ``packet``."""
    word = offset // 8 | (0x2000 if more else 0)
    head = packet[:2] + struct.pack("!H", 20 + len(payload)) + packet[4:6] + struct.pack("!H", word)
    head += packet[8:10] + b"\0\0" + packet[12:20]
    return head[:10] + checksum(head).to_bytes(2, "big") + head[12:] + payload


def ipv6_fragment(offset: int, more: bool, payload: bytes, *, protocol: int = 17, identification: int = 7) -> bytes:
    """An IPv6 packet with a fragment header."""
    return ip(44, struct.pack("!BBHI", protocol, 0, offset | more, identification) + payload, 6)


def _addresses(version: int, source: str | None, destination: str | None) -> tuple[IpAddress, IpAddress]:
    return ip_address(source or INNER[version][0]), ip_address(destination or INNER[version][1])


def selector(network: str, protocol: int = 0, ports: tuple[int, int] = ANY_PORT) -> TrafficSelector:
    """A selector from a prefix."""
    parsed = ip_network(network)
    return TrafficSelector(parsed[0], parsed[-1], protocol, ports)


def pair(local: str = "0.0.0.0/0", remote: str = "0.0.0.0/0", protocol: int = 0, **ports: Any) -> SelectorPair:
    """A selector pair; ``local_ports`` and ``remote_ports`` are ranges."""
    local_ports, remote_ports = ports.get("local_ports", ANY_PORT), ports.get("remote_ports", ANY_PORT)
    return SelectorPair(selector(local, protocol, local_ports), selector(remote, protocol, remote_ports))


ANY4 = pair()
ANY6 = pair("::/0", "::/0")
PROTECT_ALL = Policy(Action.PROTECT, (ANY4, ANY6), reqid=1)


def gateway(engine: Any, suite: EspSuite | str = GCM, outer: int = 4, *, options: Any = None, **fields: Any) -> Any:
    """An engine that protects everything with one outbound SA; (engine, SA id)."""
    made = engine(**(options or {}))
    made.set_policies([PROTECT_ALL])
    return made, made.add_sa(params(Direction.OUT, suite, outer, **{"reqid": 1, **fields}))


def opener(engine: Any, suite: EspSuite | str = GCM, outer: int = 4, **fields: Any) -> Any:
    """An engine with the inbound SA that fits ``gateway``'s, which leaves packets as they are."""
    made = engine(mss_clamp=False)
    made.add_sa(params(Direction.IN, suite, outer, **fields))
    return made


def forge(suite: EspSuite | str, plaintext: bytes, seq: int = 1, *, esn: bool = False, seed: str = "") -> bytes:
    """An authentic ESP packet with any plaintext, trailer included: what only a peer gone bad would send."""
    from ipsec.crypto.cipher import EspCipher

    suite = esp_suite(suite) if isinstance(suite, str) else suite
    cipher = EspCipher(suite, **keys(suite, seed))
    return struct.pack("!II", SPI, seq & 0xFFFFFFFF) + cipher.seal(SPI, seq, esn, plaintext)


def trailer(payload: bytes, next_header: int, block: int = 4) -> bytes:
    """``payload`` with proper padding and trailer."""
    pad = -(len(payload) + 2) % block
    return payload + bytes(range(1, pad + 1)) + bytes((pad, next_header))


def transport_packet(outer: int, payload: bytes = b"x" * 32, protocol: int = 17, **kwargs: Any) -> bytes:
    """A packet from an SA's local to its remote address."""
    source, destination = ADDRESSES[outer]
    if protocol == 17:
        return udp(payload, outer, source=source, destination=destination, **kwargs)
    return ip(protocol, payload, outer, addresses=(ip_address(source), ip_address(destination)), **kwargs)
