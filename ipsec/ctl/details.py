"""Everything about a few tunnels: ``ipsecctl status NAME``."""

from __future__ import annotations

from rich.text import Text

from ipsec.ctl.app import App
from ipsec.ctl.output import BAD, DIM, GOOD, WARN, Column, Table, bits, count, duration, endpoint, octets
from ipsec.ctl.report import STYLES, Status
from ipsec.ctl.screen import networks, reasons, state_of
from ipsec.ctl.tunnels import Rate, Tunnel
from ipsec.ctl.view import IkeSa, ManualSa, Problem


def print_details(app: App, found: Status) -> None:
    """Print it."""
    for index, tunnel in enumerate(found.tunnels):
        if index:
            app.out.print()
        _head(app, tunnel)
        for sa in tunnel.sas:
            _print_ike_sa(app, found, sa)
        idle = [child for child in tunnel.children if not child.sas]
        for child in idle:
            line = Text.assemble("  ", (child.name, "bold"), " ", (child.state.value, STYLES[child.state]))
            app.out.print(line.append(f"  {networks(child.local_ts, child.remote_ts)}"))
        for problem in found.problems.get(tunnel.name, ()):
            _print_problem(app, problem)
    for index, one in enumerate(found.manual):
        if index or found.tunnels:
            app.out.print()
        _print_manual(app, found, one)


def _print_manual(app: App, found: Status, sa: ManualSa) -> None:
    rate, sampled = found.manual_rates.get(sa.name, Rate()), sa.name in found.manual_rates
    line = Text.assemble((sa.name, "bold"), " ", ("manual", GOOD))
    app.out.print(line.append(f"  {sa.local_host} ... {sa.remote_host}"))
    way = f"ESP in UDP, port {sa.remote_port}" if sa.remote_port else "ESP"
    _pairs(
        ("networks", networks(sa.local_ts, sa.remote_ts)),
        ("suite", f"{sa.suite}{', ESN' if sa.esn else ''}, {sa.mode.lower()}, {way}"),
        ("SPIs", f"{sa.spi_in}_i {sa.spi_out}_o"),
        ("in", f"{_flow(sa.bytes_in, sa.packets_in, sa.idle_in_s, rate.bits_in, sampled)}, number {sa.number_in}"),
        (
            "out",
            f"{_flow(sa.bytes_out, sa.packets_out, sa.idle_out_s, rate.bits_out, sampled)}, number {sa.number_out}",
        ),
        ("dropped", reasons(sa.drops)),
    ).print(app.out)


def _print_problem(app: App, problem: Problem) -> None:
    ago = f"{duration(problem.ago_s)} ago" if problem.ago_s is not None else problem.at
    often = f", {problem.count} times in a row" if problem.count > 1 else ""
    over = ", over" if problem.over else ""
    line = Text.assemble(("  ! ", DIM if problem.over else BAD), (f"{ago}{often}{over}: ", DIM))
    app.out.print(line.append(f"{problem.child}: " if problem.child else "").append(problem.reason))


def _head(app: App, tunnel: Tunnel) -> None:
    line = Text.assemble((tunnel.name, "bold"), " ", (state_of(tunnel), STYLES[tunnel.state]))
    if tunnel.conn is None:
        line.append("  not configured any more", style=WARN)
    else:
        local = ", ".join(dict.fromkeys(auth.id or auth.method for auth in tunnel.conn.local))
        remote = ", ".join(dict.fromkeys(auth.id or auth.method for auth in tunnel.conn.remote))
        addrs = [", ".join(one) or "%any" for one in (tunnel.conn.local_addrs, tunnel.conn.remote_addrs)]
        line.append(f"  {addrs[0]} [{local}] ... {addrs[1]} [{remote}]")
    app.out.print(line)


def _print_ike_sa(app: App, found: Status, sa: IkeSa) -> None:
    local = f"{endpoint(sa.local_host, sa.local_port)} [{sa.local_id}]"
    remote = f"{endpoint(sa.remote_host, sa.remote_port)} [{sa.remote_id}]"
    nat = [side for side, there in (("us", sa.nat_local), ("the peer", sa.nat_remote)) if there]
    table = _pairs(
        ("ends", f"{local} ... {remote}"),
        ("role", f"{'initiator' if sa.initiator else 'responder'}, IKEv{sa.version}"),
        ("suite", f"{sa.suite}{', postquantum preshared key' if sa.ppk else ''}"),
        ("SPIs", f"{sa.spi_i}_i {sa.spi_r}_r"),
        ("replaced", "the connection has another peer now" if sa.replaced else ""),
        ("age", duration(sa.age_s)),
        ("rekeying", f"in {duration(sa.rekey_in_s)}" if sa.rekey_in_s is not None else ""),
        ("authenticating anew", f"in {duration(sa.reauth_in_s)}" if sa.reauth_in_s is not None else ""),
        ("NAT before", f"{' and '.join(nat)}{', or pretended as by us' if nat and sa.nat_fake else ''}"),
        ("our addresses", ", ".join(sa.local_vips)),
        ("the peer's addresses", ", ".join(sa.remote_vips)),
        ("tasks", ", ".join(sa.tasks)),
    )
    app.out.print(Text.assemble("  ", (f"{sa.name}[{sa.id}]", "bold"), f" {sa.state}"))
    table.print(app.out)
    for child in sa.children:
        rate = found.rate((child,))
        app.out.print(Text.assemble("    ", (f"{child.name}{{{child.id}}}", "bold"), f" {child.state}"))
        _pairs(
            ("networks", networks(child.local_ts, child.remote_ts)),
            ("suite", f"{child.suite}, {child.mode.lower()}, {child.protocol}{' in UDP' if child.encap else ''}"),
            ("SPIs", f"{child.spi_in}_i {child.spi_out}_o, reqid {child.reqid}"),
            ("in", _flow(child.bytes_in, child.packets_in, child.idle_in_s, rate.bits_in, found.sampled)),
            ("out", _flow(child.bytes_out, child.packets_out, child.idle_out_s, rate.bits_out, found.sampled)),
            ("dropped", reasons(found.dropped(sa, child) or {})),
            ("age", duration(child.age_s)),
            ("rekeying", f"in {duration(child.rekey_in_s)}" if child.rekey_in_s is not None else ""),
            ("end", f"in {duration(child.expires_in_s)}" if child.expires_in_s is not None else ""),
            indent=6,
        ).print(app.out)


def _pairs(*pairs: tuple[str, str], indent: int = 4) -> Table:
    """Names and values, those that there are."""
    table = Table(Column(""), Column(""), heads=False)
    for name, value in pairs:
        if value:
            table.add(Text(" " * indent + name, style=DIM), value)
    return table


def _flow(total: int, packets: int, idle: int | None, rate: float, sampled: bool) -> str:
    parts = [octets(total), f"{count(packets)} packets"]
    if sampled:
        parts.append(bits(rate))
    parts.append(f"last {duration(idle)} ago" if idle is not None else "none yet" if not packets else "")
    return ", ".join(part for part in parts if part)
