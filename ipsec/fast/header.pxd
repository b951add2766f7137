# Fields of inner headers that the tunnel rewrites: DSCP and ECN (RFC 4301 section 5.1.2, RFC 2983, RFC 6040), the MSS
# that TCP announces (RFC 9293 section 3.7.1), and checksums after NAT (RFC 3948 section 3.1.2).
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy

from ipsec.fast.checksum cimport csum_bulk, csum_replace16
from ipsec.fast.packet cimport (
    FRAGMENT_LATER,
    FRAGMENT_NONE,
    PROTO_TCP,
    PROTO_UDP,
    PacketInfo,
    be16,
    csum_fold,
    csum_pseudo,
    put16,
)

cdef enum Ecn:
    ECN_NOT_ECT = 0
    ECN_ECT1 = 1
    ECN_ECT0 = 2
    ECN_CE = 3

# TOS or traffic class of the outer header. RFC 6040 section 4.1: normal mode copies ECN, compatibility mode clears it.
cdef inline uint8_t outer_tos(uint8_t tos, bint copy_dscp, bint copy_ecn) noexcept nogil:
    return <uint8_t>((tos & 0xFC if copy_dscp else 0) | (tos & 3 if copy_ecn else 0))

# RFC 6040 section 4.2, figure 4: what becomes of the inner ECN field; -1: drop.
cdef inline int combine_ecn(uint8_t inner, uint8_t outer) noexcept nogil:
    if inner == ECN_NOT_ECT:
        return -1 if outer == ECN_CE else ECN_NOT_ECT
    if inner == ECN_CE or outer == ECN_CE:
        return ECN_CE
    if outer == ECN_ECT1:
        return ECN_ECT1
    return inner

# Replaces TOS or traffic class in the packet.
cdef inline void set_tos(uint8_t *packet, PacketInfo *info, uint8_t tos) noexcept nogil:
    if tos == info.tos:
        return
    if info.version == 4:
        csum_replace16(packet + 10, (<uint32_t>packet[0] << 8) | info.tos, (<uint32_t>packet[0] << 8) | tos)
        packet[1] = tos
    else:
        packet[0] = <uint8_t>((packet[0] & 0xF0) | (tos >> 4))
        packet[1] = <uint8_t>((packet[1] & 0x0F) | (tos << 4))
    info.tos = tos

# Brings the outer header's congestion mark, and its DSCP if asked to, into a decrypted packet.
# 0, or -1: drop it (CE on a packet whose endpoints do not know ECN).
cdef inline int ecn_decapsulate(uint8_t *packet, PacketInfo *info, uint8_t outer, bint copy_ecn,
                                bint copy_dscp) noexcept nogil:
    cdef int ecn = info.tos & 3
    if outer & 3 == 0 and not copy_dscp:
        return 0                          # Not-ECT outside changes nothing (RFC 6040 figure 4)
    if copy_ecn:
        ecn = combine_ecn(info.tos & 3, outer & 3)
        if ecn < 0:
            return -1
    set_tos(packet, info, <uint8_t>(((outer if copy_dscp else info.tos) & 0xFC) | ecn))
    return 0

cdef inline uint32_t swapped(uint32_t word) noexcept nogil:
    return ((word & 0xFF) << 8) | ((word >> 8) & 0xFF)

# Lowers the MSS option of a SYN to max_mss; True if it was larger. A SYN without the option is left alone: its sender
# then takes 536 or 1220. Options that cannot be read end the search. The checksum must be complete (finish_checksum).
cdef inline bint clamp_mss(uint8_t *packet, const PacketInfo *info, uint32_t max_mss) noexcept nogil:
    cdef uint8_t *l4 = packet + info.l4_offset
    cdef uint32_t left = info.length - info.l4_offset
    cdef uint32_t at = 20
    cdef uint32_t end, old, size
    cdef bint changed = False
    if info.protocol != PROTO_TCP or info.fragment == FRAGMENT_LATER or left < 20 or not l4[13] & 2:
        return False
    end = (l4[12] >> 4) * 4
    if end > left:
        return False
    while at < end and l4[at] != 0:
        if l4[at] == 1:
            at += 1
            continue
        if at + 2 > end:
            break
        size = l4[at + 1]
        if size < 2 or at + size > end:
            break
        if l4[at] == 2 and size == 4:
            old = be16(l4 + at + 2)
            if old > max_mss:
                put16(l4 + at + 2, max_mss)
                if at & 1:                # RFC 1071 section 2 (B): at an odd offset the octets change places
                    csum_replace16(l4 + 16, swapped(old), swapped(max_mss))
                else:
                    csum_replace16(l4 + 16, old, max_mss)
                changed = True
        at += size
    return changed

# Transport mode behind NAT: the checksum was made for other addresses (RFC 3948 section 3.1.2). Recomputes that of TCP
# or UDP for the addresses that the packet has now; other protocols are left alone. ESP vouches for the octets, so
# nothing is hidden by it. 0, or -1 if the packet is a fragment or its lengths contradict each other.
cdef inline int transport_fix_checksum(uint8_t *packet, const PacketInfo *info) noexcept nogil:
    cdef uint8_t *l4 = packet + info.l4_offset
    cdef uint32_t size = info.length - info.l4_offset
    cdef uint32_t at = 16
    cdef uint16_t word
    if info.protocol != PROTO_TCP and info.protocol != PROTO_UDP:
        return 0
    if info.fragment != FRAGMENT_NONE:
        return -1
    if info.protocol == PROTO_UDP:
        at = 6
        if size < 8 or be16(l4 + 4) < 8 or be16(l4 + 4) > size:
            return -1
        if be16(l4 + 6) == 0:            # RFC 768: there is none
            return 0
        size = be16(l4 + 4)
    elif size < 20:
        return -1
    put16(l4 + at, 0)
    word = <uint16_t>~csum_fold(csum_bulk(l4, size, csum_pseudo(info, size)))
    if word == 0 and info.protocol == PROTO_UDP:
        word = 0xFFFF
    memcpy(l4 + at, &word, 2)
    return 0
