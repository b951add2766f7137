"""A further child of an IKE_SA that ends before the child is there: whoever wants it to be up tries again."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, cast

import pytest

from ipsec.backend.base import Acquire, Datagram
from ipsec.config import load_text
from ipsec.daemon.ike import IkeControl
from ipsec.daemon.vici import ViciControl
from ipsec.vici.actions import _Attempt
from ipsec.wire.iana import ExchangeType
from tests.daemon.test_ike import Pair, run, text, until

NOBODY = cast(Any, None)


def two(ours: str, theirs: str, near: str, far: str, first: str, second: str) -> str:
    """A connection with the children n and m."""
    selectors = "local_ts = 10.{}.0.0/16\nremote_ts = 10.{}.0.0/16\n"
    n, m = (selectors.format(f"{near}{net}", f"{far}{net}") for net in (0, 1))
    return text(ours, theirs, f"{n}{first} }}\nm {{ esp_proposals = aes128gcm16\n{m}{second}")


class Lab:
    """a has n up, and m is asked for, of which b hears nothing: a ``start_action``, a trap or a command wants it."""

    def __init__(self, who: str) -> None:
        self.who = who
        action = who if who != "initiate" else "none"
        self.config = two("a", "b", "1", "2", "start_action = start", f"start_action = {action}")
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
    """A start action, a trap, a command; ``closed`` is by the peer."""
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
        assert not a.retries.due
        assert bool(lab.backend.rearmed) == (who == "trap")
        await lab.pair.stop()

    run(main())
    assert not [line for line in caplog.messages if "child m" in line]
