"""tshark, which nobody here wrote, decrypts our ESP with the keys and has nothing to complain about."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.gateways import INNER, WIRE, Setup, World, finish

pytestmark = pytest.mark.e2e

#: suite -> (octets of keys, of which for the cipher; tshark's names of both algorithms)
SUITES = {
    "aes128gcm16": (20, 20, "AES-GCM with 16 octet ICV [RFC4106]", "NULL"),
    "aes256-sha256": (64, 32, "AES-CBC [RFC3602]", "HMAC-SHA-256-128 [RFC4868]"),
    "aes128-sha256_96": (48, 16, "AES-CBC [RFC3602]", "HMAC-SHA-256-96 [draft-ietf-ipsec-ciph-sha-256-00]"),
    "aes128ctr-sha1": (40, 20, "AES-CTR [RFC3686]", "HMAC-SHA-1-96 [RFC2404]"),
}
FIELDS = ("esp.spi", "esp.sequence", "esp.protocol", "esp.icv_good", "ip.dst", "_ws.malformed", "_ws.expert.message")


@pytest.mark.skipif(not shutil.which("tshark"), reason="tshark is not installed")
@pytest.mark.parametrize("encap", [True, False], ids=["udp", "raw"])
@pytest.mark.parametrize("suite", SUITES)
def test_tshark_reads_our_esp(make_world: Callable[[Setup], World], tmp_path: Path, suite: str, encap: bool) -> None:
    key_len, cipher_len, encryption, authentication = SUITES[suite]
    # a train that veth does not cut would be one packet to tshark
    world = make_world(Setup(suite=suite, key_len=key_len, encap=encap, offload={"udp_gso": "no"}))
    world.start()
    path = tmp_path / "wire.pcapng"
    path.touch(mode=0o666)
    capture = world.a.popen("dumpcap", "-q", "-i", WIRE, "-w", str(path))
    try:
        deadline = time.monotonic() + 10
        while path.stat().st_size == 0:
            assert time.monotonic() < deadline, "dumpcap has not begun"
            time.sleep(0.05)
        world.a.ping(INNER[4][1], "-s", "1000", count=10)
        time.sleep(0.3)  # dumpcap writes what it has when it ends, but the last packets must have reached it
    finally:
        said = finish(capture)
    options = ["-o", "esp.enable_encryption_decode:TRUE", "-o", "esp.enable_authentication_check:TRUE"]
    for receiver, key in enumerate(world.keys):
        cipher, auth = key[:cipher_len].hex(), key[cipher_len:].hex()
        values = ["IPv4", "*", "*", hex(0x1000 + receiver), encryption, f"0x{cipher}", authentication]
        values.append(f"0x{auth}" if auth else "")
        options += ["-o", "uat:esp_sa:" + ",".join(f'"{value}"' for value in values)]
    fields = [option for name in FIELDS for option in ("-e", name)]
    command = ["tshark", "-r", str(path), "-Y", "esp", "-T", "fields", "-E", "separator=|", *options, *fields]
    done = world.a.run(*command, check=False)
    assert done.returncode == 0, done.stderr + said
    rows = [line.split("|") for line in done.stdout.splitlines()]
    pings = [row for row in rows if INNER[4][0] in row[4] or INNER[4][1] in row[4]]
    assert len(pings) == 20, done.stdout + done.stderr + said
    for row in rows:
        spi, _, protocol, good, _, malformed, expert = row
        assert int(spi, 16) in (0x1000, 0x1001)
        assert protocol in ("0x04", "0x29", "4", "41"), row
        assert malformed == "", row
        assert not any(word in expert for word in ("ICV", "Malformed", "padding")), row
        if authentication != "NULL":
            assert good in ("1", "True"), row
    sequence = [int(row[1]) for row in rows if row[0] == rows[0][0]]
    assert sequence == list(range(sequence[0], sequence[0] + len(sequence)))
