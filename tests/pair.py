"""Two IKEv2 engines, moon and sun, on a virtual network with a virtual clock: what a seed does, it does again.

A ``World`` (``tests/sim/``) has ``SimHost``s, an engine each, and a network that loses, repeats, reorders and corrupts
datagrams, with NATs on the way. After every step everything that must always hold is looked at; what does not hold is
a ``Violation``.

Packets of the data path are values, not ciphertext: SPI, key and number. The keys are the real ones.
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

from ipsec.crypto.identity import parse_identity, parse_pattern
from ipsec.crypto.proposals import parse_proposals
from ipsec.ike.config import (
    AuthClass,
    ChildConfig,
    Connection,
    IkeSettings,
    LocalAuth,
    RemoteAuth,
    SelectorTemplate,
)
from ipsec.wire.iana import Protocol
from tests.sim.host import SimHost
from tests.sim.invariants import agree
from tests.sim.link import IpAddress, Link
from tests.sim.world import IN_FLIGHT_S, World

A = ip_address("192.0.2.1")
B = ip_address("192.0.2.2")
IKE = parse_proposals(["aes128gcm16-prfsha256-x25519"], Protocol.IKE)
ESP = parse_proposals(["aes128gcm16"], Protocol.ESP)
ESP_PFS = parse_proposals(["aes128gcm16-x25519"], Protocol.ESP)

#: networks behind moon and behind sun
LEFT = SelectorTemplate((ip_address("10.1.0.0"), ip_address("10.1.255.255")))
RIGHT = SelectorTemplate((ip_address("10.2.0.0"), ip_address("10.2.255.255")))


def connection(local: IpAddress, remote: IpAddress | str, who: str, whom: str, /, **more: Any) -> Connection:
    """One with a pre-shared key and no lifetimes, so that tests decide when something is replaced."""
    near, far = (LEFT, RIGHT) if who == "moon" else (RIGHT, LEFT)
    lifetimes = {"rekey_time": 0.0, "life_time": 0.0, "rand_time": 0.0}
    child = {"local_ts": (near,), "remote_ts": (far,), **lifetimes, **more.pop("child", {})}
    names = more.pop("children", ("net",))
    defaults: dict[str, Any] = {
        "name": "c",
        "local_addrs": (str(local),),
        "remote_addrs": (str(remote),),
        "proposals": IKE,
        "local": LocalAuth(AuthClass.PSK, parse_identity(who)),
        "remote": RemoteAuth(AuthClass.PSK, parse_pattern(whom)),
        "children": tuple(ChildConfig(**{"name": n, "esp_proposals": ESP, **child}) for n in names),
        "rekey_time": 0.0,
        "over_time": 0.0,
        "rand_time": 0.0,
        "mobike": False,
    }
    return Connection(**{**defaults, **more})


class Pair:
    """Two hosts, moon and sun. moon may be behind a NAT."""

    def __init__(
        self,
        seed: int | str = 0,
        *,
        link: Link | None = None,
        settings: IkeSettings | None = None,
        nat: bool = False,
        **more: Any,
    ) -> None:
        self.world = World(seed, link)
        base = settings or IkeSettings()
        self.a = self.world.host("moon", A, settings=replace(base, qcd_secret=b"moon" * 8))
        self.b = self.world.host("sun", B, settings=replace(base, qcd_secret=b"sun " * 8))
        own_a, own_b = more.pop("a", {}), more.pop("b", {})
        self.a.load(connection(A, B, "moon", "sun", **{**more, **own_a}))
        far = "%any" if nat else A
        self.b.load(connection(B, far, "sun", "moon", **{**more, **own_b}))
        self.nat = self.world.put_nat(self.a) if nat else None

    def up(self, who: SimHost | None = None) -> Pair:
        """Connect."""
        (who or self.a).initiate()
        self.world.settle()
        self.agree()
        return self

    def agree(self, children: int = 1) -> None:
        agree(self.a, self.b, children)

    def finish(self, children: int = 1, ikes: int = 1) -> None:
        """Come to rest, agree, carry a packet each way, close, and leave nothing."""
        self.world.settle()
        self.agree(children)
        assert len(self.a.ikes) == ikes, self.a.ikes
        before = self.world.delivered
        for host in (self.a, self.b):
            host.send_traffic()
        self.world.run(IN_FLIGHT_S)
        reqids = {c.reqid for c in self.a.children}, {c.reqid for c in self.b.children}
        assert self.world.delivered - before == sum(map(len, reqids))
        self.world.close()
