"""Classic BPF (linux/filter.h): programs of the kernel's that look at what a socket is to receive."""

from __future__ import annotations

import ctypes
import socket
import struct

_SO_ATTACH_FILTER = 26
_SO_ATTACH_REUSEPORT_CBPF = 51

LD_WORD_ABS = 0x20
LD_HALF_ABS = 0x28
LD_BYTE_ABS = 0x30
LD_WORD_IND = 0x40
LDX_IP_HEADER_LEN = 0xB1
SHIFT_RIGHT = 0x74
MOD = 0x94
JUMP_EQUAL = 0x15
RET_CONST = 0x06
RET_A = 0x16

#: code, how far to jump if true and if false, operand
Instruction = tuple[int, int, int, int]


def attach_filter(sock: socket.socket, program: list[Instruction]) -> None:
    """Let the socket receive of each packet as many octets as the program says. OSError if the kernel refuses."""
    _attach(sock, _SO_ATTACH_FILTER, program)


def steer(sock: socket.socket, program: list[Instruction]) -> None:
    """Let the program say which socket of an SO_REUSEPORT group a packet is for. OSError if the kernel refuses."""
    _attach(sock, _SO_ATTACH_REUSEPORT_CBPF, program)


def _attach(sock: socket.socket, option: int, program: list[Instruction]) -> None:
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    # struct sock_fprog: a count, and a pointer at its natural alignment
    sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("HP", len(program), ctypes.addressof(buffer)))
