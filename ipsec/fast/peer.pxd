# The peer that most datagrams go to has a socket of its own, of a family one at most: see peer.h for what that saves.
# With trains it is little, for each of them is looked up once; with single datagrams, and such a socket at both ends, it is
# a third of sending.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from ipsec.fast.sa cimport Endpoint

cdef extern from "fast/peer.h" nogil:
    int peer_open(int all, int version, const uint8_t *local, const uint8_t *remote, uint16_t port, uint32_t mark,
                  int gro, int *connected)
    int peer_renew(int fd, const uint8_t *local, const uint8_t *remote, uint16_t port)
    void peer_leave(int fd)

cdef enum:
    PEER_STREAK = 256                # messages to one peer, with none to others in between, before it gets its socket
    PEER_PAUSE_NS = 1000000000       # from one to the next
    PEER_RENEW_NS = 1000000000       # how old what it knows of the way may be

cdef struct Peer:
    Endpoint of                      # a copy: whose the socket is
    Endpoint next                    # who may get one
    uint32_t streak                  # messages to `next`, one after the other
    uint64_t not_before_ns
    uint64_t renew_ns                # IPv6: when the way to it is looked up again
    uint8_t refused                  # it would not send something: away with it

cdef inline bint same_way(const Endpoint *a, const Endpoint *b) noexcept nogil:
    return (a.remote_port == b.remote_port and memcmp(a.remote, b.remote, 16) == 0 and memcmp(a.local, b.local, 16) == 0
            and a.pin_source and b.pin_source)

# Whether a message to `to`, which is ESP in UDP, goes through the peer's socket; `open`: there is one.
cdef inline bint peer_is(Peer *p, bint open, const Endpoint *to) noexcept nogil:
    if open and not p.refused and same_way(&p.of, to):
        p.streak = 0
        return True
    if p.streak and same_way(&p.next, to):
        p.streak += 1
    elif to.pin_source and not (to.version == 6 and to.remote[0] == 0xFE and to.remote[1] & 0xC0 == 0x80):
        # a link-local address means nothing without its interface
        memcpy(&p.next, to, sizeof(Endpoint))
        p.streak = 1
    else:
        p.streak = 0
    return False

cdef inline bint peer_is_due(const Peer *p, uint64_t now_ns) noexcept nogil:
    return p.streak >= PEER_STREAK and now_ns >= p.not_before_ns
