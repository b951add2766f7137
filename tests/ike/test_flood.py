"""Floods of IKE_SA_INIT, in virtual time: memory stays flat, nobody is hit by our answers, and honest peers get in.

A spoofed request is never followed by anything; one from a real address comes with whatever cookie it was given.
"""

from __future__ import annotations

import itertools
import random
import sys
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

import pytest

from ipsec.ike.config import IkeSettings
from ipsec.ike.cookie import HalfOpenLimiter
from ipsec.ike.events import Path
from ipsec.ike.init import REQUEST_MAX
from ipsec.ike.registry import AT_ONCE, STRANGERS_PER_S
from ipsec.ike.state import IkeState
from ipsec.wire.iana import ExchangeType, NotifyType
from ipsec.wire.ike import HEADER_LEN, emit_header, emit_payloads, parse_header, parse_payloads
from ipsec.wire.payloads import KePayload, NoncePayload, NotifyPayload, Payload, SaPayload, UnknownPayload
from ipsec.wire.proposal import Proposal
from tests.ike.hostile import A2, IKE, A, B, Checkpoint, Lab, Target, consistent

DEFAULTS = IkeSettings()
NONCE, SPI = b"n" * 32, b"initiato"


def request(spi_i: bytes, nonce: bytes, *extra: Payload, public: bytes = b"\x09" + bytes(31), size: int = 0) -> bytes:
    """A well-formed IKE_SA_INIT request, of at least ``size`` octets."""
    proposals = [Proposal(p.protocol, p.transforms, 1) for p in IKE]
    payloads = [*extra, SaPayload(proposals), KePayload(31, public), NoncePayload(nonce)]
    first, content = emit_payloads(payloads)
    if HEADER_LEN + len(content) + 8 <= size:
        filler = NotifyPayload(40000, bytes(size - HEADER_LEN - len(content) - 8))
        first, content = emit_payloads([*payloads, filler])
    head = emit_header(spi_i, bytes(8), first, ExchangeType.IKE_SA_INIT, 0x08, 0, HEADER_LEN + len(content))
    return head + content


def notifies(data: bytes) -> dict[int, bytes]:
    header = parse_header(data)
    payloads = parse_payloads(header.next_payload, data[HEADER_LEN:], header.exchange, False)
    return {p.notify: p.data for p in payloads if isinstance(p, NotifyPayload)}


def deliver(engine: Target, data: bytes, remote: Any, now: float, port: int = 500) -> list[bytes]:
    engine.receive_datagram(data, Path(B, 500, remote, port), now)
    return [out for out, *_ in engine.datagrams_to_send()]


def memory(engine: Target) -> int:
    """Octets of all that the engine keeps, about."""
    found = Checkpoint(engine)
    return sum(sys.getsizeof(one) for one, _, _ in found.objects) + sum(sys.getsizeof(c) for c, _ in found.containers)


def connect(lab: Lab, flood: Any, local: Any = A) -> bool:
    """An honest initiator, with ``flood`` going on between any two datagrams; it retransmits as long as it may."""
    lab.a.initiate(lab.ca, [(lab.ca.children[0], 0)], Path(local, 500, B, 500), lab.now)
    for _ in range(60):
        for target, data, path in lab.flow():
            flood()
            lab.now += 0.01
            target.receive_datagram(data, path, lab.now)
        if any(sa.established for sa in lab.a.sas.values()):
            return True
        lab.now += 1.0
        for engine in (lab.a, lab.b):
            engine.handle_timer(lab.now)
    return False


class Flood:
    """Spoofed requests, each from another address; what it hears goes to whoever has that address."""

    def __init__(self, lab: Lab, count: int = 500, *, sources: Any = None) -> None:
        self.lab, self.count = lab, count
        self.rng = random.Random(5)
        self.sources = sources or (lambda: IPv4Address(self.rng.getrandbits(32)))
        self.octets_in = self.octets_out = 0
        self.most = 0

    def __call__(self) -> None:
        engine = self.lab.b
        for _ in range(self.count):
            data = request(self.rng.randbytes(8), self.rng.randbytes(32), size=300)
            out = deliver(engine, data, self.sources(), self.lab.now)
            assert len(out) <= 1
            self.octets_in += len(data)
            self.octets_out += sum(map(len, out))
            assert self.octets_out <= self.octets_in
        self.most = max(self.most, len(engine.sas))


def test_memory_is_flat_under_spoofed_requests() -> None:
    lab = Lab()
    flood = Flood(lab, 1000)
    flood()
    before = memory(lab.b)
    half_open = len(lab.b.sas)
    for _ in range(20):
        flood()
        lab.now += 0.05
    assert memory(lab.b) <= before * 1.01
    assert len(lab.b.sas) == half_open == DEFAULTS.cookie_threshold
    lab.b.drain()
    consistent(lab.b)
    lab.now += DEFAULTS.half_open_timeout + 1
    # a bounded number of timers in each call
    while (due := lab.b.next_timer()) is not None and due <= lab.now:
        lab.b.handle_timer(lab.now)
        assert len(lab.b.sas) >= half_open - AT_ONCE
        half_open = len(lab.b.sas)
    assert not lab.b.sas
    assert not lab.b.init_requests
    assert len(lab.b.half_open) == 0


@pytest.mark.parametrize("family", [4, 6])
def test_an_honest_peer_gets_in(family: int) -> None:
    lab = Lab()
    rng = random.Random(3)
    flood = Flood(lab, 400, sources=None if family == 4 else lambda: IPv6Address(rng.getrandbits(128)))
    flood()
    started = lab.now
    assert connect(lab, flood)
    # a cookie more, and no retransmission
    assert lab.now - started < 1.0
    assert flood.most <= DEFAULTS.cookie_threshold + 1


def test_an_honest_peer_behind_the_same_address_gets_in() -> None:
    """strongSwan #2791: others behind one NAT are not locked out by one of them."""
    lab = Lab()
    engine = lab.b
    rng = random.Random(4)
    # the attacker answers cookies, from the address that the honest peer has, and never authenticates
    for port in range(2000, 2000 + 5000):
        spi, nonce = rng.randbytes(8), rng.randbytes(32)
        (reply,) = deliver(engine, request(spi, nonce, size=300), A, lab.now, port) or [b""]
        cookie = notifies(reply).get(NotifyType.COOKIE) if reply else None
        if cookie is not None:
            out = deliver(engine, with_cookie(cookie, spi, nonce), A, lab.now, port)
            assert len(out) <= 1
    assert len(engine.sas) <= DEFAULTS.half_open_limit
    # half of all places are for others; the one who shares the address waits for a place, and gets one
    other = Lab()
    other.b, other.now = engine, lab.now
    assert connect(other, lambda: None, A2)
    assert connect(lab, lambda: None)


def test_behind_the_same_address_while_a_moderate_flood_goes_on() -> None:
    lab = Lab()
    rng = random.Random(6)

    def flood() -> None:
        for _ in range(20):
            spi, nonce = rng.randbytes(8), rng.randbytes(32)
            port = rng.randrange(1024, 65536)
            out = deliver(lab.b, request(spi, nonce, size=300), A, lab.now, port)
            cookie = notifies(out[0]).get(NotifyType.COOKIE) if out else None
            if cookie is not None:
                deliver(lab.b, with_cookie(cookie, spi, nonce), A, lab.now, port)

    for _ in range(20):
        flood()
    started = lab.now
    assert connect(lab, flood)
    assert lab.now - started < 3.0


# -- cookies


def cookie_for(lab: Lab, data: bytes, remote: Any = A) -> bytes:
    (reply,) = deliver(lab.b, data, remote, lab.now)
    header = parse_header(reply)
    # RFC 7296 section 2.6: the responder's SPI is zero, it keeps nothing
    assert header.spi_r == bytes(8)
    assert list(notifies(reply)) == [NotifyType.COOKIE]
    assert not lab.b.sas
    return notifies(reply)[NotifyType.COOKIE]


def always_cookie() -> Lab:
    return Lab(settings={"cookie_threshold": 0})


def with_cookie(cookie: bytes, spi: bytes = SPI, nonce: bytes = NONCE) -> bytes:
    return request(spi, nonce, NotifyPayload(NotifyType.COOKIE, cookie))


def test_a_cookie_is_good_for_one_request_alone() -> None:
    """OB-46: it binds nonce, address and SPI, each bit of it counts, and it costs no memory."""
    lab = always_cookie()
    cookie = cookie_for(lab, request(SPI, NONCE))
    before = Checkpoint(lab.b)
    wrong = [
        (with_cookie(cookie, nonce=b"m" * 32), A),
        (with_cookie(cookie, spi=b"Initiato"), A),
        (with_cookie(cookie), A2),
        (with_cookie(cookie[:-1]), A),
        (with_cookie(cookie + b"\0"), A),
        (with_cookie(b""), A),
        (with_cookie(bytes(64)), A),
        (with_cookie(bytes(6_000)), A),
    ]
    for at, bit in itertools.product(range(len(cookie)), range(8)):
        wrong.append((with_cookie(cookie[:at] + bytes((cookie[at] ^ 1 << bit,)) + cookie[at + 1 :]), A))
    for data, remote in wrong:
        (reply,) = deliver(lab.b, data, remote, lab.now)
        assert list(notifies(reply)) == [NotifyType.COOKIE]
        assert not before.changes()
    (reply,) = deliver(lab.b, with_cookie(cookie), A, lab.now)
    assert parse_header(reply).spi_r != bytes(8)
    (sa,) = lab.b.sas.values()
    assert sa.state is IkeState.CONNECTING


def test_a_cookie_grows_old() -> None:
    lab = always_cookie()
    cookie = cookie_for(lab, request(SPI, NONCE))
    lab.now += 100
    assert parse_header(deliver(lab.b, with_cookie(cookie), A, lab.now)[0]).spi_r != bytes(8)
    lab = always_cookie()
    cookie = cookie_for(lab, request(SPI, NONCE))
    lab.now += 1000
    assert list(notifies(deliver(lab.b, with_cookie(cookie), A, lab.now)[0])) == [NotifyType.COOKIE]


def test_the_first_message_is_not_taken_once_a_cookie_was_asked_for() -> None:
    """AUTH is over message 1 (section 2.15), and the initiator's has the cookie."""
    lab = Lab(settings={"cookie_threshold": 5, "half_open_timeout": 3.0})
    for number in range(1, 6):
        deliver(lab.b, request(bytes((number,)) * 8, NONCE, size=300), IPv4Address(number), lab.now)
    lab.a.initiate(lab.ca, [(lab.ca.children[0], 0)], Path(A, 500, B, 500), lab.now)
    ((first, *_),) = lab.a.datagrams_to_send()
    (cookie,) = deliver(lab.b, first, A, lab.now)
    assert list(notifies(cookie)) == [NotifyType.COOKIE]
    # the five are gone before a copy of the first message comes in
    lab.now += 3.5
    for _ in range(5 // AT_ONCE + 1):
        lab.b.handle_timer(lab.now)
    assert not lab.b.sas
    late = deliver(lab.b, first, A, lab.now)
    assert not lab.b.sas
    lab.a.receive_datagram(cookie, Path(A, 500, B, 500), lab.now)
    for answer in late:
        lab.a.receive_datagram(answer, Path(A, 500, B, 500), lab.now)
    lab.pump()
    assert [sa.established for engine in (lab.a, lab.b) for sa in engine.sas.values()] == [True, True]


def test_requests_that_lead_nowhere_are_soon_not_read() -> None:
    lab = Lab()
    rng = random.Random(8)
    for _ in range(300):
        # a public value that is too short: never half-open
        data = request(rng.randbytes(8), rng.randbytes(32), public=bytes(31), size=300)
        out = deliver(lab.b, data, IPv4Address(rng.getrandbits(32)), lab.now)
    assert not lab.b.sas
    assert list(notifies(out[0])) == [NotifyType.COOKIE]
    assert connect(lab, lambda: None)


def test_a_retransmission_costs_nothing() -> None:
    """OB-44: the same request gets the same answer, and no second IKE_SA."""
    lab = Lab()
    data = request(SPI, NONCE, size=300)
    answers = {deliver(lab.b, data, A, lab.now)[0] for _ in range(1000)}
    assert len(answers) == 1
    assert len(lab.b.sas) == 1
    # the same SPI with another message is another IKE_SA
    assert deliver(lab.b, request(SPI, b"o" * 32, size=300), A, lab.now)[0] not in answers
    assert len(lab.b.sas) == 2


def test_cve_t_36_never_more_than_came_in() -> None:
    """CVE-2016-5361: a short request is not worth a long answer, and the responder says nothing by itself."""
    for certs in (False, True):
        lab = Lab(certs=certs)
        for size in range(100, 400, 3):
            data = request(size.to_bytes(8, "big"), NONCE, size=size)
            out = deliver(lab.b, data, IPv4Address(0x0A000000 + size), lab.now)
            assert sum(map(len, out)) <= len(data)
        due = lab.b.next_timer()
        assert due is not None
        while (due := lab.b.next_timer()) is not None:
            lab.b.handle_timer(due)
            assert not lab.b.datagrams_to_send()
        assert not lab.b.sas


@pytest.mark.parametrize("kind", ["unknown SPI", "major version"])
def test_answers_to_strangers_are_few(kind: str) -> None:
    """OB-50, OB-63: so a flood of short requests never makes more octets than it has."""
    lab = Lab()
    octets_in = octets_out = 0
    for second in range(10):
        answers = 0
        for number in range(1000):
            spis = number.to_bytes(8, "big"), b"responde"
            head = bytearray(emit_header(*spis, 0, ExchangeType.INFORMATIONAL, 0x08, 0, HEADER_LEN))
            if kind == "major version":
                head[17] = 0x30
            out = deliver(lab.b, bytes(head), A, lab.now + second)
            octets_in += HEADER_LEN
            octets_out += sum(map(len, out))
            answers += len(out)
        assert answers <= STRANGERS_PER_S
    assert octets_out <= octets_in


def test_work_for_a_stranger_is_bounded() -> None:
    """B5: reading costs as much as there is to read, so very much is not read. RFC 7296 section 2 wants 3000 octets."""
    lab = Lab()
    assert deliver(lab.b, request(SPI, NONCE, size=3000), A, lab.now)
    assert deliver(lab.b, request(b"Initiato", NONCE, size=REQUEST_MAX), A, lab.now)
    before = Checkpoint(lab.b)
    for size in (REQUEST_MAX + 1, 20_000, 65_000):
        assert not deliver(lab.b, request(b"INITIATO", NONCE, size=size), A, lab.now)
        assert not before.changes()


def test_an_unknown_critical_payload_of_a_stranger_is_named() -> None:
    """RFC 7296 section 2.5: also before there are keys, and in fewer octets than came; nothing is kept."""
    lab = Lab()
    lab.b.catch_up()
    before = Checkpoint(lab.b)
    for kind in (1, 49, 255):
        for critical in (True, False):
            data = request(SPI, NONCE, UnknownPayload(kind, critical, b"what"))
            (reply,) = deliver(lab.b, data, A, lab.now)
            named = notifies(reply).get(NotifyType.UNSUPPORTED_CRITICAL_PAYLOAD)
            assert named == (bytes((kind,)) if critical else None)
            assert len(reply) < len(data)
    assert not before.changes()


def test_cve_t_59_ikev1() -> None:
    """CVE-2022-34721 and all of IKEv1: no state, one short answer at most, and few of them."""
    lab = Lab()
    lab.b.catch_up()
    before = Checkpoint(lab.b)
    rng = random.Random(1)
    for exchange in range(256):
        head = bytearray(emit_header(rng.randbytes(8), bytes(8), 1, exchange, 0, 0, HEADER_LEN + 60))
        head[17] = 0x10
        out = deliver(lab.b, bytes(head) + rng.randbytes(60), A, lab.now)
        assert all(list(notifies(reply)) == [NotifyType.INVALID_MAJOR_VERSION] for reply in out)
        assert not before.changes()
    assert lab.b._strangers == 256


def test_cve_t_41_spis_of_refused_requests_lead_nowhere() -> None:
    """CVE-2023-30570."""
    lab = Lab()
    refused = request(SPI, NONCE, public=bytes(32), size=300)  # a low-order point
    assert not deliver(lab.b, refused, A, lab.now)
    refused = request(SPI, NONCE).replace(bytes((3, 0, 0, 12, 1, 0, 0, 20)), bytes((3, 0, 0, 12, 1, 0, 0, 99)))
    (reply,) = deliver(lab.b, refused, A, lab.now)
    assert list(notifies(reply)) == [NotifyType.NO_PROPOSAL_CHOSEN]
    assert parse_header(reply).spi_r == bytes(8)
    assert not lab.b.sas
    assert not lab.b.by_spi


def test_the_account_of_half_open_ones_is_bounded() -> None:
    limiter = HalfOpenLimiter(limit=200)
    for number in range(10_000):
        address = ip_address(0x0B000000 + number)
        if limiter.admits(address):
            limiter.add(address)
    assert len(limiter) == 200
    assert len(limiter._counts) <= 200


def test_the_limit_of_ike_sas() -> None:
    lab = Lab(settings={"ike_sa_limit": 5, "cookie_threshold": 10**6})
    for number in range(50):
        data = request(number.to_bytes(8, "big"), NONCE, size=300)
        deliver(lab.b, data, IPv4Address(0x0A000000 + number), lab.now)
    assert len(lab.b.sas) == 5
