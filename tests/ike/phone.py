"""A client of EAP that sends what built-in clients of telephones and of Windows send, and is no engine of ours.

Each message is made here from payloads; what it shares with the engine are formats, algorithms and formulas, which have
tests of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from typing import Any, TypeVar

from ipsec.crypto.auth import psk_auth, signed_octets, verify
from ipsec.crypto.kex import key_exchange
from ipsec.crypto.mschap import nt_password_hash
from ipsec.crypto.proposals import parse_proposals
from ipsec.crypto.sk import SkCipher
from ipsec.crypto.x509 import Certificate
from ipsec.ike.eap.mschapv2 import Mschapv2Peer
from ipsec.ike.eap.peer import EapPeer
from ipsec.ike.events import Path
from ipsec.ike.init import algorithms
from ipsec.ike.keymat import ike_keys, skeyseed
from ipsec.wire.iana import (
    AuthMethod,
    CertEncoding,
    CfgType,
    EapType,
    ExchangeType,
    IdType,
    NotifyType,
    PayloadType,
    Protocol,
    TransformType,
)
from ipsec.wire.ike import (
    FLAG_INITIATOR,
    HEADER_LEN,
    emit_encrypted_header,
    emit_header,
    emit_payloads,
    find_encrypted,
    parse_header,
    parse_payloads,
)
from ipsec.wire.payloads import (
    AuthPayload,
    CertPayload,
    CertReqPayload,
    CpPayload,
    EapPayload,
    IdPayload,
    KePayload,
    NoncePayload,
    NotifyPayload,
    SaPayload,
    TsPayload,
    VendorPayload,
)
from ipsec.wire.proposal import Proposal
from ipsec.wire.selector import TrafficSelector
from tests.ike.hostile import Rng, Target

T = TypeVar("T")

HERE, GATEWAY = ip_address("198.51.100.7"), ip_address("192.0.2.1")
NATD = (NotifyType.NAT_DETECTION_SOURCE_IP, NotifyType.NAT_DETECTION_DESTINATION_IP)
SPI = bytes.fromhex("0102030405060708")
EVERYTHING = [
    TrafficSelector(ip_address("0.0.0.0"), ip_address("255.255.255.255")),
    TrafficSelector(ip_address("::"), ip_address("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")),
]


@dataclass(frozen=True)
class Kind:
    """What one kind of client sends. Proposals are in its order, the first has the key exchange that it tries first."""

    ike: tuple[str, ...]
    esp: tuple[str, ...]
    idi: tuple[int, bytes]
    wants: tuple[int, ...]
    "attributes of its CFG_REQUEST"
    announces: tuple[int, ...] = ()
    "notifications of IKE_SA_INIT"
    tells: tuple[int, ...] = ()
    "notifications of IKE_AUTH"
    vendors: tuple[bytes, ...] = ()
    idr: bytes = b""
    "FQDN; empty: it has no IDr"
    certreqs: int = 0
    "authorities that it names besides the one that it trusts; 0: it has no CERTREQ"


class Phone:
    """One attempt. ``connect`` gives the last response of IKE_AUTH; what is wrong on the way fails the test."""

    def __init__(self, kind: Kind, gateway: Target, root: Certificate, user: bytes, password: str) -> None:
        self.kind, self.gateway, self.root = kind, gateway, root
        self.rng = Rng("phone")
        method = partial(Mschapv2Peer, user, nt_password_hash(password.encode()), self.rng)
        self.eap = EapPeer(user, (EapType.MSCHAPV2,), lambda _: method())
        self.now = 1000.0
        self.message_id = 0
        self.rounds = 0
        self.retried = 0
        "key exchanges that the gateway did not want"

    def _send(self, data: bytes, port: int) -> bytes:
        self.now += 0.01
        self.gateway.receive_datagram(data, Path(GATEWAY, port, HERE, port), self.now)
        self.gateway.drain()
        (answer,) = [found for found, *_ in self.gateway.datagrams_to_send()]
        return answer

    def connect(self) -> list[Any]:
        """IKE_SA_INIT, EAP, AUTH of both."""
        self._init()
        response = self._begin()
        while (answer := self.eap.receive(one(response, EapPayload).data)) is not None:
            self.rounds += 1
            response = self._ask([EapPayload(answer)])
        assert self.eap.msk is not None
        mine = psk_auth(self.prf, self.eap.msk, signed_octets(self.message_1, self.nonce_r, self._mac_of_idi))
        response = self._ask([AuthPayload(AuthMethod.SHARED_KEY, mine)])
        theirs = psk_auth(self.prf, self.eap.msk, self._signed_by_gateway)
        assert one(response, AuthPayload) == AuthPayload(AuthMethod.SHARED_KEY, theirs)
        return response

    def _init(self) -> None:
        offer = [parse_proposals([text], Protocol.IKE)[0] for text in self.kind.ike]
        first = offer[0].first(TransformType.KE)
        assert first is not None
        response = self._try_init(offer, first.id)
        retry = [p for p in response if isinstance(p, NotifyPayload) and p.notify == NotifyType.INVALID_KE_PAYLOAD]
        if retry:
            self.retried += 1
            response = self._try_init(offer, int.from_bytes(retry[0].data, "big"))
        (chosen,) = one(response, SaPayload).proposals
        self.chosen = str(chosen)
        assert any(set(chosen.transforms) <= set(proposal.transforms) for proposal in offer)
        self.nonce_r = one(response, NoncePayload).data
        self.prf, suite = algorithms(chosen)
        seed = skeyseed(self.prf, self.nonce_i, self.nonce_r, self.kex.shared(one(response, KePayload).data))
        self.keys = ike_keys(self.prf, suite, seed, self.nonce_i, self.nonce_r, SPI, self.spi_r)
        self.out = SkCipher(suite, self.keys.sk_ei, self.keys.sk_ai)
        self.back = SkCipher(suite, self.keys.sk_er, self.keys.sk_ar)

    def _try_init(self, offer: list[Proposal], method: int) -> list[Any]:
        self.kex = key_exchange(method, self.rng)
        self.nonce_i = self.rng(32)
        payloads = [
            SaPayload(offer),
            KePayload(method, self.kex.public),
            NoncePayload(self.nonce_i),
            *(NotifyPayload(notify) for notify in self.kind.announces),
            # of addresses that are not on the wire: it is behind a NAT
            *(NotifyPayload(notify, self.rng(20)) for notify in NATD),
            *(VendorPayload(vendor) for vendor in self.kind.vendors),
        ]
        first, body = emit_payloads(payloads)
        size = HEADER_LEN + len(body)
        header = emit_header(SPI, bytes(8), first, ExchangeType.IKE_SA_INIT, FLAG_INITIATOR, 0, size)
        self.message_1 = header + body
        self.message_2 = self._send(self.message_1, 500)
        found = parse_header(self.message_2)
        self.spi_r = found.spi_r
        return parse_payloads(found.next_payload, self.message_2[HEADER_LEN:], ExchangeType.IKE_SA_INIT, False)

    def _begin(self) -> list[Any]:
        """The first request of IKE_AUTH, and the gateway's proof by its certificate."""
        kind, identity = self.kind, IdPayload(PayloadType.IDI, *self.kind.idi)
        self._mac_of_idi = self.prf(self.keys.sk_pi, identity.body())
        offer = [parse_proposals([text], Protocol.ESP)[0] for text in kind.esp]
        for number, proposal in enumerate(offer):
            proposal.spi = bytes.fromhex("0badcafe")
            proposal.number = number + 1
        request: list[Any] = [identity, *(NotifyPayload(notify) for notify in kind.tells)]
        if kind.idr:
            request.append(IdPayload(PayloadType.IDR, IdType.FQDN, kind.idr))
        if kind.certreqs:
            authorities = self.rng(20 * kind.certreqs) + self.root.spki_sha1
            request.append(CertReqPayload(CertEncoding.X509_SIGNATURE, authorities))
        request.append(CpPayload(CfgType.REQUEST, [(attribute, b"") for attribute in kind.wants]))
        sides = [TsPayload(type, EVERYTHING) for type in (PayloadType.TSI, PayloadType.TSR)]
        response = self._ask([*request, SaPayload(offer), *sides])
        self.idr = one(response, IdPayload)
        octets = signed_octets(self.message_2, self.nonce_i, self.prf(self.keys.sk_pr, self.idr.body()))
        self._signed_by_gateway = octets
        certificates = [Certificate(p.data) for p in response if isinstance(p, CertPayload)]
        assert certificates, "without a certificate none of them goes on"
        proof = one(response, AuthPayload)
        verify(certificates[0].public_key, proof.method, proof.data, octets)
        return response

    def _ask(self, payloads: Sequence[Any]) -> list[Any]:
        self.message_id += 1
        first, body = emit_payloads(payloads)
        size = len(body) + self.out.overhead(len(body))
        where = SPI, self.spi_r, ExchangeType.IKE_AUTH, FLAG_INITIATOR, self.message_id
        head = emit_encrypted_header(*where, first, size)
        answer = self._send(head + bytes(self.out.seal(head, body, self.message_id, self.rng)), 4500)
        header = parse_header(answer)
        part = find_encrypted(header, answer)
        content = self.back.open(answer[: part.offset], answer[part.offset :])
        return parse_payloads(part.first, content, ExchangeType.IKE_AUTH, True)


def one(payloads: Sequence[Any], kind: type[T]) -> T:
    """The only payload of a kind."""
    (found,) = [payload for payload in payloads if isinstance(payload, kind)]
    return found
