# The hash of the flow cache and of the fragments that wait for their ports.
from libc.stdint cimport uint64_t

cdef inline uint64_t mix(uint64_t state, uint64_t word) noexcept nogil:
    state = (state ^ word) * <uint64_t>0x9E3779B97F4A7C15
    return state ^ (state >> 32)
