# The anti-replay window: RFC 6479's ring of words, so that moving it never shifts bits; ESN as RFC 4303 appendix A2.
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

# The word of the highest number is kept apart from the ring, so that packets in order touch the ring once in 64.
cdef struct Replay:
    uint64_t top        # highest number whose packet was good, 0: none yet
    uint64_t newest     # the word of top; what the ring has in its place is outdated
    uint64_t *words
    uint32_t window     # packets; 0: no check
    uint32_t mask       # words in the ring - 1

# Words of the ring for a window: one more than the window needs, rounded up, so that a partly outdated word never counts.
cdef inline uint32_t replay_words(uint32_t window) noexcept nogil:
    cdef uint32_t need = window // 64 + 1
    cdef uint32_t n = 1
    while n < need:
        n <<= 1
    return n

# The full number of a packet from its low 32 bits (RFC 4303 appendix A2.2). 0 if it would be before the first packet.
cdef inline uint64_t replay_infer(const Replay *r, uint32_t low) noexcept nogil:
    cdef uint32_t top_low = <uint32_t>r.top
    cdef uint64_t high = r.top >> 32
    cdef uint32_t window = r.window if r.window else 64
    cdef uint32_t bottom = top_low - window + 1      # modulo 2^32, as the RFC has it
    if top_low >= window - 1:
        if low < bottom:                             # case A: the window is inside one subspace
            high += 1
            if high > 0xFFFFFFFFU:
                return 0
    elif low >= bottom:                              # case B: it spans two
        if high == 0:
            return 0
        high -= 1
    return (high << 32) | low

# Whether a packet with this number may be new. Before the ICV is verified.
cdef inline bint replay_check(const Replay *r, uint64_t seq) noexcept nogil:
    if seq == 0:
        return False                                 # RFC 4303 section 3.3.3: the first number is 1
    if r.window == 0 or seq > r.top:
        return True
    if r.top - seq >= r.window:
        return False
    return (replay_word(r, seq)[0] >> (seq & 63)) & 1 == 0

# Where a number of the window has its bit.
cdef inline uint64_t *replay_word(const Replay *r, uint64_t seq) noexcept nogil:
    return <uint64_t *>&r.newest if seq >> 6 == r.top >> 6 else &r.words[(seq >> 6) & r.mask]

# Enters a good packet. Only after its ICV was verified (RFC 4303 section 3.4.3).
cdef inline void replay_commit(Replay *r, uint64_t seq) noexcept nogil:
    if r.window == 0:
        if seq > r.top:
            r.top = seq
        return
    if seq > r.top:
        if seq >> 6 != r.top >> 6:
            replay_move(r, seq)
        r.top = seq
    replay_word(r, seq)[0] |= <uint64_t>1 << (seq & 63)

# Makes room for a number beyond the newest word.
cdef inline void replay_move(Replay *r, uint64_t seq) noexcept nogil:
    cdef uint64_t word = r.top >> 6
    cdef uint64_t last = seq >> 6
    r.words[word & r.mask] = r.newest
    r.newest = 0
    if last - word > r.mask:
        memset(r.words, 0, (<size_t>r.mask + 1) * 8)
        return
    while word < last:
        word += 1
        r.words[word & r.mask] = 0
