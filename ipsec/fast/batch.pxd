# Many packets in one piece of memory, in slots, sealed and opened one after the other. For measuring, and for use as a
# library without sockets.
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from ipsec.fast.atomic cimport load_ptr, prefetch
from ipsec.fast.clock cimport monotonic_ns
from ipsec.fast.drops cimport DROP_NONE, DROP_OUT_HDR_ERROR
from ipsec.fast.inbound cimport INBOUND_ROOM, inbound, inbound_batched, inbound_job_begin, inbound_job_end
from ipsec.fast.jobs cimport JOBS, jobs_open_all
from ipsec.fast.outbound cimport Sink, may_be_protected, outbound_reserve, protect_numbered, seal_jobs
from ipsec.fast.packet cimport PacketInfo, be32, parse_packet
from ipsec.fast.sa cimport ESP_HEADER, ESP_SHIFT, Endpoint, Sa, sa_prefetch, sa_prefetch_rest
from ipsec.fast.worker cimport SadTable, Worker, drop, sad_entry, sad_find

cdef enum:
    AHEAD = 4              # packets between one look at a packet and the next
    RING = 16              # packets that are being looked at, and more
    TOGETHER = 16          # packets that are looked at before they are sealed
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

# Protects packet i of `a` into slot i of `b`; how many were not dropped. Packets of one length that follow each other take
# their numbers together: an atomic exchange waits for all that the cipher has written before.
cdef inline uint32_t batch_seal(Worker *w, Sa *sa, BatchState *a, BatchState *b) noexcept nogil:
    cdef Endpoint *endpoint = <Endpoint *>load_ptr(&sa.endpoint)
    cdef Sink sink
    cdef PacketInfo infos[TOGETHER]
    cdef PacketInfo *info
    cdef uint32_t at, count, first, n, numbered, i
    cdef uint64_t seq = 0
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
    at = 0
    while at < a.count:
        count = min(a.count - at, <uint32_t>TOGETHER)
        for i in range(count):
            info = &infos[i]
            b.lengths[at + i] = 0
            if parse_packet(batch_slot(a, at + i), a.lengths[at + i], info) != 0:
                drop(w, sa, DROP_OUT_HDR_ERROR, 1)
                info.length = 0
            elif not may_be_protected(w, sa, endpoint, info):
                info.length = 0
        first = 0
        while first < count:
            n = 1
            while first + n < count and infos[first + n].length == infos[first].length:
                n += 1
            numbered = 0
            if infos[first].length:
                numbered = outbound_reserve(w, sa, n, infos[first].length, <uint64_t>n * infos[first].length, &seq)
            for i in range(first, first + numbered):
                b.current = at + i
                if protect_numbered(w, &sink, sa, endpoint, seq, batch_slot(a, at + i), &infos[i], False):
                    done += 1
                seq += 1
            first += n
        at += count
    seal_jobs(w)
    if w.spoiled:
        w.spoiled = False
        for i in range(b.count):
            if b.lengths[i] and be32(batch_slot(b, i)) == 0:
                b.lengths[i] = 0
                done -= 1
    return done

# Opens ESP packet i of `a` into slot i of `b`; how many were good. With many SAs in turn, waiting for their memory would
# take longer than the cipher, so an SA is looked up and brought into the cache while the packets before are opened.
cdef inline uint32_t batch_open(Worker *w, SadTable *sad, BatchState *a, BatchState *b) noexcept nogil:
    cdef PacketInfo info
    cdef uint32_t spis[RING]
    cdef Sa *sas[RING]
    cdef Sa *sa
    cdef uint32_t i, k, step
    cdef uint32_t done = 0
    cdef uint32_t length
    cdef uint8_t *esp
    cdef uint8_t *slot
    memset(spis, 0, sizeof(spis))
    memset(sas, 0, sizeof(sas))
    b.count = a.count
    w.now_ns = monotonic_ns()
    for step in range(a.count + 3 * AHEAD):
        # a packet is looked at four times; nothing is done twice for a run of one SA
        i = step
        k = i % RING
        if i < a.count:
            spis[k] = be32(batch_slot(a, i)) if a.lengths[i] >= ESP_HEADER else 0
            if spis[k] != spis[(i - 1) % RING]:
                prefetch(sad_entry(sad, spis[k]))
        i = step - AHEAD
        k = i % RING
        if i < a.count:
            if spis[k] == spis[(i - 1) % RING]:
                sas[k] = sas[(i - 1) % RING]
            else:
                sas[k] = sad_find(sad, spis[k])
                if sas[k] != NULL:
                    sa_prefetch(sas[k])
        i = step - 2 * AHEAD
        sa = sas[i % RING]
        if i < a.count and sa != NULL and sa != sas[(i - 1) % RING]:
            sa_prefetch_rest(sa, be32(batch_slot(a, i) + 4), a.lengths[i])
        i = step - 3 * AHEAD
        if i >= a.count:
            continue
        sa = sas[i % RING]
        esp = batch_slot(a, i)
        length = a.lengths[i]
        slot = b.data + <size_t>i * b.stride
        b.lengths[i] = 0
        b.starts[i] = BATCH_HEAD
        if inbound_batched(sa, length):
            if w.jobs.opening == JOBS:
                done += batch_open_all(w, b)
            inbound_job_begin(w, sa, esp, length, 0, NULL, slot + BATCH_HEAD - INBOUND_ROOM)
        elif inbound(w, sa, esp, length, 0, NULL, slot + BATCH_HEAD - INBOUND_ROOM, &info, NULL) == DROP_NONE:
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
