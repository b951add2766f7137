"""scapy as an independent ESP implementation, in both directions.

Every suite that scapy knows, in tunnel and transport mode, in all four pairs of address families, raw and in UDP,
with and without ESN. What it does not know is listed in NOT_IN_SCAPY and held by vectors and the other engine instead.
"""

from __future__ import annotations

import warnings
from itertools import product

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from scapy.config import conf
    from scapy.layers.inet import IP, TCP, UDP
    from scapy.layers.inet6 import IPv6
    from scapy.layers.ipsec import AUTH_ALGOS, ESP, AuthAlgo, SecurityAssociation
    from scapy.packet import Raw, raw

from ipsec.crypto.suites import Encr, Integ, esp_suite
from ipsec.esp.drops import DropReason
from ipsec.esp.framing import open_outer, outer_packet
from ipsec.esp.sa import Direction, Mode
from tests.esp.support import ADDRESSES, INNER, NOW, SPI, SUITES, keys, params

CRYPT = {
    Encr.NULL: "NULL",
    Encr.TRIPLE_DES_CBC: "3DES",
    Encr.AES_CBC: "AES-CBC",
    Encr.AES_CTR: "AES-CTR",
    Encr.AES_GCM_16: "AES-GCM",
    Encr.AES_CCM_16: "AES-CCM",
    Encr.NULL_AUTH_AES_GMAC: "AES-NULL-GMAC",
    Encr.CHACHA20_POLY1305: "CHACHA20-POLY1305",
}
AUTH = {
    Integ.NONE: "NULL",
    Integ.HMAC_SHA1_96: "HMAC-SHA1-96",
    Integ.HMAC_SHA2_256_128: "SHA2-256-128",
    Integ.HMAC_SHA2_256_96: "SHA2-256-96",
    Integ.HMAC_SHA2_384_192: "SHA2-384-192",
    Integ.HMAC_SHA2_512_256: "SHA2-512-256",
    Integ.AES_CMAC_96: "AES-CMAC-96",
}
#: scapy has no name for this one, and does what it is told
_SHA256 = AUTH_ALGOS["SHA2-256-128"]
AUTH_ALGOS["SHA2-256-96"] = AuthAlgo("SHA2-256-96", mac=_SHA256.mac, digestmod=_SHA256.digestmod, icv_size=12)
#: scapy always makes combined ICVs of 16 octets, has no AES-XCBC-96 for ESP and no RFC 8750
NOT_IN_SCAPY = {
    suite.name
    for suite in SUITES
    if suite.implicit_iv or suite.integ is Integ.AES_XCBC_96 or (suite.aead and suite.icv_len != 16)
}
KNOWN = [suite.name for suite in SUITES if suite.name not in NOT_IN_SCAPY]
FAMILIES = list(product((4, 6), (4, 6)))


def scapy_sa(suite, outer, mode, encap, esn):
    source, destination = ADDRESSES[outer]
    header = None
    if mode is Mode.TUNNEL:
        header = IP(src=source, dst=destination) if outer == 4 else IPv6(src=source, dst=destination)
    material = keys(suite)
    return SecurityAssociation(
        ESP,
        SPI,
        seq_num=1,
        crypt_algo=CRYPT[suite.encr],
        crypt_key=material["encr_key"] or None,
        auth_algo=AUTH[suite.integ],
        auth_key=material["integ_key"] or None,
        tunnel_header=header,
        nat_t_header=UDP(sport=encap[0], dport=encap[1]) if encap else None,
        esn_en=esn,
        esn=0,
    )


def packet_for(inner, outer, mode, size=50):
    source, destination = INNER[inner] if mode is Mode.TUNNEL else ADDRESSES[outer]
    version = inner if mode is Mode.TUNNEL else outer
    head = IP(src=source, dst=destination, id=0, flags="DF") if version == 4 else IPv6(src=source, dst=destination)
    return (IP if version == 4 else IPv6)(raw(head / TCP(sport=1000, dport=2000) / Raw(b"s" * size)))


CASES = [
    pytest.param(name, mode, outer, inner, encap, esn, id=f"{name}-{mode.name}-{inner}in{outer}-{encap}-esn{esn:d}")
    for name in KNOWN
    for mode in Mode
    for inner, outer in FAMILIES
    for encap in (None, (4500, 4500))
    for esn in (False, True)
    if mode is Mode.TUNNEL or inner == outer
]


def test_scapy_knows_most_suites():
    assert conf.crypto_valid
    assert len(KNOWN) >= 35
    assert {esp_suite(name).encr for name in KNOWN} >= {Encr.NULL, Encr.AES_CBC, Encr.AES_CTR, Encr.AES_GCM_16}


@pytest.mark.parametrize(("name", "mode", "outer", "inner", "encap", "esn"), CASES)
def test_both_directions(engine_class, name, mode, outer, inner, encap, esn):
    suite = esp_suite(name)
    packet = packet_for(inner, outer, mode)
    theirs = scapy_sa(suite, outer, mode, encap, esn)
    fields = {"mode": mode, "encap": encap, "esn": esn}

    sa = params(Direction.OUT, suite, outer, **fields)
    engine = engine_class(mss_clamp=False)
    sealed = engine.encapsulate(engine.add_sa(sa), raw(packet), NOW)
    framed = outer_packet(sealed, sa)
    opened = theirs.decrypt((IP if outer == 4 else IPv6)(framed))
    assert strip(raw(opened), mode) == strip(raw(packet), mode)

    engine.add_sa(params(Direction.IN, suite, outer, **fields))
    datagram, tos, source = open_outer(raw(theirs.encrypt(packet)))
    result = engine.inbound(datagram, NOW, tos=tos, source=source)
    assert result.drop is DropReason.NONE
    assert strip(result.packet, mode) == strip(raw(packet), mode)
    assert engine.events() == []


def strip(packet, mode):
    """Transport mode makes its IP header anew; scapy and we agree on all but its checksum's origin and its TTL."""
    if mode is Mode.TUNNEL:
        return packet
    return packet[9:10] + packet[12:] if packet[0] >> 4 == 4 else packet[4:7] + packet[8:]


@pytest.mark.parametrize("name", KNOWN)
def test_every_padding(engine_class, name):
    suite = esp_suite(name)
    theirs = scapy_sa(suite, 4, Mode.TUNNEL, None, False)
    sa = params(Direction.OUT, suite)
    engine = engine_class(mss_clamp=False)
    out = engine.add_sa(sa)
    engine.add_sa(params(Direction.IN, suite))
    for size in range(17):
        packet = packet_for(4, 4, Mode.TUNNEL, size)
        assert raw(theirs.decrypt(IP(outer_packet(engine.encapsulate(out, raw(packet), NOW), sa)))) == raw(packet)
        datagram, _, _ = open_outer(raw(theirs.encrypt(packet)))
        assert engine.inbound(datagram, NOW).packet == raw(packet)


@pytest.mark.parametrize("name", KNOWN)
def test_esn_high_word(engine_class, name):
    """A high word that is not zero, in the AAD or behind the ciphertext, in both implementations."""
    suite = esp_suite(name)
    theirs = scapy_sa(suite, 4, Mode.TUNNEL, None, True)
    packet = packet_for(4, 4, Mode.TUNNEL)
    start = 7 << 32 | 5
    sa = params(Direction.OUT, suite, esn=True, initial_seq=start)
    engine = engine_class(mss_clamp=False)
    sealed = engine.encapsulate(engine.add_sa(sa), raw(packet), NOW)
    theirs.esn = 7
    assert raw(theirs.decrypt(IP(outer_packet(sealed, sa)), esn_en=True, esn=7)) == raw(packet)
    engine.add_sa(params(Direction.IN, suite, esn=True, initial_seq=start))
    datagram, _, _ = open_outer(raw(theirs.encrypt(packet, seq_num=6, esn_en=True, esn=7)))
    assert engine.inbound(datagram, NOW).packet == raw(packet)
