"""What is configured of a RADIUS server."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class RadiusServer:
    """``ipsecd.radius.servers.<name> { }``: who can say whether a peer that uses EAP is who it says."""

    name: str
    address: str
    "IP address or name of the server; it has to be there"
    secret: bytes = field(repr=False)
    "what we share with it, text as it is; it has to be there, and should have 16 octets or more, at random"
    auth_port: int = 1812
    "its UDP port"
    preference: int = 0
    "the highest is asked first, of equal ones the first; others where it does not answer"
    sockets: int = 1
    "UDP sockets, 1..64: each has room for 256 requests under way, others wait"
    retransmit_tries: int = 4
    "how often a request is sent again before another server is asked"
    retransmit_timeout: float = 2.0
    "seconds before a request is sent again for the first time"
    retransmit_base: float = 1.4
    "each wait is this many times the one before"
    nas_identifier: str = "ipsecd"
    "what we call ourselves, 1..253 octets"
    acct_port: int = 1813
    "its UDP port for accounting"

    def wait_s(self, sent: int) -> float:
        """Seconds to wait for an answer to what was sent so many times."""
        return self.retransmit_timeout * self.retransmit_base ** (sent - 1)

    def __str__(self) -> str:
        at = f"[{self.address}]" if ":" in self.address else self.address
        return f"RADIUS server {self.name} ({at}:{self.auth_port})"
