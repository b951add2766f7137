"""ipsecd with a ticker in its event loop: ``python -m bench.handshake.ticking --config FILE``.

Every millisecond a callback is due; how late the latest one came is the longest time that anything else in the loop had
to wait. SIGUSR2 writes it to the log, in milliseconds, and begins anew; *busy* is the most CPU time that the thread of
the loop used between two ticks, which others who keep the CPU from it have no part in. With IPSEC_BENCH_PROFILE the
whole run is profiled into that file.
"""

from __future__ import annotations

import asyncio
import cProfile
import os
import signal
import sys
import time

from ipsec.cli import ipsecd
from ipsec.daemon import Daemon
from ipsec.exits import ExitCode

PERIOD_S = 0.001


class TickingDaemon(Daemon):
    """The daemon and its ticker."""

    async def run(self) -> ExitCode:
        """See Daemon."""
        loop = asyncio.get_running_loop()
        worst, worst_cpu, spent = 0.0, 0.0, time.thread_time()
        due = loop.time() + PERIOD_S

        def tick() -> None:
            nonlocal worst, worst_cpu, spent, due
            now, cpu = loop.time(), time.thread_time()
            worst = max(worst, now - due)
            worst_cpu = max(worst_cpu, cpu - spent)
            spent = cpu
            due = now + PERIOD_S
            loop.call_at(due, tick)

        def tell() -> None:
            nonlocal worst, worst_cpu
            print(f"stall {worst * 1000:.3f} busy {worst_cpu * 1000:.3f}", file=sys.stderr, flush=True)
            worst = worst_cpu = 0.0

        loop.call_at(due, tick)
        loop.add_signal_handler(signal.SIGUSR2, tell)
        return await super().run()


def main() -> int:
    """The command line of ipsecd."""
    # the package has a function of the module's name
    vars(sys.modules["ipsec.daemon.run"])["Daemon"] = TickingDaemon
    file = os.environ.get("IPSEC_BENCH_PROFILE")
    if not file:
        return ipsecd.main()
    profile = cProfile.Profile()
    try:
        return profile.runcall(ipsecd.main)
    finally:
        profile.dump_stats(file)


if __name__ == "__main__":
    sys.exit(main())
