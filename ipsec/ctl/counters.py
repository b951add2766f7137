"""``ipsecctl counters``: what was counted, in IKE and in the data path."""

from __future__ import annotations

import click
from rich.text import Text

from ipsec.ctl import complete
from ipsec.ctl.app import App, Verb, current
from ipsec.ctl.errors import CtlError, ExitCode
from ipsec.ctl.names import known, near
from ipsec.ctl.output import DIM, WARN, Column, Table
from ipsec.ctl.stock import fetch_counters
from ipsec.ctl.view import DataPath, ManualSa, fetch_data_path, fetch_manual_sas
from ipsec.vici.client import Session, ViciError

#: connections that get a column of their own on a terminal
COLUMNS_MAX = 4


@click.command(cls=Verb)
@click.argument("name", required=False, default="", metavar="[NAME]", shell_complete=complete.conns_and_manual)
@click.option("--reset", is_flag=True, help="Begin to count anew: IKE's counters, in all and of each connection.")
@click.option("--zero", is_flag=True, help="Also those that are zero.")
def counters(name: str, reset: bool, zero: bool) -> None:
    """What was counted: IKE messages, packets, drops.

    NAME is a connection or a manual SA; without it everything is shown.

    IKE's counters are charon's: requests and responses of each exchange, in and out, rekeyings by who began them, and
    messages that were invalid. Those of the data path are ipsecd's, since its start; docs/operations.md says what
    they mean.
    """
    app = current()

    async def work() -> tuple[dict[str, dict[str, int]], dict[str, dict[str, int]], DataPath | None]:
        async with app.session() as session:
            if reset:
                await _reset(session, name)
            manual = {sa.name: _of(sa) for sa in await fetch_manual_sas(session) if name in ("", sa.name)}
            try:
                found = await fetch_counters(session, name)
            except ViciError as error:
                if "no counters found" not in str(error):
                    raise
                found = {} if manual else await _none_yet(session, name)
            return found, manual, None if name else await fetch_data_path(session)

    found, manual, path = app.run(work)
    if app.json:
        app.document(
            "counters",
            ike=found.get("", {}),
            connections={key: values for key, values in found.items() if key},
            manual_sas=manual,
            data_path=path.counters if path else None,
            drops=path.drops if path else None,
        )
        return
    if found or not manual:
        _print_each(app, "IKE", found, zero)
    if manual:
        if found:
            app.out.print()
        _print_each(app, "MANUAL SA", manual, zero)
    if path is not None:
        _print_data_path(app, path, zero)


async def _reset(session: Session, name: str) -> None:
    if name:
        there = await known(session)
        if there.conn(name) is None and there.manual_names(name):
            raise CtlError(
                f"{name} is a manual SA, which counts since the daemon's start",
                "only IKE's counters can begin anew",
                code=ExitCode.UNKNOWN_NAME,
            )
        try:
            # resetting says yes to every name
            await fetch_counters(session, name)
        except ViciError as error:
            if "no counters found" not in str(error):
                raise
            await _none_yet(session, name)
        await session.request("reset-counters", {"name": name})
        return
    await session.request("reset-counters")
    await session.request("reset-counters", {"all": "yes"})


async def _none_yet(session: Session, name: str) -> dict[str, dict[str, int]]:
    """A connection that nothing has happened to yet has no counters. CtlError if there is no such connection."""
    there = await known(session)
    if there.conn(name) is not None:
        return {name: {}}
    names = [*there.conn_names(), *there.manual]
    hint = near(name, names).removeprefix("; ") or "see `ipsecctl list conns`"
    raise CtlError(f"there is no connection or manual SA {name!r}", hint, code=ExitCode.UNKNOWN_NAME)


def _of(sa: ManualSa) -> dict[str, int]:
    """Its counters, as ``ipsecctl status`` has them, and drops by reason."""
    return {
        "packets-in": sa.packets_in,
        "bytes-in": sa.bytes_in,
        "number-in": sa.number_in,
        "packets-out": sa.packets_out,
        "bytes-out": sa.bytes_out,
        "number-out": sa.number_out,
        **sa.drops,
    }


def _print_each(app: App, title: str, found: dict[str, dict[str, int]], zero: bool) -> None:
    """A column for each name; "" stands for all together."""
    names = list(dict.fromkeys(counter for values in found.values() for counter in values))
    busy = sorted((name for name in found if name), key=lambda name: -sum(found[name].values()))
    if app.out.is_terminal:
        busy = busy[:COLUMNS_MAX]
    keys = [*([""] if "" in found else []), *busy]
    table = Table(title, *(Column(key or "ALL", "right") for key in keys))
    for counter in names:
        values = [found[key].get(counter, 0) for key in keys]
        if zero or any(values):
            table.add(counter, *(Text(str(value), style="" if value else DIM) for value in values))
    if table.rows:
        table.print(app.out)
    else:
        app.out.print(f"{title}: nothing yet")
    if left := len(found) - len(keys):
        app.out.print(Text(f"and {left} more: name one, or use --json", style=DIM))


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
