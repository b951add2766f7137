"""Children that are to be up and cannot be: when each is tried again."""

from __future__ import annotations

from collections.abc import Container

from ipsec.daemon.traffic import ChildName


class Retries:
    """When children are tried again, and after how long. Seconds of the event loop's clock."""

    def __init__(self) -> None:
        self.due: dict[ChildName, float] = {}
        "those that are tried again, and when; who is taken out is not"
        self._waits: dict[ChildName, float] = {}

    def put_off(self, name: ChildName, now: float, *, first: float, most: float) -> float | None:
        """Try it again; after so many seconds, twice as many as the last time.

        None if it is to be tried anyway: whoever tries by hand meanwhile puts off nothing.
        """
        if name in self.due:
            return None
        wait = min(self._waits.get(name, first / 2) * 2, most)
        self._waits[name] = wait
        self.due[name] = now + wait
        return wait

    def take(self, name: ChildName, at: float | None) -> bool:
        """Whether its turn that was to come at ``at`` is still to come; then it has."""
        if at is None or self.due.get(name) != at:
            return False
        del self.due[name]
        return True

    def forget(self, name: ChildName) -> None:
        """It is up, or another one from now on: what was is not tried again, and what fails next is soon."""
        self.due.pop(name, None)
        self._waits.pop(name, None)

    def keep(self, connections: Container[str]) -> None:
        """Remember no others."""
        self._waits = {name: wait for name, wait in self._waits.items() if name[0] in connections}
        self.due = {name: at for name, at in self.due.items() if name[0] in connections}
