# What a worker owns while it handles packets, and the tables it shares with the control plane.
#
# Readers take no lock. The control plane publishes a new table or endpoint with a release store; the old one is freed
# when every worker has been outside of a batch since (quiescent-state reclamation): a worker's epoch is odd inside.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from ipsec.fast.atomic cimport add_u64, and_u32, fence, load_ptr, load_u64, or_u32, store_u64, swap_u64
from ipsec.fast.drops cimport DROP_REASONS
from ipsec.fast.early cimport EarlyPackets
from ipsec.fast.fragment_ports cimport FragmentTable
from ipsec.fast.held cimport HeldFrames
from ipsec.fast.jobs cimport Jobs
from ipsec.fast.join cimport Joiner
from ipsec.fast.packet cimport be32
from ipsec.fast.sa cimport Sa, sa_prefetch, sa_prefetch_rest
from ipsec.fast.source cimport Source
from ipsec.fast.spd cimport FlowCache, SpdTable

cdef enum:
    EVENTS = 1024            # ring size, a power of two
    EVENT_SOFT_LIFETIME = 1
    EVENT_HARD_LIFETIME = 2
    EVENT_SEQUENCE_SOFT = 3
    EVENT_SEQUENCE_HARD = 4
    EVENT_ACQUIRE = 5
    EVENT_MAPPING = 6
    SCRATCH = 66560          # one IP packet and what may be written after it; a worker has two of these
    MAX_WORKERS = 64

cdef struct EventRecord:
    uint8_t kind
    uint8_t version
    uint16_t port
    uint32_t sa
    uint32_t value
    uint8_t address[16]

# One producer (the worker), one consumer (the control plane).
cdef struct EventRing:
    uint64_t head
    uint64_t tail
    EventRecord records[EVENTS]

# Inbound SAs by SPI: open addressing, at most half full. A removed SA leaves its SPI with sa NULL, so that probing goes on.
cdef struct SadEntry:
    uint64_t spi             # 0: never used
    Sa *sa

cdef struct SadTable:
    uint32_t mask
    uint32_t used            # entries with an SPI
    SadEntry entries[1]

cdef struct Shared:
    SadTable *sad            # load with load_ptr
    SadTable *awaited        # SPIs that were told to peers and have no SA yet: their `sa` is not NULL; load with load_ptr
    SpdTable *spd            # load with load_ptr
    uint32_t hold            # frames to keep for each policy without an SA
    uint32_t released        # changes that may let frames go that were kept
    uint32_t arrived         # the same for packets that came before their SA
    uint8_t mss_clamp
    uint8_t has_source4      # of our ICMP errors
    uint8_t has_source6
    uint8_t source4[4]
    uint8_t source6[16]

ctypedef uint32_t (*WithoutSa)(Worker *w, const uint8_t *esp, uint32_t length, uint8_t tos,
                               const Source *source) noexcept nogil

cdef struct Worker:
    uint64_t epoch
    uint32_t index
    Shared *shared
    uint64_t now_ns
    FlowCache *flows
    FragmentTable *fragments_in
    FragmentTable *fragments_out
    uint8_t *scratch         # 2 * SCRATCH octets
    uint64_t drops[DROP_REASONS]
    uint64_t fragments_made  # packets that inner fragmentation added
    Joiner *joiner           # NULL until there is a fragment for an SA in transport mode
    uint64_t fragments_kept  # by it, for the rest of their datagrams
    uint64_t fragments_joined  # of those, the ones that went as part of another packet
    Jobs *jobs               # NULL until there is an SA with a JobCipher
    uint8_t spoiled          # packets could not be sealed and begin with SPI 0 now: they are counted, and must not be sent
    HeldFrames held
    EarlyPackets early
    WithoutSa without_sa     # inbound_without_sa
    EventRing events

cdef inline void worker_enter(Worker *w) noexcept nogil:
    swap_u64(&w.epoch, w.epoch + 1)
    fence()      # no table is read before the epoch is seen to be odd

cdef inline void worker_leave(Worker *w) noexcept nogil:
    store_u64(&w.epoch, w.epoch + 1)

cdef inline bint event_push(Worker *w, uint8_t kind, uint32_t sa, uint32_t value, uint8_t version,
                            const uint8_t *address, uint16_t port) noexcept nogil:
    cdef EventRing *ring = &w.events
    cdef EventRecord *r
    if ring.head - load_u64(&ring.tail) >= EVENTS:
        return False
    r = &ring.records[ring.head & (EVENTS - 1)]
    r.kind = kind
    r.sa = sa
    r.value = value
    r.version = version
    r.port = port
    if version:
        memcpy(r.address, address, 4 if version == 4 else 16)
    store_u64(&ring.head, ring.head + 1)
    return True

# Raises an event once in an SA's life, whichever worker comes first; if the ring is full, the next packet tries again.
cdef inline void event_once(Worker *w, Sa *sa, uint8_t kind) noexcept nogil:
    cdef uint32_t bit = <uint32_t>1 << kind
    if sa.told & bit or or_u32(&sa.told, bit) & bit:
        return
    if not event_push(w, kind, sa.id, 0, 0, NULL, 0):
        and_u32(&sa.told, ~bit)

cdef inline void drop(Worker *w, Sa *sa, uint32_t reason, uint32_t n) noexcept nogil:
    w.drops[reason] += n
    if sa == NULL:
        return
    if sa.shared:
        add_u64(&sa.drops[reason], n)
    else:
        sa.drops[reason] += n

cdef inline uint64_t sad_hash(uint32_t spi) noexcept nogil:
    return (<uint64_t>spi * 0x9E3779B97F4A7C15U) >> 32

# Where a search for this SPI begins, for prefetching.
cdef inline SadEntry *sad_entry(SadTable *table, uint32_t spi) noexcept nogil:
    return &table.entries[sad_hash(spi) & table.mask]

cdef inline Sa *sad_find(SadTable *table, uint32_t spi) noexcept nogil:
    cdef uint64_t i = sad_hash(spi) & table.mask
    cdef uint64_t seen
    while True:
        seen = load_u64(&table.entries[i].spi)
        if seen == spi:
            return <Sa *>load_ptr(&table.entries[i].sa)
        if seen == 0:
            return NULL
        i = (i + 1) & table.mask

# Makes the SA of a datagram ready that comes soon, in two steps: the first some packets before the second. Not if it is
# the SA of `now`, the datagram at hand: as a rule it is.
cdef inline void sad_prefetch(SadTable *table, const uint8_t *now, const uint8_t *esp, uint32_t length) noexcept nogil:
    cdef Sa *sa
    if length >= 8 and be32(esp) != be32(now):
        sa = sad_find(table, be32(esp))
        if sa != NULL:
            sa_prefetch(sa)

cdef inline void sad_prefetch_rest(SadTable *table, const uint8_t *now, const uint8_t *esp,
                                   uint32_t length) noexcept nogil:
    cdef Sa *sa
    if length >= 8 and be32(esp) != be32(now):
        sa = sad_find(table, be32(esp))
        if sa != NULL:
            sa_prefetch_rest(sa, be32(esp + 4), length)
