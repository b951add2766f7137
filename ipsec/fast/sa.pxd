# A Security Association as the data path sees it, and ESP on a single packet: SPI to ICV and back (RFC 4303).
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from ipsec.fast.atomic cimport cas_u64, load_ptr, load_u64, pause, prefetch, store_u32, swap_u32
from ipsec.fast.crypto cimport (
    CRYPTO_memcmp, EVP_CIPHER_CTX, EVP_CIPHER_CTX_ctrl, EVP_CTRL_AEAD_GET_TAG, EVP_DecryptInit_ex,
    EVP_DecryptUpdate, EVP_EncryptFinal_ex, EVP_EncryptInit_ex, EVP_EncryptUpdate, AeadOpen, AeadSeal, Mac, mac_run)
from ipsec.fast.drops cimport DROP_REASONS
from ipsec.fast.packet cimport put32, put64
from ipsec.fast.replay cimport Replay
from ipsec.fast.selector cimport SELECT_PAIRS, Ipv4Pair, SelectorPairC

cdef enum Kind:
    KIND_AEAD = 0    # GCM, CCM, ChaCha20-Poly1305
    KIND_GMAC = 1
    KIND_CBC = 2     # with a MAC
    KIND_CTR = 3     # with a MAC
    KIND_NULL = 4    # with a MAC

cdef enum:
    ESP_HEADER = 8
    ESP_SHIFT = 16         # a datagram that begins here has its ciphertext (after 16 octets of header and IV) aligned
    TRAILER_ROOM = 300     # octets that may be written after a packet: 255 of padding, 2 of trailer, rounded up
    MODE_TUNNEL = 0
    MODE_TRANSPORT = 1
    DIRECTION_IN = 0
    DIRECTION_OUT = 1
    DF_COPY = 0
    DF_SET = 1
    DF_CLEAR = 2

# Where an SA's packets go. Replaced as a whole when the peer moves, so that a reader never sees half of two.
cdef struct Endpoint:
    uint8_t address[28]        # sockaddr_in or sockaddr_in6 of the peer
    uint32_t address_len
    uint8_t local[16]          # source address, 4 or 16 octets
    uint8_t remote[16]
    uint16_t remote_port       # UDP, 0 for raw ESP; host order
    uint8_t version            # outer
    uint8_t encap              # UDP
    uint8_t pin_source         # the source address is given, not left to routing
    uint32_t path_mtu
    uint32_t inner_mtu
    uint32_t configured_mtu
    uint64_t learned_until_ns  # path_mtu was learned from the network and holds until then; 0: it is the configured one

# In cache lines of 64 octets: with many SAs in turn, how many of them a packet touches is what it costs.
cdef struct Sa:
    # what every packet reads
    uint32_t spi
    uint8_t salt[4]
    uint8_t mode
    uint8_t kind
    uint8_t esn
    uint8_t iv_len
    uint8_t icv_len
    uint8_t block
    uint8_t salt_len
    uint8_t df
    uint8_t copy_dscp
    uint8_t copy_ecn
    uint8_t follow_peer
    uint8_t dead               # removed: let nothing more through
    uint8_t shared             # several workers may hold it: count atomically, take the lock inbound
    uint8_t limited            # there is a limit by volume
    uint8_t batched            # there is a job_cipher
    uint8_t selecting          # Selecting
    uint16_t key_size          # of an expanded key, which stands behind this struct; 0 for libcrypto contexts
    uint16_t key_split         # what sa_prefetch_rest wants of it: see Cipher
    uint16_t key_end
    uint8_t icmp               # inbound: ICMP errors are judged by what they quote, too
    uint8_t unused
    AeadOpen aead_open
    Endpoint *endpoint         # load with load_ptr
    uint32_t id
    uint32_t lock
    uint64_t last_use_ns
    # what every packet that is opened changes, and what is read beside it
    Replay replay
    Ipv4Pair only              # with SELECT_IPV4
    uint64_t packets           # inbound; outbound they are the numbers used
    uint64_t bytes
    # outbound
    uint64_t seq               # last number used
    uint64_t seq_limit         # last number that may be used
    uint64_t seq_soft          # at this number the control plane is told
    uint64_t packets_soft_seq  # the same for the soft packet limit; 0: none
    AeadSeal aead_seal
    uint64_t bytes_soft
    uint64_t bytes_hard
    int32_t tfc
    uint32_t selector_count
    # from here on nothing that every packet touches
    uint64_t packets_soft
    uint64_t packets_hard
    uint64_t seq_start         # before the first number
    void **keys                # per worker: a libcrypto context; NULL where the provider has expanded keys (sa_key)
    Mac *macs                  # per worker
    const void *job_cipher     # JobCipher: how many packets at once are sealed and opened; NULL: not at all
    void *job_key
    uint32_t told              # events already raised, one bit per EventKind; changed atomically
    uint8_t direction
    uint8_t seq_limit_is_lifetime
    uint64_t drops[DROP_REASONS]
    uint32_t reqid
    uint32_t workers
    size_t size                # of the whole allocation

cdef inline size_t sa_size() noexcept nogil:
    return (sizeof(Sa) + 63) & ~<size_t>63

# The expanded key stands on the next cache line behind the struct, so that its address is known before the struct is read.
cdef inline uint8_t *sa_key(Sa *sa) noexcept nogil:
    return <uint8_t *>sa + sa_size()

# The selectors of an inbound SA come next, and then the words of its window.
cdef inline SelectorPairC *sa_selectors(Sa *sa) noexcept nogil:
    return <SelectorPairC *>(sa_key(sa) + ((sa.key_size + 63) & ~<size_t>63))

# With many SAs in turn, waiting for their memory takes longer than the cipher: what a packet to be opened will touch is
# brought into the cache while others are worked on, in two steps, since where it is must be read from the SA itself.
cdef inline void sa_prefetch(Sa *sa) noexcept nogil:
    prefetch(sa)
    prefetch(<uint8_t *>sa + 64)

# `length` octets of ESP with this sequence number.
cdef inline void sa_prefetch_rest(Sa *sa, uint32_t seq, uint32_t length) noexcept nogil:
    cdef uint32_t at = 0
    if sa.key_split:
        # powers of the hash key, of which there is one for each block and two more, end there
        at = length - sa.icv_len + 31
        at = sa.key_split - at if at < sa.key_split else 0
    while at < sa.key_end:
        prefetch(sa_key(sa) + at)
        at += 64
    if sa.replay.window and seq >> 6 != <uint32_t>sa.replay.top >> 6:
        prefetch(&sa.replay.words[(seq >> 6) & sa.replay.mask])
    if sa.selecting == SELECT_PAIRS:
        prefetch(&sa.selector_count)
        prefetch(sa_selectors(sa))
        prefetch(<uint8_t *>sa_selectors(sa) + 64)

cdef inline void sa_lock(Sa *sa) noexcept nogil:
    if sa.shared:
        while swap_u32(&sa.lock, 1):
            pause()

cdef inline void sa_unlock(Sa *sa) noexcept nogil:
    if sa.shared:
        store_u32(&sa.lock, 0)

# Octets from SPI to ICV for so many octets of payload (RFC 4303 section 2).
cdef inline uint32_t esp_length(const Sa *sa, uint32_t payload) noexcept nogil:
    return ESP_HEADER + sa.iv_len + esp_padded(sa, payload) + sa.icv_len

cdef inline uint32_t esp_padded(const Sa *sa, uint32_t payload) noexcept nogil:
    cdef uint32_t n = payload + 2
    return (n + sa.block - 1) & ~(<uint32_t>sa.block - 1)

# The longest IP packet whose ESP packet fits into the path MTU.
cdef inline uint32_t sa_inner_mtu(const Sa *sa, const Endpoint *e) noexcept nogil:
    cdef uint32_t outer = 20 if e.version == 4 else 40
    cdef uint32_t room = e.path_mtu - outer - (8 if e.encap else 0) - ESP_HEADER - sa.iv_len - sa.icv_len
    room = (room & ~(<uint32_t>sa.block - 1)) - 2
    return room + outer if sa.mode == MODE_TRANSPORT else room

# Pad, pad length and next header after a payload (RFC 4303 sections 2.4 to 2.6). The new length.
cdef inline uint32_t esp_trailer(const Sa *sa, uint8_t *payload, uint32_t length, uint8_t next_header) noexcept nogil:
    cdef uint32_t padded = esp_padded(sa, length)
    cdef uint32_t pad = padded - length - 2
    cdef uint32_t i
    for i in range(pad):
        payload[length + i] = <uint8_t>(i + 1)
    payload[padded - 2] = <uint8_t>pad
    payload[padded - 1] = next_header
    return padded

# Reserves up to n sequence numbers; how many, with the first one in *first. Never passes the limit, whatever threads do:
# a number given twice would be an IV used twice (RFC 4303 section 3.3.3). One atomic exchange per train.
cdef inline uint32_t sa_reserve(Sa *sa, uint32_t n, uint64_t *first) noexcept nogil:
    cdef uint64_t used = load_u64(&sa.seq)
    cdef uint64_t limit, left
    while True:
        limit = load_u64(&sa.seq_limit)
        left = limit - used if limit > used else 0
        if left < n:
            n = <uint32_t>left
            if n == 0:
                return 0
        if cas_u64(&sa.seq, &used, used + n):
            first[0] = used + 1
            return n

# Authenticated data of an AEAD: SPI and sequence number, with its high word between them under ESN (RFC 4106 section 5).
cdef inline uint32_t esp_aad(const Sa *sa, uint64_t seq, uint8_t *aad) noexcept nogil:
    if sa.esn:
        put64(aad, <uint64_t>sa.spi << 32 | seq >> 32)
        put32(aad + 8, <uint32_t>seq)
        return 12
    put64(aad, <uint64_t>sa.spi << 32 | <uint32_t>seq)
    return 8

# The IV of a counter mode is the sequence number: unique for as long as the number is (RFC 8750, RFC 4106 section 3.1).
cdef inline void esp_nonce(const Sa *sa, const uint8_t *iv, uint64_t seq, uint8_t *nonce) noexcept nogil:
    memcpy(nonce, sa.salt, 4)              # a shorter salt is overwritten behind it
    if iv != NULL:
        memcpy(nonce + sa.salt_len, iv, 8)
    else:
        put64(nonce + sa.salt_len, seq)

# RFC 4543: everything is authenticated, nothing is enciphered. Runs AES-GCM over associated data alone.
cdef inline int gmac_tag(void *key, const uint8_t *nonce, const uint8_t *aad, uint32_t aad_len,
                         const uint8_t *body, uint32_t body_len, uint8_t *tag) noexcept nogil:
    cdef EVP_CIPHER_CTX *ctx = <EVP_CIPHER_CTX *>key
    cdef int n = 0
    cdef uint8_t none[16]
    if EVP_EncryptInit_ex(ctx, NULL, NULL, NULL, nonce) != 1:
        return -1
    if EVP_EncryptUpdate(ctx, NULL, &n, aad, <int>aad_len) != 1 or EVP_EncryptUpdate(ctx, NULL, &n, body, <int>body_len) != 1:
        return -1
    if EVP_EncryptFinal_ex(ctx, none, &n) != 1:
        return -1
    return 0 if EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_GET_TAG, 16, tag) == 1 else -1

# What becomes the IV of CBC: a unique nonce enciphered under the same key is unpredictable (SP 800-38A appendix C, method
# 1), and CBC from a zero IV makes it the first block of the ciphertext. The number, big-endian, as long as a block.
cdef inline void cbc_nonce(const Sa *sa, uint64_t seq, uint8_t *block) noexcept nogil:
    if sa.iv_len > 8:
        memset(block, 0, sa.iv_len - 8)
    put64(block + sa.iv_len - 8, seq)

# Counter block of RFC 3686 section 4.
cdef inline void ctr_block(const Sa *sa, const uint8_t *iv, uint8_t *block) noexcept nogil:
    memcpy(block, sa.salt, 4)
    memcpy(block + 4, iv, 8)
    put32(block + 12, 1)

# Protects `length` octets (payload with trailer) into out: SPI, sequence number, IV, ciphertext, ICV. Total, or -1.
cdef inline int esp_seal(Sa *sa, uint32_t worker, uint64_t seq, const uint8_t *plain, uint32_t length,
                         uint8_t *out) noexcept nogil:
    cdef uint8_t aad[12]
    cdef uint8_t nonce[16]
    cdef uint8_t *iv = out + ESP_HEADER
    cdef uint8_t *body = iv + sa.iv_len
    cdef uint8_t *icv = body + length
    cdef uint32_t aad_len
    put32(out, sa.spi)
    put32(out + 4, <uint32_t>seq)
    if sa.kind != KIND_AEAD:
        return esp_seal_other(sa, worker, seq, plain, length, out)
    aad_len = esp_aad(sa, seq, aad)
    esp_nonce(sa, NULL, seq, nonce)
    if sa.iv_len:
        put64(iv, seq)
    if sa.aead_seal(sa_key(sa) if sa.key_size else sa.keys[worker], nonce, aad, aad_len, plain, length, body, icv,
                    sa.icv_len) != 0:
        return -1
    return <int>(icv + sa.icv_len - out)

# The same behind the first eight octets, where the cipher is none of these.
cdef inline int esp_seal_other(Sa *sa, uint32_t worker, uint64_t seq, const uint8_t *plain, uint32_t length,
                               uint8_t *out) noexcept nogil:
    cdef uint8_t aad[12]
    cdef uint8_t nonce[16]
    cdef uint8_t *iv = out + ESP_HEADER
    cdef uint8_t *body = iv + sa.iv_len
    cdef uint8_t *icv = body + length
    cdef uint32_t aad_len
    cdef int n = 0
    if sa.kind == KIND_GMAC:
        aad_len = esp_aad(sa, seq, aad)
        esp_nonce(sa, NULL, seq, nonce)
        memcpy(iv, nonce + sa.salt_len, 8)
        memcpy(body, plain, length)
        if gmac_tag(sa.keys[worker], nonce, aad, aad_len, iv, length + 8, icv) != 0:
            return -1
        return <int>(icv + sa.icv_len - out)
    if sa.kind == KIND_CBC:
        memset(nonce, 0, 16)
        if EVP_EncryptInit_ex(<EVP_CIPHER_CTX *>sa.keys[worker], NULL, NULL, NULL, nonce) != 1:
            return -1
        cbc_nonce(sa, seq, nonce)
        if EVP_EncryptUpdate(<EVP_CIPHER_CTX *>sa.keys[worker], iv, &n, nonce, sa.iv_len) != 1:
            return -1
        if EVP_EncryptUpdate(<EVP_CIPHER_CTX *>sa.keys[worker], body, &n, plain, <int>length) != 1:
            return -1
    elif sa.kind == KIND_CTR:
        put32(iv, <uint32_t>(seq >> 32))
        put32(iv + 4, <uint32_t>seq)
        ctr_block(sa, iv, nonce)
        if EVP_EncryptInit_ex(<EVP_CIPHER_CTX *>sa.keys[worker], NULL, NULL, NULL, nonce) != 1:
            return -1
        if EVP_EncryptUpdate(<EVP_CIPHER_CTX *>sa.keys[worker], body, &n, plain, <int>length) != 1:
            return -1
    else:
        memcpy(body, plain, length)
    put32(aad, <uint32_t>(seq >> 32))
    # RFC 4303 section 2.2.1: under ESN the high word follows the payload for the ICV, and is not sent
    if mac_run(&sa.macs[worker], out, <uint32_t>(icv - out), aad, 4 if sa.esn else 0, icv, sa.icv_len) != 0:
        return -1
    return <int>(icv + sa.icv_len - out)

# Verifies and deciphers one ESP packet of at least header, IV and ICV. 0, or -1 if the ICV is wrong: then what was
# written to plain means nothing and must not be used.
cdef inline int esp_open(Sa *sa, uint32_t worker, uint64_t seq, const uint8_t *esp, uint32_t length,
                         uint8_t *plain) noexcept nogil:
    cdef uint8_t aad[12]
    cdef uint8_t nonce[16]
    cdef const uint8_t *iv = esp + ESP_HEADER
    cdef const uint8_t *body = iv + sa.iv_len
    cdef const uint8_t *their_icv = esp + length - sa.icv_len
    cdef uint32_t aad_len
    # apart from the rest, so that it is short enough to be inlined
    if sa.kind != KIND_AEAD:
        return esp_open_other(sa, worker, seq, esp, length, plain)
    aad_len = esp_aad(sa, seq, aad)
    esp_nonce(sa, iv if sa.iv_len else NULL, seq, nonce)
    return sa.aead_open(sa_key(sa) if sa.key_size else sa.keys[worker], nonce, aad, aad_len, body,
                        <uint32_t>(their_icv - body), plain, their_icv, sa.icv_len)

cdef inline int esp_open_other(Sa *sa, uint32_t worker, uint64_t seq, const uint8_t *esp, uint32_t length,
                               uint8_t *plain) noexcept nogil:
    cdef uint8_t aad[12]
    cdef uint8_t nonce[16]
    cdef uint8_t icv[64]
    cdef const uint8_t *iv = esp + ESP_HEADER
    cdef const uint8_t *body = iv + sa.iv_len
    cdef const uint8_t *their_icv = esp + length - sa.icv_len
    cdef uint32_t body_len = <uint32_t>(their_icv - body)
    cdef uint32_t aad_len
    cdef int n = 0
    if sa.kind == KIND_GMAC:
        aad_len = esp_aad(sa, seq, aad)
        esp_nonce(sa, iv, seq, nonce)
        if gmac_tag(sa.keys[worker], nonce, aad, aad_len, iv, body_len + 8, icv) != 0:
            return -1
        if CRYPTO_memcmp(icv, their_icv, sa.icv_len) != 0:
            return -1
        memcpy(plain, body, body_len)
        return 0
    # encrypt-then-MAC: nothing is deciphered before the ICV is good (RFC 4303 section 3.4.4.1)
    put32(aad, <uint32_t>(seq >> 32))
    if mac_run(&sa.macs[worker], esp, length - sa.icv_len, aad, 4 if sa.esn else 0, icv, sa.icv_len) != 0:
        return -1
    if CRYPTO_memcmp(icv, their_icv, sa.icv_len) != 0:
        return -1
    if sa.kind == KIND_NULL:
        memcpy(plain, body, body_len)
        return 0
    if sa.kind == KIND_CTR:
        ctr_block(sa, iv, nonce)
        iv = nonce
    if sa.kind == KIND_CBC:
        if EVP_DecryptInit_ex(<EVP_CIPHER_CTX *>sa.keys[worker], NULL, NULL, NULL, iv) != 1:
            return -1
        return 0 if EVP_DecryptUpdate(<EVP_CIPHER_CTX *>sa.keys[worker], plain, &n, body, <int>body_len) == 1 else -1
    if EVP_EncryptInit_ex(<EVP_CIPHER_CTX *>sa.keys[worker], NULL, NULL, NULL, iv) != 1:
        return -1
    return 0 if EVP_EncryptUpdate(<EVP_CIPHER_CTX *>sa.keys[worker], plain, &n, body, <int>body_len) == 1 else -1
