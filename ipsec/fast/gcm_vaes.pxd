# AES-GCM on 256-bit vectors (gcm_vaes.c): what it promises is said in gcm_vaes.h.
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t

cdef extern from "fast/gcm_vaes.h" nogil:
    # Opaque; must stand at an address that is a multiple of 64.
    struct gcm_vaes_key:
        pass

    int GCM_VAES_SPLIT
    int gcm_vaes_supported() noexcept
    void gcm_vaes_expand(gcm_vaes_key *key, const uint8_t *raw, unsigned bits) noexcept
    void gcm_vaes_seal(const gcm_vaes_key *key, const uint8_t *nonce, const uint8_t *aad, size_t aad_len,
                       const uint8_t *in_, size_t len, uint8_t *out, uint8_t *tag, unsigned tag_len) noexcept
    int gcm_vaes_open(const gcm_vaes_key *key, const uint8_t *nonce, const uint8_t *aad, size_t aad_len,
                      const uint8_t *in_, size_t len, uint8_t *out, const uint8_t *tag, unsigned tag_len) noexcept
