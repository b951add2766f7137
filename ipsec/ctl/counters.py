"""``ipsecctl counters``: what was counted, in IKE and in the data path."""

from __future__ import annotations

import click
from rich.text import Text

from ipsec.ctl import complete
from ipsec.ctl.app import App, Verb, current
from ipsec.ctl.errors import CtlError, ExitCode
from ipsec.ctl.names import near
from ipsec.ctl.output import DIM, WARN, Column, Table, plural
from ipsec.ctl.stock import fetch_counters
from ipsec.ctl.view import DataPath, fetch_conns, fetch_data_path
from ipsec.vici.client import Session, ViciError

#: connections that get a column of their own on a terminal
COLUMNS_MAX = 4


@click.command(cls=Verb)
@click.argument("name", required=False, default="", metavar="[CONNECTION]", shell_complete=complete.conns)
@click.option("--reset", is_flag=True, help="Begin to count anew: IKE's counters, in all and of each connection.")
@click.option("--zero", is_flag=True, help="Also those that are zero.")
def counters(name: str, reset: bool, zero: bool) -> None:
    """What was counted: IKE messages, packets, drops.

    IKE's counters are charon's: requests and responses of each exchange, in and out, rekeyings by who began them, and
    messages that were invalid. Those of the data path are ipsecd's, since its start; docs/operations.md says what
    they mean.
    """
    app = current()

    async def work() -> tuple[dict[str, dict[str, int]], DataPath | None]:
        async with app.session() as session:
            if reset:
                await _reset(session, name)
            try:
                found = await fetch_counters(session, name)
            except ViciError as error:
                if "no counters found" not in str(error):
                    raise
                found = await _none_yet(session, name)
            return found, None if name else await fetch_data_path(session)

    found, path = app.run(work)
    if app.json:
        app.document(
            "counters",
            ike=found.get("", {}),
            connections={key: values for key, values in found.items() if key},
            data_path=path.counters if path else None,
            drops=path.drops if path else None,
        )
        return
    _print_ike(app, found, zero)
    if path is not None:
        _print_data_path(app, path, zero)


async def _reset(session: Session, name: str) -> None:
    if name:
        await session.request("reset-counters", {"name": name})
        return
    await session.request("reset-counters")
    await session.request("reset-counters", {"all": "yes"})


async def _none_yet(session: Session, name: str) -> dict[str, dict[str, int]]:
    """A connection that nothing has happened to yet has no counters. CtlError if there is no such connection."""
    known = [conn.name for conn in await fetch_conns(session)]
    if name in known:
        return {name: {}}
    hint = near(name, known).removeprefix("; ") or "see `ipsecctl list conns`"
    raise CtlError(f"there is no connection {name!r}", hint, code=ExitCode.UNKNOWN_NAME)


def _print_ike(app: App, found: dict[str, dict[str, int]], zero: bool) -> None:
    names = list(dict.fromkeys(counter for values in found.values() for counter in values))
    busy = sorted((name for name in found if name), key=lambda name: -sum(found[name].values()))
    if app.out.is_terminal:
        busy = busy[:COLUMNS_MAX]
    keys = [*([""] if "" in found else []), *busy]
    table = Table("IKE", *(Column(key or "ALL", "right") for key in keys))
    for counter in names:
        values = [found[key].get(counter, 0) for key in keys]
        if zero or any(values):
            table.add(counter, *(Text(str(value), style="" if value else DIM) for value in values))
    if table.rows:
        table.print(app.out)
    else:
        app.out.print("IKE: nothing yet")
    if left := len(found) - len(keys):
        app.out.print(Text(f"and {plural(left, 'more connection')}: name one, or use --json", style=DIM))


def _print_data_path(app: App, path: DataPath, zero: bool) -> None:
    app.out.print()
    table = Table("DATA PATH", Column("COUNT", "right"))
    for counter, value in path.counters.items():
        if value or zero:
            table.add(counter, Text(str(value), style="" if value else DIM))
    table.print(app.out)
    if path.drops:
        app.out.print()
        drops = Table("DROPS", Column("PACKETS", "right"))
        for reason in sorted(path.drops, key=lambda one: -path.drops[one]):
            drops.add(reason, Text(str(path.drops[reason]), style=WARN))
        drops.print(app.out)
