"""Numbers and names: against scapy's tables, which are not ours."""

from __future__ import annotations

import inspect
import warnings
from enum import IntEnum

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from scapy.contrib import ikev2 as scapy

from ipsec.crypto import suites
from ipsec.wire import iana
from ipsec.wire.iana import (
    CfgAttribute,
    CfgType,
    Encr,
    ExchangeType,
    Integ,
    KeMethod,
    NotifyType,
    PayloadType,
    Prf,
    TransformType,
    name_of,
)

ENUMS = [value for _, value in inspect.getmembers(iana, inspect.isclass) if issubclass(value, IntEnum)]
ENUMS.remove(IntEnum)


def plain(name: str) -> str:
    """A name without what scapy and the registry write differently."""
    name = name.upper()
    for prefix in ("IV2_NOTIFY_", "NOTIFY_"):
        name = name.removeprefix(prefix)
    return {"SENDER_REQUEST_ID": "GROUP_SENDER", "3DES": "TRIPLE_DES_CBC"}.get(name, name)


@pytest.mark.parametrize(
    ("table", "numbers"),
    [
        (scapy.IKEv2NotifyMessageTypes, NotifyType),
        (scapy.IKEv2ExchangeTypes, ExchangeType),
        (scapy.IKEv2ConfigurationAttributeTypes, CfgAttribute),
    ],
    ids=["notify", "exchange", "attribute"],
)
def test_names_as_scapy_has_them(table: dict[int, str], numbers: type[IntEnum]) -> None:
    ours = {number: name_of(numbers, number) for number in table}
    assert ours == {number: plain(name) for number, name in table.items()}


def test_configuration_types_as_scapy_has_them() -> None:
    table = scapy.IKEv2ConfigurationPayloadCFGTypes
    assert {number: name.removeprefix("CFG_") for number, name in table.items()} == {t.value: t.name for t in CfgType}


@pytest.mark.parametrize(
    ("type_", "numbers"),
    [(TransformType.ENCR, Encr), (TransformType.INTEG, Integ), (TransformType.PRF, Prf)],
    ids=["encr", "integ", "prf"],
)
def test_transforms_as_scapy_has_them(type_: int, numbers: type[IntEnum]) -> None:
    def bare(name: str) -> str:
        name = plain(name.replace("-", "_")).removeprefix("PRF_").removeprefix("HMAC_").removesuffix("ICV")
        return name

    table = scapy.IKEv2TransformAlgorithms[type_]
    for member in numbers:
        if member in table:
            assert bare(member.name) == bare(table[member])


def test_groups_as_scapy_has_them() -> None:
    for number, name in scapy.IKEv2TransformAlgorithms[TransformType.KE].items():
        ours = KeMethod._value2member_map_.get(number)
        if ours is not None:
            size = "".join(c for c in ours.name.split("_", 1)[1] if c.isdigit())
            assert size in "".join(c for c in name if c.isdigit()), name


def test_payload_types_as_scapy_has_them() -> None:
    special = {"SK": "ENCRYPTED", "SKF": "ENCRYPTED_FRAGMENT", "VENDOR": "VENDORID"}
    for member in PayloadType:
        assert scapy.IKEv2PayloadTypes[member].upper() == special.get(member.name, member.name)


def test_names_of_known_and_unknown_numbers() -> None:
    assert name_of(NotifyType, 14) == "NO_PROPOSAL_CHOSEN"
    assert name_of(NotifyType, 12345) == "NotifyType(12345)"
    assert name_of(ExchangeType, -1) == "ExchangeType(-1)"


@pytest.mark.parametrize("numbers", ENUMS, ids=lambda numbers: numbers.__name__)
def test_numbers_are_given_once_and_fit_their_field(numbers: type[IntEnum]) -> None:
    assert len(set(numbers)) == len(numbers.__members__)
    assert all(0 <= number <= 0xFFFF for number in numbers)


def test_the_suites_use_the_same_numbers() -> None:
    assert suites.Encr is Encr
    assert suites.Integ is Integ
