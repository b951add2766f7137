"""What the daemon tells, as values: connections, IKE_SAs, CHILD_SAs, policies.

All text in them can be printed: control characters, which could come with a peer's identity, are escaped. Times are
seconds; what the daemon does not tell is None.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ipsec.text import printable
from ipsec.vici.client import Session, UnknownToDaemon
from ipsec.vici.codec import Message

#: states in which a CHILD_SA carries traffic; REKEYED ones still take in what is on its way
CHILD_UP = frozenset({"INSTALLED", "REKEYING", "REKEYED", "UPDATING"})
IKE_UP = frozenset({"ESTABLISHED", "REKEYING"})


def text(message: Mapping[str, Any], key: str, default: str = "") -> str:
    """A value that can be printed; ``default`` if it is missing or no plain value."""
    value = message.get(key)
    return printable(value) if isinstance(value, bytes) else default


def texts(message: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """A list of them; a plain value is a list of one."""
    value = message.get(key)
    values = value if isinstance(value, list) else [value] if isinstance(value, bytes) else []
    return tuple(printable(item) for item in values)


def number(message: Mapping[str, Any], key: str, default: int = 0) -> int:
    """A value as a number; ``default`` if it is missing or none."""
    found = seconds(message, key)
    return default if found is None else found


def seconds(message: Mapping[str, Any], key: str) -> int | None:
    """A value as a number, None if it is missing."""
    value = message.get(key)
    try:
        return int(value) if isinstance(value, bytes) and len(value) <= 20 else None
    except ValueError:
        return None


def section(message: Mapping[str, Any], key: str) -> Message:
    """A section, empty if it is missing."""
    value = message.get(key)
    return value if isinstance(value, dict) else {}


def sections(message: Mapping[str, Any]) -> list[tuple[str, Message]]:
    """All sections of a message with their names."""
    return [(printable(name), value) for name, value in message.items() if isinstance(value, dict)]


def _key_exchanges(message: Mapping[str, Any]) -> list[str]:
    """The first one of an SA, and the additional ones that follow it (RFC 9370)."""
    first = text(message, "dh-group")
    further = [(step, text(message, f"ake{step}")) for step in range(1, 8)]
    return [first, *(f"KE{step}_{name}" for step, name in further if name)] if first else []


@dataclass(frozen=True, slots=True)
class Suite:
    """What protects an SA, in the names of RFC 7296's registries as strongSwan writes them."""

    encr: str = ""
    encr_bits: int = 0
    integ: str = ""
    prf: str = ""
    ke: str = ""
    "with several: CURVE_25519/KE1_ML_KEM_768"
    esn: bool = False

    @staticmethod
    def of(message: Mapping[str, Any]) -> Suite:
        """From the fields of an SA."""
        return Suite(
            encr=text(message, "encr-alg"),
            encr_bits=number(message, "encr-keysize"),
            integ=text(message, "integ-alg"),
            prf=text(message, "prf-alg"),
            ke="/".join(_key_exchanges(message)),
            esn=text(message, "esn") in ("1", "yes"),
        )

    @property
    def cipher(self) -> str:
        """Encryption and integrity: ``AES_CBC-128/HMAC_SHA2_256_128``."""
        encr = f"{self.encr}-{self.encr_bits}" if self.encr_bits else self.encr
        return "/".join(part for part in (encr, self.integ) if part)

    def __str__(self) -> str:
        return "/".join(part for part in (self.cipher, self.prf, self.ke, "ESN" if self.esn else "") if part)


@dataclass(frozen=True, slots=True)
class ChildSa:
    """A CHILD_SA."""

    name: str
    id: int
    reqid: int
    state: str
    mode: str
    protocol: str
    encap: bool
    spi_in: str
    spi_out: str
    suite: Suite
    bytes_in: int
    packets_in: int
    idle_in_s: int | None
    bytes_out: int
    packets_out: int
    idle_out_s: int | None
    age_s: int | None
    rekey_in_s: int | None
    expires_in_s: int | None
    local_ts: tuple[str, ...]
    remote_ts: tuple[str, ...]

    @staticmethod
    def of(key: str, message: Mapping[str, Any]) -> ChildSa:
        """From its section in ``child-sas``."""
        return ChildSa(
            name=text(message, "name", key),
            id=number(message, "uniqueid"),
            reqid=number(message, "reqid"),
            state=text(message, "state"),
            mode=text(message, "mode"),
            protocol=text(message, "protocol"),
            encap=text(message, "encap") == "yes",
            spi_in=text(message, "spi-in"),
            spi_out=text(message, "spi-out"),
            suite=Suite.of(message),
            bytes_in=number(message, "bytes-in"),
            packets_in=number(message, "packets-in"),
            idle_in_s=seconds(message, "use-in"),
            bytes_out=number(message, "bytes-out"),
            packets_out=number(message, "packets-out"),
            idle_out_s=seconds(message, "use-out"),
            age_s=seconds(message, "install-time"),
            rekey_in_s=seconds(message, "rekey-time"),
            expires_in_s=seconds(message, "life-time"),
            local_ts=texts(message, "local-ts"),
            remote_ts=texts(message, "remote-ts"),
        )

    @property
    def up(self) -> bool:
        """Whether it carries traffic."""
        return self.state in CHILD_UP


@dataclass(frozen=True, slots=True)
class IkeSa:
    """An IKE_SA with its CHILD_SAs."""

    name: str
    id: int
    version: int
    state: str
    initiator: bool
    local_host: str
    local_port: int
    local_id: str
    remote_host: str
    remote_port: int
    remote_id: str
    spi_i: str
    spi_r: str
    nat_local: bool
    nat_remote: bool
    nat_fake: bool
    "we make the peer believe in a NAT, so that ESP comes in UDP"
    ppk: bool
    "a postquantum preshared key is in its keys (RFC 8784)"
    replaced: bool
    "the connection of that name has another peer now, and this is with the old one"
    suite: Suite
    age_s: int | None
    rekey_in_s: int | None
    reauth_in_s: int | None
    local_vips: tuple[str, ...]
    remote_vips: tuple[str, ...]
    tasks: tuple[str, ...]
    children: tuple[ChildSa, ...]

    @staticmethod
    def of(name: str, message: Mapping[str, Any]) -> IkeSa:
        """From its section in a ``list-sa`` event."""
        return IkeSa(
            name=name,
            id=number(message, "uniqueid"),
            version=number(message, "version"),
            state=text(message, "state"),
            initiator=text(message, "initiator") == "yes",
            local_host=text(message, "local-host"),
            local_port=number(message, "local-port"),
            local_id=text(message, "local-id"),
            remote_host=text(message, "remote-host"),
            remote_port=number(message, "remote-port"),
            remote_id=text(message, "remote-eap-id") or text(message, "remote-id"),
            spi_i=text(message, "initiator-spi"),
            spi_r=text(message, "responder-spi"),
            nat_local=text(message, "nat-local") == "yes",
            nat_remote=text(message, "nat-remote") == "yes",
            nat_fake=text(message, "nat-fake") == "yes",
            ppk=text(message, "ppk") == "yes",
            replaced=text(message, "replaced") == "yes",
            suite=Suite.of(message),
            age_s=seconds(message, "established"),
            rekey_in_s=seconds(message, "rekey-time"),
            reauth_in_s=seconds(message, "reauth-time"),
            local_vips=texts(message, "local-vips"),
            remote_vips=texts(message, "remote-vips"),
            tasks=texts(message, "tasks-active") + texts(message, "tasks-queued"),
            children=tuple(ChildSa.of(key, child) for key, child in sections(section(message, "child-sas"))),
        )

    @property
    def up(self) -> bool:
        """Whether both ends are authenticated, and it is not about to go."""
        return self.state in IKE_UP


@dataclass(frozen=True, slots=True)
class ConnChild:
    """A child of a connection as configured."""

    name: str
    mode: str
    rekey_s: int
    rekey_bytes: int
    rekey_packets: int
    dpd_action: str
    close_action: str
    start_action: str
    "empty: the daemon does not tell"
    local_ts: tuple[str, ...]
    remote_ts: tuple[str, ...]

    @staticmethod
    def of(name: str, message: Mapping[str, Any]) -> ConnChild:
        """From its section in ``children``."""
        return ConnChild(
            name=name,
            mode=text(message, "mode"),
            rekey_s=number(message, "rekey_time"),
            rekey_bytes=number(message, "rekey_bytes"),
            rekey_packets=number(message, "rekey_packets"),
            dpd_action=text(message, "dpd_action"),
            close_action=text(message, "close_action"),
            start_action=text(message, "ipsecd-start-action"),
            local_ts=texts(message, "local-ts"),
            remote_ts=texts(message, "remote-ts"),
        )

    @property
    def shunt(self) -> bool:
        """A policy that passes or drops; it never has an SA."""
        return self.mode in ("PASS", "DROP")


@dataclass(frozen=True, slots=True)
class Auth:
    """How one end authenticates itself."""

    method: str
    id: str
    certs: tuple[str, ...]
    cacerts: tuple[str, ...]
    groups: tuple[str, ...]

    @staticmethod
    def of(message: Mapping[str, Any]) -> Auth:
        """From a section ``local*`` or ``remote*``."""
        method = text(message, "class")
        eap = text(message, "eap-type").removeprefix("EAP_")
        identity, user = text(message, "id"), text(message, "eap_id")
        return Auth(
            method=f"{method} ({eap})" if eap else method,
            id=user if user and identity in ("", "%any") else identity,
            certs=texts(message, "certs"),
            cacerts=texts(message, "cacerts"),
            groups=texts(message, "groups"),
        )


@dataclass(frozen=True, slots=True)
class Conn:
    """A connection as configured."""

    name: str
    version: str
    local_addrs: tuple[str, ...]
    remote_addrs: tuple[str, ...]
    local: tuple[Auth, ...]
    remote: tuple[Auth, ...]
    rekey_s: int
    reauth_s: int
    dpd_delay_s: int
    ppk_id: str
    ppk_required: bool
    children: tuple[ConnChild, ...]

    @staticmethod
    def of(name: str, message: Mapping[str, Any]) -> Conn:
        """From its section in a ``list-conn`` event."""
        parts = sections(message)
        return Conn(
            name=name,
            version=text(message, "version"),
            local_addrs=texts(message, "local_addrs"),
            remote_addrs=texts(message, "remote_addrs"),
            local=tuple(Auth.of(value) for key, value in parts if key.startswith("local")),
            remote=tuple(Auth.of(value) for key, value in parts if key.startswith("remote")),
            rekey_s=number(message, "rekey_time"),
            reauth_s=number(message, "reauth_time"),
            dpd_delay_s=number(message, "dpd_delay"),
            ppk_id=text(message, "ppk_id"),
            ppk_required=text(message, "ppk_required") == "yes",
            children=tuple(ConnChild.of(key, child) for key, child in sections(section(message, "children"))),
        )

    @property
    def passive(self) -> bool:
        """Peers come to us: no address of theirs is configured, so nothing can be begun from here."""
        return not self.remote_addrs or all(_anywhere(address) for address in self.remote_addrs)

    @property
    def shunts_only(self) -> bool:
        """It is there for what its children pass or drop, and needs no peer."""
        return bool(self.children) and all(child.shunt for child in self.children)


def _anywhere(address: str) -> bool:
    return address in ("", "%any", "%any4", "%any6", "0.0.0.0", "::", "0.0.0.0/0", "::/0")


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy that is there without an SA: a trap, or one that passes or drops."""

    conn: str
    child: str
    mode: str
    local_ts: tuple[str, ...]
    remote_ts: tuple[str, ...]

    @staticmethod
    def of(name: str, message: Mapping[str, Any]) -> Policy:
        """From its section in a ``list-policy`` event."""
        owner, _, child = name.rpartition("/")
        return Policy(
            conn=text(message, "ike", owner),
            child=text(message, "child", child),
            mode=text(message, "mode"),
            local_ts=texts(message, "local-ts"),
            remote_ts=texts(message, "remote-ts"),
        )

    @property
    def kind(self) -> str:
        """``trap``, ``pass`` or ``drop``."""
        return self.mode.lower() if self.mode in ("PASS", "DROP") else "trap"


@dataclass(frozen=True, slots=True)
class ManualSa:
    """A pair of SAs that is configured by hand (``ipsecd-manual-sas``)."""

    name: str
    mode: str
    local_host: str
    remote_host: str
    remote_port: int | None
    "of ESP in UDP; None is IP protocol 50"
    spi_in: str
    spi_out: str
    suite: str
    esn: bool
    bytes_in: int
    packets_in: int
    idle_in_s: int | None
    number_in: int
    "the highest sequence number received"
    bytes_out: int
    packets_out: int
    idle_out_s: int | None
    number_out: int
    "the last one sent"
    drops: dict[str, int]
    local_ts: tuple[str, ...]
    remote_ts: tuple[str, ...]

    @staticmethod
    def of(name: str, message: Mapping[str, Any]) -> ManualSa:
        """From its section in an ``ipsecd-manual-sa`` event."""
        return ManualSa(
            name=name,
            mode=text(message, "mode"),
            local_host=text(message, "local-host"),
            remote_host=text(message, "remote-host"),
            remote_port=seconds(message, "remote-port"),
            spi_in=text(message, "spi-in"),
            spi_out=text(message, "spi-out"),
            suite=text(message, "suite"),
            esn=text(message, "esn") == "1",
            bytes_in=number(message, "bytes-in"),
            packets_in=number(message, "packets-in"),
            idle_in_s=seconds(message, "use-in"),
            number_in=number(message, "number-in"),
            bytes_out=number(message, "bytes-out"),
            packets_out=number(message, "packets-out"),
            idle_out_s=seconds(message, "use-out"),
            number_out=number(message, "number-out"),
            drops=counts(section(message, "drops")),
            local_ts=texts(message, "local-ts"),
            remote_ts=texts(message, "remote-ts"),
        )


async def _items(
    session: Session, command: str, event: str, message: Mapping[str, Any] | None = None
) -> AsyncIterator[tuple[str, Message]]:
    async for answer in session.stream(command, event, message):
        for item in sections(answer):
            yield item


async def fetch_conns(session: Session) -> tuple[Conn, ...]:
    """All connections."""
    return tuple([Conn.of(*item) async for item in _items(session, "list-conns", "list-conn")])


async def fetch_sas(session: Session, **wanted: str | int) -> tuple[IkeSa, ...]:
    """All IKE_SAs, or those that ``ike``, ``ike_id``, ``child`` and ``child_id`` name."""
    message = {key.replace("_", "-"): value for key, value in wanted.items() if value}
    return tuple([IkeSa.of(*item) async for item in _items(session, "list-sas", "list-sa", message)])


async def fetch_policies(session: Session) -> tuple[Policy, ...]:
    """All traps and shunts."""
    kinds = {"trap": "yes", "pass": "yes", "drop": "yes"}
    return tuple([Policy.of(*item) async for item in _items(session, "list-policies", "list-policy", kinds)])


async def fetch_manual_sas(session: Session) -> tuple[ManualSa, ...]:
    """All SAs that are configured by hand; none from a daemon that has no such thing."""
    try:
        found = _items(session, "ipsecd-manual-sas", "ipsecd-manual-sa")
        return tuple([ManualSa.of(*item) async for item in found])
    except UnknownToDaemon:
        return ()


@dataclass(frozen=True, slots=True)
class Problem:
    """Why something is not up, or went down (``ipsecd-problems``)."""

    conn: str
    child: str
    cause: str
    reason: str
    by_peer: bool
    initiator: bool
    peer: str
    at: str
    "ISO 8601"
    count: int
    over: bool
    "it has come up since"
    retry_in_s: int | None
    "the daemon tries again by itself"
    ours: dict[str, tuple[str, ...]]
    theirs: dict[str, tuple[str, ...]]

    @staticmethod
    def of(message: Mapping[str, Any]) -> Problem:
        """From an ``ipsecd-problem`` event."""
        return Problem(
            conn=text(message, "ike"),
            child=text(message, "child"),
            cause=text(message, "cause"),
            reason=text(message, "reason"),
            by_peer=text(message, "by") == "peer",
            initiator=text(message, "initiator") == "yes",
            peer=text(message, "remote-host"),
            at=text(message, "time"),
            count=number(message, "count", 1),
            over=text(message, "over") == "yes",
            retry_in_s=seconds(message, "retry-in"),
            ours={_snake(key): texts(section(message, "ours"), key) for key in section(message, "ours")},
            theirs={_snake(key): texts(section(message, "theirs"), key) for key in section(message, "theirs")},
        )

    @property
    def ago_s(self) -> float | None:
        """How long ago it was, by the clock of this machine."""
        try:
            return max((datetime.now(UTC) - datetime.fromisoformat(self.at)).total_seconds(), 0)
        except (TypeError, ValueError):
            return None


def _snake(key: str) -> str:
    return printable(key).replace("-", "_")


async def fetch_problems(session: Session, conn: str = "") -> tuple[Problem, ...]:
    """The last problem of each connection and child; none from a daemon that does not keep them."""
    message = {"ike": conn} if conn else {}
    try:
        return tuple([Problem.of(one) async for one in session.stream("ipsecd-problems", "ipsecd-problem", message)])
    except UnknownToDaemon:
        return ()


async def fetch_drops(session: Session) -> dict[tuple[int, str], dict[str, int]] | None:
    """Packets dropped by reason, by the number of the IKE_SA and the key of its CHILD_SA; None if the daemon does not
    tell."""
    found = {}
    try:
        async for answer in session.stream("ipsecd-drops", "ipsecd-drop"):
            for _, sa in sections(answer):
                for key, child in sections(section(sa, "child-sas")):
                    found[number(sa, "uniqueid"), key] = counts(section(child, "drops"))
    except UnknownToDaemon:
        return None
    return found


@dataclass(frozen=True, slots=True)
class DataPath:
    """How packets are moved (``ipsecd-data-path``); the counters are those since the daemon's start."""

    device: str
    mtu: int
    workers: int
    raw_esp: bool
    offloads: dict[str, bool]
    counters: dict[str, int]
    drops: dict[str, int]
    "packets by reason"

    @staticmethod
    def of(message: Mapping[str, Any]) -> DataPath:
        """From the answer."""
        offloads = section(message, "offloads")
        return DataPath(
            device=text(message, "device"),
            mtu=number(message, "mtu"),
            workers=number(message, "workers"),
            raw_esp=text(message, "raw-esp") == "yes",
            offloads={printable(key): text(offloads, key) == "yes" for key in offloads},
            counters=counts(section(message, "counters")),
            drops=counts(section(message, "drops")),
        )


async def fetch_data_path(session: Session) -> DataPath | None:
    """How packets are moved; None if the daemon does not tell."""
    try:
        return DataPath.of(await session.request("ipsecd-data-path"))
    except UnknownToDaemon:
        return None


async def fetch_ailments(session: Session) -> tuple[str, ...]:
    """What the daemon says is wrong with itself."""
    try:
        answer = await session.request("ipsecd-health")
    except UnknownToDaemon:
        return ()
    return tuple(dict.fromkeys(one for _, question in sections(answer) for one in texts(question, "problems")))


def counts(message: Mapping[str, Any]) -> dict[str, int]:
    """A section of numbers."""
    return {printable(key): number(message, key) for key in message}
