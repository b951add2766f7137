"""What the clients that Windows, macOS, iOS and Android have built in are known to send, to our gateway."""

from __future__ import annotations

import re
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509 import DNSName

from ipsec.config import load_text
from ipsec.ike.config import IkeSettings
from ipsec.wire.iana import CfgAttribute, IdType, NotifyType
from ipsec.wire.payloads import CpPayload, NotifyPayload, SaPayload, TsPayload
from tests.crypto.pki import EC384_KEY, Ca
from tests.ike.hostile import Rng, Stub, Target
from tests.ike.phone import GATEWAY, HERE, Kind, Phone, one

ROOT = Ca()
OPERATIONS = Path(__file__).parent.parent.parent / "docs" / "operations.md"
PASSWORD = "pässwörd of cårol, 密码"
POOL = "pools { users { addrs = 10.9.0.0/24\n dns = 10.1.0.53\n } }\n"

_ADDRESSES = (CfgAttribute.INTERNAL_IP4_ADDRESS, CfgAttribute.INTERNAL_IP6_ADDRESS)
_NAME_SERVERS = (CfgAttribute.INTERNAL_IP4_DNS, CfgAttribute.INTERNAL_IP6_DNS)
WINDOWS = Kind(
    ike=("3des-sha1-modp1024", "aes256-sha1-modp1024", "aes256-sha256-modp1024", "aes256-sha256-modp2048"),
    esp=("aes256-sha1", "aes128-sha1", "3des-sha1"),
    idi=(IdType.IPV4_ADDR, HERE.packed),
    # the last two are INTERNAL_IP4_SERVER and INTERNAL_IP6_SERVER, of Microsoft alone
    wants=(*_ADDRESSES, *_NAME_SERVERS, CfgAttribute.INTERNAL_IP4_NBNS, 23456, 23457),
    announces=(NotifyType.IKEV2_FRAGMENTATION_SUPPORTED,),
    tells=(NotifyType.MOBIKE_SUPPORTED,),
    vendors=(bytes.fromhex("1e2b516905991c7d7c96fcbfb587e46100000009"), b"Vid-Initial-Contact"),
    certreqs=60,
)
APPLE = Kind(
    ike=("aes256-sha256-modp2048", "aes256-sha256-ecp256", "aes256-sha256-modp1536", "aes128-sha1-modp1024"),
    esp=("aes256-sha256", "aes128-sha1", "3des-sha1"),
    idi=(IdType.FQDN, b"phone"),
    wants=(
        *(*_ADDRESSES, *_NAME_SERVERS, CfgAttribute.INTERNAL_IP4_NETMASK, CfgAttribute.INTERNAL_IP4_DHCP),
        *(CfgAttribute.INTERNAL_IP6_DHCP, CfgAttribute.INTERNAL_DNS_DOMAIN),
    ),
    announces=(NotifyType.REDIRECT_SUPPORTED, NotifyType.IKEV2_FRAGMENTATION_SUPPORTED),
    tells=(
        *(NotifyType.INITIAL_CONTACT, NotifyType.ESP_TFC_PADDING_NOT_SUPPORTED, NotifyType.NON_FIRST_FRAGMENTS_ALSO),
        *(NotifyType.MOBIKE_SUPPORTED, NotifyType.EAP_ONLY_AUTHENTICATION),
    ),
    idr=b"gw.example.org",
)
ANDROID = Kind(
    ike=("aes256gcm16-aes128gcm16-prfsha512-prfsha256-modp4096-x25519-modp2048", "aes256-sha512-sha256-modp4096"),
    esp=("aes256gcm16-aes128gcm16", "aes256-sha512-sha256"),
    idi=(IdType.KEY_ID, b"phone"),
    wants=(*_ADDRESSES, *_NAME_SERVERS),
    announces=(NotifyType.IKEV2_FRAGMENTATION_SUPPORTED,),
    idr=b"gw.example.org",
)
KINDS = {"Windows": WINDOWS, "Apple": APPLE, "Android": ANDROID}


def gateway(folder: Path, user: str) -> Target:
    """As the documentation has it, for one user."""
    section = OPERATIONS.read_text().split("\n## EAP\n")[1]
    found = re.search(r"The gateway:\n\n((?: {4}.*\n)+)", section)
    assert found is not None
    text = found[1].replace("carol@example.org", f'"{user}"').replace("...", f'"{PASSWORD}"')
    certificate = ROOT.issue("gateway", EC384_KEY, sans=(DNSName("gw.example.org"),))
    key = EC384_KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    files = {"x509/gw.pem": certificate.der, "x509ca/ca.pem": ROOT.certificate.der, "private/gw.pem": key}
    for name, data in files.items():
        (folder / name).parent.mkdir()
        (folder / name).write_bytes(data)
        (folder / name).chmod(0o600)
    config = load_text(text + POOL, "f", str(folder))
    engine = Target(IkeSettings(), Stub((GATEWAY,)), Rng("gateway"))
    engine.load(config.connections, config.credentials, config.pools)
    return engine


@pytest.mark.parametrize(
    ("user", "written"),
    [("carol@example.org", "carol@example.org"), ("CORP\\carol", "CORP\\\\carol"), ("jörg", "jörg")],
)
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_built_in_clients(kind: Kind, user: str, written: str, tmp_path: Path) -> None:
    engine = gateway(tmp_path, written)
    phone = Phone(kind, engine, ROOT.certificate, user.encode(), PASSWORD)
    response = phone.connect()
    assert (phone.idr.id_type, phone.idr.data) == (IdType.FQDN, b"gw.example.org")
    granted = dict(one(response, CpPayload).attributes)
    assert granted[CfgAttribute.INTERNAL_IP4_ADDRESS] == ip_address("10.9.0.1").packed
    assert granted[CfgAttribute.INTERNAL_IP4_DNS] == ip_address("10.1.0.53").packed
    # and nothing that it has not
    assert set(granted) <= {*kind.wants, CfgAttribute.INTERNAL_IP4_NETMASK}
    assert one(response, SaPayload).proposals
    mine, theirs = ([str(ts) for ts in p.selectors] for p in response if isinstance(p, TsPayload))
    assert (mine, theirs) == (["10.9.0.1/32"], ["10.1.0.0/16"])
    assert not [p for p in response if isinstance(p, NotifyPayload) and p.notify < 16384]
    (sa,) = engine.sas.values()
    assert sa.established
    assert str(sa.eap_id) == user


def test_windows_is_asked_for_a_longer_group(tmp_path: Path) -> None:
    """It begins with MODP_1024, which is weak."""
    phone = Phone(WINDOWS, gateway(tmp_path, "carol"), ROOT.certificate, b"carol", PASSWORD)
    phone.connect()
    assert phone.retried == 1
    assert phone.chosen == "IKE:AES_CBC_256/HMAC_SHA2_256_128/PRF_HMAC_SHA2_256/MODP_2048"
