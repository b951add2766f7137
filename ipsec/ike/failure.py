"""Why something did not come up, or went down: values, from which alerts, metrics, ``explain`` and the log are made.

``ours`` and ``theirs`` hold what differed, as far as either end has told it; a peer that refuses tells no more than one
number. Selectors are seen from here in both: ``local_ts`` is our side, whoever asked for it. All texts are bounded,
since much of them comes from the peer.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address

from ipsec.wire.iana import NotifyType

#: proposals, selectors or identities of one end that are kept, and characters of each
KEPT_MAX = 16
TEXT_MAX = 400
#: failures of peers that no connection is for
STRANGERS_MAX = 32


class Cause(StrEnum):
    """What kind of failure it is. The values are for programs, and stay as they are."""

    NO_ANSWER = "no-answer"
    "the peer does not answer, or answers no more"
    NOT_IN_TIME = "half-open-timeout"
    "an initiator that has not authenticated itself in time"
    IKE_PROPOSALS = "proposal-mismatch-ike"
    CHILD_PROPOSALS = "proposal-mismatch-child"
    SELECTORS = "ts-mismatch"
    LOCAL_AUTH = "local-auth-failed"
    "we cannot prove who we are, or the peer does not believe it"
    PEER_AUTH = "peer-auth-failed"
    "the peer's proof does not hold: another key, or a method that is not the one configured"
    PEER_ID = "peer-identity"
    "the peer is somebody else than we want, or no connection has it"
    CERTIFICATE = "certificate"
    "the peer's certificate is not trusted: issuer, validity, names, revocation"
    UNIQUE = "unique-keep"
    "the peer is connected already"
    NO_CONNECTION = "no-connection"
    "no connection has these addresses"
    ADDRESS = "vip-failure"
    "no virtual address"
    INSTALL = "install-child-sa-failed"
    "the data path did not take it"
    NO_PATH = "no-path"
    "the peer's name or the way to it is not known"
    MALFORMED = "malformed"
    "what the peer sends makes no sense"
    REFUSED = "refused"
    "any other error that the peer names, or that we do"
    RESTARTED = "peer-restarted"
    "the peer has lost its state (RFC 6290)"
    CLOSED = "closed-by-peer"
    EXPIRED = "expired"
    "neither rekeyed nor re-authenticated in time"
    RADIUS = "radius-not-responding"
    "no RADIUS server answers, so nobody can say whether the peer is who it says"
    BUG = "internal-error"


@dataclass(frozen=True)
class Terms:
    """What one end puts forward. What it did not tell, or does not matter, is empty."""

    proposals: tuple[str, ...] = ()
    local_ts: tuple[str, ...] = ()
    remote_ts: tuple[str, ...] = ()
    identity: str = ""
    "who the peer is: as configured in ours, as it says itself in theirs"
    certificates: tuple[str, ...] = ()
    "with issuer and validity"


UNTOLD = Terms()


@dataclass(frozen=True)
class Failure:
    """One failure."""

    cause: Cause
    reason: str
    "in words, as the log has it"
    child: str = ""
    by_peer: bool = False
    "the peer refused; otherwise we did"
    ours: Terms = UNTOLD
    theirs: Terms = UNTOLD

    def __str__(self) -> str:
        return self.reason


@dataclass(frozen=True)
class Problem:
    """A failure, whom it is about and when it was."""

    connection: str
    "empty: of no connection"
    failure: Failure
    peer: IPv4Address | IPv6Address | None
    initiator: bool
    "it was we who began"
    at: datetime
    count: int = 1
    "how often the same came in a row"
    over: bool = False
    "what failed has come up since"


def texts(values: Iterable[object]) -> tuple[str, ...]:
    """Proposals, selectors and the like as bounded texts."""
    found: list[str] = []
    for value in values:
        if len(found) == KEPT_MAX:
            found.append("...")
            break
        found.append(bounded(str(value)))
    return tuple(found)


def bounded(text: str, length: int = TEXT_MAX) -> str:
    """At most so many characters."""
    return text if len(text) <= length else f"{text[:length]}..."


def terms(
    proposals: Sequence[object] = (), local_ts: Sequence[object] = (), remote_ts: Sequence[object] = ()
) -> Terms:
    """What one end puts forward, as texts."""
    return Terms(texts(proposals), texts(local_ts), texts(remote_ts))


#: what an error of the peer means for the IKE_SA, and for a CHILD_SA
_IKE_CAUSES: dict[int, Cause] = {
    NotifyType.NO_PROPOSAL_CHOSEN: Cause.IKE_PROPOSALS,
    NotifyType.AUTHENTICATION_FAILED: Cause.LOCAL_AUTH,
    NotifyType.INTERNAL_ADDRESS_FAILURE: Cause.ADDRESS,
    NotifyType.FAILED_CP_REQUIRED: Cause.ADDRESS,
    NotifyType.INVALID_SYNTAX: Cause.MALFORMED,
}
_CHILD_CAUSES: dict[int, Cause] = {
    **_IKE_CAUSES,
    NotifyType.NO_PROPOSAL_CHOSEN: Cause.CHILD_PROPOSALS,
    NotifyType.INVALID_KE_PAYLOAD: Cause.CHILD_PROPOSALS,
    NotifyType.TS_UNACCEPTABLE: Cause.SELECTORS,
    NotifyType.SINGLE_PAIR_REQUIRED: Cause.SELECTORS,
}


def cause_of(notify: int, *, child: bool) -> Cause:
    """What an error that one end names means; 0 is none."""
    return (_CHILD_CAUSES if child else _IKE_CAUSES).get(notify, Cause.REFUSED)


class Problems:
    """The last failure of each connection and each of its children, as initiator and as responder.

    What a stranger can cause is kept apart from what we began, so that nobody hides the one behind the other. Bounded
    by the names that are configured: ``keep`` forgets the others.
    """

    def __init__(self) -> None:
        self._last: dict[tuple[str, str, bool], Problem] = {}
        self.strangers: deque[Problem] = deque(maxlen=STRANGERS_MAX)
        "failures of no connection, each with how often it has come, the latest last"
        self.counts: Counter[tuple[str, Cause]] = Counter()
        "by connection and cause, since the start; the connection is empty for strangers"

    def note(self, problem: Problem) -> Problem:
        """Keep a failure; as it is kept, which says how often the same has come."""
        self.counts[problem.connection, problem.failure.cause] += 1
        if not problem.connection:
            return self._note_stranger(problem)
        key = problem.connection, problem.failure.child, problem.initiator
        last = self._last.get(key)
        if last is not None and not last.over and last.failure == problem.failure and last.peer == problem.peer:
            problem = replace(problem, count=last.count + 1)
        self._last[key] = problem
        return problem

    def _note_stranger(self, problem: Problem) -> Problem:
        for last in self.strangers:
            if last.failure == problem.failure and last.peer == problem.peer:
                problem = replace(problem, count=last.count + 1)
                self.strangers.remove(last)
                break
        self.strangers.append(problem)
        return problem

    def came_up(self, connection: str, child: str = "") -> None:
        """What has failed is up now: an IKE_SA, or one of its children."""
        if not self._last:
            return
        for initiator in (True, False):
            last = self._last.get((connection, child, initiator))
            if last is not None and not last.over:
                self._last[connection, child, initiator] = replace(last, over=True)

    def of(self, connection: str) -> list[Problem]:
        """The problems of a connection, the latest first."""
        return sorted((one for one in self._last.values() if one.connection == connection), key=_when, reverse=True)

    def __iter__(self) -> Iterator[Problem]:
        return iter(list(self._last.values()))

    def __len__(self) -> int:
        return len(self._last)

    def keep(self, names: Iterable[tuple[str, str]]) -> None:
        """Forget all but these connections and children, the empty name among them for the IKE_SA."""
        wanted = set(names)
        connections = {connection for connection, _ in wanted} | {""}
        self._last = {key: one for key, one in self._last.items() if key[:2] in wanted}
        for key in [key for key in self.counts if key[0] not in connections]:
            del self.counts[key]


def _when(problem: Problem) -> datetime:
    return problem.at
