# Messages of sendmmsg and recvmmsg with their control data, and what else a pump asks of the kernel: see message.h.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from posix.uio cimport iovec

cdef extern from "fast/message.h" nogil:
    struct msghdr:
        void *msg_name
        uint32_t msg_namelen
        iovec *msg_iov
        size_t msg_iovlen
        void *msg_control
        size_t msg_controllen
        int msg_flags
    struct mmsghdr:
        msghdr msg_hdr
        unsigned int msg_len
    struct message_facts:
        uint32_t segment
        uint8_t tos
        uint8_t local_known
        uint8_t local[16]
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd *fds, unsigned long n, int timeout)
    int sched_yield()
    int POLLIN, POLLOUT, POLLERR, POLLHUP, POLLNVAL
    int sendmmsg(int fd, mmsghdr *messages, unsigned int n, int flags)
    ssize_t sendmsg(int fd, const msghdr *message, int flags)
    ssize_t send_to(int fd, const void *data, size_t n, const uint8_t *address, uint32_t length)
    int recvmmsg(int fd, mmsghdr *messages, unsigned int n, int flags, void *timeout)
    ssize_t read(int fd, void *data, size_t n)
    int close(int fd)
    ssize_t write(int fd, const void *data, size_t n)
    int MSG_DONTWAIT, MSG_TRUNC, MSG_NOSIGNAL
    int AF_INET, AF_INET6
    void message_read(const msghdr *message, message_facts *facts)
    size_t message_write(uint8_t *control, uint16_t segment, int version, uint8_t tos, const uint8_t *source)
    void socket_set_df(int fd, int version, int df)
    uint32_t path_mtu_to(const uint8_t *address, uint32_t length, int version, uint32_t mark)
    uint64_t monotonic_ns()
