"""Between ESP packets and whole outer IP packets, for those who use the library without a device."""

from __future__ import annotations

from ipsec.esp.engine import Sealed
from ipsec.esp.sa import IpAddress, SaParams
from ipsec.wire.ip import OuterPacket, emit_outer, parse_outer


def outer_packet(sealed: Sealed, params: SaParams) -> bytes:
    """The whole outer IPv4 or IPv6 packet, with UDP if the SA has it, for what ``params``'s SA sealed."""
    # without DF an identification must not repeat (RFC 6864 section 4.3); sequence numbers do not either
    identification = 0 if sealed.df else int.from_bytes(sealed.datagram[6:8], "big")
    packet = OuterPacket(params.local, params.remote, sealed.tos, sealed.df, params.encap, sealed.datagram)
    return emit_outer(packet, identification)


def open_outer(data: bytes) -> tuple[bytes, int, tuple[IpAddress, int]]:
    """What ``EspEngine.inbound`` wants of an outer packet: (datagram, tos, source). ParseError if it is none."""
    packet = parse_outer(data)
    return packet.payload, packet.tos, (packet.source, packet.ports[0] if packet.ports else 0)
