"""A bug costs the IKE_SA it happens in, and nothing else.

An exception is raised at every call that the engine makes while it handles a message or a timer, at one after the
other. Whatever it hits, it does not leave the engine, the IKE_SA of somebody else goes on, a new one can be made, and
in the end nothing is left of the one that was hit.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from inspect import CO_GENERATOR
from pathlib import Path as FilePath
from types import FrameType
from typing import Any

import pytest

import ipsec
from ipsec.crypto.identity import parse_identity, parse_pattern
from ipsec.ike.config import AuthClass, LocalAuth, RemoteAuth
from ipsec.ike.credentials import Authority, Credentials, PrivateKey, SharedSecret
from ipsec.ike.engine import IkeEngine
from ipsec.ike.events import Path
from ipsec.ike.state import IkeState
from tests.crypto.pki import EC_KEY
from tests.ike.hostile import (
    A2,
    ESP_PFS,
    IKE_CBC,
    MOON,
    ROOT,
    SECRET,
    B,
    Checkpoint,
    Lab,
    Rng,
    Stub,
    Target,
    connection,
)

CODE = str(FilePath(ipsec.__file__).parent)
#: "in every handler": at least that many places
SITES_LEAST = 500

#: what comes before the net of a timer or command, and the net itself
NETS = ("Timers.due", "Registry.go_on", "IkeEngine.contained")

Site = tuple[str, int, str]
"file and line that calls, and what is called"


class Injected(Exception):
    """A bug."""


class Tracer:
    """Counts the calls inside the engine, and lets one of them fail."""

    def __init__(self, fail: Callable[[Site, int], bool] | None = None) -> None:
        self.sites: list[Site] = []
        self.fail = fail
        self.failed = False

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        code, caller = frame.f_code, frame.f_back
        if event != "call" or self.failed or caller is None or not _ours(frame) or not _ours(caller):
            return
        # a generator may be called to be closed, where nobody hears of an exception
        if code.co_qualname in NETS or code.co_flags & CO_GENERATOR or _contains(caller):
            return
        site = caller.f_code.co_filename, caller.f_lineno, code.co_qualname
        self.sites.append(site)
        if self.fail is not None and self.fail(site, len(self.sites)):
            self.failed = True
            raise Injected("raised by the test")

    def run(self, what: Callable[[], object]) -> None:
        before = sys.gettrace()
        sys.settrace(self)
        try:
            what()
        finally:
            sys.settrace(before)


def _ours(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith(CODE)


def _contains(frame: FrameType | None) -> bool:
    """Whether a call is part of what is done about a bug, where there is no second net."""
    while frame is not None:
        if frame.f_code.co_name in ("_contain", "next_timer", "drain"):
            return True
        frame = frame.f_back
    return False


class Real(Target):
    """The engine as it is."""

    _contain = IkeEngine._contain


class Radius:
    """moon and carol are connected to sun; bugs happen in what moon sends."""

    def __init__(self, *, certs: bool = False, **more: Any) -> None:
        b = {"remote": RemoteAuth(AuthClass.ANY, parse_pattern("%any")), **more.pop("b", {})}
        own = {"dpd_delay": 30.0, "child": {"esp_proposals": ESP_PFS}, **more}
        a = {"local": LocalAuth(AuthClass.PUBKEY, parse_identity("moon"))} if certs else {}
        self.lab = lab = Lab(a=a, b=b, **own)
        self.vips = lab.ca.vips
        secrets, authorities = [SharedSecret(SECRET)], [Authority(ROOT.certificate)]
        lab.a.credentials = Credentials(secrets=secrets, private_keys=[PrivateKey(EC_KEY)], certificates=[MOON])
        lab.b.credentials = Credentials(secrets=secrets, authorities=authorities)
        for engine in (lab.a, lab.b):
            engine.__class__ = Real
        self.carol = self.peer("carol")
        self.talk()
        self.neighbour = next(iter(lab.b.sas.values()))
        for key in list(lab.b.timers._live):
            lab.b.timers.cancel(key)  # what comes due is moon's
        self.sites: dict[Site, int] = {}
        self.count = 0
        self.left: dict[str, list[Site]] = {}

    def peer(self, name: str) -> Target:
        """Somebody else, who connects."""
        engine = Target(self.lab.a.settings, Stub((A2,)), Rng(name))
        proposals = self.lab.ca.proposals
        child = {"esp_proposals": ESP_PFS}
        config = connection(name, "sun", A2, B, child=child, proposals=proposals, vips=self.vips)
        engine.load([config], Credentials(secrets=[SharedSecret(SECRET)]))
        engine.initiate(config, [(config.children[0], 0)], Path(A2, 500, B, 500), self.lab.now)
        return engine

    def talk(self) -> None:
        """carol and sun, until they have nothing to say; what sun has for others is lost."""
        engine, carol = self.lab.b, self.carol
        for _ in range(20):
            engine.drain()
            carol.drain()
            out = [(engine, d) for d in carol.datagrams_to_send()]
            out += [(carol, d) for d in engine.datagrams_to_send() if d.path.remote == A2]
            if not out:
                return
            for target, (data, path, *_) in out:
                back = Path(path.remote, path.remote_port, path.local, path.local_port)
                target.receive_datagram(data, back, self.lab.now)

    def probe(self, site: Site) -> None:
        """Is all well but for the IKE_SA that was hit?"""
        engine, now = self.lab.b, self.lab.now
        assert self.neighbour.state is IkeState.ESTABLISHED, site
        (theirs,) = self.carol.sas.values()
        before = theirs.message_id_out
        (child,) = theirs.children_up()
        self.carol.rekey_child(child, now)
        self.talk()
        assert theirs.message_id_out > before, site
        assert theirs.pending is None, site
        (fresh,) = theirs.children_up()
        assert fresh is not child, site
        # somebody new
        new = self.peer("dave")
        kept, self.carol = self.carol, new
        self.talk()
        self.carol = kept
        (made,) = new.sas.values()
        assert made.established, site
        assert len(made.children_up()) == 1, site
        self._wait(engine, site)

    def _wait(self, engine: Target, site: Site) -> None:
        """moon is not heard of again: what is there about it comes to its end."""
        others = {uid for uid, sa in engine.sas.items() if sa.path.remote == A2}
        for _ in range(2000):
            due = engine.next_timer()
            if due is None or not set(engine.sas) - others:
                break
            for sa in engine.sas.values():
                sa.last_in = due if sa.uid in others else sa.last_in
            engine.handle_timer(due)
            engine.drain()
            engine.datagrams_to_send()
        for uid, sa in engine.sas.items():
            if uid not in others:
                self.left.setdefault(repr(sa), []).append(site)

    def attack(self, act: Callable[[], None], sites: Callable[[list[Site]], Iterator[tuple[Site, int]]]) -> None:
        """Let calls fail in what ``act`` does to sun, one after the other."""
        engine = self.lab.b
        engine.drain()
        engine.datagrams_to_send()
        checkpoints = [Checkpoint(engine), Checkpoint(self.carol), Checkpoint(self.lab.a)]
        for _ in range(2):  # once for what is only done once, such as reading a certificate
            dry = Tracer()
            dry.run(act)
            engine.drain()
            engine.datagrams_to_send()
            for checkpoint in checkpoints:
                checkpoint.restore()
        for site, number in sites(dry.sites):
            tracer = Tracer(lambda _, count, number=number: count == number)  # type: ignore[misc]
            tracer.run(act)
            assert tracer.failed, site
            self.count += 1
            self.probe(site)
            for checkpoint in checkpoints:
                checkpoint.restore()

    def new_sites(self, found: list[Site]) -> Iterator[tuple[Site, int]]:
        """Places that have not been hit yet."""
        for number, site in enumerate(found, 1):
            if site not in self.sites:
                self.sites[site] = number
                yield site, number

    def tap(self, target: Target, data: bytes, path: Path, now: float) -> None:
        if target is self.lab.b:
            self.attack(lambda: target.receive_datagram(data, path, now), self.new_sites)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def everything(radius: Radius) -> None:
    """All exchanges, from both sides."""
    lab = radius.lab

    def ours(engine: Target) -> Any:
        return next(sa for sa in engine.sas.values() if sa.established and not sa.quiet and sa is not radius.neighbour)

    lab.initiate()
    lab.a.rekey_child(ours(lab.a).children_up()[0], lab.now)
    lab.pump()
    lab.b.rekey_child(ours(lab.b).children_up()[0], lab.now)
    lab.pump()
    lab.a.rekey_ike_sa(ours(lab.a), lab.now)
    lab.pump()
    lab.b.rekey_ike_sa(ours(lab.b), lab.now)
    lab.pump()
    lab.a.terminate_child(ours(lab.a).children_up()[0], lab.now)
    lab.pump()
    lab.a.terminate_ike(ours(lab.a), lab.now)
    lab.pump()


VARIANTS: dict[str, dict[str, Any]] = {
    "PSK": {},
    "certificates": {"certs": True, "vip": True, "mobike": True},
    "fragments": {"certs": True, "settings": {"fragment_size": 300, "cookie_threshold": 0}, "proposals": IKE_CBC},
}


def test_every_call_site() -> None:
    hit: set[Site] = set()
    for more in VARIANTS.values():
        radius = Radius(**more)
        radius.sites = dict.fromkeys(hit, 0)
        radius.lab.tap = radius.tap
        everything(radius)
        hit |= set(radius.sites)
        assert not radius.left, {sa: sites[:3] for sa, sites in radius.left.items()}
    assert len(hit) >= SITES_LEAST


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_every_call() -> None:
    """The n-th call fails, for all n."""
    radius = Radius()

    def tap(target: Target, data: bytes, path: Path, now: float) -> None:
        if target is radius.lab.b:
            radius.attack(
                lambda: target.receive_datagram(data, path, now),
                lambda found: ((site, number) for number, site in enumerate(found, 1)),
            )

    radius.lab.tap = tap
    everything(radius)
    assert not radius.left


def test_timers() -> None:
    """The same for what comes due: retransmissions, liveness, half-open IKE_SAs, lifetimes."""
    radius = Radius(b={"rekey_time": 100.0, "child": {"esp_proposals": ESP_PFS, "rekey_time": 50.0, "life_time": 90.0}})
    lab = radius.lab
    lab.initiate()
    for _ in range(12):
        due = lab.b.next_timer()
        assert due is not None
        lab.now = due
        radius.attack(lambda: lab.b.handle_timer(lab.now), radius.new_sites)
        lab.b.handle_timer(lab.now)
        lab.b.drain()
        lab.b.datagrams_to_send()
    assert radius.count >= 40
