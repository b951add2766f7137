"""What the vici commands need of a daemon.

The commands read IKE_SAs and connections from the engine, and change them through its own commands; what an engine does
not know (configuration as text, names, policies in the data path) they ask for here. Everything belongs to the event
loop's thread. Methods raise IpsecError, whose text becomes ``errmsg``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from ipsec.esp.engine import SaStats
from ipsec.esp.sa import SaParams
from ipsec.ike.child_sa import ChildSa
from ipsec.ike.config import ChildConfig, Connection
from ipsec.ike.engine import IkeEngine
from ipsec.ike.events import Event
from ipsec.ike.radius.server import RadiusServer
from ipsec.ike.sa import IkeSa
from ipsec.vici.show import Traffic

Observer = Callable[[Event], None]


class Policy(NamedTuple):
    """A policy that is there before any SA: a trap, or one that passes or drops."""

    connection: Connection
    child: ChildConfig
    reqid: int
    "0 of what passes or drops"


class ManualSa(NamedTuple):
    """A pair of SAs that is configured by hand (section ``sas``), and what each has carried."""

    name: str
    inbound: tuple[SaParams, SaStats]
    outbound: tuple[SaParams, SaStats]


@dataclass(frozen=True)
class DataPath:
    """What carries the packets."""

    device: str
    mtu: int
    workers: int
    "threads that move packets; 0: the event loop does"
    ports: Mapping[int, int]
    "UDP port of ESP and of IKE behind a marker, by IP version"
    ike_ports: Mapping[int, int]
    raw_esp: bool
    offloads: Mapping[str, bool]
    "whether they are in use now"
    providers: Mapping[str, str]
    "of each suite that was used"
    counters: Mapping[str, int]
    drops: Mapping[str, int]
    "by reason, in all"
    keylog: str = ""
    "directory of key files for Wireshark, if keys are written"


class RadiusState(Protocol):
    """``ipsec.daemon.outside.RadiusState``: one server."""

    @property
    def server(self) -> RadiusServer:
        """Which one."""

    @property
    def kind(self) -> str:
        """What it is asked for."""

    @property
    def silent_s(self) -> float | None:
        """Seconds for which it has not answered; None: it has."""

    @property
    def counters(self) -> Mapping[str, int]:
        """Requests, and what came of them."""


class Change(Protocol):
    """``ipsec.config.diff.Change``."""

    @property
    def key(self) -> str:
        """Dotted path in the configuration."""

    @property
    def kind(self) -> str:
        """``added``, ``removed`` or ``changed``."""

    @property
    def before(self) -> str:
        """The value in effect, empty for none. Never a secret."""

    @property
    def after(self) -> str:
        """The value in the file."""

    @property
    def effect(self) -> str:
        """What a reload does with it."""


@dataclass(frozen=True)
class Preview:
    """What a reload would do."""

    file: str
    warnings: Sequence[str]
    changes: Sequence[Change]


class Control(Protocol):
    """One daemon."""

    @property
    def engine(self) -> IkeEngine:
        """Its IKE engine."""

    @property
    def version(self) -> str:
        """What the daemon is, as ``version`` tells: a number."""

    def now(self) -> float:
        """Seconds, as the engine counts them."""

    def turn(self) -> None:
        """Have done what an engine's command has made necessary; after each of them."""

    def traffic(self, child: ChildSa) -> Traffic:
        """Counters of a CHILD_SA."""

    def manual_sas(self) -> Iterable[ManualSa]:
        """Pairs of SAs that are configured by hand, with their counters."""

    def data_path(self) -> DataPath:
        """What carries the packets, with its counters."""

    def radius(self) -> Sequence[RadiusState]:
        """How it is with each RADIUS server."""

    def retry_in(self, connection: str, child: str) -> float | None:
        """Seconds until a child that failed is tried again; None if that is not planned."""

    def give_up(self, connection: str, child: str) -> int:
        """Try no more what failed: a child, or with one name empty all that have the other one. How many those are."""

    def observe(self, observer: Observer) -> Callable[[], None]:
        """Tell ``observer`` of the engine's events from now on, after the daemon has acted upon each; how to stop."""

    def health(self) -> Mapping[str, Sequence[str]]:
        """Why the daemon is not ``alive``, ``healthy``, ``ready``: by these words, empty where it is."""

    # -- what is up

    async def connect(self, connection: Connection, child: ChildConfig | None) -> IkeSa | None:
        """Begin to bring up a child, or the IKE_SA alone; the IKE_SA, None if there is no way to the peer."""

    async def routed(self) -> None:
        """Return when what is up has its routes, as far as the kernel takes them."""

    async def install(self, connection: Connection, child: ChildConfig) -> bool:
        """Let a child wait for traffic, or put its shunt in place; False if its selectors are not known."""

    async def uninstall(self, connection: str, child: str) -> bool:
        """Undo ``install``; False if there is nothing."""

    def policies(self) -> Iterable[Policy]:
        """Traps and shunts that are in place."""

    # -- what is loaded

    async def load_connection(self, name: str, message: Mapping[str, Any]) -> None:
        """Load a connection, in place of one of that name."""

    async def unload_connection(self, name: str) -> bool:
        """Forget a connection; False if there is none."""

    def load_certificate(self, data: bytes, flag: str) -> None:
        """Load an X.509 certificate, PEM or DER. ``flag`` CA makes it a trust anchor."""

    def load_crl(self, data: bytes) -> None:
        """Load a revocation list, PEM or DER."""

    def load_public_key(self, data: bytes) -> None:
        """Load a raw public key, PEM or DER, to be listed: connections bring those that they use."""

    def public_keys(self) -> Sequence[bytes]:
        """Raw public keys that are loaded, DER (SubjectPublicKeyInfo)."""

    def load_key(self, kind: str, data: bytes) -> str:
        """Load a private key, PEM or DER; its id."""

    def unload_key(self, key_id: str) -> bool:
        """Forget a private key; False if there is none."""

    def key_ids(self) -> Sequence[str]:
        """Ids of the private keys."""

    def load_shared(self, name: str, secret: bytes, owners: Sequence[str], kind: str) -> None:
        """Load a secret, in place of one of that name unless that is empty. ``kind`` is IKE for a preshared key, PPK
        for a postquantum one (RFC 8784), EAP for a password, NTLM for the NT hash of one (RFC 2759 section 8.3)."""

    def unload_shared(self, name: str) -> bool:
        """Forget a secret; False if there is none."""

    def shared_names(self) -> Sequence[str]:
        """Names of the secrets that have one."""

    def load_authority(self, name: str, message: Mapping[str, Any]) -> None:
        """Load a trust anchor with its URIs, in place of one of that name."""

    def unload_authority(self, name: str) -> bool:
        """Forget it; False if there is none."""

    def load_pool(self, name: str, message: Mapping[str, Any]) -> None:
        """Load a pool, in place of one of that name."""

    def unload_pool(self, name: str) -> bool:
        """Forget a pool; False if there is none."""

    def clear_credentials(self) -> None:
        """Forget all secrets, keys, certificates and revocation lists; authorities with a name stay."""

    async def reload_settings(self) -> None:
        """What SIGHUP does."""

    async def preview(self) -> Preview:
        """What ``reload_settings`` would do. ConfigError if it could not."""
