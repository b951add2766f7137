# AES-GCM on 512-bit vectors (gcm_avx512.c): what it promises is said in gcm_avx512.h.
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t

cdef extern from "fast/gcm_avx512.h" nogil:
    # Opaque; must stand at an address that is a multiple of 64.
    struct gcm_avx512_key:
        pass

    int GCM_AVX512_SPLIT
    int gcm_avx512_supported() noexcept
    void gcm_avx512_expand(gcm_avx512_key *key, const uint8_t *raw, unsigned bits) noexcept
    void gcm_avx512_seal(const gcm_avx512_key *key, const uint8_t *nonce, const uint8_t *aad, size_t aad_len,
                       const uint8_t *in_, size_t len, uint8_t *out, uint8_t *tag, unsigned tag_len) noexcept
    int gcm_avx512_open(const gcm_avx512_key *key, const uint8_t *nonce, const uint8_t *aad, size_t aad_len,
                      const uint8_t *in_, size_t len, uint8_t *out, const uint8_t *tag, unsigned tag_len) noexcept
