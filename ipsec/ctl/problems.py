"""Why tunnels are not up: the failures that ipsecd remembers, and what to do about each kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ipsec.ctl.view import number, section, text, texts
from ipsec.vici.client import Session, ViciError

COMMAND = "ipsecd-problems"

#: what to do, by cause (ipsec.ike.failure.Cause); {conn}, {child} and {peer} are filled in
_ADVICE = {
    "no-answer": "see that {peer} runs IKE and that UDP ports 500 and 4500 pass both ways: "
    "ipsecctl capture {conn} shows what goes out and what comes back",
    "half-open-timeout": "the peer began and went silent: large IKE_AUTH messages may be lost on the way "
    "(fragmentation = yes), or it does not trust our answer; its own log says more",
    "proposal-mismatch-ike": "give both ends one IKE proposal in common: connections.{conn}.proposals here",
    "proposal-mismatch-child": "give both ends one ESP proposal in common: "
    "connections.{conn}.children.{child}.esp_proposals here; mind key exchange groups (PFS)",
    "ts-mismatch": "make local_ts here the remote_ts there, and the other way round: "
    "connections.{conn}.children.{child}",
    "local-auth-failed": "compare the secret, or our certificate and its authority, and our id with what the peer has: "
    "connections.{conn}.local, and section secrets",
    "peer-auth-failed": "compare the secret or key with that of the peer: connections.{conn}.remote, "
    "and section secrets",
    "peer-identity": "set connections.{conn}.remote.id to what the peer says it is, or correct the peer",
    "certificate": "look at the certificate: its validity, its issuer (x509ca, or connections.{conn}.remote.cacerts), "
    "its subjectAltName, and the clock of both hosts",
    "unique-keep": "the peer is connected already: ipsecctl down {conn}, or connections.{conn}.unique = replace",
    "no-connection": "no connection has these addresses: local_addrs and remote_addrs",
    "vip-failure": "look at the pools: ipsecctl list pools; connections.{conn}.pools and vips",
    "install-child-sa-failed": "the text says why, and ipsecctl doctor what the machine lacks",
    "no-path": "check remote_addrs, the name servers and the route: ip route get {peer}",
    "malformed": "the peer sends what RFC 7296 does not allow: ipsecctl log --level ike=debug shows the messages",
    "refused": "the peer says no and not why: its own log does",
    "peer-restarted": "the peer was restarted: ipsecctl up {conn}, or dpd_action = restart for next time",
    "closed-by-peer": "the peer closed it: ipsecctl up {conn}, or close_action = start for next time",
    "expired": "it was not replaced in time: the log has the reason that rekeying failed for",
    "internal-error": "a bug; please report it with the log",
}


@dataclass(frozen=True, slots=True)
class Terms:
    """What one end put forward; empty is not told."""

    proposals: tuple[str, ...] = ()
    local_ts: tuple[str, ...] = ()
    remote_ts: tuple[str, ...] = ()
    id: str = ""
    certificates: tuple[str, ...] = ()

    @staticmethod
    def of(message: Mapping[str, Any]) -> Terms:
        """From a section ``ours`` or ``theirs``."""
        return Terms(
            proposals=texts(message, "proposals"),
            local_ts=texts(message, "local-ts"),
            remote_ts=texts(message, "remote-ts"),
            id=text(message, "id"),
            certificates=texts(message, "certificates"),
        )


@dataclass(frozen=True, slots=True)
class Problem:
    """A failure, as docs/vici.md describes the event ``ipsecd-problem``."""

    conn: str
    child: str
    cause: str
    reason: str
    by: str
    "``peer`` or ``us``: who refused"
    initiator: bool
    "it was we who began"
    remote_host: str
    time: str
    "ISO 8601"
    count: int
    over: bool
    "what failed has come up since"
    ours: Terms
    theirs: Terms

    @staticmethod
    def of(message: Mapping[str, Any]) -> Problem:
        """From an event."""
        return Problem(
            conn=text(message, "ike"),
            child=text(message, "child"),
            cause=text(message, "cause"),
            reason=text(message, "reason"),
            by=text(message, "by"),
            initiator=text(message, "initiator") == "yes",
            remote_host=text(message, "remote-host"),
            time=text(message, "time"),
            count=number(message, "count", 1),
            over=text(message, "over") == "yes",
            ours=Terms.of(section(message, "ours")),
            theirs=Terms.of(section(message, "theirs")),
        )

    @property
    def advice(self) -> str:
        """What to do."""
        peer = self.remote_host or "the peer"
        words = _ADVICE.get(self.cause, "")
        return words.format(conn=self.conn, child=self.child or "NAME", peer=peer)

    def ago_s(self, now: datetime | None = None) -> float | None:
        """Seconds since it happened; None if the daemon's time cannot be read."""
        try:
            then = datetime.fromisoformat(self.time)
        except ValueError:
            return None
        if then.tzinfo is None:
            return None
        return max(((now or datetime.now(UTC)) - then).total_seconds(), 0.0)


async def fetch_problems(session: Session, conn: str = "") -> tuple[Problem, ...] | None:
    """The last failures of all connections, or of one, the latest first; None if the daemon keeps none (charon)."""
    try:
        events = session.stream(COMMAND, "ipsecd-problem", {"ike": conn} if conn else {})
        found = [Problem.of(message) async for message in events]
    except ViciError as error:
        if "does not know" in str(error):
            return None
        raise
    return tuple(sorted(found, key=lambda problem: problem.time, reverse=True))
