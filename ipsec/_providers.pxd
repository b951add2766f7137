# How a suite's keys are set up with one of the providers; sa_new.pxd calls this for every SA.
from libc.stdint cimport uint8_t, uint16_t

from ipsec.fast.crypto cimport EVP_CIPHER_CTX, AeadOpen, AeadSeal, Mac
from ipsec.fast.jobs cimport JobCipher

# One way to run an AEAD. key_size 0: the key is a libcrypto context, one per worker.
cdef struct Cipher:
    AeadSeal seal
    AeadOpen open
    size_t key_size
    # which part of such a key a packet of n blocks needs: 16 * (n + 2) octets before key_split, and from there to key_end.
    # key_split 0: from its start to key_end.
    uint16_t key_split
    uint16_t key_end

cdef bint cipher_for(object suite, str provider, Cipher *out) except -1
cdef int expand_key(object suite, str provider, const uint8_t *key, void *out) except -1
cdef EVP_CIPHER_CTX *evp_context(object suite, const uint8_t *key, bint encrypt) except NULL
cdef int mac_start(object suite, const uint8_t *key, Mac *mac) except -1

# Ciphers that run for many packets at once: how (NULL: not this suite, or not this provider), their keys, and what each
# thread that runs them needs.
cdef const JobCipher *job_cipher_for(object suite, str provider) except? NULL
cdef void *job_key_new(object suite, const uint8_t *encr_key, const uint8_t *integ_key) except NULL
cdef size_t job_key_size() noexcept
cdef void *job_manager_new() except NULL
cdef void job_manager_free(void *manager) noexcept
