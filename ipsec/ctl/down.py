"""``ipsecctl down``: close connections, children and single SAs."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import click
from rich.text import Text

from ipsec.ctl import complete
from ipsec.ctl.app import App, Number, Verb, current
from ipsec.ctl.errors import ExitCode
from ipsec.ctl.names import Known, Target, id_options, known, targets_of
from ipsec.ctl.output import BAD, DIM, GOOD, WARN
from ipsec.ctl.progress import Progress
from ipsec.text import plural
from ipsec.vici.client import Session, ViciError

TIMEOUT_S = 15


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one target."""

    name: str
    result: str
    "down, was-down, begun, failed or timeout"
    closed: int = 0
    "SAs that are closed"
    reason: str = ""
    remedy: str = ""


@click.command(cls=Verb)
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=complete.names)
@id_options
@click.option(
    "--timeout",
    type=Number(min=0),
    default=TIMEOUT_S,
    show_default=True,
    metavar="SECONDS",
    help="Wait so long for the peers to agree; 0 waits until the daemon gives up.",
)
@click.option("--no-wait", is_flag=True, help="Do not wait for the peers.")
@click.option("--force", is_flag=True, help="Forget SAs whose peers do not answer within --timeout.")
@click.option("-v", "--verbose", is_flag=True, help="Show all that the daemon logs meanwhile.")
@click.option("-q", "--quiet", is_flag=True, help="Show only what came of it.")
def down(
    names: tuple[str, ...],
    ike_id: tuple[int, ...],
    child_id: tuple[int, ...],
    timeout: float,
    no_wait: bool,
    force: bool,
    verbose: bool,
    quiet: bool,
) -> int:
    """Close connections, children or single SAs, and tell the peers.

    A NAME is a connection; CONNECTION/CHILD, or a child if only one connection has it; an SA by its number, as status
    and the log have it: 'office[3]' or 'net{7}', or --ike-id and --child-id; or a pattern such as 'site-*'. What is
    not up is no error. Traps stay: traffic for them brings the child up again.

    Ctrl-C ends the waiting; what has been begun goes on.

    \b
      ipsecctl down office
      ipsecctl down office/voice
      ipsecctl down --ike-id 3
    """
    app = current()
    milliseconds = -1 if no_wait else round(timeout * 1000)
    progress = Progress(app, quiet=quiet, verbose=verbose)
    outcomes = app.run(lambda: _run(app, targets_of(names, ike_id, child_id), milliseconds, force, progress))
    if app.json:
        app.document("down", results=[asdict(one) for one in outcomes])
    else:
        for one in outcomes:
            _print(app, one)
    results = {one.result for one in outcomes}
    if "failed" in results:
        return ExitCode.FAILED
    return ExitCode.TIMEOUT if "timeout" in results else ExitCode.OK


def _print(app: App, one: Outcome) -> None:
    styles = {"down": GOOD, "was-down": DIM, "begun": WARN, "timeout": BAD, "failed": BAD}
    words = {"was-down": "is not up", "begun": "is being closed", "timeout": "not all closed", "failed": "not closed"}
    line = Text.assemble((one.name, "bold"), " ", (words.get(one.result, one.result), styles[one.result]))
    if one.result == "down":
        line.append(f" ({plural(one.closed, 'SA')} closed)", style=DIM)
    if one.reason:
        line.append(f": {one.reason}")
    app.out.print(line, soft_wrap=True)
    if one.remedy:
        app.out.print(Text.assemble(("  -> ", "bold"), one.remedy), soft_wrap=True)


async def _run(app: App, names: Sequence[str], timeout_ms: int, force: bool, progress: Progress) -> list[Outcome]:
    async with app.session() as session:
        there = await known(session)
        targets = dict.fromkeys(target for name in names for target in there.find(name))
        return [await _close(session, there, target, timeout_ms, force, progress) for target in targets]


async def _close(
    session: Session, there: Known, target: Target, timeout_ms: int, force: bool, progress: Progress
) -> Outcome:
    """Close one target."""
    name = str(target)
    if not there.sas_of(target):
        return Outcome(name, "was-down")
    message = target.message() | {"timeout": timeout_ms, "force": "yes" if force else None}
    try:
        async with contextlib.aclosing(session.stream("terminate", "control-log", message)) as lines:
            async for line in lines:
                progress.show(target.conn, line)
    except ViciError as error:
        if not error.message:
            raise
        reason = str(error).partition(": ")[2]
        if "no matching SAs" in reason:
            # it has gone meanwhile
            return Outcome(name, "was-down")
        if "not all matching" in reason:
            return Outcome(name, "timeout", remedy=_remedy(target, force))
        return Outcome(name, "failed", reason=reason)
    if timeout_ms < 0:
        return Outcome(name, "begun")
    return Outcome(name, "down", _closed(there, target))


def _remedy(target: Target, forced: bool) -> str:
    if not forced:
        return f"the peer does not answer; `ipsecctl down --force {target}` forgets it all the same"
    if target.child:
        whole = f"`ipsecctl down --force {target.conn}`"
        return f"the peer does not answer, and this daemon can only forget whole IKE_SAs: {whole}"
    return "the peer does not answer, and the daemon has not forgotten it: see its log"


def _closed(there: Known, target: Target) -> int:
    """How many SAs a target had: what was closed or replaced before, and lingers for what is on its way, is none."""
    children = [one for one in there.child_sas_of(target) if one.up and one.state != "REKEYED"]
    if target.child or target.child_id:
        return len(children)
    return len(children) + sum(sa.state not in ("REKEYED", "DELETING") for sa in there.sas_of(target))
