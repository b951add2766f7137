"""``ipsecctl up``: bring up connections and children, and watch them come."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import click
from rich.text import Text

from ipsec.ctl import complete
from ipsec.ctl.advice import ADVICE, cause_in_log
from ipsec.ctl.app import App, Number, Verb, current
from ipsec.ctl.errors import CtlError, ExitCode
from ipsec.ctl.names import Known, Target, known
from ipsec.ctl.output import BAD, GOOD, WARN
from ipsec.ctl.progress import Progress
from ipsec.ctl.view import IkeSa, fetch_sas
from ipsec.vici.client import Session, ViciError

TIMEOUT_S = 60
#: connections that come up at once
AT_ONCE = 8
#: what is not over by then is told what it is likely waiting for
HINT_AFTER_S = 1.0
#: how long the peer may take to hear that an attempt was given up
UNDO_MS = 2000


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one child, or of a connection without any."""

    name: str
    result: str
    "up, was-up, begun, failed or timeout"
    seconds: float
    detail: str = ""
    "what is up"
    cause: str = ""
    reason: str = ""
    remedy: str = ""


@click.command(cls=Verb)
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=complete.names)
@click.option("--all", "everything", is_flag=True, help="Everything that is configured and can be begun from here.")
@click.option(
    "--timeout",
    type=Number(min=0),
    default=TIMEOUT_S,
    show_default=True,
    metavar="SECONDS",
    help="Wait so long; 0 waits until the daemon gives up.",
)
@click.option("--no-wait", is_flag=True, help="Only begin it.")
@click.option("-v", "--verbose", is_flag=True, help="Show all that the daemon logs meanwhile.")
@click.option("-q", "--quiet", is_flag=True, help="Show only what came of it.")
def up(names: tuple[str, ...], everything: bool, timeout: float, no_wait: bool, verbose: bool, quiet: bool) -> int:
    """Bring up connections or children, and say why if that does not work.

    A NAME is a connection, which means all its children; or CONNECTION/CHILD; or a child, if only one connection has
    it; or a pattern such as 'site-*'. What is up already is left as it is.

    Ctrl-C leaves things as they were: what has been begun and is not up yet is given up, what was up before stays.
    After --timeout the daemon goes on trying; `ipsecctl down NAME` stops it.

    \b
      ipsecctl up office
      ipsecctl up office/voice branch
      ipsecctl up --all --timeout 20
    """
    app = current()
    if bool(names) == everything:
        raise click.UsageError("name what to bring up, or use --all")
    milliseconds = -1 if no_wait else round(timeout * 1000)
    outcomes = app.run(lambda: _Raise(app, milliseconds, Progress(app, quiet=quiet, verbose=verbose)).run(names))
    if app.json:
        app.document("up", results=[asdict(one) | {"remedy": one.remedy or None} for one in outcomes])
    else:
        for one in outcomes:
            _print(app, one)
    results = {one.result for one in outcomes}
    if "failed" in results:
        return ExitCode.FAILED
    return ExitCode.TIMEOUT if "timeout" in results else ExitCode.OK


def _print(app: App, one: Outcome) -> None:
    styles = {"up": GOOD, "was-up": GOOD, "begun": WARN, "timeout": BAD, "failed": BAD}
    words = {"was-up": "is up already", "timeout": f"not up after {one.seconds:.0f} s", "failed": "not up"}
    line = Text.assemble((one.name, "bold"), " ", (words.get(one.result, one.result), styles[one.result]))
    if one.detail:
        line.append(f": {one.detail}")
    if one.reason:
        line.append(f": {one.reason}")
    if one.result == "up":
        line.append(f" ({one.seconds:.2f} s)", style="dim")
    app.out.print(line, soft_wrap=True)
    if one.remedy:
        app.out.print(Text.assemble(("  -> ", "bold"), one.remedy), soft_wrap=True)


class _Raise:
    """One run of the verb."""

    def __init__(self, app: App, timeout_ms: int, progress: Progress) -> None:
        self._app = app
        self._timeout_ms = timeout_ms
        self._progress = progress
        self._pending: set[Target] = set()
        "begun, and not known to be up or not"

    async def run(self, names: Sequence[str]) -> list[Outcome]:
        """Bring up what is named; without names everything."""
        async with self._app.session() as session:
            self._before = await known(session)
        targets = _targets(self._before, names)
        by_conn: dict[str, list[Target]] = {}
        for target in targets:
            by_conn.setdefault(target.conn, []).append(target)
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(conn: str) -> list[Outcome]:
            async with gate:
                # children of one connection one after the other: the first comes with the IKE_SA
                return [await self._raise(target) for target in by_conn[conn]]

        try:
            found = await asyncio.gather(*map(one, by_conn))
        except asyncio.CancelledError:
            await self._undo()
            raise
        outcomes = {outcome.name: outcome for some in found for outcome in some}
        return [outcomes[str(target)] for target in targets]

    async def _raise(self, target: Target) -> Outcome:
        begin = self._progress.elapsed_s
        config = self._before.conn(target.conn)
        child = next((one for one in config.children if one.name == target.child), None) if config else None
        up = self._up(self._before.sas, target)
        if up:
            return Outcome(str(target), "was-up", 0.0, up)
        if config is not None and config.passive and not (child and child.shunt):
            reason = "no address of the peer is configured (remote_addrs), so the peer has to begin"
            return Outcome(str(target), "failed", 0.0, reason=reason)
        message: dict[str, object] = {"ike": target.conn, "child": target.child or None, "timeout": self._timeout_ms}
        self._pending.add(target)
        async with self._app.session() as session:
            error = await self._initiate(session, target, message)
            self._pending.discard(target)
            seconds = round(self._progress.elapsed_s - begin, 3)
            if error is not None:
                return await self._why(session, target, error, seconds)
            if self._timeout_ms < 0:
                return Outcome(str(target), "begun", seconds)
            sas = await fetch_sas(session, ike=target.conn)
            return Outcome(str(target), "up", seconds, self._up(sas, target))

    async def _initiate(self, session: Session, target: Target, message: dict[str, object]) -> ViciError | None:
        """Begin and wait; the error if it does not come up."""
        hint: asyncio.TimerHandle | None = None
        try:
            async with contextlib.aclosing(session.stream("initiate", "control-log", message)) as lines:
                async for line in lines:
                    shown = self._progress.show(target.conn, line)
                    cause, _ = cause_in_log([shown]) if hint is None else ("", "")
                    if cause:
                        advice = f"waiting; likely: {ADVICE[cause]}"
                        hint = asyncio.get_running_loop().call_later(
                            HINT_AFTER_S, self._progress.say, advice, target.conn
                        )
        except ViciError as error:
            if not error.message:
                raise
            return error
        finally:
            if hint is not None:
                hint.cancel()
        return None

    async def _why(self, session: Session, target: Target, error: ViciError, seconds: float) -> Outcome:
        """Why it did not come up: what the daemon keeps about that, else what it logged."""
        cause, reason = await self._progress.why(session, target.conn, target.child)
        late = "not established after" in str(error)
        remedy = ADVICE.get(cause, "")
        if late:
            remedy = (
                f"{remedy}{'; ' if remedy else ''}the daemon goes on trying, `ipsecctl down {target.conn}` stops it"
            )
        return Outcome(
            str(target),
            "timeout" if late else "failed",
            seconds,
            cause=cause,
            reason=reason or str(error).partition(": ")[2],
            remedy=remedy or f"see `ipsecctl explain {target.conn}`",
        )

    @staticmethod
    def _up(sas: Sequence[IkeSa], target: Target) -> str:
        """What of a target is up, in words; empty if nothing is."""
        for sa in sas:
            if sa.name != target.conn or not sa.up or sa.replaced:
                continue
            if not target.child:
                return f"{sa.local_host} [{sa.local_id}] ... {sa.remote_host} [{sa.remote_id}], {sa.suite}"
            for child in sa.children:
                if child.name == target.child and child.up and child.state != "REKEYED":
                    return f"{' '.join(child.local_ts)} === {' '.join(child.remote_ts)}, {child.suite}"
        return ""

    # -- Ctrl-C

    async def _undo(self) -> None:
        """Close what was begun and is not known to be up."""
        if not self._pending:
            return
        self._progress.say("interrupted: what was begun is given up")
        async with self._app.session() as session:
            for name in {target.conn for target in self._pending}:
                for message in self._begun(await fetch_sas(session, ike=name), name):
                    with contextlib.suppress(ViciError):
                        await session.request("terminate", message | {"timeout": UNDO_MS, "force": "yes"})

    def _begun(self, sas: Sequence[IkeSa], name: str) -> list[dict[str, object]]:
        """What has come since the beginning: whole IKE_SAs, or CHILD_SAs of one that was there."""
        ikes = {sa.id: sa for sa in self._before.sas if sa.name == name}
        children = {child.id for sa in self._before.sas for child in sa.children}
        wanted = {target.child for target in self._pending if target.conn == name}
        if all(sa.replaced for sa in ikes.values()):
            return [{"ike-id": sa.id} for sa in sas if sa.initiator and sa.id not in ikes]
        return [
            {"child-id": child.id}
            for sa in sas
            for child in sa.children
            if child.id not in children and child.name in wanted
        ]


def _targets(before: Known, names: Sequence[str]) -> list[Target]:
    """Children to bring up, and connections that have none."""
    found: list[Target] = []
    if not names:
        # policies that nobody has asked for are none of our business
        found = [Target(conn=conn.name) for conn in before.conns if not (conn.passive or conn.shunts_only)]
    for name in names:
        for target in before.find(name):
            if target.ike_id or target.child_id or before.conn(target.conn) is None:
                raise CtlError(f"{name} is an SA", "name a connection or child", code=ExitCode.UNKNOWN_NAME)
            found.append(target)
    whole: list[Target] = []
    for target in found:
        conn = before.conn(target.conn)
        # where there is nothing but what passes or drops, that is meant, and not an IKE_SA
        children = [child.name for child in conn.children if conn.shunts_only or not child.shunt] if conn else []
        if target.child or not children:
            whole.append(target)
        else:
            whole += [Target(target.conn, child) for child in children]
    return list(dict.fromkeys(whole))
