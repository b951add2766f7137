"""Keeps routes and the device's MTU in line with SAs and policies: the first change at once, others together."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Collection, Sequence, Set
from concurrent.futures import Executor
from contextlib import suppress
from functools import partial
from typing import TypeVar

from ipsec.backend.base import IpAddress, IpInterface
from ipsec.backend.settings import UserspaceSettings
from ipsec.errors import BackendError
from ipsec.esp.pmtu import inner_mtu
from ipsec.esp.sa import Action, Direction, Policy, SaParams
from ipsec.net import readable
from ipsec.net.link import forwards_from
from ipsec.net.route import Router
from ipsec.net.routebook import Change, Entry, RouteBook
from ipsec.net.tablewatch import TableWatch
from ipsec.wire.selector import SelectorPair, TrafficSelector

log = logging.getLogger(__name__)

T = TypeVar("T")

#: how long changes wait for others when the last ones have just been carried out
GATHER_SECONDS = 0.02
#: networks that are few enough to be changed in the loop's own thread: the kernel takes some 30 us for each
FEW = 16
#: networks looked at in one turn of the loop: about 3 ms
SLICE = 1000
#: how often it is said that somebody removes what is ours
COMPLAIN_SECONDS = 10.0
#: how long this host's addresses are left to settle before the sources of routes follow them
ADDRESSES_SECONDS = 0.2
#: what was refused is tried again after so long, then twice as long up to the second
RETRY_SECONDS = 1.0
RETRY_MAX_SECONDS = 60.0
#: until SAs say what fits (RFC 8200 section 5 wants 1280 for IPv6)
DEFAULT_MTU = 1400
MIN_MTU = 1280
DEFAULT_PATH_MTU = 1500
#: a device's limit that no IP packet reaches
ANY_SUPERFRAME = 65536


class Routes:
    """Hears of SAs and policies. Belongs to the event loop's thread; the kernel is asked on the helper thread, unless a
    single tunnel waits for a handful of routes."""

    def __init__(self, helper: Callable[[], Executor | None], settings: UserspaceSettings) -> None:
        """``helper`` is the thread for what blocks."""
        self._helper = helper
        self._may_block = settings.workers > 0
        "the loop's thread moves no packets"
        self._fixed_mtu = settings.mtu
        "0 takes what fits through every SA"
        self._book = RouteBook(fail_closed=settings.fail_closed)
        self._apart = bool(settings.namespace)
        "nothing has a way around the tunnel where the routes are, and outer packets do not come there"
        self._may_drop = bool(settings.fwmark) or self._apart or settings.prepared
        "routes that bring what is dropped to the device do not bring IKE and ESP there"
        self._inner_mtus: Counter[int] = Counter()
        self._path_mtus: Counter[int] = Counter()
        self._router: Router | None = None
        self._device = ""
        self._index = 0
        self._mtu = 0
        "that the device has"
        self._forgotten = 0
        "how often that was forgotten"
        self._lock = asyncio.Lock()
        self._timer: asyncio.Handle | None = None
        self._due = 0.0
        "when the timer ends"
        self._task: asyncio.Task[None] | None = None
        self._synced = float("-inf")
        "when changes were carried out last"
        self._own: list[IpAddress] = []
        self._own_known = False
        self._versions: set[int] | None = None
        "that rules are there for, where that is known: those that had routes once"
        self._known = False
        "what the table holds"
        self._doubts = 0
        "how often that was forgotten"
        self._failed: set[Entry] = set()
        self._wait = 0.0
        "how long what was refused waits, 0: nothing was"
        self._told = ""
        "what was refused last"
        self._watch: TableWatch | None = None
        self._complained = float("-inf")
        "when somebody was last said to remove what is ours"
        self.addresses: dict[IpInterface, int] = {}
        "that were added to the device, how often"
        self._losses = 0
        "how often the device may have lost addresses"
        self._made_up = 0
        "of these, after how many it has had them all again"
        self._begun = False
        "all that the start wants is known"
        self.applied = False
        "the table was once as it should be, with all that the start wanted"

    # -- what is wanted

    def add_sa(self, params: SaParams) -> None:
        """An SA was installed: its peer stays outside."""
        if not self._apart:
            self._book.exclude((params.remote, params.remote))
        self._path_mtus[params.path_mtu] += 1
        if params.direction is Direction.OUT:
            self._inner_mtus[inner_mtu(params)] += 1
        self.changed()

    def del_sa(self, params: SaParams) -> None:
        """Undo ``add_sa``."""
        if not self._apart:
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
                self._book.let_pass((pair.remote.start, pair.remote.end))
            elif policy.action is Action.DISCARD and drops_all(pair):
                if self._may_drop:
                    self._book.protect(None, (pair.remote.start, pair.remote.end))
                else:
                    log.warning("what goes to %s is dropped only where it is routed into the device: our own packets "
                                "bear no mark that keeps them out of it (ipsecd.fwmark)", pair.remote)  # fmt: skip
        self.changed()

    def del_policy(self, policy: Policy) -> None:
        """Undo ``add_policy``."""
        for pair in policy.selectors:
            if policy.action is Action.PROTECT:
                self._book.unprotect((pair.local.start, pair.local.end), (pair.remote.start, pair.remote.end))
            elif policy.action is Action.BYPASS and not pair.protocol:
                self._book.include((pair.remote.start, pair.remote.end))
            elif policy.action is Action.DISCARD and drops_all(pair) and self._may_drop:
                self._book.unprotect(None, (pair.remote.start, pair.remote.end))
        self.changed()

    @property
    def mtu(self) -> int:
        """What the device's MTU should be: no inner packet then needs fragmenting, for any SA."""
        if self._fixed_mtu:
            return self._fixed_mtu
        return max(min(self._inner_mtus), MIN_MTU) if self._inner_mtus else DEFAULT_MTU

    @property
    def device_mtu(self) -> int:
        """The device's MTU, as far as it is ours to set."""
        return self._mtu or self.mtu

    @property
    def path_mtu(self) -> int:
        """The smallest path MTU of all SAs."""
        return min(self._path_mtus, default=DEFAULT_PATH_MTU)

    def begun(self, awaited: Collection[TrafficSelector | None]) -> int:
        """See ``Backend.begun``."""
        self._begun = True
        closed = self._book.let_go({(one.start, one.end) if one is not None else None for one in awaited})
        self.changed()
        return closed

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
        self._own_known = False
        self.changed()

    def try_add_address(self, address: IpInterface, expect: Callable[[bytes], None]) -> bool:
        """See ``Backend.try_add_address``. ``expect`` is told the address if it is known here already."""
        router = self._router
        if router is None or not self._may_block or self._lock.locked() or address in self.addresses:
            return False
        try:
            if not router.try_address(self._index, address):
                return False
        except BackendError:
            return False
        self.addresses[address] = 1
        if self._own_known:
            expect(address.ip.packed)
            self._own = [*self._own, address.ip]
            self._book.set_own(self._own)
        self.changed()
        return True

    async def del_address(self, address: IpInterface) -> None:
        """See ``Backend.del_address``."""
        router = self._router
        if address not in self.addresses or self._count_down(address) or router is None:
            return
        # The kernel removes routes together with their source, and until they are back what they protect would leave
        # in clear: so they get another source first.
        if self._own_known:
            self._own = [own for own in self._own if own != address.ip]
            self._book.set_own(self._own)
            with suppress(BackendError):
                await self.sync()
        if address in self.addresses:
            # Wanted again meanwhile: a peer that lost its state is given what it had. ``add_address`` found it there.
            return
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

    def attach(self, router: Router, device: str, index: int, mtu: int) -> None:
        """From now on changes are carried out. ``index`` is the device's number, ``mtu`` what it has."""
        if self._router is None:
            # What a predecessor left closed stays so until all that is to be is known, also if this start fails. Not so
            # once more when the device is made again.
            self._book.keep(entry.prefix for entry in router.inherited)
        self._router, self._device, self._index, self._mtu = router, device, index, mtu
        # it was given them just now
        self._made_up = self._losses
        self.forget()

    def watch(self, watch: TableWatch | None) -> None:
        """Put back what somebody else removes, until ``detach``."""
        self._unwatch()
        self._watch = watch
        if watch is not None:
            readable.watch(watch.fd, self._on_removed)

    def _unwatch(self) -> None:
        if self._watch is not None:
            readable.unwatch(self._watch.fd)
            self._watch.close()
            self._watch = None

    def _on_removed(self) -> None:
        if self._watch is None or not self._watch.lost():
            return
        now = asyncio.get_running_loop().time()
        if now - self._complained >= COMPLAIN_SECONDS:
            self._complained = now
            log.warning("somebody else has removed routes or rules of ours; they are put back at once")
        self.forget()
        self.changed()

    def restore(self) -> None:
        """Addresses and routes of the device again: it was down, for which the kernel takes all routes to it and its
        IPv6 addresses, or somebody else has removed an address of ours."""
        self._losses += 1
        self.forget()
        self.changed()

    async def detach(self) -> None:
        """Carry nothing out any more, and wait for what is under way."""
        self._router = None
        self._unwatch()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        async with self._lock:
            pass

    def forget(self) -> None:
        """Nothing is known of the table: the device was made again, or was down, or others were at it."""
        self._known = False
        self._versions = None
        self._own_known = False
        self._doubts += 1

    def forget_own(self, gone: Set[bytes]) -> None:
        """This host's addresses have changed, or may have; ``gone`` are those that were taken away, packed."""
        if self._book.uses(gone):
            # With a source the kernel takes it out of IPv6 routes, which stay, and does not put it back.
            self.forget()
            self._carry_out_in(ADDRESSES_SECONDS)
        elif self._own_known:
            self._own_known = False
            self._carry_out_in(ADDRESSES_SECONDS)

    def forget_mtu(self) -> None:
        """This host forwards, or does so no more: the device may take other superframes than before."""
        self._mtu = 0
        self._forgotten += 1
        self.changed()

    def changed(self) -> None:
        """Carry out what has changed: with the loop's next turn, or a little later if that has just been done."""
        if self._timer is None or self._due > self._synced + GATHER_SECONDS:
            self._carry_out_in(0.0)

    def _carry_out_in(self, seconds: float) -> None:
        if self._router is None:
            return
        loop = asyncio.get_running_loop()
        when = max(loop.time() + seconds, self._synced + GATHER_SECONDS)
        if self._timer is not None:
            if self._due <= when:
                return
            self._timer.cancel()
        self._due = when
        self._timer = loop.call_at(when, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run_alone())
        else:
            self._carry_out_in(GATHER_SECONDS)

    async def _run_alone(self) -> None:
        try:
            await self.sync()
        except BackendError as error:
            log.log(logging.DEBUG if str(error) == self._told else logging.ERROR, "routes: %s", error)
            self._told = str(error)
        except Exception:
            log.exception("routes are not as they should be")

    async def sync(self) -> None:
        """Carry everything out now. BackendError for the first thing refused; the rest is done all the same."""
        async with self._lock:
            if self._router is None:
                return
            try:
                refused = await self._sync(self._router)
            except BaseException:
                # how far the helper thread came is not known
                self.forget()
                self._try_later()
                raise
            finally:
                self._synced = asyncio.get_running_loop().time()
            if refused:
                self._try_later()
                raise refused[0]
            self._wait = 0.0
            self._told = ""
            self.applied = self._begun

    def _try_later(self) -> None:
        """What was refused once may not be twice, and without its route what is protected would leave in clear."""
        self._wait = min(max(2 * self._wait, RETRY_SECONDS), RETRY_MAX_SECONDS)
        self._carry_out_in(self._wait)

    def try_sync(self) -> bool:
        """Carry everything out in this call if that is little; False: it was not, and ``sync`` has to.

        Two changes of threads take longer than the kernel needs for a route. An MTU that grows waits: what is there
        fits meanwhile.
        """
        router, book = self._router, self._book
        if router is None:
            return True
        now = asyncio.get_running_loop().time()
        sure = self._known and self._own_known and self._versions is not None and not self._failed
        sure = sure and self._made_up == self._losses
        # where many tunnels come up, those of 20 ms together are cheaper
        alone = not self._lock.locked() and now - self._synced >= GATHER_SECONDS
        if not (self._may_block and sure and alone and len(book) <= FEW) or self.mtu < self._mtu:
            return False
        changes: list[Change] = []
        while book.pending and len(changes) <= FEW:
            changes += book.changes(FEW)
        versions = book.versions | (self._versions or set())
        try:
            failed = router.carry_out_few(self._index, versions, changes)
        except BackendError:
            self.forget()
            return False
        self._synced = now
        for change in failed:
            book.failed(change)
            self._failed.add(change.entry)
        if failed or book.pending or not versions <= router.rules:
            return False
        self._versions = versions
        self.applied = self._begun
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._mtu != self.mtu:
            self.changed()
        return True

    async def _sync(self, router: Router) -> list[BackendError]:
        book = self._book
        # first, because routes have them as sources
        refused = await self._give_back(router) if self._made_up != self._losses else []
        if not (self._known and self._own_known):
            await self._look(router)
        book.retry(self._failed)
        self._failed.clear()
        # Before the routes: what is protected must not leave beside the tunnel. They stay when the routes are gone: to
        # add one takes the kernel three times as long as a route.
        before = book.versions | (self._versions or set())
        rules = before if before != self._versions else None
        while book.pending or rules is not None:
            changes = book.changes(SLICE)
            if book.pending and not changes:
                await asyncio.sleep(0)
            else:
                refused += await self._carry_out(router, rules, changes)
                rules = None
        if self._mtu != self.mtu:
            refused += await self._carry_out(router, None, ())
        return refused

    async def _give_back(self, router: Router) -> list[BackendError]:
        """The device's addresses, once more; what was refused, as those of IPv6 are while its MTU is below 1280."""
        losses, device = self._losses, self._device
        error = await self._call(lambda: _error_of(partial(router.restore_addresses, device)))
        self._own_known = False
        if error is not None:
            return [error]
        self._made_up = losses
        return []

    async def _look(self, router: Router) -> None:
        """Read this host's addresses, and the table if it is not known."""
        doubts = self._doubts
        known, self._own_known = self._known, True
        own, present = await self._call(lambda: (router.local_addresses(), None if known else router.look()))
        if present is not None:
            self._book.adopt(present)
            # not if it was forgotten meanwhile
            self._known = self._doubts == doubts
            self._versions = None
        self._own = own
        self._book.set_own(own)

    async def _carry_out(self, router: Router, rules: set[int] | None, changes: Sequence[Change]) -> list[BackendError]:
        """Rules, routes, then the MTU, in one visit to the helper thread; what was refused."""
        mtu, path_mtu, device = self.mtu, self.path_mtu, self._device
        other_mtu, forgotten, doubts = mtu != self._mtu, self._forgotten, self._doubts
        failed: list[tuple[Change, BackendError]] = []

        def work() -> tuple[BackendError | None, BackendError | None]:
            rules_error = _error_of(partial(router.set_rules, rules)) if rules is not None else None
            if changes:
                failed.extend(router.carry_out(router.index(device), changes))
            if not other_mtu:
                return rules_error, None
            # asked here, where the device is: this thread may be in another network namespace
            size = gso_max_size(device, mtu, path_mtu)
            return rules_error, _error_of(partial(router.set_mtu, device, mtu, size))

        rules_error, mtu_error = await self._call(work)
        if rules is not None and rules_error is None and self._doubts == doubts:
            self._versions = set(rules)
        # not if it was forgotten meanwhile
        if mtu_error is None and self._forgotten == forgotten:
            self._mtu = mtu
        for change, _ in failed:
            self._book.failed(change)
            self._failed.add(change.entry)
        found = [rules_error, *(error for _, error in failed), mtu_error]
        return [error for error in found if error is not None]

    async def _call(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._helper(), work)


def drops_all(pair: SelectorPair) -> bool:
    """Whether a policy that drops means all that goes somewhere. A route cannot tell senders, protocols or ports."""
    last = (1 << pair.local.start.max_prefixlen) - 1
    return not pair.protocol and int(pair.local.start) == 0 and int(pair.local.end) == last


def gso_max_size(device: str, mtu: int, path_mtu: int) -> int:
    """IFLA_GSO_MAX_SIZE of a device: any superframe where others' packets come to it, else what becomes one UDP train.

    What others send is as long as their own devices allow, and the kernel cuts what is too long here into packets.
    """
    forwards = any(forwards_from(version, without=device) for version in (4, 6))
    return ANY_SUPERFRAME if forwards else superframe_size(mtu, path_mtu)


def superframe_size(mtu: int, path_mtu: int) -> int:
    """IFLA_GSO_MAX_SIZE that makes one TCP superframe one UDP train: 64 segments, 65507 octets of datagrams.

    ``mtu`` octets inside become a datagram of at most ``path_mtu`` less IP and UDP headers outside.
    """
    segments = min(64, 65507 // max(path_mtu - 28, 1))
    # 52 octets: IPv4 and TCP headers with timestamps, once in the superframe and once in each segment
    return min(segments * (mtu - 52) + 52, 65535)


def _error_of(work: Callable[[], None]) -> BackendError | None:
    try:
        work()
    except BackendError as error:
        return error
    return None


def _less(counter: Counter[int], value: int) -> None:
    counter[value] -= 1
    if not counter[value]:
        del counter[value]
