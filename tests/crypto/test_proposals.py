"""Proposal keywords: every spelling, what default stands for, what is refused and how the error reads."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipsec.crypto import proposals
from ipsec.crypto.kex import supported_methods
from ipsec.crypto.prf import supported_prfs
from ipsec.crypto.proposals import esp_suite_of, is_aead, parse_proposals, weak
from ipsec.crypto.sk import sk_suite
from ipsec.crypto.suites import all_esp_suites, esp_suite
from ipsec.errors import SuiteError
from ipsec.wire.iana import Encr, Esn, Integ, KeMethod, Protocol, TransformType
from ipsec.wire.proposal import Proposal, Transform

IKE, ESP = Protocol.IKE, Protocol.ESP


def shown(text, protocol):
    return [str(proposal) for proposal in parse_proposals([text], protocol)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("aes128gcm16-sha256-x25519", ["IKE:AES_GCM_16_128/PRF_HMAC_SHA2_256/CURVE_25519"]),
        ("aes256gcm16-prfsha384-ecp384", ["IKE:AES_GCM_16_256/PRF_HMAC_SHA2_384/ECP_384"]),
        ("aes128gcm16-sha256-prfsha512-x25519", ["IKE:AES_GCM_16_128/PRF_HMAC_SHA2_512/CURVE_25519"]),
        ("aes256-sha256-modp2048", ["IKE:AES_CBC_256/HMAC_SHA2_256_128/PRF_HMAC_SHA2_256/MODP_2048"]),
        ("aes-sha-modp1024", ["IKE:AES_CBC_128/HMAC_SHA1_96/PRF_HMAC_SHA1/MODP_1024"]),
        ("3des-sha1-modp1536", ["IKE:3DES_CBC/HMAC_SHA1_96/PRF_HMAC_SHA1/MODP_1536"]),
        ("aes128ctr-aesxcbc-x448", ["IKE:AES_CTR_128/AES_XCBC_96/PRF_AES128_XCBC/CURVE_448"]),
        ("aes192ccm12-aescmac-ecp256bp", ["IKE:AES_CCM_12_192/PRF_AES128_CMAC/ECP_256_BP"]),
        ("chacha20poly1305-prfsha256-curve25519", ["IKE:CHACHA20_POLY1305/PRF_HMAC_SHA2_256/CURVE_25519"]),
        (
            "aes256-aes128-sha384-sha256-prfsha1-ecp521-modp3072",
            [
                "IKE:AES_CBC_256/AES_CBC_128/HMAC_SHA2_384_192/HMAC_SHA2_256_128/PRF_HMAC_SHA1/ECP_521/MODP_3072",
            ],
        ),
        # RFC 7296 section 3.3: AEADs and others in proposals of their own, what was written first is first
        (
            "aes128gcm16-aes128-sha256-x25519",
            [
                "IKE:AES_GCM_16_128/PRF_HMAC_SHA2_256/CURVE_25519",
                "IKE:AES_CBC_128/HMAC_SHA2_256_128/PRF_HMAC_SHA2_256/CURVE_25519",
            ],
        ),
        (
            "aes128-aes128gcm16-sha256-x25519",
            [
                "IKE:AES_CBC_128/HMAC_SHA2_256_128/PRF_HMAC_SHA2_256/CURVE_25519",
                "IKE:AES_GCM_16_128/PRF_HMAC_SHA2_256/CURVE_25519",
            ],
        ),
        (" AES128GCM16 - SHA256 - X25519 ", ["IKE:AES_GCM_16_128/PRF_HMAC_SHA2_256/CURVE_25519"]),
    ],
)
def test_ike(text, expected):
    assert shown(text, IKE) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("aes128gcm16", ["ESP:AES_GCM_16_128/NO_EXT_SEQ"]),
        ("aes128gcm16-esn", ["ESP:AES_GCM_16_128/EXT_SEQ"]),
        ("aes128gcm16-esn-noesn", ["ESP:AES_GCM_16_128/EXT_SEQ/NO_EXT_SEQ"]),
        ("aes128gcm16-x25519-none", ["ESP:AES_GCM_16_128/CURVE_25519/KE_NONE/NO_EXT_SEQ"]),
        ("aes256-sha256-modpnone", ["ESP:AES_CBC_256/HMAC_SHA2_256_128/KE_NONE/NO_EXT_SEQ"]),
        # strongSwan drops an integrity keyword beside an AEAD
        ("aes128gcm16-sha256", ["ESP:AES_GCM_16_128/NO_EXT_SEQ"]),
        ("null-sha256", ["ESP:NULL/HMAC_SHA2_256_128/NO_EXT_SEQ"]),
        ("aes256gmac", ["ESP:NULL_AES_GMAC_256/NO_EXT_SEQ"]),
        ("aes128gcm16iiv-aes128gcm16", ["ESP:AES_GCM_16_IIV_128/AES_GCM_16_128/NO_EXT_SEQ"]),
    ],
)
def test_esp(text, expected):
    assert shown(text, ESP) == expected


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("aes256gcm", "aes256gcm16"),
        ("aes256gcm128", "aes256gcm16"),
        ("aes192gcm96", "aes192gcm12"),
        ("aes128gcm64", "aes128gcm8"),
        ("aes128ccm", "aes128ccm16"),
        ("aes128ccm128", "aes128ccm16"),
        ("aes128ccm96", "aes128ccm12"),
        ("aes128ccm64", "aes128ccm8"),
        ("aes-sha1", "aes128-sha"),
        ("aes-sha2_256", "aes128-sha256"),
        ("aes-sha2_384", "aes128-sha384"),
        ("aes-sha2_512", "aes128-sha512"),
        ("aes-sha1-x448", "aes128-sha1-curve448"),
    ],
)
def test_other_spellings(one, other):
    assert parse_proposals([one], ESP) == parse_proposals([other], ESP)


def test_default_is_safe_and_complete():
    for protocol in (IKE, ESP):
        default = parse_proposals(["default"], protocol)
        assert [is_aead(p.transforms[0].id) for p in default] == [True, False]
        assert [weak(proposal) for proposal in default] == [None, None]
        assert all(len(set(p.transforms)) == len(p.transforms) for p in default)
        assert default == parse_proposals([" Default "], protocol)
    ike, _ = parse_proposals(["default"], IKE)
    # RFC 8247 section 2.4: what MUST and SHOULD be there
    methods = [transform.id for transform in ike.of_type(TransformType.KE)]
    assert {KeMethod.MODP_2048, KeMethod.ECP_256, KeMethod.CURVE_25519} <= set(methods)
    assert methods[0] == KeMethod.CURVE_25519
    # a CHILD_SA is rekeyed with a key exchange, where the peer has one
    for esp in parse_proposals(["default"], ESP):
        assert [transform.id for transform in esp.of_type(TransformType.KE)] == [*methods, KeMethod.NONE]
    assert all(p.of_type(TransformType.ESN) == [(5, Esn.NO, 0)] for p in parse_proposals(["default"], ESP))


def test_lists_keep_their_order():
    made = parse_proposals(["aes256gcm16", "default", "null-sha1"], ESP)
    assert [p.transforms[0].id for p in made] == [Encr.AES_GCM_16, Encr.AES_GCM_16, Encr.AES_CBC, Encr.NULL]
    assert all(p.number == 0 and p.spi == b"" for p in made)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("aes128gcm16x-x25519", "unknown algorithm 'aes128gcm16x', did you mean 'aes128gcm16'?"),
        ("aes128-sha265-x25519", "unknown algorithm 'sha265', did you mean 'sha"),
        ("aes128-sha256-modp248", "unknown algorithm 'modp248', did you mean 'modp2048'?"),
        ("aes128-md5-x25519", "'md5' is obsolete and not supported"),
        ("aes128-sha256_96-x25519", "'sha256_96' has no number to negotiate it by: write sha256, and sha256_96 = yes"),
        ("aes128-sha2_256_96-x25519", "'sha2_256_96' has no number"),
        ("aes128-sha256-modp768", "'modp768' is obsolete and not supported"),
        ("aes128gcm16-sha256-x25519-ke1_mlkem769", "unknown key exchange 'ke1_mlkem769', did you mean 'ke1_mlkem768'?"),
        ("aes128gcm16-sha256-x25519-ke1_", "unknown key exchange 'ke1_'"),
        ("aes128gcm16-sha256-x25519-ke0_mlkem768", "unknown algorithm 'ke0_mlkem768'"),
        ("aes128gcm16-sha256-x25519-ke8_mlkem768", "unknown algorithm 'ke8_mlkem768'"),
        ("aes128gcm16-sha256-x25519-ke1_mlkem512", "has ML-KEM-512, take mlkem768"),
        ("aes128gcm16-sha256-x25519-ke1_x25519", "no method may be there twice (RFC 9370 section 2.2.1)"),
        ("aes128gcm16-sha256-ke1_x25519", "no key exchange, such as x25519"),
        ("aes128gcm16-sha256-mlkem512", "no release of the Python package cryptography has ML-KEM-512, take mlkem768"),
        ("aes128gcm16-sha256-mlkem769", "unknown algorithm 'mlkem769', did you mean 'mlkem768'?"),
        ("aes128gcm16-default", "'default' stands alone"),
        ("aes128gcm16-sha256", "no key exchange, such as x25519"),
        ("aes128gcm16-x25519", "no PRF, such as prfsha256"),
        ("aes128-x25519", "no integrity algorithm, such as sha256"),
        ("aes128-prfsha256-x25519", "no integrity algorithm, such as sha256"),
        ("sha256-x25519", "no encryption algorithm"),
        ("aes128-sha256-x25519-esn", "'esn' has no meaning for IKE"),
        ("null-sha256-x25519", "'null' has no meaning for IKE"),
        ("aes128gmac-sha256-x25519", "'aes128gmac' has no meaning for IKE"),
        ("aes128gcm16iiv-sha256-x25519", "'aes128gcm16iiv' has no meaning for IKE"),
        ("aes128-sha256-none", "'none' has no meaning for IKE"),
        ("", "unknown algorithm ''"),
        ("aes128--x25519", "unknown algorithm ''"),
    ],
)
def test_ike_errors(text, why):
    with pytest.raises(SuiteError) as caught:
        parse_proposals(["default", text], IKE)
    assert str(caught.value).startswith(f"proposal {text!r}: ")
    assert why in str(caught.value)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("aes128", "no integrity"),
        ("sha256", "no encryption"),
        ("aes128gcm16-prfsha256", "'prfsha256' has no meaning for ESP"),
    ],
)
def test_esp_errors(text, why):
    with pytest.raises(SuiteError, match=why):
        parse_proposals([text], ESP)


def test_no_proposals_and_other_protocols():
    with pytest.raises(SuiteError, match="no proposals"):
        parse_proposals([], IKE)
    for text in ("sha256", "default"):
        with pytest.raises(SuiteError, match="protocol AH is not supported"):
            parse_proposals([text], Protocol.AH)


def test_errors_are_not_endless():
    for text in ("x" * 100_000, "aes128-" * 20_000):
        with pytest.raises(SuiteError) as caught:
            parse_proposals([text], IKE)
        assert len(str(caught.value)) < 400


@given(
    st.lists(st.sampled_from([*proposals._KEYWORDS, "", "aes", "x"]), min_size=1, max_size=8),
    st.sampled_from([IKE, ESP]),
)
def test_any_words_parse_or_raise_suite_error(words, protocol):
    try:
        made = parse_proposals(["-".join(words)], protocol)
    except SuiteError:
        return
    for proposal in made:
        kinds = {transform.type for transform in proposal.transforms}
        aead = {is_aead(encr.id) for encr in proposal.of_type(TransformType.ENCR)}
        assert len(aead) == 1
        assert (TransformType.INTEG in kinds) is not aead.pop()
        assert (TransformType.PRF in kinds) is (protocol is IKE)
        assert (TransformType.ESN in kinds) is (protocol is ESP)


def test_every_keyword_is_an_algorithm_of_ours():
    for transform in proposals._KEYWORDS.values():
        if transform.type == TransformType.PRF:
            assert transform.id in supported_prfs()
        elif transform.type == TransformType.KE:
            # the error for the last one says what to take instead
            assert transform.id in (*supported_methods(), KeMethod.NONE, KeMethod.ML_KEM_512)
    for word in proposals._CIPHERS:
        for integ in proposals._INTEGRITY:
            (esp,) = parse_proposals([f"{word}-{integ}"], ESP)
            assert esp_suite_of(esp)[0].encr == esp.transforms[0].id
            if proposals._CIPHERS[word].id not in proposals._ESP_ONLY:
                (ike,) = parse_proposals([f"{word}-{integ}-x25519"], IKE)
                integs = ike.of_type(TransformType.INTEG)
                suite = sk_suite(*ike.transforms[0][1:], integs[0].id if integs else 0)
                assert suite.aead is not bool(integs)


def test_weak():
    assert weak(parse_proposals(["aes128-sha1-modp2048"], IKE)[0]) is None
    for text, why in {
        "3des-sha1-modp2048": "3DES",
        "aes128-sha256-modp2048-modp1024": "modp1024",
        "aes128-sha256-modp1536": "modp1536",
        "aes128-sha256-modp1024s160": "modp1024s160",
        "aes128-sha256-modp2048s224": "modp2048s224",
        "aes128-sha256-modp2048s256": "modp2048s256",
        "aes128-sha256-ecp192": "ecp192",
    }.items():
        reason = weak(parse_proposals([text], IKE)[0])
        assert reason is not None
        assert reason.startswith(why)


NEGOTIATED = [suite for suite in all_esp_suites() if suite.integ is not Integ.HMAC_SHA2_256_96]


@pytest.mark.parametrize("suite", NEGOTIATED, ids=str)
@pytest.mark.parametrize("esn", [False, True])
def test_esp_suite_of_every_suite(suite, esn):
    (proposal,) = parse_proposals([f"{suite}-esn" if esn else str(suite)], ESP)
    assert esp_suite_of(proposal) == (suite, esn)


def test_esp_suite_of_takes_chosen_proposals_alone():
    suite = Transform(TransformType.ENCR, Encr.AES_GCM_16, 128)
    assert esp_suite_of(Proposal(ESP, [suite])) == (esp_suite("aes128gcm16"), False)
    assert esp_suite_of(Proposal(ESP, [suite, Transform(TransformType.INTEG, 0)]))[0] == esp_suite("aes128gcm16")
    for transforms in (
        [],
        [suite, suite],
        [Transform(TransformType.ENCR, Encr.AES_GCM_16)],
        [Transform(TransformType.ENCR, Encr.AES_GCM_16, -1)],
        [Transform(TransformType.ENCR, Encr.AES_CBC, 128)],
        [Transform(TransformType.ENCR, Encr.CHACHA20_POLY1305, 256)],
        [suite, Transform(TransformType.INTEG, 12)],
        [suite, Transform(TransformType.ESN, 0), Transform(TransformType.ESN, 1)],
    ):
        with pytest.raises(SuiteError):
            esp_suite_of(Proposal(ESP, transforms))
    with pytest.raises(SuiteError):
        esp_suite_of(Proposal(IKE, [suite]))
