/* A UDP socket for one peer, beside the one for all: bound to the same port, connected. The kernel then looks up neither
 * the way to the peer nor, for what comes from there, the way into this host (early demultiplexing). */
#ifndef IPSEC_FAST_PEER_H
#define IPSEC_FAST_PEER_H

#include "message.h"

struct peer_address {
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
    };
    socklen_t size;
};

static inline void peer_address_set(struct peer_address *a, int version, const uint8_t *address, uint16_t port)
{
    memset(a, 0, sizeof *a);
    if (version == 4) {
        a->v4.sin_family = AF_INET;
        a->v4.sin_port = htons(port);
        memcpy(&a->v4.sin_addr, address, 4);
        a->size = sizeof a->v4;
    } else {
        a->v6.sin6_family = AF_INET6;
        a->v6.sin6_port = htons(port);
        memcpy(&a->v6.sin6_addr, address, 16);
        a->size = sizeof a->v6;
    }
}

static inline uint16_t peer_port_of(int fd, int version)
{
    struct peer_address a;
    a.size = sizeof a.v6;
    if (getsockname(fd, &a.any, &a.size) < 0)
        return 0;
    return ntohs(version == 4 ? a.v4.sin_port : a.v6.sin6_port);
}

static inline void peer_copy_buffer(int from, int to, int option, int forced)
{
    int size = 0;
    socklen_t n = sizeof size;
    if (getsockopt(from, SOL_SOCKET, option, &size, &n) < 0)
        return;
    size /= 2; /* the kernel says twice what was asked for */
    if (setsockopt(to, SOL_SOCKET, forced, &size, sizeof size) < 0)
        setsockopt(to, SOL_SOCKET, option, &size, sizeof size);
}

/* Options as udp.py gives them to the socket for all. False if the mark is refused: unmarked, ESP would go into the tunnel. */
static inline int peer_set_options(int fd, int all, int version, uint32_t mark, int gro)
{
    int on = 1;
    if (mark && setsockopt(fd, SOL_SOCKET, SO_MARK, &mark, sizeof mark) < 0)
        return 0;
    if (version == 4) {
        setsockopt(fd, IPPROTO_IP, IP_RECVTOS, &on, sizeof on);
        setsockopt(fd, IPPROTO_IP, IP_PKTINFO, &on, sizeof on);
    } else {
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on);
        setsockopt(fd, IPPROTO_IPV6, IPV6_RECVTCLASS, &on, sizeof on);
        setsockopt(fd, IPPROTO_IPV6, IPV6_RECVPKTINFO, &on, sizeof on);
    }
    if (gro)
        setsockopt(fd, SOL_UDP, UDP_GRO, &on, sizeof on);
    peer_copy_buffer(all, fd, SO_RCVBUF, SO_RCVBUFFORCE);
    peer_copy_buffer(all, fd, SO_SNDBUF, SO_SNDBUFFORCE);
    return 1;
}

/* Both have to allow it for this moment; otherwise nobody may share the port. SO_REUSEPORT is for sockets of one user:
 * with SO_REUSEADDR, a program of anybody that tries all the time would have the port now. */
static inline int peer_bind(int fd, int all, const struct peer_address *local)
{
    int on = 1, off = 0, before = 0, result;
    socklen_t n = sizeof before;
    getsockopt(all, SOL_SOCKET, SO_REUSEPORT, &before, &n);
    setsockopt(all, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on);
    setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on);
    result = bind(fd, &local->any, local->size);
    setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &off, sizeof off);
    setsockopt(all, SOL_SOCKET, SO_REUSEPORT, &before, sizeof before);
    return result;
}

/* Its descriptor, -1 if there is none. *connected is 0 if it has to be left again at once: between bind() and connect()
 * it was given what others sent to `local`, which must be read. */
static inline int peer_open(int all, int version, const uint8_t *local, const uint8_t *remote, uint16_t port,
                            uint32_t mark, int gro, int *connected)
{
    struct peer_address from, to;
    uint16_t own = peer_port_of(all, version);
    int fd;
    if (own == 0)
        return -1;
    fd = socket(version == 4 ? AF_INET : AF_INET6, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    peer_address_set(&from, version, local, own);
    peer_address_set(&to, version, remote, port);
    if (!peer_set_options(fd, all, version, mark, gro) || peer_bind(fd, all, &from) < 0) {
        close(fd);
        return -1;
    }
    *connected = connect(fd, &to.any, to.size) == 0;
    return fd;
}

/* Looks up once more what a connected IPv6 socket keeps: the way, which may be another one since a rule or a route in
 * another table changed, and whether `local` is an address of this host still. False: do without the socket. A connected
 * IPv4 socket is told of either at once. */
static inline int peer_renew(int fd, const uint8_t *local, const uint8_t *remote, uint16_t port)
{
    struct peer_address a;
    int ours;
    int other = socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (other < 0)
        return 0;
    peer_address_set(&a, 6, local, 0);
    ours = bind(other, &a.any, a.size) == 0;
    close(other);
    peer_address_set(&a, 6, remote, port);
    return ours && connect(fd, &a.any, a.size) == 0;
}

/* From now on nothing new comes in, for its peer is itself: what is queued can be read to the end. */
static inline void peer_leave(int fd)
{
    struct peer_address own;
    own.size = sizeof own.v6;
    if (getsockname(fd, &own.any, &own.size) == 0)
        connect(fd, &own.any, own.size);
}

#endif
