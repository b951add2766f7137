"""Rekeying under load: ``python -m bench.handshake.rekeying``. See bench/README.md.

Two gateways renew the CHILD_SA and the IKE_SA all the time, both ends on their own, while TCP fills the tunnel. A probe
asks for an echo every few milliseconds: none may stay unanswered because keys change.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import select
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from bench.handshake import command
from bench.handshake.gateways import CharonGateway, Gateway, OurGateway, make_pair, site_conf
from bench.handshake.live import ECHO_PORT, echo
from bench.topology import INNER, Lab, LabError, Pair, reachable
from ipsec.net.netns import inside

KINDS: dict[str, type[Gateway]] = {"ipsecd": OurGateway, "charon": CharonGateway}
#: seconds between two probes, and how long the last answers may take
PROBE_S = 0.005
PATIENCE_S = 2.0
#: without rand_time all of it happens at the same moments at both ends: the most collisions
CHILD_TIMES = "rekey_time = {child}s\n        life_time = {life}s\n        rand_time = 0\n        esp_proposals ="
IKE_TIMES = "rekey_time = {ike}s\n    over_time = 30s\n    rand_time = 0\n    proposals ="


@dataclass
class Outcome:
    """What a run has shown."""

    seconds: float
    peer: str
    gbit_per_s: float
    child_sas: int
    "CHILD_SAs that came up"
    ike_rekeys: int
    probes: int
    lost: int
    "probes without an answer"
    longest_gap_ms: float
    "between two answers"
    retransmissions: int
    "of IKE requests, in the log of our first end"
    drops: str
    "of our first end, by reason"
    overflows: int
    "datagrams, ESP and IKE alike, that came to the other end faster than it read its sockets"


def conf(index: int, child_s: int, ike_s: int) -> str:
    """One end of the tunnel."""
    text = site_conf(index).replace("esp_proposals =", CHILD_TIMES.format(child=child_s, life=child_s + 15))
    return text.replace("    proposals =", "    " + IKE_TIMES.format(ike=ike_s), 1)


class Prober:
    """Asks for echoes through a tunnel."""

    def __init__(self, pair: Pair) -> None:
        with inside(pair.a.name):
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind((INNER[0], 0))
        self.sent = 0
        self.missing: set[int] = set()
        self.gap_s = 0.0
        self._last = time.monotonic()

    def run(self, seconds: float) -> None:
        """Ask for that long, then wait for the last answers."""
        start = self._last = time.monotonic()
        while (now := time.monotonic()) - start < seconds:
            self.missing.add(self.sent)
            with contextlib.suppress(OSError):
                self._socket.sendto(self.sent.to_bytes(8, "big"), (INNER[1], ECHO_PORT))
            self.sent += 1
            self._listen(now + PROBE_S)
        end = time.monotonic() + PATIENCE_S
        while self.missing and time.monotonic() < end:
            self._listen(time.monotonic() + PROBE_S)
        self._socket.close()

    def _listen(self, until: float) -> None:
        while (left := until - time.monotonic()) > 0:
            if not select.select([self._socket], [], [], left)[0]:
                return
            with contextlib.suppress(OSError):
                number = int.from_bytes(self._socket.recv(64), "big")
                now = time.monotonic()
                self.gap_s = max(self.gap_s, now - self._last)
                self._last = now
                self.missing.discard(number)


def measure(lab: Lab, args: argparse.Namespace) -> Outcome:
    """One run. LabError if the tunnel does not come up or traffic stops."""
    pair = make_pair(lab, f"rekey-{args.peer}")
    ends = [
        OurGateway(lab, pair.a, lab.scratch / "rekey-a"),
        KINDS[args.peer](lab, pair.b, lab.scratch / "rekey-b"),
    ]
    for index, end in enumerate(ends):
        end.start(conf(index, args.child, args.ike))
    ends[0].bring_up()
    deadline = time.monotonic() + 10.0
    while not reachable(pair):
        if time.monotonic() > deadline:
            raise LabError(f"no tunnel\n{ends[0].log.read_text(errors='replace')[-2000:]}")
    lab.start(["iperf3", "--server", "--one-off", "--bind", INNER[1]], lab.scratch / "iperf3.log", where=pair.b)
    time.sleep(0.5)
    client = lab.spawn(
        ["iperf3", "-c", INNER[1], "-B", INNER[0], "-b", args.rate, "-t", f"{args.seconds + 1:g}", "-J"],
        where=pair.a,
        stderr=subprocess.STDOUT,
    )
    before = len(ends[0].log.read_text(errors="replace"))
    overflowed = overflows(pair)
    prober = Prober(pair)
    with echo(pair.b):
        prober.run(args.seconds)
    out, _ = client.communicate(timeout=30)
    result = json.loads(out)
    if "error" in result:
        raise LabError(f"iperf3: {result['error']}")
    log = ends[0].log.read_text(errors="replace")[before:]
    overflowed = overflows(pair) - overflowed
    ends[0].stop()
    ends[1].stop()
    total = ends[0].log.read_text(errors="replace")[before:]
    drops = re.findall(r"drops: (.*)", total)
    return Outcome(
        args.seconds,
        args.peer,
        result["end"]["sum_received"]["bits_per_second"] / 1e9,
        len(re.findall(r"CHILD_SA .* up, SPIs", log)),
        len(re.findall(r"rekeyed, .* takes over", log)),
        prober.sent,
        len(prober.missing),
        prober.gap_s * 1000,
        len(re.findall(r"sending request \d+ again", log)),
        drops[-1] if drops else "?",
        overflowed,
    )


def overflows(pair: Pair) -> int:
    """Datagrams for which there was no room in the receive buffers of the second end, so far (RcvbufErrors)."""
    names, counts = (line.split() for line in pair.b.run("grep", "^Udp:", "/proc/net/snmp").splitlines())
    return int(counts[names.index("RcvbufErrors")])


def main(arguments: Sequence[str] | None = None) -> int:
    """Fails if a probe was lost (two of ours), or the tunnel was down for a second (with charon)."""
    parser = argparse.ArgumentParser(prog="python -m bench.handshake.rekeying", description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--peer", choices=tuple(KINDS), default="ipsecd", help="the other end")
    parser.add_argument("--rate", default="2G", help="of TCP, as for iperf3 -b")
    parser.add_argument("--child", type=int, default=2, metavar="S", help="rekey_time of the CHILD_SA")
    parser.add_argument("--ike", type=int, default=7, metavar="S", help="rekey_time of the IKE_SA")
    args = parser.parse_args(arguments)
    ours = args.peer == "ipsecd"
    return command.run(
        lambda lab: measure(lab, args), lambda outcome: bool(outcome.lost) if ours else outcome.longest_gap_ms > 1000
    )


if __name__ == "__main__":
    sys.exit(main())
