"""EAP-MSCHAPv2: RFC 2759's example on the wire, both ends, the order of messages, and everything that is no proof."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipsec.crypto.mschap import nt_password_hash
from ipsec.errors import ParseError
from ipsec.ike.eap.method import MSK_LEN, EapError
from ipsec.ike.eap.mschapv2 import TEXT_MAX, Mschapv2Peer, Mschapv2Server, OpCode, without_domain
from ipsec.wire.iana import EapType
from tests.crypto.test_mschap import CHALLENGE, NT_HASH, NT_RESPONSE, PEER_CHALLENGE, PROOF, USER
from tests.ike.eap.meddling import converse, instead_of, octet_changes, truncations

MSK = bytes.fromhex("d5f0e9521e3ea9589645e86051c82226 8b7cdc149b993a1ba118cb153f56dccb") + bytes(32)
OTHER = nt_password_hash(b"clientpass")


def always(octets: bytes) -> Callable[[int], bytes]:
    """A source that gives these, as often as it is asked."""

    def rng(number: int) -> bytes:
        assert number == len(octets)
        return octets

    return rng


def make_peer(user: bytes = USER, nt_hash: bytes = NT_HASH) -> Mschapv2Peer:
    return Mschapv2Peer(user, nt_hash, always(PEER_CHALLENGE))


def make_server(nt_hash: bytes = NT_HASH) -> Mschapv2Server:
    return Mschapv2Server(nt_hash, always(CHALLENGE), b"gateway")


def message(opcode: int, body: bytes, ms_id: int = 7) -> bytes:
    return struct.pack(">BBH", opcode, ms_id, 4 + len(body)) + body


CHALLENGED = message(1, b"\x10" + CHALLENGE + b"gateway")
RESPONDED = message(2, b"\x31" + PEER_CHALLENGE + bytes(8) + NT_RESPONSE + b"\0" + USER)
RIGHT = message(3, b"S=" + PROOF.hex().upper().encode() + b" M=OK")
WRONG = message(3, b"S=" + b"00" * 20 + b" M=OK")
DENIED = message(4, b"E=691 R=0 C=" + CHALLENGE.hex().upper().encode() + b" V=3 M=Authentication failed")
DIALOGUE = [CHALLENGED, RESPONDED, RIGHT, b"\x03"]


def test_the_example() -> None:
    """RFC 2759 section 9.2 and RFC 3079 section 3.5.3, in the messages of the draft's section 2."""
    peer, server = make_peer(), make_server()
    outcome = converse(peer, server)
    assert outcome.messages == DIALOGUE
    assert outcome.accepted
    assert peer.finished
    assert peer.msk == server.msk == MSK
    assert len(MSK) == MSK_LEN
    assert peer.type == server.type == EapType.MSCHAPV2


def test_what_charon_said_to_itself() -> None:
    """strongSwan 5.9.8 at both ends, with the password of the example; the MSK is what it made AUTH with."""
    challenged, responded, succeeded, acknowledged = (
        bytes.fromhex(text)
        for text in (
            "010c001f10f78ce1a556e5bf2ed9a3dc61fe3718477374726f6e675377616e",
            "020c003a31afbbef83cbcff73bb452761664bcf9f60000000000000000"
            "7c56ade1adec3ac75cd7383aed0d2b5354c44f6f80824d700075736572",
            "030c0044533d42373836303631424344413831344546373539313232344243383437423734333336303145373133"
            "204d3d57656c636f6d65327374726f6e675377616e00",
            "03",
        )
    )
    msk = bytes.fromhex("2ec299e4225559b447da8dc7ec1c3e60 87420212dcd759d8ad9c9ee12fa88b8f") + bytes(32)
    peer = Mschapv2Peer(b"user", NT_HASH, always(responded[5:21]))
    server = Mschapv2Server(NT_HASH, always(challenged[5:21]), b"strongSwan")
    assert server.begin(12) == challenged
    assert peer.respond(12, challenged) == responded
    request = server.take(12, responded, 13)
    assert request is not None
    assert request[4:46] == succeeded[4:46]
    assert peer.respond(13, succeeded) == acknowledged
    assert server.take(13, acknowledged, 14) is None
    assert peer.finished
    assert peer.msk == server.msk == msk


def test_random_challenges() -> None:
    seeded = random.Random(3).randbytes
    peer, server = Mschapv2Peer(USER, NT_HASH, seeded), Mschapv2Server(NT_HASH, seeded, b"gateway")
    outcome = converse(peer, server)
    assert outcome.accepted
    assert peer.finished
    assert peer.msk == server.msk != MSK
    assert outcome.messages[0][5:21] != outcome.messages[1][5:21]


@pytest.mark.parametrize("name", [b"User", b"DOM\\User", b"\\User"])
def test_a_domain_is_no_part_of_the_hash(name: bytes) -> None:
    """RFC 2759 section 8.2. The name is sent as it is."""
    response = make_peer(name).respond(7, CHALLENGED)
    assert response == message(2, RESPONDED[4:-4] + name)
    server = make_server()
    server.begin(7)
    assert server.take(7, response, 8) == RIGHT


def test_names_without_domain() -> None:
    assert without_domain(b"a@b") == b"a@b"
    assert without_domain(b"a\\b\\c") == b"b\\c"
    assert without_domain(b"a\\") == without_domain(b"") == b""


@pytest.mark.parametrize("seen", [True, False])
def test_another_password(seen: bool) -> None:
    """The server says 691 and hears the answer; Failure follows. Where the peer hears nothing, nobody has succeeded."""
    peer, server = make_peer(nt_hash=OTHER), make_server()
    request = server.take(7, peer.respond(7, server.begin(7)), 8)
    assert request == DENIED
    assert not peer.finished
    if seen:
        assert peer.respond(8, request) == b"\x04"
        assert peer.failure == "error 691, wrong user name or password: 'Authentication failed'"
    assert not peer.finished
    with pytest.raises(EapError, match=r"wrong, from 'User'"):
        server.take(8, b"\x04", 9)
    assert peer.msk is server.msk is None


@pytest.mark.parametrize("answer", [b"", b"\x03", b"\x04\0\0\0", RESPONDED])
def test_after_a_failure_no_answer_helps(answer: bytes) -> None:
    server = make_server()
    server.begin(7)
    assert server.take(7, make_peer(nt_hash=OTHER).respond(7, CHALLENGED), 8) == DENIED
    with pytest.raises(EapError):
        server.take(8, answer, 9)
    with pytest.raises(EapError):
        server.take(8, b"\x03", 9)
    assert server.msk is None


def test_a_name_of_the_peers_is_bounded_and_printable() -> None:
    server = make_server(OTHER)
    server.begin(7)
    server.take(7, message(2, RESPONDED[4:-4] + b"\x1b[2J\n" + b"x" * 5000), 8)
    with pytest.raises(EapError) as caught:
        server.take(8, b"\x04", 9)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < TEXT_MAX + 100


class TestPeer:
    """What a server may not do."""

    @pytest.mark.parametrize("start", [b"E=691 R=0 M=", b"", b"M="])
    def test_a_text_without_end(self, start: bytes) -> None:
        """What it says is for our log, and takes no more room there than it should."""
        peer = make_peer()
        peer.respond(7, CHALLENGED)
        peer.respond(8, message(4, start + b"\x1b[2J\n" + b"x" * 60000))
        assert peer.failure is not None
        assert peer.failure.isprintable()
        assert len(peer.failure) < TEXT_MAX + 100

    def test_success_first(self) -> None:
        """CVE-2021-45079, CVE-2015-8023: no proof of the server's has any worth before we have challenged it."""
        peer = make_peer()
        with pytest.raises(EapError, match="SUCCESS of EAP-MSCHAPv2 out of order"):
            peer.respond(7, RIGHT)
        assert not peer.finished
        assert peer.msk is None

    def test_success_with_the_wrong_proof(self) -> None:
        peer = make_peer()
        peer.respond(7, CHALLENGED)
        with pytest.raises(EapError, match="server of EAP-MSCHAPv2 does not know the password"):
            peer.respond(8, WRONG)
        assert not peer.finished
        assert peer.msk is None

    def test_a_second_challenge(self) -> None:
        peer = make_peer()
        peer.respond(7, CHALLENGED)
        with pytest.raises(EapError, match="CHALLENGE"):
            peer.respond(8, CHALLENGED)
        assert not peer.finished

    @pytest.mark.parametrize("more", [CHALLENGED, RIGHT, WRONG, DENIED])
    def test_nothing_follows_success(self, more: bytes) -> None:
        peer = make_peer()
        peer.respond(7, CHALLENGED)
        peer.respond(8, RIGHT)
        with pytest.raises(EapError, match="after the end"):
            peer.respond(9, more)

    @pytest.mark.parametrize("more", [CHALLENGED, RIGHT, DENIED])
    def test_nothing_follows_failure(self, more: bytes) -> None:
        """A right proof after the failure included."""
        peer = make_peer()
        peer.respond(7, CHALLENGED)
        peer.respond(8, DENIED)
        with pytest.raises(EapError, match="after the end"):
            peer.respond(9, more)
        assert not peer.finished

    @pytest.mark.parametrize("opcode", [0, 2, 5, 7, 255])
    def test_other_op_codes(self, opcode: int) -> None:
        for begun in (False, True):
            peer = make_peer()
            if begun:
                peer.respond(7, CHALLENGED)
            with pytest.raises(EapError, match="out of order"):
                peer.respond(8, message(opcode, RIGHT[4:]))
            assert not peer.finished

    @pytest.mark.parametrize("text", [b" M=OK", b"", b" M=\xff\xfe", b" "])
    def test_what_may_follow_the_proof(self, text: bytes) -> None:
        for digits in (PROOF.hex().upper(), PROOF.hex()):
            peer = make_peer()
            peer.respond(7, CHALLENGED)
            assert peer.respond(8, message(3, b"S=" + digits.encode() + text)) == b"\x03"
            assert peer.finished

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"S=",
            b"M=OK",
            b" " + RIGHT[4:],
            b"S=" + PROOF,
            b"S=" + PROOF.hex().encode()[:-1] + b" M=OK",
            b"S=" + PROOF.hex().encode() + b"0",
            b"S=" + PROOF.hex().encode() + b"\0",
            b"S=" + b" ".join(b"%02x" % octet for octet in PROOF),
        ],
    )
    def test_success_without_a_proof(self, body: bytes) -> None:
        peer = make_peer()
        peer.respond(7, CHALLENGED)
        with pytest.raises(ParseError):
            peer.respond(8, message(3, body))
        assert not peer.finished

    @pytest.mark.parametrize(
        "data",
        [
            message(1, b""),
            message(1, b"\x10"),
            message(1, b"\x10" + CHALLENGE[:-1]),
            message(1, b"\x0f" + CHALLENGE),
            message(1, b"\x11" + CHALLENGE + b"x"),
        ],
    )
    def test_other_challenges(self, data: bytes) -> None:
        with pytest.raises(ParseError):
            make_peer().respond(7, data)


class TestFailure:
    """What a server says when it says no."""

    @pytest.mark.parametrize(
        ("body", "text"),
        [
            (b"E=691 R=1 C=00 V=3 M=no", "error 691, wrong user name or password: 'no'"),
            (b"E=648 R=0", "error 648, the password has expired"),
            (b"E=0000000649 M=", "error 649, no permission to dial in"),
            (b"E=4294967295", "error 4294967295"),
            (b"R=0 E=12 M=a M=b", "error 12: 'a M=b'"),
            (b"E=12345678901", "the server says 'E=12345678901'"),
            (b"E=x\x1b[31m", "the server says 'E=x\\x1b[31m'"),
            (b"E=691 M=\xff\n", "error 691, wrong user name or password: '\\xff\\n'"),
            (b"E=691 R=1 M=Loser\0", "error 691, wrong user name or password: 'Loser'"),
            (b"\0\0", "the server says no"),
            (b"", "the server says no"),
        ],
    )
    def test_texts(self, body: bytes, text: str) -> None:
        for begun in (False, True):
            peer = make_peer()
            if begun:
                peer.respond(7, CHALLENGED)
            assert peer.respond(8, message(4, body)) == b"\x04"
            assert peer.failure == text
            assert not peer.finished

    def test_long(self) -> None:
        peer = make_peer()
        peer.respond(7, message(4, b"E=691 M=" + b"\x00" * 60000))
        assert peer.failure is not None
        assert peer.failure.isprintable()
        assert len(peer.failure) < 6 * TEXT_MAX

    @pytest.mark.parametrize("length", range(4))
    def test_short(self, length: int) -> None:
        """CVE-2025-62291."""
        for begun in (False, True):
            peer = make_peer()
            if begun:
                peer.respond(7, CHALLENGED)
            with pytest.raises(ParseError):
                peer.respond(8, DENIED[:length])
            assert peer.failure is None

    @pytest.mark.parametrize("length", [0, 3, len(DENIED) - 1, len(DENIED) + 1, 65535])
    def test_wrong_length(self, length: int) -> None:
        with pytest.raises(ParseError):
            make_peer().respond(7, DENIED[:2] + length.to_bytes(2, "big") + DENIED[4:])


class TestServer:
    """What a peer may not do."""

    @pytest.mark.parametrize("answer", [b"\x03", RIGHT, b"\x04", CHALLENGED, b"\x07", b"\0", b"\xff"])
    def test_anything_but_a_response(self, answer: bytes) -> None:
        server = make_server()
        server.begin(7)
        with pytest.raises(EapError, match="out of order"):
            server.take(7, answer, 8)
        assert server.msk is None

    @pytest.mark.parametrize("answer", [RESPONDED, b"\x04", CHALLENGED, b"\x07", b"\0"])
    def test_anything_but_the_end(self, answer: bytes) -> None:
        """A response twice; a peer to whom our proof was wrong."""
        server = make_server()
        server.begin(7)
        server.take(7, RESPONDED, 8)
        with pytest.raises(EapError, match="out of order"):
            server.take(8, answer, 9)
        assert server.msk is None

    def test_before_the_challenge(self) -> None:
        server = make_server()
        for answer in (RESPONDED, b"\x03"):
            with pytest.raises(EapError):
                server.take(7, answer, 8)

    def test_after_the_end(self) -> None:
        server = make_server()
        converse(make_peer(), server)
        with pytest.raises(EapError):
            server.take(9, b"\x03", 10)

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"\x02",
            RESPONDED[:4],
            message(2, b""),
            message(2, b"\x31"),
            message(2, RESPONDED[4:53]),
            message(2, b"\x30" + RESPONDED[5:]),
            message(2, b"\x32" + RESPONDED[5:]),
            RESPONDED + b"x",
        ],
    )
    def test_malformed(self, data: bytes) -> None:
        server = make_server()
        server.begin(7)
        with pytest.raises(ParseError):
            server.take(7, data, 8)
        # nothing has come of it
        assert server.take(7, RESPONDED, 8) == RIGHT

    def test_a_response_for_another_name(self) -> None:
        """The name is part of what is proved, though it chooses no password."""
        server = make_server()
        server.begin(7)
        assert server.take(7, RESPONDED[:-4] + b"Uses", 8) == DENIED

    def test_nothing_of_ours_shows(self) -> None:
        secret = NT_HASH.hex()
        for one in (make_peer(), make_server()):
            assert secret not in repr(one)


#: octets that mean nothing to who gets the message: the MS-CHAPv2-ID; the name of the server; what is reserved and the
#: flags; the text after the proof
MEANINGLESS = {0: {1, *range(21, 28)}, 1: {1, *range(21, 29), 53}, 2: {1, *range(47, 51)}, 3: set[int]()}


@pytest.mark.parametrize("number", range(4))
def test_no_truncation_succeeds(number: int) -> None:
    for data in truncations(DIALOGUE[number]):
        peer, server = make_peer(), make_server()
        outcome = converse(peer, server, instead_of(number, data))
        assert outcome.error is not None
        assert not outcome.accepted
        assert server.msk is None
        assert peer.finished == (number == 3)


@pytest.mark.parametrize("number", range(4))
def test_no_change_of_an_octet_succeeds(number: int) -> None:
    """And one that does is of an octet without a meaning. The case of the proof's digits is one, too."""
    for at, data in octet_changes(DIALOGUE[number]):
        peer, server = make_peer(), make_server()
        outcome = converse(peer, server, instead_of(number, data))
        same_digit = number == 2 and at >= 6 and data.upper() == DIALOGUE[2].upper()
        assert outcome.accepted == (at in MEANINGLESS[number] or same_digit), (at, data)
        if outcome.accepted:
            assert peer.msk == server.msk is not None
        else:
            assert server.msk is None
            assert peer.finished == (number == 3)


@given(number=st.integers(0, 3), data=st.binary(max_size=120))
def test_random_messages(number: int, data: bytes) -> None:
    outcome = converse(make_peer(), make_server(), instead_of(number, data))
    # the last one is an op-code alone
    assert outcome.accepted == (number == 3 and data[:1] == b"\x03")


@given(
    number=st.integers(0, 2),
    opcode=st.sampled_from(OpCode),
    ms_id=st.integers(0, 255),
    start=st.sampled_from([b"", b"\x10", b"\x31", b"S=", b"E=691 ", b"E="]),
    rest=st.binary(max_size=80) | st.text("0123456789ABCDEF SMECVR=", max_size=80).map(str.encode),
)
def test_random_bodies(number: int, opcode: OpCode, ms_id: int, start: bytes, rest: bytes) -> None:
    peer, server = make_peer(), make_server()
    outcome = converse(peer, server, instead_of(number, message(opcode, start + rest, ms_id)))
    assert not outcome.accepted
    assert not peer.finished
    assert server.msk is None


@given(st.lists(st.sampled_from([CHALLENGED, RIGHT, WRONG, DENIED]), max_size=6))
def test_no_order_but_one_convinces_the_peer(messages: list[bytes]) -> None:
    peer = make_peer()
    handled = []
    for data in messages:
        try:
            peer.respond(7, data)
        except EapError:
            break
        handled.append(data)
    assert peer.finished == (handled == [CHALLENGED, RIGHT])
    assert (peer.msk is not None) == peer.finished


@given(st.lists(st.sampled_from([RESPONDED, RESPONDED[:-1] + b"s", b"\x03", b"\x04", CHALLENGED]), max_size=6))
def test_no_order_but_one_convinces_the_server(messages: list[bytes]) -> None:
    server = make_server()
    server.begin(7)
    handled, accepted = [], False
    for data in messages:
        handled.append(data)
        try:
            accepted = server.take(7, data, 8) is None
        except (ParseError, EapError):
            break
        if accepted:
            break
    assert accepted == (handled == [RESPONDED, b"\x03"])
    assert (server.msk is not None) == accepted
