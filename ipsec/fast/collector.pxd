# The sink of library calls: keeps what one packet became, to be returned.
from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from ipsec.fast.memory cimport aligned_zero
from ipsec.fast.outbound cimport Sink
from ipsec.fast.packet cimport PacketInfo
from ipsec.fast.sa cimport Endpoint, Sa

cdef enum:
    COLLECT_ROOM = 1 << 18

# Datagrams lie in one buffer, one after the other.
cdef struct Collector:
    uint8_t *data
    size_t room
    size_t used
    uint32_t count
    uint32_t lengths[2048]
    Sa *sas[2048]
    uint8_t tos[2048]
    uint8_t df[2048]
    uint8_t *reply
    uint32_t reply_length
    uint32_t clear_length

cdef inline uint8_t *collect_room(void *owner, uint32_t length) noexcept nogil:
    cdef Collector *c = <Collector *>owner
    if c.used + length > c.room or c.count == 2048:
        return NULL
    return c.data + c.used

cdef inline void collect_sealed(void *owner, Sa *sa, Endpoint *endpoint, uint32_t length, uint8_t tos,
                                bint df) noexcept nogil:
    cdef Collector *c = <Collector *>owner
    c.lengths[c.count] = length
    c.sas[c.count] = sa
    c.tos[c.count] = tos
    c.df[c.count] = df
    c.count += 1
    c.used += length

cdef inline void collect_reply(void *owner, uint8_t *packet, uint32_t length) noexcept nogil:
    cdef Collector *c = <Collector *>owner
    memcpy(c.reply, packet, length)
    c.reply_length = length

cdef inline int collect_clear(void *owner, uint8_t *packet, const PacketInfo *info) noexcept nogil:
    (<Collector *>owner).clear_length = info.length
    return 0

cdef inline Collector *collector_new() except NULL:
    cdef Collector *c = <Collector *>calloc(1, sizeof(Collector))
    if c == NULL:
        raise MemoryError
    try:
        c.data = <uint8_t *>aligned_zero(COLLECT_ROOM)
        c.reply = <uint8_t *>aligned_zero(2048)
    except MemoryError:
        collector_free(c)
        raise
    c.room = COLLECT_ROOM
    return c

cdef inline void collector_free(Collector *c) noexcept:
    if c != NULL:
        free(c.data)
        free(c.reply)
        free(c)

# Makes a collector empty and the sink its.
cdef inline void collector_start(Collector *c, Sink *sink) noexcept nogil:
    c.used = 0
    c.count = 0
    c.reply_length = 0
    c.clear_length = 0
    sink.owner = c
    sink.batches = False
    sink.room = collect_room
    sink.sealed = collect_sealed
    sink.reply = collect_reply
    sink.clear = collect_clear
