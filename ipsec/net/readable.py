"""A socket in the event loop that may report errors: netlink (ENOBUFS), connected UDP (ECONNREFUSED).

libuv, which is below uvloop, looks no more at a descriptor on which it has seen an error; asyncio's own loop goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable


def watch(fd: int, ready: Callable[[], None]) -> None:
    """Have the running loop call ``ready`` whenever ``fd`` is readable or has an error, until ``unwatch``."""
    loop = asyncio.get_running_loop()

    def on_ready() -> None:
        # what is there still is not watched anew, so this has to be made from nothing
        loop.remove_reader(fd)
        loop.add_reader(fd, on_ready)
        ready()

    loop.add_reader(fd, on_ready)


def unwatch(fd: int) -> None:
    """No more. Before the descriptor is closed."""
    asyncio.get_running_loop().remove_reader(fd)
