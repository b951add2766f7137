"""Commands that bring IKE_SAs and CHILD_SAs up and down: initiate, terminate, rekey, redirect, install, uninstall.

The words of ``errmsg`` are charon's, for there are programs that look for them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from ipaddress import ip_address, ip_network
from typing import Any

from ipsec.crypto.identity import parse_pattern
from ipsec.errors import ConfigError
from ipsec.ike.child_sa import ChildSa
from ipsec.ike.config import ChildConfig, Connection
from ipsec.ike.delete import DeleteChild, Liveness, is_to_go, staying
from ipsec.ike.events import ChildNotMade, ChildUp, Event, IkeDown, IkeRekeyed, IkeUp, IpAddress
from ipsec.ike.redirect import Gateway
from ipsec.ike.redirect import redirect as encode_redirect
from ipsec.ike.sa import IkeSa
from ipsec.ike.state import CHILD_UP, ChildState, IkeState
from ipsec.vici.codec import Message, text
from ipsec.vici.control import Control
from ipsec.vici.logs import relay
from ipsec.vici.server import Client, CommandError, Handler
from ipsec.wire.iana import Protocol
from ipsec.wire.payloads import DeletePayload

log = logging.getLogger(__name__)

#: a wait looks again after this even if no event came: an IKE_SA that another one stands for goes without one
LOOK_S = 0.2
#: more SAs than this are not looked at after every event
MANY = 100
_GONE = (ChildState.DELETED, ChildState.DESTROYING)
#: spellings of yes and no, in any case: those of swanctl.conf (ipsec.config.values), as charon has them here too
TRUE = ("yes", "true", "enabled", "1")
FALSE = ("no", "false", "disabled", "0", "")


class Actions:
    """The commands; see the module's text."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self.commands: dict[str, Handler] = {
            "initiate": self.initiate,
            "terminate": self.terminate,
            "rekey": self.rekey,
            "redirect": self.redirect,
            "install": self.install,
            "uninstall": self.uninstall,
        }

    # -- initiate

    async def initiate(self, client: Client, message: Message) -> Mapping[str, Any]:
        """Bring up a child, or the IKE_SA of a connection alone, and say whether that worked."""
        ike, child_name = text(message, "ike"), text(message, "child")
        if not ike and not child_name:
            raise CommandError("missing configuration name")
        what, name = ("CHILD_SA", child_name) if child_name else ("IKE_SA", ike)
        timeout = _timeout(message)
        found = self._find(ike, child_name)
        if found is None:
            raise CommandError(f"{what} config '{name}' not found")
        connection, child = found
        if child is not None and child.shunt:
            if not await self._control.install(connection, child):
                raise CommandError(f"establishing {what} '{name}' failed")
            return {"success": "yes"}
        if timeout is not None and timeout < 0:
            await self._control.connect(connection, child)
            return {"success": "yes"}
        with relay(client, _loglevel(message), connection.name):
            attempt = _Attempt(self._control, connection, child)
            try:
                up = await asyncio.wait_for(attempt.run(), timeout)
            except TimeoutError:
                waited = int((timeout or 0) * 1000)
                raise CommandError(f"{what} '{name}' not established after {waited}ms") from None
            finally:
                attempt.close()
        if not up:
            raise CommandError(f"establishing {what} '{name}' failed")
        # whoever hears this sends at once
        await self._control.routed()
        return {"success": "yes"}

    def _find(self, ike: str, child: str) -> tuple[Connection, ChildConfig | None] | None:
        """The connection, and the child in it; without ``ike`` the first that has such a child."""
        for connection in self._control.engine.table.by_name.values():
            if ike and connection.name != ike:
                continue
            if not child:
                return connection, None
            config = connection.child(child)
            if config is not None:
                return connection, config
        return None

    # -- terminate

    async def terminate(self, client: Client, message: Message) -> Mapping[str, Any]:
        """Close IKE_SAs or CHILD_SAs. ``force``: those whose peer does not answer in time are forgotten.

        What failed before is not tried again either, which would bring back an IKE_SA that is closed.
        """
        timeout, force = _timeout(message), truth(message, "force")
        ikes, children = self._select(message, "terminate", also=(ChildState.DELETING,) if force else ())
        matches = len(ikes) + len(children)
        names = {(one, "") for one in self._ending(ikes)}
        names |= {(one.ike.name, one.name) for one in children}
        if not (number(message, "ike-id") or number(message, "child-id")):
            names.add((text(message, "ike"), text(message, "child")))
        ended = sum(self._control.give_up(*one) for one in names)
        if not matches and ended:
            return {"success": "yes", "matches": 0, "terminated": 0}
        if not matches:
            raise CommandError("no matching SAs to terminate found", matches="0", terminated="0")
        name = ikes[0].name if ikes else children[0].ike.name
        with relay(client, _loglevel(message), name):
            now, engine = self._control.now(), self._control.engine
            engine.terminate_all(ikes, now)
            engine.terminate_children(children, now)
            self._control.turn()
            # one that was not up yet has failed by that
            for one in names:
                self._control.give_up(*one)
            if timeout is not None and timeout < 0:
                return {"success": "yes", "matches": matches, "terminated": matches}
            left = await self._gone(ikes, children, 0 if force and timeout is None else timeout)
            if left and force:
                now = self._control.now()
                engine.in_turns("destroy", ((sa, partial(sa.destroy, "terminated")) for sa in ikes), now)
                engine.in_turns("forget", ((child, partial(self._forget, child)) for child in children), now)
                self._control.turn()
                left = await self._gone(ikes, children, None)
        if left:
            why = "not all matching SAs could be terminated"
            raise CommandError(why, matches=matches, terminated=matches - left)
        return {"success": "yes", "matches": matches, "terminated": matches}

    def _ending(self, ikes: list[IkeSa]) -> set[str]:
        """Connections of which nothing that is up stays: of the others, what is tried again comes up there."""
        ended = {sa.uid for sa in ikes}
        found = set()
        for name in {sa.name for sa in ikes}:
            same = self._control.engine.named(name)
            stays = any(sa.established and not sa.quiet for sa in same if sa.uid not in ended)
            if not stays or any(not sa.established for sa in same if sa.uid in ended):
                found.add(name)
        return found

    def _forget(self, child: ChildSa, now: float) -> None:
        """Take a CHILD_SA away whose peer does not say that it has; it is told when it answers again."""
        if child.state in _GONE:
            return
        engine, sa = self._control.engine, child.ike
        log.info("%s: CHILD_SA %s is forgotten, the peer does not answer", sa, child)
        spi, told = child.spi_in, child.state is ChildState.DELETING
        request = sa.pending.request if sa.pending is not None else None
        if isinstance(request, DeleteChild) and request.child is child:
            # if that gets no answer at all, it must not say a second time that the CHILD_SA is down
            request.was_up = False
        engine.child_deleted(child, "terminated", now)
        if not told:
            # the Delete waits for its turn, and nothing comes of it without the CHILD_SA
            sa.ask(Liveness([DeletePayload(Protocol.ESP, [spi.to_bytes(4, "big")])]), now)

    async def _gone(self, ikes: list[IkeSa], children: list[ChildSa], timeout: float | None) -> int:
        """Wait until all are closed; how many are not after ``timeout`` seconds."""
        deadline = self._control.now() + timeout if timeout is not None else None
        changed = asyncio.Event()
        stop = self._control.observe(lambda _: changed.set())
        try:
            while True:
                ikes = [sa for sa in ikes if sa.state is not IkeState.DESTROYING]
                children = [child for child in children if child.state not in _GONE]
                left = len(ikes) + len(children)
                rest = LOOK_S if deadline is None else min(deadline - self._control.now(), LOOK_S)
                if not left or rest <= 0:
                    return left
                changed.clear()
                if left > MANY:
                    # looking at them after each event would take longer than closing them
                    await asyncio.sleep(min(rest, LOOK_S / 4))
                    continue
                await _wait(changed, rest)
        finally:
            stop()

    # -- rekey, redirect

    async def rekey(self, client: Client, message: Message) -> Mapping[str, Any]:
        """Replace IKE_SAs or CHILD_SAs, or with ``reauth`` authenticate anew; does not wait."""
        ikes, children = self._select(message, "rekey")
        if not ikes and not children:
            raise CommandError("no matching SAs to rekey found", matches="0")
        now, engine, reauth = self._control.now(), self._control.engine, truth(message, "reauth")
        renew = engine.reauthenticate if reauth else engine.rekey_ike_sa
        engine.in_turns("reauth" if reauth else "rekey", ((sa, partial(renew, sa)) for sa in ikes), now)
        engine.in_turns("rekey", ((child, partial(engine.rekey_child, child)) for child in children), now)
        self._control.turn()
        return {"success": "yes", "matches": len(ikes) + len(children)}

    async def redirect(self, client: Client, message: Message) -> Mapping[str, Any]:
        """Send initiators to another gateway (RFC 5685)."""
        target = text(message, "gateway")
        if not target:
            raise CommandError("missing target gateway")
        fits = _selector_of_peers(message)
        try:
            gateway: Gateway = ip_address(target)
        except ValueError:
            gateway = target
        sas = self._control.engine.sas.values()
        came = [sa for sa in sas if sa.established and not sa.original_initiator and fits(sa)]
        found = [sa for sa in came if sa.redirectable]
        more = {"unsupported": len(came) - len(found)} if len(came) > len(found) else {}
        for sa in came:
            if not sa.redirectable:
                log.warning("%s: not redirected: %s has not said that it can be (RFC 5685)", sa, sa.path.remote)
        if not found:
            why = ": no REDIRECT_SUPPORTED came from them (RFC 5685)" if came else ""
            raise CommandError(f"no matching SAs to redirect found{why}", matches="0", **more)
        try:
            encode_redirect(gateway)
        except ValueError as error:
            raise CommandError(str(error)) from None
        engine = self._control.engine
        now = self._control.now()
        engine.in_turns("redirect", ((sa, partial(engine.redirect_peer, sa, gateway)) for sa in found), now)
        self._control.turn()
        return {"success": "yes", "matches": len(found), **more}

    # -- install

    async def install(self, client: Client, message: Message) -> Mapping[str, Any]:
        """Let a child wait for traffic, or put its shunt in place."""
        name = text(message, "child")
        if not name:
            raise CommandError("missing configuration name")
        found = self._find(text(message, "ike"), name)
        if found is None or found[1] is None:
            raise CommandError("configuration name not found")
        if not await self._control.install(found[0], found[1]):
            raise CommandError(f"installing policy '{name}' failed")
        return {"success": "yes"}

    async def uninstall(self, client: Client, message: Message) -> Mapping[str, Any]:
        """Undo ``install``."""
        name, ike = text(message, "child"), text(message, "ike")
        if not name:
            raise CommandError("missing configuration name")
        for connection, child, _ in self._control.policies():
            if child.name == name and ike in ("", connection.name):
                await self._control.uninstall(connection.name, name)
                return {"success": "yes"}
        raise CommandError(f"policy '{name}' not found")

    # -- which ones

    def _select(
        self, message: Message, what: str, also: Iterable[ChildState] = ()
    ) -> tuple[list[IkeSa], list[ChildSa]]:
        """IKE_SAs or CHILD_SAs that a message names: by ``ike`` and ``ike-id``, with ``child`` or ``child-id`` those
        of their children that are up, or in one of the states ``also``."""
        ike, child = text(message, "ike"), text(message, "child")
        ike_id, child_id = number(message, "ike-id"), number(message, "child-id")
        if not (ike or child or ike_id or child_id):
            raise CommandError(f"missing {what} selector")
        ikes = [
            sa
            for sa in self._control.engine.sas.values()
            if ike in ("", sa.name) and ike_id in (0, sa.uid) and not sa.quiet
        ]
        if not child and not child_id:
            if what == "rekey":
                ikes = [sa for sa in ikes if sa.established]
            return ikes, []
        children = [
            one
            for sa in ikes
            for one in sa.children.values()
            if child in ("", one.name) and child_id in (0, one.uid) and one.state in CHILD_UP.union(also)
        ]
        return [], children


class _Attempt:
    """Bringing up one child or IKE_SA; knows how that ended, also if it ends within the call that began it."""

    def __init__(self, control: Control, connection: Connection, child: ChildConfig | None) -> None:
        self._control = control
        self._connection = connection
        self._child = child
        self._sa: IkeSa | None = None
        self._early: list[IkeSa] = []
        self._done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._stop = control.observe(self._see)

    async def run(self) -> bool:
        """Begin, and wait for the end: whether it is up."""
        if self._is_up():
            return True
        self._sa = await self._control.connect(self._connection, self._child)
        if self._sa is None or self._sa in self._early or self._sa.state is IkeState.DESTROYING:
            return self._done.done() and self._done.result()
        if self._child is None and self._sa.established:
            return True
        return await self._done

    def close(self) -> None:
        """Listen no longer."""
        self._stop()
        self._done.cancel()

    def _is_up(self) -> bool:
        for sa in self._control.engine.named(self._connection.name):
            if not sa.established or sa.quiet or is_to_go(sa) or not self._is_meant(sa):
                continue
            if self._child is None or any(one.name == self._child.name for one in staying(sa)):
                return True
        return False

    def _is_meant(self, sa: IkeSa) -> bool:
        """Whether an IKE_SA is what is asked for: ours, or one with who is the peer by that name now."""
        if sa is self._sa:
            return True
        return sa.name == self._connection.name and self._control.engine.is_current(sa.connection)

    def _see(self, event: Event) -> None:
        match event:
            case ChildUp(child) if self._child is not None:
                if child.name == self._child.name and self._is_meant(child.ike):
                    self._end(True)
            case IkeUp(sa) if self._child is None and self._is_meant(sa):
                self._end(True)
            case ChildNotMade(sa, config) if self._child is not None:
                if config.name == self._child.name and self._is_meant(sa):
                    self._end(False)
            case IkeRekeyed(old, new) if old is self._sa:
                self._sa = new
            case IkeUp(sa) if self._sa is not None and sa.replaces == self._sa.uid:
                self._sa = sa
            case IkeDown(sa):
                self._early.append(sa)
                if sa is self._sa:
                    self._end(False)

    def _end(self, up: bool) -> None:
        if not self._done.done():
            self._done.set_result(up)


def _selector_of_peers(message: Message) -> Callable[[IkeSa], bool]:
    """Which IKE_SAs a redirection is for."""
    ike, ike_id = text(message, "ike"), number(message, "ike-id")
    peer_ip, peer_id = text(message, "peer-ip"), text(message, "peer-id")
    if not (ike or ike_id or peer_ip or peer_id):
        raise CommandError("missing redirect selector")
    low = high = None
    if peer_ip:
        try:
            if "-" in peer_ip:
                low, high = (ip_address(part.strip()) for part in peer_ip.split("-", 1))
            else:
                network = ip_network(peer_ip, strict=False)
                low, high = network[0], network[-1]
        except ValueError:
            raise CommandError("invalid peer IP selector") from None
    try:
        pattern = parse_pattern(peer_id) if peer_id else None
    except ConfigError:
        raise CommandError("invalid peer identity selector") from None

    def fits(sa: IkeSa) -> bool:
        if ike not in ("", sa.name) or ike_id not in (0, sa.uid):
            return False
        address = sa.path.remote
        if low is not None and high is not None and not _within(address, low, high):
            return False
        return pattern is None or (sa.peer_id is not None and bool(pattern.matches(sa.peer_id)))

    return fits


async def _wait(changed: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(changed.wait(), seconds)


def _within(address: IpAddress, low: IpAddress, high: IpAddress) -> bool:
    return address.version == low.version and int(low) <= int(address) <= int(high)


def number(message: Message, key: str, default: int = 0) -> int:
    """A value as a number. CommandError."""
    value = text(message, key)
    if not value:
        return default
    try:
        return int(value[:20])
    except ValueError:
        raise CommandError(f"{key} is not a number") from None


def truth(message: Message, key: str) -> bool:
    """A value as yes or no; no if it is not there. CommandError: what is not understood must not count as no."""
    word = message.get(key, b"")
    for meaning, words in ((True, TRUE), (False, FALSE)):
        if isinstance(word, bytes) and word.lower() in (one.encode() for one in words):
            return meaning
    raise CommandError(f"{key} is neither yes nor no")


def _timeout(message: Message) -> float | None:
    """Seconds to wait: None for ever, less than 0 not at all."""
    value = number(message, "timeout")
    return None if value == 0 else value / 1000


def _loglevel(message: Message) -> int:
    return number(message, "loglevel", 1)


def count_up(sas: Iterable[IkeSa]) -> tuple[int, int]:
    """IKE_SAs in all, and those that are not authenticated yet, in either role."""
    total = half_open = 0
    for sa in sas:
        total += 1
        half_open += sa.state in (IkeState.CREATED, IkeState.CONNECTING)
    return total, half_open
