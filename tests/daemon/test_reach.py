"""Whether and from where a peer can be reached, where the kernel has little to give."""

from __future__ import annotations

import errno
import socket
from ipaddress import ip_address

import pytest

from ipsec.daemon.reach import source_address, usable


@pytest.mark.parametrize("code", [errno.EMFILE, errno.EAFNOSUPPORT])
def test_no_socket_is_no_way(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """Who waits for a way asks again; an exception would end that."""

    def refuse(*_: object) -> None:
        raise OSError(code, "no")

    monkeypatch.setattr(socket, "socket", refuse)
    assert source_address(ip_address("2001:db8::1"), 0) is None
    assert not usable(ip_address("2001:db8::2"), ip_address("2001:db8::1"), 0)
