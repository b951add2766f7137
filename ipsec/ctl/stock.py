"""What the daemon has loaded besides connections, as values: certificates, authorities, pools, algorithms, counters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ipsec.ctl.view import counts, number, section, sections, text, texts
from ipsec.errors import ParseError, SuiteError
from ipsec.text import printable
from ipsec.vici.client import Session

DAY_S = 86400


@dataclass(frozen=True, slots=True)
class Certificate:
    """An X.509 certificate, or a raw public key. What cannot be read has a ``problem`` and nothing else."""

    subject: str
    issuer: str
    serial: str
    names: tuple[str, ...]
    key: str
    ca: bool
    private_key: bool
    "the daemon has the private key: it is ours"
    not_before: str | None
    not_after: str
    days_left: int | None
    "until its end, less than 0 after it"
    early: bool
    "it is not valid yet"
    fingerprint: str
    "SHA-256"
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Crl:
    """A revocation list."""

    issuer: str
    this_update: str
    next_update: str | None
    revoked: int
    days_left: int | None
    problem: str = ""


async def fetch_certificates(session: Session) -> tuple[list[Certificate], list[Crl]]:
    """All of them, what ends first at the top."""
    certificates, crls = [], []
    async for message in session.stream("list-certs", "list-cert"):
        kind, data = text(message, "type"), message.get("data")
        if not isinstance(data, bytes):
            continue
        if kind == "X509_CRL":
            crls.append(_crl(data))
        elif kind == "X509":
            certificates.append(_certificate(message, data))
        else:
            # a raw public key has no validity, unless the daemon tells one
            certificates.append(_other(message, kind))
    certificates.sort(key=lambda one: (one.not_after == "", one.not_after))
    return certificates, sorted(crls, key=lambda one: one.next_update or "9")


def _certificate(message: Mapping[str, Any], data: bytes) -> Certificate:
    # what reads certificates takes its time to load, and no other verb needs it
    from ipsec.crypto.x509 import parse_certificate

    try:
        one = parse_certificate(data)
        names = tuple(printable(str(name)) for name in one.identities if name != one.subject)
        key = printable(str(_key_text(one)))
        fingerprint = one.fingerprint.hex()
    except (ParseError, SuiteError) as error:
        return _other(message, f"X509: {error}", "cannot be read")
    now = datetime.now(UTC)
    return Certificate(
        subject=printable(str(one.subject)),
        issuer=printable(str(one.issuer)),
        serial=f"{one.serial:x}",
        names=names,
        key=key,
        ca=text(message, "flag") == "CA",
        private_key=text(message, "has_privkey") == "yes",
        not_before=one.not_before.isoformat(),
        not_after=one.not_after.isoformat(),
        days_left=(one.not_after - now).days,
        early=one.not_before > now,
        fingerprint=fingerprint,
    )


def _key_text(certificate: Any) -> str:
    """``RSA 2048``, ``EC secp256r1``, ``Ed25519``."""
    key = certificate.x509.public_key()
    kind = type(key).__name__.strip("_").removesuffix("PublicKey")
    if hasattr(key, "curve"):
        return f"EC {key.curve.name}"
    return f"{kind} {key.key_size}" if hasattr(key, "key_size") else kind


def _other(message: Mapping[str, Any], what: str, problem: str = "") -> Certificate:
    return Certificate(
        subject=text(message, "subject", printable(what)),
        issuer="",
        serial="",
        names=(),
        key="",
        ca=text(message, "flag") == "CA",
        private_key=text(message, "has_privkey") == "yes",
        not_before=None,
        not_after="",
        days_left=None,
        early=False,
        fingerprint="",
        problem=problem,
    )


def _crl(data: bytes) -> Crl:
    from ipsec.crypto.revocation import parse_crl

    try:
        one = parse_crl(data)
    except ParseError as error:
        return Crl(f"CRL: {error}", "", None, 0, None, "cannot be read")
    ends = one.next_update
    return Crl(
        issuer=printable(str(one.issuer)),
        this_update=one.this_update.isoformat(),
        next_update=ends.isoformat() if ends else None,
        revoked=len(one.revoked),
        days_left=(ends - datetime.now(UTC)).days if ends else None,
    )


@dataclass(frozen=True, slots=True)
class Authority:
    """A trust anchor that has a name."""

    name: str
    cacert: str
    crl_uris: tuple[str, ...]
    ocsp_uris: tuple[str, ...]


async def fetch_authorities(session: Session) -> list[Authority]:
    """All of them."""
    found = []
    async for message in session.stream("list-authorities", "list-authority"):
        for key, one in sections(message):
            found.append(Authority(key, text(one, "cacert"), texts(one, "crl_uris"), texts(one, "ocsp_uris")))
    return found


@dataclass(frozen=True, slots=True)
class Lease:
    """A virtual address that somebody has, or had and will get again."""

    address: str
    identity: str
    status: str


@dataclass(frozen=True, slots=True)
class Pool:
    """A pool of virtual addresses; ``leases`` is None if they were not asked for."""

    name: str
    base: str
    size: int
    online: int
    offline: int
    leases: tuple[Lease, ...] | None


async def fetch_pools(session: Session, *, leases: bool = False) -> list[Pool]:
    """All of them."""
    answer = await session.request("get-pools", {"leases": leases})
    return [
        Pool(
            name=key,
            base=text(one, "base"),
            size=number(one, "size"),
            online=number(one, "online"),
            offline=number(one, "offline"),
            leases=tuple(
                Lease(text(lease, "address"), text(lease, "identity"), text(lease, "status"))
                for _, lease in sections(section(one, "leases"))
            )
            if leases
            else None,
        )
        for key, one in sections(answer)
    ]


async def fetch_algorithms(session: Session) -> dict[str, dict[str, str]]:
    """What provides each algorithm, by kind."""
    answer = await session.request("get-algorithms")
    return {kind: {printable(name): text(names, name) for name in names} for kind, names in sections(answer)}


async def fetch_counters(session: Session, name: str = "") -> dict[str, dict[str, int]]:
    """IKE's counters by connection, those in all under the empty name; or those of one connection. ViciError."""
    found = {}
    if not name:
        answer = await session.request("get-counters", {"all": "no"})
        found = {key: counts(values) for key, values in sections(section(answer, "counters"))}
    answer = await session.request("get-counters", {"name": name} if name else {"all": "yes"})
    return found | {key: counts(values) for key, values in sections(section(answer, "counters"))}
