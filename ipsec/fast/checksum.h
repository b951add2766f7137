/* The Internet checksum (RFC 1071) over octets in memory order, into a wide accumulator that is never folded here.
 *
 * The choice of code is made at run time, by a flag that libgcc (and clang's runtime) fill in at start, rather than by
 * target_clones: that needs ifunc, which musl does not have and which AddressSanitizer does not like.
 */
#ifndef IPSEC_FAST_CHECKSUM_H
#define IPSEC_FAST_CHECKSUM_H

#include <stdint.h>
#include <string.h>

/* 32-bit words into 64 bits: 2^32 of them fit before a carry is lost, far more than any n. */
static inline uint64_t ipsec_csum_words(const uint8_t *p, uint32_t n, uint64_t total)
{
    uint64_t pair;
    uint32_t word;
    uint16_t half;

    for (; n >= 8; n -= 8, p += 8) {
        memcpy(&pair, p, 8);
        total += (pair & 0xffffffffu) + (pair >> 32);
    }
    if (n & 4) {
        memcpy(&word, p, 4);
        total += word;
        p += 4;
    }
    if (n & 2) {
        memcpy(&half, p, 2);
        total += half;
        p += 2;
    }
    if (n & 1) {
        half = 0;
        memcpy(&half, p, 1); /* the missing octet is zero, on either byte order */
        total += half;
    }
    return total;
}

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>

/* Four accumulators: with fewer, the latency of the additions is the limit. */
__attribute__((target("avx2"), noinline)) static uint64_t
ipsec_csum_avx2(const uint8_t *p, uint32_t n, uint64_t total)
{
    const __m256i low = _mm256_set1_epi64x(0xffffffff);
    __m256i a = _mm256_setzero_si256(), b = a, c = a, d = a, v, w;
    uint64_t lanes[4];

    for (; n >= 64; n -= 64, p += 64) {
        v = _mm256_loadu_si256((const __m256i *)p);
        w = _mm256_loadu_si256((const __m256i *)(p + 32));
        a = _mm256_add_epi64(a, _mm256_and_si256(v, low));
        b = _mm256_add_epi64(b, _mm256_srli_epi64(v, 32));
        c = _mm256_add_epi64(c, _mm256_and_si256(w, low));
        d = _mm256_add_epi64(d, _mm256_srli_epi64(w, 32));
    }
    if (n >= 32) {
        v = _mm256_loadu_si256((const __m256i *)p);
        a = _mm256_add_epi64(a, _mm256_and_si256(v, low));
        b = _mm256_add_epi64(b, _mm256_srli_epi64(v, 32));
        n -= 32;
        p += 32;
    }
    a = _mm256_add_epi64(_mm256_add_epi64(a, b), _mm256_add_epi64(c, d));
    _mm256_storeu_si256((__m256i *)lanes, a);
    return ipsec_csum_words(p, n, total + lanes[0] + lanes[1] + lanes[2] + lanes[3]);
}

static inline uint64_t ipsec_csum_add(const uint8_t *p, uint32_t n, uint64_t total)
{
    /* below this the set-up costs more than the wider words gain */
    if (n >= 128 && __builtin_cpu_supports("avx2"))
        return ipsec_csum_avx2(p, n, total);
    return ipsec_csum_words(p, n, total);
}
#else
static inline uint64_t ipsec_csum_add(const uint8_t *p, uint32_t n, uint64_t total)
{
    return ipsec_csum_words(p, n, total);
}
#endif

#endif
