# Telling an inner sender that its packet does not fit the tunnel: RFC 792 with RFC 1191, and RFC 4443.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from ipsec.fast.checksum cimport csum_bulk, htons
from ipsec.fast.packet cimport (
    FRAGMENT_LATER,
    PROTO_ICMP,
    PROTO_ICMPV6,
    PacketInfo,
    csum_add,
    csum_store,
    put16,
    put32,
)

cdef enum:
    TOO_BIG_MAX = 1280         # octets of the longest reply
    TOO_BIG_MAX_V4 = 576       # RFC 1812 section 4.3.2.3
    ICMP_TTL = 64

# The packet is an ICMP error message: these are never answered (RFC 1122 section 3.2.2, RFC 4443 section 2.4 (e)).
cdef inline bint is_icmp_error(const PacketInfo *info) noexcept nogil:
    cdef uint8_t kind = <uint8_t>(info.src_port >> 8)
    if info.protocol == PROTO_ICMP and info.version == 4:
        return kind == 3 or kind == 4 or kind == 5 or kind == 11 or kind == 12
    if info.protocol == PROTO_ICMPV6 and info.version == 6:
        return kind < 128 or kind == 137
    return False

# RFC 1812 section 4.3.2.7: no answer to what does not name a single host, or was not sent to one.
cdef inline bint answerable_v4(const PacketInfo *info) noexcept nogil:
    cdef uint8_t source = info.src[0]
    if source == 0 or source == 127 or source >= 224:
        return False
    return info.dst[0] < 224 and info.dst[0] != 0

# RFC 4443 section 2.4 (e.6). Packets to a multicast address are answered (e.3): path MTU discovery needs it.
cdef inline bint answerable_v6(const PacketInfo *info) noexcept nogil:
    cdef uint32_t i
    if info.src[0] == 0xFF:
        return False
    for i in range(15):
        if info.src[i]:
            return True
    return info.src[15] > 1

cdef inline uint32_t too_big_v4(const PacketInfo *info, uint32_t mtu, const uint8_t *source,
                                uint8_t *out) noexcept nogil:
    cdef uint32_t quoted = info.length
    if quoted > TOO_BIG_MAX_V4 - 28:
        quoted = TOO_BIG_MAX_V4 - 28
    memset(out, 0, 28)
    out[0] = 0x45
    out[1] = 0xC0                        # RFC 1812 section 4.3.2.5: internetwork control
    put16(out + 2, 28 + quoted)
    put16(out + 6, 0x4000)
    out[8] = ICMP_TTL
    out[9] = PROTO_ICMP
    memcpy(out + 12, source, 4)
    memcpy(out + 16, info.src, 4)
    csum_store(out + 10, csum_add(out, 20, 0))
    out[20] = 3
    out[21] = 4
    put16(out + 26, mtu if mtu < 65535 else 65535)
    memcpy(out + 28, info.data, quoted)
    csum_store(out + 22, csum_bulk(out + 20, 8 + quoted, 0))
    return 28 + quoted

cdef inline uint32_t too_big_v6(const PacketInfo *info, uint32_t mtu, const uint8_t *source,
                                uint8_t *out) noexcept nogil:
    cdef uint32_t quoted = info.length
    cdef uint64_t pseudo
    if quoted > TOO_BIG_MAX - 48:
        quoted = TOO_BIG_MAX - 48
    memset(out, 0, 48)
    out[0] = 0x60
    put16(out + 4, 8 + quoted)
    out[6] = PROTO_ICMPV6
    out[7] = ICMP_TTL
    memcpy(out + 8, source, 16)
    memcpy(out + 24, info.src, 16)
    out[40] = 2
    put32(out + 44, mtu if mtu > 1280 else 1280)   # RFC 8201 section 4: hosts do not go below
    memcpy(out + 48, info.data, quoted)
    pseudo = csum_add(out + 8, 32, htons(<uint16_t>(8 + quoted)) + htons(PROTO_ICMPV6))
    csum_store(out + 42, csum_bulk(out + 40, 8 + quoted, pseudo))
    return 48 + quoted

# Writes "fragmentation needed" or "packet too big" for this packet to out (TOO_BIG_MAX octets) and returns its length;
# 0 if the packet must not be answered. `source` is the reply's source address (4 or 16 octets); NULL: the packet's
# destination, which the sender is sure to have a route to.
cdef inline uint32_t build_too_big(const PacketInfo *info, uint32_t mtu, const uint8_t *source,
                                   uint8_t *out) noexcept nogil:
    if info.fragment != FRAGMENT_LATER and is_icmp_error(info):
        return 0
    if info.version == 4:
        if info.fragment == FRAGMENT_LATER or not answerable_v4(info):
            return 0
        return too_big_v4(info, mtu, source if source != NULL else info.dst, out)
    # RFC 4443 does not except later fragments: without an answer the datagram would never get through
    if not answerable_v6(info) or (source == NULL and info.dst[0] == 0xFF):
        return 0
    return too_big_v6(info, mtu, source if source != NULL else info.dst, out)
