"""CRLs and OCSP held against chains (OB-87). PKITS has its CRL cases in test_x509."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from cryptography import x509 as cx
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID, ObjectIdentifier

from ipsec.crypto import der, revocation, x509
from ipsec.crypto.auth import AuthenticationError, Scheme, parse_constraints
from ipsec.crypto.chain import CertificateError, Chain, verify_chain
from ipsec.crypto.revocation import (
    Crl,
    OcspResponse,
    Revocation,
    RevokedError,
    Rules,
    Status,
    check_revocation,
    keep_newest,
    ocsp_request,
    parse_crl,
    revocation_sources,
    status_of,
)
from ipsec.crypto.x509 import Certificate
from ipsec.errors import ParseError
from tests.crypto.pki import DAY, EC_KEY, RSA_KEY, VECTORS, WALL, Ca

STRICT, IFURI, RELAXED = Revocation
GOOD, REVOKED = ocsp.OCSPCertStatus.GOOD, ocsp.OCSPCertStatus.REVOKED


def chain_of(ca: Ca, end: Certificate) -> Chain:
    return verify_chain(end, [], [ca.certificate], wall=WALL)


def point(*uris: str) -> cx.DistributionPoint:
    return cx.DistributionPoint([cx.UniformResourceIdentifier(uri) for uri in uris], None, None, None)


def respond(
    ca: Ca,
    certificate: Certificate,
    status: ocsp.OCSPCertStatus = ocsp.OCSPCertStatus.GOOD,
    *,
    issuer: Certificate | None = None,
    signer: Certificate | None = None,
    key: Any = None,
    this: datetime = WALL - timedelta(hours=2),
    due: datetime | None = WALL + DAY,
    by_hash: bool = True,
    nonce: bytes = b"",
) -> bytes:
    builder = ocsp.OCSPResponseBuilder().add_response(
        cert=certificate.x509,
        issuer=(issuer or ca.certificate).x509,
        algorithm=hashes.SHA1(),
        cert_status=status,
        this_update=this,
        next_update=due,
        revocation_time=this if status is ocsp.OCSPCertStatus.REVOKED else None,
        revocation_reason=None,
    )
    encoding = ocsp.OCSPResponderEncoding.HASH if by_hash else ocsp.OCSPResponderEncoding.NAME
    builder = builder.responder_id(encoding, (signer or ca.certificate).x509)
    if signer is not None:
        builder = builder.certificates([signer.x509])
    if nonce:
        builder = builder.add_extension(cx.OCSPNonce(nonce), False)
    return builder.sign(key or ca.key, hashes.SHA256()).public_bytes(Encoding.DER)


def status(ca: Ca, end: Certificate, *evidence: Crl | OcspResponse) -> Status:
    source = revocation_sources(chain_of(ca, end))[0]
    crls = [one for one in evidence if isinstance(one, Crl)]
    responses = [one for one in evidence if isinstance(one, OcspResponse)]
    return status_of(source, crls, responses, WALL)[0]


def test_crl() -> None:
    ca = Ca()
    good, bad = ca.issue(serial=5), ca.issue(serial=6)
    crl = parse_crl(ca.crl(6, 7))
    assert crl.revoked == {6: "key compromise", 7: "key compromise"}
    assert repr(crl) == "<Crl O=x, CN=Root, 2 entries>"
    assert status(ca, good, crl) is Status.GOOD
    assert status(ca, bad, crl) is Status.REVOKED
    assert check_revocation(chain_of(ca, good), [crl], [], STRICT, WALL)[0][1] is Status.GOOD
    with pytest.raises(RevokedError, match="key compromise"):
        check_revocation(chain_of(ca, bad), [crl], [], RELAXED, WALL)


def test_pem() -> None:
    path = VECTORS / "x509" / "custom" / "crl_all_reasons.pem"
    assert len(parse_crl(path.read_bytes()).revoked) > 5
    with pytest.raises(ParseError):
        parse_crl(b"-----BEGIN X509 CRL-----\n!\n-----END X509 CRL-----")


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, Status.GOOD),
        ({"due": WALL - timedelta(seconds=1)}, Status.UNKNOWN),
        ({"this": WALL + timedelta(hours=1)}, Status.UNKNOWN),
        ({"this": WALL + timedelta(minutes=4)}, Status.GOOD),
        ({"key": EC_KEY}, Status.UNKNOWN),
        ({"extensions": [(cx.CRLNumber(3), False)]}, Status.GOOD),
        ({"extensions": [(cx.DeltaCRLIndicator(1), True)]}, Status.UNKNOWN),
        ({"extensions": [(cx.UnrecognizedExtension(ObjectIdentifier("1.2.3"), b"\5\0"), True)]}, Status.UNKNOWN),
        ({"extensions": [(cx.UnrecognizedExtension(ObjectIdentifier("1.2.3"), b"\5\0"), False)]}, Status.GOOD),
    ],
)
def test_when_a_crl_says_good(more: dict[str, Any], expected: Status) -> None:
    ca = Ca()
    end = ca.issue()
    assert status(ca, end, Crl(ca.crl(**more))) is expected


def idp(**fields: Any) -> list[tuple[Any, bool]]:
    given = {
        "full_name": None,
        "relative_name": None,
        "only_contains_user_certs": False,
        "only_contains_ca_certs": False,
        "only_some_reasons": None,
        "indirect_crl": False,
        "only_contains_attribute_certs": False,
        **fields,
    }
    return [(cx.IssuingDistributionPoint(**given), True)]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"only_contains_user_certs": True}, Status.GOOD),
        ({"only_contains_ca_certs": True}, Status.UNKNOWN),
        ({"indirect_crl": True}, Status.UNKNOWN),
        ({"only_contains_attribute_certs": True}, Status.UNKNOWN),
        ({"only_some_reasons": frozenset([cx.ReasonFlags.key_compromise])}, Status.UNKNOWN),
        ({"full_name": [cx.UniformResourceIdentifier("http://a/1.crl")]}, Status.GOOD),
        ({"full_name": [cx.UniformResourceIdentifier("http://a/2.crl")]}, Status.UNKNOWN),
    ],
)
def test_partial_crls(fields: dict[str, Any], expected: Status) -> None:
    ca = Ca()
    end = ca.issue(extensions=[(cx.CRLDistributionPoints([point("http://a/1.crl")]), False)])
    assert status(ca, end, Crl(ca.crl(extensions=idp(**fields)))) is expected


def test_who_signs_crls() -> None:
    usage = cx.KeyUsage(True, False, False, False, False, True, False, False, False)
    ca = Ca(extensions=[(usage, True)])
    end = ca.issue()
    assert status(ca, end, Crl(ca.crl())) is Status.UNKNOWN  # no cRLSign
    assert status(ca, end, Crl(ca.crl(end.serial))) is Status.REVOKED  # but it is who issued the certificate
    other = Ca("Other")
    good = Ca()
    end = good.issue()
    with pytest.raises(CertificateError, match="not one of"):
        Crl(other.crl()).verify(good.certificate, None)
    assert status(good, end, Crl(other.crl(end.serial))) is Status.UNKNOWN
    with pytest.raises(AuthenticationError, match="not allowed"):
        Crl(good.crl()).verify(good.certificate, Rules(WALL, parse_constraints("rsa")))


@pytest.mark.parametrize(
    "extensions",
    [
        idp(only_some_reasons=frozenset([cx.ReasonFlags.key_compromise])),
        idp(only_contains_ca_certs=True),
        idp(full_name=[cx.UniformResourceIdentifier("http://elsewhere/")]),
        [(cx.DeltaCRLIndicator(1), True)],
        [(cx.UnrecognizedExtension(ObjectIdentifier("1.2.3"), b"\5\0"), True)],
    ],
    ids=["reasons", "authorities", "point", "delta", "critical"],
)
def test_what_is_listed_is_revoked_whatever_the_list_is_about(extensions: list[tuple[Any, bool]]) -> None:
    """RFC 5280 section 6.3.3 (j): a list for some reasons is enough to be revoked, and not enough to be good."""
    ca = Ca()
    end = ca.issue(serial=6)
    listed = Crl(ca.crl(6, extensions=extensions))
    assert status(ca, end, listed) is Status.REVOKED
    assert status(ca, end, listed, Crl(ca.crl(this=WALL - 2 * DAY))) is Status.REVOKED
    assert status(ca, ca.issue(serial=5), listed) is Status.UNKNOWN


def test_a_list_of_other_certificates_revokes_none_of_ours() -> None:
    ca = Ca()
    listed = Crl(ca.crl(6, extensions=idp(only_contains_attribute_certs=True)))
    assert status(ca, ca.issue(serial=6), listed) is Status.UNKNOWN


@pytest.mark.parametrize("field", ["850100", "8600"])
def test_a_list_that_says_it_is_not_of_other_certificates_revokes_ours(field: str) -> None:
    """The default of onlyContainsAttributeCerts in full, and a field that nobody knows."""
    ca = Ca()
    value = der.emit(der.SEQUENCE, bytes.fromhex(field))
    listed = Crl(ca.crl(6, extensions=[(cx.UnrecognizedExtension(ObjectIdentifier("2.5.29.28"), value), True)]))
    assert status(ca, ca.issue(serial=6), listed) is Status.REVOKED
    assert status(ca, ca.issue(serial=5), listed) is (Status.GOOD if field == "850100" else Status.UNKNOWN)


def listing(ca: Ca, *entries: cx.ExtensionType | None, about: tuple[Any, bool] | None = None) -> Crl:
    """A CRL, by default a delta, with entries for 6, 7 and so on that have these extensions."""
    builder = cx.CertificateRevocationListBuilder().issuer_name(ca.name).last_update(WALL - DAY).next_update(WALL + DAY)
    for serial, extension in enumerate(entries, 6):
        entry = cx.RevokedCertificateBuilder().serial_number(serial).revocation_date(WALL)
        entry = entry.add_extension(extension, True) if extension is not None else entry
        builder = builder.add_revoked_certificate(entry.build())
    builder = builder.add_extension(*(about or (cx.DeltaCRLIndicator(1), True)))
    return Crl(builder.sign(ca.key, hashes.SHA256()).public_bytes(Encoding.DER))


def test_what_many_entries_have_in_common_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """An indirect CRL as large as may be held a thread for 10 s; what is remembered of one is bounded."""
    ca, read = Ca(), []
    ours, others = (cx.CertificateIssuer([cx.DirectoryName(name)]) for name in (ca.name, Ca("Other").name))
    parse = x509.parse_extensions
    monkeypatch.setattr(x509, "parse_extensions", lambda data: read.append(data) or parse(data))
    again = listing(ca, *[others, None, ours, None] * 100)
    assert set(again.revoked) == {serial for serial in range(6, 406) if (serial - 6) % 4 >= 2}
    assert len(read) == 3  # with the list's own
    monkeypatch.setattr(revocation, "_KNOWN_MAX", 3)
    several = [cx.InvalidityDate(datetime(2025, 1, 1 + n % 20)) for n in range(40)]
    assert len(listing(ca, others, *several, ours, *several).revoked) == 41


def test_indirect_crls() -> None:
    """RFC 5280 section 5.3.3: an entry is about a certificate of whom it names, else of whom the one before is about,
    the first else of who issued the list."""
    ca = Ca()
    other, own = (cx.CertificateIssuer([cx.DirectoryName(name)]) for name in (Ca("Other").name, ca.name))
    crl = listing(ca, None, None, other, None, own, None, about=idp(indirect_crl=True)[0])
    found = [status(ca, ca.issue(serial=serial), crl) for serial in range(5, 13)]
    yes, no = Status.REVOKED, Status.UNKNOWN
    assert found == [no, yes, yes, no, no, yes, yes, no]


def test_only_a_delta_takes_a_revocation_back() -> None:
    """RFC 5280 section 5.3.1."""
    ca, removed = Ca(), cx.CRLReason(cx.ReasonFlags.remove_from_crl)
    assert status(ca, ca.issue(serial=6), listing(ca, removed)) is Status.UNKNOWN
    assert status(ca, ca.issue(serial=6), listing(ca, removed, about=(cx.CRLNumber(1), False))) is Status.REVOKED


def test_entries_of_a_delta_crl() -> None:
    """RFC 5280 section 5.3: one takes a revocation back, one is about a certificate of somebody else."""
    ca = Ca()
    end = ca.issue(serial=6)
    held = listing(ca, cx.CRLReason(cx.ReasonFlags.certificate_hold))
    assert status(ca, end, held) is Status.REVOKED
    assert status(ca, end, held, Crl(ca.crl(this=WALL - DAY / 2))) is Status.GOOD
    assert status(ca, end, listing(ca, cx.CRLReason(cx.ReasonFlags.remove_from_crl))) is Status.UNKNOWN
    other = cx.CertificateIssuer([cx.DirectoryName(Ca("Other").name)])
    assert status(ca, end, listing(ca, other)) is Status.UNKNOWN


def signed_with_sha1(ca: Ca, crl: bytes) -> Crl:
    """The same CRL; ``cryptography`` makes none like that."""
    tbs = der.elements(der.contents(der.elements(der.contents(crl, der.SEQUENCE))[0][1], der.SEQUENCE))
    algorithm = der.emit(der.SEQUENCE, der.emit_oid("1.2.840.10045.4.1"))
    again = der.emit(der.SEQUENCE, tbs[0][1], algorithm, *(element for _, element in tbs[2:]))
    signature = ca.key.sign(again, ec.ECDSA(hashes.SHA1()))
    return Crl(der.emit(der.SEQUENCE, again, algorithm, der.emit(der.BIT_STRING, b"\0" + signature)))


def test_a_revocation_counts_however_it_is_signed() -> None:
    """``auth`` and what is safe are for those who say GOOD."""
    ca = Ca()
    end = ca.issue(serial=6)
    weak, good = signed_with_sha1(ca, ca.crl(6)), signed_with_sha1(ca, ca.crl())
    assert status(ca, end, weak) is Status.REVOKED
    assert status(ca, end, good) is Status.UNKNOWN
    only = parse_constraints("rsa")
    responses = [OcspResponse(respond(ca, end, one)) for one in (REVOKED, GOOD)]
    for crls, ocsps, expected in (
        ([Crl(ca.crl(6))], [], Status.REVOKED),
        ([Crl(ca.crl())], [], Status.UNKNOWN),
        ([], responses[:1], Status.REVOKED),
        ([], responses[1:], Status.UNKNOWN),
    ):
        (source,) = revocation_sources(chain_of(ca, end), constraints=only)
        assert status_of(source, crls, ocsps, WALL).status is expected
    # nobody else's
    assert status(ca, end, signed_with_sha1(Ca(), Ca().crl(6))) is Status.UNKNOWN
    # somebody whose certificate has run out since said it in time
    usage = [(cx.ExtendedKeyUsage([ExtendedKeyUsageOID.OCSP_SIGNING]), False)]
    signer = ca.issue("responder", RSA_KEY, extensions=usage, not_after=WALL - DAY / 4)
    for one, expected in ((REVOKED, Status.REVOKED), (GOOD, Status.UNKNOWN)):
        response = OcspResponse(respond(ca, end, one, signer=signer, key=RSA_KEY))
        assert status(ca, end, response) is expected


def test_the_signature_of_a_crl_is_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """If it is right; and not for another key, or without what a connection asks of signatures."""
    ca, twin = Ca(), Ca()
    crl, checked = Crl(ca.crl()), []
    verify = Scheme._verify

    def counted(self: Scheme, *args: Any) -> None:
        checked.append(self)
        verify(self, *args)

    end, other = ca.issue(), twin.issue()
    chains = chain_of(ca, end), chain_of(twin, other)
    monkeypatch.setattr(Scheme, "_verify", counted)
    for _ in range(3):
        for chain, expected in zip(chains, (Status.GOOD, Status.UNKNOWN), strict=True):
            assert check_revocation(chain, [crl], [], RELAXED, WALL)[0][1] is expected
        rsa_only = parse_constraints("rsa")
        assert check_revocation(chains[0], [crl], [], RELAXED, WALL, constraints=rsa_only)[0][1] is Status.UNKNOWN
    assert len(checked) == 1 + 3


def test_old_crls_still_revoke() -> None:
    ca = Ca()
    end = ca.issue()
    assert status(ca, end, Crl(ca.crl(end.serial, due=WALL - DAY / 2))) is Status.REVOKED
    assert status(ca, end, Crl(ca.crl()), Crl(ca.crl(end.serial, due=WALL - DAY / 2))) is Status.REVOKED
    # but not one that somebody else made
    assert status(ca, end, Crl(ca.crl()), Crl(Ca().crl(end.serial))) is Status.GOOD


def test_a_hold_that_was_lifted() -> None:
    """What is newer and in force stands for what is older of its scope; what is past its time is no reason to trust."""
    ca = Ca()
    end = ca.issue()
    old, due = WALL - DAY, WALL - DAY / 2
    held = OcspResponse(respond(ca, end, ocsp.OCSPCertStatus.REVOKED, this=old, due=due))
    still = OcspResponse(respond(ca, end, ocsp.OCSPCertStatus.REVOKED))
    good = OcspResponse(respond(ca, end))
    # of an authority with the same name and another key
    twin = Ca(key=EC_KEY)
    forged = OcspResponse(respond(twin, end, issuer=ca.certificate))
    older = OcspResponse(respond(ca, end, this=old - DAY))
    for evidence in ([held], [held, forged], [held, older], [held, Crl(ca.crl())], [held, good, still]):
        assert status(ca, end, *evidence) is Status.REVOKED
    for evidence in ([held, good], [good, held]):
        assert status(ca, end, *evidence) is Status.GOOD
    listed = Crl(ca.crl(end.serial, this=old, due=due))
    assert status(ca, end, listed) is status(ca, end, listed, good) is Status.REVOKED
    assert status(ca, end, listed, Crl(ca.crl(this=WALL - DAY / 3))) is Status.GOOD
    for evidence, again in (([held], True), ([still], False), ([still, held], False), ([held, still], False)):
        with pytest.raises(RevokedError) as caught:
            check_revocation(chain_of(ca, end), [], evidence, RELAXED, WALL)
        assert (caught.value.again is not None) is again


def test_the_newer_of_two_lists_stays() -> None:
    """Of the same second that with the larger number (RFC 5280 section 5.2.3)."""
    ca = Ca()
    first, second = (Crl(ca.crl(*listed, extensions=[(cx.CRLNumber(n), False)])) for n, listed in ((5, ()), (6, (9,))))
    odd = Crl(ca.crl(extensions=[(cx.UnrecognizedExtension(ObjectIdentifier("2.5.29.20"), b"junk"), False)]))
    older, newer = (Crl(ca.crl(this=time, extensions=[(cx.CRLNumber(1), False)])) for time in (WALL - 2 * DAY, WALL))
    for lists, stays in (
        ((first, second), second),
        ((second, first), second),
        ((second, odd), second),
        ((odd, first), first),
        ((older, first), first),
        ((first, older), first),
        ((second, newer), newer),
    ):
        table: dict[Any, Crl] = {}
        for one in lists:
            keep_newest(table, one)
        assert list(table.values()) == [stays]


def test_policies_of_revocation() -> None:
    ca = Ca()
    plain = chain_of(ca, ca.issue())
    named = chain_of(ca, ca.issue(extensions=[(cx.CRLDistributionPoints([point("http://a/c")]), False)]))
    for chain, policy, ok in (
        (plain, STRICT, False),
        (named, STRICT, False),
        (plain, IFURI, True),
        (named, IFURI, False),
        (plain, RELAXED, True),
        (named, RELAXED, True),
    ):
        if ok:
            assert check_revocation(chain, [], [], policy, WALL)[0][1] is Status.UNKNOWN
        else:
            with pytest.raises(CertificateError, match="not known"):
                check_revocation(chain, [], [], policy, WALL)
    extra = {ca.certificate.der: (("file:///c",), ())}
    with pytest.raises(CertificateError, match="not known"):
        check_revocation(plain, [], [], IFURI, WALL, extra=extra)


def test_a_list_that_has_run_out_is_missing() -> None:
    """revocation = ifuri without a URI: who puts lists there means them to be asked, as in charon."""
    ca = Ca()
    chain = chain_of(ca, ca.issue())
    lists = [Crl(one.crl(this=WALL - 2 * DAY, due=due)) for one, due in ((ca, WALL - DAY), (Ca("Other"), WALL - DAY))]
    with pytest.raises(CertificateError, match="is not in force"):
        check_revocation(chain, lists[:1], [], IFURI, WALL)
    for crls, policy in ((lists[:1], RELAXED), (lists[1:], IFURI), ([*lists, Crl(ca.crl())], IFURI)):
        check_revocation(chain, crls, [], policy, WALL)
    # of the authority with the key that it had before
    before = Crl(Ca().crl(this=WALL - 2 * DAY, due=WALL - DAY))
    check_revocation(chain, [before], [], IFURI, WALL)


def access(*methods: tuple[ObjectIdentifier, cx.GeneralName]) -> cx.AuthorityInformationAccess:
    return cx.AuthorityInformationAccess([cx.AccessDescription(*one) for one in methods])


LDAP = cx.UniformResourceIdentifier("ldap://h/cn=x?certificateRevocationList")
HTTP = cx.UniformResourceIdentifier("http://a/c")
NAME = cx.DirectoryName(Ca().name)
SOME = frozenset([cx.ReasonFlags.key_compromise])


@pytest.mark.parametrize(
    ("extension", "named"),
    [
        (cx.CRLDistributionPoints([cx.DistributionPoint([LDAP], None, None, None)]), True),
        (cx.CRLDistributionPoints([cx.DistributionPoint([HTTP], None, None, [NAME])]), True),
        (cx.CRLDistributionPoints([cx.DistributionPoint([HTTP], None, SOME, None)]), True),
        (cx.CRLDistributionPoints([cx.DistributionPoint([NAME], None, None, None)]), False),
        (cx.CRLDistributionPoints([cx.DistributionPoint(None, None, None, [NAME])]), False),
        (access((AuthorityInformationAccessOID.OCSP, LDAP)), True),
        (access((AuthorityInformationAccessOID.OCSP, NAME)), False),
        (access((AuthorityInformationAccessOID.CA_ISSUERS, HTTP)), False),
    ],
    ids=["ldap", "indirect", "reasons", "name", "issuer", "ocsp", "ocsp-name", "issuers"],
)
def test_a_uri_that_we_cannot_use_is_one(extension: cx.ExtensionType, named: bool) -> None:
    """``ifuri`` is about what the issuer says: else the way in which it says so would switch the check off."""
    ca = Ca()
    chain = chain_of(ca, ca.issue(extensions=[(extension, False)]))
    assert revocation_sources(chain)[0].crl_uris == revocation_sources(chain)[0].ocsp_uris == ()
    if named:
        with pytest.raises(CertificateError, match="not known"):
            check_revocation(chain, [], [], IFURI, WALL)
    else:
        check_revocation(chain, [], [], IFURI, WALL)


def test_sources() -> None:
    """CVE-T-17: only what can be fetched safely, only of chains that are trusted, configured ones first."""
    ca = Ca()
    access = cx.AuthorityInformationAccess(
        [
            cx.AccessDescription(AuthorityInformationAccessOID.OCSP, cx.UniformResourceIdentifier("http://o/")),
            cx.AccessDescription(AuthorityInformationAccessOID.OCSP, cx.UniformResourceIdentifier("gopher://o/")),
            cx.AccessDescription(AuthorityInformationAccessOID.CA_ISSUERS, cx.UniformResourceIdentifier("http://i/")),
        ]
    )
    points = cx.CRLDistributionPoints(
        [point("http://a/c", "ldap://b/"), point("file:///etc/passwd"), point("HTTPS://d/")]
    )
    end = ca.issue(extensions=[(points, False), (access, False)])
    extra = {ca.certificate.der: (("file:///crl",), ("http://o/", "http://p/"))}
    (source,) = revocation_sources(chain_of(ca, end), extra)
    assert source.crl_uris == ("file:///crl", "http://a/c", "HTTPS://d/")
    assert source.ocsp_uris == ("http://o/", "http://p/")
    assert (source.certificate, source.issuer) == (end, ca.certificate)
    assert revocation_sources(chain_of(ca, ca.certificate)) == []
    many = ca.issue(extensions=[(cx.CRLDistributionPoints([point(f"http://a/{n}") for n in range(50)]), False)])
    assert len(many.crl_uris) == 16


def test_what_is_too_long_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever signed it: who answers need not be who is asked."""
    ca = Ca()
    crl, response = ca.crl(6), respond(ca, ca.issue())
    for limit, read, data in (("CRL_OCTETS_MAX", Crl, crl), ("OCSP_OCTETS_MAX", OcspResponse, response)):
        monkeypatch.setattr(f"ipsec.crypto.revocation.{limit}", len(data))
        read(data)
        monkeypatch.setattr(f"ipsec.crypto.revocation.{limit}", len(data) - 1)
        with pytest.raises(ParseError, match="longer"):
            read(data)


def test_every_octet_of_a_crl() -> None:
    ca = Ca()
    end = ca.issue()
    good = ca.crl(4, 5, 6)
    for position in range(len(good)):
        for value in (good[position] ^ 1, good[position] ^ 0x80, 0, 0xFF):
            changed = good[:position] + bytes((value,)) + good[position + 1 :]
            if changed == good:
                continue
            try:
                crl = Crl(changed)
            except ParseError:
                continue
            assert status(ca, end, crl) is Status.UNKNOWN
    for length in range(len(good)):
        with pytest.raises(ParseError):
            Crl(good[:length])


# OCSP


def test_ocsp() -> None:
    ca = Ca()
    end, other = ca.issue(), ca.issue()
    good = OcspResponse(respond(ca, end, nonce=b"abcd"))
    assert good.nonce == b"abcd"
    assert status(ca, end, good) is Status.GOOD
    assert status(ca, other, good) is Status.UNKNOWN
    assert status(ca, end, OcspResponse(respond(ca, end, by_hash=False))) is Status.GOOD
    bad = OcspResponse(respond(ca, end, ocsp.OCSPCertStatus.REVOKED))
    assert status(ca, end, good, bad) is Status.REVOKED
    assert status(ca, end, Crl(ca.crl()), bad) is Status.REVOKED
    with pytest.raises(RevokedError):
        check_revocation(chain_of(ca, end), [], [bad], RELAXED, WALL)
    unknown = OcspResponse(respond(ca, end, ocsp.OCSPCertStatus.UNKNOWN))
    assert status(ca, end, unknown, bad) is Status.REVOKED
    assert status(ca, end, unknown) is Status.UNKNOWN
    assert status(ca, end, unknown, Crl(ca.crl())) is Status.GOOD
    rsa_ca = Ca(key=RSA_KEY)
    end = rsa_ca.issue()
    assert status(rsa_ca, end, OcspResponse(respond(rsa_ca, end))) is Status.GOOD


@pytest.mark.parametrize(
    ("this", "due", "expected"),
    [
        (WALL - DAY, WALL - DAY / 2, Status.UNKNOWN),
        (WALL + DAY / 2, WALL + DAY, Status.UNKNOWN),
        (WALL - timedelta(minutes=5), None, Status.GOOD),
        (WALL - DAY, None, Status.UNKNOWN),
    ],
)
def test_times_of_ocsp(this: datetime, due: datetime | None, expected: Status) -> None:
    ca = Ca()
    end = ca.issue()
    assert status(ca, end, OcspResponse(respond(ca, end, this=this, due=due))) is expected


def test_who_signs_ocsp() -> None:
    ca, stranger = Ca(), Ca("Stranger")
    end = ca.issue()
    purpose = [(cx.ExtendedKeyUsage([ExtendedKeyUsageOID.OCSP_SIGNING]), False)]
    delegate = ca.issue("responder", EC_KEY, extensions=purpose)
    assert status(ca, end, OcspResponse(respond(ca, end, signer=delegate, key=EC_KEY))) is Status.GOOD
    for signer in (
        ca.issue("responder", EC_KEY),  # not for OCSP
        stranger.issue("responder", EC_KEY, extensions=purpose),
        Ca(key=stranger.key).issue("responder", EC_KEY, extensions=purpose),  # the name of our CA, another key
        ca.issue("responder", EC_KEY, extensions=purpose, not_after=WALL - DAY),
    ):
        assert status(ca, end, OcspResponse(respond(ca, end, signer=signer, key=EC_KEY))) is Status.UNKNOWN
    assert status(ca, end, OcspResponse(respond(stranger, end))) is Status.UNKNOWN
    impostor = Ca(key=stranger.key)  # the name of our CA, another key
    by_name = respond(impostor, end, issuer=ca.certificate, by_hash=False)
    assert status(ca, end, OcspResponse(by_name)) is Status.UNKNOWN
    # about the same serial of another CA
    assert status(ca, end, OcspResponse(respond(ca, end, issuer=stranger.certificate))) is Status.UNKNOWN


def test_ocsp_signers_that_are_trusted_here() -> None:
    """RFC 6960 section 4.2.2.2: they need nothing of the CA, not even that it has issued them."""
    ca, stranger = Ca(), Ca("Stranger")
    end = ca.issue()
    signer = stranger.issue("responder", EC_KEY)
    responses = [OcspResponse(respond(ca, end, signer=signer, key=EC_KEY))]
    for trusted, wall, expected in (
        ((signer,), WALL, Status.GOOD),
        ((stranger.certificate,), WALL, Status.UNKNOWN),
        ((), WALL, Status.UNKNOWN),
    ):
        known = check_revocation(chain_of(ca, end), [], responses, RELAXED, wall, responders=trusted)
        assert [status for _, status in known] == [expected]
    late = stranger.issue("responder", EC_KEY, not_after=WALL - DAY)
    late_response = [OcspResponse(respond(ca, end, signer=late, key=EC_KEY))]
    ((_, found),) = check_revocation(chain_of(ca, end), [], late_response, RELAXED, WALL, responders=(late,))
    assert found is Status.UNKNOWN
    revoked = [OcspResponse(respond(ca, end, ocsp.OCSPCertStatus.REVOKED, signer=signer, key=EC_KEY))]
    with pytest.raises(RevokedError):
        check_revocation(chain_of(ca, end), [], revoked, RELAXED, WALL, responders=(signer,))
    # about the same serial of another CA
    other = [OcspResponse(respond(ca, end, issuer=stranger.certificate, signer=signer, key=EC_KEY))]
    ((_, found),) = check_revocation(chain_of(ca, end), [], other, RELAXED, WALL, responders=(signer,))
    assert found is Status.UNKNOWN


def test_ocsp_request() -> None:
    ca = Ca()
    end = ca.issue()
    request = ocsp.load_der_ocsp_request(ocsp_request(end, ca.certificate))
    assert request.serial_number == end.serial
    assert not list(request.extensions)


def test_responses_that_are_none() -> None:
    for path in sorted((VECTORS / "x509" / "ocsp").glob("resp-*.der")):
        try:
            OcspResponse(path.read_bytes())
        except ParseError:
            continue
    unauthorized = ocsp.OCSPResponseBuilder.build_unsuccessful(ocsp.OCSPResponseStatus.UNAUTHORIZED)
    for data in (b"", b"\x30\0", bytes(100), unauthorized.public_bytes(Encoding.DER), bytes(1 << 17)):
        with pytest.raises(ParseError):
            OcspResponse(data)


def test_every_octet_of_a_response() -> None:
    ca = Ca()
    end = ca.issue()
    good = respond(ca, end)
    for position in range(len(good)):
        for value in (good[position] ^ 1, good[position] ^ 0x80, 0):
            changed = good[:position] + bytes((value,)) + good[position + 1 :]
            if changed == good:
                continue
            try:
                response = OcspResponse(changed)
            except ParseError:
                continue
            assert status(ca, end, response) is Status.UNKNOWN, position
