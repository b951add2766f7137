"""Writes docs/states.md, the state diagrams of the IKE engine, from the tables in ``ipsec/ike/state.py``.

python -m tools.states            write the file
python -m tools.states --check    status 1 if the file is not what the tables say
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import TypeVar

from ipsec.ike.state import (
    ACCEPTED_REQUESTS,
    CHILD_TRANSITIONS,
    IKE_TRANSITIONS,
    ChildState,
    IkeState,
)
from ipsec.ike.state import __doc__ as MEANING
from ipsec.wire.iana import ExchangeType

FILE = Path(__file__).parent.parent / "docs" / "states.md"

S = TypeVar("S", bound=Enum)


def text() -> str:
    """The whole file."""
    parts = [
        "# States of IKE_SAs and CHILD_SAs\n",
        "Made by `python -m tools.states` from the tables in `ipsec/ike/state.py`; a test holds it to them.\n"
        "A transition that is not here is a bug, which costs the IKE_SA that it happens in.\n",
        "## IKE_SA\n",
        _diagram(IKE_TRANSITIONS, IkeState.CREATED, IkeState.DESTROYING),
        _meaning("IKE_SA", IkeState),
        "Requests that are heeded in each state (IKE_SA_INIT comes before there is an IKE_SA):\n",
        _accepted(),
        "## CHILD_SA\n",
        _diagram(CHILD_TRANSITIONS, ChildState.CREATED, ChildState.DESTROYING),
        _meaning("CHILD_SA", ChildState),
    ]
    return "\n".join(parts)


def _diagram(transitions: Mapping[S, frozenset[S]], first: S, last: S) -> str:
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {first.value}"]
    for old in type(first):
        for new in type(first):
            if new in transitions[old]:
                lines.append(f"    {old.value} --> {new.value}")
    return "\n".join([*lines, f"    {last.value} --> [*]", "```\n"])


def _meaning(heading: str, states: type[Enum]) -> str:
    """A table of what the module's text says about each state below ``heading``."""
    assert MEANING is not None
    section = MEANING.split(f"\n{heading}\n", 1)[1]
    found = {}
    for line in section.splitlines():
        name, _, said = line.strip().partition(" ")
        if not line.startswith(" "):
            break
        found[name] = said.strip()
    return (
        "\n".join(["| state | meaning |", "|---|---|", *(f"| {s.value} | {found[s.value]} |" for s in states)]) + "\n"
    )


def _accepted() -> str:
    lines = ["| state | requests |", "|---|---|"]
    for state in IkeState:
        names = ", ".join(ExchangeType(number).name for number in sorted(ACCEPTED_REQUESTS[state]))
        lines.append(f"| {state.value} | {names or 'none'} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write or compare."""
    if "--check" in sys.argv[1:]:
        return int(FILE.read_text() != text())
    FILE.write_text(text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
