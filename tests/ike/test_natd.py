"""NAT detection: the hash, and what follows from it."""

from __future__ import annotations

from hashlib import sha1
from ipaddress import ip_address

import pytest

from ipsec.ike import natd
from ipsec.ike.events import Path
from ipsec.wire.iana import NotifyType

SPI_I, SPI_R = bytes(range(8)), bytes(range(8, 16))
HERE, THERE, NAT = ip_address("192.0.2.1"), ip_address("198.51.100.2"), ip_address("203.0.113.3")


def heard(sent: Path, received: Path, *, fake: bool = False) -> tuple[bool, bool]:
    """What a peer that sees ``received`` concludes from what was sent along ``sent``."""
    found = natd.payloads(SPI_I, SPI_R, sent, fake=fake)
    return natd.compare([found[0].data], [found[1].data], SPI_I, SPI_R, received)


def test_hash_is_over_spis_address_and_port() -> None:
    text = SPI_I + SPI_R + bytes((192, 0, 2, 1)) + b"\x11\x94"
    assert natd.hash(SPI_I, SPI_R, HERE, 4500) == sha1(text).digest()
    text = SPI_I + bytes(8) + ip_address("2001:db8::1").packed + b"\x01\xf4"
    assert natd.hash(SPI_I, bytes(8), ip_address("2001:db8::1"), 500) == sha1(text).digest()


def test_payloads_are_source_then_destination() -> None:
    source, destination = natd.payloads(SPI_I, SPI_R, Path(HERE, 500, THERE, 4500))
    assert source.notify == NotifyType.NAT_DETECTION_SOURCE_IP
    assert source.data == natd.hash(SPI_I, SPI_R, HERE, 500)
    assert destination.notify == NotifyType.NAT_DETECTION_DESTINATION_IP
    assert destination.data == natd.hash(SPI_I, SPI_R, THERE, 4500)


@pytest.mark.parametrize(
    ("received", "expected"),
    [
        (Path(THERE, 500, HERE, 500), (False, False)),
        (Path(THERE, 500, NAT, 500), (False, True)),
        (Path(THERE, 500, HERE, 1024), (False, True)),
        (Path(NAT, 500, HERE, 500), (True, False)),
        (Path(THERE, 4500, HERE, 500), (True, False)),
        (Path(NAT, 500, NAT, 1024), (True, True)),
    ],
)
def test_nat_is_seen_on_the_side_where_it_is(received: Path, expected: tuple[bool, bool]) -> None:
    assert heard(Path(HERE, 500, THERE, 500), received) == expected


@pytest.mark.parametrize(("here", "there"), [(HERE, THERE), (ip_address("2001:db8::1"), ip_address("2001:db8::2"))])
def test_fake_source_looks_like_a_nat(here: natd.IpAddress, there: natd.IpAddress) -> None:
    assert heard(Path(here, 500, there, 500), Path(there, 500, here, 500), fake=True) == (False, True)


def test_one_of_several_sources_is_enough() -> None:
    path = Path(THERE, 500, HERE, 500)
    sources = [natd.hash(SPI_I, SPI_R, address, 500) for address in (NAT, HERE)]
    assert natd.compare(sources, [], SPI_I, SPI_R, path) == (False, False)


def test_nothing_sent_says_nothing() -> None:
    assert natd.compare([], [], SPI_I, SPI_R, Path(THERE, 500, HERE, 500)) == (False, False)


@pytest.mark.parametrize("junk", [b"", b"x", bytes(20), bytes(21)])
def test_junk_is_a_mismatch(junk: bytes) -> None:
    assert natd.compare([junk], [junk], SPI_I, SPI_R, Path(THERE, 500, HERE, 500)) == (True, True)
