"""Without root's powers: in a user namespace, and with no capability at all on a device that somebody else prepared."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.gateways import COMMAND, INNER, NETS, Setup, World

pytestmark = pytest.mark.e2e

MakeWorld = Callable[[Setup], World]

#: uid 0 with every capability gone is a user who owns root's files, and no more
NO_CAPABILITIES = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all", "--no-new-privs")


def start_behind(prefix: tuple[str, ...], config: Path, log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*prefix, *COMMAND, "--config", str(config)], stdin=subprocess.DEVNULL, stdout=out, stderr=out
        )
    deadline = time.monotonic() + 20
    while "ready" not in log.read_text():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            process.wait()
            raise AssertionError(log.read_text())
        time.sleep(0.02)
    return process


def test_in_a_user_namespace(make_world: MakeWorld, tmp_path: Path) -> None:
    """Everything but forced socket buffers is permitted there."""
    prefix = ("unshare", "--user", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up; exec "$@"', "sh")
    if subprocess.run([*prefix, "true"], capture_output=True).returncode:
        pytest.skip("this kernel allows no nested user namespaces")
    world = make_world(Setup())
    process = start_behind(prefix, world.a.config, tmp_path / "log")
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    said = (tmp_path / "log").read_text()
    assert "2 SAs and 5 policies" in said or "2 SAs and" in said
    assert "ERROR" not in said


def test_without_any_capability_on_a_prepared_device(make_world: MakeWorld) -> None:
    world = make_world(Setup(settings={"install_routes": "no", "addresses": ""}))
    world.b.config.write_text(
        world.b.config.read_text().replace("install_routes = no", f"addresses = {INNER[4][1]}/32")
    )
    world.b.start()
    world.a.run("ip", "tuntap", "add", "dev", "ipsec0", "mode", "tun", "user", "0")
    world.a.run("ip", "addr", "add", f"{INNER[4][0]}/32", "dev", "ipsec0")
    world.a.run("ip", "link", "set", "ipsec0", "mtu", "1400", "up")
    world.a.run("ip", "route", "add", NETS[4][1], "dev", "ipsec0", "src", INNER[4][0])
    prefix = ("ip", "netns", "exec", world.a.namespace, *NO_CAPABILITIES)
    world.a.process = start_behind(prefix, world.a.config, world.a.log_file)
    assert "CapEff:\t0000000000000000" in Path(f"/proc/{world.a.process.pid}/status").read_text()
    assert "3 received" in world.a.ping(INNER[4][1])
    assert "3 received" in world.b.ping(INNER[4][0])
    assert world.a.stop()[0] == 0
    assert "ipsec0" in world.a.run("ip", "link").stdout
