# Everything that knows more than one provider is in this module, so that what passed its known answers is what runs.
"""The crypto providers: how each runs a suite, known answers, and the choice between them.

Imported through ``ipsec.esp.fast`` only.
"""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcmp, memcpy, memset

from ipsec.fast.clock cimport monotonic_ns
from ipsec.fast.crypto cimport *
from ipsec.fast.gcm_avx512 cimport (
    GCM_AVX512_SPLIT, gcm_avx512_expand, gcm_avx512_key, gcm_avx512_open, gcm_avx512_seal, gcm_avx512_supported)
from ipsec.fast.gcm_vaes cimport (
    GCM_VAES_SPLIT, gcm_vaes_expand, gcm_vaes_key, gcm_vaes_open, gcm_vaes_seal, gcm_vaes_supported)
from ipsec.fast.ipsec_mb cimport *
from ipsec.fast.ipsec_mb_jobs cimport *
from ipsec.fast.jobs cimport JobCipher
from ipsec.fast.memory cimport aligned_zero

from ipsec.crypto.suites import Encr, Integ
from ipsec.errors import SuiteError

cdef enum:
    AVX512_KEY_SIZE = sizeof(gcm_avx512_key)
    VAES_KEY_SIZE = sizeof(gcm_vaes_key)

cdef int avx512_seal(void *key, const uint8_t *nonce, const uint8_t *aad, uint32_t aad_len, const uint8_t *plain,
                     uint32_t length, uint8_t *out, uint8_t *tag, uint32_t tag_len) noexcept nogil:
    gcm_avx512_seal(<gcm_avx512_key *>key, nonce, aad, aad_len, plain, length, out, tag, tag_len)
    return 0

cdef int avx512_open(void *key, const uint8_t *nonce, const uint8_t *aad, uint32_t aad_len, const uint8_t *sealed,
                     uint32_t length, uint8_t *out, const uint8_t *tag, uint32_t tag_len) noexcept nogil:
    return gcm_avx512_open(<gcm_avx512_key *>key, nonce, aad, aad_len, sealed, length, out, tag, tag_len)

cdef int vaes_seal(void *key, const uint8_t *nonce, const uint8_t *aad, uint32_t aad_len, const uint8_t *plain,
                   uint32_t length, uint8_t *out, uint8_t *tag, uint32_t tag_len) noexcept nogil:
    gcm_vaes_seal(<gcm_vaes_key *>key, nonce, aad, aad_len, plain, length, out, tag, tag_len)
    return 0

cdef int vaes_open(void *key, const uint8_t *nonce, const uint8_t *aad, uint32_t aad_len, const uint8_t *sealed,
                   uint32_t length, uint8_t *out, const uint8_t *tag, uint32_t tag_len) noexcept nogil:
    return gcm_vaes_open(<gcm_vaes_key *>key, nonce, aad, aad_len, sealed, length, out, tag, tag_len)

PROVIDERS = ("avx512", "vaes", "ipsec-mb", "libcrypto")
# asked once: CPUID leaves a virtual machine, which takes four times as long as all else of a new SA
cdef bint HAVE_AVX512 = gcm_avx512_supported()
cdef bint HAVE_VAES = gcm_vaes_supported()
_GCM = frozenset((Encr.AES_GCM_8, Encr.AES_GCM_12, Encr.AES_GCM_16, Encr.AES_GCM_16_IIV))
_CCM = frozenset((Encr.AES_CCM_8, Encr.AES_CCM_12, Encr.AES_CCM_16))
_CHACHA = frozenset((Encr.CHACHA20_POLY1305, Encr.CHACHA20_POLY1305_IIV))

cdef bint cipher_for(object suite, str provider, Cipher *out) except -1:
    """Fill in how ``provider`` runs an AEAD suite; False if it cannot on this machine."""
    cdef int bits = suite.key_bits
    out.key_size = out.key_split = out.key_end = 0
    if provider == "copy":
        out.seal = copy_seal
        out.open = copy_open
        out.key_size = 64
        return True
    if provider == "libcrypto":
        out.seal = evp_ccm_seal if suite.encr in _CCM else evp_aead_seal
        out.open = evp_ccm_open if suite.encr in _CCM else evp_aead_open
        return True
    if provider == "avx512":
        if suite.encr not in _GCM or not HAVE_AVX512:
            return False
        out.seal = avx512_seal
        out.open = avx512_open
        out.key_size = AVX512_KEY_SIZE
        out.key_split = GCM_AVX512_SPLIT
        out.key_end = <uint16_t>(GCM_AVX512_SPLIT + 16 + 16 * (bits // 32 + 7))
        return True
    if provider == "vaes":
        if suite.encr not in _GCM or not HAVE_VAES:
            return False
        out.seal = vaes_seal
        out.open = vaes_open
        out.key_size = VAES_KEY_SIZE
        out.key_split = GCM_VAES_SPLIT
        out.key_end = <uint16_t>(GCM_VAES_SPLIT + 16 + 16 * (bits // 32 + 7))
        return True
    if not mb_start():
        return False
    if suite.encr in _GCM:
        out.key_size = mb_gcm_key_size()
        out.key_end = 832        # round keys, and the powers for 1500 octets
        if bits == 128:
            out.seal = mb_gcm128_seal
            out.open = mb_gcm128_open
        elif bits == 192:
            out.seal = mb_gcm192_seal
            out.open = mb_gcm192_open
        else:
            out.seal = mb_gcm256_seal
            out.open = mb_gcm256_open
        return True
    if suite.encr in _CHACHA:
        out.seal = mb_chacha_seal
        out.open = mb_chacha_open
        out.key_size = out.key_end = 32
        return True
    return False

cdef int expand_key(object suite, str provider, const uint8_t *key, void *out) except -1:
    """Write the expanded form of a cipher key for a provider with keys of its own."""
    if provider == "avx512":
        gcm_avx512_expand(<gcm_avx512_key *>out, key, suite.key_bits)
    elif provider == "vaes":
        gcm_vaes_expand(<gcm_vaes_key *>out, key, suite.key_bits)
    elif provider == "ipsec-mb" and suite.encr in _GCM:
        mb_gcm_expand(out, key, suite.key_bits)
    else:
        memcpy(out, key, suite.encr_key_len)
    return 0

cdef EVP_CIPHER_CTX *evp_context(object suite, const uint8_t *key, bint encrypt) except NULL:
    """A libcrypto context that holds the key of a suite, for one direction."""
    cdef EVP_CIPHER_CTX *ctx
    cdef EVP_CIPHER *cipher
    cdef str name
    cdef int ok
    cdef int bits = suite.key_bits
    cdef bint ccm = suite.encr in _CCM
    if suite.encr in _CHACHA:
        name = "ChaCha20-Poly1305"
    elif suite.encr is Encr.TRIPLE_DES_CBC:
        name = "DES-EDE3-CBC"
    elif suite.encr is Encr.AES_CBC:
        name = f"AES-{bits}-CBC"
    elif suite.encr is Encr.AES_CTR:
        name = f"AES-{bits}-CTR"
    else:
        name = f"AES-{bits}-{'CCM' if ccm else 'GCM'}"
    cipher = EVP_CIPHER_fetch(NULL, name.encode(), NULL)
    if cipher == NULL:
        raise SuiteError(f"{suite.name}: libcrypto on this machine has no {name}")
    ctx = EVP_CIPHER_CTX_new()
    # counter modes and GMAC only ever run forwards
    encrypt = encrypt or suite.encr in (Encr.AES_CTR, Encr.NULL_AUTH_AES_GMAC)
    ok = ctx != NULL and EVP_CipherInit_ex(ctx, cipher, NULL, NULL, NULL, encrypt) == 1
    if ok and suite.aead:
        ok = EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_SET_IVLEN, 11 if ccm else 12, NULL) == 1
        if ok and ccm:
            ok = EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_SET_TAG, suite.icv_len, NULL) == 1
    if ok:
        ok = EVP_CipherInit_ex(ctx, NULL, NULL, key, NULL, encrypt) == 1
    if ok and not suite.aead:
        EVP_CIPHER_CTX_set_padding(ctx, 0)
    EVP_CIPHER_free(cipher)
    if not ok:
        EVP_CIPHER_CTX_free(ctx)
        raise SuiteError(f"{suite.name}: libcrypto refused the key")
    return ctx

cdef int mac_start(object suite, const uint8_t *key, Mac *mac) except -1:
    """Set up the MAC of a suite for one worker."""
    cdef EVP_MAC *algorithm
    cdef EVP_CIPHER_CTX *ecb = NULL
    cdef EVP_CIPHER *aes
    cdef OSSL_PARAM params[2]
    cdef bytes digest
    cdef uint8_t k1[16]
    cdef uint8_t block[16]
    cdef uint8_t zero[16]
    cdef uint8_t *made[3]
    cdef int n = 0
    cdef int i
    if suite.integ not in (Integ.AES_XCBC_96, Integ.AES_CMAC_96):
        digest = {Integ.HMAC_SHA1_96: b"SHA1", Integ.HMAC_SHA2_256_128: b"SHA256", Integ.HMAC_SHA2_256_96: b"SHA256",
                  Integ.HMAC_SHA2_384_192: b"SHA384", Integ.HMAC_SHA2_512_256: b"SHA512"}[suite.integ]
        algorithm = EVP_MAC_fetch(NULL, "HMAC", NULL)
        params[0] = OSSL_PARAM_construct_utf8_string("digest", digest, 0)
        params[1] = OSSL_PARAM_construct_end()
        if algorithm != NULL:
            mac.hmac = EVP_MAC_CTX_new(algorithm)
            EVP_MAC_free(algorithm)
        if mac.hmac == NULL or EVP_MAC_init(mac.hmac, key, suite.integ_key_len, params) != 1:
            raise SuiteError(f"{suite.name}: libcrypto refused the integrity key")
        return 0
    aes = EVP_CIPHER_fetch(NULL, "AES-128-CBC", NULL)
    ecb = EVP_CIPHER_CTX_new()
    mac.cbc = EVP_CIPHER_CTX_new()
    made[0] = k1
    made[1] = mac.k2
    made[2] = mac.k3
    try:
        # with an IV of zero, one block of CBC is the block cipher
        memset(zero, 0, 16)
        for i in range(3):
            # RFC 3566 section 4: three keys, made by enciphering constants. RFC 4493 section 2.3: the key itself, and
            # zero enciphered and then doubled once and twice.
            memset(block, 0 if suite.integ is Integ.AES_CMAC_96 else i + 1, 16)
            if (EVP_EncryptInit_ex(ecb, aes, NULL, key, zero) != 1
                    or EVP_EncryptUpdate(ecb, made[i], &n, block, 16) != 1):
                raise SuiteError(f"{suite.name}: libcrypto refused the integrity key")
        if suite.integ is Integ.AES_CMAC_96:
            memcpy(k1, key, 16)
            cmac_double(mac.k2)
            cmac_double(mac.k3)
            cmac_double(mac.k3)
        if EVP_EncryptInit_ex(mac.cbc, aes, NULL, k1, zero) != 1:
            raise SuiteError(f"{suite.name}: libcrypto refused the integrity key")
        EVP_CIPHER_CTX_set_padding(mac.cbc, 0)
    finally:
        OPENSSL_cleanse(k1, 16)
        EVP_CIPHER_CTX_free(ecb)
        EVP_CIPHER_free(aes)
    return 0

cdef void cmac_double(uint8_t *block) noexcept nogil:
    """RFC 4493 section 2.3: times x in GF(2^128), without a branch on the key."""
    cdef uint8_t carry = block[0] >> 7
    cdef int i
    for i in range(15):
        block[i] = <uint8_t>(block[i] << 1 | block[i + 1] >> 7)
    block[15] = <uint8_t>(block[15] << 1) ^ <uint8_t>(0x87 * carry)


# --- ciphers that run for many packets at once: AES-CBC with HMAC, by ipsec-mb's job manager -------------------------------

cdef uint32_t cbc_jobs_seal(void *manager, const void *key, uint8_t *esp, uint32_t length, uint32_t high) noexcept nogil:
    return mb_cbc_seal(manager, <const mb_cbc_key *>key, esp, length, high)

cdef void cbc_jobs_open(void *manager, const void *key, const uint8_t *esp, uint32_t length, uint32_t high, uint8_t *plain,
                        uint8_t *icv) noexcept nogil:
    mb_cbc_open(manager, <const mb_cbc_key *>key, esp, length, high, plain, icv)

cdef uint32_t cbc_jobs_finish(void *manager) noexcept nogil:
    return mb_jobs_finish(manager)

cdef JobCipher cbc_jobs
cbc_jobs.seal = cbc_jobs_seal
cbc_jobs.open = cbc_jobs_open
cbc_jobs.finish = cbc_jobs_finish

# HMAC_SHA2_256_96 is libcrypto's: the job manager refuses tags of 12 octets of SHA-256
_JOB_HMACS = {Integ.HMAC_SHA1_96: MB_HMAC_SHA1, Integ.HMAC_SHA2_256_128: MB_HMAC_SHA256,
              Integ.HMAC_SHA2_384_192: MB_HMAC_SHA384, Integ.HMAC_SHA2_512_256: MB_HMAC_SHA512}

cdef const JobCipher *job_cipher_for(object suite, str provider) except? NULL:
    if provider == "ipsec-mb" and suite.encr is Encr.AES_CBC and suite.integ in _JOB_HMACS and mb_start():
        return &cbc_jobs
    return NULL

cdef void *job_key_new(object suite, const uint8_t *encr_key, const uint8_t *integ_key) except NULL:
    cdef void *key = aligned_zero(sizeof(mb_cbc_key))
    mb_cbc_expand(<mb_cbc_key *>key, encr_key, suite.key_bits, _JOB_HMACS[suite.integ], integ_key, suite.integ_key_len,
                  suite.icv_len)
    return key

cdef size_t job_key_size() noexcept:
    return sizeof(mb_cbc_key)

cdef void *job_manager_new() except NULL:
    cdef void *manager = mb_jobs_new()
    if manager == NULL:
        raise MemoryError
    return manager

cdef void job_manager_free(void *manager) noexcept:
    mb_jobs_free(manager)

cdef enum:
    TRIAL = 32               # packets at once
    TRIAL_STRIDE = 1600      # octets for one: header, IV, up to 1408 of payload, ICV

cdef class JobTrial:
    """A suite's cipher run by jobs and packet by packet, side by side. For a suite of which job_cipher_for says how."""

    cdef void *manager
    cdef void *key
    cdef EVP_CIPHER_CTX *encrypt
    cdef EVP_CIPHER_CTX *decrypt
    cdef Mac mac
    cdef uint32_t icv_len
    cdef uint8_t *esp
    cdef uint8_t *plain

    def __cinit__(self, suite):
        cdef bytes encr_key = bytes(range(suite.encr_key_len))
        cdef bytes integ_key = bytes(range(100, 100 + suite.integ_key_len))
        self.icv_len = suite.icv_len
        self.manager = job_manager_new()
        self.key = job_key_new(suite, encr_key, integ_key)
        self.encrypt = evp_context(suite, encr_key, True)
        self.decrypt = evp_context(suite, encr_key, False)
        mac_start(suite, integ_key, &self.mac)
        self.esp = <uint8_t *>aligned_zero(TRIAL * TRIAL_STRIDE)
        self.plain = <uint8_t *>aligned_zero(TRIAL * TRIAL_STRIDE)

    def __dealloc__(self):
        if self.manager != NULL:
            mb_jobs_free(self.manager)
        EVP_CIPHER_CTX_free(self.encrypt)
        EVP_CIPHER_CTX_free(self.decrypt)
        EVP_MAC_CTX_free(self.mac.hmac)
        free(self.key)
        free(self.esp)
        free(self.plain)

    cdef int seal_one(self, uint8_t *esp, uint32_t length, uint32_t high) except -1:
        cdef uint8_t zero[16]
        cdef uint8_t after[4]
        cdef uint8_t *end = esp + 24 + length
        cdef int n = 0
        memset(zero, 0, 16)
        memcpy(after, end, 4)
        if (EVP_EncryptInit_ex(self.encrypt, NULL, NULL, NULL, zero) != 1
                or EVP_EncryptUpdate(self.encrypt, esp + 8, &n, esp + 8, <int>(16 + length)) != 1
                or mac_run(&self.mac, esp, 24 + length, after, high, end, self.icv_len) != 0):
            raise SuiteError("libcrypto could not seal")
        return 0

    cdef int open_one(self, const uint8_t *esp, uint32_t length, uint8_t *plain, uint8_t *icv) except -1:
        cdef int n = 0
        if (mac_run(&self.mac, esp, 24 + length, esp, 0, icv, self.icv_len) != 0
                or EVP_DecryptInit_ex(self.decrypt, NULL, NULL, NULL, esp + 8) != 1
                or EVP_DecryptUpdate(self.decrypt, plain, &n, esp + 24, <int>length) != 1):
            raise SuiteError("libcrypto could not open")
        return 0

    cdef uint32_t length_of(self, uint32_t i, uint32_t least) noexcept:
        return least + 16 * ((7 * i) % 30)

    def agree(self):
        """Whether jobs give libcrypto's octets, for lengths of 16 to 1408, with and without 4 octets behind the packet."""
        cdef uint32_t i, high, length, least
        cdef uint8_t icv[TRIAL][64]
        cdef uint8_t same[TRIAL_STRIDE]
        cdef uint8_t right[64]
        cdef uint8_t *esp
        for least in (16, 480, 944):
            for high in (0, 4):
                for i in range(<uint32_t>(TRIAL * TRIAL_STRIDE)):
                    self.esp[i] = <uint8_t>((i * 2654435761U) >> 13)
                memcpy(self.plain, self.esp, TRIAL * TRIAL_STRIDE)
                for i in range(<uint32_t>TRIAL):
                    mb_cbc_seal(self.manager, <mb_cbc_key *>self.key, self.esp + i * TRIAL_STRIDE, self.length_of(i, least), high)
                if mb_jobs_finish(self.manager):
                    return False
                for i in range(<uint32_t>TRIAL):
                    self.seal_one(self.plain + i * TRIAL_STRIDE, self.length_of(i, least), high)
                if memcmp(self.plain, self.esp, TRIAL * TRIAL_STRIDE) != 0:
                    return False
        for i in range(<uint32_t>TRIAL):
            mb_cbc_open(self.manager, <mb_cbc_key *>self.key, self.esp + i * TRIAL_STRIDE, self.length_of(i, 944), 0,
                        self.plain + i * TRIAL_STRIDE, icv[i])
        if mb_jobs_finish(self.manager):
            return False
        for i in range(<uint32_t>TRIAL):
            esp = self.esp + i * TRIAL_STRIDE
            length = self.length_of(i, 944)
            self.open_one(esp, length, same, right)
            if memcmp(same, self.plain + i * TRIAL_STRIDE, length) != 0 or memcmp(icv[i], right, self.icv_len) != 0:
                return False
        return True

    def time_ns(self, bint jobs):
        """Nanoseconds to seal and open a packet of 1408 octets, one of TRIAL."""
        cdef uint32_t i
        cdef uint8_t icv[TRIAL][64]
        cdef uint8_t *esp
        cdef uint64_t begin = monotonic_ns()
        for i in range(<uint32_t>TRIAL):
            if jobs:
                mb_cbc_seal(self.manager, <mb_cbc_key *>self.key, self.esp + i * TRIAL_STRIDE, 1408, 0)
            else:
                self.seal_one(self.esp + i * TRIAL_STRIDE, 1408, 0)
        if jobs:
            mb_jobs_finish(self.manager)
        for i in range(<uint32_t>TRIAL):
            esp = self.esp + i * TRIAL_STRIDE
            if jobs:
                mb_cbc_open(self.manager, <mb_cbc_key *>self.key, esp, 1408, 0, self.plain + i * TRIAL_STRIDE, icv[i])
            else:
                self.open_one(esp, 1408, self.plain + i * TRIAL_STRIDE, icv[i])
        if jobs:
            mb_jobs_finish(self.manager)
        return <double>(monotonic_ns() - begin) / TRIAL

def choose_jobs(suite, str wanted):
    """ "ipsec-mb" if it can run this suite for many packets at once, gives libcrypto's octets and, with "auto", is faster."""
    if wanted not in ("auto", "ipsec-mb") or job_cipher_for(suite, "ipsec-mb") == NULL:
        return "libcrypto"
    key = ("jobs", suite.key_bits, suite.integ, wanted)
    if key not in _chosen:
        trial = JobTrial(suite)
        good = trial.agree()
        if good and wanted == "auto":
            good = min(trial.time_ns(True) for _ in range(4)) < min(trial.time_ns(False) for _ in range(4))
        _chosen[key] = "ipsec-mb" if good else "libcrypto"
    return _chosen[key]

# --- known answers -----------------------------------------------------------------------------------------------------

# Known answers: McGrew and Viega, "The Galois/Counter Mode of Operation", test cases 4, 10 and 16 (also in NIST's
# submission); RFC 8439 section 2.8.2. (key, nonce, aad, plain, sealed and tag)
_GCM_KEY = "feffe9928665731c6d6a8f9467308308"
_GCM_PLAIN = ("d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525"
              "b16aedf5aa0de657ba637b39")
_GCM_AAD = "feedfacedeadbeeffeedfacedeadbeefabaddad2"
_KNOWN_ANSWERS = {
    128: (_GCM_KEY, "cafebabefacedbaddecaf888", _GCM_AAD, _GCM_PLAIN,
          "42831ec2217774244b7221b784d0d49ce3aa212f2c02a4e035c17e2329aca12e21d514b25466931c7d8f6a5aac84aa051ba30b39"
          "6a0aac973d58e091" "5bc94fbc3221a5db94fae95ae7121a47"),
    192: (_GCM_KEY + _GCM_KEY[:16], "cafebabefacedbaddecaf888", _GCM_AAD, _GCM_PLAIN,
          "3980ca0b3c00e841eb06fac4872a2757859e1ceaa6efd984628593b40ca1e19c7d773d00c144c525ac619d18c84a3f4718e2448b"
          "2fe324d9ccda2710" "2519498e80f1478f37ba55bd6d27618c"),
    256: (_GCM_KEY * 2, "cafebabefacedbaddecaf888", _GCM_AAD, _GCM_PLAIN,
          "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b1056828838c5f61e63"
          "93ba7a0abcc9f662" "76fc6ece0f4e1768cddf8853bb2d551b"),
    0: ("808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f", "070000004041424344454647",
        "50515253c0c1c2c3c4c5c6c7", "4c616469657320616e642047656e746c656d656e206f662074686520636c617373206f66202739393a"
        "204966204920636f756c64206f6666657220796f75206f6e6c79206f6e652074697020666f7220746865206675747572652c2073756e"
        "73637265656e20776f756c642062652069742e",
        "d31a8d34648e60db7b86afbc53ef7ec2a4aded51296e08fea9e2b5a736ee62d63dbea45e8ca9671282fafb69da92728b1a71de0a9e06"
        "0b2905d6a5b67ecd3b3692ddbd7f2d778b8c9803aee328091b58fab324e4fad675945585808b4831d7bc3ff4def08e4b7a9de576d265"
        "86cec64b6116" "1ae10b594f09e26a7e902ecbd0600691"),
}

cdef class AeadKey:
    """An AEAD key with one provider, outside of any SA: for self-tests and for measuring the provider alone."""

    cdef Cipher cipher
    cdef void *seal_key
    cdef void *open_key
    cdef size_t size

    def __cinit__(self, suite, str provider, bytes key):
        if not suite.aead or suite.encr is Encr.NULL_AUTH_AES_GMAC:
            raise SuiteError(f"{suite.name} is not an AEAD")
        if len(key) != suite.encr_key_len:
            raise SuiteError(f"{suite.name}: cipher key must have {suite.encr_key_len} octets, got {len(key)}")
        if provider not in PROVIDERS and provider != "copy" or not cipher_for(suite, provider, &self.cipher):
            raise SuiteError(f"{suite.name}: provider {provider!r} is not there")
        self.size = self.cipher.key_size
        if self.size:
            self.seal_key = self.open_key = aligned_zero(self.size)
            expand_key(suite, provider, key, self.seal_key)
        else:
            self.seal_key = evp_context(suite, key, True)
            self.open_key = evp_context(suite, key, False)

    def __dealloc__(self):
        if self.size:
            OPENSSL_cleanse(self.seal_key, self.size)
            free(self.seal_key)
        else:
            EVP_CIPHER_CTX_free(<EVP_CIPHER_CTX *>self.seal_key)
            EVP_CIPHER_CTX_free(<EVP_CIPHER_CTX *>self.open_key)

    def seal(self, bytes nonce, bytes aad, bytes plain, unsigned int tag_len=16):
        """Ciphertext and tag."""
        cdef bytes out = PyBytes_FromStringAndSize(NULL, len(plain) + tag_len)
        cdef uint8_t *p = <uint8_t *>PyBytes_AS_STRING(out)
        if self.cipher.seal(self.seal_key, nonce, aad, <uint32_t>len(aad), plain, <uint32_t>len(plain), p,
                            p + len(plain), tag_len) != 0:
            raise SuiteError("the provider could not seal")
        return out

    def open(self, bytes nonce, bytes aad, bytes sealed, unsigned int tag_len=16):
        """Plaintext, or None if the tag is wrong."""
        cdef uint32_t n
        cdef bytes out
        cdef const uint8_t *p = sealed
        if <unsigned int>len(sealed) < tag_len:
            return None
        n = <uint32_t>len(sealed) - tag_len
        out = PyBytes_FromStringAndSize(NULL, n)
        if self.cipher.open(self.open_key, nonce, aad, <uint32_t>len(aad), p, n, <uint8_t *>PyBytes_AS_STRING(out),
                            p + n, tag_len) != 0:
            return None
        return out

    def time_ns(self, unsigned int size, unsigned int rounds, bint opening=False, unsigned int buffers=1):
        """Nanoseconds per call for ``size`` octets, over ``rounds`` calls in a row, sealing with a new nonce each.

        With ``buffers`` the calls go round that many inputs and outputs, as a batch of packets does.
        """
        cdef size_t stride = ((<size_t>size + 64 + 63) & ~<size_t>63) + 64
        cdef uint8_t *plain
        cdef uint8_t *sealed
        cdef uint8_t *a
        cdef uint8_t *b
        cdef uint8_t nonce[12]
        cdef uint8_t aad[8]
        cdef unsigned int i
        cdef unsigned int k = 0
        cdef uint64_t iv
        cdef uint64_t begin
        cdef int bad = 0
        if not 1 <= buffers <= 65536 or size > 65536:
            raise ValueError("buffers must be in 1..65536 and size at most 65536")
        plain = <uint8_t *>aligned_zero(2 * stride * buffers)
        sealed = plain + stride * buffers
        memset(nonce, 7, 12)
        memset(aad, 9, 8)
        with nogil:
            for i in range(buffers):
                self.cipher.seal(self.seal_key, nonce, aad, 8, plain, size, sealed + i * stride,
                                 sealed + i * stride + size, 16)
            begin = monotonic_ns()
            for i in range(rounds):
                a = plain + k * stride
                b = sealed + k * stride
                k = k + 1 if k + 1 < buffers else 0
                if opening:
                    bad |= self.cipher.open(self.open_key, nonce, aad, 8, b, size, a, b + size, 16)
                else:
                    iv = i
                    memcpy(nonce + 4, &iv, 8)     # one store, as in ESP
                    self.cipher.seal(self.seal_key, nonce, aad, 8, a, size, b, b + size, 16)
            begin = monotonic_ns() - begin
        free(plain)
        if bad:
            raise SuiteError("the provider could not open what it sealed")
        return <double>begin / rounds

def self_test(suite, str provider):
    """Whether a provider gives the known answer, and libcrypto's answers at lengths around its loops; None if absent."""
    cdef Cipher cipher
    if not cipher_for(suite, provider, &cipher):
        return None
    fields = [bytes.fromhex(x) for x in _KNOWN_ANSWERS[0 if suite.encr in _CHACHA else suite.key_bits]]
    key = AeadKey(suite, provider, fields[0])
    good = key.seal(*fields[1:4]) == fields[4] and key.open(fields[1], fields[2], fields[4]) == fields[3]
    if provider == "libcrypto":
        return good
    other = AeadKey(suite, "libcrypto", fields[0])
    octets = bytes(i * 7 & 255 for i in range(256)) * 36
    for length in (*range(0, 520, 13), 1023, 1408, 2048, 9001):
        plain = octets[:length]
        sealed = other.seal(fields[1], fields[2][:8], plain)
        last = len(sealed) - 1
        wrong = sealed[:last] + bytes((sealed[last] ^ 1,))
        good = (good and key.seal(fields[1], fields[2][:8], plain) == sealed
                and key.open(fields[1], fields[2][:8], sealed) == plain
                and key.open(fields[1], fields[2][:8], wrong) is None)
    return good

_chosen = {}

def choose_provider(suite, str wanted="auto"):
    """The provider for a suite: ``wanted`` if it can, else with "auto" the fastest one that passes its self-test.

    CCM, GMAC and suites that are not AEADs are libcrypto's, but for AES-CBC with HMAC where there are many packets.
    """
    if suite.encr is Encr.AES_CBC:
        return choose_jobs(suite, wanted)
    if suite.encr not in _GCM and suite.encr not in _CHACHA:
        return "copy" if wanted == "copy" and suite.aead and suite.encr in _CCM else "libcrypto"
    if wanted == "copy":
        return wanted
    if wanted not in ("auto", *PROVIDERS):
        raise SuiteError(f"crypto provider {wanted!r} is none of auto, {', '.join(PROVIDERS)}")
    cache_key = (suite.encr in _CHACHA, suite.key_bits, wanted)
    if cache_key not in _chosen:
        able = [provider for provider in (PROVIDERS if wanted == "auto" else dict.fromkeys((wanted, "libcrypto")))
                if self_test(suite, provider)]
        if not able:
            raise SuiteError(f"{suite.name}: no crypto provider gives the known answers")
        _chosen[cache_key] = fastest(suite, able) if wanted == "auto" else able[0]
    return _chosen[cache_key]

def fastest(suite, providers):
    """The provider that seals and opens a large and a small packet in the least time; about a millisecond.

    All take turns, and the least of several times counts, so that what else the machine does favours none.
    """
    keys = {provider: AeadKey(suite, provider, bytes(range(suite.encr_key_len))) for provider in providers}
    least = {}
    for _ in range(8):
        for provider, key in keys.items():
            for part in ((1408, False), (1408, True), (64, False), (64, True)):
                now = key.time_ns(part[0], 24, part[1])
                least[provider, part] = min(now, least.get((provider, part), now))
    return min(providers, key=lambda provider: sum(ns for (name, _), ns in least.items() if name == provider))

def provider_versions():
    """Provider -> version text, or None if it is not usable on this machine."""
    return {
        "avx512": "built in" if HAVE_AVX512 else None,
        "vaes": "built in" if HAVE_VAES else None,
        "ipsec-mb": mb_version().decode() if mb_start() else None,
        "libcrypto": OpenSSL_version(OPENSSL_VERSION).decode(),
    }
