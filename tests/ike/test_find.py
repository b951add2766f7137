"""Payloads by what they are, against comprehensions."""

from __future__ import annotations

import random

import pytest

from ipsec.ike.find import find, find_config, find_error, find_notify, find_typed
from ipsec.wire.iana import CfgType, NotifyType, PayloadType
from ipsec.wire.payloads import CpPayload, IdPayload, KePayload, NoncePayload, NotifyPayload, Payload, TsPayload

ALL: list[Payload] = [
    KePayload(31, b"a"),
    NoncePayload(bytes(16)),
    IdPayload(PayloadType.IDI, 1, b"i"),
    IdPayload(PayloadType.IDR, 1, b"r"),
    TsPayload(PayloadType.TSI, []),
    TsPayload(PayloadType.TSR, []),
    CpPayload(CfgType.REQUEST, []),
    CpPayload(CfgType.REPLY, []),
    NotifyPayload(NotifyType.INITIAL_CONTACT, b"1"),
    NotifyPayload(NotifyType.INITIAL_CONTACT, b"2"),
    NotifyPayload(NotifyType.NO_PROPOSAL_CHOSEN),
    NotifyPayload(NotifyType.AUTHENTICATION_FAILED),
]


@pytest.mark.parametrize("seed", range(50))
def test_the_first_one_is_found(seed: int) -> None:
    payloads = random.Random(seed).sample(ALL, seed % len(ALL))
    notifies = [p for p in payloads if isinstance(p, NotifyPayload)]
    for kind in (KePayload, NoncePayload, IdPayload, NotifyPayload):
        assert find(payloads, kind) is next((p for p in payloads if isinstance(p, kind)), None)
    for number in (PayloadType.IDI, PayloadType.IDR):
        expected = next((p for p in payloads if isinstance(p, IdPayload) and p.type == number), None)
        assert find_typed(payloads, IdPayload, number) is expected
    for number in (PayloadType.TSI, PayloadType.TSR):
        other = next((p for p in payloads if isinstance(p, TsPayload) and p.type == number), None)
        assert find_typed(payloads, TsPayload, number) is other
    for config in (CfgType.REQUEST, CfgType.REPLY):
        found = next((p for p in payloads if isinstance(p, CpPayload) and p.cfg_type == config), None)
        assert find_config(payloads, config) is found
    contact = next((p for p in notifies if p.notify == NotifyType.INITIAL_CONTACT), None)
    assert find_notify(payloads, NotifyType.INITIAL_CONTACT) is contact
    assert find_error(payloads) is next((p for p in notifies if p.notify < 16384), None)
