"""Which tunnels are compared with which, in panels: those of one panel are up together and measured in turns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bench.e2e.ipsecd import OFFLOADS, worker_counts
from bench.e2e.measure import MEASUREMENTS, Measurement
from bench.session import Options

#: about how long it takes to bring one tunnel up and down
TUNNEL_S = 3.0
QUICK_PANELS = ("peers",)
QUICK_ONLY = frozenset(("tcp1", "udp64", "rtt", "memory"))
#: what goes first if there is no time for all
LEAST_MISSED = (
    ("offloads", "udp1372"), ("threads", "udp64"), ("threads", "tcp4"), ("clients", "udp64"), ("peers", "udp512"),
    ("peers", "bidir"), ("roads", "reverse"), ("peers", "imix"), ("peers", "tcp4"), ("threads", "rttloop"),
    ("peers", "reverse"), ("threads", "tcp1"), ("roads", "tcp1"), ("peers", "rttload"), ("peers", "udp1372"),
    ("peers", "rttloop"), ("offloads", "tcp1"),
)  # fmt: skip
#: kernels that have none make these be skipped in no time
KERNEL_PEERS = ("wireguard", "xfrm")


@dataclass(frozen=True)
class Panel:
    """Tunnels and what is measured on which of them."""

    name: str
    title: str
    steps: tuple[tuple[str, tuple[str, ...]], ...]

    @property
    def tunnels(self) -> list[str]:
        """All that some step needs."""
        return list(dict.fromkeys(tunnel for _, tunnels in self.steps for tunnel in tunnels))


def _panel(name: str, title: str, tunnels: tuple[str, ...], *measurements: str, **fewer: tuple[str, ...]) -> Panel:
    return Panel(name, title, tuple((one, fewer.get(one, tunnels)) for one in measurements))


def panels() -> list[Panel]:
    """The whole plan on this machine."""
    others = ("strongswan", "wireguard-go", "openvpn", *KERNEL_PEERS)
    peers = ("plain", "ipsec", "chacha", *others)
    daemons = ("ipsec", "strongswan", "wireguard-go", "openvpn")
    roads = ("ipsec", "wire", "jumbo", "ipv6", "raw", "single", "bare", "strongswan")
    threads = ("ipsec", "loop", *(f"workers{n}" for n in worker_counts()), "busy")
    return [
        _panel("peers", "beside what a user would pick instead", peers, "tcp1", "tcp4", "reverse", "bidir", "rtt",
               "rttload", "rttloop", "udp64", "udp512", "udp1372", "imix", "memory", "idle",
               tcp1=("plain", "ipsec", "copy", *peers[2:]), tcp4=("plain", "ipsec", *others),
               bidir=("plain", "ipsec", *others), reverse=("plain", "ipsec", *others),
               udp512=("plain", "ipsec", *others), imix=("plain", "ipsec", *others), memory=daemons,
               idle=daemons),
        _panel("clients", "with clients behind the gateways",
               ("ipsec", "clients-plain", "clients-ipsec", "clients-strongswan", "clients-wireguard-go"),
               "tcp1", "udp64"),
        _panel("roads", "other links, and a peer that can do less", roads, "tcp1", "reverse"),
        _panel("threads", "threads of ipsecd", threads, "tcp1", "tcp4", "rttloop", "udp64"),
        _panel("offloads", "each offload off in turn", ("ipsec", *(f"no-{name}" for name in OFFLOADS)),
               "tcp1", "udp1372"),
    ]  # fmt: skip


def chosen(options: Options) -> list[Panel]:
    """What is left of the plan. Tunnels named by ``peers`` without ``panels`` are one panel of their own."""
    plan = panels()
    if options.peers and not options.panels:
        wanted = [name for name in MEASUREMENTS if name in (options.only or QUICK_ONLY)]
        return [Panel("peers", "chosen tunnels", tuple((one, options.peers) for one in wanted))] if wanted else []
    names = options.panels or (QUICK_PANELS if options.quick else tuple(panel.name for panel in plan))
    only = options.only or (QUICK_ONLY if options.quick else frozenset(MEASUREMENTS))
    found = []
    for panel in plan:
        steps = [(one, tuple(t for t in tunnels if not options.peers or t in options.peers))
                 for one, tunnels in panel.steps
                 if one in only and (panel.name, one) not in options.left_out]  # fmt: skip
        steps = [(one, tunnels) for one, tunnels in steps if tunnels]
        if panel.name in names and steps:
            found.append(Panel(panel.name, panel.title, tuple(steps)))
    return found


def turns(panel: Panel, rounds: int) -> Iterator[tuple[int, Measurement, tuple[str, ...]]]:
    """Round after round, each measurement on one tunnel after the other, so that drift of the machine hits all."""
    for number in range(rounds):
        for name, tunnels in panel.steps:
            measurement = MEASUREMENTS[name]
            if number == 0 or not measurement.once:
                # who comes first in one round comes last in the next: what a tunnel leaves behind hits each neighbour
                yield number, measurement, tunnels if number % 2 == 0 else tunnels[::-1]


def expected_s(options: Options) -> float:
    """About how long the end-to-end part takes."""
    total = 0.0
    for panel in chosen(options):
        total += TUNNEL_S * len([t for t in panel.tunnels if t not in KERNEL_PEERS])
        for _, measurement, tunnels in turns(panel, options.rounds):
            present = 1 if measurement.together else len([t for t in tunnels if t not in KERNEL_PEERS])
            total += measurement.costs_s(options.seconds) * present
    return total
