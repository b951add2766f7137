"""Fixtures for what opens sockets."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.fixture(params=[ip_address("127.0.0.1"), ip_address("::1")], ids=["v4", "v6"])
def address(request: pytest.FixtureRequest) -> IPv4Address | IPv6Address:
    """A loopback address of each family."""
    chosen: IPv4Address | IPv6Address = request.param
    if chosen.version == 6 and not has_ipv6():
        pytest.skip("this host has no IPv6")
    return chosen
