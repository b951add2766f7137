"""Tokens of quick crash detection (RFC 6290)."""

from __future__ import annotations

import pytest

from ipsec.errors import ParseError
from ipsec.ike import qcd
from ipsec.ike.events import IkeDown
from ipsec.wire.iana import ExchangeType, NotifyType, PayloadType
from ipsec.wire.ike import FLAG_INITIATOR, HEADER_LEN, emit_header, emit_payloads, parse_header
from ipsec.wire.payloads import NotifyPayload
from tests.pair import Pair
from tests.sim.host import SimHost

SECRET, SPI_I, SPI_R = bytes(range(32)), b"initiato", b"responde"


def test_a_token_needs_no_memory() -> None:
    token = qcd.make(SECRET, SPI_I, SPI_R)
    assert qcd.parse(token) == token
    assert qcd.verify(token, qcd.make(bytes(SECRET), SPI_I, SPI_R))


def test_it_is_of_one_secret_and_one_ike_sa() -> None:
    token = qcd.make(SECRET, SPI_I, SPI_R)
    for other in (
        qcd.make(SECRET[::-1], SPI_I, SPI_R),
        qcd.make(SECRET, SPI_R, SPI_I),
        qcd.make(SECRET, SPI_I, bytes(8)),
        token[:-1],
        token + b"\0",
        b"",
    ):
        assert not qcd.verify(token, other)
        assert not qcd.verify(other, token)


def test_who_gave_no_token_is_not_believed() -> None:
    assert not qcd.verify(b"", b"")
    assert not qcd.verify(b"x", b"x")


@pytest.mark.parametrize("length", [16, 32, 256])
def test_tokens_of_others(length: int) -> None:
    token = bytes(range(256))[:length]
    assert qcd.verify(qcd.parse(token), token)


@pytest.mark.parametrize("length", [0, 1, 15, 257, 65535])
def test_what_cannot_be_a_token(length: int) -> None:
    with pytest.raises(ParseError):
        qcd.parse(bytes(length))


@pytest.mark.parametrize("length", [0, 15])
def test_a_short_secret_makes_no_token(length: int) -> None:
    with pytest.raises(ValueError, match="secret") as error:
        qcd.make(b"q" * length, SPI_I, SPI_R)
    assert "qqq" not in str(error.value)


@pytest.mark.parametrize("flags", [0, FLAG_INITIATOR])
@pytest.mark.parametrize("who", ["moon", "sun"])
def test_nobody_gets_the_token_of_spis_in_use(who: str, flags: int) -> None:
    """HDR(live SPIs, I flag either way), N(...): section 9.2. With the token anybody could end the IKE_SA."""
    pair = Pair().up()
    host = pair.world.hosts[who]
    sa = host.ike
    content = emit_payloads([NotifyPayload(NotifyType.COOKIE2)])[1]
    size = HEADER_LEN + len(content)
    head = emit_header(sa.spi_i, sa.spi_r, PayloadType.NOTIFY, ExchangeType.INFORMATIONAL, flags, 5, size)
    host.engine.receive_datagram(head + content, sa.path, pair.world.now)
    assert not host.engine.datagrams_to_send()
    pair.finish()


def test_who_was_given_up_alone_is_told_when_it_comes_back() -> None:
    """Its requests are none that were answered: they must not vanish until it gives up as well."""
    pair = Pair(b={"dpd_delay": 30.0}).up()
    a, b, world = pair.a, pair.b, pair.world
    world.broken.add(frozenset((a.addresses[0], b.addresses[0])))
    world.run(400)
    assert not b.ikes
    assert len(a.ikes) == 1
    world.broken.clear()
    a.do(a.engine.rekey_child, a.child)
    world.run(1)
    assert [event.reason for event in a.events(IkeDown)] == ["the peer has restarted"]


def test_who_closed_it_in_order_is_told_nothing() -> None:
    """Its requests that are late are no sign of a lost state: a token would end what has taken the IKE_SA's place."""
    pair = Pair().up()
    a, b, world = pair.a, pair.b, pair.world
    late = []

    def keep(host: SimHost, data: bytes) -> bytes | None:
        if host is a and parse_header(data).exchange == ExchangeType.CREATE_CHILD_SA:
            late.append(data)
            return None
        return data

    world.filter = keep
    path = b.ikes[0].path
    a.do(a.engine.rekey_child, a.child)
    world.filter = None
    b.do(b.engine.terminate_ike, b.ikes[0])
    world.run(60)
    assert late
    assert not b.ikes
    b.engine.receive_datagram(late[0], path, world.now)
    assert not b.engine.datagrams_to_send()
