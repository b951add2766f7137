"""This project's daemon, as it comes and with one thing changed at a time."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bench.e2e.peers import GCM, START_TIMEOUT_S, Peer
from bench.topology import Lab, Link, Pair, run, wait_for

#: lets ipsecd take ``crypto_provider = copy``, which protects nothing
COPY_ENVIRONMENT = {"IPSEC_BENCH_NULL_CIPHER": "1"}
CHACHA = "chacha20poly1305"
OFFLOADS = ("tun_tso", "tun_uso", "udp_gso", "udp_gro", "coalesce_tcp", "coalesce_udp")
#: end a sends to end b with the first of each, and end b to end a with the second; worth nothing, for they are public
SPIS = (0x10001, 0x10002)
KEY_LENGTHS = {GCM: 20, CHACHA: 36}

BUSY_POLL = {"workers": "1", "busy_poll_us": "200"}
SHARED = {"peer_socket": "no"}

IPSECD_CONF = """\
ipsecd {{
  device = {device}
  state_dir = {directory}
  install_routes = yes
{settings}
  offload {{
{offload}
  }}
}}
sas {{
  bench {{
    local = {local}
    remote = {remote}
    encap = {encap}
    esp_proposals = {esp}
    spi_in = {spi_in:#x}
    spi_out = {spi_out:#x}
    key_in = {key_in}
    key_out = {key_out}
    local_ts = {local_ts}
    remote_ts = {remote_ts}
  }}
}}
"""


@dataclass(frozen=True)
class Variant:
    """How a tunnel differs from what ipsecd does by default."""

    title: str
    settings: Mapping[str, str] = field(default_factory=dict)
    "for ``ipsecd { }``"
    suite: str = GCM
    encap: bool = True
    off: tuple[str, ...] = ()
    "offloads that both ends do without"
    off_at_a: tuple[str, ...] = ()
    "offloads that end a does without"
    link: Link = field(default_factory=Link)


def variants() -> dict[str, Variant]:
    """By name. How many workers there are depends on the machine."""
    copy = {"crypto_provider": "copy"}
    found = {
        "ipsec": Variant("ipsecd"),
        "copy": Variant("ipsecd, a copy in place of the cipher", copy),
        "chacha": Variant("ipsecd, ChaCha20-Poly1305", suite=CHACHA),
        "single": Variant("end a without trains", off_at_a=("udp_gso", "udp_gro")),
        "bare": Variant("end a without offloads", off_at_a=OFFLOADS),
        "shared": Variant("no socket for the peer", SHARED),
        "bare-shared": Variant("end a without offloads, no socket for the peer", SHARED, off_at_a=OFFLOADS),
        "wire": Variant("trains cut, as by a card", link=Link(wire_segments=True)),
        "jumbo": Variant("MTU 9000", {"path_mtu": "9000"}, link=Link(mtu=9000)),
        "ipv6": Variant("IPv6 in IPv6", link=Link(ipv6=True)),
        "raw": Variant("ESP without UDP", encap=False),
        "loop": Variant("event loop only", {"workers": "0"}),
        "busy": Variant("worker that polls", BUSY_POLL),
        "clients-ipsec": Variant("ipsecd, clients behind it", link=Link(clients=True)),
        "clients-chacha": Variant("ipsecd, ChaCha20-Poly1305, clients", suite=CHACHA, link=Link(clients=True)),
    }
    found |= {f"workers{n}": Variant(f"{n} workers", {"workers": str(n)}) for n in worker_counts()}
    found |= {f"no-{offload}": Variant(f"without {offload}", off=(offload,)) for offload in OFFLOADS}
    return found


def worker_counts() -> list[int]:
    """More than the one worker of the default: 2, 4, ... up to the CPUs, two at least."""
    counts = [2]
    while counts[-1] * 2 <= (os.cpu_count() or 1):
        counts.append(counts[-1] * 2)
    return counts


class Ipsecd(Peer):
    """ipsecd at both ends, with manual SAs. ``settings`` come on top of those of the variant."""

    device = "ipsec0"

    def __init__(self, name: str, variant: Variant, settings: Mapping[str, str]) -> None:
        super().__init__(name, variant.title, variant.suite, variant.link)
        self.variant = variant
        self.settings = {**settings, **variant.settings}

    def config(self, index: int, directory: Path) -> str:
        """The configuration file of one end."""
        off = self.variant.off + (self.variant.off_at_a if index == 0 else ())
        digits = KEY_LENGTHS[self.variant.suite]
        # worth nothing, for they are public
        keys = "0x" + "5a" * digits, "0x" + "a5" * digits
        return IPSECD_CONF.format(
            device=self.device,
            directory=directory,
            settings="\n".join(f"  {key} = {value}" for key, value in self.settings.items()),
            offload="\n".join(f"    {key} = {'no' if key in off else 'auto'}" for key in OFFLOADS),
            local=self.link.outer[index],
            remote=self.link.outer[1 - index],
            encap="yes" if self.variant.encap else "no",
            esp=self.variant.suite,
            spi_in=SPIS[1 - index],
            spi_out=SPIS[index],
            key_in=keys[1 - index],
            key_out=keys[index],
            local_ts=self.link.inner_net[index],
            remote_ts=self.link.inner_net[1 - index],
        )

    def _start(self, lab: Lab, pair: Pair, directory: Path) -> None:
        copies = self.settings.get("crypto_provider") == "copy"
        for index, end in enumerate(pair.ends):
            home = directory / "ab"[index]
            home.mkdir(mode=0o700)
            file = home / "ipsecd.conf"
            file.touch(mode=0o600)
            file.write_text(self.config(index, home))
            log = directory / f"{'ab'[index]}.log"
            command = [sys.executable, "-m", "ipsec.cli.ipsecd", "--config", str(file)]
            process = lab.start(command, log, where=end, env=COPY_ENVIRONMENT if copies else None)
            self.gateways.append(process)
            self.commands.append("ipsecd with\n" + re.sub(r"key_(in|out) = \S+", r"key_\1 = ...", file.read_text()))
            wait_for(
                lambda end=end: f"{self.device}:" in end.run("ip", "link"),  # type: ignore[misc]
                f"{self.title} {end.name}", process, log, timeout_s=START_TIMEOUT_S,
            )  # fmt: skip
        device = re.search(r"mtu (\d+)", pair.a.run("ip", "link", "show", "dev", self.device))
        version = run([sys.executable, "-m", "ipsec", "--version"])
        provider = re.search(rf"^ *{self.variant.suite} +(\S+)$", version, re.MULTILINE)
        self.facts = {
            "version": version.splitlines()[0],
            "provider": "a copy" if copies else provider[1] if provider else "?",
            "mtu": device.group(1) if device else "?",
            "log": (directory / "a.log").read_text(errors="replace")[:4000],
        }
