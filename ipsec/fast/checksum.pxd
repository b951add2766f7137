# The Internet checksum over long runs of octets (RFC 1071): sums in memory order, as packet.csum_add does.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "checksum.h" nogil:
    uint64_t csum_bulk "ipsec_csum_add"(const uint8_t *p, uint32_t n, uint64_t total) noexcept

cdef extern from "<arpa/inet.h>" nogil:
    uint16_t htons(uint16_t v) noexcept
    uint32_t htonl(uint32_t v) noexcept

# What replacing `old` by `new`, a 16-bit word in network order at p, does to the checksum field at p (RFC 1624 eqn. 3).
cdef inline void csum_replace16(uint8_t *p, uint32_t old, uint32_t new) noexcept nogil:
    cdef uint32_t total = (~((<uint32_t>p[0] << 8) | p[1]) & 0xFFFF) + (~old & 0xFFFF) + (new & 0xFFFF)
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    total = ~total
    p[0] = <uint8_t>(total >> 8)
    p[1] = <uint8_t>total
