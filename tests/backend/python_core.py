"""The pump's interface in plain Python over the reference engine: slow, and enough to test what drives it.

One packet per system call, no superframes out, no trains. Checksums that the kernel left open are completed.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import threading
import time
from ipaddress import ip_address
from typing import Any

from ipsec.backend.core import BLOCKED, DEVICE_LOST, MORE, RawDatagram
from ipsec.crypto.suites import EspSuite
from ipsec.esp.drops import DropReason
from ipsec.esp.engine import Event, EventKind
from ipsec.esp.reference import ReferenceEngine
from ipsec.esp.sa import Lifetime
from ipsec.wire.ip import checksum

VNET = struct.Struct("=BBHHHH")
NEEDS_CSUM = 1


class Engine(ReferenceEngine):
    def __init__(self, *, provider: str = "auto", workers: int = 1, **rest: Any) -> None:
        super().__init__(**rest)
        self.workers = workers
        self.lock = threading.RLock()

    def providers(self) -> dict[str, str]:
        return {"aes128gcm16": "python"}

    def provider_of(self, suite: EspSuite) -> str:
        return "python"

    def set_lifetime(self, sa: int, lifetime: Lifetime) -> None:
        with self.lock:
            super().set_lifetime(sa, lifetime)


class Pump:
    def __init__(self, engine: Engine, worker: int, *, tun_fd: int, vnet_hdr: bool, **options: Any) -> None:
        self.engine = engine
        self.worker = worker
        self.tun_fd = tun_fd
        self.vnet_hdr = vnet_hdr
        self.options = options
        self.event_fd = os.eventfd(0, os.EFD_NONBLOCK)
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK)
        self._blocked = -1
        self._lost = False
        self._connected = options.get("connected", False)
        self._sockets: dict[str, socket.socket] = {
            name[:-3]: socket.socket(fileno=os.dup(options[name]))
            for name in ("udp4_fd", "udp6_fd", "raw4_fd", "raw6_fd", "bypass4_fd", "bypass6_fd")
            if options.get(name, -1) >= 0
        }
        self._datagrams: list[RawDatagram] = []
        self._counters = {"tun_in": 0, "tun_out": 0, "wire_in": 0, "wire_out": 0, "send_emsgsize": 0}

    def __del__(self) -> None:
        for sock in self._sockets.values():
            sock.close()
        os.close(self.event_fd)
        os.close(self._wake_fd)

    def run_tun(self, budget: int) -> int:
        with self.engine.lock:
            for result in self.engine.release(time.monotonic()):
                for sealed in result.sealed:
                    self._send(sealed.sa, sealed.datagram)
            for opened in self.engine.release_early(time.monotonic()):
                if opened.drop is DropReason.NONE:
                    self._deliver(opened.packet)
        for _ in range(budget):
            try:
                frame = os.read(self.tun_fd, 65546)
            except BlockingIOError:
                return 0
            except OSError:
                return self._lose_device()
            if not frame:
                return self._lose_device()
            packet = self._complete(frame) if self.vnet_hdr else frame
            self._counters["tun_in"] += 1
            with self.engine.lock:
                result = self.engine.outbound(packet, time.monotonic())
                if result.reply is not None:
                    self._deliver(result.reply)
                if result.clear is not None:
                    self._bypass(result.clear)
                for sealed in result.sealed:
                    try:
                        self._send(sealed.sa, sealed.datagram)
                    except BlockingIOError:
                        self._blocked = next(iter(self._sockets.values())).fileno()
                        return BLOCKED
            if result.drop is not DropReason.NONE or result.held:
                os.eventfd_write(self.event_fd, 1)
        return MORE

    def _lose_device(self) -> int:
        if not self._lost:
            self._lost = True
            self.engine._events.append(Event(EventKind.DEVICE_LOST, 0))
            os.eventfd_write(self.event_fd, 1)
        return DEVICE_LOST

    def run_sockets(self, budget: int) -> int:
        more = 0
        for name, sock in self._sockets.items():
            if name.startswith("bypass"):
                continue
            for _ in range(budget):
                try:
                    data, _, _, source = sock.recvmsg(65535)
                except (BlockingIOError, ConnectionResetError):
                    break
                if not data:
                    break
                self._counters["wire_in"] += 1
                self._receive(name, data, source)
            else:
                more = MORE
        return more

    def run_forever(self, stop_fd: int, busy_poll_us: int = 0) -> None:
        poll = select.poll()
        for fd in (stop_fd, self._wake_fd, self.tun_fd, *(sock.fileno() for sock in self._sockets.values())):
            poll.register(fd, select.POLLIN)
        while True:
            ready = dict(poll.poll())
            if stop_fd in ready:
                return
            if self._wake_fd in ready:
                os.eventfd_read(self._wake_fd)
            if not self._lost and self.run_tun(16) & DEVICE_LOST:
                poll.unregister(self.tun_fd)
            self.run_sockets(16)
            os.eventfd_write(self.event_fd, 1)

    def wake(self) -> None:
        os.eventfd_write(self._wake_fd, 1)

    def blocked_fd(self) -> int:
        return self._blocked

    def discard(self, *, held: bool = False) -> None:
        """Nothing waits for a socket here."""
        with self.engine.lock:
            for _ in self.engine._waiting.take() if held else ():
                self.engine._drop(DropReason.OUT_NO_STATES)
            if held:
                self.engine._early.awaited.clear()
                self.engine.release_early(time.monotonic())

    def datagrams(self, limit: int = 1 << 32) -> list[RawDatagram]:
        found, self._datagrams = self._datagrams[:limit], self._datagrams[limit:]
        return found

    def forget_df(self) -> None:
        pass

    def counters(self) -> dict[str, int]:
        return dict(self._counters)

    def batches(self) -> dict[str, list[int]]:
        return {"in": [self._counters["wire_in"]], "out": [self._counters["wire_out"]]}

    def offloads(self) -> dict[str, bool]:
        return dict.fromkeys(("tun_tso", "tun_uso", "udp_gso", "udp_gro", "coalesce_tcp", "coalesce_udp"), False)

    def set_offload(self, name: str, on: bool) -> None:
        assert not on

    def _receive(self, name: str, data: bytes, source: Any) -> None:
        if name == "raw4":
            data = data[(data[0] & 15) * 4 :]
        if name.startswith("udp"):
            if data == b"\xff":
                return
            if data[:4] == bytes(4):
                fd = self.options[f"{name}_fd"]
                self._datagrams.append((data, None if self._connected else (source[0], source[1]), None, fd))
                os.eventfd_write(self.event_fd, 1)
                return
        where = None if self._connected else (ip_address(source[0].split("%")[0]), source[1] if "udp" in name else 0)
        with self.engine.lock:
            result = self.engine.inbound(data, time.monotonic(), source=where)
        if result.drop is DropReason.NONE and not result.held:
            self._deliver(result.packet)
        else:
            os.eventfd_write(self.event_fd, 1)

    def _deliver(self, packet: bytes) -> None:
        self._counters["tun_out"] += 1
        try:
            os.write(self.tun_fd, bytes(10) + packet if self.vnet_hdr else packet)
        except OSError:
            return

    def _send(self, sa: int, datagram: bytes) -> None:
        stats = self.engine.query_sa(sa)
        version = stats.remote.version
        sock = self._sockets[f"{'udp' if stats.encap else 'raw'}{version}"]
        self._counters["wire_out"] += 1
        try:
            if self._connected:
                sock.send(datagram)
            else:
                sock.sendto(datagram, (str(stats.remote), stats.encap[1] if stats.encap else 0))
        except BlockingIOError:
            raise
        except OSError as error:
            if error.errno == 90:
                self._counters["send_emsgsize"] += 1
                os.eventfd_write(self.event_fd, 1)

    def _bypass(self, packet: bytes) -> None:
        version = packet[0] >> 4
        sock = self._sockets.get(f"bypass{version}")
        if sock is not None:
            destination = packet[16:20] if version == 4 else packet[24:40]
            sock.sendto(packet, (str(ip_address(destination)), 0))

    def _complete(self, frame: bytes) -> bytes:
        flags, kind, _, _, start, offset = VNET.unpack_from(frame)
        packet = bytearray(frame[10:])
        assert kind == 0, "superframes were not asked for"
        if flags & NEEDS_CSUM:
            # the field holds the pseudo-header's sum, so that summing all of it is right
            value = checksum(bytes(packet[start:]))
            packet[start + offset : start + offset + 2] = (value or 0xFFFF).to_bytes(2, "big")
        return bytes(packet)
