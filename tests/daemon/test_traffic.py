"""Accounts grow by what SAs have counted, and never fall."""

from __future__ import annotations

from collections import Counter
from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st

from ipsec.daemon.traffic import NOTHING, Accounts, Seen
from ipsec.esp.drops import DropReason
from ipsec.esp.engine import SaStats
from ipsec.esp.sa import Direction

NAME = ("site", "net")
REASONS = (DropReason.IN_STATE_SEQ_ERROR, DropReason.IN_STATE_PROTO_ERROR)


class Sa:
    """What the data path has of one SA."""

    def __init__(self) -> None:
        self.packets = 0
        self.drops: Counter[DropReason] = Counter()
        self.seen = NOTHING

    def stats(self, now: float) -> SaStats:
        last = now if self.packets else None
        return SaStats(self.packets, self.packets * 100, last, 0, dict(self.drops), ip_address("::1"), None)


@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(("packet", "drop", "look", "end")), st.integers(0, 1))))
def test_accounts_add_up_whoever_looks_when(steps: list[tuple[int, str, int]]) -> None:
    accounts = Accounts()
    sas = [Sa() for _ in range(3)]
    packets, drops = 0, Counter[DropReason]()
    before = 0

    def look(sa: Sa, now: float) -> None:
        sa.seen = accounts.add(NAME, Direction.IN, sa.stats(now), sa.seen)

    for now, (index, what, reason) in enumerate(steps):
        sa = sas[index]
        if what == "packet":
            sa.packets += 1
            packets += 1
        elif what == "drop":
            sa.drops[REASONS[reason]] += 1
            drops[REASONS[reason]] += 1
        else:
            look(sa, now)
            if what == "end":
                sas[index] = Sa()
        total = accounts.of(NAME)[0].packets
        assert before <= total <= packets
        before = total
    for sa in sas:
        look(sa, len(steps))
    account, other = accounts.of(NAME)
    assert (account.packets, account.bytes, account.drops or Counter()) == (packets, packets * 100, drops)
    assert (other.packets, other.bytes, other.drops) == (0, 0, None)


def test_only_what_is_named_is_kept() -> None:
    accounts = Accounts()
    for name in (NAME, ("site", "other"), ("other", "net")):
        assert accounts.add(name, Direction.OUT, Sa().stats(0), NOTHING) == Seen(0, 0, None)
    accounts.keep({NAME})
    assert list(accounts) == [NAME]
