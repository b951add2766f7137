# Joining decrypted TCP and UDP packets of a flow into superframes, so that the TUN device is written once for many.
#
# Packets are not moved or changed: a superframe is a list of pieces for writev. They must stay where they are until it
# has been written, and each can still be written by itself should the device refuse the superframe.
# Order within a flow: superframes are written in the order in which they were opened, and one that is no longer the
# last of its flow takes no more packets.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from posix.uio cimport iovec

from ipsec.fast.checksum cimport csum_bulk, htons
from ipsec.fast.packet cimport (
    FRAGMENT_NONE,
    PROTO_TCP,
    PROTO_UDP,
    PacketInfo,
    be16,
    be32,
    csum_add,
    csum_fold,
    csum_pseudo,
    csum_store,
    put16,
)
from ipsec.fast.vnet cimport (
    VNET_GSO_TCPV4,
    VNET_GSO_TCPV6,
    VNET_GSO_UDP_L4,
    VNET_HDR_SIZE,
    VNET_NEEDS_CSUM,
    VnetHdr,
)

cdef enum:
    COALESCE_SLOTS = 32        # superframes and single packets that wait to be written
    COALESCE_OPEN = 8          # of these, how many may still grow: the flows told apart
    COALESCE_SEGMENTS = 64     # UDP_MAX_SEGMENTS of kernels before 6.9
    COALESCE_TOTAL = 65535     # octets of a superframe
    COALESCE_HEADER = 128      # at most 40 + 60 are used
    TCP_ACK = 0x10
    TCP_PSH = 0x08

cdef enum CoalesceResult:
    COALESCE_TAKEN = 0
    COALESCE_FULL = 1          # write everything, reset, and add the packet again

cdef struct Superframe:
    VnetHdr vnet
    uint32_t segments
    uint32_t header_len        # 0: a packet that takes no others
    uint32_t l4_offset
    uint32_t payload_len
    uint32_t gso_size
    uint32_t next_seq
    uint32_t first_id
    uint8_t protocol
    uint8_t version
    uint8_t push               # the last packet had PSH
    uint8_t header[COALESCE_HEADER]
    iovec iov[2 + COALESCE_SEGMENTS]   # virtio_net_hdr, header or whole packet, payloads

cdef struct Coalescer:
    uint32_t used              # superframes[0 .. used) in order of opening
    uint32_t open_count
    uint8_t vnet_hdr           # the device wants a virtio_net_hdr
    uint8_t tcp_on
    uint8_t udp_on
    uint8_t open_slots[COALESCE_OPEN]  # the one used last comes first
    Superframe frames[COALESCE_SLOTS]

# Without a virtio_net_hdr nothing can be joined.
cdef inline void coalesce_init(Coalescer *c, bint vnet_hdr, bint tcp_on, bint udp_on) noexcept nogil:
    memset(c, 0, sizeof(Coalescer))
    c.vnet_hdr = vnet_hdr
    c.tcp_on = vnet_hdr and tcp_on
    c.udp_on = vnet_hdr and udp_on

# To be called when everything has been written.
cdef inline void coalesce_reset(Coalescer *c) noexcept nogil:
    c.used = 0
    c.open_count = 0

cdef inline bint equal32(const uint8_t *a, const uint8_t *b) noexcept nogil:
    cdef uint32_t x, y
    memcpy(&x, a, 4)
    memcpy(&y, b, 4)
    return x == y

cdef inline bint equal64(const uint8_t *a, const uint8_t *b) noexcept nogil:
    cdef uint64_t x, y
    memcpy(&x, a, 8)
    memcpy(&y, b, 8)
    return x == y

# The packet has the superframe's addresses, protocol and ports. Both are free of fragments and options.
cdef inline bint same_flow(Superframe *frame, const uint8_t *packet, const PacketInfo *info) noexcept nogil:
    cdef const uint8_t *first = frame.header
    if frame.protocol != info.protocol or frame.version != info.version:
        return False
    if not equal32(first + frame.l4_offset, packet + info.l4_offset):
        return False
    if info.version == 4:
        return equal64(first + 12, packet + 12)
    return (equal64(first + 8, packet + 8) and equal64(first + 16, packet + 16)
            and equal64(first + 24, packet + 24) and equal64(first + 32, packet + 32))

# Everything else that one header must say for all packets. The flow is the same already.
cdef inline bint same_ip_header(Superframe *frame, const uint8_t *packet) noexcept nogil:
    cdef const uint8_t *first = frame.header
    if frame.version == 6:
        return equal32(first, packet) and first[7] == packet[7]   # traffic class, flow label; hop limit
    if first[1] != packet[1] or not equal32(first + 6, packet + 6):   # TOS; DF, offset, TTL, protocol
        return False
    # Segmentation gives each packet the next identification. RFC 6864 section 4.1: with DF it means nothing.
    return packet[6] & 0x40 or be16(packet + 4) == ((frame.first_id + frame.segments) & 0xFFFF)

# The packet goes right behind the superframe's last one. `header_len` is the packet's, `size` its payload.
cdef inline bint continues(Superframe *frame, const uint8_t *packet, const PacketInfo *info,
                           uint32_t header_len, uint32_t size) noexcept nogil:
    cdef const uint8_t *a = frame.header + frame.l4_offset
    cdef const uint8_t *b = packet + info.l4_offset
    if (header_len != frame.header_len or size > frame.gso_size or frame.segments == COALESCE_SEGMENTS
            or header_len + frame.payload_len + size > COALESCE_TOTAL or not same_ip_header(frame, packet)):
        return False
    if info.protocol == PROTO_UDP:
        return True
    if be32(b + 4) != frame.next_seq or not equal32(a + 8, b + 8) or a[12] != b[12]:
        return False
    # window and urgent pointer: one header can say them only once
    if a[14] != b[14] or a[15] != b[15] or a[18] != b[18] or a[19] != b[19]:
        return False
    return memcmp(a + 20, b + 20, header_len - frame.l4_offset - 20) == 0

# Header length of a packet that may be joined with others, else 0.
cdef inline uint32_t joinable_header(const Coalescer *c, const uint8_t *packet, const PacketInfo *info) noexcept nogil:
    cdef const uint8_t *l4 = packet + info.l4_offset
    cdef uint32_t left = info.length - info.l4_offset
    cdef uint32_t l4_len
    if info.length > COALESCE_TOTAL:
        return 0
    if info.protocol == PROTO_TCP:
        if not c.tcp_on or left < 20:
            return 0
        l4_len = (l4[12] >> 4) * 4
        # Only data with ACK, or ACK and PSH; the reserved bits belong to the flags (RFC 9768 uses one). A bare ACK
        # is never held together with data: the sender counts them (RFC 5681).
        if l4_len < 20 or l4_len >= left or l4[12] & 15 or l4[13] & ~TCP_PSH != TCP_ACK:
            return 0
        return info.l4_offset + l4_len
    # A UDP checksum of zero says that there is none: a superframe would give the packet one
    if not c.udp_on or left <= 8 or be16(l4 + 4) != left or be16(l4 + 6) == 0:
        return 0
    return info.l4_offset + 8

# NEEDS_CSUM hides what happened to a packet before it was protected, so nothing is joined that would not stand alone.
cdef inline bint checksums_good(const uint8_t *packet, const PacketInfo *info) noexcept nogil:
    cdef uint32_t l4_len = info.length - info.l4_offset
    if info.version == 4 and csum_fold(csum_add(packet, 20, 0)) != 0xFFFF:
        return False
    return csum_fold(csum_bulk(packet + info.l4_offset, l4_len, csum_pseudo(info, l4_len))) == 0xFFFF

# Place in open_slots of the packet's flow, or -1.
cdef inline int find_open(Coalescer *c, const uint8_t *packet, const PacketInfo *info) noexcept nogil:
    cdef uint32_t i
    for i in range(c.open_count):
        if same_flow(&c.frames[c.open_slots[i]], packet, info):
            return <int>i
    return -1

cdef inline void close_slot(Coalescer *c, uint32_t place) noexcept nogil:
    cdef uint32_t i
    c.open_count -= 1
    for i in range(place, c.open_count):
        c.open_slots[i] = c.open_slots[i + 1]

# Puts a slot first in open_slots; `place` is where it is now, open_count if it is new (the last one then falls out).
cdef inline void front_slot(Coalescer *c, uint32_t place, uint8_t slot) noexcept nogil:
    cdef uint32_t i
    if place == c.open_count:
        if place == COALESCE_OPEN:
            place -= 1
        else:
            c.open_count += 1
    for i in range(place, 0, -1):
        c.open_slots[i] = c.open_slots[i - 1]
    c.open_slots[0] = slot

cdef inline void append_packet(Superframe *frame, uint8_t *packet, const PacketInfo *info, uint32_t size) noexcept nogil:
    cdef iovec *piece = &frame.iov[2 + frame.segments]
    piece.iov_base = packet + frame.header_len
    piece.iov_len = size
    frame.segments += 1
    frame.payload_len += size
    frame.next_seq += size
    if info.protocol == PROTO_TCP:
        frame.push = packet[info.l4_offset + 13] & TCP_PSH

# A new superframe with this packet. `header_len` 0: it takes no others.
cdef inline void open_frame(Coalescer *c, uint8_t *packet, uint32_t length, const PacketInfo *info,
                            uint32_t header_len) noexcept nogil:
    cdef Superframe *frame = &c.frames[c.used]
    cdef uint32_t size = length - header_len
    frame.header_len = header_len
    frame.segments = 0
    frame.payload_len = 0
    frame.version = info.version
    frame.protocol = info.protocol
    frame.push = 0
    if header_len == 0:
        frame.segments = 1
        frame.iov[2].iov_base = packet
        frame.iov[2].iov_len = length
    else:
        frame.l4_offset = info.l4_offset
        frame.gso_size = size
        memcpy(frame.header, packet, header_len)
        if info.version == 4:
            frame.first_id = be16(packet + 4)
        if info.protocol == PROTO_TCP:
            frame.next_seq = be32(packet + info.l4_offset + 4)
        append_packet(frame, packet, info, size)
        if not frame.push:
            front_slot(c, c.open_count, <uint8_t>c.used)
    c.used += 1

# Takes a packet of `length` octets, parsed into info, whose octets stay untouched until coalesce_reset.
cdef inline int coalesce_add(Coalescer *c, uint8_t *packet, uint32_t length, const PacketInfo *info) noexcept nogil:
    cdef uint32_t header_len = 0
    cdef uint32_t size
    cdef int place = -1
    cdef uint8_t slot
    cdef Superframe *frame
    if info.protocol == PROTO_TCP or info.protocol == PROTO_UDP:
        if info.options or info.fragment != FRAGMENT_NONE:
            # Its flow may be any: let nothing overtake it
            c.open_count = 0
        else:
            place = find_open(c, packet, info)
            if info.length == length:
                header_len = joinable_header(c, packet, info)
            if header_len and not checksums_good(packet, info):
                header_len = 0
    if place >= 0:
        slot = c.open_slots[place]
        frame = &c.frames[slot]
        size = length - header_len
        if header_len and continues(frame, packet, info, header_len, size):
            append_packet(frame, packet, info, size)
            if frame.push or size < frame.gso_size:
                close_slot(c, place)
            elif place:
                front_slot(c, place, slot)
            return COALESCE_TAKEN
        close_slot(c, place)
    if c.used == COALESCE_SLOTS:
        return COALESCE_FULL
    open_frame(c, packet, length, info, header_len)
    return COALESCE_TAKEN

# The k-th packet of a superframe as it came in, to be written by itself if the device refuses the superframe.
cdef inline uint8_t *superframe_packet(Superframe *frame, uint32_t k, uint32_t *length) noexcept nogil:
    length[0] = <uint32_t>(frame.header_len + frame.iov[2 + k].iov_len)
    return <uint8_t *>frame.iov[2 + k].iov_base - frame.header_len

# Makes the header true for all payloads, with the pseudo-header's sum where the checksum will be.
cdef inline void finish_superframe(Superframe *frame) noexcept nogil:
    cdef uint8_t *header = frame.header
    cdef uint8_t *l4 = header + frame.l4_offset
    cdef uint32_t total = frame.header_len + frame.payload_len
    cdef uint32_t l4_len = total - frame.l4_offset
    cdef uint64_t pseudo = htons(<uint16_t>l4_len) + htons(frame.protocol)
    cdef uint16_t word
    if frame.version == 4:
        put16(header + 2, total)
        put16(header + 10, 0)
        csum_store(header + 10, csum_add(header, 20, 0))
        pseudo = csum_add(header + 12, 8, pseudo)
    else:
        put16(header + 4, total - 40)
        pseudo = csum_add(header + 8, 32, pseudo)
    word = csum_fold(pseudo)
    frame.vnet.flags = VNET_NEEDS_CSUM
    frame.vnet.hdr_len = <uint16_t>frame.header_len
    frame.vnet.gso_size = <uint16_t>frame.gso_size
    frame.vnet.csum_start = <uint16_t>frame.l4_offset
    if frame.protocol == PROTO_TCP:
        frame.vnet.gso_type = VNET_GSO_TCPV4 if frame.version == 4 else VNET_GSO_TCPV6
        frame.vnet.csum_offset = 16
        l4[13] = <uint8_t>(TCP_ACK | frame.push)
    else:
        frame.vnet.gso_type = VNET_GSO_UDP_L4
        frame.vnet.csum_offset = 6
        put16(l4 + 4, l4_len)
    memcpy(l4 + frame.vnet.csum_offset, &word, 2)

# The pieces of superframe i, for writev: how many, and where they begin. It may be asked for again, and other packets
# may not be added in between.
cdef inline uint32_t coalesce_pieces(Coalescer *c, uint32_t i, iovec **pieces) noexcept nogil:
    cdef Superframe *frame = &c.frames[i]
    cdef uint32_t count = 2
    cdef uint32_t length
    if frame.segments == 1:
        memset(&frame.vnet, 0, sizeof(VnetHdr))
        frame.iov[1].iov_base = superframe_packet(frame, 0, &length)
        frame.iov[1].iov_len = length
    else:
        finish_superframe(frame)
        frame.iov[1].iov_base = frame.header
        frame.iov[1].iov_len = frame.header_len
        count += frame.segments
    frame.iov[0].iov_base = &frame.vnet
    frame.iov[0].iov_len = VNET_HDR_SIZE
    if not c.vnet_hdr:
        pieces[0] = &frame.iov[1]
        return count - 1
    pieces[0] = &frame.iov[0]
    return count
