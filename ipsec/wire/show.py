"""One line for a message, as charon logs it: ``IKE_SA_INIT request 0 [ SA KE No N(NATD_S_IP) N(NATD_D_IP) ]``.

Total: it raises for no message that parses. It shows types and numbers, never octets that the peer chose, and its
length is bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ipsec.wire.iana import CfgAttribute, CfgType, EapCode, EapType, ExchangeType, NotifyType, PayloadType, name_of
from ipsec.wire.ike import Encrypted, Header
from ipsec.wire.payloads import CpPayload, EapPayload, NotifyPayload, Payload

_PAYLOADS: dict[int, str] = {
    PayloadType.SA: "SA",
    PayloadType.KE: "KE",
    PayloadType.IDI: "IDi",
    PayloadType.IDR: "IDr",
    PayloadType.CERT: "CERT",
    PayloadType.CERTREQ: "CERTREQ",
    PayloadType.AUTH: "AUTH",
    PayloadType.NONCE: "No",
    PayloadType.NOTIFY: "N",
    PayloadType.DELETE: "D",
    PayloadType.VENDOR: "V",
    PayloadType.TSI: "TSi",
    PayloadType.TSR: "TSr",
    PayloadType.SK: "E",
    PayloadType.CP: "CP",
    PayloadType.EAP: "EAP",
    PayloadType.SKF: "EF",
}

_NOTIFIES: dict[int, str] = {
    NotifyType.UNSUPPORTED_CRITICAL_PAYLOAD: "CRIT",
    NotifyType.INVALID_IKE_SPI: "INVAL_IKE_SPI",
    NotifyType.INVALID_MAJOR_VERSION: "INVAL_MAJOR",
    NotifyType.INVALID_SYNTAX: "INVAL_SYN",
    NotifyType.INVALID_MESSAGE_ID: "INVAL_MID",
    NotifyType.INVALID_SPI: "INVAL_SPI",
    NotifyType.NO_PROPOSAL_CHOSEN: "NO_PROP",
    NotifyType.INVALID_KE_PAYLOAD: "INVAL_KE",
    NotifyType.AUTHENTICATION_FAILED: "AUTH_FAILED",
    NotifyType.SINGLE_PAIR_REQUIRED: "SINGLE_PAIR",
    NotifyType.NO_ADDITIONAL_SAS: "NO_ADD_SAS",
    NotifyType.INTERNAL_ADDRESS_FAILURE: "INT_ADDR_FAIL",
    NotifyType.FAILED_CP_REQUIRED: "FAIL_CP_REQ",
    NotifyType.TS_UNACCEPTABLE: "TS_UNACCEPT",
    NotifyType.INVALID_SELECTORS: "INVAL_SEL",
    NotifyType.UNACCEPTABLE_ADDRESSES: "UNACCEPT_ADDR",
    NotifyType.UNEXPECTED_NAT_DETECTED: "UNEXPECT_NAT",
    NotifyType.USE_ASSIGNED_HOA: "USE_ASSIGNED_HoA",
    NotifyType.TEMPORARY_FAILURE: "TEMP_FAIL",
    NotifyType.CHILD_SA_NOT_FOUND: "NO_CHILD_SA",
    NotifyType.INITIAL_CONTACT: "INIT_CONTACT",
    NotifyType.SET_WINDOW_SIZE: "SET_WINSIZE",
    NotifyType.ADDITIONAL_TS_POSSIBLE: "ADD_TS_POSS",
    NotifyType.IPCOMP_SUPPORTED: "IPCOMP_SUPP",
    NotifyType.NAT_DETECTION_SOURCE_IP: "NATD_S_IP",
    NotifyType.NAT_DETECTION_DESTINATION_IP: "NATD_D_IP",
    NotifyType.COOKIE: "COOKIE",
    NotifyType.USE_TRANSPORT_MODE: "USE_TRANSP",
    NotifyType.HTTP_CERT_LOOKUP_SUPPORTED: "HTTP_CERT_LOOK",
    NotifyType.REKEY_SA: "REKEY_SA",
    NotifyType.ESP_TFC_PADDING_NOT_SUPPORTED: "ESP_TFC_PAD_N",
    NotifyType.NON_FIRST_FRAGMENTS_ALSO: "NON_FIRST_FRAG",
    NotifyType.MOBIKE_SUPPORTED: "MOBIKE_SUP",
    NotifyType.ADDITIONAL_IP4_ADDRESS: "ADD_4_ADDR",
    NotifyType.ADDITIONAL_IP6_ADDRESS: "ADD_6_ADDR",
    NotifyType.NO_ADDITIONAL_ADDRESSES: "NO_ADD_ADDR",
    NotifyType.UPDATE_SA_ADDRESSES: "UPD_SA_ADDR",
    NotifyType.COOKIE2: "COOKIE2",
    NotifyType.NO_NATS_ALLOWED: "NO_NATS",
    NotifyType.AUTH_LIFETIME: "AUTH_LFT",
    NotifyType.MULTIPLE_AUTH_SUPPORTED: "MULT_AUTH",
    NotifyType.ANOTHER_AUTH_FOLLOWS: "AUTH_FOLLOWS",
    NotifyType.REDIRECT_SUPPORTED: "REDIR_SUP",
    NotifyType.REDIRECT: "REDIR",
    NotifyType.REDIRECTED_FROM: "REDIR_FROM",
    NotifyType.EAP_ONLY_AUTHENTICATION: "EAP_ONLY",
    NotifyType.CHILDLESS_IKEV2_SUPPORTED: "CHDLESS_SUP",
    NotifyType.QUICK_CRASH_DETECTION: "QCD",
    NotifyType.IKEV2_MESSAGE_ID_SYNC_SUPPORTED: "MSG_ID_SYN_SUP",
    NotifyType.IKEV2_FRAGMENTATION_SUPPORTED: "FRAG_SUP",
    NotifyType.SIGNATURE_HASH_ALGORITHMS: "HASH_ALG",
    NotifyType.INTERMEDIATE_EXCHANGE_SUPPORTED: "IKE_INT_SUP",
    NotifyType.ADDITIONAL_KEY_EXCHANGE: "ADD_KE",
}

_CFG_TYPES: dict[int, str] = {CfgType.REQUEST: "RQ", CfgType.REPLY: "RP", CfgType.SET: "S", CfgType.ACK: "A"}
_CFG_ATTRIBUTES: dict[int, str] = {
    CfgAttribute.INTERNAL_IP4_ADDRESS: "ADDR",
    CfgAttribute.INTERNAL_IP4_NETMASK: "MASK",
    CfgAttribute.INTERNAL_IP4_DNS: "DNS",
    CfgAttribute.INTERNAL_IP4_NBNS: "NBNS",
    CfgAttribute.INTERNAL_IP4_DHCP: "DHCP",
    CfgAttribute.APPLICATION_VERSION: "VER",
    CfgAttribute.INTERNAL_IP6_ADDRESS: "ADDR6",
    CfgAttribute.INTERNAL_IP6_DNS: "DNS6",
    CfgAttribute.INTERNAL_IP6_DHCP: "DHCP6",
    CfgAttribute.INTERNAL_IP4_SUBNET: "SUBNET",
    CfgAttribute.SUPPORTED_ATTRIBUTES: "SUP",
    CfgAttribute.INTERNAL_IP6_SUBNET: "SUBNET6",
    CfgAttribute.INTERNAL_DNS_DOMAIN: "DNS_DOMAIN",
}

#: attributes of a CP payload worth a place in the line
_CFG_SHOWN = 32

_EAP_CODES: dict[int, str] = {
    EapCode.REQUEST: "REQ",
    EapCode.RESPONSE: "RES",
    EapCode.SUCCESS: "SUCC",
    EapCode.FAILURE: "FAIL",
}
_EAP_TYPES: dict[int, str] = {
    **{method: method.name for method in EapType},
    EapType.IDENTITY: "ID",
    EapType.NOTIFICATION: "NOTIF",
}


def show_message(header: Header, payloads: Sequence[Payload | Encrypted]) -> str:
    """The line. An ``Encrypted`` among the payloads stands for what is not opened: ``E``, or ``EF(1/3)``."""
    which = "response" if header.response else "request"
    inside = "".join(f"{show_payload(payload)} " for payload in payloads)
    return f"{name_of(ExchangeType, header.exchange)} {which} {header.message_id} [ {inside}]"


def show_payload(payload: Payload | Encrypted) -> str:
    """One payload: ``SA``, ``N(REKEY_SA)``, ``CPRQ(ADDR DNS)``, ``EAP/REQ/ID``, ``(54)`` for an unknown type."""
    detail = _DETAILS.get(type(payload))
    return detail(payload) if detail is not None else _PAYLOADS.get(payload.type, f"({int(payload.type)})")


def _show_notify(payload: NotifyPayload) -> str:
    # a type without a short name keeps its long one
    long_name = NotifyType._value2member_map_.get(payload.notify)
    name = _NOTIFIES.get(payload.notify) or (long_name.name if long_name is not None else f"({payload.notify})")
    return f"N({name})"


def _show_cp(payload: CpPayload) -> str:
    kind = _CFG_TYPES.get(payload.cfg_type, f"({payload.cfg_type})")
    names = [_CFG_ATTRIBUTES.get(attribute, f"({attribute})") for attribute, _ in payload.attributes[:_CFG_SHOWN]]
    if len(payload.attributes) > _CFG_SHOWN:
        names.append("...")
    return f"CP{kind}({' '.join(names)})"


def _show_eap(payload: EapPayload) -> str:
    code = payload.data[0] if payload.data else 0
    text = f"EAP/{_EAP_CODES.get(code, f'({code})')}"
    # success and failure have no type
    if code in (EapCode.REQUEST, EapCode.RESPONSE) and len(payload.data) > 4:
        text += f"/{_EAP_TYPES.get(payload.data[4], f'({payload.data[4]})')}"
    return text


def _show_encrypted(payload: Encrypted) -> str:
    return "E" if payload.type == PayloadType.SK else f"EF({payload.number}/{payload.total})"


_DETAILS: dict[type, Callable[..., str]] = {
    NotifyPayload: _show_notify,
    CpPayload: _show_cp,
    EapPayload: _show_eap,
    Encrypted: _show_encrypted,
}
