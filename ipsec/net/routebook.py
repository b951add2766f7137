"""What belongs into the routing table, kept up to date change by change: a change costs its own entries, not all.

One route to the device for each protected network. A throw route for each excluded network (a peer, or what BYPASS
policies name) that lies inside a protected one: its packets must not enter the tunnel they carry. With ``fail_closed``
an unreachable route for each protected network, which takes over if the device goes away.

Nothing here does I/O: ``changes`` says what to do next, and is told what came of it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence, Set
from ipaddress import IPv4Address, IPv6Address
from itertools import accumulate
from typing import Literal, NamedTuple

IpAddress = IPv4Address | IPv6Address
Kind = Literal["unicast", "throw", "unreachable"]
#: first and last address of a range, both included
Range = tuple[IpAddress, IpAddress]

_BITS = {4: 32, 6: 128}


class Prefix(NamedTuple):
    """A network; ``value`` is its first address."""

    version: int
    length: int
    value: int

    def __str__(self) -> str:
        make = IPv4Address if self.version == 4 else IPv6Address
        return f"{make(self.value)}/{self.length}"


class Entry(NamedTuple):
    """A route in the table."""

    kind: Kind
    prefix: Prefix


class Change(NamedTuple):
    """One thing to do to the table."""

    add: bool
    "or remove"
    entry: Entry
    source: IpAddress | None = None
    "to prefer, of a route to the device"


def prefixes(first: IpAddress, last: IpAddress) -> Iterator[Prefix]:
    """The networks that make up a range, in order."""
    bits, start, end = _BITS[first.version], int(first), int(last)
    while start <= end:
        size = (end - start + 1).bit_length() - 1
        if start:
            size = min(size, (start & -start).bit_length() - 1)
        yield Prefix(first.version, bits - size, start)
        start += 1 << size


class RouteBook:
    """Counts who wants which route, and knows what the table holds."""

    def __init__(self, *, fail_closed: bool = False) -> None:
        self._fail_closed = fail_closed
        self._kept: set[Prefix] = set()
        "networks that stay closed though nobody wants it, until ``let_go``"
        self._protected: dict[Prefix, dict[Range | None, int]] = {}
        "network -> local ranges of the policies that protect it, first come first; None for those that drop"
        self._excluded: dict[Prefix, int] = {}
        self._lengths: dict[tuple[int, int], int] = {}
        "(version, length) -> how many protected networks are of it, and kept ones"
        self._inside: dict[tuple[int, int], dict[int, set[Prefix]]] = {}
        "(version, length) -> value -> excluded networks that lie in it, for lengths in use"
        self._own: dict[int, tuple[list[int], dict[int, tuple[int, IpAddress]]]] = {4: ([], {}), 6: ([], {})}
        "by version: addresses sorted, and each with its rank in the kernel's order"
        self._installed: dict[Entry, IpAddress | None] = {}
        self._unsure: set[Entry] = set()
        "in the table, but perhaps with another source, or not there any more"
        self._dirty: dict[Prefix, None] = {}
        self._removals: dict[Entry, None] = {}
        "throw routes that go when the networks around them are gone"

    # -- who wants what

    def protect(self, local: Range | None, remote: Range) -> None:
        """A policy protects what goes from ``local`` to ``remote``; None: it drops what goes there, from anywhere."""
        for prefix in prefixes(*remote):
            locals_ = self._protected.get(prefix)
            if locals_ is None:
                locals_ = self._protected[prefix] = {}
                self._count_length(prefix, 1)
                self._touch_inside(prefix)
            locals_[local] = locals_.get(local, 0) + 1
            self._dirty[prefix] = None

    def unprotect(self, local: Range | None, remote: Range) -> None:
        """Undo one ``protect``."""
        for prefix in prefixes(*remote):
            locals_ = self._protected[prefix]
            locals_[local] -= 1
            if not locals_[local]:
                del locals_[local]
            if not locals_:
                self._touch_inside(prefix)
                del self._protected[prefix]
                self._count_length(prefix, -1)
            self._dirty[prefix] = None

    def exclude(self, remote: Range) -> None:
        """Packets to ``remote`` are to stay outside."""
        for prefix in prefixes(*remote):
            count = self._excluded[prefix] = self._excluded.get(prefix, 0) + 1
            if count == 1:
                for key in self._inside:
                    self._index(key, prefix)
                self._dirty[prefix] = None

    def include(self, remote: Range) -> None:
        """Undo one ``exclude``."""
        for prefix in prefixes(*remote):
            self._excluded[prefix] -= 1
            if self._excluded[prefix]:
                continue
            del self._excluded[prefix]
            for (version, length), known in self._inside.items():
                if version == prefix.version and length <= prefix.length:
                    value = _cut(prefix, length)
                    known[value].discard(prefix)
                    if not known[value]:
                        del known[value]
            self._dirty[prefix] = None

    def set_own(self, addresses: Sequence[IpAddress]) -> None:
        """This host's addresses in the kernel's order: sources to prefer."""
        own: dict[int, tuple[list[int], dict[int, tuple[int, IpAddress]]]] = {}
        for version in (4, 6):
            ranks = {int(a): (rank, a) for rank, a in enumerate(addresses) if a.version == version}
            own[version] = (sorted(ranks), ranks)
        if own != self._own:
            self._own = own
            self._dirty.update(dict.fromkeys(self._protected))

    def _count_length(self, prefix: Prefix, change: int) -> None:
        key = (prefix.version, prefix.length)
        count = self._lengths[key] = self._lengths.get(key, 0) + change
        if not count:
            del self._lengths[key]
            del self._inside[key]
        elif key not in self._inside:
            self._inside[key] = {}
            for excluded in self._excluded:
                self._index(key, excluded)

    def _index(self, key: tuple[int, int], prefix: Prefix) -> None:
        version, length = key
        if version == prefix.version and length <= prefix.length:
            self._inside[key].setdefault(_cut(prefix, length), set()).add(prefix)

    def _touch_inside(self, prefix: Prefix) -> None:
        """Whether these are covered may be another matter now."""
        for excluded in self._inside[prefix.version, prefix.length].get(prefix.value, ()):
            self._dirty[excluded] = None

    # -- what the table should hold

    def _covered(self, prefix: Prefix) -> bool:
        return any(
            version == prefix.version
            and length <= prefix.length
            and ((around := Prefix(version, length, _cut(prefix, length))) in self._protected or around in self._kept)
            for version, length in self._lengths
        )

    def _source(self, version: int, locals_: Iterable[Range | None]) -> IpAddress | None:
        """The first of this host's addresses inside local networks: without, our own packets match no policy."""
        values, ranks = self._own[version]
        for local in locals_:
            if local is None or local[0].version != version:
                continue
            first, last = local
            at, end = bisect_left(values, int(first)), bisect_left(values, int(last) + 1)
            if at < end:
                return min(ranks[value] for value in values[at:end])[1]
        return None

    def _wanted(self, prefix: Prefix) -> dict[Entry, IpAddress | None]:
        locals_ = self._protected.get(prefix)
        if locals_ is not None:
            found: dict[Entry, IpAddress | None] = {
                Entry("unicast", prefix): self._source(prefix.version, locals_),
            }
            if self._fail_closed:
                found[Entry("unreachable", prefix)] = None
            return found
        if prefix in self._kept:
            return {Entry("unreachable", prefix): None}
        # A peer that is the whole of a protected network (host to host) no route can tell apart: the mark does it.
        if prefix in self._excluded and self._covered(prefix):
            return {Entry("throw", prefix): None}
        return {}

    @property
    def versions(self) -> set[int]:
        """IP versions of the routes wanted, or kept."""
        return {version for version, _ in self._lengths}

    def keep(self, networks: Iterable[Prefix]) -> None:
        """These are closed, and stay so though nobody wants it, until ``let_go``."""
        for prefix in networks:
            self._kept.add(prefix)
            self._count_length(prefix, 1)
            self._touch_inside(prefix)
            self._dirty[prefix] = None

    def let_go(self, awaited: Collection[Range | None] = ()) -> int:
        """What was kept opens if nobody wants it closed, but for what ``awaited`` leads to; how many networks stay.

        None leads to one host, whichever: it had a route to itself.
        """
        stay = _meeting(self._kept, (range_ for range_ in awaited if range_ is not None))
        if None in awaited:
            stay.update(prefix for prefix in self._kept if prefix.length == _BITS[prefix.version])
        self._stop_keeping(self._kept - stay)
        return len(stay)

    def let_pass(self, remote: Range) -> None:
        """What was kept within ``remote`` opens: it is to go around the tunnel, whoever is awaited."""
        around = set(prefixes(*remote))
        lengths = {prefix.length for prefix in around}
        self._stop_keeping({one for one in self._kept if not around.isdisjoint(_around(one, lengths))})

    def _stop_keeping(self, networks: Set[Prefix]) -> None:
        for prefix in networks:
            self._kept.remove(prefix)
            self._touch_inside(prefix)
            self._count_length(prefix, -1)
            self._dirty[prefix] = None

    def uses(self, addresses: Set[bytes]) -> bool:
        """Whether one of these, packed, is the source of a route that was installed."""
        used = (source.packed for source in self._installed.values() if source is not None)
        return bool(addresses) and any(source in addresses for source in used)

    # -- what to do about it

    @property
    def pending(self) -> bool:
        """Whether ``changes`` has something."""
        return bool(self._dirty or self._removals)

    def __len__(self) -> int:
        """How many networks ``changes`` has to look at, before what that leads to."""
        return len(self._dirty) + len(self._removals)

    def changes(self, limit: int) -> list[Change]:
        """What to do next, in this order, after a look at ``limit`` networks. Call again while ``pending``.

        A network that is excluded is so before the one around it is protected, and until that is gone: in between its
        packets would enter the tunnel. What replaces another route of the same network comes before that is removed.
        """
        exclusions = [prefix for prefix in self._dirty if prefix in self._excluded][:limit]
        todo: list[Change] = []
        for prefix in exclusions:
            self._settle(prefix, todo)
        if not exclusions:
            for prefix in list(self._dirty)[:limit]:
                self._settle(prefix, todo)
        if not todo and not self._dirty:
            for entry in list(self._removals)[:limit]:
                del self._removals[entry]
                # meanwhile it may be wanted again
                if entry in self._installed and entry not in self._wanted(entry.prefix):
                    todo.append(self._remove(entry))
        todo.sort(key=lambda change: not change.add)
        return todo

    def _settle(self, prefix: Prefix, todo: list[Change]) -> None:
        self._dirty.pop(prefix, None)
        wanted = self._wanted(prefix)
        kinds: tuple[Kind, ...] = ("throw", "unreachable", "unicast")
        for entry in (Entry(kind, prefix) for kind in kinds):
            if entry in wanted:
                source = wanted[entry]
                if entry not in self._installed or self._installed[entry] != source or entry in self._unsure:
                    self._installed[entry] = source
                    self._unsure.discard(entry)
                    todo.append(Change(True, entry, source))
            elif entry in self._installed:
                if entry.kind == "throw" and prefix not in self._protected:
                    self._removals[entry] = None
                else:
                    todo.append(self._remove(entry))

    def _remove(self, entry: Entry) -> Change:
        del self._installed[entry]
        self._unsure.discard(entry)
        return Change(False, entry)

    def failed(self, change: Change) -> None:
        """A change was refused: it is tried again with the next one, or the next ``adopt``."""
        if change.add:
            self._installed.pop(change.entry, None)
        else:
            self._installed[change.entry] = None

    def retry(self, entries: Iterable[Entry]) -> None:
        """Look at these again."""
        self._dirty.update((entry.prefix, None) for entry in entries)

    def adopt(self, present: Iterable[Entry]) -> None:
        """The table holds just these of ours, with whatever source: forget what was known of it."""
        self._installed = dict.fromkeys(present)
        self._unsure = {entry for entry in self._installed if entry.kind == "unicast"}
        self._removals.clear()
        installed = (entry.prefix for entry in self._installed)
        for known in (self._protected, self._kept, self._excluded, installed):
            self._dirty.update(dict.fromkeys(known))


def _meeting(networks: Iterable[Prefix], ranges: Iterable[Range]) -> set[Prefix]:
    """Those networks that have an address in common with one of these ranges."""
    spans = sorted((first.version, int(first), int(last)) for first, last in ranges)
    if not spans:
        return set()
    starts = [(version, first) for version, first, _ in spans]
    # a range that begins later may end before
    ends = list(accumulate(((version, last) for version, _, last in spans), max))
    found = set()
    for prefix in networks:
        last = prefix.value + (1 << (_BITS[prefix.version] - prefix.length)) - 1
        at = bisect_right(starts, (prefix.version, last))
        if at and ends[at - 1] >= (prefix.version, prefix.value):
            found.add(prefix)
    return found


def _around(prefix: Prefix, lengths: Iterable[int]) -> Iterator[Prefix]:
    """The networks of these lengths that it lies in."""
    for length in lengths:
        if length <= prefix.length:
            yield Prefix(prefix.version, length, _cut(prefix, length))


def _cut(prefix: Prefix, length: int) -> int:
    """First address of the network of ``length`` around a prefix."""
    shift = _BITS[prefix.version] - length
    return prefix.value >> shift << shift
