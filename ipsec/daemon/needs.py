"""What connections and manual SAs need of the data path that only the start can give: a mark, sockets for BYPASS.

The start gives both where it may, whatever is configured: more may be loaded later. What is loaded where they are
missing is refused, since its packets would go in circles, or nowhere.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from enum import Flag, auto
from ipaddress import ip_address

from ipsec.backend.settings import UserspaceSettings
from ipsec.config import Config
from ipsec.errors import BackendError, ConfigError
from ipsec.esp.sa import Action, IpAddress
from ipsec.ike.config import ChildConfig, ChildMode, Connection
from ipsec.net import grants
from ipsec.net.route import Router
from ipsec.net.routebook import Entry, Prefix, prefixes

log = logging.getLogger(__name__)


class Need(Flag):
    """See the module's text."""

    NONE = 0
    MARK = auto()
    "on our own packets: nothing else tells them from those that belong into the tunnel"
    BYPASS = auto()
    "a raw socket, by which packets leave around the tunnel"
    INSIDE = auto()
    "the mark is for a peer that may lie in what is protected"


def needs(config: Config) -> Need:
    """What the whole of a configuration needs."""
    found = Need.NONE
    for policy in config.policies():
        if policy.action is Action.BYPASS:
            found |= Need.BYPASS | Need.MARK
        elif policy.action is Action.DISCARD:
            found |= Need.MARK
    if _manual_inside(config):
        found |= Need.INSIDE
    for connection in config.connections:
        for child in connection.children:
            found |= _needs_of(connection, child)
    if Need.INSIDE in found and not config.settings.namespace:
        # in another namespace the tunnel's routes are not in the way of our packets
        found |= Need.MARK
    return found


class Prepared:
    """The routes that were made beforehand, read when the first asks: for connections that are looked at in one go."""

    def __init__(self, settings: UserspaceSettings) -> None:
        self._table = settings.routing_table
        self._present: Collection[Entry] | None = None

    def present(self) -> Collection[Entry]:
        """All of them; none if they cannot be read, which is logged."""
        if self._present is None:
            try:
                with Router(table=self._table) as router:
                    self._present = router.present()
            except BackendError as error:
                log.warning("what was prepared is not known, routes cannot be read: %s", error)
                self._present = ()
        return self._present


def refuse(
    connection: Connection, settings: UserspaceSettings, *, file: str | None = None, prepared: Prepared | None = None
) -> None:
    """ConfigError if a connection needs what a daemon with these settings has not, and cannot come to have.

    ``prepared`` is one for all connections of a file.
    """
    if settings.memory is not None or not (settings.install_routes or settings.prepared):
        # who makes the routes sees to what comes to the device, and to what must not
        return
    prepared = prepared or Prepared(settings)
    for child in connection.children:
        needed = _needs_of(connection, child)
        why = _without_bypass(child, settings, prepared) if Need.BYPASS in needed and not settings.bypass else ""
        if not why and needed & (Need.MARK | Need.INSIDE) and not _tells_ours(settings):
            why = (
                "it covers its own peer, or drops, and our own packets bear no mark that keeps them out of it: "
                f"{grants.capability('NET_ADMIN')}, and restart ipsecd"
            )
        if why:
            raise ConfigError(why, file=file, key=f"connections.{connection.name}.children.{child.name}")
        if settings.prepared:
            _warn_of_routes(connection, child, prepared)


def _warn_of_routes(connection: Connection, child: ChildConfig, prepared: Prepared) -> None:
    """A child that came after ``ipsecd --prepare`` has no routes: its SA comes up, and its traffic goes elsewhere."""
    present = prepared.present()
    if not present or not child.policies or child.mode is ChildMode.PASS:
        # without any, somebody else makes the routes
        return
    for template in child.remote_ts:
        if template.network is not None and not all(_leads_in(one, present) for one in prefixes(*template.network)):
            log.warning(
                "connections.%s.children.%s: what was prepared does not lead %s to the device, and what goes there is "
                "not protected: put the connection into the file, stop ipsecd, and run ipsecd --prepare again",
                connection.name,
                child.name,
                template,
            )


def _tells_ours(settings: UserspaceSettings) -> bool:
    """Whether the way of our own packets is not that of what they protect."""
    return bool(settings.fwmark) or settings.prepared or bool(settings.namespace)


def _without_bypass(child: ChildConfig, settings: UserspaceSettings, prepared: Prepared) -> str:
    """Why ``mode = pass`` cannot be without a socket for it; empty where routes do it."""
    if settings.prepared:
        if not any(template.protocol for template in (*child.local_ts, *child.remote_ts)):
            return _led_astray(child, prepared)
        return (
            "mode = pass for some ports or protocols needs a raw socket, and what was prepared is used without "
            "capabilities: name whole networks, or let ipsecd make device and routes (ipsecd.setup = own)"
        )
    if settings.namespace:
        return (
            "mode = pass needs a raw socket, which is opened at the start: restart ipsecd with it in its file, or set "
            "ipsecd.fwmark"
        )
    return f"mode = pass needs a raw socket: {grants.capability('NET_RAW')}, and restart ipsecd"


def _led_astray(child: ChildConfig, prepared: Prepared) -> str:
    """Why ``mode = pass`` for whole networks passes nothing: routes that were made beforehand lead to the device."""
    present = prepared.present()
    for template in child.remote_ts:
        if template.network is not None and any(_leads_in(one, present) for one in prefixes(*template.network)):
            return (
                f"mode = pass passes nothing to {template}: what was prepared leads that to the device; put it into "
                "the file, stop ipsecd, and run ipsecd --prepare again"
            )
    return ""


def _leads_in(network: Prefix, present: Iterable[Entry]) -> bool:
    """Whether the narrowest route around a network is one to the device. What is narrower is for narrower policies."""
    bits = 32 if network.version == 4 else 128
    around = [
        entry
        for entry in present
        if entry.prefix.version == network.version
        and entry.prefix.length <= network.length
        and (entry.prefix.value ^ network.value) >> (bits - entry.prefix.length) == 0
    ]
    # with IPv6 both may be there, and then what is excluded goes first
    narrowest = max(around, key=lambda entry: (entry.prefix.length, entry.kind == "throw"), default=None)
    return narrowest is not None and narrowest.kind != "throw"


def _needs_of(connection: Connection, child: ChildConfig) -> Need:
    if not child.policies:
        # nothing is protected, and so nothing routed, by what others see to
        return Need.NONE
    if child.mode is ChildMode.PASS:
        return Need.BYPASS | Need.MARK
    if child.mode is ChildMode.DROP:
        return Need.MARK
    return Need.INSIDE if _may_cover_peer(connection, child) else Need.NONE


def _may_cover_peer(connection: Connection, child: ChildConfig) -> bool:
    """Whether a remote selector covers its own peer (host to host, everything), perhaps before there is an SA.

    Either nothing but the peer is in it, so that no throw route can keep the outer packets out of the tunnel, or a trap
    or guard is in place before anybody knows the peer. Only a mark tells outer packets from inner ones then.
    """
    for template in child.remote_ts:
        if template.network is None:
            # the peer's own address, but where it comes for one of ours, before which nothing is in place
            if child.start_action or not connection.pools:
                return True
        elif child.start_action and any(_may_be_in(text, template.network) for text in connection.remote_addrs):
            return True
    return False


def _manual_inside(config: Config) -> bool:
    return any(
        pair.remote.start == pair.remote.end == sa.remote
        for sa in config.sas
        for policy in sa.policies
        if policy.action is Action.PROTECT
        for pair in policy.selectors
    )


def _may_be_in(text: str, network: tuple[IpAddress, IpAddress]) -> bool:
    """Whether an entry of ``remote_addrs`` lies in a network; a name may, if that is everything."""
    first, last = network
    try:
        address = ip_address(text)
    except ValueError:
        return first.is_unspecified
    return address.version == first.version and int(first) <= int(address) <= int(last)
