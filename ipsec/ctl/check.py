"""``ipsecctl check`` and ``ipsecctl diff``: a configuration file by itself, and against what a daemon has loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import click
from rich.text import Text

from ipsec.config import Config, load
from ipsec.config.environment import read_environment
from ipsec.ctl.app import FILE, App, Verb, current
from ipsec.ctl.errors import CtlError, ExitCode
from ipsec.ctl.output import BAD, DIM, GOOD, WARN
from ipsec.ctl.view import number, text, texts
from ipsec.text import plural
from ipsec.vici.client import Session, UnknownToDaemon, ViciError


@click.command(cls=Verb)
@click.argument("file", required=False, type=FILE)
@click.option("--strict", is_flag=True, help=f"Warnings count too: end with status {ExitCode.CONFIG:d}.")
def check(file: str | None, strict: bool) -> int:
    """Read a configuration file as the daemon would, and say what is wrong with it.

    No daemon is needed, and nothing is changed. FILE is IPSEC_CONFIG or /etc/swanctl/swanctl.conf if it is not given;
    certificates and keys are looked for in the directories next to it, as the daemon does. What this machine has for
    it, `ipsecctl doctor FILE` tells.
    """
    app = current()
    config = read(file)
    if app.json:
        names = [connection.name for connection in config.connections]
        document = {"conns": names, "sas": [sa.name for sa in config.sas], "warnings": list(config.warnings)}
        app.document("check", file=config.file, **document)
    else:
        for warning in config.warnings:
            app.err.print(Text.assemble(("warning: ", WARN), warning))
        app.out.print(Text.assemble(f"{config.file}: ", ("good", GOOD), f", {config.contents()}"))
    return ExitCode.CONFIG if strict and config.warnings else ExitCode.OK


def read(file: str | None) -> Config:
    """A configuration as the daemon reads it. ConfigError."""
    environment = read_environment(os.environ)
    return load(file or environment.file, environment)


@dataclass(frozen=True, slots=True)
class Change:
    """One difference, as docs/vici.md describes the event ``ipsecd-change``."""

    key: str
    kind: str
    before: str
    after: str
    effect: str
    ike_sas: int
    "IKE_SAs that the connection has now"

    @staticmethod
    def of(message: Mapping[str, Any]) -> Change:
        """From an event."""
        return Change(
            key=text(message, "key"),
            kind=text(message, "kind"),
            before=text(message, "before"),
            after=text(message, "after"),
            effect=text(message, "effect"),
            ike_sas=number(message, "ike-sas"),
        )


#: what a reload does, by effect (ipsec.config.diff.Effect)
_EFFECTS = {
    "restart": "takes a restart of the daemon",
    "new": "",
    "closed": "closes {sas}",
    "reconnected": "closes {sas}, and begins anew",
    "used": "what is up stays up",
}
_SIGNS = {"added": ("+", GOOD), "removed": ("-", BAD), "changed": ("~", WARN)}


@click.command(cls=Verb)
def diff() -> int:
    """Show what a reload of the daemon's configuration file would change.

    The daemon reads its file and compares it with what is in effect; nothing is changed. Connections that vici has
    loaded under names the file does not have are left alone by a reload, and so they are no difference. Secrets are
    not shown.
    """
    app = current()

    async def work() -> tuple[str, tuple[str, ...], tuple[Change, ...]]:
        async with app.session() as session:
            return await fetch_changes(session)

    file, warnings, found = app.run(work)
    if app.json:
        app.document("diff", file=file, warnings=list(warnings), changes=[asdict(change) for change in found])
    else:
        _print(app, file, warnings, found)
    return ExitCode.DIFFERS if found else ExitCode.OK


async def fetch_changes(session: Session) -> tuple[str, tuple[str, ...], tuple[Change, ...]]:
    """The file, its warnings, what would change. CtlError if the daemon cannot tell, or the file is wrong."""
    try:
        found = [Change.of(event) async for event in session.stream("ipsecd-diff", "ipsecd-change")]
    except UnknownToDaemon as error:
        raise CtlError("this daemon cannot compare its file with what it has loaded", "ask an ipsecd") from error
    except ViciError as error:
        if not error.message:
            raise
        raise wrong_file(error) from error
    return text(session.answer, "file"), texts(session.answer, "warnings"), tuple(found)


def wrong_file(error: ViciError) -> CtlError:
    """What a daemon says that cannot read its file again."""
    why = str(error).partition(": ")[2]
    return CtlError(f"a reload changes nothing, for the file is wrong: {why}", code=ExitCode.CONFIG)


def _print(app: App, file: str, warnings: tuple[str, ...], found: tuple[Change, ...]) -> None:
    for warning in warnings:
        app.err.print(Text.assemble(("warning: ", WARN), warning))
    if not found:
        app.out.print(f"{file}: what is in it is in effect")
        return
    for change in found:
        sign, style = _SIGNS.get(change.kind, ("?", ""))
        line = Text.assemble((f"{sign} {change.key}", style))
        if change.before or change.after:
            line.append(f"  {change.before or '(none)'} -> {change.after or '(none)'}")
        app.out.print(line)
    effects: dict[str, list[str]] = {}
    for change in found:
        words = _EFFECTS.get(change.effect, change.effect).format(sas=plural(change.ike_sas, "IKE_SA"))
        if words and (change.ike_sas or change.effect not in ("closed", "reconnected")):
            section, _, rest = change.key.partition(".")
            name = f"{section}.{rest.partition('.')[0]}" if section == "connections" else section
            if name not in effects.setdefault(words, []):
                effects[words].append(name)
    if effects:
        app.out.print(Text("\nA reload", style="bold"))
        for words, names in effects.items():
            app.out.print(Text.assemble(f"  {words}", (f"  ({', '.join(names)})", DIM)))
