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
from libc.stdint cimport UINT32_MAX, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, qsort
from libc.string cimport memcpy, memset

from ipsec.fast.packet cimport (
    FRAGMENT_FIRST, FRAGMENT_LATER, PROTO_ICMP, PROTO_ICMPV6, PROTO_MH, PacketInfo, be32, is_port_protocol,
)

cdef extern from "<stdlib.h>" nogil:
    int posix_memalign(void **memptr, size_t alignment, size_t size)

# SpdResult
cdef enum:
    SPD_NONE = 0
    SPD_FOUND = 1
    SPD_AMBIGUOUS = 2   # a later fragment, and a policy that needs its ports comes first (RFC 4301 section 7)

# what a selector says of a packet
cdef enum:
    MATCH_NO = 0
    MATCH_YES = 1
    MATCH_MAYBE = 2     # only hidden ports (or a hidden protocol) could tell

# PortState: what is known of a packet's ports
cdef enum:
    PORTS_NONE = 0        # the protocol has none
    PORTS_KNOWN = 1
    PORTS_HIDDEN = 2      # a later fragment
    PROTOCOL_HIDDEN = 3   # a later IPv6 fragment that starts amid the extension headers

# what a tree is keyed by
cdef enum:
    BY_REMOTE = 0
    BY_LOCAL = 1
    BY_REMOTE_PORT = 2
    BY_LOCAL_PORT = 3
    DIMENSIONS = 4

cdef enum:
    SEQUENCE_BITS = 30
    SEQUENCE_MAX = (1 << 30) - 1
    FLOW_SETS = 2048
    FLOW_WAYS = 2
    FRAGMENT_SETS = 64
    FRAGMENT_WAYS = 4

# An address, or a port, as a number that compares. IPv4 has hi == 0.
cdef struct Address:
    uint64_t hi
    uint64_t lo

cdef struct SelectorPairC:
    Address local_first
    Address local_last
    Address remote_first
    Address remote_last
    uint16_t local_port_first    # OPAQUE: first 65535, last 0
    uint16_t local_port_last
    uint16_t remote_port_first
    uint16_t remote_port_last
    uint8_t protocol             # 0 is any
    uint8_t version

cdef struct SpdPolicy:
    void *sa              # current outbound SA: spd_set_sa, spd_get_sa
    uint32_t id
    uint32_t reqid
    uint8_t action        # ipsec.esp.sa.Action
    uint8_t dead          # deleted, but still in a shared index; atomic
    uint8_t acquired      # an ACQUIRE event was raised for it, and no SA has come since
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

# What a lookup knows of a packet, seen from the local side.
cdef struct PacketKey:
    Address local
    Address remote
    uint16_t local_port
    uint16_t remote_port
    uint8_t protocol
    uint8_t version
    uint8_t ports         # PortState

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

cdef struct FragmentEntry:
    uint64_t addresses[4]
    uint64_t expires_ns       # 0 is empty
    uint32_t id
    uint16_t src_port
    uint16_t dst_port
    uint8_t version
    uint8_t key_protocol
    uint8_t protocol
    uint8_t has_ports

# Zeroed octets are an empty table.
cdef struct FragmentTable:
    FragmentEntry entries[256]   # FRAGMENT_SETS * FRAGMENT_WAYS

cdef extern from * nogil:
    int __ATOMIC_RELAXED
    int __ATOMIC_ACQUIRE
    int __ATOMIC_RELEASE
    uint8_t atomic_load_u8 "__atomic_load_n"(const uint8_t *p, int order)
    void atomic_store_u8 "__atomic_store_n"(uint8_t *p, uint8_t value, int order)
    SpdTable *atomic_load_table "__atomic_load_n"(SpdTable **p, int order)
    void atomic_store_table "__atomic_store_n"(SpdTable **p, SpdTable *value, int order)
    void *atomic_load_pointer "__atomic_load_n"(void **p, int order)
    void atomic_store_pointer "__atomic_store_n"(void **p, void *value, int order)

cdef inline uint64_t fragment_lifetime_ns() noexcept nogil:
    return <uint64_t>30 * 1000000000


# --- matching -------------------------------------------------------------------------------------------------------

cdef inline uint64_t be64(const uint8_t *p) noexcept nogil:
    return (<uint64_t>be32(p) << 32) | be32(p + 4)

cdef inline void load_address(const uint8_t *p, uint8_t version, Address *out) noexcept nogil:
    if version == 4:
        out.hi = 0
        out.lo = be32(p)
    else:
        out.hi = be64(p)
        out.lo = be64(p + 8)

# Without branches: the outcome is a coin toss in the binary search.
cdef inline bint at_most(const Address *a, const Address *b) noexcept nogil:
    return (a.hi < b.hi) | ((a.hi == b.hi) & (a.lo <= b.lo))

cdef inline uint8_t port_state(const PacketInfo *info) noexcept nogil:
    cdef uint8_t p = info.protocol
    if info.has_ports:
        return PORTS_KNOWN
    if info.fragment != FRAGMENT_LATER:
        return PORTS_NONE
    # the Next Header of a later fragment may name an extension header that only the first fragment carries
    if info.version == 6 and (p == 0 or p == 43 or p == 44 or p == 51 or p == 60):
        return PROTOCOL_HIDDEN
    if is_port_protocol(p) or p == PROTO_ICMP or p == PROTO_ICMPV6 or p == PROTO_MH:
        return PORTS_HIDDEN
    return PORTS_NONE

cdef inline void packet_key(const PacketInfo *info, bint inbound, PacketKey *key) noexcept nogil:
    load_address(info.dst if inbound else info.src, info.version, &key.local)
    load_address(info.src if inbound else info.dst, info.version, &key.remote)
    key.local_port = info.dst_port if inbound else info.src_port
    key.remote_port = info.src_port if inbound else info.dst_port
    key.protocol = info.protocol
    key.version = info.version
    key.ports = port_state(info)

# RFC 4301 section 4.4.1.1: OPAQUE is for ports that cannot be seen, be it that they are hidden or that there are none.
cdef inline int match_port(uint16_t first, uint16_t last, uint16_t port, uint8_t state) noexcept nogil:
    if first == 0 and last == 65535:
        return MATCH_YES
    if state == PORTS_KNOWN:
        return MATCH_YES if first <= port <= last else MATCH_NO
    if state == PORTS_NONE:
        return MATCH_YES if first > last else MATCH_NO
    return MATCH_YES if first > last else MATCH_MAYBE

cdef inline int match_pair(const SelectorPairC *pair, const PacketKey *key) noexcept nogil:
    cdef int local, remote
    cdef bint maybe = False
    if not (at_most(&pair.remote_first, &key.remote) & at_most(&key.remote, &pair.remote_last)
            & at_most(&pair.local_first, &key.local) & at_most(&key.local, &pair.local_last)
            & (pair.version == key.version)):
        return MATCH_NO
    if pair.protocol != 0:
        if key.ports == PROTOCOL_HIDDEN:
            maybe = True
        elif pair.protocol != key.protocol:
            return MATCH_NO
    local = match_port(pair.local_port_first, pair.local_port_last, key.local_port, key.ports)
    remote = match_port(pair.remote_port_first, pair.remote_port_last, key.remote_port, key.ports)
    if local == MATCH_NO or remote == MATCH_NO:
        return MATCH_NO
    if maybe or local == MATCH_MAYBE or remote == MATCH_MAYBE:
        return MATCH_MAYBE
    return MATCH_YES

# A pair that matches whatever the ports are settles it, even after one that needs them.
cdef inline int match_pairs(const SelectorPairC *pairs, uint32_t n, const PacketKey *key) noexcept nogil:
    cdef int found = MATCH_NO
    cdef int one
    cdef uint32_t i
    for i in range(n):
        one = match_pair(&pairs[i], key)
        if one == MATCH_YES:
            return MATCH_YES
        if one == MATCH_MAYBE:
            found = MATCH_MAYBE
    return found

# RFC 4301 section 5.2 step 4: whether a packet fits the selectors of its SA; no selectors accept everything.
# *ambiguous is set when only the hidden ports of a later fragment could tell; the answer is then False.
cdef inline bint selectors_match(
    const SelectorPairC *pairs, uint32_t n, const PacketInfo *info, bint inbound, int *ambiguous
) noexcept nogil:
    cdef PacketKey key
    cdef int found
    ambiguous[0] = 0
    if n == 0:
        return True
    packet_key(info, inbound, &key)
    found = match_pairs(pairs, n, &key)
    ambiguous[0] = found == MATCH_MAYBE
    return found == MATCH_YES


# --- searching ------------------------------------------------------------------------------------------------------

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


# --- flow cache -----------------------------------------------------------------------------------------------------

cdef inline uint64_t mix(uint64_t state, uint64_t word) noexcept nogil:
    state = (state ^ word) * <uint64_t>0x9E3779B97F4A7C15
    return state ^ (state >> 32)

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


# --- fragments ------------------------------------------------------------------------------------------------------

# RFC 791 tells datagrams apart by addresses, identification and protocol; RFC 8200 section 4.5 without the protocol,
# since the Next Header of a later fragment need not agree with the first.
cdef inline FragmentEntry *fragment_set(
    FragmentTable *table, const PacketInfo *info, FragmentEntry *key
) noexcept nogil:
    cdef uint64_t h = 0
    cdef int i
    memset(key, 0, sizeof(FragmentEntry))
    key.version = info.version
    key.id = info.fragment_id
    if info.version == 4:
        key.key_protocol = info.protocol
        key.addresses[0] = (<uint64_t>be32(info.src) << 32) | be32(info.dst)
    else:
        memcpy(&key.addresses[0], info.src, 16)
        memcpy(&key.addresses[2], info.dst, 16)
    for i in range(4):
        h = mix(h, key.addresses[i])
    h = mix(h, (<uint64_t>key.id << 16) | (<uint64_t>key.key_protocol << 8) | key.version)
    return &table.entries[FRAGMENT_WAYS * ((h >> 20) & (FRAGMENT_SETS - 1))]

cdef inline bint same_datagram(const FragmentEntry *a, const FragmentEntry *b) noexcept nogil:
    return (a.id == b.id and a.version == b.version and a.key_protocol == b.key_protocol
            and a.addresses[0] == b.addresses[0] and a.addresses[1] == b.addresses[1]
            and a.addresses[2] == b.addresses[2] and a.addresses[3] == b.addresses[3])

# Keeps what a first fragment says for the later ones (RFC 4301 section 7.3); anything else is ignored. The newest
# first fragment of a datagram counts; when a set is full the oldest entry goes.
cdef inline void fragment_remember(FragmentTable *table, const PacketInfo *first, uint64_t now_ns) noexcept nogil:
    cdef FragmentEntry key
    cdef FragmentEntry *way
    cdef FragmentEntry *victim
    cdef int i
    if first.fragment != FRAGMENT_FIRST or (first.version == 4 and not first.has_ports):
        return
    way = fragment_set(table, first, &key)
    victim = &way[0]
    for i in range(FRAGMENT_WAYS):
        if same_datagram(&way[i], &key):
            victim = &way[i]
            break
        if way[i].expires_ns < victim.expires_ns:
            victim = &way[i]
    key.expires_ns = now_ns + fragment_lifetime_ns()
    key.src_port = first.src_port
    key.dst_port = first.dst_port
    key.protocol = first.protocol
    key.has_ports = first.has_ports
    victim[0] = key

# Gives a later fragment the upper-layer protocol and ports of its first fragment. False if that one is not known.
# The packet itself still has no upper-layer header.
cdef inline bint fragment_recall(FragmentTable *table, PacketInfo *later, uint64_t now_ns) noexcept nogil:
    cdef FragmentEntry key
    cdef FragmentEntry *way
    cdef int i
    if later.fragment != FRAGMENT_LATER:
        return False
    way = fragment_set(table, later, &key)
    for i in range(FRAGMENT_WAYS):
        if now_ns < way[i].expires_ns and same_datagram(&way[i], &key):
            later.protocol = way[i].protocol
            later.src_port = way[i].src_port
            later.dst_port = way[i].dst_port
            later.has_ports = way[i].has_ports
            return True
    return False


# --- building an index (writer) -------------------------------------------------------------------------------------

cdef inline int compare_addresses(const void *a, const void *b) noexcept nogil:
    cdef const Address *x = <const Address *>a
    cdef const Address *y = <const Address *>b
    if x.hi != y.hi:
        return -1 if x.hi < y.hi else 1
    if x.lo != y.lo:
        return -1 if x.lo < y.lo else 1
    return 0

cdef inline int compare_policies(const void *a, const void *b) noexcept nogil:
    cdef const SpdPolicy *x = (<SpdPolicy **>a)[0]
    cdef const SpdPolicy *y = (<SpdPolicy **>b)[0]
    if x.order == y.order:
        return 0
    return -1 if x.order < y.order else 1

# How many of the n sorted values are below at.
cdef inline uint32_t count_below(const Address *values, uint32_t n, const Address *at) noexcept nogil:
    cdef uint32_t low = 0
    cdef uint32_t high = n
    cdef uint32_t middle
    while low < high:
        middle = low + ((high - low) >> 1)
        if compare_addresses(&values[middle], at) < 0:
            low = middle + 1
        else:
            high = middle
    return low

# The pair's range in a dimension. False if it spans everything, or is OPAQUE: that tells no packets apart.
cdef inline bint pair_range(const SelectorPairC *pair, int dimension, Address *first, Address *last) noexcept nogil:
    cdef uint64_t top
    if dimension == BY_REMOTE or dimension == BY_LOCAL:
        first[0] = pair.remote_first if dimension == BY_REMOTE else pair.local_first
        last[0] = pair.remote_last if dimension == BY_REMOTE else pair.local_last
        top = 0xFFFFFFFFU if pair.version == 4 else <uint64_t>-1
        return not (first.hi == 0 and first.lo == 0 and last.lo == top and (pair.version == 4 or last.hi == top))
    first.hi = last.hi = 0
    first.lo = pair.remote_port_first if dimension == BY_REMOTE_PORT else pair.local_port_first
    last.lo = pair.remote_port_last if dimension == BY_REMOTE_PORT else pair.local_port_last
    return first.lo <= last.lo and not (first.lo == 0 and last.lo == 65535)

# Gives each item of one family the dimension in which it overlaps fewest others; BY_REMOTE where none tells it apart.
# firsts, lasts and cost have room for one value per item.
cdef inline void choose_dimensions(
    const SpdIndex *index, uint8_t version, uint8_t *chosen, Address *firsts, Address *lasts, uint32_t *cost
) noexcept nogil:
    cdef Address first, last
    cdef uint32_t i, n, overlaps
    cdef int dimension
    for i in range(index.n_items):
        if index.items[i].pair.version == version:
            cost[i] = UINT32_MAX
            chosen[i] = BY_REMOTE
    for dimension in range(DIMENSIONS):
        n = 0
        for i in range(index.n_items):
            if index.items[i].pair.version == version and pair_range(&index.items[i].pair, dimension, &first, &last):
                firsts[n] = first
                lasts[n] = last
                n += 1
        qsort(firsts, n, sizeof(Address), compare_addresses)
        qsort(lasts, n, sizeof(Address), compare_addresses)
        for i in range(index.n_items):
            if n == 0:
                break
            if index.items[i].pair.version != version or not pair_range(&index.items[i].pair, dimension, &first, &last):
                continue
            overlaps = count_below(lasts, n, &first)
            last.lo += 1
            last.hi += last.lo == 0
            # past the highest address nothing begins
            overlaps = (n if last.hi == 0 and last.lo == 0 else count_below(firsts, n, &last)) - overlaps
            if overlaps < cost[i]:
                cost[i] = overlaps
                chosen[i] = <uint8_t>dimension

# The leaves [*left, *right) that make up a range, as node numbers.
cdef inline void range_leaves(
    const SpdTree *tree, const Address *first, Address last, uint32_t *left, uint32_t *right
) noexcept nogil:
    left[0] = tree.n_points + count_below(tree.points, tree.n_points, first)
    last.lo += 1
    last.hi += last.lo == 0
    right[0] = 2 * tree.n_points
    if last.hi or last.lo:
        right[0] = tree.n_points + count_below(tree.points, tree.n_points, &last)

# Lists an item in the O(log n) nodes that make up its range; with ranks NULL only counts, in node.end.
cdef inline void list_item(SpdTree *tree, const SelectorPairC *pair, int dimension, uint32_t rank) noexcept nogil:
    cdef Address first, last
    cdef uint32_t left, right
    pair_range(pair, dimension, &first, &last)
    range_leaves(tree, &first, last, &left, &right)
    while left < right:
        if left & 1:
            if tree.ranks != NULL:
                tree.ranks[tree.nodes[left].end] = rank
            tree.nodes[left].end += 1
            left += 1
        if right & 1:
            right -= 1
            if tree.ranks != NULL:
                tree.ranks[tree.nodes[right].end] = rank
            tree.nodes[right].end += 1
        left >>= 1
        right >>= 1

# Sorted distinct boundaries of the items that chose this tree. -1 without memory.
cdef inline int collect_points(
    const SpdIndex *index, SpdTree *tree, uint8_t version, int dimension, const uint8_t *chosen
) noexcept nogil:
    cdef Address first, last
    cdef uint32_t i
    cdef uint32_t n = 0
    cdef uint32_t kept = 0
    for i in range(index.n_items):
        n += index.items[i].pair.version == version and chosen[i] == dimension
    if n == 0:
        return 0
    tree.points = <Address *>malloc(2 * <size_t>n * sizeof(Address))
    if tree.points == NULL:
        return -1
    n = 0
    for i in range(index.n_items):
        if index.items[i].pair.version != version or chosen[i] != dimension:
            continue
        pair_range(&index.items[i].pair, dimension, &first, &last)
        tree.points[n] = first
        n += 1
        last.lo += 1
        last.hi += last.lo == 0
        if last.hi or last.lo:
            tree.points[n] = last
            n += 1
    qsort(tree.points, n, sizeof(Address), compare_addresses)
    for i in range(n):
        if i == 0 or compare_addresses(&tree.points[kept - 1], &tree.points[i]) != 0:
            tree.points[kept] = tree.points[i]
            kept += 1
    tree.n_points = kept
    return 0

cdef inline int build_tree(
    const SpdIndex *index, SpdTree *tree, uint8_t version, int dimension, const uint8_t *chosen
) noexcept nogil:
    cdef uint32_t i, k, count
    cdef uint32_t total = 0
    if collect_points(index, tree, version, dimension, chosen) < 0:
        return -1
    if tree.n_points == 0:
        return 0
    tree.nodes = <SpdNode *>calloc(2 * <size_t>tree.n_points, sizeof(SpdNode))
    if tree.nodes == NULL:
        return -1
    for i in range(index.n_items):
        if index.items[i].pair.version == version and chosen[i] == dimension:
            list_item(tree, &index.items[i].pair, dimension, i)
    for k in range(1, 2 * tree.n_points):
        count = tree.nodes[k].end
        tree.nodes[k].begin = tree.nodes[k].end = total
        total += count
        if k > 1:
            # the parent's list has its final size only as a count so far: look at where its neighbour begins
            i = k >> 1
            tree.nodes[k].up = i if tree.nodes[i + 1].begin > tree.nodes[i].begin else tree.nodes[i].up
    tree.ranks = <uint32_t *>malloc((<size_t>total + 1) * sizeof(uint32_t))
    if tree.ranks == NULL:
        return -1
    for i in range(index.n_items):
        if index.items[i].pair.version == version and chosen[i] == dimension:
            list_item(tree, &index.items[i].pair, dimension, i)
    return 0

cdef inline int build_trees(SpdIndex *index) noexcept nogil:
    cdef size_t n = index.n_items
    cdef uint8_t *chosen = <uint8_t *>malloc(n)
    cdef Address *scratch = <Address *>malloc(2 * n * sizeof(Address))
    cdef uint32_t *cost = <uint32_t *>malloc(n * sizeof(uint32_t))
    cdef int family, dimension
    cdef int status = -1
    cdef uint32_t i
    index.ported = <uint32_t *>malloc(n * sizeof(uint32_t))
    if chosen != NULL and scratch != NULL and cost != NULL and index.ported != NULL:
        status = 0
        for family in range(2):
            choose_dimensions(index, 6 if family else 4, chosen, scratch, scratch + n, cost)
        for i in range(index.n_items):
            if chosen[i] == BY_REMOTE_PORT or chosen[i] == BY_LOCAL_PORT:
                index.ported[index.n_ported] = i
                index.n_ported += 1
        for family in range(2):
            for dimension in range(DIMENSIONS):
                if status == 0:
                    status = build_tree(
                        index, &index.trees[family * DIMENSIONS + dimension], 6 if family else 4, dimension, chosen
                    )
    free(chosen)
    free(scratch)
    free(cost)
    return status

cdef inline void spd_policy_free(SpdPolicy *policy) noexcept nogil:
    free(policy)

cdef inline void release_policy(SpdPolicy *policy) noexcept nogil:
    policy.references -= 1
    if policy.references == 0:
        spd_policy_free(policy)

# Frees the memory of an index, without touching the policies.
cdef inline void free_index(SpdIndex *index) noexcept nogil:
    cdef int i
    for i in range(2 * DIMENSIONS):
        free(index.trees[i].points)
        free(index.trees[i].nodes)
        free(index.trees[i].ranks)
    free(index.ported)
    free(index.items)
    free(index.policies)
    free(index)

# The order key of a policy's priority and this sequence number.
cdef inline uint64_t in_order(const SpdPolicy *policy, uint32_t sequence) noexcept nogil:
    return ((policy.order >> SEQUENCE_BITS) << SEQUENCE_BITS) | sequence

# An index of n policies, which are only read and sorted; takes the array over when it succeeds.
cdef inline SpdIndex *build_index(SpdPolicy **policies, uint32_t n) noexcept nogil:
    cdef SpdIndex *index = <SpdIndex *>calloc(1, sizeof(SpdIndex))
    cdef SpdPolicy *policy
    cdef SpdItem *item
    cdef size_t total = 0
    cdef uint32_t i, j
    if index == NULL:
        return NULL
    qsort(policies, n, sizeof(SpdPolicy *), compare_policies)
    for i in range(n):
        total += policies[i].n_pairs
    # node numbers are 32 bits and a tree has up to 4 nodes per item
    index.items = <SpdItem *>malloc((total + 1) * sizeof(SpdItem)) if total < (1 << 29) else NULL
    if index.items == NULL:
        free_index(index)
        return NULL
    for i in range(n):
        policy = policies[i]
        for j in range(policy.n_pairs):
            item = &index.items[index.n_items]
            item.pair = policy.pairs[j]
            item.order = in_order(policy, i)
            item.policy = policy
            index.n_items += 1
    if index.n_items and build_trees(index) < 0:
        free_index(index)
        return NULL
    index.policies = policies
    index.n_policies = n
    return index

# What the policies of a new index have to know, once nothing can fail any more. Sequence numbers begin anew with each
# index, so they never run out; readers of older tables have the older numbers in their items.
cdef inline void take_policies(SpdIndex *index) noexcept nogil:
    cdef SpdPolicy *policy
    cdef uint32_t i
    for i in range(index.n_policies):
        policy = index.policies[i]
        policy.order = in_order(policy, i)
        policy.in_index = 1
        policy.references += 1


# --- tables (writer) ------------------------------------------------------------------------------------------------

cdef inline SpdTable *spd_load(SpdTable **slot) noexcept nogil:
    return atomic_load_table(slot, __ATOMIC_ACQUIRE)

cdef inline void spd_publish(SpdTable **slot, SpdTable *table) noexcept nogil:
    atomic_store_table(slot, table, __ATOMIC_RELEASE)

cdef inline void *spd_get_sa(SpdPolicy *policy) noexcept nogil:
    return atomic_load_pointer(&policy.sa, __ATOMIC_ACQUIRE)

cdef inline void spd_set_sa(SpdPolicy *policy, void *sa) noexcept nogil:
    atomic_store_pointer(&policy.sa, sa, __ATOMIC_RELEASE)

# Pairs that may be in the overlay or dead before the index is built anew. A 32nd keeps the overlay's share of a miss
# near that of the index, and adding n policies one by one at about 33 times the cost of one build.
cdef inline uint32_t spd_slack(uint32_t n_items) noexcept nogil:
    return n_items // 32 if n_items > 2048 else 64

# A policy with room for n pairs, all zero, to be filled before spd_table_add. NULL without memory.
# priority: -2^31 .. 2^32 - 1, smaller first.
cdef inline SpdPolicy *spd_policy_new(uint32_t id, int64_t priority, uint32_t n_pairs) noexcept nogil:
    cdef SpdPolicy *policy = <SpdPolicy *>calloc(1, sizeof(SpdPolicy) + <size_t>n_pairs * sizeof(SelectorPairC))
    if policy != NULL:
        policy.id = id
        policy.order = <uint64_t>(priority + 0x80000000LL) << SEQUENCE_BITS
        policy.n_pairs = n_pairs
        policy.pairs = <SelectorPairC *>(policy + 1)
    return policy

# A table with room for n items in its overlay, sharing an index, and following old (which may be NULL).
cdef inline SpdTable *allocate_table(const SpdTable *old, SpdIndex *index, uint32_t n_recent) noexcept nogil:
    cdef SpdTable *table = <SpdTable *>calloc(1, sizeof(SpdTable) + n_recent * sizeof(SpdItem))
    if table != NULL:
        table.generation = old.generation + 1 if old != NULL else 1
        table.index = index
        index.references += 1
        table.n_recent = n_recent
        table.recent = <SpdItem *>(table + 1)
    return table

# Frees a table that no reader uses any more, and the index and policies that no other table has.
cdef inline void spd_table_free(SpdTable *table) noexcept nogil:
    cdef SpdIndex *index
    cdef uint32_t i
    if table == NULL:
        return
    index = table.index
    for i in range(table.n_recent):
        release_policy(table.recent[i].policy)
    index.references -= 1
    if index.references == 0:
        for i in range(index.n_policies):
            release_policy(index.policies[i])
        free_index(index)
    free(table)

# A table of n policies in a new index, following old. Takes the array over. NULL without memory: nothing has changed.
cdef inline SpdTable *indexed_table(const SpdTable *old, SpdPolicy **policies, uint32_t n) noexcept nogil:
    cdef SpdIndex *index = build_index(policies, n)
    cdef SpdTable *table
    if index == NULL:
        free(policies)
        return NULL
    table = allocate_table(old, index, 0)
    if table == NULL:
        free_index(index)
        return NULL
    table.next_sequence = n
    take_policies(index)
    return table

# The table that has exactly these policies, none of which is in a table; equal priorities keep their order. old may
# be NULL: the first table. NULL without memory: the policies are still the caller's.
cdef inline SpdTable *spd_table_replace(const SpdTable *old, SpdPolicy **policies, uint32_t n) noexcept nogil:
    cdef SpdPolicy **array = NULL
    cdef uint32_t i
    if n < SEQUENCE_MAX:
        array = <SpdPolicy **>malloc((<size_t>n + 1) * sizeof(SpdPolicy *))
    if array == NULL:
        return NULL
    for i in range(n):
        array[i] = policies[i]
        array[i].order = in_order(array[i], i)
    return indexed_table(old, array, n)

cdef inline bint is_slack_used_up(const SpdTable *table, const SpdPolicy *changed) noexcept nogil:
    return <uint64_t>table.n_recent + table.dead + changed.n_pairs > spd_slack(table.index.n_items)

# What old has, with added and without removed (either may be NULL), in a new index.
cdef inline SpdTable *rebuild_table(const SpdTable *old, SpdPolicy *added, SpdPolicy *removed) noexcept nogil:
    cdef size_t room = <size_t>old.index.n_policies + old.n_recent + 1
    cdef SpdPolicy **live = <SpdPolicy **>malloc(room * sizeof(SpdPolicy *))
    cdef SpdPolicy *policy
    cdef uint32_t n = 0
    cdef uint32_t i
    if live == NULL:
        return NULL
    for i in range(old.index.n_policies + old.n_recent):
        if i < old.index.n_policies:
            policy = old.index.policies[i]
        else:
            policy = old.recent[i - old.index.n_policies].policy
            if n and live[n - 1] == policy:
                continue   # its pairs are next to each other
        if policy != removed and not policy.dead:
            live[n] = policy
            n += 1
    if added != NULL:
        live[n] = added
        n += 1
    return indexed_table(old, live, n)

# The table with one policy more, behind all of its priority. NULL without memory: nothing has changed.
cdef inline SpdTable *spd_table_add(const SpdTable *old, SpdPolicy *policy) noexcept nogil:
    cdef SpdTable *table
    cdef uint32_t i
    cdef uint32_t at = 0
    policy.order = in_order(policy, old.next_sequence)
    if is_slack_used_up(old, policy) or old.next_sequence >= SEQUENCE_MAX:
        return rebuild_table(old, policy, NULL)
    table = allocate_table(old, old.index, old.n_recent + policy.n_pairs)
    if table == NULL:
        return NULL
    while at < old.n_recent and old.recent[at].order < policy.order:
        at += 1
    memcpy(table.recent, old.recent, at * sizeof(SpdItem))
    memcpy(table.recent + at + policy.n_pairs, old.recent + at, (old.n_recent - at) * sizeof(SpdItem))
    for i in range(policy.n_pairs):
        table.recent[at + i].pair = policy.pairs[i]
        table.recent[at + i].order = policy.order
        table.recent[at + i].policy = policy
    for i in range(table.n_recent):
        table.recent[i].policy.references += 1
    table.next_sequence = old.next_sequence + 1
    table.dead = old.dead
    return table

# The table without one of its policies, which lives on until spd_table_free has freed all tables that had it.
# NULL without memory: nothing has changed.
cdef inline SpdTable *spd_table_delete(const SpdTable *old, SpdPolicy *policy) noexcept nogil:
    cdef SpdTable *table
    cdef uint32_t i
    cdef uint32_t n = 0
    if policy.in_index and is_slack_used_up(old, policy):
        return rebuild_table(old, NULL, policy)
    table = allocate_table(old, old.index, old.n_recent if policy.in_index else old.n_recent - policy.n_pairs)
    if table == NULL:
        return NULL
    for i in range(old.n_recent):
        if old.recent[i].policy != policy:
            table.recent[n] = old.recent[i]
            table.recent[n].policy.references += 1
            n += 1
    table.next_sequence = old.next_sequence
    table.dead = old.dead
    if policy.in_index:
        table.dead += policy.n_pairs
        atomic_store_u8(&policy.dead, 1, __ATOMIC_RELAXED)
    return table


# --- from Python ----------------------------------------------------------------------------------------------------

cdef inline int address_from_python(object address, Address *out) except -1:
    cdef bytes packed = address.packed
    load_address(packed, 4 if len(packed) == 4 else 6, out)
    return 0

# One ipsec.wire.selector.SelectorPair. ConfigError if its two sides contradict each other.
cdef inline int selector_from_python(object pair, SelectorPairC *out) except -1:
    from ipsec.errors import ConfigError

    local, remote = pair.local, pair.remote
    if local.version != remote.version:
        raise ConfigError(f"selectors {local.start} and {remote.start} are of different families")
    if local.protocol and remote.protocol and local.protocol != remote.protocol:
        raise ConfigError(f"selectors have different protocols: {local.protocol} and {remote.protocol}")
    address_from_python(local.start, &out.local_first)
    address_from_python(local.end, &out.local_last)
    address_from_python(remote.start, &out.remote_first)
    address_from_python(remote.end, &out.remote_last)
    out.local_port_first, out.local_port_last = local.ports
    out.remote_port_first, out.remote_port_last = remote.ports
    out.protocol = local.protocol or remote.protocol
    out.version = local.version
    return 0

# One ipsec.esp.sa.Policy, not in any table yet: spd_policy_free until a table takes it.
# PolicyError without selectors or with a priority out of range, ConfigError for selectors that contradict themselves.
cdef inline SpdPolicy *policy_from_python(object policy, uint32_t id) except NULL:
    from ipsec.errors import PolicyError

    cdef SpdPolicy *out
    cdef uint32_t i = 0
    if not policy.selectors:
        raise PolicyError("a policy without selectors matches nothing")
    if not -(1 << 31) <= policy.priority < 1 << 32:
        raise PolicyError(f"priority {policy.priority} is not in -2^31..2^32-1")
    out = spd_policy_new(id, policy.priority, len(policy.selectors))
    if out == NULL:
        raise MemoryError
    try:
        out.action = policy.action
        out.reqid = policy.reqid
        for pair in policy.selectors:
            selector_from_python(pair, &out.pairs[i])
            i += 1
    except BaseException:
        spd_policy_free(out)
        raise
    return out
