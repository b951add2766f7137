/* AES-GCM (NIST SP 800-38D) with VAES and VPCLMULQDQ on 512-bit registers; see gcm_avx512.h.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * The wider sibling of gcm_vaes.c, with the same plan: groups of 16 blocks, now in four registers; one group is hashed
 * while another is enciphered; one reduction per group. On Zen 4 a carry-less product costs two cycles whatever its width
 * and runs beside the AES rounds, which are the limit at one register per cycle. So four products per register
 * (schoolbook) are better here than three and the additions around them (Karatsuba), and no second table of powers is
 * needed. Consecutive groups depend on each other only through the hash, so that the CPU, which looks some
 * three groups ahead, keeps its AES units busy with four states.
 */
#include "gcm_avx512.h"

#include <string.h>

#if defined(__x86_64__)

#include "gcm_key.h"

/* The file is compiled for the baseline CPU: only these functions may use the newer instructions. */
#define VECTOR __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,vaes,vpclmulqdq,aes,pclmul,bmi2")))
#define INLINE static inline __attribute__((always_inline)) VECTOR
#define UNROLL _Pragma("GCC unroll 16")

enum {
    BLOCK = 16,
    WIDTH = 64,                    /* one 512-bit register: four blocks */
    LANES = WIDTH / BLOCK,
    GROUP_WIDTHS = 4,
    GROUP = GROUP_WIDTHS * WIDTH,  /* 256 octets */
    MOST_GROUPS = 2,               /* at once */
    FIRST_COUNTER = 2,             /* SP 800-38D section 7.1: inc32(J0), where J0 ends in 1 */
    XOR3 = 0x96,                   /* of VPTERNLOG */
};

/* ---- Loads and stores ------------------------------------------------------------------------------------------ */

INLINE __m512i load64(const void *p)
{
    return _mm512_loadu_si512(p);
}

INLINE void store64(void *p, __m512i v)
{
    _mm512_storeu_si512(p, v);
}

/* The first n <= 64 octets. Masked loads and stores touch nothing else: the data may end where a page ends. */
INLINE __mmask64 first(size_t n)
{
    return _bzhi_u64(~0ULL, (unsigned)n);
}

INLINE __m512i xor3(__m512i a, __m512i b, __m512i c)
{
    return _mm512_ternarylogic_epi64(a, b, c, XOR3);
}

INLINE __m512i reverse_octets(__m512i v)
{
    return _mm512_shuffle_epi8(v, _mm512_broadcast_i32x4(_mm_set_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14,
                                                                     15)));
}

/* ---- GHASH (SP 800-38D section 6.4) ---------------------------------------------------------------------------- */

/* Sum of products, not yet reduced: low + middle * 2^64 + high * 2^128. */
struct sum {
    __m512i low, middle, high;
};

INLINE struct sum sum_zero(void)
{
    return (struct sum){_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512()};
}

INLINE void add_product(struct sum *sum, __m512i x, __m512i h)
{
    sum->low = _mm512_xor_si512(sum->low, _mm512_clmulepi64_epi128(x, h, 0x00));
    sum->high = _mm512_xor_si512(sum->high, _mm512_clmulepi64_epi128(x, h, 0x11));
    sum->middle = xor3(sum->middle, _mm512_clmulepi64_epi128(x, h, 0x01), _mm512_clmulepi64_epi128(x, h, 0x10));
}

/* Two products at once: an addition of three costs what an addition of two does. */
INLINE void add_products(struct sum *sum, __m512i x, __m512i h, __m512i x2, __m512i h2)
{
    sum->low = xor3(sum->low, _mm512_clmulepi64_epi128(x, h, 0x00), _mm512_clmulepi64_epi128(x2, h2, 0x00));
    sum->high = xor3(sum->high, _mm512_clmulepi64_epi128(x, h, 0x11), _mm512_clmulepi64_epi128(x2, h2, 0x11));
    sum->middle = xor3(sum->middle, _mm512_clmulepi64_epi128(x, h, 0x01), _mm512_clmulepi64_epi128(x, h, 0x10));
    sum->middle = xor3(sum->middle, _mm512_clmulepi64_epi128(x2, h2, 0x01), _mm512_clmulepi64_epi128(x2, h2, 0x10));
}

/* Four consecutive blocks: the first times H^power, the last times H^(power - 3). */
INLINE void add_blocks(struct sum *sum, const struct gcm_avx512_key *key, __m512i x, size_t power)
{
    add_product(sum, x, load64(key->h[GCM_AVX512_POWERS - power]));
}

/* Two blocks that are not neighbours: the first times H^power, the second times H. */
INLINE void add_ends(struct sum *sum, const struct gcm_avx512_key *key, __m128i first_block, __m128i second_block,
                     size_t power)
{
    __m256i x = _mm256_inserti128_si256(_mm256_castsi128_si256(first_block), second_block, 1);
    __m256i h = _mm256_inserti128_si256(_mm256_castsi128_si256(gcm_load16(key->h[GCM_AVX512_POWERS - power])),
                                        gcm_load16(key->h[GCM_AVX512_POWERS - 1]), 1);
    add_product(sum, _mm512_zextsi256_si512(x), _mm512_zextsi256_si512(h));
}

/* Reduce all lanes and add them up. Each step folds the lowest 64 bits that are left into the 128 bits above. */
INLINE __m128i reduce(struct sum sum)
{
    const __m512i fold = _mm512_set1_epi64((long long)GHASH_FOLD);
    __m512i middle = xor3(sum.middle, _mm512_shuffle_epi32(sum.low, 0x4E), _mm512_clmulepi64_epi128(sum.low, fold, 0));
    __m512i high = xor3(sum.high, _mm512_shuffle_epi32(middle, 0x4E), _mm512_clmulepi64_epi128(middle, fold, 0));
    __m256i half = _mm256_xor_si256(_mm512_castsi512_si256(high), _mm512_extracti64x4_epi64(high, 1));
    return _mm_xor_si128(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}

/* Additional data of any length, zero-padded to whole blocks: what section 7.1 step 5 hashes first. */
static __attribute__((noinline)) VECTOR __m128i hash_aad(const struct gcm_avx512_key *key, const uint8_t *aad,
                                                         size_t len)
{
    __m128i y = _mm_setzero_si128();
    while (len) {
        size_t part = len < GROUP ? len : GROUP;
        size_t power = (part + BLOCK - 1) / BLOCK;
        struct sum sum = sum_zero();
        for (size_t at = 0; at < part; at += WIDTH, power -= LANES) {
            size_t n = part - at < WIDTH ? part - at : WIDTH;
            __m512i x = reverse_octets(_mm512_maskz_loadu_epi8(first(n), aad + at));
            add_blocks(&sum, key, _mm512_xor_si512(x, _mm512_zextsi128_si512(y)), power);
            y = _mm_setzero_si128();
        }
        y = reduce(sum);
        aad += part;
        len -= part;
    }
    return y;
}

/* Additional data of ESP: SPI and sequence number, 8 or 12 octets (RFC 4106 section 5). Callers write them just before,
 * word by word, and a load is quick only if it does not straddle recent stores. */
INLINE __m128i load_aad(const uint8_t *aad, size_t len)
{
    uint32_t word[3] = {0, 0, 0};
    if (len != 8 && len != 12)
        return _mm_maskz_loadu_epi8((__mmask16)first(len), aad);
    memcpy(&word[0], aad, 4);
    memcpy(&word[1], aad + 4, 4);
    if (len == 12)
        memcpy(&word[2], aad + 8, 4);
    return _mm_set_epi32(0, (int)word[2], (int)word[1], (int)word[0]);
}

/* ---- AES in counter mode (SP 800-38D section 6.5) -------------------------------------------------------------- */

INLINE __m512i round_key(const struct gcm_avx512_key *key, unsigned round)
{
    return _mm512_broadcast_i32x4(gcm_load16(key->round_key[round]));
}

/* Counter blocks of a group. inc32 (section 6.2) is a big-endian addition, but within 16 blocks that start at a
 * multiple of 16 it only sets the lowest four bits. So one addition per group gives the block with the counter 16 g,
 * already xored with the first round key, and one xor gives each state. Data starts at counter 2: the last two blocks
 * of group g are the first two of the sixteen that start at 16 (g + 1). */
struct counter {
    __m512i reversed;   /* nonce || 16 g in all lanes, octets reversed: inc32 is an addition to the lowest element */
    __m512i whitened;   /* the same, octets in order, xor the first round key */
};

INLINE __m512i low_counter_bits(int a, int b, int c, int d)
{
    return _mm512_set_epi32(d << 24, 0, 0, 0, c << 24, 0, 0, 0, b << 24, 0, 0, 0, a << 24, 0, 0, 0);
}

INLINE struct counter counter_start(const struct gcm_avx512_key *key, const uint8_t nonce[12])
{
    /* RFC 4106 section 4: salt and IV, which callers put together just before. */
    uint32_t salt;
    memcpy(&salt, nonce, 4);
    __m128i block = _mm_slli_si128(_mm_loadl_epi64((const __m128i *)(nonce + 4)), 4);
    block = _mm_or_si128(block, _mm_cvtsi32_si128((int)salt));
    __m512i blocks = _mm512_broadcast_i32x4(block);
    return (struct counter){reverse_octets(blocks), _mm512_xor_si512(blocks, round_key(key, 0))};
}

INLINE struct counter counter_next(const struct gcm_avx512_key *key, struct counter counter)
{
    const __m512i sixteen = _mm512_broadcast_i32x4(_mm_set_epi32(0, 0, 0, 16));
    __m512i next = _mm512_add_epi32(counter.reversed, sixteen);
    return (struct counter){next, _mm512_xor_si512(reverse_octets(next), round_key(key, 0))};
}

/* What is left of a message: data, the block of lengths and the mask of the tag. */
struct rest {
    const uint8_t *in;
    uint8_t *out;
    size_t len;
    struct counter now, next;   /* this group's and the following group's */
    __m512i j0;         /* whitened J0, for the mask of the tag */
    __m128i y;          /* hash so far, or the only block of AAD */
    size_t y_blocks;    /* 1 if y is a block that still needs its own factor H, else 0 */
    __m128i lengths;
};

INLINE void aes_start(__m512i *state, int widths, struct counter now, struct counter next)
{
    UNROLL for (int i = 0; i < widths; i++) {
        const int at = FIRST_COUNTER + LANES * i;
        if (i < GROUP_WIDTHS - 1)
            state[i] = _mm512_xor_si512(now.whitened, low_counter_bits(at, at + 1, at + 2, at + 3));
        else
            state[i] = _mm512_xor_si512(_mm512_mask_blend_epi64(0xF0, now.whitened, next.whitened),
                                        low_counter_bits(at, at + 1, 0, 1));
    }
}

INLINE void aes_round(const struct gcm_avx512_key *key, __m512i *state, int widths, unsigned round)
{
    const __m512i k = round_key(key, round);
    UNROLL for (int i = 0; i < widths; i++)
        state[i] = _mm512_aesenc_epi128(state[i], k);
}

/* What 192- and 256-bit keys have beyond the nine middle rounds of 128-bit keys. Returns the last round key. */
INLINE __m512i aes_more_rounds(const struct gcm_avx512_key *key, __m512i *state, int widths)
{
    if (key->rounds > 10) {
        aes_round(key, state, widths, 10);
        aes_round(key, state, widths, 11);
        if (key->rounds > 12) {
            aes_round(key, state, widths, 12);
            aes_round(key, state, widths, 13);
        }
    }
    return round_key(key, key->rounds);
}

/* The states of the next groups; the counters that come after them. */
INLINE void aes_start_groups(const struct gcm_avx512_key *key, struct rest *rest, __m512i *state, const int groups)
{
    UNROLL for (int i = 0; i < groups; i++) {
        aes_start(state + GROUP_WIDTHS * i, GROUP_WIDTHS, rest->now, rest->next);
        rest->now = rest->next;
        rest->next = counter_next(key, rest->next);
    }
}

/* The last round: AESENCLAST ends with an xor of its key, so key and text are put together first. */
INLINE void aes_end_groups(const __m512i *state, __m512i last, struct rest *rest, const int groups)
{
    UNROLL for (int i = 0; i < groups * GROUP_WIDTHS; i++) {
        __m512i text = load64(rest->in + WIDTH * i);
        store64(rest->out + WIDTH * i, _mm512_aesenclast_epi128(state[i], _mm512_xor_si512(last, text)));
    }
    rest->in += groups * GROUP;
    rest->out += groups * GROUP;
    rest->len -= groups * GROUP;
}

/* `groups` groups, in to out, where nothing is there to be hashed yet. */
INLINE void crypt_groups(const struct gcm_avx512_key *key, struct rest *rest, const int groups)
{
    __m512i state[MOST_GROUPS * GROUP_WIDTHS];
    aes_start_groups(key, rest, state, groups);
    UNROLL for (unsigned round = 1; round < 10; round++)
        aes_round(key, state, groups * GROUP_WIDTHS, round);
    aes_end_groups(state, aes_more_rounds(key, state, groups * GROUP_WIDTHS), rest, groups);
}

/* Hash two registers of a group of ciphertext, number i and the next. The first one waits for the hash so far, so the
 * caller takes it last. */
INLINE void hash_step(struct sum *sum, const struct gcm_avx512_key *key, const uint8_t *hashed, unsigned i, __m128i y)
{
    __m512i x = reverse_octets(load64(hashed + WIDTH * i));
    __m512i x2 = reverse_octets(load64(hashed + WIDTH * (i + 1)));
    size_t at = GCM_AVX512_POWERS - LANES * (GROUP_WIDTHS - i);
    if (i == 0)
        x = _mm512_xor_si512(x, _mm512_zextsi128_si512(y));
    add_products(sum, x, load64(key->h[at]), x2, load64(key->h[at + LANES]));
}

INLINE __m128i hash_group(const struct gcm_avx512_key *key, const uint8_t *hashed, __m128i y)
{
    struct sum sum = sum_zero();
    hash_step(&sum, key, hashed, 2, y);
    hash_step(&sum, key, hashed, 0, y);
    return reduce(sum);
}

/* `groups` groups, in to out, while as many from `hashed` on go into the hash. All of `hashed` is read before `out` is
 * written, so opening may pass hashed = in, and out = in as well. */
INLINE void crypt_and_hash_groups(const struct gcm_avx512_key *key, struct rest *rest, const uint8_t *hashed,
                                  const int hashed_groups, const int groups)
{
    __m512i state[MOST_GROUPS * GROUP_WIDTHS];
    struct sum sum = sum_zero();
    aes_start_groups(key, rest, state, groups);
    UNROLL for (unsigned round = 1; round < 10; round++) {
        aes_round(key, state, groups * GROUP_WIDTHS, round);
        if (round % 2 == 0 && round / 2 <= (unsigned)hashed_groups * GROUP_WIDTHS / 2) {
            const unsigned step = round / 2;
            hash_step(&sum, key, hashed + (step - 1) / 2 * GROUP, step % 2 * 2, rest->y);
            if (step % 2 == 0) {
                rest->y = reduce(sum);
                sum = sum_zero();
            }
        }
    }
    aes_end_groups(state, aes_more_rounds(key, state, groups * GROUP_WIDTHS), rest, groups);
}

/* ---- The end of a message, and short messages as a whole ------------------------------------------------------- */

/* Returns the whole tag. `widths` = ceil(len / 64) is a constant in each copy, so that all states stay in registers;
 * the state after the last one is J0. Everything is hashed with one reduction. */
INLINE __m128i finish_widths(const struct gcm_avx512_key *key, const struct rest *rest, const int widths,
                             const int sealing)
{
    const size_t last_len = rest->len - (size_t)(widths ? widths - 1 : 0) * WIDTH;
    const __mmask64 last_octets = first(last_len);
    size_t power = (rest->len + BLOCK - 1) / BLOCK + 1;
    __m512i state[GROUP_WIDTHS + 1];
    __m512i last_text = _mm512_setzero_si512();
    struct sum sum = sum_zero();

    aes_start(state, widths, rest->now, rest->next);
    state[widths] = rest->j0;
    add_ends(&sum, key, rest->y, rest->lengths, power + rest->y_blocks);
    if (widths)
        last_text = _mm512_maskz_loadu_epi8(last_octets, rest->in + WIDTH * (widths - 1));
    UNROLL for (int round = 1; round < 10; round++) {
        aes_round(key, state, widths + 1, (unsigned)round);
        if (!sealing && round < widths)
            add_blocks(&sum, key, reverse_octets(load64(rest->in + WIDTH * (round - 1))),
                       power - LANES * (size_t)(round - 1));
        if (!sealing && round == widths)
            add_blocks(&sum, key, reverse_octets(last_text), power - LANES * (size_t)(round - 1));
    }
    const __m512i last = aes_more_rounds(key, state, widths + 1);
    UNROLL for (int i = 0; i < widths - 1; i++) {
        __m512i text = load64(rest->in + WIDTH * i);
        text = _mm512_aesenclast_epi128(state[i], _mm512_xor_si512(last, text));
        store64(rest->out + WIDTH * i, text);
        if (sealing)
            add_blocks(&sum, key, reverse_octets(text), power - LANES * (size_t)i);
    }
    if (widths) {
        __m512i text = _mm512_aesenclast_epi128(state[widths - 1], _mm512_xor_si512(last, last_text));
        _mm512_mask_storeu_epi8(rest->out + WIDTH * (widths - 1), last_octets, text);
        /* SP 800-38D section 7.1 step 5 pads the last block of ciphertext with zeros before it is hashed */
        if (sealing)
            add_blocks(&sum, key, reverse_octets(_mm512_maskz_mov_epi8(last_octets, text)),
                       power - LANES * (size_t)(widths - 1));
    }
    __m128i mask = _mm512_castsi512_si128(_mm512_aesenclast_epi128(state[widths], last));
    return _mm_xor_si128(mask, gcm_reverse_octets(reduce(sum)));
}

INLINE __m128i finish(const struct gcm_avx512_key *key, const struct rest *rest, const int sealing)
{
    switch ((rest->len + WIDTH - 1) / WIDTH) {
    case 0: return finish_widths(key, rest, 0, sealing);
    case 1: return finish_widths(key, rest, 1, sealing);
    case 2: return finish_widths(key, rest, 2, sealing);
    case 3: return finish_widths(key, rest, 3, sealing);
    default: return finish_widths(key, rest, 4, sealing);
    }
}

/* ---- One message (SP 800-38D sections 7.1 and 7.2) ------------------------------------------------------------- */

INLINE void start(const struct gcm_avx512_key *key, struct rest *rest, const uint8_t *nonce, const uint8_t *aad,
                  size_t aad_len, const uint8_t *in, size_t len, uint8_t *out)
{
    rest->in = in;
    rest->out = out;
    rest->len = len;
    rest->now = counter_start(key, nonce);
    rest->next = counter_next(key, rest->now);
    rest->j0 = _mm512_xor_si512(rest->now.whitened, low_counter_bits(1, 1, 1, 1));
    rest->lengths = _mm_set_epi64x((long long)((uint64_t)aad_len * 8), (long long)((uint64_t)len * 8));
    if (aad_len <= BLOCK) {
        rest->y = gcm_reverse_octets(load_aad(aad, aad_len));
        rest->y_blocks = 1;
    } else {
        rest->y = hash_aad(key, aad, aad_len);
        rest->y_blocks = 0;
    }
}

/* The hash must be whole before groups follow. */
INLINE void hash_start(const struct gcm_avx512_key *key, struct rest *rest)
{
    if (rest->y_blocks) {
        struct sum sum = sum_zero();
        add_ends(&sum, key, rest->y, _mm_setzero_si128(), 1);
        rest->y = reduce(sum);
        rest->y_blocks = 0;
    }
}

VECTOR void gcm_avx512_seal(const struct gcm_avx512_key *key, const uint8_t nonce[12], const uint8_t *aad,
                            size_t aad_len, const uint8_t *in, size_t len, uint8_t *out, uint8_t *tag, unsigned tag_len)
{
    struct rest rest;
    start(key, &rest, nonce, aad, aad_len, in, len, out);
    if (rest.len > GROUP) {
        /* ciphertext can only be hashed once it exists: the hash runs behind */
        if (rest.len > 2 * GROUP) {
            crypt_groups(key, &rest, 2);
            hash_start(key, &rest);
            while (rest.len > 2 * GROUP)
                crypt_and_hash_groups(key, &rest, rest.out - 2 * GROUP, 2, 2);
            if (rest.len > GROUP)
                crypt_and_hash_groups(key, &rest, rest.out - 2 * GROUP, 2, 1);
            else
                rest.y = hash_group(key, rest.out - 2 * GROUP, rest.y);
        } else {
            crypt_groups(key, &rest, 1);
            hash_start(key, &rest);
        }
        rest.y = hash_group(key, rest.out - GROUP, rest.y);
    }
    _mm_mask_storeu_epi8(tag, (__mmask16)first(tag_len), finish(key, &rest, 1));
}

VECTOR int gcm_avx512_open(const struct gcm_avx512_key *key, const uint8_t nonce[12], const uint8_t *aad,
                           size_t aad_len, const uint8_t *in, size_t len, uint8_t *out, const uint8_t *tag,
                           unsigned tag_len)
{
    struct rest rest;
    const __mmask16 tag_octets = (__mmask16)first(tag_len);
    start(key, &rest, nonce, aad, aad_len, in, len, out);
    if (rest.len > GROUP) {
        hash_start(key, &rest);
        while (rest.len > 2 * GROUP)
            crypt_and_hash_groups(key, &rest, rest.in, 2, 2);
        if (rest.len > GROUP)
            crypt_and_hash_groups(key, &rest, rest.in, 1, 1);
    }
    __m128i made = finish(key, &rest, 0);
    if (_mm_mask_cmpneq_epi8_mask(tag_octets, made, _mm_maskz_loadu_epi8(tag_octets, tag)) == 0)
        return 0;
    if (len)
        memset(out, 0, len);  /* out may be NULL when there is nothing to open but AAD (GMAC) */
    return -1;
}

/* ---- Keys, and which CPU --------------------------------------------------------------------------------------- */

VECTOR void gcm_avx512_expand(struct gcm_avx512_key *key, const uint8_t *raw, unsigned bits)
{
    memset(key, 0, sizeof *key);
    key->rounds = bits / 32 + 6;
    gcm_expand_round_keys(key->round_key[0], raw, bits / 32, key->rounds);
    __m128i power = gcm_hash_key(key->round_key, key->rounds);
    for (unsigned at = GCM_AVX512_POWERS - 1;; at--) {
        _mm_storeu_si128((__m128i *)key->h[at], power);
        if (at == 0)
            break;
        struct sum sum = sum_zero();
        add_ends(&sum, key, power, _mm_setzero_si128(), 1);
        power = reduce(sum);
    }
}

int gcm_avx512_supported(void)
{
    return gcm_cpu_has(bit_AES | bit_PCLMUL | bit_SSSE3 | bit_SSE4_1,
                       bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL | bit_AVX2 | bit_BMI2,
                       CPUID7_ECX_VAES | CPUID7_ECX_VPCLMULQDQ, XCR0_ZMM);
}

#else

#include "gcm_absent.h"

GCM_ABSENT(gcm_avx512)

#endif
