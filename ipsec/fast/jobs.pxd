# Packets whose cipher runs for many of them at once. Only whoever has batches to give asks for it (Sink.batches, the pump,
# a batch of the library). They wait in a queue until their owner wants them; a few go one by one, by esp_seal and
# esp_open_other, which give the same octets.
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from ipsec.fast.crypto cimport CRYPTO_memcmp
from ipsec.fast.packet cimport put32
from ipsec.fast.sa cimport ESP_HEADER, Sa, esp_open_other, esp_seal
from ipsec.fast.source cimport Source

cdef enum:
    JOBS = 64                # packets in the queue
    JOBS_LEAST = 6           # measured: below this, one by one takes less time (docs/performance.md)
    JOB_MAX = 16384          # octets: what is longer does not wait

# How such a cipher is run (_providers.pyx). What it is given must not change, and what it writes must not be read, until
# finish() has returned. Both say how many packets to be sealed failed meanwhile: of those nothing is left, SPI included.
cdef struct JobCipher:
    uint32_t (*seal)(void *manager, const void *key, uint8_t *esp, uint32_t length, uint32_t high) noexcept nogil
    void (*open)(void *manager, const void *key, const uint8_t *esp, uint32_t length, uint32_t high, uint8_t *plain,
                 uint8_t *icv) noexcept nogil
    uint32_t (*finish)(void *manager) noexcept nogil

# A packet to be sealed where it stands: the payload and its trailer are in place.
cdef struct SealJob:
    Sa *sa
    uint8_t *esp
    uint64_t seq
    uint32_t length          # of payload and trailer

# A packet to be opened, and after jobs_open_all whether its ICV is good.
cdef struct OpenJob:
    Sa *sa
    uint8_t *esp
    uint8_t *plain           # where the payload goes
    uint64_t seq
    uint32_t length          # of the whole packet
    uint8_t tos
    uint8_t good
    Source source
    uint8_t theirs[64]       # the ICV that came with it; where it stood is the high word of the number under ESN meanwhile
    uint8_t ours[64]

# What one worker has under way.
cdef struct Jobs:
    void *manager
    const JobCipher *cipher
    uint32_t worker
    uint32_t sealing         # seals[0 .. sealing)
    uint32_t opening
    SealJob seals[JOBS]
    OpenJob opens[JOBS]

# Seals what is queued; how many packets failed. Those have been wiped: their SPI is 0, and they must not be sent.
cdef inline uint32_t jobs_seal_all(Jobs *jobs) noexcept nogil:
    cdef uint32_t failed = 0
    cdef uint32_t i
    cdef SealJob *job
    if jobs == NULL or not jobs.sealing:
        return 0
    for i in range(jobs.sealing):
        job = &jobs.seals[i]
        if jobs.sealing < JOBS_LEAST:
            if esp_seal(job.sa, jobs.worker, job.seq, job.esp + ESP_HEADER + job.sa.iv_len, job.length, job.esp) < 0:
                memset(job.esp, 0, ESP_HEADER + job.sa.iv_len + job.length)
                failed += 1
            continue
        if job.sa.esn:
            put32(job.esp + ESP_HEADER + job.sa.iv_len + job.length, <uint32_t>(job.seq >> 32))
        failed += jobs.cipher.seal(jobs.manager, job.sa.job_key, job.esp, job.length, 4 if job.sa.esn else 0)
    if jobs.sealing >= JOBS_LEAST:
        failed += jobs.cipher.finish(jobs.manager)
    jobs.sealing = 0
    return failed

# Opens what is queued, and says which ICVs are good.
cdef inline void jobs_open_all(Jobs *jobs) noexcept nogil:
    cdef OpenJob *job
    cdef uint32_t i, k, icv_at
    if jobs.opening < JOBS_LEAST:
        for i in range(jobs.opening):
            job = &jobs.opens[i]
            job.good = esp_open_other(job.sa, jobs.worker, job.seq, job.esp, job.length, job.plain) == 0
        return
    for i in range(jobs.opening):
        job = &jobs.opens[i]
        icv_at = job.length - job.sa.icv_len
        memcpy(job.theirs, job.esp + icv_at, job.sa.icv_len)
        # a job that fails writes no ICV: what stands there must be wrong
        for k in range(job.sa.icv_len):
            job.ours[k] = <uint8_t>~job.theirs[k]
        if job.sa.esn:
            put32(job.esp + icv_at, <uint32_t>(job.seq >> 32))
        jobs.cipher.open(jobs.manager, job.sa.job_key, job.esp, icv_at - ESP_HEADER - job.sa.iv_len, 4 if job.sa.esn else 0,
                         job.plain, job.ours)
    jobs.cipher.finish(jobs.manager)
    for i in range(jobs.opening):
        job = &jobs.opens[i]
        memcpy(job.esp + job.length - job.sa.icv_len, job.theirs, job.sa.icv_len)
        job.good = CRYPTO_memcmp(job.ours, job.theirs, job.sa.icv_len) == 0
