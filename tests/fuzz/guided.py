"""One target under atheris, which sees the branches taken in ``ipsec``; the command line after it is libFuzzer's."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable

import atheris

# the parsers have to be seen while they are imported
with atheris.instrument_imports(include=["ipsec"]):
    from tests.fuzz.targets import TARGETS

from tests.fuzz.__main__ import FOLDER


def keeping(name: str, run: Callable[[bytes], None]) -> Callable[[bytes], None]:
    """The same, and an input that fails is kept: not every release of atheris does so."""

    def one(data: bytes) -> None:
        try:
            run(data)
        except BaseException:
            (FOLDER / f"{name}.crash-{hashlib.sha1(data).hexdigest()}").write_bytes(data)
            raise

    return one


def main() -> None:
    name = sys.argv.pop(1)
    atheris.Setup(sys.argv, keeping(name, TARGETS[name].run))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
