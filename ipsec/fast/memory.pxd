# Memory that begins on a cache line. All of it is taken when something is made; nothing allocates per packet.
from libc.string cimport memset

cdef extern from "<stdlib.h>" nogil:
    int posix_memalign(void **out, size_t alignment, size_t size)

# Zeroed memory on a cache line of its own.
cdef inline void *aligned_zero(size_t size) except NULL:
    cdef void *p = NULL
    size = (size + 63) & ~<size_t>63
    if posix_memalign(&p, 64, size) != 0:
        raise MemoryError
    memset(p, 0, size)
    return p
