"""One pump at work: called by the event loop when a descriptor is ready, or on a thread of its own."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import zip_longest

from ipsec.backend.core import BLOCKED, DEVICE_LOST, MORE, CorePump
from ipsec.net import udp

#: reads per callback: large enough to amortise the loop, small enough that timers and IKE never wait for long
BUDGET = 16


class Worker:
    """A pump, its TUN queue and the sockets it uses; descriptors stay the caller's."""

    def __init__(
        self,
        pump: CorePump,
        tun_fd: int,
        sockets: list[socket.socket],
        *,
        drain: Callable[[Worker], None],
        lost: Callable[[], None],
    ) -> None:
        """``drain`` is called when the pump has events or datagrams, ``lost`` when its device is gone."""
        self.pump = pump
        self.thread: threading.Thread | None = None
        self._tun_fd = tun_fd
        self._sockets = sockets
        self._drain = drain
        self._lost = lost
        self._running = False
        self._waiting = -1
        "the descriptor that the event loop waits for to become writable"
        self._again = False
        "a further call is already scheduled"
        self._drain_soon = False

    def start(self) -> None:
        """Move packets in the event loop."""
        self._listen()
        loop = asyncio.get_running_loop()
        loop.add_reader(self._tun_fd, self._run, self.pump.run_tun)
        for sock in self._sockets:
            if socket_name(sock)[:6] != "bypass":
                loop.add_reader(sock.fileno(), self._run, self.pump.run_sockets)

    def start_thread(self, name: str, stop_fd: int, busy_poll_us: int) -> None:
        """Move packets on a thread until ``stop_fd`` is readable; the event loop only hears of events."""
        self._listen()
        self.thread = threading.Thread(
            target=self.pump.run_forever, args=(stop_fd, busy_poll_us), name=name, daemon=True
        )
        self.thread.start()

    def detach(self) -> None:
        """The event loop forgets about it; a thread has to be stopped and joined besides."""
        self._running = False
        loop = asyncio.get_running_loop()
        for fd in (self._tun_fd, *(sock.fileno() for sock in self._sockets)):
            loop.remove_reader(fd)
            loop.remove_writer(fd)
        self._waiting = -1
        loop.remove_reader(self.pump.event_fd)

    def wake(self) -> None:
        """Let the pump try what waits for an SA once more."""
        if self.thread is not None:
            self.pump.wake()
        elif self._running and not self._again:
            self._again = True
            asyncio.get_running_loop().call_soon(self._run_again, self.pump.run_tun)

    def drain_again(self) -> None:
        """Drain once more in the loop's next turn: more waits than one turn takes."""
        if self._running and not self._drain_soon:
            self._drain_soon = True
            asyncio.get_running_loop().call_soon(self._drain_rest)

    def _drain_rest(self) -> None:
        self._drain_soon = False
        if self._running:
            self._drain(self)

    def _drain_once(self) -> None:
        """Drain, unless this turn does so anyway: each time may take as long as a turn should."""
        if not self._drain_soon:
            self._drain(self)

    def _listen(self) -> None:
        self._running = True
        asyncio.get_running_loop().add_reader(self.pump.event_fd, self._on_event_fd)

    def _on_event_fd(self) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(self.pump.event_fd)
        self._drain_once()

    def _run(self, step: Callable[[int], int]) -> None:
        """One call of the pump, and what its answer asks for."""
        if not self._running:
            return
        result = step(BUDGET)
        if result & DEVICE_LOST:
            # an error on the device is always "readable", so a reader would spin
            asyncio.get_running_loop().remove_reader(self._tun_fd)
            self._lost()
        elif result & BLOCKED:
            self._wait_writable()
        elif result & MORE and not self._again:
            self._again = True
            asyncio.get_running_loop().call_soon(self._run_again, step)
        self._drain_once()

    def _run_again(self, step: Callable[[int], int]) -> None:
        self._again = False
        if self._waiting < 0 or step != self.pump.run_tun:
            self._run(step)

    def _wait_writable(self) -> None:
        """Read no more from the inside until the socket that is full has room; reading on would only drop."""
        loop = asyncio.get_running_loop()
        self._waiting = self.pump.blocked_fd()
        if self._waiting < 0:
            # it has drained meanwhile
            if not self._again:
                self._again = True
                loop.call_soon(self._run_again, self.pump.run_tun)
            return
        loop.remove_reader(self._tun_fd)
        loop.add_writer(self._waiting, self._on_writable)

    def _on_writable(self) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_writer(self._waiting)
        self._waiting = -1
        loop.add_reader(self._tun_fd, self._run, self.pump.run_tun)
        self._run(self.pump.run_tun)


def join(workers: Sequence[Worker], seconds: float) -> list[str]:
    """Wait for the threads of workers, so long for each; the names of those that run still. Blocks."""
    threads = [worker.thread for worker in workers if worker.thread is not None]
    for thread in threads:
        thread.join(seconds)
    return [thread.name for thread in threads if thread.is_alive()]


class Totals:
    """What all pumps have counted since the start, those of an earlier device included."""

    def __init__(self) -> None:
        self._counters: dict[str, int] = {}
        self._batches: dict[str, list[int]] = {}

    def retire(self, workers: Sequence[Worker]) -> None:
        """These are about to go."""
        self._counters, self._batches = self.counters(workers), self.batches(workers)

    def counters(self, workers: Sequence[Worker]) -> dict[str, int]:
        """See CorePump."""
        total = dict(self._counters)
        for worker in workers:
            for name, value in worker.pump.counters().items():
                total[name] = total.get(name, 0) + value
        return total

    def batches(self, workers: Sequence[Worker]) -> dict[str, list[int]]:
        """See CorePump."""
        total = dict(self._batches)
        for worker in workers:
            for direction, counts in worker.pump.batches().items():
                total[direction] = [sum(pair) for pair in zip_longest(total.get(direction, ()), counts, fillvalue=0)]
        return total


def socket_name(sock: socket.socket) -> str:
    """The pump's argument for this socket: ``udp4_fd``, ``raw6_fd``, ``bypass4_fd``, ..."""
    if sock.family == socket.AF_UNIX:
        return "udp4_fd"
    kind = "udp" if sock.type == socket.SOCK_DGRAM else "raw" if sock.proto == udp.ESP_PROTOCOL else "bypass"
    return f"{kind}{4 if sock.family == socket.AF_INET else 6}_fd"
