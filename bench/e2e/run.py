"""The end-to-end part of a run."""

from __future__ import annotations

from bench.e2e import measure
from bench.e2e.measure import MEASUREMENTS, Measurement, Tunnel
from bench.e2e.peers import NotInstalled
from bench.e2e.plan import KERNEL_PEERS, TUNNEL_S, Panel, chosen, turns
from bench.e2e.tunnels import make_peer
from bench.session import Session
from bench.topology import Lab, LabError

NAMES = frozenset(MEASUREMENTS)


def run(session: Session, lab: Lab) -> None:
    """Every panel of the plan, one after the other."""
    for panel in chosen(session.options):
        session.heading(f"end to end: {panel.title}")
        tunnels = _open(session, lab, panel)
        try:
            for number, measurement, names in turns(panel, session.options.rounds):
                here = [tunnels[name] for name in names if name in tunnels]
                if measurement.together:
                    _take_together(session, here, panel.name)
                    continue
                for tunnel in here:
                    _take(session, lab, tunnel, measurement, number, panel.name)
        finally:
            for tunnel in tunnels.values():
                measure.close_tunnel(lab, tunnel)


def _open(session: Session, lab: Lab, panel: Panel) -> dict[str, Tunnel]:
    tunnels: dict[str, Tunnel] = {}
    for name in panel.tunnels:
        peer = make_peer(name, session.options.settings)
        try:
            with session.step(f"starting {peer.title}", TUNNEL_S):
                tunnels[name] = measure.open_tunnel(lab, peer)
                measure.warm_up(tunnels[name])
        except LabError as error:
            if isinstance(error, NotInstalled):
                session.skip(str(error))
            else:
                session.fail(f"{name}: {error}")
            if name not in KERNEL_PEERS:
                session.skip_ahead(_measuring_s(session, panel, name))
            continue
        session.results.subjects[name] = {
            "title": peer.title,
            "facts": {"cipher_suite": peer.cipher} | peer.facts,
            "commands": peer.commands,
        }
    return tunnels


def _measuring_s(session: Session, panel: Panel, tunnel: str) -> float:
    """What was planned for a tunnel that is not there."""
    options = session.options
    return sum(
        measurement.costs_s(options.seconds)
        for _, measurement, tunnels in turns(panel, options.rounds)
        if tunnel in tunnels and not measurement.together
    )


def _take(session: Session, lab: Lab, tunnel: Tunnel, measurement: Measurement, number: int, panel: str) -> None:
    seconds = session.options.seconds
    what = f"{measurement.name} {tunnel.peer.name}"
    try:
        with session.step(what, measurement.costs_s(seconds)):
            readings = measurement.take(lab, tunnel, seconds)
    except LabError as error:
        session.fail(f"{what} round {number + 1}: {error}")
        return
    for metric, sample, params in readings:
        session.add(metric, tunnel.peer.name, sample, panel=panel, **params)


def _take_together(session: Session, tunnels: list[Tunnel], panel: str) -> None:
    measurement = MEASUREMENTS["idle"]
    seconds = max(session.options.seconds, 3.0)
    with session.step("idle", measurement.costs_s(seconds)):
        samples = measure.idle([tunnel for tunnel in tunnels if tunnel.peer.gateways], seconds)
    for name, sample in samples.items():
        session.add(measure.IDLE, name, sample, panel=panel)
