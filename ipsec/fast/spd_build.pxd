# The SPD's writer: policies from Python, indexes and tables made of them, publication. Only the control plane, and one
# thread at a time, calls what is here; how it works is told in spd.pxd.
from libc.stdint cimport UINT32_MAX, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, qsort
from libc.string cimport memcpy

from ipsec.fast.atomic cimport store_ptr
from ipsec.fast.selector cimport Address, SelectorPairC, selector_from_python
from ipsec.fast.spd cimport (
    BY_LOCAL, BY_LOCAL_PORT, BY_REMOTE, BY_REMOTE_PORT, DIMENSIONS, SpdIndex, SpdItem, SpdNode, SpdPolicy, SpdTable,
    SpdTree)

cdef enum:
    SEQUENCE_BITS = 30
    SEQUENCE_MAX = (1 << 30) - 1

cdef extern from * nogil:
    int __ATOMIC_RELAXED
    void atomic_store_u8 "__atomic_store_n"(uint8_t *p, uint8_t value, int order)


# --- building an index -------------------------------------------------------------------------------------------------

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


# --- tables ------------------------------------------------------------------------------------------------------------

cdef inline void spd_publish(SpdTable **slot, SpdTable *table) noexcept nogil:
    store_ptr(slot, table)

cdef inline void spd_set_sa(SpdPolicy *policy, void *sa) noexcept nogil:
    store_ptr(&policy.sa, sa)

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

# The same from Python's policies, with ids from `id` on; in *made they are, in the order given, for the caller to free the
# array. An error leaves nothing behind.
cdef inline SpdTable *spd_table_from_python(const SpdTable *old, object policies, uint32_t id, SpdPolicy ***made) except NULL:
    cdef SpdPolicy **array = <SpdPolicy **>calloc(len(policies) + 1, sizeof(SpdPolicy *))
    cdef SpdTable *table = NULL
    cdef uint32_t n = 0
    cdef uint32_t i
    if array == NULL:
        raise MemoryError
    try:
        for policy in policies:
            array[n] = policy_from_python(policy, id + n)
            n += 1
        table = spd_table_replace(old, array, n)
        if table == NULL:
            raise MemoryError
        made[0] = array
        return table
    finally:
        if table == NULL:
            for i in range(n):
                spd_policy_free(array[i])
            free(array)

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


# --- from Python -------------------------------------------------------------------------------------------------------

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
        out.icmp = policy.icmp
        out.reqid = policy.reqid
        for pair in policy.selectors:
            selector_from_python(pair, &out.pairs[i])
            i += 1
    except BaseException:
        spd_policy_free(out)
        raise
    return out
