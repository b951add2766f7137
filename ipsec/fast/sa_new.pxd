# SAs made from their Python descriptions, changed and wiped: the control plane's side of sa.pxd.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from ipsec._providers cimport (
    Cipher, cipher_for, evp_context, expand_key, job_cipher_for, job_key_new, job_key_size, mac_start)
from ipsec.fast.address cimport address_to_python
from ipsec.fast.atomic cimport load_u64, store_u8, store_u64
from ipsec.fast.crypto cimport EVP_CIPHER_CTX, EVP_CIPHER_CTX_free, EVP_MAC_CTX_free, Mac, OPENSSL_cleanse
from ipsec.fast.memory cimport aligned_zero
from ipsec.fast.replay cimport replay_words
from ipsec.fast.sa cimport (
    DIRECTION_IN, DIRECTION_OUT, KIND_AEAD, KIND_CBC, KIND_CTR, KIND_GMAC, KIND_NULL, MODE_TRANSPORT, Endpoint, Sa, sa_inner_mtu,
    sa_key, sa_selectors, sa_size)
from ipsec.fast.selector cimport SELECT_IPV4, SELECT_PAIRS, SelectorPairC, ipv4_only, selector_from_python

cdef extern from "<sys/socket.h>" nogil:
    int AF_INET, AF_INET6

cdef inline int endpoint_fill(Endpoint *e, object local, object remote, object encap, uint32_t path_mtu) except -1:
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

# What an SA has counted: an ipsec.esp.engine.SaStats.
cdef inline object sa_stats(Sa *sa, object encap, object reasons):
    from ipsec.esp.engine import SaStats

    cdef Endpoint *e = sa.endpoint
    cdef uint64_t seq = load_u64(&sa.seq) if sa.direction == DIRECTION_OUT else sa.replay.top
    # each outbound packet takes a number: they are as many, whoever counts beside whom
    cdef uint64_t packets = seq - sa.seq_start if sa.direction == DIRECTION_OUT else sa.packets
    return SaStats(
        packets=packets, bytes=sa.bytes, last_use=sa.last_use_ns / 1e9 if packets else None, seq=seq,
        drops={reason: sa.drops[<int>reason] for reason in reasons if sa.drops[<int>reason]},
        remote=address_to_python(e.remote, e.version), encap=(encap[0], e.remote_port) if encap is not None else None)

# SaError if an SA cannot be at these addresses.
cdef inline int endpoint_check(const Sa *sa, object local, object remote, object encap, object path_mtu) except -1:
    from ipsec.errors import SaError

    if local.version != remote.version:
        raise SaError(f"SA 0x{sa.spi:08x}: {local} and {remote} are of different families")
    if sa.mode == MODE_TRANSPORT and local.is_unspecified:
        raise SaError(f"SA 0x{sa.spi:08x}: transport mode needs a local address, {local} is none")
    if encap is not None and not all([0 < port < 65536 for port in encap]):
        raise SaError(f"SA 0x{sa.spi:08x}: UDP ports {encap} are not in 1..65535")
    if not 576 <= path_mtu <= 65535:
        raise SaError(f"SA 0x{sa.spi:08x}: path MTU {path_mtu} is not in 576..65535")
    return 0

# Wipe the keys and give the memory back.
cdef inline void sa_free(Sa *sa) noexcept:
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
    if sa.job_key != NULL:
        OPENSSL_cleanse(sa.job_key, job_key_size())
        free(sa.job_key)
    free(sa.endpoint)
    OPENSSL_cleanse(sa, sa.size)
    free(sa)

# Expand the keys of an SA, once or for each worker.
cdef inline int sa_keys(Sa *sa, object params, str provider, const Cipher *cipher) except -1:
    cdef bytes encr_key = params.encr_key
    cdef bytes integ_key = params.integ_key
    cdef const uint8_t *key = encr_key
    cdef object suite = params.suite
    cdef uint32_t i
    sa.salt_len = suite.salt_len      # 3 or 4, if not 0
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
        sa.job_cipher = job_cipher_for(suite, provider)
        if sa.job_cipher != NULL:
            sa.batched = True
            sa.job_key = job_key_new(suite, key, integ_key)
    return 0

# An SA's limits by volume.
cdef inline void sa_lifetime(Sa *sa, object life) except *:
    sa.bytes_soft = life.bytes_soft
    sa.bytes_hard = life.bytes_hard
    sa.packets_soft = life.packets_soft
    sa.packets_hard = life.packets_hard
    store_u8(&sa.limited, (sa.bytes_soft | sa.bytes_hard | sa.packets_soft | sa.packets_hard) != 0)

# Turn an outbound SA's limits on packets into limits on numbers: each packet takes one, so they are as exact.
cdef inline void sa_limit(Sa *sa) noexcept:
    cdef uint64_t top = 0xFFFFFFFFFFFFFFFFU if sa.esn else 0xFFFFFFFFU
    cdef uint64_t left = top - sa.seq_start
    cdef bint narrower = 0 < sa.packets_hard <= left
    sa.seq_soft = top - (1 << 20)
    sa.packets_soft_seq = sa.seq_start + sa.packets_soft if 0 < sa.packets_soft <= left else 0
    sa.seq_limit_is_lifetime = narrower
    store_u64(&sa.seq_limit, sa.seq_start + sa.packets_hard if narrower else top)

# What an inbound SA has besides: selectors, and a replay window with its words at this place.
cdef inline int sa_inbound(Sa *sa, object params, uint64_t *words) except -1:
    cdef SelectorPairC *selectors = sa_selectors(sa)
    cdef uint32_t n = 0
    sa.replay.top = params.initial_seq
    sa.replay.window = params.replay_window
    if sa.replay.window:
        sa.replay.mask = replay_words(sa.replay.window) - 1
        sa.replay.words = words
        if sa.replay.top:
            # what came before a takeover counts as seen
            memset(sa.replay.words, 0xFF, (<size_t>sa.replay.mask + 1) * 8)
            sa.replay.newest = 0xFFFFFFFFFFFFFFFFU >> (63 - (sa.replay.top & 63))
    if params.selectors:
        for pair in params.selectors:
            selector_from_python(pair, &selectors[n])
            n += 1
        sa.selector_count = n
        sa.selecting = SELECT_IPV4 if n == 1 and ipv4_only(selectors, &sa.only) else SELECT_PAIRS
    return 0

# ipsec.crypto.suites.Encr, those that are no AEADs
cdef enum:
    ENCR_3DES_CBC = 3
    ENCR_NULL = 11
    ENCR_AES_CBC = 12
    ENCR_AES_CTR = 13
    ENCR_NULL_AUTH_AES_GMAC = 21

# How ESP runs a cipher, an Encr.
cdef inline int esp_kind(int encr) noexcept:
    if encr == ENCR_NULL_AUTH_AES_GMAC:
        return KIND_GMAC
    if encr == ENCR_AES_CBC or encr == ENCR_3DES_CBC:
        return KIND_CBC
    if encr == ENCR_AES_CTR:
        return KIND_CTR
    return KIND_NULL if encr == ENCR_NULL else KIND_AEAD

# An SA from its description; SuiteError or MemoryError leave nothing behind.
cdef inline Sa *sa_new(object params, uint32_t id, uint32_t workers, bint shared, str provider) except NULL:
    cdef Sa *sa
    cdef Cipher cipher
    cdef object suite = params.suite
    cdef object life = params.lifetime
    cdef size_t words_at, size
    cdef int kind = esp_kind(suite.encr)
    memset(&cipher, 0, sizeof(cipher))
    if kind == KIND_AEAD and not cipher_for(suite, provider, &cipher):
        from ipsec.errors import SuiteError

        raise SuiteError(f"{suite.name}: provider {provider!r} is not there")
    # SA, expanded key, selectors and window in one piece: fewer pages and cache lines to find when many SAs take turns
    words_at = sa_size() + ((cipher.key_size + 63) & ~<size_t>63)
    words_at += (len(params.selectors) if <int>params.direction == DIRECTION_IN else 0) * sizeof(SelectorPairC)
    size = words_at
    if <int>params.direction == DIRECTION_IN and params.replay_window:
        size += 8 * <size_t>replay_words(params.replay_window)
    sa = <Sa *>aligned_zero(size)
    try:
        sa.size = size
        sa.key_size = <uint16_t>cipher.key_size
        sa.key_split = cipher.key_split
        sa.key_end = cipher.key_end
        sa.aead_seal = cipher.seal
        sa.aead_open = cipher.open
        sa.spi = params.spi
        sa.id = id
        sa.workers = workers
        sa.direction = params.direction
        # calls from Python may seal beside a pump, but not open (Engine.alone)
        sa.shared = shared or sa.direction == DIRECTION_OUT
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
        sa.icmp = params.icmp
        sa.tfc = params.tfc
        sa.reqid = params.reqid
        sa_lifetime(sa, life)
        sa.endpoint = <Endpoint *>aligned_zero(sizeof(Endpoint))
        endpoint_fill(sa.endpoint, params.local, params.remote, params.encap, params.path_mtu)
        sa.endpoint.inner_mtu = sa_inner_mtu(sa, sa.endpoint)
        sa_keys(sa, params, provider, &cipher)
        if sa.direction == DIRECTION_OUT:
            sa.seq = sa.seq_start = params.initial_seq
            sa_limit(sa)
            return sa
        sa_inbound(sa, params, <uint64_t *>(<uint8_t *>sa + words_at))
        return sa
    except BaseException:
        sa_free(sa)
        raise
