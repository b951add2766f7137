"""``/metrics`` of a whole daemon in memory, and of two that talk to each other: names, figures, text, patience."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from http import HTTPStatus
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.core import Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from ipsec.config import load, load_text
from ipsec.crypto.x509 import parse_certificate
from ipsec.daemon import exposition, torilabs
from ipsec.daemon import families as f
from ipsec.daemon.exposition import Exposition
from ipsec.daemon.families import FAMILIES, Series
from ipsec.daemon.health import Health
from ipsec.daemon.metrics import Metrics, Pace
from ipsec.daemon.run import Daemon
from ipsec.errors import BackendError
from ipsec.esp.drops import DropReason
from ipsec.esp.engine import SaStats
from ipsec.net.http import HttpError, Request
from tests.daemon.test_ike import LOOP, A, B, Pair, run, until

FIRST, LAST = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), datetime(2027, 1, 2, 3, 4, 5, tzinfo=UTC)
OPENMETRICS = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2"


def values(text: str) -> dict[tuple[str, ...], float]:
    """By name of the sample and its labels in alphabetical order of their names."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in parse_text(text)
        for sample in family.samples
    }


# -- a whole daemon


async def fetch(port: int, accept: str) -> tuple[str, str]:
    """Content type and text."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\n\r\n".encode())
    head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
    writer.close()
    assert head.startswith("HTTP/1.1 200 OK\r\n")
    return head.partition("Content-Type: ")[2].partition("\r\n")[0], body


@pytest.mark.parametrize("accept", ["", "text/plain", "text/plain;version=x", OPENMETRICS])
def test_every_metric_is_there_as_it_is_documented(accept: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    ours = f"backend = memory\nstate_dir = {tmp_path}\nvici_socket = none\nworkers = 0\nhttp {{ listen = {port} \n }}"
    path = tmp_path / "swanctl.conf"
    path.touch(mode=0o600)
    path.write_text(A.replace("backend = memory", ours) + "pools { inside { addrs = 10.9.0.0/24 \n } }")

    async def main() -> None:
        daemon = Daemon(load(str(path)))
        await daemon.start()
        content_type, text = await fetch(port, accept)
        await daemon.stop()
        is_open = accept == OPENMETRICS
        assert content_type.startswith("application/openmetrics-text" if is_open else "text/plain; version=0.0.4")
        assert text.endswith("# EOF\n") is is_open
        parse = parse_openmetrics if is_open else parse_text
        found: dict[str, Metric] = {metric.name: metric for metric in parse(text)}
        # the text format has no infos
        known = {one.shown if one.kind == "info" and not is_open else one.name: one for one in FAMILIES.values()}
        for name in [name for name in found if not name.startswith("process_")]:
            metric, family = found[name], known.pop(name)
            assert metric.documentation == family.help
            assert {label for sample in metric.samples for label in sample.labels} - {"le"} == set(family.labels)
        # of what nothing is there yet, there are no series
        rare = (f.SA_BYTES, f.SA_PACKETS, f.SA_DROPS, f.CHILD_LAST, f.CHILD_DROPS, f.FAILURES, f.PROVIDER,
                f.CERTIFICATE, f.RADIUS, f.RADIUS_ANSWERS, f.EAP)  # fmt: skip
        assert {family.name for family in known.values()} <= {family.name for family in rare}

    run(main())


def test_manual_sas(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    settings = f"backend = memory\nstate_dir = {tmp_path}\nworkers = 0\nhttp {{ listen = {port} \n }}"
    keys = f"key_in = 0x{'11' * 20}\nkey_out = 0x{'22' * 20}\nspi_in = 0x1000\nspi_out = 0x2000\n"
    path = tmp_path / "swanctl.conf"
    path.touch(mode=0o600)
    path.write_text(
        f"ipsecd {{\n{settings}\n}}\nsas {{ m {{\nlocal = 192.0.2.1\nremote = 192.0.2.2\n{keys}encap = yes\n"
        "local_ts = 10.1.0.0/16\nremote_ts = 10.2.0.0/16\nesp_proposals = aes128gcm16\n} }\n"
    )

    async def main() -> None:
        daemon = Daemon(load(str(path)))
        await daemon.start()
        assert daemon._endpoint is not None
        name, params, stats = next(daemon._manual_stats())
        dropped = dataclasses.replace(stats, packets=3, drops={DropReason.IN_STATE_SEQ_ERROR: 2})
        daemon._endpoint.metrics._manual = lambda: iter([(name, params, dropped)])
        _, text = await fetch(port, "")
        await daemon.stop()
        assert 'ipsecd_manual_sa_packets_total{direction="in",sa="m"} 3.0' in text
        assert 'ipsecd_manual_sa_drops_total{reason="IN_STATE_SEQ_ERROR",sa="m"} 2.0' in text

    run(main())


def test_without_an_endpoint_nothing_of_it_is_imported() -> None:
    code = "import sys, ipsec.cli.ipsecd; print(any(name.startswith('prometheus_client') for name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# -- two daemons, and a data path that has counted what the tests say


class Observed:
    """One end of a pair, with its metrics."""

    def __init__(self, pair: Pair, end: int) -> None:
        backend = cast(Any, pair.backends[end])
        self.stats: dict[int, SaStats] = {}
        backend.query_sa = lambda sa: self.stats.get(sa) or SaStats(0, 0, None, 0, {}, LOOP, None)
        self.backend = backend
        backend.device = "none"
        self.ike = pair.ends[end]
        self.health = Health(backend)
        self.health.attach(self.ike)
        self.metrics = Metrics(backend, self.health, lambda: iter(()))
        self.metrics.attach(self.ike)

    def count(self, packets: int, drops: int = 0) -> None:
        """So much has passed through each SA there is."""
        for sa in self.backend.sas:
            found = {DropReason.IN_STATE_SEQ_ERROR: drops} if drops else {}
            self.stats[sa] = SaStats(packets, packets * 100, 5.0, packets, found, LOOP, None)

    async def values(self) -> dict[tuple[str, ...], float]:
        answer = await Exposition(self.metrics.collect).answer(Request("GET", "/metrics", {}))
        return values(b"".join(answer.body).decode())


def test_counters_never_fall() -> None:
    """Over rekeyings of both kinds, a reload, and a tunnel that goes down and up."""

    async def main() -> None:
        pair = Pair(A, B)
        seen: list[dict[tuple[str, ...], float]] = []
        a = Observed(pair, 0)

        async def look() -> dict[tuple[str, ...], float]:
            seen.append(await a.values())
            return seen[-1]

        assert ("ipsecd_child_up", "n", "c") not in await look(), "nothing is loaded yet"
        await pair.start()
        now = await look()
        assert now["ipsecd_child_configured", "n", "c"] == now["ipsecd_child_wanted", "n", "c"] == 1
        assert now["ipsecd_child_bytes_total", "n", "c", "in"] == 0
        await until(lambda: len(a.backend.sas) == 2)
        a.count(10, drops=3)
        now = await look()
        assert now["ipsecd_child_up", "n", "c"] == now["ipsecd_ike_sas", "c"] == 1
        assert now["ipsecd_child_bytes_total", "n", "c", "out"] == 1000
        assert now["ipsecd_child_drops_total", "n", "c", "IN_STATE_SEQ_ERROR"] == 6
        assert now["ipsecd_ike_handshake_seconds_count", "initiator"] == 1

        (sa,) = a.ike.established()
        (child,) = sa.children_up()
        a.count(15)
        a.ike.engine.rekey_child(child, a.ike._loop.time())
        a.ike.turn()
        await until(lambda: sa.children_up() and sa.children_up() != [child])
        now = await look()
        assert now["ipsecd_child_rekeys_total", "n", "c"] == 1
        # of the one that was replaced, the outbound SA is gone and the inbound one lingers
        assert now["ipsecd_child_packets_total", "n", "c", "in"] == 15
        assert now["ipsecd_child_packets_total", "n", "c", "out"] == 15

        a.ike.engine.rekey_ike_sa(sa, a.ike._loop.time())
        a.ike.turn()
        await until(lambda: a.ike.established() and a.ike.established() != [sa])
        assert (await look())["ipsecd_ike_rekeys_total", "c"] == 1
        a.ike.engine.counters.reset("c")
        assert (await look())["ipsecd_ike_rekeys_total", "c"] == 1, "what vici resets goes on here"

        await a.ike.reload(load_text(A.replace("start_action = start", "start_action = none")))
        await until(lambda: not a.backend.sas)
        now = await look()
        assert now["ipsecd_child_up", "n", "c"] == now["ipsecd_child_wanted", "n", "c"] == 0
        assert now["ipsecd_child_packets_total", "n", "c", "in"] >= 15
        await a.ike.reload(load_text(A))
        await until(lambda: len(a.backend.sas) == 2)
        now = await look()
        assert now["ipsecd_child_established_total", "n", "c"] == now["ipsecd_ike_established_total", "c"] == 2

        for earlier, later in pairwise(seen):
            for key, value in earlier.items():
                if key[0].endswith(("_total", "_count", "_sum", "_bucket")):
                    assert later[key] >= value, key
        await pair.stop()

    run(main())


def test_who_cannot_prove_who_he_is_shows() -> None:
    async def main() -> None:
        pair = Pair(A, B.replace("for these two alone", "another one altogether"))
        a, b = Observed(pair, 0), Observed(pair, 1)
        await pair.start()
        await until(lambda: b.ike.engine.problems.counts)
        await until(lambda: a.ike.engine.problems.counts)
        assert (await b.values())["ipsecd_failures_total", "peer-auth-failed", "c"] >= 1
        assert (await a.values())["ipsecd_failures_total", "local-auth-failed", "c"] >= 1
        assert (await a.values())["ipsecd_child_up", "n", "c"] == 0
        await pair.stop()

    run(main())


def test_names_that_are_gone_are_forgotten() -> None:
    async def main() -> None:
        pair = Pair(A, B)
        a = Observed(pair, 0)
        await pair.start()
        await until(lambda: len(a.backend.sas) == 2)
        a.count(1)
        assert ("ipsecd_child_up", "n", "c") in await a.values()
        other = A.replace("connections { c {", "connections { d {")
        await a.ike.reload(load_text(other))
        await until(lambda: not any(sa.name == "c" for sa in a.ike.engine.sas.values()))
        await until(lambda: len(a.backend.sas) == 2)
        now = await a.values()
        assert not [key for key in now if "c" in key[1:]]
        assert now["ipsecd_child_up", "n", "d"] == 1
        # what was closed is counted until it has gone, and forgotten with the next change
        await a.ike.reload(load_text(other.replace("start_action = start", "start_action = none")))
        await until(lambda: not a.backend.sas)
        assert set(a.ike.children.accounts) == set(a.metrics._starts) == {("d", "n")}
        await pair.stop()

    run(main())


def test_peers_make_no_series() -> None:
    """A connection for anybody has one series, however many come."""

    async def main() -> None:
        pair = Pair(A, B.replace("id = a", "id = %any"))
        b = Observed(pair, 1)
        await pair.start()
        before = set(await b.values())
        await until(lambda: len(b.backend.sas) == 2)
        new = {key for key in set(await b.values()) - before if key[0] != "ipsecd_child_last_packet_timestamp_seconds"}
        assert new == set()
        await pair.stop()

    run(main())


# -- another exporter's names

#: metrics and labels of torilabs/ipsec-prometheus-exporter
TORILABS = """
    cert_count:
    cert_valid: serial_number subject not_before not_after
    cert_expire_secs: serial_number subject not_before not_after
    conn_count:
    conn_version: conn_name version
    conn_reauth_time: conn_name
    conn_rekey_time: conn_name
    conn_child_count: conn_name
    conn_child_rekey_time: conn_name child_name mode
    conn_child_rekey_bytes: conn_name child_name mode
    conn_child_rekey_packets: conn_name child_name mode
    ike_count:
    ike_version: ike_name ike_id
    ike_status: ike_name ike_id
    ike_initiator: ike_name ike_id
    ike_nat_local: ike_name ike_id
    ike_nat_remote: ike_name ike_id
    ike_nat_fake: ike_name ike_id
    ike_nat_any: ike_name ike_id
    ike_encryption_key_size: ike_name ike_id algorithm dh_group
    ike_integrity_key_size: ike_name ike_id algorithm dh_group
    ike_established_seconds: ike_name ike_id
    ike_rekey_seconds: ike_name ike_id
    ike_reauth_seconds: ike_name ike_id
    ike_children_size: ike_name ike_id
    sa_status: ike_name ike_id child_name child_id local_ts remote_ts
    sa_encap: ike_name ike_id child_name child_id
    sa_encryption_key_size: ike_name ike_id child_name child_id algorithm dh_group
    sa_integrity_key_size: ike_name ike_id child_name child_id algorithm dh_group
    sa_inbound_bytes: ike_name ike_id child_name child_id local_ts remote_ts
    sa_inbound_packets: ike_name ike_id child_name child_id local_ts remote_ts
    sa_last_inbound_seconds: ike_name ike_id child_name child_id local_ts remote_ts
    sa_outbound_bytes: ike_name ike_id child_name child_id local_ts remote_ts
    sa_outbound_packets: ike_name ike_id child_name child_id local_ts remote_ts
    sa_last_outbound_seconds: ike_name ike_id child_name child_id local_ts remote_ts
    sa_established_seconds: ike_name ike_id child_name child_id
    sa_rekey_seconds: ike_name ike_id child_name child_id
    sa_lifetime_seconds: ike_name ike_id child_name child_id
"""


def test_names_of_another_exporter() -> None:
    async def main() -> None:
        pair = Pair(A, B)
        a = Observed(pair, 0)
        await pair.start()
        await until(lambda: len(a.backend.sas) == 2)
        a.count(7)
        found = {series.name: list(series.samples) async for series in torilabs.collect(a.ike, Pace())}
        await pair.stop()
        known = {}
        for line in TORILABS.split("\n")[1:-1]:
            name, _, labels = line.strip().partition(":")
            known[f"strongswan_{name}"] = set(labels.split())
        assert found.keys() == known.keys()
        for name, samples in found.items():
            for sample in samples:
                assert (sample.name, sample.labels.keys()) == (name, known[name])
        selectors = {"local_ts": "10.1.0.0/16", "remote_ts": "10.2.0.0/16"}
        for name, value, labels in (
            ("ike_count", 1, {}),
            ("ike_status", 1, {"ike_name": "c", "ike_id": "1"}),
            ("ike_initiator", 1, {"ike_name": "c"}),
            ("ike_encryption_key_size", 128, {"algorithm": "AES_GCM_16", "dh_group": "CURVE_25519"}),
            ("sa_status", 0, {"child_name": "n", "child_id": "2", **selectors}),
            ("sa_inbound_bytes", 700, selectors),
            ("sa_outbound_packets", 7, selectors),
            ("conn_version", 1, {"conn_name": "c", "version": "IKEv2"}),
            ("conn_child_rekey_time", 3600, {"child_name": "n", "mode": "TUNNEL"}),
            ("cert_count", 0, {}),
        ):
            (sample,) = found[f"strongswan_{name}"]
            assert sample.value == value, name
            assert labels.items() <= sample.labels.items(), name

    run(main())


def test_certificates_of_another_exporter() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    names = ((NameOID.COUNTRY_NAME, "DE"), (NameOID.ORGANIZATION_NAME, "One, Two"), (NameOID.COMMON_NAME, "gw"))
    subject = x509.Name([x509.NameAttribute(*name) for name in names])
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), 0xABC, FIRST, LAST)
    found = torilabs._describe(parse_certificate(builder.sign(key, SHA256()).public_bytes(Encoding.DER)))
    assert found == ("0a:bc", "CN=gw,O=One\\, Two,C=DE", "2026-01-02T03:04:05Z", "2027-01-02T03:04:05Z")


# -- the text


@given(st.text("aeoqvx/;=,.* 0123-", max_size=40), st.sampled_from(("", "text/plain", "application/openmetrics-text")))
def test_any_accept_gets_an_answer(more: str, kind: str) -> None:
    encoder, content_type = exposition._choose(kind + more)
    assert callable(encoder)
    assert content_type.startswith(("text/plain", "application/openmetrics-text"))


def series(amount: int) -> Series:
    return f.CHILD_UP.series((("c", f'n{number} "\\\n\u00e9'), number) for number in range(amount))


@pytest.mark.parametrize("amount", [1, exposition.SLICE, exposition.SLICE + 1, 5 * exposition.SLICE])
@pytest.mark.parametrize("accept", ["", OPENMETRICS])
def test_slices_are_what_the_library_writes_at_once(accept: str, amount: int) -> None:
    async def collect(pace: Pace) -> AsyncIterator[Series]:
        yield f.READY.series([((), 1)])
        yield f.CHILD_DROPS.series(())
        yield series(amount)

    class Whole:
        def collect(self) -> list[Metric]:
            found = []
            for one in (f.READY.series([((), 1)]), series(amount)):
                found.append(Metric(one.name, one.help, one.kind))
                found[-1].samples = list(one.samples)
            return found

    async def main() -> None:
        answer = await Exposition(collect).answer(Request("GET", "/metrics", {"accept": accept}))
        write: Callable[[Any], bytes] = generate_openmetrics if accept else generate_latest
        assert b"".join(answer.body) == write(Whole())

    run(main())


def test_a_data_path_that_ends_meanwhile_is_no_bug() -> None:
    async def collect(pace: Pace) -> AsyncIterator[Series]:
        yield f.READY.series([((), 1)])
        raise BackendError("the backend is not running")

    async def main() -> None:
        with pytest.raises(HttpError, match="not running") as caught:
            await Exposition(collect).answer(Request("GET", "/metrics", {}))
        assert caught.value.status is HTTPStatus.SERVICE_UNAVAILABLE

    run(main())


def test_others_have_their_turn_and_one_scrape_serves_all() -> None:
    collected = 0

    async def collect(pace: Pace) -> AsyncIterator[Series]:
        nonlocal collected
        collected += 1
        yield series(20_000)

    async def main() -> None:
        source = Exposition(collect)
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        counting = asyncio.create_task(count())
        request = Request("GET", "/metrics", {})
        first, gone = asyncio.create_task(source.answer(request)), asyncio.create_task(source.answer(request))
        await asyncio.sleep(0)
        gone.cancel()
        second = await source.answer(request)
        assert (await first).body == second.body
        assert second.status is HTTPStatus.OK
        assert collected == 1
        assert turns > 10
        counting.cancel()
        await source.answer(request)
        assert collected == 2

    run(main())
