"""Where ``ipsecd`` begins: the daemon, or ``ipsecd healthcheck``, which must not wait for the daemon's imports."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    _occupy_standard_streams()
    if arguments and arguments[0] == "healthcheck":
        from ipsec.cli import healthcheck

        return healthcheck.main(arguments[1:])
    if os.getpid() == 1:
        _be_init()
    # Ctrl-C before there is anything to undo ends it without a traceback; who began us may have it ignored
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if ours:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    # what is imported stays: looking for garbage in it takes a tenth of the start
    gc.disable()
    from ipsec.cli import ipsecd

    gc.freeze()
    gc.enable()
    if ours:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return ipsecd.main(arguments)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _occupy_standard_streams() -> None:
    """Whoever began us may have closed them: what is opened next, a socket or a key file, would be in their place.

    Libraries write to number 2, and libuv ends the process rather than close any of them.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # the lowest number that is free
            os.open(os.devnull, os.O_RDWR)


def _be_init() -> None:
    """What the first process of a container has to see to.

    The kernel ignores signals to it that have no handler, so one that comes before the daemon is there would be lost;
    and it gets the orphans of others (``docker exec``), whose status nobody wants. We start no processes of our own.
    """
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, _leave)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(128 + number)
