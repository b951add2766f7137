"""Whether the daemon lives, is healthy and is ready, and why not.

live     the event loop turns: whoever asks gets an answer. One that hangs gives none, which is the answer.
healthy  and the data path moves packets. Not while the device is made again.
ready    and the configuration is loaded, and each child that is to be up is: see ``ipsecd.http.ready``.

What a peer does or leaves undone is never a reason to be restarted, so it counts for ready alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from ipsec.config.settings import Readiness
from ipsec.ike.config import Action
from ipsec.ike.events import ChildUp, Event

if TYPE_CHECKING:
    from ipsec.backend.userspace import UserspaceBackend
    from ipsec.daemon.ike import IkeControl

#: children that are named; of the rest there is a number
NAMED_MAX = 8

ChildName = tuple[str, str]
"connection and child"


class Phase(Enum):
    """Where the daemon is in its life."""

    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"


class Verdict(NamedTuple):
    """An answer; without reasons it is yes."""

    problems: tuple[str, ...] = ()

    @property
    def good(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


class Health:
    """The health of one daemon. Everything belongs to the event loop's thread."""

    def __init__(self, backend: UserspaceBackend, readiness: Readiness = Readiness.UP) -> None:
        self.phase = Phase.STARTING
        self._backend = backend
        self._readiness = readiness
        self._ike: IkeControl | None = None
        self._seen: set[ChildName] = set()
        "children that have been up"

    def attach(self, ike: IkeControl) -> None:
        """From now on its children count."""
        self._ike = ike
        if self._readiness is Readiness.ONCE:
            ike.observers.append(self._on_event)

    def _on_event(self, event: Event) -> None:
        if isinstance(event, ChildUp):
            self._seen.add((event.child.ike.name, event.child.name))

    def live(self) -> Verdict:
        """Always yes."""
        return Verdict()

    def healthy(self) -> Verdict:
        """Whether the data path moves packets, or is about to for the first time."""
        if self.phase is Phase.RUNNING and not self._backend.running:
            return Verdict((f"device {self._backend.device} is being made again",))
        return Verdict()

    def ready(self) -> Verdict:
        """Whether traffic can be sent our way."""
        if self.phase is not Phase.RUNNING:
            return Verdict((self.phase.value,))
        return Verdict((*self.healthy().problems, *_told(self.down())))

    def all(self) -> dict[str, Verdict]:
        """The three answers."""
        return {"alive": self.live(), "healthy": self.healthy(), "ready": self.ready()}

    def down(self) -> list[ChildName]:
        """Children that are to be up and are not, or have never been."""
        if self._ike is None:
            return []
        up = self._seen if self._readiness is Readiness.ONCE else self._ike.children_up()
        return [name for name in self.wanted() if name not in up]

    def wanted(self) -> list[ChildName]:
        """Children that are to be up."""
        if self._ike is None:
            return []
        return [
            (connection.name, child.name)
            for connection in self._ike.engine.table.by_name.values()
            for child in connection.children
            if Action.START in child.start_action and not child.shunt
        ]


def _told(names: list[ChildName]) -> Iterable[str]:
    for connection, child in names[:NAMED_MAX]:
        yield f"{connection}/{child} is not up"
    if len(names) > NAMED_MAX:
        yield f"{len(names) - NAMED_MAX} more are not up"
