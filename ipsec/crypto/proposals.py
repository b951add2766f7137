"""Proposal keywords of swanctl.conf (``aes128gcm16-sha256-x25519``) and the transforms they stand for.

A keyword is a transform; several of one type are alternatives in order of preference. ``ke1_`` to ``ke7_`` before that
of a key exchange make it an additional one (RFC 9370). Text and transforms are those of strongSwan; the implicit-IV
forms ``aes128gcm16iiv`` and ``chacha20poly1305iiv`` (RFC 8750) are ours alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import lru_cache

from ipsec.crypto import mlkem
from ipsec.crypto.suites import EspSuite, all_esp_suites
from ipsec.errors import SuiteError
from ipsec.wire import additional
from ipsec.wire.iana import Encr, Esn, Integ, KeMethod, Prf, Protocol, TransformType
from ipsec.wire.proposal import Proposal, Transform

_BITS = (128, 192, 256)
_GCM = {8: Encr.AES_GCM_8, 12: Encr.AES_GCM_12, 16: Encr.AES_GCM_16}
_CCM = {8: Encr.AES_CCM_8, 12: Encr.AES_CCM_12, 16: Encr.AES_CCM_16}


def _ciphers() -> dict[str, Transform]:
    # 3DES, ChaCha20 and NULL have no Key Length attribute (RFC 7296 section 3.3.5, RFC 7634 section 4)
    table: dict[str, tuple[Encr, int]] = {
        "null": (Encr.NULL, 0),
        "3des": (Encr.TRIPLE_DES_CBC, 0),
        "aes": (Encr.AES_CBC, 128),
        "chacha20poly1305": (Encr.CHACHA20_POLY1305, 0),
        "chacha20poly1305iiv": (Encr.CHACHA20_POLY1305_IIV, 0),
    }
    for bits in _BITS:
        table[f"aes{bits}"] = (Encr.AES_CBC, bits)
        table[f"aes{bits}ctr"] = (Encr.AES_CTR, bits)
        for mode, transforms in (("gcm", _GCM), ("ccm", _CCM)):
            for icv, encr in transforms.items():
                # the ICV in octets or in bits
                table[f"aes{bits}{mode}{icv}"] = table[f"aes{bits}{mode}{icv * 8}"] = (encr, bits)
            table[f"aes{bits}{mode}"] = (transforms[16], bits)
        table[f"aes{bits}gcm16iiv"] = (Encr.AES_GCM_16_IIV, bits)
        table[f"aes{bits}gmac"] = (Encr.NULL_AUTH_AES_GMAC, bits)
    return {word: Transform(TransformType.ENCR, encr, bits) for word, (encr, bits) in table.items()}


_CIPHERS = _ciphers()
_INTEGRITY = {
    word: Transform(TransformType.INTEG, integ)
    for integ, words in {
        Integ.HMAC_SHA1_96: ("sha1", "sha"),
        Integ.HMAC_SHA2_256_128: ("sha256", "sha2_256"),
        Integ.HMAC_SHA2_384_192: ("sha384", "sha2_384"),
        Integ.HMAC_SHA2_512_256: ("sha512", "sha2_512"),
        Integ.AES_XCBC_96: ("aesxcbc",),
        Integ.AES_CMAC_96: ("aescmac",),
    }.items()
    for word in words
}
_PRFS = {
    "prfsha1": Transform(TransformType.PRF, Prf.HMAC_SHA1),
    "prfsha256": Transform(TransformType.PRF, Prf.HMAC_SHA2_256),
    "prfsha384": Transform(TransformType.PRF, Prf.HMAC_SHA2_384),
    "prfsha512": Transform(TransformType.PRF, Prf.HMAC_SHA2_512),
    "prfaesxcbc": Transform(TransformType.PRF, Prf.AES128_XCBC),
    "prfaescmac": Transform(TransformType.PRF, Prf.AES128_CMAC),
}
#: the PRF that an integrity keyword of an IKE proposal means where no PRF is named
_PRF_OF = {
    Integ.HMAC_SHA1_96: _PRFS["prfsha1"],
    Integ.HMAC_SHA2_256_128: _PRFS["prfsha256"],
    Integ.HMAC_SHA2_384_192: _PRFS["prfsha384"],
    Integ.HMAC_SHA2_512_256: _PRFS["prfsha512"],
    Integ.AES_XCBC_96: _PRFS["prfaesxcbc"],
    Integ.AES_CMAC_96: _PRFS["prfaescmac"],
}
_EXCHANGES = {
    word: Transform(TransformType.KE, method)
    for word, method in {
        "none": KeMethod.NONE,
        "modpnone": KeMethod.NONE,
        "modp1024": KeMethod.MODP_1024,
        "modp1536": KeMethod.MODP_1536,
        "modp2048": KeMethod.MODP_2048,
        "modp3072": KeMethod.MODP_3072,
        "modp4096": KeMethod.MODP_4096,
        "modp6144": KeMethod.MODP_6144,
        "modp8192": KeMethod.MODP_8192,
        "modp1024s160": KeMethod.MODP_1024_160,
        "modp2048s224": KeMethod.MODP_2048_224,
        "modp2048s256": KeMethod.MODP_2048_256,
        "ecp192": KeMethod.ECP_192,
        "ecp224": KeMethod.ECP_224,
        "ecp256": KeMethod.ECP_256,
        "ecp384": KeMethod.ECP_384,
        "ecp521": KeMethod.ECP_521,
        "ecp256bp": KeMethod.BRAINPOOL_P256R1,
        "ecp384bp": KeMethod.BRAINPOOL_P384R1,
        "ecp512bp": KeMethod.BRAINPOOL_P512R1,
        "curve25519": KeMethod.CURVE_25519,
        "x25519": KeMethod.CURVE_25519,
        "curve448": KeMethod.CURVE_448,
        "x448": KeMethod.CURVE_448,
        "mlkem512": KeMethod.ML_KEM_512,
        "mlkem768": KeMethod.ML_KEM_768,
        "mlkem1024": KeMethod.ML_KEM_1024,
    }.items()
}
_ESN = {
    "noesn": Transform(TransformType.ESN, Esn.NO),
    "esn": Transform(TransformType.ESN, Esn.YES),
}
_KEYWORDS = _CIPHERS | _INTEGRITY | _PRFS | _EXCHANGES | _ESN

#: an additional key exchange (RFC 9370)
_ADDITIONAL = re.compile(r"ke([1-7])_(.*)", re.ASCII)

#: words of strongSwan for what nobody should use, so that the error can say more than "unknown"
_OBSOLETE = {"des", "md5", "md5_128", "prfmd5", "modp768", "modpnull", "sha1_160"}

#: combined algorithms that ESP and IKE share, those of ESP alone, and ciphers of ESP alone
_AEADS = {*_GCM.values(), *_CCM.values(), Encr.CHACHA20_POLY1305}
_ESP_AEADS = {Encr.NULL_AUTH_AES_GMAC, Encr.AES_GCM_16_IIV, Encr.CHACHA20_POLY1305_IIV}
_ESP_ONLY = {*_ESP_AEADS, Encr.NULL}

#: what ``default`` stands for: AEAD first, then what RFC 8247 and RFC 8221 call for beside it, weakest last. A CHILD_SA
#: is rekeyed with a key exchange if the peer has one, as in strongSwan since 6.0.2
_DEFAULT_PRFS = "prfsha256-prfsha384-prfsha512-prfaesxcbc-prfaescmac-prfsha1"
_DEFAULT_EXCHANGES = (
    "x25519-ecp256-ecp384-ecp521-ecp256bp-ecp384bp-ecp512bp-x448-modp3072-modp4096-modp6144-modp8192-modp2048"
)
_DEFAULTS = {
    Protocol.IKE: (
        f"aes128gcm16-aes192gcm16-aes256gcm16-chacha20poly1305-{_DEFAULT_PRFS}-{_DEFAULT_EXCHANGES}",
        f"aes128-aes192-aes256-sha256-sha384-sha512-sha1-aesxcbc-aescmac-{_DEFAULT_PRFS}-{_DEFAULT_EXCHANGES}",
    ),
    Protocol.ESP: (
        f"aes128gcm16-aes192gcm16-aes256gcm16-{_DEFAULT_EXCHANGES}-none",
        f"aes128-aes192-aes256-sha256-sha384-sha512-sha1-aesxcbc-{_DEFAULT_EXCHANGES}-none",
    ),
}

#: what must not be used, or should not be (RFC 8247, RFC 8221), and why
_WEAK: dict[tuple[int, int], str] = {
    (TransformType.ENCR, Encr.TRIPLE_DES_CBC): "3DES has blocks of 64 bits (RFC 8221 section 5)",
    (TransformType.KE, KeMethod.MODP_1024): "modp1024 is within reach of an attack (RFC 8247 section 2.4)",
    (TransformType.KE, KeMethod.MODP_1536): "modp1536 has less than 112 bits of strength (RFC 8247 section 2.4)",
    (TransformType.KE, KeMethod.MODP_1024_160): "modp1024s160 is within reach of an attack (RFC 8247 section 2.4)",
    (TransformType.KE, KeMethod.MODP_2048_224): "modp2048s224 has small subgroups (RFC 8247 section 2.4)",
    (TransformType.KE, KeMethod.MODP_2048_256): "modp2048s256 has small subgroups (RFC 8247 section 2.4)",
    (TransformType.KE, KeMethod.ECP_192): "ecp192 has less than 112 bits of strength",
}

#: how much of a word an error repeats
_SHOWN = 40


def parse_proposals(texts: Sequence[str], protocol: Protocol) -> tuple[Proposal, ...]:
    """The proposals of a ``proposals`` (IKE) or ``esp_proposals`` (ESP) list, in its order.

    One text can become two proposals: AEADs and ciphers with separate integrity must not share one (RFC 7296
    section 3.3). ``default`` is the safe set. Raises SuiteError that names the proposal and the word.
    """
    proposals: list[Proposal] = []
    for text in texts:
        word = text.strip().lower()
        if word == "default" and protocol in _DEFAULTS:
            proposals += (p for default in _DEFAULTS[protocol] for p in _parse(default, protocol))
        else:
            proposals += _parse(word, protocol)
    if not proposals:
        raise SuiteError("no proposals")
    return tuple(proposals)


def weak(proposal: Proposal) -> str | None:
    """Why a proposal should not be used: the first reason there is, else None."""
    for transform in proposal.transforms:
        kind = TransformType.KE if transform.type in additional.TYPES else transform.type
        reason = _WEAK.get((kind, transform.id))
        if reason is not None:
            return reason
    return None


def is_aead(encr: int) -> bool:
    """Whether an encryption transform protects integrity as well."""
    return encr in _AEADS or encr in _ESP_AEADS


def esp_suite_of(proposal: Proposal) -> tuple[EspSuite, bool]:
    """Suite and ESN of a chosen ESP proposal. Raises SuiteError unless it has one transform per type that we know."""
    encr = proposal.of_type(TransformType.ENCR)
    integ = proposal.of_type(TransformType.INTEG)
    esn = proposal.of_type(TransformType.ESN)
    if proposal.protocol != Protocol.ESP or len(encr) != 1 or len(integ) > 1 or len(esn) > 1:
        raise SuiteError(f"{proposal} is no chosen ESP proposal")
    suite = _esp_suites().get((*encr[0][1:], integ[0].id if integ else Integ.NONE))
    if suite is None:
        raise SuiteError(f"{proposal} is no suite of ours")
    return suite, bool(esn) and esn[0].id == Esn.YES


@lru_cache(maxsize=1)
def _esp_suites() -> dict[tuple[int, int, int], EspSuite]:
    """Suites by (encr, Key Length attribute, integ)."""
    fixed = (Encr.TRIPLE_DES_CBC, Encr.NULL, Encr.CHACHA20_POLY1305, Encr.CHACHA20_POLY1305_IIV)
    return {(s.encr, 0 if s.encr in fixed else s.key_bits, s.integ): s for s in all_esp_suites()}


def _parse(text: str, protocol: Protocol) -> list[Proposal]:
    """The proposals of one text in lower case."""
    if protocol not in _DEFAULTS:
        raise SuiteError(f"proposal {_shown(text)}: protocol {protocol.name} is not supported")
    groups: dict[int, list[Transform]] = {kind: [] for kind in TransformType}
    for word in text.split("-"):
        transform = _transform(word.strip())
        if transform is None:
            raise SuiteError(f"proposal {_shown(text)}: {_unknown(word.strip())}")
        _check_use(transform, word, text, protocol)
        _check_kem(transform, text)
        if transform not in groups[transform.type]:
            groups[transform.type].append(transform)
    encrs, integs = groups[TransformType.ENCR], groups[TransformType.INTEG]
    prfs, exchanges = groups[TransformType.PRF], groups[TransformType.KE]
    further = [transform for kind in additional.TYPES for transform in groups[kind]]
    if not encrs:
        raise SuiteError(f"proposal {_shown(text)}: no encryption algorithm")
    aeads = [encr for encr in encrs if is_aead(encr.id)]
    ciphers = [encr for encr in encrs if not is_aead(encr.id)]
    if ciphers and not integs:
        raise SuiteError(f"proposal {_shown(text)}: no integrity algorithm, such as sha256")
    if protocol is Protocol.IKE:
        prfs = prfs or [_PRF_OF[Integ(integ.id)] for integ in integs]
        if not prfs:
            raise SuiteError(f"proposal {_shown(text)}: no PRF, such as prfsha256")
        if not exchanges:
            raise SuiteError(f"proposal {_shown(text)}: no key exchange, such as x25519")
        tail = [*prfs, *exchanges, *further]
    else:
        tail = [*exchanges, *(groups[TransformType.ESN] or [_ESN["noesn"]]), *further]
    if further:
        _check_further(groups, text)
    proposals = []
    if aeads:
        # RFC 5282 section 8: no integrity transform beside an AEAD; its keyword only named the PRF
        proposals.append(Proposal(protocol, [*aeads, *tail]))
    if ciphers:
        proposals.append(Proposal(protocol, [*ciphers, *integs, *tail]))
    # what was written first is preferred
    return proposals if not aeads or encrs[0] is aeads[0] else proposals[::-1]


def _check_use(transform: Transform, word: str, text: str, protocol: Protocol) -> None:
    """Raise SuiteError for a keyword that has no meaning for the protocol."""
    kind, ident, _ = transform
    if protocol is Protocol.IKE:
        wrong = kind == TransformType.ESN or (kind == TransformType.ENCR and ident in _ESP_ONLY)
        wrong = wrong or (kind == TransformType.KE and ident == KeMethod.NONE)
    else:
        wrong = kind == TransformType.PRF
    if wrong:
        raise SuiteError(f"proposal {_shown(text)}: {word.strip()!r} has no meaning for {protocol.name}")


def _transform(word: str) -> Transform | None:
    """The transform of a keyword."""
    found = _ADDITIONAL.fullmatch(word)
    if found is None:
        return _KEYWORDS.get(word)
    exchange = _EXCHANGES.get(found[2])
    return None if exchange is None else Transform(TransformType.ADDKE1 + int(found[1]) - 1, exchange.id)


def _check_further(groups: Mapping[int, Sequence[Transform]], text: str) -> None:
    """Raise SuiteError for additional key exchanges that can never be (RFC 9370 section 2.2.1)."""
    exchanges = [transform for transform in groups[TransformType.KE] if transform.id]
    if not exchanges:
        raise SuiteError(f"proposal {_shown(text)}: additional key exchanges need a first one, such as x25519")
    wanted = {TransformType.KE: exchanges, **{kind: groups[kind] for kind in additional.TYPES if groups[kind]}}
    if additional.assign(wanted) is None:
        raise SuiteError(f"proposal {_shown(text)}: no method may be there twice (RFC 9370 section 2.2.1)")


def _check_kem(transform: Transform, text: str) -> None:
    """Raise SuiteError for a key exchange that this machine cannot do."""
    if transform.type in (TransformType.KE, *additional.TYPES) and mlkem.is_kem(transform.id):
        why = mlkem.missing(transform.id)
        if why is not None:
            raise SuiteError(f"proposal {_shown(text)}: {why}")


def _unknown(word: str) -> str:
    if word in _OBSOLETE:
        return f"{word!r} is obsolete and not supported"
    if word in ("sha256_96", "sha2_256_96"):
        return f"{word!r} has no number to negotiate it by: write sha256, and sha256_96 = yes in the child at both ends"
    found = _ADDITIONAL.fullmatch(word)
    if found is not None:
        near = get_close_matches(found[2][:_SHOWN], _EXCHANGES, 1)
        hint = f", did you mean 'ke{found[1]}_{near[0]}'?" if near else ""
        return f"unknown key exchange {_shown(word)}{hint}"
    if word == "default":
        return "'default' stands alone"
    near = get_close_matches(word[:_SHOWN], _KEYWORDS, 1)
    return f"unknown algorithm {_shown(word)}{f', did you mean {near[0]!r}?' if near else ''}"


def _shown(text: str) -> str:
    """Quoted, and not endless."""
    return repr(text if len(text) <= 2 * _SHOWN else f"{text[: 2 * _SHOWN]}...")
