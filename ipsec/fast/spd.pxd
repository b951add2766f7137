# The compiled SPD (RFC 4301 section 4.4.1): ordered policies, the first that matches wins.
#
# Lookup. A flow cache per worker answers for known 5-tuples. Behind it every selector pair ("item") sits in exactly one
# of four segment trees per family, keyed by remote address, local address, remote port or local port: the one in which
# it overlaps fewest others, so that hosts, subnets, local-only, port-only sets and mixtures of them all spread. Items
# are numbered in policy order, so a node's list is sorted by construction, and a list is left as soon as it cannot
# beat the best hit. Cost: O(log n) per tree used plus the items that cover the packet's key; never more than n.
# Memory: a range is in at most 2 log n nodes, 4 octets each.
#
# Publication. A table never changes once it is published. Adding or deleting makes a new table that shares the index
# (the trees) with the old one and has its own copy of the short overlay of recent additions. Reference counts of
# indexes and policies are touched by the one writer only; readers take none. The writer publishes with a release
# store, waits until every worker has passed a batch boundary, then calls spd_table_free(old), which frees what only
# the old table used. The exception is SpdPolicy.dead: a deleted policy that the shared index still holds is marked in
# place, so a reader of the old table may see the deletion early, which is harmless. What is marked or in the overlay
# is bounded by spd_slack; beyond it the next change builds a new index.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset

from ipsec.fast.hash cimport mix
from ipsec.fast.packet cimport PacketInfo, be32
from ipsec.fast.selector cimport (
    MATCH_MAYBE, MATCH_NO, PORTS_HIDDEN, PORTS_KNOWN, PORTS_NONE, Address, PacketKey, SelectorPairC, at_most, match_pair,
    match_pairs, packet_key, port_state)

cdef extern from "<stdlib.h>" nogil:
    int posix_memalign(void **memptr, size_t alignment, size_t size)

# SpdResult
cdef enum:
    SPD_NONE = 0
    SPD_FOUND = 1
    SPD_AMBIGUOUS = 2   # a later fragment, and a policy that needs its ports comes first (RFC 4301 section 7)

# what a tree is keyed by
cdef enum:
    BY_REMOTE = 0
    BY_LOCAL = 1
    BY_REMOTE_PORT = 2
    BY_LOCAL_PORT = 3
    DIMENSIONS = 4

cdef enum:
    FLOW_SETS = 2048
    FLOW_WAYS = 2

cdef struct SpdPolicy:
    void *sa              # current outbound SA: spd_set_sa
    uint64_t acquired_ns  # when ACQUIRE was raised for it; 0: not since it had an SA. Atomic
    uint32_t id
    uint32_t reqid
    uint8_t action        # ipsec.esp.sa.Action
    uint8_t icmp          # protects ICMP errors by what they quote, too
    uint8_t dead          # deleted, but still in a shared index; atomic
    # the writer's own
    uint8_t in_index
    uint32_t references   # indexes that hold it, and items in overlays
    uint64_t order        # priority, then age; readers use the copies in SpdItem
    uint32_t n_pairs
    SelectorPairC *pairs  # behind the struct, in one allocation

cdef struct SpdItem:
    SelectorPairC pair
    uint64_t order
    SpdPolicy *policy

# A node of an implicit binary tree: leaf i is node n_points + i, the parent of k is k / 2.
cdef struct SpdNode:
    uint32_t up           # nearest ancestor whose list is not empty, 0 for none
    uint32_t begin        # its list is ranks[begin:end]
    uint32_t end

# points[i] .. points[i + 1] - 1 are the elementary intervals; the last one is open.
cdef struct SpdTree:
    uint32_t n_points
    Address *points
    SpdNode *nodes
    uint32_t *ranks       # item numbers, ascending within a node

cdef struct SpdIndex:
    uint32_t references   # tables that share it
    uint32_t n_policies
    SpdPolicy **policies
    uint32_t n_items
    SpdItem *items        # in policy order
    SpdTree trees[8]      # family * DIMENSIONS + dimension, family 0 for IPv4
    uint32_t n_ported     # items in port trees, ascending: what packets with hidden ports go through
    uint32_t *ported

cdef struct SpdTable:
    uint64_t generation   # differs between any two tables of one SPD; never 0
    SpdIndex *index
    uint32_t n_recent
    SpdItem *recent       # the overlay, in policy order; behind the struct, in one allocation
    # the writer's own
    uint32_t next_sequence
    uint32_t dead         # pairs of deleted policies in the index

# 64 octets, one cache line.
cdef struct FlowEntry:
    uint64_t generation   # of the table that gave the answer; 0 is empty
    uint64_t addresses[4]
    uint64_t rest         # ports, protocol, version, PortState
    SpdPolicy *policy
    uint64_t result

cdef struct FlowCache:
    FlowEntry entries[4096]   # FLOW_SETS * FLOW_WAYS
    uint64_t turn

cdef extern from * nogil:
    int __ATOMIC_RELAXED
    uint8_t atomic_load_u8 "__atomic_load_n"(const uint8_t *p, int order)


# --- searching ---------------------------------------------------------------------------------------------------------

# Index of the last point <= at, or -1.
cdef inline int64_t find_point(const SpdTree *tree, const Address *at) noexcept nogil:
    cdef uint32_t base = 0
    cdef uint32_t left = tree.n_points
    cdef uint32_t half
    if left == 0 or not at_most(&tree.points[0], at):
        return -1
    while left > 1:
        half = left >> 1
        base += half * <uint32_t>at_most(&tree.points[base + half], at)
        left -= half
    return base

# The first item in ranks[] before best that matches or may match; best if there is none.
cdef inline uint32_t search_list(
    const SpdIndex *index, const uint32_t *ranks, uint32_t n, const PacketKey *key, uint32_t best
) noexcept nogil:
    cdef uint32_t i, rank
    for i in range(n):
        rank = ranks[i]
        if rank >= best:
            break
        if (match_pair(&index.items[rank].pair, key) != MATCH_NO
                and not atomic_load_u8(&index.items[rank].policy.dead, __ATOMIC_RELAXED)):
            return rank
    return best

cdef inline uint32_t search_tree(
    const SpdIndex *index, const SpdTree *tree, const Address *at, const PacketKey *key, uint32_t best
) noexcept nogil:
    cdef const SpdNode *node
    cdef int64_t leaf = find_point(tree, at)
    cdef uint32_t k
    if leaf < 0:
        return best
    k = tree.n_points + <uint32_t>leaf
    while k:
        node = &tree.nodes[k]
        best = search_list(index, tree.ranks + node.begin, node.end - node.begin, key, best)
        k = node.up
    return best

cdef inline uint32_t search_index(const SpdIndex *index, const PacketKey *key) noexcept nogil:
    cdef const SpdTree *trees = &index.trees[0 if key.version == 4 else DIMENSIONS]
    cdef uint32_t best = index.n_items
    cdef Address port
    best = search_tree(index, &trees[BY_REMOTE], &key.remote, key, best)
    best = search_tree(index, &trees[BY_LOCAL], &key.local, key, best)
    if key.ports == PORTS_KNOWN:
        port.hi = 0
        port.lo = key.remote_port
        best = search_tree(index, &trees[BY_REMOTE_PORT], &port, key, best)
        port.lo = key.local_port
        best = search_tree(index, &trees[BY_LOCAL_PORT], &port, key, best)
    elif key.ports != PORTS_NONE:
        best = search_list(index, index.ported, index.n_ported, key, best)
    return best

cdef inline SpdPolicy *search_table(const SpdTable *table, const PacketKey *key, int *result) noexcept nogil:
    cdef SpdPolicy *policy = NULL
    cdef uint64_t order = <uint64_t>-1
    cdef uint32_t i
    cdef uint32_t best = search_index(table.index, key)
    if best < table.index.n_items:
        policy = table.index.items[best].policy
        order = table.index.items[best].order
    for i in range(table.n_recent):
        if table.recent[i].order > order:
            break
        if match_pair(&table.recent[i].pair, key) != MATCH_NO:
            policy = table.recent[i].policy
            break
    if policy == NULL:
        result[0] = SPD_NONE
    elif key.ports >= PORTS_HIDDEN and match_pairs(policy.pairs, policy.n_pairs, key) == MATCH_MAYBE:
        result[0] = SPD_AMBIGUOUS
        policy = NULL
    else:
        result[0] = SPD_FOUND
    return policy

# The first policy that matches an outbound packet; NULL unless *result is SPD_FOUND.
cdef inline SpdPolicy *spd_find_uncached(const SpdTable *table, const PacketInfo *info, int *result) noexcept nogil:
    cdef PacketKey key
    packet_key(info, False, &key)
    return search_table(table, &key, result)


# --- flow cache --------------------------------------------------------------------------------------------------------

# Fills the key of a packet and returns its hash.
cdef inline uint64_t flow_key(const PacketInfo *info, FlowEntry *key) noexcept nogil:
    cdef uint64_t h
    key.rest = (<uint64_t>info.version << 48) | (<uint64_t>port_state(info) << 40) | (<uint64_t>info.protocol << 32)
    if info.has_ports:
        key.rest |= (<uint64_t>info.src_port << 16) | info.dst_port
    if info.version == 4:
        key.addresses[0] = (<uint64_t>be32(info.src) << 32) | be32(info.dst)
        key.addresses[1] = 0
        key.addresses[2] = 0
        key.addresses[3] = 0
        h = mix(0, key.addresses[0])
    else:
        memcpy(&key.addresses[0], info.src, 16)
        memcpy(&key.addresses[2], info.dst, 16)
        h = mix(mix(mix(mix(0, key.addresses[0]), key.addresses[1]), key.addresses[2]), key.addresses[3])
    return mix(h, key.rest)

# The answer depends on nothing but the key and the table, so SPD_NONE and SPD_AMBIGUOUS are kept as well. The inside
# can choose tuples that collide: that costs a search, no more. A policy pointer of an older generation may dangle
# and is never followed.
cdef inline SpdPolicy *spd_find(
    const SpdTable *table, FlowCache *cache, const PacketInfo *info, int *result
) noexcept nogil:
    cdef FlowEntry key
    cdef FlowEntry *way = &cache.entries[FLOW_WAYS * ((flow_key(info, &key) >> 20) & (FLOW_SETS - 1))]
    cdef FlowEntry *entry
    cdef int i
    cdef int found
    for i in range(FLOW_WAYS):
        entry = &way[i]
        if (entry.generation == table.generation and entry.rest == key.rest
                and entry.addresses[0] == key.addresses[0] and entry.addresses[1] == key.addresses[1]
                and entry.addresses[2] == key.addresses[2] and entry.addresses[3] == key.addresses[3]):
            result[0] = <int>entry.result
            return entry.policy
    key.policy = spd_find_uncached(table, info, &found)
    key.result = <uint64_t>found
    key.generation = table.generation
    if way[0].generation != table.generation:
        entry = &way[0]
    elif way[1].generation != table.generation:
        entry = &way[1]
    else:
        cache.turn += 1
        entry = &way[cache.turn & 1]
    entry[0] = key
    result[0] = found
    return key.policy

# An empty cache, or NULL without memory. One per worker and SPD; flow_cache_free takes NULL.
cdef inline FlowCache *flow_cache_new() noexcept nogil:
    cdef void *memory = NULL
    if posix_memalign(&memory, 64, sizeof(FlowCache)) != 0:
        return NULL
    memset(memory, 0, sizeof(FlowCache))
    return <FlowCache *>memory

cdef inline void flow_cache_free(FlowCache *cache) noexcept nogil:
    free(cache)
