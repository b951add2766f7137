"""``ipsecctl watch``: what happens, as it happens."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime
from fnmatch import fnmatchcase

import click
from rich.text import Text

from ipsec.ctl import complete
from ipsec.ctl.app import App, Verb, current
from ipsec.ctl.errors import CtlError, ExitCode
from ipsec.ctl.names import Target, known
from ipsec.ctl.output import BAD, DIM, GOOD, WARN, endpoint, octets
from ipsec.ctl.view import ChildSa, IkeSa, Problem, number, section, sections, text
from ipsec.vici.client import HungUp, Session, UnknownToDaemon
from ipsec.vici.codec import Message

#: those that only some daemons have come last; ipsecd-problem says all that alert does, and more
EVENTS = ("ike-updown", "ike-rekey", "ike-update", "child-updown", "child-rekey", "ipsecd-problem", "alert")
#: between two tries to find a daemon that went away
PAUSE_S = 1.0


@dataclass(frozen=True, slots=True)
class Happening:
    """Something that happened to a connection."""

    event: str
    "ike-up, ike-down, ike-rekeyed, ike-moved, child-up, child-down, child-rekeyed, problem, daemon-gone, daemon-back"
    conn: str = ""
    child: str = ""
    detail: str = ""
    "in words"
    ike_sa: IkeSa | None = None
    child_sa: ChildSa | None = None
    problem: Problem | None = None
    "those that it is about; of a rekeying the new one"


@click.command(cls=Verb)
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=complete.names)
@click.option("--once", is_flag=True, help="End when the daemon does, instead of waiting for it to come back.")
def watch(names: tuple[str, ...], once: bool) -> None:
    """Show what happens to tunnels: up, down, rekeyed, moved, failed.

    With NAMEs only what concerns those: connections, children, SAs by their numbers, also patterns such as 'site-*'.
    With --json each event is a document on a line of its own. If the daemon goes away, it waits until one is back.
    Ctrl-C ends it.
    """
    app = current()
    app.run(lambda: _watch(app, names, once))


async def _watch(app: App, names: tuple[str, ...], once: bool) -> None:
    before = gone = False
    targets: set[Target] = set()
    while True:
        try:
            async with app.session() as session:
                if names and not before:
                    there = await known(session)
                    targets = {target for name in names for target in there.find(name)}
                events = await _register(session)
                if gone:
                    _tell(app, Happening("daemon-back"))
                before, gone = True, False
                await _tell_what_comes(app, session, names, targets, "ipsecd-problem" in events)
        except HungUp:
            _tell(app, Happening("daemon-gone"))
            if once:
                raise
            gone = True
        except CtlError as error:
            # at the start it is an error, later it may take its time
            if not before or error.code is not ExitCode.UNREACHABLE:
                raise
        await asyncio.sleep(PAUSE_S)


async def _tell_what_comes(
    app: App, session: Session, names: tuple[str, ...], targets: set[Target], problems: bool
) -> None:
    """``problems``: the daemon says of each failure what it was, so that what never was up need not be called down."""
    async with contextlib.aclosing(session.listen()) as heard:
        async for name, message in heard:
            for one in happenings(name, message):
                if problems and one.event == "ike-down" and one.ike_sa is not None and one.ike_sa.state == "CONNECTING":
                    continue
                if not names or concerns(one, names, targets):
                    _tell(app, one)


def concerns(one: Happening, names: Iterable[str], targets: Iterable[Target]) -> bool:
    """Whether it is about one of them. Connections that come later count too, if a pattern means them."""
    ike_id = one.ike_sa.id if one.ike_sa is not None else 0
    child_id = one.child_sa.id if one.child_sa is not None else 0
    return any(fnmatchcase(one.conn, pattern) for pattern in names) or any(
        target.conn == one.conn
        and target.child in ("", one.child)
        and target.ike_id in (0, ike_id)
        and target.child_id in (0, child_id)
        for target in targets
    )


async def _register(session: Session) -> list[str]:
    """Register for all events that the daemon has, which it returns; for alert only if it does not tell more."""
    known: list[str] = []
    for event in EVENTS:
        if event == "alert" and "ipsecd-problem" in known:
            continue
        with contextlib.suppress(UnknownToDaemon):
            await session.register(event)
            known.append(event)
    return known


def happenings(event: str, message: Message) -> list[Happening]:
    """What an event tells."""
    if event == "ipsecd-problem":
        problem = Problem.of(message)
        return [Happening("problem", problem.conn, problem.child, problem.reason, problem=problem)]
    if event == "alert":
        found = [IkeSa.of(*item) for item in sections(section(message, "ike-sa"))]
        return [Happening("problem", sa.name, detail=text(message, "type"), ike_sa=sa) for sa in found] or [
            Happening("problem", detail=text(message, "type"))
        ]
    up = text(message, "up") == "yes"
    result = []
    for name, fields in sections(message):
        if event == "ike-updown":
            sa = IkeSa.of(name, fields)
            result.append(Happening("ike-up" if up else "ike-down", name, detail=_ends(sa), ike_sa=sa))
        elif event == "ike-rekey":
            sa = IkeSa.of(name, section(fields, "new"))
            old = number(section(fields, "old"), "uniqueid")
            result.append(Happening("ike-rekeyed", name, detail=f"[{old}] -> [{sa.id}], {sa.suite}", ike_sa=sa))
        elif event == "ike-update":
            sa = IkeSa.of(name, fields)
            local = endpoint(text(message, "local-host"), number(message, "local-port"))
            remote = endpoint(text(message, "remote-host"), number(message, "remote-port"))
            result.append(Happening("ike-moved", name, detail=f"now {local} ... {remote}", ike_sa=sa))
        else:
            result += _of_children(event, name, fields, up)
    return result


def _of_children(event: str, name: str, fields: Message, up: bool) -> list[Happening]:
    sa = IkeSa.of(name, fields | {"child-sas": {}})
    result = []
    for key, child in sections(section(fields, "child-sas")):
        if event == "child-updown":
            one = ChildSa.of(key, child)
            volume = f"{octets(one.bytes_in)} in, {octets(one.bytes_out)} out"
            networks = f"{' '.join(one.local_ts)} === {' '.join(one.remote_ts)}"
            detail = f"{networks}, {one.suite if up else volume}"
            result.append(Happening("child-up" if up else "child-down", name, one.name, detail, sa, one))
        elif event == "child-rekey":
            one = ChildSa.of(key, section(child, "new"))
            old = number(section(child, "old"), "uniqueid")
            detail = f"{{{old}}} -> {{{one.id}}}, {one.suite}"
            result.append(Happening("child-rekeyed", name, one.name, detail, sa, one))
    return result


def _ends(sa: IkeSa) -> str:
    return f"{sa.local_host} [{sa.local_id}] ... {sa.remote_host} [{sa.remote_id}]"


_STYLES = {
    "up": GOOD,
    "down": BAD,
    "gone": BAD,
    "problem": WARN,
    "rekeyed": "cyan",
    "moved": "cyan",
    "back": GOOD,
}


def _tell(app: App, one: Happening) -> None:
    now = datetime.now().astimezone()
    if app.json:
        app.json_line("event", time=now.isoformat(timespec="milliseconds"), **asdict(one))
        return
    kind = one.event.rpartition("-")[2]
    words = {"daemon-gone": "the daemon has gone", "daemon-back": "the daemon is back", "problem": "problem"}
    name = f"{one.conn}/{one.child}" if one.child else one.conn
    if one.ike_sa is not None and not one.child:
        name += f"[{one.ike_sa.id}]"
    line = Text.assemble(
        (f"{now:%H:%M:%S}  ", DIM), (f"{name}  " if name else "", "bold"), (words.get(one.event, kind), _STYLES[kind])
    )
    app.out.print(line.append(f"  {one.detail}") if one.detail else line, soft_wrap=True)
