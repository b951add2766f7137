/* AES-GCM (NIST SP 800-38D) for x86 CPUs with AVX-512, VAES and VPCLMULQDQ on 512-bit registers.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * Everything that gcm_vaes.h promises holds here too.
 */
#ifndef IPSEC_FAST_GCM_AVX512_H
#define IPSEC_FAST_GCM_AVX512_H

#include <stddef.h>
#include <stdint.h>

/* The largest stretch that is hashed with one reduction: a block of AAD, 16 blocks of data, the block of lengths. */
#define GCM_AVX512_POWERS 18

/* Powers of H stand in descending order (h[GCM_AVX512_POWERS - k] is H^k), so that one 64-octet load at any entry
 * brings the factors of four consecutive blocks; such a load may reach into what follows. The order of the members makes
 * what a short packet needs (the low powers, the round keys of AES-128) five cache lines in a row. */
struct gcm_avx512_key {
    uint8_t unused[32];
    uint8_t h[GCM_AVX512_POWERS][16];    /* H^k * x, octets reversed (see gcm_key.h) */
    uint32_t rounds;                     /* 10, 12 or 14 */
    uint32_t unused_too[3];
    uint8_t round_key[15][16];
} __attribute__((aligned(64)));

/* Where the powers end and the rest begins. */
#define GCM_AVX512_SPLIT (32 + 16 * GCM_AVX512_POWERS)

/* As in gcm_vaes.h. */
int gcm_avx512_supported(void);
void gcm_avx512_expand(struct gcm_avx512_key *key, const uint8_t *raw, unsigned bits);
void gcm_avx512_seal(const struct gcm_avx512_key *key, const uint8_t nonce[12], const uint8_t *aad, size_t aad_len,
                     const uint8_t *in, size_t len, uint8_t *out, uint8_t *tag, unsigned tag_len);
int gcm_avx512_open(const struct gcm_avx512_key *key, const uint8_t nonce[12], const uint8_t *aad, size_t aad_len,
                    const uint8_t *in, size_t len, uint8_t *out, const uint8_t *tag, unsigned tag_len);

#endif
