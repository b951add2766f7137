"""IKE_INTERMEDIATE (RFC 9242) with additional key exchanges (RFC 9370): what comes of it, and that none is left out."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import replace
from typing import Any

import pytest

from ipsec.crypto.kex import key_exchange
from ipsec.crypto.proposals import parse_proposals
from ipsec.ike.config import IkeSettings
from ipsec.ike.events import Path
from ipsec.ike.intermediate import covered
from ipsec.ike.state import IkeState
from ipsec.wire import additional
from ipsec.wire.iana import ExchangeType, KeMethod, NotifyType, PayloadType, Protocol
from ipsec.wire.ike import FLAG_INITIATOR, HEADER_LEN, emit_header, emit_payloads, parse_header, parse_payloads
from ipsec.wire.payloads import KePayload, NotifyPayload, Payload, UnknownPayload, VendorPayload
from tests.ike.hostile import IKE_FURTHER, Checkpoint, Lab, Target, seal, unseal
from tests.pair import Pair
from tests.sim.invariants import unique_ivs
from tests.sim.link import Link

INIT, BETWEEN, AUTH = ExchangeType.IKE_SA_INIT, ExchangeType.IKE_INTERMEDIATE, ExchangeType.IKE_AUTH


def ike(*texts: str) -> Any:
    return parse_proposals([f"aes256gcm16-prfsha384-{text}" for text in texts], Protocol.IKE)


def exchanges(lab: Lab) -> list[int]:
    """Of the requests, in their order; fragments of one are one."""
    headers = [parse_header(data) for data in lab.sent]
    return list({h.message_id: h.exchange for h in headers if not h.response}.values())


def arrives(lab: Lab, count: int) -> tuple[Target, bytes, Path]:
    """That many datagrams are delivered; the next one, to whom and how."""
    for number, (target, data, path) in enumerate(lab.flow()):
        if number == count:
            return target, data, path
        lab.deliver(target, data, path)
    raise AssertionError("there are fewer")


# -- what it comes to


@pytest.mark.parametrize(
    ("text", "rounds"),
    [
        ("x25519", 0),
        ("mlkem768", 0),
        ("x25519-ke1_none", 0),
        ("x25519-ke1_mlkem768", 1),
        ("x25519-ke1_mlkem768-ke1_none", 1),
        ("mlkem1024-ke1_x25519", 1),
        ("ecp256-ke2_x25519-ke5_ecp384", 2),
        ("ecp384-ke1_x25519-ke2_ecp256-ke3_x448-ke4_ecp521-ke5_mlkem768-ke6_modp2048-ke7_mlkem1024", 7),
    ],
)
def test_every_key_exchange_that_was_agreed_is_done(text: str, rounds: int) -> None:
    with unique_ivs():
        lab = Lab(proposals=ike(text)).initiate()
    assert exchanges(lab)[: rounds + 2] == [INIT, *[BETWEEN] * rounds, AUTH]
    a, b = lab.sa(lab.a), lab.sa(lab.b)
    assert a.keys is not None
    assert b.keys is not None
    assert a.keys.sk_d == b.keys.sk_d
    assert a.proposal is not None
    assert len(additional.methods(a.proposal)) == rounds


@pytest.mark.parametrize(
    ("ours", "theirs", "chosen"),
    [
        ("x25519-ke1_mlkem768-ke1_none", "x25519", []),
        ("x25519", "x25519-ke1_mlkem768-ke1_none", []),
        ("x25519-ke1_mlkem768-ke1_none-ke2_ecp256-ke2_none", "x25519-ke2_ecp256", [KeMethod.ECP_256]),
        ("x25519-ke1_mlkem768-ke1_mlkem1024", "x25519-ke1_mlkem1024", [KeMethod.ML_KEM_1024]),
        ("x25519-ecp256-ke1_x25519-ke1_ecp256", "x25519-ecp256-ke1_x25519-ke1_ecp256", [KeMethod.ECP_256]),
    ],
)
def test_which_are_agreed(ours: str, theirs: str, chosen: list[int]) -> None:
    lab = Lab(a={"proposals": ike(ours)}, b={"proposals": ike(theirs)}).initiate()
    proposal = lab.sa(lab.a).proposal
    assert proposal is not None
    assert additional.methods(proposal) == chosen
    assert additional.sound(proposal.transforms)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("x25519-ke1_mlkem768", "x25519"),
        ("x25519", "x25519-ke1_mlkem768"),
        ("x25519-ke1_mlkem768", "x25519-ke1_mlkem1024"),
        ("x25519-ke1_mlkem768", "x25519-ke2_mlkem768"),
        ("x25519-ecp256-ke1_x25519", "x25519-ke1_x25519-ke1_ecp256"),
    ],
)
def test_no_proposal_in_common(ours: str, theirs: str) -> None:
    lab = Lab(a={"proposals": ike(ours)}, b={"proposals": ike(theirs)}).initiate()
    assert not lab.b.sas
    assert exchanges(lab) == [INIT]


# -- what is said, and by whom


def init_notifies(lab: Lab, *, response: bool) -> set[int]:
    data = next(d for d in lab.sent if parse_header(d).response is response)
    header = parse_header(data)
    payloads = parse_payloads(header.next_payload, data[HEADER_LEN:], header.exchange, False)
    return {p.notify for p in payloads if isinstance(p, NotifyPayload)}


@pytest.mark.parametrize(
    ("ours", "theirs", "announced", "answered"),
    [
        ("x25519", "x25519", False, False),
        ("mlkem768", "mlkem768", False, False),
        ("x25519-ke1_ecp256-ke1_none", "x25519", True, False),
        ("x25519-ke1_ecp256", "x25519-ke1_ecp256", True, True),
    ],
)
def test_peers_that_have_no_use_for_it_do_not_hear_of_it(
    ours: str, theirs: str, announced: bool, answered: bool
) -> None:
    """N(INTERMEDIATE_EXCHANGE_SUPPORTED)."""
    lab = Lab(a={"proposals": ike(ours)}, b={"proposals": ike(theirs)}).initiate()
    for response, said in ((False, announced), (True, answered)):
        assert (NotifyType.INTERMEDIATE_EXCHANGE_SUPPORTED in init_notifies(lab, response=response)) is said


def without_notify(data: bytes, number: int) -> bytes:
    """An IKE_SA_INIT message that lacks a notify."""
    header = parse_header(data)
    payloads = parse_payloads(header.next_payload, data[HEADER_LEN:], header.exchange, False)
    kept = [p for p in payloads if not (isinstance(p, NotifyPayload) and p.notify == number)]
    assert len(kept) < len(payloads)
    first, content = emit_payloads(kept)
    size = HEADER_LEN + len(content)
    return emit_header(header.spi_i, header.spi_r, first, INIT, header.flags, 0, size) + content


@pytest.mark.parametrize(("text", "methods"), [("x25519-ke1_ecp256-ke1_none", []), ("x25519-ke1_ecp256", None)])
def test_an_initiator_that_cannot_do_it_gets_none(text: str, methods: list[int] | None) -> None:
    """HDR, SAi1 with ADDKE1, no N(INTERMEDIATE_EXCHANGE_SUPPORTED): NONE, if that is offered."""
    lab = Lab(proposals=ike(text)).initiate(pump=False)
    target, data, path = next(lab.flow())
    target.receive_datagram(without_notify(data, NotifyType.INTERMEDIATE_EXCHANGE_SUPPORTED), path, lab.now)
    if methods is None:
        assert not target.sas
        return
    (sa,) = target.sas.values()
    assert sa.proposal is not None
    assert additional.methods(sa.proposal) == methods


def test_an_answer_with_additional_key_exchanges_and_without_the_notify_is_none() -> None:
    """Nobody vouches for it: the right one may still come."""
    lab = Lab(proposals=IKE_FURTHER).initiate(pump=False)
    _, data, path = arrives(lab, 1)
    (sa,) = lab.a.sas.values()
    lab.a.receive_datagram(without_notify(data, NotifyType.INTERMEDIATE_EXCHANGE_SUPPORTED), path, lab.now)
    assert sa.keys is None
    lab.a.receive_datagram(data, path, lab.now)
    assert sa.keys is not None
    lab.pump()
    assert lab.sa(lab.a).established


# -- what must not be


def waiting(count: int, **more: Any) -> tuple[Lab, Target, Any]:
    """The responder after that many datagrams."""
    lab = Lab(**{"proposals": IKE_FURTHER, "settings": {"fragment_size": 4000}, **more}).initiate(pump=False)
    lab.pump(count)
    (sa,) = lab.b.sas.values()
    lab.b.datagrams_to_send()
    return lab, lab.b, sa


def give(lab: Lab, target: Target, sa: Any, exchange: int, payloads: list[Payload]) -> list[Payload]:
    """What the responder says to a request of its peer's; nothing if it says nothing."""
    first, content = emit_payloads(payloads)
    cipher = sa.out_cipher
    target.receive_datagram(seal(sa, first, content, exchange, sa.message_id_in), sa.path, lab.now)
    out = target.datagrams_to_send()
    if not out:
        return []
    (data, *_), head = out[0], parse_header(out[0][0])
    text = cipher.open(data[: HEADER_LEN + 4], data[HEADER_LEN + 4 :])
    return parse_payloads(data[HEADER_LEN], text, head.exchange, True)


@pytest.mark.parametrize("done", [0, 1])
def test_ike_auth_is_not_taken_before_all_key_exchanges(done: int) -> None:
    """Else the keys would come from the first one alone."""
    lab = Lab(proposals=IKE_FURTHER, settings={"fragment_size": 4000}).initiate(pump=False)
    # the initiator would go on with the request that is held back
    arrives(lab, 2 + 2 * done)
    (ours,) = lab.a.sas.values()
    (sa,) = lab.b.sas.values()
    assert ours.init is not None
    ours.init.further.methods = []
    ours.pending = None
    ours.queue.clear()
    lab.a.datagrams_to_send()
    ours.message_id_out -= 1
    lab.a.keys_agreed(ours, lab.now)
    ((data, *_),) = lab.a.datagrams_to_send()
    assert parse_header(data).exchange == AUTH
    lab.b.receive_datagram(data, sa.path, lab.now)
    assert not lab.b.sas
    assert not lab.b.half_open


def test_no_more_key_exchanges_than_were_agreed() -> None:
    lab, target, sa = waiting(1, proposals=ike("x25519"))
    (refused,) = give(lab, target, sa, BETWEEN, [KePayload(KeMethod.ECP_256, bytes(64))])
    assert isinstance(refused, NotifyPayload)
    assert refused.notify == NotifyType.INVALID_SYNTAX
    assert not target.sas


BAD_KES: dict[str, list[Payload]] = {
    "none": [],
    "another method": [KePayload(KeMethod.ECP_256, bytes(64))],
    "the first method": [KePayload(KeMethod.CURVE_25519, bytes(32))],
    "short": [KePayload(KeMethod.ML_KEM_768, bytes(1183))],
    "long": [KePayload(KeMethod.ML_KEM_768, bytes(1185))],
    "no key": [KePayload(KeMethod.ML_KEM_768, b"\xff" * 1184)],
    "two": [KePayload(KeMethod.ML_KEM_768, bytes(1184))] * 2,
}


@pytest.mark.parametrize("bad", BAD_KES)
def test_a_key_exchange_that_fails_ends_the_ike_sa(bad: str) -> None:
    lab, target, sa = waiting(1)
    (refused,) = give(lab, target, sa, BETWEEN, BAD_KES[bad])
    assert isinstance(refused, NotifyPayload)
    assert refused.notify == NotifyType.INVALID_SYNTAX
    assert not target.sas
    assert not target.half_open
    assert not target.init_requests


def test_a_critical_payload_that_nobody_knows_ends_the_ike_sa() -> None:
    """RFC 9242 section 3.4, RFC 7296 section 2.21.2. Were it kept, AUTH would not cover this exchange."""
    lab, target, sa = waiting(1)
    (refused,) = give(lab, target, sa, BETWEEN, [UnknownPayload(200, True, b"")])
    assert isinstance(refused, NotifyPayload)
    assert refused.notify == NotifyType.UNSUPPORTED_CRITICAL_PAYLOAD
    assert not target.sas
    assert not target.half_open


ANSWERS: dict[str, list[Payload]] = {
    **{name: [KePayload(ke.method, ke.data[:-96]) for ke in kes if isinstance(ke, KePayload)] for name, kes in
       BAD_KES.items() if name != "no key"},
    "an error": [NotifyPayload(NotifyType.NO_PROPOSAL_CHOSEN)],
}  # fmt: skip


@pytest.mark.parametrize("bad", ANSWERS)
def test_an_answer_that_is_none_ends_the_ike_sa(bad: str) -> None:
    lab = Lab(proposals=IKE_FURTHER, settings={"fragment_size": 4000}).initiate(pump=False)
    lab.pump(3)
    lab.b.datagrams_to_send()
    (sa,) = lab.a.sas.values()
    first, content = emit_payloads(ANSWERS[bad])
    lab.a.receive_datagram(seal(sa, first, content, BETWEEN, 1, response=True), sa.path, lab.now)
    assert sa.state is IkeState.DESTROYING
    assert not lab.a.sas


def test_an_error_that_nobody_vouches_for_changes_nothing() -> None:
    lab = Lab(proposals=IKE_FURTHER).initiate(pump=False)
    lab.pump(2)
    (sa,) = lab.a.sas.values()
    before = Checkpoint(lab.a)
    first, content = emit_payloads([NotifyPayload(NotifyType.INVALID_SYNTAX)])
    head = emit_header(sa.spi_i, sa.spi_r, first, BETWEEN, 0x20, 1, HEADER_LEN + len(content))
    lab.a.receive_datagram(head + content, sa.path, lab.now)
    assert not before.changes()


def test_the_first_message_again_is_not_answered_with_what_came_later() -> None:
    """Whoever has recorded it gets nothing for it once the initiator has our answer (RFC 7296 section 2.1)."""
    lab, target, sa = waiting(1)
    # the initiator goes to another port soon
    path = sa.path
    target.receive_datagram(lab.sent[0], path, lab.now)
    ((answer, *_),) = target.datagrams_to_send()
    assert answer == sa.init.message_2
    lab, target, sa = waiting(3)
    target.receive_datagram(lab.sent[0], path, lab.now)
    assert not target.datagrams_to_send()
    assert list(target.sas.values()) == [sa]


@pytest.mark.parametrize("fragments", [1, 2])
def test_messages_are_not_kept_for_auth_any_longer_than_needed(fragments: int) -> None:
    """There may be thousands of half-open IKE_SAs, and anybody may have their keys."""
    lab, target, sa = waiting(1)
    ke = KePayload(KeMethod.ML_KEM_768, key_exchange(KeMethod.ML_KEM_768, lab.a.rng).public)
    first, content = emit_payloads([ke, VendorPayload(bytes(20_000))])
    half = len(content) // fragments + 1
    for number in range(1, fragments + 1):
        part = content[(number - 1) * half : number * half]
        fragment = (number, fragments) if fragments > 1 else None
        head = first if number == 1 else 0
        target.receive_datagram(seal(sa, head, part, BETWEEN, 1, fragment=fragment), sa.path, lab.now)
    assert target.datagrams_to_send()
    assert sa.init.further.rounds == 1
    assert not any(sa.init.further.heard)


def test_who_stops_half_way_is_forgotten() -> None:
    """Half-open IKE_SAs are counted until they are authenticated, however many key exchanges they have done."""
    lab, target, sa = waiting(3)
    assert sa.init.further.rounds == 1
    assert len(target.half_open) == 1
    target.handle_timer(lab.now + target.settings.half_open_timeout + 1)
    assert not target.sas
    assert not target.half_open
    assert target.next_timer() is None


# -- what AUTH covers


def hmac384(key: bytes, data: bytes) -> bytes:
    return hmac.new(key, data, hashlib.sha384).digest()


@pytest.mark.parametrize("size", [4000, 400])
def test_int_auth_is_what_rfc_9242_says(size: int) -> None:
    """Section 3.3.2, computed here once more from what went over the wire."""
    lab = Lab(proposals=ike("x25519-ke1_ecp384-ke2_mlkem768"), settings={"fragment_size": size}).initiate(pump=False)
    sums = [b"", b""]
    keys: dict[int, tuple[bytes, bytes]] = {}
    parts: dict[tuple[int, bool], list[bytes]] = {}
    for target, data, path in lab.flow():
        header = parse_header(data)
        target.catch_up()
        sa = next(iter(target.sas.values()), None)
        if header.exchange == BETWEEN:
            assert sa is not None
            assert sa.keys is not None
            keys.setdefault(header.message_id, (sa.keys.sk_pi, sa.keys.sk_pr))
            parts.setdefault((header.message_id, header.response), []).append(unseal(target, data)[1])
        if header.exchange == AUTH:
            assert sa is not None
            assert sa.init is not None
            got = sa.init.further.int_auth()
            break
        lab.deliver(target, data, path)
    spis = data[:16]
    for number in (1, 2):
        for response in (False, True):
            content = b"".join(parts[number, response])
            flags = 0x20 if response else FLAG_INITIATOR
            length = HEADER_LEN + 4 + len(content)
            head = bytes((PayloadType.SK, 0x20, BETWEEN, flags)) + number.to_bytes(4, "big") + length.to_bytes(4, "big")
            inner = bytes((PayloadType.KE, 0)) + (4 + len(content)).to_bytes(2, "big")
            key = keys[number][response]
            sums[response] = hmac384(key, sums[response] + spis + head + inner + content)
    assert got == sums[0] + sums[1] + (3).to_bytes(4, "big")
    assert (len(parts[2, False]) > 1) is (size == 400)
    lab.deliver(target, data, path)
    lab.pump()
    assert lab.sa(lab.a).established


def test_a_message_is_covered_as_it_came() -> None:
    """Reserved and critical bits of the sender are its own."""
    _, _, sa = waiting(1)
    first, content = emit_payloads([KePayload(KeMethod.ML_KEM_768, bytes(1184))])
    data = bytearray(seal(sa, first, content, BETWEEN, 1))
    data[17], data[29] = 0x2F, 0x80
    found = covered(bytes(data), first, content)
    assert (found[17], found[29]) == (0x2F, 0x80)
    assert found[24:28] == (HEADER_LEN + 4 + len(content)).to_bytes(4, "big")
    assert found[30:32] == (4 + len(content)).to_bytes(2, "big")
    assert found[32:] == content


@pytest.mark.parametrize("who", ["a", "b"])
def test_auth_fails_where_the_ends_have_heard_different_things(who: str) -> None:
    lab = Lab(proposals=IKE_FURTHER).initiate(pump=False)
    engine = getattr(lab, who)
    for target, data, path in lab.flow():
        lab.deliver(target, data, path)
        (sa,) = engine.sas.values()
        if sa.init is not None and sa.init.further.rounds == 2:
            sa.init.further.initiators = bytes(len(sa.init.further.initiators))
            break
    lab.pump()
    assert not any(sa.established for sa in lab.a.sas.values())
    assert not any(sa.established for sa in lab.b.sas.values())


# -- on a bad network


@pytest.mark.parametrize("text", ["x25519-ke1_ecp256", "x25519-ke1_mlkem768-ke2_ecp384", "mlkem768-ke3_x25519"])
@pytest.mark.parametrize("size", [1280, 600])
def test_on_a_network_that_loses_repeats_and_reorders(text: str, size: int) -> None:
    link = Link(latency=0.03, loss=0.20, duplicate=0.20, reorder=0.15, late=2.0)
    settings = IkeSettings(retransmit_tries=20, retransmit_timeout=1.0, retransmit_base=1.1, half_open_timeout=300.0)
    for seed in range(20):
        with unique_ivs():
            pair = Pair(seed, link=link, settings=replace(settings, fragment_size=size), proposals=ike(text))
            pair.a.initiate()
            pair.world.until(lambda pair=pair: bool(pair.a.children and pair.b.children), 600.0)  # type: ignore[misc]
            pair.finish()


def test_a_request_that_comes_again_gets_its_answer_again() -> None:
    """Though there are other keys by then; in one piece, in fragments, and in smaller fragments (RFC 7383 2.5.2)."""
    for size in (4000, 400):
        lab = Lab(proposals=IKE_FURTHER, settings={"fragment_size": size}).initiate(pump=False)
        arrives(lab, 2)
        (ours,), (sa,) = lab.a.sas.values(), lab.b.sas.values()
        assert ours.pending is not None
        requests = ours.pending.datagrams
        lab.b.catch_up()
        cipher = sa.in_cipher
        for data in requests:
            lab.b.receive_datagram(data, sa.path, lab.now)
        answers = [out.data for out in lab.b.datagrams_to_send()]
        assert answers
        assert sa.in_cipher is not cipher
        for data in requests:
            lab.b.receive_datagram(data, sa.path, lab.now)
        assert [out.data for out in lab.b.datagrams_to_send()] == answers
        smaller = seal(sa, PayloadType.KE, bytes(50), BETWEEN, 1, fragment=(1, 30), cipher=cipher)
        lab.b.receive_datagram(smaller, sa.path, lab.now)
        assert [out.data for out in lab.b.datagrams_to_send()] == answers
