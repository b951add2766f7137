# Workers and the SAD's tables made, filled and freed: the control plane's side of worker.pxd. The SPD's is spd_build.pxd.
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from ipsec._providers cimport job_manager_free, job_manager_new
from ipsec.fast.atomic cimport store_ptr, store_u64
from ipsec.fast.crypto cimport OPENSSL_cleanse
from ipsec.fast.early cimport early_discard_all
from ipsec.fast.fragment_ports cimport FragmentTable
from ipsec.fast.held cimport held_free
from ipsec.fast.inbound cimport inbound_without_sa
from ipsec.fast.jobs cimport JobCipher, Jobs
from ipsec.fast.memory cimport aligned_zero, table_zero
from ipsec.fast.sa cimport Sa
from ipsec.fast.spd cimport flow_cache_free, flow_cache_new
from ipsec.fast.worker cimport SCRATCH, SadEntry, SadTable, Shared, Worker, sad_hash

cdef inline void worker_free(Worker *w) noexcept:
    flow_cache_free(w.flows)
    free(w.fragments_in)
    free(w.fragments_out)
    free(w.scratch)
    free(w.joiner)
    held_free(&w.held)
    early_discard_all(&w.early)
    if w.jobs != NULL:
        job_manager_free(w.jobs.manager)
        OPENSSL_cleanse(w.jobs, sizeof(Jobs))
        free(w.jobs)
    free(w)

cdef inline Worker *worker_new(Shared *shared, uint32_t index) except NULL:
    cdef Worker *w = <Worker *>aligned_zero(sizeof(Worker))
    w.shared = shared
    w.index = index
    w.without_sa = inbound_without_sa
    w.flows = flow_cache_new()
    w.fragments_in = <FragmentTable *>calloc(1, sizeof(FragmentTable))
    w.fragments_out = <FragmentTable *>calloc(1, sizeof(FragmentTable))
    w.scratch = <uint8_t *>aligned_zero(2 * SCRATCH)
    if w.flows == NULL or w.fragments_in == NULL or w.fragments_out == NULL:
        worker_free(w)
        raise MemoryError
    return w

# Gives a worker what an SA with a JobCipher needs, before that SA is published.
cdef inline int worker_jobs(Worker *w, const JobCipher *cipher) except -1:
    cdef Jobs *jobs
    if w.jobs != NULL:
        return 0
    jobs = <Jobs *>aligned_zero(sizeof(Jobs))
    jobs.cipher = cipher
    jobs.worker = w.index
    try:
        jobs.manager = job_manager_new()
    except MemoryError:
        free(jobs)
        raise
    store_ptr(&w.jobs, jobs)
    return 0

# The source addresses of ICMP errors, or None; ValueError.
cdef inline int shared_icmp_sources(Shared *shared, object source4, object source6) except -1:
    for name, value, size in (("icmp_source4", source4, 4), ("icmp_source6", source6, 16)):
        if value is not None and len(value) != size:
            raise ValueError(f"{name} must have {size} octets, got {len(value)}")
    shared.has_source4 = 0
    shared.has_source6 = 0
    if source4 is not None:
        memcpy(shared.source4, <const uint8_t *><bytes>source4, 4)
        shared.has_source4 = 1
    if source6 is not None:
        memcpy(shared.source6, <const uint8_t *><bytes>source6, 16)
        shared.has_source6 = 1
    return 0

cdef inline SadTable *sad_new(uint32_t size) except NULL:
    cdef SadTable *table = <SadTable *>table_zero(sizeof(SadTable) + size * sizeof(SadEntry))
    table.mask = size - 1
    return table

cdef inline void sad_insert(SadTable *table, uint32_t spi, Sa *sa) noexcept:
    """Publish an SA in a table that has room: the SA before the SPI, so that a reader who sees one sees the other."""
    cdef uint64_t i = sad_hash(spi) & table.mask
    while table.entries[i].spi != 0 and table.entries[i].spi != spi:
        i = (i + 1) & table.mask
    store_ptr(&table.entries[i].sa, sa)
    if table.entries[i].spi == 0:
        table.used += 1
        store_u64(&table.entries[i].spi, spi)

# A table of this size with the SAs of another, without what removed ones left behind.
cdef inline SadTable *sad_copy(const SadTable *old, uint32_t size) except NULL:
    cdef SadTable *table = sad_new(size)
    cdef uint64_t i
    for i in range(<uint64_t>old.mask + 1):
        if old.entries[i].spi and old.entries[i].sa != NULL:
            sad_insert(table, <uint32_t>old.entries[i].spi, old.entries[i].sa)
    return table

# Makes sure that there is room for one more entry, with which `live` are there: publishes another table if need be, and
# returns the old one for the caller to retire.
cdef inline SadTable *sad_replace(SadTable **where, size_t live) except? NULL:
    cdef SadTable *old = where[0]
    cdef uint32_t size = 64
    if 2 * (old.used + 1) <= old.mask + 1:
        return NULL
    while size < 4 * live:
        size *= 2
    store_ptr(where, sad_copy(old, size))
    return old

# Takes an SA out of a table that has it.
cdef inline void sad_remove(SadTable *table, uint32_t spi) noexcept:
    cdef uint64_t i = sad_hash(spi) & table.mask
    while table.entries[i].spi != spi:
        i = (i + 1) & table.mask
    store_ptr(&table.entries[i].sa, NULL)
