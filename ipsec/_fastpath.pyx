# The compiled data path: what Python sees of it. The work is done by the inline functions of ipsec/fast/*.pxd.
"""ESP in compiled code: ``Engine`` (SAD, SPD, ESP), ``Pump`` (TUN and sockets), ``Batch`` (many packets in memory).

Imported through ``ipsec.esp.fast`` only. ``Engine`` is the fast twin of ``ipsec.esp.reference.ReferenceEngine``.
"""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.errno cimport ENOMEM
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy, memset

from ipsec.fast.atomic cimport add_u32, and_u32, fence, load_ptr, load_u32, load_u64, prefetch, store_ptr, store_u64
from ipsec.fast.coalesce cimport Coalescer, coalesce_init
from ipsec.fast.crypto cimport *
from ipsec.fast.drops cimport *
from ipsec.fast.gcm_vaes cimport gcm_vaes_expand, gcm_vaes_key, gcm_vaes_open, gcm_vaes_seal, gcm_vaes_supported
from ipsec.fast.inbound cimport INBOUND_ROOM, Source, inbound
from ipsec.fast.outbound cimport Sink, can_be_said, outbound_frame, outbound_reserve, protect_single, seal_packet
from ipsec.fast.packet cimport PacketInfo, be32, parse_packet
from ipsec.fast.pump cimport *
from ipsec.fast.replay cimport replay_words
from ipsec.fast.sa cimport *
from ipsec.fast.spd cimport (
    FragmentTable, SelectorPairC, SpdPolicy, SpdTable, flow_cache_free, flow_cache_new, policy_from_python,
    selector_from_python, spd_policy_free, spd_publish, spd_set_sa, spd_table_add, spd_table_delete, spd_table_free,
    spd_table_replace)
from ipsec.fast.worker cimport *

import os
from ipaddress import IPv4Address, IPv6Address

from ipsec.crypto.suites import Encr, Integ, all_esp_suites, esp_suite
from ipsec.errors import PolicyError, SaError, SuiteError
from ipsec.esp.drops import DropReason
from ipsec.esp.engine import Event, EventKind, Inbound, Outbound, SaStats, Sealed
from ipsec.esp.sa import Action, Direction

cdef extern from "<stdlib.h>" nogil:
    int posix_memalign(void **out, size_t alignment, size_t size)

cdef enum:
    VAES_KEY_SIZE = sizeof(gcm_vaes_key)

_REASONS = tuple(DropReason)

cdef void *aligned_zero(size_t size) except NULL:
    """Zeroed memory on a cache line of its own."""
    cdef void *p = NULL
    size = (size + 63) & ~<size_t>63
    if posix_memalign(&p, 64, size) != 0:
        raise MemoryError
    memset(p, 0, size)
    return p


# --- providers ----------------------------------------------------------------------------------------------------------

cdef int vaes_seal(void *key, const uint8_t *nonce, const uint8_t *aad, uint32_t aad_len, const uint8_t *plain,
                   uint32_t length, uint8_t *out, uint8_t *tag, uint32_t tag_len) noexcept nogil:
    gcm_vaes_seal(<gcm_vaes_key *>key, nonce, aad, aad_len, plain, length, out, tag, tag_len)
    return 0

cdef int vaes_open(void *key, const uint8_t *nonce, const uint8_t *aad, uint32_t aad_len, const uint8_t *sealed,
                   uint32_t length, uint8_t *out, const uint8_t *tag, uint32_t tag_len) noexcept nogil:
    return gcm_vaes_open(<gcm_vaes_key *>key, nonce, aad, aad_len, sealed, length, out, tag, tag_len)

# One way to run an AEAD. key_size 0: the key is a libcrypto context, one per worker.
cdef struct Cipher:
    AeadSeal seal
    AeadOpen open
    size_t key_size

PROVIDERS = ("vaes", "ipsec-mb", "libcrypto")
_GCM = frozenset((Encr.AES_GCM_8, Encr.AES_GCM_12, Encr.AES_GCM_16, Encr.AES_GCM_16_IIV))
_CCM = frozenset((Encr.AES_CCM_8, Encr.AES_CCM_12, Encr.AES_CCM_16))
_CHACHA = frozenset((Encr.CHACHA20_POLY1305, Encr.CHACHA20_POLY1305_IIV))

cdef bint cipher_for(object suite, str provider, Cipher *out) except -1:
    """Fill in how ``provider`` runs an AEAD suite; False if it cannot on this machine."""
    cdef int bits = suite.key_bits
    out.key_size = 0
    if provider == "copy":
        out.seal = copy_seal
        out.open = copy_open
        out.key_size = 64
        return True
    if provider == "libcrypto":
        out.seal = evp_ccm_seal if suite.encr in _CCM else evp_aead_seal
        out.open = evp_ccm_open if suite.encr in _CCM else evp_aead_open
        return True
    if provider == "vaes":
        if suite.encr not in _GCM or not gcm_vaes_supported():
            return False
        out.seal = vaes_seal
        out.open = vaes_open
        out.key_size = VAES_KEY_SIZE
        return True
    if not mb_start():
        return False
    if suite.encr in _GCM:
        out.key_size = mb_gcm_key_size()
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
        out.key_size = 32
        return True
    return False

cdef int expand_key(object suite, str provider, const uint8_t *key, void *out) except -1:
    """Write the expanded form of a cipher key for a provider with keys of its own."""
    if provider == "vaes":
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
    cdef uint8_t *made[3]
    cdef int n = 0
    cdef int i
    if suite.integ is not Integ.AES_XCBC_96:
        digest = {Integ.HMAC_SHA1_96: b"SHA1", Integ.HMAC_SHA2_256_128: b"SHA256", Integ.HMAC_SHA2_384_192: b"SHA384",
                  Integ.HMAC_SHA2_512_256: b"SHA512"}[suite.integ]
        algorithm = EVP_MAC_fetch(NULL, "HMAC", NULL)
        params[0] = OSSL_PARAM_construct_utf8_string("digest", digest, 0)
        params[1] = OSSL_PARAM_construct_end()
        if algorithm != NULL:
            mac.hmac = EVP_MAC_CTX_new(algorithm)
            EVP_MAC_free(algorithm)
        if mac.hmac == NULL or EVP_MAC_init(mac.hmac, key, suite.integ_key_len, params) != 1:
            raise SuiteError(f"{suite.name}: libcrypto refused the integrity key")
        return 0
    # RFC 3566 section 4: three keys, made by enciphering constants
    aes = EVP_CIPHER_fetch(NULL, "AES-128-CBC", NULL)
    ecb = EVP_CIPHER_CTX_new()
    mac.cbc = EVP_CIPHER_CTX_new()
    made[0] = k1
    made[1] = mac.k2
    made[2] = mac.k3
    try:
        for i in range(3):
            memset(block, 0, 16)
            if EVP_EncryptInit_ex(ecb, aes, NULL, key, block) != 1:
                raise SuiteError(f"{suite.name}: libcrypto refused the integrity key")
            memset(block, i + 1, 16)
            EVP_EncryptUpdate(ecb, made[i], &n, block, 16)
        memset(block, 0, 16)
        if EVP_EncryptInit_ex(mac.cbc, aes, NULL, k1, block) != 1:
            raise SuiteError(f"{suite.name}: libcrypto refused the integrity key")
        EVP_CIPHER_CTX_set_padding(mac.cbc, 0)
    finally:
        OPENSSL_cleanse(k1, 16)
        EVP_CIPHER_CTX_free(ecb)
        EVP_CIPHER_free(aes)
    return 0

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
                    memcpy(nonce + 8, &i, 4)
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
    other = AeadKey(suite, "libcrypto", fields[0])
    for length in (*range(0, 520, 13), 1023, 1408, 2048, 9001):
        plain = bytes(i * 7 & 255 for i in range(length))
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

    Suites that are not AEADs, and CCM and GMAC, are libcrypto's.
    """
    if suite.encr not in _GCM and suite.encr not in _CHACHA:
        return "copy" if wanted == "copy" and suite.aead and suite.encr in _CCM else "libcrypto"
    if wanted == "copy":
        return wanted
    if wanted not in ("auto", *PROVIDERS):
        raise SuiteError(f"crypto provider {wanted!r} is none of auto, {', '.join(PROVIDERS)}")
    cache_key = (suite.encr in _CHACHA, suite.key_bits, wanted)
    if cache_key not in _chosen:
        usable = {}
        for provider in PROVIDERS if wanted == "auto" else (wanted, "libcrypto"):
            if provider in usable or not self_test(suite, provider):
                continue
            key = AeadKey(suite, provider, bytes(range(suite.encr_key_len)))
            usable[provider] = min(key.time_ns(1408, 64) for _ in range(5))
        if not usable:
            raise SuiteError(f"{suite.name}: no crypto provider gives the known answers")
        _chosen[cache_key] = min(usable, key=usable.get) if wanted == "auto" else next(iter(usable))
    return _chosen[cache_key]

def provider_versions():
    """Provider -> version text, or None if it is not usable on this machine."""
    return {
        "vaes": "built in" if gcm_vaes_supported() else None,
        "ipsec-mb": mb_version().decode() if mb_start() else None,
        "libcrypto": OpenSSL_version(OPENSSL_VERSION).decode(),
    }


# --- security associations ------------------------------------------------------------------------------------------------

cdef int endpoint_fill(Endpoint *e, object local, object remote, object encap, uint32_t path_mtu) except -1:
    cdef bytes packed = remote.packed
    cdef bytes source = local.packed
    cdef uint16_t family
    cdef uint16_t port = 0
    memset(e, 0, sizeof(Endpoint))
    e.version = remote.version
    e.encap = encap is not None
    if e.encap:
        port = encap[1]
    e.remote_port = port
    e.pin_source = not local.is_unspecified
    e.path_mtu = e.configured_mtu = path_mtu
    memcpy(e.remote, <const uint8_t *>packed, len(packed))
    memcpy(e.local, <const uint8_t *>source, len(source))
    family = <uint16_t>(AF_INET if e.version == 4 else AF_INET6)
    memcpy(e.address, &family, 2)
    e.address[2] = <uint8_t>(port >> 8)
    e.address[3] = <uint8_t>port
    memcpy(e.address + (4 if e.version == 4 else 8), e.remote, len(packed))
    e.address_len = 16 if e.version == 4 else 28
    return 0

cdef void sa_free(Sa *sa) noexcept:
    """Wipe the keys and give the memory back."""
    cdef uint32_t i
    for i in range(sa.workers):
        if sa.keys != NULL and sa.key_size == 0:
            EVP_CIPHER_CTX_free(<EVP_CIPHER_CTX *>sa.keys[i])
        if sa.macs != NULL:
            EVP_MAC_CTX_free(sa.macs[i].hmac)
            EVP_CIPHER_CTX_free(sa.macs[i].cbc)
    if sa.macs != NULL:
        OPENSSL_cleanse(sa.macs, sa.workers * sizeof(Mac))
        free(sa.macs)
    free(sa.keys)
    free(sa.endpoint)
    OPENSSL_cleanse(sa, sa.size)
    free(sa)

cdef int sa_keys(Sa *sa, object params, str provider, const Cipher *cipher) except -1:
    """Expand the keys of an SA, once or for each worker."""
    cdef bytes encr_key = params.encr_key
    cdef bytes integ_key = params.integ_key
    cdef const uint8_t *key = encr_key
    cdef object suite = params.suite
    cdef uint32_t i
    sa.salt_len = suite.salt_len
    memcpy(sa.salt, key + <uint32_t>suite.encr_key_len, sa.salt_len)
    if cipher.key_size:
        expand_key(suite, provider, key, sa_key(sa))
    elif sa.kind != KIND_NULL:
        sa.keys = <void **>calloc(sa.workers, sizeof(void *))
        if sa.keys == NULL:
            raise MemoryError
        for i in range(sa.workers):
            sa.keys[i] = evp_context(suite, key, sa.direction == DIRECTION_OUT)
    if not suite.aead:
        sa.macs = <Mac *>calloc(sa.workers, sizeof(Mac))
        if sa.macs == NULL:
            raise MemoryError
        for i in range(sa.workers):
            mac_start(suite, integ_key, &sa.macs[i])
    return 0

cdef void sa_limit(Sa *sa) noexcept:
    """Turn an outbound SA's limits on packets into limits on numbers: each packet takes one, so they are as exact."""
    cdef uint64_t top = 0xFFFFFFFFFFFFFFFFU if sa.esn else 0xFFFFFFFFU
    cdef bint narrower = sa.packets_hard != 0 and sa.packets_hard < top - sa.seq_start
    sa.seq_soft = top - (1 << 20)
    sa.packets_soft_seq = sa.seq_start + sa.packets_soft if sa.packets_soft else 0
    sa.seq_limit_is_lifetime = narrower
    store_u64(&sa.seq_limit, sa.seq_start + sa.packets_hard if narrower else top)

_KINDS = {
    Encr.NULL_AUTH_AES_GMAC: KIND_GMAC, Encr.AES_CBC: KIND_CBC, Encr.TRIPLE_DES_CBC: KIND_CBC, Encr.AES_CTR: KIND_CTR,
    Encr.NULL: KIND_NULL}

cdef Sa *sa_new(object params, uint32_t id, uint32_t workers, bint shared, str provider) except NULL:
    """An SA from its description; SuiteError or MemoryError leave nothing behind."""
    cdef Sa *sa
    cdef Cipher cipher
    cdef object suite = params.suite
    cdef object life = params.lifetime
    cdef uint32_t n = 0
    cdef size_t key_end, words_at, size
    cdef int kind = _KINDS.get(suite.encr, KIND_AEAD)
    memset(&cipher, 0, sizeof(cipher))
    if kind == KIND_AEAD and not cipher_for(suite, provider, &cipher):
        raise SuiteError(f"{suite.name}: provider {provider!r} is not there")
    # SA, expanded key, selectors and window in one piece: fewer pages and cache lines to find when many SAs take turns
    key_end = sa_size() + ((cipher.key_size + 63) & ~<size_t>63)
    words_at = key_end + (len(params.selectors) if params.direction is Direction.IN else 0) * sizeof(SelectorPairC)
    size = words_at
    if params.direction is Direction.IN and params.replay_window:
        size += 8 * <size_t>replay_words(params.replay_window)
    sa = <Sa *>aligned_zero(size)
    try:
        sa.size = size
        sa.key_size = <uint32_t>cipher.key_size
        sa.aead_seal = cipher.seal
        sa.aead_open = cipher.open
        sa.spi = params.spi
        sa.id = id
        sa.workers = workers
        sa.shared = shared
        sa.direction = params.direction
        sa.mode = params.mode
        sa.kind = kind
        sa.esn = params.esn
        sa.iv_len = suite.iv_len
        sa.icv_len = suite.icv_len
        sa.block = suite.block
        sa.df = params.df
        sa.copy_dscp = params.copy_dscp
        sa.copy_ecn = params.copy_ecn
        sa.follow_peer = params.follow_peer
        sa.tfc = params.tfc
        sa.reqid = params.reqid
        sa.bytes_soft = life.bytes_soft
        sa.bytes_hard = life.bytes_hard
        sa.packets_soft = life.packets_soft
        sa.packets_hard = life.packets_hard
        sa.endpoint = <Endpoint *>aligned_zero(sizeof(Endpoint))
        endpoint_fill(sa.endpoint, params.local, params.remote, params.encap, params.path_mtu)
        sa.endpoint.inner_mtu = sa_inner_mtu(sa, sa.endpoint)
        sa_keys(sa, params, provider, &cipher)
        if sa.direction == DIRECTION_OUT:
            sa.seq = sa.seq_start = params.initial_seq
            sa_limit(sa)
            return sa
        sa.replay.top = params.initial_seq
        sa.replay.window = params.replay_window
        if sa.replay.window:
            sa.replay.mask = replay_words(sa.replay.window) - 1
            sa.replay.words = <uint64_t *>(<uint8_t *>sa + words_at)
            if sa.replay.top:
                # what came before a takeover counts as seen
                memset(sa.replay.words, 0xFF, (<size_t>sa.replay.mask + 1) * 8)
                sa.replay.words[(sa.replay.top >> 6) & sa.replay.mask] >>= 63 - (sa.replay.top & 63)
        if params.selectors:
            sa.selectors = <SelectorPairC *>(<uint8_t *>sa + key_end)
            for pair in params.selectors:
                selector_from_python(pair, &sa.selectors[n])
                n += 1
            sa.selector_count = n
        return sa
    except BaseException:
        sa_free(sa)
        raise


# --- workers and tables ---------------------------------------------------------------------------------------------------

cdef Worker *worker_new(Shared *shared, uint32_t index) except NULL:
    cdef Worker *w = <Worker *>aligned_zero(sizeof(Worker))
    w.shared = shared
    w.index = index
    w.flows = flow_cache_new()
    w.fragments_in = <FragmentTable *>calloc(1, sizeof(FragmentTable))
    w.fragments_out = <FragmentTable *>calloc(1, sizeof(FragmentTable))
    w.scratch = <uint8_t *>aligned_zero(2 * SCRATCH)
    if w.flows == NULL or w.fragments_in == NULL or w.fragments_out == NULL:
        worker_free(w)
        raise MemoryError
    return w

cdef void worker_free(Worker *w) noexcept:
    flow_cache_free(w.flows)
    free(w.fragments_in)
    free(w.fragments_out)
    free(w.scratch)
    free(w)

cdef SadTable *sad_new(uint32_t size) except NULL:
    cdef SadTable *table = <SadTable *>calloc(1, sizeof(SadTable) + size * sizeof(SadEntry))
    if table == NULL:
        raise MemoryError
    table.mask = size - 1
    return table

cdef void sad_insert(SadTable *table, uint32_t spi, Sa *sa) noexcept:
    """Publish an SA in a table that has room: the SA before the SPI, so that a reader who sees one sees the other."""
    cdef uint64_t i = sad_hash(spi) & table.mask
    while table.entries[i].spi != 0 and table.entries[i].spi != spi:
        i = (i + 1) & table.mask
    store_ptr(&table.entries[i].sa, sa)
    if table.entries[i].spi == 0:
        table.used += 1
        store_u64(&table.entries[i].spi, spi)

cdef enum Retired:
    RETIRED_MEMORY = 0
    RETIRED_SA = 1
    RETIRED_SPD = 2

# Collects what a library call produces. Datagrams lie in one buffer, one after the other.
cdef struct Collector:
    uint8_t *data
    size_t room
    size_t used
    uint32_t count
    uint32_t lengths[2048]
    Sa *sas[2048]
    uint8_t tos[2048]
    uint8_t df[2048]
    uint8_t *reply
    uint32_t reply_length
    uint32_t clear_length

cdef uint8_t *collect_room(void *owner, uint32_t length) noexcept nogil:
    cdef Collector *c = <Collector *>owner
    if c.used + length > c.room or c.count == 2048:
        return NULL
    return c.data + c.used

cdef void collect_sealed(void *owner, Sa *sa, Endpoint *endpoint, uint32_t length, uint8_t tos, bint df) noexcept nogil:
    cdef Collector *c = <Collector *>owner
    c.lengths[c.count] = length
    c.sas[c.count] = sa
    c.tos[c.count] = tos
    c.df[c.count] = df
    c.count += 1
    c.used += length

cdef void collect_reply(void *owner, uint8_t *packet, uint32_t length) noexcept nogil:
    cdef Collector *c = <Collector *>owner
    memcpy(c.reply, packet, length)
    c.reply_length = length

cdef int collect_clear(void *owner, uint8_t *packet, const PacketInfo *info) noexcept nogil:
    (<Collector *>owner).clear_length = info.length
    return 0

# --- batches ---------------------------------------------------------------------------------------------------------------

cdef enum:
    BATCH_HEAD = 128       # in front of each packet: room for what transport mode puts back, and a cache line

# Where the packets of a batch lie. `current` is the slot that is being written.
cdef struct BatchState:
    uint8_t *data
    size_t stride
    uint32_t *lengths
    uint32_t *starts
    uint32_t count
    uint32_t size
    uint32_t current

cdef inline uint8_t *batch_slot(BatchState *b, uint32_t i) noexcept nogil:
    return b.data + <size_t>i * b.stride + b.starts[i]

cdef uint8_t *batch_room(void *owner, uint32_t length) noexcept nogil:
    cdef BatchState *b = <BatchState *>owner
    if length > b.size:
        return NULL
    b.starts[b.current] = BATCH_HEAD
    return batch_slot(b, b.current)

cdef void batch_sealed(void *owner, Sa *sa, Endpoint *endpoint, uint32_t length, uint8_t tos, bint df) noexcept nogil:
    (<BatchState *>owner).lengths[(<BatchState *>owner).current] = length

cdef class Batch:
    """``count`` slots for packets of up to ``size`` octets each, in one piece of memory that is reused."""

    cdef BatchState state
    cdef uint32_t slots

    def __cinit__(self, unsigned int count, unsigned int size):
        cdef BatchState *b = &self.state
        if not 1 <= count <= 1 << 20 or not 1 <= size <= 66000:
            raise ValueError("count must be in 1..1048576 and size in 1..66000")
        b.count = self.slots = count
        b.size = size
        # not a multiple of the page size, so that the slots do not all fall into the same cache sets
        b.stride = ((BATCH_HEAD + size + TRAILER_ROOM + 63) & ~<size_t>63) + 64
        b.data = <uint8_t *>aligned_zero(b.stride * count)
        b.lengths = <uint32_t *>calloc(count, 4)
        b.starts = <uint32_t *>calloc(count, 4)
        if b.lengths == NULL or b.starts == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.state.data)
        free(self.state.lengths)
        free(self.state.starts)

    @property
    def count(self):
        """How many slots are in use."""
        return self.state.count

    @property
    def size(self):
        """Octets that fit into a slot."""
        return self.state.size

    def load(self, packets):
        """Fill the slots with these packets; ``count`` becomes their number."""
        cdef bytes packet
        cdef uint32_t i = 0
        if not 1 <= len(packets) <= self.slots:
            raise ValueError(f"{len(packets)} packets do not fit into {self.slots} slots")
        for packet in packets:
            if len(packet) > self.state.size:
                raise ValueError(f"a packet of {len(packet)} octets does not fit into slots of {self.state.size}")
            self.state.starts[i] = BATCH_HEAD
            self.state.lengths[i] = <uint32_t>len(packet)
            memcpy(batch_slot(&self.state, i), <const uint8_t *>packet, len(packet))
            i += 1
        self.state.count = i

    def packets(self):
        """The packets, as bytes; empty ones were dropped."""
        cdef uint32_t i
        return [PyBytes_FromStringAndSize(<char *>batch_slot(&self.state, i), self.state.lengths[i])
                for i in range(self.state.count)]


cdef enum:
    COLLECT_ROOM = 1 << 18
    PACKET_ROOM = 65536 + 4096

cdef class Engine:
    """SAD, SPD and ESP (``ipsec.esp.engine.EspEngine``) in compiled code.

    ``provider`` is "auto" or one of ``PROVIDERS``; a suite that the provider lacks is libcrypto's. ``workers`` is how
    many pumps may run at once. ``icmp_source4`` and ``icmp_source6`` are the source addresses of ICMP errors (4 and 16
    octets); without them an error comes from the address that the packet was for.

    Calls hold the GIL; pumps run beside them without it. Packets may be sealed by a call while pumps run: sequence
    numbers are never given twice. Opening packets by a call while a pump runs needs ``workers`` > 1, which makes SAs
    take a lock; otherwise it is refused.
    """

    cdef Shared shared
    cdef Worker *workers[MAX_WORKERS + 1]
    cdef uint32_t running             # pumps that are at work
    cdef uint32_t worker_count        # of pumps; one more is for calls from Python
    cdef str provider
    cdef uint32_t next_sa
    cdef uint32_t next_policy
    cdef dict sas                     # id -> address of Sa
    cdef dict sa_params               # id -> (spi, direction, remote) under which it was added
    cdef dict inbound_ids             # spi -> id
    cdef dict outbound_ids            # (spi, remote) -> id
    cdef dict policies                # id -> address of SpdPolicy
    cdef dict policy_reqids           # reqid -> list of policy ids
    cdef dict sa_reqids               # reqid -> list of outbound SA ids, newest last
    cdef list retired
    cdef list pending
    cdef Collector *collector
    cdef uint8_t *packet

    def __cinit__(self, *, str provider="auto", unsigned int workers=1, bint mss_clamp=True,
                  icmp_source4=None, icmp_source6=None):
        cdef uint32_t i
        if provider == "copy":
            if os.environ.get("IPSEC_BENCH_NULL_CIPHER") != "1":
                raise SuiteError("provider 'copy' leaves packets in clear: it is for benchmarks, "
                                 "which set IPSEC_BENCH_NULL_CIPHER=1")
        elif provider not in ("auto", *PROVIDERS):
            raise SuiteError(f"crypto provider {provider!r} is none of auto, {', '.join(PROVIDERS)}")
        if not 1 <= workers <= MAX_WORKERS:
            raise ValueError(f"workers: {workers} is not in 1..{MAX_WORKERS}")
        self.provider = provider
        self.worker_count = workers
        self.shared.mss_clamp = mss_clamp
        self.set_icmp_sources(icmp_source4, icmp_source6)
        self.shared.sad = sad_new(64)
        self.shared.spd = spd_table_replace(NULL, NULL, 0)
        if self.shared.spd == NULL:
            raise MemoryError
        for i in range(workers + 1):
            self.workers[i] = worker_new(&self.shared, i)
        self.next_sa = 1
        self.next_policy = 1
        self.sas = {}
        self.sa_params = {}
        self.inbound_ids = {}
        self.outbound_ids = {}
        self.policies = {}
        self.policy_reqids = {}
        self.sa_reqids = {}
        self.retired = []
        self.pending = []

    def __dealloc__(self):
        cdef uint32_t i
        for kind, address, _ in self.retired or ():
            self.free_retired(kind, <void *><uintptr_t>address)
        for address in (self.sas or {}).values():
            sa_free(<Sa *><uintptr_t>address)
        for i in range(self.worker_count + 1):
            if self.workers[i] != NULL:
                worker_free(self.workers[i])
        spd_table_free(self.shared.spd)
        free(self.shared.sad)
        if self.collector != NULL:
            free(self.collector.data)
            free(self.collector.reply)
            free(self.collector)
        free(self.packet)

    def set_icmp_sources(self, icmp_source4, icmp_source6):
        """Change the source addresses of ICMP errors; None: the address that the packet was for."""
        for name, value, size in (("icmp_source4", icmp_source4, 4), ("icmp_source6", icmp_source6, 16)):
            if value is not None and len(value) != size:
                raise ValueError(f"{name} must have {size} octets, got {len(value)}")
        self.shared.has_source4 = 0
        self.shared.has_source6 = 0
        if icmp_source4 is not None:
            memcpy(self.shared.source4, <const uint8_t *><bytes>icmp_source4, 4)
            self.shared.has_source4 = 1
        if icmp_source6 is not None:
            memcpy(self.shared.source6, <const uint8_t *><bytes>icmp_source6, 16)
            self.shared.has_source6 = 1

    def providers(self):
        """Suite name -> provider that this engine uses for it."""
        return {suite.name: choose_provider(suite, self.provider) for suite in all_esp_suites()}

    # --- reclamation ---

    cdef void free_retired(self, int kind, void *p) noexcept:
        if kind == RETIRED_SA:
            sa_free(<Sa *>p)
        elif kind == RETIRED_SPD:
            spd_table_free(<SpdTable *>p)
        else:
            free(p)

    cdef int retire(self, int kind, void *p) except -1:
        """Free p once no worker can still be using it."""
        cdef uint32_t i
        fence()      # what was unpublished is seen before the epochs are read
        self.retired.append((kind, <uintptr_t>p, [load_u64(&self.workers[i].epoch) for i in range(self.worker_count + 1)]))
        self.collect()
        return 0

    cdef int collect(self) except -1:
        cdef uint32_t i
        while self.retired:
            kind, address, epochs = self.retired[0]
            for i in range(self.worker_count + 1):
                if epochs[i] & 1 and load_u64(&self.workers[i].epoch) == <uint64_t>epochs[i]:
                    return 0
            del self.retired[0]
            self.free_retired(kind, <void *><uintptr_t>address)
        return 0

    # --- SAD ---

    cdef Sa *sa_at(self, object id) except NULL:
        address = self.sas.get(id)
        if address is None:
            raise SaError(f"there is no SA with id {id}")
        return <Sa *><uintptr_t>address

    def add_sa(self, params):
        """Install an SA; its id. SaError if an inbound SA has that SPI, or an outbound one has (SPI, remote)."""
        cdef uint32_t id = self.next_sa
        cdef Sa *sa
        cdef SadTable *table
        cdef bint incoming = params.direction is Direction.IN
        index = self.inbound_ids if incoming else self.outbound_ids
        key = params.spi if incoming else (params.spi, params.remote)
        if key in index:
            raise SaError(f"there is an {'inbound' if incoming else 'outbound'} SA with SPI 0x{params.spi:08x} already")
        sa = sa_new(params, id, self.worker_count + 1, self.worker_count > 1,
                    choose_provider(params.suite, self.provider))
        if incoming:
            table = self.shared.sad
            if 2 * (table.used + 1) > table.mask + 1:
                self.sad_rebuild(len(self.inbound_ids) + 1)
            sad_insert(self.shared.sad, sa.spi, sa)
        else:
            self.sa_reqids.setdefault(params.reqid, []).append(id)
        self.next_sa += 1
        self.sas[id] = <uintptr_t>sa
        self.sa_params[id] = (params.direction, key, params.reqid, params.encap)
        index[key] = id
        if not incoming:
            self.point_policies(params.reqid)
        return id

    cdef int sad_rebuild(self, size_t live) except -1:
        """A table with room for twice the SAs there are, without what removed ones left behind."""
        cdef SadTable *old = self.shared.sad
        cdef uint32_t size = 64
        cdef SadTable *table
        cdef uint64_t i
        while size < 4 * live:
            size *= 2
        table = sad_new(size)
        for i in range(<uint64_t>old.mask + 1):
            if old.entries[i].spi and old.entries[i].sa != NULL:
                sad_insert(table, <uint32_t>old.entries[i].spi, old.entries[i].sa)
        store_ptr(&self.shared.sad, table)
        self.retire(RETIRED_MEMORY, old)
        return 0

    cdef int point_policies(self, object reqid) except -1:
        """Give the policies of a reqid the SA that was added last, or none."""
        cdef Sa *sa = NULL
        ids = self.sa_reqids.get(reqid)
        if ids:
            sa = self.sa_at(ids[len(ids) - 1])
        for policy in self.policy_reqids.get(reqid, ()):
            self.point_policy(policy, sa)
        return 0

    cdef void point_policy(self, object id, Sa *sa) noexcept:
        cdef SpdPolicy *policy = <SpdPolicy *><uintptr_t>self.policies[id]
        if sa != NULL:
            policy.acquired = 0
        spd_set_sa(policy, sa)

    def del_sa(self, id):
        """Remove an SA and wipe its keys. SaError if it is not there."""
        cdef Sa *sa = self.sa_at(id)
        cdef uint64_t i
        cdef SadTable *table = self.shared.sad
        direction, key, reqid, _ = self.sa_params.pop(id)
        sa.dead = 1
        if direction is Direction.IN:
            del self.inbound_ids[key]
            i = sad_hash(sa.spi) & table.mask
            while table.entries[i].spi != sa.spi:
                i = (i + 1) & table.mask
            store_ptr(&table.entries[i].sa, NULL)
        else:
            del self.outbound_ids[key]
            self.sa_reqids[reqid].remove(id)
            if not self.sa_reqids[reqid]:
                del self.sa_reqids[reqid]
            self.point_policies(reqid)
        del self.sas[id]
        self.retire(RETIRED_SA, sa)

    def update_sa(self, id, *, local, remote, encap, path_mtu):
        """Move an SA to other outer addresses in place: keys, counters and window stay."""
        cdef Sa *sa = self.sa_at(id)
        cdef Endpoint *old = sa.endpoint
        cdef Endpoint *e
        if local.version != remote.version:
            raise SaError(f"SA 0x{sa.spi:08x}: {local} and {remote} are of different families")
        if not 576 <= path_mtu <= 65535:
            raise SaError(f"SA 0x{sa.spi:08x}: path MTU {path_mtu} is not in 576..65535")
        direction, key, reqid, _ = self.sa_params[id]
        if direction is Direction.OUT and key != (sa.spi, remote):
            if (sa.spi, remote) in self.outbound_ids:
                raise SaError(f"there is an outbound SA with SPI 0x{sa.spi:08x} to {remote} already")
            del self.outbound_ids[key]
            key = (sa.spi, remote)
            self.outbound_ids[key] = id
        e = <Endpoint *>aligned_zero(sizeof(Endpoint))
        endpoint_fill(e, local, remote, encap, path_mtu)
        e.inner_mtu = sa_inner_mtu(sa, e)
        self.sa_params[id] = (direction, key, reqid, encap)
        store_ptr(&sa.endpoint, e)
        and_u32(&sa.told, ~<uint32_t>(1 << EVENT_MAPPING))
        self.retire(RETIRED_MEMORY, old)

    def set_lifetime(self, id, lifetime):
        """Other limits by volume from now on; what was counted stays, and both lifetime events may come again."""
        cdef Sa *sa = self.sa_at(id)
        sa.bytes_soft = lifetime.bytes_soft
        sa.bytes_hard = lifetime.bytes_hard
        sa.packets_soft = lifetime.packets_soft
        sa.packets_hard = lifetime.packets_hard
        and_u32(&sa.told, ~<uint32_t>(1 << EVENT_SOFT_LIFETIME | 1 << EVENT_HARD_LIFETIME))
        if sa.direction == DIRECTION_OUT:
            sa_limit(sa)

    def query_sa(self, id):
        """Counters of an SA (``SaStats``). SaError if it is not there."""
        cdef Sa *sa = self.sa_at(id)
        cdef Endpoint *e = sa.endpoint
        self.collect()
        remote = (IPv4Address if e.version == 4 else IPv6Address)(
            PyBytes_FromStringAndSize(<char *>e.remote, 4 if e.version == 4 else 16))
        encap = self.sa_params[id][3]
        return SaStats(
            packets=sa.packets, bytes=sa.bytes, last_use=sa.last_use_ns / 1e9 if sa.packets else None,
            seq=sa.seq if sa.direction == DIRECTION_OUT else sa.replay.top,
            drops={reason: sa.drops[<int>reason] for reason in _REASONS if sa.drops[<int>reason]},
            remote=remote, encap=(encap[0], e.remote_port) if encap is not None else None)

    # --- SPD ---

    cdef int publish_spd(self, SpdTable *table) except -1:
        cdef SpdTable *old = self.shared.spd
        if table == NULL:
            raise MemoryError
        spd_publish(&self.shared.spd, table)
        self.retire(RETIRED_SPD, old)
        return 0

    cdef int register_policy(self, SpdPolicy *policy) except -1:
        id = policy.id
        self.policies[id] = <uintptr_t>policy
        if policy.action == <int>Action.PROTECT:
            self.policy_reqids.setdefault(policy.reqid, []).append(id)
            ids = self.sa_reqids.get(policy.reqid)
            if ids:
                self.point_policy(id, self.sa_at(ids[len(ids) - 1]))
        return 0

    def add_policy(self, policy):
        """Add a policy; its id."""
        cdef SpdPolicy *added = policy_from_python(policy, self.next_policy)
        cdef SpdTable *table = spd_table_add(self.shared.spd, added)
        if table == NULL:
            spd_policy_free(added)
            raise MemoryError
        self.next_policy += 1
        self.register_policy(added)
        self.publish_spd(table)
        return added.id

    def set_policies(self, policies):
        """Replace the whole SPD at once; the ids, in the same order."""
        cdef SpdPolicy **array = <SpdPolicy **>calloc(len(policies) + 1, sizeof(SpdPolicy *))
        cdef SpdTable *table = NULL
        cdef uint32_t n = 0
        cdef uint32_t i
        if array == NULL:
            raise MemoryError
        try:
            for policy in policies:
                array[n] = policy_from_python(policy, self.next_policy + n)
                n += 1
            table = spd_table_replace(self.shared.spd, array, n)
            if table == NULL:
                raise MemoryError
            self.next_policy += n
            self.policies = {}
            self.policy_reqids = {}
            for i in range(n):
                self.register_policy(array[i])
            self.publish_spd(table)
            return [array[i].id for i in range(n)]
        finally:
            if table == NULL:
                for i in range(n):
                    spd_policy_free(array[i])
            free(array)

    def del_policy(self, id):
        """Remove a policy. PolicyError if it is not there."""
        cdef SpdPolicy *policy
        if id not in self.policies:
            raise PolicyError(f"there is no policy with id {id}")
        policy = <SpdPolicy *><uintptr_t>self.policies[id]
        self.publish_spd_without(policy)
        del self.policies[id]

    cdef int publish_spd_without(self, SpdPolicy *policy) except -1:
        cdef SpdTable *table = spd_table_delete(self.shared.spd, policy)
        id = policy.id
        if table == NULL:
            raise MemoryError
        if policy.action == <int>Action.PROTECT:
            self.policy_reqids[policy.reqid].remove(id)
            if not self.policy_reqids[policy.reqid]:
                del self.policy_reqids[policy.reqid]
        self.publish_spd(table)
        return 0

    # --- packets, one call each ---

    cdef int begin(self, Sink *sink, object now, object packet) except -1:
        """Make ready for one packet from Python: a copy that may be written to, and an empty collector."""
        cdef Collector *c = self.collector
        cdef bytes data = bytes(packet)
        if c == NULL:
            c = <Collector *>calloc(1, sizeof(Collector))
            if c == NULL:
                raise MemoryError
            self.collector = c
            c.data = <uint8_t *>aligned_zero(COLLECT_ROOM)
            c.reply = <uint8_t *>aligned_zero(2048)
            c.room = COLLECT_ROOM
            self.packet = <uint8_t *>aligned_zero(PACKET_ROOM)
        if len(data) > 65535:
            return 0
        c.used = 0
        c.count = 0
        c.reply_length = 0
        c.clear_length = 0
        sink.owner = c
        sink.room = collect_room
        sink.sealed = collect_sealed
        sink.reply = collect_reply
        sink.clear = collect_clear
        memcpy(self.packet, <const uint8_t *>data, len(data))
        self.workers[self.worker_count].now_ns = <uint64_t>(now * 1e9)
        return 1

    cdef tuple taken(self):
        """What the collector has, as Sealed values."""
        cdef Collector *c = self.collector
        cdef size_t at = 0
        cdef uint32_t i
        result = []
        for i in range(c.count):
            result.append(Sealed(PyBytes_FromStringAndSize(<char *>c.data + at, c.lengths[i]), c.sas[i].id, c.tos[i],
                                 c.df[i] != 0))
            at += c.lengths[i]
        return tuple(result)

    cdef object reason_since(self, list before):
        """The drop reason that was counted since ``before``."""
        cdef int i
        cdef Worker *w = self.workers[self.worker_count]
        for i in range(1, DROP_REASONS):
            if w.drops[i] != <uint64_t>before[i]:
                return _REASONS[i]
        return DropReason.NONE

    cdef list drop_counts(self):
        cdef int i
        return [self.workers[self.worker_count].drops[i] for i in range(DROP_REASONS)]

    def encapsulate(self, sa, packet, now):
        """Protect one IP packet with this SA, without asking the SPD, the MTU or the clamp."""
        cdef Sink sink
        cdef PacketInfo info
        cdef Sa *target = self.sa_at(sa)
        cdef Worker *w = self.workers[self.worker_count]
        if target.direction != DIRECTION_OUT:
            raise SaError(f"SA 0x{target.spi:08x} is not outbound")
        before = self.drop_counts()
        if not self.begin(&sink, now, packet) or parse_packet(self.packet, <uint32_t>len(packet), &info) != 0:
            drop(w, target, DROP_OUT_HDR_ERROR, 1)
            return DropReason.OUT_HDR_ERROR
        protect_single(w, &sink, target, self.packet, &info, False)
        return self.taken()[0] if self.collector.count else self.reason_since(before)

    def dummy(self, sa, length, now):
        """A dummy packet (next header 59) with ``length`` octets of payload (RFC 4303 section 2.6)."""
        cdef Sink sink
        cdef Sa *target = self.sa_at(sa)
        cdef Worker *w = self.workers[self.worker_count]
        cdef uint64_t seq
        if target.direction != DIRECTION_OUT:
            raise SaError(f"SA 0x{target.spi:08x} is not outbound")
        if length < 0:
            raise ValueError(f"a dummy packet cannot have {length} octets")
        before = self.drop_counts()
        if length > 65535 or not can_be_said(target, target.endpoint, length):
            drop(w, target, DROP_OUT_TOO_BIG, 1)
            return DropReason.OUT_TOO_BIG
        self.begin(&sink, now, bytes(length))
        if outbound_reserve(w, target, 1, 0, 0, &seq):
            seal_packet(w, &sink, target, target.endpoint, seq, self.packet, length, 59, 0, target.df != DF_CLEAR)
        return self.taken()[0] if self.collector.count else self.reason_since(before)

    def outbound(self, packet, now):
        """Everything RFC 4301 section 5.1 asks for a packet from the inside (``Outbound``)."""
        cdef Sink sink
        cdef Worker *w = self.workers[self.worker_count]
        cdef Collector *c
        before = self.drop_counts()
        if not self.begin(&sink, now, packet):
            drop(w, NULL, DROP_OUT_HDR_ERROR, 1)
            return Outbound(DropReason.OUT_HDR_ERROR)
        c = self.collector
        outbound_frame(w, self.shared.spd, &sink, NULL, self.packet, <uint32_t>len(packet))
        reason = self.reason_since(before)
        if c.clear_length:
            return Outbound(DropReason.NONE, clear=PyBytes_FromStringAndSize(<char *>self.packet, c.clear_length))
        reply = PyBytes_FromStringAndSize(<char *>c.reply, c.reply_length) if c.reply_length else None
        sealed = self.taken()
        # of the fragments of one packet, those that got through count
        return Outbound(DropReason.NONE if sealed else reason, sealed, reply)

    def inbound(self, datagram, now, *, tos=0, source=None):
        """Everything RFC 4301 section 5.2 asks for an ESP packet, SPI to ICV (``Inbound``)."""
        cdef Sink sink
        cdef Worker *w = self.workers[self.worker_count]
        cdef PacketInfo info
        cdef Sa *sa = NULL
        cdef Source origin
        cdef uint32_t reason
        cdef bytes address
        cdef bytes data = bytes(datagram)
        self.alone()
        self.begin(&sink, now, b"")
        if len(data) > 65535:
            drop(w, NULL, DROP_IN_BUFFER_ERROR, 1)
            return Inbound(DropReason.IN_BUFFER_ERROR)
        memset(&origin, 0, sizeof(origin))
        if source is not None:
            origin.version = source[0].version
            origin.port = source[1]
            address = source[0].packed
            memcpy(origin.address, <const uint8_t *>address, len(address))
        reason = inbound(w, self.shared.sad, data, <uint32_t>len(data), tos, &origin, self.packet, &info, &sa)
        if source is not None:
            self.drain_events()
        if reason:
            return Inbound(_REASONS[reason], b"", -1 if sa == NULL else sa.id)
        return Inbound(DropReason.NONE, PyBytes_FromStringAndSize(<char *>info.data, info.length), sa.id)

    # --- what happened ---

    cdef int alone(self) except -1:
        """Raise unless this call is the only one that may touch a replay window."""
        if load_u32(&self.running) and self.worker_count == 1:
            raise SaError("a pump is at work on this engine: opening packets beside it needs an engine with workers > 1")
        return 0

    cdef int drain_events(self) except -1:
        cdef uint32_t i
        cdef EventRing *ring
        cdef EventRecord *r
        for i in range(self.worker_count + 1):
            ring = &self.workers[i].events
            while ring.tail != load_u64(&ring.head):
                r = &ring.records[ring.tail & (EVENTS - 1)]
                source = None
                if r.kind == EVENT_MAPPING:
                    source = ((IPv4Address if r.version == 4 else IPv6Address)(
                        PyBytes_FromStringAndSize(<char *>r.address, 4 if r.version == 4 else 16)), r.port)
                event = Event(EventKind(r.kind), r.sa, r.value, source)
                store_u64(&ring.tail, ring.tail + 1)
                if r.kind == EVENT_MAPPING:
                    if not self.follow(event):
                        continue
                    # the newest is enough for each SA
                    self.pending = [e for e in self.pending if (e.kind, e.sa) != (event.kind, event.sa)]
                self.pending.append(event)
        return 0

    cdef bint follow(self, object event) except -1:
        """Give an inbound SA its peer's new address. False if the SA is gone."""
        cdef Sa *sa
        cdef Endpoint *e
        if event.sa not in self.sas:
            return False
        sa = self.sa_at(event.sa)
        e = sa.endpoint
        remote, port = event.source
        local = (IPv4Address if e.version == 4 else IPv6Address)(
            PyBytes_FromStringAndSize(<char *>e.local, 4 if e.version == 4 else 16))
        encap = self.sa_params[event.sa][3]
        self.update_sa(event.sa, local=local, remote=remote, encap=(encap[0], port) if e.encap else None,
                       path_mtu=e.path_mtu)
        return True

    def events(self):
        """What happened since the last call, oldest first of each worker."""
        self.drain_events()
        self.collect()
        pending, self.pending = self.pending, []
        return pending

    def drops(self):
        """All drops by reason, SAs removed meanwhile included."""
        cdef uint32_t i
        cdef int k
        cdef uint64_t total
        result = {}
        for k in range(1, DROP_REASONS):
            total = 0
            for i in range(self.worker_count + 1):
                total += self.workers[i].drops[k]
            if total:
                result[_REASONS[k]] = total
        return result

    def fragments_made(self):
        """Packets that fragmenting before protection added."""
        cdef uint32_t i
        cdef uint64_t total = 0
        for i in range(self.worker_count + 1):
            total += self.workers[i].fragments_made
        return total

    # --- packets, many in a call ---

    def encapsulate_batch(self, sa, Batch source, Batch out):
        """Protect packet i of ``source`` into slot i of ``out``; how many were not dropped (a dropped one has length 0).

        ``source`` is overwritten behind its packets. Raises ValueError if the slots of ``out`` are too small.
        """
        cdef Sa *target = self.sa_at(sa)
        cdef Worker *w = self.workers[self.worker_count]
        cdef Sink sink
        cdef PacketInfo info
        cdef uint32_t i
        cdef uint32_t done = 0
        cdef BatchState *a = &source.state
        cdef BatchState *b = &out.state
        if target.direction != DIRECTION_OUT:
            raise SaError(f"SA 0x{target.spi:08x} is not outbound")
        if out.slots < a.count or b.size < a.size + 128:
            raise ValueError("out needs as many slots as source, each at least 128 octets larger")
        sink.owner = b
        sink.room = batch_room
        sink.sealed = batch_sealed
        sink.reply = collect_reply
        sink.clear = collect_clear
        b.count = a.count
        w.now_ns = monotonic_ns()
        for i in range(a.count):
            b.current = i
            b.lengths[i] = 0
            if parse_packet(batch_slot(a, i), a.lengths[i], &info) != 0:
                drop(w, target, DROP_OUT_HDR_ERROR, 1)
            elif protect_single(w, &sink, target, batch_slot(a, i), &info, False):
                done += 1
        return done

    def decapsulate_batch(self, Batch source, Batch out):
        """Open ESP packet i of ``source`` into slot i of ``out``; how many were good (a dropped one has length 0)."""
        cdef Worker *w = self.workers[self.worker_count]
        cdef SadTable *sad = self.shared.sad
        cdef PacketInfo info
        cdef Sa *sa = NULL
        cdef uint32_t i
        cdef uint32_t done = 0
        cdef uint8_t *slot
        cdef BatchState *a = &source.state
        cdef BatchState *b = &out.state
        if out.slots < a.count or b.size < a.size:
            raise ValueError("out needs as many slots as source, each as large")
        b.count = a.count
        self.alone()
        w.now_ns = monotonic_ns()
        for i in range(a.count):
            if i + 9 < a.count:
                if a.lengths[i + 9] >= 4:
                    prefetch(sad_entry(sad, be32(batch_slot(a, i + 9))))
                sad_prefetch(sad, batch_slot(a, i + 6), a.lengths[i + 6])
                sad_prefetch_rest(sad, batch_slot(a, i + 3), a.lengths[i + 3])
            slot = b.data + <size_t>i * b.stride
            b.lengths[i] = 0
            b.starts[i] = BATCH_HEAD
            if inbound(w, sad, batch_slot(a, i), a.lengths[i], 0, NULL, slot + BATCH_HEAD - INBOUND_ROOM, &info,
                       &sa) == DROP_NONE:
                b.starts[i] = <uint32_t>(info.data - slot)
                b.lengths[i] = info.length
                done += 1
        return done


# --- the pump ----------------------------------------------------------------------------------------------------------------

_COUNTERS = (
    "tun_rx_frames", "tun_rx_packets", "tun_rx_bytes", "tun_tx_frames", "tun_tx_packets", "tun_tx_bytes",
    "net_rx_messages", "net_rx_datagrams", "net_rx_bytes", "net_rx_calls",
    "net_tx_messages", "net_tx_datagrams", "net_tx_bytes", "net_tx_calls",
    "bypass_tx_packets", "icmp_tx_packets", "keepalives", "control_datagrams", "control_lost",
    "gso_fallbacks", "tun_gso_fallbacks", "path_mtu_changes", "socket_full", "wakeups")

cdef class Pump:
    """Moves packets between one TUN queue and one set of sockets; the caller owns all descriptors, -1 is none.

    ``worker`` is this pump's number in its engine, 0 .. workers - 1; one pump is for one thread at a time.
    ``connected`` sockets have one peer (pairs of Unix sockets in memory): no addresses and no control data are used.
    ``read_raw`` is False for all but one pump of a gateway: every raw socket is given every packet.
    """

    cdef PumpState *p
    cdef readonly Engine engine
    cdef readonly int event_fd

    def __cinit__(self, Engine engine, unsigned int worker, *, int tun_fd, int udp4_fd=-1, int udp6_fd=-1,
                  int raw4_fd=-1, int raw6_fd=-1, int bypass4_fd=-1, int bypass6_fd=-1, bint vnet_hdr=False,
                  bint tun_tso=False, bint tun_uso=False, bint udp_gso=False, bint udp_gro=False,
                  bint coalesce_tcp=True, bint coalesce_udp=True, bint connected=False, read_raw=None,
                  unsigned int mark=0):
        cdef PumpState *p
        cdef int i
        if worker >= engine.worker_count:
            raise ValueError(f"worker {worker} is not in 0..{engine.worker_count - 1}")
        self.engine = engine
        self.event_fd = -1
        p = self.p = <PumpState *>aligned_zero(sizeof(PumpState))
        p.worker = engine.workers[worker]
        p.tun_fd = tun_fd
        p.sockets[UDP4] = udp4_fd
        p.sockets[UDP6] = udp6_fd
        p.sockets[RAW4] = raw4_fd
        p.sockets[RAW6] = raw6_fd
        p.bypass[0] = bypass4_fd
        p.bypass[1] = bypass6_fd
        p.mark = mark
        p.vnet_hdr = vnet_hdr
        p.udp_gso = udp_gso and not connected
        p.connected = connected
        p.read_raw = worker == 0 if read_raw is None else read_raw
        p.sink.owner = p
        p.sink.room = pump_room
        p.sink.sealed = pump_sealed
        p.sink.reply = pump_reply
        p.sink.clear = pump_clear
        p.frame = <uint8_t *>aligned_zero(FRAME_SIZE)
        p.train = <uint8_t *>aligned_zero(TRAIN_SIZE)
        p.out_control = <uint8_t *>aligned_zero(MESSAGES * CONTROL_SIZE)
        p.slots = <uint8_t *>aligned_zero(RX_WIDE * RX_SLOT)
        p.names = <uint8_t *>aligned_zero(RX_WIDE * 32)
        p.in_control = <uint8_t *>aligned_zero(RX_WIDE * CONTROL_SIZE)
        p.plain = <uint8_t *>aligned_zero(PLAIN_SIZE)
        p.inbox = <uint8_t *>aligned_zero(INBOX_SIZE)
        p.coalescer = <Coalescer *>aligned_zero(sizeof(Coalescer))
        coalesce_init(p.coalescer, vnet_hdr, coalesce_tcp and tun_tso, coalesce_udp and tun_uso)
        for i in range(RX_WIDE):
            p.in_iov[i].iov_base = p.slots + <size_t>i * RX_SLOT
            p.in_iov[i].iov_len = RX_SLOT
            p.incoming[i].msg_hdr.msg_name = p.names + i * 32
            p.incoming[i].msg_hdr.msg_iov = &p.in_iov[i]
            p.incoming[i].msg_hdr.msg_iovlen = 1
            p.incoming[i].msg_hdr.msg_control = p.in_control + i * CONTROL_SIZE
        self.event_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        p.event_fd = self.event_fd

    def __dealloc__(self):
        cdef PumpState *p = self.p
        if self.event_fd >= 0:
            os.close(self.event_fd)
        if p != NULL:
            for memory in (<uintptr_t>p.frame, <uintptr_t>p.train, <uintptr_t>p.out_control, <uintptr_t>p.slots,
                           <uintptr_t>p.names, <uintptr_t>p.in_control, <uintptr_t>p.plain, <uintptr_t>p.inbox,
                           <uintptr_t>p.coalescer, <uintptr_t>p):
                free(<void *><uintptr_t>memory)

    def run_tun(self, unsigned int budget=64):
        """Read the TUN device up to ``budget`` times. Bits: 1 more is waiting, 2 a socket is full, 4 the device is gone."""
        cdef int result
        add_u32(&self.engine.running, 1)
        with nogil:
            result = pump_tun(self.p, budget)
        add_u32(&self.engine.running, <uint32_t>-1)
        return result

    def run_sockets(self, unsigned int budget=16):
        """Receive from each socket up to ``budget`` times. Bits: 1 more is waiting, 4 the device is gone."""
        cdef int result = 0
        cdef int i
        add_u32(&self.engine.running, 1)
        with nogil:
            for i in range(SOCKETS):
                if self.p.sockets[i] >= 0 and (i < RAW4 or self.p.read_raw):
                    result |= pump_socket(self.p, i, budget)
        add_u32(&self.engine.running, <uint32_t>-1)
        return result

    def run_forever(self, int stop_fd, unsigned int busy_poll_us=0):
        """A worker thread: run without the GIL until ``stop_fd`` becomes readable."""
        add_u32(&self.engine.running, 1)
        with nogil:
            pump_forever(self.p, stop_fd, <uint64_t>busy_poll_us * 1000)
        add_u32(&self.engine.running, <uint32_t>-1)

    def blocked_fd(self):
        """The socket that had no room for the last message, or -1."""
        return self.p.sockets[self.p.blocked - 1] if self.p.blocked else -1

    def datagrams(self):
        """What is not ESP, oldest first: (data, (source address, port) or None, local address or None, descriptor)."""
        cdef PumpState *p = self.p
        cdef InboxRecord *r
        cdef uint64_t at
        cdef uint64_t head = load_u64(&p.inbox_head)
        result = []
        while p.inbox_tail != head:
            at = p.inbox_tail % INBOX_SIZE
            r = <InboxRecord *>(p.inbox + at)
            if at + sizeof(InboxRecord) > INBOX_SIZE or r.size == 0:
                store_u64(&p.inbox_tail, p.inbox_tail + INBOX_SIZE - at)
                continue
            source = None
            if r.version:
                source = (str(_address(r.source, r.version)), r.port)
            local = str(_address(r.local, r.local_version)) if r.local_version else None
            result.append((PyBytes_FromStringAndSize(<char *>r + sizeof(InboxRecord), r.length), source, local, r.fd))
            store_u64(&p.inbox_tail, p.inbox_tail + r.size)
        return result

    def counters(self):
        """Counters since the pump was made, by name."""
        cdef int i
        return {_COUNTERS[i]: self.p.counters[i] for i in range(COUNTERS)}

    def offloads(self):
        """Which offloads are in use now, after what failed at run time was switched off."""
        return {"vnet_hdr": self.p.vnet_hdr != 0, "udp_gso": self.p.udp_gso != 0,
                "coalesce_tcp": self.p.coalescer.tcp_on != 0, "coalesce_udp": self.p.coalescer.udp_on != 0}

    def set_offload(self, str name, bint on):
        """Switch ``udp_gso``, ``coalesce_tcp`` or ``coalesce_udp`` while running. ValueError for any other name."""
        if name == "udp_gso":
            self.p.udp_gso = on and not self.p.connected
            self.p.gso_retry_ns = 0
        elif name == "coalesce_tcp":
            self.p.coalescer.tcp_on = on and self.p.vnet_hdr
        elif name == "coalesce_udp":
            self.p.coalescer.udp_on = on and self.p.vnet_hdr
        else:
            raise ValueError(f"offload {name!r} is none of udp_gso, coalesce_tcp, coalesce_udp")

cdef object _address(const uint8_t *p, int version):
    return (IPv4Address if version == 4 else IPv6Address)(PyBytes_FromStringAndSize(<const char *>p, 4 if version == 4 else 16))
