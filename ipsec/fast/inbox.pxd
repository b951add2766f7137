# Datagrams for the event loop, from the one worker that writes to the one thread that reads: a ring of records.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from ipsec.fast.atomic cimport load_u64, store_u64
from ipsec.fast.message cimport message_facts
from ipsec.fast.source cimport Source

cdef enum:
    INBOX_SIZE = 262144

# `length` octets follow.
cdef struct InboxRecord:
    uint32_t size                    # of record and datagram, rounded up to 8; 0: go on at the start
    uint32_t length
    int fd
    uint8_t version                  # 0: no source
    uint8_t local_version
    uint16_t port
    uint8_t source[16]
    uint8_t local[16]

cdef struct Inbox:
    uint8_t *data
    uint64_t head                    # octets written since the start
    uint64_t tail

# Room for a datagram of `length` octets, NULL if there is none.
cdef inline InboxRecord *inbox_reserve(Inbox *inbox, uint32_t length, uint64_t *head) noexcept nogil:
    cdef uint32_t size = (<uint32_t>sizeof(InboxRecord) + length + 7) & ~<uint32_t>7
    cdef uint64_t at = inbox.head % INBOX_SIZE
    cdef uint64_t skip = 0
    cdef uint32_t end = 0
    cdef InboxRecord *r
    if at + size > INBOX_SIZE:
        skip = INBOX_SIZE - at
    if inbox.head + skip + size - load_u64(&inbox.tail) > INBOX_SIZE:
        return NULL
    if skip:
        memcpy(inbox.data + at, &end, 4)
        at = 0
    r = <InboxRecord *>(inbox.data + at)
    r.size = size
    r.length = length
    head[0] = inbox.head + skip + size
    return r

# False if there is no room.
cdef inline bint inbox_put(Inbox *inbox, const uint8_t *data, uint32_t length, int fd, const Source *source,
                           const message_facts *facts) noexcept nogil:
    cdef uint64_t head = 0
    cdef InboxRecord *r = inbox_reserve(inbox, length, &head)
    if r == NULL:
        return False
    r.fd = fd
    r.version = source.version
    r.port = source.port
    memcpy(r.source, source.address, 16)
    r.local_version = facts.local_known
    memcpy(r.local, facts.local, 16)
    memcpy(<uint8_t *>r + sizeof(InboxRecord), data, length)
    store_u64(&inbox.head, head)
    return True

# The oldest record, NULL if there is none. inbox_next is for when it was read.
cdef inline InboxRecord *inbox_oldest(Inbox *inbox) noexcept nogil:
    cdef uint64_t head = load_u64(&inbox.head)
    cdef uint64_t at
    cdef InboxRecord *r
    while inbox.tail != head:
        at = inbox.tail % INBOX_SIZE
        r = <InboxRecord *>(inbox.data + at)
        if at + sizeof(InboxRecord) <= INBOX_SIZE and r.size:
            return r
        store_u64(&inbox.tail, inbox.tail + INBOX_SIZE - at)
    return NULL

cdef inline void inbox_next(Inbox *inbox, const InboxRecord *r) noexcept nogil:
    store_u64(&inbox.tail, inbox.tail + r.size)
