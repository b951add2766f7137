"""Alive, healthy, ready: what each needs, and that what is remembered is what there is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from ipsec.config import load_text
from ipsec.config.settings import Readiness
from ipsec.daemon import ike as ike_module
from ipsec.daemon.health import NAMED_MAX, SPARE, Health, Phase
from ipsec.ike.config import Action
from ipsec.ike.events import ChildUp
from tests.daemon.test_ike import A, B, Pair, run, until

SECOND = """more { esp_proposals = aes128gcm16
    local_ts = 10.1.0.0/16
    remote_ts = 10.3.0.0/16
    start_action = trap }"""
TWO = A.replace("children {", f"children {{ {SECOND}\n")


def observe(pair: Pair, readiness: Readiness = Readiness.UP) -> Health:
    health = Health(cast(Any, SimpleNamespace(running=True, device="ipsec0")), readiness)
    health.attach(pair.ends[0])
    health.phase = Phase.RUNNING
    return health


def really_down(pair: Pair) -> set[tuple[str, str]]:
    engine = pair.ends[0].engine
    return {
        (connection.name, child.name)
        for connection in engine.table.by_name.values()
        for child in connection.children
        if Action.START in child.start_action
        and not any(one.name == child.name for sa in engine.named(connection.name) for one in sa.children_up())
    }


@pytest.mark.parametrize("readiness", Readiness)
def test_ready_follows_the_children(readiness: Readiness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ike_module, "RETRY_S", 0.05)

    async def main() -> None:
        pair = Pair(TWO, B)
        health = observe(pair, readiness)
        engine = pair.ends[0].engine

        def looks_right() -> bool:
            assert readiness is Readiness.ONCE or set(health.down()) == really_down(pair)
            return health.ready().good

        assert health.ready().good, "nothing is loaded that could be missing"
        await pair.start()
        assert not looks_right()
        assert health.ready().problems == ("c/n is not up",)
        assert health.wanted() == {"c": ["n"]}
        await until(looks_right)

        (sa,) = pair.ends[0].established()
        engine.rekey_child(sa.children_up()[0], 0.0)
        pair.ends[0].turn()
        for _ in range(20):
            assert looks_right()
            await until(lambda: True)
        engine.rekey_ike_sa(sa, 0.0)
        pair.ends[0].turn()
        await until(lambda: looks_right() and pair.ends[0].established() != [sa])

        (sa,) = pair.ends[0].established()
        engine.terminate_ike(sa, 0.0)
        pair.ends[0].turn()
        await until(lambda: really_down(pair))
        assert looks_right() is (readiness is Readiness.ONCE)
        assert health.live().good
        assert health.healthy().good, "a peer's doing is no reason for a restart"

        await pair.ends[0].reload(load_text(TWO.replace("start_action = start", "start_action = none")))
        assert looks_right()
        await pair.ends[0].reload(load_text(TWO))
        await until(looks_right)
        await pair.stop()

    run(main())


@pytest.mark.parametrize("phase", [Phase.STARTING, Phase.STOPPING])
def test_not_ready_before_and_after(phase: Phase) -> None:
    health = Health(cast(Any, SimpleNamespace(running=False, device="ipsec0")))
    health.phase = phase
    assert health.ready().problems == (phase.value,)
    assert health.healthy().good
    assert health.live().good


def test_the_device_is_made_again() -> None:
    health = Health(cast(Any, SimpleNamespace(running=False, device="ipsec0")))
    health.phase = Phase.RUNNING
    assert health.healthy().problems == health.ready().problems == ("device ipsec0 is being made again",)
    assert health.live().good


@pytest.mark.parametrize("to_be_up", [True, False])
def test_the_device_was_taken_down(to_be_up: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """All tunnels are up then, and nothing passes."""
    up = {"ipsec0": True}
    monkeypatch.setattr("ipsec.daemon.health.is_up", up.__getitem__)
    health = Health(cast(Any, SimpleNamespace(running=True, device="ipsec0")), to_be_up=to_be_up)
    up["ipsec0"] = False
    assert health.healthy().good, "it is not up before the start"
    health.phase = Phase.RUNNING
    said = ("device ipsec0 was taken down: ip link set ipsec0 up",) if to_be_up else ()
    assert health.healthy().problems == health.ready().problems == said
    assert health.live().good
    up["ipsec0"] = True
    assert health.healthy().good


def test_there_is_no_device() -> None:
    health = Health(cast(Any, SimpleNamespace(running=True, device="none-such")), to_be_up=True)
    health.phase = Phase.RUNNING
    assert health.healthy().good


def test_not_all_are_named() -> None:
    async def main() -> None:
        child = "n{number} {{ remote_ts = 10.{number}.0.0/16\n start_action = start }}"
        many = "\n".join(child.format(number=number) for number in range(NAMED_MAX + 5))
        pair = Pair(A.replace("children {", f"children {{ {many}\n"), B)
        health = observe(pair)
        pair.backends[0].deliver = None
        await pair.start()
        problems = health.ready().problems
        assert len(problems) == NAMED_MAX + 1
        assert problems[-1] == "6 more are not up"
        await pair.stop()

    run(main())


@pytest.mark.parametrize("readiness", Readiness)
def test_names_are_not_kept_for_nobody(readiness: Readiness) -> None:
    """Nobody asks, and somebody loads ever other names."""

    async def main() -> None:
        pair = Pair(A, B)
        health = observe(pair, readiness)
        await pair.start()
        await until(lambda: pair.ends[0].established())
        for number in range(1000):
            ike = SimpleNamespace(name=f"somebody{number}")
            health._on_event(ChildUp(cast(Any, SimpleNamespace(ike=ike, name="n"))))
        assert len(health._changed) <= SPARE + 3
        assert len(health._seen) <= SPARE + 3
        assert health.ready().good
        await pair.stop()

    run(main())
