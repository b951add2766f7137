# ESP packets that came before their SA: the SPI is one that we have told a peer, and the answer that makes it an SA is on
# its way still (RFC 7296 section 2.8). Kept for that SA, in order. Nobody has authenticated them, so each worker keeps few:
# bounded in SPIs, and for each in packets, octets and time. Where there is no room the newest is refused: who learns an SPI
# does so from a packet of the peer, which is kept by then, and cannot push it out. Nothing is kept, and nothing allocated,
# for an SPI that nobody was told.
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from ipsec.fast.source cimport Source

cdef enum:
    # the same numbers as in ipsec/esp/engine.py
    EARLY_SPIS = 16
    EARLY_PACKETS = 64
    EARLY_OCTETS = 1 << 17
    EARLY_SECONDS = 5

cdef struct EarlyPacket:
    EarlyPacket *next
    uint64_t since_ns
    uint32_t length
    uint8_t tos
    Source source
    uint8_t data[1]

# Those of one SPI.
cdef struct EarlySpi:
    EarlyPacket *first       # the oldest
    EarlyPacket *last
    uint32_t spi
    uint32_t count           # 0: of no SPI
    uint32_t octets

cdef struct EarlyPackets:
    uint32_t count           # in all
    uint32_t arrived         # Shared.arrived when they were tried last
    EarlySpi spis[EARLY_SPIS]

# Takes out the oldest of an SPI that has some. The caller frees it.
cdef inline EarlyPacket *early_take(EarlyPackets *early, EarlySpi *of) noexcept nogil:
    cdef EarlyPacket *packet = of.first
    of.first = packet.next
    of.count -= 1
    of.octets -= packet.length
    early.count -= 1
    return packet

# Throws away all of an SPI; how many.
cdef inline uint32_t early_discard(EarlyPackets *early, EarlySpi *of) noexcept nogil:
    cdef uint32_t lost = of.count
    while of.count:
        free(early_take(early, of))
    return lost

cdef inline uint32_t early_discard_all(EarlyPackets *early) noexcept nogil:
    cdef uint32_t lost = early.count
    cdef uint32_t i
    for i in range(<uint32_t>EARLY_SPIS):
        early_discard(early, &early.spis[i])
    return lost

# Throws away what has waited too long; how many.
cdef inline uint32_t early_expire(EarlyPackets *early, uint64_t now_ns) noexcept nogil:
    cdef EarlySpi *of
    cdef uint32_t i
    cdef uint32_t lost = early.count
    if lost == 0:
        return 0
    for i in range(<uint32_t>EARLY_SPIS):
        of = &early.spis[i]
        while of.count and now_ns > of.first.since_ns + <uint64_t>EARLY_SECONDS * 1000000000:
            free(early_take(early, of))
    return lost - early.count

# Where the packets of an SPI are kept, NULL if there is no place for one more SPI.
cdef inline EarlySpi *early_spi(EarlyPackets *early, uint32_t spi) noexcept nogil:
    cdef EarlySpi *unused = NULL
    cdef EarlySpi *of
    cdef uint32_t i
    for i in range(<uint32_t>EARLY_SPIS):
        of = &early.spis[i]
        if of.count == 0:
            if unused == NULL:
                unused = of
        elif of.spi == spi:
            return of
    return unused

# Keeps a copy of a packet; source may be NULL. False if there is no room.
cdef inline bint early_put(EarlyPackets *early, uint32_t spi, const uint8_t *esp, uint32_t length, uint8_t tos,
                           const Source *source, uint64_t now_ns) noexcept nogil:
    cdef EarlySpi *of = early_spi(early, spi)
    cdef EarlyPacket *packet
    if of == NULL or of.count >= EARLY_PACKETS or of.octets + length > EARLY_OCTETS:
        return False
    packet = <EarlyPacket *>malloc(sizeof(EarlyPacket) + length)
    if packet == NULL:
        return False
    packet.next = NULL
    packet.since_ns = now_ns
    packet.length = length
    packet.tos = tos
    memset(&packet.source, 0, sizeof(Source))
    if source != NULL:
        memcpy(&packet.source, source, sizeof(Source))
    memcpy(packet.data, esp, length)
    if of.count == 0:
        of.spi = spi
        of.first = packet
    else:
        of.last.next = packet
    of.last = packet
    of.count += 1
    of.octets += length
    early.count += 1
    return True
