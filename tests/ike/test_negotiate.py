"""Choosing a proposal, judging an answer, saying what differs; narrowing of traffic selectors."""

from __future__ import annotations

import time
from ipaddress import ip_address, ip_network

import pytest

from ipsec.errors import ParseError
from ipsec.ike.negotiate import (
    PAIRS_MAX,
    check_answer,
    choose,
    describe,
    explain_mismatch,
    intersect,
    narrow,
    shorten,
    too_many_pairs,
)
from ipsec.wire.iana import Encr, Esn, Integ, KeMethod, Prf, Protocol, TransformType
from ipsec.wire.proposal import UNKNOWN_ATTRIBUTE, Proposal, Transform, emit_proposals, parse_proposals
from ipsec.wire.selector import ANY_PORT, ICMP, OPAQUE, TCP, UDP, TrafficSelector

GCM256, GCM128 = (Transform(TransformType.ENCR, Encr.AES_GCM_16, bits) for bits in (256, 128))
CBC256, CBC128 = (Transform(TransformType.ENCR, Encr.AES_CBC, bits) for bits in (256, 128))
CHACHA = Transform(TransformType.ENCR, Encr.CHACHA20_POLY1305)
SHA256, SHA512, SHA1, NO_INTEG = (
    Transform(TransformType.INTEG, number)
    for number in (Integ.HMAC_SHA2_256_128, Integ.HMAC_SHA2_512_256, Integ.HMAC_SHA1_96, Integ.NONE)
)
PRF256, PRF512 = (Transform(TransformType.PRF, number) for number in (Prf.HMAC_SHA2_256, Prf.HMAC_SHA2_512))
X25519, MODP2048, ECP256, NO_KE = (
    Transform(TransformType.KE, number)
    for number in (KeMethod.CURVE_25519, KeMethod.MODP_2048, KeMethod.ECP_256, KeMethod.NONE)
)
ESN, NO_ESN = Transform(TransformType.ESN, Esn.YES), Transform(TransformType.ESN, Esn.NO)
ADDKE1, NO_ADDKE1 = Transform(TransformType.ADDKE1, KeMethod.ML_KEM_768), Transform(TransformType.ADDKE1, 0)


def ike(*transforms: Transform, number: int = 1) -> Proposal:
    return Proposal(Protocol.IKE, list(transforms), number)


def esp(*transforms: Transform, number: int = 1, spi: bytes = b"abcd") -> Proposal:
    return Proposal(Protocol.ESP, list(transforms), number, spi)


def agreed(ours: Proposal, theirs: Proposal, **how: int | None) -> list[Transform] | None:
    chosen = choose([ours], [theirs], **how)  # type: ignore[arg-type]
    return None if chosen is None else chosen.transforms


# -- choose


def test_our_order_decides() -> None:
    ours = ike(GCM256, GCM128, PRF512, PRF256, X25519, MODP2048)
    theirs = ike(GCM128, GCM256, PRF256, PRF512, MODP2048, X25519)
    assert agreed(ours, theirs) == [GCM256, PRF512, X25519]


def test_our_proposals_come_before_theirs() -> None:
    ours = [ike(GCM256, PRF256, X25519), ike(CBC256, SHA256, PRF256, X25519)]
    theirs = [ike(CBC256, SHA256, PRF256, X25519, number=1), ike(GCM256, PRF256, X25519, number=2)]
    chosen = choose(ours, theirs)
    assert chosen == ike(GCM256, PRF256, X25519, number=2)


def test_result_has_their_number_and_spi() -> None:
    ours = [esp(GCM256, NO_ESN, spi=b"")]
    theirs = [esp(CBC256, SHA256, NO_ESN, number=3), esp(GCM256, NO_ESN, number=7, spi=b"\1\2\3\4")]
    chosen = choose(ours, theirs)
    assert chosen == esp(GCM256, NO_ESN, number=7, spi=b"\1\2\3\4")
    assert ours[0].spi == b""


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (ike(GCM256, PRF256, X25519), ike(GCM128, PRF256, X25519)),
        (ike(GCM256, PRF256, X25519), ike(GCM256, PRF512, X25519)),
        (ike(GCM256, PRF256, X25519), ike(GCM256, PRF256, MODP2048)),
        (ike(GCM256, PRF256, X25519), ike(GCM256, X25519)),
        (ike(GCM256, PRF256, X25519), ike(GCM256, PRF256)),
        (ike(GCM256, PRF256, X25519), ike()),
        (ike(CBC256, SHA256, PRF256, X25519), ike(CBC256, PRF256, X25519)),
        (esp(GCM256), esp(GCM256, X25519)),
        (esp(GCM256, X25519), esp(GCM256)),
        (esp(GCM256, ESN), esp(GCM256)),
        (esp(GCM256), esp(GCM256, ESN)),
        (esp(GCM256), ike(GCM256)),
    ],
)
def test_nothing_in_common(ours: Proposal, theirs: Proposal) -> None:
    assert choose([ours], [theirs]) is None


def test_empty_lists() -> None:
    assert choose([], [ike(GCM256)]) is None
    assert choose([ike(GCM256)], []) is None


def test_encryption_never_comes_without_integrity() -> None:
    assert agreed(esp(CBC256), esp(CBC256)) is None
    assert agreed(esp(CBC256, NO_INTEG), esp(CBC256, NO_INTEG)) is None
    assert agreed(esp(CBC256, NO_INTEG), esp(CBC256)) is None


def test_combined_mode_has_no_integrity() -> None:
    assert agreed(esp(GCM256), esp(GCM256, NO_INTEG)) == [GCM256, NO_INTEG]
    assert agreed(esp(GCM256, NO_INTEG), esp(GCM256)) == [GCM256]
    assert agreed(esp(CHACHA, NO_INTEG), esp(CHACHA, NO_INTEG)) == [CHACHA, NO_INTEG]
    # RFC 7296 section 3.3 wants two proposals where somebody sends one: the cipher that is chosen decides
    assert agreed(ike(GCM256, PRF256, X25519), ike(CBC256, GCM256, SHA256, PRF256, X25519)) == [GCM256, PRF256, X25519]
    mixed = ike(GCM256, CBC256, SHA256, PRF256, X25519)
    assert agreed(mixed, ike(CBC256, SHA256, PRF256, X25519)) == [CBC256, SHA256, PRF256, X25519]


def test_a_cipher_that_fits_with_their_integrity_is_found() -> None:
    assert agreed(esp(CBC256, GCM256, SHA256), esp(CBC256, GCM256)) == [GCM256]


def test_missing_esn_is_no() -> None:
    assert agreed(esp(GCM256, NO_ESN), esp(GCM256)) == [GCM256]
    assert agreed(esp(GCM256), esp(GCM256, NO_ESN)) == [GCM256, NO_ESN]
    assert agreed(esp(GCM256, ESN, NO_ESN), esp(GCM256)) == [GCM256]
    assert agreed(esp(GCM256, ESN, NO_ESN), esp(GCM256, NO_ESN, ESN)) == [GCM256, ESN]


def test_key_exchange_of_none() -> None:
    assert agreed(esp(GCM256), esp(GCM256, X25519, NO_KE)) == [GCM256, NO_KE]
    assert agreed(esp(GCM256, X25519, NO_KE), esp(GCM256)) == [GCM256]
    assert agreed(esp(GCM256, X25519, NO_KE), esp(GCM256, NO_KE, X25519)) == [GCM256, X25519]


def test_first_child_has_no_key_exchange() -> None:
    assert agreed(esp(GCM256, X25519), esp(GCM256), skip_ke=True) == [GCM256]
    assert agreed(esp(GCM256), esp(GCM256, MODP2048), skip_ke=True) == [GCM256]
    assert agreed(esp(GCM256, X25519, ADDKE1), esp(GCM256, NO_KE), skip_ke=True) == [GCM256, NO_KE]
    assert agreed(esp(GCM256), esp(GCM256, ADDKE1), skip_ke=True, ke=31) == [GCM256]


def test_the_method_of_the_ke_payload_is_preferred() -> None:
    ours, theirs = ike(GCM256, PRF256, X25519, MODP2048), ike(GCM256, PRF256, X25519, MODP2048)
    assert agreed(ours, theirs, ke=MODP2048.id) == [GCM256, PRF256, MODP2048]
    # not one of ours: INVALID_KE_PAYLOAD with what we like best
    assert agreed(ours, theirs, ke=ECP256.id) == [GCM256, PRF256, X25519]
    two = [ike(GCM256, PRF256, X25519), ike(CBC256, SHA256, PRF256, MODP2048)]
    assert choose(two, two, ke=MODP2048.id) == two[1]


def test_no_ke_payload_prefers_no_key_exchange() -> None:
    ours = esp(GCM256, X25519, NO_KE)
    assert agreed(ours, esp(GCM256, X25519, NO_KE), ke=0) == [GCM256, NO_KE]
    assert agreed(ours, esp(GCM256), ke=0) == [GCM256]
    assert agreed(ours, esp(GCM256, X25519), ke=0) == [GCM256, X25519]


def test_additional_key_exchange_is_needed_where_offered() -> None:
    hybrid, plain = ike(GCM256, PRF256, X25519, ADDKE1), ike(GCM256, PRF256, X25519)
    assert choose([hybrid], [plain]) is None
    assert choose([plain], [hybrid]) is None
    assert agreed(hybrid, hybrid) == hybrid.transforms
    both = ike(GCM256, PRF256, X25519, ADDKE1, NO_ADDKE1)
    assert agreed(both, plain) == plain.transforms
    assert agreed(plain, both) == [GCM256, PRF256, X25519, NO_ADDKE1]


def test_unknown_attributes_are_never_chosen() -> None:
    strange = GCM256._replace(key_bits=UNKNOWN_ATTRIBUTE)
    assert agreed(esp(GCM256), esp(strange)) is None
    assert agreed(esp(GCM256), esp(strange, GCM256)) == [GCM256]
    # RFC 7296 section 3.3.6: a type that is not known makes the proposal unacceptable
    assert agreed(esp(GCM256), esp(GCM256, Transform(200, 1))) is None


def test_authentication_header() -> None:
    def ah(*transforms: Transform) -> Proposal:
        return Proposal(Protocol.AH, list(transforms))

    assert agreed(ah(SHA256, NO_ESN), ah(SHA1, SHA256)) == [SHA256]
    assert agreed(ah(NO_INTEG), ah(NO_INTEG)) is None
    assert agreed(ah(SHA256), ah(GCM256, SHA256)) is None


def test_over_the_wire() -> None:
    body = emit_proposals([esp(CBC256, SHA256, NO_ESN), esp(GCM128, GCM256, ESN, NO_ESN)])
    chosen = choose([esp(GCM256, GCM128, NO_ESN)], parse_proposals(body, 0, len(body)))
    assert chosen is not None
    assert str(chosen) == "ESP:AES_GCM_16_256/NO_EXT_SEQ"


# -- check_answer

OFFERED = [
    ike(GCM256, GCM128, PRF256, X25519, MODP2048, number=1),
    ike(CBC256, SHA256, SHA512, PRF256, X25519, number=2),
]


@pytest.mark.parametrize(
    "answer",
    [ike(GCM128, PRF256, MODP2048), ike(X25519, PRF256, GCM256), ike(CBC256, SHA512, PRF256, X25519, number=2)],
)
def test_good_answer(answer: Proposal) -> None:
    assert check_answer(OFFERED, [answer]) == answer


@pytest.mark.parametrize(
    "answer",
    [
        [],
        [ike(GCM128, PRF256, MODP2048), ike(GCM128, PRF256, MODP2048)],
        [ike(GCM128, PRF256, MODP2048, number=2)],
        [ike(GCM128, PRF256, MODP2048, number=3)],
        [ike(GCM128, PRF256, MODP2048, number=0)],
        [esp(GCM128, PRF256, MODP2048)],
        [ike(GCM256, GCM128, PRF256, X25519)],
        [ike(GCM256, GCM256, PRF256, X25519)],
        [ike(GCM256, PRF512, X25519)],
        [ike(GCM256, PRF256, ECP256)],
        [ike(GCM256, PRF256)],
        [ike(PRF256, X25519)],
        [ike(GCM256, SHA256, PRF256, X25519)],
        [ike(CBC256, PRF256, X25519, number=2)],
        [ike(CBC256, NO_INTEG, PRF256, X25519, number=2)],
        [ike(GCM256, PRF256, X25519, ESN)],
        [ike(GCM256, PRF256, X25519, Transform(200, 1))],
        [ike(GCM256._replace(key_bits=UNKNOWN_ATTRIBUTE), PRF256, X25519)],
        [ike(GCM256._replace(key_bits=192), PRF256, X25519)],
        [ike()],
    ],
)
def test_bad_answer(answer: list[Proposal]) -> None:
    # OB-55
    with pytest.raises(ParseError):
        check_answer(OFFERED, answer)


def test_answer_with_none_that_was_not_offered() -> None:
    answer = esp(GCM256, NO_INTEG, NO_ESN, NO_KE, spi=b"wxyz")
    assert check_answer([esp(GCM256)], [answer]) == esp(GCM256, spi=b"wxyz")


def test_answer_may_leave_out_what_we_can_do_without() -> None:
    offered = [esp(GCM256, X25519, NO_KE, ESN, NO_ESN)]
    assert check_answer(offered, [esp(GCM256)]).transforms == [GCM256]
    with pytest.raises(ParseError):
        check_answer([esp(GCM256, ESN)], [esp(GCM256)])
    with pytest.raises(ParseError):
        check_answer([esp(GCM256, X25519)], [esp(GCM256, NO_KE)])


def test_answer_to_a_mixed_offer() -> None:
    offered = [esp(GCM256, CBC256, SHA256, NO_ESN)]
    assert check_answer(offered, [esp(GCM256, NO_ESN)]).transforms == [GCM256, NO_ESN]
    assert check_answer(offered, [esp(CBC256, SHA256, NO_ESN)]).transforms == [CBC256, SHA256, NO_ESN]
    for wrong in (esp(GCM256, SHA256, NO_ESN), esp(CBC256, NO_ESN), esp(CBC256, NO_INTEG, NO_ESN)):
        with pytest.raises(ParseError):
            check_answer(offered, [wrong])


def test_unnumbered_offers_are_numbered_by_position() -> None:
    offered = [ike(GCM256, PRF256, X25519, number=0), ike(CBC256, SHA256, PRF256, X25519, number=0)]
    assert check_answer(offered, [ike(CBC256, SHA256, PRF256, X25519, number=2)]).number == 2
    with pytest.raises(ParseError):
        check_answer(offered, [ike(CBC256, SHA256, PRF256, X25519, number=1)])


# -- text


@pytest.mark.parametrize(
    ("ours", "theirs", "text"),
    [
        (
            [esp(GCM256)],
            [esp(CBC128, SHA256)],
            "encryption: we have AES_GCM_16_256, they offer AES_CBC_128; everything else agrees",
        ),
        (
            [ike(GCM256, GCM128, PRF256, X25519)],
            [ike(GCM256, PRF512, MODP2048)],
            "PRF: we have PRF_HMAC_SHA2_256, they offer PRF_HMAC_SHA2_512; "
            "key exchange: we have CURVE_25519, they offer MODP_2048; everything else agrees",
        ),
        (
            [esp(CBC256, SHA256)],
            [esp(CBC256)],
            "integrity: we have HMAC_SHA2_256_128, they offer none; everything else agrees",
        ),
        (
            [esp(GCM256, ESN)],
            [esp(GCM256)],
            "extended sequence numbers: we have EXT_SEQ, they offer NO_EXT_SEQ; everything else agrees",
        ),
        (
            [esp(GCM256)],
            [esp(GCM256, X25519)],
            "key exchange: we have none, they offer CURVE_25519; everything else agrees",
        ),
        (
            [ike(GCM256, PRF256, X25519, ADDKE1)],
            [ike(GCM256, PRF256, X25519)],
            "additional key exchange 1: we have KE1_ML_KEM_768, they offer none; everything else agrees",
        ),
        (
            [ike(GCM256, PRF256, X25519)],
            [ike(CBC256, SHA1, PRF512, MODP2048), ike(GCM256, PRF256, MODP2048, number=2)],
            "key exchange: we have CURVE_25519, they offer MODP_2048; everything else agrees "
            "(closest: our proposal 1 of 1 and their proposal 2 of 2)",
        ),
        (
            [esp(GCM256)],
            [Proposal(Protocol.AH, [SHA256])],
            "we have proposals for ESP, they offer proposals for AH",
        ),
        ([esp(GCM256)], [], "we have proposals for ESP, they offer no proposals"),
        ([esp(GCM256)], [esp(GCM256)], "nothing differs"),
    ],
)
def test_explanation(ours: list[Proposal], theirs: list[Proposal], text: str) -> None:
    assert explain_mismatch(ours, theirs) == text


def test_explanation_of_plain_encryption() -> None:
    text = explain_mismatch([esp(CBC256)], [esp(CBC256)])
    assert text == "integrity: we have none, they offer none; everything else agrees"


def test_explanation_without_key_exchange() -> None:
    text = explain_mismatch([esp(GCM256, X25519)], [esp(GCM128)], skip_ke=True)
    assert text == "encryption: we have AES_GCM_16_256, they offer AES_GCM_16_128; everything else agrees"


def test_texts_are_bounded() -> None:
    many = [esp(*(Transform(t, i, 999) for t in range(1, 6) for i in range(50000, 50050))) for _ in range(100)]
    assert len(explain_mismatch([esp(GCM256)], many)) < 4000
    assert len(describe(many)) < 8000
    assert describe(many).endswith(" and 84 more")


def test_description() -> None:
    proposals = [ike(GCM256, PRF256, X25519), ike(CBC128, SHA256, PRF256, MODP2048)]
    assert describe(proposals) == (
        "IKE:AES_GCM_16_256/PRF_HMAC_SHA2_256/CURVE_25519, "
        "IKE:AES_CBC_128/HMAC_SHA2_256_128/PRF_HMAC_SHA2_256/MODP_2048"
    )
    assert describe([]) == "nothing"


# -- traffic selectors


def ts(network: str, protocol: int = 0, ports: tuple[int, int] = ANY_PORT) -> TrafficSelector:
    net = ip_network(network)
    return TrafficSelector(net[0], net[-1], protocol, ports)


def between(start: str, end: str) -> TrafficSelector:
    return TrafficSelector(ip_address(start), ip_address(end))


@pytest.mark.parametrize(
    ("a", "b", "common"),
    [
        (ts("10.0.0.0/8"), ts("10.1.0.0/16"), ts("10.1.0.0/16")),
        (between("10.0.0.1", "10.0.0.9"), between("10.0.0.5", "10.0.1.0"), between("10.0.0.5", "10.0.0.9")),
        (ts("10.0.0.0/8"), ts("11.0.0.0/8"), None),
        (ts("0.0.0.0/0"), ts("::/0"), None),
        (ts("10.0.0.0/8", TCP), ts("10.1.0.0/16"), ts("10.1.0.0/16", TCP)),
        (ts("10.0.0.0/8", TCP), ts("10.0.0.0/8", UDP), None),
        (ts("10.0.0.0/8", TCP, (1, 100)), ts("10.0.0.0/8", TCP, (50, 200)), ts("10.0.0.0/8", TCP, (50, 100))),
        (ts("10.0.0.0/8", TCP, (80, 80)), ts("10.0.0.0/8"), ts("10.0.0.0/8", TCP, (80, 80))),
        (ts("10.0.0.0/8", TCP, (80, 80)), ts("10.0.0.0/8", TCP, (443, 443)), None),
        (ts("10.0.0.0/8", TCP, OPAQUE), ts("10.0.0.0/8"), ts("10.0.0.0/8", TCP, OPAQUE)),
        (ts("10.0.0.0/8", TCP, OPAQUE), ts("10.0.0.0/8", TCP, OPAQUE), ts("10.0.0.0/8", TCP, OPAQUE)),
        (ts("10.0.0.0/8", TCP, OPAQUE), ts("10.0.0.0/8", TCP, (0, 65534)), None),
        (
            ts("10.0.0.0/8", ICMP, (0x0800, 0x08FF)),
            ts("10.0.0.0/8", ICMP, (0, 0x0803)),
            ts("10.0.0.0/8", ICMP, (0x0800, 0x0803)),
        ),
        (ts("2001:db8::/32"), ts("2001:db8:1::/48"), ts("2001:db8:1::/48")),
    ],
)
def test_intersection(a: TrafficSelector, b: TrafficSelector, common: TrafficSelector | None) -> None:
    assert intersect(a, b) == intersect(b, a) == common


def test_narrowing() -> None:
    ours = [ts("10.1.0.0/16"), ts("2001:db8::/32")]
    assert narrow(ours, [ts("0.0.0.0/0"), ts("::/0")]) == ours
    assert narrow(ours, [ts("::/0"), ts("0.0.0.0/0")]) == ours[::-1]
    assert narrow(ours, [ts("192.168.0.0/16")]) == []
    assert narrow([], ours) == narrow(ours, []) == []


def test_first_selector_of_the_packet_goes_into_what_contains_it() -> None:
    # RFC 7296 section 2.9: TSi = (packet, network)
    packet = ts("10.1.0.5/32", TCP, (40000, 40000))
    assert narrow([ts("10.1.0.0/16")], [packet, ts("10.0.0.0/8")]) == [ts("10.1.0.0/16")]
    assert narrow([ts("10.1.0.0/16", TCP)], [packet, ts("10.0.0.0/8", UDP)]) == [packet]


def test_duplicates_and_contained_ones_are_left_out() -> None:
    ours = [ts("10.0.0.0/8"), ts("10.1.0.0/16"), ts("10.0.0.0/8")]
    assert narrow(ours, [ts("10.1.2.0/24"), ts("10.1.0.0/16"), ts("10.1.0.0/16")]) == [ts("10.1.0.0/16")]


def test_a_result_fits_into_a_payload() -> None:
    singles = [between(f"10.0.{i}.{j}", f"10.0.{i}.{j}") for i in range(2) for j in range(200)]
    assert narrow([ts("10.0.0.0/8")], singles) == singles[:255]


@pytest.mark.parametrize(("local", "remote", "wanted", "left"), [
    (1, 255, 1, (1, 255)), (64, 64, 1, (64, 64)), (255, 255, 1, (64, 64)), (255, 20, 1, (204, 20)),
    (100, 100, 10_000, (100, 100)), (255, 255, 10_000, (100, 100)), (0, 255, 1, (0, 255)),
])  # fmt: skip
def test_a_peer_does_not_make_us_keep_any_number_of_policies(
    local: int, remote: int, wanted: int, left: tuple[int, int]
) -> None:
    """Two full TS payloads are 65,025 pairs; what the configuration makes itself is never too many."""
    one = TrafficSelector(ip_address("10.0.0.0"), ip_address("10.0.0.0"))
    ours, theirs = [one] * local, [one] * remote
    assert too_many_pairs(ours, theirs, wanted) is (left != (local, remote))
    shorten(ours, theirs, wanted)
    assert (len(ours), len(theirs)) == left
    assert len(ours) * len(theirs) <= max(PAIRS_MAX, wanted)


# -- additional key exchanges (RFC 9370 section 2.2.1)

X448, NO_FIRST = Transform(TransformType.KE, KeMethod.CURVE_448), Transform(TransformType.KE, KeMethod.NONE)


def ke(step: int, method: int) -> Transform:
    return Transform(TransformType.ADDKE1 + step - 1, method)


def test_no_method_is_taken_twice() -> None:
    both = esp(GCM256, X25519, X448, ke(1, KeMethod.CURVE_25519), ke(2, KeMethod.CURVE_448), ke(2, KeMethod.ECP_256))
    assert agreed(both, both) == [GCM256, X448, ke(1, KeMethod.CURVE_25519), ke(2, KeMethod.ECP_256)]
    one = esp(GCM256, X25519, ke(1, KeMethod.CURVE_25519))
    assert choose([one], [one]) is None
    assert "two key exchanges" in explain_mismatch([one], [one])
    none = esp(GCM256, X25519, ke(1, KeMethod.NONE), ke(2, KeMethod.NONE))
    assert agreed(none, none) == [GCM256, X25519, ke(1, 0), ke(2, 0)]


def test_without_a_first_key_exchange_there_is_no_other() -> None:
    both = esp(GCM256, X25519, NO_FIRST, ke(1, KeMethod.ECP_256), ke(1, KeMethod.NONE))
    assert agreed(both, both) == [GCM256, X25519, ke(1, KeMethod.ECP_256)]
    # no KE payload has come
    assert agreed(both, both, ke=0) == [GCM256, NO_FIRST, ke(1, KeMethod.NONE)]
    assert agreed(both, esp(GCM256, ke(1, KeMethod.ECP_256), ke(1, KeMethod.NONE))) == [GCM256, ke(1, KeMethod.NONE)]
    assert choose([both], [esp(GCM256, NO_FIRST, ke(1, KeMethod.ECP_256))]) is None


@pytest.mark.parametrize(
    "answer",
    [
        esp(GCM256, X25519, ke(1, KeMethod.CURVE_25519)),
        esp(GCM256, NO_FIRST, ke(1, KeMethod.ECP_256)),
        esp(GCM256, ke(1, KeMethod.ECP_256)),
        esp(GCM256, X25519, ke(2, KeMethod.ECP_256)),
        esp(GCM256, X25519, ke(1, KeMethod.ECP_256), ke(1, KeMethod.CURVE_25519)),
        esp(GCM256, X25519),
    ],
    ids=str,
)
def test_answers_with_key_exchanges_that_do_not_go_together(answer: Proposal) -> None:
    offer = esp(GCM256, X25519, NO_FIRST, ke(1, KeMethod.ECP_256), ke(1, KeMethod.CURVE_25519))
    assert check_answer([offer], [esp(GCM256, X25519, ke(1, KeMethod.ECP_256))])
    with pytest.raises(ParseError):
        check_answer([offer], [answer])


def test_the_worst_offer_is_known_to_be_one_soon() -> None:
    """Eight types and seven methods: one too few, however they are tried."""
    methods = range(14, 21)
    worst = esp(GCM256, *(Transform(type_, m) for type_ in (4, *range(6, 13)) for m in methods))
    begin = time.perf_counter()
    assert choose([worst], [worst]) is None
    assert time.perf_counter() - begin < 5.0
