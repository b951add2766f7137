"""What a case does, one after the other. INITIATOR is end a, RESPONDER end b."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, Protocol

from tests.interop import wire
from tests.interop.gateway import Gateway, Side
from tests.interop.lab import INNER, OUTER, OUTER2, SECOND, WIRE, Lab, eventually, transfer
from tests.interop.wire import Wire

INITIATOR, RESPONDER = 0, 1


@dataclass
class Run:
    """A case at work."""

    lab: Lab
    ends: tuple[Gateway, Gateway]
    folder: Path
    values: dict[str, Any] = field(default_factory=dict)

    def wire(self) -> Wire:
        """What was recorded so far."""
        return wire.read(self.lab.recorder.frames())

    def established(self, end: int) -> list[dict[str, Any]] | None:
        """The IKE_SAs of an end that are up; None if it cannot be asked."""
        sas = self.ends[end].sas()
        return None if sas is None else [sa for sa in sas if sa["state"] == "ESTABLISHED"]


class Step(Protocol):
    """A frozen dataclass with its arguments."""

    def plan(self, ends: tuple[Gateway, Gateway]) -> None:
        """Before the daemons start: tell them what they will be asked for."""

    def __call__(self, run: Run) -> None:
        """Do it; AssertionError if it does not come out as it should."""

    def finish(self, run: Run) -> None:
        """After both daemons have ended: what the recording must show by then."""


class _Step:
    def plan(self, ends: tuple[Gateway, Gateway]) -> None:
        """Nothing to tell."""

    def finish(self, run: Run) -> None:
        """Nothing left to see."""


@dataclass(frozen=True)
class Initiate(_Step):
    """End a brings up a child, or is told that it cannot."""

    child: str = "net"
    up: bool = True
    by: int = INITIATOR

    def __call__(self, run: Run) -> None:
        done = run.ends[self.by].initiate(self.child, timeout=8.0 if self.up else 3.0)
        assert done is self.up or run.ends[self.by].kind != "charon", f"initiate {self.child}: {done}"
        assert done or not self.up, f"{self.child} did not come up"


@dataclass(frozen=True)
class Traffic(_Step):
    """Ping both ways, and TCP both ways at once. The addresses are those of lo, or as given."""

    versions: tuple[int, ...] = (4,)
    source: str = ""
    target: str = ""

    def pairs(self) -> list[tuple[str, str]]:
        """(a's address, b's address)."""
        if self.source:
            return [(self.source, self.target)]
        return [INNER[version] for version in self.versions]

    def __call__(self, run: Run) -> None:
        a, b = run.lab.ends
        for here, there in self.pairs():
            # a responder installs its SAs a moment after the initiator, or the other way round
            eventually(lambda h=here, t=there: a.ping(h, t), f"ping {here} -> {there}")  # type: ignore[misc]
            assert b.ping(there, here), f"ping {there} -> {here}"
            transfer(a, here, b, there)


@dataclass(frozen=True)
class NoTraffic(_Step):
    """Nothing gets through between these two."""

    source: str = INNER[4][0]
    target: str = INNER[4][1]

    def __call__(self, run: Run) -> None:
        assert not run.lab.a.ping(self.source, self.target, count=1, wait=0.3), f"{self.target} answers {self.source}"


@dataclass(frozen=True)
class VirtualTraffic(_Step):
    """Traffic from the virtual address that a got from this network."""

    network: str
    target: str

    def __call__(self, run: Run) -> None:
        network = ip_network(self.network)

        def addresses() -> list[str]:
            links = json.loads(run.lab.a.ip("-j", "addr", "show"))
            every = [info["local"] for link in links for info in link.get("addr_info", [])]
            return [address for address in every if ip_address(address) in network]

        eventually(addresses, f"a has an address of {network}")
        (address,) = addresses()
        Traffic(source=address, target=self.target)(run)


@dataclass(frozen=True)
class Postquantum(_Step):
    """Each end that can be asked says that a postquantum preshared key is used, or that none is."""

    used: bool = True

    def __call__(self, run: Run) -> None:
        for end in (INITIATOR, RESPONDER):
            for sa in run.established(end) or []:
                assert (sa.get("ppk") == "yes") is self.used, f"{end}: {sa}"


@dataclass(frozen=True)
class Suite(_Step):
    """Each end that can be asked names these algorithms: AES_GCM_16 128, PRF_HMAC_SHA2_256, CURVE_25519."""

    ike: str = ""
    child: str = ""

    def __call__(self, run: Run) -> None:
        for end in (INITIATOR, RESPONDER):
            for sa in run.established(end) or []:
                for wanted, values in ((self.ike, sa), (self.child, _children(sa)[-1])):
                    assert all(word in values.values() for word in wanted.split()), f"{wanted} is not in {values}"


def _children(sa: dict[str, Any]) -> list[dict[str, Any]]:
    return [child for child in sa["child-sas"].values() if child["state"] == "INSTALLED"]


@dataclass(frozen=True)
class User(_Step):
    """b knows a by EAP as this user, in this connection; both can be asked, whichever daemon it is."""

    user: str
    connection: str = "gw"

    def plan(self, ends: tuple[Gateway, Gateway]) -> None:
        for end in ends:
            end.plans.add("vici")

    def __call__(self, run: Run) -> None:
        (sa,) = run.established(RESPONDER) or [{}]
        # who is the same by IKE is not named twice
        found = sa.get("name"), sa.get("remote-eap-id", sa.get("remote-id"))
        assert found == (self.connection, self.user), sa
        (sa,) = run.established(INITIATOR) or [{}]
        assert "remote-eap-id" not in sa, sa


@dataclass(frozen=True)
class Selectors(_Step):
    """The negotiated selectors as a sees them."""

    local: tuple[str, ...]
    remote: tuple[str, ...]

    def __call__(self, run: Run) -> None:
        wanted = ((self.local, self.remote), (self.remote, self.local))
        for end, (local, remote) in enumerate(wanted):
            for sa in run.established(end) or []:
                child = _children(sa)[-1]
                assert (tuple(child["local-ts"]), tuple(child["remote-ts"])) == (local, remote), child


@dataclass(frozen=True)
class Count(_Step):
    """So many IKE_SAs and CHILD_SAs are up, as far as the ends can be asked."""

    ike: int | None
    child: int | None = None

    def __call__(self, run: Run) -> None:
        for end in (INITIATOR, RESPONDER):
            if run.ends[end].process is None or run.ends[end].sas() is None:
                continue

            def matches(end: int = end) -> bool:
                sas = run.established(end) or []
                children = sum(len(_children(sa)) for sa in sas)
                return self.ike in (None, len(sas)) and self.child in (None, children)

            eventually(matches, f"{self.ike} IKE_SAs, {self.child} CHILD_SAs: {run.ends[end].sas()}")


@dataclass(frozen=True)
class Log(_Step):
    """The log of one end, or of either (None), says something to this effect."""

    pattern: str
    end: int | None = None
    kind: str = ""
    "only if this daemon runs there; a pattern of charon's own words"

    def __call__(self, run: Run) -> None:
        ends = run.ends if self.end is None else (run.ends[self.end],)
        if self.kind and self.end is not None and run.ends[self.end].kind != self.kind:
            return

        def said() -> bool:
            return any(re.search(self.pattern, end.log()) for end in ends)

        eventually(said, f"{self.pattern!r} in the log of {'ab'[self.end] if self.end is not None else 'a or b'}")


@dataclass(frozen=True)
class Rekey(_Step):
    """One end replaces the CHILD_SA, the IKE_SA, or authenticates anew (reauth). Traffic goes on all the while."""

    what: str
    by: int = INITIATOR

    def plan(self, ends: tuple[Gateway, Gateway]) -> None:
        ends[self.by].plans.add(self.what)

    def __call__(self, run: Run) -> None:
        before = self._state(run)
        run.ends[self.by].rekey(self.what)
        lost = 0
        deadline = time.monotonic() + 6
        while self._state(run) <= before:
            lost += not run.lab.a.ping(*INNER[4], count=1)
            assert time.monotonic() < deadline, f"no {self.what} rekeying on the wire"
        assert lost == 0 or self.what == "reauth", f"{lost} pings were lost"

    def _state(self, run: Run) -> int:
        """How far it has come; more than before: it is done."""
        seen = run.wire()
        match self.what:
            case "child":
                return len(seen.spis(seen.ike[0].source))
            case "ike":
                return len(seen.of(wire.CREATE_CHILD_SA, response=True))
        return len(seen.of(wire.IKE_AUTH, response=True))

    def finish(self, run: Run) -> None:
        # the daemons took leave of each other in the new IKE_SA
        sas = run.wire().ike_sas()
        assert self.what == "child" or len(sas) > 1, f"nothing was ever sent in a new IKE_SA: {sas}"


@dataclass(frozen=True)
class AuthenticatedAnew(_Step):
    """a authenticates anew without being asked to here."""

    def __call__(self, run: Run) -> None:
        before = len(run.wire().of(wire.IKE_SA_INIT, response=True))
        eventually(lambda: len(run.wire().of(wire.IKE_SA_INIT, response=True)) > before, "another IKE_SA_INIT")


@dataclass(frozen=True)
class Delete(_Step):
    """One end closes the ``child`` or the ``ike`` SA; the other one hears of it."""

    what: str
    by: int = INITIATOR
    trap: bool = False
    "traffic would bring it back, so do not try"

    def __call__(self, run: Run) -> None:
        run.ends[self.by].terminate(self.what)
        # an ipsecd is told by a configuration without the child, which leaves its IKE_SA nothing to live for
        left = None if run.ends[self.by].kind == "ipsecd" else 1
        Count(left if self.what == "child" else 0, 0)(run)
        if not self.trap:
            NoTraffic()(run)


@dataclass(frozen=True)
class Kill(_Step):
    """A daemon dies without a word."""

    end: int

    def __call__(self, run: Run) -> None:
        run.ends[self.end].kill()


@dataclass(frozen=True)
class Restart(_Step):
    """A daemon that was killed comes back."""

    end: int

    def __call__(self, run: Run) -> None:
        run.ends[self.end].start()


@dataclass(frozen=True)
class Reconfigure(_Step):
    """One end gets another configuration while it runs."""

    end: int
    side: Side

    def __call__(self, run: Run) -> None:
        run.ends[self.end].change(self.side)


@dataclass(frozen=True)
class Move(_Step):
    """The address of a goes away; it has another one on the same wire."""

    def __call__(self, run: Run) -> None:
        run.lab.a.ip("addr", "add", f"{SECOND}/24", "dev", WIRE)
        time.sleep(0.2)  # else both changes are one event
        run.lab.a.ip("addr", "del", f"{OUTER[4][0]}/24", "dev", WIRE)
        eventually(lambda: run.wire().spis(SECOND) or self._send(run), f"ESP from {SECOND}")

    @staticmethod
    def _send(run: Run) -> bool:
        run.lab.a.ping(*INNER[4], count=1)
        return False


@dataclass(frozen=True)
class CutWire(_Step):
    """One end takes the wire in use down; the tunnel goes on over the other one."""

    end: int

    def __call__(self, run: Run) -> None:
        run.lab.ends[self.end].ip("link", "set", WIRE, "down")
        _moves_to_the_other_wire(run)


@dataclass(frozen=True)
class Silence(_Step):
    """What a sends on the wire in use gets lost; nobody sees why."""

    def __call__(self, run: Run) -> None:
        nobody = "02:00:00:00:00:99"
        run.lab.a.ip("neigh", "replace", OUTER[4][1], "lladdr", nobody, "dev", WIRE, "nud", "permanent")
        _moves_to_the_other_wire(run)


def _moves_to_the_other_wire(run: Run) -> None:
    def moved() -> bool:
        run.lab.a.ping(*INNER[4], count=1, wait=0.3)
        seen = run.wire()
        return all(seen.spis(address) for address in OUTER2)

    eventually(moved, f"ESP between {' and '.join(OUTER2)}", timeout=30.0)


@dataclass(frozen=True)
class HalfOpen(_Step):
    """Somebody sends b the first message of ``count`` IKE_SAs and never goes on."""

    count: int = 3

    def __call__(self, run: Run) -> None:
        with run.lab.a.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind((OUTER[4][0], 0))
            sock.settimeout(2)
            for number in range(self.count):
                sock.sendto(_first_message(number), (OUTER[4][1], 500))
                sock.recv(4096)


def _first_message(number: int) -> bytes:
    """HDR, SAi1, KEi, Ni for aes128gcm16-prfsha256-x25519 (RFC 7296 section 1.2), as plain octets."""
    transforms = ("0300000c01000014800e0080", "0300000802000005", "000000080400001f")
    body = bytes.fromhex("".join(transforms))
    proposal = bytes([0, 0, 0, len(body) + 8, 1, 1, 0, 3]) + body
    value = bytes([9]) + bytes(30) + bytes([number + 1])
    payloads = _generic(34, proposal) + _generic(40, bytes.fromhex("001f0000") + value) + _generic(0, bytes([7] * 32))
    header = (number + 1).to_bytes(8, "big") + bytes(8) + bytes([33, 0x20, 34, 0x08]) + bytes(4)
    return header + (28 + len(payloads)).to_bytes(4, "big") + payloads


def _generic(following: int, body: bytes) -> bytes:
    return bytes([following, 0]) + (len(body) + 4).to_bytes(2, "big") + body


@dataclass(frozen=True)
class OnWire(_Step):
    """Something that the recording must show, or must not."""

    what: str
    shows: bool = True

    def __call__(self, run: Run) -> None:
        assert bool(SIGNS[self.what](run.wire())) is self.shows, f"{self.what}: {run.wire().ike}"


#: what to look for on the wire
SIGNS: dict[str, Callable[[Wire], object]] = {
    "cookie": lambda seen: [m for m in seen.of(wire.IKE_SA_INIT, response=True) if wire.COOKIE in m.notifies],
    "invalid key exchange": lambda seen: [
        m for m in seen.of(wire.IKE_SA_INIT, response=True) if wire.INVALID_KE_PAYLOAD in m.notifies
    ],
    "request fragments": lambda seen: [m for m in seen.of(wire.IKE_AUTH, response=False) if m.first == wire.SKF],
    "response fragments": lambda seen: [m for m in seen.of(wire.IKE_AUTH, response=True) if m.first == wire.SKF],
    "CREATE_CHILD_SA": lambda seen: seen.of(wire.CREATE_CHILD_SA),
    "keepalive": lambda seen: seen.keepalives,
    "port 500 after IKE_SA_INIT": lambda seen: [
        m for m in seen.ike if m.exchange != wire.IKE_SA_INIT and m.source_port == 500
    ],
}


@dataclass(frozen=True)
class Wait(_Step):
    """Until the recording shows it."""

    what: str
    timeout: float = 5.0

    def __call__(self, run: Run) -> None:
        eventually(lambda: SIGNS[self.what](run.wire()), self.what, timeout=self.timeout)
