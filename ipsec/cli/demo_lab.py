"""What the demos share: two network namespaces joined by a veth, and how to get there.

As root, or in an unprivileged user namespace where the kernel allows one. Everything made here is removed again, on
Ctrl-C too.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from ipsec.cli.demo_memory import DemoError, row

NAMES = ("ipsec-demo-a", "ipsec-demo-b")
DEVICE = "veth0"
OUTER = ("192.0.2.1", "192.0.2.2")
INNER = ("10.1.0.1", "10.2.0.1")
INNER6 = ("fd01::1", "fd02::1")
NETS = ("10.1.0.0/16, fd01::/16", "10.2.0.0/16, fd02::/16")
#: short, so that both kinds of SA are replaced while one looks on
CHILD_LIFE_S, IKE_LIFE_S = 3, 4
#: whatever hangs, the demo does not
LIMIT_SECONDS = 60
START_SECONDS = 15.0
#: set in the process behind ``unshare``, so that it does not try once more
AGAIN = "IPSEC_DEMO_IN_USER_NAMESPACE"

_USER_NAMESPACE = (
    *("unshare", "--user", "--map-root-user", "--net", "--mount"),
    # ip-netns(8) keeps names in /run/netns, which belongs to the real root; a new loopback device is down
    *("sh", "-c", 'mount -t tmpfs tmpfs /run && ip link set lo up && exec "$@"', "sh"),
)


def no_arguments(module: str, text: str | None) -> None:
    """Say what a demo does if asked for help, and refuse any other argument."""
    formatter = argparse.RawDescriptionHelpFormatter
    argparse.ArgumentParser(f"python -m {module}", description=text, formatter_class=formatter).parse_args()


def run_demo(module: str, work: Callable[[contextlib.ExitStack, Path], None]) -> list[str] | int:
    """Run ``work`` where this machine allows it; its status, or why neither way is possible."""
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGALRM, _interrupt)
    signal.alarm(LIMIT_SECONDS)
    os.environ["PATH"] = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    obstacle = _obstacle(())
    if obstacle is None:
        return guarded(lambda: _in_namespaces(work))
    reasons = [f"directly: {obstacle}"]
    if AGAIN not in os.environ:
        obstacle = _obstacle(_USER_NAMESPACE)
        if obstacle is None:
            command = [*_USER_NAMESPACE, sys.executable, "-m", module]
            os.execvpe(command[0], command, {**os.environ, AGAIN: "1"})
        reasons.append(f"in a user namespace: {obstacle}")
    return reasons


def _interrupt(number: int, frame: FrameType | None) -> None:
    if number == signal.SIGALRM:
        raise DemoError(f"not done after {LIMIT_SECONDS} s")
    raise KeyboardInterrupt


def guarded(work: Callable[[], None]) -> int:
    """0 if ``work`` came to its end; one line otherwise, and the status."""
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


def _in_namespaces(work: Callable[[contextlib.ExitStack, Path], None]) -> None:
    with contextlib.ExitStack() as stack:
        _alone(stack)
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ipsec-demo-")))
        _namespaces(stack)
        work(stack, scratch)
    print("\nNamespaces, devices, routes and keys are removed.")


def _alone(stack: contextlib.ExitStack) -> None:
    """DemoError if another demo runs: its namespaces have the same names. The claim ends with the process."""
    claim = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
    try:
        claim.bind("\0ipsec-demo")
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise DemoError("another demo is running; run this one when that has ended") from None


def _namespaces(stack: contextlib.ExitStack) -> None:
    for name in NAMES:
        # of a demo that was killed; ours by name
        subprocess.run(["ip", "netns", "del", name], capture_output=True)
        run("ip", "netns", "add", name)
        stack.callback(subprocess.run, ["ip", "netns", "del", name], capture_output=True)
        inside(name, "ip", "link", "set", "lo", "up")
    a, b = NAMES
    run("ip", "link", "add", DEVICE, "netns", a, "type", "veth", "peer", "name", DEVICE, "netns", b)
    for name, address in zip(NAMES, OUTER, strict=True):
        # what the kernel would say by itself (router solicitations) is no traffic of ours
        inside(name, "sh", "-c", f"echo 1 > /proc/sys/net/ipv6/conf/{DEVICE}/disable_ipv6")
        inside(name, "ip", "addr", "add", f"{address}/24", "dev", DEVICE)
        inside(name, "ip", "link", "set", DEVICE, "up")


class Daemon:
    """A process in one of the namespaces, and its log."""

    def __init__(self, stack: contextlib.ExitStack, side: int, log: Path, *command: str, **environment: str) -> None:
        self.begun = time.monotonic()
        self._log = log
        out = log.open("wb")
        stack.callback(out.close)
        self.process = subprocess.Popen(
            ["ip", "netns", "exec", NAMES[side], *command],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env={**os.environ, **environment},
        )
        stack.callback(_stop, self.process)

    def log(self) -> str:
        """What it has said."""
        return self._log.read_text(errors="replace")

    def wait(self, text: str) -> float:
        """Seconds from the start until the log has ``text``."""
        while text not in self.log():
            self.check()
            if time.monotonic() - self.begun > START_SECONDS:
                raise DemoError(f"no {text!r} after {START_SECONDS:g} s:\n{self.log()}")
            time.sleep(0.001)
        return time.monotonic() - self.begun

    def check(self) -> None:
        """DemoError if it has ended."""
        if self.process.poll() is not None:
            raise DemoError(f"a daemon ended with status {self.process.returncode}:\n{self.log()}")

    def rekeyed(self) -> tuple[int, int]:
        """How often CHILD_SAs and IKE_SAs were replaced, as an ipsecd's log has it."""
        log = self.log()
        return max(log.count(" up, SPIs ") - 1, 0), log.count(": rekeyed, ")


def start_ipsecd(stack: contextlib.ExitStack, scratch: Path, side: int, sections: str) -> Daemon:
    """An ipsecd whose configuration has these sections besides its own."""
    home = scratch / f"ipsecd-{side}"
    home.mkdir(mode=0o700, exist_ok=True)
    config = home / "swanctl.conf"
    config.touch(mode=0o600)
    config.write_text(f"""\
ipsecd {{
    addresses = {INNER[side]}/32, {INNER6[side]}/128
    state_dir = {home}/state
    vici_socket = none
}}
{sections}""")
    command = sys.executable, "-m", "ipsec", "--config", str(config)
    return Daemon(stack, side, home / "log", *command, SWANCTL_DIR=str(home))


def connection(side: int, *, auth: str, names: tuple[str, str], initiates: bool) -> str:
    """The section ``connections`` for one end, which both ipsecd and strongSwan understand."""
    other = 1 - side
    ours = "".join(f"            {line}\n" for line in (f"auth = {auth}", f"id = {names[side]}"))
    child = ""
    times = ""
    if initiates:
        times = f"        rekey_time = {IKE_LIFE_S}s\n        rand_time = 0s\n        over_time = 60s\n"
        child = f"""\
                rekey_time = {CHILD_LIFE_S}s
                rand_time = 0s
                life_time = 60s
                start_action = start
"""
    certs = "            certs = gateway.pem\n" if auth == "pubkey" else ""
    return f"""\
connections {{
    demo {{
        version = 2
        local_addrs = {OUTER[side]}
        remote_addrs = {OUTER[other]}
        proposals = aes128gcm16-prfsha256-x25519
{times}        local {{
{ours}{certs}        }}
        remote {{
            auth = {auth}
            id = {names[other]}
        }}
        children {{
            net {{
                local_ts = {NETS[side]}
                remote_ts = {NETS[other]}
                esp_proposals = aes128gcm16-x25519
{child}            }}
        }}
    }}
}}
"""


def show_negotiated(daemon: Daemon) -> None:
    """What the log of an ipsecd says about the SAs that came up first."""
    # packets do not wait for the log
    daemon.wait(" up, SPIs ")
    for line in daemon.log().splitlines():
        text = line.partition(": ")[2]
        for begin, label in ((" takes ", "IKE_SA"), (" established between ", ""), (" up, SPIs ", "CHILD_SA")):
            if begin in line:
                text = text.partition(begin)[2]
                row(label, "SPIs " + text if label == "CHILD_SA" else text)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(3)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def inside(name: str, *command: str) -> str:
    """Output of a command in a namespace."""
    return run("ip", "netns", "exec", name, *command)


def run(*command: str) -> str:
    """Output of a command; DemoError if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=LIMIT_SECONDS)
    if done.returncode:
        raise DemoError(f"{' '.join(command)}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout
