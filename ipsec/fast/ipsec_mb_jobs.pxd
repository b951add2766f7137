# intel-ipsec-mb's job manager for AES-CBC with HMAC: see ipsec_mb_jobs.h.
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t

cdef extern from "fast/ipsec_mb_jobs.h" nogil:
    struct mb_cbc_key:
        pass

    int MB_HMAC_SHA1, MB_HMAC_SHA256, MB_HMAC_SHA384, MB_HMAC_SHA512
    void mb_cbc_expand(mb_cbc_key *key, const uint8_t *cipher_key, unsigned bits, unsigned hash, const uint8_t *hmac_key,
                       size_t hmac_key_len, unsigned icv_len) noexcept
    void *mb_jobs_new() noexcept
    void mb_jobs_free(void *manager) noexcept
    uint32_t mb_cbc_seal(void *manager, const mb_cbc_key *key, uint8_t *esp, uint32_t length, uint32_t high) noexcept
    void mb_cbc_open(void *manager, const mb_cbc_key *key, const uint8_t *esp, uint32_t length, uint32_t high, uint8_t *plain,
                     uint8_t *icv) noexcept
    uint32_t mb_jobs_finish(void *manager) noexcept
