"""Log lines as vici's ``log`` and ``control-log`` have them: with a group, a level and the IKE_SA they are about."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from ipsec.ike.child_sa import ChildSa
from ipsec.ike.sa import IkeSa
from ipsec.text import printable
from ipsec.vici.server import Client

Message = dict[str, Any]

#: charon's groups by the part of this package that speaks
_GROUPS = {
    "ike": "IKE",
    "esp": "ESP",
    "backend": "KNL",
    "net": "NET",
    "config": "CFG",
    "vici": "CFG",
    "crypto": "LIB",
    "wire": "ENC",
}
_LEVELS = ((logging.ERROR, 0), (logging.INFO, 1))
DEBUG_LEVEL = 2
LINE_MAX = 4096
#: parts of the daemon that have a level of their own, by what their loggers are called
SUBSYSTEMS = ("ike", "esp", "backend", "net", "config", "daemon", "vici", "crypto")
_NAMES = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
DEFAULT = "default"
"the level that the configuration says"


def level_of(record: logging.LogRecord) -> int:
    """charon's level, the higher the less important."""
    for least, level in _LEVELS:
        if record.levelno >= least:
            return level
    return DEBUG_LEVEL


def sa_of(record: logging.LogRecord) -> IkeSa | None:
    """The IKE_SA that a line is about: lines of the engine name it among what they tell."""
    args = record.args if isinstance(record.args, tuple) else ()
    for arg in args:
        if isinstance(arg, IkeSa):
            return arg
        if isinstance(arg, ChildSa):
            return arg.ike
    return None


def describe(record: logging.LogRecord, sa: IkeSa | None) -> Message:
    """A line as an event."""
    return {
        "group": _GROUPS.get([*record.name.split("."), ""][1], "DMN"),
        "level": level_of(record),
        "ikesa-name": sa.name if sa is not None else None,
        "ikesa-uniqueid": sa.uid if sa is not None else None,
        "msg": printable(record.getMessage()[:LINE_MAX]),
    }


def describe_in_full(record: logging.LogRecord, sa: IkeSa | None) -> Message:
    """A line as ``ipsecd-log`` has it."""
    args = record.args if isinstance(record.args, tuple) else ()
    child = next((arg for arg in args if isinstance(arg, ChildSa)), None)
    return {
        "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
        "level": record.levelname.lower(),
        "subsystem": [*record.name.split("."), "daemon"][1],
        "message": printable(record.getMessage()[:LINE_MAX]),
        "ike": sa.name if sa is not None else None,
        "uniqueid": sa.uid if sa is not None else None,
        "child": child.name if child is not None else None,
        "remote-host": sa.path.remote if sa is not None else None,
    }


class Levels:
    """Levels of subsystems while somebody wants them: of several wishes the most talkative one counts."""

    def __init__(self) -> None:
        self._wishes: dict[int, dict[str, int]] = {}
        "by client; 0 is for those that stay"

    def set(self, client: Client, levels: Mapping[str, str], *, keep: bool) -> None:
        """Levels by subsystem, or for ``all``; ``default`` takes a wish back. ValueError names what is wrong."""
        wish: dict[str, int | None] = {}
        for name, level in levels.items():
            if name != "all" and name not in SUBSYSTEMS:
                raise ValueError(f"there is no subsystem {name[:64]!r}; there are: all, {', '.join(SUBSYSTEMS)}")
            if level != DEFAULT and level not in _NAMES:
                raise ValueError(f"there is no level {level[:64]!r}; there are: {', '.join(_NAMES)}, {DEFAULT}")
            wish |= dict.fromkeys(SUBSYSTEMS if name == "all" else (name,), _NAMES.get(level))
        owner = 0 if keep else id(client)
        if not keep and owner not in self._wishes:
            client.at_end.append(lambda: self._forget(owner))
        mine = self._wishes.setdefault(owner, {})
        for name, number in wish.items():
            if number is None:
                mine.pop(name, None)
            else:
                mine[name] = number
        self._apply()

    def in_effect(self) -> dict[str, str]:
        """The levels of all subsystems."""
        names = {number: name for name, number in _NAMES.items()}
        levels = {name: logging.getLogger(f"ipsec.{name}").getEffectiveLevel() for name in SUBSYSTEMS}
        return {name: names.get(level, str(level)) for name, level in levels.items()}

    def clear(self) -> None:
        """As the configuration says."""
        self._wishes.clear()
        self._apply()

    def _forget(self, owner: int) -> None:
        self._wishes.pop(owner, None)
        self._apply()

    def _apply(self) -> None:
        for name in SUBSYSTEMS:
            wanted = [wish[name] for wish in self._wishes.values() if name in wish]
            logging.getLogger(f"ipsec.{name}").setLevel(min(wanted, default=logging.NOTSET))


class LogRelay(logging.Handler):
    """Gives log lines to a receiver as they come. What the receiver logs itself it does not get."""

    def __init__(self, receiver: Callable[[logging.LogRecord, IkeSa | None], None]) -> None:
        super().__init__(logging.DEBUG)
        self._receiver = receiver
        # sockets belong to the event loop's thread
        self._thread = threading.get_ident()
        self._busy = False

    def emit(self, record: logging.LogRecord) -> None:
        """See logging.Handler."""
        if self._busy or threading.get_ident() != self._thread:
            return
        self._busy = True
        try:
            self._receiver(record, sa_of(record))
        except Exception:
            self.handleError(record)
        finally:
            self._busy = False


@contextmanager
def attached(relay: LogRelay) -> Iterator[None]:
    """A relay at work."""
    logger = logging.getLogger("ipsec")
    logger.addHandler(relay)
    try:
        yield
    finally:
        logger.removeHandler(relay)


@contextmanager
def relay(client: Client, level: int, connection: str) -> Iterator[None]:
    """While a command runs, its client hears what the log says about the IKE_SAs of a connection."""

    def receive(record: logging.LogRecord, sa: IkeSa | None) -> None:
        if sa is not None and sa.name == connection and level_of(record) <= level:
            client.send_event("control-log", describe(record, sa))

    with attached(LogRelay(receive)):
        yield
