"""One run of ipsecctl: what the command line says for all verbs, the daemon, and the way out of the process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Callable, Collection, Coroutine
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console

from ipsec.ctl.errors import CtlError, ExitCode
from ipsec.errors import ParseError
from ipsec.vici.client import DEFAULT_SOCKET, HungUp, Session, UnknownToDaemon, ViciError, connect

SOCKET_VARIABLE = "IPSECCTL_SOCKET"
#: where a daemon is looked for, in this order: by default, and as systemd/ipsecd.service has it
SOCKETS = (DEFAULT_SOCKET, "/run/ipsecd/vici")
#: seconds for its first answer: an event loop that has thousands of tunnels to see to is back sooner
PATIENCE_S = 10.0
#: of the documents that --json prints; a change that programs could trip over makes it one higher
SCHEMA = 1
#: the width of what does not go to a terminal: nothing is cut or wrapped
PLAIN_WIDTH = 1 << 16

#: a configuration file on the command line; why it cannot be read is for whoever reads it to say
FILE = click.Path(dir_okay=False, readable=False)

T = TypeVar("T")


class Whole(click.IntRange):
    """A whole number on the command line, called so in errors."""

    name = "whole number"


class Number(click.FloatRange):
    """A number on the command line, called so in errors."""

    name = "number"

class Terminal(Console):
    """A console that leaves it to ``main`` what happens when nobody reads."""

    def on_broken_pipe(self) -> None:
        """See Console, which would end the process with status 1; called while a BrokenPipeError is handled."""
        raise

    @classmethod
    def plain(cls, **more: Any) -> Terminal:
        """One that nothing in what is printed has a meaning for."""
        return cls(highlight=False, markup=False, emoji=False, **more)


@dataclass
class App:
    """What the options that all verbs have say, and what goes with them."""

    socket: str = field(default_factory=lambda: os.environ.get(SOCKET_VARIABLE, ""))
    "the daemon's; empty: the first of SOCKETS that somebody answers on, and that one from then on"
    json: bool = False
    color: str = "auto"

    @cached_property
    def out(self) -> Console:
        """Standard output: with colour and as wide as the terminal, or plain and not cut."""
        return self._console(stderr=False)

    @cached_property
    def err(self) -> Console:
        """Standard error."""
        return self._console(stderr=True)

    def _console(self, *, stderr: bool) -> Console:
        force = {"always": True, "never": False}.get(self.color)
        console = Terminal.plain(stderr=stderr, force_terminal=force)
        if not console.is_terminal:
            console = Terminal.plain(stderr=stderr, force_terminal=False, width=PLAIN_WIDTH)
        return console

    @property
    def fancy(self) -> bool:
        """Whether a person looks at standard output right now."""
        return self.out.is_terminal and not self.json

    def document(self, kind: str, **values: Any) -> None:
        """Print one JSON document."""
        print(json.dumps({"schema": SCHEMA, "kind": kind, **values}, indent=2, default=str))

    def json_line(self, kind: str, **values: Any) -> None:
        """Print one JSON document on a line of its own, at once."""
        print(json.dumps({"schema": SCHEMA, "kind": kind, **values}, default=str), flush=True)

    def run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run what talks to the daemon. CtlError instead of what vici says."""
        try:
            return asyncio.run(work())
        except ViciError as error:
            raise explained(error) from error

    async def connect(self) -> Session:
        """Connect to the daemon. CtlError that says what to do if there is none."""
        sockets = (self.socket,) if self.socket else SOCKETS
        failed: dict[str, ViciError] = {}
        for socket in sockets:
            try:
                session = await _answering(socket)
            except ViciError as error:
                failed[socket] = error
            else:
                self.socket = socket
                return session
        # one that is there and does not work is more to the point than one that is not
        for socket, why in failed.items():
            if not isinstance(why.__cause__, FileNotFoundError):
                raise unreachable(socket, why) from why
        why = failed[sockets[0]]
        raise unreachable(" or ".join(sockets), why) from why

    @contextlib.asynccontextmanager
    async def session(self) -> AsyncIterator[Session]:
        """A connection to the daemon, for as long as the body runs. CtlError that says what to do if there is none."""
        async with await self.connect() as session:
            yield session


async def _answering(socket: str) -> Session:
    """A connection to a daemon that answers. ViciError if there is no connection, CtlError if there is no answer."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            session = await connect(socket)
            try:
                await session.request("version")
            except BaseException as error:
                await session.close()
                if isinstance(error, ViciError):
                    raise explained(error) from error
                raise
            return session
    except TimeoutError:
        why = f"the daemon on {socket.removeprefix('unix://')} has not answered for {PATIENCE_S:g} s"
        remedy = "it hangs, or is stopped: see its state (ps), the end of its log, and whether it has the processor"
        raise CtlError(why, remedy, code=ExitCode.UNREACHABLE) from None


def unreachable(socket: str, error: ViciError) -> CtlError:
    """What it means that a socket cannot be connected to."""
    cause = error.__cause__
    path = socket.removeprefix("unix://")
    why, remedy = str(error), ""
    if isinstance(cause, FileNotFoundError):
        why = f"no daemon: there is no socket {path}"
        remedy = (
            f"start ipsecd (or charon); if ipsecd.vici_socket names another path, give it with --socket or "
            f"{SOCKET_VARIABLE}; an ipsecd with manual SAs alone has a socket only if ipsecd.vici_socket is set"
        )
    elif isinstance(cause, ConnectionRefusedError) and not path.startswith("tcp://") and not Path(path).is_socket():
        why = f"{path} is no socket"
        remedy = "give the path of the daemon's vici socket with --socket"
    elif isinstance(cause, ConnectionRefusedError):
        why = f"no daemon listens on {path}"
        remedy = "it has stopped or was killed: start it, and look at its log"
    elif isinstance(cause, PermissionError):
        why = f"no permission for {path}"
        remedy = "use sudo, or set ipsecd.vici_group to a group that you are in"
    elif isinstance(cause, OSError | ValueError):
        remedy = "give the path of the daemon's vici socket with --socket"
    return CtlError(why, remedy, code=ExitCode.UNREACHABLE)


def explained(error: ViciError) -> CtlError:
    """A failure of the protocol as ours."""
    if isinstance(error, HungUp):
        return CtlError("the daemon has hung up", "it has stopped or was restarted", code=ExitCode.UNREACHABLE)
    if isinstance(error.__cause__, ParseError):
        return CtlError(str(error), "give the daemon's vici socket with --socket", code=ExitCode.UNREACHABLE)
    if isinstance(error, UnknownToDaemon):
        return CtlError(str(error), "it is an older ipsecd, or a charon without that")
    return CtlError(str(error))


def current() -> App:
    """The App of the command that runs."""
    return click.get_current_context().ensure_object(App)


def _set(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    if value is not None and parameter.name:
        setattr(context.ensure_object(App), parameter.name, value)


def common_options() -> list[click.Parameter]:
    """The options that come before or after every verb."""
    return [
        click.Option(
            ["--json"],
            is_flag=True,
            default=None,
            expose_value=False,
            is_eager=True,
            callback=_set,
            help="Print JSON for programs; `ipsecctl schema` describes it.",
        ),
        click.Option(
            ["--socket"],
            metavar="PATH",
            expose_value=False,
            is_eager=True,
            callback=_set,
            help=f"The daemon's vici socket, also a charon's. Default: ${SOCKET_VARIABLE}, else the first of "
            f"{' and '.join(SOCKETS)} that a daemon answers on.",
        ),
        click.Option(
            ["--color"],
            type=click.Choice(["auto", "always", "never"]),
            expose_value=False,
            is_eager=True,
            callback=_set,
            help="Colour; auto is: on a terminal, unless NO_COLOR is set.",
        ),
    ]


class Verb(click.Command):
    """A verb; it has the common options after its own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += common_options()


class VerbGroup(click.Group):
    """A verb with verbs below it."""

    command_class = Verb

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += common_options()

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """See click.Group; a verb that is not there brings near ones to mind."""
        return super().resolve_command(ctx, known_verb(ctx, args, self.commands))


def known_verb(ctx: click.Context, args: list[str], verbs: Collection[str]) -> list[str]:
    """``args``, if they begin with a verb or an option. UsageError."""
    from ipsec.ctl.names import near

    if args and args[0] not in verbs and not args[0].startswith("-"):
        raise click.UsageError(f"there is no verb {args[0]!r}{near(args[0], verbs)}", ctx)
    return args
