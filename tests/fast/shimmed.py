"""What the pump does when system calls fail: scenarios run by test_pump_faults.py in a process with tests/fast/shim.c.

Each function ``scenario_*`` is one test. The process prints a line of JSON for each: its name and what went wrong.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

from ipsec.esp.drops import DropReason
from ipsec.esp.engine import EventKind
from ipsec.esp.fast import Batch, Engine, provider_versions
from ipsec.esp.sa import Action, Policy
from ipsec.net.memory import receive_all
from tests.fast.frames import superframe_vnet, tcp_packet, udp_packet, with_partial_checksum
from tests.fast.pumps import (
    BLOCKED,
    DEVICE_LOST,
    EVERYTHING,
    GCM,
    MORE,
    Gateway,
    Threads,
    by_flow,
    cut,
    drops,
    memory_net,
    out_params,
    pair,
    tap,
    udp_net,
)

SENDMMSG, RECVMMSG, READ, WRITEV, SENDMSG = range(5)
shim = ctypes.CDLL(None)


def fail(call: int, fd: int, error: int, after: int = 0, times: int = -1, cap: int = 0) -> None:
    shim.shim_plan(call, fd, error, ctypes.c_long(after), ctypes.c_long(times), cap)


def calls(call: int) -> int:
    shim.shim_calls.restype = ctypes.c_long
    return int(shim.shim_calls(call))


def train(
    size: int = 13000, unit: int = 1300, kind: Callable[..., bytes] = tcp_packet, **fields: Any
) -> tuple[bytes, bytes]:
    packet = kind(4, size, **fields)
    return superframe_vnet(packet, unit).emit(), with_partial_checksum(packet)


def scenario_trains_that_fail_are_sent_one_by_one() -> None:
    for error in (errno.EIO, errno.EINVAL):
        with udp_net() as (net, arguments):
            net.tunnel(**arguments)
            header, frame = train()
            fail(SENDMMSG, net.fds[0], error, times=1)
            net.left.tun.send(frame, header)
            net.run()
            assert by_flow(net.right.packets()) == by_flow(cut(header, frame))
            counters = net.left.counters()
            assert counters["gso_fallbacks"] == 1, counters
            assert counters["net_tx_datagrams"] == 10
            assert not net.left.pump.offloads()["udp_gso"]
            assert not drops(net.left)
            net.left.tun.send(frame, header)
            net.run()
            assert net.left.counters()["gso_fallbacks"] == 1
            assert by_flow(net.right.packets()) == by_flow(cut(header, frame))
            for side in net.sides:
                side.check()


def scenario_several_trains_in_one_flush_fall_back() -> None:
    with udp_net() as (net, arguments):
        for i in range(4):
            net.tunnel(0x1000 + 2 * i, policy=(pair("0.0.0.0/0", f"10.{i}.0.0/16"),), **arguments)
        sent = [train(ip={"dst": f"10.{i}.0.1"}) for i in range(4)]
        fail(SENDMMSG, net.fds[0], errno.EIO)  # as long as it lasts: single datagrams go by sendmsg
        for header, frame in sent:
            net.left.tun.send(frame, header)
        net.run()
        fail(SENDMMSG, 0, 0)
        assert by_flow(net.right.packets()) == by_flow(p for f in sent for p in cut(*f))
        assert not drops(net.left)
        for side in net.sides:
            side.check()


def scenario_a_fallback_meets_a_full_socket() -> None:
    """EAGAIN half-way through the datagrams of a refused train: the rest waits as everything else does."""
    for after in range(10):
        with udp_net() as (net, arguments):
            net.tunnel(**arguments)
            header, frame = train()
            fail(SENDMMSG, net.fds[0], errno.EIO, times=1)
            fail(SENDMSG, net.fds[0], errno.EAGAIN, after=after, times=1)
            net.left.tun.send(frame, header)
            assert net.left.pump.run_tun() == BLOCKED
            net.left.check(waiting=10 - after)
            net.run()
            fail(SENDMSG, 0, 0)
            assert by_flow(net.right.packets()) == by_flow(cut(header, frame))
            assert not drops(net.left)
            for side in net.sides:
                side.check()


def scenario_errors_of_single_datagrams_are_drops() -> None:
    for error in ("ENOBUFS", "EMSGSIZE", "EIO", "EINVAL", "ENETDOWN", "ECONNREFUSED", "EPERM", "EHOSTUNREACH"):
        with tap() as t:
            sa = t.engine.add_sa(out_params())
            t.engine.add_policy(Policy(Action.PROTECT, EVERYTHING, reqid=0x1000))
            fail(SENDMMSG, t.links[0].fd(0), getattr(errno, error), after=1, times=3)
            for n in range(10):
                t.gateway.tun.send(udp_packet(4, n))
                assert t.gateway.pump.run_tun() == 0, error
            assert len(t.sent()) == 7, error
            assert drops(t.gateway) == {DropReason.OUT_SEND_ERROR: 3}
            assert t.engine.query_sa(sa).drops == {DropReason.OUT_SEND_ERROR: 3}
            assert calls(SENDMMSG) == 10
            t.gateway.check()
        fail(SENDMMSG, 0, 0)


def scenario_interrupted_calls_are_made_again() -> None:
    with memory_net() as net:
        net.tunnel()
        for call, fd in ((SENDMMSG, net.links[0].fd(0)), (RECVMMSG, net.links[0].fd(1)), (READ, net.left.tun.fd),
                         (WRITEV, net.right.tun.fd)):  # fmt: skip
            fail(call, fd, errno.EINTR, times=2)
        for n in range(10):
            net.left.tun.send(udp_packet(4, n))
        net.run()
        assert [len(p) for p in net.right.packets()] == list(range(28, 38))
        for side in net.sides:
            side.check()
        for call in range(5):
            fail(call, 0, 0)


def scenario_errors_of_receiving_do_not_spin() -> None:
    """What is always wrong must not be asked for ever; what was wrong once must not lose what follows."""
    for error in ("ECONNREFUSED", "ENETDOWN", "ENOBUFS", "EIO", "EINVAL", "ENOTCONN", "ENOMEM", "EBADF"):
        with memory_net() as net:
            net.tunnel()
            fd = net.links[0].fd(1)
            fail(RECVMMSG, fd, getattr(errno, error))
            for _ in range(5):
                net.right.pump.run_sockets(16)
            assert calls(RECVMMSG) <= 5 * 16 * 2, error
            if error == "EBADF":
                assert calls(RECVMMSG) <= 2  # one for each family: a closed descriptor is not asked again
                continue
            fail(RECVMMSG, fd, getattr(errno, error), times=3)
            net.left.tun.send(udp_packet(4, 5))
            net.left.pump.run_tun()
            for _ in range(5):
                net.right.pump.run_sockets(16)
            assert len(net.right.packets()) == 1, error
            fail(RECVMMSG, 0, 0)
            net.right.check()


def scenario_a_lost_device_ends_reading() -> None:
    for error in (errno.EBADFD, errno.ENODEV):
        with tap() as t:
            fail(READ, t.gateway.tun.fd, error)
            assert t.gateway.pump.run_tun() & DEVICE_LOST
            for _ in range(10):
                assert t.gateway.pump.run_tun() & DEVICE_LOST
                assert t.gateway.pump.run_sockets() & DEVICE_LOST
            assert calls(READ) == 1
            assert [event.kind for event in t.engine.events()] == [EventKind.DEVICE_LOST]
            fail(READ, 0, 0)
            t.gateway.check()


def scenario_a_device_that_is_down_loses_packets_only() -> None:
    with memory_net() as net:
        net.tunnel()
        fail(READ, net.left.tun.fd, errno.EIO, times=1)
        net.left.tun.send(udp_packet(4, 1))
        assert net.left.pump.run_tun() == 0
        fail(WRITEV, net.right.tun.fd, errno.EIO, times=1)
        net.run()
        assert drops(net.right) == {DropReason.IN_DEVICE_ERROR: 1}
        assert not net.right.engine.events()
        net.left.tun.send(udp_packet(4, 2))
        net.run()
        assert len(net.right.packets()) == 1
        for side in net.sides:
            side.check()


def scenario_a_device_lost_while_writing() -> None:
    with memory_net() as net:
        net.tunnel()
        fail(WRITEV, net.right.tun.fd, errno.EBADFD)
        for n in range(3):
            net.left.tun.send(udp_packet(4, n))
        net.left.pump.run_tun()
        assert net.right.pump.run_sockets() & DEVICE_LOST
        assert [event.kind for event in net.right.engine.events()] == [EventKind.DEVICE_LOST]
        assert drops(net.right) == {DropReason.IN_DEVICE_ERROR: 3 - net.right.counters()["tun_tx_packets"]}
        net.right.check()
        fail(WRITEV, 0, 0)


def scenario_superframes_that_the_device_refuses() -> None:
    for kind, name in ((tcp_packet, "coalesce_tcp"), (udp_packet, "coalesce_udp")):
        with memory_net() as net:
            net.tunnel()
            header, frame = train(kind=kind)
            fail(WRITEV, net.right.tun.fd, errno.EINVAL, times=1)
            net.left.tun.send(frame, header)
            net.run()
            assert by_flow(net.right.packets()) == by_flow(cut(header, frame))
            counters = net.right.counters()
            assert counters["tun_gso_fallbacks"] == 1
            assert counters["tun_tx_frames"] == counters["tun_tx_packets"] == 10
            assert not net.right.pump.offloads()[name]
            for side in net.sides:
                side.check()
        fail(WRITEV, 0, 0)


def scenario_a_full_socket_inside_a_frame_and_the_sa_goes() -> None:
    """The socket fills up in the middle of a superframe of more datagrams than wait at once; then the SA is removed."""
    for change in ("delete", "update"):
        with tap() as t:
            sa = t.engine.add_sa(out_params())
            t.engine.add_policy(Policy(Action.PROTECT, EVERYTHING, reqid=0x1000))
            header, frame = train(7000, 100, udp_packet)
            # the first call takes 20 of 64, the next has no room; 6 more datagrams follow before the frame ends
            fail(SENDMMSG, t.links[0].fd(0), errno.EAGAIN, after=1, times=1, cap=20)
            t.gateway.tun.send(frame, header)
            assert t.gateway.pump.run_tun() == BLOCKED
            assert t.gateway.pump.blocked_fd() == t.links[0].fd(0)
            t.gateway.check(waiting=50)
            if change == "delete":
                t.engine.del_sa(sa)
            else:
                local, remote = ip_address("192.0.2.1"), ip_address("203.0.113.9")
                t.engine.update_sa(sa, local=local, remote=remote, encap=(4500, 4501), path_mtu=1500)
            trash = [t.engine.add_sa(out_params(0x9000 + n)) for n in range(64)]  # takes the memory again
            for other in trash:
                t.engine.del_sa(other)
            assert t.gateway.pump.run_tun() == 0
            assert t.gateway.pump.blocked_fd() == -1
            sent = t.sent()
            assert [int.from_bytes(d[4:8], "big") for d in sent] == list(range(1, 71))
            t.gateway.check()
        fail(SENDMMSG, 0, 0)


def scenario_what_waits_keeps_its_peer() -> None:
    """Datagrams that moved up in the queue, and newer ones behind them, each go where they were meant to go."""
    receivers = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(3)]
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for sock in (*receivers, sender):
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
    side = Gateway([{"udp4_fd": sender.fileno()}], connected=False, udp_gso=False)
    loopback, elsewhere = ip_address("127.0.0.1"), ip_address("127.0.0.9")
    ids = []
    for i, receiver in enumerate(receivers):
        ports = (sender.getsockname()[1], receiver.getsockname()[1])
        ids.append(side.engine.add_sa(out_params(0x1000 + i, local=loopback, remote=loopback, encap=ports)))
        side.engine.add_policy(Policy(Action.PROTECT, (pair("0.0.0.0/0", f"10.{i}.0.0/16"),), reqid=0x1000 + i))
    for i in (0, 1):
        for _ in range(28):
            side.tun.send(udp_packet(4, 50, ip={"dst": f"10.{i}.0.1"}))
    header, frame = train(9000, 100, udp_packet, ip={"dst": "10.2.0.1"})
    side.tun.send(frame, header)
    # 20 of 64 go, 44 stay; 20 of the train follow, and there is no room for the others
    rounds = 0
    fail(SENDMMSG, sender.fileno(), errno.EAGAIN, after=1, cap=20)
    while side.pump.run_tun() & (BLOCKED | MORE):
        if not rounds:
            # everything is sealed: where the SAs lead from now on means nothing to what waits
            assert side.counters()["tun_rx_frames"] == 57
            for sa in ids:
                side.engine.update_sa(sa, local=loopback, remote=elsewhere, encap=(4500, 9), path_mtu=1500)
            for n in range(64):
                side.engine.del_sa(side.engine.add_sa(out_params(0x9000 + n, remote=elsewhere, encap=(4500, 9))))
        fail(SENDMMSG, sender.fileno(), errno.EAGAIN, after=1, times=1, cap=9)
        rounds += 1
        assert rounds < 100
    fail(SENDMMSG, 0, 0)
    assert rounds > 3
    got = [[int.from_bytes(d[:4], "big") for d in receive_all(sock)] for sock in receivers]
    assert [set(spis) for spis in got] == [{0x1000}, {0x1001}, {0x1002}], got
    assert sum(map(len, got)) == 56 + 90 - side.dropped("OUT_SEND_ERROR")
    side.check()
    side.close()
    for sock in (*receivers, sender):
        sock.close()


def scenario_alternating_blocks_inside_a_frame_keep_the_peer() -> None:
    """The same with the socket filling up again and again inside one superframe."""
    receivers = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for sock in (*receivers, sender):
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    side = Gateway([{"udp4_fd": sender.fileno()}], connected=False, udp_gso=False)
    loopback = ip_address("127.0.0.1")
    for i, receiver in enumerate(receivers):
        ports = (sender.getsockname()[1], receiver.getsockname()[1])
        side.engine.add_sa(out_params(0x1000 + i, local=loopback, remote=loopback, encap=ports))
        side.engine.add_policy(Policy(Action.PROTECT, (pair("0.0.0.0/0", f"10.{i}.0.0/16"),), reqid=0x1000 + i))
    for _ in range(60):
        side.tun.send(udp_packet(4, 50, ip={"dst": "10.0.0.1"}))
    header, frame = train(30000, 100, udp_packet, ip={"dst": "10.1.0.1"})
    side.tun.send(frame, header)
    fd = sender.fileno()
    blocks = [0]

    # every second call has no room, the others take 10: what was kept moves up by 10 each time
    def patience() -> None:
        fail(SENDMMSG, fd, errno.EAGAIN, after=1, times=1, cap=10)

    patience()
    shim.shim_alternate(SENDMMSG, 1)
    try:
        while side.pump.run_tun() & (BLOCKED | MORE):
            blocks[0] += 1
            assert blocks[0] < 200
    finally:
        shim.shim_alternate(SENDMMSG, 0)
        fail(SENDMMSG, 0, 0)
    assert blocks[0] > 3
    got = [{int.from_bytes(d[:4], "big") for d in receive_all(sock)} for sock in receivers]
    assert got == [{0x1000}, {0x1001}], got
    side.check()
    side.close()
    for sock in (*receivers, sender):
        sock.close()


def scenario_a_thread_waits_while_the_socket_is_full() -> None:
    """run_forever sleeps in poll(): a refusing socket that says it is writable costs a bounded number of calls."""
    with memory_net() as net:
        net.tunnel()
        fail(SENDMMSG, net.links[0].fd(0), errno.EAGAIN, times=5)
        with Threads(*net.sides):
            for n in range(20):
                net.left.tun.send(udp_packet(4, n))
            got: list[bytes] = []
            for _ in range(400):
                got += net.right.packets()
                if len(got) == 20:
                    break
                time.sleep(0.005)
        assert [len(p) for p in got] == list(range(28, 48))
        assert net.left.counters()["socket_full"] == 5
        fail(SENDMMSG, 0, 0)
        for side in net.sides:
            side.check()


def open_sockets() -> set[tuple[int, str]]:
    found = set()
    for fd in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):  # the folder's own is gone by now
            found.add((fd, os.readlink(f"/proc/self/fd/{fd}")))
    return {(fd, what) for fd, what in found if what.startswith("socket:")}


def peer_socket(net: Any, count: int) -> int:
    """Send through the pump's thread, one by one, until the peer has a socket of its own; its descriptor."""
    before = open_sockets()
    opened = net.left.counters()["peer_sockets"]
    for _ in range(count):
        told = net.right.counters()["tun_tx_packets"]
        net.left.tun.send(udp_packet(4, 64))
        while net.right.counters()["tun_tx_packets"] == told:
            time.sleep(0.0005)
    assert net.left.counters()["peer_sockets"] == opened + 1
    ((fd, _),) = open_sockets() - before
    return fd


def scenario_what_a_peers_socket_refuses_goes_through_the_one_for_all() -> None:
    """Nothing is lost, and the peer's socket is closed; it comes again later, but not at once."""
    for error in (errno.ECONNREFUSED, errno.EINVAL, errno.EIO, errno.ENETUNREACH, errno.EPERM):
        with udp_net(peer_sockets=True) as (net, where):
            net.tunnel(**where)
            with Threads(*net.sides):
                fd = peer_socket(net, 260)
                fail(SENDMMSG, fd, error)
                frame, packet = train()
                net.left.tun.send(packet, frame)
                for _ in range(1000):
                    if net.right.counters()["tun_tx_packets"] == 270 and not os.path.exists(f"/proc/self/fd/{fd}"):
                        break
                    time.sleep(0.005)
                assert net.right.counters()["tun_tx_packets"] == 270, errno.errorcode[error]
                assert not os.path.exists(f"/proc/self/fd/{fd}"), errno.errorcode[error]
                fail(SENDMMSG, 0, 0)
                assert not drops(net.left), errno.errorcode[error]
                assert net.left.pump.offloads()["udp_gso"]
                if error == errno.EPERM:
                    time.sleep(1.0)
                    assert peer_socket(net, 260) >= 0
            for side in net.sides:
                side.tun.frames()
                side.check()


def scenario_a_peers_socket_that_is_full_is_waited_for() -> None:
    with udp_net(peer_sockets=True) as (net, where):
        net.tunnel(**where)
        with Threads(*net.sides):
            fail(SENDMMSG, peer_socket(net, 260), errno.EAGAIN, times=5)
            for n in range(20):
                net.left.tun.send(udp_packet(4, n))
            for _ in range(1000):
                if net.right.counters()["tun_tx_packets"] == 280:
                    break
                time.sleep(0.005)
            fail(SENDMMSG, 0, 0)
            assert net.left.counters()["socket_full"] >= 1
        assert [len(p) for p in net.right.packets()[-20:]] == list(range(28, 48))
        for side in net.sides:
            side.check()


def scenario_nobody_else_gets_the_port_while_a_peers_socket_is_opened() -> None:
    if os.geteuid():
        return  # only root can be another user as well
    with udp_net(peer_sockets=True) as (net, where):
        net.tunnel(**where)
        with Threads(*net.sides):
            shim.shim_squatters(1)
            peer_socket(net, 260)
            assert shim.shim_squatters(0) == 0


def scenario_the_cipher_text_is_never_sent_twice() -> None:
    """After partial sends every number is on the wire once, in order."""
    with tap() as t:
        t.engine.add_sa(out_params(suite=GCM))
        t.engine.add_policy(Policy(Action.PROTECT, EVERYTHING, reqid=0x1000))
        fail(SENDMMSG, t.links[0].fd(0), 0, cap=3)
        for n in range(300):
            t.gateway.tun.send(udp_packet(4, n))
            if n % 50 == 49:
                t.gateway.pump.run_tun()
        t.gateway.pump.run_tun()
        assert [int.from_bytes(d[4:8], "big") for d in t.sent()] == list(range(1, 301))
        fail(SENDMMSG, 0, 0)
        t.gateway.check()


def scenario_what_cannot_be_sealed_is_not_sent() -> None:
    """Whichever packets of a batch fail: they are drops of their SA, and the others arrive."""
    if provider_versions()["ipsec-mb"] is None:
        return
    for trains in (True, False):
        for after, times in ((0, 1), (1, 1), (1, 2), (4, 1), (0, 5), (3, 2)):
            with udp_net(gso=trains, engine={"provider": "ipsec-mb"}) as (net, arguments):
                out = net.tunnel(suite="aes128-sha256", **arguments)[0]
                header, frame = train(4 * 1300 + 500)
                shim.shim_mac(ctypes.c_long(after), ctypes.c_long(times))
                net.left.tun.send(frame, header)
                net.left.pump.run_tun()
                shim.shim_mac(ctypes.c_long(0), ctypes.c_long(0))
                net.run()
                good = [p for i, p in enumerate(cut(header, frame)) if not after <= i < after + times]
                assert by_flow(net.right.packets()) == by_flow(good)
                assert drops(net.left) == {DropReason.OUT_STATE_PROTO_ERROR: times}
                assert net.left.engine.query_sa(out).drops == drops(net.left)
                assert not drops(net.right)
                for side in net.sides:
                    side.check()
                # and all is well again
                net.left.tun.send(frame, header)
                net.run()
                assert by_flow(net.right.packets()) == by_flow(cut(header, frame))


def scenario_a_batch_has_nothing_for_what_cannot_be_sealed() -> None:
    if provider_versions()["ipsec-mb"] is None:
        return
    engine = Engine(provider="ipsec-mb")
    out = engine.add_sa(out_params(suite="aes128-sha256"))
    packets = Batch(4, 1500)
    packets.load([udp_packet(4, n) for n in range(4)])
    sealed = Batch(4, 1700)
    shim.shim_mac(ctypes.c_long(1), ctypes.c_long(1))
    assert engine.encapsulate_batch(out, packets, sealed) == 3
    assert [bool(packet) for packet in sealed.packets()] == [True, False, True, True]
    assert engine.query_sa(out).drops == engine.drops() == {DropReason.OUT_STATE_PROTO_ERROR: 1}


SCENARIOS = {name.removeprefix("scenario_"): f for name, f in list(globals().items()) if name.startswith("scenario_")}

if __name__ == "__main__":
    for name in sys.argv[1:] or SCENARIOS:
        print(json.dumps({"start": name}), flush=True)
        trouble = ""
        try:
            SCENARIOS[name]()
        except Exception:
            trouble = traceback.format_exc()
        for call in range(5):
            fail(call, 0, 0)
        print(json.dumps({"name": name, "trouble": trouble}), flush=True)
