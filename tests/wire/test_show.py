"""The line for a message, and that there is one for every message."""

from __future__ import annotations

from itertools import product

import pytest

from ipsec.wire.iana import CfgAttribute, NotifyType
from ipsec.wire.ike import FLAG_INITIATOR, FLAG_RESPONSE, Encrypted, Header
from ipsec.wire.payloads import (
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
from ipsec.wire.show import show_message, show_payload
from tests.wire.ike_messages import AUTH, CHILD, INFORMATIONAL, INIT, Golden


def line(message: Golden, flags: int = FLAG_INITIATOR, message_id: int = 0) -> str:
    head = Header(bytes(8), bytes(8), message.first, 2, 0, message.exchange, flags, message_id, 28)
    return show_message(head, message.payloads)


def test_golden_messages() -> None:
    assert line(INIT) == "IKE_SA_INIT request 0 [ SA KE No N(NATD_S_IP) V CERTREQ ]"
    inside = "IDi CERT CERTREQ IDr AUTH EAP/REQ/ID CPRQ(ADDR DNS DNS_DOMAIN) SA TSi TSr N(REKEY_SA)"
    assert line(AUTH, message_id=1) == f"IKE_AUTH request 1 [ {inside} ]"
    assert line(CHILD, FLAG_RESPONSE, 2) == "CREATE_CHILD_SA response 2 [ N(REKEY_SA) SA No KE TSi TSr ]"
    assert line(INFORMATIONAL, 0, 4294967295) == "INFORMATIONAL request 4294967295 [ D D CPRP() ]"


def test_the_first_message_as_charon_logs_it() -> None:
    payloads: list[Payload] = [SaPayload([]), KePayload(31, b""), NoncePayload(b"")]
    payloads += [NotifyPayload(n) for n in (16388, 16389, 16430, 16431, 16406)]
    head = Header(bytes(8), bytes(8), 33, 2, 0, 34, FLAG_INITIATOR, 0, 28)
    expected = "IKE_SA_INIT request 0 [ SA KE No N(NATD_S_IP) N(NATD_D_IP) N(FRAG_SUP) N(HASH_ALG) N(REDIR_SUP) ]"
    assert show_message(head, payloads) == expected


def test_empty_unknown_and_encrypted() -> None:
    head = Header(bytes(8), bytes(8), 0, 2, 0, 37, FLAG_RESPONSE, 3, 28)
    assert show_message(head, []) == "INFORMATIONAL response 3 [ ]"
    head = head._replace(exchange=240, flags=0)
    inside = [Encrypted(46, 35, 32, 1, 1, []), Encrypted(53, 35, 36, 2, 3, []), UnknownPayload(54, True, b"\n")]
    assert show_message(head, inside) == "ExchangeType(240) request 3 [ E EF(2/3) (54) ]"


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        (NotifyPayload(14), "N(NO_PROP)"),
        (NotifyPayload(24), "N(AUTH_FAILED)"),
        (NotifyPayload(38), "N(TS_UNACCEPT)"),
        (NotifyPayload(16435), "N(USE_PPK)"),
        (NotifyPayload(40000), "N((40000))"),
        (CpPayload(2, [(1, b"\1\2\3\4"), (8, b""), (999, b"")]), "CPRP(ADDR ADDR6 (999))"),
        (CpPayload(3, []), "CPS()"),
        (CpPayload(4, []), "CPA()"),
        (CpPayload(99, []), "CP(99)()"),
        (EapPayload(bytes((2, 0, 0, 5, 26))), "EAP/RES/MSCHAPV2"),
        (EapPayload(bytes((1, 0, 0, 5, 99))), "EAP/REQ/(99)"),
        (EapPayload(bytes((1, 0, 0, 4))), "EAP/REQ"),
        (EapPayload(bytes((3, 0, 0, 4))), "EAP/SUCC"),
        (EapPayload(bytes((4, 0, 0, 5, 1))), "EAP/FAIL"),
        (EapPayload(bytes((9, 0, 0, 4))), "EAP/(9)"),
        (EapPayload(b""), "EAP/(0)"),
        (TsPayload(44, []), "TSi"),
        (IdPayload(36, 250, b"x\n"), "IDr"),
        (DeletePayload(0, []), "D"),
        (VendorPayload(b"\x1b[31m"), "V"),
    ],
)
def test_payloads(payload: Payload, text: str) -> None:
    assert show_payload(payload) == text


def test_every_notification_has_a_text() -> None:
    """CVE-2020-1763, CVE-2015-3204: no number is too strange for the log."""
    shown = {show_payload(NotifyPayload(notify)) for notify in range(0x10000)}
    assert len(shown) == 0x10000
    for notify in NotifyType:
        assert "((" not in show_payload(NotifyPayload(notify))


def test_every_header_has_a_text() -> None:
    for exchange, flags, message_id in product(range(256), (0, 8, 32, 255), (0, 2**32 - 1)):
        head = Header(bytes(8), bytes(8), 0, 15, 15, exchange, flags, message_id, 0)
        text = show_message(head, [])
        assert text.endswith(f" {message_id} [ ]")
        assert ("response" in text) == bool(flags & 32)


def test_lines_are_bounded() -> None:
    many = CpPayload(1, [(CfgAttribute.INTERNAL_IP4_DNS, b"")] * 16000)
    assert show_payload(many) == f"CPRQ({'DNS ' * 32}...)"
