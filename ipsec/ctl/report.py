"""What ``status`` and ``top`` show: tunnels, their traffic, and the daemon that has them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ipsec.ctl.output import BAD, DIM, GOOD, WARN
from ipsec.ctl.tunnels import Rate, State, Tunnel, sample
from ipsec.ctl.view import (
    ChildSa,
    DataPath,
    IkeSa,
    ManualSa,
    Problem,
    fetch_ailments,
    fetch_data_path,
    fetch_drops,
    fetch_problems,
    section,
    text,
)
from ipsec.vici.client import Session

STYLES = {
    State.DOWN: BAD,
    State.PARTLY: WARN,
    State.CONNECTING: WARN,
    State.UP: GOOD,
    State.ON_DEMAND: DIM,
    State.IDLE: DIM,
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
    manual: Sequence[ManualSa]
    rates: dict[int, Rate]
    manual_rates: dict[str, Rate]
    sampled: bool
    problems: dict[str, list[Problem]]
    "by connection, the latest first"
    drops: dict[tuple[int, str], dict[str, int]] | None
    "packets by reason, by the IKE_SA's number and the CHILD_SA's name and number; None: the daemon does not tell"
    data_path: DataPath | None
    ailments: tuple[str, ...]

    def rate(self, sas: Iterable[ChildSa]) -> Rate:
        """The traffic of some CHILD_SAs together."""
        return sum((self.rates.get(sa.id, Rate()) for sa in sas), Rate())

    def total(self) -> Rate:
        """The traffic of all."""
        return sum((*self.rates.values(), *self.manual_rates.values()), Rate())

    def dropped(self, ike: IkeSa, child: ChildSa) -> dict[str, int] | None:
        """Packets that a CHILD_SA has dropped; None if the daemon does not tell."""
        return self.drops.get((ike.id, f"{child.name}-{child.id}"), {}) if self.drops is not None else None

    def problem(self, tunnel: Tunnel) -> Problem | None:
        """Why a connection is not up; None if it is, or that is not known."""
        if tunnel.state in (State.UP, State.SHUNT, State.OFF):
            return None
        return next((one for one in self.problems.get(tunnel.name, ()) if not one.over), None)


async def ask(session: Session, sample_s: float) -> Status:
    """Ask for all of it; it takes ``sample_s`` seconds, in which the traffic is measured."""
    who, stats = await session.request("version"), await session.request("stats")
    problems: dict[str, list[Problem]] = {}
    for problem in sorted(await fetch_problems(session), key=lambda one: one.at, reverse=True):
        problems.setdefault(problem.conn, []).append(problem)
    data_path, ailments = await fetch_data_path(session), await fetch_ailments(session)
    sampled = await sample(session, sample_s)
    return Status(
        daemon=text(who, "daemon"),
        version=text(who, "version"),
        running=text(section(stats, "uptime"), "running"),
        tunnels=sampled.now.tunnels(),
        manual=sampled.now.manual,
        rates=sampled.rates,
        manual_rates=sampled.manual_rates,
        sampled=sample_s > 0,
        problems=problems,
        drops=await fetch_drops(session),
        data_path=data_path,
        ailments=ailments,
    )
