# Ciphers of the data path: one call shape for every AEAD and every provider, and cipher + MAC through libcrypto.
#
# A provider is chosen per suite by _providers.pyx after known-answer tests. Nothing here allocates per packet: contexts are
# made per SA and worker when the SA is added, because a libcrypto context serves one thread at a time.
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy, memset
from libc.stddef cimport size_t

cdef extern from "openssl/evp.h" nogil:
    ctypedef struct EVP_CIPHER_CTX:
        pass
    ctypedef struct EVP_CIPHER:
        pass
    ctypedef struct EVP_MAC:
        pass
    ctypedef struct EVP_MAC_CTX:
        pass
    ctypedef struct OSSL_PARAM:
        pass
    EVP_CIPHER_CTX *EVP_CIPHER_CTX_new()
    void EVP_CIPHER_CTX_free(EVP_CIPHER_CTX *)
    int EVP_CIPHER_CTX_set_padding(EVP_CIPHER_CTX *, int)
    int EVP_CIPHER_CTX_ctrl(EVP_CIPHER_CTX *, int, int, void *)
    int EVP_CipherInit_ex(EVP_CIPHER_CTX *, const EVP_CIPHER *, void *, const uint8_t *, const uint8_t *, int)
    int EVP_EncryptInit_ex(EVP_CIPHER_CTX *, const EVP_CIPHER *, void *, const uint8_t *, const uint8_t *)
    int EVP_EncryptUpdate(EVP_CIPHER_CTX *, uint8_t *, int *, const uint8_t *, int)
    int EVP_EncryptFinal_ex(EVP_CIPHER_CTX *, uint8_t *, int *)
    int EVP_DecryptInit_ex(EVP_CIPHER_CTX *, const EVP_CIPHER *, void *, const uint8_t *, const uint8_t *)
    int EVP_DecryptUpdate(EVP_CIPHER_CTX *, uint8_t *, int *, const uint8_t *, int)
    int EVP_DecryptFinal_ex(EVP_CIPHER_CTX *, uint8_t *, int *)
    EVP_CIPHER *EVP_CIPHER_fetch(void *, const char *, const char *)
    void EVP_CIPHER_free(EVP_CIPHER *)
    EVP_MAC *EVP_MAC_fetch(void *, const char *, const char *)
    void EVP_MAC_free(EVP_MAC *)
    EVP_MAC_CTX *EVP_MAC_CTX_new(EVP_MAC *)
    void EVP_MAC_CTX_free(EVP_MAC_CTX *)
    int EVP_MAC_init(EVP_MAC_CTX *, const uint8_t *, size_t, const OSSL_PARAM *)
    int EVP_MAC_update(EVP_MAC_CTX *, const uint8_t *, size_t)
    int EVP_MAC_final(EVP_MAC_CTX *, uint8_t *, size_t *, size_t)
    int EVP_CTRL_AEAD_SET_IVLEN
    int EVP_CTRL_AEAD_SET_TAG
    int EVP_CTRL_AEAD_GET_TAG

cdef extern from "openssl/params.h" nogil:
    OSSL_PARAM OSSL_PARAM_construct_utf8_string(const char *, char *, size_t)
    OSSL_PARAM OSSL_PARAM_construct_end()

cdef extern from "openssl/crypto.h" nogil:
    int CRYPTO_memcmp(const void *, const void *, size_t)
    void OPENSSL_cleanse(void *, size_t)
    const char *OpenSSL_version(int)
    int OPENSSL_VERSION

ctypedef int (*AeadSeal)(void *key, const uint8_t *nonce, const uint8_t *aad, uint32_t aad_len,
                         const uint8_t *plain, uint32_t length, uint8_t *out, uint8_t *tag, uint32_t tag_len) noexcept nogil
ctypedef int (*AeadOpen)(void *key, const uint8_t *nonce, const uint8_t *aad, uint32_t aad_len,
                         const uint8_t *sealed, uint32_t length, uint8_t *out, const uint8_t *tag, uint32_t tag_len) noexcept nogil

# --- libcrypto AEADs: the key is a context of one direction that was given the key when it was made ---

cdef inline int evp_aead_seal(void *key, const uint8_t *nonce, const uint8_t *aad, uint32_t aad_len, const uint8_t *plain,
                              uint32_t length, uint8_t *out, uint8_t *tag, uint32_t tag_len) noexcept nogil:
    cdef EVP_CIPHER_CTX *ctx = <EVP_CIPHER_CTX *>key
    cdef int n = 0
    if EVP_EncryptInit_ex(ctx, NULL, NULL, NULL, nonce) != 1:
        return -1
    if EVP_EncryptUpdate(ctx, NULL, &n, aad, <int>aad_len) != 1:
        return -1
    if length and EVP_EncryptUpdate(ctx, out, &n, plain, <int>length) != 1:
        return -1
    if EVP_EncryptFinal_ex(ctx, out, &n) != 1:
        return -1
    return 0 if EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_GET_TAG, <int>tag_len, tag) == 1 else -1

cdef inline int evp_aead_open(void *key, const uint8_t *nonce, const uint8_t *aad, uint32_t aad_len, const uint8_t *sealed,
                              uint32_t length, uint8_t *out, const uint8_t *tag, uint32_t tag_len) noexcept nogil:
    cdef EVP_CIPHER_CTX *ctx = <EVP_CIPHER_CTX *>key
    cdef int n = 0
    if EVP_DecryptInit_ex(ctx, NULL, NULL, NULL, nonce) != 1:
        return -1
    if EVP_DecryptUpdate(ctx, NULL, &n, aad, <int>aad_len) != 1:
        return -1
    if length and EVP_DecryptUpdate(ctx, out, &n, sealed, <int>length) != 1:
        return -1
    if EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_SET_TAG, <int>tag_len, <void *>tag) != 1:
        return -1
    return 0 if EVP_DecryptFinal_ex(ctx, out, &n) == 1 else -1

# CCM must know the payload length before the AAD, and the tag before the payload (SP 800-38C).
cdef inline int evp_ccm_seal(void *key, const uint8_t *nonce, const uint8_t *aad, uint32_t aad_len, const uint8_t *plain,
                             uint32_t length, uint8_t *out, uint8_t *tag, uint32_t tag_len) noexcept nogil:
    cdef EVP_CIPHER_CTX *ctx = <EVP_CIPHER_CTX *>key
    cdef int n = 0
    if EVP_EncryptInit_ex(ctx, NULL, NULL, NULL, nonce) != 1:
        return -1
    if EVP_EncryptUpdate(ctx, NULL, &n, NULL, <int>length) != 1:
        return -1
    if EVP_EncryptUpdate(ctx, NULL, &n, aad, <int>aad_len) != 1:
        return -1
    if EVP_EncryptUpdate(ctx, out, &n, plain, <int>length) != 1:
        return -1
    return 0 if EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_GET_TAG, <int>tag_len, tag) == 1 else -1

cdef inline int evp_ccm_open(void *key, const uint8_t *nonce, const uint8_t *aad, uint32_t aad_len, const uint8_t *sealed,
                             uint32_t length, uint8_t *out, const uint8_t *tag, uint32_t tag_len) noexcept nogil:
    cdef EVP_CIPHER_CTX *ctx = <EVP_CIPHER_CTX *>key
    cdef int n = 0
    if EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_SET_TAG, <int>tag_len, <void *>tag) != 1:
        return -1
    if EVP_DecryptInit_ex(ctx, NULL, NULL, NULL, nonce) != 1:
        return -1
    if EVP_DecryptUpdate(ctx, NULL, &n, NULL, <int>length) != 1:
        return -1
    if EVP_DecryptUpdate(ctx, NULL, &n, aad, <int>aad_len) != 1:
        return -1
    return 0 if EVP_DecryptUpdate(ctx, out, &n, sealed, <int>length) == 1 else -1

# --- benchmarks only: what the data path costs without a cipher. The engine refuses it outside of a benchmark. ---

cdef inline int copy_seal(void *key, const uint8_t *nonce, const uint8_t *aad, uint32_t aad_len, const uint8_t *plain,
                          uint32_t length, uint8_t *out, uint8_t *tag, uint32_t tag_len) noexcept nogil:
    memcpy(out, plain, length)
    memset(tag, 0, tag_len)
    return 0

cdef inline int copy_open(void *key, const uint8_t *nonce, const uint8_t *aad, uint32_t aad_len, const uint8_t *sealed,
                          uint32_t length, uint8_t *out, const uint8_t *tag, uint32_t tag_len) noexcept nogil:
    memcpy(out, sealed, length)
    return 0

# --- integrity algorithms that stand beside a cipher ---

# Keys and state of one MAC for one worker. HMAC is libcrypto's; AES-XCBC (RFC 3566) and AES-CMAC (RFC 4493) are built on
# its AES-CBC and differ in their keys alone.
cdef struct Mac:
    EVP_MAC_CTX *hmac
    EVP_CIPHER_CTX *cbc         # AES-128-CBC under K1, IV reset per message
    uint8_t k2[16]
    uint8_t k3[16]

# RFC 3566 section 4: CBC-MAC under K1; the last block is whitened with K2, or padded and whitened with K3. In RFC 4493 the
# same three are called K, K1 and K2.
cdef inline int xcbc_run(Mac *mac, const uint8_t *a, uint32_t a_len, const uint8_t *b, uint32_t b_len,
                         uint8_t *out, uint32_t out_len) noexcept nogil:
    cdef uint8_t zero[16]
    cdef uint8_t last[32]
    cdef uint8_t scratch[1024]
    cdef uint32_t total = a_len + b_len
    cdef uint32_t body, n, i, tail
    cdef int made = 0
    memset(zero, 0, 16)
    if EVP_EncryptInit_ex(mac.cbc, NULL, NULL, NULL, zero) != 1:
        return -1
    # everything before the last (possibly short) block; b is at most 4 octets, so it ends in the last two blocks
    body = 0
    if a_len > 16:
        body = ((a_len - 1) // 16) * 16
    i = 0
    while i < body:
        n = body - i if body - i < 1024 else 1024
        if EVP_EncryptUpdate(mac.cbc, scratch, &made, a + i, <int>n) != 1:
            return -1
        i += n
    tail = total - body
    memcpy(last, a + body, a_len - body)
    if b_len:
        memcpy(last + (a_len - body), b, b_len)
    if tail > 16:
        if EVP_EncryptUpdate(mac.cbc, scratch, &made, last, 16) != 1:
            return -1
        for i in range(tail - 16):
            last[i] = last[16 + i]
        tail -= 16
    if tail == 16:
        for i in range(16):
            last[i] ^= mac.k2[i]
    else:
        last[tail] = 0x80
        for i in range(tail + 1, 16):
            last[i] = 0
        for i in range(16):
            last[i] ^= mac.k3[i]
    if EVP_EncryptUpdate(mac.cbc, scratch, &made, last, 16) != 1 or made != 16:
        return -1
    memcpy(out, scratch, out_len)
    return 0

# MAC over two runs of octets (the second is the ESN high word, or empty), truncated to out_len.
cdef inline int mac_run(Mac *mac, const uint8_t *a, uint32_t a_len, const uint8_t *b, uint32_t b_len,
                        uint8_t *out, uint32_t out_len) noexcept nogil:
    cdef uint8_t full[64]
    cdef size_t n = 0
    if mac.hmac != NULL:
        if EVP_MAC_init(mac.hmac, NULL, 0, NULL) != 1 or EVP_MAC_update(mac.hmac, a, a_len) != 1:
            return -1
        if b_len and EVP_MAC_update(mac.hmac, b, b_len) != 1:
            return -1
        if EVP_MAC_final(mac.hmac, full, &n, 64) != 1 or n < out_len:
            return -1
        memcpy(out, full, out_len)
        return 0
    return xcbc_run(mac, a, a_len, b, b_len, out, out_len)
