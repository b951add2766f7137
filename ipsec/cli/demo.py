"""``make demo``: two gateways negotiate with IKEv2, carry real traffic through ESP, and a table says what they reached.

As root, or in an unprivileged user namespace where the kernel allows one: two network namespaces joined by a veth, an
ipsecd in each. Where neither is possible: two gateways in this process over links in memory.
"""

from __future__ import annotations

import contextlib
import secrets
import sys
from pathlib import Path

from ipsec.cli import demo_memory
from ipsec.cli.demo_lab import connection, guarded, no_arguments, run_demo, show_negotiated, start_ipsecd
from ipsec.cli.demo_memory import row
from ipsec.cli.demo_traffic import Wire, file, first_packet, ping, rekeying, throughput

NAMES = ("a.example", "b.example")


def main() -> int:
    """Run the demo the best way that this machine allows; 0 if every step did what it should."""
    done = run_demo("ipsec.cli.demo", _two_gateways)
    if isinstance(done, int):
        return done
    status = guarded(demo_memory.run)
    print("\nLeft out, because network namespaces and TUN devices cannot be made here:")
    print("  ping, iperf3 and a file through two network namespaces, routes, the capture on the wire")
    for reason in done:
        print(f"  {reason}")
    return status


def _two_gateways(stack: contextlib.ExitStack, scratch: Path) -> None:
    wire = Wire(stack)
    print("Two gateways, IKEv2 with a preshared key made just now, ESP in UDP over a veth with MTU 1500.\n", flush=True)
    psk = f"secrets {{\n    ike-demo {{\n        secret = 0x{secrets.token_hex(32)}\n    }}\n}}\n"
    daemons = []
    for side in (1, 0):
        sections = connection(side, auth="psk", names=NAMES, initiates=side == 0) + psk
        daemons.append(start_ipsecd(stack, scratch, side, sections))
        if side == 1:
            daemons[0].wait(": ready")
    initiator = daemons[1]
    seconds = first_packet(initiator)
    show_negotiated(initiator)
    row("from start to the first packet", f"{seconds:.2f} s, most of it Python that loads and kernel features probed")
    for rows in (ping(), throughput(), file(scratch), rekeying(initiator)):
        for label, text in rows:
            row(label, text)
    wire.report()
    children, ikes = initiator.rekeyed()
    print(f"\nOnly ESP and IKE crossed the wire. In all, {children} CHILD_SAs and {ikes} IKE_SAs were replaced.")


if __name__ == "__main__":
    no_arguments("ipsec.cli.demo", __doc__)
    sys.exit(main())
