"""Certificate policies of a chain (RFC 5280 section 6.1), as the graph of RFC 9618 whose size is bounded."""

from __future__ import annotations

from dataclasses import dataclass, field

from ipsec.crypto import der
from ipsec.crypto.x509 import INHIBIT_ANY, POLICY_CONSTRAINTS, POLICY_MAPPINGS, Certificate
from ipsec.errors import ParseError

ANY_POLICY = "2.5.29.32.0"


@dataclass
class _Node:
    expected: set[str]
    parents: set[str]


@dataclass(frozen=True)
class PolicyResult:
    """What the policies of a chain come to."""

    policies: frozenset[str]
    "policies of the anchor's domain that all certificates share; ANY_POLICY is all of them"
    explicit: bool
    "whether the chain says that there must be some"

    @property
    def ok(self) -> bool:
        """Whether the chain is valid for somebody who asks for no policy."""
        return bool(self.policies) or not self.explicit

    def fulfils(self, required: tuple[str, ...]) -> bool:
        """Whether every one of the policies is among them."""
        return ANY_POLICY in self.policies or set(required) <= self.policies


@dataclass
class _State:
    left: int
    "certificates from here to the end of the chain"
    explicit: int
    mapping: int
    inhibit_any: int
    levels: list[dict[str, _Node]] = field(default_factory=lambda: [{ANY_POLICY: _Node({ANY_POLICY}, set())}])

    @property
    def last(self) -> dict[str, _Node]:
        return self.levels[-1]


def check_policies(certificates: tuple[Certificate, ...], *, explicit: bool = False) -> PolicyResult:
    """Policies of a chain, anchor last, of which only the limits count (RFC 5937 section 3.2). ParseError if malformed.

    RFC 5280 section 6.1 says nothing of an anchor that is the end as well: it has the policies that it asserts.
    """
    if len(certificates) == 1:
        return PolicyResult(certificates[0].policies or frozenset(), False)
    count = len(certificates) - 1
    state = _State(count, 0 if explicit else count + 1, count + 1, count + 1)
    _limit(state, certificates[-1])
    null = False
    for certificate in reversed(certificates[:-1]):
        state.left -= 1
        null = null or not _add_level(state, certificate)
        if null and state.explicit == 0:
            return PolicyResult(frozenset(), True)
        if state.left:
            null = _prepare(state, certificate) or null
            null = null or not state.last
        else:
            require, _ = _policy_constraints(certificate)
            state.explicit = 0 if require == 0 else max(state.explicit - 1, 0)
    found = frozenset() if null else _domain_policies(state.levels)
    return PolicyResult(found, state.explicit == 0)


def _add_level(state: _State, certificate: Certificate) -> bool:
    """RFC 5280 section 6.1.3 (d) and (e). False if no policy is left."""
    policies = certificate.policies
    if policies is None:
        return False
    above = state.last
    level: dict[str, _Node] = {}
    for policy in policies - {ANY_POLICY}:
        parents = {name for name, node in above.items() if policy in node.expected}
        if not parents and ANY_POLICY in above:
            parents = {ANY_POLICY}
        if parents:
            level[policy] = _Node({policy}, parents)
    if ANY_POLICY in policies and (state.inhibit_any > 0 or (state.left and certificate.self_issued)):
        for name, node in above.items():
            for policy in node.expected:
                level.setdefault(policy, _Node({policy}, set())).parents.add(name)
    state.levels.append(level)
    return bool(level)


def _prepare(state: _State, certificate: Certificate) -> bool:
    """RFC 5280 section 6.1.4 (a), (b), (h) to (j). True if no policy is left."""
    mappings = _policy_mappings(certificate)
    level = state.last
    for issuer, subjects in mappings.items():
        if state.mapping > 0:
            if issuer in level:
                level[issuer].expected = subjects
            elif ANY_POLICY in level:
                level[issuer] = _Node(subjects, {ANY_POLICY})
        else:
            level.pop(issuer, None)
    if not certificate.self_issued:
        state.explicit = max(state.explicit - 1, 0)
        state.mapping = max(state.mapping - 1, 0)
        state.inhibit_any = max(state.inhibit_any - 1, 0)
    _limit(state, certificate)
    return not level


def _limit(state: _State, certificate: Certificate) -> None:
    """RFC 5280 section 6.1.4 (i) and (j)."""
    require, inhibit = _policy_constraints(certificate)
    state.explicit = min(state.explicit, state.explicit if require is None else require)
    state.mapping = min(state.mapping, state.mapping if inhibit is None else inhibit)
    if INHIBIT_ANY in certificate.extensions:
        value = der.contents(certificate.extensions[INHIBIT_ANY][1], der.INTEGER)
        state.inhibit_any = min(state.inhibit_any, _skip_certs(value))


def _domain_policies(levels: list[dict[str, _Node]]) -> frozenset[str]:
    """Names that the policies at the end have in the domain of the anchor: where their ancestry leaves anyPolicy."""
    found: set[str] = set()
    names = set(levels[-1])
    for level in reversed(levels[1:]):
        above: set[str] = set()
        for name in names:
            parents = level[name].parents
            if ANY_POLICY in parents and name != ANY_POLICY:
                found.add(name)
            above |= parents - {ANY_POLICY}
            if name == ANY_POLICY:
                above.add(ANY_POLICY)
        names = above
    return frozenset(found | names)


def _policy_mappings(certificate: Certificate) -> dict[str, set[str]]:
    if POLICY_MAPPINGS not in certificate.extensions:
        return {}
    found: dict[str, set[str]] = {}
    for tag, body in der.items(der.contents(certificate.extensions[POLICY_MAPPINGS][1], der.SEQUENCE)):
        pair = der.items(body) if tag == der.SEQUENCE else []
        if [tag for tag, _ in pair] != [der.OID, der.OID]:
            raise ParseError("malformed policy mappings")
        issuer, subject = der.read_oid(pair[0][1]), der.read_oid(pair[1][1])
        if ANY_POLICY in (issuer, subject):
            raise ParseError("anyPolicy in policy mappings")
        found.setdefault(issuer, set()).add(subject)
    return found


def _policy_constraints(certificate: Certificate) -> tuple[int | None, int | None]:
    """requireExplicitPolicy and inhibitPolicyMapping."""
    if POLICY_CONSTRAINTS not in certificate.extensions:
        return None, None
    fields = dict(der.items(der.contents(certificate.extensions[POLICY_CONSTRAINTS][1], der.SEQUENCE)))
    tags = der.context(0, constructed=False), der.context(1, constructed=False)
    if not fields or not set(fields) <= set(tags):
        raise ParseError("malformed policy constraints")
    require, inhibit = (_skip_certs(fields[tag]) if tag in fields else None for tag in tags)
    return require, inhibit


def _skip_certs(value: bytes) -> int:
    count = der.read_int(value, octets_max=8)
    if count < 0:
        raise ParseError("negative number of certificates in a policy extension")
    return count
