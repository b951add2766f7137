# Where a datagram came from.
from libc.stdint cimport uint8_t, uint16_t
from libc.string cimport memcpy, memset

from ipsec.fast.message cimport AF_INET, AF_INET6, msghdr
from ipsec.fast.packet cimport be16

cdef struct Source:
    uint8_t version          # 0: not known, then nothing is learned from it
    uint8_t address[16]
    uint16_t port            # UDP, 0 for raw ESP

# From what recvmmsg says of a message.
cdef inline void read_source(const msghdr *h, Source *source) noexcept nogil:
    cdef const uint8_t *name = <const uint8_t *>h.msg_name
    cdef uint16_t family = 0
    memset(source, 0, sizeof(Source))
    if h.msg_namelen < 8:
        return
    memcpy(&family, name, 2)
    source.port = be16(name + 2)
    if family == AF_INET and h.msg_namelen >= 16:
        source.version = 4
        memcpy(source.address, name + 4, 4)
    elif family == AF_INET6 and h.msg_namelen >= 28:
        source.version = 6
        memcpy(source.address, name + 8, 16)

# From (address, port), or None.
cdef inline int source_from_python(object given, Source *source) except -1:
    cdef bytes address
    memset(source, 0, sizeof(Source))
    if given is not None:
        source.version = given[0].version
        source.port = given[1]
        address = given[0].packed
        memcpy(source.address, <const uint8_t *>address, len(address))
    return 0
