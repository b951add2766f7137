"""What the commands have in common that measure one thing in a lab of their own."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from types import FrameType
from typing import TYPE_CHECKING, TypeVar

from bench.topology import Lab, LabError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Outcome = TypeVar("Outcome", bound=DataclassInstance)


def run(measure: Callable[[Lab], Outcome], failed: Callable[[Outcome], bool]) -> int:
    """Measure and print the outcome as JSON. 1 if that ``failed`` or could not be had, 130 if interrupted."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with Lab() as lab:
            outcome = measure(lab)
    except LabError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: everything that was started is gone again", file=sys.stderr)
        return 130
    print(json.dumps(asdict(outcome), indent=1))
    return 1 if failed(outcome) else 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
