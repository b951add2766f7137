"""What a container costs: the scenario site-to-site with its gateways in containers, and as processes without.

    python -m bench.containers [--rounds N] [--seconds N]

Both in turns in the same namespaces, with the image of this checkout and its .venv. Root, podman, iperf3.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from tools.scenarios import file
from tools.scenarios.containers import Containers, Running, podman
from tools.scenarios.lab import Lab, LabError, run
from tools.scenarios.play import make_images, obstacle
from tools.scenarios.steps import VERBS

SCENARIO = "site-to-site"
UP = "CHILD_SA net.* up"
GATEWAYS = ("right", "left")
Figures = dict[str, list[float]]
Gateways = dict[str, Running]
Way = AbstractContextManager[tuple[Gateways, Figures]]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.containers", description="Containers beside processes.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4, help="of each iperf3")
    parser.add_argument("--image", help="instead of this checkout's")
    options = parser.parse_args()
    why = obstacle()
    if why:
        print(f"bench: {why}", file=sys.stderr)
        return 4
    scenario = file.read(SCENARIO, set(VERBS))
    images = {"ipsec": options.image} if options.image else make_images({"ipsec"})
    lab = Lab(scenario)
    containers = Containers(scenario, lab, images)
    figures: dict[str, Figures] = {}
    server = subprocess.Popen(lab.command("server", "iperf3", "-s"), stdout=subprocess.DEVNULL)
    try:
        for number in range(options.rounds):
            ways = [("container", in_containers(containers)), ("process", as_processes(lab, scenario.folder))]
            for name, way in ways if number % 2 else reversed(ways):
                one_round(lab, way, figures.setdefault(name, {}), options.seconds)
    finally:
        containers.close()
        server.terminate()
        server.wait()
        lab.close()
    report(figures)
    return 0


@contextmanager
def in_containers(containers: Containers) -> Iterator[tuple[Gateways, Figures]]:
    """Both gateways up, in containers."""
    figures: Figures = {}
    gateways = {}
    for name in GATEWAYS:
        gateways[name] = containers.start(name)
        gateways[name].wait_line("ready$" if name == "right" else UP, 20)
    _, status = containers.execute("left", ["cat", "/proc/1/status"])
    figures["memory (MiB)"] = [resident(status)]
    yield gateways, figures
    begin = time.monotonic()
    podman("stop", containers.full_name("left"))
    gateways["left"].wait_end(10)
    figures["stop (s)"] = [time.monotonic() - begin]
    podman("stop", containers.full_name("right"))
    gateways["right"].wait_end(10)


@contextmanager
def as_processes(lab: Lab, folder: Path) -> Iterator[tuple[Gateways, Figures]]:
    """Both gateways up, as processes of this machine."""
    figures: Figures = {}
    gateways = {}
    for name in GATEWAYS:
        ipsecd = [sys.executable, "-m", "ipsec", "--config", str(folder / f"{name}.conf")]
        gateways[name] = Running(name, lab.command(name, "env", "IPSEC_VICI_SOCKET=none", *ipsecd))
        gateways[name].wait_line("ready$" if name == "right" else UP, 20)
    figures["memory (MiB)"] = [resident(Path("/proc", str(gateways["left"].process.pid), "status").read_text())]
    yield gateways, figures
    begin = time.monotonic()
    gateways["left"].process.terminate()
    gateways["left"].wait_end(10)
    figures["stop (s)"] = [time.monotonic() - begin]
    gateways["right"].process.terminate()
    gateways["right"].wait_end(10)


def one_round(lab: Lab, way: Way, figures: Figures, seconds: int) -> None:
    """Start, one TCP stream, stop; what was measured goes to ``figures``."""
    with way as (gateways, found):
        up = gateways["left"].lines
        found["start to tunnel up (s)"] = [next(at for at, line in up if "CHILD_SA" in line)]
        found["of that, until the first line (s)"] = [up[0][0]]
        result = run(*lab.command("client", "iperf3", "-c", "10.2.0.10", "-t", str(seconds), "-J"), timeout_s=60)
        found["one TCP stream (Gbit/s)"] = [json.loads(result)["end"]["sum_received"]["bits_per_second"] / 1e9]
    for name, values in found.items():
        figures.setdefault(name, []).extend(values)


def resident(status: str) -> float:
    """VmRSS of a /proc/PID/status in MiB."""
    for line in status.splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise LabError("no VmRSS")


def report(figures: dict[str, Figures]) -> None:
    """Medians and ranges; the ratio of the streams round by round."""
    for name in figures["process"]:
        print(name)
        for way, found in sorted(figures.items()):
            values = found[name]
            print(f"  {way:9}  {statistics.median(values):7.3f}   ({min(values):.3f} to {max(values):.3f})")
    name = "one TCP stream (Gbit/s)"
    ratios = [one / other for one, other in zip(figures["container"][name], figures["process"][name], strict=True)]
    print(f"container / process, median of {len(ratios)} rounds: {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    sys.exit(main())
