"""What is copied, whose it is, and how it is written."""

from __future__ import annotations

import io
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
from ipaddress import ip_address
from pathlib import Path

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.ipsec import ESP
from scapy.packet import Raw
from scapy.utils import RawPcapNgReader

from ipsec.ctl.errors import ExitCode
from ipsec.ctl.pcapng import Writer
from ipsec.ctl.tap import cars, ipsec_filter, parse_outer
from ipsec.ctl.whose import Labels, Whose, ranges
from tests.ctl.fake import Ctl, FakeDaemon

A, B = "192.0.2.1", "192.0.2.2"
A6, B6 = "2001:db8::1", "2001:db8::2"
PORTS = (500, 4500, 14500)


def accepts(program: list[tuple[int, int, int, int]], data: bytes) -> bool:
    """What the kernel would do (the BSD Packet Filter, as far as it is used)."""
    at, value, index = 0, 0, 0
    while True:
        code, yes, no, k = program[at]
        at += 1
        if code == 0x06:
            return k > 0
        if code in (0x30, 0x28, 0x48):
            start, size = k + (index if code == 0x48 else 0), 1 if code == 0x30 else 2
            if start + size > len(data):
                return False
            value = int.from_bytes(data[start : start + size], "big")
        elif code == 0xB1:
            index = (data[k] & 15) * 4
        elif code == 0x74:
            value >>= k
        else:
            assert code in (0x15, 0x45)
            at += yes if (value == k if code == 0x15 else value & k) else no


def udp(source: int, target: int, payload: bytes = bytes(40), ip: object = None) -> bytes:
    return bytes((ip or IP(src=A, dst=B)) / UDP(sport=source, dport=target) / Raw(payload))  # type: ignore[operator]


def esp(spi: int, seq: int, payload: bytes = b"x" * 40) -> bytes:
    return bytes(ESP(spi=spi, seq=seq, data=payload))


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (bytes(IP(src=A, dst=B) / ESP(spi=300, seq=1)), True),
        (bytes(IPv6(src=A6, dst=B6) / ESP(spi=300, seq=1)), True),
        (udp(500, 500), True),
        (udp(4500, 9), True),
        (udp(9, 4500), True),
        (udp(9, 14500), True),
        (udp(9, 10), False),
        (udp(9, 4500, ip=IP(src=A, dst=B, options=[b"\x01" * 4])), True),
        (udp(9, 10, ip=IP(src=A, dst=B, options=[b"\x01" * 4])), False),
        (udp(4500, 4500, ip=IP(src=A, dst=B, frag=3)), False),
        (udp(9, 500, ip=IPv6(src=A6, dst=B6)), True),
        (udp(500, 9, ip=IPv6(src=A6, dst=B6)), True),
        (udp(9, 10, ip=IPv6(src=A6, dst=B6)), False),
        (bytes(IP(src=A, dst=B) / TCP(sport=4500, dport=500)), False),
        (bytes(IPv6(src=A6, dst=B6) / TCP(sport=4500, dport=500)), False),
        (bytes(IP(src=A, dst=B) / ICMP()), False),
        (bytes(20), False),
    ],
)
def test_filter(data: bytes, wanted: bool) -> None:
    for count in range(1, len(PORTS) + 1):
        program = ipsec_filter(PORTS[-count:])
        if count == len(PORTS):
            assert accepts(program, data) is wanted
        assert all(at + 1 + max(yes, no) < len(program) for at, (code, yes, no, _) in enumerate(program) if code != 6)


def test_outer_packets() -> None:
    raw = parse_outer(bytes(IP(src=A, dst=B) / ESP(spi=0x1234, seq=7, data=b"y" * 20)), [500])
    assert raw is not None
    assert (raw.ike, raw.spi, raw.number, raw.source) == (False, 0x1234, 7, ip_address(A))
    inside_udp = parse_outer(udp(4500, 4500, esp(0x99, 3)), [500])
    assert inside_udp is not None
    assert (inside_udp.ike, inside_udp.spi, inside_udp.number) == (False, 0x99, 3)
    ike = bytes(range(1, 9)) + bytes(8) + bytes((33, 0x20, 35, 0x20)) + struct.pack(">II", 1, 28)
    for data in (udp(500, 500, ike), udp(4500, 4500, bytes(4) + ike)):
        found = parse_outer(data, [500])
        assert found is not None
        assert found.ike
        assert found.ike_message() == "IKE_AUTH response 1"
        assert found.ike_spis == ("0102030405060708", "0000000000000000")
    # NAT keepalives, what is cut off, and what is no packet
    for data in (udp(4500, 4500, b"\xff"), b"", b"\x45", bytes(IP(src=A, dst=B) / ICMP())):
        assert parse_outer(data, [500]) is None
    for size in range(60):
        parse_outer(udp(4500, 4500, bytes(4) + ike)[:size], [500])


@pytest.mark.parametrize("ip", [IP(src=A, dst=B), IPv6(src=A6, dst=B6)], ids=["v4", "v6"])
@pytest.mark.parametrize("last", [100, 33])
@pytest.mark.parametrize("first", [5, 0xFFFFFFFE])
def test_trains(ip: IP | IPv6, last: int, first: int) -> None:
    payloads = [esp(0x99, (first + n) & 0xFFFFFFFF, bytes((n,)) * (100 if n < 4 else last)) for n in range(5)]
    train = udp(4500, 4500, b"".join(payloads), ip=ip.copy())
    outer = parse_outer(train, [500])
    assert outer is not None
    parts = cars(train, outer)
    assert len(parts) == 5
    for part, payload in zip(parts, payloads, strict=True):
        packet = ip.__class__(part)
        assert bytes(packet[UDP].payload) == payload
        assert packet[UDP].len == 8 + len(payload)
        if packet.version == 4:
            assert packet.len == len(part)
            again = packet.copy()
            del again.chksum
            assert IP(bytes(again)).chksum == packet.chksum
        else:
            assert packet.plen == len(part) - 40


def test_a_packet_alone_is_left_as_it_is() -> None:
    for data in (udp(4500, 4500, esp(0x99, 3)), udp(500, 500), bytes(IP(src=A, dst=B) / ESP(spi=300, seq=1))):
        outer = parse_outer(data, [500])
        assert outer is not None
        assert cars(data, outer) == [data]


def test_whose() -> None:
    labels = Labels(spis={5: Whose("gw", "net")}, remotes={ip_address(B): Whose("gw")})
    near, far = ranges(["10.1.0.0/16[tcp/443]"]), ranges(["10.2.0.0/24", "10.9.0.1..10.9.0.5"])
    labels.pairs.append((near, far, Whose("gw", "net")))
    here, there = ip_address("10.1.2.3"), ip_address("10.9.0.4")
    assert str(labels.inside(here, there, outbound=True)) == "gw/net"
    assert labels.inside(here, there, outbound=False) is None
    assert str(labels.inside(there, here, outbound=False)) == "gw/net"
    assert labels.inside(here, ip_address("10.9.0.6"), outbound=True) is None
    assert labels.esp(6) is None
    assert str(labels.ike("0" * 16, "1" * 16, ip_address(B))) == "gw"
    labels.add(Labels(spis={6: Whose("gw", "new")}))
    assert (str(labels.esp(5)), str(labels.esp(6))) == ("gw/net", "gw/new")
    assert ranges(["nonsense", "dynamic"]) == []


def test_pcapng_as_scapy_reads_it() -> None:
    stream = io.BytesIO()
    writer = Writer(stream, "test")
    first, second = writer.interface("ipsec0", "inside"), writer.interface("eth0", "outside")
    packets = [bytes(IP(src=A, dst=B) / Raw(b"z" * size)) for size in range(1, 6)]
    for n, data in enumerate(packets):
        writer.packet((first, second)[n % 2], 1_700_000_000_123_456_789 + n, data, [f"number {n}", "ä"], inbound=n < 2)
    writer.statistics(first, 1_700_000_001_000_000_000, received=5, dropped=1)
    stream.seek(0)
    found = list(RawPcapNgReader(stream))
    assert [data for data, _ in found] == packets
    for n, (_, metadata) in enumerate(found):
        assert metadata.linktype == 101
        assert metadata.tsresol == 1_000_000_000
        assert (metadata.tshigh << 32) + metadata.tslow == 1_700_000_000_123_456_789 + n
        assert metadata.ifname == (b"ipsec0", b"eth0")[n % 2]


@pytest.mark.skipif(shutil.which("pidof") is None, reason="pidof is not installed")
@pytest.mark.skipif("ipsec0" in (name for _, name in socket.if_nameindex()), reason="there is a device ipsec0 here")
def test_the_hint_finds_the_daemon(daemon: FakeDaemon, ctl: Ctl, tmp_path: Path) -> None:
    """It is a script, which pidof sees only if it is told to."""
    done = ctl("capture", "-o", str(tmp_path / "x"))
    assert done.status == ExitCode.REQUIREMENT
    found = re.search(r"nsenter --net --target \$\((pidof .*)ipsecd\)", done.err)
    assert found is not None
    script = tmp_path / f"likeit{os.getpid()}"
    script.write_text(f"#!{sys.executable}\nprint(flush=True)\ninput()\n")
    script.chmod(0o700)
    with subprocess.Popen([script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        said = subprocess.run([*found[1].split(), script.name], capture_output=True, text=True, check=False)
        process.communicate("\n")
    assert said.stdout == f"{process.pid}\n"
