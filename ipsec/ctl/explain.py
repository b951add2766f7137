"""``ipsecctl explain CONN``: why is it not up, and what to do."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime

import click
from rich.text import Text

from ipsec.crypto.x509 import parse_certificate
from ipsec.ctl import complete
from ipsec.ctl.advice import ADVICE
from ipsec.ctl.app import App, Verb, current
from ipsec.ctl.errors import CtlError
from ipsec.ctl.names import known
from ipsec.ctl.output import BAD, DIM, GOOD, WARN, duration
from ipsec.ctl.view import Conn, IkeSa, Problem, fetch_data_path, fetch_policies, fetch_problems, text
from ipsec.errors import ParseError
from ipsec.text import plural, printable
from ipsec.vici.client import Session

#: a certificate that ends so soon is worth a word
SOON_S = 14 * 86400.0
#: of those for whom no connection was, the latest
STRANGERS_MAX = 3


@dataclass(frozen=True, slots=True)
class Child:
    """One child of the connection."""

    name: str
    up: bool
    shunt: bool
    trap: bool
    "traffic brings it up"
    local_ts: tuple[str, ...]
    remote_ts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Cert:
    """A certificate that the connection uses: our own, or an authority that the peer's has to come from."""

    role: str
    "``ours``, ``authority`` or ``peer``"
    subject: str
    issuer: str
    not_before: str
    not_after: str
    left_s: int
    "until not_after; below zero it is over"
    has_key: bool

    @property
    def trouble(self) -> str:
        """What is wrong with its validity or key; empty if nothing is."""
        if self.left_s < 0:
            return f"expired {duration(-self.left_s)} ago"
        if datetime.fromisoformat(self.not_before) > datetime.now(UTC):
            return f"not valid before {self.not_before}"
        if self.role == "ours" and not self.has_key:
            return "its private key is not loaded"
        return f"expires in {duration(self.left_s)}" if self.left_s < SOON_S else ""


@dataclass(frozen=True)
class Explanation:
    """All that is known about one connection."""

    conn: Conn
    sas: tuple[IkeSa, ...]
    children: tuple[Child, ...]
    problems: tuple[Problem, ...] | None
    "None: the daemon does not remember any"
    certs: tuple[Cert, ...]
    strangers: tuple[Problem, ...] = ()
    "what failed before it was clear for which connection"

    @property
    def up(self) -> bool:
        """Whether all children that can be are."""
        return all(child.up for child in self.children if not child.shunt) and any(sa.up for sa in self.sas)

    def advice(self) -> list[str]:
        """What to do, the most useful first; empty if nothing has to be done."""
        found = [cert.subject + " " + cert.trouble for cert in self.certs if cert.trouble]
        if self.up:
            return found
        open_ones = [problem for problem in self.problems or () if not problem.over]
        found += [ADVICE[problem.cause] for problem in open_ones if problem.cause in ADVICE]
        name = self.conn.name
        if open_ones:
            if self._stays_down(open_ones):
                key = "close_action" if open_ones[0].cause == "closed-by-peer" else "dpd_action"
                found.append(f"it is not tried again by itself: ipsecctl up {name}; {key} = start would do that")
            return list(dict.fromkeys(found))
        found += [
            f"{one.peer} came {plural(one.count, 'time')}, and none of the connections was for it: {one.reason}"
            for one in self.strangers[-STRANGERS_MAX:]
        ]
        if self.problems is None:
            found.append(f"this daemon does not remember failures: ipsecctl up {name} shows one as it happens")
        elif any(not sa.up for sa in self.sas):
            found.append(f"it is being negotiated right now: ipsecctl watch, or ipsecctl log {name}")
        elif self.conn.passive:
            found.append("the peer has to begin, and has not: remote_addrs names no address of it")
        elif any(child.trap for child in self.children):
            found.append(f"it waits for traffic: send some, or ipsecctl up {name}")
        else:
            found.append(f"nobody has tried so far: ipsecctl up {name}, or start_action = start")
        return found

    def _stays_down(self, problems: list[Problem]) -> bool:
        """Whether it is to be up, and nobody here is about to do something for it."""
        wanted = any("start" in child.start_action for child in self.conn.children if not child.shunt)
        busy = any(not sa.up for sa in self.sas) or any(one.retry_in_s is not None for one in problems)
        return wanted and not busy and not any(child.trap for child in self.children)


@click.command(cls=Verb)
@click.argument("conn", shell_complete=complete.conns)
def explain(conn: str) -> None:
    """Say why a connection is not up, and what to do about it.

    Shows the last failure of each child with what both ends wanted: proposals, selectors, identities, certificates.
    """
    app = current()

    async def work() -> Explanation:
        async with app.session() as session:
            return await _explain(session, conn)

    found = app.run(work)
    if app.json:
        app.document("explanation", **_document(found))
    else:
        _print(app, found)


async def _explain(session: Session, name: str) -> Explanation:
    there = await known(session)
    names = list(dict.fromkeys(target.conn for target in there.find(name)))
    conn = there.conn(names[0])
    if len(names) > 1:
        raise CtlError(f"{name} means {plural(len(names), 'connection')}", f"explain one: {', '.join(names[:8])}")
    if conn is None:
        raise CtlError(f"{names[0]} is up, and not configured any more", f"ipsecctl status {names[0]}")
    # what is up with the old peer explains nothing
    sas = tuple(sa for sa in there.sas if sa.name == conn.name and not sa.replaced)
    up = {child.name for sa in sas for child in sa.children if child.up}
    policies = [policy for policy in await fetch_policies(session) if policy.conn == conn.name]
    traps = {policy.child for policy in policies if policy.kind == "trap"}
    shunts = {policy.child for policy in policies} - traps
    children = tuple(
        Child(
            name=one.name,
            up=one.name in (shunts if one.shunt else up),
            shunt=one.shunt,
            trap=one.name in traps,
            local_ts=one.local_ts,
            remote_ts=one.remote_ts,
        )
        for one in conn.children
    )
    problems: tuple[Problem, ...] | None = await fetch_problems(session, conn.name)
    if not problems and await fetch_data_path(session) is None:
        problems = None
    strangers = tuple(one for one in await fetch_problems(session) if not one.conn)
    return Explanation(conn, sas, children, problems, await _certs(session, conn), strangers)


async def _certs(session: Session, conn: Conn) -> tuple[Cert, ...]:
    """Those that matter if signatures do: ours, the peer's own if they are configured, and authorities."""
    auths = (*conn.local, *conn.remote)
    if not any("public key" in auth.method or auth.method in ("any", "EAP", "EAP (TLS)") for auth in auths):
        return ()
    ours = {name for auth in conn.local for name in auth.certs}
    peers = {name for auth in conn.remote for name in auth.certs}
    anchors = {name for auth in conn.remote for name in auth.cacerts}
    found: dict[tuple[str, str, str], Cert] = {}
    async for message in session.stream("list-certs", "list-cert", {"type": "X509"}):
        data, has_key = message.get("data"), text(message, "has_privkey") == "yes"
        try:
            certificate = parse_certificate(data if isinstance(data, bytes) else b"")
        except ParseError:
            continue
        subject = printable(str(certificate.subject))
        if subject in ours or (has_key and not ours):
            role = "ours"
        elif subject in peers:
            role = "peer"
        elif subject in anchors or (not anchors and text(message, "flag") == "CA"):
            role = "authority"
        else:
            continue
        left = int((certificate.not_after - datetime.now(UTC)).total_seconds())
        one = Cert(
            role,
            subject,
            printable(str(certificate.issuer)),
            certificate.not_before.isoformat(),
            certificate.not_after.isoformat(),
            left,
            has_key,
        )
        found[role, subject, one.not_after] = one
    order = ("ours", "peer", "authority")
    return tuple(sorted(found.values(), key=lambda cert: (order.index(cert.role), cert.subject)))


def _document(found: Explanation) -> dict[str, object]:
    return {
        "conn": found.conn.name,
        "up": found.up,
        "children": [asdict(child) for child in found.children],
        "problems": None if found.problems is None else [asdict(problem) for problem in found.problems],
        "certs": [{**asdict(cert), "trouble": cert.trouble} for cert in found.certs],
        "advice": found.advice(),
    }


# -- for people


def _print(app: App, found: Explanation) -> None:
    state = ("up", GOOD) if found.up else ("not up", BAD)
    ends = f"{', '.join(found.conn.local_addrs) or '%any'} ... {', '.join(found.conn.remote_addrs) or '%any'}"
    out = app.out
    out.print(Text.assemble((found.conn.name, "bold"), " ", state, f"  {ends}"))
    for sa in found.sas:
        who = f"  {sa.local_host} [{sa.local_id}] ... {sa.remote_host} [{sa.remote_id}]"
        out.print(Text.assemble(f"  {sa.name}[{sa.id}] {sa.state}", (who, DIM)))
    for child in found.children:
        state = ("up", GOOD) if child.up else ("waits for traffic", DIM) if child.trap else ("not up", BAD)
        networks = f"{' '.join(child.local_ts)} === {' '.join(child.remote_ts)}"
        out.print(Text.assemble("  / ", (child.name, "bold"), " ", state, f"  {networks}"))
    for problem in found.problems or ():
        out.print()
        _print_problem(app, problem)
    if found.certs:
        out.print(Text("\nCertificates", style="bold"))
        for cert in found.certs:
            until = f"valid until {cert.not_after[:10]}"
            word = (cert.trouble, BAD if cert.left_s < 0 else WARN) if cert.trouble else until
            out.print(Text.assemble(f"  {cert.role:9}  {cert.subject}  ", word))
            if cert.issuer != cert.subject:
                out.print(Text(f"             issued by {cert.issuer}", style=DIM))
    advice = found.advice()
    if advice:
        out.print(Text("\nWhat to do" if not found.up else "\nWatch out", style="bold"))
        for words in advice:
            out.print(Text.assemble(("  -> ", "bold"), words))


#: causes that are no refusal by either end
_NOBODY_REFUSES = frozenset(
    ("no-answer", "no-path", "half-open-timeout", "closed-by-peer", "peer-restarted", "expired", "internal-error")
)


def _print_problem(app: App, problem: Problem) -> None:
    ago = problem.ago_s
    when = f"{duration(ago)} ago" if ago is not None else problem.at
    times = f", {problem.count} times in a row" if problem.count > 1 else ""
    over = ", and has come up since" if problem.over else ""
    what = f"child {problem.child}" if problem.child else "IKE_SA"
    began = "we began" if problem.initiator else f"{problem.peer or 'the peer'} began"
    refused = "" if problem.cause in _NOBODY_REFUSES else ", the peer refused" if problem.by_peer else ", we refused"
    head = Text.assemble((what, "bold"), f": {problem.cause} ", (f"({when}{times}{over}; {began}{refused})", DIM))
    app.out.print(head)
    app.out.print(Text(f"  {problem.reason}", style=DIM if problem.over else BAD))
    if problem.retry_in_s is not None and not problem.over:
        app.out.print(f"  tried again in {duration(problem.retry_in_s)}")
    for what in dict.fromkeys((*problem.ours, *problem.theirs)):
        ours, theirs = problem.ours.get(what, ()), problem.theirs.get(what, ())
        if ours == theirs:
            continue
        for who, values in (("ours", ours), ("theirs", theirs)):
            for index, value in enumerate(values or (() if what == "certificates" else ("(not told)",))):
                label = f"{what} {who}" if not index else ""
                app.out.print(Text.assemble((f"  {label:20}", DIM), value))
