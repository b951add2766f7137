"""What a configuration means to IKEv2: frozen values with the names and defaults of swanctl.conf.

``ipsec.config`` makes them from a file; a program that embeds the engine makes them itself. Times are seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum, Flag, auto
from functools import cached_property
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from ipsec.crypto.auth import ANY_SCHEME, Constraints
from ipsec.crypto.identity import ANY_IDENTITY, Identity, IdentityPattern
from ipsec.crypto.revocation import Revocation
from ipsec.crypto.x509 import Certificate
from ipsec.ike.eap.names import TlsVersion
from ipsec.wire.proposal import Proposal
from ipsec.wire.selector import ANY_PORT, TrafficSelector

IpAddress = IPv4Address | IPv6Address
IpNetwork = IPv4Network | IPv6Network


#: among the pools of a connection: what the EAP server grants to the peer
RADIUS = "radius"


class AuthClass(Enum):
    """How one side proves who it is; the values are what vici calls them."""

    PSK = "pre-shared key"
    PUBKEY = "public key"
    EAP = "EAP"
    ANY = "any"
    "remote only: whatever it comes with"


class SendCert(Enum):
    """When our certificate goes to the peer."""

    IFASKED = "ifasked"
    ALWAYS = "always"
    NEVER = "never"


class Unique(Enum):
    """What becomes of an IKE_SA when its peer makes another one."""

    NO = "no"
    "the old one goes only on INITIAL_CONTACT"
    REPLACE = "replace"
    "the old one goes"
    KEEP = "keep"
    "the new one is refused, unless it comes from the same place: that is re-authentication"
    NEVER = "never"
    "both stay, INITIAL_CONTACT is not heeded"


class Childless(Enum):
    """RFC 6023."""

    ALLOW = "allow"
    "as responder"
    PREFER = "prefer"
    "also as initiator, if the peer can"
    FORCE = "force"
    "in both roles"
    NEVER = "never"


class Fragmentation(Enum):
    """RFC 7383. Fragments that come are always taken, if they were announced."""

    YES = "yes"
    "announce and send"
    ACCEPT = "accept"
    "announce only"
    NO = "no"


class Action(Flag):
    """What to do with a CHILD_SA at start, after its peer closed it, or after its peer died."""

    NONE = 0
    TRAP = auto()
    START = auto()


class ChildMode(Enum):
    """How packets are carried, or that they are not."""

    TUNNEL = "tunnel"
    TRANSPORT = "transport"
    PASS = "pass"
    "no SA: matching packets go around the tunnel"
    DROP = "drop"
    "no SA: matching packets are dropped"


class CopyDscp(Enum):
    """Which way DSCP is copied between inner and outer header."""

    NO = "no"
    OUT = "out"
    IN = "in"
    YES = "yes"


@dataclass(frozen=True)
class SelectorTemplate:
    """A selector of a configuration; ``network`` None is ``dynamic``: the outer address, or the virtual one."""

    network: tuple[IpAddress, IpAddress] | None
    "first and last address"
    protocol: int = 0
    ports: tuple[int, int] = ANY_PORT

    def resolve(self, dynamic: tuple[IpAddress, ...]) -> list[TrafficSelector]:
        """The selectors this means when ``dynamic`` stands for these addresses."""
        ranges = [self.network] if self.network else [(address, address) for address in dynamic]
        return [TrafficSelector(start, end, self.protocol, self.ports) for start, end in ranges]

    def __str__(self) -> str:
        if self.network:
            return str(TrafficSelector(*self.network, self.protocol, self.ports))
        whole = str(TrafficSelector(IPv4Address(0), IPv4Address(0), self.protocol, self.ports))
        return whole.replace("0.0.0.0/32", "dynamic", 1)


DYNAMIC = SelectorTemplate(None)


@dataclass(frozen=True)
class LocalAuth:
    """How we prove who we are (``local { }``)."""

    method: AuthClass = AuthClass.PUBKEY
    id: Identity | None = None
    "None: whom the initiator wants, else our address or the subject of the certificate that is chosen"
    certs: tuple[Certificate, ...] = ()
    "candidates, chosen by what the peer can do with, else the first"
    pubkeys: tuple[bytes, ...] = ()
    "raw public keys (DER SubjectPublicKeyInfo) to authenticate with instead of a certificate"
    constraints: Constraints = ANY_SCHEME
    eap_type: int = 0
    "with EAP: the only method, an EapType; 0 is any that we know"
    eap_id: Identity | None = None
    "who we are for EAP, None: ``id``"
    aaa_id: IdentityPattern | None = None
    "who the EAP server is, None: the responder"


@dataclass(frozen=True)
class RemoteAuth:
    """Whom we take the peer for, and what it must show (``remote { }``)."""

    method: AuthClass = AuthClass.ANY
    id: IdentityPattern = ANY_IDENTITY
    certs: tuple[Certificate, ...] = ()
    "if any: only these, and ``pubkeys``"
    cacerts: tuple[Certificate, ...] = ()
    "if any: one of these must be in the chain"
    ca_id: IdentityPattern | None = None
    "an authority in the chain has to be one of these"
    pubkeys: tuple[bytes, ...] = ()
    "raw public keys (DER SubjectPublicKeyInfo); if any: only these, and ``certs``"
    cert_policy: tuple[str, ...] = ()
    revocation: Revocation = Revocation.RELAXED
    constraints: Constraints = ANY_SCHEME
    eap_type: int = 0
    "with EAP: the only method, an EapType; 0 is any that we know"
    eap_id: IdentityPattern | None = None
    "who the peer is to be for EAP, which it is asked for; None: what it calls itself in IKE"
    eap_radius: bool = False
    "with EAP: a RADIUS server does it, whatever method it chooses"
    groups: tuple[str, ...] = ()
    "if any: the RADIUS server has to grant one of them, by Class or Filter-Id"


@dataclass(frozen=True)
class ChildConfig:
    """One entry of ``children { }``."""

    name: str
    esp_proposals: tuple[Proposal, ...] = ()
    local_ts: tuple[SelectorTemplate, ...] = (DYNAMIC,)
    remote_ts: tuple[SelectorTemplate, ...] = (DYNAMIC,)
    mode: ChildMode = ChildMode.TUNNEL
    rekey_time: float = 3600.0
    "soft lifetime, 0 is none"
    life_time: float = 3960.0
    rand_time: float = 360.0
    rekey_bytes: int = 0
    life_bytes: int = 0
    rand_bytes: int = 0
    rekey_packets: int = 0
    life_packets: int = 0
    rand_packets: int = 0
    inactivity: float = 0.0
    start_action: Action = Action.NONE
    close_action: Action = Action.NONE
    dpd_action: Action = Action.NONE
    reqid: int = 0
    "0: one is chosen"
    priority: int = 0
    "0: from the selectors' size"
    policies: bool = True
    replay_window: int = 1024
    tfc_padding: int = 0
    "-1: to the path MTU"
    copy_df: bool = True
    copy_ecn: bool = True
    copy_dscp: CopyDscp = CopyDscp.OUT
    icmp: bool = False
    "ICMP errors pass for what they quote, whoever says them (RFC 4301 section 6.2)"
    updown: tuple[str, ...] = ()
    "command to run when it has come up and when it is gone, and its arguments"
    hostaccess: bool = False
    "what that command is told besides"
    sha256_96: bool = False
    "the ICV has 96 bits where HMAC_SHA2_256_128 is negotiated: for peers that mean that by it"

    @property
    def shunt(self) -> bool:
        """Whether this makes policies only, never an SA."""
        return self.mode in (ChildMode.PASS, ChildMode.DROP)

    @property
    def starts(self) -> bool:
        """Whether it is to be up without being asked for."""
        return Action.START in self.start_action and not self.shunt


@dataclass(frozen=True)
class Connection:
    """One entry of ``connections { }``."""

    name: str
    local_addrs: tuple[str, ...] = ("%any",)
    "addresses, names, networks and ranges as written; the daemon resolves names"
    remote_addrs: tuple[str, ...] = ("%any",)
    local_port: int = 500
    remote_port: int = 500
    proposals: tuple[Proposal, ...] = ()
    vips: tuple[IpAddress, ...] = ()
    "virtual addresses to ask for; 0.0.0.0 and :: are any of that family"
    pools: tuple[str, ...] = ()
    "to assign from, in this order; RADIUS is what the peer is granted"
    local: LocalAuth = LocalAuth()
    remote: RemoteAuth = RemoteAuth()
    local_rounds: tuple[LocalAuth, ...] = ()
    "how else we prove who we are as initiator, one after the other after ``local`` (RFC 4739)"
    remote_rounds: tuple[RemoteAuth, ...] = ()
    "how else an initiator is to prove who it is, after ``remote``"
    children: tuple[ChildConfig, ...] = ()
    encap: bool = False
    mobike: bool = True
    dpd_delay: float = 0.0
    fragmentation: Fragmentation = Fragmentation.YES
    childless: Childless = Childless.ALLOW
    send_certreq: bool = True
    send_cert: SendCert = SendCert.IFASKED
    keyingtries: int = 1
    "sequences of retransmissions of the first request; 0 is no end"
    unique: Unique = Unique.NO
    reauth_time: float = 0.0
    rekey_time: float = 14400.0
    over_time: float = 1440.0
    rand_time: float = 1440.0
    dscp: int = 0
    ppk_id: IdentityPattern | None = None
    "the postquantum preshared key to ask for as initiator, and that an initiator is to use if any (RFC 8784)"
    ppk_required: bool = False
    "no IKE_SA without one, in both roles"

    def child(self, name: str) -> ChildConfig | None:
        """The child of that name."""
        return next((child for child in self.children if child.name == name), None)

    @property
    def all_local(self) -> tuple[LocalAuth, ...]:
        """All rounds of ``local``."""
        return (self.local, *self.local_rounds)

    @property
    def all_remote(self) -> tuple[RemoteAuth, ...]:
        """All rounds of ``remote``."""
        return (self.remote, *self.remote_rounds)

    @property
    def all_auth(self) -> tuple[LocalAuth | RemoteAuth, ...]:
        """All rounds of both."""
        return (*self.all_local, *self.all_remote)

    def in_round(self, number: int, *, initiator: bool) -> Connection:
        """It with nothing but one round of authentication of the initiator's, which is us or the peer; 0 is the
        first one."""
        if not number:
            return self
        if initiator:
            return replace(self, local=self.local_rounds[number - 1], local_rounds=())
        return replace(self, remote=self.remote_rounds[number - 1], remote_rounds=())

    def is_alike(self, other: Connection) -> bool:
        """Whether an IKE_SA of one serves the other: nothing differs but children and our own certificates, and for
        the peer we are who we were."""
        return self is other or self._without_parts == other._without_parts

    @cached_property
    def _without_parts(self) -> tuple[Connection, tuple[Identity | None, ...]]:
        # kept: thousands of IKE_SAs are held against what is loaded
        first, *rounds = (replace(one, certs=()) for one in self.all_local)
        # where the peer chooses, one more to choose from makes no difference
        ours = (one.certs[0].subject if one.id is None and one.certs else None for one in self.all_local)
        return replace(self, children=(), local=first, local_rounds=tuple(rounds)), tuple(ours)


@dataclass(frozen=True)
class PoolConfig:
    """One entry of ``pools { }``."""

    name: str
    first: IpAddress
    "first address that is assigned"
    last: IpAddress
    attributes: tuple[tuple[int, bytes], ...] = ()
    "configuration attributes that go with an address: (number, value), RFC 7296 section 3.15.1"


@dataclass(frozen=True)
class IkeSettings:
    """What holds for all connections; swanctl's ``charon.*`` settings of the same meaning in ``ipsecd { }``."""

    retransmit_tries: int = 5
    retransmit_timeout: float = 4.0
    retransmit_base: float = 1.8
    retransmit_limit: float = 0.0
    "upper limit of one wait, 0 is none"
    half_open_timeout: float = 30.0
    cookie_threshold: int = 30
    cookie_threshold_ip: int = 3
    half_open_limit: int = 2000
    "half-open IKE_SAs as responder at any time"
    ike_sa_limit: int = 0
    "IKE_SAs in all, 0 is no limit"
    keep_alive: float = 20.0
    "NAT keepalive interval (RFC 3948 section 4), 0 is off"
    fragment_size: int = 1280
    "octets of the largest IP datagram that carries a fragment (RFC 7383 section 2.5.1)"
    tls_version_max: TlsVersion = TlsVersion.TLS_1_3
    delete_rekeyed_delay: float = 5.0
    "how long a replaced inbound SA still takes packets that are on their way"
    port: int = 500
    port_nat_t: int = 4500
    make_before_break: bool = True
    "re-authentication makes the new IKE_SA first"
    follow_redirects: bool = True
    redirect_to: str = ""
    "another gateway, address or name, that all initiators are sent to (RFC 5685)"
    qcd: bool = True
    "send QUICK_CRASH_DETECTION tokens (RFC 6290)"
    qcd_secret: bytes = field(default=b"", repr=False)
    "kept over restarts; empty: no tokens are made"
    force_encapsulation: bool = True
    "always ESP in UDP, as a data path without IP protocol 50 needs it; both ends then believe in a NAT"
