"""Keeps routes and the device's MTU in line with SAs and policies: soon after a change, many changes together."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from contextlib import suppress
from functools import partial
from typing import TypeVar

from ipsec.backend.base import IpAddress, IpInterface
from ipsec.errors import BackendError
from ipsec.esp.pmtu import inner_mtu
from ipsec.esp.sa import Action, Direction, Policy, SaParams
from ipsec.net.route import Router
from ipsec.net.routebook import Entry, RouteBook

log = logging.getLogger(__name__)

T = TypeVar("T")

#: how long changes wait for others
GATHER_SECONDS = 0.02
#: networks looked at in one turn of the loop: about 3 ms
SLICE = 1000
#: this host's addresses are read again after so long, if there is anything to do
ADDRESSES_SECONDS = 1.0
#: until SAs say what fits (RFC 8200 section 5 wants 1280 for IPv6)
DEFAULT_MTU = 1400
MIN_MTU = 1280
DEFAULT_PATH_MTU = 1500


class Routes:
    """Hears of SAs and policies. Belongs to the event loop's thread; the kernel is asked on the helper thread."""

    def __init__(self, helper: Callable[[], Executor | None], *, fail_closed: bool, mtu: int) -> None:
        """``helper`` is the thread for what blocks. ``mtu`` 0 takes what fits through every SA."""
        self._helper = helper
        self._fixed_mtu = mtu
        self._book = RouteBook(fail_closed=fail_closed)
        self._inner_mtus: Counter[int] = Counter()
        self._path_mtus: Counter[int] = Counter()
        self._router: Router | None = None
        self._device = ""
        self._set_mtu: Callable[[], Awaitable[None]] | None = None
        self._lock = asyncio.Lock()
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._own: list[IpAddress] = []
        self._own_read = float("-inf")
        "when"
        self._versions: set[int] | None = None
        "that rules are there for, where that is known"
        self._known = False
        "what the table holds"
        self._failed: set[Entry] = set()
        self.addresses: dict[IpInterface, int] = {}
        "that were added to the device, how often"
        self.applied = False
        "the table was once as it should be"

    # -- what is wanted

    def add_sa(self, params: SaParams) -> None:
        """An SA was installed: its peer stays outside."""
        self._book.exclude((params.remote, params.remote))
        self._path_mtus[params.path_mtu] += 1
        if params.direction is Direction.OUT:
            self._inner_mtus[inner_mtu(params)] += 1
        self.changed()

    def del_sa(self, params: SaParams) -> None:
        """Undo ``add_sa``."""
        self._book.include((params.remote, params.remote))
        _less(self._path_mtus, params.path_mtu)
        if params.direction is Direction.OUT:
            _less(self._inner_mtus, inner_mtu(params))
        self.changed()

    def move_sa(self, old: SaParams, new: SaParams) -> None:
        """An SA is the same with other outer addresses."""
        if (old.local, old.remote, old.encap, old.path_mtu) != (new.local, new.remote, new.encap, new.path_mtu):
            self.add_sa(new)
            self.del_sa(old)

    def add_policy(self, policy: Policy) -> None:
        """A policy was added."""
        for pair in policy.selectors:
            if policy.action is Action.PROTECT:
                self._book.protect((pair.local.start, pair.local.end), (pair.remote.start, pair.remote.end))
            elif policy.action is Action.BYPASS and not pair.protocol:
                # one for some ports only must not take the whole network out of the tunnel
                self._book.exclude((pair.remote.start, pair.remote.end))
        self.changed()

    def del_policy(self, policy: Policy) -> None:
        """Undo ``add_policy``."""
        for pair in policy.selectors:
            if policy.action is Action.PROTECT:
                self._book.unprotect((pair.local.start, pair.local.end), (pair.remote.start, pair.remote.end))
            elif policy.action is Action.BYPASS and not pair.protocol:
                self._book.include((pair.remote.start, pair.remote.end))
        self.changed()

    @property
    def mtu(self) -> int:
        """What the device's MTU should be: no inner packet then needs fragmenting, for any SA."""
        if self._fixed_mtu:
            return self._fixed_mtu
        return max(min(self._inner_mtus), MIN_MTU) if self._inner_mtus else DEFAULT_MTU

    @property
    def path_mtu(self) -> int:
        """The smallest path MTU of all SAs."""
        return min(self._path_mtus, default=DEFAULT_PATH_MTU)

    # -- addresses of the device

    async def add_address(self, address: IpInterface) -> None:
        """See ``Backend.add_address``."""
        self.addresses[address] = self.addresses.get(address, 0) + 1
        router = self._router
        if router is None or self.addresses[address] > 1:
            return
        try:
            await self._call(partial(router.add_address, self._device, address))
        except BackendError:
            self._count_down(address)
            raise
        self._own_read = float("-inf")
        self.changed()

    async def del_address(self, address: IpInterface) -> None:
        """See ``Backend.del_address``."""
        router = self._router
        if address not in self.addresses or self._count_down(address) or router is None:
            return
        # The kernel removes routes together with their source, and until they are back what they protect would leave
        # in clear: so they get another source first.
        if self._own_read > float("-inf"):
            self._own = [own for own in self._own if own != address.ip]
            self._book.set_own(self._own)
            with suppress(BackendError):
                await self.sync(fresh=False)
        await self._call(partial(router.del_address, address))
        # with the last IPv4 address of a device the kernel removes all IPv4 routes to it
        self.forget()
        with suppress(BackendError):
            await self.sync()

    def _count_down(self, address: IpInterface) -> bool:
        """Whether somebody else still wants it."""
        self.addresses[address] -= 1
        if self.addresses[address]:
            return True
        del self.addresses[address]
        return False

    # -- carrying it out

    def attach(self, router: Router, device: str, set_mtu: Callable[[], Awaitable[None]]) -> None:
        """From now on changes are carried out. ``set_mtu`` gives the device the MTU that it should have."""
        self._router, self._device, self._set_mtu = router, device, set_mtu
        self.forget()

    async def detach(self) -> None:
        """Carry nothing out any more, and wait for what is under way."""
        self._router = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        async with self._lock:
            pass

    def forget(self) -> None:
        """Nothing is known of the table: the device was made again, or was down."""
        self._known = False
        self._versions = None
        self._own_read = float("-inf")

    def changed(self) -> None:
        """Carry out what has changed, soon."""
        if self._router is not None and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(GATHER_SECONDS, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run_alone())
        else:
            self.changed()

    async def _run_alone(self) -> None:
        try:
            await self.sync(fresh=False)
        except BackendError as error:
            log.error("routes: %s", error)
        except Exception:
            log.exception("routes are not as they should be")

    async def sync(self, *, fresh: bool = True) -> None:
        """Carry everything out now. BackendError for the first thing that was refused; the rest is done all the same.

        ``fresh`` reads this host's addresses again.
        """
        async with self._lock:
            if self._router is not None:
                await self._sync(self._router, fresh=fresh)

    async def _sync(self, router: Router, *, fresh: bool) -> None:
        if self._set_mtu is not None:
            await self._set_mtu()
        index = await self._call(lambda: router.index(self._device))
        book = self._book
        if not self._known:
            book.adopt(await self._call(router.present))
            self._known = True
        now = asyncio.get_running_loop().time()
        if fresh or now - self._own_read > ADDRESSES_SECONDS:
            self._own = await self._call(router.local_addresses)
            book.set_own(self._own)
            self._own_read = now
        book.retry(self._failed)
        self._failed.clear()
        refused: list[BackendError] = []
        if self._versions is None or book.versions - self._versions:
            # before the routes: what is protected must not leave beside the tunnel
            refused += await self._set_rules(router, book.versions | (self._versions or set()))
        while book.pending:
            changes = book.changes(SLICE)
            if not changes:
                await asyncio.sleep(0)
                continue
            for change, error in await self._call(partial(router.carry_out, index, changes)):
                book.failed(change)
                self._failed.add(change.entry)
                refused.append(error)
        if self._versions != book.versions:
            refused += await self._set_rules(router, book.versions)
        if refused:
            raise refused[0]
        self.applied = True

    async def _set_rules(self, router: Router, versions: set[int]) -> list[BackendError]:
        try:
            await self._call(lambda: router.set_rules(versions))
        except BackendError as error:
            return [error]
        self._versions = set(versions)
        return []

    async def _call(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._helper(), work)


def _less(counter: Counter[int], value: int) -> None:
    counter[value] -= 1
    if not counter[value]:
        del counter[value]
