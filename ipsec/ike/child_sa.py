"""A CHILD_SA: what was negotiated for one pair of ESP SAs, and where it is in its life."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ipsec.crypto.suites import EspSuite
from ipsec.ike.config import ChildConfig, ChildMode
from ipsec.ike.events import ChildKeys
from ipsec.ike.state import CHILD_UP, ChildState, check_child
from ipsec.wire.proposal import Proposal
from ipsec.wire.selector import SelectorPair, TrafficSelector, agreeing_pairs

if TYPE_CHECKING:
    from ipsec.ike.sa import IkeSa


class ChildSa:
    """One CHILD_SA. SPIs are numbers; times are the engine's ``now``."""

    __slots__ = (
        "config",
        "encap",
        "esn",
        "expires_at",
        "has_in",
        "has_out",
        "ike",
        "installed_at",
        "local_ts",
        "mode",
        "nonces",
        "outbound",
        "peer_rekey",
        "proposal",
        "rekey_at",
        "rekey_of",
        "remote_ts",
        "reqid",
        "spi_in",
        "spi_out",
        "state",
        "suite",
        "tfc",
        "uid",
    )

    def __init__(self, uid: int, ike: IkeSa, config: ChildConfig, reqid: int) -> None:
        self.uid = uid
        self.ike = ike
        "the IKE_SA it belongs to now; rekeying the IKE_SA moves it"
        self.config = config
        self.reqid = reqid
        self.state = ChildState.CREATED
        self.mode = ChildMode.TUNNEL
        self.spi_in = 0
        self.spi_out = 0
        self.proposal: Proposal | None = None
        self.suite: EspSuite | None = None
        self.esn = False
        self.tfc = True
        "the peer strips TFC padding"
        self.local_ts: list[TrafficSelector] = []
        self.remote_ts: list[TrafficSelector] = []
        self.encap = False
        self.installed_at = 0.0
        self.rekey_at = 0.0
        "0: never"
        self.expires_at = 0.0
        self.has_in = False
        self.has_out = False
        "whether the data path has the SA of that direction"
        self.outbound: ChildKeys | None = None
        "responder of a rekeying: keys of the outbound SA that waits for the initiator's Delete"
        self.nonces: tuple[bytes, ...] = ()
        "both nonces of the exchange that made it, until a collision can no longer be"
        self.rekey_of: ChildSa | None = None
        "the one this was made to replace, while that lives"
        self.peer_rekey: ChildSa | None = None
        "what the peer made to replace this one"

    @property
    def name(self) -> str:
        """Name of its configuration."""
        return self.config.name

    @property
    def serves(self) -> bool:
        """Whether it carries traffic, and nothing is there yet that stands for it."""
        # section 2.8.1: after a lost collision it is replaced only once the peer has deleted it
        return self.state in CHILD_UP or (self.state is ChildState.REKEYED and self.unsettled)

    @property
    def unsettled(self) -> bool:
        """Whether the peer has made a successor and not deleted it yet: it may wait for our answer still."""
        return self.peer_rekey is not None and self.peer_rekey.state is ChildState.INSTALLING

    def change(self, new: ChildState) -> None:
        """Go to another state."""
        self.state = check_child(self.state, new)

    def pairs(self) -> tuple[SelectorPair, ...]:
        """Its selectors as (local, remote) pairs: all that agree in family and protocol."""
        return tuple(agreeing_pairs(self.local_ts, self.remote_ts))

    def __str__(self) -> str:
        return f"{self.config.name}{{{self.uid}}}"

    def __repr__(self) -> str:
        return f"<ChildSa {self} {self.state.value} in 0x{self.spi_in:08x} out 0x{self.spi_out:08x}>"
