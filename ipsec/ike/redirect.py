"""Redirection to another gateway (RFC 5685): contents of REDIRECT and REDIRECTED_FROM, and when to stop following.

Only an initiator is ever redirected. In IKE_SA_INIT nobody vouches for the message but the nonce it repeats.
"""

from __future__ import annotations

import re
from collections import deque
from hmac import compare_digest
from ipaddress import IPv4Address, IPv6Address

from ipsec.errors import ParseError
from ipsec.wire.iana import NotifyType
from ipsec.wire.payloads import NotifyPayload

IpAddress = IPv4Address | IPv6Address
Gateway = IpAddress | str
"an address, or a name (FQDN) for the initiator to resolve"

REDIRECTS_MAX = 5
LOOP_PERIOD_S = 300.0
"MAX_REDIRECTS and REDIRECT_LOOP_DETECT_PERIOD (RFC 5685)"

_IPV4, _IPV6, _FQDN = 1, 2, 3
_NAME = re.compile(r"(?=.{1,253}$)(?!-)[A-Za-z0-9-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*")


def redirect(gateway: Gateway, nonce: bytes = b"") -> NotifyPayload:
    """REDIRECT. ``nonce`` is Ni in an IKE_SA_INIT response, nothing in all other exchanges."""
    return NotifyPayload(NotifyType.REDIRECT, _emit(gateway) + nonce)


def redirected_from(gateway: Gateway) -> NotifyPayload:
    """REDIRECTED_FROM, for the IKE_SA_INIT request that goes to the new gateway."""
    return NotifyPayload(NotifyType.REDIRECTED_FROM, _emit(gateway))


def parse_redirect(data: bytes, nonce: bytes = b"") -> Gateway:
    """Where REDIRECT sends us; ParseError if it is malformed or does not repeat ``nonce``."""
    gateway, rest = _parse(data)
    if not compare_digest(rest, nonce):
        # somebody who has not seen our request made this up
        raise ParseError("REDIRECT does not repeat our nonce" if nonce else "REDIRECT with octets after the gateway")
    return gateway


def parse_redirected_from(data: bytes) -> Gateway:
    """Which gateway an initiator was sent here by; ParseError if it is malformed."""
    gateway, rest = _parse(data)
    if rest:
        raise ParseError("REDIRECTED_FROM with octets after the gateway")
    return gateway


def _emit(gateway: Gateway) -> bytes:
    if isinstance(gateway, str):
        if not _NAME.fullmatch(gateway):
            raise ValueError(f"{gateway!r} is not the name of a host")
        return bytes((_FQDN, len(gateway))) + gateway.encode("ascii")
    return bytes((_IPV4 if gateway.version == 4 else _IPV6, len(gateway.packed))) + gateway.packed


def _parse(data: bytes) -> tuple[Gateway, bytes]:
    """The gateway and what follows it."""
    if len(data) < 2 or len(data) < 2 + data[1]:
        raise ParseError("REDIRECT cut short")
    kind, identity, rest = data[0], data[2 : 2 + data[1]], data[2 + data[1] :]
    if kind == _FQDN:
        # it goes to a resolver and into logs: nothing but a name may
        name = identity.decode("latin-1")
        if not _NAME.fullmatch(name):
            raise ParseError("REDIRECT to something that is not the name of a host")
        return name, rest
    if (kind, len(identity)) not in ((_IPV4, 4), (_IPV6, 16)):
        raise ParseError(f"REDIRECT to a gateway of type {kind} in {len(identity)} octets")
    address = IPv4Address(identity) if kind == _IPV4 else IPv6Address(identity)
    if address.is_unspecified or address.is_multicast:
        raise ParseError(f"REDIRECT to {address}")
    return address, rest


class LoopGuard:
    """Redirections of one connection: gateways that send us in circles are not followed for ever."""

    __slots__ = ("_followed",)

    def __init__(self) -> None:
        self._followed: deque[float] = deque(maxlen=REDIRECTS_MAX)

    def follow(self, now: float) -> bool:
        """Whether to follow one more redirection, which then counts."""
        if len(self._followed) == REDIRECTS_MAX and now - self._followed[0] < LOOP_PERIOD_S:
            return False
        self._followed.append(now)
        return True
