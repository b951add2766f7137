"""``ipsecctl log``: the daemon's log as it is written, with other levels while somebody looks."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import click
from rich.text import Text

from ipsec.ctl import complete
from ipsec.ctl.app import App, Verb, current
from ipsec.ctl.errors import CtlError, ExitCode
from ipsec.ctl.names import known
from ipsec.ctl.output import BAD, DIM, WARN, Column, Table
from ipsec.ctl.view import number, section, text
from ipsec.vici.client import Session, UnknownToDaemon, ViciError

LEVELS = ("debug", "info", "warning", "error", "default")
_STYLES = {"debug": DIM, "info": "", "warning": WARN, "error": BAD, "critical": BAD}
#: charon's groups as our subsystems, its levels as ours
_CHARON_LEVELS = ("error", "info")


@dataclass(frozen=True, slots=True)
class Line:
    """One line."""

    time: str
    level: str
    subsystem: str
    message: str
    conn: str
    ike_id: int
    child: str
    remote_host: str

    @staticmethod
    def of(message: Mapping[str, Any]) -> Line:
        """From the event ``ipsecd-log``."""
        return Line(
            time=text(message, "time"),
            level=text(message, "level"),
            subsystem=text(message, "subsystem"),
            message=text(message, "message"),
            conn=text(message, "ike"),
            ike_id=number(message, "uniqueid"),
            child=text(message, "child"),
            remote_host=text(message, "remote-host"),
        )

    @staticmethod
    def of_charon(message: Mapping[str, Any]) -> Line:
        """From charon's event ``log``, which has no time."""
        level = number(message, "level", 1)
        return Line(
            time=datetime.now().astimezone().isoformat(timespec="milliseconds"),
            level=_CHARON_LEVELS[level] if 0 <= level < len(_CHARON_LEVELS) else "debug",
            subsystem=text(message, "group").lower(),
            message=text(message, "msg"),
            conn=text(message, "ikesa-name"),
            ike_id=number(message, "ikesa-uniqueid"),
            child="",
            remote_host="",
        )


def _levels(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """``debug`` is for all subsystems, ``ike=debug`` for one; commas separate several."""
    found: dict[str, str] = {}
    for part in (part.strip() for value in values for part in value.split(",")):
        name, equals, level = part.rpartition("=")
        if level not in LEVELS or (equals and not name):
            raise click.BadParameter(f"{part!r} is not [SUBSYSTEM=]LEVEL; levels are {', '.join(LEVELS)}")
        found[name or "all"] = level
    return found


@click.command(cls=Verb)
@click.argument("name", required=False, metavar="[NAME]", shell_complete=complete.conns)
@click.option(
    "--level",
    "levels",
    multiple=True,
    callback=_levels,
    metavar="[SUBSYSTEM=]LEVEL",
    help="Have the daemon log from this level on (debug, info, warning, error), for one subsystem or all: "
    "--level ike=debug,net=debug. Ends with this command.",
)
@click.option("--keep", is_flag=True, help="Set the levels of --level to stay, and end; LEVEL default takes them back.")
@click.option("--show-levels", is_flag=True, help="Print the levels in effect, and end.")
def log(name: str | None, levels: dict[str, str], keep: bool, show_levels: bool) -> None:
    """Follow the daemon's log, all of it or the lines about one connection.

    NAME may also be a pattern such as 'site-*'; of a child or an SA it means the connection.

    What the daemon writes to its own log is the same, so other levels make that longer too. Subsystems are ike, esp,
    backend, net, config, daemon, vici and crypto. With --json one document per line.
    """
    app = current()
    if keep and not levels:
        raise click.UsageError("--keep needs --level")
    if name is not None and (keep or show_levels):
        raise click.UsageError("levels are those of subsystems, not of connections: leave out NAME")
    if keep or show_levels:
        app.run(lambda: _set_levels(app, levels, keep))
    else:
        app.run(lambda: _follow(app, name, levels))


async def _set_levels(app: App, levels: dict[str, str], keep: bool) -> None:
    async with app.session() as session:
        found = await _ask_levels(session, levels, keep=keep)
    if app.json:
        app.document("log-levels", levels=found)
        return
    table = Table("SUBSYSTEM", Column("LEVEL"))
    for name, level in found.items():
        table.add(name, level)
    table.print(app.out)


async def _ask_levels(session: Session, levels: dict[str, str], *, keep: bool) -> dict[str, str]:
    message: dict[str, Any] = {"keep": "yes" if keep else None}
    if levels:
        message["levels"] = levels
    try:
        answer = section(await session.request("ipsecd-log-level", message), "levels")
    except UnknownToDaemon as error:
        raise CtlError("this daemon cannot change its log levels at run time", "ask an ipsecd") from error
    except ViciError as error:
        raise CtlError(str(error).removeprefix("ipsecd-log-level: "), code=ExitCode.USAGE) from error
    return {name: text(answer, name) for name in answer}


async def _follow(app: App, name: str | None, levels: dict[str, str]) -> None:
    async with app.session() as session:
        conns = None if name is None else {target.conn for target in (await known(session)).find(name)}
        if levels:
            await _ask_levels(session, levels, keep=False)
        try:
            await _print_lines(app, session, "ipsecd-log", conns)
        except UnknownToDaemon:
            await _print_lines(app, session, "log", conns)


async def _print_lines(app: App, session: Session, event: str, conns: Collection[str] | None) -> None:
    make = Line.of if event == "ipsecd-log" else Line.of_charon
    async for _, message in session.listen(event):
        line = make(message)
        if conns is not None and line.conn not in conns:
            continue
        if app.json:
            app.json_line("log", **asdict(line))
        else:
            app.out.print(_shown(line), soft_wrap=True)


def _shown(line: Line) -> Text:
    try:
        clock = datetime.fromisoformat(line.time).astimezone().strftime("%H:%M:%S.%f")[:-3]
    except ValueError:
        clock = line.time
    head = (f"{clock} {line.level:7} {line.subsystem:7} ", DIM)
    return Text.assemble(head, (line.message, _STYLES.get(line.level, "")))
