/* The calls of intel-ipsec-mb that the data path uses, behind names that exist with and without the library.
 *
 * GCM and ChaCha20-Poly1305 go through the direct API: these ciphers gain nothing from the job manager's batching.
 * Without the library mb_start() says 0 and nothing else is called.
 */
#ifndef IPSEC_FAST_IPSEC_MB_H
#define IPSEC_FAST_IPSEC_MB_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <openssl/crypto.h>

#ifndef HAVE_IPSEC_MB
#define HAVE_IPSEC_MB 0
#endif

#if HAVE_IPSEC_MB
#include <intel-ipsec-mb.h>

static IMB_MGR *mb_manager;

/* 1 if the library is usable on this CPU. The manager holds only function pointers for the direct API, so that one
 * serves all threads. */
static int mb_start(void)
{
    IMB_ARCH arch;
    if (mb_manager)
        return 1;
    mb_manager = alloc_mb_mgr(0);
    if (!mb_manager)
        return 0;
    init_mb_mgr_auto(mb_manager, &arch);
    /* below: none, and before version 2 what does AES without AES-NI, in tables whose use shows in the cache */
    if (imb_get_errno(mb_manager) != 0 || arch < IMB_ARCH_SSE) {
        free_mb_mgr(mb_manager);
        mb_manager = NULL;
        return 0;
    }
    return 1;
}

static const char *mb_version(void) { return imb_get_version_str(); }

static size_t mb_gcm_key_size(void) { return sizeof(struct gcm_key_data); }

static void mb_gcm_expand(void *out, const uint8_t *key, unsigned bits)
{
    if (bits == 128)
        IMB_AES128_GCM_PRE(mb_manager, key, (struct gcm_key_data *)out);
    else if (bits == 192)
        IMB_AES192_GCM_PRE(mb_manager, key, (struct gcm_key_data *)out);
    else
        IMB_AES256_GCM_PRE(mb_manager, key, (struct gcm_key_data *)out);
}

#define MB_GCM(BITS)                                                                                                  \
    static int mb_gcm##BITS##_seal(void *key, const uint8_t *nonce, const uint8_t *aad, uint32_t aad_len,             \
                                   const uint8_t *in, uint32_t len, uint8_t *out, uint8_t *tag, uint32_t tag_len)     \
    {                                                                                                                 \
        struct gcm_context_data ctx;                                                                                  \
        IMB_AES##BITS##_GCM_ENC(mb_manager, (struct gcm_key_data *)key, &ctx, out, in, len, nonce, aad, aad_len, tag, \
                                tag_len);                                                                             \
        return 0;                                                                                                     \
    }                                                                                                                 \
    static int mb_gcm##BITS##_open(void *key, const uint8_t *nonce, const uint8_t *aad, uint32_t aad_len,             \
                                   const uint8_t *in, uint32_t len, uint8_t *out, const uint8_t *tag,                 \
                                   uint32_t tag_len)                                                                  \
    {                                                                                                                 \
        struct gcm_context_data ctx;                                                                                  \
        uint8_t made[16];                                                                                             \
        IMB_AES##BITS##_GCM_DEC(mb_manager, (struct gcm_key_data *)key, &ctx, out, in, len, nonce, aad, aad_len,      \
                                made, tag_len);                                                                       \
        return CRYPTO_memcmp(made, tag, tag_len) == 0 ? 0 : -1;                                                       \
    }
MB_GCM(128)
MB_GCM(192)
MB_GCM(256)

static int mb_chacha_seal(void *key, const uint8_t *nonce, const uint8_t *aad, uint32_t aad_len, const uint8_t *in,
                          uint32_t len, uint8_t *out, uint8_t *tag, uint32_t tag_len)
{
    struct chacha20_poly1305_context_data ctx;
    IMB_CHACHA20_POLY1305_INIT(mb_manager, key, &ctx, nonce, aad, aad_len);
    IMB_CHACHA20_POLY1305_ENC_UPDATE(mb_manager, key, &ctx, out, in, len);
    IMB_CHACHA20_POLY1305_ENC_FINALIZE(mb_manager, &ctx, tag, tag_len);
    return 0;
}

static int mb_chacha_open(void *key, const uint8_t *nonce, const uint8_t *aad, uint32_t aad_len, const uint8_t *in,
                          uint32_t len, uint8_t *out, const uint8_t *tag, uint32_t tag_len)
{
    struct chacha20_poly1305_context_data ctx;
    uint8_t made[16];
    IMB_CHACHA20_POLY1305_INIT(mb_manager, key, &ctx, nonce, aad, aad_len);
    IMB_CHACHA20_POLY1305_DEC_UPDATE(mb_manager, key, &ctx, out, in, len);
    IMB_CHACHA20_POLY1305_DEC_FINALIZE(mb_manager, &ctx, made, tag_len);
    return CRYPTO_memcmp(made, tag, tag_len) == 0 ? 0 : -1;
}

#else /* !HAVE_IPSEC_MB */

static int mb_start(void) { return 0; }
static const char *mb_version(void) { return ""; }
static size_t mb_gcm_key_size(void) { return 0; }
static void mb_gcm_expand(void *out, const uint8_t *key, unsigned bits) { (void)out; (void)key; (void)bits; }

#define MB_ABSENT(NAME)                                                                                               \
    static int NAME##_seal(void *k, const uint8_t *n, const uint8_t *a, uint32_t al, const uint8_t *i, uint32_t l,    \
                           uint8_t *o, uint8_t *t, uint32_t tl)                                                       \
    {                                                                                                                 \
        (void)k; (void)n; (void)a; (void)al; (void)i; (void)l; (void)o; (void)t; (void)tl;                            \
        return -1;                                                                                                    \
    }                                                                                                                 \
    static int NAME##_open(void *k, const uint8_t *n, const uint8_t *a, uint32_t al, const uint8_t *i, uint32_t l,    \
                           uint8_t *o, const uint8_t *t, uint32_t tl)                                                 \
    {                                                                                                                 \
        (void)k; (void)n; (void)a; (void)al; (void)i; (void)l; (void)o; (void)t; (void)tl;                            \
        return -1;                                                                                                    \
    }
MB_ABSENT(mb_gcm128)
MB_ABSENT(mb_gcm192)
MB_ABSENT(mb_gcm256)
MB_ABSENT(mb_chacha)

#endif
#endif
