"""Payload bodies: what each field may hold, and what is refused (RFC 7296 section 3)."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address
from itertools import product

import pytest

from ipsec.errors import ParseError
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
    parse_auth,
    parse_cert,
    parse_certreq,
    parse_cp,
    parse_delete,
    parse_eap,
    parse_idi,
    parse_idr,
    parse_ke,
    parse_nonce,
    parse_notify,
    parse_sa,
    parse_tsi,
    parse_tsr,
    parse_vendor,
)
from ipsec.wire.proposal import Proposal, Transform
from ipsec.wire.selector import ANY_PORT, OPAQUE, TrafficSelector

Parser = Callable[[bytes, int, int], Payload]

ALL4 = TrafficSelector(ip_address("0.0.0.0"), ip_address("255.255.255.255"))
NET6 = TrafficSelector(ip_address("2001:db8::"), ip_address("2001:db8::ff"), 17, (53, 53))

SAMPLES: list[tuple[Parser, str, Payload]] = [
    (
        parse_sa,
        "0000001401030401010203040000000805000000",
        SaPayload([Proposal(3, [Transform(5, 0)], 1, b"\1\2\3\4")]),
    ),
    (parse_ke, "001f0000aabb", KePayload(31, b"\xaa\xbb")),
    (parse_ke, "00000000", KePayload(0, b"")),
    (parse_idi, "0200000061", IdPayload(35, 2, b"a")),
    (parse_idr, "0b010203", IdPayload(36, 11, b"", b"\1\2\3")),
    (parse_cert, "043000", CertPayload(4, b"\x30\0")),
    (parse_cert, "00", CertPayload(0, b"")),
    (parse_certreq, "0f", CertReqPayload(15, b"")),
    (parse_auth, "0e000000ff", AuthPayload(14, b"\xff")),
    (parse_nonce, "00" * 16, NoncePayload(bytes(16))),
    (parse_nonce, "00" * 256, NoncePayload(bytes(256))),
    (parse_notify, "0000400e", NotifyPayload(16398)),
    (parse_notify, "030440090102030405", NotifyPayload(16393, b"\5", 3, b"\1\2\3\4")),
    (parse_delete, "01000000", DeletePayload(1, [])),
    (parse_delete, "0204000101020304", DeletePayload(2, [b"\1\2\3\4"])),
    (parse_vendor, "", VendorPayload(b"")),
    (parse_vendor, "00ff", VendorPayload(b"\0\xff")),
    (parse_tsi, "01000000070000100000ffff00000000ffffffff", TsPayload(44, [ALL4])),
    (
        parse_tsr,
        "01000000081100280035003520010db800000000000000000000000020010db80000000000000000000000ff",
        TsPayload(45, [NET6]),
    ),
    (parse_cp, "02000000000100040a00000100190000", CpPayload(2, [(1, b"\n\0\0\1"), (25, b"")])),
    (parse_eap, "03010004", EapPayload(bytes((3, 1, 0, 4)))),
]
IDS = [f"{parser.__name__[6:]}-{len(text) // 2}" for parser, text, _ in SAMPLES]


def parse(parser: Parser, data: bytes | str) -> Payload:
    octets = bytes.fromhex(data) if isinstance(data, str) else data
    # what is around a body must not matter
    return parser(b"\xee" * 5 + octets + b"\xee" * 7, 5, 5 + len(octets))


@pytest.mark.parametrize(("parser", "text", "payload"), SAMPLES, ids=IDS)
def test_samples_in_both_directions(parser: Parser, text: str, payload: Payload) -> None:
    assert parse(parser, text) == payload
    assert payload.emit() == bytes.fromhex(text)


@pytest.mark.parametrize(("parser", "text", "payload"), SAMPLES, ids=IDS)
def test_every_truncation_gives_a_value_or_a_parse_error(parser: Parser, text: str, payload: Payload) -> None:
    octets = bytes.fromhex(text)
    for size in range(len(octets)):
        try:
            got = parse(parser, octets[:size])
        except ParseError:
            continue
        assert got != payload
        # what is as long as the payload can be cut; what has lengths inside can not
        assert isinstance(got, KePayload | IdPayload | CertPayload | CertReqPayload | AuthPayload | NoncePayload
                          | NotifyPayload | VendorPayload | CpPayload)  # fmt: skip


@pytest.mark.parametrize(("parser", "text", "payload"), SAMPLES, ids=IDS)
def test_parsers_keep_nothing_of_their_input(parser: Parser, text: str, payload: Payload) -> None:
    """Values are bytes, so that an engine may hold them without holding the datagram."""
    got = parse(parser, text)
    for name in getattr(got, "__slots__", ()):
        assert not isinstance(getattr(got, name), memoryview | bytearray)


def test_payloads_know_their_type() -> None:
    types = [SaPayload, KePayload, CertPayload, CertReqPayload, AuthPayload, NoncePayload, NotifyPayload]
    assert [cls.type for cls in types] == [33, 34, 37, 38, 39, 40, 41]
    assert [cls.type for cls in (DeletePayload, VendorPayload, CpPayload, EapPayload)] == [42, 43, 47, 48]
    assert [payload.type for _, _, payload in SAMPLES[:5]] == [33, 34, 34, 35, 36]
    assert UnknownPayload(54, False, b"x").emit() == b"x"


# --- reserved fields, OB-49 ---


@pytest.mark.parametrize(
    ("parser", "clean", "dirty"),
    [
        (parse_ke, "001f0000aa", "001fffffaa"),
        (parse_auth, "02000000aa", "02ffffffaa"),
        (parse_cp, "0100000000030000", "01ffffff80030000"),
        (
            parse_tsi,
            "01000000070000100000ffff00000000ffffffff",
            "01ffffff070000100000ffff00000000ffffffff",
        ),
    ],
)
def test_reserved_fields_are_ignored_and_sent_as_zero(parser: Parser, clean: str, dirty: str) -> None:
    assert parse(parser, dirty) == parse(parser, clean)
    assert parse(parser, dirty).emit().hex() == clean


def test_the_reserved_field_of_an_identity_stays() -> None:
    """Section 2.15: AUTH covers it as it came."""
    got = parse(parse_idi, "02a1b2c36d6f6f6e")
    assert isinstance(got, IdPayload)
    assert got.body() == got.emit() == bytes.fromhex("02a1b2c36d6f6f6e")
    assert IdPayload(35, 2, b"moon").body() == b"\x02\0\0\0moon"


# --- identities: CVE-2013-6075, CVE-2023-38711, CVE-2025-9242 ---

PATTERN = bytes(range(256)) * 256


def test_identities_of_every_type_and_many_sizes() -> None:
    for parser, type_ in ((parse_idi, 35), (parse_idr, 36)):
        for id_type in range(256):
            for size in (*range(9), 0x7F, 0x80, 0xFFFF - 8):
                data = PATTERN[:size]
                assert parse(parser, bytes((id_type, 0, 0, 0)) + data) == IdPayload(type_, id_type, data)
    for data in ("3080", "30840000ffff", "3084ffffffff", "308100", "3005310330", "30" * 64):
        assert parse(parse_idi, "09000000" + data) == IdPayload(35, 9, bytes.fromhex(data))


# --- nonces, OB-52 ---


def test_nonces_of_every_size() -> None:
    for size in range(300):
        if 16 <= size <= 256:
            assert parse(parse_nonce, b"n" * size) == NoncePayload(b"n" * size)
        else:
            with pytest.raises(ParseError, match="16 to 256"):
                parse(parse_nonce, b"n" * size)


# --- notifications and deletions: CVE-2023-38710 ---


def test_every_protocol_and_spi_size() -> None:
    for protocol, size in product(range(256), range(256)):
        spi = b"\x5a" * size
        notify = NotifyPayload(16393, b"end", protocol, spi)
        assert parse(parse_notify, notify.emit()) == notify
        delete = bytes((protocol, size, 0, 1)) + spi
        if size not in {1: (0,), 2: (4,), 3: (4,)}.get(protocol, range(256)):
            with pytest.raises(ParseError, match="for protocol"):
                parse(parse_delete, delete)
        else:
            assert parse(parse_delete, delete) == DeletePayload(protocol, [spi] if size else [])


def test_an_spi_longer_than_its_notification() -> None:
    for size in range(1, 256):
        with pytest.raises(ParseError, match="does not fit"):
            parse(parse_notify, bytes((3, size, 0x40, 9)) + b"x" * (size - 1))


def test_spis_of_no_octets_are_not_counted() -> None:
    """A zero-length element must not cost 65535 objects."""
    assert parse(parse_delete, "0100ffff") == DeletePayload(1, [])


@pytest.mark.parametrize("octets", ["0304000101020304ff", "0304000201020304", "0304ffff01020304", "0304000000"])
def test_spis_that_do_not_fill_a_deletion(octets: str) -> None:
    with pytest.raises(ParseError, match="do not fill"):
        parse(parse_delete, octets)


def test_a_deletion_of_no_esp_sa_keeps_the_spi_size() -> None:
    assert DeletePayload(3, []).emit().hex() == "03040000"
    assert parse(parse_delete, "03040000") == DeletePayload(3, [])


def test_spis_of_one_deletion_have_one_size() -> None:
    with pytest.raises(ValueError, match="differ in size"):
        DeletePayload(3, [b"1234", b"123"]).emit()


# --- traffic selectors: CVE-2023-23009 ---


def ts(body: str, count: int = 1) -> bytes:
    return bytes((count, 0, 0, 0)) + bytes.fromhex(body)


V4 = "070000100000ffff0a0000000a0000ff"


@pytest.mark.parametrize(
    ("octets", "why"),
    [
        (ts("070000100000ffff0a0000010a000000"), "empty"),
        (ts("080000280000ffff" + "ff" * 16 + "00" * 16), "empty"),
        (ts("07060010000200010a0000000a0000ff"), "port range"),
        (ts("07060010ffff00010a0000000a0000ff"), "port range"),
        (ts("07000010fffe00000a0000000a0000ff"), "port range"),
        (ts("070000280000ffff" + "00" * 32), "40 octets, not 16"),
        (ts("080000100000ffff" + "00" * 8), "16 octets, not 40"),
        (ts("0700000f0000ffff" + "00" * 7), "15 octets, not 16"),
        (ts("07000000"), "0 octets does not fit"),
        (ts("09000003"), "3 octets does not fit"),
        (ts("07000011" + "00" * 12), "does not fit"),
        (ts("0700ffff" + "00" * 12), "does not fit"),
        (ts(V4 + V4), "after the last"),
        (ts(V4 + "00"), "after the last"),
        (ts(V4, 0), "after the last"),
        (ts(V4, 2), "cut short"),
        (ts(V4, 255), "cut short"),
        (ts(V4 + "0700", 2), "cut short"),
        (b"\x01\0\0", "cut short"),
        (b"", "cut short"),
    ],
)
def test_traffic_selectors_that_are_refused(octets: bytes, why: str) -> None:
    for parser in (parse_tsi, parse_tsr):
        with pytest.raises(ParseError, match=why):
            parse(parser, octets)
        # the cache holds no failure that would then pass
        with pytest.raises(ParseError, match=why):
            parse(parser, octets)


def test_opaque_ports_and_every_protocol() -> None:
    for protocol in range(256):
        for ports in (ANY_PORT, OPAQUE, (0, 0), (65535, 65535), (5000, 6000)):
            value = TsPayload(44, [TrafficSelector(ALL4.start, ALL4.end, protocol, ports)])
            assert parse(parse_tsi, value.emit()) == value


def test_families_may_mix_and_unknown_types_are_left_out() -> None:
    label = "0a000008deadbeef"
    empty = "f1000004"
    octets = ts(label + V4 + empty + NET6_OCTETS + label, 5)
    got = parse(parse_tsr, octets)
    assert isinstance(got, TsPayload)
    assert [str(s) for s in got.selectors] == ["10.0.0.0/24", "2001:db8::/120[udp/domain]"]
    assert parse(parse_tsi, ts(label)) == TsPayload(44, [])
    assert parse(parse_tsi, ts("", 0)) == TsPayload(44, [])


NET6_OCTETS = "081100280035003520010db800000000000000000000000020010db80000000000000000000000ff"


def test_the_number_of_traffic_selectors() -> None:
    assert parse(parse_tsi, TsPayload(44, [ALL4] * 255).emit()) == TsPayload(44, [ALL4] * 255)
    with pytest.raises(ValueError, match="more than 255"):
        TsPayload(44, [ALL4] * 256).emit()


# --- configuration: CVE-2026-25075, -35330 ---


@pytest.mark.parametrize(
    "octets",
    [
        "",
        "010000",
        "0100000000",
        "01000000000100",
        "0100000000010001",
        "010000000001000500030000",
        "010000000001ffff00",
    ],
)
def test_configurations_that_do_not_fit(octets: str) -> None:
    with pytest.raises(ParseError, match="CP payload"):
        parse(parse_cp, octets)


def test_attributes_of_no_octets_advance() -> None:
    got = parse(parse_cp, "01000000" + "00010000" * 1000)
    assert got == CpPayload(1, [(1, b"")] * 1000)


def test_every_attribute_number() -> None:
    for number in range(0, 0x8000, 7):
        assert parse(parse_cp, CpPayload(3, [(number, b"v")]).emit()) == CpPayload(3, [(number, b"v")])
    for number in (0x8000, -1):
        with pytest.raises(ValueError, match="attribute"):
            CpPayload(1, [(number, b"")]).emit()
    with pytest.raises(ValueError, match="attribute"):
        CpPayload(1, [(1, bytes(0x10000))]).emit()


# --- EAP ---


@pytest.mark.parametrize("octets", ["", "01", "010000", "01000003", "01000005", "0100000501ff", "0100ffff", "01000000"])
def test_eap_messages_of_another_length(octets: str) -> None:
    with pytest.raises(ParseError, match="EAP payload"):
        parse(parse_eap, octets)


def test_what_proves_an_identity_is_not_shown() -> None:
    assert "deadbeef" not in repr(AuthPayload(2, b"deadbeef"))
    assert "deadbeef" not in repr(EapPayload(b"\1\1\0\x0cdeadbeef"))
