"""Starting, stopping, being killed, losing the device: nothing stale stays, and no IV comes twice."""

from __future__ import annotations

import re
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ipsec.net import netns
from tests.e2e.gateways import COMMAND, INNER, OUTER, WIRE, Gateway, Setup, World, eventually

pytestmark = pytest.mark.e2e

MakeWorld = Callable[[Setup], World]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stop_is_quick_and_clean(make_world: MakeWorld, workers: int, number: signal.Signals) -> None:
    world = make_world(Setup(workers=workers))
    world.start()
    world.a.ping(INNER[4][1])
    status, seconds = world.a.stop(number)
    assert status == 0, world.a.log()
    assert seconds < 1
    assert world.a.leftovers() == ""
    assert "ERROR" not in world.a.log()


def test_numbers_not_used_are_given_back_on_a_clean_stop(world: World) -> None:
    world.a.ping(INNER[4][1], count=5)
    assert world.a.mark() > 1 << 20
    world.a.stop()
    # five echoes, and whatever the kernel itself had to say on a new device
    assert 5 <= world.a.mark() < 100


def test_a_local_address_that_is_not_there_is_named(world: World) -> None:
    assert "no address of this host" not in world.a.log()
    world.a.stop()
    world.a.run("ip", "address", "flush", "dev", WIRE)
    world.a.start()
    assert f"{OUTER[4][0]} is no address of this host" in world.a.log()


def test_killed_and_started_again(world: World) -> None:
    before = world.a.mark()
    world.a.ping(INNER[4][1])
    world.a.stop(signal.SIGKILL)
    # fail closed: what was protected does not leave in clear while nobody is there
    assert "unreachable 10.2.0.0/16" in world.a.leftovers()
    assert "ipsec0" not in world.a.run("ip", "link").stdout
    world.a.start()
    assert "routes and rules that a predecessor left in table 220" in world.a.log()
    assert world.a.mark() > before
    # the peer's replay window would refuse numbers that were used
    assert "3 received" in world.a.ping(INNER[4][1])
    assert "3 received" in world.b.ping(INNER[6][0])
    world.a.stop()
    assert world.a.leftovers() == ""


@pytest.mark.parametrize("workers", [0, 2])
def test_device_deleted_under_us(make_world: MakeWorld, workers: int) -> None:
    world = make_world(Setup(workers=workers))
    world.start()
    world.a.run("ip", "link", "del", "ipsec0")
    assert eventually(lambda: "is back" in world.a.log()), world.a.log()
    assert "3 received" in world.a.ping(INNER[4][1])
    assert "3 received" in world.b.ping(INNER[6][0])
    status, _ = world.a.stop()
    assert status == 0
    assert world.a.leftovers() == ""


def test_device_down_and_up(world: World) -> None:
    world.a.run("ip", "link", "set", "ipsec0", "down")
    assert eventually(lambda: "went down, and nothing passes: ip link set ipsec0 up" in world.a.log())
    # fail closed
    assert "No route to host" in world.a.run("ip", "route", "get", INNER[4][1], check=False).stderr
    world.a.run("ip", "link", "set", "ipsec0", "up")
    assert eventually(lambda: "10.2.0.0/16 dev ipsec0" in world.a.leftovers())
    assert "3 received" in world.a.ping(INNER[4][1])
    # the kernel takes the IPv6 addresses of a device that goes down
    assert eventually(lambda: "fd02::/16 dev ipsec0 proto 205 src fd01::1" in routes_6(world.a))
    assert "3 received" in world.a.ping(INNER[6][1])
    assert "3 received" in world.b.ping(INNER[6][0])


def routes_6(gateway: Gateway) -> str:
    return gateway.run("ip", "-6", "route", "show", "table", "220").stdout


@pytest.mark.parametrize("workers", [0, 2])
def test_device_that_cannot_be_made_again(make_world: MakeWorld, workers: int) -> None:
    world = make_world(Setup(workers=workers))
    world.start()
    assert world.a.process is not None
    # it would be faster than we are
    world.a.process.send_signal(signal.SIGSTOP)
    world.a.run("sh", "-c", "ip link del ipsec0 && ip tuntap add dev ipsec0 mode tap")
    world.a.process.send_signal(signal.SIGCONT)
    assert world.a.process.wait(10) == 6, world.a.log()
    # nobody asked for this stop: what was protected stays in
    assert "unreachable 10.2.0.0/16" in world.a.leftovers()
    world.a.run("ip", "link", "del", "ipsec0")
    world.a.start()
    assert "3 received" in world.a.ping(INNER[4][1])
    world.a.stop()
    assert world.a.leftovers() == ""


@pytest.mark.parametrize("workers", [0, 1])
def test_device_lost_without_netlink(make_world: MakeWorld, workers: int) -> None:
    """The operator prepared the device, so nothing watches it but the packets' own descriptor."""
    world = make_world(Setup(workers=workers, settings={"install_routes": "no", "addresses": ""}))
    world.a.run("ip", "tuntap", "add", "dev", "ipsec0", "mode", "tun")
    world.a.run("ip", "addr", "add", f"{INNER[4][0]}/32", "dev", "ipsec0")
    world.a.run("ip", "link", "set", "ipsec0", "mtu", "1400", "up")
    world.a.run("ip", "route", "add", "10.2.0.0/16", "dev", "ipsec0", "src", INNER[4][0])
    world.write_config(world.b)
    world.b.config.write_text(
        world.b.config.read_text().replace("install_routes = no", f"addresses = {INNER[4][1]}/32")
    )
    world.start()
    assert "3 received" in world.a.ping(INNER[4][1])
    world.a.run("ip", "link", "del", "ipsec0")
    assert world.a.process is not None
    assert world.a.process.wait(10) == 6, world.a.log()
    assert "make it again with its addresses and routes" in world.a.log()


def test_a_start_that_fails_after_a_kill_opens_nothing(world: World) -> None:
    world.a.stop(signal.SIGKILL)
    with netns.inside(world.a.namespace):
        holder = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with holder:
        holder.bind(("", 4500))
        status, _ = start_fails(world.a)
    assert status == 4
    assert "unreachable 10.2.0.0/16" in world.a.leftovers()
    assert "lookup 220" in world.a.leftovers()
    world.a.start()
    assert "3 received" in world.a.ping(INNER[4][1])
    world.a.stop()
    assert world.a.leftovers() == ""


def test_another_configuration_after_a_kill(make_world: MakeWorld) -> None:
    """Routes and rules of the old one go, also where the new one has others."""
    world = make_world(Setup())
    world.start()
    world.a.stop(signal.SIGKILL)
    world.write_config(world.a, local_ts="10.1.0.0/16", remote_ts="10.2.0.0/24")
    text = world.a.config.read_text().replace("ipsecd {", "ipsecd {\nfwmark = 9\nrouting_priority = 99")
    world.a.config.write_text(text)
    world.a.start()
    found = world.a.leftovers()
    assert "10.2.0.0/16" not in found
    assert "unreachable 10.2.0.0/24" in found
    assert [line for line in found.splitlines() if "lookup 220" in line] == [
        "99:\tnot from all fwmark 0x9 lookup 220 proto 205"
    ]
    world.a.stop()
    assert world.a.leftovers() == ""


def test_counters_on_sigusr1_and_at_the_end(world: World) -> None:
    world.a.ping(INNER[4][1])
    assert world.a.process is not None
    world.a.process.send_signal(signal.SIGUSR1)
    assert eventually(lambda: "offloads in use: " in world.a.log()), world.a.log()
    log = world.a.log()
    (in_use,) = re.findall(r"offloads in use: (.*)", log)
    assert set(re.findall(r"offload (\w+) on", log)) <= set(in_use.split())
    assert f"SA peer 0x00001001 to {OUTER[4][1]} port 4500: " in log
    assert f"SA peer 0x00001000 from {OUTER[4][1]} port 4500: " in log
    assert "drops: none" in log
    assert "tun_rx_packets=" in log
    world.a.stop()
    assert world.a.log().count("counters: ") == 2


def test_without_fail_closed_a_kill_leaves_a_rule_at_most(make_world: MakeWorld) -> None:
    world = make_world(Setup(settings={"fail_closed": "no"}))
    world.start()
    assert "unreachable" not in world.a.leftovers()
    world.a.stop(signal.SIGKILL)
    assert "10.2.0.0/16" not in world.a.leftovers()


def test_peer_inside_the_protected_network(make_world: MakeWorld) -> None:
    """The whole world goes through the tunnel, except the packets that are the tunnel."""
    world = make_world(Setup(sa={"local_ts": "0.0.0.0/0", "remote_ts": "0.0.0.0/0"}))
    world.start()
    assert "throw 192.0.2.2" in world.a.leftovers()
    assert "3 received" in world.a.ping(INNER[4][1], "-I", INNER[4][0])
    world.a.stop()
    assert world.a.leftovers() == ""


def test_persistent_device_stays(make_world: MakeWorld) -> None:
    world = make_world(Setup())
    world.a.run("ip", "tuntap", "add", "dev", "ipsec0", "mode", "tun")
    world.start()
    assert "3 received" in world.a.ping(INNER[4][1])
    world.a.stop()
    assert "ipsec0" in world.a.run("ip", "link").stdout
    assert "10.1.0.1" not in world.a.run("ip", "addr").stdout
    assert "205" not in world.a.leftovers()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("version", [4, 6])
def test_ike_reaches_the_event_loop(make_world: MakeWorld, workers: int, version: int) -> None:
    world = make_world(Setup(workers=workers, settings={"log_level": "debug"}))
    world.start()
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    with netns.inside(world.b.namespace):
        sender = socket.socket(family, socket.SOCK_DGRAM)
    with sender:
        sender.bind((OUTER[version][1], 4999))
        sender.sendto(b"\xff", (OUTER[version][0], 4500))
        sender.sendto(bytes(4) + b"i" * 28, (OUTER[version][0], 4500))
        said = f"ignored 28 octets of IKE from {OUTER[version][1]} port 4999"
        assert eventually(lambda: said in world.a.log()), world.a.log()
    assert world.a.log().count("octets of IKE") == 1
    assert "3 received" in world.a.ping(INNER[4][1])


def test_no_wake_ups_when_idle(world: World) -> None:
    assert world.a.process is not None
    pid = world.a.process.pid
    # duplicate address detection and router solicitation of the new device end first
    time.sleep(3)
    before = switches(pid)
    time.sleep(2)
    assert switches(pid) - before <= 2


def switches(pid: int) -> int:
    """Voluntary context switches of all threads: one for each time that something woke up."""
    total = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        for line in status.read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches"):
                total += int(line.split()[1])
    return total


def start_fails(gateway: Gateway) -> tuple[int, str]:
    """Run ipsecd where it cannot start: exit status and what it said."""
    done = gateway.run(*COMMAND, "--config", str(gateway.config), check=False)
    return done.returncode, done.stderr


def test_second_daemon_is_refused_and_harms_nobody(world: World) -> None:
    status, said = start_fails(world.a)
    assert status == 4
    assert "table 220 is in use by another ipsecd" in said
    assert "3 received" in world.a.ping(INNER[4][1])


def test_port_in_use(make_world: MakeWorld) -> None:
    world = make_world(Setup())
    holder = "import socket; s = socket.socket(type=2); s.bind(('', 4500)); print('ready', flush=True); input()"
    process = world.a.popen("python3", "-c", f"{holder.replace('input()', 'import time; time.sleep(60)')}")
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        status, said = start_fails(world.a)
    finally:
        process.kill()
        process.communicate()
    assert status == 4
    assert "port 4500: Address already in use; stop the other IPsec daemon" in said
    assert world.a.leftovers() == ""


def test_one_key_for_both_directions_is_refused(make_world: MakeWorld) -> None:
    world = make_world(Setup())
    world.write_config(world.a, key_in="0x" + world.keys[1].hex())
    status, said = start_fails(world.a)
    assert status in (3, 4)
    assert "key" in said
    assert world.keys[1].hex() not in said
    assert world.a.leftovers() == ""


def test_unwritable_state_directory_is_refused(make_world: MakeWorld) -> None:
    world = make_world(Setup(settings={"state_dir": "/proc/ipsecd"}))
    status, said = start_fails(world.a)
    assert status == 4
    assert "/proc/ipsecd" in said
    assert "IV twice" in said
    assert world.a.leftovers() == ""


def test_check_in_a_namespace(make_world: MakeWorld) -> None:
    world = make_world(Setup())
    done = world.a.run(*COMMAND, "--check", "--config", str(world.a.config))
    assert "ready to run" in done.stdout
    assert world.a.leftovers() == ""
    world.start()
    done = world.a.run(*COMMAND, "--check", "--config", str(world.a.config), check=False)
    assert done.returncode == 4
    assert "another process has it open" in done.stdout
    assert "3 received" in world.a.ping(INNER[4][1])
