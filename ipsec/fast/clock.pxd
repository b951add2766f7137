# The clock of the data path.
from libc.stdint cimport uint64_t

cdef extern from "fast/message.h" nogil:
    uint64_t monotonic_ns()
