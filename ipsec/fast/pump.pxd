# Moves packets between one TUN queue and one set of sockets, in batches, without the GIL and without allocation.
#
# Outbound: one read of the TUN device (up to 64 KiB of a superframe) becomes a train of ESP datagrams and one message with
# UDP_SEGMENT. Inbound: one recvmmsg of UDP_GRO trains becomes decrypted packets, joined into superframes, one writev each.
# Nothing waits for more: only what is queued already is put together.
from libc.errno cimport EAGAIN, EBADF, EBADFD, EINTR, EINVAL, EIO, EMSGSIZE, ENODEV, EPIPE, errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memmove, memset
from posix.uio cimport iovec, writev

from ipsec.fast.atomic cimport fence, load_ptr, load_u32, store_u8
from ipsec.fast.coalesce cimport *
from ipsec.fast.drops cimport *
from ipsec.fast.early cimport EarlyPacket, early_discard_all
from ipsec.fast.held cimport HeldFrame, held_discard, held_forget_policies, held_too_long, held_unlink
from ipsec.fast.inbound cimport (
    INBOUND_ROOM, inbound, inbound_batched, inbound_find, inbound_job_begin, inbound_job_end, inbound_next_early)
from ipsec.fast.inbox cimport *
from ipsec.fast.jobs cimport JOBS, Jobs, jobs_open_all
from ipsec.fast.message cimport *
from ipsec.fast.outbound cimport Sink, outbound_frame, seal_jobs
from ipsec.fast.packet cimport PacketInfo, be32
from ipsec.fast.peer cimport peer_is
from ipsec.fast.pump_state cimport *
from ipsec.fast.sa cimport ESP_SHIFT, Endpoint, Sa, sa_inner_mtu
from ipsec.fast.source cimport Source, read_source
from ipsec.fast.spd cimport SpdTable
from ipsec.fast.vnet cimport VNET_HDR_SIZE, VnetHdr
from ipsec.fast.worker cimport *

# --- out: datagrams into messages, messages into the socket -----------------------------------------------------------

cdef inline uint8_t *pump_room(void *owner, uint32_t length) noexcept nogil:
    cdef PumpState *p = <PumpState *>owner
    if p.n_messages == MESSAGES or p.train_used + length > TRAIN_SIZE - ESP_SHIFT:
        if not p.blocked:    # else the same frame has met the full socket already
            pump_flush(p)
        if p.n_messages == MESSAGES or p.train_used + length > TRAIN_SIZE - ESP_SHIFT:
            return NULL
    return p.train + ESP_SHIFT + p.train_used

cdef inline void pump_sealed(void *owner, Sa *sa, Endpoint *endpoint, uint32_t length, uint8_t tos, bint df) noexcept nogil:
    cdef PumpState *p = <PumpState *>owner
    cdef Message *m
    if p.n_messages:
        m = &p.messages[p.n_messages - 1]
        if (not m.closed and m.endpoint == endpoint and m.sa == sa and m.tos == tos and m.df == df and length <= m.unit
                and m.length + length <= TRAIN_MAX):
            m.length += length
            m.count += 1
            m.closed = length < m.unit or m.count == TRAIN_SEGMENTS
            p.train_used += length
            return
    m = &p.messages[p.n_messages]
    p.n_messages += 1
    m.sa = sa
    m.endpoint = endpoint
    memcpy(&m.to, endpoint, sizeof(Endpoint))
    m.offset = p.train_used
    m.length = length
    m.unit = length
    m.count = 1
    m.tos = tos
    m.df = df
    m.socket = <uint8_t>((UDP4 if endpoint.encap else RAW4) + (0 if endpoint.version == 4 else 1))
    if p.peer_sockets and endpoint.encap and peer_is(&p.peers[m.socket], p.sockets[PEER4 + m.socket] >= 0, endpoint):
        m.socket += PEER4
    # what is longer than the path is fragmented by the kernel, and that cannot be a train
    m.closed = (not (p.udp_gso and endpoint.encap)
                or length + (28 if endpoint.version == 4 else 48) > endpoint.path_mtu)
    p.train_used += length

# Where a message goes, and its control data, for which there are CONTROL_SIZE octets; `unit`: of a train, else 0.
cdef inline void message_address(PumpState *p, Message *m, uint16_t unit, msghdr *h, uint8_t *control) noexcept nogil:
    cdef bint all = m.socket != PEER4 and m.socket != PEER6
    h.msg_name = NULL
    h.msg_namelen = 0
    h.msg_control = NULL
    h.msg_controllen = 0
    if p.connected:
        return
    if all:
        h.msg_name = m.to.address
        h.msg_namelen = m.to.address_len
    h.msg_controllen = message_write(control, unit, m.to.version, m.tos, m.to.local if all and m.to.pin_source else NULL)
    if h.msg_controllen:
        h.msg_control = control

cdef inline void message_prepare(PumpState *p, uint32_t i) noexcept nogil:
    cdef Message *m = &p.messages[i]
    cdef msghdr *h = &p.out[i].msg_hdr
    p.out_iov[i].iov_base = p.train + ESP_SHIFT + m.offset
    p.out_iov[i].iov_len = m.length
    h.msg_iov = &p.out_iov[i]
    h.msg_iovlen = 1
    h.msg_flags = 0
    message_address(p, m, <uint16_t>m.unit if m.count > 1 else 0, h, p.out_control + i * CONTROL_SIZE)

# EMSGSIZE: the path became narrower. The next packets are measured against what the kernel knows now (RFC 4301 section 8.2).
cdef inline bint learn_path_mtu(PumpState *p, Message *m) noexcept nogil:
    cdef Endpoint *e = m.endpoint
    cdef uint32_t mtu
    if m.sa == NULL:
        return False
    mtu = path_mtu_to(e.address, e.address_len, e.version, p.mark)
    if mtu == 0:
        return False
    if mtu < PATH_MTU_MIN:
        mtu = PATH_MTU_MIN
    if mtu >= e.path_mtu:
        return False
    e.path_mtu = mtu
    e.inner_mtu = sa_inner_mtu(m.sa, e)
    e.learned_until_ns = p.worker.now_ns + <uint64_t>600 * 1000000000   # RFC 1191 section 6.3: ten minutes
    p.counters[PATH_MTU_CHANGES] += 1
    return True

# The kernel, or a device on the way, would not take the train: its datagrams go one by one. True if the socket is full:
# the message is then what has not been sent.
cdef inline bint message_send_each(PumpState *p, Message *m, int fd) noexcept nogil:
    cdef msghdr h
    cdef iovec piece
    cdef uint8_t control[CONTROL_SIZE]
    cdef uint32_t n
    memset(&h, 0, sizeof(h))
    h.msg_iov = &piece
    h.msg_iovlen = 1
    message_address(p, m, 0, &h, control)
    while m.length:
        n = m.unit if m.length > m.unit else m.length
        piece.iov_base = p.train + ESP_SHIFT + m.offset
        piece.iov_len = n
        p.counters[NET_TX_CALLS] += 1
        if sendmsg(fd, &h, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0:
            p.counters[NET_TX_MESSAGES] += 1
            p.counters[NET_TX_DATAGRAMS] += 1
            p.counters[NET_TX_BYTES] += n
            pump_count_batch(p, True, 1)
            if p.gso_suspect:
                p.counters[GSO_FALLBACKS] += 1
        elif errno == EINTR:
            continue
        elif errno == EAGAIN:
            return True
        else:
            if errno == EMSGSIZE:
                learn_path_mtu(p, m)
            drop(p.worker, m.sa, DROP_OUT_SEND_ERROR, 1)
            if p.gso_suspect:
                # a single datagram fares no better: it was not the train
                p.udp_gso = True
                p.gso_retry_ns = 0
        p.gso_suspect = False
        m.offset += n
        m.length -= n
        m.count -= 1
    return False

# From message `first` on none goes through a peer's socket.
cdef inline void messages_to_all(PumpState *p, uint32_t first) noexcept nogil:
    cdef uint32_t i
    for i in range(first, p.n_messages):
        if p.messages[i].socket == PEER4 or p.messages[i].socket == PEER6:
            p.messages[i].socket -= PEER4
            message_prepare(p, i)

# What becomes of a message that the socket refused, errno `error`. True: try it again, now datagram by datagram.
cdef inline bint message_failed(PumpState *p, Message *m, int error) noexcept nogil:
    if error == EMSGSIZE:
        learn_path_mtu(p, m)
    elif (error == EIO or error == EINVAL) and m.count > 1:
        # no checksum offload on the way out (before Linux 6.11), or a kernel that will not segment here
        p.udp_gso = False
        p.gso_suspect = True
        p.gso_retry_ns = p.worker.now_ns + <uint64_t>60 * 1000000000
        return True
    drop(p.worker, m.sa, DROP_OUT_SEND_ERROR, m.count)
    return False

cdef inline void message_adopt_df(PumpState *p, const Message *m, int fd) noexcept nogil:
    cdef uint8_t wanted = 2 if m.df else 1
    if p.df_state[m.socket] != wanted and not p.connected:
        store_u8(&p.df_state[m.socket], wanted)      # before: Pump.forget_df may come in between
        socket_set_df(fd, m.to.version, m.df)

# Takes out what could not be sealed. What follows in its message moves up, so that nothing more may be put behind it.
cdef inline void pump_drop_spoiled(PumpState *p) noexcept nogil:
    cdef uint32_t i, at, kept, n
    cdef uint32_t left = 0
    cdef Message *m
    cdef uint8_t *data
    p.worker.spoiled = False
    for i in range(p.n_messages):
        m = &p.messages[i]
        data = p.train + ESP_SHIFT + m.offset
        at = kept = m.count = 0
        while at < m.length:
            n = m.unit if m.length - at > m.unit else m.length - at
            if be32(data + at) != 0:
                if kept < at:
                    memmove(data + kept, data + at, n)
                kept += n
                m.count += 1
            at += n
        m.closed = m.closed or kept < at
        m.length = kept
        if m.count:
            if left < i:
                memcpy(&p.messages[left], m, sizeof(Message))
            left += 1
    p.n_messages = left

# Sends what waits. If the socket is full, the rest stays and p.blocked says which socket.
cdef inline void pump_flush(PumpState *p) noexcept nogil:
    cdef uint32_t i, run
    cdef int sent, fd, error
    cdef uint64_t before
    cdef Message *m
    i = 0
    p.blocked = 0
    seal_jobs(p.worker)
    if p.worker.spoiled:
        pump_drop_spoiled(p)
    for run in range(p.n_messages):
        message_prepare(p, run)
    while i < p.n_messages:
        m = &p.messages[i]
        if m.count > 1 and not p.udp_gso:
            messages_to_all(p, i)       # where no error of ICMP costs a datagram
        fd = p.sockets[m.socket]
        if fd < 0:
            drop(p.worker, m.sa, DROP_OUT_SEND_ERROR, m.count)
            i += 1
            continue
        if m.sa != NULL and m.endpoint.learned_until_ns and p.worker.now_ns > m.endpoint.learned_until_ns:
            m.endpoint.learned_until_ns = 0
            m.endpoint.path_mtu = m.endpoint.configured_mtu
            m.endpoint.inner_mtu = sa_inner_mtu(m.sa, m.endpoint)
        message_adopt_df(p, m, fd)
        if m.count > 1 and not p.udp_gso:
            if message_send_each(p, m, fd):
                p.blocked = m.socket + 1
                p.counters[SOCKET_FULL] += 1
                break
            i += 1
            continue
        run = 1
        while (i + run < p.n_messages and p.messages[i + run].socket == m.socket and p.messages[i + run].df == m.df
                and (p.udp_gso or p.messages[i + run].count == 1)):
            run += 1
        p.counters[NET_TX_CALLS] += 1
        sent = sendmmsg(fd, &p.out[i], run, MSG_DONTWAIT | MSG_NOSIGNAL)
        if sent > 0:
            before = p.counters[NET_TX_DATAGRAMS]
            for run in range(<uint32_t>sent):
                p.counters[NET_TX_DATAGRAMS] += p.messages[i + run].count
                p.counters[NET_TX_BYTES] += p.messages[i + run].length
            p.counters[NET_TX_MESSAGES] += <uint64_t>sent
            pump_count_batch(p, True, p.counters[NET_TX_DATAGRAMS] - before)
            i += <uint32_t>sent
            continue
        error = errno
        if error == EINTR:
            continue
        if error == EAGAIN:
            p.blocked = m.socket + 1
            p.counters[SOCKET_FULL] += 1
            break
        if m.socket == PEER4 or m.socket == PEER6:
            # an ICMP error of some earlier datagram, or its address is ours no longer: what the socket for all says counts
            p.peers[m.socket - PEER4].refused = True
            messages_to_all(p, i)
            continue
        if not message_failed(p, m, error):
            i += 1
    if i == p.n_messages:
        p.n_messages = 0
        p.train_used = 0
    elif i:
        # what could not be sent keeps its place in the train
        for run in range(p.n_messages - i):
            memcpy(&p.messages[run], &p.messages[run + i], sizeof(Message))
        p.n_messages -= i

# Between two batches the control plane may free SAs and endpoints: what waits must not refer to them.
cdef inline void pump_keep(PumpState *p) noexcept nogil:
    cdef uint32_t i
    messages_to_all(p, 0)
    for i in range(p.n_messages):
        p.messages[i].sa = NULL

# What waits for a socket will not be sent any more, nor what waits for an SA if `held`. Not beside a running pump.
cdef inline void pump_discard(PumpState *p, bint held) noexcept nogil:
    cdef uint32_t i
    while held and p.worker.held.first != NULL:
        drop(p.worker, NULL, DROP_OUT_NO_STATES, held_discard(&p.worker.held, NULL))
    drop(p.worker, NULL, DROP_IN_NO_STATES, early_discard_all(&p.worker.early) if held else 0)
    for i in range(p.n_messages):
        drop(p.worker, NULL, DROP_OUT_SEND_ERROR, p.messages[i].count)
    p.n_messages = 0
    p.train_used = 0
    p.blocked = 0

cdef inline void pump_reply(void *owner, uint8_t *packet, uint32_t length) noexcept nogil:
    cdef PumpState *p = <PumpState *>owner
    cdef VnetHdr vnet
    cdef iovec pieces[2]
    # RFC 4443 section 2.4 (f), RFC 1812 section 4.3.2.8: a token bucket
    if p.worker.now_ns - p.icmp_refilled_ns > ICMP_INTERVAL_NS * ICMP_BURST:
        p.icmp_refilled_ns = p.worker.now_ns - ICMP_INTERVAL_NS * ICMP_BURST
    if p.worker.now_ns - p.icmp_refilled_ns < ICMP_INTERVAL_NS:
        return
    p.icmp_refilled_ns += ICMP_INTERVAL_NS
    memset(&vnet, 0, sizeof(vnet))
    pieces[0].iov_base = &vnet
    pieces[0].iov_len = VNET_HDR_SIZE
    pieces[1].iov_base = packet
    pieces[1].iov_len = length
    if writev(p.tun_fd, &pieces[0 if p.vnet_hdr else 1], 2 if p.vnet_hdr else 1) >= 0:
        p.counters[ICMP_TX_PACKETS] += 1

# A BYPASS packet leaves as it is, through a raw socket that the routes into the tunnel do not hold for.
cdef inline int pump_clear(void *owner, uint8_t *packet, const PacketInfo *info) noexcept nogil:
    cdef PumpState *p = <PumpState *>owner
    cdef int fd = p.bypass[0 if info.version == 4 else 1]
    cdef uint8_t address[28]
    cdef uint16_t family = <uint16_t>(AF_INET if info.version == 4 else AF_INET6)
    if fd < 0:
        return -1
    memset(address, 0, 28)
    memcpy(address, &family, 2)
    memcpy(address + (4 if info.version == 4 else 8), info.dst, 4 if info.version == 4 else 16)
    if send_to(fd, packet, info.length, address, 16 if info.version == 4 else 28) < 0:
        return -1
    p.counters[BYPASS_TX_PACKETS] += 1
    return 0

cdef inline void lose_device(PumpState *p) noexcept nogil:
    # while the ring is full the device is looked at again: nobody else would tell
    if not p.device_lost:
        p.device_lost = event_push(p.worker, EVENT_DEVICE_LOST, 0, 0, 0, NULL, 0)

# Tries what waits for an SA once more, if there was a change since. The SPD decides anew.
cdef inline void pump_held(PumpState *p) noexcept nogil:
    cdef Worker *w = p.worker
    cdef uint8_t *packet = p.frame + FRAME_HEAD
    cdef uint32_t released = load_u32(&w.shared.released)
    cdef uint32_t n = w.held.count
    cdef HeldFrame *frame
    if w.held.released == released:
        return
    held_forget_policies(&w.held)
    while n and w.held.first != NULL and not p.blocked:
        n -= 1
        frame = held_unlink(&w.held, NULL)
        if held_too_long(frame, w.now_ns):
            drop(w, NULL, DROP_OUT_NO_STATES, frame.packets)
        else:
            w.held.since_ns = frame.since_ns
            memcpy(packet, frame.data, frame.length)
            outbound_frame(w, <SpdTable *>load_ptr(&w.shared.spd), &p.sink, &frame.vnet, packet, frame.length)
            w.held.since_ns = 0
        free(frame)
        if p.train_used >= TRAIN_FLUSH or p.n_messages >= MESSAGES_FLUSH:
            pump_flush(p)
    if n == 0 or w.held.first == NULL:
        w.held.released = released

# Reads the TUN device up to `budget` times, a read that fills a train counting four times. RUN_* bits.
cdef inline int pump_tun(PumpState *p, uint32_t budget) noexcept nogil:
    cdef uint8_t *packet = p.frame + FRAME_HEAD
    cdef uint8_t *start = packet - (VNET_HDR_SIZE if p.vnet_hdr else 0)
    cdef Worker *w = p.worker
    cdef SpdTable *spd
    cdef VnetHdr *vnet = <VnetHdr *>start if p.vnet_hdr else NULL
    cdef ssize_t n
    cdef int result = 0
    cdef uint32_t head = VNET_HDR_SIZE if p.vnet_hdr else 0
    worker_enter(w)
    w.now_ns = monotonic_ns()
    spd = <SpdTable *>load_ptr(&w.shared.spd)
    if not p.udp_gso and p.gso_retry_ns and w.now_ns > p.gso_retry_ns:
        p.udp_gso = True
        p.gso_retry_ns = 0
    if p.n_messages:
        pump_flush(p)
    pump_held(p)
    pump_early(p)
    if p.device_lost:
        result = RUN_DEVICE_LOST
    while not p.blocked and not p.device_lost:
        if budget == 0:
            result = RUN_MORE
            break
        budget -= 1
        n = read(p.tun_fd, start, head + 65535)
        if n < 0:
            if errno == EINTR:
                continue
            # EIO: the device is down. EBADFD: it is gone, and so is this descriptor
            if errno == EBADFD or errno == ENODEV or errno == EBADF:
                lose_device(p)
                result = RUN_DEVICE_LOST
            break
        if n == 0:
            # the other end of a link in memory was closed
            lose_device(p)
            result = RUN_DEVICE_LOST
            break
        if n <= <ssize_t>head:
            drop(w, NULL, DROP_OUT_HDR_ERROR, 1)
            p.counters[TUN_RX_PACKETS] += 1
            continue
        n -= head
        p.counters[TUN_RX_FRAMES] += 1
        p.counters[TUN_RX_BYTES] += <uint64_t>n
        p.counters[TUN_RX_PACKETS] += outbound_frame(w, spd, &p.sink, vnet, packet, <uint32_t>n)
        if p.train_used >= TRAIN_FLUSH or p.n_messages >= MESSAGES_FLUSH:
            budget -= 3 if budget > 3 else budget
            pump_flush(p)
    if w.held.count:
        # an SA may have come between the look at its policy and the keeping: whoever added it saw nothing to wake us for
        fence()
        pump_held(p)
    if p.n_messages and not p.blocked:
        pump_flush(p)
    seal_jobs(p.worker)
    pump_keep(p)
    worker_leave(w)
    pump_announce(p)
    return result | (RUN_BLOCKED if p.blocked else 0)

# --- in: messages into datagrams, packets into superframes, superframes into the device ---------------------------------

# The device would not take a superframe: its packets go one by one, and no more are made.
cdef inline void write_each(PumpState *p, Superframe *frame) noexcept nogil:
    cdef VnetHdr vnet
    cdef iovec pieces[2]
    cdef uint32_t k, length
    memset(&vnet, 0, sizeof(vnet))
    pieces[0].iov_base = &vnet
    pieces[0].iov_len = VNET_HDR_SIZE
    for k in range(frame.segments):
        pieces[1].iov_base = superframe_packet(frame, k, &length)
        pieces[1].iov_len = length
        if writev(p.tun_fd, &pieces[0 if p.vnet_hdr else 1], 2 if p.vnet_hdr else 1) < 0:
            drop(p.worker, NULL, DROP_IN_DEVICE_ERROR, 1)
        else:
            p.counters[TUN_TX_FRAMES] += 1
            p.counters[TUN_TX_PACKETS] += 1
            p.counters[TUN_TX_BYTES] += length

cdef inline void pump_write(PumpState *p) noexcept nogil:
    cdef Coalescer *c = p.coalescer
    cdef Superframe *frame
    cdef iovec *pieces = NULL
    cdef uint32_t i, n
    cdef ssize_t done
    for i in range(c.used):
        frame = &c.frames[i]
        n = coalesce_pieces(c, i, &pieces)
        while True:
            done = writev(p.tun_fd, pieces, <int>n)
            if done >= 0 or errno != EINTR:
                break
        if done >= 0:
            p.counters[TUN_TX_FRAMES] += 1
            p.counters[TUN_TX_PACKETS] += frame.segments
            p.counters[TUN_TX_BYTES] += <uint64_t>done - (VNET_HDR_SIZE if p.vnet_hdr else 0)
        elif errno == EINVAL and frame.segments > 1:
            if frame.protocol == 6:
                c.tcp_on = False
            else:
                c.udp_on = False
            p.counters[TUN_GSO_FALLBACKS] += 1
            write_each(p, frame)
        else:
            if errno == EBADFD or errno == ENODEV:
                lose_device(p)
            drop(p.worker, NULL, DROP_IN_DEVICE_ERROR, frame.segments)
    coalesce_reset(c)
    p.plain_used = 0

cdef inline void pump_datagram(PumpState *p, SadTable *sad, int which, uint8_t *data, uint32_t length,
                               const Source *source, const message_facts *facts) noexcept nogil:
    cdef PacketInfo info
    cdef Sa *sa
    cdef Worker *w = p.worker
    cdef uint32_t room = (length + INBOUND_ROOM + 63) & ~<uint32_t>63
    p.counters[NET_RX_DATAGRAMS] += 1
    if which < RAW4:
        if length == 1 and data[0] == 0xFF:
            p.counters[KEEPALIVES] += 1          # RFC 3948 section 2.3
            return
        if length >= 4 and be32(data) == 0:
            # not ESP: for the event loop (RFC 3948 section 2.2: IKE behind a non-ESP marker)
            p.counters[CONTROL_DATAGRAMS if inbox_put(&p.inbox, data, length, p.sockets[which & 1], source, facts)
                       else CONTROL_LOST] += 1
            return
    if p.plain_used + length + 2 * INBOUND_ROOM > PLAIN_SIZE:
        pump_open_all(p)
        pump_write(p)
    sa = inbound_find(sad, data, length)
    if inbound_batched(sa, length):
        if w.jobs.opening == JOBS:
            pump_open_all(p)
        if inbound_job_begin(w, sa, data, length, facts.tos, source, p.plain + p.plain_used):
            p.plain_used += room
        return
    pump_open_all(p)      # nothing overtakes what is queued
    if inbound(w, sa, data, length, facts.tos, source, p.plain + p.plain_used, &info, NULL) == DROP_NONE:
        pump_opened(p, &info)
        p.plain_used += room

cdef inline void pump_opened(PumpState *p, PacketInfo *info) noexcept nogil:
    if coalesce_add(p.coalescer, <uint8_t *>info.data, info.length, info) == COALESCE_FULL:
        pump_write_keep(p, info)

# Opens what is queued, and takes it in the order in which it came.
cdef inline void pump_open_all(PumpState *p) noexcept nogil:
    cdef Jobs *jobs = p.worker.jobs
    cdef PacketInfo info
    cdef uint32_t i
    if jobs == NULL or not jobs.opening:
        return
    jobs_open_all(jobs)
    for i in range(jobs.opening):
        if inbound_job_end(p.worker, i, &info) == DROP_NONE:
            pump_opened(p, &info)
    jobs.opening = 0

# The coalescer is full: everything before this packet is written; the packet stays where it is.
cdef inline void pump_write_keep(PumpState *p, PacketInfo *info) noexcept nogil:
    cdef uint32_t used = p.plain_used
    pump_write(p)
    p.plain_used = used
    coalesce_add(p.coalescer, <uint8_t *>info.data, info.length, info)

# One message: a datagram, a train of them, or an IP packet from a raw IPv4 socket.
cdef inline void pump_message(PumpState *p, SadTable *sad, int which, uint32_t i) noexcept nogil:
    cdef msghdr *h = &p.incoming[i].msg_hdr
    cdef uint8_t *data = rx_slot(p, i)
    cdef uint32_t length = p.incoming[i].msg_len
    cdef uint32_t unit, n
    cdef Source source
    cdef message_facts facts
    p.counters[NET_RX_MESSAGES] += 1
    p.counters[NET_RX_BYTES] += length
    message_read(h, &facts)
    read_source(h, &source)
    if h.msg_flags & MSG_TRUNC or length > RX_SLOT - ESP_SHIFT:
        p.counters[NET_RX_DATAGRAMS] += 1
        drop(p.worker, NULL, DROP_IN_BUFFER_ERROR, 1)
        return
    if which == RAW4:
        # a raw IPv4 socket gives the header too; the kernel has checked and reassembled
        n = (data[0] & 15) * 4
        if length < 20 or n < 20 or n > length:
            p.counters[NET_RX_DATAGRAMS] += 1
            drop(p.worker, NULL, DROP_IN_HDR_ERROR, 1)
            return
        facts.tos = data[1]
        data += n
        length -= n
    if which == RAW4 or which == RAW6:
        source.port = 0
    unit = facts.segment if facts.segment and facts.segment < length else length
    if unit == 0:
        p.counters[NET_RX_DATAGRAMS] += 1
        drop(p.worker, NULL, DROP_IN_HDR_ERROR, 1)
        return
    while length:
        n = unit if unit < length else length
        pump_datagram(p, sad, which, data, n, &source, &facts)
        data += n
        length -= n
    if p.plain_used >= PLAIN_FLUSH:
        pump_open_all(p)
        pump_write(p)

# Takes what came before its SA, if there was a change since; before what comes later. One by one: it is rare.
cdef inline void pump_early(PumpState *p) noexcept nogil:
    cdef Worker *w = p.worker
    cdef uint32_t arrived
    cdef EarlyPacket *packet
    cdef PacketInfo info
    cdef Sa *sa
    if not w.early.count:
        return
    fence()      # the SA may have come since its packet was kept: whoever added it saw nothing to wake us for
    arrived = load_u32(&w.shared.arrived)
    if w.early.arrived == arrived:
        return
    while True:
        packet = inbound_next_early(w)
        if packet == NULL:
            break
        sa = inbound_find(<SadTable *>load_ptr(&w.shared.sad), packet.data, packet.length)
        if inbound(w, sa, packet.data, packet.length, packet.tos, &packet.source, p.plain + p.plain_used, &info,
                   NULL) == DROP_NONE:
            pump_opened(p, &info)
            p.plain_used += (packet.length + INBOUND_ROOM + 63) & ~<uint32_t>63
        free(packet)
        if p.plain_used > PLAIN_FLUSH:
            pump_write(p)
    pump_write(p)
    w.early.arrived = arrived

# Receives from one socket up to `budget` times. RUN_* bits.
cdef inline int pump_socket(PumpState *p, int which, uint32_t budget) noexcept nogil:
    cdef Worker *w = p.worker
    cdef SadTable *sad
    cdef int got, i, width
    cdef int result = 0
    cdef uint64_t before
    worker_enter(w)
    w.now_ns = monotonic_ns()
    pump_early(p)
    while True:
        sad = <SadTable *>load_ptr(&w.shared.sad)      # after pump_early: what is kept is for no SA of this table
        if budget == 0:
            result = RUN_MORE
            break
        budget -= 1
        width = RX_DEEP if p.deep else RX_WIDE
        for i in range(width):
            p.incoming[i].msg_hdr.msg_namelen = 28
            p.incoming[i].msg_hdr.msg_controllen = CONTROL_SIZE
            p.incoming[i].msg_hdr.msg_flags = 0
        p.counters[NET_RX_CALLS] += 1
        got = recvmmsg(p.sockets[which], p.incoming, <unsigned int>width, MSG_DONTWAIT, NULL)
        if got < 0:
            # an ICMP error of some earlier datagram (ECONNREFUSED, EHOSTUNREACH, ...) says nothing about the socket:
            # it is taken from the queue by being read, and says nothing that is authenticated
            if errno == EBADF or errno == EPIPE:
                p.sockets[which] = -1        # closed under us: never looked at again
            if errno == EAGAIN or p.sockets[which] < 0:
                break
            continue
        if got == 0 or (p.connected and p.incoming[0].msg_len == 0):
            p.sockets[which] = -1            # the other end of a link in memory was closed
            break
        before = p.counters[NET_RX_DATAGRAMS]
        for i in range(got):
            # a message holds packets of one SA as a rule, the next one perhaps of another
            if which < RAW4 and i + 5 < got:
                sad_prefetch(sad, rx_slot(p, i), rx_slot(p, i + 5), p.incoming[i + 5].msg_len)
            if which < RAW4 and i + 2 < got:
                sad_prefetch_rest(sad, rx_slot(p, i), rx_slot(p, i + 2), p.incoming[i + 2].msg_len)
            pump_message(p, sad, which, <uint32_t>i)
        p.deep = p.counters[NET_RX_DATAGRAMS] - before >= 2 * <uint64_t>got
        pump_count_batch(p, False, p.counters[NET_RX_DATAGRAMS] - before)
        pump_open_all(p)
        pump_write(p)
        pump_early(p)
        if got < width:
            break
    worker_leave(w)
    pump_announce(p)
    return result | (RUN_DEVICE_LOST if p.device_lost else 0)

# Wakes the event loop if there is something new for it.
cdef inline void pump_announce(PumpState *p) noexcept nogil:
    cdef uint64_t now = p.worker.events.head + p.inbox.head
    cdef uint64_t one = 1
    if now != p.told and p.event_fd >= 0:
        p.told = now
        write(p.event_fd, &one, 8)
