"""What the tunnels under test have in common: each brings up both ends and names the processes that carry packets."""

from __future__ import annotations

import subprocess
import tempfile
from abc import ABC, abstractmethod
from pathlib import Path

from bench.topology import DEVICE, Lab, LabError, Link, Pair, reachable

GCM = "aes128gcm16"
START_TIMEOUT_S = 15.0


class NotInstalled(LabError):
    """A peer that this machine does not have; ``str()`` says how to get it."""

    def __init__(self, title: str, *packages: str, why: str = "not installed") -> None:
        remedy = f"; apt-get install --no-install-recommends {' '.join(packages)}" if packages else ""
        super().__init__(f"{title}: {why}{remedy}")


class Peer(ABC):
    """One kind of tunnel, up from ``start`` until the lab closes."""

    def __init__(self, name: str, title: str, cipher: str, link: Link | None = None) -> None:
        self.name = name
        self.title = title
        self.cipher = cipher
        self.link = link or Link()
        self.gateways: list[subprocess.Popen[str]] = []
        "the processes that carry the packets, end a first; empty if the kernel does"
        self.commands: list[str] = []
        "what was started, for the record"
        self.directory = Path()
        "for configurations and logs"
        self.facts: dict[str, str] = {}
        "version, algorithm and settings, for the record"

    def start(self, lab: Lab) -> Pair:
        """Bring the tunnel up; returns when a ping has gone through it. NotInstalled, LabError."""
        pair = lab.pair(self.name, self.link)
        # a tunnel of one name may be in several panels
        directory = self.directory = Path(tempfile.mkdtemp(prefix=f"{self.name}-", dir=lab.scratch))
        try:
            self._start(lab, pair, directory)
            for _ in range(5):
                if reachable(pair):
                    return pair
        except LabError:
            lab.remove(pair)
            raise
        self.gateways.clear()
        ends = [f"--- {log.name}\n{log.read_text(errors='replace')[-1500:]}" for log in sorted(directory.glob("*.log"))]
        lab.remove(pair)
        raise LabError("\n".join([f"{self.title}: up, but no ping goes through", *ends]))

    @abstractmethod
    def _start(self, lab: Lab, pair: Pair, directory: Path) -> None:
        """Start both ends and wait until they say they are ready."""

    def route(self, pair: Pair, device: str) -> None:
        """Send what is for the other network into ``device``, at both ends."""
        for end, here, there in zip(pair.ends, (0, 1), (1, 0), strict=True):
            end.run("ip", "route", "add", pair.link.inner_net[there], "dev", device,
                    "src", pair.link.gateway_inner[here])  # fmt: skip


class PlainVeth(Peer):
    """No tunnel: what the machine, the kernel and the load generator give at best."""

    def _start(self, lab: Lab, pair: Pair, directory: Path) -> None:
        link = pair.link
        for end, here, there in zip(pair.ends, (0, 1), (1, 0), strict=True):
            end.run("ip", "route", "add", link.inner_net[there], "via", link.outer[there], "dev", DEVICE,
                    "src", link.gateway_inner[here])  # fmt: skip
        self.facts = {"mtu": str(link.mtu)}
