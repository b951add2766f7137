"""Certificates and chains. Oracles: NIST PKITS and the certificates of cryptography's own tests."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import cache
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from cryptography import x509 as cx
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from ipsec.crypto import der
from ipsec.crypto.auth import AuthenticationError, Scheme, parse_constraints
from ipsec.crypto.chain import (
    CHAIN_MAX,
    INTERMEDIATES_MAX,
    LOADED_SIGNATURES_MAX,
    SIGNATURES_MAX,
    CertificateError,
    Chain,
    Signatures,
    verify_chain,
)
from ipsec.crypto.identity import Identity, parse_identity
from ipsec.crypto.policy import ANY_POLICY, check_policies
from ipsec.crypto.revocation import Crl, Revocation, RevokedError, check_revocation
from ipsec.crypto.x509 import Certificate, load_certificates, parse_certificate, parse_time
from ipsec.errors import ParseError
from ipsec.wire.iana import HashAlgorithm, IdType
from tests.crypto.pki import DAY, EC_KEY, ED448_KEY, ED25519_KEY, PKITS, RSA_KEY, VECTORS, WALL, Ca, dn

PKITS_WALL = datetime(2020, 1, 1, tzinfo=UTC)


def by_subject(*certificates: Certificate) -> dict[object, list[Certificate]]:
    """As ``verify_chain`` takes what is loaded."""
    return {one.subject_key: [one] for one in certificates}


@cache
def pkits() -> tuple[dict[str, Certificate], list[Crl]]:
    """What can be read of PKITS: one CA of DSA keys without parameters, one bad signature and one bad CRL cannot."""
    certificates = {}
    for path in (PKITS / "certs").glob("*.crt"):
        try:
            certificates[path.stem] = Certificate(path.read_bytes())
        except ParseError:
            assert "DSA" in path.stem or path.stem == "BadSignedCACert"
    crls = []
    for path in (PKITS / "crls").glob("*.crl"):
        try:
            crls.append(Crl(path.read_bytes()))
        except ParseError:
            assert path.stem == "BadCRLSignatureCACRL"
    return certificates, crls


def pkits_chain(name: str) -> Chain:
    certificates, _ = pkits()
    if name not in certificates:
        raise ParseError("cannot be read")
    pool: list[Certificate] = []
    wanted = [certificates[name]]
    while wanted:
        issuer_key = wanted.pop().issuer_key
        found = [one for one in certificates.values() if one.subject_key == issuer_key and one not in pool]
        pool += found
        wanted += found
    root = certificates["TrustAnchorRootCertificate"]
    pool = [one for one in pool if one != root]
    return verify_chain(certificates[name], pool, [root], wall=PKITS_WALL)


#: Valid tests that we do not pass, and why that is safe: the status stays unknown, or the key is none of ours
NOT_TAKEN = {
    "DSA": "DSA signs nothing in IKEv2",
    "IDPwithindirectCRL": "indirect CRLs",
    "cRLIssuer": "indirect CRLs",
    "onlySomeReasons": "CRLs for some reasons",
    "SeparateCertificateandCRLKeys": "a second key of the CA outside of the chain",
    "BasicSelfIssuedCRLSigningKey": "a second key of the CA outside of the chain",
    "BasicSelfIssuedNewWithOldTest4": "a second key of the CA outside of the chain",
    "ValiddistributionPointTest4": "names relative to the issuer",
    "ValiddistributionPointTest5": "names relative to the issuer",
    "ValiddistributionPointTest7": "names relative to the issuer",
    "ValiddeltaCRLTest5": "delta CRLs make nothing good: a hold stays",
}

ENDS = sorted(path.stem for path in (PKITS / "certs").glob("*EE.crt") if re.match("(Inv|V)alid", path.stem))


@pytest.mark.parametrize("name", ENDS)
def test_pkits(name: str) -> None:
    """Every test of PKITS whose name tells the outcome, with revocation "strict"."""
    expected = name.startswith("Valid")
    if name.startswith("Valid") and any(part in name for part in NOT_TAKEN):
        expected = False
    try:
        chain = pkits_chain(name)
        check_revocation(chain, pkits()[1], [], Revocation.STRICT, PKITS_WALL)
        found, why = True, ""
    except (ParseError, AuthenticationError) as error:
        found, why = False, str(error)
    assert found == expected, why


def test_pkits_is_large() -> None:
    assert len(ENDS) > 200
    used = {part for part in NOT_TAKEN if any(part in name for name in ENDS)}
    assert used == set(NOT_TAKEN)


P = {n: f"2.16.840.1.101.3.2.1.48.{n}" for n in range(1, 7)}
ANY = {ANY_POLICY}


@pytest.mark.parametrize(
    ("name", "explicit", "wanted", "ok"),
    [
        # 4.8.1 to 4.8.20 of PKITS: explicit is initial-explicit-policy, wanted the user-initial-policy-set
        ("AllCertificatesNoPoliciesTest2EE", False, ANY, True),
        ("AllCertificatesNoPoliciesTest2EE", True, ANY, False),
        ("DifferentPoliciesTest3EE", False, ANY, True),
        ("DifferentPoliciesTest3EE", True, ANY, False),
        ("DifferentPoliciesTest3EE", True, {P[1], P[2]}, False),
        ("DifferentPoliciesTest4EE", False, ANY, False),
        ("DifferentPoliciesTest5EE", False, ANY, False),
        ("OverlappingPoliciesTest6EE", False, ANY, True),
        ("OverlappingPoliciesTest6EE", False, {P[1]}, True),
        ("OverlappingPoliciesTest6EE", False, {P[2]}, False),
        ("DifferentPoliciesTest7EE", False, ANY, False),
        ("DifferentPoliciesTest8EE", False, ANY, False),
        ("DifferentPoliciesTest9EE", False, ANY, False),
        ("AllCertificatesSamePoliciesTest10EE", False, ANY, True),
        ("AllCertificatesSamePoliciesTest10EE", False, {P[1]}, True),
        ("AllCertificatesSamePoliciesTest10EE", False, {P[2]}, True),
        ("AllCertificatesanyPolicyTest11EE", False, ANY, True),
        ("AllCertificatesanyPolicyTest11EE", False, {P[1]}, True),
        ("DifferentPoliciesTest12EE", False, ANY, False),
        ("AllCertificatesSamePoliciesTest13EE", False, {P[1]}, True),
        ("AllCertificatesSamePoliciesTest13EE", False, {P[2]}, True),
        ("AllCertificatesSamePoliciesTest13EE", False, {P[3]}, True),
        ("AnyPolicyTest14EE", False, {P[1]}, True),
        ("AnyPolicyTest14EE", False, {P[2]}, False),
        ("UserNoticeQualifierTest15EE", False, ANY, True),
        ("UserNoticeQualifierTest17EE", False, ANY, True),
        ("CPSPointerQualifierTest20EE", True, ANY, True),
        ("ValidPolicyMappingTest1EE", False, {P[1]}, True),
        ("ValidPolicyMappingTest1EE", False, {P[2]}, False),
        ("InvalidPolicyMappingTest2EE", False, ANY, False),
        ("ValidPolicyMappingTest3EE", False, {P[2]}, True),
        ("ValidPolicyMappingTest3EE", False, {P[1]}, False),
        ("ValidPolicyMappingTest5EE", False, {P[1]}, True),
        ("ValidPolicyMappingTest5EE", False, {P[6]}, False),
        ("ValidPolicyMappingTest6EE", False, {P[1]}, True),
        ("ValidPolicyMappingTest6EE", False, {P[6]}, False),
        ("ValidPolicyMappingTest9EE", False, {P[1]}, True),
        ("inhibitAnyPolicyTest3EE", False, ANY, True),
    ],
)
def test_pkits_policies(name: str, explicit: bool, wanted: set[str], ok: bool) -> None:
    try:
        chain = pkits_chain(name)
    except CertificateError:
        assert not ok
        return
    result = check_policies(chain.certificates, explicit=explicit)
    # RFC 5280 section 6.1.5 (g): a set of policies makes them needed where the chain or the user asks for one
    fits = bool(result.policies & wanted) or ANY_POLICY in result.policies if wanted != ANY else result.ok
    assert fits == ok


def test_limits_of_the_anchor_on_policies() -> None:
    """RFC 5937 section 3.2: they hold as those of an authority below it would."""

    def policies(*oids: str) -> list[tuple[Any, bool]]:
        found = [cx.PolicyInformation(ObjectIdentifier(oid), None) for oid in oids]
        return [(cx.CertificatePolicies(found), False)]

    wanted = {"required_policies": ("1.2.3",)}
    free = Ca()
    verify(free.issue(), [free])
    verify(free.issue(extensions=policies(ANY_POLICY)), [free], **wanted)
    strict = Ca(extensions=[(cx.PolicyConstraints(0, None), True)])
    verify(strict.issue(extensions=policies("1.2.3")), [strict])
    with pytest.raises(CertificateError, match="policies"):
        verify(strict.issue(), [strict])
    exact = Ca(extensions=[(cx.InhibitAnyPolicy(0), True)])
    verify(exact.issue(extensions=policies("1.2.3")), [exact], **wanted)
    with pytest.raises(CertificateError, match="policies"):
        verify(exact.issue(extensions=policies(ANY_POLICY)), [exact], **wanted)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("3003800100", "lacks certificate policies"),
        ("30038001ff", "negative number"),
        ("30038101ff", "negative number"),
        ("3000", "malformed policy constraints"),
        ("3003820100", "malformed policy constraints"),
    ],
)
def test_policy_constraints_that_are_none(body: str, why: str) -> None:
    """RFC 5280 section 4.2.1.11: how many certificates may come before they count is no negative number."""
    ca = Ca(extensions=[(cx.UnrecognizedExtension(ObjectIdentifier("2.5.29.36"), bytes.fromhex(body)), True)])
    with pytest.raises(CertificateError, match=why):
        verify(ca.issue(), [ca])


# What one certificate says


def test_contents() -> None:
    ca = Ca()
    sans = (
        cx.DNSName("Moon.Example.org"),
        cx.RFC822Name("carol@example.org"),
        cx.IPAddress(ip_address("10.0.0.1")),
        cx.IPAddress(ip_address("2001:db8::1")),
        cx.DirectoryName(dn("other")),
        cx.UniformResourceIdentifier("https://x"),
    )
    certificate = ca.issue("peer", sans=sans)
    for text in ("moon.example.ORG", "carol@example.org", "10.0.0.1", "2001:db8::1", "O=x, CN=other", "O=X, CN=PEER"):
        assert certificate.has_identity(parse_identity(text)), text
    assert certificate.has_identity(Identity(IdType.KEY_ID, certificate.key_id))
    assert certificate.has_identity(Identity(IdType.KEY_ID, certificate.spki_sha1))
    for text in ("peer", "example.org", "x@example.org", "10.0.0.2", "O=x, CN=peer2", "CN=peer", "keyid:", "@@moon"):
        assert not certificate.has_identity(parse_identity(text)), text
    built = certificate.x509
    assert certificate.serial == built.serial_number
    assert certificate.subject.data == built.subject.public_bytes()
    assert (certificate.not_before, certificate.not_after) == (built.not_valid_before_utc, built.not_valid_after_utc)
    assert certificate.key_id == cx.SubjectKeyIdentifier.from_public_key(EC_KEY.public_key()).digest
    assert certificate.version == 3
    assert repr(certificate) == "<Certificate O=x, CN=peer>"
    assert certificate == parse_certificate(certificate.der)
    assert hash(certificate) == hash(parse_certificate(certificate.der))
    assert certificate != certificate.der


def test_san_mismatch_with_matching_cn() -> None:
    """OB-84, OB-85: a host name in the CN is not an identity, a wildcard in a certificate neither."""
    certificate = Ca().issue("moon.example.org", sans=(cx.DNSName("*.example.org"), cx.DNSName("sun.example.org")))
    assert certificate.has_identity(parse_identity("sun.example.org"))
    assert not certificate.has_identity(parse_identity("moon.example.org"))


def test_a_subject_with_several_attributes_in_one_rdn() -> None:
    """charon sends the name as it was configured, which is without the ``+``."""
    parts = [(NameOID.ORGANIZATION_NAME, "x"), (NameOID.ORGANIZATIONAL_UNIT_NAME, "y"), (NameOID.COMMON_NAME, "z")]
    first, unit, common = (cx.NameAttribute(oid, value) for oid, value in parts)
    name = cx.Name([cx.RelativeDistinguishedName([first, unit]), cx.RelativeDistinguishedName([common])])
    certificate = Ca().issue(name=name)
    assert certificate.has_identity(parse_identity("O=x + OU=y, CN=z"))
    assert certificate.has_identity(parse_identity("O=x, OU=y, CN=z"))
    assert not certificate.has_identity(parse_identity("OU=y, CN=z, O=x"))


def test_loading() -> None:
    path = VECTORS / "x509" / "cryptography.io.chain.pem"
    many = load_certificates(path.read_bytes())
    assert len(many) == 2
    assert load_certificates(many[0].der) == many[:1]
    for data in (b"", b"garbage", b"-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----", b"-----BEGIN X-----"):
        with pytest.raises(ParseError):
            load_certificates(data)


PROPERTIES = [
    *("public_key", "spki_sha1", "key_id", "authority_key_id", "path_len", "is_ca", "key_usage", "extended_key_usage"),
    *("alt_names", "identities", "name_constraints", "policies", "crl_uris", "ocsp_uris", "fingerprint", "self_issued"),
]


def read_all(certificate: Certificate) -> None:
    for name in PROPERTIES:
        try:
            getattr(certificate, name)
        except ParseError:
            continue
    certificate.has_identity(parse_identity("x"))
    assert isinstance(repr(certificate), str)


def test_vectors_of_cryptography() -> None:
    """Whatever lies in the vectors is read or refused, and never with a warning."""
    count = 0
    for pattern in ("*.pem", "*.der", "*.crt"):
        for path in (VECTORS / "x509").rglob(pattern):
            try:
                for certificate in load_certificates(path.read_bytes()):
                    read_all(certificate)
                    count += 1
            except ParseError:
                continue
    assert count > 450


def test_every_octet_changed() -> None:
    """No change of a certificate raises anything but ParseError, and none leaves it valid."""
    ca = Ca()
    sans = (cx.DNSName("a.b"), cx.IPAddress(ip_address("10.0.0.1")))
    good = ca.issue(sans=sans, extensions=[(cx.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)])
    verify_chain(good, [], [ca.certificate], wall=WALL)
    for position in range(len(good.der)):
        for value in (0, 0xFF, good.der[position] ^ 1, good.der[position] ^ 0x80):
            changed = good.der[:position] + bytes((value,)) + good.der[position + 1 :]
            if changed == good.der:
                continue
            try:
                certificate = Certificate(changed)
                read_all(certificate)
                verify_chain(certificate, [], [ca.certificate], wall=WALL)
            except (ParseError, CertificateError):
                continue
            pytest.fail(f"octet {position} does not count")
    for length in range(len(good.der)):
        with pytest.raises(ParseError):
            Certificate(good.der[:length])
    with pytest.raises(ParseError):
        Certificate(good.der + b"\0")
    with pytest.raises(ParseError):
        Certificate(bytes(70000))


@pytest.mark.parametrize(
    ("tag", "value", "year"),
    [
        (der.UTC_TIME, b"500101000000Z", 1950),
        (der.UTC_TIME, b"491231235959Z", 2049),
        (der.GENERALIZED_TIME, b"20500101000000Z", 2050),
    ],
)
def test_times(tag: int, value: bytes, year: int) -> None:
    assert parse_time(tag, value).year == year


@pytest.mark.parametrize(
    "value", [b"", b"5001010000Z", b"500101000000+0100", b"501301000000Z", b"5001010000001", b"50010100000\xb2Z"]
)
def test_bad_times(value: bytes) -> None:
    with pytest.raises(ParseError):
        parse_time(der.UTC_TIME, value)


# Chains


def verify(end: Certificate, anchors: list[Ca], between: tuple[Certificate, ...] = (), **more: Any) -> Chain:
    return verify_chain(end, between, [ca.certificate for ca in anchors], wall=more.pop("wall", WALL), **more)


def test_good_chains() -> None:
    root = Ca()
    sub = Ca("Sub", root, path_length=0)
    end = sub.issue()
    chain = verify(end, [root], (sub.certificate,))
    assert chain.certificates == (end, sub.certificate, root.certificate)
    assert (chain.end, chain.certificates[-1]) == (end, root.certificate)
    assert chain.authorities == (sub.certificate, root.certificate)
    assert str(chain) == "O=x, CN=peer <- O=x, CN=Sub <- O=x, CN=Root"
    assert verify(end, [sub]).certificates == (end, sub.certificate)
    assert verify(root.certificate, [root]).certificates == (root.certificate,)


def refused(ca: Ca, chain: Chain) -> bool:
    """Whether the CRL of ``ca``, which lists 66, refuses the chain."""
    try:
        check_revocation(chain, [Crl(ca.crl(66))], [], Revocation.RELAXED, WALL)
    except RevokedError:
        return True
    return False


def test_who_stands_above_an_anchor_is_heard() -> None:
    """An end entity or an authority that is trusted as it is, below a root that is loaded and has revoked it."""
    root = Ca()
    sub, end = Ca("Sub", root, serial=66), root.issue(serial=66)
    below = sub.issue()
    for trusted, between, chain in (
        ([end, root.certificate], [], (end, root.certificate)),
        ([sub.certificate, root.certificate], [], (below, sub.certificate, root.certificate)),
        ([sub.certificate, root.certificate], [sub.certificate], (below, sub.certificate, root.certificate)),
        # an authority between them that only the peer knows, or that is loaded and trusted by nobody
        ([below, root.certificate], [sub.certificate], (below, sub.certificate, root.certificate)),
    ):
        found = verify_chain(chain[0], between, trusted, wall=WALL)
        assert found.certificates == chain
        assert refused(root, found)
    found = verify_chain(end, [root.certificate], [end], wall=WALL, loaded=by_subject(root.certificate))
    assert found.certificates == (end, root.certificate)
    # whoever stands between: how the peer gets there must not decide whether those above are heard
    middle = Ca("Middle", sub)
    deep = middle.issue()
    for loaded in (by_subject(root.certificate), by_subject(root.certificate, middle.certificate)):
        found = verify_chain(deep, [middle.certificate], [sub.certificate], wall=WALL, loaded=loaded)
        assert found.certificates == (deep, middle.certificate, sub.certificate, root.certificate)
        assert refused(root, found)
    # nothing above, nobody to hear
    assert verify_chain(end, [root.certificate], [end], wall=WALL).certificates == (end,)
    assert verify_chain(below, [], [sub.certificate], wall=WALL).certificates == (below, sub.certificate)
    assert verify_chain(below, [sub.certificate], [below, Ca().certificate], wall=WALL).certificates == (below,)


def test_a_chain_that_goes_on_above_an_anchor_has_to_be_valid() -> None:
    short = Ca(path_length=0)
    middle = Ca("Middle", short)
    low = Ca("Low", middle)
    end = low.issue()
    trusted = [middle, short]
    with pytest.raises(CertificateError, match="more authorities"):
        verify(end, trusted, (low.certificate,))
    assert verify(end, [middle], (low.certificate,))
    over = Ca(not_after=WALL - DAY)
    under = Ca("Sub", over)
    with pytest.raises(CertificateError, match="CN=Root expired"):
        verify(under.issue(), [under, over])
    # one way up is enough
    new = Ca("New", key=EC_KEY)
    again = Ca("Sub", new, under.key)
    chain = verify(under.issue(), [under, over, again, new])
    assert chain.authorities == (again.certificate, new.certificate)


def test_what_does_not_vouch_for_an_anchor_is_not_above_it() -> None:
    """No certificate of a CA, or another key: the anchor stays good for what it was loaded for."""
    root = Ca()
    plain = root.issue("Plain", RSA_KEY)
    end = Ca("Plain", key=RSA_KEY).issue()
    assert verify_chain(end, [], [end, plain, root.certificate], wall=WALL).certificates == (end,)
    twin = Ca()
    pinned = twin.issue()
    assert verify_chain(pinned, [], [pinned, root.certificate], wall=WALL).certificates == (pinned,)


def test_how_an_anchor_was_signed_does_not_matter() -> None:
    """It is trusted without its signature; who has made that may still revoke it."""
    root = Ca(key=RSA_KEY)
    end = root.issue(serial=66)
    only = parse_constraints("ecdsa-256-sha256")
    chain = verify_chain(end, [], [end, root.certificate], wall=WALL, constraints=only)
    assert refused(root, chain)
    short = Ca(key=rsa.generate_private_key(65537, 1024))
    sub = Ca("Sub", short)
    assert len(verify(sub.issue(), [sub, short]).certificates) == 3


def same_name(count: int) -> list[Certificate]:
    return [Ca().certificate for _ in range(count)]


def test_nobody_can_get_rid_of_who_stands_above() -> None:
    """Who has the key of an authority that was revoked makes any number of certificates of any name."""
    root = Ca(path_length=3)
    sub = Ca("Sub", root, serial=66)
    trusted = [sub, root]
    # too long to look further
    line = [sub]
    for number in range(CHAIN_MAX - 2):
        line.append(Ca(f"Line {number}", line[-1]))
    with pytest.raises(CertificateError, match="certificates in a chain"):
        verify(line[-1].issue(), trusted, tuple(ca.certificate for ca in line[1:]))
    between = Ca("Between", root)
    under = Ca("Sub", between, serial=66)
    line = [under]
    for number in range(CHAIN_MAX - 3):
        line.append(Ca(f"Line {number}", line[-1]))
    with pytest.raises(CertificateError, match="certificates in a chain"):
        verify(line[-1].issue(), [under, root], (between.certificate, *(ca.certificate for ca in line[1:])))
    # the root's own name and key below, so that it seems to have been met
    fake = Ca("Root", sub, root.key)
    end = root.issue()

    def below(chain: Chain) -> None:
        if sub.certificate not in chain.certificates:
            raise CertificateError("another way")

    chain = verify(end, trusted, (fake.certificate,), accept=below)
    assert chain.certificates == (end, fake.certificate, sub.certificate, root.certificate)
    assert refused(root, chain)
    # more of the root's name than are looked at
    junk = tuple(Ca().certificate for _ in range(INTERMEDIATES_MAX))
    trusted.reverse()
    assert refused(root, verify(sub.issue(), trusted, junk))
    with pytest.raises(CertificateError, match="too many signatures"):
        verify_chain(sub.issue(), junk, [sub.certificate], wall=WALL, loaded=by_subject(root.certificate))
    with pytest.raises(CertificateError, match="too many certificates"):
        verify_chain(sub.issue(), (), [sub.certificate, *junk, *same_name(64), root.certificate], wall=WALL)


def test_roots_that_vouch_for_each_other() -> None:
    one, two = Ca("One"), Ca("Two")
    crossed = [Ca("One", two, one.key), Ca("Two", one, two.key)]
    end = one.issue()
    assert verify(end, [one, two, *crossed]).certificates == (end, one.certificate)
    chain = verify(end, crossed)
    assert chain.certificates == (end, crossed[0].certificate, crossed[1].certificate)
    old, new = Ca(), Ca()
    rolled = [old, new, Ca("Root", old, new.key), Ca("Root", new, old.key)]
    assert verify(new.issue(), rolled).authorities[0] in (new.certificate, rolled[2].certificate)


def test_untrusted() -> None:
    """CVE-T-18: a self-signed or foreign certificate is trusted in no shape of chain."""
    root, other = Ca(), Ca()
    assert root.certificate.subject == other.certificate.subject
    end = other.issue()
    for chain in ((end,), (end, other.certificate), (other.certificate,), (other.certificate, other.certificate)):
        with pytest.raises(CertificateError):
            verify(chain[0], [root], chain[1:])
    with pytest.raises(CertificateError, match="no trusted issuer"):
        verify(end, [])
    with pytest.raises(CertificateError, match="no trusted issuer"):
        verify(Ca("Lone").issue(), [root])


@pytest.mark.parametrize("key", [RSA_KEY, ED25519_KEY, ED448_KEY], ids=lambda key: type(key).__name__)
def test_kinds_of_keys(key: Any) -> None:
    root = Ca(key=key)
    assert verify(root.issue(key=key), [root])


def test_validity() -> None:
    """OB-88."""
    root = Ca()
    end = root.issue(not_before=WALL, not_after=WALL + DAY)
    early, late = (WALL - DAY / 24, "not valid before"), (WALL + 2 * DAY, "expired")
    for wall, why in ((WALL, None), (WALL + DAY, None), early, late):
        if why is None:
            verify(end, [root], wall=wall)
        else:
            with pytest.raises(CertificateError, match=why):
                verify(end, [root], wall=wall)
    with pytest.raises(CertificateError, match="expired"):
        verify(root.issue(not_after=WALL + 99 * DAY), [root], wall=WALL + 11 * DAY)


USAGE = dict.fromkeys(
    (
        *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
        *("key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
    ),
    False,
)


@pytest.mark.parametrize(
    ("extensions", "why"),
    [
        ([(cx.KeyUsage(**{**USAGE, "digital_signature": True}), True)], None),
        ([(cx.KeyUsage(**{**USAGE, "content_commitment": True}), True)], None),
        ([(cx.KeyUsage(**{**USAGE, "key_encipherment": True}), True)], "not for signatures"),
        ([(cx.KeyUsage(**{**USAGE, "key_cert_sign": True}), False)], "not for signatures"),
        ([(cx.ExtendedKeyUsage([ObjectIdentifier("1.3.6.1.5.5.7.3.17")]), True)], None),
        ([(cx.ExtendedKeyUsage([ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]), False)], None),
        ([(cx.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), False)], None),
        ([(cx.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), False)], "purposes"),
        ([(cx.UnrecognizedExtension(ObjectIdentifier("1.2.3"), b"\5\0"), False)], None),
        ([(cx.UnrecognizedExtension(ObjectIdentifier("1.2.3"), b"\5\0"), True)], "critical"),
        ([(cx.UnrecognizedExtension(ObjectIdentifier("2.5.29.15"), b"\5\0"), True)], "DER"),
        ([(cx.UnrecognizedExtension(ObjectIdentifier("2.5.29.37"), b"\x30\0"), True)], "malformed"),
        ([(cx.UnrecognizedExtension(ObjectIdentifier("2.5.29.32"), b"\x30\x02\x30\0"), True)], "malformed"),
    ],
)
def test_extensions_of_the_end(extensions: list[tuple[Any, bool]], why: str | None) -> None:
    """OB-86."""
    root = Ca()
    end = root.issue(extensions=extensions)
    if why is None:
        verify(end, [root])
    else:
        with pytest.raises(CertificateError, match=why):
            verify(end, [root])


def test_who_may_issue() -> None:
    root = Ca()
    middle = root.issue("Middle", RSA_KEY)  # an end entity that issues
    fake = Ca("Middle", key=RSA_KEY)
    with pytest.raises(CertificateError, match="no certificate authority"):
        verify(fake.issue(), [root], (middle,))
    no_sign = Ca("No sign", root, extensions=[(cx.KeyUsage(**{**USAGE, "crl_sign": True}), True)])
    with pytest.raises(CertificateError, match="not for signing certificates"):
        verify(no_sign.issue(), [root], (no_sign.certificate,))
    short = Ca("Short", root, path_length=0)
    under = Ca("Under", short)
    with pytest.raises(CertificateError, match="more authorities"):
        verify(under.issue(), [root], (short.certificate, under.certificate))
    with pytest.raises(CertificateError, match="more authorities"):
        verify(under.issue(), [short, root], (under.certificate, short.certificate))


def test_long_chains_and_loops_end() -> None:
    """The work that a peer can cause is bounded."""
    root = Ca()
    line = [root]
    for number in range(CHAIN_MAX):
        line.append(Ca(f"Sub {number}", line[-1]))
    ends = [ca.issue() for ca in line]
    between = tuple(ca.certificate for ca in line[1:])
    assert len(verify(ends[CHAIN_MAX - 2], [root], between).certificates) == CHAIN_MAX
    with pytest.raises(CertificateError, match="no trusted issuer"):
        verify(ends[CHAIN_MAX - 1], [root], between)
    one, two = Ca("One"), Ca("Two")
    crossed = (Ca("One", two, one.key).certificate, Ca("Two", one, two.key).certificate)
    with pytest.raises(CertificateError, match="no trusted issuer"):
        verify(one.issue(), [root], crossed)
    same = tuple(Ca("Root", key=EC_KEY if n else None).certificate for n in range(40))
    with pytest.raises(CertificateError):
        verify(Ca("Root").issue(), [Ca("Other")], same * 10)


def public(exponent: int, bits: int) -> rsa.RSAPublicKey:
    """Of no private key."""
    return rsa.RSAPublicNumbers(exponent, (1 << bits - 1) + 1).public_key()


class Holder:
    """Has a public key, and that is all that a certificate needs."""

    def __init__(self, key: rsa.RSAPublicKey) -> None:
        self.key = key

    def public_key(self) -> rsa.RSAPublicKey:
        return self.key


@pytest.mark.parametrize(
    ("exponent", "bits", "ok"),
    [
        (65537, 8192, True),
        (65537, 8200, False),
        (65537, 16384, False),
        ((1 << 31) + 11, 2048, True),
        ((1 << 63) + 1, 4096, True),
        ((1 << 17) + 1, 4104, False),
    ],
)
def test_costly_keys_of_strangers(exponent: int, bits: int, ok: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is loaded may have them."""
    root, holder = Ca(), Holder(public(exponent, bits))
    end = root.issue(key=holder)
    middle = Ca("Middle", root, holder).certificate
    checked: list[object] = []
    monkeypatch.setattr(Scheme, "_verify", lambda self, key, *_: checked.append(key))
    if ok:
        verify(end, [root])
    else:
        with pytest.raises(CertificateError, match="RSA key of"):
            verify(end, [root])
    assert verify_chain(end, [], [end], wall=WALL)
    for loaded in (by_subject(), by_subject(middle)):
        checked.clear()
        with pytest.raises(CertificateError):
            verify_chain(Ca("Middle", key=RSA_KEY).issue(), [middle], [], wall=WALL, loaded=loaded)
        assert (middle.public_key in checked) is (ok or bool(loaded))


def test_signatures_are_checked_once_for_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever connections are tried, and right or wrong."""
    checked: list[bytes] = []
    real = Scheme._verify

    def counted(self: Scheme, key: Any, signature: bytes, data: bytes) -> None:
        checked.append(signature)
        real(self, key, signature, data)

    monkeypatch.setattr(Scheme, "_verify", counted)
    twins = tuple(Ca("Sub").certificate for _ in range(15))
    others = [Ca("Other").certificate]
    signatures, end = Signatures(), Ca("Sub").issue()
    for _ in range(3):
        with pytest.raises(CertificateError, match="was not signed by"):
            verify_chain(end, twins, others, wall=WALL, signatures=signatures)
    assert len(checked) == len(twins)
    with pytest.raises(CertificateError, match="too many signatures"):
        verify_chain(Ca("Sub").issue(), twins, others, wall=WALL, signatures=signatures)
    assert len(checked) == SIGNATURES_MAX


def test_our_own_certificates_are_no_work_of_a_stranger() -> None:
    """However many are loaded, each is found."""
    signatures = Signatures()
    roots = [Ca(f"Root {number}") for number in range(30)]
    for root in roots:
        end = root.issue()
        assert verify_chain(end, [], [end, root.certificate], wall=WALL, signatures=signatures)


@pytest.mark.parametrize("peers", [0, 9])
def test_a_ca_that_often_changed_its_key(peers: int) -> None:
    """Under one name and without key ids: each that is loaded is tried, whatever else comes."""
    roots = [Ca() for _ in range(50)]
    junk = tuple(Ca().certificate for _ in range(peers))
    for root in (roots[0], roots[-1]):
        sub = Ca("Sub", root)
        chain = verify(sub.issue(), roots, (*junk, sub.certificate))
        assert chain.certificates[-1] == root.certificate


def test_loaded_issuers_have_a_bound_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stranger sends many certificates, each of which any of them may have signed."""
    roots = [Ca().certificate for _ in range(20)]
    checked: list[object] = []
    real = Scheme._verify
    monkeypatch.setattr(Scheme, "_verify", lambda self, *args: (checked.append(args), real(self, *args)))
    signatures = Signatures()
    for _ in range(3):
        with pytest.raises(CertificateError, match="was not signed by"):
            verify_chain(Ca().issue(), [], roots, wall=WALL, signatures=signatures)
    with pytest.raises(CertificateError, match="too many signatures"):
        verify_chain(Ca().issue(), [], roots, wall=WALL, signatures=signatures)
    assert len(checked) == LOADED_SIGNATURES_MAX


def test_several_issuers_of_one_name() -> None:
    """A CA that changed its key, and junk of the same name: the right one is found."""
    root = Ca()
    old, new = Ca("Sub", root), Ca("Sub", root)
    junk = tuple(Ca("Sub").certificate for _ in range(10))
    end = new.issue()
    assert verify(end, [root], (*junk, old.certificate, new.certificate)).authorities[0] == new.certificate


def test_constraints_on_keys() -> None:
    root = Ca(key=RSA_KEY)
    end = root.issue()
    for text in ("rsa-2048-sha256-ecdsa-256-sha256", "pubkey-sha256", "rsa-ecdsa"):
        verify(end, [root], constraints=parse_constraints(text))
    for text in ("ecdsa", "rsa-sha384-ecdsa", "rsa-4096-ecdsa-256", "pubkey-sha512", "rsa"):
        with pytest.raises(CertificateError, match="not allowed"):
            verify(end, [root], constraints=parse_constraints(text))
    short = Ca(key=rsa.generate_private_key(65537, 1024))
    with pytest.raises(CertificateError, match="RSA 1024"):
        verify(short.issue(), [short])


def test_weak_signatures_are_refused() -> None:
    for name in ("verisign_md2_root.pem", "custom/ca/rsa_ca.pem", "ee-pss-sha1-cert.pem", "custom/rsa_pss_cert.pem"):
        path = VECTORS / "x509" / name
        if not path.exists():
            continue
        certificate = load_certificates(path.read_bytes())[0]
        root = Ca()
        fake = Certificate(root.certificate.der)
        fake.subject_key = certificate.issuer_key
        try:
            verify_chain(certificate, [], [fake], wall=certificate.not_before)
        except CertificateError:
            continue
        pytest.fail(name)


def test_required_policies() -> None:
    def policies(*oids: str) -> list[tuple[Any, bool]]:
        return [(cx.CertificatePolicies([cx.PolicyInformation(ObjectIdentifier(oid), None) for oid in oids]), False)]

    root = Ca()
    sub = Ca("Sub", root, extensions=policies("1.2.3", "1.2.4"))
    end = sub.issue(extensions=policies("1.2.3", "1.2.5"))
    chain = verify(end, [root], (sub.certificate,), required_policies=("1.2.3",))
    assert check_policies(chain.certificates).policies == {"1.2.3"}
    for required in (("1.2.4",), ("1.2.5",), ("1.2.3", "1.2.4")):
        with pytest.raises(CertificateError, match="policies"):
            verify(end, [root], (sub.certificate,), required_policies=required)
    alone = root.issue(extensions=policies("1.2.3"))
    assert verify_chain(alone, [], [alone], wall=WALL, required_policies=("1.2.3",))
    for one in (alone, root.issue()):
        with pytest.raises(CertificateError, match="policies"):
            verify_chain(one, [], [one], wall=WALL, required_policies=("1.2.4",))
    assert verify_chain(root.issue(), [], [root.certificate], wall=WALL)
    with pytest.raises(CertificateError, match="policies"):
        verify(root.issue(), [root], required_policies=("1.2.3",))


def test_accept_makes_the_search_go_on() -> None:
    one, two = Ca("One"), Ca("Two")
    key = EC_KEY
    subs = Ca("Sub", one, key), Ca("Sub", two, key)
    end = subs[0].issue()

    def only_two(chain: Chain) -> None:
        if chain.certificates[-1] != two.certificate:
            raise CertificateError("not that one")

    between = tuple(sub.certificate for sub in subs)
    assert verify(end, [one, two], between, accept=only_two).certificates[-1] == two.certificate
    with pytest.raises(CertificateError, match="not that one"):
        verify(end, [one], between, accept=only_two)


# Name constraints


URL = cx.UniformResourceIdentifier


def constrained(permitted: list[Any] | None, excluded: list[Any] | None) -> Ca:
    return Ca(extensions=[(cx.NameConstraints(permitted, excluded), True)])


DNS, MAIL, IP, DN = cx.DNSName, cx.RFC822Name, cx.IPAddress, cx.DirectoryName


@pytest.mark.parametrize(
    ("permitted", "excluded", "name", "ok"),
    [
        (None, [DNS("strongswan.org")], DNS("vpn.strongSwan.org"), False),  # CVE-2026-35331
        (None, [DNS("StrongSwan.ORG")], DNS("strongswan.org"), False),
        (None, [DNS("strongswan.org")], DNS("notstrongswan.org"), True),
        (None, [DNS("strongswan.org")], DNS("strongswan.org."), False),
        ([DNS("example.org")], None, DNS("EXAMPLE.org"), True),
        ([DNS("example.org")], None, DNS("a.b.example.org"), True),
        ([DNS("example.org")], None, DNS("example.org.evil"), False),
        ([DNS("example.org")], None, DNS("badexample.org"), False),
        ([DNS(".example.org")], None, DNS("a.example.org"), True),
        ([DNS(".example.org")], None, DNS("example.org"), False),
        ([DNS("example.org")], None, MAIL("a@b"), True),
        ([MAIL("example.org")], None, MAIL("a@Example.ORG"), True),
        ([MAIL("example.org")], None, MAIL("a@sub.example.org"), False),
        ([MAIL(".example.org")], None, MAIL("a@sub.example.org"), True),
        (None, [MAIL("a@example.org")], MAIL("A@EXAMPLE.org"), False),
        (None, [MAIL("a@example.org")], MAIL("b@example.org"), True),
        ([IP(ip_network("10.0.0.0/8"))], None, IP(ip_address("10.1.2.3")), True),
        ([IP(ip_network("10.0.0.0/8"))], None, IP(ip_address("11.1.2.3")), False),
        ([IP(ip_network("10.0.0.0/8"))], None, IP(ip_address("::a00:1")), False),
        (None, [IP(ip_network("2001:db8::/32"))], IP(ip_address("2001:db8::1")), False),
        (None, [IP(ip_network("0.0.0.0/0"))], IP(ip_address("1.2.3.4")), False),
        ([DN(dn("peer"))], None, DNS("a"), True),
        ([DN(dn("PEER"))], None, DNS("a"), True),
        ([DN(dn("other"))], None, DNS("a"), False),
        (None, [DN(dn("Peer"))], DNS("a"), False),
        (None, [DN(cx.Name([cx.NameAttribute(NameOID.ORGANIZATION_NAME, "X")]))], DNS("a"), False),
        (
            None,
            [URL("evil.org")],
            URL("http://u@EVIL.org:8/x"),
            False,
        ),
        ([URL("a.org")], None, URL("urn:x"), False),
        ([URL("a.org")], None, URL("http://10.0.0.1/"), False),
        # nor can it be said that one without a host name is none of those
        (None, [URL("evil.org")], URL("urn:x"), False),
        (None, [URL("evil.org")], URL("http://u@/x"), False),
        (None, [URL("evil.org")], URL("http://10.0.0.1/"), False),
        (None, [URL("evil.org")], URL("http://[2001:db8::1]/"), False),
        (None, [URL("evil.org")], URL("http://good.org/"), True),
        (None, [cx.RegisteredID(ObjectIdentifier("1.2.3"))], cx.RegisteredID(ObjectIdentifier("1.2.4")), False),
        (None, [cx.RegisteredID(ObjectIdentifier("1.2.3"))], DNS("a"), True),
    ],
)
def test_name_constraints(permitted: list[Any] | None, excluded: list[Any] | None, name: Any, ok: bool) -> None:
    """CVE-T-26, OB-86; of the root and, as they are inherited, of a CA in the middle."""
    root = constrained(permitted, excluded)
    above = Ca("Above")
    middle = Ca("Middle", above, extensions=[(cx.NameConstraints(permitted, excluded), True)])
    below = (middle.certificate,)
    for end, anchors in ((root.issue(sans=(name,)), [root]), (middle.issue(sans=(name,)), [above])):
        if ok:
            verify(end, anchors, below)
        else:
            with pytest.raises(CertificateError):
                verify(end, anchors, below)


def test_email_in_the_subject_is_constrained() -> None:
    root = constrained(None, [MAIL("evil.org")])
    name = cx.Name([cx.NameAttribute(NameOID.EMAIL_ADDRESS, "x@EVIL.org")])
    with pytest.raises(CertificateError, match="e-mail"):
        verify(root.issue(name=name), [root])


@pytest.mark.parametrize("body", [b"\x30\0", b"\xa2\0", b"\xa0\x02\x30\0", b"\xa0\x05\x30\x03\x82\x01a\xa0\0"])
def test_malformed_name_constraints(body: bytes) -> None:
    value = body if body == b"\x30\0" else der.emit(der.SEQUENCE, body)
    root = Ca(extensions=[(cx.UnrecognizedExtension(ObjectIdentifier("2.5.29.30"), value), True)])
    with pytest.raises(CertificateError):
        verify(root.issue(), [root])


@pytest.mark.parametrize(("minimum", "ok"), [(b"\x80\x01\0", True), (b"\x80\x01\1", False), (b"\x81\x01\5", False)])
def test_name_constraints_with_a_minimum(minimum: bytes, ok: bool) -> None:
    """RFC 5280 section 4.2.1.10: it is 0, and there is no maximum. What is left out of DER may be there."""
    tree = der.emit(der.SEQUENCE, der.emit(der.context(2, constructed=False), b"x.org"), minimum)
    value = der.emit(der.SEQUENCE, der.emit(der.context(0), tree))
    root = Ca(extensions=[(cx.UnrecognizedExtension(ObjectIdentifier("2.5.29.30"), value), True)])
    if ok:
        verify(root.issue(sans=(cx.DNSName("a.x.org"),)), [root])
        with pytest.raises(CertificateError, match="not permitted"):
            verify(root.issue(sans=(cx.DNSName("a.y.org"),)), [root])
    else:
        with pytest.raises(CertificateError):
            verify(root.issue(sans=(cx.DNSName("a.x.org"),)), [root])


def test_variants_of_a_certificate_do_not_pile_up() -> None:
    """CVE-T-16: what is remembered is bounded."""
    from ipsec.crypto import chain, x509

    for cached in (x509._cached_certificate, chain._cached_verification):
        assert cached.cache_info().maxsize is not None


def test_a_certificate_that_no_payload_could_hold_is_none() -> None:
    long = cx.UnrecognizedExtension(ObjectIdentifier("1.2.3.4"), bytes(65536))
    with pytest.raises(ParseError, match="longer"):
        Ca().issue(extensions=[(long, False)])


@pytest.mark.parametrize("read", [Certificate, Crl])
def test_what_names_two_signature_algorithms_is_none(read: Any) -> None:
    """RFC 5280 sections 4.1.1.2 and 5.1.1.2: the one outside is not signed."""
    ca = Ca()
    whole = ca.issue().der if read is Certificate else ca.crl(6)
    signed, _, signature = (element for _, element in der.elements(der.contents(whole, der.SEQUENCE)))
    other = Scheme("rsa", HashAlgorithm.SHA2_512).algorithm_identifier()
    with pytest.raises(ParseError, match="two signature algorithms"):
        read(der.emit(der.SEQUENCE, signed, other, signature))
