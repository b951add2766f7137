"""IKEv2 of the demo in memory: two engines that know no socket hand each other their datagrams."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address

from ipsec.crypto.identity import parse_identity, parse_pattern
from ipsec.crypto.proposals import parse_proposals
from ipsec.ike.child_sa import ChildSa
from ipsec.ike.config import AuthClass, ChildConfig, Connection, IkeSettings, LocalAuth, RemoteAuth, SelectorTemplate
from ipsec.ike.credentials import Credentials, SharedSecret
from ipsec.ike.engine import IkeEngine
from ipsec.ike.events import InstallChild, Path, RemoveChild
from ipsec.ike.host import Unconnected
from ipsec.wire.iana import Protocol

IKE_PROPOSAL = "aes128gcm16-prfsha256-x25519"
ESP_PROPOSAL = "aes128gcm16-x25519"
NAMES = "a.example", "b.example"
OUTER = IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2")


@dataclass(frozen=True)
class DataPath:
    """Where CHILD_SAs go and SPIs come from."""

    install: Callable[[InstallChild], str | None]
    "why that cannot be, or None"
    remove: Callable[[RemoveChild], None]
    get_spi: Callable[[], int]
    free_spi: Callable[[int], None]


class Negotiator(Unconnected):
    """One end's IKE engine. It is the ``Host`` of the engine as well."""

    def __init__(self, side: int, psk: bytes, data_path: DataPath) -> None:
        super().__init__()
        self._data_path = data_path
        self.engine = IkeEngine(IkeSettings(), self, secrets.token_bytes)
        self._path = Path(OUTER[side], 500, OUTER[1 - side], 500)
        proposals = tuple(parse_proposals([ESP_PROPOSAL], Protocol.ESP))
        self.connection = Connection(
            name="demo",
            local_addrs=(str(OUTER[side]),),
            remote_addrs=(str(OUTER[1 - side]),),
            proposals=tuple(parse_proposals([IKE_PROPOSAL], Protocol.IKE)),
            local=LocalAuth(AuthClass.PSK, parse_identity(NAMES[side])),
            remote=RemoteAuth(AuthClass.PSK, parse_pattern(NAMES[1 - side])),
            children=(ChildConfig("net", proposals, (_network(side),), (_network(1 - side),)),),
        )
        self.engine.load([self.connection], Credentials(secrets=[SharedSecret(psk)]))

    def connect(self) -> None:
        """Begin."""
        self.engine.initiate(self.connection, [(self.connection.children[0], 0)], self._path, time.monotonic())

    def handle_events(self) -> None:
        """Keys go where they are used, first of all."""
        while (event := self.engine.next_event()) is not None:
            if isinstance(event, InstallChild):
                refused = self._data_path.install(event)
                if refused is not None:
                    self.engine.child_failed(event.child, refused, time.monotonic())
            elif isinstance(event, RemoveChild):
                self._data_path.remove(event)

    def child(self) -> ChildSa:
        """The CHILD_SA that is up. StopIteration if none is."""
        return next(child for sa in self.engine.sas.values() for child in sa.children_up())

    # -- ipsec.ike.host.Host

    def allocate_spi(self) -> int:
        """See Host."""
        return self._data_path.get_spi()

    def free_spi(self, spi: int) -> None:
        """See Host."""
        self._data_path.free_spi(spi)


def exchange(gateways: Sequence[Negotiator]) -> int:
    """Carry IKE messages until nobody has anything to say; how many there were."""
    messages = 0
    while True:
        before = messages
        for gateway, other in (gateways, gateways[::-1]):
            gateway.handle_events()
            for data, path, _ in gateway.engine.datagrams_to_send():
                messages += 1
                back = Path(path.remote, path.remote_port, path.local, path.local_port)
                other.engine.receive_datagram(data, back, time.monotonic())
            gateway.engine.catch_up()
        if messages == before:
            return messages


def negotiate(gateways: Sequence[Negotiator]) -> list[tuple[str, str]]:
    """Bring up an IKE_SA with a CHILD_SA; what there is to say about it."""
    begin = time.perf_counter()
    gateways[0].connect()
    messages = exchange(gateways)
    seconds = time.perf_counter() - begin
    child = gateways[0].child()
    return [
        ("IKE_SA", str(child.ike.proposal)),
        ("CHILD_SA", f"{child.proposal}, {_shown(child.local_ts)} === {_shown(child.remote_ts)}"),
        ("negotiated by both in", f"{messages} messages, {seconds * 1000:.1f} ms"),
    ]


def rekey(gateways: Sequence[Negotiator]) -> tuple[str, str]:
    """Replace the CHILD_SA, then the IKE_SA. AssertionError if that did not happen."""
    old = gateways[0].child()
    ike = old.ike.uid
    begin = time.perf_counter()
    gateways[0].engine.rekey_child(old, time.monotonic())
    messages = exchange(gateways)
    gateways[1].engine.rekey_ike_sa(gateways[1].child().ike, time.monotonic())
    messages += exchange(gateways)
    seconds = time.perf_counter() - begin
    new = gateways[0].child()
    assert new.spi_in != old.spi_in
    assert new.ike.uid != ike
    return "CHILD_SA and IKE_SA rekeyed in", f"{messages} messages, {seconds * 1000:.1f} ms"


def _network(side: int) -> SelectorTemplate:
    return SelectorTemplate((IPv4Address(f"10.{side + 1}.0.0"), IPv4Address(f"10.{side + 1}.255.255")))


def _shown(selectors: Sequence[object]) -> str:
    return " ".join(map(str, selectors))
