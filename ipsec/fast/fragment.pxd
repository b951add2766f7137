# Fragmenting an inner IPv4 packet before protection (RFC 791 section 3.2, RFC 4301 section 8.2).
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy

from ipsec.fast.packet cimport PacketInfo, be16, csum_add, csum_store, put16

cdef enum:
    IPV4_MORE = 0x2000

# What is left to send of one packet.
cdef struct FragmentPlan:
    uint32_t header_len        # of the packet and its first fragment
    uint32_t later_len         # of the header of later fragments
    uint32_t payload_len
    uint32_t sent              # octets of payload
    uint32_t mtu
    uint32_t base              # fragment offset and flags that the packet has already
    uint8_t done
    uint8_t later[60]

# The header of later fragments: options only if they have the copied flag. 0, or -1 if they are malformed.
cdef inline int later_header(FragmentPlan *plan, const uint8_t *packet) noexcept nogil:
    cdef uint32_t at = 20
    cdef uint32_t size
    cdef uint32_t n = 20
    memcpy(plan.later, packet, 20)
    while at < plan.header_len and packet[at] != 0:
        if packet[at] == 1:
            at += 1
            continue
        if at + 2 > plan.header_len:
            return -1
        size = packet[at + 1]
        if size < 2 or at + size > plan.header_len:
            return -1
        if packet[at] & 0x80:
            memcpy(plan.later + n, packet + at, size)
            n += size
        at += size
    while n & 3:
        plan.later[n] = 0
        n += 1
    plan.later_len = n
    plan.later[0] = <uint8_t>(0x40 | (n >> 2))
    return 0

# Prepares to send a packet in fragments of up to `mtu` octets. 0, or -1: IPv6, DF, options that cannot be read, or an
# MTU without room for 8 octets of payload.
cdef inline int fragment_start(const PacketInfo *info, uint32_t mtu, FragmentPlan *plan) noexcept nogil:
    if info.version != 4 or info.dont_fragment:
        return -1
    plan.header_len = info.l4_offset
    plan.payload_len = info.length - info.l4_offset
    plan.sent = 0
    plan.done = 0
    plan.mtu = mtu
    plan.base = be16(info.data + 6)
    if mtu < plan.header_len + 8:
        return -1
    return later_header(plan, info.data)

# Writes the next fragment of the same packet to out (mtu octets) and returns its length; 0 when all has been sent.
cdef inline uint32_t fragment_next(FragmentPlan *plan, const PacketInfo *info, uint8_t *out) noexcept nogil:
    cdef const uint8_t *header = info.data if plan.sent == 0 else plan.later
    cdef uint32_t header_len = plan.header_len if plan.sent == 0 else plan.later_len
    cdef uint32_t size = plan.payload_len - plan.sent
    cdef uint32_t word = plan.base + plan.sent // 8   # the offset cannot reach the flags: the parser saw to it
    if plan.done:
        return 0
    if header_len + size > plan.mtu:
        size = (plan.mtu - header_len) & ~<uint32_t>7
        word |= IPV4_MORE
    else:
        plan.done = 1
    memcpy(out, header, header_len)
    memcpy(out + header_len, info.data + plan.header_len + plan.sent, size)
    put16(out + 2, header_len + size)
    put16(out + 6, word)
    put16(out + 10, 0)
    csum_store(out + 10, csum_add(out, header_len, 0))
    plan.sent += size
    return header_len + size
