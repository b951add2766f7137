"""A UDP sender and receiver that make and count packets with few system calls: ``pps.py send|receive ...``.

iperf3 makes one packet per call and tops out near 100 000 packets/s, below what a tunnel can carry. This one hands 64
packets to each sendmmsg(2). Nothing is offloaded: every packet is one datagram from the socket on, for every peer.
Run by path, without the package, so that it starts fast.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import socket
import struct
import time

BATCH = 64
PACE_S = 0.0005
SO_RCVBUFFORCE = 33
RECEIVE_BUFFER = 8 << 20
MSG_WAITFORONE = 0x10000
SILENCE_S = 0.3
DRAIN_S = 3.0


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Msghdr(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint32),
        ("iov", ctypes.POINTER(_Iovec)),
        ("iov_length", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Mmsghdr(ctypes.Structure):
    _fields_ = (("header", _Msghdr), ("length", ctypes.c_uint32))


_libc = ctypes.CDLL(None, use_errno=True)


def _messages(sizes: list[int]) -> tuple[ctypes.Array[_Mmsghdr], list[object]]:
    """BATCH message headers for ``sizes`` in turn, and what has to stay alive with them."""
    largest = max(sizes)
    data = ctypes.create_string_buffer(largest * BATCH)
    iovecs = (_Iovec * BATCH)()
    messages = (_Mmsghdr * BATCH)()
    for i in range(BATCH):
        iovecs[i].base = ctypes.addressof(data) + i * largest
        iovecs[i].length = sizes[i % len(sizes)]
        messages[i].header.iov = ctypes.pointer(iovecs[i])
        messages[i].header.iov_length = 1
    return messages, [data, iovecs]


def _socket(address: str) -> socket.socket:
    return socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)


def send(source: str, target: str, port: int, sizes: list[int], rate: float, seconds: float) -> dict[str, float]:
    """Offer ``rate`` packets/s (0: as many as go) for ``seconds``, in bursts of PACE_S."""
    messages, keep = _messages(sizes)
    with _socket(target) as sock:
        sock.bind((source, 0))
        sock.connect((target, port))
        descriptor = sock.fileno()
        sent = 0
        start = now = time.monotonic()
        while now < start + seconds:
            due = int((now - start + PACE_S) * rate) - sent if rate else BATCH
            while due > 0:
                done = _libc.sendmmsg(descriptor, messages, min(due, BATCH), 0)
                if done <= 0:
                    break
                sent += done
                due -= done
            if rate:
                time.sleep(max(0.0, start + sent / rate - time.monotonic()))
            now = time.monotonic()
    del keep
    return {"sent": sent, "seconds": now - start}


def receive(address: str, port: int, sizes: list[int], seconds: float, patience: float) -> dict[str, float]:
    """Count packets from the first one on: those that come ``in_time``, within ``seconds``, and all until silence.

    None within ``patience`` seconds is a count of 0.
    """
    messages, keep = _messages([max(sizes)])
    with _socket(address) as sock:
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
        sock.bind((address, port))
        print("ready", flush=True)
        sock.settimeout(patience)
        try:
            sock.recv(max(sizes))
        except TimeoutError:
            return {"received": 0, "in_time": 0, "seconds": seconds}
        start = now = time.monotonic()
        received = in_time = 1
        # settimeout() makes the descriptor non-blocking; recvmmsg has to block
        sock.settimeout(None)
        timeout = struct.pack("ll", 0, int(SILENCE_S * 1e6))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)
        while now < start + seconds + DRAIN_S:
            done = _libc.recvmmsg(sock.fileno(), messages, BATCH, MSG_WAITFORONE, None)
            now = time.monotonic()
            if done <= 0:
                break
            received += done
            if now < start + seconds:
                in_time = received
    del keep
    return {"received": received, "in_time": in_time, "seconds": seconds}


def main() -> None:
    """Parse the arguments, do one side, print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("side", choices=("send", "receive"))
    parser.add_argument("--source", default="0.0.0.0")
    parser.add_argument("--target", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--sizes", default="64", help="octets of payload, in turn: 36,36,548")
    parser.add_argument("--rate", type=float, default=0.0)
    parser.add_argument("--seconds", type=float, default=1.0)
    args = parser.parse_args()
    sizes = [int(size) for size in args.sizes.split(",")]
    if args.side == "send":
        result = send(args.source, args.target, args.port, sizes, args.rate, args.seconds)
    else:
        result = receive(args.target, args.port, sizes, args.seconds, args.seconds + 3)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
