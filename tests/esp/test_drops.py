"""The drop reasons of Python and of the compiled data path are the same numbers under the same names."""

from __future__ import annotations

import re
from pathlib import Path

import ipsec.fast
from ipsec.esp.drops import DropReason


def test_drops_pxd_is_the_mirror():
    text = (Path(ipsec.fast.__path__[0]) / "drops.pxd").read_text()
    compiled = {name: int(value) for name, value in re.findall(r"^\s+DROP_(\w+) = (\d+)$", text, re.MULTILINE)}
    assert compiled.pop("REASONS") == len(DropReason)
    assert compiled == {reason.name: reason.value for reason in DropReason}
    assert sorted(compiled.values()) == list(range(len(DropReason)))
