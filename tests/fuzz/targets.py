"""What ``make fuzz`` runs: one function for each way in which octets of others, or files, come in.

A target takes any octets. The error that a parser documents is caught here; whatever else is raised is a find. Where
there is an emitter, what was parsed must mean the same after another round; where there are two engines, they agree.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from ipsec.config.grammar import parse_text, resolve
from ipsec.config.schema import load_text
from ipsec.config.selector import parse_selector
from ipsec.crypto.identity import parse_identity, parse_pattern
from ipsec.crypto.keyfiles import load_private_key, load_public_key
from ipsec.crypto.proposals import parse_proposals
from ipsec.crypto.revocation import OcspResponse, Source, parse_crl, status_of
from ipsec.crypto.x509 import load_certificates
from ipsec.errors import ConfigError, IpsecError, ParseError, SuiteError
from ipsec.esp.drops import DropReason
from ipsec.esp.sa import Action, Direction, Policy
from ipsec.vici.codec import PacketType, emit_packet, parse_packet
from ipsec.wire.iana import Protocol
from ipsec.wire.ike import HEADER_LEN, find_encrypted, parse_header, parse_payloads
from ipsec.wire.selector import SelectorPair
from ipsec.wire.show import show_message
from tests.crypto.pki import ED25519_KEY, VECTORS, WALL, Ca
from tests.crypto.test_revocation import respond
from tests.esp.support import ENGINES, GCM, INNER, NOW, forge, opener, pair, params, trailer, udp
from tests.esp.support import icmp_error as make_error
from tests.fuzz import packets, peers
from tests.properties.test_ike_codec import judge
from tests.wire.ike_messages import GOLDEN, header

ROOT = Path(__file__).parent.parent.parent
NULL_SUITE = "null-sha256"
CA = Ca("fuzz")
ASKED = Source(CA.issue("moon"), CA.certificate, (), ())


class Target(NamedTuple):
    """A way in."""

    run: Callable[[bytes], None]
    seeds: Callable[[], Sequence[bytes]]


def ike_message(data: bytes) -> None:
    """A datagram on port 500: header, payloads in clear, or the place of the encrypted one."""
    try:
        parsed = parse_header(data)
        payloads = parse_payloads(parsed.next_payload, data[HEADER_LEN:], parsed.exchange, False)
    except ParseError:
        pass
    else:
        show_message(parsed, payloads)
    try:
        encrypted = find_encrypted(parse_header(data), data)
    except ParseError:
        return
    assert HEADER_LEN <= encrypted.offset <= len(data)


def ike_protected(data: bytes) -> None:
    """What was inside SK: exchange, first payload, the rest. What parses is emitted and parses to the same."""
    if len(data) >= 2:
        judge(data[1], data[2:], data[0], True)


def vici_packet(data: bytes) -> None:
    """A packet on the vici socket."""
    try:
        packet = parse_packet(data)
    except ParseError:
        return
    again = parse_packet(emit_packet(packet.type, packet.name, packet.message)[4:])
    assert again == packet


def swanctl_grammar(data: bytes) -> None:
    """The grammar of swanctl.conf. Includes are left out: they would read what lies around."""
    text = data.decode("utf-8", "replace")
    if "include" not in text:
        try:
            resolve(parse_text(text))
        except ConfigError as error:
            str(error)


def swanctl_conf(data: bytes) -> None:
    """A whole configuration. Files are left out, too."""
    text = data.decode("utf-8", "replace")
    if "include" not in text and "file" not in text and "/" not in text:
        try:
            load_text(text, directory="/nonexistent")
        except ConfigError as error:
            str(error)


def texts(data: bytes) -> None:
    """The small languages of swanctl.conf, and of clients of vici: proposals, identities, selectors."""
    text = data.decode("utf-8", "surrogateescape")
    for protocol in (Protocol.IKE, Protocol.ESP):
        with contextlib.suppress(SuiteError):
            parse_proposals(text.split(","), protocol)
    for parse in (parse_identity, parse_pattern, parse_selector):
        with contextlib.suppress(IpsecError):
            str(parse(text))


def certificate(data: bytes) -> None:
    """What a peer sends as CERT."""
    try:
        found = load_certificates(data)
    except ParseError:
        return
    for one in found:
        str(one.subject)
        repr(one)


def revocation(data: bytes) -> None:
    """What a distribution point or a responder answers, and what it says before anybody looks who signed it."""
    with contextlib.suppress(ParseError):
        status_of(ASKED, [parse_crl(data)], [], WALL)
    with contextlib.suppress(ParseError):
        status_of(ASKED, [], [OcspResponse(data)], WALL)


def key_file(data: bytes) -> None:
    """A file in private/ or pubkey/."""
    for parse in (load_private_key, load_public_key):
        with contextlib.suppress(IpsecError):
            parse(data)


def _gateway(kind: Any) -> Any:
    engine = kind()
    engine.add_sa(params(Direction.OUT, reqid=1, path_mtu=600))
    pairs = (pair("10.1.0.0/16", "10.2.0.0/16"), pair("fd01::/16", "fd02::/16"))
    engine.set_policies([Policy(Action.PROTECT, pairs, reqid=1, icmp=True)])
    mirrored = tuple(SelectorPair(one.remote, one.local) for one in pairs)
    engine.add_sa(params(Direction.IN, NULL_SUITE, selectors=mirrored, icmp=True))
    return engine


def esp_outbound(data: bytes) -> None:
    """A packet from the device: the readable engine and the compiled one do the same with it, octet by octet."""
    results = []
    for engine in map(_gateway, ENGINES):
        results.append((engine.outbound(data, NOW), engine.drops()))
    assert results[0] == results[1]


def esp_inbound(data: bytes) -> None:
    """What an authenticated peer has put inside ESP, padding and trailer included: both engines say the same."""
    datagram = forge(NULL_SUITE, data)
    results = []
    for engine in (opener(kind, NULL_SUITE) for kind in ENGINES):
        results.append((engine.inbound(datagram, NOW), engine.drops()))
    assert results[0] == results[1]


def icmp_error(data: bytes) -> None:
    """An ICMP error, by its type and what is behind it, of a router that is in no selector: both engines let it pass or
    do not, the same outbound and inbound."""
    if len(data) < 2:
        return
    version = 6 if data[0] & 1 else 4
    router = "fd99::1" if version == 6 else "172.16.0.1"
    packet = make_error(data[1], data[2:8192], version, source=router, destination=INNER[version][1])
    results = []
    for engine in map(_gateway, ENGINES):
        sent = engine.outbound(packet, NOW)
        got = engine.inbound(forge(NULL_SUITE, trailer(packet, 41 if version == 6 else 4)), NOW)
        # one too large for the path is no less the SA's
        assert (sent.drop is DropReason.OUT_NO_POLS) == (got.drop is DropReason.IN_TMPL_MISMATCH)
        results.append((sent, got, engine.drops()))
    assert results[0] == results[1]


def esp_datagram(data: bytes) -> None:
    """Any octets on port 4500: nothing that is not authenticated comes out of either engine."""
    for engine in (opener(kind) for kind in ENGINES):
        assert not engine.inbound(data, NOW).packet


# -- where the fuzzer begins


def _ike_seeds() -> list[bytes]:
    return [header(golden) + golden.octets for golden in GOLDEN]


def _protected_seeds() -> list[bytes]:
    return [bytes((golden.exchange, golden.first)) + golden.octets for golden in GOLDEN if golden.protected]


def _vici_seeds() -> list[bytes]:
    message = {"ike": "gw", "children": {"net": {"local_ts": ["10.1.0.0/16", "dynamic"]}}, "timeout": "1000"}
    return [
        emit_packet(PacketType.CMD_REQUEST, "initiate", message)[4:],
        emit_packet(PacketType.EVENT_REGISTER, "ike-updown")[4:],
        emit_packet(PacketType.EVENT, "list-sa", message)[4:],
    ]


def _conf_seeds() -> list[bytes]:
    blocks = (ROOT / "README.md").read_text().split("```\n")
    return [block.encode() for block in blocks if "connections {" in block or "sas {" in block]


def _text_seeds() -> list[bytes]:
    words = (
        "aes256gcm16-prfsha384-x25519,default",
        "C=CH, O=strongSwan, CN=*.strongswan.org",
        "fqdn:#6d6f6f6e",
        "10.1.0.0/16[tcp/80-443]",
        "dynamic[udp/53]",
        "alice@example.org",
        "{192.0.2.1}",
    )
    return [word.encode() for word in words]


def _certificate_seeds() -> list[bytes]:
    made = Ca("fuzz").certificate.der
    return [made, (VECTORS / "x509" / "cryptography.io.pem").read_bytes()]


def _revocation_seeds() -> list[bytes]:
    folder = VECTORS / "x509"
    names = ("ocsp/resp-sha256.der", "custom/crl_all_reasons.pem")
    ours = [CA.crl(1), CA.crl(ASKED.certificate.serial), respond(CA, ASKED.certificate)]
    return [*ours, *((folder / name).read_bytes() for name in names)]


def _key_seeds() -> list[bytes]:
    return [
        ED25519_KEY.private_bytes(encoding, PrivateFormat.PKCS8, NoEncryption())
        for encoding in (Encoding.DER, Encoding.PEM)
    ]


def _packet_seeds() -> list[bytes]:
    return [udp(version=version) for version in INNER] + [udp(b"x" * 900, df=True)]


def _trailer_seeds() -> list[bytes]:
    return [trailer(udp(version=version), next_header) for version, next_header in ((4, 4), (6, 41))]


def _error_seeds() -> list[bytes]:
    return [
        bytes((version == 6, kind)) + udp(version=version, source=there, destination=here)
        for version, (here, there) in INNER.items()
        for kind in (2, 3, 4, 11)
    ]


def _datagram_seeds() -> list[bytes]:
    sealed = forge(GCM, trailer(udp(), 4))
    # the sealed datagram itself would be authentic
    return [sealed[:-1] + bytes((sealed[-1] ^ 1,)), sealed[:8], b"\xff"]


TARGETS: dict[str, Target] = {
    "ike-message": Target(ike_message, _ike_seeds),
    "ike-protected": Target(ike_protected, _protected_seeds),
    "vici-packet": Target(vici_packet, _vici_seeds),
    "swanctl-grammar": Target(swanctl_grammar, _conf_seeds),
    "swanctl-conf": Target(swanctl_conf, _conf_seeds),
    "texts": Target(texts, _text_seeds),
    "certificate": Target(certificate, _certificate_seeds),
    "revocation": Target(revocation, _revocation_seeds),
    "key-file": Target(key_file, _key_seeds),
    "esp-outbound": Target(esp_outbound, _packet_seeds),
    "esp-inbound": Target(esp_inbound, _trailer_seeds),
    "icmp-error": Target(icmp_error, _error_seeds),
    "esp-datagram": Target(esp_datagram, _datagram_seeds),
    "superframe": Target(packets.superframe, packets.superframe_seeds),
    "coalesced": Target(packets.coalesced, packets.coalesced_seeds),
    "batch": Target(packets.batch, packets.batch_seeds),
    "fragments": Target(packets.fragments, packets.fragments_seeds),
    "early": Target(packets.early, packets.early_seeds),
    "outer-packet": Target(packets.outer_packet, packets.outer_seeds),
    "ike-inside": Target(peers.ike_inside, peers.inside_seeds),
    "ike-opening": Target(peers.ike_opening, peers.opening_seeds),
    "config-payload": Target(peers.config_payload, peers.config_seeds),
    "redirect": Target(peers.redirect, peers.redirect_seeds),
    "signature": Target(peers.signature, peers.signature_seeds),
    "name": Target(peers.name, peers.name_seeds),
    "extension": Target(peers.extension, peers.extension_seeds),
    "http-request": Target(peers.http_request, peers.request_seeds),
    "http-answer": Target(peers.http_answer, peers.answer_seeds),
    "eap": Target(peers.eap, peers.eap_seeds),
    "radius-answer": Target(peers.radius_answer, peers.radius_seeds),
}
