"""Additional key exchanges in proposals (RFC 9370 section 2.2.1): transform types 6 to 12, which are to be done after
the first one, in the order of the types."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ipsec.wire.iana import KeMethod, TransformType
from ipsec.wire.proposal import Proposal, Transform

TYPES = range(TransformType.ADDKE1, TransformType.ADDKE7 + 1)


def methods(proposal: Proposal) -> list[int]:
    """The methods that a chosen proposal has for after the first key exchange."""
    chosen = sorted(transform for transform in proposal.transforms if transform.type in TYPES and transform.id)
    return [transform.id for transform in chosen]


def wanted(proposals: Sequence[Proposal]) -> bool:
    """Whether any of them may lead to an additional key exchange."""
    return any(methods(proposal) for proposal in proposals)


def left_out(proposals: Sequence[Proposal]) -> list[Proposal]:
    """What an offer means where there can be no additional key exchange: only those that can go without."""
    return [found for found in map(_without, proposals) if found is not None]


def _without(proposal: Proposal) -> Proposal | None:
    types = {transform.type for transform in proposal.transforms if transform.type in TYPES}
    if not types:
        return proposal
    kept = [t for t in proposal.transforms if t.type not in TYPES or t.id == KeMethod.NONE]
    if not types <= {transform.type for transform in kept}:
        return None
    return Proposal(proposal.protocol, kept, proposal.number, proposal.spi)


def assign(candidates: Mapping[int, Sequence[Transform]]) -> dict[int, Transform] | None:
    """One transform for each type, so that they are ``sound``; None if there is no way.

    Types with the fewest candidates come first, and no set of methods is tried twice: whatever a peer offers, it is
    known soon if they are too few.
    """
    methods = {transform.id for found in candidates.values() for transform in found if transform.id}
    if sum(all(transform.id for transform in found) for found in candidates.values()) > len(methods):
        return None
    return _assign(sorted(candidates, key=lambda type_: (len(candidates[type_]), type_)), candidates, {}, set())


def _assign(
    types: Sequence[int],
    candidates: Mapping[int, Sequence[Transform]],
    chosen: dict[int, Transform],
    tried: set[frozenset[tuple[bool, int]]],
) -> dict[int, Transform] | None:
    if len(chosen) == len(types):
        return chosen
    next_type = types[len(chosen)]
    for transform in candidates[next_type]:
        more = {**chosen, next_type: transform}
        methods = frozenset((type_ == TransformType.KE, one.id) for type_, one in more.items()) | {(True, -len(more))}
        if methods not in tried and sound(more.values()):
            tried.add(methods)
            found = _assign(types, candidates, more, tried)
            if found is not None:
                return found
    return None


def sound(chosen: Iterable[Transform]) -> bool:
    """Whether key exchanges go together: no method is there twice, and there is nothing after a first one that is
    NONE."""
    exchanges = [transform for transform in chosen if transform.type == TransformType.KE or transform.type in TYPES]
    found = [transform.id for transform in exchanges if transform.id]
    none = any(transform.type == TransformType.KE and not transform.id for transform in exchanges)
    return len(set(found)) == len(found) and not (none and found)
