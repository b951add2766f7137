"""strongSwan with the ESP of the Linux kernel as one end: charon with kernel-netlink, in a guest.

    [ ipsecd ] === wire0, nat0 === [ switch ] === guest === inside === [ a host behind it ]

The end that is a guest has its addresses inside on a host of its own, where traffic begins and ends. What packets the
kernel turns away it counts (`kernel_drops`).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from tests.commands import run
from tests.interop.charon import PLUGINS, CharonGateway
from tests.interop.guest import CONTROL, Guest
from tests.interop.lab import (
    INNER,
    NAT,
    NAT_OUTSIDE,
    NATTED,
    NEAR,
    OTHER,
    OUTER,
    WIRE,
    WIRE2,
    Lab,
    Namespace,
    Recorder,
    eventually,
    masquerade,
)
from tools import strongswan

INSIDE = "inside"
#: the guest's own addresses on the wire to its host, by side
GATEWAYS = (("10.1.255.254", "fd01::ffff"), ("10.2.255.254", "fd02::ffff"))


class KernelLab(Lab):
    """A lab of which one end, ``side``, is a guest. ``shared`` is a folder that the guest sees as well."""

    def __init__(self, side: int, shared: Path) -> None:
        super().__init__()
        self.side = side
        self._shared = shared
        self._names = [f"{name}-kernel{side}" for name in self._names]
        self._names.append(f"{self._names[0]}-switch")

    def _build(self) -> None:
        self.a, self.b, self.n, self.switch = (Namespace(name) for name in self._names)
        self.ends = (self.a, self.b)
        self.ours, self.host = self.ends[1 - self.side], self.ends[self.side]
        self.gateways = (self.ours,)
        ours, far = ("near", "far") if self.side else ("far", "near")
        _veth(self.ours, NAT, self.n, ours)
        _veth(self.ours, WIRE2, self.switch, "nowhere")
        plugs = ((self.ours, WIRE), (self.n, far), (self.host, INSIDE))
        taps = tuple(_plug(self.switch, number, *plug) for number, plug in enumerate(plugs))
        for device in (WIRE, NAT):
            self.ours.run("ethtool", "-K", device, "tx-udp-segmentation", "off", "tso", "off")
        for device, address in (("near", NEAR), ("far", NAT_OUTSIDE)):
            self.n.ip("addr", "add", f"{address}/24", "dev", device)
            self.n.ip("link", "set", device, "up")
        self.n.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        self.n.inside(masquerade)
        self.host.ip("link", "set", INSIDE, "up")
        for address in (f"{INNER[4][self.side]}/16", f"{OTHER[self.side]}/16", f"{INNER[6][self.side]}/16"):
            self.host.ip("addr", "add", address, "dev", INSIDE)
        for gateway in GATEWAYS[self.side]:
            self.host.ip("route", "add", "default", "via", gateway)
        self.guest = Guest(self.switch, taps, self._shared)
        self.guest.run(self._addresses())
        self.reset()
        self.recorder = Recorder(self.ours, (WIRE, NAT))

    def _addresses(self) -> str:
        four, six = GATEWAYS[self.side]
        addresses: Any = ((OUTER[4], 24, 0), (OUTER[6], 64, 0), (NATTED, 24, 1))
        lines = [f"ip addr add {pair[self.side]}/{prefix} dev vec{device}" for pair, prefix, device in addresses]
        lines += [f"ip addr add {address}/16 dev vec2" for address in (four, six)]
        lines += [f"ip link set vec{device} up" for device in range(3)]
        names = ("ipv4.ip_forward=1", "ipv6.conf.all.forwarding=1", "ipv4.conf.all.send_redirects=0")
        sysctls = " ".join(f"net.{name}" for name in names)
        return "\n".join(["set -e", "sysctl -qw net.ipv6.conf.default.accept_dad=0 " + sysctls, *lines])

    def kernel_drops(self) -> dict[str, int]:
        """/proc/net/xfrm_stat of the guest, without what is zero."""
        pairs = (line.split() for line in self.guest.run("cat /proc/net/xfrm_stat").splitlines())
        return {name: int(value) for name, value in pairs if int(value)}

    def close(self) -> None:
        """The guest as well."""
        if guest := getattr(self, "guest", None):
            guest.close()
        super().close()


def _veth(one: Namespace, name: str, other: Namespace, other_name: str) -> None:
    run("ip", "link", "add", name, "netns", one.name, "type", "veth", "peer", "name", other_name, "netns", other.name)


def _plug(switch: Namespace, number: int, namespace: Namespace, device: str) -> str:
    """A device of a namespace, bridged to a tap device of the switch; the name of that one."""
    bridge, tap, port = (f"{kind}{number}" for kind in ("bridge", "tap", "port"))
    switch.ip("link", "add", bridge, "type", "bridge")
    switch.ip("tuntap", "add", tap, "mode", "tap")
    _veth(namespace, device, switch, port)
    for name in (tap, port):
        switch.ip("link", "set", name, "master", bridge)
    for name in (bridge, tap, port):
        switch.ip("link", "set", name, "up")
    return tap


class KernelCharonGateway(CharonGateway):
    """charon with kernel-netlink in the guest, steered from outside."""

    plugins = PLUGINS.replace("kernel-libipsec ", "")
    vici = f"tcp://{CONTROL[1]}:4502"

    def __init__(self, lab: KernelLab, *args: Any) -> None:
        super().__init__(lab.ends[lab.side], lab.side, *args)
        self.lab = lab
        self.pid = 0

    def _launch(self) -> None:
        guest = self.lab.guest
        guest.run("ip xfrm state flush; ip xfrm policy flush; rm -f /run/charon.pid")
        self.log_file.touch()
        self.pid = guest.spawn(f"STRONGSWAN_CONF={self.home}/strongswan.conf {strongswan.daemon()}", self.output)
        eventually(lambda: "uptime" in self.swanctl("--stats", check=False), "charon listens", timeout=60)
        self.load()

    def swanctl(self, *args: str, check: bool = True) -> str:
        command = ["env", f"SWANCTL_DIR={self.home}", "swanctl", *args, "--uri", self.vici]
        done = self.lab.switch.run(*command, check=check)
        return done.stdout + done.stderr

    def kill(self) -> None:
        if self.pid:
            self.lab.guest.run(f"kill -9 {self.pid}", check=False)
            self.pid = 0

    def stop(self, *, timeout: float = 20.0) -> float:
        begin = time.monotonic()
        if self.pid:
            self.lab.guest.run(f"kill {self.pid}")
            eventually(lambda: not self._runs(), "charon ends", timeout=timeout)
            self.pid = 0
        return time.monotonic() - begin

    def _runs(self) -> bool:
        return bool(self.lab.guest.run(f"test -d /proc/{self.pid} && echo yes", check=False))
