"""Handshakes with ourselves, a few when a daemon has begun: the first peers find an engine that has done it before.

Python makes code faster that has run some times (PEP 659), and the caches of OpenSSL and of ours are empty at first, so
that the first dozen handshakes would take longer. It is a test as well: where it fails, nobody could connect.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address

from ipsec.crypto.identity import parse_identity, parse_pattern
from ipsec.crypto.proposals import parse_proposals
from ipsec.errors import IpsecError
from ipsec.ike.config import AuthClass, ChildConfig, Connection, IkeSettings, LocalAuth, RemoteAuth, SelectorTemplate
from ipsec.ike.credentials import Credentials, SharedSecret
from ipsec.ike.engine import IkeEngine
from ipsec.ike.events import Failed, Outgoing, Path
from ipsec.ike.host import Unconnected
from ipsec.wire.iana import Protocol

log = logging.getLogger(__name__)

#: Python looks at what eight calls have done
HANDSHAKES = 16
#: between two of them, which take the loop some 2 ms each
PAUSE_S = 0.005

# RFC 5737, RFC 2606: nobody else has these
_OUTER = IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2")
_INNER = IPv4Address("198.51.100.1"), IPv4Address("198.51.100.2")
_NAMES = "a.invalid", "b.invalid"


async def rehearse() -> None:
    """Do it, a handshake in each turn of the loop."""
    a, b = _engine(0), _engine(1)
    for _ in range(HANDSHAKES):
        try:
            with _unheard():
                _come_and_go(a, b, asyncio.get_running_loop().time())
        except IpsecError as error:
            log.warning("IKE fails with our own default proposals: %s", error)
            return
        await asyncio.sleep(PAUSE_S)


def _engine(side: int) -> IkeEngine:
    engine = IkeEngine(IkeSettings(qcd_secret=secrets.token_bytes(32)), Unconnected(), secrets.token_bytes)
    ours, theirs = (SelectorTemplate((_INNER[end], _INNER[end])) for end in (side, 1 - side))
    connection = Connection(
        name="rehearsal",
        local_addrs=(str(_OUTER[side]),),
        remote_addrs=(str(_OUTER[1 - side]),),
        proposals=parse_proposals(["default"], Protocol.IKE),
        local=LocalAuth(AuthClass.PSK, parse_identity(_NAMES[side])),
        remote=RemoteAuth(AuthClass.PSK, parse_pattern(_NAMES[1 - side])),
        children=(ChildConfig("net", parse_proposals(["default"], Protocol.ESP), (ours,), (theirs,)),),
    )
    # no peer can ever use it
    engine.load([connection], Credentials(secrets=[SharedSecret(b"rehearsal")]))
    return engine


def _come_and_go(a: IkeEngine, b: IkeEngine, now: float) -> None:
    """An IKE_SA with a CHILD_SA, made and closed. IpsecError if it is not."""
    (connection,) = a.table.by_name.values()
    sa = a.initiate(connection, [(connection.children[0], 0)], Path(_OUTER[0], 500, _OUTER[1], 500), now)
    failures = _carry(a, b, now)
    if not sa.children_up():
        raise IpsecError("; ".join(failures) or "the reason is not known")
    a.terminate_ike(sa, now)
    _carry(a, b, now)


def _carry(a: IkeEngine, b: IkeEngine, now: float) -> list[str]:
    """Hand over datagrams until there are none, ``a`` begins. What has failed."""
    failures: list[str] = []
    sender, receiver = a, b
    while sent := _turn(sender, failures):
        for data, path, _ in sent:
            receiver.receive_datagram(data, Path(path.remote, path.remote_port, path.local, path.local_port), now)
        sender, receiver = receiver, sender
    return failures


def _turn(engine: IkeEngine, failures: list[str]) -> list[Outgoing]:
    while (event := engine.next_event()) is not None:
        if isinstance(event, Failed):
            failures.append(event.problem.failure.reason)
    sent = engine.datagrams_to_send()
    engine.catch_up()
    return sent


@contextmanager
def _unheard() -> Iterator[None]:
    """What the engine says in a rehearsal is not for the log, except of a bug. What other threads say is."""
    logger = logging.getLogger("ipsec.ike")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
