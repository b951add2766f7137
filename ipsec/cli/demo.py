"""``make demo``: two gateways carry real traffic through ESP, and a table says what they reached.

As root, or in an unprivileged user namespace where the kernel allows one: two network namespaces joined by a veth, an
ipsecd in each. Where neither is possible: two gateways in this process over links in memory. Everything made here is
removed again, on Ctrl-C too.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from ipsec.cli import demo_memory
from ipsec.cli.demo_memory import DemoError
from ipsec.net import netns, udp

NAMES = ("ipsec-demo-a", "ipsec-demo-b")
DEVICE = "veth0"
OUTER = ("192.0.2.1", "192.0.2.2")
INNER = ("10.1.0.1", "10.2.0.1")
INNER6 = ("fd01::1", "fd02::1")
NETS = ("10.1.0.0/16, fd01::/16", "10.2.0.0/16, fd02::/16")
SUITE = "aes128gcm16"
FILE_BYTES = 64 << 20
#: whatever hangs, the demo does not
LIMIT_SECONDS = 40
#: set in the process behind ``unshare``, so that it does not try once more
AGAIN = "IPSEC_DEMO_IN_USER_NAMESPACE"

_USER_NAMESPACE = (
    *("unshare", "--user", "--map-root-user", "--net", "--mount"),
    # ip-netns(8) keeps names in /run/netns, which belongs to the real root; a new loopback device is down
    *("sh", "-c", 'mount -t tmpfs tmpfs /run && ip link set lo up && exec "$@"', "sh"),
)

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


def main() -> int:
    """Run the demo the best way that this machine allows; 0 if every step did what it should."""
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGALRM, _interrupt)
    signal.alarm(LIMIT_SECONDS)
    os.environ["PATH"] = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    obstacle = _obstacle(())
    if obstacle is None:
        return _guarded(_in_namespaces)
    reasons = [f"directly: {obstacle}"]
    if AGAIN not in os.environ:
        obstacle = _obstacle(_USER_NAMESPACE)
        if obstacle is None:
            command = [*_USER_NAMESPACE, sys.executable, "-m", "ipsec.cli.demo"]
            os.execvpe(command[0], command, {**os.environ, AGAIN: "1"})
        reasons.append(f"in a user namespace: {obstacle}")
    status = _guarded(demo_memory.run)
    print("\nLeft out, because network namespaces and TUN devices cannot be made here:")
    print("  ping, iperf3 and a file through two network namespaces, routes, the capture on the wire")
    for reason in reasons:
        print(f"  {reason}")
    return status


def _interrupt(number: int, frame: FrameType | None) -> None:
    if number == signal.SIGALRM:
        raise DemoError(f"not done after {LIMIT_SECONDS} s")
    raise KeyboardInterrupt


def _guarded(work: Callable[[], None]) -> int:
    try:
        work()
    except KeyboardInterrupt:
        print("\ninterrupted; everything is removed", file=sys.stderr)
        return 130
    except DemoError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    return 0


def _obstacle(prefix: tuple[str, ...]) -> str | None:
    """Why a network namespace with a TUN device in it cannot be made behind ``prefix``; None if it can."""
    name = f"ipsec-demo-{os.getpid()}"
    trial = (
        f"ip netns add {name} && {{ ip netns exec {name} ip tuntap add dev try0 mode tun; s=$?; "
        f"ip netns del {name}; exit $s; }}"
    )
    try:
        done = subprocess.run([*prefix, "sh", "-c", trial], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode == 0:
        return None
    return (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]


def _in_namespaces() -> None:
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ipsec-demo-")))
        _namespaces(stack)
        sniffer = _sniffer()
        stack.callback(sniffer.close)
        _check_sniffer(sniffer)
        print(f"Two gateways, {SUITE}, ESP in UDP over a veth with MTU 1500, keys made just now.\n")
        _daemons(stack, scratch)
        sent_before = _wire_packets()
        rows: list[tuple[str, str]] = []
        for step in (_ping, _throughput, _file):
            for row in step(scratch):
                rows.append(row)
                print(f"  {row[0]:34}  {row[1]}", flush=True)
        clear = _clear_packets(sniffer)
        packets = _wire_packets() - sent_before
        print(f"  {'packets on the wire':34}  {packets}, not ESP: {clear}")
        if clear or packets < 10:
            raise DemoError("something left in clear" if clear else "nothing crossed the wire")
    print("\nOnly ESP crossed the wire. Namespaces, devices, routes and keys are removed.")


def _namespaces(stack: contextlib.ExitStack) -> None:
    for name in NAMES:
        # of a demo that was killed; ours by name
        subprocess.run(["ip", "netns", "del", name], capture_output=True)
        _run("ip", "netns", "add", name)
        stack.callback(subprocess.run, ["ip", "netns", "del", name], capture_output=True)
        _inside(name, "ip", "link", "set", "lo", "up")
    a, b = NAMES
    _run("ip", "link", "add", DEVICE, "netns", a, "type", "veth", "peer", "name", DEVICE, "netns", b)
    for name, address in zip(NAMES, OUTER, strict=True):
        # what the kernel would say by itself (router solicitations) is no traffic of ours
        _inside(name, "sh", "-c", f"echo 1 > /proc/sys/net/ipv6/conf/{DEVICE}/disable_ipv6")
        _inside(name, "ip", "addr", "add", f"{address}/24", "dev", DEVICE)
        _inside(name, "ip", "link", "set", DEVICE, "up")


def _daemons(stack: contextlib.ExitStack, scratch: Path) -> None:
    keys = [secrets.token_hex(20) for _ in NAMES]
    started = []
    for side, name in enumerate(NAMES):
        config = scratch / f"{side}.conf"
        config.touch(mode=0o600)
        config.write_text(_config(side, keys, scratch))
        log = (scratch / f"{side}.log").open("wb")
        stack.callback(log.close)
        command = ["ip", "netns", "exec", name, sys.executable, "-m", "ipsec", "--config", str(config)]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        stack.callback(_stop, process)
        started.append((process, scratch / f"{side}.log"))
    for process, path in started:
        while ": ready" not in path.read_text():
            if process.poll() is not None:
                raise DemoError(f"ipsecd ended with status {process.returncode}:\n{path.read_text()}")
            time.sleep(0.02)
    print(started[0][1].read_text())


def _config(side: int, keys: list[str], scratch: Path) -> str:
    other = 1 - side
    return f"""\
ipsecd {{
    addresses = {INNER[side]}/32, {INNER6[side]}/128
    state_dir = {scratch}/state-{side}
}}
sas {{
    demo {{
        local = {OUTER[side]}
        remote = {OUTER[other]}
        spi_in = {0x1000 + side:#x}
        spi_out = {0x1000 + other:#x}
        esp_proposals = {SUITE}
        key_in = 0x{keys[side]}
        key_out = 0x{keys[other]}
        encap = yes
        local_ts = {NETS[side]}
        remote_ts = {NETS[other]}
    }}
}}
"""


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(3)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _ping(scratch: Path) -> Iterator[tuple[str, str]]:
    for label, address in (("ping, IPv4", INNER[1]), ("ping, IPv6 inside", INNER6[1])):
        output = _inside(NAMES[0], "ping", "-n", "-c", "10", "-i", "0.02", "-W", "1", address)
        received = re.search(r"(\d+) received", output)
        times = re.search(r"= [\d.]+/([\d.]+)/", output)
        if not received or not times or received[1] != "10":
            raise DemoError(f"lost pings to {address}:\n{output}")
        yield label, f"10 of 10, {float(times[1]):.3f} ms on average"


def _throughput(scratch: Path) -> Iterator[tuple[str, str]]:
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
        line.split() for line in _inside(NAMES[1], "cat", "/proc/net/snmp").splitlines() if line.startswith("Udp:")
    )
    return int(values[names.index("RcvbufErrors")])


def _iperf(options: list[str]) -> dict[str, dict[str, dict[str, float]]]:
    command = ["ip", "netns", "exec", NAMES[1], "iperf3", "-s", "-1", "-B", INNER[1]]
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        for _ in range(200):
            if ":5201" in _inside(NAMES[1], "ss", "-Hltn"):
                break
            time.sleep(0.02)
        output = _inside(NAMES[0], "iperf3", "-J", "-c", INNER[1], *options)
    finally:
        server.terminate()
        server.wait()
    result: dict[str, dict[str, dict[str, float]]] = json.loads(output)
    return result


def _file(scratch: Path) -> Iterator[tuple[str, str]]:
    path = scratch / "file"
    data = os.urandom(1 << 20) * (FILE_BYTES >> 20)
    path.write_bytes(data)
    command = ["ip", "netns", "exec", NAMES[1], sys.executable, "-c", _RECEIVER, INNER[1]]
    receiver = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    try:
        assert receiver.stdout is not None
        receiver.stdout.readline()
        digest, seconds = _inside(NAMES[0], sys.executable, "-c", _SENDER, INNER[1], str(path)).split()
    finally:
        receiver.kill()
        receiver.communicate()
    if digest != hashlib.sha256(data).hexdigest():
        raise DemoError("the file arrived damaged")
    rate = FILE_BYTES * 8 / float(seconds) / 1e9
    yield f"file of {FILE_BYTES >> 20} MiB, SHA-256 compared", f"the same, {rate:.2f} Gbit/s"


def _sniffer() -> socket.socket:
    """A packet socket on a's end of the wire that the kernel hands everything but ESP (and ARP)."""
    with netns.inside(NAMES[0]):
        sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, socket.htons(0x0003))
        udp.attach_filter(sniffer, udp.not_esp_filter(4500))
        sniffer.bind((DEVICE, 0x0003))
    _clear_packets(sniffer)
    return sniffer


def _check_sniffer(sniffer: socket.socket) -> None:
    """A capture that finds nothing proves something only if it would have found it."""
    _inside(NAMES[0], "ping", "-n", "-c", "1", "-W", "1", OUTER[1])
    if _clear_packets(sniffer) < 2:
        raise DemoError("the capture does not see a ping in clear")


def _clear_packets(sniffer: socket.socket) -> int:
    found = 0
    while True:
        try:
            sniffer.recv(64)
        except BlockingIOError:
            return found
        found += 1


def _wire_packets() -> int:
    """Packets that a's end of the wire has carried; a train that the kernel did not cut counts once."""
    (link,) = json.loads(_inside(NAMES[0], "ip", "-s", "-j", "link", "show", DEVICE))
    return int(link["stats64"]["rx"]["packets"]) + int(link["stats64"]["tx"]["packets"])


def _inside(name: str, *command: str) -> str:
    return _run("ip", "netns", "exec", name, *command)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=LIMIT_SECONDS)
    if done.returncode:
        raise DemoError(f"{' '.join(command)}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
