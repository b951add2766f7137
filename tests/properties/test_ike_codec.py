"""The IKEv2 codec: what is emitted parses to what it was; what is not a message is ParseError and nothing else."""

from __future__ import annotations

import contextlib

from hypothesis import given, settings
from hypothesis import strategies as st

from ipsec.errors import ParseError
from ipsec.wire.iana import ExchangeType, NotifyType, PayloadType
from ipsec.wire.ike import (
    HEADER_LEN,
    LEGAL,
    Header,
    emit_encrypted_header,
    emit_header,
    emit_payloads,
    find_encrypted,
    parse_header,
    parse_payloads,
    skim_init,
)
from ipsec.wire.payloads import (
    AuthPayload,
    CertPayload,
    CertReqPayload,
    CpPayload,
    DeletePayload,
    EapPayload,
    IdPayload,
    KePayload,
    NoncePayload,
    NotifyPayload,
    Payload,
    SaPayload,
    TsPayload,
    UnknownPayload,
    VendorPayload,
)
from ipsec.wire.proposal import UNKNOWN_ATTRIBUTE, Proposal, Transform
from ipsec.wire.selector import OPAQUE, IpAddress, TrafficSelector
from ipsec.wire.show import show_message
from tests.wire.ike_messages import GOLDEN, Golden

octet = st.integers(0, 255)
short = st.integers(0, 0xFFFF)
data = st.binary(max_size=40)
spi = st.binary(min_size=8, max_size=8)

transforms = st.builds(Transform, octet, short, st.just(0) | st.integers(1, 0xFFFF))


def _proposal(protocol: int, transforms: list[Transform], number: int, spi: bytes) -> Proposal:
    sizes = {1: (0, 8), 2: (4,), 3: (4,)}.get(protocol, (len(spi),))
    return Proposal(protocol, transforms, number, (spi + bytes(8))[: sizes[len(spi) % len(sizes)]])


proposals = st.builds(
    _proposal, st.sampled_from((1, 2, 3)) | octet, st.lists(transforms, max_size=8), st.integers(1, 255), data
)


def _selector(low: IpAddress, high: IpAddress, protocol: int, ports: tuple[int, int]) -> TrafficSelector:
    first, last = sorted((int(low), int(high)))
    return TrafficSelector(type(low)(first), type(low)(last), protocol, ports)


ports = st.just(OPAQUE) | st.tuples(short, short).map(lambda pair: (min(pair), max(pair)))
selectors = st.one_of(
    st.builds(_selector, st.ip_addresses(v=4), st.ip_addresses(v=4), octet, ports),
    st.builds(_selector, st.ip_addresses(v=6), st.ip_addresses(v=6), octet, ports),
)


@st.composite
def deletions(draw: st.DrawFn) -> DeletePayload:
    protocol = draw(st.sampled_from((1, 2, 3)) | octet)
    size = {1: 0, 2: 4, 3: 4}.get(protocol, draw(st.integers(1, 16)))
    spis = st.lists(st.binary(min_size=size, max_size=size), max_size=6) if size else st.just([])
    return DeletePayload(protocol, draw(spis))


PAYLOADS: dict[int, st.SearchStrategy[Payload]] = {
    PayloadType.SA: st.builds(SaPayload, st.lists(proposals, min_size=1, max_size=4)),
    PayloadType.KE: st.builds(KePayload, short, data),
    PayloadType.IDI: st.builds(IdPayload, st.just(35), octet, data, st.binary(min_size=3, max_size=3)),
    PayloadType.IDR: st.builds(IdPayload, st.just(36), octet, data, st.binary(min_size=3, max_size=3)),
    PayloadType.CERT: st.builds(CertPayload, octet, data),
    PayloadType.CERTREQ: st.builds(CertReqPayload, octet, data),
    PayloadType.AUTH: st.builds(AuthPayload, octet, data),
    PayloadType.NONCE: st.builds(NoncePayload, st.binary(min_size=16, max_size=256)),
    PayloadType.NOTIFY: st.builds(NotifyPayload, short, data, octet, data),
    PayloadType.DELETE: deletions(),
    PayloadType.VENDOR: st.builds(VendorPayload, data),
    PayloadType.TSI: st.builds(TsPayload, st.just(44), st.lists(selectors, max_size=4)),
    PayloadType.TSR: st.builds(TsPayload, st.just(45), st.lists(selectors, max_size=4)),
    PayloadType.CP: st.builds(CpPayload, octet, st.lists(st.tuples(st.integers(0, 0x7FFF), data), max_size=4)),
    PayloadType.EAP: st.builds(
        lambda code, ident, rest: EapPayload(bytes((code, ident)) + (4 + len(rest)).to_bytes(2, "big") + rest),
        octet,
        octet,
        data,
    ),
}
UNKNOWN = st.builds(UnknownPayload, st.integers(1, 255).filter(lambda t: t not in LEGAL), st.just(False), data)
places = st.sampled_from([(exchange, protected) for exchange in (*ExchangeType, 240) for protected in (False, True)])


@st.composite
def messages(draw: st.DrawFn) -> tuple[int, bool, list[Payload]]:
    """Payloads that may be in one message: exchange, protection, payloads."""
    exchange, protected = draw(places)
    legal = [
        strategy
        for type_, strategy in PAYLOADS.items()
        for allowed in [LEGAL[type_].protected if protected else LEGAL[type_].clear]
        if allowed is None or exchange in allowed
    ]
    return exchange, protected, draw(st.lists(st.one_of(*legal, UNKNOWN), max_size=8))


def head(first: int, exchange: int) -> Header:
    return Header(bytes(8), bytes(8), first, 2, 0, exchange, 8, 0, HEADER_LEN)


def test_every_payload_that_has_a_parser_is_tried() -> None:
    assert {type_ for type_, rule in LEGAL.items() if rule.parse} == set(PAYLOADS)


@given(messages())
@settings(max_examples=400)
def test_round_trip(message: tuple[int, bool, list[Payload]]) -> None:
    exchange, protected, payloads = message
    first, octets = emit_payloads(payloads)
    assert parse_payloads(first, octets, exchange, protected) == payloads
    assert show_message(head(first, exchange), payloads).count("\n") == 0


@given(messages(), st.data())
@settings(max_examples=400)
def test_a_message_with_a_few_octets_changed(message: tuple[int, bool, list[Payload]], choice: st.DataObject) -> None:
    exchange, protected, payloads = message
    first, octets = emit_payloads(payloads)
    changed = bytearray(octets)
    for _ in range(choice.draw(st.integers(1, 4)) if changed else 0):
        changed[choice.draw(st.integers(0, len(changed) - 1))] = choice.draw(octet)
    judge(first, bytes(changed[: choice.draw(st.integers(0, 2 * len(changed)))]), exchange, protected)


@given(st.sampled_from(GOLDEN), st.sampled_from(GOLDEN), st.data())
@settings(max_examples=300)
def test_golden_messages_cut_and_joined(first: Golden, other: Golden, choice: st.DataObject) -> None:
    cut, join = choice.draw(st.integers(0, len(first.octets))), choice.draw(st.integers(0, len(other.octets)))
    judge(first.first, first.octets[:cut] + other.octets[join:], first.exchange, first.protected)


@given(octet, st.binary(max_size=200), places)
@settings(max_examples=400)
def test_any_octets(first: int, octets: bytes, place: tuple[int, bool]) -> None:
    judge(first, octets, *place)


def judge(first: int, octets: bytes, exchange: int, protected: bool) -> None:
    """ParseError; or a value that has a text, and whose octets, where it has some, mean the same value."""
    skimmed: tuple[bytes | None, bytes] | None = None
    with contextlib.suppress(ParseError):
        skimmed = skim_init(head(first, exchange), bytes(HEADER_LEN) + octets)
    try:
        payloads = parse_payloads(first, octets, exchange, protected)
    except ParseError:
        return
    nonces = [payload.data for payload in payloads if isinstance(payload, NoncePayload)]
    cookies = [p.data for p in payloads if isinstance(p, NotifyPayload) and p.notify == NotifyType.COOKIE and not p.spi]
    if nonces:
        assert skimmed == (cookies[0] if cookies else None, nonces[-1])
    show_message(head(first, exchange), payloads)
    lost = [
        transform
        for payload in payloads
        if isinstance(payload, SaPayload)
        for proposal in payload.proposals
        for transform in proposal.transforms
        if transform.key_bits == UNKNOWN_ATTRIBUTE
    ]
    unnumbered = any(
        not proposal.number for payload in payloads if isinstance(payload, SaPayload) for proposal in payload.proposals
    )
    if not lost and not unnumbered:
        again = emit_payloads(payloads)
        assert parse_payloads(*again, exchange, protected) == payloads


@given(
    st.binary(min_size=8, max_size=8), st.binary(min_size=8, max_size=8), octet, octet, octet, st.integers(0, 2**32 - 1)
)
def test_headers(spi_i: bytes, spi_r: bytes, first: int, exchange: int, flags: int, message_id: int) -> None:
    octets = emit_header(spi_i, spi_r, first, exchange, flags, message_id, HEADER_LEN)
    assert parse_header(octets) == Header(spi_i, spi_r, first, 2, 0, exchange, flags, message_id, HEADER_LEN)


@given(octet, st.binary(max_size=100), st.none() | st.tuples(short, short))
def test_encrypted(first: int, body: bytes, fragment: tuple[int, int] | None) -> None:
    aad = emit_encrypted_header(bytes(8), bytes(8), ExchangeType.IKE_AUTH, 8, 1, first, len(body), fragment)
    message = aad + body
    header = parse_header(message)
    number, total = fragment or (1, 1)
    try:
        got = find_encrypted(header, message)
    except ParseError:
        assert not 1 <= number <= total
        return
    assert got == (PayloadType.SKF if fragment else PayloadType.SK, first, len(aad), number, total, [])


@given(st.binary(max_size=120), octet, st.sampled_from((35, 36, 37, 240)))
@settings(max_examples=300)
def test_any_octets_as_a_protected_message(octets: bytes, first: int, exchange: int) -> None:
    message = emit_header(bytes(8), bytes(8), first, exchange, 8, 1, HEADER_LEN + len(octets)) + octets
    try:
        got = find_encrypted(parse_header(message), message)
    except ParseError:
        return
    assert HEADER_LEN + 4 <= got.offset <= len(message)
    assert 1 <= got.number <= got.total
