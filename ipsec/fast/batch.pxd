# Many packets in one piece of memory, in slots, sealed and opened one after the other. For measuring, and for use as a
# library without sockets.
from libc.stdint cimport uint8_t, uint32_t

from ipsec.fast.atomic cimport prefetch
from ipsec.fast.clock cimport monotonic_ns
from ipsec.fast.drops cimport DROP_NONE, DROP_OUT_HDR_ERROR
from ipsec.fast.inbound cimport INBOUND_ROOM, inbound, inbound_job_begin, inbound_job_end, inbound_job_sa
from ipsec.fast.jobs cimport JOBS, jobs_open_all
from ipsec.fast.outbound cimport Sink, protect_single, seal_jobs
from ipsec.fast.packet cimport PacketInfo, be32, parse_packet
from ipsec.fast.sa cimport ESP_SHIFT, Endpoint, Sa
from ipsec.fast.worker cimport SadTable, Worker, drop, sad_entry, sad_prefetch, sad_prefetch_rest

cdef enum:
    BATCH_HEAD = 128       # in front of each packet: room for what transport mode puts back, and a cache line

# Where the packets of a batch lie. `current` is the slot that is being written.
cdef struct BatchState:
    uint8_t *data
    size_t stride
    uint32_t *lengths
    uint32_t *starts
    uint32_t count
    uint32_t size
    uint32_t current

cdef inline uint8_t *batch_slot(BatchState *b, uint32_t i) noexcept nogil:
    return b.data + <size_t>i * b.stride + b.starts[i]

cdef inline uint8_t *batch_room(void *owner, uint32_t length) noexcept nogil:
    cdef BatchState *b = <BatchState *>owner
    if length > b.size:
        return NULL
    b.starts[b.current] = BATCH_HEAD + ESP_SHIFT
    return batch_slot(b, b.current)

cdef inline void batch_sealed(void *owner, Sa *sa, Endpoint *endpoint, uint32_t length, uint8_t tos,
                              bint df) noexcept nogil:
    (<BatchState *>owner).lengths[(<BatchState *>owner).current] = length

# Protects packet i of `a` into slot i of `b`; how many were not dropped.
cdef inline uint32_t batch_seal(Worker *w, Sa *sa, BatchState *a, BatchState *b) noexcept nogil:
    cdef Sink sink
    cdef PacketInfo info
    cdef uint32_t i
    cdef uint32_t done = 0
    sink.owner = b
    sink.room = batch_room
    sink.sealed = batch_sealed
    sink.batches = True
    # of an SA that is given, neither an ICMP error nor a packet in clear comes
    sink.reply = NULL
    sink.clear = NULL
    b.count = a.count
    w.now_ns = monotonic_ns()
    for i in range(a.count):
        b.current = i
        b.lengths[i] = 0
        if parse_packet(batch_slot(a, i), a.lengths[i], &info) != 0:
            drop(w, sa, DROP_OUT_HDR_ERROR, 1)
        elif protect_single(w, &sink, sa, batch_slot(a, i), &info, False):
            done += 1
    seal_jobs(w)
    if w.spoiled:
        w.spoiled = False
        for i in range(b.count):
            if b.lengths[i] and be32(batch_slot(b, i)) == 0:
                b.lengths[i] = 0
                done -= 1
    return done

# Opens ESP packet i of `a` into slot i of `b`; how many were good.
cdef inline uint32_t batch_open(Worker *w, SadTable *sad, BatchState *a, BatchState *b) noexcept nogil:
    cdef PacketInfo info
    cdef Sa *sa = NULL
    cdef uint32_t i
    cdef uint32_t done = 0
    cdef uint32_t length
    cdef uint8_t *esp
    cdef uint8_t *slot
    b.count = a.count
    w.now_ns = monotonic_ns()
    for i in range(a.count):
        esp = batch_slot(a, i)
        if i + 9 < a.count:
            if a.lengths[i + 9] >= 4:
                prefetch(sad_entry(sad, be32(batch_slot(a, i + 9))))
            sad_prefetch(sad, esp, batch_slot(a, i + 6), a.lengths[i + 6])
            sad_prefetch_rest(sad, esp, batch_slot(a, i + 3), a.lengths[i + 3])
        slot = b.data + <size_t>i * b.stride
        length = a.lengths[i]
        b.lengths[i] = 0
        b.starts[i] = BATCH_HEAD
        sa = inbound_job_sa(w, sad, esp, length)
        if sa != NULL:
            if w.jobs.opening == JOBS:
                done += batch_open_all(w, b)
            inbound_job_begin(w, sa, esp, length, 0, NULL, slot + BATCH_HEAD - INBOUND_ROOM)
            continue
        if inbound(w, sad, esp, length, 0, NULL, slot + BATCH_HEAD - INBOUND_ROOM, &info, &sa) == DROP_NONE:
            b.starts[i] = <uint32_t>(info.data - slot)
            b.lengths[i] = info.length
            done += 1
    return done + batch_open_all(w, b)

# Opens what is queued; how many were good.
cdef inline uint32_t batch_open_all(Worker *w, BatchState *b) noexcept nogil:
    cdef PacketInfo info
    cdef uint32_t i, k
    cdef uint32_t done = 0
    if w.jobs == NULL or not w.jobs.opening:
        return 0
    jobs_open_all(w.jobs)
    for k in range(w.jobs.opening):
        if inbound_job_end(w, k, &info) == DROP_NONE:
            i = <uint32_t>((w.jobs.opens[k].plain - b.data) // b.stride)
            b.starts[i] = <uint32_t>(info.data - b.data - <size_t>i * b.stride)
            b.lengths[i] = info.length
            done += 1
    w.jobs.opening = 0
    return done
