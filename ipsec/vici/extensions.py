"""Commands that charon does not have; their names begin with ``ipsecd-``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ipsec.vici.codec import Message
from ipsec.vici.control import Control
from ipsec.vici.server import Client, Handler


class Extensions:
    """The commands; see the module's text."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self.commands: dict[str, Handler] = {"ipsecd-health": self.health}

    async def health(self, client: Client, message: Message) -> Mapping[str, Any]:
        """Sections ``alive``, ``healthy``, ``ready``, each with a key of its name, and ``problems`` if that is no."""
        return {
            question: {question: not problems, "problems": problems or None}
            for question, problems in self._control.health().items()
        }
