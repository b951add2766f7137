"""What is timed in memory does its work: a loop that does nothing would be the fastest. No times are judged here."""

from __future__ import annotations

import pytest

from bench.handshake import run as handshake
from bench.micro import cases, pieces
from bench.micro import run as micro
from bench.results import Results
from bench.session import Options, Session
from ipsec._probe import repeat_checksum
from ipsec.wire.iana import KeMethod


def test_the_checksum_loop_sums() -> None:
    # zeros but for the first octet, which counts up with the rounds; it is one half of a 16-bit word
    assert repeat_checksum(64, 3) in (0 + 1 + 2, 256 * (0 + 1 + 2))


@pytest.mark.parametrize("cached", [True, False])
def test_the_spd_loop_finds_every_policy(cached: bool) -> None:
    assert pieces.spd_ns(200, cached=cached)() > 0


def test_trains_are_joined() -> None:
    assert pieces.coalesce_ns() > 0
    assert pieces.replay_ns(64, reordered=False) > 0
    assert pieces.key_exchange_us(KeMethod.CURVE_25519) > 0


def test_batches_come_back_as_they_went_in() -> None:
    row = cases.batches("aes128gcm16", "auto", 64, 2)
    assert len(row.seal) == len(row.open) == len(row.provider_seal) == 2


def test_results_go_where_targets_look() -> None:
    results = Results(options={"rounds": 2})
    options = Options(quick=True, only=frozenset(("batch", "codec")), suites=("aes128gcm16",), sizes=(64,))
    with Session(results, options, 1.0) as session:
        micro.run(session)
    assert len(results.values("seal_ns", "ipsec", suite="aes128gcm16", size=64)) == 5
    assert len(results.values("seal_ns", "provider", suite="aes128gcm16", size=64)) == 5
    assert results.summary("codec_us", "ipsec", what="parse", octets=232) is not None


def test_what_is_asked_for_by_name_is_not_left_out_of_a_quick_run() -> None:
    assert micro.expected_s(Options(quick=True, only=frozenset(("sad",)))) > 0
    assert handshake.expected_s(Options(quick=True, only=frozenset(("storm",)))) > 0
    assert not handshake.needs_root(Options(only=frozenset(("kex",))))
    assert not handshake.needs_root(Options(peers=("plain",)))
