"""Events of vici that come by themselves: log, ike-updown, ike-rekey, ike-update, child-updown, child-rekey, alert.

``log`` has what the daemon logs, from its own log level on. ``alert`` (strongSwan 6.0.3) has the failures that charon
has a name for; ``ipsecd-problem`` has all of them, with what differed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from ipsec.ike.child_sa import ChildSa
from ipsec.ike.events import (
    ChildDown,
    ChildUp,
    Event,
    Failed,
    IkeDown,
    IkeMoved,
    IkeRekeyed,
    IkeUp,
)
from ipsec.ike.failure import Cause
from ipsec.ike.sa import IkeSa
from ipsec.ike.state import ChildState, IkeState
from ipsec.vici import show
from ipsec.vici.control import Control
from ipsec.vici.extensions import EVENTS as OUR_EVENTS
from ipsec.vici.extensions import show_problem
from ipsec.vici.logs import LogRelay, describe, describe_in_full, level_of
from ipsec.vici.server import ViciServer

Message = dict[str, Any]

NAMES = (
    *("log", "control-log"),
    *("list-sa", "list-policy", "list-conn", "list-cert", "list-authority"),
    *("ike-updown", "ike-rekey", "ike-update", "child-updown", "child-rekey", "alert"),
    *OUR_EVENTS,
)
#: ``log`` has charon's level 1 and what is more important
LOG_LEVEL = 1
#: no line is that important
_NO_LINES = logging.CRITICAL + 1

#: charon's names of what it alerts to (alert_t); our other causes are no alerts there
_ALERTS = {
    Cause.NO_ANSWER: "retransmit-send-timeout",
    Cause.NOT_IN_TIME: "half-open-timeout",
    Cause.IKE_PROPOSALS: "proposal-mismatch-ike",
    Cause.CHILD_PROPOSALS: "proposal-mismatch-child",
    Cause.SELECTORS: "ts-mismatch",
    Cause.LOCAL_AUTH: "local-auth-failed",
    Cause.PEER_AUTH: "peer-auth-failed",
    Cause.PEER_ID: "peer-auth-failed",
    Cause.CERTIFICATE: "cert-validation-failed",
    Cause.UNIQUE: "unique-keep",
    Cause.ADDRESS: "vip-failure",
    Cause.INSTALL: "install-child-sa-failed",
    Cause.NO_PATH: "peer-addr-failed",
    Cause.EXPIRED: "ike-sa-expired",
    Cause.RADIUS: "radius-not-responding",
}
#: failures of our attempts that charon tells of with ``ike-updown``: one end refused the other. It says nothing where
#: nobody answered. Attempts of others, of which it tells as well, are for anybody to make.
_REFUSALS = frozenset(
    {
        *(Cause.IKE_PROPOSALS, Cause.LOCAL_AUTH, Cause.PEER_AUTH, Cause.PEER_ID, Cause.CERTIFICATE, Cause.UNIQUE),
        *(Cause.MALFORMED, Cause.REFUSED),
    }
)


class Publisher:
    """Tells a server's clients what happens.

    When an IKE_SA goes, its CHILD_SAs go before it in the engine, and after it in the events: that is charon's order.
    """

    def __init__(self, control: Control, server: ViciServer) -> None:
        self._control = control
        self._server = server
        self._relay = LogRelay(self._log)
        self._undo: list[Callable[[], None]] = []
        self._held: dict[int, list[Message]] = {}
        "child-updown of IKE_SAs that are going, by their number"

    def start(self) -> None:
        """Begin to listen."""
        logger = logging.getLogger("ipsec")
        self._set_level()
        logger.addHandler(self._relay)
        self._undo = [
            self._control.observe(self._see),
            self._server.observe(self._set_level),
            lambda: logger.removeHandler(self._relay),
        ]

    def stop(self) -> None:
        """Listen no longer."""
        for undo in self._undo:
            undo()
        self._undo = []

    def _set_level(self) -> None:
        # while nobody listens, a line costs no more than a look at the level
        listening = self._server.wanted("log") or self._server.wanted("ipsecd-log")
        self._relay.setLevel(logging.DEBUG if listening else _NO_LINES)

    def _log(self, record: logging.LogRecord, sa: IkeSa | None) -> None:
        if level_of(record) <= LOG_LEVEL:
            self._server.publish("log", lambda: describe(record, sa))
        self._server.publish("ipsecd-log", lambda: describe_in_full(record, sa))

    def _see(self, event: Event) -> None:
        publish = self._server.publish
        match event:
            case IkeUp(sa):
                publish("ike-updown", lambda: {"up": "yes", **self._ike(sa)})
            case IkeDown(sa, _, up, cause):
                if up:
                    publish("ike-updown", lambda: {sa.name: self._fields(sa, IkeState.DELETING)})
                elif sa.initiator and cause in _REFUSALS:
                    publish("ike-updown", lambda: {sa.name: self._fields(sa, IkeState.CONNECTING)})
                for message in self._held.pop(sa.uid, ()):
                    publish("child-updown", message)
            case IkeRekeyed(before, after):
                both = self._fields(before, IkeState.REKEYING), self._fields(after)
                publish("ike-rekey", {after.name: dict(zip(("old", "new"), both, strict=True))})
            case IkeMoved(sa, _):
                publish("ike-update", lambda: self._moved(sa))
            case ChildUp(child, None):
                publish("child-updown", lambda: {"up": "yes", **self._children(child.ike, self._child(child))})
            case ChildUp(child, old) if old is not None:
                publish("child-rekey", lambda: self._rekeyed(old, child))
            case ChildDown(child, _):
                self._child_down(child)
            case Failed(problem, about):
                publish("ipsecd-problem", lambda: show_problem(problem))
                if problem.failure.cause in _ALERTS:
                    publish("alert", lambda: self._alert(_ALERTS[problem.failure.cause], about))

    def _child_down(self, child: ChildSa) -> None:
        if not self._server.wanted("child-updown"):
            return
        sa, gone = child.ike, self._child(child, ChildState.DELETED)
        if sa.state is IkeState.DESTROYING and not sa.quiet:
            # what it has carried is known now
            self._held.setdefault(sa.uid, []).append(self._children(sa, gone, IkeState.DELETING))
        else:
            self._server.publish("child-updown", self._children(sa, gone))

    def _alert(self, name: str, sa: IkeSa | None) -> Message:
        if sa is None:
            return {"type": name}
        # charon tells it before it gives the IKE_SA up
        state = sa.state
        if state is IkeState.DESTROYING:
            state = IkeState.ESTABLISHED if sa.established_at else IkeState.CONNECTING
        return {"type": name, "ike-sa": {sa.name: self._fields(sa, state)}}

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

    def _children(self, sa: IkeSa, children: Message, state: IkeState | None = None) -> Message:
        return {sa.name: {**self._fields(sa, state), "child-sas": children}}

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
