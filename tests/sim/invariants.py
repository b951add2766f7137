"""What must hold: of one host at any time, of two that have come to rest, of one that has ended."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

from ipsec.crypto.sk import SkCipher
from ipsec.ike.state import CHILD_UP
from tests.sim.host import SimHost
from tests.sim.link import Violation


def consistent(host: SimHost) -> None:
    """After every step: the engine's idea of the data path is the data path's."""
    for sa in host.engine.sas.values():
        for child in sa.children.values():
            has = child.spi_in in host.inbound and host.inbound[child.spi_in].child is child
            if has != child.has_in or ((child.spi_out, child.uid) in host.outbound) != child.has_out:
                raise Violation(f"{host.name}: {child!r} and the data path differ")
            if child.ike is not sa:
                raise Violation(f"{host.name}: {child} belongs to {child.ike}, and {sa} has it")
            if child.uid in host.up and child.state in CHILD_UP and not child.has_out:
                raise Violation(f"{host.name}: {child} is up and nothing can be sent through it")
    if len(host.inbound) != sum(c.has_in for sa in host.engine.sas.values() for c in sa.children.values()):
        raise Violation(f"{host.name}: the data path has SAs that the engine does not know")


def agree(one: SimHost, other: SimHost, children: int = 1) -> None:
    """I3 and I4: after everything has come to rest, both ends have the same SAs, and one way to send."""
    ikes = [sorted((sa.spi_i, sa.spi_r) for sa in host.ikes) for host in (one, other)]
    if ikes[0] != ikes[1]:
        raise Violation(f"{one.name} has {one.ikes}, {other.name} has {other.ikes}")
    pairs = sorted((c.spi_in, c.spi_out) for c in one.children)
    mirrored = sorted((c.spi_out, c.spi_in) for c in other.children)
    if pairs != mirrored or len(pairs) != children:
        raise Violation(f"{one.name} has {one.children}, {other.name} has {other.children}")
    for host in (one, other):
        busy = [c for c in host.children if c.peer_rekey is not None or c.rekey_of is not None]
        if busy:
            raise Violation(f"{host.name}: {busy} still wait for something")
        if len(host.outbound) - len(host.children):
            raise Violation(f"{host.name}: {len(host.outbound)} outbound SAs for {host.children}")


def leaks(host: SimHost) -> None:
    """I8: after everything is closed, nothing is left."""
    engine = host.engine
    left = {
        "IKE_SAs": engine.sas,
        "CHILD_SAs": engine.children,
        "timers": list(engine.timers._live),
        "SPIs": engine.by_spi,
        "peers": engine.by_peer,
        "wanted": engine.by_wanted,
        "first messages": engine.init_requests,
        "half-open": engine._half_open,
        "retries": engine._retries,
        "waiting": engine._statuses,
        "ESP SPIs": host.reserved,
        "early packets": host.early,
        "inbound SAs": host.inbound,
        "outbound SAs": host.outbound,
        "up": host.up,
    }
    found = {name: what for name, what in left.items() if what}
    if found or len(engine.half_open):
        raise Violation(f"{host.name} leaves {found}")


def snapshot(host: SimHost) -> object:
    """What no unauthenticated datagram may change (I12)."""
    return [
        (sa.uid, sa.state, sa.message_id_in, sa.message_id_out, sa.pending, len(sa.queue), sa.path,
         [(child.uid, child.state) for child in sa.children.values()])
        for sa in host.engine.sas.values()
    ]  # fmt: skip


@contextmanager
def unique_ivs():  # type: ignore[no-untyped-def]
    """I6: no key seals twice with one IV, in all that happens inside."""
    seal = SkCipher.seal
    seen: set[tuple[bytes, bytes]] = set()
    names: dict[int, tuple[SkCipher, bytes]] = {}
    init = SkCipher.__init__

    def remember(self: SkCipher, suite: Any, encr_key: bytes, integ_key: bytes = b"") -> None:
        init(self, suite, encr_key, integ_key)
        names[id(self)] = self, encr_key

    def watched(self: SkCipher, aad: bytes, plaintext: bytes, counter: int, rng: Callable[[int], bytes]) -> bytes:
        body = seal(self, aad, plaintext, counter, rng)
        use = names[id(self)][1], body[: self.suite.iv_len]
        if use in seen:
            raise Violation("a key has sealed twice with one IV")
        seen.add(use)
        return body

    SkCipher.__init__, SkCipher.seal = remember, watched  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        SkCipher.__init__, SkCipher.seal = init, seal  # type: ignore[method-assign]
