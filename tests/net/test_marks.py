"""A mark that nothing else on the host uses."""

from __future__ import annotations

import pytest

from ipsec.net.marks import choose, default_mark, free_mark
from ipsec.net.rtnetlink import MarkRule
from tests.net.test_route import ip, tun

__all__ = ["tun"]

ALL_BITS = 0xFFFFFFFF


def test_each_table_has_its_own() -> None:
    assert default_mark(220) == 0x697000DC
    assert choose(220, []) == default_mark(220)
    assert len({default_mark(table) for table in (1, 220, 254, ALL_BITS)}) == 4
    assert 0 < default_mark((1 << 32) - 0x69700000) <= ALL_BITS, "0 is no mark"


@pytest.mark.parametrize(
    ("mark", "mask"),
    [(default_mark(220), ALL_BITS), (0x69000000, 0xFF000000), (0, 0x1), (0, 0x10000), (0x40, 0x40)],
)
def test_a_rule_with_its_mask_is_stayed_clear_of(mark: int, mask: int) -> None:
    assert default_mark(220) & mask == mark
    chosen = choose(220, [MarkRule(7, 0, mark, mask)])
    assert chosen & mask != mark
    assert 0 < chosen <= ALL_BITS


def test_where_every_mark_is_known_it_is_the_usual_one() -> None:
    halves = [MarkRule(7, 0, 0, 0x80000000), MarkRule(8, 0, 0x80000000, 0x80000000)]
    assert choose(220, halves) == default_mark(220)


@pytest.mark.parametrize("family", ["-4", "-6"])
@pytest.mark.parametrize("negated", ["", "not"])
@pytest.mark.usefixtures("tun")
def test_rules_are_read(family: str, negated: str) -> None:
    assert free_mark(220) == default_mark(220)
    # what a predecessor left for the same table is no hindrance, the rule of another daemon is
    ours = f"{family} rule add not fwmark {default_mark(220):#x} table 220 protocol 205"
    ip(*ours.split())
    assert free_mark(220) == default_mark(220)
    theirs = f"{family} rule add {negated} fwmark {default_mark(220):#x}/0xfffffff0 table 100"
    ip(*theirs.split())
    assert free_mark(220) != default_mark(220)
