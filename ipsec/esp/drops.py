"""Why a packet was dropped. Names follow the kernel's /proc/net/xfrm_stat where it has one.

A drop is a counter, never an exception and never a log line. The numbers are shared with the compiled
data path (``ipsec/fast/drops.pxd``); a unit test holds the two together.
"""

from __future__ import annotations

from enum import IntEnum


class DropReason(IntEnum):
    """The reason a packet went no further. ``NONE`` means that it was not dropped."""

    NONE = 0
    # inbound, in packet order
    IN_BUFFER_ERROR = 1
    "the datagram was larger than the receive buffer, or the batch ran out of room"
    IN_HDR_ERROR = 2
    "too short to be ESP under this SA, or SPI 0..255 (RFC 4303 section 2.1)"
    IN_NO_STATES = 3
    "no SA has this SPI; or it came before its SA, and there was no room, or the SA did not come in time"
    IN_STATE_INVALID = 4
    "the SA is not for this direction, or is being removed"
    IN_STATE_EXPIRED = 5
    "the SA's hard lifetime in bytes or packets is used up"
    IN_STATE_SEQ_ERROR = 6
    "replayed, or left of the replay window (RFC 4303 section 3.4.3)"
    IN_STATE_PROTO_ERROR = 7
    "the ICV is wrong"
    IN_PADDING_ERROR = 8
    "pad length beyond the payload, or pad bytes that are not 1, 2, 3, ... (RFC 4303 section 2.4)"
    IN_DUMMY = 9
    "a dummy packet, next header 59 (RFC 4303 section 2.6): good, and nothing to deliver"
    IN_STATE_MODE_ERROR = 10
    "next header does not fit the SA's mode or the inner version"
    IN_INNER_HDR_ERROR = 11
    "the inner IP header contradicts itself or the decrypted length"
    IN_ECN_ERROR = 12
    "outer CE on an inner packet that is not ECN-capable (RFC 6040 section 4.2)"
    IN_TMPL_MISMATCH = 13
    "the inner packet is outside the selectors of its SA (RFC 4301 section 5.2 step 4)"
    IN_FRAGMENT_ERROR = 14
    "a fragment whose ports are not known, under selectors that need them (RFC 4301 section 7)"
    IN_DEVICE_ERROR = 15
    "the TUN device refused the packet"
    # outbound, in packet order
    OUT_HDR_ERROR = 16
    "the packet from the TUN device is malformed"
    OUT_NO_POLS = 17
    "no policy matches"
    OUT_POL_BLOCK = 18
    "a DISCARD policy matches"
    OUT_FRAGMENT_ERROR = 19
    "a fragment whose ports are not known, under policies that need them (RFC 4301 section 7)"
    OUT_BYPASS_ERROR = 20
    "a BYPASS policy matches but there is no way around the tunnel"
    OUT_NO_STATES = 21
    "the policy has no SA yet"
    OUT_STATE_EXPIRED = 22
    "the SA's hard lifetime in bytes or packets is used up"
    OUT_STATE_SEQ_ERROR = 23
    "the SA's sequence numbers are used up (RFC 4303 section 3.3.3)"
    OUT_STATE_MODE_ERROR = 24
    "the packet cannot be sent in this SA's mode (a fragment or another address in transport mode)"
    OUT_TOO_BIG = 25
    "larger than the tunnel's MTU with DF set; the sender was told by ICMP"
    OUT_SEND_ERROR = 26
    "the socket refused the packet"
    OUT_STATE_PROTO_ERROR = 27
    "the cipher failed"
