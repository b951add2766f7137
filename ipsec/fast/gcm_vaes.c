/* AES-GCM (NIST SP 800-38D) with VAES and VPCLMULQDQ on 256-bit registers; see gcm_vaes.h.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * The unit of work is a group of 16 blocks in eight registers of two blocks. Eight independent states hide the latency
 * of an AES round; every round of a group is followed by the hashing of one register of another group (or, when
 * opening, of the same one), so that neither waits for the other. Hashing one group is 16 products that are summed
 * before a single reduction, which needs the powers H^1 .. H^16. On Zen 3, where one VPCLMULQDQ costs as
 * much as three or four AES rounds, most is won by less work for it and around it: Karatsuba, factors in registers,
 * one reduction per group, and counter blocks that cost one xor.
 */
#include "gcm_vaes.h"

#include <string.h>

#if defined(__x86_64__)

#include "gcm_key.h"

/* The file is compiled for the baseline CPU: only these functions may use the newer instructions. */
#define VECTOR __attribute__((target("avx2,vaes,vpclmulqdq,aes,pclmul,ssse3,sse4.1,bmi2")))
#define INLINE static inline __attribute__((always_inline)) VECTOR
#define UNROLL _Pragma("GCC unroll 16")

enum {
    BLOCK = 16,
    PAIR = 32,                    /* one 256-bit register */
    GROUP_PAIRS = 8,
    GROUP = GROUP_PAIRS * PAIR,   /* 256 octets */
    FIRST_COUNTER = 2,            /* SP 800-38D section 7.1: inc32(J0), where J0 ends in 1 */
};

/* ---- Loads and stores ------------------------------------------------------------------------------------------ */

INLINE __m256i load32(const void *p)
{
    return _mm256_loadu_si256((const __m256i *)p);
}

INLINE void store16(void *p, __m128i v)
{
    _mm_storeu_si128((__m128i *)p, v);
}

INLINE void store32(void *p, __m256i v)
{
    _mm256_storeu_si256((__m256i *)p, v);
}

INLINE __m256i both(__m128i low, __m128i high)
{
    return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
}

/* Pieces from the end of the data to its start, so that each shift makes room for an earlier piece. Nothing outside
 * the n octets is touched: they may end where a page ends. n <= 16; the rest of the block is zero. */
INLINE __m128i load_short(const uint8_t *p, size_t n)
{
    if (n == BLOCK)
        return gcm_load16(p);
    uint32_t octets = 0;
    size_t at = n & 12;
    if (n & 2) {
        uint16_t two;
        memcpy(&two, p + at, 2);
        octets = two;
    }
    if (n & 1)
        octets |= (uint32_t)p[n - 1] << (n & 2 ? 16 : 0);
    __m128i v = _mm_cvtsi32_si128((int)octets);
    if (n & 4) {
        uint32_t four;
        memcpy(&four, p + (n & 8), 4);
        v = _mm_or_si128(_mm_slli_si128(v, 4), _mm_cvtsi32_si128((int)four));
    }
    if (n & 8)
        v = _mm_unpacklo_epi64(_mm_loadl_epi64((const __m128i *)p), v);
    return v;
}

INLINE __m256i load_short_pair(const uint8_t *p, size_t n)
{
    if (n == PAIR)
        return load32(p);
    if (n >= BLOCK)
        return both(gcm_load16(p), load_short(p + BLOCK, n - BLOCK));
    return both(load_short(p, n), _mm_setzero_si128());
}

INLINE void store_short(uint8_t *p, __m128i v, size_t n)
{
    if (n == BLOCK) {
        store16(p, v);
        return;
    }
    if (n & 8) {
        _mm_storel_epi64((__m128i *)p, v);
        v = _mm_srli_si128(v, 8);
        p += 8;
    }
    if (n & 4) {
        uint32_t four = (uint32_t)_mm_cvtsi128_si32(v);
        memcpy(p, &four, 4);
        v = _mm_srli_si128(v, 4);
        p += 4;
    }
    uint32_t octets = (uint32_t)_mm_cvtsi128_si32(v);
    if (n & 2) {
        uint16_t two = (uint16_t)octets;
        memcpy(p, &two, 2);
        octets >>= 16;
        p += 2;
    }
    if (n & 1)
        *p = (uint8_t)octets;
}

INLINE void store_short_pair(uint8_t *p, __m256i v, size_t n)
{
    if (n == PAIR) {
        store32(p, v);
    } else if (n >= BLOCK) {
        store16(p, _mm256_castsi256_si128(v));
        store_short(p + BLOCK, _mm256_extracti128_si256(v, 1), n - BLOCK);
    } else {
        store_short(p, _mm256_castsi256_si128(v), n);
    }
}

/* SP 800-38D section 7.1 step 5 pads the last block of ciphertext with zeros before it is hashed. */
INLINE __m256i keep_first(__m256i v, size_t n)
{
    static const uint8_t window[2 * PAIR] = {
        255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255,
        255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255,
    };
    return _mm256_and_si256(v, load32(window + PAIR - n));
}

INLINE __m256i reverse_octets(__m256i v)
{
    return _mm256_shuffle_epi8(v, _mm256_broadcastsi128_si256(_mm_set_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12,
                                                                          13, 14, 15)));
}

/* ---- GHASH (SP 800-38D section 6.4) ---------------------------------------------------------------------------- */

/* Powers of H are stored times x: see gcm_key.h.
 *
 * Sum of products, not yet reduced: low + middle * 2^64 + high * 2^128. By Karatsuba, `middle` still contains low and
 * high until reduce() takes them out: three multiplications, the scarce resource, instead of four. */
struct sum {
    __m256i low, middle, high;
};

INLINE struct sum sum_zero(void)
{
    return (struct sum){_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256()};
}

INLINE void add_product(struct sum *sum, __m256i x, __m256i h, __m256i h_sum)
{
    /* In a register, since both products need it: measured on Zen 3, loading it twice costs 4 % of a message. */
    __asm__("" : "+x"(h));
    __m256i x_sum = _mm256_xor_si256(x, _mm256_shuffle_epi32(x, 0x4E));
    sum->low = _mm256_xor_si256(sum->low, _mm256_clmulepi64_epi128(x, h, 0x00));
    sum->high = _mm256_xor_si256(sum->high, _mm256_clmulepi64_epi128(x, h, 0x11));
    sum->middle = _mm256_xor_si256(sum->middle, _mm256_clmulepi64_epi128(x_sum, h_sum, 0x00));
    /* Keeps the compiler from turning a chain of additions into a tree: two dozen products waiting for each other
     * would not fit into 16 registers. */
    __asm__("" : "+x"(sum->low), "+x"(sum->middle), "+x"(sum->high));
}

/* Two consecutive blocks: the first times H^power, the second times H^(power - 1). */
INLINE void add_pair(struct sum *sum, const struct gcm_vaes_key *key, __m256i x, size_t power)
{
    size_t at = GCM_VAES_POWERS - power;
    add_product(sum, x, load32(key->h[at]), load32(key->h_sum[at]));
}

/* The same without h_sum, for short messages: with many keys in turn, the cache lines of h_sum would cost more. */
INLINE void add_few(struct sum *sum, __m256i x, __m256i h)
{
    add_product(sum, x, h, _mm256_xor_si256(h, _mm256_shuffle_epi32(h, 0x4E)));
}

INLINE void add_last(struct sum *sum, const struct gcm_vaes_key *key, __m256i x, size_t power)
{
    add_few(sum, x, load32(key->h[GCM_VAES_POWERS - power]));
}

/* Two blocks that are not neighbours: the first times H^power, the second times H. */
INLINE void add_ends(struct sum *sum, const struct gcm_vaes_key *key, __m256i x, size_t power)
{
    add_few(sum, x, both(gcm_load16(key->h[GCM_VAES_POWERS - power]), gcm_load16(key->h[GCM_VAES_POWERS - 1])));
}

/* Reduce both lanes and add them up. Each step folds the lowest 64 bits that are left into the 128 bits above. */
INLINE __m128i reduce(struct sum sum)
{
    const __m256i fold = _mm256_set1_epi64x((long long)GHASH_FOLD);
    __m256i middle = _mm256_xor_si256(sum.middle, _mm256_xor_si256(sum.low, sum.high));
    middle = _mm256_xor_si256(middle, _mm256_shuffle_epi32(sum.low, 0x4E));
    middle = _mm256_xor_si256(middle, _mm256_clmulepi64_epi128(sum.low, fold, 0x00));
    __m256i high = _mm256_xor_si256(sum.high, _mm256_shuffle_epi32(middle, 0x4E));
    high = _mm256_xor_si256(high, _mm256_clmulepi64_epi128(middle, fold, 0x00));
    return _mm_xor_si128(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
}

/* Additional data of any length, zero-padded to whole blocks: what section 7.1 step 5 hashes first. */
static __attribute__((noinline)) VECTOR __m128i hash_aad(const struct gcm_vaes_key *key, const uint8_t *aad,
                                                         size_t len)
{
    __m128i y = _mm_setzero_si128();
    while (len) {
        size_t part = len < GROUP ? len : GROUP;
        size_t power = (part + BLOCK - 1) / BLOCK;
        struct sum sum = sum_zero();
        len -= part;
        for (; part > BLOCK; power -= 2) {
            size_t n = part < PAIR ? part : PAIR;
            __m256i x = reverse_octets(load_short_pair(aad, n));
            add_pair(&sum, key, _mm256_xor_si256(x, _mm256_castsi128_si256(y)), power);
            y = _mm_setzero_si128();
            aad += n;
            part -= n;
        }
        if (part) {
            __m256i x = _mm256_zextsi128_si256(_mm_xor_si128(y, gcm_reverse_octets(load_short(aad, part))));
            add_ends(&sum, key, x, 1);
            aad += part;
        }
        y = reduce(sum);
    }
    return y;
}

/* ---- AES in counter mode (SP 800-38D section 6.5) -------------------------------------------------------------- */

INLINE __m256i round_key(const struct gcm_vaes_key *key, unsigned round)
{
    return _mm256_broadcastsi128_si256(gcm_load16(key->round_key[round]));
}

/* Counter blocks of a group. inc32 (section 6.2) is a big-endian addition, but within 16 blocks that start at a
 * multiple of 16 it only sets the lowest four bits. So one addition per group gives the block with the counter 16 g,
 * already xored with the first round key, and one xor gives each state. Data starts at counter 2: the last two blocks
 * of group g are the first two of the sixteen that start at 16 (g + 1). */
struct counter {
    __m256i reversed;   /* nonce || 16 g in both lanes, octets reversed: inc32 is an addition to the lowest element */
    __m256i whitened;   /* the same, octets in order, xor the first round key */
};

INLINE __m256i low_counter_bits(int first, int second)
{
    return _mm256_set_epi32(second << 24, 0, 0, 0, first << 24, 0, 0, 0);
}

INLINE struct counter counter_start(const struct gcm_vaes_key *key, const uint8_t nonce[12])
{
    /* RFC 4106 section 4: salt and IV. Callers put these two together just before, and a load is quick only if it
     * does not straddle recent stores. */
    uint32_t salt;
    memcpy(&salt, nonce, 4);
    __m128i block = _mm_slli_si128(_mm_loadl_epi64((const __m128i *)(nonce + 4)), 4);
    block = _mm_or_si128(block, _mm_cvtsi32_si128((int)salt));
    __m256i pair = _mm256_broadcastsi128_si256(block);
    return (struct counter){reverse_octets(pair), _mm256_xor_si256(pair, round_key(key, 0))};
}

INLINE struct counter counter_next(const struct gcm_vaes_key *key, struct counter counter)
{
    __m256i next = _mm256_add_epi32(counter.reversed, _mm256_set_epi32(0, 0, 0, 16, 0, 0, 0, 16));
    return (struct counter){next, _mm256_xor_si256(reverse_octets(next), round_key(key, 0))};
}

INLINE void aes_start(__m256i *state, int pairs, struct counter now, struct counter next)
{
    UNROLL for (int i = 0; i < pairs; i++) {
        const int first = FIRST_COUNTER + 2 * i;
        if (i < GROUP_PAIRS - 1)
            state[i] = _mm256_xor_si256(now.whitened, low_counter_bits(first, first + 1));
        else
            state[i] = _mm256_xor_si256(next.whitened, low_counter_bits(0, 1));
    }
}

INLINE void aes_round(const struct gcm_vaes_key *key, __m256i *state, int pairs, unsigned round)
{
    const __m256i k = round_key(key, round);
    UNROLL for (int i = 0; i < pairs; i++)
        state[i] = _mm256_aesenc_epi128(state[i], k);
}

/* What 192- and 256-bit keys have beyond the nine middle rounds of 128-bit keys. Returns the last round key. */
INLINE __m256i aes_more_rounds(const struct gcm_vaes_key *key, __m256i *state, int pairs)
{
    if (key->rounds > 10) {
        aes_round(key, state, pairs, 10);
        aes_round(key, state, pairs, 11);
        if (key->rounds > 12) {
            aes_round(key, state, pairs, 12);
            aes_round(key, state, pairs, 13);
        }
    }
    return round_key(key, key->rounds);
}

/* One group, in to out, where nothing is there to be hashed yet. */
INLINE void crypt_group(const struct gcm_vaes_key *key, struct counter now, struct counter next, const uint8_t *in,
                        uint8_t *out)
{
    __m256i state[GROUP_PAIRS];
    aes_start(state, GROUP_PAIRS, now, next);
    UNROLL for (unsigned round = 1; round < 10; round++)
        aes_round(key, state, GROUP_PAIRS, round);
    const __m256i last = aes_more_rounds(key, state, GROUP_PAIRS);
    UNROLL for (int i = 0; i < GROUP_PAIRS; i++) {
        __m256i text = load32(in + PAIR * i);
        store32(out + PAIR * i, _mm256_aesenclast_epi128(state[i], _mm256_xor_si256(last, text)));
    }
}

/* Hash one register of a group of ciphertext. The first one waits for the hash so far, so the caller takes it last. */
INLINE void hash_step(struct sum *sum, const struct gcm_vaes_key *key, const uint8_t *hashed, unsigned i, __m128i y)
{
    __m256i x = reverse_octets(load32(hashed + PAIR * i));
    if (i == 0)
        x = _mm256_xor_si256(x, _mm256_zextsi128_si256(y));
    add_pair(sum, key, x, 2 * (GROUP_PAIRS - i));
}

INLINE __m128i hash_group(const struct gcm_vaes_key *key, const uint8_t *hashed, __m128i y)
{
    struct sum sum = sum_zero();
    UNROLL for (unsigned i = 1; i <= GROUP_PAIRS; i++)
        hash_step(&sum, key, hashed, i % GROUP_PAIRS, y);
    return reduce(sum);
}

/* One group, in to out, while the group `hashed` goes into the hash y. All of `hashed` is read before `out` is
 * written, so opening may pass hashed = in, and out = in as well. */
INLINE __m128i crypt_and_hash_group(const struct gcm_vaes_key *key, struct counter now, struct counter next,
                                    const uint8_t *in, uint8_t *out, const uint8_t *hashed, __m128i y)
{
    __m256i state[GROUP_PAIRS];
    struct sum sum = sum_zero();
    aes_start(state, GROUP_PAIRS, now, next);
    UNROLL for (unsigned round = 1; round <= GROUP_PAIRS; round++) {
        aes_round(key, state, GROUP_PAIRS, round);
        hash_step(&sum, key, hashed, round % GROUP_PAIRS, y);
    }
    aes_round(key, state, GROUP_PAIRS, 9);
    y = reduce(sum);
    const __m256i last = aes_more_rounds(key, state, GROUP_PAIRS);
    UNROLL for (int i = 0; i < GROUP_PAIRS; i++) {
        __m256i text = load32(in + PAIR * i);
        store32(out + PAIR * i, _mm256_aesenclast_epi128(state[i], _mm256_xor_si256(last, text)));
    }
    return y;
}

/* ---- The end of a message, and short messages as a whole ------------------------------------------------------- */

/* What is left when all groups but the last are done: 0 to 256 octets, the block of lengths and the mask of the tag. */
struct rest {
    const uint8_t *in;
    uint8_t *out;
    size_t len;
    struct counter now, next;   /* this group's and the following group's */
    __m256i j0;         /* whitened J0, for the mask of the tag */
    __m128i y;          /* hash so far, or the only block of AAD */
    size_t y_blocks;    /* 1 if y is a block that still needs its own factor H, else 0 */
    __m128i lengths;
};

/* Returns the whole tag. `pairs` = ceil(len / 32) is a constant in each copy, so that all states stay in registers;
 * the state after the last one is J0. Everything is hashed with one reduction. */
INLINE __m128i finish_pairs(const struct gcm_vaes_key *key, const struct rest *rest, const int pairs,
                            const int sealing)
{
    const size_t last_len = rest->len - (size_t)(pairs ? pairs - 1 : 0) * PAIR;
    size_t power = (rest->len + BLOCK - 1) / BLOCK + 1;
    __m256i state[GROUP_PAIRS + 1];
    __m256i last_text = _mm256_setzero_si256();
    struct sum sum = sum_zero();

    /* Hides that the copies of this function begin alike: hoisted above the switch, that part would run on its own
     * and spill every round key. */
    __asm__("" : "+r"(key));
    aes_start(state, pairs, rest->now, rest->next);
    state[pairs] = rest->j0;
    add_ends(&sum, key, both(rest->y, rest->lengths), power + rest->y_blocks);
    if (pairs)
        last_text = load_short_pair(rest->in + PAIR * (pairs - 1), last_len);
    UNROLL for (int round = 1; round < 10; round++) {
        aes_round(key, state, pairs + 1, (unsigned)round);
        if (!sealing && round < pairs)
            add_last(&sum, key, reverse_octets(load32(rest->in + PAIR * (round - 1))), power - 2 * (size_t)(round - 1));
        if (!sealing && round == pairs)
            add_last(&sum, key, reverse_octets(last_text), power - 2 * (size_t)(round - 1));
    }
    const __m256i last = aes_more_rounds(key, state, pairs + 1);
    UNROLL for (int i = 0; i < pairs - 1; i++) {
        __m256i text = load32(rest->in + PAIR * i);
        text = _mm256_aesenclast_epi128(state[i], _mm256_xor_si256(last, text));
        store32(rest->out + PAIR * i, text);
        if (sealing)
            add_last(&sum, key, reverse_octets(text), power - 2 * (size_t)i);
    }
    if (pairs) {
        __m256i text = _mm256_aesenclast_epi128(state[pairs - 1], _mm256_xor_si256(last, last_text));
        store_short_pair(rest->out + PAIR * (pairs - 1), text, last_len);
        if (sealing)
            add_last(&sum, key, reverse_octets(keep_first(text, last_len)), power - 2 * (size_t)(pairs - 1));
    }
    __m128i mask = _mm256_castsi256_si128(_mm256_aesenclast_epi128(state[pairs], last));
    return _mm_xor_si128(mask, gcm_reverse_octets(reduce(sum)));
}

INLINE __m128i finish(const struct gcm_vaes_key *key, const struct rest *rest, const int sealing)
{
    switch ((rest->len + PAIR - 1) / PAIR) {
    case 0: return finish_pairs(key, rest, 0, sealing);
    case 1: return finish_pairs(key, rest, 1, sealing);
    case 2: return finish_pairs(key, rest, 2, sealing);
    case 3: return finish_pairs(key, rest, 3, sealing);
    case 4: return finish_pairs(key, rest, 4, sealing);
    case 5: return finish_pairs(key, rest, 5, sealing);
    case 6: return finish_pairs(key, rest, 6, sealing);
    case 7: return finish_pairs(key, rest, 7, sealing);
    default: return finish_pairs(key, rest, 8, sealing);
    }
}

/* ---- One message (SP 800-38D sections 7.1 and 7.2) ------------------------------------------------------------- */

INLINE void start(const struct gcm_vaes_key *key, struct rest *rest, const uint8_t *nonce, const uint8_t *aad,
                  size_t aad_len, const uint8_t *in, size_t len, uint8_t *out)
{
    rest->in = in;
    rest->out = out;
    rest->len = len;
    rest->now = counter_start(key, nonce);
    rest->next = counter_next(key, rest->now);
    rest->j0 = _mm256_xor_si256(rest->now.whitened, low_counter_bits(FIRST_COUNTER - 1, FIRST_COUNTER - 1));
    rest->lengths = _mm_set_epi64x((long long)((uint64_t)aad_len * 8), (long long)((uint64_t)len * 8));
    if (aad_len <= BLOCK) {
        /* ESP: SPI and sequence number, 8 or 12 octets (RFC 4106 section 5) */
        rest->y = gcm_reverse_octets(load_short(aad, aad_len));
        rest->y_blocks = 1;
    } else {
        rest->y = hash_aad(key, aad, aad_len);
        rest->y_blocks = 0;
    }
}

/* The hash must be whole before groups follow. */
INLINE void hash_start(const struct gcm_vaes_key *key, struct rest *rest)
{
    if (rest->y_blocks) {
        struct sum sum = sum_zero();
        add_ends(&sum, key, _mm256_zextsi128_si256(rest->y), 1);
        rest->y = reduce(sum);
        rest->y_blocks = 0;
    }
}

INLINE void next_group(const struct gcm_vaes_key *key, struct rest *rest)
{
    rest->in += GROUP;
    rest->out += GROUP;
    rest->len -= GROUP;
    rest->now = rest->next;
    rest->next = counter_next(key, rest->next);
}

VECTOR void gcm_vaes_seal(const struct gcm_vaes_key *key, const uint8_t nonce[12], const uint8_t *aad, size_t aad_len,
                          const uint8_t *in, size_t len, uint8_t *out, uint8_t *tag, unsigned tag_len)
{
    struct rest rest;
    start(key, &rest, nonce, aad, aad_len, in, len, out);
    if (rest.len > GROUP) {
        /* ciphertext can only be hashed once it exists: the hash runs one group behind */
        crypt_group(key, rest.now, rest.next, rest.in, rest.out);
        hash_start(key, &rest);
        next_group(key, &rest);
        for (; rest.len > GROUP; next_group(key, &rest))
            rest.y = crypt_and_hash_group(key, rest.now, rest.next, rest.in, rest.out, rest.out - GROUP, rest.y);
        rest.y = hash_group(key, rest.out - GROUP, rest.y);
    }
    store_short(tag, finish(key, &rest, 1), tag_len);
}

VECTOR int gcm_vaes_open(const struct gcm_vaes_key *key, const uint8_t nonce[12], const uint8_t *aad, size_t aad_len,
                         const uint8_t *in, size_t len, uint8_t *out, const uint8_t *tag, unsigned tag_len)
{
    struct rest rest;
    start(key, &rest, nonce, aad, aad_len, in, len, out);
    if (rest.len > GROUP) {
        hash_start(key, &rest);
        for (; rest.len > GROUP; next_group(key, &rest))
            rest.y = crypt_and_hash_group(key, rest.now, rest.next, rest.in, rest.out, rest.in, rest.y);
    }
    __m128i difference = _mm_xor_si128(finish(key, &rest, 0), load_short(tag, tag_len));
    difference = _mm256_castsi256_si128(keep_first(_mm256_zextsi128_si256(difference), tag_len));
    if (_mm_testz_si128(difference, difference))
        return 0;
    if (len)
        memset(out, 0, len);  /* out may be NULL when there is nothing to open but AAD (GMAC) */
    return -1;
}

/* ---- Keys ------------------------------------------------------------------------------------------------------ */

VECTOR void gcm_vaes_expand(struct gcm_vaes_key *key, const uint8_t *raw, unsigned bits)
{
    memset(key, 0, sizeof *key);
    key->rounds = bits / 32 + 6;
    gcm_expand_round_keys(key->round_key[0], raw, bits / 32, key->rounds);
    const __m128i h = gcm_hash_key(key->round_key, key->rounds);
    __m128i power = h;
    for (unsigned at = GCM_VAES_POWERS - 1;; at--) {
        store16(key->h[at], power);
        store16(key->h_sum[at], _mm_xor_si128(_mm_move_epi64(power), _mm_srli_si128(power, 8)));
        if (at == 0)
            break;
        struct sum sum = sum_zero();
        add_ends(&sum, key, _mm256_zextsi128_si256(power), 1);
        power = reduce(sum);
    }
}

/* ---- Which CPU ------------------------------------------------------------------------------------------------- */

int gcm_vaes_supported(void)
{
    return gcm_cpu_has(bit_AES | bit_PCLMUL | bit_SSSE3 | bit_SSE4_1, bit_AVX2 | bit_BMI2,
                       CPUID7_ECX_VAES | CPUID7_ECX_VPCLMULQDQ, XCR0_YMM);
}

#else

#include "gcm_absent.h"

GCM_ABSENT(gcm_vaes)

#endif
