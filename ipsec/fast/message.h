/* Control messages of sendmmsg and recvmmsg: what the CMSG macros cannot say in Cython. */
#ifndef IPSEC_FAST_MESSAGE_H
#define IPSEC_FAST_MESSAGE_H

#include <errno.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <poll.h>
#include <sched.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif
#ifndef UDP_GRO
#define UDP_GRO 104
#endif

/* What a receiver wants to know of a message. */
struct message_facts {
    uint32_t segment;    /* UDP_GRO: size of all datagrams but the last, 0 if there is one only */
    uint8_t tos;         /* outer DSCP and ECN */
    uint8_t local_known; /* 4 or 6: version of local, 0 unknown */
    uint8_t local[16];   /* address it was sent to */
};

static inline void message_read(const struct msghdr *message, struct message_facts *facts)
{
    struct cmsghdr *c;
    int value;
    memset(facts, 0, sizeof *facts);
    for (c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR((struct msghdr *)message, c)) {
        if (c->cmsg_level == SOL_UDP && c->cmsg_type == UDP_GRO) {
            memcpy(&value, CMSG_DATA(c), sizeof value);
            facts->segment = value > 0 ? (uint32_t)value : 0;
        } else if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_TOS) {
            facts->tos = *(const uint8_t *)CMSG_DATA(c);
        } else if (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_TCLASS) {
            memcpy(&value, CMSG_DATA(c), sizeof value);
            facts->tos = (uint8_t)value;
        } else if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_PKTINFO) {
            const struct in_pktinfo *info = (const struct in_pktinfo *)CMSG_DATA(c);
            memcpy(facts->local, &info->ipi_addr, 4);
            facts->local_known = 4;
        } else if (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_PKTINFO) {
            const struct in6_pktinfo *info = (const struct in6_pktinfo *)CMSG_DATA(c);
            memcpy(facts->local, &info->ipi6_addr, 16);
            facts->local_known = 6;
        }
    }
}

static inline size_t message_put(uint8_t *control, size_t used, int level, int type, const void *data, size_t size)
{
    struct cmsghdr *c = (struct cmsghdr *)(control + used);
    c->cmsg_level = level;
    c->cmsg_type = type;
    c->cmsg_len = CMSG_LEN(size);
    memcpy(CMSG_DATA(c), data, size);
    return used + CMSG_SPACE(size);
}

/* Control data of one outgoing message: segment size (0: none), TOS, source address. Octets used; 128 are enough. */
static inline size_t message_write(uint8_t *control, uint16_t segment, int version, uint8_t tos, const uint8_t *source)
{
    size_t used = 0;
    int value = tos;
    if (segment)
        used = message_put(control, used, SOL_UDP, UDP_SEGMENT, &segment, sizeof segment);
    if (version == 4) {
        if (tos)
            used = message_put(control, used, IPPROTO_IP, IP_TOS, &value, sizeof value);
        if (source) {
            struct in_pktinfo info;
            memset(&info, 0, sizeof info);
            memcpy(&info.ipi_spec_dst, source, 4);
            used = message_put(control, used, IPPROTO_IP, IP_PKTINFO, &info, sizeof info);
        }
    } else {
        if (tos)
            used = message_put(control, used, IPPROTO_IPV6, IPV6_TCLASS, &value, sizeof value);
        if (source) {
            struct in6_pktinfo info;
            memset(&info, 0, sizeof info);
            memcpy(&info.ipi6_addr, source, 16);
            used = message_put(control, used, IPPROTO_IPV6, IPV6_PKTINFO, &info, sizeof info);
        }
    }
    return used;
}

static inline ssize_t send_to(int fd, const void *data, size_t size, const uint8_t *address, uint32_t length)
{
    return sendto(fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL, (const struct sockaddr *)address, length);
}

/* DF of what a socket sends from now on. IPv6 routers never fragment: there it decides whether we do. */
static inline void socket_set_df(int fd, int version, int df)
{
    int value = df ? IP_PMTUDISC_DO : IP_PMTUDISC_DONT;
    if (version == 4)
        setsockopt(fd, IPPROTO_IP, IP_MTU_DISCOVER, &value, sizeof value);
    else
        setsockopt(fd, IPPROTO_IPV6, IPV6_MTU_DISCOVER, &value, sizeof value);
}

/* The MTU that the kernel knows for the path to an address, 0 if it cannot say. Four system calls: only after EMSGSIZE. */
static inline uint32_t path_mtu_to(const uint8_t *address, uint32_t length, int version, uint32_t mark)
{
    int mtu = 0;
    socklen_t size = sizeof mtu;
    int fd = socket(version == 4 ? AF_INET : AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return 0;
    if (mark)
        setsockopt(fd, SOL_SOCKET, SO_MARK, &mark, sizeof mark);
    if (connect(fd, (const struct sockaddr *)address, length) == 0) {
        if (version == 4)
            getsockopt(fd, IPPROTO_IP, IP_MTU, &mtu, &size);
        else
            getsockopt(fd, IPPROTO_IPV6, IPV6_MTU, &mtu, &size);
    }
    close(fd);
    return mtu > 0 ? (uint32_t)mtu : 0;
}

static inline uint64_t monotonic_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

#endif
