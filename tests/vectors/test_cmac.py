"""AES-CMAC-96 for ESP (RFC 4494): its known answers, and ESP packets whose ICV is checked apart from the engines."""

from __future__ import annotations

import pytest

from ipsec.crypto.cipher import aes_cmac
from ipsec.crypto.suites import esp_suite
from ipsec.esp.drops import DropReason
from ipsec.esp.sa import Direction
from tests.esp.support import NOW, ip, keys, params

KEY = bytes.fromhex("2b7e151628aed2a6abf7158809cf4f3c")
MESSAGE = bytes.fromhex(
    "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e5130c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17"
    "ad2b417be66c3710"
)


@pytest.mark.parametrize(
    ("size", "mac"),
    [
        (0, "bb1d6929e95937287fa37d12"),
        (16, "070a16b46b4d4144f79bdd9d"),
        (40, "dfa66747de9ae63030ca3261"),
        (64, "51f0bebf7e3b9d92fc497417"),
    ],
)
def test_rfc4494(size, mac):
    assert aes_cmac(KEY, MESSAGE[:size])[:12].hex() == mac


@pytest.mark.parametrize("esn", [False, True])
def test_icv_of_esp(engine_class, esn):
    """Around every place in a block at which a message can end; with ESN the high word follows it."""
    suite = esp_suite("null-aescmac")
    integ_key = keys(suite)["integ_key"]
    engine = engine_class(mss_clamp=False)
    sender = engine.add_sa(params(Direction.OUT, suite, esn=esn))
    receiver = engine_class(mss_clamp=False)
    receiver.add_sa(params(Direction.IN, suite, esn=esn))
    for size in range(64):
        packet = ip(99, bytes(range(size)))
        datagram = engine.encapsulate(sender, packet, NOW).datagram
        mac = aes_cmac(integ_key, datagram[:-12] + (bytes(4) if esn else b""))
        assert datagram[-12:] == mac[:12]
        broken = datagram[:-12] + bytes((mac[0] ^ 0x80,)) + mac[1:12]
        assert receiver.inbound(broken, NOW).drop is DropReason.IN_STATE_PROTO_ERROR
        assert receiver.inbound(datagram, NOW).packet == packet
