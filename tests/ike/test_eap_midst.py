"""What comes between the first message of IKE_AUTH with EAP, or with several rounds, and the last."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from ipsec.ike.config import IkeSettings, LocalAuth, RemoteAuth
from ipsec.ike.events import IkeUp
from tests.ike.test_eap import (
    KEY,
    KEY_THERE,
    USER,
    USER_THERE,
    in_rounds,
    with_tls,
)
from tests.pair import Pair

# -- initiator: the answers stop, and it begins again


def goes_silent(monkeypatch: pytest.MonkeyPatch, pair: Pair, messages: int) -> None:
    """sun's datagrams are lost, but for so many, until moon begins again."""
    send: Callable[..., None] = pair.b.engine.send
    restart: Callable[..., None] = pair.a.engine.restart
    left = [messages]

    def sent(*datagram: Any) -> None:
        left[0] -= 1
        if left[0] >= 0:
            send(*datagram)

    def again(*arguments: Any) -> None:
        left[0] = 1000
        restart(*arguments)

    monkeypatch.setattr(pair.b.engine, "send", sent)
    monkeypatch.setattr(pair.a.engine, "restart", again)


@pytest.mark.parametrize("messages", range(1, 6))
@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        pytest.param((USER,), (USER_THERE,), id="EAP"),
        pytest.param((KEY, USER), (KEY_THERE, USER_THERE), id="key, EAP"),
        pytest.param((USER, KEY), (USER_THERE, KEY_THERE), id="EAP, key"),
        pytest.param((), (), id="alone"),
    ],
)
def test_keyingtries(
    monkeypatch: pytest.MonkeyPatch, mine: Sequence[LocalAuth], theirs: Sequence[RemoteAuth], messages: int
) -> None:
    """It begins with the first round, and with nothing that the peer has said before."""
    pair = in_rounds(mine, theirs) if mine else with_tls(alone=True)
    pair.a.connections["c"] = replace(pair.a.connections["c"], keyingtries=2)
    pair.a.engine.settings = IkeSettings(retransmit_tries=1, retransmit_timeout=1.0)
    goes_silent(monkeypatch, pair, messages)
    pair.a.initiate()
    pair.world.run(60)
    assert pair.a.events(IkeUp)
    assert pair.a.ike.tries_left == 1
    # what sun has of the first try is gone by now
    pair.finish()

