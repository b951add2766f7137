"""What a run leaves behind: nothing, however it ends. And what the next one does about a run that was killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.topology import PREFIX, SCRATCH_PREFIX, Lab, LabError, Link, reachable, run

pytestmark = pytest.mark.e2e

#: two gateways with a client behind each, a process in one of them, one that does not hear SIGTERM in another
CHILD = """
import signal, sys, time
from bench import topology
from bench.topology import Lab, Link
topology.STOP_TIMEOUT_S = 0.3
signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
try:
    with Lab(alone=False) as lab:
        pair = lab.pair("t", Link(clients=True))
        lab.start(["sleep", "600.25"], lab.scratch / "log", where=pair.client)
        deaf = lab.spawn(["sh", "-c", "trap '' TERM; echo deaf; sleep 601.25; sleep 601.25"], where=pair.a)
        deaf.stdout.readline()
        print("up", flush=True)
        time.sleep(60)
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.fixture
def child() -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    assert len(left(process.pid)) >= 7, "four namespaces, two processes, a directory"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def left(pid: int) -> list[str]:
    """Namespaces, processes in them and directories of a run."""
    namespaces = [line.split()[0] for line in run(["ip", "netns", "list"]).splitlines()]
    ours = [name for name in namespaces if name.startswith(f"{PREFIX}{pid}-")]
    processes = [inside for name in ours for inside in run(["ip", "netns", "pids", name]).split()]
    return ours + processes + [str(path) for path in Path(tempfile.gettempdir()).glob(f"{SCRATCH_PREFIX}{pid}-*")]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing(child: subprocess.Popen[str], number: int) -> None:
    child.send_signal(number)
    # the second one does not cut the clearing short
    child.send_signal(number)
    assert child.wait(20) == 130
    assert left(child.pid) == []


def test_the_next_run_clears_up_after_one_that_was_killed(child: subprocess.Popen[str]) -> None:
    with Lab(alone=False):
        assert left(child.pid), "one that still runs is left alone"
    child.kill()
    child.wait()
    assert left(child.pid)
    with Lab(alone=False):
        assert left(child.pid) == []


@pytest.mark.parametrize("link", [Link(clients=True), Link(ipv6=True, mtu=9000)], ids=["clients", "ipv6"])
def test_links(link: Link) -> None:
    with Lab(alone=False) as lab:
        pair = lab.pair("link", link)
        for end, here, there in zip(pair.ends, (0, 1), (1, 0), strict=True):
            end.run("ip", "route", "add", link.inner_net[there], "via", link.outer[there],
                    "src", link.gateway_inner[here])  # fmt: skip
        # the first packets may wait for neighbours to find each other
        assert any(reachable(pair) for _ in range(5))
        assert f"mtu {link.mtu}" in pair.a.run("ip", "link", "show", "dev", "veth0")
        lab.remove(pair)
        assert all(not name.endswith("-link-a") for name in left(0))


def test_two_that_measure_refuse_each_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with Lab(), pytest.raises(LabError, match="another bench"):
        Lab()


def test_without_root_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(LabError, match="root"):
        Lab()
