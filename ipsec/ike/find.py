"""Payloads in a message by what they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from ipsec.wire.iana import NOTIFY_STATUS_FIRST
from ipsec.wire.payloads import CpPayload, IdPayload, NotifyPayload, Payload, TsPayload

_P = TypeVar("_P")
_Typed = TypeVar("_Typed", IdPayload, TsPayload)


def find(payloads: Sequence[Payload], kind: type[_P]) -> _P | None:
    """The first payload of that class."""
    # a loop, here and below: a generator for each question costs more than the answer
    for payload in payloads:
        if isinstance(payload, kind):
            return payload
    return None


def find_typed(payloads: Sequence[Payload], kind: type[_Typed], number: int) -> _Typed | None:
    """The first payload of a class that is for two types: IDi and IDr, TSi and TSr."""
    for payload in payloads:
        if isinstance(payload, kind) and payload.type == number:
            return payload
    return None


def find_config(payloads: Sequence[Payload], number: int) -> CpPayload | None:
    """The first CP payload with that CFG Type."""
    for payload in payloads:
        if isinstance(payload, CpPayload) and payload.cfg_type == number:
            return payload
    return None


def find_notify(payloads: Sequence[Payload], number: int) -> NotifyPayload | None:
    """The first notification of that type."""
    for payload in payloads:
        if isinstance(payload, NotifyPayload) and payload.notify == number:
            return payload
    return None


def find_error(payloads: Sequence[Payload]) -> NotifyPayload | None:
    """The first notification that is an error (RFC 7296 section 3.10.1)."""
    for payload in payloads:
        if isinstance(payload, NotifyPayload) and payload.notify < NOTIFY_STATUS_FIRST:
            return payload
    return None
