"""``ipsecctl status``: one screen that says what is up, what is down and what it carries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import click

from ipsec.ctl import complete
from ipsec.ctl.app import App, Number, Verb, current
from ipsec.ctl.details import print_details
from ipsec.ctl.errors import ExitCode
from ipsec.ctl.names import Target, known
from ipsec.ctl.report import Status, ask
from ipsec.ctl.screen import print_screen
from ipsec.ctl.tunnels import Rate, State, Tunnel
from ipsec.ctl.view import ChildSa

SAMPLE_S = 0.5


@click.command(cls=Verb)
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=complete.names_and_manual)
@click.option(
    "--sample",
    "seconds",
    type=Number(0, 60),
    default=SAMPLE_S,
    metavar="SECONDS",
    help=f"Measure rates for so long; 0 does not, and answers at once. Default: {SAMPLE_S:g}.",
)
@click.option("--all", "everything", is_flag=True, help="Every child, even if that is more than the screen has.")
@click.option("--check", is_flag=True, help=f"End with status {ExitCode.DIFFERS:d} if something wanted is not up.")
def status(names: tuple[str, ...], seconds: float, everything: bool, check: bool) -> int:
    """Every connection: up or down, to whom, and what it carries.

    What is down comes first. Where all is more than the screen, connections that are up take one line each, or are
    only counted; nothing is left out with --all, with NAMEs, or where the output goes to a file.

    \b
    States of connections and their children:
      up           carries traffic
      partly up    some of its children are
      connecting   is being negotiated
      down         is to be up (start_action has start), and is not
      on demand    comes up as soon as there is traffic for it (start_action = trap)
      idle         comes up if somebody asks for it, here or at the peer (start_action = none)
      waiting      its peers begin, for no address of theirs is configured
      policy       passes or drops traffic without an SA, and is in place
      off          such a policy that is not in place
      manual       SAs with fixed keys (section sas)

    With NAMEs (connections and manual SAs, also patterns such as 'site-*') every SA of them is shown in full.

    For --check, what is being negotiated is down: with a peer that is dead, it is connecting most of the time. With
    NAMEs it is not enough that they are idle; of CONNECTION/CHILD only that child counts.
    """
    app = current()
    found, targets = app.run(lambda: _ask(app, names, seconds))
    if app.json:
        app.document("status", **document(found))
    elif names:
        print_details(app, found)
    else:
        print_screen(app, found, everything)
    return ExitCode.DIFFERS if check and _lacking(found, targets) else ExitCode.OK


async def _ask(app: App, names: Sequence[str], seconds: float) -> tuple[Status, list[Target]]:
    """What is shown, and what the names mean besides manual SAs."""
    async with app.session() as session:
        if not names:
            return await ask(session, seconds), []
        # a name that means nothing is told at once, not after the rates are measured
        there = await known(session)
        targets: list[Target] = []
        manual = set()
        for name in names:
            by_name = there.manual_names(name)
            manual |= set(by_name)
            # one name may be that of a connection and of a manual SA
            targets += there.find(name, needed=not by_name)
        found = await ask(session, seconds)
    conns = {target.conn for target in targets}
    found = replace(
        found,
        tunnels=[tunnel for tunnel in found.tunnels if tunnel.name in conns],
        manual=[one for one in found.manual if one.name in manual],
    )
    return found, targets


def _lacking(found: Status, targets: Sequence[Target]) -> bool:
    """What --check is for. What is named may not be idle either; of a named child only that child counts."""
    if not targets:
        return any(tunnel.lacking() for tunnel in found.tunnels)
    tunnels = {tunnel.name: tunnel for tunnel in found.tunnels}
    for target in targets:
        tunnel = tunnels.get(target.conn)
        # it may have gone while the rates were measured
        if tunnel is None or tunnel.idle(target.child) or (not target.child and tunnel.lacking()):
            return True
    return False


# -- for programs


def document(found: Status) -> dict[str, Any]:
    """What --json prints."""
    states = Counter(tunnel.state for tunnel in found.tunnels)
    return {
        "daemon": {
            "name": found.daemon,
            "version": found.version,
            "running": found.running,
            "problems": found.ailments,
            "data_path": asdict(found.data_path) if found.data_path else None,
        },
        "summary": {state.name.lower(): states[state] for state in State},
        "connections": [_connection(found, tunnel) for tunnel in found.tunnels],
        "manual_sas": [asdict(one) | _rates(found, found.manual_rates.get(one.name, Rate())) for one in found.manual],
    }


def _connection(found: Status, tunnel: Tunnel) -> dict[str, Any]:
    conn = tunnel.conn
    return {
        "name": tunnel.name,
        "state": tunnel.state.name.lower(),
        "configured": conn is not None,
        "peer": tunnel.peer,
        "peer_id": tunnel.peer_id,
        "children": [
            {
                "name": child.name,
                "state": child.state.name.lower(),
                "mode": child.mode,
                "local_ts": child.local_ts,
                "remote_ts": child.remote_ts,
                "sas": [sa.id for sa in child.sas],
                **_traffic(found, child.sas),
            }
            for child in tunnel.children
        ],
        "ike_sas": [
            asdict(sa)
            | {
                "children": [
                    asdict(child) | _traffic(found, (child,)) | {"drops": found.dropped(sa, child)}
                    for child in sa.children
                ]
            }
            for sa in tunnel.sas
        ],
        "problems": [asdict(one) for one in found.problems.get(tunnel.name, ())],
    }


def _traffic(found: Status, sas: Sequence[ChildSa]) -> dict[str, Any]:
    return _rates(found, found.rate(sas))


def _rates(found: Status, rate: Rate) -> dict[str, Any]:
    return {
        "bits_in_per_s": round(rate.bits_in) if found.sampled else None,
        "bits_out_per_s": round(rate.bits_out) if found.sampled else None,
        "packets_in_per_s": round(rate.packets_in) if found.sampled else None,
        "packets_out_per_s": round(rate.packets_out) if found.sampled else None,
    }
