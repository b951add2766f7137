"""Where ``ipsecd`` begins: the daemon, or ``ipsecd healthcheck``, which must not wait for the daemon's imports."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] == "healthcheck":
        from ipsec.cli import healthcheck

        return healthcheck.main(arguments[1:])
    from ipsec.cli import ipsecd

    return ipsecd.main(arguments)
