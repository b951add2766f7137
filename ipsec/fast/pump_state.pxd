# What a pump owns: its descriptors, the messages that wait to be sent, the buffers that it receives into, its counters.
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from posix.uio cimport iovec

from ipsec.fast.coalesce cimport Coalescer
from ipsec.fast.inbox cimport Inbox
from ipsec.fast.message cimport mmsghdr
from ipsec.fast.outbound cimport Sink
from ipsec.fast.peer cimport Peer
from ipsec.fast.sa cimport ESP_SHIFT, Endpoint, Sa
from ipsec.fast.worker cimport Worker

cdef enum:
    FRAME_HEAD = 320                 # room before a frame read from the TUN device; keeps the packet on a cache line
    FRAME_SIZE = 65536 + 1024
    TRAIN_SIZE = 262144              # ESP datagrams that wait to be sent
    TRAIN_FLUSH = 49152              # from here on they are sent before the next read: they are still in the cache
    TRAIN_MAX = 65507                # octets of one UDP message (IPv4)
    TRAIN_SEGMENTS = 64              # UDP_MAX_SEGMENTS of kernels before 6.9
    MESSAGES = 256                   # room behind MESSAGES_FLUSH for a whole frame, each of its segments a message
    MESSAGES_FLUSH = 64              # from here on they are sent before the next read
    RX_SLOT = 66240                  # 65536 and a stride that does not map all slots onto the same cache sets
    RX_WIDE = 64                     # messages per recvmmsg while they hold single datagrams
    RX_DEEP = 2                      # while they hold trains: more would push each other out of the cache
    PLAIN_SIZE = 393216              # decrypted packets that wait to be written
    PLAIN_FLUSH = 98304
    CONTROL_SIZE = 128               # control data of a message
    SOCKETS = 6
    UDP4 = 0, UDP6 = 1, PEER4 = 2, PEER6 = 3, RAW4 = 4, RAW6 = 5
    EVENT_DEVICE_LOST = 7
    RUN_MORE = 1
    RUN_BLOCKED = 2
    RUN_DEVICE_LOST = 4
    BATCHES = 14                     # sizes of batches: 1, 2, up to 4, up to 8, ..., more than 4096
    ICMP_INTERVAL_NS = 1000000       # at most 1000 errors a second
    ICMP_BURST = 50
    PATH_MTU_MIN = 296               # no path is taken for narrower (RFC 1191 section 7): every suite has room in it

cdef enum:
    TUN_RX_FRAMES, TUN_RX_PACKETS, TUN_RX_BYTES
    TUN_TX_FRAMES, TUN_TX_PACKETS, TUN_TX_BYTES
    NET_RX_MESSAGES, NET_RX_DATAGRAMS, NET_RX_BYTES, NET_RX_CALLS
    NET_TX_MESSAGES, NET_TX_DATAGRAMS, NET_TX_BYTES, NET_TX_CALLS
    BYPASS_TX_PACKETS, ICMP_TX_PACKETS, KEEPALIVES, CONTROL_DATAGRAMS, CONTROL_LOST
    GSO_FALLBACKS, TUN_GSO_FALLBACKS, PATH_MTU_CHANGES, SOCKET_FULL, WAKEUPS, PEER_SOCKETS
    COUNTERS

# Datagrams to one peer that leave with one call: all of `unit` octets but the last.
cdef struct Message:
    Sa *sa                           # NULL once the message has outlived its batch: SA and endpoint may be freed
    Endpoint *endpoint               # means something only with sa
    Endpoint to                      # a copy
    uint32_t offset
    uint32_t length
    uint32_t unit
    uint32_t count
    uint8_t tos
    uint8_t df
    uint8_t socket
    uint8_t closed

cdef struct PumpState:
    Worker *worker
    Sink sink
    int tun_fd
    int sockets[SOCKETS]             # those of peers are the pump's own
    Peer peers[2]                    # IPv4, IPv6
    uint8_t peer_sockets             # whether there may be such
    int bypass[2]
    int event_fd
    int wake_fd                      # readable when the control plane wants run_tun to be called
    uint32_t mark
    uint8_t vnet_hdr
    uint8_t udp_gso
    uint8_t udp_gro
    uint8_t connected                # sockets have one peer: no addresses, no control data
    uint8_t read_raw
    uint8_t device_lost
    uint8_t deep                     # the last receive brought trains
    uint8_t df_state[SOCKETS]        # 0 unknown, 1 clear, 2 set
    int blocked                      # socket index + 1 that refused for want of room
    uint64_t icmp_refilled_ns        # the bucket of ICMP errors was empty then
    uint8_t gso_suspect              # a train was just refused: is it the train, or would a datagram be too?
    uint64_t gso_retry_ns            # when UDP_SEGMENT is tried again after it failed
    uint64_t told                    # events and datagrams announced so far
    uint8_t *frame
    uint8_t *train
    uint32_t train_used
    uint32_t n_messages
    Message messages[MESSAGES]
    mmsghdr out[MESSAGES]
    iovec out_iov[MESSAGES]
    uint8_t *out_control
    uint8_t *slots
    uint8_t *names
    uint8_t *in_control
    mmsghdr incoming[RX_WIDE]
    iovec in_iov[RX_WIDE]
    uint8_t *plain
    uint32_t plain_used
    Coalescer *coalescer
    Inbox inbox
    uint64_t counters[COUNTERS]
    uint64_t batches[2][BATCHES]     # system calls by how many datagrams they received, sent

cdef extern from *:
    int __builtin_clzll(unsigned long long) noexcept nogil

cdef inline void pump_count_batch(PumpState *p, bint sent, uint64_t datagrams) noexcept nogil:
    cdef int bucket = 64 - __builtin_clzll(datagrams - 1) if datagrams > 1 else 0
    p.batches[sent][bucket if bucket < BATCHES else BATCHES - 1] += 1

# Where message i is received.
cdef inline uint8_t *rx_slot(PumpState *p, int i) noexcept nogil:
    return p.slots + <size_t>i * RX_SLOT + ESP_SHIFT
