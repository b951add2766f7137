"""Events of vici that come by themselves: log, ike-updown, ike-rekey, ike-update, child-updown, child-rekey, alert.

``log`` has what the daemon logs, from its own log level on. ``alert`` (strongSwan 6.0.3) has those causes that the
engine names when an IKE_SA or CHILD_SA fails; its ``type`` is charon's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from ipsec.ike.child_sa import ChildSa
from ipsec.ike.events import (
    ChildDown,
    ChildNotMade,
    ChildUp,
    Event,
    IkeDown,
    IkeMoved,
    IkeRekeyed,
    IkeUp,
)
from ipsec.ike.sa import IkeSa
from ipsec.ike.state import ChildState, IkeState
from ipsec.vici import show
from ipsec.vici.control import Control
from ipsec.vici.logs import LogRelay, describe, level_of
from ipsec.vici.server import ViciServer

Message = dict[str, Any]

NAMES = (
    *("log", "control-log"),
    *("list-sa", "list-policy", "list-conn", "list-cert", "list-authority"),
    *("ike-updown", "ike-rekey", "ike-update", "child-updown", "child-rekey", "alert"),
)
#: ``log`` has charon's level 1 and what is more important
LOG_LEVEL = 1

_IKE_ALERTS = (
    ("NO_PROPOSAL_CHOSEN", "proposal-mismatch-ike"),
    ("no answer", "retransmit-send-timeout"),
    ("not authenticated in time", "half-open-timeout"),
)
_CHILD_ALERTS = (
    ("NO_PROPOSAL_CHOSEN", "proposal-mismatch-child"),
    ("TS_UNACCEPTABLE", "ts-mismatch"),
    ("cannot be installed", "install-child-sa-failed"),
)


class Publisher:
    """Tells a server's clients what happens."""

    def __init__(self, control: Control, server: ViciServer) -> None:
        self._control = control
        self._server = server
        self._undo: list[Callable[[], None]] = []

    def start(self) -> None:
        """Begin to listen."""
        relay = LogRelay(self._log)
        logger = logging.getLogger("ipsec")
        logger.addHandler(relay)
        self._undo = [self._control.observe(self._see), lambda: logger.removeHandler(relay)]

    def stop(self) -> None:
        """Listen no longer."""
        for undo in self._undo:
            undo()
        self._undo = []

    def _log(self, record: logging.LogRecord, sa: IkeSa | None) -> None:
        if level_of(record) <= LOG_LEVEL:
            self._server.publish("log", lambda: describe(record, sa))

    def _see(self, event: Event) -> None:
        publish = self._server.publish
        match event:
            case IkeUp(sa):
                publish("ike-updown", lambda: {"up": "yes", **self._ike(sa)})
            case IkeDown(sa, reason, established):
                if established:
                    publish("ike-updown", lambda: {sa.name: self._fields(sa, IkeState.DELETING)})
                self._alert(_IKE_ALERTS, reason, sa)
            case IkeRekeyed(before, after):
                both = self._fields(before, IkeState.REKEYING), self._fields(after)
                publish("ike-rekey", {after.name: dict(zip(("old", "new"), both, strict=True))})
            case IkeMoved(sa, _):
                publish("ike-update", lambda: self._moved(sa))
            case ChildUp(child, None):
                publish("child-updown", lambda: {"up": "yes", **self._children(child.ike, self._child(child))})
            case ChildUp(child, old) if old is not None:
                publish("child-rekey", lambda: self._rekeyed(old, child))
            case ChildDown(child, reason):
                gone = ChildState.DELETED
                publish("child-updown", lambda: self._children(child.ike, self._child(child, gone)))
                self._alert(_CHILD_ALERTS[2:], reason, child.ike)
            case ChildNotMade(sa, _, reason):
                self._alert(_CHILD_ALERTS, reason, sa)

    def _alert(self, causes: tuple[tuple[str, str], ...], reason: str, sa: IkeSa) -> None:
        name = next((name for words, name in causes if words in reason), "")
        if name:
            self._server.publish("alert", lambda: {"type": name, "ike-sa": self._ike(sa)})

    # -- what they look like

    def _fields(self, sa: IkeSa, state: IkeState | None = None) -> Message:
        """``state`` is that in which clients expect it: it may have gone further before they are told."""
        return show.ike_sa(sa, self._control.now()) | {"state": (state or sa.state).value}

    def _ike(self, sa: IkeSa) -> Message:
        return {sa.name: self._fields(sa)}

    def _child(self, child: ChildSa, state: ChildState | None = None) -> Message:
        return {f"{child.name}-{child.uid}": self._child_fields(child, state)}

    def _child_fields(self, child: ChildSa, state: ChildState | None = None) -> Message:
        fields = show.child_sa(child, self._control.traffic(child), self._control.now())
        return fields | {"state": (state or child.state).value}

    def _children(self, sa: IkeSa, children: Message) -> Message:
        return {sa.name: {**self._fields(sa), "child-sas": children}}

    def _rekeyed(self, old: ChildSa, new: ChildSa) -> Message:
        both = {"old": self._child_fields(old, ChildState.REKEYED), "new": self._child_fields(new)}
        return self._children(new.ike, {new.name: both})

    def _moved(self, sa: IkeSa) -> Message:
        path = sa.path
        return {
            "local-host": path.local,
            "local-port": path.local_port,
            "remote-host": path.remote,
            "remote-port": path.remote_port,
            **self._ike(sa),
        }
