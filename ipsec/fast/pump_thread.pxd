# A pump in a thread of its own.
from libc.stdint cimport uint64_t
from libc.string cimport memcpy

from ipsec.fast.message cimport POLLIN, POLLNVAL, POLLOUT, close, monotonic_ns, poll, pollfd, read, sched_yield
from ipsec.fast.peer cimport PEER_PAUSE_NS, PEER_RENEW_NS, Peer, peer_is_due, peer_leave, peer_open, peer_renew
from ipsec.fast.pump cimport *
from ipsec.fast.pump_state cimport *

cdef enum:
    TUN_READS = 64       # small packets of one system call, as many as a train holds; or 16 superframes
    LOOKS = 16           # at a socket, 64 system calls each: what a buffer of 16 MiB holds, trains or not
    UNTOLD_MS = 10       # from one look at a device that is gone to the next, while there is no room to say so

# Takes what a socket holds now. There is an end to it when more comes all the while.
cdef inline void pump_empty(PumpState *p, int which) noexcept nogil:
    cdef uint64_t before
    cdef int n
    for n in range(LOOKS):
        before = p.counters[NET_RX_MESSAGES]
        pump_socket(p, which, RX_WIDE)
        if p.counters[NET_RX_MESSAGES] == before:      # less than was asked for may be an error in between
            break

# Closes a peer's socket, when all that came through it has been taken. Between two batches.
cdef inline void pump_leave_peer(PumpState *p, int which) noexcept nogil:
    cdef int fd = p.sockets[which]
    if fd < 0:
        return
    peer_leave(fd)
    pump_empty(p, which)
    p.sockets[which] = -1
    close(fd)
    if p.blocked == which + 1:
        p.blocked = 0
        pump_tun(p, 0)       # what waited for it goes through the one for all: nobody else would send it

# The peer that all lately went to gets a socket of its own, instead of the one that had it.
cdef inline void pump_meet_peer(PumpState *p, int family) noexcept nogil:
    cdef Peer *peer = &p.peers[family]
    cdef int connected = 0
    cdef int fd
    peer.streak = 0
    peer.not_before_ns = p.worker.now_ns + PEER_PAUSE_NS
    pump_leave_peer(p, PEER4 + family)
    if p.sockets[UDP4 + family] < 0:
        return
    fd = peer_open(p.sockets[UDP4 + family], peer.next.version, peer.next.local, peer.next.remote,
                   peer.next.remote_port, p.mark, p.udp_gro, &connected)
    if fd < 0:
        return
    memcpy(&peer.of, &peer.next, sizeof(Endpoint))
    peer.renew_ns = p.worker.now_ns + PEER_RENEW_NS
    store_u8(&p.df_state[PEER4 + family], 0)
    p.sockets[PEER4 + family] = fd
    # what came before goes first: behind what comes through the new one it would be outside of the replay window
    pump_empty(p, UDP4 + family)
    if connected:
        p.counters[PEER_SOCKETS] += 1
    else:
        pump_leave_peer(p, PEER4 + family)

# Whether the IPv6 peer's socket had to be closed because the way to it is no more.
cdef inline bint pump_renew_peer(PumpState *p) noexcept nogil:
    cdef Peer *peer = &p.peers[1]
    cdef uint64_t now = monotonic_ns()
    if now < peer.renew_ns:
        return False
    peer.renew_ns = now + PEER_RENEW_NS
    if peer_renew(p.sockets[PEER6], peer.of.local, peer.of.remote, peer.of.remote_port):
        return False
    peer.not_before_ns = now + PEER_PAUSE_NS
    pump_leave_peer(p, PEER6)
    return True

cdef inline void pump_look_at_peers(PumpState *p) noexcept nogil:
    cdef int family
    for family in range(2):
        if p.peers[family].refused:
            p.peers[family].refused = False
            p.peers[family].not_before_ns = p.worker.now_ns + PEER_PAUSE_NS
            pump_leave_peer(p, PEER4 + family)
        if peer_is_due(&p.peers[family], p.worker.now_ns):
            pump_meet_peer(p, family)

# Runs until stop_fd is readable. Sleeps in poll() when there is nothing to do; with busy_poll_ns it looks
# again for so long after the last packet before it sleeps.
cdef inline void pump_forever(PumpState *p, int stop_fd, uint64_t busy_poll_ns) noexcept nogil:
    cdef pollfd fds[SOCKETS + 3]
    cdef int which[SOCKETS + 3]
    cdef int n, i, flags, ready
    cdef uint64_t woken
    cdef bint more = False
    cdef bint untold = False     # the device is gone, and the ring of events full: poll() would return at once, for ever
    cdef uint64_t quiet_since = 0
    cdef uint64_t before
    while True:
        n = 0
        fds[n].fd = stop_fd
        fds[n].events = <short>POLLIN
        n += 1
        fds[n].fd = p.wake_fd
        fds[n].events = <short>POLLIN
        which[n] = -1
        n += 1
        for i in range(SOCKETS):
            if p.sockets[i] >= 0 and (i < RAW4 or p.read_raw or p.blocked == i + 1):
                fds[n].fd = p.sockets[i]
                fds[n].events = <short>((POLLIN if i < RAW4 or p.read_raw else 0)
                                        | (POLLOUT if p.blocked == i + 1 else 0))
                which[n] = i
                n += 1
        if not p.device_lost and not p.blocked and not untold:
            fds[n].fd = p.tun_fd
            fds[n].events = <short>POLLIN
            which[n] = -1
            n += 1
        ready = poll(fds, <unsigned long>n, 0 if more else UNTOLD_MS if untold else -1)
        if ready == 0 and more:
            sched_yield()    # looking again and again must not keep others, the peer of a packet perhaps, from this CPU
        p.counters[WAKEUPS] += 1
        if fds[0].revents:
            for i in range(2):
                pump_leave_peer(p, PEER4 + i)
            return
        if p.sockets[PEER6] >= 0 and pump_renew_peer(p):
            continue
        before = p.counters[NET_RX_MESSAGES] + p.counters[TUN_RX_FRAMES]
        more = False
        if untold:
            untold = pump_tun(p, TUN_READS) & RUN_DEVICE_LOST and not p.device_lost
        for i in range(1, n):
            if not fds[i].revents:
                continue
            if i == 1:
                read(p.wake_fd, &woken, 8)
            if which[i] < 0:
                flags = pump_tun(p, TUN_READS)
            else:
                flags = 0
                if fds[i].revents & POLLNVAL:
                    p.sockets[which[i]] = -1
                    continue
                if fds[i].revents & ~POLLOUT:
                    flags = pump_socket(p, which[i], 4)
                if fds[i].revents & POLLOUT:
                    flags |= pump_tun(p, TUN_READS)
            if flags & RUN_MORE:
                more = True
            if flags & RUN_DEVICE_LOST and not p.device_lost:
                untold = True
        if p.peer_sockets:
            pump_look_at_peers(p)
        if busy_poll_ns:
            if p.counters[NET_RX_MESSAGES] + p.counters[TUN_RX_FRAMES] != before:
                quiet_since = p.worker.now_ns
            more = more or monotonic_ns() - quiet_since < busy_poll_ns
