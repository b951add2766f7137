"""The HTTP endpoint: health."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from http import HTTPStatus

from ipsec.config.settings import HttpSettings
from ipsec.daemon.health import Health, Verdict
from ipsec.net.http import Handler, HttpServer, Request, Response

log = logging.getLogger(__name__)


class Endpoint:
    """Serves what ``ipsecd.http { }`` asks for, from ``start`` to ``stop``."""

    def __init__(self, settings: HttpSettings, health: Health) -> None:
        self._settings = settings
        self.server = HttpServer(
            {
                "/healthz": _answers(health.healthy, "healthy"),
                "/readyz": _answers(health.ready, "ready"),
                "/livez": _answers(health.live, "alive"),
            }
        )

    async def start(self) -> None:
        """Listen. BackendError if an address cannot be had."""
        await self.server.start((str(address), port) for address, port in self._settings.listen)
        log.info("metrics and health on %s", ", ".join(f"http://{endpoint}" for endpoint in self._settings.listen))

    async def stop(self) -> None:
        """Hang up; safe in any state."""
        await self.server.stop()


def _answers(question: Callable[[], Verdict], yes: str) -> Handler:
    async def answer(request: Request) -> Response:
        verdict = question()
        text = {"status": yes} if verdict.good else {"status": f"not {yes}", "problems": list(verdict.problems)}
        status = HTTPStatus.OK if verdict.good else HTTPStatus.SERVICE_UNAVAILABLE
        return Response(status, [json.dumps(text).encode() + b"\n"], "application/json")

    return answer
