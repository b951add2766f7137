"""ipsec.daemon.prepare and ipsec.backend.prepared in a network namespace, without a daemon."""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from ipsec.backend import requirements
from ipsec.backend.prepared import take_prepared
from ipsec.backend.requirements import Requirement, State, check
from ipsec.config import Config, load_text
from ipsec.config.settings import Setup
from ipsec.daemon.prepare import Owner, prepare, undo
from ipsec.daemon.settings import backend_settings, device_addresses
from ipsec.errors import BackendError
from ipsec.net import netns
from ipsec.net.route import Router, claim_table
from ipsec.net.rtnetlink import may_configure
from ipsec.net.tun import open_tun
from tests.e2e.gateways import has_users

pytestmark = pytest.mark.e2e

_serial = itertools.count()
ME = Owner(os.geteuid())
other_users = pytest.mark.skipif(not has_users(), reason="no other users in this user namespace")


@pytest.fixture(autouse=True)
def namespace() -> Iterator[None]:
    """A fresh network namespace; the test's thread is inside."""
    name = f"net-prepare-{os.getpid()}-{next(_serial)}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        with netns.inside(name):
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
            yield
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


def configuration(connection: str = "", child: str = "remote_ts = 10.2.0.0/16", ipsecd: str = "") -> Config:
    return load_text(f"""
        ipsecd {{ setup = prepared
            addresses = 10.1.0.1/24
            {ipsecd} }}
        connections {{ c {{ remote_addrs = 192.0.2.2
            {connection}
            local {{ auth = psk }}
            remote {{ auth = psk }}
            children {{ k {{ {child} }} }} }} }}
        secrets {{ ike {{ secret = 0123456789abcdef }} }}
    """)


def ip(*args: str) -> str:
    return subprocess.run(["ip", *args], check=True, capture_output=True, text=True).stdout


def table(family: str = "-4") -> list[str]:
    done = subprocess.run(["ip", family, "route", "show", "table", "220"], capture_output=True, text=True)
    return sorted(line.strip() for line in done.stdout.splitlines())


def test_done_twice_and_undone() -> None:
    assert may_configure()
    config = configuration("vips = 10.9.0.5, fd09::5", "remote_ts = 0.0.0.0/0, fd02::/16", "mtu = 1300")
    said = prepare(config, ME, sysctls=False)
    assert said[:3] == [
        f"device ipsec0 made for user {ME.uid}",
        "ipsec0 is up, MTU 1300, addresses: 10.1.0.1/24, 10.9.0.5/32, fd09::5/128",
        "table 220 has 5 routes",
    ]
    assert table() == [
        "default dev ipsec0 proto 205 src 10.9.0.5 linkdown",
        "throw 192.0.2.2 proto 205",
        "unreachable default proto 205 metric 4278190080",
    ]
    assert "fd02::/16 dev ipsec0 proto 205 src fd09::5" in table("-6")[0]
    assert "not" not in ip("rule")
    before = ip("address"), ip("rule"), table(), table("-6")
    assert prepare(config, ME, sysctls=False)[0] == f"device ipsec0 is there already, for user {ME.uid}"
    assert (ip("address"), ip("rule"), table(), table("-6")) == before
    claim = take_prepared(backend_settings(config))
    assert claim is not None
    claim.close()
    assert undo(config) == ["7 routes and rules of table 220 removed", "device ipsec0 removed"]
    assert "220" not in ip("rule")
    assert undo(config) == ["there was nothing to undo"]


@other_users
def test_a_change_of_mind() -> None:
    prepare(configuration(child="remote_ts = 10.2.0.0/16"), Owner(7, 8), sysctls=False)
    prepare(configuration(child="remote_ts = 10.3.0.0/16", ipsecd="fail_closed = no"), ME, sysctls=False)
    assert table() == ["10.3.0.0/16 dev ipsec0 proto 205 src 10.1.0.1 linkdown"]
    with Router() as router:
        assert router.owner_of("ipsec0") == (ME.uid, None, 0)


@other_users
@pytest.mark.parametrize(
    ("connection", "child", "told"),
    [
        ("", "remote_ts = 0.0.0.0/0", False),
        ("", "remote_ts = 192.0.2.0/24", False),
        ("", "remote_ts = 192.0.2.2/32", True),
        ("", "", True),
        ("remote_addrs = localhost", "remote_ts = 127.0.0.0/8", True),
        ("remote_addrs = localhost", "remote_ts = 10.0.0.0/8", False),
        ("remote_addrs = nowhere.invalid", "remote_ts = 0.0.0.0/0", True),
        ("remote_addrs = %any", "remote_ts = 0.0.0.0/0", True),
        ("remote_addrs = %any", "remote_ts = 10.0.0.0/8", False),
    ],
)
def test_packets_of_the_daemon_stay_outside(connection: str, child: str, told: bool) -> None:
    """By throw routes where they can, else by the user they are of."""
    config = configuration(connection, child)
    prepare(config, Owner(777), sysctls=False)
    assert ("uidrange 777-777" in ip("rule")) == told
    if told:
        undo(config)
        with pytest.raises(BackendError, match="--owner UID"):
            prepare(config, Owner(0), sysctls=False)
        assert "ipsec0" not in ip("link")


@other_users
def test_what_is_dropped_comes_to_the_device() -> None:
    """It is the daemon that drops it, and without a route it would leave in clear."""
    drop = "mode = drop\nremote_ts = 0.0.0.0/0\nstart_action = trap"
    for child, routed in ((drop, True), (f"{drop}\nlocal_ts = 10.1.0.0/16", False), (f"{drop[:-4]}none", False)):
        config = configuration(child=child)
        with caught() if routed else nullcontext():
            prepare(config, Owner(0), sysctls=False)
        prepare(config, Owner(777), sysctls=False)
        assert ("default dev ipsec0 proto 205 linkdown" in table()) == routed
        assert ("uidrange 777-777" in ip("rule")) == routed
        undo(config)


def caught() -> AbstractContextManager[object]:
    return pytest.raises(BackendError, match="--owner UID")


def test_sysctls() -> None:
    config = configuration(child="remote_ts = 10.2.0.0/16\nlocal_ts = 10.1.0.0/16")
    keys = ("net.ipv4.ip_unprivileged_port_start", "net.ipv4.ip_forward")
    wanted = dict(zip(keys, ("500", "1"), strict=True))
    paths = [Path("/proc/sys", key.replace(".", "/")) for key in keys]
    for path, text in zip(paths, ("1024", "0"), strict=True):
        path.write_text(text)
    assert prepare(config, ME, sysctls=False)[-2:] == [
        f"to do: sysctl -w {k}={v}, or --sysctl" for k, v in wanted.items()
    ]
    assert prepare(config, ME, sysctls=True)[-2:] == [f"{key} is {value} now" for key, value in wanted.items()]
    assert [path.read_text().strip() for path in paths] == list(wanted.values())
    assert prepare(config, ME, sysctls=True)[-1].startswith("table 220 has")


@pytest.mark.parametrize(
    ("commands", "said"),
    [
        (["link delete ipsec0"], "device ipsec0 was to be prepared: No such device; run ipsecd --prepare"),
        (["link set ipsec0 down"], "was prepared and is down"),
        (["address delete 10.1.0.1/24 dev ipsec0"], "was prepared without the address 10.1.0.1"),
    ],
)
def test_what_is_wrong_with_a_device_is_said(commands: list[str], said: str) -> None:
    config = configuration()
    prepare(config, ME, sysctls=False)
    for command in commands:
        ip(*command.split())
    with pytest.raises(BackendError) as caught:
        take_prepared(backend_settings(config))
    assert said in str(caught.value)
    # and the table is free again
    claim = claim_table(220)
    assert claim is not None
    claim.close()


@other_users
def test_devices_of_others_are_left_alone() -> None:
    config = configuration()
    tun = open_tun("ipsec0")
    with pytest.raises(BackendError, match="is there and not a persistent TUN device"):
        prepare(config, ME, sysctls=False)
    with pytest.raises(BackendError, match="is there and not a persistent TUN device"):
        undo(config)
    tun.close()
    prepare(config, Owner(7), sysctls=False)
    tun = open_tun("ipsec0", queues=2)
    before = ip("rule"), table()
    for attempt in (lambda: prepare(config, ME, sysctls=False), lambda: undo(config)):
        with pytest.raises(BackendError, match="is in use"):
            attempt()
    # without them what is protected would leave in clear
    assert (ip("rule"), table()) == before
    tun.close()
    claim = claim_table(220)
    assert claim is not None
    with claim, pytest.raises(BackendError, match="in use by another ipsecd"):
        undo(config)
    assert "ipsec0" in ip("link")


def test_a_look_takes_no_packets_from_who_has_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    config = configuration()
    prepare(config, ME, sysctls=False)

    def device() -> Requirement:
        return next(one for one in check(backend_settings(config)) if one.name == "TUN device")

    assert device().state is State.FOUND
    tun = open_tun("ipsec0", queues=2)
    attached: list[object] = []

    def attach(*args: object, **rest: object) -> None:
        attached.append(args)

    monkeypatch.setattr(requirements, "open_tun", attach)
    assert (device().state, device().detail) == (State.MISSING, "ipsec0 is in use")
    assert not attached
    tun.close()


def test_addresses_that_a_device_must_have() -> None:
    config = configuration("vips = 0.0.0.0, 10.9.0.5, 10.1.0.1")
    assert list(map(str, device_addresses(config))) == ["10.1.0.1/24", "10.9.0.5/32"]


def test_marks_and_raw_sockets_are_not_wanted() -> None:
    config = configuration(child="start_action = trap", ipsecd="fwmark = 7")
    settings = backend_settings(config)
    assert (settings.prepared, settings.install_routes, settings.fwmark) == (True, False, 0)
    own = replace(config, settings=replace(config.settings, setup=Setup.OWN))
    assert (backend_settings(own).prepared, backend_settings(own).fwmark) == (False, 7)
    # with CAP_NET_ADMIN a device that is there is no reason
    auto = replace(config, settings=replace(config.settings, setup=Setup.AUTO))
    assert not backend_settings(auto).prepared
