"""Fragments that lie (RFC 7383): about their number, their total, their order, and whether there will ever be an end.

Whoever sends them has the keys of the IKE_SA. Before IKE_AUTH that is anybody who has done a key exchange.
"""

from __future__ import annotations

import itertools
import random

import pytest

from ipsec.ike.events import Path
from ipsec.ike.fragment import BYTES_MAX, FRAGMENTS_MAX, Reassembly
from ipsec.ike.registry import COLLECTING_MAX
from ipsec.ike.sa import UNPROVED_BYTES_MAX, IkeSa
from ipsec.ike.state import IkeState
from ipsec.wire.iana import ExchangeType, PayloadType
from ipsec.wire.ike import parse_header
from tests.ike.hostile import A, Attack, B, Lab, Target, seal, unseal

AUTH = ExchangeType.IKE_AUTH
SMALL = {"fragment_size": 400}


def half_open(**more: object) -> tuple[Lab, Target, IkeSa, int, bytes]:
    """The responder before IKE_AUTH, and first type and content of the genuine request."""
    lab = Lab(**more).initiate(pump=False)  # type: ignore[arg-type]
    lab.pump(2)
    sa = next(iter(lab.b.sas.values()))
    first, content = unseal(lab.b, lab.sent[-1])
    return lab, lab.b, sa, first, content


def cut(content: bytes, pieces: int) -> list[bytes]:
    size = -(-len(content) // pieces)
    return [content[at * size : (at + 1) * size] for at in range(pieces)]


def fragment(sa: IkeSa, first: int, number: int, total: int, piece: bytes, message_id: int = 1) -> bytes:
    return seal(sa, first if number == 1 else 0, piece, AUTH, message_id, fragment=(number, total))


def give(lab: Lab, engine: Target, sa: IkeSa, data: bytes) -> list[bytes]:
    engine.receive_datagram(data, sa.path, lab.now)
    return [out for out, *_ in engine.datagrams_to_send()]


def test_cve_t_03_every_order() -> None:
    """CVE-2013-6076, CVE-2016-10396: all orders of up to six fragments, each fragment twice."""
    lab, engine, sa, first, content = half_open()
    attack = Attack(engine, sa.path, lab.now)
    for pieces in (1, 2, 3, 4, 6):
        fragments = [fragment(sa, first, n, pieces, p) for n, p in enumerate(cut(content, pieces), 1)]
        for order in itertools.permutations(range(pieces)):
            replies: list[bytes] = []
            for position in order:
                assert not replies
                for _ in range(2):
                    replies += give(lab, engine, sa, fragments[position])
            assert sa.state is IkeState.ESTABLISHED
            # fragment 1 alone is answered when it comes again (RFC 7383 section 2.6.1)
            assert len(replies) == (2 if order[-1] == 0 else 1)
            engine.drain()
            attack.before.restore()
            assert sa.state is IkeState.CONNECTING


@pytest.mark.parametrize("total", [0, 1, 2, 3, 254, 255, 256, 65535])
@pytest.mark.parametrize("number", [0, 1, 2, 3, 254, 255, 256, 65535])
def test_cve_t_54_number_and_total(number: int, total: int) -> None:
    """CVE-2016-1287: fields that cannot be, around a body of every small size."""
    lab, engine, sa, first, _ = half_open()
    attack = Attack(engine, sa.path, lab.now)
    good = 1 <= number <= total <= FRAGMENTS_MAX
    for size in range(41):
        out = give(lab, engine, sa, fragment(sa, first, number, total, bytes(size)))
        if not good:
            assert not out
            assert sa.collected is None or not len(sa.collected.reassembly)
        engine.drain()
        attack.before.restore()


@pytest.mark.parametrize("size", range(44))
def test_cve_t_54_body_shorter_than_its_header(size: int) -> None:
    lab, engine, sa, first, content = half_open()
    attack = Attack(engine, sa.path, lab.now)
    whole = fragment(sa, first, 1, 2, content[:40])
    short = whole[: 28 + size]
    short = short[:24] + len(short).to_bytes(4, "big") + short[28:]
    for length in (0, 1, 3, 4, 7, 8, size, size + 1, 65535):
        data = short[:30] + length.to_bytes(2, "big") + short[32:] if size >= 4 else short
        attack.stranger(data)


def test_icv_before_keeping() -> None:
    """OB-73: what does not authenticate is not kept, whichever bit is wrong."""
    lab, engine, sa, first, content = half_open()
    attack = Attack(engine, sa.path, lab.now)
    data = fragment(sa, first, 1, 3, content[:60])
    for at in range(len(data)):
        for bit in range(8):
            attack.stranger(data[:at] + bytes((data[at] ^ 1 << bit,)) + data[at + 1 :])


def test_contradictions() -> None:
    """The same number with other contents, a smaller total, a larger one, first types that differ, SK in between."""
    lab, engine, sa, first, content = half_open()
    pieces = cut(content, 3)
    assert not give(lab, engine, sa, fragment(sa, first, 1, 3, pieces[0]))
    # overlap: what came first stays
    assert not give(lab, engine, sa, fragment(sa, 99, 1, 3, b"\xff" * 500))
    assert not give(lab, engine, sa, fragment(sa, first, 2, 3, pieces[1]))
    assert not give(lab, engine, sa, fragment(sa, first, 2, 2, b"\xff" * 50))
    assert not give(lab, engine, sa, seal(sa, 77, b"", AUTH, 1, fragment=(2, 3)))
    (reply,) = give(lab, engine, sa, fragment(sa, first, 3, 3, pieces[2]))
    assert sa.state is IkeState.ESTABLISHED
    assert parse_header(reply).message_id == 1


def test_a_larger_total_begins_anew() -> None:
    lab, engine, sa, first, content = half_open()
    for number, piece in enumerate(cut(content, 3)[:2], 1):
        assert not give(lab, engine, sa, fragment(sa, first, number, 3, piece))
    pieces = cut(content, 5)
    for number, piece in enumerate(pieces[:4], 1):
        assert not give(lab, engine, sa, fragment(sa, first, number, 5, piece))
    # late ones of the first try are nothing
    assert not give(lab, engine, sa, fragment(sa, first, 3, 3, cut(content, 3)[2]))
    assert len(give(lab, engine, sa, fragment(sa, first, 5, 5, pieces[4]))) == 1
    assert sa.state is IkeState.ESTABLISHED


def test_smaller_fragments_of_what_was_answered() -> None:
    """RFC 7383 section 2.5.2: the answer was lost, and the sender takes that for the path's MTU.

    Only the first is answered, only if it is authentic, and with what was answered before.
    """
    lab, engine, sa, first, content = half_open()
    larger = [fragment(sa, first, number, 2, piece) for number, piece in enumerate(cut(content, 2), 1)]
    (answer,) = (out for data in larger for out in give(lab, engine, sa, data))
    smaller = [fragment(sa, first, number, 5, piece) for number, piece in enumerate(cut(content, 5), 1)]
    assert [give(lab, engine, sa, data) for data in smaller] == [[answer], [], [], [], []]
    assert give(lab, engine, sa, smaller[0]) == [answer]
    broken = bytearray(smaller[0])
    broken[-1] ^= 1
    assert give(lab, engine, sa, bytes(broken)) == []
    assert give(lab, engine, sa, fragment(sa, first, 1, 5, b"x", message_id=0)) == []
    assert sa.message_id_in == 2
    assert sa.state is IkeState.ESTABLISHED


def test_a_whole_message_in_between() -> None:
    lab, engine, sa, first, content = half_open()
    assert not give(lab, engine, sa, fragment(sa, first, 1, 2, content[:50]))
    assert len(give(lab, engine, sa, seal(sa, first, content, AUTH, 1))) == 1
    assert sa.state is IkeState.ESTABLISHED
    # the rest of what was replaced is an old message now
    attack = Attack(engine, sa.path, lab.now)
    attack.stranger(fragment(sa, first, 2, 2, content[50:]))


def test_fragments_that_were_not_agreed() -> None:
    lab, engine, sa, first, content = half_open()
    sa.fragmentation = False
    attack = Attack(engine, sa.path, lab.now)
    attack.stranger(fragment(sa, first, 1, 2, content[:50]))
    attack.stranger(fragment(sa, first, 1, 1, content))


def test_cve_t_47_payloads_before_the_fragment() -> None:
    """CVE-2026-12413: SKF behind as many outer payloads as there may be, and more."""
    lab, engine, sa, first, content = half_open()
    attack = Attack(engine, sa.path, lab.now)
    inner = fragment(sa, first, 1, 2, content[:50])[28:]
    for count in (1, 98, 99, 100, 101, 102, 4000):
        outer = b"".join(bytes((PayloadType.SKF if n == count - 1 else 200, 0, 0, 4)) for n in range(count))
        head = bytearray(fragment(sa, first, 1, 2, b"")[:28])
        head[16] = 200
        head[24:28] = (28 + len(outer) + len(inner)).to_bytes(4, "big")
        # the ICV covers what is in front, so that all of these are noise
        attack.stranger(bytes(head) + outer + inner)


def test_never_ending() -> None:
    """One IKE_SA that is not authenticated: 10^5 fragments, bounded octets."""
    lab, engine, sa, first, _ = half_open()
    rng = random.Random(1)
    most = 0
    for count in range(20_000):
        total = rng.choice((2, 3, 100, 254, 255))
        data = fragment(sa, first, rng.randint(1, total - 1), total, bytes(rng.choice((0, 1, 1000, 30_000))))
        assert not give(lab, engine, sa, data), count
        if sa.collected is not None:
            most = max(most, len(sa.collected.reassembly))
    assert 30_000 <= most <= UNPROVED_BYTES_MAX
    assert sa.state is IkeState.CONNECTING
    engine.handle_timer(lab.now + 31)
    assert not engine.sas
    assert not engine.collecting


def test_cve_t_55_many_that_never_end() -> None:
    """CVE-2016-1344: very many half-open IKE_SAs with fragments keep no more than some of them."""
    lab = Lab(settings={"cookie_threshold": 10**6, "cookie_threshold_ip": 10**6})
    for _ in range(3 * COLLECTING_MAX):
        lab.a.initiate(lab.ca, [], Path(A, 500, B, 500), lab.now)
        # a new one each time: what is there is not joined
        for sa in lab.a.sas.values():
            sa.quiet = True
        out = lab.a.datagrams_to_send()
        data, path, _ = out[-1]
        lab.b.receive_datagram(data, path._replace(local=path.remote, remote=path.local), lab.now)
        lab.b.datagrams_to_send()
    sas = list(lab.b.sas.values())
    assert len(sas) == 3 * COLLECTING_MAX
    for sa in sas:
        for number in (1, 2):
            give(lab, lab.b, sa, fragment(sa, 35, number, 3, bytes(30_000)))
        kept = sum(len(one.collected.reassembly) for one in sas if one.collected is not None)
        assert kept <= COLLECTING_MAX * UNPROVED_BYTES_MAX
    assert len(lab.b.collecting) == COLLECTING_MAX
    # who was pushed out begins again, and is heard
    assert sas[0].collected is None
    while (due := lab.b.next_timer()) is not None and due <= lab.now + 31:
        lab.b.handle_timer(lab.now + 31)
    assert not lab.b.sas
    assert not lab.b.collecting


def Path_(lab: Lab):  # type: ignore[no-untyped-def]
    from ipsec.ike.events import Path
    from tests.ike.hostile import A, B

    return Path(A, 500, B, 500)


def test_an_authenticated_peer_is_bounded_as_well() -> None:
    lab = Lab().initiate()
    sa = lab.sa(lab.b)
    for number in range(1, 255):
        data = seal(sa, 41 if number == 1 else 0, bytes(60_000), ExchangeType.INFORMATIONAL, sa.message_id_in,
                    fragment=(number, 255))  # fmt: skip
        assert not give(lab, lab.b, sa, data)
        assert sa.collected is not None
        assert len(sa.collected.reassembly) <= BYTES_MAX
    assert sa.state is IkeState.ESTABLISHED
    assert not lab.b.collecting


def test_cve_t_53_cost_does_not_grow() -> None:
    """CVE-2015-4047, CVE-2016-10396: work per fragment, in steps that a reassembly takes, whatever came before."""

    class Counting(dict):  # type: ignore[type-arg]
        touched = 0

        def __contains__(self, key: object) -> bool:
            Counting.touched += 1
            return super().__contains__(key)

        def __iter__(self):  # type: ignore[no-untyped-def]
            Counting.touched += len(self)
            return super().__iter__()

    reassembly = Reassembly()
    reassembly.add(255, 255, 0, b"x")
    reassembly._pieces = Counting(reassembly._pieces)
    for number in range(254, 0, -1):
        reassembly.add(number, 255, 0, b"x")
    assert Counting.touched <= 2 * 255
