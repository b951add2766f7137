"""Tokens of quick crash detection (RFC 6290): who shows it for two SPIs has lost the IKE_SA that they named.

The maker sends a token in IKE_AUTH, and again, in the clear, to whoever uses SPIs that it does not know (any more).
The taker keeps it, and drops the IKE_SA when it sees it. As tokens are made from a secret that outlives the maker, they
need no memory; and as whoever gets one can end an IKE_SA, they are never made for SPIs that are in use.
"""

from __future__ import annotations

import hmac

from ipsec.crypto.prf import prf_algorithm
from ipsec.errors import ParseError
from ipsec.wire.iana import Prf

TOKEN_MIN, TOKEN_MAX = 16, 256
"octets (RFC 6290 section 4.1)"
SECRET_MIN = 16

_LABEL = b"ipsec QCD token"
"so that a secret which by mistake serves something else as well still makes other values here"


def make(secret: bytes, spi_i: bytes, spi_r: bytes) -> bytes:
    """The token of an IKE_SA, by its SPIs and our secret (section 5.1). ValueError if the secret is too short."""
    if len(secret) < SECRET_MIN:
        raise ValueError(f"a QCD secret of less than {SECRET_MIN} octets")
    return prf_algorithm(Prf.HMAC_SHA2_256)(secret, _LABEL + spi_i + spi_r)


def parse(data: bytes) -> bytes:
    """The content of QUICK_CRASH_DETECTION, if it may be a token; else ParseError."""
    if not TOKEN_MIN <= len(data) <= TOKEN_MAX:
        raise ParseError(f"a QCD token of {len(data)} octets, not {TOKEN_MIN} to {TOKEN_MAX}")
    return data


def verify(kept: bytes, shown: bytes) -> bool:
    """Whether the token that is ``shown`` is the one ``kept`` since IKE_AUTH; False for a peer that gave none."""
    return len(kept) >= TOKEN_MIN and hmac.compare_digest(kept, shown)
