# ICMP errors judged by the packet that they quote (RFC 4301 section 6.2). The rules, and the readable twin, are in
# ipsec/esp/quoted.py.
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcmp, memcpy

from ipsec.fast.atomic cimport load_ptr
from ipsec.fast.packet cimport (
    FRAGMENT_NONE, PROTO_ICMP, PROTO_ICMPV6, PacketInfo, be16, parse_packet, put16)
from ipsec.fast.selector cimport MATCH_YES, PacketKey, SelectorPairC, match_pairs, packet_key
from ipsec.fast.spd cimport SPD_FOUND, SpdPolicy, SpdTable, search_table

cdef extern from *:
    """
    /* A branch that calls this is taken for rare, so that nothing is inlined into it where every packet goes by. */
    static __attribute__((cold, noinline)) void fast_rare(void) { __asm__ volatile(""); }
    """
    void rare "fast_rare"() noexcept nogil

cdef enum:
    ICMP_HEADER = 8
    QUOTED_MAX = 1232        # the same number as in ipsec/esp/quoted.py

# The packet is, as a whole, an error that a router may have to say of packets in transit.
cdef inline bint is_router_error(const PacketInfo *info) noexcept nogil:
    cdef uint8_t kind = <uint8_t>(info.src_port >> 8)
    if info.fragment != FRAGMENT_NONE:
        return False
    if info.version == 4:
        return info.protocol == PROTO_ICMP and (kind == 3 or kind == 11 or kind == 12)
    return info.protocol == PROTO_ICMPV6 and 1 <= kind <= 4

# Lets the packet end where the quote does. False if its header is not all there, or of another family than the error's.
cdef inline bint end_quote(uint8_t *quote, uint32_t n, uint8_t version) noexcept nogil:
    if n < <uint32_t>(20 if version == 4 else 40) or quote[0] >> 4 != version:
        return False
    if version == 4 and be16(quote + 2) > n:
        put16(quote + 2, n)
    elif version == 6 and 40 + <uint32_t>be16(quote + 4) > n:
        put16(quote + 4, n - 40)
    return True

# What a packet would be that comes back for the one which an error quotes. False if the packet is no such error, or
# its quote says too little, or something else than the error.
cdef inline bint quoted_key(const PacketInfo *error, bint inbound, PacketKey *key) noexcept nogil:
    cdef uint8_t quote[1232]     # QUOTED_MAX
    cdef PacketInfo quoted
    cdef uint32_t n = error.length - error.l4_offset
    if not is_router_error(error) or n < ICMP_HEADER:
        return False
    n -= ICMP_HEADER
    if n > QUOTED_MAX:
        n = QUOTED_MAX
    memcpy(quote, error.data + error.l4_offset + ICMP_HEADER, n)
    if not end_quote(quote, n, error.version) or parse_packet(quote, n, &quoted) != 0:
        return False
    if memcmp(quoted.src, error.dst, 4 if error.version == 4 else 16) != 0:
        return False
    # it went the other way than the error
    packet_key(&quoted, not inbound, key)
    return True

# Outbound: the SA for an error that no policy is for, NULL if there is none.
cdef inline void *quoted_sa(const SpdTable *table, const PacketInfo *error) noexcept nogil:
    cdef PacketKey key
    cdef SpdPolicy *policy
    cdef int result
    if not quoted_key(error, False, &key):
        return NULL
    policy = search_table(table, &key, &result)
    # of policies, only those that protect have an SA
    return load_ptr(&policy.sa) if result == SPD_FOUND and policy.icmp else NULL

# Inbound: whether these selectors, which an error does not fit, fit what it quotes.
cdef inline bint quoted_match(const SelectorPairC *pairs, uint32_t n, const PacketInfo *error) noexcept nogil:
    cdef PacketKey key
    return quoted_key(error, True, &key) and match_pairs(pairs, n, &key) == MATCH_YES
