"""What a step of a scenario can do and check: each verb of scenario.toml is a function here."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any

from tools.scenarios.containers import Containers, podman
from tools.scenarios.lab import Lab, LabError
from tools.scenarios.model import Scenario

WITHIN_S = 20.0
#: between two tries of what nothing announces
PAUSE_S = 0.1
FETCH = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1], timeout=2).read().decode())"


@dataclass
class World:
    """A scenario that runs."""

    scenario: Scenario
    lab: Lab
    containers: Containers


def start(world: World, names: str | list[str]) -> None:
    """``start = ["NAME"]``: run containers."""
    for name in [names] if isinstance(names, str) else names:
        world.containers.start(name)


def write(world: World, file: str, text: str) -> None:
    """``write = { file = "FOLDER/NAME", text = "..." }``: put or replace a file in {scratch}, at once."""
    path = world.containers.scratch / file
    path.parent.mkdir(exist_ok=True)
    new = path.with_name(f"{path.name}.new")
    new.write_text(text)
    new.replace(path)


def log(world: World, of: str, says: str | list[str], within: float = WITHIN_S) -> None:
    """``log = { of = "NAME", says = "REGEX" }``: wait for a line, or for several one after the other."""
    for pattern in [says] if isinstance(says, str) else says:
        world.containers.get(of).wait_line(pattern, within)


def never(world: World, of: str, says: str) -> None:
    """``never = { of = "NAME", says = "REGEX" }``: its last run has no such line."""
    found = re.search(says, world.containers.get(of).text)
    if found:
        raise LabError(f"{of} said {found[0]!r}")


def ends(world: World, of: str, status: int, says: str | list[str] = "", within: float = WITHIN_S) -> None:
    """``ends = { of = "NAME", status = N, says = ["REGEX"] }``: it ends by itself, and its output has that."""
    running = world.containers.get(of)
    found = running.wait_end(within)
    if found != status:
        raise LabError(f"{of}: exit status {found}, not {status}")
    for pattern in [says] if isinstance(says, str) else says:
        if not re.search(pattern, running.text):
            raise LabError(f"{of} did not say {pattern!r}")


def stop(world: World, name: str) -> None:
    """``stop = "NAME"``: SIGTERM, as a runtime stops a container; it has to end with status 0 without being killed."""
    running = world.containers.get(name)
    podman("stop", "-t", "8", world.containers.full_name(name))
    status = running.wait_end(10)
    if status:
        raise LabError(f"{name}: exit status {status} after SIGTERM")


def signal(world: World, of: str, name: str) -> None:
    """``signal = { of = "NAME", name = "HUP" }``."""
    done = podman("kill", "-s", name, world.containers.full_name(of))
    if done.returncode:
        raise LabError(done.stderr)


def kill(world: World, name: str) -> None:
    """``kill = "NAME"``: SIGKILL."""
    signal(world, name, "KILL")
    world.containers.get(name).wait_end(10)


def execute(world: World, of: str, command: list[str], prints: str = "", status: int | None = 0) -> None:
    """``execute = { of = "NAME", command = [...], prints = "REGEX", status = 0 }``: a command in a container."""
    found, output = world.containers.execute(of, command)
    if status is not None and found != status:
        raise LabError(f"{' '.join(command)} in {of}: exit status {found}\n{output}")
    if not re.search(prints, output):
        raise LabError(f"{' '.join(command)} in {of} did not print {prints!r} but\n{output}")


def probe(world: World, of: str, kind: str, good: bool = True) -> None:
    """``probe = { of = "NAME", kind = "livenessProbe" }``: what the kubelet or Docker would ask."""
    asked = world.scenario.containers[of].probes[kind]
    if "exec" in asked:
        command = asked["exec"]["command"]
    else:
        port = world.scenario.containers[of].ports[asked["httpGet"]["port"]]
        command = ["python3", "-c", FETCH, f"http://127.0.0.1:{port}{asked['httpGet']['path']}"]
    status, output = world.containers.execute(of, command)
    if (status == 0) != good:
        raise LabError(f"{kind} of {of}: exit status {status}, {output}")


def run(world: World, on: str, command: list[str], prints: str = "", within: float = 0) -> None:
    """``run = { on = "NODE", command = [...], prints = "REGEX" }``: a command of this machine in a node."""

    def attempt() -> None:
        done = subprocess.run(world.lab.command(on, *command), capture_output=True, text=True, check=False)
        if done.returncode or not re.search(prints, done.stdout):
            said = f"{done.stdout}{done.stderr}"
            raise LabError(f"{' '.join(command)} on {on} printed, with status {done.returncode}\n{said}")

    _eventually(attempt, within)


def ping(world: World, on: str, to: str, size: int = 56, within: float = WITHIN_S) -> None:
    """``ping = { on = "NODE", to = "ADDRESS" }``: there is an answer."""
    command = world.lab.command(on, "ping", "-n", "-c1", "-W1", "-M", "do", "-s", str(size), to)

    def attempt() -> None:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise LabError(f"no answer from {to} at {on}: {done.stdout}{done.stderr}")

    _eventually(attempt, within)


def no_ping(world: World, on: str, to: str) -> None:
    """``no_ping = { on = "NODE", to = "ADDRESS" }``: three requests have no answer."""
    command = world.lab.command(on, "ping", "-n", "-c3", "-i0.2", "-W1", to)
    if subprocess.run(command, capture_output=True, check=False).returncode == 0:
        raise LabError(f"{to} answers at {on}")


def fetch(world: World, of: str, url: str, prints: str = "", within: float = WITHIN_S) -> None:
    """``fetch = { of = "NAME", url = "http://..." }``: HTTP from inside a container."""
    _eventually(lambda: execute(world, of, ["python3", "-c", FETCH, url], prints), within)


def no_fetch(world: World, of: str, url: str) -> None:
    """``no_fetch = { of = "NAME", url = "http://..." }``: it cannot be reached from inside a container."""
    status, output = world.containers.execute(of, ["python3", "-c", FETCH, url])
    if status == 0:
        raise LabError(f"{url} can be reached from {of}: {output}")


def unplug(world: World, node: str, wire: str) -> None:
    """``unplug = { node = "NODE", wire = "WIRE" }``."""
    world.lab.plug(node, wire, up=False)


def plug(world: World, node: str, wire: str) -> None:
    """``plug = { node = "NODE", wire = "WIRE" }``."""
    world.lab.plug(node, wire, up=True)


def wire(world: World, name: str, never: str | list[str], esp: bool = True) -> None:
    """``wire = { name = "WIRE", never = "NETWORK" }``: since the last look there was ESP, and nothing of NETWORK."""
    nets = [ip_network(net) for net in ([never] if isinstance(never, str) else never)]
    sealed, clear = world.lab.captured(name, nets)
    if clear:
        raise LabError(f"in clear on {name}: {'; '.join(clear[:5])}")
    if esp and not sealed:
        raise LabError(f"no ESP on {name}")


def _eventually(attempt: Callable[[], None], within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while True:
        try:
            return attempt()
        except LabError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(PAUSE_S)


VERBS: dict[str, Callable[..., None]] = {
    function.__name__: function
    for function in (
        *(start, write, log, never, ends, stop, signal, kill, execute, probe, run, ping, no_ping, fetch, no_fetch),
        *(unplug, plug, wire),
    )
}


def act(world: World, verb: str, arguments: Any) -> None:
    """Do what one entry of a step says. LabError."""
    if isinstance(arguments, dict):
        VERBS[verb](world, **arguments)
    else:
        VERBS[verb](world, arguments)
