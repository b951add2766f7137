"""Whether the daemon lives, is healthy and is ready, and why not.

live     the event loop turns: whoever asks gets an answer. One that hangs gives none, which is the answer.
healthy  and the data path moves packets. Not while the device is made again, or somebody has taken it down.
ready    and the configuration is loaded, and each child that is to be up is: see ``ipsecd.http.ready``.

What a peer does or leaves undone is never a reason to be restarted, so it counts for ready alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from enum import Enum
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from ipsec.config.settings import Readiness
from ipsec.daemon.traffic import ChildName
from ipsec.ike.config import Connection
from ipsec.ike.events import ChildDown, ChildUp, Event, IkeDown, IkeRekeyed, IkeUp, InstallChild, RemoveChild
from ipsec.net.link import is_up

if TYPE_CHECKING:
    from ipsec.backend.userspace import UserspaceBackend
    from ipsec.daemon.ike import IkeControl
    from ipsec.ike.table import ConnectionTable

#: children that are named; of the rest there is a number
NAMED_MAX = 8
#: names that may be remembered beside those that are loaded
SPARE = 64


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
    """The health of one daemon. Everything belongs to the event loop's thread.

    Probes come every second and connections are many, so a question costs what has changed since the last one.
    """

    def __init__(
        self, backend: UserspaceBackend, readiness: Readiness = Readiness.UP, *, to_be_up: bool = False
    ) -> None:
        """``to_be_up``: the device is in this network namespace, and it is not the operator who brings it up."""
        self._to_be_up = to_be_up
        self.phase = Phase.STARTING
        self._backend = backend
        self._readiness = readiness
        self._ike: IkeControl | None = None
        self._table: ConnectionTable | None = None
        "what ``_wanted`` was made of"
        self._wanted: dict[str, list[str]] = {}
        "children that are to be up, by connection"
        self._down: dict[ChildName, None] = {}
        "those of them that are not"
        self._changed: set[str] = set()
        "connections of which something has happened since ``_down`` was made"
        self._seen: set[ChildName] = set()
        "children that have been up, if that is what is asked for"
        self._seen_max = SPARE
        "when it is looked through for what is no longer loaded"

    def attach(self, ike: IkeControl) -> None:
        """From now on its children count."""
        self._ike = ike
        ike.observers.append(self._on_event)

    def detach(self) -> None:
        """They do no longer: it could not begin."""
        self._ike = self._table = None
        self._wanted = {}
        self._down.clear()

    def _on_event(self, event: Event) -> None:
        match event:
            case ChildUp() | ChildDown() | InstallChild() | RemoveChild():
                self._note(event.child.ike.name)
            case IkeUp() | IkeDown():
                self._note(event.sa.name)
            case IkeRekeyed():
                self._note(event.new.name)
        if isinstance(event, ChildUp) and self._readiness is Readiness.ONCE:
            self._seen.add((event.child.ike.name, event.child.name))
            if len(self._seen) > self._seen_max:
                self._seen &= {(one.name, child.name) for one in self._loaded().values() for child in one.children}
                self._seen_max = 2 * len(self._seen) + SPARE

    def _note(self, connection: str) -> None:
        """Something has happened there. Whoever never asks must not make us remember names that are no more."""
        self._changed.add(connection)
        if len(self._changed) > 2 * len(self._loaded()) + SPARE:
            self._changed &= self._loaded().keys()

    def _loaded(self) -> Mapping[str, Connection]:
        return self._ike.engine.table.by_name if self._ike is not None else {}

    def live(self) -> Verdict:
        """Always yes."""
        return Verdict()

    def healthy(self) -> Verdict:
        """Whether the data path moves packets, or is about to for the first time."""
        device = self._backend.device
        if self.phase is Phase.RUNNING and not self._backend.running:
            return Verdict((f"device {device} is being made again",))
        if self.phase is Phase.RUNNING and self._to_be_up and _is_down(device):
            return Verdict((f"device {device} was taken down: ip link set {device} up",))
        return Verdict()

    def ready(self) -> Verdict:
        """Whether traffic can be sent our way."""
        if self.phase is not Phase.RUNNING:
            return Verdict((self.phase.value,))
        return Verdict((*self.healthy().problems, *_told(self.down())))

    def all(self) -> dict[str, Verdict]:
        """The three answers."""
        return {"alive": self.live(), "healthy": self.healthy(), "ready": self.ready()}

    def wanted(self) -> Mapping[str, Sequence[str]]:
        """Children that are to be up, by connection."""
        self._settle()
        return self._wanted

    def down(self) -> Collection[ChildName]:
        """Those of them that are not, or have never been."""
        self._settle()
        return self._down.keys()

    def _settle(self) -> None:
        if self._ike is None:
            return
        engine = self._ike.engine
        if engine.table is not self._table:
            self._table = engine.table
            self._down.clear()
            self._wanted = {connection.name: _to_be_up(connection) for connection in engine.table.by_name.values()}
            self._seen = {name for name in self._seen if name[0] in self._wanted}
            self._changed.update(self._wanted)
        for connection in self._changed:
            wanted = self._wanted.get(connection)
            if not wanted:
                continue
            # what was negotiated with another peer of that name, and goes on, is not what is to be up
            fitting = (sa for sa in engine.named(connection) if engine.is_current(sa.connection))
            up = {child.name for sa in fitting for child in sa.children_up()}
            for child in wanted:
                name = connection, child
                if child in up or name in self._seen:
                    self._down.pop(name, None)
                else:
                    self._down[name] = None
        self._changed.clear()


def _is_down(device: str) -> bool:
    try:
        return not is_up(device)
    except OSError:
        # there is none, as in memory, and a real one that is deleted is made again
        return False


def _to_be_up(connection: Connection) -> list[str]:
    return [child.name for child in connection.children if child.starts]


def _told(names: Collection[ChildName]) -> Iterator[str]:
    for connection, child in islice(names, NAMED_MAX):
        yield f"{connection}/{child} is not up"
    if len(names) > NAMED_MAX:
        yield f"{len(names) - NAMED_MAX} more are not up"
