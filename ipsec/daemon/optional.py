"""What there is of the libraries that ipsecd runs without."""

from __future__ import annotations

from ipsec.crypto import mlkem
from ipsec.ike.eap.tls import tls_available, tls_version


def key_exchange_found() -> tuple[bool, str]:
    """ML-KEM: whether it is there, and what, or what to install. Connections that name it are refused without."""
    return mlkem.found()


def tls_found() -> tuple[bool, str]:
    """EAP-TLS, likewise. Connections that have it do not come up without."""
    missing = tls_available()
    return not missing, missing or tls_version()
