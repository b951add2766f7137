"""The HTTP endpoint: health, and metrics. What writes metrics is imported only where there is an endpoint."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Callable
from http import HTTPStatus
from typing import TYPE_CHECKING

from ipsec.config.settings import HttpSettings
from ipsec.daemon.health import Health, Verdict
from ipsec.net.http import Handler, HttpServer, Request, Response

if TYPE_CHECKING:
    from ipsec.backend.userspace import UserspaceBackend
    from ipsec.daemon.families import Series
    from ipsec.daemon.metrics import Manual, Pace

log = logging.getLogger(__name__)


class Endpoint:
    """Serves what ``ipsecd.http { }`` asks for, from ``start`` to ``stop``."""

    def __init__(self, settings: HttpSettings, backend: UserspaceBackend, health: Health, manual: Manual) -> None:
        from ipsec.daemon.exposition import Exposition
        from ipsec.daemon.metrics import Metrics

        self._settings = settings
        self.metrics = Metrics(backend, health, manual)
        self.server = HttpServer(
            {
                "/metrics": Exposition(self._collect).answer,
                "/healthz": _answers(health.healthy, "healthy"),
                "/readyz": _answers(health.ready, "ready"),
                "/livez": _answers(health.live, "alive"),
            }
        )

    async def _collect(self, pace: Pace) -> AsyncIterator[Series]:
        async for series in self.metrics.collect(pace):
            yield series
        if self._settings.torilabs_names and self.metrics.ike is not None:
            from ipsec.daemon import torilabs

            async for series in torilabs.collect(self.metrics.ike, pace):
                yield series

    async def start(self) -> None:
        """Listen. BackendError if an address cannot be had."""
        await self.server.start((str(address), port) for address, port in self._settings.listen)
        self.metrics.start()
        log.info("metrics and health on %s", ", ".join(f"http://{endpoint}" for endpoint in self._settings.listen))

    async def stop(self) -> None:
        """Hang up; safe in any state."""
        self.metrics.stop()
        await self.server.stop()


def _answers(question: Callable[[], Verdict], yes: str) -> Handler:
    async def answer(request: Request) -> Response:
        verdict = question()
        text = {"status": yes} if verdict.good else {"status": f"not {yes}", "problems": list(verdict.problems)}
        status = HTTPStatus.OK if verdict.good else HTTPStatus.SERVICE_UNAVAILABLE
        return Response(status, [json.dumps(text).encode() + b"\n"], "application/json")

    return answer
