# Memory that begins on a cache line. All of it is taken when something is made; nothing allocates per packet.
from libc.string cimport memset

cdef extern from "<stdlib.h>" nogil:
    int posix_memalign(void **out, size_t alignment, size_t size)

cdef extern from "<sys/mman.h>" nogil:
    int MADV_HUGEPAGE
    int madvise(void *start, size_t size, int advice)

cdef enum:
    HUGE_PAGE = 1 << 21

# Zeroed memory for a table that is looked up all over: large ones ask for large pages, or each look would first be one
# for the page.
cdef inline void *table_zero(size_t size) except NULL:
    cdef void *p = NULL
    if size < HUGE_PAGE // 2:
        return aligned_zero(size)
    size = (size + HUGE_PAGE - 1) & ~<size_t>(HUGE_PAGE - 1)
    if posix_memalign(&p, HUGE_PAGE, size) != 0:
        raise MemoryError
    madvise(p, size, MADV_HUGEPAGE)      # may be refused: then the pages are small
    memset(p, 0, size)
    return p

# Zeroed memory on a cache line of its own.
cdef inline void *aligned_zero(size_t size) except NULL:
    cdef void *p = NULL
    size = (size + 63) & ~<size_t>63
    if posix_memalign(&p, 64, size) != 0:
        raise MemoryError
    memset(p, 0, size)
    return p
