"""Every state of an IKE_SA, in either role, against every kind of message: 100 % of the table.

A cell is a state, and a message that differs in exchange, flags, message ID and protection. What a cell may do comes
from RFC 7296 alone (sections 2.1, 2.2, 2.21, 3.1), not from the engine's tables: an IKE_SA heeds

* a request, if its ICV is good, its I flag is the peer's, its message ID is the next one, and its exchange is one for
  the state: IKE_INTERMEDIATE and IKE_AUTH before authentication, CREATE_CHILD_SA, IKE_FOLLOWUP_KE and INFORMATIONAL
  after it (RFC 9242, RFC 9370);
* a response, if it is that to the request under way.

All other messages change nothing. Nothing reaches ESTABLISHED in any cell, for none has an AUTH payload that holds.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import pytest

from ipsec.crypto.sk import SkCipher
from ipsec.ike.events import Path
from ipsec.ike.sa import IkeSa
from ipsec.ike.state import IkeState
from ipsec.wire.iana import ExchangeType, NotifyType, PayloadType, Protocol
from ipsec.wire.ike import FLAG_INITIATOR, FLAG_RESPONSE, HEADER_LEN, emit_header, emit_payloads, parse_header
from ipsec.wire.payloads import AuthPayload, DeletePayload, IdPayload, NoncePayload, NotifyPayload, Payload
from tests.ike.hostile import ESP_FURTHER, IKE_FURTHER, A, Attack, B, Checkpoint, Lab, Target, consistent, seal

FIRST = (ExchangeType.IKE_INTERMEDIATE, ExchangeType.IKE_AUTH)
LATER = (ExchangeType.CREATE_CHILD_SA, ExchangeType.IKE_FOLLOWUP_KE, ExchangeType.INFORMATIONAL)


class Scene(NamedTuple):
    """An engine with an IKE_SA in some state."""

    engine: Target
    sa: IkeSa
    path: Path
    now: float


def scene(lab: Lab, engine: Target, sa: IkeSa | None = None) -> Scene:
    here = sa or next(iter(engine.sas.values()))
    engine.drain()
    engine.datagrams_to_send()
    return Scene(engine, here, here.path, lab.now + 1)


def steps(count: int, *, responder: bool, **more: object) -> Scene:
    """After that many datagrams of the first two exchanges were delivered."""
    lab = Lab(**more).initiate(pump=False)  # type: ignore[arg-type]
    lab.pump(count)
    return scene(lab, lab.b if responder else lab.a)


def established(*, responder: bool) -> tuple[Lab, Target, IkeSa]:
    lab = Lab().initiate()
    engine = lab.b if responder else lab.a
    return lab, engine, lab.sa(engine)


def up(responder: bool) -> Scene:
    lab, engine, sa = established(responder=responder)
    return scene(lab, engine, sa)


def rekeying(responder: bool) -> Scene:
    lab, engine, sa = established(responder=responder)
    engine.rekey_ike_sa(sa, lab.now)
    assert sa.state is IkeState.REKEYING
    return scene(lab, engine, sa)


def rekeyed(responder: bool) -> Scene:
    """The peer has rekeyed it and not deleted it yet."""
    lab, engine, sa = established(responder=responder)
    other = lab.a if responder else lab.b
    other.rekey_ike_sa(lab.sa(other), lab.now)
    lab.pump(1)
    assert sa.state is IkeState.REKEYED
    return scene(lab, engine, sa)


def deleting(responder: bool) -> Scene:
    lab, engine, sa = established(responder=responder)
    engine.terminate_ike(sa, lab.now)
    assert sa.state is IkeState.DELETING
    return scene(lab, engine, sa)


def waiting(kind: str) -> Callable[[bool], Scene]:
    """A request of ours is under way that leaves the state as it is."""

    def make(responder: bool) -> Scene:
        lab, engine, sa = established(responder=responder)
        child = sa.children_up()[0]
        if kind == "child rekeying":
            engine.rekey_child(child, lab.now)
        else:
            engine.terminate_child(child, lab.now)
        return scene(lab, engine, sa)

    return make


def between(what: str, *, asks: bool) -> Callable[[bool], Scene]:
    """CREATE_CHILD_SA is done, and additional key exchanges are left (RFC 9370 section 2.2.4)."""

    def make(responder: bool) -> Scene:
        lab = Lab(proposals=IKE_FURTHER, child={"esp_proposals": ESP_FURTHER}).initiate()
        engine, other = (lab.b, lab.a) if responder else (lab.a, lab.b)
        one = engine if asks else other
        if what == "child":
            one.rekey_child(lab.sa(one).children_up()[0], lab.now)
        else:
            one.rekey_ike_sa(lab.sa(one), lab.now)
        lab.pump(2)
        sa = lab.sa(engine)
        assert asks or sa.awaited
        return scene(lab, engine, sa)

    return make


def gone(responder: bool) -> Scene:
    """Closed by the peer; only its last answer is kept."""
    lab, engine, sa = established(responder=responder)
    cipher = sa.in_cipher
    other = lab.a if responder else lab.b
    other.terminate_ike(lab.sa(other), lab.now)
    lab.pump()
    assert not engine.sas
    sa.in_cipher = cipher  # so that the test can make messages under the keys that were
    return scene(lab, engine, sa)


STATES: dict[str, Callable[[], Scene]] = {
    "I waits for IKE_SA_INIT": lambda: steps(0, responder=False),
    "I waits for IKE_AUTH": lambda: steps(2, responder=False),
    "R half-open": lambda: steps(1, responder=True),
    "R half-open, certificates": lambda: steps(3, responder=True, certs=True),
    "I waits for the first IKE_INTERMEDIATE": lambda: steps(2, responder=False, proposals=IKE_FURTHER),
    "I waits for the second IKE_INTERMEDIATE": lambda: steps(5, responder=False, proposals=IKE_FURTHER),
    "R half-open, two key exchanges left": lambda: steps(1, responder=True, proposals=IKE_FURTHER),
    "R half-open, one key exchange left": lambda: steps(5, responder=True, proposals=IKE_FURTHER),
}
for name, make in {
    "established": up,
    "rekeying": rekeying,
    "rekeyed": rekeyed,
    "deleting": deleting,
    "child rekeying": waiting("child rekeying"),
    "child deleting": waiting("child deleting"),
    "child rekeying, key exchanges left": between("child", asks=True),
    "child being rekeyed, key exchanges left": between("child", asks=False),
    "rekeying, key exchanges left": between("ike", asks=True),
    "being rekeyed, key exchanges left": between("ike", asks=False),
    "gone": gone,
}.items():
    for role in (False, True):
        STATES[f"{'R' if role else 'I'} {name}"] = lambda make=make, role=role: make(role)  # type: ignore[misc]

EXCHANGES = (*ExchangeType, 0, 33, 45, 240, 255)
PROTECTION = ("clear", "empty", "notify", "delete", "auth", "create", "fragment", "other key", "bad icv")
IDS = ("next", "last", "after next", "under way", "largest")


class Cell(NamedTuple):
    exchange: int
    response: bool
    initiator: bool
    protection: str
    id: str


CELLS = [Cell(*found) for found in itertools.product(EXCHANGES, (False, True), (False, True), PROTECTION, IDS)]


def contents(protection: str) -> list[Payload]:
    if protection in ("notify", "clear"):
        return [NotifyPayload(NotifyType.INITIAL_CONTACT)]
    if protection == "delete":
        return [DeletePayload(Protocol.IKE, [])]
    if protection == "auth":
        ids: list[Payload] = [IdPayload(PayloadType.IDI, 2, b"moon"), IdPayload(PayloadType.IDR, 2, b"sun")]
        return [*ids, AuthPayload(2, bytes(32))]
    if protection == "create":
        return [NoncePayload(bytes(32))]
    return []


def message_id(sa: IkeSa, which: str) -> int:
    return {
        "next": sa.message_id_in,
        "last": max(sa.message_id_in - 1, 0),
        "after next": sa.message_id_in + 1,
        "under way": sa.pending.message_id if sa.pending is not None else 77,
        "largest": 0xFFFFFFFF,
    }[which]


def build(sa: IkeSa, cell: Cell) -> bytes:
    number = message_id(sa, cell.id)
    first, content = emit_payloads(contents(cell.protection))
    if cell.protection == "clear" or sa.in_cipher is None:
        flags = (FLAG_RESPONSE if cell.response else 0) | (FLAG_INITIATOR if cell.initiator else 0)
        size = HEADER_LEN + len(content)
        return emit_header(sa.spi_i, sa.spi_r, first, cell.exchange, flags, number, size) + content
    cipher = sa.in_cipher
    if cell.protection == "other key":
        cipher = SkCipher(cipher.suite, b"k" * cipher.suite.encr_key_len, b"k" * cipher.suite.integ_key_len)
    fragment = (1, 2) if cell.protection == "fragment" else None
    data = seal(sa, first, content, cell.exchange, number, response=cell.response, initiator=cell.initiator,
                fragment=fragment, cipher=cipher)  # fmt: skip
    return data[:-1] + bytes((data[-1] ^ 1,)) if cell.protection == "bad icv" else data


def may_act(sa: IkeSa, state: str, cell: Cell) -> bool:
    """What RFC 7296 lets a message do anything at all."""
    if cell.exchange == ExchangeType.IKE_SA_INIT:
        # it is in clear, and of an IKE_SA of its own
        return False
    if cell.protection in ("clear", "other key", "bad icv") or sa.in_cipher is None or "gone" in state:
        return False
    if cell.initiator == sa.initiator:
        return False
    if cell.response:
        pending = sa.pending
        if pending is None:
            return False
        return (pending.exchange, pending.message_id) == (cell.exchange, message_id(sa, cell.id))
    number = message_id(sa, cell.id)
    if cell.protection == "fragment" and sa.response and number == sa.message_id_in - 1:
        # RFC 7383 section 2.5.2: the last request in smaller fragments, of which the first one is answered
        return cell.exchange == parse_header(sa.response[0]).exchange
    if number != sa.message_id_in:
        return False
    if "half-open" in state:
        return cell.exchange in FIRST
    return "waits" not in state and cell.exchange in LATER


def test_the_table_is_whole() -> None:
    assert len(CELLS) * len(STATES) >= 1600


@pytest.mark.parametrize("state", STATES)
def test_matrix(state: str) -> None:
    """Covers CVE-T-04, 38 and 49, too: an exchange that is not for the state it meets."""
    engine, sa, path, now = STATES[state]()
    attack = Attack(engine, path, now)
    acted = 0
    for cell in CELLS:
        data = build(sa, cell)
        if not may_act(sa, state, cell):
            attack.stranger(data)
            continue
        acted += 1
        before = {uid for uid, one in engine.sas.items() if one.established_at}
        engine.receive_datagram(data, path, now)
        allowed = {(cell.exchange, message_id_of(data))}
        for reply, *_ in engine.datagrams_to_send():
            header = parse_header(reply)
            assert header.next_payload in (PayloadType.SK, PayloadType.SKF), cell
            assert not header.response or (header.exchange, header.message_id) in allowed, cell
        assert {uid for uid, one in engine.sas.items() if one.established_at} <= before, cell
        engine.drain()
        consistent(engine)
        attack.before.restore()
    assert acted or "gone" in state or "SA_INIT" in state


def message_id_of(data: bytes) -> int:
    return parse_header(data).message_id


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_nobody_there(exchange: int) -> None:
    """An engine without any IKE_SA: nothing comes of a message, whatever it is."""
    lab = Lab()
    lab.b.catch_up()
    path = Path(B, 500, A, 500)
    before = Checkpoint(lab.b)
    for flags, first, number in itertools.product(range(0, 256, 8), (0, 33, 41, 46, 53, 200), (0, 1, 0xFFFFFFFF)):
        for spi_i, spi_r in itertools.product((bytes(8), b"initiato"), (bytes(8), b"responde")):
            body = bytes((0, 0, 0, 8, 0, 0, 0x40, 0)) if first else b""
            head = emit_header(spi_i, spi_r, first, exchange, flags, number, HEADER_LEN + len(body))
            lab.b.receive_datagram(head + body, path, lab.now)
            out = lab.b.datagrams_to_send()
            assert len(out) <= 1
            for reply, *_ in out:
                header = parse_header(reply)
                assert header.response
                assert not flags & FLAG_RESPONSE
                assert (header.spi_i, header.spi_r, header.message_id) == (spi_i, spi_r, number)
            assert not before.changes()
            lab.b._strangers = 0
