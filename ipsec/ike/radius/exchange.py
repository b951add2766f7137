"""One EAP conversation with a RADIUS server: what is asked, and what an answer means (RFC 3579 section 2).

The server decides; we carry EAP packets between it and the peer and take the key over that the two have made.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from ipsec.crypto.radius import decrypt_mppe_key, is_response_authentic, seal_request
from ipsec.errors import ParseError
from ipsec.ike.eap.method import MSK_LEN
from ipsec.ike.eap.relay import EapAnswer, Granted
from ipsec.ike.radius.server import RadiusServer
from ipsec.text import printable
from ipsec.wire.eap import parse_eap_packet
from ipsec.wire.iana import EapCode
from ipsec.wire.radius import (
    MICROSOFT,
    VALUE_MAX,
    MicrosoftAttribute,
    RadiusCode,
    RadiusPacket,
    eap_attributes,
    parse_radius_packet,
    vendor_attributes,
)
from ipsec.wire.radius import RadiusAttribute as A

IpAddress = IPv4Address | IPv6Address

#: Service-Type (RFC 2865 section 5.6) and NAS-Port-Type (section 5.41)
FRAMED = 2
VIRTUAL = 5
#: Framed-IP-Address that is none: the peer, or we, may choose (RFC 2865 section 5.8)
_CHOOSE = (0xFFFFFFFF, 0xFFFFFFFE)
_CODES = (RadiusCode.ACCESS_ACCEPT, RadiusCode.ACCESS_REJECT, RadiusCode.ACCESS_CHALLENGE)


class RadiusError(ParseError):
    """An answer that is dropped; ``reason`` is what it is counted as: malformed, unauthentic, unexpected."""

    def __init__(self, reason: str, message: str) -> None:
        self.reason = reason
        super().__init__(message)


@dataclass(frozen=True)
class Caller:
    """Where the peer speaks from, and to whom."""

    remote: IpAddress
    remote_port: int
    local: IpAddress
    local_port: int
    connection: str = ""
    "which of our connections that is, empty: not told"


class RadiusExchange:
    """The conversation of one peer, packet by packet."""

    def __init__(self, identity: bytes, caller: Caller) -> None:
        """``identity`` is that of the peer's EAP-Response/Identity."""
        self._identity = identity
        self._caller = caller
        self._state: bytes | None = None
        self.bound = False
        "a server has asked the peer something, so that no other one could go on"

    def request(self, server: RadiusServer, identifier: int, authenticator: bytes, eap: bytes) -> bytes:
        """The Access-Request with the peer's packet.

        ``authenticator`` is 16 random octets. ParseError if what the peer said is no response, or does not fit.
        """
        # RFC 3579 section 2.2: what is malformed is not handed on
        if parse_eap_packet(eap).code != EapCode.RESPONSE:
            raise ParseError("the peer's EAP packet is no response")
        calling = f"{self._caller.remote}[{self._caller.remote_port}]".encode()
        attributes = [
            (A.NAS_IDENTIFIER, server.nas_identifier.encode()),
            # RFC 3579 section 2.1: what the peer calls itself, else by what it is known
            *describe(self._caller, self._identity or calling),
            *eap_attributes(eap),
        ]
        if self._state is not None:
            attributes.append((A.STATE, self._state))
        try:
            return seal_request(identifier, authenticator, tuple(attributes), server.secret)
        except ValueError as error:
            raise ParseError(str(error)) from None

    def open(self, data: bytes, server: RadiusServer, identifier: int, authenticator: bytes) -> RadiusPacket:
        """The answer to a request, if it is one. RadiusError."""
        return open_response(data, server, identifier, authenticator)

    def take(self, response: RadiusPacket, server: RadiusServer, authenticator: bytes) -> EapAnswer:
        """What an authentic answer means to the request with that ``authenticator``.

        The verdict is what its code says, whatever EAP packet is in there (RFC 3579 section 2.6.3).
        """
        if response.code == RadiusCode.ACCESS_REJECT:
            said = b" ".join(response.all(A.REPLY_MESSAGE))[:VALUE_MAX]
            why = f"{server} rejects the peer" + (f": {printable(said)}" if said else "")
            return EapAnswer(_eap(response), False, reason=why)
        try:
            if response.code == RadiusCode.ACCESS_CHALLENGE:
                return self._challenge(response)
            msk = _master_key(response, authenticator, server.secret)
            return EapAnswer(_eap(response), True, msk, granted=_granted(response))
        except ParseError as error:
            # RFC 2865 section 5: an attribute with a wrong length makes of an answer a reject
            return rejected(f"the answer of {server} cannot be used: {error}")

    def _challenge(self, response: RadiusPacket) -> EapAnswer:
        packet = response.eap_packet()
        if parse_eap_packet(packet).code != EapCode.REQUEST:
            raise ParseError("Access-Challenge without a request for the peer")
        self._state = response.only(A.STATE)
        self.bound = True
        return EapAnswer(packet, None)


def describe(caller: Caller, user: bytes) -> list[tuple[int, bytes]]:
    """Attributes that say of whom we speak, and from where it has come to us."""
    ours = A.NAS_IP_ADDRESS if caller.local.version == 4 else A.NAS_IPV6_ADDRESS
    port = [(A.NAS_PORT_ID, caller.connection.encode()[:VALUE_MAX])] if caller.connection else []
    return [
        (A.USER_NAME, user),
        (ours, caller.local.packed),
        (A.NAS_PORT_TYPE, VIRTUAL.to_bytes(4, "big")),
        *port,
        (A.SERVICE_TYPE, FRAMED.to_bytes(4, "big")),
        (A.CALLING_STATION_ID, f"{caller.remote}[{caller.remote_port}]".encode()),
        (A.CALLED_STATION_ID, f"{caller.local}[{caller.local_port}]".encode()),
    ]


def open_response(data: bytes, server: RadiusServer, identifier: int, authenticator: bytes) -> RadiusPacket:
    """The answer to a request, if it is one. RadiusError."""
    try:
        response = parse_radius_packet(data)
    except ParseError as error:
        raise RadiusError("malformed", str(error)) from None
    if response.code not in _CODES or response.identifier != identifier:
        raise RadiusError("unexpected", f"{response} is no answer to request {identifier}")
    if not is_response_authentic(response, authenticator, server.secret):
        without = not response.all(A.MESSAGE_AUTHENTICATOR)
        why = "has no Message-Authenticator" if without else "is not made with our secret for our request"
        raise RadiusError("unauthentic", f"{response} {why}")
    # we send none, so whose is it? CVE-2024-3596 hides in one what makes the Response Authenticator right
    if response.all(A.PROXY_STATE):
        raise RadiusError("unexpected", f"{response} has a Proxy-State that is not ours")
    return response


def rejected(why: str, *, silent: bool = False) -> EapAnswer:
    """The peer is not accepted, for want of an answer that can be used; ``silent``: of any answer.

    Neither for the one nor for the other is an EAP packet made up here (RFC 3579 sections 2.1 and 2.6.3).
    """
    return EapAnswer(None, False, reason=why, silent=silent)


def _eap(response: RadiusPacket) -> bytes | None:
    """The EAP packet that comes with a verdict; what is malformed is not handed on (RFC 3579 section 2.2)."""
    packet = response.eap_packet()
    try:
        parse_eap_packet(packet)
    except ParseError:
        return None
    return packet


def _master_key(response: RadiusPacket, authenticator: bytes, secret: bytes) -> bytes | None:
    """The MSK, None if there is none. ParseError.

    RFC 3748 section 7.10 and RFC 5216 section 2.3: what the peer enciphers with comes first, which we receive; EAP
    methods with shorter keys fill up with zeros.
    """
    found = dict[int, bytes]()
    for kind, value in vendor_attributes(response, MICROSOFT):
        if kind in (MicrosoftAttribute.MPPE_RECV_KEY, MicrosoftAttribute.MPPE_SEND_KEY):
            if kind in found:
                raise ParseError(f"two keys {MicrosoftAttribute(kind).name}")
            found[kind] = decrypt_mppe_key(value, authenticator, secret)
    if not found:
        return None
    if len(found) == 1:
        raise ParseError("a key for one direction only")
    keys = found[MicrosoftAttribute.MPPE_RECV_KEY] + found[MicrosoftAttribute.MPPE_SEND_KEY]
    return keys.ljust(MSK_LEN, b"\0")


def _granted(response: RadiusPacket) -> Granted:
    """ParseError, also if the peer is accepted for something that is not ours to give."""
    service = response.only(A.SERVICE_TYPE)
    # RFC 2865 section 5.6: as if it were rejected
    if service is not None and service != FRAMED.to_bytes(4, "big"):
        raise ParseError(f"Service-Type {int.from_bytes(service, 'big')} instead of {FRAMED}, Framed")
    framed: list[IpAddress] = [_v4(value) for value in response.all(A.FRAMED_IP_ADDRESS)]
    framed = [one for one in framed if int(one) not in _CHOOSE]
    framed += [_v6(value) for value in response.all(A.FRAMED_IPV6_ADDRESS)]
    # what no host can have is as if it were not there
    framed = [one for one in framed if not (one.is_unspecified or one.is_multicast or one.is_loopback)]
    kinds = (MicrosoftAttribute.PRIMARY_DNS_SERVER, MicrosoftAttribute.SECONDARY_DNS_SERVER)
    dns: list[IpAddress] = [_v4(value) for kind, value in vendor_attributes(response, MICROSOFT) if kind in kinds]
    dns += [_v6(value) for value in response.all(A.DNS_SERVER_IPV6_ADDRESS)]
    return Granted(
        response.only(A.USER_NAME) or b"",
        tuple(dict.fromkeys(framed)),
        tuple(dict.fromkeys(dns)),
        _seconds(response, A.SESSION_TIMEOUT, "Session-Timeout"),
        tuple(response.all(A.FILTER_ID)),
        tuple(response.all(A.CLASS)),
        _seconds(response, A.ACCT_INTERIM_INTERVAL, "Acct-Interim-Interval"),
    )


def _seconds(response: RadiusPacket, kind: A, name: str) -> int | None:
    value = response.only(kind)
    if value is not None and len(value) != 4:
        raise ParseError(f"{name} of {len(value)} octets")
    return int.from_bytes(value, "big") if value is not None else None


def _v4(value: bytes) -> IPv4Address:
    if len(value) != 4:
        raise ParseError(f"IPv4 address of {len(value)} octets")
    return IPv4Address(value)


def _v6(value: bytes) -> IPv6Address:
    if len(value) != 16:
        raise ParseError(f"IPv6 address of {len(value)} octets")
    return IPv6Address(value)
