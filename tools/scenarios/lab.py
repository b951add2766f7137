"""The network of a scenario: a namespace for each node, one more whose bridges are the wires."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address
from pathlib import Path

from ipsec.net.netns import inside
from tools.scenarios.model import Node, Scenario

PREFIX = "ipsec-lab-"
SWITCH = "switch"
CAPTURE_BYTES = 8 << 20
SO_RCVBUFFORCE = 33
SOL_PACKET, PACKET_STATISTICS, ETH_P_ALL = 263, 6, 3
ETHERTYPE_IPV4, ETHERTYPE_IPV6 = 0x0800, 0x86DD
IPPROTO_UDP, IPPROTO_ESP, PORT_NAT_T = 17, 50, 4500


class LabError(Exception):
    """The network or a container could not be made, or a check failed; the text says which."""


def run(*command: str, timeout_s: float = 30) -> str:
    """Standard output of a command. LabError with its words if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LabError(str(error)) from None
    if done.returncode:
        raise LabError(f"{shlex.join(command)}: exit status {done.returncode}\n{done.stdout}{done.stderr}".rstrip())
    return done.stdout


class Lab:
    """Nodes and wires, until ``close``."""

    def __init__(self, scenario: Scenario) -> None:
        self.prefix = f"{PREFIX}{os.getpid()}-{scenario.name}"
        self._made: list[str] = []
        self._ports: dict[tuple[str, str], str] = {}
        self._capture: socket.socket | None = None
        try:
            self._make(SWITCH)
            for wire in sorted({wire for node in scenario.nodes.values() for wire in node.links}):
                self._ip(SWITCH, "link", "add", wire, "type", "bridge")
                self._ip(SWITCH, "link", "set", wire, "up")
            for name, node in scenario.nodes.items():
                self._join(name, node)
            with inside(self.namespace(SWITCH)):
                kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
                self._capture = socket.socket(socket.AF_PACKET, kind, socket.htons(ETH_P_ALL))
                self._capture.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, CAPTURE_BYTES)
        except BaseException:
            self.close()
            raise

    def namespace(self, node: str) -> str:
        """The name that ip-netns(8) knows."""
        return f"{self.prefix}-{node}"

    def command(self, node: str, *command: str) -> list[str]:
        """The command inside a node."""
        return ["ip", "netns", "exec", self.namespace(node), *command]

    def plug(self, node: str, wire: str, *, up: bool) -> None:
        """Put the cable in or pull it out: the node's interface loses its carrier."""
        self._ip(SWITCH, "link", "set", self._ports[node, wire], "up" if up else "down")

    def captured(self, wire: str, never: Sequence[IPv4Network | IPv6Network]) -> tuple[int, list[str]]:
        """How many ESP packets were on the wire since the last call, and which packets from or to ``never``."""
        assert self._capture is not None
        sealed, clear = 0, []
        ports = {port for (_, name), port in self._ports.items() if name == wire}
        with contextlib.suppress(BlockingIOError):
            while True:
                data, (port, ethertype, *_) = self._capture.recvfrom(65535)
                if port not in ports or ethertype not in (ETHERTYPE_IPV4, ETHERTYPE_IPV6):
                    continue
                source, destination, protocol, payload = _parse(data, ethertype)
                if any(ip_address(address) in net for address in (source, destination) for net in never):
                    clear.append(f"{ip_address(source)} > {ip_address(destination)} protocol {protocol}")
                sealed += protocol == IPPROTO_ESP or (protocol == IPPROTO_UDP and _is_esp_in_udp(payload))
        lost = int.from_bytes(self._capture.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8)[4:], sys.byteorder)
        if lost:
            raise LabError(f"the capture lost {lost} packets, so it proves nothing")
        return sealed, clear

    def close(self) -> None:
        """Remove everything; safe in any state."""
        if self._capture is not None:
            self._capture.close()
        for name in self._made:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)

    def _make(self, node: str) -> None:
        run("ip", "netns", "add", self.namespace(node))
        self._made.append(self.namespace(node))
        self._ip(node, "link", "set", "lo", "up")

    def _join(self, name: str, node: Node) -> None:
        self._make(name)
        for wire in node.links:
            port = self._ports[name, wire] = f"port{len(self._ports)}"
            self._ip(SWITCH, *f"link add {port} type veth peer name {wire} netns {self.namespace(name)}".split())
            self._ip(SWITCH, "link", "set", port, "master", wire, "up")
            for address in node.addresses(wire):
                self._ip(name, "address", "add", address, "dev", wire, *(["nodad"] if ":" in address else []))
            self._ip(name, "link", "set", wire, "up")
        for route in node.routes:
            self._ip(name, "route", "add", *route.split())
        for command in node.setup:
            run(*self.command(name, *shlex.split(command)))

    def _ip(self, node: str, *arguments: str) -> None:
        run("ip", "-n", self.namespace(node), *arguments)


def left_behind(name: str) -> bool:
    """Whether a run that is no more has made a thing of this name."""
    found = re.match(rf"{PREFIX}(\d+)-", name)
    return found is not None and not Path("/proc", found[1]).exists()


def sweep() -> None:
    """Remove the namespaces of killed runs."""
    for line in run("ip", "netns", "list").splitlines():
        name = line.split()[0]
        if left_behind(name):
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def _parse(data: bytes, ethertype: int) -> tuple[bytes, bytes, int, bytes]:
    """Source, destination, protocol, payload. Extension headers of IPv6 are not looked behind."""
    if ethertype == ETHERTYPE_IPV4:
        return data[12:16], data[16:20], data[9], data[(data[0] & 15) * 4 :]
    return data[8:24], data[24:40], data[6], data[40:]


def _is_esp_in_udp(udp: bytes) -> bool:
    """RFC 3948 section 2: on port 4500, neither IKE's marker of zeros nor a keepalive of one octet."""
    ports = int.from_bytes(udp[:2], "big"), int.from_bytes(udp[2:4], "big")
    return PORT_NAT_T in ports and len(udp) >= 8 + 8 and udp[8:12] != bytes(4)
