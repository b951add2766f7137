# Exponentiation modulo a prime for the MODP groups, by libcrypto and in constant time. Importer: ipsec.crypto.kex.
#
# The modulus and its Montgomery form are made once and only read afterwards, so threads may share a Modulus.
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t

cdef extern from "openssl/bn.h" nogil:
    ctypedef struct BIGNUM:
        pass
    ctypedef struct BN_CTX:
        pass
    ctypedef struct BN_MONT_CTX:
        pass
    BIGNUM *BN_secure_new()
    void BN_free(BIGNUM *)
    void BN_clear_free(BIGNUM *)
    BIGNUM *BN_bin2bn(const uint8_t *, int, BIGNUM *)
    int BN_bn2binpad(const BIGNUM *, uint8_t *, int)
    int BN_num_bytes(const BIGNUM *)
    int BN_is_odd(const BIGNUM *)
    int BN_cmp(const BIGNUM *, const BIGNUM *)
    void BN_set_flags(BIGNUM *, int)
    int BN_FLG_CONSTTIME
    BN_CTX *BN_CTX_new()
    BN_CTX *BN_CTX_secure_new()
    void BN_CTX_free(BN_CTX *)
    BN_MONT_CTX *BN_MONT_CTX_new()
    void BN_MONT_CTX_free(BN_MONT_CTX *)
    int BN_MONT_CTX_set(BN_MONT_CTX *, const BIGNUM *, BN_CTX *)
    int BN_mod_exp_mont_consttime(BIGNUM *, const BIGNUM *, const BIGNUM *, const BIGNUM *, BN_CTX *, BN_MONT_CTX *)


cdef class Modulus:
    """An odd modulus of at most 1024 octets, big-endian."""

    cdef BIGNUM *prime
    cdef BN_MONT_CTX *mont
    cdef readonly int size
    "octets of the modulus, and of every result"

    def __cinit__(self, bytes prime not None):
        cdef BN_CTX *ctx
        cdef int made
        if not 0 < len(prime) <= 1024:
            raise ValueError("a modulus has 1 to 1024 octets")
        self.prime = BN_bin2bn(prime, <int>len(prime), NULL)
        self.mont = BN_MONT_CTX_new()
        ctx = BN_CTX_new()
        made = (self.prime != NULL and self.mont != NULL and ctx != NULL and BN_is_odd(self.prime)
                and BN_MONT_CTX_set(self.mont, self.prime, ctx) == 1)
        BN_CTX_free(ctx)
        if not made:
            raise ValueError("the modulus must be odd")
        self.size = BN_num_bytes(self.prime)

    def __dealloc__(self):
        BN_MONT_CTX_free(self.mont)
        BN_free(self.prime)

    def power(self, bytes base not None, bytes exponent not None):
        """``base ** exponent`` modulo the prime, in ``size`` octets. The time depends on sizes alone; the GIL is free."""
        cdef bytes out = PyBytes_FromStringAndSize(NULL, self.size)
        cdef uint8_t *result = <uint8_t *>PyBytes_AS_STRING(out)
        cdef const uint8_t *b = base
        cdef const uint8_t *e = exponent
        cdef Py_ssize_t b_len = len(base)
        cdef Py_ssize_t e_len = len(exponent)
        cdef int done
        if not 0 < b_len <= self.size or not 0 < e_len <= self.size:
            raise ValueError("base and exponent have 1 octet up to the size of the modulus")
        with nogil:
            done = mod_exp(self.prime, self.mont, b, <int>b_len, e, <int>e_len, result, self.size)
        if done < 0:
            raise ValueError("the base is not below the modulus")
        if done == 0:
            raise MemoryError
        return out


cdef int mod_exp(const BIGNUM *prime, BN_MONT_CTX *mont, const uint8_t *base, int base_len, const uint8_t *exponent,
                 int exponent_len, uint8_t *out, int size) noexcept nogil:
    """1, or 0 without memory, or -1 if the base is not reduced. Wipes the exponent's copy and the result's."""
    cdef BN_CTX *ctx = BN_CTX_secure_new()
    cdef BIGNUM *b = BN_bin2bn(base, base_len, NULL)
    cdef BIGNUM *e = BN_bin2bn(exponent, exponent_len, BN_secure_new())
    cdef BIGNUM *r = BN_secure_new()
    cdef int done = 0
    if ctx != NULL and b != NULL and e != NULL and r != NULL:
        BN_set_flags(e, BN_FLG_CONSTTIME)
        if BN_cmp(b, prime) >= 0:
            done = -1
        elif BN_mod_exp_mont_consttime(r, b, e, prime, ctx, mont) == 1 and BN_bn2binpad(r, out, size) == size:
            done = 1
    BN_clear_free(r)
    BN_clear_free(e)
    BN_free(b)
    BN_CTX_free(ctx)
    return done
