"""States of IKE_SAs and CHILD_SAs: what they mean, which may follow which, and what each accepts from the peer.

The names are those that vici uses, so that nobody has to translate.

IKE_SA
    CREATED      known to us alone
    CONNECTING   IKE_SA_INIT, IKE_INTERMEDIATE or IKE_AUTH is going on; the peer is not authenticated yet
    ESTABLISHED  both ends are authenticated
    REKEYING     we have asked for a successor (CREATE_CHILD_SA), or both ends have
    REKEYED      a successor took over the CHILD_SAs; waits to be deleted
    DELETING     we have sent a Delete
    DESTROYING   gone
CHILD_SA
    CREATED      being negotiated
    INSTALLING   the inbound SA is in place, the peer does not send to it before our response or Delete says so
    INSTALLED    both directions carry traffic
    REKEYING     we have asked for a successor
    REKEYED      replaced; still takes packets that are on their way
    DELETING     we have sent a Delete
    DELETED      both ends know; the inbound SA still takes packets that are on their way
    DESTROYING   gone
"""

from __future__ import annotations

from enum import Enum

from ipsec.wire.iana import ExchangeType


class IkeState(Enum):
    """States of an IKE_SA."""

    CREATED = "CREATED"
    CONNECTING = "CONNECTING"
    ESTABLISHED = "ESTABLISHED"
    REKEYING = "REKEYING"
    REKEYED = "REKEYED"
    DELETING = "DELETING"
    DESTROYING = "DESTROYING"


class ChildState(Enum):
    """States of a CHILD_SA."""

    CREATED = "CREATED"
    INSTALLING = "INSTALLING"
    INSTALLED = "INSTALLED"
    REKEYING = "REKEYING"
    REKEYED = "REKEYED"
    DELETING = "DELETING"
    DELETED = "DELETED"
    DESTROYING = "DESTROYING"


IKE_TRANSITIONS: dict[IkeState, frozenset[IkeState]] = {
    IkeState.CREATED: frozenset({IkeState.CONNECTING, IkeState.ESTABLISHED, IkeState.DESTROYING}),
    IkeState.CONNECTING: frozenset({IkeState.ESTABLISHED, IkeState.DELETING, IkeState.DESTROYING}),
    IkeState.ESTABLISHED: frozenset({IkeState.REKEYING, IkeState.REKEYED, IkeState.DELETING, IkeState.DESTROYING}),
    IkeState.REKEYING: frozenset({IkeState.ESTABLISHED, IkeState.REKEYED, IkeState.DELETING, IkeState.DESTROYING}),
    # back to ESTABLISHED: the successor that the peer had made was the redundant one (RFC 7296 section 2.8.2)
    IkeState.REKEYED: frozenset({IkeState.ESTABLISHED, IkeState.DELETING, IkeState.DESTROYING}),
    IkeState.DELETING: frozenset({IkeState.DESTROYING}),
    IkeState.DESTROYING: frozenset(),
}

CHILD_TRANSITIONS: dict[ChildState, frozenset[ChildState]] = {
    ChildState.CREATED: frozenset({ChildState.INSTALLING, ChildState.INSTALLED, ChildState.DESTROYING}),
    ChildState.INSTALLING: frozenset(
        {ChildState.INSTALLED, ChildState.DELETING, ChildState.DELETED, ChildState.DESTROYING}
    ),
    ChildState.INSTALLED: frozenset(
        {ChildState.REKEYING, ChildState.REKEYED, ChildState.DELETING, ChildState.DELETED, ChildState.DESTROYING}
    ),
    ChildState.REKEYING: frozenset(
        {ChildState.INSTALLED, ChildState.REKEYED, ChildState.DELETING, ChildState.DELETED, ChildState.DESTROYING}
    ),
    ChildState.REKEYED: frozenset({ChildState.DELETING, ChildState.DELETED, ChildState.DESTROYING}),
    ChildState.DELETING: frozenset({ChildState.DELETED, ChildState.DESTROYING}),
    ChildState.DELETED: frozenset({ChildState.DESTROYING}),
    ChildState.DESTROYING: frozenset(),
}

_AUTHENTICATED = frozenset(
    {ExchangeType.CREATE_CHILD_SA, ExchangeType.IKE_FOLLOWUP_KE, ExchangeType.INFORMATIONAL}
)
#: Requests that an IKE_SA heeds in each state; anything else is dropped unanswered (RFC 7296 section 2.21.4 allows it
#: before authentication; afterwards only what no correct peer sends is left out). IKE_SA_INIT is the engine's.
ACCEPTED_REQUESTS: dict[IkeState, frozenset[int]] = {
    IkeState.CREATED: frozenset(),
    IkeState.CONNECTING: frozenset({ExchangeType.IKE_INTERMEDIATE, ExchangeType.IKE_AUTH}),
    IkeState.ESTABLISHED: _AUTHENTICATED,
    IkeState.REKEYING: _AUTHENTICATED,
    IkeState.REKEYED: _AUTHENTICATED,
    IkeState.DELETING: _AUTHENTICATED,
    IkeState.DESTROYING: frozenset(),
}

#: states in which a CHILD_SA counts as up
CHILD_UP = frozenset({ChildState.INSTALLED, ChildState.REKEYING})
#: states that a CHILD_SA leaves for nothing but its end
CHILD_GOING = frozenset({ChildState.DELETING, ChildState.DELETED, ChildState.DESTROYING})


class StateError(AssertionError):
    """A transition that the tables do not know: a bug of ours, which costs the IKE_SA it happens in."""


def check_ike(old: IkeState, new: IkeState) -> IkeState:
    """``new``, if it may follow ``old``."""
    if new not in IKE_TRANSITIONS[old]:
        raise StateError(f"IKE_SA: {old.value} -> {new.value}")
    return new


def check_child(old: ChildState, new: ChildState) -> ChildState:
    """``new``, if it may follow ``old``."""
    if new not in CHILD_TRANSITIONS[old]:
        raise StateError(f"CHILD_SA: {old.value} -> {new.value}")
    return new
