"""``ipsecctl top``: live traffic of all CHILD_SAs and manual SAs, the busiest first."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import termios
import tty
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from time import monotonic

import click
from rich.console import Group
from rich.live import Live
from rich.text import Text

from ipsec.ctl.app import App, Number, Verb, Whole, current
from ipsec.ctl.errors import CtlError
from ipsec.ctl.output import BAD, DIM, GOOD, WARN, Column, Table, bits, count, duration, octets
from ipsec.ctl.tunnels import Rate, manual_rates, rates
from ipsec.ctl.view import ChildSa, IkeSa, ManualSa, fetch_drops, fetch_manual_sas, fetch_sas
from ipsec.text import plural
from ipsec.vici.client import HungUp, Session

INTERVAL_S = 1.0
#: lines besides the rows: two of heading, titles, the keys
LINES_AROUND = 5


@dataclass(frozen=True, slots=True)
class Row:
    """A CHILD_SA; or all of an IKE_SA together; or a manual SA."""

    name: str
    peer: str
    state: str
    rate: Rate
    bytes_in: int
    bytes_out: int
    age_s: int | None
    "None of a manual SA: it is as old as the daemon"
    drops: int


#: key -> title of the column, and what to sort by; the largest first, names the other way round
ORDERS: dict[str, tuple[str, Callable[[Row], float | str]]] = {
    "t": ("traffic", lambda row: row.rate.bits_in + row.rate.bits_out),
    "i": ("IN", lambda row: row.rate.bits_in),
    "o": ("OUT", lambda row: row.rate.bits_out),
    "p": ("packets", lambda row: row.rate.packets_in + row.rate.packets_out),
    "v": ("volume", lambda row: row.bytes_in + row.bytes_out),
    "d": ("DROPS", lambda row: row.drops),
    "a": ("AGE", lambda row: row.age_s or 0),
    "n": ("NAME", lambda row: row.name),
}
ORDER_NAMES = {title.lower(): key for key, (title, _) in ORDERS.items()}
KEYS = "q quit  t traffic  i in  o out  p packets  v volume  d drops  a age  n name  r reverse  g group  arrows"


@dataclass
class View:
    """What the keys have chosen."""

    order: str = "t"
    reverse: bool = False
    grouped: bool = False
    "one row for all children of an IKE_SA"
    first: int = 0
    "the row at the top"
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def press(self, keys: str, page: int) -> None:
        """Keys have been pressed."""
        moves = {"\x1b[A": -1, "\x1b[B": 1, "\x1b[5~": -page, "\x1b[6~": page, "k": -1, "j": 1, " ": page}
        if keys in moves:
            self.first = max(self.first + moves[keys], 0)
        elif keys in ("\x1b[H", "\x1b[1~"):
            self.first = 0
        else:
            for key in keys:
                if key in ORDERS:
                    self.order, self.first = key, 0
                elif key == "r":
                    self.reverse = not self.reverse
                elif key == "g":
                    self.grouped, self.first = not self.grouped, 0
                elif key in ("q", "\x03", "\x04"):
                    self.ended.set()
        self.changed.set()

    def sorted(self, rows: Sequence[Row]) -> list[Row]:
        """Rows in the order that was chosen; equal ones by name."""
        key = ORDERS[self.order][1]
        by_name = sorted(rows, key=lambda row: row.name)
        return sorted(by_name, key=key, reverse=(self.order != "n") != self.reverse)


@dataclass(frozen=True)
class Sample:
    """One look at the SAs, and the traffic since the one before."""

    sas: tuple[IkeSa, ...]
    at: float
    rates: dict[int, Rate]
    drops: dict[tuple[int, str], dict[str, int]]
    manual: tuple[ManualSa, ...] = ()
    manual_rates: dict[str, Rate] = field(default_factory=dict)
    lost: bool = False
    "the daemon has gone"

    def rows(self, grouped: bool) -> list[Row]:
        """Children, or IKE_SAs with all of theirs together; and manual SAs."""
        by_hand = [self._manual_row(sa) for sa in self.manual]
        if grouped:
            found = [self._row(f"{sa.name}[{sa.id}]", sa, sa.children, sa.state, sa.age_s) for sa in self.sas]
            return found + by_hand
        found = [
            self._row(f"{sa.name}/{child.name}{{{child.id}}}", sa, (child,), child.state, child.age_s)
            for sa in self.sas
            for child in sa.children
        ]
        return found + by_hand

    def _manual_row(self, sa: ManualSa) -> Row:
        rate = self.manual_rates.get(sa.name, Rate())
        return Row(sa.name, sa.remote_host, "MANUAL", rate, sa.bytes_in, sa.bytes_out, None, sum(sa.drops.values()))

    def _row(self, name: str, sa: IkeSa, children: Sequence[ChildSa], state: str, age: int | None) -> Row:
        drops = [self.drops.get((sa.id, f"{child.name}-{child.id}"), {}) for child in children]
        return Row(
            name,
            f"{sa.remote_host} {sa.remote_id}",
            state,
            sum((self.rates.get(child.id, Rate()) for child in children), Rate()),
            sum(child.bytes_in for child in children),
            sum(child.bytes_out for child in children),
            age or 0,
            sum(sum(one.values()) for one in drops),
        )


@click.command(cls=Verb)
@click.option(
    "--interval",
    type=Number(min=0.1),
    default=INTERVAL_S,
    show_default=True,
    metavar="SECONDS",
    help="Between two looks.",
)
@click.option("--sort", type=click.Choice(sorted(ORDER_NAMES)), default="traffic", show_default=True, help="Order.")
@click.option("--group", is_flag=True, help="One row for each IKE_SA instead of each CHILD_SA.")
@click.option(
    "-n", "--lines", type=Whole(min=1), metavar="N", help="Only the first N rows, where it is plain."
)
def top(interval: float, sort: str, group: bool, lines: int | None) -> None:
    """Live traffic of every CHILD_SA and manual SA, the busiest first.

    \b
    Keys:
      t i o p   sort by traffic, incoming, outgoing, packets
      v d a n   sort by volume, drops, age, name; r reverses
      g         one row for each IKE_SA, and back
      arrows    up and down, also Page Up, Page Down, space
      q         quit

    Where the output does not go to a terminal, or to one that cannot move its cursor, it prints one sample and ends;
    so it does with --json.
    """
    app = current()
    view = View(order=ORDER_NAMES[sort], grouped=group)
    if app.fancy and not app.out.is_dumb_terminal and sys.stdin.isatty():
        with contextlib.suppress(KeyboardInterrupt):
            app.run(lambda: _live(app, view, interval))
        return
    sample = app.run(lambda: _once(app, interval))
    rows = view.sorted(sample.rows(view.grouped))[:lines]
    if app.json:
        app.document("top", interval_s=interval, rows=[_described(row) for row in rows])
        return
    app.out.print(_heading(sample, view))
    _table(rows).print(app.out)


def _described(row: Row) -> dict[str, object]:
    return {
        "name": row.name,
        "peer": row.peer,
        "state": row.state,
        "bits_in_per_s": round(row.rate.bits_in),
        "bits_out_per_s": round(row.rate.bits_out),
        "packets_in_per_s": round(row.rate.packets_in),
        "packets_out_per_s": round(row.rate.packets_out),
        "bytes_in": row.bytes_in,
        "bytes_out": row.bytes_out,
        "age_s": row.age_s,
        "drops": row.drops,
    }


async def _look(session: Session, before: Sample | None) -> Sample:
    sas = await fetch_sas(session)
    at = monotonic()
    manual = await fetch_manual_sas(session)
    found = rates(before.sas, sas, at - before.at) if before else {}
    by_hand = manual_rates(before.manual, manual, at - before.at) if before else {}
    return Sample(sas, at, found, await fetch_drops(session) or {}, manual, by_hand)


async def _once(app: App, interval: float) -> Sample:
    async with app.session() as session:
        first = await _look(session, None)
        await asyncio.sleep(interval)
        return await _look(session, first)


# -- in a terminal


async def _live(app: App, view: View, interval: float) -> None:
    async with app.session() as session:
        sample = await _look(session, None)
        live = Live(console=app.out, screen=True, auto_refresh=False)
        with _keys(lambda keys: view.press(keys, _room(app))), live:
            await _follow(app, session, view, interval, sample, live)


async def _follow(app: App, session: Session, view: View, interval: float, sample: Sample, live: Live) -> None:
    """Look again and again until it is to end; a daemon that goes away is waited for."""
    async with contextlib.AsyncExitStack() as stack:
        while not view.ended.is_set():
            live.update(_screen(app, sample, view), refresh=True)
            view.changed.clear()
            with contextlib.suppress(TimeoutError):
                # keys are heeded at once
                await asyncio.wait_for(view.changed.wait(), max(sample.at + interval - monotonic(), 0.01))
                continue
            try:
                if sample.lost:
                    session = await stack.enter_async_context(app.session())
                sample = await _look(session, None if sample.lost else sample)
            except (HungUp, CtlError):
                sample = Sample((), monotonic(), {}, {}, lost=True)


@contextlib.contextmanager
def _keys(press: Callable[[str], None]) -> Iterator[None]:
    """Keys come one by one, and are not shown, until the end."""
    fd = sys.stdin.fileno()
    loop = asyncio.get_running_loop()
    before = termios.tcgetattr(fd)
    tty.setcbreak(fd)
    loop.add_reader(fd, lambda: press(os.read(fd, 64).decode("utf-8", "replace") or "q"))
    try:
        yield
    finally:
        loop.remove_reader(fd)
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def _room(app: App) -> int:
    return max(app.out.height - LINES_AROUND, 1)


def _screen(app: App, sample: Sample, view: View) -> Group:
    rows = view.sorted(sample.rows(view.grouped))
    room = _room(app)
    view.first = min(view.first, max(len(rows) - room, 0))
    shown = rows[view.first : view.first + room]
    foot = Text(KEYS, style=DIM)
    if len(rows) > room:
        foot = Text(f"{view.first + 1}-{view.first + len(shown)} of {len(rows)}  ").append_text(foot)
    foot.truncate(app.out.width, overflow="ellipsis")
    heading = _heading(sample, view)
    heading.truncate(app.out.width, overflow="ellipsis")
    filler = [Text() for _ in range(room - len(shown))]
    return Group(heading, Text(), *_table(shown).lines(app.out.width), *filler, Text(), foot)


def _heading(sample: Sample, view: View) -> Text:
    if sample.lost:
        return Text.assemble(("ipsecctl top", "bold"), ("  the daemon has gone; waiting for it", BAD))
    total = sum((*sample.rates.values(), *sample.manual_rates.values()), Rate())
    children = sum(len(sa.children) for sa in sample.sas)
    number = (
        [plural(len(sample.sas), "IKE_SA"), plural(children, "CHILD_SA")] if sample.sas or not sample.manual else []
    )
    number += [plural(len(sample.manual), "manual SA")] if sample.manual else []
    line = Text.assemble(
        ("ipsecctl top", "bold"),
        f"  {', '.join(number)}  in ",
        (bits(total.bits_in), "bold"),
        f" {count(total.packets_in)} packets/s  out ",
        (bits(total.bits_out), "bold"),
        f" {count(total.packets_out)} packets/s",
    )
    return line.append(f"  by {ORDERS[view.order][0].lower()}{', reversed' if view.reverse else ''}", style=DIM)


def _table(rows: Sequence[Row]) -> Table:
    table = Table(
        Column("NAME", least=16, enough=24),
        Column("PEER", drop=3, least=14, enough=28),
        Column("STATE", drop=6),
        Column("IN", "right"),
        Column("OUT", "right"),
        Column("PKT/S IN", "right", drop=4),
        Column("PKT/S OUT", "right", drop=4),
        Column("TOTAL IN", "right", drop=2),
        Column("TOTAL OUT", "right", drop=2),
        Column("AGE", "right", drop=5),
        Column("DROPS", "right", drop=1),
    )
    for row in rows:
        good = row.state in ("INSTALLED", "ESTABLISHED", "MANUAL")
        table.add(
            Text(row.name, style="bold" if row.rate.bits_in + row.rate.bits_out >= 1 else ""),
            row.peer,
            Text(row.state.lower(), style=GOOD if good else BAD if "DEL" in row.state else WARN),
            _flow(bits(row.rate.bits_in), row.rate.bits_in),
            _flow(bits(row.rate.bits_out), row.rate.bits_out),
            _flow(count(row.rate.packets_in), row.rate.packets_in),
            _flow(count(row.rate.packets_out), row.rate.packets_out),
            octets(row.bytes_in),
            octets(row.bytes_out),
            duration(row.age_s),
            Text(count(row.drops), style=WARN) if row.drops else Text("0", style=DIM),
        )
    return table


def _flow(text: str, value: float) -> Text:
    return Text(text) if value >= 0.5 else Text("0", style=DIM)
