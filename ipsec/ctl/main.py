"""The command ``ipsecctl``: its verbs, and what becomes of their errors."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import click
from click.shell_completion import CompletionItem
from rich.text import Text

from ipsec.cli.output import deafen, lenient
from ipsec.ctl.app import App, common_options, known_verb
from ipsec.ctl.errors import MEANINGS, CtlError, ExitCode
from ipsec.errors import ConfigError, IpsecError


class Place(NamedTuple):
    """Where a verb is, and what it does: importing all modules to ask them would take --help and a shell's TAB long."""

    command: str
    "module:attribute of the click command, imported when it is needed"
    summary: str
    "the first sentence of its help"


#: All verbs, as --help shows them.
VERBS = {
    "See what there is": {
        "status": Place("ipsec.ctl.status:status", "Every connection: up or down, to whom, and what it carries."),
        "list": Place("ipsec.ctl.lists:list_", "List what the daemon has, one kind at a time."),
        "counters": Place("ipsec.ctl.counters:counters", "What was counted: IKE messages, packets, drops."),
        "top": Place("ipsec.ctl.top:top", "Live traffic of every CHILD_SA and manual SA, the busiest first."),
        "watch": Place("ipsec.ctl.watch:watch", "Show what happens to tunnels: up, down, rekeyed, moved, failed."),
    },
    "Change it": {
        "up": Place("ipsec.ctl.up:up", "Bring up connections or children, and say why if that does not work."),
        "down": Place("ipsec.ctl.down:down", "Close connections, children or single SAs, and tell the peers."),
        "rekey": Place("ipsec.ctl.rekey:rekey", "Give SAs new keys."),
        "redirect": Place("ipsec.ctl.rekey:redirect", "Send peers to another gateway (RFC 5685)."),
        "install": Place(
            "ipsec.ctl.install:install", "Let children wait for traffic, or put in place what passes or drops."
        ),
        "uninstall": Place("ipsec.ctl.install:uninstall", "Take traps away, and what passes or drops."),
        "load": Place("ipsec.ctl.load:load", "Load a swanctl.conf and its credentials into the daemon."),
        "flush": Place("ipsec.ctl.flush:flush", "Forget the revocation lists and OCSP responses that were fetched."),
        "reload": Place("ipsec.ctl.load:reload", "Have the daemon read its own file again, as SIGHUP does."),
    },
    "Find out why": {
        "explain": Place("ipsec.ctl.explain:explain", "Say why a connection is not up, and what to do about it."),
        "log": Place("ipsec.ctl.log:log", "Follow the daemon's log, all of it or the lines about one connection."),
        "capture": Place("ipsec.ctl.capture:capture", "Write packets to a pcapng file for Wireshark, until Ctrl-C."),
        "doctor": Place(
            "ipsec.ctl.doctor:doctor", "Look at the machine, the configuration and the daemon, and say what is missing."
        ),
        "check": Place(
            "ipsec.ctl.check:check", "Read a configuration file as the daemon would, and say what is wrong with it."
        ),
        "diff": Place("ipsec.ctl.check:diff", "Show what a reload of the daemon's configuration file would change."),
    },
    "The tool itself": {
        "completion": Place("ipsec.ctl.completion:completion", "Print the completion script for a shell."),
        "schema": Place("ipsec.ctl.schema:schema", "Print the JSON Schema of what --json prints."),
    },
}
_PLACES = {name: place for verbs in VERBS.values() for name, place in verbs.items()}

EPILOG = "\b\nExit status:\n" + "\n".join(f"  {code:3d}  {meaning}" for code, meaning in MEANINGS.items())


class _NobodyReads(Exception):
    """A BrokenPipeError on its way past click, which makes a status of its own of one: 1, as if it were a bug."""


@contextlib.contextmanager
def _past_click() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError as error:
        raise _NobodyReads from error


class Verbs(click.Group):
    """The group of all verbs; finds them in VERBS."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """See click.Group; --help and --version print here."""
        with _past_click():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        """See click.Group."""
        with _past_click():
            return super().invoke(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """See click.Group."""
        return list(_PLACES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """See click.Group."""
        place = _PLACES.get(cmd_name)
        if place is None:
            return None
        module, _, attribute = place.command.partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """See click.Group."""
        if incomplete.startswith("-"):
            return super().shell_complete(ctx, incomplete)
        return [CompletionItem(n, help=p.summary) for n, p in _PLACES.items() if n.startswith(incomplete)]

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """See click.Group; a verb that is not there brings near ones to mind."""
        return super().resolve_command(ctx, known_verb(ctx, args, _PLACES))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """See click.Group: one table for each section of VERBS."""
        for title, verbs in VERBS.items():
            with formatter.section(title):
                formatter.write_dl([(name, place.summary) for name, place in verbs.items()])


def _print_version(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        from ipsec.cli.version import version

        click.echo(f"ipsecctl {version()}")
        context.exit()


@click.group(
    cls=Verbs,
    params=common_options(),
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Print the version."
)
def cli() -> None:
    """See and steer the tunnels of ipsecd; also of strongSwan's charon, as far as its vici protocol goes.

    \b
      ipsecctl status               every tunnel, what it carries, and what is wrong
      ipsecctl up office            bring up a connection, and watch it come
      ipsecctl down office/voice    close one of its children
      ipsecctl VERB --help          more about a verb
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ipsecctl; the exit status."""
    lenient()
    app = App()
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        result = cli.main(given, "ipsecctl", standalone_mode=False, obj=app)
        if sys.stdout is not None:
            sys.stdout.flush()
        return result if isinstance(result, int) else ExitCode.OK
    except click.ClickException as error:
        # what is wrong may stand before it, so that it was not read yet
        app.json = app.json or "--json" in given
        return _misused(app, error)
    except CtlError as error:
        return _fail(app, error)
    except ConfigError as error:
        return _fail(app, CtlError("\n".join(error.lines()), code=ExitCode.CONFIG))
    except IpsecError as error:
        return _fail(app, CtlError(str(error)))
    except (KeyboardInterrupt, click.Abort):
        return ExitCode.INTERRUPTED
    except (BrokenPipeError, _NobodyReads):
        # whoever reads has seen enough
        _deafen()
        return ExitCode.BROKEN_PIPE
    except OSError as error:
        # a full disk below the output, or a file
        _deafen()
        app.json = False
        what = error.filename or "standard output"
        return _fail(app, CtlError(f"{what}: {error.strerror or error}", code=ExitCode.REQUIREMENT))


def _deafen() -> None:
    """Nothing more can be written. The interpreter must not try once more at its end, which would be another status."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                deafen(stream)


def _misused(app: App, error: click.ClickException) -> int:
    """Tell of a wrong command line."""
    with _if_possible():
        if app.json:
            app.document("error", error="usage", message=error.format_message(), remedy=None)
    with _if_possible():
        error.show()
    return ExitCode.USAGE


def _fail(app: App, error: CtlError) -> int:
    """Tell of an error: on standard error, and with --json as a document too."""
    with _if_possible():
        if app.json:
            name = error.code.name.lower().replace("_", "-")
            app.document("error", error=name, message=error.message, remedy=error.remedy or None)
    with _if_possible():
        app.err.print(Text.assemble(("ipsecctl: ", "bold red"), error.message))
        if error.remedy:
            app.err.print(Text.assemble(("  -> ", "bold"), error.remedy))
    return error.code


@contextlib.contextmanager
def _if_possible() -> Iterator[None]:
    """Print what an error is; that nobody reads it, or that it cannot be written, is not worth another error."""
    with contextlib.suppress(OSError):
        yield
    _deafen()
