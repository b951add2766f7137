"""What has passed by connection and child, over all the SAs that come and go under these names.

The data path counts by SA, and an SA's counters go with it. An account grows by what an SA has counted since it was
looked at last: whenever somebody looks, and once more before the SA is removed. So it never falls, over rekeyings and
reloads, however the looking is spread over time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from typing import NamedTuple

from ipsec.esp.drops import DropReason
from ipsec.esp.engine import SaStats
from ipsec.esp.sa import Direction

ChildName = tuple[str, str]
"connection and child"


class Seen(NamedTuple):
    """What of an SA is in its account."""

    packets: int = 0
    bytes: int = 0
    drops: dict[DropReason, int] | None = None


NOTHING = Seen()


class Account:
    """One direction of all CHILD_SAs of one name."""

    __slots__ = ("bytes", "drops", "last_use", "packets")

    def __init__(self) -> None:
        self.packets = 0
        self.bytes = 0
        "octets of inner packets"
        self.drops: Counter[DropReason] | None = None
        "None: no packet was dropped"
        self.last_use = 0.0
        "monotonic time of the last good packet, 0 for none"

    def add(self, stats: SaStats, seen: Seen) -> Seen:
        """Take over what an SA has counted since ``seen``; what is seen of it now."""
        self.packets += stats.packets - seen.packets
        self.bytes += stats.bytes - seen.bytes
        if stats.last_use is not None and stats.last_use > self.last_use:
            self.last_use = stats.last_use
        if stats.drops:
            if self.drops is None:
                self.drops = Counter()
            known = seen.drops or {}
            for reason, count in stats.drops.items():
                self.drops[reason] += count - known.get(reason, 0)
        return Seen(stats.packets, stats.bytes, stats.drops or None)


class Accounts:
    """All accounts, by connection and child, and direction."""

    def __init__(self) -> None:
        self._accounts: dict[ChildName, tuple[Account, Account]] = {}

    def of(self, name: ChildName) -> tuple[Account, Account]:
        """Inbound and outbound."""
        found = self._accounts.get(name)
        if found is None:
            found = self._accounts[name] = Account(), Account()
        return found

    def add(self, name: ChildName, direction: Direction, stats: SaStats, seen: Seen) -> Seen:
        """See Account."""
        return self.of(name)[direction is Direction.OUT].add(stats, seen)

    def __iter__(self) -> Iterator[ChildName]:
        return iter(list(self._accounts))

    def __len__(self) -> int:
        return len(self._accounts)

    def keep(self, names: Collection[ChildName]) -> None:
        """Forget all but these names."""
        for name in [name for name in self._accounts if name not in names]:
            del self._accounts[name]
