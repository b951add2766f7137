"""``/metrics``: the figures as text, for Prometheus and OpenMetrics, written in slices.

prometheus_client writes the text. It is given a few samples at a time, because all of 10 000 tunnels would take more
than a second, in which no packet of the control plane would be heard.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from http import HTTPStatus
from itertools import islice

from prometheus_client.core import Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, choose_encoder, generate_latest

from ipsec.daemon.families import Series
from ipsec.daemon.metrics import Pace
from ipsec.errors import BackendError
from ipsec.net.http import HttpError, Request, Response

Encoder = Callable[["_Some"], bytes]

#: samples that are written in one go, in about half a millisecond
SLICE = 64
#: octets of the answer that are sent in one go
PART = 1 << 16
_EOF = b"# EOF\n"


class _Some:
    """What prometheus_client takes for a registry: one metric with some of its samples."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> Iterator[Metric]:
        yield self._metric


class Exposition:
    """Answers ``/metrics``. Clients that ask while an answer is in the making get that one."""

    def __init__(self, collect: Callable[[Pace], AsyncIterator[Series]]) -> None:
        self._collect = collect
        self._under_way: dict[str, asyncio.Task[list[bytes]]] = {}
        "by content type"

    async def answer(self, request: Request) -> Response:
        """Text in the format that the client prefers. HttpError while the data path is not there."""
        encoder, content_type = _choose(request.fields.get("accept", ""))
        task = self._under_way.get(content_type)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._write(encoder))
            self._under_way[content_type] = task
            task.add_done_callback(lambda _: self._under_way.pop(content_type))
        try:
            # a client that goes away must not take the answer from the others
            return Response(HTTPStatus.OK, await asyncio.shield(task), content_type)
        except BackendError as error:
            raise HttpError(HTTPStatus.SERVICE_UNAVAILABLE, str(error)) from None

    async def _write(self, encoder: Encoder) -> list[bytes]:
        pace = Pace()
        parts: list[bytes] = []
        part = bytearray()
        end = b""
        async for series in self._collect(pace):
            samples = iter(series.samples)
            begun = False
            while some := list(islice(samples, SLICE)):
                metric = Metric(series.name, series.help, series.kind)
                metric.samples = some
                text = encoder(_Some(metric))
                if text.endswith(_EOF):
                    text, end = text.removesuffix(_EOF), _EOF
                part += _without_head(text) if begun else text
                begun = True
                if len(part) >= PART:
                    parts.append(bytes(part))
                    part.clear()
                await pace.step()
        return [*parts, bytes(part) + end]


def _choose(accept: str) -> tuple[Encoder, str]:
    try:
        encoder, content_type = choose_encoder(accept)
    except (TypeError, ValueError):
        # a version that is no version
        return generate_latest, CONTENT_TYPE_PLAIN_0_0_4
    return encoder, content_type


def _without_head(text: bytes) -> bytes:
    """Samples without the lines about their metric, which were there before."""
    while text.startswith(b"#"):
        text = text.partition(b"\n")[2]
    return text
