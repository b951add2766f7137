"""IKE datagrams in the event loop: those of the IKE sockets and those that come and go with ESP behind a marker."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Sequence

from ipsec.backend.base import Datagram, IpAddress
from ipsec.backend.core import CorePump, RawDatagram
from ipsec.net import ike
from ipsec.net.inherited import matching

log = logging.getLogger(__name__)

#: datagrams of one socket in one turn of the loop, and after how many seconds no more are begun: one with a signature
#: to verify takes a millisecond or two, and others wait
BUDGET = 64
TURN_SECONDS = 0.002
#: seconds between two log lines about what could not be sent
COMPLAIN_SECONDS = 1.0


class Datagrams:
    """Sends and receives IKE. Belongs to the event loop's thread."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.handler: Callable[[Datagram], None] = lambda datagram: None
        self.counts = dict.fromkeys(
            ("ike_rx_datagrams", "ike_tx_datagrams", "ike_tx_keepalives", "ike_tx_errors", "ike_rx_unusable"), 0
        )
        self._ike: dict[int, tuple[socket.socket, IpAddress, int]] = {}
        "by IP version: socket, its address and port"
        self._esp: dict[int, tuple[socket.socket, IpAddress, int]] = {}
        "by IP version, of the first worker"
        self._bound: dict[int, tuple[IpAddress, int]] = {}
        "where a descriptor of the data path is bound"
        self._complained = float("-inf")
        self._silenced = 0
        self._df_lost: Callable[[], None] = lambda: None

    # -- sockets

    def open(
        self, listen: Sequence[IpAddress], port: int, *, fwmark: int, inherited: Sequence[socket.socket] = ()
    ) -> None:
        """Open an IKE socket on each address, one per family. BackendError if one cannot be, and none is open then."""
        try:
            for address in listen:
                ready = matching(inherited, address.version, port)
                sock = ike.open_ike(address, port, fwmark=fwmark, ready=ready[0] if ready else None)
                self._ike[address.version] = (sock, *ike.bound_to(sock))
        except BaseException:
            self.close_ike()
            raise

    def share(self, sockets: Sequence[socket.socket], *, df_lost: Callable[[], None]) -> None:
        """The UDP sockets of the data path, the first worker's first. They stay the caller's.

        ``df_lost`` is called when one of them was left without DF.
        """
        self._df_lost = df_lost
        for sock in sockets:
            address, port = ike.bound_to(sock)
            self._bound[sock.fileno()] = (address, port)
            self._esp.setdefault(address.version, (sock, address, port))

    def start(self) -> None:
        """Listen on the IKE sockets."""
        loop = asyncio.get_running_loop()
        for sock, address, port in self._ike.values():
            loop.add_reader(sock.fileno(), self._read, sock, address, port)

    def pause(self) -> None:
        """Listen no more; sending goes on."""
        loop = asyncio.get_running_loop()
        for sock, _, _ in self._ike.values():
            loop.remove_reader(sock.fileno())

    def close_ike(self) -> None:
        """Close the IKE sockets, which nobody listens on any more."""
        for sock, _, _ in self._ike.values():
            sock.close()
        self._ike.clear()

    def close(self) -> None:
        """Close the IKE sockets and forget those of the data path."""
        self.close_ike()
        self._esp.clear()
        self._bound.clear()
        self._df_lost = lambda: None

    @property
    def ports(self) -> dict[int, int]:
        """UDP port of the IKE sockets by IP version."""
        return {version: port for version, (_, _, port) in self._ike.items()}

    # -- in

    def _read(self, sock: socket.socket, address: IpAddress, port: int) -> None:
        end = self._clock() + TURN_SECONDS
        for _ in range(BUDGET):
            found = ike.receive(sock, address, 1)
            if not found:
                return
            for data, source, source_port, local in found:
                self._deliver(Datagram(data, source, source_port, local, port))
            if self._clock() >= end:
                return

    def drain(self, pump: CorePump) -> bool:
        """Deliver what the data path took for IKE, as far as one turn of the loop goes; whether more may wait."""
        end = self._clock() + TURN_SECONDS
        for _ in range(BUDGET):
            found = pump.datagrams(1)
            if not found:
                return False
            self.deliver(found)
            if self._clock() >= end:
                break
        return True

    async def drain_all(self, pump: CorePump) -> None:
        """The same with all that is left in a pump that has stopped and goes, in as many turns as it takes."""
        while self.drain(pump):
            await asyncio.sleep(0)

    def deliver(self, found: Sequence[RawDatagram]) -> None:
        """Datagrams that the data path took for IKE, marker and all."""
        for data, source, local, fd in found:
            bound = self._bound.get(fd)
            if source is None or bound is None or len(data) <= len(ike.NON_ESP_MARKER):
                # links in memory have no addresses to answer to
                self.counts["ike_rx_unusable"] += 1
                continue
            address, port = bound
            to = ike.to_address(local) if local is not None else address
            cut = data[len(ike.NON_ESP_MARKER) :]
            self._deliver(Datagram(cut, ike.to_address(source[0]), source[1], to, port))

    def _deliver(self, datagram: Datagram) -> None:
        self.counts["ike_rx_datagrams"] += 1
        try:
            self.handler(datagram)
        except Exception:
            # one datagram must not keep those behind it from being read
            log.exception("a datagram from %s port %d was not handled", datagram.source, datagram.port)

    # -- out

    def send(
        self,
        data: bytes,
        local: IpAddress | None,
        local_port: int,
        remote: IpAddress,
        remote_port: int,
        *,
        dscp: int = 0,
    ) -> None:
        """See ``Backend.send_datagram``."""
        esp = self._esp.get(remote.version)
        if esp is not None and esp[2] == local_port:
            parts = (ike.NON_ESP_MARKER, data)
            self._send("ike_tx_datagrams", esp[0], parts, local, remote, remote_port, shared=True, dscp=dscp)
            return
        own = self._ike.get(remote.version)
        if own is None:
            self._failed(f"no IPv{remote.version} socket for IKE from port {local_port}", remote, remote_port)
            return
        self._send("ike_tx_datagrams", own[0], (data,), local, remote, remote_port, dscp=dscp)

    def keepalive(self, local: IpAddress | None, local_port: int, remote: IpAddress, remote_port: int) -> None:
        """See ``Backend.send_keepalive``."""
        esp = self._esp.get(remote.version)
        chosen = esp if esp is not None and esp[2] == local_port else self._ike.get(remote.version)
        if chosen is None:
            self._failed(f"no IPv{remote.version} socket for keepalives", remote, remote_port)
            return
        self._send("ike_tx_keepalives", chosen[0], (ike.KEEPALIVE,), local, remote, remote_port)

    def _send(
        self,
        what: str,
        sock: socket.socket,
        parts: tuple[bytes, ...],
        local: IpAddress | None,
        remote: IpAddress,
        remote_port: int,
        *,
        shared: bool = False,
        dscp: int = 0,
    ) -> None:
        try:
            if shared and len(parts[-1]) > ike.FITS_EVERY_PATH:
                try:
                    ike.send_fragmentable(sock, parts, local, remote, remote_port, dscp=dscp)
                finally:
                    self._df_lost()
            else:
                ike.send(sock, parts, local, remote, remote_port, dscp=dscp)
        except (OSError, OverflowError, ValueError) as error:
            # EAGAIN, ENOBUFS: full. EPERM: a packet filter. ENETUNREACH, EADDRNOTAVAIL, EINVAL: no way, or no longer
            # our address. The other two: a port or an address that is none.
            number = error.errno if isinstance(error, OSError) else None
            self._failed(os.strerror(number) if number else str(error), remote, remote_port, local)
            return
        self.counts[what] += 1

    def _failed(self, reason: str, remote: IpAddress, port: int, local: IpAddress | None = None) -> None:
        self.counts["ike_tx_errors"] += 1
        now = asyncio.get_running_loop().time()
        if now - self._complained < COMPLAIN_SECONDS:
            self._silenced += 1
            return
        more = f" ({self._silenced} more were not told of)" if self._silenced else ""
        source = f"from {local} " if local is not None else ""
        log.warning("IKE %sto %s port %d was not sent: %s%s", source, remote, port, reason, more)
        self._complained, self._silenced = now, 0
