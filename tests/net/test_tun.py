"""ipsec.net.tun: the offload ladder anywhere, the device itself where namespaces are allowed."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipsec.errors import BackendError
from ipsec.net import netns
from ipsec.net.tun import check_node, open_tun, probe_offloads, tun_from_fd

CSUM, TSO, USO = 0x01, 0x06, 0x60


@pytest.fixture
def namespace() -> Iterator[str]:
    """A fresh network namespace; the test's thread is inside."""
    name = f"net-tun-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        with netns.inside(name):
            yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


@pytest.mark.parametrize(
    ("known", "expected"),
    [(CSUM | TSO | USO, (True, True)), (CSUM | TSO, (True, False)), (CSUM, (False, False)), (0, (False, False))],
)
def test_ladder_takes_the_most_that_the_kernel_knows(known: int, expected: tuple[bool, bool]) -> None:
    asked: list[int] = []

    def attempt(bits: int) -> int:
        asked.append(bits)
        return errno.EINVAL if bits & ~known else 0

    tso, uso, refused = probe_offloads(attempt, tso=True, uso=True)
    assert (tso, uso) == expected
    assert ("tun_tso" in refused, "tun_uso" in refused) == (not tso, not uso)
    assert asked[-1] & ~known == 0


def test_ladder_does_not_ask_for_what_is_switched_off() -> None:
    asked: list[int] = []

    def attempt(bits: int) -> int:
        asked.append(bits)
        return 0

    assert probe_offloads(attempt, tso=True, uso=False) == (True, False, {"tun_uso": "switched off"})
    assert probe_offloads(attempt, tso=False, uso=True)[:2] == (False, True)
    assert asked == [CSUM | TSO, CSUM | USO]


@pytest.mark.parametrize("name", ["", "a" * 16, "a/b", "a b", ".", "eth0:1"])
def test_bad_names(name: str) -> None:
    with pytest.raises(BackendError, match="not a device name"):
        open_tun(name)


def test_a_descriptor_that_is_no_tun() -> None:
    reader, writer = os.pipe()
    try:
        with pytest.raises(BackendError, match="not an attached TUN queue"):
            tun_from_fd(reader)
    finally:
        os.close(reader)
        os.close(writer)


def test_a_plain_file_in_the_device_nodes_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    node = tmp_path / "tun"
    node.touch()
    monkeypatch.setattr("ipsec.net.tun.DEVICE_NODE", str(node))
    for attempt in (check_node, lambda: open_tun("ipsec0")):
        with pytest.raises(BackendError, match=r"tun is a file and no device; remove it; .*--device /dev/net/tun"):
            attempt()
    assert not [fd for fd in os.listdir("/proc/self/fd") if os.path.realpath(f"/proc/self/fd/{fd}") == str(node)]


@pytest.mark.e2e
def test_device_lives_as_long_as_its_queues(namespace: str) -> None:
    tun = open_tun("ipsec%d", queues=2)
    assert tun.name == "ipsec0"
    assert len(tun.fds) == 2
    assert tun.vnet_hdr
    assert tun.index == socket.if_nametoindex("ipsec0")
    subprocess.run(["ip", "link", "del", "ipsec0"], check=True)
    with pytest.raises(OSError, match="no interface"):
        _ = tun.index
    tun.close()
    again = open_tun("ipsec0")
    again.close()
    with pytest.raises(OSError, match="no interface"):
        socket.if_nametoindex("ipsec0")


@pytest.mark.e2e
def test_offloads_switched_off_stay_off(namespace: str) -> None:
    tun = open_tun("ipsec0", tso=False, uso=False)
    assert (tun.tso, tun.uso) == (False, False)
    assert tun.refused == {"tun_tso": "switched off", "tun_uso": "switched off"}
    tun.close()


@pytest.mark.e2e
@pytest.mark.parametrize("queues", [1, 2])
def test_somebody_elses_device_is_left_alone(namespace: str, queues: int) -> None:
    theirs = open_tun("ipsec0", queues=queues)
    with pytest.raises(BackendError, match="another process has it open"):
        open_tun("ipsec0", queues=queues)
    assert theirs.index
    theirs.close()


@pytest.mark.e2e
def test_another_kind_of_device_is_left_alone(namespace: str) -> None:
    subprocess.run(["ip", "link", "add", "ipsec0", "type", "veth", "peer", "name", "other"], check=True)
    with pytest.raises(BackendError, match="ipsec0: "):
        open_tun("ipsec0")
    subprocess.run(["ip", "link", "show", "ipsec0"], check=True, capture_output=True)


@pytest.mark.e2e
def test_persistent_device_of_either_flavour(namespace: str) -> None:
    subprocess.run(["ip", "tuntap", "add", "dev", "one", "mode", "tun"], check=True)
    subprocess.run(["ip", "tuntap", "add", "dev", "many", "mode", "tun", "multi_queue"], check=True)
    for name in ("one", "many"):
        open_tun(name).close()
        assert socket.if_nametoindex(name)
    with pytest.raises(BackendError, match=r"single queue.*multi_queue"):
        open_tun("one", queues=2)
    open_tun("many", queues=2).close()


@pytest.mark.e2e
def test_inherited_descriptor(namespace: str) -> None:
    mine = open_tun("ipsec0")
    theirs = tun_from_fd(os.dup(mine.fds[0]))
    assert theirs.name == "ipsec0"
    assert theirs.vnet_hdr
    mine.close()
    assert theirs.index
    theirs.close()
