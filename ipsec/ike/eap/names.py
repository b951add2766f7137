"""Names that configurations and vici have for what concerns EAP: those of methods are charon's."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from ipsec.wire.iana import EapType, name_of

#: what we do: ``auth = eap-md5`` and so on
EAP_METHODS: Mapping[str, EapType] = {
    "md5": EapType.MD5,
    "mschapv2": EapType.MSCHAPV2,
    "gtc": EapType.GTC,
    "tls": EapType.TLS,
}
#: what goes by passwords; of an NT hash MSCHAPv2 makes do
PASSWORD_METHODS = frozenset({EapType.MD5, EapType.MSCHAPV2, EapType.GTC})
#: those that show safely who both ends are, so that they may stand alone (RFC 5998 section 4)
MUTUAL_METHODS = frozenset({EapType.TLS})


class TlsVersion(Enum):
    """The newest TLS that EAP-TLS agrees to."""

    TLS_1_2 = "1.2"
    TLS_1_3 = "1.3"


def is_eap(auth: str) -> bool:
    """Whether ``auth`` means EAP, be it spelled rightly or not: charon takes what it does not know for plain EAP."""
    return auth.lower().startswith("eap")


def vici_name(kind: int) -> str:
    """``EAP_MSCHAPV2``: what list-conns says of an EapType."""
    return f"EAP_{name_of(EapType, kind)}"
