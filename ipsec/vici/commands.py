"""All commands and events of vici on one socket."""

from __future__ import annotations

from ipsec.vici.actions import Actions
from ipsec.vici.control import Control
from ipsec.vici.events import NAMES, Publisher
from ipsec.vici.extensions import Extensions
from ipsec.vici.lists import Lists
from ipsec.vici.loading import Loading
from ipsec.vici.server import MODE, ViciServer


class ViciService:
    """Serves a daemon's control: ``listen`` where it is to be served, ``start``, and ``stop``."""

    def __init__(self, control: Control) -> None:
        self._extensions = Extensions(control)
        parts = (Actions(control), Lists(control), Loading(control), self._extensions)
        commands = {name: handler for part in parts for name, handler in part.commands.items()}
        self._server = ViciServer(commands, NAMES)
        self._publisher = Publisher(control, self._server)

    async def listen(self, path: str, *, group: str = "", mode: int = MODE) -> None:
        """Listen on a Unix socket. BackendError, also if another daemon is there."""
        await self._server.start(path, group=group, mode=mode)

    async def listen_tcp(self, address: str, port: int) -> None:
        """Listen on a TCP port. BackendError."""
        await self._server.start_tcp(address, port)

    def start(self) -> None:
        """Tell clients of events from now on."""
        self._publisher.start()

    async def stop(self) -> None:
        """Hang up on everybody."""
        self._publisher.stop()
        self._extensions.close()
        await self._server.stop()
