/* AES-CBC with HMAC through the job manager of intel-ipsec-mb: many packets at once, a lane of the vector registers each.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * CBC can encipher the blocks of a packet only one after the other, and SHA-2 is as serial; a batch of packets is not. Jobs
 * are handed in one by one and finished together by mb_jobs_finish(); until then nothing may read what they write or change
 * what they read. A manager serves one thread at a time.
 */
#ifndef IPSEC_FAST_IPSEC_MB_JOBS_H
#define IPSEC_FAST_IPSEC_MB_JOBS_H

#include "ipsec_mb.h"

/* Numbers that say which HMAC. */
enum { MB_HMAC_SHA1, MB_HMAC_SHA256, MB_HMAC_SHA384, MB_HMAC_SHA512 };

enum {
    CBC_BLOCK = 16,
    CBC_HEADER = 8,   /* SPI and sequence number, before the IV */
};

struct mb_cbc_key {
    uint8_t encrypt[15][16] __attribute__((aligned(16)));
    uint8_t decrypt[15][16];
    uint8_t inner[64], outer[64];   /* HMAC's two states after their first blocks (RFC 2104) */
    uint32_t key_len, hash, icv_len;
};

#if HAVE_IPSEC_MB

static const struct {
    IMB_HASH_ALG algorithm;
    unsigned block;
} mb_hmacs[] = {{IMB_AUTH_HMAC_SHA_1, 64}, {IMB_AUTH_HMAC_SHA_256, 64}, {IMB_AUTH_HMAC_SHA_384, 128},
                {IMB_AUTH_HMAC_SHA_512, 128}};

static void mb_hmac_state(uint8_t *state, unsigned hash, const uint8_t *key, size_t key_len, uint8_t pad)
{
    uint8_t block[128];
    memset(block, pad, sizeof block);
    for (size_t i = 0; i < key_len; i++)
        block[i] ^= key[i];
    if (hash == MB_HMAC_SHA1)
        IMB_SHA1_ONE_BLOCK(mb_manager, block, state);
    else if (hash == MB_HMAC_SHA256)
        IMB_SHA256_ONE_BLOCK(mb_manager, block, state);
    else if (hash == MB_HMAC_SHA384)
        IMB_SHA384_ONE_BLOCK(mb_manager, block, state);
    else
        IMB_SHA512_ONE_BLOCK(mb_manager, block, state);
    OPENSSL_cleanse(block, sizeof block);
}

/* The keys of one SA. An HMAC key is never longer than a block in ESP. mb_start() said yes before. */
static void mb_cbc_expand(struct mb_cbc_key *key, const uint8_t *cipher_key, unsigned bits, unsigned hash,
                          const uint8_t *hmac_key, size_t hmac_key_len, unsigned icv_len)
{
    key->key_len = bits / 8;
    key->hash = hash;
    key->icv_len = icv_len;
    if (bits == 128)
        IMB_AES_KEYEXP_128(mb_manager, cipher_key, key->encrypt, key->decrypt);
    else if (bits == 192)
        IMB_AES_KEYEXP_192(mb_manager, cipher_key, key->encrypt, key->decrypt);
    else
        IMB_AES_KEYEXP_256(mb_manager, cipher_key, key->encrypt, key->decrypt);
    mb_hmac_state(key->inner, hash, hmac_key, hmac_key_len, 0x36);
    mb_hmac_state(key->outer, hash, hmac_key, hmac_key_len, 0x5C);
}

/* A manager for one thread, NULL if there is no memory. */
static void *mb_jobs_new(void)
{
    IMB_ARCH arch;
    IMB_MGR *manager = alloc_mb_mgr(0);
    if (manager)
        init_mb_mgr_auto(manager, &arch);
    return manager;
}

static void mb_jobs_free(void *manager)
{
    free_mb_mgr((IMB_MGR *)manager);
}

/* What a job that failed leaves must not be sent or believed: the plain text of a packet to be sealed is wiped here with
 * its SPI, by which its owner knows it, and the ICV of one that is opened is not written. Returns 1 if it failed. */
static uint32_t mb_job_ended(const IMB_JOB *job)
{
    if (job->status == IMB_STATUS_COMPLETED)
        return 0;
    if (job->cipher_direction == IMB_DIR_ENCRYPT)
        memset(job->dst - CBC_HEADER, 0, CBC_HEADER + job->msg_len_to_cipher_in_bytes);
    return 1;
}

static uint32_t mb_job_submit(IMB_MGR *manager, const struct mb_cbc_key *key, IMB_JOB *job, const uint8_t *esp,
                              uint32_t length, uint8_t *icv)
{
    uint32_t failed = 0;
    job->cipher_mode = IMB_CIPHER_CBC;
    job->enc_keys = key->encrypt;
    job->dec_keys = key->decrypt;
    job->key_len_in_bytes = key->key_len;
    job->src = esp;
    job->iv_len_in_bytes = CBC_BLOCK;
    job->hash_alg = mb_hmacs[key->hash].algorithm;
    job->hash_start_src_offset_in_bytes = 0;
    job->msg_len_to_hash_in_bytes = length;
    job->auth_tag_output = icv;
    job->auth_tag_output_len_in_bytes = key->icv_len;
    job->u.HMAC._hashed_auth_key_xor_ipad = key->inner;
    job->u.HMAC._hashed_auth_key_xor_opad = key->outer;
    for (job = IMB_SUBMIT_JOB(manager); job; job = IMB_GET_COMPLETED_JOB(manager))
        failed += mb_job_ended(job);
    return failed;
}

/* Seals a packet where it stands: SPI, sequence number, a block that becomes the IV by being enciphered, then `length`
 * octets to be enciphered, then room for the ICV. `high` (0 or 4) octets where the ICV will be are authenticated too and
 * not sent (RFC 4303 section 2.2.1). Returns how many jobs failed that ended meanwhile. */
static uint32_t mb_cbc_seal(void *manager, const struct mb_cbc_key *key, uint8_t *esp, uint32_t length, uint32_t high)
{
    static const uint8_t zero[CBC_BLOCK];
    IMB_JOB *job = IMB_GET_NEXT_JOB((IMB_MGR *)manager);
    job->chain_order = IMB_ORDER_CIPHER_HASH;
    job->cipher_direction = IMB_DIR_ENCRYPT;
    job->iv = zero;
    job->dst = esp + CBC_HEADER;
    job->cipher_start_src_offset_in_bytes = CBC_HEADER;
    job->msg_len_to_cipher_in_bytes = CBC_BLOCK + length;
    length += CBC_HEADER + CBC_BLOCK;
    return mb_job_submit((IMB_MGR *)manager, key, job, esp, length + high, esp + length);
}

/* Deciphers the `length` octets behind the IV to plain, and writes the ICV that the packet ought to have. The caller
 * compares before it looks at plain. */
static void mb_cbc_open(void *manager, const struct mb_cbc_key *key, const uint8_t *esp, uint32_t length, uint32_t high,
                        uint8_t *plain, uint8_t *icv)
{
    IMB_JOB *job = IMB_GET_NEXT_JOB((IMB_MGR *)manager);
    job->chain_order = IMB_ORDER_HASH_CIPHER;
    job->cipher_direction = IMB_DIR_DECRYPT;
    job->iv = esp + CBC_HEADER;
    job->dst = plain;
    job->cipher_start_src_offset_in_bytes = CBC_HEADER + CBC_BLOCK;
    job->msg_len_to_cipher_in_bytes = length;
    mb_job_submit((IMB_MGR *)manager, key, job, esp, CBC_HEADER + CBC_BLOCK + length + high, icv);
}

/* Ends all jobs. Returns how many of those that ended now failed. */
static uint32_t mb_jobs_finish(void *manager)
{
    uint32_t failed = 0;
    IMB_JOB *job;
    while ((job = IMB_FLUSH_JOB((IMB_MGR *)manager)))
        failed += mb_job_ended(job);
    return failed;
}

#else /* !HAVE_IPSEC_MB: mb_start() says no and nothing here is called */

static void mb_cbc_expand(struct mb_cbc_key *key, const uint8_t *c, unsigned b, unsigned h, const uint8_t *k, size_t kl,
                          unsigned il)
{
    (void)key; (void)c; (void)b; (void)h; (void)k; (void)kl; (void)il;
}
static void *mb_jobs_new(void) { return NULL; }
static void mb_jobs_free(void *manager) { (void)manager; }
static uint32_t mb_cbc_seal(void *m, const struct mb_cbc_key *key, uint8_t *esp, uint32_t length, uint32_t high)
{
    (void)m; (void)key; (void)esp; (void)length; (void)high;
    return 1;
}
static void mb_cbc_open(void *m, const struct mb_cbc_key *key, const uint8_t *esp, uint32_t length, uint32_t high,
                        uint8_t *plain, uint8_t *icv)
{
    (void)m; (void)key; (void)esp; (void)length; (void)high; (void)plain; (void)icv;
}
static uint32_t mb_jobs_finish(void *m) { (void)m; return 0; }

#endif
#endif
