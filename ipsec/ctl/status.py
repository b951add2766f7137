"""``ipsecctl status``: one screen that says what is up, what is down and what it carries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import click

from ipsec.ctl import complete
from ipsec.ctl.app import App, Verb, current
from ipsec.ctl.details import print_details
from ipsec.ctl.errors import ExitCode
from ipsec.ctl.names import Known
from ipsec.ctl.report import Status, ask
from ipsec.ctl.screen import print_screen
from ipsec.ctl.tunnels import TROUBLE, State, Tunnel
from ipsec.ctl.view import ChildSa

SAMPLE_S = 0.5


@click.command(cls=Verb)
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=complete.names)
@click.option(
    "--sample",
    "seconds",
    type=click.FloatRange(0, 60),
    default=SAMPLE_S,
    metavar="SECONDS",
    help=f"Measure rates for so long; 0 does not, and answers at once. Default: {SAMPLE_S:g}.",
)
@click.option("--all", "everything", is_flag=True, help="Every child, even if that is more than the screen has.")
@click.option("--check", is_flag=True, help=f"End with status {ExitCode.DIFFERS:d} if something is down.")
def status(names: tuple[str, ...], seconds: float, everything: bool, check: bool) -> int:
    """Every connection: up or down, to whom, and what it carries.

    What is down comes first. Where all is more than the screen, connections that are up take one line each, or are
    only counted; nothing is left out with --all, with NAMEs, or where the output goes to a file.

    \b
    States of connections and their children:
      up           carries traffic
      partly up    some of its children are
      connecting   is being negotiated
      down         is configured, and is not up
      on demand    comes up as soon as there is traffic for it (start_action = trap)
      waiting      its peers begin, for no address of theirs is configured
      policy       passes or drops traffic without an SA, and is in place
      off          such a policy that is not in place

    With NAMEs (connections, also patterns such as 'site-*') every SA of them is shown in full.
    """
    app = current()
    found = app.run(lambda: _ask(app, names, seconds))
    if app.json:
        app.document("status", **document(found))
    elif names:
        print_details(app, found)
    else:
        print_screen(app, found, everything)
    return ExitCode.DIFFERS if check and any(tunnel.state in TROUBLE for tunnel in found.tunnels) else ExitCode.OK


async def _ask(app: App, names: Sequence[str], seconds: float) -> Status:
    async with app.session() as session:
        found = await ask(session, seconds)
    if not names:
        return found
    known = Known(
        tuple(tunnel.conn for tunnel in found.tunnels if tunnel.conn),
        tuple(sa for tunnel in found.tunnels for sa in tunnel.sas),
    )
    wanted = {target.conn for name in names for target in known.find(name)}
    return replace(found, tunnels=[tunnel for tunnel in found.tunnels if tunnel.name in wanted])


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
    rate = found.rate(sas)
    return {
        "bits_in_per_s": round(rate.bits_in) if found.sampled else None,
        "bits_out_per_s": round(rate.bits_out) if found.sampled else None,
        "packets_in_per_s": round(rate.packets_in) if found.sampled else None,
        "packets_out_per_s": round(rate.packets_out) if found.sampled else None,
    }
