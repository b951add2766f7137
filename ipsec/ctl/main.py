"""The command ``ipsecctl``: its verbs, and what becomes of their errors."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Sequence

import click
from click.shell_completion import CompletionItem
from rich.text import Text

from ipsec.ctl.app import App, common_options
from ipsec.ctl.completion import VARIABLE
from ipsec.ctl.errors import MEANINGS, CtlError, ExitCode
from ipsec.errors import ConfigError, IpsecError

#: All verbs, as --help shows them: the module and the click command in it, which is imported when it is needed.
VERBS = {
    "See what there is": {
        "status": "ipsec.ctl.status:status",
        "list": "ipsec.ctl.lists:list_",
        "counters": "ipsec.ctl.counters:counters",
        "top": "ipsec.ctl.top:top",
        "watch": "ipsec.ctl.watch:watch",
    },
    "Change it": {
        "up": "ipsec.ctl.up:up",
        "down": "ipsec.ctl.down:down",
        "rekey": "ipsec.ctl.rekey:rekey",
        "redirect": "ipsec.ctl.rekey:redirect",
        "load": "ipsec.ctl.load:load",
        "reload": "ipsec.ctl.load:reload",
    },
    "Find out why": {
        "explain": "ipsec.ctl.explain:explain",
        "log": "ipsec.ctl.log:log",
        "capture": "ipsec.ctl.capture:capture",
        "doctor": "ipsec.ctl.doctor:doctor",
        "check": "ipsec.ctl.check:check",
        "diff": "ipsec.ctl.check:diff",
    },
    "The tool itself": {
        "completion": "ipsec.ctl.completion:completion",
        "schema": "ipsec.ctl.schema:schema",
    },
}
_PLACES = {name: place for verbs in VERBS.values() for name, place in verbs.items()}

EPILOG = "\b\nExit status:\n" + "\n".join(f"  {code:3d}  {meaning}" for code, meaning in MEANINGS.items())


class Verbs(click.Group):
    """The group of all verbs; finds them in VERBS."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """See click.Group."""
        return list(_PLACES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """See click.Group."""
        place = _PLACES.get(cmd_name)
        if place is None:
            return None
        module, _, attribute = place.partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """See click.Group. bash shows no help, so that no verb has to be imported for it."""
        if os.environ.get(VARIABLE, "").startswith("bash") and not incomplete.startswith("-"):
            return [CompletionItem(name) for name in _PLACES if name.startswith(incomplete)]
        return super().shell_complete(ctx, incomplete)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """See click.Group; a verb that is not there brings near ones to mind."""
        from ipsec.ctl.names import near

        if args and args[0] not in _PLACES and not args[0].startswith("-"):
            raise click.UsageError(f"there is no verb {args[0]!r}{near(args[0], _PLACES)}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """See click.Group: one table for each section of VERBS."""
        for title, verbs in VERBS.items():
            rows = []
            for name in verbs:
                command = self.get_command(ctx, name)
                if command is not None:
                    rows.append((name, command.get_short_help_str(limit=formatter.width)))
            with formatter.section(title):
                formatter.write_dl(rows)


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
    app = App()
    try:
        result = cli.main(
            list(arguments) if arguments is not None else None, "ipsecctl", standalone_mode=False, obj=app
        )
        if sys.stdout is not None:
            sys.stdout.flush()
        return result if isinstance(result, int) else ExitCode.OK
    except click.ClickException as error:
        if app.json:
            app.document("error", error="usage", message=error.format_message(), remedy=None)
        error.show()
        return ExitCode.USAGE
    except CtlError as error:
        return _fail(app, error)
    except ConfigError as error:
        return _fail(app, CtlError(str(error), code=ExitCode.CONFIG))
    except IpsecError as error:
        return _fail(app, CtlError(str(error)))
    except (KeyboardInterrupt, click.Abort):
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        return _deaf()
    except SystemExit as end:
        # what rich and click make of it
        if isinstance(end.__context__, BrokenPipeError):
            return _deaf()
        raise
    except OSError as error:
        # a full disk below the output, or a file
        _deaf()
        app.json = False
        return _fail(app, CtlError(str(error)))


def _deaf() -> int:
    """Who reads has seen enough; the interpreter must not complain when it flushes."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return ExitCode.BROKEN_PIPE


def _fail(app: App, error: CtlError) -> int:
    """Tell of an error: on standard error, and with --json as a document too."""
    if app.json:
        name = error.code.name.lower().replace("_", "-")
        app.document("error", error=name, message=error.message, remedy=error.remedy or None)
    app.err.print(Text.assemble(("ipsecctl: ", "bold red"), error.message))
    if error.remedy:
        app.err.print(Text.assemble(("  -> ", "bold"), error.remedy))
    return error.code
