"""``esp_proposals`` of swanctl.conf, as far as an SA without key exchange has use for it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ipsec.config.values import quoted
from ipsec.crypto.suites import EspSuite, esp_suite
from ipsec.errors import ConfigError, SuiteError

_KEY_EXCHANGE = re.compile(r"(ke[1-7]_.*|modp.*|ecp.*|(curve|x)(25519|448)|mlkem.*|none)")


@dataclass(frozen=True)
class EspProposal:
    """One ESP proposal with nothing left to choose."""

    suite: EspSuite
    esn: bool
    "extended sequence numbers (RFC 4303 section 2.2.1)"

    def __str__(self) -> str:
        return f"{self.suite}-esn" if self.esn else str(self.suite)


def parse_esp_proposal(text: str) -> EspProposal:
    """``aes128gcm16``, ``aes256-sha256-esn``: exactly one suite; neither ``esn`` nor ``noesn`` means ``noesn``."""
    if "," in text or text.strip().lower() == "default":
        raise ConfigError("a manual SA has one proposal: nobody chooses among several")
    words = text.strip().lower().split("-")
    exchanges = [word for word in words if _KEY_EXCHANGE.fullmatch(word)]
    if exchanges:
        raise ConfigError(f"a manual SA makes no key exchange, remove {exchanges[0]!r}")
    if "esn" in words and "noesn" in words:
        raise ConfigError("a manual SA has either esn or noesn")
    algorithms = [word for word in words if word not in ("esn", "noesn")]
    if len(words) - len(algorithms) > 1:
        raise ConfigError("esn or noesn is there twice")
    try:
        suite = esp_suite("-".join(algorithms))
    except SuiteError as error:
        raise ConfigError(str(error) if quoted(text)[0] in "'\"" else "unknown algorithms") from None
    return EspProposal(suite, "esn" in words)
