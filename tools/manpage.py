"""Writes docs/man/ipsecctl.1, the manual page of ipsecctl, from the texts that --help shows.

python -m tools.manpage            write the file
python -m tools.manpage --check    status 1 if the file is not what the commands say
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from ipsec.ctl.app import SOCKET_VARIABLE, SOCKETS, common_options
from ipsec.ctl.errors import MEANINGS
from ipsec.ctl.main import VERBS, cli

FILE = Path(__file__).parent.parent / "docs" / "man" / "ipsecctl.1"

HEAD = r"""'\" t
.\" Made by python -m tools.manpage from the commands' own help; a test holds it to them.
.TH IPSECCTL 1 "" "ipsec" "User Commands"
.SH NAME
ipsecctl \- see and steer the tunnels of ipsecd
.SH SYNOPSIS
.B ipsecctl
.RI [ OPTIONS ]
.I VERB
.RI [ ARGUMENTS ]
"""


def text() -> str:
    """The whole page."""
    context = click.Context(cli, info_name="ipsecctl")
    lines = [HEAD.rstrip(), ".SH DESCRIPTION", *prose(cli.help or ""), ".SH OPTIONS"]
    lines.append("All verbs have these; they may stand before or after the verb.")
    for option in common_options():
        lines += option_lines(option, context)
    for title, verbs in VERBS.items():
        lines.append(f".SH {roff(title).upper()}")
        for name in verbs:
            command = cli.get_command(context, name)
            if command is not None:
                lines += verb(command, click.Context(command, info_name=name, parent=context))
    lines += [".SH EXIT STATUS"]
    for code, meaning in MEANINGS.items():
        lines += [".TP", f".B {code:d}", roff(meaning)]
    lines += [".SH ENVIRONMENT", ".TP", f".B {SOCKET_VARIABLE}", "The daemon's socket, instead of \\-\\-socket."]
    lines += [".TP", ".B NO_COLOR", "No colour, if it is set."]
    lines += [".SH FILES", ".TP", f".I {roff(SOCKETS[0])}", "Where ipsecd and charon listen, if they are not told."]
    lines += [".TP", f".I {roff(SOCKETS[1])}", "Where ipsecd listens as a unit of systemd; looked at second."]
    lines += [".SH SEE ALSO", r".BR swanctl (8),", r".BR swanctl.conf (5)"]
    return "\n".join(lines) + "\n"


def verb(command: click.Command, context: click.Context) -> Iterator[str]:
    """One verb, and the verbs below it."""
    names: list[str] = []
    current: click.Context | None = context
    while current is not None and current.parent is not None:
        names.insert(0, current.info_name or "")
        current = current.parent
    arguments = " ".join(command.collect_usage_pieces(context)).replace("[OPTIONS]", "").split()
    yield f".SS {roff(' '.join([*names, *arguments]))}"
    yield from prose(command.help or "")
    shared = {option.name for option in common_options()}
    for parameter in command.get_params(context):
        if isinstance(parameter, click.Option) and parameter.name not in shared and "--help" not in parameter.opts:
            yield from option_lines(parameter, context)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            if below is not None:
                yield from verb(below, click.Context(below, info_name=name, parent=context))


def option_lines(option: click.Parameter, context: click.Context) -> Iterator[str]:
    """An option and what it does."""
    record = option.get_help_record(context)
    if record is not None:
        yield ".TP"
        yield f".B {roff(record[0])}"
        yield roff(record[1])


def prose(help_text: str) -> Iterator[str]:
    """Paragraphs; those that begin with \\b keep their lines."""
    for index, paragraph in enumerate(inspect.cleandoc(help_text).split("\n\n")):
        lines = paragraph.strip("\n").split("\n")
        kept = lines[0].strip() == "\b"
        if index:
            yield ".PP"
        if kept:
            yield from (".nf", *(roff(line) for line in lines[1:]), ".fi")
        else:
            yield roff(" ".join(line.strip() for line in lines))


def roff(line: str) -> str:
    """A line that troff prints as it is."""
    line = line.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{line}" if line.startswith((".", "'")) else line


def main() -> int:
    """Write the file, or check it."""
    if "--check" in sys.argv[1:]:
        return int(not FILE.exists() or FILE.read_text() != text())
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
