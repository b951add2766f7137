# Selectors (RFC 4301 section 4.4.1.1): pairs of what is local and what is remote, and whether a packet fits them.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from ipsec.fast.packet cimport (
    FRAGMENT_LATER, PROTO_ICMP, PROTO_ICMPV6, PROTO_MH, PacketInfo, be32, is_port_protocol)

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

# How an SA selects what may come through it.
cdef enum Selecting:
    SELECT_ANY = 0
    SELECT_IPV4 = 1       # by one pair of IPv4 ranges, whatever the protocol: an Ipv4Pair says the same in less time
    SELECT_PAIRS = 2

cdef struct Ipv4Pair:
    uint32_t local_first
    uint32_t local_span    # last - first
    uint32_t remote_first
    uint32_t remote_span

# What a lookup knows of a packet, seen from the local side.
cdef struct PacketKey:
    Address local
    Address remote
    uint16_t local_port
    uint16_t remote_port
    uint8_t protocol
    uint8_t version
    uint8_t ports         # PortState

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

# Whether a pair can be said as an Ipv4Pair, which is then filled in.
cdef inline bint ipv4_only(const SelectorPairC *pair, Ipv4Pair *out) noexcept nogil:
    if (pair.version != 4 or pair.protocol != 0 or pair.local_port_first != 0 or pair.local_port_last != 65535
            or pair.remote_port_first != 0 or pair.remote_port_last != 65535):
        return False
    out.local_first = <uint32_t>pair.local_first.lo
    out.local_span = <uint32_t>(pair.local_last.lo - pair.local_first.lo)
    out.remote_first = <uint32_t>pair.remote_first.lo
    out.remote_span = <uint32_t>(pair.remote_last.lo - pair.remote_first.lo)
    return True

# An address below the first one wraps around, and is too large then.
cdef inline bint ipv4_match(const Ipv4Pair *pair, const uint8_t *local, const uint8_t *remote) noexcept nogil:
    return (be32(local) - pair.local_first <= pair.local_span) & (be32(remote) - pair.remote_first <= pair.remote_span)

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
