"""The part in memory: ESP, its single steps, and IKEv2, on one CPU and without privileges."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address

from bench.handshake import memory
from bench.handshake.initiators import AUTHENTICATIONS, Initiators
from bench.micro import cases, pieces
from bench.micro.cases import BenchError
from bench.results import Metric, Sample
from bench.session import Options, Session
from ipsec.esp.fast import provider_versions
from ipsec.wire.iana import KeMethod, name_of

SUITES = ("aes128gcm16", "aes256gcm16", "chacha20poly1305")
REPETITIONS = 15
POPULATIONS = ((2, 1, 1), (2000, cases.SPREAD, 1), (2000, cases.SPREAD, cases.SPREAD), (100_000, 10_000, 1),
               (100_000, 10_000, cases.SPREAD))  # fmt: skip
SAD_SIZES = (64, 1408)
HANDSHAKES = 100


def _ns(name: str, title: str) -> Metric:
    return Metric(name, "micro", title, "ns", False, 1)


def _us(name: str, title: str) -> Metric:
    return Metric(name, "micro", title, "us", False, 1)


SEAL = _ns("seal_ns", "sealing one ESP packet, in batches")
OPEN = _ns("open_ns", "opening one ESP packet, in batches")
SAD_IN = _ns("sad_in_ns", "inbound packet with many SAs and policies")
SAD_OUT = _ns("sad_out_ns", "outbound packet with many SAs and policies, one Python call each")
SA_MEMORY = Metric("sa_memory", "micro", "memory of one more SA", "octets", False, 0)
REPLAY = _ns("replay_ns", "replay window, one packet")
SPD = _ns("spd_ns", "SPD look-up")
COALESCE = _ns("coalesce_ns", "joining one TCP segment to a superframe")
CHECKSUM = _ns("checksum_ns", "Internet checksum")
CODEC = _us("codec_us", "IKE_SA_INIT message")
KEX = _us("kex_us", "key exchange, one side")
SIGNATURE = _us("signature_us", "AUTH signature")
ENGINE = Metric("engine_handshakes", "micro", "IKEv2 handshakes per CPU second of the responding engine", "/s", True, 0)


@dataclass(frozen=True)
class Case:
    """One name of ``--only``; seconds are of a machine like that in CI."""

    name: str
    run: Callable[[Session], None]
    full_s: float
    quick_s: float | None
    "None: left out of a quick run"


def _repetitions(session: Session) -> int:
    return 5 if session.options.quick else REPETITIONS


def batch(session: Session) -> None:
    """Sealing and opening, in turns with the provider alone."""
    options = session.options
    sizes = options.sizes or ((64, 1408) if options.quick else cases.SIZES)
    for suite in options.suites or (SUITES[::2] if options.quick else SUITES):
        for size in sizes:
            row = cases.batches(suite, options.provider, size, _repetitions(session))
            session.results.subjects.setdefault("provider", {"title": "the crypto provider called directly"})
            facts = session.results.subjects["provider"].setdefault("facts", {})
            facts[suite] = row.provider
            for metric, ours, theirs in ((SEAL, row.seal, row.provider_seal), (OPEN, row.open, row.provider_open)):
                for subject, values in (("ipsec", ours), ("provider", theirs)):
                    _add(session, metric, subject, values, suite=suite, size=size)


def sad(session: Session) -> None:
    """Populations of SAs and policies."""
    rows = cases.populations(SUITES[0], POPULATIONS, SAD_SIZES, _repetitions(session))
    for row in rows:
        for metric, values in ((SAD_IN, row.inbound), (SAD_OUT, row.outbound)):
            _add(session, metric, "ipsec", values, sas=row.sas, policies=row.policies, spread=row.spread, size=row.size)


def sa_memory(session: Session) -> None:
    """What one more SA takes."""
    _add(session, SA_MEMORY, "ipsec", [cases.memory_per_sa(SUITES[0])])


def spd(session: Session) -> None:
    """Look-ups among 1, 1 000 and 100 000 policies, with and without the flow cache."""
    found = {(count, cached): pieces.spd_ns(count, cached=cached)
             for count in pieces.SPD_SIZES for cached in (True, False)}  # fmt: skip
    for (count, cached), take in found.items():
        values = _repeat(session, take)
        _add(session, SPD, "ipsec", values, policies=count, flow_cache="yes" if cached else "no")


def replay(session: Session) -> None:
    """Windows of several sizes, in order and with neighbours exchanged."""
    for window in pieces.WINDOWS:
        for reordered in (False, True):
            values = _repeat(session, lambda w=window, r=reordered: pieces.replay_ns(w, reordered=r))  # type: ignore[misc]
            _add(session, REPLAY, "ipsec", values, window=window, order="swapped" if reordered else "in order")


def coalesce(session: Session) -> None:
    """A train of TCP segments."""
    _add(session, COALESCE, "ipsec", _repeat(session, pieces.coalesce_ns))


def checksum(session: Session) -> None:
    """Short and long runs."""
    for size in pieces.CHECKSUM_SIZES:
        values = _repeat(session, lambda size=size: pieces.checksum_ns(size))  # type: ignore[misc]
        _add(session, CHECKSUM, "ipsec", values, size=size)


def codec(session: Session) -> None:
    """The first message of a handshake."""
    initiators = Initiators("psk", memory.GATEWAY, memory.SETTINGS)
    initiators.initiate(0, IPv4Address(memory.FIRST_PEER), 0.0)
    message = next(iter(initiators.engine.datagrams_to_send()))[0]
    for what in ("parse", "emit"):
        values = _repeat(session, lambda w=what: pieces.codec_us(message, emitting=w == "emit"))  # type: ignore[misc]
        _add(session, CODEC, "ipsec", values, what=what, octets=len(message))


def kex(session: Session) -> None:
    """Key exchange methods."""
    for method in pieces.KEY_EXCHANGES:
        values = _repeat(session, lambda m=method: pieces.key_exchange_us(m))  # type: ignore[misc]
        _add(session, KEX, "ipsec", values, method=name_of(KeMethod, method).lower())


def sign(session: Session) -> None:
    """AUTH by signature."""
    for name, make in pieces.SIGNERS.items():
        key = make()
        for what in ("sign", "verify"):
            values = _repeat(session, lambda k=key, w=what: pieces.signature_us(k, verifying=w == "verify"))  # type: ignore[misc]
            _add(session, SIGNATURE, "ipsec", values, key=name, what=what)


def engine(session: Session) -> None:
    """Engines alone, the ways to authenticate in turns."""
    benches = {name: memory.Direct(name) for name in AUTHENTICATIONS}
    for direct in benches.values():
        direct.run(20)
    for _ in range(3 if session.options.quick else 5):
        for name, direct in benches.items():
            _add(session, ENGINE, "ipsec", [direct.run(HANDSHAKES).per_cpu_second], auth=name)


CASES = (
    Case("batch", batch, 6, 2), Case("sad", sad, 8, None), Case("sa_memory", sa_memory, 2, None),
    Case("spd", spd, 5, None), Case("replay", replay, 1, 1), Case("coalesce", coalesce, 1, 1),
    Case("checksum", checksum, 1, 1), Case("codec", codec, 2, 1), Case("kex", kex, 3, 1), Case("sign", sign, 3, 2),
    Case("engine", engine, 6, 4),
)  # fmt: skip
NAMES = frozenset(case.name for case in CASES)


def _chosen(options: Options) -> list[tuple[Case, float]]:
    found = []
    for case in CASES:
        takes = case.quick_s if options.quick else case.full_s
        # what is asked for by name is never left out
        if options.only and case.name in options.only:
            takes = takes or case.full_s
        if takes is not None and options.wants(case.name):
            found.append((case, takes))
    return found


def expected_s(options: Options) -> float:
    """About how long this part takes."""
    return sum(takes for _, takes in _chosen(options))


def run(session: Session) -> None:
    """Every case of the plan."""
    versions = {name: str(version) for name, version in provider_versions().items()}
    session.results.subjects.setdefault("ipsec", {"title": "ipsecd"})
    for case, takes in _chosen(session.options):
        session.heading("in memory")
        with session.step(case.name, takes):
            try:
                case.run(session)
            except BenchError as error:
                session.fail(f"{case.name}: {error}")
        gc.collect()
    session.results.machine["crypto_providers"] = versions


def _repeat(session: Session, take: Callable[[], float]) -> list[float]:
    # the first one warms up
    take()
    return [take() for _ in range(_repetitions(session))]


def _add(session: Session, metric: Metric, subject: str, values: list[float], **params: str | int) -> None:
    for value in values[:-1]:
        session.results.add(metric, subject, Sample(value), **params)
    session.add(metric, subject, Sample(values[-1]), **params)
