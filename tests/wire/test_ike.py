"""Messages: header, chain of payloads, where they may be, where SK begins; scapy as the other side."""

from __future__ import annotations

import warnings
from ipaddress import ip_address
from itertools import product

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from scapy.contrib import ikev2 as scapy

from ipsec.errors import ParseError
from ipsec.wire.iana import ExchangeType, PayloadType
from ipsec.wire.ike import (
    FLAG_INITIATOR,
    FLAG_RESPONSE,
    HEADER_LEN,
    LEGAL,
    MAX_PAYLOADS,
    Encrypted,
    Header,
    UnsupportedCriticalPayload,
    emit_encrypted_header,
    emit_header,
    emit_payloads,
    find_encrypted,
    parse_header,
    parse_payloads,
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
from ipsec.wire.proposal import Proposal, Transform
from ipsec.wire.selector import TrafficSelector
from ipsec.wire.show import show_message
from tests.wire.ike_messages import (
    AUTH,
    CHILD,
    GOLDEN,
    INFORMATIONAL,
    INIT,
    NAMES,
    SPI_I,
    SPI_R,
    Golden,
    header,
    octets,
)

golden = pytest.mark.parametrize("golden", GOLDEN, ids=NAMES)

#: a body that is well-formed for each type
BODIES: dict[int, bytes] = {
    PayloadType.SA: octets("0000001001010001 0000000802000005"),
    PayloadType.KE: octets("001f0000 aabb"),
    PayloadType.IDI: octets("02000000 61"),
    PayloadType.IDR: octets("02000000 61"),
    PayloadType.CERT: octets("04 3000"),
    PayloadType.CERTREQ: octets("04"),
    PayloadType.AUTH: octets("02000000 ff"),
    PayloadType.NONCE: bytes(16),
    PayloadType.NOTIFY: octets("00004000"),
    PayloadType.DELETE: octets("01000000"),
    PayloadType.VENDOR: b"v",
    PayloadType.TSI: octets("01000000 070000100000ffff 00000000 ffffffff"),
    PayloadType.TSR: octets("01000000 070000100000ffff 00000000 ffffffff"),
    PayloadType.SK: bytes(40),
    PayloadType.CP: octets("01000000"),
    PayloadType.EAP: octets("03010004"),
    PayloadType.SKF: octets("00010001") + bytes(40),
}

INIT_, AUTH_, CHILD_, INFO_ = 34, 35, 36, 37
RESUME, INTERMEDIATE, FOLLOWUP = 38, 43, 44
#: RFC 7296 appendix C, RFC 5723, RFC 9242, RFC 9370, written again: where each payload may be, in clear and protected
PLACES: dict[int, tuple[set[int], set[int]]] = {
    33: ({INIT_}, {AUTH_, CHILD_}),
    34: ({INIT_}, {CHILD_, INTERMEDIATE, FOLLOWUP}),
    35: (set(), {AUTH_}),
    36: (set(), {AUTH_}),
    37: (set(), {AUTH_}),
    38: ({INIT_}, {AUTH_}),
    39: (set(), {AUTH_}),
    40: ({INIT_, RESUME}, {CHILD_}),
    41: (set(range(256)), set(range(256))),
    42: (set(), {INFO_}),
    43: (set(range(256)), set(range(256))),
    44: (set(), {AUTH_, CHILD_}),
    45: (set(), {AUTH_, CHILD_}),
    46: (set(), set()),
    47: (set(), {AUTH_, CHILD_, INFO_}),
    48: (set(), {AUTH_}),
    53: (set(), set()),
}


def chain(*items: tuple[int, bytes], flags: int = 0, last: int = 0) -> tuple[int, bytes]:
    """Payloads of these types and bodies, and the type of the first."""
    types = [type_ for type_, _ in items] + [last]
    parts = [
        bytes((following, flags)) + (4 + len(body)).to_bytes(2, "big") + body
        for (_, body), following in zip(items, types[1:], strict=True)
    ]
    return types[0], b"".join(parts)


def whole(first: int, body: bytes, exchange: int = ExchangeType.IKE_AUTH, flags: int = FLAG_INITIATOR) -> bytes:
    return emit_header(SPI_I, SPI_R, first, exchange, flags, 1, HEADER_LEN + len(body)) + body


def find(message: bytes) -> Encrypted:
    return find_encrypted(parse_header(message), message)


# --- the header ---


def test_header_golden() -> None:
    """Section 3.1."""
    data = octets("1122334455667788 99aabbccddeeff00 2e 20 25 28 01020304 0000001c")
    got = parse_header(data)
    assert got == Header(SPI_I, SPI_R, 46, 2, 0, 37, 0x28, 0x01020304, 28)
    assert (got.initiator, got.response) == (True, True)
    assert emit_header(SPI_I, SPI_R, 46, 37, 0x28, 0x01020304, 28) == data
    assert parse_header(memoryview(data)) == got


def test_flags() -> None:
    """OB-49, OB-50: other bits and the version are nobody's business here."""
    for flags, version in product(range(256), (0x00, 0x10, 0x20, 0x2F, 0x30, 0xFF)):
        data = SPI_I + SPI_R + bytes((0, version, 37, flags)) + octets("00000000 0000001c")
        got = parse_header(data)
        assert (got.initiator, got.response) == (bool(flags & 8), bool(flags & 32))
        assert (got.major, got.minor, got.flags) == (version >> 4, version & 15, flags)
    assert (FLAG_INITIATOR, FLAG_RESPONSE) == (8, 32)


def test_every_size_and_length_field() -> None:
    """CVE-2013-4564."""
    for size in range(301):
        data = bytearray(size)
        for length in {0, 1, 27, 28, size - 1, size, size + 1, 2**31, 2**32 - 1} - {-1}:
            data[24:28] = length.to_bytes(4, "big")
            del data[size:]
            if length == size >= HEADER_LEN:
                assert parse_header(bytes(data)).length == size
            else:
                with pytest.raises(ParseError):
                    parse_header(bytes(data))


# --- golden messages ---


@golden
def test_golden_messages(golden: Golden) -> None:
    got = parse_payloads(golden.first, golden.octets, golden.exchange, golden.protected)
    assert got == golden.payloads
    assert parse_payloads(golden.first, memoryview(golden.octets), golden.exchange, golden.protected) == got


@pytest.mark.parametrize("golden", [CHILD, INFORMATIONAL], ids=["child", "informational"])
def test_golden_messages_emitted(golden: Golden) -> None:
    """Those that have neither reserved bits set nor what we do not know."""
    assert emit_payloads(golden.payloads) == (golden.first, golden.octets)


def test_a_whole_message() -> None:
    data = header(INIT) + INIT.octets
    got = parse_header(data)
    assert (got.spi_i, got.spi_r, got.message_id, got.initiator, got.response) == (SPI_I, SPI_R, 0, True, False)
    assert parse_payloads(got.next_payload, data[HEADER_LEN:], got.exchange, False) == INIT.payloads


def survives(first: int, data: bytes, exchange: int, protected: bool) -> None:
    """A value that can be shown, or ParseError."""
    try:
        payloads = parse_payloads(first, data, exchange, protected)
    except ParseError:
        return
    assert "\n" not in show_message(Header(SPI_I, SPI_R, first, 2, 0, exchange, 8, 1, 28), payloads)


@golden
def test_every_truncation(golden: Golden) -> None:
    """No prefix of a message is a message."""
    for size in range(len(golden.octets)):
        with pytest.raises(ParseError):
            parse_payloads(golden.first, golden.octets[:size], golden.exchange, golden.protected)


@golden
def test_every_octet_changed(golden: Golden) -> None:
    """Length fields, types, counts and all else."""
    for at, old in enumerate(golden.octets):
        near = {(old + 1) & 255, (old - 1) & 255, old ^ 128}
        for new in {0, 1, 3, 4, 5, 7, 8, 9, 12, 46, 53, 127, 128, 254, 255} | near:
            data = golden.octets[:at] + bytes((new,)) + golden.octets[at + 1 :]
            survives(golden.first, data, golden.exchange, golden.protected)


@golden
def test_every_pair_of_octets_as_a_length(golden: Golden) -> None:
    for at in range(len(golden.octets) - 1):
        rest = len(golden.octets) - at
        for length in {*range(20), rest - 1, rest, rest + 1, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF} - {-1}:
            data = golden.octets[:at] + length.to_bytes(2, "big") + golden.octets[at + 2 :]
            survives(golden.first, data, golden.exchange, golden.protected)


@golden
def test_octets_after_the_last_payload(golden: Golden) -> None:
    for tail in (b"\0", b"\0\0\0\4", bytes(100)):
        with pytest.raises(ParseError, match="after the last payload"):
            parse_payloads(golden.first, golden.octets + tail, golden.exchange, golden.protected)


def test_payloads_shorter_than_their_header() -> None:
    """Also where what comes next would fit: no payload overlaps another, none is read twice."""
    for text in ("2b000002 0004", "2b000000", "00000000", "00000003", "2b000003 00040000"):
        for type_ in (PayloadType.VENDOR, 200):
            with pytest.raises(ParseError, match="does not fit"):
                parse_payloads(type_, octets(text), ExchangeType.INFORMATIONAL, True)


# --- which payload may be where: CVE-2015-3991, OB-48, OB-51 ---


def test_the_table_is_what_the_rfcs_say() -> None:
    assert set(LEGAL) == set(PLACES) == set(BODIES) == set(PayloadType) - {0}


@pytest.mark.parametrize("protected", [False, True], ids=["clear", "protected"])
def test_all_payload_types_in_all_exchanges(protected: bool) -> None:
    exchanges = (*range(33, 45), 0, 1, 2, 240, 255)
    for type_, exchange, critical in product(range(1, 256), exchanges, (0, 0x80)):
        first, data = chain((type_, BODIES.get(type_, b"what")), flags=critical)
        if type_ not in PLACES:
            if critical:
                with pytest.raises(UnsupportedCriticalPayload) as caught:
                    parse_payloads(first, data, exchange, protected)
                assert caught.value.payload_type == type_
            else:
                assert parse_payloads(first, data, exchange, protected) == [UnknownPayload(type_, False, b"what")]
        elif exchange in PLACES[type_][protected]:
            # critical means nothing where we know the type
            (payload,) = parse_payloads(first, data, exchange, protected)
            assert payload.type == type_
            assert payload.emit() == BODIES[type_]
        else:
            with pytest.raises(ParseError) as caught:
                parse_payloads(first, data, exchange, protected)
            assert not isinstance(caught.value, UnsupportedCriticalPayload)


def test_all_payload_types_in_every_position() -> None:
    """All 256 next-payload values after each payload of each message."""
    for message in GOLDEN:
        offset = 0
        while offset < len(message.octets):
            for type_ in range(256):
                data = bytearray(message.octets)
                data[offset] = type_
                survives(message.first, bytes(data), message.exchange, message.protected)
            offset += int.from_bytes(message.octets[offset + 2 : offset + 4], "big")
        for first in range(256):
            survives(first, message.octets, message.exchange, message.protected)
            survives(first, message.octets, message.exchange, not message.protected)


def test_reserved_bits_of_generic_headers_are_ignored() -> None:
    for flags in range(0x80):
        first, data = chain((PayloadType.NONCE, bytes(16)), (99, b""), flags=flags)
        got = parse_payloads(first, data, ExchangeType.IKE_SA_INIT, False)
        assert got == [NoncePayload(bytes(16)), UnknownPayload(99, False, b"")]


def test_lost_doubled_and_moved_payloads_are_values() -> None:
    """CVE-2013-6466: what must be there is for the exchange to say; a chain without it is well-formed."""
    for message in (INIT, AUTH, CHILD, INFORMATIONAL):
        good = [p for p in message.payloads if not isinstance(p, SaPayload)]
        for at in range(len(good)):
            for changed in (good[:at] + good[at + 1 :], [*good, good[at]], good[at:] + good[:at]):
                first, data = emit_payloads(changed)
                assert parse_payloads(first, data, message.exchange, message.protected) == changed


def test_a_deletion_with_anything_after_it() -> None:
    """CVE-2023-38712: two deletions and what follows are values like any."""
    more: list[Payload] = [DeletePayload(3, [b"\1\2\3\4"]), DeletePayload(1, []), NotifyPayload(16384)]
    for after in (*more, CpPayload(1, []), VendorPayload(b"")):
        payloads: list[Payload] = [DeletePayload(1, []), after]
        first, data = emit_payloads(payloads)
        assert parse_payloads(first, data, ExchangeType.INFORMATIONAL, True) == payloads


@pytest.mark.parametrize("protected", [False, True], ids=["clear", "protected"])
@pytest.mark.parametrize("type_", [PayloadType.NOTIFY, 200])
def test_the_number_of_payloads_is_bounded(protected: bool, type_: int) -> None:
    """CVE-2026-12413: the maximum, one less, one more."""
    for count in (MAX_PAYLOADS - 1, MAX_PAYLOADS, MAX_PAYLOADS + 1, 16000):
        first, data = chain(*[(type_, b"\0\0\x40\0")] * count)
        if count <= MAX_PAYLOADS:
            assert len(parse_payloads(first, data, ExchangeType.INFORMATIONAL, protected)) == count
        else:
            with pytest.raises(ParseError, match="more than"):
                parse_payloads(first, data, ExchangeType.INFORMATIONAL, protected)


# --- SK and SKF ---


def test_sk() -> None:
    """Section 3.14."""
    aad = emit_encrypted_header(SPI_I, SPI_R, ExchangeType.IKE_AUTH, FLAG_INITIATOR, 1, PayloadType.IDI, 40)
    assert aad == octets("1122334455667788 99aabbccddeeff00 2e 20 23 08 00000001 0000004823 00 002c")
    message = aad + bytes(40)
    got = find(message)
    assert got == Encrypted(46, 35, 32, 1, 1, [])
    assert message[: got.offset] == aad
    assert find_encrypted(parse_header(message), memoryview(message)) == got


def test_skf() -> None:
    """RFC 7383 section 2.5."""
    aad = emit_encrypted_header(SPI_I, SPI_R, ExchangeType.IKE_AUTH, FLAG_RESPONSE, 1, 0, 40, (2, 3))
    assert aad == octets("1122334455667788 99aabbccddeeff00 35 20 23 20 00000001 0000004c00 00 0030 0002 0003")
    assert find(aad + bytes(40)) == Encrypted(53, 0, 36, 2, 3, [])


def test_fragment_numbers() -> None:
    """CVE-2016-1287: numbers, totals and lengths at their limits."""
    numbers = (0, 1, 2, 3, 255, 256, 65534, 65535)
    for number, total, size in product(numbers, numbers, (0, 1, 40)):
        body = number.to_bytes(2, "big") + total.to_bytes(2, "big") + bytes(size)
        message = whole(*chain((53, body)))
        if 1 <= number <= total:
            assert find(message)[1:5] == (0, 36, number, total)
        else:
            with pytest.raises(ParseError, match="fragment"):
                find(message)


@pytest.mark.parametrize("type_", [PayloadType.SK, PayloadType.SKF])
def test_every_length_of_an_encrypted_payload(type_: int) -> None:
    for size in range(41):
        body = (octets("00010001") + bytes(40))[:size]
        message = whole(*chain((type_, body)))
        if type_ == PayloadType.SKF and size < 4:
            with pytest.raises(ParseError, match="cut short"):
                find(message)
        else:
            assert find(message).type == type_
        for length in (*range(4 + size), 5 + size, 0xFFFF):
            wrong = bytearray(message)
            wrong[HEADER_LEN + 2 : HEADER_LEN + 4] = length.to_bytes(2, "big")
            with pytest.raises(ParseError):
                find(bytes(wrong))


@pytest.mark.parametrize("type_", [PayloadType.SK, PayloadType.SKF])
def test_encrypted_payloads_are_the_last(type_: int) -> None:
    """OB-51. Next Payload of SK names what is inside: octets behind it are no payload."""
    body = BODIES[type_]
    for tail in (b"\0", chain((PayloadType.NOTIFY, BODIES[PayloadType.NOTIFY]))[1], chain((46, bytes(40)))[1]):
        first, data = chain((type_, body), last=PayloadType.NOTIFY)
        with pytest.raises(ParseError, match="rest of the message"):
            find(whole(first, data + tail))
    for exchange in (ExchangeType.IKE_SA_INIT, ExchangeType.IKE_SESSION_RESUME):
        with pytest.raises(ParseError, match="in clear in IKE_S"):
            find(whole(*chain((type_, body)), exchange))
        with pytest.raises(ParseError, match="in clear in IKE_S"):
            parse_payloads(*chain((type_, body)), exchange, False)
    with pytest.raises(ParseError, match="should be in clear"):
        parse_payloads(*chain((type_, body)), ExchangeType.INFORMATIONAL, False)
    with pytest.raises(ParseError, match="protected"):
        parse_payloads(*chain((type_, body)), ExchangeType.INFORMATIONAL, True)


@pytest.mark.parametrize("exchange", [35, 36, 37, 43, 44, 240])
def test_exchanges_that_have_keys(exchange: int) -> None:
    assert find(whole(*chain((46, bytes(40))), exchange)).type == 46


def test_payloads_before_sk() -> None:
    """Legal though useless; they are not covered by more than the ICV of the whole."""
    first, data = chain((41, BODIES[41]), (200, b"?"), (43, b"v"), (46, bytes(40)), last=35)
    got = find(whole(first, data))
    before = [NotifyPayload(16384), UnknownPayload(200, False, b"?"), VendorPayload(b"v")]
    assert got == Encrypted(46, 35, len(whole(first, data)) - 40, 1, 1, before)
    for type_, places in PLACES.items():
        if type_ not in (46, 53) and AUTH_ not in places[0]:
            with pytest.raises(ParseError, match="in clear in IKE_AUTH"):
                find(whole(*chain((type_, BODIES[type_]), (46, bytes(40)))))
    with pytest.raises(UnsupportedCriticalPayload, match="200"):
        find(whole(*chain((200, b"?"), (46, bytes(40)), flags=0x80)))


@pytest.mark.parametrize("type_", [PayloadType.SK, PayloadType.SKF])
def test_the_number_of_payloads_before_sk_is_bounded(type_: int) -> None:
    for count in (MAX_PAYLOADS - 1, MAX_PAYLOADS, MAX_PAYLOADS + 1):
        message = whole(*chain(*[(200, b"")] * count, (type_, BODIES[type_])))
        if count <= MAX_PAYLOADS:
            assert len(find(message).clear) == count
        else:
            with pytest.raises(ParseError, match="more than"):
                find(message)


def test_messages_without_an_encrypted_payload() -> None:
    for body in (chain((41, BODIES[41])), (0, b"")):
        with pytest.raises(ParseError, match="without an encrypted payload"):
            find(whole(*body))
    with pytest.raises(ParseError):
        find(whole(46, b""))


def test_what_is_too_large_to_send() -> None:
    with pytest.raises(ValueError, match="octets"):
        emit_encrypted_header(SPI_I, SPI_R, 35, 8, 1, 35, 0xFFFC)
    with pytest.raises(ValueError, match="octets"):
        emit_encrypted_header(SPI_I, SPI_R, 35, 8, 1, 35, 0xFFF8, (1, 1))
    assert len(emit_encrypted_header(SPI_I, SPI_R, 35, 8, 1, 35, 0xFFFB)) == 32
    large: list[Payload] = [
        VendorPayload(bytes(0xFFFC)),
        KePayload(0x10000, b""),
        CertPayload(256, b""),
        NotifyPayload(0x10000),
        NotifyPayload(1, b"", 3, bytes(256)),
        DeletePayload(3, [b"1234"] * 0x10000),
        SaPayload([Proposal(1, [Transform(1, 1)] * 256)]),
        SaPayload([Proposal(1, [Transform(1, 0x10000)])]),
        IdPayload(35, -1, b""),
        UnknownPayload(256, False, b""),
    ]
    for payload in large:
        with pytest.raises(ValueError, match="too large"):
            emit_payloads([VendorPayload(b""), payload])


def test_emit_golden() -> None:
    assert emit_payloads([]) == (0, b"")
    assert emit_payloads([UnknownPayload(200, True, b"x"), VendorPayload(b"yz")]) == (
        200,
        octets("2b 80 0005 78  00 00 0006 797a"),
    )
    assert emit_payloads((NotifyPayload(16384),)) == (41, octets("00 00 0008 00 00 4000"))


# --- scapy ---

NET4 = TrafficSelector(ip_address("10.0.0.0"), ip_address("10.0.0.255"), 6, (80, 90))
NET6 = TrafficSelector(ip_address("2001:db8::"), ip_address("2001:db8::ff"))


def test_scapy_reads_our_ike_sa_init() -> None:
    transforms = [Transform(1, 12, 256), Transform(1, 20, 128), Transform(2, 5), Transform(3, 12), Transform(4, 31)]
    payloads: list[Payload] = [
        SaPayload([Proposal(1, transforms), Proposal(1, transforms[1:], spi=SPI_I)]),
        KePayload(31, b"k" * 32),
        NoncePayload(b"n" * 32),
        NotifyPayload(16388, b"h" * 20),
        NotifyPayload(16393, b"", 3, b"\1\2\3\4"),
        VendorPayload(b"who"),
        CertReqPayload(4, b"c" * 40),
    ]
    message = whole(*emit_payloads(payloads), ExchangeType.IKE_SA_INIT)
    packet = scapy.IKEv2(message)
    assert (packet.init_SPI, packet.resp_SPI, packet.exch_type, packet.id) == (SPI_I, SPI_R, 34, 1)
    assert packet.length == len(message)
    first = packet[scapy.IKEv2_SA].prop
    second = first.payload
    assert [(p.proposal, p.proto, p.SPI, p.trans_nb, p.next_payload) for p in (first, second)] == [
        (1, 1, b"", 5, 2),
        (2, 1, SPI_I, 4, 0),
    ]
    seen = []
    transform = first.trans
    while transform:
        seen.append((transform.transform_type, transform.transform_id, transform.key_length or 0))
        assert transform.next_payload == (3 if transform.payload else 0)
        transform = transform.payload
    assert [(t, i, (k or 0) & 0xFFFF) for t, i, k in seen] == [tuple(t) for t in transforms]
    assert (packet[scapy.IKEv2_KE].group, packet[scapy.IKEv2_KE].ke) == (31, b"k" * 32)
    assert packet[scapy.IKEv2_Nonce].nonce == b"n" * 32
    notify = packet[scapy.IKEv2_Notify]
    assert (notify.type, notify.notify) == (16388, b"h" * 20)
    notify = notify.payload
    assert (notify.type, notify.proto, notify.SPI) == (16393, 3, b"\1\2\3\4")
    assert packet[scapy.IKEv2_VendorID].vendorID == b"who"
    assert packet[scapy.IKEv2_CERTREQ].cert_authority == b"c" * 40
    assert not packet[scapy.IKEv2_CERTREQ].payload


def test_scapy_reads_our_ike_auth() -> None:
    payloads: list[Payload] = [
        IdPayload(35, 2, b"moon"),
        IdPayload(36, 1, bytes((10, 0, 0, 1))),
        AuthPayload(14, b"signature"),
        EapPayload(bytes((1, 2, 0, 5, 1))),
        CpPayload(1, [(1, bytes((10, 0, 0, 9))), (3, b""), (7, b"version")]),
        TsPayload(44, [NET4, NET6]),
        TsPayload(45, [NET4]),
        DeletePayload(3, [b"abcd", b"efgh"]),
    ]
    packet = scapy.IKEv2(whole(*emit_payloads(payloads)))
    assert (packet[scapy.IKEv2_IDi].IDtype, packet[scapy.IKEv2_IDi].ID) == (2, b"moon")
    assert (packet[scapy.IKEv2_IDr].IDtype, packet[scapy.IKEv2_IDr].ID) == (1, "10.0.0.1")
    assert (packet[scapy.IKEv2_AUTH].auth_type, packet[scapy.IKEv2_AUTH].load) == (14, b"signature")
    assert bytes(packet[scapy.IKEv2_EAP].load) == bytes((1, 2, 0, 5, 1))
    attributes = packet[scapy.IKEv2_CP].attributes
    assert [(a.type, a.length) for a in attributes] == [(1, 4), (3, 0), (7, 7)]
    assert (attributes[0].value, attributes[2].value) == ("10.0.0.9", b"version")
    four, six = packet[scapy.IKEv2_TSi].traffic_selector
    assert (four.IP_protocol_ID, four.start_port, four.end_port) == (6, 80, 90)
    assert (four.starting_address_v4, four.ending_address_v4) == ("10.0.0.0", "10.0.0.255")
    assert (six.IP_protocol_ID, six.start_port, six.end_port) == (0, 0, 65535)
    assert (six.starting_address_v6, six.ending_address_v6) == ("2001:db8::", "2001:db8::ff")
    assert packet[scapy.IKEv2_TSr].number_of_TSs == 1
    delete = packet[scapy.IKEv2_Delete]
    assert (delete.proto, delete.SPIsize, delete.SPInum, delete.SPI[0]) == (3, 4, 2, b"abcd")


def test_we_read_scapys_ike_sa_init() -> None:
    transform = scapy.IKEv2_Transform
    trans = (
        transform(transform_type=1, transform_id=20, length=12, key_length=256)
        / transform(transform_type=2, transform_id=7)
        / transform(transform_type=4, transform_id=20)
    )
    message = bytes(
        scapy.IKEv2(init_SPI=SPI_I, resp_SPI=bytes(8), exch_type=34, flags="Initiator", id=0)
        / scapy.IKEv2_SA(prop=scapy.IKEv2_Proposal(proto=1, trans_nb=3, trans=trans))
        / scapy.IKEv2_KE(group=20, ke=b"k" * 96)
        / scapy.IKEv2_Nonce(nonce=b"n" * 32)
        / scapy.IKEv2_Notify(type=16389, notify=b"h" * 20)
        / scapy.IKEv2_Notify(type=16390, notify=b"cookie")
        / scapy.IKEv2_VendorID(vendorID=b"scapy")
    )
    got = parse_header(message)
    assert got == Header(SPI_I, bytes(8), 33, 2, 0, 34, FLAG_INITIATOR, 0, len(message))
    assert parse_payloads(got.next_payload, message[HEADER_LEN:], got.exchange, False) == [
        SaPayload([Proposal(1, [Transform(1, 20, 256), Transform(2, 7), Transform(4, 20)], 1)]),
        KePayload(20, b"k" * 96),
        NoncePayload(b"n" * 32),
        NotifyPayload(16389, b"h" * 20),
        NotifyPayload(16390, b"cookie"),
        VendorPayload(b"scapy"),
    ]


def test_we_read_scapys_ike_auth() -> None:
    transform = scapy.IKEv2_Transform
    trans = transform(transform_type=1, transform_id=12, length=12, key_length=128) / transform(
        transform_type=3, transform_id=2
    )
    four = scapy.IPv4TrafficSelector(
        IP_protocol_ID=17, start_port=53, end_port=53, starting_address_v4="10.0.0.0", ending_address_v4="10.0.0.7"
    )
    six = scapy.IPv6TrafficSelector(
        IP_protocol_ID=0, length=40, starting_address_v6="2001:db8::", ending_address_v6="2001:db8::ff"
    )
    message = bytes(
        scapy.IKEv2(init_SPI=SPI_I, resp_SPI=SPI_R, exch_type=35, flags="Initiator", id=1)
        / scapy.IKEv2_IDi(IDtype=3, ID=b"carol@example.org")
        / scapy.IKEv2_CERTREQ(cert_encoding=4, cert_authority=b"c" * 20)
        / scapy.IKEv2_AUTH(auth_type=2, load=b"mac")
        / scapy.IKEv2_CP(CFGType=1, attributes=[scapy.ConfigurationAttribute(type=7, value=b"x")])
        / scapy.IKEv2_SA(prop=scapy.IKEv2_Proposal(proto=3, SPI=b"\1\2\3\4", trans_nb=2, trans=trans))
        / scapy.IKEv2_TSi(traffic_selector=[four, six])
        / scapy.IKEv2_TSr(traffic_selector=[six])
    )
    got = parse_header(message)
    net4 = TrafficSelector(ip_address("10.0.0.0"), ip_address("10.0.0.7"), 17, (53, 53))
    assert parse_payloads(got.next_payload, message[HEADER_LEN:], got.exchange, True) == [
        IdPayload(35, 3, b"carol@example.org"),
        CertReqPayload(4, b"c" * 20),
        AuthPayload(2, b"mac"),
        CpPayload(1, [(7, b"x")]),
        SaPayload([Proposal(3, [Transform(1, 12, 128), Transform(3, 2)], 1, b"\1\2\3\4")]),
        TsPayload(44, [net4, NET6]),
        TsPayload(45, [NET6]),
    ]


def test_we_read_scapys_encrypted_payloads() -> None:
    outer = scapy.IKEv2(init_SPI=SPI_I, resp_SPI=SPI_R, exch_type=35, flags="Response", id=1)
    message = bytes(outer / scapy.IKEv2_Encrypted(next_payload=36, load=b"e" * 60))
    assert find(message) == Encrypted(46, 36, 32, 1, 1, [])
    message = bytes(outer / scapy.IKEv2_Encrypted_Fragment(next_payload=0, frag_number=2, frag_total=4, load=b"e" * 60))
    assert find(message) == Encrypted(53, 0, 36, 2, 4, [])
