"""``ipsecctl install`` and ``ipsecctl uninstall``: traps, and what passes or drops traffic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import click
from rich.text import Text

from ipsec.ctl import complete
from ipsec.ctl.app import App, Verb, current
from ipsec.ctl.errors import CtlError, ExitCode
from ipsec.ctl.names import Known, Target, known
from ipsec.ctl.output import BAD, DIM, GOOD
from ipsec.ctl.view import fetch_policies
from ipsec.vici.client import Session, ViciError

#: by verb: what became of a child, and what it is if there was nothing to do
_DONE = {"install": ("installed", "was-installed"), "uninstall": ("uninstalled", "was-uninstalled")}
_WORDS = {
    "installed": ("is in place", GOOD),
    "was-installed": ("is in place already", DIM),
    "uninstalled": ("is taken away", GOOD),
    "was-uninstalled": ("is not in place", DIM),
    "failed": ("failed", BAD),
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one child."""

    name: str
    result: str
    reason: str = ""


@click.command(cls=Verb)
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=complete.names)
def install(names: tuple[str, ...]) -> int:
    """Let children wait for traffic, or put in place what passes or drops.

    A child with mode = pass or drop gets its policies; any other one a trap: the next packet for it brings it up. It
    holds until `ipsecctl uninstall`, a reload that changes it, or a restart of the daemon.

    A NAME is CONNECTION/CHILD, or a child if only one connection has it; a connection, which means all its children;
    or a pattern. What is in place already is no error.

    \b
      ipsecctl install office/voice
      ipsecctl install 'bypass/*'
    """
    return _run("install", names)


@click.command(cls=Verb)
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=complete.names)
def uninstall(names: tuple[str, ...]) -> int:
    """Take traps away, and what passes or drops.

    Also those that `start_action = trap` has put in place, until the next reload that changes them. SAs that are up
    stay up: `ipsecctl down` closes them. What `fail_closed` keeps in, traffic of children with `start_action = start`,
    stays in. NAMEs are those of `ipsecctl install`; `ipsecctl list policies` shows what is in place. What is not in
    place is no error.
    """
    return _run("uninstall", names)


def _run(verb: str, names: Sequence[str]) -> int:
    app = current()
    outcomes = app.run(lambda: _all(app, verb, names))
    if app.json:
        app.document(verb, results=[asdict(one) for one in outcomes])
    else:
        for one in outcomes:
            words = Text.assemble((one.name, "bold"), " ", _WORDS[one.result])
            app.out.print(words.append(f": {one.reason}" if one.reason else ""), soft_wrap=True)
    return ExitCode.FAILED if any(one.result == "failed" for one in outcomes) else ExitCode.OK


async def _all(app: App, verb: str, names: Sequence[str]) -> list[Outcome]:
    async with app.session() as session:
        there = await known(session)
        targets = dict.fromkeys(child for name in names for child in _children(there, name))
        present = {(policy.conn, policy.child) for policy in await fetch_policies(session)}
        return [await _one(session, verb, target, present) for target in targets]


def _children(there: Known, name: str) -> list[Target]:
    """The configured children that a name means."""
    found: list[Target] = []
    for target in there.find(name):
        if target.ike_id or target.child_id:
            raise CtlError(f"{target} is an SA", "policies are those of a child: CONNECTION/CHILD", code=ExitCode.USAGE)
        conn = there.conn(target.conn)
        configured = [child.name for child in conn.children] if conn is not None else []
        wanted = [one for one in configured if target.child in ("", one)]
        if not wanted:
            why = f"{target} is not configured any more"
            raise CtlError(why, "see `ipsecctl list conns`", code=ExitCode.UNKNOWN_NAME)
        found += [Target(target.conn, one) for one in wanted]
    return found


async def _one(session: Session, verb: str, target: Target, present: set[tuple[str, str]]) -> Outcome:
    done, before = _DONE[verb]
    if ((target.conn, target.child) in present) == (verb == "install"):
        return Outcome(str(target), before)
    try:
        await session.request(verb, target.message())
    except ViciError as error:
        if not error.message:
            raise
        return Outcome(str(target), "failed", str(error).partition(": ")[2])
    return Outcome(str(target), done)
