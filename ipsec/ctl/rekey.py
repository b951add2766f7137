"""``ipsecctl rekey`` and ``ipsecctl redirect``: what can be done to SAs that are up."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import click
from rich.text import Text

from ipsec.ctl import complete
from ipsec.ctl.app import App, Number, Verb, Whole, current
from ipsec.ctl.errors import CtlError, ExitCode
from ipsec.ctl.names import Target, id_options, known, targets_of
from ipsec.ctl.output import BAD, DIM, GOOD, WARN
from ipsec.ctl.progress import Progress
from ipsec.ctl.view import IkeSa, fetch_sas, number, text
from ipsec.text import plural
from ipsec.vici.client import Session, ViciError

TIMEOUT_S = 30
#: after an event, and without one, the SAs are looked at so often
LOOK_S = 1.0
EVENTS = ("log", "ike-rekey", "child-rekey", "ike-updown", "child-updown")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one target."""

    name: str
    result: str
    "rekeyed, begun, failed, timeout or down"
    matches: int = 0
    "SAs"
    reason: str = ""


@click.command(cls=Verb)
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=complete.names)
@id_options
@click.option("--reauth", is_flag=True, help="Authenticate anew: a new IKE_SA takes the place of the old one.")
@click.option(
    "--timeout",
    type=Number(min=0, min_open=True),
    default=TIMEOUT_S,
    show_default=True,
    metavar="SECONDS",
    help="Wait so long for the new SAs.",
)
@click.option("--no-wait", is_flag=True, help="Only begin it.")
@click.option("-v", "--verbose", is_flag=True, help="Show all that the daemon logs meanwhile.")
@click.option("-q", "--quiet", is_flag=True, help="Show only what came of it.")
def rekey(
    names: tuple[str, ...],
    ike_id: tuple[int, ...],
    child_id: tuple[int, ...],
    reauth: bool,
    timeout: float,
    no_wait: bool,
    verbose: bool,
    quiet: bool,
) -> int:
    """Give SAs new keys. Traffic goes on meanwhile.

    A NAME is a connection, which means its IKE_SAs; or CONNECTION/CHILD, which means those CHILD_SAs; or an SA by its
    number: 'office[3]' or 'net{7}', or --ike-id and --child-id; or a pattern.

    \b
      ipsecctl rekey office           its IKE_SA
      ipsecctl rekey 'office/*'       its CHILD_SAs
      ipsecctl rekey --reauth office
    """
    app = current()
    progress = Progress(app, quiet=quiet, verbose=verbose)
    wanted = targets_of(names, ike_id, child_id)
    outcomes = app.run(lambda: _rekey(app, wanted, reauth, 0 if no_wait else timeout, progress))
    if app.json:
        app.document("rekey", results=[asdict(one) for one in outcomes])
    else:
        for one in outcomes:
            _print(app, one)
    results = {one.result for one in outcomes}
    if results & {"failed", "down"}:
        return ExitCode.FAILED
    return ExitCode.TIMEOUT if "timeout" in results else ExitCode.OK


def _print(app: App, one: Outcome) -> None:
    styles = {"rekeyed": GOOD, "begun": WARN, "timeout": BAD, "failed": BAD, "down": BAD}
    words = {
        "begun": "is being rekeyed",
        "timeout": "not rekeyed in time",
        "failed": "not rekeyed",
        "down": "is not up",
    }
    line = Text.assemble((one.name, "bold"), " ", (words.get(one.result, one.result), styles[one.result]))
    if one.matches:
        line.append(f" ({plural(one.matches, 'SA')})", style=DIM)
    if one.reason:
        line.append(f": {one.reason}")
    app.out.print(line, soft_wrap=True)


async def _rekey(app: App, names: Sequence[str], reauth: bool, timeout_s: float, progress: Progress) -> list[Outcome]:
    async with app.session() as session, app.session() as events:
        there = await known(session)
        targets = list(dict.fromkeys(target for name in names for target in there.find(name)))
        for target in targets:
            if reauth and (target.child or target.child_id):
                raise CtlError(f"{target} is a child", "--reauth is for connections and IKE_SAs", code=ExitCode.USAGE)
        for event in EVENTS:
            await events.register(event)
        outcomes = [await _begin(session, target, reauth) for target in targets]
        begun = [target for target, one in zip(targets, outcomes, strict=True) if one.result == "begun"]
        if not timeout_s or not begun:
            return outcomes
        left = await _wait(session, events, begun, there.sas, timeout_s, progress)
        for index, target in enumerate(targets):
            if target in left:
                _, reason = await progress.why(session, target.conn, target.child)
                outcomes[index] = replace(outcomes[index], result="timeout", reason=reason)
            elif target in begun:
                outcomes[index] = replace(outcomes[index], result="rekeyed")
        return outcomes


async def _begin(session: Session, target: Target, reauth: bool) -> Outcome:
    try:
        answer = await session.request("rekey", target.message() | {"reauth": "yes" if reauth else None})
    except ViciError as error:
        if not error.message:
            raise
        reason = str(error).partition(": ")[2]
        gone = "no matching SAs" in reason
        return Outcome(str(target), "down" if gone else "failed", reason="" if gone else reason)
    return Outcome(str(target), "begun", number(answer, "matches"))


async def _wait(
    session: Session,
    events: Session,
    targets: Sequence[Target],
    before: Sequence[IkeSa],
    timeout_s: float,
    progress: Progress,
) -> set[Target]:
    """Until everything has new keys; what has not when the time is over."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    heard = asyncio.Event()
    listener = loop.create_task(_listen(events, {target.conn for target in targets}, heard, progress))
    try:
        while True:
            heard.clear()
            sas = await fetch_sas(session)
            left = {target for target in targets if not _renewed(target, before, sas)}
            rest = min(deadline - loop.time(), LOOK_S)
            if not left or rest <= 0:
                return left
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(heard.wait(), rest)
    finally:
        listener.cancel()
        # a daemon that has hung up is found out by the other connection too
        await asyncio.gather(listener, return_exceptions=True)


async def _listen(events: Session, conns: set[str], heard: asyncio.Event, progress: Progress) -> None:
    stream: AsyncGenerator[tuple[str, dict[str, object]], None] = events.listen()
    async with contextlib.aclosing(stream) as happened:
        async for name, message in happened:
            if name != "log":
                heard.set()
            elif (conn := text(message, "ikesa-name")) in conns:
                progress.show(conn, message)


def _renewed(target: Target, before: Sequence[IkeSa], after: Sequence[IkeSa]) -> bool:
    """Whether every SA that a target reached has been followed by another one."""
    if target.child or target.child_id:
        old = {
            child.id
            for sa in before
            if sa.name == target.conn
            for child in sa.children
            if target.child_id in (0, child.id) and target.child in ("", child.name) and child.state != "REKEYED"
        }
        new = [
            child
            for sa in after
            if sa.name == target.conn
            for child in sa.children
            if target.child in ("", child.name) and child.state == "INSTALLED"
        ]
        return bool(new) and not old & {child.id for child in new}
    old = {sa.id for sa in before if sa.name == target.conn and target.ike_id in (0, sa.id) and sa.up}
    up = {sa.id for sa in after if sa.name == target.conn and sa.state == "ESTABLISHED"}
    return bool(up - old) and not old & up


@click.command(cls=Verb)
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=complete.names)
@click.option("--to", "gateway", required=True, metavar="GATEWAY", help="Address or name of the other gateway.")
@click.option("--ike-id", type=Whole(min=1), multiple=True, metavar="N", help="An IKE_SA by its number.")
@click.option("--peer-ip", metavar="IP", help="Peers at this address, in this network or range (A-B).")
@click.option("--peer-id", metavar="ID", help="Peers of this identity, also with a wildcard: *@example.org.")
def redirect(
    names: tuple[str, ...], gateway: str, ike_id: tuple[int, ...], peer_ip: str | None, peer_id: str | None
) -> int:
    """Send peers to another gateway (RFC 5685).

    It reaches peers that came to us and said that they can be redirected. They connect to the other gateway and close
    the SAs here. More than one way of choosing them: peers have to fit all.

    \b
      ipsecctl redirect roadwarriors --to gw2.example.org
      ipsecctl redirect --peer-ip 198.51.100.0/24 --to 192.0.2.7
    """
    app = current()
    if not (names or ike_id or peer_ip or peer_id):
        raise click.UsageError("say whom: NAME, --ike-id, --peer-ip or --peer-id")
    common: dict[str, object] = {"peer-ip": peer_ip, "peer-id": peer_id, "gateway": gateway}
    wanted = targets_of(names, ike_id) if names or ike_id else []
    told = app.run(lambda: _redirect(app, wanted, common))
    matches, unsupported = (sum(counts) for counts in zip(*told.values(), strict=True))
    if unsupported and not matches:
        why = "without REDIRECT_SUPPORTED from them it may not be asked of them (RFC 5685)"
        raise CtlError(f"{plural(unsupported, 'peer')} cannot be redirected", why)
    if not matches:
        why = "only peers that came to us, and that said that they can be, are redirected"
        raise CtlError("no such peer is up", why, code=ExitCode.UNKNOWN_NAME)
    if app.json:
        results = [{"name": name, "matches": one.matches, "unsupported": one.unsupported} for name, one in told.items()]
        app.document("redirect", gateway=gateway, matches=matches, unsupported=unsupported, results=results)
    else:
        line = f"{plural(matches, 'peer')} sent to {gateway}"
        if len(told) > 1:
            line += f" ({', '.join(f'{name} {one.matches}' for name, one in told.items() if one.matches)})"
        if unsupported:
            line += f", {unsupported} cannot be"
        app.out.print(line, soft_wrap=True)
    return ExitCode.OK


class Told(NamedTuple):
    """How many peers a redirection has reached."""

    matches: int
    unsupported: int
    "those that it could not be asked of"


async def _redirect(app: App, names: Sequence[str], common: dict[str, object]) -> dict[str, Told]:
    """What became of each target; without names all that ``common`` chooses, under the empty name."""
    async with app.session() as session:
        chosen: dict[str, dict[str, object]] = {"": {}}
        if names:
            there = await known(session)
            targets = dict.fromkeys(target for name in names for target in there.find(name))
            for target in targets:
                if target.child or target.child_id:
                    raise CtlError(f"{target} is a child", "only whole connections can be redirected")
            chosen = {str(target): target.message() for target in targets}
        return {name: await _tell(session, message | common) for name, message in chosen.items()}


async def _tell(session: Session, message: dict[str, object]) -> Told:
    """What one command has reached: that there is nobody for one target does not keep the others from it."""
    try:
        answer = await session.request("redirect", message)
    except ViciError as error:
        if not (error.message and "no matching SAs" in str(error)):
            raise
        answer = error.message
    return Told(number(answer, "matches"), number(answer, "unsupported"))
