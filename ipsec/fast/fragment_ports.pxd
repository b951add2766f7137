# The ports of datagrams that come in fragments (RFC 4301 section 7): only the first fragment says them, so they are kept
# until the later ones have come. Nothing is put together and no packet is held.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from ipsec.fast.hash cimport mix
from ipsec.fast.packet cimport FRAGMENT_FIRST, FRAGMENT_LATER, PacketInfo, be32

cdef enum:
    FRAGMENT_SETS = 64
    FRAGMENT_WAYS = 4

cdef struct FragmentEntry:
    uint64_t addresses[4]
    uint64_t expires_ns       # up to then it holds; 0 is empty, with version 0, so that no packet is of its datagram
    uint32_t id
    uint16_t src_port
    uint16_t dst_port
    uint8_t version
    uint8_t key_protocol
    uint8_t protocol
    uint8_t has_ports

# Zeroed octets are an empty table.
cdef struct FragmentTable:
    FragmentEntry entries[256]   # FRAGMENT_SETS * FRAGMENT_WAYS

cdef inline uint64_t fragment_lifetime_ns() noexcept nogil:
    return <uint64_t>30 * 1000000000

# RFC 791 tells datagrams apart by addresses, identification and protocol; RFC 8200 section 4.5 without the protocol,
# since the Next Header of a later fragment need not agree with the first.
cdef inline void fragment_key(const PacketInfo *info, FragmentEntry *key) noexcept nogil:
    memset(key, 0, sizeof(FragmentEntry))
    key.version = info.version
    key.id = info.fragment_id
    if info.version == 4:
        key.key_protocol = info.protocol
        key.addresses[0] = (<uint64_t>be32(info.src) << 32) | be32(info.dst)
    else:
        memcpy(&key.addresses[0], info.src, 16)
        memcpy(&key.addresses[2], info.dst, 16)

cdef inline FragmentEntry *fragment_set(
    FragmentTable *table, const PacketInfo *info, FragmentEntry *key
) noexcept nogil:
    cdef uint64_t h = 0
    cdef int i
    fragment_key(info, key)
    for i in range(4):
        h = mix(h, key.addresses[i])
    h = mix(h, (<uint64_t>key.id << 16) | (<uint64_t>key.key_protocol << 8) | key.version)
    return &table.entries[FRAGMENT_WAYS * ((h >> 20) & (FRAGMENT_SETS - 1))]

cdef inline bint same_datagram(const FragmentEntry *a, const FragmentEntry *b) noexcept nogil:
    return (a.id == b.id and a.version == b.version and a.key_protocol == b.key_protocol
            and a.addresses[0] == b.addresses[0] and a.addresses[1] == b.addresses[1]
            and a.addresses[2] == b.addresses[2] and a.addresses[3] == b.addresses[3])

# Keeps what a first fragment says for the later ones (RFC 4301 section 7.3); anything else is ignored. The newest
# first fragment of a datagram counts; when a set is full the oldest entry goes.
cdef inline void fragment_remember(FragmentTable *table, const PacketInfo *first, uint64_t now_ns) noexcept nogil:
    cdef FragmentEntry key
    cdef FragmentEntry *way
    cdef FragmentEntry *victim
    cdef int i
    if first.fragment != FRAGMENT_FIRST or (first.version == 4 and not first.has_ports):
        return
    way = fragment_set(table, first, &key)
    victim = &way[0]
    for i in range(FRAGMENT_WAYS):
        if same_datagram(&way[i], &key):
            victim = &way[i]
            break
        if way[i].expires_ns < victim.expires_ns:
            victim = &way[i]
    key.expires_ns = now_ns + fragment_lifetime_ns()
    key.src_port = first.src_port
    key.dst_port = first.dst_port
    key.protocol = first.protocol
    key.has_ports = first.has_ports
    victim[0] = key

# Gives a later fragment the upper-layer protocol and ports of its first fragment. False if that one is not known.
# The packet itself still has no upper-layer header.
cdef inline bint fragment_recall(FragmentTable *table, PacketInfo *later, uint64_t now_ns) noexcept nogil:
    cdef FragmentEntry key
    cdef FragmentEntry *way
    cdef int i
    if later.fragment != FRAGMENT_LATER:
        return False
    way = fragment_set(table, later, &key)
    for i in range(FRAGMENT_WAYS):
        if now_ns <= way[i].expires_ns and same_datagram(&way[i], &key):
            later.protocol = way[i].protocol
            later.src_port = way[i].src_port
            later.dst_port = way[i].dst_port
            later.has_ports = way[i].has_ports
            return True
    return False
