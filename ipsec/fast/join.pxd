# Datagrams that come in fragments and have to go whole: in transport mode ESP comes before fragmentation (RFC 4303 section
# 3.3.4). Our own host sends the fragments of a datagram in order, so that is what is taken. The readable twin is
# ipsec/esp/join.py.
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from ipsec.fast.fragment cimport IPV4_MORE
from ipsec.fast.fragment_ports cimport FragmentEntry, fragment_key, same_datagram
from ipsec.fast.packet cimport FRAGMENT_FIRST, PacketInfo, be16, csum_add, csum_store, put16

cdef enum:
    # the same numbers as in ipsec/esp/engine.py
    JOIN_DATAGRAMS = 8
    JOIN_SECONDS = 30
    JOIN_ROOM = 66560        # one IP packet and what may be written after it, as SCRATCH
    FRAGMENT_HEADER = 44
    FRAGMENT_HEADER_LEN = 8

# The beginning of a datagram, with the header that the whole of it will have.
cdef struct JoinPart:
    FragmentEntry key
    uint64_t expires_ns
    uint64_t touched         # when it was added to last, as a number; 0: there is none
    uint32_t header_len
    uint32_t length          # with the header
    uint32_t fragments
    uint8_t data[66560]      # JOIN_ROOM

cdef struct Joiner:
    uint64_t touches
    JoinPart parts[8]        # JOIN_DATAGRAMS

# Where the payload of a fragment begins, and the length of the datagram's header: 0 if the fragment header is not the first
# after IPv6's own.
cdef inline uint32_t fragment_payload(const PacketInfo *info, uint32_t *header_len) noexcept nogil:
    header_len[0] = 40
    if info.version == 4:
        header_len[0] = (info.data[0] & 15) * 4
        return header_len[0]
    return 40 + FRAGMENT_HEADER_LEN if info.data[6] == FRAGMENT_HEADER else 0

cdef inline bint more_fragments(const PacketInfo *info) noexcept nogil:
    return (be16(info.data + 6) & IPV4_MORE) != 0 if info.version == 4 else (info.data[43] & 1) != 0

# Gives up a datagram; how many fragments of it there were.
cdef inline uint32_t join_forget(JoinPart *part) noexcept nogil:
    part.touched = 0
    return part.fragments

# Makes the header that of the whole datagram.
cdef inline void join_finish(JoinPart *part) noexcept nogil:
    cdef uint8_t *p = part.data
    if p[0] >> 4 == 4:
        put16(p + 2, part.length)
        put16(p + 6, 0)
        put16(p + 10, 0)
        csum_store(p + 10, csum_add(p, part.header_len, 0))
    else:
        put16(p + 4, part.length - 40)

cdef inline void join_begin(JoinPart *part, const FragmentEntry *key, const PacketInfo *info, uint32_t header_len,
                            uint32_t payload, uint64_t now_ns) noexcept nogil:
    part.key = key[0]
    part.expires_ns = now_ns + <uint64_t>JOIN_SECONDS * 1000000000
    part.header_len = header_len
    part.fragments = 1
    memcpy(part.data, info.data, header_len)
    if info.version == 6:
        part.data[6] = info.data[40]
    memcpy(part.data + header_len, info.data + payload, info.length - payload)
    part.length = header_len + info.length - payload

cdef inline bint join_continues(const JoinPart *part, const PacketInfo *info, uint32_t payload,
                                uint64_t now_ns) noexcept nogil:
    return (payload != 0 and now_ns <= part.expires_ns
            and info.fragment_offset == part.length - part.header_len
            and part.length + (info.length - payload) <= <uint32_t>(65535 if info.version == 4 else 65535 + 40))

# Takes a fragment. The datagram if it is whole now, else NULL; how many fragments were given up, and whether this one waits.
cdef inline JoinPart *join_put(Joiner *joiner, const PacketInfo *info, uint64_t now_ns, uint32_t *lost,
                               bint *kept) noexcept nogil:
    cdef FragmentEntry key
    cdef JoinPart *part = NULL
    cdef JoinPart *oldest = &joiner.parts[0]
    cdef uint32_t header_len, payload, i
    lost[0] = 0
    kept[0] = False
    fragment_key(info, &key)
    payload = fragment_payload(info, &header_len)
    for i in range(JOIN_DATAGRAMS):
        if joiner.parts[i].touched and same_datagram(&joiner.parts[i].key, &key):
            part = &joiner.parts[i]
        if joiner.parts[i].touched < oldest.touched:
            oldest = &joiner.parts[i]
    if info.fragment == FRAGMENT_FIRST and payload:
        if part == NULL:
            part = oldest
        if part.touched:
            lost[0] = join_forget(part)
        join_begin(part, &key, info, header_len, payload, now_ns)
    elif part == NULL:
        lost[0] = 1
        return NULL
    elif not join_continues(part, info, payload, now_ns):
        lost[0] = 1 + join_forget(part)
        return NULL
    else:
        memcpy(part.data + part.length, info.data + payload, info.length - payload)
        part.length += info.length - payload
        if not more_fragments(info):
            part.touched = 0
            join_finish(part)
            return part
        part.fragments += 1
    joiner.touches += 1
    part.touched = joiner.touches
    kept[0] = True
    return NULL
