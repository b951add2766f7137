"""``ipsecctl doctor``: the machine and the daemon, every requirement found or missing, and how to mend it."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import asdict, dataclass

import click
from rich.text import Text

from ipsec.backend.requirements import Requirement, State
from ipsec.ctl.advice import ADVICE
from ipsec.ctl.app import FILE, App, Verb, current
from ipsec.ctl.check import fetch_changes, read
from ipsec.ctl.errors import CtlError, ExitCode
from ipsec.ctl.output import BAD, GOOD, WARN, Column, Table
from ipsec.ctl.view import fetch_problems, number, section, sections, text, texts
from ipsec.daemon.ready import in_short, requirements
from ipsec.errors import BackendError, ConfigError
from ipsec.text import plural
from ipsec.vici.client import Session, UnknownToDaemon, ViciError

STYLES = {State.FOUND: GOOD, State.HINT: WARN, State.MISSING: BAD}
#: what a running daemon holds, so that nobody else can try it
_HELD = ("TUN device", "UDP over IPv4", "UDP over IPv6", "IKE over IPv4", "IKE over IPv6", "state directory",
         "routes (CAP_NET_ADMIN)", "vici socket", "vici over TCP", "metrics and health")  # fmt: skip
#: fewer packets for one reason are noise: a host says this and that into any device
DROPS_MIN = 10
#: connections whose problem is told one by one
PROBLEMS_MAX = 10
#: what packets are dropped for, and what to do if there are many (ipsec.esp.drops)
_DROPS = {
    "IN_STATE_PROTO_ERROR": "packets were changed on the way, or the peer has other keys: ipsecctl rekey",
    "IN_HDR_ERROR": "packets are not as long as their suite makes them: damaged, or sha256_96 = yes at one end alone",
    "IN_NO_STATES": "the peer sends through SAs that are not here: it has not noticed a restart; set dpd_delay there",
    "IN_STATE_SEQ_ERROR": "packets came twice or very late; a larger replay_window helps if the network reorders",
    "IN_TMPL_MISMATCH": "not negotiated: compare local_ts and remote_ts of both ends; or errors of routers (icmp)",
    "OUT_NO_POLS": "no child is for what is routed here: local_ts, the routes; or errors of routers (icmp)",
    "OUT_NO_STATES": "traffic came while its tunnel was down: ipsecctl status, ipsecctl explain",
    "OUT_TOO_BIG": "packets with DF were too large for the tunnel; the senders were told. A lower MTU or MSS avoids it",
    "OUT_SEND_ERROR": "the network refused our packets: routes, firewall, or an address of ours that is gone",
    "IN_DEVICE_ERROR": "the TUN device refused packets: is it up, and rp_filter not in the way?",
}


#: what RADIUS servers are asked for
_RADIUS_KINDS = {"auth": "who users are", "acct": "accounting"}


@dataclass(frozen=True)
class Group:
    """Requirements that belong together."""

    title: str
    found: tuple[Requirement, ...]

    @property
    def complete(self) -> bool:
        """Nothing is missing."""
        return all(one.state is not State.MISSING for one in self.found)


@click.command(cls=Verb)
@click.argument("file", required=False, type=FILE)
def doctor(file: str | None) -> int:
    """Look at the machine, the configuration and the daemon, and say what is missing.

    For what is missing it says how to mend it. Every requirement is tried as the daemon would (which takes its
    rights), and undone. What a running daemon holds is asked of it instead, and how its tunnels are. FILE is the file
    of the running daemon if it is not given, else IPSEC_CONFIG or /etc/swanctl/swanctl.conf.
    """
    app = current()
    daemon = app.run(lambda: _look(app))
    groups = [
        Group("This machine", _machine(file or daemon.file, running=daemon.running)),
        Group("The daemon", tuple(daemon.found)),
    ]
    complete = all(group.complete for group in groups)
    if app.json:
        app.document("doctor", complete=complete, groups=[_document(group) for group in groups])
    else:
        _print(app, groups, complete)
    return ExitCode.OK if complete else ExitCode.REQUIREMENT


# -- the machine


def _machine(file: str | None, *, running: bool) -> tuple[Requirement, ...]:
    """What the configuration needs. ``running``: a daemon holds devices and ports, so that they are not free."""
    try:
        config = read(file)
    except ConfigError as error:
        remedy = "correct the file, or name another: ipsecctl doctor FILE"
        return tuple(Requirement("configuration", State.MISSING, line, remedy) for line in error.lines())
    found = [Requirement("configuration", State.FOUND, f"{config.file}: {config.contents()}")]
    found += [Requirement("configuration", State.HINT, one, "correct the file") for one in config.warnings]
    try:
        needed = requirements(config)
    except (ConfigError, BackendError) as error:
        remedy = getattr(error, "remedy", None) or "correct the file"
        return (*found, Requirement("backend", State.MISSING, getattr(error, "message", str(error)), remedy))
    return (*found, *(one for one in needed if not (running and one.name in _HELD)))


# -- the daemon


class _Findings:
    """What a daemon tells of itself."""

    def __init__(self) -> None:
        self.running = False
        self.file: str | None = None
        self.found: list[Requirement] = []

    def add(self, name: str, detail: str, remedy: str = "", state: State | None = None) -> None:
        """One line; with a remedy, and no state, it is a hint."""
        self.found.append(Requirement(name, state or (State.HINT if remedy else State.FOUND), detail, remedy))


async def _look(app: App) -> _Findings:
    seen = _Findings()
    try:
        session = await app.connect()
    except CtlError as problem:
        seen.add("daemon", problem.message, problem.remedy)
        return seen
    seen.running = True
    async with session:
        version = await session.request("version")
        seen.add("daemon", f"{text(version, 'daemon')} {text(version, 'version')} answers on {app.socket}")
        try:
            await _data_path(session, seen)
        except UnknownToDaemon:
            seen.add("data path", "this daemon does not tell how it is (it is no ipsecd)", "its own log does")
            return seen
        except ViciError as error:
            why = str(error).removeprefix("ipsecd-data-path: ")
            seen.add("data path", why, "the daemon's log says why: ipsecctl log", State.MISSING)
            return seen
        await _health(session, seen)
        await _radius(session, seen)
        await _file(session, seen)
        await _problems(session, seen)
    return seen


async def _data_path(session: Session, seen: _Findings) -> None:
    path = await session.request("ipsecd-data-path")
    workers = number(path, "workers")
    where = plural(workers, "worker thread") if workers else "the event loop"
    seen.add("device", f"{text(path, 'device')}, MTU {number(path, 'mtu')}, packets move in {where}")
    for title, key in (("ESP ports", "ports"), ("IKE ports", "ike-ports")):
        ports = [f"{version} {text(section(path, key), version)}" for version in section(path, key)]
        if ports:
            seen.add(title, ", ".join(ports))
    offloads = section(path, "offloads")
    on = [name for name in offloads if text(offloads, name) == "yes"]
    off = [name for name in offloads if name not in on]
    seen.add("offloads", f"in use: {', '.join(on) or 'none'}" + (f"; not in use: {', '.join(off)}" if off else ""))
    providers = section(path, "providers")
    by = Counter(text(providers, suite) for suite in providers)
    if by:
        seen.add("ciphers", ", ".join(f"{plural(count, 'suite')} by {name}" for name, count in sorted(by.items())))
    if text(path, "keylog"):
        seen.add("key files", f"all keys are written to {text(path, 'keylog')}", "remove ipsecd.keylog")
    drops = section(path, "drops")
    for reason in drops:
        count = number(drops, reason)
        if reason in _DROPS and count >= DROPS_MIN:
            seen.add(f"dropped: {reason}", plural(count, "packet"), _DROPS[reason])


async def _health(session: Session, seen: _Findings) -> None:
    for question, answer in sections(await session.request("ipsecd-health")):
        problems = texts(answer, "problems")
        if problems:
            seen.add(question, "; ".join(problems), "ipsecctl status; ipsecctl explain NAME")
        else:
            seen.add(question, "yes")


async def _radius(session: Session, seen: _Findings) -> None:
    """A daemon of before there were RADIUS servers tells nothing of them."""
    try:
        servers = await session.request("ipsecd-radius")
    except UnknownToDaemon:
        return
    for name in servers:
        server = section(servers, name)
        for kind, what in _RADIUS_KINDS.items():
            if kind in server:
                state = section(server, kind)
                title, counters = f"RADIUS {name}, {what}", section(state, "counters")
                if "silent" not in state:
                    seen.add(title, f"{text(server, 'server')}: {plural(number(counters, 'requests'), 'request')}")
                    continue
                forged = number(counters, "unauthentic")
                but = f"; {plural(forged, 'answer')} not made with our secret for it" if forged else ""
                since = f"has not answered for {number(state, 'silent')} s"
                seen.add(title, f"{text(server, 'server')} {since}{but}", ADVICE["radius-not-responding"])


async def _file(session: Session, seen: _Findings) -> None:
    try:
        file, _, found = await fetch_changes(session)
    except CtlError as error:
        seen.add("its file", error.message, "correct it before the next start or reload", State.MISSING)
        return
    # a daemon that has only variables says so there
    seen.file = file if os.path.isfile(file) else None
    if found:
        seen.add("its file", f"{file} differs from what is in effect: {plural(len(found), 'change')}", "ipsecctl diff")
    else:
        seen.add("its file", f"{file}: what is in it is in effect")


async def _problems(session: Session, seen: _Findings) -> None:
    # of each connection the latest is enough here
    found = sorted(await fetch_problems(session), key=lambda problem: problem.at)
    last = {problem.conn: problem for problem in found if not problem.over}
    for problem in list(last.values())[:PROBLEMS_MAX]:
        name = f"connection {problem.conn}" if problem.conn else f"stranger {problem.peer}"
        remedy = f"ipsecctl explain {problem.conn}" if problem.conn else ADVICE.get(problem.cause, "see the log")
        seen.add(name, f"{problem.cause}: {problem.reason}", remedy)
    if len(last) > PROBLEMS_MAX:
        seen.add("connections", f"{len(last) - PROBLEMS_MAX} more have problems", "ipsecctl status")


# -- for people and programs


def _document(group: Group) -> dict[str, object]:
    lines = [{**asdict(one), "state": one.state.value} for one in group.found]
    return {"title": group.title, "complete": group.complete, "requirements": lines}


def _print(app: App, groups: list[Group], complete: bool) -> None:
    for group in groups:
        table = Table(Column(""), Column("", least=12), Column("", least=30, wrap=True), heads=False)
        for one in in_short(group.found):
            table.add(Text(f"  {one.state.value}", style=STYLES[one.state]), one.name, one.detail)
            if one.state is not State.FOUND:
                table.add("", "", Text(f"-> {one.remedy}", style="bold"))
        app.out.print(Text(group.title, style="bold"))
        table.print(app.out)
        app.out.print()
    app.out.print("nothing is missing" if complete else Text("something is missing", style=BAD))
