"""All tunnels on one screen: ``ipsecctl status``."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence

from rich.text import Text

from ipsec.ctl.app import App
from ipsec.ctl.output import BAD, DIM, GOOD, WARN, Column, Table, bits, count, duration
from ipsec.ctl.report import STYLES, Status
from ipsec.ctl.tunnels import TROUBLE, Child, Rate, State, Tunnel
from ipsec.ctl.view import ChildSa, DataPath, IkeSa, ManualSa, Problem
from ipsec.text import plural

#: lines besides the summary and the table's rows: titles, what is not shown, the prompt, two empty ones
LINES_AROUND = 5


def print_screen(app: App, found: Status, everything: bool) -> None:
    """Print it; ``everything`` even if that is more than the screen has."""
    out = app.out
    heading = _heading(found)
    for line in heading:
        out.print(line)
    tunnels = sorted(found.tunnels, key=lambda tunnel: tunnel.state not in TROUBLE)
    if not tunnels and not found.manual:
        out.print("No connections are loaded: see `ipsecctl load` and `ipsecctl reload`.")
        return
    room = None
    if out.is_terminal and not everything:
        room = out.height - LINES_AROUND - sum(-(-line.cell_len // out.width) for line in heading)
    table, left = _table(found, tunnels, room)
    out.print()
    table.print(out)
    manual = found.manual if room is not None and len(tunnels) + len(found.manual) > room else ()
    if left or manual:
        states = Counter(tunnel.state for tunnel in left)
        parts = [f"{states[state]} {state.value}" for state in State if states[state]]
        more = ", ".join([*parts, *([plural(len(manual), "manual SA")] if manual else [])])
        out.print()
        out.print(Text(f"not shown: {more} (ipsecctl status --all, or name them)", style=DIM))


def _heading(found: Status) -> list[Text]:
    """What there is in all: tunnels, traffic, drops, and what is wrong with the daemon itself."""
    states = Counter(tunnel.state for tunnel in found.tunnels)
    parts = [Text(f"{found.daemon} {found.version}", style="bold"), Text(f"running {found.running}")]
    if found.tunnels or not found.manual:
        parts.append(Text(plural(len(found.tunnels), "connection")))
    parts += [Text(f"{states[state]} {state.value}", style=STYLES[state]) for state in State if states[state]]
    if found.manual:
        parts.append(Text(plural(len(found.manual), "manual SA")))
    if found.rates or found.manual_rates:
        rate = found.total()
        parts.append(Text(f"in {bits(rate.bits_in)}, out {bits(rate.bits_out)}"))
    lines = [Text(" | ", style=DIM).join(parts)]
    if found.data_path is not None:
        lines.append(Text(" | ", style=DIM).join(_data_path(found.data_path)))
    return lines + [Text(f"! {ailment}", style=BAD) for ailment in found.ailments]


def _data_path(path: DataPath) -> list[Text]:
    parts = [Text(f"{path.device}, MTU {path.mtu}"), Text(plural(path.workers, "worker"))]
    if off := [name for name, used in path.offloads.items() if not used]:
        parts.append(Text(f"without {', '.join(off)}", style=WARN))
    if path.drops:
        parts.append(Text(f"dropped since the start: {reasons(path.drops)}"))
    return parts


def reasons(drops: dict[str, int]) -> str:
    """``IN_STATE_SEQ_ERROR 12, OUT_NO_POLS 1``: the most frequent first."""
    return ", ".join(f"{reason} {count(drops[reason])}" for reason in sorted(drops, key=lambda one: -drops[one]))


def _table(found: Status, tunnels: Sequence[Tunnel], room: int | None) -> tuple[Table, list[Tunnel]]:
    """The table, in as much detail as there are lines for; and what has no place in it."""
    lines = room if room is not None else sys.maxsize
    # where the screen is small, connections, which can be down, come first
    manual = found.manual if len(tunnels) + len(found.manual) <= lines else ()
    lines -= len(manual)
    shown, left = list(tunnels), []
    if len(tunnels) > lines:
        ranked = sorted(tunnels, key=lambda tunnel: (tunnel.state not in TROUBLE, -_weight(found, tunnel)))
        kept = {tunnel.name for tunnel in ranked[: max(lines, 1)]}
        shown = [tunnel for tunnel in tunnels if tunnel.name in kept]
        left = [tunnel for tunnel in tunnels if tunnel.name not in kept]
    # a line for each; then why they are not up; then the children, first where not all of them are up
    spare = max(lines - len(shown), 0)
    notes = {tunnel.name: note for tunnel in shown if (note := _note(found.problem(tunnel)))}
    notes = dict(list(notes.items())[:spare])
    spare -= len(notes)
    whole = set()
    for tunnel in sorted(shown, key=lambda tunnel: (tunnel.state is not State.PARTLY, tunnel.state not in TROUBLE)):
        if _lines(tunnel) <= spare:
            whole.add(tunnel.name)
            spare -= _lines(tunnel)
    table = _new_table()
    for tunnel in shown:
        _add_connection(table, found, tunnel)
        if tunnel.name in whole:
            _add_children(table, found, tunnel)
        if tunnel.name in notes:
            table.note(notes[tunnel.name])
    for one in manual:
        _add_manual(table, found, one)
    return table, left


def _note(problem: Problem | None) -> Text | None:
    """Why a connection is not up."""
    if problem is None:
        return None
    ago = f"{duration(problem.ago_s)} ago" if problem.ago_s is not None else problem.at
    often = f", {problem.count} times" if problem.count > 1 else ""
    child = f"{problem.child}: " if problem.child else ""
    return Text.assemble(("  ! ", BAD), (f"{ago}{often}: ", DIM), f"{child}{problem.reason}")


def _lines(tunnel: Tunnel) -> int:
    """How many lines ``_add_children`` adds."""
    if len(tunnel.sas) > 1:
        return sum(1 + len(sa.children) for sa in tunnel.sas) + len(_without_sas(tunnel))
    return len(tunnel.children)


def _without_sas(tunnel: Tunnel) -> list[Child]:
    """Children that nobody has an SA of."""
    return [child for child in tunnel.children if not child.sas]


def _weight(found: Status, tunnel: Tunnel) -> float:
    rate = found.rate(tunnel.child_sas())
    return rate.bits_in + rate.bits_out + (0.5 if tunnel.state is State.UP else 0)


def _new_table() -> Table:
    return Table(
        Column("CONNECTION", least=16, enough=24),
        "STATE",
        Column("PEER, NETWORKS", least=20, enough=36),
        Column("SUITE", drop=3),
        Column("AGE", "right", drop=2),
        Column("REKEY", "right", drop=4),
        Column("IN", "right", drop=1),
        Column("OUT", "right", drop=1),
        Column("DROPS", "right", drop=1),
    )


def _add_connection(table: Table, found: Status, tunnel: Tunnel) -> None:
    style = STYLES[tunnel.state]
    if tunnel.state is State.PARTLY and not any(child.state is State.UP for child in tunnel.children):
        style = BAD
    sa = tunnel.sas[0] if len(tunnel.sas) == 1 else None
    peer = " ".join(part for part in (tunnel.peer, tunnel.peer_id) if part) or "anybody"
    if len(tunnel.sas) > 1:
        peer = plural(len(tunnel.sas), "peer" if tunnel.conn is None or tunnel.conn.passive else "IKE_SA")
    name = tunnel.name if tunnel.conn else f"{tunnel.name} (not configured)"
    rate = found.rate(tunnel.child_sas())
    table.add(
        Text(name, style=BAD if tunnel.state is State.DOWN else "bold"),
        Text(state_of(tunnel), style=style),
        peer,
        f"{sa.suite.cipher} {sa.suite.ke}" if sa and sa.up else "",
        duration(sa.age_s) if sa else "",
        duration(_next(sa)) if sa else "",
        *(_both(rate) if found.sampled and tunnel.child_sas() else ("", "")),
        _dropped(found, [(one, child) for one in tunnel.sas for child in one.children]),
    )


def state_of(tunnel: Tunnel) -> str:
    """``up``, or ``2 of 3 up``."""
    if tunnel.state is not State.PARTLY:
        return str(tunnel.state.value)
    mine = [child for child in tunnel.children if child.state not in (State.SHUNT, State.OFF)]
    return f"{sum(child.state is State.UP for child in mine)} of {len(mine)} up"


def _next(sa: IkeSa) -> int | None:
    """Seconds until it gets new keys, one way or the other."""
    times = [one for one in (sa.rekey_in_s, sa.reauth_in_s) if one is not None]
    return min(times) if times else None


def _add_children(table: Table, found: Status, tunnel: Tunnel) -> None:
    if len(tunnel.sas) > 1:
        for sa in tunnel.sas:
            _add_peer(table, found, sa)
    for child in tunnel.children if len(tunnel.sas) <= 1 else _without_sas(tunnel):
        _add_child(table, found, tunnel, child)


def _add_peer(table: Table, found: Status, sa: IkeSa) -> None:
    """One of the peers of a connection that has many."""
    where = " ".join((sa.remote_host, sa.remote_id, *sa.remote_vips))
    state = State.UP if sa.up else State.CONNECTING if sa.state in ("CREATED", "CONNECTING") else None
    table.add(
        Text(f"  [{sa.id}]"),
        Text(state.value, style=STYLES[state]) if state else Text(sa.state.lower(), style=DIM),
        where,
        sa.suite.cipher,
        duration(sa.age_s),
        duration(_next(sa)),
    )
    for child in sa.children:
        _add_sa(table, found, sa, child, f"    {child.name}")


def _add_sa(table: Table, found: Status, ike: IkeSa, sa: ChildSa, name: str) -> None:
    table.add(
        Text(name),
        Text("up", style=GOOD) if sa.up else Text(sa.state.lower(), style=WARN),
        networks(sa.local_ts, sa.remote_ts),
        sa.suite.cipher,
        duration(sa.age_s),
        duration(sa.rekey_in_s),
        *(_both(found.rate((sa,))) if found.sampled else ("", "")),
        _dropped(found, [(ike, sa)]),
    )


def _add_child(table: Table, found: Status, tunnel: Tunnel, child: Child) -> None:
    live = [sa for sa in child.sas if sa.state != "REKEYED"]
    if len(live) == 1 and live[0].up:
        _add_sa(table, found, tunnel.sas[0], live[0], f"  {child.name}")
        return
    style = STYLES[child.state]
    several = f" ({len(child.sas)} SAs)" if len(child.sas) > 1 else ""
    table.add(
        Text(f"  {child.name}{several}", style=BAD if child.state is State.DOWN else ""),
        Text(child.state.value, style=style),
        Text(networks(child.local_ts, child.remote_ts), style=DIM if child.state is not State.UP else ""),
        *((child.mode.lower(),) if child.state in (State.SHUNT, State.OFF) else ()),
    )


def _add_manual(table: Table, found: Status, sa: ManualSa) -> None:
    rate = found.manual_rates.get(sa.name)
    dropped = sum(sa.drops.values())
    table.add(
        Text(sa.name, style="bold"),
        Text("manual", style=GOOD),
        f"{sa.remote_host} {networks(sa.local_ts, sa.remote_ts)}",
        sa.suite,
        "",
        "",
        *(_both(rate) if rate is not None else ("", "")),
        Text(count(dropped), style=WARN) if dropped else "",
    )


def networks(local: Sequence[str], remote: Sequence[str]) -> str:
    """Selectors of both sides: ``10.1.0.0/16 === 10.2.0.0/16``."""
    return f"{' '.join(local)} === {' '.join(remote)}"


def _both(rate: Rate) -> tuple[Text, Text]:
    def one(value: float) -> Text:
        return Text(bits(value)) if value >= 1 else Text("0", style=DIM)

    return one(rate.bits_in), one(rate.bits_out)


def _dropped(found: Status, sas: Sequence[tuple[IkeSa, ChildSa]]) -> Text:
    """Packets that SAs have dropped; nothing if there are none, or the daemon does not tell."""
    total = sum(sum((found.dropped(ike, child) or {}).values()) for ike, child in sas)
    return Text(count(total), style=WARN) if total else Text()
