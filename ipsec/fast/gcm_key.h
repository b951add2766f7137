/* What AES-GCM keys have in common, whatever the width of the vectors that use them (gcm_vaes.c, gcm_avx512.c).
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#ifndef IPSEC_FAST_GCM_KEY_H
#define IPSEC_FAST_GCM_KEY_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cpuid.h>
#include <immintrin.h>

/* Inlined into functions that may use more than this. */
#define KEY_INLINE static inline __attribute__((always_inline, target("aes,ssse3,sse4.1")))

/* SP 800-38D section 6.3 numbers bits from the left: with the octets of a block reversed, bit i of the block is bit
 * 127 - i of the register. A carry-less product of two such numbers comes out one bit too low, which a factor x in one
 * operand mends: the stored powers are H^k * x. The field polynomial 1 + x + x^2 + x^7 + x^128 becomes, as the multiplier
 * that folds 64 bits away, 0xC2 << 56. */
#define GHASH_FOLD 0xC200000000000000ULL

KEY_INLINE __m128i gcm_load16(const void *p)
{
    return _mm_loadu_si128((const __m128i *)p);
}

KEY_INLINE __m128i gcm_reverse_octets(__m128i v)
{
    return _mm_shuffle_epi8(v, _mm_set_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
}

/* FIPS 197 section 5.2 SubWord without a table, whose lookups would show the key in the cache: with four equal
 * columns ShiftRows changes nothing, and without MixColumns AESENCLAST is SubBytes alone. */
KEY_INLINE uint32_t gcm_sub_word(uint32_t word)
{
    return (uint32_t)_mm_cvtsi128_si32(_mm_aesenclast_si128(_mm_set1_epi32((int)word), _mm_setzero_si128()));
}

/* FIPS 197 figure 11: rounds + 1 round keys. Words are little-endian here: RotWord is a rotation to the right by one
 * octet. */
KEY_INLINE void gcm_expand_round_keys(uint8_t *words, const uint8_t *raw, unsigned key_words, unsigned rounds)
{
    uint32_t constant = 1, word, earlier;
    memcpy(words, raw, 4 * key_words);
    memcpy(&word, words + 4 * (key_words - 1), 4);
    for (unsigned i = key_words; i < 4 * (rounds + 1); i++) {
        if (i % key_words == 0) {
            word = gcm_sub_word(word);
            word = ((word >> 8) | (word << 24)) ^ constant;
            constant = (constant << 1) ^ (constant & 0x80 ? 0x11B : 0);
        } else if (key_words > 6 && i % key_words == 4) {
            word = gcm_sub_word(word);
        }
        memcpy(&earlier, words + 4 * (i - key_words), 4);
        word ^= earlier;
        memcpy(words + 4 * i, &word, 4);
    }
}

/* h * x: a shift to the left by one bit, and if a bit falls out, the field polynomial; without a branch. */
KEY_INLINE __m128i gcm_times_x(__m128i h)
{
    const __m128i polynomial = _mm_set_epi64x((long long)GHASH_FOLD, 1);
    __m128i carries = _mm_srli_epi64(h, 63);
    __m128i fallen = _mm_cmpeq_epi32(_mm_shuffle_epi32(carries, 0xAA), _mm_set1_epi32(1));
    h = _mm_or_si128(_mm_slli_epi64(h, 1), _mm_slli_si128(carries, 8));
    return _mm_xor_si128(h, _mm_and_si128(fallen, polynomial));
}

/* H = E(K, 0), SP 800-38D section 7.1 step 1, times x. */
KEY_INLINE __m128i gcm_hash_key(const uint8_t (*round_key)[16], unsigned rounds)
{
    __m128i h = gcm_load16(round_key[0]);
    for (unsigned round = 1; round < rounds; round++)
        h = _mm_aesenc_si128(h, gcm_load16(round_key[round]));
    return gcm_times_x(gcm_reverse_octets(_mm_aesenclast_si128(h, gcm_load16(round_key[rounds]))));
}

/* Whether this CPU has all of these features (bits of CPUID leaf 1 ECX, leaf 7 EBX and ECX), and its operating system
 * saves these registers (bits of XCR0). */
static inline int gcm_cpu_has(unsigned basic, unsigned extended, unsigned more, unsigned state)
{
    unsigned eax, ebx, ecx, edx;
    basic |= bit_OSXSAVE | bit_AVX;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || (ecx & basic) != basic)
        return 0;
    __asm__ volatile("xgetbv" : "=a"(eax), "=d"(edx) : "c"(0));
    if ((eax & state) != state)
        return 0;
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx))
        return 0;
    return (ebx & extended) == extended && (ecx & more) == more;
}

enum {
    CPUID7_ECX_VAES = 1 << 9,
    CPUID7_ECX_VPCLMULQDQ = 1 << 10,
    XCR0_YMM = 0x06,             /* XMM and YMM registers */
    XCR0_ZMM = 0xE6,             /* mask and ZMM registers too */
};

#endif
