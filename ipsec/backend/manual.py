"""Manual SAs (RFC 4301 section 4.5): keys from a file, and sequence numbers that survive a restart."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ipsec.backend.base import Backend, Expire
from ipsec.backend.seqstore import Block, Reservation, SequenceStore, counter_mode
from ipsec.crypto.suites import Encr
from ipsec.errors import BackendError, SaError, SequenceError
from ipsec.esp.engine import SaStats
from ipsec.esp.sa import Lifetime, SaParams

log = logging.getLogger(__name__)

#: how long to wait before trying again to reserve numbers
RETRY_SECONDS = 5.0
#: how often the highest number received is written down: what a kill leaves open to replay
REMEMBER_SECONDS = 10.0
#: no inner packet is longer, so a byte limit further away than this was not what stopped one
_LONGEST_PACKET = 65535


@dataclass(eq=False)
class _Outbound:
    """An outbound SA and the numbers it holds."""

    params: SaParams
    reservation: Reservation
    base: int
    "the last number that may have been used before the SA was added"
    block: Block
    "the one reserved last; those before it lie between it and ``base`` without a gap"
    sa: int = -1
    warned: bool = False
    "the configured soft lifetime was reached, and said so"
    retry: asyncio.TimerHandle | None = None
    "when the disk is asked again"

    @property
    def lifetime(self) -> Lifetime:
        """The configured limits, held inside the numbers reserved. In packets since the SA was added."""
        own = self.params.lifetime
        # what was told already must not hide that the next block is due
        soft, soft_bytes = (0, 0) if self.warned else (own.packets_soft, own.bytes_soft)
        return Lifetime(
            bytes_soft=soft_bytes,
            bytes_hard=own.bytes_hard,
            packets_soft=min(filter(None, (soft, self.renew_at)), default=0),
            packets_hard=min(filter(None, (own.packets_hard, self.stop_at)), default=0),
        )

    @property
    def stop_at(self) -> int:
        """Packets that the numbers reserved are enough for; 0: the numbers themselves end there."""
        return 0 if self.reservation.used_up else self.block.last - self.base

    @property
    def renew_at(self) -> int:
        """After how many packets to ask for the next block; 0: there is none, and the engine says so in time."""
        return 0 if self.reservation.used_up else max(1, self.block.last - self.block.margin - self.base)


class ManualSas:
    """Installs SAs with fixed keys and keeps each outbound one supplied with reserved sequence numbers.

    Before a block runs out the next one is reserved, and the SA's limits move to its end while packets flow: nothing
    is lost, and no number is used that is not reserved on disk.
    """

    def __init__(self, backend: Backend, store: SequenceStore) -> None:
        self._backend = backend
        self._store = store
        self._inbound: dict[int, SaParams] = {}
        self._plain: dict[int, SaParams] = {}
        self._outbound: dict[int, _Outbound] = {}
        self._written: dict[int, int] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._complained = False

    def install(self, pairs: Sequence[tuple[SaParams, SaParams]]) -> None:
        """Install every (inbound, outbound) pair, or none: BackendError or SaError. ``release`` undoes it."""
        receiving = {params.encr_key: params for params, _ in pairs if counter_mode(params.suite)}
        for _, params in pairs:
            if counter_mode(params.suite) and params.encr_key in receiving:
                raise SequenceError(
                    f"SA 0x{params.spi:08x} and SA 0x{receiving[params.encr_key].spi:08x} share a key, so that both "
                    f"ends would seal with the same IVs under it ({params.suite})",
                    remedy="give each direction a key of its own",
                )
        try:
            for inbound, outbound in pairs:
                self._add_inbound(inbound)
                self._add_outbound(outbound)
        except (SaError, BackendError):
            self.release(quiet=False)
            raise
        self._remember_later()

    def handle(self, event: Expire) -> None:
        """React to a lifetime event; events of SAs that are not ours are ignored."""
        state = self._outbound.get(event.sa)
        if state is None or event.reason != "volume":
            self._tell(event)
            return
        stats = self._backend.query_sa(event.sa)
        own = state.params.lifetime
        if event.hard and _near(stats, own.packets_hard, own.bytes_hard, slack=_LONGEST_PACKET):
            self._tell(event)
            return
        if not state.warned and _near(stats, own.packets_soft, own.bytes_soft):
            state.warned = True
            self._tell(Expire(event.sa, False, event.reason))
        if 0 < state.renew_at <= stats.seq - state.base and not self._renew(state, stats):
            if state.retry is None:
                # the limits speak once only, and a disk may have room again
                state.retry = asyncio.get_running_loop().call_later(RETRY_SECONDS, self._retry, state, event)
            return
        # Also when nothing changed: a worker that read the old limits a moment ago has used up the event of the new.
        self._backend.set_lifetime(event.sa, state.lifetime)

    def stats(self) -> Iterator[tuple[SaParams, SaStats]]:
        """Every SA and its counters."""
        for number, params in self._all().items():
            yield params, self._backend.query_sa(number)

    def release(self, *, quiet: bool = True) -> None:
        """Remove the SAs. ``quiet`` says that ``quiesce`` was done: then numbers not used go back to the store."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._remember()
        for state in self._outbound.values():
            if state.retry is not None:
                state.retry.cancel()
            used = self._backend.query_sa(state.sa).seq
            self._backend.del_sa(state.sa)
            if quiet:
                state.reservation.give_back(max(used, state.base))
            state.reservation.close()
        for sa in (*self._inbound, *self._plain):
            self._backend.del_sa(sa)
        self._outbound.clear()
        self._inbound.clear()
        self._plain.clear()
        self._written.clear()

    def _all(self) -> dict[int, SaParams]:
        outbound = {number: state.params for number, state in self._outbound.items()}
        return self._inbound | outbound | self._plain

    def _tell(self, event: Expire) -> None:
        params = self._all().get(event.sa)
        if params is None:
            return
        if event.hard:
            log.error("SA 0x%08x has reached its hard lifetime (%s) and carries nothing more", params.spi, event.reason)
        else:
            log.warning("SA 0x%08x nears its lifetime (%s); configure new keys", params.spi, event.reason)

    # -- what we send

    def _add_outbound(self, params: SaParams) -> None:
        try:
            reservation = self._store.claim(params.encr_key, params.integ_key, esn=params.esn)
        except BackendError as error:
            if params.suite.encr is not Encr.NULL:
                raise
            # It has no IV, in CBC too that comes from the number: only the peer's replay window minds a fresh start.
            log.warning("SA 0x%08x starts at sequence number 1 again: %s", params.spi, error)
            self._plain[self._backend.add_sa(params)] = params
            return
        try:
            block = reservation.next_block()
            state = _Outbound(params, reservation, block.first - 1, block)
            state.sa = self._backend.add_sa(replace(params, lifetime=state.lifetime, initial_seq=state.base))
        except (SaError, BackendError):
            reservation.close()
            raise
        self._outbound[state.sa] = state

    def _renew(self, state: _Outbound, stats: SaStats) -> bool:
        """Reserve the next block; whether that worked."""
        try:
            state.block = state.reservation.next_block()
        except BackendError as error:
            log.error("SA 0x%08x: %s; it stops in %d packets", state.params.spi, error, state.block.last - stats.seq)
            return False
        log.debug("SA 0x%08x may go on to sequence number %d", state.params.spi, state.block.last)
        return True

    def _retry(self, state: _Outbound, event: Expire) -> None:
        state.retry = None
        self.handle(event)

    # -- what we receive

    def _add_inbound(self, params: SaParams) -> None:
        seen = self._store.seen(params.encr_key, params.integ_key, esn=params.esn) if params.replay_window else 0
        number = self._backend.add_sa(replace(params, initial_seq=seen))
        self._inbound[number] = params
        self._written[number] = seen

    def _remember_later(self) -> None:
        if self._inbound:
            self._timer = asyncio.get_running_loop().call_later(REMEMBER_SECONDS, self._on_timer)

    def _on_timer(self) -> None:
        self._remember()
        self._remember_later()

    def _remember(self) -> None:
        """Write down the highest number received, so that what came until now is a replay after a restart too."""
        for number, params in self._inbound.items():
            seq = self._backend.query_sa(number).seq
            if params.replay_window and seq > self._written[number]:
                self._written[number] = seq
                try:
                    self._store.remember(params.encr_key, params.integ_key, seq)
                except BackendError as error:
                    if not self._complained:
                        self._complained = True
                        log.warning("%s", error)


def _near(stats: SaStats, packets: int, octets: int, *, slack: int = 0) -> bool:
    """Whether one of the two limits (0: none) is reached, or with ``slack`` octets more would be."""
    return bool(packets and stats.packets >= packets) or bool(octets and stats.bytes + slack >= octets)
