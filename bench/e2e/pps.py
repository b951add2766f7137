"""A UDP sender and receiver that make and count small packets with few system calls: ``pps.py send|receive ...``.

iperf3 makes one packet per call and tops out near 100 000 packets/s, below what a tunnel can carry. This one hands 64
packets to each sendmmsg(2). Nothing is offloaded: every packet is one datagram from the socket on, for every peer.
Run by path, without the package, so that it starts fast.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import socket
import time

BATCH = 64
PACE_S = 0.0005
SO_RCVBUFFORCE = 33
RECEIVE_BUFFER = 8 << 20
MSG_WAITFORONE = 0x10000
SILENCE_S = 1.0


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


def _messages(size: int) -> tuple[ctypes.Array[_Mmsghdr], list[object]]:
    """BATCH message headers for ``size`` octets each, and what has to stay alive with them."""
    data = ctypes.create_string_buffer(size * BATCH)
    iovecs = (_Iovec * BATCH)()
    messages = (_Mmsghdr * BATCH)()
    for i in range(BATCH):
        iovecs[i].base = ctypes.addressof(data) + i * size
        iovecs[i].length = size
        messages[i].header.iov = ctypes.pointer(iovecs[i])
        messages[i].header.iov_length = 1
    return messages, [data, iovecs]


def send(source: str, target: str, port: int, size: int, rate: float, seconds: float) -> dict[str, float]:
    """Offer ``rate`` packets/s (0: as many as go) for ``seconds``, in bursts of PACE_S."""
    messages, keep = _messages(size)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
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


def receive(address: str, port: int, size: int, seconds: float, patience: float) -> dict[str, float]:
    """Count packets for ``seconds`` from the first one on; none within ``patience`` seconds is a count of 0."""
    messages, keep = _messages(size)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
        sock.bind((address, port))
        print("ready", flush=True)
        sock.settimeout(patience)
        try:
            sock.recv(size)
        except TimeoutError:
            return {"received": 0, "seconds": seconds}
        start = last = time.monotonic()
        received = 1
        # settimeout() makes the descriptor non-blocking; recvmmsg has to block
        sock.settimeout(None)
        timeout = int(SILENCE_S).to_bytes(8, "little") + bytes(8)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)
        while (now := time.monotonic()) < start + seconds:
            done = _libc.recvmmsg(sock.fileno(), messages, BATCH, MSG_WAITFORONE, None)
            if done <= 0:
                break
            received += done
            last = now
    del keep
    return {"received": received, "seconds": max(last - start, seconds)}


def main() -> None:
    """Parse the arguments, do one side, print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("side", choices=("send", "receive"))
    parser.add_argument("--source", default="0.0.0.0")
    parser.add_argument("--target", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--rate", type=float, default=0.0)
    parser.add_argument("--seconds", type=float, default=1.0)
    args = parser.parse_args()
    if args.side == "send":
        result = send(args.source, args.target, args.port, args.size, args.rate, args.seconds)
    else:
        result = receive(args.target, args.port, args.size, args.seconds, args.seconds + 3)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
