"""Manual SAs (RFC 4301 section 4.5): keys from a file, and sequence numbers that survive a restart."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ipsec.backend.base import Backend, Expire
from ipsec.backend.seqstore import Block, Reservation, SequenceStore, counter_mode
from ipsec.errors import BackendError, SaError
from ipsec.esp.engine import SaStats
from ipsec.esp.sa import Lifetime, SaParams

log = logging.getLogger(__name__)

#: how long to wait before trying again to reserve numbers
RETRY_SECONDS = 5.0


@dataclass(eq=False)
class _Outbound:
    """An outbound SA, the numbers it holds, and what it sent before it last moved to a new block."""

    params: SaParams
    reservation: Reservation
    block: Block
    sa: int = -1
    packets: int = 0
    bytes: int = 0


class ManualSas:
    """Installs SAs with fixed keys and keeps each outbound one supplied with reserved sequence numbers.

    When a block runs low the SA is replaced in place by one that starts at the next block: numbers left over are
    skipped, so that nothing depends on what a worker thread sends in that moment. With worker threads a few packets
    may be dropped then (OUT_NO_STATES), once in tens of millions.
    """

    def __init__(self, backend: Backend, store: SequenceStore) -> None:
        self._backend = backend
        self._store = store
        self._inbound: list[int] = []
        self._plain: list[int] = []
        self._outbound: dict[int, _Outbound] = {}

    def install(self, pairs: Sequence[tuple[SaParams, SaParams]]) -> None:
        """Install every (inbound, outbound) pair, or none: BackendError or SaError. ``release`` undoes it."""
        receiving = {params.encr_key: params for params, _ in pairs if counter_mode(params.suite)}
        for _, params in pairs:
            if counter_mode(params.suite) and params.encr_key in receiving:
                raise BackendError(
                    f"SA 0x{params.spi:08x} and SA 0x{receiving[params.encr_key].spi:08x} share a key, so that both "
                    f"ends would seal with the same IVs under it ({params.suite})",
                    remedy="give each direction a key of its own",
                )
        try:
            for inbound, outbound in pairs:
                self._inbound.append(self._backend.add_sa(inbound))
                self._add_outbound(outbound)
        except (SaError, BackendError):
            self.release(quiet=False)
            raise

    def handle(self, event: Expire) -> None:
        """React to a lifetime event; events of other SAs are ignored."""
        state = self._outbound.get(event.sa)
        if state is None:
            return
        name = f"SA 0x{state.params.spi:08x}"
        stats = self._backend.query_sa(event.sa)
        if event.reason == "volume" and stats.packets >= state.block.soft and not _spent(state, stats):
            try:
                block = state.reservation.next_block()
            except BackendError as error:
                log.error("%s: %s; it stops in %d packets", name, error, max(state.block.count - stats.packets, 0))
                # the limits speak once only, and a disk may have room again
                asyncio.get_running_loop().call_later(RETRY_SECONDS, self.handle, event)
                return
            self._replace(state, block)
        elif event.hard:
            log.error("%s has reached its hard lifetime (%s) and carries nothing more", name, event.reason)
        else:
            log.warning("%s nears its lifetime (%s); configure new keys", name, event.reason)

    def release(self, *, quiet: bool = True) -> None:
        """Remove the SAs. ``quiet`` says that ``quiesce`` was done: then numbers not used go back to the store."""
        for state in list(self._outbound.values()):
            if state.sa >= 0:
                used = self._backend.query_sa(state.sa).seq
                self._backend.del_sa(state.sa)
                if quiet:
                    state.reservation.give_back(max(used, state.block.first - 1))
            state.reservation.close()
        for sa in (*self._inbound, *self._plain):
            self._backend.del_sa(sa)
        self._outbound.clear()
        self._inbound.clear()
        self._plain.clear()

    def _add_outbound(self, params: SaParams) -> None:
        try:
            reservation = self._store.claim(params.encr_key, params.integ_key, esn=params.esn)
        except BackendError as error:
            if counter_mode(params.suite):
                raise
            # CBC and NULL take no IV from the number: only the peer's replay window minds a fresh start.
            log.warning("SA 0x%08x starts at sequence number 1 again: %s", params.spi, error)
            self._plain.append(self._backend.add_sa(params))
            return
        try:
            state = _Outbound(params, reservation, reservation.next_block())
            state.sa = self._backend.add_sa(_within(params, state.block, 0, 0))
        except (SaError, BackendError):
            reservation.close()
            raise
        self._outbound[state.sa] = state

    def _replace(self, state: _Outbound, block: Block) -> None:
        stats = self._backend.query_sa(state.sa)
        state.packets += stats.packets
        state.bytes += stats.bytes
        del self._outbound[state.sa]
        self._backend.del_sa(state.sa)
        state.block = block
        moved = replace(state.params, remote=stats.remote, encap=stats.encap)
        state.sa = self._backend.add_sa(_within(moved, block, state.packets, state.bytes))
        self._outbound[state.sa] = state
        log.debug("SA 0x%08x goes on at sequence number %d", state.params.spi, block.first)


def _spent(state: _Outbound, stats: SaStats) -> bool:
    """Whether the configured hard lifetime is used up."""
    own = state.params.lifetime
    packets, octets = state.packets + stats.packets, state.bytes + stats.bytes
    return bool(own.packets_hard and packets >= own.packets_hard) or bool(own.bytes_hard and octets >= own.bytes_hard)


def _within(params: SaParams, block: Block, packets: int, octets: int) -> SaParams:
    """``params`` held inside ``block``, its own limits less what was sent already."""
    own = params.lifetime

    def rest(limit: int, used: int) -> int:
        return max(limit - used, 1) if limit else 0

    soft, hard = rest(own.packets_soft, packets), rest(own.packets_hard, packets)
    lifetime = Lifetime(
        bytes_soft=rest(own.bytes_soft, octets),
        bytes_hard=rest(own.bytes_hard, octets),
        packets_soft=min(soft or block.soft, block.soft),
        packets_hard=min(hard or block.count, block.count),
    )
    return replace(params, lifetime=lifetime, initial_seq=block.first - 1)
