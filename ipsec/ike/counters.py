"""Messages, rekeyings and the like counted, in all and by connection; where charon counts the same, under its names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from ipsec.wire.iana import ExchangeType

#: those that charon has, in the order in which they are told
NAMES = (
    *("ike-rekey-init", "ike-rekey-resp", "child-rekey", "invalid", "invalid-spi"),
    *(f"{what}-{how}" for what in ("ike-init", "ike-auth", "create-child", "info")
      for how in ("in-req", "in-resp", "out-req", "out-resp")),
)  # fmt: skip

_EXCHANGES = {
    ExchangeType.IKE_SA_INIT: "ike-init",
    ExchangeType.IKE_AUTH: "ike-auth",
    ExchangeType.CREATE_CHILD_SA: "create-child",
    ExchangeType.INFORMATIONAL: "info",
}
#: (exchange, came in, is a response) -> name
_MESSAGES = {
    (int(exchange), incoming, response): f"{what}-{'in' if incoming else 'out'}-{'resp' if response else 'req'}"
    for exchange, what in _EXCHANGES.items()
    for incoming in (False, True)
    for response in (False, True)
}


class Counters:
    """Counters since the start or the last reset; a message counts once, however often it is sent."""

    __slots__ = ("_taken", "all", "named")

    def __init__(self) -> None:
        self.all: Counter[str] = Counter()
        self.named: dict[str, Counter[str]] = {}
        "by connection"
        self._taken: dict[str, Counter[str]] = {}
        "what resets took away"

    def add(self, name: str, connection: str = "") -> None:
        """Count one; without a connection only in all."""
        self.all[name] += 1
        if connection:
            named = self.named.get(connection)
            if named is None:
                named = self.named[connection] = Counter()
            named[name] += 1

    def message(self, exchange: int, connection: str = "", *, incoming: bool, response: bool) -> None:
        """Count a message; those of other exchanges are not counted."""
        name = _MESSAGES.get((exchange, incoming, response))
        if name is not None:
            self.add(name, connection)

    def reset(self, connection: str = "") -> bool:
        """Begin anew, in all or for one connection; False if nothing was counted for that."""
        found = self.named.pop(connection, None) if connection else self.all
        if found is None:
            return False
        self._taken.setdefault(connection, Counter()).update(found)
        if not connection:
            self.all = Counter()
        return True

    def keep(self, connections: Collection[str]) -> None:
        """Forget what was counted for all but these connections; what was counted in all stays."""
        for counted in (self.named, self._taken):
            for name in [name for name in counted if name and name not in connections]:
                del counted[name]

    def total(self, name: str, connection: str = "") -> int:
        """One of them since the start, however often somebody began anew; without a connection in all."""
        found = self.named.get(connection) if connection else self.all
        taken = self._taken.get(connection)
        return (found[name] if found is not None else 0) + (taken[name] if taken is not None else 0)
