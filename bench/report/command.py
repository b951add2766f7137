"""``python -m bench report``: the page, and with ``--pictures`` single pictures for other pages."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench.report import markdown
from bench.report.page import render
from bench.report.pictures import sections
from bench.report.svg import standalone
from bench.results import ResultError, latest, load

#: pictures that are worth a file of their own, by title
FILES = {
    "One TCP stream": "tcp",
    "CPU of both gateways per Gbit": "cpu",
    "UDP, 64 octets, received": "udp64",
    "UDP packets over packet size": "sizes",
    "A ping every 10 ms": "latency",
    "CPU time for one Gbit of TCP": "where-time-goes",
    "TCP, one offload off": "offloads",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``report``."""
    parser.add_argument("result", type=Path, nargs="?", help="JSON file (default: the newest in bench/results/)")
    parser.add_argument("--out", type=Path, help="HTML file (default: beside the result)")
    parser.add_argument("--pictures", type=Path, metavar="DIRECTORY", help=f"also {', '.join(FILES.values())} as .svg")
    parser.add_argument("--markdown", action="store_true", help="print tables for README and docs, and write nothing")
    parser.set_defaults(function=main)


def main(args: argparse.Namespace) -> int:
    """Write what is asked for and say where. 2 if the file is no result."""
    try:
        source = args.result or latest()
        results = load(source)
    except ResultError as error:
        print(f"bench report: {error}", file=sys.stderr)
        return 2
    if args.markdown:
        print(markdown.render(results), end="")
        return 0
    out = args.out or source.with_suffix(".html")
    try:
        out.write_text(render(results))
        print(f"written: {out}")
        if args.pictures:
            args.pictures.mkdir(parents=True, exist_ok=True)
            for picture in (picture for section in sections(results) for picture in section.pictures):
                if picture.title in FILES:
                    file = args.pictures / f"{FILES[picture.title]}.svg"
                    file.write_text(standalone(picture.render()))
                    print(f"written: {file}")
    except OSError as error:
        print(f"bench report: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    return 0
