"""Scripts that are run when a CHILD_SA has come up and when it is gone (``updown``), with the variables of charon's.

A script is told in its environment, whose values are of a few harmless characters, and no shell sees its command line:
what a peer says of itself can do nothing there. At the end it is told what it was told at the beginning, so that it
undoes what it has done, over rekeyings, moves and reloads. It has the rights of the daemon, and a minute.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from asyncio.subprocess import DEVNULL, Process
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from ipaddress import ip_network
from typing import IO, NamedTuple

from ipsec.ike.child_sa import ChildSa
from ipsec.ike.events import ChildDown, ChildUp, Event, IpAddress
from ipsec.wire.selector import ANY_PORT, ICMP, ICMPV6, SelectorPair, TrafficSelector

log = logging.getLogger(__name__)

#: scripts at once, and for how many changes they may be waiting, in all and of one peer, before what comes up has none
RUNNING_MAX = 8
WAITING_MAX = 4096
EACH_MAX = 64
#: seconds that one may take, those that wait for the end of the daemon together
RUN_S = 60.0
STOP_S = 3.0
#: seconds in which what was said before the end still comes, though something in the background may go on to speak
LAST_WORDS_S = 0.2
#: octets of what one says that come into the log
OUTPUT_MAX = 8192
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_HARMLESS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789 .,:=@/_+-")

Key = tuple[str, str, str]
"connection, child and peer: what concerns one is run in order"


class _Up(NamedTuple):
    """What a CHILD_SA was announced with. There may be thousands of pairs of selectors: what a script is told of one is
    put together when its turn has come."""

    command: tuple[str, ...]
    key: Key
    environment: dict[str, str]
    "what is the same for all pairs"
    pairs: tuple[SelectorPair, ...]
    me: IpAddress
    assigned: tuple[tuple[IpAddress, ...], tuple[IpAddress, ...]]
    "virtual addresses, ours and the peer's"

    def told(self, pair: SelectorPair, verb: str) -> dict[str, str]:
        """The environment of the script for one pair of selectors, when it comes or goes."""
        ours, theirs = _ports(pair)
        whole = pair.local.start == pair.local.end == self.me
        suffix = ("-host" if whole else "-client") + ("-v6" if pair.local.version == 6 else "")
        return {
            "PATH": PATH,
            **self.environment,
            **_side("MY", pair.local, ours, self.assigned[0]),
            **_side("PEER", pair.remote, theirs, self.assigned[1]),
            "PLUTO_VERB": verb + suffix,
        }


class Updown:
    """Runs them. ``device``: what the inner packets come out of."""

    def __init__(self, device: str, routed: Callable[[], Awaitable[None]]) -> None:
        """``routed`` returns when what is up has its routes."""
        self._device = device
        self._routed = routed
        self._up: dict[int, _Up] = {}
        "by the number of the CHILD_SA, or of its latest successor"
        self._last: dict[Key, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting: Counter[Key] = Counter()
        "how many of them, by whom they are for"
        self._slots = asyncio.Semaphore(RUNNING_MAX)

    def on_event(self, event: Event) -> None:
        """A CHILD_SA comes, is rekeyed, or goes."""
        match event:
            case ChildUp(child, None):
                self._comes(child)
            case ChildUp(child, old) if old is not None and old.uid in self._up:
                self._up[child.uid] = self._up.pop(old.uid)
            case ChildDown(child, _) if child.uid in self._up:
                self._run(self._up.pop(child.uid), "down")

    async def stop(self) -> None:
        """Let those end that are due; who takes too long is ended."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=STOP_S)
        if self._tasks:
            log.warning("%d updown scripts are not run or not over, we end all the same", len(self._tasks))
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _comes(self, child: ChildSa) -> None:
        if not child.config.updown:
            return
        key = child.ike.name, child.name, str(child.ike.peer_id)
        if len(self._tasks) >= WAITING_MAX or self._waiting[key] >= EACH_MAX:
            log.error(
                "%s: updown is not run for CHILD_SA %s: %d wait already, %d of its peer",
                child.ike, child, len(self._tasks), self._waiting[key],
            )
            return
        up = self._up[child.uid] = describe(child, key, self._device)
        self._run(up, "up")

    def _run(self, up: _Up, verb: str) -> None:
        work = self._in_turn(self._last.get(up.key), up, verb)
        task = self._last[up.key] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        self._waiting[up.key] += 1
        task.add_done_callback(lambda task: self._done(up.key, task))

    def _done(self, key: Key, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._waiting[key] -= 1
        if not self._waiting[key]:
            del self._waiting[key]
        if self._last.get(key) is task:
            del self._last[key]
        if not task.cancelled() and task.exception() is not None:
            log.error("this is a bug", exc_info=task.exception())
        if not self._tasks:
            _bury()

    async def _in_turn(self, before: asyncio.Task[None] | None, up: _Up, verb: str) -> None:
        if before is not None:
            await asyncio.wait((before,))
        if verb == "up":
            # a script may send at once
            await self._routed()
        for pair in up.pairs:
            async with self._slots:
                await run_script(up.command, up.told(pair, verb), f"{up.key[0]}: updown of {up.key[1]}")


def _bury() -> None:
    """In a container we are the first process as a rule, whose children all are that lose their parent: also those that
    scripts leave in the background. They take up numbers of processes until somebody has heard of their end."""
    if os.getpid() == 1:
        with suppress(ChildProcessError):
            # no script is running, whose end this would take from who waits for it
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


async def run_script(command: tuple[str, ...], environment: Mapping[str, str], what: str) -> None:
    """Run a command to its end, or until it has taken too long. What it says and how it fails is in the log."""
    said = _Said()
    try:
        status = await _run_to_its_end(command, environment, said)
    except OSError as error:
        log.error("%s: cannot run %s: %s", what, command[0], error.strerror or error)
        return
    for line in said.octets.decode("utf-8", "backslashreplace").splitlines():
        log.info("%s: %s", what, line)
    if status is None:
        log.error("%s: %s was ended, it took more than %g s", what, command[0], RUN_S)
    elif status:
        log.warning("%s: %s with %s ended with status %d", what, command[0], environment["PLUTO_VERB"], status)


async def _run_to_its_end(command: tuple[str, ...], environment: Mapping[str, str], said: _Said) -> int | None:
    """The status, None if it took too long. OSError."""
    ours, its = os.pipe()
    pipe = None
    try:
        with os.fdopen(its, "wb", 0) as speaks:
            pipe, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: said, os.fdopen(ours, "rb", 0))
            process = await _start(command, environment, speaks)
        status = await _end_of(process)
        with suppress(TimeoutError):
            await asyncio.wait_for(said.all.wait(), LAST_WORDS_S)
        return status
    finally:
        if pipe is not None:
            pipe.close()


async def _start(command: tuple[str, ...], environment: Mapping[str, str], output: IO[bytes]) -> Process:
    _keep_to_ourselves()
    return await asyncio.create_subprocess_exec(
        *command, stdin=DEVNULL, stdout=output, stderr=output, env=dict(environment), cwd="/", start_new_session=True
    )


def _keep_to_ourselves() -> None:
    """No script gets our device, sockets and pipes: also what was open when we began, which uvloop hands on."""
    for name in os.listdir("/proc/self/fd"):
        # the one for the list is gone
        with suppress(OSError):
            if int(name) > 2:
                os.set_inheritable(int(name), False)


class _Said(asyncio.Protocol):
    """What a script says, the first of it: what is more is read as well, else the script would wait."""

    def __init__(self) -> None:
        self.octets = bytearray()
        self.all = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self.octets += data[: OUTPUT_MAX - len(self.octets)]

    def connection_lost(self, exc: Exception | None) -> None:
        self.all.set()


async def _end_of(process: Process) -> int | None:
    """The status with which a process ends; None if it had to be ended."""
    try:
        return await asyncio.wait_for(process.wait(), RUN_S)
    except TimeoutError:
        return None
    finally:
        if process.returncode is None:
            # its session is a process group of its own, with all that it has started
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


def describe(child: ChildSa, key: Key, device: str) -> _Up:
    """What scripts are told of a CHILD_SA as it is now."""
    sa = child.ike
    environment = {
        "PLUTO_VERSION": "1.1",
        "PLUTO_CONNECTION": _harmless(child.name),
        "PLUTO_INTERFACE": _harmless(device),
        "PLUTO_REQID": str(child.reqid),
        "PLUTO_PROTO": "esp",
        "PLUTO_UNIQUEID": str(sa.uid),
        "PLUTO_ME": str(sa.path.local),
        "PLUTO_MY_ID": _harmless(str(sa.our_id)),
        "PLUTO_PEER": str(sa.path.remote),
        "PLUTO_PEER_ID": _harmless(str(sa.peer_id)),
    }
    if child.encap:
        environment["PLUTO_UDP_ENC"] = str(sa.path.remote_port)
    if child.config.hostaccess:
        environment["PLUTO_HOST_ACCESS"] = "1"
    assigned = tuple(sa.addresses), tuple(address for _, address in sa.leases)
    return _Up(child.config.updown, key, environment, child.pairs(), sa.path.local, assigned)


def _side(who: str, selector: TrafficSelector, ports: str, addresses: tuple[IpAddress, ...]) -> dict[str, str]:
    found = {
        f"PLUTO_{who}_CLIENT": _network(selector),
        f"PLUTO_{who}_PORT": ports,
        f"PLUTO_{who}_PROTOCOL": str(selector.protocol),
    }
    if addresses:
        found[f"PLUTO_{who}_SOURCEIP"] = str(addresses[0])
    for version in (4, 6):
        same = [address for address in addresses if address.version == version]
        found |= {f"PLUTO_{who}_SOURCEIP{version}_{n}": str(address) for n, address in enumerate(same, 1)}
    return found


def _ports(pair: SelectorPair) -> tuple[str, str]:
    """Ours and the peer's as charon has them: 0 for any, ``100:200`` for a range, of ICMP type and code."""
    if pair.protocol in (ICMP, ICMPV6):
        type_, code = divmod(max(pair.local.ports[0], pair.remote.ports[0]), 256)
        return str(type_), str(code)
    return _port(pair.local.ports), _port(pair.remote.ports)


def _port(ports: tuple[int, int]) -> str:
    first, last = ports
    return "0" if ports == ANY_PORT else str(first) if first == last else f"{first}:{last}"


def _network(selector: TrafficSelector) -> str:
    """The smallest network that a selector is in."""
    differ = (int(selector.start) ^ int(selector.end)).bit_length()
    return str(ip_network((selector.start, selector.start.max_prefixlen - differ), strict=False))


def _harmless(text: str) -> str:
    return "".join(character if character in _HARMLESS else "?" for character in text)
