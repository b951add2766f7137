"""Health and metrics of two daemons with a tunnel between them, over HTTP as Prometheus and probes ask for them."""

from __future__ import annotations

import http.client
import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ipsec.net import netns
from tests.e2e.gateways import COMMAND, INNER, Gateway, eventually
from tests.e2e.ike_gateways import IkeWorld, loss, ups

pytestmark = pytest.mark.e2e

PORT = 9903


@pytest.fixture
def world(tmp_path: Path) -> Iterator[IkeWorld]:
    """Two gateways with the endpoint, not started yet."""
    with IkeWorld(tmp_path) as world:
        world.set("ipsecd.http.listen", str(PORT))
        yield world


def get(gateway: Gateway, path: str) -> tuple[int, str]:
    """Status and body."""
    with netns.inside(gateway.namespace):
        connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=10)
        connection.connect()
    connection.request("GET", path)
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def scrape(gateway: Gateway) -> dict[tuple[str, ...], float]:
    """By name of the sample and values of its labels in the order of their names."""
    status, text = get(gateway, "/metrics")
    assert status == 200
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_counters_go_on_over_rekeyings_and_another_device(world: IkeWorld) -> None:
    world.set(":rekey_time", "1s", 0)
    world.set(":rand_time", "0", 0)
    world.set("@rekey_time", "2s", 0)
    world.set("@rand_time", "0", 0)
    world.up()
    seen = {gateway: [scrape(gateway)] for gateway in (world.a, world.b)}
    sent = 0
    while not all(
        looks[-1]["ipsecd_child_rekeys_total", "net", "site"] >= 2 and looks[-1]["ipsecd_ike_rekeys_total", "site"] >= 1
        for looks in seen.values()
    ):
        assert loss(world.a.ping(INNER[4][1])) == 0, world.logs()
        sent += 3
        for gateway, looks in seen.items():
            looks.append(scrape(gateway))
            for key, value in looks[-2].items():
                if key[0].endswith(("_total", "_bucket", "_count", "_sum")):
                    assert looks[-1][key] >= value, key
        assert sent < 600, world.logs()
    for gateway, looks in seen.items():
        last = looks[-1]
        for direction in ("in", "out"):
            assert last["ipsecd_child_packets_total", "net", "site", direction] == sent, gateway.namespace
            assert last["ipsecd_batch_datagrams_sum", direction] == last["ipsecd_net_datagrams_total", direction]
            assert last["ipsecd_net_datagrams_total", direction] >= sent
        assert last["ipsecd_child_up", "net", "site"] == last["ipsecd_ike_sas", "site"] == 1
        assert last["ipsecd_child_established_total", "net", "site"] == 1
        assert last["ipsecd_ike_established_total", "site"] == 1
    assert seen[world.a][-1]["ipsecd_ike_handshake_seconds_count", "initiator"] == 1
    assert seen[world.b][-1]["ipsecd_ike_handshake_seconds_count", "responder"] == 1

    world.a.run("ip", "link", "del", "ipsec0")
    assert eventually(lambda: "is back" in world.a.log())
    assert get(world.a, "/healthz")[0] == 200
    now = scrape(world.a)
    for key, value in seen[world.a][-1].items():
        if key[0].endswith("_total"):
            assert now[key] >= value, key


def test_a_peers_trouble_is_no_reason_for_a_restart(world: IkeWorld) -> None:
    world.set("@dpd_delay", "1")
    world.set("ipsecd.retransmit_tries", "1")
    world.set("@keyingtries", "0", 0)
    world.set(":dpd_action", "start", 0)
    world.up()
    assert eventually(lambda: get(world.a, "/readyz") == (200, '{"status": "ready"}\n'))
    world.b.stop(signal.SIGKILL)
    assert eventually(lambda: get(world.a, "/readyz")[0] == 503), world.a.log()
    assert json.loads(get(world.a, "/readyz")[1]) == {"status": "not ready", "problems": ["site/net is not up"]}
    assert get(world.a, "/healthz")[0] == get(world.a, "/livez")[0] == 200
    now = scrape(world.a)
    assert now["ipsecd_child_up", "net", "site"] == now["ipsecd_ready",] == 0
    assert now["ipsecd_child_configured", "net", "site"] == now["ipsecd_healthy",] == 1
    assert eventually(lambda: scrape(world.a).get(("ipsecd_failures_total", "no-answer", "site"), 0) >= 1)
    said = world.a.run(*COMMAND, "healthcheck", "--ready", "--config", str(world.a.config), check=False)
    assert (said.returncode, said.stdout) == (1, "not ready: site/net is not up\n")
    assert world.a.run(*COMMAND, "healthcheck", "--config", str(world.a.config)).stdout == "healthy\n"

    assert world.a.process is not None
    world.a.process.send_signal(signal.SIGSTOP)
    patience = "import sys; from ipsec.cli import healthcheck as h; h.PATIENCE_S = 0.3; h.main(sys.argv[1:])"
    said = world.a.run(sys.executable, "-c", patience, "--live", "--config", str(world.a.config))
    assert "no answer" in said.stdout
    world.a.process.send_signal(signal.SIGCONT)
    world.b.start()
    assert eventually(lambda: ups(world.b) >= 1 and get(world.a, "/readyz")[0] == 200, 20), world.logs()
