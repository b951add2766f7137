"""Trust: from a certificate to an anchor, held to RFC 5280 section 6.1 and RFC 4945 section 5.1. Nothing is fetched.

    chain = verify_chain(end, received, anchors, wall=now)     # then, if wanted:
    sources = revocation_sources(chain)                        # ipsec.crypto.revocation
    check_revocation(chain, crls, responses, policy, now)

All work that an unauthenticated peer can cause is bounded: certificates looked at, length of the chain, signatures.
What exceeds a bound is refused, never taken for less: else junk would keep us from finding what forbids a chain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from types import MappingProxyType

from cryptography.hazmat.primitives.asymmetric import rsa

from ipsec.crypto import x509
from ipsec.crypto.auth import (
    ANY_SCHEME,
    RSA_SMALL_BITS,
    AuthenticationError,
    Constraints,
    load_spki,
    parse_scheme,
)
from ipsec.crypto.name_constraints import check_names
from ipsec.crypto.policy import check_policies
from ipsec.crypto.x509 import Certificate
from ipsec.errors import ParseError

CHAIN_MAX = 10
"certificates in a chain, end and anchor included"
INTERMEDIATES_MAX = 32
"certificates of the peer that are looked at"
STEPS_MAX = 64
"from a certificate to one that may have signed it, in one verification"
SIGNATURES_MAX = 2 * CHAIN_MAX
"checked for one message with the keys of certificates that a peer sent"
LOADED_SIGNATURES_MAX = 64
"of certificates that a peer sent, checked for one message with the keys of those that are loaded"
RSA_BITS_MAX, RSA_EXPONENT_BITS_MAX = 8192, 17
"of keys that a peer sent (small ones: ``auth``): a signature costs 0.7 ms at most; what is loaded may be larger"

#: purposes that a certificate with ExtKeyUsage must have one of (RFC 4945 section 5.1.3.12, and what is in use)
IKE_PURPOSES = frozenset(
    (
        "1.3.6.1.5.5.7.3.17",  # ipsecIKE
        "2.5.29.37.0",  # anyExtendedKeyUsage
        "1.3.6.1.5.5.7.3.1",  # serverAuth
        "1.3.6.1.5.5.7.3.2",  # clientAuth
        "1.3.6.1.5.5.8.2.2",  # iKEIntermediate
        "1.3.6.1.5.5.7.3.5",  # ipsecEndSystem, as the next two deprecated
        "1.3.6.1.5.5.7.3.6",  # ipsecTunnel
        "1.3.6.1.5.5.7.3.7",  # ipsecUser
    )
)

_PROCESSED = frozenset(
    (
        x509.BASIC_CONSTRAINTS,
        x509.KEY_USAGE,
        x509.EXTENDED_KEY_USAGE,
        x509.SUBJECT_ALT_NAME,
        x509.NAME_CONSTRAINTS,
        x509.SUBJECT_KEY_ID,
        x509.AUTHORITY_KEY_ID,
        x509.CERTIFICATE_POLICIES,
        x509.POLICY_MAPPINGS,
        x509.POLICY_CONSTRAINTS,
        x509.INHIBIT_ANY,
        x509.CRL_DISTRIBUTION_POINTS,
        x509.AUTHORITY_INFO_ACCESS,
    )
)


class CertificateError(AuthenticationError):
    """A certificate is not trusted; ``str()`` says why, for the log."""


class UnwantedError(CertificateError):
    """It is valid, and not one of an authority that is wanted."""


@dataclass(frozen=True)
class Chain:
    """Certificates that were verified, the end entity's first, the highest anchor's last (they may be one)."""

    certificates: tuple[Certificate, ...]

    @property
    def end(self) -> Certificate:
        """The certificate of the peer."""
        return self.certificates[0]

    @property
    def authorities(self) -> tuple[Certificate, ...]:
        """The certificates above the end entity's."""
        return self.certificates[1:]

    def __str__(self) -> str:
        return " <- ".join(str(certificate.subject) for certificate in self.certificates)


class Signatures:
    """Checks signatures of certificates for one message of a peer, however many connections are tried with it: not more
    than SIGNATURES_MAX and LOADED_SIGNATURES_MAX, and none twice.

    The peer decides how many issuers it sends. How many are loaded, of one name too, it does not: these have a bound of
    their own, or a CA that often changed its key could use up the other.
    """

    def __init__(self) -> None:
        self._left = {False: SIGNATURES_MAX, True: LOADED_SIGNATURES_MAX}
        "by whether the issuer is loaded"
        self._wrong: dict[tuple[bytes, bytes], bool] = {}

    def check(self, certificate: Certificate, issuer: Certificate, *, loaded: bool, issuer_loaded: bool) -> None:
        """``loaded``: the certificate is. CertificateError, ParseError."""
        pair = certificate.der, issuer.spki
        if pair not in self._wrong:
            # of two that are our own nobody can bring more
            if not (loaded and issuer_loaded):
                if self._left[issuer_loaded] <= 0:
                    raise _TooMuchError("too many signatures to check")
                self._left[issuer_loaded] -= 1
            self._wrong[pair] = True
            with suppress(AuthenticationError):
                _verified(certificate.tbs, certificate.algorithm, certificate.signature, issuer.spki)
                self._wrong[pair] = False
        if self._wrong[pair]:
            raise CertificateError(f"{certificate.subject} was not signed by {issuer.subject}")


class _TooMuchError(CertificateError):
    """The search is over: what was not looked at could forbid what else was found."""


@dataclass
class _Search:
    issuers: dict[object, list[Certificate]]
    anchors: frozenset[Certificate]
    loaded: Mapping[object, Sequence[Certificate]]
    constraints: Constraints
    signatures: Signatures
    steps_left: int = STEPS_MAX
    reason: str | None = None
    "the first thing that was wrong on the way"

    def is_loaded(self, certificate: Certificate) -> bool:
        return certificate in self.anchors or certificate in self.loaded.get(certificate.subject_key, ())

    def issuers_of(self, certificate: Certificate) -> list[Certificate]:
        """Certificates of that name, anchors first. What is loaded is heard whoever stands between it and the peer."""
        name = certificate.issuer_key
        return list(dict.fromkeys((*self.issuers.get(name, ()), *self.loaded.get(name, ()))))


@dataclass(frozen=True)
class _Rules:
    wall: datetime
    constraints: Constraints
    required_policies: tuple[str, ...]


def verify_chain(
    end: Certificate,
    intermediates: Iterable[Certificate],
    anchors: Sequence[Certificate],
    *,
    wall: datetime,
    constraints: Constraints = ANY_SCHEME,
    required_policies: tuple[str, ...] = (),
    accept: Callable[[Chain], None] | None = None,
    loaded: Mapping[object, Sequence[Certificate]] = MappingProxyType({}),
    signatures: Signatures | None = None,
) -> Chain:
    """The first chain from ``end`` to one of ``anchors`` that is valid at ``wall`` (aware, UTC). CertificateError.

    An anchor is trusted without its issuer, and also as the end of the chain; only an anchor that is a CA has others
    below it. If a chain goes on from it to another anchor, or to one of the ``loaded`` that vouch for nobody, it is
    that longer chain which has to be valid, as in charon: who stands above may have revoked it, and says what its
    names and policies may be. The constraints are for what trust comes from: from the lowest anchor down.

    ``loaded`` is by ``subject_key``. ``accept`` raises UnwantedError for a valid chain that will not do, and the
    search goes on; that is the error then if nothing else is found. ``signatures`` is one for all that is verified
    because of one message. Revocation is not looked at here.
    """
    trusted = frozenset(anchors)
    search = _Search(_by_subject(anchors, intermediates), trusted, loaded, constraints, signatures or Signatures())
    try:
        _check_cost(search, end)
    except ParseError as error:
        raise CertificateError(str(error)) from None
    rules = _Rules(wall, constraints, required_policies)
    reason: str | None = None
    unwanted: UnwantedError | None = None
    for path in _paths(search, (end,)):
        try:
            chain = _validate(path, rules, next(index for index, one in enumerate(path) if one in trusted))
            if accept is not None:
                accept(chain)
            return chain
        except UnwantedError as error:
            unwanted = error
        except (ParseError, AuthenticationError) as error:
            reason = reason or str(error)
    if unwanted is not None:
        raise unwanted
    reason = reason or search.reason
    raise CertificateError(reason or f"no trusted issuer found for {end.subject}, issued by {end.issuer}")


def _by_subject(anchors: Sequence[Certificate], others: Iterable[Certificate]) -> dict[object, list[Certificate]]:
    """Possible issuers by name, anchors first, none twice."""
    found: dict[object, list[Certificate]] = {}
    seen: set[bytes] = set()
    for number, certificate in enumerate((*anchors, *others)):
        if number >= len(anchors) + INTERMEDIATES_MAX:
            break
        if certificate.der not in seen:
            seen.add(certificate.der)
            found.setdefault(certificate.subject_key, []).append(certificate)
    return found


def _paths(search: _Search, path: tuple[Certificate, ...], trusted: bool = False) -> Iterator[tuple[Certificate, ...]]:
    """Paths to anchors along names and signatures, likely ones first. Each step up costs one signature.

    ``trusted``: there is an anchor in the path already. A path ends at one only if none goes on from there.
    """
    last = path[-1]
    trusted = trusted or last in search.anchors
    may_end = trusted and search.is_loaded(last)
    if not trusted and (len(path) >= CHAIN_MAX or not _says_its_issuer(search, last)):
        return
    root = may_end and last.self_issued and _signed(search, last, last, above=True)
    candidates = [] if root else search.issuers_of(last)
    if len(candidates) > 1:
        candidates = sorted(candidates, key=lambda issuer: not _key_ids_agree(last, issuer))
    goes_on = False
    for issuer in candidates:
        if not _leads_on(search, path, issuer, trusted) or not _signed(search, last, issuer, above=may_end):
            continue
        if len(path) >= CHAIN_MAX:
            # who stands above the anchor would not be heard
            raise _TooMuchError(f"more than {CHAIN_MAX} certificates in a chain")
        for longer in _paths(search, (*path, issuer), trusted):
            goes_on = True
            yield longer
    if may_end and not goes_on:
        yield path


def _leads_on(search: _Search, path: tuple[Certificate, ...], issuer: Certificate, trusted: bool) -> bool:
    """Whether a possible issuer leads anywhere: the same name and key again do not.

    But above an anchor a root counts also if its name and key are in the path: whoever is below the root can issue such
    a certificate, and would be rid of it.
    """
    if issuer in path:
        return False
    if trusted and issuer in search.anchors and issuer.self_issued and issuer.spki != path[-1].spki:
        return True
    return not any(issuer.spki == seen.spki and issuer.subject_key == seen.subject_key for seen in path)


def _signed(search: _Search, certificate: Certificate, issuer: Certificate, *, above: bool) -> bool:
    """Whether the issuer signed, and may have. ``above``: the certificate is trusted whoever signed it, so only a CA
    is above it, and how it signed does not matter."""
    search.steps_left -= 1
    if search.steps_left < 0:
        raise _TooMuchError("too many certificates to look at")
    try:
        if above:
            _check_authority(issuer)
        else:
            search.constraints.check_certificate(parse_scheme(certificate.algorithm), issuer.public_key)
        _check_cost(search, issuer)
        loaded, issuer_loaded = search.is_loaded(certificate), search.is_loaded(issuer)
        search.signatures.check(certificate, issuer, loaded=loaded, issuer_loaded=issuer_loaded)
    except _TooMuchError:
        raise
    except (ParseError, AuthenticationError) as error:
        search.reason = search.reason or str(error)
        return False
    return True


def _check_cost(search: _Search, certificate: Certificate) -> None:
    """Refuse keys of strangers that serve nothing but to keep us busy."""
    key = None if search.is_loaded(certificate) else certificate.public_key
    if isinstance(key, rsa.RSAPublicKey):
        bits, exponent_bits = key.key_size, key.public_numbers().e.bit_length()
        # ``auth`` has bounded the exponents of small ones
        if bits > RSA_BITS_MAX or (bits > RSA_SMALL_BITS and exponent_bits > RSA_EXPONENT_BITS_MAX):
            raise CertificateError(f"{certificate.subject} has an RSA key of {bits} bits, exponent of {exponent_bits}")


def _says_its_issuer(search: _Search, certificate: Certificate) -> bool:
    """Whether what says who has issued it can be read (RFC 5280 section 4.2.1.1): the name alone might lead on."""
    try:
        _ = certificate.authority_key_id
    except ParseError as error:
        search.reason = search.reason or str(error)
        return False
    return True


def _key_ids_agree(certificate: Certificate, issuer: Certificate) -> bool:
    try:
        return certificate.authority_key_id in (None, issuer.key_id)
    except ParseError:
        return False


def _validate(path: tuple[Certificate, ...], rules: _Rules, lowest: int) -> Chain:
    """RFC 5280 sections 6.1.3 to 6.1.5, from the top down, of a path whose signatures are good.

    ``lowest`` is the place of the lowest anchor.
    """
    name_constraints: list[x509.NameConstraints] = []
    path_len: int | None = None
    for index in range(len(path) - 1, -1, -1):
        certificate = path[index]
        anchor, end = index == len(path) - 1, index == 0
        _check_itself(certificate, rules.wall)
        if index <= lowest:
            rules.constraints.check_key(certificate.public_key)
        if end or not certificate.self_issued:
            for one in name_constraints:
                check_names(certificate, one)
        if end:
            _check_end(certificate)
            continue
        limit = _check_authority(certificate)
        if path_len is not None and not anchor and not certificate.self_issued:
            if path_len == 0:
                raise CertificateError(f"more authorities than allowed, at {certificate.subject}")
            path_len -= 1
        if limit is not None:
            path_len = limit if path_len is None else min(limit, path_len)
        if certificate.name_constraints is not None:
            name_constraints.append(certificate.name_constraints)
    policies = check_policies(path)
    if not policies.ok or (rules.required_policies and not policies.fulfils(rules.required_policies)):
        raise CertificateError(f"the chain of {path[0].subject} lacks certificate policies that it must have")
    return Chain(path)


@lru_cache(512)
def _cached_verification(tbs: bytes, algorithm: bytes, signature: bytes, spki: bytes) -> None:
    """Remembers what was right; what raises is not remembered. 4 MiB at most, see ``_verified``."""
    parse_scheme(algorithm).verify(load_spki(spki), signature, tbs)


def _verified(tbs: bytes, algorithm: bytes, signature: bytes, spki: bytes) -> None:
    small = len(tbs) + len(signature) + len(spki) <= 8192
    check = _cached_verification if small else _cached_verification.__wrapped__
    check(tbs, algorithm, signature, spki)


def out_of_force(certificate: Certificate, wall: datetime) -> str:
    """In words whose time has not come or is over; empty if it is in force."""
    if wall < certificate.not_before:
        return f"{certificate.subject} is not valid before {certificate.not_before:%Y-%m-%d %H:%M:%S} UTC"
    if wall > certificate.not_after:
        return f"{certificate.subject} expired {certificate.not_after:%Y-%m-%d %H:%M:%S} UTC"
    return ""


def _check_itself(certificate: Certificate, wall: datetime) -> None:
    if why := out_of_force(certificate, wall):
        raise CertificateError(why)
    for oid, (critical, _) in certificate.extensions.items():
        if critical and oid not in _PROCESSED:
            raise CertificateError(f"{certificate.subject} has the unknown critical extension {oid}")


def _check_end(certificate: Certificate) -> None:
    usage = certificate.key_usage
    if usage is not None and not usage & {x509.DIGITAL_SIGNATURE, x509.NON_REPUDIATION}:
        raise CertificateError(f"the key of {certificate.subject} is not for signatures")
    extended = certificate.extended_key_usage
    if extended is not None and not extended & IKE_PURPOSES:
        raise CertificateError(f"the purposes of {certificate.subject} do not include IKE")


def _check_authority(certificate: Certificate) -> int | None:
    """The limit that the basic constraints set, None is none."""
    if certificate.version < 3 or not certificate.is_ca:
        raise CertificateError(f"{certificate.subject} is no certificate authority")
    usage = certificate.key_usage
    if usage is not None and x509.KEY_CERT_SIGN not in usage:
        raise CertificateError(f"the key of {certificate.subject} is not for signing certificates")
    return certificate.path_len
