# One ESP packet from outside to inside, in the order of RFC 4303 section 3.4 and RFC 4301 section 5.2.
# The readable twin is ReferenceEngine.inbound in ipsec/esp/reference.py.
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from ipsec.fast.atomic cimport and_u32, load_ptr, or_u32
from ipsec.fast.drops cimport *
from ipsec.fast.early cimport (
    EARLY_SPIS, EarlyPacket, EarlySpi, early_discard, early_expire, early_put, early_take)
from ipsec.fast.fragment_ports cimport fragment_recall, fragment_remember
from ipsec.fast.header cimport clamp_mss, ecn_decapsulate, transport_fix_checksum
from ipsec.fast.jobs cimport JOB_MAX, OpenJob
from ipsec.fast.packet cimport *
from ipsec.fast.quoted cimport quoted_match, rare
from ipsec.fast.replay cimport replay_check, replay_commit, replay_infer
from ipsec.fast.sa cimport *
from ipsec.fast.selector cimport SELECT_ANY, SELECT_IPV4, ipv4_match, selectors_match
from ipsec.fast.source cimport Source
from ipsec.fast.worker cimport *

cdef enum:
    INBOUND_ROOM = 64        # octets before the decrypted payload, for the header that transport mode puts back
    TRANSPORT_TTL = 64
    INBOUND_EARLY = DROP_REASONS     # no drop: the packet is kept for the SA to come

# The SA of a datagram, NULL if there is none.
cdef inline Sa *inbound_find(SadTable *sad, const uint8_t *esp, uint32_t length) noexcept nogil:
    return sad_find(sad, be32(esp)) if length >= ESP_HEADER else NULL

# Verifies and deciphers a datagram of this SA (inbound_find's) into plain + INBOUND_ROOM, unless a job has done so; on
# success *info describes the inner packet. DROP_NONE, or the reason, already counted, or INBOUND_EARLY.
cdef inline uint32_t inbound(Worker *w, Sa *sa, const uint8_t *esp, uint32_t length, uint8_t tos, const Source *source,
                             uint8_t *plain, PacketInfo *info, const OpenJob *job) noexcept nogil:
    cdef uint32_t reason
    if sa == NULL:
        reason = w.without_sa(w, esp, length, tos, source)
        if reason == INBOUND_EARLY:
            return reason
    elif sa.dead:
        reason = DROP_IN_STATE_INVALID
    else:
        sa_lock(sa)
        reason = inbound_sa(w, sa, esp, length, tos, source, plain, info, job)
        if reason:
            sa.drops[reason] += 1
        sa_unlock(sa)
    if reason:
        w.drops[reason] += 1
    return reason

# A packet whose SA is not there: kept if a peer may send such ones already. Called by its address (worker_new), so that it
# is no part of those that have one: inlined, it cost each of them 22 instructions.
cdef inline uint32_t inbound_without_sa(Worker *w, const uint8_t *esp, uint32_t length, uint8_t tos,
                                        const Source *source) noexcept nogil:
    # numbers below 256 are reserved: there is no such SA (RFC 4303 section 2.1)
    if length < ESP_HEADER or be32(esp) < 256:
        return DROP_IN_HDR_ERROR
    if not inbound_is_awaited(w.shared, be32(esp)):
        return DROP_IN_NO_STATES
    w.drops[DROP_IN_NO_STATES] += early_expire(&w.early, w.now_ns)
    return INBOUND_EARLY if early_put(&w.early, be32(esp), esp, length, tos, source, w.now_ns) else DROP_IN_NO_STATES

# Whether an SPI was told to a peer, or has become an SA since the caller looked. In this order: the control plane adds the
# SA first.
cdef inline bint inbound_is_awaited(Shared *shared, uint32_t spi) noexcept nogil:
    return (sad_find(<SadTable *>load_ptr(&shared.awaited), spi) != NULL
            or sad_find(<SadTable *>load_ptr(&shared.sad), spi) != NULL)

# The next packet, oldest first for each SPI, that was kept and has its SA now, for the caller to free; NULL if there is
# none. What waited too long, or for what does not come any more, is dropped on the way.
cdef inline EarlyPacket *inbound_next_early(Worker *w) noexcept nogil:
    cdef EarlySpi *of
    cdef uint32_t i
    w.drops[DROP_IN_NO_STATES] += early_expire(&w.early, w.now_ns)
    for i in range(<uint32_t>EARLY_SPIS):
        of = &w.early.spis[i]
        if of.count == 0:
            continue
        if not inbound_is_awaited(w.shared, of.spi):
            w.drops[DROP_IN_NO_STATES] += early_discard(&w.early, of)
        elif sad_find(<SadTable *>load_ptr(&w.shared.sad), of.spi) != NULL:
            return early_take(&w.early, of)
    return NULL

# Nothing of the plain text is looked at unless the ICV is good.
cdef inline uint32_t inbound_sa(Worker *w, Sa *sa, const uint8_t *esp, uint32_t length, uint8_t tos, const Source *source,
                                uint8_t *plain, PacketInfo *info, const OpenJob *job) noexcept nogil:
    cdef uint64_t seq = 0
    cdef uint32_t reason
    if job != NULL:
        # once more: another one of the queue may have had the same number, or used up what was left
        seq = job.seq
        reason = inbound_fresh(w, sa, seq)
    else:
        reason = inbound_admit(w, sa, esp, length, &seq)
    if reason:
        return reason
    if not job.good if job != NULL else esp_open(sa, w.index, seq, esp, length, plain + INBOUND_ROOM) != 0:
        return DROP_IN_STATE_PROTO_ERROR
    return inbound_opened(w, sa, seq, length, tos, source, plain, info)

# What can be said before the ICV is verified; the number in *seq.
cdef inline uint32_t inbound_admit(Worker *w, Sa *sa, const uint8_t *esp, uint32_t length, uint64_t *seq) noexcept nogil:
    cdef uint32_t overhead = ESP_HEADER + sa.iv_len + sa.icv_len
    if length < overhead + 2 or (length - overhead) & (sa.block - 1):
        return DROP_IN_HDR_ERROR
    seq[0] = replay_infer(&sa.replay, be32(esp + 4)) if sa.esn else be32(esp + 4)
    return inbound_fresh(w, sa, seq[0])

# Whether the SA may still be used, and the packet is no repetition.
cdef inline uint32_t inbound_fresh(Worker *w, Sa *sa, uint64_t seq) noexcept nogil:
    if sa.limited and ((sa.packets_hard and sa.packets >= sa.packets_hard) or (sa.bytes_hard and sa.bytes >= sa.bytes_hard)):
        event_once(w, sa, EVENT_HARD_LIFETIME)
        return DROP_IN_STATE_EXPIRED
    if not replay_check(&sa.replay, seq):
        return DROP_IN_STATE_SEQ_ERROR
    return DROP_NONE

# A packet whose ICV is good, deciphered: window, padding, mode, header, selectors.
cdef inline uint32_t inbound_opened(Worker *w, Sa *sa, uint64_t seq, uint32_t length, uint8_t tos, const Source *source,
                                    uint8_t *plain, PacketInfo *info) noexcept nogil:
    cdef uint8_t *payload = plain + INBOUND_ROOM
    cdef uint32_t body = length - ESP_HEADER - sa.iv_len - sa.icv_len
    cdef uint64_t top = sa.replay.top
    cdef const uint8_t *peer = NULL
    cdef uint8_t next_header
    cdef uint32_t pad, reason
    cdef uint32_t i = 0
    replay_commit(&sa.replay, seq)
    if source != NULL and source.version and seq > top and sa.follow_peer and learn_source(w, sa, source):
        peer = <const uint8_t *>&source.address[0]
    pad = payload[body - 2]
    next_header = payload[body - 1]
    if pad > body - 2:
        return DROP_IN_PADDING_ERROR
    body -= 2 + pad
    # ends at the first that is wrong, so that no compiler makes vectors of it: there are two or three
    while i < pad and payload[body + i] == <uint8_t>(i + 1):
        i += 1
    if i < pad:
        return DROP_IN_PADDING_ERROR
    if next_header == PROTO_NONE:
        inbound_account(w, sa, 0)
        return DROP_IN_DUMMY
    if sa.mode == MODE_TRANSPORT:
        reason = rebuild_transport(sa, peer, payload, body, next_header, tos, info)
    else:
        reason = inspect_tunnel(sa, payload, body, next_header, tos, info)
    if reason:
        return reason
    reason = inbound_selectors(w, sa, info)
    if reason:
        return reason
    if sa.limited and sa.bytes_hard and sa.bytes + info.length > sa.bytes_hard:
        event_once(w, sa, EVENT_HARD_LIFETIME)
        return DROP_IN_STATE_EXPIRED
    if w.shared.mss_clamp and info.protocol == PROTO_TCP and info.fragment != FRAGMENT_LATER:
        clamp_mss(<uint8_t *>info.data, info, (<Endpoint *>load_ptr(&sa.endpoint)).inner_mtu - (40 if info.version == 4 else 60))
    inbound_account(w, sa, info.length)
    return DROP_NONE

# --- many packets at once ---

# Whether a datagram of this SA is to be opened together with others.
cdef inline bint inbound_batched(const Sa *sa, uint32_t length) noexcept nogil:
    return sa != NULL and sa.batched and not sa.dead and length <= JOB_MAX

# Puts a datagram into the queue, which must have room, for jobs_open_all and inbound_job_end. True unless it was dropped.
cdef inline bint inbound_job_begin(Worker *w, Sa *sa, uint8_t *esp, uint32_t length, uint8_t tos, const Source *source,
                                   uint8_t *plain) noexcept nogil:
    cdef OpenJob *job = &w.jobs.opens[w.jobs.opening]
    cdef uint32_t reason
    sa_lock(sa)
    reason = inbound_admit(w, sa, esp, length, &job.seq)
    if reason:
        sa.drops[reason] += 1
        w.drops[reason] += 1
    sa_unlock(sa)
    if reason:
        return False
    job.sa = sa
    job.esp = esp
    job.length = length
    job.tos = tos
    job.source.version = 0
    if source != NULL:
        memcpy(&job.source, source, sizeof(Source))
    job.plain = plain + INBOUND_ROOM
    w.jobs.opening += 1
    return True

# After jobs_open_all, job i: DROP_NONE and *info, or the reason, already counted.
cdef inline uint32_t inbound_job_end(Worker *w, uint32_t i, PacketInfo *info) noexcept nogil:
    cdef OpenJob *job = &w.jobs.opens[i]
    return inbound(w, job.sa, job.esp, job.length, job.tos, &job.source, job.plain - INBOUND_ROOM, info, job)

cdef inline void inbound_account(Worker *w, Sa *sa, uint32_t octets) noexcept nogil:
    sa.packets += 1
    sa.bytes += octets
    sa.last_use_ns = w.now_ns
    if sa.limited and ((sa.packets_soft and sa.packets >= sa.packets_soft) or (sa.bytes_soft and sa.bytes >= sa.bytes_soft)):
        event_once(w, sa, EVENT_SOFT_LIFETIME)

# The peer is where its newest authenticated packet came from (RFC 7296 section 2.23): never from a replayed or older one.
# The endpoint itself is changed by the control plane, for this SA and its twin.
# True if it moved.
cdef inline bint learn_source(Worker *w, Sa *sa, const Source *source) noexcept nogil:
    cdef Endpoint *endpoint = <Endpoint *>load_ptr(&sa.endpoint)
    cdef uint32_t n = 4 if source.version == 4 else 16
    # another family, or the other encapsulation: no change that a NAT can make
    if source.version != endpoint.version or (source.port != 0) != (endpoint.encap != 0):
        return False
    if source.port == endpoint.remote_port and memcmp(source.address, endpoint.remote, n) == 0:
        return False
    # told once until the control plane has dealt with it, so that a fast peer does not fill the ring
    if not sa.told & (1 << EVENT_MAPPING) and not or_u32(&sa.told, 1 << EVENT_MAPPING) & (1 << EVENT_MAPPING):
        if not event_push(w, EVENT_MAPPING, sa.id, 0, source.version, source.address, source.port):
            and_u32(&sa.told, ~<uint32_t>(1 << EVENT_MAPPING))
    return True

cdef inline uint32_t inspect_tunnel(Sa *sa, uint8_t *payload, uint32_t length, uint8_t next_header, uint8_t tos,
                                    PacketInfo *info) noexcept nogil:
    if next_header != PROTO_IPIP and next_header != PROTO_IPV6:
        return DROP_IN_STATE_MODE_ERROR
    if length < 20:
        return DROP_IN_INNER_HDR_ERROR
    if payload[0] >> 4 != (4 if next_header == PROTO_IPIP else 6):
        return DROP_IN_STATE_MODE_ERROR
    # what follows the inner packet is TFC padding (RFC 4303 section 2.7)
    if parse_packet(payload, length, info) != 0:
        return DROP_IN_INNER_HDR_ERROR
    if ecn_decapsulate(payload, info, tos, sa.copy_ecn, (sa.copy_dscp & 2) != 0) != 0:
        return DROP_IN_ECN_ERROR
    return DROP_NONE

# Transport mode: the IP header that the packet travelled under stands before its payload again.
# `peer` is its new address if this very packet moved it.
cdef inline uint32_t rebuild_transport(Sa *sa, const uint8_t *peer, uint8_t *payload, uint32_t length,
                                       uint8_t next_header, uint8_t tos, PacketInfo *info) noexcept nogil:
    cdef Endpoint *endpoint = <Endpoint *>load_ptr(&sa.endpoint)
    cdef uint8_t *ip
    if peer == NULL:
        peer = endpoint.remote
    if endpoint.version == 4:
        ip = payload - 20
        if length + 20 > 65535:
            return DROP_IN_INNER_HDR_ERROR
        memset(ip, 0, 20)
        ip[0] = 0x45
        ip[1] = tos
        put16(ip + 2, length + 20)
        put16(ip + 6, 0x4000)
        ip[8] = TRANSPORT_TTL
        ip[9] = next_header
        memcpy(ip + 12, peer, 4)
        memcpy(ip + 16, endpoint.local, 4)
        csum_store(ip + 10, csum_add(ip, 20, 0))
        length += 20
    else:
        ip = payload - 40
        if length > 65535:
            return DROP_IN_INNER_HDR_ERROR
        put32(ip, (6 << 28) | (<uint32_t>tos << 20))
        put16(ip + 4, length)
        ip[6] = next_header
        ip[7] = TRANSPORT_TTL
        memcpy(ip + 8, peer, 16)
        memcpy(ip + 24, endpoint.local, 16)
        length += 40
    if parse_packet(ip, length, info) != 0:
        return DROP_IN_INNER_HDR_ERROR
    if endpoint.encap and info.fragment == FRAGMENT_NONE:
        # RFC 3948 section 3.1.2: the peer summed over addresses that a NAT has changed since
        transport_fix_checksum(ip, info)
    return DROP_NONE

# RFC 4301 section 5.2 step 4: what came through an SA must be what the SA is for. Fragments: section 7.
cdef inline uint32_t inbound_selectors(Worker *w, Sa *sa, PacketInfo *info) noexcept nogil:
    cdef int ambiguous = 0
    if sa.selecting == SELECT_ANY:
        return DROP_NONE
    if sa.selecting == SELECT_IPV4 and info.version == 4 and info.fragment == FRAGMENT_NONE:
        return DROP_NONE if ipv4_match(&sa.only, info.dst, info.src) else inbound_mismatch(sa, info)
    if info.fragment == FRAGMENT_LATER:
        fragment_recall(w.fragments_in, info, w.now_ns)
    if selectors_match(sa_selectors(sa), sa.selector_count, info, True, &ambiguous):
        if info.fragment == FRAGMENT_FIRST:
            fragment_remember(w.fragments_in, info, w.now_ns)
        return DROP_NONE
    return DROP_IN_FRAGMENT_ERROR if ambiguous else inbound_mismatch(sa, info)

# What fits no selector: RFC 4301 section 6.2 lets an ICMP error through for what it quotes.
cdef inline uint32_t inbound_mismatch(Sa *sa, const PacketInfo *info) noexcept nogil:
    if sa.icmp:
        rare()
        if quoted_match(sa_selectors(sa), sa.selector_count, info):
            return DROP_NONE
    return DROP_IN_TMPL_MISMATCH
