"""A further child of an IKE_SA that ends before the child is there: whoever wants it to be up tries again."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, cast

import pytest

from ipsec.backend.base import Acquire, Datagram
from ipsec.config import load_text
from ipsec.daemon import closing
from ipsec.daemon import ike as ike_module
from ipsec.daemon.ike import IkeControl
from ipsec.daemon.traffic import ChildName
from ipsec.daemon.vici import ViciControl
from ipsec.ike.errors import PeerError
from ipsec.vici.actions import _Attempt
from ipsec.wire.iana import ExchangeType, NotifyType
from tests.daemon.test_ike import Pair, run, text, until

NOBODY = cast(Any, None)


def two(ours: str, theirs: str, near: str, far: str, first: str, second: str) -> str:
    """A connection with the children n and m."""
    selectors = "local_ts = 10.{}.0.0/16\nremote_ts = 10.{}.0.0/16\n"
    n, m = (selectors.format(f"{near}{net}", f"{far}{net}") for net in (0, 1))
    return text(ours, theirs, f"{n}{first} }}\nm {{ esp_proposals = aes128gcm16\n{m}{second}")


@pytest.fixture(autouse=True)
def stop_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the other end does not know of any more is not waited for."""
    monkeypatch.setattr(closing, "STOP_S", 0.05)


class Lab:
    """a has n up, and m is asked for, of which b hears nothing: a ``start_action``, a trap or a command wants it."""

    def __init__(self, who: str, more: str = "") -> None:
        """``more`` of both children."""
        self.who = who
        action = who if who != "initiate" else "none"
        first, second = (f"start_action = {one}\n{more}" for one in ("start", action))
        self.config = two("a", "b", "1", "2", first, second)
        self.pair = Pair(self.config, two("b", "a", "2", "1", "", ""))
        self.a, self.b = self.pair.ends
        self.backend = self.pair.backends[0]
        self.vici = ViciControl(self.a, cast(Any, self.backend), NOBODY, NOBODY, NOBODY)
        self.attempt: asyncio.Task[bool] | None = None
        self.hears = False
        "b, of what a asks for"
        self.backend.deliver = self.deliver

    def deliver(self, datagram: Datagram) -> None:
        if self.hears or datagram.data[18] != ExchangeType.CREATE_CHILD_SA:
            self.b.on_datagram(datagram)

    async def ask(self) -> None:
        """Until that is under way."""
        await self.pair.start()
        await until(lambda: self.up(self.a) == ["n"])
        connection = self.a.engine.table.by_name["c"]
        if self.who == "trap":
            (policy,) = (policy for policy, guard in self.a.guards._by_policy.items() if guard.child.name == "m")
            self.a.on_event(Acquire(policy, self.backend.policies[policy].reqid))
        elif self.who == "initiate":
            attempt = _Attempt(cast(Any, self.vici), connection, connection.child("m"))
            self.attempt = asyncio.ensure_future(attempt.run())
        await until(lambda: self.a.engine.under_way(self.a.established()[0]) == {"n", "m"})
        self.backend.rearmed.clear()

    def close(self, end: IkeControl) -> None:
        end.engine.terminate_all(end.established(), asyncio.get_running_loop().time())
        end.turn()

    def up(self, end: IkeControl) -> list[str]:
        return sorted(child.name for sa in end.established() for child in sa.children_up())


@pytest.mark.parametrize("who", ["start", "trap", "initiate"])
@pytest.mark.parametrize("end", ["dead", "closed", "terminated", "reloaded"])
def test_who_hears_of_it(who: str, end: str, caplog: pytest.LogCaptureFixture) -> None:
    """A start action tries again by itself, a trap with the next packet, and a command has failed. ``closed`` is by the
    peer."""
    caplog.set_level(logging.INFO, "ipsec")

    async def main() -> None:
        lab = Lab(who)
        await lab.ask()
        a, b = lab.pair.ends
        if end == "closed":
            lab.close(b)
        elif end == "terminated":
            lab.close(a)
        elif end == "reloaded":
            await a.reload(load_text(lab.config.replace("start_action = start", "start_action = none")))
        await until(lambda: not a.engine.sas)
        if lab.attempt is not None:
            assert not await lab.attempt
        again = {("c", "m")} if (who, end) == ("start", "dead") else set()
        assert a.retries.due.keys() == again
        assert bool(lab.backend.rearmed) == (who == "trap")
        await lab.pair.stop()

    run(main())
    why = {"dead": ["no answer"], "closed": ["closed by the peer"]}.get(end, [])
    said = [line for line in caplog.messages if "child m" in line]
    assert said == [f"c[1]: child m is not made: {one}" for one in why]


def test_it_comes_back_once_with_what_comes_back_anyway(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other child's dpd_action has begun an IKE_SA already."""
    monkeypatch.setattr(ike_module, "RETRY_S", 0.05)

    async def main() -> None:
        lab = Lab("start", "dpd_action = start")
        await lab.ask()
        await until(lambda: not lab.a.established())
        lab.hears = True
        await until(lambda: lab.up(lab.a) == ["m", "n"] == lab.up(lab.b))
        await asyncio.sleep(0.2)
        assert lab.up(lab.a) == ["m", "n"] == lab.up(lab.b)
        assert len(lab.a.established()) == 1
        assert not lab.a.retries.due
        await lab.pair.stop()

    run(main())


def test_a_peer_that_never_answers_is_asked_ever_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time an IKE_SA dies of it, and the other child comes back at once."""
    monkeypatch.setattr(ike_module, "RETRY_S", 0.01)
    monkeypatch.setattr(ike_module, "RETRY_MAX_S", 0.04)
    waits: list[float] = []

    async def main() -> None:
        lab = Lab("start", "dpd_action = start")
        put_off = lab.a.retries.put_off

        def remember(name: ChildName, now: float, *, first: float, most: float) -> float | None:
            wait = put_off(name, now, first=first, most=most)
            if name == ("c", "m") and wait is not None:
                waits.append(wait)
            return wait

        monkeypatch.setattr(lab.a.retries, "put_off", remember)
        await lab.ask()
        await until(lambda: len(waits) == 4)
        await lab.pair.stop()

    run(main())
    assert waits == [0.01, 0.02, 0.04, 0.04]


@pytest.mark.parametrize("renew", ["rekey_ike_sa", "reauthenticate"])
def test_a_command_hears_of_it_also_where_another_ike_sa_took_over(renew: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PeerError(NotifyType.TEMPORARY_FAILURE, "busy")

    async def main() -> None:
        lab = Lab("initiate")
        lab.hears = True
        monkeypatch.setattr("ipsec.ike.dispatch.handle_create_child", refuse)
        await lab.ask()
        (old,) = lab.a.established()
        getattr(lab.a.engine, renew)(old, asyncio.get_running_loop().time())
        lab.a.turn()
        await until(lambda: old.quiet and lab.a.engine.under_way(lab.a.established()[-1]) == {"n", "m"})
        lab.close(lab.b)
        assert lab.attempt is not None
        assert not await asyncio.wait_for(lab.attempt, 5)
        await lab.pair.stop()

    run(main())
