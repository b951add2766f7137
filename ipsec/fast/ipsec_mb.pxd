# intel-ipsec-mb's AEADs, in the call shape of crypto.pxd; where the library is missing, mb_start() is 0.
from libc.stdint cimport uint8_t, uint32_t

cdef extern from "fast/ipsec_mb.h" nogil:
    int mb_start()
    const char *mb_version()
    size_t mb_gcm_key_size()
    void mb_gcm_expand(void *out, const uint8_t *key, unsigned bits)
    int mb_gcm128_seal(void *, const uint8_t *, const uint8_t *, uint32_t, const uint8_t *, uint32_t, uint8_t *, uint8_t *, uint32_t) noexcept
    int mb_gcm192_seal(void *, const uint8_t *, const uint8_t *, uint32_t, const uint8_t *, uint32_t, uint8_t *, uint8_t *, uint32_t) noexcept
    int mb_gcm256_seal(void *, const uint8_t *, const uint8_t *, uint32_t, const uint8_t *, uint32_t, uint8_t *, uint8_t *, uint32_t) noexcept
    int mb_chacha_seal(void *, const uint8_t *, const uint8_t *, uint32_t, const uint8_t *, uint32_t, uint8_t *, uint8_t *, uint32_t) noexcept
    int mb_gcm128_open(void *, const uint8_t *, const uint8_t *, uint32_t, const uint8_t *, uint32_t, uint8_t *, const uint8_t *, uint32_t) noexcept
    int mb_gcm192_open(void *, const uint8_t *, const uint8_t *, uint32_t, const uint8_t *, uint32_t, uint8_t *, const uint8_t *, uint32_t) noexcept
    int mb_gcm256_open(void *, const uint8_t *, const uint8_t *, uint32_t, const uint8_t *, uint32_t, uint8_t *, const uint8_t *, uint32_t) noexcept
    int mb_chacha_open(void *, const uint8_t *, const uint8_t *, uint32_t, const uint8_t *, uint32_t, uint8_t *, const uint8_t *, uint32_t) noexcept
