# The compiled data path: what Python sees of it. The work is done by the inline functions of ipsec/fast/*.pxd.
"""ESP in compiled code: ``Engine`` (SAD, SPD, ESP) and ``Batch`` (many packets in memory).

Imported through ``ipsec.esp.fast`` only. ``Engine`` is the fast twin of ``ipsec.esp.reference.ReferenceEngine``.
"""
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from ipsec.fast.address cimport address_to_python
from ipsec.fast.atomic cimport add_u32, and_u32, fence, load_u32, load_u64, store_ptr, store_u64
from ipsec.fast.batch cimport BATCH_HEAD, BatchState, batch_open, batch_seal, batch_slot
from ipsec.fast.collector cimport Collector, collector_free, collector_new, collector_start
from ipsec.fast.drops cimport *
from ipsec.fast.early cimport EarlyPacket
from ipsec.fast.held cimport HeldFrame, HeldFrames, held_forget_policies, held_too_long, held_unlink
from ipsec.fast.inbound cimport INBOUND_EARLY, inbound, inbound_find, inbound_next_early
from ipsec.fast.jobs cimport JobCipher
from ipsec.fast.memory cimport aligned_zero
from ipsec.fast.outbound cimport Sink, can_be_said, outbound_frame, outbound_reserve, protect_single, seal_packet
from ipsec.fast.packet cimport PacketInfo, parse_packet
from ipsec.fast.sa cimport *
from ipsec.fast.sa_new cimport endpoint_check, endpoint_fill, sa_free, sa_lifetime, sa_limit, sa_new, sa_stats
from ipsec.fast.source cimport Source, source_from_python
from ipsec.fast.spd cimport SpdPolicy, SpdTable
from ipsec.fast.spd_build cimport (
    policy_from_python, spd_policy_free, spd_publish, spd_set_sa, spd_table_add, spd_table_delete, spd_table_free,
    spd_table_from_python, spd_table_replace)
from ipsec.fast.tables cimport (
    sad_insert, sad_new, sad_remove, sad_replace, shared_icmp_sources, worker_free, worker_jobs, worker_new)
from ipsec.fast.worker cimport *

import os

from ipsec._providers import PROVIDERS, choose_provider
from ipsec.crypto.suites import all_esp_suites
from ipsec.errors import PolicyError, SaError, SuiteError
from ipsec.esp.drops import DropReason
from ipsec.esp.engine import Event, EventKind, Inbound, Outbound, Sealed
from ipsec.esp.sa import Action, Direction

cdef enum Retired:
    RETIRED_MEMORY = 0
    RETIRED_SA = 1
    RETIRED_SPD = 2

cdef enum:
    PACKET_ROOM = 65536 + 4096

_REASONS = tuple(DropReason)

cdef class Batch:
    """``count`` slots for packets of up to ``size`` octets each, in one piece of memory that is reused."""

    cdef BatchState state
    cdef uint32_t slots

    def __cinit__(self, unsigned int count, unsigned int size):
        cdef BatchState *b = &self.state
        if not 1 <= count <= 1 << 20 or not 1 <= size <= 66000:
            raise ValueError("count must be in 1..1048576 and size in 1..66000")
        b.count = self.slots = count
        b.size = size
        # not a multiple of the page size, so that the slots do not all fall into the same cache sets
        b.stride = ((BATCH_HEAD + size + TRAILER_ROOM + 63) & ~<size_t>63) + 64
        b.data = <uint8_t *>aligned_zero(b.stride * count)
        b.lengths = <uint32_t *>calloc(count, 4)
        b.starts = <uint32_t *>calloc(count, 4)
        if b.lengths == NULL or b.starts == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.state.data)
        free(self.state.lengths)
        free(self.state.starts)

    @property
    def count(self):
        """How many slots are in use."""
        return self.state.count

    @property
    def size(self):
        """Octets that fit into a slot."""
        return self.state.size

    def load(self, packets):
        """Fill the slots with these packets; ``count`` becomes their number."""
        cdef bytes packet
        cdef uint32_t i = 0
        if not 1 <= len(packets) <= self.slots:
            raise ValueError(f"{len(packets)} packets do not fit into {self.slots} slots")
        for packet in packets:
            if len(packet) > self.state.size:
                raise ValueError(f"a packet of {len(packet)} octets does not fit into slots of {self.state.size}")
            self.state.starts[i] = BATCH_HEAD
            self.state.lengths[i] = <uint32_t>len(packet)
            memcpy(batch_slot(&self.state, i), <const uint8_t *>packet, len(packet))
            i += 1
        self.state.count = i

    def packets(self):
        """The packets, as bytes; empty ones were dropped."""
        cdef uint32_t i
        return [PyBytes_FromStringAndSize(<char *>batch_slot(&self.state, i), self.state.lengths[i])
                for i in range(self.state.count)]

cdef class Engine:
    """SAD, SPD and ESP (``ipsec.esp.engine.EspEngine``) in compiled code.

    ``provider`` is "auto" or one of ``PROVIDERS``; a suite that the provider lacks is libcrypto's. ``workers`` is how
    many pumps may run at once. ``icmp_source4`` and ``icmp_source6`` are the source addresses of ICMP errors (4 and 16
    octets); without them an error comes from the address that the packet was for.

    Calls hold the GIL; pumps run beside them without it. Packets may be sealed by a call while pumps run: sequence
    numbers are never given twice. Opening packets by a call while a pump runs needs ``workers`` > 1, which makes SAs
    take a lock; otherwise it is refused.

    ``hold_packets``: how many frames of each policy without an SA are kept for the SA to come; 0 drops them at once.
    """

    def __cinit__(self, *, str provider="auto", unsigned int workers=1, bint mss_clamp=True, unsigned int hold_packets=0,
                  icmp_source4=None, icmp_source6=None):
        cdef uint32_t i
        if provider == "copy":
            if os.environ.get("IPSEC_BENCH_NULL_CIPHER") != "1":
                raise SuiteError("provider 'copy' leaves packets in clear: it is for benchmarks, "
                                 "which set IPSEC_BENCH_NULL_CIPHER=1")
        elif provider not in ("auto", *PROVIDERS):
            raise SuiteError(f"crypto provider {provider!r} is none of auto, {', '.join(PROVIDERS)}")
        if not 1 <= workers <= MAX_WORKERS:
            raise ValueError(f"workers: {workers} is not in 1..{MAX_WORKERS}")
        self.provider = provider
        self.worker_count = workers
        self.shared.mss_clamp = mss_clamp
        self.shared.hold = hold_packets
        self.set_icmp_sources(icmp_source4, icmp_source6)
        self.shared.sad = sad_new(64)
        self.shared.awaited = sad_new(64)
        self.shared.spd = spd_table_replace(NULL, NULL, 0)
        if self.shared.spd == NULL:
            raise MemoryError
        for i in range(workers + 1):
            self.workers[i] = worker_new(&self.shared, i)
        self.next_sa = 1
        self.next_policy = 1
        self.sas = {}
        self.sa_params = {}
        self.inbound_ids = {}
        self.awaited = set()
        self.outbound_ids = {}
        self.policies = {}
        self.policy_reqids = {}
        self.sa_reqids = {}
        self.retired = []
        self.pending = []

    def __dealloc__(self):
        cdef uint32_t i
        for kind, address, _ in self.retired or ():
            self.free_retired(kind, <void *><uintptr_t>address)
        for address in (self.sas or {}).values():
            sa_free(<Sa *><uintptr_t>address)
        for i in range(self.worker_count + 1):
            if self.workers[i] != NULL:
                worker_free(self.workers[i])
        spd_table_free(self.shared.spd)
        free(self.shared.sad)
        free(self.shared.awaited)
        collector_free(self.collector)
        free(self.packet)

    def set_icmp_sources(self, icmp_source4, icmp_source6):
        """Change the source addresses of ICMP errors; None: the address that the packet was for."""
        shared_icmp_sources(&self.shared, icmp_source4, icmp_source6)

    def providers(self):
        """Suite name -> provider that this engine uses for it."""
        return {suite.name: self.provider_of(suite) for suite in all_esp_suites()}

    def provider_of(self, suite):
        """The provider for SAs of a suite. Finding it takes some milliseconds, once in a process."""
        return choose_provider(suite, self.provider)

    # --- reclamation ---

    cdef void free_retired(self, int kind, void *p) noexcept:
        if kind == RETIRED_SA:
            sa_free(<Sa *>p)
        elif kind == RETIRED_SPD:
            spd_table_free(<SpdTable *>p)
        else:
            free(p)

    cdef int retire(self, int kind, void *p) except -1:
        """Free p once no worker can still be using it."""
        cdef uint32_t i
        fence()      # what was unpublished is seen before the epochs are read
        self.retired.append((kind, <uintptr_t>p, [load_u64(&self.workers[i].epoch) for i in range(self.worker_count + 1)]))
        self.collect()
        return 0

    cdef int collect(self) except -1:
        cdef uint32_t i
        while self.retired:
            kind, address, epochs = self.retired[0]
            for i in range(self.worker_count + 1):
                if epochs[i] & 1 and load_u64(&self.workers[i].epoch) == <uint64_t>epochs[i]:
                    return 0
            del self.retired[0]
            self.free_retired(kind, <void *><uintptr_t>address)
        return 0

    # --- SAD ---

    cdef Sa *sa_at(self, object id) except NULL:
        address = self.sas.get(id)
        if address is None:
            raise SaError(f"there is no SA with id {id}")
        return <Sa *><uintptr_t>address

    def add_sa(self, params):
        """Install an SA; its id. SaError if an inbound SA has that SPI, or an outbound one has (SPI, remote)."""
        cdef uint32_t id = self.next_sa
        cdef Sa *sa
        cdef bint incoming = params.direction is Direction.IN
        cdef uint32_t i
        index = self.inbound_ids if incoming else self.outbound_ids
        key = params.spi if incoming else (params.spi, params.remote)
        if key in index:
            raise SaError(f"there is an {'inbound' if incoming else 'outbound'} SA with SPI 0x{params.spi:08x} already")
        sa = sa_new(params, id, self.worker_count + 1, self.worker_count > 1,
                    self.provider_of(params.suite))
        if sa.job_cipher != NULL:
            for i in range(self.worker_count + 1):
                try:
                    worker_jobs(self.workers[i], <const JobCipher *>sa.job_cipher)
                except MemoryError:
                    sa_free(sa)
                    raise
        if incoming:
            self.sad_room(&self.shared.sad, len(self.inbound_ids) + 1)
            sad_insert(self.shared.sad, sa.spi, sa)
            self.forget_spi(sa.spi)
        else:
            self.sa_reqids.setdefault(params.reqid, []).append(id)
        self.next_sa += 1
        self.sas[id] = <uintptr_t>sa
        self.sa_params[id] = (params.direction, key, params.reqid, params.encap)
        index[key] = id
        if not incoming:
            self.point_policies(params.reqid)
            add_u32(&self.shared.released, 1)
        return id

    cdef int sad_room(self, SadTable **where, size_t live) except -1:
        """Make sure that there is room for one more, so that with it ``live`` are there: maybe in another table."""
        cdef SadTable *old = sad_replace(where, live)
        if old != NULL:
            self.retire(RETIRED_MEMORY, old)
        return 0

    def expect_spi(self, spi):
        """Keep packets with this SPI until an SA has it or ``forget_spi``. SaError if an SA has it, or none can."""
        if not 256 <= spi <= 0xFFFFFFFF or spi in self.inbound_ids:
            raise SaError(f"no inbound SA can come with SPI 0x{spi:08x}")
        self.sad_room(&self.shared.awaited, len(self.awaited) + 1)
        # any address will do
        sad_insert(self.shared.awaited, spi, <Sa *>&self.shared)
        self.awaited.add(spi)

    def forget_spi(self, spi):
        """No packet with this SPI needs to be kept any more; one that nobody expects is ignored."""
        if spi in self.awaited:
            self.awaited.remove(spi)
            sad_remove(self.shared.awaited, spi)
        add_u32(&self.shared.arrived, 1)

    cdef int point_policies(self, object reqid) except -1:
        """Give the policies of a reqid the SA that was added last, or none."""
        cdef Sa *sa = NULL
        ids = self.sa_reqids.get(reqid)
        if ids:
            sa = self.sa_at(ids[len(ids) - 1])
        for policy in self.policy_reqids.get(reqid, ()):
            self.point_policy(policy, sa)
        return 0

    cdef void point_policy(self, object id, Sa *sa) noexcept:
        cdef SpdPolicy *policy = <SpdPolicy *><uintptr_t>self.policies[id]
        if sa != NULL:
            store_u64(&policy.acquired_ns, 0)
        spd_set_sa(policy, sa)

    def del_sa(self, id):
        """Remove an SA and wipe its keys. SaError if it is not there."""
        cdef Sa *sa = self.sa_at(id)
        direction, key, reqid, _ = self.sa_params.pop(id)
        sa.dead = 1
        if direction is Direction.IN:
            del self.inbound_ids[key]
            sad_remove(self.shared.sad, sa.spi)
        else:
            del self.outbound_ids[key]
            self.sa_reqids[reqid].remove(id)
            if not self.sa_reqids[reqid]:
                del self.sa_reqids[reqid]
            self.point_policies(reqid)
        del self.sas[id]
        self.retire(RETIRED_SA, sa)

    def update_sa(self, id, *, local, remote, encap, path_mtu):
        """Move an SA to other outer addresses in place: keys, counters and window stay."""
        cdef Sa *sa = self.sa_at(id)
        cdef Endpoint *old = sa.endpoint
        cdef Endpoint *e
        endpoint_check(sa, local, remote, encap, path_mtu)
        direction, key, reqid, _ = self.sa_params[id]
        moved = (sa.spi, remote) if direction is Direction.OUT else key
        if moved != key and moved in self.outbound_ids:
            raise SaError(f"there is an outbound SA with SPI 0x{sa.spi:08x} to {remote} already")
        e = <Endpoint *>aligned_zero(sizeof(Endpoint))
        endpoint_fill(e, local, remote, encap, path_mtu)
        if moved != key:
            self.outbound_ids[moved] = id
            del self.outbound_ids[key]
        e.inner_mtu = sa_inner_mtu(sa, e)
        self.sa_params[id] = (direction, moved, reqid, encap)
        store_ptr(&sa.endpoint, e)
        and_u32(&sa.told, ~<uint32_t>(1 << EVENT_MAPPING))
        self.retire(RETIRED_MEMORY, old)

    def set_lifetime(self, id, lifetime):
        """Other limits by volume from now on; what was counted stays, and both lifetime events may come again."""
        cdef Sa *sa = self.sa_at(id)
        sa_lifetime(sa, lifetime)
        if sa.direction == DIRECTION_OUT:
            sa_limit(sa)
        # after the limits: a worker that still reads the old ones would use up the new ones' events
        and_u32(&sa.told, ~<uint32_t>(1 << EVENT_SOFT_LIFETIME | 1 << EVENT_HARD_LIFETIME))

    def query_sa(self, id):
        """Counters of an SA (``SaStats``). SaError if it is not there."""
        cdef Sa *sa = self.sa_at(id)
        self.collect()
        return sa_stats(sa, self.sa_params[id][3], _REASONS)

    # --- SPD ---

    cdef int publish_spd(self, SpdTable *table) except -1:
        cdef SpdTable *old = self.shared.spd
        if table == NULL:
            raise MemoryError
        spd_publish(&self.shared.spd, table)
        add_u32(&self.shared.released, 1)
        self.retire(RETIRED_SPD, old)
        return 0

    cdef int register_policy(self, SpdPolicy *policy) except -1:
        id = policy.id
        self.policies[id] = <uintptr_t>policy
        if policy.action == <int>Action.PROTECT:
            self.policy_reqids.setdefault(policy.reqid, []).append(id)
            ids = self.sa_reqids.get(policy.reqid)
            if ids:
                self.point_policy(id, self.sa_at(ids[len(ids) - 1]))
        return 0

    def add_policy(self, policy):
        """Add a policy; its id."""
        cdef SpdPolicy *added = policy_from_python(policy, self.next_policy)
        cdef SpdTable *table = spd_table_add(self.shared.spd, added)
        if table == NULL:
            spd_policy_free(added)
            raise MemoryError
        self.next_policy += 1
        self.register_policy(added)
        self.publish_spd(table)
        return added.id

    def set_policies(self, policies):
        """Replace the whole SPD at once; the ids, in the same order."""
        cdef uint32_t n = 0
        cdef uint32_t i
        cdef SpdPolicy **array = NULL
        cdef SpdTable *table = spd_table_from_python(self.shared.spd, policies, self.next_policy, &array)
        try:
            n = len(policies)
            self.next_policy += n
            self.policies = {}
            self.policy_reqids = {}
            for i in range(n):
                self.register_policy(array[i])
            self.publish_spd(table)
            return [array[i].id for i in range(n)]
        finally:
            free(array)

    def del_policy(self, id):
        """Remove a policy. PolicyError if it is not there."""
        cdef SpdPolicy *policy
        if id not in self.policies:
            raise PolicyError(f"there is no policy with id {id}")
        policy = <SpdPolicy *><uintptr_t>self.policies[id]
        self.publish_spd_without(policy)
        del self.policies[id]

    cdef int publish_spd_without(self, SpdPolicy *policy) except -1:
        cdef SpdTable *table = spd_table_delete(self.shared.spd, policy)
        id = policy.id
        if table == NULL:
            raise MemoryError
        if policy.action == <int>Action.PROTECT:
            self.policy_reqids[policy.reqid].remove(id)
            if not self.policy_reqids[policy.reqid]:
                del self.policy_reqids[policy.reqid]
        self.publish_spd(table)
        return 0

    # --- packets, one call each ---

    cdef int begin(self, Sink *sink, object now, object packet) except -1:
        """Make ready for one packet from Python: a copy that may be written to, and an empty collector."""
        cdef bytes data = bytes(packet)
        if self.packet == NULL:
            self.packet = <uint8_t *>aligned_zero(PACKET_ROOM)
        if self.collector == NULL:
            self.collector = collector_new()
        if len(data) > 65535:
            return 0
        collector_start(self.collector, sink)
        memcpy(self.packet, <const uint8_t *>data, len(data))
        self.workers[self.worker_count].now_ns = <uint64_t>(now * 1e9)
        return 1

    cdef tuple taken(self):
        """What the collector has, as Sealed values."""
        cdef Collector *c = self.collector
        cdef size_t at = 0
        cdef uint32_t i
        result = []
        for i in range(c.count):
            result.append(Sealed(PyBytes_FromStringAndSize(<char *>c.data + at, c.lengths[i]), c.sas[i].id, c.tos[i],
                                 c.df[i] != 0))
            at += c.lengths[i]
        return tuple(result)

    cdef object reason_since(self, list before):
        """The drop reason that was counted since ``before``."""
        cdef int i
        cdef Worker *w = self.workers[self.worker_count]
        for i in range(1, DROP_REASONS):
            if w.drops[i] != <uint64_t>before[i]:
                return _REASONS[i]
        return DropReason.NONE

    cdef list drop_counts(self):
        cdef int i
        return [self.workers[self.worker_count].drops[i] for i in range(DROP_REASONS)]

    def encapsulate(self, sa, packet, now):
        """Protect one IP packet with this SA, without asking the SPD, the MTU or the clamp."""
        cdef Sink sink
        cdef PacketInfo info
        cdef Sa *target = self.sa_at(sa)
        cdef Worker *w = self.workers[self.worker_count]
        if target.direction != DIRECTION_OUT:
            raise SaError(f"SA 0x{target.spi:08x} is not outbound")
        before = self.drop_counts()
        if not self.begin(&sink, now, packet) or parse_packet(self.packet, <uint32_t>len(packet), &info) != 0:
            drop(w, target, DROP_OUT_HDR_ERROR, 1)
            return DropReason.OUT_HDR_ERROR
        protect_single(w, &sink, target, self.packet, &info, False)
        return self.taken()[0] if self.collector.count else self.reason_since(before)

    def dummy(self, sa, length, now):
        """A dummy packet (next header 59) with ``length`` octets of payload (RFC 4303 section 2.6)."""
        cdef Sink sink
        cdef Sa *target = self.sa_at(sa)
        cdef Worker *w = self.workers[self.worker_count]
        cdef uint64_t seq
        if target.direction != DIRECTION_OUT:
            raise SaError(f"SA 0x{target.spi:08x} is not outbound")
        if length < 0:
            raise ValueError(f"a dummy packet cannot have {length} octets")
        before = self.drop_counts()
        if length > 65535 or not can_be_said(target, target.endpoint, length):
            drop(w, target, DROP_OUT_TOO_BIG, 1)
            return DropReason.OUT_TOO_BIG
        self.begin(&sink, now, bytes(length))
        if outbound_reserve(w, target, 1, 0, 0, &seq):
            seal_packet(w, &sink, target, target.endpoint, seq, self.packet, length, 59, 0, target.df != DF_CLEAR)
        return self.taken()[0] if self.collector.count else self.reason_since(before)

    def rearm(self, id):
        """Let the next packet of this policy without an SA raise ACQUIRE at once."""
        address = self.policies.get(id)
        if address is not None:
            store_u64(&(<SpdPolicy *><uintptr_t>address).acquired_ns, 0)

    def held(self):
        """How many frames wait for an SA."""
        fence()      # what was just changed is seen by whoever keeps a frame that is not counted here
        return sum([load_u32(&self.workers[i].held.count) for i in range(self.worker_count + 1)])

    def early(self):
        """How many packets came before their SA and wait for it."""
        fence()      # as in held()
        return sum([load_u32(&self.workers[i].early.count) for i in range(self.worker_count + 1)])

    def release_early(self, now):
        """What became of the packets that ``inbound`` kept and whose SA is there, oldest first for each SPI."""
        cdef Worker *w = self.workers[self.worker_count]
        cdef EarlyPacket *packet
        cdef Sink sink
        self.alone()
        self.begin(&sink, now, b"")
        result = []
        while True:
            packet = inbound_next_early(w)
            if packet == NULL:
                break
            result.append(self.inbound_one(packet.data, packet.length, packet.tos, &packet.source))
            free(packet)
        self.drain_events()
        return result

    def release(self, now):
        """Try the packets again that ``outbound`` kept; what became of those that wait no longer, oldest first."""
        cdef HeldFrames *held = &self.workers[self.worker_count].held
        cdef HeldFrame *frame
        cdef uint32_t n = held.count
        result = []
        held_forget_policies(held)
        while n and held.first != NULL:
            n -= 1
            frame = held_unlink(held, NULL)
            packet = PyBytes_FromStringAndSize(<char *>frame.data, frame.length)
            if held_too_long(frame, <uint64_t>(now * 1e9)):
                drop(self.workers[self.worker_count], NULL, DROP_OUT_NO_STATES, 1)
                one = Outbound(DropReason.OUT_NO_STATES)
            else:
                held.since_ns = frame.since_ns
                one = self.outbound_one(packet, now)
                held.since_ns = 0
            free(frame)
            if not one.held:
                result.append(one)
        return result

    def outbound(self, packet, now):
        """Everything RFC 4301 section 5.1 asks for a packet from the inside (``Outbound``)."""
        return self.outbound_one(packet, now)

    cdef object outbound_one(self, object packet, object now):
        cdef Sink sink
        cdef Worker *w = self.workers[self.worker_count]
        cdef Collector *c
        cdef uint64_t ever, kept
        before = self.drop_counts()
        if not self.begin(&sink, now, packet):
            drop(w, NULL, DROP_OUT_HDR_ERROR, 1)
            return Outbound(DropReason.OUT_HDR_ERROR)
        c = self.collector
        ever, kept = w.held.ever, w.fragments_kept
        outbound_frame(w, self.shared.spd, &sink, NULL, self.packet, <uint32_t>len(packet))
        if w.held.ever != ever or w.fragments_kept != kept:
            return Outbound(DropReason.NONE, held=w.held.ever != ever, joined=w.fragments_kept != kept)
        reason = self.reason_since(before)
        if c.clear_length:
            return Outbound(DropReason.NONE, clear=PyBytes_FromStringAndSize(<char *>self.packet, c.clear_length))
        reply = PyBytes_FromStringAndSize(<char *>c.reply, c.reply_length) if c.reply_length else None
        sealed = self.taken()
        # of the fragments of one packet, those that got through count
        return Outbound(DropReason.NONE if sealed else reason, sealed, reply)

    def inbound(self, datagram, now, *, tos=0, source=None):
        """Everything RFC 4301 section 5.2 asks for an ESP packet, SPI to ICV (``Inbound``)."""
        cdef Sink sink
        cdef Worker *w = self.workers[self.worker_count]
        cdef Source origin
        cdef bytes data = bytes(datagram)
        self.alone()
        self.begin(&sink, now, b"")
        if len(data) > 65535:
            drop(w, NULL, DROP_IN_BUFFER_ERROR, 1)
            return Inbound(DropReason.IN_BUFFER_ERROR)
        source_from_python(source, &origin)
        result = self.inbound_one(data, <uint32_t>len(data), tos, &origin)
        if source is not None:
            self.drain_events()
        return result

    cdef object inbound_one(self, const uint8_t *data, uint32_t length, uint8_t tos, const Source *source):
        cdef PacketInfo info
        cdef Sa *sa = inbound_find(self.shared.sad, data, length)
        cdef uint32_t reason = inbound(self.workers[self.worker_count], sa, data, length, tos, source, self.packet, &info,
                                       NULL)
        if reason == INBOUND_EARLY:
            return Inbound(DropReason.NONE)
        if reason:
            return Inbound(_REASONS[reason], b"", -1 if sa == NULL else sa.id)
        return Inbound(DropReason.NONE, PyBytes_FromStringAndSize(<char *>info.data, info.length), sa.id)

    # --- what happened ---

    cdef int alone(self) except -1:
        """Raise unless this call is the only one that may touch a replay window."""
        if load_u32(&self.running) and self.worker_count == 1:
            raise SaError("a pump is at work on this engine: opening packets beside it needs an engine with workers > 1")
        return 0

    cdef int drain_events(self) except -1:
        cdef uint32_t i
        cdef EventRing *ring
        cdef EventRecord *r
        for i in range(self.worker_count + 1):
            ring = &self.workers[i].events
            while ring.tail != load_u64(&ring.head):
                r = &ring.records[ring.tail & (EVENTS - 1)]
                source = None
                if r.kind == EVENT_MAPPING:
                    source = (address_to_python(r.address, r.version), r.port)
                event = Event(EventKind(r.kind), r.sa, r.value, source)
                store_u64(&ring.tail, ring.tail + 1)
                if r.kind == EVENT_MAPPING:
                    if not self.follow(event):
                        continue
                    # the newest is enough for each SA
                    self.pending = [e for e in self.pending if (e.kind, e.sa) != (event.kind, event.sa)]
                self.pending.append(event)
        return 0

    cdef bint follow(self, object event) except -1:
        """Give an inbound SA its peer's new address. False if the SA is gone, or has changed as no peer can move."""
        cdef Sa *sa
        cdef Endpoint *e
        if event.sa not in self.sas:
            return False
        sa = self.sa_at(event.sa)
        e = sa.endpoint
        remote, port = event.source
        if remote.version != e.version or (port != 0) != (e.encap != 0):
            return False
        encap = self.sa_params[event.sa][3]
        self.update_sa(event.sa, local=address_to_python(e.local, e.version), remote=remote,
                       encap=(encap[0], port) if e.encap else None, path_mtu=e.path_mtu)
        return True

    def events(self):
        """What happened since the last call, oldest first of each worker."""
        self.drain_events()
        self.collect()
        pending, self.pending = self.pending, []
        return pending

    def drops(self):
        """All drops by reason, SAs removed meanwhile included."""
        cdef uint32_t i
        cdef int k
        cdef uint64_t total
        result = {}
        for k in range(1, DROP_REASONS):
            total = 0
            for i in range(self.worker_count + 1):
                total += self.workers[i].drops[k]
            if total:
                result[_REASONS[k]] = total
        return result

    def fragments_made(self):
        """Packets that fragmenting before protection added."""
        return sum([self.workers[i].fragments_made for i in range(self.worker_count + 1)])

    def fragments_joined(self):
        """Packets that putting datagrams together for transport mode took away."""
        return sum([self.workers[i].fragments_joined for i in range(self.worker_count + 1)])

    # --- packets, many in a call ---

    def encapsulate_batch(self, sa, Batch source, Batch out):
        """Protect packet i of ``source`` into slot i of ``out``; how many were not dropped (a dropped one has length 0).

        ``source`` is overwritten behind its packets. Raises ValueError if the slots of ``out`` are too small.
        """
        cdef Sa *target = self.sa_at(sa)
        if target.direction != DIRECTION_OUT:
            raise SaError(f"SA 0x{target.spi:08x} is not outbound")
        if out.slots < source.state.count or out.state.size < source.state.size + 128:
            raise ValueError("out needs as many slots as source, each at least 128 octets larger")
        return batch_seal(self.workers[self.worker_count], target, &source.state, &out.state)

    def decapsulate_batch(self, Batch source, Batch out):
        """Open ESP packet i of ``source`` into slot i of ``out``; how many were good (dropped: length 0). Not in place."""
        if out is source or out.slots < source.state.count or out.state.size < source.state.size:
            raise ValueError("out is another batch, with as many slots as source, each as large")
        self.alone()
        return batch_open(self.workers[self.worker_count], self.shared.sad, &source.state, &out.state)
