"""Two engines whose datagrams can be tampered with on the way, and a way to put an engine back to where it was.

A ``Lab`` runs an initiator and a responder. Whoever wants to attack sets ``tap``: it is called with every datagram
before it arrives, may give the receiver as many others as it likes, and undoes each with a ``Checkpoint``. So thousands
of hostile messages meet the engine in exactly the state in which the genuine one comes.
"""

from __future__ import annotations

import functools
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from enum import Enum
from hashlib import shake_128
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from cryptography.x509 import DNSName

from ipsec.crypto.identity import ANY_IDENTITY, parse_identity, parse_pattern
from ipsec.crypto.proposals import parse_proposals
from ipsec.errors import ParseError
from ipsec.ike.child_sa import ChildSa
from ipsec.ike.config import AuthClass, ChildConfig, Connection, IkeSettings, LocalAuth, PoolConfig, RemoteAuth
from ipsec.ike.create_child import CreateChild
from ipsec.ike.credentials import Authority, Credentials, EapSecret, PrivateKey, SharedSecret
from ipsec.ike.engine import IkeEngine
from ipsec.ike.events import Event, InstallChild, Outgoing, Path, RemoveChild
from ipsec.ike.sa import IkeSa
from ipsec.ike.state import IkeState
from ipsec.wire.iana import EapType, ExchangeType, NotifyType, PayloadType, Protocol
from ipsec.wire.ike import (
    FLAG_INITIATOR,
    FLAG_RESPONSE,
    HEADER_LEN,
    Header,
    emit_encrypted_header,
    find_encrypted,
    parse_header,
    parse_payloads,
)
from ipsec.wire.payloads import AuthPayload, IdPayload, NoncePayload, NotifyPayload
from tests.crypto.pki import EC384_KEY, EC_KEY, WALL, Ca

A = ip_address("192.0.2.1")
B = ip_address("192.0.2.2")
A2 = ip_address("192.0.2.9")
SECRET = b"a pre-shared key for the lab, 9f2c"
QCD_SECRET = b"a secret for QCD tokens, 77aa"
IKE = parse_proposals(["aes128gcm16-prfsha256-x25519"], Protocol.IKE)
IKE_CBC = parse_proposals(["aes128-sha256-prfsha256-ecp256"], Protocol.IKE)
IKE_BOTH = parse_proposals(["aes128gcm16-prfsha256-x25519", "aes128gcm16-prfsha256-ecp256"], Protocol.IKE)
ESP = parse_proposals(["aes128gcm16"], Protocol.ESP)
ESP_PFS = parse_proposals(["aes128gcm16-x25519"], Protocol.ESP)
#: additional key exchanges (RFC 9370)
IKE_FURTHER = parse_proposals(["aes128gcm16-prfsha256-x25519-ke1_mlkem768-ke2_ecp256"], Protocol.IKE)
ESP_FURTHER = parse_proposals(["aes128gcm16-x25519-ke1_ecp256-ke3_mlkem768"], Protocol.ESP)
ROOT = Ca("Root")
MOON = ROOT.issue("moon", EC_KEY, sans=(DNSName("moon"),))
SUN = ROOT.issue("sun", EC384_KEY, sans=(DNSName("sun"),))


class Rng:
    """Octets that look random; as cheap to put back as a number."""

    def __init__(self, seed: str) -> None:
        self.seed = seed.encode()
        self.count = 0

    def __call__(self, size: int) -> bytes:
        self.count += 1
        return shake_128(self.seed + self.count.to_bytes(8, "big")).digest(size)


class Stub:
    """The host of an engine. It keeps account of ESP SPIs, so that none is lost."""

    def __init__(self, addresses: tuple[Any, ...]) -> None:
        self.addresses = addresses
        self.next = 0x1000
        self.reserved: set[int] = set()
        self.installed: set[int] = set()

    def allocate_spi(self) -> int:
        self.next += 1
        self.reserved.add(self.next)
        return self.next

    def free_spi(self, spi: int) -> None:
        assert spi in self.reserved, "an SPI is given back that is not reserved"
        self.reserved.remove(spi)

    def last_use(self, child: ChildSa) -> float | None:
        return None

    last_traffic = last_use

    def wall(self) -> datetime:
        return WALL

    def resolved(self, name: str) -> tuple[Any, ...]:
        return ()

    def local_addresses(self, connection: Connection) -> tuple[Any, ...]:
        return self.addresses

    def sources(self, connection: Connection, remote: Any) -> tuple[Any, ...]:
        return tuple(address for address in self.addresses if address.version == remote.version)

    def handle(self, event: Event) -> None:
        if isinstance(event, InstallChild) and event.inbound is not None:
            self.reserved.remove(event.child.spi_in)
            self.installed.add(event.child.spi_in)
        elif isinstance(event, RemoveChild):
            self.installed.discard(event.child.spi_in)
            self.reserved.discard(event.child.spi_in)


class Target(IkeEngine):
    """An engine in which an exception that should not be is not contained but ends the test."""

    host: Stub

    def _contain(self, *_: object) -> None:  # type: ignore[override]
        raise

    def drain(self) -> list[Event]:
        """All events, with the host's part in them done."""
        found = []
        while (event := self.next_event()) is not None:
            self.host.handle(event)
            found.append(event)
        return found

    def datagrams_to_send(self) -> list[Outgoing]:
        """What is to be sent; then it is out, and what was left for later is done."""
        found = super().datagrams_to_send()
        self.catch_up()
        return found


# -- putting an engine back

_ATOMS = (int, str, bytes, float, type(None), Enum, IPv4Address, IPv6Address, datetime, type)
_WALKED = ("ipsec.ike.", "tests.ike.hostile")
#: what never changes, or only remembers what it would find again
_FIXED = ("ipsec.ike.config", "ipsec.ike.counters", "ipsec.ike.table")
_MISSING = object()
#: what any datagram may change: the clock, the account of answers to strangers, what is to go out
_VOLATILE = frozenset(("now", "_stranger_second", "_strangers", "_outbox", "count", "_born", "_previous", "_secret",
                       "_version", "_second", "_fruitless", "_insist"))  # fmt: skip


@functools.cache
def _attributes(kind: type) -> tuple[str, ...]:
    names = [name for base in kind.__mro__ for name in getattr(base, "__slots__", ())]
    return tuple(name for name in names if name not in ("__weakref__", "__dict__"))


@functools.cache
def _walked(kind: type) -> bool:
    modules = [base.__module__ for base in kind.__mro__]
    return any(m.startswith(_WALKED) for m in modules) and not modules[0].startswith(_FIXED)


def _names(found: Any) -> tuple[str, ...]:
    return _attributes(type(found)) + tuple(getattr(found, "__dict__", ()))


class Checkpoint:
    """Everything that an engine knows, by reference: ``restore`` puts it back, ``changes`` tells what is different."""

    def __init__(self, engine: IkeEngine) -> None:
        self.objects: list[tuple[Any, tuple[str, ...], tuple[Any, ...]]] = []
        self.containers: list[tuple[Any, Any]] = []
        seen: set[int] = set()
        todo: list[Any] = [engine]
        while todo:
            one = todo.pop()
            if isinstance(one, _ATOMS) or id(one) in seen:
                continue
            seen.add(id(one))
            if isinstance(one, tuple):
                todo += one
            elif isinstance(one, dict):
                self.containers.append((one, one.copy()))
                todo += one.values()
                todo += one.keys()
            elif isinstance(one, list | deque | set):
                self.containers.append((one, one.copy()))
                todo += one
            else:
                if _walked(type(one)):
                    names = _names(one)
                    values = tuple(getattr(one, name, _MISSING) for name in names)
                    self.objects.append((one, names, values))
                    todo += values

    def restore(self) -> None:
        """As it was."""
        for one, names, values in self.objects:
            for name, value in zip(names, values, strict=True):
                if getattr(one, name, _MISSING) is not value:
                    if value is _MISSING:
                        object.__delattr__(one, name)
                    else:
                        object.__setattr__(one, name, value)
        for one, copy in self.containers:
            if not _same(one, copy):
                one.clear()
                if isinstance(one, list | deque):
                    one.extend(copy)
                else:
                    one.update(copy)

    def changes(self) -> list[str]:
        """What is not as it was, but for what any datagram may change."""
        found = [
            f"{type(one).__name__}.{name}"
            for one, names, values in self.objects
            for name, value in zip(names, values, strict=True)
            if name not in _VOLATILE and not _equal(getattr(one, name, _MISSING), value)
        ]
        outbox = next(values[names.index("_outbox")] for _, names, values in self.objects if "_outbox" in names)
        return found + [
            f"{type(one).__name__} of {len(copy)}"
            for one, copy in self.containers
            if one is not outbox and not _same(one, copy)
        ]


def _equal(one: Any, other: Any) -> bool:
    return one is other or (isinstance(one, _ATOMS) and isinstance(other, _ATOMS) and one == other)


def _same(one: Any, copy: Any) -> bool:
    if len(one) != len(copy):
        return False
    if isinstance(one, set):
        return bool(one == copy)
    if isinstance(one, OrderedDict):
        return list(one) == list(copy) and all(a is b for a, b in zip(one.values(), copy.values(), strict=True))
    if isinstance(one, dict):
        return all(copy.get(key, _MISSING) is value for key, value in one.items())
    return all(a is b for a, b in zip(one, copy, strict=True))


def _held(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _held(one) for key, one in value.items()}
    return [_held(one) for one in value] if isinstance(value, list | tuple | set) else value


@contextmanager
def credentials_stay(engine: IkeEngine) -> Iterator[None]:
    """Credentials are a value: whatever a peer sends, they keep nothing of it (CVE-2021-41991).

    A ``Checkpoint`` would put them back, so this has to be looked at before.
    """
    credentials = engine.credentials
    before = _held(vars(credentials))
    yield
    after = _held(vars(credentials))
    assert after == before, [name for name in after if after[name] != before.get(name, _MISSING)]


# -- two ends

Tap = Callable[[Target, bytes, Path, float], None]


def connection(who: str, whom: str, near: Any, far: Any, **more: Any) -> Connection:
    """One without lifetimes: by itself nothing happens."""
    child = {"rekey_time": 0.0, "life_time": 0.0, "rand_time": 0.0, "esp_proposals": ESP, **more.pop("child", {})}
    defaults: dict[str, Any] = {
        "name": "c",
        "local_addrs": (str(near),),
        "remote_addrs": (str(far),),
        "proposals": IKE,
        "local": LocalAuth(AuthClass.PSK, parse_identity(who)),
        "remote": RemoteAuth(AuthClass.PSK, parse_pattern(whom)),
        "children": (ChildConfig("net", **child), ChildConfig("other", **child)),
        "rekey_time": 0.0,
        "over_time": 0.0,
        "rand_time": 0.0,
        "mobike": False,
    }
    return Connection(**{**defaults, **more})


def psk_credentials() -> Credentials:
    return Credentials(
        secrets=[SharedSecret(SECRET, (parse_pattern("moon"), parse_pattern("sun")))],
        eap_secrets=[EapSecret(SECRET, (parse_pattern("carol"),))],
    )


def cert_credentials(own: Any, key: Any) -> Credentials:
    return Credentials(
        private_keys=[PrivateKey(key)], certificates=[own], authorities=[Authority(ROOT.certificate, name="root")]
    )


class Lab:
    """moon, the initiator, at A, and sun at B."""

    def __init__(self, *, certs: bool = False, vip: bool = False, eap: int = 0, **more: Any) -> None:
        self.now = 1000.0
        self.tap: Tap | None = None
        self.events: list[tuple[str, Event]] = []
        self.sent: list[bytes] = []
        base = replace(IkeSettings(qcd_secret=QCD_SECRET), **more.pop("settings", {}))
        own_a, own_b = dict(more.pop("a", {})), dict(more.pop("b", {}))
        settings_b = replace(base, **own_b.pop("settings", {}))
        self.a = Target(base, Stub((A, A2)), Rng("moon"))
        self.b = Target(settings_b, Stub((B,)), Rng("sun"))
        pools = []
        if certs:
            for own, who, whom in ((own_a, "moon", "sun"), (own_b, "sun", "moon")):
                own.setdefault("local", LocalAuth(AuthClass.PUBKEY, parse_identity(who)))
                own.setdefault("remote", RemoteAuth(AuthClass.PUBKEY, parse_pattern(whom)))
        if eap:
            user = parse_identity("carol")
            own_a["local"] = LocalAuth(AuthClass.EAP, parse_identity("moon"), eap_type=eap, eap_id=user)
            own_b["remote"] = RemoteAuth(AuthClass.EAP, parse_pattern("moon"), eap_id=ANY_IDENTITY)
            own_b["remote"] = replace(own_b["remote"], eap_type=0 if eap == EapType.MSCHAPV2 else eap)
        if vip:
            own_a["vips"] = (IPv4Address(0),)
            own_b["pools"] = ("pool",)
            pools = [PoolConfig("pool", ip_address("10.9.0.1"), ip_address("10.9.9.99"))]
        self.ca = connection("moon", "sun", A, B, **{**more, **own_a})
        self.cb = connection("sun", "moon", B, "%any", **{**more, **own_b})
        self.a.load([self.ca], cert_credentials(MOON, EC_KEY) if certs else psk_credentials())
        self.b.load([self.cb], cert_credentials(SUN, EC384_KEY) if certs else psk_credentials(), pools)

    def initiate(self, *, pump: bool = True) -> Lab:
        """IKE_SA_INIT, and all that follows unless ``pump`` is False."""
        self.a.initiate(self.ca, [(self.ca.children[0], 0)], Path(A, 500, B, 500), self.now)
        if pump:
            self.pump()
        return self

    def pump(self, limit: int = 1000) -> None:
        """Deliver until nobody has anything to say, or that many datagrams."""
        for number, (target, data, path) in enumerate(self.flow()):
            if number >= limit:
                return
            self.deliver(target, data, path)

    def flow(self) -> Iterator[tuple[Target, bytes, Path]]:
        """Datagrams in turn; each is to be delivered, or not, by the caller."""
        waiting: deque[tuple[Target, bytes, Path]] = deque()
        while True:
            for me, other in ((self.a, self.b), (self.b, self.a)):
                name = "moon" if me is self.a else "sun"
                self.events += [(name, event) for event in me.drain()]
                for data, path, _ in me.datagrams_to_send():
                    self.sent.append(data)
                    back = Path(path.remote, path.remote_port, path.local, path.local_port)
                    waiting.append((other, data, back))
            if not waiting:
                return
            yield waiting.popleft()

    def deliver(self, target: Target, data: bytes, path: Path) -> None:
        self.now += 0.01
        if self.tap is not None:
            self.tap(target, data, path, self.now)
        target.receive_datagram(data, path, self.now)

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        for engine in (self.a, self.b):
            engine.handle_timer(self.now)
        self.pump()

    @staticmethod
    def sa(engine: IkeEngine) -> IkeSa:
        """The IKE_SA in use."""
        (found,) = [sa for sa in engine.sas.values() if sa.established and not sa.quiet]
        return found


# -- messages


def whose(engine: IkeEngine, header: Header) -> IkeSa | None:
    """The IKE_SA that a datagram is for."""
    sa = engine.by_spi.get(header.spi_r if header.initiator else header.spi_i)
    return sa if sa is not None and sa.in_cipher is not None else None


def unseal(engine: IkeEngine, data: bytes) -> tuple[int, bytes]:
    """First payload type and content of a protected message to an engine."""
    header = parse_header(data)
    sa = whose(engine, header)
    assert sa is not None
    assert sa.in_cipher is not None
    part = find_encrypted(header, data)
    return part.first, sa.in_cipher.open(data[: part.offset], data[part.offset :])


_sealed = 1 << 40


def seal(
    sa: IkeSa,
    first: int,
    content: bytes,
    exchange: int,
    message_id: int,
    *,
    response: bool = False,
    fragment: tuple[int, int] | None = None,
    cipher: Any = None,
    initiator: bool | None = None,
) -> bytes:
    """A message to an IKE_SA, as its authenticated peer could send it."""
    global _sealed
    _sealed += 1
    cipher = cipher or sa.in_cipher
    theirs = not sa.initiator if initiator is None else initiator
    flags = (FLAG_INITIATOR if theirs else 0) | (FLAG_RESPONSE if response else 0)
    size = len(content) + cipher.overhead(len(content))
    head = emit_encrypted_header(sa.spi_i, sa.spi_r, exchange, flags, message_id, first, size, fragment)
    return head + bytes(cipher.seal(head, content, _sealed, sa.core.rng))


Raw = tuple[int, int, bytes]
"type, flags octet, body of a payload"


def split_raw(first: int, content: bytes) -> list[Raw]:
    """A well-formed chain of payloads."""
    found: list[Raw] = []
    at = 0
    while first:
        size = int.from_bytes(content[at + 2 : at + 4], "big")
        found.append((first, content[at + 1], content[at + 4 : at + size]))
        first, at = content[at], at + size
    assert at == len(content)
    return found


def join_raw(payloads: list[Raw]) -> tuple[int, bytes]:
    """The chain again: type of the first, octets."""
    content = b""
    following = 0
    for kind, flags, body in reversed(payloads):
        content = bytes((following, flags)) + (4 + len(body)).to_bytes(2, "big") + body + content
        following = kind
    return following, content


# -- judging

#: N(INVALID_IKE_SPI) and N(QUICK_CRASH_DETECTION) with a token of 32 octets
STRANGER_ANSWER_MAX = HEADER_LEN + 8 + 8 + 32


def consistent(engine: Target) -> None:
    """What must hold after any message: all indexes agree, no timer or SPI is left of what is gone."""
    spis = set()
    for uid, sa in engine.sas.items():
        assert sa.uid == uid
        assert sa.state is not IkeState.DESTROYING
        assert engine.by_spi.get(sa.spi_ours) is sa
        for child in sa.children.values():
            assert child.ike is sa
            spis.add(child.spi_in)
        spis |= {one.child.spi_in for one in sa.awaited.values() if hasattr(one, "child")}
        requests = [*sa.queue, *([sa.pending.request] if sa.pending else ())]
        spis |= {r.child.spi_in for r in requests if isinstance(r, CreateChild) and r.child is not None}
        if sa.auth is not None and sa.auth.child is not None:
            spis.add(sa.auth.child.spi_in)
    for kept in engine._retries.values():
        spis |= {request.child.spi_in for request in kept if request.child is not None}
    for key in engine.timers._live:
        assert isinstance(key, tuple)
        assert key[1] in engine.sas or key[1] in engine.children, f"timer {key} of nobody"
    assert engine.host.reserved | engine.host.installed <= spis, "an SPI is lost"
    assert len(engine.half_open) == len(engine._half_open)
    assert set(engine._half_open) <= set(engine.sas)
    for spi, sa in engine.by_spi.items():
        assert sa.uid in engine.sas, f"{spi.hex()} leads to what is gone"


class Attack:
    """Hostile messages to one engine in one state."""

    def __init__(self, target: Target, path: Path, now: float) -> None:
        target.drain()
        target.datagrams_to_send()
        self.target, self.path, self.now = target, path, now
        self.before = Checkpoint(target)
        self.genuine = {data for sa in target.sas.values() for data in sa.response}
        self.genuine |= {data for _, kept in target.closed.values() for data in kept}
        self.established = {uid for uid, sa in target.sas.items() if sa.established_at}

    def _send(self, data: bytes) -> list[bytes]:
        with credentials_stay(self.target):
            self.target.receive_datagram(data, self.path, self.now)
        return [out for out, *_ in self.target.datagrams_to_send()]

    def stranger(self, data: bytes, path: Path | None = None) -> list[bytes]:
        """What does not authenticate changes nothing, and hears at most one thing, not longer than it was itself.

        Answers about unknown SPIs and versions may be somewhat longer: there are at most STRANGERS_PER_S of them.
        """
        if path is not None:
            self.target.receive_datagram(data, path, self.now)
            out = [found for found, *_ in self.target.datagrams_to_send()]
        else:
            out = self._send(data)
        changes = self.before.changes()
        assert not changes, (changes, data.hex())
        assert len(out) <= 1, out
        for reply in out:
            header = parse_header(reply)
            assert header.response
            assert not parse_header(data).response
            if self.target._strangers:
                assert header.next_payload == PayloadType.NOTIFY
                assert len(reply) <= STRANGER_ANSWER_MAX
            else:
                assert len(reply) <= len(data)
                assert reply in self.genuine
        if self.target._strangers:
            # the limit on answers is tested elsewhere; here everyone may speak
            self.target._strangers = 0
        return out

    def opening(self, data: bytes) -> list[bytes]:
        """IKE_SA_INIT in either direction: nobody is authenticated by it."""
        out = self._send(data)
        target = self.target
        assert not any(sa.established_at for uid, sa in target.sas.items() if uid not in self.established)
        response = parse_header(data).response if len(data) >= HEADER_LEN and _sized(data) else False
        if not response:
            assert len(out) <= 1
            assert sum(map(len, out)) <= len(data) or self._proved(data), (len(out[0]), len(data))
        else:
            assert sum(map(len, out)) <= 65535
        target.drain()
        consistent(target)
        self.before.restore()
        return out

    def _proved(self, data: bytes) -> bool:
        """Whether a request comes with a cookie of ours, so that its sender's address is its own."""
        header = parse_header(data)
        payloads = parse_payloads(header.next_payload, data[HEADER_LEN:], header.exchange, False)
        cookies = [p.data for p in payloads if isinstance(p, NotifyPayload) and p.notify == NotifyType.COOKIE]
        nonce = next(p.data for p in payloads if isinstance(p, NoncePayload))
        jar, address = self.target.cookies, self.path.remote
        return any(jar.verify(self.now, cookie, nonce, address, header.spi_i) for cookie in cookies)

    def insider(self, data: bytes, auth: frozenset[bytes] = frozenset()) -> list[bytes]:
        """A message with a good ICV: at most one response, no SA without AUTH, everything as it should be."""
        out = self._send(data)
        target = self.target
        header = parse_header(data)
        replies = [found for found in map(parse_header, out) if found.response]
        assert len({(found.exchange, found.message_id) for found in replies}) <= 1
        if replies:
            assert not header.response
            assert (replies[0].exchange, replies[0].message_id) == (header.exchange, header.message_id)
        target.drain()
        consistent(target)
        for uid, sa in target.sas.items():
            if sa.established_at and uid not in self.established:
                # a successor takes over from what is authenticated; all others need the proof that was really given
                assert header.exchange != ExchangeType.IKE_AUTH or auth, "nobody proved anything"
                if header.exchange == ExchangeType.IKE_AUTH:
                    shown = proof_of(target, data, self.before)
                    # at the end of EAP nobody heeds identities: those of the beginning are in AUTH. The last response
                    # to several authentications proves nothing, the first one has done that
                    assert any(
                        shown == one or one == b"nonenone" or (one[:4] == b"none" and shown.endswith(one[4:]))
                        for one in auth
                    )
                    return out
        self.before.restore()
        return out


def _sized(data: bytes) -> bool:
    return int.from_bytes(data[24:28], "big") == len(data)


def proof_of(engine: Target, data: bytes, before: Checkpoint) -> bytes:
    """Identity and AUTH in an IKE_AUTH message, of the state before it came."""
    before.restore()
    first, content = unseal(engine, data)
    return proof_in(first, content, response=parse_header(data).response)


def proof_in(first: int, content: bytes, *, response: bool) -> bytes:
    """What makes the sender the one it is: its first identity, and the first AUTH."""
    try:
        payloads = parse_payloads(first, content, ExchangeType.IKE_AUTH, True)
    except ParseError:
        return b""
    kind = PayloadType.IDR if response else PayloadType.IDI
    identity = next((p.body() for p in payloads if isinstance(p, IdPayload) and p.type == kind), b"none")
    auth = next((p for p in payloads if isinstance(p, AuthPayload)), None)
    return identity + (bytes((auth.method,)) + auth.data if auth is not None else b"none")
