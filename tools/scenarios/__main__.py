"""Runs scenarios and prints what was checked.

    python -m tools.scenarios [--jobs N] [--verbose] [NAME...]
"""

from __future__ import annotations

import argparse
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tools.image import ImageError
from tools.scenarios import containers, file, lab
from tools.scenarios.lab import LabError
from tools.scenarios.model import ScenarioError
from tools.scenarios.play import Result, make_images, obstacle, play
from tools.scenarios.steps import VERBS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.scenarios", description="Run scenarios in real containers.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: all of {', '.join(file.names())}")
    parser.add_argument("--jobs", type=int, default=4, help="so many at once; they mostly wait (default: %(default)s)")
    parser.add_argument("--image", help="one of ipsecd that is there, instead of this checkout's")
    parser.add_argument("--verbose", action="store_true", help="show what the containers said")
    options = parser.parse_args()
    unknown = set(options.names) - set(file.names())
    if unknown:
        parser.error(f"no scenario {', '.join(sorted(unknown))}; there are {', '.join(file.names())}")
    why = obstacle()
    if why:
        print(f"scenarios: {why}", file=sys.stderr)
        return 4
    try:
        scenarios = [file.read(name, set(VERBS)) for name in options.names or file.names()]
        containers.sweep()
        lab.sweep()
        images = {"ipsec": options.image} if options.image else {}
        images |= make_images({image for scenario in scenarios for image in scenario.images} - images.keys())
    except (ScenarioError, ImageError, LabError) as error:
        print(f"scenarios: {error}", file=sys.stderr)
        return 4
    # a terminal's width, or enough for a log
    console = Console(width=shutil.get_terminal_size((160, 24)).columns)
    with ThreadPoolExecutor(options.jobs) as pool:
        results = []
        for result in pool.map(lambda scenario: play(scenario, images), scenarios):
            results.append(result)
            show(console, result, verbose=options.verbose)
    failed = [result.scenario.name for result in results if result.error]
    names = f"; failed: {', '.join(failed)}" if failed else ""
    console.print(f"{len(results) - len(failed)} of {len(results)} scenarios passed{names}", highlight=False)
    return 1 if failed else 0


def show(console: Console, result: Result, *, verbose: bool) -> None:
    """One scenario: its checks, their times, and what went wrong."""
    console.print(f"[bold]{result.scenario.name}[/]: {result.scenario.about}", highlight=False)
    table = Table(box=None, show_header=False, padding=(0, 1))
    for step in result.scenario.steps[: len(result.seconds)]:
        table.add_row("[green]ok[/]", f"{result.seconds[len(table.rows)]:5.1f} s", Text(step.check))
    if result.error:
        table.add_row("[red]FAILED[/]", "", result.failed_check)
    console.print(table)
    if result.error:
        console.print(result.error, style="red", markup=False, highlight=False)
    if result.error or verbose:
        for name, said in result.said.items():
            console.print(f"--- {name}\n{said}", markup=False, highlight=False)
    console.print()


if __name__ == "__main__":
    sys.exit(main())
