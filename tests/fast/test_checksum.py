"""The long-run Internet checksum against the sum by words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipsec._probe import probe_checksum
from tests.fast.frames import internet_checksum, payload


@pytest.mark.parametrize("size", [*range(300), 1399, 1400, 1401, 65534, 65535])
def test_every_length_that_takes_another_path(size: int) -> None:
    data = payload(size, size)
    assert probe_checksum(data) == internet_checksum(data)


@pytest.mark.parametrize("octet", [0x00, 0xFF, 0x80])
def test_carries_are_not_lost(octet: int) -> None:
    data = bytes([octet]) * 65535
    assert probe_checksum(data) == internet_checksum(data)


def test_rfc_1071_example() -> None:
    assert probe_checksum(bytes.fromhex("0001f203f4f5f6f7")) == ~0xDDF2 & 0xFFFF


@given(st.binary(max_size=2000))
def test_random_octets(data: bytes) -> None:
    assert probe_checksum(data) == internet_checksum(data)
