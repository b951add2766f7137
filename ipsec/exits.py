"""How the commands end: a number means the same whichever of them ends with it."""

from __future__ import annotations

from enum import IntEnum, unique


@unique
class ExitCode(IntEnum):
    """The exit status; documented in docs/operations.md for ipsecd, in docs/ipsecctl.md for ipsecctl."""

    OK = 0
    BUG = 1
    USAGE = 2
    CONFIG = 3
    REQUIREMENT = 4
    # of ipsecd
    SA = 5
    DEVICE_LOST = 6
    # of ipsecctl
    FAILED = 7
    TIMEOUT = 8
    DIFFERS = 9
    UNREACHABLE = 10
    UNKNOWN_NAME = 11
    # what a shell says of a command that SIGINT or SIGPIPE has ended
    INTERRUPTED = 130
    BROKEN_PIPE = 141
