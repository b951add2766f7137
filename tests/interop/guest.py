"""Another Linux kernel for a peer: Debian's user-mode Linux, a kernel that runs as an ordinary process.

It has what the kernel of a container host may lack, ESP of its own, and needs neither KVM nor an image: its root is
this machine's, read-only, with what it writes kept in its memory. One folder it shares with us. Commands reach it over
a wire of their own.
"""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.interop.lab import Namespace

#: from Debian's package user-mode-linux
LINUX = shutil.which("linux.uml")
MODULES = Path("/usr/lib/uml/modules")
MEMORY = "1G"
#: our end and the guest's of the wire for commands, and where the guest's shell listens
CONTROL = ("169.254.77.1", "169.254.77.2")
CONTROL_DEVICE = "control0"
SHELL_PORT = 7000
#: it boots in 10 s, on a machine that does other things as well in a minute
BOOT_TIMEOUT = 120.0
#: closes what a command prints, before its status
END = "--status "

#: becomes the first process; what is below /mnt/n is the root that everything else sees
BOOT = """
mount -t proc p /proc
release=$(uname -r)
insmod {modules}/$release/kernel/fs/overlayfs/overlay.ko
mount -t tmpfs -o size=80% t /mnt && mkdir /mnt/l /mnt/u /mnt/w /mnt/n
mount -t hostfs none /mnt/l -o / && mount -t overlay -o lowerdir=/mnt/l,upperdir=/mnt/u,workdir=/mnt/w o /mnt/n
cd /mnt/n
mount -t proc p proc && mount -t sysfs s sys && mount -t devtmpfs d dev && mount -t tmpfs r run
mkdir -p lib/modules && mount --bind {modules} lib/modules
mount -t hostfs none .{shared} -o {shared}
mount -t tmpfs r dev/shm || mkdir -p dev/shm
exec chroot . {shell} -c {inside}
"""
INSIDE = """
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
ip link set lo up
for module in esp4 esp6 xfrm_user; do modprobe $module; done
ip addr add {address}/30 dev vec{control} && ip link set vec{control} up
exec {python} -c {agent}
"""
#: answers each connection with what its command prints, and how it ended
AGENT = """
import os, socket, subprocess
server = socket.create_server(("{address}", {port}))
while True:
    peer = server.accept()[0]
    command = b"".join(iter(lambda: peer.recv(65536), b""))
    out = subprocess.PIPE
    done = subprocess.run(command, shell=True, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT)
    peer.sendall(done.stdout + f"{end}{{done.returncode}}".encode())
    peer.close()
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
"""


class Guest:
    """A running kernel, until ``close``. Its devices vec0, vec1, ... are the tap devices of a namespace, in that order.

    ``shared`` is the folder that both see. Another device, for commands, is made here.
    """

    def __init__(self, namespace: Namespace, devices: tuple[str, ...], shared: Path) -> None:
        assert LINUX
        self.namespace = namespace
        namespace.ip("tuntap", "add", CONTROL_DEVICE, "mode", "tap")
        namespace.ip("link", "set", CONTROL_DEVICE, "up")
        namespace.ip("addr", "add", f"{CONTROL[0]}/30", "dev", CONTROL_DEVICE)
        taps = [f"vec{i}:transport=tap,ifname={name}" for i, name in enumerate((*devices, CONTROL_DEVICE))]
        (shared / "boot").write_text(_boot(len(devices), shared))
        root = ("root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", f"mem={MEMORY}")
        with (shared / "console").open("wb") as console:
            self._process = subprocess.Popen(
                namespace.command(LINUX, *root, *taps, "init=/bin/sh", "--", str(shared / "boot")),
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                env={**os.environ, "TMPDIR": "/dev/shm"},
                # it starts processes for each of its own, which go with the group
                process_group=0,
            )
        deadline = time.monotonic() + BOOT_TIMEOUT
        while not self._answers():
            ended = self._process.poll() is not None or time.monotonic() > deadline
            assert not ended, (shared / "console").read_text(errors="replace")[-2000:]

    def _answers(self) -> bool:
        try:
            return self.run("true", timeout=2) == ""
        except OSError:
            time.sleep(0.2)
            return False

    def run(self, command: str, *, check: bool = True, timeout: float = 60) -> str:
        """What a command of the shell prints in there."""
        with self.namespace.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            sock.settimeout(timeout)
            sock.connect((CONTROL[1], SHELL_PORT))
            sock.sendall(command.encode())
            sock.shutdown(socket.SHUT_WR)
            said = b"".join(iter(lambda: sock.recv(1 << 16), b"")).decode(errors="replace")
        out, _, status = said.rpartition(END)
        assert status == "0" or not check, f"{command}: {said}"
        return out

    def spawn(self, command: str, output: Path) -> int:
        """Start a program in there, and the id it has there."""
        return int(self.run(f"{command} </dev/null >>{shlex.quote(str(output))} 2>&1 & echo $!"))

    def close(self) -> None:
        """End it and all its processes."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, 9)
        self._process.wait()


def _boot(control: int, shared: Path) -> str:
    agent = AGENT.format(address=CONTROL[1], port=SHELL_PORT, end=END)
    python = shutil.which("python3", path="/usr/bin") or sys.executable
    inside = INSIDE.format(address=CONTROL[1], control=control, python=python, agent=shlex.quote(agent))
    return BOOT.format(modules=MODULES, shared=shared, shell="/bin/sh", inside=shlex.quote(inside))
