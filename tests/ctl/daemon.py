"""ipsecctl on a whole ipsecd: without anything outside the process but the socket."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from ipsec.daemon.run import Daemon
from tests.ctl.fake import Ctl, Done
from tests.vici.test_service import daemon

Run = Callable[..., Awaitable[Done]]
Test = Callable[[Daemon, Run], Awaitable[None]]


def with_ipsecd(folder: Path, ctl: Ctl, test: Test) -> None:
    """Run a test; the daemon has the connection ``old`` with the child ``net``, whose peer is nobody."""

    async def main() -> None:
        async with daemon(folder) as (one, _):

            async def run(*arguments: str) -> Done:
                return await asyncio.to_thread(ctl, *arguments)

            await test(one, run)

    asyncio.run(main())
