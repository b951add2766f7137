"""EAP-TLS: both ends against each other, who is not trusted, what is not EAP-TLS, and the key by the RFCs' formulas."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from cryptography import x509 as cx
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from hypothesis import given, settings
from hypothesis import strategies as st
from OpenSSL import SSL

from ipsec.crypto.auth import AuthenticationError
from ipsec.crypto.chain import CertificateError
from ipsec.errors import ParseError
from ipsec.ike.eap import tls_session
from ipsec.ike.eap.method import EapError
from ipsec.ike.eap.peer import EapPeer
from ipsec.ike.eap.tls import TlsIdentity, TlsPeer, TlsServer, tls_available
from ipsec.ike.eap.tls_fragment import ACKNOWLEDGEMENT, START_DATA
from ipsec.ike.eap.tls_session import TLS_1_2, TLS_1_3, TlsSession
from ipsec.wire.eap import EapPacket, parse_eap_packet
from ipsec.wire.iana import EapCode, EapType
from tests.crypto.pki import EC384_KEY, EC_KEY, ED448_KEY, ED25519_KEY, RSA_KEY, Ca

VERSIONS = [TLS_1_2, TLS_1_3]
KEYS: dict[str, Any] = {"rsa": RSA_KEY, "p256": EC_KEY, "p384": EC384_KEY, "ed25519": ED25519_KEY, "ed448": ED448_KEY}
ROOT = Ca()
MIDDLE = Ca("Middle", ROOT)
ALERT = b"\0" + bytes.fromhex("1503030002022e")


def identity(common: str, key: Any = EC_KEY, ca: Ca = ROOT, *above: Ca, **more: Any) -> TlsIdentity:
    certificates = tuple(one.certificate.der for one in above)
    return TlsIdentity(ca.issue(common, key, **more).der, certificates, key)


MOON, CAROL = identity("moon"), identity("carol")


class Unknown(Exception):
    """What StatusUnknownError is to a method: nothing of its own."""


class Judge:
    """Remembers what it was shown, and says what it was told to say."""

    def __init__(self, *says: Exception) -> None:
        self.says = list(says)
        self.shown: list[list[bytes]] = []

    def __call__(self, chain: list[bytes]) -> None:
        self.shown.append(chain)
        if self.says:
            raise self.says.pop(0)


class Talk:
    """A server and a peer, and all Type-Data that went between them."""

    def __init__(
        self,
        newest: int = TLS_1_3,
        *,
        server: TlsIdentity = MOON,
        peer: TlsIdentity | None = CAROL,
        of_server: Judge | None = None,
        of_peer: Judge | None = None,
    ) -> None:
        self.of_server, self.of_peer = of_server or Judge(), of_peer or Judge()
        self.server = TlsServer(server, self.of_peer, [ROOT.certificate.subject.data], newest=newest)
        self.peer = TlsPeer(peer, self.of_server)
        self.requests = [self.server.begin(0)]
        self.responses: list[bytes] = []

    def respond(self) -> None:
        self.responses.append(self.peer.respond(len(self.requests), self.requests[-1]))

    def take(self) -> bool:
        """Whether there is another request."""
        number = len(self.requests)
        request = self.server.take(number, self.responses[-1], number + 1)
        if request is not None:
            self.requests.append(request)
        return request is not None

    def rounds(self, most: int = 200) -> Iterator[None]:
        for _ in range(most):
            self.respond()
            if not self.take():
                return
            yield
        raise AssertionError("no end")

    def run(self) -> Talk:
        for _ in self.rounds():
            assert self.server.msk is None
            assert self.peer.msk is None or self.peer.finished
        return self

    def until(self, condition: Callable[[], bool]) -> Talk:
        for _ in self.rounds():
            if condition():
                return self
        raise AssertionError("it has ended")


def agree(talk: Talk) -> None:
    assert talk.peer.finished
    assert talk.peer.msk is not None
    assert talk.peer.msk == talk.server.msk
    assert len(talk.peer.msk) == 64


# -- what works


@pytest.mark.parametrize("newest", VERSIONS)
@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
def test_both_ends(newest: int, key: Any) -> None:
    talk = Talk(newest, server=identity("moon", key), peer=identity("carol", key)).run()
    agree(talk)
    session = talk.peer._flights.session
    assert session.is_tls13 == (newest == TLS_1_3)
    assert talk.peer.failure is talk.peer.gave_up is talk.server.gave_up is None
    # the authorities are in clear only with TLS 1.2
    asked = b"".join(one[5:] if one[0] & 0x80 else one[1:] for one in talk.requests)
    assert (ROOT.certificate.subject.data + b"\x16\3\3" in asked) == (newest == TLS_1_2)
    assert talk.requests[0] == START_DATA
    assert talk.responses[-1] == ACKNOWLEDGEMENT


def test_a_server_whose_tls_13_is_older_than_its_rfc() -> None:
    """It takes the end of the handshake for the end, and its key is another one (RFC 9190 sections 2.3 and 2.5)."""
    talk = Talk()
    talk.until(lambda: talk.server._committed)
    for nothing in (b"\x80\0\0\0\0", ACKNOWLEDGEMENT):
        with pytest.raises(EapError, match="older than RFC 9190"):
            talk.peer.respond(9, nothing)
    assert talk.peer.msk is None


@pytest.mark.parametrize("newest", VERSIONS)
def test_every_session_has_its_own_key(newest: int) -> None:
    assert Talk(newest).run().peer.msk != Talk(newest).run().peer.msk


@pytest.mark.parametrize("newest", VERSIONS)
def test_chains_are_handed_over_as_sent(newest: int) -> None:
    stray = Ca("Stray")
    server = identity("moon", EC_KEY, MIDDLE, MIDDLE, stray)
    peer = identity("carol", ED25519_KEY, MIDDLE, MIDDLE, ROOT, stray)
    talk = Talk(newest, server=server, peer=peer).run()
    agree(talk)
    assert talk.of_server.shown == [[server.certificate, *server.intermediates]]
    assert talk.of_peer.shown == [[peer.certificate, *peer.intermediates]]


@pytest.mark.parametrize("newest", VERSIONS)
def test_large_chains(newest: int) -> None:
    """Ten fragments and more each way."""
    padding = cx.UnrecognizedExtension(cx.ObjectIdentifier("1.3.6.1.4.1.99999.1"), bytes(12000))
    big = [(padding, False)]
    server, peer = (identity(who, RSA_KEY, ROOT, ROOT, extensions=big) for who in ("moon", "carol"))
    talk = Talk(newest, server=server, peer=peer).run()
    agree(talk)
    assert sum(len(one) > 1000 for one in talk.requests) > 10
    assert sum(len(one) > 1000 for one in talk.responses) > 10
    assert max(map(len, (*talk.requests, *talk.responses))) == 1 + 4 + 1024


def test_the_peer_says_what_it_has_said_when_the_server_is_old() -> None:
    """The other way round: a peer that ends at TLS 1.2."""
    talk = Talk()
    talk.peer = TlsPeer(CAROL, talk.of_server, newest=TLS_1_2)
    agree(talk.run())
    assert not talk.server._flights.session.is_tls13


@pytest.mark.parametrize("newest", VERSIONS)
def test_nothing_is_resumed(newest: int) -> None:
    """Whatever the server sends as ticket: it does not know it again."""
    first = Talk(newest).run()
    session = first.peer._flights.session._connection.get_session()
    assert session is not None
    again = Talk(newest)
    # the same context at both ends: else there would be no way to know a ticket again
    for one, before in ((again.peer, first.peer), (again.server, first.server)):
        one._flights.session._connection = SSL.Connection(before._flights.session._connection.get_context(), None)
    ends = again.peer._flights.session._connection, again.server._flights.session._connection
    ends[0].set_connect_state()
    ends[1].set_accept_state()
    ends[0].set_session(session)
    agree(again.run())
    assert again.of_peer.shown
    assert again.of_server.shown


# -- the key, by the formulas


def tls12_prf(secret: bytes, seed: bytes, size: int) -> bytes:
    """RFC 5246 section 5, with SHA-384."""
    found, a = b"", seed
    while len(found) < size:
        a = hmac.digest(secret, a, "sha384")
        found += hmac.digest(secret, a + seed, "sha384")
    return found[:size]


def expand_label(secret: bytes, label: bytes, context: bytes, size: int) -> bytes:
    """RFC 8446 section 7.1, with SHA-384."""
    label = b"tls13 " + label
    info = size.to_bytes(2, "big") + bytes((len(label),)) + label + bytes((len(context),)) + context
    return HKDFExpand(hashes.SHA384(), size, info).derive(secret)


def tls13_exporter(secret: bytes, label: bytes, context: bytes, size: int) -> bytes:
    """RFC 8446 section 7.5."""
    derived = expand_label(secret, label, hashlib.sha384().digest(), 48)
    return expand_label(derived, b"exporter", hashlib.sha384(context).digest(), size)


@pytest.mark.parametrize("newest", VERSIONS)
def test_key_material(newest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets: dict[str, bytes] = {}
    make = tls_session._make_context

    def told(_: SSL.Connection, line: bytes) -> None:
        name, _random, secret = line.decode().split()
        secrets[name] = bytes.fromhex(secret)

    def with_log(*arguments: Any) -> SSL.Context:
        context = make(*arguments)
        context.set_keylog_callback(told)
        return context

    monkeypatch.setattr(tls_session, "_make_context", with_log)
    talk = Talk(newest).run()
    connection = talk.peer._flights.session._connection
    assert "SHA384" in str(connection.get_cipher_name())
    if newest == TLS_1_2:
        randoms = (connection.client_random() or b"") + (connection.server_random() or b"")
        made = tls12_prf(secrets["CLIENT_RANDOM"], b"client EAP encryption" + randoms, 128)
    else:
        made = tls13_exporter(secrets["EXPORTER_SECRET"], b"EXPORTER_EAP_TLS_Key_Material", b"\x0d", 128)
    assert talk.peer.msk == talk.server.msk == made[:64]


# -- whom we do not trust


@pytest.mark.parametrize("newest", VERSIONS)
def test_a_server_that_is_not_trusted(newest: int) -> None:
    """It hears an alert, and sees nothing of our certificate."""
    talk = Talk(newest, of_server=Judge(CertificateError("expired")))
    with pytest.raises(EapError, match="alert certificate unknown"):
        talk.run()
    assert talk.responses[-1] == ALERT
    assert not talk.of_peer.shown
    assert str(talk.peer.gave_up) == "EAP-TLS: expired"
    assert isinstance(talk.peer.gave_up.__cause__, CertificateError)
    with pytest.raises(EapError, match="expired"):
        talk.peer.respond(9, ACKNOWLEDGEMENT)
    assert not talk.peer.finished
    assert talk.peer.msk is talk.server.msk is None


@pytest.mark.parametrize("newest", VERSIONS)
def test_a_peer_that_is_not_trusted(newest: int) -> None:
    talk = Talk(newest, of_peer=Judge(AuthenticationError("revoked")))
    with pytest.raises(EapError, match="revoked"):
        talk.run()
    assert str(talk.server.gave_up) == "EAP-TLS: revoked"
    heard = "alert certificate unknown" if newest == TLS_1_2 else "alert unexpected message"
    assert heard in str(talk.peer.failure)
    assert talk.responses[-1] == ACKNOWLEDGEMENT
    assert not talk.peer.finished
    assert talk.peer.msk is talk.server.msk is None


@pytest.mark.parametrize("newest", VERSIONS)
def test_a_peer_without_certificate(newest: int) -> None:
    talk = Talk(newest, peer=None)
    with pytest.raises(EapError, match="did not return a certificate"):
        talk.run()
    assert not talk.of_peer.shown
    assert "alert" in str(talk.peer.failure)
    assert not talk.peer.finished
    assert talk.peer.msk is talk.server.msk is None


@pytest.mark.parametrize("newest", VERSIONS)
@pytest.mark.parametrize("end", ["server", "peer"])
@pytest.mark.parametrize("then", [None, CertificateError("revoked")], ids=["good", "revoked"])
def test_status_that_is_not_known_yet(newest: int, end: str, then: Exception | None) -> None:
    """The same call again, as often as it takes; in between nothing goes out and other packets are refused."""
    judge = Judge(Unknown(), Unknown(), *([then] if then else []))
    talk = Talk(newest, of_server=judge if end == "server" else None, of_peer=judge if end == "peer" else None)
    waited = 0
    while True:
        try:
            if len(talk.responses) < len(talk.requests):
                talk.respond()
            if not talk.take():
                break
        except Unknown:
            waited += 1
            assert not talk.peer.finished
            assert talk.peer.msk is talk.server.msk is None
            other = b"\0other"
            with pytest.raises(ParseError, match="being judged"):
                _ = talk.peer.respond(0, other) if end == "server" else talk.server.take(0, other, 1)
        except EapError:
            assert then is not None
            break
    assert waited == 2
    assert len(judge.shown) == 3
    if then is None:
        agree(talk)
    else:
        assert "revoked" in str((talk.peer if end == "server" else talk.server).gave_up)
        assert talk.peer.msk is talk.server.msk is None


def test_a_key_that_is_not_the_certificates() -> None:
    wrong = TlsIdentity(MOON.certificate, (), RSA_KEY)
    with pytest.raises(EapError, match="our certificate or key cannot be used"):
        TlsServer(wrong, Judge(), []).begin(0)
    peer = TlsPeer(wrong, Judge())
    with pytest.raises(EapError, match="our certificate or key cannot be used"):
        peer.respond(1, START_DATA)


def hurt_message(data: bytes, kind: int) -> bytes:
    """The last octet of a handshake message in clear is changed."""
    assert not data[0]
    at = 1
    while at < len(data):
        end = at + 5 + int.from_bytes(data[at + 3 : at + 5], "big")
        if data[at] == 22 and data[at + 5] == kind:
            return data[: end - 1] + bytes((data[end - 1] ^ 1,)) + data[end:]
        at = end
    raise AssertionError("no such message")


SERVER_KEY_EXCHANGE, CERTIFICATE_VERIFY = 12, 15


def test_a_server_without_the_key_of_its_certificate() -> None:
    """OpenSSL has to see that; nobody is asked for trust before."""
    talk = Talk(TLS_1_2)
    talk.until(lambda: len(talk.requests[-1]) > 100)
    talk.requests[-1] = hurt_message(talk.requests[-1], SERVER_KEY_EXCHANGE)
    talk.respond()
    assert "signature" in str(talk.peer.gave_up)
    assert len(talk.responses[-1]) == len(ALERT)
    assert not talk.of_server.shown
    with pytest.raises(EapError, match="alert"):
        talk.take()


def test_a_peer_without_the_key_of_its_certificate() -> None:
    talk = Talk(TLS_1_2)
    talk.until(lambda: len(talk.requests[-1]) > 100)
    talk.respond()
    talk.responses[-1] = hurt_message(talk.responses[-1], CERTIFICATE_VERIFY)
    assert talk.take()
    assert "signature" in str(talk.server.gave_up)
    assert not talk.of_peer.shown
    talk.respond()
    with pytest.raises(EapError, match="signature"):
        talk.take()
    assert talk.server.msk is None


# -- when it is not over


@pytest.mark.parametrize("newest", VERSIONS)
def test_not_finished_before_the_end(newest: int) -> None:
    """A Success is believed only after the server's Finished, or its octet in TLS 1.3."""
    talk = Talk(newest)
    for _ in talk.rounds():
        last = talk.peer.finished
        assert not last
        assert talk.peer.msk is None
    agree(talk)
    with pytest.raises(EapError, match="goes on after the end"):
        talk.peer.respond(9, b"\0more")


@pytest.mark.parametrize("said", [b"\1", b"\0\0", b"\0more"])
def test_other_octets_than_the_servers_success(said: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ipsec.ike.eap.tls._SUCCESS", said)
    talk = Talk()
    talk.until(lambda: talk.server._committed)
    monkeypatch.undo()
    with pytest.raises(EapError, match="something in TLS that is not its success"):
        talk.respond()
    assert not talk.peer.finished
    assert talk.peer.msk is None


def test_success_before_the_peer_has_shown_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 9190 section 2.5: never with the server's own Finished."""
    hear = TlsSession.hear

    def early(session: TlsSession, flight: bytes) -> bytes:
        answer = hear(session, flight)
        if session.done and not session._server:
            # OpenSSL has no way to make a server that says it
            session.said = b"\0"
        return answer

    monkeypatch.setattr(TlsSession, "hear", early)
    talk = Talk()
    with pytest.raises(EapError, match="not its success"):
        talk.run()
    assert not talk.peer.finished
    assert talk.peer.msk is None
    assert not talk.of_peer.shown


@pytest.mark.parametrize("newest", VERSIONS)
def test_a_peer_that_talks(newest: int) -> None:
    """Instead of the acknowledgement, or with its Finished."""
    talk = Talk(newest)
    talk.until(lambda: talk.server._committed)
    talk.respond()
    more = talk.peer._flights.session.say(b"hello")
    with pytest.raises(EapError, match="after the end"):
        talk.server.take(9, b"\0" + more, 10)
    assert talk.server.msk is None
    if newest == TLS_1_2:
        return
    talk = Talk()
    session = talk.peer._flights.session
    talk.respond()
    while not session.done:
        talk.take()
        talk.respond()
    talk.responses[-1] += session.say(b"hello")
    with pytest.raises(EapError, match="the peer says something in TLS"):
        talk.take()
    assert talk.server.msk is None


@pytest.mark.parametrize("code", [40, 70])
def test_an_alert_before_any_certificate(code: int) -> None:
    """The server has no cipher, or version, that we have: it waits for an acknowledgement, and says Failure."""
    peer = TlsPeer(CAROL, Judge())
    peer.respond(1, START_DATA)
    assert peer.respond(2, b"\0" + bytes((21, 3, 3, 0, 2, 2, code))) == ACKNOWLEDGEMENT
    assert "alert" in str(peer.failure)
    assert peer.gave_up is None
    assert not peer.finished


@pytest.mark.parametrize("weak", [b"AES128-GCM-SHA256", b"ECDHE-RSA-AES128-SHA", b"ECDHE-RSA-AES128-SHA256"])
def test_ciphers_that_we_do_not_have(weak: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without forward secrecy, or an AEAD."""
    rsa = identity("moon", RSA_KEY)
    talk = Talk(TLS_1_2, server=rsa)
    monkeypatch.setattr(tls_session, "_CIPHERS", weak)
    with pytest.raises(EapError, match="no shared cipher"):
        talk.run()
    # which is there where both would have it
    Talk(TLS_1_2, server=rsa).run()


def test_flights_that_stop_in_the_middle() -> None:
    talk = Talk()
    talk.respond()
    flight = TlsSession(server=False, identity=None).hear(b"")
    with pytest.raises(EapError, match="stops in the middle"):
        talk.server.take(1, b"\0" + flight[:100], 2)
    with pytest.raises(EapError, match="stops in the middle"):
        talk.server.take(1, b"\0" + flight[100:1000], 2)


@pytest.mark.parametrize("data", [b"", b"\0", b"\0abc", b"\x80\0\0\0\1a", b"\x20a", b"\x60"])
def test_a_conversation_without_start(data: bytes) -> None:
    peer = TlsPeer(CAROL, Judge())
    with pytest.raises(ParseError):
        peer.respond(1, data)
    assert peer.respond(1, START_DATA)
    with pytest.raises(ParseError):
        peer.respond(2, START_DATA)


def test_a_server_that_closes() -> None:
    """What drafts of RFC 9190 had for success: no fatal alert, and no success."""
    talk = Talk()
    session = talk.server._flights.session
    while not session.done:
        talk.respond()
        heard = talk.server._flights.fragments.take(talk.responses[-1])
        flight = b"" if heard is None else session.hear(heard)
        turn = talk.server._flights.fragments.turn
        talk.requests.append(turn() if heard is None else talk.server._flights.fragments.send(flight))
    session._connection.shutdown()
    assert talk.peer.respond(9, talk.requests[-1] + session._written()) == ACKNOWLEDGEMENT
    assert talk.peer.failure == "the peer has closed TLS"
    assert not talk.peer.finished
    assert talk.peer.msk is None


def take_it(method: TlsPeer, kind: int) -> TlsPeer:
    assert kind == EapType.TLS
    return method


@pytest.mark.parametrize(
    ("judge", "why"),
    [(Judge(CertificateError("expired")), "^EAP-TLS: expired$"), (Judge(), "Failure after TLS: TLS: .*alert")],
    ids=["ours", "the-servers"],
)
def test_whose_no_it_was(judge: Judge, why: str) -> None:
    """What is said after a Failure is why we did not believe the server, and that it refused us only if it did."""
    talk = Talk(of_server=judge, of_peer=Judge(CertificateError("no")))
    peer = EapPeer(b"carol", [EapType.TLS], partial(take_it, talk.peer))
    for number in range(20):
        answer = peer.receive(EapPacket(EapCode.REQUEST, number, EapType.TLS, talk.requests[-1]).emit())
        assert answer is not None
        talk.responses.append(parse_eap_packet(answer).data)
        try:
            talk.take()
        except EapError:
            break
    with pytest.raises(EapError, match=why):
        peer.receive(EapPacket(EapCode.FAILURE, number).emit())


def test_acknowledgements_of_nothing() -> None:
    talk = Talk(TLS_1_2)
    with pytest.raises(ParseError):
        talk.server.take(1, ACKNOWLEDGEMENT, 2)
    talk.respond()
    if talk.responses[-1][0] & 0x40:
        talk.take()
        talk.respond()
    with pytest.raises(ParseError):
        talk.peer.respond(3, ACKNOWLEDGEMENT)


# -- octets of strangers


def hurt(newest: int, number: int, change: Callable[[bytes], bytes], *, of_server: bool) -> Talk | None:
    """A conversation whose packet of that number is changed; None if there is none of that number."""
    talk = Talk(newest)
    changed = False
    for _ in range(40):
        if of_server and len(talk.requests) == number + 1 and not changed:
            talk.requests[-1], changed = change(talk.requests[-1]), True
        talk.respond()
        if not of_server and len(talk.responses) == number + 1:
            talk.responses[-1], changed = change(talk.responses[-1]), True
        if not talk.take():
            break
    return talk if changed else None


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(VERSIONS),
    st.booleans(),
    st.integers(0, 5),
    st.integers(0, 1030),
    st.integers(1, 255),
)
def test_an_octet_that_is_changed(newest: int, of_server: bool, number: int, at: int, bits: int) -> None:
    """It fails, without any other error; or nothing depends on it, and both ends still agree."""

    def change(data: bytes) -> bytes:
        if at >= len(data):
            return data
        return data[:at] + bytes((data[at] ^ bits,)) + data[at + 1 :]

    try:
        talk = hurt(newest, number, change, of_server=of_server)
    except (EapError, ParseError):
        return
    if talk is not None and talk.peer.failure is talk.peer.gave_up is None:
        agree(talk)


def cut(keep: int) -> Callable[[bytes], bytes]:
    # signatures are not always of one length, so what was too short is not always
    return lambda data: data[: min(keep, len(data) - 1)]


@pytest.mark.parametrize("newest", VERSIONS)
@pytest.mark.parametrize("of_server", [True, False], ids=["of-server", "of-peer"])
def test_packets_that_are_cut(newest: int, of_server: bool) -> None:
    """None is taken for the end, and none raises anything else."""
    for number in range(5):
        whole = Talk(newest).run()
        packets = whole.requests if of_server else whole.responses
        if number >= len(packets):
            break
        size = len(packets[number])
        for keep in sorted({*range(min(size, 12)), *range(12, size, 97), size - 1}):
            try:
                talk = hurt(newest, number, cut(keep), of_server=of_server)
            except (EapError, ParseError):
                continue
            # the server's tickets without its octet: a Success after that is none
            assert talk is not None
            assert newest == TLS_1_3
            assert of_server
            assert talk.responses[-1] == ACKNOWLEDGEMENT
            assert not talk.peer.finished
            assert talk.peer.msk is None


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=80), min_size=1, max_size=6), st.integers(0, 4), st.booleans())
def test_any_octets(packets: list[bytes], after: int, of_server: bool) -> None:
    talk = Talk()
    for _, _ in zip(range(after), talk.rounds(), strict=False):
        pass
    end = talk.peer if of_server else talk.server
    near_end = talk.server._committed
    for number, packet in enumerate(packets):
        try:
            if isinstance(end, TlsPeer):
                assert len(end.respond(number, packet)) <= 1029
            else:
                end.take(number, packet, number + 1)
        except (EapError, ParseError):
            continue
    assert end.msk is None or near_end


def test_a_server_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole flights that lead nowhere."""
    monkeypatch.setattr(TlsSession, "hear", lambda session, flight: b"more")
    peer = TlsPeer(CAROL, Judge())
    assert peer.respond(0, START_DATA) == b"\0more"
    for number in range(1, 9):
        assert peer.respond(number, b"\0go on") == b"\0more"
    with pytest.raises(EapError, match="more than 8 flights"):
        peer.respond(9, b"\0go on")


def test_secrets_are_not_shown() -> None:
    assert "private" not in repr(CAROL).lower()
    assert "key" not in repr(CAROL).lower()
    talk = Talk().run()
    assert talk.peer.msk is not None
    for one in (talk.peer, talk.server, talk.peer._flights.session):
        assert talk.peer.msk.hex() not in repr(one)
        assert repr(talk.peer.msk) not in repr(one)


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tls_available() == ""
    monkeypatch.setitem(__import__("sys").modules, "OpenSSL", None)
    assert "pip install pyOpenSSL" in tls_available()


def test_a_server_that_knows_nothing_of_safe_renegotiation() -> None:
    """strongSwan's leaves the extension of RFC 5746 out. We never renegotiate, so there is nothing to be safe from."""
    server = TlsSession(server=True, identity=MOON, newest=TLS_1_2)
    client = TlsSession(server=False, identity=CAROL)
    flight = without_renegotiation_info(server.hear(client.hear(b"")))
    assert client.hear(flight)
    assert client.chain()


def without_renegotiation_info(flight: bytes) -> bytes:
    """The flight of a server of TLS 1.2 without that extension (number 0xFF01, empty) in its ServerHello."""
    extension = bytes.fromhex("ff01000100")
    record, length = flight[:5], int.from_bytes(flight[6:9], "big")
    hello, rest = flight[9 : 9 + length], flight[9 + length :]
    start = 34 + 1 + hello[34] + 3
    assert hello.count(extension, start) == 1
    fields, extensions = hello[:start], hello[start + 2 :].replace(extension, b"")
    hello = fields + len(extensions).to_bytes(2, "big") + extensions
    size = int.from_bytes(record[3:], "big") - len(extension)
    return record[:3] + size.to_bytes(2, "big") + b"\x02" + len(hello).to_bytes(3, "big") + hello + rest
