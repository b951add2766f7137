"""One misfortune after another, for minutes: whatever happened, the tunnel comes back by itself, and nothing that it
protects has left in clear meanwhile.

``pytest -m slow -s tests/e2e/test_misfortunes.py``; SOAK_SECONDS is how long, SOAK_SEED which misfortunes.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ipsec.net import netns
from tests.e2e.gateways import INNER, OUTER, WIRE, Gateway, eventually
from tests.e2e.ike_gateways import IkeWorld, in_clear, launch, sniffing

pytestmark = pytest.mark.slow

SECONDS = float(os.environ.get("SOAK_SECONDS", "300"))
SEED = int(os.environ.get("SOAK_SEED", "1"))
#: both directions, both families, within this time after the last misfortune
RECOVERY_S = 40.0
#: octets of resident memory and descriptors that a daemon may have more than when it was first looked at
MORE_MEMORY = 8 << 20
MORE_FILES = 4


@pytest.fixture(params=["fixed", "mobile"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[IkeWorld]:
    """Two gateways that rekey all the time, and a default route by which what is not kept in would leave.

    One of them may be mobile: then the other waits for it, wherever it is, and keeps nothing in meanwhile.
    """
    with IkeWorld(tmp_path) as world:
        world.set("ipsecd.workers", "1")
        world.set("@dpd_delay", "1s")
        world.set("@rekey_time", "9s")
        world.set(":rekey_time", "3s")
        for side, action in enumerate(("start", "trap")):
            for key in ("start_action", "dpd_action", "close_action"):
                world.set(f":{key}", action, side)
        if request.param == "mobile":
            world.set("@local_addrs", None, 0)
            world.set("@remote_addrs", "192.0.2.0/24", 1)
            for key, value in (("start_action", "none"), ("dpd_action", "clear"), ("close_action", "none")):
                world.set(f":{key}", value, 1)
        for gateway in (world.a, world.b):
            for version in (4, 6):
                far = OUTER[version][1 - gateway.side]
                gateway.run("ip", f"-{version}", "route", "replace", "default", "via", far, "dev", WIRE, "onlink")
        yield world


class Fate:
    """What can happen to a gateway. Every method leaves it as it found it, except for what the daemon has to mend."""

    def __init__(self, world: IkeWorld, random_: random.Random) -> None:
        self.world = world
        self.random = random_
        self.logs: list[str] = []

    def all(self) -> list[Callable[[Gateway], None]]:
        """Everything that can happen."""
        return [
            self.link_goes_down, self.packets_are_lost, self.daemon_is_killed, self.daemon_is_stopped,
            self.daemon_hangs, self.configuration_is_read_again, self.configuration_changes, self.configuration_breaks,
            self.device_is_deleted, self.device_goes_down, self.noise_comes_in, self.mtu_shrinks,
            self.what_is_ours_is_removed, *([self.address_changes] if self.mobile else []),
        ]  # fmt: skip

    def lets_out(self) -> list[Callable[[Gateway], None]]:
        """What lets traffic out: a clean stop does, and routes that are gone for milliseconds."""
        return [self.daemon_is_stopped, self.what_is_ours_is_removed]

    @property
    def mobile(self) -> bool:
        """Whether the first gateway may change its address."""
        return "local_addrs" not in self.world.conf[0]["connections"]["site"]

    def _while(self, least: float, most: float) -> None:
        time.sleep(self.random.uniform(least, most))

    def link_goes_down(self, gateway: Gateway) -> None:
        gateway.run("ip", "link", "set", WIRE, "down")
        self._while(0, 4)
        gateway.run("ip", "link", "set", WIRE, "up")
        # the kernel forgets these with the link
        gateway.run("ip", "addr", "replace", f"{OUTER[6][gateway.side]}/64", "dev", WIRE)
        for version in (4, 6):
            far = OUTER[version][1 - gateway.side]
            gateway.run("ip", f"-{version}", "route", "replace", "default", "via", far, "dev", WIRE, "onlink")

    def packets_are_lost(self, gateway: Gateway) -> None:
        gateway.run("nft", "add table inet fate; add chain inet fate in { type filter hook input priority 0; };"
                    "add rule inet fate in udp dport { 500, 4500 } numgen random mod 100 < 40 drop")  # fmt: skip
        self._while(1, 6)
        gateway.run("nft", "delete table inet fate")

    def daemon_is_killed(self, gateway: Gateway) -> None:
        assert gateway.process is not None
        gateway.process.kill()
        gateway.process.wait()
        self._start(gateway)

    def daemon_is_stopped(self, gateway: Gateway) -> None:
        status, seconds = gateway.stop()
        assert status == 0, gateway.log()
        assert seconds < 6, gateway.log()
        self._start(gateway)

    def _start(self, gateway: Gateway) -> None:
        self.logs.append(gateway.log())
        self._while(0, 3)
        launch(gateway)
        assert "ready" in gateway.log(), gateway.log()

    def daemon_hangs(self, gateway: Gateway) -> None:
        assert gateway.process is not None
        gateway.process.send_signal(signal.SIGSTOP)
        self._while(0.5, 6)
        gateway.process.send_signal(signal.SIGCONT)

    def configuration_is_read_again(self, gateway: Gateway) -> None:
        assert gateway.process is not None
        for _ in range(self.random.randrange(1, 4)):
            gateway.process.send_signal(signal.SIGHUP)
            self._while(0, 0.1)

    def configuration_changes(self, gateway: Gateway) -> None:
        self.world.set(":rekey_time", f"{self.random.randrange(2, 6)}s", gateway.side)
        self.world.set("connections.other.remote_addrs", OUTER[4][1 - gateway.side], gateway.side)
        self.world.set("connections.other.local.auth", "psk", gateway.side)
        self.world.set("connections.other.remote.auth", "psk", gateway.side)
        self.world.set("connections.other.children.one.remote_ts", "10.77.0.0/24", gateway.side)
        if self.random.random() < 0.5:
            self.world.set("connections.other", None, gateway.side)
        self.world.write()
        self.configuration_is_read_again(gateway)

    def configuration_breaks(self, gateway: Gateway) -> None:
        assert gateway.process is not None
        good = gateway.config.read_text()
        broken = self.random.choice(("", good.replace("psk", "pks", 1), good[: len(good) // 2]))
        gateway.config.write_text(broken)
        self.configuration_is_read_again(gateway)
        self._while(0.2, 1)
        gateway.config.write_text(good)
        gateway.process.send_signal(signal.SIGHUP)

    def device_is_deleted(self, gateway: Gateway) -> None:
        gateway.run("ip", "link", "del", "ipsec0", check=False)

    def device_goes_down(self, gateway: Gateway) -> None:
        gateway.run("ip", "link", "set", "ipsec0", "down", check=False)
        self._while(0, 2)
        gateway.run("ip", "link", "set", "ipsec0", "up", check=False)

    def what_is_ours_is_removed(self, gateway: Gateway) -> None:
        family = self.random.choice(("-4", "-6"))
        harm = self.random.choice(("route flush table 220", "rule del lookup 220", "addr flush dev ipsec0"))
        gateway.run("ip", family, *harm.split(), check=False)

    def noise_comes_in(self, gateway: Gateway) -> None:
        other = self.world.b if gateway is self.world.a else self.world.a
        with netns.inside(other.namespace):
            # it may be at its other address: nobody waits for that
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        with contextlib.closing(sock):
            for _ in range(5000):
                data = bytearray(self.random.randbytes(self.random.choice((1, 28, 80, 300, 1400))))
                if len(data) >= 28 and self.random.random() < 0.5:
                    # an IKE header that fits
                    data[17], data[18], data[24:28] = 0x20, 34, len(data).to_bytes(4, "big")
                    data[8:16] = bytes(8)
                with contextlib.suppress(OSError):
                    sock.sendto(data, (OUTER[4][gateway.side], self.random.choice((500, 4500))))

    def mtu_shrinks(self, gateway: Gateway) -> None:
        gateway.run("ip", "link", "set", WIRE, "mtu", "1300")
        self._while(0, 2)
        gateway.run("ip", "link", "set", WIRE, "mtu", "1500")


    def address_changes(self, gateway: Gateway) -> None:
        gateway = self.world.a
        there = gateway.run("ip", "-4", "-o", "addr", "show", "dev", WIRE).stdout
        old, new = ("192.0.2.1", "192.0.2.11") if "192.0.2.1/" in there else ("192.0.2.11", "192.0.2.1")
        steps = [("add", new), ("del", old)]
        for what, address in self.random.sample(steps, 2):
            gateway.run("ip", "addr", what, f"{address}/24", "dev", WIRE)
            self._while(0, 1)
        # with the first address of a subnet the kernel removes the others
        gateway.run("ip", "addr", "replace", f"{new}/24", "dev", WIRE)
        gateway.run("ip", "route", "replace", "default", "via", OUTER[4][1], "dev", WIRE, "onlink")


def goes_through(world: IkeWorld) -> bool:
    """Whether both ends reach each other through the tunnel, with either family."""
    ways = [(near, INNER[version][1 - near.side]) for near in (world.a, world.b) for version in (4, 6)]
    return all(near.run("ping", "-n", "-c", "1", "-W", "1", far, check=False).returncode == 0 for near, far in ways)


def size_of(gateway: Gateway) -> tuple[int, int]:
    """Octets of resident memory, and how many files are open."""
    assert gateway.process is not None
    status = Path(f"/proc/{gateway.process.pid}/status").read_text()
    resident = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(resident.split()[1]) << 10, len(os.listdir(f"/proc/{gateway.process.pid}/fd"))


@pytest.mark.timeout(SECONDS + 300)
def test_it_comes_back_whatever_happens(world: IkeWorld) -> None:
    world.start()
    assert eventually(lambda: goes_through(world), RECOVERY_S), world.logs()
    chance = random.Random(SEED)
    fate = Fate(world, chance)
    story: list[str] = []
    sizes: dict[int, tuple[int, int]] = {}
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        gateway = chance.choice((world.a, world.b))
        happens = chance.choice(fate.all())
        kept_in = happens not in fate.lets_out()
        story.append(f"{'ab'[gateway.side]}: {happens.__name__}")
        traffic = []
        if kept_in:
            traffic = [
                near.popen("ping", "-n", "-q", "-i", "0.05", "-c", "100", INNER[version][1 - near.side])
                for near in (world.a, world.b)
                for version in (4, 6)
            ]
        with sniffing(world.a) as wire:
            begun = time.monotonic()
            happens(gateway)
            # sometimes the next one comes at once
            if chance.random() < 0.3:
                happens = chance.choice([one for one in fate.all() if one not in fate.lets_out()])
                story.append(f"{'ab'[gateway.side]}: {happens.__name__} at once")
                happens(gateway)
            back = eventually(lambda: goes_through(world), RECOVERY_S)
            story[-1] += f", back after {time.monotonic() - begun:.1f} s"
            for ping in traffic:
                ping.terminate()
                ping.communicate()
            clear = [line for line in in_clear(wire.packets()) if not fate.mobile or re.search("-> (10.2|fd02)", line)]
        print(story[-1], flush=True)
        told = "\n".join(story[-6:]) + "\n" + "\n".join(fate.logs[-2:]) + world.logs()
        assert back, told
        assert clear == [] or not kept_in, f"{clear[:4]}\n{told}"
        for log in (world.a.log(), world.b.log(), *fate.logs):
            assert "Traceback" not in log, told
            assert "this is a bug" not in log, told
        for near in (world.a, world.b):
            assert near.process is not None
            assert near.process.poll() is None, told
            memory, files = size_of(near)
            first = sizes.setdefault(near.process.pid, (memory, files))
            assert memory - first[0] < MORE_MEMORY, f"{first} -> {memory, files}\n{told}"
            assert files - first[1] <= MORE_FILES, f"{first} -> {memory, files}\n{told}"
    for gateway in (world.a, world.b):
        assert gateway.stop()[0] == 0, gateway.log()
        assert gateway.leftovers() == ""
