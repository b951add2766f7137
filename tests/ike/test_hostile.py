"""Genuine messages of every exchange, damaged in every way, in clear and inside SK with the valid keys.

Each hostile message meets the engine in the state in which the genuine one comes. Bytes that do not authenticate change
nothing, and are answered with at most one message not longer than themselves; what authenticates may do no more than
its sender could do anyway. No exception is left over.

The default run takes a sample of the mutations, spread evenly; the one marked slow takes them all, but for octets whose
values are all alike: in the middle of nonces, keys and signatures, and of what the ICV covers as a whole.
"""

from __future__ import annotations

import itertools
import logging
import os
import random
from collections.abc import Callable, Container, Iterator
from typing import Any, TextIO

import pytest

from ipsec.crypto.identity import ANY_IDENTITY, parse_identity, parse_pattern
from ipsec.ike.config import AuthClass, Childless, LocalAuth, RemoteAuth, Unique
from ipsec.ike.events import Path
from ipsec.wire.iana import EapType, ExchangeType, NotifyType, PayloadType
from ipsec.wire.ike import HEADER_LEN, parse_header
from tests.ike.hostile import (
    A2,
    ESP_FURTHER,
    ESP_PFS,
    IKE_BOTH,
    IKE_CBC,
    IKE_FURTHER,
    Attack,
    Lab,
    Raw,
    Target,
    join_raw,
    proof_in,
    seal,
    split_raw,
    unseal,
    whose,
)

EXCHANGES = {
    ExchangeType.IKE_SA_INIT,
    ExchangeType.IKE_AUTH,
    ExchangeType.CREATE_CHILD_SA,
    ExchangeType.INFORMATIONAL,
    ExchangeType.IKE_INTERMEDIATE,
    ExchangeType.IKE_FOLLOWUP_KE,
}


# -- scenes: between them, all messages that we send


def everything(lab: Lab) -> None:
    lab.initiate()
    lab.b.rekey_child(lab.sa(lab.b).children_up()[0], lab.now)
    lab.pump()
    lab.a.initiate(lab.ca, [(lab.ca.children[1], 0)], lab.sa(lab.a).path, lab.now)
    lab.pump()
    lab.a.rekey_ike_sa(lab.sa(lab.a), lab.now)
    lab.pump()
    lab.a.terminate_child(lab.sa(lab.a).children_up()[0], lab.now)
    lab.pump()
    lab.pass_time(10.0)
    lab.b.terminate_ike(lab.sa(lab.b), lab.now)
    lab.pump()


def collide(lab: Lab) -> None:
    """Both ends rekey at once: first the CHILD_SA, then the IKE_SA."""
    lab.initiate()
    for engine in (lab.a, lab.b):
        engine.rekey_child(lab.sa(engine).children_up()[0], lab.now)
    lab.pump()
    lab.pass_time(10.0)
    for engine in (lab.a, lab.b):
        engine.rekey_ike_sa(lab.sa(engine), lab.now)
    lab.pump()
    for engine in (lab.a, lab.b):
        engine.terminate_ike(lab.sa(engine), lab.now)
    lab.pump()


def move(lab: Lab) -> None:
    lab.initiate()
    lab.a.update_address(lab.sa(lab.a), A2, lab.now)
    lab.pump()
    lab.pass_time(40.0)


def authenticate_only(lab: Lab) -> None:
    lab.initiate()


ROUNDS = {
    "a": {"local_rounds": (LocalAuth(AuthClass.EAP, parse_identity("moon"), eap_id=parse_identity("carol")),
                           LocalAuth(AuthClass.PSK, parse_identity("moon")))},
    "b": {"remote_rounds": (RemoteAuth(AuthClass.EAP, parse_pattern("moon"), eap_id=ANY_IDENTITY),
                            RemoteAuth(AuthClass.PSK, parse_pattern("moon")))},
}  # fmt: skip
FURTHER = {
    "proposals": IKE_FURTHER, "child": {"esp_proposals": ESP_FURTHER}, "settings": {"fragment_size": 4000},
}  # fmt: skip
SCENES: dict[str, tuple[Callable[[Lab], None], dict[str, Any]]] = {
    "all": (everything, {"child": {"esp_proposals": ESP_PFS}}),
    "cbc": (everything, {"proposals": IKE_CBC}),
    "collisions": (collide, {}),
    "certificates": (authenticate_only, {"certs": True, "vip": True, "mobike": True}),
    "fragments": (authenticate_only, {"certs": True, "settings": {"fragment_size": 400}}),
    "cookie": (authenticate_only, {"b": {"settings": {"cookie_threshold": 0}}}),
    "another group": (authenticate_only, {"a": {"proposals": IKE_BOTH}, "b": {"proposals": IKE_BOTH[1:]}}),
    "redirect": (authenticate_only, {"b": {"settings": {"redirect_to": "192.0.2.77"}}}),
    "mobike": (move, {"mobike": True, "dpd_delay": 30.0}),
    "several key exchanges": (everything, FURTHER),
    "several key exchanges cross": (collide, FURTHER),
    "key exchange in fragments": (authenticate_only, {"proposals": IKE_FURTHER, "settings": {"fragment_size": 400}}),
    "eap": (authenticate_only, {"eap": EapType.MSCHAPV2, "vip": True, "mobike": True}),
    "eap without a key": (authenticate_only, {"eap": EapType.MD5}),
    "several authentications": (authenticate_only, ROUNDS),
    "childless": (everything, {"childless": Childless.PREFER, "unique": Unique.REPLACE}),
}


# -- mutations of octets


def octets(data: bytes, telling: Container[int]) -> Iterator[bytes]:
    """Every single octet: those at the positions ``telling`` with every other value, others with the few next to the
    edges."""
    for at, old in enumerate(data):
        few = {0, 0xFF, old ^ 1, old ^ 0x80, (old + 1) % 256, (old - 1) % 256}
        for value in set(range(256) if at in telling else few) - {old}:
            yield data[:at] + bytes((value,)) + data[at + 1 :]


#: payloads that have a structure only where they begin
BLOBS = {PayloadType.KE, PayloadType.NONCE, PayloadType.AUTH, PayloadType.CERT, PayloadType.CERTREQ, PayloadType.NOTIFY}
#: the generic header, and what comes before the data in any of these
BEGINNING = 4 + 8


def telling(first: int, content: bytes, start: int = 0) -> set[int]:
    """Positions in a chain of payloads that say what it is and how long, or hold more than random octets."""
    found: set[int] = set()
    at = start
    for kind, _, body in split_raw(first, content):
        size = 4 + len(body)
        found.update(range(at, at + (min(size, BEGINNING) if kind in BLOBS else size)))
        at += size
    return found


def lengths(data: bytes, where: Container[int]) -> Iterator[bytes]:
    """Every pair of octets as if it were a length: values about nothing, about what it was, about everything."""
    for at in filter(where.__contains__, range(len(data) - 1)):
        old = int.from_bytes(data[at : at + 2], "big")
        rest = len(data) - at
        for value in {0, 1, 3, 4, 7, 8, old - 1, old + 1, rest, rest + 2, 0x7FFF, 0xFFFF} - {old}:
            yield data[:at] + (value % 65536).to_bytes(2, "big") + data[at + 2 :]


def truncations(data: bytes) -> Iterator[bytes]:
    """Every shorter one, and some that are longer."""
    for size in range(len(data)):
        yield data[:size]
    for more in (b"\0", b"\0" * 4, b"\xff" * 3, data):
        yield data + more


def sized(data: bytes) -> bytes:
    """The same with its header's length field right."""
    return data[:24] + len(data).to_bytes(4, "big") + data[28:] if len(data) >= HEADER_LEN else data


def sample(found: Iterator[bytes], most: int, rng: random.Random) -> list[bytes]:
    """At most that many, evenly spread."""
    everything = list(found)
    if not most or len(everything) <= most:
        return everything
    step = len(everything) / most
    start = rng.random() * step
    return [everything[int(start + step * i)] for i in range(most) if int(start + step * i) < len(everything)]


# -- mutations of payloads

KNOWN = [int(kind) for kind in PayloadType if kind]
#: bodies that are well-formed for some payload types
BODIES = (b"", b"\0", b"\0" * 4, bytes((3, 0, 0, 2)), b"\x01\x08\0\x01\0\0\0\x01", b"\x00" * 32, b"\xff" * 40)


def payloads(chain: list[Raw]) -> Iterator[list[Raw]]:
    """Deleted, doubled, in another order, of another type, with the critical bit, between others."""
    for at in range(len(chain)):
        yield chain[:at] + chain[at + 1 :]
        yield chain[: at + 1] + chain[at:]
        yield [*chain, chain[at]]
        yield [chain[at], *chain]
        kind, flags, body = chain[at]
        yield [*chain[:at], (kind, flags | 0x80, body), *chain[at + 1 :]]
        yield [*chain[:at], (kind, 0x7F, body), *chain[at + 1 :]]
        yield [*chain[:at], (kind, flags, b""), *chain[at + 1 :]]
        for other in (*KNOWN, 1, 32, 49, 52, 54, 128, 255):
            yield [*chain[:at], (other, flags, body), *chain[at + 1 :]]
    for one, other in itertools.combinations(range(len(chain)), 2):
        swapped = list(chain)
        swapped[one], swapped[other] = swapped[other], swapped[one]
        yield swapped
        yield [payload for at, payload in enumerate(chain) if at not in (one, other)]
    for order in itertools.islice(itertools.permutations(chain), 120):
        yield list(order)
    yield chain[::-1]
    yield []
    for kind in (*KNOWN, 1, 32, 49, 52, 54, 128, 255):
        for flags, body in itertools.product((0, 0x80), BODIES):
            yield [(kind, flags, body), *chain]
            yield [*chain, (kind, flags, body)]
            yield [(kind, flags, body)]
    yield from counted(chain)


def counted(chain: list[Raw]) -> Iterator[list[Raw]]:
    """About as many as there may be, and many more."""
    for number in (98, 99, 100, 101, 102, 2000):
        yield chain + [(43, 0, b"")] * (number - len(chain))
        yield [(43, 0, b"")] * (number - len(chain)) + chain
        yield chain + [(41, 0, bytes((0, 0, 0x40, 0x00)))] * (number - len(chain))


def notifies() -> Iterator[Raw]:
    """Every notify that has a name, and others, with good and bad contents."""
    numbers = [int(n) for n in NotifyType] + [0, 2, 8191, 16383, 20000, 40960, 65535]
    for number in numbers:
        for body in (b"", b"\0\x0e", b"\x01\x04\xc0\x00\x02\x4d", b"\0" * 20, b"\xff" * 257):
            yield 41, 0, b"\0\0" + number.to_bytes(2, "big") + body


# -- campaigns


PARTS = ("outside", "inside")


class Campaign:
    """Attacks on every message of a scene: from outside, from inside with the valid keys, or both."""

    def __init__(self, most: int, parts: Container[str] = PARTS) -> None:
        self.most = most
        self.parts = parts
        self.sent = 0
        self.exchanges: set[tuple[int, bool]] = set()
        self.rng = random.Random(7)

    def tap(self, target: Target, data: bytes, path: Path, now: float) -> None:
        attack = Attack(target, path, now)
        header = parse_header(data)
        self.exchanges.add((header.exchange, header.response))
        if header.exchange == ExchangeType.IKE_SA_INIT:
            if "outside" in self.parts:
                whole = set(range(HEADER_LEN)) | telling(header.next_payload, data[HEADER_LEN:], HEADER_LEN)
                self._clear(attack.opening, data, whole)
                self._opening_payloads(attack, data)
        else:
            if "outside" in self.parts:
                self._protected(attack, data)
            if "inside" in self.parts:
                self._inside(attack, data)
        attack.before.restore()

    def _all(self, give: Callable[[bytes], object], found: Iterator[bytes], genuine: bytes) -> None:
        for mutant in sample(found, self.most, self.rng):
            if mutant != genuine:
                give(mutant)
                self.sent += 1

    def _clear(self, give: Callable[[bytes], object], data: bytes, whole: Container[int]) -> None:
        self._octets(give, data, whole)
        self._all(give, truncations(data), data)
        self._all(give, map(sized, truncations(data)), data)

    def _octets(self, give: Callable[[bytes], object], data: bytes, whole: Container[int]) -> None:
        """``whole``: the positions that are worth every value, if there is time."""
        self._all(give, octets(data, () if self.most else whole), data)
        self._all(give, lengths(data, range(len(data)) if self.most else whole), data)

    def _opening_payloads(self, attack: Attack, data: bytes) -> None:
        header = parse_header(data)

        def emit(chain: list[Raw]) -> bytes:
            first, content = join_raw(chain)
            return sized(data[:16] + bytes((first,)) + data[17:HEADER_LEN] + content)

        chain = split_raw(header.next_payload, data[HEADER_LEN:])
        self._all(attack.opening, map(emit, payloads(chain)), data)
        self._all(attack.opening, (emit([*chain, notify]) for notify in notifies()), data)
        self._all(attack.opening, (emit([notify]) for notify in notifies()), data)

    def _protected(self, attack: Attack, data: bytes) -> None:
        """The ICV covers all of it; the header is read before."""
        self._clear(attack.stranger, data, range(HEADER_LEN + 8))

    def _inside(self, attack: Attack, data: bytes) -> None:
        header = parse_header(data)
        sa = whose(attack.target, header)
        if sa is None:
            return  # closed meanwhile
        first, content = unseal(attack.target, data)
        fragment = None
        if header.next_payload == PayloadType.SKF:
            fragment = int.from_bytes(data[32:34], "big"), int.from_bytes(data[34:36], "big")
        allowed = frozenset((proof_in(first, content, response=header.response),))
        cipher = sa.in_cipher

        def emit(first: int, content: bytes) -> bytes:
            return seal(sa, first, content, header.exchange, header.message_id, response=header.response,
                        fragment=fragment, cipher=cipher)  # fmt: skip

        def give(content: bytes) -> None:
            attack.insider(emit(first, content), allowed)

        # a fragment may begin in the middle of something
        whole = range(BEGINNING) if fragment is not None else telling(first, content)
        self._octets(give, content, whole)
        self._all(give, truncations(content), content)
        if fragment is not None:
            return

        def give_chain(chain: list[Raw]) -> None:
            attack.insider(emit(*join_raw(chain)), allowed)

        chain = split_raw(first, content)
        mutants = list(payloads(chain)) + [[*chain, n] for n in notifies()] + [[n, *chain] for n in notifies()]
        mutants += [[n] for n in notifies()]
        most = 3 * self.most or len(mutants)
        for mutant in mutants if len(mutants) <= most else self.rng.sample(mutants, most):
            give_chain(mutant)
            self.sent += 1


#: hostile messages in the default run
LEAST = 100_000
counted_messages: dict[str, int] = {}
seen_exchanges: set[tuple[int, bool]] = set()


# one process has to see all scenes: the test behind them counts
@pytest.mark.xdist_group("mutations")
@pytest.mark.parametrize("scene", SCENES)
def test_mutations(scene: str) -> None:
    script, more = SCENES[scene]
    campaign = Campaign(most=60)
    lab = Lab(**more)
    lab.tap = campaign.tap
    script(lab)
    counted_messages[scene] = campaign.sent
    seen_exchanges.update(campaign.exchanges)
    assert campaign.sent


@pytest.mark.xdist_group("mutations")
def test_mutations_are_many_and_of_every_exchange() -> None:
    if len(counted_messages) < len(SCENES):
        pytest.skip("not all scenes ran")
    assert sum(counted_messages.values()) >= LEAST
    assert seen_exchanges == set(itertools.product(EXCHANGES, (False, True)))


@pytest.fixture
def spoken() -> Iterator[logging.StreamHandler[TextIO]]:
    """Every line of the log is made and forgotten: kept, a million of them fill the memory."""
    log = logging.getLogger("ipsec")
    with open(os.devnull, "w") as nowhere:
        handler = logging.StreamHandler(nowhere)
        log.addHandler(handler)
        log.propagate = False
        yield handler
        log.propagate = True
        log.removeHandler(handler)


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.usefixtures("spoken")
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("scene", SCENES)
def test_all_mutations(scene: str, part: str) -> None:
    script, more = SCENES[scene]
    lab = Lab(**more)
    campaign = Campaign(most=0, parts=(part,))
    lab.tap = campaign.tap
    script(lab)
    # a scene of IKE_SA_INIT alone has no inside
    assert campaign.sent or (part == "inside" and scene == "redirect")


# -- rows of the list of CVEs that the campaigns do not name


class Stop(Exception):
    """The message that is wanted is there."""


class At:
    """A scene, stopped where a message of a kind arrives; then what is inside it may be anything."""

    def __init__(self, exchange: int, *, response: bool = False, skip: int = 0, scene: str = "all") -> None:
        script, more = SCENES[scene]
        self.lab = Lab(**more)
        self.wanted, self.skip = (exchange, response), skip
        self.lab.tap = self._tap
        with pytest.raises(Stop):
            script(self.lab)

    def _tap(self, target: Target, data: bytes, path: Path, now: float) -> None:
        header = parse_header(data)
        if (header.exchange, header.response) != self.wanted:
            return
        if self.skip:
            self.skip -= 1
            return
        self.header, self.data = header, data
        self.attack = Attack(target, path, now)
        if header.exchange == ExchangeType.IKE_SA_INIT:
            first, content = header.next_payload, data[HEADER_LEN:]
        else:
            first, content = unseal(target, data)
            self.sa = whose(target, header)
            self.allowed = frozenset((proof_in(first, content, response=header.response),))
        self.chain = split_raw(first, content)
        raise Stop

    def give(self, chain: list[Raw]) -> list[bytes]:
        first, content = join_raw(chain)
        header = self.header
        if header.exchange == ExchangeType.IKE_SA_INIT:
            return self.attack.opening(sized(self.data[:16] + bytes((first,)) + self.data[17:HEADER_LEN] + content))
        assert self.sa is not None
        data = seal(self.sa, first, content, header.exchange, header.message_id, response=header.response)
        return self.attack.insider(data, self.allowed)

    def index(self, kind: int) -> int:
        return next(i for i, payload in enumerate(self.chain) if payload[0] == kind)

    def change(self, kind: int, body: bytes) -> list[bytes]:
        """Give it with the first payload of a kind replaced."""
        at = self.index(kind)
        return self.give([*self.chain[:at], (kind, 0, body), *self.chain[at + 1 :]])

    def body(self, kind: int) -> bytes:
        return self.chain[self.index(kind)][2]


INIT, CREATE = ExchangeType.IKE_SA_INIT, ExchangeType.CREATE_CHILD_SA
#: the messages of the scene "all" that carry SA and KE: both of IKE_SA_INIT, of a CHILD_SA's and an IKE_SA's rekeying
KEYED = [
    (exchange, response, skip) for exchange, skip in ((INIT, 0), (CREATE, 0), (CREATE, 2)) for response in (False, True)
]


@pytest.mark.parametrize(("exchange", "response", "skip"), KEYED)
def test_cve_t_05_groups_and_transforms(exchange: int, response: bool, skip: int) -> None:
    """CVE-2014-9221: every KE method of 65536, and every id of every transform type, private ones too."""
    at = At(exchange, response=response, skip=skip)
    ke, offer = at.body(PayloadType.KE), at.body(PayloadType.SA)
    for method in (*range(1100), *range(1100, 65536, 97), 65535):
        at.change(PayloadType.KE, method.to_bytes(2, "big") + ke[2:])
    spi = offer[6]
    size = int.from_bytes(offer[2:4], "big")
    for position in range(8 + spi, size, 8):
        for value in (*range(300), 1024, 1025, 32768, 65535):
            at.change(PayloadType.SA, offer[: position + 6] + value.to_bytes(2, "big") + offer[position + 8 :])
            kind = bytes((value % 256,))
            at.change(PayloadType.SA, offer[: position + 4] + kind + offer[position + 5 :])


@pytest.mark.parametrize(("exchange", "response", "skip"), KEYED)
def test_cve_t_19_33_public_values(exchange: int, response: bool, skip: int) -> None:
    """CVE-2023-41913, 2015-3240: of every length, zero, one, low order; an IKE_SA never comes of a bad one."""
    at = At(exchange, response=response, skip=skip)
    head = at.body(PayloadType.KE)[:4]
    low_order = [0, 1, 2**255 - 19, 2**255 - 20, 2**255 - 18]
    values = [number.to_bytes(32, "little") for number in low_order]
    values += [bytes(size) for size in (0, 1, 31, 33, 64, 255, 65_000)] + [b"\xff" * size for size in (31, 33, 64)]
    for value in values:
        out = at.change(PayloadType.KE, head + value)
        if exchange == INIT and value not in values[1:5]:
            # nothing is kept of it; the cookie asked for first says nothing of the value
            assert not out or parse_header(out[0]).exchange == INIT


@pytest.mark.parametrize(("exchange", "response", "skip"), KEYED)
def test_cve_t_35_46_proposals(exchange: int, response: bool, skip: int) -> None:
    """CVE-2016-5391, 2024-3652: each transform type missing, doubled, NONE; combinations that are not possible."""
    at = At(exchange, response=response, skip=skip)
    offer = at.body(PayloadType.SA)
    spi = offer[8 : 8 + offer[6]]
    protocol = offer[5]
    pool = [
        (1, 0),
        (1, 11),
        (1, 12),
        (1, 20),
        (1, 21),
        (2, 0),
        (2, 5),
        (3, 0),
        (3, 12),
        (3, 9),
        (4, 0),
        (4, 31),
        (5, 0),
    ]
    rng = random.Random(9)
    for count in (0, 1, 2, 3, 4, 5, 6):
        for chosen in itertools.islice(itertools.combinations(pool, count), 400):
            for bits in (0, 128, 7):
                body = b""
                for number, (kind, ident) in enumerate(chosen):
                    attribute = b"\x80\x0e" + bits.to_bytes(2, "big") if bits and kind == 1 else b""
                    more = 3 if number < len(chosen) - 1 else 0
                    body += bytes((more, 0, 0, 8 + len(attribute), kind, 0)) + ident.to_bytes(2, "big") + attribute
                head = bytes((1, protocol, len(spi), len(chosen))) + spi
                if rng.random() < 0.3:
                    at.change(PayloadType.SA, b"\0\0" + (4 + len(head) + len(body)).to_bytes(2, "big") + head + body)


@pytest.mark.parametrize("skip", range(3))
def test_cve_t_40_selectors(skip: int) -> None:
    """CVE-2022-23094's kin 2023-23009: counts, lengths, types, start after end, families mixed, octets left over."""
    at = At(CREATE, skip=skip) if skip < 2 else At(ExchangeType.IKE_AUTH)
    four = bytes.fromhex("07000010 0000ffff c0000201 c0000201".replace(" ", ""))
    six = bytes.fromhex("080000280000ffff") + bytes(16) + b"\xff" * 16
    backwards = bytes.fromhex("07000010 ffff0000 c0000209 c0000201".replace(" ", ""))
    several = (b"", four, six, four + six, backwards, four * 255, four + b"\0", four[:-1])
    bodies = [bytes((count, 0, 0, 0)) + selectors for count in (0, 1, 2, 254, 255) for selectors in several]
    sizes = (0, 1, 7, 8, 15, 16, 17, 40, 65535)
    for kind, length, protocol in itertools.product((0, 6, 7, 8, 9, 255), sizes, (0, 17)):
        bodies.append(b"\1\0\0\0" + bytes((kind, protocol)) + length.to_bytes(2, "big") + four[4:])
    for which in (PayloadType.TSI, PayloadType.TSR):
        for body in bodies:
            at.change(which, body)


@pytest.mark.parametrize("kind", [PayloadType.NOTIFY, PayloadType.DELETE, PayloadType.SA])
def test_cve_t_42_protocols_and_spi_sizes(kind: int) -> None:
    """CVE-2023-38710: all protocol ids and sizes of SPIs, in N(REKEY_SA), D and SA."""
    at = At(ExchangeType.INFORMATIONAL if kind == PayloadType.DELETE else CREATE)
    for protocol, size in itertools.product(range(256), (0, 1, 3, 4, 5, 8, 255)):
        if kind == PayloadType.NOTIFY:
            body = bytes((protocol, size)) + NotifyType.REKEY_SA.to_bytes(2, "big") + bytes(size)
        elif kind == PayloadType.DELETE:
            body = bytes((protocol, size, 0, 2)) + bytes(2 * size)
        else:
            offer = at.body(PayloadType.SA)
            rest = offer[8 + offer[6] :]
            body = b"\0\0" + (8 + size + len(rest)).to_bytes(2, "big")
            body += bytes((1, protocol, size, offer[7])) + bytes(size) + rest
        at.change(kind, body)


def test_cve_t_44_deletes_with_company() -> None:
    """CVE-2023-38712: a Delete before, behind and between others, doubled, of everything at once."""
    at = At(ExchangeType.INFORMATIONAL)
    assert at.sa is not None
    ike = (42, 0, bytes((1, 0, 0, 0)))
    child = next(iter(at.sa.children.values()))
    spi = child.spi_out.to_bytes(4, "big")
    esp = (42, 0, bytes((3, 4, 0, 1)) + spi)
    many = (42, 0, bytes((3, 4, 0, 250)) + spi * 250)
    for delete in (ike, esp, many):
        for other in (ike, esp, many, *notifies(), (43, 0, b""), (47, 0, b"\1\0\0\0")):
            at.give([delete, other])
            at.give([other, delete])
            at.give([delete, other, delete])


@pytest.mark.parametrize("scene", ["all", "cookie"])
def test_cve_t_06_foreign_payloads(scene: str) -> None:
    """CVE-2015-3991: all 256 types in every position, in clear and inside SK."""
    for exchange, response in ((INIT, False), (INIT, True), (ExchangeType.IKE_AUTH, False), (CREATE, False)):
        if scene == "cookie" and exchange == CREATE:
            continue
        at = At(exchange, response=response, scene=scene)
        for kind in range(256):
            for position in range(len(at.chain) + 1):
                at.give([*at.chain[:position], (kind, 0, b"\0" * 12), *at.chain[position:]])


def test_cve_t_30_runts() -> None:
    """CVE-2013-4564: all sizes up to 300 with length fields that have nothing to do with them."""
    at = At(INIT)
    for size in range(301):
        data = (at.data + bytes(300))[:size]
        for length in (0, 1, 27, 28, size - 1, size, size + 1, 1 << 31, (1 << 32) - 1):
            mutant = data[:24] + (length % (1 << 32)).to_bytes(4, "big") + data[28:] if size >= 28 else data
            at.attack.opening(mutant)


def test_cve_t_37_every_bit_of_every_protected_message() -> None:
    """CVE-2019-10155: the ICV covers all of it, in the INFORMATIONAL exchange as in the others."""
    flipped = 0

    def tap(target: Target, data: bytes, path: Path, now: float) -> None:
        nonlocal flipped
        if parse_header(data).exchange == INIT:
            return
        attack = Attack(target, path, now)
        for at in range(len(data)):
            bit = (at * 5 + flipped) % 8
            attack.stranger(data[:at] + bytes((data[at] ^ 1 << bit,)) + data[at + 1 :])
            flipped += 1
        attack.before.restore()

    lab = Lab()
    lab.tap = tap
    everything(lab)
    assert flipped > 2000


def test_ob_48_unknown_critical_payloads_are_named() -> None:
    """RFC 7296 section 2.5."""
    at = At(CREATE)
    for kind in (1, 32, 49, 60, 127, 128, 255):
        (reply,) = at.give([*at.chain, (kind, 0x80, b"")])
        assert parse_header(reply).exchange == CREATE
        # not critical: as if it were not there
        assert at.give([*at.chain, (kind, 0, b"")])


def test_the_campaign_would_find_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    """What finds nothing has to be able to find something."""
    monkeypatch.setattr("ipsec.ike.informational.close_children", lambda sa, spis, now: [spis[10]])
    lab = Lab()
    lab.tap = Campaign(most=20).tap
    with pytest.raises(IndexError):
        everything(lab)
