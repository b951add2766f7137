"""Negotiation: one proposal out of two lists, and traffic selectors down to what both sides want.

RFC 7296 sections 2.7, 2.9 and 3.3. Proposals are compared by their numbers alone, so that transforms which are not
known here, or have an attribute that is not (``Transform.key_bits`` of -1), simply match nothing of ours.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ipsec.errors import ParseError
from ipsec.ike.failure import bounded
from ipsec.wire import additional
from ipsec.wire.iana import Encr, Esn, Integ, KeMethod, Protocol, TransformType, name_of
from ipsec.wire.proposal import Proposal, Transform
from ipsec.wire.selector import ANY_PORT, OPAQUE, TrafficSelector

SELECTORS_MAX = 255
"that a TS payload has room for (RFC 7296 section 3.13)"
PAIRS_MAX = 4096
"policies that a peer may make of one CHILD_SA, where the configuration does not have more itself"

_SHOWN_MAX = 16
"proposals or transforms of a list that are worth a place in the log"

_ENCR, _PRF, _INTEG, _KE, _ESN = (int(t) for t in list(TransformType)[:5])
_KE_TYPES = frozenset((_KE, *range(TransformType.ADDKE1, TransformType.ADDKE7 + 1)))

#: combined mode: integrity comes with encryption (RFC 5282, RFC 4106, RFC 7634), so INTEG is absent or NONE
_COMBINED = frozenset(
    int(encr) for encr in Encr if encr not in (Encr.TRIPLE_DES_CBC, Encr.NULL, Encr.AES_CBC, Encr.AES_CTR)
)

#: for types that may be left out, the transform that leaving them out means (RFC 7296 sections 3.3.3 and 3.3.6)
_NO_INTEG = Transform(_INTEG, Integ.NONE)
_ABSENT: dict[int, Transform] = {
    _INTEG: _NO_INTEG,
    _ESN: Transform(_ESN, Esn.NO),
    **{type_: Transform(type_, KeMethod.NONE) for type_ in _KE_TYPES},
}

_LABELS = {
    _ENCR: "encryption",
    _PRF: "PRF",
    _INTEG: "integrity",
    _KE: "key exchange",
    _ESN: "extended sequence numbers",
}

_ByType = dict[int, list[Transform]]


def _by_type(proposal: Proposal) -> _ByType:
    grouped: _ByType = {}
    for transform in proposal.transforms:
        type_ = transform[0]
        if type_ in grouped:
            grouped[type_].append(transform)
        else:
            grouped[type_] = [transform]
    return grouped


class _Offer:
    """A proposal of the peer. All that is asked of it costs the same however many transforms it has."""

    __slots__ = ("proposal", "transforms", "types")

    def __init__(self, proposal: Proposal) -> None:
        self.proposal = proposal
        self.transforms = set(proposal.transforms)
        self.types = list(dict.fromkeys([transform[0] for transform in proposal.transforms]))


def choose(
    ours: Sequence[Proposal], theirs: Sequence[Proposal], *, ke: int | None = None, skip_ke: bool = False
) -> Proposal | None:
    """The proposal to answer with, or None if nothing fits (NO_PROPOSAL_CHOSEN).

    Our order decides, then theirs. The result has their number and SPI, and one transform for each type that they
    offered, NONE among them where that is what was agreed. ``ke``: a proposal with that key exchange method is
    preferred to all others, as the peer has sent its KE payload already; 0 is no KE payload. ``skip_ke``: key exchange
    does not matter, since the first CHILD_SA has none of its own (RFC 7296 section 1.2).
    """
    mine = [(proposal.protocol, _by_type(proposal)) for proposal in ours]
    offers = [_Offer(proposal) for proposal in theirs]
    wanted: tuple[int | None, ...] = (None,) if ke is None or skip_ke else (ke, None)
    for method in wanted:
        for protocol, have in mine:
            for offer in offers:
                if offer.proposal.protocol != protocol:
                    continue
                chosen = _choose_transforms(have, offer, method, skip_ke)
                if chosen is not None:
                    return Proposal(protocol, chosen, offer.proposal.number, offer.proposal.spi)
    return None


def _choose_transforms(have: _ByType, offer: _Offer, ke: int | None, skip_ke: bool) -> list[Transform] | None:
    ciphers = have.get(_ENCR)
    if ciphers is None:
        return None if _ENCR in offer.types else _choose_rest(have, offer, None, ke, skip_ke)  # AH
    for encr in ciphers:
        # another cipher of ours may agree with their integrity algorithms where this one does not
        if encr in offer.transforms:
            chosen = _choose_rest(have, offer, encr, ke, skip_ke)
            if chosen is not None:
                return chosen
    return None


def _choose_rest(
    have: _ByType, offer: _Offer, encr: Transform | None, ke: int | None, skip_ke: bool
) -> list[Transform] | None:
    """One transform of each type in the offer, in the order of the offer; None if one cannot be agreed."""
    combined = encr is not None and encr[1] in _COMBINED
    if not combined and _INTEG not in offer.types:
        return None  # never encryption without integrity, whatever both sides may have been told
    exchanges = None if skip_ke else _exchanges(have, offer, ke)
    if exchanges is None and not skip_ke:
        return None
    chosen = []
    for type_ in offer.types:
        agreed: Transform | None
        if type_ == _ENCR:
            agreed = encr
        elif exchanges is not None and type_ in exchanges:
            agreed = exchanges[type_]
        elif (skip_ke and type_ in _KE_TYPES) or (combined and type_ == _INTEG):
            # nothing is needed of this type. They may have offered NONE, which is then the answer
            agreed = _ABSENT[type_]
            if agreed not in offer.transforms:
                continue
        else:
            agreed = _common(type_, have.get(type_), offer.transforms)
        if agreed is None:
            return None
        chosen.append(agreed)
    for type_, candidates in have.items():
        if type_ in offer.types or (skip_ke and type_ in _KE_TYPES) or (combined and type_ == _INTEG):
            continue
        if _ABSENT.get(type_) not in candidates:
            return None
    if ke and _KE not in offer.types:
        return None
    return chosen


def _exchanges(have: _ByType, offer: _Offer, ke: int | None) -> dict[int, Transform] | None:
    """A method for each of the key exchanges, none of them twice (RFC 9370 section 2.2.1)."""
    found = {type_: _commons(type_, have.get(type_), offer.transforms) for type_ in offer.types if type_ in _KE_TYPES}
    if ke is not None and _KE in found:
        found[_KE] = [transform for transform in found[_KE] if transform[1] == ke]
    found.setdefault(_KE, [_ABSENT[_KE]])
    if len(found) == 1:
        return {_KE: found[_KE][0]} if found[_KE] else None
    return additional.assign(found)


def _common(
    type_: int, have: Sequence[Transform] | None, candidates: Collection[Transform | None]
) -> Transform | None:
    """The first transform of ours that is among the candidates."""
    found = _commons(type_, have, candidates)
    return found[0] if found else None


def _commons(
    type_: int, have: Sequence[Transform] | None, candidates: Collection[Transform | None]
) -> list[Transform]:
    """The transforms of ours that are among the candidates. Where integrity is asked for, NONE is no answer."""
    if have is None:
        have = [_ABSENT[type_]] if type_ in _ABSENT else []
    return [transform for transform in have if transform in candidates and transform != _NO_INTEG]


def check_answer(offered: Sequence[Proposal], answer: Sequence[Proposal]) -> Proposal:
    """The proposal that the responder chose; ParseError unless it is one of ours, narrowed to one transform per type.

    RFC 7296 sections 2.7 and 3.3. A type may be missing where we had offered to do without; NONE of a type that was
    not offered says nothing and is dropped.
    """
    if len(answer) != 1:
        raise ParseError(f"{len(answer)} proposals in the answer, not 1")
    (chosen,) = answer
    for position, proposal in enumerate(offered, 1):
        # proposals without a number are numbered by position when sent
        if (proposal.number or position) == chosen.number and proposal.protocol == chosen.protocol:
            return _check_subset(proposal, chosen)
    raise ParseError(f"proposal {chosen.number} in the answer is none of ours: {bounded(str(chosen))}")


def _check_subset(proposal: Proposal, chosen: Proposal) -> Proposal:
    offer, got = _by_type(proposal), _by_type(chosen)
    encr = got.get(_ENCR, [None])[0]
    combined = encr is not None and encr[1] in _COMBINED
    if not combined and got.get(_INTEG, [_NO_INTEG]) == [_NO_INTEG]:
        raise ParseError(f"no integrity algorithm in the answer: {bounded(str(chosen))}")
    kept = []
    for type_, transforms in got.items():
        if len(transforms) != 1:
            raise ParseError(f"{len(transforms)} {_label(type_)} transforms in the answer, not 1")
        if type_ in offer and transforms[0] in offer[type_]:
            if combined and type_ == _INTEG and transforms[0] != _NO_INTEG:
                raise ParseError(f"{encr} and {transforms[0]} in one answer")
            kept.append(transforms[0])
        elif transforms[0] != _ABSENT.get(type_) or (type_ in offer and not (combined and type_ == _INTEG)):
            raise ParseError(f"{transforms[0]} in the answer was not offered")
    for type_, transforms in offer.items():
        if type_ not in got and _ABSENT.get(type_) not in transforms and not (combined and type_ == _INTEG):
            raise ParseError(f"no {_label(type_)} transform in the answer")
    if not additional.sound([*chosen.transforms, *([] if _KE in got else [_ABSENT[_KE]])]):
        raise ParseError(f"key exchanges in the answer do not go together: {bounded(str(chosen))}")
    return Proposal(chosen.protocol, kept, chosen.number, chosen.spi)


# -- text


def describe(proposals: Sequence[Proposal]) -> str:
    """A list of proposals for a log line; bounded."""
    return _listed([bounded(str(proposal)) for proposal in proposals[:_SHOWN_MAX]], len(proposals)) or "nothing"


def explain_mismatch(ours: Sequence[Proposal], theirs: Sequence[Proposal], *, skip_ke: bool = False) -> str:
    """Why ``choose`` found nothing, by the pair of proposals that is closest to agreeing; bounded."""
    mine = [(number, p.protocol, _by_type(p)) for number, p in enumerate(ours[:_SHOWN_MAX], 1)]
    their = [(number, _Offer(p)) for number, p in enumerate(theirs[:_SHOWN_MAX], 1)]
    pairs = [
        (_disagreed(have, offer, skip_ke), number, position)
        for number, protocol, have in mine
        for position, offer in their
        if offer.proposal.protocol == protocol
    ]
    if not pairs:
        return f"we have {_protocols(ours)}, they offer {_protocols(theirs)}"
    types, number, position = min(pairs, key=lambda pair: len(pair[0]))
    if not types:
        offer = dict(their)[position]
        twice = not skip_ke and _exchanges(_by_type(ours[number - 1]), offer, None) is None
        return "one method would be used for two key exchanges (RFC 9370)" if twice else "nothing differs"
    have, got = _by_type(ours[number - 1]), _by_type(theirs[position - 1])
    texts = [
        f"{_label(type_)}: we have {_transforms(type_, have)}, they offer {_transforms(type_, got)}"
        for type_ in types[:_SHOWN_MAX]
    ]
    text = bounded("; ".join(texts), 2000) + "; everything else agrees"
    if len(ours) == len(theirs) == 1:
        return text
    return f"{text} (closest: our proposal {number} of {len(ours)} and their proposal {position} of {len(theirs)})"


def _disagreed(have: _ByType, offer: _Offer, skip_ke: bool) -> list[int]:
    """The types of transform that have nothing in common."""
    encr = _common(_ENCR, have.get(_ENCR), offer.transforms)
    if encr is None:
        # a combined cipher against a plain one: what is to be said about integrity follows from that
        combined = (_ENCR in have or _ENCR in offer.types) and (_INTEG not in have or _INTEG not in offer.types)
    else:
        combined = encr[1] in _COMBINED
    types = []
    for type_ in sorted({*have, *offer.types, _INTEG}):
        if (skip_ke and type_ in _KE_TYPES) or (combined and type_ == _INTEG):
            continue
        candidates = offer.transforms if type_ in offer.types else {_ABSENT.get(type_)}
        if _common(type_, have.get(type_), candidates) is None:
            types.append(type_)
    return types


def _label(type_: int) -> str:
    if type_ in _KE_TYPES and type_ != _KE:
        return f"additional key exchange {type_ - TransformType.ADDKE1 + 1}"
    return _LABELS.get(type_) or f"transform type {type_}"


def _transforms(type_: int, grouped: _ByType) -> str:
    transforms = grouped.get(type_) or ([_ABSENT[type_]] if type_ in _ABSENT else [])
    names = ["none" if t == _ABSENT.get(t[0]) and t[0] != _ESN else str(t) for t in transforms[:_SHOWN_MAX]]
    return _listed(names, len(transforms)) or "none"


def _protocols(proposals: Sequence[Proposal]) -> str:
    names = sorted({name_of(Protocol, proposal.protocol) for proposal in proposals})
    return f"proposals for {_listed(names[:_SHOWN_MAX], len(names))}" if names else "no proposals"


def _listed(texts: Sequence[str], total: int) -> str:
    return ", ".join(texts) + (f" and {total - len(texts)} more" if total > len(texts) else "")


# -- traffic selectors


def intersect(a: TrafficSelector, b: TrafficSelector) -> TrafficSelector | None:
    """The selector of all packets that both let through, or None.

    Protocol 0 is any. OPAQUE is hidden ports: part of ANY, and of no range (RFC 4301 section 4.4.1.1).
    """
    if a.start.version != b.start.version:
        return None
    if a.protocol and b.protocol and a.protocol != b.protocol:
        return None
    ports = _common_ports(a.ports, b.ports)
    start = a.start if int(a.start) >= int(b.start) else b.start
    end = a.end if int(a.end) <= int(b.end) else b.end
    if ports is None or int(start) > int(end):
        return None
    protocol = a.protocol or b.protocol
    for same in (a, b):
        # mostly one is within the other, and a new object with its checks costs more than all of the above
        if same.start == start and same.end == end and same.protocol == protocol and same.ports == ports:
            return same
    return TrafficSelector(start, end, protocol, ports)


def _common_ports(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int] | None:
    if a in (ANY_PORT, b):
        return b
    if b == ANY_PORT:
        return a
    if OPAQUE in (a, b):
        return None
    low, high = max(a[0], b[0]), min(a[1], b[1])
    return (low, high) if low <= high else None


def narrow(ours: Sequence[TrafficSelector], theirs: Sequence[TrafficSelector]) -> list[TrafficSelector]:
    """What both lists let through (RFC 7296 section 2.9); empty is TS_UNACCEPTABLE.

    In the order of theirs, in which the first selector may be that of the packet which made the peer ask. What another
    one of the result contains is left out, and what does not fit into a TS payload is, too.
    """
    kept: list[tuple[_Numbers, TrafficSelector]] = []
    for their in theirs:
        for our in ours:
            common = intersect(our, their)
            if common is None:
                continue
            numbers = _numbers(common)
            if any(_within(numbers, other) for other, _ in kept):
                continue
            kept = [entry for entry in kept if not _within(entry[0], numbers)]
            if len(kept) < SELECTORS_MAX:
                kept.append((numbers, common))
    return [selector for _, selector in kept]


def too_many_pairs(
    local: Sequence[TrafficSelector], remote: Sequence[TrafficSelector], wanted: int
) -> bool:
    """Whether two lists make more policies than a peer may cause; ``wanted`` is what the configuration makes itself."""
    return len(local) * len(remote) > max(PAIRS_MAX, wanted)


def shorten(local: list[TrafficSelector], remote: list[TrafficSelector], wanted: int) -> None:
    """Drop the last ones of the longer list until that holds no more: less than was asked for (section 2.9)."""
    while too_many_pairs(local, remote, wanted):
        del (local if len(local) >= len(remote) else remote)[-1]


_Numbers = tuple[int, int, int, int, tuple[int, int]]


def _numbers(ts: TrafficSelector) -> _Numbers:
    return ts.start.version, int(ts.start), int(ts.end), ts.protocol, ts.ports


def _within(a: _Numbers, b: _Numbers) -> bool:
    """``TrafficSelector.contains`` of ``b``, quick enough for two full lists of a peer that means ill."""
    if not (b[1] <= a[1] and a[2] <= b[2] and a[0] == b[0] and b[3] in (0, a[3])):
        return False
    mine, other = a[4], b[4]
    if other in (ANY_PORT, mine):
        return True
    return OPAQUE not in (mine, other) and other[0] <= mine[0] and mine[1] <= other[1]
