# Faces of single functions of ipsec/fast, for tests. Built in a checkout (IPSEC_PROBES, which tools/setup sets), never into
# a wheel. Each works on a copy in a buffer of exactly the packet's size, so that AddressSanitizer sees an octet too many.
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from posix.uio cimport iovec

from ipsec._providers cimport Cipher, cipher_for, expand_key
from ipsec.fast.checksum cimport csum_bulk
from ipsec.fast.coalesce cimport (
    COALESCE_FULL,
    Coalescer,
    coalesce_add,
    coalesce_init,
    coalesce_pieces,
    coalesce_reset,
    superframe_packet,
)
from ipsec.fast.fragment cimport FragmentPlan, fragment_start, fragment_next
from ipsec.fast.header cimport clamp_mss, ecn_decapsulate, outer_tos, transport_fix_checksum
from ipsec.fast.icmp cimport TOO_BIG_MAX, build_too_big
from ipsec.fast.memory cimport aligned_zero
from ipsec.fast.packet cimport PacketInfo, csum_fold, parse_packet
from ipsec.fast.segment cimport (
    SEGMENT_HEADER_MAX,
    SEGMENT_SINGLE,
    SegmentPlan,
    finish_checksum,
    plan_segments,
    segment_header,
    segment_offset,
)
from ipsec.fast.vnet cimport VNET_HDR_SIZE, VnetHdr
from ipsec.fast.fragment_ports cimport FragmentTable, fragment_recall, fragment_remember
from ipsec.fast.replay cimport Replay, replay_check, replay_commit, replay_infer, replay_words
from ipsec.fast.selector cimport SelectorPairC, selector_from_python, selectors_match
from ipsec.fast.spd cimport FlowCache, SpdPolicy, SpdTable, flow_cache_free, flow_cache_new, spd_find, spd_find_uncached
from ipsec.fast.spd_build cimport (
    policy_from_python,
    spd_policy_free,
    spd_publish,
    spd_table_add,
    spd_table_delete,
    spd_table_free,
    spd_table_replace,
)


cdef uint8_t *probe_copy(bytes packet, PacketInfo *info) except NULL:
    cdef uint32_t n = <uint32_t>len(packet)
    cdef uint8_t *buffer = <uint8_t *>malloc(n if n else 1)
    if buffer == NULL:
        raise MemoryError
    memcpy(buffer, <const uint8_t *>packet, n)
    if parse_packet(buffer, n, info) < 0:
        free(buffer)
        raise ValueError("not an IP packet")
    return buffer


def probe_checksum(data: bytes) -> int:
    """The Internet checksum of data, by the long-run sum."""
    cdef uint8_t pair[2]
    cdef uint32_t total = csum_fold(csum_bulk(<const uint8_t *>data, <uint32_t>len(data), 0))
    memcpy(pair, &total, 2)
    return ~(pair[0] << 8 | pair[1]) & 0xFFFF


def probe_segment(vnet: bytes, packet: bytes) -> list[bytes] | None:
    """The packets that a frame from the TUN device stands for, in place as the pump does it; None if it is refused."""
    cdef PacketInfo info
    cdef VnetHdr hdr
    cdef SegmentPlan plan
    cdef uint8_t header[SEGMENT_HEADER_MAX]
    cdef uint8_t *at
    cdef uint32_t k, total
    if len(vnet) != VNET_HDR_SIZE:
        raise ValueError("a virtio_net_hdr has 10 octets")
    memcpy(&hdr, <const uint8_t *>vnet, VNET_HDR_SIZE)
    cdef uint8_t *buffer = probe_copy(packet, &info)
    try:
        if plan_segments(&hdr, &info, &plan) < 0:
            return None
        if plan.kind == SEGMENT_SINGLE:
            return None if finish_checksum(buffer, &info, &hdr) < 0 else [buffer[:info.length]]
        memcpy(header, buffer, plan.header_len)
        packets = []
        for k in range(plan.count):
            at = buffer + segment_offset(&plan, k)
            total = segment_header(&plan, header, k, at - plan.header_len, at)
            packets.append((at - plan.header_len)[:total])
        return packets
    finally:
        free(buffer)


cdef list probe_frames(Coalescer *c):
    cdef iovec *pieces
    cdef uint32_t i, k, n, length
    cdef uint8_t *at
    frames = []
    for i in range(c.used):
        n = coalesce_pieces(c, i, &pieces)
        octets = [(<uint8_t *>pieces[k].iov_base)[:pieces[k].iov_len] for k in range(n)]
        originals = []
        for k in range(c.frames[i].segments):
            at = superframe_packet(&c.frames[i], k, &length)
            originals.append(at[:length])
        vnet = octets.pop(0) if c.vnet_hdr else b""
        frames.append((vnet, b"".join(octets), originals))
    coalesce_reset(c)
    return frames


def probe_coalesce(
    packets: list[bytes], vnet_hdr: bool = True, tcp: bool = True, udp: bool = True
) -> list[tuple[bytes, bytes, list[bytes]]]:
    """What would be written to the TUN device: (virtio_net_hdr, frame, the packets it was made of)."""
    cdef Coalescer *c = <Coalescer *>malloc(sizeof(Coalescer))
    cdef PacketInfo info
    cdef uint8_t *buffer
    if c == NULL:
        raise MemoryError
    coalesce_init(c, vnet_hdr, tcp, udp)
    buffers = []
    frames = []
    try:
        for packet in packets:
            buffer = probe_copy(packet, &info)
            buffers.append(<size_t>buffer)
            if coalesce_add(c, buffer, info.length, &info) == COALESCE_FULL:
                frames += probe_frames(c)
                if coalesce_add(c, buffer, info.length, &info) == COALESCE_FULL:
                    raise AssertionError("full after a reset")
        return frames + probe_frames(c)
    finally:
        for address in buffers:
            free(<void *><size_t>address)
        free(c)


def probe_too_big(packet: bytes, mtu: int, source: bytes | None = None) -> bytes | None:
    """The ICMP error for a packet larger than mtu; None if it must not be answered."""
    cdef PacketInfo info
    cdef uint8_t *buffer = probe_copy(packet, &info)
    cdef uint8_t *reply = <uint8_t *>malloc(TOO_BIG_MAX)
    cdef const uint8_t *address = NULL
    cdef uint32_t n
    try:
        if reply == NULL:
            raise MemoryError
        if source is not None and len(source) != (4 if info.version == 4 else 16):
            raise ValueError("the source is of the other family")
        if source is not None:
            address = source
        n = build_too_big(&info, mtu, address, reply)
        return reply[:n] if n else None
    finally:
        free(reply)
        free(buffer)


def probe_fragments(packet: bytes, mtu: int) -> list[bytes] | None:
    """The fragments of an IPv4 packet; None if it cannot be fragmented."""
    cdef PacketInfo info
    cdef FragmentPlan plan
    cdef uint8_t *buffer = probe_copy(packet, &info)
    cdef uint8_t *out = <uint8_t *>malloc(mtu)
    cdef uint32_t n
    try:
        if out == NULL:
            raise MemoryError
        if fragment_start(&info, mtu, &plan) < 0:
            return None
        fragments = []
        n = fragment_next(&plan, &info, out)
        while n:
            fragments.append(out[:n])
            n = fragment_next(&plan, &info, out)
        return fragments
    finally:
        free(out)
        free(buffer)


def probe_clamp_mss(packet: bytes, max_mss: int) -> bytes:
    """The packet after clamping."""
    cdef PacketInfo info
    cdef uint8_t *buffer = probe_copy(packet, &info)
    try:
        clamp_mss(buffer, &info, max_mss)
        return buffer[:len(packet)]
    finally:
        free(buffer)


def probe_ecn_decapsulate(packet: bytes, outer: int, copy_ecn: bool = True, copy_dscp: bool = False) -> bytes | None:
    """The packet after decapsulation; None if it is dropped."""
    cdef PacketInfo info
    cdef uint8_t *buffer = probe_copy(packet, &info)
    try:
        if ecn_decapsulate(buffer, &info, outer, copy_ecn, copy_dscp) < 0:
            return None
        return buffer[:len(packet)]
    finally:
        free(buffer)


def probe_outer_tos(tos: int, copy_dscp: bool, copy_ecn: bool) -> int:
    """TOS of the outer header."""
    return outer_tos(tos, copy_dscp, copy_ecn)


def probe_transport_checksum(packet: bytes) -> bytes | None:
    """The packet with its checksum made for its addresses; None if its lengths are wrong."""
    cdef PacketInfo info
    cdef uint8_t *buffer = probe_copy(packet, &info)
    try:
        if transport_fix_checksum(buffer, &info) < 0:
            return None
        return buffer[:len(packet)]
    finally:
        free(buffer)


# A face of the SPD for tests: no worker runs here, so the old table is freed as soon as the new one is published.
cdef class SpdProbe:
    """The compiled SPD alone: ordered policies, and which of them a packet meets first. Not thread-safe."""

    cdef SpdTable *table
    cdef FlowCache *cache
    cdef FragmentTable fragments
    cdef dict policies
    cdef uint32_t next_id

    def __cinit__(self):
        self.policies = {}
        self.cache = flow_cache_new()
        self.table = spd_table_replace(NULL, NULL, 0)
        if self.cache == NULL or self.table == NULL:
            raise MemoryError

    def __dealloc__(self):
        spd_table_free(self.table)
        flow_cache_free(self.cache)

    cdef int publish(self, SpdTable *table) except -1:
        cdef SpdTable *old = self.table
        if table == NULL:
            raise MemoryError
        spd_publish(&self.table, table)
        spd_table_free(old)
        return 0

    def add(self, policy):
        """Add a policy behind those of its priority; its id."""
        cdef uint32_t id = self.next_id
        cdef SpdPolicy *added = policy_from_python(policy, id)
        cdef SpdTable *table = spd_table_add(self.table, added)
        if table == NULL:
            spd_policy_free(added)
        self.publish(table)
        self.policies[id] = <size_t>added
        self.next_id += 1
        return id

    def delete(self, id):
        """Remove a policy. PolicyError if it is not there."""
        from ipsec.errors import PolicyError

        if id not in self.policies:
            raise PolicyError(f"there is no policy {id}")
        self.publish(spd_table_delete(self.table, <SpdPolicy *><size_t>self.policies[id]))
        del self.policies[id]

    def replace(self, policies):
        """Replace all policies at once; the ids, in the same order."""
        cdef SpdTable *table = NULL
        cdef SpdPolicy **array = <SpdPolicy **>calloc(len(policies) + 1, sizeof(SpdPolicy *))
        cdef uint32_t n = 0
        cdef uint32_t i
        if array == NULL:
            raise MemoryError
        try:
            for policy in policies:
                array[n] = policy_from_python(policy, self.next_id + n)
                n += 1
            table = spd_table_replace(self.table, array, n)
            self.publish(table)
            self.policies = {array[i].id: <size_t>array[i] for i in range(n)}
            self.next_id += n
            return list(self.policies)
        finally:
            if table == NULL:
                for i in range(n):
                    spd_policy_free(array[i])
            free(array)

    def find(self, const uint8_t[::1] packet, bint cached=True, now_ns=None):
        """(SpdResult, policy id or -1) of an outbound packet. With ``now_ns``, fragments learn their ports."""
        cdef PacketInfo info
        cdef SpdPolicy *policy
        cdef int result = 0
        if parse_packet(&packet[0] if packet.shape[0] else NULL, <uint32_t>packet.shape[0], &info) < 0:
            raise ValueError("not an IP packet")
        if now_ns is not None:
            fragment_remember(&self.fragments, &info, now_ns)
            fragment_recall(&self.fragments, &info, now_ns)
        if cached:
            policy = spd_find(self.table, self.cache, &info, &result)
        else:
            policy = spd_find_uncached(self.table, &info, &result)
        return result, -1 if policy == NULL else policy.id

    @staticmethod
    def accepts(selectors, const uint8_t[::1] packet, bint inbound=True):
        """(accepted, ambiguous): whether a packet fits the selectors of its SA."""
        cdef PacketInfo info
        cdef int ambiguous = 0
        cdef uint32_t n = 0
        cdef SelectorPairC *pairs
        cdef bint accepted
        if parse_packet(&packet[0] if packet.shape[0] else NULL, <uint32_t>packet.shape[0], &info) < 0:
            raise ValueError("not an IP packet")
        pairs = <SelectorPairC *>calloc(len(selectors) + 1, sizeof(SelectorPairC))
        if pairs == NULL:
            raise MemoryError
        try:
            for pair in selectors:
                selector_from_python(pair, &pairs[n])
                n += 1
            accepted = selectors_match(pairs, n, &info, inbound, &ambiguous)
        finally:
            free(pairs)
        return accepted, ambiguous != 0

    def repeat_find(self, list packets, uint32_t rounds, bint cached):
        """Look up ``packets`` in turn, ``rounds`` times: bench/micro takes the time without the Python around each."""
        cdef uint32_t count = <uint32_t>len(packets)
        cdef PacketInfo *infos = <PacketInfo *>calloc(count, sizeof(PacketInfo))
        cdef uint32_t i, r
        cdef uint32_t found = 0
        cdef int result = 0
        if infos == NULL:
            raise MemoryError
        try:
            for i in range(count):
                if parse_packet(<const uint8_t *>(<bytes>packets[i]), <uint32_t>len(packets[i]), &infos[i]) < 0:
                    raise ValueError("not an IP packet")
            for r in range(rounds):
                for i in range(count):
                    if cached:
                        found += spd_find(self.table, self.cache, &infos[i], &result) != NULL
                    else:
                        found += spd_find_uncached(self.table, &infos[i], &result) != NULL
            if found != count * rounds:
                raise AssertionError(f"{found} policies found for {count * rounds} packets")
        finally:
            free(infos)


cdef class CipherProbe:
    """An AEAD of a provider with keys of its own, on octets wherever they lie: ``source`` and ``target`` may be one."""

    cdef Cipher cipher
    cdef void *key

    def __cinit__(self, suite, provider, key):
        if not cipher_for(suite, provider, &self.cipher) or not self.cipher.key_size:
            raise ValueError(f"{suite.name}: provider {provider!r} is not there, or has no keys of its own")
        self.key = aligned_zero(self.cipher.key_size)
        expand_key(suite, provider, key, self.key)

    def __dealloc__(self):
        free(self.key)

    def seal(self, const uint8_t[::1] nonce, const uint8_t[::1] aad, const uint8_t[::1] source, uint8_t[::1] target,
             uint8_t[::1] tag):
        """Seal source to target, the tag to tag. Empty ones must be views of something, so that they have an address."""
        assert target.shape[0] == source.shape[0]
        self.cipher.seal(self.key, &nonce[0], &aad[0], <uint32_t>aad.shape[0], &source[0], <uint32_t>source.shape[0],
                         &target[0], &tag[0], <uint32_t>tag.shape[0])

    def open(self, const uint8_t[::1] nonce, const uint8_t[::1] aad, const uint8_t[::1] source, uint8_t[::1] target,
             const uint8_t[::1] tag):
        """Whether the tag is right."""
        assert target.shape[0] == source.shape[0]
        return self.cipher.open(self.key, &nonce[0], &aad[0], <uint32_t>aad.shape[0], &source[0],
                                <uint32_t>source.shape[0], &target[0], &tag[0], <uint32_t>tag.shape[0]) == 0


# Loops that bench/micro takes the time of: what one call from Python costs would hide these.

def repeat_checksum(uint32_t size, uint32_t rounds) -> int:
    """The Internet checksum over ``size`` octets that stay in the cache; the sum of all sums."""
    cdef uint8_t *buffer = <uint8_t *>calloc(size, 1)
    cdef uint32_t r
    cdef uint64_t total = 0
    if buffer == NULL:
        raise MemoryError
    for r in range(rounds):
        buffer[0] = <uint8_t>r
        total += csum_fold(csum_bulk(buffer, size, 0))
    free(buffer)
    # returned, so that no compiler leaves the loop out
    return total


def repeat_coalesce(packets: list[bytes], uint32_t rounds) -> None:
    """Join packets: parsing, and finding the superframe that each goes into."""
    cdef Coalescer *c = <Coalescer *>malloc(sizeof(Coalescer))
    cdef PacketInfo info
    cdef uint32_t count = <uint32_t>len(packets)
    cdef uint8_t **buffers = <uint8_t **>calloc(count, sizeof(uint8_t *))
    cdef uint32_t *lengths = <uint32_t *>calloc(count, sizeof(uint32_t))
    cdef uint32_t i, r
    try:
        if c == NULL or buffers == NULL or lengths == NULL:
            raise MemoryError
        for i in range(count):
            buffers[i] = probe_copy(packets[i], &info)
            lengths[i] = info.length
        coalesce_init(c, True, True, True)
        for r in range(rounds):
            for i in range(count):
                parse_packet(buffers[i], lengths[i], &info)
                if coalesce_add(c, buffers[i], info.length, &info) == COALESCE_FULL:
                    raise AssertionError("more packets than the coalescer holds")
            coalesce_reset(c)
    finally:
        if buffers != NULL:
            for i in range(count):
                free(buffers[i])
        free(buffers)
        free(lengths)
        free(c)


def repeat_replay(uint32_t window, uint32_t packets, bint reordered) -> None:
    """Infer, check and commit sequence numbers, an even number of them; ``reordered``: each two change places."""
    cdef Replay replay
    cdef uint32_t n
    cdef uint64_t number
    cdef uint32_t good = 0
    memset(&replay, 0, sizeof(Replay))
    replay.window = window
    replay.mask = replay_words(window) - 1
    replay.words = <uint64_t *>calloc(replay.mask + 1, sizeof(uint64_t))
    if replay.words == NULL:
        raise MemoryError
    for n in range(packets):
        number = replay_infer(&replay, (n ^ 1 if reordered else n) + 1)
        if replay_check(&replay, number):
            replay_commit(&replay, number)
            good += 1
    free(replay.words)
    if good != packets:
        raise AssertionError(f"{good} of {packets} numbers accepted")
