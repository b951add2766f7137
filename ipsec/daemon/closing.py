"""The end of all IKE_SAs, when the daemon stops."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace

from ipsec.ike.engine import IkeEngine

log = logging.getLogger(__name__)

#: how long peers have to acknowledge: after the last of them that did, and in all
STOP_S = 3.0
STOP_MAX_S = 6.0
#: they are asked again so soon
RETRANSMIT_S = 0.5
#: peers that a line of the log is about each
NAMED = 10
LOOK_S = 0.02


async def close_all(engine: IkeEngine, turn: Callable[[], None]) -> None:
    """Close every IKE_SA at its peer; those whose peer does not answer are forgotten."""
    loop = asyncio.get_running_loop()
    engine.settings = replace(engine.settings, retransmit_timeout=RETRANSMIT_S, retransmit_tries=4)
    engine.stop(loop.time())
    turn()
    begun = heard = loop.time()
    left = len(engine.sas)
    while left and loop.time() < min(heard + STOP_S, begun + STOP_MAX_S):
        await asyncio.sleep(LOOK_S)
        if len(engine.sas) < left:
            left, heard = len(engine.sas), loop.time()
    silent = list(engine.sas.values())
    for sa in silent[:NAMED]:
        log.warning("%s: %s has not acknowledged that it is closed", sa, sa.path.remote)
    if len(silent) > NAMED:
        log.warning("%d more have not acknowledged it either", len(silent) - NAMED)
    for sa in silent:
        sa.destroy("shutting down", loop.time())
    turn()
