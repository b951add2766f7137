# An engine in memory, for _pump.pyx, which works on its workers.
from libc.stdint cimport uint8_t, uint32_t

from ipsec.fast.collector cimport Collector
from ipsec.fast.outbound cimport Sink
from ipsec.fast.sa cimport Sa
from ipsec.fast.source cimport Source
from ipsec.fast.spd cimport SpdPolicy, SpdTable
from ipsec.fast.worker cimport MAX_WORKERS, SadTable, Shared, Worker

cdef class Engine:
    cdef Shared shared
    cdef Worker *workers[MAX_WORKERS + 1]
    cdef uint32_t running             # pumps that are at work
    cdef uint32_t worker_count        # of pumps; one more is for calls from Python
    cdef str provider
    cdef uint32_t next_sa
    cdef uint32_t next_policy
    cdef dict sas                     # id -> address of Sa
    cdef dict sa_params               # id -> (spi, direction, remote) under which it was added
    cdef dict inbound_ids             # spi -> id
    cdef set awaited                  # SPIs of expect_spi
    cdef dict outbound_ids            # (spi, remote) -> id
    cdef dict policies                # id -> address of SpdPolicy
    cdef dict policy_reqids           # reqid -> list of policy ids
    cdef dict sa_reqids               # reqid -> list of outbound SA ids, newest last
    cdef list retired
    cdef list pending
    cdef Collector *collector
    cdef uint8_t *packet

    cdef void free_retired(self, int kind, void *p) noexcept
    cdef int retire(self, int kind, void *p) except -1
    cdef int collect(self) except -1
    cdef Sa *sa_at(self, object id) except NULL
    cdef int sad_room(self, SadTable **where, size_t live) except -1
    cdef int point_policies(self, object reqid) except -1
    cdef void point_policy(self, object id, Sa *sa) noexcept
    cdef int publish_spd(self, SpdTable *table) except -1
    cdef int register_policy(self, SpdPolicy *policy) except -1
    cdef int publish_spd_without(self, SpdPolicy *policy) except -1
    cdef int begin(self, Sink *sink, object now, object packet) except -1
    cdef tuple taken(self)
    cdef object reason_since(self, list before)
    cdef list drop_counts(self)
    cdef object outbound_one(self, object packet, object now)
    cdef object inbound_one(self, const uint8_t *data, uint32_t length, uint8_t tos, const Source *source)
    cdef int alone(self) except -1
    cdef int drain_events(self) except -1
    cdef bint follow(self, object event) except -1
