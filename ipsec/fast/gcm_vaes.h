/* AES-GCM (NIST SP 800-38D) for x86 CPUs with VAES and VPCLMULQDQ on 256-bit registers but without AVX-512.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * 12-octet nonces only (RFC 4106: salt and IV). No heap, no globals that change: any number of threads may use one
 * expanded key. Data needs no alignment; `out` may be `in` exactly, or must not overlap it. The caller wipes the key.
 */
#ifndef IPSEC_FAST_GCM_VAES_H
#define IPSEC_FAST_GCM_VAES_H

#include <stddef.h>
#include <stdint.h>

/* The largest stretch that is hashed with one reduction: a block of AAD, 16 blocks of data, the block of lengths. */
#define GCM_VAES_POWERS 18

/* Powers of H stand in descending order (h[GCM_VAES_POWERS - k] is H^k), so that one 32-octet load at any entry
 * brings the factors of two consecutive blocks. What is unused puts those loads on multiples of 32. The order of the
 * members makes what a short packet needs (the low powers, the round keys of AES-128) five cache lines in a row. */
struct gcm_vaes_key {
    uint8_t unused[32];
    uint8_t h_sum[GCM_VAES_POWERS][16];  /* xor of the two halves of h, for Karatsuba; upper half zero */
    uint8_t unused_too[32];
    uint8_t h[GCM_VAES_POWERS][16];      /* H^k * x, octets reversed (see gcm_vaes.c) */
    uint32_t rounds;                     /* 10, 12 or 14 */
    uint32_t unused_at_last[3];
    uint8_t round_key[15][16];
} __attribute__((aligned(64)));

/* Where the powers end and the rest begins. */
#define GCM_VAES_SPLIT (64 + 2 * 16 * GCM_VAES_POWERS)

/* 1 if this CPU and its operating system can run the functions below, else 0 (they must not be called then). */
int gcm_vaes_supported(void);

/* Expand a key of `bits` = 128, 192 or 256 bits. */
void gcm_vaes_expand(struct gcm_vaes_key *key, const uint8_t *raw, unsigned bits);

/* Encrypt `len` octets of `in` to `out` and write `tag_len` (8, 12 or 16) octets of tag. A nonce must never be used
 * twice with one key. `len` is limited by SP 800-38D section 5.2.1.1 to 2^36 - 32 octets. */
void gcm_vaes_seal(const struct gcm_vaes_key *key, const uint8_t nonce[12], const uint8_t *aad, size_t aad_len,
                   const uint8_t *in, size_t len, uint8_t *out, uint8_t *tag, unsigned tag_len);

/* The reverse. Returns 0 if the tag is right; else -1, and `out` holds `len` zeros. The comparison takes the same
 * time wherever the tags differ. */
int gcm_vaes_open(const struct gcm_vaes_key *key, const uint8_t nonce[12], const uint8_t *aad, size_t aad_len,
                  const uint8_t *in, size_t len, uint8_t *out, const uint8_t *tag, unsigned tag_len);

#endif
