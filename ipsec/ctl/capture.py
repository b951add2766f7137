"""``ipsecctl capture``: what goes through the tunnels, inside and outside, with names in the comments."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import stat
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

import click
from rich.text import Text

from ipsec.cli.version import version
from ipsec.ctl import complete
from ipsec.ctl.app import App, Number, Verb, Whole, current
from ipsec.ctl.errors import CtlError, ExitCode
from ipsec.ctl.keys import Keys
from ipsec.ctl.names import known
from ipsec.ctl.output import BAD
from ipsec.ctl.pcapng import Writer
from ipsec.ctl.tap import Copied, Tap, addresses, cars, parse_outer
from ipsec.ctl.view import number, section, text
from ipsec.ctl.whose import Labels, fetch_labels
from ipsec.text import plural
from ipsec.vici.client import Session, UnknownToDaemon, ViciError, connect

#: packets are written so much later, so that the names of new SAs are known by then
DELAY_S = 0.5
#: packets that wait for that; with more of them names matter less
WAITING_MAX = 50_000
#: events after which SAs are others
_CHANGES = ("ike-updown", "ike-rekey", "child-updown", "child-rekey")


@dataclass
class _Options:
    output: str
    conns: frozenset[str]
    inside: bool
    outside: bool
    seconds: float | None
    count: int | None


@dataclass
class _Counts:
    inside: int = 0
    outside: int = 0
    dropped: int = 0


@click.command(cls=Verb)
@click.argument("conns", nargs=-1, metavar="[CONN]...", shell_complete=complete.conns)
@click.option("-o", "--output", required=True, type=click.Path(dir_okay=False), help="The file; - is standard output.")
@click.option("--inside", "where", flag_value="inside", help="Only what goes through the tunnels, in clear.")
@click.option("--outside", "where", flag_value="outside", help="Only ESP and IKE, as others see it.")
@click.option("--seconds", type=Number(min=0.1), metavar="N", help="End after so many seconds.")
@click.option("--count", type=Whole(min=1), metavar="N", help="End after so many packets.")
@click.option(
    "--keys",
    type=click.Path(file_okay=False),
    metavar="DIR",
    help="ALSO WRITE THE KEYS, to read what is encrypted: whoever gets DIR and the file reads the traffic.",
)
def capture(
    conns: tuple[str, ...], output: str, where: str | None, seconds: float | None, count: int | None, keys: str | None
) -> None:
    """Write packets to a pcapng file for Wireshark, until Ctrl-C.

    Inside is what passes the tunnels' device, in clear; outside are ESP and IKE on all other interfaces. Comments name
    the connection, the child, the SPI and the number of each packet. Trains that the kernel shows as one packet are
    taken apart. With CONNs only their packets. The daemon is not slowed down unless one captures.

    Has to run in the daemon's network namespace with CAP_NET_RAW. With --keys, the daemon has to write its keys
    (ipsecd.keylog), which is a decision for its configuration; DIR becomes a directory that Wireshark reads them from.

    \b
      ipsecctl capture -o tunnel.pcapng --seconds 10
      ipsecctl capture office -o - | wireshark -k -i -
    """
    app = current()
    if output == "-" and sys.stdout.isatty():
        raise click.UsageError("packets do not go to a terminal: -o FILE, or | wireshark -k -i -")
    if output == "-" and app.json:
        raise click.UsageError("standard output is for packets or for --json, not for both")
    options = _Options(output, frozenset(conns), where != "outside", where != "inside", seconds, count)
    counts = app.run(lambda: _run(app, options, keys))
    if app.json:
        app.document(
            "capture", file=output, inside=counts.inside, outside=counts.outside, dropped=counts.dropped, keys=keys
        )
    else:
        app.err.print(f"{output}: {plural(counts.inside, 'packet')} inside, {counts.outside} outside")
        if counts.dropped:
            app.err.print(Text(f"{plural(counts.dropped, 'packet')} came too fast and are missing", style=BAD))


async def _run(app: App, options: _Options, keys: str | None) -> _Counts:
    async with app.session() as session:
        if options.conns:
            there = await known(session)
            names = {target.conn for name in options.conns for target in there.find(name)}
            options.conns = frozenset(names)
        try:
            path = await session.request("ipsecd-data-path")
        except UnknownToDaemon as error:
            why = "this daemon does not say what its device is (it is no ipsecd)"
            raise CtlError(why, "use tcpdump") from error
        device = text(path, "device")
        if device not in (name for _, name in socket.if_nameindex()):
            raise CtlError(
                f"the daemon's device {device} is not in this network namespace",
                "nsenter --net --target $(pidof -xs ipsecd) ipsecctl capture ...",
                code=ExitCode.REQUIREMENT,
            )
        ike_ports = {500, *(number(section(path, "ike-ports"), key) for key in section(path, "ike-ports"))}
        ports = ike_ports | {4500, *(number(section(path, "ports"), key) for key in section(path, "ports"))}
        key_files = Keys(text(path, "keylog"), keys) if keys is not None else None
        if key_files is not None:
            app.err.print(Text(key_files.warning(), style=BAD))
        with _opened(options.output) as stream:
            recorder = _Recorder(options, device, frozenset(ike_ports), stream, await fetch_labels(session))
            counts = await recorder.run(app, session, ports)
        if key_files is not None:
            app.err.print(key_files.copy(options.output))
        return counts


@contextlib.contextmanager
def _opened(output: str) -> Iterator[BinaryIO]:
    if output == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    try:
        # what passes inside is nobody else's business
        stream = open(output, "wb", opener=_private)  # noqa: SIM115
    except OSError as error:
        why = f"cannot write {output}: {error.strerror}"
        raise CtlError(why, "name another file with -o", code=ExitCode.REQUIREMENT) from error
    with stream:
        yield stream


def _private(path: str, flags: int) -> int:
    descriptor = os.open(path, flags, 0o600)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        # also one that was there before
        os.fchmod(descriptor, 0o600)
    return descriptor


@dataclass
class _Recorder:
    """Reads taps and writes what they give."""

    options: _Options
    device: str
    ike_ports: frozenset[int]
    stream: BinaryIO
    labels: Labels
    counts: _Counts = field(default_factory=_Counts)

    async def run(self, app: App, session: Session, ports: set[int]) -> _Counts:
        """Until it has been long or much enough, or Ctrl-C."""
        loop = asyncio.get_running_loop()
        self._end = asyncio.Event()
        self._waiting: deque[Copied] = deque()
        self._writer = Writer(self.stream, f"ipsecctl {version()}")
        self._interfaces: dict[str, int] = {}
        taps: list[Tap] = []
        with contextlib.ExitStack() as stack:
            # what is there at the end is written, so Ctrl-C is an ordinary end
            for one in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(one, self._end.set)
                stack.callback(loop.remove_signal_handler, one)
            if self.options.inside:
                taps.append(Tap(self.device))
            if self.options.outside:
                taps.append(Tap(None, ports))
            for tap in taps:
                stack.callback(tap.close)
                loop.add_reader(tap.fileno(), self._read, tap)
                stack.callback(loop.remove_reader, tap.fileno())
            # who waits for the file knows by its first block that it has begun
            self.stream.flush()
            follower = loop.create_task(self._follow(app, session))
            try:
                await self._write_until_end()
            finally:
                follower.cancel()
            self._write(before=None)
            self.counts.dropped = sum(tap.count_drops() for tap in taps)
            for index in self._interfaces.values():
                total = self.counts.inside + self.counts.outside
                self._writer.statistics(index, time.time_ns(), received=total, dropped=self.counts.dropped)
        return self.counts

    def _read(self, tap: Tap) -> None:
        self._waiting.extend(tap.read())
        if len(self._waiting) > WAITING_MAX:
            self._write(before=None)

    async def _write_until_end(self) -> None:
        deadline = time.monotonic() + self.options.seconds if self.options.seconds is not None else None
        while not self._end.is_set():
            left = DELAY_S / 2 if deadline is None else min(DELAY_S / 2, deadline - time.monotonic())
            if left <= 0:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._end.wait(), left)
            self._write(before=time.time_ns() - int(DELAY_S * 1e9))

    def _write(self, before: int | None) -> None:
        while self._waiting and (before is None or self._waiting[0].time_ns < before):
            if self._enough():
                self._end.set()
                return
            self._record(self._waiting.popleft())
        with contextlib.suppress(BrokenPipeError):
            self.stream.flush()
            return
        # who reads has seen enough
        self._end.set()

    def _enough(self) -> bool:
        return self.options.count is not None and self.counts.inside + self.counts.outside >= self.options.count

    def _record(self, copied: Copied) -> None:
        if copied.interface == self.device:
            self._record_inside(copied)
        elif self.options.outside and not (copied.interface == "lo" and copied.outgoing):
            # on lo everything passes twice
            self._record_outside(copied)

    def _record_inside(self, copied: Copied) -> None:
        # the tap on all interfaces sees ESP that is inside of another tunnel, and that on the device does as well
        if not self.options.inside:
            return
        ends = addresses(copied.data)
        whose = self.labels.inside(*ends, outbound=copied.outgoing) if ends is not None else None
        if self._is_wanted(whose.conn if whose else ""):
            words = f"{whose} {'outbound' if copied.outgoing else 'inbound'}" if whose else "no child is for this"
            self._put(copied, copied.data, words, inbound=not copied.outgoing)
            self.counts.inside += 1

    def _record_outside(self, copied: Copied) -> None:
        outer = parse_outer(copied.data, self.ike_ports)
        if outer is None:
            return
        remote = outer.target if copied.outgoing else outer.source
        for data in cars(copied.data, outer):
            one = parse_outer(data, self.ike_ports)
            if one is None or self._enough():
                return
            if one.ike:
                whose = self.labels.ike(*one.ike_spis, remote)
                words = f"{one.ike_message()} of {whose or f'nobody that is known, {remote}'}"
            else:
                whose = self.labels.esp(one.spi)
                words = f"ESP SPI 0x{one.spi:08x} number {one.number} of {whose or 'no SA that is up'}"
            if self._is_wanted(whose.conn if whose else ""):
                self._put(copied, data, words, inbound=not copied.outgoing)
                self.counts.outside += 1

    def _is_wanted(self, conn: str) -> bool:
        return not self.options.conns or conn in self.options.conns

    def _put(self, copied: Copied, data: bytes, words: str, *, inbound: bool) -> None:
        index = self._interfaces.get(copied.interface)
        if index is None:
            inside = copied.interface == self.device
            what = "inside: what passes the tunnels, in clear" if inside else "outside: ESP and IKE"
            index = self._interfaces[copied.interface] = self._writer.interface(copied.interface, what)
        with contextlib.suppress(BrokenPipeError):
            self._writer.packet(index, copied.time_ns, data, [words], inbound=inbound)

    async def _follow(self, app: App, session: Session) -> None:
        """Ask again whenever SAs come or go."""
        # a daemon that goes is no reason to stop
        with contextlib.suppress(ViciError):
            async with await connect(app.socket) as events:
                changed = asyncio.Event()
                listener = asyncio.ensure_future(_notice(events, changed.set))
                try:
                    while True:
                        await changed.wait()
                        changed.clear()
                        self.labels.add(await fetch_labels(session))
                        await asyncio.sleep(DELAY_S / 5)
                finally:
                    listener.cancel()


async def _notice(session: Session, tell: Callable[[], None]) -> None:
    with contextlib.suppress(ViciError):
        async for _ in session.listen(*_CHANGES):
            tell()
