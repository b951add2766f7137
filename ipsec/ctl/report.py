"""What ``status`` and ``top`` show: tunnels, their traffic, and the daemon that has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ipsec.ctl.output import BAD, DIM, GOOD, WARN
from ipsec.ctl.tunnels import Rate, State, Tunnel
from ipsec.ctl.view import ChildSa

STYLES = {
    State.DOWN: BAD,
    State.PARTLY: WARN,
    State.CONNECTING: WARN,
    State.UP: GOOD,
    State.ON_DEMAND: DIM,
    State.WAITING: DIM,
    State.SHUNT: DIM,
    State.OFF: DIM,
}


@dataclass(frozen=True)
class Status:
    """All that is shown."""

    daemon: str
    version: str
    running: str
    tunnels: Sequence[Tunnel]
    rates: dict[int, Rate]
    sampled: bool

    def rate(self, sas: Sequence[ChildSa]) -> Rate:
        """The traffic of some CHILD_SAs together."""
        return sum((self.rates.get(sa.id, Rate()) for sa in sas), Rate())
