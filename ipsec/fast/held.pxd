# Frames from the inside that met a PROTECT policy without an SA: kept for the SA that is being negotiated, newest first to
# stay (RFC 4301 section 5.1 leaves it open; the kernel's XFRM keeps them too). Bounded for each policy, and for a worker in
# frames, octets and time. It allocates for a packet, as early.pxd does and nothing else: where that happens nothing can be sent anyway.
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from ipsec.fast.vnet cimport VNET_HDR_SIZE, VnetHdr

cdef enum:
    # the same numbers as in ipsec/esp/engine.py
    HELD_FRAMES = 128
    HELD_OCTETS = 1 << 19
    HELD_SECONDS = 30

cdef struct HeldFrame:
    HeldFrame *next
    uint64_t since_ns
    uint32_t policy
    uint32_t packets         # that it stands for
    uint32_t length
    VnetHdr vnet
    uint8_t data[1]

cdef struct HeldFrames:
    HeldFrame *first         # the oldest
    HeldFrame *last
    uint32_t count
    uint32_t octets
    uint32_t released        # Shared.released when they were tried last
    uint64_t since_ns        # not 0: the frame at hand was held before, since then
    uint64_t ever            # frames held since the start, again ones included

# Takes out the frame behind `before`, the first one if that is NULL. The caller frees it.
cdef inline HeldFrame *held_unlink(HeldFrames *h, HeldFrame *before) noexcept nogil:
    cdef HeldFrame *frame = h.first if before == NULL else before.next
    if before == NULL:
        h.first = frame.next
    else:
        before.next = frame.next
    if h.last == frame:
        h.last = before
    h.count -= 1
    h.octets -= frame.length
    return frame

cdef inline uint32_t held_discard(HeldFrames *h, HeldFrame *before) noexcept nogil:
    cdef HeldFrame *frame = held_unlink(h, before)
    cdef uint32_t packets = frame.packets
    free(frame)
    return packets

# Before all of them are tried again: until its turn comes a frame is of no policy (their ids begin with 1), and makes no
# room for another.
cdef inline void held_forget_policies(HeldFrames *h) noexcept nogil:
    cdef HeldFrame *frame = h.first
    while frame != NULL:
        frame.policy = 0
        frame = frame.next

cdef inline bint held_too_long(const HeldFrame *frame, uint64_t now_ns) noexcept nogil:
    return now_ns > frame.since_ns and now_ns - frame.since_ns > <uint64_t>HELD_SECONDS * 1000000000

# Makes room for one more frame of a policy, at the cost of the oldest. How many packets that lost.
cdef inline uint32_t held_make_room(HeldFrames *h, uint32_t policy, uint32_t limit, uint32_t length,
                                    uint64_t now_ns) noexcept nogil:
    cdef HeldFrame *frame = h.first
    cdef HeldFrame *before = NULL
    cdef HeldFrame *oldest = NULL
    cdef uint32_t n = 0
    cdef uint32_t lost = 0
    while frame != NULL:
        if frame.policy == policy:
            if n == 0:
                oldest = before
            n += 1
        before = frame
        frame = frame.next
    if n >= limit:
        lost += held_discard(h, oldest)
    while h.first != NULL and (h.count >= HELD_FRAMES or h.octets + length > HELD_OCTETS
                               or held_too_long(h.first, now_ns)):
        lost += held_discard(h, NULL)
    return lost

# Keeps a copy of a frame; vnet may be NULL. How many packets were lost for it, `packets` themselves without memory.
cdef inline uint32_t held_put(HeldFrames *h, uint32_t policy, uint32_t limit, const VnetHdr *vnet, const uint8_t *packet,
                              uint32_t length, uint32_t packets, uint64_t now_ns) noexcept nogil:
    cdef uint32_t lost = held_make_room(h, policy, limit, length, now_ns)
    cdef HeldFrame *frame = <HeldFrame *>malloc(sizeof(HeldFrame) + length)
    if frame == NULL:
        return lost + packets
    frame.next = NULL
    frame.since_ns = h.since_ns if h.since_ns else now_ns
    frame.policy = policy
    frame.packets = packets
    frame.length = length
    memset(&frame.vnet, 0, VNET_HDR_SIZE)
    if vnet != NULL:
        memcpy(&frame.vnet, vnet, VNET_HDR_SIZE)
    memcpy(frame.data, packet, length)
    if h.last == NULL:
        h.first = frame
    else:
        h.last.next = frame
    h.last = frame
    h.count += 1
    h.octets += length
    h.ever += 1
    return lost

cdef inline void held_free(HeldFrames *h) noexcept nogil:
    while h.first != NULL:
        held_discard(h, NULL)
