"""Two engines on a good network, or on none: from the first message to the last."""

from __future__ import annotations

import logging
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from ipsec.crypto.identity import ANY_IDENTITY, IdentityPattern, parse_identity, parse_pattern
from ipsec.crypto.proposals import parse_proposals
from ipsec.crypto.suites import esp_suite
from ipsec.errors import ParseError
from ipsec.ike import init
from ipsec.ike.child import nonce_of, offer
from ipsec.ike.config import Action, AuthClass, Childless, IkeSettings, RemoteAuth, SelectorTemplate, Unique
from ipsec.ike.create_child import CreateChild
from ipsec.ike.credentials import Credentials, SharedSecret
from ipsec.ike.delete import DeleteChild, DeleteIke, Liveness
from ipsec.ike.events import (
    ChildDown,
    ChildNotMade,
    ChildUp,
    IkeDown,
    IkeMoved,
    IkeRekeyed,
    IkeUp,
    Initiate,
    Path,
    TrapWanted,
)
from ipsec.ike.lifetimes import REAUTHENTICATING_S, REPLACED_S
from ipsec.ike.negotiate import PAIRS_MAX
from ipsec.ike.rekey import LINEAGE_MAX, RekeyIke
from ipsec.ike.sa import IkeSa
from ipsec.ike.state import IkeState
from ipsec.wire.iana import KeMethod, NotifyType, Protocol, TransformType, name_of
from ipsec.wire.ike import FLAG_RESPONSE
from ipsec.wire.payloads import DeletePayload, NoncePayload, NotifyPayload, Payload, SaPayload
from ipsec.wire.selector import UDP
from tests.pair import LEFT, RIGHT, Pair
from tests.sim.invariants import unique_ivs
from tests.sim.link import Link
from tests.sim.world import IN_FLIGHT_S


def test_establish_carry_traffic_close() -> None:
    with unique_ivs():
        Pair().up().finish()


@pytest.mark.parametrize("proposal", ["aes128gcm16-prfsha256-x25519", "aes256-sha256-modp2048", "3des-sha1-ecp521"])
def test_how_long_our_answer_will_be_is_known_before_it_is_made(
    monkeypatch: pytest.MonkeyPatch, proposal: str
) -> None:
    """RFC 7296 section 2.6: it must not be longer than what came in the name of an address that nobody vouches for."""
    foretold: list[int] = []
    answers: list[bytes] = []
    size, emit = init._answer_size, init._emit

    def foretell(*args: Any) -> int:
        foretold.append(size(*args))
        return foretold[-1]

    def record(spi_i: bytes, spi_r: bytes, flags: int, payloads: list[Payload]) -> bytes:
        message = emit(spi_i, spi_r, flags, payloads)
        if flags == FLAG_RESPONSE:
            answers.append(message)
        return message

    monkeypatch.setattr(init, "_answer_size", foretell)
    monkeypatch.setattr(init, "_emit", record)
    Pair(proposals=parse_proposals([proposal], Protocol.IKE)).up()
    assert foretold == [len(answer) for answer in answers]
    assert len(foretold) == 1


@pytest.mark.parametrize("who", ["a", "b"])
def test_rekey_many_times(who: str) -> None:
    with unique_ivs():
        pair = Pair().up()
        host = getattr(pair, who)
        for _ in range(20):
            host.do(host.engine.rekey_child, host.child)
            pair.world.settle()
            host.do(host.engine.rekey_ike_sa, host.ike)
            pair.world.settle()
            pair.agree()
        pair.finish()


@pytest.mark.parametrize(
    ("theirs", "method"),
    [
        ("default", KeMethod.CURVE_25519),
        ("aes256gcm16-ecp256", KeMethod.ECP_256),
        ("aes128-sha256-x25519-none", KeMethod.CURVE_25519),
        # strongSwan before 6.0.2
        ("aes128gcm16", KeMethod.NONE),
    ],
)
@pytest.mark.parametrize("who", ["a", "b"])
def test_by_default_a_child_is_rekeyed_with_a_key_exchange_if_the_peer_has_one(
    theirs: str, method: KeMethod, who: str
) -> None:
    ours, other = (parse_proposals([text], Protocol.ESP) for text in ("default", theirs))
    pair = Pair(a={"child": {"esp_proposals": ours}}, b={"child": {"esp_proposals": other}}).up()
    host = getattr(pair, who)
    host.do(host.engine.rekey_child, host.child)
    pair.world.settle()
    for child in (pair.a.child, pair.b.child):
        used = child.proposal.first(TransformType.KE)
        assert (used.id if used else KeMethod.NONE) == method
    pair.finish()


@pytest.mark.parametrize("who", ["a", "b"])
@pytest.mark.parametrize(("offered", "method"), [("default", "ECP_256"), ("aes128gcm16-x25519", "CURVE_25519")])
def test_a_child_is_asked_for_with_the_key_exchange_of_the_ike_sa(offered: str, method: str, who: str) -> None:
    """RFC 7296 section 1.3: KEi is of the group that the responder is expected to accept, and that one it has."""
    ike = parse_proposals(["aes128gcm16-prfsha256-ecp256"], Protocol.IKE)
    esp = parse_proposals([offered], Protocol.ESP)
    pair = Pair(proposals=ike, child={"esp_proposals": esp}).up()
    host = getattr(pair, who)
    host.do(host.engine.rekey_child, host.child)
    pair.world.settle()
    for child in (pair.a.child, pair.b.child):
        assert name_of(KeMethod, child.proposal.first(TransformType.KE).id) == method
    pair.finish()


@pytest.mark.parametrize("who", ["a", "b"])
@pytest.mark.parametrize("theirs", [True, False])
def test_sha256_of_96_bits_is_each_ends_own_and_stays(theirs: bool, who: str) -> None:
    """It is never negotiated: each end does what its child says, also in the SA that replaces one."""
    esp = parse_proposals(["aes128-sha256-x25519"], Protocol.ESP)
    pair = Pair(
        a={"child": {"esp_proposals": esp, "sha256_96": True}},
        b={"child": {"esp_proposals": esp, "sha256_96": theirs}},
    ).up()
    for _ in range(2):
        host = getattr(pair, who)
        host.do(host.engine.rekey_child, host.child)
        pair.world.settle()
        assert pair.a.child.suite == esp_suite("aes128-sha256_96")
        assert pair.b.child.suite == esp_suite("aes128-sha256_96" if theirs else "aes128-sha256")
        assert str(pair.a.child.proposal.first(TransformType.INTEG)) == "HMAC_SHA2_256_128"
    pair.finish()


def test_sha256_of_96_bits_is_of_one_child() -> None:
    esp = parse_proposals(["aes128-sha256"], Protocol.ESP)
    pair = Pair(child={"esp_proposals": esp, "sha256_96": True})
    for host, local, remote in ((pair.a, LEFT, RIGHT), (pair.b, RIGHT, LEFT)):
        config = host.connections["c"]
        (cut,) = config.children
        udp = replace(
            cut,
            name="udp",
            local_ts=(replace(local, protocol=UDP),),
            remote_ts=(replace(remote, protocol=UDP),),
            sha256_96=False,
        )
        host.load(replace(config, children=(cut, udp)))
    pair.a.initiate()
    pair.world.settle()
    for host in (pair.a, pair.b):
        suites = {child.name: str(child.suite) for child in host.children}
        assert suites == {"net": "aes128-sha256_96", "udp": "aes128-sha256"}
    pair.finish(children=2)


def test_sha256_of_96_bits_means_nothing_for_other_suites() -> None:
    pair = Pair(child={"sha256_96": True}).up()
    assert pair.a.child.suite == pair.b.child.suite == esp_suite("aes128gcm16")


@pytest.mark.parametrize("childless", list(Childless))
def test_childless(childless: Childless) -> None:
    Pair(childless=childless, b={"childless": Childless.ALLOW}).up().finish()


@pytest.mark.parametrize("wants_child", [True, False])
@pytest.mark.parametrize("theirs", list(Childless))
@pytest.mark.parametrize("ours", list(Childless))
def test_childless_at_both_ends(ours: Childless, theirs: Childless, wants_child: bool) -> None:
    """RFC 6023: what the responder does not want costs the IKE_SA, at both ends (RFC 7296 section 2.21.2)."""
    pair = Pair(a={"childless": ours}, b={"childless": theirs})
    pair.a.initiate(children=None if wants_child else ())
    pair.world.run(5.0)
    first = wants_child and (theirs is Childless.NEVER or ours in (Childless.ALLOW, Childless.NEVER))
    refused = theirs is (Childless.FORCE if first else Childless.NEVER)
    refused = refused or (ours is Childless.FORCE and theirs is Childless.NEVER)
    assert len(pair.a.ikes) == len(pair.b.ikes) == (0 if refused else 1)
    if refused:
        assert not pair.b.events(IkeUp)
        assert not pair.a.engine.sas
    else:
        pair.finish(children=int(wants_child))


@pytest.mark.parametrize(
    "error", [NotifyType.INVALID_SYNTAX, NotifyType.AUTHENTICATION_FAILED, NotifyType.UNSUPPORTED_CRITICAL_PAYLOAD]
)
def test_what_ends_an_ike_sa_beside_idr_and_auth(error: NotifyType, monkeypatch: pytest.MonkeyPatch) -> None:
    """charon answers so, and has no IKE_SA then (RFC 7296 section 2.21.2)."""
    more = [NotifyPayload(error)]
    monkeypatch.setattr("ipsec.ike.admit.mobike_payloads", lambda sa, request=None: more if request is not None else [])
    pair = Pair()
    pair.a.initiate()
    pair.world.run(5.0)
    assert not pair.a.engine.sas
    assert not pair.a.events(IkeUp)
    assert [name_of(NotifyType, error) in event.reason for event in pair.a.events(IkeDown)] == [True]


def test_an_ike_auth_that_makes_no_sense_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """SA without TSi and TSr: INVALID_SYNTAX ends the IKE_SA at both ends."""
    real = offer
    monkeypatch.setattr("ipsec.ike.auth.offer", lambda *a, **k: real(*a, **k)[:-2])
    pair = Pair()
    pair.a.initiate()
    pair.world.run(5.0)
    assert not pair.a.engine.sas
    assert not pair.b.engine.sas


def test_cookies() -> None:
    Pair(settings=IkeSettings(cookie_threshold=0)).up().finish()


@pytest.mark.parametrize("own", ["a", "b"])
def test_invalid_ke_payload(own: str) -> None:
    both = parse_proposals(["aes128gcm16-prfsha256-x25519-ecp256"], Protocol.IKE)
    one = parse_proposals(["aes128gcm16-prfsha256-ecp256"], Protocol.IKE)
    pair = Pair(proposals=both, **{own: {"proposals": one}})
    pair.up(pair.b if own == "a" else pair.a).finish()


@pytest.mark.parametrize("who", ["a", "b"])
def test_rekeying_keeps_the_prf(who: str) -> None:
    """strongSwan takes the old PRF alone where section 2.18 has both: with another one nothing could be read."""
    texts = ["aes128gcm16-prfsha384-prfsha256-x25519", "aes256gcm16-prfsha512-prfsha384-x25519"]
    pair = Pair(proposals=parse_proposals(texts, Protocol.IKE)).up()
    host = getattr(pair, who)
    offer = (RekeyIke().build(host.ike, 0.0) or [])[0]
    assert isinstance(offer, SaPayload)
    assert [str(proposal) for proposal in offer.proposals] == [
        "IKE:AES_GCM_16_128/PRF_HMAC_SHA2_384/CURVE_25519",
        "IKE:AES_GCM_16_128/PRF_HMAC_SHA2_384/CURVE_25519",
        "IKE:AES_GCM_16_256/PRF_HMAC_SHA2_384/CURVE_25519",
    ]


@pytest.mark.parametrize("who", ["a", "b"])
def test_rekeying_changes_the_prf_where_the_peer_takes_no_other(who: str) -> None:
    both = parse_proposals(["aes128gcm16-prfsha384-x25519", "aes128gcm16-prfsha256-x25519"], Protocol.IKE)
    pair = Pair(proposals=both).up()
    host, peer = (pair.a, pair.b) if who == "a" else (pair.b, pair.a)
    peer.ike.proposal = parse_proposals(["aes128gcm16-prfsha256-x25519"], Protocol.IKE)[0]
    peer.ike.connection = replace(peer.ike.connection, proposals=(peer.ike.proposal,))
    host.do(host.engine.rekey_ike_sa, host.ike)
    pair.world.settle()
    assert str(host.ike.proposal) == "IKE:AES_GCM_16_128/PRF_HMAC_SHA2_256/CURVE_25519"
    pair.agree()


@pytest.mark.parametrize("who", ["a", "b"])
def test_rekeying_changes_the_group_where_the_peer_takes_no_other(who: str) -> None:
    """N(INVALID_KE_PAYLOAD) names it (RFC 7296 section 1.3.2), and what was asked meanwhile is not lost."""
    both = parse_proposals(["aes128gcm16-prfsha256-x25519-ecp256"], Protocol.IKE)
    pair = Pair(proposals=both).up()
    host, peer = (pair.a, pair.b) if who == "a" else (pair.b, pair.a)
    peer.ike.proposal = parse_proposals(["aes128gcm16-prfsha256-ecp256"], Protocol.IKE)[0]
    peer.ike.connection = replace(peer.ike.connection, proposals=(peer.ike.proposal,))
    before = host.child
    host.do(host.engine.rekey_ike_sa, host.ike)
    host.do(host.engine.rekey_child, before)
    pair.world.settle()
    assert str(host.ike.proposal) == "IKE:AES_GCM_16_128/PRF_HMAC_SHA2_256/ECP_256"
    assert host.child is not before
    pair.finish()


def test_an_answer_that_comes_twice_is_no_reason_to_warn(caplog: pytest.LogCaptureFixture) -> None:
    """INVALID_KE_PAYLOAD has no message ID of its own: the second one is about what was replaced already."""
    ours = parse_proposals(["aes128gcm16-prfsha256-x25519-ecp256"], Protocol.IKE)
    theirs = parse_proposals(["aes128gcm16-prfsha256-ecp256"], Protocol.IKE)
    caplog.set_level(logging.INFO, logger="ipsec")
    pair = Pair(link=Link(duplicate=1.0), a={"proposals": ours}, b={"proposals": theirs}).up()
    assert "wants key exchange ECP_256, which it has been sent" in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    pair.finish()


@pytest.mark.parametrize("first", ["wide", "net"])
def test_the_child_for_exactly_what_is_wanted(first: str) -> None:
    """Another one that has room for it too may have other algorithms; charon takes the exact one as well."""
    subnet = (SelectorTemplate((ip_address("10.1.0.0"), ip_address("10.1.0.255"))),)
    pair = Pair(a={"child": {"local_ts": subnet}}, b={"child": {"remote_ts": subnet}})
    config = pair.b.connections["c"]
    (exact,) = config.children
    wide = replace(exact, name="wide", remote_ts=(LEFT,))
    pair.b.load(replace(config, children=(wide, exact) if first == "wide" else (exact, wide)))
    pair.up()
    assert pair.b.child.name == "net"
    pair.finish()


def test_the_child_for_nothing_else() -> None:
    """One that lists what is wanted among others is not the one that is for exactly that, though it stands first."""
    near = SelectorTemplate((ip_address("10.2.1.0"), ip_address("10.2.1.255")))
    more = SelectorTemplate((ip_address("10.2.2.0"), ip_address("10.2.2.255")))
    pair = Pair(a={"child": {"remote_ts": (near,)}}, b={"child": {"local_ts": (near,)}})
    config = pair.b.connections["c"]
    (exact,) = config.children
    pair.b.load(replace(config, children=(replace(exact, name="wide", local_ts=(near, more)), exact)))
    pair.up()
    assert pair.b.child.name == "net"
    pair.finish()


def test_a_child_for_parts_of_what_is_wanted() -> None:
    """Who wants more than any child has gets the first: what is within that is not unwanted."""
    near = SelectorTemplate((ip_address("10.2.1.0"), ip_address("10.2.1.255")))
    more = SelectorTemplate((ip_address("10.2.4.0"), ip_address("10.2.4.255")))
    pair = Pair(b={"child": {"local_ts": (near, more)}})
    config = pair.b.connections["c"]
    (both,) = config.children
    pair.b.load(replace(config, children=(both, replace(both, name="one", local_ts=(near,)))))
    pair.up()
    assert pair.b.child.name == "net"
    assert len(pair.a.child.remote_ts) == 2
    pair.world.close()


@pytest.mark.parametrize("size", [120, 200, 576])
def test_small_fragments(size: int) -> None:
    pair = Pair(settings=IkeSettings(fragment_size=size), link=Link(mtu=600))
    pair.up().finish()


def test_dead_peer() -> None:
    child = {"dpd_action": Action.TRAP | Action.START}
    pair = Pair(dpd_delay=10.0, child=child).up()
    pair.world.link = replace(pair.world.link, loss=1.0)
    pair.a.connections.clear()
    pair.b.connections.clear()
    pair.world.run(300.0)
    for host in (pair.a, pair.b):
        assert not host.ikes
        assert len(host.events(IkeDown)) == len(host.events(ChildDown)) == 1
        assert len(host.events(TrapWanted)) == len(host.events(Initiate)) == 1


def test_a_successor_asks_nothing_before_the_peer_has_it() -> None:
    """What waits while the peer rekeys the IKE_SA goes after the response that makes the successor; nothing is lost."""
    pair = Pair().up()
    pair.world.hold()
    pair.a.do(pair.a.ike.ask, Liveness())
    pair.a.do(pair.a.engine.rekey_child, pair.a.child)
    old = pair.a.child
    pair.b.do(pair.b.engine.rekey_ike_sa, pair.b.ike)
    pair.world.release()
    pair.world.run(IkeSettings().retransmit_timeout / 2)
    assert pair.a.child is not old
    pair.finish()


def test_close_action() -> None:
    pair = Pair(child={"close_action": Action.TRAP}).up()
    pair.a.do(pair.a.ike.ask, DeleteChild(pair.a.child, "terminated"))
    pair.world.settle()
    assert len(pair.b.events(TrapWanted)) == 1
    assert not pair.a.events(TrapWanted)
    pair.world.close()


def test_inactivity() -> None:
    pair = Pair(child={"inactivity": 30.0}).up()
    pair.world.run(20.0)
    pair.a.send_traffic()
    pair.world.run(20.0)
    assert pair.a.children
    pair.world.run(20.0)
    assert not pair.a.children
    pair.world.close()


def test_hard_lifetime_without_rekeying() -> None:
    pair = Pair(child={"life_time": 60.0}).up()
    pair.world.run(59.0)
    assert pair.a.children
    pair.world.run(10.0)
    assert not pair.a.children
    assert not pair.b.children
    pair.world.close()


@pytest.mark.parametrize("asks", ["liveness", "rekeying"])
def test_restart_with_the_same_secret(asks: str) -> None:
    """RFC 6290: the one that restarted shows its token, and the other does not wait for the dead peer timeout."""
    pair = Pair().up()
    pair.b.restart()
    pair.a.do(pair.a.ike.ask, Liveness() if asks == "liveness" else RekeyIke())
    pair.world.run(IN_FLIGHT_S)
    assert not pair.a.ikes
    pair.up().finish()


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[tuple[IkeSa, str]]:
    """Who says INITIAL_CONTACT, and who asks for the end of an IKE_SA."""
    found: list[tuple[IkeSa, str]] = []
    protect = IkeSa.protect

    def watched(sa: IkeSa, exchange: int, payloads: list[Payload], message_id: int, *, response: bool) -> list[bytes]:
        for payload in payloads:
            if isinstance(payload, DeletePayload) and payload.protocol == Protocol.IKE:
                found.append((sa, "Delete"))
            elif isinstance(payload, NotifyPayload) and payload.notify == NotifyType.INITIAL_CONTACT:
                found.append((sa, "INITIAL_CONTACT"))
        return protect(sa, exchange, payloads, message_id, response=response)

    monkeypatch.setattr(IkeSa, "protect", watched)
    return found


@pytest.mark.parametrize("by", ["moon", "sun"])
@pytest.mark.parametrize("more", [{}, {"mobike": True}, {"nat": True}, {"children": ("net", "two")}])
@pytest.mark.parametrize("unique", list(Unique))
def test_reauthentication_loses_nothing(
    unique: Unique, more: dict[str, Any], by: str, said: list[tuple[IkeSa, str]]
) -> None:
    """It is no first contact, and whoever does it closes the old IKE_SA when all is there again (section 2.8.3)."""
    pair = Pair(unique=unique, **more)
    pair.a.initiate()
    pair.world.settle()
    # nobody reaches who is behind a NAT
    host = pair.a if by == "moon" or pair.nat else pair.b
    old = host.ike
    said.clear()
    host.do(host.engine.reauthenticate, old)
    pair.world.run(30.0)
    assert host.ike is not old
    assert said == [(old, "Delete")]
    pair.finish(children=len(pair.a.connections["c"].children))


def test_reauthentication_again_and_again() -> None:
    """Where it failed with unique = keep, the IKE_SA came to its end and nothing was left."""
    pair = Pair(unique=Unique.KEEP, a={"reauth_time": 100.0, "over_time": 10.0}).up()
    pair.world.run(450.0)
    assert len(pair.a.events(IkeUp)) == 5
    assert not pair.a.engine.problems.of("c")
    pair.finish()


@pytest.mark.parametrize("unique", list(Unique))
def test_reauthentication_by_both_ends(unique: Unique) -> None:
    """With the same time at both, and nothing random about it, each made a new IKE_SA of every one that there was."""
    pair = Pair(unique=unique, reauth_time=100.0, over_time=10.0).up()
    pair.world.run(450.0)
    assert len(pair.a.events(IkeUp)) == len(pair.b.events(IkeUp)) == 5
    assert not pair.a.engine.problems.of("c")
    pair.finish()


def test_reauthentication_by_the_responder() -> None:
    pair = Pair(b={"reauth_time": 100.0, "over_time": 1.0}).up()
    pair.world.run(450.0)
    assert len(pair.a.events(IkeUp)) == len(pair.b.events(IkeUp)) == 5
    pair.finish()


def test_replace_closes_what_the_peer_leaves(said: list[tuple[IkeSa, str]]) -> None:
    """Another IKE_SA from the same place may mean that the peer closes the first one itself: if not, we do."""
    pair = Pair(unique=Unique.REPLACE).up()
    old = pair.b.ike
    two = replace(pair.a.connections["c"], name="two")
    pair.a.load(pair.a.connections["c"], two)
    pair.a.initiate("two")
    pair.world.run(REAUTHENTICATING_S / 2)
    said.clear()
    # more of them do not put it off
    pair.a.load(*pair.a.connections.values(), replace(two, name="three"))
    pair.a.initiate("three")
    pair.world.run(REAUTHENTICATING_S / 2 + 1)
    assert (old, "Delete") in said
    pair.world.run(REAUTHENTICATING_S)
    pair.finish()


@pytest.mark.parametrize("who", ["a", "b"])
def test_what_replace_closes_is_closed_also_if_it_is_rekeyed_before(who: str) -> None:
    """The peer does not close it and goes on with it: that it has another one is so for the successor as well."""
    pair = Pair(unique=Unique.REPLACE).up()
    pair.a.load(pair.a.connections["c"], replace(pair.a.connections["c"], name="two"))
    pair.a.initiate("two")
    pair.world.run(REAUTHENTICATING_S / 2)
    host = getattr(pair, who)
    host.do(host.engine.rekey_ike_sa, host.ikes[0])
    pair.world.run(1.0)
    assert len(pair.a.ikes) == len(pair.b.ikes) == 2
    pair.world.run(REAUTHENTICATING_S)
    pair.finish()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("lost", ["", "moon", "sun"])
def test_what_replace_closes_is_closed_also_if_both_ends_rekey_it_before(seed: int, lost: str) -> None:
    """Whichever successor stays, and whether or not the other end's request arrives at first."""
    pair = Pair(seed, unique=Unique.REPLACE).up()
    pair.a.load(pair.a.connections["c"], replace(pair.a.connections["c"], name="two"))
    pair.a.initiate("two")
    pair.world.run(REAUTHENTICATING_S / 2)
    first = [(host, host.ikes[0]) for host in (pair.a, pair.b)]
    pair.world.hold()
    for host, sa in first:
        host.do(host.engine.rekey_ike_sa, sa)
    if lost:
        pair.world.deliver(lost, drop=True)
    pair.world.release()
    pair.world.run(10 * REAUTHENTICATING_S)
    pair.finish()


def test_reauthentication_twice_at_once() -> None:
    """HDR, SAi1, KEi, Ni once: a second IKE_SA would bring each CHILD_SA up twice (RFC 7296 section 2.8.3)."""
    pair = Pair().up()
    for _ in range(2):
        pair.a.do(pair.a.engine.reauthenticate, pair.a.ike)
    pair.world.run(30.0)
    pair.finish()


def test_reauthentication_without_child_sas() -> None:
    """With make_before_break = no as well, the IKE_SA is there again."""
    pair = Pair(settings=IkeSettings(make_before_break=False)).up()
    pair.a.do(pair.a.engine.terminate_child, pair.a.child)
    pair.world.settle()
    old = pair.a.ike
    pair.a.do(pair.a.engine.reauthenticate, old)
    pair.world.settle()
    assert pair.a.ike is not old
    pair.finish(children=0)


def test_mobike() -> None:
    pair = Pair(mobike=True).up()
    moved = ip_address("192.0.2.77")
    pair.a.addresses.append(moved)
    pair.a.do(lambda now: pair.a.engine.update_address(pair.a.ike, moved, now))
    pair.world.settle()
    assert pair.a.ike.path.local == pair.b.ike.path.remote == moved
    assert pair.b.events(IkeMoved)
    pair.finish()


def test_nat_rebinds() -> None:
    pair = Pair(nat=True, dpd_delay=20.0).up()
    assert pair.nat is not None
    port = pair.b.ike.path.remote_port
    pair.nat.rebind()
    pair.a.send_traffic()
    pair.world.run(IN_FLIGHT_S)
    assert pair.b.ike.path.remote_port != port
    pair.finish()


def test_half_open_goes() -> None:
    pair = Pair()
    pair.world.filter = lambda host, data: data if data[18] == 34 else None
    pair.a.initiate()
    pair.world.run(20.0)
    assert pair.b.engine.sas
    pair.world.run(15.0)
    assert not pair.b.engine.sas
    assert not len(pair.b.engine.half_open)


def test_who_stops_takes_nobody_new() -> None:
    """A peer that comes back at once would have an IKE_SA with somebody who is gone."""
    pair = Pair().up()
    pair.b.do(pair.b.engine.stop)
    pair.world.until(lambda: not pair.a.engine.sas)
    pair.a.initiate()
    pair.world.run(1.0)
    assert not pair.b.engine.sas
    assert [sa.state for sa in pair.a.engine.sas.values()] == [IkeState.CONNECTING]
    pair.b.restart()
    pair.world.settle()
    pair.agree()


def test_dscp() -> None:
    pair = Pair(a={"dscp": 46})
    sent = []
    send = pair.a.engine.send

    def watched(data: bytes, path: Path, dscp: int = 0) -> None:
        sent.append(dscp)
        send(data, path, dscp)

    pair.a.engine.send = watched  # type: ignore[method-assign]
    pair.up()
    assert sent == [46, 46]
    pair.finish()


def test_two_full_lists_of_selectors_do_not_become_65025_policies() -> None:
    """HDR, SK {..., TSi, TSr} of 100 selectors each for a configuration that has one of each."""
    near = tuple(replace(LEFT, protocol=UDP, ports=(port, port)) for port in range(100))
    far = tuple(replace(RIGHT, protocol=UDP, ports=(port, port)) for port in range(100))
    pair = Pair(a={"child": {"local_ts": near, "remote_ts": far}}).up()
    assert len(pair.b.child.pairs()) == PAIRS_MAX
    pair.finish()


def test_nor_does_an_answer_of_two_full_lists() -> None:
    """It would be within what we have offered, one of each."""
    near = tuple(replace(RIGHT, protocol=UDP, ports=(port, port)) for port in range(100))
    far = tuple(replace(LEFT, protocol=UDP, ports=(port, port)) for port in range(100))
    pair = Pair(b={"child": {"local_ts": near, "remote_ts": far}})
    pair.a.initiate()
    pair.world.settle()
    assert len(pair.a.events(ChildNotMade)) == 1
    assert not pair.a.events(ChildUp)
    pair.finish(children=0)


def test_one_peer_does_not_get_any_number_of_child_sas(monkeypatch: pytest.MonkeyPatch) -> None:
    """HDR, SK {N(NO_ADDITIONAL_SAS)} (RFC 7296 section 1.3); what is there can be rekeyed."""
    monkeypatch.setattr("ipsec.ike.create_child.CHILDREN_MAX", 8)
    pair = Pair().up()
    for _ in range(10):
        pair.a.do(lambda now: pair.a.ike.ask(CreateChild(pair.a.children[0].config), now))
        pair.world.settle()
    assert len(pair.b.children) == 8
    assert len(pair.a.events(ChildNotMade)) == 3
    pair.a.do(pair.a.engine.rekey_child, pair.a.children[0])
    pair.world.settle()
    pair.finish(children=8)


def test_a_peer_that_deletes_nothing_rekeys_a_few_times_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """HDR, SK {SA, Ni, KEi} through ever new IKE_SAs, and no HDR, SK {D} for those before (section 2.8)."""
    pair = Pair().up()
    ask = IkeSa.ask
    with monkeypatch.context() as patch:
        patch.setattr(IkeSa, "ask", lambda sa, request, now, **more: (
            None if isinstance(request, DeleteIke) else ask(sa, request, now, **more)
        ))  # fmt: skip
        for _ in range(2 * LINEAGE_MAX):
            pair.a.do(pair.a.engine.rekey_ike_sa, pair.a.ike)
            pair.world.run(0.5)
        assert len(pair.b.engine.sas) == LINEAGE_MAX
    pair.world.run(2 * REPLACED_S)
    pair.a.do(pair.a.engine.rekey_ike_sa, pair.a.ike)
    pair.finish()
    assert not pair.a.engine.sas


@pytest.mark.parametrize("whom", [ANY_IDENTITY, parse_pattern("*n")])
def test_initial_contact_is_not_said_to_anybody(whom: IdentityPattern, said: list[tuple[IkeSa, str]]) -> None:
    """Section 2.4: it is about two identities, and who is to be %any may be somebody whom another connection has."""
    pair = Pair()
    pair.a.load(replace(pair.a.connections["c"], remote=RemoteAuth(AuthClass.PSK, whom)))
    pair.up()
    assert said == []
    pair.finish()


@pytest.mark.parametrize("gap", [0.0, 0.01, 0.05])
@pytest.mark.parametrize("unique", [Unique.NO, Unique.NEVER])
def test_initial_contact_is_said_once_by_two_that_begin_together(
    unique: Unique, gap: float, said: list[tuple[IkeSa, str]]
) -> None:
    """The second one's would close the first, which the peer has up already."""
    pair = Pair(link=Link(latency=0.03))
    one = replace(pair.a.connections["c"], unique=unique)
    pair.a.load(one, replace(one, name="d", unique=Unique.NO))
    first = pair.a.initiate("c")
    pair.world.run(gap)
    pair.a.initiate("d")
    pair.world.settle()
    assert said == ([] if unique is Unique.NEVER else [(first, "INITIAL_CONTACT")])
    assert len(pair.a.ikes) == len(pair.b.ikes) == 2
    pair.world.close()


@pytest.mark.parametrize("rekeyed", [False, True])
def test_initial_contact_is_said_once_to_one_whose_name_has_a_plus(
    rekeyed: bool, said: list[tuple[IkeSa, str]]
) -> None:
    """The first one is with ``O=x + CN=sun``, which we call ``O=x, CN=sun`` as charon does."""
    pair = Pair()
    one = replace(pair.a.connections["c"], remote=RemoteAuth(AuthClass.PSK, parse_pattern("CN=sun, O=x")))
    pair.a.load(one, replace(one, name="d"))
    peer = pair.b.connections["c"]
    pair.b.load(replace(peer, local=replace(peer.local, id=parse_identity("O=x + CN=sun"))))
    for host in (pair.a, pair.b):
        host.engine.credentials = Credentials(secrets=[SharedSecret(b"k" * 16)])
    pair.a.initiate("c")
    pair.world.settle()
    if rekeyed:
        pair.a.do(pair.a.engine.rekey_ike_sa, pair.a.ike)
        pair.world.settle()
    pair.a.initiate("d")
    pair.world.settle()
    assert [what for _, what in said].count("INITIAL_CONTACT") == 1
    assert len(pair.a.ikes) == len(pair.b.ikes) == 2
    pair.world.close()


def test_initial_contact_is_said_after_an_attempt_that_failed(said: list[tuple[IkeSa, str]]) -> None:
    pair = Pair()
    good = pair.b.connections["c"]
    pair.b.load(replace(good, remote=RemoteAuth(AuthClass.PSK, parse_pattern("nobody"))))
    pair.a.initiate()
    pair.world.settle()
    assert not pair.a.ikes
    pair.b.load(good)
    pair.up()
    assert [what for _, what in said] == ["INITIAL_CONTACT"] * 2
    pair.finish()


def test_initial_contact_is_not_said_of_a_peer_that_may_be_known() -> None:
    """Two connections to one gateway, one after the other."""
    pair = Pair()
    one = replace(pair.a.connections["c"], remote=RemoteAuth(AuthClass.PSK, ANY_IDENTITY))
    pair.a.load(one, replace(one, name="d"))
    pair.a.initiate("c")
    pair.world.settle()
    pair.a.initiate("d")
    pair.world.settle()
    assert len(pair.a.ikes) == len(pair.b.ikes) == 2


@pytest.mark.parametrize("number", [0, 255])
@pytest.mark.parametrize("who", ["a", "b"])
def test_a_reserved_spi_is_none_for_a_child_sa(who: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 4303 section 2.1: nothing may be sent with it, whichever end wants it. The IKE_SA is up without."""
    pair = Pair()
    wants, other = (pair.a, pair.b) if who == "a" else (pair.b, pair.a)

    def allocate() -> int:
        wants.reserved.add(number)
        return number

    monkeypatch.setattr(wants, "allocate_spi", allocate)
    pair.a.initiate()
    pair.world.settle()
    assert pair.a.ike.established
    assert pair.b.ike.established
    assert not other.events(ChildUp)
    assert not other.outbound


@pytest.mark.parametrize("who", ["a", "b"])
def test_a_successor_has_an_spi_that_is_not_zero(who: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 7296 section 3.1: that would be an IKE_SA_INIT request. Whichever end wants it, nothing is moved to it."""
    pair = Pair().up()
    wants, other = (pair.a, pair.b) if who == "a" else (pair.b, pair.a)
    monkeypatch.setattr(wants.engine, "new_spi", lambda: bytes(8))
    pair.a.do(pair.a.engine.rekey_ike_sa, pair.a.ike)
    pair.world.run(1.0)
    assert not other.events(IkeRekeyed)


def test_the_shortest_nonce_is_half_a_key_of_the_prf() -> None:
    """RFC 7296 section 2.10; one and no other."""
    assert nonce_of([NoncePayload(bytes(32))], 32) == bytes(32)
    for wrong in ([], [NoncePayload(bytes(31))], 2 * [NoncePayload(bytes(32))]):
        with pytest.raises(ParseError):
            nonce_of(wrong, 32)


def test_no_child_sa_is_made_in_an_ike_sa_that_is_being_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 7296 section 2.25.2: HDR, SK {N(TEMPORARY_FAILURE)}, and what was wanted is asked of the successor."""
    answers = []
    real = CreateChild.answered

    def answered(self: CreateChild, sa: IkeSa, payloads: list[Payload], now: float) -> None:
        answers.append([p.notify for p in payloads if isinstance(p, NotifyPayload)])
        real(self, sa, payloads, now)

    monkeypatch.setattr(CreateChild, "answered", answered)
    pair = Pair().up()
    pair.world.hold()
    pair.a.do(pair.a.engine.rekey_ike_sa, pair.a.ike)
    pair.b.do(lambda now: pair.b.ike.ask(CreateChild(pair.b.child.config), now))
    pair.world.release()
    pair.world.run(30.0)
    assert answers[0] == [NotifyType.TEMPORARY_FAILURE]
    pair.finish(children=2)
