"""Containers of a scenario: podman in the foreground, whose output is read line by line."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from tools.scenarios.lab import Lab, LabError, left_behind
from tools.scenarios.model import COMMON, FOLDER, Scenario

#: podman's own settings for the scenarios
ENVIRONMENT = {"CONTAINERS_CONF": str(FOLDER / "containers.conf")}
#: a container that takes longer to stop is killed, and podman says so
STOP_S = 8


class Running:
    """One container, from ``podman run`` to its end. Its lines stay when it is over."""

    def __init__(self, name: str, command: list[str]) -> None:
        self.name = name
        self.begin = time.monotonic()
        self.lines: list[tuple[float, str]] = []
        "seconds since the start, and a line of its output"
        self._next = 0
        self._changed = threading.Condition()
        self._ended = False
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **ENVIRONMENT},
            start_new_session=True,  # an interrupt ends the scenario, which ends this
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self.lines.append((time.monotonic() - self.begin, line.rstrip("\n")))
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def wait_line(self, pattern: str, within_s: float) -> tuple[float, str]:
        """The next line, behind the one that was found last, that the pattern is found in. LabError."""
        wanted = re.compile(pattern)
        deadline = time.monotonic() + within_s
        with self._changed:
            seen = self._next
            while True:
                for index in range(seen, len(self.lines)):
                    if wanted.search(self.lines[index][1]):
                        self._next = index + 1
                        return self.lines[index]
                seen = len(self.lines)
                left = deadline - time.monotonic()
                if self._ended or left <= 0:
                    why = "it ended" if self._ended else f"not within {within_s:g} s"
                    raise LabError(f"{self.name} did not say {pattern!r}: {why}")
                self._changed.wait(left)

    def wait_end(self, within_s: float) -> int:
        """The exit status. LabError."""
        try:
            status = self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            raise LabError(f"{self.name} still runs after {within_s:g} s") from None
        self._reader.join(within_s)
        return status

    @property
    def text(self) -> str:
        """All it has said."""
        return "\n".join(line for _, line in self.lines)


class Containers:
    """Those of one scenario, until ``close``."""

    def __init__(self, scenario: Scenario, lab: Lab, images: dict[str, str]) -> None:
        self._scenario = scenario
        self._lab = lab
        self._images = images
        self._folder = tempfile.TemporaryDirectory(prefix="ipsec-scenario-", ignore_cleanup_errors=True)
        self.scratch = Path(self._folder.name)
        # users of containers have to get in
        self.scratch.chmod(0o755)
        self.running: dict[str, Running] = {}
        "the last run of each"

    def full_name(self, name: str) -> str:
        """What podman calls it."""
        return f"{self._lab.prefix}-{name}"

    def command(self, name: str) -> list[str]:
        """``podman run`` as it is in the scenario."""
        container = self._scenario.containers[name]
        # podman wants systemd for the image's HEALTHCHECK; what that asks is asked by steps
        command = ["podman", "run", "--rm", "--no-healthcheck", "--log-driver=none", "--name", self.full_name(name)]
        command += [f"--network=ns:/run/netns/{self._lab.namespace(container.node)}", *COMMON]
        command += [self._expand(flag) for flag in container.flags]
        for inside, file in container.files.items():
            command.append(f"--volume={self._scenario.folder / file}:{inside}:ro")
        for number, (inside, text) in enumerate(container.contents.items()):
            path = self.scratch / f"{name}.{number}"
            path.write_text(text)
            command.append(f"--volume={path}:{inside}:ro")
        command += [f"--env={key}={value}" for key, value in container.environment.items()]
        return [*command, self._images[container.image], *container.arguments]

    def _expand(self, flag: str) -> str:
        """What is this run's own in a flag.

        ``{scratch}/NAME`` is a folder that everybody may write to, as emptyDir is in a pod; ``{netns}/NODE`` the file
        of a node's network namespace.
        """
        for name in re.findall(r"{scratch}/([\w-]+)", flag):
            (self.scratch / name).mkdir(exist_ok=True)
            (self.scratch / name).chmod(0o777)
        flag = re.sub(r"{netns}/(\w+)", lambda found: f"/run/netns/{self._lab.namespace(found[1])}", flag)
        return flag.replace("{scratch}", str(self.scratch))

    def start(self, name: str) -> Running:
        """Run it."""
        self.running[name] = Running(name, self.command(name))
        return self.running[name]

    def get(self, name: str) -> Running:
        """The last run. LabError."""
        if name not in self.running:
            raise LabError(f"{name} was not started")
        return self.running[name]

    def execute(self, name: str, command: list[str], timeout_s: float = 20) -> tuple[int, str]:
        """Exit status and output of a command inside."""
        done = podman("exec", self.full_name(name), *command, timeout_s=timeout_s)
        return done.returncode, done.stdout + done.stderr

    def close(self) -> None:
        """Remove all of them; safe in any state."""
        for name, running in self.running.items():
            if running.process.poll() is None:
                podman("rm", "-f", "-t", "0", self.full_name(name))
                try:
                    running.wait_end(STOP_S)
                except LabError:
                    running.process.kill()
        self._folder.cleanup()


def sweep() -> None:
    """Remove the containers of killed runs."""
    for name in podman("ps", "--all", "--format={{.Names}}").stdout.splitlines():
        if left_behind(name):
            podman("rm", "--force", "--time=0", name)


def podman(*arguments: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    """A podman command, whatever comes of it."""
    try:
        return subprocess.run(
            ["podman", *arguments],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env={**os.environ, **ENVIRONMENT},
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise LabError(f"podman {' '.join(arguments)}: no end after {timeout_s:g} s") from None
    except OSError as error:
        raise LabError(f"podman: {error.strerror}") from None
