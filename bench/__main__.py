"""``python -m bench [run|compare|report]``; ``run`` is what it does without a word. See bench/README.md."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from bench import installed

with installed():
    from bench import compare, run
    from bench.report import command as report

COMMANDS = ("run", "compare", "report")


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or (given[0] not in COMMANDS and given[0] not in ("-h", "--help")):
        given.insert(0, "run")
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    run.add_arguments(commands.add_parser("run", help="measure this machine (the default)"))
    compare.add_arguments(commands.add_parser("compare", help="what changed between two results, beyond the noise"))
    report.add_arguments(commands.add_parser("report", help="a page with pictures, and pictures alone"))
    args = parser.parse_args(given)
    args.command_line = given
    return int(args.function(args))


if __name__ == "__main__":
    sys.exit(main())
