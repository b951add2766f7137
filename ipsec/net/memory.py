"""Links in memory: a TUN device and a wire made of socket pairs, so that the real pump runs without privileges.

SOCK_SEQPACKET keeps message borders as a TUN device does, and a full pair answers EAGAIN as a socket does. Where both
ends are held by pumps, a message is a whole UDP payload (SPI to ICV, RFC 3948) or a whole packet from the inside.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable

from ipsec.net.tun import VNET_HDR_LEN

#: an upper limit; the kernel cuts it to net.core.wmem_max without saying so
_BUFFER_BYTES = 4 << 20
_LARGEST = VNET_HDR_LEN + 65535


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected, non-blocking ends that keep message borders."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setblocking(False)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
    return ends


def receive_all(sock: socket.socket, limit: int = 1 << 16) -> list[bytes]:
    """Every message that is queued, at most ``limit``."""
    messages: list[bytes] = []
    while len(messages) < limit:
        try:
            message = sock.recv(_LARGEST)
        except (BlockingIOError, ConnectionResetError):
            break
        if not message:
            break
        messages.append(message)
    return messages


class MemoryTun:
    """A TUN device without a kernel: the pump holds ``fd``, the test is the inside."""

    def __init__(self, *, vnet_hdr: bool = False) -> None:
        self.vnet_hdr = vnet_hdr
        self._pump, self._inside = socket_pair()

    @property
    def fd(self) -> int:
        """What the pump reads and writes."""
        return self._pump.fileno()

    def send(self, packet: bytes, header: bytes = bytes(VNET_HDR_LEN)) -> bool:
        """Let the inside send one packet, with ``header`` as its virtio_net_hdr if there is one; False when full."""
        try:
            self._inside.send(header + packet if self.vnet_hdr else packet)
        except BlockingIOError:
            return False
        return True

    def receive(self) -> list[bytes]:
        """The packets that reached the inside, virtio_net_hdr cut off; superframes stay whole."""
        return [frame[1] for frame in self.frames()]

    def frames(self) -> list[tuple[bytes, bytes]]:
        """The packets that reached the inside as (virtio_net_hdr, packet); the header is empty if there is none."""
        cut = VNET_HDR_LEN if self.vnet_hdr else 0
        return [(message[:cut], message[cut:]) for message in receive_all(self._inside)]

    def lose(self) -> None:
        """As when a device is deleted: the pump finds its end without another."""
        self._inside.close()

    def close(self) -> None:
        """Close both ends; the pump must have stopped."""
        self._pump.close()
        self._inside.close()


class MemoryLink:
    """A wire between two pumps.

    Without a hook the two ends are one socket pair and nothing stands between them. With ``hook`` every message
    passes through it on ``carry``: it gets (side it came from: 0 or 1, message) and returns what goes on, in order,
    which may be nothing (loss), more than one (duplicates), something else (corruption) or older ones (reordering).
    """

    def __init__(self, hook: Callable[[int, bytes], Iterable[bytes]] | None = None) -> None:
        self._hook = hook
        self._middle: list[socket.socket] = []
        if hook is None:
            self._ends = list(socket_pair())
        else:
            left, right = socket_pair(), socket_pair()
            self._ends = [left[0], right[0]]
            self._middle = [left[1], right[1]]

    def fd(self, side: int) -> int:
        """What the pump on ``side`` (0 or 1) uses as its connected socket."""
        return self._ends[side].fileno()

    def send(self, side: int, message: bytes) -> None:
        """Put a message on the wire as if the pump on ``side`` had sent it. BlockingIOError when full."""
        self._ends[side].send(message)

    def carry(self) -> int:
        """Move what waits through the hook; how many messages went on. 0 without a hook: nothing has to be moved."""
        moved = 0
        for side, middle in enumerate(self._middle):
            assert self._hook is not None
            for message in receive_all(middle):
                for passed in self._hook(side, message):
                    try:
                        self._middle[1 - side].send(passed)
                    except BlockingIOError:
                        # a wire that is full loses packets, as every wire does
                        break
                    moved += 1
        return moved

    def close(self) -> None:
        """Close every end; the pumps must have stopped."""
        for sock in (*self._ends, *self._middle):
            sock.close()
