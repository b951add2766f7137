"""Identities: text of swanctl.conf, comparison, patterns."""

from __future__ import annotations

import copy
import pickle
import time

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from ipsec.crypto import der, names
from ipsec.crypto.identity import (
    ANY_IDENTITY,
    MATCH_PERFECT,
    Identity,
    IdentityPattern,
    is_called,
    parse_identity,
    parse_pattern,
)
from ipsec.crypto.names import name_key, name_text, parse_name, parse_name_text
from ipsec.errors import ConfigError, ParseError
from ipsec.wire.iana import IdType
from tests.crypto.pki import Ca, dn

DN = IdType.DER_ASN1_DN


@pytest.mark.parametrize(
    ("text", "kind", "data", "shown"),
    [
        ("10.0.0.1", IdType.IPV4_ADDR, b"\x0a\0\0\x01", "10.0.0.1"),
        ("fe80::1", IdType.IPV6_ADDR, b"\xfe\x80" + bytes(13) + b"\1", "fe80::1"),
        ("moon.example.org", IdType.FQDN, b"moon.example.org", "moon.example.org"),
        ("@moon.example.org", IdType.FQDN, b"moon.example.org", "moon.example.org"),
        ("carol@example.org", IdType.RFC822_ADDR, b"carol@example.org", "carol@example.org"),
        ("@@moon", IdType.RFC822_ADDR, b"moon", "moon"),
        ("@#0aff", IdType.KEY_ID, b"\x0a\xff", "0a:ff"),
        ("keyid:abc", IdType.KEY_ID, b"abc", "abc"),
        ("keyid:#6162", IdType.KEY_ID, b"ab", "ab"),
        ("KeyID:#61:62", IdType.KEY_ID, b"ab", "ab"),
        ("fqdn:10.0.0.1", IdType.FQDN, b"10.0.0.1", "10.0.0.1"),
        ("dns:x", IdType.FQDN, b"x", "x"),
        ("rfc822:x", IdType.RFC822_ADDR, b"x", "x"),
        ("email:x", IdType.RFC822_ADDR, b"x", "x"),
        ("userfqdn:x", IdType.RFC822_ADDR, b"x", "x"),
        ("ipv4:#01020304", IdType.IPV4_ADDR, b"\1\2\3\4", "1.2.3.4"),
        ("ipv4:10.0.0.1", IdType.IPV4_ADDR, b"10.0.0.1", "(ID_IPV4_ADDR 31302e302e302e31)"),
        ("ipv6:#" + "00" * 15 + "01", IdType.IPV6_ADDR, bytes(15) + b"\1", "::1"),
        ("{2}:moon", IdType.FQDN, b"moon", "moon"),
        ("{0x0b}:#00", IdType.KEY_ID, b"\0", "00"),
        ("{201}:x", 201, b"x", "(ID_IdType(201) 78)"),
        ("a:b:z", IdType.KEY_ID, b"a:b:z", "a:b:z"),
        ("c2VjcmV0=", IdType.KEY_ID, b"c2VjcmV0=", "c2VjcmV0="),
        ("asn1dn:#3000", DN, b"\x30\0", ""),
    ],
)
def test_text(text: str, kind: int, data: bytes, shown: str) -> None:
    identity = parse_identity(text)
    assert (identity.type, identity.data, str(identity)) == (kind, data, shown)
    assert parse_pattern(text).matches(identity) == 20


def test_an_address_of_xmpp() -> None:
    """What charon 5.9.8 sends for it: an otherName, whose octets are compared."""
    for text in ("xmppaddr:j@x", "XMPPaddr:j@x"):
        name = parse_identity(text)
        assert (name.type, name.data.hex()) == (IdType.DER_ASN1_GN, "a01106082b06010505070805a0050c036a4078")
        assert parse_pattern("xmppaddr:j@x").matches(name) == MATCH_PERFECT
    for text in ("xmppaddr:J@x", "xmppaddr:*@x", "xmppaddr:^.*$"):
        assert not parse_pattern(text).matches(name), text


@pytest.mark.parametrize(
    "text",
    ["", "%any", "*", "0.0.0.0", "::", "keyid:#xyz", "@#0", "{300}:x", "C=CH, O", "CN=a, Foo=b", "CN=a,,", "CN=#zz"],
)
def test_what_is_no_identity(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_identity(text)


@pytest.mark.parametrize(
    "text",
    ["{}", "fqdn:{}", "xmppaddr:{}", "@{}", "a@{}", "@@{}", "*@{}", ":{}", "{}=x", "10.0.0.0/{}", "C={}", "C=\\{}"],
)
def test_what_is_not_utf8(text: str) -> None:
    """As clients of vici may send it."""
    for parse in (parse_identity, parse_pattern):
        with pytest.raises(ConfigError, match="UTF-8"):
            parse(text.format("\udcff\udcfe"))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("C=CH, O=strongSwan, CN=moon.strongswan.org", None),
        ("/C=CH/O=a, b/CN=x", "C=CH, O=a\\, b, CN=x"),
        ('C=CH, O="Foo, Inc.", CN=x', "C=CH, O=Foo\\, Inc., CN=x"),
        ("c=CH,o=x , cn = y ", "C=CH, O=x, CN=y"),
        ("CN=a\\2cb", "CN=a\\,b"),
        ("CN=Jürgen", None),
        ("OU=a + CN=b", "CN=b + OU=a"),
        ("OU=a+b", None),
        ("DC=org, DC=example, CN=x", None),
        ("1.2.3.4=x", None),
        ("CN=#0403ab0102", None),
        ("E=a@b.c, serialNumber=7, SN=y, EN=1", "E=a@b.c, serialNumber=7, SN=y, employeeNumber=1"),
        ("CN=\\*", None),
        ("CN=", None),
    ],
)
def test_names(text: str, shown: str | None) -> None:
    identity = parse_identity(text)
    assert identity.type == DN
    assert str(identity) == (shown or text)
    assert parse_identity(str(identity)) == identity


def test_surname_is_no_serial_number() -> None:
    """SN is what charon takes it for."""
    assert bytes((0x55, 4, 4)) in parse_identity("SN=x").data
    assert bytes((0x55, 4, 5)) in parse_identity("serialNumber=x").data


def test_name_as_cryptography_encodes_it() -> None:
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.COUNTRY_NAME, "CH"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "strongSwan"),
            x509.NameAttribute(NameOID.EMAIL_ADDRESS, "a@b"),
        ]
    )
    ours = parse_identity("C=CH, O=strongSwan, E=a@b")
    assert ours == Identity(DN, name.public_bytes())  # UTF8String there, PrintableString here
    assert str(Identity(DN, name.public_bytes())) == str(ours)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), min_size=1, max_size=4))
def test_any_name_goes_to_text_and_back(values: list[str]) -> None:
    attributes = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, value, _validate=False) for value in values]
    encoded = x509.Name(attributes).public_bytes()
    assert [[v for _, _, v in rdn] for rdn in parse_name(parse_name_text(name_text(encoded)))] == [
        [value.encode()] for value in values
    ]


@given(st.binary(max_size=80))
def test_garbage_is_compared_by_octets(data: bytes) -> None:
    """CVE-2013-6075: whatever a peer sends as a distinguished name, nothing but equal octets is equal."""
    one = Identity(DN, data)
    assert one == Identity(DN, data)
    assert one != Identity(DN, data + b"x")
    assert isinstance(str(one), str)
    assert not parse_pattern("C=CH, CN=*").matches(one)


@pytest.mark.parametrize("length", [0, 1, 3, 4, 5, 8, 16])
def test_every_type_and_length_prints(length: int) -> None:
    pattern = parse_pattern("moon.example.org")
    for kind in range(256):
        identity = Identity(kind, bytes(range(0xF8 - length, 0xF8)))
        assert str(identity).isprintable()
        assert identity == copy.copy(identity)
        assert not pattern.matches(identity)


@pytest.mark.parametrize(
    "data",
    [
        b"\x30\x80\0\0",  # indefinite
        b"\x30\x84\xff\xff\xff\xff",
        b"\x30\x81\x02\x31\x00",  # not minimal
        b"\x30\x05\x31\x00",
        b"\x30\x02\x31\x00",  # empty RDN
        b"\x30\x04\x31\x02\x30\x00",
        b"\x30\x02\x31\x00trailing",
        der.emit(der.SEQUENCE, *[bytes.fromhex("310b300906035504031302") + b"aa"] * 65),
        bytes(9000),
    ],
)
def test_malformed_names(data: bytes) -> None:
    with pytest.raises(ParseError):
        name_key(data)
    assert str(Identity(DN, data)).startswith("(invalid")


def test_equality() -> None:
    assert parse_identity("Moon.Example.ORG") == parse_identity("moon.example.org")
    assert hash(parse_identity("Moon.Example.ORG")) == hash(parse_identity("moon.example.org"))
    assert parse_identity("moon") != parse_identity("@@moon")
    assert parse_identity("keyid:A") != parse_identity("keyid:a")
    assert parse_identity("CN=A  b,O=X") == parse_identity("CN= a B, O=x")
    assert parse_identity("CN=a, O=x") != parse_identity("O=x, CN=a")
    assert parse_identity("CN=a") != "CN=a"
    assert parse_identity("O=x, CN=STRASSE") == parse_identity("O=x, CN=Straße")
    assert pickle.loads(pickle.dumps(parse_identity("CN=a"))) == parse_identity("CN=a")
    with pytest.raises(AttributeError):
        parse_identity("a").data = b""  # type: ignore[misc]


def test_name_differs_by_one_bit() -> None:
    """NIAP: a name wrong by one bit is another one, but for the case of a letter and the kind of string."""
    right = dn("Peer 1").public_bytes()
    values = [right.index(b"x"), *range(right.index(b"Peer 1"), len(right))]
    string_tags = [position - 2 for position in (values[0], values[1])]
    for position in range(len(right)):
        for bit in range(8):
            wrong = bytearray(right)
            wrong[position] ^= 1 << bit
            if Identity(DN, bytes(wrong)) == Identity(DN, right):
                other_case = bit == 5 and chr(right[position]).isalpha() and position in values
                other_kind = wrong[position] in (0x12, 0x13, 0x14, 0x16, 0x1A) and position in string_tags
                assert other_case or other_kind


@pytest.mark.parametrize(
    ("pattern", "identity", "quality"),
    [
        ("%any", "moon", 1),
        ("", "CN=x", 1),
        ("moon", "MOON", 20),
        ("moon", "@@moon", 0),
        ("*.example.org", "moon.Example.org", 19),
        ("*.example.org", "example.org", 0),
        ("*.example.org", "evilexample.org", 0),
        ("*.example.org", "a@b.example.org", 0),
        ("*@example.org", "carol@example.org", 19),
        ("*@example.org", "carol@sub.example.org", 0),
        ("10.0.0.1", "10.0.0.1", 20),
        ("10.0.0.1", "fqdn:10.0.0.1", 0),
        ("10.0.0.0/8", "10.255.0.1", 19),
        ("10.0.0.0/8", "11.0.0.0", 0),
        ("10.0.0.7/24", "10.0.0.5", 19),
        ("10.0.0.1/32", "10.0.0.1", 20),
        ("0.0.0.0/0", "192.0.2.1", 2),
        ("0.0.0.0/0", "2001:db8::1", 0),
        ("10.0.0.0/8", "fqdn:10.0.0.1", 0),
        ("10.0.0.0/8", "ipv4:10.0.0.1", 0),
        ("10.0.0.1-10.0.0.9", "10.0.0.9", 19),
        ("10.0.0.1 - 10.0.0.9", "10.0.0.1", 19),
        ("10.0.0.1-10.0.0.9", "10.0.0.10", 0),
        ("10.0.0.1-10.0.0.1", "10.0.0.1", 20),
        ("2001:db8::/32", "2001:db8:ffff::1", 19),
        ("2001:db8::/32", "2001:db9::", 0),
        ("2001:db8::1-2001:db8::f", "2001:db8::a", 19),
        ("::/0", "2001:db8::1", 2),
        ("::a00:0/104", "10.0.0.1", 0),
        ("ipv4net:10.0.0.0/8", "10.0.0.1", 19),
        ("IPv6range:::1-::f", "::2", 19),
        ("C=CH,", "C=CH", 20),
        ("C=CH, O=*, ", "C=CH, O=x", 19),
        ("/C=CH/O=x/", "C=CH, O=x", 20),
        ("C=CH, O=x, CN=*", "C=CH, O=X, CN=moon", 19),
        ("C=CH, O=*, CN=*", "C=CH, O=X, CN=moon", 18),
        ("C=CH, O=x, CN=*", "O=x, C=CH, CN=moon", 0),
        ("C=CH, O=x, CN=*", "C=CH, O=x, OU=y, CN=moon", 0),
        ("C=CH, O=x, CN=*", "C=CH, O=y, CN=moon", 0),
        ("CN=moo*", "CN=moon", 0),
        ("C=CH, CN=x", "C=CH, CN=X", 20),
        ("C=CH, CN=moon", "CN=moon, C=CH", 0),
        ("fqdn:^(moon|sun)\\.example\\.org$", "SUN.example.org", 2),
        ("fqdn:^(moon|sun)\\.example\\.org$", "sun.example.orgx", 0),
        ("fqdn:^a$|^b$", "b", 2),
        ("fqdn:^moon$", "moon\n", 0),
        ("fqdn:^[[:alpha:]]+[[:digit:]]$", "abc1", 2),
        ("asn1dn:^C=CH, .*CN=m.*$", "C=CH, O=x, CN=moon", 2),
        ("email:^.*@x$", "fqdn:a@x", 0),
        ("keyid:^a.$", "keyid:ab", 2),
    ],
)
def test_patterns(pattern: str, identity: str, quality: int) -> None:
    if identity.endswith("\n"):
        found = parse_pattern(pattern).matches(Identity(IdType.FQDN, identity.encode()))
    else:
        found = parse_pattern(pattern).matches(parse_identity(identity))
    assert found == quality


def test_several_attributes_in_one_rdn() -> None:
    """As charon shows a name, and takes it: without the ``+``. The order within an RDN means nothing."""
    name = parse_identity("C=CH, O=x + OU=y, CN=z")
    for text in ("C=CH, O=x, OU=y, CN=z", "C=CH, OU=y, O=x, CN=z", "C=ch, O=x, OU=Y, CN=z", str(name)):
        assert parse_pattern(text).matches(name) == MATCH_PERFECT, text
        assert is_called(name, parse_identity(text)), text
    for text, quality in {"C=CH, O=*, OU=y, CN=*": 18, "C=*, OU=*, O=x, CN=z": 18, "C=CH, O=x, OU=*, CN=z": 19}.items():
        assert parse_pattern(text).matches(name) == quality, text
    for text in ("O=x, C=CH, OU=y, CN=z", "C=CH, O=x, OU=y", "C=CH, O=x, OU=z, CN=z", "C=CH + O=x, OU=y, CN=z"):
        assert not parse_pattern(text).matches(name), text
        assert not is_called(name, parse_identity(text)), text
    for text in ("O=x, C=*, OU=y, CN=z", "C=CH, O=x, OU=*", "C=CH + O=x, OU=*, CN=z"):
        assert not parse_pattern(text).matches(name), text
    # two names are one only if they are the same
    assert parse_identity("C=CH, O=x, OU=y, CN=z") != name
    assert not is_called(parse_identity("C=CH, O=x, OU=y, CN=z"), name)
    assert not is_called(Identity(DN, b"junk"), name)


def test_a_long_name_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of anybody, against all names in a certificate that nobody has signed: it took 13 s."""
    read: list[bytes] = []
    true_key = names._name_key
    monkeypatch.setattr(names, "_name_key", lambda data: (read.append(data), true_key(data))[1])
    sans = [x509.DirectoryName(dn(f"San {number}")) for number in range(50)]
    certificate = Ca().issue("moon", sans=sans)
    long = parse_identity(", ".join(f"CN={number:0100d}" for number in range(60)))
    assert not certificate.has_identity(long)
    for number in range(50):
        assert not parse_pattern(f"CN=*, O={number}").matches(long)
        assert not parse_pattern(f"CN=San, O={number}").matches(long)
    assert read.count(long.data) == 1


def test_a_wildcard_of_the_peer_is_none() -> None:
    """What a peer sends is an identity, never a pattern."""
    assert not parse_pattern("moon.example.org").matches(Identity(IdType.FQDN, b"*.example.org"))
    assert not parse_pattern("C=CH, CN=moon").matches(parse_identity("C=CH, CN=\\*"))


@pytest.mark.parametrize("text", ["fqdn:^($", "fqdn:^(?i)a$", "fqdn:^[z-a]$", "fqdn:^a|b$", "fqdn:^(a)\\1$"])
def test_bad_regular_expression(text: str) -> None:
    with pytest.raises(ConfigError, match="identity"):
        parse_pattern(text)


@pytest.mark.parametrize(
    "text",
    ["10.0.0.0/33", "10.0.0.0/255.0.0.0", "10.0.0.0/", "10.0.0.9-10.0.0.1", "10.0.0.1-::1", "10.0.0.1-", "::/129",
     "ipv4net:::/8", "ipv6range:10.0.0.1-10.0.0.9", "ipv4net:10.0.0.1", "ipv4net:x/8",
     "ipv4net:10.0.0.0/1_6", "ipv4net:10.0.0.0/+8", "ipv4net:10.0.0.0/255.0.0.0",
     "fe80::1%eth0-fe80::2%eth0", "fe80::%eth0/64", "ipv4net:#0a000000ff000000"],
)  # fmt: skip
def test_bad_addresses(text: str) -> None:
    with pytest.raises(ConfigError, match="subnet such as"):
        parse_pattern(text)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("10.1.2.3-gw", IdType.FQDN),
        ("192.0.2.1/gw", IdType.FQDN),
        ("10.0.0.1-10.0.0.9x", IdType.FQDN),
        ("10.0.0.1-a-10.0.0.9", IdType.FQDN),
        ("10.0.0.1/24/x", IdType.FQDN),
        ("::1-x", IdType.KEY_ID),
        ("10.0.0.1-CN=a", IdType.KEY_ID),
        ("10.0.0.1/24@x", IdType.RFC822_ADDR),
    ],
)
def test_names_that_begin_like_addresses(text: str, kind: int) -> None:
    identity = Identity(kind, text.encode())
    assert parse_identity(text) == identity
    assert parse_pattern(text) == IdentityPattern.exactly(identity)


def test_many_addresses_are_nobodys_own() -> None:
    """RFC 7296 section 3.5 has no such identities."""
    for text in ("10.0.0.0/8", "10.0.0.1-10.0.0.9", "2001:db8::/32"):
        with pytest.raises(ConfigError, match="stands for many addresses"):
            parse_identity(text)
        assert parse_pattern(text).exact is None
        assert str(parse_pattern(text)) == text
    assert parse_identity("10.0.0.1/32") == parse_identity("10.0.0.1")
    assert parse_identity("fqdn:10.0.0.0/8").type == IdType.FQDN
    assert parse_identity("gw-1/a").type == IdType.FQDN
    assert parse_identity("10.0.0.1-a@b").type == IdType.RFC822_ADDR
    assert parse_pattern("10.0.0.7/24") == parse_pattern("10.0.0.0/24")
    assert parse_pattern("10.0.0.0/24") != parse_pattern("10.0.0.0/25")


def test_long_identities_meet_no_regular_expression() -> None:
    assert not parse_pattern("fqdn:^(a+)+$").matches(Identity(IdType.FQDN, b"a" * 600))
    assert parse_pattern("fqdn:^(a+)+$").matches(Identity(IdType.FQDN, b"a" * 512))


def test_no_identity_makes_a_regular_expression_take_long() -> None:
    """It is matched before the peer has authenticated itself."""
    pattern = parse_pattern("fqdn:^([a-z0-9]+-?)+\\.example\\.org$")
    assert pattern.matches(parse_identity("gw-12.example.org"))
    begun = time.process_time()
    assert not pattern.matches(Identity(IdType.FQDN, b"a" * 28 + b"!"))
    assert time.process_time() - begun < 2


def test_pattern_values() -> None:
    exact = parse_pattern("moon")
    assert exact == IdentityPattern.exactly(parse_identity("@moon"))
    assert exact.exact == parse_identity("moon")
    assert hash(exact) == hash(parse_pattern("moon"))
    assert exact != parse_pattern("@@moon")
    assert parse_pattern("%any") == ANY_IDENTITY
    assert ANY_IDENTITY.any
    assert not exact.any
    assert parse_pattern("C=CH, CN=*").exact is None
    assert str(parse_pattern("C=CH, CN=*")) == "C=CH, CN=*"
    assert exact != "moon"
