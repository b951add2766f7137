"""ICMP errors judged by the packet that they quote (RFC 4301 section 6.2).

A router whose own address is in no selector says "fragmentation needed", "time exceeded", "unreachable". What it says
belongs to the SA that would carry an answer to the packet which its error quotes, and goes through that one if policy
and SA have ``icmp``. Both engines do it alike:

1. It is for what would be dropped: outbound a packet that matches no policy, inbound one that matches none of the SA's
   selectors. What a BYPASS or DISCARD policy matches stays that policy's, and so does a fragment that matches perhaps.
2. Errors are ICMP types 3, 11 and 12, and ICMPv6 types 1 to 4; not redirects, which are for the next host alone, nor
   source quench, which nobody heeds (RFC 6633). They come whole: a fragment is none.
3. The quoted packet begins behind 8 octets of ICMP and is of the same family. All of its header has to be there, IPv6
   extension headers too, and ports if its protocol has them (RFC 792 quotes 8 octets behind the header). Up to
   ``QUOTED_MAX`` octets are looked at. The quoted length may say more than that; what it leaves out is not looked at
   (RFC 4884 puts other things there).
4. The quoted packet's source has to be the error's destination: only where an error comes from is beyond the
   selectors, not whom it reaches. Section 6.2 does not ask for that, but every true error is so (RFC 792).
5. Addresses and ports of the quoted packet change places; types of ICMP stay. A later fragment has no ports, and a
   match that depends on them is none. What a quoted error quotes is not looked at.
6. Outbound, the first policy that matches decides, as for any packet. If it is none that protects, or has no
   ``icmp``, or no SA, the error is dropped as one that matches no policy; no SA is asked for.
"""

from __future__ import annotations

from ipsec.errors import ParseError
from ipsec.esp.spd import Flow, shown_flow
from ipsec.wire.ip import ICMP, ICMPV6, IPV4_HEADER, IPV6_HEADER, Fragment, IpPacket, parse_packet

ICMP_HEADER = 8
QUOTED_MAX = 1232
"octets that an ICMPv6 error can quote (RFC 4443 section 2.4 (c))"
_ERRORS = {4: (ICMP, frozenset((3, 11, 12))), 6: (ICMPV6, frozenset((1, 2, 3, 4)))}


def quoted_flow(error: IpPacket) -> Flow | None:
    """What would come back for the packet that ``error`` quotes.

    None if it is no such error, or its quote says too little, or something else than the error.
    """
    protocol, kinds = _ERRORS[error.version]
    if error.fragment is not Fragment.NONE or error.protocol != protocol or error.ports is None:
        return None
    if error.ports[0] >> 8 not in kinds:
        return None
    quote = error.data[error.l4_offset + ICMP_HEADER :][:QUOTED_MAX]
    try:
        quoted = parse_packet(_end_quote(quote))
    except ParseError:
        return None
    if quoted.source != error.destination:
        return None
    flow = shown_flow(quoted)
    ports = (flow.ports[1], flow.ports[0]) if flow.ports else None
    return Flow(flow.destination, flow.source, flow.protocol, ports, flow.hidden)


def _end_quote(quote: bytes) -> bytes:
    """The quoted packet, ending where the quote does."""
    at, header, rest = (4, IPV6_HEADER, IPV6_HEADER) if quote[:1] >= b"\x60" else (2, IPV4_HEADER, 0)
    if len(quote) < header or int.from_bytes(quote[at : at + 2], "big") + rest <= len(quote):
        return quote
    return quote[:at] + (len(quote) - rest).to_bytes(2, "big") + quote[at + 2 :]
