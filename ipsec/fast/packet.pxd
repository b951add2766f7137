# What the data path needs to know of an IP packet, and the Internet checksum.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

cdef enum:
    PROTO_ICMP = 1
    PROTO_IPIP = 4
    PROTO_TCP = 6
    PROTO_UDP = 17
    PROTO_DCCP = 33
    PROTO_IPV6 = 41
    PROTO_ESP = 50
    PROTO_ICMPV6 = 58
    PROTO_NONE = 59
    PROTO_MH = 135
    PROTO_SCTP = 132
    PROTO_UDPLITE = 136

cdef enum Fragment:
    FRAGMENT_NONE = 0
    FRAGMENT_FIRST = 1   # offset 0, more to come: the ports are there
    FRAGMENT_LATER = 2   # no ports (RFC 4301 section 7)

# One parsed IP packet. Addresses are left in the packet (network byte order); ports are in host order.
cdef struct PacketInfo:
    const uint8_t *data
    const uint8_t *src       # 4 or 16 octets
    const uint8_t *dst
    uint32_t length          # by the IP header; never beyond the octets given
    uint32_t l4_offset       # first octet after the IP header and IPv6 extension headers
    uint32_t fragment_id
    uint16_t src_port        # of TCP, UDP, SCTP, UDP-Lite, DCCP; type << 8 | code for ICMP, ICMPv6, MH (in both)
    uint16_t dst_port
    uint8_t version          # 4 or 6
    uint8_t protocol         # upper layer
    uint8_t tos              # DSCP and ECN
    uint8_t ttl
    uint8_t fragment         # Fragment
    uint8_t dont_fragment    # IPv4 DF; always 1 for IPv6
    uint8_t has_ports        # src_port and dst_port mean something
    uint8_t options          # IPv4 options or IPv6 extension headers are there
    uint16_t fragment_offset # octets

cdef inline uint16_t be16(const uint8_t *p) noexcept nogil:
    return <uint16_t>((p[0] << 8) | p[1])

cdef inline uint32_t be32(const uint8_t *p) noexcept nogil:
    return (<uint32_t>p[0] << 24) | (<uint32_t>p[1] << 16) | (<uint32_t>p[2] << 8) | p[3]

cdef inline void put16(uint8_t *p, uint32_t v) noexcept nogil:
    p[0] = <uint8_t>(v >> 8)
    p[1] = <uint8_t>v

cdef inline void put32(uint8_t *p, uint32_t v) noexcept nogil:
    p[0] = <uint8_t>(v >> 24)
    p[1] = <uint8_t>(v >> 16)
    p[2] = <uint8_t>(v >> 8)
    p[3] = <uint8_t>v

# One store of eight octets, so that a load of the same octets soon after does not have to wait for the cache.
cdef inline void put64(uint8_t *p, uint64_t v) noexcept nogil:
    p[0] = <uint8_t>(v >> 56)
    p[1] = <uint8_t>(v >> 48)
    p[2] = <uint8_t>(v >> 40)
    p[3] = <uint8_t>(v >> 32)
    p[4] = <uint8_t>(v >> 24)
    p[5] = <uint8_t>(v >> 16)
    p[6] = <uint8_t>(v >> 8)
    p[7] = <uint8_t>v

# RFC 1071: the sum is kept in a wide accumulator in memory order, so any even offset may be summed apart and added.
cdef inline uint64_t csum_add(const uint8_t *p, uint32_t n, uint64_t total) noexcept nogil:
    cdef uint32_t word
    cdef uint32_t i = 0
    cdef uint32_t tail = 0
    while i + 4 <= n:
        memcpy(&word, p + i, 4)
        total += word
        i += 4
    if i < n:
        memcpy(&tail, p + i, n - i)
        total += tail
    return total

# Folds to 16 bits, in memory order: store it with memcpy after complementing.
cdef inline uint16_t csum_fold(uint64_t total) noexcept nogil:
    total = (total & 0xFFFFFFFFU) + (total >> 32)
    total = (total & 0xFFFFFFFFU) + (total >> 32)
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return <uint16_t>total

cdef inline void csum_store(uint8_t *p, uint64_t total) noexcept nogil:
    cdef uint16_t v = <uint16_t>(~csum_fold(total))
    memcpy(p, &v, 2)

# The pseudo-header of RFC 9293 section 3.1 / RFC 8200 section 8.1, for the same accumulator.
cdef inline uint64_t csum_pseudo(const PacketInfo *info, uint32_t l4_length) noexcept nogil:
    cdef uint8_t rest[8]
    cdef uint32_t n = 4 if info.version == 4 else 16
    put32(rest, l4_length)
    put32(rest + 4, info.protocol)
    return csum_add(rest, 8, csum_add(info.dst, n, csum_add(info.src, n, 0)))

cdef inline bint is_port_protocol(uint8_t protocol) noexcept nogil:
    return (protocol == PROTO_TCP or protocol == PROTO_UDP or protocol == PROTO_SCTP
            or protocol == PROTO_UDPLITE or protocol == PROTO_DCCP)

# Fills the ports of a packet whose upper-layer header begins at l4_offset. False: too short to have them.
cdef inline bint parse_ports(PacketInfo *info) noexcept nogil:
    cdef const uint8_t *l4 = info.data + info.l4_offset
    cdef uint32_t left = info.length - info.l4_offset
    if is_port_protocol(info.protocol):
        if left < 4:
            return False
        info.src_port = be16(l4)
        info.dst_port = be16(l4 + 2)
        info.has_ports = 1
    elif info.protocol == PROTO_ICMP or info.protocol == PROTO_ICMPV6:
        if left < 2:
            return False
        info.src_port = info.dst_port = be16(l4)
        info.has_ports = 1
    elif info.protocol == PROTO_MH:
        if left < 3:
            return False
        info.src_port = info.dst_port = <uint16_t>(l4[2] << 8)   # RFC 4301 section 4.4.1.1: the MH type
        info.has_ports = 1
    return True

# Parses the IP header at p, of which n octets are there. 0, or -1 if it contradicts itself or n.
# Bytes past the IP length (TFC padding) are left alone. Loops are bounded by n.
cdef inline int parse_packet(const uint8_t *p, uint32_t n, PacketInfo *info) noexcept nogil:
    cdef uint32_t header, at, word
    cdef uint8_t nxt
    memset(info, 0, sizeof(PacketInfo))
    info.data = p
    if n < 20:
        return -1
    if p[0] >> 4 == 4:
        header = (p[0] & 15) * 4
        info.version = 4
        info.length = be16(p + 2)
        if header < 20 or info.length < header or info.length > n:
            return -1
        info.tos = p[1]
        info.ttl = p[8]
        info.protocol = p[9]
        info.src = p + 12
        info.dst = p + 16
        info.options = header > 20
        info.l4_offset = header
        word = be16(p + 6)
        info.dont_fragment = (word & 0x4000) != 0
        info.fragment_offset = <uint16_t>((word & 0x1FFF) * 8)
        if word & 0x3FFF:
            info.fragment = FRAGMENT_LATER if word & 0x1FFF else FRAGMENT_FIRST
            info.fragment_id = be16(p + 4)
            # RFC 1858 / RFC 3128: a fragment may not end beyond the largest datagram
            if info.fragment_offset + info.length - header > 65535:
                return -1
    elif p[0] >> 4 == 6:
        if n < 40:
            return -1
        info.version = 6
        info.length = 40 + be16(p + 4)
        if info.length > n:
            return -1
        info.tos = <uint8_t>(((p[0] & 15) << 4) | (p[1] >> 4))
        info.ttl = p[7]
        info.src = p + 8
        info.dst = p + 24
        info.dont_fragment = 1
        nxt = p[6]
        at = 40
        # RFC 8200 section 4: hop-by-hop 0, routing 43, fragment 44, destination 60; MH and ESP end the chain
        while nxt == 0 or nxt == 43 or nxt == 60 or nxt == 44 or nxt == 51:
            if at + 8 > info.length:
                return -1
            info.options = 1
            if nxt == 44:
                word = be16(p + at + 2)
                info.fragment_offset = <uint16_t>(word & 0xFFF8)
                info.fragment_id = be32(p + at + 4)
                if word & 0xFFF9:
                    info.fragment = FRAGMENT_LATER if word & 0xFFF8 else FRAGMENT_FIRST
                nxt = p[at]
                at += 8
                if info.fragment == FRAGMENT_LATER:
                    break
            elif nxt == 51:
                word = (<uint32_t>p[at + 1] + 2) * 4
                nxt = p[at]
                at += word
            else:
                word = (<uint32_t>p[at + 1] + 1) * 8
                nxt = p[at]
                at += word
            if at > info.length:
                return -1
        info.protocol = nxt
        info.l4_offset = at
    else:
        return -1
    if info.fragment != FRAGMENT_LATER and not parse_ports(info):
        # RFC 1858: a first fragment too short for its ports hides them; an unfragmented one is malformed
        return -1
    return 0
