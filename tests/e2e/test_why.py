"""ipsecctl explain and capture on two gateways: why a tunnel is not up, and what passes one that is."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.ctl.fake import VALIDATOR
from tests.e2e.gateways import INNER, OUTER, Gateway, eventually
from tests.e2e.ike_gateways import IkeWorld, launch, loss

pytestmark = pytest.mark.e2e

needs_tshark = pytest.mark.skipif(not shutil.which("tshark"), reason="tshark is not installed")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[IkeWorld]:
    """Two gateways with vici, not started yet."""
    with IkeWorld(tmp_path) as world:
        for side, gateway in enumerate((world.a, world.b)):
            world.set("ipsecd.vici_socket", str(socket_of(gateway)), side)
        yield world


def socket_of(gateway: Gateway) -> Path:
    """Where its daemon is to be reached."""
    return gateway.state.parent / f"{gateway.namespace}.vici"


def ctl(gateway: Gateway, *arguments: str) -> list[str]:
    """The command line of ipsecctl there."""
    return [sys.executable, "-m", "ipsec.ctl", "--socket", str(socket_of(gateway)), *arguments]


def document(gateway: Gateway, *arguments: str) -> Any:
    """What ipsecctl prints with --json."""
    done = gateway.run(*ctl(gateway, *arguments, "--json"), check=False)
    found = json.loads(done.stdout)
    VALIDATOR.validate(found)
    return found


def test_both_ends_explain_selectors_that_differ(world: IkeWorld) -> None:
    world.set(":local_ts", "10.9.0.0/16", 1)
    world.set(":start_action", "start", 0)
    world.start()
    assert eventually(lambda: document(world.a, "explain", "site")["problems"]), world.logs()
    ours, theirs = (document(gateway, "explain", "site") for gateway in (world.a, world.b))
    assert not ours["up"]
    (problem,) = theirs["problems"]
    assert (problem["cause"], problem["child"], problem["by_peer"], problem["initiator"]) == (
        "ts-mismatch", "net", False, False,
    )  # fmt: skip
    assert problem["ours"]["local_ts"] == ["10.9.0.0/16"]
    assert "10.2.0.0/16" in problem["theirs"]["local_ts"]
    (problem,) = ours["problems"]
    assert (problem["cause"], problem["by_peer"], problem["peer"]) == ("ts-mismatch", True, OUTER[4][1])
    assert 0 <= problem["retry_in_s"] <= 10
    done = world.a.run(*ctl(world.a, "explain", "site"), check=False)
    assert "TS_UNACCEPTABLE" in done.stdout
    assert "tried again in " in done.stdout
    assert "What to do" in done.stdout
    # what the daemon holds itself is not missing
    done = world.a.run(*ctl(world.a, "doctor", str(world.a.config)), check=False)
    assert done.returncode == 0, done.stdout
    assert "nothing is missing" in done.stdout


def test_nobody_is_there(world: IkeWorld) -> None:
    world.set("ipsecd.retransmit_tries", "1", 0)
    world.set(":start_action", "start", 0)
    world.write()
    launch(world.a)
    assert eventually(lambda: document(world.a, "explain", "site")["problems"]), world.a.log()
    (problem,) = document(world.a, "explain", "site")["problems"]
    assert (problem["cause"], problem["by_peer"], problem["over"]) == ("no-answer", True, False)


def test_an_address_that_is_not_here(world: IkeWorld) -> None:
    """It is tried, for the address may come; and told at once."""
    elsewhere = "192.0.2.77"
    world.set("@local_addrs", elsewhere, 0)
    world.start()
    done = world.a.run(*ctl(world.a, "up", "site", "--timeout", "2"), check=False)
    assert done.returncode == 8, done.stdout
    assert f"{elsewhere} in local_addrs is no address of this host" in done.stdout
    assert "waiting; likely: " in done.stderr
    (problem,) = document(world.a, "explain", "site")["problems"]
    assert problem["cause"] == "no-path"


def capturing(gateway: Gateway, file: Path, *arguments: str) -> subprocess.Popen[str]:
    """ipsecctl at work."""
    inside = ["ip", "netns", "exec", gateway.namespace]
    command = [*inside, *ctl(gateway, "capture", "-o", str(file), "--json", *arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    # its first block is written when it has begun
    assert eventually(lambda: file.exists() and file.stat().st_size), process.poll()
    return process


@needs_tshark
def test_capture_with_names_and_keys(world: IkeWorld, tmp_path: Path) -> None:
    """From the first message on: what tshark, which nobody here wrote, makes of the file."""
    world.set("ipsecd.keylog", str(tmp_path / "keylog"), 0)
    world.start()
    file, keys = tmp_path / "a.pcapng", tmp_path / "keys"
    capture = capturing(world.a, file, "--keys", str(keys))
    assert world.a.run(*ctl(world.a, "up", "site"), check=False).returncode == 0, world.logs()
    assert loss(world.a.ping(INNER[4][1], "-s", "1000", count=5)) == 0
    time.sleep(0.2)
    capture.send_signal(signal.SIGINT)
    out, err = capture.communicate(timeout=20)
    assert capture.returncode == 0, (out, err)
    said = json.loads(out)
    VALIDATOR.validate(said)
    assert said["dropped"] == 0, err
    assert "KEYS ARE COPIED" in err
    assert file.stat().st_mode & 0o777 == 0o600
    assert (keys / "esp_sa").stat().st_mode & 0o777 == 0o600
    plain = tshark(file, "frame.interface_name", "frame.comment", "esp.spi", "isakmp.exchangetype", "icmp.type")
    inside = [row for row in plain if row[0] == "ipsec0"]
    assert said["inside"] == len(inside)
    # the kernel looks for IPv6 routers on every device
    assert [row[1] for row in inside if row[4]] == ["site/net outbound", "site/net inbound"] * 5
    esp = [row[1] for row in plain if row[2]]
    assert len(esp) == 10
    assert all(" of site/net" in comment and "ESP SPI 0x" in comment for comment in esp), esp
    ike = [row[1] for row in plain if row[3]]
    assert ike[0] == "IKE_SA_INIT request 0 of site"
    assert "IKE_AUTH response 1 of site" in ike
    assert said["outside"] == len(esp) + len(ike)
    # with the keys: the pings inside of ESP, and the payloads inside of IKE_AUTH
    open_ = tshark(file, "icmp.type", "esp.spi", "isakmp.typepayload", keys=keys)
    assert [row[0] for row in open_ if row[1]] == ["8", "0"] * 5
    assert any("35" in row[2].split(",") for row in open_ if row[2]), "an IDi payload is readable"


@needs_tshark
def test_trains_are_taken_apart(world: IkeWorld, tmp_path: Path) -> None:
    """A TCP transfer goes out as trains of UDP datagrams (UDP_SEGMENT), which a copy shows as one packet."""
    world.up()
    file = tmp_path / "a.pcapng"
    capture = capturing(world.a, file, "site", "--outside", "--count", "300")
    transfer(world)
    out, err = capture.communicate(timeout=20)
    assert capture.returncode == 0, (out, err)
    assert json.loads(out)["outside"] == 300
    rows = tshark(file, "esp.spi", "esp.sequence", "ip.len", "_ws.malformed")
    sent: dict[str, list[int]] = {}
    for spi, sequence, length, malformed in rows:
        assert not malformed
        assert int(length.split(",")[0]) <= 1500
        sent.setdefault(spi, []).append(int(sequence))
    longest = max(sent.values(), key=len)
    assert len(longest) > 100
    assert longest == list(range(longest[0], longest[0] + len(longest)))


def transfer(world: IkeWorld, size: int = 4_000_000) -> None:
    """Send octets by TCP from a to b."""
    receive = f"import socket; s = socket.create_server(('{INNER[4][1]}', 7007)); print('ready', flush=True)\n"
    server = world.b.popen(sys.executable, "-c", f"{receive}c = s.accept()[0]\nwhile c.recv(1 << 20): pass")
    assert server.stdout is not None
    server.stdout.readline()
    send = f"import socket; s = socket.create_connection(('{INNER[4][1]}', 7007), 5); s.sendall(bytes({size}))"
    world.a.run(sys.executable, "-c", send)
    server.communicate(timeout=10)


def tshark(file: Path, *fields: str, keys: Path | None = None) -> list[list[str]]:
    """Fields of each packet."""
    command = ["tshark", "-r", str(file), "-T", "fields", "-E", "separator=|", "-E", "occurrence=a"]
    command += [option for name in fields for option in ("-e", name)]
    environment = os.environ | {"WIRESHARK_CONFIG_DIR": str(keys or file.parent / "no-profile")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=True)
    return [line.split("|") for line in done.stdout.splitlines()]


def test_capture_says_what_is_missing(world: IkeWorld, tmp_path: Path) -> None:
    world.start()
    file = str(tmp_path / "x.pcapng")
    command = ctl(world.a, "capture", "-o", file, "--keys", str(tmp_path / "k"), "--seconds", "1")
    done = world.a.run(*command, check=False)
    assert done.returncode == 4
    assert "set ipsecd.keylog" in done.stderr
    # from another namespace
    command = ctl(world.a, "capture", "-o", file, "--seconds", "1")
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 4
    assert "not in this network namespace" in done.stderr
    assert not (tmp_path / "x.pcapng").exists()


def test_the_daemon_dies_while_somebody_looks(world: IkeWorld, tmp_path: Path) -> None:
    world.up()
    file = tmp_path / "a.pcapng"
    capture = capturing(world.a, file, "--seconds", "3")
    command = ["ip", "netns", "exec", world.a.namespace, *ctl(world.a, "log", "--level", "debug")]
    log = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert log.stdout is not None
    world.b.ping(INNER[4][0], count=1)
    # it says something as soon as it hears of anything, which it may not do yet at the first time
    for _ in range(10):
        assert world.a.run(*ctl(world.a, "rekey", "site/net"), check=False).returncode == 0
        if select.select([log.stdout], [], [], 1.0)[0]:
            break
    assert log.stdout.readline()
    world.a.stop(signal.SIGKILL)
    _, err = log.communicate(timeout=10)
    assert (log.returncode, "hung up" in err) == (10, True), err
    out, err = capture.communicate(timeout=20)
    assert capture.returncode == 0, (out, err)
    assert json.loads(out)["outside"] > 0
    done = world.a.run(*ctl(world.a, "explain", "site"), check=False)
    assert done.returncode == 10
    assert "no daemon" in done.stderr
