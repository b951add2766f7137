"""ipsec.backend.requirements: found and missing things are told apart, and each missing one says what mends it."""

from __future__ import annotations

import socket
from ipaddress import ip_address
from pathlib import Path

import pytest

from ipsec.backend import core, requirements
from ipsec.backend.requirements import Requirement, State, check
from ipsec.backend.settings import UserspaceSettings
from ipsec.errors import BackendError
from tests.backend import python_core
from tests.backend.disk import no_room

LOOPBACK = (ip_address("127.0.0.1"),)


@pytest.fixture(autouse=True)
def python_data_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "compiled_core", lambda: python_core)


def by_name(found: list[Requirement]) -> dict[str, Requirement]:
    return {requirement.name: requirement for requirement in found}


def free_port() -> int:
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def settings(**changes: object) -> UserspaceSettings:
    base: dict[str, object] = {"listen": LOOPBACK, "port": free_port(), "install_routes": False}
    return UserspaceSettings(**{**base, **changes})  # type: ignore[arg-type]


def test_every_missing_thing_has_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*args: object, **rest: object) -> None:
        raise BackendError("no such thing", remedy="get one")

    for name in ("open_tun", "compiled_core", "Router"):
        monkeypatch.setattr(requirements, name, nothing)
    monkeypatch.setattr(requirements.udp, "open_udp", nothing)
    monkeypatch.setattr(requirements.udp, "open_raw_esp", nothing)
    found = check(UserspaceSettings(raw_esp=True), state_dir=Path("/proc/nowhere"), forwards=True)
    missing = [requirement for requirement in found if requirement.state is State.MISSING]
    assert len(missing) == 7
    assert all(requirement.remedy for requirement in missing)


def test_port_in_use() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        found = by_name(check(settings(port=sock.getsockname()[1])))
    assert found["UDP over IPv4"].state is State.MISSING
    assert "Address already in use" in found["UDP over IPv4"].detail
    assert "stop the other" in found["UDP over IPv4"].remedy
    assert found["UDP over IPv6"].state is State.FOUND


def test_port_free() -> None:
    assert by_name(check(settings()))["UDP over IPv4"].state is State.FOUND


def test_state_directory(tmp_path: Path) -> None:
    assert by_name(check(settings(), state_dir=tmp_path))["state directory"].detail.endswith("is writable")
    deep = by_name(check(settings(), state_dir=tmp_path / "a" / "b"))["state directory"]
    assert deep.state is State.FOUND
    assert not (tmp_path / "a").exists()


def test_state_directory_without_room(tmp_path: Path) -> None:
    with no_room():
        found = by_name(check(settings(), state_dir=tmp_path))["state directory"]
    assert (found.state, found.detail) == (State.MISSING, f"{tmp_path}: File too large")


def test_a_data_path_that_is_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "compiled_core", core.compiled_core)
    monkeypatch.setitem(__import__("sys").modules, "ipsec.esp.fast", None)
    monkeypatch.delattr("ipsec.esp.fast", raising=False)
    found = by_name(check(settings()))["data path"]
    assert found.state is State.MISSING
    assert "pip install" in found.remedy


def test_a_provider_that_leaves_packets_in_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "compiled_core", core.compiled_core)
    monkeypatch.delenv("IPSEC_BENCH_NULL_CIPHER", raising=False)
    found = by_name(check(settings(crypto_provider="copy")))["data path"]
    assert (found.state, found.remedy) == (State.MISSING, "set ipsecd.crypto_provider to auto")
    assert "leaves packets in clear" in found.detail


@pytest.mark.parametrize(
    ("namespace", "may", "remedy"), [("", True, "CAP_NET_RAW"), ("app", False, "CAP_NET_RAW"), ("app", True, "fwmark")]
)
def test_why_there_is_no_raw_socket(namespace: str, may: bool, remedy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements.udp, "may_bypass", lambda fwmark: may)
    found = by_name(check(settings(namespace=namespace)))["raw sockets (CAP_NET_RAW)"]
    assert found.state is State.HINT
    assert remedy in found.remedy


def test_sysctls_become_hints(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(requirements, "_SYSCTL", tmp_path)
    for path, value in (("ipv4/ip_forward", 0), ("ipv6/conf/all/forwarding", 1), ("ipv4/conf/all/rp_filter", 1)):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(f"{value}\n")
    found = by_name(check(settings(fwmark=1, peer_inside=True), forwards=True))
    assert found["ip_forward"].state is State.HINT
    assert found["ip_forward"].remedy == "sysctl -w net.ipv4.ip_forward=1"
    assert found["IPv6 forwarding"].state is State.FOUND
    (tmp_path / "ipv4/conf/lan0").mkdir(parents=True)
    (tmp_path / "ipv4/conf/lan0/forwarding").write_text("1\n")
    one = by_name(check(settings(), forwards=True))["ip_forward"]
    assert (one.state, one.detail) == (State.FOUND, "net.ipv4.ip_forward is 0, and on for lan0")
    assert "rp_filter=2" in found["rp_filter"].remedy
    assert "rp_filter" not in by_name(check(settings()))
    assert "rp_filter" not in by_name(check(settings(fwmark=1))), "routes keep peers out"
