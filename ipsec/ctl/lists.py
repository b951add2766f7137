"""``ipsecctl list``: what the daemon has, one kind at a time."""

from __future__ import annotations

from dataclasses import asdict

import click
from rich.text import Text

from ipsec.ctl.app import App, VerbGroup, current
from ipsec.ctl.output import DIM, Column, Table, duration
from ipsec.ctl.view import Auth, Conn, fetch_conns


@click.group("list", cls=VerbGroup)
def list_() -> None:
    """List what the daemon has: connections, SAs, policies, certificates, pools, algorithms, authorities."""


@list_.command()
def conns() -> None:
    """The connections that are loaded, and their children."""
    app = current()

    async def work() -> tuple[Conn, ...]:
        async with app.session() as session:
            return await fetch_conns(session)

    found = app.run(work)
    if app.json:
        app.document("conns", conns=[asdict(conn) for conn in found])
    else:
        _print_conns(app, found)


def _print_conns(app: App, found: tuple[Conn, ...]) -> None:
    table = Table(
        "NAME",
        Column("LOCAL", drop=1, least=12),
        Column("REMOTE", least=14),
        Column("AUTHENTICATION", drop=3),
        Column("REKEY", drop=2),
        Column("DPD", drop=2),
    )
    for conn in found:
        auth = f"{_methods(conn.local)} / {_methods(conn.remote)}"
        table.add(
            Text(conn.name, style="bold"),
            _end(conn.local_addrs, conn.local),
            _end(conn.remote_addrs, conn.remote),
            auth,
            duration(conn.rekey_s or conn.reauth_s or None),
            duration(conn.dpd_delay_s or None),
        )
        for child in conn.children:
            mode = "" if child.mode == "TUNNEL" else f" ({child.mode.lower()})"
            table.add(
                Text.assemble(("  / ", DIM), child.name + mode),
                " ".join(child.local_ts),
                " ".join(child.remote_ts),
                "",
                duration(child.rekey_s or None),
            )
    table.print(app.out)


def _methods(auths: tuple[Auth, ...]) -> str:
    return "+".join(auth.method for auth in auths)


def _end(addrs: tuple[str, ...], auths: tuple[Auth, ...]) -> str:
    """``192.0.2.1 [gw.example]``."""
    names = ", ".join(auth.id for auth in auths if auth.id and auth.id != "%any")
    where = ", ".join(addrs) or "%any"
    return f"{where} [{names}]" if names else where
