"""Targets of ``make fuzz`` for what peers and servers say: IKE where it is waited for, certificates, HTTP."""

from __future__ import annotations

import contextlib
import functools
import socket
import time
from collections.abc import Callable
from http.client import HTTPException

from cryptography import x509 as cx
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ObjectIdentifier

from ipsec.crypto import x509
from ipsec.crypto.auth import AuthenticationError, load_spki, parse_hashes, sign, verify
from ipsec.crypto.chain import verify_chain
from ipsec.crypto.identity import Identity, is_called, parse_identity, parse_pattern
from ipsec.crypto.mschap import nt_password_hash
from ipsec.crypto.names import emails, name_key, name_text, parse_name
from ipsec.crypto.revocation import Revocation, check_revocation
from ipsec.daemon.fetch import _read, _Response
from ipsec.errors import ParseError
from ipsec.ike.config_payload import parse_reply, parse_request
from ipsec.ike.eap.gtc import GtcPeer, GtcServer
from ipsec.ike.eap.md5 import Md5Peer, Md5Server
from ipsec.ike.eap.method import EapError, PeerMethod, ServerMethod
from ipsec.ike.eap.mschapv2 import Mschapv2Peer, Mschapv2Server
from ipsec.ike.eap.peer import EapPeer
from ipsec.ike.eap.server import EapServer
from ipsec.ike.eap.tls import TlsPeer, TlsServer
from ipsec.ike.eap.tls_session import TlsIdentity
from ipsec.ike.radius.accounting import AccountingExchange
from ipsec.ike.radius.exchange import RadiusExchange
from ipsec.ike.radius.requests import RadiusRequests
from ipsec.ike.redirect import parse_redirect, parse_redirected_from
from ipsec.net.http import HttpError
from ipsec.net.http import parse_request as parse_http
from ipsec.wire.eap import parse_eap_packet
from ipsec.wire.iana import AuthMethod, EapType, ExchangeType, IdType
from ipsec.wire.payloads import parse_cp
from ipsec.wire.radius import parse_radius_packet
from tests.crypto.pki import EC384_KEY, EC_KEY, ED25519_KEY, RSA_KEY, WALL, Ca
from tests.ike import radius_server as radius
from tests.ike.hostile import MOON, SUN, join_raw, seal
from tests.ike.test_hostile import At, sized

HTTP_MAX = 1 << 16
#: exchange, response, how many such come before, scene
STATES = (
    (ExchangeType.IKE_AUTH, False, 0, "all"),
    (ExchangeType.IKE_AUTH, True, 0, "all"),
    (ExchangeType.IKE_AUTH, False, 0, "certificates"),
    (ExchangeType.IKE_AUTH, True, 0, "certificates"),
    (ExchangeType.IKE_AUTH, False, 1, "eap"),
    (ExchangeType.IKE_AUTH, True, 2, "eap"),
    (ExchangeType.IKE_AUTH, False, 2, "several authentications"),
    (ExchangeType.CREATE_CHILD_SA, False, 0, "all"),
    (ExchangeType.CREATE_CHILD_SA, True, 0, "all"),
    (ExchangeType.CREATE_CHILD_SA, False, 2, "all"),
    (ExchangeType.CREATE_CHILD_SA, True, 2, "all"),
    (ExchangeType.INFORMATIONAL, False, 0, "mobike"),
    (ExchangeType.INFORMATIONAL, True, 0, "mobike"),
    (ExchangeType.IKE_INTERMEDIATE, False, 0, "several key exchanges"),
    (ExchangeType.IKE_INTERMEDIATE, True, 0, "several key exchanges"),
    (ExchangeType.IKE_FOLLOWUP_KE, False, 0, "several key exchanges"),
    (ExchangeType.IKE_FOLLOWUP_KE, True, 0, "several key exchanges"),
)
OPENINGS = ((ExchangeType.IKE_SA_INIT, False, 0, "cookie"), (ExchangeType.IKE_SA_INIT, True, 0, "all"))


@functools.cache
def at(state: tuple[int, bool, int, str]) -> At:
    exchange, response, skip, scene = state
    return At(exchange, response=response, skip=skip, scene=scene)


def ike_inside(data: bytes) -> None:
    """Payloads of a peer that has the keys, with the engine in the state in which it waits for them."""
    if len(data) < 2:
        return
    here = at(STATES[data[0] % len(STATES)])
    header = here.header
    sealed = seal(here.sa, data[1], data[2:], header.exchange, header.message_id, response=header.response)
    here.attack.insider(sealed, here.allowed)
    here.attack.before.restore()


def ike_opening(data: bytes) -> None:
    """Payloads of IKE_SA_INIT, request or answer, of anybody."""
    if len(data) < 2:
        return
    here = at(OPENINGS[data[0] % len(OPENINGS)])
    head = here.data[:16] + data[1:2] + here.data[17:28]
    here.attack.opening(sized(head + data[2:]))


def config_payload(data: bytes) -> None:
    """What a peer asks of us, or assigns to us."""
    for parse in (parse_request, parse_reply):
        with contextlib.suppress(ParseError):
            str(parse(parse_cp(data, 0, len(data))))


def redirect(data: bytes) -> None:
    """Where a gateway sends us, with and without our nonce."""
    for nonce in (b"", data[-16:]):
        with contextlib.suppress(ParseError):
            str(parse_redirect(data, nonce))
    with contextlib.suppress(ParseError):
        str(parse_redirected_from(data))


KEYS = (EC_KEY.public_key(), RSA_KEY.public_key(), ED25519_KEY.public_key())


def signature(data: bytes) -> None:
    """AUTH by signature, the hashes that a peer can do, and a raw public key."""
    for key in KEYS:
        for method in (AuthMethod.DIGITAL_SIGNATURE, AuthMethod.RSA, AuthMethod.ECDSA_256):
            try:
                verify(key, method, data, b"octets that nobody signed")
            except AuthenticationError as error:
                str(error)
            else:
                raise AssertionError("nobody has signed this")
    with contextlib.suppress(ParseError):
        parse_hashes(data)
    with contextlib.suppress(ParseError):
        load_spki(data)


#: as ``name_seeds``
NAMES = (parse_identity("C=CH, O=x + OU=y, CN=z"), parse_identity("C=CH, O=x, OU=y, CN=z"))
PATTERNS = tuple(map(parse_pattern, ("C=CH, O=x + OU=y, CN=*", "C=*, O=x, OU=y, CN=z", "C=CH, OU=*, O=*, CN=z")))


def attributes(identity: Identity) -> list[str]:
    return sorted(str(attribute) for rdn in identity.name or () for attribute in rdn)


def name(data: bytes) -> None:
    """A distinguished name: whoever compares or shows it."""
    identity = Identity(IdType.DER_ASN1_DN, data)
    str(identity)
    ROOT.certificate.has_identity(identity)
    for pattern in PATTERNS:
        assert not is_called(identity, NAMES[0]) or pattern.matches(identity)
    for one in NAMES:
        assert not is_called(one, identity) or attributes(one) == attributes(identity)
    for read in (parse_name, name_key, emails, name_text):
        with contextlib.suppress(ParseError):
            read(data)


ROOT = Ca("Root")
EXTENSIONS = (
    x509.BASIC_CONSTRAINTS, x509.KEY_USAGE, x509.EXTENDED_KEY_USAGE, x509.SUBJECT_ALT_NAME, x509.NAME_CONSTRAINTS,
    x509.SUBJECT_KEY_ID, x509.AUTHORITY_KEY_ID, x509.CERTIFICATE_POLICIES, x509.POLICY_MAPPINGS,
    x509.POLICY_CONSTRAINTS, x509.INHIBIT_ANY, x509.CRL_DISTRIBUTION_POINTS, x509.AUTHORITY_INFO_ACCESS,
)  # fmt: skip
NAMED = (cx.DNSName("moon.example"), cx.RFC822Name("moon@example.org"), cx.UniformResourceIdentifier("http://moon/x"))


def extension(data: bytes) -> None:
    """A certificate that is signed as it should be, with any extension in it, or in that of the authority above."""
    if len(data) < 2:
        return
    odd = cx.UnrecognizedExtension(ObjectIdentifier(EXTENSIONS[data[0] % len(EXTENSIONS)]), data[2:])
    try:
        if data[1] & 1:
            middle = Ca("Middle", ROOT, EC_KEY, extensions=[(odd, bool(data[1] & 2))])
            end = middle.issue("moon", sans=NAMED)
        else:
            middle = Ca("Middle", ROOT, EC_KEY)
            end = middle.issue("moon", extensions=[(odd, bool(data[1] & 2))])
    except (ParseError, ValueError):
        # the same extension twice
        return
    for policies in ((), ("1.3.6.1.4.1.55555.1",)):
        try:
            chain = verify_chain(end, [middle.certificate], [ROOT.certificate], wall=WALL, required_policies=policies)
            check_revocation(chain, [], [], Revocation.IFURI, WALL)
            str(end.identities)
        except (AuthenticationError, ParseError) as error:
            str(error)


def http_request(data: bytes) -> None:
    """Who asks for our health."""
    try:
        asked = parse_http(data + b"\r\n\r\n")
    except HttpError as error:
        error.response()
        return
    assert asked.path
    assert "\n" not in asked.path


def http_answer(data: bytes) -> None:
    """What a server of CRLs says: octets, not more than were asked for, or an error that is caught where one asks."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(data[:HTTP_MAX])
        theirs.shutdown(socket.SHUT_WR)
        try:
            with _Response(ours, deadline=time.monotonic() + 4) as answer:
                answer.begin()
                assert len(_read(answer, 1000)) <= 1001
        except (OSError, ValueError, HTTPException) as error:
            str(error)


def radius_answer(data: bytes) -> None:
    """What a RADIUS server says: as it comes, and as if it were authentic."""
    requests = RadiusRequests([radius.SERVER], bytes)
    requests.ask(1, b"alice", radius.IDENTITY, radius.CALLER, 0.0)
    requests.receive(0, 0, data, 0.0)
    assert requests.next_answer() is None
    try:
        packet = parse_radius_packet(data)
    except ParseError:
        return
    assert data.startswith(packet.emit())
    RadiusExchange(b"alice", radius.CALLER).take(packet, radius.SERVER, bytes(16))
    receipts = RadiusRequests([radius.SERVER], bytes)
    receipts.begin(1, AccountingExchange(()), 0.0)
    receipts.receive(0, 0, data, 0.0)


PASSWORD = b"fO0-b4r of alice"
EAP_STEPS = 8
#: ours, the other side's, as tests and peers have them
EAP_METHODS: tuple[tuple[Callable[[], PeerMethod], Callable[[], ServerMethod]], ...] = (
    (lambda: Md5Peer(PASSWORD), lambda: Md5Server(PASSWORD, bytes, b"moon")),
    (lambda: GtcPeer(PASSWORD), lambda: GtcServer(PASSWORD)),
    (
        lambda: Mschapv2Peer(b"alice", nt_password_hash(PASSWORD), bytes),
        lambda: Mschapv2Server(nt_password_hash(PASSWORD), bytes, b"moon"),
    ),
    (
        lambda: TlsPeer(TlsIdentity(MOON.der, (), EC_KEY), lambda chain: None),
        lambda: TlsServer(TlsIdentity(SUN.der, (), EC384_KEY), lambda chain: None, ()),
    ),
)


def _converse(number: int) -> tuple[EapPeer | EapServer, bytes]:
    """One side of a conversation of EAP that has come so far, and what the other side says next."""
    steps, which = divmod(number, len(EAP_METHODS))
    make_peer, make_server = EAP_METHODS[which]
    kind = make_server().type
    peer = EapPeer(b"alice", (kind,), lambda kind: make_peer())
    server = EapServer(True, lambda user: None, lambda: (kind,), lambda kind: make_server())
    sides: tuple[EapPeer | EapServer, ...] = (peer, server)
    said = server.begin()
    for step in range(steps % EAP_STEPS):
        answer = sides[step % 2].receive(said)
        if answer is None:
            return sides[step % 2], said
        said = answer
    return sides[steps % EAP_STEPS % 2], said


def eap(data: bytes) -> None:
    """A packet of EAP, in every state of every method, in both roles."""
    with contextlib.suppress(ParseError, EapError):
        packet = parse_eap_packet(data[1:])
        assert packet.vendor or packet.emit() == data[1:] or data[5] == EapType.EXPANDED
    if data:
        side, _ = _converse(data[0])
        with contextlib.suppress(ParseError, EapError):
            side.receive(data[1:])


# -- where the fuzzer begins


def eap_seeds() -> list[bytes]:
    return [bytes((number,)) + _converse(number)[1] for number in range(EAP_STEPS * len(EAP_METHODS))]


def _contents(state: tuple[int, bool, int, str], number: int) -> bytes:
    first, content = join_raw(at(state).chain)
    return bytes((number, first)) + content


def inside_seeds() -> list[bytes]:
    return [_contents(state, number) for number, state in enumerate(STATES)]


def opening_seeds() -> list[bytes]:
    return [_contents(state, number) for number, state in enumerate(OPENINGS)]


def config_seeds() -> list[bytes]:
    return [
        bytes.fromhex("01000000 0001 0000 0008 0000 0003 0000 000a 0000"),
        bytes.fromhex("02000000 0001 0004 0a090001 0003 0004 0a090002 0019 0004 6c616e2e"),
    ]


def redirect_seeds() -> list[bytes]:
    return [bytes.fromhex("0104c000024d"), b"\3\4moon" + bytes(16)]


def signature_seeds() -> list[bytes]:
    made = [sign(key, b"something else", peer_hashes=(2, 5))[1] for key in (EC_KEY, RSA_KEY, ED25519_KEY)]
    return [*made, *(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) for key in KEYS)]


def name_seeds() -> list[bytes]:
    return [ROOT.certificate.subject.data, *(one.data for one in NAMES)]


def extension_seeds() -> list[bytes]:
    odd = [cx.SubjectAlternativeName(NAMED), cx.NameConstraints([cx.DNSName("example")], None),
           cx.BasicConstraints(True, 1), cx.KeyUsage(*[True] * 9)]  # fmt: skip
    kinds = (3, 4, 0, 1)
    return [bytes((kind, flags)) + one.public_bytes() for kind, one in zip(kinds, odd, strict=True) for flags in (0, 1)]


def request_seeds() -> list[bytes]:
    return [b"GET http://x/metrics?a=b HTTP/1.1\r\nHost: x\r\nAccept: text/plain;q=0.5"]


def answer_seeds() -> list[bytes]:
    return [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 200 x\r\n\r\n",
    ]


def radius_seeds() -> list[bytes]:
    # of another secret, since an answer must not come about here
    asked = radius.Request(0, bytes(16), [])
    more = [(8, bytes((10, 3, 0, 9))), (25, b"staff"), (27, bytes(4)), (33, b"proxy"), radius.microsoft(28, bytes(4))]
    return [
        radius.accept(asked, *more, secret=b"another"),
        radius.challenge(asked, secret=b"another"),
        radius.answer(radius.REJECT, asked, (18, b"no"), *radius.eap_attributes(radius.FAILURE), secret=b"another"),
    ]
