"""The traffic of the demos: through the tunnel from one namespace to the other, with an ear on the wire."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import select
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from ipsec.cli.demo_lab import CHILD_LIFE_S, DEVICE, IKE_LIFE_S, INNER, INNER6, NAMES, OUTER, Daemon, inside
from ipsec.cli.demo_memory import DemoError, row
from ipsec.net import bpf, netns, udp

FILE_BYTES = 64 << 20
_PORT = 5400
_IKE_PORT = 500

_RECEIVER = """
import hashlib, socket, sys
server = socket.create_server((sys.argv[1], 5300))
print('ready', flush=True)
peer, _ = server.accept()
digest = hashlib.sha256()
while data := peer.recv(1 << 20):
    digest.update(data)
peer.sendall(digest.hexdigest().encode())
"""
_SENDER = """
import socket, sys, time
sock = socket.create_connection((sys.argv[1], 5300), timeout=20)
begin = time.monotonic()
with open(sys.argv[2], 'rb') as file:
    sock.sendfile(file)
sock.shutdown(socket.SHUT_WR)
print(sock.recv(100).decode(), time.monotonic() - begin)
"""


def first_packet(daemon: Daemon) -> float:
    """Seconds from the daemon's start until an answer came through the tunnel."""
    with netns.inside(NAMES[0]):
        probe = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with probe:
        probe.settimeout(0.005)
        while True:
            daemon.check()
            if time.monotonic() - daemon.begun > 15:
                raise DemoError(f"no packet comes through:\n{daemon.log()}")
            try:
                probe.connect((INNER[1], _PORT))
                probe.send(b"?")
                probe.recv(1)
            except ConnectionRefusedError:
                # nobody listens there, and said so through the tunnel
                return time.monotonic() - daemon.begun
            except TimeoutError:
                continue
            except OSError:
                # no route yet
                time.sleep(0.005)


def rekeying(daemon: Daemon) -> Iterator[tuple[str, str]]:
    """A packet each way every millisecond until both kinds of SA were replaced; none may be lost."""
    with netns.inside(NAMES[0]):
        ours = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with netns.inside(NAMES[1]):
        echo = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with ours, echo:
        echo.bind((INNER[1], _PORT))
        before = daemon.rekeyed()
        back: set[int] = set()
        sent = 0
        done_at = None
        deadline = time.monotonic() + 3 * (CHILD_LIFE_S + IKE_LIFE_S)
        # a little longer, so that the new SAs are used as well
        while done_at is None or time.monotonic() < done_at + 0.3:
            if time.monotonic() > deadline:
                raise DemoError(f"no rekeying:\n{daemon.log()}")
            ours.sendto(struct.pack("!I", sent), (INNER[1], _PORT))
            sent += 1
            _answer(ours, echo, back, 0.001)
            if done_at is None and sent % 50 == 0:
                daemon.check()
                if all(now > then for now, then in zip(daemon.rekeyed(), before, strict=True)):
                    done_at = time.monotonic()
        patience = time.monotonic() + 1
        while len(back) < sent and time.monotonic() < patience:
            _answer(ours, echo, back, 0.01)
    children, ikes = (now - then for now, then in zip(daemon.rekeyed(), before, strict=True))
    lost = sent - len(back)
    text = f"CHILD_SA {children} x, IKE_SA {ikes} x; of {sent} packets there and back {lost} lost"
    yield "rekeyed while traffic flows", text
    if lost:
        raise DemoError("rekeying lost packets")


def _answer(ours: socket.socket, echo: socket.socket, back: set[int], wait: float) -> None:
    until = time.monotonic() + wait
    while (left := until - time.monotonic()) > 0:
        for ready in select.select([ours, echo], [], [], left)[0]:
            data, source = ready.recvfrom(64)
            if ready is echo:
                echo.sendto(data, source)
            else:
                back.add(int.from_bytes(data, "big"))


def ping() -> Iterator[tuple[str, str]]:
    """ICMP of both families."""
    for label, address in (("ping, IPv4", INNER[1]), ("ping, IPv6 inside", INNER6[1])):
        output = inside(NAMES[0], "ping", "-n", "-c", "10", "-i", "0.02", "-W", "1", address)
        received = re.search(r"(\d+) received", output)
        times = re.search(r"= [\d.]+/([\d.]+)/", output)
        if not received or not times or received[1] != "10":
            raise DemoError(f"lost pings to {address}:\n{output}")
        yield label, f"10 of 10, {float(times[1]):.3f} ms on average"


def throughput() -> Iterator[tuple[str, str]]:
    """TCP and UDP as iperf3 measures them."""
    if not shutil.which("iperf3"):
        yield "iperf3", "is not installed: the file below has to do"
        return
    for label, options in (
        ("TCP, one stream", ["-t", "3"]),
        ("TCP, one stream, reverse", ["-t", "2", "-R"]),
        ("TCP, four streams", ["-t", "2", "-P", "4"]),
    ):
        end = _iperf(options)["end"]
        yield label, f"{end['sum_received']['bits_per_second'] / 1e9:.2f} Gbit/s"
    before = _refused_by_receiver()
    total = _iperf(["-t", "2", "-u", "-b", "200M", "-l", "1300", *_window()])["end"]["sum"]
    refused = _refused_by_receiver() - before
    text = f"{total['bits_per_second'] / 1e6:.0f} Mbit/s, {total['lost_percent']:.2f} % lost"
    if total["lost_packets"]:
        text += f" ({refused} of {total['lost_packets']:.0f} behind the tunnel: iperf3 read too late)"
    yield "UDP, 200 Mbit/s offered", text


def _window() -> list[str]:
    """iperf3's socket buffers, as large as it may have them: the usual 208 KiB are full when it sleeps for 4 ms."""
    try:
        allowed = [int(Path(f"/proc/sys/net/core/{name}").read_text()) for name in ("rmem_max", "wmem_max")]
    except (OSError, ValueError):
        return []  # not shown in this namespace
    # iperf3 gives up if it gets less than it asks for
    return ["-w", str(min(*allowed, 4 << 20))]


def _refused_by_receiver() -> int:
    """Datagrams that came out of the tunnel and found the program's receive buffer full."""
    names, values = (
        line.split() for line in inside(NAMES[1], "cat", "/proc/net/snmp").splitlines() if line.startswith("Udp:")
    )
    return int(values[names.index("RcvbufErrors")])


def _iperf(options: list[str]) -> dict[str, dict[str, dict[str, float]]]:
    command = ["ip", "netns", "exec", NAMES[1], "iperf3", "-s", "-1", "-B", INNER[1]]
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            if ":5201" in inside(NAMES[1], "ss", "-Hltn"):
                break
            time.sleep(0.02)
        output = inside(NAMES[0], "iperf3", "-J", "-c", INNER[1], *options)
    finally:
        server.terminate()
        server.wait()
    result: dict[str, dict[str, dict[str, float]]] = json.loads(output)
    return result


def file(scratch: Path) -> Iterator[tuple[str, str]]:
    """A file, compared by its hash."""
    path = scratch / "file"
    data = os.urandom(1 << 20) * (FILE_BYTES >> 20)
    path.write_bytes(data)
    command = ["ip", "netns", "exec", NAMES[1], sys.executable, "-c", _RECEIVER, INNER[1]]
    receiver = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    try:
        assert receiver.stdout is not None
        receiver.stdout.readline()
        digest, seconds = inside(NAMES[0], sys.executable, "-c", _SENDER, INNER[1], str(path)).split()
    finally:
        receiver.kill()
        receiver.communicate()
    if digest != hashlib.sha256(data).hexdigest():
        raise DemoError("the file arrived damaged")
    rate = FILE_BYTES * 8 / float(seconds) / 1e9
    yield f"file of {FILE_BYTES >> 20} MiB, SHA-256 compared", f"the same, {rate:.2f} Gbit/s"


class Wire:
    """A packet socket on a's end of the wire that the kernel hands everything but ESP in UDP, and ARP.

    IKE comes to port 500 first and goes on, enciphered, on ESP's port 4500.
    """

    def __init__(self, stack: contextlib.ExitStack) -> None:
        with netns.inside(NAMES[0]):
            # of no protocol before it is bound: it would take what passes other devices
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, 0)
            bpf.attach_filter(self._socket, udp.not_esp_filter(4500))
            self._socket.bind((DEVICE, 3))
        stack.callback(self._socket.close)
        self._heard()
        # a capture that finds nothing proves something only if it would have found it
        inside(NAMES[0], "ping", "-n", "-c", "1", "-W", "1", OUTER[1])
        if self._heard()[1] < 2:
            raise DemoError("the capture does not see a ping in clear")
        self._before = self._carried()

    def report(self) -> None:
        """Say what crossed the wire; DemoError if anything did in clear."""
        ike, clear = self._heard()
        packets = self._carried() - self._before
        row("packets on the wire", f"{packets}, ESP and IKE on port 4500; {ike} IKE on port 500; in clear: {clear}")
        if clear or packets < 10:
            raise DemoError("something left in clear" if clear else "nothing crossed the wire")

    def _heard(self) -> tuple[int, int]:
        """Datagrams to port 500, and everything else."""
        ike = clear = 0
        while True:
            try:
                packet = self._socket.recv(64)
            except BlockingIOError:
                return ike, clear
            if packet[0] == 0x45 and packet[9] == socket.IPPROTO_UDP and packet[22:24] == _IKE_PORT.to_bytes(2, "big"):
                ike += 1
            else:
                clear += 1

    def _carried(self) -> int:
        """Packets that a's end of the wire has carried; a train that the kernel did not cut counts once."""
        (link,) = json.loads(inside(NAMES[0], "ip", "-s", "-j", "link", "show", DEVICE))
        return int(link["stats64"]["rx"]["packets"]) + int(link["stats64"]["tx"]["packets"])
