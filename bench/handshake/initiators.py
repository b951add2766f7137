"""IKEv2 initiators by the thousand, driven by the project's own engine, and the keys both ends prove themselves with.

No socket, no clock: ``memory`` joins them to an engine directly, ``load`` puts them behind sockets.
"""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from ipaddress import IPv4Address

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from ipsec.crypto.identity import Identity, parse_identity, parse_pattern
from ipsec.crypto.proposals import parse_proposals
from ipsec.crypto.x509 import Certificate
from ipsec.ike.config import (
    AuthClass,
    ChildConfig,
    Connection,
    IkeSettings,
    LocalAuth,
    PoolConfig,
    RemoteAuth,
    SelectorTemplate,
    SendCert,
)
from ipsec.ike.credentials import Authority, Credentials, PrivateKey, SharedSecret
from ipsec.ike.engine import IkeEngine
from ipsec.ike.events import IpAddress, Path
from ipsec.ike.host import Unconnected
from ipsec.ike.sa import IkeSa
from ipsec.wire.iana import Protocol

IKE_PROPOSAL = "aes128gcm16-prfsha256-x25519"
ESP_PROPOSAL = "aes128gcm16"
GATEWAY_ID = "gateway.bench.test"
SECRET = "only for this benchmark"
AUTHENTICATIONS = ("psk", "rsa2048", "ecdsa256")
POOL = ("10.64.0.1", "10.127.255.254")
"virtual addresses that the gateway gives"
BEHIND = ("10.1.0.0", "10.1.255.255")
"the network behind the gateway"

ANY = IPv4Address(0)


def identity_of(number: int) -> str:
    """Each initiator is somebody else, so that none replaces another."""
    return f"peer{number}.bench.test"


@lru_cache
def _certified(kind: str, name: str) -> tuple[PrivateKey, Certificate, Certificate]:
    """A private key, its certificate, and the authority's."""
    now = datetime.now(UTC)

    def make_key() -> rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey:
        return rsa.generate_private_key(65537, 2048) if kind == "rsa2048" else ec.generate_private_key(ec.SECP256R1())

    def build(subject: str, key: object) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Bench CA {name}")]))
            .public_key(key)  # type: ignore[arg-type]
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=30))
        )

    authority_key, key = make_key(), make_key()
    authority = build(f"Bench CA {name}", authority_key.public_key()).add_extension(
        x509.BasicConstraints(True, 0), True
    )
    names = x509.SubjectAlternativeName([x509.DNSName(name)])
    end = build(name, key.public_key()).add_extension(names, False)
    ders = [one.sign(authority_key, hashes.SHA256()).public_bytes(Encoding.DER) for one in (end, authority)]
    return PrivateKey(key), Certificate(ders[0]), Certificate(ders[1])


def _credentials(authentication: str, own: str, peer: str) -> tuple[Credentials, Certificate | None]:
    if authentication == "psk":
        return Credentials(secrets=[SharedSecret(SECRET.encode())]), None
    key, certificate, _ = _certified(authentication, own)
    _, _, anchor = _certified(authentication, peer)
    return Credentials(private_keys=[key], certificates=[certificate], authorities=[Authority(anchor)]), certificate


def _auth(authentication: str) -> AuthClass:
    return AuthClass.PSK if authentication == "psk" else AuthClass.PUBKEY


def responder(authentication: str, settings: IkeSettings, host: Unconnected) -> IkeEngine:
    """A gateway that anybody with the right key may connect to, and gets an address from."""
    engine = IkeEngine(settings, host, os.urandom)
    credentials, certificate = _credentials(authentication, GATEWAY_ID, "initiators")
    child = ChildConfig(
        "net",
        parse_proposals([ESP_PROPOSAL], Protocol.ESP),
        local_ts=(SelectorTemplate((IPv4Address(BEHIND[0]), IPv4Address(BEHIND[1]))),),
    )
    connection = Connection(
        "gateway",
        proposals=parse_proposals([IKE_PROPOSAL], Protocol.IKE),
        pools=("pool",),
        local=LocalAuth(_auth(authentication), parse_identity(GATEWAY_ID), _tuple(certificate)),
        remote=RemoteAuth(_auth(authentication), parse_pattern("%any")),
        children=(child,),
    )
    pool = PoolConfig("pool", IPv4Address(POOL[0]), IPv4Address(POOL[1]))
    engine.load([connection], credentials, [pool])
    return engine


def _tuple(certificate: Certificate | None) -> tuple[Certificate, ...]:
    return () if certificate is None else (certificate,)


class Initiators:
    """An engine that plays as many peers as wanted. Each has its own identity and asks for a virtual address.

    With certificates all of them share one, as the responder's work is the same; their identity is its name.
    """

    def __init__(self, authentication: str, gateway: IpAddress, settings: IkeSettings) -> None:
        self.engine = IkeEngine(settings, Unconnected(), os.urandom)
        self._gateway = gateway
        self._authentication = authentication
        credentials, certificate = _credentials(authentication, "initiators", GATEWAY_ID)
        child = ChildConfig(
            "net",
            parse_proposals([ESP_PROPOSAL], Protocol.ESP),
            remote_ts=(SelectorTemplate((IPv4Address(BEHIND[0]), IPv4Address(BEHIND[1]))),),
            rekey_time=0.0,
            life_time=0.0,
            rand_time=0.0,
        )
        self._base = Connection(
            "peer",
            proposals=parse_proposals([IKE_PROPOSAL], Protocol.IKE),
            vips=(ANY,),
            local=LocalAuth(_auth(authentication), parse_identity("initiators"), _tuple(certificate)),
            remote=RemoteAuth(_auth(authentication), parse_pattern(GATEWAY_ID)),
            children=(child,),
            send_cert=SendCert.ALWAYS,
            mobike=False,
            rekey_time=0.0,
            over_time=0.0,
            rand_time=0.0,
        )
        self.engine.load([self._base], credentials)

    def initiate(self, number: int, local: IpAddress, now: float) -> IkeSa:
        """Send the first message of initiator ``number`` from its address."""
        name = f"p{number}"
        identity: Identity | None = self._base.local.id
        if self._authentication == "psk":
            identity = parse_identity(identity_of(number))
        connection = replace(
            self._base, name=name, local_addrs=(str(local),), remote_addrs=(str(self._gateway),),
            local=replace(self._base.local, id=identity),
        )  # fmt: skip
        port = self.engine.settings.port
        return self.engine.initiate(
            connection, [(connection.children[0], 0)], Path(local, port, self._gateway, 500), now
        )
