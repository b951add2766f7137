# Cutting a superframe that the TUN device gave us into packets, and finishing checksums it left to us.
#
# The header of segment k may be written over the tail of payload k-1, straight in front of payload k: the original
# header must have been copied aside, and payload k-1 must be done with.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from ipsec.fast.checksum cimport csum_bulk, htonl, htons
from ipsec.fast.packet cimport (
    FRAGMENT_NONE,
    PROTO_TCP,
    PROTO_UDP,
    PacketInfo,
    be16,
    be32,
    csum_add,
    csum_fold,
    csum_pseudo,
    csum_store,
    put16,
    put32,
)
from ipsec.fast.vnet cimport (
    VNET_GSO_ECN,
    VNET_GSO_NONE,
    VNET_GSO_TCPV4,
    VNET_GSO_TCPV6,
    VNET_GSO_UDP_L4,
    VNET_NEEDS_CSUM,
    VnetHdr,
)

cdef enum:
    SEGMENT_HEADER_MAX = 256   # longest header that is taken: the caller's copy needs no more room
    TCP_FIN_PSH = 0x09
    TCP_SYN = 0x02
    TCP_CWR = 0x80

cdef enum SegmentKind:
    SEGMENT_SINGLE = 0         # one packet, sent as it is
    SEGMENT_TCP = 1
    SEGMENT_UDP = 2

# How to cut one superframe; everything that does not change from segment to segment is summed once.
cdef struct SegmentPlan:
    uint64_t ip_sum            # IPv4 header with length, identification and checksum taken as zero
    uint64_t l4_sum            # pseudo-header and L4 header with what changes taken as zero
    uint32_t header_len        # IP and L4 header; 0 for a single packet
    uint32_t payload_len       # of all segments together
    uint32_t gso_size          # payload of every segment but the last
    uint32_t count
    uint32_t l4_offset
    uint32_t seq               # of the first segment
    uint32_t ip_id
    uint8_t kind               # SegmentKind
    uint8_t version
    uint8_t tcp_flags

# Only extension headers that every segment can carry as they are (RFC 8200 sections 4.3 and 4.6). A routing header
# changes the pseudo-header, and AH would be wrong in every segment. The parser has checked the bounds.
cdef inline bint segment_extensions_ok(const PacketInfo *info) noexcept nogil:
    cdef uint32_t at = 40
    cdef uint8_t nxt = info.data[6]
    while at < info.l4_offset:
        if nxt != 0 and nxt != 60:
            return False
        nxt = info.data[at]
        at += (<uint32_t>info.data[at + 1] + 1) * 8
    return True

cdef inline int plan_tcp(const PacketInfo *info, SegmentPlan *plan) noexcept nogil:
    cdef uint8_t fixed[60]
    cdef const uint8_t *l4 = info.data + info.l4_offset
    cdef uint32_t l4_len
    if info.length - info.l4_offset < 20:
        return -1
    l4_len = (l4[12] >> 4) * 4
    # SYN uses up a sequence number, so what comes with it cannot be cut
    if l4_len < 20 or info.l4_offset + l4_len > info.length or l4[13] & TCP_SYN:
        return -1
    plan.kind = SEGMENT_TCP
    plan.header_len = info.l4_offset + l4_len
    plan.seq = be32(l4 + 4)
    plan.tcp_flags = l4[13]
    memcpy(fixed, l4, l4_len)
    put32(fixed + 4, 0)
    fixed[13] = 0
    put16(fixed + 16, 0)
    plan.l4_sum = csum_add(fixed, l4_len, csum_pseudo(info, 0))
    return 0

cdef inline int plan_udp(const PacketInfo *info, SegmentPlan *plan) noexcept nogil:
    if info.length - info.l4_offset < 8:
        return -1
    plan.kind = SEGMENT_UDP
    plan.header_len = info.l4_offset + 8
    plan.l4_sum = csum_add(info.data + info.l4_offset, 4, csum_pseudo(info, 0))
    return 0

# Reads what the device says of a packet; hdr_len is not believed. 0, or -1 if it contradicts the packet.
# A packet without GSO becomes a plan of one SEGMENT_SINGLE; its checksum may still be for finish_checksum.
cdef inline int plan_segments(const VnetHdr *vnet, const PacketInfo *info, SegmentPlan *plan) noexcept nogil:
    cdef uint8_t gso = <uint8_t>(vnet.gso_type & ~VNET_GSO_ECN)
    cdef uint8_t fixed[60]
    memset(plan, 0, sizeof(SegmentPlan))
    plan.version = info.version
    plan.l4_offset = info.l4_offset
    plan.payload_len = plan.gso_size = info.length
    plan.count = 1
    if gso == VNET_GSO_NONE:
        return 0
    if vnet.gso_size == 0 or info.fragment != FRAGMENT_NONE:
        return -1
    if gso == VNET_GSO_UDP_L4:
        if info.protocol != PROTO_UDP or vnet.gso_type & VNET_GSO_ECN or plan_udp(info, plan) < 0:
            return -1
    elif (gso == VNET_GSO_TCPV4 and info.version == 4) or (gso == VNET_GSO_TCPV6 and info.version == 6):
        if info.protocol != PROTO_TCP or plan_tcp(info, plan) < 0:
            return -1
    else:
        return -1
    if plan.header_len > SEGMENT_HEADER_MAX:
        return -1
    if vnet.flags & VNET_NEEDS_CSUM and (vnet.csum_start != info.l4_offset
                                         or vnet.csum_offset != (16 if plan.kind == SEGMENT_TCP else 6)):
        return -1
    if info.version == 4:
        plan.ip_id = be16(info.data + 4)
        memcpy(fixed, info.data, info.l4_offset)
        put32(fixed + 2, 0)
        put16(fixed + 10, 0)
        plan.ip_sum = csum_add(fixed, info.l4_offset, 0)
    elif not segment_extensions_ok(info):
        return -1
    plan.gso_size = vnet.gso_size
    plan.payload_len = info.length - plan.header_len
    if plan.payload_len > plan.gso_size:
        plan.count = (plan.payload_len + plan.gso_size - 1) // plan.gso_size
    return 0

# Where payload k begins in the superframe, and how long it is.
cdef inline uint32_t segment_offset(const SegmentPlan *plan, uint32_t k) noexcept nogil:
    return plan.header_len + k * plan.gso_size

cdef inline uint32_t segment_payload(const SegmentPlan *plan, uint32_t k) noexcept nogil:
    cdef uint32_t left = plan.payload_len - k * plan.gso_size
    return left if left < plan.gso_size else plan.gso_size

# Writes the header_len octets of segment k to dst, checksums included, and returns the segment's total length.
# `header` is a copy of the superframe's header, `payload` where segment_payload(plan, k) octets lie: usually
# dst + header_len. Not for SEGMENT_SINGLE.
cdef inline uint32_t segment_header(const SegmentPlan *plan, const uint8_t *header, uint32_t k, uint8_t *dst,
                                    const uint8_t *payload) noexcept nogil:
    cdef uint32_t size = segment_payload(plan, k)
    cdef uint32_t total = plan.header_len + size
    cdef uint32_t l4_len = total - plan.l4_offset
    cdef uint32_t seq
    cdef uint16_t word
    cdef uint8_t flags
    cdef uint8_t *l4 = dst + plan.l4_offset
    cdef uint64_t checksum = csum_bulk(payload, size, plan.l4_sum + htons(<uint16_t>l4_len))
    memcpy(dst, header, plan.header_len)
    if plan.version == 4:
        put16(dst + 2, total)
        put16(dst + 4, plan.ip_id + k)   # RFC 791: each datagram its own; RFC 6864 section 4.1 lets DF ones count too
        csum_store(dst + 10, plan.ip_sum + htons(<uint16_t>total) + htons(<uint16_t>(plan.ip_id + k)))
    else:
        put16(dst + 4, total - 40)
    if plan.kind == SEGMENT_TCP:
        flags = plan.tcp_flags
        if k > 0:
            flags &= <uint8_t>~TCP_CWR   # RFC 3168 section 6.1.2: once per window
        if k + 1 < plan.count:
            flags &= <uint8_t>~TCP_FIN_PSH
        seq = plan.seq + k * plan.gso_size
        put32(l4 + 4, seq)
        l4[13] = flags
        csum_store(l4 + 16, checksum + htonl(seq) + htons(flags))
    else:
        put16(l4 + 4, l4_len)
        word = <uint16_t>~csum_fold(checksum + htons(<uint16_t>l4_len))
        if word == 0:
            word = 0xFFFF                # RFC 768: zero says that there is none
        memcpy(l4 + 6, &word, 2)
    return total

# Completes the checksum that the device left to us (NEEDS_CSUM without GSO): the field holds the pseudo-header's sum.
# 0, or -1 if csum_start and csum_offset are not within the packet's upper layer.
cdef inline int finish_checksum(uint8_t *packet, const PacketInfo *info, const VnetHdr *vnet) noexcept nogil:
    cdef uint32_t start = vnet.csum_start
    cdef uint32_t at = start + vnet.csum_offset
    cdef uint16_t word
    if not vnet.flags & VNET_NEEDS_CSUM:
        return 0
    if start < info.l4_offset or at + 2 > info.length:
        return -1
    word = <uint16_t>~csum_fold(csum_bulk(packet + start, info.length - start, 0))
    if word == 0 and vnet.csum_offset == 6:
        word = 0xFFFF                    # RFC 768
    memcpy(packet + at, &word, 2)
    return 0
