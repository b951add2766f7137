"""``ipsecctl list``: what the daemon has, one kind at a time."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import asdict
from typing import TypeVar

import click
from rich.text import Text

from ipsec.ctl import complete
from ipsec.ctl.app import App, VerbGroup, Whole, current
from ipsec.ctl.errors import CtlError, ExitCode
from ipsec.ctl.names import Known, near
from ipsec.ctl.output import DIM, WARN, Column, Table, count, duration, endpoint, octets
from ipsec.ctl.stock import (
    DAY_S,
    Authority,
    Certificate,
    Crl,
    Pool,
    fetch_algorithms,
    fetch_authorities,
    fetch_certificates,
    fetch_pools,
)
from ipsec.ctl.view import Auth, Conn, IkeSa, ManualSa, fetch_conns, fetch_manual_sas, fetch_policies, fetch_sas
from ipsec.vici.client import Session

T = TypeVar("T")
N = TypeVar("N", Authority, Pool)

names_argument = click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=complete.names)


@click.group("list", cls=VerbGroup)
def list_() -> None:
    """List what the daemon has, one kind at a time."""


def _fetch(app: App, ask: Callable[[Session], Coroutine[None, None, T]]) -> T:
    async def work() -> T:
        async with app.session() as session:
            return await ask(session)

    return app.run(work)


# -- connections, SAs, policies


@list_.command()
@names_argument
def conns(names: tuple[str, ...]) -> None:
    """The connections that are loaded, and their children."""
    app = current()
    found = _fetch(app, fetch_conns)
    if names:
        known = Known(found, ())
        wanted = {target.conn for name in names for target in known.find(name)}
        found = tuple(conn for conn in found if conn.name in wanted)
    if app.json:
        app.document("conns", conns=[asdict(conn) for conn in found])
    else:
        _conns_table(found).print(app.out)


def _conns_table(found: Sequence[Conn]) -> Table:
    table = Table(
        Column("CONNECTION", least=16),
        Column("LOCAL", drop=1, least=12, enough=30),
        Column("REMOTE", least=14, enough=30),
        Column("AUTHENTICATION", drop=3),
        Column("REKEY", "right", drop=2),
        Column("DPD", "right", drop=2),
    )
    for conn in found:
        table.add(
            Text(conn.name, style="bold"),
            _end(conn.local_addrs, conn.local),
            _end(conn.remote_addrs, conn.remote),
            f"{_methods(conn.local)} / {_methods(conn.remote)}",
            duration(conn.rekey_s or conn.reauth_s or None),
            duration(conn.dpd_delay_s or None),
        )
        for child in conn.children:
            mode = "" if child.mode == "TUNNEL" else f" ({child.mode.lower()})"
            networks = " ".join(child.local_ts), " ".join(child.remote_ts)
            table.add(f"  {child.name}{mode}", *networks, "", duration(child.rekey_s or None))
    return table


def _methods(auths: Sequence[Auth]) -> str:
    return "+".join(auth.method for auth in auths)


def _end(addrs: Sequence[str], auths: Sequence[Auth]) -> str:
    """``192.0.2.1 [gw.example]``."""
    names = ", ".join(dict.fromkeys(auth.id for auth in auths if auth.id and auth.id != "%any"))
    where = ", ".join(addrs) or "%any"
    return f"{where} [{names}]" if names else where


@list_.command()
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=complete.names_and_manual)
def sas(names: tuple[str, ...]) -> None:
    """The IKE_SAs, and their CHILD_SAs, with SPIs and counters; and manual SAs."""
    app = current()

    async def ask(session: Session) -> tuple[tuple[IkeSa, ...], tuple[ManualSa, ...]]:
        return await fetch_sas(session), await fetch_manual_sas(session)

    found, manual = _fetch(app, ask)
    if names:
        known = Known((), found, tuple(one.name for one in manual))
        by_hand = {one: known.manual_names(one) for one in names}
        targets = [target for name in names for target in known.find(name, needed=not by_hand[name])]
        found = tuple(sa for sa in found if any(sa in known.sas_of(target) for target in targets))
        manual = tuple(one for one in manual if any(one.name in fitting for fitting in by_hand.values()))
    if app.json:
        app.document("sas", sas=[asdict(sa) for sa in found], manual_sas=[asdict(one) for one in manual])
    else:
        _sas_table(found, manual).print(app.out)


def _sas_table(found: Sequence[IkeSa], manual: Sequence[ManualSa]) -> Table:
    table = Table(
        Column("SA", least=14),
        "STATE",
        Column("PEER, SPIs", least=20, enough=36),
        Column("SUITE", drop=2),
        Column("AGE", "right", drop=1),
        Column("REKEY", "right", drop=1),
        Column("IN", "right", drop=3),
        Column("OUT", "right", drop=3),
    )
    for sa in found:
        table.add(
            Text(f"{sa.name}[{sa.id}]", style="bold"),
            sa.state,
            f"{endpoint(sa.remote_host, sa.remote_port)} {sa.remote_id}",
            str(sa.suite),
            duration(sa.age_s),
            duration(sa.rekey_in_s if sa.rekey_in_s is not None else sa.reauth_in_s),
        )
        for child in sa.children:
            table.add(
                f"  {child.name}{{{child.id}}}",
                child.state,
                f"{child.spi_in}_i {child.spi_out}_o",
                str(child.suite),
                duration(child.age_s),
                duration(child.rekey_in_s),
                octets(child.bytes_in),
                octets(child.bytes_out),
            )
    for one in manual:
        table.add(
            Text(one.name, style="bold"),
            "MANUAL",
            f"{one.remote_host} {one.spi_in}_i {one.spi_out}_o",
            one.suite,
            "",
            "",
            octets(one.bytes_in),
            octets(one.bytes_out),
        )
    return table


@list_.command()
def policies() -> None:
    """Policies that are in place without an SA: traps, and what passes or drops."""
    app = current()
    found = _fetch(app, fetch_policies)
    if app.json:
        app.document("policies", policies=[asdict(one) | {"kind": one.kind} for one in found])
        return
    table = Table("CONNECTION", "CHILD", "KIND", Column("LOCAL", least=12), Column("REMOTE", least=12))
    for one in found:
        table.add(Text(one.conn, style="bold"), one.child, one.kind, " ".join(one.local_ts), " ".join(one.remote_ts))
    _print_or(app, table, "no policies are in place but those of SAs")


def _print_or(app: App, table: Table, nothing: str) -> None:
    """A table; where it would be empty, people are told so."""
    if table.rows:
        table.print(app.out)
    else:
        app.err.print(nothing)


# -- credentials


@list_.command()
@click.option("--expiring", "days", type=Whole(min=0), metavar="DAYS", help="Only those that end so soon.")
def certs(days: int | None) -> None:
    """Certificates and revocation lists, what ends first at the top."""
    app = current()
    found, crls = _fetch(app, fetch_certificates)
    if days is not None:
        found = [one for one in found if one.days_left is not None and one.days_left <= days]
        crls = [one for one in crls if one.days_left is not None and one.days_left <= days]
    if app.json:
        app.document("certs", certs=[asdict(one) for one in found], crls=[asdict(one) for one in crls])
        return
    table = Table(
        Column("SUBJECT", least=20, enough=40),
        "KIND",
        Column("KEY", drop=3),
        Column("ISSUER", least=12, drop=2, enough=30),
        Column("NAMES", least=12, drop=1, enough=24),
        Column("ENDS"),
        Column("LEFT", "right"),
    )
    for one in found:
        kind = "CA" if one.ca else "ours" if one.private_key else "peer"
        table.add(one.subject, kind, one.key, one.issuer, " ".join(one.names), one.not_after[:10], _left(one))
    for crl in crls:
        what = f"{crl.revoked} revoked"
        table.add(crl.issuer, "CRL", what, "", "", (crl.next_update or "")[:10], _left(crl))
    _print_or(app, table, "no certificates are loaded" if days is None else f"none ends within {days} days")


def _named(what: str, name: str, found: Sequence[N]) -> Sequence[N]:
    """Those of a name, all without one. CtlError if there is none of that name."""
    chosen = [one for one in found if name in ("", one.name)]
    if name and not chosen:
        hint = near(name, [one.name for one in found]).removeprefix("; ")
        raise CtlError(f"there is no {what} {name!r}", hint or "there are none", code=ExitCode.UNKNOWN_NAME)
    return chosen


def _left(one: Certificate | Crl) -> Text:
    """Days to its end."""
    if one.days_left is None:
        return Text(one.problem, style="bold red")
    if one.days_left < 0:
        return Text(f"ended {duration(-one.days_left * DAY_S)} ago", style="bold red")
    if isinstance(one, Certificate) and one.early:
        return Text("not yet valid", style="bold red")
    return Text(f"{one.days_left} days", style=WARN if one.days_left < 30 and isinstance(one, Certificate) else "")


@list_.command()
@click.argument("name", required=False, default="")
def authorities(name: str) -> None:
    """Trust anchors that have a name, and where to ask for revocations."""
    app = current()
    found = _named("authority", name, _fetch(app, fetch_authorities))
    if app.json:
        app.document("authorities", authorities=[asdict(one) for one in found])
        return
    table = Table("AUTHORITY", Column("CERTIFICATE", least=20), Column("CRL", drop=1), Column("OCSP", drop=1))
    for one in found:
        table.add(Text(one.name, style="bold"), one.cacert, " ".join(one.crl_uris), " ".join(one.ocsp_uris))
    _print_or(app, table, "no authorities are loaded")


# -- pools, algorithms


@list_.command()
@click.option("--leases", is_flag=True, help="Also who has which address.")
@click.argument("name", required=False, default="")
def pools(name: str, leases: bool) -> None:
    """Pools of virtual addresses, and how many are in use."""
    app = current()
    found = _named("pool", name, _fetch(app, lambda session: fetch_pools(session, leases=leases)))
    if app.json:
        app.document("pools", pools=[asdict(one) for one in found])
        return
    table = Table(
        "POOL", "BASE", Column("SIZE", "right"), Column("ONLINE", "right"), Column("OFFLINE", "right"), "USED"
    )
    for one in found:
        used = f"{100 * (one.online + one.offline) / one.size:.0f} %" if one.size else ""
        numbers = [count(number) for number in (one.size, one.online, one.offline)]
        table.add(Text(one.name, style="bold"), one.base, *numbers, used)
        for lease in one.leases or ():
            style = "" if lease.status == "online" else DIM
            table.note(Text(f"  {lease.address}  {lease.status}  {lease.identity}", style=style))
    _print_or(app, table, "no pools are loaded")


@list_.command()
def algs() -> None:
    """Algorithms that IKE can use, and what provides them."""
    app = current()
    found = _fetch(app, fetch_algorithms)
    if app.json:
        app.document("algs", algs=found)
        return
    table = Table("KIND", "ALGORITHM", "PROVIDER")
    for kind, algorithms in found.items():
        for index, (name, provider) in enumerate(algorithms.items()):
            table.add(Text("" if index else kind, style="bold"), name, provider)
    table.print(app.out)
