"""Log lines as vici's ``log`` and ``control-log`` have them: with a group, a level and the IKE_SA they are about."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ipsec.ike.child_sa import ChildSa
from ipsec.ike.sa import IkeSa
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


def level_of(record: logging.LogRecord) -> int:
    """charon's level, the higher the less important."""
    return next((level for least, level in _LEVELS if record.levelno >= least), DEBUG_LEVEL)


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
        "msg": record.getMessage()[:LINE_MAX],
    }


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
        if self._busy or record.thread != self._thread:
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
