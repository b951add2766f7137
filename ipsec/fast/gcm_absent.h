/* AES-GCM where the CPU is of another architecture: it says so, and calling on regardless is a bug that must not pass.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#ifndef IPSEC_FAST_GCM_ABSENT_H
#define IPSEC_FAST_GCM_ABSENT_H

#include <stdlib.h>

/* The functions that gcm_vaes.h and gcm_avx512.h declare, for NAME. */
#define GCM_ABSENT(NAME)                                                                                               \
    int NAME##_supported(void)                                                                                         \
    {                                                                                                                  \
        return 0;                                                                                                      \
    }                                                                                                                  \
    void NAME##_expand(struct NAME##_key *key, const uint8_t *raw, unsigned bits)                                      \
    {                                                                                                                  \
        (void)key, (void)raw, (void)bits;                                                                              \
        abort();                                                                                                       \
    }                                                                                                                  \
    void NAME##_seal(const struct NAME##_key *key, const uint8_t nonce[12], const uint8_t *aad, size_t aad_len,        \
                     const uint8_t *in, size_t len, uint8_t *out, uint8_t *tag, unsigned tag_len)                      \
    {                                                                                                                  \
        (void)key, (void)nonce, (void)aad, (void)aad_len, (void)in, (void)len, (void)out, (void)tag, (void)tag_len;    \
        abort();                                                                                                       \
    }                                                                                                                  \
    int NAME##_open(const struct NAME##_key *key, const uint8_t nonce[12], const uint8_t *aad, size_t aad_len,         \
                    const uint8_t *in, size_t len, uint8_t *out, const uint8_t *tag, unsigned tag_len)                 \
    {                                                                                                                  \
        (void)key, (void)nonce, (void)aad, (void)aad_len, (void)in, (void)len, (void)out, (void)tag, (void)tag_len;    \
        abort();                                                                                                       \
    }

#endif
