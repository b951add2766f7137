"""One target under atheris, which sees the branches taken in ``ipsec``; the command line after it is libFuzzer's."""

from __future__ import annotations

import sys

import atheris

# the parsers have to be seen while they are imported
with atheris.instrument_imports(include=["ipsec"]):
    from tests.fuzz.targets import TARGETS


def main() -> None:
    run = TARGETS[sys.argv.pop(1)].run
    atheris.Setup(sys.argv, run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
