"""Known answers of ML-KEM that come with cryptography-vectors: NIST's for key generation and decapsulation."""

from __future__ import annotations

import pytest

from ipsec.crypto.kex import key_exchange
from ipsec.wire.iana import KeMethod
from tests.vectors.test_ike_vectors import VECTORS, blocks, hexed

CASES = [
    (method, case)
    for method, name in ((KeMethod.ML_KEM_768, "768"), (KeMethod.ML_KEM_1024, "1024"))
    for case in blocks(VECTORS / "asymmetric" / "MLKEM" / f"kat_MLKEM_{name}.rsp")
]


def test_there_are_cases():
    assert {method for method, _ in CASES} == {KeMethod.ML_KEM_768, KeMethod.ML_KEM_1024}
    assert len(CASES) >= 200


@pytest.mark.parametrize("method", [KeMethod.ML_KEM_768, KeMethod.ML_KEM_1024], ids=lambda method: method.name)
def test_keys_and_secrets(method):
    """``ct_n`` is no ciphertext for the key: FIPS 203 section 6.3 gives a secret for that, too."""
    for known, case in CASES:
        if known is method:
            ours = key_exchange(method, lambda size, case=case: hexed(case["d"]) + hexed(case["z"]))
            assert ours.public == hexed(case["pk"]), case["count"]
            assert ours.shared(hexed(case["ct"])) == hexed(case["ss"]), case["count"]
            assert ours.shared(hexed(case["ct_n"])) == hexed(case["ss_n"]), case["count"]
