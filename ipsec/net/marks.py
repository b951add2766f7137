"""The mark of our own packets where nobody has configured one.

The rule that leads to the tunnel's table spares what bears it, whoever has sent it: the number must be one that nothing
else on this host uses. It follows from the table: of two daemons the packets of one are inner ones to the other.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import islice

from ipsec.net.netlink import Netlink
from ipsec.net.route import PROTOCOL
from ipsec.net.rtnetlink import MarkRule, mark_rules

log = logging.getLogger(__name__)

#: "ip" in ASCII, and far from what people count with: the table's number is added to it
BASE = 0x69700000
_WRAP = 1 << 32
#: from one choice to the next; odd, and all octets change: rules often look at a few bits
_STEP = 0x9E3779B1
_CHOICES_MAX = 1024


def default_mark(table: int) -> int:
    """The mark that belongs to a routing table, unless a rule of somebody else is in the way."""
    return next(_choices(table))


def free_mark(table: int) -> int:
    """The first choice for a table that no rule of somebody else is about, of either IP version."""
    return choose(table, _foreign_rules(table))


def choose(table: int, rules: Sequence[MarkRule]) -> int:
    """The first choice that none of these rules is about; the very first if there is none."""
    choices = islice(_choices(table), _CHOICES_MAX)
    # one that spares the mark, as that of another daemon, would lead our packets around its tunnel: as bad
    free = (mark for mark in choices if all((mark ^ rule.mark) & rule.mask for rule in rules))
    return next(free, default_mark(table))


def _choices(table: int) -> Iterator[int]:
    mark = (BASE + table) % _WRAP
    while True:
        if mark:
            yield mark
        mark = (mark + _STEP) % _WRAP


def _foreign_rules(table: int) -> list[MarkRule]:
    """Rules about marks that neither we nor a predecessor made."""
    try:
        with closing(Netlink()) as netlink:
            found = mark_rules(netlink)
    except OSError as error:
        log.debug("routing rules cannot be read: %s", error)
        return []
    return [rule for rule in found if (rule.table, rule.protocol) != (table, PROTOCOL)]
