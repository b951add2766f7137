"""The IKEv2 engine: all IKE_SAs of a host, without sockets, clock or randomness of its own.

Five verbs move it: ``receive_datagram``, ``handle_timer``, ``next_timer``, ``datagrams_to_send``, ``next_event``;
commands start and end things. After any call: handle all events, then send the datagrams, then arm the timer. Nothing
blocks. Last, ``catch_up`` does what no peer has to wait for; whatever comes next does that first otherwise. In a quiet
moment ``prepare`` makes what later IKE_SAs need; who comes before waits for it to be made.
What waits for the outside (certificate status) is an event out and a command in.

An exception that should not be costs the IKE_SA it happens in, never the engine.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

from ipsec.errors import ParseError
from ipsec.ike import again, delete, dispatch, due, giveway, lifetimes, mobike, qcd, redirect
from ipsec.ike.child_sa import ChildSa
from ipsec.ike.config import Action, ChildConfig, Connection, Fragmentation, PoolConfig
from ipsec.ike.create_child import CreateChild
from ipsec.ike.credentials import Credentials
from ipsec.ike.delete import DeleteChild, DeleteIke, Liveness, close_children_later, close_later
from ipsec.ike.eap_auth import auth_request, round_request
from ipsec.ike.errors import SaFailedError
from ipsec.ike.events import (
    ChildDown,
    ChildNotMade,
    IkeMoved,
    IkeUp,
    Initiate,
    IpAddress,
    MoveChild,
    Path,
)
from ipsec.ike.failure import Cause, Failure
from ipsec.ike.init import AuthProgress, first_method, handle_init_request, handle_init_response, start_init
from ipsec.ike.intermediate import Intermediate
from ipsec.ike.lifetimes import Timer
from ipsec.ike.outside import Outside
from ipsec.ike.proof import certificate_requests
from ipsec.ike.redirect import Gateway, LoopGuard
from ipsec.ike.registry import AT_ONCE
from ipsec.ike.rekey import RekeyIke, take_over
from ipsec.ike.sa import IkeSa, digest
from ipsec.ike.state import CHILD_UP, ChildState, IkeState
from ipsec.ike.table import ConnectionTable, names, names_its_peers
from ipsec.wire.iana import ExchangeType, NotifyType, PayloadType
from ipsec.wire.ike import (
    FLAG_INITIATOR,
    FLAG_RESPONSE,
    HEADER_LEN,
    Header,
    emit_header,
    emit_payloads,
    parse_header,
    parse_payloads,
)
from ipsec.wire.payloads import NotifyPayload, Payload

log = logging.getLogger(__name__)


class IkeEngine(Outside):
    """See the module's text."""

    # -- the five verbs

    def receive_datagram(self, data: bytes, path: Path, now: float) -> None:
        """A datagram that is not ESP, without its non-ESP marker."""
        self.now = now
        if self._later:
            self.catch_up()
        before = self._uid
        sa: IkeSa | None = None
        try:
            header = parse_header(data)
            sa = self.by_spi.get(header.spi_r if header.initiator else header.spi_i)
            if header.major != 2:
                self._answer_stranger(header, path, NotifyPayload(NotifyType.INVALID_MAJOR_VERSION))
            elif header.exchange == ExchangeType.IKE_SA_INIT:
                self._receive_init(sa, header, data, path, now)
            elif sa is None or not (header.spi_i == sa.spi_i and header.spi_r == sa.spi_r):
                self._receive_unknown(header, data, path)
            elif header.next_payload == PayloadType.NOTIFY and header.response:
                self._receive_token(sa, header, data, now)
            else:
                sa.receive(header, data, path, now)
        except ParseError as error:
            self.counters.add("invalid")
            if self.may_speak(now):
                log.debug("dropped %d octets from %s: %s", len(data), path.remote, error)
        except Exception:
            self._contain(sa, now, before)

    def handle_timer(self, now: float) -> None:
        """Do what has come due, the earliest first; if that is much, ``next_timer`` is in the past afterwards."""
        self.now = now
        if self._later:
            self.catch_up()
        self.go_on(now)
        for key in self.timers.due(now, AT_ONCE):
            assert isinstance(key, tuple)
            kind, uid = key
            child = self.children.get(uid)
            sa = child.ike if child is not None else self.sas.get(uid)
            if sa is not None:
                self.contained(sa, partial(due.handle, self, kind, sa, child), now)

    def contained(self, sa: IkeSa, work: Callable[[float], None], now: float) -> None:
        """See Registry."""
        if sa.state is IkeState.DESTROYING:
            return
        try:
            work(now)
        except SaFailedError as error:
            sa.destroy(error.failure, now)
        except Exception:
            self._contain(sa, now)

    def _contain(self, sa: IkeSa | None, now: float, before: int | None = None) -> None:
        """A bug of ours: the IKE_SA at hand pays for it. The traceback names code, never contents.

        What was being made for it goes as well: its successors, and whatever has a unique id after ``before``.
        """
        log.exception("this is a bug%s", f"; giving up {sa}" if sa is not None else "")
        made = self._uid if before is None else before
        doomed = [other for other in self.sas.values() if other.uid > made]
        if sa is not None:
            rekey = sa.rekey
            doomed += [other for other in (sa, *((rekey.ours, rekey.peers) if rekey else ())) if other is not None]
        for other in dict.fromkeys(doomed):
            try:
                other.destroy(Failure(Cause.BUG, "internal error, see the log"), now)
                if other.uid in self.sas:
                    # it was its end that failed
                    for child in list(other.children.values()):
                        self.drop_child(child, "internal error", now)
                    self.forget(other, now)
            except Exception:
                log.exception("this is a bug, too")
                self.forget(other, now)

    # -- datagrams

    def _receive_init(self, sa: IkeSa | None, header: Header, data: bytes, path: Path, now: float) -> None:
        if not header.response:
            if sa is not None or not self._stopping:
                handle_init_request(self, header, data, path, now)
        elif sa is not None and sa.initiator and sa.spi_i == header.spi_i:
            try:
                handle_init_response(sa, header, data, path, now)
            except SaFailedError as error:
                sa.destroy(error.failure, now)

    def _receive_unknown(self, header: Header, data: bytes, path: Path) -> None:
        """Somebody uses SPIs that we do not have (RFC 7296 section 2.21.4, RFC 6290 section 4.3)."""
        ours = header.spi_r if header.initiator else header.spi_i
        closed = self.closed.get(ours)
        if closed is not None:
            if not header.response and digest(data) == closed[0]:
                for datagram in closed[1]:
                    self.send(datagram, path)
            return
        self.counters.add("invalid-spi")
        # RFC 6290 section 9.2: no token for SPIs in use, whatever the sender's flags say about which of them is ours
        in_use = header.spi_i in self.by_spi or header.spi_r in self.by_spi
        if header.response or header.spi_r == bytes(8) or in_use:
            return
        payloads: list[Payload] = [NotifyPayload(NotifyType.INVALID_IKE_SPI)]
        if self.settings.qcd_secret:
            token = qcd.make(self.settings.qcd_secret, header.spi_i, header.spi_r)
            payloads.append(NotifyPayload(NotifyType.QUICK_CRASH_DETECTION, token))
        self._answer_stranger(header, path, *payloads)

    def _receive_token(self, sa: IkeSa, header: Header, data: bytes, now: float) -> None:
        """An unprotected answer under SPIs of ours: only the peer's token makes it more than noise (RFC 6290)."""
        for payload in parse_payloads(header.next_payload, data[HEADER_LEN:], header.exchange, False):
            if isinstance(payload, NotifyPayload) and payload.notify == NotifyType.QUICK_CRASH_DETECTION:
                if qcd.verify(sa.peer_token, payload.data):
                    log.warning("%s: %s has lost its state (RFC 6290)", sa, sa.path.remote)
                    self.failed(sa, Failure(Cause.RESTARTED, "the peer has restarted"), now)
                return

    def _answer_stranger(self, header: Header, path: Path, *payloads: Payload) -> None:
        """One unprotected response to a request, as long as there are not too many of them."""
        if header.response or not self.may_speak(self.now):
            return
        first, content = emit_payloads(payloads)
        flags = FLAG_RESPONSE | (0 if header.initiator else FLAG_INITIATOR)
        size = HEADER_LEN + len(content)
        head = emit_header(header.spi_i, header.spi_r, first, header.exchange, flags, header.message_id, size)
        self.send(head + content, path)

    def handle_request(
        self, sa: IkeSa, exchange: int, payloads: list[Payload], path: Path, now: float
    ) -> list[Payload] | None:
        """See ``dispatch``."""
        return dispatch.handle_request(sa, exchange, payloads, path, now)

    def heard(self, sa: IkeSa, header: Header, path: Path, now: float) -> None:
        """An authentic message came. Without MOBIKE, a peer behind a NAT is where it sends from (section 2.23)."""
        if header.response or path == sa.path:
            return
        if sa.state is IkeState.CONNECTING:
            # section 2.23: the initiator floats to the NAT-T port, and the responder answers and stays there
            sa.path = path
            return
        if sa.mobike or not sa.established or sa.nat_local:
            return
        if sa.nat_remote and path.remote_port != 0:
            log.info("%s: the peer is at %s[%d] now", sa, path.remote, path.remote_port)
            self.move_ike(sa, path, now)
            self.move_children(sa, now)

    # -- commands

    def load(
        self,
        connections: Iterable[Connection],
        credentials: Credentials,
        pools: Iterable[PoolConfig] = (),
    ) -> None:
        """Replace the configuration. IKE_SAs that are up keep theirs, and what they have leased is theirs in whichever
        pool has it now."""
        self.credentials = credentials
        self.table = ConnectionTable(connections, self.host.resolved)
        self.load_pools(pools)
        # whoever loads ever other names must not make us remember them all
        names = {*self.table.by_name, *self.by_connection}
        self.counters.keep(names)
        self._guards = {name: guard for name, guard in self._guards.items() if name in names}
        known = self.table.by_name.values()
        for method in {first_method(one) for one in known}:
            self.needs_key_pair(method)
        self.problems.keep((one.name, name) for one in known for name in ("", *(child.name for child in one.children)))

    def initiate(
        self,
        connection: Connection,
        children: Sequence[tuple[ChildConfig, int]],
        path: Path,
        now: float,
        *,
        replaces: int = 0,
        redirected_from: IpAddress | None = None,
        addresses: tuple[IpAddress, ...] = (),
    ) -> IkeSa:
        """Bring up children, each with the reqid of its trap or 0: through an IKE_SA that is there, or a new one.

        ``replaces`` is an IKE_SA that goes when the new one is up, whose CHILD_SAs are made again; ``addresses`` are
        virtual ones to ask for again, where nothing is replaced.
        """
        self.now = now
        old = self.sas.get(replaces)
        wanted = [(child, reqid) for child, reqid in children if not child.shunt]
        if old is not None:
            wanted += _made_again(old, connection)
        else:
            for sa in self.named(connection.name):
                if sa.quiet or not again.leads_to(sa, path):
                    continue
                # RFC 4301 section 4.4.3: a name that stands for another peer now has nothing to do with the old one
                if sa.connection.is_alike(connection) and self._joins(sa, wanted, now):
                    return sa
        sa = self.new_sa(connection, initiator=True, path=path)
        sa.spi_i = self.new_spi()
        self.by_spi[sa.spi_i] = sa
        self.initiating[sa.uid] = sa
        sa.replaces = old.uid if old is not None else 0
        sa.auth = AuthProgress()
        sa.auth.configs = wanted
        sa.auth.had = old.addresses if old is not None else addresses
        if not names_its_peers(connection) and not names(connection, path.remote, self.host.resolved):
            # somebody else may have that address by tomorrow, and the peer come from another one
            sa.tries_left = 1
        log.info("%s: connecting to %s", sa, path.remote)
        self.contained(sa, partial(start_init, sa, redirected_from=redirected_from), now)
        return sa

    def _joins(self, sa: IkeSa, wanted: list[tuple[ChildConfig, int]], now: float) -> bool:
        """Whether these children can come up through an IKE_SA that is there (``reuse_ikesa``)."""
        if delete.is_to_go(sa):
            return False
        if sa.established:
            under_way = self.under_way(sa)
            for config, reqid in wanted:
                if config.name not in under_way:
                    sa.ask(CreateChild(config, reqid=reqid), now)
            return True
        if sa.state is IkeState.CONNECTING and sa.initiator and sa.auth is not None:
            have = sa.auth.names()
            sa.auth.configs += [item for item in wanted if item[0].name not in have]
            return True
        return False

    def under_way(self, sa: IkeSa) -> set[str]:
        """Names of children that are up, or that we have asked for."""
        asked = [one for one in self._asked_for(sa) if one.replaces is None or not delete.unwanted(one.replaces)]
        return {one.name for one in delete.staying(sa)} | {one.config.name for one in asked}

    def _asked_for(self, sa: IkeSa) -> list[CreateChild]:
        """CHILD_SAs that we have asked for, or are about to, and that are not there yet."""
        pending = [sa.pending.request] if sa.pending is not None else []
        postponed = sa.rekey.postponed if sa.rekey is not None else []
        waiting = (*pending, *sa.queue, *postponed, *self._retries.get(sa.uid, ()))
        return [request for request in waiting if isinstance(request, CreateChild)]

    def terminate_ike(self, sa: IkeSa, now: float, reason: str = "terminated") -> None:
        """Close an IKE_SA at both ends."""
        self.now = now
        if sa.established or sa.state is IkeState.REKEYED:
            log.info("%s: closing it: %s", sa, reason)
            sa.queue.clear()
            sa.ask(DeleteIke(reason), now)
        elif sa.state is not IkeState.DELETING:
            sa.destroy(reason, now)

    def terminate_all(self, sas: Iterable[IkeSa], now: float, reason: str = "terminated") -> None:
        """Close many IKE_SAs at both ends. Those that are up go a few in each turn, and are used for nothing new."""
        up = [sa for sa in list(sas) if close_later(sa, now, reason)]
        self.in_turns("close", ((sa, partial(self.terminate_ike, sa, reason=reason)) for sa in up), now)

    def terminate_child(self, child: ChildSa, now: float, reason: str = "terminated") -> None:
        """Close a CHILD_SA at both ends."""
        self.now = now
        log.info("%s: closing CHILD_SA %s: %s", child.ike, child, reason)
        child.ike.ask(DeleteChild(child, reason), now)

    def terminate_children(self, children: Iterable[ChildSa], now: float, reason: str = "terminated") -> None:
        """Close many CHILD_SAs at both ends, those of a few IKE_SAs in each turn; none counts as up from now on."""
        self.in_turns("next", ((sa, sa.ask_next) for sa in close_children_later(children, reason)), now)

    def rekey_ike_sa(self, sa: IkeSa, now: float) -> None:
        """Replace the keys of an IKE_SA."""
        self.now = now
        sa.ask(RekeyIke(), now)

    def rekey_child(self, child: ChildSa, now: float) -> None:
        """Replace a CHILD_SA."""
        self.now = now
        if child.state is ChildState.INSTALLED and child.peer_rekey is None:
            child.ike.ask(CreateChild(child.config, replaces=child), now)

    def reauthenticate(self, sa: IkeSa, now: float) -> None:
        """See ``again``."""
        again.reauthenticate(self, sa, now)

    def standing(self, connection: Connection) -> Path | None:
        """See ``again``."""
        return again.standing(self, connection)

    def update_address(self, sa: IkeSa, local: IpAddress, now: float) -> None:
        """Our own address changed (RFC 4555); without MOBIKE the peer finds out from where our next request comes."""
        self.now = now
        if sa.established and local != sa.path.local and local.version == sa.path.remote.version:
            path = sa.path._replace(local=local)
            if sa.mobike:
                if sa.original_initiator:
                    mobike.move(sa, path, now)
                else:
                    mobike.review(sa, now)
                return
            self.move_ike(sa, path, now)
            self.move_children(sa, now)
            sa.ask(Liveness(), now)

    def addresses_changed(self, sa: IkeSa, now: float) -> None:
        """What the host answers about addresses and ways of an IKE_SA may be different now (RFC 4555)."""
        self.now = now
        if sa.mobike and sa.established and not sa.quiet:
            mobike.review(sa, now)

    def peer_moved(self, child: ChildSa, path: Path, now: float) -> None:
        """ESP came from another address (RFC 7296 section 2.23); the data path has followed already."""
        sa = child.ike
        if sa.established and sa.nat_remote and not sa.nat_local:
            self.move_ike(sa, path, now)

    def expire_child(self, child: ChildSa, now: float, *, hard: bool) -> None:
        """A lifetime by volume ended."""
        self.now = now
        if not hard:
            self.rekey_child(child, now)
        elif child.state in CHILD_UP:
            log.warning("%s: CHILD_SA %s is used up", child.ike, child)
            self.terminate_child(child, now, delete.EXPIRED)

    def child_failed(self, child: ChildSa, reason: str, now: float) -> None:
        """The data path did not take the SAs that InstallChild asked for."""
        self.now = now
        log.error("%s: CHILD_SA %s cannot be installed: %s", child.ike, child, reason)
        self.note(Failure(Cause.INSTALL, f"cannot be installed: {reason}", child.name), child.ike)
        if child.uid in child.ike.children:
            child.has_in = child.has_out = False
            if child.state is ChildState.INSTALLED:
                # whoever heard that it is up, which was said with InstallChild, hears that it is not
                child.change(ChildState.REKEYED)
                self.emit(ChildDown(child, f"cannot be installed: {reason}"))
            self.terminate_child(child, now, f"cannot be installed: {reason}")

    def redirect_peer(self, sa: IkeSa, gateway: Gateway, now: float) -> None:
        """Ask an initiator, if it has said that it can be, to go to another gateway (RFC 5685 section 5)."""
        if sa.established and sa.redirectable:
            sa.ask(Liveness([redirect.redirect(gateway)]), now)

    def stop(self, now: float) -> None:
        """Close everything; when ``sas`` is empty, or patience is at its end, it is done.

        Who comes from now on hears nothing: he sends again, perhaps to who runs next.
        """
        self.now = now
        self._stopping = True
        self.terminate_all(self.sas.values(), now, "shutting down")

    # -- what the exchanges need

    def certificate_requests(self, connections: Iterable[Connection]) -> list[Payload]:
        """CERTREQ, if we want a certificate and may ask."""
        return certificate_requests(connections, self.credentials)

    def fakes_nat(self, connection: Connection) -> bool:
        """Whether both ends are to believe in a NAT, so that ESP comes in UDP."""
        return connection.encap or self.settings.force_encapsulation

    def encapsulates(self, sa: IkeSa) -> bool:
        """ESP in UDP (RFC 3948)."""
        return sa.nat_local or sa.nat_remote or self.fakes_nat(sa.connection)

    def may_fragment(self, sa: IkeSa) -> bool:
        """Whether the peer takes fragments and we send them."""
        return sa.fragmentation and sa.connection.fragmentation is Fragmentation.YES

    def redirect_to(self, path: Path) -> Gateway | None:
        """Another gateway for initiators, if this one is to take none."""
        return self.settings.redirect_to or None

    def redirected(self, sa: IkeSa, gateway: Gateway, now: float) -> None:
        """We are to go elsewhere (RFC 5685)."""
        if delete.is_to_go(sa):
            return
        guard = self._guards.setdefault(sa.name, LoopGuard())
        if not self.settings.follow_redirects or not guard.follow(now):
            log.warning("%s: %s sends us to %s, not followed", sa, sa.path.remote, gateway)
            return
        log.info("%s: %s sends us to %s", sa, sa.path.remote, gateway)
        names: list[str | None] = [*sorted(self.under_way(sa))]
        had = sa.addresses
        if sa.auth is not None:
            # section 6: with EAP also in the midst of IKE_AUTH
            names += sa.auth.names()
            had = had or sa.auth.had
        for name in names or [None]:
            self.emit(Initiate(sa.name, name, gateway, sa.path.remote, addresses=had))
        self.terminate_ike(sa, now, "redirected")

    def take_redirect(self, sa: IkeSa, payloads: Sequence[Payload], now: float) -> None:
        """REDIRECT under protection."""
        for payload in payloads:
            if isinstance(payload, NotifyPayload) and payload.notify == NotifyType.REDIRECT and sa.original_initiator:
                self.redirected(sa, redirect.parse_redirect(payload.data), now)
                return

    def token_payloads(self, sa: IkeSa) -> list[Payload]:
        """Our QUICK_CRASH_DETECTION token (RFC 6290 section 4.2)."""
        if not self.settings.qcd or not self.settings.qcd_secret:
            return []
        token = qcd.make(self.settings.qcd_secret, sa.spi_i, sa.spi_r)
        return [NotifyPayload(NotifyType.QUICK_CRASH_DETECTION, token)]

    def note_token(self, sa: IkeSa, payloads: Sequence[Payload]) -> None:
        """The peer's token."""
        for payload in payloads:
            if isinstance(payload, NotifyPayload) and payload.notify == NotifyType.QUICK_CRASH_DETECTION:
                sa.peer_token = qcd.parse(payload.data)

    # -- an IKE_SA's way

    def restart(self, sa: IkeSa, now: float) -> None:
        """Begin again with IKE_SA_INIT (``keyingtries``): a responder has forgotten what it did not hear the end of."""
        log.info("%s: no answer from %s, trying again", sa, sa.path.remote)
        self.free_first_child(sa)
        del self.by_spi[sa.spi_i]
        sa.reset()
        assert sa.auth is not None
        sa.auth = sa.auth.anew()
        sa.spi_i = self.new_spi()
        self.by_spi[sa.spi_i] = sa
        start_init(sa, now)

    def init_done(self, sa: IkeSa, now: float) -> None:
        """The initiator has keys: go on, from the NAT-T port if there is one (RFC 7296 section 2.23)."""
        settings = self.settings
        if sa.path.local_port == settings.port and sa.path.remote_port == sa.connection.remote_port == 500:
            nat = sa.nat_local or sa.nat_remote or self.fakes_nat(sa.connection)
            if nat or sa.connection.mobike:
                sa.path = sa.path._replace(local_port=settings.port_nat_t, remote_port=4500)
        self.timers.cancel((Timer.GIVE_UP, sa.uid))
        self.keys_agreed(sa, now)

    def keys_agreed(self, sa: IkeSa, now: float) -> None:
        """One more key exchange is done: the next one, or authenticate."""
        further = sa.init is not None and sa.init.further.methods
        sa.ask(Intermediate() if further else auth_request(sa.connection), now)

    def next_round(self, sa: IkeSa, now: float) -> None:
        """Prove once more who we are (RFC 4739)."""
        sa.ask(round_request(sa), now, first=True)

    def established(self, sa: IkeSa, now: float) -> None:
        """Both ends are authenticated. A second call does nothing."""
        if sa.established_at:
            return
        sa.change(IkeState.ESTABLISHED)
        self.initiating.pop(sa.uid, None)
        sa.established_at = now
        sa.handshake = (sa.created_at, now)
        more = sa.auth is not None and sa.auth.configs
        had = sa.auth.names() if sa.auth is not None else []
        sa.init = None
        sa.auth = None
        if sa.keys is not None:
            sa.keys.keep_sk_d()
        self.close_half_open(sa)
        self.join(sa)
        lifetimes.arm_ike(self, sa, now)
        log.info("%s: established between %s[%s]...%s[%s]", sa, sa.path.local, sa.our_id, sa.path.remote, sa.peer_id)
        self.problems.came_up(sa.name)
        self.emit(IkeUp(sa))
        giveway.look(sa, now)
        old = self.sas.get(sa.replaces)
        if old is not None and old.whose != sa.whose:
            log.warning("%s: %s is another peer than that of %s, which stays", sa, sa.whose, old)
        elif old is not None:
            again.hand_on(self, old, sa, had)
            old.quiet = True
            old.queue.clear()
            lifetimes.disarm(self, old)
            self.timers.set((Timer.REPLACED, old.uid), now + (lifetimes.REAUTHENTICATED_S if more else 0))

    def hand_over(self, old: IkeSa, new: IkeSa, now: float) -> None:
        """The peer uses a successor that it has made: so do we."""
        take_over(old, new, now)

    def succeeded(self, old: IkeSa, new: IkeSa, now: float) -> None:
        """A rekeyed IKE_SA has a successor that is in use."""
        asks = (Timer.GIVE_WAY, old.uid) in self.timers
        lifetimes.disarm(self, old)
        self.leave(old)
        self.join(new)
        new.established_at = now
        lifetimes.arm_ike(self, new, now, reauth=False)
        self.timers.set((Timer.REPLACED, old.uid), now + lifetimes.REPLACED_S)
        giveway.rekeyed(new, now, asks=asks)
        if new.mobike:
            # what was about to be told
            lifetimes.arm_tell(self, new, now)

    def failed(self, sa: IkeSa, failure: Failure, now: float) -> None:
        """The peer is dead: what its children's ``dpd_action`` says, and away with it."""
        configs = [child.config for child in delete.missed(sa)]
        had, leased = sa.addresses, bool(sa.leases)
        log.warning("%s: %s is lost: %s", sa, sa.path.remote, failure)
        # the peer does not know: what it still asks is answered as if we had lost our state (RFC 6290)
        sa.response = []
        sa.destroy(failure, now)
        for config in configs:
            again.act(self, sa, config, had, closed=False, leased=leased)

    def closed_by_peer(self, sa: IkeSa, now: float) -> None:
        """The peer closed an IKE_SA with everything in it."""
        for child in delete.missed(sa):
            again.act(self, sa, child.config, sa.addresses, closed=True, leased=bool(sa.leases))

    def move_ike(self, sa: IkeSa, path: Path, now: float) -> None:
        """Another way to the peer; CHILD_SAs follow with ``move_children``."""
        for one in sa.line:
            if path == one.path:
                continue
            old, one.path = one.path, path
            one.seen_as = None
            for pool, address in one.leases:
                pool.move(one.whose, address, (path.remote, path.remote_port))
            if one.original_initiator and one.mobike and old.remote != path.remote:
                # the peer's list has what it had besides that one
                kept = [a for a in one.peer_addresses if a not in (old.remote, path.remote)]
                one.peer_addresses = (old.remote, *kept)[: mobike.ADDRESSES_MAX]
            self.emit(IkeMoved(one, old))

    def move_children(self, sa: IkeSa, now: float) -> None:
        """CHILD_SAs go the way of their IKE_SA."""
        for child in sa.children.values():
            child.encap = self.encapsulates(sa)
            if child.has_in:
                self.emit(MoveChild(child, sa.path, child.encap))

    def ways(self, sa: IkeSa) -> list[Path]:
        """Pairs of addresses on which the peer may be reached (RFC 4555)."""
        return mobike.ways(sa)

    def usable(self, sa: IkeSa, path: Path) -> bool:
        """Whether this host has a way to send along ``path``."""
        return path.local in self.host.sources(sa.connection, path.remote)

    def found_way(self, sa: IkeSa, now: float) -> None:
        """An answer came by another way than the one in use, which is the one in use now."""
        log.info("%s: the peer answers on %s", sa, sa.path)
        if sa.original_initiator:
            mobike.ask_update(sa, mobike.UpdateAddresses(), now)
        else:
            # some initiators go there themselves and say nothing
            self.move_children(sa, now)
            sa.ask(mobike.Routability(), now)

    def alive(self, sa: IkeSa, payloads: Sequence[Payload], now: float) -> None:
        """A liveness check was answered. With MOBIKE it also shows whether a NAT gave us another address."""
        if not sa.mobike or not sa.original_initiator:
            return
        before = sa.seen_as
        nats = mobike.take_mapping(sa, payloads)
        # what it was before an IKE_SA's first check is not known, since the hashes have its SPIs in them
        if nats is not None and sa.seen_as != before and (before is not None or nats[0]):
            sa.ask(mobike.UpdateAddresses(), now)

    # -- a CHILD_SA's way

    def busy_with_children(self, sa: IkeSa) -> bool:
        """Whether a CHILD_SA is being created, rekeyed or closed by us (section 2.25.2)."""
        request = sa.pending.request if sa.pending is not None else None
        return isinstance(request, CreateChild | DeleteChild)

    def child_not_made(self, sa: IkeSa, config: ChildConfig, failure: Failure, now: float) -> None:
        """A CHILD_SA that we asked for did not come to be."""
        if sa.quiet or delete.is_to_go(sa):
            # what is closed must not come back for that, and what another IKE_SA stands for is asked for there
            return
        self.note(failure, sa)
        self.emit(ChildNotMade(sa, config, failure.reason))

    def lose(self, sa: IkeSa, why: str, *, closed: bool = False) -> None:
        """An IKE_SA ends that we have not wanted to end, and further children that we have asked for do not come to be.

        ``closed`` by the peer: then ``close_action`` says whether they are to come back.
        """
        if sa.quiet or delete.is_to_go(sa):
            return
        for config in [request.config for request in self._asked_for(sa) if request.replaces is None]:
            log.warning("%s: child %s is not made: %s", sa, config.name, why)
            if not closed or Action.START in config.close_action:
                self.emit(ChildNotMade(sa, config, why))

    def child_deleted(self, child: ChildSa, reason: str, now: float) -> None:
        """Both ends know that a CHILD_SA is closed."""
        sa = child.ike
        if not child.has_in and not child.has_out:
            if child.rekey_of is not None and child.rekey_of.peer_rekey is child:
                # it could not be installed, and what it was to replace may stay
                child.rekey_of.peer_rekey = None
            self.forget_child(child)
            self.host.free_spi(child.spi_in)
            sa.children.pop(child.uid, None)
            child.change(ChildState.DESTROYING)
        elif reason:
            self.emit(ChildDown(child, reason))
            self.forget_child(child)
            sa.remove_child(child)
        else:
            self.linger(child, now)

    def linger(self, child: ChildSa, now: float) -> None:
        """Take packets that are on their way for a while, then remove the SAs."""
        child.change(ChildState.DELETED)
        self.forget_child(child)
        self.children[child.uid] = child
        self.timers.set((Timer.CHILD_GONE, child.uid), now + self.settings.delete_rekeyed_delay)

    def drop_child(self, child: ChildSa, reason: str, now: float) -> None:
        """The IKE_SA of a CHILD_SA ends."""
        if child.serves:
            self.emit(ChildDown(child, reason))
        self.forget_child(child)
        child.ike.remove_child(child)


def _made_again(old: IkeSa, connection: Connection) -> Iterator[tuple[ChildConfig, int]]:
    """The children of an IKE_SA that another one replaces; if that has another peer, those that it is to have."""
    same = old.connection.is_alike(connection)
    for child in delete.staying(old):
        config = child.config if same else connection.child(child.name)
        if config is not None:
            yield config, child.reqid
