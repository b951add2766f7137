# One packet, or one superframe, from inside to outside (RFC 4301 section 5.1): policy, MTU, segments, ESP.
# The readable twin is ReferenceEngine.outbound in ipsec/esp/reference.py.
#
# The same code serves the pump, which gathers datagrams into trains, and the library, which returns them: both give a
# Sink that provides room for a datagram and takes it.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc
from libc.string cimport memcmp, memcpy, memset

from ipsec.fast.atomic cimport add_u64, cas_u64, load_ptr, load_u64, store_u64
from ipsec.fast.drops cimport *
from ipsec.fast.header cimport clamp_mss, outer_tos
from ipsec.fast.icmp cimport build_too_big
from ipsec.fast.fragment cimport FragmentPlan, fragment_next, fragment_start
from ipsec.fast.held cimport held_put
from ipsec.fast.jobs cimport JOB_MAX, JOBS, SealJob, jobs_seal_all
from ipsec.fast.join cimport Joiner, JoinPart, join_put
from ipsec.fast.fragment_ports cimport fragment_recall, fragment_remember
from ipsec.fast.packet cimport *
from ipsec.fast.quoted cimport quoted_sa, rare
from ipsec.fast.sa cimport *
from ipsec.fast.segment cimport (
    SEGMENT_HEADER_MAX, SEGMENT_SINGLE, SegmentPlan, finish_checksum, plan_segments, segment_header, segment_offset)
from ipsec.fast.spd cimport SPD_AMBIGUOUS, SPD_FOUND, SpdPolicy, SpdTable, spd_find
from ipsec.fast.vnet cimport VnetHdr
from ipsec.fast.worker cimport *

cdef enum:
    ACTION_PROTECT = 0
    ACTION_BYPASS = 1
    ACTION_DISCARD = 2
    ACQUIRE_SECONDS = 10     # the same number as in ipsec/esp/engine.py
    TRAILER_SAVED = 32       # octets after a segment that its trailer may overwrite: 15 of padding and 2

# Takes what comes out. room() gives `length` octets to write a datagram to, NULL if there is none for now;
# sealed() says that the datagram stands there. reply() sends an ICMP error to the inside, clear() a BYPASS packet.
cdef struct Sink:
    void *owner
    uint8_t *(*room)(void *owner, uint32_t length) noexcept nogil
    void (*sealed)(void *owner, Sa *sa, Endpoint *endpoint, uint32_t length, uint8_t tos, bint df) noexcept nogil
    bint batches             # the owner calls seal_jobs before it looks at what was sealed, and heeds Worker.spoiled
    void (*reply)(void *owner, uint8_t *packet, uint32_t length) noexcept nogil
    int (*clear)(void *owner, uint8_t *packet, const PacketInfo *info) noexcept nogil

# Outer DF (RFC 4301 section 8.1); IPv6 inside never fragments, so that its copy is set.
cdef inline bint outer_df(const Sa *sa, const PacketInfo *info) noexcept nogil:
    return sa.df == DF_SET or (sa.df == DF_COPY and info.dont_fragment)

# Protects `packet`, of which `length` octets are to be sent; TRAILER_ROOM octets behind it are overwritten.
# In transport mode what is sealed begins behind the IP header. The number was reserved by the caller.
cdef inline bint seal_packet(Worker *w, Sink *sink, Sa *sa, Endpoint *endpoint, uint64_t seq, uint8_t *packet,
                             uint32_t length, uint8_t next_header, uint8_t tos, bint df) noexcept nogil:
    cdef uint32_t wanted, sealed
    cdef int total
    cdef uint8_t *out
    cdef uint8_t *plain = packet
    if sa.tfc and sa.mode == MODE_TUNNEL and next_header != PROTO_NONE:
        # RFC 4303 section 2.7: zeros behind the inner packet, whose length tells where it ends
        wanted = endpoint.inner_mtu
        if 0 < sa.tfc < <int32_t>wanted:
            wanted = <uint32_t>sa.tfc
        if wanted > length and wanted + TRAILER_ROOM <= SCRATCH:
            memcpy(w.scratch, packet, length)
            memset(w.scratch + length, 0, wanted - length)
            plain = w.scratch
            length = wanted
    sealed = esp_length(sa, length)
    out = sink.room(sink.owner, sealed)
    if out == NULL:
        drop(w, sa, DROP_OUT_SEND_ERROR, 1)
        return False
    if sink.batches and sa.batched and sealed <= JOB_MAX:
        seal_job(w, sa, seq, plain, length, next_header, out)
        sink.sealed(sink.owner, sa, endpoint, sealed, tos, df)
        return True
    total = esp_seal(sa, w.index, seq, plain, esp_trailer(sa, plain, length, next_header), out)
    if total < 0:
        drop(w, sa, DROP_OUT_STATE_PROTO_ERROR, 1)
        return False
    sink.sealed(sink.owner, sa, endpoint, <uint32_t>total, tos, df)
    return True

# Puts a packet into the queue of those that are sealed together. It is copied to where it will be sent from: the place of
# a segment is written over before its turn comes.
cdef inline void seal_job(Worker *w, Sa *sa, uint64_t seq, const uint8_t *plain, uint32_t length, uint8_t next_header,
                          uint8_t *out) noexcept nogil:
    cdef uint8_t *body = out + ESP_HEADER + sa.iv_len
    cdef SealJob *job
    if w.jobs.sealing == JOBS:
        seal_jobs(w)
    job = &w.jobs.seals[w.jobs.sealing]
    w.jobs.sealing += 1
    put32(out, sa.spi)
    put32(out + 4, <uint32_t>seq)
    cbc_nonce(sa, seq, out + ESP_HEADER)
    memcpy(body, plain, length)
    job.sa = sa
    job.esp = out
    job.seq = seq
    job.length = esp_trailer(sa, body, length, next_header)

# Seals what is queued. To be called before anybody looks at it, and before SAs may go.
cdef inline void seal_jobs(Worker *w) noexcept nogil:
    cdef uint32_t n = w.jobs.sealing if w.jobs != NULL else 0
    cdef uint32_t i
    if n == 0 or jobs_seal_all(w.jobs) == 0:
        return
    for i in range(n):
        if be32(w.jobs.seals[i].esp) == 0:
            drop(w, w.jobs.seals[i].sa, DROP_OUT_STATE_PROTO_ERROR, 1)
    w.spoiled = True

# Whether the outer packet's length can be said (IPv4 total length, UDP length).
cdef inline bint can_be_said(const Sa *sa, const Endpoint *endpoint, uint32_t payload) noexcept nogil:
    return (esp_length(sa, payload) + (8 if endpoint.encap else 0) + (20 if endpoint.version == 4 else 0)) <= 65535

# Octets up to which a packet is sealed whole although it must not be fragmented: no IPv6 link carries less than 1280, so
# an IPv6 sender cannot be told less (RFC 8200 section 5); the outer packet is fragmented then (RFC 2473 section 7.1).
cdef inline uint32_t packet_limit(uint32_t mtu, uint8_t version) noexcept nogil:
    return mtu if version == 4 or mtu > 1280 else 1280

# Takes volume for up to n packets: all of `unit` octets but the last, `octets` together. How many the hard limit allows.
cdef inline uint32_t reserve_volume(Sa *sa, uint32_t n, uint32_t unit, uint64_t octets, uint64_t *before) noexcept nogil:
    cdef uint64_t used = load_u64(&sa.bytes)
    cdef uint64_t hard = load_u64(&sa.bytes_hard)
    cdef uint64_t left
    if not hard:
        if sa.shared:
            before[0] = add_u64(&sa.bytes, octets)
        else:
            before[0] = used
            sa.bytes = used + octets
        return n
    while True:
        before[0] = used
        if used > hard:
            return 0         # the limit was lowered: not even for a dummy packet, which takes nothing
        left = hard - used
        if octets > left:
            n = <uint32_t>(left // unit)
            if n == 0:
                return 0
            octets = <uint64_t>n * unit
        if cas_u64(&sa.bytes, &used, used + octets):
            return n

# Takes numbers and volume for up to n packets: all of `unit` octets but the last, `octets` together. How many may be
# sent, the first number in *first; the others are counted as dropped.
cdef inline uint32_t outbound_reserve(Worker *w, Sa *sa, uint32_t n, uint32_t unit, uint64_t octets,
                                      uint64_t *first) noexcept nogil:
    cdef uint32_t got, allowed
    cdef uint64_t before, last
    if sa.dead:
        drop(w, sa, DROP_OUT_NO_STATES, n)
        return 0
    allowed = reserve_volume(sa, n, unit, octets, &before)
    if allowed < n:
        drop(w, sa, DROP_OUT_STATE_EXPIRED, n - allowed)
        event_once(w, sa, EVENT_HARD_LIFETIME)
        if allowed == 0:
            return 0
        octets = <uint64_t>allowed * unit
    got = sa_reserve(sa, allowed, first)
    if got < allowed:
        add_u64(&sa.bytes, <uint64_t>got * unit - octets)
        octets = <uint64_t>got * unit
        event_once(w, sa, EVENT_HARD_LIFETIME if sa.seq_limit_is_lifetime else EVENT_SEQUENCE_HARD)
        drop(w, sa, DROP_OUT_STATE_EXPIRED if sa.seq_limit_is_lifetime else DROP_OUT_STATE_SEQ_ERROR, allowed - got)
        if got == 0:
            return 0
    last = first[0] + got - 1
    if last >= sa.seq_soft:
        event_once(w, sa, EVENT_SEQUENCE_SOFT)
    if (sa.packets_soft_seq and last >= sa.packets_soft_seq) or (sa.bytes_soft and before + octets >= sa.bytes_soft):
        event_once(w, sa, EVENT_SOFT_LIFETIME)
    sa.last_use_ns = w.now_ns
    return got

# Whether a packet may go under one SA, if it is not longer than the path. False if it was dropped (and counted).
cdef inline bint may_be_protected(Worker *w, Sa *sa, const Endpoint *endpoint, const PacketInfo *info) noexcept nogil:
    if not transport_fits(sa, endpoint, info):
        drop(w, sa, DROP_OUT_STATE_MODE_ERROR, 1)
        return False
    if not can_be_said(sa, endpoint, info.length - (0 if sa.mode == MODE_TUNNEL else transport_header(info))):
        drop(w, sa, DROP_OUT_TOO_BIG, 1)
        return False
    return True

# A single packet under one SA: no policy, no MTU. `whole`: larger than the path, so the outer packet must be allowed to be
# fragmented. False if it was dropped (and counted).
cdef inline bint protect_single(Worker *w, Sink *sink, Sa *sa, uint8_t *packet, const PacketInfo *info,
                                bint whole) noexcept nogil:
    cdef Endpoint *endpoint = <Endpoint *>load_ptr(&sa.endpoint)
    cdef uint64_t seq = 0
    if not may_be_protected(w, sa, endpoint, info) or outbound_reserve(w, sa, 1, info.length, info.length, &seq) == 0:
        return False
    return protect_numbered(w, sink, sa, endpoint, seq, packet, info, whole)

# One that may be protected and has its number.
cdef inline bint protect_numbered(Worker *w, Sink *sink, Sa *sa, Endpoint *endpoint, uint64_t seq, uint8_t *packet,
                                  const PacketInfo *info, bint whole) noexcept nogil:
    cdef uint8_t tos
    if sa.mode == MODE_TRANSPORT:
        return seal_transport(w, sink, sa, endpoint, seq, packet, info.length, info, whole)
    tos = outer_tos(info.tos, (sa.copy_dscp & 1) != 0, sa.copy_ecn)
    return seal_packet(w, sink, sa, endpoint, seq, packet, info.length,
                       PROTO_IPIP if info.version == 4 else PROTO_IPV6, tos, outer_df(sa, info) and not whole)

# What transport mode takes away: IPv6 extension headers are sealed (RFC 4303 section 3.1.1).
cdef inline uint32_t transport_header(const PacketInfo *info) noexcept nogil:
    return info.l4_offset if info.version == 4 else 40

cdef inline bint seal_transport(Worker *w, Sink *sink, Sa *sa, Endpoint *endpoint, uint64_t seq, uint8_t *packet,
                                uint32_t length, const PacketInfo *info, bint whole) noexcept nogil:
    # the packet's own header becomes the outer one, so its TOS and DF go out unchanged
    cdef uint32_t skip = transport_header(info)
    cdef uint8_t next_header = packet[9 if info.version == 4 else 6]
    return seal_packet(w, sink, sa, endpoint, seq, packet + skip, length - skip, next_header, info.tos,
                       info.dont_fragment and not whole)

# RFC 4301 section 4.1: transport mode is between these two hosts, and never for a fragment (RFC 4303 section 3.3.4).
cdef inline bint transport_fits(const Sa *sa, const Endpoint *endpoint, const PacketInfo *info) noexcept nogil:
    return sa.mode != MODE_TRANSPORT or (info.fragment == FRAGMENT_NONE and between_hosts(endpoint, info))

cdef inline bint between_hosts(const Endpoint *endpoint, const PacketInfo *info) noexcept nogil:
    cdef uint32_t n = 4 if info.version == 4 else 16
    return (info.version == endpoint.version
            and memcmp(info.src, endpoint.local, n) == 0 and memcmp(info.dst, endpoint.remote, n) == 0)

# A fragment under an SA in transport mode: the host's fragments become one datagram again. That one, described by `info`,
# or NULL: this one waits for the next, or it was dropped and counted.
cdef inline uint8_t *join_fragment(Worker *w, Sa *sa, const Endpoint *endpoint, PacketInfo *info) noexcept nogil:
    cdef JoinPart *part
    cdef uint32_t lost
    cdef bint kept
    if not between_hosts(endpoint, info):
        drop(w, sa, DROP_OUT_STATE_MODE_ERROR, 1)
        return NULL
    if w.joiner == NULL:
        w.joiner = <Joiner *>calloc(1, sizeof(Joiner))
    if w.joiner == NULL:
        drop(w, sa, DROP_OUT_FRAGMENT_ERROR, 1)
        return NULL
    part = join_put(w.joiner, info, w.now_ns, &lost, &kept)
    if lost:
        drop(w, sa, DROP_OUT_FRAGMENT_ERROR, lost)
    w.fragments_kept += kept
    if part == NULL:
        return NULL
    w.fragments_joined += part.fragments
    if parse_packet(part.data, part.length, info) != 0:
        drop(w, sa, DROP_OUT_HDR_ERROR, 1)
        return NULL
    info.dont_fragment = 0   # its sender has let it be fragmented
    return part.data

# Every segment of a superframe under one SA, one seal each and no copy: header k is written over the end of payload
# k - 1, which is already enciphered elsewhere, and the trailer over the start of payload k + 1, which is put back.
cdef inline void protect_segments(Worker *w, Sink *sink, Sa *sa, uint8_t *packet, const PacketInfo *info,
                                  const SegmentPlan *plan, bint whole) noexcept nogil:
    cdef Endpoint *endpoint = <Endpoint *>load_ptr(&sa.endpoint)
    cdef uint8_t header[SEGMENT_HEADER_MAX]
    cdef uint8_t saved[TRAILER_SAVED]
    cdef uint8_t *payload
    cdef uint8_t *end
    cdef uint64_t seq = 0
    cdef uint32_t k, length
    cdef uint32_t count = plan.count
    cdef uint8_t next_header = PROTO_IPIP if info.version == 4 else PROTO_IPV6
    cdef uint8_t tos = outer_tos(info.tos, (sa.copy_dscp & 1) != 0, sa.copy_ecn)
    cdef bint df = outer_df(sa, info) and not whole
    if not transport_fits(sa, endpoint, info):
        drop(w, sa, DROP_OUT_STATE_MODE_ERROR, count)
        return
    count = outbound_reserve(w, sa, count, plan.header_len + plan.gso_size, plan.payload_len + <uint64_t>count * plan.header_len, &seq)
    memcpy(header, packet, plan.header_len)
    for k in range(count):
        payload = packet + segment_offset(plan, k)
        length = segment_header(plan, header, k, payload - plan.header_len, payload)
        end = payload - plan.header_len + length
        memcpy(saved, end, TRAILER_SAVED)
        if sa.mode == MODE_TRANSPORT:
            seal_transport(w, sink, sa, endpoint, seq + k, payload - plan.header_len, length, info, whole)
        else:
            seal_packet(w, sink, sa, endpoint, seq + k, payload - plan.header_len, length, next_header, tos, df)
        memcpy(end, saved, TRAILER_SAVED)

# Asks for an SA: at once, then again every ACQUIRE_SECONDS while packets come and no SA does. Of workers that find it due
# together, one.
cdef inline void acquire_once(Worker *w, SpdPolicy *policy) noexcept nogil:
    cdef uint64_t before = load_u64(&policy.acquired_ns)
    cdef uint64_t now = w.now_ns | 1
    # signed: another worker's clock may be a batch ahead
    if before and <int64_t>(now - before) < <int64_t>ACQUIRE_SECONDS * 1000000000:
        return
    if cas_u64(&policy.acquired_ns, &before, now) and not event_push(w, EVENT_ACQUIRE, policy.id, policy.reqid, 0, NULL, 0):
        # the ring is full: the next packet tries again
        store_u64(&policy.acquired_ns, 0)

# The policy for a packet, with its SA in *sa when it is to be protected. The action, or -1 when it was dropped or kept for
# later, as the frame that it is: vnet (NULL if there is nothing in it) and packet.
cdef inline int outbound_policy(Worker *w, SpdTable *spd, PacketInfo *info, const VnetHdr *vnet, const uint8_t *packet,
                                uint32_t count, Sa **sa) noexcept nogil:
    cdef SpdPolicy *policy
    cdef int result = 0
    sa[0] = NULL
    if info.fragment == FRAGMENT_FIRST:
        fragment_remember(w.fragments_out, info, w.now_ns)
    elif info.fragment == FRAGMENT_LATER:
        fragment_recall(w.fragments_out, info, w.now_ns)
    policy = spd_find(spd, w.flows, info, &result)
    if result == SPD_AMBIGUOUS:
        drop(w, NULL, DROP_OUT_FRAGMENT_ERROR, count)
        return -1
    if result != SPD_FOUND:
        rare()
        sa[0] = <Sa *>quoted_sa(spd, info)
        if sa[0] != NULL:
            return ACTION_PROTECT
        drop(w, NULL, DROP_OUT_NO_POLS, count)
        return -1
    if policy.action == ACTION_DISCARD:
        drop(w, NULL, DROP_OUT_POL_BLOCK, count)
        return -1
    if policy.action == ACTION_BYPASS:
        return ACTION_BYPASS
    sa[0] = <Sa *>load_ptr(&policy.sa)
    if sa[0] == NULL:
        acquire_once(w, policy)
        if w.shared.hold:
            drop(w, NULL, DROP_OUT_NO_STATES,
                 held_put(&w.held, policy.id, w.shared.hold, vnet, packet, info.length, count, w.now_ns))
        else:
            drop(w, NULL, DROP_OUT_NO_STATES, count)
        return -1
    return ACTION_PROTECT

# What a packet longer than the tunnel's MTU gets: an ICMP error with DF (RFC 1191, RFC 8201), fragments without.
cdef inline void outbound_too_long(Worker *w, Sink *sink, Sa *sa, uint8_t *packet, PacketInfo *info,
                                   uint32_t mtu, uint32_t count) noexcept nogil:
    cdef const uint8_t *source = NULL
    cdef uint32_t n
    cdef uint32_t later = 0
    cdef FragmentPlan plan
    cdef uint8_t *piece = w.scratch + SCRATCH
    cdef PacketInfo part
    if info.dont_fragment:
        if info.version == 4 and w.shared.has_source4:
            source = w.shared.source4
        elif info.version == 6 and w.shared.has_source6:
            source = w.shared.source6
        n = build_too_big(info, packet_limit(mtu, info.version), source, w.scratch)
        if n:
            sink.reply(sink.owner, w.scratch, n)
        drop(w, sa, DROP_OUT_TOO_BIG, count)
        return
    if sa.mode == MODE_TRANSPORT:
        # RFC 4303 section 3.3.4: in transport mode fragmentation comes after ESP
        protect_single(w, sink, sa, packet, info, True)
        return
    if fragment_start(info, mtu, &plan) != 0:
        drop(w, sa, DROP_OUT_TOO_BIG, count)
        return
    while True:
        n = fragment_next(&plan, info, piece)
        if n == 0:
            return
        # the first stands for the packet itself; never less than before: somebody may be reading
        w.fragments_made += later
        later = 1
        if parse_packet(piece, n, &part) == 0:
            protect_single(w, sink, sa, piece, &part, False)

# A packet or superframe from the TUN device; `length` octets are there, TRAILER_ROOM more may be written behind them.
# Returns how many packets it stood for.
cdef inline uint32_t outbound_frame(Worker *w, SpdTable *spd, Sink *sink, const VnetHdr *vnet, uint8_t *packet,
                                    uint32_t length) noexcept nogil:
    cdef PacketInfo info
    cdef SegmentPlan plan
    cdef Sa *sa
    cdef Endpoint *endpoint
    cdef uint32_t mtu, unit
    cdef int action
    memset(&plan, 0, sizeof(plan))
    plan.count = 1
    plan.kind = SEGMENT_SINGLE
    if parse_packet(packet, length, &info) != 0:
        drop(w, NULL, DROP_OUT_HDR_ERROR, 1)
        return 1
    if vnet != NULL and (plan_segments(vnet, &info, &plan) != 0
                         or (plan.kind == SEGMENT_SINGLE and finish_checksum(packet, &info, vnet) != 0)):
        drop(w, NULL, DROP_OUT_HDR_ERROR, 1)
        return 1
    if plan.kind == SEGMENT_SINGLE:
        vnet = NULL      # a checksum that was left open is finished by now
    action = outbound_policy(w, spd, &info, vnet, packet, plan.count, &sa)
    if action < 0:
        return plan.count
    if action == ACTION_BYPASS:
        if plan.kind != SEGMENT_SINGLE:
            bypass_segments(w, sink, packet, &info, &plan)
        elif sink.clear(sink.owner, packet, &info) != 0:
            drop(w, NULL, DROP_OUT_BYPASS_ERROR, 1)
        return plan.count
    endpoint = <Endpoint *>load_ptr(&sa.endpoint)
    if sa.mode == MODE_TRANSPORT and info.fragment != FRAGMENT_NONE:
        packet = join_fragment(w, sa, endpoint, &info)
        if packet == NULL:
            return plan.count
    if not transport_fits(sa, endpoint, &info):
        drop(w, sa, DROP_OUT_STATE_MODE_ERROR, plan.count)
        return plan.count
    mtu = endpoint.inner_mtu
    if w.shared.mss_clamp and info.protocol == PROTO_TCP and info.fragment != FRAGMENT_LATER:
        clamp_mss(packet, &info, mtu - (40 if info.version == 4 else 60))
    unit = info.length
    if plan.kind != SEGMENT_SINGLE:
        unit = plan.header_len + (plan.gso_size if plan.payload_len > plan.gso_size else plan.payload_len)
    if unit > packet_limit(mtu, info.version):
        if plan.kind == SEGMENT_SINGLE:
            outbound_too_long(w, sink, sa, packet, &info, mtu, 1)
        else:
            too_long_segments(w, sink, sa, packet, &info, &plan, mtu)
    elif plan.kind == SEGMENT_SINGLE:
        protect_single(w, sink, sa, packet, &info, unit > mtu)
    else:
        protect_segments(w, sink, sa, packet, &info, &plan, unit > mtu)
    return plan.count

# A superframe whose segments are all too long. TCP always sets DF; what may be fragmented is taken one by one.
cdef inline void too_long_segments(Worker *w, Sink *sink, Sa *sa, uint8_t *packet, PacketInfo *info,
                                   const SegmentPlan *plan, uint32_t mtu) noexcept nogil:
    cdef uint8_t header[SEGMENT_HEADER_MAX]
    cdef uint8_t *payload
    cdef uint32_t k, length
    cdef PacketInfo one
    if info.dont_fragment:
        outbound_too_long(w, sink, sa, packet, info, mtu, plan.count)
        return
    memcpy(header, packet, plan.header_len)
    for k in range(plan.count):
        payload = packet + segment_offset(plan, k)
        length = segment_header(plan, header, k, payload - plan.header_len, payload)
        if parse_packet(payload - plan.header_len, length, &one) != 0:
            drop(w, sa, DROP_OUT_HDR_ERROR, 1)
            continue
        if length > mtu and sa.mode == MODE_TUNNEL:
            # its fragments are written to a place of their own, so that the next payload is left as it is
            outbound_too_long(w, sink, sa, payload - plan.header_len, &one, mtu, 1)
            continue
        memcpy(w.scratch, payload - plan.header_len, length)
        if parse_packet(w.scratch, length, &one) == 0:
            protect_single(w, sink, sa, w.scratch, &one, length > mtu)

cdef inline void bypass_segments(Worker *w, Sink *sink, uint8_t *packet, const PacketInfo *info,
                                 const SegmentPlan *plan) noexcept nogil:
    cdef uint8_t header[SEGMENT_HEADER_MAX]
    cdef uint8_t *payload
    cdef uint32_t k, length
    cdef PacketInfo one
    memcpy(header, packet, plan.header_len)
    for k in range(plan.count):
        payload = packet + segment_offset(plan, k)
        length = segment_header(plan, header, k, payload - plan.header_len, payload)
        if (parse_packet(payload - plan.header_len, length, &one) != 0
                or sink.clear(sink.owner, payload - plan.header_len, &one) != 0):
            drop(w, NULL, DROP_OUT_BYPASS_ERROR, 1)
